"""Fixtures for tests of kernels: poisoned scratch, fences, runs with 1, 2 and 4 threads."""

import math
import threading

import numpy as np
import pytest
from kernels.arrays import (
    FENCE,
    FENCE_BYTES,
    GARBAGE,
    LITTLE_GAIN,
    assert_stands,
    check_fences,
)

from minicnn.kernels import threads
from minicnn.kernels.conv import winograd
from minicnn.kernels.dense import dense


@pytest.fixture(autouse=True)
def fences(monkeypatch):
    """Fill scratch arrays with GARBAGE, put fences after them, and check all fences."""
    lend = threads._scratch
    behind = {}  # by thread: the fences after its latest scratch arrays

    def lend_fenced(layout):
        for fence in behind.pop(threading.get_ident(), ()):
            assert_stands(fence)
        sizes = [np.empty(0, dtype).itemsize * math.prod(shape) for shape, dtype in layout.values()]
        rooms = lend({n: ((size + FENCE_BYTES,), np.uint8) for n, size in enumerate(sizes)})
        for room, size in zip(rooms, sizes, strict=True):
            assert room.ctypes.data % 64 == 0
            room[:size], room[size:] = GARBAGE, FENCE
        behind[threading.get_ident()] = [room[n:] for room, n in zip(rooms, sizes, strict=True)]
        return tuple(
            room[:size].view(dtype).reshape(shape)
            for room, size, (shape, dtype) in zip(rooms, sizes, layout.values(), strict=True)
        )

    monkeypatch.setattr(threads, "_scratch", lend_fenced)
    yield
    for fences_ in list(behind.values()):  # a copy: a worker that wakes up late adds its own
        for fence in fences_:
            assert_stands(fence)
    check_fences()


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch):
    """Use Winograd convolution and lists for small shapes, and threads for little work."""
    monkeypatch.setattr(winograd, "_LEAST_GAIN", LITTLE_GAIN)
    monkeypatch.setattr(dense, "_LEAST_LISTED", 0)
    monkeypatch.setattr(threads, "_LEAST_WORK", 0)


@pytest.fixture
def set_threads():
    """Set the number of threads for one test."""
    before = threads.get_num_threads()
    yield threads.set_num_threads
    threads.set_num_threads(before)


@pytest.fixture
def by_threads(set_threads):
    """Return a function's results with 1, 2 and 4 threads."""

    def run(function):
        results = []
        for count in (1, 2, 4):
            set_threads(count)
            results.append(function())
        return results

    return run
