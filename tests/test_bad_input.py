"""Bad input: every argument of every public function refuses it, with an error that helps.

Which values are bad, and what is accepted and why, stands in `bad_input`.
"""

import re

import bad_input
import numpy as np
import public
import pytest

import minicnn as mc

CORE = bad_input.names()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_public_name_has_a_valid_call():
    assert set(bad_input.CALLS) == set(public.objects())


def test_every_method_has_a_valid_call_or_is_not_called_by_users():
    internal = re.compile("|".join(bad_input.INTERNAL))
    assert {name for name in bad_input.methods() if not internal.fullmatch(name)} <= set(
        bad_input.METHODS)
    for pattern in bad_input.INTERNAL:
        assert any(re.fullmatch(pattern, name) for name in bad_input.methods()), pattern


@pytest.mark.parametrize("name", [*public.objects(), *bad_input.METHODS])
def test_every_argument_has_bad_values(name):
    for argument in bad_input.arguments(name):
        accepted = bad_input.accepted_whole(name, argument)
        assert accepted or bad_input.kind(name, argument) in bad_input.KINDS, argument


def test_what_is_accepted_exists():
    known = {f"{name}.{argument}" for name in [*public.objects(), *bad_input.METHODS]
             for argument in [*bad_input.arguments(name), ""]}
    known |= {f"*.{key.rpartition('.')[2]}" for key in known}
    assert not [key for key in bad_input.ACCEPTED if not {key, f"{key}."} & known]


@pytest.mark.parametrize("name", CORE)
def test_the_valid_call_is_valid_and_leaves_its_arguments_alone(name):
    bad_input.check_valid(name)


@pytest.mark.parametrize("name", CORE)
def test_bad_input_is_refused(name):
    bad_input.check_refused(name)


@pytest.mark.parametrize("name", CORE)
def test_arrays_may_lie_in_memory_in_any_way(name):
    bad_input.check_layouts(name)


# What no signature shows --------------------------------------------------------------------------


def test_ops_that_refer_to_each_other_are_an_error():
    first, second = mc.layers.Flatten(name="first"), mc.layers.Flatten(name="second")
    first.other, second.other = second, first
    with pytest.raises(ValueError, match=r"first is a part of itself.*of second; give"):
        _ = first.parameters
    del second.other
    second._other = first
    assert first.parameters == ()


def test_a_layer_function_on_an_array_says_what_to_do():
    with pytest.raises(TypeError, match=r"`inputs` must be a Tensor.*layer = Conv2D"):
        mc.layers.conv2d(np.zeros((1, 8, 8, 1), np.float32), 3, 3)


def test_the_name_of_a_sequential_that_is_not_built_counts():
    x = mc.Graph().placeholder("x", (None, 4), np.float32)
    assert mc.Sequential([mc.layers.Dense(2)], name="a")(x).name == "a/dense"


def test_variables_that_the_loss_does_not_know():
    train_op = mc.optimize_loss(
        bad_input.scalar_loss(), learning_rate=0.1, variables=["dense/kernle"]
    )
    with pytest.raises(ValueError, match=r"must be among dense/kernel, .*dense/kernle"):
        train_op.trained(list(train_op.loss.graph.parameters.values()))
