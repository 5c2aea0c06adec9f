"""Metrics of predictions, computed in float64."""

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core import checks


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
    checks.allocatable((size, size), "`num_classes`: the matrix")
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
