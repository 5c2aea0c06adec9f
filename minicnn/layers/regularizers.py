"""Regularizers: functions of a layer's parameter whose results are added to the loss."""

import numpy as np

from minicnn.core import checks
from minicnn.core.hints import Hinting
from minicnn.core.parameter import sum_of_squares


class _Scaled(Hinting):
    """The base of regularizers with a factor."""

    def __init__(self, scale: float) -> None:
        self.scale = checks.number(scale, "scale", 0.0)


class l1_regularizer(_Scaled):  # noqa: N801
    """Add scale * sum(|w|) to the loss: many weights become nearly zero.

    The sum of all regularizers is added to the loss of training and evaluation by the Estimator
    and by `Sequential.fit`, and by `losses.regularization` in a training loop of your own.

    Parameters
    ----------
    scale : float
        At least 0.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> regularizer = mc.layers.l1_regularizer(0.5)
    >>> regularizer(np.array([3.0, -4.0]))
    3.5
    >>> layer = mc.layers.Dense(10, kernel_regularizer=regularizer)
    """

    def __call__(self, value: np.ndarray) -> float:
        return self.scale * float(np.abs(value).sum(dtype=np.float64))

    def gradient(self, value: np.ndarray) -> np.ndarray:
        """Return scale * sign(w); 0 where w is 0."""
        return self.scale * np.sign(value)


class l2_regularizer(_Scaled):  # noqa: N801
    """Add scale * sum(w^2) / 2 to the loss: weights stay small.

    The formula is that of ``tf.contrib.layers.l2_regularizer``; Keras' ``l2`` has no factor 1/2.
    The gradient, scale * w, is that of ``SGD(..., weight_decay=scale)``. The sum of all
    regularizers is added to the loss of training and evaluation by the Estimator and by
    `Sequential.fit`, and by `losses.regularization` in a training loop of your own.

    Parameters
    ----------
    scale : float
        At least 0.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> regularizer = mc.layers.l2_regularizer(0.1)
    >>> regularizer(np.array([3.0, -4.0]))
    1.25
    >>> layer = mc.layers.Conv2D(32, 3, kernel_regularizer=regularizer)
    """

    def __call__(self, value: np.ndarray) -> float:
        return self.scale * sum_of_squares(value) / 2

    def gradient(self, value: np.ndarray) -> np.ndarray:
        """Return scale * w."""
        return self.scale * value
