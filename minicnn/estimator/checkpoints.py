"""Checkpoints: one .npz file a step and an index, written so that a kill leaves the last one good.

A file is written under a temporary name, flushed to the disk and then renamed, which is atomic. It
holds plain arrays and a line of JSON, never a pickle.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn.weights import read_npz, replacing

_INDEX = "checkpoint.json"
_PATTERN = re.compile(r"model\.ckpt-(\d+)\.npz")
_META = "meta.json"


class CheckpointError(Exception):
    """A checkpoint that cannot be used.

    Examples
    --------
    >>> import minicnn as mc
    >>> issubclass(mc.CheckpointError, Exception)
    True
    """


class Checkpoint(NamedTuple):
    """What a file holds: arrays by name, and plain values."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict[str, Any]


def save(
    folder: Path, step: int, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any], keep: int
) -> Path:
    """Write the checkpoint of `step`, note it in the index, delete all but the newest `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model.ckpt-{step}.npz"
    text = np.array(json.dumps({**meta, "arrays": sorted(arrays)}))
    with replacing(path) as file:
        np.savez(file, **{_META: text, **arrays})  # type: ignore[arg-type]
    paths = _files(folder)
    kept = paths[-keep:]
    with replacing(folder / _INDEX) as file:
        index = {"latest": kept[-1].name, "all": [item.name for item in kept]}
        file.write(json.dumps(index, indent=2).encode())
    for old in paths[:-keep]:
        old.unlink(missing_ok=True)
    return path


def latest(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder: that of the index, else the highest number."""
    try:
        name = json.loads((folder / _INDEX).read_text())["latest"]
    except (OSError, ValueError, KeyError, TypeError):
        name = ""
    if isinstance(name, str) and _PATTERN.fullmatch(name) and (folder / name).is_file():
        return folder / name
    return next(iter(reversed(_files(folder))), None)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises
    ------
    CheckpointError
        If the file is no whole checkpoint.
    """
    try:
        arrays = read_npz(path)
        meta = json.loads(str(arrays.pop(_META)))
        if lost := set(meta.pop("arrays")) ^ set(arrays):
            raise ValueError(f"it should hold {min(lost)} just where it does not")
        return Checkpoint(path, arrays, meta)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is no whole checkpoint ({error}); delete it to go on from an older one"
        ) from error


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest last."""
    found = ((_PATTERN.fullmatch(path.name), path) for path in folder.glob("model.ckpt-*.npz"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]
