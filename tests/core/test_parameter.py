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
def test_another_array_is_refused_with_the_way_to_do_it(attribute):
    parameter = mc.Parameter("dense/bias", np.ones(3, np.float32))
    with pytest.raises(AttributeError, match=rf"dense/bias.*parameter\.{attribute}\[\.\.\.\] ="):
        setattr(parameter, attribute, np.zeros(3, np.float32))
    assert parameter.value.tolist() == [1, 1, 1]


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
