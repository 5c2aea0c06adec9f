"""Max pooling: the largest element under each window, and its gradient.

x (N, H, W, C) -> y (N, OH, OW, C), winner (N, OH, OW, C)

`winner` is the number of the tap, counted through the window by rows, that y came from: the first
one among equals. The gradient of y goes to that tap alone. Padding never wins. NaN does, so that it
is seen.
"""

import numpy as np

from minicnn.kernels.jit import kernel
from minicnn.kernels.pool import parallel_for
from minicnn.kernels.window import Window


def winner_type(window: Window) -> type[np.unsignedinteger]:
    """Return the smallest type that can number the taps of a window."""
    return np.uint8 if window.taps <= 256 else np.uint32


def forward(x: np.ndarray, y: np.ndarray, winner: np.ndarray, window: Window) -> None:
    """Write the largest elements and which taps they came from."""
    parallel_for(_forward, x.shape[0], (x,), (y, winner), tuple(window))


def backward(dy: np.ndarray, winner: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx: each dy at the tap that won, added up where windows overlap."""
    parallel_for(_backward, dx.shape[0], (dy, winner), (dx,), tuple(window))


@kernel
def _forward(n, scratch, x, y, winner, window):
    height, width, kh, kw, sh, sw, _, _, top, left, oh, ow = window
    for oy in range(oh):
        for ox in range(ow):
            best, tap = y[n, oy, ox], winner[n, oy, ox]
            fresh = True
            for ky in range(kh):
                iy = oy * sh + ky - top
                for kx in range(kw):
                    ix = ox * sw + kx - left
                    if iy < 0 or iy >= height or ix < 0 or ix >= width:
                        continue
                    value, number = x[n, iy, ix], ky * kw + kx
                    if fresh:
                        best[:] = value
                        tap[:] = number
                        fresh = False
                        continue
                    for c in range(best.size):
                        larger = value[c] > best[c] or (value[c] != value[c] and best[c] == best[c])
                        best[c] = value[c] if larger else best[c]
                        tap[c] = number if larger else tap[c]


@kernel
def _backward(n, scratch, dy, winner, dx, window):
    _, _, kh, kw, sh, sw, _, _, top, left, oh, ow = window
    dx[n] = 0
    for oy in range(oh):
        for ox in range(ow):
            for c in range(dy.shape[3]):
                tap = np.int64(winner[n, oy, ox, c])
                iy, ix = oy * sh + tap // kw - top, ox * sw + tap % kw - left
                dx[n, iy, ix, c] += dy[n, oy, ox, c]
