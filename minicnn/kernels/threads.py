"""Thread pool: `parallel_for` runs the chunks of a kernel on the calling and on worker threads.

A kernel is split into numbered chunks, whose boundaries depend only on the shapes. The threads take
the numbers from a shared counter. The result is therefore bit-identical for any number of threads.
If another thread is using the workers, the caller runs all chunks itself; this avoids deadlocks.
After a fork, the child starts its own workers. `together` is for jobs that share their work
themselves: see `recording`.

Ctrl-C may arrive at any time. It raises KeyboardInterrupt in the caller after all threads have
finished their current chunk, and it releases the workers. CPython checks for signals at calls,
function entry and loop back-edges; critical sections contain none of these.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

logger = logging.getLogger("minicnn")

_CACHE_LINE = 64
_MOST_THREADS = 1024
_LAYOUTS = 256  # of scratch that are kept, at most
CHUNKS = 16  # of most kernels, at most; enough to balance the load of a few threads
_LEAST_WORK = 1 << 22  # multiply-adds that take longer than to wake a thread, about 50 us
_LEAST_CHUNK = 1 << 18  # of a chunk


def parallel_for(
    kernel: Any,
    chunks: int,
    reads: Sequence[np.ndarray],
    writes: Sequence[np.ndarray],
    *sizes: Any,
    scratch: Mapping[str, tuple[tuple[int, ...], Any]] = types.MappingProxyType({}),
    work: int = _LEAST_WORK,
) -> None:
    """Call ``kernel(chunk, scratch, *reads, *writes, *sizes)`` for every chunk.

    Parameters
    ----------
    kernel : dispatcher made by `jit.kernel`
    chunks : int
        The number of chunks, which are numbered from 0.
    reads : sequence of arrays
        Inputs. The kernel gets them C-contiguous and read-only, so it is compiled once for each
        element type.
    writes : sequence of C-contiguous arrays
        Outputs. No two chunks may write the same element.
    *sizes : numbers or tuples of numbers
        Further arguments of the kernel.
    scratch : mapping of names to (shape, dtype)
        Uninitialized temporary arrays of the running thread, aligned to cache lines. The kernel
        gets them as one tuple in this order and unpacks it to the same names.
    work : int, optional
        The number of multiply-adds. If they are few, the calling thread computes all chunks.
    """
    for array in writes:
        if not array.flags.writeable:  # a kernel would write to it
            raise ValueError("output array is read-only; set array.flags.writeable = True")
    arrays = *map(_frozen, reads), *writes
    if _local.calls is not None:  # see `recorded`
        arguments = (0, _scratch(scratch), *arrays, *sizes)
        _local.calls.add((kernel, tuple(map(kernel.typeof_pyval, arguments))))
        for array in writes:
            array[...] = 0
        return
    if _local.tape is not None and chunks:  # see `taped`
        _local.tape.append((kernel, chunks, (*arrays, *sizes), scratch))
    workers = _workers
    if chunks <= 1 or work < _LEAST_WORK or not workers.count:
        temporary = _scratch(scratch)
        for chunk in range(chunks):
            kernel(chunk, temporary, *arrays, *sizes)
        return
    job = _Job(kernel, chunks, (*arrays, *sizes), scratch)
    try:
        if workers.take(job):
            workers.share(job, chunks - 1)
        else:
            job.work()
    finally:
        job.arguments = ()  # so that a worker that wakes up late keeps no arrays alive
        if workers.holder is job:
            del workers.holder


def together(job: Callable[[], None], most: int) -> None:
    """Call a function, also on at most `most` workers, which may start after it has returned.

    The workers are left alone while another thread also wants them: threads that compute for
    themselves finish sooner. After an exception in the caller they may still run the function.
    """
    workers = _workers
    try:
        if most and not workers.take(job):
            workers.is_wanted = True
        elif most and workers.is_wanted:
            workers.is_wanted = False
        elif most:
            workers.call(job, most, True)
        job()
    finally:
        if workers.holder is job:
            del workers.holder


def starts() -> np.ndarray:
    """Return a counter, one element, that each new job changes; see `recording`."""
    return _workers.starts


def taped(function: Callable[..., Any], *arguments: Any) -> tuple[Any, list[Any]]:
    """Call a function, and record the calls of kernels that it makes in this thread.

    It is not a context manager: Ctrl-C could stop that one between the function and its end.

    Returns
    -------
    tuple (result, calls)
        `calls` has a tuple (kernel, chunks, arguments, layout of the scratch) for each call, a
        function without arguments for each call of `step`, and None for each call of
        `depends_on_values`.
    """
    tape = _local.tape = []
    try:
        return function(*arguments), tape
    finally:
        _local.tape = None


def is_taping() -> bool:
    """Return whether this thread records its calls; see `taped`."""
    return _local.tape is not None


def step(function: Callable[..., Any], *arguments: Any) -> None:
    """Call a function that changes arrays between two kernels; record it if calls are recorded."""
    function(*arguments)
    if _local.tape is not None:
        _local.tape.append(functools.partial(function, *arguments))


def depends_on_values() -> None:
    """Note that the next calls depend on the elements of arrays, so that none is repeated."""
    if _local.tape is not None:
        _local.tape.append(None)


@contextlib.contextmanager
def recorded() -> Iterator[set[tuple[Any, Any]]]:
    """Record the kernels that this thread calls, but do not run them: fill their outputs with 0.

    Yields
    ------
    set of (kernel, types)
        ``types in kernel.overloads`` says whether it is compiled.
    """
    _local.calls = set()
    try:
        yield _local.calls
    finally:
        _local.calls = None


def aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an uninitialized array that is aligned to a cache line.

    No vector then crosses a cache line. Without this, a kernel that mostly loads vectors takes
    about 10% longer.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    space = np.empty(size + _CACHE_LINE, np.uint8)
    # Not space.ctypes: it imports a module, which fails in a __del__ at interpreter shutdown.
    start = -space.__array_interface__["data"][0] % _CACHE_LINE
    return space[start : start + size].view(dtype).reshape(shape)


def check(**arrays: tuple[np.ndarray, tuple[int, ...]]) -> None:
    """Raise ValueError if an array does not have the given shape and the dtype of the first array.

    Kernels do not check bounds. They would read and write past the end of a smaller array.
    """
    dtype = next(iter(arrays.values()))[0].dtype
    for name, (array, shape) in arrays.items():
        if array.shape != shape or array.dtype != dtype:
            raise ValueError(
                f"`{name}` is {array.shape} {array.dtype} where {shape} {dtype} is needed; if a "
                "layer was built again, run forward again; do not assign a parameter of another "
                "shape"
            )


def share(items: int, chunks: int, work: int = _LEAST_WORK) -> int:
    """Return the number of items per chunk, for at most `chunks` chunks; one for little work."""
    return max(1, -(-items // max(1, min(chunks, work // _LEAST_CHUNK))))


def set_num_threads(n: int) -> None:
    """Set the number of threads of the kernels: the caller and ``n - 1`` workers.

    Results are bit-identical for any number of threads. The default is the environment variable
    ``MINICNN_NUM_THREADS`` if it is set, else the number of CPUs available to the process.

    Parameters
    ----------
    n : int
        The number of threads, from 1 to 1024.

    Raises
    ------
    ValueError
        If `n` is not an integer from 1 to 1024.

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
    # No lock: a signal handler could deadlock on it. Nothing runs between these two operations.
    old, _workers = _workers, new
    old.stop()


def get_num_threads() -> int:
    """Return the number of threads of the kernels.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.get_num_threads() >= 1
    True
    """
    return _workers.count + 1


def _frozen(array: np.ndarray) -> np.ndarray:
    """Return a read-only, C-contiguous, aligned array with the values of `array`."""
    flags = array.flags
    if not (flags.c_contiguous and flags.aligned):
        array = np.array(array, order="C")
        depends_on_values()  # a repeated call would read this copy again
    frozen = array.view()
    frozen.setflags(write=False)
    return frozen


def _scratch(layout: Mapping[str, tuple[tuple[int, ...], Any]]) -> tuple[np.ndarray, ...]:
    """Return the scratch arrays of this thread. All calls use the same memory."""
    key = tuple(layout.values())
    if key not in _local.scratch:
        size = scratch_size(layout)
        if _local.arena.size < size or len(_local.scratch) == _LAYOUTS:
            _local.scratch.clear()  # these arrays keep the old memory alive
        if _local.arena.size < size:
            _local.arena = aligned((size,), np.uint8)
        _local.scratch[key] = scratch_in(_local.arena, layout)
    return _local.scratch[key]


def scratch_size(layout: Mapping[str, tuple[tuple[int, ...], Any]]) -> int:
    """Return the number of bytes of scratch arrays."""
    return sum(map(_lines, layout.values()))


def scratch_in(
    arena: np.ndarray, layout: Mapping[str, tuple[tuple[int, ...], Any]]
) -> tuple[np.ndarray, ...]:
    """Return scratch arrays in the memory of an array of bytes."""
    places = itertools.accumulate(map(_lines, layout.values()), initial=0)
    return tuple(
        np.ndarray(shape, dtype, arena, place)
        for (shape, dtype), place in zip(layout.values(), places, strict=False)
    )


def _lines(array: tuple[tuple[int, ...], Any]) -> int:
    """Return the number of bytes of complete cache lines for a shape and dtype."""
    shape, dtype = array
    return -(-math.prod(shape) * np.dtype(dtype).itemsize // _CACHE_LINE) * _CACHE_LINE


class _Local(threading.local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.calls: set[tuple[Any, Any]] | None = None  # of `recorded`
        self.tape: list[Any] | None = None  # of `taped`
        self.arena = np.empty(0, np.uint8)  # the memory of all scratch arrays
        self.scratch: dict[Any, tuple[np.ndarray, ...]] = {}  # by layout


class _Job:
    """A call of `parallel_for`, with the counter that its threads take chunk numbers from."""

    def __init__(
        self,
        kernel: Callable[..., Any],
        chunks: int,
        arguments: tuple[Any, ...],
        scratch: Mapping[str, tuple[tuple[int, ...], Any]],
    ) -> None:
        self.kernel, self.chunks, self.arguments = kernel, chunks, arguments
        self.scratch = scratch
        self.next = itertools.count().__next__  # one bytecode, so it is atomic
        self.begun: list[None] = []  # one entry for each worker that has started
        self.ended: list[BaseException | None] = []
        self.bell: SimpleQueue[None] = SimpleQueue()  # gets an item when a worker has finished

    def work(self) -> None:
        scratch = _scratch(self.scratch)
        while (chunk := self.next()) < self.chunks:
            self.kernel(chunk, scratch, *self.arguments)

    def work_for_another(self) -> None:
        """Run chunks on a worker thread, and report any exception to the caller."""
        self.begun.append(None)
        error = None
        try:
            self.work()
        except BaseException as caught:
            error = caught
        self.ended.append(error)
        self.bell.put(None)

    def wait(self) -> None:
        """Wait until no worker runs a chunk. A worker that starts later finds none left."""
        while len(self.ended) < len(self.begun):
            self.bell.get()


class _Workers:
    """A pool of `count` daemon threads, each waiting for jobs in its own queue."""

    holder: object = None  # the user of the pool; an instance attribute while it is in use
    is_wanted = False  # whether `together` was called while it was in use

    def __init__(self, count: int) -> None:
        self.count = count
        self.stopped = False
        self.starts = np.zeros(1, np.int64)
        self._inboxes: list[SimpleQueue[Callable[[], None] | None]] = []

    def take(self, who: object) -> bool:
        """Reserve the workers, and return False if they are in use."""
        return vars(self).setdefault("holder", who) is who

    def share(self, job: _Job, most: int) -> None:
        """Run `job` on the caller and at most `most` workers, until all have finished."""
        try:
            self.call(job.work_for_another, most)
            self.starts += 1
            job.work()
            job.wait()
        except BaseException:
            job.chunks = 0  # e.g. KeyboardInterrupt: the workers stop after their current chunk
            waiting = True
            while waiting:
                with contextlib.suppress(KeyboardInterrupt):  # ignore further ones
                    job.wait()
                    waiting = False
            raise
        for error in job.ended:
            if error is not None:
                raise error

    def call(self, job: Callable[[], None], most: int, if_free: bool = False) -> None:
        """Wake at most `most` workers for a job; if `if_free`, only those that no job waits for."""
        self._start()
        for inbox in self._inboxes[:most]:
            if inbox.empty() or not if_free:
                inbox.put(job)

    def stop(self) -> None:
        """Tell the threads to exit after their current job.

        Do not wait for them: if a signal handler calls this, the pool may be in use by the frame
        that the handler has interrupted. The caller of a later job runs all its chunks itself.
        """
        self.stopped = True
        for inbox in self._inboxes:
            inbox.put(None)

    def _start(self) -> None:
        # At interpreter shutdown new threads never start, and the caller would wait for them.
        while len(self._inboxes) < self.count and not sys.is_finalizing():
            inbox: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
            name = f"minicnn-{len(self._inboxes) + 1}"
            try:
                threading.Thread(target=_serve, args=(inbox,), name=name, daemon=True).start()
            except RuntimeError as error:  # a limit on threads, or interpreter shutdown
                self.count = len(self._inboxes)
                _say_once_that_threads_are_missing(str(error))
                return
            self._inboxes.append(inbox)
            if self.stopped:  # possibly before this thread was in the list
                inbox.put(None)


def _serve(inbox: SimpleQueue[Callable[[], None] | None]) -> None:
    while (job := inbox.get()) is not None:
        job()
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
        "A thread cannot be started (%s); the kernels continue with fewer threads: slower, but "
        "with the same results. Raise the limit on threads (`ulimit -u`, or the container's limit "
        "on pids), or set MINICNN_NUM_THREADS to a lower number.", reason
    )


def _replace_workers_after_fork() -> None:
    """Replace the pool in a forked child, because threads are not inherited."""
    global _workers
    _workers = _Workers(_workers.count)


_local = _Local()
_workers = _Workers(_threads_from_environment() - 1)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_workers_after_fork)
