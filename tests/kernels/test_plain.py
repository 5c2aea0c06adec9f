"""Compiled kernels agree with the same sources run as plain Python."""

import importlib

import numpy as np
import pytest
from kernels import plain
from kernels.arrays import LITTLE_GAIN, empty, normal, read_only
from numpy.testing import assert_array_equal
from tolerances import assert_close

from minicnn.kernels.window import slide

CONV, DENSE = "conv.conv", "dense.dense"

# The hash of dropout overflows, on all threads; np.errstate applies to the caller's only.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")


@pytest.fixture(scope="module")
def both():
    """The kernel modules by name, compiled and as plain Python."""
    compiled = {name: importlib.import_module(f"minicnn.kernels.{name}") for name in plain.NAMES}
    python = plain.kernels()
    python["conv.winograd"]._LEAST_GAIN = LITTLE_GAIN
    python[DENSE]._LEAST_LISTED = 0
    return compiled, python


def test_plain_kernels_are_modules_of_their_own(both):
    compiled, python = both
    assert python["dense.dense"].lists is python["dense.lists"] is not compiled["dense.lists"]
    assert importlib.import_module("minicnn.kernels.dense.dense") is compiled["dense.dense"]


def check(both, module, door, reads, shapes, *options, dtype="float32", last=()):
    """Check that a function writes the same outputs compiled and as plain Python, and return them.

    `shapes` are the shapes of the outputs by name; a `code` is an array of bytes. The outputs named
    in `last` are passed as keyword arguments.
    """
    results = []
    for modules in both:
        writes = [
            shape if shape is None else empty(shape, np.uint8 if name == "code" else dtype)
            for name, shape in shapes.items()
        ]
        first = writes[: len(writes) - len(last)]
        named = dict(zip(last, writes[len(first) :], strict=True))
        getattr(modules[module], door)(*reads, *first, *options, **named)
        results.append(writes)
    for name, expected, actual in zip(shapes, *results, strict=True):
        if name == "code":
            assert_array_equal(actual, expected)
        elif expected is not None:
            assert_close(actual, expected, max(1, np.nanmax(np.abs(expected))))
    return results[1]


def convolution(n, c, f, size, kernel, strides=(1, 1), padding="same", dilation=(1, 1),
                dtype="float32"):
    rng, window = np.random.default_rng(0), slide(size, kernel, strides, padding, dilation)
    x, w, b = (normal(rng, shape, dtype) for shape in ((n, *size, c), (*kernel, c, f), (f,)))
    return x, w, b, normal(rng, (n, window.out_h, window.out_w, f), dtype), window


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", [
    ((2, 3, 5), (4, 5), (3, 2), (1, 2)),
    ((1, 2, 17), (5, 4), (2, 2), (1, 1), "valid", (1, 2)),
    ((2, 3, 2), (3, 3), (1, 1)),
])
def test_general_convolution(both, monkeypatch, case, dtype):
    sizes, *options = case
    x, w, b, dy, window = convolution(*sizes, *options, dtype=dtype)
    for modules in both:
        monkeypatch.setattr(modules[CONV], "FAST_PATHS", False)
    for relu in (False, True):
        check(both, CONV, "forward", (x, w, b), {"y": dy.shape}, window, relu, dtype=dtype)
    check(both, CONV, "input_gradient", (dy, w), {"dx": x.shape}, window, dtype=dtype)
    check(both, CONV, "kernel_gradient", (x, dy), {"dw": w.shape, "db": b.shape}, window,
          dtype=dtype)


@pytest.mark.parametrize(("case", "dtype"), [
    (((2, 2, 11), (5, 5), (3, 3)), "float32"),  # implicit
    (((1, 1, 16), (4, 6), (2, 3), (2, 1)), "float32"),
    (((2, 3, 33), (5, 6), (1, 1)), "float32"),
    (((1, 2, 5), (7, 5), (1, 2), (3, 2)), "float32"),
    (((1, 3, 3), (5, 7), (3, 2), (1, 1), "valid"), "float32"),
    (((1, 1, 2), (2, 150), (1, 3), (1, 1), "valid"), "float32"),
    (((2, 9, 9), (6, 5), (3, 3)), "float32"),  # Winograd
    (((1, 9, 8), (5, 6), (5, 5)), "float32"),
    (((1, 2, 2), (5, 4), (2, 2), (1, 1), "same", (1, 2)), "float32"),  # general
    (((1, 2, 3), (4, 5), (3, 3)), "float64"),
])
def test_convolution(both, case, dtype):
    sizes, *options = case
    x, w, b, dy, window = convolution(*sizes, *options, dtype=dtype)
    x = x.copy()
    x[0, :4, :3] = 0  # some patches are blank
    pooled = (len(x), window.out_h // 2, window.out_w // 2, len(b))
    for relu in (False, True):
        check(both, CONV, "forward", (x, w, b), {"y": dy.shape}, window, relu, dtype=dtype)
    _, code = check(both, CONV, "forward", (x, w, b), {"y": pooled, "code": pooled}, window, True,
                    dtype=dtype, last=["code"])
    check(both, CONV, "input_gradient", (dy, w), {"dx": x.shape}, window, dtype=dtype)
    gradient = normal(np.random.default_rng(1), pooled, dtype)
    for dx in (x.shape, None):
        check(both, CONV, "pooled_gradients", (x, gradient, read_only(code), w),
              {"dw": w.shape, "db": b.shape, "dx": dx}, window, dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("channels", "more", "options"), [
    (17, 1, ((3, 3), (1, 1), "same")),
    (3, 2, ((3, 2), (2, 3), "same", (1, 2))),
    (2, 1, ((2, 2), (3, 1), "valid")),
])
def test_depthwise_convolution(both, channels, more, options, dtype):
    rng, window = np.random.default_rng(0), slide((4, 5), *options)
    shapes = (2, 4, 5, channels), (*options[0], channels, more), (channels * more,)
    x, w, b = (normal(rng, shape, dtype) for shape in shapes)
    dy = normal(rng, (2, window.out_h, window.out_w, channels * more), dtype)
    for rectify in (False, True):
        check(both, "conv.depthwise", "forward", (x, w, b), {"y": dy.shape}, window, rectify,
              dtype=dtype)
    check(both, "conv.depthwise", "input_gradient", (dy, w), {"dx": x.shape}, window, dtype=dtype)
    check(both, "conv.depthwise", "kernel_gradient", (x, dy), {"dw": w.shape}, window, dtype=dtype)


@pytest.mark.parametrize(("n", "channels", "filters", "size"), [
    (1, 9, 5, (5, 6)), (2, 3, 33, (3, 4)), (3, 17, 2, (2, 2)),
])
def test_gradient_of_a_kernel_by_winograd(both, n, channels, filters, size):
    x, w, b, dy, window = convolution(n, channels, filters, size, (3, 3))
    check(both, "conv.winograd", "kernel_gradient", (x, dy), {"dw": w.shape, "db": b.shape},
          window, 2)


@pytest.mark.parametrize(("channels", "kernel"), [
    (16, (3, 3)), (16, (5, 5)), (17, (1, 3)), (8, (2, 5)), (8, (2, 3)), (8, (1, 7)), (8, (2, 2)),
    (4, (3, 1)),
])
def test_lists_of_every_length(both, channels, kernel):
    x, w, b, _, window = convolution(1, channels, 3, (4, 4), kernel)
    rng = np.random.default_rng(1)
    dy, code = normal(rng, (1, 2, 2, 3), "float32"), rng.integers(0, 5, (1, 2, 2, 3), np.uint8)
    check(both, CONV, "pooled_gradients", (x, dy, code, w),
          {"dw": w.shape, "db": b.shape, "dx": x.shape}, window)


def test_ties_and_nan_of_fused_pooling(both):
    for filters in (8, 3):
        x = np.ones((1, 4, 4, 1), np.float32)
        x[0, 3, 3] = np.nan
        w, b = np.ones((1, 1, 1, filters), np.float32), np.zeros(filters, np.float32)
        shape = (1, 2, 2, filters)
        y, code = check(both, CONV, "forward", (x, w, b), {"y": shape, "code": shape},
                        slide((4, 4), (1, 1), (1, 1), "same"), True, last=["code"])
        assert code[0, :, :, 0].tolist() == [[0, 0], [0, 3]]
        assert np.isnan(y[0, 1, 1]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("n", "d", "u"), [(2, 17, 35), (5, 17, 67), (9, 18, 3), (400, 2, 2)])
def test_dense(both, n, d, u, dtype):
    rng = np.random.default_rng(0)
    x, w, b, dy = (normal(rng, shape, dtype) for shape in ((n, d), (d, u), (u,), (n, u)))
    for relu, dropout in ((False, None), (True, None), (True, (5, 0.4, 3, 1))):
        check(both, DENSE, "forward", (x, w, b), {"y": dy.shape}, relu, dropout, dtype=dtype)
    kernels = [modules[DENSE].packed_kernel(w) for modules in both]
    assert_array_equal(*kernels)
    check(both, DENSE, "forward", (x, w, b), {"y": dy.shape}, False, None, kernels[0], dtype=dtype)
    if dtype == "float32":
        half = both[0][DENSE].packed_kernel(w.astype(np.float16))
        check(both, DENSE, "forward", (x, w, b), {"y": dy.shape}, True, None, half)
    few = np.where(dy < 0.3, 0, dy)
    for gradient, dx in ((dy, x.shape), (few, x.shape), (few, None)):
        check(both, DENSE, "gradients", (x, gradient, w), {"dw": w.shape, "dx": dx}, True,
              dtype=dtype)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_max_pooling(both, padding):
    rng, window = np.random.default_rng(0), slide((5, 4), (3, 2), (2, 1), padding)
    x = rng.integers(0, 3, (2, 5, 4, 3)).astype(np.float32)  # with ties
    shape = (2, window.out_h, window.out_w, 3)
    dy = normal(rng, shape, "float32")
    _, winner = check(both, "pooling", "forward", (x,), {"y": shape, "code": shape}, window)
    check(both, "pooling", "backward", (dy, winner), {"dx": x.shape}, window)


def test_warp(both):
    rng = np.random.default_rng(0)
    x, maps = normal(rng, (5, 4, 3, 2), "float32"), normal(rng, (5, 2, 3), "float64")
    check(both, "warp", "warp", (x, maps), {"y": (5, 3, 5, 2)})


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_average_pooling(both, padding):
    rng, window = np.random.default_rng(0), slide((5, 4), (3, 2), (2, 1), padding)
    x = normal(rng, (2, 5, 4, 3), "float32")
    dy = normal(rng, (2, window.out_h, window.out_w, 3), "float32")
    check(both, "pooling", "mean", (x,), {"y": dy.shape}, window)
    check(both, "pooling", "mean_gradient", (dy,), {"dx": x.shape}, window)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (300, 3), (5, 33)])
def test_batch_normalization(both, shape, dtype):
    rng = np.random.default_rng(0)
    x, dy = (normal(rng, shape, dtype) for _ in range(2))
    factors = normal(rng, (5, shape[1]), dtype)
    for relu in (False, True):
        check(both, "normalize", "scale", (x, factors[:3]), {"y": shape}, relu, dtype=dtype)
        check(both, "normalize", "input_gradient", (x, dy, factors), {"dx": shape}, relu,
              dtype=dtype)
        first, second = (m["normalize"].gradient_sums(x, dy, factors[:3], relu) for m in both)
        assert_close(second.astype(dtype), first, len(x))
    first, second = (m["normalize"].moments(x) for m in both)
    assert_close(second.astype(dtype), first, len(x))


def test_element_by_element(both):
    x, y = normal(np.random.default_rng(0), (2, 3, 4), "float32")
    check(both, "elementwise", "relu", (x,), {"y": x.shape})
    lines = normal(np.random.default_rng(0), (2, 17, 19), "float32")
    assert_array_equal(*(modules["elementwise"].axis_to_end(lines, 1) for modules in both))
    check(both, "elementwise", "relu_gradient", (x, y), {"dx": x.shape}, 2.0)
    check(both, "elementwise", "relu", (x,), {"y": x.shape}, 0.2)
    for flag in (False, True):
        check(both, "elementwise", "softmax", (x,), {"y": x.shape}, flag)
        check(both, "elementwise", "softmax", (lines,), {"y": lines.shape}, flag)
        for numbers in (x, x.astype(np.float64)):
            for dy in (None, numbers):
                for door, *options in (("squash", flag), ("gelu",)):
                    check(both, "elementwise", door, (numbers,), {"y": x.shape}, dy, *options,
                          dtype=str(numbers.dtype))
    check(both, "elementwise", "dropout", (x,), {"y": x.shape}, 2**63 + 1, 0.5, 7)
    for rows in (2, 400):  # one block, and several
        check(both, "elementwise", "sum_rows", (x[:1].repeat(rows, 0),), {"db": 4})


@pytest.mark.parametrize(("rule", "states", "options"), [
    ("sgd", 0, (0.1, 0.01)),
    ("momentum", 1, (0.1, 0.01, 0.9, False)),
    ("momentum", 1, (0.1, 0.01, 0.9, True)),
    ("adam", 2, (0.1, 0.01, 0.9, 0.1, 0.99, 0.01, 1e-8)),
])
def test_update(both, rule, states, options):
    rng = np.random.default_rng(0)
    start = np.abs(rng.standard_normal((2 + states, 5), np.float32))
    results = []
    for modules in both:
        w, g, *arrays = start.copy()
        getattr(modules["update"], rule)(w, g, *arrays, options)
        results.append(np.stack([w, *arrays]))
    assert_close(results[1], results[0], 1)
