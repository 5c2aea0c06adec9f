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
def emit_block(block, step, bias, y, code, n, row, column, filter_, relu_, pool):
    """Write a 2x2 block of outputs whose first is at (row, column), or the pooled one.

    Of up to eight filters; the four vectors are at 0, eight, `step` and `step` + eight of `block`.
    """
    height, width, filters = y.shape[1], y.shape[2], y.shape[3]
    count = min(_LANES, filters - filter_)
    if pool:
        row, column = row // 2, column // 2
        if row >= height or column >= width:
            return
        at = ((n * height + row) * width + column) * filters + filter_
        if count == _LANES:
            pool_relu(load(block, 0), load(block, _LANES), load(block, step),
                      load(block, step + _LANES), load(bias, 0), pointer(y, at), pointer(code, at))
            return
        for f in range(count):
            best, largest = 0, block[f]
            for q in range(1, 4):
                value = block[q // 2 * step + q % 2 * _LANES + f]
                if value > largest or value != value:
                    best, largest = q, value
            largest += bias[f]
            y[n, row, column, filter_ + f] = 0 if largest <= 0 else largest
            code[n, row, column, filter_ + f] = 4 if largest <= 0 else best
        return
    for q in range(4):
        i, j = row + q // 2, column + q % 2
        if i >= height or j >= width:
            continue
        output = add(load(block, q // 2 * step + q % 2 * _LANES), load(bias, 0))
        if relu_:
            output = relu(output)
        at = ((n * height + i) * width + j) * filters + filter_
        if count == _LANES:
            store(output, pointer(y, at), 0)
        else:
            store(output, block, 0)
            for f in range(count):
                y[n, i, j, filter_ + f] = block[f]
