"""Sums over lists of (offset, value), for float32 gradients that are mostly zero.

    target += sum over e of value[e] * the vectors at source + offset[e]

A list contains the nonzero gradients and, for each one, the offset of the vectors in `source` that
it multiplies. Lists are passed as a tuple (offsets, values, begins, ends): list k consists of the
items from begins[k] to ends[k]. `simd.gather` reads each list once and keeps the sums of a block
of vectors in registers. It supports only some block sizes; the function here computes a block of
any size as several such blocks. Each element is summed in the order of the list, so the split does
not change the result.
"""

from minicnn.kernels import simd
from minicnn.kernels.jit import helper
from minicnn.kernels.simd import LANES, pointer


@helper
def gather(cut, blocks, source, row, lists, count, target, step, target_row):
    """Add the sums over lists to rows of vectors of the target; list k starts at k * step.

    Rows are `row` elements apart in the source, and `target_row` elements apart in the target.
    `cut` points to the result of `simd.gather_blocks`, and `blocks` is its length.
    """
    for b in range(blocks):
        r, rows, v, vectors = cut[4 * b], cut[4 * b + 1], cut[4 * b + 2] * LANES, cut[4 * b + 3]
        simd.gather(rows, vectors, pointer(source, r * row + v), row, lists, count,
                    pointer(target, r * target_row + v), step, target_row)
