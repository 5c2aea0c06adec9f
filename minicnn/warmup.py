"""Compile ahead of time what a training run needs."""

import time

import numpy as np

from minicnn.core.context import Context
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D, Sequential
from minicnn.losses import softmax_cross_entropy_with_grad
from minicnn.optimizers import SGD


def warmup() -> float:
    """Compile the float32 kernels of a training step, and return how many seconds it took.

    They are kept on disk, so only the first call on a machine takes some seconds. Without it they
    are compiled one by one when they are first needed.

    Returns
    -------
    float
        Seconds.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.warmup() >= 0
    True
    """
    start = time.perf_counter()
    model = Sequential(
        [
            Conv2D(8, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Conv2D(8, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Flatten(),
            Dense(16, activation="relu"),
            Dropout(0.5),
            Dense(2),
        ]
    )
    model.build((None, 8, 8, 1), rng=0)
    ctx = Context(training=True, rng=np.random.default_rng(0))
    x, labels = np.zeros((2, 8, 8, 1), np.float32), np.array([0, 1])
    _, gradient = softmax_cross_entropy_with_grad(labels, model.forward(x, ctx))
    model.backward(gradient, ctx, need_dx=False)
    SGD(0.1).step(model.parameters)
    return time.perf_counter() - start
