"""The losses: values and gradients by definition, weights, smoothing, and wrong labels."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from tolerances import RELATIVE

import minicnn as mc
from minicnn.losses import softmax_cross_entropy, softmax_cross_entropy_with_grad


def one_hot(labels, classes, dtype=np.float64):
    return np.eye(classes, dtype=dtype)[labels]


@st.composite
def problems(draw):
    """Labels (N, K) and logits (N, K), and the options of a loss."""
    rows, classes = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.1, 1.0, 30.0]))
    logits = scale * rng.standard_normal((rows, classes))
    soft = draw(st.booleans())
    labels = one_hot(rng.integers(classes, size=rows), classes)
    if soft:
        labels = rng.dirichlet(np.ones(classes), rows)
    weights = draw(st.sampled_from(["number", "rows", "column", "some zero", "zero"]))
    options = {
        "weights": {
            "number": draw(st.floats(0.1, 3)),
            "rows": rng.uniform(0.1, 2, rows),
            "column": rng.uniform(0.1, 2, (rows, 1)),
            "some zero": rng.integers(2, size=rows),
            "zero": 0,
        }[weights],
        "label_smoothing": draw(st.sampled_from([0, 0.1, 0.9])),
    }
    return labels, logits, options


def flat(options):
    """Return the options for the oracle: weights (N,) or a number."""
    weights = np.asarray(options["weights"], np.float64)
    return {**options, "weights": weights.reshape(-1) if weights.ndim else weights}


@given(problems(), st.sampled_from([np.float32, np.float64]))
def test_value_and_gradient_are_those_of_the_definition(problem, dtype):
    labels, logits, options = problem
    logits = logits.astype(dtype)
    loss, gradient = softmax_cross_entropy_with_grad(labels=labels, logits=logits, **options)
    limit = 10 * RELATIVE[np.dtype(dtype).name]
    size = max(1, abs(logits).max()) * max(1, np.max(options["weights"]))
    expected = naive.softmax_cross_entropy(labels, logits, **flat(options))
    assert isinstance(loss, float)
    assert_allclose(loss, expected, atol=limit * size, rtol=0)
    assert gradient.dtype == dtype
    expected = naive.softmax_cross_entropy_backward(labels, logits, **flat(options))
    assert_allclose(gradient, expected, atol=limit * size, rtol=0)


@given(problems())
def test_the_gradient_is_that_of_differences(problem):
    labels, logits, options = problem
    _, gradient = softmax_cross_entropy_with_grad(labels=labels, logits=logits, **options)
    expected = naive.numeric_gradient(
        lambda z: softmax_cross_entropy(onehot_labels=labels, logits=z, **options), logits
    )
    assert_allclose(gradient, expected, atol=1e-7)


@given(problems())
def test_all_doors_lead_to_the_same_loss(problem):
    labels, logits, options = problem
    loss, gradient = softmax_cross_entropy_with_grad(labels=labels, logits=logits, **options)
    assert softmax_cross_entropy(labels, logits, **options) == loss
    op, ctx = mc.losses.SoftmaxCrossEntropy(**options), mc.Context()
    assert op.forward(labels, logits, ctx) == loss
    nothing, dlogits = op.backward(1.0, ctx)
    assert nothing is None  # labels have no gradient
    assert_array_equal(dlogits, gradient)
    assert_allclose(op.backward(3.0, ctx)[1], 3 * gradient)


# By hand


def test_by_hand():
    labels, logits = np.array([1, 0]), np.array([[0, np.log(3)], [0, 0]])
    loss, gradient = softmax_cross_entropy_with_grad(labels=labels, logits=logits)
    assert_allclose(loss, (-np.log(0.75) + np.log(2)) / 2)
    assert_allclose(gradient, [[0.125, -0.125], [-0.25, 0.25]])


def test_weights_divide_by_how_many_are_not_zero():
    labels, logits = one_hot([1, 0, 0], 2), np.array([[0, np.log(3)], [0, 0], [5, 5]])
    first, second = -np.log(0.75), np.log(2)
    loss = softmax_cross_entropy(labels, logits, weights=[3, 0.5, 0])
    assert_allclose(loss, (3 * first + 0.5 * second) / 2)
    assert_allclose(softmax_cross_entropy(labels, logits, weights=2), 2 * (first + 2 * second) / 3)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (3, 1), (1, 1)])
def test_shapes_of_weights(shape):
    labels, logits = one_hot([1, 0, 1], 2), np.zeros((3, 2))
    loss = softmax_cross_entropy(labels, logits, weights=np.full(shape, 2.0))
    assert_allclose(loss, 2 * np.log(2))


@pytest.mark.parametrize("weights", [0, 0.0, [0, 0], [[0], [0]]])
def test_no_weight_no_loss(weights):
    labels, logits = one_hot([1, 0], 2), np.array([[0.0, 1], [2, 3]])
    loss, gradient = softmax_cross_entropy_with_grad(labels, logits, weights=weights)
    assert loss == 0
    assert_array_equal(gradient, 0)


def test_label_smoothing():
    logits = np.array([[0, np.log(3)]])
    expected = -0.1 * np.log(0.25) - 0.9 * np.log(0.75)
    assert_allclose(softmax_cross_entropy([[0, 1]], logits, label_smoothing=0.2), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_large_logits_do_not_overflow(dtype, size):
    logits = np.array([[size, 0], [0, size], [-size, -size]], dtype)
    loss, gradient = softmax_cross_entropy_with_grad(labels=np.array([0, 0, 1]), logits=logits)
    assert_allclose(loss, (0 + size + np.log(2)) / 3, rtol=1e-6)
    assert_allclose(gradient * 3, [[0, 0], [-1, 1], [0.5, -0.5]], atol=1e-6)


def test_nan_is_seen():
    loss, _ = softmax_cross_entropy_with_grad(np.array([0, 1]), np.array([[0, np.nan], [0, 1.0]]))
    assert np.isnan(loss)


def test_the_mean_of_many_float32_rows_is_exact():
    rows = 100_001
    loss = softmax_cross_entropy(
        one_hot(np.zeros(rows, int), 2, np.float32), np.zeros((rows, 2), np.float32)
    )
    assert_allclose(loss, np.float32(np.log(2)), rtol=1e-7)


# Labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int64, np.uint64])
def test_class_numbers_are_the_rows_of_one_hot(dtype):
    labels = np.array([2, 0, 1], dtype)
    logits = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    loss, gradient = softmax_cross_entropy_with_grad(labels=labels, logits=logits)
    rows = mc.one_hot(labels, depth=3)
    other, same = softmax_cross_entropy_with_grad(labels=rows, logits=logits)
    assert loss == other
    assert_array_equal(gradient, same)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_rows_of_labels_may_be_of_any_type(dtype):
    logits = np.zeros((2, 2), np.float32)
    loss, gradient = softmax_cross_entropy_with_grad(np.eye(2, dtype=dtype), logits)
    assert_allclose(loss, np.log(2), rtol=1e-6)
    assert gradient.dtype == np.float32


@pytest.mark.parametrize(("label", "classes"), [(3, 3), (-1, 3), (200, 10)])
def test_a_bad_class_number_names_row_and_value(label, classes):
    labels = np.array([0, 1, label, 0, label])
    with pytest.raises(ValueError) as caught:
        softmax_cross_entropy_with_grad(labels=labels, logits=np.zeros((5, classes)))
    assert f"label of row 2 is {label}" in str(caught.value)
    assert f"classes 0 to {classes - 1}" in str(caught.value)


@pytest.mark.parametrize(
    "row", [[0, 0], [0.5, 0.6], [1, 1], [-1, 2], [np.nan, 1], [np.inf, 0], [0.4, 0.4]]
)
@pytest.mark.parametrize("door", [softmax_cross_entropy, softmax_cross_entropy_with_grad])
def test_the_error_names_a_row_that_is_not_a_distribution(row, door):
    labels = np.array([[0, 1], [0.5, 0.5], row, row])
    with pytest.raises(ValueError) as caught:
        door(labels, np.zeros((4, 2)))
    assert "row 2 of the labels is" in str(caught.value)
    assert str([float(share) for share in row]) in str(caught.value)


def test_rounding_of_labels_is_forgiven():
    labels = np.full((1, 3), 1 / 3, np.float16)
    assert_allclose(softmax_cross_entropy(labels, np.zeros((1, 3))), np.log(3), rtol=1e-3)


def test_the_row_of_zeros_of_one_hot_is_found():
    labels = mc.one_hot(np.array([0, 7]), depth=3)
    with pytest.raises(ValueError, match=r"row 1 of the labels .* that one_hot does not reach"):
        softmax_cross_entropy(labels, np.zeros((2, 3)))


# Errors


@pytest.mark.parametrize(
    ("labels", "logits"),
    [((3, 2), (3, 4)), ((3, 2), (4, 2)), ((3, 2, 1), (3, 2, 1)), ((3, 1), (3, 2)), ((2, 3), (2,))],
)
@pytest.mark.parametrize("door", [softmax_cross_entropy, softmax_cross_entropy_with_grad])
def test_shapes_that_differ_are_both_shown(labels, logits, door):
    with pytest.raises(ValueError) as caught:
        door(np.ones(labels) / labels[-1], np.zeros(logits))
    assert str(labels) in str(caught.value)
    assert str(logits) in str(caught.value)


def test_class_numbers_as_one_hot_labels_say_what_to_do():
    with pytest.raises(ValueError, match=r"labels \(3,\) .*make the labels with one_hot"):
        softmax_cross_entropy(np.array([0, 1, 1]), np.zeros((3, 2)))


def test_more_class_numbers_than_rows_are_an_error():
    with pytest.raises(ValueError, match=r"labels \(2,\).*\(3, 2\)"):
        softmax_cross_entropy_with_grad(labels=np.array([0, 1]), logits=np.zeros((3, 2)))


def test_class_numbers_are_integers():
    with pytest.raises(TypeError, match=r"class numbers must be integers, got .* float64"):
        softmax_cross_entropy_with_grad(labels=np.array([0.0, 1.0]), logits=np.zeros((2, 2)))


@pytest.mark.parametrize("dtype", [np.int64, np.float16])
def test_logits_are_floats(dtype):
    with pytest.raises(TypeError, match="`logits` must be float32 or float64, got "):
        softmax_cross_entropy(np.eye(2), np.zeros((2, 2), dtype))


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 2), (0,)])
def test_weights_of_another_shape_are_an_error(shape):
    with pytest.raises(ValueError, match=r"`weights` must be a number or have the shape \(2,\)"):
        softmax_cross_entropy(np.eye(2), np.zeros((2, 2)), weights=np.ones(shape))


@pytest.mark.parametrize("smoothing", [-0.1, 1, 1.5, np.nan])
def test_label_smoothing_is_a_share(smoothing):
    for door in (softmax_cross_entropy, softmax_cross_entropy_with_grad):
        with pytest.raises(ValueError, match=r"`label_smoothing` must be .* in \[0, 1\)"):
            door(np.eye(2), np.zeros((2, 2)), label_smoothing=smoothing)


def test_nothing_is_changed():
    labels, logits, weights = np.eye(2), np.array([[1.0, 2], [3, 4]]), np.array([1.0, 2])
    before = labels.copy(), logits.copy(), weights.copy()
    for array in (labels, logits, weights):
        array.flags.writeable = False
    softmax_cross_entropy_with_grad(labels, logits, weights, label_smoothing=0.1)
    for array, copy in zip((labels, logits, weights), before, strict=True):
        assert_array_equal(array, copy)


def test_backward_needs_a_pass_that_saves():
    op, ctx = mc.losses.SoftmaxCrossEntropy(), mc.Context(save=False)
    op.forward(np.eye(2), np.zeros((2, 2)), ctx)
    with pytest.raises(RuntimeError, match="call forward first"):
        op.backward(1.0, ctx)


def test_the_gradient_is_scaled_by_that_of_what_uses_the_loss():
    op, ctx = mc.losses.SoftmaxCrossEntropy(), mc.Context()
    op.forward(np.eye(2), np.zeros((2, 2)), ctx)
    _, whole = op.backward(1.0, ctx)
    nothing, part = op.backward(0.25, ctx)
    assert nothing is None
    assert_array_equal(part, 0.25 * whole)


def test_a_loss_leaves_the_op_that_made_its_labels_as_it_is():
    graph = mc.Graph()
    indices = graph.placeholder("indices", (None,), np.int64)
    logits = graph.placeholder("logits", (None, 3), np.float32)
    rows = mc.one_hot(indices, 3)
    before = vars(rows.op).copy()
    loss = mc.losses.softmax_cross_entropy(rows, logits)
    assert vars(rows.op) == before
    assert (loss.name, loss.shape, loss.dtype) == ("softmax_cross_entropy", (), np.float32)
    feeds = {indices: np.array([0, 7]), logits: np.zeros((2, 3), np.float32)}
    assert graph.plan([rows]).forward(feeds, mc.Context())[rows].tolist() == [[1, 0, 0], [0, 0, 0]]
    with pytest.raises(ValueError, match=f"{loss.name}: the label of row 1 is 7, outside the cla"):
        graph.plan([loss]).forward(feeds, mc.Context())
