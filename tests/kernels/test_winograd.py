"""Tests of the matrices of the Winograd transforms and of the code generated from them."""

import numba
import numpy as np
import pytest
from kernels.arrays import empty, normal
from tolerances import assert_close, assert_same_bits

from minicnn.kernels import threads
from minicnn.kernels.conv import conv, winograd
from minicnn.kernels.simd import LANES, PANEL, pointer
from minicnn.kernels.window import slide

A, B = 11 / 16, 23 / 16
AA, BB, C = A * A, B * B, 2 * (A * A - B * B)
# As in the docstring of `winograd`.
INPUTS = [
    [AA * BB, 0, -AA - BB, 0, 1, 0],
    [0, -A * BB, -BB, A, 1, 0],
    [0, A * BB, -BB, -A, 1, 0],
    [0, -AA * B, -AA, B, 1, 0],
    [0, AA * B, -AA, -B, 1, 0],
    [0, AA * BB, 0, -AA - BB, 0, 1],
]
OUTPUTS = [[1, 1, 1, 1, 1, 0], [0, A, -A, B, -B, 0], [0, AA, AA, BB, BB, 0],
           [0, A * AA, -A * AA, B * BB, -B * BB, 1]]
FILTERS = [
    [1 / (AA * BB), 0, 0], [1 / (AA * C), 1 / (A * C), 1 / C], [1 / (AA * C), -1 / (A * C), 1 / C],
    [-1 / (BB * C), -1 / (B * C), -1 / C], [-1 / (BB * C), 1 / (B * C), -1 / C], [0, 0, 1],
]


@numba.njit
def input_line(d, out, side):
    winograd._input_line(side, pointer(d, 0), LANES, pointer(out, 0), LANES)


@numba.njit
def output_line(m, out, side):
    winograd._output_line(side, pointer(m, 0), LANES, pointer(out, 0), LANES)


@numba.njit
def filter_line(g, out, side):
    winograd._filter_line(side, pointer(g, 0), LANES, pointer(out, 0), LANES)


@numba.njit
def gradient_line(y, out, side):
    winograd._gradient_line(side, pointer(y, 0), LANES, pointer(out, 0), LANES)


@numba.njit
def kernel_line(m, out, side):
    winograd._kernel_line(side, pointer(m, 0), LANES, pointer(out, 0), LANES)


def test_the_matrices_of_3x3_are_those_of_the_docstring():
    inputs, outputs, filters = winograd.matrices(3)
    np.testing.assert_allclose(inputs, INPUTS, rtol=1e-15)
    np.testing.assert_allclose(outputs, OUTPUTS, rtol=1e-15)
    np.testing.assert_allclose(filters, FILTERS, rtol=1e-14)


@pytest.mark.parametrize("size", [3, 5])
def test_the_points_are_exact_in_float32(size):
    for matrix in winograd.matrices(size)[:2]:
        np.testing.assert_array_equal(matrix, matrix.astype(np.float32))


@pytest.mark.parametrize("size", [3, 5])
def test_the_matrices_compute_a_correlation(size):
    inputs, outputs, filters = winograd.matrices(size)
    rng = np.random.default_rng(0)
    d, g = rng.integers(-9, 9, size + 3), rng.integers(-9, 9, size)
    computed = outputs @ ((filters @ g) * (inputs @ d))
    np.testing.assert_allclose(computed, np.correlate(d, g, "valid"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_the_code_multiplies_by_the_matrices(size):
    inputs, outputs, filters = winograd.matrices(size)
    side = size + 3
    pairs = [(inputs, input_line), (outputs, output_line), (filters, filter_line)]
    if size == 3:
        pairs += [(outputs.T, gradient_line), (filters.T, kernel_line)]
    for matrix, function in pairs:
        d = np.random.default_rng(0).normal(size=(matrix.shape[1], LANES)).astype(np.float32)
        out = np.zeros((len(matrix), LANES), np.float32)
        function(d, out, side)
        magnitude = abs(matrix) @ abs(d)
        np.testing.assert_array_less(abs(out - matrix @ d), 3e-7 * magnitude + 1e-30)


# Few images


@pytest.mark.parametrize(("n", "filters", "chunks"), [
    (1, 1, 3), (1, 2 * PANEL, 4), (1, 3 * PANEL + 1, 4), (2, 1, 4), (2, 2 * PANEL, 4),
    (2, 3 * PANEL + 1, 4), (3, 1, 3), (3, 2 * PANEL, 3),
])
@pytest.mark.parametrize("pool", [False, True])
def test_few_images_are_split_into_filters_and_tiles(monkeypatch, by_threads, n, filters, chunks,
                                                     pool):
    rng, window = np.random.default_rng(0), slide((9, 8), (3, 3), (1, 1), "same")
    x, w, b = (normal(rng, shape, "float32")
               for shape in ((n, 9, 8, 5), (3, 3, 5, filters), (filters,)))
    shape = (n, 4, 4, filters) if pool else (n, 9, 8, filters)

    def forward():
        y, code = empty(shape, "float32"), np.zeros(shape, np.uint8)
        winograd.forward(x, w, b, y, code, window, True, pool, 16)
        return y

    results = by_threads(forward)
    monkeypatch.setattr(threads, "_LEAST_CHUNK", 1)
    _, tape = threads.taped(forward)
    assert tape[-1][1] == chunks
    monkeypatch.setattr(threads, "_LEAST_CHUNK", 1 << 60)  # an image is one chunk
    for y in results:
        assert_same_bits(y, forward())


# The gradient of the kernel


def gradients(x, dy, window):
    dw = empty((3, 3, x.shape[3], dy.shape[3]), "float32")
    db = empty(dy.shape[3:], "float32")
    winograd.kernel_gradient(x, dy, dw, db, window, 16)
    return dw, db


def drawn(n, size, channels, filters, padding="same"):
    rng, window = np.random.default_rng(0), slide(size, (3, 3), (1, 1), padding)
    x = normal(rng, (n, *size, channels), "float32")
    return x, normal(rng, (n, window.out_h, window.out_w, filters), "float32"), window


@pytest.mark.parametrize(("n", "size", "channels", "filters", "padding"), [
    (1, (4, 4), 1, 1, "same"),
    (3, (7, 9), 33, 5, "same"),
    (2, (6, 5), 17, 65, "valid"),
    (2, (3, 3), 9, 31, "valid"),
    (1, (2, 1), 5, 16, "same"),
    (40, (9, 10), 31, 4, "same"),  # several images in a chunk, the last with fewer
    (2, (50, 50), 3, 3, "valid"),  # several blocks of tiles in an image
    (33, (10, 10), 40, 40, "same"),  # blocks that begin inside an image
])
def test_the_gradients_are_those_of_the_general_algorithm(n, size, channels, filters, padding):
    x, dy, window = drawn(n, size, channels, filters, padding)
    dw, db = gradients(x, dy, window)
    exact, magnitude = np.empty(dw.shape), np.empty(dw.shape)
    sums, sizes = np.empty(db.shape), np.empty(db.shape)
    conv.kernel_gradient(x.astype(float), dy.astype(float), exact, sums, window)
    conv.kernel_gradient(abs(x).astype(float), abs(dy).astype(float), magnitude, sizes, window)
    assert_close(dw, exact, magnitude.max())
    assert_close(db, sums, sizes)


@pytest.mark.parametrize(("n", "size", "channels", "filters"), [
    (2000, (8, 8), 8, 8), (16, (32, 32), 16, 16),
])
def test_the_error_of_the_gradients_is_small_for_any_number_of_images(n, size, channels, filters):
    x, dy, window = drawn(n, size, channels, filters)
    exact, sums = np.empty((3, 3, channels, filters)), np.empty(filters)
    conv.kernel_gradient(x.astype(float), dy.astype(float), exact, sums, window)
    dw, db = gradients(x, dy, window)
    assert np.abs(dw - exact).max() < 1.5e-6 * np.abs(exact).max()
    assert np.abs(db - sums).max() < 1e-6 * np.abs(sums).max()


def test_it_is_taken_for_many_channels():
    x, dy, window = drawn(2, (6, 7), 32, 33)
    assert winograd.fits_gradient(window, 6, 16)
    assert winograd.fits_gradient(window, 6, 1)  # few filters take as long as 16
    assert not winograd.fits_gradient(window, 5, 16)
    assert not winograd.fits_gradient(window, 4, 64)
    assert not winograd.fits_gradient(slide((6, 7), (5, 5), (1, 1), "same"), 32, 33)
    assert not winograd.fits_gradient(slide((6, 7), (3, 3), (2, 1), "same"), 32, 33)
    expected = gradients(x, dy, window)
    dw, db = (np.empty_like(array) for array in expected)
    conv.kernel_gradient(x, dy, dw, db, window)
    assert_same_bits(dw, expected[0])
    assert_same_bits(db, expected[1])
    y, dz = np.ascontiguousarray(-dy), np.empty_like(dy)
    conv.kernel_gradient(x, dy, dw, db, window, y, dz)
    assert_same_bits(dz, np.where(y > 0, dy, np.float32(0)))
    assert_same_bits(dw, gradients(x, dz, window)[0])


def test_threads_do_not_change_bits_of_the_gradients(by_threads):
    x, dy, window = drawn(19, (9, 7), 33, 34)
    for results in zip(*by_threads(lambda: gradients(x, dy, window)), strict=True):
        assert_same_bits(*results)
