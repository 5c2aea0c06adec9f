"""Batch normalization of the rows of a matrix: statistics, scaling with ReLU, and gradients.

x, dy (R, C); for each channel c, with d = x - m, the mean m and the variance v of x[:, c]:

    y  = gamma d / sqrt(v + epsilon) + beta                             = scale d + beta, then ReLU
    dx = scale (g - (mean of g) - d / (v + epsilon) * (mean of g d))    = scale g + slope d + rest

where g = dy, or 0 where ReLU has set y to 0. This is computed again from x, so that y need not be
read. The layer computes the factors of each channel; each function here is one pass over the rows.

Sums are over blocks of rows in the type of x, as differences from about the mean, so that they do
not cancel. They are added in float64: the error does not grow with the number of rows.
"""

import numpy as np

from minicnn.kernels.elementwise import BLOCK, SPAN
from minicnn.kernels.gemm import copy
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    add,
    fma,
    lanes,
    load_some,
    pointer,
    relu,
    store_some,
    where_positive,
)
from minicnn.kernels.threads import CHUNKS, check, parallel_for, share

_WORK = 8  # of an element, in multiply-adds
_TILE = 1 << 12  # elements that are scaled at a time: they stay in the first-level cache


def moments(x: np.ndarray) -> np.ndarray:
    """Return the sums of x and of x^2 over all rows: (2, C), float64."""
    return _sums_of(x, x, np.zeros((3, x.shape[1]), x.dtype), False, False)


def gradient_sums(x: np.ndarray, dy: np.ndarray, factors: np.ndarray, relu: bool) -> np.ndarray:
    """Return the sums of g and of g d over all rows: (2, C), float64.

    `factors` (3, C) are -m, scale and beta.
    """
    return _sums_of(x, dy, factors, relu, True)


def scale(x: np.ndarray, factors: np.ndarray, y: np.ndarray, relu: bool) -> None:
    """Write y = scale d + beta, with ReLU if asked; `factors` (3, C) are -m, scale and beta."""
    _scale_to(x, x, factors, y, relu, False)


def input_gradient(
    x: np.ndarray, dy: np.ndarray, factors: np.ndarray, dx: np.ndarray, relu: bool
) -> None:
    """Write dx = scale g + slope d + rest; `factors` (5, C) are -m, scale, beta, slope and rest."""
    _scale_to(x, dy, factors, dx, relu, True)


def _sums_of(x, dy, factors, relu, back):
    """Run the kernel `_sums`; a chunk is some blocks of rows."""
    check(x=(x, dy.shape), dy=(dy, dy.shape), factors=(factors, (3, x.shape[1])))
    length = -(-_length(x) // BLOCK) * BLOCK
    sums = np.empty((-(-len(x) // length), 2, x.shape[1]))
    parallel_for(_sums, len(sums), (x, dy, factors), (sums,), length, relu, back,
                 work=_WORK * x.size,
                 scratch={"local": (factors.shape, x.dtype), "sums": ((2, x.shape[1]), x.dtype)})
    return sums.sum(axis=0)


def _scale_to(x, dy, factors, y, relu, back):
    """Run the kernel `_scale`."""
    shape = (5 if back else 3, x.shape[1])
    check(x=(x, y.shape), dy=(dy, y.shape), y=(y, y.shape), factors=(factors, shape))
    length = _length(x)
    parallel_for(_scale, -(-len(x) // length), (x, dy, factors), (y,), length, relu, back,
                 work=_WORK * x.size)


def _length(x):
    """Return the number of rows of a chunk."""
    return max(share(len(x), CHUNKS), SPAN // max(x.shape[1], 1))


@kernel
def _sums(chunk, scratch, x, dy, factors, totals, length, masked, back):
    """Add the sums of g and g d over blocks of rows, or else those of x and x^2.

    These are sums of the differences d from a pivot, which is the mean of the block before.
    """
    local, sums = scratch
    begin, channels = chunk * length, x.shape[1]
    end = min(x.shape[0], begin + length)
    totals[chunk] = 0
    copy(pointer(factors, 0), 0, pointer(local, 0), 0, 1, local.size)
    for first in range(begin, end, BLOCK):
        at = first * channels
        count = min(BLOCK, end - first)
        for again in range(2 if first == begin and not back else 1):
            if again:
                _move(local, sums, count)
            _sum_block(pointer(x, at), pointer(dy, at), count, channels, pointer(local, 0),
                       pointer(sums, 0), masked, back)
        for c in range(channels):
            pivot = 0.0 if back else -np.float64(local[0, c])
            totals[chunk, 0, c] += count * pivot + sums[0, c]
            totals[chunk, 1, c] += sums[1, c] + pivot * (2.0 * sums[0, c] + count * pivot)
        if not back:
            _move(local, sums, count)


@helper
def _move(local, sums, count):
    """Move the pivot by the mean difference of a block; `local[0]` is -pivot."""
    for c in range(local.shape[1]):
        local[0, c] -= sums[0, c] / count


@helper
def _sum_block(x, dy, count, channels, factors, sums, masked, back):
    """Write the sums of g and g d, or of d and d^2, over a block of rows."""
    for c in range(0, channels, lanes(x)):
        some = channels - c
        shift = load_some(factors, c, some)
        scale = load_some(factors, channels + c, some)
        beta = load_some(factors, 2 * channels + c, some)
        first = second = load_some(factors, c, 0)  # zeros
        for r in range(count):
            d = add(load_some(x, r * channels + c, some), shift)
            g = load_some(dy, r * channels + c, some) if back else d
            if masked:
                g = where_positive(fma(d, scale, beta), g)
            first = add(first, g)
            second = fma(g, d, second)
        store_some(first, sums, c, some)
        store_some(second, sums, channels + c, some)


@kernel
def _scale(chunk, scratch, x, dy, factors, y, length, masked, back):
    """Write y for a chunk of rows, or dx if `back`, a tile of rows after the other."""
    channels = x.shape[1]
    rows = max(1, _TILE // channels)
    end = min(x.shape[0], (chunk + 1) * length)
    for first in range(chunk * length, end, rows):
        at = first * channels
        _scale_rows(pointer(x, at), pointer(dy, at), min(rows, end - first), channels,
                    pointer(factors, 0), pointer(y, at), masked, back)


@helper
def _scale_rows(x, dy, count, channels, factors, y, masked, back):
    for c in range(0, channels, lanes(x)):
        some = channels - c
        shift = load_some(factors, c, some)
        scale = load_some(factors, channels + c, some)
        beta = load_some(factors, 2 * channels + c, some)
        slope = load_some(pointer(factors, 3 * channels), c, some if back else 0)
        rest = load_some(pointer(factors, 4 * channels), c, some if back else 0)
        for r in range(count):
            d = add(load_some(x, r * channels + c, some), shift)
            value = fma(d, scale, beta)
            if back:
                g = load_some(dy, r * channels + c, some)
                g = where_positive(value, g) if masked else g
                value = fma(g, scale, fma(d, slope, rest))
            elif masked:
                value = relu(value)
            store_some(value, y, r * channels + c, some)
