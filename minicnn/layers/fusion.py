"""One pass in place of several: `fuse` turns a chain of layers into a shorter and faster chain.

What stands in for layers computes the same values, in the tolerance of the type, and holds the
layers themselves, so their parameters, names and checkpoints stay as they are. Without it
(``fuse=False``, or ``MINICNN_FUSE=0``) every layer is computed by itself.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from minicnn.core.context import Context
from minicnn.core.op import Op
from minicnn.layers.activation import Activation
from minicnn.layers.conv2d import Conv2D
from minicnn.layers.dense import Dense
from minicnn.layers.dropout import Dropout
from minicnn.layers.max_pooling2d import MaxPooling2D
from minicnn.ops import Relu


class FusedConv(Op):
    """Convolution and bias with ReLU and, if it follows, 2x2 max pooling in one pass.

    With pooling only a code of one byte is kept for each maximum: the image before pooling is never
    stored, and its gradient is a list of the few elements that are not zero.
    """

    def __init__(self, conv: Conv2D, pool: MaxPooling2D | None) -> None:
        super().__init__(conv.name)
        self.conv, self.pool = conv, pool

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        pooling = None if self.pool is None else self.pool.window
        return self.conv.linear(x, ctx, relu=True, pooling=pooling)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        return self.conv.linear_backward(dy, ctx, need_dx)


class FusedDense(Op):
    """A dense layer with ReLU and, if it follows, dropout in one pass.

    Its output is above zero exactly where ReLU and dropout let it pass: backward needs no mask.
    """

    def __init__(self, dense: Dense, dropout: Dropout | None) -> None:
        super().__init__(dense.name)
        self.dense, self.dropout = dense, dropout

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        dropout = None
        if self.dropout is not None and (key := self.dropout.draw(ctx)) is not None:
            dropout = key, self.dropout.rate, ctx.first_row
        return self.dense.linear(x, ctx, relu=True, dropout=dropout)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        return self.dense.linear_backward(dy, ctx, need_dx)


def fusing(wanted: bool = True) -> bool:
    """Return whether to fuse: where it is wanted and the environment does not forbid it."""
    return wanted and os.environ.get("MINICNN_FUSE", "1") != "0"


def fuse(chain: Sequence[Op]) -> list[tuple[Op, int]]:
    """Shorten a chain of built layers, each of which feeds the next one alone.

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
    layer: Any = chain[0]
    if not _is(layer, Conv2D) and not _is(layer, Dense):
        return layer, 1
    relu, length = _is_relu(layer.activation), 1
    if layer.activation is None and len(chain) > 1 and _is_relu(chain[1]):
        relu, length = True, 2
    if not relu:
        return layer, 1
    following: Any = chain[length] if len(chain) > length else None
    if _is(layer, Dense):
        if _is(following, Dropout) and following.noise_shape is None:
            return FusedDense(layer, following), length + 1
        return FusedDense(layer, None), length
    if _is(following, MaxPooling2D) and _pools_by_two(layer, following):
        return FusedConv(layer, following), length + 1
    return FusedConv(layer, None), length


def _is(op: Any, kind: type[Op]) -> bool:
    """Return whether an op is of just this class: a subclass may compute something else."""
    return type(op) is kind


def _is_relu(op: Any) -> bool:
    return _is(op.op if _is(op, Activation) else op, Relu)


def _pools_by_two(conv: Conv2D, pool: MaxPooling2D) -> bool:
    """Return whether a pooling takes the maxima of 2x2 blocks of what a convolution makes."""
    out, half = conv.window, (conv.window.out_h // 2, conv.window.out_w // 2)
    return (
        pool.data_format == conv.data_format
        and pool.size == pool.strides == (2, 2)
        and (pool.window.out_h, pool.window.out_w) == half
        and (pool.window.top, pool.window.left) == (0, 0)
        and (pool.window.height, pool.window.width) == (out.out_h, out.out_w)
    )
