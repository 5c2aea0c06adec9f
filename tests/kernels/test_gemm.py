"""Tests of the packed product, called through the three products of a dense layer."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.arrays import DTYPES, empty, integers, normal
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

from minicnn.kernels.dense import dense

# Near the rows and columns of a tile, the columns of a chunk, and the depth of a panel.
EDGES = [1, 3, 5, 6, 7, 8, 9, 14, 15, 16, 17, 31, 33, 64, 65, 128, 129, 257, 513]
SIZES = st.integers(1, 40) | st.sampled_from([*EDGES, 130, 600])


def forward(x, w, b, relu=False, packed=None):
    y = empty((len(x), w.shape[1]), x.dtype)
    dense.forward(x, w, b, y, relu, packed=packed)
    return y


def input_gradient(dy, w):
    dx = empty((len(dy), len(w)), dy.dtype)
    dense.input_gradient(dy, w, dx)
    return dx


def kernel_gradient(x, dy):
    dw = empty((x.shape[1], dy.shape[1]), x.dtype)
    dense.kernel_gradient(x, dy, dw)
    return dw


def draw(numbers, n, d, u, dtype, seed=0):
    """Return x (N, D), w (D, U), b (U,), dy (N, U)."""
    rng = np.random.default_rng(seed)
    return [numbers(rng, shape, dtype) for shape in [(n, d), (d, u), (u,), (n, u)]]


@settings(max_examples=40)
@given(n=SIZES, d=SIZES, u=SIZES, dtype=st.sampled_from(DTYPES), seed=st.integers(0, 9))
def test_three_products(n, d, u, dtype, seed):
    arrays = draw(normal, n, d, u, dtype, seed)
    x, w, b, dy = (array.astype(np.float64) for array in arrays)
    x_, w_, b_, dy_ = (np.abs(array) for array in (x, w, b, dy))
    assert_close(forward(*arrays[:3]), x @ w + b, x_ @ w_ + b_)
    assert_close(input_gradient(arrays[3], arrays[1]), dy @ w.T, dy_ @ w_.T)
    assert_close(kernel_gradient(arrays[0], arrays[3]), x.T @ dy, x_.T @ dy_)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [127, 128, 129, 256, 257, 640, 1000])
def test_sums_over_blocks_of_rows_are_exact_for_small_integers(n, dtype):
    x, _, _, dy = draw(integers, n, 7, 67, dtype)
    assert_array_equal(kernel_gradient(x, dy), x.T @ dy)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_small_integers_are_exact_at_every_edge(dtype):
    for n, d, u in itertools.product(EDGES, repeat=3):
        if n * d * u > 300_000:
            continue
        x, w, b, dy = draw(integers, n, d, u, dtype)
        assert_array_equal(forward(x, w, b), x @ w + b)
        assert_array_equal(input_gradient(dy, w), dy @ w.T)
        assert_array_equal(kernel_gradient(x, dy), x.T @ dy)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("relu", [False, True])
def test_a_term_is_multiplied_and_added_in_one_rounding(relu, dtype):
    small = np.finfo(dtype).eps ** 0.5
    small = 2.0 ** np.round(np.log2(small))
    x, b = np.array([[1 + small]], dtype), np.array([-(1 + 2 * small)], dtype)
    assert forward(x, x, b, relu) == small**2  # zero if the product is rounded first


@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_is_applied_to_the_sum(dtype):
    x, w, b, _ = draw(normal, 20, 30, 70, dtype)
    y = forward(x, w, b)
    assert (y < 0).any()
    assert_same_bits(forward(x, w, b, relu=True), np.where(y < 0, y.dtype.type(0), y))


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("row", [0, 5, 7])  # in a complete tile, and in a partial one
def test_nan_and_inf_pass_and_stay_in_their_row(row, dtype, relu):
    n, d, u = 8, 300, 20
    x, w = np.ones((n, d), dtype), np.ones((d, u), dtype)
    w[:, 3], w[:, 17] = -1, -1
    for value, negative in [(np.nan, np.nan), (np.inf, 0 if relu else -np.inf)]:
        x[row] = 0
        x[row, 299] = value
        y = forward(x, w, np.zeros(u, dtype), relu)
        expected = np.where(w[0] > 0, value, negative)
        assert_array_equal(y[row], expected)
        assert np.isfinite(np.delete(y, row, axis=0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", [0, 15, 19])
def test_nan_stays_in_its_column(column, dtype):
    x, w, b, dy = (array.copy() for array in draw(normal, 8, 20, 20, dtype))
    w[4, column] = np.nan
    assert_array_equal(np.isnan(forward(x, w, b)).all(axis=0), np.arange(20) == column)
    assert_array_equal(np.isnan(input_gradient(dy, w)).all(axis=0), np.arange(20) == 4)
    x[7, column] = np.nan
    dw = kernel_gradient(x, dy)
    assert_array_equal(np.isnan(dw).all(axis=1), np.arange(20) == column)
    assert np.isnan(dw).sum() == 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_bits(by_threads, dtype):
    x, w, b, dy = draw(normal, 300, 300, 330, dtype)
    assert_same_bits(*by_threads(lambda: forward(x, w, b)))
    assert_same_bits(*by_threads(lambda: input_gradient(dy, w)))
    assert_same_bits(*by_threads(lambda: kernel_gradient(x, dy)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_its_batch(dtype):
    x, w, b, dy = draw(normal, 21, 300, 70, dtype)
    y, dx = forward(x, w, b), input_gradient(dy, w)
    for rows in [*(slice(i, i + 1) for i in range(21)), slice(3, 7), slice(2, 9), slice(5, 21)]:
        assert_same_bits(forward(x[rows], w, b), y[rows])
        assert_same_bits(input_gradient(dy[rows], w), dx[rows])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "u"), [(300, 330), (17, 3), (1, 64), (600, 513)])
@pytest.mark.parametrize("n", [0, 1, 2, 9, 14, 15, 40])
def test_a_kernel_that_is_packed_before(by_threads, n, d, u, dtype):
    x, w, b, _ = draw(normal, n, d, u, dtype)
    packed, expected = dense.packed_kernel(w), forward(x, w, b, relu=True)
    for y in by_threads(lambda: forward(x, w, b, relu=True, packed=packed)):
        assert_same_bits(y, expected)


@pytest.mark.parametrize("has_half", [True, False])
@pytest.mark.parametrize(("d", "u"), [(300, 330), (17, 3), (1, 64), (600, 513)])
@pytest.mark.parametrize("n", [0, 1, 2, 9, 14, 15, 40])
def test_a_packed_kernel_of_float16(by_threads, monkeypatch, n, d, u, has_half):
    monkeypatch.setattr(dense, "HAS_HALF", dense.HAS_HALF and has_half)
    x, w, b, _ = draw(normal, n, d, u, np.float32)
    half = w.astype(np.float16)
    packed, expected = dense.packed_kernel(half), forward(x, half.astype(np.float32), b, relu=True)
    assert packed.itemsize == (2 if dense.HAS_HALF else 4)
    for y in by_threads(lambda: forward(x, half, b, relu=True, packed=packed)):
        assert_same_bits(y, expected)


def test_each_number_of_float16():
    w = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[None]
    b = np.zeros(w.size, np.float32)
    for n in (1, 9):
        y = forward(np.ones((n, 1), np.float32), w, b, packed=dense.packed_kernel(w))
        assert_array_equal(y, np.broadcast_to(w.astype(np.float32), y.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_operands_may_lie_in_any_order(dtype):
    x, w, b, dy = draw(normal, 9, 20, 30, dtype)
    turned = [np.asfortranarray(array) for array in (x, w, dy)]
    assert_same_bits(forward(turned[0], turned[1], b), forward(x, w, b))
    assert_same_bits(input_gradient(turned[2], turned[1]), input_gradient(dy, w))
    assert_same_bits(kernel_gradient(turned[0], turned[2]), kernel_gradient(x, dy))


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows(dtype):
    x, w, b, dy = draw(normal, 0, 20, 30, dtype)
    assert forward(x, w, b, relu=True).shape == (0, 30)
    assert input_gradient(dy, w).shape == (0, 20)
    assert_array_equal(kernel_gradient(x, dy), np.zeros((20, 30)))
