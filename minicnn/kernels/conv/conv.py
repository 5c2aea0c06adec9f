"""Convolution and its gradients; this file alone chooses how they are computed.

    y = x * w + b        x (N, H, W, C)   w (KH, KW, C, F)   b (F,)   y (N, OH, OW, F)

`forward`, `input_gradient`, `kernel_gradient` and `pooled_gradients` take the fastest path that a
configuration has: `winograd`, `implicit` or `pooled`, and otherwise the general one, `im2col`.
"""

from typing import Any

import numpy as np

from minicnn.kernels import elementwise, pooling
from minicnn.kernels.conv import im2col, implicit, pooled, winograd
from minicnn.kernels.simd import ZEROED
from minicnn.kernels.threads import check
from minicnn.kernels.window import Window, slide

FAST_PATHS = True  # False: the general path for everything, as a reference in tests

_CHUNKS = 16  # at most; enough to keep the threads of a small machine evenly busy
_NO_CODE = np.empty((0, 0, 0, 0), np.uint8)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window,
    relu: bool = False, code: np.ndarray | None = None,
) -> None:
    """Write y = x * w + b, max(y, 0) if `relu`, or with a `code` its 2x2 maxima after ReLU.

    Then y and code are (N, OH // 2, OW // 2, F), and code says which of the four a maximum is, or
    that ReLU made it zero: what `pooled_gradients` needs.
    """
    _check(x, w, b, y, window, code)
    path, pool = _fast_path(x, window), code is not None
    if path is not None:
        path.forward(x, w, b, y, _NO_CODE if code is None else code, window, relu or pool, pool,
                     _CHUNKS)
    elif code is None:
        im2col.forward(x, w, b, y, window, relu)
    else:
        whole = np.empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
        im2col.forward(x, w, b, whole, window, True)
        pooling.forward(whole, y, code, _pool_window(window))
        code[y <= 0] = ZEROED


def input_gradient(dy: np.ndarray, w: np.ndarray, dx: np.ndarray, window: Window) -> None:
    """Write dx, the gradient of the input of `forward`, where dy is that of x * w + b.

    With stride 1 it is a convolution itself: of dy, padded by what the window reaches beyond its
    first tap, with the kernel turned by half a circle and its channels and filters exchanged.
    """
    _check(dx, w, None, dy, window)
    back = window._replace(
        height=window.out_h, width=window.out_w, out_h=window.height, out_w=window.width,
        top=window.kernel_h - 1 - window.top, left=window.kernel_w - 1 - window.left,
    )
    strided = window.stride_h > 1 or window.stride_w > 1
    path = None if strided else _fast_path(dy, back)
    if path is not None:
        bias = np.zeros(dx.shape[3], dx.dtype)
        path.forward(dy, w, bias, dx, _NO_CODE, back, False, False, _CHUNKS, turned=True)
    else:
        im2col.input_gradient(dy, w, dx, window)


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window,
    y: np.ndarray | None = None, dz: np.ndarray | None = None,
) -> None:
    """Write dw and db, the gradients of the kernel and of the bias of `forward`.

    With the output `y` of a ReLU, dy is the gradient of that output; then the gradient of x * w + b
    is also written to `dz`, if it is given.
    """
    _check(x, dw, db, dy, window)
    if y is not None:
        check(dy=(dy, y.shape), y=(y, y.shape), **({} if dz is None else {"dz": (dz, y.shape)}))
    if FAST_PATHS and x.dtype == np.float32 and implicit.fits(window):
        implicit.kernel_gradient(x, dy, dw, db, window, y, dz, _CHUNKS)
        return
    if y is not None:
        dz = np.empty_like(dy) if dz is None else dz
        elementwise.relu_gradient(dy, y, dz)
        dy = dz
    im2col.kernel_gradient(x, dy, dw, db, window)


def pooled_gradients(
    x: np.ndarray, dy: np.ndarray, code: np.ndarray, w: np.ndarray, dw: np.ndarray, db: np.ndarray,
    dx: np.ndarray | None, window: Window,
) -> None:
    """Write the gradients of `forward` with a code; dx is None where it is not asked."""
    _check(x, w, db, dy, window, code)
    _check(x if dx is None else dx, dw, db, dy, window, code)
    if FAST_PATHS and x.dtype == np.float32 and pooled.fits(window):
        pooled.gradients(x, dy, code, w, dw, db, dx, window, _CHUNKS)
        return
    whole = np.empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
    nonzero = np.where(code == ZEROED, x.dtype.type(0), dy)
    pooling.backward(nonzero, code % ZEROED, whole, _pool_window(window))
    kernel_gradient(x, whole, dw, db, window)
    if dx is not None:
        input_gradient(whole, w, dx, window)


def _check(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, y: np.ndarray, window: Window,
    code: np.ndarray | None = None,
) -> None:
    """Raise where shapes do not fit together; with a `code`, y is what is left after pooling."""
    (*_, channels, filters), halved = w.shape, 1 if code is None else 2
    shape = (len(x), window.out_h // halved, window.out_w // halved, filters)
    check(
        x=(x, (len(x), window.height, window.width, channels)), y=(y, shape),
        w=(w, (window.kernel_h, window.kernel_w, channels, filters)),
        **({} if b is None else {"b": (b, (filters,))}),
    )
    if code is not None:
        check(code=(code, shape))


def _fast_path(x: np.ndarray, window: Window) -> Any:
    """Return the module whose `forward` is the fastest for a convolution, or None."""
    if not FAST_PATHS or x.dtype != np.float32:
        return None
    if winograd.fits(window, x.shape[3]):
        return winograd
    return implicit if implicit.fits(window) else None


def _pool_window(window: Window) -> Window:
    return slide((window.out_h, window.out_w), (2, 2), (2, 2), "valid")
