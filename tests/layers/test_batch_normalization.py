"""BatchNormalization: the definition, precision, moving averages, freezing, files and training."""

import naive
import numpy as np
import pytest
from layers.passes import forward_and_back, numbers
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.layers import Activation, BatchNormalization, Conv2D, Dense, Flatten, Sequential

TRAIN = mc.Context(training=True)


def layer_for(shape, dtype=np.float32, **options):
    layer = BatchNormalization(**options)
    layer.build((None, *shape), rng=0, dtype=dtype)
    rng = np.random.default_rng(1)
    for parameter in (layer.gamma, layer.beta, layer.moving_mean, layer.moving_variance):
        parameter.value[...] = rng.uniform(0.5, 1.5, parameter.shape)
    return layer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(3, 1), (2, 17), (300, 5), (5, 9, 4, 33), (1, 1), (70, 40, 3)])
@pytest.mark.parametrize("first", [False, True])
def test_values_and_gradients_are_those_of_the_definition(shape, dtype, first):
    x = numbers(shape, dtype) * 3 + 1
    dy = numbers(shape, dtype, seed=4)
    layer = layer_for((shape[-1], *shape[1:-1]) if first else shape[1:], dtype,
                      axis=1 if first else -1, epsilon=0.01)
    gamma, beta = layer.gamma.value, layer.beta.value

    def lay(array):
        return np.moveaxis(array, -1, 1).copy() if first else array

    actual = forward_and_back(layer, lay(x), lay(dy))
    assert_close(actual.y, lay(naive.batch_normalization(x, gamma, beta, 0.01)))
    dx, dgamma, dbeta = naive.batch_normalization_backward(x, gamma, dy, 0.01)
    scale = max(1, np.abs(dx).max())
    assert_close(actual.dx, lay(dx), scale)
    assert_close(actual.grads[0], dgamma, np.abs(dy).sum())
    assert_close(actual.grads[1], dbeta, np.abs(dy).sum())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_outside_training_the_moving_averages_count(dtype):
    layer = layer_for((4, 3), dtype)
    statistics = layer.moving_mean.value.copy(), layer.moving_variance.value.copy()
    x = numbers((6, 4, 3), dtype)
    y = layer.forward(x, mc.Context())
    expected = naive.batch_normalization(
        x, layer.gamma.value, layer.beta.value, layer.epsilon, statistics
    )
    assert_close(y, expected)
    assert_same_bits(y[1:2], layer.forward(x[1:2], mc.Context()))
    assert_same_bits(layer.moving_mean.value, statistics[0])
    assert_same_bits(layer.moving_variance.value, statistics[1])
    assert mc.check_gradients(layer, (3, 4, 3), training=False).ok


def test_the_type_of_the_layer_decides_before_the_context():
    layer = layer_for((3,), training=False)
    x = numbers((5, 3))
    assert_same_bits(layer.forward(x, TRAIN), layer.forward(x, mc.Context()))
    layer.training = True
    assert_close(layer.forward(x, mc.Context()).mean(axis=0), layer.beta.value)


# Precision


def test_the_error_does_not_grow_with_the_number_of_rows():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((300_000, 2)) + np.array([1, 30])).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32) + np.float32(1)
    layer = layer_for((2,), epsilon=0.0)
    actual = forward_and_back(layer, x, dy)
    exact = x.astype(np.float64)
    mean, variance = exact.mean(axis=0), exact.var(axis=0)
    np.testing.assert_allclose(layer.moving_mean.value, mean * 0.01 + 0.99 * layer_for(
        (2,)).moving_mean.value, rtol=1e-6)
    xhat = (exact - mean) / np.sqrt(variance)
    np.testing.assert_allclose(actual.grads[0], (dy * xhat).sum(axis=0), rtol=0, atol=2)
    np.testing.assert_allclose(actual.grads[1], dy.sum(axis=0, dtype=np.float64), rtol=1e-6)
    assert np.abs(actual.y - (xhat * layer.gamma.value + layer.beta.value)).max() < 1e-5


@pytest.mark.parametrize("rows", [2, 40, 1000])
def test_a_mean_far_from_zero_does_not_cancel_the_variance(rows):
    x = np.random.default_rng(0).standard_normal((rows, 3)).astype(np.float32) + np.float32(1000)
    layer = BatchNormalization(epsilon=0.0)
    layer.build(x.shape, rng=0)
    layer.forward(x, TRAIN)
    np.testing.assert_allclose(layer.moving_variance.value, x.var(axis=0, dtype=np.float64), 1e-4)


def test_one_row_has_no_variance():
    layer = BatchNormalization()
    layer.build((None, 3), rng=0)
    result = forward_and_back(layer, numbers((1, 3)))
    assert not result.y.any()
    assert np.abs(result.dx).max() < 1e-5
    assert np.isfinite(np.concatenate(result.grads[:2])).all()


# Moving averages


def test_the_first_averages_are_weighted_means_of_the_batches():
    layer = BatchNormalization(momentum=0.9)
    layer.build((None, 4), rng=0)
    means, variances = [], []
    for step in range(200):
        x = numbers((7, 4), seed=step) + np.float32(step / 50)
        layer.forward(x, TRAIN)
        mean, variance = naive.batch_statistics(x)
        means.append(mean)
        variances.append(variance)
        weights = 0.9 ** np.arange(step, -1, -1.0)
        weights /= weights.sum()
        assert_close(layer.moving_mean.value, weights @ means, 4)
        assert_close(layer.moving_variance.value, weights @ variances, 4)
    before = layer.moving_mean.value.copy()
    layer.forward(x, TRAIN)  # the start does not count any more
    assert_close(layer.moving_mean.value, 0.9 * before + 0.1 * mean, 4)
    assert layer.updates.value == 201


@pytest.mark.parametrize("how", ["set", "start values"])
def test_averages_that_were_given_are_not_replaced(how):
    options = {} if how == "set" else {"moving_mean_initializer": 5.0}
    layer = BatchNormalization(momentum=0.9, **options)
    layer.build((None, 2), rng=0)
    if how == "set":
        layer.moving_mean.value[...] = 5
    for step in range(3):
        before = layer.moving_mean.value.copy()
        x = numbers((7, 2), seed=step)
        layer.forward(x, TRAIN)
        assert_close(layer.moving_mean.value, 0.9 * before + 0.1 * naive.batch_statistics(x)[0])


def test_the_number_of_updates_has_an_end():
    layer = BatchNormalization()
    layer.build((None, 2), rng=0)
    layer.updates.value[...] = 2**24
    layer.forward(numbers((7, 2)), TRAIN)
    assert layer.updates.value == 2**24


def net():
    return Sequential([
        Conv2D(4, 3, use_bias=False), BatchNormalization(), Activation("relu"), Flatten(),
        Dense(6), BatchNormalization(), Dense(3),
    ])


def step(model, seed, optimizer, ctx=None):
    ctx = ctx or mc.Context(training=True)
    logits = model.forward(numbers((8, 6, 6, 2), seed=seed), ctx)
    _, gradient = mc.losses.softmax_cross_entropy_with_grad(np.arange(8) % 3, logits)
    model.backward(gradient, ctx, need_dx=False)
    optimizer.step(model.parameters)


def test_a_resume_from_weights_is_exact(tmp_path):
    whole, first, second = net(), net(), net()
    for model in (whole, first, second):
        model.build((None, 6, 6, 2), rng=0)
    sgd = mc.optimizers.SGD(0.1)
    for seed in range(6):
        step(whole, seed, sgd)
    for seed in range(3):
        step(first, seed, sgd)
    mc.save_weights(first, tmp_path / "weights.npz")
    mc.load_weights(second, tmp_path / "weights.npz")
    for seed in range(3, 6):
        step(second, seed, sgd)
    for one, other in zip(whole.parameters, second.parameters, strict=True):
        assert_same_bits(one.value, other.value)


# What is trained


AVERAGES = ("moving_mean", "moving_variance", "updates")


def test_averages_are_never_trained():
    model = net()
    model.build((None, 6, 6, 2), rng=0)
    layer = model.layers[1]
    for trainable in (True, False, True):
        layer.trainable = trainable
        assert not any(getattr(layer, name).trainable for name in AVERAGES)
        assert layer.gamma.trainable == layer.beta.trainable == trainable
    for name in AVERAGES:
        getattr(layer, name).grad[...] = 100
    for parameter in model.parameters:
        if parameter.key not in AVERAGES:
            parameter.grad[...] = 0
    assert mc.optimizers.clip_by_global_norm(model.parameters, 1.0) == 0
    before = [getattr(layer, name).value.copy() for name in AVERAGES]
    mc.optimizers.SGD(0.5, momentum=0.9, weight_decay=0.1).step(model.parameters)
    for name, value in zip(AVERAGES, before, strict=True):
        assert_same_bits(getattr(layer, name).value, value)


@pytest.mark.parametrize("as_argument", [True, False])
def test_a_frozen_layer_uses_its_averages_and_keeps_them(as_argument):
    layer = layer_for((3,), trainable=not as_argument)
    layer.trainable = False
    before = [parameter.value.copy() for parameter in layer.parameters]
    x = numbers((5, 3)) + np.float32(3)
    assert_same_bits(layer.forward(x, TRAIN), layer.forward(x, mc.Context()))
    assert_close(layer.forward(x, TRAIN), naive.batch_normalization(
        x, layer.gamma.value, layer.beta.value, layer.epsilon, before[2:4]))
    for parameter, value in zip(layer.parameters, before, strict=True):
        assert_same_bits(parameter.value, value)
    layer.trainable = True
    layer.forward(x, TRAIN)
    assert (layer.moving_mean.value != before[2]).all()


def test_training_beside_a_frozen_layer():
    model = net()
    model.build((None, 6, 6, 2), rng=0)
    model.layers[1].trainable = False
    before = {parameter.name: parameter.value.copy() for parameter in model.parameters}
    step(model, 0, mc.optimizers.SGD(0.1))
    same = {p.name for p in model.parameters if np.array_equal(p.value, before[p.name])}
    frozen = "batch_normalization/"
    assert same == {name for name in before if name.startswith(frozen)}


# In an Estimator


def model_fn(features, labels, mode):
    training = mode == mc.ModeKeys.TRAIN
    h = mc.layers.dense(features, 16, use_bias=False)
    h = mc.relu(mc.layers.batch_normalization(h, training=training))
    logits = mc.layers.dense(h, 2)
    predictions = {"classes": mc.argmax(logits, 1)}
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
    if training:
        train_op = mc.optimize_loss(loss, learning_rate=0.5, optimizer="SGD")
    return mc.ModelFnOps(mode, predictions, loss, train_op)


RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 5)).astype(np.float32) * 3 + np.float32(2)
Y = (X.sum(axis=1) > 10).astype(np.int64)
ACCURACY = {"accuracy": mc.MetricSpec(mc.metrics.accuracy, "classes")}


def test_an_early_evaluation_is_not_that_of_chance(tmp_path):
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0))
    estimator.fit(X, Y, batch_size=50, steps=10)
    assert estimator.evaluate(X, Y, metrics=ACCURACY)["accuracy"] > 0.8


def test_checkpoints_hold_the_averages_and_a_resume_is_exact(tmp_path):
    def trained(folder, *ends):
        for end in ends:
            estimator = mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=0))
            estimator.fit(X, Y, batch_size=50, max_steps=end)
        return {n: estimator.get_variable_value(n) for n in estimator.get_variable_names()}

    whole, parts = trained(tmp_path / "whole", 9), trained(tmp_path / "parts", 4, 9)
    assert whole["batch_normalization/updates"] == 9
    assert whole.keys() == parts.keys() >= {f"batch_normalization/{name}" for name in AVERAGES}
    for name, value in whole.items():
        assert_same_bits(value, parts[name])


# Errors


@pytest.mark.parametrize(("axis", "shape"), [(0, (4, 3)), (-2, (3,)), (3, (4, 4)), (-4, (4, 4))])
def test_an_axis_that_the_inputs_do_not_have(axis, shape):
    with pytest.raises(ValueError, match=r"batch_normalization: `axis` must be .* got .*; use -1"):
        BatchNormalization(axis).build((None, *shape), rng=0)
    BatchNormalization(-1).build((None, *shape), rng=0)
