"""Weights and the graphs that compute with them; and which checkpoint they come from."""

import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.files import JsonLines
from minicnn.core.log import logger
from minicnn.core.parameter import Parameter
from minicnn.core.weights import PARAMETERS, differences
from minicnn.estimator import checkpoints
from minicnn.estimator.checkpoints import Checkpoint, CheckpointError, MemoryFiles, RunFiles
from minicnn.estimator.config import ModeKeys, RunConfig
from minicnn.estimator.feeding import Batch
from minicnn.estimator.processes import Processes
from minicnn.estimator.streams import Stream
from minicnn.estimator.tracing import Trace, form


class Lock:
    """A lock that a forked child does not inherit: the thread that holds it is not in the child.

    The thread that holds it may take it again, for example in a signal handler.
    """

    def __init__(self) -> None:
        self._of_process: dict[int, Any] = {}

    def __call__(self) -> Any:
        """Return the lock of this process."""
        return self._of_process.setdefault(os.getpid(), threading.RLock())


class Model:
    """The weights of a checkpoint or of a run, and the graphs that compute with them.

    The weights of a checkpoint never change: a caller that has started with them finishes with
    them, whatever is trained or saved meanwhile. The weights of a run change with every step, and
    only the run uses them; its first trace is for TRAIN.

    Parameters
    ----------
    model_fn : callable
    options : dict
        The other arguments that model_fn may name.
    lock : Lock, optional
        That of the Estimator; by default a new one.
    checkpoint : Checkpoint, optional
        Without one, a run begins with start values.
    seed : int
        The seed of a run.
    parameters : dict from str to Parameter, optional
        Those that exist: they are kept elsewhere, and may change at any time.

    Attributes
    ----------
    step : int
        The global step that the weights belong to; a run counts it.
    checkpoint : Checkpoint or None
        The last one that was read or written, without its arrays.
    """

    def __init__(
        self,
        model_fn: Callable[..., Any],
        options: dict[str, Any],
        lock: Lock | None = None,
        checkpoint: Checkpoint | None = None,
        seed: int = 0,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        self._model_fn = model_fn
        self._options = options
        self._lock = lock or Lock()
        self.seed = seed
        self.step = 0
        self.checkpoint: Checkpoint | None = None
        # What no trace has asked for yet. `_saved` is None after a run: its parameters are all.
        self._saved: dict[str, np.ndarray] | None = None
        self._optimizer: dict[str, np.ndarray] | None = None  # of a run
        self._parameters = dict(parameters or {})
        self._traces: dict[str, Trace] = {}
        if checkpoint is not None:
            self.step = checkpoint.meta["global_step"]
            self.checkpoint = checkpoint._replace(arrays={})
            self._saved = checkpoint.part(PARAMETERS)

    def weights(self) -> dict[str, np.ndarray]:
        """Return the value of each parameter by name."""
        with self._lock():  # a trace in another thread moves values from one to the other
            values = {name: parameter.value for name, parameter in self._parameters.items()}
            return (self._saved or {}) | values

    def trace(self, mode: str, batch: Batch) -> Trace:
        """Return the trace of a mode, whose parameters hold the weights; the first call makes it.

        The first trace for TRAIN also continues the optimizer's state.
        """
        with self._lock():
            trace = self._traces.get(mode)
            if trace is None or trace.form != form(batch):
                known = dict(self._parameters)  # model_fn, or a signal handler, may trace meanwhile
                rng = Stream.INIT.generator(self.seed)
                trace = Trace(self._model_fn, mode, batch, dict(known), rng, self._options)
                self._restore(trace, known)
                self._traces[mode] = trace
            return trace

    def _restore(self, trace: Trace, known: Mapping[str, Parameter]) -> None:
        """Set the parameters that a trace has added to `known` to the checkpoint's values."""
        made = trace.graph.parameters
        mode = trace.ops.mode
        new = [name for name in made if name not in known]
        if self.checkpoint is not None and self._saved is not None:
            weights = self.weights()
            _check(trace, new, weights, self.checkpoint.path)
            for name in new:
                made[name].value[...] = weights[name]
        elif new and (known or mode != ModeKeys.TRAIN):
            raise ValueError(
                f"mode {mode!r} has parameters that training does not have: "
                f"{', '.join(sorted(new))}; model_fn must build the same layers for every mode"
            )
        self._parameters = made | self._parameters
        if mode == ModeKeys.TRAIN:
            self._saved = None
            if self._optimizer is not None:
                try:
                    trace.load_optimizer(self._optimizer)
                except (TypeError, ValueError) as error:
                    logger.warning("The optimizer starts again without its state: %s", error)
                self._optimizer = None
        elif self._saved is not None:
            self._saved = {n: a for n, a in self._saved.items() if n not in self._parameters}


class Models:
    """Decides which weights `evaluate` and `predict` use, and keeps them in memory.

    They are those of the checkpoint that `checkpoints.newest` picks at the moment of the call.
    What is kept changes under one lock, which is not held during computations.

    Parameters
    ----------
    folder : Path
    model_fn : callable
    options : dict
        The other arguments that model_fn may name.

    Attributes
    ----------
    record : JsonLines
        Where evaluations are noted.
    """

    def __init__(
        self, folder: Path | None, model_fn: Callable[..., Any], options: dict[str, Any]
    ) -> None:
        if folder is not None and folder.is_file():
            raise ValueError(f"`model_dir` must be a folder, got the path of a file, {folder}")
        self.folder: Any = folder  # None only in memory
        self.record = JsonLines(folder and folder / "evaluations.jsonl")
        self.model_fn = model_fn
        self._options = options
        self._lock = Lock()
        self._latest: Model | None = None
        self._chosen: Model | None = None
        self._damaged: dict[Path, Any] = {}
        self._is_gone = False

    @contextmanager
    def files(self, config: RunConfig) -> Iterator[RunFiles]:
        """Lock the folder for a run, in its chief process, and return what writes its files."""
        is_chief = config.distribute.is_chief
        lock = checkpoints.locked(self.folder) if is_chief else nullcontext(lambda: True)
        with lock as is_held:
            yield RunFiles(self.folder, config.keep_checkpoint_max, is_held, is_chief)

    def newest(self) -> Checkpoint | None:
        """Return the checkpoint that the next run continues, if any."""
        return checkpoints.newest(self.folder, None, self._damaged)

    def leave(self, session: Any) -> None:
        """Do nothing: what a run leaves in a folder is what it has saved."""

    def run(self, seed: int | None, processes: Processes) -> Model:
        """Return the model of a run from the newest checkpoint, if any; only the run has it.

        Parameters
        ----------
        seed : int, optional
            None takes that of the checkpoint, or draws one.
        processes : Processes
            All of them start from what their chief has read.
        """
        found = None
        if processes.is_chief:
            with self._lock():
                found = self.newest()
            if found is not None:
                logger.info("Restored model from %s", found.path)
                seed = found.meta["seed"] if seed is None else seed
            if seed is None:
                seed = secrets.randbits(32)
                logger.info("The seed of this run is %d.", seed)
        found, seed = processes.from_chief((found, seed))
        model = Model(self.model_fn, self._options, None, found, seed)
        model._optimizer = None if found is None else found.part("optimizer/")
        return model

    def latest(self) -> Model:
        """Return the model of the newest checkpoint.

        Raises
        ------
        CheckpointError
            If there is none, or it cannot be read.
        """
        with self._lock():
            known = None if self._latest is None else self._latest.checkpoint
            found = checkpoints.newest(self.folder, known, self._damaged)
            if found is not None and found is not known:
                self._latest = self._of(found)
                logger.info("Restored model from %s", found.path)
            if self._latest is None:
                raise CheckpointError(
                    f"there is no checkpoint in {self.folder} yet; call fit first, which writes "
                    "one after its first step"
                )
            if found is None and not self._is_gone:
                logger.warning(
                    "There is no checkpoint in %s any more; the weights of step %d, which are in "
                    "memory, are used", self.folder, self._latest.step,
                )
            self._is_gone = found is None
            return self._latest

    def chosen(self, path: Any) -> Model:
        """Return the model of a file; None is the newest checkpoint.

        Raises
        ------
        CheckpointError
            If the file is missing or damaged, or there is no checkpoint.
        """
        if path is None:
            return self.latest()
        path = checks.path(path, "checkpoint_path").absolute()
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
            self._chosen = self._of(checkpoints.load(path)._replace(identity=now))
            return self._chosen

    def keep(self, run: Model) -> None:
        """Keep the weights that a run has saved: they are used if the folder is gone."""
        with self._lock():
            self._latest = self._of(run.checkpoint, run._parameters)
            # The chief may have saved them on another disk.
            self._is_gone = not self.folder.is_dir()

    def _of(self, checkpoint: Checkpoint | None, parameters: Any = None) -> Model:
        return Model(self.model_fn, self._options, self._lock, checkpoint, 0, parameters)


class InPlace(Models):
    """The runs of a model that trains in place, in a folder or in memory.

    Parameters
    ----------
    folder : Path or None
    model_fn : callable
    left : Checkpoint, optional
        What the last run has left in memory, with the values that the model has now; in a folder
        what `newest` has read before, which it does not read again.
    """

    def __init__(
        self, folder: Path | None, model_fn: Callable[..., Any], left: Checkpoint | None
    ) -> None:
        super().__init__(folder, model_fn, {})
        self.left = left

    def files(self, config: RunConfig) -> Any:
        return nullcontext(MemoryFiles()) if self.folder is None else super().files(config)

    def newest(self) -> Checkpoint | None:
        if self.folder is None:
            return self.left
        return checkpoints.newest(self.folder, self.left, self._damaged)

    def keep(self, run: Model) -> None:
        """Do nothing: the model has the weights itself."""

    def leave(self, session: Any) -> None:
        """Note where the next run goes on, in whatever way this one has ended."""
        arrays, meta = session.snapshot()
        state = {name: array for name, array in arrays.items() if not name.startswith(PARAMETERS)}
        self.left = Checkpoint(Path("memory"), state, meta | {"hooks": {}})


def _check(trace: Trace, new: list[str], saved: Mapping[str, np.ndarray], path: Path) -> None:
    """Raise unless a checkpoint holds the parameters that a trace has added."""
    mode = trace.ops.mode
    made = trace.graph.parameters
    remedy = (
        f"if the model has changed since {path} was written, undo the change, or use another "
        f"model_dir, or clear {path.parent}; otherwise give `x` with rows of the same shape as in "
        "training. To keep the weights of layers that still fit, train in another model_dir with "
        f"Estimator(..., warm_start_from={str(path)!r}, vars_to_warm_start=...)"
    )
    if mode != ModeKeys.TRAIN:
        remedy += f". Or mode {mode!r} is another model: build the same layers for every mode"
    names = sorted({*made, *saved}) if mode == ModeKeys.TRAIN else new
    if faults := differences(made, saved, names, path):
        raise CheckpointError(f"{next(iter(faults.values()))}; {remedy}")
