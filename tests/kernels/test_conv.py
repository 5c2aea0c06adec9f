"""Tests of the general convolution; test_fast_paths.py tests the other algorithms."""

import threading
import tracemalloc
from typing import NamedTuple

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.arrays import DTYPES, empty, normal
from numpy.testing import assert_array_equal
from tolerances import RELATIVE, assert_close, assert_same_bits

from minicnn.kernels.conv import conv, im2col
from minicnn.kernels.window import slide


@pytest.fixture(autouse=True)
def general_path(monkeypatch):
    monkeypatch.setattr(conv, "FAST_PATHS", False)


class Case(NamedTuple):
    """The shape of a convolution: n images of c channels, f filters."""

    n: int
    c: int
    f: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    padding: str = "valid"
    dilation: tuple[int, int] = (1, 1)

    @property
    def window(self):
        return slide(self.size, self.kernel, self.strides, self.padding, self.dilation)

    def draw(self, dtype, seed=0):
        """Return x, w, b, dy."""
        rng, window = np.random.default_rng(seed), self.window
        return [
            normal(rng, shape, dtype)
            for shape in [
                (self.n, *self.size, self.c),
                (*self.kernel, self.c, self.f),
                (self.f,),
                (self.n, window.out_h, window.out_w, self.f),
            ]
        ]


TABLE = {
    "one channel, 5x5 same": Case(2, 1, 32, (28, 28), (5, 5), padding="same"),
    "many channels, 5x5 same": Case(2, 32, 64, (14, 14), (5, 5), padding="same"),
    "1x1": Case(3, 17, 5, (6, 7), (1, 1)),
    "1x1, stride 2": Case(3, 5, 17, (6, 7), (1, 1), (2, 2)),
    "1x1, stride 2 in one direction": Case(3, 5, 17, (6, 7), (1, 1), (1, 2)),
    "stride below the window": Case(3, 3, 4, (9, 11), (3, 4), (2, 3), "same"),
    "stride above the window": Case(3, 3, 4, (11, 9), (2, 2), (3, 4), "valid"),
    "even kernel, same": Case(1, 4, 16, (8, 5), (4, 2), padding="same"),
    "dilated": Case(2, 3, 8, (12, 10), (3, 3), dilation=(2, 3)),
    "dilated with strides, same": Case(2, 3, 8, (12, 10), (3, 2), (2, 3), "same", (3, 2)),
    "dilated in one direction, wider than the image": Case(
        2, 3, 8, (4, 5), (3, 3), padding="same", dilation=(1, 7)
    ),
    "padded unevenly": Case(2, 3, 4, (6, 8), (3, 4), (2, 1), ((1, 1), (0, 3))),
    "padded beyond the window": Case(2, 3, 4, (3, 2), (2, 1), (1, 2), ((2, 0), (3, 1))),
    "window as large as the image": Case(5, 7, 9, (6, 5), (6, 5)),
    "window larger than the image": Case(2, 3, 4, (2, 3), (5, 7), padding="same"),
    "one pixel": Case(1, 1, 1, (1, 1), (1, 1)),
    "a deep sum": Case(1, 70, 20, (4, 4), (3, 3), padding="same"),
}
by_table = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)

# Sixteen chunks of several images, blocks that end inside an image, and partial tiles.
LARGE = Case(19, 3, 20, (13, 11), (3, 3), (1, 2), "same")


@st.composite
def cases(draw, most_images, most_channels, most_windows):
    padding = draw(st.sampled_from(["same", "valid"]))
    axes = []
    for _ in range(2):
        kernel, stride, dilation = (draw(st.integers(1, most)) for most in (4, 5, 3))
        size = draw(st.integers(1, most_windows))
        if padding == "valid":
            size += (kernel - 1) * dilation  # at least one window fits
        axes.append((size, kernel, stride, dilation))
    size, kernel, strides, dilation = zip(*axes, strict=True)
    n, c, f = (draw(st.integers(1, most)) for most in (most_images, most_channels, most_channels))
    return Case(n, c, f, size, kernel, strides, padding, dilation)


def forward(x, w, b, window, relu=False):
    y = empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
    conv.forward(x, w, b, y, window, relu)
    return y


def input_gradient(dy, w, window):
    dx = empty((len(dy), window.height, window.width, w.shape[2]), dy.dtype)
    conv.input_gradient(dy, w, dx, window)
    return dx


def kernel_gradient(x, dy, window):
    filters = dy.shape[3]
    dw = empty((window.kernel_h, window.kernel_w, x.shape[3], filters), dy.dtype)
    db = empty((filters,), dy.dtype)
    conv.kernel_gradient(x, dy, dw, db, window)
    return dw, db


def all_three(case, dtype="float32"):
    x, w, b, dy = case.draw(dtype)
    window = case.window
    dw, db = kernel_gradient(x, dy, window)
    return [forward(x, w, b, window), input_gradient(dy, w, window), dw, db]


def assert_agrees_with_the_definition(case, dtype, seed=0):
    x, w, b, dy = case.draw(dtype, seed)
    where = case.strides, case.padding, case.dilation
    x_, w_, b_, dy_ = (np.abs(array) for array in (x, w, b, dy))
    y = forward(x, w, b, case.window)
    assert_close(y, naive.conv2d(x, w, b, *where), naive.conv2d(x_, w_, b_, *where))
    gradients = [input_gradient(dy, w, case.window), *kernel_gradient(x, dy, case.window)]
    exact, magnitudes = (
        naive.conv2d_backward(*arrays, *where) for arrays in [(x, w, dy), (x_, w_, dy_)]
    )
    for actual, expected, magnitude in zip(gradients, exact, magnitudes, strict=True):
        assert_close(actual, expected, magnitude)


@by_dtype
@by_table
def test_table(case, dtype):
    assert_agrees_with_the_definition(case, dtype)


@settings(max_examples=40)
@given(
    case=cases(most_images=3, most_channels=5, most_windows=7),
    dtype=st.sampled_from(DTYPES),
    column_bytes=st.sampled_from([1, 500, 1 << 20]),
    least_positions=st.sampled_from([1, 5, 60]),
)
def test_any_configuration(case, dtype, column_bytes, least_positions):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(im2col, "_COLUMN_BYTES", column_bytes)
        patch.setattr(im2col, "_LEAST_POSITIONS", least_positions)
        assert_agrees_with_the_definition(case, dtype)


@settings(max_examples=30)
@given(case=cases(most_images=20, most_channels=40, most_windows=20), seed=st.integers(0, 9))
def test_gradients_are_the_adjoints(case, seed):
    """<f(x, w, b), g> = <x, dx> = <w, dw> if b = 0, and <b, db> if x = 0."""
    x, w, b, g = case.draw("float64", seed)
    window, zero = case.window, np.zeros_like
    y = forward(x, w, zero(b), window)
    dx, (dw, db) = input_gradient(g, w, window), kernel_gradient(x, g, window)
    limit = RELATIVE["float64"] * np.sum(np.abs(y * g))
    limit += RELATIVE["float64"] * np.abs(x).max() * np.abs(w).max() * np.abs(g).sum()
    assert abs(np.sum(y * g) - np.sum(x * dx)) <= limit
    assert abs(np.sum(y * g) - np.sum(w * dw)) <= limit
    bias = np.sum(forward(zero(x), w, b, window) * g)
    assert abs(bias - np.sum(b * db)) <= RELATIVE["float64"] * np.abs(b).max() * np.abs(g).sum()


@by_dtype
def test_blocks_do_not_change_bits(monkeypatch, dtype):
    whole = all_three(LARGE, dtype)
    for column_bytes in (1, 2000):
        monkeypatch.setattr(im2col, "_COLUMN_BYTES", column_bytes)
        for before, after in zip(whole, all_three(LARGE, dtype), strict=True):
            assert_same_bits(before, after)


@by_dtype
@pytest.mark.parametrize("n", [1, 16, 19, 40])
def test_threads_do_not_change_bits(by_threads, n, dtype):
    for results in zip(*by_threads(lambda: all_three(LARGE._replace(n=n), dtype)), strict=True):
        assert_same_bits(*results)


@by_dtype
def test_an_image_does_not_depend_on_its_batch(dtype):
    x, w, b, dy = LARGE.draw(dtype)
    y, dx = forward(x, w, b, LARGE.window), input_gradient(dy, w, LARGE.window)
    for images in [slice(0, 1), slice(18, 19), slice(3, 12)]:
        assert_same_bits(forward(x[images], w, b, LARGE.window), y[images])
        assert_same_bits(input_gradient(dy[images], w, LARGE.window), dx[images])


@by_dtype
@by_table
def test_relu_is_applied_to_the_sum(case, dtype):
    x, w, b, _ = case.draw(dtype)
    y = forward(x, w, b, case.window)
    assert_same_bits(forward(x, w, b, case.window, relu=True), np.where(y < 0, y.dtype.type(0), y))


@by_dtype
@by_table
@pytest.mark.parametrize("relu", [False, True])
def test_nan_spreads_to_the_windows_that_cover_it_and_no_further(case, dtype, relu):
    x, w, b, dy = (array.copy() for array in case.draw(dtype))
    where = case.strides, case.padding, case.dilation
    last, row, column = case.n - 1, case.size[0] // 2, case.size[1] - 1
    x[last, row, column, 0] = np.nan
    covered = naive.conv2d(np.isnan(x), np.ones_like(w), None, *where) > 0
    assert_array_equal(np.isnan(forward(x, w, b, case.window, relu)), covered)
    dy[last, 0, -1, -1] = np.nan
    reached, *_ = naive.conv2d_backward(x, np.ones_like(w), np.isnan(dy), *where)
    assert_array_equal(np.isnan(input_gradient(dy, w, case.window)), reached > 0)


@by_dtype
def test_nan_reaches_the_gradients_of_what_it_met(dtype):
    x, _, _, dy = (array.copy() for array in LARGE.draw(dtype))
    x[18, 6, 4, 1] = np.nan
    dw, db = kernel_gradient(x, dy, LARGE.window)
    assert np.isnan(dw[:, :, 1]).any()
    assert np.isfinite(dw[:, :, [0, 2]]).all()
    assert np.isfinite(db).all()
    x, dy = LARGE.draw(dtype)[0], dy.copy()
    dy[17, 3, 3, 19] = np.nan
    dw, db = kernel_gradient(x, dy, LARGE.window)
    assert_array_equal(np.isnan(db), np.arange(20) == 19)
    assert_array_equal(np.isnan(dw).all(axis=(0, 1, 2)), np.arange(20) == 19)
    assert np.isnan(dw).sum() == 27


@by_dtype
@pytest.mark.parametrize("name", ["1x1", "even kernel, same"])
def test_no_images(name, dtype):
    case = TABLE[name]._replace(n=0)
    x, w, b, dy = case.draw(dtype)
    assert forward(x, w, b, case.window, relu=True).size == 0
    dw, db = kernel_gradient(x, dy, case.window)
    assert_array_equal(dw, np.zeros_like(w))
    assert_array_equal(db, np.zeros_like(b))
    assert input_gradient(dy, w, case.window).size == 0


@by_dtype
def test_operands_may_lie_in_any_order(dtype):
    x, w, b, dy = LARGE.draw(dtype)
    x_, w_, dy_ = (np.asfortranarray(array) for array in (x, w, dy))
    assert_same_bits(forward(x_, w_, b, LARGE.window), forward(x, w, b, LARGE.window))
    assert_same_bits(input_gradient(dy_, w_, LARGE.window), input_gradient(dy, w, LARGE.window))
    for turned, straight in zip(
        kernel_gradient(x_, dy_, LARGE.window), kernel_gradient(x, dy, LARGE.window), strict=True
    ):
        assert_same_bits(turned, straight)


def peak_bytes(function):
    """Return the peak memory of a call, on a thread that has no scratch yet."""
    peaks = []

    def measure():
        tracemalloc.start()
        function()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()

    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
    return peaks[0]


@pytest.mark.parametrize(
    "case",
    [
        Case(8, 64, 64, (32, 32), (3, 3), padding="same"),  # all its columns would take 19 MB
        Case(8, 3, 64, (32, 32), (1, 1)),  # short columns, many filters
    ],
    ids=["3x3", "1x1"],
)
def test_memory_is_bounded_by_a_block_not_by_the_batch(set_threads, case):
    set_threads(1)  # so that all scratch belongs to the caller
    x, w, b, dy = case.draw("float32")
    y, dx, dw, db = np.empty_like(dy), np.empty_like(x), np.empty_like(w), np.empty_like(b)
    doors = {
        "forward": lambda: conv.forward(x, w, b, y, case.window),
        "input gradient": lambda: conv.input_gradient(dy, w, dx, case.window),
        "kernel gradient": lambda: conv.kernel_gradient(x, dy, dw, db, case.window),
    }
    for door in doors.values():
        door()  # compiles
    peaks = {name: peak_bytes(door) for name, door in doors.items()}
    assert max(peaks.values()) < 6e6, peaks
