"""Two-dimensional pooling: the maximum or the mean of windows, or of complete images."""

from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels import pooling
from minicnn.kernels.window import slide
from minicnn.layers.layer import Layer
from minicnn.layers.sliding import DataFormat, check_fits, window_size


class Pooling2D(Layer):
    """The base of pooling layers.

    A subclass defines `pool` and `pool_gradient`, for images (N, H, W, C).
    """

    rank = 4
    is_global = False  # whether the window is the complete image, and outputs are (N, C)
    # (x, y, ctx): write the output y; return what `pool_gradient` needs.
    pool: Callable[..., Any]
    # (dy, saved, dx): write the gradient of the input.
    pool_gradient: Callable[..., None]

    def __init__(
        self,
        pool_size: Any,
        strides: Any = None,
        padding: Any = "valid",
        data_format: str = "channels_last",
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.pool_size = self.size = window_size(pool_size, "pool_size")
        self.strides = self.size if strides is None else checks.pair(strides, "strides")
        self.padding = checks.padding(padding)
        pads = ((0, 0), (0, 0)) if isinstance(self.padding, str) else self.padding
        if any(max(axis) >= size for axis, size in zip(pads, self.size, strict=True)):
            raise ValueError(
                f"`padding` must be smaller than `pool_size`, {self.size}, got {self.padding}: a "
                "window in the padding alone has no elements"
            )
        self.data_format = DataFormat(
            checks.choice(data_format, "data_format", checks.DATA_FORMATS)
        )
        self.dims = self.data_format.dims  # for errors

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        height, width, channels = self.data_format.sizes(shape)
        size = (height, width) if self.is_global else self.size
        self.window = slide((height, width), size, self.strides, self.padding)
        check_fits(self.window, self.padding, shape, self.data_format, self.label)
        images = self.data_format.shape(None, self.window, channels)
        self._row = (channels,) if self.is_global else images[1:]
        return (None, *self._row)

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        x = self.data_format.to_nhwc(self.check_inputs(x))
        shape = (x.shape[0], self.window.out_h, self.window.out_w, x.shape[3])
        y = ctx.empty(self, "y", shape, x.dtype)
        ctx[self] = self.pool(x, y, ctx), x.shape
        return self.data_format.from_nhwc(y).reshape(len(x), *self._row)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        saved, shape = ctx[self]
        checks.gradient(dy, (shape[0], *self._row), self.dtype, self.label)
        if not need_dx:
            return None
        dx = ctx.empty(self, "dx", shape, dy.dtype)
        images = dy.reshape(self.data_format.shape(shape[0], self.window, shape[3]))
        self.pool_gradient(self.data_format.to_nhwc(images), saved, dx)
        return self.data_format.from_nhwc(dx)


class MaxPooling2D(Pooling2D, repeatable=True):
    """Take the largest element of each window, for each channel.

    Padding counts as minus infinity. The gradient goes to one position of each window: the first
    maximum in row order. NaN counts as the largest value, so that it is not hidden.

    Parameters
    ----------
    pool_size : int or (int, int)
        Height and width of the window.
    strides : int or (int, int), optional
        Default: `pool_size`, so that windows do not overlap.
    padding : {"valid", "same"}, int or ((int, int), (int, int))
        As for `Conv2D`; smaller than the window.
    data_format : {"channels_last", "channels_first"}
    name : str, optional

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.MaxPooling2D(pool_size=2, strides=2)
    >>> layer.build((None, 28, 28, 32), rng=0)
    (None, 14, 14, 32)
    """

    def pool(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> Any:
        winner = ctx.empty(self, "winner", y.shape, pooling.winner_type(self.window))
        pooling.forward(x, y, winner, self.window)
        return winner

    def pool_gradient(self, dy: np.ndarray, saved: Any, dx: np.ndarray) -> None:
        pooling.backward(dy, saved, dx, self.window)


class AveragePooling2D(Pooling2D, repeatable=True):
    """Take the mean of each window, for each channel.

    Padding does not count: a window at the border is the mean of fewer elements.

        y = sum of x in the window / number of its elements inside the image

    Parameters
    ----------
    pool_size : int or (int, int)
        Height and width of the window.
    strides : int or (int, int), optional
        Default: `pool_size`, so that windows do not overlap.
    padding : {"valid", "same"}, int or ((int, int), (int, int))
        As for `Conv2D`; smaller than the window.
    data_format : {"channels_last", "channels_first"}
    name : str, optional

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.AveragePooling2D(2)
    >>> layer.build((None, 2, 2, 1), rng=0)
    (None, 1, 1, 1)
    >>> layer.forward(np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1), mc.Context()).item()
    1.5
    """

    def pool(self, x: np.ndarray, y: np.ndarray, ctx: Context) -> Any:
        pooling.mean(x, y, self.window)

    def pool_gradient(self, dy: np.ndarray, saved: Any, dx: np.ndarray) -> None:
        pooling.mean_gradient(dy, dx, self.window)


class _Global(Pooling2D):
    """The base of layers that pool complete images."""

    is_global = True

    def __init__(self, data_format: str = "channels_last", name: str | None = None) -> None:
        super().__init__(1, data_format=data_format, name=name)


class GlobalMaxPooling2D(_Global, MaxPooling2D, repeatable=True):
    """Take the largest element of each channel of an image.

    Parameters
    ----------
    data_format : {"channels_last", "channels_first"}
    name : str, optional

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.layers.GlobalMaxPooling2D().build((None, 7, 7, 64), rng=0)
    (None, 64)
    """


class GlobalAveragePooling2D(_Global, AveragePooling2D, repeatable=True):
    """Take the mean of each channel of an image.

    Parameters
    ----------
    data_format : {"channels_last", "channels_first"}
    name : str, optional

    References
    ----------
    M. Lin, Q. Chen and S. Yan, "Network in network", arXiv:1312.4400, 2013, section 3.2.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.layers.GlobalAveragePooling2D().build((None, 7, 7, 64), rng=0)
    (None, 64)
    """
