"""Fusion: `fuse` replaces several layers of a chain by one op that computes them in one pass.

The op gives the same results up to rounding. It refers to the layers, so that their parameters,
names and checkpoints do not change. With ``fuse=False`` or ``MINICNN_FUSE=0`` every layer is
computed by itself.
"""

import itertools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from minicnn.core.context import Context
from minicnn.core.op import Op, parts
from minicnn.core.parameter import count_parameters
from minicnn.layers.activation import Activation
from minicnn.layers.batch_normalization import BatchNormalization
from minicnn.layers.conv2d import Conv2D
from minicnn.layers.dense import Dense
from minicnn.layers.depthwise_conv2d import DepthwiseConv2D, SeparableConv2D
from minicnn.layers.dropout import Dropout
from minicnn.layers.pooling2d import MaxPooling2D
from minicnn.layers.repeated import Repeated
from minicnn.layers.sliding import DataFormat
from minicnn.ops import Relu

_LARGE = 1 << 20  # elements of a kernel


class Fused(Op, repeatable=True):
    """A convolution, Dense or Residual layer or a sum, with ReLU and maybe the layer after it.

    The layer after a Conv2D or SeparableConv2D is a 2x2 max pooling: one byte is saved for each
    maximum, the image before pooling is never stored, and its gradient is a list of the few
    elements that are not zero. After a Dense it is dropout: the output is above zero exactly where
    ReLU and dropout let it pass, so that backward needs no mask.
    """

    def __init__(self, layer: Any, last: Any) -> None:
        super().__init__(layer.name)
        self.layer = layer
        self.last = last

    def forward(self, *inputs_and_ctx: Any) -> np.ndarray:
        return self.layer.linear(*inputs_and_ctx, True, self.last)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> Any:
        return self.layer.linear_backward(dy, ctx, need_dx)


class Folded(Fused, repeatable=True):
    """A convolution or Dense layer, the BatchNormalization after it, and what `Fused` takes.

    In prediction the normalization is a part of the kernel and the bias. Otherwise, and where
    backward may follow, the layers are computed one after the other.
    """

    def __init__(self, layer: Any, norm: BatchNormalization, relu: bool, last: Op | None) -> None:
        super().__init__(layer, last)
        self.norm = norm
        self._relu = relu

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        if not ctx.save and not self.norm.uses_batch(ctx):
            weights = self.norm.folded(*self.layer.weights())
            return self.layer.linear(x, ctx, self._relu, self.last, weights)
        y = self.norm.linear(self.layer.linear(x, ctx), ctx, self._relu)
        return y if self.last is None else self.last.forward(y, ctx)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        dy = dy if self.last is None else self.last.backward(dy, ctx)
        return self.layer.linear_backward(self.norm.linear_backward(dy, ctx), ctx, need_dx)


def fusing(wanted: bool = True) -> bool:
    """Return whether to fuse: if it is wanted and ``MINICNN_FUSE`` is not 0."""
    return wanted and os.environ.get("MINICNN_FUSE", "1") != "0"


def fuse(chain: Sequence[Op]) -> list[tuple[Op, int]]:
    """Shorten a chain of built layers, in which only the next layer uses a layer's output.

    Parameters
    ----------
    chain : sequence of Op

    Returns
    -------
    list of (Op, int)
        The ops to run, and the number of layers that each of them computes.
    """
    fused: list[tuple[Op, int]] = []
    while chain:
        op, length = _first(chain)
        fused.append((op, length))
        chain = chain[length:]
    return fused


def joined(ops: Sequence[tuple[Op, int]]) -> list[tuple[Op, int]]:
    """Replace neighbours in the result of `fuse` that can be repeated by one `Repeated`."""
    result: list[tuple[Op, int]] = []
    for can_repeat, group in itertools.groupby(ops, lambda each: _can_repeat(each[0])):
        members = list(group)
        if can_repeat:
            members = [(Repeated([op for op, _ in members]), sum(n for _, n in members))]
        result += members
    return result


def _can_repeat(op: Op) -> bool:
    """Return whether a `Repeated` may hold an op: each part of it, and no large kernel.

    A step with a large kernel takes long anyway, and in a run of several processes its gradient is
    sent while the gradients of the layers below are computed.
    """
    return count_parameters(op.parameters) <= _LARGE and all(
        part.repeatable is True for part in parts(op)
    )


def _first(chain: Sequence[Op]) -> tuple[Op, int]:
    """Return the op for the first layers of the chain, and the number of these layers.

    Only classes with an own `takes_relu` are fused: a subclass may compute something else.
    """
    layer: Any = chain[0]
    if "takes_relu" not in vars(type(layer)):
        return layer, 1
    norm: Any = chain[1] if len(chain) > 1 and _can_fold(layer, chain[1]) else None
    activation = getattr(layer, "activation", None)
    length = 1 if norm is None else 2
    if activation is None and len(chain) > length:
        activation = chain[length]
        length += 1
    if not _is_relu(activation):
        return (layer, 1) if norm is None else (Folded(layer, norm, False, None), 2)
    last = chain[length] if len(chain) > length and _fits(layer, chain[length]) else None
    length += last is not None
    return (Fused(layer, last) if norm is None else Folded(layer, norm, True, last)), length


def _can_fold(layer: Any, norm: Any) -> bool:
    """Return whether a layer can do what the batch normalization after it does in prediction."""
    is_kind = isinstance(layer, Conv2D | Dense | DepthwiseConv2D)
    if not is_kind or type(norm) is not BatchNormalization or layer.activation is not None:
        return False
    rank = len(norm.input_shape or ())
    is_first = getattr(layer, "data_format", DataFormat.LAST) == DataFormat.FIRST
    return norm.axis % rank == (1 if is_first else rank - 1)


def _is_relu(op: Any) -> bool:
    return type(op.activation if type(op) is Activation else op) is Relu


def _fits(layer: Any, last: Any) -> bool:
    """Return whether a layer can compute the layer after its ReLU in the same pass."""
    if isinstance(layer, Dense):
        return type(last) is Dropout and last.noise_shape is None
    is_pooled = isinstance(layer, Conv2D | SeparableConv2D) and type(last) is MaxPooling2D
    return is_pooled and _pools_by_two(layer, last)


def _pools_by_two(conv: Any, pool: MaxPooling2D) -> bool:
    """Return whether a pooling takes the maxima of 2x2 blocks of a convolution's output."""
    out = conv.window
    return (
        pool.data_format == conv.data_format
        and pool.size == pool.strides == (2, 2)
        and (pool.window.out_h, pool.window.out_w) == (out.out_h // 2, out.out_w // 2)
        and (pool.window.top, pool.window.left) == (0, 0)
        and (pool.window.height, pool.window.width) == (out.out_h, out.out_w)
    )
