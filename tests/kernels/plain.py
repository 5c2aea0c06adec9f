"""Run the kernels as plain Python, with `jit` disabled and `simd` reimplemented in NumPy.

The same sources can then be stepped through in a debugger and measured by a coverage tool, and all
reads and writes are checked against array bounds. They are about a thousand times slower, so use
tiny shapes.
"""

import importlib
import sys
import types
from unittest import mock

import numpy as np

import minicnn
from minicnn.kernels import simd as compiled_simd
from minicnn.kernels import threads

NAMES = (
    "conv.conv", "conv.depthwise", "conv.im2col", "conv.implicit", "conv.pooled", "conv.shared",
    "conv.winograd", "dense.dense", "dense.lists", "elementwise", "gather", "gemm", "normalize",
    "pooling", "update", "warp", "window",
)
CONSTANTS = ("VECTOR_BYTES", "REGISTERS", "LANES", "VECTORS", "PANEL", "ROWS", "FEW_ROWS",
             "SOME_ROWS", "ZEROED", "HAS_HALF")


def kernels():
    """Return the kernel modules, imported again as plain Python, by name."""
    jit = types.ModuleType("jit")
    jit.kernel = jit.helper = lambda function: function
    fresh = {name: module for name, module in sys.modules.items()
             if not name.startswith("minicnn.kernels")}
    fresh |= {"minicnn.kernels.jit": jit, "minicnn.kernels.simd": simd(),
              "minicnn.kernels.threads": threads}
    with (
        mock.patch.dict(sys.modules, fresh, clear=True),
        mock.patch.object(minicnn, "kernels", None),
    ):
        return {name: importlib.import_module(f"minicnn.kernels.{name}") for name in NAMES}


def simd():
    """Return a substitute for the module `simd`; a vector is an array of its lanes."""
    module = types.ModuleType("simd")
    module.gather_blocks = compiled_simd.gather_blocks
    vars(module).update({name: getattr(compiled_simd, name) for name in CONSTANTS})
    functions = (
        pointer, lanes, load, load_some, store, store_some, broadcast, splat, fma, number_fma,
        power_of_two, add, relu, where_positive, largest_of_four, transpose, linear, tile,
        where_tagged, compress, gather,
    )
    vars(module).update({function.__name__: function for function in functions})
    return module


class Pointer:
    """A pointer to an element of a flattened array, for any number of dimensions."""

    def __init__(self, flat, start):
        self.flat, self.start = flat, int(start)
        self.lanes = compiled_simd.VECTOR_BYTES // flat.itemsize

    def at(self, index, count=1):
        first = self.start + int(index)
        assert 0 <= first <= self.flat.size - count, "outside the array"
        return slice(first, first + count)

    def __getitem__(self, index):
        return self.flat[self.at(index)][0]

    def __setitem__(self, index, value):
        self.flat[self.at(index)] = value


def pointer(base, index):
    if isinstance(base, Pointer):
        return Pointer(base.flat, base.start + index)
    return Pointer(base.reshape(-1), index)


def lanes(place):
    return place.lanes


def load(source, index):
    return source.flat[source.at(index, source.lanes)].copy()


def load_wide(source, index, count):
    vector = source.flat[source.at(index, count)]
    return vector.view(np.float16).astype(np.float32) if vector.dtype == np.uint16 else vector


def load_some(source, index, count):
    vector = np.zeros(source.lanes, source.flat.dtype)
    count = max(0, min(count, source.lanes))
    vector[:count] = source.flat[source.at(index, count)] if count else 0
    return vector


def store(vector, target, index):
    target.flat[target.at(index, len(vector))] = vector


def store_some(vector, target, index, count):
    if count > 0:
        store(vector[:count], target, index)


def broadcast(source, index):
    return np.full(source.lanes, source[index])


def splat(x):
    return np.full(compiled_simd.VECTOR_BYTES // x.itemsize, x)


def fma(x, y, z):
    return (x.astype(np.longdouble) * y + z).astype(x.dtype)


def number_fma(x, y, z):
    return fma(x, y, z)


def power_of_two(t):
    return np.exp2(t - t.dtype.type(1.5 * 2.0 ** np.finfo(t.dtype).nmant))


def add(x, y):
    return x + y


def where_positive(x, y):
    return np.where(x <= 0, y.dtype.type(0), y)


def relu(x):
    return where_positive(x, x)


def largest_of_four(x0, x1, x2, x3, bias, y, code, count):
    values = np.stack([x0, x1, x2, x3])
    winner = values.argmax(axis=0)  # the first largest; NaN is the largest
    value = values.max(axis=0) + bias
    store_some(relu(value), y, 0, count)
    store_some(np.where(value <= 0, compiled_simd.ZEROED, winner), code, 0, count)


def linear(*factors):
    def multiply_line(key, source, step, target, target_step):
        lines = [load(source, i * step) for i in range(len(factors[0][key][0]))]
        for factor in factors:
            lines = [combination(row, lines) for row in factor[key]]
        for i, line in enumerate(lines):
            store(line, target, i * target_step)

    return multiply_line


def combination(factors, lines):
    terms = [(factor, line) for factor, line in zip(factors, lines, strict=True) if factor]
    (factor, line), *rest = sorted(terms, key=lambda term: term[0] != 1)
    total = line * line.dtype.type(factor)
    for factor, line in rest:
        total = fma(line, line.dtype.type(factor), total)
    return total


def tile(
    rows, vectors, a, first, a_row, a_col, a_round, b, b_row, s, s_row, c, c_row, height, width,
    depth, rounds, adds,
):
    assert (rows, vectors) in compiled_simd._TILES
    assert 0 < height <= rows
    assert width > 0
    numbers = [min(r, height - 1) for r in range(rows)]
    places = [(r, v * c.lanes) for r in numbers for v in range(vectors)]
    sums = [load_some(s, r * s_row + at, width - at) for r, at in places]
    for u in range(rounds):
        for k in range(depth):
            line = [load_wide(b, v * c.lanes, c.lanes) for v in range(vectors)]
            for n, (r, at) in enumerate(places):
                x = broadcast(a, offset(a_round, u) + k * a_col + offset(a_row, first + r))
                sums[n] = fma(x, line[at // c.lanes], sums[n])
            b = pointer(b, b_row)
    if adds:
        before = [load_some(c, r * c_row + at, width - at) for r, at in places]
        sums = [x + total for x, total in zip(before, sums, strict=True)]
    for (r, at), total in zip(places, sums, strict=True):
        store_some(total, c, r * c_row + at, width - at)


def offset(steps, number):
    return steps[number] if isinstance(steps, Pointer) else steps * number


def where_tagged(x, tags, first, count):
    number = tags.flat[tags.at(0, len(x))] - first
    return np.where((number >= 0) & (number < count), x, x.dtype.type(0))


def compress(x, offsets, to_values, to_offsets):
    chosen = np.flatnonzero(x != 0)
    order = np.resize(np.append(chosen, 0), len(x))  # with arbitrary elements at the end
    store(x[order], to_values, 0)
    store(offsets.flat[offsets.at(0, len(x))][order], to_offsets, 0)
    return len(chosen)


def gather(rows, vectors, source, row, lists, count, target, step, target_row):
    offsets, values, begins, ends = lists
    lanes = source.lanes
    assert rows == 1 or (rows, vectors) in compiled_simd._BLOCKS[compiled_simd.REGISTERS]
    for k in range(count):
        sums = np.zeros((rows, vectors, lanes), source.flat.dtype)
        for e in range(begins[k], ends[k]):
            for r in range(rows):
                for v in range(vectors):
                    line = load(source, int(offsets[e]) + r * row + v * lanes)
                    sums[r, v] = fma(broadcast(values, e)[:lanes], line, sums[r, v])
        for r in range(rows):
            for v in range(vectors):
                place = pointer(target, k * step + r * target_row)
                store(load(place, v * lanes) + sums[r, v], place, v * lanes)


def transpose(source, source_row, target, target_row):
    rows = np.stack([load(source, i * source_row) for i in range(source.lanes)])
    for i, column in enumerate(rows.T):
        store(column, target, i * target_row)
