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
    # (x, ctx, relu=False, last=None): x * kernel + bias, fused with ReLU and layer `last` if given.
    linear: Callable[..., np.ndarray]
    # (dy, ctx, need_dx=True): write the gradients of kernel and bias; return that of x, or None.
    linear_backward: Callable[..., np.ndarray | None]

    def __init__(
        self,
        activation: Any,
        use_bias: bool,
        kernel_initializer: Any,
        bias_initializer: Any,
        trainable: bool,
        name: str | None,
    ) -> None:
        super().__init__(name)
        self.activation = ops.activation(activation)
        self.use_bias = checks.boolean(use_bias, "use_bias")
        self.kernel_initializer = initializers.get(
            kernel_initializer, "glorot_uniform", "kernel_initializer"
        )
        self.bias_initializer = initializers.get(bias_initializer, "zeros", "bias_initializer")
        self._trainable = checks.boolean(trainable, "trainable")

    def build_weights(self, kernel_shape: tuple[Any, ...], shape: Shape, rng: Any) -> Shape:
        """Create kernel and bias, and build the activation for inputs of `shape`."""
        rng = checks.generator(rng)
        self.kernel = self.initialize("kernel", kernel_shape, rng)
        self.bias = self.initialize("bias", kernel_shape[-1:], rng) if self.use_bias else None
        return shape if self.activation is None else self.build_part(self.activation, shape, rng)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        z = self.linear(x, ctx)
        return z if self.activation is None else self.activation.forward(z, ctx)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        dz = dy if self.activation is None else self.activation.backward(dy, ctx)
        return self.linear_backward(dz, ctx, need_dx)

    def bias_value(self) -> np.ndarray:
        """Return the bias, or zeros if there is none."""
        return np.zeros(self.kernel.shape[-1], self.dtype) if self.bias is None else self.bias.value
