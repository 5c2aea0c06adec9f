"""Tests of ValidationMonitor in runs: the best values, the schedule, and interruptions."""

import json
import logging
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.core.npz import read_npz, write_npz
from minicnn.estimator import checkpoints
from minicnn.hooks import SessionRunHook, ValidationMonitor

RNG = np.random.default_rng(3)
X, Y = RNG.normal(size=(40, 6)).astype(np.float32), RNG.integers(0, 3, 40)
NEW_X, NEW_Y = RNG.normal(size=(30, 6)).astype(np.float32), RNG.integers(0, 3, 30)
BEST, STOP = 9, 17  # what the monitor below measures on this noise: the loss falls and then rises


def model_fn(features, labels, mode):
    h = mc.layers.dense(features, 16, activation=mc.relu, name="hidden")
    logits = mc.layers.dense(mc.layers.dropout(h, 0.2, training=mode == "train"), 3, name="logits")
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(
            loss, learning_rate=0.03, optimizer="Adam",
            learning_rate_decay_fn=lambda rate, step: rate / (1 + step / 100),
        )
    return mc.ModelFnOps(mode, {"classes": mc.argmax(logits, axis=1)}, loss, train_op)


def stopper(**options):
    options = {"every_n_steps": 4, "early_stopping_rounds": 8} | options
    return ValidationMonitor(NEW_X, NEW_Y, **options)


def estimator_in(folder, **config):
    return mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=1, **config))


def fit(folder, *monitors, max_steps=60, **config):
    return estimator_in(folder, **config).fit(
        X, Y, batch_size=9, max_steps=max_steps, monitors=list(monitors)
    )


def arrays_in(path):
    arrays = read_npz(path, sealed=True)
    return json.loads(str(arrays.pop("meta.json"))), arrays


def assert_same_file(first, second):
    (first_meta, first), (second_meta, second) = arrays_in(first), arrays_in(second)
    assert first_meta == second_meta
    assert first.keys() == second.keys()
    for name in first:
        assert_same_bits(first[name], second[name])


def steps_in(folder, name="validation"):
    lines = map(json.loads, (folder / "evaluations.jsonl").read_text().splitlines())
    return [line["global_step"] for line in lines if line["name"] == name]


def saved(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("model.ckpt-*.npz"))


class Copies(SessionRunHook):
    """Keep a copy of every array after each step."""

    def __init__(self):
        self.arrays = {}

    def after_run(self, run_context, run_values):
        arrays, _ = run_context.session.snapshot()
        self.arrays[run_context.session.global_step] = {k: v.copy() for k, v in arrays.items()}


class CtrlC(SessionRunHook):
    def __init__(self, step):
        self.step = step

    def before_run(self, run_context):
        if run_context.session.global_step == self.step - 1:
            signal.raise_signal(signal.SIGINT)


class Fail(CtrlC):
    """Fail after a step like a killed process: nothing is saved or called afterwards."""

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == self.step:
            raise RuntimeError("killed")

    before_run = SessionRunHook.before_run


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that early stopping has ended: its folder, estimator, monitor and copies."""
    folder, monitor, copies = tmp_path_factory.mktemp("stopped"), stopper(), Copies()
    return folder, fit(folder, monitor, copies, save_checkpoints_steps=5), monitor, copies.arrays


# The best values ----------------------------------------------------------------------------------


def test_the_best_values_are_put_back_where_the_monitor_ends_the_run(stopped):
    folder, estimator, monitor, copies = stopped
    assert (monitor.best_step, monitor.early_stopped) == (BEST, True)
    for model in (estimator, estimator_in(folder)):
        results = model.evaluate(NEW_X, NEW_Y)
        assert results == {"loss": monitor.best_value, "global_step": STOP}
    meta, arrays = arrays_in(folder / f"model.ckpt-{STOP}.npz")
    assert (meta["global_step"], meta["best_step"]) == (STOP, BEST)
    assert arrays.keys() == copies[BEST].keys()
    assert any("adam" in name for name in arrays)
    for name in arrays:
        assert_same_bits(arrays[name], copies[BEST][name])
        if name.startswith("parameters/"):
            value = estimator.get_variable_value(name.removeprefix("parameters/"))
            assert_same_bits(value, copies[BEST][name])
    assert "best_step" not in arrays_in(folder / "model.ckpt-16.npz")[0]


def test_the_best_checkpoint_is_a_file_that_is_never_the_newest(stopped):
    folder, _, monitor, copies = stopped
    assert monitor.best_checkpoint == folder / "model.best-validation.npz"
    meta, arrays = arrays_in(monitor.best_checkpoint)
    assert meta["global_step"] == BEST
    for name in arrays:
        assert_same_bits(arrays[name], copies[BEST][name])
    assert checkpoints.load(monitor.best_checkpoint).meta["global_step"] == BEST
    assert checkpoints.newest(folder).meta["global_step"] == STOP


def test_the_best_checkpoint_is_evaluated_by_its_path(tmp_path):
    monitor = stopper(early_stopping_rounds=None, keep_best=True)
    estimator = fit(tmp_path, monitor, max_steps=24)
    newest = estimator.evaluate(NEW_X, NEW_Y)
    for model in (estimator, estimator_in(tmp_path)):
        best = model.evaluate(NEW_X, NEW_Y, checkpoint_path=monitor.best_checkpoint)
        assert best == {"loss": monitor.best_value, "global_step": monitor.best_step}
        assert model.evaluate(NEW_X, NEW_Y) == newest
    assert newest["global_step"] == 24
    assert newest["loss"] > monitor.best_value


def test_a_run_continues_from_the_values_that_were_put_back(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="minicnn")
    fit(tmp_path, stopper())
    again = stopper()
    copies = Copies()
    fit(tmp_path, again, copies, max_steps=STOP + 5)  # it has patience again
    assert not again.early_stopped
    assert again.best_step in (BEST, STOP + 4, STOP + 5)
    assert copies.arrays[STOP + 1]["optimizer/iterations"] == BEST + 1
    said = [record.getMessage() for record in caplog.records]
    assert not [text for text in said if "learning rate changes" in text]
    assert f"The values of step {BEST} are restored." in said


@pytest.mark.parametrize("options, steps", [
    ({"restore_best_weights": False}, 60),  # not requested
    ({}, STOP - 1),  # max_steps ends the run
    ({"early_stopping_rounds": None, "keep_best": True}, 24),
])
def test_the_last_values_are_kept_where_nothing_is_to_be_put_back(tmp_path, options, steps):
    monitor, copies = stopper(**options), Copies()
    fit(tmp_path, monitor, copies, max_steps=steps)
    end = max(copies.arrays)
    meta, arrays = arrays_in(tmp_path / f"model.ckpt-{end}.npz")
    assert "best_step" not in meta
    assert monitor.best_step < end
    for name in arrays:
        assert_same_bits(arrays[name], copies.arrays[end][name])
    is_kept = options.get("restore_best_weights", True)
    assert (tmp_path / "model.best-validation.npz").is_file() == is_kept
    assert (monitor.best_checkpoint is not None) == is_kept


def test_the_end_of_the_data_puts_nothing_back(tmp_path):
    copies = Copies()
    estimator_in(tmp_path).fit(
        input_fn=lambda: iter([(X, Y)] * 20), monitors=[stopper(early_stopping_rounds=15), copies]
    )
    _, arrays = arrays_in(tmp_path / "model.ckpt-20.npz")
    assert_same_bits(arrays["parameters/logits/kernel"],
                     copies.arrays[20]["parameters/logits/kernel"])


def test_the_best_file_is_there_before_a_checkpoint_that_refers_to_it(tmp_path, monkeypatch):
    named, replace = [], os.replace

    def note(source, target, **options):
        named.append(Path(target).name)
        replace(source, target, **options)

    monkeypatch.setattr(os, "replace", note)
    saver = mc.hooks.CheckpointSaverHook(save_steps=1)  # given first, it still acts last
    fit(tmp_path, saver, stopper(keep_best=True), max_steps=6, keep_checkpoint_max=1)
    monkeypatch.undo()
    named = [name for name in named if name.startswith("model.")]
    best = "model.best-validation.npz"
    assert named[4:] == [
        best, "model.ckpt-5.npz", "model.ckpt-6.npz",
        best, "model.ckpt-6.npz",  # again: the last step was validated after it was saved
    ]
    assert arrays_in(tmp_path / "model.ckpt-6.npz")[0]["hooks"]["validation"]["best_step"] == 6
    assert saved(tmp_path) == [6]
    (tmp_path / "model.ckpt-6.npz").unlink()
    assert checkpoints.newest(tmp_path) is None
    assert (tmp_path / best).is_file()


@pytest.mark.parametrize("damage", ["gone", "damaged", "of another model", "of another optimizer"])
def test_without_the_best_file_the_last_values_are_kept(tmp_path, caplog, damage):
    path = tmp_path / "model.best-validation.npz"

    class Damage(SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == STOP:
                meta, arrays = arrays_in(path)
                path.write_bytes(path.read_bytes()[:-9])
                if damage == "gone":
                    path.unlink()
                elif damage != "damaged":
                    part = "parameters" if damage == "of another model" else "optimizer"
                    name = min(name for name in arrays if name.startswith(part) and "k" in name)
                    arrays[name] = arrays[name][:1]
                    write_npz(path, {"meta.json": np.array(json.dumps(meta)), **arrays})

    copies, monitor = Copies(), stopper()
    estimator = fit(tmp_path, Damage(), monitor, copies)
    assert monitor.early_stopped
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "the values of the last step are kept" in warning
    meta, arrays = arrays_in(tmp_path / f"model.ckpt-{STOP}.npz")
    assert "best_step" not in meta
    for name in arrays:
        assert_same_bits(arrays[name], copies.arrays[STOP][name])
    assert estimator.evaluate(NEW_X, NEW_Y)["loss"] > monitor.best_value


def test_only_a_result_can_be_compared(tmp_path):
    monitor = stopper(every_n_steps=1, early_stopping_metric="global_step")
    with pytest.raises(ValueError, match="must be one of 'loss', got 'global_step'"):
        fit(tmp_path, monitor, max_steps=3)


def test_what_is_not_finite_is_never_the_best(tmp_path):
    values = iter([np.nan, np.inf, 3.0, -np.inf, np.nan, 2.0])
    metrics = {"it": mc.MetricSpec(lambda labels, predictions: next(values), "classes")}
    monitor = stopper(
        every_n_steps=1, metrics=metrics, early_stopping_metric="it",
        early_stopping_rounds=None, keep_best=True,
    )
    fit(tmp_path, monitor, max_steps=6)  # validated at 2, ..., 6
    assert (monitor.best_value, monitor.best_step) == (3.0, 4)
    values = iter([np.nan] * 9)
    monitor = stopper(
        every_n_steps=1, metrics=metrics, early_stopping_metric="it", name="other",
        early_stopping_rounds=3,
    )
    fit(tmp_path, monitor)
    assert (monitor.best_value, monitor.best_step, monitor.best_checkpoint) == (None, 0, None)
    assert monitor.early_stopped
    assert saved(tmp_path)[-1] == 11  # starts at 7, first evaluated at 8


# The schedule, and the last step ------------------------------------------------------------------


def test_the_last_step_is_validated_too_and_the_schedule_stays(tmp_path):
    for steps in (6, 9, 11):
        fit(tmp_path, stopper(early_stopping_rounds=None), max_steps=steps)
    assert steps_in(tmp_path) == [5, 6, 9, 11]
    fit(tmp_path, stopper(early_stopping_rounds=None, every_n_steps=3), max_steps=12)
    assert steps_in(tmp_path) == [5, 6, 9, 11, 12]


def test_ctrl_c_does_not_wait_for_another_validation(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stopper(), CtrlC(7))
    assert steps_in(tmp_path) == [5]
    assert saved(tmp_path) == [1, 7]


def test_the_last_step_may_be_the_best(tmp_path):
    monitor = stopper(keep_best=True, every_n_steps=100)
    estimator = fit(tmp_path, monitor, max_steps=5)
    assert monitor.best_step == 5
    assert arrays_in(monitor.best_checkpoint)[0]["global_step"] == 5
    assert monitor.best_value == estimator.evaluate(NEW_X, NEW_Y)["loss"]


# Interruptions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [CtrlC, Fail])
@pytest.mark.parametrize("step", [3, 5, 8, BEST, BEST + 1, 13, 16, STOP])
def test_an_interrupted_run_stops_where_an_uninterrupted_one_does(stopped, tmp_path, how, step):
    whole, _, expected, _ = stopped
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        fit(tmp_path, stopper(), how(step), save_checkpoints_steps=5)
    monitor = stopper()
    fit(tmp_path, monitor, save_checkpoints_steps=5)
    assert_same_file(whole / f"model.ckpt-{STOP}.npz", tmp_path / f"model.ckpt-{STOP}.npz")
    assert_same_file(expected.best_checkpoint, monitor.best_checkpoint)
    assert (monitor.best_step, monitor.best_value) == (expected.best_step, expected.best_value)
    assert monitor.early_stopped


def test_ctrl_c_in_the_step_of_the_stop_puts_nothing_back_yet(tmp_path):
    copies = Copies()
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, stopper(), copies, CtrlC(STOP))
    _, arrays = arrays_in(tmp_path / f"model.ckpt-{STOP}.npz")
    for name in arrays:
        assert_same_bits(arrays[name], copies.arrays[STOP][name])


def test_a_monitor_of_the_same_estimator_continues(stopped, tmp_path):
    whole, _, expected, _ = stopped
    estimator = estimator_in(tmp_path, save_checkpoints_steps=5)
    for step in (4, 5, 9, 14, 60):
        monitor = stopper()
        estimator.fit(X, Y, batch_size=9, max_steps=step, monitors=[monitor])
        if step < 60:  # without a monitor its state is kept as it is
            estimator.fit(X, Y, batch_size=9, max_steps=step)
    assert_same_file(whole / f"model.ckpt-{STOP}.npz", tmp_path / f"model.ckpt-{STOP}.npz")
    assert monitor.best_value == expected.best_value


def test_a_run_without_the_monitor_keeps_its_state(tmp_path):
    fit(tmp_path, stopper(), max_steps=6)
    fit(tmp_path, max_steps=8)
    fit(tmp_path, stopper(), max_steps=10)
    assert steps_in(tmp_path) == [5, 6, 9, 10]


def test_a_checkpoint_of_before_there_were_states_is_continued(tmp_path):
    fit(tmp_path, max_steps=6)
    meta, arrays = arrays_in(tmp_path / "model.ckpt-6.npz")
    assert list(meta.pop("hooks")) == ["history"]
    write_npz(tmp_path / "model.ckpt-6.npz", {"meta.json": np.array(json.dumps(meta)), **arrays})
    monitor = stopper()
    fit(tmp_path, monitor, max_steps=12)
    assert steps_in(tmp_path) == [11, 12]
    assert monitor.best_step in (11, 12)


def test_the_validation_at_the_end_of_a_part_does_not_move_the_stop(tmp_path):
    """On the schedule the values fall until step 9; off it, that of step 7 is the best."""
    values = {5: 0.5, 7: 0.1, 9: 0.4, 13: 0.6, 17: 0.6}

    class Values(SessionRunHook):
        def after_run(self, run_context, run_values):
            self.step = run_context.session.global_step

    now = Values()
    metrics = {"v": mc.MetricSpec(lambda labels, predictions: values[now.step], "classes")}
    for end in (7, 40):
        monitor = stopper(metrics=metrics, early_stopping_metric="v")
        fit(tmp_path, now, monitor, max_steps=end)
    assert (now.step, monitor.best_step, monitor.best_value) == (17, 7, 0.1)
    assert arrays_in(tmp_path / "model.ckpt-17.npz")[0]["best_step"] == 7


WRONG = [
    {"best_step": 10**9}, {"best_step": -1}, {"since": 7}, {"measured": "5"}, {"measured": 7},
    {"scheduled": 1.5}, {"scheduled": 7},
    {"best_value": "low"}, {"best_value": float("nan")}, {"mark": "low"}, {"stops": 1}, None,
]


@pytest.mark.parametrize("wrong", WRONG)
def test_a_state_that_no_monitor_has_written_is_not_used(tmp_path, caplog, wrong):
    fit(tmp_path, stopper(), max_steps=6)
    path = tmp_path / "model.ckpt-6.npz"
    meta, arrays = arrays_in(path)
    state = meta["hooks"]["validation"]
    meta["hooks"]["validation"] = {"scheduled": 5} if wrong is None else state | wrong
    write_npz(path, {"meta.json": np.array(json.dumps(meta)), **arrays})
    monitor = stopper()
    fit(tmp_path, monitor, max_steps=11)
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "state of monitor 'validation' is unusable; it starts again" in warning
    assert steps_in(tmp_path) == [5, 6, 11]
    assert monitor.best_step == 11


def test_states_that_are_no_dicts_are_damage(tmp_path):
    fit(tmp_path, stopper(), max_steps=6)
    path = tmp_path / "model.ckpt-6.npz"
    meta, arrays = arrays_in(path)
    for wrong in ([], {"validation": 3}):
        meta["hooks"] = wrong
        write_npz(path, {"meta.json": np.array(json.dumps(meta)), **arrays})
        with pytest.raises(mc.CheckpointError):
            checkpoints.load(path)


def test_another_metric_has_another_best(tmp_path):
    fit(tmp_path, stopper(keep_best=True), max_steps=6)
    accuracy = mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")
    monitor = stopper(metrics={"accuracy": accuracy}, early_stopping_metric="accuracy",
                      early_stopping_metric_minimize=False)
    fit(tmp_path, monitor, max_steps=8)
    assert steps_in(tmp_path) == [5, 6, 8]
    assert monitor.best_step == 8
    assert 0 <= monitor.best_value <= 1


def test_a_best_value_without_its_file_does_not_count(tmp_path):
    fit(tmp_path, stopper(), max_steps=BEST)
    (tmp_path / "model.best-validation.npz").unlink()
    monitor = stopper()
    fit(tmp_path, monitor, max_steps=BEST + 2)
    assert monitor.best_step == BEST + 2
    assert monitor.best_checkpoint.is_file()


def test_patience_without_any_value_is_kept_too(tmp_path):
    metrics = {"v": mc.MetricSpec(lambda labels, predictions: np.nan, "classes")}
    for end in (10, 40):
        fit(tmp_path, stopper(metrics=metrics, early_stopping_metric="v"), max_steps=end)
    assert saved(tmp_path)[-1] == 13  # measured at 5, 9, 10 and 13


# Names --------------------------------------------------------------------------------------------


def test_each_line_says_what_was_evaluated_and_on_how_many_rows(tmp_path):
    monitors = [
        ValidationMonitor(NEW_X, NEW_Y, batch_size=7, every_n_steps=4, keep_best=True),
        ValidationMonitor(X, Y, every_n_steps=4, name="training rows"),
        ValidationMonitor(X[:5], Y[:5], every_n_steps=4, keep_best=True),
    ]
    estimator = fit(tmp_path, *monitors, max_steps=5)
    plain = estimator.evaluate(NEW_X, NEW_Y)
    assert plain == estimator.evaluate(NEW_X, NEW_Y, name="test")
    assert plain.keys() == {"loss", "global_step"}
    estimator.evaluate(X, Y, batch_size=9, steps=2)
    lines = map(json.loads, (tmp_path / "evaluations.jsonl").read_text().splitlines())
    assert [(line["name"], line["rows"]) for line in lines] == [
        ("validation", 30), ("training rows", 40), ("validation_2", 5),
        ("evaluation", 30), ("test", 30), ("evaluation", 18),
    ]
    files = [monitor.best_checkpoint and monitor.best_checkpoint.name for monitor in monitors]
    assert files == ["model.best-validation.npz", None, "model.best-validation_2.npz"]
    assert {path.name for path in tmp_path.glob("model.best*")} == {files[0], files[2]}


@pytest.mark.parametrize("name", ["", "a/b", "..\\b", "a\n", "ü", "x" * 101])
def test_a_name_must_do_for_a_file(name):
    with pytest.raises((TypeError, ValueError), match="`name`"):
        stopper(name=name)


@pytest.mark.parametrize("name", ["name", "rows"])
def test_metrics_have_other_names_than_the_keys_of_a_line(tmp_path, name):
    estimator = fit(tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=f"other names than evaluate's own, got '{name}'"):
        estimator.evaluate(X, Y, metrics={name: mc.MetricSpec(mc.metrics.accuracy, "classes")})


# Other hooks --------------------------------------------------------------------------------------


class Count(SessionRunHook):
    """Count the steps, over interruptions too."""

    def __init__(self, end=None, name=None):
        self.end_at, self.count, self.name = end, 0, name

    def resume(self, run_context, name, state):
        self.known_as, self.count = name, state.get("count", 0)
        if self.count == self.end_at:
            run_context.request_stop()

    def after_run(self, run_context, run_values):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}


def test_any_hook_may_keep_a_state_in_checkpoints(tmp_path):
    for steps, count in ((3, 3), (7, 7)):
        hooks = Count(), Count(), Count(name="mine")
        fit(tmp_path, *hooks, max_steps=steps)
        assert [hook.known_as for hook in hooks] == ["Count", "Count_2", "mine"]
        assert {hook.count for hook in hooks} == {count}
    fit(tmp_path, Count(end=7), max_steps=20)  # it stops before the first step
    assert saved(tmp_path)[-1] == 7


@pytest.mark.parametrize("state", [{"n": np.float32(1)}, [1], {"a": {1}}])
def test_a_state_that_json_cannot_hold_is_named(tmp_path, state):
    class Wrong(SessionRunHook):
        def state_dict(self):
            return state

    with pytest.raises(TypeError, match=r"`state_dict` of the hook 'Wrong' must return a dict"):
        fit(tmp_path, Wrong(), max_steps=2)
    assert saved(tmp_path) == []
