"""One pass in place of several: `fuse` turns a chain of layers into a shorter chain.

What is fused computes the same values, in the tolerance of the type, and holds the original layers,
so their parameters, names and checkpoints stay as they are. ``MINICNN_FUSE=0`` turns it off.
"""

import os
from collections.abc import Sequence

import numpy as np

from minicnn.context import Context
from minicnn.kernels import elementwise
from minicnn.layers.activation import Activation
from minicnn.layers.conv2d import Conv2D
from minicnn.layers.dense import Dense
from minicnn.ops import Relu
from minicnn.parameter import Parameter
from minicnn.tensor import Op


class LinearRelu(Op):
    """A convolution or a dense layer whose ReLU is applied while its result is in the cache."""

    def __init__(self, layer: Conv2D | Dense) -> None:
        super().__init__(layer.name)
        self.layer = layer

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.layer.parameters

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = self.layer.linear(x, ctx, relu=True)
        ctx[self] = y
        return y

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        y = ctx[self]
        dz = ctx.empty(self, "dz", y.shape, y.dtype)
        elementwise.relu_gradient(dy, y, dz)
        return self.layer.linear_backward(dz, ctx, need_dx)


def fusing(wanted: bool = True) -> bool:
    """Return whether to fuse: where it is wanted and the environment does not forbid it."""
    return wanted and os.environ.get("MINICNN_FUSE", "1") != "0"


def fuse(chain: Sequence[Op]) -> list[tuple[Op, int]]:
    """Shorten a chain of layers, each of which feeds the next one alone.

    Parameters
    ----------
    chain : sequence of Op

    Returns
    -------
    list of (Op, int)
        What to run in their place, and how many layers of the chain each stands for.
    """
    fused: list[tuple[Op, int]] = []
    start = 0
    while start < len(chain):
        op, length = _first(chain[start:])
        fused.append((op, length))
        start += length
    return fused


def _first(chain: Sequence[Op]) -> tuple[Op, int]:
    """Return what stands for the beginning of the chain, and for how many of its layers."""
    layer = chain[0]
    if isinstance(layer, Conv2D | Dense):
        if isinstance(layer.activation, Relu):
            return LinearRelu(layer), 1
        if layer.activation is None and len(chain) > 1 and _is_relu(chain[1]):
            return LinearRelu(layer), 2
    return layer, 1


def _is_relu(op: Op) -> bool:
    return isinstance(op.op if isinstance(op, Activation) else op, Relu)
