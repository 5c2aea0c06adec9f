"""Dropout: set random elements to zero in training."""

from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.kernels import elementwise
from minicnn.layers.layer import Layer


class Dropout(Layer, repeatable="prediction"):
    """Set a random fraction of the inputs to zero in training, and scale up the rest.

        y = x / (1 - rate) where kept, 0 where dropped;   dx = dy / (1 - rate) where kept

    Outside training the inputs are returned unchanged. A pass draws one number from ``ctx.rng``.
    The mask is a hash of that number, the layer's name, the row and the element: it depends
    neither on the threads nor on the order in which layers run.

    Parameters
    ----------
    rate : float
        The fraction that is dropped, in [0, 1).
    noise_shape : tuple, optional
        The shape of the mask, which is broadcast over the inputs. Along an axis of size 1
        elements are dropped together. The first size may be None, the batch.
    seed : int, optional
        Mixed into this layer's mask in addition to the run's seed.
    training : bool, optional
        Default: ``ctx.training``.
    name : str, optional

    References
    ----------
    N. Srivastava et al., "Dropout: a simple way to prevent neural networks from overfitting",
    JMLR 15, 2014.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.Dropout(0.4)
    >>> layer.build((None, 1000), rng=0)
    (None, 1000)
    >>> ctx = mc.Context(training=True, rng=np.random.default_rng(0))
    >>> y = layer.forward(np.ones((10, 1000), np.float32), ctx)
    >>> round(float((y == 0).mean()), 1), round(float(y.mean()), 1)
    (0.4, 1.0)
    """

    def __init__(
        self,
        rate: float = 0.5,
        noise_shape: Any = None,
        seed: int | None = None,
        training: bool | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(name)
        self.rate = checks.number(rate, "rate", 0.0, 1.0)
        self.noise_shape = checks.optional(checks.shape, noise_shape, "noise_shape")
        self.seed = checks.optional(checks.integer, seed, "seed", 0)
        self.training = checks.optional(checks.boolean, training, "training")

    def build(self, input_shape: Any, rng: Any, dtype: Any = np.float32) -> Any:
        shape = super().build(input_shape, rng, dtype)
        if self.noise_shape is not None and not self._fits(shape):
            raise ValueError(
                f"{self.label}: `noise_shape` {self.noise_shape} must have the dimensions of the "
                f"inputs {shape}, each the same size or 1 (the first: None or 1)"
            )
        return shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        x = self.check_inputs(x)
        key = self.draw(ctx)
        ctx[self] = key, x.shape
        return x if key is None else self._drop(x, key, ctx, "y")

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        key, shape = ctx[self]
        checks.gradient(dy, shape, self.dtype, self.label)
        if not need_dx:
            return None
        return dy if key is None else self._drop(dy, key, ctx, "dx")

    def draw(self, ctx: Context) -> int | None:
        """Return the key of this pass's mask; None if nothing is dropped."""
        training = ctx.training if self.training is None else self.training
        return ctx.draw_key(self.label, self.seed or 0) if training and self.rate else None

    def _drop(self, x: np.ndarray, key: int, ctx: Context, role: str) -> np.ndarray:
        """Return mask * x / (1 - rate), for the outputs and for the gradient."""
        if self.noise_shape is not None:
            by_row = self.noise_shape[0] is None
            rest = tuple(size or 1 for size in self.noise_shape[1:])
            mask = np.ones((len(x) if by_row else 1, *rest), x.dtype)
            elementwise.dropout(mask, mask, key, self.rate, ctx.first_row if by_row else 0)
            return np.multiply(x, mask, out=np.zeros_like(x), where=mask != 0)
        y = ctx.empty(self, role, x.shape, x.dtype)
        elementwise.dropout(x, y, key, self.rate, ctx.first_row)
        return y

    def _fits(self, shape: Any) -> bool:
        noise = self.noise_shape or ()
        return (
            len(noise) == len(shape)
            and noise[:1] in ((None,), (1,))
            and all(size in (1, full) for size, full in zip(noise[1:], shape[1:], strict=True))
        )
