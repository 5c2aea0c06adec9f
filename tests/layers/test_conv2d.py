"""Conv2D: comparison with the definition, and its arguments."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import assert_same_pass, forward_and_back, least_sizes, paddings
from numpy.testing import assert_array_equal
from tolerances import assert_close

import minicnn as mc
from minicnn.kernels.conv import conv
from minicnn.layers import Conv2D, Sequential

small = st.integers(1, 3)


@st.composite
def configurations(draw):
    """Draw a shape (N, H, W, C) and the options of a convolution that fits into it."""
    options = {
        "filters": draw(small),
        "kernel_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "strides": (draw(small), draw(small)),
        "dilation_rate": (draw(small), draw(small)),
        "padding": draw(paddings(3)),
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
        "use_bias": draw(st.booleans()),
    }
    spans = map(naive.span, options["kernel_size"], options["dilation_rate"])
    least = least_sizes(spans, options["padding"])
    height, width = (size + draw(st.integers(0, 4)) for size in least)
    return (draw(small), height, width, draw(small)), options


def as_laid_out(images, options):
    """Return images (N, H, W, C) in the data format of the options."""
    first = options["data_format"] == "channels_first"
    return images.transpose(0, 3, 1, 2).copy() if first else images


def drawn(shape, dtype, rng):
    return rng.standard_normal(shape).astype(dtype)


@given(configurations(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_values_and_gradients_are_those_of_the_definition(configuration, dtype, seed):
    shape, options = configuration
    rng = np.random.default_rng(seed)
    x = drawn(shape, dtype, rng)
    layer = Conv2D(**options, bias_initializer=lambda shape, rng, dtype: drawn(shape, dtype, rng))
    declared = layer.build((None, *as_laid_out(x, options).shape[1:]), rng, dtype)
    w, b = layer.kernel.value, layer.bias.value if layer.bias else None
    place = options["strides"], options["padding"], options["dilation_rate"]
    y = naive.conv2d(x, w, b, *place)
    dy = drawn(y.shape, dtype, rng)

    actual = forward_and_back(layer, as_laid_out(x, options), as_laid_out(dy, options))

    assert (None, *as_laid_out(y, options).shape[1:]) == declared
    sizes = naive.conv2d(abs(x), abs(w), None if b is None else abs(b), *place)
    assert_close(actual.y, as_laid_out(y, options), as_laid_out(sizes, options))
    expected = naive.conv2d_backward(x, w, dy, *place)
    sizes = naive.conv2d_backward(abs(x), abs(w), abs(dy), *place)
    assert_close(actual.dx, as_laid_out(expected[0], options), as_laid_out(sizes[0], options))
    for gradient, right, size in zip(actual.grads, expected[1:], sizes[1:], strict=False):
        assert_close(gradient, right, size)


def test_colour_images():
    layer = Conv2D(2, 1, kernel_initializer="zeros", bias_initializer="zeros")
    layer.build((None, 4, 5, 3), rng=0)
    layer.kernel.value[0, 0] = [[1, 0], [0, 2], [0, 3]]  # red alone; twice green and thrice blue
    x = np.random.default_rng(0).random((2, 4, 5, 3), np.float32)
    y = layer.forward(x, mc.Context())
    assert_close(y, np.stack([x[..., 0], 2 * x[..., 1] + 3 * x[..., 2]], axis=-1))


def run(layer, x):
    """Return the output of a layer with one filter of ones for one image with one channel."""
    layer.build((None, *x.shape, 1), rng=0)
    layer.kernel.value[...] = 1
    return layer.forward(np.array(x, np.float32)[None, :, :, None], mc.Context())[0, :, :, 0]


def test_same_padding_has_its_larger_half_after():
    ones = np.ones((3, 3))
    assert_array_equal(run(Conv2D(1, 2, padding="same"), ones), [[4, 4, 2], [4, 4, 2], [2, 2, 1]])
    row = np.arange(1, 6)[None]  # 4 elements: padding of one before and two after
    assert_array_equal(run(Conv2D(1, (1, 4), padding="same"), row), [[6, 10, 14, 12, 9]])
    assert_array_equal(run(Conv2D(1, (1, 3), strides=2, padding="same"), row), [[3, 9, 9]])
    no_padding = Conv2D(1, (1, 2), strides=3, padding="same")  # needs none
    assert_array_equal(run(no_padding, row), [[3, 9]])


def test_valid_padding_drops_incomplete_windows():
    row = np.arange(1, 7)[None]
    assert_array_equal(run(Conv2D(1, (1, 3), strides=2), row), [[6, 12]])


def test_the_kernel_is_not_flipped():
    layer = Conv2D(1, (1, 2))
    layer.build((None, 1, 3, 1), rng=0)
    layer.kernel.value[...] = np.reshape([10, 1], (1, 2, 1, 1))
    y = layer.forward(np.reshape([1, 2, 3], (1, 1, 3, 1)).astype(np.float32), mc.Context())
    assert_array_equal(y.ravel(), [12, 23])


def test_the_activation_is_applied_after_the_bias():
    layer = Conv2D(1, 1, activation="relu")
    layer.build((None, 1, 2, 1), rng=0)
    layer.kernel.value[...] = 1
    layer.bias.value[...] = -2
    y = layer.forward(np.reshape([1, 5], (1, 1, 2, 1)).astype(np.float32), mc.Context())
    assert_array_equal(y.ravel(), [0, 3])


# Parameters


@pytest.mark.parametrize("options", [
    {"filters": 5, "kernel_size": 3},
    {"filters": 17, "kernel_size": 5, "activation": "relu", "padding": "same"},
    {"filters": 5, "kernel_size": 3, "strides": 2, "activation": "relu"},
    {"filters": 4, "kernel_size": 1, "data_format": "channels_first"},
    {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "activation": "relu"},
])
@pytest.mark.parametrize("channels", [2, 9])
def test_by_itself_it_has_the_bits_that_it_has_in_a_model(options, channels):
    rng = np.random.default_rng(0)
    x = drawn((3, 9, 8, channels), np.float32, rng)
    x = as_laid_out(x, {"data_format": "channels_last"} | options)
    alone = Conv2D(**options)
    alone.build((None, *x.shape[1:]), rng=1)
    model = Sequential([Conv2D(**options)])
    model.build((None, *x.shape[1:]), rng=1)
    assert_same_pass(forward_and_back(alone, x), forward_and_back(model, x))


def test_by_itself_it_computes_what_the_general_path_computes(monkeypatch):
    x = drawn((3, 9, 8, 30), np.float32, np.random.default_rng(0))
    layer = Conv2D(17, 3, activation="relu")
    layer.build((None, *x.shape[1:]), rng=1)
    fast = forward_and_back(layer, x)
    monkeypatch.setattr(conv, "FAST_PATHS", False)
    general = forward_and_back(layer, x)
    assert not np.array_equal(fast.y, general.y)  # other sums
    for actual, expected in zip(
        (fast.y, fast.dx, *fast.grads), (general.y, general.dx, *general.grads), strict=True
    ):
        assert_close(actual, expected, max(1, np.abs(expected).max()))


def test_parameters():
    layer = Conv2D(8, (3, 5))
    layer.build((None, 9, 9, 2), rng=0)
    assert [(p.name, p.shape) for p in layer.parameters] == [
        ("conv2d/kernel", (3, 5, 2, 8)),
        ("conv2d/bias", (8,)),
    ]
    limit = np.sqrt(6 / (3 * 5 * 2 + 3 * 5 * 8))  # Glorot's
    assert 0.9 * limit < abs(layer.kernel.value).max() <= limit
    assert_array_equal(layer.bias.value, 0)
    assert layer.kernel.trainable
    assert layer.bias.trainable


def test_parameters_as_asked():
    layer = Conv2D(8, 3, use_bias=False, kernel_initializer=2.0, trainable=False, name="edges")
    layer.build((None, 9, 9, 2), rng=0)
    assert layer.bias is None
    [kernel] = layer.parameters
    assert kernel.name == "edges/kernel"
    assert not kernel.trainable
    assert_array_equal(kernel.value, 2)


def test_the_kernel_has_the_same_layout_with_channels_first():
    layer = Conv2D(8, (3, 5), data_format="channels_first")
    assert layer.build((None, 2, 9, 10), rng=0) == (None, 8, 7, 6)
    assert layer.kernel.shape == (3, 5, 2, 8)


def test_the_value_of_a_parameter_is_the_only_copy():
    layer = Conv2D(2, 3, padding="same")
    layer.build((None, 4, 4, 1), rng=0)
    x = np.ones((1, 4, 4, 1), np.float32)
    layer.forward(x, mc.Context())
    layer.kernel.value[...] = 0
    layer.bias.value[...] = [5, 7]
    assert_array_equal(layer.forward(x, mc.Context()), np.broadcast_to([5, 7], (1, 4, 4, 2)))


# Arguments


SIZES = [3, (3, 3), [3, 3], np.int64(3), np.array([3, 3]), (np.uint8(3), 3)]


@pytest.mark.parametrize("size", SIZES, ids=repr)
def test_sizes_are_one_integer_or_two(size):
    layer = Conv2D(np.int32(2), size, strides=size, dilation_rate=size, padding="SAME")
    assert layer.build((None, 9, 9, 1), rng=0) == (None, 3, 3, 2)
    assert layer.kernel.shape == (3, 3, 1, 2)


@pytest.mark.parametrize(("padding", "pads"), [
    (2, ((2, 2), (2, 2))), ((0, 3), ((0, 0), (3, 3))), ([[0, 1], (2, 3)], ((0, 1), (2, 3))),
    (np.array([[0, 1], [2, 3]]), ((0, 1), (2, 3))), ((1, [0, 2]), ((1, 1), (0, 2))),
    (np.array(1), ((1, 1), (1, 1))),
])
def test_padding_by_numbers_of_pixels(padding, pads):
    layer = Conv2D(2, 3, padding=padding)
    assert layer.padding == pads
    size = (9 - 2 + sum(pads[0]), 8 - 2 + sum(pads[1]))
    assert layer.build((None, 9, 8, 1), rng=0) == (None, *size, 2)
    assert eval(repr(layer), {"Conv2D": Conv2D}).padding == pads


def test_padding_of_zeros_is_that_of_an_image_with_zeros_around_it():
    x = drawn((2, 5, 6, 3), np.float64, np.random.default_rng(0))
    padded, plain = Conv2D(2, 3, strides=2, padding=((1, 2), (3, 0))), Conv2D(2, 3, strides=2)
    padded.build((None, 5, 6, 3), rng=0, dtype=np.float64)
    plain.build((None, 8, 9, 3), rng=0, dtype=np.float64)
    y = plain(np.pad(x, ((0, 0), (1, 2), (3, 0), (0, 0))))
    np.testing.assert_allclose(padded(x), y, rtol=1e-12)


def test_sizes_are_height_and_width():
    assert Conv2D(1, (1, 3)).build((None, 5, 5, 1), rng=0) == (None, 5, 3, 1)
    assert Conv2D(1, np.array(3)).build((None, 5, 5, 1), rng=0) == (None, 3, 3, 1)
    assert Conv2D(1, 1, strides=(1, 3)).build((None, 5, 5, 1), rng=0) == (None, 5, 2, 1)


@pytest.mark.parametrize("padding", ["same", "SAME", "Same"])
@pytest.mark.parametrize("data_format", ["channels_first", "Channels_First"])
def test_words_ignore_case(padding, data_format):
    layer = Conv2D(2, 3, padding=padding, data_format=data_format)
    assert layer.build((None, 1, 5, 6), rng=0) == (None, 2, 5, 6)


PADDINGS = (
    "`padding` must be 'valid', 'same', an integer or ((top, bottom), (left, right))"
)
WRONG = [
    ({"kernel_size": (1, 2, 3)}, ValueError, "`kernel_size` must be one integer or", "(1, 2, 3)"),
    ({"kernel_size": 3.0}, TypeError, "`kernel_size` must be an integer", "3.0"),
    ({"kernel_size": "33"}, ValueError, "`kernel_size` must be one integer or two", "'33'"),
    ({"kernel_size": None}, TypeError, "`kernel_size` must be an integer", "None"),
    ({"kernel_size": (3, 0)}, ValueError, "`kernel_size` must be at least 1", "0"),
    ({"kernel_size": True}, TypeError, "`kernel_size` must be an integer", "True"),
    ({"kernel_size": np.array(3.0)}, TypeError, "`kernel_size` must be an integer", "an array"),
    ({"padding": np.array(1.0)}, TypeError, "`padding` must be an integer", "an array of shape ()"),
    ({"strides": 0}, ValueError, "`strides` must be at least 1", "0"),
    ({"strides": (1, -1)}, ValueError, "`strides` must be at least 1", "-1"),
    ({"dilation_rate": 1.5}, TypeError, "`dilation_rate` must be an integer", "1.5"),
    ({"filters": 0}, ValueError, "`filters` must be at least 1", "0"),
    ({"filters": "many"}, TypeError, "`filters` must be an integer", "'many'"),
    ({"padding": "full"}, ValueError, PADDINGS, "'full'"),
    ({"padding": None}, ValueError, PADDINGS, "None"),
    ({"padding": -1}, ValueError, "`padding` must be at least 0", "-1"),
    ({"padding": ((1, 1), (1, -1))}, ValueError, "`padding` must be at least 0", "-1"),
    ({"padding": 0.5}, TypeError, "`padding` must be an integer", "0.5"),
    ({"padding": [1]}, ValueError, PADDINGS, "[1]"),
    ({"padding": (1, 1, 1, 1)}, ValueError, PADDINGS, "(1, 1, 1, 1)"),
    (  # of TensorFlow
        {"padding": [[0, 0], [1, 1], [1, 1], [0, 0]]}, ValueError, PADDINGS,
        "[[0, 0], [1, 1], [1, 1], [0, 0]]",
    ),
    ({"padding": {1: 1, 2: 2}}, ValueError, PADDINGS, "{1: 1, 2: 2}"),
    (
        {"data_format": "NHWC"},
        ValueError,
        "`data_format` must be 'channels_last' or 'channels_first'",
        "'NHWC'",
    ),
    ({"activation": "rleu"}, ValueError, "`activation` must be one of 'relu', ", "'rleu'"),
    ({"activation": np.tanh}, ValueError, "`activation` must be one of 'relu', ", "<ufunc 'tanh'>"),
    ({"kernel_initializer": "best"}, ValueError, "'glorot_uniform'", "'best'"),
    ({"name": 3}, TypeError, "`name` must be a string that is not empty", "3"),
    ({"name": ""}, TypeError, "`name` must be a string that is not empty", "''"),
]


@pytest.mark.parametrize(("option", "error", "expected", "got"), WRONG, ids=str)
def test_wrong_arguments_are_quoted(option, error, expected, got):
    with pytest.raises(error) as caught:
        Conv2D(**{"filters": 2, "kernel_size": 3, **option})
    message = str(caught.value)
    assert expected in message
    assert f"got {got}" in message


def test_a_wrong_rank_says_how_to_reshape():
    with pytest.raises(ValueError) as caught:
        Conv2D(2, 3, name="conv2d_1").build((100, 784), rng=0)
    assert str(caught.value) == (
        "conv2d_1: `inputs` must have 4 dimensions (N, H, W, C), got (100, 784); reshape to "
        "(N, H, W, C) first, MNIST to (-1, 28, 28, 1)"
    )
    with pytest.raises(ValueError, match=r"4 dimensions \(N, C, H, W\), got \(None, 28\)"):
        Conv2D(2, 3, data_format="channels_first").build((None, 28), rng=0)
    with pytest.raises(ValueError, match=r"got \(None, 2, .*; reshape to \(N, H, W, C\)"):
        Conv2D(2, 3).build((None, 2, 9, 9, 1), rng=0)


def test_a_window_that_does_not_fit_says_what_to_do():
    with pytest.raises(ValueError, match=r"\(5, 3\).*\(4, 9\).*use padding='same', a smaller"):
        Conv2D(2, (5, 3)).build((None, 4, 9, 1), rng=0)
    with pytest.raises(ValueError, match=r"\(3, 3\) \(dilated \(1, 2\)\) does not\s+fit into"):
        Conv2D(2, 3, dilation_rate=(1, 2)).build((None, 4, 4, 1), rng=0)
    assert Conv2D(2, 5, padding="same").build((None, 1, 1, 1), rng=0) == (None, 1, 1, 2)
    with pytest.raises(ValueError, match=r"\(2, 9\) with padding \(\(1, 1\), \(0, 0\)\); use padd"):
        Conv2D(2, 5, padding=(1, 0)).build((None, 2, 9, 1), rng=0)
    assert Conv2D(2, 5, padding=(2, 0)).build((None, 2, 9, 1), rng=0) == (None, 2, 5, 2)


def test_the_function_passes_every_option_on():
    x = mc.Graph().placeholder("x", (None, 2, 9, 9), np.float32)
    y = mc.layers.conv2d(
        inputs=x,
        filters=3,
        kernel_size=[2, 3],
        strides=(2, 1),
        padding="Same",
        data_format="channels_first",
        dilation_rate=(1, 2),
        activation=mc.tanh,
        use_bias=False,
        kernel_initializer="zeros",
        trainable=False,
        kernel_regularizer=mc.layers.l2_regularizer(0.5),
        name="edges",
    )
    layer = y.op
    assert (y.name, y.shape) == ("edges", (None, 3, 5, 9))
    assert (layer.size, layer.strides, layer.dilation_rate) == ((2, 3), (2, 1), (1, 2))
    assert (layer.padding, layer.data_format) == ("same", "channels_first")
    assert isinstance(layer.activation, mc.ops.Tanh)
    assert layer.bias is None
    assert not layer.kernel.trainable
    assert layer.kernel.regularizer.scale == 0.5
    assert_array_equal(layer.kernel.value, 0)
    other = mc.layers.conv2d(x, 3, 1, data_format="channels_first", bias_initializer=0.5).op
    assert_array_equal(other.bias.value, 0.5)
    assert other.activation is None
