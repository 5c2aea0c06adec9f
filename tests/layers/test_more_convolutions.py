"""Conv2DTranspose, DepthwiseConv2D and SeparableConv2D: the definitions and the arguments."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import forward_and_back, least_sizes, paddings
from numpy.testing import assert_array_equal
from tolerances import assert_close

import minicnn as mc
from minicnn.layers import (
    Conv2D,
    Conv2DTranspose,
    DepthwiseConv2D,
    SeparableConv2D,
    l1_regularizer,
    l2_regularizer,
)

small = st.integers(1, 3)
types = st.sampled_from([np.float32, np.float64])


def drawn(shape, dtype, rng):
    return rng.standard_normal(shape).astype(dtype)


def as_laid_out(images, options):
    """Return images (N, H, W, C) in the data format of the options."""
    first = options["data_format"] == "channels_first"
    return images.transpose(0, 3, 1, 2).copy() if first else images


@st.composite
def options_of(draw, dilation):
    """Draw the options of a window, and sizes into which it fits."""
    options = {
        "kernel_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "strides": (draw(small), draw(small)),
        "padding": draw(paddings(3)),
        "data_format": draw(st.sampled_from(["channels_last", "channels_first"])),
        "use_bias": draw(st.booleans()),
    }
    spans = options["kernel_size"]
    if dilation:
        options["dilation_rate"] = (draw(small), draw(small))
        spans = map(naive.span, spans, options["dilation_rate"])
        least = least_sizes(spans, options["padding"])
    else:  # of a transposed convolution any size, with an output that is not cut off
        least = [1, 1] if isinstance(options["padding"], str) else [7, 7]
    height, width = (size + draw(st.integers(0, 4)) for size in least)
    return options, (draw(small), height, width)


def assert_is(layer, options, x, rng, forward, backward):
    """Check a layer's pass against oracles of x, its parameters' values and the gradient of y.

    The tolerance follows the same sums of absolute values.
    """
    declared = layer.build((None, *as_laid_out(x, options).shape[1:]), rng, x.dtype)
    values = [parameter.value for parameter in layer.parameters]
    for value in values:
        value[...] = drawn(value.shape, x.dtype, rng)
    y = forward(x, *values)
    dy = drawn(y.shape, x.dtype, rng)
    actual = forward_and_back(layer, as_laid_out(x, options), as_laid_out(dy, options))
    assert (None, *as_laid_out(y, options).shape[1:]) == declared
    sizes = [abs(value) for value in values]
    assert_close(
        actual.y, as_laid_out(y, options), as_laid_out(forward(abs(x), *sizes), options)
    )
    dx, *grads = backward(x, dy, *values)
    dx_size, *grad_sizes = backward(abs(x), abs(dy), *sizes)
    assert_close(actual.dx, as_laid_out(dx, options), as_laid_out(dx_size, options))
    for gradient, right, size in zip(actual.grads, grads, grad_sizes, strict=False):
        assert_close(gradient, right, size)


@given(options_of(dilation=False), small, small, types, st.integers(0, 2**32 - 1))
def test_transposed_convolutions_are_those_of_the_definition(
    drawn_, channels, filters, dtype, seed
):
    options, size = drawn_
    rng = np.random.default_rng(seed)
    place = options["strides"], options["padding"]
    assert_is(
        Conv2DTranspose(filters, **options), options, drawn((*size, channels), dtype, rng), rng,
        lambda x, w, b=None: naive.conv2d_transpose(x, w, b, *place),
        lambda x, dy, w, b=None: naive.conv2d_transpose_backward(x, w, dy, *place),
    )


@given(options_of(dilation=True), small, small, types, st.integers(0, 2**32 - 1))
def test_depthwise_convolutions_are_those_of_the_definition(drawn_, channels, more, dtype, seed):
    options, size = drawn_
    rng = np.random.default_rng(seed)
    place = options["strides"], options["padding"], options["dilation_rate"]
    assert_is(
        DepthwiseConv2D(depth_multiplier=more, **options), options,
        drawn((*size, channels), dtype, rng), rng,
        lambda x, w, b=None: naive.depthwise_conv2d(x, w, b, *place),
        lambda x, dy, w, b=None: naive.depthwise_conv2d_backward(x, w, dy, *place),
    )


@given(options_of(dilation=True), small, small, types, st.integers(0, 2**32 - 1))
def test_separable_convolutions_are_those_of_the_definition(drawn_, channels, more, dtype, seed):
    options, size = drawn_
    rng = np.random.default_rng(seed)
    place = options["strides"], options["padding"], options["dilation_rate"]

    def forward(x, w, p, b=None):
        return naive.conv2d(naive.depthwise_conv2d(x, w, None, *place), p, b)

    def backward(x, dy, w, p, b=None):
        z = naive.depthwise_conv2d(x, w, None, *place)
        dz, dp, db = naive.conv2d_backward(z, p, dy)
        dx, dw, _ = naive.depthwise_conv2d_backward(x, w, dz, *place)
        return dx, dw, dp, db

    layer = SeparableConv2D(2, depth_multiplier=more, **options)
    assert_is(layer, options, drawn((*size, channels), dtype, rng), rng, forward, backward)


# Sizes and names


@pytest.mark.parametrize(("size", "k", "stride", "padding", "out"), [
    (7, 3, 2, "same", 14), (7, 3, 2, "valid", 15), (7, 2, 3, "valid", 21), (7, 5, 1, "valid", 11),
    (7, 2, 3, "same", 21), (1, 4, 4, "valid", 4), (7, 3, 2, ((1, 0), 0), 14),
    (7, 4, 2, (1, 0), 14), (7, 2, 3, ((0, 1), 0), 20),
])
def test_the_output_of_a_transposed_convolution_has_tensorflows_size(size, k, stride, padding, out):
    layer = Conv2DTranspose(2, (k, 1), strides=(stride, 1), padding=padding)
    assert layer.build((None, size, 3, 4), rng=0) == (None, out, 3, 2)
    assert layer.kernel.shape == (k, 1, 2, 4)


@pytest.mark.parametrize("padding", ["same", "valid", ((1, 0), (0, 1))])
def test_a_transposed_convolution_is_the_adjoint_of_the_convolution(padding):
    """<conv(x), y> = <x, transposed(y)> if both have the same kernel and no bias."""
    forward = Conv2D(4, 3, strides=2, padding=padding, use_bias=False)
    back = Conv2DTranspose(3, 3, strides=2, padding=padding, use_bias=False)
    size = 7 if padding == "valid" else 8
    (_, *out) = forward.build((None, size, size, 3), rng=0, dtype=np.float64)
    assert back.build((None, *out), rng=0, dtype=np.float64) == (None, size, size, 3)
    back.kernel.value[...] = forward.kernel.value
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, size, size, 3)), rng.standard_normal((2, *out))
    product = np.sum(forward.forward(x, mc.Context()) * y)
    assert np.isclose(np.sum(x * back.forward(y, mc.Context())), product, rtol=1e-12)


def test_parameters():
    layers = [
        Conv2DTranspose(8, (3, 5)), DepthwiseConv2D((3, 5), depth_multiplier=2),
        SeparableConv2D(8, (3, 5), depth_multiplier=2),
        DepthwiseConv2D(3, use_bias=False, name="d"),
    ]
    for layer in layers:
        layer.build((None, 9, 9, 4), rng=0)
    assert [[(p.name, p.shape) for p in layer.parameters] for layer in layers] == [
        [("conv2d_transpose/kernel", (3, 5, 8, 4)), ("conv2d_transpose/bias", (8,))],
        [("depthwise_conv2d/depthwise_kernel", (3, 5, 4, 2)), ("depthwise_conv2d/bias", (8,))],
        [
            ("separable_conv2d/depthwise_kernel", (3, 5, 4, 2)),
            ("separable_conv2d/pointwise_kernel", (1, 1, 8, 8)),
            ("separable_conv2d/bias", (8,)),
        ],
        [("d/depthwise_kernel", (3, 3, 4, 1))],
    ]
    assert layers[3].bias is None


def test_each_kernel_has_its_initializer_and_its_regularizer():
    layer = SeparableConv2D(
        2, 3, depthwise_initializer=1.0, pointwise_initializer=2.0, bias_initializer=3.0,
        depthwise_regularizer=l1_regularizer(1), pointwise_regularizer=l2_regularizer(2),
        bias_regularizer=l2_regularizer(3),
    )
    layer.build((None, 5, 5, 4), rng=0)
    for number, parameter in enumerate(layer.parameters, 1):
        assert_array_equal(parameter.value, number)
        assert parameter.regularizer.scale == number
    value = mc.losses.regularization(layer)
    assert value == pytest.approx(9 * 4 + 2 * 8 * 2**2 / 2 + 3 * 2 * 3**2 / 2)


def test_an_initializer_is_named_as_the_argument():
    layer = DepthwiseConv2D(3, depthwise_initializer=lambda shape, rng, dtype: np.zeros(1))
    with pytest.raises(ValueError, match="`depthwise_initializer` must return the shape"):
        layer.build((None, 5, 5, 4), rng=0)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: Conv2DTranspose(0, 3), "`filters` must be at least 1, got 0"),
    (lambda: DepthwiseConv2D(3, depth_multiplier=0), "`depth_multiplier` must be at least 1"),
    (lambda: SeparableConv2D(2, 3, depth_multiplier=-1), "`depth_multiplier` must be at least 1"),
    (lambda: DepthwiseConv2D(3, padding="full"), "`padding` must be 'valid', 'same', an integer"),
    (lambda: Conv2DTranspose(2, 3, padding=-1), "`padding` must be at least 0, got -1"),
    (lambda: Conv2DTranspose(2, 3, padding=((1, 2), 0), name="up").build((None, 1, 5, 1), rng=0),
     r"up: `padding` must leave at least one row .*, got \(\(1, 2\), \(0, 0\)\) for .* \(1, 5\)"),

])
def test_wrong_arguments_are_quoted(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("layer", [DepthwiseConv2D(5), SeparableConv2D(2, 5)])
def test_a_window_that_does_not_fit_says_what_to_do(layer):
    with pytest.raises(ValueError, match=r"does not fit into images .* use padding='same'"):
        layer.build((None, 4, 9, 8), rng=0)
    assert Conv2DTranspose(2, 5).build((None, 1, 1, 1), rng=0) == (None, 5, 5, 2)  # any fits


def test_the_transposed_function_passes_every_option_on():
    x = mc.Graph().placeholder("x", (None, 2, 4, 5), np.float32)
    regularizer = l2_regularizer(0.5)
    y = mc.layers.conv2d_transpose(
        inputs=x, filters=3, kernel_size=[2, 3], strides=(2, 1), padding="Same",
        data_format="channels_first", activation=mc.tanh, use_bias=False,
        kernel_initializer="zeros", kernel_regularizer=regularizer, trainable=False, name="up",
    )
    layer = y.op
    assert (y.name, y.shape) == ("up", (None, 3, 8, 5))
    assert (layer.size, layer.strides, layer.padding) == ((2, 3), (2, 1), "same")
    assert isinstance(layer.activation, mc.ops.Tanh)
    assert layer.bias is None
    assert not layer.kernel.trainable
    assert_array_equal(layer.kernel.value, 0)
    assert layer.kernel.regularizer is regularizer
    other = mc.layers.conv2d_transpose(
        x, 3, 1, data_format="channels_first", bias_initializer=0.5, bias_regularizer=regularizer
    ).op
    assert_array_equal(other.bias.value, 0.5)
    assert other.bias.regularizer is regularizer


def test_the_separable_function_passes_every_option_on():
    x = mc.Graph().placeholder("x", (None, 2, 9, 9), np.float32)
    regularizer = l2_regularizer(0.5)
    y = mc.layers.separable_conv2d(
        inputs=x, filters=3, kernel_size=[2, 3], strides=(2, 1), padding="Valid",
        data_format="channels_first", dilation_rate=(1, 2), depth_multiplier=4,
        activation=mc.tanh, use_bias=False, depthwise_initializer=1.0, pointwise_initializer=2.0,
        depthwise_regularizer=regularizer, trainable=False, name="apart",
    )
    layer = y.op
    assert (y.name, y.shape) == ("apart", (None, 3, 4, 5))
    assert (layer.size, layer.strides, layer.dilation_rate) == ((2, 3), (2, 1), (1, 2))
    assert (layer.padding, layer.data_format, layer.bias) == ("valid", "channels_first", None)
    assert isinstance(layer.activation, mc.ops.Tanh)
    assert not layer.pointwise_kernel.trainable
    assert layer.depthwise_kernel.shape == (2, 3, 2, 4)
    assert_array_equal(layer.depthwise_kernel.value, 1)
    assert_array_equal(layer.pointwise_kernel.value, 2)
    assert layer.depthwise_kernel.regularizer is regularizer
    other = mc.layers.separable_conv2d(
        x, 3, 1, data_format="channels_first", bias_initializer=0.5, bias_regularizer=regularizer,
        pointwise_regularizer=regularizer,
    ).op
    assert_array_equal(other.bias.value, 0.5)
    assert other.bias.regularizer is other.pointwise_kernel.regularizer is regularizer


def test_a_summary_names_them():
    model = mc.Sequential([
        DepthwiseConv2D(3), SeparableConv2D(4, 3), Conv2DTranspose(2, 3, strides=2),
    ])
    model.build((None, 9, 9, 3), rng=0)
    text = model.summary()
    for line in ("depthwise_conv2d", "separable_conv2d", "conv2d_transpose", "(None, 11, 11, 2)"):
        assert line in text
    assert "total: 147 parameters" in text  # 27 + 3, 27 + 12 + 4, 72 + 2
