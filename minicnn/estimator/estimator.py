"""The Estimator: trains, evaluates and predicts with a model_fn, and keeps it in a folder."""

import copy
import json
import logging
import math
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe
from minicnn.core.context import Context
from minicnn.core.files import open_regular
from minicnn.estimator import checkpoints, feeding
from minicnn.estimator.checkpoints import Checkpoint
from minicnn.estimator.config import MetricSpec, ModeKeys, RunConfig, checked_metrics
from minicnn.estimator.model import Model, Models
from minicnn.estimator.progress import ProgressHook, progress_bar
from minicnn.estimator.session import TrainingSession
from minicnn.estimator.tracing import Trace
from minicnn.hooks import (
    CheckpointSaverHook,
    LoggingTensorHook,
    NanLossError,
    NanTensorHook,
    SessionRunHook,
    StepCounterHook,
    StopAtStepHook,
    step_logger,
)

logger = logging.getLogger("minicnn")


class Estimator:
    """Trains, evaluates and predicts with the model that a function describes.

    Parameters
    ----------
    model_fn : callable
        Called with those of (features, labels, mode, params, config) that it names, on symbolic
        Tensors, once for each mode of a run and of a checkpoint. Returns `ModelFnOps`.
    model_dir : str or Path, optional
        Where checkpoints are kept; training goes on from the latest one there. None makes a
        temporary folder, which is removed with the Estimator, or at the end of the program. It is
        kept if the Estimator is copied or pickled, or if the attribute `model_dir` is read.
    params : dict, optional
        Handed to model_fn.
    config : RunConfig, optional

    Attributes
    ----------
    model_dir : Path

    Raises
    ------
    CheckpointError
        Where the checkpoint in `model_dir` is of another model; the error names the parameter.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> def model_fn(features, labels, mode):
    ...     logits = mc.layers.dense(features, units=2)
    ...     predictions = {"classes": mc.argmax(logits, axis=1)}
    ...     loss = train_op = None
    ...     if mode != mc.ModeKeys.INFER:
    ...         loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
    ...     if mode == mc.ModeKeys.TRAIN:
    ...         train_op = mc.optimize_loss(loss, learning_rate=0.5, optimizer="SGD")
    ...     return mc.ModelFnOps(mode, predictions, loss, train_op)
    >>> x = np.array([[0.0, 1.0], [1.0, 0.0]] * 50, np.float32)
    >>> y = np.array([0, 1] * 50)
    >>> estimator = mc.Estimator(model_fn, config=mc.RunConfig(seed=0)).fit(x, y, steps=50)
    >>> accuracy = mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")
    >>> estimator.evaluate(x, y, metrics={"accuracy": accuracy})["accuracy"]
    1.0
    """

    def __init__(
        self,
        model_fn: Callable[..., Any],
        model_dir: str | Path | None = None,
        params: dict[str, Any] | None = None,
        config: RunConfig | None = None,
    ) -> None:
        checks.function(model_fn, "model_fn")
        self.config = RunConfig() if config is None else config
        checks.instance(self.config, RunConfig, "config")
        self._removal: Any = None
        if model_dir is None:
            model_dir = tempfile.mkdtemp(prefix="minicnn-")
            self._removal = weakref.finalize(self, _remove, model_dir, os.getpid())
            logger.warning(
                "No model_dir is given; using the temporary folder %s, which is removed with the "
                "Estimator. To keep it, give a model_dir, or read the attribute model_dir",
                model_dir,
            )
        # Absolute, for the program may go to another folder.
        folder = checks.path(model_dir, "model_dir").absolute()
        self._model_fn, self._params = model_fn, params
        self._models = Models(folder, model_fn, {"params": params, "config": self.config})

    @property
    def model_dir(self) -> Path:
        if self._removal is not None:
            self._removal.detach()
        return self._models.folder

    def __reduce__(self) -> tuple[Any, ...]:  # a copy begins with the latest checkpoint
        return type(self), (self._model_fn, self.model_dir, self._params, self.config)

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        monitors: Sequence[SessionRunHook] | None = None,
        max_steps: int | None = None,
    ) -> "Estimator":
        """Train, from the latest checkpoint on where there is one.

        Parameters
        ----------
        x, y : ndarray or dict of str to ndarray
            Rows and their labels; shuffled anew every epoch. float64 is converted to float32.
        input_fn : callable, optional
            In their place: returns an iterable of batches (features, labels). On resuming it is
            called anew and as many batches are skipped as were taken; that is exact where it
            yields the same batches every time.
        steps : int, optional
            How many steps to do from here.
        batch_size : int, optional
            Rows a step; 100 where nothing is said. The last batch of an epoch holds what is left.
        monitors : sequence of SessionRunHook, optional
        max_steps : int, optional
            The global step to end at. Not together with `steps`. Without either, only `monitors`
            or the end of the batches of `input_fn` end the run; arrays without monitors need one.

        Returns
        -------
        Estimator
            Itself.

        Raises
        ------
        ValueError, TypeError
            For arguments, shapes or labels that cannot be; before the first step.
        NanLossError
            Where the loss is not finite; the last checkpoint is from before.
        CheckpointError
            Where another process trains in `model_dir`, or it cannot be written, or no checkpoint
            in it is whole.
        KeyboardInterrupt
            After Ctrl-C, once the step is done and a checkpoint is written.
        """
        with self.config.distribute.run():
            hooks = self._hooks(steps, max_steps, monitors)
            chief = self.config.distribute.is_chief
            lock = checkpoints.locked(self._models.folder) if chief else nullcontext(lambda: True)
            with lock as is_held:
                data = partial(feeding.feed, x, y, input_fn, batch_size)
                return self._fit(hooks, data, bool(monitors), is_held)

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        metrics: Mapping[str, MetricSpec] | None = None,
        name: str | None = None,
        checkpoint_path: str | Path | None = None,
    ) -> dict[str, Any]:
        """Return the loss and the metrics on data; every row weighs the same.

        The weights are those of the newest checkpoint in `model_dir` at the moment of the call,
        also while another process, another Estimator or another thread trains there. If the folder
        is gone, those in memory are used, with a warning. (Inside a run, `ValidationMonitor` and
        ``session.evaluate`` measure the weights of that step.)

        The results are also added to ``evaluations.jsonl`` in `model_dir`, as a line of JSON with
        `name` and the number of rows.

        Parameters
        ----------
        x, y, input_fn, batch_size
            As for `fit`; not shuffled, one pass.
        steps : int, optional
            At most so many batches.
        metrics : dict from str to MetricSpec, optional
        name : str, optional
            What the data is, such as "test": `plots.learning_curve` draws a line for each name. The
            default is "evaluation".
        checkpoint_path : str or Path, optional
            The file of another checkpoint, such as ``"my_model/model.ckpt-100.npz"``.

        Returns
        -------
        dict
            ``"loss"``, ``"global_step"`` and each metric: Python numbers (arrays where a metric
            is one).

        Raises
        ------
        CheckpointError
            If nothing has been trained yet, or the checkpoint is of another model; the error names
            the folder.
        """
        model = self._model(checkpoint_path)
        logger.info(
            "Eval steps [0,%s) for training step %d.", "inf" if steps is None else steps, model.step
        )
        return self._evaluate_now(
            model, model.step, x, y, input_fn, batch_size, metrics, steps, name
        )

    def predict(
        self,
        x: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        as_iterable: bool = True,
        checkpoint_path: str | Path | None = None,
    ) -> Any:
        """Return the predictions for every row.

        The weights are those of the newest checkpoint in `model_dir` at the moment of the call, as
        for `evaluate`; an iterator keeps them to its end.

        Parameters
        ----------
        x : ndarray or dict of str to ndarray
        input_fn : callable, optional
            In its place: returns an iterable of feature batches, or of (features, labels).
        batch_size : int, optional
        as_iterable : bool
            True gives an iterator of one dict for each row (of one value, where model_fn's
            predictions are one Tensor); False a dict of whole arrays.
        checkpoint_path : str or Path, optional
            The file of another checkpoint.

        Returns
        -------
        iterator, or dict of str to ndarray

        Raises
        ------
        CheckpointError
            If nothing has been trained yet, or the checkpoint is of another model; the error names
            the folder.
        """
        model = self._model(checkpoint_path)
        feed = feeding.feed(x, None, input_fn, batch_size)
        trace = model.trace(ModeKeys.INFER, (feed.peek()[0], None))
        batches = _predictions(trace, feed, self.config.fuse)
        if checks.boolean(as_iterable, "as_iterable"):
            return _rows(batches, trace.ops.single)
        whole = feeding.concatenate(list(batches))
        return whole["predictions"] if trace.ops.single else whole

    def get_variable_names(self) -> list[str]:
        """Return the names of the parameters in the newest checkpoint, sorted."""
        return sorted(self._models.latest().weights())

    def get_variable_value(self, name: str) -> np.ndarray:
        """Return a copy of a parameter in the newest checkpoint.

        Parameters
        ----------
        name : str
            Such as ``"conv2d/kernel"``.

        Raises
        ------
        ValueError
            If there is none of this name; the error lists the names.
        """
        weights = self._models.latest().weights()
        if name not in list(weights):
            raise ValueError(
                f"no variable has the `name` {name!r}; there are {', '.join(sorted(weights))}"
            )
        return weights[name].copy()

    def _model(self, checkpoint_path: Any) -> Model:
        """Return the model of a file, or of the checkpoint that counts."""
        if checkpoint_path is None:
            return self._models.latest()
        return self._models.chosen(checks.path(checkpoint_path, "checkpoint_path"))

    def _fit(
        self,
        hooks: list[SessionRunHook],
        data: Callable[[int], Any],
        has_monitors: bool,
        is_held: Callable[[], bool],
    ) -> "Estimator":
        """Train with these hooks on the feed that `data` makes of a seed."""
        processes = self.config.distribute
        start = self._start() if processes.is_chief else None
        found, seed = processes.from_chief(start)
        meta: dict[str, Any] = found.meta if found else {"global_step": 0, "place": {}}
        step, states = meta["global_step"], meta.get("hooks", {})  # older files have none
        ends = [hook.end_from(step) for hook in hooks if isinstance(hook, StopAtStepHook)]
        end = processes.from_chief(min(ends, default=math.inf))
        feed = data(seed)
        if end == math.inf:
            _check_end(feed, has_monitors)
        model = self._models.run(found, seed)
        trace = model.trace(ModeKeys.TRAIN, feed.peek())
        if found is not None:
            _load_optimizer(trace, found.part("optimizer/"), found.meta)
        del found, start  # training needs the memory
        if step >= end:
            logger.warning(
                "Already at step %d of %d; nothing to do. To train on, let the run end at a later "
                "step (`max_steps`, or `steps` from here); to begin again, use another folder than "
                "%s", step, end, self._models.folder,
            )
            return self
        if model.checkpoint is not None and processes.is_chief:
            _compare(model.checkpoint, self.config.seed, feed)
        if isinstance(feed, feeding.ArrayFeed):
            trace.check_labels(feed.y)
        feed.seek(meta["place"])
        session = TrainingSession(
            trace, feed, step, seed, self.config.fuse, processes,
            partial(self._save, model, is_held), partial(self._evaluate_now, model),
            checkpoints.BestFiles(self._models.folder, is_held), states,
        )
        with progress_bar(self.config.progress, "fit", end, step) as advance:
            session.run([ProgressHook(advance), *hooks])
        if model.step == session.global_step and session.is_saved():
            self._models.keep(model)
        elif model.step != session.global_step:
            strict = [h for h in hooks if isinstance(h, NanTensorHook) and h.fail_on_nan_loss]
            if strict and (said := _ruined(session)):
                raise NanLossError(f"{said}; lower the learning rate. No checkpoint holds it")
        if session.last_loss is not None:
            logger.info("Loss for final step: %.6g.", session.last_loss)
        return self

    def _start(self) -> tuple[Checkpoint | None, int]:
        """Return the checkpoint to go on from, and the seed of the run."""
        found, seed = self._models.read(), self.config.seed
        if seed is None and found is not None:
            seed = found.meta["seed"]
        if seed is None:
            seed = secrets.randbits(32)
            logger.info("The seed of this run is %d.", seed)
        return found, seed

    def _hooks(
        self, steps: int | None, max_steps: int | None, monitors: Sequence[SessionRunHook] | None
    ) -> list[SessionRunHook]:
        """Return the hooks of a run, in the order in which they act after a step."""
        if steps is not None and max_steps is not None:
            raise ValueError(
                "give `steps` (from here) or `max_steps` (in total), not both, got "
                f"{describe(steps)} and {describe(max_steps)}"
            )
        own = list(checks.sequence(monitors or (), "monitors", "hooks, [hook]"))
        for hook in own:
            if not isinstance(hook, SessionRunHook):
                raise TypeError(
                    f"`monitors` must hold SessionRunHook objects, got {describe(hook)}"
                )
        config, every = self.config, self.config.log_step_count_steps
        losses = LoggingTensorHook({"loss": "loss", "step": "global_step"}, every_n_iter=every)
        losses.logger = step_logger
        hooks: list[SessionRunHook] = [
            *([] if any(isinstance(hook, NanTensorHook) for hook in own) else [NanTensorHook()]),
            StepCounterHook(every),
            losses,
            *own,
        ]
        if not any(isinstance(hook, CheckpointSaverHook) for hook in own):
            seconds = config.save_checkpoints_secs
            hooks.append(CheckpointSaverHook(seconds, config.save_checkpoints_steps))
        if steps is not None:
            hooks.append(StopAtStepHook(num_steps=checks.integer(steps, "steps")))
        if max_steps is not None:
            hooks.append(StopAtStepHook(last_step=checks.integer(max_steps, "max_steps")))
        hooks.sort(key=lambda hook: isinstance(hook, CheckpointSaverHook))  # after what they note
        if not config.distribute.is_chief:  # the others note the step and the place, no more
            return [hook for hook in hooks if isinstance(hook, CheckpointSaverHook)]
        return hooks

    def _save(
        self, model: Model, is_held: Callable[[], bool], session: TrainingSession
    ) -> None:
        """Write a checkpoint of a session, whose weights `model` holds."""
        if said := _ruined(session):
            logger.warning("%s, so no checkpoint is written; lower the learning rate", said)
            return
        arrays, meta = session.snapshot()
        step = meta["global_step"]
        path = self._models.folder / f"model.ckpt-{step}.npz"
        if self.config.distribute.is_chief:
            logger.info("Saving checkpoints for %d into %s", step, self._models.folder)
            keep = self.config.keep_checkpoint_max
            path = checkpoints.save(self._models.folder, step, arrays, meta, keep, is_held)
        model.saved_as(Checkpoint(path, {}, meta, checkpoints.identity(path, follow=False)))

    def _evaluate_now(
        self,
        model: Model,
        global_step: int,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        metrics: Mapping[str, MetricSpec] | None = None,
        steps: int | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate the weights of a model."""
        name = "evaluation" if name is None else checks.text(name, "name")
        most = math.inf if steps is None else checks.integer(steps, "steps")
        metrics = checked_metrics(metrics)
        feed = feeding.feed(x, y, input_fn, batch_size)
        trace = model.trace(ModeKeys.EVAL, feed.peek())
        end = most
        if isinstance(feed, feeding.ArrayFeed):
            trace.check_labels(feed.y)
            end = min(most, math.ceil(feed.rows / feed.batch_size))
        loss, predictions = trace.ops.loss, trace.ops.predictions
        plan = trace.graph.plan(
            [loss, *predictions.values()] if metrics else [loss], self.config.fuse
        )
        weighted = any(spec.weight_key is not None for spec in metrics.values())
        total, rows, parts = 0.0, 0, []
        with progress_bar(self.config.progress, "evaluate", end) as advance:
            for batch in feed:
                values = plan.forward(trace.feeds(batch), Context(save=False))
                count = feeding.rows_of(batch[0])
                total, rows = total + float(values[loss]) * count, rows + count
                if metrics:
                    kept = {name: values[tensor] for name, tensor in predictions.items()}
                    # A copy, for an input_fn may use its arrays again.
                    parts.append(copy.deepcopy((kept, batch[1], batch[0] if weighted else None)))
                advance(total / rows)
                most -= 1
                if most <= 0:
                    break
            else:
                logger.info("Input iterator is exhausted.")
        results: dict[str, Any] = {}
        if metrics:
            whole, truth, given = map(feeding.concatenate, zip(*parts, strict=True))
            results = {k: spec.compute(whole, truth, given, k) for k, spec in metrics.items()}
        results |= {"loss": total / rows, "global_step": global_step}
        self._report(results, name, rows)
        return results

    def _report(self, results: dict[str, Any], name: str, rows: int) -> None:
        """Log an evaluation and add it to evaluations.jsonl in the model's folder."""
        step = results["global_step"]
        numbers = {k: v for k, v in results.items() if k != "global_step" and np.ndim(v) == 0}
        text = ", ".join(f"{name} = {value:.6g}" for name, value in sorted(numbers.items()))
        logger.info("Saving evaluation summary for step %d: %s", step, text)
        path = self._models.folder / "evaluations.jsonl"
        safe = {k: v if math.isfinite(v) else None for k, v in numbers.items()}  # JSON has no NaN
        line = {"global_step": step, "name": name, "rows": rows} | safe
        try:
            with open_regular(path, "a+b") as file:
                file.seek(max(0, file.tell() - 1))
                half = file.read(1) not in (b"", b"\n")  # a line that a full disk has cut off
                file.write(b"\n" * half + json.dumps(line).encode() + b"\n")
        except OSError as error:
            logger.warning("%s cannot be written (%s)", path, error)


def _remove(folder: str, process: int) -> None:
    """Remove a temporary folder, in the process that has made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _check_end(feed: Any, has_monitors: bool) -> None:
    """Raise where nothing ends a run for which no last step is given; else say what does."""
    if isinstance(feed, feeding.FunctionFeed):
        logger.info("The run ends with the batches of `input_fn`, or when a monitor ends it.")
    elif has_monitors:
        logger.info("Only a monitor ends this run: neither `steps` nor `max_steps` is given.")
    else:
        raise ValueError(
            "`fit` on arrays repeats them until a last step: give `steps` or `max_steps`, such as "
            f"steps={math.ceil(feed.rows / feed.batch_size)}, which is one pass over {feed.rows} "
            f"rows in batches of {feed.batch_size}; or `monitors` that end the run"
        )


def _compare(checkpoint: Checkpoint, seed: int | None, feed: Any) -> None:
    """Warn where a run goes on from a checkpoint with another seed, or on other data."""
    before, now, differences = checkpoint.meta["place"], feed.place(), []
    if seed not in (None, checkpoint.meta["seed"]):
        differences.append(f"the seed {checkpoint.meta['seed']}, now {seed}")
    if before.keys() != now.keys():
        kinds = ("an `input_fn`", "arrays") if "batches" in before else ("arrays", "an `input_fn`")
        differences.append("{}, now {}".format(*kinds))
    elif before.get("rows") != now.get("rows"):
        differences.append(f"{before['rows']} rows, now {now['rows']}")
    if differences:
        logger.warning(
            "Training goes on from %s, which was written with %s; so it does not go on as an "
            "uninterrupted run would. To train from the beginning, use another model_dir",
            checkpoint.path, "; and with ".join(differences),
        )


def _ruined(session: TrainingSession) -> str:
    """Return what is wrong with the weights; nothing where all are finite."""
    for name, parameter in session.parameters.items():
        if not np.isfinite(parameter.value).all():
            return f"{name} is not finite any more after step {session.global_step}"
    return checks.optimizer_fault(session.trace.ops.train_op.optimizer.state_dict())


def _predictions(trace: Trace, feed: Any, fuse: bool) -> Iterator[dict[str, np.ndarray]]:
    """Yield the predictions of each batch."""
    predictions = trace.ops.predictions
    plan = trace.graph.plan(predictions.values(), fuse)
    for features, _ in feed:
        values = plan.forward(trace.feeds((features, None)), Context(save=False))
        yield {name: values[tensor] for name, tensor in predictions.items()}


def _rows(batches: Iterator[dict[str, np.ndarray]], single: bool) -> Iterator[Any]:
    """Yield a dict for each row of each batch."""
    for batch in batches:
        for row in zip(*batch.values(), strict=True):
            yield row[0] if single else dict(zip(batch, row, strict=True))


def _load_optimizer(trace: Trace, state: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Continue the optimizer's state; the rate of the program wins over that of the checkpoint."""
    train_op = trace.ops.train_op
    if train_op is None:
        return
    steps = trace.graph.plan([train_op.loss], fuse=False).steps
    optimizer = train_op.optimizer
    trained = train_op.trained([p for step in steps for p in step.op.parameters])
    owners = {name.rpartition("/")[0] for name in state}
    # What no gradient has reached, behind an argmax for one, has none: it begins with zeros.
    known = [parameter for parameter in trained if parameter.name in owners]
    try:
        optimizer.load_state_dict(state, known or trained)
    except (TypeError, ValueError) as error:
        logger.warning("The optimizer begins anew: %s", error)
    before, rate = meta.get("learning_rate"), optimizer.learning_rate
    now = float(rate(max(0, optimizer.iterations - 1)) if callable(rate) else rate)
    if before is not None and before != now:
        logger.info("The learning rate changes from %.6g in the checkpoint to %.6g.", before, now)
