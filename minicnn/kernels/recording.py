"""Recorded calls of kernels that run without Python between them: `Recording`.

A call of a kernel from Python takes one microsecond, and waking a worker for it twenty more. A
recording is therefore a table for native code: the address of each kernel, and its arguments as
words of 64 bits. Each thread goes through all calls. It takes the chunks of a call from an atomic
counter, and continues when all of them are done. A thread can therefore join at any time, and no
other thread waits for it to wake up.
"""

import contextlib
import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.compiler_lock import global_compiler_lock

from minicnn.kernels import threads
from minicnn.kernels.jit import kernel
from minicnn.kernels.simd import enter, increment, peek, pointer

_WORD = ir.IntType(64)
_CALLS = 100  # from Python, which take as long as to prepare native code
_MOST_BYTES = 1 << 26  # of the arrays that recorded calls keep
_LOOKS = 1 << 17  # at a counter before a thread sleeps, about 40 us
_SLEEP = 1e-5  # seconds
_TRIALS = 3  # runs without workers
_DONE = 1 << 62  # more chunks than any call has
_LEAST_SECONDS = 6e-5  # of a run that is worth waking the workers

_libraries: list[Any] = []  # keeps the native code of `_entry`


class Repeatable:
    """Call a function again and again; after some calls, only the kernels that it calls.

    The first argument of the function is an array, which is then copied. The function must call the
    same kernels each time, with the same arrays beside this copy. Between kernels it may change
    arrays with `threads.step`. It is always called if it depends on values, or if its arrays are
    large: then kernels take most of the time.

    Parameters
    ----------
    calls : int
        How often the function is called before its calls of kernels are recorded.

    Attributes
    ----------
    is_recorded : bool
        Whether the kernels are called in place of the function. The result is then always the same
        object.
    size : int
        The bytes of the arrays of a recorded call.
    next : dict
        For the caller: a `Repeatable` by key, for functions that use what this one writes.
    """

    def __init__(self, calls: int = _CALLS) -> None:
        self._left = calls  # before one is recorded
        self.is_recorded = False
        self.size = 0
        self._steps: list[Callable[[], None]] = []
        self._x: Any = None
        self._result: Any = None
        self.next: dict[Any, Repeatable] = {}

    def __reduce__(self) -> Any:
        return Repeatable, (max(self._left, 0),)  # a copy has other arrays

    def __call__(self, function: Callable[..., Any], x: np.ndarray, *rest: Any) -> Any:
        if self.is_recorded:
            self._x[...] = x
            for step in self._steps:
                step()
            return self._result
        self._left -= 1
        if self._left != -1:
            return function(x, *rest)
        self._x = np.array(x, order="C")
        result, tape = threads.taped(function, self._x, *rest)
        self._result = result
        given = [each for call in tape if isinstance(call, tuple) for each in call[2]]
        sizes = {id(each): each.nbytes for each in given if isinstance(each, np.ndarray)}
        self.size = sum(sizes.values())
        if None not in tape and self.size <= _MOST_BYTES:
            for is_python, group in itertools.groupby(tape, callable):
                calls = list(group)
                self._steps += calls if is_python else [Recording(calls).run]
            self.is_recorded = True
        else:
            self._x = self._result = None
            self.size = 0
        return result


class Recording:
    """Calls that `threads.taped` recorded: add them to `calls` before the first `run`."""

    def __init__(self, calls: Iterable[Any] = ()) -> None:
        self.calls: list[tuple[Any, int, tuple[Any, ...], Any]] = list(calls)
        self._lock = threading.RLock()
        self._seconds: list[float] = []  # of the trials

    @functools.cached_property
    def _table(self) -> np.ndarray:
        """A row for each call: entry, number of chunks, and the arguments for each thread."""
        size = max(threads.scratch_size(layout) for *_, layout in self.calls)
        count = min(threads.get_num_threads(), threads.CHUNKS)
        arenas = [threads.aligned((size,), np.uint8) for _ in range(count)]
        self._memory = arenas.copy()  # that the table refers to
        rows = []
        for function, chunks, arguments, layout in self.calls:
            given = [(threads.scratch_in(arena, layout), *arguments) for arena in arenas]
            words = [np.array(_words(each), np.uint64) for each in given]
            self._memory += words
            entry = _entry(function, tuple(map(function.typeof_pyval, (0, *given[0]))))
            rows.append([entry, chunks, *map(_address, words)])
        return np.array(rows, np.int64)

    def run(self) -> None:
        """Repeat the calls, with the workers if that pays and if they are free.

        A second thread waits: both would write to the same scratch arrays, in which kernels keep
        positions in other arrays.
        """
        if not self.calls:
            return
        counters = np.zeros((len(self.calls), 2), np.int64)
        walkers: set[int] = set()  # the threads that are in a walk
        caller, next_column = threading.get_ident(), itertools.count(3).__next__

        def take_column() -> int:  # the caller has the first one, also if a worker begins earlier
            return 2 if threading.get_ident() == caller else next_column()

        walk = functools.partial(self._walk, counters, take_column, walkers)
        with self._lock:
            is_known = len(self._seconds) == _TRIALS
            is_long = is_known and min(self._seconds) > _LEAST_SECONDS
            start = time.perf_counter()
            try:
                threads.together(walk, self._table.shape[1] - 3 if is_long else 0)
            except BaseException:  # e.g. KeyboardInterrupt: let all threads leave first
                counters += _DONE
                while walkers - {caller}:
                    with contextlib.suppress(KeyboardInterrupt):
                        time.sleep(_SLEEP)
                raise
            if not is_known:
                self._seconds.append(time.perf_counter() - start)

    def _walk(self, counters: np.ndarray, take_column: Any, walkers: set[int]) -> None:
        """Go through the calls as one of the threads, each of which has a column of the table."""
        table, call = self._table, 0
        column = take_column()
        walkers.add(threading.get_ident())
        while column < table.shape[1] and call < len(table):
            call = _walk(call, table, counters, column, threads.starts())
            if call < len(table):
                time.sleep(_SLEEP)
        walkers.discard(threading.get_ident())


@kernel
def _walk(call, table, counters, column, starts):
    """Run chunks of the calls from `call` on; return early if another thread takes long.

    The result is the number of the call to continue with. The caller's thread counts the start of
    the run. The other threads wait some time for the next run, because waking them takes longer.
    """
    before = peek(pointer(starts, 0))
    if column == 2:
        increment(pointer(starts, 0))
    while call < table.shape[0]:
        taken = pointer(counters, 2 * call)
        done = pointer(taken, 1)
        chunk = increment(taken)
        while chunk < table[call, 1]:
            enter(table[call, 0], chunk, table[call, column])
            increment(done)
            chunk = increment(taken)
        looks = 0
        while peek(done) < table[call, 1]:
            looks += 1
            if looks > _LOOKS:
                return call
        call += 1
    looks = _LOOKS if column == 2 else 0
    while looks < _LOOKS and peek(pointer(starts, 0)) == before:
        looks += 1
    return call


def _words(value: Any) -> list[int]:
    """Return an argument of a kernel as words for native code; an array as Numba's structure."""
    if isinstance(value, tuple):
        return [word for element in value for word in _words(element)]
    if isinstance(value, np.ndarray):
        return [0, 0, value.size, value.itemsize, _address(value), *value.shape, *value.strides]
    return [int.from_bytes(np.asarray(value).tobytes(), "little")]


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


@functools.cache
def _entry(function: Any, kinds: tuple[Any, ...]) -> int:
    """Return the address of native code that calls a compiled kernel with words as arguments.

    It is a function of the number of the chunk and of the address of the other arguments.
    """
    compiled, context = function.overloads[kinds], function.targetctx
    callee = context.call_conv.get_function_type(types.none, compiled.signature.args)
    name = f"{compiled.fndesc.llvm_func_name}.entry"
    library = context.codegen().create_library(name)
    module = library.create_ir_module(name)
    code = ir.Function(module, ir.FunctionType(ir.VoidType(), [_WORD, _WORD]), name)
    builder = ir.IRBuilder(code.append_basic_block())
    words = builder.inttoptr(code.args[1], _WORD.as_pointer())
    result, error, _, *others = callee.args
    arguments = [builder.alloca(result.pointee), builder.alloca(error.pointee), code.args[0]]
    for number, kind in enumerate(others):
        place = builder.gep(words, [_WORD(number)])
        arguments.append(builder.load(builder.bitcast(place, kind.as_pointer())))
    target = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    builder.call(builder.inttoptr(_WORD(target), callee.as_pointer()), arguments)
    builder.ret_void()
    with global_compiler_lock:
        library.add_ir_module(module)
        library.finalize()
    _libraries.append(library)
    return library.get_pointer_to_function(name)
