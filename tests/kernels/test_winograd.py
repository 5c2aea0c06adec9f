"""Tests of the matrices of the Winograd transforms and of the code generated from them."""

import numba
import numpy as np
import pytest

from minicnn.kernels.conv import winograd
from minicnn.kernels.simd import LANES, pointer

# As in the docstring of `winograd`.
INPUTS = [
    [4, 0, -5, 0, 1, 0],
    [0, -4, -4, 1, 1, 0],
    [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0],
    [0, 2, -1, -2, 1, 0],
    [0, 4, 0, -5, 0, 1],
]
OUTPUTS = [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
FILTERS = [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]


@numba.njit
def input_line(d, out, side):
    winograd._input_line(side, pointer(d, 0), LANES, pointer(out, 0), LANES)


@numba.njit
def output_line(m, out, side):
    winograd._output_line(side, pointer(m, 0), LANES, pointer(out, 0), LANES)


def test_the_matrices_of_3x3_are_those_of_the_docstring():
    inputs, outputs, filters = winograd.matrices(3)
    assert inputs.tolist() == INPUTS
    assert outputs.tolist() == OUTPUTS
    np.testing.assert_allclose(filters * 24, FILTERS, rtol=1e-15)


@pytest.mark.parametrize("size", [3, 5])
def test_the_matrices_compute_a_correlation(size):
    inputs, outputs, filters = winograd.matrices(size)
    rng = np.random.default_rng(0)
    d, g = rng.integers(-9, 9, size + 3), rng.integers(-9, 9, size)
    computed = outputs @ ((filters @ g) * (inputs @ d))
    np.testing.assert_allclose(computed, np.correlate(d, g, "valid"), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [3, 5])
def test_the_code_multiplies_by_the_matrices(size):
    inputs, outputs, _ = winograd.matrices(size)
    side = size + 3
    d = np.random.default_rng(0).integers(-99, 99, (side, LANES)).astype(np.float32)
    for matrix, function in ((inputs, input_line), (outputs, output_line)):
        out = np.zeros((len(matrix), LANES), np.float32)
        function(d, out, side)
        np.testing.assert_array_equal(out, matrix @ d)  # exact: small dyadic fractions
