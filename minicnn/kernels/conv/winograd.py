"""Winograd convolution, F(4x4, 3x3) and F(4x4, 5x5), with fewer multiplications; float32.

A tile of 4x4 outputs is computed from 8x8 inputs d (6x6 for 3x3 filters g) as

    Y = A' [ (G g G') * (B' d B) ] A

where * is elementwise: 64 products instead of 400. Summed over the channels, each of the 64 (36)
points of a transformed tile is a separate matrix product,

    M[point] (tiles, F) = V[point] (tiles, C) U[point] (C, F).

A 4x4 tile consists of four windows of a 2x2 max pooling. Bias, ReLU and pooling are therefore
applied to the tile while it is in the cache, and the unpooled image is never stored.

The matrices are the Toom-Cook matrices for the points 0, 1, -1, 2, -2, 1/2, -1/2, infinity (5x5),
or for 0, a, -a, b, -b, infinity with a = 11/16 and b = 23/16 (3x3). Points p and about 1/p make the
rounding errors of all outputs nearly equal, which makes the largest one small: with 1 and 2 for a
and b it would be four times as large. For 3x3, with c = 2 (a^2 - b^2):

         aabb 0   -aa-bb 0      1 0        1  1   1   1   1   0        1/aabb  0       0
         0   -abb -bb    a      1 0        0  a  -a   b  -b   0        1/aac   1/ac    1/c
    B' = 0    abb -bb   -a      1 0   A' = 0  aa  aa  bb  bb  0   G =  1/aac  -1/ac    1/c
         0   -aab -aa    b      1 0        0 aaa -aaa bbb -bbb 1      -1/bbc  -1/bc   -1/c
         0    aab -aa   -b      1 0                                   -1/bbc   1/bc   -1/c
         0   aabb  0    -aa-bb  0 1                                    0       0       1

The rows of B' and G and the columns of A' for opposite points differ only in signs. Their even and
odd parts are therefore computed once, and then added and subtracted.

In float32, the result differs from the direct sum by about 2e-6 of the largest output of the tile,
and by up to 2e-5 of it if one input is much larger than the others. Inputs above 1e36 overflow. If
all inputs of an output are zero (half of an MNIST image is blank), a rounding error could remain
and pass through ReLU, so such outputs are set to zero. NaN and infinity in an input spread to all
outputs of the tiles that read it.

The gradient of the kernel is the transposed map. With tiles dy of 4x4 gradients, for each point,

    dw = G' [ sum over tiles of (A dy A') * (B' d B) ] G

which is again a matrix product, M (C, F) = V' (C, tiles) D (tiles, F). A block of tiles is added at
a time and transformed, so that sums are short. The error is about 1e-6 of the largest gradient, for
any number of images.

Layouts (all arrays except U are scratch): padded (HP, WP, CP), the image with channels padded to
complete vectors; V (points, tiles, CP); U (panels, points, CP, PANEL); M (points, tiles, PANEL).

A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from minicnn.kernels.conv.shared import copy_image, pack_filters, write_maxima
from minicnn.kernels.elementwise import sum_sums
from minicnn.kernels.gemm import block_of_rows, clear, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    LANES,
    PANEL,
    ROWS,
    add,
    fma,
    linear,
    load,
    load_some,
    pointer,
    relu,
    splat,
    store,
    store_some,
)
from minicnn.kernels.threads import aligned, parallel_for, share
from minicnn.kernels.window import Window

_OUT = 4  # rows and columns of outputs in a tile
# The finite points, exact in float32: 0, and others with their opposites.
_POINTS = {3: (0.0, 11 / 16, -11 / 16, 23 / 16, -23 / 16),
           5: (0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5)}
# Multiplications in relation to transforms, by the size of the filters; with fewer, the transforms
# cost more than they save.
_LEAST_GAIN = {(3, 3): 6, (5, 5): 5}
_LEAST_GRADIENT_GAIN = {(3, 3): 4}
_FEW_FILTERS = 16  # fewer filters take as long as this many
_FEW_CHUNKS = 4  # fewer chunks of images are split by filters (V is computed again) or by tiles
_MOST_TILES = 28  # in a block, whose V stays in the second-level cache
_V_BYTES = 1 << 20
_LEAST_TERMS, _MOST_TERMS = 16, 2048  # tiles of a chunk of the gradient of the kernel
_GROUP = 16  # channels whose M is computed at a time
# Rows of M in memory, and tiles of a block, whose products are one sum. Both are odd: if points
# were a power of two apart, they would evict each other from the cache.
_ROOM = _GROUP + 1
_BLOCK = 49


def matrices(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B', A' and G for filters of `size` x `size`; the last point is infinity."""
    points = _POINTS[size]
    others = [[q for q in points if q != p] for p in points]
    factors = [*(np.poly(rest)[::-1] for rest in others), np.poly(points)[::-1]]
    to_points = np.array([[*row, *[0.0] * (len(factors) - len(row))] for row in factors])
    powers = np.array([[p**power for p in points] + [0.0] for power in range(size)])
    powers[-1, -1] = 1.0
    outputs = np.array([[p**power for p in points] + [0.0] for power in range(_OUT)])
    outputs[-1, -1] = 1.0
    scales = [*(np.prod([p - q for q in rest]) for p, rest in zip(points, others, strict=True)), 1]
    return to_points, outputs, (powers / scales).T


def _factors(size: int) -> tuple[np.ndarray, ...]:
    """Return P and the products of B', A' and G with its inverse.

    P makes the values at two opposite points from their even and their odd part: the sum and the
    difference.
    """
    inputs, outputs, filters = matrices(size)
    both = np.eye(len(inputs))
    both[1:-1, 1:-1] = np.kron(np.eye(len(inputs) // 2 - 1), [[1, 1], [1, -1]])
    inverse = np.linalg.inv(both)
    return both, inverse @ inputs, outputs @ inverse, inverse @ filters


_BOTH, _INPUTS, _OUTPUTS, _FILTERS = (
    {size + _OUT - 1: _factors(size)[i] for size in _POINTS} for i in range(4)
)
# Operations that write B' d, A' m and G g for one row or column of a tile of 6 or 8 points.
_input_line = linear(_INPUTS, _BOTH)
_output_line = linear(_BOTH, _OUTPUTS)
_filter_line = linear(_FILTERS, _BOTH)
# Operations that write A y and G' m for one row or column of a tile of 6 points.
_gradient_line = linear({6: _OUTPUTS[6].T}, _BOTH)
_kernel_line = linear({6: _BOTH[6]}, {6: _FILTERS[6].T})


def _both_ways(name: str, line: Any) -> Any:
    """Return a helper that writes L S L' for a tile S of vectors; `line` writes L s for a column.

    S has `inputs` and the result `outputs` rows and columns; `half` has room for L S. Compiled
    kernels find their helpers by name when they are loaded, so each helper needs its own `name`.
    """

    def transform(side, inputs, outputs, source, row, column, half, target, target_row,
                  target_column):
        for j in range(inputs):
            line(side, pointer(source, j * column), row, pointer(half, j * LANES), inputs * LANES)
        for i in range(outputs):
            line(side, pointer(half, i * inputs * LANES), LANES, pointer(target, i * target_row),
                 target_column)

    transform.__qualname__ = name
    return helper(transform)


_transform_input = _both_ways("_transform_input", _input_line)
_transform_output = _both_ways("_transform_output", _output_line)
_transform_filter = _both_ways("_transform_filter", _filter_line)
_transform_gradient = _both_ways("_transform_gradient", _gradient_line)
_transform_sum = _both_ways("_transform_sum", _kernel_line)


def fits(window: Window, channels: int, filters: int) -> bool:
    """Return whether `forward` supports the window and is faster for these channels."""
    return _is_faster(_LEAST_GAIN, window, channels, filters)


def fits_gradient(window: Window, channels: int, filters: int) -> bool:
    """Return whether `kernel_gradient` supports the window and is faster for these channels."""
    return _is_faster(_LEAST_GRADIENT_GAIN, window, channels, filters)


def _is_faster(
    least: Mapping[tuple[int, int], float], window: Window, channels: int, filters: int
) -> bool:
    """Return whether a tile has enough multiplications in relation to its transforms."""
    filters = max(filters, _FEW_FILTERS)
    gain = channels * filters / (channels + filters)
    needed = least.get((window.kernel_h, window.kernel_w), np.inf)
    return gain >= needed and window[4:8] == (1, 1, 1, 1)


def pack(w: np.ndarray, turned: bool = False) -> np.ndarray:
    """Return the transformed filters U."""
    size, _, *sizes = w.shape
    channels, filters = reversed(sizes) if turned else sizes
    side, panels = size + _OUT - 1, -(-filters // PANEL)
    transformed = aligned((panels, side * side, channels | 1, PANEL), np.float32)
    parallel_for(
        _transform_filters, panels, (w,), (transformed,), channels, turned, work=16 * w.size,
        scratch={
            "packed": ((size, size, channels, PANEL), np.float32),
            "half": ((side, size, LANES), np.float32),  # G g
        },
    )
    return transformed


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, code: np.ndarray, window: Window,
    relu: bool, pool: bool, chunks: int, turned: bool = False, packed: np.ndarray | None = None,
) -> None:
    """Write y = x * w + b, with ReLU if `relu`; with `pool`, write its 2x2 maxima and their codes.

    x (N, H, W, C)   w (K, K, C, F), or (K, K, F, C) if `turned`   b (F,)
    y (N, OH, OW, F), or y and code (N, OH // 2, OW // 2, F) with `pool`

    `packed` is the result of `pack`, if it is known.
    """
    size = len(w)
    side = size + _OUT - 1
    transformed = pack(w, turned) if packed is None else packed
    panels, points, _, _ = transformed.shape
    depth = round_up(x.shape[3], LANES)
    tiles = -(-window.out_h // _OUT), -(-window.out_w // _OUT), size, side  # rows and columns
    total = len(x) * tiles[0] * tiles[1]
    work = total * points * depth * len(b)
    images = share(len(x), chunks, work)
    few = max(1, _FEW_CHUNKS * images // max(len(x), 1))  # parts of a chunk of images
    some = share(panels, few, work) * PANEL
    length = share(images * tiles[0] * tiles[1], max(1, few // panels), work)
    block = max(ROWS, min(_MOST_TILES, _V_BYTES // (points * depth * 4)) // ROWS * ROWS)
    rows, columns = tiles[0] * _OUT + size - 1, tiles[1] * _OUT + size - 1
    parallel_for(
        _forward, -(-total // length) * -(-len(b) // some), (x, transformed, b), (y, code),
        tuple(window), length, some, block, tiles, relu, pool, work=work,
        scratch={
            "padded": ((rows, columns, depth), np.float32),
            "v": ((points, block | 1, depth), np.float32),
            "m": ((points, block | 1, PANEL), np.float32),
            "half": ((points, LANES), np.float32),  # a tile between its two transforms
            "outputs": ((_OUT * _OUT, LANES), np.float32),
            "zeros": ((PANEL,), np.float32),
            "live": ((rows, columns), np.float32),  # 1 if an input of the output here is nonzero
            "blanks": ((block,), np.int32),  # a bit for each output of a tile
        },
    )


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window, chunks: int
) -> None:
    """Write dw and db, the gradients of a 3x3 kernel and of the bias.

    x (N, H, W, C)   dy (N, OH, OW, F)   dw (3, 3, C, F)   db (F,)
    """
    (size, _, channels, filters), side = dw.shape, _OUT + 2
    tiles = -(-window.out_h // _OUT), -(-window.out_w // _OUT), size, side
    per_image = tiles[0] * tiles[1]
    work = len(x) * per_image * side * side * channels * filters
    images = max(share(len(x), chunks, work), -(-_LEAST_TERMS // per_image))
    images = min(images, max(1, _MOST_TERMS // per_image))
    chunks = -(-len(x) // images)
    blocks = -(-images * per_image // _BLOCK)
    depth, panels = round_up(channels, LANES), -(-filters // PANEL)
    high, wide = tiles[0] * _OUT, tiles[1] * _OUT
    partial = aligned((chunks, dw.size), np.float32)
    biases = np.empty((chunks * blocks, filters), np.float32)
    parallel_for(
        _kernel_gradient, chunks, (x, dy), (partial, biases), tuple(window), images, tiles, blocks,
        work=work,
        scratch={
            "padded": ((high + size - 1, wide + size - 1, depth), np.float32),
            "gradient": ((high, wide, panels * PANEL), np.float32),
            "v": ((side * side, _BLOCK, depth), np.float32),
            "d": ((side * side, panels, _BLOCK, PANEL), np.float32),
            "m": ((side * side, _ROOM, PANEL), np.float32),
            "half": ((side * side, LANES), np.float32),  # a tile between its two transforms
            "taps": ((size * size, LANES), np.float32),
            "zeros": ((PANEL,), np.float32),
        },
    )
    sum_sums(partial, dw.reshape(-1))
    sum_sums(biases, db)


@kernel
def _kernel_gradient(chunk, scratch, x, dy, partial, biases, window, images, tiles, blocks):
    """Sum M = V' D over the tiles of a chunk of images, and write dw = G' M G."""
    padded, gradient, v, d, m, half, taps, zeros = scratch
    points, panels, _, _ = d.shape
    channels, filters, depth, per_image = x.shape[3], dy.shape[3], v.shape[2], tiles[0] * tiles[1]
    clear(pointer(padded, 0), padded.size)
    clear(pointer(gradient, 0), gradient.size)
    clear(pointer(zeros, 0), PANEL)
    biases[chunk * blocks : (chunk + 1) * blocks] = 0
    partial[chunk] = 0
    begin = chunk * images * per_image
    end = min(x.shape[0] * per_image, begin + images * per_image)
    for first in range(begin, end, _BLOCK):
        count = min(_BLOCK, end - first)
        db = pointer(biases, (chunk * blocks + (first - begin) // _BLOCK) * filters)
        _transform_inputs(x, begin, first, count, padded, v, half, window, tiles)
        _transform_gradients(dy, first, count, gradient, d, half, db, tiles)
        for f in range(0, filters, PANEL):
            for c in range(0, channels, _GROUP):
                rows = min(_GROUP, channels - c)
                for p in range(points):
                    block_of_rows(pointer(v, p * _BLOCK * depth + c), 1, depth, 0,
                                  pointer(d, (p * panels + f // PANEL) * _BLOCK * PANEL), PANEL,
                                  pointer(zeros, 0), 0, pointer(m, p * _ROOM * PANEL), PANEL,
                                  rows, min(PANEL, filters - f), count, 1, False)
                for r in range(rows):
                    at = chunk * partial.shape[1] + (c + r) * filters
                    for g in range(f, min(f + PANEL, filters), LANES):
                        _add_kernel(pointer(m, r * PANEL + g - f), pointer(half, 0),
                                    pointer(taps, 0), pointer(partial, at + g), channels * filters,
                                    filters - g, tiles)


@helper
def _transform_gradients(dy, first, count, gradient, d, half, db, tiles):
    """Write D = A dy A' for `count` tiles, and add the sums of the tiles of dy to db."""
    (_, wide, _), (_, panels, _, _), filters = gradient.shape, d.shape, dy.shape[3]
    pixel, side = panels * PANEL, tiles[3]
    for i in range(count):
        n, row, column = _tile(first + i, tiles)
        if row + column == 0:  # the first tile of an image
            copy_image(pointer(dy, n * dy[0].size), dy.shape[1:], 0, filters, pointer(gradient, 0),
                       wide, pixel, False)
        corner = pointer(gradient, (row * wide + column) * _OUT * pixel)
        for f in range(0, filters, LANES):
            source = pointer(corner, f)
            target = pointer(d, (f // PANEL * _BLOCK + i) * PANEL + f % PANEL)
            point = panels * _BLOCK * PANEL
            _transform_gradient(side, _OUT, side, source, wide * pixel, pixel, pointer(half, 0),
                                target, side * point, point)
            total = load(source, 0)
            for q in range(1, _OUT * _OUT):
                total = add(total, load(source, (q // _OUT * wide + q % _OUT) * pixel))
            store_some(add(load_some(db, f, filters - f), total), db, f, filters - f)


@helper
def _add_kernel(m, half, taps, dw, tap, some, tiles):
    """Add G' M G to the gradients of a channel and a vector of filters."""
    size, side, point = tiles[2], tiles[3], _ROOM * PANEL
    _transform_sum(side, side, size, m, side * point, point, half, taps, size * LANES, LANES)
    for q in range(size * size):
        total = add(load(taps, q * LANES), load_some(dw, q * tap, some))
        store_some(total, dw, q * tap, some)


@kernel
def _transform_filters(panel, scratch, w, transformed, channels, turned):
    """Write U = G g G' for the filters of a panel, one channel and one vector at a time."""
    packed, half = scratch
    side, size, _ = half.shape
    column, point = channels * PANEL, transformed.shape[2] * PANEL
    pack_filters(w, panel * PANEL, turned, pointer(packed, 0))
    for first in range(0, channels * PANEL, LANES):
        target = pointer(transformed, panel * side * side * point + first)
        _transform_filter(side, size, side, pointer(packed, first), size * column, column,
                          pointer(half, 0), target, side * point, point)


@kernel
def _forward(chunk, scratch, x, u, b, y, code, window, length, some, block, tiles, relu, pool):
    """Compute `some` filters in blocks of tiles: first V, then M and Y for each panel."""
    padded, v, m, half, outputs, zeros, live, blanks = scratch
    filters, per_image, point = b.size, tiles[0] * tiles[1], v.shape[1] * PANEL
    (_, height, width, _), high = y.shape, _OUT >> pool
    clear(pointer(padded, 0), padded.size)
    clear(pointer(zeros, 0), PANEL)
    parts = -(-filters // some)
    begin, first_filter = chunk // parts * length, chunk % parts * some
    end = min(begin + length, x.shape[0] * per_image)
    for first in range(begin, end, block):
        count = min(block, end - first)
        _transform_inputs(x, begin, first, count, padded, v, half, window, tiles)
        _find_blanks(x, begin, first, count, live, blanks, window, tiles)
        for f in range(first_filter, min(first_filter + some, filters), PANEL):
            _multiply(v, u, m, zeros, count, f // PANEL, x.shape[3],
                      min(PANEL, round_up(filters - f, LANES)))
            for i in range(count):
                n, row, column = _tile(first + i, tiles)
                top, left = row * high, column * high
                for g in range(f, min(f + PANEL, filters), LANES):
                    _transform_output(tiles[3], tiles[3], _OUT, pointer(m, i * PANEL + g - f),
                                      tiles[3] * point, point, pointer(half, 0),
                                      pointer(outputs, 0), _OUT * LANES, LANES)
                    _set_blanks(pointer(outputs, 0), np.int64(blanks[i]))
                    at = ((n * height + top) * width + left) * filters + g
                    _emit(pointer(outputs, 0), min(high, height - top), min(high, width - left),
                          load_some(pointer(b, 0), g, filters - g), pointer(y, at),
                          pointer(code, at), width * filters, filters, filters - g, relu, pool)


@helper
def _transform_inputs(x, begin, first, count, padded, v, half, window, tiles):
    """Write V = B' d B for `count` tiles; `begin` is the first tile of the chunk."""
    (_, wide, depth), (_, block, _), side = padded.shape, v.shape, tiles[3]
    for i in range(count):
        n, row, column = _tile(first + i, tiles)
        if row + column == 0 or first + i == begin:  # the first tile of an image
            inside = pointer(padded, (window[8] * wide + window[9]) * depth)
            copy_image(pointer(x, n * x[0].size), x.shape[1:], 0, x.shape[3], inside, wide, depth,
                       False)
        corner = pointer(padded, (row * wide + column) * _OUT * depth)
        for c in range(0, depth, LANES):
            _transform_input(side, side, side, pointer(corner, c), wide * depth, depth,
                             pointer(half, 0), pointer(v, i * depth + c), side * block * depth,
                             block * depth)


@helper
def _find_blanks(x, begin, first, count, live, blanks, window, tiles):
    """Write a bit for each output of `count` tiles: 1 if all its inputs are zero."""
    (_, rows, columns, channels), (_, wide), size = x.shape, live.shape, tiles[2]
    for i in range(count):
        n, row, column = _tile(first + i, tiles)
        if row + column == 0 or first + i == begin:  # the first tile of an image
            clear(pointer(live, 0), live.size)
            for pixel in range(rows * columns):
                values = pointer(x, (n * rows * columns + pixel) * channels)
                any_ = False
                for c in range(channels):
                    any_ |= values[c] != 0
                live[window[8] + pixel // columns, window[9] + pixel % columns] = any_
            _spread(pointer(live, 0), live.size, 1, size)
            _spread(pointer(live, 0), live.size, wide, size)
        blanks[i] = 0
        for q in range(_OUT * _OUT):
            is_blank = live[row * _OUT + q // _OUT, column * _OUT + q % _OUT] == 0
            blanks[i] |= is_blank << q


@helper
def _spread(live, count, step, size):
    """Set each of `count` elements to the largest of the `size` that begin at it, `step` apart."""
    for _ in range(size - 1):
        for pixel in range(count - step):
            live[pixel] = max(live[pixel], live[pixel + step])


@helper
def _set_blanks(outputs, bits):
    """Set the outputs in a bit mask to zero, except those that are NaN."""
    zero = splat(np.float32(0))
    for q in range(_OUT * _OUT if bits else 0):
        if bits >> q & 1:
            store(fma(load(outputs, q * LANES), zero, zero), outputs, q * LANES)


@helper
def _multiply(v, u, m, zeros, count, panel, channels, filters):
    """Write M[point] = V[point] U[point] for `count` tiles and the filters of a panel."""
    points, block, depth = v.shape
    for p in range(points):
        block_of_rows(pointer(v, p * block * depth), depth, 1, 0,
                      pointer(u, (panel * points + p) * u.shape[2] * PANEL), PANEL,
                      pointer(zeros, 0), 0,
                      pointer(m, p * block * PANEL), PANEL, count, filters, channels, 1, False)


@helper
def _tile(number, tiles):
    """Return the image number of a tile, and its row and column in the grid of tiles."""
    rows, columns, _, _ = tiles
    return number // (rows * columns), number // columns % rows, number % columns


@helper
def _emit(outputs, rows, columns, bias, y, code, line, step, some, relu_, pool):
    """Add the bias to the outputs of a tile, apply ReLU and pooling if asked, and write them."""
    if pool:
        write_maxima(outputs, _OUT * LANES, LANES, rows, columns, bias, y, code, line, step, some)
        return
    for i in range(rows):
        for j in range(columns):
            output = add(load(outputs, (i * _OUT + j) * LANES), bias)
            if relu_:
                output = relu(output)
            store_some(output, y, i * line + j * step, some)
