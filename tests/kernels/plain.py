"""The kernels as plain Python: `jit` compiles nothing here, and `simd` is restated in NumPy.

So the same sources can be stepped through in a debugger, are seen by a tool that measures coverage,
and what they read and write is checked against the bounds of the array. They are a thousand times
slower: for tiny shapes.
"""

import importlib
import sys
import types
from unittest import mock

import numpy as np

import minicnn
from minicnn.kernels import pool, window

NAMES = ("conv", "dense", "direct", "elementwise", "gemm", "im2col", "plane", "pooling", "sparse",
         "update", "winograd")


def kernels():
    """Return the modules of the kernels, imported anew as plain Python, by name."""
    jit = types.ModuleType("jit")
    jit.kernel = jit.helper = lambda function: function
    fresh = {name: module for name, module in sys.modules.items()
             if not name.startswith("minicnn.kernels")}
    fresh |= {"minicnn.kernels.jit": jit, "minicnn.kernels.simd": simd(),
              "minicnn.kernels.pool": pool, "minicnn.kernels.window": window}
    with (
        mock.patch.dict(sys.modules, fresh, clear=True),
        mock.patch.object(minicnn, "kernels", None),
    ):
        return {name: importlib.import_module(f"minicnn.kernels.{name}") for name in NAMES}


def simd():
    """Return what stands in for the module `simd`; a vector is an array of its lanes."""
    module = types.ModuleType("simd")
    module.VECTOR_BYTES = 32
    functions = (pointer, lanes, as_integers, load, store, broadcast, spread, fma, add, sub, relu,
                 pool_relu, transpose)
    vars(module).update({function.__name__: function for function in functions})
    for count in (1, 2, 3, 5, 6, 8, 10):
        setattr(module, f"gather{count}", make_gather(count))
    for count in (6, 10):
        setattr(module, f"gather_pair{count}", make_gather_pair(count))
    return module


class Pointer:
    """A place in an array that is counted from its start whatever its rank."""

    def __init__(self, flat, start):
        self.flat, self.start = flat, int(start)
        self.lanes = 32 // flat.itemsize

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


def as_integers(place):
    return Pointer(place.flat.view(np.int32), place.start)


def load(source, index):
    return source.flat[source.at(index, source.lanes)].copy()


def store(vector, target, index):
    target.flat[target.at(index, target.lanes)] = vector


def broadcast(source, index):
    return np.full(source.lanes, source[index])


def spread(x):
    return np.full(32 // x.itemsize, x)


def fma(x, y, z):
    return (x.astype(np.longdouble) * y + z).astype(x.dtype)


def add(x, y):
    return x + y


def sub(x, y):
    return x - y


def relu(x):
    return np.where(x <= 0, x.dtype.type(0), x)


def pool_relu(x0, x1, x2, x3, bias, y, code):
    values = np.stack([x0, x1, x2, x3])
    winner = values.argmax(axis=0)  # the first of the largest; NaN is the largest
    value = values.max(axis=0) + bias
    store(relu(value), y, 0)
    code.flat[code.at(0, len(value))] = np.where(value <= 0, 4, winner)


def make_gather(count):
    def gather(source, step, offsets, values, length, target):
        for v in range(count):
            total = np.zeros(source.lanes, source.flat.dtype)
            for e in range(length):
                line = load(source, int(offsets[e]) + v * step)
                total = fma(broadcast(values, e), line, total)
            store(load(target, v * source.lanes) + total, target, v * source.lanes)

    return gather


def make_gather_pair(count):
    def gather_pair(source, offsets, values, length, offsets2, values2, length2, target):
        gather, lanes = make_gather(count), source.lanes
        gather(source, lanes, offsets, values, length, target)
        gather(source, lanes, offsets2, values2, length2, pointer(target, 2 * lanes))

    return gather_pair


def transpose(source, source_row, target, target_row):
    rows = np.stack([load(source, i * source_row) for i in range(source.lanes)])
    for i, column in enumerate(rows.T):
        store(column, target, i * target_row)
