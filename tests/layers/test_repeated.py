"""Passes that are recorded and repeated are those that Python makes."""

import contextlib
import copy
import pickle
import threading

import numpy as np
import pytest
from kernels.test_threads import InterruptAt
from layers.passes import numbers
from layers.test_conformance import TABLE
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.core.op import parts
from minicnn.kernels import recording
from minicnn.kernels import threads as pool
from minicnn.kernels.conv import conv
from minicnn.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
    Residual,
    repeated,
)

PASSES = 9


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Record the third pass, and let the workers help in the sixth."""
    monkeypatch.setattr(recording.Repeatable.__init__, "__defaults__", (2,))
    monkeypatch.setattr(recording, "_LEAST_SECONDS", 0)


@pytest.fixture
def two_threads():
    before = pool.get_num_threads()
    pool.set_num_threads(2)
    yield
    pool.set_num_threads(before)


def model_of(*layers, shape, dtype=np.float32):
    model = mc.Sequential(layers)
    model.build((None, *shape), rng=0, dtype=dtype)
    return model


def recorded(workspace):
    """Return the recorded passes."""
    return [call for call in workspace.calls.values() if call._left < 0]


def one_pass(model, x, step, need_dx=True, workspace=None, total=None):
    """Return copies of the output, gradients and values; then change the parameters."""
    ctx = mc.Context(training=True, rng=step, workspace=workspace, total=total)
    y = model.forward(x, ctx).copy()
    dy = numbers(y.shape, y.dtype, seed=step)
    dy[dy < -0.5] = 0
    dx = model.backward(dy, ctx, need_dx)
    results = [y, *([] if dx is None else [dx.copy()])]
    for parameter in model.parameters:
        results += [parameter.grad.copy(), parameter.value.copy()]
        if parameter.trainable:
            parameter.value -= parameter.dtype.type(0.1) * parameter.grad
    return results


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        assert_same_bits(a, b)


def compare(make, shape, rows=lambda step: 4, need_dx=lambda step: True, total=None):
    """Compare passes with a workspace with those without; return the workspace."""
    own, other, workspace = make(), make(), mc.Workspace()
    for step in range(PASSES):
        x = numbers((rows(step), *shape), own.dtype, seed=step)
        expected = one_pass(own, x, step, need_dx(step), total=total)
        assert_same(one_pass(other, x, step, need_dx(step), workspace, total), expected)
    return workspace


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name, make, shape", TABLE, ids=[row[0] for row in TABLE])
def test_each_layer(two_threads, name, make, shape, dtype):
    workspace = compare(lambda: model_of(make(), shape=shape, dtype=dtype), shape)
    ops = parts(model_of(make(), shape=shape))
    uses_numpy = any(getattr(op, "depth_multiplier", 1) > 1 for op in ops) or (
        dtype == np.float64 and any(isinstance(op, MaxPooling2D) for op in ops)
    )
    for found in recorded(workspace):
        assert found.is_recorded or uses_numpy
        assert all(call.is_recorded for call in found.next.values())
    if any(isinstance(op, repeated.Repeated) for op in ops):
        assert recorded(workspace)


def normalized():
    return model_of(
        Conv2D(5, 3, use_bias=False), BatchNormalization(), Activation("relu"), MaxPooling2D(2),
        Residual([Conv2D(5, 1), BatchNormalization(epsilon=0.1)]), Activation("relu"), Flatten(),
        Dense(4), shape=(8, 9, 2),
    )


def test_batch_normalization_and_a_residual_block_in_one_group(two_threads):
    assert len(normalized()._chain) == 1
    (found,) = recorded(compare(normalized, (8, 9, 2)))
    assert len(found._steps) == 1  # without Python between the kernels


def test_statistics_of_several_processes_are_exchanged_in_each_step(two_threads):
    sent = []

    def total(array):
        sent.append(array)
        return array * 3

    (found,) = recorded(compare(normalized, (8, 9, 2), total=total))
    assert len(found._steps) == 5  # two times Python between kernels
    assert len(sent) == 2 * 4 * PASSES


def test_a_frozen_normalization_takes_its_averages():
    model, other = normalized(), normalized()
    workspace = mc.Workspace()
    for step in range(2 * PASSES):
        for each in (model, other):
            each.layers[1].trainable = step < PASSES
            each.layers[1].moving_mean.value[0] += 1
        x = numbers((4, 8, 9, 2), seed=step)
        assert_same(one_pass(model, x, step, workspace=workspace), one_pass(other, x, step))
    assert all(call.is_recorded for call in recorded(workspace))


def test_averages_that_are_read_only_raise():
    model, workspace, x = normalized(), mc.Workspace(), numbers((4, 8, 9, 2))
    for step in range(PASSES):
        one_pass(model, x, step, workspace=workspace)
    model.layers[1].moving_mean.value.flags.writeable = False
    with pytest.raises(ValueError, match="`value` is read-only"):
        model.forward(x, mc.Context(training=True, workspace=workspace))


def test_what_numpy_computes_is_not_repeated():
    compare(lambda: model_of(Dense(4), mc.ops.Gelu(approximate=True), shape=(5,)), (5,))


class Halved(Dense):
    def forward(self, x, ctx):
        return super().forward(x, ctx) / 2


@pytest.mark.parametrize("layer", [
    Halved(3), Dropout(0.5), Activation("softmax"), mc.Sequential([Dropout(0.5)]),
    Residual([Halved(3), Dense(7)]),
])  # fmt: skip
def test_layers_that_are_not_repeated(layer):
    model = model_of(Dense(7), layer, Dense(2), shape=(5,))
    assert [type(op) for op in model._chain] == [repeated.Repeated, type(layer), repeated.Repeated]


def network():
    return model_of(
        Conv2D(5, 3, activation="relu"), MaxPooling2D(2), Flatten(), Dense(9, activation="relu"),
        Dropout(0.5), Dense(4), Activation("tanh"), shape=(8, 9, 2),
    )


def test_two_groups_with_dropout_between_them(two_threads):
    assert [type(op).__name__ for op in network()._chain] == ["Repeated", "Fused", "Repeated"]
    assert len(recorded(compare(network, (8, 9, 2)))) == 2


def test_batches_of_two_sizes_and_with_and_without_dx():
    workspace = compare(network, (8, 9, 2), lambda step: 4 + step % 2, lambda step: step % 3 > 0)
    assert len(recorded(workspace)) == 4


def test_many_sizes_are_forgotten(monkeypatch):
    monkeypatch.setattr(repeated, "_FORMS", 4)
    assert len(compare(network, (8, 9, 2), lambda step: 1 + step).calls) <= 5


@pytest.mark.parametrize("most, kept", [(100, 2), (1 << 28, 6)])
def test_arrays_of_earlier_sizes_are_forgotten_if_they_are_large(monkeypatch, most, kept):
    monkeypatch.setattr(repeated, "_MOST_BYTES", most)
    found = recorded(compare(network, (8, 9, 2), lambda step: 4 + step * 3 // PASSES))
    assert [call.is_recorded for call in found] == [True] * kept


def test_large_arrays_are_not_kept(monkeypatch):
    monkeypatch.setattr(recording, "_MOST_BYTES", 100)
    found = recorded(compare(network, (8, 9, 2)))
    assert found and not any(each.is_recorded for each in found)
    assert all(each._x is each._result is None and each.size == 0 for each in found)


def test_a_choice_by_values_is_made_at_each_step():
    """The gradients of a large dense layer are computed from lists if many are zero."""
    model = model_of(Dense(300, activation="relu"), shape=(600,))
    other, workspace = model_of(Dense(300, activation="relu"), shape=(600,)), mc.Workspace()
    x = numbers((100, 600))
    for step in range(PASSES):
        for each, space in ((model, None), (other, workspace)):
            ctx = mc.Context(training=True, workspace=space)
            dy = np.ones_like(each.forward(x, ctx))
            dy[:, step % 2 * 290 :] = 0
            each.backward(dy, ctx)
        assert_same(*([p.grad for p in each.parameters] for each in (model, other)))
    (found,) = recorded(workspace)
    assert not any(call.is_recorded for call in found.next.values())


def test_a_context_may_be_used_again():
    model, ctx = network(), mc.Context(training=True, rng=0, workspace=mc.Workspace())
    x = numbers((4, 8, 9, 2))
    for _ in range(PASSES):
        y = model.forward(x, ctx)
        model.backward(y, ctx)
    again = mc.Context(training=True, rng=0, workspace=ctx.workspace)
    y = model.forward(x, again).copy()
    model.backward(y, again)
    grads = [p.grad.copy() for p in model.parameters]
    plain = mc.Context(training=True, rng=0)
    assert_same_bits(model.forward(x, plain), y)
    model.backward(y, plain)
    assert_same(grads, [p.grad for p in model.parameters])


@pytest.mark.parametrize("rows, training", [(3, True), (4, False)])
def test_a_context_may_be_used_again_for_another_form(rows, training):
    """The pass of the other form is not recorded yet; backward must not repeat another one."""
    model, other = (
        model_of(Dense(9, activation="relu"), Dense(5), shape=(7,)) for _ in range(2)
    )
    ctx, plain = mc.Context(workspace=mc.Workspace()), mc.Context()
    for step in range(PASSES):
        is_other = step > PASSES - 3
        x = numbers((rows if is_other else 4, 7), seed=step)
        for each, context in ((other, plain), (model, ctx)):
            context.training = training or not is_other
            each.backward(each.forward(x, context), context)
        assert_same(*([p.grad for p in each.parameters] for each in (other, model)))


class Square(mc.Op):
    def forward(self, x, ctx):
        ctx[self] = x
        return x * x

    def backward(self, dy, ctx, need_dx=True):
        return 2 * ctx[self] * dy


def set_slope(layer):
    layer.activation.alpha *= 0.9


def set_activation(layer):
    layer.activation = Square()


def set_method(layer):
    linear = layer.linear
    layer.linear = lambda x, ctx: linear(2 * x, ctx)


def set_bias(layer):
    layer.use_bias = False
    layer.build((None, 6), rng=1)


@pytest.mark.parametrize("change", [set_slope, set_activation, set_method, set_bias])
def test_attributes_may_be_set_between_steps(change):
    model, other = (
        model_of(Dense(6, activation="tanh"), Dense(5, activation="leaky_relu"), shape=(7,))
        for _ in range(2)
    )
    workspace = mc.Workspace()
    for step in range(PASSES):
        x = numbers((4, 7), seed=step)
        if step >= PASSES - 3:
            change(model.layers[1])
            change(other.layers[1])
        expected = one_pass(other, x, step)
        assert_same(one_pass(model, x, step, workspace=workspace), expected)


def test_the_shape_of_results_may_be_set():
    model, workspace = model_of(Dense(6, activation="relu"), Dense(1), shape=(7,)), mc.Workspace()
    for step in range(PASSES):
        ctx = mc.Context(training=True, workspace=workspace)
        y = model.forward(numbers((4, 7), seed=step), ctx)
        dx = model.backward(y.copy(), ctx)
        assert y.shape == (4, 1)
        assert dx.shape == (4, 7)
        y.shape = (4,)
        dx.shape = (28,)


def test_names_and_trainable_are_not_such_attributes():
    model, workspace = network(), mc.Workspace()
    for step in range(PASSES):
        model.layers[0].trainable = step % 2 == 0
        model.layers[0].name = f"step{step}"
        one_pass(model, numbers((4, 8, 9, 2)), step, workspace=workspace)
    assert all(call.is_recorded for call in recorded(workspace))


def test_a_gradient_that_is_read_only_after_forward_is_not_written():
    model, workspace = network(), mc.Workspace()
    for step in range(PASSES):
        one_pass(model, numbers((4, 8, 9, 2)), step, workspace=workspace)
    ctx = mc.Context(training=True, rng=0, workspace=workspace)
    y = model.forward(numbers((4, 8, 9, 2)), ctx)
    model.parameters[0].grad.flags.writeable = False
    with pytest.raises(ValueError, match="`grad` is read-only"):
        model.backward(y, ctx)


def test_the_general_convolution_is_not_repeated_with_pooling(monkeypatch):
    monkeypatch.setattr(conv, "FAST_PATHS", False)
    compare(network, (8, 9, 2))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_a_copy_does_not_write_into_the_arrays_of_the_original(copied):
    model, workspace, x = network(), mc.Workspace(), numbers((4, 8, 9, 2))
    for step in range(PASSES):
        one_pass(model, x, step, workspace=workspace)
    other, space = copied((model, workspace))
    expected = copy.deepcopy([p.grad for p in model.parameters])
    for step in range(PASSES):
        one_pass(other, x * 2, step, workspace=space)
    assert_same([p.grad for p in model.parameters], expected)


def test_large_kernels_do_not_wait_for_other_layers():
    model = model_of(Dense(2), Dense(2**19), Dense(2), shape=(3,))
    assert [type(op) for op in model._chain[1:2]] == [Dense]
    assert len(model._chain) == 3


def test_other_arrays_of_parameters_are_used():
    """A layer that is built again has new arrays."""
    model, workspace = network(), mc.Workspace()
    x = numbers((4, 8, 9, 2))
    for step in range(PASSES):
        if step == 6:
            model.layers[0].build((None, 8, 9, 2), rng=7)
        one_pass(model, x, step, workspace=workspace)
    ctx = mc.Context(training=True, rng=1, workspace=workspace)
    expected = model.forward(x, mc.Context(training=True, rng=1))
    assert_same_bits(model.forward(x, ctx), expected)


def test_a_read_only_gradient_raises():
    model, workspace = network(), mc.Workspace()
    x = numbers((4, 8, 9, 2))
    for step in range(PASSES):
        one_pass(model, x, step, workspace=workspace)
    before = model.parameters[0].grad.copy()
    model.parameters[0].grad.flags.writeable = False
    with pytest.raises(ValueError, match="`grad` is read-only"):
        one_pass(model, x, 0, workspace=workspace)
    assert_same_bits(model.parameters[0].grad, before)


def test_wrong_inputs_raise_as_before():
    model, workspace = network(), mc.Workspace()
    for step in range(PASSES):
        one_pass(model, numbers((4, 8, 9, 2)), step, workspace=workspace)
    ctx = mc.Context(training=True, rng=0, workspace=workspace)
    y = model.forward(numbers((4, 8, 9, 2)), ctx)
    with pytest.raises(ValueError, match="dy"):
        model.backward(y[:2], ctx)
    with pytest.raises(TypeError, match="float32"):
        model.backward(y.astype(np.float64), ctx)
    with pytest.raises(RuntimeError, match="forward"):
        model.backward(y, mc.Context(workspace=workspace))


def test_threads_with_their_own_workspaces_share_a_model(two_threads):
    model = model_of(Dense(30, activation="relu"), Dense(4), shape=(20,))
    outputs = {}

    def work(seed):
        workspace, x = mc.Workspace(), numbers((5, 20), seed=seed)
        for _ in range(50):
            y = model.forward(x, mc.Context(training=True, workspace=workspace)).copy()
        outputs[seed] = y, model.forward(x, mc.Context())

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert len(outputs) == 3
    for y, expected in outputs.values():
        assert_same_bits(y, expected)


def test_a_run_that_is_resumed_has_the_same_bits(two_threads):
    x, y = numbers((40, 8, 9, 2)), np.arange(40) % 4
    once, twice = (
        mc.Sequential([Conv2D(5, 3, activation="relu"), MaxPooling2D(2), Flatten(), Dense(4)])
        for _ in range(2)
    )
    options = {"batch_size": 16, "seed": 3, "verbose": False}
    once.fit(x, y, steps=14, **options)
    for steps in (9, 5):
        twice.fit(x, y, steps=steps, **options)
    assert_same(*([p.value for p in model.parameters] for model in (once, twice)))


class InterruptPassAt(InterruptAt):
    files = tuple(module.__file__ for module in (repeated, recording, pool, contextlib))


def test_an_interrupt_at_any_place_stops_all_threads(two_threads):
    model, workspace = network(), mc.Workspace()
    x, grads = numbers((4, 8, 9, 2)), [p.grad for p in model.parameters]

    def both_passes(workspace):
        ctx = mc.Context(training=True, rng=1, workspace=workspace)
        y = model.forward(x, ctx)
        model.backward(y, ctx)
        return [y.copy(), *(grad.copy() for grad in grads)]

    expected = both_passes(None)
    for _ in range(PASSES):
        both_passes(workspace)
    number = 0
    while InterruptPassAt(number).interrupts(lambda: both_passes(workspace)):
        for grad in grads:
            grad[...] = np.nan
        assert all(np.isnan(grad).all() for grad in grads)  # no worker writes any more
        assert_same(both_passes(workspace), expected)
        number += 1
    assert number > 60


def test_an_interrupt_while_calls_are_recorded_ends_the_recording(monkeypatch):
    monkeypatch.setattr(recording.Repeatable.__init__, "__defaults__", (0,))
    model, x = model_of(Dense(4), Dense(3, activation="relu"), shape=(5,)), numbers((2, 5))
    expected, number = one_pass(copy.deepcopy(model), x, 1), 0

    def both_passes():
        one_pass(copy.deepcopy(model), x, 1, workspace=mc.Workspace())

    while InterruptPassAt(number).interrupts(both_passes):
        assert not pool.is_taping()
        number += 1
    assert number > 60
    assert_same(one_pass(model, x, 1, workspace=mc.Workspace()), expected)
