"""Compile kernels in advance."""

import time
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.estimator import Estimator
from minicnn.inference import InferenceModel
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from minicnn.losses import softmax_cross_entropy_with_grad
from minicnn.optimizers import SGD
from minicnn.sequential import Sequential


def warmup(model: Any = None, x: Any = None) -> float:
    """Compile the kernels that a model predicts with and return the time this took.

    These are the kernels of its `predict` and of its `for_inference`. Without a model, the float32
    kernels of a training step are compiled: convolution, pooling, dense, dropout, SGD.

    The compiled kernels are stored on disk, so only the first call on a machine takes several
    seconds. Without `warmup`, each kernel is compiled at its first use.

    Parameters
    ----------
    model : Sequential, Estimator or InferenceModel, optional
        A built Sequential, or an Estimator with a checkpoint. A model for inference with float16
        kernels is given itself: other kernels read them.
    x : ndarray or dict of str to ndarray, optional
        Required for an Estimator or InferenceModel, and only allowed there: rows as for `predict`;
        one is enough.

    Returns
    -------
    float
        Elapsed time in seconds.

    Raises
    ------
    ValueError
        If an Estimator or InferenceModel is given without `x`, or anything else with it.
    RuntimeError
        If a Sequential was not built.
    CheckpointError
        If there is no checkpoint of an Estimator.

    Examples
    --------
    >>> import minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(2)])
    >>> model.build((None, 3), rng=0)
    (None, 2)
    >>> mc.warmup(model) >= 0
    True
    """
    start = time.perf_counter()
    if isinstance(model, Estimator | InferenceModel) == (x is None):
        raise ValueError(
            "`x` must be rows as for predict for an Estimator or InferenceModel, such as x[:1], "
            f"and is left out otherwise, got {checks.describe(x)}"
        )
    if isinstance(model, Estimator):
        model = model.for_inference(x)  # with all kernels of `predict`
    if model is None:
        _train_one_step()
    elif isinstance(model, InferenceModel):
        _predict(model, x)
    else:
        checks.instance(
            model, Sequential, "model", "a Sequential, an Estimator or an InferenceModel"
        )
        fast = model.for_inference()  # raises if the model was not built
        _predict(fast, np.zeros((1, *model.input_shape[1:]), model.dtype))
    return time.perf_counter() - start


def _predict(fast: InferenceModel, x: Any) -> None:
    fast.predict(x)
    fast.predict(x)  # repeats what the first call recorded


def _train_one_step() -> None:
    model = Sequential(
        [
            Conv2D(16, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Conv2D(16, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Flatten(),
            Dense(2048, activation="relu"),  # large: its gradients are computed from lists
            Dropout(0.5),
            Dense(2),
        ]
    )
    # Not `fit`, whose log lines would look like those of the user's run.
    model.build((None, 8, 8, 1), rng=0)
    ctx = Context(training=True, rng=0)
    logits = model.forward(np.zeros((2, 8, 8, 1), np.float32), ctx)
    _, gradient = softmax_cross_entropy_with_grad([0, 1], logits)
    model.backward(gradient, ctx, need_dx=False)
    SGD(0.1).step(model.parameters)
