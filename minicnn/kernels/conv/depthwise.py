"""Depthwise convolution: each channel has its own filters, M of them; for all types.

    y[n, i, j, c M + m] = b[c M + m] + sum over u, v of x[n, s i + d u, s j + d v, c] w[u, v, c, m]

    x (N, H, W, C)   w (KH, KW, C, M)   b (C M)   y (N, OH, OW, C M)

With M > 1 each channel of x is repeated M times, so that the kernels see M = 1: every vector of
channels is then a sum of products of vectors. The sums of one row of y, or of dx, are in scratch,
where channels are padded to complete vectors. The loops run over the taps of the window, the
vectors of channels and, innermost, the columns, along which a vector of w stays in a register.
"""

import numpy as np

from minicnn.kernels.elementwise import sum_sums
from minicnn.kernels.gemm import clear, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    VECTOR_BYTES,
    add,
    fma,
    lanes,
    load,
    load_some,
    pointer,
    relu,
    store,
    store_some,
)
from minicnn.kernels.threads import CHUNKS, check, parallel_for, share
from minicnn.kernels.window import Window, overlap


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window,
    rectify: bool = False,
) -> None:
    """Write y = x * w + b, and max(y, 0) if `rectify`."""
    _check(x, w, y, window)
    check(y=(y, y.shape), b=(b, y.shape[3:]))
    _write_products(_repeated(x, w), w, b, y, window, True, rectify)


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx, the gradient of the input x."""
    _check(dx, w, dy, window)
    filters, multiplier = dy.shape[3], w.shape[3]
    repeated = dx if multiplier == 1 else np.empty((*dx.shape[:3], filters), dx.dtype)
    _write_products(dy, w, np.zeros(filters, w.dtype), repeated, window, False, False)
    if multiplier > 1:
        np.sum(repeated.reshape(*dx.shape, multiplier), axis=4, out=dx)


def kernel_gradient(x: np.ndarray, dy: np.ndarray, dw: np.ndarray, window: Window) -> None:
    """Write dw, the gradient of the kernel."""
    _check(x, dw, dy, window)
    partial = np.zeros((len(x), dw.size), dw.dtype)  # the gradient of each image
    images = share(len(x), CHUNKS)
    parallel_for(_kernel_gradient, -(-len(x) // images), (_repeated(x, dw), dy), (partial,),
                 tuple(window), images, work=dy.size * window.taps)
    sum_sums(partial, dw.reshape(-1))


def _check(x: np.ndarray, w: np.ndarray, y: np.ndarray, window: Window) -> None:
    *_, channels, multiplier = w.shape
    check(
        x=(x, (len(x), window.height, window.width, channels)),
        w=(w, (window.kernel_h, window.kernel_w, channels, multiplier)),
        y=(y, (len(x), window.out_h, window.out_w, channels * multiplier)),
    )


def _repeated(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Return x with each channel repeated for each of its filters."""
    return x if w.shape[3] == 1 else np.repeat(x, w.shape[3], axis=3)


def _write_products(
    source: np.ndarray, w: np.ndarray, b: np.ndarray, target: np.ndarray, window: Window,
    forward: bool, rectify: bool,
) -> None:
    """Write y from x, or dx from dy."""
    n, height, width, channels = target.shape
    rows = share(n * height, CHUNKS)
    padded = round_up(channels, VECTOR_BYTES // target.itemsize)
    parallel_for(_products, -(-n * height // rows), (source, w, b), (target,), tuple(window),
                 rows, forward, rectify, work=target.size * window.taps,
                 scratch={"sums": ((width, padded), target.dtype)})


@kernel
def _products(chunk, scratch, source, w, b, target, window, rows, forward, rectify):
    """Write some rows of y or dx: the sums of products of the source and w, plus b."""
    (sums,) = scratch
    height, width, channels = target.shape[1], target.shape[2], target.shape[3]
    padded, step = sums.shape[1], window[5] * channels
    for r in range(chunk * rows, min(target.shape[0] * height, (chunk + 1) * rows)):
        image = pointer(source, r // height * source.shape[1] * source.shape[2] * channels)
        clear(pointer(sums, 0), sums.size)
        for tap in range(window[2] * window[3]):
            x, y, count = overlap(window, tap // window[3], tap % window[3], r % height, forward)
            factor = pointer(w, tap * channels)
            if forward:
                _add_products(pointer(sums, y % width * padded), padded,
                              pointer(image, x * channels), step, factor, count, channels)
            else:
                _add_products(pointer(sums, x % width * padded), window[5] * padded,
                              pointer(image, y * channels), channels, factor, count, channels)
        _write(pointer(sums, 0), padded, pointer(b, 0), pointer(target, r * width * channels),
               width, channels, rectify)


@kernel
def _kernel_gradient(chunk, scratch, x, dy, partial, window, images):
    """Add up the gradient of the kernel for each image of a chunk."""
    rows, columns, channels = dy.shape[1], dy.shape[2], dy.shape[3]
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        image = pointer(x, n * x.shape[1] * x.shape[2] * channels)
        gradient = pointer(dy, n * rows * columns * channels)
        dw = pointer(partial, n * partial.shape[1])
        for row in range(rows):
            for tap in range(window[2] * window[3]):
                x_, y_, count = overlap(window, tap // window[3], tap % window[3], row, True)
                _add_sums(pointer(dw, tap * channels), pointer(image, x_ * channels),
                          window[5] * channels, pointer(gradient, y_ * channels), count, channels)


@helper
def _write(sums, padded, b, y, count, channels, rectify):
    """Write the sums of `count` pixels plus b, with ReLU if `rectify`."""
    for i in range(count):
        for c in range(0, channels, lanes(sums)):
            rest = channels - c
            total = add(load(sums, i * padded + c), load_some(b, c, rest))
            total = relu(total) if rectify else total
            store_some(total, y, i * channels + c, rest)


@helper
def _add_products(sums, step, source, source_step, factor, count, channels):
    """Add the products of `count` pixels of the source with the factor to padded sums."""
    for c in range(0, channels, lanes(sums)):
        rest = channels - c
        weight = load_some(factor, c, rest)
        for i in range(count):
            place = i * step + c
            values = _load(source, i * source_step + c, rest)
            store(fma(values, weight, load(sums, place)), sums, place)


@helper
def _add_sums(target, x, x_step, dy, count, channels):
    """Add the sum of the products of `count` pixels of x and dy to the target."""
    for c in range(0, channels, lanes(target)):
        rest = channels - c
        total = load_some(target, c, 0)  # zeros
        for i in range(count):
            total = fma(_load(x, i * x_step + c, rest), _load(dy, i * channels + c, rest), total)
        store_some(add(load_some(target, c, rest), total), target, c, rest)


@helper
def _load(source, index, rest):
    """Return a vector of channels, padded with zeros if fewer are left."""
    if rest >= lanes(source):
        return load(source, index)
    return load_some(source, index, rest)
