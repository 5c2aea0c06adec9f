"""Base class of convolution and dense layers: a kernel, a bias and an activation."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn import initializers, ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.core.parameter import Parameter
from minicnn.layers.layer import Layer


class Affine(Layer):
    """The base of layers that compute  y = activation(x * kernel + bias).

    A subclass defines `linear` and `linear_backward`, and its `build` ends with `build_weights`.
    """

    kernel: Parameter
    bias: Parameter | None
    outputs: int  # the number of units, filters or channels of the output
    # (x, ctx, relu=False, last=None, weights=None): x * kernel + bias, fused with ReLU and layer
    # `last` if given. `weights` are another kernel and bias; Conv2DTranspose does not take them.
    linear: Callable[..., np.ndarray]
    # (dy, ctx, need_dx=True): write the gradients of kernel and bias; return that of x, or None.
    linear_backward: Callable[..., np.ndarray | None]

    def __init__(
        self,
        activation: Any,
        use_bias: bool,
        trainable: bool,
        name: str | None,
        **weights: tuple[Any, Any],
    ) -> None:
        """`weights` are the initializers and the regularizers of the kernels and of the bias."""
        super().__init__(name)
        self.activation = ops.activation(activation)
        self.use_bias = checks.boolean(use_bias, "use_bias")
        for key, (initializer, regularizer) in weights.items():
            default = "zeros" if key == "bias" else "glorot_uniform"
            initializer = initializers.get(initializer, default, f"{key}_initializer")
            regularizer = checks.regularizer(regularizer, f"{key}_regularizer")
            setattr(self, f"{key}_initializer", initializer)
            setattr(self, f"{key}_regularizer", regularizer)
        self._trainable = checks.boolean(trainable, "trainable")

    def build_weights(
        self, outputs: int, shape: Shape, rng: Any, **kernels: tuple[Any, ...]
    ) -> Shape:
        """Create kernels of these shapes and a bias; build the activation for inputs of `shape`."""
        rng = checks.generator(rng)
        for name, kernel_shape in kernels.items():
            setattr(self, name, self.initialize(name, kernel_shape, rng))
        self.outputs = outputs
        self.bias = self.initialize("bias", (outputs,), rng) if self.use_bias else None
        return shape if self.activation is None else self.build_part(self.activation, shape, rng)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        z = self.linear(x, ctx)
        return z if self.activation is None else self.activation.forward(z, ctx)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        dz = dy if self.activation is None else self.activation.backward(dy, ctx)
        return self.linear_backward(dz, ctx, need_dx)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel, and the bias or zeros."""
        return self.kernel.value, self.bias_value()

    def bias_value(self) -> np.ndarray:
        """Return the bias, or zeros if there is none."""
        return np.zeros(self.outputs, self.dtype) if self.bias is None else self.bias.value

    def bias_grad(self) -> np.ndarray:
        """Return the gradient of the bias, or an array that is not used if there is no bias."""
        if self.bias is None:
            return np.empty(self.outputs, self.dtype)
        return self.bias.writable("grad")
