"""One training run: steps with hooks around them."""

import contextlib
import functools
import json
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core.checks import describe, fault, instance, unique
from minicnn.core.context import Context, Workspace
from minicnn.core.files import JsonLines
from minicnn.core.log import logger, numbers
from minicnn.core.op import Tensor, parts
from minicnn.core.parameter import Parameter
from minicnn.core.weights import PARAMETERS, fill, fitting
from minicnn.estimator import evaluation, feeding
from minicnn.estimator.checkpoints import RunFiles
from minicnn.estimator.config import MetricSpec, RunConfig
from minicnn.estimator.feeding import Batch, Feed
from minicnn.estimator.graph import Plan
from minicnn.estimator.model import Model
from minicnn.estimator.progress import Display
from minicnn.estimator.streams import Stream
from minicnn.estimator.tracing import Trace
from minicnn.hooks import (
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    ValidationMonitor,
)
from minicnn.kernels import threads

_FEW = 500  # validation rows that a first accuracy is of, at most


class TrainingSession:
    """The state of a run, and its loop over steps; hooks see it as `run_context.session`.

    Parameters
    ----------
    model : Model
        Of this run; it counts the steps.
    trace : Trace
        Of mode TRAIN.
    feed : ArrayFeed or FunctionFeed
        At the place where the run continues.
    config : RunConfig
    files : RunFiles
        Where checkpoints are written.
    record : JsonLines
        Where evaluations are noted.

    Attributes
    ----------
    global_step : int
        How many steps are done.
    rate : float
        The learning rate of the last step.
    last_loss : float or None
    graph : Graph
    parameters : dict from str to Parameter
    interrupted : bool
        Whether Ctrl-C has ended the run; known when `end` of the hooks is called.
    best_step : int or None
        The step whose values were restored when the run ended.
    evaluations : dict from str to float
        The results of the evaluations at this step, such as "validation_loss".
    files : RunFiles
        Where checkpoints are written.
    hooks : dict from str to SessionRunHook
        All hooks of the run, by their names in checkpoints.
    """

    def __init__(
        self,
        model: Model,
        trace: Trace,
        feed: Feed,
        config: RunConfig,
        files: RunFiles,
        record: JsonLines,
    ) -> None:
        self.trace = trace
        self.graph = trace.graph
        self.parameters = trace.graph.parameters
        self.rate = trace.ops.train_op.rate()
        self.last_loss: float | None = None
        self.interrupted = False
        self.best_step: int | None = None
        self.evaluations: dict[str, float] = {}
        self._model = model
        self._feed = feed
        self._config = config
        self._processes = config.distribute
        self.files = files
        self._record = record
        # States of the hooks of earlier runs, by name; older checkpoints have none.
        self._states = model.checkpoint.meta.get("hooks", {}) if model.checkpoint else {}
        self.hooks: dict[str, SessionRunHook] = {}
        self._display = Display()
        self._rows = 0  # of the last batch
        self._workspace = Workspace()
        self._plans: dict[frozenset[str], Plan] = {}

    @property
    def global_step(self) -> int:
        return self._model.step

    def save(self) -> None:
        """Write a checkpoint of this moment, unless the weights or the optimizer are not finite."""
        arrays, meta = self.snapshot()
        if said := fault(arrays):
            logger.warning(
                "%s after step %d, so no checkpoint is written; lower the learning rate",
                said, self.global_step,
            )
        else:
            self._model.checkpoint = self.files.save(arrays, meta)

    def is_saved(self) -> bool:
        """Return whether there is a checkpoint of this step, with the present states of hooks."""
        saved = self._model.checkpoint
        return saved is not None and saved.meta == self._meta()

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        input_fn: Callable[[], Any] | None = None,
        batch_size: int | None = None,
        steps: int | None = None,
        metrics: Mapping[str, MetricSpec] | None = None,
        name: str | None = None,
    ) -> dict[str, Any]:
        """Evaluate the weights of this moment on data, as `Estimator.evaluate` does."""
        feed = feeding.feed(x, y, input_fn, batch_size)
        results = evaluation.evaluate(
            self._model, feed, self._config, self._record, steps, metrics, name, self._display
        )
        data = name or "evaluation"
        self.evaluations |= {
            f"{data}_{key}": float(value) for key, value in numbers(results).items()
        }
        for hook in self.hooks.values():
            hook.evaluated(self, data, results)
        return results

    def save_best(self, name: str) -> Path:
        """Write the values of this moment to the file of a monitor; return its path."""
        return self.files.save_best(name, *self.snapshot())

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the arrays and the plain values that a checkpoint of this moment holds."""
        arrays = {f"{PARAMETERS}{p.name}": p.value for p in self.parameters.values()}
        optimizer = self.trace.ops.train_op.optimizer.state_dict()
        arrays |= {f"optimizer/{name}": array for name, array in optimizer.items()}
        return arrays, self._meta()

    def _meta(self) -> dict[str, Any]:
        states = {name: _state(name, hook) for name, hook in self.hooks.items()}
        meta = {
            "global_step": self.global_step,
            "seed": self._model.seed,
            "place": self._feed.place(),
            "learning_rate": self.rate,
            "hooks": self._states | {name: state for name, state in states.items() if state},
        }
        return meta | ({} if self.best_step is None else {"best_step": self.best_step})

    def show(self, display: Display, hooks: Sequence[SessionRunHook]) -> None:
        """Let a display know the kernels of a step, and how to get a first accuracy.

        Nothing that is done for the display alone changes the run.
        """
        self._display = display
        with contextlib.suppress(Exception):  # the first step raises it again
            display.kernels = self._kernels()
        monitors = [hook for hook in hooks if isinstance(hook, ValidationMonitor)]
        if monitors and monitors[0].data["x"] is not None:  # an input_fn may count its calls
            display.look = functools.partial(self._look, monitors[0])

    def _kernels(self) -> set[tuple[Any, Any]]:
        """Return the kernels of a step, found by a step of one row that does not run them."""
        loss = self.trace.ops.train_op.loss
        optimizer = self.trace.ops.train_op.optimizer
        plan = self._plan(frozenset({loss.name}))
        own = [part for step in plan.steps for part in parts(step.op)]
        if any(not type(each).__module__.startswith("minicnn.") for each in (*own, optimizer)):
            return set()  # code of the user, which may count how often it is called
        row = [feeding.each(lambda array: array[:1], part) for part in self._feed.peek()]
        w = np.zeros(1, next(iter(self.parameters.values())).dtype)
        states = [(p, p.value.copy()) for p in self.parameters.values() if not p.trainable]
        ctx = Context(training=True, rng=np.random.default_rng(0))
        try:
            with threads.recorded() as calls, np.errstate(all="ignore"):
                plan.forward(self.trace.feeds((row[0], row[1])), ctx)
                plan.backward(loss, ctx)
                optimizer.update(w, w.copy(), [w.copy() for slot in optimizer.slots], 0.0)
        finally:
            for parameter, value in states:
                parameter.value[...] = value
        return calls

    def _look(self, monitor: ValidationMonitor, speed: float) -> None:
        """Evaluate a few hundred validation rows, or as many as take about a second."""
        data = monitor.data
        with contextlib.suppress(Exception):  # an evaluation of all rows raises it again
            feed: Any = feeding.feed(data["x"], data["y"], None, data["batch_size"])
            few = min(_FEW, feed.rows, int(speed * self._rows) + 1)
            feed = feed.only(np.linspace(0, feed.rows - 1, few).astype(int))
            evaluation.evaluate(
                self._model, feed, self._config, None, metrics=data["metrics"], name=monitor.name,
                display=self._display,
            )

    def run(self, hooks: Sequence[SessionRunHook]) -> None:
        """Do steps until a hook stops the run, the data ends, or Ctrl-C is pressed.

        Parameters
        ----------
        hooks : sequence of SessionRunHook

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, once the step is done and the hooks have ended.
        """
        context = SessionRunContext(self)
        self._processes.begin(tuple(self.parameters.values()))
        self.hooks = _by_name(hooks)
        for name, hook in self.hooks.items():
            hook.begin()
            hook.resume(context, name, self._states.get(name, {}))
        with _interrupt_stops(context) as interrupted:
            if not self._processes.any(context.stop_requested):
                self._loop(context, hooks)
            self.interrupted = self._processes.any(interrupted.is_set())
            if not self.interrupted:
                self._put_back(context.put_back)
            for hook in hooks:
                hook.end(self)
        if self._processes.any(interrupted.is_set()):
            said = f"Interrupted after step {self.global_step}; run the same again to continue."
            logger.info(said)
            raise KeyboardInterrupt(said)

    def _loop(self, context: SessionRunContext, hooks: Sequence[SessionRunHook]) -> None:
        for batch in self._feed:
            self._rows = feeding.rows_of(batch[0])
            self._processes.check_rows(self._rows, self.global_step + 1)
            if self.last_loss is None and self._processes.is_chief:  # the first batch of the run
                feeding.warn_if_large(batch[0])
            wanted = [hook.before_run(context) for hook in hooks]
            for args in wanted:
                instance(args, SessionRunArgs | None, "before_run", "SessionRunArgs or None")
            results = self._step(batch, [args and args.fetches for args in wanted])
            self._display(self.last_loss)
            for hook, result in zip(hooks, results, strict=True):
                hook.after_run(context, SessionRunValues(result))
            if self._processes.any(context.stop_requested):
                return
        self._processes.check_rows(None, self.global_step + 1)
        logger.info("Input iterator is exhausted.")

    def _put_back(self, path: Path | None) -> None:
        """Replace the values of the last step by those of the chief's file, in all processes."""
        found = None if path is None else self.files.read_best(path)
        found = self._processes.from_chief(found)
        if found is None:
            return
        values = found.part(PARAMETERS)
        try:
            fitting(self.parameters, values, found.path, list, "")
            self.trace.load_optimizer(found.part("optimizer/"))
        except ValueError as error:
            logger.warning("%s; the values of the last step are kept", error)
            return
        fill(self.parameters, values)
        self.rate = found.meta["learning_rate"]
        self.best_step = found.meta["global_step"]
        logger.info("The values of step %d are restored.", self.best_step)

    def _step(self, batch: Batch, fetches: list[Any]) -> list[Any]:
        """Do one step; return what was fetched from it."""
        train_op = self.trace.ops.train_op
        tensors = {train_op.loss}
        found = _map_fetches(fetches, lambda fetch: self._resolve(fetch, tensors))
        # The same plan in all processes, so that their layers send messages in the same order.
        names = self._processes.from_chief(frozenset(tensor.name for tensor in tensors))
        plan = self._plan(names)
        rng = Stream.DROPOUT.generator(self._model.seed, self.global_step)
        feeds, first, share = self._processes.part(self.trace.feeds(batch))
        ctx = Context(
            training=True, rng=rng, workspace=self._workspace, first_row=first,
            total=self._processes.total, counted=share > 0,
        )
        values = plan.forward(feeds, ctx)

        def ready(parameter: Parameter) -> None:
            parameter.add_penalty_gradient(share)  # the shares of all processes sum to 1
            self._processes.ready(parameter)

        reached = plan.backward(train_op.loss, ctx, share, ready)
        self.last_loss = self._processes.sum(share * float(values[train_op.loss]), reached)
        values[train_op.loss] = self.last_loss
        self.rate = train_op.rate()
        extra = {"global_step": self.global_step + 1, "learning_rate": self.rate}

        def value_of(fetch: Any) -> Any:
            if isinstance(fetch, Parameter):
                return fetch.value.copy()
            value = values[fetch] if isinstance(fetch, Tensor) else extra[fetch]
            return np.copy(value) if np.ndim(value) else value

        results = _map_fetches(found, value_of)
        self.evaluations = {}
        train_op.apply(reached)
        self._model.step += 1
        return results

    def _plan(self, names: frozenset[str]) -> Plan:
        if names not in self._plans:
            self._plans[names] = self.graph.plan(map(self.graph.find, names), self._config.fuse)
        return self._plans[names]

    def _resolve(self, fetch: Any, tensors: set[Tensor]) -> Any:
        """Return what a fetch names: a parameter, a tensor, which is added to `tensors`, or text.

        Unknown names raise.
        """
        if not isinstance(fetch, str | Tensor):
            raise TypeError(f"a fetch must be a Tensor or a name, got {describe(fetch)}")
        if fetch in ("global_step", "learning_rate"):
            return fetch
        if fetch in self.parameters:
            return self.parameters[fetch]
        if fetch == "loss" and fetch not in self.graph.tensors:
            fetch = self.trace.ops.loss
        tensor = self.graph.find(fetch) if isinstance(fetch, str) else fetch
        if tensor.graph is not self.graph:
            raise ValueError(f"{fetch!r} belongs to another graph; fetch it by its name")
        tensors.add(tensor)
        return tensor


def _by_name(hooks: Sequence[SessionRunHook]) -> dict[str, SessionRunHook]:
    """Return the hooks of a run by their names in checkpoints; equal names get a number."""
    named: dict[str, SessionRunHook] = {}
    for hook in hooks:
        name = str(hook.name or type(hook).__name__)
        named[unique(name, named, first=2)] = hook
    return named


def _state(name: str, hook: SessionRunHook) -> dict[str, Any]:
    """Return a copy of the state of a hook, which must be a dict that JSON can hold."""
    state = hook.state_dict()
    try:
        return json.loads(json.dumps(instance(state, dict, "state")))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`state_dict` of the hook {name!r} must return a dict of plain values, got "
            f"{describe(state)} ({error}); convert NumPy's numbers and arrays: int(n), a.tolist()"
        ) from error


def _map_fetches(fetches: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each fetch in nested lists and dicts, keeping their structure."""
    if fetches is None:
        return None
    if isinstance(fetches, dict):
        return {key: _map_fetches(fetch, function) for key, fetch in fetches.items()}
    if isinstance(fetches, list | tuple):
        return [_map_fetches(fetch, function) for fetch in fetches]
    return function(fetches)


@contextlib.contextmanager
def _interrupt_stops(context: SessionRunContext) -> Iterator[threading.Event]:
    """Let the first Ctrl-C end the run after the step; a second one interrupts at once."""
    interrupted = threading.Event()
    before = signal.getsignal(signal.SIGINT)
    is_main = threading.current_thread() is threading.main_thread()
    # Only the main thread receives signals. An ignored Ctrl-C, or a handler in C, stays as it is.
    if not is_main or before in (signal.SIG_IGN, None):
        yield interrupted
        return

    def stop(signum: int, frame: Any) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        context.request_stop()

    signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
