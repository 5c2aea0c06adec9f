"""Tests of minicnn.initializers: distributions, fans and arguments."""

import numpy as np
import pytest

from minicnn import initializers
from minicnn.initializers import (
    constant,
    glorot_uniform,
    he_normal,
    ones,
    uniform_unit_scaling,
    zeros,
)

# (shape, fan_in, fan_out), counted by hand
KERNELS = [((5, 5, 16, 40), 400, 1000), ((200, 300), 200, 300), ((1, 1, 300, 200), 300, 200)]
DRAWING = [glorot_uniform, uniform_unit_scaling, he_normal]


def flat(function, shape, seed=3):
    return function(shape, np.random.default_rng(seed), np.float64).ravel()


@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), KERNELS)
def test_uniform_limits(shape, fan_in, fan_out):
    for function, limit in (
        (glorot_uniform, (6 / (fan_in + fan_out)) ** 0.5),
        (uniform_unit_scaling, (3 / fan_in) ** 0.5),
    ):
        w = flat(function, shape)
        assert 0.999 * limit < w.max() <= limit
        assert -limit <= w.min() < -0.999 * limit
        # uniform: each tenth of the range has its fraction, within five standard deviations
        counts, _ = np.histogram(w, bins=10, range=(-limit, limit))
        assert np.abs(counts - w.size / 10).max() < 5 * (w.size * 0.09) ** 0.5


@pytest.mark.parametrize(("shape", "fan_in", "fan_out"), KERNELS)
def test_he_normal_is_not_truncated(shape, fan_in, fan_out):
    z = flat(he_normal, shape) / (2 / fan_in) ** 0.5
    assert abs(z.mean()) < 5 / z.size**0.5
    assert abs(z.var() - 1) < 5 * (2 / z.size) ** 0.5
    for limit, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):  # not truncated at two deviations
        deviation = (share * (1 - share) / z.size) ** 0.5
        assert abs((np.abs(z) < limit).mean() - share) < 5 * deviation + 1e-4


def test_unit_scaling_and_he_keep_the_size_of_the_signal():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 500))
    y = x @ uniform_unit_scaling((500, 400), rng, np.float64)
    assert abs(y.var() - 1) < 0.03
    z = np.maximum(x @ (he_normal((500, 400), rng, np.float64)), 0)
    assert abs((z**2).mean() - 1) < 0.03


@pytest.mark.parametrize("function", DRAWING)
def test_one_seed_gives_the_same_numbers_in_both_types(function):
    double = function((3, 3, 4, 8), np.random.default_rng(7), np.float64)
    single = function((3, 3, 4, 8), np.random.default_rng(7))
    assert (double.dtype, single.dtype) == (np.float64, np.float32)
    assert np.array_equal(double.astype(np.float32), single)
    assert double.flags.c_contiguous
    assert not np.array_equal(double, function((3, 3, 4, 8), np.random.default_rng(8), np.float64))


@pytest.mark.parametrize("function", DRAWING)
def test_draws_move_the_generator_on(function):
    rng = np.random.default_rng(7)
    assert not np.array_equal(function((4, 5), rng), function((4, 5), rng))


@pytest.mark.parametrize("function", DRAWING)
@pytest.mark.parametrize("shape", [(), (10,)])
def test_a_bias_has_no_fans(function, shape):
    with pytest.raises(ValueError, match=r"needs a kernel's `shape`.*got \(.*for a bias use"):
        function(shape, np.random.default_rng(0))


def test_rng_must_be_a_generator_or_a_seed():
    assert np.array_equal(he_normal((4, 5), 3), he_normal((4, 5), np.random.default_rng(3)))
    with pytest.raises(TypeError, match="`rng` must be a numpy"):
        he_normal((4, 5), None)


def test_zeros():
    assert np.array_equal(zeros((2, 3)), np.zeros((2, 3), np.float32))
    assert zeros((2,), None, np.float64).dtype == np.float64


def test_ones():
    assert np.array_equal(ones((2, 3)), np.ones((2, 3), np.float32))
    assert ones((2,), None, np.float64).dtype == np.float64
    assert initializers.get("ones", "zeros") is ones


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_fills_or_copies(dtype):
    filled = constant(0.1)((2, 3), None, dtype)
    assert filled.dtype == dtype
    assert (filled == dtype(0.1)).all()
    value = np.arange(6.0).reshape(2, 3)
    initializer = constant(value)
    value[:] = -1  # the caller's array may change: the initializer has a copy
    first = initializer((2, 3), None, dtype)
    first[:] = 9  # and each parameter has its own copy
    assert np.array_equal(initializer((2, 3), None, dtype), np.arange(6.0).reshape(2, 3))
    assert constant(np.asfortranarray(value))((2, 3), None, dtype).flags.c_contiguous


def test_constant_refuses_another_shape_rather_than_broadcast():
    with pytest.raises(ValueError, match=r"parameter's shape \(2, 3\), got .* \(3,\); reshape"):
        constant([1, 2, 3])((2, 3))


@pytest.mark.parametrize("value", ["zeros", None, True, 1j])
def test_constant_needs_real_numbers(value):
    with pytest.raises(TypeError, match="`value` must be a number or an array, got"):
        constant(value)


def test_get():
    assert initializers.get("He_Normal", "zeros") is he_normal
    assert initializers.get(None, "zeros") is zeros
    assert initializers.get(None, glorot_uniform) is glorot_uniform

    def own(shape, rng, dtype=np.float32):
        return np.ones(shape, dtype)

    assert initializers.get(own, "zeros") is own
    for number in (2, np.float32(2)):
        assert (initializers.get(number, "zeros")((2,), None) == 2).all()


def test_get_names_what_is_known():
    with pytest.raises(ValueError, match=r"`kernel_initializer`.*glorot_uniform.*zeros.*'xavier'"):
        initializers.get("xavier", "zeros", name="kernel_initializer")


@pytest.mark.parametrize("spec", [True, np.ones(3), [1, 2]])
def test_get_refuses_other_types(spec):
    with pytest.raises(TypeError, match=r"`initializer` must be a name.*constant\(array\)"):
        initializers.get(spec, "zeros")
