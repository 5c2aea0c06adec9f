"""Regularizers in the Estimator: they are added to the loss of TRAIN and EVAL, and trained."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.layers import l1_regularizer, l2_regularizer

X = np.random.default_rng(0).standard_normal((20, 4), np.float32)
Y = np.arange(20) % 3


def network(regularizer, optimizer, auxiliary=False):
    def model_fn(features, labels, mode):
        shared = mc.layers.dense(features, 5, mc.relu, kernel_regularizer=regularizer, name="one")
        logits = mc.layers.dense(
            shared, 3, kernel_regularizer=regularizer, bias_regularizer=regularizer, name="two"
        )
        predictions = {"classes": mc.argmax(logits, 1)}
        loss = train_op = None
        if mode != mc.ModeKeys.INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits, name="data_loss")
        if mode == mc.ModeKeys.TRAIN:
            trained = mc.losses.softmax_cross_entropy(
                mc.one_hot(labels, 3), logits, weights=2.0
            ) if auxiliary else loss
            train_op = mc.optimize_loss(trained, optimizer=optimizer)
        return mc.ModelFnOps(mode, predictions, loss, train_op)
    return model_fn


class Losses(mc.hooks.SessionRunHook):
    """Record what is fetched as the loss, and the loss without the regularizers."""

    def __init__(self):
        self.seen = []

    def before_run(self, run_context):
        return mc.hooks.SessionRunArgs(["loss", "data_loss"])

    def after_run(self, run_context, run_values):
        self.seen.append(run_values.results)


def trained(folder, regularizer, rate=0.1, weight_decay=0.0, steps=3, **options):
    """Train; return the estimator, and the losses (total, without the regularizers)."""
    optimizer = mc.optimizers.SGD(rate, weight_decay=weight_decay)
    estimator = mc.Estimator(
        network(regularizer, optimizer, **options), folder, config=mc.RunConfig(seed=1)
    )
    losses = Losses()
    estimator.fit(X, Y, batch_size=10, steps=steps, monitors=[losses])
    return estimator, losses.seen


def weights(estimator):
    return {name: estimator.get_variable_value(name) for name in estimator.get_variable_names()}


def penalty(estimator, scale):
    values = weights(estimator)
    names = "one/kernel", "two/kernel", "two/bias"
    return scale / 2 * sum(float((values[name].astype(float) ** 2).sum()) for name in names)


def test_the_loss_is_their_sum_and_the_loss_without_them_has_its_name(tmp_path):
    still, [(total, data)] = trained(tmp_path / "rate 0", l2_regularizer(0.5), rate=0.0, steps=1)
    assert total == pytest.approx(data + penalty(still, 0.5))
    estimator, _ = trained(tmp_path, l2_regularizer(0.5))
    evaluation = estimator.evaluate(X, Y)
    plain = mc.Estimator(
        network(None, mc.optimizers.SGD(0.1)), tmp_path, config=mc.RunConfig(seed=1)
    ).evaluate(X, Y)
    assert evaluation["loss"] == pytest.approx(plain["loss"] + penalty(estimator, 0.5))


def test_training_adds_their_gradients(tmp_path):
    """L2 of every parameter is weight decay; here that of the first bias is left out."""
    regularized, seen = trained(tmp_path / "l2", l2_regularizer(0.5))
    plain, _ = trained(tmp_path / "plain", None)
    decayed, _ = trained(tmp_path / "decay", None, weight_decay=0.5)
    assert len(seen) == 3
    actual, others, expected = map(weights, (regularized, plain, decayed))
    for name in ("one/kernel", "two/kernel", "two/bias"):
        assert not np.allclose(actual[name], others[name], atol=1e-3)
    # The first bias starts at 0, so that its decay is of a higher order.
    for name in ("one/kernel", "two/kernel", "two/bias"):
        assert_allclose(actual[name], expected[name], atol=2e-3)


def test_one_step_by_hand(tmp_path):
    """From the same start values: w - rate * (g + gradient of the regularizer)."""
    start, _ = trained(tmp_path / "0", None, rate=0.0, steps=1)
    plain, _ = trained(tmp_path / "1", None, steps=1)
    l1, _ = trained(tmp_path / "2", l1_regularizer(0.5), steps=1)
    before, without, actual = map(weights, (start, plain, l1))
    for name, value in actual.items():
        extra = 0 if name == "one/bias" else 0.1 * 0.5 * np.sign(before[name])
        assert_allclose(value, without[name] - extra, atol=1e-6)


def test_a_continued_run_is_exact(tmp_path):
    estimator, _ = trained(tmp_path, l2_regularizer(0.5))
    assert sorted(estimator.get_variable_names()) == [
        "one/bias", "one/kernel", "two/bias", "two/kernel"
    ]
    continued, seen = trained(tmp_path, l2_regularizer(0.5))
    whole, all_seen = trained(tmp_path / "whole", l2_regularizer(0.5), steps=6)
    assert seen == all_seen[3:]
    for name, value in weights(whole).items():
        assert_same_bits(weights(continued)[name], value)


def test_evaluation_takes_the_weights_of_the_checkpoint(tmp_path):
    """Also in a new process, where only the file has them."""
    estimator, _ = trained(tmp_path, l2_regularizer(0.5))
    again = mc.Estimator(
        network(l2_regularizer(0.5), mc.optimizers.SGD(0.1)), tmp_path,
        config=mc.RunConfig(seed=1),
    )
    assert again.evaluate(X, Y) == estimator.evaluate(X, Y)


def test_a_train_op_of_another_loss(tmp_path):
    estimator, seen = trained(tmp_path, l2_regularizer(0.5), steps=1, auxiliary=True)
    [(total, data)] = seen
    assert total > data
    assert not np.allclose(weights(estimator)["two/bias"], 0, atol=1e-3)
    graph = estimator._models.latest().trace(mc.ModeKeys.EVAL, (X, Y)).graph
    assert [name for name in graph.tensors if "total_loss" in name] == ["total_loss"]


def test_without_regularizers_the_graph_is_as_before(tmp_path):
    estimator, seen = trained(tmp_path, None, steps=1)
    [(total, data)] = seen
    assert total == data
    graph = estimator._models.latest().trace(mc.ModeKeys.EVAL, (X, Y)).graph
    assert "total_loss" not in graph.tensors


def test_sequential_fit_and_evaluate_add_them(tmp_path):
    """As a loop of one's own, from the same start values and with one batch a step."""
    l2 = l2_regularizer(0.5)
    models = [
        mc.Sequential([
            mc.layers.Dense(5, mc.relu, kernel_regularizer=l2),
            mc.layers.Dense(3, bias_regularizer=l2),
        ])
        for _ in range(2)
    ]
    for model in models:
        model.build((None, 4), rng=0)
    first, second = models
    first.fit(X, Y, epochs=3, batch_size=len(X), optimizer=mc.optimizers.SGD(0.1), verbose=0)
    sgd = mc.optimizers.SGD(0.1)
    for _ in range(3):
        ctx = mc.Context(training=True)
        _, gradient = mc.losses.softmax_cross_entropy_with_grad(Y, second.forward(X, ctx))
        second.backward(gradient, ctx, need_dx=False)
        mc.losses.regularization(second)
        sgd.step(second.parameters)
    for one, other in zip(first.parameters, second.parameters, strict=True):
        assert_allclose(one.value, other.value, rtol=1e-5, atol=1e-6)
    loss, _ = mc.losses.softmax_cross_entropy_with_grad(Y, second.forward(X, mc.Context()))
    expected = loss + mc.losses.regularization(second)
    assert first.evaluate(X, Y, verbose=0)["loss"] == pytest.approx(expected, rel=1e-5)
