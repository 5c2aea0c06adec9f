"""Batch normalization."""

from typing import Any

import numpy as np

from minicnn import initializers
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Shape
from minicnn.kernels import elementwise, normalize, threads
from minicnn.layers.layer import Layer

_NO_BATCH = np.empty((0, 3, 0))  # in place of sums

class BatchNormalization(Layer, repeatable=True):
    """Normalize each channel to mean 0 and variance 1 over the batch, then scale and shift it.

        y = gamma (x - mean) / sqrt(variance + epsilon) + beta

    In training, mean and variance are those of all other axes of the batch, with the sum of squares
    divided by the number of elements. The layer also keeps moving averages of them,

        moving = moving + w (batch - moving),   w = (1 - momentum) / (1 - momentum^k)

    at the k-th update. The start values have no influence: the moving averages are weighted means
    of the batches so far, so that a model can be evaluated after a few steps. After about
    ``1 / (1 - momentum)`` updates w is ``1 - momentum``, as in TensorFlow. It is so from the first
    update if the start values are not 0 and 1, or if the averages were set or loaded without their
    number of updates.

    Outside training, and if the layer is frozen (``trainable=False``, for transfer learning), the
    moving averages are used and do not change. `forward` itself updates them: there is no list of
    update operations (``UPDATE_OPS`` in TensorFlow) that a training loop could forget to run. With
    several processes, the statistics are those of the rows of all of them.

    Parameters
    ----------
    axis : int
        The axis of the channels: -1, or 1 for images (N, C, H, W).
    momentum : float
        In [0, 1).
    epsilon : float
        Added to the variance; at least 0.
    center, scale : bool
        Whether there is a `beta`, and a `gamma`.
    beta_initializer, gamma_initializer : str, float or function
    moving_mean_initializer, moving_variance_initializer : str, float or function
    trainable : bool
    name : str, optional
    training : bool, optional
        Whether to normalize with the statistics of the batch. Default: ``ctx.training``.

    Attributes
    ----------
    gamma, beta : Parameter or None
        (channels,)
    moving_mean, moving_variance : Parameter
        (channels,); never trained.
    updates : Parameter
        The number of updates of the moving averages; never trained.

    References
    ----------
    S. Ioffe and C. Szegedy, "Batch normalization: accelerating deep network training by reducing
    internal covariate shift", ICML 2015. The weight w: D. Kingma and J. Ba, "Adam: a method for
    stochastic optimization", ICLR 2015, section 3.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer = mc.layers.BatchNormalization()
    >>> layer.build((None, 1), rng=0)
    (None, 1)
    >>> layer.forward(np.array([[1], [3]], np.float32), mc.Context(training=True)).round(2)
    array([[-1.],
           [ 1.]], dtype=float32)
    >>> layer.moving_mean.value
    array([2.], dtype=float32)
    """

    takes_relu = True  # fusion: `linear` can add a ReLU

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        trainable: bool = True,
        name: str | None = None,
        training: bool | None = None,
    ) -> None:
        super().__init__(name)
        self.axis = checks.integer(axis, "axis", -checks.MOST)
        self.momentum = checks.number(momentum, "momentum", 0.0, 1.0)
        self.epsilon = checks.number(epsilon, "epsilon", 0.0)
        self.center = checks.boolean(center, "center")
        self.scale = checks.boolean(scale, "scale")
        for key, initializer, default in (
            ("beta_initializer", beta_initializer, "zeros"),
            ("gamma_initializer", gamma_initializer, "ones"),
            ("moving_mean_initializer", moving_mean_initializer, "zeros"),
            ("moving_variance_initializer", moving_variance_initializer, "ones"),
        ):
            setattr(self, key, initializers.get(initializer, default, key))
        self._trainable = checks.boolean(trainable, "trainable")
        self.training = checks.optional(checks.boolean, training, "training")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        shape = super().build(input_shape, rng, dtype)
        rng = checks.generator(rng)
        rank = len(shape)
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ValueError(
                f"{self.label}: `axis` must be the axis of the channels in inputs of shape "
                f"{shape}, which is not that of the batch, got {self.axis}; use -1"
            )
        channels: Any = (shape[self.axis],)
        self.gamma = self.initialize("gamma", channels, rng) if self.scale else None
        self.beta = self.initialize("beta", channels, rng) if self.center else None
        self.moving_mean = self.initialize("moving_mean", channels, rng, False)
        self.moving_variance = self.initialize("moving_variance", channels, rng, False)
        self.updates = self.add_parameter("updates", np.zeros(()), trainable=False)
        return shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        return self.linear(x, ctx)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        return self.linear_backward(dy, ctx, need_dx)

    def linear(
        self, x: np.ndarray, ctx: Context, relu: bool = False, last: None = None
    ) -> np.ndarray:
        """Return the outputs; or, fused, those of ReLU after them."""
        rows = self._rows(self.check_inputs(x))
        sums = _total(normalize.moments(rows), ctx) if self.uses_batch(ctx) else _NO_BATCH
        factors, inverse = self._factors(sums)
        y = ctx.empty(self, "y", rows.shape, rows.dtype)
        normalize.scale(rows, factors[:3], y, relu)
        ctx[self] = rows, x.shape, sums, factors, inverse, relu
        return self._unrolled(y, x.shape)

    def linear_backward(
        self, dy: np.ndarray, ctx: Context, need_dx: bool = True
    ) -> np.ndarray | None:
        rows, shape, batch, factors, inverse, relu = ctx[self]
        checks.gradient(dy, shape, self.dtype, self.label)
        dy = self._rows(dy)
        sums = normalize.gradient_sums(rows, dy, factors[:3], relu)
        # The averages do not depend on x; the statistics do, in all parts of the batch.
        totals = _total(sums, ctx) if need_dx and len(batch) else sums
        dgamma, dbeta = (
            np.empty(len(inverse), self.dtype) if each is None else each.writable("grad")
            for each in (self.gamma, self.beta)
        )
        weight = float(ctx.counted)  # a row that is only a placeholder changes no statistics
        normalize.finish_factors(
            sums, totals, batch, inverse, factors, dgamma, dbeta, weight
        )
        if not need_dx:
            return None
        dx = ctx.empty(self, "dx", rows.shape, rows.dtype)
        normalize.input_gradient(rows, dy, factors, dx, relu)
        return self._unrolled(dx, shape)

    def uses_batch(self, ctx: Context) -> bool:
        """Return whether a pass takes the statistics of its batch."""
        return self.trainable and (ctx.training if self.training is None else self.training)

    def folded(self, kernel: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the kernel and bias of a layer that also does what this one does in prediction."""
        (shift, scale, beta, *_), _ = self._factors(_NO_BATCH)
        return kernel * scale, (bias + shift) * scale + beta

    def _factors(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of each channel, and 1 / (standard deviation).

        If there are sums of a batch, the averages are moved towards its statistics.
        """
        mean, variance = self.moving_mean.value, self.moving_variance.value
        gamma = np.ones_like(mean) if self.gamma is None else self.gamma.value
        beta = np.zeros_like(mean) if self.beta is None else self.beta.value
        moved = [
            each.writable("value") if len(sums) else each.value.copy()
            for each in (self.moving_mean, self.moving_variance, self.updates)
        ]
        return normalize.factors(
            sums, (mean, variance), (gamma, beta), moved, self.momentum, self.epsilon
        )

    def _rows(self, x: np.ndarray) -> np.ndarray:
        """Return the inputs as a matrix with one column for each channel."""
        last = elementwise.axis_to_end(x, self.axis)
        return last.reshape(-1, last.shape[-1])

    def _unrolled(self, rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Return a matrix of `_rows` as an array of the inputs' shape."""
        sizes = *shape[: self.axis], *shape[self.axis :][1:], shape[self.axis]
        return elementwise.axis_from_end(rows.reshape(sizes), self.axis)


def _total(sums: np.ndarray, ctx: Context) -> np.ndarray:
    """Return the sums over the parts of the batch that all processes compute."""
    if ctx._total is None:
        return sums
    total = np.zeros_like(sums)
    threads.step(lambda: np.copyto(total[:1], ctx.total(sums.sum(axis=0))))
    return total
