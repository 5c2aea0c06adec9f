"""Convolution and its two gradients; this file alone chooses how they are computed.

In mathematics, with the patch of x under the window at output position p written as row p of
`columns` (`im2col`), a convolution and its gradients are three matrix products:

    y = columns w + b        dcolumns = dy w'        dw = columns' dy        db = 1' dy

    x (N, H, W, C)   w (KH, KW, C, F)   b (F,)   y (N, OH, OW, F)

The columns of a whole batch would be KH * KW times the size of x, so they are made a block of
positions at a time, at most a megabyte, and used while they lie in the cache.
"""

import numpy as np

from minicnn.kernels.gemm import EDGE, PANEL_BYTES, ROWS, multiply, pack, round_up
from minicnn.kernels.im2col import add_columns, columns_of
from minicnn.kernels.jit import kernel
from minicnn.kernels.pool import parallel_for
from minicnn.kernels.simd import pointer
from minicnn.kernels.window import Window

_CHUNKS = 16  # at most; enough to keep the threads of a small machine evenly busy
_COLUMN_BYTES = 1 << 20
_LEAST_POSITIONS = 60  # of a chunk: below that, packing w again costs more than a thread gains


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window, relu: bool = False
) -> None:
    """Write y = x * w + b, and max(y, 0) where `relu` is asked."""
    depth, filters = w.size // w.shape[3], w.shape[3]
    positions = y.size // filters
    length = round_up(max(-(-positions // _CHUNKS), _LEAST_POSITIONS), ROWS)
    block = _block(depth, x.itemsize)
    scratch = EDGE + depth * _padded(filters, x.itemsize) + block * depth
    parallel_for(_forward, -(-positions // length), (x, w, b), (y,), tuple(window), length, block,
                 relu, scratch=scratch)


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx, the gradient of the input of y = x * w + b."""
    depth, filters = w.size // w.shape[3], w.shape[3]
    images = -(-dx.shape[0] // _CHUNKS)
    block = _block(depth, dx.itemsize)
    scratch = EDGE + PANEL_BYTES + filters * _padded(depth, dx.itemsize) + block * depth
    parallel_for(_input_gradient, -(-dx.shape[0] // images), (dy, w), (dx,), tuple(window), images,
                 block, scratch=scratch)


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window
) -> None:
    """Write dw and db, the gradients of the kernel and of the bias of y = x * w + b."""
    filters = dy.shape[3]
    depth, positions = dw.size // filters, dy.size // filters
    length = max(-(-positions // _CHUNKS), _LEAST_POSITIONS)
    chunks = -(-positions // length)
    block = _block(depth, x.itemsize)
    # One partial sum a chunk, added in order; its last row is db.
    partial = np.empty((chunks, depth + 1, filters), dw.dtype)
    scratch = EDGE + block * _padded(filters, x.itemsize) + block * depth
    parallel_for(_kernel_gradient, chunks, (x, dy), (partial,), tuple(window), length, block,
                 scratch=scratch)
    total = partial.sum(axis=0)
    dw[...] = total[:-1].reshape(dw.shape)
    db[...] = total[-1]


def _block(depth: int, itemsize: int) -> int:
    """Return how many positions' columns are made at a time."""
    return max(ROWS, _COLUMN_BYTES // (depth * itemsize) // ROWS * ROWS)


def _padded(columns: int, itemsize: int) -> int:
    return round_up(columns, PANEL_BYTES // itemsize)


@kernel
def _forward(chunk, scratch, x, w, b, y, window, length, block, relu):
    channels, filters = w.shape[2], w.shape[3]
    depth, positions = w.size // filters, y.size // filters
    width = PANEL_BYTES // scratch.itemsize
    edge, packed = pointer(scratch, 0), pointer(scratch, EDGE)
    space = pointer(packed, depth * round_up(filters, width))
    pack(pointer(w, 0), filters, 1, depth, filters, width, packed)
    last = min(positions, (chunk + 1) * length)
    for first in range(chunk * length, last, block):
        count = min(block, last - first)
        columns = columns_of(pointer(x, 0), channels, window, first, count, space)
        out = pointer(y, first * filters)
        multiply(columns, depth, 1, packed, pointer(b, 0), 0, 1, out, filters,
                 count, filters, depth, width, edge)
        if relu:
            for e in range(count * filters):
                out[e] = 0 if out[e] < 0 else out[e]


@kernel
def _input_gradient(chunk, scratch, dy, w, dx, window, images, block):
    channels, filters = w.shape[2], w.shape[3]
    depth, positions = w.size // filters, window[10] * window[11]
    width = PANEL_BYTES // scratch.itemsize
    edge, zeros = pointer(scratch, 0), pointer(scratch, EDGE)
    packed = pointer(zeros, PANEL_BYTES)
    columns = pointer(packed, filters * round_up(depth, width))
    for e in range(width):
        zeros[e] = 0
    pack(pointer(w, 0), 1, filters, filters, depth, width, packed)
    begin, end = chunk * images, min(dx.shape[0], (chunk + 1) * images)
    dx[begin:end] = 0
    for first in range(begin * positions, end * positions, block):
        count = min(block, end * positions - first)
        multiply(pointer(dy, first * filters), filters, 1, packed, zeros, 0, 0, columns, depth,
                 count, depth, filters, width, edge)
        add_columns(columns, channels, window, first, count, pointer(dx, 0))


@kernel
def _kernel_gradient(chunk, scratch, x, dy, partial, window, length, block):
    channels, filters = x.shape[3], dy.shape[3]
    depth, positions = partial.shape[1] - 1, dy.size // filters
    width = PANEL_BYTES // scratch.itemsize
    edge, packed = pointer(scratch, 0), pointer(scratch, EDGE)
    space = pointer(packed, block * round_up(filters, width))
    partial[chunk] = 0
    dw, db = pointer(partial, chunk * (depth + 1) * filters), partial[chunk, depth]
    last = min(positions, (chunk + 1) * length)
    for first in range(chunk * length, last, block):
        count = min(block, last - first)
        columns = columns_of(pointer(x, 0), channels, window, first, count, space)
        gradient = pointer(dy, first * filters)
        pack(gradient, filters, 1, count, filters, width, packed)
        multiply(columns, 1, depth, packed, dw, filters, 1, dw, filters,
                 depth, filters, count, width, edge)
        for p in range(count):
            for f in range(filters):
                db[f] += gradient[p * filters + f]
