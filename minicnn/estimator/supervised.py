"""A Sequential in the engine: its model_fn, and what `Sequential.fit` is given.

`HEADS` has the losses by name. The rest of the first part makes graphs of a model, the second
part makes feeds and hooks of arguments.
"""

import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FunctionType
from typing import Any, NamedTuple

import numpy as np

from minicnn import losses, metrics, ops
from minicnn.core import checks
from minicnn.core.hints import hinted
from minicnn.core.op import Op, Tensor
from minicnn.estimator import feeding
from minicnn.estimator.config import (
    MetricSpec,
    ModeKeys,
    ModelFnOps,
    checked_metrics,
    optimize_loss,
)
from minicnn.estimator.streams import Stream
from minicnn.estimator.tracing import Trace
from minicnn.hooks import EarlyStopping, SessionRunContext, ValidationMonitor
from minicnn.layers.activation import Activation
from minicnn.layers.affine import Affine
from minicnn.layers.chain import Chain, is_chain

# Losses, and the model_fn -------------------------------------------------------------------------


class Head(NamedTuple):
    """What a loss means for the outputs of a model.

    Parameters
    ----------
    loss : callable
        Takes the Tensors (labels, outputs), and weights if there are any; returns the loss.
    activation : str, optional
        The activation that turns outputs into probabilities; None if there are no probabilities.
    classes : callable, optional
        Returns the class numbers of probabilities, both Tensors or both arrays; None if there are
        no classes.
    numbers : callable, optional
        Returns the class numbers of an array of labels.
    """

    loss: Callable[..., Any]
    activation: str | None = None
    classes: Callable[[Any], Any] | None = None
    numbers: Callable[[np.ndarray], np.ndarray] | None = None


def class_numbers(labels: np.ndarray) -> np.ndarray:
    """Return the class numbers (N,) of labels: those of one-hot rows, or of a column."""
    if labels.ndim == 2:
        return labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    return labels


def _softmax_cross_entropy(labels: Tensor, logits: Tensor, weights: Any = 1.0) -> Any:
    """Return the loss of class numbers, (N,) or (N, 1), or of rows that sum to 1."""
    if logits.shape[1:] == (1,):
        others = ", ".join(name for name in HEADS if name != "softmax_cross_entropy")
        raise ValueError(
            "the loss softmax_cross_entropy needs one output for each class, got a model with one "
            f"output; for two classes end it with Dense(2), or choose another `loss`: {others}"
        )
    if len(logits.shape) == 2 and labels.shape[1:] in ((), (1,)):
        classes: Any = logits.shape[1]
        labels = ops.one_hot(ops.reshape(labels, [-1]), depth=classes)
    return losses.softmax_cross_entropy(labels, logits, weights)


def _as_outputs(loss: Callable[..., Any]) -> Callable[..., Any]:
    """Return a loss that also takes labels (N,) of a model with one output, (N, 1)."""

    @functools.wraps(loss)
    def of_same_shape(labels: Tensor, outputs: Tensor, *weights: Any) -> Any:
        if len(labels.shape) == 1 and outputs.shape[1:] == (1,):
            labels = ops.reshape(labels, [-1, 1])
        return loss(labels, outputs, *weights)

    return of_same_shape


_OF_CLASSES = Head(
    _softmax_cross_entropy, "softmax", functools.partial(ops.argmax, axis=1), class_numbers
)

# What the losses in `losses` mean, by name.
HEADS = {
    "softmax_cross_entropy": _OF_CLASSES,
    "sparse_softmax_cross_entropy": _OF_CLASSES,
    "sigmoid_cross_entropy": Head(
        _as_outputs(losses.sigmoid_cross_entropy), "sigmoid",
        lambda chances: ops.cast(chances + 0.5, np.int64), lambda labels: labels > 0.5,
    ),
    "mean_squared_error": Head(_as_outputs(losses.mean_squared_error)),
    "absolute_difference": Head(_as_outputs(losses.absolute_difference)),
}


def head_of(loss: Any) -> Head:
    """Return the head of a loss: a name, one of the functions in `losses`, or any function."""
    name = getattr(loss, "__name__", "")
    if name in HEADS and loss is getattr(losses, name, None):
        loss = name
    if callable(loss) and not isinstance(loss, type):
        return Head(loss)
    return HEADS[checks.choice(loss, "loss", HEADS, "a function of (labels, outputs)")]


class ModelFn:
    """The model_fn of a Sequential.

    Its predictions are "outputs", what `Sequential.predict` returns, and for a loss of classes
    "probabilities" and "classes".

    Parameters
    ----------
    model : Chain
    in_place : bool
        Whether training changes the model itself, or a copy of it.
    loss, optimizer, learning_rate
        As for `Sequential.fit`.
    """

    @hinted
    def __init__(
        self,
        model: Chain,
        in_place: bool,
        /,
        loss: Any = "softmax_cross_entropy",
        optimizer: Any = "Adam",
        learning_rate: Any = None,
    ) -> None:
        self.model = model
        self.head = head_of(loss)
        scales_itself = isinstance(optimizer, str) and optimizer.lower() in _SCALING
        rate = 0.001 if learning_rate is None and scales_itself else learning_rate
        self.minimize = functools.partial(optimize_loss, learning_rate=rate, optimizer=optimizer)
        self._in_place = in_place

    def __call__(self, features: Any, labels: Any, mode: str) -> ModelFnOps:
        if not isinstance(features, Tensor):
            raise TypeError(f"a Sequential takes one array, got a dict of {', '.join(features)}")
        model = self.model if self._in_place else copy.deepcopy(self.model)
        model._use_built_layers()
        if model.input_shape is None:
            model.build(features.shape, features.graph.rng)
        dtype: Any = model.dtype if features.dtype.kind == "f" else features.dtype
        row: Any = (1, *features.shape[1:])
        model.check_inputs(np.empty(row, dtype))  # a better error than that of a layer
        if features.dtype != dtype:
            features = ops.cast(features, dtype)
        outputs, predictions = self._outputs(model, features)
        loss = None if mode == ModeKeys.INFER else self._loss(labels, outputs)
        train_op = self.minimize(loss) if mode == ModeKeys.TRAIN else None
        return ModelFnOps(mode, predictions, loss, train_op)

    def _outputs(self, model: Chain, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return what the loss is computed from, and the predictions."""
        activation = ops.activation(self.head.activation)
        if activation is None:
            outputs = model(features)
            return outputs, {"outputs": outputs}
        is_last = ends_in(model, activation)
        outputs = _without_activation(model, features) if is_last else model(features)
        chances = activation(outputs)
        predictions = {"outputs": chances if is_last else outputs, "probabilities": chances}
        if self.head.classes is not None and len(outputs.shape) == 2:
            predictions["classes"] = self.head.classes(chances)
        return outputs, predictions

    def _loss(self, labels: Any, outputs: Tensor) -> Any:
        given = [labels, outputs]
        if isinstance(labels, dict):
            given = [labels["labels"], outputs, labels["weights"]]
        if given[0] is None:
            raise ValueError("there are no labels: give `y` beside `x`")
        what = "a function of (labels, outputs), and of (labels, outputs, weights) with weights"
        return checks.function(self.head.loss, "loss", what, len(given))(*given)

    def metrics(self, given: Any = None) -> dict[str, MetricSpec]:
        """Return the metrics of an argument: names, functions, or a dict; None for the usual."""
        if given is None:
            given = ["accuracy"] if self.head.classes else []
        if not isinstance(given, Mapping):
            one = isinstance(given, str) or callable(given)
            items = [given] if one else checks.sequence(given, "metrics", _METRICS)
            given = {str(getattr(item, "__name__", item)): item for item in items}
        return checked_metrics({name: self._metric(metric) for name, metric in given.items()})

    def check(self, feed: feeding.Feed, x: Any = None, y: Any = None) -> None:
        """Raise what a run would raise later, also for validation data."""
        rng = np.random.default_rng(0)
        Trace(self, ModeKeys.TRAIN, feed.peek(), {}, rng, {}).check_labels(feed.y)
        if x is None:
            return
        try:
            validation = feeding.ArrayFeed(x, y, 1)
            trace = Trace(self, ModeKeys.EVAL, validation.peek(), {}, rng, {})
            trace.check_labels(validation.y)
        except (ValueError, TypeError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"`validation_data`: {error}") from error

    def _metric(self, metric: Any) -> MetricSpec:
        if isinstance(metric, MetricSpec):
            return metric
        if isinstance(metric, str):
            metric = _NAMED[checks.choice(metric, "metrics", _NAMED, "functions")]
        function = checks.function(metric, "metrics", _METRICS, 2)
        numbers = self.head.numbers

        def adapted(labels: np.ndarray, predictions: np.ndarray) -> Any:
            if numbers is not None:
                labels = numbers(labels).reshape(-1).astype(np.int64)
            is_same = predictions.size == labels.size
            return function(labels, predictions.reshape(labels.shape) if is_same else predictions)

        has_classes = numbers is not None and metric is not metrics.top_k_accuracy
        return MetricSpec(adapted, "classes" if has_classes else "outputs")


_SCALING = ("adam", "adamw", "rmsprop")  # optimizers for which one rate fits most networks
_METRICS = "names, functions of (labels, predictions), or a dict of these"
_NAMED = {
    name: function
    for name, function in vars(metrics).items()
    if isinstance(function, FunctionType)
    and function.__module__ == metrics.__name__ and not name.startswith("_") and name != "mean"
}


def ends_in(op: Op, activation: Op) -> bool:
    """Return whether the last thing that a model computes is this activation."""
    last: Any = op
    while is_chain(last):
        last = last.layers[-1]
    if isinstance(last, Affine):
        last = last.activation
    return type(last.activation if type(last) is Activation else last) is type(activation)


def _without_activation(op: Any, inputs: Tensor) -> Tensor:
    """Apply a model that ends in an activation to a Tensor, except for this activation."""
    if is_chain(op):
        for layer in op.layers[:-1]:
            inputs = layer(inputs)
        return _without_activation(op.layers[-1], inputs)
    if not isinstance(op, Affine):
        return inputs
    linear = copy.copy(op)  # with the same parameters
    linear.activation = None
    return linear(inputs)


# Data, and hooks ----------------------------------------------------------------------------------


class Data(NamedTuple):
    """Arrays `x` and `y`, or a function that returns batches."""

    x: Any
    y: Any = None
    input_fn: Any = None
    batches: float = math.inf  # of input_fn in one pass, if that is known
    is_once: bool = False  # whether input_fn returns the same iterator every time

    def unweighted(self) -> tuple[Any, Any, Callable[[], Any] | None]:
        """Return x, y and input_fn for an evaluation."""
        return self.x, self.y, self.input_fn and (
            lambda: ((x, y) for x, y, *_ in _parts(self.input_fn))
        )


def data(x: Any, y: Any = None) -> Data:
    """Return the data in arguments: arrays, a Dataset, a function, or an iterable of batches."""
    if hasattr(x, "to_numpy"):
        x = x.to_numpy()
    is_array = isinstance(x, list | tuple | dict | str) or hasattr(x, "__array__")
    if y is None and not is_array and hasattr(x, "images") and hasattr(x, "labels"):  # a Dataset
        return Data(x.images, x.labels)
    # What has `train` comes from load_dataset: an error follows.
    if is_array or hasattr(x, "train") or not (callable(x) or isinstance(x, Iterable)):
        return Data(x, y)
    if y is not None:
        raise ValueError(f"`y` must be None if `x` makes batches (x, y), got {checks.describe(y)}")
    if callable(x):
        return Data(None, None, checks.function(x, "x", "a function without arguments", 0))
    batches = len(x) if hasattr(x, "__len__") else math.inf
    return Data(None, None, lambda: x, batches, isinstance(x, Iterator))


def weighted(given: Data, class_weight: Any, sample_weight: Any, head: Head) -> Data:
    """Return data whose labels also hold the weights of the rows, if there are any."""
    if class_weight is not None:
        if head.numbers is None and head in HEADS.values():
            raise ValueError(
                "`class_weight` needs a loss of classes, such as softmax_cross_entropy, got "
                f"{head.loss.__name__}; give `sample_weight`, a weight for each row, instead"
            )
        class_weight = {
            checks.integer(number, "a class in class_weight", 0): checks.number(
                weight, "a weight in class_weight", least=0
            )
            for number, weight in checks.instance(
                class_weight, Mapping, "class_weight", "a dict from class numbers to weights"
            ).items()
        }
    if given.input_fn is not None:
        if sample_weight is not None:
            raise ValueError(
                "`sample_weight` is for arrays; let the batches be (x, y, weights) instead"
            )
        return given._replace(
            input_fn=lambda: (
                (x, _with_weights(y, head, class_weight, *own))
                for x, y, *own in _parts(given.input_fn)
            )
        )
    return given._replace(y=_with_weights(given.y, head, class_weight, sample_weight))


def _with_weights(
    y: Any, head: Head, by_class: dict[int, float] | None, own: Any = None
) -> Any:
    """Return labels, together with weights of rows if there are any."""
    if by_class is None and own is None:
        return y
    y = checks.labels(y, "y")
    if y.ndim == 0:
        return y  # an error follows
    weights = np.ones(y.shape[:1], np.float32)
    if by_class:
        classes = (head.numbers or class_numbers)(y).reshape(-1)
        if len(classes) != len(y) or (
            y.ndim == 2 and y.shape[1] > 1 and not np.allclose(y.sum(axis=1), 1, atol=1e-3)
        ):
            raise ValueError(
                "`class_weight` needs labels with one class for each row, got "
                f"{checks.describe(y)}; give `sample_weight`, a weight for each row, instead"
            )
        weights[:] = [by_class.get(number, 1.0) for number in classes.tolist()]
    if own is not None:
        array = checks.array(own, "sample_weight").astype(np.float32)
        fits = array.shape in (weights.shape, (*weights.shape, 1))
        if not fits or not (np.isfinite(array) & (array >= 0)).all():
            raise ValueError(
                f"`sample_weight` must have a weight for each of the {len(y)} rows of `y`, "
                f"finite and not negative, got {checks.describe(own)}"
            )
        weights *= array.reshape(-1)
    return {"labels": y, "weights": weights}


def _parts(made: Callable[[], Any]) -> Iterator[Any]:
    """Yield the batches (x, y) or (x, y, weights) of a function."""
    for batch in feeding.batches_of(made):
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise TypeError(
                f"a batch must be (x, y), or (x, y, weights), got {checks.describe(batch)}"
            )
        yield batch


def split(given: Data, share: float, seed: int, weights: Any) -> tuple[Data, Any, Data]:
    """Return data without the rows for validation, their weights, and the rows for validation.

    Of each class the same share is drawn, up to one row.
    """
    share = checks.number(share, "validation_split", 0.0, 1.0)
    if given.input_fn is not None:
        raise ValueError("`validation_split` is for arrays; give `validation_data`")
    feed = feeding.ArrayFeed(given.x, given.y, 1)
    order = Stream.SPLIT.generator(seed).permutation(feed.rows)
    if isinstance(feed.y, np.ndarray) and feed.y.ndim < 3:
        order = order[np.argsort(class_numbers(feed.y)[order], kind="stable")]
    is_drawn = np.diff(np.floor(np.arange(feed.rows + 1) * share + 0.5)) > 0
    if is_drawn.all() or not is_drawn.any():
        raise ValueError(
            f"`validation_split` {share:g} of {feed.rows} rows leaves none to train or to validate "
            "with; give another share, or `validation_data`"
        )
    rest, drawn = (np.sort(order[mask]) for mask in (~is_drawn, is_drawn))
    if np.shape(weights)[:1] == (feed.rows,):  # otherwise there are none, or an error follows
        weights = np.asarray(weights)[rest]
    kept, held = feed.only(rest), feed.only(drawn)
    return Data(kept.x, kept.y), weights, Data(held.x, held.y)


def training_feed(given: Data, batch_size: int, shuffle: bool) -> feeding.Feed:
    """Return the batches of a run."""
    in_order = not checks.boolean(shuffle, "shuffle")
    if given.input_fn is None:
        feed: Any = feeding.ArrayFeed(given.x, given.y, batch_size)
        feed.in_order = in_order
    else:
        feed = feeding.FunctionFeed(given.input_fn)
        feed.batches = given.batches
        feed.skips = not given.is_once
    return feed


def ends(feed: feeding.Feed, **given: Any) -> tuple[int | None, int | None]:
    """Return the steps from here and in total after which a run ends; None: no such limit."""
    checks.exclusive(**given)
    limits: dict[str, Any] = {
        name: checks.integer(value, name) for name, value in given.items() if value is not None
    }
    limits = limits or {"epochs": 1}
    if isinstance(feed, feeding.FunctionFeed):
        feed.epochs = limits.get("epochs", math.inf)
        feed.max_epochs = limits.get("max_epochs")
    else:
        for name, unit in (("epochs", "steps"), ("max_epochs", "max_steps")):
            if name in limits:
                limits[unit] = limits[name] * feed.batches
    return limits.get("steps"), limits.get("max_steps")


class _Validation(ValidationMonitor):
    """A monitor that measures at multiples of its interval, such as the ends of epochs."""

    def resume(self, run_context: SessionRunContext, name: str, state: dict[str, Any]) -> None:
        super().resume(run_context, name, state)
        step = run_context.session.global_step
        if self.timer.last_step is None:
            self.timer.mark(step - step % (self.timer.every_steps or 1))


def monitors(
    model_fn: ModelFn, feed: feeding.Feed, given: Any, metrics: Any, every: Any,
    early_stopping: Any,
) -> list[Any]:
    """Check the data of a run, and return the hook that validates, if there is data for it.

    Parameters
    ----------
    model_fn : ModelFn
    feed : ArrayFeed or FunctionFeed
        Of the training.
    given : Data, tuple, Dataset, function or iterable, optional
    metrics : list, dict or None
    every : int, optional
        The steps from one validation to the next; None is an epoch.
    early_stopping : int or EarlyStopping, optional
    """
    specs = model_fn.metrics(metrics)
    if given is None:
        model_fn.check(feed)
        if early_stopping is not None:
            raise ValueError(
                "`early_stopping` needs `validation_data` or `validation_split`, got neither"
            )
        return []
    if isinstance(given, tuple | list) and not isinstance(given, Data):
        if len(given) != 2:
            raise ValueError(
                f"`validation_data` must be (x, y), got {len(given)} parts; it is not weighted"
            )
        given = data(*given)
    validation = given if isinstance(given, Data) else data(given)
    if validation.is_once:
        raise ValueError(
            "`validation_data` must be arrays or a function, since it is used several times, got "
            f"{checks.describe(given)}"
        )
    x, y, input_fn = validation.unweighted()
    model_fn.check(feed, x, y)
    every = checks.optional(checks.integer, every, "validation_steps")
    steps = every or int(min(feed.batches, 2**53))
    if early_stopping is not None and every is None and feed.batches == math.inf:
        raise ValueError(
            "`early_stopping` needs `validation_steps` with a function, whose batches are not "
            f"counted, got {checks.describe(early_stopping)}; give both, or arrays"
        )
    if not isinstance(early_stopping, EarlyStopping | None):
        early_stopping = EarlyStopping(checks.integer(early_stopping, "early_stopping"))
    rounds = None if early_stopping is None else early_stopping.patience * steps
    stop = early_stopping or EarlyStopping(1)  # its defaults
    return [_Validation(
        x, y, input_fn, metrics=specs, every_n_steps=steps,
        early_stopping_rounds=rounds, early_stopping_metric=stop.metric,
        early_stopping_metric_minimize=bool(stop.minimize),
    )]
