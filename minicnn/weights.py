"""The weights of a model in one .npz file, and what other kinds of file share with it."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from minicnn.checks import describe
from minicnn.parameter import Parameter


def save_weights(model: Any, path: str | Path) -> None:
    """Write every parameter of a model under its name.

    Parameters
    ----------
    model : Layer
        Built; a Sequential, say.
    path : str or Path
        Ends in ``.npz``.

    Examples
    --------
    >>> import tempfile, pathlib, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(2)])
    >>> model.build((None, 3), rng=0)
    (None, 2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
    >>> mc.save_weights(model, path)
    >>> mc.load_weights(model, path)
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {str(path)!r}")
    values = {name: parameter.value for name, parameter in parameters_of(model).items()}
    with replacing(path) as file:
        np.savez(file, **values)  # type: ignore[arg-type]


def load_weights(model: Any, path: str | Path) -> None:
    """Read every parameter of a model from a file that `save_weights` wrote.

    Parameters
    ----------
    model : Layer
        Built, with the same names and shapes as the file.
    path : str or Path

    Raises
    ------
    ValueError
        If the file is no .npz of arrays, or a name or a shape differs; the error names it, and
        nothing has been changed then.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile, pathlib, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(2)])
    >>> model.build((None, 3), rng=0)
    (None, 2)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
    >>> mc.save_weights(model, path)
    >>> mc.load_weights(model, path)
    """
    fill(parameters_of(model), read_npz(path), path)


def fill(parameters: dict[str, Parameter], arrays: dict[str, np.ndarray], path: Any) -> None:
    """Write the arrays of a file into the parameters of a model; where one does not fit, none."""
    for name in sorted(parameters.keys() | arrays.keys()):
        ours = parameters[name].shape if name in parameters else "no such parameter"
        theirs = arrays[name].shape if name in arrays else "no such array"
        if ours != theirs:
            raise ValueError(
                f"{name}: the model has {ours}, {path} has {theirs}; build the model that the file "
                "was saved from"
            )
        if arrays[name].dtype.kind != "f":
            raise ValueError(
                f"{name}: float numbers expected, {path} has {arrays[name].dtype}; save the "
                "weights as float32 or float64"
            )
    for name, parameter in parameters.items():
        parameter.value[...] = arrays[name]


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file by name; ValueError where it is no .npz of plain arrays."""
    with Path(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except Exception as error:  # whatever damaged bytes make of the zip and array readers
            raise ValueError(f"{path} is no .npz file of plain arrays ({error})") from error


def parameters_of(model: Any) -> dict[str, Parameter]:
    """Return the parameters of a built model by name."""
    parameters = {parameter.name: parameter for parameter in getattr(model, "parameters", ())}
    if not parameters:
        raise ValueError(f"the model has no parameters, got {describe(model)}; call build first")
    return parameters


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that takes the place of `path` once it is whole and on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
