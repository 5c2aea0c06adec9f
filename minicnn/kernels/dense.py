"""A dense layer's three products, each cut where its sums are whole.

x (N, D), w (D, U), b (U,), y (N, U):

    y = x w + b         dx = dy w'         dw = x' dy
"""

import numpy as np

from minicnn.kernels import sparse
from minicnn.kernels.elementwise import BLOCK, add_waiting, drop, mask_of, waiting_sums
from minicnn.kernels.gemm import DEPTH, EDGE, PANEL_BYTES, copy, multiply, pack
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.pool import check, parallel_for
from minicnn.kernels.simd import broadcast, fma, lanes, load, pointer, store

_CHUNK = 64  # columns of the result that one chunk computes; B is packed a chunk at a time
_FEW_ROWS = 4  # up to here w is read where it lies: packing it would cost more than the product
_WIDE_CHUNK = 512  # then: enough columns that memory is read in long runs
_ZEROS = PANEL_BYTES  # elements of scratch that a product starts from


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, relu: bool = False,
    dropout: tuple[int, float, int, int] | None = None,
) -> None:
    """Write y = x w + b, then ReLU and dropout where asked.

    `dropout` is its key, its rate, the number of the first row of the batch, and how many rows of
    this matrix are one of the batch.
    """
    d, u = w.shape
    check(x=(x, (len(x), d)), w=(w, (d, u)), b=(b, (u,)), y=(y, (len(x), u)))
    key, rate, first_row, per_row = dropout or (0, 0.0, 0, 1)
    width = _WIDE_CHUNK if len(x) <= _FEW_ROWS else _CHUNK
    parallel_for(_forward, -(-u // width), (x, w, b), (y,), width, relu, dropout is not None,
                 *mask_of(key, rate, x.dtype), first_row, per_row, scratch=_scratch(d))


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
    """Write dx = dy w'."""
    u = dy.shape[1]
    parallel_for(_multiply, _chunks(dx.shape[1]), (dy, w), (dx,), (u, 1), (1, u), u, max(u, 1),
                 scratch=_scratch(u))


def kernel_gradient(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
    """Write dw = x' dy: the sums of blocks of rows, added in pairs, as a tree."""
    (n, d), u = x.shape, dy.shape[1]
    scratch = _scratch(min(n, BLOCK)) + waiting_sums(n) * d * _CHUNK
    parallel_for(_multiply, _chunks(u), (x, dy), (dw,), (1, d), (u, 1), n, BLOCK, scratch=scratch)


def gradients(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None,
    skip_zeros: bool,
) -> None:
    """Write dw and, where it is asked, dx; with `skip_zeros` from lists where many dy are zero."""
    (n, d), u = x.shape, dy.shape[1]
    check(x=(x, (n, d)), dy=(dy, (n, u)), w=(w, (d, u)), dw=(dw, (d, u)))
    if skip_zeros and x.dtype == np.float32 and sparse.dense(x, dy, w, dw, dx):
        return
    kernel_gradient(x, dy, dw)
    if dx is not None:
        input_gradient(dy, w, dx)


def _chunks(columns: int) -> int:
    return -(-columns // _CHUNK)


def _scratch(k: int) -> int:
    return max(EDGE + _ZEROS + _CHUNK * min(k, DEPTH), _WIDE_CHUNK)


@kernel
def _forward(chunk, scratch, x, w, b, y, width, relu, dropping, key, threshold, scale, first_row,
             per_row):
    (n, d), u = x.shape, w.shape[1]
    j = chunk * width
    columns = min(width, u - j)
    done = 0 if width == _CHUNK else _product_by_rows(
        pointer(x, 0), pointer(w, j), pointer(b, j), pointer(y, j), n, columns, d, u)
    _product(pointer(x, 0), d, 1, pointer(w, j + done), u, 1, pointer(b, j + done), 1,
             pointer(y, j + done), u, n, columns - done, d, scratch)
    for i in range(n):
        row = pointer(y, i * u + j)
        if relu:
            for q in range(columns):
                row[q] = 0 if row[q] < 0 else row[q]
        if dropping:  # from a copy: what may overlap the compiler does not do by vectors
            source = pointer(scratch, 0)
            copy(row, 0, source, 0, 1, columns)
            drop(source, row, i % per_row * u + j, columns, key, threshold, scale,
                 first_row + i // per_row)


@kernel
def _multiply(chunk, scratch, a, b, c, a_strides, b_strides, k, block):
    """Write C (m, n) = A (m, k) B (k, n), with A and B read through their strides.

    `block` is k, or the BLOCK of `add_waiting`: then A and B are cut into blocks along k.
    """
    (m, n), (a_row, a_col), (b_row, b_col) = c.shape, a_strides, b_strides
    j = chunk * _CHUNK
    columns = min(_CHUNK, n - j)
    zeros = pointer(scratch, EDGE)
    for e in range(_ZEROS):
        zeros[e] = 0
    sums = pointer(scratch, EDGE + _ZEROS + _CHUNK * min(block, DEPTH))
    total, waiting = pointer(c, j), 0
    for begin in range(0, max(k, 1), block):
        target, target_row = total, n
        if waiting:
            target, target_row = pointer(sums, (waiting - 1) * m * _CHUNK), _CHUNK
        end = min(begin + block, k)
        _product(pointer(a, begin * a_col), a_row, a_col,
                 pointer(b, begin * b_row + j * b_col), b_row, b_col, zeros, 0,
                 target, target_row, m, columns, end - begin, scratch)
        waiting = add_waiting(waiting + 1, begin // block + 1, end == k, total, n, sums, _CHUNK, m,
                              columns)


@helper
def _product(a, a_row, a_col, b, b_row, b_col, s, s_col, c, c_row, m, n, k, scratch):
    """Write C (m, n) = s + A (m, k) B (k, n); `s` is one row for all.

    B is packed a slab of its rows at a time: what is packed and the columns of A that meet it stay
    in the second-level cache.
    """
    packed = pointer(scratch, EDGE + _ZEROS)
    s_row = 0
    for p in range(0, max(k, 1), DEPTH):
        depth = min(DEPTH, k - p)
        pack(pointer(b, p * b_row), b_row, b_col, depth, n, packed)
        multiply(pointer(a, p * a_col), a_row, a_col, packed, s, s_row, s_col, c, c_row,
                 m, n, depth, pointer(scratch, 0))
        s, s_row, s_col = c, c_row, 1  # what follows adds to what is there


@helper
def _product_by_rows(x, w, b, y, n, columns, d, u):
    """Write y = x w + b for few rows of x; return for how many columns: whole vectors.

    Four rows of w at a time pass by, each read once and in one run; the sums have the order of
    `tile`, and so its bits.
    """
    size = lanes(y)
    columns -= columns % size
    for i in range(n):
        for q in range(columns):
            y[i * u + q] = b[q]
    for p in range(0, d - 3, 4):
        rows = pointer(w, p * u)
        for i in range(n):
            x0, x1 = broadcast(x, i * d + p), broadcast(x, i * d + p + 1)
            x2, x3 = broadcast(x, i * d + p + 2), broadcast(x, i * d + p + 3)
            for q in range(0, columns, size):
                total = fma(x0, load(rows, q), load(y, i * u + q))
                total = fma(x1, load(rows, u + q), total)
                total = fma(x2, load(rows, 2 * u + q), total)
                store(fma(x3, load(rows, 3 * u + q), total), y, i * u + q)
    for p in range(d // 4 * 4, d):
        for i in range(n):
            for q in range(0, columns, size):
                total = fma(broadcast(x, i * d + p), load(w, p * u + q), load(y, i * u + q))
                store(total, y, i * u + q)
    return columns
