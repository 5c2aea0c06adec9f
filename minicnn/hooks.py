"""Hooks: code that runs around the steps of a training run.

A run calls ``begin`` and ``resume`` once, ``before_run`` and ``after_run`` around every step, and
``end`` once unless an error stopped it. What ``state_dict`` returns is kept in checkpoints.
"""

import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn.core import checks
from minicnn.core.log import logger, numbers
from minicnn.core.op import Tensor

# For lines about progress: the console omits them while a progress bar shows the same.
step_logger = logging.LoggerAdapter(logger, {"says_step": True})


class NanLossError(RuntimeError):
    """The loss is NaN or infinite.

    Examples
    --------
    >>> import minicnn as mc
    >>> issubclass(mc.NanLossError, RuntimeError)
    True
    """


class SessionRunArgs(NamedTuple):
    """The values of the next step that a hook requests.

    Parameters
    ----------
    fetches : str, Tensor, or a list or dict of them
        Names of tensors or parameters, "loss", "global_step", "learning_rate".

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.hooks.SessionRunArgs({"step": "global_step"}).fetches
    {'step': 'global_step'}
    """

    fetches: Any


class SessionRunValues(NamedTuple):
    """The requested values, in the structure of the request.

    Parameters
    ----------
    results : value, or a list or dict of them
        The hook's own copies.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.hooks.SessionRunValues({"step": 1}).results["step"]
    1
    """

    results: Any


class SessionRunContext:
    """Give a hook access to the run.

    Parameters
    ----------
    session : TrainingSession
        With `global_step`, `graph`, `parameters`, `save()` and `evaluate(...)`.

    Attributes
    ----------
    stop_requested : bool
    put_back : Path or None
        A checkpoint whose values replace those of the last step when the run ends, unless Ctrl-C
        ends it. Set it together with `request_stop`.

    Examples
    --------
    >>> import minicnn as mc
    >>> context = mc.hooks.SessionRunContext(session=None)
    >>> context.request_stop()
    >>> context.stop_requested
    True
    """

    def __init__(self, session: Any) -> None:
        self.session = session
        self.stop_requested = False
        self.put_back: Path | None = None

    def request_stop(self) -> None:
        """End the run after this step."""
        self.stop_requested = True


class SessionRunHook:
    """The base of all hooks; each method does nothing until it is overridden.

    Examples
    --------
    >>> import minicnn as mc
    >>> class StopAtSmallLoss(mc.hooks.SessionRunHook):
    ...     def before_run(self, run_context):
    ...         return mc.hooks.SessionRunArgs("loss")
    ...     def after_run(self, run_context, run_values):
    ...         if run_values.results < 0.1:
    ...             run_context.request_stop()
    """

    name: str | None = None  # the hook's name in checkpoints; None is the name of its class

    def begin(self) -> None:
        """Do something before the first step."""

    def resume(self, run_context: SessionRunContext, name: str, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned, after `begin`.

        A hook that calls `run_context.request_stop` here ends the run before its first step.

        Parameters
        ----------
        run_context : SessionRunContext
        name : str
            The name of this hook in checkpoints; unique among the hooks of the run.
        state : dict
            From the checkpoint that the run continues; empty if that holds none.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state that checkpoints keep of this hook, as values that JSON can hold."""
        return {}

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        """Return what to fetch in the next step, or None."""

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        """Use what was fetched; the step has already changed the parameters."""

    def evaluated(self, session: Any, name: str, results: Mapping[str, Any]) -> None:
        """Use the results of an evaluation in this run, by a monitor or ``session.evaluate``.

        Parameters
        ----------
        session : TrainingSession
        name : str
            What the data is, such as "validation".
        results : mapping
            The loss, the metrics and the global step.
        """

    def end(self, session: Any) -> None:
        """Do something after the last step; not called if an error stopped the run."""


class Timer:
    """Decide when something is due, by steps or by seconds.

    Parameters
    ----------
    every_steps, every_secs : number, optional
        Exactly one.

    Examples
    --------
    >>> import minicnn as mc
    >>> timer = mc.hooks.Timer(every_steps=50)
    >>> timer.due(1), timer.mark(1), timer.due(50), timer.due(51)
    (True, None, False, True)
    """

    def __init__(self, every_steps: int | None = None, every_secs: float | None = None) -> None:
        checks.exclusive(least=1, every_steps=every_steps, every_secs=every_secs)
        self.every_steps = checks.optional(checks.integer, every_steps, "every_steps")
        self.every_secs = checks.optional(checks.number, every_secs, "every_secs", 0.0)
        self.reset()

    def reset(self) -> None:
        """Forget the last time, so that it is due immediately."""
        self.last_step: int | None = None
        self.last_time = 0.0

    def due(self, step: int) -> bool:
        """Return whether it is due at `step`."""
        if self.last_step is None:
            return True
        if self.every_steps is not None:
            return step >= self.last_step + self.every_steps
        return time.monotonic() >= self.last_time + (self.every_secs or 0)

    def mark(self, step: int) -> None:
        """Note that it was done at `step`, now."""
        self.last_step = step
        self.last_time = time.monotonic()

    def rate(self, step: int) -> float | None:
        """Return the steps per second since the last time, if there was one; note this time."""
        before, since = self.last_step, self.last_time
        self.mark(step)
        return None if before is None else (step - before) / max(self.last_time - since, 1e-9)


class _TimedHook(SessionRunHook):
    """A hook with a timer that starts again with each run."""

    timer: Timer

    def begin(self) -> None:
        self.timer.reset()


class LoggingTensorHook(_TimedHook):
    """Log the values of tensors, at the first step and then at every n-th or every n seconds.

    Parameters
    ----------
    tensors : dict from str to (str or Tensor), or list of str
        Tag and tensor; the tag of a name in a list is the name.
    every_n_iter : int, optional
        Steps from one line to the next.
    every_n_secs : float, optional
        Seconds from one line to the next. Exactly one of the two is given.
    at_end : bool
        Whether to log the last values once more at the end.
    formatter : callable, optional
        Takes the dict of values and returns the line.

    Raises
    ------
    ValueError
        Unless exactly one interval is given. At the first step, if no tensor has the name; the
        error lists similar names.

    Examples
    --------
    >>> import minicnn as mc
    >>> hook = mc.hooks.LoggingTensorHook({"probabilities": "softmax_tensor"}, every_n_iter=50)
    """

    def __init__(
        self,
        tensors: Mapping[str, Any] | Iterable[str],
        every_n_iter: int | None = None,
        every_n_secs: float | None = None,
        at_end: bool = False,
        formatter: Callable[[dict[str, Any]], str] | None = None,
    ) -> None:
        self.timer = _timer(every_n_iter, "every_n_iter", every_n_secs, "every_n_secs")
        if not isinstance(tensors, Mapping):
            names = checks.sequence(tensors, "tensors", f"names, or a dict; write [{tensors!r}]")
            tensors = {str(name): name for name in names}
        self.tensors = dict(tensors)
        self.at_end = checks.boolean(at_end, "at_end")
        self.formatter = checks.optional(
            checks.function, formatter, "formatter", "a function of the dict of values", 1
        )
        self.logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = logger
        self._values: dict[str, Any] = {}

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        is_due = self.at_end or self.timer.due(run_context.session.global_step + 1)
        return SessionRunArgs(self.tensors) if is_due else None

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if run_values.results is None:
            return
        self._values = run_values.results
        step = run_context.session.global_step
        if self.timer.due(step):
            self._log(step)

    def end(self, session: Any) -> None:
        if self.at_end and session.global_step != self.timer.last_step:
            self._log(session.global_step)

    def _log(self, step: int) -> None:
        before, since = self.timer.last_step, self.timer.last_time
        self.timer.mark(step)
        if self.formatter is not None:
            self.logger.info("%s", self.formatter(self._values))
            return
        line = ", ".join(f"{tag} = {_text(value)}" for tag, value in self._values.items())
        seconds = "" if before is None else f" ({time.monotonic() - since:.3f} sec)"
        self.logger.info("%s%s", line, seconds)


class StopAtStepHook(SessionRunHook):
    """End the run after a number of steps, or at a global step.

    Parameters
    ----------
    num_steps : int, optional
        How many steps to do, from where the run begins.
    last_step : int, optional
        The global step to end at. Exactly one of the two is given.

    Examples
    --------
    >>> import minicnn as mc
    >>> hook = mc.hooks.StopAtStepHook(last_step=20000)
    """

    def __init__(self, num_steps: int | None = None, last_step: int | None = None) -> None:
        checks.exclusive(least=1, num_steps=num_steps, last_step=last_step)
        self.num_steps = checks.optional(checks.integer, num_steps, "num_steps")
        self.last_step = checks.optional(checks.integer, last_step, "last_step")

    def end_from(self, step: int) -> int:
        """Return the global step at which a run that begins at `step` ends."""
        return self.last_step or step + (self.num_steps or 0)

    def resume(self, run_context: SessionRunContext, name: str, state: dict[str, Any]) -> None:
        self._end = self.end_from(run_context.session.global_step)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if run_context.session.global_step >= self._end:
            run_context.request_stop()


class CheckpointSaverHook(_TimedHook):
    """Save a checkpoint after the first step, then at intervals, and at the end.

    Parameters
    ----------
    save_secs : float, optional
        Seconds from one to the next.
    save_steps : int, optional
        Steps from one to the next. Exactly one of the two is given.

    Examples
    --------
    >>> import minicnn as mc
    >>> hook = mc.hooks.CheckpointSaverHook(save_steps=1000)
    """

    def __init__(self, save_secs: float | None = None, save_steps: int | None = None) -> None:
        self.timer = _timer(save_steps, "save_steps", save_secs, "save_secs")

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if self.timer.due(run_context.session.global_step):
            self._save(run_context.session)

    def end(self, session: Any) -> None:
        if not session.is_saved():
            self._save(session)

    def _save(self, session: Any) -> None:
        session.save()
        self.timer.mark(session.global_step)


class StepCounterHook(_TimedHook):
    """Log the number of steps per second.

    Parameters
    ----------
    every_n_steps : int, optional
        Steps from one line to the next; 100 if neither interval is given.
    every_n_secs : float, optional
        Seconds from one line to the next.

    Examples
    --------
    >>> import minicnn as mc
    >>> hook = mc.hooks.StepCounterHook(every_n_steps=100)
    """

    def __init__(self, every_n_steps: int | None = None, every_n_secs: float | None = None) -> None:
        if every_n_steps is None and every_n_secs is None:
            every_n_steps = 100
        self.timer = _timer(every_n_steps, "every_n_steps", every_n_secs, "every_n_secs")

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        step = run_context.session.global_step
        if self.timer.due(step) and (rate := self.timer.rate(step)) is not None:
            step_logger.info("global_step/sec: %.6g", rate)


class NanTensorHook(SessionRunHook):
    """Stop the run if the loss is not a finite number.

    Parameters
    ----------
    loss_tensor : str or Tensor
        Any tensor, all of whose elements are then checked.
    fail_on_nan_loss : bool
        True raises `NanLossError`, so no checkpoint of the invalid weights is written; False only
        ends the run.

    Examples
    --------
    >>> import minicnn as mc
    >>> hook = mc.hooks.NanTensorHook("loss")
    """

    def __init__(self, loss_tensor: Any = "loss", fail_on_nan_loss: bool = True) -> None:
        self.loss_tensor = checks.instance(
            loss_tensor, str | Tensor, "loss_tensor", "a name or a Tensor"
        )
        self.fail_on_nan_loss = checks.boolean(fail_on_nan_loss, "fail_on_nan_loss")

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs:
        return SessionRunArgs(self.loss_tensor)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        loss = float(np.sum(run_values.results, dtype=np.float64))  # of a tensor's elements
        if math.isfinite(loss):
            return
        message = (
            f"the loss is {loss} at step {run_context.session.global_step}; lower the learning "
            "rate, or look for NaN or infinity in the data"
        )
        if self.fail_on_nan_loss:
            raise NanLossError(message + ". No checkpoint holds it")
        logger.warning("Model diverged: %s", message)
        run_context.request_stop()


class ValidationMonitor(SessionRunHook):
    """Evaluate the weights at intervals, and stop the run when they no longer improve.

    The first interval begins with the first step. The last step of a run is evaluated too, unless
    Ctrl-C ended it. The best value, its step and the schedule are part of each checkpoint, so an
    interrupted run stops at the same step as an uninterrupted one. A value that is not finite is
    never the best.

    Parameters
    ----------
    x, y, input_fn, batch_size, metrics
        The validation data and metrics, as for `Estimator.evaluate`.
    every_n_steps : int
        Steps from one evaluation to the next.
    early_stopping_rounds : int, optional
        Stop after this many steps without a better value; None never stops. A later `fit` waits
        for as many steps again.
    early_stopping_metric : str
        The name of the result that is compared.
    early_stopping_metric_minimize : bool
        Whether a smaller value is better.
    name : str, optional
        The name of the evaluations in ``evaluations.jsonl``, and of the monitor in checkpoints:
        letters, digits, ``_``, ``.``, ``-`` and spaces. The default is "validation"; a second
        monitor of the same name is "validation_2".
    restore_best_weights : bool
        Whether the parameters and the optimizer's state of `best_step` are restored when the
        monitor itself stops the run. The checkpoint keeps the step at which the run ended.
    keep_best : bool
        Whether the best values are kept in a file, `best_checkpoint`. With `early_stopping_rounds`
        and `restore_best_weights` they always are.

    Attributes
    ----------
    best_value : float or None
        The best value so far.
    best_step : int
        The step of the best value; 0 if there is none yet.
    best_checkpoint : Path or None
        The file with the best values, for ``Estimator.evaluate(checkpoint_path=...)``.
    early_stopped : bool
        Whether the monitor stopped the last run.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x, y = np.zeros((10, 784), np.float32), np.zeros(10, np.int32)
    >>> monitor = mc.hooks.ValidationMonitor(x, y, every_n_steps=500, early_stopping_rounds=2000)
    """

    def __init__(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Any = None,
        batch_size: int | None = None,
        metrics: Any = None,
        every_n_steps: int = 100,
        early_stopping_rounds: int | None = None,
        early_stopping_metric: str = "loss",
        early_stopping_metric_minimize: bool = True,
        name: str | None = None,
        restore_best_weights: bool = True,
        keep_best: bool = False,
    ) -> None:
        checks.exclusive(least=1, x=x, input_fn=input_fn)
        self.data = {
            "x": x,
            "y": y,
            "input_fn": input_fn,
            "batch_size": batch_size,
            "metrics": metrics,
        }
        self.timer = Timer(every_steps=checks.integer(every_n_steps, "every_n_steps"))
        self.rounds = checks.optional(
            checks.integer, early_stopping_rounds, "early_stopping_rounds"
        )
        self.metric = checks.text(early_stopping_metric, "early_stopping_metric")
        if isinstance(metrics, Mapping):
            checks.existing(self.metric, "early_stopping_metric", ("loss", *metrics))
        self.minimize = checks.boolean(
            early_stopping_metric_minimize, "early_stopping_metric_minimize"
        )
        self.name = "validation" if name is None else checks.text(name, "name")
        if not re.fullmatch(r"[A-Za-z0-9_. -]{1,100}", self.name):
            raise ValueError(
                "`name` must be at most 100 letters, digits, '_', '.', '-' and spaces, because a "
                f"file is named after it, got {checks.describe(name)}"
            )
        self.restores = checks.boolean(restore_best_weights, "restore_best_weights")
        self.keeps = checks.boolean(keep_best, "keep_best") or (
            self.restores and self.rounds is not None
        )
        self._label = self.name
        self.begin()

    def begin(self) -> None:
        self.early_stopped = False
        self.timer.reset()
        self.best_value: float | None = None
        self.best_step = 0
        self.best_checkpoint: Path | None = None
        # The patience counts evaluations on the schedule only, not the one at the end of a run, so
        # a run in two parts stops at the same step as one in a single part.
        self._mark: float | None = None  # the best value on the schedule
        self._since = 0  # the step from which the patience counts
        self._measured = 0  # the last step that was evaluated
        self._stops = False  # whether it has requested a stop that Ctrl-C has not let it finish

    def resume(self, run_context: SessionRunContext, name: str, state: dict[str, Any]) -> None:
        self._label = name
        if not state:
            return
        try:
            self._load(state, run_context.session)
        except (KeyError, TypeError, ValueError) as error:
            logger.warning("The state of monitor %r is unusable; it starts again: %r", name, error)
            self.begin()
        if self._stops and self.rounds is not None:
            self._stop(run_context)

    def _load(self, state: dict[str, Any], session: Any) -> None:
        steps = {
            key: checks.integer(state[key], key, 0, session.global_step)
            for key in ("scheduled", "measured", "best_step", "since")
        }
        value, mark = (
            checks.optional(checks.number, state[key], key) for key in ("best_value", "mark")
        )
        path = session.files.best_path(self._label)
        if steps["scheduled"]:
            self.timer.mark(steps["scheduled"])
        self._measured = steps["measured"]
        kept = path if self.keeps and value is not None else None
        if state["compares"] != [self.metric, self.minimize] or (kept and not kept.is_file()):
            logger.info(
                "%r starts without a best value: it compares %s now, or %s is missing.",
                self._label, self.metric, path,
            )
            return
        self.best_value = value
        self.best_step = steps["best_step"]
        self.best_checkpoint = kept
        self._mark = mark
        self._since = steps["since"]
        self._stops = checks.boolean(state["stops"], "stops")

    def state_dict(self) -> dict[str, Any]:
        return {
            "scheduled": self.timer.last_step or 0,
            "measured": self._measured,
            "best_step": self.best_step,
            "best_value": self.best_value,
            "mark": self._mark,
            "since": self._since,
            "stops": self._stops,
            "compares": [self.metric, self.minimize],
        }

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        step = run_context.session.global_step
        if self.timer.last_step is None:
            self.timer.mark(step)  # the first interval begins here
        if not self.timer.due(step):
            return
        self.timer.mark(step)
        value = self._measure(run_context.session)
        if self._is_better(value, self._mark):
            self._mark = value
            self._since = step
        self._since = self._since or step
        if self.rounds is not None and step - self._since >= self.rounds:
            self._stop(run_context)

    def end(self, session: Any) -> None:
        if session.interrupted:
            return
        if self._measured != session.global_step:
            self._measure(session)
        if self._stops:
            self._stops = False
            self._since = session.global_step

    def _measure(self, session: Any) -> float:
        """Evaluate the weights of this step, keep them if they are the best, return the value."""
        results = session.evaluate(**self.data, name=self._label)
        known = numbers(results)
        checks.existing(self.metric, "early_stopping_metric", known)
        self._measured = session.global_step
        value = known[self.metric]
        if self._is_better(value, self.best_value):
            self.best_value = value
            self.best_step = self._measured
            if self.keeps:
                self.best_checkpoint = session.save_best(self._label)
        return value

    def _is_better(self, value: float, best: float | None) -> bool:
        """Compare two values; one that is not finite is never better."""
        if best is None or not math.isfinite(value):
            return math.isfinite(value)
        return value < best if self.minimize else value > best

    def _stop(self, run_context: SessionRunContext) -> None:
        best = "a number" if self._mark is None else f"better than {self._mark:.6g}"
        logger.info("Stopping: %s has not been %s since step %d.", self.metric, best, self._since)
        self.early_stopped = self._stops = True
        run_context.request_stop()
        if self.restores:
            run_context.put_back = self.best_checkpoint


@dataclass
class EarlyStopping:
    """Specify when `Sequential.fit` stops: if the validation no longer improves.

    The weights of the best validation are then restored.

    Parameters
    ----------
    patience : int
        How many validations without a better value to wait for.
    metric : str
        Which result is compared: "loss", or the name of a metric such as "accuracy".
    minimize : bool, optional
        Whether a smaller value is better. The default is True for "loss" and False for "accuracy".

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.hooks.EarlyStopping(patience=3, metric="accuracy")
    EarlyStopping(patience=3, metric='accuracy', minimize=False)
    """

    patience: int
    metric: str = "loss"
    minimize: bool | None = None

    def __post_init__(self) -> None:
        self.patience = checks.integer(self.patience, "patience")
        self.metric = checks.text(self.metric, "metric")
        if self.minimize is None and self.metric in ("loss", "accuracy"):
            self.minimize = self.metric == "loss"
        self.minimize = bool(checks.instance(
            self.minimize, (bool, np.bool_), "minimize",
            f"True (smaller is better) or False for the metric {self.metric!r}; only 'loss' and "
            "'accuracy' have a default",
        ))


def _timer(steps: Any, steps_name: str, secs: Any, secs_name: str) -> Timer:
    checks.exclusive(least=1, **{steps_name: steps, secs_name: secs})
    return Timer(
        checks.optional(checks.integer, steps, steps_name),
        checks.optional(checks.number, secs, secs_name, 0.0),
    )


def _text(value: Any) -> str:
    """Return a value as it is shown in a log line."""
    return f"{value:.6g}" if isinstance(value, float | np.floating) else str(value)
