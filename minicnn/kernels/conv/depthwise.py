"""Depthwise convolution: each channel has its own filters, M of them; for all types.

    y[n, i, j, c M + m] = b[c M + m] + sum over u, v of x[n, s i + d u, s j + d v, c] w[u, v, c, m]

    x (N, H, W, C)   w (KH, KW, C, M)   b (C M)   y (N, OH, OW, C M)

With M > 1 each channel of x is repeated M times, so that the kernels see M = 1: every vector of
channels is then a sum of products of vectors, which stays in a register. An element of y, or of dx,
is a sum over some taps of the window, those that meet the image. They are listed once for each
column and for each row: the offset of the source and the number of the tap.
"""

import numpy as np

from minicnn.kernels.elementwise import sum_sums
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    add,
    fma,
    lanes,
    load,
    load_some,
    pointer,
    relu,
    store_some,
)
from minicnn.kernels.threads import CHUNKS, check, depends_on_values, parallel_for, share, step
from minicnn.kernels.window import Window, overlap


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window,
    rectify: bool = False,
) -> None:
    """Write y = x * w + b, and max(y, 0) if `rectify`."""
    _check(x, w, y, window)
    check(y=(y, y.shape), b=(b, y.shape[3:]))
    if w.shape[3] > 1:
        depends_on_values()  # a tape does not hold what NumPy does
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
    partial = np.empty((len(x), dw.size), dw.dtype)  # the gradient of each image
    step(partial.fill, 0)
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
    n, height, width, _ = target.shape
    rows = share(n * height, CHUNKS)
    lists = {"down": ((1, window.kernel_h + 1, 2), np.int64),
             "across": ((width, window.kernel_w + 1, 2), np.int64)}
    parallel_for(_products, -(-n * height // rows), (source, w, b), (target,), tuple(window),
                 rows, forward, rectify, work=target.size * window.taps, scratch=lists)


@kernel
def _products(chunk, scratch, source, w, b, target, window, rows, forward, rectify):
    """Write some rows of y or dx: the sums of products of the source and w, plus b."""
    down, across = scratch
    _, _, kh, kw, sh, sw, dh, dw, top, left, _, _ = window
    (_, high, wide, _), (_, height, width, channels) = source.shape, target.shape
    for x in range(width):
        _list_taps(pointer(across, x * 2 * (kw + 1)), x, kw, sw, dw, left, wide, channels, channels,
                   forward)
    for r in range(chunk * rows, min(target.shape[0] * height, (chunk + 1) * rows)):
        image = pointer(source, r // height * source[0].size)
        _list_taps(pointer(down, 0), r % height, kh, sh, dh, top, high, wide * channels,
                   kw * channels, forward)
        for x in range(width):
            for c in range(0, channels, 2 * lanes(image)):
                _write(pointer(image, c), pointer(w, c), pointer(b, c), pointer(down, 0),
                       pointer(across, x * 2 * (kw + 1)),
                       pointer(target, (r * width + x) * channels + c), channels - c, rectify)


@helper
def _list_taps(taps, place, count, stride, dilation, before, size, step, w_step, forward):
    """Write the number of taps that meet the source; for each, its offsets in the source and in w.

    They are the taps of one axis for row or column `place` of the target. The source has `size`
    rows or columns, `step` elements apart; those of w are `w_step` elements apart.
    """
    found = 0
    for tap in range(count):
        at = place * stride + tap * dilation - before
        if not forward:
            at = place + before - tap * dilation
            at = at // stride if at % stride == 0 else -1
        if 0 <= at < size:
            found += 1
            taps[2 * found - 1], taps[2 * found] = at * step, tap * w_step
    taps[0] = found


@helper
def _write(source, w, b, down, across, y, rest, rectify):
    """Write two vectors of sums plus b, with ReLU if `rectify`; `rest` channels are left."""
    size = lanes(source)
    first = load_some(b, 0, rest)
    second = load_some(b, size, rest - size)
    for i in range(down[0]):
        line = pointer(source, down[2 * i + 1])
        factors = pointer(w, down[2 * i + 2])
        for j in range(across[0]):
            x = pointer(line, across[2 * j + 1])
            factor = pointer(factors, across[2 * j + 2])
            first = fma(_load(x, 0, rest), _load(factor, 0, rest), first)
            second = fma(_load(x, size, rest - size), _load(factor, size, rest - size), second)
    store_some(relu(first) if rectify else first, y, 0, rest)
    store_some(relu(second) if rectify else second, y, size, rest - size)


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
                x_, y_, count = overlap(window, tap // window[3], tap % window[3], row)
                _add_sums(pointer(dw, tap * channels), pointer(image, x_ * channels),
                          window[5] * channels, pointer(gradient, y_ * channels), count, channels)


@helper
def _add_sums(target, x, x_step, dy, count, channels):
    """Add the sum of the products of `count` pixels of x and dy to the target."""
    size = lanes(target)
    for c in range(0, channels, 2 * size):  # two sums at a time, for the latency of fma
        rest = channels - c
        first = second = load_some(target, c, 0)  # zeros
        for i in range(count):
            at, gradient = i * x_step + c, i * channels + c
            first = fma(_load(x, at, rest), _load(dy, gradient, rest), first)
            second = fma(_load(x, at + size, rest - size), _load(dy, gradient + size, rest - size),
                         second)
        store_some(add(load_some(target, c, rest), first), target, c, rest)
        second = add(load_some(target, c + size, rest - size), second)
        store_some(second, target, c + size, rest - size)


@helper
def _load(source, index, rest):
    """Return a vector of channels, padded with zeros if fewer are left."""
    if rest >= lanes(source):
        return load(source, index)
    return load_some(source, index, rest)
