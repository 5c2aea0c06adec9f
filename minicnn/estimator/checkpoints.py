"""Checkpoints: one .npz file for each step that is saved, and an index.

A kill at any moment leaves the last checkpoint valid.

A file is written under a temporary name, flushed to the disk and then renamed, which is atomic. It
holds plain arrays, a line of JSON and its own checksum, so a copy of the file alone is enough.
"""

import contextlib
import errno
import functools
import json
import math
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn.core import checks
from minicnn.core.files import StrangeFileError, open_regular, replacing
from minicnn.core.log import logger
from minicnn.core.npz import read_npz, write_npz
from minicnn.core.weights import META, part

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

INDEX = "checkpoint.json"  # names the current checkpoint of a folder
_LOCK = ".lock"  # exists while fit runs; holds the number of its process
_PATTERN = re.compile(r"model\.ckpt-([0-9]+)\.npz")
_MOST_INDEX = 1 << 16  # bytes of an index that are read
_MOST_LISTED = 1000  # names in an index, which fit into these bytes
_MOST_STEPS = 2**53 - 1  # a larger number is not exact as a float, or in JSON of other programs


class CheckpointError(Exception):
    """A checkpoint, or a folder of them, that cannot be used.

    Examples
    --------
    >>> import minicnn as mc
    >>> issubclass(mc.CheckpointError, Exception)
    True
    """


class _UnreadableError(CheckpointError):
    """A file or folder that the system refuses to read now."""

    def __init__(self, path: Path, reason: BaseException) -> None:
        super().__init__(
            f"{path} cannot be read ({reason or type(reason).__name__}); it may be good: allow "
            "reading it, or give the process more memory or open files, and run the same again"
        )


Identity = tuple[int, int, int]  # inode, size and time of change


class Checkpoint(NamedTuple):
    """The contents of a file: arrays by name, and plain values; and which file it was."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]
    identity: Identity | None = None

    def __deepcopy__(self, memo: Any) -> "Checkpoint":
        return self  # it never changes

    def part(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the arrays whose names begin with a prefix, under their names without it."""
        return part(self.arrays, prefix)


class RunFiles:
    """The files that a run writes: its checkpoints, and the best values its monitors have seen.

    The best values are checkpoints that are never deleted, and that `newest` ignores.

    Parameters
    ----------
    folder : Path
    keep : int
        How many checkpoints are kept.
    is_held : callable
        What `locked` yields.
    is_chief : bool
        Whether this process writes checkpoints; otherwise it notes only what another one writes.
    """

    def __init__(
        self, folder: Path, keep: int, is_held: Callable[[], bool], is_chief: bool
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._is_held = is_held
        self._is_chief = is_chief

    def save(self, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> Checkpoint:
        """Write a checkpoint; return it without its arrays."""
        step = meta["global_step"]
        if self._is_chief:
            logger.info("Saving checkpoints for %d into %s", step, self._folder)
            save(self._folder, step, arrays, meta, self._keep, self._is_held)
        return Checkpoint(self._folder / f"model.ckpt-{step}.npz", {}, meta)

    def best_path(self, name: str) -> Path:
        """Return the file with the best values of a monitor."""
        return self._folder / f"model.best-{name}.npz"

    def save_best(
        self, name: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> Path:
        """Write or replace the best values of a monitor; return the path of the file."""
        logger.info("Saving the best values, of step %d, for %r", meta["global_step"], name)
        path = self.best_path(name)
        _write(path, arrays, meta, self._is_held)
        return path

    def read_best(self, path: Path) -> Checkpoint | None:
        """Read a file with the best values; if that fails, warn and return None."""
        try:
            return load(path, follow=False)
        except (CheckpointError, FileNotFoundError) as error:
            logger.warning("%s; the values of the last step are kept", error)
            return None


class MemoryFiles(RunFiles):
    """What a run without a folder has in place of files: its best values, in memory."""

    def __init__(self) -> None:
        super().__init__(Path("memory"), 1, lambda: True, True)
        self._best: dict[Path, Checkpoint] = {}

    def save(self, arrays: Mapping[str, np.ndarray], meta: dict[str, Any]) -> Checkpoint:
        return Checkpoint(self._folder, {}, meta)

    def save_best(
        self, name: str, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]
    ) -> Path:
        path = self.best_path(name)
        copies = {name: array.copy() for name, array in arrays.items()}
        self._best[path] = Checkpoint(path, copies, dict(meta))
        return path

    def read_best(self, path: Path) -> Checkpoint | None:
        return self._best.get(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Make a folder, lock it against other fits, and remove half-written files of a killed one.

    The system releases the lock when the process ends, in whatever way.

    Yields
    ------
    callable
        Whether this process still holds the lock: the folder may be moved or cleared, and another
        fit may start there.

    Raises
    ------
    CheckpointError
        If somebody else trains there, or the folder cannot be written.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open_regular(folder / _LOCK, "a+b", buffering=0)
    _locks.add(lock)
    with lock:
        if not _take(lock, folder):
            yield lambda: True
        elif (state := os.fstat(lock.fileno())).st_nlink == 0:  # its last holder has removed it
            with locked(folder) as is_held:
                yield is_held
        else:
            process = os.getpid()

            def is_held() -> bool:
                is_there = os.getpid() == process and _LOCK in os.listdir(folder)
                return is_there and os.path.samestat(os.stat(folder / _LOCK), state)

            try:
                with _writing(folder):
                    names = ".model.*.npz.*.tmp", f".{INDEX}.*.tmp", ".history.jsonl.*.tmp"
                    old = [path for name in names for path in folder.glob(name)]
                for path in old:
                    with contextlib.suppress(OSError):
                        path.unlink()
                yield is_held
            finally:  # removed, not only unlocked: a child process may have inherited the file
                with contextlib.suppress(OSError):
                    if is_held():
                        (folder / _LOCK).unlink()


def save(
    folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], keep: int,
    is_held: Callable[[], bool] = lambda: True,
) -> Path:
    """Write the checkpoint of `step`, note it in the index, delete all but the newest `keep`.

    Checkpoints of later steps do not count: they are damaged, or the user has gone back. `is_held`
    is what `locked` yields.

    Raises
    ------
    CheckpointError
        If it cannot be written. Earlier checkpoints are unchanged.
    """
    path = folder / f"model.ckpt-{step}.npz"
    _write(path, arrays, meta, is_held)
    with _writing(folder):
        paths = [other for other in _files(folder) if _step(other.name) <= step]
        with replacing(folder / INDEX) as file:
            names = [kept.name for kept in paths[-min(keep, _MOST_LISTED) :]]
            file.write(json.dumps({"latest": path.name, "all": names}, indent=2).encode())
        for old in paths[:-keep]:
            old.unlink(missing_ok=True)
    return path


def _write(
    path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any],
    is_held: Callable[[], bool],
) -> None:
    """Write a checkpoint's file, unless the folder is not the one that the fit started in."""
    with _writing(path.parent):
        if not is_held():
            raise CheckpointError(
                f"{path.parent} is not the folder any more that this fit started in (or this is a "
                f"fork of its process). Step {meta['global_step']} is not saved; leave the folder "
                "as it is, and fit again"
            )
        write_npz(path, {META: np.array(json.dumps(meta)), **arrays})


def newest(
    folder: Path,
    known: Checkpoint | None = None,
    damaged: dict[Path, tuple[Identity | None, str]] | None = None,
) -> Checkpoint | None:
    """Read the current checkpoint: the one that the index names, or the next older valid one.

    One warning says which ones are damaged.

    Parameters
    ----------
    folder : Path
    known : Checkpoint, optional
        Returned as it is, and not read again, if it is the current one.
    damaged : dict, optional
        Files that earlier calls found damaged, by path: the identity, and the reason. Such a file
        is neither read nor named again until it changes. This call adds to it.

    Raises
    ------
    CheckpointError
        If there are checkpoints, and all are damaged; or the system refuses to read.
    """
    damaged = {} if damaged is None else damaged
    new: list[str] = []
    while True:
        paths = _candidates(folder)
        for path in damaged.keys() - set(paths):
            del damaged[path]
        try:
            found = _first_good(paths, known, damaged, new)
        except FileNotFoundError:
            continue  # a fit has just deleted it and written a newer one
        if paths and found is None:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {folder} can be used "
                f"({damaged[paths[0]][1]}); put a good copy of one there (the file alone is "
                "enough), or delete them to start again"
            )
        if found is not None and new:
            more = f" ({len(new)} checkpoints are damaged)" if len(new) > 1 else ""
            logger.warning("%s; using %s instead%s", new[0], found.path.name, more)
        return found


def _first_good(
    paths: Sequence[Path],
    known: Checkpoint | None,
    damaged: dict[Path, tuple[Identity | None, str]],
    new: list[str],
) -> Checkpoint | None:
    """Read the first valid file; add what is wrong with those before it to `new`."""
    for path in paths:
        now = identity(path, follow=False)
        if known is not None and now is not None and (known.path, known.identity) == (path, now):
            return known
        if path in damaged and damaged[path][0] == now:
            continue
        try:
            return load(path, follow=False)._replace(identity=now)
        except _UnreadableError:
            raise  # this file may be valid, so no older one is used instead
        except CheckpointError as error:
            damaged[path] = now, str(error)
            new.append(str(error))
    return None


def identity(path: Path, follow: bool = True) -> Identity | None:
    """Return what distinguishes a file from others and from its earlier states; None if missing."""
    try:
        state = os.stat(path, follow_symlinks=follow)
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def load(path: Path, follow: bool = True) -> Checkpoint:
    """Read a checkpoint. `follow` says whether the path may be a symbolic link.

    Raises
    ------
    CheckpointError
        If the file is damaged, or holds values that no run saves.
    """
    try:
        arrays = read_npz(path, sealed=True, follow=follow)
        meta = json.loads(str(arrays.pop(META)))
        _check_meta(path.name, meta)
        checks.integer(int(arrays.get("optimizer/iterations", 0)), "iterations", 0, _MOST_STEPS)
        if said := checks.fault(arrays):
            raise ValueError(said)
        return Checkpoint(path, arrays, meta)
    except FileNotFoundError:
        raise
    except Exception as error:  # hostile bytes may raise anything in the readers
        reason = error.__cause__ or error
        # EINVAL is an offset outside the file, which comes from damage.
        is_damage = isinstance(reason, StrangeFileError) or reason.args[:1] == (errno.EINVAL,)
        if isinstance(reason, OSError | MemoryError) and not is_damage:
            raise _UnreadableError(path, reason) from error
        raise CheckpointError(f"{path} is not a valid checkpoint ({reason})") from error


def _check_meta(name: str, meta: dict[str, Any]) -> None:
    """Raise if a file called `name` has values that no run saves, even with a right checksum."""
    place, step = meta["place"], meta["global_step"]
    checks.number(meta["learning_rate"], "learning_rate", least=0)
    checks.integer(meta["seed"], "seed", 0)
    checks.integer(step, "global_step", 0, _MOST_STEPS)
    for key, number in place.items():
        checks.integer(number, key, 0, _MOST_STEPS)
    for key, state in meta.get("hooks", {}).items():  # older files have none
        checks.instance(state, dict, key)
    # Each epoch, and each batch, is at least one step.
    if max(place.get("epoch", 0), place.get("batches", 0)) > step:
        raise ValueError(f"more epochs or batches than the {step} steps")
    if _PATTERN.fullmatch(name) and step != _step(name):  # a user may choose another name
        raise ValueError(f"it is of step {step}, not of the step in its name")


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest last."""
    try:
        with os.scandir(folder) as entries:  # knows each entry's kind, even if it is deleted next
            found = [entry for entry in entries if _PATTERN.fullmatch(entry.name)]
            # A link is listed, so that an error names it: opening it fails.
            names = [entry.name for entry in found if entry.is_symlink() or entry.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _UnreadableError(folder, error) from error
    return [folder / name for name in sorted(names, key=_step)]


def _candidates(folder: Path) -> list[Path]:
    """Return the checkpoints by preference: from the index's back, then the later ones."""
    try:
        with open_regular(folder / INDEX) as file:
            last: float = _step(json.loads(file.read(_MOST_INDEX))["latest"])
    except Exception:  # a missing or damaged index is ignored
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
        number = lock.read(20)
        process = f", in process {int(number)}" if number.isdigit() else ""  # not yet written
        raise CheckpointError(
            f"another fit is under way in {folder}{process}; wait until it ends, or use another "
            "model_dir (evaluate and predict work meanwhile)"
        ) from None
    except OSError as error:  # for example a network file system
        _warn_once(f"{folder} has no locks ({error}): make sure that only one process trains there")
        return False
    with _writing(folder):
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
    return True


def _close_locks() -> None:
    """Close the files of locks in a forked child."""
    for lock in _locks:
        lock.close()


# The files of locks: in a forked child, an open one would hold the lock after a kill of the fit.
_locks: weakref.WeakSet[Any] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning(text)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Raise a CheckpointError with a remedy if the folder cannot be written."""
    try:
        yield
    except StrangeFileError as error:
        raise CheckpointError(str(error)) from error
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error}). Earlier checkpoints are unchanged: free space "
            "or allow writing there, and run the same again to continue from the last"
        ) from error
