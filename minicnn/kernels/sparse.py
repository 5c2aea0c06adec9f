"""Gradients from the few that live, float32.

After a 2x2 max pooling at most one of four gradients lives, and ReLU kills more; ReLU and dropout
leave a third of a dense layer's. What lives is written into lists of (offset, value), and a sum
over a list reads whole vectors and keeps its results in registers:

    dw[f] += value * patch of x at offset            one list for each filter f
    dx patch += value * w[f at offset]               one list for each output position
    dw[:, j] += value * x[n at offset]               one list for each unit j
    dx[n] += value * w[:, j at offset]               one list for each row n

A gradient of exactly zero contributes nothing, also where it meets infinity or NaN. One that is NaN
or infinite may also reach pixels beside its window, where a run is filled up.

Layouts in scratch. Channels come in blocks of 16, so that the padded image of one block stays in
the first-level cache and the KW taps of one row of the window are one run of KW * 16 elements. With
fewer than 16 channels there is one block, of just these, and a run is filled up to whole vectors.
"""

from typing import NamedTuple

import numpy as np
from numba.extending import register_jitable

from minicnn.kernels.elementwise import BLOCK, blocks_of, sum_sums
from minicnn.kernels.gemm import copy, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.pool import aligned, parallel_for, share
from minicnn.kernels.simd import (
    as_integers,
    gather1,
    gather2,
    gather3,
    gather5,
    gather6,
    gather8,
    gather10,
    gather_pair6,
    gather_pair10,
    pointer,
    transpose,
)
from minicnn.kernels.window import Window

_BLOCK = 16  # channels
_LANES = 8
DEAD = 4  # the code of an output that ReLU has set to zero
_SIDE = 64  # units, and inputs, of a block of a dense layer
_MOST_ROWS = 4096  # of a dense layer's gradients: its lists take 64 places a row
_MOST_LIVING = 0.6  # share of a dense layer's gradients; above it the packed product is faster


class _Layout(NamedTuple):
    """The sizes of a convolution's backward pass; a plain tuple for the kernel."""

    blocks: int  # of channels
    depth: int  # channels of a block
    high: int  # of the padded image
    wide: int
    run: int  # elements of one row of the window in one block, in whole vectors


def fits(window: Window) -> bool:
    """Return whether the gradients of such a convolution can be made of lists."""
    return window[4:8] == (1, 1, 1, 1)


def convolution(
    x: np.ndarray, dy: np.ndarray, code: np.ndarray, w: np.ndarray, dw: np.ndarray, db: np.ndarray,
    dx: np.ndarray | None, window: Window, chunks: int,
) -> None:
    """Write the gradients of a convolution with ReLU and 2x2 max pooling.

    x (N, H, W, C)   w, dw (KH, KW, C, F)   db (F,)   dx like x, or None where it is not asked
    dy, code (N, OH // 2, OW // 2, F): the gradient of what was pooled, and what `pool_relu` wrote
    """
    (kh, kw, channels, filters), (n, ph, pw, _) = w.shape, dy.shape
    depth = min(channels, _BLOCK)
    blocks = -(-channels // depth)
    run = -(-kw * depth // _LANES) * _LANES
    high, wide = window.out_h + kh - 1, window.out_w + kw - 1
    layout = _Layout(blocks, depth, high, wide, run)
    need_dx = dx is not None
    lines = _lines(w, layout) if need_dx else np.empty((0, 0, 0, 0), np.float32)
    images = share(n, chunks)
    chunks = -(-n // images)
    size = blocks * filters * kh * run
    partial = aligned((chunks, size), np.float32)
    biases = np.empty((n, blocks_of(ph * pw), filters), np.float32)
    plane = blocks * high * wide * depth + run
    positions = ph * pw
    scratch = 2 * plane + filters * (2 * positions + 3) + 4 * positions * (2 * filters + 1)
    target = np.empty((0, 0, 0, 0), np.float32) if dx is None else dx
    parallel_for(_convolution, chunks, (x, dy, code, lines), (partial, biases, target),
                 tuple(layout), tuple(window), images, need_dx, scratch=scratch)
    total = np.empty(size, np.float32)
    sum_sums(partial, total)
    sums = total.reshape(blocks, filters, kh, run)[..., : kw * depth]
    sums = sums.reshape(blocks, filters, kh, kw, depth).transpose(2, 3, 0, 4, 1)
    dw[...] = sums.reshape(kh, kw, blocks * depth, filters)[:, :, :channels]
    sum_sums(biases, db)


def _lines(w: np.ndarray, layout: _Layout) -> np.ndarray:
    """Return w as (blocks, KH, F, run): what one output position adds to one row of dx."""
    (kh, kw, channels, filters), (blocks, depth, *_, run) = w.shape, layout
    padded = np.zeros((kh, kw, blocks * depth, filters), np.float32)
    padded[:, :, :channels] = w
    lines = aligned((blocks, kh, filters, run), np.float32)
    lines[..., kw * depth :] = 0
    lines[..., : kw * depth] = (
        padded.reshape(kh, kw, blocks, depth, filters)
        .transpose(2, 0, 4, 1, 3)
        .reshape(blocks, kh, filters, kw * depth)
    )
    return lines


def dense(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None
) -> bool:
    """Write the gradients of y = x w (but not the bias'); False where too many gradients live.

    x, dx (N, D)   w, dw (D, U)   dy (N, U)
    """
    (n, units), inputs = dy.shape, x.shape[1]
    if n > _MOST_ROWS or np.count_nonzero(dy) > _MOST_LIVING * dy.size:
        return False
    blocks = -(-units // _SIDE)
    of_unit = np.empty((2, blocks * _SIDE, n), np.float32)  # offsets (as int32) and values
    of_row = np.empty((2, blocks, n, _SIDE), np.float32)
    lengths = np.empty((blocks, _SIDE + n), np.float32)
    parallel_for(_dense_lists, blocks, (dy,), (of_unit, of_row, lengths))
    target = np.empty((0, 0), np.float32) if dx is None else dx
    scratch = (2 * n + _SIDE + 2 * _row(units)) * _SIDE
    parallel_for(_dense, -(-inputs // _SIDE), (x, w, of_unit, of_row, lengths), (dw, target),
                 dx is not None, scratch=scratch)
    return True


@kernel
def _convolution(chunk, scratch, x, dy, code, lines, partial, biases, dx, layout, window, images,
                 need_dx):
    blocks, depth, high, wide, run = layout
    kh, top, left = window[2], window[8], window[9]
    filters, rows, columns = dy.shape[3], dy.shape[1], dy.shape[2]
    size, positions = high * wide * depth, rows * columns
    image = x.shape[1] * x.shape[2] * x.shape[3]
    plane = pointer(scratch, 0)
    dplane = pointer(plane, blocks * size + run)
    integers = as_integers(plane)
    begin = 2 * (blocks * size + run)
    # a list for each filter, of the positions at which it lives
    f_values, f_offsets = pointer(scratch, begin), pointer(integers, begin + filters * positions)
    f_length = pointer(integers, begin + 2 * filters * positions)
    living, places = pointer(f_length, filters), pointer(f_length, 2 * filters)  # of one position
    begin += filters * (2 * positions + 3)
    # a list for each output position, of the filters that live there
    p_values = pointer(scratch, begin)
    p_offsets = pointer(integers, begin + 4 * positions * filters)
    p_length = pointer(integers, begin + 8 * positions * filters)
    partial[chunk] = 0
    dw = pointer(partial, chunk * partial.shape[1])
    for e in range(blocks * size + run):
        plane[e] = 0
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        _copy_blocks(pointer(x, n * image), plane, x.shape[1:], layout, top, left, False)
        for f in range(filters):
            f_length[f] = 0
        for q in range(4 * positions):
            p_length[q] = 0
        for p in range(positions):
            place = p // columns * 2 * wide + p % columns * 2
            at = (n * positions + p) * filters
            gradient, winner = pointer(dy, at), pointer(code, at)
            for f in range(filters):  # by vectors; what follows cannot be
                tap = np.int32(winner[f])
                living[f] = np.int32(tap != DEAD) & np.int32(gradient[f] != 0)
                places[f] = np.int32(place + (tap >> 1 & 1) * wide + (tap & 1)) * np.int32(depth)
            for f in range(filters):
                end = f * positions + np.int64(f_length[f])
                f_values[end] = gradient[f]
                f_offsets[end] = places[f]
                f_length[f] += living[f]
            if need_dx:
                for f in range(filters):
                    q = 4 * p + np.int64(winner[f] & 3)
                    end = q * filters + np.int64(p_length[q])
                    p_values[end] = gradient[f]
                    p_offsets[end] = f * run
                    p_length[q] += living[f]
        biases[n] = 0
        for f in range(filters):
            for e in range(np.int64(f_length[f])):
                biases[n, e // BLOCK, f] += f_values[f * positions + e]
        for block in range(blocks):  # outermost: its plane stays in the first-level cache
            for f in range(filters):
                _gather_window(pointer(plane, block * size), wide * depth,
                               pointer(f_offsets, f * positions), pointer(f_values, f * positions),
                               np.int64(f_length[f]),
                               pointer(dw, (block * filters + f) * kh * run), kh, run)
        if need_dx:
            for e in range(blocks * size + run):
                dplane[e] = 0
            for block in range(blocks):
                for u in range(kh):
                    line = pointer(lines, (block * kh + u) * filters * run)
                    for q in range(0, 4 * positions, 2):  # two neighbours in a row
                        y = q // 4 // columns * 2 + q % 4 // 2
                        z = q // 4 % columns * 2
                        place = pointer(dplane, block * size + ((y + u) * wide + z) * depth)
                        _gather_pair(
                            run, depth, line, pointer(p_offsets, q * filters),
                            pointer(p_values, q * filters), np.int64(p_length[q]),
                            pointer(p_offsets, (q + 1) * filters),
                            pointer(p_values, (q + 1) * filters), np.int64(p_length[q + 1]), place)
            _copy_blocks(pointer(dx, n * image), dplane, x.shape[1:], layout, top, left, True)


@helper
def _gather_window(source, row, offsets, values, length, target, kh, run):
    """Sum a list over the whole window: KH rows of `run` elements that are `row` apart."""
    if run == _LANES:  # rows of one vector each: take them together
        gather(kh, source, row, offsets, values, length, target)
        return
    for u in range(kh):
        gather(run // _LANES, pointer(source, u * row), _LANES, offsets, values, length,
               pointer(target, u * run))


@helper
def _gather_pair(run, depth, source, offsets, values, length, offsets2, values2, length2, target):
    """Gather the lists of two neighbouring pixels, whose targets are `depth` elements apart."""
    if depth == _BLOCK and run == 10 * _LANES:
        gather_pair10(source, offsets, values, length, offsets2, values2, length2, target)
    elif depth == _BLOCK and run == 6 * _LANES:
        gather_pair6(source, offsets, values, length, offsets2, values2, length2, target)
    else:
        gather(run // _LANES, source, _LANES, offsets, values, length, target)
        gather(run // _LANES, source, _LANES, offsets2, values2, length2, pointer(target, depth))


@helper
def gather(count, source, step, offsets, values, length, target):
    """Add to `count` vectors of target the sum of value * the vectors at offset, `step` apart."""
    while count > 0:
        if count >= 10:
            done = 10
            gather10(source, step, offsets, values, length, target)
        elif count >= 6:
            done = 6
            gather6(source, step, offsets, values, length, target)
        elif count == 5:
            done = 5
            gather5(source, step, offsets, values, length, target)
        elif count >= 3:
            done = 3
            gather3(source, step, offsets, values, length, target)
        elif count == 2:
            done = 2
            gather2(source, step, offsets, values, length, target)
        else:
            done = 1
            gather1(source, step, offsets, values, length, target)
        count -= done
        source, target = pointer(source, done * step), pointer(target, done * _LANES)


@helper
def _copy_blocks(image, planes, sizes, layout, top, left, back):
    """Copy an image into the middle of its padded planes, a block of channels each, or back."""
    blocks, depth, high, wide, _ = layout
    height, width, channels = sizes
    for block in range(blocks):
        first = block * depth
        count = min(depth, channels - first)
        for i in range(height):
            row = pointer(image, i * width * channels + first)
            padded = pointer(planes, ((block * high + i + top) * wide + left) * depth)
            for j in range(width):
                for c in range(count):
                    if back:
                        row[j * channels + c] = padded[j * depth + c]
                    else:
                        padded[j * depth + c] = row[j * channels + c]


@kernel
def _dense_lists(block, scratch, dy, of_unit, of_row, lengths):
    """Write the lists of the units of a block: by unit, and by row."""
    n, units = dy.shape
    first = block * _SIDE
    # of_unit (2, U, N) and of_row (2, blocks, N, 64): first offsets, then values
    unit_values = pointer(of_unit, of_unit.size // 2 + first * n)
    unit_offsets = as_integers(pointer(of_unit, first * n))
    length = as_integers(pointer(lengths, block * (_SIDE + n)))
    for j in range(_SIDE):
        length[j] = 0
    for i in range(n):
        at = (block * n + i) * _SIDE
        row_values = pointer(of_row, of_row.size // 2 + at)
        row_offsets = as_integers(pointer(of_row, at))
        count = 0
        for j in range(min(_SIDE, units - first)):
            value = dy[i, first + j]
            living = np.int32(value != 0)
            end = np.int64(length[j])
            unit_values[j * n + end] = value
            unit_offsets[j * n + end] = i * _SIDE
            length[j] += living
            row_values[count] = value
            row_offsets[count] = j * _SIDE
            count += living
        length[_SIDE + i] = count


@kernel
def _dense(chunk, scratch, x, w, of_unit, of_row, lengths, dw, dx, need_dx):
    """Write dw and dx for 64 inputs."""
    (n, inputs), units = x.shape, w.shape[1]
    first = chunk * _SIDE
    width = min(_SIDE, inputs - first)
    panel = pointer(scratch, 0)  # of x (N, 64)
    dpanel = pointer(panel, n * _SIDE)
    square = pointer(dpanel, n * _SIDE)  # of w or dw, with units as rows (64, 64)
    row = _row(units)
    rows, drows = pointer(square, _SIDE * _SIDE), pointer(square, (_SIDE + row) * _SIDE)
    if need_dx:
        copy(pointer(w, first * units), units, rows, row, width, units)
    unit_offsets, row_offsets = as_integers(pointer(of_unit, 0)), as_integers(pointer(of_row, 0))
    for i in range(n):
        for d in range(_SIDE):
            panel[i * _SIDE + d] = x[i, first + d] if d < width else 0
            dpanel[i * _SIDE + d] = 0
    for block in range(lengths.shape[0]):
        length = as_integers(pointer(lengths, block * (_SIDE + n)))
        begin = block * _SIDE
        count = min(_SIDE, units - begin)
        for e in range(_SIDE * _SIDE):
            square[e] = 0
        for j in range(count):
            offsets = pointer(unit_offsets, (begin + j) * n)
            values = pointer(of_unit, (of_unit.shape[1] + begin + j) * n)
            for e in range(0, np.int64(length[j]), BLOCK):
                gather8(panel, _LANES, pointer(offsets, e), pointer(values, e),
                        min(BLOCK, np.int64(length[j]) - e), pointer(square, j * _SIDE))
        _turn(square, _SIDE, pointer(drows, begin), row)
        if need_dx:
            _turn(pointer(rows, begin), row, square, _SIDE)
            for i in range(n):
                at = (block * n + i) * _SIDE
                gather8(square, _LANES, pointer(row_offsets, at),
                        pointer(of_row, of_row.shape[1] * n * _SIDE + at),
                        np.int64(length[_SIDE + i]), pointer(dpanel, i * _SIDE))
    copy(drows, row, pointer(dw, first * units), units, width, units)
    if need_dx:
        copy(dpanel, _SIDE, pointer(dx, first), inputs, n, width)


@register_jitable  # called from Python too
def _row(units):
    """Return how far apart rows of w lie in scratch: not by a power of two.

    In caches such rows would drive each other out; therefore squares are cut out of a copy.
    """
    return round_up(units, _SIDE) + 16


@helper
def _turn(source, row, target, target_row):
    """Transpose a block of 64x64."""
    for i in range(0, _SIDE, 8):
        for j in range(0, _SIDE, 8):
            transpose(pointer(source, i * row + j), row, pointer(target, j * target_row + i),
                      target_row)
