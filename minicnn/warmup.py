"""Compile the kernels of a training step in advance."""

import time

import numpy as np

from minicnn.core.context import Context
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D
from minicnn.layers.chain import Chain
from minicnn.losses import softmax_cross_entropy_with_grad
from minicnn.optimizers import SGD


def warmup() -> float:
    """Compile the float32 kernels of a training step and return the time this took.

    The compiled kernels are stored on disk, so only the first call on a machine takes several
    seconds. Without `warmup`, each kernel is compiled at its first use.

    Returns
    -------
    float
        Elapsed time in seconds.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.warmup() >= 0
    True
    """
    start = time.perf_counter()
    model = Chain(
        [
            Conv2D(16, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Conv2D(16, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Flatten(),
            Dense(16, activation="relu"),
            Dropout(0.5),
            Dense(2),
        ]
    )
    model.build((None, 8, 8, 1), rng=0)
    ctx = Context(training=True, rng=np.random.default_rng(0))
    logits = model.forward(np.zeros((2, 8, 8, 1), np.float32), ctx)
    _, gradient = softmax_cross_entropy_with_grad(np.array([0, 1]), logits)
    model.backward(gradient, ctx, need_dx=False)
    SGD(0.1).step(model.parameters)
    return time.perf_counter() - start
