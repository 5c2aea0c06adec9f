"""Tests of minicnn.export.safetensors: saved weights can be loaded; damage is an error."""

import json
import math
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc

safetensors = pytest.importorskip("safetensors", reason='pip install -e ".[safetensors]"')
numpy = pytest.importorskip("safetensors.numpy", reason='pip install -e ".[safetensors]"')


def make_model(seed=0, dtype=np.float32, units=4):
    model = mc.Sequential([mc.layers.Conv2D(3, 3), mc.layers.Flatten(), mc.layers.Dense(units)])
    model.build((None, 6, 6, 2), rng=seed, dtype=dtype)
    return model


def values_of(model):
    return {parameter.name: parameter.value.copy() for parameter in model.parameters}


def assert_same_values(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert_same_bits(first[name], second[name])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.safetensors"


@pytest.mark.parametrize("as_type", [Path, str])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_is_loaded(path, dtype, as_type):
    model, other = make_model(0, dtype), make_model(1, dtype)
    arrays = [parameter.value for parameter in other.parameters]
    mc.export.save_safetensors(model, as_type(path))
    mc.export.load_safetensors(other, as_type(path))
    assert_same_values(values_of(other), values_of(model))
    for parameter, array in zip(other.parameters, arrays, strict=True):
        assert parameter.value is array


def test_weights_of_all_kinds_of_convolutions(path):
    models = [
        mc.Sequential([
            mc.layers.DepthwiseConv2D(3, depth_multiplier=2), mc.layers.SeparableConv2D(3, 3),
            mc.layers.Conv2DTranspose(4, 3),
        ])
        for _ in range(2)
    ]
    for seed, model in enumerate(models):
        model.build((None, 6, 6, 2), rng=seed)
    mc.export.save_safetensors(models[0], path)
    assert sorted(numpy.load_file(path)) == [
        "conv2d_transpose/bias", "conv2d_transpose/kernel", "depthwise_conv2d/bias",
        "depthwise_conv2d/depthwise_kernel", "separable_conv2d/bias",
        "separable_conv2d/depthwise_kernel", "separable_conv2d/pointwise_kernel",
    ]
    mc.export.load_safetensors(models[1], path)
    assert_same_values(values_of(models[1]), values_of(models[0]))


def test_the_file_holds_plain_names_and_says_what_they_are(path):
    model = make_model()
    mc.export.save_safetensors(model, path)
    assert_same_values(numpy.load_file(path), values_of(model))
    assert set(values_of(model)) == {"conv2d/kernel", "conv2d/bias", "dense/kernel", "dense/bias"}
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {
            "format": "minicnn",
            "minicnn_version": mc.__version__,
            "layout": "conv2d kernel: (height, width, channels, filters); "
                      "dense kernel: (inputs, units); "
                      "conv2d_transpose kernel: (height, width, filters, channels); "
                      "depthwise_kernel: (height, width, channels, multiplier)",
        }


def test_of_an_estimator_the_newest_checkpoint_counts(path, tmp_path):
    def model_fn(features, labels, mode):
        logits = mc.layers.dense(features, units=2)
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
        train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
        return mc.ModelFnOps(mode, {"logits": logits}, loss, train_op)

    x, y = np.eye(4, 3, dtype=np.float32), np.arange(4) % 2
    made = mc.Estimator(model_fn, tmp_path / "model", config=mc.RunConfig(seed=0))
    for _ in range(2):
        made.fit(x, y, steps=1)
        mc.export.save_safetensors(mc.Estimator(model_fn, tmp_path / "model"), path)
        layer = mc.layers.Dense(2, name="dense")
        layer.build((None, 3), rng=1)
        mc.export.load_safetensors(layer, path)
        assert_same_bits(layer.kernel.value, made.get_variable_value("dense/kernel"))
        assert_same_bits(layer.bias.value, made.get_variable_value("dense/bias"))


def assert_refused(path, *words, error=ValueError):
    """Check that loading raises an error with these words and does not change the model."""
    model = make_model(1)
    before = values_of(model)
    with pytest.raises(error) as caught:
        mc.export.load_safetensors(model, path)
    for word in words:
        assert word in str(caught.value)
    assert_same_values(values_of(model), before)


@pytest.mark.parametrize("changes, words", [
    ({"dense/kernel": None}, ["dense/kernel", "(48, 4)", "nothing of this name"]),
    ({"dense/more": np.ones(2)}, ["dense/more", "nothing of this name", "(2,)"]),
    ({"dense/bias": np.ones((4, 1))}, ["dense/bias", "(4,)", "(4, 1)"]),
    ({"dense/bias": np.ones(4, np.int64)}, ["dense/bias", "has (4,) of int64", "int64"]),
])
def test_a_file_that_does_not_fit_changes_nothing(path, changes, words):
    arrays = values_of(make_model()) | changes
    numpy.save_file({name: array for name, array in arrays.items() if array is not None}, path)
    assert_refused(path, str(path), *words)


def test_other_float_types_are_converted(path):
    arrays = {name: array.astype(np.float16) for name, array in values_of(make_model()).items()}
    numpy.save_file(arrays, path)
    model = make_model(1)
    mc.export.load_safetensors(model, path)
    assert_same_values(values_of(model), {k: v.astype(np.float32) for k, v in arrays.items()})


def test_files_of_another_kind_are_refused(path):
    for content in (b"", b"PK", b"text, and not a short one", b"\xff" * 16):
        path.write_bytes(content)
        assert_refused(path, str(path), "not a safetensors file")
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")  # a type that NumPy lacks
    assert_refused(path, str(path), "not a safetensors file")
    assert_refused(path.with_name("none"), "none", error=FileNotFoundError)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(path, share):
    mc.export.save_safetensors(make_model(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(path, str(path), "not a safetensors file")


def peak_of(call, *arguments):
    tracemalloc.start()
    try:
        call(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write_sparse(path, arrays):
    """Write a header for float32 arrays by name and shape, followed by a hole in the file."""
    header, end = {}, 0
    for name, shape in arrays.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(file.tell() + end)


def test_a_large_file_of_another_kind_is_not_read(path):
    with path.open("wb") as file:
        file.truncate(1 << 28)
    assert peak_of(assert_refused, path, str(path), "not a safetensors file") < 2e6


def test_arrays_that_the_model_has_no_room_for_are_not_read(path):
    shapes = {name: array.shape for name, array in values_of(make_model()).items()}
    write_sparse(path, shapes | {"more": (1 << 13, 1 << 13)})
    assert peak_of(assert_refused, path, str(path), "more: ", "nothing of this name") < 2e6
    write_sparse(path, shapes | {"dense/kernel": (1 << 13, 1 << 13)})
    assert peak_of(assert_refused, path, str(path), "dense/kernel", "(8192, 8192)") < 2e6


def test_a_model_that_is_not_built_has_no_weights(path):
    for model, remedy in ((mc.layers.Dense(3), "call build first"), (None, "give a layer")):
        with pytest.raises(ValueError, match=rf"no parameters.*{remedy}"):
            mc.export.save_safetensors(model, path)
    assert not path.exists()


def test_a_failed_save_leaves_the_file_before(path, monkeypatch):
    mc.export.save_safetensors(make_model(), path)

    def full(descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        mc.export.save_safetensors(make_model(1), path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert_same_values(numpy.load_file(path), values_of(make_model()))


def test_without_safetensors_an_error_says_what_to_install(path, monkeypatch):
    for name in ("safetensors", "safetensors.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    for call in (mc.export.save_safetensors, mc.export.load_safetensors):
        with pytest.raises(ImportError, match=r'pip install -e "\.\[safetensors\]"'):
            call(make_model(), path)
