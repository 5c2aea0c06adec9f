"""Checkpoints: one .npz file a step, and an index. A kill at any moment leaves the last one good.

A file is written under a temporary name, flushed to the disk and then renamed, which is atomic. It
holds plain arrays, a line of JSON and its own checksum: a copy of the file alone is enough.
"""

import contextlib
import errno
import functools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn.weights import read_npz, replacing, write_npz

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("minicnn")

_INDEX = "checkpoint.json"
_LOCK = ".lock"  # there while a fit is under way; holds the number of its process
_PATTERN = re.compile(r"model\.ckpt-(\d+)\.npz")
_META = "meta.json"


class CheckpointError(Exception):
    """A checkpoint, or a folder of them, that cannot be used.

    Examples
    --------
    >>> import minicnn as mc
    >>> issubclass(mc.CheckpointError, Exception)
    True
    """


class _UnreadableError(CheckpointError):
    """What the system refuses to read now."""

    def __init__(self, path: Path, reason: BaseException) -> None:
        super().__init__(
            f"{path} cannot be read ({reason or type(reason).__name__}); it may be good: allow "
            "reading it, or give the process more memory or open files, and run the same again"
        )


class Checkpoint(NamedTuple):
    """What a file holds: arrays by name, and plain values."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Make a folder, keep other fits out of it, and clear away what a killed one left half written.

    The lock ends with its process, however that ends.

    Yields
    ------
    callable
        Whether the lock is still there, and this process's: the folder may be moved or cleared, and
        another fit begin there.

    Raises
    ------
    CheckpointError
        If somebody else trains there, or the folder cannot be written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a+b", buffering=0)
    with lock:
        if not _take(lock, folder):
            yield lambda: True
        elif os.fstat(lock.fileno()).st_nlink == 0:  # who held it has just ended and removed it
            with locked(folder) as is_held:
                yield is_held
        else:
            ours, process = os.fstat(lock.fileno()), os.getpid()

            def is_held() -> bool:
                is_there = os.getpid() == process and _LOCK in os.listdir(folder)
                return is_there and os.path.samestat(os.stat(folder / _LOCK), ours)

            try:
                with _writing(folder):
                    old = *folder.glob(".model.ckpt-*.npz.*.tmp"), *folder.glob(f".{_INDEX}.*.tmp")
                for path in old:
                    with contextlib.suppress(OSError):
                        path.unlink()
                yield is_held
            finally:  # not only unlocked: a forked child may hold the lock, and live longer
                with contextlib.suppress(OSError):
                    if is_held():
                        (folder / _LOCK).unlink()


def save(
    folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], keep: int,
    is_held: Callable[[], bool] = lambda: True,
) -> Path:
    """Write the checkpoint of `step`, note it in the index, delete all but the newest `keep`.

    Those of later steps do not count: they are damaged, or the user has gone back. `is_held` is
    what `locked` yields.

    Raises
    ------
    CheckpointError
        If it cannot be written. The checkpoints before it are as they were.
    """
    path = folder / f"model.ckpt-{step}.npz"
    with _writing(folder):
        if not is_held():
            raise CheckpointError(
                f"{folder} is not the folder any more that this fit began in (or this is a fork of "
                f"its process). Step {step} is not saved; leave the folder as it is, and fit again"
            )
        write_npz(path, {_META: np.array(json.dumps(meta)), **arrays})
        paths = [other for other in _files(folder) if _step(other.name) <= step]
        with replacing(folder / _INDEX) as file:
            index = {"latest": path.name, "all": [kept.name for kept in paths[-keep:]]}
            file.write(json.dumps(index, indent=2).encode())
        for old in paths[:-keep]:
            old.unlink(missing_ok=True)
    return path


def latest_step(folder: Path) -> int:
    """Return the step of the checkpoint that counts; 0 where there is none."""
    return max((_step(path.name) for path in _candidates(folder)[:1]), default=0)


def newest(folder: Path) -> Checkpoint | None:
    """Read the checkpoint that counts; where it is damaged, the next older one that is good.

    Raises
    ------
    CheckpointError
        If there are checkpoints, and all are damaged; or the system refuses to read.
    """
    damaged: list[Path] = []
    while paths := [path for path in _candidates(folder) if path not in damaged]:
        try:
            return load(paths[0])
        except FileNotFoundError:
            continue  # a fit has just deleted it, and written a newer one
        except _UnreadableError:
            raise  # an older one is not in its place: this one may be good
        except CheckpointError as error:
            logger.warning("%s; looking for an older one", error)
            damaged.append(paths[0])
    if damaged:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole; put a good copy of one there (the file alone is "
            "enough), or delete them to begin anew"
        )
    return None


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is no whole checkpoint.
    """
    try:
        arrays = read_npz(path, sealed=True)
        meta = json.loads(str(arrays.pop(_META)))
        place, step = meta["place"], meta["global_step"]
        is_good = isinstance(meta["learning_rate"], float | int)
        for number in (step, meta["seed"], *place.values()):
            is_good &= type(number) is int and number >= 0
        # An epoch, and a batch, take a step or more.
        if not is_good or max(place.get("epoch", 0), place.get("batches", 0)) > step:
            raise ValueError(f"{_META} holds other values than a checkpoint's")
        return Checkpoint(path, arrays, meta)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever hostile bytes make of the readers
        reason = error.__cause__ or error
        # EINVAL is a place outside the file, as damage makes it.
        if isinstance(reason, OSError | MemoryError) and reason.args[:1] != (errno.EINVAL,):
            raise _UnreadableError(path, reason) from error
        raise CheckpointError(f"{path} is no whole checkpoint ({reason})") from error


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest last."""
    try:
        with os.scandir(folder) as entries:  # says at once what is a file, if it is deleted then
            names = [e.name for e in entries if _PATTERN.fullmatch(e.name) and e.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _UnreadableError(folder, error) from error
    return [folder / name for name in sorted(names, key=_step)]


def _candidates(folder: Path) -> list[Path]:
    """Return them in the order of preference: back from the index's, then the later ones."""
    try:
        last: float = _step(json.loads((folder / _INDEX).read_text())["latest"])
    except Exception:  # an index that does not help is no obstacle
        last = math.inf
    steps = {path: _step(path.name) for path in _files(folder)}
    return sorted(steps, key=lambda path: (steps[path] <= last, steps[path]), reverse=True)


def _step(name: str) -> int:
    return int(_PATTERN.fullmatch(name)[1])  # type: ignore[index]


def _take(lock: Any, folder: Path) -> bool:
    """Take the lock of a folder; return False where there are no locks."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        number = lock.read(20).decode(errors="replace")  # nothing, where it is not yet written
        raise CheckpointError(
            f"another fit is under way in {folder}{number and f', in process {number}'}; wait "
            "until it ends, or use another model_dir (evaluate and predict work meanwhile)"
        ) from None
    except OSError as error:  # a network file system, say
        _warn_once(f"{folder} has no locks ({error}): see to it that only one process trains there")
        return False
    with _writing(folder):
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
    return True


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Say what to do where a folder cannot be written."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error}). Earlier checkpoints are as they were: free "
            "space or allow writing there, and run the same again to go on from the last one"
        ) from error
