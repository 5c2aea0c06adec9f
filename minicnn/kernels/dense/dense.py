"""The three matrix products of a dense layer. Each chunk computes complete sums.

x (N, D), w (D, U), b (U,), y (N, U):

    y = x w + b         dx = dy w'         dw = x' dy
"""

from typing import Any

import numpy as np

from minicnn.kernels.dense import lists
from minicnn.kernels.elementwise import BLOCK, add_waiting, drop, mask_of, waiting_sums
from minicnn.kernels.gemm import (
    DEPTH,
    block_of_rows,
    clear,
    copy,
    multiply,
    pack,
    packed_shape,
    panel,
)
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import HAS_HALF, pointer
from minicnn.kernels.threads import aligned, check, parallel_for

_CHUNK = 64  # columns of the result per chunk; each chunk packs its part of B
_FEW_ROWS = 14  # up to this many, w is not packed: packing would cost more than the product
_SLAB = 16  # rows of w that are read at a time if it is not packed
_WIDE_CHUNK = 512  # columns per chunk in that case: long contiguous reads of w
_LEAST_LISTED = 1 << 17  # elements of w; with fewer, the packed product takes little time
_READING = 2  # multiply-adds that take as long as to read an element of w


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, relu: bool = False,
    dropout: tuple[int, float, int, int] | None = None, packed: np.ndarray | None = None,
) -> None:
    """Write y = x w + b, followed by ReLU and dropout if requested.

    `packed` is the result of `packed_kernel`, if w never changes.

    `dropout` is a tuple (key, rate, number of the first row in the batch, rows of this matrix per
    row of the batch).
    """
    d, u = w.shape
    work = (len(x) + _READING) * w.size
    nothing = np.empty((0, 0), x.dtype)
    if w.dtype == np.float16:  # of an InferenceModel
        w = w.astype(x.dtype) if packed is None else nothing
    check(x=(x, (len(x), d)), w=(w, w.shape), b=(b, (u,)), y=(y, (len(x), u)))
    key, rate, first_row, per_row = dropout or (0, 0.0, 0, 1)
    width = _WIDE_CHUNK if len(x) <= _FEW_ROWS and packed is None else _CHUNK
    parallel_for(_forward, -(-u // width), (x, w, nothing if packed is None else packed, b), (y,),
                 width, packed is not None, relu, dropout is not None,
                 *mask_of(key, rate, x.dtype), first_row, per_row, work=work,
                 scratch={**_packed(d, x.dtype), "row": ((width,), x.dtype)})


def packed_kernel(w: np.ndarray) -> np.ndarray:
    """Return w (D, U) as `forward` multiplies by it: in panels (D, width) of columns.

    The last panel is padded with zeros. The bits of float16 numbers are returned as integers, since
    Numba has no float16, or expanded to float32 for a CPU that cannot do it.
    """
    d, u = w.shape
    is_half = w.dtype == np.float16
    panels, _, width = packed_shape(d, u, np.float32 if is_half else w.dtype)
    packed = aligned((panels * d, width), np.float32 if is_half and not HAS_HALF else w.dtype)
    packed[-d:] = 0
    for j in range(0, u, width):
        packed[j // width * d :][:d, : u - j] = w[:, j : j + width]
    return packed.view(np.uint16) if packed.dtype == np.float16 else packed


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
    """Write dx = dy w'."""
    u = dy.shape[1]
    scratch = {**_packed(u, dx.dtype), "sums": ((0,), dx.dtype)}
    parallel_for(_multiply, -(-dx.shape[1] // _CHUNK), (dy, w), (dx,), (u, 1), (1, u), u, max(u, 1),
                 scratch=scratch, work=dy.size * dx.shape[1])


def kernel_gradient(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
    """Write dw = x' dy; the sums of blocks of rows are added pairwise, as a tree."""
    (n, d), u = x.shape, dy.shape[1]
    scratch = {
        **_packed(min(n, BLOCK), dw.dtype), "sums": ((waiting_sums(n) * d * _CHUNK,), dw.dtype)
    }
    parallel_for(_multiply, -(-u // _CHUNK), (x, dy), (dw,), (1, d), (u, 1), n, BLOCK,
                 scratch=scratch, work=x.size * u)


def gradients(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None,
    skip_zeros: bool,
) -> None:
    """Write dw, and dx if given; with `skip_zeros`, use lists if w is large and many dy are 0."""
    (n, d), u = x.shape, dy.shape[1]
    check(x=(x, (n, d)), dy=(dy, (n, u)), w=(w, (d, u)), dw=(dw, (d, u)))
    is_listed = skip_zeros and x.dtype == np.float32 and w.size >= _LEAST_LISTED
    if is_listed and lists.gradients(x, dy, w, dw, dx):
        return
    kernel_gradient(x, dy, dw)
    if dx is not None:
        input_gradient(dy, w, dx)


def _packed(k: int, dtype: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return scratch for a packed slab of B and a row of zeros."""
    return {
        "packed": (packed_shape(min(k, DEPTH), _CHUNK, dtype), dtype), "zeros": ((_CHUNK,), dtype)
    }


@kernel
def _forward(chunk, scratch, x, w, packed, b, y, width, is_packed, relu, dropping, key, threshold,
             scale, first_row, per_row):
    slab, _, source = scratch
    (n, d), u = x.shape, b.size
    j = chunk * width
    columns = min(width, u - j)
    if is_packed:
        size = panel(pointer(y, 0))
        for q in range(j, j + columns, size):  # from its first row to its last, as memory is read
            block_of_rows(pointer(x, 0), d, 1, 0, pointer(packed, q * d), size, pointer(b, q), 0,
                          pointer(y, q), u, n, min(size, j + columns - q), d, 1, False)
    elif width == _CHUNK:
        _product(pointer(x, 0), d, 1, pointer(w, j), u, 1, pointer(b, j), 1, pointer(y, j), u, n,
                 columns, d, pointer(slab, 0))
    else:
        _product_in_place(pointer(x, 0), pointer(w, j), pointer(b, j), pointer(y, j), n, columns, d,
                          u, pointer(slab, 0))
    for i in range(n):
        row = pointer(y, i * u + j)
        if relu:
            for q in range(columns):
                row[q] = 0 if row[q] <= 0 else row[q]
        if dropping:  # from a copy: possible overlap would prevent vectorization
            copy(row, 0, pointer(source, 0), 0, 1, columns)
            drop(pointer(source, 0), row, i % per_row * u + j, columns, key, threshold, scale,
                 first_row + i // per_row)


@kernel
def _multiply(chunk, scratch, a, b, c, a_strides, b_strides, k, block):
    """Write a chunk of C (m, n) = A (m, k) B (k, n), with A and B read through their strides.

    `block` is the length of the blocks along k: k itself, or BLOCK to add the sums pairwise.
    """
    packed, zeros, sums = scratch
    (m, n), (a_row, a_col), (b_row, b_col) = c.shape, a_strides, b_strides
    j = chunk * _CHUNK
    columns = min(_CHUNK, n - j)
    clear(pointer(zeros, 0), zeros.size)
    total, waiting = pointer(c, j), 0
    for begin in range(0, max(k, 1), block):
        target, target_row = total, n
        if waiting:
            target, target_row = pointer(sums, (waiting - 1) * m * _CHUNK), _CHUNK
        end = min(begin + block, k)
        _product(pointer(a, begin * a_col), a_row, a_col,
                 pointer(b, begin * b_row + j * b_col), b_row, b_col, pointer(zeros, 0), 0,
                 target, target_row, m, columns, end - begin, pointer(packed, 0))
        waiting = add_waiting(waiting + 1, begin // block + 1, end == k, total, n,
                              pointer(sums, 0), _CHUNK, m, columns)


@helper
def _product(a, a_row, a_col, b, b_row, b_col, s, s_col, c, c_row, m, n, k, packed):
    """Write C (m, n) = s + A (m, k) B (k, n), where `s` is one row, added to all.

    B is packed in slabs of rows: the packed slab and the matching columns of A stay in the
    second-level cache.
    """
    s_row = 0
    for p in range(0, max(k, 1), DEPTH):
        depth = min(DEPTH, k - p)
        pack(pointer(b, p * b_row), b_row, b_col, depth, n, packed)
        multiply(pointer(a, p * a_col), a_row, a_col, packed, s, s_row, s_col, c, c_row,
                 m, n, depth, DEPTH)
        s, s_row, s_col = c, c_row, 1  # the next slabs are added to C


@helper
def _product_in_place(x, w, b, y, n, columns, d, u, packed):
    """Write y = x w + b for few rows of x, without packing w, which is read in slabs of rows.

    The sums have the same order as in `_product`, which computes the columns after the last
    complete panel. The results are therefore bit-identical.
    """
    width = panel(y)
    panels = columns // width * width  # columns that fill complete panels
    _product(x, d, 1, pointer(w, panels), u, 1, pointer(b, panels), 1, pointer(y, panels), u, n,
             columns - panels, d, packed)
    s, s_row = b, 0
    for p in range(0, max(d, 1), _SLAB):
        depth = min(_SLAB, d - p)
        for q in range(0, panels, width):
            block_of_rows(pointer(x, p), d, 1, 0, pointer(w, p * u + q), u, pointer(s, q), s_row,
                          pointer(y, q), u, n, width, depth, 1, False)
        s, s_row = y, u
