"""Residual: the sum of two paths, its gradients, names, files and errors."""

import re

import numpy as np
import pytest
from layers.passes import built, forward_and_back, numbers, without_groups
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.layers import Activation, Conv2D, Dense, Residual, Sequential

FIRST = {"data_format": "channels_first"}


def block():
    """Return a residual block that halves the image and doubles the channels."""
    return Residual(
        [Conv2D(4, 3, strides=2, padding="same", activation="relu"), Conv2D(4, 3, padding="same")],
        shortcut=[Conv2D(4, 1, strides=2)],
    )


def test_the_sum_of_both_paths_and_of_their_gradients():
    layer, _ = built(block, (7, 6, 2))
    x = numbers((3, 7, 6, 2))
    full = forward_and_back(layer, x)
    paths = [forward_and_back(path, x) for path in (layer.block, layer.shortcut)]
    assert_close(full.y, paths[0].y + paths[1].y)
    assert_close(full.dx, paths[0].dx + paths[1].dx)
    for grad, expected in zip(full.grads, [*paths[0].grads, *paths[1].grads], strict=True):
        assert_same_bits(grad, expected)


def test_without_a_shortcut_the_input_is_added():
    layer, _ = built(lambda: Residual(Dense(5)), (5,))
    x, dense = numbers((3, 5)), layer.block.layers[0]
    y, dx, _ = forward_and_back(layer, x)
    assert_close(y, x + x @ dense.kernel.value + dense.bias.value)
    dy = numbers((3, 5), seed=4)
    assert_close(dx, dy + dy @ dense.kernel.value.T)


def names(model):
    return [parameter.name for parameter in model.parameters]


def test_names_in_a_sequential_and_in_a_graph_are_the_same():
    model = Sequential([block(), Activation("relu"), Residual([Dense(4), Dense(4)])])
    model.build((None, 7, 6, 2), rng=0)
    assert names(model)[::2] == [
        "residual/block/conv2d/kernel", "residual/block/conv2d_1/kernel",
        "residual/shortcut/conv2d/kernel",
        "residual_1/block/dense/kernel", "residual_1/block/dense_1/kernel",
    ]
    assert model.summary().count("residual") == 2
    graph = mc.Graph(rng=0)
    x = graph.placeholder("x", (None, 7, 6, 2), np.float32)
    y = Residual([Dense(4), Dense(4)])(Activation("relu")(block()(x)))
    assert list(graph.parameters) == names(model)
    assert (y.name, y.shape) == ("residual_1", (None, 4, 3, 4))
    assert "residual/block/conv2d_1" in graph.tensors
    values, plan = numbers((3, 7, 6, 2)), graph.plan([y])
    assert_same_bits(plan.forward({x: values}, mc.Context())[y], model.predict(values))
    ops = without_groups(step.op for step in plan.steps)
    assert len(ops) == 3 + 1 + 3  # the first sum and its ReLU in one step


def test_a_name_that_was_given_is_kept():
    model = Sequential([Residual(Sequential([Dense(3)], name="path"), Dense(3, name="side"))])
    model.build((None, 3), rng=0)
    assert names(model)[::2] == ["path/dense/kernel", "side/kernel"]
    model = Sequential([Residual(Dense(3), name="first"), Residual(Dense(3), name="second")])
    model.build((None, 3), rng=0)
    assert names(model)[::2] == ["first/block/dense/kernel", "second/block/dense/kernel"]


def test_weights_are_in_files(tmp_path):
    models = [built(lambda: Sequential([block()]), (7, 6, 2))[0] for _ in range(2)]
    models[0].parameters[0].value[...] = 7
    mc.save_weights(models[0], tmp_path / "weights.npz")
    mc.load_weights(models[1], tmp_path / "weights.npz")
    x = numbers((2, 7, 6, 2))
    assert_same_bits(models[1].predict(x), models[0].predict(x))


def test_a_layer_that_is_built_keeps_its_values():
    dense = Dense(3)
    dense.build((None, 3), rng=0)
    dense.kernel.value[...] = np.eye(3)
    layer = Residual(dense)
    layer.build((None, 3), rng=1)
    x = numbers((2, 3))
    assert_array_equal(layer(x), 2 * x)


def test_a_frozen_block_is_not_trained():
    layer, _ = built(block, (7, 6, 2))
    layer.trainable = False
    assert not any(parameter.trainable for parameter in layer.parameters)


@pytest.mark.parametrize(("make", "shape", "shortcut"), [
    (lambda: Residual(Dense(2)), (4,), "Dense(2)"),
    (lambda: Residual(Dense(2)), (3, 4), "Dense(2)"),
    (lambda: Residual(Conv2D(5, 1)), (7, 9, 3), "Dense(5)"),
    (lambda: Residual(Conv2D(5, 3, strides=2, padding="same")), (7, 9, 3), None),
    (lambda: Residual(Conv2D(5, 3, strides=2, padding="same", **FIRST)), (3, 7, 9), None),
])
def test_the_remedy_for_another_shape(make, shape, shortcut):
    layer = make()
    with pytest.raises(ValueError, match=r"`block` gives outputs .*, but the input") as error:
        layer.build((None, *shape), rng=0)
    remedy = re.search(r"for example with shortcut=(.*)$", str(error.value)).group(1)
    assert remedy == (shortcut or "Conv2D(filters, 1, strides)")
    if shortcut:
        layer = Residual(make().block, eval(remedy))
        layer.build((None, *shape), rng=0)


class Doubled(Residual):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


def test_a_subclass_computes_what_it_says_in_a_graph():
    graph = mc.Graph(rng=0)
    x = graph.placeholder("x", (None, 3), np.float32)
    layer = Doubled(Activation("tanh"))
    y, values = mc.relu(layer(x)), np.full((1, 3), 0.5, np.float32)
    out = graph.plan([y]).forward({x: values}, mc.Context())[y]
    assert_close(out, 2 * (0.5 + np.tanh(values)))


def test_other_errors():
    with pytest.raises(ValueError, match=r"but `shortcut` \(None, 3\); they must be equal"):
        Residual(Dense(2), Dense(3)).build((None, 4), rng=0)
    with pytest.raises(TypeError, match="`layers` must be a list of layers, got 3"):
        Residual(3)
    dense = Dense(3)
    with pytest.raises(ValueError, match="the same layer twice"):
        Sequential([Residual(dense, dense)]).build((None, 3), rng=0)
