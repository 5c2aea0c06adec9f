"""Training: the Estimator, what a model_fn is given and returns, and checkpoints."""

from minicnn.estimator.checkpoints import CheckpointError
from minicnn.estimator.config import MetricSpec, ModeKeys, ModelFnOps, RunConfig
from minicnn.estimator.estimator import Estimator

__all__ = ["CheckpointError", "Estimator", "MetricSpec", "ModeKeys", "ModelFnOps", "RunConfig"]
