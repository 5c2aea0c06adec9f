"""Elementwise kernels: sum, product, activations, dropout; also transposes and sums of rows."""

import functools
import math
from typing import Any

import numpy as np

from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import lanes, number_fma, pointer, power_of_two, transpose
from minicnn.kernels.threads import aligned, parallel_for, share

SPAN = 1 << 17  # elements per chunk, whose computation takes as long as to wake a thread
_COLUMNS = 1 << 13  # that one chunk sums
BLOCK = 128  # terms per partial sum; the float32 rounding error of a longer one exceeds 2e-6
_DENSITY = 1 / math.sqrt(2 * math.pi)
# For z >= 0 and t = 1 / (1 + z / 4), erfc(z / sqrt(2)) / 2 is exp(-z^2 / 2) times a polynomial of
# t. Its coefficients, from the highest power to that of t, are a fit at Chebyshev points with a
# relative error of 4e-8 (float32) or 6e-16.
_TAIL_TERMS = {
    np.dtype(np.float32): tuple(map(np.float32, (
        0.02006712694, -0.0820437608, 0.0975669293, -0.03349240999, 0.06461994986, 0.05869830752,
        0.08164917488, 0.09346256973, 0.09973655088, 0.09973556604,
    ))),
    np.dtype(np.float64): (
        0.0003132406787726121, -0.005370007761471452, 0.039476632909220724, -0.16952243216666416,
        0.4807852902820685, -0.9575776497158862, 1.3851689913437077, -1.486739490005359,
        1.2097492679211976, -0.7687890836750976, 0.38895627969753194, -0.15078786457360835,
        0.047687279036871894, -0.017044219922536026, -0.004268780119283862, -0.003415302709333344,
        0.0072246895272808686, 0.023396339387922866, 0.0432449328495216, 0.06350349892868172,
        0.08103515091944231, 0.09350209696628875, 0.09973557010037278, 0.09973557010035816,
    ),
}
_FAR = 40.0  # z from which exp(-z^2 / 2) is 0
_MORE = 64  # 2^n is computed as 2^(n + _MORE) 2^-_MORE, since it may be subnormal
FEW = 16  # terms per partial sum if the terms are themselves sums of blocks


def spans(size: int) -> int:
    """Return the number of chunks of an elementwise kernel."""
    return -(-size // SPAN)


@helper
def elements(chunk, size):
    """Return the numbers of the elements of a chunk.

    They are unsigned: otherwise each index would be checked for being negative.
    """
    return range(np.uint64(chunk * SPAN), np.uint64(min(size, (chunk + 1) * SPAN)))


def add(a: np.ndarray, b: np.ndarray, y: np.ndarray, relu: bool = False) -> None:
    """Write y = a + b, or max(a + b, 0). NaN stays NaN."""
    parallel_for(_add, spans(y.size), (a.reshape(-1), b.reshape(-1)), (y.reshape(-1),), relu)


def axis_to_end(x: np.ndarray, axis: int) -> np.ndarray:
    """Return x with an axis moved to the end, in C order."""
    axis %= x.ndim
    return _exchanged(x, axis, axis + 1)


def axis_from_end(x: np.ndarray, axis: int) -> np.ndarray:
    """Return x with the last axis moved to `axis`, in C order."""
    return _exchanged(x, axis % x.ndim, x.ndim - 1)


def _exchanged(x: np.ndarray, first: int, middle: int) -> np.ndarray:
    """Return x with the axes from `middle` on before those from `first` on, in C order."""
    before, left, right = x.shape[:first], x.shape[first:middle], x.shape[middle:]
    matrices, rows, columns = map(math.prod, (before, left, right))
    if min(rows, columns) == 1:
        return np.ascontiguousarray(x).reshape(*before, *right, *left)
    y = aligned((*before, *right, *left), x.dtype)
    length = max(1, SPAN // max(rows * columns, 1))  # matrices of a chunk
    parallel_for(_transpose, -(-matrices // length), (x.reshape(matrices, rows, columns),),
                 (y.reshape(matrices, columns, rows),), length)
    return y


def relu(x: np.ndarray, y: np.ndarray, slope: float = 0.0) -> None:
    """Write y = slope x where x <= 0, else x. NaN stays NaN."""
    relu_gradient(x, x, y, slope=slope)


def relu_gradient(
    dy: np.ndarray, y: np.ndarray, dx: np.ndarray, scale: float = 1.0, slope: float = 0.0
) -> None:
    """Write dx = scale dy where y is positive or NaN, else slope dy."""
    parallel_for(_relu_gradient, spans(y.size), (dy.reshape(-1), y.reshape(-1)),
                 (dx.reshape(-1),), *map(dx.dtype.type, (scale, slope)))


def squash(
    x: np.ndarray, y: np.ndarray, dy: np.ndarray | None = None, is_tanh: bool = False
) -> None:
    """Write y = 1 / (1 + exp(-x)) or y = tanh(x); with dy, y = dy times the slope at x."""
    parallel_for(_squash, spans(x.size), (x.reshape(-1), (x if dy is None else dy).reshape(-1)),
                 (y.reshape(-1),), *_series(x.dtype), is_tanh, dy is not None)


def gelu(x: np.ndarray, y: np.ndarray, dy: np.ndarray | None = None) -> None:
    """Write y = x P(x); with dy, the gradient y = dy (P(x) + x P'(x)).

    P(x) = erfc(-x / sqrt(2)) / 2 is the standard normal distribution function. For negative x it
    is computed in this form, because 1 + erf(x / sqrt(2)) would cancel.
    """
    parallel_for(_gelu, spans(x.size), (x.reshape(-1), (x if dy is None else dy).reshape(-1)),
                 (y.reshape(-1),), *_series(x.dtype), _TAIL_TERMS[x.dtype], dy is not None)


def softmax(x: np.ndarray, y: np.ndarray, is_log: bool = False) -> None:
    """Write y = exp(x) / sum exp(x) along the last axis, or its logarithm if `is_log`."""
    rows = x.reshape(-1, max(x.shape[-1], 1))
    length = max(1, SPAN // 8 // rows.shape[1])  # exp takes as long as a few sums
    parallel_for(_softmax, -(-len(rows) // length), (rows,), (y.reshape(rows.shape),),
                 *_series(x.dtype), length, is_log)


@functools.cache
def _series(dtype: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the constants of `_exponential` for a type, and the coefficients of its series.

    The last constant cuts a number into two halves of its bits: T. Dekker, "A floating-point
    technique for extending the available precision", Numerische Mathematik 18, 1971.
    """
    info = np.finfo(dtype)
    log2 = math.log(2)
    high = math.floor(log2 * 2.0**12) / 2.0**12  # n times this is exact
    low = log2 - high + 2.3190468138462996e-17  # log 2 - log2, its rounding error
    constants = (
        (info.minexp - 1 - _MORE) * log2, 1 / log2, 1.5 * 2.0**info.nmant + _MORE, high, low,
        2.0**-_MORE, 2.0 ** math.ceil(info.nmant / 2 + 0.5) + 1,
    )
    terms = [1 / math.factorial(n) for n in range(7 if info.bits == 32 else 13, 0, -1)]
    return tuple(np.array(constants, dtype)), tuple(np.array(terms, dtype))


def dropout(x: np.ndarray, y: np.ndarray, key: int, rate: float, first_row: int) -> None:
    """Write y = x / (1 - rate) for elements that are kept, and 0 for dropped ones.

    A hash of (key, first_row + r, e) decides whether element e of row r is kept. The mask of a
    row therefore does not depend on the threads or on how the batch is split. The map is linear
    and self-adjoint: the same call computes dx from dy.
    """
    shape = (len(x), math.prod(x.shape[1:]))
    length = share(SPAN, max(shape[1], 1))
    parallel_for(_dropout, -(-shape[0] // length), (x.reshape(shape),), (y.reshape(shape),),
                 *mask_of(key, rate, x.dtype), first_row, length)


def mask_of(key: int, rate: float, dtype: Any) -> tuple[np.uint64, np.uint64, Any]:
    """Return the mask arguments of `drop`: the key, the lowest hash that is kept, the scale."""
    return np.uint64(key), np.uint64(rate * 2.0**32), np.dtype(dtype).type(1.0 / (1.0 - rate))


def blocks_of(terms: int) -> int:
    """Return the number of blocks of a sum of `terms` terms."""
    return -(-terms // BLOCK)


def sum_rows(dy: np.ndarray, db: np.ndarray, block: int = BLOCK) -> None:
    """Write db (U,) = the sum of the rows of dy (..., U).

    Rows of a block are added in order. The block sums are added pairwise, as a tree.
    """
    rows = dy.reshape(-1, db.size)
    shape = waiting_sums(len(rows), block), min(db.size, _COLUMNS)
    parallel_for(_sum_rows, -(-db.size // _COLUMNS), (rows,), (db,), block,
                 work=4 * rows.size, scratch={"sums": (shape, db.dtype)})


def sum_sums(partial: np.ndarray, total: np.ndarray) -> None:
    """Write total (U,) = the sum of the block sums `partial` (..., U)."""
    sum_rows(partial, total, FEW)


def waiting_sums(terms: int, block: int = BLOCK) -> int:
    """Return how many block sums `add_waiting` must store in addition to the result."""
    return max(-(-terms // block), 1).bit_length() - 1


@kernel
def _add(chunk, scratch, a, b, y, relu):
    for e in elements(chunk, y.size):
        total = a[e] + b[e]
        y[e] = 0 if relu and total <= 0 else total


@kernel
def _transpose(chunk, scratch, x, y, length):
    _, rows, columns = x.shape
    size = lanes(pointer(x, 0))
    high, wide = rows // size * size, columns // size * size
    is_tall = rows > columns  # the inner loop is along the longer rows of x or y
    for n in range(chunk * length, min(x.shape[0], (chunk + 1) * length)):
        source = pointer(x, n * rows * columns)
        target = pointer(y, n * rows * columns)
        for a in range(0, wide if is_tall else high, size):
            for b in range(0, high if is_tall else wide, size):
                i, j = (b, a) if is_tall else (a, b)
                transpose(pointer(source, i * columns + j), columns,
                          pointer(target, j * rows + i), rows)
        for i in range(rows):
            for j in range(wide if i < high else 0, columns):
                target[j * rows + i] = source[i * columns + j]


@kernel
def _relu_gradient(chunk, scratch, dy, y, dx, scale, slope):
    for e in elements(chunk, dx.size):
        below = slope * dy[e] if slope != 0 else 0  # not 0 * infinity
        dx[e] = below if y[e] <= 0 else scale * dy[e]


@helper
def _exponential(x, rest, constants, terms):
    """Return a power of two s and p with exp(x + rest) = s (1 + p), for x <= 0 and a small rest.

    With the integer n next to x / log 2 and r = x + rest - n log 2, s = 2^n and
    p = r + r^2 / 2 + ... Adding `rounding` moves n + _MORE into the last bits of the sum.
    """
    least, log2_e, rounding, high, low, less, _ = constants  # exp of `least` is 0
    x = least if x < least else x
    shifted = number_fma(x, log2_e, rounding)
    n = shifted - rounding
    r = number_fma(-n, low, number_fma(-n, high, x)) + rest
    p = terms[0]
    for term in terms[1:]:
        p = number_fma(p, r, term)
    return power_of_two(shifted) * less, p * r


@kernel
def _squash(chunk, scratch, x, dy, y, constants, terms, is_tanh, is_gradient):
    """Compute 1 / (1 + exp(-x)) from e = exp(-|x|), or tanh(x) from e = exp(-2|x|) and 1 - e."""
    zero, one, factor = x.dtype.type(0), x.dtype.type(1), x.dtype.type(4 if is_tanh else 1)
    for i in elements(chunk, x.size):
        size = abs(x[i])
        scale, p = _exponential(-size - size if is_tanh else -size, zero, constants, terms)
        e, rest = number_fma(scale, p, scale), number_fma(-scale, p, one - scale)
        upper = e if x[i] < 0 else one
        value = (rest if is_tanh else upper) / (one + e)
        value = math.copysign(value, x[i]) if is_tanh else value
        slope = factor * e / ((one + e) * (one + e))
        y[i] = dy[i] * slope if is_gradient else value


@kernel
def _gelu(chunk, scratch, x, dy, y, constants, terms, tail_terms, is_gradient):
    """Compute exp(-z^2 / 2) from two parts of z^2: rounding it would lose bits of large ones."""
    one, half = x.dtype.type(1), x.dtype.type(0.5)
    far, split = x.dtype.type(_FAR), constants[-1]
    for e in elements(chunk, x.size):
        z = x[e]
        size = far if abs(z) > far else abs(z)
        high = size * split
        high -= high - size
        rest = (high - size) * (high + size) * half
        scale, p = _exponential(-high * high * half, rest, constants, terms)
        density = number_fma(scale, p, scale)
        t = one / number_fma(size, half * half, one)
        tail = x.dtype.type(0)
        for term in tail_terms:
            tail = number_fma(tail, t, term)
        tail *= t * density
        upper = tail if z < 0 else one - tail
        slope = upper + z * density * x.dtype.type(_DENSITY)
        y[e] = dy[e] * slope if is_gradient else z * upper


@kernel
def _softmax(chunk, scratch, x, y, constants, terms, length, is_log):
    """Subtract the largest element of a row first, so that exp cannot overflow."""
    rows, size = x.shape
    for r in range(chunk * length, min(rows, (chunk + 1) * length)):
        row, out = pointer(x, r * size), pointer(y, r * size)
        largest, total = x[r, 0], 0.0
        for u in range(size):
            largest = row[u] if row[u] > largest else largest
        for u in range(size):
            scale, p = _exponential(row[u] - largest, x.dtype.type(0), constants, terms)
            out[u] = number_fma(scale, p, scale)
        for u in range(size):
            total += out[u]
        divisor = x.dtype.type(math.log(total) if is_log else total)
        for u in range(size):
            out[u] = row[u] - largest - divisor if is_log else out[u] / divisor


@kernel
def _dropout(chunk, scratch, x, y, key, threshold, scale, first_row, length):
    for r in range(chunk * length, min(x.shape[0], (chunk + 1) * length)):
        drop(pointer(x, r * x.shape[1]), pointer(y, r * x.shape[1]), 0, x.shape[1], key, threshold,
             scale, first_row + r)


@helper
def drop(x, y, first, count, key, threshold, scale, row):
    """Write y = mask * x for `count` elements of a row; x and y point to element `first`."""
    row_key = _mix(key ^ _mix(np.uint64(row)))
    for e in range(count):
        kept = _mix(row_key + np.uint64(first + e)) >> np.uint64(32) >= threshold
        y[e] = x[e] * scale if kept else 0


@helper
def _mix(z):
    """Return the hash of z by the SplitMix64 finalizer (Steele et al., OOPSLA 2014)."""
    z += np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@kernel
def _sum_rows(chunk, scratch, dy, db, block):
    (sums,) = scratch
    first = chunk * _COLUMNS
    count = min(_COLUMNS, db.size - first)
    total, waiting = pointer(db, first), 0
    for begin in range(0, max(dy.shape[0], 1), block):
        part = pointer(sums, (waiting - 1) * count) if waiting else total
        end = min(begin + block, dy.shape[0])
        for u in range(count):
            part[u] = 0
        for r in range(begin, end):
            row = pointer(dy, r * db.size + first)
            for u in range(count):
                part[u] += row[u]
        waiting = add_waiting(waiting + 1, begin // block + 1, end == dy.shape[0], total, count,
                              pointer(sums, 0), count, 1, count)


@helper
def add_waiting(waiting, blocks, last, total, total_row, sums, sums_row, rows, columns):
    """Add block sums pairwise, as a tree, and return how many are still unpaired.

    The block sums are matrices: the first is `total`, the others are in `sums`. The newest is that
    of block number `blocks`, counted from 1. If it is the `last` one, all sums are added to
    `total`.
    """
    while waiting > 1 and (blocks % 2 == 0 or last):
        waiting -= 1
        source = pointer(sums, (waiting - 1) * rows * sums_row)
        target, target_row = total, total_row
        if waiting > 1:
            target, target_row = pointer(sums, (waiting - 2) * rows * sums_row), sums_row
        for r in range(rows):
            to, part = pointer(target, r * target_row), pointer(source, r * sums_row)
            for c in range(columns):
                to[c] += part[c]
        blocks //= 2
    return waiting
