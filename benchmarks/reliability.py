"""Test kills, damaged files, long runs and denormal numbers.

    python benchmarks/reliability.py

Training processes are killed with SIGKILL: after their start, during training, and at a random call
while a checkpoint is written. After each kill every checkpoint in the folder must be valid and the
newest still there; the next process continues from it. In the end the weights and the optimizer's
state must equal those of an undisturbed run, bit for bit. Mutated checkpoints, weights files and
IDX files are read: each must be refused with an error that names it, or do no harm, in little
memory. Model folders from a stranger have links to other files, pipes and devices, thousands of
broken checkpoints, or hostile values with a right checksum. Compiled kernels are damaged on disk:
none may be loaded, and each start must compile them again.

Then threads and processes predict for a minute, and every answer is compared bit by bit. The memory
of the process is measured while a tiny network makes a million steps and the documented one
predicts one image ten thousand times. Finally a training step is timed with denormal numbers, which
are slow on some processors.
"""

import contextlib
import gc
import gzip
import hashlib
import io
import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import harness
import networks
import numpy as np

import minicnn as mc
from minicnn.core.npz import write_npz
from minicnn.datasets import read_idx
from minicnn.estimator import checkpoints
from minicnn.kernels import update

ROWS, BATCH_SIZE = 50, 7
MEMORY = 4e6  # bytes allowed for reading a file of some kilobytes
DEADLINE = 60  # seconds
GROWTH = 2  # bytes per step or call by which the memory of a process may grow
TINY = np.float32(1e-41)  # its product with a number around 1 is denormal


# Kills --------------------------------------------------------------------------------------------


def model_fn(features, labels, mode):
    """Build a small network with everything that draws numbers or keeps state."""
    training = mode == mc.ModeKeys.TRAIN
    h = mc.layers.conv2d(features, 4, 3, padding="same", activation=mc.relu)
    h = mc.reshape(mc.layers.max_pooling2d(h, 2, 2), [-1, 144])
    h = mc.layers.dropout(mc.layers.dense(h, 64, activation=mc.relu), 0.4, training=training)
    logits = mc.layers.dense(h, 3)
    if mode == mc.ModeKeys.INFER:
        return mc.ModelFnOps(mode, mc.softmax(logits))
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    train_op = mc.optimize_loss(loss, learning_rate=0.001, optimizer="Adam") if training else None
    return mc.ModelFnOps(mode, mc.softmax(logits), loss, train_op)


class Tell(mc.hooks.SessionRunHook):
    """Print the step, to show that training is running."""

    def after_run(self, run_context, run_values):
        print(run_context.session.global_step, flush=True)


def estimator_in(folder, every=1, keep=3):
    """Return an Estimator that writes a checkpoint every few steps."""
    config = mc.RunConfig(
        seed=1, save_checkpoints_steps=every, keep_checkpoint_max=keep, progress=False
    )
    return mc.Estimator(model_fn, folder, config=config)


def data():
    """Return the training data."""
    x = np.random.default_rng(0).normal(size=(ROWS, 12, 12, 1)).astype(np.float32)
    return x, np.arange(ROWS) % 3


def train(folder, steps, monitors=(), **config):
    """Train up to a step, with a checkpoint after each step."""
    estimator_in(folder, **config).fit(
        *data(), batch_size=BATCH_SIZE, max_steps=steps, monitors=monitors
    )


def train_and_die(folder, share):
    """Die at a share of the calls that write a checkpoint, in the second checkpoint."""
    save, calls = checkpoints.save, []

    def save_or_die(*arguments):
        calls.append(0)

        def count(frame, event, argument):
            calls[-1] += 1
            if len(calls) == 2 and calls[1] >= share * calls[0]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            return save(*arguments)
        finally:
            sys.setprofile(None)

    checkpoints.save = save_or_die
    train(folder, 10**9)


def newest_step(folder):
    """Return the step of the newest checkpoint; raise if any in the folder is damaged."""
    for path in sorted(folder.glob("model.ckpt-*.npz")):
        checkpoints.load(path)
    found = checkpoints.newest(folder)
    return found.meta["global_step"] if found else 0


def kill(folder, draw, moment, threads):
    """Train in a process until it is killed; return whether that left a half-written file."""
    share = draw.uniform(0.001, 1) if moment == "inside" else 0
    command = [sys.executable, __file__, "--train", str(folder), str(share)]
    before = newest_step(folder)
    left = set(folder.glob(".*.tmp"))
    process = subprocess.Popen(
        command, env=harness.environment(threads), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    if moment == "training":
        process.stdout.readline()
    if moment != "inside":
        time.sleep(draw.uniform(0, 2 if moment == "start" else 0.2))
        process.kill()
    _, errors = process.communicate(timeout=DEADLINE)
    if process.returncode != -signal.SIGKILL:
        raise SystemExit(f"the process that should be killed failed:\n{errors.decode()}")
    step = newest_step(folder)
    if step < before:
        raise SystemExit(f"the newest checkpoint was step {before}, and is {step} after a kill")
    return bool(set(folder.glob(".*.tmp")) - left)


def measure_kills(kills, draw, threads, say):
    """Kill training `kills` times; return the results."""
    with tempfile.TemporaryDirectory() as root:
        folder, expected = Path(root) / "killed", Path(root) / "undisturbed"
        half_written, steps = 0, [0]
        for number in range(kills):
            moment = ("inside", "training", "start")[number % 3]
            half_written += kill(folder, draw, moment, threads)
            steps.append(newest_step(folder))
            if say and number % 20 == 19:
                print(f"{number + 1} kills, {steps[-1]} steps", flush=True)
        end = steps[-1] + 5
        train(folder, end)
        train(expected, end)
        left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
        first, second = (checkpoints.load(f / f"model.ckpt-{end}.npz") for f in (folder, expected))
        same = first.meta == second.meta and first.arrays.keys() == second.arrays.keys() and all(
            array.tobytes() == second.arrays[name].tobytes()
            for name, array in first.arrays.items()
        )
        if left or not same:
            raise SystemExit(f"files left over: {left}; equal to an undisturbed run: {same}")
    return {
        "kills": kills, "that left a half-written file": half_written,
        "runs that went further": sum(a < b for a, b in itertools.pairwise(steps)),
        "steps": end, "arrays that are the same bit for bit": len(first.arrays),
    }


# Damaged files ------------------------------------------------------------------------------------


def sealed(data):
    """Give an archive its right checksum, so that the checksum does not show the damage."""
    body = bytes(data[: -64 - 2]) + (64).to_bytes(2, "little")
    return body + hashlib.sha256(body).hexdigest().encode()


def unchanged(data):
    return bytes(data)


def mutate(data, draw):
    """Return the bytes with some of them changed, removed, inserted or repeated."""
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 4, 16])):
        at, kind = draw.randrange(len(data)), draw.randrange(7)
        if kind <= 2:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            data[at : at + 4] = draw.choice([b"\xff" * 4, bytes(4), draw.randbytes(4)])
        elif kind == 4:
            data[at:at] = draw.randbytes(draw.randrange(1, 9))
        elif kind == 5:
            del data[at : at + draw.randrange(1, 200)]
        else:
            data[at:at] = data[at : at + draw.randrange(1, 200)]
        data = data or bytearray(1)
    return data


def read_all_kinds(folder):
    """Return kind -> (path, bytes of a good file, function to repair them, reader, its error)."""
    arrays = {"parameters/w": np.arange(40, dtype=np.float32).reshape(5, 8),
              "optimizer/iterations": np.array(5)}
    meta = {"global_step": 5, "seed": 1, "place": {"epoch": 0, "row": 7, "rows": 9},
            "learning_rate": 0.1}
    checkpoint = checkpoints.save(folder, 5, arrays, meta, keep=1)
    model = mc.Sequential([mc.layers.Dense(8)])
    model.build((None, 5), rng=0)
    weights, plain = folder / "weights.npz", io.BytesIO()
    mc.save_weights(model, weights)
    np.savez(plain, **{parameter.name: parameter.value for parameter in model.parameters})
    idx = struct.pack(">4B3I", 0, 0, 8, 3, 10, 9, 8) + random.Random(1).randbytes(720)

    right = [parameter.value.copy() for parameter in model.parameters]

    def load_weights(path):
        """Load either all numbers, which must be right, or none."""
        for parameter in model.parameters:
            parameter.value[...] = 0
        expected = [np.zeros_like(value) for value in right]
        try:
            mc.load_weights(model, path)
            expected = right
        finally:
            for parameter, value in zip(model.parameters, expected, strict=True):
                if not np.array_equal(parameter.value, value):
                    raise SystemExit(f"weights: {parameter.name} has other numbers")

    whole, good = checkpoint.read_bytes(), weights.read_bytes()
    return {
        "checkpoint": (checkpoint, whole, unchanged, checkpoints.load, mc.CheckpointError),
        "checkpoint, right checksum":
            (checkpoint, whole, sealed, checkpoints.load, mc.CheckpointError),
        "weights": (weights, good, unchanged, load_weights, ValueError),
        "weights, right checksum": (weights, good, sealed, load_weights, ValueError),
        "weights, no checksum": (weights, plain.getvalue(), unchanged, load_weights, ValueError),
        "IDX": (folder / "idx", idx, unchanged, read_idx, ValueError),
        "IDX, gzip": (folder / "idx.gz", gzip.compress(idx), unchanged, read_idx, ValueError),
    }


def measure_damage(files, draw):
    """Read mutated files of each kind; stop at any error other than the promised one."""
    results = {}
    with tempfile.TemporaryDirectory() as root:
        for kind, (path, good, mend, read, error) in read_all_kinds(Path(root)).items():
            refused, peak = 0, 0
            for _ in range(files):
                data = mend(mutate(good, draw))
                path.write_bytes(data)
                tracemalloc.start()
                try:
                    read(path)
                except error as said:
                    refused += 1
                    if str(path) not in str(said):
                        raise SystemExit(f"{kind}: no file is named: {said}") from said
                else:
                    if kind == "checkpoint" and data != good:
                        raise SystemExit(f"{kind}: damage was not noticed")
                finally:
                    peak = max(peak, tracemalloc.get_traced_memory()[1])
                    tracemalloc.stop()
            if peak > MEMORY:
                raise SystemExit(f"{kind}: reading took {peak} bytes")
            results[kind] = {"files": files, "refused": refused, "most memory, kB": peak / 1e3}
    return results


# A model folder from a stranger -------------------------------------------------------------------

NAMES = (".lock", "evaluations.jsonl", "checkpoint.json", "model.ckpt-9.npz")
VICTIM = b"a document of somebody else\n"


def put(make):
    """Return an attack that creates something under a name that minicnn chooses."""
    def attack(folder, victim, draw):
        path = folder / draw.choice(NAMES)
        path.unlink(missing_ok=True)
        make(path, victim)
    return attack


def break_checkpoints(folder, victim, draw):
    """Add broken checkpoints of later steps, and remove the index."""
    (folder / "checkpoint.json").unlink(missing_ok=True)
    data = (folder / "model.ckpt-3.npz").read_bytes()
    for step in range(4, 4 + draw.choice([1, 100, 2000])):
        path = folder / f"model.ckpt-{step}.npz"
        path.write_bytes(draw.choice([b"", draw.randbytes(100), data[: draw.randrange(len(data))]]))


def poison(folder, victim, draw):
    """Add a checkpoint with a right checksum and values that no run produces."""
    checkpoint = checkpoints.load(folder / "model.ckpt-3.npz")
    arrays = {name: array.copy() for name, array in checkpoint.arrays.items()}
    meta, step = dict(checkpoint.meta, global_step=4), 4
    kind = draw.randrange(6)
    if kind <= 1:
        prefix, value = draw.choice([
            ("parameters/", np.nan), ("parameters/", np.inf), ("optimizer/", np.nan),
        ])
        name = draw.choice([n for n in arrays if n.startswith(prefix) and arrays[n].ndim])
        arrays[name].flat[draw.randrange(arrays[name].size)] = value
    elif kind == 2:
        name = draw.choice([n for n in arrays if n.endswith("/adam_s")])
        arrays[name].flat[draw.randrange(arrays[name].size)] *= -1
        arrays[name].flat[0] -= 1
    elif kind == 3:
        step = draw.choice([2**53, 2**63, 10**30])
        meta["global_step"] = step
    elif kind == 4:
        step = draw.choice([5, 10**6])
    else:
        meta["learning_rate"] = draw.choice([np.nan, np.inf, -1.0, 10**400, "0.1", True])
    write_npz(folder / f"model.ckpt-{step}.npz",
              {"meta.json": np.array(json.dumps(meta)), **arrays})
    (folder / "checkpoint.json").unlink(missing_ok=True)


ATTACKS = {
    "symbolic link": put(lambda path, victim: path.symlink_to(victim)),
    "hard link": put(lambda path, victim: path.hardlink_to(victim)),
    "link to nothing": put(lambda path, victim: path.symlink_to(victim.with_name("new"))),
    "link to /dev/zero": put(lambda path, victim: path.symlink_to("/dev/zero")),
    "pipe": put(lambda path, victim: os.mkfifo(path)),
    "folder": put(lambda path, victim: path.mkdir()),
    "100 MB": put(lambda path, victim: path.write_bytes(bytes(10**8))),
    "broken checkpoints": break_checkpoints,
    "hostile values": poison,
}


def answers_of(folder):
    """Return the predictions and the evaluation of a model in a folder."""
    config, x = mc.RunConfig(seed=1, progress=False), images(7, 12)
    estimator = mc.Estimator(model_fn, folder, config=config)
    predictions = estimator.predict(x, as_iterable=False).tobytes()
    return predictions, estimator.evaluate(x, np.arange(7) % 3)


def hang(signum, frame):
    raise SystemExit(f"it hangs: {''.join(traceback.format_stack(frame))}")


def measure_strangers(folders, draw):
    """Use hostile folders of each kind; return the results."""
    results = {}
    signal.signal(signal.SIGALRM, hang)
    logging.getLogger("minicnn").setLevel(logging.ERROR)  # many expected warnings
    with tempfile.TemporaryDirectory() as root:
        good, victim = Path(root) / "good", Path(root) / "victim"
        train(good, 3)
        expected = answers_of(good)
        for kind, attack in ATTACKS.items():
            refused, seconds, peak = 0, 0.0, 0
            for number in range(folders):
                folder = Path(root) / f"{kind} {number}".replace("/", "")
                shutil.copytree(good, folder)
                victim.write_bytes(VICTIM)
                attack(folder, victim, draw)
                signal.alarm(DEADLINE)
                tracemalloc.start()
                start = time.perf_counter()
                same = answers_of(folder) == expected
                seconds = max(seconds, time.perf_counter() - start)
                peak = max(peak, tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
                try:
                    train(folder, 5)
                    checkpoints.load(folder / "model.ckpt-5.npz")
                except mc.CheckpointError as error:
                    refused += 1
                    same &= str(folder) in str(error)
                signal.alarm(0)
                if not same or victim.read_bytes() != VICTIM or len(list(Path(root).iterdir())) > 3:
                    raise SystemExit(f"{kind}: harm was done, see {sorted(folder.iterdir())}")
                shutil.rmtree(folder)
            if peak > MEMORY:
                raise SystemExit(f"{kind}: reading took {peak} bytes")
            results[kind] = {"folders": folders, "training refused": refused,
                             "slowest answer, s": seconds, "most memory, kB": peak / 1e3}
    logging.getLogger("minicnn").setLevel(logging.NOTSET)
    return results


# Compiled kernels ---------------------------------------------------------------------------------


def load_damaged_kernels(files, draw):
    """Run a kernel; read damaged copies of its file; print the results."""
    w = np.ones(3)
    update.sgd(w, np.ones(3), (1.0, 0.0))
    cache, path = update._sgd._cache, next(Path(os.environ["NUMBA_CACHE_DIR"]).rglob("*.nbc"))
    signature, context, good = update._sgd.signatures[0], update._sgd.targetctx, path.read_bytes()
    refused = 0
    for _ in range(files):
        mutated = mutate(good, draw)
        path.write_bytes(mutated)
        loaded = cache.load_overload(signature, context) is not None
        refused += not loaded
        if loaded != (bytes(mutated) == good):
            raise SystemExit("damaged machine code was loaded")
    path.write_bytes(good)
    hits = sum(update._sgd.stats.cache_hits.values())
    print(json.dumps({"right": not w.any(), "hits": hits, "refused": refused}))


def measure_cache(files, starts, draw, threads):
    """Damage compiled kernels; read them, and start processes that use them."""
    with tempfile.TemporaryDirectory() as folder:
        environment = harness.environment(threads) | {"NUMBA_CACHE_DIR": folder}

        def start(files=0):
            command = [sys.executable, __file__, "--cache", str(files), str(draw.randrange(10**6))]
            run = subprocess.run(command, env=environment, capture_output=True, text=True)
            result = json.loads(run.stdout) if run.returncode == 0 else {}
            if not result.get("right"):
                raise SystemExit(f"a damaged cache ended a start: {run.returncode}\n{run.stderr}")
            return result

        refused = start(files)["refused"]
        [path] = Path(folder).rglob("*.nbc")
        good = path.read_bytes()
        for _ in range(starts):
            changed = good
            while changed == good:
                changed = bytes(mutate(good, draw))
            path.write_bytes(changed)
            if start()["hits"] or path.read_bytes() == changed:
                raise SystemExit("a damaged file was used, or has been left there")
    return {"files read": files, "refused": refused, "starts, all right": starts}


# Readers and writers ------------------------------------------------------------------------------


class Fail(mc.hooks.SessionRunHook):
    """End a run: with an error after some steps, or without one on request."""

    def __init__(self, steps, stop):
        self.steps, self.stop, self.done = steps, stop, 0

    def after_run(self, run_context, run_values):
        self.done += 1
        if self.stop.is_set():
            run_context.request_stop()
        elif self.done >= self.steps:
            raise InterruptedError


def fit_again(estimator, stop, steps):
    """Train with runs that fail after some steps, until told to stop."""
    while not stop.is_set():
        with contextlib.suppress(InterruptedError):
            estimator.fit(*data(), batch_size=BATCH_SIZE, monitors=[Fail(steps, stop)])


@contextlib.contextmanager
def writer(kind, folder, estimator, threads):
    """Train in a folder in the background."""
    if kind == "another process":
        command = [sys.executable, __file__, "--write", str(folder)]
        process = subprocess.Popen(command, env=harness.environment(threads))
        try:
            yield
        finally:
            process.kill()
            process.wait()
    else:
        stop, steps = threading.Event(), 10**9 if kind == "another thread" else 25
        thread = threading.Thread(target=fit_again, args=(estimator, stop, steps))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def outputs(labels, predictions):
    """Return the predictions as a metric, so that evaluate returns them with their step."""
    return predictions


def ask(estimator, path=None):
    """Return the step, the loss and the outputs of evaluate, and the outputs of predict."""
    x, y = data()
    metrics = {"outputs": mc.MetricSpec(outputs)}
    results = estimator.evaluate(x, y, metrics=metrics, checkpoint_path=path)
    each = np.stack(list(estimator.predict(x, batch_size=9, checkpoint_path=path)))
    claim = results["global_step"], results["loss"], results["outputs"].tobytes()
    return claim, each.tobytes()


def wrong_answers(answers, folder):
    """Return the number of answers that are of no checkpoint, or out of order."""
    alone, wrong, least, right = estimator_in(folder), 0, 0, {}
    for path in folder.glob("model.ckpt-*.npz"):
        claim, output = ask(alone, path)
        right[claim[0]] = claim, output
    for claim, output in answers:
        step = claim[0]
        later = (right[s][1] for s in right if s >= step)  # predict is called after evaluate
        wrong += step < least or right[step][0] != claim or output not in later
        least = max(least, step)
    return wrong


def measure_readers(seconds, threads):
    """Ask an Estimator during training; return the counts for each kind of training."""
    results = {}
    for kind in ("another process", "another thread", "a fit that fails"):
        with tempfile.TemporaryDirectory() as root:
            folder, answers = Path(root) / "model", []
            train(folder, 1)
            estimator, start = estimator_in(folder, every=10, keep=10**6), time.monotonic()
            with writer(kind, folder, estimator, threads):
                while time.monotonic() < start + seconds or len({a[0][0] for a in answers}) < 3:
                    answers.append(ask(estimator))
                    if time.monotonic() > start + seconds + DEADLINE:
                        raise SystemExit(f"{kind}: too few checkpoints are seen")
            wrong, steps = wrong_answers(answers, folder), {answer[0][0] for answer in answers}
            if wrong:
                raise SystemExit(f"{kind}: {wrong} of {len(answers)} answers are of no checkpoint")
            results[kind] = {"answers": 2 * len(answers), "of checkpoints": len(steps), "wrong": 0}
    return results


# Load ---------------------------------------------------------------------------------------------


def documented():
    """Return the documented network, built."""
    model = mc.Sequential(networks.build(mc.layers, networks.NETWORKS["documented"]))
    model.build((None, 28, 28, 1), rng=0)
    return model


def images(rows, side=28):
    return np.random.default_rng(0).random((rows, side, side, 1), dtype=np.float32)


def predict_for(seconds, number, model=None):
    """Predict some rows repeatedly; return the number of predictions and of wrong ones."""
    model, x, wrong = model or documented(), images(100), 0
    expected, end = model.predict(x).tobytes(), time.monotonic() + seconds
    for count in itertools.count(1):
        first = (7 * count + number) % 80
        rows = model.predict(x[first : first + 1 + number])
        size = len(expected) // 100
        wrong += rows.tobytes() != expected[first * size : (first + 1 + number) * size]
        if time.monotonic() > end:
            return count, wrong


def measure_load(seconds):
    """Predict in 16 threads, and in 4 processes of each kind; return the counts."""
    results, model = {}, documented()
    with ThreadPoolExecutor(16) as threads:
        work = [threads.submit(predict_for, seconds, number, model) for number in range(16)]
        results["16 threads"] = [future.result() for future in work]
    for kind in multiprocessing.get_all_start_methods():
        with ProcessPoolExecutor(4, multiprocessing.get_context(kind)) as processes:
            work = [processes.submit(predict_for, seconds, number) for number in range(4)]
            results[f"4 processes, {kind}"] = [f.result(seconds + DEADLINE) for f in work]
    if wrong := {name: counts for name, counts in results.items() if any(w for _, w in counts)}:
        raise SystemExit(f"predictions with other bits: {wrong}")
    return {name: sum(count for count, _ in counts) for name, counts in results.items()}


# Growth -------------------------------------------------------------------------------------------


def resident():
    """Return the resident memory of this process in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def growth(call, count):
    """Return by how many bytes per call the memory grows, after the first tenth of the calls."""
    memory = []
    for number in range(count):
        if number * 100 % count < 100:
            memory.append((number, resident()))
        call()
    steps, sizes = np.array(memory[len(memory) // 10 :], float).T
    return float(np.polyfit(steps, sizes, 1)[0])


def step_of(model, optimizer, x, scale=1.0):
    """Return a function that makes a step with a scaled gradient of the loss."""
    rng, workspace, labels = np.random.default_rng(0), mc.Workspace(), np.arange(len(x)) % 3

    def step():
        ctx = mc.Context(training=True, rng=rng, workspace=workspace)
        logits = model.forward(x, ctx)
        _, gradient = mc.losses.softmax_cross_entropy_with_grad(labels, logits)
        model.backward(gradient * np.float32(scale), ctx, need_dx=False)
        optimizer.step(model.parameters)

    return step


def measure_growth(steps, predictions):
    """Return the memory growth per step of a tiny network, and per prediction."""
    if not os.path.exists("/proc/self/statm"):
        return {}
    tiny = mc.Sequential([
        mc.layers.Conv2D(2, 3, activation="relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Flatten(), mc.layers.Dropout(0.4), mc.layers.Dense(3),
    ])
    tiny.build((None, 6, 6, 1), rng=0)
    sgd, model, x = mc.optimizers.SGD(0.01, momentum=0.9), documented(), images(1)
    results = {
        f"{steps:,} steps": growth(step_of(tiny, sgd, images(4, 6)), steps),
        f"{predictions:,} predictions": growth(lambda: model.predict(x), predictions),
    }
    if steps >= 10**6 and max(results.values()) > GROWTH:
        raise SystemExit(f"the memory grows, in bytes per step: {results}")
    return results


# Denormals ----------------------------------------------------------------------------------------


def measure_denormals(rounds):
    """Return the relative time of a step of the documented network with denormal numbers."""
    x, momentum = images(20), mc.optimizers.SGD(0.0, momentum=0.9)
    small = documented()
    for parameter in small.parameters:
        parameter.value[...] *= TINY
    cases = {  # case, and what it is compared with
        "inputs": ("plain", step_of(documented(), mc.optimizers.SGD(0.0), x * TINY)),
        "all weights": ("plain", step_of(small, mc.optimizers.SGD(0.0), x)),
        "gradients": ("plain", step_of(documented(), mc.optimizers.SGD(0.0), x, TINY)),
        "velocity": ("momentum", step_of(documented(), momentum, x, TINY)),
        "Adam's means": ("Adam", step_of(documented(), mc.optimizers.Adam(1e-9), x, TINY)),
        "plain": ("plain", step_of(documented(), mc.optimizers.SGD(0.0), x)),
        "momentum":
            ("momentum", step_of(documented(), mc.optimizers.SGD(1e-9, momentum=0.9), x)),
        "Adam": ("Adam", step_of(documented(), mc.optimizers.Adam(1e-9), x)),
    }
    times = {name: [] for name in cases}
    for _ in range(rounds + 1):
        for name, (_, step) in cases.items():
            start = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - start)
    best = {name: min(each[1:]) for name, each in times.items()}
    return {name: best[name] / best[beside] for name, (beside, _) in cases.items()
            if name != beside}


def main():
    if sys.argv[1:2] == ["--train"]:
        folder, share = Path(sys.argv[2]), float(sys.argv[3])
        train_and_die(folder, share) if share else train(folder, 10**9, [Tell()])
    if sys.argv[1:2] == ["--cache"]:
        load_damaged_kernels(int(sys.argv[2]), random.Random(int(sys.argv[3])))
        return
    if sys.argv[1:2] == ["--write"]:
        train(Path(sys.argv[2]), 10**9, every=10, keep=10**6)
    arguments = harness.parser(__doc__)
    arguments.add_argument("--kills", type=int, default=200, help="default: %(default)s")
    arguments.add_argument(
        "--files", type=int, default=10_000, help="of each kind (default: %(default)s)"
    )
    arguments.add_argument(
        "--folders", type=int, default=100,
        help="from a stranger, of each kind (default: %(default)s)",
    )
    arguments.add_argument(
        "--starts", type=int, default=50, help="with damaged kernels (default: %(default)s)"
    )
    arguments.add_argument(
        "--load", type=float, default=60, metavar="SECONDS", help="default: %(default)s"
    )
    arguments.add_argument("--steps", type=int, default=10**6, help="default: %(default)s")
    arguments.add_argument("--predictions", type=int, default=10**4, help="default: %(default)s")
    arguments.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = harness.parse(arguments)
    if args.smoke:
        args.kills, args.files, args.folders = 4, 100, 2
        args.starts, args.load, args.steps, args.predictions = 1, 0.1, 200, 100
    mc.set_num_threads(args.threads)
    draw = random.Random(args.seed)
    damage = measure_damage(args.files, draw)
    strangers = measure_strangers(args.folders, draw)
    cache = measure_cache(args.files, args.starts, draw, args.threads)
    kills = measure_kills(args.kills, draw, args.threads, say=not args.smoke)
    readers = measure_readers(args.load, args.threads)
    load = measure_load(args.load)
    memory = measure_growth(args.steps, args.predictions)
    denormals = measure_denormals(1 if args.smoke else 20)
    print()
    harness.table(["kills", ""], kills.items())
    print()
    rows = [[kind, *(f"{n:.0f}" for n in result.values())] for kind, result in damage.items()]
    harness.table(["mutated", *next(iter(damage.values()))], rows)
    print()
    rows = [
        [kind, *(f"{n:.1f}" if isinstance(n, float) else n for n in result.values())]
        for kind, result in strangers.items()
    ]
    harness.table(["a folder with a", *next(iter(strangers.values()))], rows)
    print()
    harness.table(["compiled kernels, damaged", ""], cache.items())
    print()
    lines = [[kind, *result.values()] for kind, result in readers.items()]
    harness.table(["trains meanwhile", *next(iter(readers.values()))], lines)
    print()
    harness.table(["predictions, all the same", ""], [[k, f"{n:,}"] for k, n in load.items()])
    print()
    harness.table(["memory", "bytes each"], [[k, f"{n:.2f}"] for k, n in memory.items()])
    print()
    harness.table(["denormal", "time"], [[k, f"{n:.2f}"] for k, n in denormals.items()])
    harness.report(args, {"kills": kills, "damage": damage, "strangers": strangers,
                          "cache": cache, "load": load, "memory": memory, "denormals": denormals})


if __name__ == "__main__":
    main()
