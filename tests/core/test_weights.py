"""Tests of minicnn.core.weights: save_weights and load_weights."""

import errno
import hashlib
import os
import re
import resource
import stat
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.core.files import replacing


def make_model(seed=0, dtype=np.float32, units=4, names=("first", "second")):
    model = mc.Sequential([
        mc.layers.Conv2D(3, 3, activation="relu", name=names[0]), mc.layers.Flatten(),
        mc.layers.Dense(units, name=names[1]),
    ])
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
    return tmp_path / "weights.npz"


def assert_refused(model, path, *words, error=ValueError):
    """Loading raises an error with these words, and the model is unchanged."""
    before = values_of(model)
    with pytest.raises(error) as caught:
        mc.load_weights(model, path)
    for word in words:
        assert word in str(caught.value)
    assert_same_values(values_of(model), before)


@pytest.mark.parametrize("as_type", [Path, str])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_saved_is_loaded(path, as_type, dtype):
    model, other = make_model(0, dtype), make_model(1, dtype)
    arrays = [parameter.value for parameter in other.parameters]
    mc.save_weights(model, as_type(path))
    mc.load_weights(other, as_type(path))
    assert_same_values(values_of(other), values_of(model))
    for parameter, array in zip(other.parameters, arrays, strict=True):
        assert parameter.value is array  # fused layers use the same array
    x = np.ones((2, 6, 6, 2), dtype)
    assert_same_bits(model.predict(x), other.predict(x))


def test_the_file_holds_plain_arrays_by_name(path):
    model = make_model()
    mc.save_weights(model, path)
    with np.load(path, allow_pickle=False) as file:
        assert_same_values({name: file[name] for name in file.files}, values_of(model))
    assert set(values_of(model)) == {"first/kernel", "first/bias", "second/kernel", "second/bias"}


def test_special_numbers_and_another_type(path):
    model, other = make_model(), make_model(1, np.float64)
    model.parameters[0].value.flat[:3] = np.nan, -np.inf, -0.0
    mc.save_weights(model, path)
    mc.load_weights(other, path)
    assert_same_bits(other.parameters[0].value.astype(np.float32), model.parameters[0].value)


def test_one_layer_and_nested_models_are_models(path):
    layer, other = mc.layers.Dense(2, name="one"), mc.layers.Dense(2, name="one")
    for number, dense in enumerate((layer, other)):
        dense.build((None, 3), rng=number)
    mc.save_weights(layer, path)
    mc.load_weights(other, path)
    assert_same_values(values_of(other), values_of(layer))

    models = []
    for seed in (0, 1):
        parts = [mc.Sequential([mc.layers.Dense(3), mc.layers.Dense(3)]) for _ in range(2)]
        models.append(mc.Sequential(parts))
        models[-1].build((None, 3), rng=seed)
        assert len(values_of(models[-1])) == 8
    mc.save_weights(models[0], path)
    mc.load_weights(models[1], path)
    assert_same_values(values_of(models[1]), values_of(models[0]))


MISMATCHES = [
    # How the saved model differs, and words of the error.
    ({"names": ("first", "third")}, ["second/bias", "(4,)", "nothing of this name"]),
    ({"names": ("zeroth", "second")}, ["first/bias", "(3,)", "nothing of this name"]),
    ({"units": 5}, ["second/bias", "(4,)", "(5,)"]),
]


@pytest.mark.parametrize("change, words", MISMATCHES)
def test_names_and_shapes_are_strict(path, change, words):
    mc.save_weights(make_model(**change), path)
    assert_refused(make_model(1), path, str(path), *words)


def edit(path, **changes):
    """Write a model's weights with some arrays changed; None leaves one out."""
    arrays = {name.replace("/", "_"): array for name, array in values_of(make_model()).items()}
    arrays = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(path, **{name.replace("_", "/"): array for name, array in arrays.items()})


@pytest.mark.parametrize("changes, words", [
    ({"second_kernel": None}, ["second/kernel", "(48, 4)", "nothing of this name"]),
    ({"second_more": np.ones(2)}, ["second/more", "nothing of this name", "(2,)"]),
    ({"second_bias": np.ones((4, 1))}, ["second/bias", "(4,)", "(4, 1)"]),
    ({"second_bias": np.float32(1)}, ["second/bias", "(4,)", "()"]),  # it would broadcast
    ({"first_kernel": np.ones((3, 3, 3, 2))}, ["first/kernel", "(3, 3, 2, 3)", "(3, 3, 3, 2)"]),
    ({"second_kernel": np.full((48, 4), "a")}, ["second/kernel"]),
    ({"second_kernel": np.full((48, 4), 1j)}, ["second/kernel"]),
])
def test_a_file_that_does_not_fit_changes_nothing(path, changes, words):
    edit(path, **changes)
    assert_refused(make_model(1), path, *words)


class Bomb:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_is_refused(path, tmp_path):
    crater = tmp_path / "crater"
    bombs = np.empty(4, object)
    bombs[:] = [Bomb(crater)] * 4
    edit(path, second_bias=bombs)
    assert_refused(make_model(1), path, str(path))
    np.save(tmp_path / "bombs.npy", bombs)
    assert_refused(make_model(1), tmp_path / "bombs.npy", "bombs.npy")
    assert not crater.exists()


def test_files_of_another_kind_are_refused(path, tmp_path):
    np.save(tmp_path / "array.npy", np.ones(4))
    assert_refused(make_model(), tmp_path / "array.npy", "array.npy")
    for content in (b"", b"PK", b"text, and not a short one", b"\x80\x04N."):
        path.write_bytes(content)
        assert_refused(make_model(), path, str(path))
    assert_refused(make_model(), tmp_path / "none.npz", "none.npz", error=FileNotFoundError)


def peak_of_refusal(path, *words):
    model = make_model(1)
    tracemalloc.start()
    try:
        assert_refused(model, path, *words)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_arrays_that_the_model_has_no_room_for_are_not_read(path):
    edit(path, second_kernel=np.zeros((1 << 12, 1 << 10), np.float32))
    assert peak_of_refusal(path, "second/kernel", "(48, 4)", "(4096, 1024)") < 2e6


def test_a_packed_file_is_not_unpacked(path):
    np.savez_compressed(path, bomb=np.zeros(1 << 24))
    assert path.stat().st_size < 2e5
    assert peak_of_refusal(path, "it is compressed") < 2e6


def test_a_header_that_claims_terabytes_allocates_nothing(path):
    with zipfile.ZipFile(path, "w") as file, file.open("second/kernel.npy", "w") as stream:
        header = {"descr": "<f8", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
        np.lib.format.write_array_header_1_0(stream, header)
        stream.write(bytes(100))
    assert peak_of_refusal(path, "second/kernel.npy is not a plain array of 100 bytes") < 2e6


def test_a_file_with_a_wrong_checksum_is_refused(path):
    mc.save_weights(make_model(), path)
    whole = path.read_bytes()
    assert whole.endswith(hashlib.sha256(whole[:-64]).hexdigest().encode())
    for at in (0, 10, len(whole) // 2, len(whole) - 64, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[at] ^= 1
        path.write_bytes(damaged)
        assert_refused(make_model(1), path, str(path))


def test_a_lost_checksum_is_noticed(path):
    """A file of np.savez has none and is accepted; a file that has lost it is not."""
    mc.save_weights(make_model(), path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-64 - 2] ^= 64  # the length of the checksum
    for data in (whole[:-64], whole[:-63], whole[:-1], bytes(flipped), whole + b"\n"):
        path.write_bytes(data)
        assert_refused(make_model(1), path, str(path))
    np.savez(path, **values_of(make_model()))
    model = make_model(1)
    mc.load_weights(model, path)
    assert_same_values(values_of(model), values_of(make_model()))
    path.write_bytes(path.read_bytes() + bytes(64))
    assert_refused(make_model(1), path, str(path), "its end, with the checksum, is damaged")


def test_a_pipe_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    assert_refused(make_model(1), path, f"{path} is a named pipe", error=OSError)


def test_a_full_disk_is_an_error_with_the_name_of_the_file(path):
    mc.save_weights(make_model(), path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = path.read_bytes()
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
        with pytest.raises(OSError, match=f"File too large: '{path}'") as caught:
            mc.save_weights(make_model(1), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_arrays_that_numpy_has_saved_in_any_order_are_read(path):
    kernel = np.asfortranarray(values_of(make_model())["second/kernel"], ">f8")
    edit(path, second_kernel=kernel)
    model = make_model(1)
    mc.load_weights(model, path)
    assert_same_values(values_of(model), values_of(make_model()))


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_a_truncated_file_is_refused(path, share):
    mc.save_weights(make_model(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(make_model(1), path, str(path), ".npz")


@pytest.mark.parametrize("bit", [1, 8, 0x80])
def test_a_damaged_byte_is_an_error_or_does_not_matter(path, bit):
    layer = mc.layers.Dense(1, name="d")
    layer.build((None, 2), rng=0)
    mc.save_weights(layer, path)
    whole, expected = path.read_bytes(), values_of(layer)
    other = mc.layers.Dense(1, name="d")
    other.build((None, 2), rng=1)
    start = values_of(other)
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= bit
        path.write_bytes(damaged)
        for name, parameter in zip(start, other.parameters, strict=True):
            parameter.value[...] = start[name]
        try:
            mc.load_weights(other, path)
        except ValueError as error:
            assert re.search(r"weights\.npz", str(error))
            assert_same_values(values_of(other), start)
        else:
            assert_same_values(values_of(other), expected)


def test_a_model_that_is_not_built_has_no_weights(path):
    for model in (mc.layers.Dense(3), mc.Sequential([mc.layers.Dense(3)])):
        with pytest.raises(ValueError, match=r"no parameters.*call build first"):
            mc.save_weights(model, path)
        with pytest.raises(ValueError, match=r"no parameters.*call build first"):
            mc.load_weights(model, path)
    assert not path.exists()


def test_the_path_ends_in_npz(tmp_path):
    with pytest.raises(ValueError, match=r"`path` must end in \.npz, got '.*weights'"):
        mc.save_weights(make_model(), tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_file_before(path, monkeypatch):
    def write_half(member, array):
        member.write(b"half")
        raise OSError("no space left on device")

    mc.save_weights(make_model(), path)
    monkeypatch.setattr(mc.core.npz, "_write_array", write_half)
    with pytest.raises(OSError, match="no space"):
        mc.save_weights(make_model(1), path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    other = make_model(1)
    mc.load_weights(other, path)
    assert_same_values(values_of(other), values_of(make_model()))


def test_two_that_write_one_file_at_once_do_not_meet(path):
    with replacing(path) as first:
        first.write(b"first")
        with replacing(path) as second:
            second.write(b"the second")
        assert path.read_bytes() == b"the second"
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number, works", [
    (errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False),
])
def test_a_file_system_whose_folders_cannot_be_synced(path, monkeypatch, number, works):
    def fsync(file, real=os.fsync):
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(number, os.strerror(number))
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    model = make_model()
    if works:
        mc.save_weights(model, path)
    else:
        with pytest.raises(OSError, match=os.strerror(number)):
            mc.save_weights(model, path)
    mc.load_weights(model, path)
