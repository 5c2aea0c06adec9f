"""One training run: steps with hooks around them."""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core.checks import describe, instance
from minicnn.core.context import Context, Workspace
from minicnn.core.op import Tensor
from minicnn.estimator import checkpoints, feeding
from minicnn.estimator.feeding import Batch
from minicnn.estimator.graph import Plan
from minicnn.estimator.processes import Processes
from minicnn.estimator.tracing import Trace
from minicnn.hooks import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues

logger = logging.getLogger("minicnn")

_DROPOUT_STREAM = 2  # tells the seed of the steps' randomness from the other uses of the run's seed


class TrainingSession:
    """The state of a run, and its loop.

    Parameters
    ----------
    trace : Trace
        Of mode TRAIN.
    feed : iterable of batches
    global_step : int
        How many steps are done.
    seed : int
    fuse : bool
    processes : Processes
        Those that make the steps together.
    save, evaluate : callable
        The Estimator's; hooks call them.
    best : BestFiles
        Where `save_best` writes.
    states : dict
        What the hooks of earlier runs have left in the checkpoint, by name.

    Attributes
    ----------
    global_step : int
    rate : float
        The learning rate of the last step.
    graph : Graph
    parameters : dict from str to Parameter
    interrupted : bool
        Whether Ctrl-C has ended the run; known when `end` of the hooks is called.
    best_step : int or None
        The step whose values were put back when the run ended.
    """

    def __init__(
        self,
        trace: Trace,
        feed: Any,
        global_step: int,
        seed: int,
        fuse: bool,
        processes: Processes,
        save: Callable[["TrainingSession"], None],
        evaluate: Callable[..., dict[str, Any]],
        best: checkpoints.BestFiles,
        states: dict[str, dict[str, Any]],
    ) -> None:
        self.graph, self.parameters = trace.graph, trace.graph.parameters
        self.trace, self.feed, self.seed, self.fuse = trace, feed, seed, fuse
        self.global_step, self._processes = global_step, processes
        self.last_loss: float | None = None
        self.rate = trace.ops.train_op.rate()
        self._save, self._evaluate = save, evaluate
        self._best = best
        self._states = states
        self._hooks: dict[str, SessionRunHook] = {}
        self.interrupted = False
        self.best_step: int | None = None
        self._saved: tuple[Any, ...] = ()
        self._workspace = Workspace()
        self._plans: dict[frozenset[Tensor], Plan] = {}

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        self._save(self)
        self._saved = self._moment()

    def is_saved(self) -> bool:
        """Return whether a checkpoint holds this step, with what the hooks know by now."""
        return self._saved == self._moment()

    def _moment(self) -> tuple[Any, ...]:
        states = {name: _state(name, hook) for name, hook in self._hooks.items()}
        kept = self._states | {name: state for name, state in states.items() if state}
        return self.global_step, self.best_step, kept

    def evaluate(self, **data: Any) -> dict[str, Any]:
        """Evaluate the weights of this moment on data, as `Estimator.evaluate` does."""
        return self._evaluate(self.global_step, **data)

    def save_best(self, name: str) -> Path:
        """Write the values of this moment to the file `best_path(name)`; return its path."""
        return self._best.save(name, *self.snapshot())

    def best_path(self, name: str) -> Path:
        """Return where `save_best` writes."""
        return self._best.path(name)

    def snapshot(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Return the arrays and the plain values that a checkpoint of this moment holds."""
        arrays = {f"parameters/{p.name}": p.value for p in self.parameters.values()}
        optimizer = self.trace.ops.train_op.optimizer.state_dict()
        arrays |= {f"optimizer/{name}": array for name, array in optimizer.items()}
        step, best_step, states = self._moment()
        meta = {
            "global_step": step,
            "seed": self.seed,
            "place": self.feed.place(),
            "learning_rate": self.rate,
            "hooks": states,
        }
        return arrays, meta | ({} if best_step is None else {"best_step": best_step})

    def run(self, hooks: Sequence[SessionRunHook]) -> None:
        """Do steps until a hook stops the run, the data ends, or Ctrl-C is pressed."""
        context = SessionRunContext(self)
        self._processes.begin(tuple(self.parameters.values()))
        self._hooks = _by_name(hooks)
        for name, hook in self._hooks.items():
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
            said = f"Interrupted after step {self.global_step}; run the same again to go on."
            logger.info(said)
            raise KeyboardInterrupt(said)

    def _loop(self, context: SessionRunContext, hooks: Sequence[SessionRunHook]) -> None:
        is_checked = not self._processes.is_chief
        for batch in self.feed:
            self._processes.check_rows(feeding.rows_of(batch[0]), self.global_step + 1)
            is_checked = is_checked or feeding.warn_if_large(batch[0])
            wanted = [hook.before_run(context) for hook in hooks]
            results = self._step(batch, [_fetches(args) for args in wanted])
            for hook, result in zip(hooks, results, strict=True):
                hook.after_run(context, SessionRunValues(result))
            if self._processes.any(context.stop_requested):
                return
        self._processes.check_rows(None, self.global_step + 1)
        logger.info("Input iterator is exhausted.")

    def _put_back(self, path: Path | None) -> None:
        """Replace the values of the last step by those of the chief's file, in all processes."""
        found = None if path is None else self._best.read(path)
        found = self._processes.from_chief(found)
        if found is None:
            return
        values, state = found.part("parameters/"), found.part("optimizer/")
        owners = {name.rpartition("/")[0] for name in state}
        known = [p for p in self.parameters.values() if p.name in owners]
        try:
            if _forms(values) != _forms(self.parameters):
                raise ValueError(f"{found.path} is of another model")
            self.trace.ops.train_op.optimizer.load_state_dict(state, known)
        except ValueError as error:
            logger.warning("%s; the values of the last step are kept", error)
            return
        for name, parameter in self.parameters.items():
            parameter.value[...] = values[name]
        self.rate = found.meta["learning_rate"]
        self.best_step = found.meta["global_step"]
        logger.info("The values of step %d are put back.", self.best_step)

    def _step(self, batch: Batch, fetches: list[Any]) -> list[Any]:
        """Do one step; return what was fetched from it."""
        train_op = self.trace.ops.train_op
        tensors = {train_op.loss} | set(_tensors(fetches, self._resolve))
        plan = self._plans.get(frozenset(tensors))
        if plan is None:
            plan = self._plans[frozenset(tensors)] = self.graph.plan(tuple(tensors), self.fuse)
        rng = np.random.default_rng((self.seed, _DROPOUT_STREAM, self.global_step))
        feeds, first, share = self._processes.part(self.trace.feeds(batch))
        ctx = Context(training=True, rng=rng, workspace=self._workspace, first_row=first)
        values = plan.forward(feeds, ctx)
        reached = plan.backward(train_op.loss, ctx, share, self._processes.ready)
        self.last_loss = self._processes.sum(share * float(values[train_op.loss]), reached)
        values[train_op.loss] = self.last_loss
        self.rate = train_op.rate()
        extra = {"global_step": self.global_step + 1, "learning_rate": self.rate}
        results = _map_fetches(fetches, lambda fetch: self._value(fetch, values, extra))
        train_op.apply(reached)
        self.global_step += 1
        return results

    def _resolve(self, fetch: Any) -> Tensor | None:
        """Return the tensor that a fetch means; None for what is no tensor. Unknown names raise."""
        if isinstance(fetch, Tensor):
            if fetch.graph is not self.graph:
                raise ValueError(f"{fetch!r} belongs to another graph; fetch it by its name")
            return fetch
        if not isinstance(fetch, str):
            raise TypeError(f"a Tensor or a name can be fetched, got {describe(fetch)}")
        if fetch == "loss" and fetch not in self.graph.tensors:
            return self.trace.ops.loss
        if fetch in ("global_step", "learning_rate") or fetch in self.parameters:
            return None
        return self.graph.find(fetch)

    def _value(self, fetch: Any, values: dict[Tensor, Any], extra: dict[str, Any]) -> Any:
        tensor = self._resolve(fetch)
        if tensor is not None:
            return np.copy(values[tensor]) if np.ndim(values[tensor]) else values[tensor]
        return extra[fetch] if fetch in extra else self.parameters[fetch].value.copy()


def _by_name(hooks: Sequence[SessionRunHook]) -> dict[str, SessionRunHook]:
    """Return the hooks of a run by the names under which checkpoints keep their states."""
    named: dict[str, SessionRunHook] = {}
    for hook in hooks:
        name = first = str(hook.name or type(hook).__name__)
        number = 1
        while name in named:
            number += 1
            name = f"{first}_{number}"
        named[name] = hook
    return named


def _forms(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: (array.shape, array.dtype) for name, array in arrays.items()}


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


def _fetches(args: Any) -> Any:
    if args is not None and not isinstance(args, SessionRunArgs):
        raise TypeError(f"before_run must return SessionRunArgs(fetches) or None, got {args!r}")
    return args.fetches if args else None


def _tensors(fetches: Any, resolve: Callable[[Any], Tensor | None]) -> Iterator[Tensor]:
    """Yield every tensor that nested fetches mean."""
    found: list[Tensor | None] = []
    _map_fetches(fetches, lambda fetch: found.append(resolve(fetch)))
    yield from (tensor for tensor in found if tensor is not None)


def _map_fetches(fetches: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to each fetch in nested lists and dicts, keeping their form."""
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
    before, main = signal.getsignal(signal.SIGINT), threading.main_thread()
    # Only the main thread receives signals; who ignores Ctrl-C, or has a handler in C, goes on so.
    if threading.current_thread() is not main or before in (signal.SIG_IGN, None):
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
