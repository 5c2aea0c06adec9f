"""Convolution straight from its definition, for few input channels, float32.

With few channels a patch is short, and making columns of it costs more than the products. Here a
2x2 block of outputs for a panel of filters stays in eight vector registers while the taps pass by:

    y[i, j] += x[s i + u, s j + v, c] w[u, v, c]        for all u, v, c

A 2x2 block is also one window of a 2x2 max pooling, so bias, ReLU and pooling are done on it before
anything is written. The padded image and a panel of filters lie in the first-level cache.
"""

import numpy as np

from minicnn.kernels.conv.padded import emit_block, emit_pooled, fill_padded
from minicnn.kernels.gemm import clear, pack, packed_shape
from minicnn.kernels.jit import kernel
from minicnn.kernels.simd import LANES, PANEL, VECTORS, block_2x2, load_some, pointer, store
from minicnn.kernels.threads import parallel_for, share
from minicnn.kernels.window import Window

_CHANNELS = 8  # below: from there on Winograd or im2col are faster
_TAPS = 512  # times channels: 16 filters of so many elements fit into the first-level cache


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
    parallel_for(
        _forward, -(-len(x) // images), (x, w, b), (y, code), tuple(window), images, blocks_h,
        blocks_w, relu, pool,
        scratch={
            "packed": (packed_shape(w.size // w.shape[3], w.shape[3], np.float32), np.float32),
            "bias": ((PANEL,), np.float32),
            "block": ((VECTORS, 4, LANES), np.float32),  # 2x2 outputs for each vector of filters
            "padded": ((high, wide, x.shape[3]), np.float32),
        },
    )


@kernel
def _forward(chunk, scratch, x, w, b, y, code, window, images, blocks_h, blocks_w, relu, pool):
    """Compute images, for each a panel of filters at a time, 2x2 outputs at a time."""
    packed, bias, block, padded = scratch
    _, _, kh, kw, sh, sw, _, _, top, left, _, _ = window
    wide, channels, (_, height, width, filters) = padded.shape[1], w.shape[2], y.shape
    taps = kh * kw * channels
    pack(pointer(w, 0), filters, 1, taps, filters, pointer(packed, 0))
    clear(pointer(padded, 0), padded.size)
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        fill_padded(x, n, pointer(padded, (top * wide + left) * channels), wide, channels)
        for first in range(0, filters, PANEL):
            for lane in range(0, PANEL, LANES):
                some = filters - first - lane
                store(load_some(pointer(b, first + lane), 0, some), pointer(bias, lane), 0)
            for by in range(blocks_h):
                for bx in range(blocks_w):
                    corner = (2 * by * sh * wide + 2 * bx * sw) * channels
                    block_2x2(VECTORS, pointer(padded, corner), sh * wide * channels, sw * channels,
                              wide * channels, pointer(packed, first * taps), kh, kw * channels,
                              pointer(block, 0))
                    for lane in range(0, min(PANEL, filters - first), LANES):
                        outputs, shift = pointer(block, 4 * lane), pointer(bias, lane)
                        row, column, count = 2 * by >> pool, 2 * bx >> pool, filters - first - lane
                        at = ((n * height + row) * width + column) * filters + first + lane
                        if pool:
                            emit_pooled(outputs, 2 * LANES, shift, pointer(y, at),
                                        pointer(code, at), count)
                        else:
                            emit_block(outputs, 2 * LANES, shift, pointer(y, at), width * filters,
                                       filters, height - row, width - column, count, relu)
