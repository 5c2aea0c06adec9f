"""What convolution and pooling share: a window that slides over images, and the data formats."""

import math
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.op import Shape
from minicnn.kernels.window import Window, slide
from minicnn.layers.layer import Layer

_MOST_CHANNELS = 4  # of pictures: grey, red-green-blue, and with transparency


class SlidingLayer(Layer):
    """A layer whose window slides over (N, H, W, C), or (N, C, H, W) with channels_first."""

    rank = 4

    def __init__(
        self,
        size: Any,
        size_name: str,
        strides: Any,
        padding: str,
        data_format: str,
        dilation_rate: Any = 1,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.size = checks.pair(size, size_name)
        checks.integer(math.prod(self.size), f"{size_name}, height times width", 1, checks.MOST)
        self.strides = checks.pair(strides, "strides")
        self.padding = checks.choice(padding, "padding", checks.PADDINGS)
        self.data_format = checks.choice(data_format, "data_format", checks.DATA_FORMATS)
        self.dilation_rate = checks.pair(dilation_rate, "dilation_rate")
        self.channels_first = self.data_format == "channels_first"
        self.dims = "(N, C, H, W)" if self.channels_first else "(N, H, W, C)"

    def build_window(self, shape: Shape) -> tuple[Window, int]:
        """Return the window over inputs of this shape, and the number of their channels."""
        sizes: list[Any] = list(shape[1:])
        height, width, channels = (*sizes[1:], sizes[0]) if self.channels_first else sizes
        window = slide((height, width), self.size, self.strides, self.padding, self.dilation_rate)
        if window.out_h < 1 or window.out_w < 1:
            raise ValueError(
                f"{self.label}: a window of {self.size} (dilated {self.dilation_rate}) does not "
                f"fit into images of {(height, width)} with padding 'valid'; "
                f"{self._swapped_axes(shape)}use padding='same', a smaller window or larger images"
            )
        return window, channels

    def _swapped_axes(self, shape: Shape) -> str:
        """Return what to do if the shape looks like one of the other data format."""
        first, *_, last = (size or 0 for size in shape[1:])
        few, many = (last, first) if self.channels_first else (first, last)
        if few > _MOST_CHANNELS or few >= min(many, shape[2] or 0):
            return ""
        if self.channels_first:
            return (
                f"if {shape} is (N, H, W, C), use data_format='channels_last' in every layer or "
                "x.transpose(0, 3, 1, 2); otherwise "
            )
        return (
            f"if {shape} is (N, C, H, W), use data_format='channels_first' in every layer or "
            "x.transpose(0, 2, 3, 1); otherwise "
        )

    def shape_of(self, batch: Any, window: Window, channels: int) -> Any:
        """Return the shape of the output in the layer's data format."""
        if self.channels_first:
            return (batch, channels, window.out_h, window.out_w)
        return (batch, window.out_h, window.out_w, channels)

    def to_nhwc(self, x: np.ndarray) -> np.ndarray:
        """Return an array of the layer's data format as the kernels want it."""
        return np.ascontiguousarray(x.transpose(0, 2, 3, 1)) if self.channels_first else x

    def from_nhwc(self, y: np.ndarray) -> np.ndarray:
        """Return a kernel's array in the layer's data format."""
        return np.ascontiguousarray(y.transpose(0, 3, 1, 2)) if self.channels_first else y
