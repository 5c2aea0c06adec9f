"""Tests of the disk cache: which files are loaded, and whose."""

import logging
import os
import pickle
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

import minicnn.kernels
from minicnn.kernels import cache

posix = pytest.mark.skipif(sys.platform == "win32", reason="rights of POSIX")


class Codegen:
    def magic_tuple(self):
        return ("a processor",)


class TargetContext:
    def codegen(self):
        return Codegen()


def result(*payload):
    """Return a substitute for a compiled function."""
    return types.SimpleNamespace(codegen=Codegen(), _reduce=lambda: payload)


def load(stamp="1", sig="float32"):
    return cache.DiskCache(load, stamp).load_overload(sig, TargetContext())


def save(payload, stamp="1", sig="float32"):
    cache.DiskCache(load, stamp).save_overload(sig, result(payload))


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """The three candidate folders of the cache; a test creates those that it needs."""
    package = tmp_path / "site" / "kernels"
    package.mkdir(parents=True)
    monkeypatch.setattr(cache, "_PACKAGE", package)
    monkeypatch.setattr(cache.config, "CACHE_DIR", str(tmp_path / "set"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(cache.rtsys, "initialize", lambda context: None)
    monkeypatch.setattr(cache.CompileResult, "_rebuild", lambda context, *payload: payload[0])
    functions = (cache.folders, cache._say_once_that_nothing_is_kept,
                 cache._say_once_that_kernels_are_compiled)
    for function in functions:
        function.cache_clear()
    yield types.SimpleNamespace(
        set=tmp_path / "set", tree=package / "__pycache__", home=tmp_path / "home"
    )
    for function in functions:
        function.cache_clear()


def only_file(folder):
    [file] = folder.rglob("*.nbc")
    return file


def again(monkeypatch, **settings):
    """Search for the folders again, as a new process does."""
    for name, value in settings.items():
        monkeypatch.setattr(cache.config, name, value)
    cache.folders.cache_clear()


# Which files are loaded


def test_what_was_saved_is_loaded_where_all_is_the_same():
    assert load() is None
    save("code")
    save("of doubles", sig="float64")
    assert load() == "code"
    assert load(sig="float64") == "of doubles"
    assert load(stamp="2") is None
    save("of another source", stamp="2")
    assert load(stamp="2") == "of another source"
    assert load() is None  # one file per kernel and type: a stale one is replaced


DAMAGE = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[:-1],
    "one bit of the checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "one bit of the code": lambda content: content[:-9] + bytes([content[-9] ^ 64]) + content[-8:],
    "zeros": lambda content: content[:40] + bytes(len(content) - 40),
    "longer": lambda content: content + b"x",
    "no pickle": lambda content: b"x" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_not_loaded(places, damage):
    save("code" * 100)
    file = only_file(places.set)
    content = file.read_bytes()
    file.write_bytes(DAMAGE[damage](content))
    assert load() is None
    save("code" * 100)
    assert file.read_bytes() == content


def test_a_file_under_another_name_is_not_loaded(places):
    save("of doubles", sig="float64")
    doubles = only_file(places.set)
    save("code")
    [single] = set(places.set.rglob("*.nbc")) - {doubles}
    shutil.copy(doubles, single)
    assert load() is None


def test_only_a_miss_says_that_something_is_compiled(caplog):
    caplog.set_level(logging.INFO, "minicnn")
    save("code")
    caplog.clear()
    load()
    assert caplog.messages == []
    load(sig="float64")
    load(sig="int8")
    assert [message.split(";")[0] for message in caplog.messages] == ["Compiling the kernels"]
    save("code", sig="int8")
    assert re.fullmatch(r".*\.load in \d\.\d s, once for this machine\.", caplog.messages[-1])


# Folders


def test_a_folder_of_the_users_choice_is_the_only_one(places):
    save("code")
    assert only_file(places.set)
    assert not places.tree.exists()
    assert not places.home.exists()


def test_else_the_package_keeps_it(places, monkeypatch):
    again(monkeypatch, CACHE_DIR="")
    save("code")
    assert only_file(places.tree)
    assert not places.home.exists()


def test_else_the_user_keeps_it(places, monkeypatch, caplog):
    again(monkeypatch, CACHE_DIR="")
    places.tree.touch()
    save("code")
    assert only_file(places.home)
    assert load() == "code"
    assert caplog.messages == []


def test_a_user_without_a_home_has_no_folder_called_tilde(places, monkeypatch):
    monkeypatch.setattr(cache.AppDirs, "user_cache_dir", "~/.cache/numba")
    again(monkeypatch, CACHE_DIR="")
    places.tree.touch()
    assert cache.folders().written is None


def test_without_a_folder_it_is_said_once_and_why(places, monkeypatch, caplog):
    for place in (places.set, places.tree, places.home):
        place.touch()
    again(monkeypatch)
    assert load() is None
    save("code")
    save("more", sig="float64")
    [message] = caplog.messages
    assert "every run compiles them" in message
    assert all(f"{place}" in message for place in (places.set, places.tree, places.home))


def test_what_cannot_be_written_is_said_once_and_leaves_nothing(places, monkeypatch, caplog):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", fail)
    save("code")
    save("more", sig="float64")
    [message] = caplog.messages
    assert "No space left on device" in message
    assert [path for path in places.set.rglob("*") if path.is_file()] == []


# Ownership and permissions


@posix
@pytest.mark.parametrize(("mode", "uid", "gid", "safe"), [
    (0o700, 1000, 1000, True),
    (0o755, 1000, 5, True),
    (0o775, 1000, 1000, True),  # the user's own group
    (0o775, 1000, 5, False),
    (0o757, 1000, 1000, False),
    (0o755, 0, 0, True),  # owned by root
    (0o775, 0, 0, False),
    (0o777, 0, 0, False),
    (0o700, 1001, 1000, False),  # owned by another user
])
def test_who_may_have_written_a_file(monkeypatch, mode, uid, gid, safe):
    monkeypatch.setattr(cache.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(cache.os, "getegid", lambda: 1000)
    status = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))
    assert cache.is_safe(status) == safe


@posix
@pytest.mark.parametrize("umask", [0, 0o002, 0o022])
def test_modes_of_what_is_made(places, monkeypatch, umask):
    before = os.umask(umask)
    try:
        save("code")
        assert load() == "code"
        made = [places.set, *places.set.rglob("*")]
        again(monkeypatch, CACHE_DIR="")
        save("code")
        assert load() == "code"
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in made] == ["0o700", "0o700", "0o644"]
    assert places.tree.stat().st_mode & 0o777 == 0o755  # readable by all, as Python creates it


class Flag:
    """An object that runs a command when it is unpickled, as in a malicious file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@posix
@pytest.mark.parametrize("weak", ["file", "folder", "folder above"])
def test_what_others_can_write_is_not_unpickled(places, tmp_path, monkeypatch, caplog, weak):
    flag = tmp_path / "flag"
    monkeypatch.setattr(cache, "dumps", pickle.dumps)
    save(Flag(flag))
    assert flag.exists() is False
    load()
    assert flag.exists()  # from a safe folder it is run: the checksum is correct
    flag.unlink()
    file = only_file(places.set)
    path, mode = {"file": (file, 0o666), "folder": (file.parent, 0o777),
                  "folder above": (places.set, 0o777)}[weak]
    path.chmod(mode)
    again(monkeypatch)
    assert load() is None
    assert not flag.exists()
    save("code")
    assert load() == "code"
    if weak == "file":
        assert caplog.messages == []
        assert file.stat().st_mode & 0o777 == 0o644
    else:
        assert len(caplog.messages) == 1
        assert f"NUMBA_CACHE_DIR is not used: {file.parent} belongs" in caplog.text
        assert only_file(places.tree)


@posix
@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_only_a_regular_file_is_read(places, tmp_path, kind):
    save("code")
    file, elsewhere = only_file(places.set), tmp_path / "elsewhere"
    file.rename(elsewhere)
    if kind == "link":
        file.symlink_to(elsewhere)
    else:
        os.mkfifo(file)
    assert load() is None
    save("code")
    assert load() == "code"
    assert not file.is_symlink()


@posix
def test_others_may_write_above_where_nobody_can_rename(places, monkeypatch):
    monkeypatch.setattr(cache, "_is_sticky", lambda status: status.st_mode & stat.S_ISVTX)
    places.set.mkdir()
    places.set.chmod(0o1777)
    save("code")
    assert only_file(places.set)


LOAD_AS_ANOTHER_USER = """
import os, sys
import numpy as np
from minicnn.kernels import cache, update
w, one = np.ones(3), np.ones(3)
update.momentum(w, one, one.copy(), (1.0, 0.0, 0.0, 0.0))
if sys.argv[1:] and os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
cache.folders.cache_clear()
update.sgd(np.ones(3), np.ones(3), (1.0, 0.0))
stats = update._sgd.stats
print(*map(sum, (stats.cache_hits.values(), stats.cache_misses.values())))
"""


@posix
def test_another_user_uses_what_root_has_compiled():
    """As in a container. Unless the tests run as root, the same user runs without write access."""
    shared = Path(tempfile.mkdtemp(dir="/tmp"))  # other users cannot read pytest's folders
    try:
        shared.chmod(0o755)
        folder = Path(minicnn.kernels.__file__).parent
        kernels = shared / "minicnn" / "kernels"
        shutil.copytree(folder, kernels, ignore=shutil.ignore_patterns("__pycache__"))
        (shared / "minicnn" / "__init__.py").touch()
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": str(shared), "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(shared / "nowhere"),
        }

        def hits_and_misses(*arguments):
            command = [sys.executable, "-c", LOAD_AS_ANOTHER_USER, *arguments]
            run = subprocess.run(
                command, env=environment, cwd=shared, capture_output=True, text=True
            )
            return run.stdout, run.stderr

        assert hits_and_misses() == ("0 1\n", "")
        (kernels / "__pycache__").chmod(0o555)
        assert hits_and_misses("another user") == ("1 0\n", "")
    finally:
        shutil.rmtree(shared)
