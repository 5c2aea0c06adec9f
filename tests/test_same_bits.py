"""One seed, the same bits: a hundred steps of the documented network on MNIST, run in many ways.

tests/estimator/test_resume.py has other optimizers, hooks and interruptions; tests/layers has each
layer with several numbers of threads; tests/kernels/test_jit.py has every kernel with a cold and a
warm cache.
"""

import hashlib
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minicnn as mc

ROOT = Path(__file__).parents[1]
STEPS = 100
model_fn = runpy.run_path(str(ROOT / "examples" / "mnist_cnn.py"))["cnn_model_fn"]


class Stop(mc.hooks.SessionRunHook):
    """Send this process a signal in a given step."""

    def __init__(self, step, number):
        self.step, self.number = step, number

    def before_run(self, run_context):
        if run_context.session.global_step == self.step:
            os.kill(os.getpid(), self.number)


def train(folder, threads, stop=None, seed=3):
    """Train with a few images per chunk; return a hash of all weights."""
    mnist = mc.datasets.load_dataset("mnist").train
    config = mc.RunConfig(seed=seed, save_checkpoints_steps=20, progress=False)
    estimator = mc.Estimator(model_fn, folder, params={"learning_rate": 0.05}, config=config)
    mc.set_num_threads(threads)
    estimator.fit(
        mnist.images[:150], mnist.labels[:150].astype(np.int32), batch_size=40, max_steps=STEPS,
        monitors=[Stop(*stop)] if stop else [],
    )
    digest = hashlib.sha256()
    for name in estimator.get_variable_names():
        digest.update(name.encode() + estimator.get_variable_value(name).tobytes())
    return digest.hexdigest()


@pytest.fixture(autouse=True)
def threads_as_before():
    before = mc.get_num_threads()
    yield
    mc.set_num_threads(before)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    before = mc.get_num_threads()
    yield train(tmp_path_factory.mktemp("undisturbed"), threads=1)
    mc.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_any_number_of_threads_in_any_run(tmp_path, expected, threads):
    assert train(tmp_path, threads) == expected


def test_another_seed_has_other_bits(tmp_path, expected):
    assert train(tmp_path, 2, seed=4) != expected


def test_a_run_that_was_interrupted(tmp_path, expected):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 2, stop=(37, signal.SIGINT))
    assert train(tmp_path, 1) == expected


def test_a_cold_cache_a_kill_and_a_warm_cache(tmp_path, expected):
    """Another process compiles all kernels and is killed; a third one uses them and continues."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
    }
    outputs = []
    for arguments in ("2, stop=(61, 9)", "4"):
        program = f"import sys, test_same_bits as t; print(t.train(sys.argv[1], {arguments}))"
        command = [sys.executable, "-c", program, str(tmp_path / "model")]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        outputs.append((run.returncode, run.stdout.strip(), run.stderr))
    (killed, nothing, _), (ended, bits, errors) = outputs
    assert (killed, nothing) == (-signal.SIGKILL, "")
    assert ended == 0, errors
    assert bits == expected
