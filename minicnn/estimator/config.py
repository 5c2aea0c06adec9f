"""What a model_fn and the Estimator exchange: modes, ModelFnOps, TrainOp, RunConfig, MetricSpec."""

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minicnn import optimizers
from minicnn.core import checks
from minicnn.core.hints import Hinting, hinted
from minicnn.core.op import Tensor
from minicnn.core.parameter import Parameter
from minicnn.estimator.processes import Processes


class ModeKeys:
    """Name what a model_fn is called for.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.ModeKeys.TRAIN, mc.ModeKeys.EVAL, mc.ModeKeys.INFER
    ('train', 'eval', 'infer')
    """

    TRAIN = "train"
    EVAL = "eval"
    INFER = "infer"


@dataclass
class TrainOp:
    """Hold a loss and how to minimize it; `optimize_loss` makes one.

    Parameters
    ----------
    loss : Tensor
    optimizer : Optimizer
    clip_gradients : float, optional
        The largest global norm of the gradients.
    variables : sequence of str, optional
        The names of the parameters that are trained; None trains all.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.TrainOp(loss=None, optimizer=mc.optimizers.SGD(0.1)).rate()
    0.1
    """

    loss: Any
    optimizer: optimizers.Optimizer
    clip_gradients: float | None = None
    variables: Sequence[str] | None = None

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return self.optimizer.rate()

    def trained(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Return those of the parameters that are trained."""
        if self.variables is None:
            return list(parameters)
        known = {parameter.name: parameter for parameter in parameters}
        for name in self.variables:
            checks.existing(name, "variables", known)  # those on which the loss depends
        return [parameter for parameter in parameters if parameter.name in self.variables]

    def apply(self, parameters: Sequence[Parameter]) -> None:
        """Update the parameters once, from the gradients that backward has written."""
        parameters = self.trained(parameters)
        if self.clip_gradients is not None:
            optimizers.clip_by_global_norm(parameters, self.clip_gradients)
        self.optimizer.step(parameters)


@hinted
def optimize_loss(
    loss: Any,
    global_step: Any = None,
    learning_rate: float | optimizers.Schedule | None = None,
    optimizer: Any = "SGD",
    clip_gradients: float | None = None,
    learning_rate_decay_fn: Callable[[float, int], float] | None = None,
    variables: Sequence[str] | None = None,
    name: str | None = None,
) -> TrainOp:
    """Return the `train_op` that minimizes a loss.

    Parameters
    ----------
    loss : Tensor
        A scalar.
    global_step : None
        Kept for the signature: the Estimator counts the steps.
    learning_rate : float or callable, optional
        At least 0, or a schedule step -> rate; None if `optimizer` has its own.
    optimizer : str, class, Optimizer or callable
        "SGD", "Momentum", "Adam", "AdamW", "RMSProp"; a class or callable is called with the
        learning rate. An Optimizer is copied, and the copy has done no steps, because each run
        starts without any.
    clip_gradients : float, optional
        The largest global norm of the gradients; larger ones are scaled down together.
    learning_rate_decay_fn : callable, optional
        Takes (learning rate, step) and returns the rate of that step; steps count from 0.
    variables : sequence of str, optional
        The names of the parameters to train; None trains all.
    name : str, optional
        Kept for the signature.

    Returns
    -------
    TrainOp

    Raises
    ------
    ValueError, TypeError
        If the rate is negative, the optimizer unknown, or the loss not a scalar Tensor.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> graph = mc.Graph()
    >>> x = graph.placeholder("x", (None, 4), np.float32)
    >>> labels = graph.placeholder("labels", (None,), np.int64)
    >>> loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), mc.layers.dense(x, 3))
    >>> mc.optimize_loss(loss, learning_rate=0.001, optimizer="SGD").rate()
    0.001
    """
    if not isinstance(loss, Tensor) or loss.shape != ():
        raise TypeError(
            f"optimize_loss: `loss` must be a scalar Tensor such as softmax_cross_entropy returns, "
            f"got {checks.describe(loss)}"
        )
    if global_step is not None:
        raise TypeError(
            "optimize_loss: the second argument is `global_step`, which must be None (the "
            f"Estimator counts the steps), got {checks.describe(global_step)}; give the rate as "
            "learning_rate=0.1, the optimizer as optimizer='SGD'"
        )
    checks.optional(checks.number, clip_gradients, "clip_gradients", checks.TINY)
    if learning_rate_decay_fn is not None:
        if learning_rate is None or callable(learning_rate):
            raise ValueError(
                "optimize_loss: `learning_rate_decay_fn` needs a number as `learning_rate`, got "
                f"{checks.describe(learning_rate)}"
            )
        learning_rate = functools.partial(
            _decayed,
            checks.function(
                learning_rate_decay_fn, "learning_rate_decay_fn", "a function of (rate, step)", 2
            ),
            checks.number(learning_rate, "learning_rate", least=0.0),
        )
    if isinstance(optimizer, optimizers.Optimizer):
        optimizer = copy.copy(optimizer)
        optimizer.load_state_dict({"iterations": 0}, ())
    variables = checks.optional(checks.sequence, variables, "variables", "names of parameters")
    return TrainOp(loss, optimizers.get(optimizer, learning_rate), clip_gradients, variables)


def _decayed(decay: Callable[[float, int], float], rate: float, step: int) -> float:
    return float(decay(rate, step))


_NEEDED = {
    ModeKeys.TRAIN: ("loss", "train_op"),
    ModeKeys.EVAL: ("loss",),
    ModeKeys.INFER: ("predictions",),
}


class ModelFnOps(Hinting):
    """Hold what a model_fn returns.

    Parameters
    ----------
    mode : str
        The `ModeKeys` value that model_fn was called with.
    predictions : dict of str to Tensor, or Tensor
        Needed for INFER, and for the metrics of EVAL.
    loss : Tensor
        A scalar; needed for TRAIN and EVAL.
    train_op : TrainOp
        What `optimize_loss` returns; needed for TRAIN.

    Raises
    ------
    ValueError
        If one that the mode needs is missing; the error names it.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x = mc.Graph().placeholder("x", (None, 3), np.float32)
    >>> ops = mc.ModelFnOps(mc.ModeKeys.INFER, predictions={"probabilities": mc.softmax(x)})
    >>> list(ops.predictions)
    ['probabilities']
    """

    def __init__(
        self,
        mode: str,
        predictions: Any = None,
        loss: Tensor | None = None,
        train_op: TrainOp | None = None,
    ) -> None:
        self.mode = checks.existing(mode, "mode", _NEEDED)
        self.loss: Any = loss
        self.train_op: Any = train_op
        self.single = isinstance(predictions, Tensor)
        named = {"predictions": predictions} if self.single else predictions
        named = {} if named is None else named
        self.predictions: dict[str, Tensor] = dict(
            checks.instance(named, Mapping, "predictions", "a Tensor or a dict of Tensors")
        )
        given = {"loss": loss, "train_op": train_op, "predictions": self.predictions or None}
        for name in _NEEDED[mode]:
            if given[name] is None:
                raise ValueError(
                    f"ModelFnOps: `{name}` is missing; model_fn must give it in mode {mode!r}"
                )
        for name, tensor in self.predictions.items():
            checks.text(name, "a name in predictions")
            checks.instance(tensor, Tensor, f"predictions[{name!r}]")
            if tensor.shape[:1] != (None,):
                raise ValueError(
                    f"ModelFnOps: prediction {name!r} must have a row for each of the batch, got "
                    f"the shape {tensor.shape}; fetch it by a hook"
                )
        if loss is not None and (not isinstance(loss, Tensor) or loss.shape != ()):
            raise TypeError(
                f"ModelFnOps: `loss` must be a scalar Tensor, got {checks.describe(loss)}"
            )
        checks.instance(train_op, TrainOp | None, "train_op", "what optimize_loss returns")


class RunConfig(Hinting):
    """Configure training: seed, checkpoints, logging and processes.

    Parameters
    ----------
    seed : int, optional
        Determines start values, the order of the data and dropout; the same seed gives the same
        bits. None draws one, which is logged and kept in the checkpoints.
    save_checkpoints_secs : float, optional
        Seconds between checkpoints; the default is 600.
    save_checkpoints_steps : int, optional
        Steps between checkpoints, in place of seconds.
    keep_checkpoint_max : int
        How many of the newest checkpoints are kept.
    log_step_count_steps : int
        Steps between the log lines with the loss and the speed.
    fuse : bool
        Whether to fuse neighbouring layers into one pass where possible.
    progress : bool
        Whether `fit` shows the step, the loss, the validation accuracy, the speed and the time
        left, and before that how many kernels are compiled: as a line that renews itself on a
        terminal and in a notebook, otherwise as a line every four seconds on stderr. After two
        seconds, `evaluate` and `predict` show their progress too. A terminal then omits the log
        lines with the loss and the speed; a log file gets all lines. Nothing is shown if a handler
        of the logger "minicnn" itself writes INFO to the console. False shows nothing, also during
        a long skip of the batches that an earlier run has used; only a log line says how many.
    distribute : DataParallel, optional
        Several processes train together; see `minicnn.distributed`. None is one process.

    Examples
    --------
    >>> import minicnn as mc
    >>> config = mc.RunConfig(seed=1, save_checkpoints_steps=500)
    >>> config.save_checkpoints_secs is None
    True
    """

    def __init__(
        self,
        seed: int | None = None,
        save_checkpoints_secs: float | None = None,
        save_checkpoints_steps: int | None = None,
        keep_checkpoint_max: int = 5,
        log_step_count_steps: int = 100,
        fuse: bool = True,
        progress: bool = True,
        distribute: Processes | None = None,
    ) -> None:
        self.seed = checks.optional(checks.integer, seed, "seed", 0)
        checks.exclusive(
            save_checkpoints_secs=save_checkpoints_secs,
            save_checkpoints_steps=save_checkpoints_steps,
        )
        if save_checkpoints_secs is None and save_checkpoints_steps is None:
            save_checkpoints_secs = 600
        self.save_checkpoints_secs = checks.optional(
            checks.number, save_checkpoints_secs, "save_checkpoints_secs", 0.0
        )
        self.save_checkpoints_steps = checks.optional(
            checks.integer, save_checkpoints_steps, "save_checkpoints_steps"
        )
        self.keep_checkpoint_max = checks.integer(keep_checkpoint_max, "keep_checkpoint_max")
        self.log_step_count_steps = checks.integer(log_step_count_steps, "log_step_count_steps")
        self.fuse = checks.boolean(fuse, "fuse")
        self.distribute = checks.instance(
            Processes() if distribute is None else distribute, Processes, "distribute",
            "a minicnn.distributed.DataParallel",
        )
        self.progress = checks.boolean(progress, "progress") and self.distribute.is_chief


@dataclass
class MetricSpec:
    """Specify a metric: the function, and what it is computed from.

    The functions of `minicnn.metrics` and of scikit-learn (`sklearn.metrics.f1_score`) can be used.

    Parameters
    ----------
    metric_fn : callable
        Takes (labels, predictions), or (labels, predictions, weights) with a `weight_key`, as
        arrays of all rows; returns a number or an array.
    prediction_key : str, optional
        Which of the predictions; needed if there are several.
    label_key : str, optional
        Which of the labels, if they are a dict.
    weight_key : str, optional
        Which of the features holds the rows' weights.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> spec = mc.MetricSpec(metric_fn=mc.metrics.accuracy, prediction_key="classes")
    >>> spec.compute({"classes": np.array([1, 2])}, np.array([1, 3]), None)
    0.5
    """

    metric_fn: Callable[..., Any]
    prediction_key: str | None = None
    label_key: str | None = None
    weight_key: str | None = None

    def __post_init__(self) -> None:
        checks.function(self.metric_fn, "metric_fn")

    def compute(self, predictions: Any, labels: Any, features: Any, name: str = "metric_fn") -> Any:
        """Return the metric of arrays that hold all rows.

        If the arguments of metric_fn have the usual names, they are passed by name, in any order.
        `name` is the metric's name in errors.
        """
        given = {
            "labels": pick(labels, self.label_key, "label_key"),
            "predictions": pick(predictions, self.prediction_key, "prediction_key"),
        }
        if self.weight_key is not None:
            given["weights"] = pick(features, self.weight_key, "weight_key")
        wanted = _argument_names(self.metric_fn)[: len(given)]
        meant = ["labels" if word == "targets" else word for word in wanted]
        if sorted(meant) == sorted(given):
            value = self.metric_fn(**{w: given[m] for w, m in zip(wanted, meant, strict=True)})
        elif any(m != r and m in (*given, "weights") for m, r in zip(meant, given, strict=False)):
            raise ValueError(
                f"`{name}`: the metric_fn must take labels (or targets), predictions, and with a "
                f"`weight_key` weights, got one that takes {', '.join(wanted)}; rename these"
            )
        else:
            value = checks.function(
                self.metric_fn, name, f"a function of ({', '.join(given)})", len(given)
            )(*given.values())
        value = checks.array(value, name, what="a number or an array of them from its metric_fn")
        return value if value.ndim else float(value)


def _argument_names(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return []


def pick(values: Any, key: str | None, name: str) -> Any:
    """Return the value of `key` in a dict, or the only value."""
    named = values if isinstance(values, dict) else {None: values}
    if key is None and len(named) == 1:
        return next(iter(named.values()))
    return named[checks.existing(key, name, named)]


def checked_metrics(metrics: Any) -> dict[str, MetricSpec]:
    """Return the metrics of an evaluation by name."""
    metrics = checks.instance(
        metrics or {}, Mapping, "metrics", "a dict from names to MetricSpec, such as "
        "{'accuracy': MetricSpec(metrics.accuracy, 'classes')}",
    )
    for name, spec in metrics.items():
        if checks.text(name, "a name in metrics") in ("loss", "global_step", "name", "rows"):
            raise ValueError(f"`metrics` must have other names than evaluate's own, got {name!r}")
        checks.instance(
            spec, MetricSpec, f"metrics[{name!r}]",
            "a MetricSpec: write MetricSpec(metric_fn=..., prediction_key=...)",
        )
    return dict(metrics)


def call_model_fn(model_fn: Callable[..., Any], **arguments: Any) -> ModelFnOps:
    """Call `model_fn` with those arguments that it names, and check its result."""
    names = inspect.signature(model_fn).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in names.values())
    given = {k: v for k, v in arguments.items() if takes_all or k in names}
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [k for k, p in names.items() if p.default is p.empty and p.kind not in starred]
    if unknown := [name for name in needed if name not in arguments]:
        raise TypeError(
            f"model_fn must take arguments called {', '.join(arguments)}, or some of these, got "
            f"one that needs {', '.join(unknown)}; rename it, or pass a value in `params`"
        )
    result = model_fn(**given)
    if isinstance(result, tuple) and len(result) == 3:
        result = ModelFnOps(arguments["mode"], *result)
    checks.instance(
        result, ModelFnOps, "model_fn(...)", "ModelFnOps(mode, predictions, loss, train_op)"
    )
    if result.mode != arguments["mode"]:
        raise ValueError(
            f"model_fn must return ModelFnOps of the mode {arguments['mode']!r} that it was called "
            f"with, got {result.mode!r}; write ModelFnOps(mode, ...)"
        )
    return result
