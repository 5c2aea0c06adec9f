"""Tests of `warmup`, and of what a process with compiled kernels needs for its first prediction."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minicnn as mc
from minicnn.kernels import ahead, threads

TESTS = Path(__file__).parent

# For each layer and each network of the tests, in a process that has loaded no kernels before.
EXACTLY = """
import sys
sys.path[:0] = sys.argv[1:]
import numpy as np
import minicnn as mc
from kernels.test_jit import KERNELS
from layers.test_conformance import TABLE
from minicnn.kernels import threads
from minicnn.kernels.recording import _walk
from test_inference import CHAINS

def loaded():
    return {(kernel, types) for kernel in KERNELS.values() for types in kernel.signatures}

def predict(model, rows):
    x = np.ones((rows, *model.input_shape[1:]), model.dtype)
    model.predict(x)
    model.for_inference().predict(x)

cases = {name: (layers(), (8, 8, 1)) for name, layers in CHAINS.items()}
cases |= {name: ([layer()], shape) for name, layer, shape in TABLE}
for name, (layers, shape) in cases.items():
    model = mc.Sequential(layers)
    model.build((None, *shape), rng=0)
    before = loaded()
    with threads.recorded() as calls, np.errstate(all="ignore"):
        predict(model, 1)
    mc.warmup(model)
    calls |= {(_walk, types) for types in _walk.signatures}  # not called from Python there
    assert loaded() - before == calls - before, name
    assert calls <= loaded(), name
    after = loaded()
    for rows in (2, 15, 100):
        predict(model, rows)
    assert loaded() == after, name
assert len(loaded()) > 15, len(loaded())
"""


def test_warmup_compiles_exactly_what_a_model_predicts_with():
    command = [sys.executable, "-c", EXACTLY, str(TESTS.parent), str(TESTS)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


def train_one_step():
    """Train the network of the guide."""
    layers = mc.layers
    model = mc.Sequential([
        layers.Conv2D(32, 5, padding="same", activation="relu"), layers.MaxPooling2D(2),
        layers.Conv2D(64, 5, padding="same", activation="relu"), layers.MaxPooling2D(2),
        layers.Flatten(), layers.Dense(1024, activation="relu"), layers.Dropout(0.4),
        layers.Dense(10),
    ])
    model.build((None, 28, 28, 1), rng=0)
    ctx = mc.Context(training=True, rng=0)
    y = model.forward(np.zeros((2, 28, 28, 1), np.float32), ctx)
    model.backward(y, ctx, need_dx=False)
    mc.optimizers.SGD(0.1).step(model.parameters)


@pytest.mark.parametrize("compile_them", [mc.warmup, ahead.compile_ahead])
def test_a_training_step_of_the_guide_then_needs_no_other_kernel(compile_them):
    with threads.recorded() as compiled:
        compile_them()
    with threads.recorded() as needed:
        train_one_step()
    assert {kernel.py_func.__name__ for kernel, _ in needed - compiled} == set()
    assert len(needed) > 8


def test_warmup_logs_no_step_of_its_own(caplog):
    caplog.set_level("INFO", "minicnn")
    assert mc.warmup() > 0
    assert caplog.messages == []


def test_warmup_of_a_model_for_inference():
    model = mc.Sequential([mc.layers.Dense(2)])
    model.build((None, 3), rng=0)
    fast = model.for_inference("float16")
    with pytest.raises(ValueError, match=r"`x` must be rows .* or InferenceModel, such"):
        mc.warmup(fast)
    assert not fast._runs
    assert mc.warmup(fast, np.zeros((1, 3), np.float32)) > 0
    assert list(fast._runs) == [1]


FIRST = """
import json, sys, time
import numpy as np
import minicnn as mc
from minicnn.kernels import cache
model = mc.Sequential([
    mc.layers.Conv2D(32, 5, padding="same", activation="relu"), mc.layers.MaxPooling2D(2),
    mc.layers.Conv2D(64, 5, padding="same", activation="relu"), mc.layers.MaxPooling2D(2),
    mc.layers.Flatten(), mc.layers.Dense(64, activation="relu"), mc.layers.Dropout(0.4),
    mc.layers.Dense(10),
])
model.build((None, 28, 28, 1), rng=0)
x = np.zeros((1, 28, 28, 1), np.float32)
seconds = {}
for kind in sys.argv[1:]:
    start = time.process_time()
    if kind == "predict":
        model.predict(x)
    elif kind == "for_inference":
        fast = model.for_inference()
        fast.predict(x)
        fast.predict(x)  # by other kernels than the first
    else:
        mc.warmup(model)
    seconds[kind] = time.process_time() - start
print(json.dumps([seconds, cache.compiled, "numba.np.linalg" in sys.modules]))
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The folder of the kernels that `warmup` compiles for the network of the guide."""
    folder = tmp_path_factory.mktemp("kernels")
    _, compiled, _ = first("warmup", folder=folder)
    assert len(compiled) == len(list(folder.rglob("*.nbc"))) == 6
    return folder


def first(*kinds, folder):
    environment = os.environ | {
        "PYTHONPATH": str(TESTS.parent), "NUMBA_CACHE_DIR": str(folder),
        "MINICNN_NUM_THREADS": "1",  # no child process that compiles other kernels
    }
    command = [sys.executable, "-W", "error", "-c", FIRST, *kinds]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("kind", ["predict", "for_inference"])
def test_the_first_prediction_with_compiled_kernels_takes_a_fifth_of_a_second(kernels, kind):
    tries = [first(kind, folder=kernels) for _ in range(2)]  # the first reads from the disk
    for _, compiled, is_compiler_loaded in tries:
        assert compiled == []
        assert not is_compiler_loaded
    assert min(seconds[kind] for seconds, *_ in tries) <= 0.2


def test_a_compilation_after_compiled_kernels_were_loaded(kernels, tmp_path):
    folder = tmp_path / "kernels"
    folder.mkdir()
    for file in kernels.rglob("*.nbc"):
        copy = folder / file.relative_to(kernels)
        copy.parent.mkdir(mode=0o700, exist_ok=True)
        if "recording._walk" not in file.name:
            copy.write_bytes(file.read_bytes())
    _, compiled, is_compiler_loaded = first("predict", "for_inference", folder=folder)
    assert compiled == ["minicnn.kernels.recording._walk"]
    assert is_compiler_loaded


def test_warmup_of_an_estimator(tmp_path, monkeypatch):
    model = mc.Sequential([mc.layers.Dense(2)])
    x = np.ones((4, 3), np.float32)
    estimator = mc.Estimator(model, tmp_path, config=mc.RunConfig(seed=0, progress=False))
    with pytest.raises(mc.CheckpointError, match="call fit first"):
        mc.warmup(estimator, x)
    estimator.fit(x, [0, 1, 0, 1], steps=1)
    with pytest.raises(ValueError, match=r"`x` must be rows as for predict.*got None"):
        mc.warmup(estimator)
    seen = []
    monkeypatch.setattr(mc.InferenceModel, "predict", lambda self, x: seen.append(x))
    assert mc.warmup(estimator, x[:1]) >= 0
    assert len(seen) == 2


def test_warmup_of_what_is_no_model():
    model = mc.Sequential([mc.layers.Dense(2)])
    with pytest.raises(RuntimeError, match=r"call build\(input_shape, rng\) before"):
        mc.warmup(model)
    model.build((None, 3), rng=0)
    with pytest.raises(ValueError, match=r"`x` must be rows.*is left out otherwise, got an array"):
        mc.warmup(model, np.ones((1, 3), np.float32))
    with pytest.raises(TypeError, match="an Estimator or an InferenceModel, got Dense"):
        mc.warmup(mc.layers.Dense(2))
