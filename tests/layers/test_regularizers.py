"""L1 and L2 regularizers: their formulas, where layers keep them, and in a loop of one's own."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.layers import Conv2D, Dense, Flatten, l1_regularizer, l2_regularizer

W = np.array([[3.0, -4.0], [0.0, 0.5]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("regularizer", "value"), [
    (l1_regularizer(0.1), 0.1 * 7.5),
    (l2_regularizer(0.1), 0.1 * 25.25 / 2),
    (l1_regularizer(0), 0),
    (l2_regularizer(0), 0),
])
def test_values_and_gradients_are_those_of_the_definition(regularizer, value, dtype):
    w = W.astype(dtype)
    assert isinstance(regularizer(w), float)
    assert regularizer(w) == pytest.approx(value)
    gradient = regularizer.gradient(w)
    assert gradient.dtype == dtype
    away = np.where(W == 0, 1, W)  # |w| has no derivative at 0
    expected = np.where(W == 0, 0, naive.numeric_gradient(regularizer, away))
    assert_allclose(gradient, expected, atol=1e-6)
    assert_array_equal(w, W)


def test_the_sum_of_many_float32_weights_is_exact():
    w = np.full(3_000_000, 0.1, np.float32)
    assert l1_regularizer(1)(w) == pytest.approx(3e5, rel=1e-6)
    assert l2_regularizer(2)(w) == pytest.approx(3e4, rel=1e-6)


def test_layers_give_their_regularizers_to_their_parameters():
    l1, l2 = l1_regularizer(0.1), l2_regularizer(0.2)
    for layer, shape in (
        (Conv2D(2, 3, kernel_regularizer=l1, bias_regularizer=l2), (None, 5, 5, 1)),
        (Dense(2, kernel_regularizer=l1, bias_regularizer=l2), (None, 5)),
    ):
        layer.build(shape, rng=0)
        assert layer.kernel.regularizer is l1
        assert layer.bias.regularizer is l2
        layer.reset_parameters(rng=1)
        assert layer.kernel.regularizer is l1
    plain = Dense(2)
    plain.build((None, 5), rng=0)
    assert plain.kernel.regularizer is None


@pytest.mark.parametrize("make", [
    lambda **options: Conv2D(2, 3, **options),
    lambda **options: Dense(2, **options),
    lambda **options: mc.layers.conv2d(
        mc.Graph().placeholder("x", (None, 5, 5, 1), np.float32), 2, 3, **options
    ),
    lambda **options: mc.layers.dense(
        mc.Graph().placeholder("x", (None, 5), np.float32), 2, **options
    ),
])
@pytest.mark.parametrize("option", ["kernel_regularizer", "bias_regularizer"])
def test_what_is_no_regularizer_says_what_to_write(make, option):
    for wrong in ("l2", 0.1, np.abs, [l2_regularizer(0.1)]):
        with pytest.raises(TypeError, match=rf"`{option}` must be None, .* got .*; write {option}"):
            make(**{option: wrong})
    make(**{option: mc.layers.l2_regularizer(0.0001)})


def model_of(**options):
    model = mc.Sequential([Conv2D(3, 3, **options), Flatten(), Dense(4, **options)])
    model.build((None, 5, 5, 1), rng=0)
    return model


def backward(model):
    ctx = mc.Context(training=True)
    x = np.random.default_rng(0).standard_normal((6, 5, 5, 1), np.float32)
    logits = model.forward(x, ctx)
    _, gradient = mc.losses.softmax_cross_entropy_with_grad(np.arange(6) % 4, logits)
    model.backward(gradient, ctx, need_dx=False)
    return [parameter.grad.copy() for parameter in model.parameters]


def test_in_a_loop_of_ones_own():
    model = model_of(kernel_regularizer=l2_regularizer(0.3))
    before = backward(model)
    value = mc.losses.regularization(model)
    kernels = [model.parameters[0], model.parameters[2]]
    assert value == pytest.approx(sum(0.15 * np.sum(k.value.astype(float) ** 2) for k in kernels))
    for parameter, gradient in zip(model.parameters, before, strict=True):
        extra = 0.3 * parameter.value if parameter in kernels else 0
        assert_allclose(parameter.grad, gradient + extra, rtol=1e-6, atol=1e-7)
    again = backward(model)  # overwrites the gradients
    for gradient, expected in zip(again, before, strict=True):
        assert_same_bits(gradient, expected)


def test_l2_is_weight_decay():
    decayed, regularized = model_of(), model_of(
        kernel_regularizer=l2_regularizer(0.3), bias_regularizer=l2_regularizer(0.3)
    )
    optimizers = mc.optimizers.SGD(0.1, weight_decay=0.3), mc.optimizers.SGD(0.1)
    for _ in range(3):
        backward(decayed)
        optimizers[0].step(decayed.parameters)
        backward(regularized)
        mc.losses.regularization(regularized)
        optimizers[1].step(regularized.parameters)
    for one, other in zip(decayed.parameters, regularized.parameters, strict=True):
        assert_allclose(one.value, other.value, rtol=1e-5, atol=1e-7)


def test_a_model_without_regularizers_stays_as_it_is():
    model = model_of()
    before = backward(model)
    assert mc.losses.regularization(model) == 0
    for parameter, gradient in zip(model.parameters, before, strict=True):
        assert_same_bits(parameter.grad, gradient)


def test_a_model_that_is_not_built_is_an_error():
    with pytest.raises(ValueError, match=r"no parameters, got .*; call build first"):
        mc.losses.regularization(Dense(2))


def test_a_function_of_ones_own():
    class Nearness:
        """(w - 1)^2: weights stay near 1."""

        def __call__(self, value):
            return ((value - 1) ** 2).sum()

        def gradient(self, value):
            return 2 * (value - 1)

    layer = Dense(1, kernel_initializer=3.0, kernel_regularizer=Nearness())
    layer.build((None, 2), rng=0)
    assert mc.losses.regularization(layer) == 8
    assert_array_equal(layer.kernel.grad, [[4], [4]])
