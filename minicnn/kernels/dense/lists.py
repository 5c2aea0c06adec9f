"""Gradients of a dense layer from lists of those that are not zero, float32.

ReLU and dropout leave a third of a dense layer's gradients. These are written into lists of
(offset, value), and a sum over a list reads whole vectors and keeps its results in registers:

    dw[:, j] += value * x[n at offset]               one list for each unit j
    dx[n] += value * w[:, j at offset]               one list for each row n

A gradient of exactly zero contributes nothing, also where it meets infinity or NaN.

Inputs and units come in blocks of 64. A chunk makes the gradients for one block of inputs, from a
copy of x for these (N, 64), one block of units after the other. There, dw and w lie transposed,
with a unit's inputs side by side: (64 units, 64 inputs).
"""

import numpy as np

from minicnn.kernels.elementwise import BLOCK
from minicnn.kernels.gather import gather
from minicnn.kernels.gemm import clear, copy, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import LANES, pointer, transpose
from minicnn.kernels.threads import parallel_for

_SIDE = 64  # units, and inputs, of a block; it cuts the sums of dx, so it follows no vector
_VECTORS = _SIDE // LANES
_MOST_ROWS = 4096  # the lists take 64 places a row
_MOST_NONZERO = 0.6  # share of the gradients; above it the packed product is faster


def gradients(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None
) -> bool:
    """Write the gradients of y = x w (but not the bias'); False if too few are zero.

    x, dx (N, D)   w, dw (D, U)   dy (N, U)
    """
    (n, units), inputs = dy.shape, x.shape[1]
    if n > _MOST_ROWS or np.count_nonzero(dy) > _MOST_NONZERO * dy.size:
        return False
    blocks = -(-units // _SIDE)
    unit_values = np.empty((blocks * _SIDE, n), np.float32)
    row_values = np.empty((blocks, n, _SIDE), np.float32)
    unit_offsets = np.empty(unit_values.shape, np.int32)
    row_offsets = np.empty(row_values.shape, np.int32)
    lengths = np.empty((blocks, _SIDE + n), np.int32)  # of the units' lists, then of the rows'
    lists = unit_values, unit_offsets, row_values, row_offsets, lengths
    parallel_for(_find_nonzero, blocks, (dy,), lists)
    target = np.empty((0, 0), np.float32) if dx is None else dx
    row = _row(units)
    parallel_for(
        _gradients, -(-inputs // _SIDE), (x, w, *lists), (dw, target), dx is not None,
        scratch={
            "panel": ((n, _SIDE), np.float32),  # of x
            "dpanel": ((n, _SIDE), np.float32),
            "square": ((_SIDE, _SIDE), np.float32),  # of w or dw, with units as rows
            "rows": ((_SIDE, row), np.float32),  # of w
            "drows": ((_SIDE, row), np.float32),
        },
    )
    return True


@kernel
def _find_nonzero(block, scratch, dy, unit_values, unit_offsets, row_values, row_offsets, lengths):
    """Write the lists of a block of units: for each unit, and for each row."""
    n, units = dy.shape
    first = block * _SIDE
    values, offsets = pointer(unit_values, first * n), pointer(unit_offsets, first * n)
    length = pointer(lengths, block * (_SIDE + n))
    for j in range(_SIDE):
        length[j] = 0
    for i in range(n):
        at = (block * n + i) * _SIDE
        values_, offsets_ = pointer(row_values, at), pointer(row_offsets, at)
        count = 0
        for j in range(min(_SIDE, units - first)):
            value = dy[i, first + j]
            nonzero = np.int32(value != 0)
            end = j * n + np.int64(length[j])
            values[end] = value
            offsets[end] = i * _SIDE
            length[j] += nonzero
            values_[count] = value
            offsets_[count] = j * _SIDE
            count += nonzero
        length[_SIDE + i] = count


@kernel
def _gradients(chunk, scratch, x, w, unit_values, unit_offsets, row_values, row_offsets, lengths,
               dw, dx, need_dx):
    """Write dw and dx for a block of inputs."""
    panel, dpanel, square, rows, drows = scratch
    (n, inputs), units = x.shape, w.shape[1]
    first, row = chunk * _SIDE, rows.shape[1]
    width = min(_SIDE, inputs - first)
    if need_dx:
        copy(pointer(w, first * units), units, pointer(rows, 0), row, width, units)
    clear(pointer(panel, 0), panel.size)
    clear(pointer(dpanel, 0), dpanel.size)
    copy(pointer(x, first), inputs, pointer(panel, 0), _SIDE, n, width)
    for block in range(lengths.shape[0]):
        begin = block * _SIDE
        length = pointer(lengths, block * (_SIDE + n))
        clear(pointer(square, 0), square.size)
        for j in range(min(_SIDE, units - begin)):
            for e in range(0, np.int64(length[j]), BLOCK):
                at = (begin + j) * n + e
                gather(_VECTORS, pointer(panel, 0), LANES, pointer(unit_offsets, at),
                       pointer(unit_values, at), min(BLOCK, np.int64(length[j]) - e),
                       pointer(square, j * _SIDE))
        _transpose(pointer(square, 0), _SIDE, pointer(drows, begin), row)
        if need_dx:
            _transpose(pointer(rows, begin), row, pointer(square, 0), _SIDE)
            for i in range(n):
                at = (block * n + i) * _SIDE
                gather(_VECTORS, pointer(square, 0), LANES, pointer(row_offsets, at),
                       pointer(row_values, at), np.int64(length[_SIDE + i]),
                       pointer(dpanel, i * _SIDE))
    copy(pointer(drows, 0), row, pointer(dw, first * units), units, width, units)
    if need_dx:
        copy(pointer(dpanel, 0), _SIDE, pointer(dx, first), inputs, n, width)


def _row(units):
    """Return how far apart rows of w lie in scratch: not by a power of two.

    In caches such rows would drive each other out; therefore squares are cut out of a copy.
    """
    return round_up(units, _SIDE) + 16


@helper
def _transpose(source, row, target, target_row):
    """Transpose a block of 64x64."""
    for i in range(0, _SIDE, LANES):
        for j in range(0, _SIDE, LANES):
            transpose(pointer(source, i * row + j), row, pointer(target, j * target_row + i),
                      target_row)
