"""Training: from the newest checkpoint in a folder to the end of a run."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from minicnn.core import checks
from minicnn.core.log import logger
from minicnn.core.parameter import Parameter
from minicnn.estimator import checkpoints
from minicnn.estimator.config import ModeKeys, RunConfig
from minicnn.estimator.feeding import ArrayFeed, Feed
from minicnn.estimator.history import History, HistoryHook
from minicnn.estimator.model import Model, Models
from minicnn.estimator.progress import displayed
from minicnn.estimator.session import TrainingSession
from minicnn.hooks import (
    CheckpointSaverHook,
    LoggingTensorHook,
    NanLossError,
    NanTensorHook,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    StepCounterHook,
    StopAtStepHook,
    step_logger,
)


class _FunctionHook(SessionRunHook):
    """Call a function of (step, values) after each step."""

    def __init__(self, function: Callable[[int, dict[str, float]], Any]) -> None:
        self.function = function

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        session = run_context.session
        values = {"loss": session.last_loss, "learning_rate": session.rate, **session.evaluations}
        self.function(session.global_step, values)


def as_hooks(hooks: Any, name: str) -> list[SessionRunHook]:
    """Return the hooks of an argument; plain functions of (step, values) become hooks."""
    what = "SessionRunHook objects, or functions of (step, values)"
    made = []
    for hook in checks.sequence(hooks or (), name, "hooks, [hook]"):
        if callable(hook) and not isinstance(hook, SessionRunHook | type):
            hook = _FunctionHook(checks.function(hook, name, what, 2))
        made.append(checks.instance(hook, SessionRunHook, name, what))
    return made


def run_hooks(
    config: RunConfig,
    feed: Feed,
    steps: int | None,
    max_steps: int | None,
    monitors: Sequence[SessionRunHook] | None,
    history: History,
) -> list[SessionRunHook]:
    """Return the hooks of a run, in the order in which they act after a step."""
    checks.exclusive(steps=steps, max_steps=max_steps)
    own = as_hooks(monitors, "monitors")
    every = config.log_step_count_steps
    losses = LoggingTensorHook({"loss": "loss", "step": "global_step"}, every_n_iter=every)
    losses.logger = step_logger
    rows = HistoryHook(history, int(min(every, feed.batches)))
    hooks: list[SessionRunHook] = [StepCounterHook(every), losses, *own, rows]
    if not any(isinstance(hook, NanTensorHook) for hook in own):
        hooks.insert(0, NanTensorHook())
    if not any(isinstance(hook, CheckpointSaverHook) for hook in own):
        hooks.append(
            CheckpointSaverHook(config.save_checkpoints_secs, config.save_checkpoints_steps)
        )
    if steps is not None or max_steps is not None:
        hooks.append(StopAtStepHook(
            checks.optional(checks.integer, steps, "steps"),
            checks.optional(checks.integer, max_steps, "max_steps"),
        ))
    if not config.distribute.is_chief:  # the other processes only note the step and the place
        return [hook for hook in hooks if isinstance(hook, CheckpointSaverHook)]
    if not any(isinstance(hook, StopAtStepHook) for hook in hooks):
        if isinstance(feed, ArrayFeed) and not own:
            raise ValueError(
                "`fit` on arrays repeats them until a last step: give `steps` or `max_steps`, such "
                f"as steps={feed.batches}, which is one pass over {feed.rows} rows in batches of "
                f"{feed.batch_size}; or `monitors` that end the run"
            )
        logger.info("Only a monitor, or the end of the batches of `input_fn`, ends this run.")
    # A checkpoint saves what all other hooks note at its step.
    return sorted(hooks, key=lambda hook: isinstance(hook, CheckpointSaverHook))


def train(
    models: Models,
    feed: Feed,
    config: RunConfig,
    hooks: Sequence[SessionRunHook],
    start: Callable[[dict[str, Parameter]], None] | None = None,
) -> None:
    """Do a run: continue from the newest checkpoint until a hook, or the end of the feed, ends it.

    Parameters
    ----------
    models : Models
        Where a run begins, and what it leaves.
    feed : ArrayFeed or FunctionFeed
    config : RunConfig
    hooks : sequence of SessionRunHook
        What `run_hooks` returns.
    start : callable, optional
        Sets the parameters if there is no checkpoint yet.
    """
    processes = config.distribute
    with models.files(config) as files, displayed(config.progress) as display:
        model = models.run(config.seed, processes)
        ends = [hook.end_from(model.step) for hook in hooks if isinstance(hook, StopAtStepHook)]
        end = processes.from_chief(min(ends, default=math.inf))
        trace = model.trace(ModeKeys.TRAIN, feed.peek())
        if start and model.checkpoint is None and processes.is_chief:  # it sends its parameters
            start(trace.graph.parameters)
        if model.step >= end:
            other = f"another folder than {models.folder}" if models.folder else "a new model"
            logger.warning(
                "Already at step %d of %d; nothing to do. To train further, let the run end at a "
                "later step (`max_steps`, or `steps` from here); to start again, use %s",
                model.step, end, other,
            )
            return
        feed.shuffle(model.seed)
        if model.checkpoint is not None:
            if processes.is_chief and models.folder:
                _compare(model, model.checkpoint, feed)
            feed.seek(model.checkpoint.meta["place"], display.part)
        trace.check_labels(feed.y)
        session = TrainingSession(model, trace, feed, config, files, models.record)
        display.begin(model.step, end)
        if display.screen is not None:
            session.show(display, hooks)
        try:
            session.run(hooks)
        finally:
            models.leave(session)
        is_strict = any(isinstance(h, NanTensorHook) and h.fail_on_nan_loss for h in hooks)
        if model.checkpoint is not None and model.checkpoint.meta["global_step"] == model.step:
            models.keep(model)
        elif is_strict and (said := checks.fault(session.snapshot()[0])):
            raise NanLossError(
                f"{said} after step {model.step}; lower the learning rate. No checkpoint holds it"
            )
        if session.last_loss is not None:
            logger.info("Loss for final step: %.6g.", session.last_loss)


def _compare(model: Model, checkpoint: checkpoints.Checkpoint, feed: Feed) -> None:
    """Warn if a run continues from a checkpoint with another seed or other data."""
    seeds = checkpoint.meta["seed"], model.seed
    places = checkpoint.meta["place"], feed.place()
    before, now = (
        f"the seed {seed} and " + (f"{place['rows']} rows" if "rows" in place else "an `input_fn`")
        for seed, place in zip(seeds, places, strict=True)
    )
    if before != now:
        logger.warning(
            "Training continues from %s, which was written with %s, now with %s; so it does not go "
            "on as an uninterrupted run would. To train from the start, use another model_dir",
            checkpoint.path, before, now,
        )
