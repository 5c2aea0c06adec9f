"""Arrays for tests of kernels: read-only inputs, and outputs between guard bytes ("fences").

Kernels do not check bounds. Each output array is therefore placed between two fences, and the
fixture `fences` checks after each test that they are unchanged.
"""

import math

import numpy as np

DTYPES = ("float32", "float64")

# So that Winograd convolution is used for small shapes: see `winograd._LEAST_GAIN`.
LITTLE_GAIN = {(3, 3): 5.5, (5, 5): 3.8}

GARBAGE = 0xFF  # a float of these bytes is NaN, so that reading before writing is detected
FENCE = 0xA5
FENCE_BYTES = 64

_standing = []


def empty(shape, dtype):
    """Return an array that is filled with GARBAGE, between two fences."""
    size = math.prod(np.atleast_1d(shape).tolist()) * np.dtype(dtype).itemsize
    room = np.full(FENCE_BYTES + size + FENCE_BYTES, FENCE, np.uint8)
    _standing.extend([room[:FENCE_BYTES], room[FENCE_BYTES + size :]])
    array = room[FENCE_BYTES : FENCE_BYTES + size]
    array[:] = GARBAGE
    return array.view(dtype).reshape(shape)


def check_fences():
    while _standing:
        assert_stands(_standing.pop())


def assert_stands(fence):
    assert (fence == FENCE).all(), "a kernel wrote outside its array"


def read_only(array):
    array.flags.writeable = False
    return array


def normal(rng, shape, dtype):
    """Return a read-only array of normally distributed numbers."""
    return read_only(rng.standard_normal(shape).astype(dtype))


def integers(rng, shape, dtype):
    """Return integers from -3 to 3. Sums of their products are exact, so any error is a bug."""
    return read_only(rng.integers(-3, 4, shape).astype(dtype))
