"""Update steps of the optimizers: one pass over value, gradient and state.

Arguments: w value, g gradient, v velocity, m and s running means of g and g^2. The last one has the
numbers of a step. An array of them, of the type of w, is not copied: recorded calls read it again.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicnn.kernels.elementwise import elements, spans
from minicnn.kernels.jit import kernel
from minicnn.kernels.threads import parallel_for


def sgd(w: np.ndarray, g: np.ndarray, numbers: Any) -> None:
    """Write w -= rate (g + decay w); numbers: rate, decay."""
    _for_all(_sgd, g, (w,), numbers)


def momentum(w: np.ndarray, g: np.ndarray, v: np.ndarray, numbers: Any) -> None:
    """Write v = mu v + g + decay w; w -= rate v (Nesterov: w -= rate (g + decay w + mu v)).

    Numbers: rate, decay, mu, and whether it is Nesterov's.
    """
    _for_all(_momentum, g, (w, v), numbers)


def adam(w: np.ndarray, g: np.ndarray, m: np.ndarray, s: np.ndarray, numbers: Any) -> None:
    """Write m, s and w -= rate (m / (sqrt(s) + epsilon) + decay w); `rate` is bias-corrected.

    Numbers: rate, decay, beta1, 1 - beta1, beta2, 1 - beta2, epsilon.
    """
    _for_all(_adam, g, (w, m, s), numbers)


def rmsprop(w: np.ndarray, g: np.ndarray, s: np.ndarray, v: np.ndarray, numbers: Any) -> None:
    """Write s = decay s + rest g^2; v = mu v + rate g / sqrt(s + epsilon); w -= v.

    Numbers: rate, decay, rest = 1 - decay, mu, epsilon.
    """
    _for_all(_rmsprop, g, (w, s, v), numbers)


def _for_all(step: Any, g: np.ndarray, writes: Sequence[np.ndarray], numbers: Any) -> None:
    """Run a kernel on all elements; `numbers` gets the type of the parameter."""
    numbers = np.asarray(numbers, writes[0].dtype)
    parallel_for(step, spans(g.size), (g.reshape(-1), numbers),
                 [array.reshape(-1) for array in writes])


@kernel
def _sgd(chunk, scratch, g, numbers, w):
    rate, decay = numbers[0], numbers[1]
    for e in elements(chunk, w.size):
        w[e] -= rate * (g[e] + decay * w[e])


@kernel
def _momentum(chunk, scratch, g, numbers, w, v):
    rate, decay, mu, nesterov = numbers[0], numbers[1], numbers[2], numbers[3]
    for e in elements(chunk, w.size):
        slope = g[e] + decay * w[e]
        v[e] = mu * v[e] + slope
        w[e] -= rate * (slope + mu * v[e]) if nesterov != 0 else rate * v[e]


@kernel
def _adam(chunk, scratch, g, numbers, w, m, s):
    rate, decay, epsilon = numbers[0], numbers[1], numbers[6]
    beta1, rest1, beta2, rest2 = numbers[2], numbers[3], numbers[4], numbers[5]
    for e in elements(chunk, w.size):
        m[e] = beta1 * m[e] + rest1 * g[e]
        s[e] = beta2 * s[e] + rest2 * g[e] * g[e]
        w[e] -= rate * (m[e] / (np.sqrt(s[e]) + epsilon) + decay * w[e])


@kernel
def _rmsprop(chunk, scratch, g, numbers, w, s, v):
    rate, decay, rest, mu, epsilon = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4]
    for e in elements(chunk, w.size):
        s[e] = decay * s[e] + rest * g[e] * g[e]
        v[e] = mu * v[e] + rate * g[e] / np.sqrt(s[e] + epsilon)
        w[e] -= v[e]
