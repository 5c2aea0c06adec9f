"""Files on disk: opened only if they are regular files, and replaced in one step.

minicnn chooses names inside folders that a stranger may have prepared (`.lock`, `checkpoint.json`).
Such a name may be a link to another file, or a pipe that nobody writes into.
"""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its other end
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
}


class StrangeFileError(OSError):
    """What lies at a path is not a regular file, or has a second name."""


def open_regular(
    path: Path, mode: str = "rb", follow: bool = False, buffering: int = -1
) -> IO[bytes]:
    """Open a regular file; raise, and do not wait, where something else lies there.

    Parameters
    ----------
    path : Path
    mode : str
        As for `open`, binary.
    follow : bool
        Whether a symbolic link is followed, as for a path that the user typed.
    buffering : int
        As for `open`.

    Raises
    ------
    StrangeFileError
        If there is no regular file at the path; or, to write into it, one with a second name (a
        hard link), since that may be a file of somebody else.
    OSError
        If the system refuses.
    """
    flags = _NO_WAIT if follow else _NO_WAIT | _NO_LINK

    def opener(name: str, given: int) -> int:
        return os.open(name, given | flags, 0o666)

    try:
        file: IO[bytes] = open(path, mode, buffering, opener=opener)  # noqa: SIM115
    except FileNotFoundError:
        raise
    except OSError:
        _check(path, os.stat(path, follow_symlinks=follow), mode, follow)  # says more
        raise
    try:
        _check(path, os.fstat(file.fileno()), mode, follow)
    except BaseException:
        file.close()
        raise
    return file


def _check(path: Path, state: os.stat_result, mode: str, is_users: bool) -> None:
    """Raise where a path is not what `open_regular` opens."""
    kind = stat.S_IFMT(state.st_mode)
    if kind != stat.S_IFREG:
        remedy = "remove it, or put a regular file in its place"
        if is_users:  # a folder that is given by mistake must stay
            remedy = "give the path of a regular file"
        raise StrangeFileError(
            f"{path} is {_KINDS.get(kind, 'a device or a socket')}, not a regular file; {remedy}"
        )
    if mode != "rb" and state.st_nlink > 1:
        raise StrangeFileError(
            f"{path} has a second name (a hard link), and writing would change the file under that "
            "name, too; remove it, or put a copy in its place"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` once it is complete and on the disk.

    Raises
    ------
    OSError
        If it cannot be written; the error names `path`, which is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with _naming(path):
        try:
            with temporary.open("x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Name the file that the user knows in errors of the system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path} cannot be written ({error})") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def _sync_folder(path: Path) -> None:
    """Bring a change of names in a folder to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows opens no folder
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(folder)
