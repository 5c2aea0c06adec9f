"""Sequential.fit, evaluate and predict, as a user calls them; the engine's tests are elsewhere."""

import copy
import itertools
import json
import logging
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
from pathlib import Path

import naive
import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.estimator import checkpoints, supervised
from minicnn.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
)

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4)).astype(np.float32)
Y = np.arange(60) % 3
IMAGES = RNG.normal(size=(50, 6, 6, 1)).astype(np.float32)
LABELS = np.arange(50) % 3
QUIET = {"verbose": False, "seed": 3}


def small():
    return mc.Sequential([Dense(5, activation="relu"), Dense(3)])


def cnn():
    """Return a model with everything that uses random numbers or keeps state."""
    return mc.Sequential([
        Conv2D(4, 3, padding="same", activation="relu"), MaxPooling2D(2), Dropout(0.2),
        BatchNormalization(momentum=0.9), Flatten(), Dense(8, activation="relu"), Dropout(0.4),
        Dense(3),
    ])


def built(model, seed=0):
    model.build((None, 4), rng=seed)
    return model


def values(model):
    return {parameter.name: parameter.value.copy() for parameter in model.parameters}


def assert_same_model(one, other):
    first, second = values(one), values(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert_same_bits(value, second[name])


def without_seconds(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history.rows]


# The first program --------------------------------------------------------------------------------


def test_three_lines_train_a_model():
    x = RNG.normal(size=(300, 4)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(int)
    model = mc.Sequential([Dense(8, activation="relu"), Dense(2)])
    history = model.fit(x, y, epochs=15, validation_data=(x[:50], y[:50]), learning_rate=0.01,
                        **QUIET)
    assert model.evaluate(x, y, verbose=False)["accuracy"] > 0.95
    assert list(model.evaluate(x, y, verbose=False)) == ["loss", "accuracy"]
    assert history.to_dict()["step"][-1] == 15 * 10
    assert {"step", "loss", "learning_rate", "seconds", "validation_loss", "validation_accuracy"
            } == set(history.to_dict())
    assert model.score(x, y) == model.evaluate(x, y, verbose=False)["accuracy"]


def test_fit_builds_the_model_from_its_seed():
    one, other = small(), small()
    one.fit(X, Y, **QUIET)
    other.fit(X, Y, **QUIET)
    assert_same_model(one, other)
    other = small()
    other.fit(X, Y, verbose=False, seed=4)
    assert (one.layers[0].kernel.value != other.layers[0].kernel.value).any()


def test_fit_trains_in_place_and_keeps_the_start_values():
    model = built(small())
    kernel = model.layers[0].kernel
    start = kernel.value.copy()
    model.fit(X, Y, learning_rate=0.0, **QUIET)
    assert_same_bits(kernel.value, start)
    model.fit(X, Y, **QUIET)
    assert model.layers[0].kernel is kernel
    assert (kernel.value != start).any()


def test_it_is_what_the_explicit_loop_computes():
    model, loop = built(small()), built(small())
    model.fit(X, Y, batch_size=20, optimizer="SGD", learning_rate=0.1, shuffle=False, **QUIET)
    sgd = mc.optimizers.SGD(0.1)
    for start in (0, 20, 40):
        ctx = mc.Context(training=True)
        logits = loop.forward(X[start : start + 20], ctx)
        _, gradient = mc.losses.softmax_cross_entropy_with_grad(Y[start : start + 20], logits)
        loop.backward(gradient, ctx)
        sgd.step(loop.parameters)
    assert_same_model(model, loop)


def test_predict_gives_logits_predict_proba_probabilities_and_predict_classes_numbers():
    model = built(small())
    logits = model.predict(X)
    assert np.abs(logits.sum(axis=1) - 1).max() > 0.1
    assert_same_bits(model.predict_proba(X), mc.softmax(logits))
    assert model.predict_classes(X).tolist() == logits.argmax(axis=1).tolist()


# How long -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "step"), [
    ({}, 4), ({"epochs": 2}, 8), ({"steps": 7}, 7), ({"max_steps": 5}, 5), ({"max_epochs": 3}, 12),
])
def test_what_ends_a_run(given, step):
    history = small().fit(X, Y, batch_size=16, **given, **QUIET)
    assert history.last["step"] == step


def test_steps_count_from_here_and_max_steps_in_total(caplog):
    model = small()
    model.fit(X, Y, steps=5, **QUIET)
    assert model.fit(X, Y, steps=5, **QUIET).last["step"] == 10
    assert model.fit(X, Y, max_steps=12, **QUIET).last["step"] == 12
    before = values(model)
    model.fit(X, Y, max_steps=12, **QUIET)
    assert "Already at step 12 of 12" in caplog.text
    assert "use a new model" in caplog.text
    assert_same_bits(model.layers[0].kernel.value, before["dense/kernel"])


def test_at_most_one_limit():
    with pytest.raises(ValueError, match=r"give at most one of .* got epochs=1 and max_steps=5"):
        small().fit(X, Y, epochs=1, max_steps=5, **QUIET)


# A second fit, and resuming -----------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["Adam", "Momentum", mc.optimizers.SGD(0.01, momentum=0.5)])
def test_a_second_fit_goes_on(optimizer):
    rate = None if isinstance(optimizer, mc.optimizers.Optimizer) else 0.01
    one, other = cnn(), cnn()
    options = {"optimizer": optimizer, "learning_rate": rate, "batch_size": 7, **QUIET}
    history = one.fit(IMAGES, LABELS, steps=30, **options)
    other.fit(IMAGES, LABELS, steps=11, **options)
    again = other.fit(IMAGES, LABELS, steps=19, **options)
    assert_same_model(one, other)
    assert again.last["step"] == history.last["step"] == 30


def test_a_second_fit_takes_the_seed_of_the_first():
    one, other = cnn(), cnn()
    one.fit(IMAGES, LABELS, steps=20, **QUIET)
    other.fit(IMAGES, LABELS, steps=11, **QUIET)
    other.fit(IMAGES, LABELS, steps=9, verbose=False)
    assert_same_model(one, other)


def test_a_second_fit_with_another_optimizer_starts_it_again(caplog):
    model = small()
    model.fit(X, Y, **QUIET)
    assert model.fit(X, Y, optimizer="Momentum", learning_rate=0.1, **QUIET).last["step"] == 4
    assert "The optimizer starts again without its state" in caplog.text


def test_a_second_fit_goes_on_from_the_values_that_the_model_has_now():
    model = small()
    model.fit(X, Y, **QUIET)
    for parameter in model.parameters:
        parameter.value[...] = 0.25
    model.fit(X, Y, steps=1, learning_rate=0.0, **QUIET)
    assert all((parameter.value == 0.25).all() for parameter in model.parameters)


def test_new_start_values_start_again():
    model = built(small())
    model.fit(X, Y, **QUIET)
    first = values(model)
    model.reset_parameters(rng=0)
    history = model.fit(X, Y, **QUIET)
    assert history.last["step"] == 2
    assert_same_bits(model.layers[1].kernel.value, first["dense_1/kernel"])


def test_a_pickled_model_goes_on():
    one = cnn()
    one.fit(IMAGES, LABELS, steps=8, **QUIET)
    other = pickle.loads(pickle.dumps(one))
    one.fit(IMAGES, LABELS, steps=5, **QUIET)
    other.fit(IMAGES, LABELS, steps=5, **QUIET)
    assert_same_model(one, other)


def test_a_model_for_inference_does_not_keep_the_optimizer():
    model = built(small())
    before = len(pickle.dumps(model.for_inference()))
    model.fit(X, Y, steps=2, **QUIET)
    assert len(pickle.dumps(model.for_inference())) < before + 100
    assert model.fit(X, Y, steps=2, **QUIET).last["step"] == 4


@pytest.mark.parametrize("name", [None, "net"])
def test_evaluate_changes_nothing_and_copies_the_layers_once(name):
    class Counted(Dense):
        copies = 0

        def __deepcopy__(self, memo):
            Counted.copies += 1
            return copy.copy(self)

    layers = [Dense(5, activation="relu"), Dropout(0.5), Counted(3, activation="softmax")]
    model = mc.Sequential(layers, name=name)
    model.fit(X, Y, steps=2, **QUIET)
    Counted.copies = 0
    before = [vars(layer).copy() for layer in (model, *layers)]
    model.evaluate(X, Y, verbose=False)
    assert Counted.copies == 1
    assert [vars(layer) for layer in (model, *layers)] == before


def test_a_run_that_continues_reads_its_checkpoint_once(tmp_path, monkeypatch):
    small().fit(X, Y, steps=2, model_dir=tmp_path, **QUIET)
    load, read = checkpoints.load, []
    monkeypatch.setattr(checkpoints, "load", lambda *a, **k: read.append(a[0]) or load(*a, **k))
    small().fit(X, Y, steps=2, model_dir=tmp_path, **QUIET)
    assert [path.name for path in read] == ["model.ckpt-2.npz"]


def test_a_run_after_nan_continues_from_the_file(tmp_path, caplog):
    model = small()
    model.fit(X, Y, steps=2, model_dir=tmp_path, **QUIET)
    model.layers[0].kernel.value += 1
    with pytest.raises(mc.NanLossError):
        model.fit(X * np.nan, Y, steps=1, model_dir=tmp_path, **QUIET)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        model.fit(X, Y, steps=1, model_dir=tmp_path, **QUIET)
    assert "its values replace those of the model" in caplog.text
    other = small()
    other.fit(X, Y, steps=3, **QUIET)
    assert_same_model(model, other)


def test_a_run_in_a_folder_continues_with_the_same_bits(tmp_path):
    whole, first = cnn(), cnn()
    options = {"batch_size": 7, "validation_split": 0.2, **QUIET}
    uninterrupted = whole.fit(IMAGES, LABELS, max_steps=40, model_dir=tmp_path / "a", **options)
    first.fit(IMAGES, LABELS, max_steps=17, model_dir=tmp_path / "b", **options)
    second = cnn()
    del options["seed"]  # that of the checkpoint
    history = second.fit(IMAGES, LABELS, max_steps=40, model_dir=tmp_path / "b", **options)
    assert_same_model(whole, second)
    rows = [row for row in without_seconds(history) if row["step"] != 17]
    assert rows == without_seconds(uninterrupted)


SCRIPT = """
import sys, numpy as np, minicnn as mc
sys.path.insert(0, "tests")
from test_sequential import IMAGES, LABELS, cnn, killer
folder, steps, kill_at, door = sys.argv[1:]
hooks = [killer(int(kill_at))] if int(kill_at) else []
config = mc.RunConfig(save_checkpoints_steps=5, seed=3, progress=False, log_step_count_steps=4)
if door == "sequential":
    model = cnn()
    model.fit(IMAGES, LABELS, batch_size=7, max_steps=int(steps), model_dir=folder, hooks=hooks,
              config=config, verbose=False, validation_split=0.2, early_stopping=50,
              class_weight={1: 2.0})
else:
    model = mc.Estimator(cnn(), folder, config=config)
    model.fit(IMAGES, LABELS, batch_size=7, max_steps=int(steps), monitors=hooks)
"""


def killer(step):
    def kill(now, values):
        if now == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return kill


def run(*arguments):
    command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).returncode


@pytest.mark.parametrize("door", ["sequential", "estimator"])
def test_a_killed_run_continues_with_the_same_bits_and_the_same_curve(tmp_path, door):
    assert run(tmp_path / "a", 30, 0, door) == 0
    assert run(tmp_path / "b", 30, 18, door) == -signal.SIGKILL
    killed = mc.History(tmp_path / "b" / "history.jsonl")
    assert killed.last["step"] >= 16  # it has its curve
    assert run(tmp_path / "b", 30, 0, door) == 0
    one, other = (np.load(tmp_path / name / "model.ckpt-30.npz") for name in "ab")
    for name in one.files:
        if name != "meta.json":
            assert_same_bits(one[name], other[name])
    first, second = (mc.History(tmp_path / name / "history.jsonl") for name in "ab")
    assert without_seconds(first) == without_seconds(second)


def test_a_half_line_of_a_history_costs_that_line_only(tmp_path):
    path = tmp_path / "history.jsonl"
    rows = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 4, "lo')
    history = mc.History(path)
    assert history.rows == rows
    history.add({"step": 4, "loss": 0.25})
    history.add({"step": 5, "loss": 0.2})
    history.add({"step": 5, "loss": 0.2, "validation_loss": 0.3})
    assert mc.History(path).rows == history.rows
    assert [row["step"] for row in history.rows] == [1, 2, 3, 4, 5]


def test_a_warning_if_a_checkpoint_replaces_values(tmp_path, caplog):
    small().fit(X, Y, model_dir=tmp_path, **QUIET)
    text = "its values replace those of the model"
    model = small()
    for _ in range(2):  # nothing is lost: the second time they are its own values
        model.fit(X, Y, steps=1, model_dir=tmp_path, **QUIET)
        assert text not in caplog.text
    loaded = built(small())
    loaded.layers[0].kernel.value[...] = 0.5
    loaded.fit(X, Y, steps=1, model_dir=tmp_path, **QUIET)
    assert text in caplog.text


def test_ctrl_c_leaves_the_model_at_the_last_step_and_another_fit_goes_on():
    one, other = cnn(), cnn()
    one.fit(IMAGES, LABELS, steps=20, **QUIET)

    def interrupt(step, values):
        if step == 7:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="after step 7"):
        other.fit(IMAGES, LABELS, steps=20, hooks=[interrupt], **QUIET)
    other.fit(IMAGES, LABELS, max_steps=20, **QUIET)
    assert_same_model(one, other)


def test_an_error_in_a_hook_loses_no_step():
    one, other = cnn(), cnn()
    one.fit(IMAGES, LABELS, steps=20, **QUIET)

    def fail(step, values):
        if step == 7:
            raise OSError("the disk of the user's log is full")

    with pytest.raises(OSError, match="the user's log"):
        other.fit(IMAGES, LABELS, steps=20, hooks=[fail], **QUIET)
    other.fit(IMAGES, LABELS, max_steps=20, **QUIET)
    assert_same_model(one, other)


def test_a_loss_that_is_not_finite_puts_the_values_back():
    model = small()
    model.fit(X, Y, steps=3, **QUIET)
    before = values(model)
    with np.errstate(all="ignore"), pytest.raises(mc.NanLossError, match="from before this fit"):
        model.fit(X * 1e10, Y, optimizer="SGD", learning_rate=1e30, steps=50, **QUIET)
    for name, value in values(model).items():
        assert_same_bits(value, before[name])
    assert model.fit(X, Y, steps=3, **QUIET).last["step"] == 6  # with a lower rate


# Weights ------------------------------------------------------------------------------------------


def weighted_loss(model, x, y, w):
    onehot = np.eye(3)[y]
    return naive.softmax_cross_entropy(onehot, model.predict(x), w)


@pytest.mark.parametrize("onehot", [False, True])
def test_the_loss_is_weighted_by_rows_and_classes(onehot):
    model = built(small())
    w = RNG.uniform(0, 2, 60) * (RNG.random(60) > 0.3)
    by_class = np.where(Y == 2, 3.0, np.where(Y == 0, 0.5, 1.0))
    expected = weighted_loss(model, X, Y, w * by_class)
    y = np.eye(3)[Y] if onehot else Y
    history = model.fit(X, y, batch_size=60, steps=1, sample_weight=w,
                        class_weight={2: 3.0, 0: 0.5}, **QUIET)
    assert history.last["loss"] == pytest.approx(expected, rel=1e-5)


def test_weights_follow_the_rows_when_they_are_shuffled_and_split():
    x = np.zeros((40, 2), np.float32)
    y = np.arange(40) % 2
    w = np.where(y == 1, 0.0, 4.0)
    model = mc.Sequential([Dense(2, kernel_initializer="zeros")])
    history = model.fit(x, y, batch_size=8, epochs=20, sample_weight=w, validation_split=0.25,
                        learning_rate=0.1, **QUIET)
    assert model.predict_proba(x)[:, 0].min() > 0.9  # the rows of class 1 did not count
    assert history.last["validation_accuracy"] == 0.5  # and are validated without weights


def test_batches_may_have_weights():
    one, other = built(small()), built(small())
    w = np.linspace(0.5, 2, 60)
    one.fit(X, Y, batch_size=20, shuffle=False, sample_weight=w, class_weight={1: 2}, **QUIET)
    batches = [(X[i : i + 20], Y[i : i + 20], w[i : i + 20]) for i in (0, 20, 40)]
    other.fit(lambda: batches, class_weight={1: 2}, **QUIET)
    assert_same_model(one, other)


@pytest.mark.parametrize(("given", "text"), [
    ({"sample_weight": np.ones(59)}, "`sample_weight` must have a weight for each of the 60 rows"),
    ({"sample_weight": -np.ones(60)}, "not negative"),
    ({"sample_weight": np.full(60, np.nan)}, "finite"),
    ({"class_weight": {0: -1}}, "a weight in class_weight"),
    ({"class_weight": {"cat": 1}}, "a class in class_weight"),
    ({"class_weight": [1, 2, 3]}, "a dict from class numbers to weights"),
    ({"class_weight": {0: 2.0}, "loss": "mean_squared_error"}, "got mean_squared_error; give `sam"),
    ({"class_weight": {0: 2.0}, "loss": "sigmoid_cross_entropy", "y": np.eye(3)[Y]},
     r"one class for each row, got an array of shape \(60, 3\) .*; give `sample_weight`"),
    ({"class_weight": {0: 2.0}, "loss": lambda *of: of[0], "y": np.ones((60, 3))},
     "one class for each row"),
    ({"class_weight": {0: 2.0}, "y": np.zeros((60, 2, 2), int)}, "one class for each row"),
])
def test_what_weights_cannot_be(given, text):
    with pytest.raises((ValueError, TypeError), match=text):
        small().fit(X, **{"y": Y, **given, **QUIET})


@pytest.mark.parametrize("y", [np.arange(60) % 2, np.arange(60)[:, None] % 2, RNG.random((60, 1))])
def test_the_classes_of_a_sigmoid_have_weights(y):
    is_one = np.ravel(y) > 0.5
    by_class, by_row = built(mc.Sequential([Dense(1)])), built(mc.Sequential([Dense(1)]))
    by_class.fit(X, y, loss="sigmoid_cross_entropy", class_weight={1: 3.0}, **QUIET)
    by_row.fit(X, y, loss="sigmoid_cross_entropy", sample_weight=1.0 + 2.0 * is_one, **QUIET)
    assert_same_model(by_class, by_row)


# Validation ---------------------------------------------------------------------------------------


def test_validation_is_once_an_epoch():
    history = small().fit(X, Y, batch_size=16, epochs=3, validation_data=(X, Y), **QUIET)
    validated = [row["step"] for row in history.rows if "validation_loss" in row]
    assert validated == [4, 8, 12]
    history = small().fit(X, Y, steps=10, validation_data=(X, Y), validation_steps=3, **QUIET)
    assert [row["step"] for row in history.rows if "validation_loss" in row] == [3, 6, 9, 10]


def test_validation_is_of_the_weights_of_its_step():
    model = small()
    history = model.fit(X, Y, epochs=2, validation_data=(X[:30], Y[:30]), **QUIET)
    measured = model.evaluate(X[:30], Y[:30], verbose=False)
    assert history.last["validation_loss"] == measured["loss"]
    assert history.last["validation_accuracy"] == measured["accuracy"]


def test_moving_statistics_are_those_of_the_training():
    model = cnn()
    norm = model.layers[3]
    model.fit(IMAGES, LABELS, epochs=3, **QUIET)
    first = values(model)
    assert np.abs(norm.moving_mean.value).max() > 0.01
    loss = naive.softmax_cross_entropy(np.eye(3)[LABELS], model.predict(IMAGES))
    assert model.evaluate(IMAGES, LABELS, verbose=False)["loss"] == pytest.approx(loss, rel=1e-5)
    for name, value in values(model).items():
        assert_same_bits(value, first[name])


@pytest.mark.parametrize("onehot", [False, True])
def test_a_split_has_the_same_share_of_each_class(onehot):
    y = np.array([0] * 40 + [1] * 20 + [2] * 5)
    x = np.arange(65, dtype=np.float32).reshape(65, 1)
    given = (x, np.eye(3)[y] if onehot else y)
    kept, _, held = supervised.split(supervised.data(*given), 0.2, 1, None)
    rows = held.x[:, 0].astype(int)
    assert np.bincount(y[rows]).tolist() == [8, 4, 1]
    assert sorted([*rows, *kept.x[:, 0].astype(int)]) == list(range(65))
    again = supervised.split(supervised.data(*given), 0.2, 1, None)[2]
    other = supervised.split(supervised.data(*given), 0.2, 2, None)[2]
    assert_same_bits(again.x, held.x)
    assert (other.x != held.x).any()


def test_rows_held_back_are_not_trained_on():
    seen = set()
    x = np.arange(20, dtype=np.float32).reshape(20, 1) / 20

    class Spy(Dense):
        def forward(self, x, ctx):
            if ctx.training:
                seen.update(x[:, 0].tolist())
            return super().forward(x, ctx)

    model = mc.Sequential([Spy(2)])
    model.fit(x, np.arange(20) % 2, epochs=3, validation_split=0.3, **QUIET)
    assert len(seen) == 14


@pytest.mark.parametrize("share", [0.0, 0.001, 0.999])
def test_a_split_that_leaves_nothing(share):
    with pytest.raises(ValueError, match=r"`validation_split` .* leaves none"):
        small().fit(X, Y, validation_split=share, **QUIET)


def test_early_stopping_puts_the_best_weights_back():
    x, y = RNG.normal(size=(40, 4)).astype(np.float32), RNG.integers(3, size=40)
    xv, yv = RNG.normal(size=(40, 4)).astype(np.float32), RNG.integers(3, size=40)
    model = mc.Sequential([Dense(50, activation="relu"), Dense(3)])
    history = model.fit(x, y, epochs=60, validation_data=(xv, yv), early_stopping=3,
                        learning_rate=0.02, **QUIET)
    losses = [row["validation_loss"] for row in history.rows if "validation_loss" in row]
    assert len(losses) == losses.index(min(losses)) + 4  # three without a better one
    assert model.evaluate(xv, yv, verbose=False)["loss"] == min(losses)
    assert history.best["validation_loss"] == min(losses)


def test_early_stopping_by_the_accuracy():
    assert mc.hooks.EarlyStopping(2, "accuracy").minimize is False
    with pytest.raises(TypeError, match=r"`minimize` must be True .* metric 'precision'"):
        mc.hooks.EarlyStopping(2, "precision")
    stop = mc.hooks.EarlyStopping(2, "acc", minimize=False)
    model = small()
    with pytest.raises(ValueError, match="one of 'loss', 'accuracy', got 'acc'"):
        model.fit(X, Y, validation_data=(X, Y), early_stopping=stop, **QUIET)
    assert model.input_shape is None  # before the first step
    history = small().fit(
        X, Y, epochs=30, validation_data=(X, Y), learning_rate=0.0,
        early_stopping=mc.hooks.EarlyStopping(2, metric="accuracy"), **QUIET,
    )
    assert history.last["step"] == 6


def test_early_stopping_of_a_function_needs_steps():
    options = {"validation_data": (X, Y), "early_stopping": 2, "learning_rate": 0.0, **QUIET}
    with pytest.raises(ValueError, match="`early_stopping` needs `validation_steps`"):
        small().fit(batches, epochs=9, **options)
    assert small().fit(batches, epochs=9, validation_steps=3, **options).last["step"] == 9


def test_early_stopping_needs_validation():
    with pytest.raises(ValueError, match="`early_stopping` needs `validation_data`"):
        small().fit(X, Y, early_stopping=3, **QUIET)


# What users of other libraries write --------------------------------------------------------------


@pytest.mark.parametrize("end", [
    lambda: [Dense(3, activation="softmax")], lambda: [Dense(3), Activation("softmax")],
    lambda: [Dense(3), mc.ops.Softmax()],
    lambda: [mc.Sequential([Dense(3), mc.Sequential([Activation("softmax")])])],
])
def test_a_last_softmax_is_not_applied_twice(end):
    model = mc.Sequential([Dense(5, activation="relu"), *end()])
    plain = small()
    model.build((None, 4), rng=1)
    plain.build((None, 4), rng=1)
    logits = plain.predict(X)
    assert_same_bits(model.predict_proba(X), model.predict(X))
    np.testing.assert_allclose(model.predict_proba(X), mc.softmax(logits), rtol=1e-6)
    first = model.fit(X, Y, epochs=2, validation_data=(X, Y), **QUIET)
    second = plain.fit(X, Y, epochs=2, validation_data=(X, Y), **QUIET)
    assert without_seconds(first) == without_seconds(second)
    for one, other in zip(model.parameters, plain.parameters, strict=True):
        assert_same_bits(one.value, other.value)
    assert model.predict_classes(X).tolist() == plain.predict_classes(X).tolist()


def test_one_output_is_an_error_that_names_the_remedy():
    with pytest.raises(ValueError, match=r"one output; for two classes end it with Dense\(2\)"):
        mc.Sequential([Dense(1)]).fit(X, Y % 2, **QUIET)
    mc.Sequential([Dense(2)]).fit(X, Y % 2, **QUIET)


@pytest.mark.parametrize("y", [
    np.eye(3)[Y], np.eye(3, dtype=int)[Y], Y[:, None], Y.tolist(), Y.astype(np.uint8),
])
def test_forms_of_labels(y):
    one, other = built(small()), built(small())
    one.fit(X, Y, **QUIET)
    other.fit(X, y, validation_data=(X, y), **QUIET)
    assert_same_model(one, other)
    assert one.evaluate(X, Y, verbose=False) == one.evaluate(X, y, verbose=False)


@pytest.mark.parametrize(("y", "text"), [
    (None, "no labels"), (Y[:59], "same number of rows"), (Y + 1, "begin at 1"),
    (Y.astype(float), "class numbers"), (np.array(["a", "b", "c"])[Y], "np.unique"),
])
def test_labels_that_are_wrong(y, text):
    model = small()
    with pytest.raises((ValueError, TypeError), match=text):
        model.fit(X, y, **QUIET)


def test_images_of_another_shape_name_the_remedy():
    model = mc.Sequential([Flatten(), Dense(3)])
    model.fit(IMAGES, LABELS, **QUIET)
    with pytest.raises(ValueError, match=r"x\.reshape\(-1, 6, 6, 1\)"):
        model.fit(IMAGES.reshape(50, 36), LABELS, **QUIET)
    with pytest.raises(TypeError, match="/ 255"):
        model.fit((IMAGES * 9).astype(np.uint8), LABELS, **QUIET)


class Table:
    """A table as of pandas, which is not installed everywhere."""

    def __init__(self, array):
        self.array, self.shape = array, array.shape

    def to_numpy(self):
        return self.array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)

    def __len__(self):
        return len(self.array)


@pytest.mark.parametrize("form", [
    lambda: (X.tolist(), Y.tolist()), lambda: (X.astype(np.float64), Y),
    lambda: (Table(X), Table(Y[:, None])), lambda: (mc.datasets.Dataset(X, Y), None),
])
def test_forms_of_data(form):
    one, other = built(small()), built(small())
    one.fit(X, Y, validation_split=0.2, **QUIET)
    x, y = form()
    other.fit(x, y, validation_split=0.2, **QUIET)
    assert_same_model(one, other)
    assert one.evaluate(X, Y, verbose=False) == one.evaluate(x, y, verbose=False)


def batches():
    for start in (0, 20, 40):
        yield X[start : start + 20], Y[start : start + 20]


@pytest.mark.parametrize("form", [
    lambda: batches, lambda: list(map(list, batches())).__iter__, lambda: Loader(),
])
def test_batches_of_a_function_or_an_iterable(form):
    one, other = built(small()), built(small())
    one.fit(X, Y, batch_size=20, epochs=2, shuffle=False, **QUIET)
    history = other.fit(form(), epochs=2, validation_data=form(), **QUIET)
    assert_same_model(one, other)
    assert history.last["step"] == 6
    assert history.last["validation_loss"] == one.evaluate(batches, verbose=False)["loss"]


class Loader:
    """Batches that can be gone through again, and counted."""

    def __iter__(self):
        return batches()

    def __len__(self):
        return 3


def test_an_iterable_that_knows_its_length_is_validated_at_each_epoch():
    history = small().fit(Loader(), epochs=3, validation_data=(X, Y), **QUIET)
    assert [row["step"] for row in history.rows if "validation_loss" in row] == [3, 6, 9]


def test_steps_of_a_function_go_on_through_its_passes():
    assert small().fit(batches, steps=7, **QUIET).last["step"] == 7
    assert small().fit(batches, max_epochs=2, **QUIET).last["step"] == 6


def test_an_iterator_ends_where_it_ends():
    assert small().fit(batches(), steps=7, **QUIET).last["step"] == 3
    numbers = itertools.count()
    taken = []

    def stream():
        for number in numbers:
            taken.append(number)
            yield X[:8], Y[:8]

    model = small()
    endless = stream()
    model.fit(endless, steps=4, **QUIET)
    assert model.fit(endless, steps=4, **QUIET).last["step"] == 8
    assert len(taken) < 11  # none was skipped


def test_an_iterator_cannot_validate_twice():
    with pytest.raises(ValueError, match="`validation_data` must be arrays or a function"):
        small().fit(X, Y, validation_data=batches(), **QUIET)


def test_labels_beside_batches_are_an_error():
    with pytest.raises(ValueError, match="`y` must be None if `x` makes batches"):
        small().fit(batches, Y, **QUIET)


# Loss, optimizer, metrics -------------------------------------------------------------------------


@pytest.mark.parametrize("made", [None, 3, (X, Y), X])
def test_a_function_that_returns_no_batches(made):
    for use in (small().fit, built(small()).evaluate):
        with pytest.raises(TypeError, match=r"of batches must return an iterable.*`yield`"):
            use(lambda made=made: made, verbose=False)


def test_an_iterator_that_is_used_up():
    batches = iter([(X[:20], Y[:20])])
    model = small()
    model.fit(batches, **QUIET)
    with pytest.raises(ValueError, match=r"there is no batch.* no iterator that is used up"):
        model.fit(batches, **QUIET)


@pytest.mark.parametrize(("augment", "error", "text"), [
    (lambda x, rng: None, TypeError, "augment.* must be an array of numbers, got None"),
    (lambda x, rng: x[:5], ValueError, r"of the shape that it is given, \(20, 4\), got \(5, 4\)"),
])
def test_what_augment_cannot_return(augment, error, text):
    model = small()
    with pytest.raises(error, match=text):
        model.fit(X, Y, batch_size=20, augment=augment, **QUIET)
    assert model.input_shape is None


def test_images_of_another_shape_in_a_later_step():
    parts = iter([slice(None), slice(None), slice(5)])
    with pytest.raises(ValueError, match=r"`augment` must return .*, \(20, 4\), got \(5, 4\)"):
        small().fit(X, Y, batch_size=20, augment=lambda x, rng: x[next(parts)], **QUIET)


@pytest.mark.parametrize("shuffle", [False, True])
def test_augment_may_work_in_place_and_return_float64_or_lists(shuffle):
    def in_place(x, rng):
        x *= 2
        return x

    data, trained = X.copy(), []
    for augment in (in_place, lambda x, rng: x * 2.0, lambda x, rng: (x * np.array(2.0)).tolist()):
        trained.append(small())
        trained[-1].fit(data, Y, shuffle=shuffle, augment=augment, **QUIET)
        assert_same_bits(data, X)
        assert_same_model(trained[-1], trained[0])


def test_a_loss_of_ones_own():
    def smooth(labels, outputs):
        return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), outputs, label_smoothing=0.5)

    model = built(small())
    expected = naive.softmax_cross_entropy(np.eye(3)[Y], model.predict(X), label_smoothing=0.5)
    history = model.fit(X, Y, steps=1, batch_size=60, loss=smooth, **QUIET)
    assert history.last["loss"] == pytest.approx(expected, rel=1e-5)
    assert list(model.evaluate(X, Y, verbose=False)) == ["loss"]
    with pytest.raises(ValueError, match="no probabilities"):
        model.predict_proba(X)
    with pytest.raises(ValueError, match="no probabilities"):
        model.predict_classes(X)
    assert "accuracy" in model.evaluate(X, Y, loss="softmax_cross_entropy", verbose=False)


def test_a_loss_of_the_library_may_be_given_as_the_function():
    one, other = built(small()), built(small())
    one.fit(X, Y, **QUIET)
    other.fit(X, Y, loss=mc.losses.softmax_cross_entropy, **QUIET)
    assert_same_model(one, other)


@pytest.mark.parametrize(("loss", "text"), [
    ("crossentropy", "`loss` must be 'softmax_cross_entropy' or"), (3, "`loss` must be"),
    (lambda labels, outputs: 3.0, "`loss` must be a scalar Tensor"),
])
def test_what_a_loss_cannot_be(loss, text):
    with pytest.raises((ValueError, TypeError), match=text):
        small().fit(X, Y, loss=loss, **QUIET)


@pytest.mark.parametrize("end", [lambda: [Dense(1)], lambda: [Dense(1, activation="sigmoid")]])
@pytest.mark.parametrize("column", [False, True])
def test_yes_or_no(end, column):
    x = RNG.normal(size=(80, 4)).astype(np.float32)
    y = (x[:, 0] > x[:, 1]).astype(int)
    y = y[:, None] if column else y
    model = mc.Sequential(end())
    history = model.fit(x, y, epochs=20, learning_rate=0.1, loss="sigmoid_cross_entropy",
                        validation_data=(x, y), class_weight={1: 2.0}, **QUIET)
    assert history.last["validation_accuracy"] > 0.9
    assert model.score(x, y) == history.last["validation_accuracy"]
    chances = model.predict_proba(x)
    assert chances.shape == (80, 1)
    assert_same_bits(model.predict_classes(x), (chances > 0.5).astype(int))
    logits = np.log(chances / (1 - chances)).reshape(-1).astype(np.float64)
    loss = np.mean(np.log1p(np.exp(-logits * (2 * y.reshape(-1) - 1))))
    assert history.last["validation_loss"] == pytest.approx(loss, rel=1e-3)


def test_rows_of_several_classes():
    x = RNG.normal(size=(60, 4)).astype(np.float32)
    y = (x[:, :3] > 0).astype(np.float32)
    model = mc.Sequential([Dense(3)])
    model.fit(x, y, epochs=20, learning_rate=0.1, loss=mc.losses.sigmoid_cross_entropy, **QUIET)
    expected = np.mean((model.predict(x) > 0) == (y > 0))
    assert model.evaluate(x, y, verbose=False)["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["mean_squared_error", "absolute_difference"])
@pytest.mark.parametrize("column", [False, True])
def test_regression(loss, column):
    x = RNG.normal(size=(80, 4)).astype(np.float32)
    y = x @ np.array([1, 2, 0, -1], np.float32) + 0.5
    model = mc.Sequential([Dense(1)])

    def worst(labels, predictions):
        assert labels.shape == predictions.shape
        return np.abs(labels - predictions).max()

    history = model.fit(x, y[:, None] if column else y, epochs=100, learning_rate=0.05, loss=loss,
                        metrics=[worst], validation_split=0.25, **QUIET)
    assert history.last["validation_worst"] < 0.2
    assert list(model.evaluate(x, y, verbose=False)) == ["loss"]
    with pytest.raises(ValueError, match="no probabilities; use predict"):
        model.predict_proba(x)


def test_schedules_and_optimizers():
    model = small()
    schedule = mc.optimizers.step_decay(0.1, 2, 0.5)
    history = model.fit(X, Y, steps=5, learning_rate=schedule, **QUIET)
    assert history.last["learning_rate"] == 0.025
    adam = mc.optimizers.Adam(0.5)
    assert small().fit(X, Y, optimizer=adam, **QUIET).last["learning_rate"] == 0.5
    assert adam.iterations == 0  # a copy was used
    for name in ("Adam", "adamw", "RMSprop"):
        assert small().fit(X, Y, optimizer=name, **QUIET).last["learning_rate"] == 0.001
    with pytest.raises(ValueError, match="`learning_rate` must be given with 'SGD'"):
        small().fit(X, Y, optimizer="SGD", **QUIET)


def test_metrics():
    model = built(small())

    def wrong(labels, predictions):
        return int((labels != predictions).sum())

    onehot = np.eye(3)[Y]
    by_list = model.evaluate(X, onehot, metrics=["accuracy", wrong], verbose=False)
    assert by_list["wrong"] == round(60 * (1 - by_list["accuracy"]))
    named = {"top": "accuracy", "errors": wrong,
             "sum": mc.MetricSpec(lambda labels, p: float(p.sum()), "probabilities")}
    by_name = model.evaluate(X, Y, metrics=named, verbose=False)
    assert by_name["errors"] == by_list["wrong"]
    assert by_name["sum"] == pytest.approx(60, rel=1e-5)
    history = model.fit(X, Y, metrics=named, validation_data=(X, Y), **QUIET)
    assert {"validation_top", "validation_errors"} < set(history.last)
    with pytest.raises(ValueError, match=r"`metrics` must be .*'accuracy'"):
        model.evaluate(X, Y, metrics=["acuracy"], verbose=False)


# Hooks --------------------------------------------------------------------------------------------


def test_functions_and_hooks_see_every_step():
    seen = []
    counter = mc.hooks.StepCounterHook(every_n_steps=1)
    small().fit(X, Y, epochs=2, validation_data=(X, Y), **QUIET,
                hooks=[lambda step, values: seen.append((step, dict(values))), counter])
    assert [step for step, _ in seen] == [1, 2, 3, 4]
    assert set(seen[0][1]) == {"loss", "learning_rate"}
    assert {"validation_loss", "validation_accuracy"} < set(seen[1][1])


@pytest.mark.parametrize("hooks", [3, [3], [mc.hooks.StepCounterHook], "hook"])
def test_what_hooks_cannot_be(hooks):
    with pytest.raises(TypeError, match="`hooks` must"):
        small().fit(X, Y, hooks=hooks, **QUIET)


# History ------------------------------------------------------------------------------------------


def test_the_loss_of_a_row_is_the_mean_since_the_row_before():
    losses = []
    config = mc.RunConfig(log_step_count_steps=3, seed=3)
    history = small().fit(X, Y, batch_size=10, epochs=1, config=config, verbose=False,
                          hooks=[lambda step, values: losses.append(values["loss"])])
    assert [row["step"] for row in history.rows] == [3, 6]
    assert history.rows[1]["loss"] == pytest.approx(np.mean(losses[3:]))


def test_the_history_is_lines_of_json(tmp_path):
    history = small().fit(X, Y, epochs=2, validation_data=(X, Y), model_dir=tmp_path, **QUIET)
    lines = (tmp_path / "history.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history.rows
    assert mc.Estimator(small(), tmp_path).history.to_dict() == history.to_dict()


def test_columns_have_one_length_and_say_where_nothing_is_known():
    with pytest.raises(TypeError, match="`rows` must be a list of dicts, got 3"):
        mc.History(rows=3)
    history = mc.History(rows=[{"step": 1, "loss": 2.0}, {"step": 2, "validation_loss": 1.0}])
    assert history.to_dict() == {"step": [1, 2], "loss": [2.0, None], "validation_loss": [None, 1]}
    assert history.last == {"step": 2, "loss": 2.0, "validation_loss": 1.0}
    assert history.best == {"step": 2, "validation_loss": 1.0}
    assert mc.History().last == mc.History().best == {}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": "a"}', '{"loss": 1}', "[" * 10**5, "\0"])
def test_a_damaged_history_is_not_read(tmp_path, text):
    (tmp_path / "history.jsonl").write_text(text)
    assert mc.History(tmp_path / "history.jsonl").rows == []


def test_a_history_that_cannot_be_written_does_not_stop_the_run(tmp_path, caplog):
    (tmp_path / "history.jsonl").mkdir()
    history = small().fit(X, Y, epochs=3, model_dir=tmp_path, **QUIET)
    assert history.last["step"] == 6
    assert caplog.text.count("history.jsonl cannot be written") == 1


# The Estimator's door -----------------------------------------------------------------------------


def test_an_estimator_trains_a_copy_from_the_values_of_the_model(tmp_path):
    model, other = built(small()), built(small())
    before = values(model)
    estimator = mc.Estimator(model, tmp_path, config=mc.RunConfig(seed=3, progress=False))
    estimator.fit(X, Y, batch_size=32, steps=6)
    for name, value in values(model).items():
        assert_same_bits(value, before[name])
    other.fit(X, Y, steps=6, **QUIET)
    mc.load_weights(model, tmp_path)
    assert_same_model(model, other)
    assert estimator.history.last["step"] == 6
    accuracy = mc.MetricSpec(mc.metrics.accuracy, "classes")
    results = estimator.evaluate(X, Y, metrics={"accuracy": accuracy})
    assert results["accuracy"] == model.score(X, Y)
    predictions = estimator.predict(X, as_iterable=False)
    assert_same_bits(predictions["outputs"], model.predict(X))
    assert_same_bits(predictions["probabilities"], model.predict_proba(X))


def test_both_doors_draw_the_same_start_values_and_continue_each_other(tmp_path):
    config = mc.RunConfig(seed=3, progress=False)
    mc.Estimator(cnn(), tmp_path, config=config).fit(IMAGES, LABELS, steps=5, batch_size=32)
    model, other = cnn(), cnn()
    model.fit(IMAGES, LABELS, steps=5, model_dir=tmp_path, **QUIET)
    other.fit(IMAGES, LABELS, steps=10, **QUIET)
    assert_same_model(model, other)


def test_an_estimator_of_a_model_measures_its_accuracy(tmp_path):
    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(small(), tmp_path, config=config).fit(X, Y, steps=5)
    classes = estimator.predict(X, as_iterable=False)["classes"]
    assert estimator.evaluate(X, Y)["accuracy"] == np.mean(classes == Y)
    assert set(estimator.evaluate(X, Y, metrics=["recall"])) == {"loss", "recall", "global_step"}
    regression = mc.Estimator(small(), tmp_path / "r", {"loss": "mean_squared_error"}, config)
    assert "accuracy" not in regression.fit(X, X[:, :3], steps=1).evaluate(X, X[:, :3])


def test_a_copied_model_goes_on_and_copies_no_state_of_the_optimizer():
    one = cnn()
    one.fit(IMAGES, LABELS, steps=8, **QUIET)
    other = copy.deepcopy(one)
    assert other._left[0] is one._left[0]
    one.fit(IMAGES, LABELS, steps=5, **QUIET)
    other.fit(IMAGES, LABELS, steps=5, **QUIET)
    assert_same_model(one, other)


def test_the_options_of_a_model_in_an_estimator(tmp_path):
    params = {"optimizer": "SGD", "learning_rate": 0.5}
    estimator = mc.Estimator(small(), tmp_path, params, mc.RunConfig(seed=0, progress=False))
    estimator.fit(X, Y, steps=1)
    assert estimator.history.last["learning_rate"] == 0.5
    with pytest.raises(TypeError, match="has no argument `lr`; use `learning_rate`"):
        mc.Estimator(small(), tmp_path, {"lr": 1})
    with pytest.raises(TypeError, match="`params` must be a dict, got 5"):
        mc.Estimator(small(), tmp_path, 5)
    for name in ("in_place", "model"):  # an Estimator always trains a copy of its own
        with pytest.raises(TypeError, match=f"`{name}`; the arguments are loss, optimizer, learn"):
            mc.Estimator(small(), tmp_path, {name: True})
    again = pickle.loads(pickle.dumps(estimator))
    assert again.fit(X, Y, steps=1).history.last["step"] == 2


# Errors, threads, and the rest --------------------------------------------------------------------


def test_evaluate_before_fit():
    with pytest.raises(RuntimeError, match="call fit before evaluate"):
        small().evaluate(X, Y)


def test_a_model_of_float64():
    model = mc.Sequential([Dense(3)])
    model.build((None, 4), rng=0, dtype=np.float64)
    model.fit(X, Y, **QUIET)
    assert model.layers[0].kernel.dtype == np.float64
    assert model.evaluate(X, Y, verbose=False)["loss"] < 3


def test_frozen_layers_stay():
    model = built(small())
    model.layers[0].trainable = False
    before = values(model)
    model.fit(X, Y, **QUIET)
    assert_same_bits(model.layers[0].kernel.value, before["dense/kernel"])
    assert (model.layers[1].kernel.value != before["dense_1/kernel"]).any()


def test_predictions_of_another_thread_do_not_disturb_a_run():
    one, other = cnn(), cnn()
    one.fit(IMAGES, LABELS, steps=30, **QUIET)
    other.build((None, 6, 6, 1), rng=0)
    other = cnn()
    stop = threading.Event()
    started = threading.Event()

    def watch():
        started.wait()
        while not stop.is_set():
            other.predict_classes(IMAGES)
            other.evaluate(IMAGES, LABELS, verbose=False)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        other.fit(IMAGES, LABELS, steps=30, hooks=[lambda step, values: started.set()], **QUIET)
    finally:
        started.set()
        stop.set()
        thread.join()
    assert_same_model(one, other)


def test_verbose():
    with pytest.raises(ValueError, match="`verbose` must be True, False, 0, 1 or 2, got 'yes'"):
        small().fit(X, Y, verbose="yes")


def test_a_fit_logs_no_warning(caplog):
    caplog.set_level(logging.WARNING)
    small().fit(X, Y, validation_split=0.2, early_stopping=2, epochs=3, **QUIET)
    assert caplog.records == []
    assert math.isfinite(small().fit(X, Y, **QUIET).last["loss"])
