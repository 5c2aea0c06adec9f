"""Gradients of a convolution with ReLU and 2x2 max pooling, from lists, float32.

After a 2x2 max pooling at most one of four gradients is not zero, and ReLU zeroes more. Those that
are left are written into lists of (offset, value), and a sum over a list reads whole vectors and
keeps its results in registers:

    dw[f] += value * patch of x at offset            one list for each filter f
    dx patch += value * w[f at offset]               one list for each output position

A gradient of exactly zero contributes nothing, also where it meets infinity or NaN. One that is NaN
or infinite may also reach pixels beside its window, where a run is filled up.

Layouts in scratch. Channels come in blocks of a panel, so that the padded image of one block stays
in the first-level cache and the KW taps of one row of the window are one run of KW * depth
elements. With fewer than 16 channels there is one block, of just these, and a run is filled up to
whole vectors.
"""

from typing import NamedTuple

import numpy as np

from minicnn.kernels import simd
from minicnn.kernels.elementwise import BLOCK, blocks_of, sum_sums
from minicnn.kernels.gather import gather
from minicnn.kernels.gemm import clear, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import LANES, PANEL, ZEROED, pointer
from minicnn.kernels.threads import aligned, parallel_for, share
from minicnn.kernels.window import Window

_MANY_CHANNELS = 16  # from here on blocks of whole vectors, and neighbours are summed together


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


def gradients(
    x: np.ndarray, dy: np.ndarray, code: np.ndarray, w: np.ndarray, dw: np.ndarray, db: np.ndarray,
    dx: np.ndarray | None, window: Window, chunks: int,
) -> None:
    """Write the gradients of a convolution with ReLU and 2x2 max pooling.

    x (N, H, W, C)   w, dw (KH, KW, C, F)   db (F,)   dx like x, or None where it is not asked
    dy, code (N, OH // 2, OW // 2, F): the gradient of what was pooled, and what `pool_relu` wrote
    """
    (kh, kw, channels, filters), (n, ph, pw, _) = w.shape, dy.shape
    many = channels >= _MANY_CHANNELS
    depth = min(round_up(channels, LANES), PANEL) if many else channels
    blocks = -(-channels // depth)
    run = round_up(kw * depth, LANES)
    high, wide = window.out_h + kh - 1, window.out_w + kw - 1
    layout = _Layout(blocks, depth, high, wide, run)
    need_dx = dx is not None
    lines = _lines(w, layout) if need_dx else np.empty((0, 0, 0, 0), np.float32)
    images = share(n, chunks)
    chunks = -(-n // images)
    size = blocks * filters * kh * run
    partial = aligned((chunks, size), np.float32)
    biases = np.empty((n, blocks_of(ph * pw), filters), np.float32)
    padded = blocks * high * wide * depth + run  # the last gather reads, or adds, a run too many
    positions = ph * pw
    target = np.empty((0, 0, 0, 0), np.float32) if dx is None else dx
    parallel_for(
        _gradients, chunks, (x, dy, code, lines), (partial, biases, target), tuple(layout),
        tuple(window), images, many, need_dx,
        scratch={
            "padded": ((padded,), np.float32),
            "dpadded": ((padded,), np.float32),
            # a list for each filter, of the positions at which it is not zero
            "f_values": ((filters, positions), np.float32),
            "f_offsets": ((filters, positions), np.int32),
            "f_length": ((filters,), np.int32),
            # a list for each output position, of the filters that are not zero there
            "p_values": ((4 * positions, filters), np.float32),
            "p_offsets": ((4 * positions, filters), np.int32),
            "p_length": ((4 * positions,), np.int32),
            # of one position
            "nonzero": ((filters,), np.int32),
            "places": ((filters,), np.int32),
        },
    )
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


@kernel
def _gradients(chunk, scratch, x, dy, code, lines, partial, biases, dx, layout, window, images,
               many, need_dx):
    """Sum dw over a chunk of images, and write the sums of db and dx for each."""
    (padded, dpadded, f_values, f_offsets, f_length, p_values, p_offsets, p_length, nonzero,
     places) = scratch
    blocks, depth, high, wide, run = layout
    kh, top, left = window[2], window[8], window[9]
    filters, positions = dy.shape[3], dy.shape[1] * dy.shape[2]
    size, image = high * wide * depth, x.shape[1] * x.shape[2] * x.shape[3]
    f_values_, f_offsets_ = pointer(f_values, 0), pointer(f_offsets, 0)
    p_values_, p_offsets_ = pointer(p_values, 0), pointer(p_offsets, 0)
    partial[chunk] = 0
    dw = pointer(partial, chunk * partial.shape[1])
    clear(pointer(padded, 0), padded.size)
    for n in range(chunk * images, min(x.shape[0], (chunk + 1) * images)):
        _copy_blocks(pointer(x, n * image), pointer(padded, 0), x.shape[1:], layout, top, left,
                     False)
        f_length[:] = 0
        p_length[:] = 0
        for p in range(positions):
            at, place = (n * positions + p) * filters, _corner(p, dy.shape[2], wide)
            gradient, winner = pointer(dy, at), pointer(code, at)
            _locate(gradient, winner, place, wide, depth, pointer(nonzero, 0), pointer(places, 0),
                    filters)
            for f in range(filters):
                end = f * positions + np.int64(f_length[f])
                f_values_[end] = gradient[f]
                f_offsets_[end] = places[f]
                f_length[f] += nonzero[f]
            for f in range(filters if need_dx else 0):
                q = 4 * p + np.int64(winner[f] & 3)
                end = q * filters + np.int64(p_length[q])
                p_values_[end] = gradient[f]
                p_offsets_[end] = f * run
                p_length[q] += nonzero[f]
        biases[n] = 0
        for f in range(filters):
            for e in range(np.int64(f_length[f])):
                biases[n, e // BLOCK, f] += f_values[f, e]
        for block in range(blocks):  # outermost: its image stays in the first-level cache
            for f in range(filters):
                _gather_window(pointer(padded, block * size), wide * depth,
                               pointer(f_offsets, f * positions), pointer(f_values, f * positions),
                               np.int64(f_length[f]),
                               pointer(dw, (block * filters + f) * kh * run), kh, run)
        if need_dx:
            clear(pointer(dpadded, 0), dpadded.size)
            for block in range(blocks):
                for u in range(kh):
                    line = pointer(lines, (block * kh + u) * filters * run)
                    for q in range(0, 4 * positions, 2):  # two neighbours in a row
                        y = q // 4 // dy.shape[2] * 2 + q % 4 // 2
                        z = q // 4 % dy.shape[2] * 2
                        _gather_pair(
                            run, depth, many, line, pointer(p_offsets, q * filters),
                            pointer(p_values, q * filters), np.int64(p_length[q]),
                            pointer(p_offsets, (q + 1) * filters),
                            pointer(p_values, (q + 1) * filters), np.int64(p_length[q + 1]),
                            pointer(dpadded, block * size + ((y + u) * wide + z) * depth))
            _copy_blocks(pointer(dx, n * image), pointer(dpadded, 0), x.shape[1:], layout, top,
                         left, True)


@helper
def _corner(p, columns, wide):
    """Return the pixel of the padded image at which the patch of a 2x2 block begins."""
    return p // columns * 2 * wide + p % columns * 2


@helper
def _locate(gradient, winner, place, wide, depth, nonzero, places, filters):
    """Write for each filter whether its gradient is nonzero and where its patch is, by vectors."""
    for f in range(filters):
        tap = np.int32(winner[f])
        nonzero[f] = np.int32(tap != ZEROED) & np.int32(gradient[f] != 0)
        places[f] = np.int32(place + (tap >> 1 & 1) * wide + (tap & 1)) * np.int32(depth)


@helper
def _gather_window(source, row, offsets, values, length, target, kh, run):
    """Sum a list over the whole window: KH rows of `run` elements that are `row` apart."""
    if run == LANES:  # rows of one vector each: take them together
        gather(kh, source, row, offsets, values, length, target)
        return
    for u in range(kh):
        gather(run // LANES, pointer(source, u * row), LANES, offsets, values, length,
               pointer(target, u * run))


@helper
def _gather_pair(run, depth, many, source, offsets, values, length, offsets2, values2, length2,
                 target):
    """Gather the lists of two neighbouring pixels, whose targets are `depth` elements apart."""
    if many and depth == PANEL and run == 5 * PANEL:
        simd.gather_pair(10, 2, source, offsets, values, length, offsets2, values2,
                         length2, target)
    elif many and depth == PANEL and run == 3 * PANEL:
        simd.gather_pair(6, 2, source, offsets, values, length, offsets2, values2,
                         length2, target)
    elif many and depth == LANES and run == 5 * LANES:
        simd.gather_pair(5, 1, source, offsets, values, length, offsets2, values2, length2, target)
    elif many and depth == LANES and run == 3 * LANES:
        simd.gather_pair(3, 1, source, offsets, values, length, offsets2, values2, length2, target)
    else:
        gather(run // LANES, source, LANES, offsets, values, length, target)
        gather(run // LANES, source, LANES, offsets2, values2, length2, pointer(target, depth))


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
