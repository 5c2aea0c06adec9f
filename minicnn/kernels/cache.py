"""Compiled kernels on disk: one file for each kernel, element type, processor and width of vectors.

A file is a SHA-256 and a pickle. Machine code with one flipped bit crashes the process, and a
pickle runs what its author wants, so a file is used only if its checksum is right and nobody but
root and the user who runs this can have written it. Otherwise the kernel is compiled again.

Folders are tried in this order: NUMBA_CACHE_DIR if it is set, `__pycache__` beside this file, and
the user's own cache. The first that can be written to takes what is compiled. Those before it are
read: a container's cache that root has made, for example.
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
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import numba
from numba.core import config, types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps
from numba.misc.appdirs import AppDirs

from minicnn.kernels.simd import VECTOR_BYTES
from minicnn.kernels.threads import get_num_threads

logger = logging.getLogger("minicnn")

_PACKAGE = Path(__file__).parent
_SEAL_BYTES = 32
_NOBODY = 65534  # who root is for a container without rights; for folders above alone


class DiskCache(NullCache):
    """What Numba's dispatcher asks for machine code before it compiles a function.

    Parameters
    ----------
    function : function
    stamp : str
        A digest of all sources that the machine code depends on.
    """

    def __init__(self, function: Any, stamp: str) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"
        self._stamp = stamp

    @property
    def cache_path(self) -> str:
        return str(folders().written)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the compiled function of a signature, or None where there is no sound one."""
        target_context.refresh()
        name = self._file(sig, target_context.codegen())
        for folder in folders().read:
            with contextlib.suppress(Exception):  # no such file, or whatever a damaged one causes
                seal, body = _read(folder / name)
                if seal == self._seal(name, body):
                    return CompileResult._rebuild(target_context, *pickle.loads(body))
        _say_once_that_kernels_are_compiled()
        if _can_be_helped(sig):
            _start_help_once()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keep a compiled function; say so once where that cannot be done."""
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
        """Return the checksum of a file: it differs where the sources or Numba have changed."""
        head = repr((name, self._stamp, numba.__version__)).encode()
        return hashlib.sha256(head + body).digest()


class _Folders(NamedTuple):
    """Where compiled kernels are looked for and kept."""

    read: list[Path]
    written: Path | None
    reason: str  # why there is no folder to write to


@functools.cache
def folders() -> _Folders:
    """Return the folders that are safe to use; what is missing of them is made."""
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
    """Return the folders to try, each with the mode that it gets where it is made."""
    name = f"{_PACKAGE.name}_{hashlib.sha256(str(_PACKAGE).encode()).hexdigest()[:16]}"
    set_by_user = [Path(config.CACHE_DIR).absolute() / name] if config.CACHE_DIR else []
    own = Path(AppDirs("numba", appauthor=False).user_cache_dir) / name
    private = [*set_by_user, *([own] if own.is_absolute() else [])]  # "~" stays without a home
    candidates = [(folder, 0o700) for folder in private]
    candidates.insert(len(set_by_user), (_PACKAGE / "__pycache__", 0o755))
    return candidates


def _make(folder: Path, mode: int) -> None:
    """Make a folder, and those above it, where they are missing."""
    if not folder.is_dir():
        _make(folder.parent, mode)
        folder.mkdir(mode, exist_ok=True)


def _is_safe_folder(folder: Path) -> bool:
    """Return whether no other user can put a file into a folder, or another folder in its place."""
    status, *above = (path.stat() for path in (folder.resolve(), *folder.resolve().parents))
    return is_safe(status) and all(is_safe(s, (0, _NOBODY)) or _is_sticky(s) for s in above)


def is_safe(status: os.stat_result, owners: tuple[int, ...] = (0,)) -> bool:
    """Return whether a file or folder is this user's or an owner's, and nobody else may write.

    The user's own group may: where each user has one, files are commonly made like that.
    """
    if not hasattr(os, "geteuid"):  # Windows keeps the rights elsewhere
        return True
    by_others = status.st_mode & stat.S_IWOTH
    by_group = status.st_mode & stat.S_IWGRP and status.st_gid != os.getegid()
    return status.st_uid in (*owners, os.geteuid()) and not by_others and not by_group


def _is_sticky(status: os.stat_result) -> bool:
    """Return whether a folder is one as /tmp is, in which nobody can rename what is another's."""
    return status.st_uid == 0 and bool(status.st_mode & stat.S_ISVTX)


def _read(path: Path) -> tuple[bytes, bytes]:
    """Return the checksum and the body of a file that is safe to use."""
    with open(path, "rb", opener=_open_no_link) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not is_safe(status):
            raise PermissionError(f"{path} may be another user's")
        return file.read(_SEAL_BYTES), file.read()


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _write(path: Path, content: bytes) -> None:
    """Write a file that appears under its name only when it is complete."""
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
    """Return whether `ahead` may compile what this process needs, on a CPU that it may use."""
    is_float32 = any(getattr(kind, "dtype", None) == types.float32 for kind in sig)
    is_python = Path(sys.executable or "").name.startswith("python")  # not embedded in a program
    return is_float32 and is_python and get_num_threads() > 1 and folders().written is not None


@functools.cache
def _start_help_once() -> None:
    """Start the program `ahead`. It does not run the user's script, and nobody waits for it."""
    environment = {
        **os.environ, "MINICNN_NUM_THREADS": "1",  # so that it starts no child itself
        "NUMBA_CACHE_DIR": str(Path(config.CACHE_DIR).absolute()) if config.CACHE_DIR else "",
    }
    with contextlib.suppress(OSError, RuntimeError):  # no process or no thread can be started
        child = subprocess.Popen(
            [sys.executable, "-m", "minicnn.kernels.ahead", str(os.getpid())], env=environment,
            cwd=_PACKAGE.parents[1],  # where Python finds this package
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        threading.Thread(target=child.wait, daemon=True).start()  # no zombie is left


@functools.cache
def _say_once_that_kernels_are_compiled() -> None:
    logger.info("Compiling the kernels; a machine's first run takes some ten seconds for it.")


@functools.cache
def _say_once_that_nothing_is_kept(reason: str) -> None:
    logger.warning(
        "Compiled kernels are not kept (%s), so every run compiles them (some seconds). Set "
        "NUMBA_CACHE_DIR to a folder that only you can write to.", reason
    )
