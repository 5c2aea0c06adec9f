"""The ops on arrays: values, gradients and errors."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from tolerances import assert_close

import minicnn as mc
from minicnn import ops

X = np.array([[-30.0, -1.5, -0.25], [0.5, 2.0, 40.0]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


FUNCTIONS = [
    (mc.relu, naive.relu),
    (mc.sigmoid, sigmoid),
    (mc.tanh, np.tanh),
    (mc.identity, lambda x: x),
    (mc.softmax, naive.softmax),
    (mc.log_softmax, naive.log_softmax),
    (mc.leaky_relu, naive.leaky_relu),
    (mc.gelu, naive.gelu),
]
each_function = pytest.mark.parametrize(("function", "expected"), FUNCTIONS)


@each_function
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values(function, expected, dtype):
    x = X.astype(dtype)
    before = x.copy()
    y = function(x)
    assert_close(y, expected(X))
    assert y.dtype == dtype
    assert_array_equal(x, before)


@each_function
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4, 2), (0, 3)])
def test_any_shape_and_layout(function, expected, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    assert function(x).shape == shape
    assert_close(function(np.asfortranarray(x)), expected(x))


@each_function
def test_lists_are_arrays(function, expected):
    assert_close(function(X.tolist()), expected(X))


@each_function
@pytest.mark.parametrize("dtype", [np.int64, np.float16, bool])
def test_other_types_than_floats_must_be_cast(function, expected, dtype):
    message = f"{function.__name__}: float32 or float64 expected, got .*{np.dtype(dtype)}; cast"
    with pytest.raises(TypeError, match=message):
        function(np.ones((2, 3), dtype))


GRADIENTS = {
    "relu": (ops.Relu, (3, 4)),
    "sigmoid": (ops.Sigmoid, (3, 4)),
    "tanh": (ops.Tanh, (3, 4)),
    "identity": (ops.Identity, (3, 4)),
    "leaky_relu": (lambda: ops.LeakyRelu(0.3), (3, 4)),
    "gelu": (ops.Gelu, (3, 4)),
    "gelu, approximate": (lambda: ops.Gelu(approximate=True), (3, 4)),
    "log_softmax": (ops.LogSoftmax, (3, 4)),
    "log_softmax, axis 1": (lambda: ops.LogSoftmax(axis=1), (2, 3, 4)),
    "softmax": (ops.Softmax, (3, 4)),
    "softmax, axis 1": (lambda: ops.Softmax(axis=1), (2, 3, 4)),
    "softmax, axis -2": (lambda: ops.Softmax(axis=-2), (2, 3, 4)),
    "reshape": (lambda: ops.Reshape([-1, 2, 3]), (2, 6)),
    "reshape to images": (lambda: ops.Reshape([-1, 3, 4, 1]), (2, 12)),
    "cast": (lambda: ops.Cast(np.float64), (2, 3)),
}
each_gradient = pytest.mark.parametrize(("make", "shape"), GRADIENTS.values(), ids=GRADIENTS)


@each_gradient
def test_gradients_are_those_of_differences(make, shape):
    report = mc.check_gradients(make(), shape)
    assert report.ok, report
    assert report.skipped == 0


@each_gradient
def test_a_gradient_that_is_not_needed_is_none(make, shape):
    op, ctx = make(), mc.Context()
    y = op.forward(np.ones(shape, np.float32), ctx)
    assert op.backward(np.ones_like(y), ctx, need_dx=False) is None


@pytest.mark.parametrize("make", [
    ops.Relu, ops.LeakyRelu, ops.Gelu, ops.Sigmoid, ops.Tanh, ops.Identity, ops.Softmax,
    ops.LogSoftmax,
])
def test_a_gradient_has_the_shape_and_the_type_of_the_output(make):
    op, ctx, x = make(), mc.Context(), np.ones((3, 4), np.float32)
    op.forward(x, ctx)
    for dy in ("abc", x[:2], x.astype(np.float64)):
        with pytest.raises((ValueError, TypeError), match="the gradient `dy` must be"):
            op.backward(dy, ctx)


@pytest.mark.parametrize("op", [ops.Argmax(1), ops.OneHot(3, 1, 0, -1, np.float32, None)])
def test_ops_without_a_gradient_say_so(op):
    with pytest.raises(TypeError, match=f"{op.kind} has no gradient"):
        op.backward(np.ones(2), mc.Context())


def test_relu_keeps_nan_and_has_no_gradient_at_zero():
    x = np.array([-np.inf, -0.0, 0.0, 3.0, np.inf, np.nan])
    op, ctx = ops.Relu(), mc.Context()
    assert_array_equal(op.forward(x, ctx), [0, 0, 0, 3, np.inf, np.nan])
    assert_array_equal(op.backward(np.full(6, 7.0), ctx), [0, 0, 0, 7, 7, 7])


def test_relu_over_several_chunks():
    x = np.random.default_rng(0).standard_normal(100_001).astype(np.float32)
    op, ctx = ops.Relu(), mc.Context()
    assert_array_equal(op.forward(x, ctx), naive.relu(x))
    assert_array_equal(op.backward(x, ctx), naive.relu_backward(x, x))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_large_numbers(dtype):
    x = np.array([[1e4, 0, -1e4], [1e30, 1e30, 0]], dtype)
    assert_array_equal(mc.softmax(x), [[1, 0, 0], [0.5, 0.5, 0]])


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, np.int64(1)])
def test_softmax_along_an_axis(axis):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    moved = np.moveaxis(naive.softmax(np.moveaxis(x, axis, -1)), -1, axis)
    assert_close(mc.softmax(x, axis=axis), moved)


@pytest.mark.parametrize("axis", [2, -3])
def test_softmax_along_an_axis_that_is_not_there(axis):
    with pytest.raises(ValueError, match="axis"):
        mc.softmax(X, axis=axis)
    with pytest.raises(ValueError, match=f"no `axis` {axis} in an input of shape"):
        ops.Softmax(axis).build((None, 3), rng=0)


def test_leaky_relu_has_the_slope_alpha_below_zero():
    x = np.array([-2.0, 0.0, 3.0, np.nan])
    op, ctx = ops.LeakyRelu(-0.5), mc.Context()
    assert_array_equal(op.forward(x, ctx), [1, 0, 3, np.nan])
    assert_array_equal(op.backward(np.full(4, 2.0), ctx), [-1, -1, 2, 2])
    assert_array_equal(mc.leaky_relu(x, alpha=0.1), naive.leaky_relu(x, 0.1))


def test_gelu_is_exact_to_the_type():
    """P(-10) to 17 digits: 1 + erf would be 0."""
    x = np.array([-10.0, 0.0, 10.0])
    expected = np.array([-10 * 7.6198530241605261e-24, 0, 10])
    assert_allclose(mc.gelu(x), expected, rtol=1e-14)
    assert_allclose(mc.gelu(x.astype(np.float32)), expected, rtol=3e-7)
    x = np.linspace(-6, 6, 100_001)  # several chunks
    assert_allclose(mc.gelu(x), naive.gelu(x), rtol=1e-14, atol=1e-15)


def test_the_approximation_of_gelu_is_its_formula():
    x = np.linspace(-8, 8, 401)
    u = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    y = mc.gelu(x, approximate=True)
    assert_allclose(y, 0.5 * x * (1 + np.tanh(u)), rtol=1e-12, atol=1e-15)
    assert 1e-4 < np.abs(y - mc.gelu(x)).max() < 1e-3


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_softmax_of_large_numbers(dtype):
    x = np.array([[1e4, 0, -1e4], [1e30, 1e30, 0]], dtype)
    assert_allclose(mc.log_softmax(x), [[0, -1e4, -2e4], [-np.log(2), -np.log(2), -1e30]])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_log_softmax_along_an_axis(axis):
    x = np.random.default_rng(0).standard_normal((2, 3, 4))
    assert_close(mc.log_softmax(x, axis=axis), np.log(mc.softmax(x, axis=axis)))


# reshape


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([-1, 28, 28, 1], (2, 28, 28, 1)),
        ((-1, 784), (2, 784)),
        ([2, -1], (2, 784)),
        ([2, 28, -1], (2, 28, 28)),
        (np.array([-1, 784]), (2, 784)),
    ],
)
def test_reshape(shape, expected):
    x = np.arange(2 * 784).reshape(2, 784)
    y = mc.reshape(x, shape)
    assert y.dtype == x.dtype
    assert_array_equal(y, x.reshape(expected))


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        (784, TypeError, "`shape` must be a list of integers, got 784"),
        ([-1, 2.5], TypeError, "`shape` must be an integer, got 2.5"),
        ([-1, -1], ValueError, r"may hold one -1, got \[-1, -1\]"),
        ([-1, 28, 27], ValueError, "cannot reshape array of size 1568"),
        ([-2, 784], ValueError, r"`shape` must be at least -1, got -2"),
    ],
)
def test_reshape_errors(shape, error, message):
    with pytest.raises(error, match=message):
        mc.reshape(np.zeros((2, 784)), shape)


# argmax, one_hot, cast


def test_argmax_takes_the_first_of_equals():
    x = np.array([[0.1, 0.7, 0.7], [3, 1, 3]])
    y = mc.argmax(x, axis=1)
    assert y.dtype == np.int64
    assert_array_equal(y, [1, 0])
    assert_array_equal(mc.argmax(input=x.tolist(), axis=-1), [1, 0])
    assert_array_equal(mc.argmax(x[None], 1), [[1, 1, 1]])


@pytest.mark.parametrize("axis", [None, 1.5, "1"])
def test_argmax_needs_an_axis(axis):
    with pytest.raises(TypeError, match="`axis` must be an integer, got"):
        mc.argmax(X, axis)


@pytest.mark.parametrize("axis", [0, 2, -2, -3])
def test_argmax_is_along_an_axis_after_the_batch(axis):
    with pytest.raises(ValueError, match=f"no `axis` {axis} after the batch"):
        ops.Argmax(axis).build((None, 3), rng=0)
    assert ops.Argmax(-1).build((None, 3), rng=0) == (None,)
    assert ops.Argmax(1).build((None, 3, 4), rng=0) == (None, 4)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_one_hot(dtype):
    y = mc.one_hot(np.array([2, 0], dtype), depth=3)
    assert y.dtype == np.float32
    assert_array_equal(y, [[0, 0, 1], [1, 0, 0]])


def test_one_hot_options():
    y = mc.one_hot(
        indices=[[1, 0]], depth=np.int64(2), on_value=5, off_value=-1, axis=-1, dtype=np.int32
    )
    assert y.dtype == np.int32
    assert_array_equal(y, [[[-1, 5], [5, -1]]])


@pytest.mark.parametrize(("axis", "shape"), [(-1, (2, 3, 4)), (2, (2, 3, 4)), (1, (2, 4, 3))])
def test_one_hot_along_an_axis(axis, shape):
    indices = np.array([[0, 1, 2], [3, 3, 0]])
    y = mc.one_hot(indices, depth=4, axis=axis)
    assert y.shape == shape
    assert y.flags.c_contiguous
    assert_array_equal(y.argmax(axis=axis), indices)
    built = ops.OneHot(4, 1, 0, axis, np.float32, None).build((None, 3), rng=0, dtype=np.int64)
    assert built == (None, *shape[1:])


def test_one_hot_of_an_index_outside_is_all_off():
    assert_array_equal(mc.one_hot(np.array([3, -1, 1]), depth=3), [[0] * 3, [0] * 3, [0, 1, 0]])


def test_one_hot_errors():
    with pytest.raises(TypeError, match=r"one_hot: .* integers, got float64.*astype"):
        mc.one_hot(np.array([1.0]), depth=3)
    with pytest.raises(ValueError, match="`depth` must be at least 1, got 0"):
        mc.one_hot([1], depth=0)
    with pytest.raises(TypeError, match="`depth` must be an integer, got None"):
        mc.one_hot([1], depth=None)
    with pytest.raises(ValueError, match="no `axis` 0 after the batch"):
        ops.OneHot(3, 1, 0, 0, np.float32, None).build((None,), rng=0, dtype=np.int64)


def test_cast():
    assert_array_equal(mc.cast(np.array([1.7, -1.7]), np.int32), [1, -1])
    assert mc.cast([1, 2], np.float32).dtype == np.float32
    op, ctx = ops.Cast(np.float64), mc.Context()
    x = np.ones((2, 3), np.float32)
    assert op.forward(x, ctx).dtype == np.float64
    assert op.backward(np.ones((2, 3)), ctx).dtype == np.float32


# The argument `activation`


def test_activation():
    assert ops.activation(None) is None
    op = ops.Softmax(axis=1)
    assert ops.activation(op) is op
    for spec in ("relu", "RELU", mc.relu):
        assert isinstance(ops.activation(spec), ops.Relu)
    assert ops.activation("relu") is not ops.activation("relu")  # each layer has its own
    with pytest.raises(ValueError, match=r"`activation` must be one of 'relu', .* got 'rleu'"):
        ops.activation("rleu")
