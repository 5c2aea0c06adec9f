"""Geometry of a sliding window: sizes, strides and padding of a convolution or pooling."""

from typing import NamedTuple


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
    padding: str,
    dilation: tuple[int, int] = (1, 1),
) -> Window:
    """Return the window that slides over an image of `size` with "same" or "valid" padding."""
    (top, out_h), (left, out_w) = (
        _slide_axis(*axis, padding) for axis in zip(size, kernel, strides, dilation, strict=True)
    )
    return Window(*size, *kernel, *strides, *dilation, top, left, out_h, out_w)


def _slide_axis(
    size: int, kernel: int, stride: int, dilation: int, padding: str
) -> tuple[int, int]:
    """Return (padding before, output size) along one axis."""
    extent = (kernel - 1) * dilation + 1
    if padding == "valid":
        return 0, (size - extent) // stride + 1
    out = -(-size // stride)
    total = max(0, (out - 1) * stride + extent - size)
    return total // 2, out
