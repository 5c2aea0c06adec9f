"""One pass in place of several: `fuse` turns a chain of layers into a shorter and faster chain.

What stands in for layers computes the same values, in the tolerance of the type, and holds the
layers themselves, so their parameters, names and checkpoints stay as they are. Without it
(``fuse=False``, or ``MINICNN_FUSE=0``) every layer runs its own plain code on the general kernels.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op
from minicnn.kernels import elementwise
from minicnn.kernels.conv import conv as kernels
from minicnn.layers.activation import Activation
from minicnn.layers.conv2d import Conv2D
from minicnn.layers.dense import Dense
from minicnn.layers.dropout import Dropout
from minicnn.layers.max_pooling2d import MaxPooling2D
from minicnn.ops import Relu


class FusedConv(Op):
    """Convolution, bias and, where they follow, ReLU and 2x2 max pooling in one pass.

    Of a pooled one only the winners' codes are kept, one byte each: the image before pooling never
    exists, and its gradient is a list of the few elements that live.
    """

    def __init__(self, conv: Conv2D, relu: bool, pool: MaxPooling2D | None) -> None:
        super().__init__(conv.name)
        self.conv, self.relu, self.pool = conv, relu, pool

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        conv = self.conv
        x = conv.to_nhwc(conv.check_inputs(x))
        window = conv.window if self.pool is None else self.pool.window
        shape = (len(x), window.out_h, window.out_w, conv.filters)
        y = ctx.empty(self, "y", shape, x.dtype)
        code = None if self.pool is None else ctx.empty(self, "code", shape, np.uint8)
        kernels.fused_forward(
            x, conv.kernel.value, conv.bias_value(), y, code, conv.window, self.relu
        )
        ctx[self] = x, y, code
        return conv.from_nhwc(y)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        conv, (x, y, code) = self.conv, ctx[self]
        window = conv.window if self.pool is None else self.pool.window
        checks.gradient(dy, conv.shape_of(len(x), window, conv.filters), x.dtype, conv.label)
        dy = conv.to_nhwc(dy)
        w, dw, db = conv.kernel.value, conv.kernel.writable("grad"), conv.bias_grad()
        dx = ctx.empty(self, "dx", x.shape, x.dtype) if need_dx else None
        if self.pool is not None:
            kernels.pooled_gradients(x, dy, code, w, dw, db, dx, conv.window)
        else:
            dz = _through_relu(self, dy, y, ctx) if self.relu else dy
            kernels.kernel_gradient(x, dz, dw, db, conv.window)
            if dx is not None:
                kernels.fused_input_gradient(dz, w, dx, conv.window)
        return None if dx is None else conv.from_nhwc(dx)


class FusedDense(Op):
    """A dense layer with ReLU and, where it follows, dropout in one pass.

    Its output is above zero just where ReLU lives and dropout keeps, so backward needs no mask.
    """

    def __init__(self, dense: Dense, dropout: Dropout | None) -> None:
        super().__init__(dense.name)
        self.dense, self.dropout = dense, dropout

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        dropout, rate = None, 0.0
        if self.dropout is not None and (key := self.dropout.draw(ctx)) is not None:
            rate = self.dropout.rate
            dropout = key, rate, ctx.first_row
        y = self.dense.linear(x, ctx, relu=True, dropout=dropout)
        ctx[self] = y, 1.0 / (1.0 - rate)
        return y

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        y, scale = ctx[self]
        dz = _through_relu(self, dy, y, ctx, scale)
        return self.dense.linear_backward(dz, ctx, need_dx, sparse=True)


def _through_relu(
    op: Op, dy: np.ndarray, y: np.ndarray, ctx: Context, scale: float = 1.0
) -> np.ndarray:
    checks.gradient(dy, y.shape, y.dtype, op.label)
    dz = ctx.empty(op, "dz", y.shape, y.dtype)
    elementwise.relu_gradient(dy, y, dz, scale)
    return dz


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
    if layer.activation is not None and not relu:
        return layer, 1
    following: Any = chain[length] if len(chain) > length else None
    if _is(layer, Dense):
        if not relu:
            return layer, 1
        if _is(following, Dropout) and following.noise_shape is None:
            return FusedDense(layer, following), length + 1
        return FusedDense(layer, None), length
    if relu and _is(following, MaxPooling2D) and _pools_by_two(layer, following):
        return FusedConv(layer, relu, following), length + 1
    return FusedConv(layer, relu, None), length


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
