"""What convolution and pooling share: the data formats, and a window that fits into the images."""

import enum
import math
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.op import Shape
from minicnn.kernels import elementwise
from minicnn.kernels.window import Window

_MOST_CHANNELS = 4  # of pictures: grey, red-green-blue, and with transparency


class DataFormat(enum.StrEnum):
    """The order of the axes of images; the kernels know only (N, H, W, C)."""

    LAST = "channels_last"
    FIRST = "channels_first"

    @property
    def dims(self) -> str:
        """The axes, for errors."""
        return "(N, C, H, W)" if self is DataFormat.FIRST else "(N, H, W, C)"

    def sizes(self, shape: Shape) -> tuple[Any, Any, Any]:
        """Return the height, the width and the channels in a shape of this format."""
        _, first, second, third = shape
        return (second, third, first) if self is DataFormat.FIRST else (first, second, third)

    def shape(self, batch: Any, window: Window, channels: int) -> Any:
        """Return the shape of the outputs of a window in this format."""
        if self is DataFormat.FIRST:
            return (batch, channels, window.out_h, window.out_w)
        return (batch, window.out_h, window.out_w, channels)

    def to_nhwc(self, x: np.ndarray) -> np.ndarray:
        """Return an array of this format as (N, H, W, C)."""
        return elementwise.axis_to_end(x, 1) if self is DataFormat.FIRST else x

    def from_nhwc(self, y: np.ndarray) -> np.ndarray:
        """Return an array (N, H, W, C) in this format."""
        return elementwise.axis_from_end(y, 1) if self is DataFormat.FIRST else y


def window_size(value: Any, name: str) -> tuple[int, int]:
    """Return the argument for the size of a window as (height, width)."""
    size = checks.pair(value, name)
    checks.integer(math.prod(size), f"{name}, height times width", 1, checks.MOST)
    return size


def check_fits(
    window: Window, padding: Any, shape: Shape, images: DataFormat, label: str
) -> None:
    """Raise if the window is larger than padded images of this shape."""
    if window.out_h < 1 or window.out_w < 1:
        raise ValueError(
            f"{label}: a window of {(window.kernel_h, window.kernel_w)} (dilated "
            f"{(window.dilation_h, window.dilation_w)}) does not fit into images of "
            f"{(window.height, window.width)} with padding {padding!r}; "
            f"{_swapped_axes(shape, images)}use padding='same', a smaller window or larger images"
        )


def _swapped_axes(shape: Shape, images: DataFormat) -> str:
    """Return what to do if the shape looks like one of the other data format."""
    first, second, third = (size or 0 for size in shape[1:])
    few, many = (third, first) if images is DataFormat.FIRST else (first, third)
    if few > _MOST_CHANNELS or few >= min(many, second):
        return ""
    other, axes = DataFormat.FIRST, (0, 2, 3, 1)
    if images is DataFormat.FIRST:
        other, axes = DataFormat.LAST, (0, 3, 1, 2)
    return (
        f"if {shape} is {other.dims}, use data_format='{other}' in every layer or "
        f"x.transpose{axes}; otherwise "
    )
