"""Disk cache of compiled kernels: one file per kernel, element type, processor and vector width.

A file consists of a SHA-256 checksum and a pickle. Damaged machine code can crash the process, and
unpickling can run arbitrary code. A file is therefore used only if its checksum is correct and only
root or the current user can have written it. Otherwise the kernel is compiled again.

Folders are tried in this order: NUMBA_CACHE_DIR if it is set, `__pycache__` next to this file, and
the user's cache folder. Compiled kernels are written to the first writable folder. The folders
before it are only read, for example a cache that root has filled in a container image.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pickle
import stat
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba.core import config, types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from minicnn.kernels.simd import VECTOR_BYTES
from minicnn.kernels.threads import get_num_threads

logger = logging.getLogger("minicnn")

_PACKAGE = Path(__file__).parent
_SEAL_BYTES = 32
_NOBODY = 65534  # root, as seen in a user namespace; accepted for parent folders only

compiling: list[str] = []  # the kernel that is being compiled now, if any
compiled: list[str] = []  # the kernels that this process has compiled, not found on disk


class DiskCache(NullCache):
    """The cache that Numba's dispatcher queries before it compiles a function.

    Parameters
    ----------
    function : function
    stamp : str
        A digest of all source files that the machine code depends on.
    """

    def __init__(self, function: Any, stamp: str) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._stamp = stamp
        self._start = time.perf_counter()  # of the last compilation

    @property
    def cache_path(self) -> str:
        return str(folders().written)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function for a signature, or None if no valid file exists."""
        rtsys.initialize(target_context)  # a compilation loads the rest of Numba, loading does not
        name = self._file(sig, target_context.codegen())
        for folder in folders().read:
            with contextlib.suppress(Exception):  # no file, or any error from a damaged one
                seal, body = _read(folder / name)
                if seal == self._seal(name, body):
                    return CompileResult._rebuild(target_context, *pickle.loads(body))
        compiling[:] = [self._name]
        _say_once_that_kernels_are_compiled()
        self._start = time.perf_counter()
        if _can_be_helped(sig):
            _start_help_once()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save a compiled function, or log one warning if it cannot be saved."""
        compiling.clear()
        compiled.append(self._name)
        name = self._name.removeprefix("minicnn.kernels.")
        seconds = time.perf_counter() - self._start
        logger.info("Compiled %s in %.1f s, once for this machine.", name, seconds)
        written, reason = folders().written, folders().reason
        if written is not None:
            try:
                name, body = self._file(sig, data.codegen), dumps(data._reduce())
                _write(written / name, self._seal(name, body) + body)
                return
            except Exception as error:  # a full disk, for example
                reason = f"{written}: {getattr(error, 'strerror', None) or error}"
        _say_once_that_nothing_is_kept(reason)

    def _file(self, sig: Any, codegen: Any) -> str:
        kind = repr((sig, codegen.magic_tuple(), VECTOR_BYTES)).encode()
        digest = hashlib.sha256(kind).hexdigest()[:16]
        return f"{self._name}-{sys.implementation.cache_tag}-{digest}.nbc"

    def _seal(self, name: str, body: bytes) -> bytes:
        """Return the checksum of a file. It depends on the kernel sources and Numba's version."""
        head = repr((name, self._stamp, numba.__version__)).encode()
        return hashlib.sha256(head + body).digest()


class _Folders(NamedTuple):
    """The folders that compiled kernels are read from and written to."""

    read: list[Path]
    written: Path | None
    reason: str  # why no folder is writable


@functools.cache
def folders() -> _Folders:
    """Return the folders that are safe to use, and create those that are missing."""
    read: list[Path] = []
    reasons = []
    candidates = _candidates()
    for folder, mode in candidates:
        try:
            _make(folder, mode)
            is_safe = _is_safe_folder(folder)
        except OSError as error:
            reasons.append(f"{folder}: {error.strerror}")
            continue
        if not is_safe:
            reasons.append(f"{folder} belongs to another user, or others can write to it")
            continue
        read.append(folder)
        if os.access(folder, os.W_OK | os.X_OK):
            if config.CACHE_DIR and candidates[0][0] not in read:
                logger.warning("NUMBA_CACHE_DIR is not used: %s.", reasons[0])
            return _Folders(read, folder, "")
        reasons.append(f"{folder} is read-only")
    return _Folders(read, None, "; ".join(reasons))


def _candidates() -> list[tuple[Path, int]]:
    """Return the folders to try, each with the mode to create it with."""
    name = f"{_PACKAGE.name}_{hashlib.sha256(str(_PACKAGE).encode()).hexdigest()[:16]}"
    set_by_user = [Path(config.CACHE_DIR).absolute() / name] if config.CACHE_DIR else []
    own = Path(AppDirs("numba", appauthor=False).user_cache_dir) / name
    private = [*set_by_user, *([own] if own.is_absolute() else [])]  # not so if "~" stays
    candidates = [(folder, 0o700) for folder in private]
    candidates.insert(len(set_by_user), (_PACKAGE / "__pycache__", 0o755))
    return candidates


def _make(folder: Path, mode: int) -> None:
    """Create a folder and its parents if they are missing."""
    if not folder.is_dir():
        _make(folder.parent, mode)
        folder.mkdir(mode, exist_ok=True)


def _is_safe_folder(folder: Path) -> bool:
    """Return whether no other user can write to a folder or replace it."""
    status, *above = (path.stat() for path in (folder.resolve(), *folder.resolve().parents))
    return is_safe(status) and all(is_safe(s, (0, _NOBODY)) or _is_sticky(s) for s in above)


def is_safe(status: os.stat_result, owners: tuple[int, ...] = (0,)) -> bool:
    """Return whether a file belongs to the user or to `owners`, and no one else can write to it.

    The user's primary group may have write access: on systems with one group per user, files are
    commonly created that way.
    """
    if not hasattr(os, "geteuid"):  # Windows does not use these permission bits
        return True
    by_others = status.st_mode & stat.S_IWOTH
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid()
    return status.st_uid in (*owners, os.geteuid()) and not by_others and not by_group


def _is_sticky(status: os.stat_result) -> bool:
    """Return whether a folder is sticky, like /tmp: users cannot rename each other's files."""
    return status.st_uid == 0 and bool(status.st_mode & stat.S_ISVTX)


def _read(path: Path) -> tuple[bytes, bytes]:
    """Return the checksum and the body of a file that is safe to use."""
    with open(path, "rb", opener=_open_no_link) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not is_safe(status):
            raise PermissionError(f"{path} may belong to another user")
        return file.read(_SEAL_BYTES), file.read()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically: it gets its name only when it is complete."""
    temporary = path.with_name(f"{path.name}.tmp.{uuid.uuid4().hex[:16]}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _can_be_helped(sig: Any) -> bool:
    """Return whether a child process may compile further kernels on another CPU."""
    is_float32 = any(getattr(kind, "dtype", None) == types.float32 for kind in sig)
    is_python = Path(sys.executable or "").name.startswith("python")  # else embedded
    return is_float32 and is_python and get_num_threads() > 1 and folders().written is not None


@functools.cache
def _start_help_once() -> None:
    """Start `ahead` as a child process. It does not import the user's script."""
    environment = {
        **os.environ, "MINICNN_NUM_THREADS": "1",  # so that the child starts no child of its own
        "NUMBA_CACHE_DIR": str(Path(config.CACHE_DIR).absolute()) if config.CACHE_DIR else "",
    }
    with contextlib.suppress(OSError, RuntimeError):  # a process or thread cannot be started
        child = subprocess.Popen(
            [sys.executable, "-m", "minicnn.kernels.ahead", str(os.getpid())], env=environment,
            cwd=_PACKAGE.parents[1],  # the folder that contains this package
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=child.wait, daemon=True).start()  # avoids a zombie process


@functools.cache
def _say_once_that_kernels_are_compiled() -> None:
    logger.info("Compiling the kernels; the first run on a machine takes about ten seconds.")


@functools.cache
def _say_once_that_nothing_is_kept(reason: str) -> None:
    logger.warning(
        "Compiled kernels are not saved (%s), so every run compiles them (some seconds). Set "
        "NUMBA_CACHE_DIR to a folder that only you can write to.", reason
    )
