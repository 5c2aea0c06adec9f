"""Helpers for tests of layers: build a layer, run it forward and backward, compare passes."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.layers.repeated import Repeated


class Pass(NamedTuple):
    """The results of a forward and a backward pass."""

    y: np.ndarray
    dx: np.ndarray | None
    grads: list[np.ndarray]


def built(make, shape, dtype=np.float32):
    """Return a built layer with nonzero biases, and its output shape."""
    layer = make()
    declared = layer.build((None, *shape), rng=0, dtype=dtype)
    rng = np.random.default_rng(1)
    for parameter in layer.parameters:
        parameter.value[...] += rng.uniform(-0.1, 0.1, parameter.shape)
    return layer, declared


def without_groups(ops):
    """Return the ops that are run, with those inside of each `Repeated` instead of it."""
    return [op for each in ops for op in (each.ops if isinstance(each, Repeated) else [each])]


def numbers(shape, dtype=np.float32, seed=2):
    """Return different nonzero numbers."""
    size = int(np.prod(shape))
    spaced = (np.random.default_rng(seed).permutation(size) + 0.25) * 2 / size - 1
    return spaced.reshape(shape).astype(dtype)


def paddings(most):
    """Return a strategy for paddings with at most `most` zeros on each side."""
    pads = st.tuples(st.integers(0, most), st.integers(0, most))
    return st.sampled_from(["valid", "same"]) | st.tuples(pads, pads)


def least_sizes(spans, padding):
    """Return the height and width of the smallest images into which a window fits."""
    if padding == "same":
        return 1, 1
    pads = ((0, 0), (0, 0)) if padding == "valid" else padding
    return tuple(max(1, span - sum(axis)) for span, axis in zip(spans, pads, strict=True))


def context(**options):
    return mc.Context(training=True, rng=np.random.default_rng(3), **options)


def forward_and_back(layer, x, dy=None, need_dx=True, **options):
    """Run one pass; return copies of the results."""
    ctx = context(**options)
    y = layer.forward(x, ctx).copy()
    for parameter in layer.parameters:
        parameter.grad[...] = np.nan
    dy = numbers(y.shape, y.dtype, seed=4) if dy is None else dy
    dx = layer.backward(dy, ctx, need_dx)
    dx = None if dx is None else dx.copy()
    return Pass(y, dx, [parameter.grad.copy() for parameter in layer.parameters])


def assert_same_pass(first, second):
    assert_same_bits(first.y, second.y)
    assert (first.dx is None) == (second.dx is None)
    if first.dx is not None:
        assert_same_bits(first.dx, second.dx)
    for one, other in zip(first.grads, second.grads, strict=True):
        assert_same_bits(one, other)
