"""Tests of checkpoint files: damage, hostile files, locks, disks, and kills during writing.

tests/estimator/test_resume.py tests that training continues from them bit for bit.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.estimator import checkpoints

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(40, 60)).astype(np.float32)
Y = np.arange(40) % 3


def model_fn(features, labels, mode):
    """A model whose checkpoints are larger than what a file buffers."""
    training = mode == mc.ModeKeys.TRAIN
    hidden = mc.layers.dropout(mc.layers.dense(features, 99, name="hidden"), training=training)
    logits = mc.layers.dense(hidden, 3, name="logits")
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if training:
        train_op = mc.optimize_loss(loss, learning_rate=0.02, optimizer="Momentum")
    return mc.ModelFnOps(mode, mc.softmax(logits), loss, train_op)


def estimator_in(folder, **config):
    options = {"seed": 1, "save_checkpoints_steps": 1} | config
    return mc.Estimator(model_fn, folder, config=mc.RunConfig(**options))


def train(folder, max_steps, monitors=(), **config):
    estimator = estimator_in(folder, **config)
    return estimator.fit(X, Y, batch_size=7, max_steps=max_steps, monitors=list(monitors))


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def steps_in(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("model.ckpt-*.npz"))


def newest(folder):
    """Return the step that a new Estimator finds."""
    return estimator_in(folder).evaluate(X[:1], Y[:1])["global_step"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with the checkpoints of steps 1 to 5, and of 8; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    train(folder, 8, keep_checkpoint_max=8)
    for step in (6, 7):
        (folder / f"model.ckpt-{step}.npz").unlink()
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A folder with the checkpoints of steps 1 to 3."""
    for step in (1, 2, 3):
        shutil.copy(trained / f"model.ckpt-{step}.npz", tmp_path)
    index = {"latest": "model.ckpt-3.npz", "all": [f"model.ckpt-{step}.npz" for step in (1, 2, 3)]}
    (tmp_path / "checkpoint.json").write_text(json.dumps(index))
    return tmp_path


def assert_goes_on_as_if_nothing_had_been(folder, trained):
    """Train to step 8, and compare each bit with an undisturbed run."""
    train(folder, 8)
    ours, expected = (checkpoints.load(f / "model.ckpt-8.npz") for f in (folder, trained))
    assert ours.meta == expected.meta
    assert ours.arrays.keys() == expected.arrays.keys()
    assert len(ours.arrays) == 9
    for name, array in expected.arrays.items():
        assert_same_bits(ours.arrays[name], array)
    assert not [name for name in names_in(folder) if name.startswith(".")]


def warnings_in(caplog):
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# Damage -------------------------------------------------------------------------------------------

META = {"global_step": 5, "seed": 1, "place": {"epoch": 0, "row": 7, "rows": 9},
        "learning_rate": 0.1}
ARRAYS = {"parameters/w": np.arange(6, dtype=np.float32), "optimizer/iterations": np.array(5)}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The path and the bytes of a small checkpoint."""
    path = checkpoints.save(tmp_path_factory.mktemp("small"), 5, ARRAYS, META, keep=5)
    return path, path.read_bytes()


def assert_refused(path, data):
    path.write_bytes(data)
    with pytest.raises(mc.CheckpointError) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert "is not a valid checkpoint (" in str(caught.value)


def test_what_is_written_is_read(small):
    path, whole = small
    path.write_bytes(whole)
    loaded = checkpoints.load(path)
    assert loaded.meta == META
    for name, array in ARRAYS.items():
        assert_same_bits(loaded.arrays[name], array)


def test_every_damaged_byte_is_noticed(small):
    """One mask for each byte (one changes the case of letters); all masks near the end."""
    path, whole = small
    masks = (1, 0x20, 0x80, 0xFF)
    for at in range(len(whole)):
        for mask in masks if at > len(whole) - 100 else masks[at % 4 :][:1]:
            damaged = bytearray(whole)
            damaged[at] ^= mask
            assert_refused(path, damaged)


def test_missing_or_added_bytes_are_noticed(small):
    path, whole = small
    for length in [*range(0, len(whole) - 100, 50), *range(len(whole) - 100, len(whole))]:
        assert_refused(path, whole[:length])
    for data in (whole + b"\0", b"\0" + whole, whole * 2, whole + whole[-64:], bytes(len(whole))):
        assert_refused(path, data)


def test_a_file_without_checksum_is_no_checkpoint(small):
    path, whole = small
    path.write_bytes(whole)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    assert_refused(path, stream.getvalue())


def test_a_copy_of_one_file_is_enough(trained, tmp_path):
    shutil.copy(trained / "model.ckpt-3.npz", tmp_path)
    assert newest(tmp_path) == 3
    assert_goes_on_as_if_nothing_had_been(tmp_path, trained)


class Bomb:
    """Create a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def pickle(path):
    arrays = checkpoints.load(path).arrays
    bomb = np.array([Bomb(path.with_name("crater"))], object)
    stream = io.BytesIO()
    np.savez(stream, **(arrays | {"meta.json": np.array("{}"), "optimizer/iterations": bomb}))
    path.write_bytes(sealed(stream.getvalue()))


def empty(path):
    path.write_bytes(b"")


DAMAGES = [cut, flip, pickle, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_one_before_a_damaged_checkpoint_is_used(folder, trained, caplog, damage):
    damage(folder / "model.ckpt-3.npz")
    before = {name: (folder / name).read_bytes() for name in names_in(folder)}
    assert len(list(estimator_in(folder).predict(X))) == len(X)
    (warning,) = warnings_in(caplog)
    assert str(folder / "model.ckpt-3.npz") in warning
    assert warning.endswith("; using model.ckpt-2.npz instead")
    assert {name: (folder / name).read_bytes() for name in names_in(folder)} == before
    assert newest(folder) == 2
    assert_goes_on_as_if_nothing_had_been(folder, trained)
    assert not (folder / "crater").exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_does_not_count_among_the_kept(trained, tmp_path, keep):
    for step in (4, 8):
        shutil.copy(trained / f"model.ckpt-{step}.npz", tmp_path)
    cut(tmp_path / "model.ckpt-8.npz")
    train(tmp_path, 6, keep_checkpoint_max=keep)
    assert steps_in(tmp_path) == [*range(7 - keep, 7), 8]
    assert newest(tmp_path) == 6
    train(tmp_path, 9, keep_checkpoint_max=keep)
    assert steps_in(tmp_path) == [*range(10 - keep, 10)]


def test_where_all_are_damaged_the_error_says_what_to_do(folder, trained, caplog):
    for damage, step in zip(DAMAGES, (1, 2, 3), strict=False):
        damage(folder / f"model.ckpt-{step}.npz")
    for call in (
        lambda e: e.fit(X, Y, steps=1), lambda e: e.predict(X), lambda e: e.get_variable_names(),
    ):
        with pytest.raises(mc.CheckpointError, match="put a good copy") as caught:
            call(estimator_in(folder))
        for word in (f"none of the 3 checkpoints in {folder}", "model.ckpt-3.npz is not a valid",
                     "or delete them to start again"):
            assert word in str(caught.value)
    assert warnings_in(caplog) == []  # the error is enough
    for path in folder.glob("model.ckpt-*.npz"):  # as the error suggests
        path.unlink()
    assert_goes_on_as_if_nothing_had_been(folder, trained)


def test_going_back_by_the_index(folder, trained):
    """Later checkpoints do not count, and do not displace what is written now."""
    (folder / "checkpoint.json").write_text(json.dumps({"latest": "model.ckpt-1.npz"}))
    train(folder, 2, keep_checkpoint_max=1)
    assert steps_in(folder) == [2, 3]
    assert newest(folder) == 2
    assert_goes_on_as_if_nothing_had_been(folder, trained)


def test_an_estimator_sees_that_another_has_trained_since(tmp_path, trained):
    first = train(tmp_path, 2)
    train(tmp_path, 4)
    first.fit(X, Y, batch_size=7, steps=1)
    assert steps_in(tmp_path) == [1, 2, 3, 4, 5]
    shutil.rmtree(tmp_path)
    first.fit(X, Y, batch_size=7, steps=2)
    assert steps_in(tmp_path) == [1, 2]
    assert_goes_on_as_if_nothing_had_been(tmp_path, trained)


def test_a_checkpoint_that_goes_while_it_is_looked_for(folder, trained, monkeypatch):
    """Another process trains, writes a new checkpoint and deletes the old ones."""
    load, tried = checkpoints.load, []

    def load_late(path, follow):
        tried.append(path.name)
        if len(tried) == 1:
            path.unlink()
            shutil.copy(trained / "model.ckpt-4.npz", folder)
        return load(path, follow)

    monkeypatch.setattr(checkpoints, "load", load_late)
    for step in (1, 2):
        (folder / f"model.ckpt-{step}.npz").unlink()
    assert newest(folder) == 4
    assert tried == ["model.ckpt-3.npz", "model.ckpt-4.npz"]


def test_a_checkpoint_that_goes_right_after_the_listing(folder, trained, monkeypatch):
    @contextlib.contextmanager
    def scandir_late(path, real=os.scandir):
        with real(path) as entries:
            found = list(entries)
        for step in (1, 2, 3):
            (folder / f"model.ckpt-{step}.npz").unlink(missing_ok=True)
        for step in (4, 5):
            shutil.copy(trained / f"model.ckpt-{step}.npz", folder)
        yield found

    monkeypatch.setattr(os, "scandir", scandir_late)
    assert checkpoints.newest(folder).path.name == "model.ckpt-5.npz"


def refuse(error):
    def call(*arguments, **options):
        raise error
    return call


@pytest.mark.parametrize("owner, function, error", [
    (os, "open", PermissionError(errno.EACCES, "Permission denied")),
    (os, "open", OSError(errno.EMFILE, "Too many open files")),
    (np, "empty", MemoryError("no memory")),
    (os, "scandir", OSError(errno.EMFILE, "Too many open files")),
])
def test_what_the_system_refuses_to_read_is_not_called_damage(
    folder, monkeypatch, caplog, owner, function, error
):
    before = names_in(folder)
    with monkeypatch.context() as patch:
        patch.setattr(owner, function, refuse(error))
        with pytest.raises(mc.CheckpointError, match=r"cannot be read \(.*it may be good") as e:
            checkpoints.newest(folder)
    assert str(folder) in str(e.value)
    assert str(error) in str(e.value)
    assert "delete" not in str(e.value)
    assert warnings_in(caplog) == []  # and no older one is used
    assert names_in(folder) == before
    assert newest(folder) == 3


# Hostile files ------------------------------------------------------------------------------------


def sealed(data):
    """Return an archive with a valid checksum, whatever it contains."""
    body = bytes(data[:-2]) + (64).to_bytes(2, "little")
    return body + hashlib.sha256(body).hexdigest().encode()


def member(shape, descr="<f4", data=b"", fortran_order=False):
    """Return an .npy file with this header."""
    stream = io.BytesIO()
    header = {"descr": descr, "fortran_order": fortran_order, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, header)
    return stream.getvalue() + data


def text(value):
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array(value))
    return stream.getvalue()


def archive(members, compression=zipfile.ZIP_STORED, meta=META, change=None):
    meta = meta if isinstance(meta, bytes) else text(json.dumps(meta))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as file:
        for name, data in {"meta.json": meta, **members}.items():
            file.writestr(f"{name}.npy", data)
        if change is not None:
            change(file)
    return sealed(stream.getvalue())


def overlap(file):
    """Let a thousand names refer to the same bytes."""
    file.filelist.extend(file.filelist[-1:] * 1000)


def claim(size, compressed_too=True):
    def change(file):
        file.filelist[-1].file_size = size
        if compressed_too:
            file.filelist[-1].compress_size = size
    return change


def other_meta(**changes):
    return archive({}, meta=META | changes)


def with_array(name, numbers):
    return archive({name: member((2,), data=np.array(numbers, np.float32).tobytes())})


HOSTILE = {
    "a bomb": archive({"w": member((1 << 24,), data=bytes(1 << 26))}, zipfile.ZIP_DEFLATED),
    "a bomb that says it is small": archive(
        {"w": member((15_000,), data=bytes(1 << 26))}, zipfile.ZIP_DEFLATED,
        change=claim(60_128, False),
    ),
    "a member of gigabytes for a small array": archive(
        {"w": member((8,), data=bytes(32))},
        change=lambda file: setattr(file.filelist[-1], "compress_size", 1 << 31),
    ),
    "packed": archive({"w": member((6,), data=bytes(24))}, zipfile.ZIP_LZMA),
    "a header of terabytes": archive({"w": member((1 << 20, 1 << 20), "<f8", bytes(100))}),
    "a header of more than all": archive({"w": member((1 << 62,) * 4, "<f8")}),
    "a header of nothing": archive({"w": member((0, 1 << 62, 1 << 62), "<f8")}),
    "a negative shape": archive({"w": member((-2, -3), data=bytes(24))}),
    "a directory of gigabytes": archive({"w": bytes(1000)}, change=claim(1 << 31)),
    "a directory of terabytes": archive({"w": bytes(1000)}, change=claim(1 << 42)),
    "overlapping": archive({"w": member((25_000,), data=bytes(100_000))}, change=overlap),
    "long elements": archive({"w": member((1,), "<U1000000000")}),
    "bytes": archive({"w": member((1,), "|V8", bytes(8))}),
    "a record": archive({"w": member((1,), [("a", "<f4"), ("b", "|O")], bytes(12))}),
    "a nested header": archive({"w": b"\x93NUMPY\x01\x00\x28\x23" + b"(" * 9000}),
    "no array": archive({"w": b"no array"}),
    "nothing": sealed(b"PK\5\6" + bytes(18)),
    "no meta": archive({}, meta=member((2,), data=bytes(8))),
    "meta, nested": archive({}, meta=text("[" * 100_000)),
    "meta, a list": archive({}, meta=text("[]")),
    "meta, empty": archive({}, meta=text("{}")),
    "meta, a long number": archive({}, meta=text("9" * 10_000)),
    "a negative step": other_meta(global_step=-1),
    "a step of text": other_meta(global_step="5"),
    "a step of two": other_meta(global_step=[1, 2]),
    "a true step": other_meta(global_step=True),
    "half a seed": other_meta(seed=0.5),
    "no place": other_meta(place=None),
    "a place elsewhere": other_meta(place={"row": "../.."}),
    "a rate of text": other_meta(learning_rate="fast"),
    "a rate of NaN": other_meta(learning_rate=math.nan),
    "an endless rate": other_meta(learning_rate=math.inf),
    "a negative rate": other_meta(learning_rate=-0.1),
    "a rate beyond float": other_meta(learning_rate=10**400),
    "the step of another file": other_meta(global_step=6),
    "a huge row": other_meta(place={"epoch": 0, "row": 10**30, "rows": 9}),
    "a weight of NaN": with_array("parameters/w", [1, np.nan]),
    "a weight without end": with_array("parameters/w", [1, -np.inf]),
    "a momentum of NaN": with_array("optimizer/w/momentum", [np.nan, 1]),
    "a mean of squares of NaN": with_array("optimizer/w/adam_s", [np.nan, 1]),
    "a negative mean of squares": with_array("optimizer/w/adam_s", [1, -1e-3]),
    "negative iterations": archive(
        {"optimizer/iterations": member((), "<i8", np.int64(-1).tobytes())}
    ),
    "iterations that float cannot hold": archive(
        {"optimizer/iterations": member((), "<u8", np.uint64(2**64 - 1).tobytes())}
    ),
    "more batches taken than steps": other_meta(place={"batches": 6}),
    "more epochs than steps": other_meta(place={"epoch": 6, "row": 0, "rows": 9}),
}


def peak(call):
    """Return the peak memory of a call."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_little_memory(small, name):
    data = HOSTILE[name]
    assert peak(lambda: assert_refused(small[0], data)) < 6e6 + 5 * len(data)


@pytest.mark.parametrize("step", [2**53, 2**63, 10**30])
@pytest.mark.parametrize("place", [{}, {"global_step": 5}])
def test_a_step_that_float_cannot_hold_is_refused(folder, step, place):
    path = folder / f"model.ckpt-{step}.npz"
    path.write_bytes(other_meta(global_step=step, place=place))
    with pytest.raises(mc.CheckpointError, match="`global_step` must be at most 9007199254740991"):
        checkpoints.load(path)
    path.unlink()
    path = folder / f"model.ckpt-{2**53 - 1}.npz"
    path.write_bytes(other_meta(global_step=2**53 - 1, place=place))
    assert checkpoints.load(path).meta["global_step"] == 2**53 - 1


def test_values_that_a_run_may_leave_are_read(small):
    """An infinite mean of squares, from one huge gradient; and keys that a user has added."""
    names = ["optimizer/w/adam_s", "optimizer/w/adam_m", "optimizer/w/my_slot"]
    values = [np.float32([np.inf, 0.0]), np.float32([-1, 1]), np.float32([-np.inf, -1])]
    members = {
        name: member((2,), data=array.tobytes()) for name, array in zip(names, values, strict=True)
    }
    small[0].write_bytes(archive(members, meta=META | {"learning_rate": 0}))
    arrays = checkpoints.load(small[0]).arrays
    for name, array in zip(names, values, strict=True):
        assert_same_bits(arrays[name], array)


def test_a_renamed_checkpoint_is_read_by_its_path(folder):
    """Only in a name that minicnn chose must the step be right."""
    for name in ("my_best.npz", "model.ckpt-best.npz", "model.ckpt-3.npz.old"):
        shutil.copy(folder / "model.ckpt-3.npz", folder / name)
        assert checkpoints.load(folder / name).meta["global_step"] == 3
        (folder / "link.npz").symlink_to(folder / name)  # a path that the user gave may be a link
        assert checkpoints.load(folder / "link.npz").meta["global_step"] == 3
        (folder / "link.npz").unlink()
    (folder / "model.ckpt-3.npz").rename(folder / "model.ckpt-9.npz")
    with pytest.raises(mc.CheckpointError, match=r"it is of step 3, not of the step in its name"):
        checkpoints.load(folder / "model.ckpt-9.npz")


@pytest.mark.parametrize("name, value, words", [
    ("parameters/hidden/kernel", np.nan, "parameters/hidden/kernel holds NaN or infinity"),
    ("parameters/hidden/kernel", -1e300, "parameters/hidden/kernel holds NaN or infinity"),
    ("optimizer/hidden/kernel/momentum", np.nan, "optimizer/hidden/kernel/momentum holds NaN"),
    ("optimizer/hidden/kernel/adam_s", -1.0, "adam_s holds NaN or a negative mean of"),
])
def test_the_one_before_a_hostile_checkpoint_is_used(folder, trained, caplog, name, value, words):
    loaded = checkpoints.load(folder / "model.ckpt-3.npz")
    array = np.full((60, 99), value)  # -1e300 is infinity in float32
    checkpoints.save(folder, 3, loaded.arrays | {name: array}, loaded.meta, keep=5)
    assert newest(folder) == 2
    (warning,) = warnings_in(caplog)
    assert words in warning
    assert warning.endswith("using model.ckpt-2.npz instead")
    assert_goes_on_as_if_nothing_had_been(folder, trained)


def test_thousands_of_broken_checkpoints_are_read_once(folder, monkeypatch, caplog):
    (folder / "checkpoint.json").unlink()
    for step in range(10, 2010):
        (folder / f"model.ckpt-{step}.npz").write_bytes(b"broken")
    listings, loads = [], []
    scandir, load = os.scandir, checkpoints.load
    monkeypatch.setattr(os, "scandir", lambda path: listings.append(path) or scandir(path))
    monkeypatch.setattr(checkpoints, "load", lambda *a, **b: loads.append(a) or load(*a, **b))
    damaged = {}
    found = checkpoints.newest(folder, None, damaged)
    assert found.path.name == "model.ckpt-3.npz"
    assert len(listings) == 1
    assert len(loads) == 2001
    (warning,) = warnings_in(caplog)
    assert warning.startswith(f"{folder / 'model.ckpt-2009.npz'} is not a valid checkpoint")
    assert warning.endswith("using model.ckpt-3.npz instead (2000 checkpoints are damaged)")

    assert checkpoints.newest(folder, found, damaged) is found
    assert len(loads) == 2001
    assert checkpoints.newest(folder, None, damaged).path == found.path
    assert len(loads) == 2002  # files known to be damaged are not read again,
    assert len(warnings_in(caplog)) == 1
    (folder / "model.ckpt-7.npz").write_bytes(b"broken, too")
    (folder / "model.ckpt-500.npz").write_bytes(b"changed")
    assert checkpoints.newest(folder, None, damaged).path == found.path
    assert len(loads) == 2005  # but new and changed ones are
    assert warnings_in(caplog)[1].endswith("(2 checkpoints are damaged)")
    for path in folder.glob("model.ckpt-*.npz"):
        path.unlink()
    assert checkpoints.newest(folder, found, damaged) is None
    assert damaged == {}


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", [".lock", "evaluations.jsonl", "checkpoint.json"])
def test_a_link_in_the_place_of_a_name_of_ours_changes_no_other_file(
    folder, trained, tmp_path_factory, caplog, link, name
):
    victim = tmp_path_factory.mktemp("victim") / "document"
    victim.write_bytes(b"important")
    (folder / name).unlink(missing_ok=True)
    link(victim, folder / name)
    assert newest(folder) == 3
    if name == ".lock":
        with pytest.raises(mc.CheckpointError, match=r"\.lock .*link.*; remove it, or put a") as e:
            train(folder, 4)
        assert str(folder / ".lock") in str(e.value)
    else:
        train(folder, 4)
        assert newest(folder) == 4
    if name == "evaluations.jsonl":
        assert f"{folder / name} cannot be written" in warnings_in(caplog)[0]
    assert victim.read_bytes() == b"important"
    (folder / name).unlink()  # as the error suggests
    assert_goes_on_as_if_nothing_had_been(folder, trained)
    assert newest(folder) == 8
    assert victim.read_bytes() == b"important"


def test_a_dangling_link_makes_no_file(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("victim") / "authorized_keys"
    for name in (".lock", "evaluations.jsonl"):
        (folder / name).symlink_to(target)
    with pytest.raises(mc.CheckpointError, match="a symbolic link, not a regular file"):
        train(folder, 4)
    assert newest(folder) == 3
    assert not target.exists()


@pytest.mark.parametrize("make", [
    os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"),
    lambda path: path.write_bytes(b'{"latest": "model.ckpt-1.npz", "all": [' + b"[" * 10**7),
], ids=["pipe", "folder", "/dev/zero", "large"])
def test_an_index_that_is_no_small_file_is_no_obstacle(folder, make):
    (folder / "checkpoint.json").unlink()
    make(folder / "checkpoint.json")
    assert peak(lambda: checkpoints.newest(folder)) < 2e6
    assert newest(folder) == 3
    assert checkpoints.newest(folder).meta["global_step"] == 3


@pytest.mark.parametrize("name", [".lock", "evaluations.jsonl", "model.ckpt-9.npz"])
def test_a_pipe_in_the_place_of_a_name_of_ours_hangs_nothing(folder, caplog, name):
    os.mkfifo(folder / name)
    assert newest(folder) == 3
    if name == ".lock":
        with pytest.raises(mc.CheckpointError, match=r"\.lock is a named pipe, not a regular"):
            train(folder, 4)
    else:
        train(folder, 9)
        assert newest(folder) == 9


@pytest.mark.parametrize("target", ["model.ckpt-3.npz", "/dev/zero", "pipe", "nothing"])
def test_a_link_is_no_checkpoint(folder, caplog, target):
    os.mkfifo(folder / "pipe")
    (folder / "checkpoint.json").unlink()
    (folder / "model.ckpt-7.npz").symlink_to(target)
    assert newest(folder) == 3
    (warning,) = warnings_in(caplog)
    assert "model.ckpt-7.npz is a symbolic link, not a regular file" in warning


def test_an_index_stays_small_enough_to_be_read(folder):
    for step in range(10**15, 10**15 + 1500):
        (folder / f"model.ckpt-{step}.npz").touch()
    step = 10**15 + 1500
    meta = META | {"global_step": step}
    checkpoints.save(folder, step, ARRAYS, meta, keep=10**6)
    assert (folder / "checkpoint.json").stat().st_size < 1 << 16
    (folder / f"model.ckpt-{step + 1}.npz").touch()
    assert checkpoints.newest(folder).meta["global_step"] == step


def test_the_lock_of_a_stranger_is_not_printed(folder):
    with checkpoints.locked(folder):
        (folder / ".lock").write_bytes(b"\33[2J")
        with pytest.raises(mc.CheckpointError, match=f"is under way in {folder}; wait until"):
            train(folder, 9)


def test_names_in_an_archive_are_no_paths(small, tmp_path):
    names = ["../../up", "/tmp/root", "C:\\x", "a\0b", "", ".npy", "parameters/../w"]
    small[0].write_bytes(archive({name: member((6,), data=bytes(24)) for name in names}))
    before = set(tmp_path.parent.rglob("*"))
    assert len(checkpoints.load(small[0]).arrays) == len(names)
    assert set(tmp_path.parent.rglob("*")) == before


@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    keep=st.one_of(st.none(), st.integers(0, 2000)),
    insert=st.tuples(st.integers(0, 10**6), st.binary(max_size=30)),
    seal=st.booleans(),
)
def test_a_mutated_file_is_refused_or_harmless(small, flips, keep, insert, seal):
    """Half of them have a valid checksum, so other checks must refuse them."""
    path, whole = small
    mutated = bytearray(whole[:-64] if seal else whole)
    for position, mask in flips:
        mutated[position % len(mutated)] ^= mask
    position = insert[0] % len(mutated)
    mutated[position:position] = insert[1]
    mutated = mutated[:keep]
    if bytes(mutated) == whole:
        return
    if not seal:
        assert_refused(path, mutated)
        return
    path.write_bytes(sealed(mutated))

    def load():
        try:
            checkpoints.load(path)
        except mc.CheckpointError as error:
            assert str(path) in str(error)

    assert peak(load) < 3e6


@pytest.mark.parametrize("array", [
    np.full((60, 99), "a"), np.zeros((60, 99), np.int64), np.zeros((60, 99), bool), np.zeros(3),
    np.zeros(()),
], ids=lambda array: f"{array.dtype} {array.shape}")
def test_parameters_of_another_kind_are_refused(folder, array):
    path = folder / "model.ckpt-3.npz"
    loaded = checkpoints.load(path)
    arrays = loaded.arrays | {"parameters/hidden/kernel": array}
    checkpoints.save(folder, 3, arrays, loaded.meta, keep=5)
    with pytest.raises(mc.CheckpointError, match=r"hidden/kernel: the model has \(60, 99\)"):
        estimator_in(folder).predict(X)


def test_an_optimizers_state_of_another_kind_starts_again(folder, caplog):
    loaded = checkpoints.load(folder / "model.ckpt-3.npz")
    arrays = loaded.arrays | {"optimizer/hidden/kernel/momentum": np.full((60, 99), "a")}
    checkpoints.save(folder, 3, arrays, loaded.meta, keep=5)
    train(folder, 4)
    (warning,) = warnings_in(caplog)
    assert "The optimizer starts again without its state" in warning
    assert "`state['hidden/kernel/momentum']` must be" in warning


# Locks --------------------------------------------------------------------------------------------


class Ready(mc.hooks.SessionRunHook):
    """Print each step from the second on."""

    def after_run(self, run_context, run_values):
        if run_context.session.global_step >= 2:
            print(run_context.session.global_step, flush=True)


def die_inside_the_writing(share):
    """Kill this process in the third save, after a share of the calls that a save makes."""
    save, calls = checkpoints.save, [0, 0, 0]

    def save_or_die(folder, step, *rest):
        def count(frame, event, argument):
            calls[step - 1] += 1
            if step == 3 and calls[2] >= share * calls[1]:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        try:
            return save(folder, step, *rest)
        finally:
            sys.setprofile(None)

    checkpoints.save = save_or_die


def start(folder, share=None):
    """Start a process that trains in a folder until it ends or is killed."""
    program = (
        "import sys, pathlib; from estimator import test_checkpoints as t\n"
        f"if {share}: t.die_inside_the_writing({share})\n"
        "t.train(pathlib.Path(sys.argv[1]), 10**6, [t.Ready()])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    process = start(tmp_path)
    try:
        process.stdout.readline()
        for _ in range(2):
            with pytest.raises(mc.CheckpointError, match="another fit") as caught:
                train(tmp_path, 10)
            for word in (str(tmp_path), f"process {process.pid};", "use another model_dir"):
                assert word in str(caught.value)
        found = newest(tmp_path)  # reading is allowed
        assert found >= 1
        assert len(list(estimator_in(tmp_path).predict(X))) == len(X)
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    step = newest(tmp_path)
    assert step >= found
    train(tmp_path, step + 1)  # the lock has ended with its process
    assert newest(tmp_path) == step + 1


def test_nor_do_two_fits_of_one_process(tmp_path):
    class FitToo(mc.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            with pytest.raises(mc.CheckpointError, match=f"in process {os.getpid()};"):
                train(tmp_path, 9)
            refused.append(run_context.session.global_step)

    refused = []
    train(tmp_path, 2, [FitToo()])
    assert refused == [1, 2]
    assert ".lock" not in names_in(tmp_path)
    thread = threading.Thread(target=train, args=(tmp_path, 3))
    thread.start()
    thread.join()
    assert newest(tmp_path) == 3


def test_a_folder_that_cannot_be_listed_at_the_beginning(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", refuse(OSError(errno.EMFILE, "Too many open files")))
        with pytest.raises(mc.CheckpointError, match="Too many open files"):
            train(folder, 9)
    assert ".lock" not in names_in(folder)


def test_a_lock_whose_holder_has_not_yet_written_its_number(folder):
    with checkpoints.locked(folder):
        (folder / ".lock").write_bytes(b"")
        with pytest.raises(mc.CheckpointError, match=f"is under way in {folder}; wait until"):
            train(folder, 9)


def test_the_lock_of_another_is_left_alone(folder):
    """The folder is cleared or moved during a fit, and another fit starts in a new one."""
    with checkpoints.locked(folder) as first:
        assert first()
        (folder / ".lock").unlink()
        with checkpoints.locked(folder) as second:
            assert second() and not first()
            process = os.fork()
            if not process:
                os._exit(second())  # the lock is the parent's
            assert os.waitpid(process, 0)[1] == 0
            with pytest.raises(mc.CheckpointError, match=r"not the folder.*Step 5 is not saved"):
                checkpoints.save(folder, 5, ARRAYS, META, 5, first)
        (folder / ".lock").touch()
    assert ".lock" in names_in(folder)
    (folder / ".lock").unlink()


def test_a_lock_is_gone_with_its_fit_however_that_ends(folder):
    for error in (ValueError, KeyboardInterrupt):
        class Fail(mc.hooks.SessionRunHook):
            def before_run(self, run_context, error=error):
                assert ".lock" in names_in(folder)
                raise error

        with pytest.raises(error):
            train(folder, 9, [Fail()])
        assert ".lock" not in names_in(folder)


def test_a_forked_child_does_not_keep_the_lock(folder):
    """For example workers of an input_fn that outlive fit."""
    class StartWorker(mc.hooks.SessionRunHook):
        def begin(self):
            lock = os.stat(folder / ".lock")
            numbers = [int(name) for name in os.listdir("/dev/fd") if int(name) > 2]
            ours = [n for n in numbers if is_open(n) and os.path.samestat(os.fstat(n), lock)]
            assert len(ours) == 1
            children.append(subprocess.Popen(["sleep", "60"], pass_fds=ours))

    def is_open(number):
        try:
            return bool(os.fstat(number))
        except OSError:  # the one that listed the folder
            return False

    children = []
    try:
        train(folder, 4, [StartWorker()])
        train(folder, 5)
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_child_that_outlives_a_killed_fit_does_not_keep_the_lock(folder):
    read, write = os.pipe()
    fit = os.fork()
    if not fit:
        with checkpoints.locked(folder):
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            os.write(write, str(child).encode())
            os.kill(os.getpid(), signal.SIGKILL)
    child = int(os.read(read, 20))
    try:
        assert os.waitpid(fit, 0)[1] == signal.SIGKILL
        train(folder, 4)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_lock_that_is_removed_while_it_is_waited_for(folder, monkeypatch):
    flock, calls = fcntl.flock, []

    def remove_and_lock(file, operation):
        calls.append(operation)
        if len(calls) == 1:
            (folder / ".lock").unlink()  # its holder has ended
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", remove_and_lock)
    with checkpoints.locked(folder):
        assert calls == [fcntl.LOCK_EX | fcntl.LOCK_NB] * 2
        with pytest.raises(mc.CheckpointError), checkpoints.locked(folder):
            pass
    assert ".lock" not in names_in(folder)


def test_a_file_system_without_locks_is_named_once(folder, trained, monkeypatch, caplog):
    def no_locks(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    (folder / ".model.ckpt-4.npz.1.tmp").write_bytes(b"another process may be writing it")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        for step in (4, 5):
            train(folder, step)
    (warning,) = warnings_in(caplog)
    assert f"{folder} has no locks" in warning
    assert ".model.ckpt-4.npz.1.tmp" in names_in(folder)
    assert_goes_on_as_if_nothing_had_been(folder, trained)


def test_a_system_without_locks(folder, trained, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "fcntl", None)
        train(folder, 5)
    assert warnings_in(caplog) == []
    assert_goes_on_as_if_nothing_had_been(folder, trained)


@pytest.mark.parametrize("clear", [shutil.rmtree, lambda f: f.rename(f.with_name("moved"))])
def test_a_fit_does_not_write_into_a_folder_that_has_become_anothers(tmp_path, trained, clear):
    folder = tmp_path / "model"

    def start_again():
        clear(folder)
        train(folder, 3)

    with pytest.raises(mc.CheckpointError, match=r"is not the folder any more.*Step 6 is not"):
        train(folder, 8, [At(6, start_again)])
    assert steps_in(folder) == [1, 2, 3]
    assert_goes_on_as_if_nothing_had_been(folder, trained)


# Kills --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.95])
def test_a_kill_inside_the_writing(tmp_path, trained, share):
    process = start(tmp_path, share)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    for path in tmp_path.glob("model.ckpt-*.npz"):
        checkpoints.load(path)
    assert steps_in(tmp_path) in ([1, 2], [1, 2, 3])
    assert newest(tmp_path) in (2, 3)
    assert_goes_on_as_if_nothing_had_been(tmp_path, trained)


def test_what_a_kill_has_left_goes_with_the_next_fit(folder, trained):
    (folder / ".model.ckpt-2.npz.1.tmp").mkdir()  # cannot be unlinked, and does not matter
    left = [".model.ckpt-4.npz.12.tmp", ".checkpoint.json.3456.tmp"]
    not_ours = [".notes.tmp", "model.ckpt-4.npz.tmp", ".model.ckpt-4.npz"]
    for name in left + not_ours:
        (folder / name).write_bytes(b"half a file")
    assert newest(folder) == 3
    assert set(left) <= set(names_in(folder))
    train(folder, 4)
    assert set(left) & set(names_in(folder)) == set()
    (folder / ".model.ckpt-2.npz.1.tmp").rmdir()
    for name in not_ours:
        (folder / name).unlink()
    assert_goes_on_as_if_nothing_had_been(folder, trained)


# Disks --------------------------------------------------------------------------------------------


class At(mc.hooks.SessionRunHook):
    """Call something after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == self.step:
            self.call()


def assert_fails_clearly(folder, *hooks, **config):
    with pytest.raises(mc.CheckpointError, match=r"cannot be written \(.*run the same again") as e:
        train(folder, 8, hooks, **config)
    assert str(folder) in str(e.value)
    return str(e.value)


@pytest.mark.parametrize("keep", [1, 5])
@pytest.mark.parametrize("size", [0, 100, 9_000, 40_000, 46_000])
def test_a_disk_that_is_full_in_the_middle_of_a_file(folder, trained, size, keep):
    """The system itself refuses the rest of the file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = names_in(folder)
    assert (folder / "model.ckpt-3.npz").stat().st_size > 46_000
    try:
        said = assert_fails_clearly(
            folder, At(4, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))),
            keep_checkpoint_max=keep,
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "File too large" in said
    assert names_in(folder) == before
    assert newest(folder) == 3
    assert_goes_on_as_if_nothing_had_been(folder, trained)


@pytest.mark.parametrize("error", [
    OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EROFS, "Read-only file system"),
    PermissionError(errno.EACCES, "Permission denied"), OSError(errno.EIO, "Input/output error"),
], ids=str)
@pytest.mark.parametrize("function", ["open", "fsync", "replace"])
def test_whatever_the_system_refuses(folder, trained, monkeypatch, error, function):
    def refuse(*arguments, **options):
        raise error

    before = names_in(folder)
    with monkeypatch.context() as patch:
        owner = Path if function == "open" else os
        said = assert_fails_clearly(folder, At(4, lambda: patch.setattr(owner, function, refuse)))
    assert error.strerror in said
    assert set(names_in(folder)) - set(before) <= {".lock"}  # nothing can be opened to remove it
    assert newest(folder) == 3
    assert_goes_on_as_if_nothing_had_been(folder, trained)


def test_a_folder_that_vanishes(folder):
    said = assert_fails_clearly(folder, At(4, lambda: shutil.rmtree(folder)))
    assert "No such file or directory" in said
    assert not folder.exists()  # it may be the mount point of a disk that was removed


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_fails_clearly(tmp_path / "file" / "model")


def test_an_evaluation_that_cannot_be_noted_is_returned(folder, monkeypatch, caplog):
    (folder / "evaluations.jsonl").mkdir()
    assert newest(folder) == 3
    (warning,) = warnings_in(caplog)
    assert str(folder / "evaluations.jsonl") in warning


def test_an_evaluation_that_cannot_be_noted_warns_once_until_it_works_again(folder, caplog):
    estimator = estimator_in(folder)
    path = folder / "evaluations.jsonl"
    for expected in (1, 2):
        path.mkdir()
        for _ in range(2):
            estimator.evaluate(X, Y)
        assert len(warnings_in(caplog)) == expected
        path.rmdir()
        estimator.evaluate(X, Y)
        assert len(path.read_text().splitlines()) == 1
        path.unlink()
