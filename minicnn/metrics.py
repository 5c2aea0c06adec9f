"""Metrics: how good predictions are, in float64, from all rows at once."""

import math

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core.checks import MOST, array, class_numbers, integer, room
from minicnn.core.checks import labels as check_labels


def accuracy(labels: ArrayLike, predictions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the share of rows whose prediction is their label.

    With weights it is sum(weights where right) / sum(weights).

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row.
    predictions : array of int, (N,)
        The predicted class of each row.
    weights : array, (N,), optional
        How much each row counts: finite, not negative, not all 0.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    TypeError
        If the classes are not integers.
    ValueError
        If the shapes do not fit, there is no row, or the weights cannot be used.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.accuracy(labels=[7, 2, 1, 0], predictions=[7, 2, 1, 6])
    0.75
    """
    labels, predictions = _classes(labels, predictions)
    return mean(labels == predictions, weights)


def mean(values: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return sum(weights * values) / sum(weights), the plain mean without weights.

    Parameters
    ----------
    values : array
    weights : array of the shape of `values`, optional
        How much each value counts: finite, not negative, not all 0.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If there is no value, the shapes differ, or the weights cannot be used.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.metrics.mean([1.0, 2.0, 6.0])
    3.0
    >>> mc.metrics.mean([1.0, 2.0, 6.0], weights=[1, 1, 0])
    1.5
    """
    values = array(values, "values").astype(np.float64)
    if not values.size:
        raise ValueError(f"`values` must not be empty, got shape {values.shape}; give it rows")
    if weights is None:
        return float(values.mean())
    weights = array(weights, "weights").astype(np.float64)
    if weights.shape != values.shape:
        raise ValueError(
            f"`weights` must have shape {values.shape}, got {weights.shape}; broadcast it first"
        )
    total = float(weights.sum())
    if weights.min() < 0 or not 0 < total < math.inf:
        raise ValueError(
            "`weights` must be finite, not negative and not all 0, got "
            f"{weights.min():g} as the least and {total:g} as the sum"
        )
    return float((weights * values).sum() / total)


def confusion_matrix(
    labels: ArrayLike, predictions: ArrayLike, num_classes: int | None = None
) -> np.ndarray:
    """Return how often each true class (row) was predicted as each class (column).

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row, in [0, num_classes).
    predictions : array of int, (N,)
        The predicted class of each row, in [0, num_classes).
    num_classes : int, optional
        Without it, one more than the largest class met.

    Returns
    -------
    ndarray of int64, (num_classes, num_classes)

    Raises
    ------
    TypeError
        If the classes are not integers.
    ValueError
        If the shapes do not fit, there is no row, or a class lies outside the range.

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
    size = integer(num_classes, "num_classes", 1, MOST)
    room((size, size), "`num_classes`: the matrix")
    for name, classes in (("labels", labels), ("predictions", predictions)):
        outside = np.flatnonzero((classes < 0) | (classes >= size))
        if outside.size:
            raise ValueError(
                f"`{name}` must lie in [0, {size}), got {classes[outside[0]]} in row {outside[0]}; "
                "correct it or give a larger `num_classes`"
            )
    counts = np.bincount(labels * size + predictions, minlength=size * size)
    return counts.reshape(size, size).astype(np.int64, copy=False)


def _classes(labels: ArrayLike, predictions: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as int64 arrays (N,), N > 0."""
    true, predicted = _class_numbers(labels, "labels"), _class_numbers(predictions, "predictions")
    if true.size != predicted.size:
        raise ValueError(
            "`labels` and `predictions` must have one entry for each row, got "
            f"{true.size} and {predicted.size}; take both from the same rows"
        )
    return true, predicted


def _class_numbers(values: ArrayLike, name: str) -> np.ndarray:
    classes = check_labels(values, name)
    if classes.ndim != 1:
        raise ValueError(
            f"`{name}` must be class numbers of shape (N,), got shape {classes.shape}; "
            f"give class numbers: {class_numbers(name, classes.shape, classes.dtype)}"
        )
    if not classes.size:
        raise ValueError(f"`{name}` must not be empty, got shape {classes.shape}; give it rows")
    if classes.dtype.kind not in "iub":
        raise TypeError(
            f"`{name}` must be integers, got {classes.dtype}; give class numbers: "
            f"{class_numbers(name, classes.shape, classes.dtype)}, or probabilities.argmax(axis=1)"
        )
    integer(int(classes.max()), name, -(2**63), 2**63 - 1)  # a larger uint64 would wrap around
    return classes.astype(np.int64)
