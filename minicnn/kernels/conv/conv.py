"""Convolution and its gradients; this file alone chooses how they are computed.

`forward`, `input_gradient` and `kernel_gradient` are the general path: every configuration, float32
and float64. `fused_forward`, `fused_input_gradient` and `pooled_gradients` take a fast path
(`direct`, `winograd`, `pooled`) where there is one for the configuration, else the general one.

In mathematics, with the patch of x under the window at output position p written as row p of
`columns` (`im2col`), a convolution and its gradients are three matrix products:

    y = columns w + b        dcolumns = dy w'        dw = columns' dy        db = 1' dy

    x (N, H, W, C)   w (KH, KW, C, F)   b (F,)   y (N, OH, OW, F)

The columns of a whole batch would be KH * KW times the size of x, so they are made a block of
positions at a time, at most a megabyte, and used while they lie in the cache.
"""

from typing import Any

import numpy as np

from minicnn.kernels import pooling
from minicnn.kernels.conv import direct, pooled, winograd
from minicnn.kernels.conv.im2col import add_columns, columns_of
from minicnn.kernels.elementwise import BLOCK, blocks_of, sum_sums
from minicnn.kernels.gemm import clear, multiply, pack, packed_shape
from minicnn.kernels.jit import kernel
from minicnn.kernels.simd import ZEROED, pointer
from minicnn.kernels.threads import check, parallel_for, share
from minicnn.kernels.window import Window, slide

_CHUNKS = 16  # at most; enough to keep the threads of a small machine evenly busy
_COLUMN_BYTES = 1 << 20
_LEAST_BLOCK = 8  # positions whose columns are made at a time
_LEAST_POSITIONS = 60  # of a chunk: below that, packing w again costs more than a thread gains


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window, relu: bool = False
) -> None:
    """Write y = x * w + b, and max(y, 0) where `relu` is asked."""
    _check(x, w, b, y, window)
    depth, filters = w.size // w.shape[3], w.shape[3]
    positions = y.size // filters
    length = max(share(positions, _CHUNKS), _LEAST_POSITIONS)
    parallel_for(
        _forward, -(-positions // length), (x, w, b), (y,), tuple(window), length, relu,
        scratch={
            "columns": ((_block(depth, x.itemsize), depth), x.dtype),
            "packed": (packed_shape(depth, filters, x.dtype), x.dtype),
        },
    )


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx, the gradient of the input of y = x * w + b."""
    _check(dx, w, None, dy, window)
    depth, filters = w.size // w.shape[3], w.shape[3]
    images = share(dx.shape[0], _CHUNKS)
    panels = packed_shape(filters, depth, dx.dtype)
    parallel_for(
        _input_gradient, -(-dx.shape[0] // images), (dy, w), (dx,), tuple(window), images,
        scratch={
            "columns": ((_block(depth, dx.itemsize), depth), dx.dtype),
            "packed": (panels, dx.dtype),
            "zeros": (panels[2:], dx.dtype),
        },
    )


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window
) -> None:
    """Write dw and db, the gradients of the kernel and of the bias of y = x * w + b."""
    _check(x, dw, db, dy, window)
    filters = dy.shape[3]
    depth, positions = dw.size // filters, dy.size // filters
    length = max(share(positions, _CHUNKS), _LEAST_POSITIONS)
    chunks = -(-positions // length)
    block = _block(max(depth, filters), x.itemsize)  # dy is packed beside it
    # One partial sum of dw a chunk, and one of db a block of its positions.
    partial = np.empty((chunks, depth, filters), dw.dtype)
    biases = np.empty((chunks, blocks_of(length), filters), dw.dtype)
    parallel_for(
        _kernel_gradient, chunks, (x, dy), (partial, biases), tuple(window), length,
        scratch={
            "columns": ((block, depth), x.dtype),
            "packed": (packed_shape(block, filters, x.dtype), x.dtype),
        },
    )
    total = np.empty(dw.size, dw.dtype)
    sum_sums(partial, total)
    dw[...] = total.reshape(dw.shape)
    sum_sums(biases, db)


def fused_forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, code: np.ndarray | None,
    window: Window, relu: bool,
) -> None:
    """Write y = x * w + b, with ReLU where asked; with a `code`, its 2x2 maxima after ReLU.

    Then y and code are (N, OH // 2, OW // 2, F), and code says which of the four a maximum is, or
    that ReLU made it zero: what `pooled_gradients` needs.
    """
    _check(x, w, b, y, window, code)
    path, pool = _fast_path(x, w, window), code is not None
    if path is not None:
        code = np.empty((0, 0, 0, 0), np.uint8) if code is None else code
        path.forward(x, w, b, y, code, window, relu or pool, pool, _CHUNKS)
    elif code is None:
        forward(x, w, b, y, window, relu)
    else:
        whole = np.empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
        forward(x, w, b, whole, window, relu=True)
        pooling.forward(whole, y, code, _pool_window(window))
        code[y <= 0] = ZEROED


def fused_input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx as `input_gradient` does.

    With stride 1 it is a convolution itself: of dy, padded by what the window reaches beyond its
    first tap, with the kernel turned by half a circle and its channels and filters exchanged.
    """
    turned = np.ascontiguousarray(w[::-1, ::-1].transpose(0, 1, 3, 2))
    back = window._replace(
        height=window.out_h, width=window.out_w, out_h=window.height, out_w=window.width,
        top=window.kernel_h - 1 - window.top, left=window.kernel_w - 1 - window.left,
    )
    if _fast_path(dy, turned, back) is winograd:
        fused_forward(dy, turned, np.zeros(dx.shape[3], dx.dtype), dx, None, back, relu=False)
    else:
        input_gradient(dy, w, dx, window)


def pooled_gradients(
    x: np.ndarray, dy: np.ndarray, code: np.ndarray, w: np.ndarray, dw: np.ndarray, db: np.ndarray,
    dx: np.ndarray | None, window: Window,
) -> None:
    """Write the gradients of `fused_forward` with a code; dx is None where it is not asked."""
    _check(x, w, db, dy, window, code)
    _check(x if dx is None else dx, dw, db, dy, window, code)
    if x.dtype == np.float32 and pooled.fits(window):
        pooled.gradients(x, dy, code, w, dw, db, dx, window, _CHUNKS)
        return
    whole = np.empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
    living = np.where(code == ZEROED, x.dtype.type(0), dy)
    pooling.backward(living, code % ZEROED, whole, _pool_window(window))
    kernel_gradient(x, whole, dw, db, window)
    if dx is not None:
        input_gradient(whole, w, dx, window)


def _check(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, y: np.ndarray, window: Window,
    code: np.ndarray | None = None,
) -> None:
    """Raise where shapes do not fit together; with a `code`, y is what is left after pooling."""
    (*_, channels, filters), halved = w.shape, 1 if code is None else 2
    shape = (len(x), window.out_h // halved, window.out_w // halved, filters)
    check(
        x=(x, (len(x), window.height, window.width, channels)), y=(y, shape),
        w=(w, (window.kernel_h, window.kernel_w, channels, filters)),
        **({} if b is None else {"b": (b, (filters,))}),
    )
    if code is not None:
        check(code=(code, shape))


def _fast_path(x: np.ndarray, w: np.ndarray, window: Window) -> Any:
    """Return the module whose `forward` is the fastest for a convolution, or None."""
    if x.dtype != np.float32:
        return None
    if direct.fits(window, w.shape[2]):
        return direct
    return winograd if winograd.fits(window) else None


def _pool_window(window: Window) -> Window:
    return slide((window.out_h, window.out_w), (2, 2), (2, 2), "valid")


def _block(depth: int, itemsize: int) -> int:
    """Return how many positions' columns are made at a time."""
    return max(_LEAST_BLOCK, _COLUMN_BYTES // (depth * itemsize))


@kernel
def _forward(chunk, scratch, x, w, b, y, window, length, relu):
    """Y = columns w + b for a chunk of positions."""
    space, packed = scratch
    channels, filters = w.shape[2], w.shape[3]
    block, depth, positions = len(space), w.size // filters, y.size // filters
    pack(pointer(w, 0), filters, 1, depth, filters, pointer(packed, 0))
    last = min(positions, (chunk + 1) * length)
    for first in range(chunk * length, last, block):
        count = min(block, last - first)
        columns = columns_of(pointer(x, 0), channels, window, first, count, pointer(space, 0))
        out = pointer(y, first * filters)
        multiply(columns, depth, 1, pointer(packed, 0), pointer(b, 0), 0, 1, out, filters,
                 count, filters, depth)
        if relu:
            for e in range(count * filters):
                out[e] = 0 if out[e] < 0 else out[e]


@kernel
def _input_gradient(chunk, scratch, dy, w, dx, window, images):
    """Write dx for a chunk of images: dcolumns = dy w', added up where patches overlap."""
    columns, packed, zeros = scratch
    channels, filters = w.shape[2], w.shape[3]
    block, depth, positions = len(columns), w.size // filters, window[10] * window[11]
    clear(pointer(zeros, 0), zeros.size)
    pack(pointer(w, 0), 1, filters, filters, depth, pointer(packed, 0))
    begin, end = chunk * images, min(dx.shape[0], (chunk + 1) * images)
    dx[begin:end] = 0
    for first in range(begin * positions, end * positions, block):
        count = min(block, end * positions - first)
        multiply(pointer(dy, first * filters), filters, 1, pointer(packed, 0), pointer(zeros, 0), 0,
                 0, pointer(columns, 0), depth, count, depth, filters)
        add_columns(pointer(columns, 0), channels, window, first, count, pointer(dx, 0))


@kernel
def _kernel_gradient(chunk, scratch, x, dy, partial, biases, window, length):
    """Sum dw = columns' dy and db = 1' dy over a chunk of positions."""
    space, packed = scratch
    channels, filters = x.shape[3], dy.shape[3]
    block, depth, positions = len(space), partial.shape[1], dy.size // filters
    partial[chunk] = 0
    biases[chunk] = 0
    dw, sums = pointer(partial, chunk * depth * filters), pointer(biases, chunk * biases[0].size)
    begin, last = chunk * length, min(positions, (chunk + 1) * length)
    for first in range(begin, last, block):
        count = min(block, last - first)
        columns = columns_of(pointer(x, 0), channels, window, first, count, pointer(space, 0))
        gradient = pointer(dy, first * filters)
        pack(gradient, filters, 1, count, filters, pointer(packed, 0))
        multiply(columns, 1, depth, pointer(packed, 0), dw, filters, 1, dw, filters,
                 depth, filters, count)
        for p in range(count):
            db = pointer(sums, (first + p - begin) // BLOCK * filters)
            for f in range(filters):
                db[f] += gradient[p * filters + f]
