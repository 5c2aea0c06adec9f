"""The curve of a training run: in memory, and as lines of JSON in the model's folder."""

import time
from collections.abc import Iterable, Mapping
from typing import Any

from minicnn.core import checks
from minicnn.core.files import JsonLines, finite
from minicnn.core.hints import Hinting
from minicnn.core.log import logger
from minicnn.hooks import SessionRunContext, SessionRunHook, SessionRunValues


class History(Hinting):
    """The curve of a model's training: a row for each step at which something was noted.

    A row has "step", "loss" (the mean over the steps since the row before), "learning_rate" and
    "seconds" (of training, without pauses between runs). Where the model was validated, it also
    has "validation_loss", "validation_accuracy" and the other metrics.

    `Sequential.fit` returns it, and ``Estimator.history`` is one. In a model_dir it is kept in
    ``history.jsonl``, a line for each row, while the run goes on. A run that continues an earlier
    one continues its history.

    Parameters
    ----------
    path : Path, optional
        The file; None keeps the rows in memory only.
    rows : iterable of dict
        The rows to begin with, if there is no file.

    Examples
    --------
    >>> import minicnn as mc
    >>> history = mc.History(rows=[{"step": 10, "loss": 0.5}, {"step": 20, "loss": 0.25}])
    >>> history.to_dict()
    {'step': [10, 20], 'loss': [0.5, 0.25]}
    >>> history.last
    {'step': 20, 'loss': 0.25}
    """

    def __init__(self, path: Any = None, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._file = JsonLines(checks.optional(checks.path, path, "path"))
        given = checks.sequence(rows, "rows", "dicts") if path is None else read_rows(path, "step")
        self.rows = [dict(row) for row in given if _is_row(row, "step")]

    def to_dict(self) -> dict[str, list[Any]]:
        """Return a list for each name, all of the same length; None where a row has no value."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return {name: [row.get(name) for row in self.rows] for name in names}

    @property
    def last(self) -> dict[str, Any]:
        """The last value of each name; empty if there is no row yet."""
        return {name: value for row in self.rows for name, value in row.items()}

    @property
    def best(self) -> dict[str, Any]:
        """The row with the lowest validation loss; without validation, with the lowest loss."""
        for name in ("validation_loss", "loss"):
            known = [row for row in self.rows if row.get(name) is not None]
            if known:
                return dict(min(known, key=lambda row: row[name]))
        return {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row, or complete the last one if it is of the same step; save it."""
        row = finite(row)
        if self.rows and self.rows[-1]["step"] == row["step"]:
            self.rows[-1] |= row
            self._file.replace(self.rows)
        else:
            self.rows.append(row)
            self._file.add(row)

    def cut(self, step: int) -> None:
        """Forget the rows of later steps: of a run that was killed before it had saved them."""
        if self.last.get("step", 0) > step:
            self.rows = [row for row in self.rows if row["step"] <= step]
            self._file.replace(self.rows)

    def __repr__(self) -> str:
        return f"History({len(self.rows)} rows, last {self.last})"


def read_rows(path: Any, key: str) -> list[Any]:
    """Return the lines of a file that are rows of numbers; warn of others.

    `key` is the name of the step in a row.
    """
    lines = JsonLines(path).read()
    rows = [line for line in lines if _is_row(line, key)]
    if len(rows) < len(lines):
        logger.warning(
            "%s: %d lines are left out, since they are not numbers by name with a %r", path,
            len(lines) - len(rows), key,
        )
    return rows


def _is_row(row: Any, key: str) -> bool:
    """Return whether something is a row: a step, numbers by name, and maybe the data's name."""
    is_row = isinstance(row, Mapping) and type(row.get(key)) is int and row[key] >= 0
    return is_row and all(
        isinstance(value, str if name == "name" else int | float | None)
        for name, value in row.items()
    )


class HistoryHook(SessionRunHook):
    """Add rows to a history: every `every` steps, at validations, and at the end of a run.

    Parameters
    ----------
    history : History
    every : int
    """

    name = "history"

    def __init__(self, history: History, every: int) -> None:
        self.history = history
        self.every = every

    def resume(self, run_context: SessionRunContext, name: str, state: dict[str, Any]) -> None:
        self.history.cut(run_context.session.global_step)
        is_known = _is_row({"step": state.get("count"), "loss": state.get("sum")}, "step")
        self._sum = state["sum"] if is_known else 0.0
        self._count = state["count"] if is_known else 0
        self._start = time.monotonic() - (self.history.last.get("seconds") or 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"sum": self._sum, "count": self._count}

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        session = run_context.session
        self._sum += session.last_loss
        self._count += 1
        if session.global_step % self.every == 0 or session.evaluations:
            self._add(session)
            self._sum = 0.0
            self._count = 0

    def end(self, session: Any) -> None:
        if not session.interrupted and (self._count or session.evaluations):
            self._add(session)

    def _add(self, session: Any) -> None:
        seconds = round(time.monotonic() - self._start, 3)
        mean = {"loss": self._sum / self._count} if self._count else {}
        self.history.add({
            "step": session.global_step, **mean, "learning_rate": session.rate,
            "seconds": seconds, **session.evaluations,
        })
