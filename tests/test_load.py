"""Under load: many threads and processes, many models, thousands of calls, signals at any time.

The long forms, a minute of threads and a million steps, are in benchmarks/reliability.py.
"""

import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.kernels.dense import dense

SECONDS = 60  # after which it counts as a deadlock
STEPS = 2000
GROWTH = STEPS // 5  # objects in STEPS steps: caches grow, also those of coverage


def make(seed=0, filters=16):
    """Build a small network whose kernels use several threads."""
    model = mc.Sequential([
        mc.layers.Conv2D(filters, 5, padding="same", activation="relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Conv2D(16, 3, padding="same", activation="relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Flatten(), mc.layers.Dense(70, activation="relu"), mc.layers.Dropout(0.4),
        mc.layers.Dense(3),
    ])
    model.build((None, 12, 12, 1), rng=seed)
    return model


def tiny():
    model = mc.Sequential([
        mc.layers.Conv2D(2, 3, activation="relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Flatten(), mc.layers.Dropout(0.4), mc.layers.Dense(3),
    ])
    model.build((None, 6, 6, 1), rng=0)
    return model


def images(rows, side=12):
    return np.random.default_rng(1).random((rows, side, side, 1), dtype=np.float32)


def train(model, optimizer, steps, x):
    """Train in a plain loop; return the last loss."""
    rng, workspace, labels = np.random.default_rng(2), mc.Workspace(), np.arange(len(x)) % 3
    for _ in range(steps):
        ctx = mc.Context(training=True, rng=rng, workspace=workspace)
        logits = model.forward(x, ctx)
        loss, gradient = mc.losses.softmax_cross_entropy_with_grad(labels, logits)
        model.backward(gradient, ctx, need_dx=False)
        optimizer.step(model.parameters)
    return loss


def model_fn(features, labels, mode):
    h = mc.layers.conv2d(features, 2, 3, activation=mc.relu)
    h = mc.layers.flatten(mc.layers.max_pooling2d(h, 2, 2))
    logits = mc.layers.dense(mc.layers.dropout(h, 0.4, training=mode == mc.ModeKeys.TRAIN), 3)
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.01, optimizer="Adam")
    return mc.ModelFnOps(mode, mc.softmax(logits), loss, train_op)


@pytest.fixture(autouse=True)
def two_threads():
    before = mc.get_num_threads()
    mc.set_num_threads(2)
    yield
    mc.set_num_threads(before)


# Threads and processes ----------------------------------------------------------------------------


def test_sixteen_threads_predict(tmp_path):
    """Use one model, and one Estimator that has not traced its model yet."""
    model, x = make(), images(40)
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0, progress=False))
    estimator.fit(x, np.arange(40) % 3, batch_size=20, steps=1)
    expected = model.predict(x), estimator.predict(x, as_iterable=False)
    for _ in range(5):
        other = mc.Estimator(model_fn, tmp_path)

        def work(number, other=other):
            rows = slice(number, number + 1 + number % 20)
            until = time.monotonic() + 0.1
            while True:
                yield rows, model.predict(x[rows]), other.predict(x[rows], as_iterable=False)
                if time.monotonic() > until:
                    return

        with ThreadPoolExecutor(16) as threads:
            for results in threads.map(lambda number: list(work(number)), range(16)):
                for rows, *outputs in results:
                    for output, whole in zip(outputs, expected, strict=True):
                        assert_same_bits(output, whole[rows])


def bits_of_a_process(seed):
    """Build, train and predict in a worker process."""
    model, x = make(seed), images(40)
    train(model, mc.optimizers.SGD(0.1, momentum=0.9), 3, x)
    return model.predict(x).tobytes()


@pytest.mark.parametrize("how", multiprocessing.get_all_start_methods())
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_worker_processes(how):
    """The parent has its own threads and works at the same time."""
    expected = [bits_of_a_process(seed) for seed in range(4)]
    with ProcessPoolExecutor(2, multiprocessing.get_context(how)) as processes:
        results = processes.map(bits_of_a_process, range(4), timeout=SECONDS)
        assert bits_of_a_process(0) == expected[0]
        assert list(results) == expected


def test_a_hundred_models():
    """Each model gives the same results as alone; together they need no more threads."""
    x, before = images(4), threading.active_count()
    train(largest := make(filters=20), mc.optimizers.SGD(0.1), 1, x)  # allocates what is kept
    largest.predict(x)
    tracemalloc.start()
    try:
        models = [make(seed % 10, filters=1 + seed % 20) for seed in range(100)]
        for model in models:
            train(model, mc.optimizers.SGD(0.1), 1, x)
        outputs = [model.predict(x) for model in models]
        assert threading.active_count() <= before + 1
        for number in range(20):
            assert_same_bits(*outputs[number::20])
        held = tracemalloc.get_traced_memory()[0]
        del models, model, outputs
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 0.05 * held
    finally:
        tracemalloc.stop()


# Thousands of calls -------------------------------------------------------------------------------


def objects():
    """Return the number of objects; an array of any size is one."""
    gc.collect()
    return sys.getallocatedblocks()


def growth(run, count):
    """Return how many objects remain after more rounds; of two counts, as caches grow at times."""
    run(count // 4)
    grown = []
    for _ in range(2):
        before = objects()
        run(count)
        grown.append(objects() - before)
    return min(grown)


@pytest.mark.parametrize("optimizer", [mc.optimizers.SGD(0.1, momentum=0.9), mc.optimizers.Adam()])
def test_steps_keep_no_memory(optimizer):
    model, x = tiny(), images(4, side=6)
    assert growth(lambda steps: train(model, optimizer, steps, x), STEPS) < GROWTH


class Count(mc.hooks.SessionRunHook):
    """Count the objects after some of the steps."""

    def __init__(self, *steps):
        self.counts = dict.fromkeys(steps)

    def after_run(self, run_context, run_values):
        if (step := run_context.session.global_step) in self.counts:
            self.counts[step] = objects()


def test_steps_of_an_estimator_keep_no_memory(tmp_path):
    config = mc.RunConfig(seed=0, save_checkpoints_steps=600, progress=False)
    estimator, count = mc.Estimator(model_fn, tmp_path, config=config), Count(700, STEPS + 700)
    x = images(40, side=6)
    monitors = [count, mc.hooks.LoggingTensorHook(["loss"], every_n_iter=100)]
    estimator.fit(x, np.arange(40) % 3, batch_size=4, steps=STEPS + 700, monitors=monitors)
    curve = 6 * len(estimator.history.rows)  # a row is a dict of three numbers
    assert count.counts[STEPS + 700] - count.counts[700] < GROWTH + curve


def test_ten_thousand_predictions_keep_no_memory():
    model, x = tiny(), images(1, side=6)

    def run(count):
        for _ in range(count):
            model.predict(x)

    assert growth(run, 10_000) < GROWTH


# Signals ------------------------------------------------------------------------------------------


def product(size=1200):
    """Return a long matrix product, and the array for its result."""
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal((size, size), dtype=np.float32) for _ in range(2))
    return x, w, np.zeros(size, np.float32), np.zeros((size, size), np.float32)


def test_ctrl_c_in_a_kernel_waits_for_its_chunks():
    x, w, b, y = product()
    dense.forward(x, w, b, y)
    expected, interrupted = y.copy(), 0
    for delay in np.linspace(0.001, 0.05, 12):
        y[...] = 0
        timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        try:
            timer.start()
            while timer.is_alive():  # a fast machine multiplies more than once
                dense.forward(x, w, b, y)
            timer.join()
        except KeyboardInterrupt:
            interrupted += 1
            now = y.copy()
            time.sleep(0.02)
            assert_same_bits(y, now)  # no thread writes now
        dense.forward(x, w, b, y)
        assert_same_bits(y, expected)
    assert interrupted == 12


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals")
def test_signals_with_a_handler_change_nothing():
    def bits():
        model, x = make(), images(40)
        for _ in range(10):
            train(model, mc.optimizers.SGD(0.1, momentum=0.9), 2, x)
        return model.predict(x)

    expected, seen = bits(), []
    before = signal.signal(signal.SIGALRM, lambda *_: seen.append(0))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in range(3):
            assert_same_bits(bits(), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(seen) > 3
