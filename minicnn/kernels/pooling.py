"""Pooling: the largest element or the mean of each window, and their gradients.

x (N, H, W, C) -> y (N, OH, OW, C), winner (N, OH, OW, C)

`winner` is the index of the largest element in its window, in row-major order; of equal elements
the first. Only this element gets the gradient of y. Padding is never the largest element. NaN is
always the largest, so that it propagates. A mean is over the elements inside the image.

The kernels combine a row of outputs with one tap of its windows at a time (`window.overlap`).
"""

import functools
from typing import Any

import numpy as np

from minicnn.kernels.gemm import clear
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import pointer
from minicnn.kernels.threads import CHUNKS, check, parallel_for, share, step
from minicnn.kernels.window import Window, overlap

_NONE = np.empty((0, 0, 0, 0), np.uint8)  # in place of winners: each element gets the gradient
_WORK = 16  # of an element of x, in multiply-adds


def winner_type(window: Window) -> type[np.unsignedinteger]:
    """Return the smallest type that can index the elements of a window."""
    return np.uint8 if window.taps <= 256 else np.uint32


def forward(x: np.ndarray, y: np.ndarray, winner: np.ndarray, window: Window) -> None:
    """Write the largest elements and their indices in the windows."""
    _run(_forward, x, y, winner, (x,), (y, winner), window)


def backward(dy: np.ndarray, winner: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx: each dy is added at the largest element of its window."""
    _run(_backward, dx, dy, winner, (dy, winner), (dx,), window, False)


def mean(x: np.ndarray, y: np.ndarray, window: Window) -> None:
    """Write the means of the windows."""
    numbers = _numbers(window, x.shape[3], x.dtype)
    _run(_mean, x, y, y, (x, numbers), (y,), window, scratch={"sums": (y.shape[2:], np.float64)})


def mean_gradient(dy: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx: each dy is spread evenly over its window."""
    parts = np.empty_like(dy)
    step(np.divide, dy, _numbers(window, dx.shape[3], dx.dtype), parts)
    _run(_backward, dx, dy, dy, (parts, _NONE), (dx,), window, True)


def _run(function, x, y, winner, reads, writes, window, *options, **scratch):
    """Check the shapes of x, y and the winners, and run a kernel on chunks of images.

    A mean has no winners: y is given in their place.
    """
    n, channels = len(x), x.shape[3]
    shape = (n, window.out_h, window.out_w, channels)
    check(x=(x, (n, window.height, window.width, channels)), y=(y, shape))
    check(winner=(winner, shape))
    images = share(n, CHUNKS, _WORK * x.size)
    parallel_for(function, -(-n // images), reads, writes, tuple(window), images, *options,
                 **scratch)


@functools.cache
def _numbers(window: Window, channels: int, dtype: Any) -> np.ndarray:
    """Return the number of elements in the windows of an image of y (OH, OW, C)."""
    rows, columns = (
        np.minimum(first + taps, size) - np.maximum(first, 0)
        for first, taps, size in (
            (np.arange(window.out_h) * window.stride_h - window.top, window.kernel_h,
             window.height),
            (np.arange(window.out_w) * window.stride_w - window.left, window.kernel_w,
             window.width),
        )
    )
    return np.repeat(np.outer(rows, columns).astype(dtype)[..., None], channels, axis=2)


@kernel
def _forward(chunk, scratch, x, y, winner, window, images):
    """Compare the taps from the last to the first, so that of equal elements the first remains."""
    rows, channels = y.shape[1], y.shape[3]
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        y[n] = -np.inf
        for row in range(rows):
            for ky in range(window[2] - 1, -1, -1):
                for kx in range(window[3] - 1, -1, -1):
                    inside, out, count = overlap(window, ky, kx, row)
                    at = n * y[0].size + out * channels
                    _take_larger(pointer(x, n * x[0].size + inside * channels),
                                 window[5] * channels, pointer(y, at), pointer(winner, at),
                                 ky * window[3] + kx, count, channels)


@helper
def _take_larger(x, step, y, winner, tap, count, channels):
    """Write the elements of a tap that are not smaller than y to y, and the tap to winner."""
    for i in range(count):
        for c in range(channels):
            value, at = x[i * step + c], i * channels + c
            larger = value >= y[at] or value != value
            y[at] = value if larger else y[at]
            winner[at] = tap if larger else winner[at]


@kernel
def _mean(chunk, scratch, x, numbers, y, window, images):
    """Add up the windows of a row in float64, so that a large window loses no precision."""
    (sums,) = scratch
    rows, columns, channels = y.shape[1:]
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        for row in range(rows):
            clear(pointer(sums, 0), sums.size)
            for ky in range(window[2]):
                for kx in range(window[3]):
                    inside, out, count = overlap(window, ky, kx, row)
                    _add(pointer(x, n * x[0].size + inside * channels), window[5] * channels,
                         pointer(sums, (out - row * columns) * channels), count, channels)
            means = pointer(y, (n * rows + row) * sums.size)
            for e in range(sums.size):
                means[e] = pointer(sums, 0)[e] / pointer(numbers, row * sums.size)[e]


@helper
def _add(source, step, sums, count, channels):
    """Add the elements of a tap to the sums of the windows."""
    for i in range(count):
        for c in range(channels):
            sums[i * channels + c] += source[i * step + c]


@kernel
def _backward(chunk, scratch, dy, winner, dx, window, images, to_all):
    rows, channels = dy.shape[1], dy.shape[3]
    for n in range(chunk * images, min(dx.shape[0], (chunk + 1) * images)):
        dx[n] = 0
        for row in range(rows):
            for ky in range(window[2]):
                for kx in range(window[3]):
                    inside, out, count = overlap(window, ky, kx, row)
                    at = n * dy[0].size + out * channels
                    _add_where(pointer(dy, at), pointer(winner, at), ky * window[3] + kx, to_all,
                               pointer(dx, n * dx[0].size + inside * channels),
                               window[5] * channels, count, channels)


@helper
def _add_where(dy, winner, tap, to_all, dx, step, count, channels):
    """Add dy to the elements of a tap, where the tap is the winner or, if `to_all`, everywhere."""
    for i in range(count):
        for c in range(channels):
            at = i * channels + c
            dx[i * step + c] += dy[at] if to_all or winner[at] == tap else 0
