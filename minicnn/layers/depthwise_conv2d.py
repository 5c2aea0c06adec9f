"""Two-dimensional depthwise convolution, and the separable one that begins with it."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.parameter import Parameter
from minicnn.kernels.conv import conv, depthwise
from minicnn.kernels.window import Window, slide
from minicnn.layers.convolution import Convolution


class DepthwiseConv2D(Convolution, repeatable=True):
    """Convolve each channel of the images with its own trained filters.

    With M filters for each channel, strides s and dilation d, output channel k = c M + m is

        y[n, i, j, k] = b[k] + sum over u, v of x[n, s i + d u, s j + d v, c] w[u, v, c, m]

    Parameters
    ----------
    kernel_size : int or (int, int)
        Height and width of a filter.
    strides : int or (int, int)
        The steps of the filter, down and to the right.
    padding : {"valid", "same"}, int or ((int, int), (int, int))
        As for `Conv2D`.
    depth_multiplier : int
        The number M of filters for each channel.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W).
    dilation_rate : int or (int, int)
        The distance between the elements of a filter.
    activation : str, function, Op or None
        As for `Conv2D`.
    use_bias : bool
    depthwise_initializer : str, float or function, optional
        Default "glorot_uniform".
    bias_initializer : str, float or function
    trainable : bool
    name : str, optional
    depthwise_regularizer, bias_regularizer : callable, optional
        Such as ``l2_regularizer(0.001)``: its value is added to the loss.

    Attributes
    ----------
    depthwise_kernel : Parameter
        (height, width, channels, depth_multiplier)
    bias : Parameter or None
        (channels * depth_multiplier,)

    References
    ----------
    A. Howard et al., "MobileNets: efficient convolutional neural networks for mobile vision
    applications", arXiv:1704.04861, 2017.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.DepthwiseConv2D(3, padding="same")
    >>> layer.build((None, 28, 28, 16), rng=0)
    (None, 28, 28, 16)
    >>> layer.depthwise_kernel.shape
    (3, 3, 16, 1)
    """

    takes_relu = True  # fusion: `linear` can add a ReLU
    depthwise_kernel: Parameter

    def __init__(
        self,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: Any = "valid",
        depth_multiplier: int = 1,
        data_format: str = "channels_last",
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = None,
        bias_initializer: Any = "zeros",
        trainable: bool = True,
        name: str | None = None,
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
    ) -> None:
        super().__init__(
            kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias,
            trainable, name,
            depthwise=(depthwise_initializer, depthwise_regularizer),
            bias=(bias_initializer, bias_regularizer),
        )
        self.depth_multiplier = checks.integer(depth_multiplier, "depth_multiplier", 1, checks.MOST)

    def kernel_shapes(self, channels: int) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return the number of filters and the shape of the kernel."""
        return channels * self.depth_multiplier, {
            "depthwise_kernel": (*self.size, channels, self.depth_multiplier)
        }

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel, with the filters as its last axis, and the bias or zeros."""
        return self.depthwise_kernel.value.reshape(*self.size, self.outputs), self.bias_value()

    def multiply(
        self, x: np.ndarray, y: np.ndarray, ctx: Context, relu: bool, last: Any = None,
        weights: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Any:
        """Write y = x * w + b."""
        w, b = weights or self.weights()
        depthwise.forward(x, w.reshape(self.depthwise_kernel.shape), b, y, self.window, relu)

    def write_gradients(
        self, x: np.ndarray, dy: np.ndarray, dx: np.ndarray | None, ctx: Context, saved: Any
    ) -> None:
        """Write the gradients of the kernel and of x."""
        depthwise.kernel_gradient(x, dy, self.depthwise_kernel.writable("grad"), self.window)
        if dx is not None:
            depthwise.input_gradient(dy, self.depthwise_kernel.value, dx, self.window)


class SeparableConv2D(DepthwiseConv2D, repeatable=True):
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
    padding : {"valid", "same"}, int or ((int, int), (int, int))
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
    depthwise_initializer, pointwise_initializer : str, float or function, optional
        Default "glorot_uniform".
    bias_initializer : str, float or function
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

    takes_relu = True  # fusion: `linear` can add a ReLU
    pointwise_kernel: Parameter

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: Any = "valid",
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
        super(DepthwiseConv2D, self).__init__(
            kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias,
            trainable, name,
            depthwise=(depthwise_initializer, depthwise_regularizer),
            pointwise=(pointwise_initializer, pointwise_regularizer),
            bias=(bias_initializer, bias_regularizer),
        )
        self.filters = checks.integer(filters, "filters", 1, checks.MOST)
        self.depth_multiplier = checks.integer(depth_multiplier, "depth_multiplier", 1, checks.MOST)

    def kernel_shapes(self, channels: int) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return the number of filters and the shapes of the kernels."""
        outputs, kernels = super().kernel_shapes(channels)
        kernels["pointwise_kernel"] = (1, 1, outputs, self.filters)
        return self.filters, kernels

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the pointwise kernel, and the bias or zeros."""
        return self.pointwise_kernel.value, self.bias_value()

    def multiply(
        self, x: np.ndarray, y: np.ndarray, ctx: Context, relu: bool, pool: Any = None,
        weights: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Any:
        """Write y = (x * w) * p + b, or its 2x2 maxima with `pool`; return x * w and their code."""
        w, (p, b) = self.depthwise_kernel.value, weights or self.weights()
        code = None if pool is None else ctx.empty(self, "code", y.shape, np.uint8)
        z = ctx.empty(self, "z", (len(x), *self.output[-2:], p.shape[2]), x.dtype)
        depthwise.forward(x, w, np.zeros(p.shape[2], x.dtype), z, self.window)
        packed = ctx.pack(self, conv.packed_filters, p, _pixels(z))
        conv.forward(z, p, b, y, _pixels(z), relu, code, packed)
        return z, code

    def all_gradients(
        self, x: np.ndarray, y: Any, dy: np.ndarray, dx: Any, ctx: Context, saved: Any
    ) -> None:
        # dp = z' * dy, with the gradient of ReLU and db in the same pass; dz = dy * p'
        z, code = saved
        p, dp, db = self.weights()[0], self.pointwise_kernel.writable("grad"), self.bias_grad()
        dz = ctx.empty(self, "dz of the depthwise part", z.shape, x.dtype)
        if code is not None:
            conv.pooled_gradients(z, dy, code, p, dp, db, dz, _pixels(z))
        else:
            before = None if y is None else ctx.empty(self, "dz", dy.shape, dy.dtype)  # before ReLU
            conv.kernel_gradient(z, dy, dp, db, _pixels(z), y, before)
            conv.input_gradient(dy if before is None else before, p, dz, _pixels(z))
        self.write_gradients(x, dz, dx, ctx, None)


def _pixels(images: np.ndarray) -> Window:
    """Return the window of one pixel that slides over images."""
    return slide(images.shape[1:3], (1, 1), (1, 1), "valid")
