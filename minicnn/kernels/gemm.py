"""The packed matrix product: C = S + A B, by tiles that the registers hold.

A tile is ROWS rows and VECTORS vectors of columns: so many sums, beside VECTORS vectors of B and
one element of A in every lane (`simd.tile`). Its inner loop over k reads little for each
multiply-add, which keeps the multipliers of a processor busy.

* B is packed beforehand into *panels* of VECTORS vectors of columns, so that the inner loop reads
  one unbroken run of memory. The last panel is filled up with zeros.
* A is read where it lies, through two strides: A and its transpose are the same to `multiply`.
* S, where the sums start, is also read through two strides: the bias (row stride 0), C itself (to
  accumulate), or one panel of zeros (both strides 0).

Every element of C is one chain of multiply-adds in the order of k. So it has the same bits wherever
the matrices are cut, and with vectors of any width.

The scheme is that of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", ACM TOMS 34(3), 2008.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from minicnn.kernels.jit import helper
from minicnn.kernels.simd import (
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    lanes,
    load,
    load_some,
    pointer,
    store,
    store_some,
    tile,
    transpose,
)

DEPTH = (1 << 14) // (VECTORS * VECTOR_BYTES)  # rows of a panel in half a first-level cache
_FEW = (ROWS - 2) // 2  # rows of the tiles for what is left over
_SOME = (ROWS + _FEW) // 2


@register_jitable  # called from Python too
def round_up(size, multiple):
    """Return the least multiple of `multiple` that is not below `size`."""
    return (size + multiple - 1) // multiple * multiple


def packed_shape(k: int, n: int, dtype: Any) -> tuple[int, int, int]:
    """Return the shape of B (k, n) in panels."""
    width = VECTORS * VECTOR_BYTES // np.dtype(dtype).itemsize
    return -(-n // width), k, width


@helper
def panel(place):
    """Return how many columns of a pointer's type a panel has: a constant to the compiler."""
    return VECTORS * lanes(place)


@helper
def pack(b, b_row, b_col, k, n, packed):
    """Copy B (k, n), read through two strides, into panels (panels, k, width).

    The rows are the outer loop, so that a wide B is read in runs as long as it has; one that lies
    transposed is read a square of vectors at a time. Behind the last column are zeros.
    """
    size = lanes(b)
    width = panel(b)
    vectors = n // size * size  # columns of whole vectors
    squares = k // size * size if b_row == 1 else 0  # rows that are packed as such
    for j in range(0, vectors if b_row == 1 else 0, size):
        for p in range(0, squares, size):
            transpose(pointer(b, p + j * b_col), b_col,
                      pointer(packed, j // width * width * k + p * width + j % width), width)
    for p in range(k):
        source, target = pointer(b, p * b_row), pointer(packed, p * width)
        first = vectors if p < squares else 0
        if b_col == 1:
            for j in range(first, round_up(n, width), size):
                place = j // width * width * k + j % width
                if j + size <= n:
                    store(load(source, j), target, place)
                else:
                    store(load_some(source, j, n - j), target, place)
        else:
            for j in range(first, round_up(n, width)):
                target[j // width * width * k + j % width] = source[j * b_col] if j < n else 0


@helper
def multiply(a, a_row, a_col, packed, s, s_row, s_col, c, c_row, m, n, k):
    """C (m, n) = S (m, n) + A (m, k) B (k, n).

    Every matrix is a pointer to its first element and the strides of its rows and columns in
    elements; B comes packed in panels; C has contiguous rows; S has contiguous panels (a bias has
    row stride 0, a panel of zeros has both strides 0).
    """
    width = panel(c)
    for p in range(0, max(k, 1), DEPTH):
        depth = min(DEPTH, k - p)  # of the part of a panel that stays in the first-level cache
        for j in range(0, n, width):
            block_of_rows(pointer(a, p * a_col), a_row, a_col, 0,
                          pointer(packed, j * k + p * width), width, pointer(s, j * s_col), s_row,
                          pointer(c, j), c_row, m, min(width, n - j), depth, 1)
        s, s_row, s_col = c, c_row, 1  # what follows adds to what is there


@helper
def block_of_rows(a, a_row, a_col, a_round, b, b_row, s, s_row, c, c_row, m, n, depth, rounds):
    """C (m, n) = S + A B for one panel of B, by tiles of such heights that few rows are wasted.

    The columns of A come in `rounds` of `depth`, each `a_round` elements after the one before. The
    rows of B are `b_row` elements apart.
    """
    i, size = 0, lanes(c)
    while i < m:
        rows = m - i
        a_, s_, c_ = pointer(a, i * a_row), pointer(s, i * s_row), pointer(c, i * c_row)
        if n <= size and rows > _FEW:
            rows = min(rows, ROWS)
            tile(ROWS, 1, a_, a_row, a_col, a_round, b, b_row, s_, s_row, c_, c_row, rows, n, depth,
                 rounds)
        elif n <= size:
            tile(_FEW, 1, a_, a_row, a_col, a_round, b, b_row, s_, s_row, c_, c_row, rows, n, depth,
                 rounds)
        elif rows > 2 * _SOME or _SOME < rows <= ROWS:
            rows = min(rows, ROWS)
            tile(ROWS, VECTORS, a_, a_row, a_col, a_round, b, b_row, s_, s_row, c_, c_row, rows, n,
                 depth, rounds)
        elif rows > _FEW:
            rows = min(rows, _SOME)
            tile(_SOME, VECTORS, a_, a_row, a_col, a_round, b, b_row, s_, s_row, c_, c_row, rows, n,
                 depth, rounds)
        else:
            tile(_FEW, VECTORS, a_, a_row, a_col, a_round, b, b_row, s_, s_row, c_, c_row, rows, n,
                 depth, rounds)
        i += rows


@helper
def clear(target, count):
    """Set `count` elements to zero."""
    for e in range(count):
        target[e] = 0


@helper
def copy(source, source_row, target, target_row, rows, columns):
    """Copy a matrix whose rows are contiguous, to a place that does not overlap it."""
    size = lanes(source)
    vectors = columns // size * size
    for r in range(rows):
        line, to = pointer(source, r * source_row), pointer(target, r * target_row)
        for c in range(0, vectors, size):
            store(load(line, c), to, c)
        if vectors < columns:
            rest = columns - vectors
            store_some(load_some(line, vectors, rest), to, vectors, rest)
