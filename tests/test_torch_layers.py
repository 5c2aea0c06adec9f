"""Compare single layers and functions with PyTorch's record of the same passes."""

from pathlib import Path

import numpy as np
import pytest
from parity_layers import FUNCTIONS, LAYERS, inputs_of, numbers
from tolerances import assert_close

import minicnn as mc

RECORD = Path(__file__).with_name("data") / "torch_layers.npz"


@pytest.fixture(scope="module")
def record():
    with np.load(RECORD) as arrays:
        return dict(arrays)


def assert_recorded(record, name, results):
    for number, actual in enumerate(results):
        expected = record[f"{name}/{number}"]
        assert_close(actual, expected, max(1, 10 * np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_that_of_pytorch(record, name, dtype):
    kind, options, shape = LAYERS[name]
    layer, ctx = getattr(mc.layers, kind)(**options), mc.Context()
    layer.build((None, *shape[1:]), rng=0, dtype=dtype)
    for number, parameter in enumerate(layer.parameters, 1):
        parameter.value[...] = numbers(name, str(number), parameter.shape)
    y = layer.forward(numbers(name, "0", shape).astype(dtype), ctx)
    dx = layer.backward(numbers(name, "dy", y.shape).astype(dtype), ctx)
    assert_recorded(record, name, (y, dx, *(parameter.grad for parameter in layer.parameters)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_that_of_pytorch(record, name, dtype):
    kind = {"leaky_relu": "LeakyRelu", "gelu": "Gelu", "log_softmax": "LogSoftmax"}
    op, ctx = getattr(mc.ops, kind[name.split()[0]])(**FUNCTIONS[name]), mc.Context()
    y = op.forward(inputs_of(name).astype(dtype), ctx)
    dx = op.backward(numbers(name, "dy", y.shape).astype(dtype), ctx)
    assert_recorded(record, name, (y, dx))
