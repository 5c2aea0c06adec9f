"""Losses: labels first, logits second."""

import logging
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe
from minicnn.core.context import Context
from minicnn.core.hints import hinted
from minicnn.core.op import Op, Shape, Tensor, apply
from minicnn.core.weights import parameters_of
from minicnn.ops import OneHot, Softmax, check_labels

logger = logging.getLogger("minicnn")

_SUM_TOLERANCE = 1e-3  # of the sum of a row of labels
_LABELS_FIRST = "the labels come first"
_TWO_UNITS = "the last layer needs one unit for each class: two units for yes or no"


class SoftmaxCrossEntropy(Op):
    """The mean over rows of w * -sum(labels * log softmax(logits)), and its gradient.

    dlogits = w (softmax(logits) sum(labels) - labels) / count(w != 0)

    Parameters
    ----------
    weights, label_smoothing, name
        As for `softmax_cross_entropy`, which applies it.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> ctx, op = mc.Context(), mc.losses.SoftmaxCrossEntropy()
    >>> loss = op.forward(np.array([[1.0, 0.0]]), np.zeros((1, 2)), ctx)
    >>> op.backward(1.0, ctx)[1]
    array([[-0.5,  0.5]])
    """

    def __init__(self, weights: Any = 1.0, label_smoothing: float = 0.0, name: Any = None) -> None:
        super().__init__(name)
        self.weights = weights  # None: they are the last input
        self.label_smoothing = checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        return ()

    def forward(  # type: ignore[override]  # two inputs, or three with the weights
        self, labels: np.ndarray, logits: np.ndarray, *weights_and_ctx: Any
    ) -> Any:
        *weights, ctx = weights_and_ctx
        labels = checks.labels(labels, "labels")
        logits = checks.array(logits, "logits")
        loss, gradient = _loss_and_gradient(
            self.label, labels, logits, weights[0] if weights else self.weights,
            self.label_smoothing, ctx.save,
        )
        ctx[self] = gradient
        return loss

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> tuple[Any, ...]:
        dlogits = ctx[self] if dy == 1 else dy * ctx[self]
        return (None, dlogits) if self.weights is not None else (None, dlogits, None)


class _OfClassNumbers(SoftmaxCrossEntropy):
    """The loss of rows that `one_hot` made of class numbers; these are the third input.

    A class number that `one_hot` does not reach gives a row of zeros: the error names the number.
    """

    kind = SoftmaxCrossEntropy.kind

    def forward(  # type: ignore[override]  # three inputs, or four with the weights
        self, labels: np.ndarray, logits: np.ndarray, numbers: np.ndarray, *weights_and_ctx: Any
    ) -> Any:
        check_labels(numbers, labels.shape[1], self.label)
        return super().forward(labels, logits, *weights_and_ctx)

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> tuple[Any, ...]:
        return *super().backward(dy, ctx), None


@hinted
def softmax_cross_entropy(
    onehot_labels: Any,
    logits: Any,
    weights: Any = 1.0,
    label_smoothing: float = 0.0,
    name: str | None = None,
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
    fed = (weights,) if isinstance(weights, Tensor) else ()
    weights = None if fed else weights
    op = SoftmaxCrossEntropy(weights, label_smoothing, name)
    if isinstance(onehot_labels, Tensor) and isinstance(logits, Tensor):
        _check_tensors(op.label, onehot_labels, logits)
        if isinstance(onehot_labels.op, OneHot):
            op = _OfClassNumbers(weights, label_smoothing, name)
            return apply(op, onehot_labels, logits, *onehot_labels.inputs, *fed)
    return apply(op, onehot_labels, logits, *fed)


def _check_tensors(label: str, labels: Tensor, logits: Tensor) -> None:
    """Check the inputs of the loss when a graph is built."""
    _check_shapes(label, labels.shape, logits.shape)
    if isinstance(logits.op, OneHot):
        raise ValueError(
            f"{label}: `logits` must be the outputs of the model, got {logits!r}; {_LABELS_FIRST}"
        )
    if type(getattr(logits.op, "activation", logits.op)) is Softmax:
        logger.warning(
            "%s: the logits %r are probabilities already; the loss applies the softmax itself, "
            "so give it the values before the softmax", label, logits.name,
        )


@hinted
def softmax_cross_entropy_with_grad(
    labels: Any, logits: np.ndarray, weights: Any = 1.0, label_smoothing: float = 0.0
) -> tuple[float, np.ndarray]:
    """Return the softmax cross-entropy and its gradient with respect to the logits.

        dlogits = w (softmax(logits) sum(labels) - labels) / count(w != 0)

    Parameters
    ----------
    labels : ndarray
        (N,) class numbers, or (N, classes) rows that sum to 1.
    logits : ndarray
        (N, classes)
    weights, label_smoothing
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
    label = "softmax_cross_entropy_with_grad"
    smoothing = checks.number(label_smoothing, "label_smoothing", 0.0, 1.0)
    labels = checks.labels(labels, "labels")
    logits = checks.array(logits, "logits")
    if labels.ndim == 1 and logits.ndim == 2:
        labels = _rows_of(labels, logits, label)
    return _loss_and_gradient(label, labels, logits, weights, smoothing, True)


def regularization(model: Op) -> float:
    """Return the sum of the regularizers of a model, and add their gradients to the parameters.

    Call it in a loop of one's own, after backward, which overwrites the gradients. The Estimator
    and `Sequential.fit` do both themselves.

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


def _rows_of(labels: np.ndarray, logits: np.ndarray, label: str) -> np.ndarray:
    """Return the one-hot rows of class numbers."""
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"{label}: class numbers must be integers, got {describe(labels)}; convert them: "
            f"{checks.class_numbers('labels', labels.shape, labels.dtype)}"
        )
    check_labels(labels, logits.shape[1], label)
    return (labels[:, None] == np.arange(logits.shape[1])).astype(logits.dtype)


def _loss_and_gradient(
    label: str,
    labels: np.ndarray,
    logits: np.ndarray,
    weights: Any,
    smoothing: float,
    need_gradient: bool,
) -> tuple[float, Any]:
    """Return the loss, and its gradient with respect to the logits or None."""
    _check_shapes(label, labels.shape, logits.shape)
    if logits.dtype not in (np.float32, np.float64):
        raise TypeError(f"{label}: `logits` must be float32 or float64, got {describe(logits)}")
    _check_rows(label, labels, logits)
    classes = logits.shape[1]
    labels = labels.astype(logits.dtype, copy=False)
    if smoothing:
        labels = labels * (1 - smoothing) + smoothing / classes
    w = _row_weights(label, weights, logits)
    counted = max(int(np.count_nonzero(w)), 1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    exp = np.exp(shifted)
    total = exp.sum(axis=1, keepdims=True)
    # -sum(labels * log softmax), with log softmax = shifted - log(total)
    terms = np.zeros_like(labels)
    np.multiply(labels, np.log(total) - shifted, out=terms, where=labels > 0)  # 0 times inf is 0
    row_loss = terms.sum(axis=1, dtype=np.float64)
    loss = float((w * row_loss).sum() / counted)
    if not need_gradient:
        return loss, None
    scale = (w / counted).astype(logits.dtype)[:, None]
    sums = labels.sum(axis=1, keepdims=True)  # 1, except for rounding errors
    return loss, scale * (exp / total * sums - labels)


def _check_shapes(label: str, labels: Shape, logits: Shape) -> None:
    if (
        len(logits) != 2
        or len(labels) != 2
        or labels[1] != logits[1]
        or (None not in (labels[0], logits[0]) and labels[0] != logits[0])
    ):
        raise ValueError(
            f"{label}: `labels` and `logits` must have the same shape (N, classes), got labels "
            f"{labels} and logits {logits}; {_shape_remedy(labels, logits)}"
        )


def _shape_remedy(labels: Shape, logits: Shape) -> str:
    """Return how to correct labels and logits of different shapes."""
    if len(logits) > 2:
        return "flatten the features before the last layer (layers.Flatten)"
    if len(logits) < 2 or not labels:
        swapped = len(labels) == 2
        return _LABELS_FIRST if swapped else "both need a row for each row of the data"
    if logits[1] == 1 and len(labels) <= 2:
        return _TWO_UNITS
    if len(labels) == 1:
        return f"make the labels with one_hot(labels, depth={logits[1]})"
    if labels[1] == 1 or len(labels) > 2:  # a column of class numbers, or one_hot twice
        return f"give class numbers: {checks.class_numbers('y', labels[:2], np.int64)}"
    if labels[1] != logits[1]:
        return f"give the last layer {labels[1]} units, or make the labels with depth={logits[1]}"
    return "take both from the same rows"


def _check_rows(label: str, labels: np.ndarray, logits: np.ndarray) -> None:
    """Raise if a row of labels is not a distribution over the classes."""
    good = _distributions(labels)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        remedy = "a row of zeros comes from a class number that one_hot does not reach"
        if labels.shape[1] == 1:
            remedy = _TWO_UNITS
        elif _distributions(logits).all():
            remedy = _LABELS_FIRST
        raise ValueError(
            f"{label}: row {row} of the labels is {labels[row].tolist()}; its entries must not be "
            f"negative and must sum to 1 ({remedy})"
        )


def _distributions(rows: np.ndarray) -> np.ndarray:
    """Return whether each row is a distribution over the classes."""
    return (rows >= 0).all(axis=1) & (np.abs(rows.sum(axis=1) - 1.0) < _SUM_TOLERANCE)


def _row_weights(label: str, weights: Any, logits: np.ndarray) -> np.ndarray:
    """Return one float64 weight for each row."""
    w = checks.array(weights, "weights").astype(np.float64)
    fits = w.shape in ((), (1,), (len(logits),), (len(logits), 1), (1, 1))
    if not fits or not np.isfinite(w).all():
        raise ValueError(
            f"{label}: `weights` must be a number or have the shape ({len(logits)},) of the rows, "
            f"and be finite, got {describe(weights)}"
        )
    return np.broadcast_to(w.reshape(-1), (len(logits),))
