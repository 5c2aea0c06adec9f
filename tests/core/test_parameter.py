"""The two arrays of a parameter are written into, never replaced."""

import numpy as np
import pytest

import minicnn as mc
from minicnn.kernels import elementwise


def test_arrays_may_be_changed_in_place():
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    value, grad = parameter.value, parameter.grad
    parameter.value *= 2
    parameter.grad += 1
    assert parameter.value is value and parameter.grad is grad
    assert value.tolist() == [2, 2, 2] and grad.tolist() == [1, 1, 1]


@pytest.mark.parametrize("attribute", ["value", "grad"])
def test_another_array_is_copied(attribute):
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    before = getattr(parameter, attribute)
    new = np.array([2.5, 3, 4])  # float64
    setattr(parameter, attribute, new)
    assert getattr(parameter, attribute) is before
    assert before.tolist() == [2.5, 3, 4] and before.dtype == np.float32
    new[0] = 0
    assert before[0] == 2.5


@pytest.mark.parametrize("attribute", ["value", "grad"])
@pytest.mark.parametrize("new, error", [
    (np.zeros(4), ValueError), (np.zeros((1, 3)), ValueError), (2.0, ValueError),
    (np.zeros(3, complex), TypeError), (None, TypeError), ("abc", TypeError),
    (mc.Parameter("other", np.zeros(3)), TypeError),
])
def test_an_array_that_does_not_fit_is_refused(attribute, new, error):
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    before = getattr(parameter, attribute).copy()
    with pytest.raises(error, match=f"`{attribute}` must"):
        setattr(parameter, attribute, new)
    assert np.array_equal(getattr(parameter, attribute), before)


def test_a_read_only_value_is_not_overwritten():
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    parameter.value.flags.writeable = False
    with pytest.raises(ValueError, match="dense/bias: the array `value` is read-only"):
        parameter.value = np.zeros(3)


@pytest.mark.parametrize("wanted, got", [((2, 5), (5, 2)), ((3, 4, 1, 2), (2, 1, 3, 4))])
def test_the_way_to_turn_weights_of_other_libraries_works(wanted, got):
    parameter = mc.Parameter("layer/kernel", np.zeros(wanted, np.float32))
    array = np.arange(np.prod(got)).reshape(got)
    with pytest.raises(ValueError, match=r"; exchange its axes: array\.transpose") as caught:
        parameter.value = array
    parameter.value = eval(str(caught.value).rpartition(": ")[2], {"array": array})
    assert parameter.value.sum() == array.sum()


def test_in_other_shapes_no_exchange_is_proposed():
    parameter = mc.Parameter("layer/kernel", np.zeros((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"must have the shape \(3, 4\), got [^;]*$"):
        parameter.value = np.zeros((4, 5))


# Read-only arrays: kernels write to addresses, so their callers must check


@pytest.mark.parametrize("optimizer", [
    mc.optimizers.SGD(0.1), mc.optimizers.SGD(0.1, momentum=0.9), mc.optimizers.Adam(0.1),
])
def test_a_read_only_value_is_not_trained(optimizer):
    first, second = (mc.Parameter(name, np.ones(3, np.float32)) for name in ("first", "second"))
    second.value.flags.writeable = False
    with pytest.raises(ValueError, match="second: the array `value` is read-only; make it writ"):
        optimizer.step([first, second])
    assert first.value.tolist() == second.value.tolist() == [1, 1, 1]
    assert optimizer.iterations == 0
    second.trainable = False
    optimizer.step([first, second])
    second.trainable = True
    second.value.flags.writeable = True
    second.grad[...] = 1
    optimizer.step([first, second])
    assert (second.value < 1).all()


def test_a_read_only_gradient_is_not_clipped():
    first, second = (mc.Parameter(name, np.ones(3, np.float32)) for name in ("first", "second"))
    first.grad[...] = second.grad[...] = 4
    second.grad.flags.writeable = False
    with pytest.raises(ValueError, match="second: the array `grad` is read-only"):
        mc.optimizers.clip_by_global_norm([first, second], 1.0)
    assert first.grad.tolist() == [4, 4, 4]


@pytest.mark.parametrize("fuse", [True, False])
@pytest.mark.parametrize("name", ["kernel", "bias"])
@pytest.mark.parametrize("make", [
    lambda: [mc.layers.Dense(3)],
    lambda: [mc.layers.Dense(3, activation="relu"), mc.layers.Dropout(0.5)],
    lambda: [mc.layers.Conv2D(2, 3)],
    lambda: [mc.layers.Conv2D(8, 3, activation="relu")],
    lambda: [mc.layers.Conv2D(8, 3, activation="relu", padding="same"), mc.layers.MaxPooling2D(2)],
])
def test_backward_does_not_write_into_a_read_only_gradient(make, name, fuse):
    model = mc.Sequential(make(), fuse=fuse)
    model.build((None, 8, 8, 4), rng=0)
    parameter, x = getattr(model.layers[0], name), np.ones((2, 8, 8, 4), np.float32)
    parameter.grad[...] = 7
    parameter.grad.flags.writeable = False
    ctx = mc.Context(training=True, rng=np.random.default_rng(0))
    y = model.forward(x, ctx)
    with pytest.raises(ValueError, match=f"{parameter.name}: the array `grad` is read-only"):
        model.backward(np.ones_like(y), ctx)
    assert (parameter.grad == 7).all()
    parameter.grad.flags.writeable = True
    model.backward(np.ones_like(y), ctx)
    assert (parameter.grad != 7).any()


def test_no_kernel_writes_into_a_read_only_array():
    y = np.ones(3, np.float32)
    y.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only; set array\.flags\.writeable = True"):
        elementwise.relu(np.zeros(3, np.float32), y)
    assert y.tolist() == [1, 1, 1]


def test_a_file_is_not_read_into_a_read_only_parameter(tmp_path):
    model = mc.Sequential([mc.layers.Dense(3)])
    model.build((None, 2), rng=0)
    mc.save_weights(model, tmp_path / "weights.npz")
    model.reset_parameters(rng=1)
    before = [parameter.value.copy() for parameter in model.parameters]
    model.layers[0].bias.value.flags.writeable = False
    with pytest.raises(ValueError, match="dense/bias: the array `value` is read-only"):
        mc.load_weights(model, tmp_path / "weights.npz")
    for parameter, value in zip(model.parameters, before, strict=True):
        assert np.array_equal(parameter.value, value)
