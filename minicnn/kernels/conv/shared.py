"""What several algorithms share: packed filters, padded images, and 2x2 max pooling of outputs."""

from minicnn.kernels.gemm import copy, pack
from minicnn.kernels.jit import helper
from minicnn.kernels.simd import PANEL, largest_of_four, load, pointer


@helper
def pack_filters(w, first, turned, packed):
    """Copy a panel of filters of w (KH, KW, C, F), from `first` on, to (KH, KW, C, PANEL).

    If `turned`, copy the filters for the gradient of the input: w rotated by 180 degrees, with
    channels and filters exchanged, to (KH, KW, F, PANEL).
    """
    taps, channels, filters = w.shape[0] * w.shape[1], w.shape[2], w.shape[3]
    for tap in range(taps):
        if turned:
            source = pointer(w, ((taps - 1 - tap) * channels + first) * filters)
            pack(source, 1, filters, filters, min(PANEL, channels - first),
                 pointer(packed, tap * filters * PANEL))
        else:
            source = pointer(w, tap * channels * filters + first)
            pack(source, filters, 1, channels, min(PANEL, filters - first),
                 pointer(packed, tap * channels * PANEL))


@helper
def copy_image(image, sizes, first, count, plane, wide, depth, back):
    """Copy `count` channels of an image, from `first` on, to a plane, or `back`.

    A pixel of the plane has `depth` elements, a row `wide` pixels.
    """
    height, width, channels = sizes
    pixels, elements = width, count
    if count == channels and depth == channels:  # a row of pixels is contiguous in both
        pixels, elements = 1, width * channels
    for i in range(height):
        row, padded = pointer(image, i * width * channels + first), pointer(plane, i * wide * depth)
        if back:
            copy(padded, depth, row, channels, pixels, elements)
        else:
            copy(row, channels, padded, depth, pixels, elements)


@helper
def write_maxima(outputs, row, pixel, rows, columns, bias, y, code, line, step, some):
    """Add the bias, apply ReLU and 2x2 max pooling to `some` filters, and write maxima and codes.

    Rows and pixels are `row` and `pixel` elements apart in the outputs, `line` and `step` elements
    in y and code, which have `rows` rows and `columns` columns.
    """
    for i in range(rows):
        for j in range(columns):
            above, at = pointer(outputs, 2 * (i * row + j * pixel)), i * line + j * step
            below = pointer(above, row)
            largest_of_four(load(above, 0), load(above, pixel), load(below, 0), load(below, pixel),
                            bias, pointer(y, at), pointer(code, at), some)
