"""Convolution straight from its definition, for few input channels, float32.

With few channels a patch is short, and making columns of it costs more than the products. Here a
2x2 block of outputs and 16 filters stay in eight vector registers while the taps pass by:

    y[i, j] += x[s i + u, s j + v, c] w[u, v, c]        for all u, v, c

A 2x2 block is also one window of a 2x2 max pooling, so bias, ReLU and pooling are done on it before
anything is written. The padded image and 16 filters lie in the first-level cache.
"""

import numpy as np

from minicnn.kernels.gemm import PANEL_BYTES, pack
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.plane import emit_block, emit_pooled, fill_plane
from minicnn.kernels.pool import parallel_for, share
from minicnn.kernels.simd import VECTOR_BYTES, broadcast, fma, load, pointer, spread, store
from minicnn.kernels.window import Window

_PANEL = PANEL_BYTES // 4
_LANES = VECTOR_BYTES // 4
_CHANNELS = 8  # below: from there on Winograd or im2col are faster
_TAPS = 512  # of 16 filters, so that they fit into the first-level cache


def fits(window: Window, channels: int) -> bool:
    """Return whether this is the way for such a convolution."""
    undilated = window.dilation_h == window.dilation_w == 1
    overlap = window.stride_h <= window.kernel_h and window.stride_w <= window.kernel_w
    return undilated and overlap and channels < _CHANNELS and window.taps * channels <= _TAPS


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, code: np.ndarray, window: Window,
    relu: bool, pool: bool, chunks: int,
) -> None:
    """Write what `winograd.forward` writes."""
    images = share(len(x), chunks)
    blocks_h, blocks_w = (y.shape[1:3]) if pool else (-(-y.shape[1] // 2), -(-y.shape[2] // 2))
    high = max((2 * blocks_h - 1) * window.stride_h + window.kernel_h, x.shape[1] + window.top)
    wide = max((2 * blocks_w - 1) * window.stride_w + window.kernel_w, x.shape[2] + window.left)
    panels = -(-w.shape[3] // _PANEL)
    scratch = (panels * (w.size // w.shape[3]) + 5) * _PANEL + high * wide * x.shape[3]
    parallel_for(_forward, -(-len(x) // images), (x, w, b), (y, code), tuple(window), images,
                 blocks_h, blocks_w, high, wide, relu, pool, scratch=scratch)


@kernel
def _forward(chunk, scratch, x, w, b, y, code, window, images, blocks_h, blocks_w, high, wide, relu,
             pool):
    _, _, kh, kw, sh, sw, _, _, top, left, _, _ = window
    channels, (_, height, width, filters) = w.shape[2], y.shape
    taps = kh * kw * channels
    panels = (filters + _PANEL - 1) // _PANEL
    packed = pointer(scratch, 0)
    bias = pointer(packed, panels * taps * _PANEL)
    block = pointer(bias, _PANEL)  # 2x2 outputs of eight filters, and of the eight behind them
    plane = pointer(block, 4 * _PANEL)
    pack(pointer(w, 0), filters, 1, taps, filters, packed)
    for e in range(high * wide * channels):
        plane[e] = 0
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        fill_plane(x, n, pointer(plane, (top * wide + left) * channels), wide, channels)
        for panel in range(panels):
            first = panel * _PANEL
            for f in range(_PANEL):
                bias[f] = b[first + f] if first + f < filters else 0
            for by in range(blocks_h):
                for bx in range(blocks_w):
                    corner = (2 * by * sh * wide + 2 * bx * sw) * channels
                    _block(pointer(plane, corner), sh * wide * channels, sw * channels,
                           wide * channels, pointer(packed, panel * taps * _PANEL), kh,
                           kw * channels, block)
                    for lane in range(0, min(_PANEL, filters - first), _LANES):
                        outputs, shift = pointer(block, 4 * lane), pointer(bias, lane)
                        row, column, count = 2 * by >> pool, 2 * bx >> pool, filters - first - lane
                        at = ((n * height + row) * width + column) * filters + first + lane
                        if pool:
                            emit_pooled(outputs, 2 * _LANES, shift, pointer(y, at),
                                        pointer(code, at), count)
                        else:
                            emit_block(outputs, 2 * _LANES, shift, pointer(y, at), width * filters,
                                       filters, height - row, width - column, count, relu)


@helper
def _block(x, down, right, row, w, kh, run, block):
    """Compute 2x2 outputs for 16 filters; their patches lie `down` and `right` apart in x."""
    a0, a1, b0, b1, c0, c1, d0, d1 = (
        spread(np.float32(0)), spread(np.float32(0)), spread(np.float32(0)), spread(np.float32(0)),
        spread(np.float32(0)), spread(np.float32(0)), spread(np.float32(0)), spread(np.float32(0)),
    )
    for u in range(kh):
        for e in range(run):  # the taps and channels of a row of the window lie side by side
            w0, w1 = load(w, 0), load(w, _LANES)
            tap = pointer(x, u * row + e)
            x0, x1 = broadcast(tap, 0), broadcast(tap, right)
            a0, a1 = fma(x0, w0, a0), fma(x0, w1, a1)
            b0, b1 = fma(x1, w0, b0), fma(x1, w1, b1)
            x2, x3 = broadcast(tap, down), broadcast(tap, down + right)
            c0, c1 = fma(x2, w0, c0), fma(x2, w1, c1)
            d0, d1 = fma(x3, w0, d0), fma(x3, w1, d1)
            w = pointer(w, _PANEL)
    store(a0, block, 0)
    store(b0, block, _LANES)
    store(c0, block, 2 * _LANES)
    store(d0, block, 3 * _LANES)
    store(a1, block, 4 * _LANES)
    store(b1, block, 5 * _LANES)
    store(c1, block, 6 * _LANES)
    store(d1, block, 7 * _LANES)
