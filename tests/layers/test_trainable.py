"""`trainable` of layers and parameters, set before or after build."""

import numpy as np
import pytest

import minicnn as mc
from minicnn.layers import Activation, Conv2D, Dense, Flatten, Sequential


class Norm(mc.layers.Layer):
    """A layer whose mean is never trainable, and whose scale is made without add_parameter."""

    def build(self, input_shape, rng, dtype=np.float32):
        shape = super().build(input_shape, rng, dtype)
        self.scale = mc.Parameter(f"{self.label}/scale", np.ones(shape[-1], dtype))
        self.mean = self.add_parameter("mean", np.zeros(shape[-1]), trainable=False)
        return shape

    def forward(self, x, ctx):
        return x * self.scale.value


def changed(model):
    """Do a step; return the names of the parameters that have changed."""
    before = [parameter.value.copy() for parameter in model.parameters]
    for parameter in model.parameters:
        parameter.grad[...] = 1
    mc.optimizers.SGD(0.5).step(model.parameters)
    pairs = zip(model.parameters, before, strict=True)
    return [parameter.name for parameter, old in pairs if (parameter.value != old).any()]


def model():
    return Sequential([Conv2D(2, 3), Norm(), Flatten(), Dense(2)])


ALL = ["conv2d/kernel", "conv2d/bias", "norm/scale", "dense/kernel", "dense/bias"]


@pytest.mark.parametrize("after", [True, False])
def test_a_layer_may_be_frozen_before_and_after_build(after):
    net = model()
    if after:
        net.build((None, 4, 4, 1), rng=0)
    net.layers[0].trainable = net.layers[1].trainable = False
    if not after:
        net.build((None, 4, 4, 1), rng=0)
    assert changed(net) == ["dense/kernel", "dense/bias"]
    net.layers[0].trainable = net.layers[1].trainable = True
    assert changed(net) == ALL  # the mean is never trainable


@pytest.mark.parametrize("after", [True, False])
def test_a_model_may_be_frozen(after):
    inner, last = model(), Dense(2, name="head")
    net = Sequential([inner, last])
    if after:
        net.build((None, 4, 4, 1), rng=0)
    inner.trainable = False
    assert not inner.layers[0].trainable
    if not after:
        net.build((None, 4, 4, 1), rng=0)
    assert changed(net) == ["head/kernel", "head/bias"]
    net.trainable = True
    assert changed(net) == [*(f"sequential/{name}" for name in ALL), "head/kernel", "head/bias"]


def test_the_argument_and_the_attribute_are_one():
    layer = Dense(2, trainable=False)
    layer.build((None, 3), rng=0)
    assert changed(layer) == []
    layer.trainable = True
    assert changed(layer) == ["dense/kernel", "dense/bias"]
    with pytest.raises(TypeError, match="`trainable` must be True or False, got 'no'"):
        layer.trainable = "no"


def test_a_parameter_has_its_own_trainable():
    layer = Dense(2)
    layer.build((None, 3), rng=0)
    layer.bias.trainable = False
    layer.trainable = False
    layer.trainable = True
    assert changed(layer) == ["dense/kernel"]
    layer.trainable = False
    layer.bias.trainable = True
    assert changed(layer) == ["dense/bias"]


def test_frozen_layers_in_an_activation_and_a_new_build():
    inner = Norm()
    layer = Dense(2, activation=Activation(inner))
    inner.trainable = False
    layer.build((None, 3), rng=0)
    assert changed(layer) == ["dense/kernel", "dense/bias"]
    layer.trainable = False
    layer.build((None, 5), rng=1)
    assert changed(layer) == []


def test_an_estimator_trains_what_is_trainable_now(tmp_path):
    net = Sequential([Dense(4), Dense(2)])

    def model_fn(features, labels, mode):
        logits = net(features)
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
        return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, learning_rate=0.5))

    x, y = np.eye(2, dtype=np.float32).repeat(5, 0), np.repeat([0, 1], 5)
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0)).fit(x, y, steps=1)
    before = [parameter.value.copy() for parameter in net.parameters]
    net.layers[0].trainable = False
    estimator.fit(x, y, steps=1)
    same = [np.array_equal(p.value, old) for p, old in zip(net.parameters, before, strict=True)]
    assert same == [True, True, False, False]
