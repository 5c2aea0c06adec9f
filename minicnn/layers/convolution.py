"""Base class of the layers that slide kernels over images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn import ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels import elementwise
from minicnn.kernels.window import Window, slide
from minicnn.layers.affine import Affine
from minicnn.layers.sliding import DataFormat, check_fits, window_size


class Convolution(Affine):
    """The base of layers that slide kernels over images.

    A subclass defines three methods; the images that they get are (N, H, W, C).
    """

    rank = 4
    window: Window
    output: Window  # whose `out_h` and `out_w` are the size of the layer's output
    # (channels): the number of output channels, and the shapes of the kernels by name.
    kernel_shapes: Callable[..., tuple[int, dict[str, tuple[int, ...]]]]
    # (x, y, ctx, relu, last, weights): write y = x * kernel + bias, maybe with ReLU; return what
    # to save. All but Conv2DTranspose take `weights` in place of their own. Conv2D and
    # SeparableConv2D take a max pooling `last` after ReLU.
    multiply: Callable[..., Any]
    # (x, dy, dx, ctx, saved): write the gradients of the kernels, and dx unless it is None.
    write_gradients: Callable[..., None]

    def __init__(
        self,
        kernel_size: Any,
        strides: Any,
        padding: Any,
        data_format: str,
        dilation_rate: Any,
        *rest: Any,
        **weights: Any,
    ) -> None:
        super().__init__(*rest, **weights)
        self.kernel_size = self.size = window_size(kernel_size, "kernel_size")
        self.strides = checks.pair(strides, "strides")
        self.padding = checks.padding(padding)
        self.data_format = DataFormat(
            checks.choice(data_format, "data_format", checks.DATA_FORMATS)
        )
        self.dims = self.data_format.dims  # for errors
        self.dilation_rate = checks.pair(dilation_rate, "dilation_rate")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        height, width, channels = self.data_format.sizes(shape)
        self.slide(height, width)
        check_fits(self.window, self.padding, shape, self.data_format, self.label)
        outputs, kernels = self.kernel_shapes(channels)
        output_shape = self.data_format.shape(None, self.output, outputs)
        return self.build_weights(outputs, output_shape, rng, **kernels)

    def slide(self, height: int, width: int) -> None:
        """Set `window` and `output` for images of this size."""
        self.output = self.window = slide(
            (height, width), self.size, self.strides, self.padding, self.dilation_rate
        )

    def linear(
        self, x: np.ndarray, ctx: Context, relu: bool = False, last: Any = None,
        weights: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Return x * kernel + bias; or, fused, with ReLU and maybe the layer `last` after it."""
        x = self.data_format.to_nhwc(self.check_inputs(x))
        out = self.output if last is None else last.window
        shape = (len(x), out.out_h, out.out_w, self.outputs)
        y = ctx.empty(self, "y", shape, x.dtype)
        saved = self.multiply(x, y, ctx, relu, last, weights)
        ctx[self] = x, y if relu else None, last, saved
        return self.data_format.from_nhwc(y)

    def linear_backward(
        self, dy: np.ndarray, ctx: Context, need_dx: bool = True
    ) -> np.ndarray | None:
        x, y, last, saved = ctx[self]
        out = self.output if last is None else last.window  # maybe built again since
        shape = self.data_format.shape(len(x), out, self.outputs)
        checks.gradient(dy, shape, self.dtype, self.label)
        dx = ctx.empty(self, "dx", x.shape, x.dtype) if need_dx else None
        self.all_gradients(x, y, self.data_format.to_nhwc(dy), dx, ctx, saved)
        return None if dx is None else self.data_format.from_nhwc(dx)

    def all_gradients(
        self, x: np.ndarray, y: Any, dy: np.ndarray, dx: Any, ctx: Context, saved: Any
    ) -> None:
        """Write the gradients of the bias, the kernels and, unless it is None, dx.

        y is the output if ReLU is fused, otherwise None.
        """
        if y is not None:  # dz = 0 where y <= 0, else dy
            dy = ops.relu_gradient(dy, y, ctx, self)
        if self.bias is not None:
            elementwise.sum_rows(dy.reshape(-1, self.outputs), self.bias.writable("grad"))
        self.write_gradients(x, dy, dx, ctx, saved)
