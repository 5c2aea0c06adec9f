"""A parameter's two arrays are written into, never exchanged."""

import numpy as np
import pytest

import minicnn as mc


def test_arrays_may_be_changed_in_place():
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    value, grad = parameter.value, parameter.grad
    parameter.value *= 2
    parameter.grad += 1
    assert parameter.value is value and parameter.grad is grad
    assert value.tolist() == [2, 2, 2] and grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("attribute", ["value", "grad"])
def test_another_array_is_refused_with_the_way_to_do_it(attribute):
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    with pytest.raises(AttributeError, match=rf"dense/bias.*parameter\.{attribute}\[\.\.\.\] ="):
        setattr(parameter, attribute, np.zeros(3, np.float32))
    assert parameter.value.tolist() == [1, 1, 1]
