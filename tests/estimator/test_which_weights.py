"""Tests that evaluate and predict use the newest checkpoint while another run writes more.

The long form, with readers and writers at once, is in benchmarks/reliability.py.
"""

import gc
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
from estimator.test_estimator import INFER, TRAIN, X, Y, estimator_in, network
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.estimator import checkpoints

ROOT = Path(__file__).parents[2]
SECONDS = 60  # then a test assumes a deadlock
FIT = {"x": X, "y": Y, "batch_size": 10}


def probabilities(estimator, **arguments):
    return estimator.predict(X, as_iterable=False, **arguments)["probabilities"]


def saved_as(folder, step):
    """Return the predictions of a step's checkpoint, by an Estimator that sees no other one."""
    alone = folder.parent / "alone"
    shutil.rmtree(alone, ignore_errors=True)
    alone.mkdir()
    shutil.copy(folder / f"model.ckpt-{step}.npz", alone)
    return probabilities(estimator_in(alone))


def make_old(folder):
    """Set the times of a folder and everything in it to long ago."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (10**9, 10**9))


def warnings_in(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


def cut(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


class At(mc.hooks.SessionRunHook):
    """Call something after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == self.step:
            self.call()


class EachStep(At):
    def after_run(self, run_context, run_values):
        self.call()


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3."""
    estimator_in(tmp_path / "model", save_checkpoints_steps=1).fit(**FIT, steps=3)
    return tmp_path / "model"


# Another run trains -------------------------------------------------------------------------------


@pytest.mark.parametrize("is_old", [False, True])
def test_another_estimator_trains_on(folder, is_old):
    reader = estimator_in(folder)
    for step in (3, 5, 6):
        if step > 3:
            estimator_in(folder).fit(**FIT, max_steps=step)
            if is_old:  # nothing is listed before something changes
                for path in (*folder.iterdir(), folder):
                    os.utime(path, (10**9 + step, 10**9 + step))
        for _ in range(2):
            assert reader.evaluate(X, Y)["global_step"] == step
            assert_same_bits(probabilities(reader), saved_as(folder, step))


def test_no_checkpoint_is_read_where_nothing_is_new(folder, monkeypatch):
    reader = estimator_in(folder)
    make_old(folder)
    expected = probabilities(reader)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load", None)
        assert_same_bits(probabilities(reader), expected)


def test_the_folder_is_cleared_and_trained_again_to_the_same_step(folder):
    reader = estimator_in(folder)
    make_old(folder)
    before = probabilities(reader)
    shutil.rmtree(folder)
    mc.Estimator(network(), folder, config=mc.RunConfig(seed=7)).fit(**FIT, steps=3)
    assert reader.evaluate(X, Y)["global_step"] == 3
    assert not np.array_equal(probabilities(reader), before)
    assert_same_bits(probabilities(reader), saved_as(folder, 3))


def test_a_second_change_within_a_tick_of_the_clock_is_seen(folder):
    late, now = folder / "model.ckpt-3.npz", time.time()
    late.rename(folder.parent / late.name)
    (folder / "checkpoint.json").unlink()
    reader = estimator_in(folder)
    os.utime(folder, (now, now))
    assert_same_bits(probabilities(reader), saved_as(folder, 2))
    (folder.parent / late.name).rename(late)
    os.utime(folder, (now, now))
    assert_same_bits(probabilities(reader), saved_as(folder, 3))


def test_going_back_by_the_index_is_seen(folder):
    reader = estimator_in(folder)
    make_old(folder)
    assert reader.evaluate(X, Y)["global_step"] == 3
    (folder / "checkpoint.json").write_text(json.dumps({"latest": "model.ckpt-2.npz"}))
    assert reader.evaluate(X, Y)["global_step"] == 2
    assert_same_bits(probabilities(reader), saved_as(folder, 2))


WRITER = """
import sys
from estimator import test_which_weights as t
estimator = t.estimator_in(sys.argv[1], save_checkpoints_steps=1, keep_checkpoint_max=10**6)
estimator.fit(**t.FIT, steps=10**6)
"""


def test_another_process_trains_on(folder):
    """Every answer is that of one checkpoint, bit for bit, and never of an earlier one."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], env=environment)
    reader, answers, end = estimator_in(folder), [], time.monotonic() + SECONDS
    try:
        while len({step for step, _, _ in answers}) < 9:
            results = reader.evaluate(X, Y)
            answers.append((results["global_step"], results["loss"], probabilities(reader)))
            assert time.monotonic() < end
    finally:
        process.kill()
        process.wait()
    steps = [step for step, _, _ in answers]
    assert steps == sorted(steps)
    compare(folder, answers)


def compare(folder, answers):
    """Compare (step, loss, probabilities) with the checkpoints in a folder."""
    checker, possible = estimator_in(folder), {}
    for path in folder.glob("model.ckpt-*.npz"):
        step = int(path.stem.split("-")[1])
        possible[step] = probabilities(checker, checkpoint_path=path)
    for step, loss, output in answers:
        path = folder / f"model.ckpt-{step}.npz"
        if loss is not None:
            expected = checker.evaluate(X, Y, checkpoint_path=path)
            assert (expected["loss"], expected["global_step"]) == (loss, step)
        # predict may be called after the next checkpoint is written
        assert any(output.tobytes() == p.tobytes() for s, p in possible.items() if s >= step)


# The same Estimator trains ------------------------------------------------------------------------


def test_evaluate_and_predict_while_another_thread_fits(tmp_path):
    estimator = estimator_in(
        tmp_path / "model", save_checkpoints_steps=5, keep_checkpoint_max=10**6
    )
    estimator.fit(**FIT, steps=1)
    answers, ends = [], threading.Event()
    stop = EachStep(0, lambda: None)
    stop.after_run = lambda context, values: ends.is_set() and context.request_stop()
    thread = threading.Thread(target=estimator.fit, kwargs={**FIT, "monitors": [stop]})
    thread.start()
    try:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            results = estimator.evaluate(X, Y)
            answers.append((results["global_step"], results["loss"], probabilities(estimator)))
    finally:
        ends.set()
        thread.join()
    steps = [step for step, _, _ in answers]
    assert steps == sorted(steps)
    assert len(set(steps)) > 1
    compare(tmp_path / "model", answers)


def test_predict_and_evaluate_from_a_hook_use_the_checkpoint(tmp_path):
    """They do not change a bit of the run. In the first step there is no checkpoint yet."""
    estimator = estimator_in(tmp_path / "model", save_checkpoints_steps=2, keep_checkpoint_max=99)
    seen = []

    def ask():
        if not seen:
            seen.append(None)
            for call in (estimator.evaluate, estimator.predict):
                with pytest.raises(mc.CheckpointError, match=r"fit .* writes one after its first"):
                    call(X)
            return
        results = estimator.evaluate(X, Y)
        seen.append((results["global_step"], results["loss"], probabilities(estimator)))

    estimator.fit(**FIT, steps=8, monitors=[EachStep(0, ask)])
    assert [each[0] for each in seen[1:]] == [1, 1, 3, 3, 5, 5, 7]
    for step, _, output in seen[1:]:
        assert_same_bits(output, saved_as(tmp_path / "model", step))
    compare(tmp_path / "model", seen[1:])
    estimator_in(tmp_path / "undisturbed").fit(**FIT, steps=8)
    assert_same_bits(probabilities(estimator), saved_as(tmp_path / "undisturbed", 8))


def test_validation_in_a_run_measures_the_weights_of_the_step(tmp_path):
    measured = {}

    class Measure(mc.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            results = run_context.session.evaluate(x=X, y=Y)
            measured[results["global_step"]] = results["loss"]

    config = {"save_checkpoints_steps": 1, "keep_checkpoint_max": 9}
    estimator = estimator_in(tmp_path, **config).fit(**FIT, steps=4, monitors=[Measure()])
    for step, loss in measured.items():
        path = tmp_path / f"model.ckpt-{step}.npz"
        assert estimator.evaluate(X, Y, checkpoint_path=path)["loss"] == loss
    assert list(measured) == [1, 2, 3, 4]


def test_an_iterator_keeps_its_weights_over_a_fit(folder):
    estimator = estimator_in(folder)
    expected = probabilities(estimator)
    rows = estimator.predict(X, batch_size=10)
    got = [next(rows)["probabilities"]]
    estimator.fit(**FIT, steps=3)
    shutil.rmtree(folder)
    got += [row["probabilities"] for row in rows]
    assert_same_bits(np.stack(got), expected)


def test_an_iterator_that_is_made_in_a_run_keeps_its_weights(folder):
    estimator, iterators = estimator_in(folder), []
    hook = At(5, lambda: iterators.append(estimator.predict(X)))
    estimator.fit(**FIT, steps=4, monitors=[hook])
    (rows,) = iterators
    got = np.stack([row["probabilities"] for row in rows])
    assert_same_bits(got, saved_as(folder, 4))  # what the first step of the run has saved


def fail(estimator):
    def stop():
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        estimator.fit(**FIT, steps=9, monitors=[EachStep(0, stop)])


def test_a_fit_that_fails_beside_a_predict_that_has_not_traced_yet(folder):
    """It fails after predict has found its weights, while the data is read."""
    estimator = estimator_in(folder)
    expected = saved_as(folder, 3)

    def slow():
        fail(estimator)
        yield X

    got = estimator.predict(input_fn=slow, as_iterable=False)["probabilities"]
    assert_same_bits(got, expected, probabilities(estimator))
    estimator.fit(**FIT, steps=2)  # nor do start values get into the next run
    estimator_in(folder.parent / "undisturbed").fit(**FIT, steps=5)
    assert_same_bits(probabilities(estimator), saved_as(folder.parent / "undisturbed", 5))


@pytest.mark.parametrize("mode", [mc.ModeKeys.EVAL, INFER])
def test_a_mode_with_other_parameters_never_gets_start_values(folder, mode):
    other = mode

    def model_fn(features, labels, mode):
        return network(extra=mode == other)(features, labels, mode)

    estimator = estimator_in(folder, model_fn)
    for _ in range(2):
        with pytest.raises(mc.CheckpointError, match=r"extra/.*the same layers for every mode"):
            estimator.predict(X) if mode == INFER else estimator.evaluate(X, Y)


def test_no_start_values_are_drawn_for_evaluate_and_predict(tmp_path):
    drawn = []

    def draw(shape, rng, dtype):
        drawn.append(shape)
        return np.full(shape, 0.5, dtype)

    def model_fn(features, labels, mode):
        logits = mc.layers.dense(features, 3, kernel_initializer=draw, bias_initializer=draw)
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        train_op = mc.optimize_loss(loss, learning_rate=0.1) if mode == TRAIN else None
        return mc.ModelFnOps(mode, mc.softmax(logits), loss, train_op)

    estimator = estimator_in(tmp_path, model_fn)
    monitor = mc.hooks.ValidationMonitor(X, Y, every_n_steps=1)
    estimator.fit(**FIT, steps=2, monitors=[monitor]).evaluate(X, Y)
    estimator_in(tmp_path, model_fn).evaluate(X, Y)
    assert drawn == [(4, 3), (3,)]


# Layers that are made outside of model_fn ---------------------------------------------------------


def around(model):
    """Return a model_fn that applies a model which was made outside of it."""
    def model_fn(features, labels, mode):
        logits = model(features)
        loss = train_op = None
        if mode != INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        if mode == TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.5, optimizer="Momentum")
        return mc.ModelFnOps(mode, {"probabilities": mc.softmax(logits)}, loss, train_op)
    return model_fn


def small():
    return mc.Sequential([mc.layers.Dense(6, activation="tanh"), mc.layers.Dense(3)])


@pytest.mark.parametrize("predicts_first", [True, False])
def test_a_model_that_model_fn_only_applies(tmp_path, predicts_first):
    """A prediction in the middle of a run does not change the run, nor the run the prediction."""
    undisturbed = estimator_in(tmp_path / "undisturbed", around(small()), keep_checkpoint_max=9)
    undisturbed.fit(**FIT, steps=2).fit(**FIT, steps=4)
    shutil.copytree(tmp_path / "undisturbed", tmp_path / "model")
    for path in (tmp_path / "model").glob("*-[356].npz"):
        path.unlink()
    (tmp_path / "model" / "checkpoint.json").unlink()
    outside, outputs = small(), []
    estimator = estimator_in(tmp_path / "model", around(outside), save_checkpoints_steps=100)
    if predicts_first:
        outputs.append(probabilities(estimator))
    ask = At(5, lambda: outputs.append(probabilities(estimator)))
    rows = estimator.predict(X) if predicts_first else ()
    estimator.fit(**FIT, steps=4, monitors=[ask])
    step_2, step_3, step_6 = (
        probabilities(undisturbed, checkpoint_path=tmp_path / "undisturbed" / f"model.ckpt-{s}.npz")
        for s in (2, 3, 6)
    )
    assert_same_bits(outputs[-1], step_3)
    if predicts_first:
        assert_same_bits(outputs[0], step_2, np.stack([row["probabilities"] for row in rows]))
    assert_same_bits(probabilities(estimator), step_6)
    for parameter in outside.parameters:  # it is the model that is trained
        assert_same_bits(parameter.value, estimator.get_variable_value(parameter.name))
        parameter.value[...] = 0
    assert_same_bits(probabilities(estimator), step_6)  # the checkpoint counts


# Folders that are gone, and damage ----------------------------------------------------------------


@pytest.mark.parametrize("reads", ["nothing", "after the fit", "alone"])
def test_where_the_folder_is_gone_what_is_in_memory_is_used(folder, caplog, reads):
    estimator = estimator_in(folder).fit(**FIT, steps=1)
    expected = saved_as(folder, 4)
    if reads == "alone":
        estimator = estimator_in(folder)
    if reads != "nothing":
        estimator.evaluate(X, Y)
    folder.rename(folder.with_name("moved"))
    for _ in range(2):
        assert estimator.evaluate(X, Y)["global_step"] == 4
        assert_same_bits(probabilities(estimator), expected)
    gone, unwritten = warnings_in(caplog)
    assert f"There is no checkpoint in {folder} any more; the weights of step 4" in gone
    assert f"{folder / 'evaluations.jsonl'} cannot be written" in unwritten
    folder.with_name("moved").rename(folder)
    estimator_in(folder).fit(**FIT, steps=1)
    assert estimator.evaluate(X, Y)["global_step"] == 5
    with pytest.raises(mc.CheckpointError, match="no checkpoint"):
        estimator_in(folder / "none").predict(X)


def test_a_damaged_file_is_read_again_when_it_changes(folder, monkeypatch, caplog):
    read, load, newest = [], checkpoints.load, folder / "model.ckpt-3.npz"

    def noted(path, **options):
        read.append(path.name)
        return load(path, **options)

    good = newest.read_bytes()
    cut(newest)
    make_old(folder)
    monkeypatch.setattr(checkpoints, "load", noted)
    estimator = estimator_in(folder)
    for _ in range(3):
        assert estimator.evaluate(X, Y)["global_step"] == 2
        make_old(folder)  # evaluations.jsonl is new
    assert read == ["model.ckpt-3.npz", "model.ckpt-2.npz"]
    assert len(warnings_in(caplog)) == 1
    newest.write_bytes(good)  # in its place, which changes nothing in the folder
    assert estimator.evaluate(X, Y)["global_step"] == 3
    assert read[2:] == ["model.ckpt-3.npz"]


def test_where_all_are_damaged_a_good_copy_helps_the_same_estimator(folder):
    newest, good = folder / "model.ckpt-3.npz", (folder / "model.ckpt-3.npz").read_bytes()
    for path in folder.glob("model.ckpt-*.npz"):
        cut(path)
    make_old(folder)
    estimator = estimator_in(folder)
    for _ in range(2):
        with pytest.raises(mc.CheckpointError, match="put a good copy of one there"):
            estimator.evaluate(X, Y)
    newest.write_bytes(good)
    assert estimator.evaluate(X, Y)["global_step"] == 3


# A checkpoint by its path -------------------------------------------------------------------------


def test_a_chosen_checkpoint(folder, monkeypatch):
    estimator = estimator_in(folder)
    for step in (1, 3, 2):
        path = folder / f"model.ckpt-{step}.npz"
        expected = saved_as(folder, step)
        assert estimator.evaluate(X, Y, checkpoint_path=path)["global_step"] == step
        assert_same_bits(probabilities(estimator, checkpoint_path=str(path)), expected)
        monkeypatch.chdir(folder)
        assert_same_bits(probabilities(estimator, checkpoint_path=path.name), expected)
    with monkeypatch.context() as patch:  # it is kept in memory, beside the newest
        assert estimator.evaluate(X, Y)["global_step"] == 3
        patch.setattr(checkpoints, "load", None)
        assert estimator.evaluate(X, Y, checkpoint_path=path)["global_step"] == 2
        assert estimator.evaluate(X, Y)["global_step"] == 3
    for step in (1, 3):  # the file may be replaced by another
        shutil.copy(folder / f"model.ckpt-{step}.npz", folder / "best.npz")
        output = probabilities(estimator, checkpoint_path=folder / "best.npz")
        assert_same_bits(output, saved_as(folder, step))


def test_a_chosen_checkpoint_that_cannot_be_used(folder):
    estimator = estimator_in(folder)
    calls = [
        lambda path: estimator.evaluate(X, Y, checkpoint_path=path),
        lambda path: estimator.predict(X, checkpoint_path=path),
    ]
    cut(folder / "model.ckpt-1.npz")
    for call in calls:
        with pytest.raises(mc.CheckpointError, match=r"`checkpoint_path`.*ckpt-9.*ckpt-3\.npz"):
            call(folder / "model.ckpt-9.npz")
        with pytest.raises(mc.CheckpointError, match=r"ckpt-1\.npz is not a valid checkpoint"):
            call(folder / "model.ckpt-1.npz")
        with pytest.raises(TypeError, match="`checkpoint_path` must be"):
            call(3)
    assert estimator.evaluate(X, Y)["global_step"] == 3


# Memory, forks, signals ---------------------------------------------------------------------------


def test_old_weights_are_freed_with_their_iterator(folder):
    reader = estimator_in(folder)
    old = weakref.ref(reader._models.latest())
    trace = weakref.ref(reader._models.latest().trace(INFER, (X, None)))
    rows = reader.predict(X)
    estimator_in(folder).fit(**FIT, steps=1)
    reader.evaluate(X, Y)
    gc.collect()
    assert old() is None
    assert trace() is not None
    assert len(list(rows)) == len(X)
    del rows
    gc.collect()
    assert trace() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_that_is_forked_while_another_thread_traces(folder):
    tracing, go_on = threading.Event(), threading.Event()

    def model_fn(features, labels, mode):
        if threading.current_thread() is thread:
            tracing.set()
            go_on.wait(SECONDS)
        return network()(features, labels, mode)

    estimator = estimator_in(folder, model_fn)
    expected = saved_as(folder, 3)
    thread = threading.Thread(target=estimator.predict, args=(X,))
    thread.start()
    assert tracing.wait(SECONDS)
    child = os.fork()
    if not child:
        signal.alarm(SECONDS // 2)  # kills a child that waits forever
        os._exit(probabilities(estimator).tobytes() != expected.tobytes())
    go_on.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    assert_same_bits(probabilities(estimator), expected)


def test_a_signal_handler_predicts_while_its_thread_traces(folder):
    outputs = []

    def model_fn(features, labels, mode):
        h = mc.layers.dense(features, 8, activation=mc.relu, name="hidden")
        if not outputs:
            outputs.append(None)  # like a signal handler between two lines
            outputs.append(probabilities(estimator))
        logits = mc.layers.dense(h, 3, name="logits")
        return mc.ModelFnOps(mode, {"probabilities": mc.softmax(logits)})

    estimator = estimator_in(folder, model_fn)
    expected = saved_as(folder, 3)
    assert_same_bits(probabilities(estimator), expected, probabilities(estimator), outputs[1])


def test_the_file_of_the_newest_checkpoint(tmp_path):
    reader, writer = estimator_in(tmp_path), estimator_in(tmp_path)
    with pytest.raises(mc.CheckpointError, match="call fit first"):
        reader.latest_checkpoint()
    for step in (1, 2):
        writer.fit(**FIT, steps=1)
        assert reader.latest_checkpoint() == tmp_path / f"model.ckpt-{step}.npz"
    cut(tmp_path / "model.ckpt-2.npz")  # as evaluate and predict do, the next older one
    assert reader.latest_checkpoint() == tmp_path / "model.ckpt-1.npz"
