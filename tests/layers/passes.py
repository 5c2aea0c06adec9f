"""One pass through a layer, forward and back, as the tests of the layers look at it."""

from typing import NamedTuple

import numpy as np
from tolerances import assert_same_bits

import minicnn as mc


class Pass(NamedTuple):
    """What comes out of a pass forward and back."""

    y: np.ndarray
    dx: np.ndarray | None
    grads: list[np.ndarray]


def built(make, shape, dtype=np.float32):
    """A layer of a row, its biases away from zero, and the shape of its output."""
    layer = make()
    declared = layer.build((None, *shape), rng=0, dtype=dtype)
    rng = np.random.default_rng(1)
    for parameter in layer.parameters:
        parameter.value[...] += rng.uniform(-0.1, 0.1, parameter.shape)
    return layer, declared


def numbers(shape, dtype=np.float32, seed=2):
    """Numbers of which no two are equal, and none is zero."""
    size = int(np.prod(shape))
    spaced = (np.random.default_rng(seed).permutation(size) + 0.25) * 2 / size - 1
    return spaced.reshape(shape).astype(dtype)


def context(**options):
    return mc.Context(training=True, rng=np.random.default_rng(3), **options)


def forward_and_back(layer, x, dy=None, need_dx=True, **options):
    """One pass; copies of what came out."""
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
