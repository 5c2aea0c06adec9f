"""The bar that `fit` and `evaluate` show where somebody looks on."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

from minicnn.core import extras
from minicnn.hooks import SessionRunContext, SessionRunHook, SessionRunValues

logger = logging.getLogger("minicnn")

Advance = Callable[[float], None]


@contextlib.contextmanager
def progress_bar(wanted: bool, title: str, total: float, done: int = 0) -> Iterator[Advance]:
    """Show a bar on a terminal or in a notebook if tqdm is installed; else show nothing.

    Parameters
    ----------
    wanted : bool
        False shows nothing.
    title : str
        What stands before the bar.
    total : float
        The step to end at; infinity where it is not known.
    done : int
        The step to begin at.

    Yields
    ------
    callable
        To be called with the loss after every step.
    """
    tqdm = _tqdm() if wanted and _is_seen(sys.stderr) else None
    if tqdm is None:
        yield lambda loss: None
        return
    options = {"desc": title, "total": total, "initial": done, "unit": "step"}
    with tqdm(**options, dynamic_ncols=True) as bar, _console_above_bar():
        bar.leave = bar.pos == 0  # that of a validation, which stands below another, goes away

        def advance(loss: float) -> None:
            bar.set_postfix_str(f"loss={loss:#.4g}", refresh=False)
            bar.update()

        yield advance


class ProgressHook(SessionRunHook):
    """Moves a bar on after every step.

    Parameters
    ----------
    advance : callable
        What `progress_bar` yields.
    """

    def __init__(self, advance: Advance) -> None:
        self.advance = advance

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        self.advance(run_context.session.last_loss)


def _is_seen(stream: Any) -> bool:
    """Whether a stream goes to a terminal or into a notebook."""
    return "ipykernel" in sys.modules or (not getattr(stream, "closed", True) and stream.isatty())


def _tqdm() -> Any:
    """Return the class of the bar; None where it is not installed."""
    try:
        return extras.require("tqdm.auto", "progress").tqdm
    except ImportError:
        return None


@contextlib.contextmanager
def _console_above_bar() -> Iterator[None]:
    """Print the log lines above the bar, without those that say the same as the bar.

    A log that goes elsewhere, to a file, is left alone and whole.
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
