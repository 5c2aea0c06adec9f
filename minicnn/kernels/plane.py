"""What the fused convolutions share: the padded image they read, the 2x2 outputs they write."""

from minicnn.kernels.jit import helper
from minicnn.kernels.simd import VECTOR_BYTES, add, load, pointer, pool_relu, relu, store

_LANES = VECTOR_BYTES // 4


@helper
def fill_plane(x, n, target, wide, depth):
    """Copy image n to `target`, with rows of `wide` pixels and pixels of `depth` channels.

    What is not written (border, channels that x does not have) stays what it was: zero.
    """
    height, width, channels = x.shape[1], x.shape[2], x.shape[3]
    for row in range(height):
        source = pointer(x, (n * height + row) * width * channels)
        place = pointer(target, row * wide * depth)
        for column in range(width):
            for c in range(channels):
                place[column * depth + c] = source[column * channels + c]


@helper
def emit_pooled(block, step, bias, y, code, count):
    """Write the largest of 2x2 outputs through ReLU, and where it came from, for `count` filters.

    Of up to eight filters; the four vectors are at 0, eight, `step` and `step` + eight of `block`.
    """
    if count >= _LANES:
        pool_relu(load(block, 0), load(block, _LANES), load(block, step),
                  load(block, step + _LANES), load(bias, 0), y, code)
        return
    for f in range(count):
        best, largest = 0, block[f]
        for q in range(1, 4):
            value = block[q // 2 * step + q % 2 * _LANES + f]
            if value > largest or value != value:
                best, largest = q, value
        largest += bias[f]
        y[f] = 0 if largest <= 0 else largest
        code[f] = 4 if largest <= 0 else best


@helper
def emit_block(block, step, bias, y, row, pixel, rows, columns, count, relu_):
    """Write 2x2 outputs, those in the first `rows` and `columns`, for `count` filters.

    They lie as in `emit_pooled`; in y, rows are `row` and pixels are `pixel` elements apart.
    """
    for q in range(4):
        if q // 2 >= rows or q % 2 >= columns:
            continue
        output = add(load(block, q // 2 * step + q % 2 * _LANES), load(bias, 0))
        if relu_:
            output = relu(output)
        place = pointer(y, q // 2 * row + q % 2 * pixel)
        if count >= _LANES:
            store(output, place, 0)
        else:
            store(output, block, 0)
            for f in range(count):
                place[f] = block[f]
