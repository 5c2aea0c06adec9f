"""Affine maps of images, with bilinear interpolation.

    y[n, i, j, c] = x[n, r, s, c]  with  (r, s) = map[n] (i, j, 1)

Between pixels the value is interpolated; outside the image it is that of the nearest pixel.
"""

import numpy as np

from minicnn.kernels.jit import kernel
from minicnn.kernels.simd import pointer
from minicnn.kernels.threads import CHUNKS, check, parallel_for, share


def warp(x: np.ndarray, maps: np.ndarray, y: np.ndarray) -> None:
    """Write y (N, OH, OW, C) from x (N, H, W, C) and maps (N, 2, 3), which are float64."""
    check(maps=(maps, (len(x), 2, 3)))
    check(x=(x, x.shape), y=(y, (len(x), *y.shape[1:3], x.shape[3])))
    images = share(len(x), CHUNKS)
    parallel_for(_warp, -(-len(x) // images), (x, maps), (y,), images)


@kernel
def _warp(chunk, scratch, x, maps, y, images):
    _, height, width, channels = x.shape
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        m = pointer(maps, 6 * n)
        for i in range(y.shape[1]):
            for j in range(y.shape[2]):
                row = min(max(m[0] * i + m[1] * j + m[2], 0.0), height - 1.0)
                column = min(max(m[3] * i + m[4] * j + m[5], 0.0), width - 1.0)
                top, left = int(row), int(column)
                first = (n * height + top) * width + left
                right = channels * min(1, width - 1 - left)
                upper = pointer(x, first * channels)
                lower = pointer(upper, width * channels * min(1, height - 1 - top))
                target = pointer(y, ((n * y.shape[1] + i) * y.shape[2] + j) * channels)
                down, beside = row - top, column - left
                for c in range(channels):
                    above = upper[c] + beside * (upper[right + c] - upper[c])
                    below = lower[c] + beside * (lower[right + c] - lower[c])
                    target[c] = above + down * (below - above)
