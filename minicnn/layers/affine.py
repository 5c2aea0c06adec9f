"""What convolution and dense layers share: a kernel, a bias and an activation."""

from typing import Any

from minicnn import initializers, ops
from minicnn.core import checks
from minicnn.core.op import Shape
from minicnn.core.parameter import Parameter
from minicnn.layers.layer import Layer


class Affine(Layer):
    """The base of layers that compute  y = activation(x * kernel + bias).

    A subclass says what the product is: a convolution, or a product of matrices. For the
    parameters see `Dense` and `Conv2D`.
    """

    kernel: Parameter
    bias: Parameter | None

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

    def build_weights(self, kernel_shape: tuple[int, ...], shape: Shape, rng: Any) -> Shape:
        """Create kernel and bias, and build the activation for inputs of `shape`."""
        rng = checks.generator(rng)
        self.kernel = self.initialize("kernel", kernel_shape, rng)
        self.bias = self.initialize("bias", kernel_shape[-1:], rng) if self.use_bias else None
        return shape if self.activation is None else self.build_part(self.activation, shape, rng)
