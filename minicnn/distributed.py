"""Data-parallel training with several processes, on one machine or on many, over MPI (extra `mpi`).

Each process ("rank") has all parameters, reads the same batches and computes on its own rows of
them. The gradients are summed before the update, so each rank makes the step that one process would
make on the complete batch, up to rounding, and the parameters are the same bits on all ranks. A
run that is resumed with the same number of ranks is exact.
"""

import contextlib
import hashlib
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from minicnn.core import checks, extras
from minicnn.core.op import Tensor
from minicnn.core.parameter import Parameter
from minicnn.estimator.processes import Processes
from minicnn.warmup import warmup

_PAUSE = 2e-4  # seconds between two tests whether a message has arrived


class _RanksDifferError(RuntimeError):
    """All ranks raise this together because their data or parameters differ."""


class DataParallel(Processes):
    """Train on all ranks of MPI together; for the argument `distribute` of `RunConfig`.

    Rank r of n uses the rows [r N / n, (r + 1) N / n) of a batch of N. Its gradient is weighted by
    its fraction of the rows, so N need not be a multiple of n, but the loss must be a mean over
    rows. Batch normalization takes the statistics of the rows of all ranks.

    * Give each rank the same data: `x` and `y`, or an input_fn that yields the same full batches.
    * Only rank 0 logs, saves, evaluates and runs the monitors. They see the loss of the complete
      batch; other tensors that they fetch contain only the rows of rank 0.
    * At each step the ranks compare the number of rows of their batches. If a rank has no batch
      left, or another number, all ranks raise an error that names the rank and the step.
    * An error on any rank ends all of them; the same command resumes from the last checkpoint.
      Ctrl-C stops mpiexec at once, without a checkpoint of the last step.
    * Only rank 0 needs the disk. ``MINICNN_NUM_THREADS`` or `set_num_threads` lets the ranks of a
      machine share its CPUs.

    Parameters
    ----------
    check_every : int
        Number of steps between two checks that batches and parameters are equal on all ranks.

    Attributes
    ----------
    is_chief : bool
        Whether this is rank 0.

    Raises
    ------
    ImportError
        If mpi4py is not installed or does not find an MPI library.

    Examples
    --------
    ``mpiexec -n 4 python program.py`` starts four ranks; without mpiexec there is one.

    >>> import minicnn as mc
    >>> ranks = mc.distributed.DataParallel()
    >>> config = mc.RunConfig(seed=0, distribute=ranks)  # for the Estimator
    >>> ranks.is_chief  # after fit, only the chief evaluates
    True
    """

    def __init__(self, check_every: int = 1000) -> None:
        self._mpi: Any = extras.require("mpi4py.MPI", "mpi")
        self._comm = self._mpi.COMM_WORLD
        self.is_chief = self._comm.rank == 0
        self.check_every = checks.integer(check_every, "check_every")
        self._thread = ThreadPoolExecutor(1, "minicnn-mpi")
        self._early: Future[None] | None = None

    def __reduce__(self) -> tuple[Any, ...]:  # MPI's objects and threads cannot be pickled
        return type(self), (self.check_every,)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """End all ranks if this one fails: the others would wait for it forever."""
        try:
            yield
        except BaseException as error:
            sys.excepthook(*sys.exc_info())  # Abort ends the process without a traceback
            if isinstance(error, _RanksDifferError):
                self._comm.Barrier()  # all ranks raise it: wait until each has shown it
            self._comm.Abort(1)
            raise

    def from_chief(self, value: Any) -> Any:
        return self._comm.bcast(value)

    def begin(self, parameters: Sequence[Parameter]) -> None:
        """Compile once on each machine, and copy the parameters of rank 0."""
        if self._comm.Split_type(self._mpi.COMM_TYPE_SHARED).rank == 0:
            warmup()
        self._comm.Barrier()  # the other ranks then load the kernels from disk
        for parameter in parameters:
            self._comm.Bcast(parameter.value)
        # Only one is sent early: the order of several could differ if a rank fetches other tensors.
        self._largest: Parameter | None = max(parameters, key=lambda p: p.value.size, default=None)
        self._steps = 0

    def check_rows(self, rows: int | None, step: int) -> None:
        all_rows = np.empty(self._comm.size, np.int64)
        self._comm.Allgather(np.array([-1 if rows is None else rows]), all_rows)
        others = np.flatnonzero(all_rows != all_rows[0])
        if len(others):
            first, other = (
                f"rank {rank} has {'no batch' if count < 0 else f'a batch of {count} rows'}"
                for rank, count in ((0, all_rows[0]), (others[0], all_rows[others[0]]))
            )
            raise _RanksDifferError(
                f"step {step}: {first}, but {other}; fit needs the same data in every process"
            )

    def part(self, feeds: Mapping[Tensor, Any]) -> tuple[dict[Tensor, Any], int, float]:
        if self._steps % self.check_every == 0:
            self._check("the batches", feeds.values(), "fit needs the same data in every process")
        rank, size, rows = self._comm.rank, self._comm.size, len(next(iter(feeds.values())))
        first, last = rows * rank // size, rows * (rank + 1) // size
        # Layers may need a row: a rank without rows takes one, with weight 0.
        own = slice(first, max(last, first + 1))
        return {tensor: array[own] for tensor, array in feeds.items()}, first, (last - first) / rows

    def total(self, array: np.ndarray) -> np.ndarray:
        self._finish_early()  # the messages of all ranks have the same order
        total = array.copy()
        self._comm.Allreduce(self._mpi.IN_PLACE, total)
        return total

    def ready(self, parameter: Parameter) -> None:
        """Send the largest gradient, and only this one, while backward continues."""
        if parameter is self._largest:
            request = self._comm.Iallreduce(self._mpi.IN_PLACE, parameter.grad)
            try:
                self._early = self._thread.submit(_wait_for, request)
            except RuntimeError:  # no thread can be started
                _wait_for(request)

    def sum(self, loss: float, parameters: Sequence[Parameter]) -> float:
        parameters = sorted(parameters, key=lambda p: p.name)  # in the same order on all ranks
        self._finish_early()
        if self._steps % self.check_every == 0:
            values = [p.value for p in parameters]
            self._check("the parameters", values, "restart from the last checkpoint")
        self._steps += 1
        # One message for the many small gradients and the loss.
        small = [p.grad for p in parameters if p is not self._largest]
        flat = np.concatenate([np.array([loss], np.float32), *(grad.ravel() for grad in small)])
        self._comm.Allreduce(self._mpi.IN_PLACE, flat)
        end = 1
        for grad in small:
            start, end = end, end + grad.size
            grad[...] = flat[start:end].reshape(grad.shape)
        return float(flat[0])

    def _finish_early(self) -> None:
        """Wait for the gradient that was sent early, if there is one."""
        if self._early is not None:
            self._early.result()
            self._early = None

    def any(self, flag: bool) -> bool:
        flags = np.array([flag])
        self._comm.Allreduce(self._mpi.IN_PLACE, flags, self._mpi.LOR)
        return bool(flags[0])

    def _check(self, what: str, arrays: Iterable[np.ndarray], remedy: str) -> None:
        """Raise if the arrays differ between ranks."""
        digest = hashlib.blake2b()
        for array in arrays:
            digest.update(array.tobytes())
        if len(set(self._comm.allgather(digest.digest()))) > 1:
            raise _RanksDifferError(f"{what} are not the same on all ranks of MPI; {remedy}")


def _wait_for(request: Any) -> None:
    """Test a message until it is complete: MPI may make progress only when it is called."""
    while not request.Test():
        time.sleep(_PAUSE)  # request.Wait would use the CPU that backward needs
