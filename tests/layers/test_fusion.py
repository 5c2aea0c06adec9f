"""Fused layers give the results of the layers themselves, and fusion can be turned off."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers.passes import forward_and_back, numbers, without_groups
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    MaxPooling2D,
    Residual,
    SeparableConv2D,
    Sequential,
    fusion,
)


def both(layers, shape, dtype=np.float32):
    """Return the same model fused and not fused, with nonzero biases."""
    models = [Sequential(layers(), fuse=fuse) for fuse in (True, False)]
    for model in models:
        model.build((None, *shape), rng=0, dtype=dtype)
        rng = np.random.default_rng(1)
        for parameter in model.parameters:
            parameter.value[...] += rng.uniform(-0.1, 0.1, parameter.shape)
    return models


def assert_close_pass(actual, expected):
    assert_close(actual.y, expected.y)
    assert_close(actual.dx, expected.dx)
    for one, other in zip(actual.grads, expected.grads, strict=True):
        # Sums over all rows and positions, which may cancel; single terms are of size 1.
        assert_close(one, other, max(1, np.abs(other).max()))


def steps(model):
    """Return the number of ops that a model runs."""
    return len(without_groups(model._chain))


CHAINS = [  # name, layers, shape, number of ops when fused
    ("conv2d", lambda: [Conv2D(8, 3)], (6, 7, 9), 1),
    ("conv2d relu", lambda: [Conv2D(8, 3, activation="relu")], (6, 7, 9), 1),
    ("conv2d, activation", lambda: [Conv2D(8, 3), Activation("relu")], (6, 7, 9), 1),
    ("conv2d, op", lambda: [Conv2D(8, 3), mc.ops.Relu()], (6, 7, 9), 1),
    ("conv2d relu, pool", lambda: [Conv2D(8, 3, activation="relu"), MaxPooling2D(2)], (6, 8, 9), 1),
    (
        "conv2d, activation, pool",
        lambda: [Conv2D(8, 5, padding="same"), Activation("relu"), MaxPooling2D(2, 2)],
        (6, 8, 9),
        1,
    ),
    (
        "conv2d relu, overlapping pool",
        lambda: [Conv2D(8, 3, activation="relu"), MaxPooling2D(3, 2)],
        (7, 7, 9),
        2,
    ),
    (
        "conv2d relu, pool with gaps",
        lambda: [Conv2D(8, 3, activation="relu"), MaxPooling2D(2, 3)],
        (7, 7, 9),
        2,
    ),
    (
        "conv2d relu, pool of a padded edge",
        lambda: [Conv2D(8, 3, activation="relu"), MaxPooling2D(2, padding="same")],
        (7, 9, 9),
        2,
    ),
    ("conv2d, pool", lambda: [Conv2D(8, 3), MaxPooling2D(2)], (6, 8, 9), 2),
    (
        "conv2d relu, pool, in two formats",
        lambda: [
            Conv2D(4, 3, activation="relu"),
            MaxPooling2D(2, data_format="channels_first"),
        ],
        (6, 6, 9),  # rows, columns and filters are all 4: swapped axes would not raise
        2,
    ),
    ("conv2d tanh", lambda: [Conv2D(8, 3, activation="tanh")], (6, 7, 9), 1),
    ("conv2d tanh, relu", lambda: [Conv2D(8, 3, activation="tanh"), mc.ops.Relu()], (6, 7, 9), 2),
    ("conv2d relu, relu", lambda: [Conv2D(8, 3, activation="relu"), mc.ops.Relu()], (6, 7, 9), 2),
    ("depthwise relu", lambda: [DepthwiseConv2D(3, activation="relu")], (6, 7, 9), 1),
    ("depthwise, activation", lambda: [DepthwiseConv2D(3), Activation("relu")], (6, 7, 9), 1),
    ("separable, op", lambda: [SeparableConv2D(8, 3), mc.ops.Relu()], (6, 7, 9), 1),
    (
        "separable relu, pool",
        lambda: [SeparableConv2D(8, 3, activation="relu"), MaxPooling2D(2)],
        (6, 8, 9),
        1,
    ),
    (
        "separable with strides, normalization, relu, pool",
        lambda: [
            SeparableConv2D(8, 3, strides=2, depth_multiplier=2, padding="same"),
            BatchNormalization(epsilon=0.1), Activation("relu"), MaxPooling2D(2),
        ],
        (8, 7, 9),
        1,
    ),
    (
        "depthwise, normalization, relu",
        lambda: [
            DepthwiseConv2D((2, 3), depth_multiplier=2), BatchNormalization(epsilon=0.1),
            Activation("relu"),
        ],
        (6, 7, 9),
        1,
    ),
    (
        "depthwise, normalization of channels first",
        lambda: [
            DepthwiseConv2D(3, data_format="channels_first"), BatchNormalization(1, epsilon=0.1),
        ],
        (4, 6, 6),
        1,
    ),
    (
        "depthwise relu, pool",
        lambda: [DepthwiseConv2D(3, activation="relu"), MaxPooling2D(2)],
        (6, 8, 9),
        2,
    ),
    ("transposed relu", lambda: [Conv2DTranspose(8, 3), Activation("relu")], (6, 7, 9), 2),
    ("dense relu", lambda: [Dense(9, activation=mc.relu)], (5,), 1),
    ("dense, activation", lambda: [Dense(9), Activation("relu")], (5,), 1),
    ("dense relu, rank 3", lambda: [Dense(9, activation="relu")], (3, 5), 1),
    ("dense softmax", lambda: [Dense(9, activation="softmax")], (5,), 1),
    ("dense relu, dropout", lambda: [Dense(9, activation="relu"), Dropout(0.4)], (5,), 1),
    (
        "dense, activation, dropout with a seed, dense",
        lambda: [Dense(9), Activation("relu"), Dropout(0.7, seed=5), Dense(3)],
        (2, 5),
        2,
    ),
    (
        "dense relu, dropout off",
        lambda: [Dense(9, activation="relu"), Dropout(0.4, training=False)],
        (5,),
        1,
    ),
    ("dense relu, dropout of nothing", lambda: [Dense(9, activation="relu"), Dropout(0)], (5,), 1),
    (
        "dense relu, dropout by rows",
        lambda: [Dense(9, activation="relu"), Dropout(0.4, noise_shape=(None, 1))],
        (5,),
        2,
    ),
    ("dense tanh, dropout", lambda: [Dense(9, activation="tanh"), Dropout(0.4)], (5,), 2),
    ("residual, relu", lambda: [Residual(Dense(5)), Activation("relu")], (2, 5), 1),
    ("residual, relu, relu", lambda: [Residual(Dense(5)), mc.ops.Relu(), mc.ops.Relu()], (5,), 2),
    ("residual, tanh", lambda: [Residual(Dense(5)), Activation("tanh")], (5,), 2),
    ("residual", lambda: [Residual(Dense(5, activation="relu"))], (5,), 1),
    ("normalization, relu", lambda: [BatchNormalization(epsilon=0.1), mc.ops.Relu()], (3, 5), 1),
    (
        "conv2d, normalization, relu",
        lambda: [Conv2D(8, 3), BatchNormalization(epsilon=0.1), Activation("relu")],
        (6, 7, 9),
        1,
    ),
    (
        "conv2d, normalization without beta and gamma, conv2d, normalization, relu, pool",
        lambda: [
            Conv2D(5, 3, use_bias=False), BatchNormalization(center=False, scale=False),
            Conv2D(8, 3), BatchNormalization(epsilon=0.1), mc.ops.Relu(), MaxPooling2D(2),
        ],
        (10, 8, 3),
        2,
    ),
    (
        "conv2d, normalization, tanh",
        lambda: [Conv2D(8, 3), BatchNormalization(epsilon=0.1), Activation("tanh")],
        (6, 7, 9),
        2,
    ),
    (
        "conv2d relu, normalization, relu",
        lambda: [Conv2D(8, 3, activation="relu"), BatchNormalization(), Activation("relu")],
        (6, 7, 9),
        2,
    ),
    (
        "conv2d, normalization of channels first",
        lambda: [
            Conv2D(4, 3, data_format="channels_first"), BatchNormalization(1, epsilon=0.1),
        ],
        (9, 6, 6),
        1,
    ),
    (
        "conv2d, normalization of columns",
        lambda: [Conv2D(4, 3), BatchNormalization(1, epsilon=0.1)],
        (6, 6, 9),
        2,
    ),
    (
        "dense, normalization, relu, dropout",
        lambda: [Dense(9), BatchNormalization(epsilon=0.1), Activation("relu"), Dropout(0.4)],
        (5,),
        1,
    ),
    ("dense of rank 3, normalization", lambda: [Dense(4), BatchNormalization(2)], (3, 5), 1),
    (
        "the documented network",
        lambda: [
            Conv2D(32, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Conv2D(64, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Flatten(),
            Dense(128, activation="relu"),
            Dropout(0.4),
            Dense(10),
        ],
        (8, 8, 1),
        None,
    ),
]
each_chain = pytest.mark.parametrize(
    ("layers", "shape", "passes"), [pytest.param(*row[1:], id=row[0]) for row in CHAINS]
)


@each_chain
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fused_is_unfused(layers, shape, passes, dtype):
    fused, plain = both(layers, shape, dtype)
    assert steps(plain) == len(plain.layers)
    if passes is not None:
        assert steps(fused) == passes
    x = numbers((5, *shape), dtype)
    assert_close_pass(forward_and_back(fused, x), forward_and_back(plain, x))
    short = x[:2]
    assert_close_pass(forward_and_back(fused, short), forward_and_back(plain, short))


@each_chain
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_are_those_of_the_layers(layers, shape, passes, dtype):
    """Batch normalization becomes a part of the layer before it."""
    fused, plain = both(layers, shape, dtype)
    x = numbers((5, *shape), dtype)
    assert_close(fused.predict(x), plain.predict(x))
    frozen = mc.Context(save=True)  # backward may follow
    assert_close(fused.forward(x, frozen), plain.forward(x, mc.Context()))
    dy = numbers((5, *plain.predict(x).shape[1:]), dtype, seed=4)
    other = mc.Context()
    plain.forward(x, other)
    assert_close(fused.backward(dy, frozen), plain.backward(dy, other))


@each_chain
def test_fused_layers_keep_their_parameters_and_names(layers, shape, passes):
    fused, plain = both(layers, shape)
    assert [p.name for p in fused.parameters] == [p.name for p in plain.parameters]
    assert [layer.name for layer in fused.layers] == [layer.name for layer in plain.layers]
    x = numbers((2, *shape))
    for one, other in zip(fused.parameters, plain.parameters, strict=True):
        one.value[...] = other.value[...] = 0.01
    assert_close(fused.predict(x), plain.predict(x))


@settings(max_examples=30)
@given(
    kernel=st.sampled_from([1, 3, 5, (3, 5), (2, 3)]),
    strides=st.sampled_from([1, 1, 1, 2, (1, 2)]),
    padding=st.sampled_from(["valid", "same"]),
    channels=st.integers(1, 20),
    filters=st.integers(1, 40),
    extra=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    relu=st.booleans(),
    pool=st.booleans(),
    bias=st.booleans(),
    rows=st.integers(1, 4),
    data_format=st.sampled_from(["channels_last", "channels_last", "channels_first"]),
)
def test_fused_convolutions_of_any_kind(
    kernel, strides, padding, channels, filters, extra, relu, pool, bias, rows, data_format
):
    height, width = 7 + extra[0], 7 + extra[1]
    first = data_format == "channels_first"
    shape = (channels, height, width) if first else (height, width, channels)

    def layers():
        activation = "relu" if relu else None
        conv = Conv2D(
            filters, kernel, strides=strides, padding=padding, data_format=data_format,
            activation=activation, use_bias=bias,
        )
        return [conv, MaxPooling2D(2, data_format=data_format)] if pool else [conv]

    fused, plain = both(layers, shape)
    x = numbers((rows, *shape))
    assert_close_pass(forward_and_back(fused, x), forward_and_back(plain, x))


@pytest.mark.parametrize("value", [0.0, -1.0, 1.0])
def test_the_first_of_equal_maxima_gets_the_gradient(value):
    """After ReLU many windows have ties: zeros get no gradient, others pass it to the first."""
    fused, plain = both(lambda: [Conv2D(8, 1, activation="relu"), MaxPooling2D(2)], (4, 4, 3))
    x = np.full((2, 4, 4, 3), value, np.float32)
    for model in (fused, plain):
        for parameter in model.parameters:
            parameter.value[...] = 0 if parameter.name.endswith("bias") else 0.5
    actual, expected = forward_and_back(fused, x), forward_and_back(plain, x)
    assert_close_pass(actual, expected)
    for dx in (actual.dx, expected.dx):
        assert not dx[:, 1::2].any()
        assert not dx[:, :, 1::2].any()
        assert dx.any() == (value > 0)


@pytest.mark.parametrize("fuse", [True, False])
def test_nan_is_seen(fuse):
    model = Sequential([Conv2D(8, 3, activation="relu"), MaxPooling2D(2)], fuse=fuse)
    model.build((None, 6, 6, 9), rng=0)
    x = numbers((2, 6, 6, 9))
    x[0, 0, 0, 0] = np.nan
    y = model.predict(x)
    assert np.isnan(y[0, 0, 0]).all()
    assert not np.isnan(y[1]).any()


# Turned off


def test_fuse_false_turns_it_off():
    model = Sequential([Dense(3), Activation("relu")], fuse=False)
    model.build((None, 2), rng=0)
    assert steps(model) == 2


@pytest.mark.parametrize(("value", "passes"), [("0", 2), ("1", 1), ("", 1)])
def test_the_environment_turns_it_off(monkeypatch, value, passes):
    monkeypatch.setenv("MINICNN_FUSE", value)
    model = Sequential([Dense(3), Activation("relu")])
    model.build((None, 2), rng=0)
    assert steps(model) == passes
    assert fusion.fusing() == (passes == 1)
    assert not fusion.fusing(False)


def test_unfused_is_the_general_path_bit_by_bit(monkeypatch):
    monkeypatch.setenv("MINICNN_FUSE", "0")
    model, plain = both(CHAINS[-1][1], (8, 8, 1))
    x = numbers((2, 8, 8, 1))
    assert_same_bits(model.predict(x), plain.predict(x))


def test_fuse_says_how_many_layers_each_step_stands_for():
    model = Sequential(
        [Conv2D(8, 3), Activation("relu"), Flatten(), Dense(3, activation="relu"), Dropout(0.4)]
    )
    model.build((None, 6, 6, 9), rng=0)
    chain = fusion.fuse(model.layers)
    assert sum(length for _, length in chain) == len(model.layers)
    assert [length for _, length in chain][:2] == [2, 1]
    assert chain[1][0] is model.layers[2]
    assert fusion.fuse([]) == []


# Subclasses are never fused


class DoubledDense(Dense):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


class DoubledConv2D(Conv2D):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


class GuidedRelu(mc.ops.Relu):
    """Guided backpropagation: negative gradients are dropped too."""

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(np.maximum(dy, 0), ctx, need_dx)


class GuidedActivation(Activation):
    def backward(self, dy, ctx, need_dx=True):
        return super().backward(np.maximum(dy, 0), ctx, need_dx)


class DoubledDropout(Dropout):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


class DoubledResidual(Residual):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


class MinPooling2D(MaxPooling2D):
    def forward(self, x, ctx):
        return -super().forward(-x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(dy, ctx, need_dx)


class DoubledNorm(BatchNormalization):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


OVERRIDDEN = [
    ("dense", lambda: [DoubledDense(3, activation="relu")], (5,)),
    ("conv2d", lambda: [DoubledConv2D(3, 3, activation="relu")], (5, 5, 2)),
    ("relu of dense", lambda: [Dense(3, activation=GuidedRelu())], (5,)),
    ("relu of conv2d", lambda: [Conv2D(3, 3, activation=GuidedRelu())], (5, 5, 2)),
    ("relu as a layer", lambda: [Dense(3), GuidedRelu()], (5,)),
    ("relu in a layer", lambda: [Dense(3), Activation(GuidedRelu())], (5,)),
    ("activation", lambda: [Dense(3), GuidedActivation("relu")], (5,)),
    ("dropout", lambda: [Dense(3, activation="relu"), DoubledDropout(0.4)], (5,)),
    ("residual", lambda: [DoubledResidual(Dense(5)), Activation("relu")], (5,)),
    ("relu of residual", lambda: [Residual(Dense(5)), GuidedRelu()], (5,)),
    ("pooling", lambda: [Conv2D(3, 3, activation="relu"), MinPooling2D(2)], (6, 6, 2)),
    ("normalization", lambda: [Dense(3), DoubledNorm(epsilon=0.1), Activation("relu")], (5,)),
]


@pytest.mark.parametrize(
    ("layers", "shape"), [pytest.param(*row[1:], id=row[0]) for row in OVERRIDDEN]
)
def test_subclasses_are_not_fused(layers, shape):
    fused, plain = both(layers, shape)
    x = numbers((4, *shape))
    assert_close_pass(forward_and_back(fused, x), forward_and_back(plain, x))


def test_a_layer_may_be_changed_after_build():
    fused, plain = both(lambda: [Dense(3, activation="relu")], (5,))
    x = numbers((2, 5))
    for model in (fused, plain):
        model.layers[0].kernel.value[...] = 1
        model.layers[0].bias.value[...] = -0.5
    y = fused.predict(x)
    assert_close(y, plain.predict(x))
    assert_array_equal(y[:, 0], y[:, 1])
