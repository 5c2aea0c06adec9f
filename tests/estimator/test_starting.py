"""Tests of minicnn.estimator.starting: load_weights of a part, warm starts, frozen layers."""

import copy
import logging
import re

import numpy as np
import pytest
from estimator.test_estimator import (
    INFER,
    TRAIN,
    X,
    Y,
    assert_same_weights,
    estimator_in,
    network,
    weights_of,
)
from tolerances import assert_same_bits

import minicnn as mc

FIT = {"x": X, "y": Y, "batch_size": 10}


def model(units=3, last="logits", seed=0):
    model = mc.Sequential([
        mc.layers.Dense(8, activation="relu", name="hidden"), mc.layers.Dense(units, name=last),
    ])
    model.build((None, 4), rng=seed)
    return model


def values_of(model):
    return {parameter.name: parameter.value.copy() for parameter in model.parameters}


def taken(path, target, **options):
    """Load into a model; return the names of the parameters that have the file's values."""
    before = values_of(target)
    mc.load_weights(target, path, **options)
    after = values_of(target)
    return [name for name in after if (after[name] != before[name]).any()]


@pytest.fixture
def path(tmp_path):
    saved = model(seed=5)
    for parameter in saved.parameters:
        parameter.value[...] += 1  # so that biases differ, too
    mc.save_weights(saved, tmp_path / "weights.npz")
    return tmp_path / "weights.npz"


@pytest.fixture
def folder(tmp_path):
    estimator_in(tmp_path / "model").fit(**FIT, steps=3)
    return tmp_path / "model"


HIDDEN, LOGITS = ["hidden/kernel", "hidden/bias"], ["logits/kernel", "logits/bias"]


@pytest.mark.parametrize("options, expected", [
    ({}, HIDDEN + LOGITS),
    ({"only": "hidden"}, HIDDEN),
    ({"only": ["hid*"]}, HIDDEN),
    ({"only": "*/bias"}, ["hidden/bias", "logits/bias"]),
    ({"only": ["hidden/kernel", "logits"]}, ["hidden/kernel", *LOGITS]),
    ({"skip": "logits"}, HIDDEN),
    ({"only": "hidden", "skip": ["*/bias"]}, ["hidden/kernel"]),
])
def test_patterns_select_parameters(path, options, expected):
    assert taken(path, model(), **options) == expected


def test_a_pattern_is_a_complete_part_of_a_name(path):
    with pytest.raises(ValueError, match=r"`only` and `skip` must match .*got hid; there are hid"):
        mc.load_weights(model(), path, only="hid")


def test_patterns_that_leave_nothing(path):
    with pytest.raises(ValueError, match="no name is selected; change"):
        mc.load_weights(model(), path, only="hidden", skip="hid*")


@pytest.mark.parametrize("changed", [{"units": 5}, {"last": "other"}])
def test_a_changed_layer_is_an_error_whose_remedies_work(path, changed):
    target = model(**changed)
    before = values_of(target)
    with pytest.raises(ValueError) as caught:
        mc.load_weights(target, path)
    assert_same_weights(values_of(target), before)
    said = str(caught.value)
    assert "logits/bias: the model has" in said and str(path) in said
    assert taken(path, model(**changed), skip=eval(re.search(r"skip=(\[.*\])", said)[1])) == HIDDEN
    assert "strict=False" in said
    assert taken(path, target, strict=False) == HIDDEN


def test_what_is_not_strict_names_the_rest(path, caplog):
    mc.load_weights(model(units=5), path, strict=False)
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelno == logging.WARNING
    assert f"Not read from {path}, 2 of 4: logits/bias: the model has (5,)" in said
    assert "logits/bias: the model has (5,)" in said


def test_a_file_of_which_nothing_fits_is_an_error(path):
    target = mc.Sequential([mc.layers.Dense(2, name="another")])
    target.build((None, 4), rng=0)
    with pytest.raises(ValueError, match="the file was saved from") as caught:
        mc.load_weights(target, path, strict=False)
    assert "skip" not in str(caught.value)


def test_arrays_that_are_not_selected_are_not_read(path, monkeypatch):
    read, names = mc.core.npz.Member.read, []
    monkeypatch.setattr(
        mc.core.npz.Member, "read", lambda self: [names.append(self.shape), read(self)][1]
    )
    mc.load_weights(model(units=5), path, skip="logits")
    assert sorted(names) == [(4, 8), (8,)]


def test_a_folder_stands_for_its_newest_checkpoint(folder):
    target = model()
    mc.load_weights(target, folder)
    assert_same_weights(values_of(target), weights_of(estimator_in(folder)))
    with pytest.raises(mc.CheckpointError, match=r"no checkpoint in .*; give the folder"):
        mc.load_weights(target, folder.parent)


# Warm start --------------------------------------------------------------------------------------


def start_of(estimator):
    """Return the weights that a run starts with: those of its first step with a rate of 0."""
    return weights_of(estimator.fit(**FIT, steps=1))


def warm(folder, source, units=8, **options):
    return mc.Estimator(
        network(units, rate=0.0), folder, config=mc.RunConfig(seed=2), warm_start_from=source,
        **options,
    )


@pytest.mark.parametrize("variables, expected", [
    (".*", HIDDEN + LOGITS), ("hid", HIDDEN), (["hidden/bias", "log"], ["hidden/bias", *LOGITS]),
    ("(?!hidden/)", LOGITS),
])
def test_a_run_starts_from_the_variables_that_match(folder, tmp_path, variables, expected):
    source = weights_of(estimator_in(folder))
    cold = start_of(warm(tmp_path / "cold", None))
    start = start_of(warm(tmp_path / "warm", folder, vars_to_warm_start=variables))
    assert_same_weights(start, {n: (source if n in expected else cold)[n] for n in source})


def test_a_warm_start_from_files(path, folder, tmp_path):
    for number, file in enumerate((path, str(folder / "model.ckpt-3.npz"))):
        estimator = warm(tmp_path / str(number), file)
        expected = model()
        mc.load_weights(expected, file)
        assert_same_weights(start_of(estimator), values_of(expected))
        assert estimator.evaluate(X, Y)["global_step"] == 1  # the count starts at zero


def test_a_checkpoint_in_model_dir_wins(path, folder, tmp_path):
    other = tmp_path / "other"
    first = start_of(warm(other, folder))
    path.unlink()
    assert_same_weights(start_of(warm(other, path)), first)  # not even read


def test_a_copy_of_an_estimator_starts_warm(folder, tmp_path):
    estimator = copy.copy(warm(tmp_path / "warm", folder, vars_to_warm_start="hid"))
    assert_same_bits(
        start_of(estimator)["hidden/bias"], weights_of(estimator_in(folder))["hidden/bias"]
    )


def fails(estimator, *words):
    with pytest.raises((ValueError, mc.CheckpointError)) as caught:
        estimator.fit(**FIT, steps=1)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


def another_head(features, labels, mode):
    """A model whose last layer has another size than that of `network`."""
    hidden = mc.layers.dense(features, 8, activation=mc.relu, name="hidden")
    logits = mc.layers.dense(hidden, 5, name="logits")
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 5), logits)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, learning_rate=0.0))


def test_a_warm_start_that_does_not_fit_says_what_does(folder, tmp_path):
    options = {"config": mc.RunConfig(seed=2), "warm_start_from": folder}
    said = fails(
        mc.Estimator(another_head, tmp_path / "warm", **options),
        "logits/bias: the model has (5,)", str(folder / "model.ckpt-3.npz"),
    )
    variables = eval(re.search(r"vars_to_warm_start=('.*')", said)[1])
    estimator = mc.Estimator(
        another_head, tmp_path / "warm", **options, vars_to_warm_start=variables
    )
    start, source = start_of(estimator), weights_of(estimator_in(folder))
    assert_same_bits(start["hidden/kernel"], source["hidden/kernel"])
    assert start["logits/kernel"].shape == (8, 5)


def test_a_warm_start_of_which_nothing_fits(folder, tmp_path):
    said = fails(warm(tmp_path / "warm", folder, vars_to_warm_start="conv"), "no name is selected")
    assert "there are hidden/bias, hidden/kernel, logits/bias, logits/kernel" in said
    fails(warm(tmp_path / "warm", folder, 9, vars_to_warm_start="hid"), "(9,)", "(8,)")
    fails(warm(tmp_path / "warm", tmp_path / "model" / ".."), "there is no checkpoint in")


def test_a_pattern_that_is_no_regular_expression(tmp_path):
    with pytest.raises(ValueError, match=r"`vars_to_warm_start` must be regular exp.*got '\(hid'"):
        warm(tmp_path, tmp_path, vars_to_warm_start="(hid")


def test_a_failed_restore_names_the_call_that_keeps_what_fits(folder, tmp_path):
    estimator = mc.Estimator(another_head, folder, config=mc.RunConfig(seed=2))
    said = fails(estimator, "logits/bias: the model has (5,)")
    arguments = re.search(r"warm_start_from='(.*?)', vars_to_warm_start", said)
    assert arguments[1] == str(folder / "model.ckpt-3.npz")


# Frozen layers -----------------------------------------------------------------------------------


def frozen_fn(features, labels, mode):
    hidden = mc.layers.dense(features, 8, activation=mc.relu, trainable=False, name="hidden")
    logits = mc.layers.dense(hidden, 3, name="logits")
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, learning_rate=0.1))


def frozen_sequential_fn(features, labels, mode):
    net = mc.Sequential([
        mc.layers.Dense(8, activation="relu", name="hidden"), mc.layers.Dense(3, name="logits"),
    ])
    net.layers[0].trainable = False
    logits = net(features)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, learning_rate=0.1))


@pytest.mark.parametrize("model_fn", [frozen_fn, frozen_sequential_fn])
def test_frozen_layers_keep_the_values_they_were_started_with(path, tmp_path, model_fn):
    source = model()
    mc.load_weights(source, path)
    before = values_of(source)
    for _ in range(2):  # the second run continues from a checkpoint
        estimator = mc.Estimator(
            model_fn, tmp_path / "model", config=mc.RunConfig(seed=0), warm_start_from=path
        ).fit(**FIT, steps=3)
        after = weights_of(estimator)
        assert [name for name in after if (after[name] != before[name]).any()] == sorted(LOGITS)


def test_frozen_layers_are_frozen_in_the_explicit_loop(path):
    net = model()
    mc.load_weights(net, path)
    net.layers[0].trainable = False
    before = values_of(net)
    ctx = mc.Context(training=True)
    labels = np.eye(3, dtype=np.float32)[Y]
    _, dy = mc.losses.softmax_cross_entropy_with_grad(labels, net.forward(X, ctx))
    net.backward(dy, ctx)
    mc.optimizers.SGD(0.1).step(net.parameters)
    after = values_of(net)
    assert [name for name in after if (after[name] != before[name]).any()] == LOGITS


def test_frozen_layers_are_frozen_in_fit(path, tmp_path):
    net = model()
    mc.load_weights(net, path)
    net.layers[0].trainable = False
    before = values_of(net)
    net.fit(X, Y, epochs=1, seed=0, verbose=False, model_dir=tmp_path / "model")
    after = values_of(net)
    assert [name for name in after if (after[name] != before[name]).any()] == LOGITS
    other = model()
    mc.load_weights(other, tmp_path / "model")  # a checkpoint of fit
    assert_same_weights(values_of(other), after)
    assert_same_bits(other[:1].predict(X), net[:1].predict(X))  # outputs in the middle


# Outputs of layers in the middle -----------------------------------------------------------------


def test_predict_returns_any_tensor_by_name(folder):
    estimator, net = estimator_in(folder), model()
    mc.load_weights(net, folder)
    found = estimator.predict(X, as_iterable=False, outputs=["hidden", "classes"])
    assert list(found) == ["hidden", "classes"]
    expected = mc.Sequential(net.layers[:1]).predict(X)
    assert_same_bits(found["hidden"], expected)
    assert_same_bits(found["classes"], net.predict(X).argmax(axis=1))
    row = next(estimator.predict(X, outputs=["hidden"]))
    assert_same_bits(row["hidden"], expected[0])


def test_the_outputs_of_a_model_fn_with_a_single_prediction(tmp_path):
    estimator = mc.Estimator(frozen_fn, tmp_path, config=mc.RunConfig(seed=0)).fit(**FIT, steps=1)
    with pytest.raises(TypeError):  # it needs labels
        estimator.predict(X, as_iterable=False)
    estimator = mc.Estimator(single_fn, tmp_path, config=mc.RunConfig(seed=0))
    logits = estimator.predict(X, as_iterable=False)
    found = estimator.predict(X, as_iterable=False, outputs=["logits"])
    assert_same_bits(found["logits"], logits)


def single_fn(features, labels, mode):
    assert mode == INFER != TRAIN
    hidden = mc.layers.dense(features, 8, activation=mc.relu, name="hidden")
    return mc.ModelFnOps(mode, mc.layers.dense(hidden, 3, name="logits"))


def test_outputs_that_do_not_exist(folder):
    estimator = estimator_in(folder)
    with pytest.raises(ValueError, match="'hiden'; similar names: hidden"):
        estimator.predict(X, outputs=["hiden"])
    with pytest.raises(TypeError, match="`outputs` must be a list of names, got 'hidden'"):
        estimator.predict(X, outputs="hidden")
