"""One training run: steps with hooks around them."""

import contextlib
import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minicnn.checks import describe
from minicnn.context import Context, Workspace
from minicnn.estimator.feeding import Batch
from minicnn.estimator.tracing import Trace
from minicnn.graph import Plan
from minicnn.hooks import SessionRunArgs, SessionRunContext, SessionRunHook, SessionRunValues
from minicnn.tensor import Tensor
from minicnn.train_op import Processes

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

    Attributes
    ----------
    global_step : int
    rate : float
        The learning rate of the last step.
    graph : Graph
    parameters : dict from str to Parameter
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
    ) -> None:
        self.graph, self.parameters = trace.graph, trace.graph.parameters
        self.trace, self.feed, self.seed, self.fuse = trace, feed, seed, fuse
        self.global_step, self._processes = global_step, processes
        self.last_loss: float | None = None
        self.rate = trace.ops.train_op.rate()
        self._save, self._evaluate = save, evaluate
        self._workspace = Workspace()
        self._plans: dict[frozenset[Tensor], Plan] = {}

    def save(self) -> None:
        """Write a checkpoint of this moment."""
        self._save(self)

    def evaluate(self, **data: Any) -> dict[str, Any]:
        """Evaluate the weights of this moment on data, as `Estimator.evaluate` does."""
        return self._evaluate(self.global_step, **data)

    def run(self, hooks: Sequence[SessionRunHook]) -> None:
        """Do steps until a hook stops the run, the data ends, or Ctrl-C is pressed."""
        context = SessionRunContext(self)
        self._processes.begin(tuple(self.parameters.values()))
        for hook in hooks:
            hook.begin()
        with _interrupt_stops(context) as interrupted:
            for batch in self.feed:
                wanted = [hook.before_run(context) for hook in hooks]
                results = self._step(batch, [_fetches(args) for args in wanted])
                for hook, result in zip(hooks, results, strict=True):
                    hook.after_run(context, SessionRunValues(result))
                if self._processes.any(context.stop_requested):
                    break
            else:
                logger.info("Input iterator is exhausted.")
            for hook in hooks:
                hook.end(self)
        if self._processes.any(interrupted.is_set()):
            said = f"Interrupted after step {self.global_step}; run the same again to go on."
            logger.info(said)
            raise KeyboardInterrupt(said)

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
