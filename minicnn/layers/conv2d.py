"""Two-dimensional convolution."""

from typing import Any

import numpy as np

from minicnn import initializers, ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels.conv import conv
from minicnn.kernels.window import Window
from minicnn.layers.sliding import SlidingLayer


class Conv2D(SlidingLayer):
    """Convolve images with trained filters, add a bias, activate.

    The cross-correlation that deep learning calls convolution, with strides s and dilation d:

        y[n, i, j, f] = b[f] + sum over u, v, c of x[n, s i + d u, s j + d v, c] w[u, v, c, f]

    Parameters
    ----------
    filters : int
        How many, the channels of the output.
    kernel_size : int or (int, int)
        Height and width of a filter.
    strides : int or (int, int)
        How far the filter moves, down and to the right.
    padding : {"valid", "same"}
        "same" pads with zeros, the larger half below and on the right, so that the output has
        ceil(size / stride) rows and columns; "valid" pads nothing: (size - extent) // stride + 1.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W).
    dilation_rate : int or (int, int)
        The distance between a filter's taps.
    activation : str, function, Op or None
        "relu", "softmax", "sigmoid", "tanh", "identity", or the function of that name.
    use_bias : bool
    kernel_initializer : str or function, optional
        Default "glorot_uniform".
    bias_initializer : str or function
    trainable : bool
    name : str, optional

    Attributes
    ----------
    kernel : Parameter
        (height, width, channels, filters)
    bias : Parameter or None
        (filters,)

    Raises
    ------
    ValueError, TypeError
        Where an argument or the shape of the inputs cannot be.

    References
    ----------
    V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning",
    arXiv:1603.07285, 2016, for sizes, strides, padding and dilation.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.Conv2D(32, 5, padding="same", activation="relu")
    >>> layer.build((None, 28, 28, 1), rng=0)
    (None, 28, 28, 32)
    >>> layer.forward(np.zeros((2, 28, 28, 1), np.float32), mc.Context()).shape
    (2, 28, 28, 32)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str = "channels_last",
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        trainable: bool = True,
        name: str | None = None,
    ) -> None:
        super().__init__(
            kernel_size, "kernel_size", strides, padding, data_format, dilation_rate, name
        )
        self.filters = checks.integer(filters, "filters")
        self.activation = ops.activation(activation)
        self.use_bias = checks.boolean(use_bias, "use_bias")
        self.kernel_initializer = initializers.get(
            kernel_initializer, "glorot_uniform", "kernel_initializer"
        )
        self.bias_initializer = initializers.get(bias_initializer, "zeros", "bias_initializer")
        self._trainable = checks.boolean(trainable, "trainable")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        rng, shape = checks.generator(rng), super().build(input_shape, rng, dtype)
        self.window, channels = self.build_window(shape)
        shape = (*self.size, channels, self.filters)
        self.kernel = self.initialize("kernel", shape, rng)
        self.bias = None
        if self.use_bias:
            self.bias = self.initialize("bias", (self.filters,), rng)
        return self.build_activation(self.shape_of(None, self.window, self.filters), rng)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        z = self.linear(x, ctx)
        return z if self.activation is None else self.activation.forward(z, ctx)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        dz = dy if self.activation is None else self.activation.backward(dy, ctx)
        return self.linear_backward(dz, ctx, need_dx)

    def linear(
        self, x: np.ndarray, ctx: Context, relu: bool = False, pooling: Window | None = None
    ) -> np.ndarray:
        """Return x * w + b before the activation, or with ReLU and pooling in the same pass.

        `pooling` is the window of a 2x2 max pooling after ReLU, or None.
        """
        x = self.to_nhwc(self.check_inputs(x))
        # x (N, H, W, C) * w (KH, KW, C, F) + b (F,) -> y (N, OH, OW, F)
        out = self.window if pooling is None else pooling
        shape = (len(x), out.out_h, out.out_w, self.filters)
        y = ctx.empty(self, "y", shape, x.dtype)
        code = None if pooling is None else ctx.empty(self, "code", shape, np.uint8)
        conv.forward(x, self.kernel.value, self.bias_value(), y, self.window, relu, code)
        ctx[self] = x, y if relu else None, code, out
        return self.from_nhwc(y)

    def linear_backward(
        self, dy: np.ndarray, ctx: Context, need_dx: bool = True
    ) -> np.ndarray | None:
        """Write the gradients of kernel and bias, and return that of the inputs of `linear`."""
        x, y, code, out = ctx[self]
        checks.gradient(dy, self.shape_of(len(x), out, self.filters), self.dtype, self.label)
        dy = self.to_nhwc(dy)
        w, dw, db = self.kernel.value, self.kernel.writable("grad"), self.bias_grad()
        dx = ctx.empty(self, "dx", x.shape, x.dtype) if need_dx else None
        if code is not None:
            conv.pooled_gradients(x, dy, code, w, dw, db, dx, self.window)
        else:
            dz = None if y is None or dx is None else ctx.empty(self, "dz", dy.shape, dy.dtype)
            conv.kernel_gradient(x, dy, dw, db, self.window, y, dz)
            if dx is not None:
                conv.input_gradient(dy if dz is None else dz, w, dx, self.window)
        return None if dx is None else self.from_nhwc(dx)

    def bias_value(self) -> np.ndarray:
        """Return the bias, or zeros in its place."""
        return np.zeros(self.filters, self.dtype) if self.bias is None else self.bias.value

    def bias_grad(self) -> np.ndarray:
        """Return where the bias' gradient goes; nowhere that is kept without a bias."""
        if self.bias is None:
            return np.empty(self.filters, self.dtype)
        return self.bias.writable("grad")
