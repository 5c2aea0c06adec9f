"""Tests of resuming from checkpoints: bit for bit, whatever stopped the run.

tests/estimator/test_checkpoints.py tests the files: damage, hostile files, locks, full disks.
The processes that are stopped are real ones. They run this file's own `main`, so that both sides
train the same model.
"""

import json
import logging
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc

ROOT = Path(__file__).parents[2]
ROWS = 50
X = np.random.default_rng(0).normal(size=(ROWS, 36)).astype(np.float32)
Y = np.arange(ROWS) % 3


def decayed(rate, step):
    return rate / (1 + step / 10)


OPTIMIZERS = {
    "momentum": {"optimizer": lambda rate: mc.optimizers.SGD(rate, momentum=0.9)},
    "adam": {"optimizer": "Adam", "learning_rate_decay_fn": decayed, "clip_gradients": 1.0},
    "nesterov of some": {
        "optimizer": lambda rate: mc.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        "variables": ["logits/kernel", "hidden/bias"],
    },
}


def model_fn(features, labels, mode, params):
    """Build a small network with everything that uses random numbers or keeps state."""
    training = mode == mc.ModeKeys.TRAIN
    h = mc.reshape(features, [-1, 6, 6, 1])
    h = mc.layers.conv2d(h, 4, 3, padding="same", activation=mc.relu)
    h = mc.layers.dropout(mc.layers.max_pooling2d(h, 2, 2), 0.2, training=training)
    h = mc.layers.dense(mc.reshape(h, [-1, 36]), 8, activation=mc.relu, name="hidden")
    h = mc.layers.dropout(h, 0.4, training=training)
    logits = mc.layers.dense(h, 3, name="logits")
    if "variables" in OPTIMIZERS[params["optimizer"]]:
        mc.layers.dense(h, 2, name="unused")  # no gradient reaches it
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if training:
        train_op = mc.optimize_loss(loss, learning_rate=0.02, **OPTIMIZERS[params["optimizer"]])
    return mc.ModelFnOps(mode, mc.softmax(logits, name="softmax_tensor"), loss, train_op)


def batches():
    """Yield 70 batches, the same ones every time."""
    rng = np.random.default_rng(3)
    for _ in range(70):
        rows = rng.integers(ROWS, size=7)
        yield X[rows], Y[rows]


DATA = {"arrays": {"x": X, "y": Y, "batch_size": 7}, "input_fn": {"input_fn": batches}}


def estimator_in(folder, optimizer="momentum", seed=1, **config):
    config = mc.RunConfig(seed=seed, **config)
    return mc.Estimator(model_fn, folder, params={"optimizer": optimizer}, config=config)


def train(folder, max_steps, optimizer="momentum", data="arrays", monitors=(), **config):
    estimator = estimator_in(folder, optimizer, **config)
    return estimator.fit(**DATA[data], max_steps=max_steps, monitors=list(monitors))


def arrays_in(folder, step):
    """Return every array of a checkpoint, also the optimizer's, read by NumPy alone."""
    with np.load(folder / f"model.ckpt-{step}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def assert_same_checkpoints(first, second, step):
    """Compare everything except the states of the monitors."""
    first, second = arrays_in(first, step), arrays_in(second, step)
    metas = [json.loads(str(arrays.pop("meta.json"))) | {"hooks": 0} for arrays in (first, second)]
    assert metas[0] == metas[1]
    assert first.keys() == second.keys()
    assert any(name.endswith(("momentum", "adam_s")) for name in first)
    for name in first:
        assert_same_bits(first[name], second[name])


# The process that is stopped ----------------------------------------------------------------------


class Ready(mc.hooks.SessionRunHook):
    """Print that the kernels are loaded and training has started."""

    def after_run(self, run_context, run_values):
        if run_context.session.global_step >= 1:
            print(f"step {run_context.session.global_step}", flush=True)


def die_before_renaming(name):
    """Kill this process just before a complete temporary file is renamed to `name`."""
    replace = os.replace

    def replace_or_die(source, target, **options):
        if os.path.basename(target) == name:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target, **options)

    os.replace = os.rename = replace_or_die


def main(jobs):
    """Train once for each job: keyword arguments of `train`, and how the run is stopped."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for job in json.loads(jobs):
        if "die" in job:
            die_before_renaming(job.pop("die"))
        monitors = [Ready()] if job.pop("ready", False) else []
        train(Path(job.pop("folder")), monitors=monitors, **job)


def start(*jobs):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    text = json.dumps([job | {"folder": str(job["folder"])} for job in jobs])
    program = "import sys; from estimator import test_resume; test_resume.main(sys.argv[1])"
    return subprocess.Popen(
        [sys.executable, "-c", program, text], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )


def finish(*jobs):
    process = start(*jobs)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


# Resuming -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the folder of an uninterrupted run to a step; made once for each step."""
    folders = {}

    def run(step, optimizer="momentum", data="arrays"):
        key = step, optimizer, data
        if key not in folders:
            folders[key] = tmp_path_factory.mktemp("uninterrupted")
            train(folders[key], step, optimizer, data)
        return folders[key]
    return run


CASES = [("momentum", "arrays"), ("adam", "input_fn"), ("momentum", "input_fn"), ("adam", "arrays")]


def test_sixty_steps_are_thirty_and_thirty_of_another_process(tmp_path, uninterrupted):
    for total in (30, 60):
        finish(*(
            {"folder": tmp_path / f"{optimizer} {data}", "max_steps": total,
             "optimizer": optimizer, "data": data}
            for optimizer, data in CASES
        ))
    for optimizer, data in CASES:
        expected = uninterrupted(60, optimizer, data)
        assert_same_checkpoints(tmp_path / f"{optimizer} {data}", expected, 60)


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_sixty_steps_are_many_short_runs(tmp_path, uninterrupted, optimizer, data):
    """Short runs by one Estimator, by a new one each time, and by one that predicts in between."""
    expected = uninterrupted(60, optimizer, data)
    one = estimator_in(tmp_path / "one", optimizer)
    for steps in (1, 29, 7, 23):
        one.fit(**DATA[data], steps=steps)
    assert_same_checkpoints(tmp_path / "one", expected, 60)
    for total in (30, 31, 60):
        train(tmp_path / "new", total, optimizer, data)
    assert_same_checkpoints(tmp_path / "new", expected, 60)
    for total in (30, 60):
        asked = estimator_in(tmp_path / "asked", optimizer)
        if total == 60:
            list(asked.predict(X))  # its trace comes first, and the optimizer's state later
            asked.evaluate(X, Y)
        asked.fit(**DATA[data], max_steps=total)
        asked.evaluate(X, Y)
    assert_same_checkpoints(tmp_path / "asked", expected, 60)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_optimizer_continues_without_a_warning(tmp_path, caplog, optimizer):
    for total in (2, 4):
        train(tmp_path, total, optimizer)
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.INFO] == []


@pytest.mark.parametrize("target", [
    lambda logits: mc.one_hot(mc.argmax(logits, axis=1), 3), mc.softmax,
])
def test_a_layer_that_no_gradient_reaches_does_not_set_the_optimizer_back(tmp_path, caplog, target):
    """For example a teacher network, whose answers are the labels."""
    def taught(features, labels, mode):
        teacher, logits = (mc.layers.dense(features, 3, name=name) for name in ("teacher", "pupil"))
        loss = mc.losses.softmax_cross_entropy(target(teacher), logits)
        train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="Momentum")
        return mc.ModelFnOps(mode, logits, loss, train_op)

    for name, parts in (("whole", [9]), ("parts", [4, 9])):
        for total in parts:
            estimator = mc.Estimator(taught, tmp_path / name, config=mc.RunConfig(seed=1))
            estimator.fit(X, batch_size=7, max_steps=total)
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.INFO] == []
    assert_same_checkpoints(tmp_path / "whole", tmp_path / "parts", 9)


class Evaluate(mc.hooks.SessionRunHook):
    """Evaluate after every step, also after the first, when nothing is saved yet."""

    def after_run(self, run_context, run_values):
        run_context.session.evaluate(x=X, y=Y)


def test_hooks_and_checkpoints_do_not_change_the_bits(tmp_path, uninterrupted):
    monitors = [
        mc.hooks.LoggingTensorHook(["softmax_tensor"], every_n_iter=7), Evaluate(),
        mc.hooks.ValidationMonitor(X, Y, every_n_steps=11),
    ]
    for total in (25, 60):
        train(tmp_path, total, monitors=monitors, save_checkpoints_steps=4)
    assert_same_checkpoints(tmp_path, uninterrupted(60), 60)


def test_the_number_of_threads_does_not_change_the_bits(tmp_path, uninterrupted):
    before = mc.get_num_threads()
    try:
        for total, threads in ((20, 2), (40, 1), (60, 3)):
            mc.set_num_threads(threads)
            train(tmp_path, total)
    finally:
        mc.set_num_threads(before)
    assert_same_checkpoints(tmp_path, uninterrupted(60), 60)


def test_a_run_without_a_seed_keeps_the_one_it_drew(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="minicnn")
    for total in (10, 20):
        train(tmp_path / "drawn", total, seed=None)
    (line,) = [r.getMessage() for r in caplog.records if "seed of this run" in r.getMessage()]
    train(tmp_path / "told", 20, seed=int(line.rstrip(".").split()[-1]))
    assert_same_checkpoints(tmp_path / "drawn", tmp_path / "told", 20)


def test_dropout_drops_others_in_every_step(tmp_path):
    def dropped_ones(features, labels, mode):
        h = mc.layers.dropout(features, 0.4, training=True)
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), mc.layers.dense(h, 3))
        return mc.ModelFnOps(mode, h, loss, mc.optimize_loss(loss, learning_rate=0.1))

    class Collect(mc.hooks.SessionRunHook):
        def before_run(self, run_context):
            return mc.hooks.SessionRunArgs("dropout")

        def after_run(self, run_context, run_values):
            masks.append((run_values.results == 0).tobytes())

    masks = []
    estimator = mc.Estimator(dropped_ones, tmp_path, config=mc.RunConfig(seed=1))
    for _ in range(3):  # nor does a new run start with the same
        estimator.fit(np.ones_like(X), Y, steps=3, batch_size=ROWS, monitors=[Collect()])
    assert len(set(masks)) == 9


# Stopped ------------------------------------------------------------------------------------------


def newest(folder):
    """Return the step that a new Estimator finds and can load."""
    return estimator_in(folder).evaluate(X[:1], Y[:1])["global_step"]


def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path):
    draw, steps = random.Random(7), []
    for _ in range(10):
        process = start({
            "folder": tmp_path / "model", "max_steps": 10**6, "save_checkpoints_steps": 1,
            "ready": True,
        })
        for line in process.stdout:  # the first checkpoint is written by the second step
            if int(line.split()[1]) >= 2:
                break
        try:
            process.wait(draw.uniform(0, 0.08))
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        steps.append(newest(tmp_path / "model"))
    assert steps == sorted(steps)
    assert steps[-1] > steps[0]  # each run has continued the one before
    end = steps[-1] + 5
    train(tmp_path / "model", end)
    train(tmp_path / "uninterrupted", end)
    assert_same_checkpoints(tmp_path / "model", tmp_path / "uninterrupted", end)


@pytest.mark.parametrize("name, left", [("model.ckpt-4.npz", 3), ("checkpoint.json", None)])
def test_a_kill_between_writing_and_renaming(tmp_path, uninterrupted, name, left):
    """The new file is complete under its temporary name, and the old one still counts."""
    train(tmp_path, 3, save_checkpoints_steps=1)
    process = start({
        "folder": tmp_path, "max_steps": 60, "save_checkpoints_steps": 1, "die": name,
    })
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    if left is None:  # the new checkpoint is complete: it counts, or the one before it does
        assert newest(tmp_path) in (3, 4)
    else:
        assert newest(tmp_path) == left
    train(tmp_path, 60)
    assert_same_checkpoints(tmp_path, uninterrupted(60), 60)


def test_ctrl_c_ends_the_run_after_the_step_with_a_checkpoint(tmp_path):
    process = start({"folder": tmp_path / "model", "max_steps": 10**6, "ready": True})
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGINT)  # as shells expect
    lines = errors.splitlines()
    assert lines[-1].startswith("KeyboardInterrupt: Interrupted after step")
    (said,) = [line for line in lines if line.startswith("Interrupted after step")]
    assert "run the same again to continue" in said
    stopped = newest(tmp_path / "model")
    assert f"after step {stopped};" in said
    assert output.splitlines()[-1:] in ([f"step {stopped}"], [])
    train(tmp_path / "model", stopped + 5)
    train(tmp_path / "uninterrupted", stopped + 5)
    assert_same_checkpoints(tmp_path / "model", tmp_path / "uninterrupted", stopped + 5)


class Interrupt(mc.hooks.SessionRunHook):
    """Press Ctrl-C in the fifth step, `times` times."""

    def __init__(self, times):
        self.times = times

    def before_run(self, run_context):
        if run_context.session.global_step == 4:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("times, step", [(1, 5), (2, 1)])
def test_a_second_ctrl_c_does_not_wait_for_the_step(tmp_path, uninterrupted, times, step):
    before = signal.getsignal(signal.SIGINT)
    estimator = estimator_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(**DATA["arrays"], max_steps=60, monitors=[Interrupt(times)])
    assert signal.getsignal(signal.SIGINT) is before
    assert newest(tmp_path) == step
    estimator.fit(**DATA["arrays"], max_steps=60)
    assert_same_checkpoints(tmp_path, uninterrupted(60), 60)


def test_who_ignores_ctrl_c_goes_on_ignoring_it(tmp_path):
    """Like a background job of a shell."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        train(tmp_path, 6, monitors=[Interrupt(2)])
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
    assert newest(tmp_path) == 6


# Files --------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder with the checkpoints of steps 1, 2 and 3."""
    train(tmp_path, 3, save_checkpoints_steps=1)
    return tmp_path


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed, named, fsync, replace = [], [], os.fsync, os.replace

    def noted_fsync(number):
        flushed.append(os.fstat(number).st_ino)
        fsync(number)

    def noted_replace(source, target, **options):
        assert Path(source).parent == Path(target).parent  # a rename is atomic within a folder
        assert os.stat(source).st_ino in flushed
        named.append(Path(target).name)
        replace(source, target, **options)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    train(tmp_path, 1)
    assert named == ["model.ckpt-1.npz", "checkpoint.json"]
    assert tmp_path.stat().st_ino in flushed  # the names are on the disk as well
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


def test_a_checkpoint_holds_plain_arrays(folder):
    arrays = arrays_in(folder, 3)
    assert all(array.dtype.kind in "fiuU" for array in arrays.values())
    assert {name.split("/")[0] for name in arrays} >= {"parameters", "optimizer"}
    assert len([name for name in arrays if name.startswith("parameters/")]) == 6


def test_files_of_another_kind_do_no_harm(folder, uninterrupted):
    for name in (".model.ckpt-99.npz.123.tmp", "model.ckpt-99.npz.tmp", "model.ckpt-x.npz",
                 "model.ckpt-.npz", "notes.txt", ".checkpoint.json.123.tmp"):
        (folder / name).write_bytes(b"half a file")
    assert newest(folder) == 3
    (folder / "checkpoint.json").unlink()
    assert newest(folder) == 3
    train(folder, 60)
    assert_same_checkpoints(folder, uninterrupted(60), 60)
