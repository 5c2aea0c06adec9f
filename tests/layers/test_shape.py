"""Flatten and Reshape: the order of the elements, and valid target shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import forward_and_back, numbers
from numpy.testing import assert_array_equal
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.layers import Flatten, Reshape

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(shapes, st.integers(1, 3))
def test_flatten_keeps_the_order(shape, rows):
    x = numbers((rows, *shape))
    layer = Flatten()
    assert layer.build((None, *shape), rng=0) == (None, x[0].size)
    y, dx, grads = forward_and_back(layer, x, x.reshape(rows, -1))
    assert_same_bits(y, x.reshape(rows, -1))
    assert_same_bits(dx, x)
    assert grads == []


def test_flatten_walks_through_height_width_channels():
    x = np.arange(2 * 2 * 3 * 2, dtype=np.float32).reshape(2, 2, 3, 2)
    layer = Flatten()
    layer.build((None, 2, 3, 2), rng=0)
    assert_array_equal(layer.forward(x, mc.Context()), [range(12), range(12, 24)])


@given(shapes, st.permutations(range(4)), st.integers(0, 3))
def test_reshape_infers_one_size(shape, order, unknown):
    shape = (*shape, *[1] * (4 - len(shape)))
    target = [shape[i] for i in order]
    x = numbers((2, *shape))
    expected = x.reshape(2, *target)
    for wanted in (target, [-1 if i == unknown else size for i, size in enumerate(target)]):
        layer = Reshape(wanted)
        assert layer.build((None, *shape), rng=0) == (None, *target)
        y, dx, _ = forward_and_back(layer, x, expected)
        assert_same_bits(y, expected)
        assert_same_bits(dx, x)


def test_reshape_takes_integers_of_any_kind():
    assert Reshape([np.int64(28), 28, 1]).build((None, 784), rng=0) == (None, 28, 28, 1)
    assert Reshape(np.array([-1, 1])).build((None, 6), rng=0) == (None, 6, 1)


WRONG = [
    ((-1, -1), ValueError, "`target_shape` may hold one -1", "(-1, -1)"),
    ((2.0, 3), TypeError, "`target_shape` must be", "2.0"),
    ((-2, 3), ValueError, "`target_shape` must be at least -1", "-2"),
    (12, TypeError, "`target_shape` must be", "12"),
]


@pytest.mark.parametrize(("target", "error", "expected", "got"), WRONG, ids=str)
def test_wrong_targets_are_quoted(target, error, expected, got):
    with pytest.raises(error) as caught:
        Reshape(target)
    assert expected in str(caught.value)
    assert f"got {got}" in str(caught.value)


@pytest.mark.parametrize("target", [(28, 27), (-1, 5), (0,), (784, 0), ()])
def test_a_row_that_does_not_fit_names_both(target):
    with pytest.raises(ValueError) as caught:
        Reshape(target, name="images").build((None, 784), rng=0)
    message = str(caught.value)
    assert message.startswith("images: a row of shape (784,) has 784 elements")
    assert str(list(target)) in message


def test_the_function():
    x = mc.Graph().placeholder("x", (None, 7, 7, 64), np.float32)
    assert mc.layers.flatten(x).shape == (None, 3136)
    assert mc.layers.flatten(inputs=x, name="flat").name == "flat"
