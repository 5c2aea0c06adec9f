"""The general algorithm, for all configurations and types: im2col and a packed product.

Row p of the matrix `columns` is the patch of the input in the window at output position p, with its
elements in the same order as in the kernel. A convolution and its gradients are then matrix
products:

    y = columns w + b        dcolumns = dy w'        dw = columns' dy        db = 1' dy

    x (N, H, W, C)   w (KH, KW, C, F)   b (F,)   y (N, OH, OW, F)   columns (P, KH * KW * C)

Positions are numbered through the batch: p = (n * OH + oy) * OW + ox. Padding is 0. The columns of
a batch would be KH * KW times as large as x. They are therefore computed for one block of positions
at a time (at most 1 MB, and for dw 128 positions), and used while they are in the cache.

`_columns` copies and adds *runs*. Without dilation, the taps of one row of the window are adjacent
in the image and form one run of KW * C elements. With dilation, each tap is a separate run.

`conv` uses this algorithm for float64 and for input gradients with strides. It is also the
reference for tests of the other algorithms.
"""

import numpy as np

from minicnn.kernels.elementwise import (
    BLOCK,
    FEW,
    add_waiting,
    sum_rows,
    sum_sums,
    waiting_sums,
)
from minicnn.kernels.gemm import (
    DEPTH,
    block_of_rows,
    clear,
    copy,
    multiply,
    pack,
    packed_shape,
)
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import pointer
from minicnn.kernels.threads import CHUNKS, parallel_for, share
from minicnn.kernels.window import Window

_COLUMN_BYTES = 1 << 20
_LEAST_BLOCK = 8  # positions whose columns are computed at a time
_LEAST_POSITIONS = 60  # of a chunk: with fewer, packing w again costs more than a thread gains


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window
) -> None:
    """Write y = x * w + b."""
    depth, filters = w.size // w.shape[3], w.shape[3]
    positions = y.size // filters
    length = max(share(positions, CHUNKS, positions * w.size), _LEAST_POSITIONS)
    parallel_for(
        _forward, -(-positions // length), (x, w, b), (y,), tuple(window), length,
        scratch={
            "columns": ((_block(depth, x.itemsize), depth), x.dtype),
            "packed": (packed_shape(depth, filters, x.dtype), x.dtype),
        },
    )


def input_gradient(
    dy: np.ndarray, w: np.ndarray, c: np.ndarray, dx: np.ndarray, window: Window
) -> None:
    """Write dx, the gradient of the input, plus c (C,)."""
    depth, filters = w.size // w.shape[3], w.shape[3]
    images = share(dx.shape[0], CHUNKS, dy.size * depth)
    panels = packed_shape(filters, depth, dx.dtype)
    parallel_for(
        _input_gradient, -(-dx.shape[0] // images), (dy, w, c), (dx,), tuple(window), images,
        scratch={
            "columns": ((_block(depth, dx.itemsize), depth), dx.dtype),
            "packed": (panels, dx.dtype),
            "zeros": (panels[2:], dx.dtype),
        },
    )


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window
) -> None:
    """Write dw and db, the gradients of the kernel and the bias."""
    filters = dy.shape[3]
    depth, positions = dw.size // filters, dy.size // filters
    length = max(share(positions, CHUNKS, positions * dw.size), _LEAST_POSITIONS)
    chunks = -(-positions // length)
    block = min(BLOCK, length)  # positions per sum, for any size of their columns
    partial = np.empty((chunks, dw.size), dw.dtype)
    parallel_for(
        _kernel_gradient, chunks, (x, dy), (partial,), tuple(window), length,
        scratch={
            "columns": ((block, depth), x.dtype),
            "packed": (packed_shape(block, filters, x.dtype), x.dtype),
            "zeros": (packed_shape(1, 1, x.dtype)[2:], x.dtype),
            "sums": ((waiting_sums(-(-length // block), FEW) * dw.size,), x.dtype),
        },
    )
    sum_sums(partial, dw.reshape(-1))
    sum_rows(dy.reshape(-1, filters), db)


def _block(depth: int, itemsize: int) -> int:
    """Return the number of positions whose columns are computed at a time."""
    return max(_LEAST_BLOCK, _COLUMN_BYTES // (depth * itemsize))


@kernel
def _forward(chunk, scratch, x, w, b, y, window, length):
    """Write y = columns w + b for a chunk of positions."""
    columns, packed = scratch
    channels, filters = w.shape[2], w.shape[3]
    block, depth, positions = len(columns), w.size // filters, y.size // filters
    pack(pointer(w, 0), filters, 1, depth, filters, pointer(packed, 0))
    last = min(positions, (chunk + 1) * length)
    for first in range(chunk * length, last, block):
        count = min(block, last - first)
        _columns(pointer(x, 0), channels, window, first, count, pointer(columns, 0), False)
        multiply(pointer(columns, 0), depth, 1, pointer(packed, 0), pointer(b, 0), 0, 1,
                 pointer(y, first * filters), filters, count, filters, depth, DEPTH)


@kernel
def _input_gradient(chunk, scratch, dy, w, c, dx, window, images):
    """Write dx + c for a chunk of images: dcolumns = dy w', summed if patches overlap."""
    columns, packed, zeros = scratch
    channels, filters = w.shape[2], w.shape[3]
    block, depth, positions = len(columns), w.size // filters, window[10] * window[11]
    clear(pointer(zeros, 0), zeros.size)
    pack(pointer(w, 0), 1, filters, filters, depth, pointer(packed, 0))
    begin, end = chunk * images, min(dx.shape[0], (chunk + 1) * images)
    pixels = window[0] * window[1]
    copy(pointer(c, 0), 0, pointer(dx, begin * pixels * channels), channels,
         (end - begin) * pixels, channels)
    for first in range(begin * positions, end * positions, block):
        count = min(block, end * positions - first)
        multiply(pointer(dy, first * filters), filters, 1, pointer(packed, 0), pointer(zeros, 0), 0,
                 0, pointer(columns, 0), depth, count, depth, filters, DEPTH)
        _columns(pointer(dx, 0), channels, window, first, count, pointer(columns, 0), True)


@kernel
def _kernel_gradient(chunk, scratch, x, dy, partial, window, length):
    """Sum dw = columns' dy over a chunk of positions; see `implicit` for the order."""
    columns, packed, zeros, sums = scratch
    channels, filters = x.shape[3], dy.shape[3]
    block, depth, positions = len(columns), partial.shape[1] // filters, dy.size // filters
    size, width, waiting = depth * filters, zeros.size, 0
    dw = pointer(partial, chunk * size)
    clear(pointer(zeros, 0), width)
    begin = chunk * length
    end = min(positions, begin + length)
    for first in range(begin, end, block):
        count = min(block, end - first)
        done = (first - begin) // block
        total = pointer(sums, (waiting - 1) * size) if waiting else dw
        _columns(pointer(x, 0), channels, window, first, count, pointer(columns, 0), False)
        pack(pointer(dy, first * filters), filters, 1, count, filters, pointer(packed, 0))
        for f in range(0, filters, width):
            block_of_rows(pointer(columns, 0), 1, depth, 0, pointer(packed, f * count), width,
                          pointer(zeros, 0), 0, pointer(total, f), filters, depth,
                          min(width, filters - f), count, 1, done % FEW > 0)
        last = first + count == end
        if done % FEW == FEW - 1 or last:
            waiting = add_waiting(waiting + 1, done // FEW + 1, last, dw, 0, pointer(sums, 0),
                                  size, 1, size)


@helper
def _columns(x, channels, window, first, count, columns, back):
    """Copy the patches of `count` positions to columns, or, if `back`, add columns to the patches.

    Elements in the padding are not added.
    """
    height, width, kh, kw, sh, sw, dh, dw, top, left, oh, ow = window
    run = kw if dw == 1 else 1
    for p in range(first, first + count):
        n, oy, ox = p // (oh * ow), p // ow % oh, p % ow
        for ky in range(kh):
            iy = oy * sh + ky * dh - top
            for kx in range(0, kw, run):
                ix = ox * sw + kx * dw - left
                begin = max(0, -ix)  # of the part of the run that is inside the image
                end = min(run, width - ix) if 0 <= iy < height else 0
                patch = pointer(x, ((n * height + iy) * width + ix) * channels)
                if back:
                    for e in range(begin * channels, end * channels):
                        patch[e] += columns[e]
                else:
                    clear(columns, run * channels)
                    for e in range(begin * channels, end * channels):
                        columns[e] = patch[e]
                columns = pointer(columns, run * channels)
