"""Weights in files: saved as .npz with a checksum, and read into parameters that are selected."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.log import logger
from minicnn.core.npz import read_npz, write_npz
from minicnn.core.op import Op, named_parameters
from minicnn.core.parameter import Parameter

SKIP_THEM = "skip={0}, or with strict=False"  # the remedy of `fitting`

Select = Callable[[Sequence[str]], list[str]]

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
    write_npz(path, {name: each.value for name, each in parameters_of(model).items()})


def load_into(
    parameters: Mapping[str, Parameter], path: Path, select: Select, remedy: str,
    strict: bool = True,
) -> None:
    """Read weights from a file or a checkpoint; for the arguments see `fitting`."""
    names: dict[str, str] = {}

    def choose(members: Mapping[str, Any]) -> Iterable[str]:
        prefix = PARAMETERS if META in members else ""
        arrays = part(members, prefix)
        chosen = fitting(parameters, arrays, path, select, remedy, strict)
        names.update({prefix + name: name for name in chosen})
        return names

    arrays = read_npz(path, choose)
    fill(parameters, {names[key]: array for key, array in arrays.items()})


def fill(parameters: Mapping[str, Parameter], arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays into the parameters of the same names; if one is read-only, write none."""
    values = {name: parameters[name].writable("value") for name in arrays}
    for name, value in values.items():
        value[...] = arrays[name]


def part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the arrays whose names begin with a prefix, under their names without it."""
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def by_patterns(only: Any, skip: Any) -> Select:
    """Return what selects names by patterns as for file names.

    A pattern stands for a complete name, or for all names below it: ``"conv2d"`` for
    ``conv2d/kernel`` and ``conv2d/bias``.
    """
    only = ["*"] if only is None else names_in(only, "only")
    skip = [] if skip is None else names_in(skip, "skip")

    def select(names: Sequence[str]) -> list[str]:
        below = {
            pattern: [name for name in names if fnmatchcase(f"{name}/", f"{pattern}/*")]
            for pattern in (*only, *skip)
        }
        if unknown := [pattern for pattern, found in below.items() if not found]:
            raise ValueError(
                f"`only` and `skip` must match names of parameters, got {', '.join(unknown)}; "
                f"there are {', '.join(names)}"
            )
        skipped = {name for pattern in skip for name in below[pattern]}
        return sorted({name for pattern in only for name in below[pattern]} - skipped)

    return select


def names_in(value: Any, name: str) -> list[str]:
    """Return a list of names or patterns from one or several."""
    value = [value] if isinstance(value, str) else value
    return [checks.text(item, name) for item in checks.sequence(value, name, "names")]


def fitting(
    parameters: Mapping[str, Parameter], arrays: Mapping[str, Any], path: Any, select: Select,
    remedy: str, strict: bool = True,
) -> list[str]:
    """Return the names that are selected and whose arrays fit to the parameters.

    Parameters
    ----------
    parameters : dict from str to Parameter
    arrays : dict
        By name, with `shape` and `dtype`.
    path : Path
        The file, for errors.
    select : callable
        Returns the selected ones of a list of names.
    remedy : str
        How to select the others: ``{0}`` is the list of the layers that do not fit, ``{1}`` the
        same as a regular expression.
    strict : bool
        Whether it is an error if something that is selected does not fit, or a warning.
    """
    every = sorted(parameters.keys() | arrays.keys())
    chosen = select(every)
    if not chosen:
        raise ValueError(f"no name is selected; change the patterns, there are {', '.join(every)}")
    faults = differences(parameters, arrays, chosen, path)
    fits = [name for name in chosen if name not in faults]
    if faults and (strict or not fits):
        layers = sorted({name.rpartition("/")[0] or name for name in faults})
        others = f", or read the others with {remedy.format(layers, '|'.join(layers))}"
        raise ValueError(
            f"{min(faults.values())}; build the model that the file was saved from"
            f"{others if fits else ''}"
        )
    if faults:
        logger.warning(
            "Not read from %s, %d of %d: %s", path, len(faults), len(chosen),
            "; ".join(faults.values()),
        )
    return fits


def differences(
    parameters: Mapping[str, Parameter], arrays: Mapping[str, Any], names: Iterable[str], path: Any
) -> dict[str, str]:
    """Return by name how the arrays of a file differ from the parameters, for those that do."""
    forms = {name: (_form(parameters.get(name)), _form(arrays.get(name))) for name in names}
    return {
        name: f"{name}: the model has {wanted}, {path} has {found}"
        for name, (wanted, found) in forms.items()
        if wanted != found
    }


def _form(array: Any) -> str:
    """Return the shape of an array, and its type if it does not hold float numbers."""
    if array is None:
        return "nothing of this name"
    return f"{array.shape}" if array.dtype.kind == "f" else f"{array.shape} of {array.dtype}"


def parameters_of(model: Any) -> dict[str, Parameter]:
    """Return the parameters of a built model by name."""
    parameters = named_parameters(model) if isinstance(model, Op) else {}
    if not parameters:
        is_layer = hasattr(model, "build")
        remedy = "call build first" if is_layer else "give a layer, such as a Sequential"
        raise ValueError(f"the model has no parameters, got {checks.describe(model)}; {remedy}")
    return parameters
