"""The losses beside softmax cross-entropy, and the reductions of all: values, gradients, errors."""

import logging
import re

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import minicnn as mc
from minicnn import losses

REDUCTIONS = [
    "weighted_sum", "weighted_mean", "weighted_sum_over_batch_size",
    "weighted_sum_by_nonzero_weights",
]
# Name of the loss, the oracle of a term.
LOSSES = {
    "sigmoid_cross_entropy": naive.sigmoid_loss,
    "mean_squared_error": naive.squared_error,
    "absolute_difference": naive.absolute_error,
}
each_loss = pytest.mark.parametrize("name", LOSSES)
ALL = [*LOSSES, "softmax_cross_entropy", "sparse_softmax_cross_entropy"]
each_of_all = pytest.mark.parametrize("name", ALL)


def doors(name):
    return getattr(losses, name), getattr(losses, f"{name}_with_grad")


def problem(name, shape, dtype=np.float64, seed=0):
    """Return labels and outputs."""
    rng = np.random.default_rng(seed)
    outputs = rng.standard_normal(shape).astype(dtype)
    if name == "sparse_softmax_cross_entropy":
        return rng.integers(shape[1], size=shape[0]), outputs
    if name == "softmax_cross_entropy":
        return rng.dirichlet(np.ones(shape[1]), shape[0]), outputs
    return rng.random(shape), outputs


def weights_of(kind, shape):
    rng = np.random.default_rng(1)
    return {
        "number": 1.5,
        "rows": rng.uniform(0.1, 2, shape[0]),
        "column": rng.uniform(0.1, 2, (shape[0], *[1] * (len(shape) - 1))),
        "terms": rng.uniform(0.1, 2, shape),
        "some zero": rng.integers(2, size=shape),
        "rewards": rng.uniform(-1, 1, shape),
        "zero": 0.0,
    }[kind]


def one_each(weights, shape):
    """Return a weight for each term: those of rows are those of all their terms."""
    weights = np.asarray(weights, float)
    if weights.size == shape[0] and weights.shape != shape:
        weights = weights.reshape(shape[0], *[1] * (len(shape) - 1))
    return np.broadcast_to(weights, shape)


@each_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("kind", ["number", "rows", "column", "terms", "some zero", "rewards",
                                  "zero"])
@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 2), (1, 1)])
def test_value_and_gradient_are_those_of_the_definition(name, reduction, kind, shape):
    labels, outputs = problem(name, shape)
    weights = weights_of(kind, shape)
    function, with_grad = doors(name)
    loss, gradient = with_grad(labels, outputs, weights=weights, reduction=reduction)
    terms = naive.terms(LOSSES[name], labels, outputs)
    assert isinstance(loss, float)
    assert_allclose(loss, naive.reduced(terms, one_each(weights, shape), reduction), atol=1e-12)
    assert function(labels, outputs, weights=weights, reduction=reduction) == loss
    expected = naive.numeric_gradient(
        lambda p: function(labels, p, weights=weights, reduction=reduction), outputs
    )
    assert_allclose(gradient, expected, atol=1e-6 * max(1, np.abs(expected).max()))


def each_term(name, labels, outputs):
    """Return the terms: one for each row of softmax, one for each element of the others."""
    function, _ = doors(name)
    if "softmax" in name:
        rows = range(len(outputs))
        return np.array([function(labels[i : i + 1], outputs[i : i + 1]) for i in rows])
    return naive.terms(LOSSES[name], labels, outputs)


@each_of_all
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_of_rows(name, reduction):
    labels, outputs = problem(name, (4, 3))
    weights = np.array([0.5, 0, 2, -0.25])
    function, with_grad = doors(name)
    terms = each_term(name, labels, outputs)
    loss, gradient = with_grad(labels, outputs, weights=weights, reduction=reduction)
    assert_allclose(loss, naive.reduced(terms, one_each(weights, terms.shape), reduction))
    expected = naive.numeric_gradient(
        lambda p: function(labels, p, weights=weights, reduction=reduction), outputs
    )
    assert_allclose(gradient, expected, atol=1e-6)


@each_of_all
def test_the_default_divides_by_the_weights_that_are_not_zero(name):
    labels, outputs = problem(name, (4, 3))
    function, _ = doors(name)
    assert_allclose(function(labels, outputs), each_term(name, labels, outputs).mean())
    assert_allclose(function(labels, outputs, [3, 0, 0, 0]), 3 * function(labels[:1], outputs[:1]))


@each_of_all
def test_a_number_an_array_and_a_tensor_as_weights_are_alike(name):
    labels, outputs = problem(name, (4, 3), np.float32)
    function, with_grad = doors(name)
    weights = np.array([0.5, 0, 2, 1], np.float32)
    expected, gradient = with_grad(labels, outputs, weights=weights)
    graph = mc.Graph()
    y = graph.placeholder("y", (None, *labels.shape[1:]), labels.dtype)
    z = graph.placeholder("z", (None, 3), np.float32)
    w = graph.placeholder("w", (None,), np.float32)
    feeds = {y: labels, z: outputs, w: weights}
    for each in (weights, w):
        loss = function(y, z, each)
        plan, ctx = graph.plan([loss]), mc.Context()
        assert plan.forward(feeds, ctx)[loss] == expected
        none, dz, *others = plan.steps[-1].op.backward(1.0, ctx)
        assert none is None and set(others) <= {None}
        assert_array_equal(dz, gradient)


@each_of_all
def test_float32_is_close_to_float64(name):
    labels, outputs = problem(name, (50, 3), np.float32)
    single = doors(name)[1](labels, outputs)
    double = doors(name)[1](labels, outputs.astype(np.float64))
    assert single[1].dtype == np.float32
    assert_allclose(single[0], double[0], rtol=1e-6)
    assert_allclose(single[1], double[1], atol=1e-7)


def test_by_hand():
    labels, outputs = np.array([0.0, 1, 2]), np.array([1.0, 1, 5])
    assert losses.mean_squared_error(labels, outputs) == 10 / 3
    assert losses.absolute_difference(labels, outputs) == 4 / 3
    z = np.array([np.log(3), -np.log(3)])
    assert_allclose(losses.sigmoid_cross_entropy(np.array([1.0, 1]), z),
                    -(np.log(0.75) + np.log(0.25)) / 2)
    assert_allclose(losses.sparse_softmax_cross_entropy(np.array([1]), [[0, np.log(3)]]),
                    -np.log(0.75))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_large_logits_do_not_overflow(dtype):
    z = np.array([1e4, -1e4, 1e30, -1e30, 0], dtype)
    y = np.array([1, 0, 1, 0, 1])
    loss, gradient = losses.sigmoid_cross_entropy_with_grad(y, z)
    assert_allclose(loss, np.log(2) / 5, rtol=1e-6)
    assert_allclose(gradient, [0, 0, 0, 0, -0.1])
    assert_allclose(losses.sigmoid_cross_entropy(1 - y[:2], z[:2]), 1e4)


def test_label_smoothing_of_the_sigmoid():
    y, z = np.array([1.0, 0.0]), np.array([0.3, -0.7])
    loss = losses.sigmoid_cross_entropy(y, z, label_smoothing=0.2)
    assert_allclose(loss, losses.sigmoid_cross_entropy(np.array([0.9, 0.1]), z))


@each_loss
def test_nan_is_seen(name):
    labels, outputs = problem(name, (3, 2))
    outputs[1, 1] = np.nan
    assert np.isnan(doors(name)[0](labels, outputs))


@each_loss
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, bool])
def test_labels_of_any_type(name, dtype):
    labels = np.array([0, 1, 1], dtype)
    loss, gradient = doors(name)[1](labels, np.array([0.5, 0.25, 2], np.float32))
    expected = doors(name)[1](labels.astype(np.float64), np.array([0.5, 0.25, 2]))
    assert gradient.dtype == np.float32
    assert_allclose(loss, expected[0], rtol=1e-6)


def test_a_regression_learns(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 3)).astype(np.float32)
    y = (x @ [1, -2, 0.5] + 3).astype(np.float32)

    def model_fn(features, labels, mode):
        outputs = mc.layers.dense(features, 1)
        loss = losses.mean_squared_error(mc.reshape(labels, [-1, 1]), outputs)
        return mc.ModelFnOps(mode, {"y": outputs}, loss, mc.optimize_loss(loss, None, 0.1))

    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(model_fn, str(tmp_path), config=config)
    estimator.fit(x, y, steps=200, batch_size=32)
    assert estimator.evaluate(x, y)["loss"] < 1e-6


@pytest.mark.parametrize("by_name", [True, False])
@each_of_all
def test_fit_of_a_sequential_takes_the_loss_by_name(name, by_name):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3)).astype(np.float32)
    score = x @ [1, -2, 0.5]
    y = (score > 0).astype(np.int64) if "entropy" in name else score.astype(np.float32)
    model = mc.Sequential([mc.layers.Dense(2 if "softmax" in name else 1)])
    loss = name if by_name else getattr(losses, name)
    weights = rng.integers(1, 3, 60)
    options = {"loss": loss, "optimizer": "Adam", "learning_rate": 0.05, "seed": 0}
    before = None
    for epochs in (1, 30):
        model.fit(x, y, epochs=epochs, batch_size=20, sample_weight=weights, verbose=0, **options)
        after = model.evaluate(x, y, loss=loss)["loss"]
        assert before is None or after < 0.5 * before
        before = after
    outputs = model.predict(x)
    labels = y if "softmax" in name else y[:, None]
    if name == "softmax_cross_entropy":
        labels = np.eye(2)[y]
    assert_allclose(after, doors(name)[0](labels, outputs), rtol=1e-5)
    if name == "sigmoid_cross_entropy":
        assert_allclose(model.predict_proba(x), 1 / (1 + np.exp(-outputs)), rtol=1e-5)


# Errors


def refused(function, *arguments, **options):
    with pytest.raises((TypeError, ValueError)) as error:
        function(*arguments, **options)
    return str(error.value)


DIFFERENT = [((3,), (3, 1)), ((3, 1), (3,)), ((3,), (3, 4)), ((3, 2), (3, 4)), ((2, 4), (3, 4)),
             ((3, 1), (3, 4)), ((), (3,)), ((3,), ()), ((3, 6), (3, 2, 3))]


@each_loss
@pytest.mark.parametrize(("labels", "outputs"), DIFFERENT)
def test_shapes_that_differ_are_never_broadcast(name, labels, outputs):
    function, with_grad = doors(name)
    for door in (function, with_grad):
        message = refused(door, np.ones(labels), np.zeros(outputs))
        assert "must have the same shape (N, ...)" in message
        assert f"labels {labels} and " in message and str(outputs) in message
    graph = mc.Graph()
    tensors = [graph.placeholder("t", (*[None] * bool(s), *s[1:]), np.float32)
               for s in (labels, outputs)]
    if labels[1:] != outputs[1:] or not labels or not outputs:
        assert "must have the same shape (N, ...)" in refused(function, *tensors)


@each_loss
@pytest.mark.parametrize(("labels", "outputs"), [((3,), (3, 1)), ((3, 1), (3,)),
                                                 ((3, 6), (3, 2, 3))])
def test_the_remedy_for_labels_of_another_shape_works(name, labels, outputs):
    y, z = np.ones(labels), np.zeros(outputs)
    message = refused(doors(name)[0], y, z)
    remedy = re.search(r"reshape the labels: (mc\.reshape\(.*\))$", message).group(1)
    doors(name)[0](eval(remedy, {"mc": mc, "labels": y}), z)


@pytest.mark.parametrize(("labels", "logits"), [
    ((3, 1), (3, 4)), ((3, 4), (3, 4)), ((2,), (3, 4)), ((3,), (3,)), ((), (3, 4)),
])
def test_sparse_labels_are_class_numbers(labels, logits):
    for door in doors("sparse_softmax_cross_entropy"):
        message = refused(door, np.zeros(labels, int), np.zeros(logits))
        assert f"got labels {labels} and logits {logits}" in message
        assert "(N, classes)" in message
        if len(labels) == 2:
            remedy = re.search(r"class numbers of the same rows are (.*)$", message).group(1)
            door(eval(remedy, {"np": np, "labels": np.zeros(labels, int)}), np.zeros(logits))
    graph = mc.Graph()
    tensors = [graph.placeholder("t", (*[None] * bool(s), *s[1:]), t)
               for s, t in ((labels, np.int64), (logits, np.float32))]
    if labels != (2,):
        assert "(N, classes)" in refused(losses.sparse_softmax_cross_entropy, *tensors)


def test_sparse_labels_are_integers_in_the_classes():
    for door in doors("sparse_softmax_cross_entropy"):
        assert "must be integers, got" in refused(door, np.zeros(2), np.zeros((2, 3)))
        assert "row 1" in refused(door, np.array([0, 3]), np.zeros((2, 3)))
    graph = mc.Graph()
    y = graph.placeholder("y", (None,), np.int64)
    z = graph.placeholder("z", (None, 3), np.float32)
    loss = losses.sparse_softmax_cross_entropy(y, z)
    another = losses.sparse_softmax_cross_entropy(y, z, name="own")
    assert (loss.name, another.name) == ("softmax_cross_entropy", "own")
    feeds = {y: np.array([0, 3]), z: np.zeros((2, 3), np.float32)}
    with pytest.raises(ValueError, match="the label of row 1 is 3"):
        graph.plan([loss]).forward(feeds, mc.Context())


@pytest.mark.parametrize(("labels", "words"), [
    ([2.0, 0.0], "got 2.0; class numbers become rows with one_hot"), ([-1.0, 0.0], "got -1.0"),
    ([np.nan, 0.0], "got nan"),
])
def test_labels_of_the_sigmoid_are_probabilities(labels, words):
    for door in doors("sigmoid_cross_entropy"):
        assert words in refused(door, np.array(labels), np.array([5.0, -1]))
        assert "labels come first" in refused(door, np.array([5.0, -1]), np.array([0.5, 1]))


@each_loss
@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2), (0,), (2, 3, 1)])
def test_weights_of_another_shape(name, shape):
    labels, outputs = problem(name, (2, 3))
    message = refused(doors(name)[0], labels, outputs, np.ones(shape))
    assert "`weights` must be a number or have the shape (2,) of the rows, or (2, 3)" in message


@each_of_all
def test_unknown_reductions(name):
    labels, outputs = problem(name, (2, 3))
    for door in doors(name):
        message = refused(door, labels, outputs, reduction="mean")
        assert all(repr(known) in message for known in REDUCTIONS)


@each_of_all
def test_arrays_and_tensors_do_not_mix(name):
    labels, _ = problem(name, (2, 3))
    z = mc.Graph().placeholder("z", (None, 3), np.float32)
    assert "arrays and Tensors do not mix" in refused(doors(name)[0], labels, z)


def test_probabilities_in_the_place_of_logits(caplog):
    graph = mc.Graph()
    y, x = (graph.placeholder("x", (None, 3), np.float32) for _ in range(2))
    with caplog.at_level(logging.WARNING, "minicnn"):
        losses.sigmoid_cross_entropy(y, mc.softmax(x))
        losses.mean_squared_error(y, mc.sigmoid(x))
        assert not caplog.records
        losses.sigmoid_cross_entropy(y, mc.layers.dense(x, 3, activation="sigmoid"))
    assert "the loss applies the sigmoid itself" in caplog.text


@each_loss
def test_backward_needs_a_pass_that_saves(name):
    graph = mc.Graph()
    y, x = (graph.placeholder("x", (None, 3), np.float32) for _ in range(2))
    loss = doors(name)[0](y, x)
    ctx = mc.Context(save=False)
    graph.plan([loss]).forward({y: np.ones((1, 3)), x: np.ones((1, 3), np.float32)}, ctx)
    with pytest.raises(RuntimeError, match="call forward first"):
        loss.op.backward(1.0, ctx)
