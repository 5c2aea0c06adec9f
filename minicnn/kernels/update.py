"""Update steps of the optimizers: one pass over value, gradient and state.

Arguments: w value, g gradient, v velocity, m and s running means of g and g^2.
"""

import numpy as np

from minicnn.kernels.elementwise import elements, spans
from minicnn.kernels.jit import kernel
from minicnn.kernels.threads import parallel_for


def sgd(w: np.ndarray, g: np.ndarray, rate: float, decay: float) -> None:
    """Write w -= rate (g + decay w)."""
    _for_all(_sgd, (g,), (w,), rate, decay)


def momentum(
    w: np.ndarray, g: np.ndarray, v: np.ndarray, rate: float, decay: float, mu: float,
    nesterov: bool,
) -> None:
    """Write v = mu v + g + decay w; w -= rate v (Nesterov: w -= rate (g + decay w + mu v))."""
    _for_all(_momentum, (g,), (w, v), rate, decay, mu, flags=(nesterov,))


def adam(
    w: np.ndarray, g: np.ndarray, m: np.ndarray, s: np.ndarray, rate: float, decay: float,
    beta1: float, beta2: float, epsilon: float,
) -> None:
    """Write m, s and w -= rate (m / (sqrt(s) + epsilon) + decay w); `rate` is bias-corrected."""
    _for_all(_adam, (g,), (w, m, s), rate, decay, beta1, 1 - beta1, beta2, 1 - beta2, epsilon)


def rmsprop(
    w: np.ndarray, g: np.ndarray, s: np.ndarray, v: np.ndarray, rate: float, decay: float,
    mu: float, epsilon: float,
) -> None:
    """Write s = decay s + (1 - decay) g^2; v = mu v + rate g / sqrt(s + epsilon); w -= v."""
    _for_all(_rmsprop, (g,), (w, s, v), rate, decay, 1 - decay, mu, epsilon)


def _for_all(step, reads, writes, *numbers, flags=()):
    """Run `step` on all elements; its numbers are converted to the type of the arrays."""
    size, dtype = writes[0].size, writes[0].dtype.type
    parallel_for(step, spans(size), [array.reshape(-1) for array in reads],
                 [array.reshape(-1) for array in writes], *map(dtype, numbers), *flags)


@kernel
def _sgd(chunk, scratch, g, w, rate, decay):
    for e in elements(chunk, w.size):
        w[e] -= rate * (g[e] + decay * w[e])


@kernel
def _momentum(chunk, scratch, g, w, v, rate, decay, mu, nesterov):
    for e in elements(chunk, w.size):
        slope = g[e] + decay * w[e]
        v[e] = mu * v[e] + slope
        w[e] -= rate * (slope + mu * v[e]) if nesterov else rate * v[e]


@kernel
def _adam(chunk, scratch, g, w, m, s, rate, decay, beta1, rest1, beta2, rest2, epsilon):
    for e in elements(chunk, w.size):
        m[e] = beta1 * m[e] + rest1 * g[e]
        s[e] = beta2 * s[e] + rest2 * g[e] * g[e]
        w[e] -= rate * (m[e] / (np.sqrt(s[e]) + epsilon) + decay * w[e])


@kernel
def _rmsprop(chunk, scratch, g, w, s, v, rate, decay, rest, mu, epsilon):
    for e in elements(chunk, w.size):
        s[e] = decay * s[e] + rest * g[e] * g[e]
        v[e] = mu * v[e] + rate * g[e] / np.sqrt(s[e] + epsilon)
        w[e] -= v[e]
