"""What is seen while `fit` and `evaluate` run: compiling, the step, the loss and the time left."""

import contextlib
import functools
import logging
import math
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from minicnn.core import extras
from minicnn.kernels import cache

logger = logging.getLogger("minicnn")

Advance = Callable[[Any], None]  # called with the loss

_FORGET = 10.0  # the speed is the mean over about so many seconds of training
_BRIEF = 2.0  # seconds that an evaluation takes before it is shown
_PATIENCE = 5.0  # seconds that the end of a run waits for a blocked stream
_LOOK = 2.0  # seconds of training before the first look at the validation data
_CALM = 0.05  # seconds after a log line in which nothing is drawn
_drawing = threading.RLock()  # held while a display draws, and while the process forks


class Display:
    """What a run is doing, as one line of text.

    Parameters
    ----------
    is_on : bool
        False if nobody sees it.

    Attributes
    ----------
    kernels : set of (kernel, types)
        Those of a step, as `threads.recorded` returns them; empty if they are not known.
    look : callable or None
        Called once, after some seconds, with the number of steps per second, unless `note` was
        called before.
    """

    def __init__(self, is_on: bool) -> None:
        self.is_on = is_on
        self.kernels: set[tuple[Any, Any]] = set()
        self.look: Callable[[float], None] | None = None
        self._doing = "starting"  # shown instead of the step
        self._step = 0
        self._total = math.inf
        self._loss = math.nan
        self._results: dict[str, str] = {}  # of evaluations, by the name of the data
        self._steps = 0.0
        self._seconds = 0.0  # that these steps have taken
        self._last: float | None = None  # when the last step ended
        self._compiled = len(cache.compiled)

    @property
    def is_begun(self) -> bool:
        """Whether a step was done."""
        return self._last is not None

    @property
    def share(self) -> float:
        """How much of the run is done, from 0 to 1."""
        return self._step / self._total

    def start(self, step: int, total: float) -> None:
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

    @contextlib.contextmanager
    def part(self, title: str, total: float) -> Iterator[Advance]:
        """Show the batches of an evaluation instead of the steps.

        Parameters
        ----------
        title : str
        total : float
            The number of batches; infinity if unknown.

        Yields
        ------
        callable
            Call it with the loss so far, or None, after every batch.
        """
        began = time.monotonic()
        done = 0

        def advance(loss: float | None) -> None:
            nonlocal done
            done += 1
            said = "" if loss is None else f"  loss {loss:#.3g}"
            self._doing = f"{title} {_of(done, total)}{said}"

        before, self._doing = self._doing, title
        try:
            yield advance
        finally:
            self._doing = before
            if self._last is not None:
                self._last += time.monotonic() - began

    def note(self, name: str, results: Mapping[str, Any], rows: int | None = None) -> None:
        """Show the accuracy, or another result, of an evaluation; `rows` if it was of a few."""
        numbers = [key for key, value in results.items() if np.ndim(value) == 0]
        key = next((key for key in ("accuracy", *numbers) if key in numbers), "loss")
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
        if self.is_begun:
            words += [f"loss {self._loss:#.3g}", *self._results.values()]
        if self._seconds:
            speed = self._steps / self._seconds
            words.append(f"{speed:.0f} steps/s" if speed >= 10 else f"{speed:.2g} steps/s")
            if self._seconds > 1 and self._total < math.inf and not ended:
                words.append(f"{_duration((self._total - self._step) / speed)} left")
        return "  ".join(words)


@contextlib.contextmanager
def displayed(wanted: bool, brief: bool = False) -> Iterator[Display]:
    """Show a run on stderr, unless minicnn's own logger shows INFO on the console.

    On a terminal or in a notebook a line renews itself, with a bar if tqdm is installed; otherwise
    a line is written every few seconds. On a terminal, log lines appear above the line.

    Parameters
    ----------
    wanted : bool
        False shows nothing.
    brief : bool
        Whether nothing is shown before two seconds, and nothing stays on the terminal.

    Yields
    ------
    Display
    """
    screen = _screen() if wanted and not _is_log_shown() else None
    display = Display(screen is not None)
    if screen is None:
        yield display
        return
    _draw_nothing_while_forking()
    artist = _Artist(display, screen, brief)
    with contextlib.ExitStack() as undo:
        for handler in _console_handlers() if screen.is_live else ():
            undo.callback(handler.removeFilter, artist)
            handler.addFilter(artist)
        with contextlib.suppress(RuntimeError):  # no thread can be started
            artist.start()
        try:
            yield display
        finally:
            artist.end()


class _Artist(threading.Thread):
    """The thread that draws a display, and a filter for the log lines above it."""

    def __init__(self, display: Display, screen: "Screen", brief: bool) -> None:
        super().__init__(daemon=True)
        self._display = display
        self._screen = screen
        self._brief = brief
        self._written = 0.0  # when a log line was last written
        self._ended = threading.Lock()  # a forked child may use it, unlike an Event
        self._ended.acquire()

    def run(self) -> None:
        wait = _BRIEF if self._brief else self._screen.delay
        is_shown = self._screen.is_live
        with contextlib.suppress(OSError, ValueError):  # a closed stream, or a pipe without reader
            while not self._ended.acquire(timeout=wait):
                is_shown = True
                wait = self._screen.every
                with _drawing:
                    if time.monotonic() - self._written > _CALM:
                        self._screen.show(self._display.text(), self._display.share)
            with _drawing:
                if is_shown and not self._brief and self._display.is_begun:
                    self._screen.show(self._display.text(ended=True), self._display.share)
                self._screen.close(not self._brief)

    def end(self) -> None:
        """Draw the last line and end the thread; in a forked child there is none."""
        self._ended.release()
        if self.is_alive():
            self.join(_PATIENCE)

    def filter(self, record: logging.LogRecord) -> bool:
        """Make room for a log line on the console, or leave it out if the display says the same."""
        if hasattr(record, "says_step"):
            return False
        with _drawing, contextlib.suppress(OSError, ValueError):
            self._written = time.monotonic()
            self._screen.clear()
        return True


def _console_handlers() -> list[logging.Handler]:
    """Return the log handlers that write to the console."""
    handlers = {*logger.handlers, *logging.root.handlers, logging.lastResort}
    return [handler for handler in handlers if handler and _is_console(handler)]


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


def _screen() -> "Screen | None":
    """Return where a run is shown: a notebook's cell, the terminal or the stream of stderr."""
    stream = sys.stderr
    ipython = sys.modules.get("IPython")
    if ipython and hasattr(ipython.get_ipython(), "kernel"):
        return _Cell(extras.require("IPython.display", "notebook"))
    if getattr(stream, "closed", True):
        return None
    if not stream.isatty():
        return Screen(stream)
    try:
        return _Bar(stream, extras.require("tqdm", "progress").tqdm)
    except ImportError:
        return _Line(stream)


class Screen:
    """A stream that is no terminal: every text is a line.

    Parameters
    ----------
    stream : file
    """

    delay = 1.0  # seconds until a run is long enough to be shown
    every = 4.0  # seconds between two texts
    is_live = False  # whether a text replaces the one before

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def show(self, text: str, share: float) -> None:
        """Show a text; `share` is how much of the run is done, from 0 to 1."""
        self._write(f"{text}\n")

    def clear(self) -> None:
        """Make room for other lines."""

    def close(self, stays: bool) -> None:
        """Leave the last text, or remove it."""

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class _Line(Screen):
    """A line of a terminal that is written again and again."""

    delay = every = 0.2
    is_live = True
    _length = 0

    def show(self, text: str, share: float) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]
        self._write("\r" + text.ljust(self._length))
        self._length = len(text)

    def clear(self) -> None:
        self._write("\r" + " " * self._length + "\r")
        self._length = 0

    def close(self, stays: bool) -> None:
        if stays and self._length:
            self._write("\n")
        else:
            self.clear()


class _Bar(_Line):
    """The line with a bar of tqdm."""

    def __init__(self, stream: Any, tqdm: Any) -> None:
        kind = type("Bar", (tqdm,), {"monitor_interval": 0})  # without tqdm's own thread
        self._bar = kind(
            total=1.0, bar_format="{desc}  {bar}", file=stream, dynamic_ncols=True, delay=1e-9
        )

    def show(self, text: str, share: float) -> None:
        self._bar.n = share
        self._bar.set_description_str(text)

    def clear(self) -> None:
        self._bar.clear()

    def close(self, stays: bool) -> None:
        self._bar.leave = stays
        self._bar.close()


class _Cell(_Line):
    """An output of a notebook's cell."""

    _handle: Any = None

    def show(self, text: str, share: float) -> None:
        data = {"text/plain": text}
        if self._handle is None:
            self._handle = self._stream.display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def clear(self) -> None:
        """Do nothing: log lines have an output of their own."""

    def close(self, stays: bool) -> None:
        if self._handle is not None and not stays:
            self.show("", 1.0)


def _of(done: int, total: float) -> str:
    return f"{done}/{total:.0f}" if total < math.inf else f"{done}"


def _duration(seconds: float) -> str:
    """Return a time as it is said: in seconds, minutes or hours."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
