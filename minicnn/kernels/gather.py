"""Sums over lists of (offset, value), for gradients of which most are zero, float32.

    target += sum over e of value[e] * the vectors at source + offset[e]

A list holds the gradients that are not zero, with the place in `source` that each one multiplies.
`simd.gather` keeps as many sums in registers as its literal count says; here the count is any
number, and is cut into those. Every sum is one chain in the order of the list, wherever it is cut.
"""

from minicnn.kernels import simd
from minicnn.kernels.jit import helper
from minicnn.kernels.simd import LANES, pointer


@helper
def gather(count, source, step, offsets, values, length, target):
    """Add to `count` vectors of target the sums of value * the vectors at offset, `step` apart."""
    while count > 0:
        if count >= 10:
            done = 10
            simd.gather(10, source, step, offsets, values, length, target)
        elif count >= 6:
            done = 6
            simd.gather(6, source, step, offsets, values, length, target)
        elif count == 5:
            done = 5
            simd.gather(5, source, step, offsets, values, length, target)
        elif count == 4:
            done = 4
            simd.gather(4, source, step, offsets, values, length, target)
        elif count == 3:
            done = 3
            simd.gather(3, source, step, offsets, values, length, target)
        elif count == 2:
            done = 2
            simd.gather(2, source, step, offsets, values, length, target)
        else:
            done = 1
            simd.gather(1, source, step, offsets, values, length, target)
        count -= done
        source, target = pointer(source, done * step), pointer(target, done * LANES)
