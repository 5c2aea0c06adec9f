"""Tests of minicnn.kernels.warp: affine maps of images, against their definition."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernels.arrays import DTYPES, empty, normal, read_only
from tolerances import assert_close, assert_same_bits

from minicnn.kernels.warp import warp


def naive(x, maps, shape):
    """Interpolate by the definition: outside the image the nearest pixel is repeated."""
    n, height, width, channels = x.shape
    y = np.empty((n, *shape, channels), x.dtype)

    def pixel(k, r, s):
        return x[k, min(max(r, 0), height - 1), min(max(s, 0), width - 1)].astype(np.float64)

    for k, i, j in np.ndindex(n, *shape):
        row, column = maps[k] @ (i, j, 1.0)
        top, left = math.floor(row), math.floor(column)
        down, right = row - top, column - left
        y[k, i, j] = (
            (1 - down) * ((1 - right) * pixel(k, top, left) + right * pixel(k, top, left + 1))
            + down * ((1 - right) * pixel(k, top + 1, left) + right * pixel(k, top + 1, left + 1))
        )
    return y


def warped(x, maps, shape):
    y = empty((len(x), *shape, x.shape[3]), x.dtype)
    warp(x, read_only(np.asarray(maps, np.float64)), y)
    return y


SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))


@pytest.mark.usefixtures("threads", "fences")
@given(st.integers(0, 20), SIZES, SIZES, st.integers(1, 5), st.sampled_from(DTYPES),
       st.integers(0, 99))
def test_the_definition(n, size, out, channels, dtype, seed):
    rng = np.random.default_rng(seed)
    x, maps = normal(rng, (n, *size, channels), dtype), rng.normal(size=(n, 2, 3)) * [1, 1, 4]
    y = warped(x, maps, out)
    assert_close(y, naive(x, maps, out), magnitude=max(1, np.abs(x).max(initial=0)))


def test_the_identity_and_whole_pixels_are_exact():
    x = normal(np.random.default_rng(0), (1, 5, 7, 3), "float32")
    identity = [[1, 0, 0], [0, 1, 0]]
    assert_same_bits(warped(x, [identity], (5, 7)), x)
    shifted = warped(x, [[[1, 0, 2], [0, 1, -1]]], (5, 7))
    assert_same_bits(shifted[:, :3, 1:], x[:, 2:, :-1])
    assert_same_bits(shifted[:, 3:, 1:], np.repeat(x[:, -1:, :-1], 2, axis=1))  # the edge
    turned = warped(x, [[[0, 1, 0], [-1, 0, 6]]], (7, 5))
    assert_same_bits(turned[0], np.ascontiguousarray(np.rot90(x[0])))


def test_places_far_outside():
    x = np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1)
    assert warped(x, [[[0, 0, -1e300], [0, 0, -np.inf]]], (1, 1)).item() == 0
    assert warped(x, [[[0, 0, 1e300], [0, 0, np.inf]]], (1, 1)).item() == 5


def test_arrays_of_wrong_shapes_are_refused():
    x, maps = np.zeros((2, 3, 3, 1), np.float32), np.zeros((2, 2, 3))
    for y in (np.zeros((2, 3, 3, 2), np.float32), np.zeros((3, 3, 3, 1), np.float32)):
        with pytest.raises(ValueError, match="`y`"):
            warp(x, maps, y)
    with pytest.raises(ValueError, match="`maps`"):
        warp(x, maps[:1], x.copy())
    with pytest.raises(ValueError, match="`y`"):
        warp(x, maps, np.zeros((2, 3, 3, 1)))
