"""Depthwise convolution and its gradients, compared with the definition."""

import naive
import numpy as np
import pytest
from kernels.arrays import DTYPES, empty, integers, normal
from tolerances import assert_close, assert_same_bits

from minicnn.kernels.conv import depthwise
from minicnn.kernels.window import slide

# n, (height, width), kernel, strides, padding, dilation, channels, multiplier
TABLE = {
    "3x3": (2, (5, 7), (3, 3), (1, 1), "same", (1, 1), 5, 1),
    "channels around a vector": (1, (4, 3), (3, 3), (1, 1), "valid", (1, 1), 33, 1),
    "complete vectors": (1, (4, 3), (2, 2), (1, 1), "same", (1, 1), 32, 1),
    "one channel": (3, (6, 5), (3, 2), (1, 1), "same", (1, 1), 1, 1),
    "strides": (2, (9, 8), (3, 3), (2, 3), "same", (1, 1), 3, 1),
    "stride above the window": (2, (9, 8), (2, 1), (3, 4), "valid", (1, 1), 3, 1),
    "stride above the window, same": (2, (8, 9), (1, 2), (3, 4), "same", (1, 1), 3, 1),
    "dilated": (2, (7, 9), (3, 2), (1, 1), "same", (2, 3), 4, 1),
    "dilated, strides": (2, (9, 7), (2, 3), (2, 2), "valid", (3, 2), 4, 1),
    "several filters": (2, (5, 4), (3, 3), (1, 2), "same", (1, 1), 3, 4),
    "padded unevenly": (2, (6, 8), (3, 4), (2, 1), ((1, 1), (0, 3)), (1, 1), 3, 1),
    "padded beyond the window": (2, (3, 2), (2, 1), (1, 2), ((2, 0), (3, 1)), (1, 1), 3, 2),
    "window larger than the image": (2, (2, 3), (5, 7), (1, 1), "same", (1, 1), 2, 1),
    "the whole image": (2, (4, 5), (4, 5), (1, 1), "valid", (1, 1), 2, 3),
    "more images than chunks": (19, (3, 3), (2, 2), (1, 1), "valid", (1, 1), 2, 1),
    "no images": (0, (3, 3), (2, 2), (1, 1), "valid", (1, 1), 2, 1),
}
by_table = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def arrays(case, dtype, numbers=normal):
    """Return x, w, b, dy and the window of a case."""
    n, size, kernel, strides, padding, dilation, channels, multiplier = case
    window = slide(size, kernel, strides, padding, dilation)
    rng = np.random.default_rng(0)
    shapes = (
        (n, *size, channels), (*kernel, channels, multiplier), (channels * multiplier,),
        (n, window.out_h, window.out_w, channels * multiplier),
    )
    return *(numbers(rng, shape, dtype) for shape in shapes), window


def results(x, w, b, dy, window, rectify=False):
    """Return y, dx and dw."""
    y, dx, dw = (empty(array.shape, x.dtype) for array in (dy, x, w))
    depthwise.forward(x, w, b, y, window, rectify)
    depthwise.input_gradient(dy, w, dx, window)
    depthwise.kernel_gradient(x, dy, dw, window)
    return y, dx, dw


@by_dtype
@by_table
def test_table(case, dtype):
    x, w, b, dy, window = arrays(case, dtype)
    place = case[3:6]
    y, dx, dw = results(x, w, b, dy, window)
    size = naive.depthwise_conv2d(abs(x), abs(w), abs(b), *place)
    assert_close(y, naive.depthwise_conv2d(x, w, b, *place), size)
    expected = naive.depthwise_conv2d_backward(x, w, dy, *place)
    sizes = naive.depthwise_conv2d_backward(abs(x), abs(w), abs(dy), *place)
    assert_close(dx, expected[0], sizes[0])
    assert_close(dw, expected[1], sizes[1])


@by_dtype
@pytest.mark.parametrize("name", ["3x3", "several filters", "dilated, strides"])
def test_sums_of_integers_are_exact(name, dtype):
    case = TABLE[name]
    x, w, b, dy, window = arrays(case, dtype, integers)
    place = case[3:6]
    y, dx, dw = results(x, w, b, dy, window)
    expected = naive.depthwise_conv2d_backward(x, w, dy, *place)
    for actual, right in zip(
        (y, dx, dw), (naive.depthwise_conv2d(x, w, b, *place), *expected[:2]), strict=True
    ):
        np.testing.assert_array_equal(actual, right)


@by_dtype
def test_relu_in_the_same_pass_keeps_nan(dtype):
    x, w, b, dy, window = arrays(TABLE["3x3"], dtype)
    x = x.copy()
    x[0, 2, 2, 1] = np.nan
    plain, rectified = (results(x, w, b, dy, window, rectify)[0] for rectify in (False, True))
    assert np.isnan(plain[0, 1:4, 1:4, 1]).all()
    assert_same_bits(rectified, np.where(plain <= 0, plain.dtype.type(0), plain))


@by_dtype
@pytest.mark.parametrize("lay", [np.asfortranarray, lambda a: np.stack([a, -a], -1)[..., 0]])
def test_any_order_of_the_inputs(lay, dtype):
    x, w, b, dy, window = arrays(TABLE["several filters"], dtype)
    expected = results(x, w, b, dy, window)
    for one, other in zip(results(*map(lay, (x, w, b, dy)), window), expected, strict=True):
        assert_same_bits(one, other)


@by_dtype
@pytest.mark.parametrize("name", ["strides", "several filters", "more images than chunks"])
def test_threads_do_not_change_bits(by_threads, name, dtype):
    case = arrays(TABLE[name], dtype)
    for one, *others in zip(*by_threads(lambda: results(*case)), strict=True):
        assert_same_bits(one, *others)


def test_the_gradient_of_the_kernel_is_a_sum_of_short_sums():
    """Of 2 million equal terms: one float32 sum in order would be off by a percent."""
    x = np.full((500, 64, 64, 1), 0.1, np.float32)
    window = slide((64, 64), (1, 1), (1, 1), "valid")
    dw = empty((1, 1, 1, 1), np.float32)
    depthwise.kernel_gradient(x, np.ones_like(x), dw, window)
    np.testing.assert_allclose(dw.item(), 500 * 64 * 64 * float(np.float32(0.1)), rtol=1e-6)


@pytest.mark.parametrize("wrong", ["x", "w", "b", "y", "dtype"])
def test_arrays_that_do_not_fit_are_refused(wrong):
    """Kernels do not check bounds."""
    x, w, b, dy, window = arrays(TABLE["several filters"], "float32")
    given = {"x": x, "w": w, "b": b, "y": np.empty_like(dy)}
    if wrong == "dtype":
        given["b"] = b.astype(np.float64)
    else:
        given[wrong] = given[wrong][..., :-1].copy()
    with pytest.raises(ValueError, match="is needed"):
        depthwise.forward(*given.values(), window)
