"""Tests of minicnn.estimator: fit, evaluate, predict, what they log and what they keep."""

import copy
import gc
import itertools
import json
import logging
import math
import os
import pickle
import re
import subprocess
import sys
import threading
from pathlib import Path

import naive
import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.estimator import checkpoints, feeding, progress

TRAIN, EVAL, INFER = mc.ModeKeys.TRAIN, mc.ModeKeys.EVAL, mc.ModeKeys.INFER
ROWS = 50
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int64) + (X[:, 1] > 0)  # three classes that can be learned
ACCURACY = {"accuracy": mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")}


def network(units=8, rate=0.1, optimizer="SGD", calls=None, extra=False, hidden=True):
    """Return a model_fn that records in `calls` the modes that it is called for."""
    def model_fn(features, labels, mode):
        if calls is not None:
            calls.append(mode)
        h = features
        if hidden:
            h = mc.layers.dense(h, units, activation=mc.relu, name="hidden")
        if extra:
            h = mc.layers.dense(h, units, name="extra")
        logits = mc.layers.dense(h, 3, name="logits")
        loss = train_op = None
        if mode != INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        if mode == TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=rate, optimizer=optimizer)
        predictions = {
            "classes": mc.argmax(logits, axis=1),
            "probabilities": mc.softmax(logits, name="softmax_tensor"),
        }
        return mc.ModelFnOps(mode, predictions, loss, train_op)
    return model_fn


def estimator_in(folder, model_fn=None, **config):
    return mc.Estimator(model_fn or network(), folder, config=mc.RunConfig(seed=1, **config))


def weights_of(estimator):
    return {name: estimator.get_variable_value(name) for name in estimator.get_variable_names()}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert_same_bits(first[name], second[name])


def saved_steps(folder):
    """Return the steps of the checkpoints in a folder."""
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("model.ckpt-*.npz"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def batches(*parts):
    """Return an input_fn with a batch of ten rows for each number."""
    def input_fn():
        for part in parts:
            yield X[part * 10 : part * 10 + 10], Y[part * 10 : part * 10 + 10]
    return input_fn


def logits_by_hand(weights, x=X):
    hidden = naive.relu(naive.dense(x, weights["hidden/kernel"], weights["hidden/bias"]))
    return naive.dense(hidden, weights["logits/kernel"], weights["logits/bias"])


@pytest.fixture
def trained(tmp_path):
    return estimator_in(tmp_path).fit(X, Y, steps=3, batch_size=10)


@pytest.fixture
def lines(caplog):
    """Return the log lines of minicnn."""
    caplog.set_level(logging.INFO, logger="minicnn")

    def read():
        records = [record for record in caplog.records if record.name == "minicnn"]
        return [record.getMessage() for record in records]
    return read


# fit ----------------------------------------------------------------------------------------------


def test_fit_returns_the_estimator_and_learns(tmp_path):
    estimator = estimator_in(tmp_path)
    assert estimator.fit(X, Y, steps=1, batch_size=10) is estimator
    before = estimator.evaluate(X, Y)["loss"]
    estimator.fit(X, Y, steps=300, batch_size=10)
    after = estimator.evaluate(X, Y, metrics=ACCURACY)
    assert after["loss"] < before / 2
    assert after["accuracy"] > 0.9


def test_steps_are_in_addition_and_max_steps_is_the_total(tmp_path, lines):
    def step():
        return estimator.evaluate(X, Y)["global_step"]

    estimator = estimator_in(tmp_path)
    estimator.fit(X, Y, steps=3)
    assert step() == 3
    estimator.fit(X, Y, steps=2)
    assert step() == 5
    estimator.fit(X, Y, max_steps=7)
    assert step() == 7
    before = contents(tmp_path)
    estimator.fit(X, Y, max_steps=7)
    assert step() == 7
    assert any("at step 7 of 7" in line for line in lines())
    fresh = estimator_in(tmp_path)
    fresh.fit(X, Y, max_steps=6)  # steps that are done stay done
    assert fresh.evaluate(X, Y)["global_step"] == 7
    before["evaluations.jsonl"] = contents(tmp_path)["evaluations.jsonl"]
    assert contents(tmp_path) == before
    fresh.fit(X, Y, steps=1)
    assert fresh.evaluate(X, Y)["global_step"] == 8


def test_arrays_without_a_last_step_are_refused(tmp_path, lines):
    estimator = estimator_in(tmp_path)
    for batch_size, one_pass in ((None, 1), (7, 8)):
        with pytest.raises(ValueError, match="`steps` or `max_steps`") as caught:
            estimator.fit(X, Y, batch_size=batch_size)
        assert f"steps={one_pass}, which is one pass over {ROWS} rows" in str(caught.value)
    assert saved_steps(tmp_path) == []
    estimator.fit(X, Y, batch_size=7, steps=8)  # as the error suggests
    one_pass = checkpoints.load(tmp_path / "model.ckpt-8.npz").meta["place"]
    assert one_pass == {"epoch": 0, "row": ROWS, "rows": ROWS}
    estimator.fit(X, Y, monitors=[mc.hooks.StopAtStepHook(num_steps=1)])  # which has a last step

    class Stop(mc.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            run_context.request_stop()

    assert not [line for line in lines() if "ends this run" in line]
    estimator.fit(X, Y, monitors=[Stop()])
    estimator.fit(input_fn=batches(0))
    assert len([line for line in lines() if "ends this run" in line]) == 2


@pytest.mark.parametrize("now, words", [
    ({}, []),
    ({"seed": None}, []),
    ({"seed": 2}, ["the seed 1 and 50 rows, now with the seed 2 and 50 rows"]),
    ({"rows": 20}, ["the seed 1 and 50 rows, now with the seed 1 and 20 rows"]),
    ({"input_fn": batches(0, 1)}, ["50 rows, now with the seed 1 and an `input_fn`"]),
])
def test_a_run_that_continues_with_other_settings_warns(tmp_path, caplog, now, words):
    estimator_in(tmp_path).fit(X, Y, steps=1)
    config = mc.RunConfig(seed=now.get("seed", 1))
    rows = now.get("rows", ROWS)
    data = {"x": X[:rows], "y": Y[:rows]}
    if "input_fn" in now:
        data = {"input_fn": now["input_fn"]}
    for steps in (1, 1):  # the second time it is the run's seed
        mc.Estimator(network(), tmp_path, config=config).fit(**data, steps=steps)
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == bool(words)
    for word in [*words, str(tmp_path / "model.ckpt-1.npz")] if words else []:
        assert word in warnings[0]


def test_from_an_input_fn_to_arrays_is_logged(tmp_path, caplog):
    estimator_in(tmp_path).fit(input_fn=batches(0, 1))
    estimator_in(tmp_path).fit(X, Y, steps=1)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert re.search("an `input_fn`, now with the seed 1 and [0-9]+ rows", warning)


def test_a_run_that_has_nothing_to_do_warns(tmp_path, caplog):
    estimator_in(tmp_path).fit(X, Y, steps=3)
    mc.Estimator(network(), tmp_path, config=mc.RunConfig(seed=2)).fit(X, Y, max_steps=2)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("Already at step 3 of 2; nothing to do.")
    assert "`max_steps`" in warning
    assert str(tmp_path) in warning


def test_one_step_is_one_update_by_the_gradient(tmp_path):
    estimator = estimator_in(tmp_path, network(rate=0.5))
    estimator.fit(X, Y, steps=1, batch_size=ROWS)
    before = weights_of(estimator)
    estimator.fit(X, Y, steps=1, batch_size=ROWS)
    z = logits_by_hand(before)
    dz = naive.softmax_cross_entropy_backward(np.eye(3)[Y], z)
    hidden = naive.relu(naive.dense(X, before["hidden/kernel"], before["hidden/bias"]))
    dx, dw, db = naive.dense_backward(hidden, before["logits/kernel"], dz)
    dh = naive.relu_backward(hidden, dx)
    _, dw0, db0 = naive.dense_backward(X, before["hidden/kernel"], dh)
    gradients = {"hidden/kernel": dw0, "hidden/bias": db0, "logits/kernel": dw, "logits/bias": db}
    for name, gradient in gradients.items():
        expected = before[name] - 0.5 * gradient
        np.testing.assert_allclose(estimator.get_variable_value(name), expected, atol=1e-5)


@pytest.mark.parametrize("arguments, words", [
    ({"steps": 1, "max_steps": 2}, ["`steps`", "`max_steps`", "at most one"]),
    ({"steps": 0}, ["`steps`", "at least 1", "0"]),
    ({"max_steps": -1}, ["`max_steps`", "at least 1", "-1"]),
    ({"steps": 1, "batch_size": 0}, ["`batch_size`", "at least 1", "0"]),
    ({"steps": 1, "input_fn": batches(0)}, ["either `input_fn`", "`x`", "`batch_size`"]),
])
def test_invalid_arguments(tmp_path, arguments, words):
    estimator = estimator_in(tmp_path)
    with pytest.raises(ValueError) as caught:
        estimator.fit(X, Y, **arguments)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_every_row_is_seen_once_an_epoch_in_an_order_of_its_own(tmp_path):
    class Collect(mc.hooks.SessionRunHook):
        seen: tuple = ()

        def before_run(self, run_context):
            return mc.hooks.SessionRunArgs("features")

        def after_run(self, run_context, run_values):
            self.seen = (*self.seen, run_values.results[:, 0])

    numbered = np.repeat(np.arange(10, dtype=np.float32)[:, None], 4, axis=1)
    collect = Collect()
    estimator = estimator_in(tmp_path)
    for steps in (1, 2, 5, 1, 3):  # four batches an epoch: 3 + 3 + 3 + 1 rows; three epochs
        estimator.fit(numbered, np.zeros(10, int), steps=steps, batch_size=3, monitors=[collect])
    assert [len(batch) for batch in collect.seen] == [3, 3, 3, 1] * 3
    epochs = [np.concatenate(collect.seen[i : i + 4]).tolist() for i in (0, 4, 8)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != sorted(epochs[0])


def test_the_seed_decides_everything(tmp_path):
    first, second, third = (
        mc.Estimator(network(), tmp_path / str(i), config=mc.RunConfig(seed=seed))
        .fit(X, Y, steps=3, batch_size=10) for i, seed in enumerate((5, 5, 6))
    )
    assert_same_weights(weights_of(first), weights_of(second))
    assert not np.array_equal(
        first.get_variable_value("hidden/kernel"), third.get_variable_value("hidden/kernel")
    )


def test_without_a_seed_one_is_drawn_and_logged(tmp_path, lines):
    for name in "ab":
        mc.Estimator(network(), tmp_path / name).fit(X, Y, steps=1)
    seeds = [line for line in lines() if line.startswith("The seed of this run is ")]
    assert len(set(seeds)) == 2


# model_fn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, missing", [
    (TRAIN, "loss"), (TRAIN, "train_op"), (EVAL, "loss"), (INFER, "predictions"),
])
def test_what_a_mode_needs_and_model_fn_does_not_give(tmp_path, mode, missing):
    broken = False

    def model_fn(features, labels, mode):
        ops = network()(features, labels, mode)
        given = {"predictions": ops.predictions, "loss": ops.loss, "train_op": ops.train_op}
        if broken:
            given[missing] = None
        return mc.ModelFnOps(mode, **given)

    def call():
        estimator = estimator_in(tmp_path, model_fn)
        if mode == TRAIN:
            estimator.fit(X, Y, steps=1)
        elif mode == EVAL:
            estimator.evaluate(X, Y)
        else:
            estimator.predict(X)

    if mode != TRAIN:
        estimator_in(tmp_path, model_fn).fit(X, Y, steps=1)
    broken = True
    with pytest.raises(ValueError, match=rf"`{missing}` is missing.*{mode}"):
        call()
    broken = False
    call()


@pytest.mark.parametrize("mode", [EVAL, INFER])
def test_model_fn_returns_ops_of_another_mode(tmp_path, mode):
    def model_fn(features, labels):
        ops = network()(features, labels, TRAIN)
        return mc.ModelFnOps(mode, ops.predictions, ops.loss, ops.train_op)

    with pytest.raises(ValueError, match=rf"mode 'train' that it was called with, got '{mode}'"):
        estimator_in(tmp_path, model_fn).fit(X, Y, steps=1)


def test_a_train_op_of_another_graph(tmp_path, loss):
    def model_fn(features, labels, mode):
        ops = network()(features, labels, mode)
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
        return mc.ModelFnOps(mode, ops.predictions, ops.loss, train_op)

    with pytest.raises(ValueError, match=r"'softmax_cross_entropy'.*belongs to another graph"):
        estimator_in(tmp_path, model_fn).fit(X, Y, steps=1)


@pytest.mark.parametrize("result, words", [
    (None, "must be ModelFnOps.*got None"),
    ({"loss": 1}, "must be ModelFnOps.*dict"),
])
def test_model_fn_returns_something_else(tmp_path, result, words):
    with pytest.raises(TypeError, match=words):
        estimator_in(tmp_path, lambda features, labels, mode: result).fit(X, Y, steps=1)


def test_what_model_fn_ops_holds_is_checked():
    x = mc.Graph().placeholder("x", (None, 3), np.float32)
    with pytest.raises(TypeError, match=r"predictions\['classes'\].* must be a Tensor.*array"):
        mc.ModelFnOps(INFER, predictions={"classes": np.zeros(3)})
    with pytest.raises(TypeError, match="`loss` must be a scalar Tensor, got"):
        mc.ModelFnOps(EVAL, loss=x)
    with pytest.raises(ValueError, match=r"prediction 'loss' must have a row .* the shape \(\)"):
        mc.ModelFnOps(INFER, {"loss": mc.losses.softmax_cross_entropy(mc.softmax(x), x)})
    with pytest.raises(ValueError, match=r"`mode` must be one of 'train', .* got 'training'"):
        mc.ModelFnOps("training", predictions={"x": x})
    onehot = mc.losses.softmax_cross_entropy(mc.softmax(x), x)
    with pytest.raises(TypeError, match="`train_op` must be what optimize_loss returns"):
        mc.ModelFnOps(TRAIN, loss=onehot, train_op=onehot)


def test_model_fn_may_return_a_tuple(tmp_path):
    def as_a_tuple(features, labels, mode):
        ops = network()(features, labels, mode)
        return ops.predictions, ops.loss, ops.train_op

    results = [
        estimator_in(tmp_path / name, model_fn).fit(X, Y, steps=2).evaluate(X, Y)
        for name, model_fn in (("ops", network()), ("tuple", as_a_tuple))
    ]
    assert results[0] == results[1]


def test_model_fn_gets_the_arguments_that_it_names(tmp_path):
    seen = {}

    def all_of_them(features, labels, mode, params, config):
        seen["named"] = params, config
        return network(params["units"])(features, labels, mode)

    def any_of_them(**arguments):
        seen["any"] = set(arguments)
        return network()(arguments["features"], arguments["labels"], arguments["mode"])

    def without_labels(mode, features):
        seen["few"] = mode
        return mc.ModelFnOps(mode, predictions=mc.layers.dense(features, 2))

    config, params = mc.RunConfig(seed=1), {"units": 5}
    estimator = mc.Estimator(all_of_them, tmp_path / "a", params=params, config=config)
    estimator.fit(X, Y, steps=1)
    assert seen["named"] == (params, config)
    assert estimator.get_variable_value("hidden/bias").shape == (5,)
    estimator_in(tmp_path / "b", any_of_them).fit(X, Y, steps=1)
    assert seen["any"] == {"features", "labels", "mode", "params", "config"}
    with pytest.raises(ValueError, match="`loss` is missing"):
        estimator_in(tmp_path / "c", without_labels).fit(X, Y, steps=1)


def test_model_fn_is_traced_once_for_a_mode_of_a_run_and_of_a_checkpoint(tmp_path):
    calls = []
    estimator = estimator_in(tmp_path, network(calls=calls))
    for _ in range(2):
        calls.clear()
        monitor = mc.hooks.ValidationMonitor(X, Y, every_n_steps=1)
        estimator.fit(X, Y, steps=3, batch_size=20, monitors=[monitor])
        assert calls == [TRAIN, EVAL]
        estimator.evaluate(X, Y, batch_size=15)
        estimator.evaluate(input_fn=batches(0, 1))
        list(estimator.predict(X, batch_size=7))
        estimator.predict(X[:1], as_iterable=False)
        assert calls == [TRAIN, EVAL, EVAL, INFER]
    estimator.predict(np.repeat(X, 2, axis=0)[::2])
    assert len(calls) == 4


def test_predict_does_not_read_the_checkpoint_again(tmp_path, lines):
    estimator_in(tmp_path).fit(X, Y, steps=1)
    estimator = estimator_in(tmp_path)
    for _ in range(3):
        list(estimator.predict(X))
        estimator.evaluate(X, Y)
    assert sum(line.startswith("Restored model from") for line in lines()) == 1


def test_a_model_fn_that_fails_leaves_the_estimator_usable(tmp_path):
    fails = True

    def model_fn(features, labels, mode):
        if fails:
            if mode == TRAIN:  # a shape unlike that of the later layer of this name
                mc.layers.dense(features, 7, name="hidden")
            raise RuntimeError("not yet")
        return network()(features, labels, mode)

    estimator = estimator_in(tmp_path, model_fn)
    with pytest.raises(RuntimeError, match="not yet"):
        estimator.fit(X, Y, steps=2)
    fails = False
    estimator.fit(X, Y, steps=2)
    expected = estimator_in(tmp_path / "fresh").fit(X, Y, steps=2)
    assert_same_weights(weights_of(estimator), weights_of(expected))
    fails = True
    with pytest.raises(RuntimeError, match="not yet"):
        estimator.evaluate(X, Y)
    fails = False
    assert estimator.evaluate(X, Y) == expected.evaluate(X, Y)


def test_a_mode_with_other_layers_is_an_error(tmp_path):
    def model_fn(features, labels, mode):
        return network(extra=mode == EVAL)(features, labels, mode)

    estimator = estimator_in(tmp_path, model_fn).fit(X, Y, steps=1)
    for each in (estimator, estimator_in(tmp_path, model_fn)):
        with pytest.raises(mc.CheckpointError, match=r"extra/.*has nothing of this name.*same lay"):
            each.evaluate(X, Y)
    monitor = mc.hooks.ValidationMonitor(X, Y)
    with pytest.raises(ValueError, match=r"'eval' has parameters.*extra/bias, extra/kernel.*same"):
        estimator_in(tmp_path / "run", model_fn).fit(X, Y, steps=1, monitors=[monitor])


def test_a_hook_that_fails_sets_back_to_the_last_checkpoint(tmp_path):
    class Fails(mc.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == 5:
                raise RuntimeError("no more")

    estimator = estimator_in(tmp_path, save_checkpoints_steps=3)
    with pytest.raises(RuntimeError, match="no more"):
        estimator.fit(X, Y, steps=9, batch_size=10, monitors=[Fails()])
    assert estimator.evaluate(X, Y)["global_step"] == 4
    estimator.fit(X, Y, max_steps=9, batch_size=10)
    expected = estimator_in(tmp_path / "fresh").fit(X, Y, steps=9, batch_size=10)
    assert_same_weights(weights_of(estimator), weights_of(expected))


# The data -----------------------------------------------------------------------------------------


BAD_DATA = [
    (X, Y[:3], ValueError, ["x has 50", "y has 3"]),
    (X[:0], Y[:0], ValueError, ["`x` has no rows"]),
    ("images", Y, TypeError, ["`x` must be an array of numbers", "'images'"]),
    (["a"] * ROWS, Y, TypeError, ["`x` must be an array of numbers"]),
    (X, ["a"] * ROWS, TypeError, ["`y` must be an array of numbers"]),
    ([None] * ROWS, Y, TypeError, ["`x` must be an array of numbers"]),
    (X, [None] * ROWS, TypeError, ["`y` must be an array of numbers"]),
    (X.astype(object), Y, TypeError, ["`x` must be an array of numbers", "object"]),
    (None, Y, ValueError, ["no data", "`x`", "input_fn"]),
    (None, None, ValueError, ["no data", "`x`", "input_fn"]),
    (X, None, (TypeError, ValueError), []),
    (3.0, Y, TypeError, ["`x` must be an array", "3.0"]),
    ({}, Y, ValueError, ["`x` must not be an empty dict"]),
    ({"a": X, "b": X[:4]}, Y, ValueError, ["x['a'] has 50", "x['b'] has 4"]),
    (X, Y.astype(float), TypeError, ["one_hot", "integers", "astype(int)"]),
    (X, Y[:, None], ValueError, ["softmax_cross_entropy", "(None, 1, 3)", "(None, 3)"]),
    ((X * 255).astype(np.uint8), Y, TypeError, ["hidden", "float32", "uint8", "/ 255"]),
]


@pytest.mark.parametrize("case", range(len(BAD_DATA)))
def test_bad_data_is_refused_before_any_step(tmp_path, case):
    x, y, error, words = BAD_DATA[case]
    estimator = estimator_in(tmp_path)
    with pytest.raises(error) as caught:
        estimator.fit(x, y, steps=2, batch_size=10)
    for word in words:
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    estimator.fit(X, Y, steps=2, batch_size=10)  # and the estimator still works
    expected = estimator_in(tmp_path / "fresh").fit(X, Y, steps=2, batch_size=10)
    assert_same_weights(weights_of(estimator), weights_of(expected))


@pytest.mark.parametrize("value", [3, -1])
def test_a_bad_label_is_refused_before_any_step_by_its_row_in_the_data(tmp_path, value):
    y = Y.copy()
    y[37] = value  # after shuffling it would be in one of the first five batches
    with pytest.raises(ValueError, match=rf"row 37 is {value}, outside the classes 0 to 2"):
        estimator_in(tmp_path).fit(X, y, steps=20, batch_size=10)
    assert list(tmp_path.iterdir()) == []


def test_other_types_and_layouts_of_the_same_numbers(tmp_path):
    estimator = estimator_in(tmp_path).fit(X, Y, steps=2, batch_size=10)
    expected = weights_of(estimator), estimator.predict(X, as_iterable=False)["probabilities"]
    forms = [
        X.astype(np.float64), X.astype(">f4"), np.asfortranarray(X), X.tolist(),
        np.repeat(X, 2, axis=1)[:, ::2],
    ]
    for number, x in enumerate(forms):
        other = estimator_in(tmp_path / str(number)).fit(x, Y.tolist(), steps=2, batch_size=10)
        assert_same_weights(weights_of(other), expected[0])
        probabilities = other.predict(x, as_iterable=False)["probabilities"]
        assert_same_bits(probabilities, expected[1])
        assert other.evaluate(x, Y.astype(np.uint8)) == estimator.evaluate(X, Y)


def test_the_users_arrays_stay_as_they_are(tmp_path):
    x, y = X.copy(), Y.copy()
    x.flags.writeable = y.flags.writeable = False
    estimator = estimator_in(tmp_path).fit(x, y, steps=6, batch_size=10)
    estimator.evaluate(x, y)
    list(estimator.predict(x))
    assert_same_bits(x, X)


def two_features(features, labels, mode):
    """A model_fn of dicts; `row` and `row_label` are the same number in every row."""
    h = mc.layers.dense(mc.reshape(features["image"], [-1, 4]), 3, name="dense")
    loss = train_op = None
    if mode != INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels["class"], 3), h)
        mc.reshape(labels["row_label"], [-1], name="row_label_seen")
    mc.reshape(features["row"], [-1], name="row_seen")
    if mode == TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
    return mc.ModelFnOps(mode, {"classes": mc.argmax(h, 1), "scores": h}, loss, train_op)


def test_features_and_labels_by_name(tmp_path):
    pairs = []

    class Look(mc.hooks.SessionRunHook):
        def before_run(self, run_context):
            return mc.hooks.SessionRunArgs(["row_seen", "row_label_seen"])

        def after_run(self, run_context, run_values):
            pairs.append(np.array(run_values.results))

    x = {"image": X.reshape(ROWS, 2, 2), "row": np.arange(ROWS)}
    y = {"class": Y, "row_label": np.arange(ROWS)}
    estimator = estimator_in(tmp_path, two_features)
    estimator.fit(x, y, steps=10, batch_size=7, monitors=[Look()])
    assert all((row == label).all() for row, label in pairs)  # shuffled together
    metrics = {
        "accuracy": mc.MetricSpec(mc.metrics.accuracy, "classes", "class"),
        "weighted": mc.MetricSpec(mc.metrics.accuracy, "classes", "class", "row"),
    }
    result = estimator.evaluate(x, y, metrics=metrics, batch_size=9)
    right = estimator.predict(x, as_iterable=False)["classes"] == Y
    assert result["accuracy"] == pytest.approx(right.mean())
    assert result["weighted"] == pytest.approx((right * np.arange(ROWS)).sum() / 1225)
    with pytest.raises(ValueError, match=r"`label_key` .* one of 'class', 'row_label', got None"):
        estimator.evaluate(x, y, metrics=ACCURACY)
    with pytest.raises(ValueError, match=r"`weight_key` .* one of 'image', 'row', got 'rows'"):
        spec = mc.MetricSpec(mc.metrics.accuracy, "classes", "class", "rows")
        estimator.evaluate(x, y, metrics={"weighted": spec})


def test_input_fn_yields_batches(tmp_path, lines):
    estimator = estimator_in(tmp_path).fit(input_fn=batches(0, 1, 2))
    assert "Input iterator is exhausted." in lines()
    assert lines()[-1].startswith("Loss for final step: ")
    assert estimator.evaluate(X, Y)["global_step"] == 3
    assert lines()[-2] == "Input iterator is exhausted."
    estimator.evaluate(X, Y, batch_size=30, steps=len(X) // 30)
    assert lines()[-2].startswith("Eval steps [0,")
    estimator.fit(input_fn=lambda: [(X[:10], Y[:10])] * 5, steps=2)
    assert estimator.evaluate(input_fn=batches(0, 1, 2, 3, 4)) == estimator.evaluate(X, Y)
    assert estimator.evaluate(X, Y)["global_step"] == 5


def test_skipping_batches_is_logged(caplog):
    caplog.set_level(logging.INFO, "minicnn")
    feed = feeding.FunctionFeed(lambda: itertools.repeat((X[:10], Y[:10])))
    feed.seek({"batches": 20}, progress.Display().part)
    assert feed.place() == {"epoch": 0, "batches": 20}
    (said,) = caplog.messages
    assert said.startswith("Skipping 20 batches of `input_fn`, which earlier steps have used.")
    caplog.clear()
    feed.seek({"batches": 0}, progress.Display().part)
    assert caplog.records == []


def test_skipping_batches_can_be_interrupted():
    def input_fn():
        for number in itertools.count():
            if number == 100:
                raise KeyboardInterrupt
            yield X[:10], Y[:10]

    with pytest.raises(KeyboardInterrupt):
        feeding.FunctionFeed(input_fn).seek({"batches": 10**12}, progress.Display().part)


class Restless(mc.optimizers.Optimizer):
    """An optimizer whose state becomes NaN while the weights stay finite."""

    slots = ("count",)

    def update(self, w, g, state, rate):
        w -= rate * g
        state[0][...] = np.nan if self.iterations == 2 else 0


def test_no_checkpoint_is_written_that_would_count_as_damaged(tmp_path, caplog):
    estimator = estimator_in(tmp_path, network(optimizer=Restless), save_checkpoints_steps=1)
    with pytest.raises(mc.NanLossError, match=r"/count holds NaN.* lower the learning rate"):
        estimator.fit(X, Y, steps=3)
    assert saved_steps(tmp_path) == [1, 2]
    assert estimator.evaluate(X, Y)["global_step"] == 2


@pytest.mark.parametrize("every", [1, 2, 4, 100])
def test_an_exhausted_input_fn_starts_again_whenever_checkpoints_were_written(tmp_path, every):
    estimator = estimator_in(tmp_path, save_checkpoints_steps=every)
    for steps in (5, 10):
        estimator.fit(input_fn=batches(0, 1, 2, 3, 4))
        assert estimator.evaluate(X, Y)["global_step"] == steps
    fresh = estimator_in(tmp_path, save_checkpoints_steps=every)
    fresh.fit(input_fn=batches(0, 1, 2, 3, 4))
    assert fresh.evaluate(X, Y)["global_step"] == 15


@pytest.mark.parametrize("input_fn, error, words", [
    (lambda: iter(()), ValueError, "there is no batch"),
    (lambda: (X, Y), TypeError, "a function of batches must return an iterable.*`yield`"),
    (lambda: X, TypeError, "a function of batches must return an iterable"),
    (lambda: None, TypeError, "a function of batches must return an iterable.*None"),
    (lambda: [(X[:5], Y[:4])], ValueError, "x has 5, y has 4"),
    (lambda: [("a", Y)], TypeError, "`features` must be an array of numbers"),
    (lambda: [None], TypeError, "`features` must be an array of numbers, got None"),
    (X, TypeError, "`input_fn` must be a function without arguments"),
])
def test_a_bad_input_fn(tmp_path, input_fn, error, words):
    with pytest.raises(error, match=words):
        estimator_in(tmp_path).fit(input_fn=input_fn, steps=1)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_another_form(tmp_path):
    def input_fn():
        yield X[:10], Y[:10]
        yield X[:10, :3], Y[:10]

    with pytest.raises(ValueError, match=r"`features` must be.*\(4,\) fl.*got \(3,\)"):
        estimator_in(tmp_path).fit(input_fn=input_fn, steps=2)


# evaluate -----------------------------------------------------------------------------------------


def test_evaluate_returns_python_numbers(trained):
    metrics = ACCURACY | {
        "mean": mc.MetricSpec(lambda labels, predictions: np.float32(0.5), "classes"),
        "matrix": mc.MetricSpec(mc.metrics.confusion_matrix, "classes"),
    }
    result = trained.evaluate(X, Y, metrics=metrics)
    assert set(result) == {"loss", "global_step", "accuracy", "mean", "matrix"}
    assert [type(result[key]) for key in ("loss", "accuracy", "mean")] == [float] * 3
    assert type(result["global_step"]) is int
    assert result["global_step"] == 3
    assert result["matrix"].sum() == ROWS


@pytest.mark.parametrize("batch_size", [None, 1, 7, 49, 50, 1000])
def test_each_row_weighs_the_same(trained, batch_size):
    expected = naive.softmax_cross_entropy(np.eye(3)[Y], logits_by_hand(weights_of(trained)))
    result = trained.evaluate(X, Y, batch_size=batch_size, metrics=ACCURACY)
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    right = logits_by_hand(weights_of(trained)).argmax(axis=1) == Y
    assert result["accuracy"] == pytest.approx(right.mean(), rel=1e-12)


def test_evaluate_some_batches_in_order(trained):
    part = trained.evaluate(X, Y, batch_size=7, steps=3)
    assert part["loss"] == pytest.approx(trained.evaluate(X[:21], Y[:21])["loss"], rel=1e-6)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        trained.evaluate(X, Y, steps=0)


def test_evaluate_does_not_train(trained):
    before = weights_of(trained)
    trained.evaluate(X, Y)
    assert_same_weights(weights_of(trained), before)


def test_evaluate_needs_data_and_good_labels(trained):
    with pytest.raises(ValueError, match="no data: give `x`"):
        trained.evaluate()
    with pytest.raises(ValueError, match="x has 50, y has 3"):
        trained.evaluate(X, Y[:3])
    y = Y.copy()
    y[37] = 3
    for batch_size in (50, 10):
        with pytest.raises(ValueError, match="row 37 is 3, outside the classes 0 to 2"):
            trained.evaluate(X, y, batch_size=batch_size)


def test_metric_keys(trained):
    accuracy = mc.metrics.accuracy
    with pytest.raises(ValueError, match=r"`prediction_key` .* 'classes', 'prob.*, got 'class'"):
        trained.evaluate(X, Y, metrics={"a": mc.MetricSpec(accuracy, "class")})
    with pytest.raises(ValueError, match=r"`prediction_key` .* 'classes', 'prob.*, got None"):
        trained.evaluate(X, Y, metrics={"a": mc.MetricSpec(accuracy)})
    with pytest.raises(ValueError, match="`label_key` must be one of None, got 'class'"):
        trained.evaluate(X, Y, metrics={"a": mc.MetricSpec(accuracy, "classes", "class")})
    with pytest.raises(TypeError, match=r"`metrics\['a'\]` must be a MetricSpec"):
        trained.evaluate(X, Y, metrics={"a": accuracy})


@pytest.mark.parametrize("metric, words", [
    (lambda labels, targets: 1, "predictions.*got one that takes labels, targets"),
    (lambda labels, weights: 1, "weights, got one that takes labels, weights; rename"),
    (lambda scores, labels: 1, "got one that takes scores, labels"),
    (lambda labels, predictions: None, "must be a number or an array.*got None"),
    (lambda labels, predictions: {}, "must be a number or an array.*got {}"),
    (lambda labels, predictions: 1j, "must be a number or an array.*got 1j"),
])
def test_an_invalid_metric_is_named(trained, metric, words):
    with pytest.raises((TypeError, ValueError), match=f"`odd`.*{words}"):
        trained.evaluate(X, Y, metrics={"odd": mc.MetricSpec(metric, "classes")})


@pytest.mark.parametrize("metric", [
    lambda predictions, targets: (predictions == targets).mean(),
    lambda truth, guesses: (truth == guesses).mean(), lambda labels, guesses: labels.sum() * 0 + 1,
    lambda *both: len(both) / 2,
])
def test_names_that_a_metric_may_use(metric):
    spec = mc.MetricSpec(metric)
    assert spec.compute(np.array([1, 2]), np.array([1, 2]), None) == 1


@pytest.mark.parametrize("name", ["loss", "global_step"])
def test_names_of_metrics_that_evaluate_needs_itself(trained, name):
    metrics = {name: mc.MetricSpec(mc.metrics.accuracy, "classes")}
    with pytest.raises(ValueError, match=f"other names than evaluate's own, got '{name}'"):
        trained.evaluate(X, Y, metrics=metrics)


def test_an_input_fn_may_use_its_arrays_again(trained):
    def input_fn():
        x, y = np.empty_like(X[:10]), np.empty_like(Y[:10])
        for rows in range(0, ROWS, 10):
            x[...], y[...] = X[rows : rows + 10], Y[rows : rows + 10]
            yield x, y

    metrics = {"labels": mc.MetricSpec(lambda labels, predictions: labels, "classes")}
    assert_same_bits(trained.evaluate(input_fn=input_fn, metrics=metrics)["labels"], Y)


def test_a_metric_sees_all_rows_at_once(trained):
    seen = []

    def metric(labels, predictions):
        seen.append((labels, predictions))
        return 0

    trained.evaluate(X, Y, batch_size=7, metrics={"m": mc.MetricSpec(metric, "probabilities")})
    (labels, predictions), = seen
    assert_same_bits(labels, Y)
    assert_same_bits(predictions, trained.predict(X, as_iterable=False)["probabilities"])


# predict ------------------------------------------------------------------------------------------


def test_predict_gives_a_dict_for_each_row_or_all_rows_in_arrays(trained):
    rows = trained.predict(X, batch_size=7)
    assert iter(rows) is rows
    rows = list(rows)
    assert len(rows) == ROWS
    assert all(set(row) == {"classes", "probabilities"} for row in rows)
    assert rows[0]["probabilities"].shape == (3,)
    assert type(rows[0]["classes"]) is int
    whole = trained.predict(X, as_iterable=False)
    np.testing.assert_array_equal([row["classes"] for row in rows], whole["classes"])
    np.testing.assert_array_equal([row["probabilities"] for row in rows], whole["probabilities"])
    expected = naive.softmax(logits_by_hand(weights_of(trained)))
    np.testing.assert_allclose(whole["probabilities"], expected, atol=1e-5)


def test_predict_from_an_input_fn(trained):
    whole = trained.predict(X, as_iterable=False)["classes"]
    for input_fn in (batches(0, 1, 2, 3, 4), lambda: (X[i : i + 5] for i in range(0, ROWS, 5))):
        rows = list(trained.predict(input_fn=input_fn))
        np.testing.assert_array_equal([row["classes"] for row in rows], whole)


def test_a_single_tensor_as_prediction(tmp_path):
    def model_fn(features, labels, mode):
        ops = network()(features, labels, mode)
        return mc.ModelFnOps(mode, ops.predictions["probabilities"], ops.loss, ops.train_op)

    estimator = estimator_in(tmp_path, model_fn).fit(X, Y, steps=1)
    whole = estimator.predict(X, as_iterable=False)
    assert whole.shape == (ROWS, 3)
    np.testing.assert_array_equal(list(estimator.predict(X)), whole)
    spec = mc.MetricSpec(lambda labels, predictions: predictions.shape[1])
    assert estimator.evaluate(X, Y, metrics={"classes": spec})["classes"] == 3


def test_predictions_that_were_kept_do_not_change(trained):
    rows = trained.predict(X, batch_size=10)
    first = next(rows)
    copy = {name: np.copy(value) for name, value in first.items()}
    list(rows)
    trained.fit(X, Y, steps=3)
    for name, value in copy.items():
        assert_same_bits(np.asarray(first[name]), value)


def test_bad_features_are_refused_when_predict_is_called(trained):
    with pytest.raises((ValueError, mc.CheckpointError), match=r"\(None, 3\)|kernel.*\(3, 8\)"):
        trained.predict(X[:, :3])
    with pytest.raises(ValueError, match="`x` has no rows"):
        trained.predict(X[:0])
    with pytest.raises(ValueError, match="no data"):
        trained.predict()
    assert len(list(trained.predict(X))) == ROWS


def test_two_threads_predict_at_once(trained):
    expected = trained.predict(X, as_iterable=False)["probabilities"]
    results = []

    def run():
        for _ in range(5):
            results.append(trained.predict(X, batch_size=10, as_iterable=False)["probabilities"])

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 10
    assert_same_bits(expected, *results)


def test_fit_in_another_thread(tmp_path):  # only the main thread may handle Ctrl-C
    estimator = estimator_in(tmp_path)
    thread = threading.Thread(target=estimator.fit, args=(X, Y), kwargs={"steps": 2})
    thread.start()
    thread.join()
    assert estimator.evaluate(X, Y)["global_step"] == 2


# The model's folder -------------------------------------------------------------------------------


def test_no_checkpoint_yet(tmp_path):
    folder = tmp_path / "model"
    estimator = estimator_in(folder)
    for call in (
        lambda: estimator.evaluate(X, Y), lambda: estimator.predict(X),
        estimator.get_variable_names, lambda: estimator.get_variable_value("hidden/kernel"),
    ):
        with pytest.raises(mc.CheckpointError, match=rf"no checkpoint in {re.escape(str(folder))}"):
            call()


def test_a_checkpoint_that_comes_later_is_seen(tmp_path):
    estimator = estimator_in(tmp_path)
    with pytest.raises(mc.CheckpointError, match="no checkpoint"):
        estimator.evaluate(X, Y)
    estimator_in(tmp_path).fit(X, Y, steps=1)
    assert estimator.evaluate(X, Y)["global_step"] == 1


def test_two_threads_that_make_the_first_call_read_one_checkpoint(trained, tmp_path, monkeypatch):
    """Otherwise, during a fit elsewhere, the second could read a later one."""
    load, waiting, calls = checkpoints.load, threading.Event(), []

    def slow(path, **options):
        calls.append(load(path, **options))
        waiting.wait(0.3)
        return calls[-1]

    monkeypatch.setattr(checkpoints, "load", slow)
    estimator = estimator_in(tmp_path)
    threads = [threading.Thread(target=estimator.evaluate, args=(X, Y)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


def test_it_shows_its_model_dir(tmp_path):
    assert repr(estimator_in(tmp_path)) == f"Estimator(model_dir={str(tmp_path)!r})"
    assert "0x" not in repr(mc.RunConfig())  # an address


@pytest.mark.parametrize("use", [
    estimator_in,
    lambda path: mc.Sequential([mc.layers.Dense(2)]).fit(X, Y, model_dir=path, verbose=False),
])
def test_a_model_dir_that_is_a_file(tmp_path, use):
    path = tmp_path / "model.txt"
    path.touch()
    with pytest.raises(ValueError, match=r"`model_dir` must be a folder.*model\.txt"):
        use(path)


def test_a_relative_model_dir_stays_where_it_is(tmp_path, monkeypatch):
    class Leave(mc.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            monkeypatch.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    estimator = estimator_in("model", save_checkpoints_steps=1)
    estimator.fit(X, Y, steps=2, monitors=[Leave()])
    assert saved_steps(tmp_path / "model") == [1, 2]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert estimator.evaluate(X, Y)["global_step"] == 2


def two_columns(features, mode):
    return mc.ModelFnOps(mode, mc.layers.dense(features, 2))


def test_a_pickled_estimator_begins_with_the_checkpoint(trained, tmp_path):
    copied = pickle.loads(pickle.dumps(mc.Estimator(two_columns, tmp_path, {"a": 1})))
    assert (copied.model_dir, copied._params) == (tmp_path, {"a": 1})
    assert copied.get_variable_names() == trained.get_variable_names()
    assert copy.deepcopy(trained).evaluate(X, Y) == trained.evaluate(X, Y)


def test_every_line_of_the_evaluations_is_json(trained, tmp_path):
    path = tmp_path / "evaluations.jsonl"
    trained.evaluate(X, Y, metrics={"n": mc.MetricSpec(lambda y, p: math.nan, "classes")})
    with path.open("a") as file:
        file.write('{"global_step": 3, "lo')  # a disk was full
    for _ in range(2):
        trained.evaluate(X, Y)
    first, half, *rest = path.read_text().splitlines()
    assert json.loads(first)["n"] is None
    assert half == '{"global_step": 3, "lo'
    assert [json.loads(line)["global_step"] for line in rest] == [3, 3]


def temporary_folder(caplog):
    """Return the folder named in the warning."""
    (text,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    return Path(re.search(r"the temporary folder (\S+),", text)[1])


def test_without_model_dir_a_temporary_folder_goes_with_its_estimator(caplog):
    estimator = mc.Estimator(network())
    folder = temporary_folder(caplog)
    estimator.fit(X, Y, steps=1).evaluate(X, Y)
    assert len(list(estimator.predict(X))) == ROWS
    assert saved_steps(folder) == [1]
    process = os.fork()
    if not process:
        estimator = None
        gc.collect()
        os._exit(not folder.exists())  # it belongs to the parent
    assert os.waitpid(process, 0)[1] == 0
    del estimator
    gc.collect()
    assert not folder.exists()


@pytest.mark.parametrize("use", [
    lambda estimator: estimator.model_dir, pickle.dumps, copy.copy, copy.deepcopy,
])
def test_a_temporary_folder_that_somebody_knows_is_kept(caplog, use):
    estimator = mc.Estimator(two_columns)
    folder = temporary_folder(caplog)
    use(estimator)
    del estimator
    gc.collect()
    assert folder.exists()
    folder.rmdir()


def test_a_temporary_folder_goes_at_the_end_of_the_program():
    program = "import minicnn as mc; e = mc.Estimator(print); print(e._models.folder)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert not Path(run.stdout.strip()).exists()


def test_what_an_estimator_cannot_be_made_of(tmp_path):
    with pytest.raises(TypeError, match=r"`model_fn` must be a function, or a Seq.*, got None"):
        mc.Estimator(None, tmp_path)
    with pytest.raises(TypeError, match="`config` must be a RunConfig"):
        mc.Estimator(network(), tmp_path, config={"seed": 1})
    with pytest.raises(TypeError, match="`monitors` must be SessionRunHook"):
        mc.Estimator(network(), tmp_path).fit(X, Y, steps=1, monitors=[3])


def test_another_estimator_finds_the_model(trained, tmp_path):
    other = estimator_in(str(tmp_path))  # a str works like a Path
    assert_same_weights(weights_of(other), weights_of(trained))
    first, second = (e.predict(X, as_iterable=False) for e in (trained, other))
    assert_same_bits(first["probabilities"], second["probabilities"])
    assert other.evaluate(X, Y) == trained.evaluate(X, Y)
    assert other.fit(X, Y, steps=1).evaluate(X, Y)["global_step"] == 4


def test_variables(trained):
    assert trained.get_variable_names() == [
        "hidden/bias", "hidden/kernel", "logits/bias", "logits/kernel",
    ]
    kernel = trained.get_variable_value("hidden/kernel")
    kernel[...] = 0  # a copy
    assert trained.get_variable_value("hidden/kernel").any()
    with pytest.raises(ValueError, match=r"one of 'hidden/bias', .* got 'hidden/weights'"):
        trained.get_variable_value("hidden/weights")


@pytest.mark.parametrize("config, steps", [
    ({}, [1, 10]),  # every 600 seconds
    ({"save_checkpoints_steps": 4}, [1, 5, 9, 10]),
    ({"save_checkpoints_steps": 3}, [1, 4, 7, 10]),
    ({"save_checkpoints_steps": 1}, [6, 7, 8, 9, 10]),
    ({"save_checkpoints_secs": 0}, [6, 7, 8, 9, 10]),
    ({"save_checkpoints_steps": 1, "keep_checkpoint_max": 2}, [9, 10]),
    ({"save_checkpoints_steps": 1, "keep_checkpoint_max": 1}, [10]),
    ({"save_checkpoints_steps": 1, "keep_checkpoint_max": 50}, list(range(1, 11))),
])
def test_when_checkpoints_are_written_and_how_many_are_kept(tmp_path, config, steps):
    estimator_in(tmp_path, **config).fit(X, Y, steps=10, batch_size=10)
    assert saved_steps(tmp_path) == steps
    index = json.loads((tmp_path / "checkpoint.json").read_text())
    assert index == {
        "latest": "model.ckpt-10.npz", "all": [f"model.ckpt-{step}.npz" for step in steps],
    }


def test_keeping_counts_over_calls_of_fit(tmp_path):
    estimator = estimator_in(tmp_path, keep_checkpoint_max=3)
    for _ in range(4):
        estimator.fit(X, Y, steps=2)
    assert saved_steps(tmp_path) == [6, 7, 8]
    estimator_in(tmp_path, keep_checkpoint_max=3).fit(X, Y, steps=95)
    assert saved_steps(tmp_path) == [8, 9, 103]  # sorted by number, not by name


def test_the_index_says_which_checkpoint_counts(tmp_path):
    estimator_in(tmp_path, save_checkpoints_steps=1).fit(X, Y, steps=4)
    index = tmp_path / "checkpoint.json"

    def restored():
        return estimator_in(tmp_path).evaluate(X, Y)["global_step"]

    assert restored() == 4
    index.write_text(json.dumps({"latest": "model.ckpt-2.npz"}))
    assert restored() == 2
    for text in ('{"latest": "model.ckpt-9.npz"}', '{"latest": "../x"}', "[]", "{", ""):
        index.write_text(text)  # an invalid index is ignored
        assert restored() == 4
    index.unlink()
    assert restored() == 4


@pytest.mark.parametrize("change, name, shapes", [
    ({"units": 9}, "hidden/", [("(4, 9)", "(4, 8)"), ("(9,)", "(8,)")]),
    ({"extra": True}, "extra/", [("(8,)",), ("(8, 8)",)]),
    ({"hidden": False}, "logits/kernel|hidden/bias", [("(4, 3)", "(8, 3)"), ("(8,)",)]),
])
def test_a_changed_model_on_an_old_checkpoint(tmp_path, change, name, shapes):
    estimator_in(tmp_path).fit(X, Y, steps=2)
    before = contents(tmp_path)
    changed = estimator_in(tmp_path, network(**change))
    calls = [
        lambda: changed.fit(X, Y, steps=1), lambda: changed.evaluate(X, Y),
        lambda: changed.predict(X), lambda: changed.fit(X, Y, steps=1),
    ]
    for call in calls:
        with pytest.raises(mc.CheckpointError, match=name) as caught:
            call()
        message = str(caught.value)
        assert any(all(shape in message for shape in pair) for pair in shapes), message
        assert str(tmp_path) in message
    assert contents(tmp_path) == before
    assert estimator_in(tmp_path).fit(X, Y, steps=1).evaluate(X, Y)["global_step"] == 3


def test_a_layer_that_is_gone_is_noticed_before_training(tmp_path):
    estimator_in(tmp_path, network(extra=True)).fit(X, Y, steps=2)
    before = contents(tmp_path)
    with pytest.raises(mc.CheckpointError, match=r"extra/bias: the model has nothing .*\(8,\)"):
        estimator_in(tmp_path).fit(X, Y, steps=1)
    assert contents(tmp_path) == before


def test_the_learning_rate_of_the_program_wins(tmp_path):
    estimator = estimator_in(tmp_path, network(rate=0.1)).fit(X, Y, steps=2)
    before = weights_of(estimator)
    frozen = estimator_in(tmp_path, network(rate=0.0)).fit(X, Y, steps=2)
    assert_same_weights(weights_of(frozen), before)


def test_a_schedule_need_not_know_more_steps_than_are_done(tmp_path):
    schedule = mc.optimizers.SGD(lambda step: [0.5, 0.25, 0.125][step])
    for _ in range(2):  # the second time there is nothing to do
        estimator_in(tmp_path, network(rate=None, optimizer=schedule)).fit(X, Y, max_steps=3)
    assert checkpoints.load(tmp_path / "model.ckpt-3.npz").meta["learning_rate"] == 0.125


def test_another_optimizer_starts_again_and_warns(tmp_path, caplog):
    estimator_in(tmp_path, network(optimizer="Momentum")).fit(X, Y, steps=2)
    estimator_in(tmp_path, network(optimizer="Adam")).fit(X, Y, steps=2)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "optimizer starts again without its state" in warning
    assert "'hidden/bias/adam_m' is only in the state or only in the model" in warning


def test_a_new_form_of_the_data_keeps_the_optimizers_state(tmp_path):
    first, second = (
        estimator_in(tmp_path / name, network(optimizer="Momentum")) for name in ("a", "b")
    )
    for labels in (Y, Y.astype(np.uint8)):  # another graph with the same parameters
        first.fit(X, labels, steps=3, batch_size=10)
    second.fit(X, Y, steps=6, batch_size=10)
    assert_same_weights(weights_of(first), weights_of(second))


# optimize_loss ------------------------------------------------------------------------------------


@pytest.fixture
def loss():
    x = mc.Graph().placeholder("x", (None, 3), np.float32)
    return mc.losses.softmax_cross_entropy(mc.softmax(x), mc.layers.dense(x, 3))


def test_the_rate_may_be_an_integer_and_may_decay(loss):
    assert mc.optimize_loss(loss, None, 1, "SGD").rate() == 1
    seen = []

    def decay(rate, step):
        seen.append((rate, step))
        return rate / 4

    train_op = mc.optimize_loss(loss, None, 2, "Adam", learning_rate_decay_fn=decay)
    assert train_op.rate() == 0.5
    assert seen == [(2, 0)]


@pytest.mark.parametrize("arguments, error, words", [
    ({"learning_rate": -0.1}, ValueError, ["`learning_rate`", "-0.1"]),
    ({"learning_rate": "fast"}, TypeError, ["`learning_rate`", "'fast'"]),
    ({"learning_rate": None}, ValueError, ["`learning_rate`", "None"]),
    ({"optimizer": "Ftrl"}, ValueError, ["`optimizer`", "'sgd'", "'momentum'", "'adam'", "'Ftrl'"]),
    ({"optimizer": 3}, TypeError, ["`optimizer`", "3"]),
    ({"clip_gradients": -1.0}, ValueError, ["`clip_gradients`", "-1"]),
    ({"clip_gradients": 0}, ValueError, ["`clip_gradients`", "0"]),
    ({"loss": 1.0}, TypeError, ["`loss`", "scalar Tensor", "1.0"]),
])
def test_arguments_of_optimize_loss(loss, arguments, error, words):
    with pytest.raises(error) as caught:
        mc.optimize_loss(**{"loss": loss, "learning_rate": 0.1, "optimizer": "SGD"} | arguments)
    for word in words:
        assert word in str(caught.value)


def test_an_optimizer_may_be_a_name_a_class_an_instance_or_a_function(loss):
    instance = mc.optimizers.SGD(0.5, momentum=0.9)
    copied = mc.optimize_loss(loss, learning_rate=0.25, optimizer=instance).optimizer
    assert (type(copied), copied.momentum, copied.rate()) == (mc.optimizers.SGD, 0.9, 0.25)
    assert instance.rate() == 0.5
    for optimizer, kind in (("momentum", mc.optimizers.SGD), ("ADAM", mc.optimizers.Adam),
                            (mc.optimizers.Adam, mc.optimizers.Adam),
                            (lambda rate: mc.optimizers.SGD(rate, 0.8), mc.optimizers.SGD)):
        train_op = mc.optimize_loss(loss, learning_rate=0.25, optimizer=optimizer)
        assert type(train_op.optimizer) is kind
        assert train_op.rate() == 0.25


def test_an_optimizer_carries_nothing_from_one_run_to_the_next(tmp_path):
    adam = mc.optimizers.Adam(0.1)
    runs = [
        estimator_in(tmp_path / name, network(rate=None, optimizer=adam)) for name in "abc"
    ]
    for run in (runs[0], runs[1], runs[2], runs[2], runs[1], runs[0]):  # in alternation, too
        run.fit(X, Y, steps=3, batch_size=10)
    first, second, third = map(weights_of, runs)
    assert_same_weights(first, second)
    assert_same_weights(first, third)
    assert (adam.iterations, adam.state_dict()) == (0, {"iterations": 0})


def test_clipping_and_the_choice_of_variables(tmp_path):
    def model_fn(features, labels, mode):
        ops = network()(features, labels, mode)
        train_op = None
        if mode == TRAIN:
            train_op = mc.optimize_loss(
                ops.loss, learning_rate=1.0, clip_gradients=0.01,
                variables=["hidden/kernel", "logits/bias"],
            )
        return mc.ModelFnOps(mode, ops.predictions, ops.loss, train_op)

    estimator = estimator_in(tmp_path, model_fn).fit(X, Y, steps=1)
    before = weights_of(estimator)
    after = weights_of(estimator.fit(X, Y, steps=1))
    moved = {name: np.sum((after[name] - before[name]) ** 2) for name in before}
    assert {name for name in moved if moved[name] > 0} == {"hidden/kernel", "logits/bias"}
    assert sum(moved.values()) ** 0.5 == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("arguments, error, name", [
    ({"seed": -1}, ValueError, "seed"),
    ({"seed": 1.5}, TypeError, "seed"),
    ({"save_checkpoints_steps": 0}, ValueError, "save_checkpoints_steps"),
    ({"save_checkpoints_secs": -1}, ValueError, "save_checkpoints_secs"),
    ({"keep_checkpoint_max": 0}, ValueError, "keep_checkpoint_max"),
    ({"log_step_count_steps": 0}, ValueError, "log_step_count_steps"),
    ({"save_checkpoints_secs": 9, "save_checkpoints_steps": 9}, ValueError,
     "save_checkpoints_steps"),
])
def test_run_config_is_checked(arguments, error, name):
    with pytest.raises(error, match=f"`{name}`"):
        mc.RunConfig(**arguments)


def test_one_interval_replaces_the_other():
    assert mc.RunConfig().save_checkpoints_secs == 600
    assert mc.RunConfig().save_checkpoints_steps is None
    config = mc.RunConfig(save_checkpoints_steps=7)
    assert (config.save_checkpoints_secs, config.save_checkpoints_steps) == (None, 7)


# Log lines ----------------------------------------------------------------------------------------

NUMBER = r"\d+(\.\d+)?(e[+-]\d+)?"


def assert_lines(got, patterns):
    assert len(got) == len(patterns), got
    for line, pattern in zip(got, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


def test_the_lines_of_training(tmp_path, lines, caplog):
    folder = re.escape(str(tmp_path))
    estimator_in(tmp_path).fit(X, Y, steps=202, batch_size=10)
    assert_lines(lines(), [
        rf"loss = {NUMBER}, step = 1",
        rf"Saving checkpoints for 1 into {folder}.*",
        rf"global_step/sec: {NUMBER}",
        rf"loss = {NUMBER}, step = 101 \(\d+\.\d\d\d sec\)",
        rf"global_step/sec: {NUMBER}",
        rf"loss = {NUMBER}, step = 201 \(\d+\.\d\d\d sec\)",
        rf"Saving checkpoints for 202 into {folder}.*",
        rf"Loss for final step: {NUMBER}\.",
    ])
    assert all(record.levelno == logging.INFO for record in caplog.records)
    assert all("\n" not in line for line in lines())
    caplog.clear()
    estimator_in(tmp_path).fit(X, Y, steps=1, batch_size=10)
    assert_lines(lines(), [
        rf"Restored model from {folder}/model\.ckpt-202.*",
        rf"loss = {NUMBER}, step = 203",  # counted in total
        rf"Saving checkpoints for 203 into {folder}.*",
        rf"Loss for final step: {NUMBER}\.",
    ])


def test_the_lines_of_evaluation(trained, tmp_path, lines, caplog):
    caplog.clear()
    result = estimator_in(tmp_path).evaluate(X, Y, metrics=ACCURACY)
    accuracy, loss = f"{result['accuracy']:.6g}", f"{result['loss']:.6g}"
    assert_lines(lines(), [
        rf"Restored model from {re.escape(str(tmp_path))}/model\.ckpt-3.*",
        r"Eval steps \[0,inf\) for training step 3\.",
        r"Input iterator is exhausted\.",
        rf"Saving evaluation summary for step 3: accuracy = {accuracy}, loss = {loss}",
    ])
    caplog.clear()
    trained.evaluate(X, Y, batch_size=10, steps=2)
    assert "Eval steps [0,2) for training step 3." in lines()


def test_the_logged_loss_is_that_of_the_step(tmp_path, lines):
    estimator = estimator_in(tmp_path, network(rate=0.0))
    estimator.fit(X, Y, steps=1, batch_size=ROWS)
    last = lines()[-1]
    loss = naive.softmax_cross_entropy(np.eye(3)[Y], logits_by_hand(weights_of(estimator)))
    line = lines()[0]
    assert float(line.split(",")[0].removeprefix("loss = ")) == pytest.approx(loss, rel=1e-5)
    assert last.startswith(f"Loss for final step: {loss:.4f}")


def test_log_step_count_steps(tmp_path, lines):
    estimator_in(tmp_path, log_step_count_steps=2).fit(X, Y, steps=5)
    steps = [line.split("step = ")[1].split(" ")[0] for line in lines() if "step = " in line]
    assert steps == ["1", "3", "5"]
    assert sum(line.startswith("global_step/sec: ") for line in lines()) == 2


# NaN ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number(tmp_path, value):
    broken = np.full_like(X[:10], value)

    def input_fn():
        yield from batches(0, 1, 2, 3, 4)()
        yield broken, Y[:10]
        yield from batches(0, 1)()

    estimator = estimator_in(tmp_path, save_checkpoints_steps=1)
    with pytest.raises(mc.NanLossError, match=r"the loss is .* at step 6; lower the learning rate"):
        estimator.fit(input_fn=input_fn)
    assert saved_steps(tmp_path) == [1, 2, 3, 4, 5]
    expected = estimator_in(tmp_path / "fresh").fit(input_fn=batches(0, 1, 2, 3, 4))
    for usable in (estimator, estimator_in(tmp_path)):  # in memory and in the folder
        assert_same_weights(weights_of(usable), weights_of(expected))
    assert estimator.evaluate(X, Y)["global_step"] == 5
    assert len(list(estimator.predict(X))) == ROWS
    estimator.fit(X, Y, steps=2)
    assert estimator.evaluate(X, Y)["global_step"] == 7


def test_a_loss_that_is_no_number_at_the_first_step(tmp_path):
    estimator = estimator_in(tmp_path)
    with pytest.raises(mc.NanLossError, match="at step 1"):
        estimator.fit(np.full_like(X, math.nan), Y, steps=5)
    assert saved_steps(tmp_path) == []
    estimator.fit(X, Y, steps=3, batch_size=10)
    expected = estimator_in(tmp_path / "fresh").fit(X, Y, steps=3, batch_size=10)
    assert_same_weights(weights_of(estimator), weights_of(expected))


class Ruin(mc.hooks.SessionRunHook):
    """Make weights infinite in the fourth step, whose loss is still finite."""

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == 4:
            run_context.session.parameters["hidden/kernel"].value[...] = math.inf


def test_a_last_step_that_ruins_the_weights_is_an_error(trained, tmp_path):
    before, step = weights_of(trained), trained.evaluate(X, Y)["global_step"]
    with pytest.raises(mc.NanLossError, match=r"kernel holds NaN or infinity after step 4;"):
        trained.fit(X, Y, steps=1, monitors=[Ruin()])
    assert saved_steps(tmp_path) == [1, 3]
    assert_same_weights(weights_of(trained), before)
    assert trained.evaluate(X, Y)["global_step"] == step == 3


def test_a_run_that_nan_only_ends_leaves_the_last_good_weights(tmp_path):
    estimator = estimator_in(tmp_path, save_checkpoints_steps=2)
    lenient = mc.hooks.NanTensorHook(fail_on_nan_loss=False)
    estimator.fit(X, Y, steps=9, monitors=[Ruin(), lenient])
    assert math.isfinite(estimator.evaluate(X, Y)["loss"])
    estimator.fit(X, Y, steps=1)
    assert estimator.evaluate(X, Y)["global_step"] == 4


# Features of 0..255 -------------------------------------------------------------------------------


def large(scale):
    return [(X * scale, Y)] * 3


def as_named(features, labels, mode):
    return network()(features["pixels"], labels, mode)


@pytest.mark.parametrize("data, model_fn, name", [
    ({"x": X * 90, "y": Y}, network(), "x"),
    ({"x": {"pixels": X * 90, "n": Y}, "y": Y}, as_named, "pixels"),
    ({"input_fn": lambda: large(1e20)}, network(rate=0.0), "x"),
    ({"input_fn": lambda: large(90)}, network(), "x"),
])
def test_fit_warns_once_of_features_that_are_not_scaled(tmp_path, caplog, data, model_fn, name):
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=1))
    estimator.fit(**data, steps=3)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert f"root mean square of the features `{name}` is" in said
    assert f"divide pixels by 255 ({name} / 255)" in said


def test_fit_looks_at_what_augment_returns(tmp_path, caplog):
    estimator = mc.Estimator(network(), tmp_path, config=mc.RunConfig(seed=1))
    estimator.fit(X * 90, Y, steps=1, augment=lambda x, rng: x / 90)
    assert "root mean square" not in caplog.text
    estimator.fit(X, Y, steps=1, augment=lambda x, rng: x * 90)
    assert "root mean square" in caplog.text


def test_fit_warns_of_bytes_that_the_model_casts(tmp_path, caplog):
    def cast_fn(features, labels, mode):
        return network()(mc.cast(features, np.float32), labels, mode)

    x = np.full(X.shape, 200, np.uint8)
    mc.Estimator(cast_fn, tmp_path, config=mc.RunConfig(seed=1)).fit(x, Y, steps=2)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "is 200." in said


@pytest.mark.parametrize("x", [X, X * 9 / np.sqrt(np.mean(X**2)), X * 0])
def test_fit_does_not_warn_of_features_that_are(tmp_path, caplog, x):
    mc.Estimator(network(), tmp_path, config=mc.RunConfig(seed=1)).fit(x, Y, steps=2)
    assert [r for r in caplog.records if r.levelno == logging.WARNING] == []
