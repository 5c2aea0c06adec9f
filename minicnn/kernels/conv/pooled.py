"""Gradients of a convolution with ReLU and 2x2 max pooling, from lists of nonzeros, float32.

Before a 2x2 max pooling, at most one of four gradients is nonzero, and ReLU sets more to zero. The
sums are over the nonzero gradients; (y, z) is the position of the maximum in its 2x2 block:

    db[f]                              = sum over n, y, z of dy[n, y, z, f]
    dw[:, :, :, f]                     = sum over n, y, z of dy[n, y, z, f] x[n, y:y+KH, z:z+KW, :]
    dx[n, y:y+KH, z:z+KW, :]          += sum over f of dy[n, y, z, f] w[:, :, :, f]

Thus dw needs a list of (offset in x, dy) for each filter, and dx a list of (offset in w, dy) for
each position. A sum over a list (`gather`) loads complete vectors and keeps its results in
registers. `conv` uses this algorithm for all such convolutions without strides and dilation.

A gradient of exactly zero contributes nothing, even if it is multiplied by infinity or NaN. NaN or
infinity may also reach pixels next to the window, in the padding of a run.

Layouts: Channels are split into blocks of at most a panel. In a block, the KW taps of one row of
the window are one *run* of KW * depth elements. Fewer than 16 channels are one block, and each run
is padded to complete vectors.

    padded, dpadded (blocks, rows, columns, depth)       x and dx of an image
    lines (blocks, KH, F, run)                           w
    partial (blocks, F, KH, run)                         dw

Lists are created and used for one *band* of pooled rows at a time, so that the pixels of a block
stay in the first-level cache. Sums of dw are split into bands, so the size of a band depends on
pixels and channels only, not on the vector width. A chunk adds the sums of few bands in order.
"""

from typing import NamedTuple

import numpy as np

from minicnn.kernels.conv.shared import copy_image
from minicnn.kernels.elementwise import sum_sums
from minicnn.kernels.gather import gather
from minicnn.kernels.gemm import clear, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import (
    LANES,
    PANEL,
    ZEROED,
    add,
    compress,
    gather_blocks,
    load,
    load_some,
    pointer,
    store,
    store_some,
    transpose,
    where_tagged,
)
from minicnn.kernels.threads import aligned, parallel_for, share, step
from minicnn.kernels.window import Window

_MANY_CHANNELS = 16  # from this number on, blocks consist of complete vectors
# These sizes split sums, so they assume blocks of 32 channels for any vector width.
_CHANNELS = 32
_BAND = 11 << 10  # elements of the padded rows of a band, which stay in the first-level cache
_TERMS = 256  # positions per band, summed separately for dw and db: more would lose precision
_BANDS = 16  # of a chunk, at most, unless an image has more; their sums are added in order
_LINES = 10 << 10  # elements of w that stay in the first-level cache together with dx


class _Layout(NamedTuple):
    """The sizes of a convolution's backward pass, as a tuple that kernels can unpack."""

    blocks: int  # of channels
    depth: int  # channels of a block
    high: int  # of the padded image
    wide: int
    run: int  # elements of one row of the window in a block, padded to vectors
    band: int  # pooled rows whose lists are created at a time
    together: int  # rows of the window for which dx is computed at a time, KH or 1


def fits(window: Window) -> bool:
    """Return whether gradients can be computed from lists for this window."""
    return window[4:8] == (1, 1, 1, 1)


def gradients(
    x: np.ndarray, dy: np.ndarray, code: np.ndarray, w: np.ndarray, dw: np.ndarray, db: np.ndarray,
    dx: np.ndarray | None, window: Window, chunks: int,
) -> None:
    """Write the gradients of a convolution with ReLU and 2x2 max pooling.

    x (N, H, W, C)   w, dw (KH, KW, C, F)   db (F,)   dx like x, or None
    dy, code (N, OH // 2, OW // 2, F): the gradient after pooling, and the code of `forward`
    """
    (kh, kw, channels, filters), (n, ph, pw, _) = w.shape, dy.shape
    layout = _layout(window, channels, filters, ph, pw)
    blocks, depth, high, wide, run, band, together = layout
    vectors = run // LANES
    need_dx = dx is not None
    lines = aligned((blocks, kh, filters, run) if need_dx else (0, 0, 0, 0), np.float32)
    if need_dx:
        step(_write_lines, w, layout, lines)
    bands = -(-ph // band)
    images = min(share(n, chunks), max(1, _BANDS // max(bands, 1)))
    chunks = -(-n // images)
    partial = aligned((chunks, blocks * filters * kh * run), np.float32)
    biases = np.empty((n, bands, filters), np.float32)
    step(biases.fill, 0)
    padded = blocks * high * wide * depth + run  # the last gather accesses one run too many
    positions, width = band * pw, round_up(filters, LANES)
    length = positions + LANES  # of a list: `compress` writes complete vectors
    target = np.empty((0, 0, 0, 0), np.float32) if dx is None else dx
    parallel_for(
        _gradients, chunks,
        (x, dy, code, lines, gather_blocks(kh, vectors), gather_blocks(together, vectors)),
        (partial, biases, target), tuple(layout), tuple(window), images, need_dx,
        scratch={
            "padded": ((padded,), np.float32),
            "dpadded": ((padded,), np.float32),
            # the gradients of one position per lane of a vector
            "values": ((LANES, width), np.float32),
            "offsets": ((LANES, width), np.int32),
            "taps": ((width,), np.int32),  # of the last of these positions
            "places": ((width,), np.int32),  # of the filters in `lines`
            # one list per filter: the positions with a nonzero gradient
            "f_values": ((filters, length), np.float32),
            "f_offsets": ((filters, length), np.int32),
            "f_bounds": ((2, filters), np.int64),
            # one list per position: the filters with a nonzero gradient
            "p_values": ((positions * filters + LANES,), np.float32),
            "p_offsets": ((positions * filters + LANES,), np.int32),
            "p_bounds": ((2, 4 * positions), np.int64),
        },
    )
    total = np.empty((blocks, filters, kh, run), np.float32)
    sum_sums(partial, total.reshape(-1))
    taps = total[..., : kw * depth].reshape(blocks, filters, kh, kw, depth)
    step(_write_taps, taps, dw)
    sum_sums(biases, db)


def _layout(
    window: Window, channels: int, filters: int, pooled_rows: int, pooled_columns: int
) -> _Layout:
    """Return the sizes for a convolution; the last two do not depend on the vector width."""
    many = channels >= _MANY_CHANNELS
    depth = min(round_up(channels, LANES), PANEL) if many else channels
    high, wide = window.out_h + window.kernel_h - 1, window.out_w + window.kernel_w - 1
    run = round_up(window.kernel_w * depth, LANES)
    counted = min(channels, _CHANNELS)
    band = (_BAND // (wide * counted) - window.kernel_h + 1) // 2
    band = min(band, pooled_rows, _TERMS // max(pooled_columns, 1))
    together = window.kernel_h if window.taps * filters * counted <= _LINES else 1
    return _Layout(-(-channels // depth), depth, high, wide, run, max(1, band), together)


def _write_taps(taps: np.ndarray, dw: np.ndarray) -> None:
    """Write dw from the sums (blocks, F, KH, KW, depth)."""
    (kh, kw, channels, filters) = dw.shape
    dw[...] = taps.transpose(2, 3, 0, 4, 1).reshape(kh, kw, -1, filters)[:, :, :channels]


def _write_lines(w: np.ndarray, layout: _Layout, lines: np.ndarray) -> None:
    """Write w as (blocks, KH, F, run): the factors of a gradient for one row of dx."""
    (kh, kw, channels, filters), (blocks, depth, *_) = w.shape, layout
    padded = np.zeros((kh, kw, blocks * depth, filters), np.float32)
    padded[:, :, :channels] = w
    lines[..., kw * depth :] = 0
    lines[..., : kw * depth] = (
        padded.reshape(kh, kw, blocks, depth, filters)
        .transpose(2, 0, 4, 1, 3)
        .reshape(blocks, kh, filters, kw * depth)
    )


@kernel
def _gradients(chunk, scratch, x, dy, code, lines, dw_blocks, dx_blocks, partial, biases, dx,
               layout, window, images, need_dx):
    """Sum dw over a chunk of images, and write dx and the sums of bands of db for each image."""
    (padded, dpadded, values, offsets, taps, places, f_values, f_offsets, f_bounds, p_values,
     p_offsets, p_bounds) = scratch
    (_, rows, columns, filters), run, band, kh = dy.shape, layout[4], layout[5], window[2]
    image, dw = x[0].size, pointer(partial, chunk * partial.shape[1])
    staged = (pointer(values, 0), pointer(offsets, 0), pointer(taps, 0), pointer(places, 0),
              values.shape[1])
    by_filter = (pointer(f_offsets, 0), pointer(f_values, 0), pointer(f_bounds, 0),
                 pointer(f_bounds, filters))
    by_position = (pointer(p_offsets, 0), pointer(p_values, 0), pointer(p_bounds, 0),
                   pointer(p_bounds, p_bounds.shape[1]))
    for f in range(filters):
        places[f] = f * run
        f_bounds[0, f] = f * f_values.shape[1]
    clear(dw, partial.shape[1])
    clear(pointer(padded, 0), padded.size)
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        _fill_padded(pointer(x, n * image), pointer(padded, 0), x.shape[1:], layout, window, False)
        clear(pointer(dpadded, 0), dpadded.size if need_dx else 0)
        for first in range(0, rows, band):
            count = min(band, rows - first)
            at = (n * rows + first) * columns * filters
            db = pointer(biases, (n * biases.shape[1] + first // band) * filters)
            _make_lists(pointer(dy, at), pointer(code, at), db, first, count * columns, columns,
                        filters, layout, staged, by_filter, by_position, need_dx)
            _filter_gradient(pointer(padded, 0), by_filter, layout, filters, kh,
                             pointer(dw_blocks, 0), dw_blocks.shape[0], dw)
            if need_dx:
                _input_gradient(pointer(lines, 0), by_position, layout, filters, kh,
                                pointer(dx_blocks, 0), dx_blocks.shape[0], first, count, columns,
                                pointer(dpadded, 0))
        if need_dx:
            _fill_padded(pointer(dx, n * image), pointer(dpadded, 0), x.shape[1:], layout, window,
                         True)


@helper
def _fill_padded(image, planes, sizes, layout, window, back):
    """Copy an image to its padded planes, one per block of channels, or `back`."""
    blocks, depth, high, wide, _, _, _ = layout
    channels, top, left = sizes[2], window[8], window[9]
    for block in range(blocks):
        inside = pointer(planes, ((block * high + top) * wide + left) * depth)
        copy_image(image, sizes, block * depth, min(depth, channels - block * depth), inside, wide,
                   depth, back)


@helper
def _make_lists(gradient, winner, db, first, count, columns, filters, layout, staged, by_filter,
                by_position, need_dx):
    """Write the lists of a band: one for each filter and, for dx, one for each position."""
    values, offsets, taps, places, width = staged
    depth, wide = layout[1], layout[3]
    _, _, begins, ends = by_filter
    for f in range(filters):
        ends[f] = begins[f]
    end = 0
    for begin in range(0, count, LANES):
        positions = min(LANES, count - begin)
        clear(pointer(values, positions * width), (LANES - positions) * width)
        for i in range(positions):
            p, line = begin + i, pointer(values, i * width)
            place = 2 * (first + p // columns) * wide + 2 * (p % columns)
            _stage(pointer(gradient, p * filters), pointer(winner, p * filters), place, wide, depth,
                   filters, line, pointer(offsets, i * width), taps, db)
            if need_dx:
                end = _list_by_position(line, taps, places, filters, by_position, p, columns, end)
        _list_by_filter(values, offsets, width, filters, by_filter)


@helper
def _stage(gradient, winner, place, wide, depth, filters, values, offsets, taps, db):
    """Write the gradients of 2x2 blocks (zero if ReLU is zero) and the offsets of their patches.

    Add the gradients to db.
    """
    for f in range(filters):
        taps[f] = np.int32(winner[f])
        offsets[f] = np.int32(place + (taps[f] >> 1 & 1) * wide + (taps[f] & 1)) * np.int32(depth)
    for f in range(0, filters, LANES):  # complete vectors, without a branch for each gradient
        some = filters - f
        value = where_tagged(load_some(gradient, f, some), pointer(taps, f), 0, ZEROED)
        store(value, values, f)
        store_some(add(load_some(db, f, some), value), db, f, some)


@helper
def _list_by_position(values, taps, places, filters, lists, p, columns, end):
    """Write the lists of the four positions of a 2x2 block from `end` on; return their end."""
    to_offsets, to_values, begins, ends = lists
    for q in range(4):
        number = (p // columns * 2 + q // 2) * 2 * columns + p % columns * 2 + q % 2
        begins[number] = end
        for f in range(0, filters, LANES):
            end += compress(where_tagged(load(values, f), pointer(taps, f), q, 1),
                            pointer(places, f), pointer(to_values, end), pointer(to_offsets, end))
        ends[number] = end
    return end


@helper
def _list_by_filter(values, offsets, width, filters, lists):
    """Add the gradients of LANES positions to the lists of the filters."""
    to_offsets, to_values, _, ends = lists
    for f in range(0, filters, LANES):
        transpose(pointer(values, f), width, pointer(values, f), width)
        transpose(pointer(offsets, f), width, pointer(offsets, f), width)
        for i in range(min(LANES, filters - f)):
            end, at = ends[f + i], i * width + f
            ends[f + i] += compress(load(values, at), pointer(offsets, at), pointer(to_values, end),
                                    pointer(to_offsets, end))


@helper
def _filter_gradient(padded, lists, layout, filters, kh, cut, pieces, dw):
    """Add dw[f] += sum over the list of f of value * window of x at offset."""
    blocks, depth, high, wide, run, _, _ = layout
    for block in range(blocks):  # the outer loop, so that its pixels stay in the first-level cache
        gather(cut, pieces, pointer(padded, block * high * wide * depth),
               wide * depth, lists, filters, pointer(dw, block * filters * kh * run), kh * run, run)


@helper
def _input_gradient(lines, lists, layout, filters, kh, cut, pieces, first, rows, columns, dpadded):
    """Add window of dx at (y, z) += sum over the list of (y, z) of value * w[f at offset]."""
    blocks, depth, high, wide, run, _, together = layout
    offsets, values, begins, ends = lists
    for block in range(blocks):
        for u in range(0, kh, together):
            line = pointer(lines, (block * kh + u) * filters * run)
            for y in range(2 * rows):
                here = 2 * columns * y
                row = (block * high + 2 * first + y + u) * wide * depth
                gather(cut, pieces, line, filters * run,
                       (offsets, values, pointer(begins, here), pointer(ends, here)), 2 * columns,
                       pointer(dpadded, row), depth, wide * depth)
