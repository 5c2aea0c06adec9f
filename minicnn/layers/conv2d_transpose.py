"""Two-dimensional transposed convolution."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels import elementwise
from minicnn.kernels.conv import conv
from minicnn.kernels.window import Window, slide
from minicnn.layers.convolution import Convolution


class Conv2DTranspose(Convolution):
    """Enlarge images: add a filter, multiplied by an input, to the output around each input.

    It is the adjoint of the linear map of `Conv2D` with the same window, that is, the gradient of
    a convolution with respect to its inputs; with strides s:

        y[n, s i + u - p, s j + v - q, f] = b[f] + sum of x[n, i, j, c] w[u, v, f, c]

    over all u, v, c, i and j that give the same place; p and q are the padding of that convolution.

    Parameters
    ----------
    filters : int
        The number of filters, which is the number of output channels.
    kernel_size : int or (int, int)
        Height and width of a filter.
    strides : int or (int, int)
        How far apart inputs are in the output.
    padding : {"valid", "same"}
        The output size is size * stride for "same", and (size - 1) * stride +
        max(kernel_size, stride) for "valid", as in TensorFlow.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W).
    activation : str, function, Op or None
        As for `Conv2D`.
    use_bias : bool
    kernel_initializer : str or function, optional
        Default "glorot_uniform".
    bias_initializer : str or function
    trainable : bool
    name : str, optional
    kernel_regularizer, bias_regularizer : callable, optional
        Such as ``l2_regularizer(0.001)``: its value is added to the loss.

    Attributes
    ----------
    kernel : Parameter
        (height, width, filters, channels)
    bias : Parameter or None
        (filters,)

    References
    ----------
    V. Dumoulin and F. Visin, "A guide to convolution arithmetic for deep learning",
    arXiv:1603.07285, 2016, section 4.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.Conv2DTranspose(8, 3, strides=2, padding="same")
    >>> layer.build((None, 7, 7, 16), rng=0)
    (None, 14, 14, 8)
    >>> layer.kernel.shape
    (3, 3, 8, 16)
    """

    kind = "conv2d_transpose"

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *,
        strides: Any = 1,
        padding: str = "valid",
        data_format: str = "channels_last",
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
            kernel_size, strides, padding, data_format, 1, activation, use_bias, trainable, name,
            kernel=(kernel_initializer, kernel_regularizer),
            bias=(bias_initializer, bias_regularizer),
        )
        self.filters = checks.integer(filters, "filters")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        super().build(input_shape, rng, dtype)
        kernel_shape = (*self.size, self.filters, self.channels)
        output_shape = self._output_shape(None)
        return self.build_weights(self.filters, output_shape, rng, kernel=kernel_shape)

    def slide(self, height: int, width: int) -> Window:
        """Return the window of the convolution from the output to images of this size."""
        output = []
        for size, k, stride in zip((height, width), self.size, self.strides, strict=True):
            more = 0 if self.padding == "same" else max(k - stride, 0)
            output.append(size * stride + more)
        return slide((output[0], output[1]), self.size, self.strides, self.padding)

    def _output_shape(self, batch: Any) -> Any:
        output = self.window._replace(out_h=self.window.height, out_w=self.window.width)
        return self.data_format.shape(batch, output, self.filters)

    def linear(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        """Return the gradient of a convolution whose output has the gradient x, plus b."""
        x = self.data_format.to_nhwc(self.check_inputs(x))
        shape = (len(x), self.window.height, self.window.width, self.filters)
        y = ctx.empty(self, "y", shape, x.dtype)
        conv.input_gradient(x, self.kernel.value, y, self.window, self.bias_value())
        ctx[self] = x
        return self.data_format.from_nhwc(y)

    def linear_backward(
        self, dy: np.ndarray, ctx: Context, need_dx: bool = True
    ) -> np.ndarray | None:
        x = ctx[self]
        checks.gradient(dy, self._output_shape(len(x)), self.dtype, self.label)
        dy = self.data_format.to_nhwc(dy)
        nothing = np.zeros(self.channels, x.dtype)  # the convolution has no bias
        elementwise.sum_rows(dy.reshape(-1, self.filters), self.bias_grad())
        conv.kernel_gradient(dy, x, self.kernel.writable("grad"), nothing.copy(), self.window)
        if not need_dx:
            return None
        dx = ctx.empty(self, "dx", x.shape, x.dtype)
        conv.forward(dy, self.kernel.value, nothing, dx, self.window)
        return self.data_format.from_nhwc(dx)
