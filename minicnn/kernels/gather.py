"""Sums over lists of (offset, value), for gradients of which most are zero, float32.

    target += sum over e of value[e] * the vectors at source + offset[e]

A list holds the gradients that are not zero, with the place in `source` that each one multiplies.
Many lists are a tuple of (offsets, values, begins, ends): list k has the items from begins[k] to
ends[k]. `simd.gather` keeps the sums of a block of vectors in registers while it reads a list once.
Here the block has any size, and is cut into those. Every sum is one chain in the order of the list,
wherever the block is cut.
"""

import numpy as np

from minicnn.kernels import simd
from minicnn.kernels.jit import helper
from minicnn.kernels.simd import LANES, pointer


def blocks_of(rows: int, vectors: int, shift: int) -> np.ndarray:
    """Return the blocks into which `gather` cuts rows of vectors."""
    return np.array(simd.gather_blocks(rows, vectors, shift), np.int64)


@helper
def gather(cut, blocks, shift, source, row, lists, count, target, step, target_row):
    """Add sums over lists to rows of vectors of the target, `step` elements further for each list.

    Rows lie `row` elements apart in the source, and `target_row` in the target. `cut` points to
    what `blocks_of` returned for the shift, and `blocks` is how many there are.
    """
    for b in range(blocks):
        r, rows, v, vectors = cut[4 * b], cut[4 * b + 1], cut[4 * b + 2] * LANES, cut[4 * b + 3]
        simd.gather(rows, vectors, min(shift, vectors), pointer(source, r * row + v), row, lists,
                    count, pointer(target, r * target_row + v), step, target_row)
