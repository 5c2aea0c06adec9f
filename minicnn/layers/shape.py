"""Layers that change only the shape: Flatten and Reshape."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.layers.layer import Layer
from minicnn.ops import row_shape


class Reshape(Layer, repeatable=True):
    """Reshape each row of the batch.

    Parameters
    ----------
    target_shape : tuple of int
        The shape of one row; one size may be -1.
    name : str, optional

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.layers.Reshape((28, 28, 1)).build((None, 784), rng=0)
    (None, 28, 28, 1)
    """

    def __init__(self, target_shape: Any, name: str | None = None) -> None:
        super().__init__(name)
        self.target_shape = checks.integers(target_shape, "target_shape", least=-1)
        if self.target_shape.count(-1) > 1:
            raise ValueError(f"`target_shape` may hold one -1, got {self.target_shape}")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        self.row = row_shape(shape, self.target_shape, self.label)
        return (None, *self.row)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx[self] = self.check_inputs(x).shape
        return x.reshape(len(x), *self.row)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        shape = ctx[self]
        checks.gradient(dy, (shape[0], *self.row), self.dtype, self.label)
        return dy.reshape(shape) if need_dx else None


class Flatten(Reshape, repeatable=True):
    """Flatten each row of the batch: (N, H, W, C) becomes (N, H * W * C).

    Parameters
    ----------
    name : str, optional

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.layers.Flatten().build((None, 7, 7, 64), rng=0)
    (None, 3136)
    """

    def __init__(self, name: str | None = None) -> None:
        super().__init__((-1,), name)
