"""Dense: comparison with the definition, and its arguments."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import forward_and_back, numbers
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.layers import Dense


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 70),
    st.booleans(),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_values_and_gradients_are_those_of_the_definition(rows, depth, units, bias, dtype, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((*rows, depth)).astype(dtype)
    dy = rng.standard_normal((*rows, units)).astype(dtype)
    layer = Dense(units, use_bias=bias)
    assert layer.build((None, *x.shape[1:]), rng, dtype) == (None, *dy.shape[1:])
    w, b = layer.kernel.value, layer.bias.value if bias else np.zeros(units, dtype)
    b += rng.standard_normal(units).astype(dtype) * bias

    actual = forward_and_back(layer, x, dy)

    assert_close(actual.y, naive.dense(x, w, b), naive.dense(abs(x), abs(w), abs(b)))
    expected = naive.dense_backward(x, w, dy)
    sizes = naive.dense_backward(abs(x), abs(w), abs(dy))
    gradients = actual.dx, *actual.grads
    for gradient, right, size in zip(gradients, expected, sizes, strict=bias):
        assert_close(gradient, right, size)


@pytest.mark.parametrize("units", [1, 63, 64, 65, 130])  # the kernel cuts blocks of 64
@pytest.mark.parametrize("depth", [1, 100])
def test_sizes_around_the_blocks_of_the_kernels(units, depth):
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((7, depth)), rng.standard_normal((7, units))
    layer = Dense(units)
    layer.build((None, depth), rng=0, dtype=np.float64)
    actual = forward_and_back(layer, x, dy)
    w = layer.kernel.value
    assert_close(actual.y, x @ w, abs(x) @ abs(w))
    assert_close(actual.dx, dy @ w.T, abs(dy) @ abs(w.T))
    assert_close(actual.grads[0], x.T @ dy, abs(x.T) @ abs(dy))
    assert_close(actual.grads[1], dy.sum(axis=0), abs(dy).sum(axis=0))


def test_more_axes_are_more_rows():
    layer = Dense(4, activation="softmax")
    layer.build((None, 2, 3, 5), rng=0)
    flat = Dense(4, activation="softmax")
    flat.build((None, 5), rng=0)
    x = numbers((2, 2, 3, 5))
    y = layer.forward(x, mc.Context())
    assert y.shape == (2, 2, 3, 4)
    assert_same_bits(y.reshape(-1, 4), flat.forward(x.reshape(-1, 5), mc.Context()))


def test_parameters():
    layer = Dense(1024)
    layer.build((None, 3136), rng=0)
    assert [(p.name, p.shape) for p in layer.parameters] == [
        ("dense/kernel", (3136, 1024)),
        ("dense/bias", (1024,)),
    ]
    limit = np.sqrt(6 / (3136 + 1024))  # Glorot's
    assert 0.99 * limit < abs(layer.kernel.value).max() <= limit
    assert_array_equal(layer.bias.value, 0)


def test_parameters_as_asked():
    layer = Dense(3, use_bias=False, kernel_initializer=2.0, trainable=False, name="logits")
    layer.build((None, 2), rng=0)
    assert layer.bias is None
    [kernel] = layer.parameters
    assert kernel.name == "logits/kernel"
    assert not kernel.trainable
    assert_array_equal(kernel.value, np.full((2, 3), 2))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_custom_initializer_may_return_another_type(dtype):
    layer = Dense(
        3,
        kernel_initializer=lambda shape, rng, dtype: rng.normal(size=shape),
        bias_initializer=lambda shape, rng, dtype: [1, 2, 3],
    )
    layer.build((None, 2), rng=0, dtype=dtype)
    assert layer.kernel.dtype == layer.bias.dtype == dtype
    expected = np.random.default_rng(0).normal(size=(2, 3)).astype(dtype)
    assert_array_equal(layer.kernel.value, expected)
    assert_array_equal(layer.bias.value, [1, 2, 3])


def test_an_initializer_of_the_wrong_shape_is_an_error():
    layer = Dense(3, kernel_initializer=lambda shape, rng, dtype: np.zeros((3, 2), dtype))
    with pytest.raises(ValueError, match=r"kernel.*\(2, 3\).*\(3, 2\)"):
        layer.build((None, 2), rng=0)


WRONG = [
    ({"units": 0}, ValueError, "`units` must be at least 1", "0"),
    ({"units": 2.0}, TypeError, "`units` must be an integer", "2.0"),
    ({"activation": 3}, ValueError, "`activation` must be one of 'relu', ", "3"),
    ({"kernel_initializer": []}, TypeError, "`kernel_initializer` must be a name, a number", "[]"),
    ({"bias_initializer": "one"}, ValueError, "`bias_initializer` must be 'glorot_u", "'one'"),
    ({"name": ""}, TypeError, "`name` must be a string that is not empty", "''"),
]


@pytest.mark.parametrize(("option", "error", "expected", "got"), WRONG, ids=str)
def test_wrong_arguments_are_quoted(option, error, expected, got):
    with pytest.raises(error) as caught:
        Dense(**{"units": 2, **option})
    message = str(caught.value)
    assert expected in message
    assert f"got {got}" in message


def test_units_are_an_integer_of_any_kind():
    assert Dense(np.uint8(3)).build((None, 2), rng=0) == (None, 3)


def test_a_row_without_features_is_an_error():
    with pytest.raises(ValueError, match=r"dense: `inputs` must be \(N, ..., features\), got \(N"):
        Dense(2).build((None,), rng=0)


def test_the_function_passes_every_option_on():
    x = mc.Graph().placeholder("x", (None, 9), np.float32)
    y = mc.layers.dense(
        inputs=x,
        units=3,
        activation=mc.sigmoid,
        use_bias=False,
        kernel_initializer="zeros",
        trainable=False,
        kernel_regularizer=mc.layers.l2_regularizer(0.5),
        name="logits",
    )
    assert (y.name, y.shape) == ("logits", (None, 3))
    assert isinstance(y.op.activation, mc.ops.Sigmoid)
    assert y.op.bias is None
    assert not y.op.kernel.trainable
    assert y.op.kernel.regularizer.scale == 0.5
    assert_array_equal(y.op.kernel.value, 0)
    assert_array_equal(mc.layers.dense(x, 3, bias_initializer=0.5).op.bias.value, 0.5)
