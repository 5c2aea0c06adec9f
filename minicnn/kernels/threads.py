"""The threads: `parallel_for` runs a kernel's chunks on the caller and on sleeping workers.

A kernel is cut into numbered chunks whose boundaries depend on the shapes alone; the threads draw
the numbers from one counter. Which thread runs a chunk, and how many threads there are, therefore
never changes a bit of the result. Where another thread has the workers, the caller runs every chunk
itself: the same bits, and no deadlock. A forked child begins with workers of its own.

Ctrl-C may come at any moment: it raises KeyboardInterrupt in the caller once no thread runs a
chunk, and leaves the workers free. Python looks for signals after a call, where a function begins
and where a loop goes round: what a Ctrl-C must not tear apart has no such place inside.
"""

import contextlib
import functools
import itertools
import logging
import math
import os
import sys
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

logger = logging.getLogger("minicnn")

_CACHE_LINE = 64
_MOST_THREADS = 1024


def parallel_for(
    kernel: Callable[..., Any],
    chunks: int,
    reads: Sequence[np.ndarray],
    writes: Sequence[np.ndarray],
    *sizes: Any,
    scratch: Mapping[str, tuple[tuple[int, ...], Any]] = types.MappingProxyType({}),
) -> None:
    """Call ``kernel(chunk, scratch, *reads, *writes, *sizes)`` for every chunk.

    Parameters
    ----------
    kernel : function made by `jit.kernel`
    chunks : int
        How many chunks there are; they are numbered from 0.
    reads : sequence of arrays
        Inputs. A kernel sees them C-contiguous and read-only, so it has one compiled form
        for each element type.
    writes : sequence of C-contiguous arrays
        Outputs. Two chunks never write the same element.
    *sizes : numbers or tuples of numbers
    scratch : mapping of names to (shape, dtype)
        Arrays of arbitrary values that the running thread lends to the chunk. The kernel gets
        them as one tuple in this order, which it unpacks to the same names; each begins at a
        cache line.
    """
    if not all(array.flags.writeable for array in writes):  # a kernel goes by its address
        raise ValueError("output array is read-only; set array.flags.writeable = True")
    arrays = (*(_frozen(array) for array in reads), *writes)
    job = _Job(kernel, chunks, (*arrays, *sizes), scratch)
    workers = _workers
    if chunks <= 1 or not workers.count:
        job.work()
        return
    try:
        if workers.take(job):
            workers.share(job, chunks - 1)
        else:
            job.work()
    finally:
        job.arguments = ()  # a worker that has yet to wake up keeps no arrays alive
        if workers.holder is job:
            del workers.holder


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array that starts at a cache line, so that none of its vectors lies in two.

    It holds arbitrary values. A kernel that mostly reads vectors takes a tenth longer without.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    space = np.empty(size + _CACHE_LINE, np.uint8)
    # space.ctypes would import something, which fails in a __del__ at the end of the program.
    start = -space.__array_interface__["data"][0] % _CACHE_LINE
    return space[start : start + size].view(dtype).reshape(shape)


def check(**arrays: tuple[np.ndarray, tuple[int, ...]]) -> None:
    """Raise where an array has another shape or type than those beside it ask for.

    Kernels go by addresses: they would read and write beyond the end of one that is too small.
    """
    dtype = next(iter(arrays.values()))[0].dtype
    for name, (array, shape) in arrays.items():
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"`{name}` is {array.shape} {array.dtype} where {shape} {dtype} is needed; after a "
                "layer is built anew, run forward again; give it no parameter of another shape"
            )


def share(items: int, chunks: int) -> int:
    """Return how many items a chunk has where they are cut into at most so many chunks."""
    return max(1, -(-items // chunks))


def set_num_threads(n: int) -> None:
    """Set how many threads the kernels use: the caller and ``n - 1`` workers.

    The results do not depend on it, to the last bit. The start value is the environment
    variable ``MINICNN_NUM_THREADS``, else the number of CPUs that the process may use.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    ValueError
        If `n` is not a positive integer.

    Examples
    --------
    >>> import minicnn as mc
    >>> before = mc.get_num_threads()
    >>> mc.set_num_threads(1)
    >>> mc.get_num_threads()
    1
    >>> mc.set_num_threads(before)
    """
    global _workers
    if not isinstance(n, int | np.integer) or isinstance(n, bool) or not 1 <= n <= _MOST_THREADS:
        raise ValueError(f"`n` must be an integer from 1 to {_MOST_THREADS}, got {n!r}")
    new = _Workers(int(n) - 1)
    # No lock, which a signal handler would wait for: no other thread or handler runs in between.
    old, _workers = _workers, new
    old.stop()


def get_num_threads() -> int:
    """Return how many threads the kernels use.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.get_num_threads() >= 1
    True
    """
    return _workers.count + 1


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only, C-contiguous, aligned array with the values of `array`."""
    if not (array.flags.c_contiguous and array.flags.aligned):
        array = np.array(array, order="C")
    frozen = array.view()
    frozen.flags.writeable = False
    return frozen


def _scratch(layout: Mapping[str, tuple[tuple[int, ...], Any]]) -> tuple[np.ndarray, ...]:
    """Return this thread's scratch arrays; their memory is kept between calls."""
    places, size = [], 0
    for shape, dtype in layout.values():
        places.append(size)
        size += -(-math.prod(shape) * np.dtype(dtype).itemsize // _CACHE_LINE) * _CACHE_LINE
    arena = getattr(_local, "arena", None)
    if size and (arena is None or arena.size < size):
        arena = _local.arena = aligned((size,), np.uint8)
    return tuple(
        np.ndarray(shape, dtype, arena, place)
        for (shape, dtype), place in zip(layout.values(), places, strict=True)
    )


class _Job:
    """One `parallel_for`: the counter that its threads draw chunk numbers from."""

    def __init__(
        self,
        kernel: Callable[..., Any],
        chunks: int,
        arguments: tuple[Any, ...],
        scratch: Mapping[str, tuple[tuple[int, ...], Any]],
    ) -> None:
        self.kernel, self.chunks, self.arguments = kernel, chunks, arguments
        self.scratch = scratch
        self.next = itertools.count().__next__  # one bytecode, so atomic between threads
        self.begun: list[None] = []  # an entry for each worker that has
        self.ended: list[BaseException | None] = []
        self.bell: SimpleQueue[None] = SimpleQueue()  # rings when a worker has ended

    def work(self) -> None:
        scratch = _scratch(self.scratch)
        while (chunk := self.next()) < self.chunks:
            self.kernel(chunk, scratch, *self.arguments)

    def work_for_another(self) -> None:
        """Work on a worker's thread; whatever ends it is reported to the caller."""
        self.begun.append(None)
        error = None
        try:
            self.work()
        except BaseException as caught:
            error = caught
        self.ended.append(error)
        self.bell.put(None)

    def wait(self) -> None:
        """Return when no worker runs a chunk: one that begins later finds none left."""
        while len(self.ended) < len(self.begun):
            self.bell.get()


class _Workers:
    """`count` daemon threads, each asleep at its inbox."""

    holder: object = None  # who has taken them; an attribute of the instance while one has

    def __init__(self, count: int) -> None:
        self.count = count
        self.stopped = False
        self._inboxes: list[SimpleQueue[_Job | None]] = []

    def take(self, who: object) -> bool:
        """Reserve the workers; False where they are busy."""
        return vars(self).setdefault("holder", who) is who

    def share(self, job: _Job, most: int) -> None:
        """Run `job` on the caller and on at most `most` workers; return when all have ended."""
        try:
            self._start()
            for inbox in self._inboxes[:most]:
                inbox.put(job)
            job.work()
            job.wait()
        except BaseException:
            job.chunks = 0  # KeyboardInterrupt, say: the others end after the chunk in hand
            waiting = True
            while waiting:
                with contextlib.suppress(KeyboardInterrupt):  # one more: the first is on its way
                    job.wait()
                    waiting = False
            raise
        for error in job.ended:
            if error is not None:
                raise error

    def stop(self) -> None:
        """Let the threads end once they have done what they were given.

        This waits for nobody: who has taken the workers may be the frame that a signal handler has
        interrupted to call this. A job that comes later is done by its caller alone.
        """
        self.stopped = True
        for inbox in self._inboxes:
            inbox.put(None)

    def _start(self) -> None:
        # At the end of the program, in a __del__, none begins: the caller would wait for it.
        while len(self._inboxes) < self.count and not sys.is_finalizing():
            inbox: SimpleQueue[_Job | None] = SimpleQueue()
            name = f"minicnn-{len(self._inboxes) + 1}"
            try:
                threading.Thread(target=_serve, args=(inbox,), name=name, daemon=True).start()
            except RuntimeError as error:  # a limit on threads, or the interpreter is ending
                self.count = len(self._inboxes)
                _say_once_that_threads_are_missing(str(error))
                return
            self._inboxes.append(inbox)
            if self.stopped:  # perhaps before this thread was there to be told
                inbox.put(None)


def _serve(inbox: SimpleQueue[_Job | None]) -> None:
    while (job := inbox.get()) is not None:
        job.work_for_another()
        del job  # so that a sleeping worker keeps no arrays alive


def _threads_from_environment() -> int:
    text = os.environ.get("MINICNN_NUM_THREADS")
    if not text:
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1
    if not (text.isdecimal() and len(text) < 9 and 1 <= int(text) <= _MOST_THREADS):
        raise ValueError(
            f"MINICNN_NUM_THREADS must be an integer from 1 to {_MOST_THREADS}, got {text!r}"
        )
    return int(text)


@functools.cache
def _say_once_that_threads_are_missing(reason: str) -> None:
    logger.warning(
        "A thread cannot be started (%s); the kernels go on with those that there are, slower and "
        "with the same results. Raise the limit on threads (`ulimit -u`, or the container's limit "
        "on pids), or set MINICNN_NUM_THREADS to fewer.", reason
    )


def _begin_anew_after_fork() -> None:
    """Forget the parent's threads, which did not come along."""
    global _workers
    _workers = _Workers(_workers.count)


_local = threading.local()
_workers = _Workers(_threads_from_environment() - 1)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_after_fork)
