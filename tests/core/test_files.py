"""Tests of minicnn.core.files: what is opened, and what is not."""

import errno
import os
import socket

import pytest

from minicnn.core.files import StrangeFileError, open_regular, replacing


@pytest.fixture
def path(tmp_path):
    return tmp_path / "name"


def test_a_regular_file_is_opened(path):
    with open_regular(path, "a+b") as file:
        file.write(b"first ")
    with open_regular(path, "ab") as file:
        file.write(b"second")
    for follow in (False, True):
        with open_regular(path, follow=follow) as file:
            assert file.read() == b"first second"
            assert not os.get_inheritable(file.fileno())


def test_no_file_is_the_error_that_open_raises(path):
    for follow in (False, True):
        with pytest.raises(FileNotFoundError):
            open_regular(path, follow=follow)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize("mode", ["rb", "ab", "a+b"])
@pytest.mark.parametrize("make, words", [
    (os.mkfifo, "a named pipe"),
    (os.mkdir, "a folder"),
    (make_socket, "a device or a socket"),
], ids=["pipe", "folder", "socket"])
def test_an_error_says_what_kind_of_file_it_is(path, monkeypatch, mode, make, words):
    monkeypatch.chdir(path.parent)  # the name of a socket is short
    make(path.relative_to(path.parent))
    for follow, remedy in ((False, "remove it"), (True, "give the path of")):
        expected = f"name is {words}, not a regular file; {remedy}"
        with pytest.raises(StrangeFileError, match=expected):
            open_regular(path, mode, follow)


@pytest.mark.parametrize("target", ["file", "pipe", "nothing", "/dev/zero"])
def test_a_symbolic_link_that_the_user_has_given_is_followed_to_a_regular_file(path, target):
    path.with_name("file").write_bytes(b"content")
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to(target)
    for mode in ("rb", "ab", "a+b"):
        with pytest.raises(StrangeFileError, match="is a symbolic link, not a regular file"):
            open_regular(path, mode)
    if target == "file":
        with open_regular(path, follow=True) as file:
            assert file.read() == b"content"
    else:
        with pytest.raises(OSError):
            open_regular(path, follow=True)
    assert path.with_name("file").read_bytes() == b"content"
    assert not path.with_name("nothing").exists()


def test_a_file_with_two_names_is_read_and_not_written(path):
    path.write_bytes(b"content")
    os.link(path, path.with_name("other"))
    with open_regular(path) as file:
        assert file.read() == b"content"
    for mode in ("ab", "a+b"):
        with pytest.raises(StrangeFileError, match=r"has a second name \(a hard link\)"):
            open_regular(path, mode)
    assert path.read_bytes() == b"content"


def test_a_refusal_leaves_no_file_open(path):
    path.write_bytes(b"")
    os.link(path, path.with_name("other"))
    before = len(os.listdir("/dev/fd"))
    for _ in range(10):
        with pytest.raises(StrangeFileError):
            open_regular(path, "ab")
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_that_cannot_be_written_is_named(path, tmp_path):
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left") as caught, replacing(path) as file:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    with (
        pytest.raises(OSError, match=f"{path} cannot be written .something else"), replacing(path)
    ):
        raise OSError("something else")
    absent = tmp_path / "none" / "weights.npz"
    with pytest.raises(FileNotFoundError, match=f"'{absent}'"), replacing(absent):
        pass
    assert path.read_bytes() == b"before"
    assert [file.name for file in tmp_path.iterdir()] == ["name"]


def test_a_link_is_replaced_and_not_what_it_points_to(path):
    victim = path.with_name("victim")
    victim.write_bytes(b"important")
    for link in (path.symlink_to, path.hardlink_to):
        link(victim)
        with replacing(path) as file:
            file.write(b"ours")
        assert path.read_bytes() == b"ours"
        assert victim.read_bytes() == b"important"
        path.unlink()
