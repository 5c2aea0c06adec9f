"""What is seen while a run goes on: compiling, the step, the loss, the speed and the time left."""

import contextlib
import functools
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from minicnn.core import extras
from minicnn.core.log import logger
from minicnn.kernels import cache

_RENEW = 0.2  # seconds between two texts in the same place
_WRITE = 4.0  # seconds between two lines
_BRIEF = 2.0  # seconds that an evaluation takes before it is shown
_FORGET = 10.0  # seconds of training, about, over which the speed is a mean
_LOOK = 2.0  # seconds of training before the first look at the validation data
_PATIENCE = 5.0  # seconds that the end of a run waits for a blocked stream
_drawing = threading.RLock()  # held while a display draws, and while the process forks


class Screen:
    """A terminal, where a line is written again and again, or a stream that gets lines.

    Parameters
    ----------
    stream : file
    is_live : bool
        Whether a text replaces the one before.
    """

    def __init__(self, stream: Any, is_live: bool) -> None:
        self.is_live = is_live
        self.every = _RENEW if is_live else _WRITE
        self._stream = stream
        self._length = 0  # of the line on the terminal

    def show(self, text: str, share: float) -> None:
        """Show a text; `share` is how much of the run is done, from 0 to 1."""
        if self.is_live:
            width = shutil.get_terminal_size().columns - 1
            bar = "#" * int(share * (width - len(text) - 2))
            text = f"{text}  {bar}"[:width].ljust(self._length)
            self._length = len(text)
        self._write("\r" + text if self.is_live else f"{text}\n")

    def close(self, stays: bool) -> None:
        """Leave the line on the terminal, or make room for others."""
        if self._length:
            self._write("\n" if stays else "\r" + " " * self._length + "\r")
            self._length = 0

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class _Cell(Screen):
    """An output of a notebook's cell."""

    _handle: Any = None

    def show(self, text: str, share: float) -> None:
        data = {"text/plain": text}
        if self._handle is None:
            self._handle = self._stream.display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)


class Display(threading.Thread):
    """What a run is doing, as one line of text, and the thread that draws it.

    Parameters
    ----------
    screen : Screen, optional
        None draws nothing.
    brief : bool
        Whether nothing is drawn before two seconds, and nothing stays on the terminal.

    Attributes
    ----------
    kernels : set of (kernel, types)
        Those of a step, as `threads.recorded` returns them; empty if they are not known.
    look : callable or None
        Called once, after some seconds, with the number of steps per second, unless `note` was
        called before.
    """

    def __init__(self, screen: Screen | None = None, brief: bool = False) -> None:
        super().__init__(daemon=True)
        self.kernels: set[tuple[Any, Any]] = set()
        self.look: Callable[[float], None] | None = None
        self.screen: Any = screen
        self._brief = brief
        self._doing = "starting"  # shown instead of the step
        self._step = 0
        self._total = math.inf
        self._loss = math.nan
        self._results: dict[str, str] = {}  # of evaluations, by the name of the data
        self._steps = 0.0
        self._seconds = 0.0  # that these steps have taken
        self._last: float | None = None  # when the last step ended
        self._compiled = len(cache.compiled)
        self._ended = threading.Lock()  # a forked child may use it, unlike an Event
        self._ended.acquire()

    def begin(self, step: int, total: float) -> None:
        """Show steps from now on, the first after `step`, the last `total` (or infinity)."""
        self._step = step
        self._total = total
        self._doing = ""

    def __call__(self, loss: Any) -> None:
        """Count a step."""
        now = time.monotonic()
        if self._last is not None and len(cache.compiled) == self._compiled:
            seconds = now - self._last
            kept = math.exp(-seconds / _FORGET)
            self._steps = kept * self._steps + 1
            self._seconds = kept * self._seconds + seconds
        self._compiled = len(cache.compiled)
        self._last = now
        self._step += 1
        self._loss = loss
        if self.look is not None and self._seconds > _LOOK:
            look, self.look = self.look, None
            if not self._results:
                look(self._steps / self._seconds)

    def part(self, title: str, total: float, batches: Iterable[Any]) -> Iterator[Any]:
        """Yield the batches of an evaluation, and show how many are done instead of the steps.

        Parameters
        ----------
        title : str
        total : float
            The number of batches; infinity if unknown.
        batches : iterable
        """
        began = time.monotonic()
        before = self._doing
        self._doing = title
        try:
            for done, batch in enumerate(batches, 1):
                yield batch
                self._doing = f"{title} {_of(done, total)}"
        finally:
            self._doing = before
            if self._last is not None:
                self._last += time.monotonic() - began

    def note(self, name: str, results: Mapping[str, Any], rows: int | None = None) -> None:
        """Show the accuracy, or the first result, of an evaluation; `rows` if it was of a few."""
        key = "accuracy" if "accuracy" in results else next(iter(results))
        of_rows = "" if rows is None else f" ({rows} rows)"
        self._results[name] = f"{name} {key} {results[key]:#.3g}{of_rows}"

    def text(self, ended: bool = False) -> str:
        """Return what there is to see now."""
        if cache.compiling or len(cache.compiled) > self._compiled:
            done = sum(types in kernel.overloads for kernel, types in self.kernels)
            total = max(len(self.kernels), done + len(cache.compiling))
            count = f" {done}/{total}" if self.kernels else ""
            return f"compiling kernels{count}, once for this machine"
        if self._doing:
            return self._doing
        words = [f"step {_of(self._step, self._total)}"]
        if self._last is not None:
            words += [f"loss {self._loss:#.3g}", *self._results.values()]
        if self._seconds:
            speed = self._steps / self._seconds
            words.append(f"{speed:.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s")
            if self._seconds > 1 and self._total < math.inf and not ended:
                words.append(f"{_duration((self._total - self._step) / speed)} left")
        return "  ".join(words)

    def run(self) -> None:
        """Draw again and again until `end` is called; then once more."""
        screen = self.screen
        wait = _BRIEF if self._brief else min(screen.every, 1.0)
        is_long = screen.is_live
        with contextlib.suppress(OSError, ValueError):  # a closed stream, or a pipe without reader
            while not self._ended.acquire(timeout=wait):
                wait = screen.every
                is_long = True
                with _drawing:
                    screen.show(self.text(), self._step / self._total)
            with _drawing:
                if is_long and self._last is not None:
                    screen.show(self.text(ended=True), self._step / self._total)
                screen.close(stays=not self._brief)

    def end(self) -> None:
        """End the thread, if it was started and this is not a forked child."""
        self._ended.release()
        if self.is_alive():
            self.join(_PATIENCE)

    def filter(self, record: logging.LogRecord) -> bool:
        """Make room for a log line on the console, or leave it out if the display says the same."""
        if hasattr(record, "says_step"):
            return False
        with _drawing, contextlib.suppress(OSError, ValueError):  # as in `run`
            self.screen.close(stays=False)
        return True


@contextlib.contextmanager
def displayed(wanted: int, brief: bool = False) -> Iterator[Display]:
    """Show a run on stderr, unless minicnn's own logger shows INFO on the console.

    On a terminal or in a notebook a line renews itself; otherwise a line is written every few
    seconds. On a terminal, log lines appear above the line.

    Parameters
    ----------
    wanted : bool or int
        False shows nothing; 2 writes lines on a terminal, too.
    brief : bool
        As for `Display`.

    Yields
    ------
    Display
    """
    display = Display(_screen(wanted), brief)
    if display.screen is None:
        yield display
        return
    _draw_nothing_while_forking()
    handlers = {*logger.handlers, *logging.root.handlers, logging.lastResort}
    console = [h for h in handlers if h and display.screen.is_live and _is_console(h)]
    for handler in console:
        handler.addFilter(display)
    try:
        with contextlib.suppress(RuntimeError):  # no thread can be started
            display.start()
        yield display
    finally:
        display.end()
        for handler in console:
            handler.removeFilter(display)


def _screen(wanted: int) -> Screen | None:
    """Return where a run is shown: a notebook's cell, the terminal or the stream of stderr."""
    ipython = sys.modules.get("IPython")
    if not wanted or _is_log_shown() or getattr(sys.stderr, "closed", True):
        return None
    if wanted != 2 and ipython and hasattr(ipython.get_ipython(), "kernel"):
        return _Cell(extras.require("IPython.display", "notebook"), is_live=True)
    return Screen(sys.stderr, wanted != 2 and sys.stderr.isatty())


def _is_console(handler: logging.Handler) -> bool:
    return getattr(handler, "stream", None) in {sys.stdout, sys.stderr} - {None}


def _is_log_shown() -> bool:
    """Return whether a handler of minicnn's own logger shows INFO on the console."""
    shown = [h for h in logger.handlers if h.level <= logging.INFO and _is_console(h)]
    return bool(shown) and logger.isEnabledFor(logging.INFO)


@functools.cache
def _draw_nothing_while_forking() -> None:
    """Keep a forked child from inheriting a stream that the thread is writing to."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=_drawing.acquire, after_in_parent=_drawing.release,
            after_in_child=_drawing.release,
        )


def _of(done: int, total: float) -> str:
    return f"{done}/{total:.0f}" if total < math.inf else f"{done}"


def _duration(seconds: float) -> str:
    """Return a time as it is said: in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
