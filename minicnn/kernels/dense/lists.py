"""Gradients of a dense layer from lists of the nonzero output gradients, float32.

After ReLU and dropout, only about a third of the output gradients are nonzero. They are written to
lists of (offset, value). A sum over a list loads complete vectors and keeps its results in
registers:

    dw[:, j] += value * x[n at offset]               one list for each unit j
    dx[n] += value * w[:, j at offset]               one list for each row n

A gradient of exactly zero contributes nothing, even if it is multiplied by infinity or NaN.

A chunk computes the gradients for 64 inputs, from a copy of their columns of x, for one block of 64
units after the other. A block of dw and w is transposed: (64 units, 64 inputs), so that the inputs
of a unit are contiguous.
"""

import numpy as np

from minicnn.kernels.elementwise import BLOCK, blocks_of
from minicnn.kernels.gemm import clear, copy, round_up
from minicnn.kernels.jit import helper, kernel
from minicnn.kernels.simd import LANES, gather, pointer, transpose
from minicnn.kernels.threads import depends_on_values, parallel_for

_SIDE = 64  # of a block; sums of dx are split by it, so it must not depend on the vector width
_VECTORS = min(8, _SIDE // LANES)  # of sums in registers
_MOST_ROWS = 4096  # the lists have 64 places per row and block
_MOST_NONZERO = 0.4  # fraction of dy; above it, the packed product is faster


def gradients(
    x: np.ndarray, dy: np.ndarray, w: np.ndarray, dw: np.ndarray, dx: np.ndarray | None
) -> bool:
    """Write the gradients of y = x w; return False, writing nothing, if too few dy are zero.

    x, dx (N, D)   w, dw (D, U)   dy (N, U)
    """
    (n, units), inputs = dy.shape, x.shape[1]
    depends_on_values()
    if n > _MOST_ROWS or np.count_nonzero(dy) > _MOST_NONZERO * dy.size:
        return False
    blocks = -(-units // _SIDE)
    values = np.empty((2, blocks * n * _SIDE), np.float32)  # of the lists of units, and of rows
    offsets = np.empty(values.shape, np.int32)
    unit_bounds = np.empty((2, blocks, blocks_of(n), _SIDE), np.int64)
    row_bounds = np.empty((2, blocks, n), np.int64)
    lists = offsets, values, unit_bounds, row_bounds
    parallel_for(_find_nonzero, blocks, (dy,), lists,
                 scratch={"columns": ((n, _SIDE + 16), np.float32)})
    target = np.empty((0, 0), np.float32) if dx is None else dx
    # Rows at a power of two would evict each other from the cache, so w and dw are copied.
    row = round_up(units, _SIDE) + 16
    parallel_for(
        _gradients, -(-inputs // _SIDE), (x, w, *lists), (dw, target), dx is not None,
        scratch={
            "columns": ((n, _SIDE), np.float32),  # of x
            "dcolumns": ((n, _SIDE), np.float32),
            "block": ((_SIDE, _SIDE), np.float32),  # of w or dw, transposed
            "rows": ((_SIDE, row), np.float32),  # of w
            "drows": ((_SIDE, row), np.float32),
        },
    )
    return True


@kernel
def _find_nonzero(block, scratch, dy, offsets, values, unit_bounds, row_bounds):
    """Write the lists of a block of units: one for each unit and `BLOCK` rows, one for each row."""
    (columns,) = scratch
    (n, units), first = dy.shape, block * _SIDE
    width, row = min(_SIDE, units - first), columns.shape[1]
    copy(pointer(dy, first), units, pointer(columns, 0), row, n, width)
    for j in range(width):
        for part in range(unit_bounds.shape[2]):
            begin = (first + j) * n + part * BLOCK
            unit_bounds[0, block, part, j] = begin
            unit_bounds[1, block, part, j] = begin + _list_nonzero(
                pointer(columns, part * BLOCK * row + j), row, min(BLOCK, n - part * BLOCK),
                pointer(offsets[0], begin), pointer(values[0], begin)
            )
    for i in range(n):
        begin = (block * n + i) * _SIDE
        row_bounds[0, block, i] = begin
        row_bounds[1, block, i] = begin + _list_nonzero(
            pointer(columns, i * row), 1, width, pointer(offsets[1], begin),
            pointer(values[1], begin)
        )


@helper
def _list_nonzero(source, stride, count, offsets, values):
    """List the nonzero of `count` elements, e at the offset 64 e, and return their number."""
    end = 0
    for e in range(count):
        value = source[e * stride]
        offsets[end] = e * _SIDE
        values[end] = value
        end += np.int64(value != 0)
    return end


@kernel
def _gradients(chunk, scratch, x, w, offsets, values, unit_bounds, row_bounds, dw, dx, need_dx):
    """Write dw and dx for a block of inputs."""
    columns, dcolumns, block, rows, drows = scratch
    (n, inputs), units, row, first = x.shape, w.shape[1], rows.shape[1], chunk * _SIDE
    width, square = min(_SIDE, inputs - first), pointer(block, 0)
    if need_dx:
        copy(pointer(w, first * units), units, pointer(rows, 0), row, width, units)
    clear(pointer(columns, 0), columns.size)
    clear(pointer(dcolumns, 0), dcolumns.size)
    copy(pointer(x, first), inputs, pointer(columns, 0), _SIDE, n, width)
    for j in range(unit_bounds.shape[1]):
        begin = j * _SIDE
        clear(square, block.size)
        for part in range(unit_bounds.shape[2]):
            lists = (pointer(offsets[0], 0), pointer(values[0], 0),
                     pointer(unit_bounds[0, j, part], 0), pointer(unit_bounds[1, j, part], 0))
            _gather(pointer(columns, part * BLOCK * _SIDE), lists, min(_SIDE, units - begin),
                    square)
        _transpose(square, _SIDE, pointer(drows, begin), row)
        if need_dx:
            _transpose(pointer(rows, begin), row, square, _SIDE)
            lists = (pointer(offsets[1], 0), pointer(values[1], 0), pointer(row_bounds[0, j], 0),
                     pointer(row_bounds[1, j], 0))
            _gather(square, lists, n, pointer(dcolumns, 0))
    copy(pointer(drows, 0), row, pointer(dw, first * units), units, width, units)
    if need_dx:
        copy(pointer(dcolumns, 0), _SIDE, pointer(dx, first), inputs, n, width)


@helper
def _gather(source, lists, count, target):
    """Add the sums over `count` lists to `count` rows of a block."""
    for i in range(0, _SIDE, _VECTORS * LANES):
        gather(1, _VECTORS, pointer(source, i), 0, lists, count, pointer(target, i), _SIDE, 0)


@helper
def _transpose(source, row, target, target_row):
    """Transpose a block of 64 x 64 elements."""
    for i in range(0, _SIDE, LANES):
        for j in range(0, _SIDE, LANES):
            transpose(pointer(source, i * row + j), row, pointer(target, j * target_row + i),
                      target_row)
