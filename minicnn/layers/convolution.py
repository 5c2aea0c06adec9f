"""Base class of the layers that slide kernels over images."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.op import Shape
from minicnn.kernels.window import Window, slide
from minicnn.layers.affine import Affine
from minicnn.layers.sliding import DataFormat, check_fits, window_size


class Convolution(Affine):
    """The base of layers that slide kernels over images.

    `build` computes `window`; that of a subclass then ends with `build_weights`.
    """

    rank = 4

    def __init__(
        self,
        kernel_size: Any,
        strides: Any,
        padding: str,
        data_format: str,
        dilation_rate: Any,
        *rest: Any,
        **weights: Any,
    ) -> None:
        super().__init__(*rest, **weights)
        self.kernel_size = self.size = window_size(kernel_size, "kernel_size")
        self.strides = checks.pair(strides, "strides")
        self.padding = checks.choice(padding, "padding", checks.PADDINGS)
        self.data_format = DataFormat(
            checks.choice(data_format, "data_format", checks.DATA_FORMATS)
        )
        self.dims = self.data_format.dims  # for errors
        self.dilation_rate = checks.pair(dilation_rate, "dilation_rate")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        height, width, self.channels = self.data_format.sizes(shape)
        self.window = self.slide(height, width)
        check_fits(self.window, shape, self.data_format, self.label)
        return shape

    def slide(self, height: int, width: int) -> Window:
        """Return the window that slides over images of this size."""
        return slide((height, width), self.size, self.strides, self.padding, self.dilation_rate)
