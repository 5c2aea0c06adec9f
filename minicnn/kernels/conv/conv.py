"""Convolution and its gradients. This module selects the algorithm.

    y = x * w + b        x (N, H, W, C)   w (KH, KW, C, F)   b (F,)   y (N, OH, OW, F)

`forward`, `input_gradient`, `kernel_gradient` and `pooled_gradients` use the fastest algorithm that
supports the configuration: `winograd`, `implicit` or `pooled`, else the general one, `im2col`.
"""

from typing import Any

import numpy as np

from minicnn.kernels import elementwise, pooling
from minicnn.kernels.conv import im2col, implicit, pooled, winograd
from minicnn.kernels.simd import ZEROED
from minicnn.kernels.threads import CHUNKS, check, depends_on_values, step
from minicnn.kernels.window import Window, slide

FAST_PATHS = True  # False: always use the general algorithm, as a reference in tests

_NO_CODE = np.empty((0, 0, 0, 0), np.uint8)


def forward(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, y: np.ndarray, window: Window,
    relu: bool = False, code: np.ndarray | None = None, packed: np.ndarray | None = None,
) -> None:
    """Write y = x * w + b, with ReLU if `relu`; with ReLU and 2x2 max pooling if `code` is given.

    With `code`, y and code have the shape (N, OH // 2, OW // 2, F). The code is the index of the
    maximum of the four elements, or `ZEROED` if ReLU is zero; `pooled_gradients` needs it.

    `packed` is the result of `packed_filters`, if w never changes.
    """
    _check(x, w, b, y, window, code)
    path, pool = _fast_path(w.dtype, window, *w.shape[2:]), code is not None
    if path is not None:
        path.forward(x, w, b, y, _NO_CODE if code is None else code, window, relu or pool, pool,
                     CHUNKS, packed=packed)
        return
    whole = y if code is None else np.empty(
        (len(x), window.out_h, window.out_w, w.shape[3]), x.dtype
    )
    im2col.forward(x, w, b, whole, window)
    if code is not None:
        pooling.forward(whole, y, code, _pool_window(window))
        depends_on_values()  # a tape does not hold what NumPy does
        code[y <= 0] = ZEROED
    if relu or pool:
        elementwise.relu(y, y)


def packed_filters(w: np.ndarray, window: Window) -> np.ndarray | None:
    """Return w in the layout that the algorithm for the window reads; None if it reads w itself."""
    path = _fast_path(w.dtype, window, *w.shape[2:])
    return None if path is None else path.pack(w)


def input_gradient(
    dy: np.ndarray, w: np.ndarray, dx: np.ndarray, window: Window, c: np.ndarray | None = None
) -> None:
    """Write dx, the gradient of the input x; dy is the gradient of x * w + b.

    A transposed convolution is the same, plus a bias `c` (C,).

    With stride 1, dx is a convolution of dy: with padding (kernel size - 1 - padding), and with the
    kernel rotated by 180 degrees and its channels and filters exchanged.
    """
    _check(dx, w, None, dy, window)
    high = (window.kernel_h - 1) * window.dilation_h
    wide = (window.kernel_w - 1) * window.dilation_w
    back = window._replace(
        height=window.out_h, width=window.out_w, out_h=window.height, out_w=window.width,
        top=high - window.top, left=wide - window.left,
    )
    is_convolution = (  # of dy with zeros around it: padding beyond the window would cut dy
        window.stride_h == window.stride_w == 1
        and 0 <= back.top <= back.out_h - back.height + high
        and 0 <= back.left <= back.out_w - back.width + wide
    )
    path = _fast_path(dy.dtype, back, dy.shape[3], dx.shape[3]) if is_convolution else None
    c = np.zeros(dx.shape[3], dx.dtype) if c is None else c
    check(dx=(dx, dx.shape), c=(c, dx.shape[3:]))
    if path is not None:
        path.forward(dy, w, c, dx, _NO_CODE, back, False, False, CHUNKS, turned=True)
    else:
        im2col.input_gradient(dy, w, c, dx, window)


def kernel_gradient(
    x: np.ndarray, dy: np.ndarray, dw: np.ndarray, db: np.ndarray, window: Window,
    y: np.ndarray | None = None, dz: np.ndarray | None = None,
) -> None:
    """Write dw and db, the gradients of the kernel and the bias.

    If `y` is given, it is the output of `forward` with ReLU, and dy is its gradient. The gradient
    of x * w + b is then also written to `dz`, if that is given.
    """
    _check(x, dw, db, dy, window)
    if y is not None:
        check(dy=(dy, y.shape), y=(y, y.shape), **({} if dz is None else {"dz": (dz, y.shape)}))
    is_fast = FAST_PATHS and x.dtype == np.float32
    is_winograd = is_fast and winograd.fits_gradient(window, *dw.shape[2:])
    if is_fast and not is_winograd:
        implicit.kernel_gradient(x, dy, dw, db, window, y, dz, CHUNKS)
        return
    if y is not None:
        dz = np.empty_like(dy) if dz is None else dz
        elementwise.relu_gradient(dy, y, dz)
        dy = dz
    if is_winograd:
        winograd.kernel_gradient(x, dy, dw, db, window, CHUNKS)
    else:
        im2col.kernel_gradient(x, dy, dw, db, window)


def pooled_gradients(
    x: np.ndarray, dy: np.ndarray, code: np.ndarray, w: np.ndarray, dw: np.ndarray, db: np.ndarray,
    dx: np.ndarray | None, window: Window,
) -> None:
    """Write the gradients of `forward` with a `code`; dx may be None if it is not needed."""
    _check(x, w, db, dy, window, code)
    _check(x if dx is None else dx, dw, db, dy, window, code)
    if FAST_PATHS and x.dtype == np.float32 and pooled.fits(window):
        pooled.gradients(x, dy, code, w, dw, db, dx, window, CHUNKS)
        return
    whole = np.empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
    nonzero, winner = np.empty_like(dy), np.empty_like(code)
    step(_unmask, dy, code, nonzero, winner)
    pooling.backward(nonzero, winner, whole, _pool_window(window))
    kernel_gradient(x, whole, dw, db, window)
    if dx is not None:
        input_gradient(whole, w, dx, window)


def _unmask(dy: np.ndarray, code: np.ndarray, nonzero: np.ndarray, winner: np.ndarray) -> None:
    """Write dy, or 0 where ReLU is zero, and the positions of the maxima."""
    nonzero[...] = np.where(code == ZEROED, 0, dy)
    winner[...] = code % ZEROED


def _check(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, y: np.ndarray, window: Window,
    code: np.ndarray | None = None,
) -> None:
    """Raise ValueError if shapes do not match; with a `code`, y is the pooled output."""
    (*_, channels, filters), halved = w.shape, 1 if code is None else 2
    shape = (len(x), window.out_h // halved, window.out_w // halved, filters)
    check(
        x=(x, (len(x), window.height, window.width, channels)), y=(y, shape),
        w=(w, (window.kernel_h, window.kernel_w, channels, filters)),
        **({} if b is None else {"b": (b, (filters,))}),
    )
    if code is not None:
        check(code=(code, shape))


def _fast_path(dtype: Any, window: Window, channels: int, filters: int) -> Any:
    """Return the module with the fastest `forward` for a convolution, or None."""
    if not FAST_PATHS or dtype != np.float32:
        return None
    return winograd if winograd.fits(window, channels, filters) else implicit


def _pool_window(window: Window) -> Window:
    return slide((window.out_h, window.out_w), (2, 2), (2, 2), "valid")
