"""Tests of minicnn.metrics, against loops over the rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minicnn.metrics import (
    accuracy,
    confusion_matrix,
    mean,
    precision,
    recall,
    top_k_accuracy,
)

rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.125, 8, width=32)),
    min_size=1, max_size=30,
)
quick = settings(deadline=None, max_examples=60)


@quick
@given(rows, st.sampled_from([np.uint8, np.int32, np.int64]))
def test_against_loops(table, dtype):
    labels, predictions, weights = (list(column) for column in zip(*table, strict=True))
    right = sum(y == p for y, p, _ in table)
    counts = [[sum((y, p) == (i, j) for y, p, _ in table) for j in range(5)] for i in range(5)]
    share = sum(w for y, p, w in table if y == p) / sum(weights)

    labels, predictions = np.array(labels, dtype), np.array(predictions)
    assert accuracy(labels, predictions) == right / len(table)
    assert accuracy(labels, predictions, weights) == pytest.approx(share, rel=1e-12)
    matrix = confusion_matrix(labels, predictions, num_classes=5)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == counts
    size = max(labels.max(), predictions.max()) + 1
    assert np.array_equal(confusion_matrix(labels, predictions), matrix[:size, :size])


def test_the_rows_of_the_matrix_are_the_true_classes():
    assert confusion_matrix(labels=[0, 0, 0], predictions=[1, 1, 0]).tolist() == [[1, 2], [0, 0]]


def test_many_classes_do_not_overflow_the_type_of_the_labels():
    labels = np.array([255, 254], np.uint8)
    matrix = confusion_matrix(labels, labels, num_classes=256)
    assert matrix[255, 255] == matrix[254, 254] == 1
    assert matrix.sum() == 2


def test_a_class_beyond_int64_does_not_become_another():
    big = np.array([2**64 - 1], np.uint64)
    with pytest.raises(ValueError, match=r"`labels` must .* got 18446744073709551615"):
        accuracy(big, [-1])
    with pytest.raises(ValueError, match="`predictions` must"):
        confusion_matrix([0], big)
    assert accuracy(big >> 1, [2**63 - 1]) == 1


def test_results_are_python_floats():
    for result in (accuracy([1], [1]), accuracy([1], [0], [2]), mean([1]), mean([1], [2])):
        assert type(result) is float


def test_boolean_classes():
    assert accuracy([True, False, True], [1, 1, 1]) == pytest.approx(2 / 3)


def test_mean():
    assert mean(np.array([[1, 2], [3, 6]], np.float32)) == 3
    assert mean([[1, 2], [3, 6]], [[1, 0], [0, 3]]) == 19 / 4
    # float32 sums would lose the small values
    values = np.array([2.0**24] + [1.0] * 7, np.float32)
    assert mean(values) == (2**24 + 7) / 8


@pytest.mark.parametrize("metric", [accuracy, confusion_matrix])
def test_classes_are_asked_for(metric):
    numbers, onehot = np.arange(3), np.eye(3, dtype=int)
    with pytest.raises(ValueError, match=r"`labels` must be class .*\(3, 3\).*argmax\(axis=1\)"):
        metric(onehot, numbers)
    with pytest.raises(ValueError, match=r"`predictions` must.*\(3, 3\).*argmax\(axis=1\)"):
        metric(numbers, onehot / 2)
    with pytest.raises(ValueError, match=r"`predictions` must.*\(3, 1\).*reshape\(-1\)"):
        metric(numbers, numbers[:, None])
    with pytest.raises(ValueError, match=r"`labels` must.*\(\).*reshape\(-1\)"):
        metric(1, numbers)
    with pytest.raises(TypeError, match=r"`predictions` must.*float64.*argmax\(axis=1\)"):
        metric(numbers, numbers / 2)
    with pytest.raises(ValueError, match=r"one entry for each row, got 3 and 2"):
        metric(numbers, numbers[:2])
    with pytest.raises(ValueError, match=r"`labels` must not be empty, got shape \(0,\)"):
        metric([], [])


def test_classes_outside_the_range():
    with pytest.raises(ValueError, match="`labels`: the label of row 1 is 10, outside"):
        confusion_matrix([9, 10], [0, 0], num_classes=10)
    with pytest.raises(ValueError, match="`predictions`: the label of row 2 is -1, outside"):
        confusion_matrix([0, 1, 2], [0, 1, -1])
    with pytest.raises(ValueError, match="`num_classes` must be at least 1, got 0"):
        confusion_matrix([0], [0], num_classes=0)


@pytest.mark.parametrize("weights", [[1, -1, 1], [0, 0, 0], [1, np.nan, 1], [1, np.inf, 1]])
def test_weights_that_cannot_be_used(weights):
    with pytest.raises(ValueError, match="`weights` must be finite, not negative and not all 0"):
        mean([1, 2, 3], weights)
    with pytest.raises(ValueError, match="`weights` must be finite, not negative and not all 0"):
        accuracy([1, 2, 3], [1, 2, 3], weights)


def test_shapes_of_mean():
    with pytest.raises(ValueError, match=r"`weights` must have shape \(3,\), got \(1,\); broad"):
        mean([1, 2, 3], [1])
    with pytest.raises(ValueError, match=r"`values` must not be empty, got shape \(0, 2\)"):
        mean(np.zeros((0, 2)))


# precision, recall, top_k_accuracy


@pytest.mark.parametrize("positive", [0, 1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_precision_and_recall_are_those_of_the_definition(positive, weighted):
    rng = np.random.default_rng(positive)
    labels, predictions = rng.integers(3, size=(2, 50))
    weights = rng.random(50) if weighted else None
    both = predicted = true = 0.0
    for row in range(50):
        w = 1 if weights is None else weights[row]
        predicted += w * (predictions[row] == positive)
        true += w * (labels[row] == positive)
        both += w * (predictions[row] == labels[row] == positive)
    assert precision(labels, predictions, weights, positive) == pytest.approx(both / predicted)
    assert recall(labels, predictions, weights, positive) == pytest.approx(both / true)


def test_precision_and_recall_of_nothing_are_zero():
    assert precision([1, 1], [0, 0]) == 0
    assert recall([0, 0], [1, 1]) == 0
    assert precision([True, False], [True, True]) == 0.5


def test_top_k_accuracy():
    scores = np.array([[0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]])
    labels = [2, 2, 0]
    assert [top_k_accuracy(labels, scores, k=k) for k in (1, 2, 3, 9)] == [0, 1 / 3, 1, 1]
    assert top_k_accuracy(labels, scores, [1, 1, 0], k=2) == 0.5
    assert top_k_accuracy([0, 1], [[1, 1, 0], [1, 1, 1]], k=1) == 1  # equal scores
    assert top_k_accuracy([0, 1], [[np.nan, 1, 0], [1, 0, np.nan]], k=2) == 0


@pytest.mark.parametrize(("labels", "scores", "words"), [
    ([0, 3], np.eye(3)[:2], "label of row 1 is 3"), ([0, 1], np.eye(3), r"\(2, classes\)"),
    ([0, 1], [0.5, 0.5], r"got shape \(2,\)"),
])
def test_scores_of_another_shape(labels, scores, words):
    with pytest.raises(ValueError, match=words):
        top_k_accuracy(labels, scores)
