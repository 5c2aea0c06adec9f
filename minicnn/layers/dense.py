"""The fully connected layer."""

import math
from typing import Any

import numpy as np

from minicnn import ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels import elementwise
from minicnn.kernels.dense import dense as kernels
from minicnn.layers.affine import Affine


class Dense(Affine, repeatable=True):
    """Multiply by a trained matrix, add a bias and apply an activation.

        y = activation(x w + b)

    Inputs with more than two dimensions are multiplied along their last axis.

    Parameters
    ----------
    units : int
        The size of the output's last axis.
    activation : str, function, Op or None
        "relu", "leaky_relu", "gelu", "softmax", "log_softmax", "sigmoid", "tanh", "identity", or
        the function of that name.
    use_bias : bool
    kernel_initializer : str, float or function, optional
        Default "glorot_uniform".
    bias_initializer : str, float or function
    trainable : bool
    name : str, optional
    kernel_regularizer, bias_regularizer : callable, optional
        Such as ``l2_regularizer(0.001)``: its value is added to the loss.

    Attributes
    ----------
    kernel : Parameter
        (inputs, units)
    bias : Parameter or None
        (units,)

    Raises
    ------
    ValueError, TypeError
        If an argument or the input shape is invalid.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.Dense(10)
    >>> layer.build((None, 1024), rng=0)
    (None, 10)
    >>> layer.kernel
    Parameter('dense/kernel', shape=(1024, 10), dtype=float32)
    """

    takes_relu = True  # fusion: `linear` can add a ReLU

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        trainable: bool = True,
        name: str | None = None,
        *,
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
    ) -> None:
        super().__init__(
            activation, use_bias, trainable, name,
            kernel=(kernel_initializer, kernel_regularizer),
            bias=(bias_initializer, bias_regularizer),
        )
        self.units = checks.integer(units, "units", 1, checks.MOST)

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        if len(shape) < 2:
            raise ValueError(
                f"{self.label}: `inputs` must be (N, ..., features), got {shape}; a single row "
                "needs a batch axis, x[None], and rows of one number an axis for it, x[:, None]"
            )
        output_shape = (*shape[:-1], self.units)
        return self.build_weights(self.units, output_shape, rng, kernel=(shape[-1], self.units))

    def linear(
        self,
        x: np.ndarray,
        ctx: Context,
        relu: bool = False,
        dropout: Any = None,
        weights: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return x w + b; or, fused, with ReLU and the `Dropout` after it."""
        x = self.check_inputs(x)
        # x (N, D) w (D, U) + b (U,) -> y (N, U)
        y = ctx.empty(self, "y", (*x.shape[:-1], self.units), x.dtype)
        mask = None
        scale = 1.0
        if dropout is not None and (key := dropout.draw(ctx)) is not None:
            mask = key, dropout.rate, ctx.first_row, math.prod(x.shape[1:-1])
            scale = 1.0 / (1.0 - dropout.rate)
        w, b = weights or self.weights()
        packed = ctx.pack(self, kernels.packed_kernel, w)
        kernels.forward(_rows(x), w, b, _rows(y), relu, mask, packed)
        ctx[self] = x, y if relu else None, scale
        return y

    def linear_backward(
        self, dy: np.ndarray, ctx: Context, need_dx: bool = True
    ) -> np.ndarray | None:
        # dw = x' dy, db = sum of the rows of dy, dx = dy w'
        x, y, scale = ctx[self]
        checks.gradient(dy, (*x.shape[:-1], self.units), self.dtype, self.label)
        if y is not None:  # positive where ReLU and dropout let the gradient pass
            dy = ops.relu_gradient(dy, y, ctx, self, scale)
        if self.bias is not None:
            elementwise.sum_rows(_rows(dy), self.bias.writable("grad"))
        dx = ctx.empty(self, "dx", x.shape, x.dtype) if need_dx else None
        kernels.gradients(
            _rows(x), _rows(dy), self.kernel.value, self.kernel.writable("grad"),
            None if dx is None else _rows(dx), skip_zeros=y is not None,
        )
        return dx


def _rows(array: np.ndarray) -> np.ndarray:
    """Return the array as a matrix with the last axis as columns."""
    return array.reshape(math.prod(array.shape[:-1]), array.shape[-1])
