import numpy as np
import pytest
from kernels.arrays import DTYPES, normal
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

from minicnn.kernels import update
from minicnn.kernels.elementwise import SPAN

RATE, DECAY, MU, BETA1, BETA2, EPSILON = 0.3, 0.2, 0.9, 0.8, 0.95, 0.01

# Reference steps in float64: (w, g, *states) -> (w, *states).


def sgd(w, g):
    return [w - RATE * (g + DECAY * w)]


def momentum(w, g, v):
    v = MU * v + g + DECAY * w
    return [w - RATE * v, v]


def nesterov(w, g, v):
    v = MU * v + g + DECAY * w
    return [w - RATE * (g + DECAY * w + MU * v), v]


def adam(w, g, m, s):
    m = BETA1 * m + (1 - BETA1) * g
    s = BETA2 * s + (1 - BETA2) * g**2
    return [w - RATE * (m / (np.sqrt(s) + EPSILON) + DECAY * w), m, s]


def rmsprop(w, g, s, v):
    s = BETA1 * s + (1 - BETA1) * g**2
    v = MU * v + RATE * g / np.sqrt(s + EPSILON)
    return [w - v, s, v]


STEPS = {  # name: (number of states, reference, kernel function)
    "sgd": (0, sgd, lambda *arrays: update.sgd(*arrays, (RATE, DECAY))),
    "momentum": (1, momentum, lambda *arrays: update.momentum(*arrays, (RATE, DECAY, MU, 0))),
    "nesterov": (1, nesterov, lambda *arrays: update.momentum(*arrays, (RATE, DECAY, MU, 1))),
    "adam": (2, adam, lambda *arrays: update.adam(
        *arrays, (RATE, DECAY, BETA1, 1 - BETA1, BETA2, 1 - BETA2, EPSILON))),
    "rmsprop": (2, rmsprop, lambda *arrays: update.rmsprop(
        *arrays, (RATE, BETA1, 1 - BETA1, MU, EPSILON))),
}
by_step = pytest.mark.parametrize("step", STEPS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES)


def draw(step, shape, dtype):
    """Return w, the states, and g, which is read-only."""
    rng = np.random.default_rng(0)
    w, *states = (normal(rng, shape, dtype).copy() for _ in range(1 + STEPS[step][0]))
    if step in ("adam", "rmsprop"):
        states[step == "adam"][...] **= 2  # a mean of squares
    return w, normal(rng, shape, dtype), states


@by_dtype
@by_step
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 4, 5), (3 * SPAN + 7,)])
def test_step(step, shape, dtype):
    _, restated, kernel = STEPS[step]
    w, g, states = draw(step, shape, dtype)
    for _ in range(2):  # the second step starts from the states of the first
        exact = restated(*(array.astype(np.float64) for array in (w, g, *states)))
        kernel(w, g, *states)
        for actual, expected in zip([w, *states], exact, strict=True):
            assert_close(actual, expected)


@by_dtype
@by_step
def test_nan_stays_in_its_element(step, dtype):
    w, g, states = draw(step, (9,), dtype)
    g = g.copy()
    g[4] = np.nan
    STEPS[step][2](w, g, *states)
    for array in (w, *states):
        assert_array_equal(np.isnan(array), np.arange(9) == 4)


@by_dtype
@by_step
def test_threads_do_not_change_bits(by_threads, step, dtype):
    def run():
        w, g, states = draw(step, (2 * SPAN + 9,), dtype)
        STEPS[step][2](w, g, *states)
        return w, *states

    for results in zip(*by_threads(run), strict=True):
        assert_same_bits(*results)


@by_step
def test_a_gradient_may_lie_in_any_order(step):
    w, g, states = draw(step, (6, 7), "float32")
    expected = [array.copy() for array in (w, *states)]
    STEPS[step][2](expected[0], g, *expected[1:])
    STEPS[step][2](w, np.asfortranarray(g), *states)
    assert_same_bits(w, expected[0])
