"""Losses: labels first, logits second."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe
from minicnn.core.context import Context
from minicnn.core.hints import hinted
from minicnn.core.log import logger
from minicnn.core.op import Op, Shape, Tensor, apply
from minicnn.core.weights import parameters_of
from minicnn.ops import OneHot, Sigmoid, Softmax, check_labels

_SUM_TOLERANCE = 1e-3  # of the sum of a row of labels
_LABELS_FIRST = "the labels come first"
_TWO_UNITS = "the last layer needs one unit for each class: two units for yes or no"


_BY_NONZERO = "weighted_sum_by_nonzero_weights"

# What the sum of w * terms is divided by; `each` is the number of terms that a weight is for.
_DIVISORS: dict[str, Callable[..., Any]] = {
    "weighted_sum": lambda w, each: 1,
    "weighted_mean": lambda w, each: w.sum() * each,
    "weighted_sum_over_batch_size": lambda w, each: w.size * each,
    _BY_NONZERO: lambda w, each: np.count_nonzero(w) * each,
}


class _Loss(Op):
    """The base of the losses: a weighted mean of terms, and its gradient for the outputs."""

    outputs = "logits"  # the name of the argument
    # (labels, outputs): the terms, and the derivatives of their sum
    terms: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]

    def __init__(
        self, weights: Any = 1.0, label_smoothing: float = 0.0, name: Any = None,
        reduction: str = _BY_NONZERO,
    ) -> None:
        super().__init__(name)
        self.is_fed = isinstance(weights, Tensor)  # the weights are the last input
        self.weights = None if self.is_fed else weights
        self.label_smoothing = checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
        self.reduction = checks.choice(reduction, "reduction", _DIVISORS)

    def check(self, labels: Shape, outputs: Shape) -> None:
        """Raise unless labels and outputs have the same shape: nothing is broadcast."""
        if not labels or not outputs or not _alike(labels, outputs):
            remedy = "a row of labels needs the shape of a row of outputs"
            sizes = [math.prod(size or 0 for size in shape[1:]) for shape in (labels, outputs)]
            if sizes[0] == sizes[1] and labels[1:] != outputs[1:]:
                remedy = f"reshape the labels: mc.reshape(labels, {[-1, *outputs[1:]]})"
            raise ValueError(
                f"{self.label}: `labels` and `{self.outputs}` must have the same shape (N, ...), "
                f"got labels {labels} and {self.outputs} {outputs}; {remedy}"
            )

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        return ()

    def forward(self, labels: Any, outputs: Any, *others_and_ctx: Any) -> Any:
        *others, ctx = others_and_ctx
        labels = checks.labels(labels, "labels")
        outputs = checks.array(outputs, self.outputs)
        self.check(labels.shape, outputs.shape)
        if outputs.dtype not in (np.float32, np.float64):
            raise TypeError(
                f"{self.label}: `{self.outputs}` must be float32 or float64, got "
                f"{describe(outputs)}"
            )
        terms, slopes = self.terms(labels, outputs)
        w = _weights(self.label, others[-1] if self.is_fed else self.weights, terms.shape)
        divisor = _DIVISORS[self.reduction](w, terms.size // max(w.size, 1))
        if self.is_fed:  # of the rows of all processes, in proportion to these rows
            total, rows = ctx.total(np.array([divisor, len(terms)], np.float64))
            divisor = total * len(terms) / rows
        w = w / divisor if divisor > 0 else np.zeros_like(w)
        if ctx.save:
            scale = _as_rank(w.astype(outputs.dtype), slopes.ndim)
            ctx[self] = scale * slopes, [None] * len(others)
        return float((w * terms).sum())

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> tuple[Any, ...]:
        gradient, others = ctx[self]
        return None, gradient if dy == 1 else float(dy) * gradient, *others


class SoftmaxCrossEntropy(_Loss):
    """The mean over rows of w * -sum(labels * log softmax(logits)), and its gradient.

    dlogits = w (softmax(logits) sum(labels) - labels) / count(w != 0)

    Parameters
    ----------
    weights, label_smoothing, name, reduction
        As for `softmax_cross_entropy`, which applies it.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> ctx, op = mc.Context(), mc.losses.SoftmaxCrossEntropy()
    >>> loss = op.forward(np.array([[1.0, 0.0]]), np.zeros((1, 2)), ctx)
    >>> op.backward(1.0, ctx)[1]
    array([[-0.5,  0.5]])
    """

    def check(self, labels: Shape, outputs: Shape) -> None:
        if len(outputs) != 2 or not _alike(labels, outputs):
            raise ValueError(
                f"{self.label}: `labels` and `logits` must have the same shape (N, classes), got "
                f"labels {labels} and logits {outputs}; {_shape_remedy(labels, outputs)}"
            )

    def terms(self, labels: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        _check_rows(self.label, labels)
        labels = labels.astype(outputs.dtype, copy=False)
        if self.label_smoothing:
            smoothing = self.label_smoothing
            labels = labels * (1 - smoothing) + smoothing / outputs.shape[1]
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        # -sum(labels * log softmax), with log softmax = shifted - log(total)
        terms = np.zeros_like(labels)
        np.multiply(labels, np.log(total) - shifted, out=terms, where=labels > 0)  # 0 inf is 0
        sums = labels.sum(axis=1, keepdims=True)  # 1, except for rounding errors
        return terms.sum(axis=1, dtype=np.float64), exp / total * sums - labels


class _SparseSoftmaxCrossEntropy(SoftmaxCrossEntropy):
    """The loss `SoftmaxCrossEntropy` of class numbers (N,)."""

    kind = SoftmaxCrossEntropy.kind

    def check(self, labels: Shape, outputs: Shape) -> None:
        if len(labels) != 1 or len(outputs) != 2 or not _alike(labels, outputs[:1]):
            remedy = checks.class_numbers("labels", labels, np.int64)
            raise ValueError(
                f"{self.label}: `labels` must be class numbers (N,) and `logits` (N, classes), of "
                f"a layer after layers.Flatten, got labels {labels} and logits {outputs}; class "
                f"numbers of the same rows are {remedy}"
            )

    def terms(self, labels: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if labels.dtype.kind not in "iu":
            raise TypeError(
                f"{self.label}: class numbers must be integers, got {describe(labels)}; convert "
                f"them: {checks.class_numbers('labels', labels.shape, labels.dtype)}"
            )
        classes = outputs.shape[1]
        check_labels(labels, classes, self.label)
        if self.label_smoothing:
            return super().terms(labels[:, None] == np.arange(classes), outputs)
        at = np.arange(len(labels)), labels
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1, keepdims=True)
        slopes = exp / total
        slopes[at] -= 1
        return (np.log(total[:, 0]) - shifted[at]).astype(np.float64), slopes


class _SigmoidCrossEntropy(_Loss):
    """-(labels * log sigmoid(logits) + (1 - labels) * log(1 - sigmoid(logits)))."""

    kind = "sigmoid_cross_entropy"

    def terms(self, labels: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        outside = labels[~((labels >= 0) & (labels <= 1))]
        if outside.size:
            raise ValueError(
                f"{self.label}: `labels` must be probabilities from 0 to 1, got {outside[0]}; "
                f"class numbers become rows with one_hot(labels, depth), and {_LABELS_FIRST}"
            )
        labels = labels.astype(outputs.dtype, copy=False)
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        e = np.exp(-np.abs(outputs))  # exp(-z) would overflow
        terms = np.maximum(outputs, 0) - outputs * labels + np.log1p(e)
        return terms, np.where(outputs < 0, e, 1) / (1 + e) - labels


class _MeanSquaredError(_Loss):
    """(predictions - labels)^2."""

    kind = "mean_squared_error"
    outputs = "predictions"

    def terms(self, labels: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        error = outputs - labels.astype(outputs.dtype, copy=False)
        return error * error, 2 * error


class _AbsoluteDifference(_Loss):
    """|predictions - labels|."""

    kind = "absolute_difference"
    outputs = "predictions"

    def terms(self, labels: np.ndarray, outputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        error = outputs - labels.astype(outputs.dtype, copy=False)
        return np.abs(error), np.sign(error)


def _applied(
    kind: type[_Loss], labels: Any, outputs: Any, weights: Any, smoothing: float, name: str | None,
    reduction: str,
) -> Any:
    """Apply a loss to arrays or Tensors."""
    op = kind(weights, smoothing, name, reduction)
    if isinstance(labels, Tensor) and isinstance(outputs, Tensor):
        op.check(labels.shape, outputs.shape)
        _check_tensors(op, outputs)
    fed = (weights,) if isinstance(weights, Tensor) else ()
    return apply(op, labels, outputs, *fed)


def _with_gradient(
    kind: type[_Loss], labels: Any, outputs: Any, *options: Any
) -> tuple[Any, np.ndarray]:
    """Return a loss of arrays and its gradient for the outputs."""
    op = kind(*options)
    ctx = Context()
    loss = op.forward(labels, outputs, ctx)
    return loss, op.backward(1.0, ctx)[1]


@hinted
def softmax_cross_entropy(
    onehot_labels: Any,
    logits: Any,
    weights: Any = 1.0,
    label_smoothing: float = 0.0,
    name: str | None = None,
    reduction: str = _BY_NONZERO,
) -> Any:
    """Return the softmax cross-entropy, averaged over the rows.

        loss = sum over rows of w * -sum(labels * log softmax(logits)) / count(w != 0)

    Parameters
    ----------
    onehot_labels : ndarray or Tensor
        (N, classes). Each row sums to 1.
    logits : ndarray or Tensor
        (N, classes). Large values do not overflow.
    weights : float, ndarray or Tensor
        A number, or one for each row: (N,) or (N, 1). A Tensor is for weights that differ from
        batch to batch, given as a feature or a label; it has no gradient.
    label_smoothing : float
        In [0, 1). The labels become labels * (1 - s) + s / classes.
    name : str, optional
    reduction : str
        What the sum of w * terms is divided by, as in TensorFlow: by default the number of weights
        that are not 0; "weighted_mean": the sum of the weights; "weighted_sum_over_batch_size":
        the number of terms; "weighted_sum": 1. With a sum, the size of the gradient
        depends on that of the batch, and several processes, which average their losses, do not
        train as one does.

    Returns
    -------
    float or Tensor
        0 if every weight is 0.

    Raises
    ------
    ValueError
        If the shapes differ, or if a row of labels is not a distribution over the classes.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> labels = mc.one_hot(np.array([0, 1]), depth=2)
    >>> loss = mc.losses.softmax_cross_entropy(onehot_labels=labels, logits=np.zeros((2, 2)))
    >>> round(loss, 4)  # log 2
    0.6931
    """
    kind: type[_Loss] = SoftmaxCrossEntropy
    if isinstance(onehot_labels, Tensor) and isinstance(logits, Tensor):
        op = onehot_labels.op
        is_plain = isinstance(op, OneHot) and (op.on_value, op.off_value) == (1, 0)
        if is_plain and _alike(onehot_labels.shape, logits.shape):
            kind = _SparseSoftmaxCrossEntropy  # its error names a label that is no class
            onehot_labels = onehot_labels.inputs[0]
    return _applied(kind, onehot_labels, logits, weights, label_smoothing, name, reduction)


def _check_tensors(op: _Loss, outputs: Tensor) -> None:
    """Warn if the logits are probabilities already."""
    activation: Any = Sigmoid if isinstance(op, _SigmoidCrossEntropy) else Softmax
    is_last = type(getattr(outputs.op, "activation", outputs.op)) is activation
    if op.outputs == "logits" and is_last:
        logger.warning(
            "%s: the logits %r are probabilities already; the loss applies the %s itself, so give "
            "it the values before the %s", op.label, outputs.name, activation.kind, activation.kind,
        )


@hinted
def sparse_softmax_cross_entropy(
    labels: Any, logits: Any, weights: Any = 1.0, name: str | None = None,
    reduction: str = _BY_NONZERO,
) -> Any:
    """Return the softmax cross-entropy of class numbers, averaged over the rows.

        loss = sum over rows of w * -log softmax(logits)[label] / count(w != 0)

    Parameters
    ----------
    labels : ndarray or Tensor
        (N,), integers in [0, classes).
    logits : ndarray or Tensor
        (N, classes)
    weights, name, reduction
        As for `softmax_cross_entropy`.

    Returns
    -------
    float or Tensor

    Raises
    ------
    ValueError, TypeError
        If the labels are not class numbers (N,), or one of them is not one of the classes.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> round(mc.losses.sparse_softmax_cross_entropy(np.array([0, 1]), np.zeros((2, 4))), 4)
    1.3863
    """
    return _applied(_SparseSoftmaxCrossEntropy, labels, logits, weights, 0.0, name, reduction)


@hinted
def sparse_softmax_cross_entropy_with_grad(
    labels: Any, logits: np.ndarray, weights: Any = 1.0, reduction: str = _BY_NONZERO
) -> tuple[float, np.ndarray]:
    """Return the softmax cross-entropy of class numbers, and its gradient for the logits.

    Parameters
    ----------
    labels, logits, weights, reduction
        As for `sparse_softmax_cross_entropy`; arrays.

    Returns
    -------
    (float, ndarray)
        The loss, and its gradient (N, classes).

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> logits = np.zeros((1, 2), np.float32)
    >>> mc.losses.sparse_softmax_cross_entropy_with_grad(np.array([1]), logits)[1]
    array([[ 0.5, -0.5]], dtype=float32)
    """
    return _with_gradient(
        _SparseSoftmaxCrossEntropy, labels, logits, weights, 0.0, None, reduction
    )


@hinted
def sigmoid_cross_entropy(
    multi_class_labels: Any, logits: Any, weights: Any = 1.0, label_smoothing: float = 0.0,
    name: str | None = None, reduction: str = _BY_NONZERO,
) -> Any:
    """Return the cross-entropy of independent yes-or-no questions, averaged over all of them.

        loss = sum of w * -(y log p + (1 - y) log(1 - p)) / count(w != 0),  p = sigmoid(logits)

    It is for two classes with one logit, and for rows that may belong to several classes.

    Parameters
    ----------
    multi_class_labels : ndarray or Tensor
        (N, ...), of the shape of `logits`; from 0 to 1.
    logits : ndarray or Tensor
        (N, ...). Large values do not overflow.
    weights : float, ndarray or Tensor
        A number, one for each row, (N,) or (N, 1, ...), or one for each logit. A Tensor has no
        gradient.
    label_smoothing : float
        In [0, 1). The labels become labels * (1 - s) + s / 2.
    name : str, optional
    reduction : str
        As for `softmax_cross_entropy`.

    Returns
    -------
    float or Tensor

    Raises
    ------
    ValueError
        If the shapes differ (nothing is broadcast), or if a label is not from 0 to 1.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> labels = np.array([[1.0, 0.0, 1.0]])
    >>> round(mc.losses.sigmoid_cross_entropy(labels, np.zeros((1, 3))), 4)  # log 2
    0.6931
    """
    return _applied(
        _SigmoidCrossEntropy, multi_class_labels, logits, weights, label_smoothing, name, reduction
    )


@hinted
def sigmoid_cross_entropy_with_grad(
    labels: Any, logits: np.ndarray, weights: Any = 1.0, label_smoothing: float = 0.0,
    reduction: str = _BY_NONZERO,
) -> tuple[float, np.ndarray]:
    """Return the sigmoid cross-entropy and its gradient for the logits.

        dlogits = w (sigmoid(logits) - labels) / count(w != 0)

    Parameters
    ----------
    labels, logits, weights, label_smoothing, reduction
        As for `sigmoid_cross_entropy`; arrays.

    Returns
    -------
    (float, ndarray)
        The loss, and its gradient, of the shape of the logits.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.losses.sigmoid_cross_entropy_with_grad(np.array([1.0, 0.0]), np.zeros(2))[1]
    array([-0.25,  0.25])
    """
    return _with_gradient(
        _SigmoidCrossEntropy, labels, logits, weights, label_smoothing, None, reduction
    )


@hinted
def mean_squared_error(
    labels: Any, predictions: Any, weights: Any = 1.0, name: str | None = None,
    reduction: str = _BY_NONZERO,
) -> Any:
    """Return the mean of the squared errors.

        loss = sum of w * (predictions - labels)^2 / count(w != 0)

    Parameters
    ----------
    labels : ndarray or Tensor
        (N, ...), of the shape of `predictions`.
    predictions : ndarray or Tensor
        (N, ...)
    weights, name, reduction
        As for `sigmoid_cross_entropy`.

    Returns
    -------
    float or Tensor

    Raises
    ------
    ValueError
        If the shapes differ: nothing is broadcast, not even (N,) and (N, 1).

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.losses.mean_squared_error(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    4.5
    """
    return _applied(_MeanSquaredError, labels, predictions, weights, 0.0, name, reduction)


@hinted
def mean_squared_error_with_grad(
    labels: Any, predictions: np.ndarray, weights: Any = 1.0, reduction: str = _BY_NONZERO
) -> tuple[float, np.ndarray]:
    """Return the mean squared error and its gradient for the predictions.

        dpredictions = 2 w (predictions - labels) / count(w != 0)

    Parameters
    ----------
    labels, predictions, weights, reduction
        As for `mean_squared_error`; arrays.

    Returns
    -------
    (float, ndarray)
        The loss, and its gradient, of the shape of the predictions.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.losses.mean_squared_error_with_grad(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    (4.5, array([0., 3.]))
    """
    return _with_gradient(
        _MeanSquaredError, labels, predictions, weights, 0.0, None, reduction
    )


@hinted
def absolute_difference(
    labels: Any, predictions: Any, weights: Any = 1.0, name: str | None = None,
    reduction: str = _BY_NONZERO,
) -> Any:
    """Return the mean of the absolute errors.

        loss = sum of w * |predictions - labels| / count(w != 0)

    Outliers count less than in `mean_squared_error`.

    Parameters
    ----------
    labels, predictions, weights, name, reduction
        As for `mean_squared_error`.

    Returns
    -------
    float or Tensor

    Raises
    ------
    ValueError
        If the shapes differ: nothing is broadcast, not even (N,) and (N, 1).

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.losses.absolute_difference(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    1.5
    """
    return _applied(_AbsoluteDifference, labels, predictions, weights, 0.0, name, reduction)


@hinted
def absolute_difference_with_grad(
    labels: Any, predictions: np.ndarray, weights: Any = 1.0, reduction: str = _BY_NONZERO
) -> tuple[float, np.ndarray]:
    """Return the mean absolute error and its gradient for the predictions.

        dpredictions = w sign(predictions - labels) / count(w != 0)

    Parameters
    ----------
    labels, predictions, weights, reduction
        As for `absolute_difference`; arrays.

    Returns
    -------
    (float, ndarray)
        The loss, and its gradient, of the shape of the predictions; 0 where they are equal.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.losses.absolute_difference_with_grad(np.array([1.0, 2.0]), np.array([1.0, 5.0]))
    (1.5, array([0. , 0.5]))
    """
    return _with_gradient(
        _AbsoluteDifference, labels, predictions, weights, 0.0, None, reduction
    )


@hinted
def softmax_cross_entropy_with_grad(
    labels: Any, logits: np.ndarray, weights: Any = 1.0, label_smoothing: float = 0.0,
    reduction: str = _BY_NONZERO,
) -> tuple[float, np.ndarray]:
    """Return the softmax cross-entropy and its gradient with respect to the logits.

        dlogits = w (softmax(logits) sum(labels) - labels) / count(w != 0)

    Parameters
    ----------
    labels : ndarray
        (N,) class numbers, or (N, classes) rows that sum to 1.
    logits : ndarray
        (N, classes)
    weights, label_smoothing, reduction
        As for `softmax_cross_entropy`.

    Returns
    -------
    (float, ndarray)
        The loss, and its gradient (N, classes).

    Raises
    ------
    ValueError
        If the shapes differ, or if a label is not one of the classes.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> logits = np.zeros((1, 2), np.float32)
    >>> loss, dlogits = mc.losses.softmax_cross_entropy_with_grad(np.array([1]), logits)
    >>> dlogits
    array([[ 0.5, -0.5]], dtype=float32)
    """
    labels = checks.labels(labels, "labels")
    kind = _SparseSoftmaxCrossEntropy if labels.ndim == 1 else SoftmaxCrossEntropy
    return _with_gradient(kind, labels, logits, weights, label_smoothing, None, reduction)


def regularization(model: Op) -> float:
    """Return the sum of the regularizers of a model, and add their gradients to the parameters.

    Call it in a training loop of your own, after backward, which overwrites the gradients. The
    Estimator and `Sequential.fit` do both themselves.

    Parameters
    ----------
    model : Layer
        It is built. The parameters without a regularizer do not change.

    Returns
    -------
    float
        What is added to the loss; 0 if there are no regularizers.

    Raises
    ------
    ValueError
        If the model has no parameters.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> l2 = mc.layers.l2_regularizer(0.1)
    >>> model = mc.layers.Dense(1, kernel_initializer=2.0, kernel_regularizer=l2)
    >>> model.build((None, 3), rng=0)
    (None, 1)
    >>> mc.losses.regularization(model)  # 0.1 (2^2 + 2^2 + 2^2) / 2
    0.6000000000000001
    >>> model.kernel.grad.ravel()
    array([0.2, 0.2, 0.2], dtype=float32)
    """
    parameters = parameters_of(model).values()
    for parameter in parameters:
        parameter.add_penalty_gradient()
    return sum(parameter.penalty() for parameter in parameters)


def _alike(first: Shape, second: Shape) -> bool:
    """Return whether two shapes are the same, where None may be any number of rows."""
    return first[1:] == second[1:] and len({*first[:1], *second[:1]} - {None}) < 2


def _shape_remedy(labels: Shape, logits: Shape) -> str:
    """Return how to correct labels and logits of different shapes."""
    if len(logits) != 2:
        return f"{_LABELS_FIRST}, and logits are of a layer after layers.Flatten"
    if logits[1] == 1 and len(labels) <= 2:
        return _TWO_UNITS
    if len(labels) != 2 or labels[1] == 1:
        numbers = checks.class_numbers("y", labels[:2], np.int64)
        return f"make the labels with one_hot(n, depth={logits[1]}) of the numbers n = {numbers}"
    return f"take both from the same rows, and give the last layer {labels[1]} units"


def _check_rows(label: str, labels: np.ndarray) -> None:
    """Raise if a row of labels is not a distribution over the classes."""
    good = (labels >= 0).all(axis=1) & (np.abs(labels.sum(axis=1) - 1.0) < _SUM_TOLERANCE)
    if not good.all():
        row = int(np.argmin(good))
        raise ValueError(
            f"{label}: row {row} of the labels is {labels[row].tolist()}; its entries must not be "
            f"negative and must sum to 1 ({_LABELS_FIRST}; a row of zeros comes from a class "
            f"number that one_hot does not reach; {_TWO_UNITS})"
        )


def _weights(label: str, weights: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Return float64 weights of the terms: one, or one for each row or term, of their rank."""
    w = checks.array(weights, "weights").astype(np.float64)
    of_rows = w.shape[:1] == shape[:1] and w.size == shape[0]
    fits = w.size == 1 or of_rows or w.shape == shape
    if not fits or not np.isfinite(w).all():
        each = "" if len(shape) == 1 else f", or {shape} of the outputs"
        raise ValueError(
            f"{label}: `weights` must be a number or have the shape ({shape[0]},) of the rows"
            f"{each}, and be finite, got {describe(weights)}"
        )
    return w if w.shape == shape else _as_rank(w.reshape(-1), len(shape))


def _as_rank(array: np.ndarray, rank: int) -> np.ndarray:
    """Return an array with axes of size 1 after its own."""
    return array.reshape(*array.shape, *[1] * (rank - array.ndim))
