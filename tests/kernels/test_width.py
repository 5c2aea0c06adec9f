"""Vectors of 16, 32 and 64 bytes give the same bits. LLVM splits unsupported ones."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

import minicnn as mc
from minicnn.kernels import normalize, simd, threads, warp
from minicnn.kernels.conv import conv, depthwise, winograd
from minicnn.kernels.dense import dense
from minicnn.kernels.window import slide
from minicnn.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    MaxPooling2D,
)

ROOT = Path(__file__).parents[2]
WIDTHS = (16, 32, 64)
AROUND_LANES = (1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33, 65)  # of float32, up to two panels plus one


def numbers(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def convolutions(kernel, channels, filters, padding="same", strides=(1, 1), size=(7, 9)):
    """Yield the outputs of all functions of a convolution."""
    window = slide(size, kernel, strides, padding)
    x, w = numbers(1, 3, *size, channels), numbers(2, *kernel, channels, filters)
    b = numbers(3, filters)
    x[:, :5, :3] = 0
    y = np.empty((3, window.out_h, window.out_w, filters), np.float32)
    pooled = np.empty((3, window.out_h // 2, window.out_w // 2, filters), np.float32)
    code = np.empty(pooled.shape, np.uint8)
    conv.forward(x, w, b, y, window, True)
    conv.forward(x, w, b, pooled, window, True, code)
    yield from (y, pooled, code)
    dx, dw, db = np.empty_like(x), np.empty_like(w), np.empty_like(b)
    conv.pooled_gradients(x, numbers(4, *pooled.shape), code, w, dw, db, dx, window)
    yield from (dx.copy(), dw.copy(), db.copy())
    conv.kernel_gradient(x, numbers(5, *y.shape), dw, db, window)
    conv.input_gradient(numbers(5, *y.shape), w, dx, window)
    yield from (dx, dw, db)


def depthwise_convolutions(channels, more, strides=(1, 1)):
    """Yield the outputs of all functions of a depthwise convolution."""
    window = slide((7, 9), (3, 2), strides, "same")
    x, w = numbers(1, 3, 7, 9, channels), numbers(2, 3, 2, channels, more)
    dy = numbers(3, 3, window.out_h, window.out_w, channels * more)
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    depthwise.forward(x, w, numbers(4, channels * more), y, window, True)
    depthwise.input_gradient(dy, w, dx, window)
    depthwise.kernel_gradient(x, dy, dw, window)
    yield from (y, dx, dw)


def kernel_gradients(channels, filters):
    """Yield the outputs of the gradient of a kernel by Winograd."""
    window = slide((9, 11), (3, 3), (1, 1), "same")
    dw, db = np.empty((3, 3, channels, filters), np.float32), np.empty(filters, np.float32)
    x, dy = numbers(1, 20, 9, 11, channels), numbers(2, 20, 9, 11, filters)
    winograd.kernel_gradient(x, dy, dw, db, window, 16)
    yield from (dw, db)


def products(n, d, u):
    """Yield the outputs of all functions of a dense layer."""
    x, w, b, dy = numbers(1, n, d), numbers(2, d, u), numbers(3, u), numbers(4, n, u)
    y, dx, dw = np.empty_like(dy), np.empty_like(x), np.empty_like(w)
    dense.forward(x, w, b, y, True)
    yield y.copy()
    dense.forward(x, w, b, y, True, packed=dense.packed_kernel(w.astype(np.float16)))
    yield y
    for gradient in (dy, np.where(dy > 0.5, dy, 0)):
        dense.gradients(x, gradient, w, dw, dx, True)
        yield from (dx.copy(), dw.copy())


def normalized(rows, channels):
    """Yield the outputs of all functions of a batch normalization."""
    x, dy, factors = (numbers(i, n, channels) for i, n in enumerate((rows, rows, 5)))
    yield normalize.moments(x)
    for relu in (False, True):
        y = np.empty_like(x)
        normalize.scale(x, factors[:3], y, relu)
        yield y.copy()
        yield normalize.gradient_sums(x, dy, factors[:3], relu)
        normalize.input_gradient(x, dy, factors, y, relu)
        yield y


def warped(channels):
    """Yield images along random affine maps."""
    x = numbers(1, 3, 5, 6, channels)
    y = np.empty_like(x)
    warp.warp(x, numbers(2, 3, 2, 3).astype(np.float64), y)
    yield y


def training():
    """Yield the weights of a small network after some training steps."""
    model = mc.Sequential([
        Conv2D(6, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Conv2D(20, 3, padding="same"), BatchNormalization(), Activation("relu"),
        Conv2D(17, 3, activation="relu"), MaxPooling2D(2),
        Flatten(), Dense(70, activation="relu"), Dropout(0.4), Dense(10),
    ])
    model.build((None, 14, 14, 1), rng=0)
    sgd, rng = mc.optimizers.SGD(0.05, momentum=0.9), np.random.default_rng(0)
    for step in range(3):
        ctx = mc.Context(training=True, rng=rng)
        logits = model.forward(numbers(step, 9, 14, 14, 1), ctx)
        _, gradient = mc.losses.softmax_cross_entropy_with_grad(np.arange(9), logits)
        model.backward(gradient, ctx, need_dx=False)
        sgd.step(model.parameters)
    yield from (parameter.value for parameter in model.parameters)


# So that these small shapes use Winograd convolution, lists and several chunks.
@mock.patch.object(winograd, "_LEAST_GAIN", {(3, 3): 5.5, (5, 5): 3.8})
@mock.patch.object(dense, "_LEAST_LISTED", 0)
@mock.patch.object(threads, "_LEAST_WORK", 0)
def results():
    """Return digests of many results, by name."""
    found = {}
    for size in AROUND_LANES:
        found[f"few channels, {size} filters"] = convolutions((3, 2), 2, size)
        found[f"Winograd, {size} filters"] = convolutions((3, 3), 9, size)
        found[f"Winograd, {size + 7} channels"] = convolutions((5, 5), size + 7, 5, "valid")
        found[f"Winograd, gradient of {size} filters"] = kernel_gradients(size, size)
        found[f"strides, {size} filters"] = convolutions((2, 4), 9, size, strides=(2, 1))
        found[f"1x1, {size} channels"] = convolutions((1, 1), size, size + 1)
        found[f"depthwise, {size} channels"] = depthwise_convolutions(size, 1)
        found[f"depthwise, strides, {size} channels"] = depthwise_convolutions(size, 2, (2, 3))
        found[f"lists, {size} channels"] = convolutions((1, 3), size, 4)
        found[f"dense, {size} units"] = products(size, 70, size)
        found[f"few rows, {size} units"] = products(3, 70, size)
        found[f"two rows, {size} units"] = products(2, 70, size)
        found[f"batch normalization, {size} channels"] = normalized(300, size)
        found[f"warp, {size} channels"] = warped(size)
    found["lists, all rows of a window"] = convolutions((3, 3), 16, 10)
    found["lists, a row of a window at a time"] = convolutions((5, 5), 33, 20)
    found["lists, cut windows"] = convolutions((7, 7), 17, 5)
    found["lists, bands"] = convolutions((3, 3), 33, 5, size=(24, 26))
    found["lists, bands of one row"] = convolutions((2, 5), 17, 5, size=(6, 300))
    found["dense, lists of many rows"] = products(140, 70, 70)
    found["training"] = training()
    return {
        name: [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        for name, arrays in found.items()
    }


def start(width):
    return subprocess.Popen(
        [sys.executable, __file__], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "MINICNN_VECTOR_BYTES": str(width), "PYTHONPATH": str(ROOT)},
    )


def test_the_width_of_vectors_changes_no_bit():
    runs = {width: start(width) for width in WIDTHS if width != simd.VECTOR_BYTES}
    expected = results()
    for width, run in runs.items():
        printed, complaint = run.communicate(timeout=300)
        assert run.returncode == 0, complaint
        there = json.loads(printed)
        assert there.pop("width") == width
        assert [name for name in expected if there[name] != expected[name]] == []


@pytest.mark.parametrize("text", ["8", "0", "32 bytes", ""])
def test_a_width_that_does_not_exist(monkeypatch, text):
    monkeypatch.setenv("MINICNN_VECTOR_BYTES", text)
    with pytest.raises(ValueError, match="MINICNN_VECTOR_BYTES must be 16, 32 or 64"):
        simd._width()


@pytest.mark.parametrize(("features", "width"), [
    ("+sse4.2,+avx,+avx2,+fma,+avx512f,+avx512vl", 64),
    ("+sse4.2,+avx,+avx2,+fma,-avx512f", 32),
    ("+sse4.2,+avx", 16),
    ("+neon", 16),
    ("", 16),
])
def test_the_width_is_that_of_the_features_that_numba_compiles_for(monkeypatch, features, width):
    monkeypatch.delenv("MINICNN_VECTOR_BYTES", raising=False)
    monkeypatch.setattr(simd.numba.config, "CPU_FEATURES", features)
    assert simd._width() == width


@pytest.mark.parametrize(("features", "machine", "expected"), [
    ("+sse4.2,+avx,+f16c", "x86_64", True), ("+sse4.2,+avx,-f16c", "x86_64", False),
    ("", "x86_64", False), ("+neon", "aarch64", True), ("+neon", "arm64", True),
])
def test_float16_is_converted_where_the_cpu_can(monkeypatch, features, machine, expected):
    monkeypatch.setattr(simd.numba.config, "CPU_FEATURES", features)
    monkeypatch.setattr(simd.platform, "machine", lambda: machine)
    assert simd._has_half() == expected


if __name__ == "__main__":
    print(json.dumps({"width": simd.VECTOR_BYTES, **results()}))
