"""Metrics of predictions, computed in float64.

Those of scikit-learn work as well: ``mc.MetricSpec(sklearn.metrics.f1_score, "classes")``.
"""

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core import checks
from minicnn.ops import check_labels


def accuracy(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the fraction of rows whose prediction equals the label.

    With weights it is sum(weights of the correct rows) / sum(weights).

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row.
    predictions : array of int, (N,)
        The predicted class of each row.
    weights : array, (N,), optional
        Weight of each row: finite, not negative, not all 0.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError
        If the classes are not integers.
    ValueError
        If the shapes differ, there are no rows, or the weights are invalid.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.accuracy(labels=[7, 2, 1, 0], predictions=[7, 2, 1, 6])
    0.75
    """
    labels, predictions = _classes(labels, predictions)
    return mean(labels == predictions, weights)


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean, or with weights sum(weights * values) / sum(weights).

    Parameters
    ----------
    values : array
    weights : array of the shape of `values`, optional
        Weight of each value: finite, not negative, not all 0.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If there are no values, the shapes differ, or the weights are invalid.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.mean([1.0, 2.0, 6.0])
    3.0
    >>> mc.metrics.mean([1.0, 2.0, 6.0], weights=[1, 1, 0])
    1.5
    """
    values = checks.array(values, "values").astype(np.float64)
    if not values.size:
        raise ValueError(f"`values` must not be empty, got shape {values.shape}; give it rows")
    if weights is None:
        return float(values.mean())
    weights = checks.array(weights, "weights").astype(np.float64)
    if weights.shape != values.shape:
        raise ValueError(
            f"`weights` must have shape {values.shape}, got {weights.shape}; broadcast it first"
        )
    total = float(weights.sum())
    if weights.min() < 0 or not 0 < total < np.inf:
        raise ValueError(
            "`weights` must be finite, not negative and not all 0, got "
            f"a minimum of {weights.min():g} and a sum of {total:g}"
        )
    return float((weights * values).sum() / total)


def precision(
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: ArrayLike | None = None,
    positive: int = 1,
) -> float:
    """Return the fraction of the rows predicted as a class that are of this class.

    Parameters
    ----------
    labels, predictions : array of int, (N,)
        The true and the predicted class of each row.
    weights : array, (N,), optional
        Weight of each row: finite, not negative, not all 0.
    positive : int
        The class.

    Returns
    -------
    float
        From 0 to 1; 0 if no row is predicted as the class.

    Raises
    ------
    TypeError, ValueError
        As for `accuracy`.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.precision(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 1])
    0.3333333333333333
    """
    return _share(*_classes(labels, predictions), weights, positive)


def recall(
    labels: ArrayLike,
    predictions: ArrayLike,
    weights: ArrayLike | None = None,
    positive: int = 1,
) -> float:
    """Return the fraction of the rows of a class that are predicted as this class.

    Parameters
    ----------
    labels, predictions, weights, positive
        As for `precision`.

    Returns
    -------
    float
        From 0 to 1; 0 if there is no row of the class.

    Raises
    ------
    TypeError, ValueError
        As for `accuracy`.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.recall(labels=[1, 1, 0, 0], predictions=[1, 0, 1, 1])
    0.5
    """
    true, predicted = _classes(labels, predictions)
    return _share(predicted, true, weights, positive)


def top_k_accuracy(
    labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None, k: int = 5
) -> float:
    """Return the fraction of the rows whose class is among the k with the highest scores.

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row.
    predictions : array, (N, classes)
        The scores of the classes: probabilities or logits. A class with the same score as the
        k-th counts, as in TensorFlow.
    weights : array, (N,), optional
        Weight of each row: finite, not negative, not all 0.
    k : int

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or a label is not one of the classes.

    Examples
    --------
    >>> import minicnn as mc
    >>> scores = [[0.1, 0.3, 0.6], [0.5, 0.3, 0.2]]
    >>> mc.metrics.top_k_accuracy(labels=[1, 2], predictions=scores, k=2)
    0.5
    """
    true = _class_numbers(labels, "labels")
    scores = checks.array(predictions, "predictions")
    k = checks.integer(k, "k")
    if scores.ndim != 2 or len(scores) != true.size:
        raise ValueError(
            f"`predictions` must be scores of shape ({true.size}, classes), one row for each of "
            f"the `labels`, got shape {scores.shape}; take both from the same rows"
        )
    check_labels(true, scores.shape[1], "labels")
    own = np.take_along_axis(scores, true[:, None], axis=1)
    return mean((~(scores <= own)).sum(axis=1) < k, weights)  # a score of NaN is never reached


def _share(
    labels: np.ndarray, predictions: np.ndarray, weights: ArrayLike | None, positive: int
) -> float:
    """Return the share of rows with this label among those with this prediction; 0 of none."""
    positive = checks.integer(positive, "positive", -(2**63))
    total = mean(predictions == positive, weights)
    both = (predictions == positive) & (labels == positive)
    return mean(both, weights) / total if total else 0.0


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int | None = None
) -> np.ndarray:
    """Count how often each true class (row) was predicted as each class (column).

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row, in [0, num_classes).
    predictions : array of int, (N,)
        The predicted class of each row, in [0, num_classes).
    num_classes : int, optional
        By default the largest class in the data plus one.

    Returns
    -------
    ndarray of int64, (num_classes, num_classes)

    Raises
    ------
    TypeError
        If the classes are not integers.
    ValueError
        If the shapes differ, there are no rows, or a class is outside [0, num_classes).

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.confusion_matrix(labels=[0, 0, 1, 2], predictions=[0, 1, 1, 2])
    array([[1, 1, 0],
           [0, 1, 0],
           [0, 0, 1]])
    """
    labels, predictions = _classes(labels, predictions)
    if num_classes is None:
        num_classes = max(0, int(labels.max()), int(predictions.max())) + 1
    size = checks.integer(num_classes, "num_classes", 1, checks.MOST)
    for name, classes in (("labels", labels), ("predictions", predictions)):
        check_labels(classes, size, f"`{name}`")
    counts = np.bincount(labels * size + predictions, minlength=size * size)
    return counts.reshape(size, size).astype(np.int64, copy=False)


def _classes(labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as int64 arrays (N,), N > 0."""
    true = _class_numbers(labels, "labels")
    predicted = _class_numbers(predictions, "predictions")
    if true.size != predicted.size:
        raise ValueError(
            "`labels` and `predictions` must have one entry for each row, got "
            f"{true.size} and {predicted.size}; take both from the same rows"
        )
    return true, predicted


def _class_numbers(values: ArrayLike, name: str) -> np.ndarray:
    classes = checks.labels(values, name)
    remedy = f"give class numbers: {checks.class_numbers(name, classes.shape, classes.dtype)}"
    if classes.ndim != 1:
        raise ValueError(
            f"`{name}` must be class numbers of shape (N,), got shape {classes.shape}; {remedy}"
        )
    if not classes.size:
        raise ValueError(f"`{name}` must not be empty, got shape {classes.shape}; give it rows")
    if classes.dtype.kind not in "iub":
        raise TypeError(
            f"`{name}` must be integers, got {classes.dtype}; {remedy}, or "
            "probabilities.argmax(axis=1)"
        )
    checks.integer(int(classes.max()), name, -(2**63))  # a larger uint64 would wrap around
    return classes.astype(np.int64)
