"""Files on disk: opened only if they are regular files, and replaced in one step.

minicnn opens files with fixed names (`.lock`, `checkpoint.json`) in folders that others may have
prepared: such a file may be a link to another one, or a pipe that nobody writes into.
"""

import contextlib
import errno
import functools
import json
import math
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from minicnn.core.log import logger

_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # Windows has neither
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # opening a pipe would wait for its other end
_MOST_BYTES = 1 << 26  # of lines of JSON that are read
_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
}


class StrangeFileError(OSError):
    """The path is not that of a regular file, or the file has a second name."""


def open_regular(
    path: Path, mode: str = "rb", follow: bool = False, buffering: int = -1
) -> IO[bytes]:
    """Open a regular file; raise at once if the path is that of a pipe, a device or a folder.

    Parameters
    ----------
    path : Path
    mode : str
        A binary mode of `open`.
    follow : bool
        Whether to follow a symbolic link, as for a path that the user has given.
    buffering : int
        As for `open`.

    Raises
    ------
    StrangeFileError
        If the path is not that of a regular file, or if a file to write into has a second name (a
        hard link), which may belong to somebody else.
    OSError
        If the system cannot open it.
    """
    flags = _NO_WAIT if follow else _NO_WAIT | _NO_LINK

    def opener(name: str, given: int) -> int:
        return os.open(name, given | flags, 0o666)

    try:
        file: IO[bytes] = open(path, mode, buffering, opener=opener)  # noqa: SIM115
    except FileNotFoundError as error:
        remedy = "check the path, and if it is relative, the working directory"
        error.strerror = f"{error.strerror}; {remedy}"
        raise
    except OSError:
        _check(path, os.stat(path, follow_symlinks=follow), mode, follow)  # a better error
        raise
    try:
        _check(path, os.fstat(file.fileno()), mode, follow)
    except BaseException:
        file.close()
        raise
    return file


def _check(path: Path, state: os.stat_result, mode: str, is_users: bool) -> None:
    """Raise unless the file may be opened by `open_regular`."""
    kind = stat.S_IFMT(state.st_mode)
    if kind != stat.S_IFREG:
        remedy = "remove it, or put a regular file in its place"
        if is_users:  # do not tell the user to remove his folder
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
    """Open a temporary file that replaces `path` once it is complete and on the disk.

    Raises
    ------
    OSError
        If it cannot be written. The error names `path`, which is unchanged.
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
    """Replace the name of the temporary file in an OSError by `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path} cannot be written ({error})") from error
        remedy = "; make its folder first" if error.errno == errno.ENOENT else ""
        raise OSError(error.errno, f"{error.strerror}{remedy}", str(path)) from error


def _sync_folder(path: Path) -> None:
    """Write a folder's changed entries to the disk."""
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot open folders
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # not supported by some file systems
            raise
    finally:
        os.close(folder)


class JsonLines:
    """A file with an object of JSON on each line.

    Parameters
    ----------
    path : Path, optional
        None writes and reads nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._fails = False

    def add(self, values: Mapping[str, Any]) -> None:
        """Add a line; if that fails, warn, but only once until it works again."""
        self._write([values], functools.partial(open_regular, mode="a+b"))

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all lines; if that fails, warn as `add` does."""
        self._write(rows, replacing)

    def read(self) -> list[Any]:
        """Return the values of the lines, except for those that are damaged or half-written."""
        values: list[Any] = []
        if self.path is not None:
            with contextlib.suppress(OSError), open_regular(self.path) as file:
                for line in file.read(_MOST_BYTES).splitlines():
                    with contextlib.suppress(ValueError, RecursionError):
                        values.append(json.loads(line))
        return values

    def _write(self, rows: Iterable[Mapping[str, Any]], opened: Callable[[Path], Any]) -> None:
        if self.path is None:
            return
        lines = [json.dumps(finite(row)).encode() + b"\n" for row in rows]
        try:
            with opened(self.path) as file:
                file.seek(max(0, file.tell() - 1))
                is_half = file.read(1) not in (b"", b"\n")  # a full disk has cut off the last line
                file.write(b"\n" * is_half + b"".join(lines))
            self._fails = False
        except OSError as error:
            if not self._fails:
                logger.warning("%s cannot be written (%s)", self.path, error)
            self._fails = True


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return values that JSON can hold: None for NaN and infinity."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }
