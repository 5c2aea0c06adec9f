"""What fast convolutions share: packed filters, the padded image, the 2x2 outputs."""

from minicnn.kernels.gemm import pack
from minicnn.kernels.jit import helper
from minicnn.kernels.simd import LANES, PANEL, add, largest_of_four, load, pointer, relu, store_some


@helper
def pack_filters(w, first, turned, packed):
    """Copy a panel of filters of w (KH, KW, C, F), from `first` on, to (KH, KW, C, PANEL).

    If `turned`, they are those of the gradient of the input: w turned by half a circle, with
    channels and filters exchanged, so (KH, KW, F, PANEL).
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
def fill_padded(x, n, target, columns, depth):
    """Copy image n to `target`, with rows of `columns` pixels and pixels of `depth` channels.

    What is not written (border, channels that x does not have) keeps its value: zero.
    """
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    for row in range(height):
        source = pointer(x, (n * height + row) * width * channels)
        place = pointer(target, row * columns * depth)
        for column in range(width):
            for c in range(channels):
                place[column * depth + c] = source[column * channels + c]


@helper
def emit_pooled(block, step, bias, y, code, count):
    """Write the largest of 2x2 outputs through ReLU, and where it was, for `count` filters.

    Of one vector of filters at most; the four vectors are at 0, LANES, `step` and `step` + LANES of
    `block`.
    """
    below = pointer(block, step)
    largest_of_four(load(block, 0), load(block, LANES), load(below, 0), load(below, LANES),
                    load(bias, 0), y, code, count)


@helper
def emit_block(block, step, bias, y, row, pixel, rows, columns, count, relu_):
    """Write 2x2 outputs, those in the first `rows` and `columns`, for `count` filters.

    They lie as in `emit_pooled`; in y, rows are `row` and pixels are `pixel` elements apart.
    """
    for q in range(4):
        if q // 2 < rows and q % 2 < columns:
            output = add(load(block, q // 2 * step + q % 2 * LANES), load(bias, 0))
            if relu_:
                output = relu(output)
            store_some(output, y, q // 2 * row + q % 2 * pixel, count)
