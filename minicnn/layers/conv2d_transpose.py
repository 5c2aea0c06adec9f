"""Two-dimensional transposed convolution."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.kernels.conv import conv
from minicnn.kernels.window import slide
from minicnn.layers.convolution import Convolution


class Conv2DTranspose(Convolution, repeatable=True):
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
    padding : {"valid", "same"}, int or ((int, int), (int, int))
        The output size is size * stride for "same", and (size - 1) * stride +
        max(kernel_size, stride) for "valid", as in TensorFlow. ((top, bottom), (left, right)) are
        the rows and columns that are cut off the output for "valid"; one integer is the same on
        all sides.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W).
    activation : str, function, Op or None
        As for `Conv2D`.
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
        padding: Any = "valid",
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
        self.filters = checks.integer(filters, "filters", 1, checks.MOST)

    def slide(self, height: int, width: int) -> None:
        """Set `window` to that of the convolution from the output to images of this size."""
        more = [max(k - s, 0) for k, s in zip(self.size, self.strides, strict=True)]
        if self.padding == "same":
            more = [0, 0]
        elif self.padding != "valid":
            more = [m - sum(pads) for m, pads in zip(more, self.padding, strict=True)]
        size = height * self.strides[0] + more[0], width * self.strides[1] + more[1]
        if min(size) < 1:
            raise ValueError(
                f"{self.label}: `padding` must leave at least one row and column of the output, "
                f"got {self.padding} for images of {(height, width)}"
            )
        self.window = slide(size, self.size, self.strides, self.padding)
        self.output = self.window._replace(out_h=size[0], out_w=size[1])

    def kernel_shapes(self, channels: int) -> tuple[int, dict[str, tuple[int, ...]]]:
        """Return the number of filters and the shape of the kernel."""
        return self.filters, {"kernel": (*self.size, self.filters, channels)}

    def multiply(self, x: np.ndarray, y: np.ndarray, *_: Any) -> None:
        """Write the gradient of a convolution whose output has the gradient x, plus b."""
        conv.input_gradient(x, self.kernel.value, y, self.window, self.bias_value())

    def write_gradients(
        self, x: np.ndarray, dy: np.ndarray, dx: np.ndarray | None, ctx: Context, saved: None
    ) -> None:
        """Write the gradients of that convolution, with image and gradient exchanged."""
        no_bias = np.zeros(x.shape[3], x.dtype)
        if dx is not None:
            conv.forward(dy, self.kernel.value, no_bias, dx, self.window)
        no_db = np.empty_like(no_bias)
        conv.kernel_gradient(dy, x, self.kernel.writable("grad"), no_db, self.window)
