from typing import NamedTuple

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.arrays import DTYPES, empty, integers, normal, read_only
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

from minicnn.kernels import pooling
from minicnn.kernels.window import slide


class Case(NamedTuple):
    """The shape of a pooling: n images of c channels."""

    n: int
    c: int
    size: tuple[int, int]
    pool: tuple[int, int]
    strides: tuple[int, int]
    padding: str = "valid"

    @property
    def window(self):
        return slide(self.size, self.pool, self.strides, self.padding)

    @property
    def shape(self):
        return (self.n, *self.size, self.c)


TABLE = {
    "2x2": Case(3, 32, (14, 14), (2, 2), (2, 2)),
    "2x2, a row and a column left over": Case(3, 5, (9, 7), (2, 2), (2, 2)),
    "overlapping": Case(2, 3, (9, 8), (3, 3), (2, 1)),
    "overlapping, same": Case(2, 3, (6, 7), (3, 4), (1, 2), "same"),
    "stride above the window": Case(2, 3, (9, 8), (2, 1), (3, 4)),
    "stride above the window, same": Case(2, 3, (8, 9), (1, 2), (3, 4), "same"),
    "the whole image": Case(2, 3, (5, 6), (5, 6), (5, 6)),
    "window larger than the image": Case(2, 3, (2, 3), (5, 4), (1, 1), "same"),
    "padded unevenly": Case(2, 3, (6, 8), (3, 4), (2, 3), ((1, 2), (0, 3))),
    "256 taps": Case(1, 2, (18, 17), (16, 16), (1, 1)),
    "289 taps": Case(1, 2, (18, 18), (17, 17), (1, 1)),
    "300 taps, same": Case(1, 2, (4, 20), (3, 100), (2, 50), "same"),
}
by_table = pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


@st.composite
def cases(draw):
    padding = draw(st.sampled_from(["same", "valid"]))
    axes = []
    for _ in range(2):
        pool, stride = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        size = draw(st.integers(1, 7)) + (pool - 1 if padding == "valid" else 0)
        axes.append((size, pool, stride))
    size, pool, strides = zip(*axes, strict=True)
    return Case(draw(st.integers(1, 3)), draw(st.integers(1, 4)), size, pool, strides, padding)


def forward(x, window):
    shape = (len(x), window.out_h, window.out_w, x.shape[3])
    y, winner = empty(shape, x.dtype), empty(shape, pooling.winner_type(window))
    pooling.forward(x, y, winner, window)
    return y, winner


def backward(dy, winner, window):
    dx = empty((len(dy), window.height, window.width, dy.shape[3]), dy.dtype)
    pooling.backward(dy, winner, dx, window)
    return dx


def assert_agrees_with_the_definition(case, x, dy):
    window, where = case.window, (case.pool, case.strides, case.padding)
    y, winner = forward(x, window)
    assert_array_equal(y, naive.max_pool2d(x, *where))
    for n, oy, ox, c, iy, ix in naive.pool_winners(x, *where):
        ky = iy - oy * window.stride_h + window.top
        kx = ix - ox * window.stride_w + window.left
        assert winner[n, oy, ox, c] == ky * window.kernel_w + kx
    exact, magnitude = (naive.max_pool2d_backward(x, dy, *where) for dy in (dy, np.abs(dy)))
    assert_close(backward(dy, winner, window), exact, magnitude)


def plane(values, dtype="float32"):
    """Return values as one image of one channel."""
    return np.array(values, dtype)[None, :, :, None]


@by_dtype
@by_table
@pytest.mark.parametrize("numbers", [normal, integers], ids=["no ties", "ties"])
def test_table(case, numbers, dtype):
    rng = np.random.default_rng(0)
    dy = normal(rng, (case.n, case.window.out_h, case.window.out_w, case.c), dtype)
    assert_agrees_with_the_definition(case, numbers(rng, case.shape, dtype), dy)


@settings(max_examples=40)
@given(case=cases(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99))
def test_any_configuration_with_ties_nan_and_inf(case, dtype, seed):
    rng = np.random.default_rng(seed)
    values = [-np.inf, -1, 0, 1, np.inf, np.nan]
    x = rng.choice(values, case.shape, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.1])
    dy = normal(rng, (case.n, case.window.out_h, case.window.out_w, case.c), dtype)
    assert_agrees_with_the_definition(case, read_only(x.astype(dtype)), dy)


@by_dtype
def test_ties_go_to_the_first(dtype):
    window = slide((2, 3), (2, 3), (1, 1), "valid")
    _, winner = forward(plane([[0, 7, 7], [7, 7, 0]], dtype), window)
    assert winner.item() == 1


@by_dtype
def test_the_first_nan_wins_wherever_it_stands(dtype):
    window = slide((2, 3), (2, 3), (1, 1), "valid")
    for taps in [(0,), (4,), (5,), (0, 5), (2, 3)]:
        x = np.full(6, np.inf)
        x[list(taps)] = np.nan
        y, winner = forward(plane(x.reshape(2, 3), dtype), window)
        assert np.isnan(y.item())
        assert winner.item() == taps[0]


@by_dtype
@pytest.mark.parametrize("value", [-np.inf, -5, np.nan])
def test_padding_never_wins(value, dtype):
    window = slide((3, 3), (3, 3), (2, 2), "same")
    y, winner = forward(plane(np.full((3, 3), value), dtype), window)
    assert_array_equal(y, plane(np.full((2, 2), value)))
    assert_array_equal(winner, plane([[4, 3], [1, 0]]))  # the first tap inside the image
    dx = backward(plane([[1, 2], [3, 4]], dtype), winner, window)
    assert_array_equal(dx, plane([[1, 2, 0], [3, 4, 0], [0, 0, 0]]))


def test_the_winner_is_one_byte_up_to_256_taps():
    for pool, winner_type in [((1, 1), np.uint8), ((16, 16), np.uint8), ((1, 257), np.uint32)]:
        assert pooling.winner_type(slide((300, 300), pool, (1, 1), "valid")) is winner_type


@by_dtype
@pytest.mark.parametrize("side", [16, 17])
def test_the_last_tap_of_a_large_window_can_win(side, dtype):
    window = slide((side, side), (side, side), (1, 1), "valid")
    x = np.zeros((side, side), dtype)
    x[-1, -1] = 1
    _, winner = forward(plane(x, dtype), window)
    assert winner.item() == side * side - 1
    assert_array_equal(backward(plane([[5]], dtype), winner, window), plane(5 * x))


@by_dtype
def test_threads_do_not_change_bits(by_threads, dtype):
    case = Case(9, 5, (11, 12), (3, 3), (2, 2), "same")
    rng = np.random.default_rng(0)
    x = integers(rng, case.shape, dtype)
    dy = normal(rng, (9, 6, 6, 5), dtype)

    def both():
        y, winner = forward(x, case.window)
        return y, winner, backward(dy, winner, case.window)

    for results in zip(*by_threads(both), strict=True):
        assert_same_bits(*results)


@by_dtype
def test_no_images(dtype):
    window = slide((4, 4), (2, 2), (2, 2), "valid")
    y, winner = forward(np.empty((0, 4, 4, 3), dtype), window)
    assert backward(y, winner, window).shape == (0, 4, 4, 3)
