"""Compare twenty steps of the documented network with PyTorch's record of the same steps."""

from pathlib import Path

import numpy as np
import parity
import pytest

import minicnn as mc
from minicnn.kernels.conv import conv

REFERENCE = Path(__file__).with_name("data") / "torch_parity.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def train():
    return mc.datasets.load_dataset("mnist").train


def run(train, fast=True, conv1_factor=1.0):
    """Return the record of the run on the fast or the general path, at its rate.

    conv1_factor is a fault put into one gradient.
    """
    rate = "slow_losses" if fast else "losses"
    model = mc.Sequential(
        [
            mc.layers.Conv2D(32, 5, padding="same", activation="relu"),
            mc.layers.MaxPooling2D(2, 2),
            mc.layers.Conv2D(64, 5, padding="same", activation="relu"),
            mc.layers.MaxPooling2D(2, 2),
            mc.layers.Flatten(),
            mc.layers.Dense(1024, activation="relu"),
            mc.layers.Dense(10),
        ],
        fuse=fast,
    )
    model.build((None, 28, 28, 1), rng=0)
    start = parity.start_values()
    for parameter, value in zip(model.parameters, start, strict=True):
        parameter.value[...] = value

    sgd = mc.optimizers.SGD(parity.RATES[rate])
    losses, gradients = [], None
    for images, labels in parity.batches(train.images, train.labels):
        ctx = mc.Context(training=True)
        logits = model.forward(images.reshape(-1, 28, 28, 1), ctx)
        loss, dlogits = mc.losses.softmax_cross_entropy_with_grad(labels=labels, logits=logits)
        model.backward(dlogits, ctx, need_dx=False)
        model.parameters[0].grad[...] *= conv1_factor
        gradients = gradients or [parameter.grad.copy() for parameter in model.parameters]
        sgd.step(model.parameters)
        losses.append(loss)
    return parity.record(start, {rate: losses}, gradients)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "general"])
def test_losses_and_gradients_are_those_of_pytorch(monkeypatch, train, reference, fast):
    monkeypatch.setattr(conv, "FAST_PATHS", fast)
    found = parity.violations(run(train, fast), reference)
    assert not found, "\n".join(found)


def test_a_wrong_gradient_is_seen(train, reference):
    found = parity.violations(run(train, conv1_factor=1.1), reference)
    assert any(line.startswith("conv2d/kernel, norm of gradient") for line in found)
