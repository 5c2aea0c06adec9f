"""Pooling: the largest element or the mean of each window, and their gradients.

x (N, H, W, C) -> y (N, OH, OW, C), winner (N, OH, OW, C)

`winner` is the index of the largest element in its window, in row-major order; of equal elements
the first. Only this element gets the gradient of y. Padding is never the largest element. NaN is
always the largest, so that it propagates. A mean is over the elements inside the image.
"""

import numpy as np

from minicnn.kernels.gemm import clear
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import pointer
from minicnn.kernels.threads import CHUNKS, check, parallel_for, share
from minicnn.kernels.window import Window


def winner_type(window: Window) -> type[np.unsignedinteger]:
    """Return the smallest type that can index the elements of a window."""
    return np.uint8 if window.taps <= 256 else np.uint32


def forward(x: np.ndarray, y: np.ndarray, winner: np.ndarray, window: Window) -> None:
    """Write the largest elements and their indices in the windows."""
    _check(x, y, winner, window)
    images = share(len(x), CHUNKS)
    parallel_for(_forward, -(-len(x) // images), (x,), (y, winner), tuple(window), images)


def backward(dy: np.ndarray, winner: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx: each dy is added at the largest element of its window."""
    _check(dx, dy, winner, window)
    images = share(len(dx), CHUNKS)
    parallel_for(_backward, -(-len(dx) // images), (dy, winner), (dx,), tuple(window), images)


def mean(x: np.ndarray, y: np.ndarray, window: Window) -> None:
    """Write the means of the windows."""
    _check(x, y, y, window)
    images = share(len(x), CHUNKS)
    parallel_for(_mean, -(-len(x) // images), (x,), (y,), tuple(window), images,
                 scratch={"sums": (x.shape[3:], x.dtype)})


def mean_gradient(dy: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx: each dy is spread evenly over its window."""
    _check(dx, dy, dy, window)
    images = share(len(dx), CHUNKS)
    parallel_for(_mean_gradient, -(-len(dx) // images), (dy,), (dx,), tuple(window), images,
                 scratch={"parts": (dx.shape[3:], dx.dtype)})


def _check(x: np.ndarray, y: np.ndarray, winner: np.ndarray, window: Window) -> None:
    n, channels = len(x), x.shape[3]
    shape = (n, window.out_h, window.out_w, channels)
    check(x=(x, (n, window.height, window.width, channels)), y=(y, shape))
    check(winner=(winner, shape))


@kernel
def _forward(chunk, scratch, x, y, winner, window, images):
    height, width, kh, kw, sh, sw, _, _, top, left, oh, ow = window
    channels = x.shape[3]
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        for p in range(n * oh * ow, (n + 1) * oh * ow):
            row, column = p // ow % oh * sh - top, p % ow * sw - left
            fresh = True
            for iy in range(max(row, 0), min(row + kh, height)):
                for ix in range(max(column, 0), min(column + kw, width)):
                    value = pointer(x, ((n * height + iy) * width + ix) * channels)
                    _take_larger(value, pointer(y, p * channels), pointer(winner, p * channels),
                                 (iy - row) * kw + ix - column, channels, fresh)
                    fresh = False


@helper
def _take_larger(value, best, tap, number, channels, fresh):
    for c in range(channels):
        larger = fresh or value[c] > best[c] or (value[c] != value[c] and best[c] == best[c])
        best[c] = value[c] if larger else best[c]
        tap[c] = number if larger else tap[c]


@kernel
def _backward(chunk, scratch, dy, winner, dx, window, images):
    height, width, kh, kw, sh, sw, _, _, top, left, oh, ow = window
    channels = dx.shape[3]
    for n in range(chunk * images, min(dx.shape[0], (chunk + 1) * images)):
        dx[n] = 0
        for p in range(n * oh * ow, (n + 1) * oh * ow):
            row, column = p // ow % oh * sh - top, p % ow * sw - left
            for iy in range(max(row, 0), min(row + kh, height)):
                for ix in range(max(column, 0), min(column + kw, width)):
                    target = pointer(dx, ((n * height + iy) * width + ix) * channels)
                    _add_where(pointer(dy, p * channels), pointer(winner, p * channels),
                               (iy - row) * kw + ix - column, target, channels)


@helper
def _add_where(gradient, tap, number, target, channels):
    for c in range(channels):
        target[c] += gradient[c] if tap[c] == number else 0


@kernel
def _mean(chunk, scratch, x, y, window, images):
    """Add the sums of the rows of a window, so that a large window loses little precision."""
    (sums,) = scratch
    height, width, kh, kw, sh, sw, _, _, top, left, oh, ow = window
    line = pointer(sums, 0)
    channels = x.shape[3]
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        for p in range(n * oh * ow, (n + 1) * oh * ow):
            row, column = p // ow % oh * sh - top, p % ow * sw - left
            total = pointer(y, p * channels)
            clear(total, channels)
            for iy in range(max(row, 0), min(row + kh, height)):
                clear(line, channels)
                for ix in range(max(column, 0), min(column + kw, width)):
                    _add(pointer(x, ((n * height + iy) * width + ix) * channels), line, channels)
                _add(line, total, channels)
            count = _inside(row, kh, height) * _inside(column, kw, width)
            for c in range(channels):
                total[c] /= count


@kernel
def _mean_gradient(chunk, scratch, dy, dx, window, images):
    (parts,) = scratch
    height, width, kh, kw, sh, sw, _, _, top, left, oh, ow = window
    channels = dx.shape[3]
    for n in range(chunk * images, min(dx.shape[0], (chunk + 1) * images)):
        dx[n] = 0
        for p in range(n * oh * ow, (n + 1) * oh * ow):
            row, column = p // ow % oh * sh - top, p % ow * sw - left
            count = _inside(row, kh, height) * _inside(column, kw, width)
            for c in range(channels):
                parts[c] = pointer(dy, p * channels)[c] / count
            for iy in range(max(row, 0), min(row + kh, height)):
                for ix in range(max(column, 0), min(column + kw, width)):
                    target = pointer(dx, ((n * height + iy) * width + ix) * channels)
                    _add(pointer(parts, 0), target, channels)


@helper
def _inside(first, taps, size):
    """Return the number of taps that are inside the image."""
    return min(first + taps, size) - max(first, 0)


@helper
def _add(source, target, channels):
    for c in range(channels):
        target[c] += source[c]
