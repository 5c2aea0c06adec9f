"""Losses, layers and AdamW beside the record that PyTorch has made of them."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import minicnn as mc
from minicnn.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    GlobalAveragePooling2D,
    Residual,
    Sequential,
)


def small_arrays():
    """Return the arrays that both compute with, by name."""
    rng = np.random.default_rng(1)
    return {
        "outputs": 2 * rng.standard_normal((6, 4)),
        "labels": rng.random((6, 4)),
        "weights": rng.random((6, 4)),
        "classes": rng.integers(4, size=6),
        "images": rng.standard_normal((2, 5, 4, 3)),
        "first": rng.standard_normal((3, 3, 3, 4)),
        "second": rng.standard_normal((3, 3, 4, 4)),
        "shortcut": rng.standard_normal((1, 1, 3, 4)),
        "dy": rng.standard_normal((2, 5, 4, 4)),
        "start": rng.standard_normal((7, 3)),
        "gradients": rng.standard_normal((10, 7, 3)),
        "gamma": rng.standard_normal(3),
        "beta": rng.standard_normal(3),
        "of_images": rng.standard_normal((2, 5, 4, 3)),
        "of_pools": rng.standard_normal((2, 3, 2, 3)),
    }


A = small_arrays()


@pytest.fixture(scope="module")
def record():
    with np.load(Path(__file__).with_name("data") / "torch_small.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize(("name", "loss", "labels", "options"), [
    ("sigmoid_cross_entropy", "sigmoid_cross_entropy", "labels", {}),
    ("weighted sigmoid", "sigmoid_cross_entropy", "labels", {"weights": A["weights"]}),
    ("mean_squared_error", "mean_squared_error", "labels", {}),
    ("absolute_difference", "absolute_difference", "labels", {}),
    ("sparse_softmax_cross_entropy", "sparse_softmax_cross_entropy", "classes", {}),
])
def test_losses(record, name, loss, labels, options):
    with_grad = getattr(mc.losses, f"{loss}_with_grad")
    value, gradient = with_grad(A[labels], A["outputs"], **options)
    assert_allclose(value, record[name], rtol=1e-12)
    assert_allclose(gradient, record[f"{name}/0"], atol=1e-14)


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_a_residual_block_with_relu(record, dtype, limit):
    convolutions = [Conv2D(4, 3, padding="same", use_bias=False, activation="relu"),
                    Conv2D(4, 3, padding="same", use_bias=False)]
    block = Residual(convolutions, Conv2D(4, 1, use_bias=False))
    model = Sequential([block, Activation("relu")])
    model.build((None, 5, 4, 3), rng=0, dtype=dtype)
    for parameter, name in zip(model.parameters, ("first", "second", "shortcut"), strict=True):
        parameter.value[...] = A[name]
    ctx = mc.Context()
    y = model.forward(A["images"].astype(dtype), ctx)
    assert_allclose((y * A["dy"]).sum(), record["residual"], rtol=limit)
    dx = model.backward(A["dy"].astype(dtype), ctx)
    for number, gradient in enumerate([dx, *(p.grad for p in model.parameters)]):
        expected = record[f"residual/{number}"]
        assert_allclose(gradient, expected, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e-4), (np.float64, 1e-12)])
def test_batch_normalization(record, dtype, limit):
    layer = BatchNormalization()
    layer.build((None, 5, 4, 3), rng=0, dtype=dtype)
    layer.gamma.value[...] = A["gamma"]
    layer.beta.value[...] = A["beta"]
    layer.updates.value[...] = 1e6  # PyTorch has no other weight in the first steps
    ctx = mc.Context(training=True)
    y = layer.forward(A["images"].astype(dtype), ctx)
    dx = layer.backward(A["of_images"].astype(dtype), ctx)
    mean, variance = layer.moving_mean.value, layer.moving_variance.value
    found = {"": (y * A["of_images"]).sum(), "/0": dx, "/1": layer.gamma.grad,
             "/2": layer.beta.grad, ", mean": mean, ", variance": variance}
    for name, value in found.items():
        expected = record[f"batch_normalization{name}"]
        assert_allclose(value, expected, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize(("name", "layer", "dy"), [
    ("average_pooling2d", lambda: AveragePooling2D(3, 2, "same"), A["of_pools"]),
    ("global_average_pooling2d", GlobalAveragePooling2D, A["of_pools"][:, 0, 0]),
])
def test_average_pooling(record, name, layer, dy):
    pool = layer()
    pool.build((None, 5, 4, 3), rng=0, dtype=np.float64)
    ctx = mc.Context()
    assert_allclose((pool.forward(A["images"], ctx) * dy).sum(), record[name], rtol=1e-12)
    assert_allclose(pool.backward(dy.copy(), ctx), record[f"{name}/0"], atol=1e-14)


@pytest.mark.parametrize(("name", "make"), [
    ("AdamW", lambda: mc.optimizers.AdamW(0.01)),
    ("AdamW, decay", lambda: mc.optimizers.AdamW(0.01, 0.8, 0.99, 1e-3, 0.1)),
])
def test_adamw(record, name, make):
    parameter, optimizer = mc.Parameter("w", A["start"].copy()), make()
    for gradient in A["gradients"]:
        parameter.grad[...] = gradient
        optimizer.step([parameter])
    assert_allclose(parameter.value, record[name], rtol=1e-12)
