"""A tqdm bar for `fit` and `evaluate`, on terminals and in notebooks."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from minicnn.core import extras

logger = logging.getLogger("minicnn")

Advance = Callable[[Any], None]  # called with the loss


@contextlib.contextmanager
def progress_bar(wanted: bool, title: str, total: float, done: int = 0) -> Iterator[Advance]:
    """Show a bar on a terminal or in a notebook if tqdm is installed; else show nothing.

    Parameters
    ----------
    wanted : bool
        False shows nothing.
    title : str
        The text before the bar.
    total : float
        The step to end at; infinity if unknown.
    done : int
        The step to begin at.

    Yields
    ------
    callable
        Call it with the loss after every step.
    """
    tqdm = _tqdm() if wanted and _is_seen(sys.stderr) else None
    if tqdm is None:
        yield lambda loss: None
        return
    bar = tqdm(desc=title, total=total, initial=done, unit="step", dynamic_ncols=True)
    with bar, _console_above_bar():
        bar.leave = bar.pos == 0  # a validation's bar, below another one, is removed

        def advance(loss: float) -> None:
            bar.set_postfix_str(f"loss={loss:#.4g}", refresh=False)
            bar.update()

        yield advance


def _is_seen(stream: Any) -> bool:
    """Return whether a stream is shown on a terminal or in a notebook."""
    return "ipykernel" in sys.modules or (not getattr(stream, "closed", True) and stream.isatty())


def _tqdm() -> Any:
    """Return tqdm's class; None if it is not installed."""
    try:
        return extras.require("tqdm.auto", "progress").tqdm
    except ImportError:
        return None


@contextlib.contextmanager
def _console_above_bar() -> Iterator[None]:
    """Print log lines above the bar, without those that show the same as the bar.

    Handlers that write elsewhere, such as into a file, stay as they are and get all lines.
    """
    above = extras.require("tqdm.contrib", "progress").DummyTqdmFile
    with contextlib.ExitStack() as undo:
        for handler in {*logger.handlers, *logging.root.handlers}:
            stream = vars(handler).get("stream")
            on_console = stream in (sys.stdout, sys.stderr) and _is_seen(stream)
            if on_console and isinstance(handler, logging.StreamHandler):
                undo.callback(handler.setStream, stream)
                handler.setStream(above(stream))
                undo.callback(handler.removeFilter, _says_more)
                handler.addFilter(_says_more)
        yield


def _says_more(record: logging.LogRecord) -> bool:
    return not hasattr(record, "says_step")
