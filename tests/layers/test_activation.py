"""Activation and the argument `activation`: given by name, as a function and as an op."""

import naive
import numpy as np
import pytest
from layers.passes import assert_same_pass, forward_and_back, numbers
from tolerances import assert_close

import minicnn as mc
from minicnn.layers import Activation, Conv2D, Dense

X = np.array([[-30.0, -1.5, -0.25], [0.5, 2.0, 40.0]])
DY = np.array([[1.0, -2.0, 3.0], [0.5, 0.25, -1.0]])


def softmax_backward(x, dy):
    p = naive.softmax(x)
    return p * (dy - (dy * p).sum(axis=-1, keepdims=True))


def log_softmax_backward(x, dy):
    return dy - naive.softmax(x) * dy.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = {
    "relu": (mc.relu, naive.relu, naive.relu_backward),
    "leaky_relu": (mc.leaky_relu, naive.leaky_relu, naive.leaky_relu_backward),
    "gelu": (mc.gelu, naive.gelu, naive.gelu_backward),
    "log_softmax": (mc.log_softmax, naive.log_softmax, log_softmax_backward),
    "softmax": (mc.softmax, naive.softmax, softmax_backward),
    "sigmoid": (mc.sigmoid, sigmoid, lambda x, dy: dy * sigmoid(x) * (1 - sigmoid(x))),
    "tanh": (mc.tanh, np.tanh, lambda x, dy: dy / np.cosh(x) ** 2),
    "identity": (mc.identity, lambda x: x, lambda x, dy: dy),
}
each_function = pytest.mark.parametrize("name", FUNCTIONS)


def built(layer, shape, dtype=np.float32):
    layer.build((None, *shape), rng=0, dtype=dtype)
    return layer


@each_function
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_and_gradients_are_those_of_the_definition(name, dtype):
    _, value, gradient = FUNCTIONS[name]
    layer = built(Activation(name), (3,), dtype)
    y, dx, grads = forward_and_back(layer, X.astype(dtype), DY.astype(dtype))
    assert_close(y, value(X))
    assert_close(dx, gradient(X, DY))
    assert grads == []


@each_function
def test_a_name_and_its_function_are_the_same(name):
    function, *_ = FUNCTIONS[name]
    x = numbers((2, 3))
    expected = forward_and_back(built(Activation(name), (3,)), x)
    for spec in (name.upper(), function, Activation(name).activation):
        assert_same_pass(forward_and_back(built(Activation(spec), (3,)), x), expected)


@each_function
@pytest.mark.parametrize(
    "make", [lambda a: Dense(4, activation=a), lambda a: Conv2D(4, 2, activation=a)]
)
def test_the_argument_equals_the_layer(name, make):
    shape = (3,) if isinstance(make(None), Dense) else (4, 5, 3)
    argument, linear = built(make(name), shape), built(make(None), shape)
    x, ctx = numbers((2, *shape)), mc.Context()
    z = linear.forward(x, ctx)
    own = built(Activation(name), z.shape[1:])
    y = own.forward(z, ctx)
    dy = numbers(y.shape, seed=1)
    result = forward_and_back(argument, x, dy)
    assert_close(result.y, y)
    assert_close(result.dx, linear.backward(own.backward(dy, ctx), ctx))
    for gradient, parameter in zip(result.grads, linear.parameters, strict=True):
        assert_close(gradient, parameter.grad)


def test_relu_at_zero_has_no_gradient():
    layer = built(Activation("relu"), (4,))
    x = np.array([[-0.0, 0.0, 1e-30, np.nan]], np.float32)
    y, dx, _ = forward_and_back(layer, x, np.ones((1, 4), np.float32))
    np.testing.assert_array_equal(y, [[0, 0, np.float32(1e-30), np.nan]])
    np.testing.assert_array_equal(dx, [[0, 0, 1, 1]])


def test_softmax_and_sigmoid_do_not_overflow():
    x = np.array([[-1e4, 0, 1e4]], np.float32)
    assert_close(built(Activation("softmax"), (3,)).forward(x, mc.Context()), [[0, 0, 1]])
    assert_close(built(Activation("sigmoid"), (3,)).forward(x, mc.Context()), [[0, 0.5, 1]])


def test_softmax_normalizes_the_last_axis():
    y = built(Activation("softmax"), (4, 3)).forward(numbers((2, 4, 3)), mc.Context())
    assert_close(y.sum(axis=-1), np.ones((2, 4)))


def test_a_custom_op():
    class Square(mc.Op):
        def forward(self, x, ctx):
            ctx[self] = x
            return x * x

        def backward(self, dy, ctx, need_dx=True):
            return 2 * dy * ctx[self] if need_dx else None

    for layer in (Activation(Square()), Dense(2, activation=Square())):
        report = mc.check_gradients(layer, (2, 3))
        assert report.ok, report


class Leaky(mc.Op):
    """y = x if x > 0, else a x, with a trained a."""

    def build(self, input_shape, rng, dtype=np.float32):
        self.a = mc.Parameter(f"{self.label}/a", np.full((), 0.2, dtype))
        return input_shape

    def forward(self, x, ctx):
        ctx[self] = x
        return np.where(x > 0, x, self.a.value * x)

    def backward(self, dy, ctx, need_dx=True):
        x = ctx[self]
        self.a.grad[...] = (dy * np.minimum(x, 0)).sum()
        return np.where(x > 0, dy, self.a.value * dy)


@pytest.mark.parametrize(
    "make", [Activation, lambda op: Dense(3, activation=op)], ids=["activation", "dense"]
)
def test_an_op_with_a_parameter_is_trained(make):
    layer = built(make(Leaky()), (3,))
    assert [p.name for p in layer.parameters if p.shape == ()] == ["leaky/a"]
    report = mc.check_gradients(make(Leaky()), (2, 3))
    assert report.ok, report


def test_an_axis_that_does_not_exist_is_an_error_at_build():
    for layer in (Activation(mc.ops.Softmax(5)), Dense(3, activation=mc.ops.Softmax(5))):
        with pytest.raises(ValueError, match="no `axis` 5 in an input of shape"):
            layer.build((None, 3), rng=0)


@pytest.mark.parametrize("spec", ["rleu", np.tanh, 3, lambda x: x, mc.ops.Relu])
def test_the_error_quotes_a_wrong_activation(spec):
    for make in (Activation, lambda spec: Dense(2, activation=spec)):
        with pytest.raises(ValueError, match=r"`activation` must be one of 'relu', .* got "):
            make(spec)


def test_activation_none_is_an_error():
    with pytest.raises(TypeError, match=r"`activation` must be a function, .*got None"):
        Activation(None)
