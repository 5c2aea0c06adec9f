"""Save and load weights as .npz files with a checksum."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe
from minicnn.core.npz import read_npz, write_npz
from minicnn.core.op import Op, named_parameters
from minicnn.core.parameter import Parameter

META = "meta.json"  # in every checkpoint, and in no file of weights
PARAMETERS = "parameters/"  # prefix of the weights' names in a checkpoint


def save_weights(model: Any, path: str | Path) -> None:
    """Write every parameter of a model under its name, and a checksum of the file.

    The write is atomic: on failure an existing file is unchanged.

    Parameters
    ----------
    model : Layer
        Built, such as a Sequential.
    path : str or Path
        Ends in ``.npz``.

    Raises
    ------
    OSError
        If the file cannot be written; the error names it.

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
    path = checks.path(path, "path")
    if path.suffix != ".npz":
        raise ValueError(f"`path` must end in .npz, got {str(path)!r}")
    values = {name: parameter.value for name, parameter in parameters_of(model).items()}
    write_npz(path, values)


def load_weights(model: Any, path: str | Path) -> None:
    """Read every parameter of a model from a file of weights, or from an Estimator's checkpoint.

    Parameters
    ----------
    model : Layer
        Built, with the same names and shapes as the file.
    path : str or Path
        A file of `save_weights` or `np.savez`, or ``model.ckpt-N.npz`` in an Estimator's
        `model_dir`; the optimizer's state in a checkpoint is ignored.

    Raises
    ------
    ValueError
        If the file is damaged or is not an .npz file of plain arrays, or if a name or a shape
        differs. The error names it, and the model is unchanged.
    FileNotFoundError, IsADirectoryError
        If the path does not exist or is a folder.

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
    parameters = parameters_of(model)
    path = checks.path(path, "path")
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a folder; give the path of a file of weights, or of a checkpoint "
            "(model.ckpt-N.npz) in it"
        )
    arrays = read_npz(path, lambda members: _check(parameters, _weights_in(members), path))
    fill(parameters, _weights_in(arrays), path)


def _weights_in(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights among the arrays of a file of weights or of a checkpoint."""
    return part(arrays, PARAMETERS if META in arrays else "")


def part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays whose names begin with a prefix, under their names without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def fill(parameters: dict[str, Parameter], arrays: dict[str, np.ndarray], path: Any) -> None:
    """Write the arrays of a file into the parameters; if one does not fit, write none."""
    _check(parameters, arrays, path)
    values = {name: parameter.writable("value") for name, parameter in parameters.items()}
    for name, value in values.items():
        value[...] = arrays[name]


def _check(parameters: dict[str, Parameter], arrays: Mapping[str, Any], path: Any) -> None:
    """Raise unless the arrays of a file have the names and shapes of the parameters."""
    for name in sorted(parameters.keys() | arrays.keys()):
        wanted = parameters[name].shape if name in parameters else "no such parameter"
        found = arrays[name].shape if name in arrays else "no such array"
        if wanted != found:
            raise ValueError(
                f"{name}: the model has {wanted}, {path} has {found}; build the model that the "
                "file was saved from"
            )
        if arrays[name].dtype.kind != "f":
            raise ValueError(
                f"{name}: expected float numbers, {path} has {arrays[name].dtype}; save the "
                "weights as float32 or float64"
            )


def parameters_of(model: Any) -> dict[str, Parameter]:
    """Return the parameters of a built model by name."""
    parameters = named_parameters(model) if isinstance(model, Op) else {}
    if not parameters:
        is_layer = hasattr(model, "build")
        remedy = "call build first" if is_layer else "give a layer, such as a Sequential"
        raise ValueError(f"the model has no parameters, got {describe(model)}; {remedy}")
    return parameters
