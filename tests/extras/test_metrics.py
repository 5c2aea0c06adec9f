"""The metrics of scikit-learn: they agree with minicnn's, and work through MetricSpec."""

import numpy as np
import pytest

import minicnn as mc
from minicnn.metrics import precision, recall, top_k_accuracy

metrics = pytest.importorskip("sklearn.metrics", reason='pip install -e ".[test-all]"')


def test_scikit_learn_agrees_and_works_as_a_metric():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(2, size=(2, 40))
    scores = rng.random((40, 4))
    assert precision(labels, predictions) == pytest.approx(
        metrics.precision_score(labels, predictions))
    assert recall(labels, predictions) == pytest.approx(metrics.recall_score(labels, predictions))
    classes = np.arange(40) % 4
    assert top_k_accuracy(classes, scores, k=2) == pytest.approx(
        metrics.top_k_accuracy_score(classes, scores, k=2))
    spec = mc.MetricSpec(metrics.f1_score, "classes")
    assert spec.compute({"classes": predictions}, labels, None) == pytest.approx(
        metrics.f1_score(labels, predictions))
