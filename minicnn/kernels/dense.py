"""A dense layer's three products, each cut where its sums are whole.

x (N, D), w (D, U), b (U,), y (N, U):

    y = x w + b         dx = dy w'         dw = x' dy
"""

import numpy as np

from minicnn.kernels import sparse
from minicnn.kernels.elementwise import drop, mask_of
from minicnn.kernels.gemm import EDGE, PANEL_BYTES, multiply, pack
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.pool import parallel_for
from minicnn.kernels.simd import pointer

_CHUNK = 64  # columns of the result that one chunk computes; B is packed a chunk at a time
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
    key, rate, first_row, per_row = dropout or (0, 0.0, 0, 1)
    parallel_for(_forward, _chunks(u), (x, w, b), (y,), relu, dropout is not None,
                 *mask_of(key, rate, x.dtype), first_row, per_row, scratch=_scratch(d))


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray) -> None:
    """Write dx = dy w'."""
    d, u = w.shape
    parallel_for(_input_gradient, _chunks(d), (dy, w), (dx,), scratch=_scratch(u))


def kernel_gradient(x: np.ndarray, dy: np.ndarray, dw: np.ndarray) -> None:
    """Write dw = x' dy."""
    n, u = dy.shape
    parallel_for(_kernel_gradient, _chunks(u), (x, dy), (dw,), scratch=_scratch(n))


def gradients(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None,
    skip_zeros: bool,
) -> None:
    """Write dw and, where it is asked, dx; with `skip_zeros` from lists where many dy are zero."""
    if skip_zeros and x.dtype == np.float32 and sparse.dense(x, dy, w, dw, dx):
        return
    kernel_gradient(x, dy, dw)
    if dx is not None:
        input_gradient(dy, w, dx)


def _chunks(columns: int) -> int:
    return -(-columns // _CHUNK)


def _scratch(k: int) -> int:
    return EDGE + _ZEROS + _CHUNK * k


@kernel
def _forward(chunk, scratch, x, w, b, y, relu, dropping, key, threshold, scale, first_row,
             per_row):
    (n, d), u = x.shape, w.shape[1]
    j = chunk * _CHUNK
    columns = min(_CHUNK, u - j)
    _product(pointer(x, 0), d, 1, pointer(w, j), u, 1, pointer(b, j), 1,
             pointer(y, j), u, n, columns, d, scratch)
    for i in range(n):
        row = pointer(y, i * u + j)
        if relu:
            for q in range(columns):
                row[q] = 0 if row[q] < 0 else row[q]
        if dropping:
            drop(row, row, i % per_row * u + j, columns, key, threshold, scale,
                 first_row + i // per_row)


@kernel
def _input_gradient(chunk, scratch, dy, w, dx):
    (n, u), d = dy.shape, w.shape[0]
    j = chunk * _CHUNK
    _product(pointer(dy, 0), u, 1, pointer(w, j * u), 1, u, _zeros(scratch), 0,
             pointer(dx, j), d, n, min(_CHUNK, d - j), u, scratch)


@kernel
def _kernel_gradient(chunk, scratch, x, dy, dw):
    (n, u), d = dy.shape, x.shape[1]
    j = chunk * _CHUNK
    _product(pointer(x, 0), 1, d, pointer(dy, j), u, 1, _zeros(scratch), 0,
             pointer(dw, j), u, d, min(_CHUNK, u - j), n, scratch)


@helper
def _product(a, a_row, a_col, b, b_row, b_col, s, s_col, c, c_row, m, n, k, scratch):
    """Write C (m, n) = s + A (m, k) B (k, n); `s` is one row for all."""
    width = PANEL_BYTES // scratch.itemsize
    packed = pointer(scratch, EDGE + _ZEROS)
    pack(b, b_row, b_col, k, n, width, packed)
    multiply(a, a_row, a_col, packed, s, 0, s_col, c, c_row, m, n, k, width, pointer(scratch, 0))


@helper
def _zeros(scratch):
    scratch[EDGE : EDGE + _ZEROS] = 0
    return pointer(scratch, EDGE)
