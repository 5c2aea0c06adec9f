"""What the fused convolutions share: the padded image they read, the 2x2 outputs they write."""

from minicnn.kernels.jit import helper, inlined
from minicnn.kernels.simd import VECTOR_BYTES, add, pointer, pool_relu, relu, store

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


@inlined
def emit_block(x0, x1, x2, x3, bias, y, code, n, row, column, filter_, relu_, pool, spare):
    """Write a 2x2 block of outputs whose first is at (row, column), or the pooled one.

    `spare` is scratch of five vectors, for the last filters where they are no whole vector.
    """
    height, width, filters = y.shape[1], y.shape[2], y.shape[3]
    count = min(_LANES, filters - filter_)
    if count <= 0:
        return
    if pool:
        row, column = row // 2, column // 2
        if row >= height or column >= width:
            return
        at = ((n * height + row) * width + column) * filters + filter_
        if count == _LANES:
            pool_relu(x0, x1, x2, x3, bias, pointer(y, at), pointer(code, at))
        else:
            store(x0, spare, 0)
            store(x1, spare, _LANES)
            store(x2, spare, 2 * _LANES)
            store(x3, spare, 3 * _LANES)
            store(bias, spare, 4 * _LANES)
            for f in range(count):
                best = 0
                for q in range(1, 4):
                    value, largest = spare[q * _LANES + f], spare[best * _LANES + f]
                    best = q if value > largest or value != value else best
                value = spare[best * _LANES + f] + spare[4 * _LANES + f]
                y[n, row, column, filter_ + f] = 0 if value <= 0 else value
                code[n, row, column, filter_ + f] = 4 if value <= 0 else best
        return
    for q in range(4):
        i, j = row + q // 2, column + q % 2
        if i >= height or j >= width:
            continue
        output = add(x0 if q == 0 else x1 if q == 1 else x2 if q == 2 else x3, bias)
        if relu_:
            output = relu(output)
        at = ((n * height + i) * width + j) * filters + filter_
        if count == _LANES:
            store(output, pointer(y, at), 0)
        else:
            store(output, spare, 0)
            for f in range(count):
                y[n, i, j, filter_ + f] = spare[f]
