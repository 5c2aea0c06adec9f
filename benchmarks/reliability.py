"""Kill training at random moments, and read damaged files: does anything get lost or go wrong?

    python benchmarks/reliability.py

Processes that train are killed with SIGKILL, in turn: at a random time from their start on, at a
random time while they train, at a random call inside the writing of a checkpoint. After each kill
every checkpoint in the folder must be whole and the newest still there, and the next process goes
on from it. In the end the weights and the optimizer's state must equal, bit for bit, those of a run
that nothing has disturbed. Beside that, mutated checkpoints, files of weights and IDX files are
read: each must be refused with an error that names it, or do no harm, in little memory.
"""

import gzip
import hashlib
import io
import itertools
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import harness
import numpy as np

import minicnn as mc
from minicnn.datasets import read_idx
from minicnn.estimator import checkpoints

ROWS, BATCH_SIZE = 50, 7
MEMORY = 4e6  # bytes that reading a file of some kilobytes may take
DEADLINE = 60  # seconds


# Kills --------------------------------------------------------------------------------------------


def model_fn(features, labels, mode):
    """A small network with all that draws numbers or keeps state."""
    training = mode == mc.ModeKeys.TRAIN
    h = mc.layers.conv2d(features, 4, 3, padding="same", activation=mc.relu)
    h = mc.reshape(mc.layers.max_pooling2d(h, 2, 2), [-1, 144])
    h = mc.layers.dropout(mc.layers.dense(h, 64, activation=mc.relu), 0.4, training=training)
    logits = mc.layers.dense(h, 3)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    train_op = mc.optimize_loss(loss, learning_rate=0.001, optimizer="Adam") if training else None
    return mc.ModelFnOps(mode, mc.softmax(logits), loss, train_op)


class Tell(mc.hooks.SessionRunHook):
    """Say that training goes on."""

    def after_run(self, run_context, run_values):
        print(run_context.session.global_step, flush=True)


def train(folder, steps, monitors=()):
    """Train to a step, with a checkpoint after every one."""
    x = np.random.default_rng(0).normal(size=(ROWS, 12, 12, 1)).astype(np.float32)
    config = mc.RunConfig(seed=1, save_checkpoints_steps=1, keep_checkpoint_max=3, progress=False)
    estimator = mc.Estimator(model_fn, folder, config=config)
    estimator.fit(x, np.arange(ROWS) % 3, batch_size=BATCH_SIZE, max_steps=steps, monitors=monitors)


def train_and_die(folder, share):
    """Train until some share of all the calls that write a checkpoint is done, the second time."""
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
    """Return the step of the newest checkpoint; an error where any in the folder is not whole."""
    for path in sorted(folder.glob("model.ckpt-*.npz")):
        checkpoints.load(path)
    found = checkpoints.newest(folder)
    return found.meta["global_step"] if found else 0


def kill(folder, draw, moment, threads):
    """Train in a process until it is killed; return whether that left a half-written file."""
    share = draw.uniform(0.001, 1) if moment == "inside" else 0
    command = [sys.executable, __file__, "--train", str(folder), str(share)]
    before, left = checkpoints.latest_step(folder), set(folder.glob(".*.tmp"))
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
        raise SystemExit(f"step {before} was there, and after a kill step {step} is the newest")
    return bool(set(folder.glob(".*.tmp")) - left)


def measure_kills(kills, draw, threads, say):
    """Kill training so many times; return what came of it."""
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
            raise SystemExit(f"left behind: {left}; the same as undisturbed: {same}")
    return {
        "kills": kills, "that left a half-written file": half_written,
        "runs that went further": sum(a < b for a, b in itertools.pairwise(steps)),
        "steps": end, "arrays that are the same bit for bit": len(first.arrays),
    }


# Damaged files ------------------------------------------------------------------------------------


def sealed(data):
    """Give an archive the checksum that is right for it, so that its damage is not seen by that."""
    body = bytes(data[: -64 - 2]) + (64).to_bytes(2, "little")
    return body + hashlib.sha256(body).hexdigest().encode()


def unchanged(data):
    return bytes(data)


def mutate(data, draw):
    """Return other bytes: some changed, some cut out, put in, or doubled."""
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
    """Return kind -> (path, bytes of a good file, what mends them, how to read it, its error)."""
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
        """Load all numbers and the right ones, or none."""
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
    """Read so many mutated files of each kind; any other error than the promised one ends all."""
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


def main():
    if sys.argv[1:2] == ["--train"]:
        folder, share = Path(sys.argv[2]), float(sys.argv[3])
        train_and_die(folder, share) if share else train(folder, 10**9, [Tell()])
    arguments = harness.parser(__doc__)
    arguments.add_argument("--kills", type=int, default=200, help="default: %(default)s")
    arguments.add_argument(
        "--files", type=int, default=10_000, help="of each kind (default: %(default)s)"
    )
    arguments.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = harness.parse(arguments)
    if args.smoke:
        args.kills, args.files = 4, 100
    mc.set_num_threads(args.threads)
    draw = random.Random(args.seed)
    damage = measure_damage(args.files, draw)
    kills = measure_kills(args.kills, draw, args.threads, say=not args.smoke)
    print()
    harness.table(["kills", ""], kills.items())
    print()
    rows = [[kind, *(f"{n:.0f}" for n in result.values())] for kind, result in damage.items()]
    harness.table(["mutated", *next(iter(damage.values()))], rows)
    harness.report(args, {"kills": kills, "damage": damage})


if __name__ == "__main__":
    main()
