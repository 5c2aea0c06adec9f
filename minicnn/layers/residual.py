"""A residual block: layers whose output is added to their input."""

from typing import Any

import numpy as np

from minicnn import ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, Shape, Tensor, apply
from minicnn.layers.chain import Chain
from minicnn.layers.layer import Layer


class Residual(Layer, repeatable=True):
    """Add the output of a block of layers to its input:  y = block(x) + shortcut(x).

    The gradient of x is the sum of those through the block and the shortcut. A ReLU that follows
    in a Sequential or a graph is computed in the same pass as the sum.

    Parameters
    ----------
    block : Layer or list of Layer
        The layers of the block: a Sequential, a list or a single layer. The names of their
        parameters begin with ``residual/block/``. The block is fused, also in a model with
        ``fuse=False``, unless it is a Sequential with ``fuse=False`` itself.
    shortcut : Layer or list of Layer, optional
        The layers on the other path, named ``residual/shortcut/``, whose output has the shape of
        the block's; for example ``Conv2D(filters, 1, strides)`` if the block changes the shape. By
        default x itself is added.
    name : str, optional

    Raises
    ------
    ValueError
        By `build`, if the two outputs have different shapes: nothing is broadcast.

    References
    ----------
    He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016, equations 1
    and 2.

    Examples
    --------
    >>> import minicnn as mc
    >>> block = [mc.layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
    ...          mc.layers.Conv2D(16, 3, padding="same")]
    >>> model = mc.Sequential([
    ...     mc.layers.Residual(block, shortcut=mc.layers.Conv2D(16, 1, strides=2)),
    ...     mc.layers.Activation("relu")])
    >>> model.build((None, 28, 28, 8), rng=0)
    (None, 14, 14, 16)
    >>> model.parameters[0].name
    'residual/block/conv2d/kernel'
    """

    takes_relu = True  # fusion: `linear` can add a ReLU

    def __init__(self, block: Any, shortcut: Any = None, name: str | None = None) -> None:
        super().__init__(name)
        self.block = _chain(block)
        self.shortcut = checks.optional(_chain, shortcut)
        self._add = ops.Add()

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        rng = checks.optional(checks.generator, rng)  # one for both: a seed would be used twice
        self._name_branches()
        y = self.build_part(self.block, shape, rng)
        other = self.build_part(self.shortcut, shape, rng) if self.shortcut else shape
        if y != other:
            is_wider = y[:-1] == shape[:-1]
            remedy = f"Dense({y[-1]})" if is_wider else "Conv2D(filters, 1, strides)"
            raise ValueError(
                f"{self.label}: `block` gives outputs {y}, but "
                f"{'`shortcut`' if self.shortcut else 'the input'} {other}; they must be equal, "
                f"for example with shortcut={remedy}"
            )
        return y

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        return self.linear(x, ctx)

    def linear(self, x: Any, ctx: Context, relu: bool = False, last: None = None) -> np.ndarray:
        """Return the sum, or max(sum, 0) with ReLU in the same pass."""
        x = self.check_inputs(x)
        y = self.block.forward(x, ctx)
        other = self.shortcut.forward(x, ctx) if self.shortcut else x
        return self._add.forward(y, other, ctx, relu)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        dy, _ = self._add.backward(dy, ctx)
        dx = self.block.backward(dy, ctx, need_dx)
        other = self.shortcut.backward(dy, ctx, need_dx) if self.shortcut else dy
        return ops.total(dx, other, ctx, self) if need_dx else None

    linear_backward = backward

    def __call__(self, inputs: Any) -> Any:
        """Apply the layer to an array, or to a Tensor, each layer inside as a node of its graph."""
        if not isinstance(inputs, Tensor) or type(self).forward is not Residual.forward:
            return super().__call__(inputs)
        self.name = self.name or checks.unique(self.kind, inputs.graph.tensors)
        self._name_branches()
        y = self.block(inputs)
        other = self.shortcut(inputs) if self.shortcut else inputs
        self._add.name = self.name
        return apply(self._add, y, other)

    def _name_branches(self) -> None:
        for name, branch in (("block", self.block), ("shortcut", self.shortcut)):
            if branch is not None:
                branch.name = branch.name or f"{self.label}/{name}"


def _chain(layers: Any) -> Chain:
    """Return the layers of a branch as one chain."""
    if isinstance(layers, Chain):
        return layers
    return Chain([layers] if isinstance(layers, Op) else layers)
