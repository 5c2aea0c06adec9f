"""Checkpoints and weights that an earlier version wrote (commit 8763728) still load.

The files in tests/data/earlier were written there by the model below, after seven steps with Adam
from seed 0; the numbers are what that version predicted, and trained in five more steps.
"""

import shutil
from pathlib import Path

import numpy as np

import minicnn as mc

EARLIER = Path(__file__).parents[1] / "data" / "earlier"
LOGITS = [[0.2565373, -0.5314829, -0.0151727], [0.09871134, -0.13639383, -0.24376419]]
SUMS = {
    "conv2d/bias": -0.21913855, "conv2d/kernel": -0.527817,
    "dense/bias": -0.09463072, "dense/kernel": -2.1501253,
}


def model_fn(features, labels, mode):
    images = mc.reshape(features, [-1, 6, 6, 1])
    conv = mc.layers.conv2d(images, 2, 3, padding="same", activation=mc.relu)
    pool = mc.layers.max_pooling2d(conv, pool_size=2, strides=2)
    logits = mc.layers.dense(mc.layers.flatten(pool), units=3)
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, depth=3), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.05, optimizer=mc.optimizers.Adam(0.01))
    return mc.ModelFnOps(mode, {"logits": logits}, loss, train_op)


def test_a_checkpoint_predicts_and_continues_as_before(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.random((30, 36)).astype(np.float32)
    y = rng.integers(0, 3, 30)
    shutil.copy(EARLIER / "model.ckpt-7.npz", tmp_path)
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0))
    predicted = estimator.predict(x[:2], as_iterable=False)["logits"]
    np.testing.assert_allclose(predicted, LOGITS, atol=1e-5)
    estimator.fit(x, y, steps=5, batch_size=8)
    sums = {name: estimator.get_variable_value(name).sum() for name in SUMS}
    np.testing.assert_allclose(list(sums.values()), list(SUMS.values()), atol=1e-5)


def test_weights_load():
    model = mc.Sequential([mc.layers.Conv2D(2, 3), mc.layers.Flatten(), mc.layers.Dense(3)])
    model.build((None, 6, 6, 1), rng=1)
    mc.load_weights(model, EARLIER / "weights.npz")
    np.testing.assert_allclose(model.layers[0].kernel.value.sum(), 0.49463376, atol=1e-6)
