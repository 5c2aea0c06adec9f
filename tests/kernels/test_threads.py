import dis
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from kernels.arrays import normal
from numpy.testing import assert_array_equal
from tolerances import assert_same_bits

from minicnn.kernels import threads as pool
from minicnn.kernels.dense import dense
from minicnn.kernels.threads import parallel_for

ROOT = Path(__file__).parents[2]
SECONDS = 30  # after this time, a test reports a deadlock

# The pool can run any callable, so most tests use Python functions instead of kernels.


def in_time(*functions):
    """Run each function on its own thread, in parallel; fail if one hangs."""
    errors = []

    def run(function):
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f,), daemon=True) for f in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
        assert not thread.is_alive(), "deadlock"
    if errors:
        raise errors[0]


def python(script, **environment):
    """Run a script in a separate process."""
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=2 * SECONDS,
    )


def count_chunks(chunk, scratch, y):
    y[chunk] += 1


def assert_usable():
    """Assert that the pool still runs every chunk, on all its threads in parallel."""
    count = pool.get_num_threads()
    meet, y = threading.Barrier(count), np.zeros(count)

    def kernel(chunk, scratch, y):
        meet.wait(SECONDS)  # each thread runs one chunk
        y[chunk] += 1

    parallel_for(kernel, count, (), (y,))
    assert_array_equal(y, np.ones(count))


# Chunks


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("chunks", [0, 1, 2, 3, 500])
def test_every_chunk_runs_exactly_once(set_threads, count, chunks):
    set_threads(count)
    drawn = []
    parallel_for(lambda chunk, scratch, y: drawn.append(chunk), chunks, (), (np.empty(1),))
    assert sorted(drawn) == list(range(chunks))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_threads_take_part(set_threads, count):
    set_threads(count)
    assert pool.get_num_threads() == count
    assert_usable()


@pytest.mark.parametrize(("work", "threads_"), [(1, 1), (1 << 30, 2)])
def test_the_caller_computes_little_work_alone(monkeypatch, set_threads, work, threads_):
    monkeypatch.undo()  # the other tests use threads for any work
    set_threads(2)
    seen = set()

    def kernel(chunk, scratch, y):
        seen.add(threading.get_ident())
        time.sleep(0.01)  # so that the worker gets a chunk

    parallel_for(kernel, 10, (), (np.empty(1),), work=work)
    assert len(seen) == threads_


def test_arguments_arrive_in_order(set_threads):
    set_threads(2)
    x, y, z = np.arange(3.0), np.zeros(2), np.zeros(4)
    seen = []
    parallel_for(lambda chunk, scratch, *rest: seen.append(rest), 2, (x,), (y, z), (1, 2), 5)
    for x_, y_, z_, *sizes in seen:
        assert_array_equal(x_, x)
        assert y_ is y
        assert z_ is z
        assert sizes == [(1, 2), 5]


# Inputs


def by_bytes(array):
    """Return a copy of the array at an odd address."""
    room = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    room[...] = array
    return room


LAYOUTS = {
    "plain": np.copy,
    "Fortran order": np.asfortranarray,
    "every second element": lambda array: np.repeat(array, 2, axis=1)[:, ::2],
    "backwards": lambda array: array[::-1].copy()[::-1],
    "unaligned": by_bytes,
    "broadcast": lambda array: np.broadcast_to(array[:1], array.shape),
}


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_any_layout_become_the_same(layout, writeable):
    x = LAYOUTS[layout](np.arange(12, dtype=np.float32).reshape(3, 4))
    if layout != "broadcast":
        x.flags.writeable = writeable
    before = x.copy()

    def kernel(chunk, scratch, x_, y):
        assert x_.flags.c_contiguous and x_.flags.aligned and not x_.flags.writeable
        y[...] = x_

    y = np.empty((3, 4), np.float32)
    parallel_for(kernel, 1, (x,), (y,))
    assert_array_equal(y, before)
    assert_array_equal(x, before)
    assert x.flags.writeable == (writeable and layout != "broadcast")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_compiles_a_kernel_again(layout):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    dense.forward(x, x.T.copy(), np.zeros(3, np.float32), np.empty((3, 3), np.float32))
    before = len(dense._forward.signatures)
    x, w, y = LAYOUTS[layout](x), LAYOUTS[layout](x.T), np.empty((3, 3), np.float32)
    dense.forward(x, w, np.zeros(3, np.float32), y)
    assert_array_equal(y, x @ w)
    assert len(dense._forward.signatures) == before


# Errors and interrupts


@pytest.mark.parametrize("where", ["caller", "worker"])
def test_an_error_in_a_chunk_reaches_the_caller(set_threads, where):
    set_threads(2)
    meet = threading.Barrier(2)

    def kernel(chunk, scratch, y):
        meet.wait(SECONDS)
        if (threading.current_thread() is threading.main_thread()) == (where == "caller"):
            raise ArithmeticError(f"on the {where}")

    for _ in range(2):
        with pytest.raises(ArithmeticError, match=f"on the {where}"):
            parallel_for(kernel, 2, (), (np.empty(1),))
        assert_usable()


@pytest.mark.parametrize("chunks", [1, 5])
def test_an_error_passes_where_the_caller_is_alone(set_threads, chunks):
    set_threads(1)

    def kernel(chunk, scratch, y):
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        parallel_for(kernel, chunks, (), (np.empty(1),))
    assert_usable()


def test_after_an_error_no_chunk_is_running_and_none_is_begun(set_threads):
    set_threads(2)
    begun, ended = [], []

    def kernel(chunk, scratch, y):
        begun.append(chunk)
        time.sleep(0.002)
        ended.append(chunk)
        if threading.current_thread() is threading.main_thread():
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        parallel_for(kernel, 1000, (), (np.empty(1),))
    assert sorted(begun) == sorted(ended)  # no worker uses the arrays any more
    assert len(begun) < 500


def test_an_interrupt_in_a_chunk_leaves_a_usable_pool(set_threads):
    set_threads(2)

    def kernel(chunk, scratch, y):
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.001)

    with pytest.raises(KeyboardInterrupt):
        parallel_for(kernel, 1000, (), (np.empty(1),))
    assert_usable()


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
@pytest.mark.parametrize("count", [1, 3])
def test_interrupts_while_the_caller_waits_leave_a_usable_pool(set_threads, count):
    set_threads(2)
    meet, release, ended = threading.Barrier(2), threading.Event(), []

    def kernel(chunk, scratch, y):
        meet.wait(SECONDS)
        if threading.current_thread() is not threading.main_thread():
            for _ in range(count):
                time.sleep(0.05)  # the caller has finished its chunk and waits for this one
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            release.wait(SECONDS)
            ended.append(chunk)

    timer = threading.Timer(0.3, release.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        parallel_for(kernel, 2, (), (np.empty(1),))
    assert len(ended) == 1  # no worker uses the array any more
    timer.cancel()
    assert_usable()


class InterruptAt:
    """A trace function that raises at a place in `files` where CPython checks for signals.

    These are function entry, loop back-edges, and the instruction after a call.
    """

    files = (pool.__file__,)

    def __init__(self, number):
        self.left = number  # places to pass before the one that raises
        self.behind_call = {}  # by frame

    def __call__(self, frame, event, argument):
        if frame.f_code.co_filename not in self.files:
            return None
        frame.f_trace_opcodes = True
        if event == "call":
            self.look()
        elif event == "opcode":
            name = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if self.behind_call.get(frame) or name.startswith("JUMP_BACKWARD"):
                self.look()
            self.behind_call[frame] = name.startswith("CALL")
        return self

    def look(self):
        if self.left == 0:
            self.act()
        self.left -= 1

    def act(self):
        raise KeyboardInterrupt

    def interrupts(self, function):
        """Call a function; return False if it has fewer places."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False


def interrupted(number):
    """Run a kernel and interrupt it at a place; return False if there are fewer places."""
    begun, ended = [], []

    def kernel(chunk, scratch, y):
        begun.append(chunk)
        time.sleep(0.001)
        ended.append(chunk)

    if not InterruptAt(number).interrupts(lambda: parallel_for(kernel, 4, (), (np.zeros(2),))):
        return False
    assert sorted(begun) == sorted(ended)  # no worker uses the arrays any more
    return True


def test_an_interrupt_of_a_job_at_any_place_leaves_a_usable_pool(set_threads):
    set_threads(2)

    numbers = itertools.count()
    while InterruptAt(next(numbers)).interrupts(lambda: pool.together(time.time, 1)):
        assert "holder" not in vars(pool._workers)
        assert_usable()
    assert next(numbers) > 5


@pytest.mark.parametrize("count", [1, 3])
def test_an_interrupt_at_any_place_leaves_a_usable_pool(set_threads, count):
    """If the workers were not released, they would never be used again, unnoticed."""
    set_threads(1)
    set_threads(count)  # no worker has started yet
    places = itertools.count()

    def everywhere():
        while interrupted(next(places)):
            assert_usable()

    in_time(everywhere)
    assert next(places) > 10 * count


def test_jobs_do_not_wait_in_line_for_a_worker_that_is_late(set_threads):
    """It would run them one after the other, and never come to help with the newest."""
    set_threads(2)
    release, ran = threading.Event(), []
    busy = threading.Event()

    def block():
        if threading.current_thread() is not threading.main_thread():
            busy.set()
            release.wait(SECONDS)

    pool.together(block, 1)
    assert busy.wait(SECONDS)
    for number in range(5):
        pool.together(lambda number=number: ran.append((number, threading.get_ident())), 1)
    release.set()
    assert_usable()  # a job of this kind does wait
    own = threading.get_ident()
    assert [number for number, thread in ran if thread == own] == [0, 1, 2, 3, 4]
    assert [number for number, thread in ran if thread != own] == [0]


class SetThreadsAt(InterruptAt):
    """Set the number of threads at a place, as a signal handler may do."""

    def act(self):
        pool.set_num_threads(3)


def test_a_signal_handler_may_set_the_number_of_threads_at_any_place(set_threads):
    def run(number):
        set_threads(2)  # no worker has started yet
        y = np.zeros(4)
        handler = SetThreadsAt(number)

        def job():
            parallel_for(count_chunks, 4, (), (y,))
            pool.set_num_threads(4)

        handler.interrupts(job)
        assert_array_equal(y, np.ones(4))
        return handler.left < 0

    def everywhere():
        for number in itertools.count():
            if not run(number):
                break
        assert number > 20

    in_time(everywhere)
    assert_usable()
    set_threads(1)
    deadline = time.monotonic() + SECONDS
    while any(thread.name.startswith("minicnn-") for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "threads are left over"
        time.sleep(0.01)


def test_workers_that_are_busy_are_not_waited_for(set_threads):
    set_threads(2)

    def kernel(chunk, scratch, y):
        pool.set_num_threads(3)
        y[chunk] += 1

    y = np.zeros(4)
    in_time(lambda: parallel_for(kernel, 4, (), (y,)))
    assert_array_equal(y, np.ones(4))


# Without threads


@pytest.mark.parametrize("possible", [0, 2])
def test_where_no_thread_can_be_started_the_caller_computes(
    set_threads, monkeypatch, caplog, possible
):
    rng = np.random.default_rng(0)
    x, w, b = (normal(rng, shape, "float32") for shape in [(40, 90), (90, 300), (300,)])
    results = np.empty((2, 40, 300), np.float32)
    dense.forward(x, w, b, results[0])
    start, started = threading.Thread.start, []

    def start_if_possible(thread):
        if len(started) == possible:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    pool._say_once_that_threads_are_missing.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", start_if_possible)
    set_threads(4)
    for _ in range(3):
        dense.forward(x, w, b, results[1])
    assert_same_bits(*results)
    assert pool.get_num_threads() == 1 + possible
    [message] = caplog.messages
    assert "cannot be started (can't start new thread)" in message


# Nested and concurrent calls


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_chunk_may_call_parallel_for(set_threads, count):
    set_threads(count)
    y = np.zeros((6, 5))

    def outer(chunk, scratch, y):
        parallel_for(count_chunks, 5, (), (y[chunk],))

    in_time(lambda: parallel_for(outer, 6, (), (y,)))
    assert_array_equal(y, np.ones((6, 5)))
    assert_usable()


@pytest.mark.parametrize("count", [1, 2, 4])
def test_threads_may_call_kernels_at_once(set_threads, count):
    set_threads(count)
    rng = np.random.default_rng(0)
    x, w, b = (normal(rng, shape, "float32") for shape in [(40, 90), (90, 300), (300,)])

    def forward():
        y = np.empty((40, 300), np.float32)
        dense.forward(x, w, b, y)
        return y

    expected, results = forward(), []
    in_time(*[lambda: results.extend(forward() for _ in range(20))] * 6)
    assert len(results) == 120
    assert_same_bits(expected, *results)


def test_the_number_of_threads_may_change_while_kernels_run(set_threads):
    def work():
        for _ in range(200):
            y = np.zeros(20)
            parallel_for(count_chunks, 20, (), (y,))
            assert_array_equal(y, np.ones(20))

    def change():
        for count in [1, 2, 3, 4] * 10:
            set_threads(count)

    in_time(work, work, change)
    assert_usable()


# Fork

FORK = """
import os, signal, threading, time
import numpy as np
from minicnn.kernels import elementwise
from minicnn.kernels import threads as pool

x = np.linspace(-1, 1, 200_000, dtype=np.float32)  # seven chunks

def relu():
    y = np.empty_like(x)
    elementwise.relu(x, y)
    return y

def in_child(function):
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # ends a deadlock
        function()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status

def check():
    for _ in range(3):
        assert (relu() == expected).all()

def set_threads():
    for count in (1, 2):
        pool.set_num_threads(count)
        check()

def while_busy(function):
    started, release = threading.Event(), threading.Event()

    def kernel(chunk, scratch, y):
        started.set()
        release.wait()

    busy = threading.Thread(target=pool.parallel_for, args=(kernel, 2, (), (x,)))
    busy.start()
    started.wait()
    try:
        function()
    finally:
        release.set()
        busy.join()

def while_another_sets():
    threading.Thread(target=set_threads).start()
    time.sleep(0.2)  # now it waits for the workers
    in_child(set_threads)

pool.set_num_threads(2)
expected = relu()  # the worker is awake
"""

FORKS = {
    "idle": "in_child(check); in_child(set_threads); in_child(lambda: in_child(check))",
    "busy": "while_busy(lambda: in_child(check))",
    "busy, and the child sets its threads": "while_busy(lambda: in_child(set_threads))",
    "another thread sets them": "while_busy(while_another_sets)",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("how", FORKS)
def test_a_forked_child_computes(how):
    run = python(FORK + FORKS[how] + "\ncheck()")
    assert run.returncode == 0, run.stderr


# The number of threads


@pytest.mark.parametrize("count", [0, -1, 1.5, 2.0, "2", None, True, 1025, 10**12])
def test_the_number_of_threads_must_be_an_integer(count):
    before = pool.get_num_threads()
    with pytest.raises(ValueError, match=f"`n` must be an integer from 1 to 1024, got {count!r}"):
        pool.set_num_threads(count)
    assert pool.get_num_threads() == before


def test_the_number_of_threads_may_be_of_numpy(set_threads):
    set_threads(np.int64(3))
    assert pool.get_num_threads() == 3
    assert type(pool.get_num_threads()) is int


def test_threads_that_are_not_needed_end(set_threads):
    def workers():
        return [thread for thread in threading.enumerate() if thread.name.startswith("minicnn-")]

    set_threads(4)
    assert_usable()
    started = workers()
    assert len(started) >= 3
    set_threads(1)
    for thread in started:
        thread.join(SECONDS)
    assert workers() == []


REPORT = "from minicnn.kernels import threads; print(threads.get_num_threads())"


def test_the_environment_sets_the_number_of_threads():
    assert python(REPORT, MINICNN_NUM_THREADS="3").stdout == "3\n"


def test_a_bad_environment_says_so():
    run = python(REPORT, MINICNN_NUM_THREADS="many")
    assert run.returncode != 0
    assert "MINICNN_NUM_THREADS must be an integer from 1 to 1024, got 'many'" in run.stderr


@pytest.mark.parametrize("text", ["0", "-1", "1.5", " ", "two", "1_0"])
def test_bad_environments(monkeypatch, text):
    monkeypatch.setenv("MINICNN_NUM_THREADS", text)
    with pytest.raises(ValueError, match="MINICNN_NUM_THREADS must be an integer from 1 to 1024"):
        pool._threads_from_environment()


@pytest.mark.parametrize("text", [None, ""])
def test_without_the_variable_there_is_a_thread_for_each_cpu(monkeypatch, text):
    monkeypatch.delenv("MINICNN_NUM_THREADS", raising=False)
    if text is not None:
        monkeypatch.setenv("MINICNN_NUM_THREADS", text)
    assert 1 <= pool._threads_from_environment() <= os.cpu_count()


# Memory


def test_sleeping_workers_keep_no_arrays_alive(set_threads):
    set_threads(2)
    meet = threading.Barrier(2)
    x, y = np.zeros(3), np.zeros(3)
    parallel_for(lambda *_: meet.wait(SECONDS), 2, (x,), (y,))
    alive = [weakref.ref(x), weakref.ref(y)]
    del x, y
    until = time.monotonic() + SECONDS  # the worker may not be waiting yet
    while any(array() is not None for array in alive) and time.monotonic() < until:
        time.sleep(0.001)
    assert [array() for array in alive] == [None, None]


LAYOUT = {
    "numbers": ((3, 7), np.float64), "codes": ((5,), np.uint8), "nothing": ((0, 2), np.float32),
    "offsets": ((100_003,), np.int32),
}


def test_scratch_is_private_to_a_thread_and_aligned(set_threads):
    set_threads(4)
    meet, lent = threading.Barrier(4), []

    def kernel(chunk, scratch, y):
        lent.append(scratch)
        meet.wait(SECONDS)
        for i, array in enumerate(scratch):
            array[...] = 4 * chunk + i
        meet.wait(SECONDS)
        y[chunk] = all(np.all(array == 4 * chunk + i) for i, array in enumerate(scratch))

    y = np.zeros(4)
    parallel_for(kernel, 4, (), (y,), scratch=LAYOUT)
    assert_array_equal(y, np.ones(4))
    for scratch in lent:
        assert [(array.shape, array.dtype) for array in scratch] == list(LAYOUT.values())
        assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in scratch)


def test_scratch_grows_by_any_number(set_threads):
    set_threads(1)
    lengths = []
    for elements in range(1_000_000, 1_000_040):
        parallel_for(
            lambda chunk, scratch, y: lengths.append(len(scratch[0])),
            1,
            (),
            (np.empty(1),),
            scratch={"numbers": ((elements,), np.float64)},
        )
    assert lengths == list(range(1_000_000, 1_000_040))


def test_scratch_is_kept_between_calls(set_threads):
    set_threads(1)
    places = []

    def kernel(chunk, scratch, y):
        places.append(scratch[0].ctypes.data)

    for elements in (5000, 5000, 100):
        parallel_for(
            kernel, 1, (), (np.empty(1),), scratch={"numbers": ((elements,), np.float32)}
        )
    assert len(set(places)) == 1


def test_at_the_end_of_the_program_no_thread_is_started():
    """In a __del__ at interpreter shutdown, the caller runs all chunks and waits for no thread."""
    run = python("""
import numpy as np
from minicnn.kernels import threads as pool

def count(chunk, scratch, y):
    y[chunk] += 1

class Last:
    def __del__(self, pool=pool, count=count, y=np.zeros(9)):
        pool.parallel_for(count, 9, (), [y])
        print(y.tolist())

pool.set_num_threads(3)
last = Last()
""")
    assert (run.returncode, run.stdout, run.stderr) == (0, f"{[1.0] * 9}\n", "")
