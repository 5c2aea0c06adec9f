"""MaxPooling2D: comparison with the definition, overlaps, ties, NaN, and its arguments."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import forward_and_back, least_sizes, numbers, paddings
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.layers import MaxPooling2D

small = st.integers(1, 3)


@st.composite
def configurations(draw):
    """Draw a shape (N, H, W, C) and the options of a pooling that fits into it."""
    options = {
        "pool_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "strides": (draw(small), draw(small)),
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
    }
    options["padding"] = draw(paddings(min(options["pool_size"]) - 1))
    least = least_sizes(options["pool_size"], options["padding"])
    height, width = (size + draw(st.integers(0, 5)) for size in least)
    return (draw(small), height, width, draw(small)), options


def as_laid_out(images, options):
    """Return images (N, H, W, C) in the data format of the options."""
    first = options["data_format"] == "channels_first"
    return images.transpose(0, 3, 1, 2).copy() if first else images


@given(
    configurations(),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([2, 1000]),  # different values: with 2, nearly every window has a tie
    st.integers(0, 2**32 - 1),
)
def test_values_and_gradients_are_those_of_the_definition(configuration, dtype, values, seed):
    shape, options = configuration
    rng = np.random.default_rng(seed)
    x = (rng.integers(values, size=shape) - values / 2).astype(dtype)
    layer = MaxPooling2D(**options)
    declared = layer.build((None, *as_laid_out(x, options).shape[1:]), rng, dtype)
    place = options["pool_size"], options["strides"], options["padding"]
    y = naive.max_pool2d(x, *place)
    dy = rng.standard_normal(y.shape).astype(dtype)

    actual = forward_and_back(layer, as_laid_out(x, options), as_laid_out(dy, options))

    assert (None, *as_laid_out(y, options).shape[1:]) == declared
    assert_array_equal(actual.y, as_laid_out(y, options))
    dx = naive.max_pool2d_backward(x, dy, *place)
    sizes = naive.max_pool2d_backward(x, abs(dy), *place)
    assert_close(actual.dx, as_laid_out(dx, options), as_laid_out(sizes, options))


def image(plane):
    return np.array(plane, np.float32)[None, :, :, None]


def pool(plane, dy, *arguments, **options):
    """Pool one image of one channel; return y and dx as planes."""
    layer, x = MaxPooling2D(*arguments, **options), image(plane)
    layer.build((None, *x.shape[1:]), rng=0)
    y, dx, _ = forward_and_back(layer, x, image(dy))
    return y[0, :, :, 0], dx[0, :, :, 0]


def test_the_gradient_goes_to_the_first_maximum_by_rows():
    y, dx = pool([[0, 7], [7, 7]], [[1]], 2)
    assert_array_equal(y, [[7]])
    assert_array_equal(dx, [[0, 1], [0, 0]])
    _, dx = pool(np.zeros((4, 4)), [[1, 2], [3, 4]], 2)
    assert_array_equal(dx, [[1, 0, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0], [0, 0, 0, 0]])


def test_overlapping_windows_add_up():
    _, dx = pool([[1, 2, 0], [3, 9, 4], [0, 5, 8]], [[1, 2], [3, 4]], 2, strides=1)
    assert_array_equal(dx, [[0, 0, 0], [0, 10, 0], [0, 0, 0]])


def test_elements_outside_all_windows_have_no_gradient():
    y, dx = pool(np.arange(25).reshape(5, 5), [[1, 1], [1, 1]], 2)
    assert_array_equal(y, [[6, 8], [16, 18]])
    assert_array_equal(dx[4], 0)
    assert_array_equal(dx[:, 4], 0)


def test_padding_never_wins():
    y, dx = pool(-np.arange(1, 10).reshape(3, 3), np.ones((2, 2)), 2, padding="same")
    assert_array_equal(y, [[-1, -3], [-7, -9]])
    assert_array_equal(dx, [[1, 0, 1], [0, 0, 0], [1, 0, 1]])


def test_minus_infinity_wins_over_padding():
    y, dx = pool(np.full((2, 2), -np.inf), [[1]], 3, strides=2, padding="same")
    assert_array_equal(y, [[-np.inf]])
    assert_array_equal(dx, [[1, 0], [0, 0]])


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (17, 18)])
@pytest.mark.parametrize("last", [0, 255, 256, -1])
def test_large_windows(shape, last):
    plane = np.zeros(shape)
    plane.flat[last] = 1
    y, dx = pool(plane, [[5]], shape)
    assert_array_equal(y, [[1]])
    assert_array_equal(dx, 5 * plane)


def test_nan_is_seen():
    y, dx = pool([[np.inf, np.nan], [np.nan, 2]], [[1]], 2)
    assert_array_equal(y, [[np.nan]])
    assert_array_equal(dx, [[0, 1], [0, 0]])


def test_channels_are_independent():
    x = numbers((2, 6, 6, 3))
    layer = MaxPooling2D(3, strides=2)
    layer.build((None, 6, 6, 3), rng=0)
    full = forward_and_back(layer, x)
    for c in range(3):
        single = MaxPooling2D(3, strides=2)
        single.build((None, 6, 6, 1), rng=0)
        y = single.forward(x[..., c : c + 1], mc.Context())
        assert_same_bits(np.ascontiguousarray(full.y[..., c : c + 1]), y)


def test_strides_default_to_the_window():
    layer = MaxPooling2D((2, 3))
    assert layer.strides == (2, 3)
    assert layer.build((None, 6, 6, 5), rng=0) == (None, 3, 2, 5)


def test_as_in_the_guide():
    assert MaxPooling2D(pool_size=[2, 2], strides=2).build((None, 28, 28, 32), rng=0) == (
        None,
        14,
        14,
        32,
    )


SIZES = [2, (2, 2), [2, 2], np.int64(2), np.array([2, 2])]


@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_sizes_are_one_integer_or_two(size):
    layer = MaxPooling2D(size, strides=size, padding="SAME", data_format="Channels_First")
    assert layer.build((None, 3, 5, 7), rng=0) == (None, 3, 3, 4)
    assert layer.parameters == ()


WRONG = [
    ({"pool_size": 0}, ValueError, "`pool_size` must be at least 1", "0"),
    ({"pool_size": (2, 2, 2)}, ValueError, "`pool_size` must be one integer or two", "(2, 2, 2)"),
    ({"pool_size": 2.5}, TypeError, "`pool_size` must be an integer", "2.5"),
    ({"strides": "2"}, ValueError, "`strides` must be one integer or two", "'2'"),
    ({"strides": False}, TypeError, "`strides` must be an integer", "False"),
    ({"padding": "causal"}, ValueError, "`padding` must be 'valid', 'same', an", "'causal'"),
    ({"padding": 2}, ValueError, "`padding` must be smaller than `pool_size`", "((2, 2), (2, 2))"),
    (
        {"pool_size": (3, 2), "padding": ((2, 2), (0, 2))}, ValueError,
        "must be smaller than `pool_size`, (3, 2), got", "((2, 2), (0, 2)): a window in the",
    ),
    ({"data_format": 1}, ValueError, "`data_format` must be 'channels_last' or", "1"),
]


@pytest.mark.parametrize(("option", "error", "expected", "got"), WRONG, ids=str)
def test_wrong_arguments_are_quoted(option, error, expected, got):
    with pytest.raises(error) as caught:
        MaxPooling2D(**{"pool_size": 2, **option})
    message = str(caught.value)
    assert expected in message
    assert f"got {got}" in message


def test_wrong_inputs_say_what_to_do():
    with pytest.raises(ValueError, match=r"max_pooling2d: .* got \(None, 784\); reshape to"):
        MaxPooling2D(2).build((None, 784), rng=0)
    with pytest.raises(ValueError, match=r"max_pooling2d: a window of \(3, 3\).*padding='same'"):
        MaxPooling2D(3).build((None, 2, 2, 1), rng=0)


def test_the_function_needs_strides_and_passes_every_option_on():
    x = mc.Graph().placeholder("x", (None, 3, 7, 7), np.float32)
    with pytest.raises(TypeError, match="strides"):
        mc.layers.max_pooling2d(x, 2)
    y = mc.layers.max_pooling2d(
        inputs=x,
        pool_size=3,
        strides=(2, 1),
        padding="same",
        data_format="channels_first",
        name="halves",
    )
    assert (y.name, y.shape) == ("halves", (None, 3, 4, 7))
    assert (y.op.size, y.op.strides) == ((3, 3), (2, 1))
