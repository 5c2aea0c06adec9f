"""Gradients of a dense layer from lists of the nonzero output gradients, float32.

After ReLU and dropout, only about a third of the output gradients are nonzero. They are written to
lists of (offset, value). A sum over a list loads complete vectors and keeps its results in
registers:

    dw[:, j] += value * x[n at offset]               one list for each unit j
    dx[n] += value * w[:, j at offset]               one list for each row n

A gradient of exactly zero contributes nothing, even if it is multiplied by infinity or NaN.

Inputs and units are processed in blocks of 64. A chunk computes the gradients for one block of
inputs, from a copy (N, 64) of its part of x, for one block of units after the other. Blocks of dw
and w are transposed: (64 units, 64 inputs), so that the inputs of a unit are contiguous.
"""

import numpy as np

from minicnn.kernels.elementwise import BLOCK, blocks_of
from minicnn.kernels.gemm import clear, copy, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import LANES, gather, pointer, transpose
from minicnn.kernels.threads import parallel_for

_SIDE = 64  # of a block; sums of dx are split by it, so it must not depend on the vector width
_VECTORS = min(8, _SIDE // LANES)  # of sums in registers
_ACROSS = _VECTORS * LANES
_MOST_ROWS = 4096  # the lists have 64 places per row and block
_MOST_NONZERO = 0.4  # fraction of dy; above it, the packed product is faster


def gradients(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None
) -> bool:
    """Write the gradients of y = x w; return False, writing nothing, if too few dy are zero.

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
    unit_bounds = np.empty((2, blocks, blocks_of(n), _SIDE), np.int64)
    row_bounds = np.empty((2, blocks, n), np.int64)
    lists = unit_offsets, unit_values, unit_bounds, row_offsets, row_values, row_bounds
    parallel_for(_find_nonzero, blocks, (dy,), lists)
    target = np.empty((0, 0), np.float32) if dx is None else dx
    row = _row(units)
    parallel_for(
        _gradients, -(-inputs // _SIDE), (x, w, *lists), (dw, target), dx is not None,
        scratch={
            "panel": ((n, _SIDE), np.float32),  # of x
            "dpanel": ((n, _SIDE), np.float32),
            "square": ((_SIDE, _SIDE), np.float32),  # of w or dw, transposed
            "rows": ((_SIDE, row), np.float32),  # of w
            "drows": ((_SIDE, row), np.float32),
        },
    )
    return True


@kernel
def _find_nonzero(block, scratch, dy, unit_offsets, unit_values, unit_bounds, row_offsets,
                  row_values, row_bounds):
    """Write the lists of a block of units: one for each unit and `BLOCK` rows, one for each row."""
    n, units = dy.shape
    first, parts = block * _SIDE, unit_bounds.shape[2]
    offsets, values = pointer(unit_offsets, 0), pointer(unit_values, 0)
    offsets_, values_ = pointer(row_offsets, 0), pointer(row_values, 0)
    for part in range(parts):
        for j in range(_SIDE):
            unit_bounds[0, block, part, j] = (first + j) * n + part * BLOCK
            unit_bounds[1, block, part, j] = (first + j) * n + part * BLOCK
    for i in range(n):
        part = (unit_bounds.shape[1] + block) * parts + i // BLOCK
        ends = pointer(unit_bounds, part * _SIDE)
        end = (block * n + i) * _SIDE
        row_bounds[0, block, i] = end
        for j in range(min(_SIDE, units - first)):
            value = dy[i, first + j]
            nonzero = np.int64(value != 0)
            values[ends[j]] = value
            offsets[ends[j]] = i * _SIDE
            ends[j] += nonzero
            values_[end] = value
            offsets_[end] = j * _SIDE
            end += nonzero
        row_bounds[1, block, i] = end


@kernel
def _gradients(chunk, scratch, x, w, unit_offsets, unit_values, unit_bounds, row_offsets,
               row_values, row_bounds, dw, dx, need_dx):
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
    for block in range(unit_bounds.shape[1]):
        begin = block * _SIDE
        clear(pointer(square, 0), square.size)
        for part in range(unit_bounds.shape[2]):
            at = (block * unit_bounds.shape[2] + part) * _SIDE
            lists = (pointer(unit_offsets, 0), pointer(unit_values, 0), pointer(unit_bounds, at),
                     pointer(unit_bounds, unit_bounds.size // 2 + at))
            _gather(pointer(panel, 0), lists, min(_SIDE, units - begin), pointer(square, 0))
        _transpose(pointer(square, 0), _SIDE, pointer(drows, begin), row)
        if need_dx:
            _transpose(pointer(rows, begin), row, pointer(square, 0), _SIDE)
            at = block * n
            lists = (pointer(row_offsets, 0), pointer(row_values, 0), pointer(row_bounds, at),
                     pointer(row_bounds, row_bounds.size // 2 + at))
            _gather(pointer(square, 0), lists, n, pointer(dpanel, 0))
    copy(pointer(drows, 0), row, pointer(dw, first * units), units, width, units)
    if need_dx:
        copy(pointer(dpanel, 0), _SIDE, pointer(dx, first), inputs, n, width)


@helper
def _gather(source, lists, count, target):
    """Add the sums over `count` lists to `count` rows of 64 elements."""
    for d in range(0, _SIDE, _ACROSS):
        gather(1, _VECTORS, pointer(source, d), 0, lists, count, pointer(target, d),
               _SIDE, 0)


def _row(units):
    """Return the distance of the rows of w in scratch, which is not a power of two.

    Rows at a power of two would evict each other from the cache, so w is copied before it is
    transposed in square blocks.
    """
    return round_up(units, _SIDE) + 16


@helper
def _transpose(source, row, target, target_row):
    """Transpose a block of 64x64 elements."""
    for i in range(0, _SIDE, LANES):
        for j in range(0, _SIDE, LANES):
            transpose(pointer(source, i * row + j), row, pointer(target, j * target_row + i),
                      target_row)
