"""Two-dimensional depthwise separable convolution."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.core.parameter import Parameter
from minicnn.kernels.conv import conv, depthwise
from minicnn.kernels.window import slide
from minicnn.layers.convolution import Convolution


class SeparableConv2D(Convolution):
    """Convolve each channel with its own filters, then combine the channels of each pixel.

    It has fewer weights and takes less time than the `Conv2D` of the same size: a depthwise
    convolution without a bias, and a convolution with 1x1 filters,

        z[n, i, j, c M + m] = sum over u, v of x[n, s i + d u, s j + d v, c] w[u, v, c, m]
        y[n, i, j, f] = b[f] + sum over k of z[n, i, j, k] p[0, 0, k, f]

    Parameters
    ----------
    filters : int
        The number of output channels.
    kernel_size : int or (int, int)
        Height and width of the depthwise filters.
    strides : int or (int, int)
        The steps of the depthwise filters, down and to the right.
    padding : {"valid", "same"}
        As for `Conv2D`.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W).
    dilation_rate : int or (int, int)
        The distance between the elements of a depthwise filter.
    depth_multiplier : int
        The number M of depthwise filters for each channel.
    activation : str, function, Op or None
        As for `Conv2D`.
    use_bias : bool
    depthwise_initializer, pointwise_initializer : str or function, optional
        Default "glorot_uniform".
    bias_initializer : str or function
    depthwise_regularizer, pointwise_regularizer, bias_regularizer : callable, optional
        Such as ``l2_regularizer(0.001)``: its value is added to the loss.
    trainable : bool
    name : str, optional

    Attributes
    ----------
    depthwise_kernel : Parameter
        (height, width, channels, depth_multiplier)
    pointwise_kernel : Parameter
        (1, 1, channels * depth_multiplier, filters)
    bias : Parameter or None
        (filters,)

    References
    ----------
    F. Chollet, "Xception: deep learning with depthwise separable convolutions", CVPR 2017.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.SeparableConv2D(32, 3, padding="same", activation="relu")
    >>> layer.build((None, 28, 28, 16), rng=0)
    (None, 28, 28, 32)
    >>> layer.pointwise_kernel.shape
    (1, 1, 16, 32)
    """

    depthwise_kernel: Parameter
    pointwise_kernel: Parameter

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str = "channels_last",
        dilation_rate: Any = 1,
        depth_multiplier: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = None,
        pointwise_initializer: Any = None,
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        pointwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        trainable: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias,
            trainable, name,
            depthwise=(depthwise_initializer, depthwise_regularizer),
            pointwise=(pointwise_initializer, pointwise_regularizer),
            bias=(bias_initializer, bias_regularizer),
        )
        self.filters = checks.integer(filters, "filters")
        self.depth_multiplier = checks.integer(depth_multiplier, "depth_multiplier")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        super().build(input_shape, rng, dtype)
        kernel_shape = (*self.size, self.channels, self.depth_multiplier)
        middle = self.channels * self.depth_multiplier
        output_shape = self.data_format.shape(None, self.window, self.filters)
        out = (self.window.out_h, self.window.out_w)
        self.pixel = slide(out, (1, 1), (1, 1), "valid")
        return self.build_weights(
            self.filters, output_shape, rng, depthwise_kernel=kernel_shape,
            pointwise_kernel=(1, 1, middle, self.filters),
        )

    def linear(
        self, x: np.ndarray, ctx: Context, relu: bool = False, last: None = None
    ) -> np.ndarray:
        """Return (x * w) * p + b; or, fused, with ReLU."""
        x = self.data_format.to_nhwc(self.check_inputs(x))
        w, p = self.depthwise_kernel.value, self.pointwise_kernel.value
        shape = (len(x), self.window.out_h, self.window.out_w)
        z = ctx.empty(self, "z", (*shape, p.shape[2]), x.dtype)
        depthwise.forward(x, w, np.zeros(p.shape[2], x.dtype), z, self.window)
        y = ctx.empty(self, "y", (*shape, self.filters), x.dtype)
        conv.forward(z, p, self.bias_value(), y, self.pixel, relu)
        ctx[self] = x, z, y if relu else None
        return self.data_format.from_nhwc(y)

    def linear_backward(
        self, dy: np.ndarray, ctx: Context, need_dx: bool = True
    ) -> np.ndarray | None:
        x, z, y = ctx[self]
        shape = self.data_format.shape(len(x), self.window, self.filters)
        checks.gradient(dy, shape, self.dtype, self.label)
        dy = self.data_format.to_nhwc(dy)
        pointwise = self.pointwise_kernel
        du = None if y is None else ctx.empty(self, "du", y.shape, y.dtype)
        conv.kernel_gradient(
            z, dy, pointwise.writable("grad"), self.bias_grad(), self.pixel, y, du
        )
        dz = ctx.empty(self, "dz", z.shape, z.dtype)
        conv.input_gradient(dy if du is None else du, pointwise.value, dz, self.pixel)
        depthwise.kernel_gradient(x, dz, self.depthwise_kernel.writable("grad"), self.window)
        if not need_dx:
            return None
        dx = ctx.empty(self, "dx", x.shape, x.dtype)
        depthwise.input_gradient(dz, self.depthwise_kernel.value, dx, self.window)
        return self.data_format.from_nhwc(dx)
