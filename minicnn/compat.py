"""The names of the 2017 guide, so that its program runs with its import lines changed.

::

    from minicnn.compat import tf, learn, model_fn as model_fn_lib

Aliases, and a few adapters where the old call has another form. `conv2d` and `dense` start from
`uniform_unit_scaling` here, not from `glorot_uniform` as elsewhere in minicnn: the guide's log was
made with that initializer.
"""

import functools
import logging as _logging
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from minicnn import checks, hooks, layers, losses, metrics, ops, summaries
from minicnn.datasets import load_dataset
from minicnn.estimator import Estimator, MetricSpec, ModeKeys, ModelFnOps, RunConfig
from minicnn.train_op import optimize_loss

_LOGGER = _logging.getLogger("minicnn")
_INITIALIZER = "uniform_unit_scaling"


def _get_global_step() -> None:
    """Return None: the Estimator counts the steps, and optimize_loss needs no tensor for it."""


def _set_verbosity(level: int) -> None:
    """Set the level of minicnn's log lines and show them on the standard error output."""
    _LOGGER.setLevel(level)
    if not _LOGGER.handlers:
        handler = _logging.StreamHandler()
        handler.setFormatter(_logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
        _LOGGER.addHandler(handler)


def _run(main: Callable[..., Any] | None = None, argv: list[str] | None = None) -> None:
    """Call main(argv) and exit with what it returns."""
    function = checks.function(main or getattr(sys.modules["__main__"], "main", None), "main")
    sys.exit(function(sys.argv if argv is None else argv))


tf = SimpleNamespace(
    int32=np.int32,
    int64=np.int64,
    float32=np.float32,
    reshape=ops.reshape,
    one_hot=ops.one_hot,
    argmax=ops.argmax,
    cast=ops.cast,
    nn=SimpleNamespace(relu=ops.relu, softmax=ops.softmax, sigmoid=ops.sigmoid, tanh=ops.tanh),
    layers=SimpleNamespace(
        conv2d=functools.partial(layers.conv2d, kernel_initializer=_INITIALIZER),
        max_pooling2d=layers.max_pooling2d,
        dense=functools.partial(layers.dense, kernel_initializer=_INITIALIZER),
        dropout=layers.dropout,
    ),
    losses=SimpleNamespace(softmax_cross_entropy=losses.softmax_cross_entropy),
    metrics=SimpleNamespace(accuracy=metrics.accuracy),
    train=SimpleNamespace(
        LoggingTensorHook=hooks.LoggingTensorHook,
        SessionRunHook=hooks.SessionRunHook,
        SessionRunArgs=hooks.SessionRunArgs,
        StopAtStepHook=hooks.StopAtStepHook,
        CheckpointSaverHook=hooks.CheckpointSaverHook,
        StepCounterHook=hooks.StepCounterHook,
        NanTensorHook=hooks.NanTensorHook,
        SummarySaverHook=summaries.SummarySaverHook,
    ),
    contrib=SimpleNamespace(
        layers=SimpleNamespace(optimize_loss=optimize_loss),
        framework=SimpleNamespace(get_global_step=_get_global_step),
    ),
    logging=SimpleNamespace(
        set_verbosity=_set_verbosity,
        DEBUG=_logging.DEBUG,
        INFO=_logging.INFO,
        WARN=_logging.WARNING,
        ERROR=_logging.ERROR,
    ),
    app=SimpleNamespace(run=_run),
)

learn = SimpleNamespace(
    ModeKeys=ModeKeys,
    Estimator=Estimator,
    MetricSpec=MetricSpec,
    RunConfig=RunConfig,
    datasets=SimpleNamespace(load_dataset=load_dataset),
    monitors=SimpleNamespace(ValidationMonitor=hooks.ValidationMonitor),
)

model_fn = SimpleNamespace(ModelFnOps=ModelFnOps)
