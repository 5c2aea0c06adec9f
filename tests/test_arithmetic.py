"""Sums, products, concat and means of arrays and Tensors: values, gradients and errors."""

import re

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn import ops

A = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
IMAGES = np.random.default_rng(2).standard_normal((3, 5, 4, 2)).astype(np.float32)


def placeholder(shape=(None, 4), dtype=np.float32, graph=None):
    graph = mc.Graph() if graph is None else graph
    return graph.placeholder("x", shape, dtype)


def computed(function, *arrays):
    """Return the value of a function of Tensors, computed by a graph, and the graph's plan."""
    graph = mc.Graph()
    tensors = [placeholder((None, *a.shape[1:]), a.dtype, graph) for a in arrays]
    y = function(*tensors)
    feeds = dict(zip(tensors, arrays, strict=True))
    value = graph.plan([y]).forward(feeds, mc.Context())[y]
    assert np.shape(value)[1:] == y.shape[1:]
    assert np.asarray(value).dtype == y.dtype
    return value


# Operators

EXPRESSIONS = [
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, lambda a, b: -a + b,
    lambda a, b: 1 - a + b, lambda a, b: 2 * a - 0.5 * b + 3, lambda a, b: (a + 1) * (b - 1),
    lambda a, b: np.float32(2) * a + b * np.float64(0.25), lambda a, b: a / 2 + b,
    lambda a, b: a + a + b, lambda a, b: a * a - b, lambda a, b: np.int64(3) + a - b,
]
each_expression = pytest.mark.parametrize("expression", EXPRESSIONS)


@each_expression
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_operators_of_tensors_are_those_of_numpy(expression, dtype):
    a, b = A.astype(dtype), B.astype(dtype)
    assert_close(computed(expression, a, b), expression(a, b).astype(dtype))


class Expression(mc.Op):
    """A graph of two inputs as an op, to check its gradient."""

    def __init__(self, expression, shape):
        super().__init__()
        self._graph = mc.Graph()
        tensors = [self._graph.placeholder(n, (None, *shape), np.float64) for n in "ab"]
        self._feeds = tensors
        # The plan computes gradients of what depends on a parameter.
        self._scales = [mc.layers.Layer.__call__(Trained(), tensor) for tensor in tensors]
        self._loss = mc.reduce_sum(expression(*self._scales) * mc.tanh(self._scales[0]))
        self._plan = self._graph.plan([self._loss])

    def build(self, input_shape, rng, dtype=np.float32):
        return ()

    def forward(self, a, b, ctx):
        ctx[self] = ctx
        return self._plan.forward(dict(zip(self._feeds, (a, b), strict=True)), ctx)[self._loss]

    def backward(self, dy, ctx, need_dx=True):
        self._plan.backward(self._loss, ctx, float(dy))
        return tuple(scale.op.dx for scale in self._scales)


class Trained(mc.Op):
    """y = x, and notes the gradient."""

    def build(self, input_shape, rng, dtype=np.float32):
        self.p = mc.Parameter(f"{self.label}/p", np.zeros(1))
        return input_shape

    def forward(self, x, ctx):
        return x

    def backward(self, dy, ctx, need_dx=True):
        self.dx = dy.copy()


@each_expression
def test_gradients_of_expressions(expression):
    report = mc.check_gradients(Expression(expression, (4,)), [(3, 4), (3, 4)])
    assert report.ok, report


def test_a_relu_after_a_sum_is_computed_in_the_same_pass():
    graph = mc.Graph()
    a, b = placeholder(graph=graph), placeholder(graph=graph)
    y = mc.relu(a + b)
    plan = graph.plan([y])
    assert len(plan.steps) == 1
    assert len(graph.plan([y], fuse=False).steps) == 2
    value = plan.forward({a: A, b: B}, mc.Context())[y]
    assert_same_bits(value, np.maximum(A + B, 0))
    report = mc.check_gradients(Expression(lambda a, b: mc.relu(a + b), (4,)), [(3, 4), (3, 4)])
    assert report.ok, report


def test_functions_of_arrays():
    assert_same_bits(mc.add(A, B), A + B)
    assert_same_bits(mc.add(A, 2), A + 2)
    assert_same_bits(mc.add(2.5, A), A + 2.5)
    assert mc.add(placeholder(), 1, name="more").name == "more"


def test_names_count_up():
    x = placeholder()
    assert [t.name for t in (x + x, x + x, x * x, 2 * x)] == ["add", "add_1", "multiply", "scale"]


def test_losses_can_be_added():
    graph = mc.Graph(rng=0)
    x, labels = placeholder(graph=graph), graph.placeholder("labels", (None,), np.int64)
    logits = mc.layers.dense(x, 3)
    one = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    loss = one + 0.5 * mc.reduce_mean(logits * logits) - one * 0.25
    plan, ctx = graph.plan([loss, logits]), mc.Context()
    values = plan.forward({x: A, labels: np.array([0, 2, 1])}, ctx)
    y = values[logits]
    single, dy = mc.losses.softmax_cross_entropy_with_grad(np.array([0, 2, 1]), y)
    assert_close(values[loss], 0.75 * single + 0.5 * (y * y).mean())
    plan.backward(loss, ctx, 2.0)
    dy = 2 * (0.75 * dy + y / y.size)
    assert_close(graph.parameters["dense/kernel"].grad, A.T @ dy)


def test_three_uses_of_a_tensor_give_the_sum_of_three_gradients():
    report = mc.check_gradients(Expression(lambda a, b: a + a * b + mc.tanh(a) - a, (4,)),
                                [(2, 4), (2, 4)])
    assert report.ok, report


# concat


@pytest.mark.parametrize("axis", [1, 2, -1, np.int64(2)])
def test_concat(axis):
    parts = [IMAGES, IMAGES[:, ::2] if axis == 1 else IMAGES, IMAGES]
    parts = [parts[0], parts[1][:, :, :3] if axis == 2 else parts[1], parts[2]]
    expected = np.concatenate(parts, axis)
    assert_same_bits(mc.concat(parts, axis), expected)
    assert_same_bits(computed(lambda *t: mc.concat(list(t), axis), *parts), expected)


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_gradients_of_concat(axis):
    shapes = [[2, 3, 4], [2, 3, 4], [2, 3, 4]]
    shapes[1][axis] = 1
    report = mc.check_gradients(ops.Concat(axis), shapes)
    assert report.ok, report
    assert mc.check_gradients(ops.Concat(axis), (2, 3, 4)).ok


def test_gradients_of_concat_are_in_c_order():
    op, ctx = ops.Concat(2), mc.Context()
    y = op.forward(IMAGES, IMAGES, ctx)
    assert all(dx.flags.c_contiguous for dx in op.backward(y, ctx))
    assert op.backward(y, ctx, need_dx=False) == (None, None)


# reduce_sum and reduce_mean


@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", [None, 1, -1, [1, 2], (3, 1), [-1, 3], []])
@pytest.mark.parametrize("name", ["sum", "mean"])
def test_reductions(name, axis, keepdims):
    function = getattr(mc, f"reduce_{name}")
    axes = None if axis is None else tuple({a % 4 for a in np.atleast_1d(axis).astype(int)})
    expected = getattr(np, name)(IMAGES.astype(np.float64), axis=axes, keepdims=keepdims)
    for y in (function(IMAGES, axis, keepdims),
              computed(lambda x: function(x, axis=axis, keepdims=keepdims), IMAGES)):
        assert y.dtype == np.float32
        assert_close(y, expected)
    axes = range(4) if axis is None else axes
    report = mc.check_gradients(
        getattr(ops, f"Reduce{name.title()}")(tuple(axes), keepdims), (2, 3, 2, 2)
    )
    assert report.ok, report


def test_a_long_sum_is_precise():
    x = np.full((1, 1_000_001), 0.1, np.float32)
    exact = np.float64(np.float32(0.1)) * x.size
    assert abs(float(mc.reduce_sum(x)) - exact) / exact < 1e-7


def test_a_mean_can_be_the_loss():
    def model_fn(features, labels, mode):
        error = mc.layers.dense(features, 1) - labels
        loss = mc.reduce_mean(error * error)
        return mc.ModelFnOps(mode, {"error": error}, loss, mc.optimize_loss(loss, None, 0.2))

    estimator = mc.Estimator(model_fn, config=mc.RunConfig(seed=0, progress=False))
    target = A @ np.array([[1], [2], [-1], [0.5]], np.float32)
    estimator.fit(A, target, steps=200, batch_size=3)
    assert estimator.evaluate(A, target)["loss"] < 1e-4


# Errors


def refused(function, *arguments):
    with pytest.raises((TypeError, ValueError)) as error:
        function(*arguments)
    return str(error.value)


@pytest.mark.parametrize(("other", "words"), [
    ((None,), "(None,)"), ((None, 1), "(None, 1)"), ((None, 4, 1), "(None, 4, 1)"),
    ((4,), "(4,)"), ((), "()"),
])
@pytest.mark.parametrize("function", [
    lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b, mc.add,
])
def test_nothing_is_broadcast(function, other, words):
    graph = mc.Graph()
    x, y = placeholder(graph=graph), placeholder(other, graph=graph)
    for message in (refused(function, x, y), refused(function, y, x)):
        assert "`x` and `y` must have the same shape" in message
        assert words in message and "(None, 4)" in message
        assert "nothing is broadcast" in message


def test_the_remedies_for_other_shapes_work():
    graph = mc.Graph()
    a, b, c = (placeholder(shape, graph=graph) for shape in ((None, 3), (None, 1), (None,)))
    remedy = re.search(r"mc\.concat\(.*\)$", refused(mc.add, a, b)).group(0)
    y = a + eval(remedy, {"x": b, "mc": mc})
    assert (y * a).shape == (None, 3)
    assert (b + mc.reshape(c, [-1, 1])).shape == (None, 1)
    d = placeholder(dtype=np.float64, graph=graph)
    assert mc.add(mc.cast(placeholder(graph=graph), np.float64), d).dtype == np.float64


def test_arrays_of_other_shapes():
    assert "nothing is broadcast" in refused(mc.add, A, A[0])
    assert "nothing is broadcast" in refused(mc.add, A, A[:, :1])
    assert "same shape and type, got" in refused(mc.add, A, B.astype(np.float64))
    with pytest.raises(ValueError, match="must have the same shape"):
        ops.Multiply().forward(A, A[:1], mc.Context())


@pytest.mark.parametrize("use", [
    lambda x: x + A, lambda x: A + x, lambda x: x * A, lambda x: A - x, lambda x: mc.add(x, A),
    lambda x: mc.concat([x, A], 1),
])
def test_arrays_and_tensors_do_not_mix(use):
    assert "arrays and Tensors do not mix" in refused(use, placeholder())


@pytest.mark.parametrize(("use", "words"), [
    (lambda x: x + None, "`y`"), (lambda x: x * "2", "`y`"), (lambda x: [1] - x, "float"),
    (lambda x: x + True, "`number` must be a number, got True"),
    (lambda x: x + np.nan, "`number` must be a finite number"),
    (lambda x: x / x, "/ by a number"), (lambda x: 1 / x, "/ by a number"),
    (lambda x: x / A, "do not mix"),
])
def test_other_operands(use, words):
    assert words in refused(use, placeholder())


def test_integers_must_be_cast():
    x = placeholder(dtype=np.uint8)
    for use in (lambda x: x + 1, lambda x: x * x, lambda x: x / 255, mc.reduce_mean):
        assert re.search(r"float32 or float64 expected, got .*cast", refused(use, x))
    y = mc.cast(x, np.float32) / 255
    assert y.dtype == np.float32


def test_the_types_must_be_the_same():
    graph = mc.Graph()
    x, y = placeholder(graph=graph), placeholder(dtype=np.float64, graph=graph)
    assert "use mc.cast" in refused(mc.add, x, y)
    assert "one type, got" in refused(mc.concat, [x, y], 1)


@pytest.mark.parametrize(("shapes", "axis", "words"), [
    ([(None, 3), (None, 3, 1)], 1, "(None, 3, 1)"), ([(None, 3, 2), (None, 4, 3)], 2, "reshape"),
    ([(None, 3)], 2, "no `axis` 2"), ([(None, 3)] * 2, 0, "after the batch"),
    ([(None, 3)] * 2, -2, "after the batch"), ([], 1, "at least one"),
])
def test_concat_of_other_shapes(shapes, axis, words):
    graph = mc.Graph()
    assert words in refused(mc.concat, [placeholder(s, graph=graph) for s in shapes], axis)
    message = refused(mc.concat, [np.zeros((2, *s[1:])) for s in shapes], axis)
    assert words.replace("None", "2") in message


def test_axes_of_reductions():
    x = placeholder((None, 3, 4))
    assert "no `axis` 3" in refused(mc.reduce_sum, x, 3)
    assert "`axis` 0 of (None, 3, 4) is the batch" in refused(mc.reduce_mean, x, 0)
    assert "is the batch" in refused(mc.reduce_mean, x, [0, 1])
    assert mc.reduce_sum(x, [0, 1, 2]).shape == mc.reduce_mean(x).shape == ()
    assert_array_equal(mc.reduce_sum(A, 0), A.sum(axis=0, dtype=np.float64).astype(np.float32))


@pytest.mark.parametrize(("use", "words"), [
    (len, "shape"), (float, "predictions"), (int, "LoggingTensorHook"),
    (lambda x: x > 0, "compared"), (lambda x: x <= 0, "compared"), (lambda x: x**2, "x * x"),
    (lambda x: x @ x, "layers.dense"), (lambda x: np.concatenate([x, x]), "concat"),
    (np.mean, "reduce_mean"), (np.asarray, "reduce_mean"), (lambda x: np.stack([x]), "concat"),
])
def test_what_a_tensor_cannot_do(use, words):
    x = placeholder()
    message = refused(use, x)
    assert message.startswith("Tensor('x', shape=(None, 4), dtype=float32) has no value yet, so ")
    assert words in message


def test_tensors_are_equal_only_to_themselves():
    x = placeholder()
    assert x == x and x != placeholder() and x in {x}
    with pytest.raises(TypeError, match="ufunc"):
        np.exp(x)
