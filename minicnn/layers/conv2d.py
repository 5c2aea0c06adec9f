"""Two-dimensional convolution."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.kernels.conv import conv
from minicnn.layers.convolution import Convolution


class Conv2D(Convolution, repeatable=True):
    """Convolve images with trained filters, add a bias and apply an activation.

    As usual in deep learning it is the cross-correlation; with strides s and dilation d:

        y[n, i, j, f] = b[f] + sum over u, v, c of x[n, s i + d u, s j + d v, c] w[u, v, c, f]

    Parameters
    ----------
    filters : int
        The number of filters, which is the number of output channels.
    kernel_size : int or (int, int)
        Height and width of a filter.
    strides : int or (int, int)
        The steps of the filter, down and to the right.
    padding : {"valid", "same"}, int or ((int, int), (int, int))
        "same" pads with zeros, the larger half below and on the right, so that the output size is
        ceil(size / stride). ((top, bottom), (left, right)) are the numbers of zeros on each side;
        one integer is the same on all sides, as in PyTorch, and "valid" is 0. Then the output size
        is (top + size + bottom - extent) // stride + 1, with extent = d (kernel_size - 1) + 1.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W).
    dilation_rate : int or (int, int)
        The distance between the elements of a filter.
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
        (height, width, channels, filters)
    bias : Parameter or None
        (filters,)

    Raises
    ------
    ValueError, TypeError
        If an argument or the input shape is invalid.

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

    takes_relu = True  # fusion: `linear` can add a ReLU

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: Any = "valid",
        data_format: str = "channels_last",
        dilation_rate: Any = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = None,
        bias_initializer: Any = "zeros",
        trainable: bool = True,
        name: str | None = None,
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
    ) -> None:
        super().__init__(
            kernel_size, strides, padding, data_format, dilation_rate, activation, use_bias,
            trainable, name,
            kernel=(kernel_initializer, kernel_regularizer),
            bias=(bias_initializer, bias_regularizer),
        )
        self.filters = checks.integer(filters, "filters", 1, checks.MOST)

    def kernel_shapes(self, channels: int) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return the number of filters and the shape of the kernel."""
        return self.filters, {"kernel": (*self.size, channels, self.filters)}

    def multiply(
        self, x: np.ndarray, y: np.ndarray, ctx: Context, relu: bool, pool: Any = None,
        weights: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Any:
        # x (N, H, W, C) * w (KH, KW, C, F) + b (F,) -> y (N, OH, OW, F)
        code = None if pool is None else ctx.empty(self, "code", y.shape, np.uint8)
        w, b = weights or self.weights()
        packed = ctx.pack(self, conv.packed_filters, w, self.window)
        conv.forward(x, w, b, y, self.window, relu, code, packed)
        return code

    def all_gradients(
        self, x: np.ndarray, y: Any, dy: np.ndarray, dx: Any, ctx: Context, code: Any
    ) -> None:
        # dw = x' * dy, db = sum of dy over n, i, j, dx = dy * w'
        w, dw, db = self.kernel.value, self.kernel.writable("grad"), self.bias_grad()
        if code is not None:  # a code is the position of a maximum, or says that it is zero
            conv.pooled_gradients(x, dy, code, w, dw, db, dx, self.window)
        else:  # with ReLU: dz = 0 where y <= 0, else dy
            dz = None if y is None or dx is None else ctx.empty(self, "dz", dy.shape, dy.dtype)
            conv.kernel_gradient(x, dy, dw, db, self.window, y, dz)
            if dx is not None:
                conv.input_gradient(dy if dz is None else dz, w, dx, self.window)
