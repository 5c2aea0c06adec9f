"""What every test of a kernel shares: poisoned scratch, fences, and runs by 1, 2 and 4 threads."""

import threading

import numpy as np
import pytest
from kernels.arrays import FENCE, FENCE_BYTES, GARBAGE, assert_stands, check_fences

from minicnn.kernels import pool


@pytest.fixture(autouse=True)
def fences(monkeypatch):
    """Lend scratch that is full of garbage and ends at a fence; see that all fences stand."""
    lend = pool._scratch
    behind = {}  # by thread: the fence behind the scratch that it was lent last

    def lend_fenced(elements, dtype):
        assert_stands(behind.pop(threading.get_ident(), np.array([FENCE])))
        scratch = lend(elements + FENCE_BYTES // dtype.itemsize, dtype)
        assert scratch.nbytes == elements * dtype.itemsize + FENCE_BYTES
        scratch.view(np.uint8)[...] = GARBAGE
        behind[threading.get_ident()] = fence = scratch[elements:].view(np.uint8)
        fence[...] = FENCE
        return scratch[:elements]

    monkeypatch.setattr(pool, "_scratch", lend_fenced)
    yield
    for fence in behind.values():
        assert_stands(fence)
    check_fences()


@pytest.fixture
def set_threads():
    """Set the number of threads for one test."""
    before = pool.get_num_threads()
    yield pool.set_num_threads
    pool.set_num_threads(before)


@pytest.fixture
def by_threads(set_threads):
    """Return what a function returns with 1, 2 and 4 threads."""

    def run(function):
        results = []
        for count in (1, 2, 4):
            set_threads(count)
            results.append(function())
        return results

    return run
