"""Sums, products, concat and means of Tensors in ONNX files: ONNX Runtime computes the same."""

import numpy as np
import pytest
from test_arithmetic import EXPRESSIONS, IMAGES, A, B, computed
from tolerances import assert_close

import minicnn as mc

pytest.importorskip("onnx", reason='pip install -e ".[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='pip install -e ".[test-all]"')


def program(tmp_path, function, *arrays):
    """Return the value that ONNX Runtime computes, from the file of an Estimator."""
    def model_fn(features, labels, mode):
        y = function(*features.values())
        loss = mc.reduce_mean(mc.layers.dense(mc.layers.flatten(y), 1))
        return mc.ModelFnOps(mode, {"y": y}, loss, mc.optimize_loss(loss, None, 0.0))

    features = dict(zip("abc", arrays, strict=False))
    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(model_fn, str(tmp_path / "model"), config=config)
    estimator.fit(features, np.zeros(len(arrays[0])), steps=1)
    mc.export.to_onnx(estimator, tmp_path / "model.onnx", features)
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return session.run(["y"], features)[0]


@pytest.mark.parametrize("function", [
    EXPRESSIONS[5], EXPRESSIONS[1], EXPRESSIONS[6], lambda a, b: mc.relu(a + b),
    lambda a, b: mc.concat([a, b * 1, a], 1), lambda a, b: mc.reduce_sum(a * b, 1, keepdims=True),
])
def test_onnx(tmp_path, function):
    assert_close(program(tmp_path, function, A, B), computed(function, A, B))


@pytest.mark.parametrize("function", [
    lambda x: mc.layers.conv2d(x, 2, 3, padding="same") + x,
    lambda x: mc.layers.conv2d(x, 2, 1) * mc.layers.conv2d(x, 2, 1) + 1,
    lambda x: mc.concat([mc.layers.conv2d(x, 3, 1), x], 3),
    lambda x: mc.reduce_mean(mc.layers.conv2d(x, 3, 1), [1, 2]),
    lambda x: mc.reduce_sum(mc.layers.max_pooling2d(x, 2, 1), -1, keepdims=True),
    lambda x: mc.reduce_mean(x, 2) - 2,
])
def test_onnx_of_images(tmp_path, function):
    def same_weights(x):  # of a new graph: those of the first seed
        return function(x)

    found = program(tmp_path, same_weights, IMAGES)
    config = mc.RunConfig(seed=0, progress=False)

    def model_fn(features, labels, mode):
        y = function(features)
        loss = mc.reduce_mean(mc.layers.dense(mc.layers.flatten(y), 1))
        return mc.ModelFnOps(mode, {"y": y}, loss, mc.optimize_loss(loss, None, 0.0))

    estimator = mc.Estimator(model_fn, str(tmp_path / "model"), config=config)
    assert_close(found, estimator.predict(IMAGES, as_iterable=False)["y"])
