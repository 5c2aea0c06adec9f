"""Two-dimensional max pooling."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels import pooling
from minicnn.kernels.window import slide
from minicnn.layers.layer import Layer
from minicnn.layers.sliding import DataFormat, check_fits, window_size


class MaxPooling2D(Layer):
    """Take the largest element of each window, for each channel.

    Padding counts as minus infinity. The gradient goes to one position of each window: the first
    maximum in row order. NaN counts as the largest value, so that it is not hidden.

    Parameters
    ----------
    pool_size : int or (int, int)
        Height and width of the window.
    strides : int or (int, int), optional
        Default: `pool_size`, so that windows do not overlap.
    padding : {"valid", "same"}
    data_format : {"channels_last", "channels_first"}
    name : str, optional

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.MaxPooling2D(pool_size=2, strides=2)
    >>> layer.build((None, 28, 28, 32), rng=0)
    (None, 14, 14, 32)
    """

    rank = 4

    def __init__(
        self,
        pool_size: Any,
        strides: Any = None,
        padding: str = "valid",
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.pool_size = self.size = window_size(pool_size, "pool_size")
        self.strides = self.size if strides is None else checks.pair(strides, "strides")
        self.padding = checks.choice(padding, "padding", checks.PADDINGS)
        self.data_format = DataFormat(
            checks.choice(data_format, "data_format", checks.DATA_FORMATS)
        )
        self.dims = self.data_format.dims  # for errors

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        height, width, channels = self.data_format.sizes(shape)
        self.window = slide((height, width), self.size, self.strides, self.padding)
        check_fits(self.window, shape, self.data_format, self.label)
        return self.data_format.shape(None, self.window, channels)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        x = self.data_format.to_nhwc(self.check_inputs(x))
        shape = (x.shape[0], self.window.out_h, self.window.out_w, x.shape[3])
        y = ctx.empty(self, "y", shape, x.dtype)
        winner = ctx.empty(self, "winner", shape, pooling.winner_type(self.window))
        pooling.forward(x, y, winner, self.window)
        ctx[self] = winner, x.shape
        return self.data_format.from_nhwc(y)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        winner, shape = ctx[self]
        out = self.data_format.shape(shape[0], self.window, shape[3])
        checks.gradient(dy, out, self.dtype, self.label)
        if not need_dx:
            return None
        dx = ctx.empty(self, "dx", shape, dy.dtype)
        pooling.backward(self.data_format.to_nhwc(dy), winner, dx, self.window)
        return self.data_format.from_nhwc(dx)
