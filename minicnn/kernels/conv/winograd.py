"""Convolution with fewer multiplications: Winograd's F(4x4, 5x5) and F(4x4, 3x3), float32.

A tile of 4x4 outputs is computed from 8x8 inputs d (6x6 for 3x3 filters g) as

    Y = A' [ (G g G') * (B' d B) ] A

where * multiplies element by element: 64 products where the definition needs 400. Summed over the
channels, each of the 64 (36) points of a transformed tile is a matrix product of its own,

    M[point] (tiles, F) = V[point] (tiles, C) U[point] (C, F).

A 4x4 tile is four windows of a 2x2 max pooling, so bias, ReLU and pooling are done on the tile
before it leaves the cache, and the unpooled image never exists.

The matrices are those of Toom and Cook for the points 0, 1, -1, 2, -2, (1/2, -1/2,) infinity. In
float32 the result differs from the direct sum by some 2e-6 of the largest output of its tile, and
by up to 2e-5 of it where one input is far above the others; inputs above 1e36 overflow. Where all
of a patch is zero that would be a residue in place of zero, through which ReLU lets a gradient pass
(half of an MNIST image is blank), so such outputs are set to zero. NaN and infinity in one input
reach all outputs of the tiles that read it.

Layouts, all in scratch but for U: padded (HP, WP, CP), the image with whole vectors of channels;
V (points, tiles, CP); U (panels, points, CP, PANEL); M (points, ROWS tiles, PANEL).

A. Lavin and S. Gray, "Fast algorithms for convolutional neural networks", CVPR 2016.
"""

import functools

import numpy as np

from minicnn.kernels.conv.padded import emit_block, emit_pooled, fill_padded, pack_filters
from minicnn.kernels.gemm import block_of_rows, clear, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    LANES,
    PANEL,
    ROWS,
    add,
    broadcast,
    fma,
    load,
    pointer,
    splat,
    store,
    sub,
)
from minicnn.kernels.threads import aligned, parallel_for, share
from minicnn.kernels.window import Window

_OUT = 4  # rows and columns of outputs in a tile
_LEAST_CHANNELS = {(3, 3): 8, (5, 5): 5}  # below, the transforms cost more than they save
_MOST_TILES = 28  # whose V is kept in the second-level cache
_V_BYTES = 1 << 20


def fits(window: Window, channels: int) -> bool:
    """Return whether there is a transform for such a window, and enough channels to pay for it."""
    least = _LEAST_CHANNELS.get((window.kernel_h, window.kernel_w))
    return least is not None and channels >= least and window[4:8] == (1, 1, 1, 1)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, code: np.ndarray, window: Window,
    relu: bool, pool: bool, chunks: int, turned: bool = False,
) -> None:
    """Write y = x * w + b, through ReLU if asked; with `pool` its 2x2 maxima and their codes.

    x (N, H, W, C)   w (K, K, C, F), or `turned` and (K, K, F, C)   b (F,)
    y (N, OH, OW, F), or y and code (N, OH // 2, OW // 2, F) with `pool`
    """
    size, channels, filters = len(w), x.shape[3], b.size
    side = size + _OUT - 1
    points, depth, panels = side * side, round_up(channels, LANES), -(-filters // PANEL)
    transformed = aligned((panels, points, depth, PANEL), np.float32)
    parallel_for(
        _transform_filters, panels, (w, _filter_matrix(size)), (transformed,), channels, turned,
        scratch={
            "packed": ((size, size, channels, PANEL), np.float32),
            "half": ((side, size, PANEL), np.float32),  # G g
        },
    )
    images = share(len(x), chunks)
    tiles_h, tiles_w = -(-window.out_h // _OUT), -(-window.out_w // _OUT)
    most = max(ROWS, _MOST_TILES // ROWS * ROWS)
    block = max(ROWS, min(most, _V_BYTES // (points * depth * 4) // ROWS * ROWS))
    rows, columns = tiles_h * _OUT + size - 1, tiles_w * _OUT + size - 1
    parallel_for(
        _forward, -(-len(x) // images), (x, transformed, b), (y, code), tuple(window), images,
        tiles_h, tiles_w, relu, pool,
        scratch={
            "padded": ((rows, columns, depth), np.float32),
            "v": ((points, block, depth), np.float32),
            "m": ((points, ROWS, PANEL), np.float32),
            "line": ((2, points, LANES), np.float32),  # a tile between its two passes
            "zeros": ((PANEL,), np.float32),
            "bias": ((PANEL,), np.float32),
            "live": ((rows, columns), np.float32),  # pixels that are not zero, or the next ones
            "blanks": ((block,), np.int32),  # a bit for each output of a tile
        },
    )


@functools.cache
def _filter_matrix(size: int) -> np.ndarray:
    """Return G (side, size): the powers of each point over its distances to the others."""
    points = [0.0, 1.0, -1.0, 2.0, -2.0] + ([0.5, -0.5] if size == 5 else [])
    rows = []
    for p in points:
        scale = np.prod([p - q for q in points if q != p])
        rows.append([p**power / scale for power in range(size)])
    matrix = np.array([*rows, [0.0] * (size - 1) + [1.0]], np.float32)
    matrix[0] = np.abs(matrix[0])  # `_input_line` carries the sign of the point 0
    return matrix


@kernel
def _transform_filters(panel, scratch, w, matrix, transformed, channels, turned):
    """U = G g G' for the filters of a panel, a channel at a time."""
    packed, half = scratch
    side, size = matrix.shape
    depth = transformed.shape[2]
    pack_filters(w, panel * PANEL, turned, pointer(packed, 0))
    if channels < depth:  # what no channel fills
        transformed[panel] = 0
    target = pointer(transformed, panel * side * side * depth * PANEL)
    g = pointer(matrix, 0)
    for c in range(channels):
        for t in range(side):
            for j in range(size):
                _combine(pointer(g, t * size), pointer(packed, (j * channels + c) * PANEL),
                         size * channels * PANEL, pointer(half, (t * size + j) * PANEL), size)
        for t in range(side):
            for u in range(side):
                _combine(pointer(g, u * size), pointer(half, t * size * PANEL), PANEL,
                         pointer(target, ((t * side + u) * depth + c) * PANEL), size)


@helper
def _combine(factors, source, step, target, count):
    """Write the sum over i of factors[i] * the panel of filters at source + i step."""
    for lane in range(0, PANEL, LANES):
        total = splat(np.float32(0))
        for i in range(count):
            total = fma(broadcast(factors, i), load(source, i * step + lane), total)
        store(total, target, lane)


@kernel
def _forward(chunk, scratch, x, u, b, y, code, window, images, tiles_h, tiles_w, relu, pool):
    """Compute images, a block of tiles at a time: V, then for each panel of filters M and Y."""
    padded, v, m, line, zeros, bias, live, blanks = scratch
    (_, points, depth, _), (_, height, width, _) = u.shape, y.shape
    side = 8 if points == 64 else 6
    top, left = window[8], window[9]
    wide, block = padded.shape[1], v.shape[1]
    clear(pointer(padded, 0), padded.size)
    clear(pointer(zeros, 0), PANEL)
    begin, end = chunk * images, min(x.shape[0], (chunk + 1) * images)
    per_image = tiles_h * tiles_w
    present = -1  # the image that is in `padded`
    for first in range(begin * per_image, end * per_image, block):
        count = min(block, end * per_image - first)
        for i in range(count):
            n, ty, tx = _tile(first + i, tiles_h, tiles_w)
            if n != present:
                fill_padded(x, n, pointer(padded, (top * wide + left) * depth), wide, depth)
                _find_live(pointer(padded, 0), pointer(live, 0), padded.shape, side - _OUT + 1)
                present = n
            blanks[i] = _blank_outputs(pointer(live, (ty * wide + tx) * _OUT), wide,
                                       side - _OUT + 1)
            corner = pointer(padded, (ty * wide + tx) * _OUT * depth)
            for c in range(0, depth, LANES):
                _input_tile(pointer(corner, c), wide * depth, depth, pointer(line, 0),
                            pointer(v, i * depth + c), block * depth, side)
        for panel in range(u.shape[0]):
            filters = min(PANEL, b.size - panel * PANEL)
            for f in range(PANEL):
                bias[f] = b[panel * PANEL + f] if f < filters else 0
            for i in range(0, count, ROWS):
                rows = min(ROWS, count - i)
                for p in range(points):
                    block_of_rows(
                        pointer(v, (p * block + i) * depth), depth, 1, 0,
                        pointer(u, (panel * points + p) * depth * PANEL), pointer(zeros, 0), 0,
                        pointer(m, p * ROWS * PANEL), PANEL, rows, PANEL, x.shape[3], 1)
                for r in range(rows):
                    n, ty, tx = _tile(first + i + r, tiles_h, tiles_w)
                    row, column = ty * _OUT >> pool, tx * _OUT >> pool
                    at = ((n * height + row) * width + column) * b.size + panel * PANEL
                    for lane in range(0, filters, LANES):
                        _output_tile(pointer(m, r * PANEL + lane), pointer(line, 0), side)
                        if blanks[i + r]:
                            _set_to_zero(pointer(line, 0), np.int64(blanks[i + r]))
                        _emit(pointer(line, 0), pointer(bias, lane), pointer(y, at + lane),
                              pointer(code, at + lane), width * b.size, b.size, height - row,
                              width - column, filters - lane, relu, pool)


@helper
def _tile(number, tiles_h, tiles_w):
    """Return the image of a tile, and its row and column among the tiles of the image."""
    return number // (tiles_h * tiles_w), number // tiles_w % tiles_h, number % tiles_w


@helper
def _find_live(padded, live, shape, size):
    """Write for each pixel whether it or one of the size - 1 on its right is not zero."""
    rows, columns, depth = shape
    for pixel in range(rows * columns):
        values, any_ = pointer(padded, pixel * depth), False
        for c in range(depth):
            any_ |= values[c] != 0
        live[pixel] = any_
    for pixel in range(rows * columns - size + 1):
        for j in range(1, size):
            live[pixel] = max(live[pixel], live[pixel + j])


@helper
def _blank_outputs(live, wide, size):
    """Return a bit for each output of a tile: whether its whole patch is zero."""
    bits = 0
    for q in range(_OUT * _OUT):
        any_ = np.float32(0)
        for i in range(size):
            any_ = max(any_, live[(q // _OUT + i) * wide + q % _OUT])
        bits |= (any_ == 0) << q
    return bits


@helper
def _set_to_zero(line, bits):
    """Set outputs to zero, but for those that NaN or infinity in the filters has made NaN."""
    zero = splat(np.float32(0))
    for q in range(_OUT * _OUT):
        if bits >> q & 1:
            store(fma(load(line, q * LANES), zero, zero), line, q * LANES)


@helper
def _input_tile(source, row, column, line, v, point, side):
    """V = B' d B for one tile and one vector of channels."""
    for j in range(side):
        _input_line(pointer(source, j * column), row, pointer(line, j * LANES), side * LANES,
                    side)
    for i in range(side):
        _input_line(pointer(line, i * side * LANES), LANES, pointer(v, i * side * point), point,
                    side)


@helper
def _input_line(d, step, out, out_step, side):
    """Write B' d for one line of a tile: vectors `step` apart to vectors `out_step` apart."""
    d0, d1, d2, d3 = load(d, 0), load(d, step), load(d, 2 * step), load(d, 3 * step)
    d4, d5 = load(d, 4 * step), load(d, 5 * step)
    if side == 6:
        even1 = fma(splat(np.float32(-4)), d2, d4)
        odd1 = fma(splat(np.float32(-4)), d1, d3)
        even2, odd2 = sub(d4, d2), sub(d3, d1)
        odd2 = add(odd2, odd2)
        store(fma(splat(np.float32(4)), d0, fma(splat(np.float32(-5)), d2, d4)), out, 0)
        store(add(even1, odd1), out, out_step)
        store(sub(even1, odd1), out, 2 * out_step)
        store(add(even2, odd2), out, 3 * out_step)
        store(sub(even2, odd2), out, 4 * out_step)
        store(fma(splat(np.float32(4)), d1, fma(splat(np.float32(-5)), d3, d5)), out,
              5 * out_step)
        return
    d6, d7 = load(d, 6 * step), load(d, 7 * step)
    quarter, half = splat(np.float32(0.25)), splat(np.float32(0.5))
    even1 = fma(splat(np.float32(-4.25)), d4, add(d2, d6))
    odd1 = fma(splat(np.float32(-4.25)), d3, add(d1, d5))
    even2 = fma(quarter, d2, fma(splat(np.float32(-1.25)), d4, d6))
    even3 = fma(splat(np.float32(4)), d2, fma(splat(np.float32(-5)), d4, d6))
    middle = fma(splat(np.float32(-5)), d3, splat(np.float32(0)))
    odd2 = fma(half, add(d1, middle), add(d5, d5))
    odd3 = fma(half, add(d5, middle), add(d1, d1))
    store(fma(splat(np.float32(5.25)), sub(d4, d2), sub(d0, d6)), out, 0)
    store(add(even1, odd1), out, out_step)
    store(sub(even1, odd1), out, 2 * out_step)
    store(add(even2, odd2), out, 3 * out_step)
    store(sub(even2, odd2), out, 4 * out_step)
    store(add(even3, odd3), out, 5 * out_step)
    store(sub(even3, odd3), out, 6 * out_step)
    store(fma(splat(np.float32(5.25)), sub(d3, d5), sub(d7, d1)), out, 7 * out_step)


@helper
def _output_tile(m, line, side):
    """Y = A' M A for one tile and one vector of filters; Y (4, 4) goes to the start of `line`."""
    point = ROWS * PANEL
    half = pointer(line, _OUT * _OUT * LANES)
    for j in range(side):
        _output_line(pointer(m, j * point), side * point, pointer(half, j * LANES), side * LANES,
                     side)
    for i in range(_OUT):
        _output_line(pointer(half, i * side * LANES), LANES, pointer(line, i * _OUT * LANES),
                     LANES, side)


@helper
def _output_line(m, step, out, out_step, side):
    """Write A' m for one line of a tile: powers 0 to 3 of the points, infinity in the last."""
    m1, m2, m3, m4 = load(m, step), load(m, 2 * step), load(m, 3 * step), load(m, 4 * step)
    sum1, sum2, difference1, difference2 = add(m1, m2), add(m3, m4), sub(m1, m2), sub(m3, m4)
    y0 = add(load(m, 0), add(sum1, sum2))
    y1 = fma(splat(np.float32(2)), difference2, difference1)
    y2 = fma(splat(np.float32(4)), sum2, sum1)
    y3 = fma(splat(np.float32(8)), difference2, difference1)
    if side == 8:
        m5, m6 = load(m, 5 * step), load(m, 6 * step)
        sum3, difference3 = add(m5, m6), sub(m5, m6)
        y0 = add(y0, sum3)
        y1 = fma(splat(np.float32(0.5)), difference3, y1)
        y2 = fma(splat(np.float32(0.25)), sum3, y2)
        y3 = fma(splat(np.float32(0.125)), difference3, y3)
    store(y0, out, 0)
    store(y1, out, out_step)
    store(y2, out, 2 * out_step)
    store(add(y3, load(m, (side - 1) * step)), out, 3 * out_step)


@helper
def _emit(line, bias, y, code, row, pixel, rows, columns, count, relu, pool):
    """Write a tile's outputs, those in the first `rows` and `columns`, for a vector of filters."""
    for i in range(0, _OUT, 2):
        for j in range(0, _OUT, 2):
            block = pointer(line, (i * _OUT + j) * LANES)
            if not pool:
                emit_block(block, _OUT * LANES, bias, pointer(y, i * row + j * pixel), row, pixel,
                           rows - i, columns - j, count, relu)
            elif i // 2 < rows and j // 2 < columns:
                at = i // 2 * row + j // 2 * pixel
                emit_pooled(block, _OUT * LANES, bias, pointer(y, at), pointer(code, at), count)
