"""Geometry of a sliding window: sizes, strides and padding of a convolution or pooling."""

from typing import Any, NamedTuple

from minicnn.kernels.jit import helper


class Window(NamedTuple):
    """The geometry of a sliding window, as a tuple of integers that kernels can unpack."""

    height: int  # of the input
    width: int
    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    top: int  # rows of padding above
    left: int  # columns of padding on the left
    out_h: int
    out_w: int

    @property
    def taps(self) -> int:
        """The number of input positions in a window."""
        return self.kernel_h * self.kernel_w


def slide(
    size: tuple[int, int],
    kernel: tuple[int, int],
    strides: tuple[int, int],
    padding: Any,
    dilation: tuple[int, int] = (1, 1),
) -> Window:
    """Return the window that slides over an image of `size`.

    The padding is "same", "valid" or ((top, bottom), (left, right)).
    """
    pads = (padding, padding) if isinstance(padding, str) else padding
    axes = zip(size, kernel, strides, dilation, pads, strict=True)
    (top, out_h), (left, out_w) = (_slide_axis(*axis) for axis in axes)
    return Window(*size, *kernel, *strides, *dilation, top, left, out_h, out_w)


def _slide_axis(
    size: int, kernel: int, stride: int, dilation: int, padding: Any
) -> tuple[int, int]:
    """Return (padding before, output size) along one axis."""
    extent = (kernel - 1) * dilation + 1
    if padding == "same":
        out = -(-size // stride)
        total = max(0, (out - 1) * stride + extent - size)
        return total // 2, out
    before, after = (0, 0) if padding == "valid" else padding
    return before, (before + size + after - extent) // stride + 1


@helper
def overlap(window, ky, kx, row):
    """Return the first pixels of x and of a row of y that a tap connects, and their number.

    Pixels are numbered in their image. The number may be negative.
    """
    height, width, _, _, sh, sw, dh, dw, top, left, _, ow = window
    iy, right = row * sh + ky * dh - top, kx * dw - left
    first = max(0, (sw - 1 - right) // sw)
    count = min(ow, (width - 1 - right) // sw + 1) - first if 0 <= iy < height else 0
    return iy * width + first * sw + right, row * ow + first, count
