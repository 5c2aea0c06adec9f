"""The TensorFlow 1.0 names of the 2017 guide: its program runs if only the imports are changed.

::

    from minicnn.compat import tf, learn, model_fn as model_fn_lib

Most names are aliases; a few functions adapt a call that has another form in minicnn. Here the
default initializer of `conv2d` and `dense` is `uniform_unit_scaling`, not `glorot_uniform`, because
the guide's log was produced with it.
"""

import functools
import logging as _logging
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from minicnn import hooks, layers, losses, metrics, ops, summaries
from minicnn.core import checks
from minicnn.datasets import load_dataset
from minicnn.estimator import Estimator, MetricSpec, ModeKeys, ModelFnOps, RunConfig
from minicnn.estimator.config import optimize_loss

_LOGGER = _logging.getLogger("minicnn")
_INITIALIZER = "uniform_unit_scaling"


def _get_global_step() -> None:
    """Return None: the Estimator counts the steps itself."""


def _set_verbosity(level: int) -> None:
    """Set the log level of minicnn and write its log to standard error."""
    _LOGGER.setLevel(level)
    if not _LOGGER.handlers:
        handler = _logging.StreamHandler()
        handler.setFormatter(_logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
        _LOGGER.addHandler(handler)


def _run(main: Callable[..., Any] | None = None, argv: list[str] | None = None) -> None:
    """Call main(argv) and exit with what it returns."""
    function = checks.function(main or getattr(sys.modules["__main__"], "main", None), "main")
    sys.exit(function(sys.argv if argv is None else argv))


class _Names(SimpleNamespace):
    """A module of the guide; the error for a missing name suggests a replacement."""

    _path = ""  # replaced in each object

    def __getattr__(self, name: str) -> Any:
        path = f"{self._path}.{name}"
        available = ", ".join(key for key in vars(self) if not key.startswith("_"))
        remedy = _REPLACEMENTS.get(path, f"{self._path} has {available}")
        raise AttributeError(f"minicnn.compat has no {path}; {remedy}")


_OPTIMIZER = "use tf.contrib.layers.optimize_loss(loss, None, learning_rate, optimizer="
_LOSS = "use tf.losses.softmax_cross_entropy(tf.one_hot(labels, depth), logits)"
_REGULARIZERS = "leave it out: the Estimator adds the regularizers to the loss"
_RUNNER = "no session is needed: learn.Estimator(model_fn, model_dir).fit(x, y, steps=...)"
_SEED = "use learn.Estimator(model_fn, config=learn.RunConfig(seed=1))"

_REPLACEMENTS = {
    "tf.compat": "use tf itself; its names are those of TensorFlow 1.0",
    "tf.contrib.layers.xavier_initializer": "use kernel_initializer='glorot_uniform'",
    "tf.data": "write an input_fn, a generator of (features, labels): learn.Estimator(...)"
    ".fit(input_fn=input_fn)",
    "tf.estimator": "use learn.Estimator, learn.ModeKeys and model_fn.ModelFnOps, all of "
    "minicnn.compat",
    "tf.examples": "use learn.datasets.load_dataset('mnist')",
    "tf.global_variables_initializer": _RUNNER,
    "tf.keras": "use minicnn.Sequential and minicnn.layers",
    "tf.losses.get_regularization_loss": _REGULARIZERS,
    "tf.losses.get_regularization_losses": _REGULARIZERS,
    "tf.losses.get_total_loss": _REGULARIZERS,
    "tf.nn.conv2d": "use tf.layers.conv2d",
    "tf.nn.dropout": "use tf.layers.dropout(inputs, rate, training=mode == learn.ModeKeys.TRAIN)",
    "tf.GraphKeys": "no collection is needed: a step of training updates moving averages itself",
    "tf.get_collection": "no collection is needed: a step of training updates moving averages "
    "itself",
    "tf.nn.avg_pool": "use tf.layers.average_pooling2d",
    "tf.nn.batch_normalization": "use tf.layers.batch_normalization",
    "tf.nn.max_pool": "use tf.layers.max_pooling2d",
    "tf.nn.softmax_cross_entropy_with_logits": _LOSS,
    "tf.nn.softmax_cross_entropy_with_logits_v2": _LOSS,
    "tf.nn.sparse_softmax_cross_entropy_with_logits":
    "use tf.losses.sparse_softmax_cross_entropy(labels, logits)",
    "tf.nn.sigmoid_cross_entropy_with_logits":
    "use tf.losses.sigmoid_cross_entropy(labels, logits)",
    "tf.placeholder": "use the arguments `features` and `labels` of model_fn",
    "tf.random": _SEED,
    "tf.Session": _RUNNER,
    "tf.set_random_seed": _SEED,
    "tf.summary": "use minicnn.summaries.SummarySaverHook as a monitor of fit",
    "tf.train.AdamOptimizer": f"{_OPTIMIZER}'Adam')",
    "tf.train.GradientDescentOptimizer": f"{_OPTIMIZER}'SGD')",
    "tf.train.MomentumOptimizer": f"{_OPTIMIZER}'Momentum')",
    "tf.train.RMSPropOptimizer": f"{_OPTIMIZER}'RMSProp')",
    "tf.train.Saver": "the Estimator keeps checkpoints: learn.Estimator(model_fn, model_dir)",
    "tf.train.exponential_decay": "use tf.contrib.layers.optimize_loss(loss, optimizer="
    "minicnn.optimizers.SGD(minicnn.optimizers.exponential_decay(rate, decay_steps, decay_rate)))",
    "tf.truncated_normal_initializer": "use kernel_initializer='he_normal', or a function of "
    "(shape, rng, dtype)",
    "tf.Variable": "layers create their own parameters; write a minicnn.layers.Layer for others",
    "learn.DNNClassifier": "use learn.Estimator with a model_fn of dense layers",
    "model_fn.EstimatorSpec": "use model_fn.ModelFnOps",
}

learn = _Names(
    _path="learn",
    ModeKeys=ModeKeys,
    Estimator=Estimator,
    MetricSpec=MetricSpec,
    RunConfig=RunConfig,
    datasets=_Names(_path="learn.datasets", load_dataset=load_dataset),
    monitors=_Names(_path="learn.monitors", ValidationMonitor=hooks.ValidationMonitor),
)

model_fn = _Names(_path="model_fn", ModelFnOps=ModelFnOps)

tf = _Names(
    _path="tf",
    int32=np.int32,
    int64=np.int64,
    float32=np.float32,
    float64=np.float64,
    reshape=ops.reshape,
    one_hot=ops.one_hot,
    argmax=ops.argmax,
    cast=ops.cast,
    identity=ops.identity,
    add=ops.add,
    concat=ops.concat,
    reduce_mean=ops.reduce_mean,
    reduce_sum=ops.reduce_sum,
    nn=_Names(
        _path="tf.nn",
        relu=ops.relu,
        leaky_relu=ops.leaky_relu,
        softmax=ops.softmax,
        log_softmax=ops.log_softmax,
        sigmoid=ops.sigmoid,
        tanh=ops.tanh,
    ),
    layers=_Names(
        _path="tf.layers",
        conv2d=functools.partial(layers.conv2d, kernel_initializer=_INITIALIZER),
        conv2d_transpose=functools.partial(
            layers.conv2d_transpose, kernel_initializer=_INITIALIZER
        ),
        separable_conv2d=functools.partial(
            layers.separable_conv2d,
            depthwise_initializer=_INITIALIZER,
            pointwise_initializer=_INITIALIZER,
        ),
        max_pooling2d=layers.max_pooling2d,
        average_pooling2d=layers.average_pooling2d,
        batch_normalization=layers.batch_normalization,
        dense=functools.partial(layers.dense, kernel_initializer=_INITIALIZER),
        dropout=layers.dropout,
        flatten=layers.flatten,
    ),
    losses=_Names(
        _path="tf.losses",
        softmax_cross_entropy=losses.softmax_cross_entropy,
        sparse_softmax_cross_entropy=losses.sparse_softmax_cross_entropy,
        sigmoid_cross_entropy=losses.sigmoid_cross_entropy,
        mean_squared_error=losses.mean_squared_error,
        absolute_difference=losses.absolute_difference,
    ),
    metrics=_Names(_path="tf.metrics", accuracy=metrics.accuracy),
    train=_Names(
        _path="tf.train",
        get_global_step=_get_global_step,
        get_or_create_global_step=_get_global_step,
        LoggingTensorHook=hooks.LoggingTensorHook,
        SessionRunHook=hooks.SessionRunHook,
        SessionRunArgs=hooks.SessionRunArgs,
        StopAtStepHook=hooks.StopAtStepHook,
        CheckpointSaverHook=hooks.CheckpointSaverHook,
        StepCounterHook=hooks.StepCounterHook,
        NanTensorHook=hooks.NanTensorHook,
        SummarySaverHook=summaries.SummarySaverHook,
    ),
    contrib=_Names(
        _path="tf.contrib",
        layers=_Names(
            _path="tf.contrib.layers",
            optimize_loss=optimize_loss,
            l1_regularizer=layers.l1_regularizer,
            l2_regularizer=layers.l2_regularizer,
        ),
        framework=_Names(_path="tf.contrib.framework", get_global_step=_get_global_step),
        learn=learn,
    ),
    logging=_Names(
        _path="tf.logging",
        set_verbosity=_set_verbosity,
        DEBUG=_logging.DEBUG,
        INFO=_logging.INFO,
        WARN=_logging.WARNING,
        ERROR=_logging.ERROR,
        debug=_LOGGER.debug,
        info=_LOGGER.info,
        warn=_LOGGER.warning,
        error=_LOGGER.error,
    ),
    app=_Names(_path="tf.app", run=_run),
)
