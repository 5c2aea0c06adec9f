"""An activation function as a layer."""

from typing import Any

import numpy as np

from minicnn import ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, Shape
from minicnn.layers.layer import Layer


class Activation(Layer, repeatable=True):
    """Apply an activation function to each element (softmax: to each row of the last axis).

    Parameters
    ----------
    activation : str, function or Op
        "relu", "leaky_relu", "gelu", "softmax", "log_softmax", "sigmoid", "tanh", "identity", or
        the function of that name.
    name : str, optional

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.Activation("relu")
    >>> layer.build((None, 2), rng=0)
    (None, 2)
    >>> layer.forward(np.array([[-1.0, 1.0]], np.float32), mc.Context())
    array([[0., 1.]], dtype=float32)
    """

    def __init__(self, activation: Any, name: str | None = None) -> None:
        super().__init__(name)
        op = ops.activation(activation)
        self.activation: Op = checks.instance(op, Op, "activation", "a function, its name or an Op")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        return self.build_part(self.activation, super().build(input_shape, rng, dtype), rng)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        return self.activation.forward(self.check_inputs(x), ctx)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        return self.activation.backward(dy, ctx, need_dx)
