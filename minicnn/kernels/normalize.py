"""Batch normalization of the rows of a matrix: statistics, scaling with ReLU, and gradients.

x, dy (R, C); for each channel c, with d = x - m, the mean m and the variance v of x[:, c]:

    y  = gamma d / sqrt(v + epsilon) + beta                             = scale d + beta, then ReLU
    dx = scale (g - (mean of g) - d / (v + epsilon) * (mean of g d))    = scale g + slope d + rest

where g = dy, or 0 where ReLU has set y to 0. This is computed again from x, so that y need not be
read. The factors of each channel are computed between the passes over the rows, also by kernels,
so that layers can be repeated without Python (`recording`).

Sums are over blocks of rows in the type of x, as differences from about the mean, so that they do
not cancel. They are added in float64: the error does not grow with the number of rows. There are
three of each channel: of x, x^2 and 1, or of g, g d and 1.
"""

from collections.abc import Sequence

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
_MANY = 2**24  # updates: the weight of the next one does not change any more


def moments(x: np.ndarray) -> np.ndarray:
    """Return the sums of x, x^2 and 1 over the rows of each chunk: (chunks, 3, C), float64."""
    return gradient_sums(x, x, np.zeros((3, x.shape[1]), x.dtype), False, False)


def gradient_sums(
    x: np.ndarray, dy: np.ndarray, factors: np.ndarray, relu: bool, back: bool = True
) -> np.ndarray:
    """Return the sums of g, g d and 1 over the rows of each chunk: (chunks, 3, C), float64.

    `factors` (3, C) are -m, scale and beta. Without `back`, see `moments`.
    """
    check(x=(x, dy.shape), dy=(dy, dy.shape), factors=(factors, (3, x.shape[1])))
    length = -(-_length(x) // BLOCK) * BLOCK
    sums = np.empty((-(-len(x) // length), 3, x.shape[1]))
    parallel_for(_sums, len(sums), (x, dy, factors), (sums,), length, relu, back,
                 work=_WORK * x.size,
                 scratch={"local": (factors.shape, x.dtype), "sums": ((2, x.shape[1]), x.dtype)})
    return sums


def factors(
    sums: np.ndarray, averages: Sequence[np.ndarray], weights: Sequence[np.ndarray],
    moved: Sequence[np.ndarray], momentum: float, epsilon: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the factors (5, C) -m, scale and beta, and two to be filled by `finish_factors`.

    The second result is 1 / sqrt(v + epsilon) in float64. m and v are the `averages`, or those of
    the batch if `sums`, the result of `moments`, has chunks. `weights` are gamma and beta. Averages
    closer to the batch, and the number of updates plus one, are written to `moved`.
    """
    channels = len(weights[0])
    result, inverse = np.empty((5, channels), weights[0].dtype), np.empty(channels)
    parallel_for(_factors, 1, (sums, *averages, *weights), (*moved, result, inverse), momentum,
                 epsilon)
    return result, inverse


def finish_factors(
    sums: np.ndarray, totals: np.ndarray, batch: np.ndarray, inverse: np.ndarray,
    factors: np.ndarray, dgamma: np.ndarray, dbeta: np.ndarray, weight: float,
) -> None:
    """Write the factors slope and rest, and the gradients of gamma and beta.

    `sums` are those of `gradient_sums`, `totals` the same of all processes, and `batch` those of
    `moments`, without chunks if the statistics do not depend on x. `weight` multiplies the means of
    g and g d.
    """
    check(factors=(factors, (5, len(inverse))), dgamma=(dgamma, inverse.shape),
          dbeta=(dbeta, inverse.shape))
    parallel_for(_finish_factors, 1, (sums, totals, batch, inverse), (factors, dgamma, dbeta),
                 weight)


def scale(x: np.ndarray, factors: np.ndarray, y: np.ndarray, relu: bool) -> None:
    """Write y = scale d + beta, with ReLU if asked; `factors` (3, C) are -m, scale and beta."""
    input_gradient(x, x, factors, y, relu, False)


def input_gradient(
    x: np.ndarray, dy: np.ndarray, factors: np.ndarray, dx: np.ndarray, relu: bool,
    back: bool = True,
) -> None:
    """Write dx = scale g + slope d + rest; `factors` (5, C) are -m, scale, beta, slope and rest.

    Without `back`, see `scale`.
    """
    shape = (5 if back else 3, x.shape[1])
    check(x=(x, dx.shape), dy=(dy, dx.shape), dx=(dx, dx.shape), factors=(factors, shape))
    length = _length(x)
    parallel_for(_scale, -(-len(x) // length), (x, dy, factors), (dx,), length, relu, back,
                 work=_WORK * x.size)


def _length(x):
    """Return the number of rows of a chunk."""
    return max(share(len(x), CHUNKS), SPAN // max(x.shape[1], 1))


@kernel
def _sums(chunk, scratch, x, dy, factors, totals, length, masked, back):
    """Write the sums of g, g d and 1 over blocks of rows, or else those of x, x^2 and 1.

    These are sums of the differences d from a pivot, which is the mean of the block before.
    """
    local, sums = scratch
    begin, channels = chunk * length, x.shape[1]
    end = min(x.shape[0], begin + length)
    totals[chunk, :2] = 0
    totals[chunk, 2] = end - begin
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


@helper
def _total(sums, row, c):
    """Return a sum of a channel over all chunks."""
    total = 0.0
    for chunk in range(sums.shape[0]):
        total += sums[chunk, row, c]
    return total


@kernel
def _factors(chunk, scratch, sums, mean, variance, gamma, beta, moved_mean, moved_variance, updates,
             factors, inverse, momentum, epsilon):
    is_start = True
    for c in range(mean.size):
        is_start = is_start and mean[c] == 0 and variance[c] == 1
    # Averages that were set are no start values, which do not count.
    done = np.float64(updates[()] if is_start or updates[()] > 0 else _MANY)
    updates[()] = min(done + 1.0, _MANY)
    weight = (1.0 - momentum) / (1.0 - momentum ** (done + 1.0))
    for c in range(mean.size):
        m = np.float64(mean[c])
        v = np.float64(variance[c])
        if sums.shape[0] > 0:
            count = _total(sums, 2, c)
            m = _total(sums, 0, c) / count
            v = max(_total(sums, 1, c) / count - m * m, 0.0)
        moved_mean[c] = mean[c] + weight * (m - mean[c])
        moved_variance[c] = variance[c] + weight * (v - variance[c])
        inverse[c] = 1.0 / np.sqrt(v + epsilon)
        factors[0, c] = -m
        factors[1, c] = gamma[c] * inverse[c]
        factors[2, c] = beta[c]


@kernel
def _finish_factors(chunk, scratch, sums, totals, batch, inverse, factors, dgamma, dbeta, weight):
    for c in range(inverse.size):
        dbeta[c] = _total(sums, 0, c)
        dgamma[c] = _total(sums, 1, c) * inverse[c]
        count = _total(batch, 2, c)
        scale = -factors[1, c] * weight / count if count > 0 else 0.0
        factors[3, c] = scale * inverse[c] * inverse[c] * _total(totals, 1, c)
        factors[4, c] = scale * _total(totals, 0, c)


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
