"""The weights of one checkpoint and the graphs that compute with them; and which one that is."""

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core.parameter import Parameter
from minicnn.estimator import checkpoints
from minicnn.estimator.checkpoints import Checkpoint, CheckpointError
from minicnn.estimator.config import ModeKeys
from minicnn.estimator.feeding import Batch
from minicnn.estimator.tracing import Trace, form

logger = logging.getLogger("minicnn")

_START_STREAM = 0  # tells the seed of the start values from the other uses of the run's seed
_SETTLED = 3_000_000_000  # ns: no file system's clock is coarser


class Lock:
    """A lock that a forked child does not inherit: the thread that holds it is not in the child.

    The thread that holds it may take it again, in a signal handler for example.
    """

    def __init__(self) -> None:
        self._of_process: dict[int, Any] = {}

    def __call__(self) -> Any:
        """Return the lock of this process."""
        return self._of_process.setdefault(os.getpid(), threading.RLock())


class Model:
    """The weights of a checkpoint or of a run, and the graphs that compute with them.

    The weights of a checkpoint never change: a caller that has begun with them finishes with them,
    whatever is trained or saved meanwhile. Those of a run, whose first trace is for TRAIN, change
    with every step, and only the run uses them.

    Parameters
    ----------
    model_fn : callable
    options : dict
        The other arguments that model_fn may name.
    lock : Lock
    checkpoint : Checkpoint, optional
        Without one, a run begins with start values.
    seed : int
        Of the start values.

    Attributes
    ----------
    step : int
        The global step of the checkpoint.
    checkpoint : Checkpoint or None
        Without its arrays.
    """

    def __init__(
        self,
        model_fn: Callable[..., Any],
        options: dict[str, Any],
        lock: Lock,
        checkpoint: Checkpoint | None = None,
        seed: int = 0,
    ) -> None:
        self._model_fn, self._options, self._lock, self._seed = model_fn, options, lock, seed
        self.step = 0 if checkpoint is None else checkpoint.meta["global_step"]
        self.checkpoint = None if checkpoint is None else checkpoint._replace(arrays={})
        # What no trace has asked for yet; None after a run, whose parameters are all there are.
        self._saved = None if checkpoint is None else checkpoint.part("parameters/")
        self._parameters: dict[str, Parameter] = {}
        self._traces: dict[str, Trace] = {}

    def saved_as(self, checkpoint: Checkpoint) -> None:
        """Note the checkpoint, without its arrays, that holds the weights of this moment."""
        self.step, self.checkpoint = checkpoint.meta["global_step"], checkpoint

    def copy(self, lock: Lock) -> "Model":
        """Return a model whose weights stay those that a run has now."""
        model = Model(self._model_fn, self._options, lock, self.checkpoint)
        model._saved = None
        for name, p in self._parameters.items():
            model._parameters[name] = Parameter(name, p.value.copy(), p.trainable)
        return model

    def weights(self) -> dict[str, np.ndarray]:
        """Return the value of each parameter by name."""
        with self._lock():  # a trace of another thread moves values from one to the other
            values = {name: parameter.value for name, parameter in self._parameters.items()}
            return (self._saved or {}) | values

    def trace(self, mode: str, batch: Batch) -> Trace:
        """Return the trace of a mode, made at the first call; its parameters hold the weights."""
        with self._lock():
            trace = self._traces.get(mode)
            if trace is None or trace.form != form(batch):
                known = set(self._parameters)
                seed = (self._seed, _START_STREAM)
                parameters = dict(self._parameters)
                trace = Trace(self._model_fn, mode, batch, parameters, seed, self._options)
                self._restore(trace, known)
                self._traces[mode] = trace
            return trace

    def _restore(self, trace: Trace, known: set[str]) -> None:
        """Give what a trace has added to the known parameters its values."""
        graph, mode, weights = trace.graph, trace.ops.mode, self.weights()
        new = [name for name in graph.parameters if name not in known]
        if self.checkpoint is not None and self._saved is not None:
            _check(trace, new, weights, self.checkpoint.path)
            for name in new:
                graph.parameters[name].value[...] = weights[name]
        elif new and (known or mode != ModeKeys.TRAIN):
            raise ValueError(
                f"mode {mode!r} has parameters that training does not have: "
                f"{', '.join(sorted(new))}; model_fn must build the same layers for every mode"
            )
        self._parameters = graph.parameters | self._parameters
        if mode == ModeKeys.TRAIN:
            self._saved = None
        elif self._saved is not None:
            self._saved = {n: a for n, a in self._saved.items() if n not in self._parameters}


class Models:
    """Decides which weights `evaluate` and `predict` use, and keeps them in memory.

    They are those of the checkpoint that `checkpoints.newest` picks at the moment of the call.
    What is kept changes under one lock, which is not held while something is computed.

    Parameters
    ----------
    folder : Path
    model_fn : callable
    options : dict
        The other arguments that model_fn may name.
    """

    def __init__(
        self, folder: Path, model_fn: Callable[..., Any], options: dict[str, Any]
    ) -> None:
        self.folder, self._lock = folder, Lock()
        self._model_fn, self._options = model_fn, options
        self._latest: Model | None = None
        self._chosen: Model | None = None
        self._damaged: dict[Path, Any] = {}
        self._seen: tuple[Any, ...] | None = None
        self._is_gone = False

    def run(self, checkpoint: Checkpoint | None, seed: int) -> Model:
        """Return the model of a run that goes on from a checkpoint; nobody else has it."""
        return Model(self._model_fn, self._options, Lock(), checkpoint, seed)

    def read(self) -> Checkpoint | None:
        """Read the checkpoint that a run goes on from."""
        with self._lock():
            found = checkpoints.newest(self.folder, None, self._damaged)
        if found is not None:
            logger.info("Restored model from %s", found.path)
        return found

    def latest(self) -> Model:
        """Return the model of the checkpoint that counts now.

        Raises
        ------
        CheckpointError
            If there is none, or it cannot be read.
        """
        with self._lock():
            if self._seen is None or self._seen != self._look():
                self._update()
            if self._latest is None:
                raise CheckpointError(
                    f"there is no checkpoint in {self.folder} yet; call fit first, which writes "
                    "one after its first step"
                )
            return self._latest

    def chosen(self, path: Path) -> Model:
        """Return the model of a file.

        Raises
        ------
        CheckpointError
            If it is not there, or damaged.
        """
        path = path.absolute()
        with self._lock():
            if not path.is_file():
                there = ", ".join(sorted(p.name for p in self.folder.glob("*.npz"))) or "none"
                raise CheckpointError(
                    f"`checkpoint_path` must be the file of a checkpoint, got {path}, where there "
                    f"is no file; those in {self.folder} are: {there}"
                )
            now = checkpoints.identity(path)
            for model in (self._latest, self._chosen):
                at = None if model is None else model.checkpoint
                if model and at and at.identity and (at.path, at.identity) == (path, now):
                    return model
            self._chosen = self._new(checkpoints.load(path)._replace(identity=now))
            return self._chosen

    def keep(self, run: Model) -> None:
        """Keep a copy of the weights that a run has ended with, and saved as a checkpoint."""
        with self._lock():
            known = None if self._latest is None else self._latest.checkpoint
            saved = run.checkpoint
            if saved is not None and (known != saved or saved.identity is None):
                self._latest = run.copy(self._lock)
                self._is_gone = saved.identity is None  # it is on the disk of another process
            self._seen = None

    def _new(self, checkpoint: Checkpoint) -> Model:
        return Model(self._model_fn, self._options, self._lock, checkpoint)

    def _look(self) -> tuple[Any, ...]:
        """Return what changes where another checkpoint counts."""
        at = None if self._latest is None else self._latest.checkpoint
        paths = self.folder, checkpoints.index(self.folder), self.folder if at is None else at.path
        return tuple(map(checkpoints.identity, paths))

    def _update(self) -> None:
        """Ask which checkpoint counts, and read it if it is another one."""
        now, before, self._seen = time.time_ns(), self._look()[:2], None
        known = None if self._latest is None else self._latest.checkpoint
        found = checkpoints.newest(self.folder, known, self._damaged)
        if found is None:
            if self._latest is not None and not self._is_gone:
                logger.warning(
                    "There is no checkpoint in %s any more; the weights of step %d, which are in "
                    "memory, are used", self.folder, self._latest.step,
                )
                self._is_gone = True
            return
        self._is_gone = False
        if found is not known:
            self._latest = self._new(found)
            logger.info("Restored model from %s", found.path)
        seen = (*before, found.identity)
        # Within a tick of the file system's clock a second change would not be seen.
        is_settled = all(each is None or now - each[2] > _SETTLED for each in seen)
        if is_settled and not self._damaged:
            self._seen = seen


def _check(trace: Trace, new: list[str], saved: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise where a checkpoint does not hold the parameters that a trace has added."""
    mode, graph = trace.ops.mode, trace.graph
    remedy = (
        f"the model has changed since {path} was written: undo the change, or use another "
        f"model_dir, or clear {path.parent}"
    )
    if mode != ModeKeys.TRAIN:
        remedy += f". Or mode {mode!r} is another model: build the same layers for every mode"
    for name in new:
        parameter = graph.parameters[name]
        if name not in saved:
            raise CheckpointError(f"{name} {parameter.shape} is not in the checkpoint; {remedy}")
        array = saved[name]
        if array.shape != parameter.shape or array.dtype.kind != "f":
            raise CheckpointError(
                f"{name} is {parameter.shape} in the model and {array.dtype} {array.shape} in the "
                f"checkpoint; give `x` with rows of the same shape as in training. Or {remedy}"
            )
    unused = set(saved) - set(graph.parameters)
    if mode == ModeKeys.TRAIN and unused:
        name = min(unused)
        raise CheckpointError(f"{name} {saved[name].shape} is not in the model any more; {remedy}")
