"""The packed matrix product C = S + A B, computed in tiles that fit into the registers.

A tile has ROWS rows and VECTORS vectors of columns. The registers hold its ROWS x VECTORS sums,
VECTORS vectors of B, and one element of A in every lane (`simd.tile`). The inner loop over k thus
loads few values for each multiply-add.

* B is packed into *panels* of VECTORS vectors of columns, so that the inner loop reads contiguous
  memory. The last panel is padded with zeros.
* A is not packed. It is read through two strides, so `multiply` accepts A and its transpose.
* S, the initial values of the sums, is also read through two strides: the bias (row stride 0), C
  itself (to accumulate), or one panel of zeros (both strides 0).

Each element of C is summed in the order of k. Its bits therefore do not depend on how the matrices
are split or on the vector width.

The scheme is that of K. Goto and R. van de Geijn, "Anatomy of High-Performance Matrix
Multiplication", ACM TOMS 34(3), 2008.
"""

from typing import Any

import numpy as np
from numba.extending import register_jitable

from minicnn.kernels.jit import helper
from minicnn.kernels.simd import (
    FEW_ROWS,
    ROWS,
    SOME_ROWS,
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

DEPTH = (1 << 14) // (VECTORS * VECTOR_BYTES)  # rows of a panel, half a first-level cache


@register_jitable  # also called from Python
def round_up(size, multiple):
    """Return `size`, rounded up to a multiple of `multiple`."""
    return (size + multiple - 1) // multiple * multiple


def packed_shape(k: int, n: int, dtype: Any) -> tuple[int, int, int]:
    """Return the shape of B (k, n) packed into panels."""
    width = VECTORS * VECTOR_BYTES // np.dtype(dtype).itemsize
    return -(-n // width), k, width


@helper
def panel(place):
    """Return the number of columns of a panel, a compile-time constant, for a pointer's type."""
    return VECTORS * lanes(place)


@helper
def pack(b, b_row, b_col, k, n, packed):
    """Copy B (k, n), read through two strides, into panels (panels, k, width).

    The outer loop is over rows, so that B is read in long contiguous runs. A transposed B is read
    in square blocks of one vector each way. Columns after the last one are set to zero.
    """
    size = lanes(b)
    width = panel(b)
    vectors = n // size * size  # columns that fill complete vectors
    squares = k // size * size if b_row == 1 else 0  # rows that are packed in square blocks
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
def multiply(a, a_row, a_col, packed, s, s_row, s_col, c, c_row, m, n, k, most):
    """Write C (m, n) = S (m, n) + A (m, k) B (k, n).

    A matrix is given by a pointer to its first element and its row and column strides in elements.
    B is packed into panels. The rows of C and the panels of S are contiguous. A bias S has row
    stride 0; a panel of zeros has both strides 0. At most `most` rows of a panel are read at a
    time: those that fit into the first-level cache, if A has more rows than a tile.
    """
    width = panel(c)
    for p in range(0, max(k, 1), most):
        depth = min(most, k - p)
        for j in range(0, n, width):
            block_of_rows(pointer(a, p * a_col), a_row, a_col, 0,
                          pointer(packed, j * k + p * width), width, pointer(s, j * s_col), s_row,
                          pointer(c, j), c_row, m, min(width, n - j), depth, 1, False)
        s, s_row, s_col = c, c_row, 1  # the next parts are added to C


@helper
def block_of_rows(a, a_row, a_col, a_round, b, b_row, s, s_row, c, c_row, m, n, depth, rounds,
                  adds):
    """Write C (m, n) = S + A B for one panel of B, with tile heights that waste few rows.

    The columns of A are in `rounds` groups of `depth` columns. Each group starts `a_round` elements
    after the previous one. The rows of B are `b_row` elements apart. If `adds`, the result is added
    to C. `a_row` and `a_round` may be lists of offsets: see `simd.tile`.
    """
    i, vectors = 0, 1 if n <= lanes(c) else VECTORS
    while i < m:
        rows, height = m - i, ROWS
        if rows <= 2 and vectors > 1:
            height = 2
        elif rows <= FEW_ROWS:
            height = FEW_ROWS
        elif vectors > 1 and (rows <= SOME_ROWS or ROWS < rows <= 2 * SOME_ROWS):
            height = SOME_ROWS
        rows = min(rows, height)
        tile(height, vectors, a, i, a_row, a_col, a_round, b, b_row,
             pointer(s, i * s_row), s_row, pointer(c, i * c_row), c_row, rows, n, depth, rounds,
             adds)
        i += rows


@helper
def clear(target, count):
    """Set `count` elements to zero."""
    for e in range(count):
        target[e] = 0


@helper
def copy(source, source_row, target, target_row, rows, columns):
    """Copy a matrix with contiguous rows to a target that does not overlap it."""
    size = lanes(source)
    vectors = columns // size * size
    for r in range(rows):
        line, to = pointer(source, r * source_row), pointer(target, r * target_row)
        for c in range(0, vectors, size):
            store(load(line, c), to, c)
        if vectors < columns:
            rest = columns - vectors
            store_some(load_some(line, vectors, rest), to, vectors, rest)
