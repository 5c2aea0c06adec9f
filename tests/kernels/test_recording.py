import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kernels.arrays import DTYPES, normal
from numpy.testing import assert_array_equal
from tolerances import assert_same_bits

from minicnn.kernels import elementwise, recording, threads
from minicnn.kernels.conv import conv
from minicnn.kernels.dense import dense
from minicnn.kernels.recording import Recording
from minicnn.kernels.window import slide

ALONE = recording._TRIALS  # so many runs are without workers


@pytest.fixture(autouse=True)
def always_with_workers(monkeypatch):
    monkeypatch.setattr(recording, "_LEAST_SECONDS", 0)


def recorded(calls):
    """Return a recording of the calls that a function makes."""
    _, tape = threads.taped(calls)
    result = Recording()
    result.calls += tape
    return result


class Example:
    """Calls with all kinds of arguments: arrays, tuples, booleans, integers, floats, scratch."""

    def __init__(self, dtype):
        rng = np.random.default_rng(0)
        window = slide((9, 8), (3, 3), (1, 1), "same")
        self.x = rng.standard_normal((3, 9, 8, 4)).astype(dtype)
        w, b = normal(rng, (3, 3, 4, 40), dtype), normal(rng, (40,), dtype)
        w_, b_ = normal(rng, (40, 130), dtype), normal(rng, (130,), dtype)
        maps, kept, y, dx = (
            np.zeros(shape, dtype) for shape in ((3, 9, 8, 40), (3, 9, 8, 40), *[(216, 130)] * 2)
        )
        packed, filters = dense.packed_kernel(w_), conv.packed_filters(w, window)

        def calls():
            conv.forward(self.x, w, b, maps, window, True, packed=filters)
            elementwise.dropout(maps, kept, 2**63 + 1, 0.5, 7)
            dense.forward(kept.reshape(216, 40), w_, b_, y, False, None, packed)
            elementwise.relu_gradient(y, y, dx, 2.0)

        self.outputs = [maps, kept, y, dx]
        self.calls = calls

    def changed(self, factor):
        """Change the inputs, run the calls from Python, and return and clear the outputs."""
        self.x *= factor
        self.calls()
        expected = [output.copy() for output in self.outputs]
        for output in self.outputs:
            output[...] = np.nan
        return expected

    def check(self, expected):
        for output, values in zip(self.outputs, expected, strict=True):
            assert_same_bits(output, values)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_calls_are_repeated(set_threads, dtype, count):
    set_threads(count)
    example = Example(dtype)
    recording_ = recorded(example.calls)
    for _ in range(ALONE + 5):
        expected = example.changed(-1.5)
        recording_.run()
        example.check(expected)


def test_the_number_of_threads_may_change(set_threads):
    set_threads(2)
    example = Example("float32")
    recording_ = recorded(example.calls)
    for count in (2, 1, 4, 3) * 3:
        set_threads(count)
        expected = example.changed(-1.5)
        recording_.run()
        example.check(expected)


def test_no_call_and_no_chunk():
    nothing = np.empty(0, np.float32)
    for calls in (lambda: None, lambda: elementwise.relu(nothing, nothing)):
        recording_ = recorded(calls)
        recording_.run()
        assert recording_.calls == []


def test_a_worker_that_starts_after_the_end_writes_nothing(set_threads):
    set_threads(2)
    example = Example("float32")
    recording_ = recorded(example.calls)
    counters, columns = np.zeros((4, 2), np.int64), itertools.count(2)
    expected = example.changed(2)
    recording_._walk(counters, columns.__next__, set())
    example.check(expected)
    example.changed(2)
    for _ in range(2):  # the second finds no column left
        recording_._walk(counters, columns.__next__, set())
    assert all(np.isnan(output).all() for output in example.outputs)


@pytest.mark.parametrize("looks", [1, 1 << 40])
def test_a_call_begins_when_the_one_before_has_ended(set_threads, monkeypatch, looks):
    """Another thread has taken all chunks of the first call, and takes its time for the last."""
    monkeypatch.setattr(recording, "_SLEEP", 1e-4)
    set_threads(2)
    example = Example("float32")
    recording_ = recorded(example.calls)
    expected = example.changed(2)
    maps = expected[0]
    counters = np.zeros((4, 2), np.int64)
    chunks = recording_._table[0, 1]
    counters[0] = chunks, chunks - 1
    thread = threading.Thread(target=recording_._walk, args=(counters, lambda: 3, set()))
    thread.start()
    time.sleep(0.3 if looks == 1 else 0.01)  # the compiled loop gives up, or not yet
    assert np.isnan(example.outputs[1]).all()
    example.outputs[0][...] = maps
    counters[0, 1] = chunks
    thread.join()
    example.check(expected)
    assert_array_equal(counters[:, 1], recording_._table[:, 1])


def test_a_second_thread_waits(monkeypatch):
    """Kernels keep positions in scratch arrays: another thread must not write to them."""
    example = Example("float32")
    recording_ = recorded(example.calls)
    expected, running, most = example.changed(2), [], []
    both = threading.Barrier(2)

    def together(walk, count):
        running.append(None)
        time.sleep(0.01)
        walk()
        most.append(len(running))
        running.pop()

    def run():
        both.wait()
        recording_.run()

    monkeypatch.setattr(threads, "together", together)
    others = [threading.Thread(target=run) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert most == [1, 1]
    example.check(expected)


def test_little_work_does_not_wake_the_workers(set_threads, monkeypatch):
    set_threads(2)
    called = []
    monkeypatch.setattr(threads._workers, "call", lambda job, most, *_: called.append(most))
    for least, expected in ((1e9, []), (0, [1])):
        monkeypatch.setattr(recording, "_LEAST_SECONDS", least)
        recording_ = recorded(Example("float32").calls)
        called.clear()
        for _ in range(ALONE + 1):
            recording_.run()
        assert called == expected


def test_threads_that_run_recordings_leave_the_workers_alone(set_threads, monkeypatch):
    set_threads(2)
    called = []
    monkeypatch.setattr(threads._workers, "call", lambda job, most, *_: called.append(job))

    def outer():
        threads.together(lambda: None, 1)  # as another thread at the same time

    def inner():
        pass

    for job in (outer, inner, inner):
        threads.together(job, 1)
    assert called == [outer, inner]  # not for the first after `outer`
    assert "holder" not in vars(threads._workers)


FORK = """
import os, signal
import numpy as np
import minicnn as mc
from minicnn.kernels import recording, threads

threads.set_num_threads(2)
recording._LEAST_SECONDS = 0
model = mc.Sequential([mc.layers.Dense(200, activation="relu"), mc.layers.Dense(3)])
model.build((None, 50), rng=0)
fast, x = model.for_inference(), np.ones((2, 50), np.float32)
expected = fast(x)

def check():
    for _ in range(6):
        assert (fast(x) == expected).all()

check()
child = os.fork()
if child == 0:
    signal.alarm(10)  # ends a deadlock
    check()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
check()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_repeats_calls():
    command = [sys.executable, "-c", FORK]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
