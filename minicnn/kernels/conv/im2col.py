"""Images to columns and back, a block of output positions at a time.

Row p of the columns is the patch under the window at output position p, its taps in the order of
the kernel's, so that a convolution is a matrix product:

    columns (P, KH * KW * C) * kernel (KH * KW * C, F) -> y (P, F)

Positions count through the whole batch: p = (n * OH + oy) * OW + ox. What lies in the padding is 0.

`columns_of` and `add_columns` walk through the same *runs*: without dilation the taps of one row of
the window lie side by side in the image and are one run of KW * C elements; with dilation each tap
is a run of its own.
"""

from minicnn.kernels.jit import helper
from minicnn.kernels.simd import pointer


@helper
def columns_of(x, channels, window, first, count, space):
    """Return the columns of `count` positions, made in `space`; where x is its own columns, x."""
    height, width, kh, kw, sh, sw, dh, dw, top, left, oh, ow = window
    if kh * kw == 1 and sh * sw == 1 and top + left == 0:
        return pointer(x, first * channels)
    run = kw if dw == 1 else 1
    target = pointer(space, 0)
    for p in range(first, first + count):
        n, oy, ox = p // (oh * ow), p // ow % oh, p % ow
        for ky in range(kh):
            iy = oy * sh + ky * dh - top
            for kx in range(0, kw, run):
                ix = ox * sw + kx * dw - left
                begin, end = _inside(iy, height, ix, width, run)
                source = pointer(x, ((n * height + iy) * width + ix) * channels)
                for e in range(begin * channels):
                    target[e] = 0
                for e in range(begin * channels, end * channels):
                    target[e] = source[e]
                for e in range(end * channels, run * channels):
                    target[e] = 0
                target = pointer(target, run * channels)
    return space


@helper
def add_columns(columns, channels, window, first, count, dx):
    """Add each element of the columns to the element of dx that `columns_of` reads there."""
    height, width, kh, kw, sh, sw, dh, dw, top, left, oh, ow = window
    run = kw if dw == 1 else 1
    source = pointer(columns, 0)
    for p in range(first, first + count):
        n, oy, ox = p // (oh * ow), p // ow % oh, p % ow
        for ky in range(kh):
            iy = oy * sh + ky * dh - top
            for kx in range(0, kw, run):
                ix = ox * sw + kx * dw - left
                begin, end = _inside(iy, height, ix, width, run)
                target = pointer(dx, ((n * height + iy) * width + ix) * channels)
                for e in range(begin * channels, end * channels):
                    target[e] += source[e]
                source = pointer(source, run * channels)


@helper
def _inside(iy, height, ix, width, run):
    """Return the part begin..end of a run at (iy, ix) that lies inside the image."""
    if iy < 0 or iy >= height:
        return 0, 0
    begin = min(max(0, -ix), run)
    return begin, max(begin, min(run, width - ix))
