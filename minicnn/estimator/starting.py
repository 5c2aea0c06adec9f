"""Start from weights that exist: `load_weights`, and the warm start of an Estimator."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minicnn.core import checks
from minicnn.core.log import logger
from minicnn.core.parameter import Parameter
from minicnn.core.weights import SKIP_THEM, by_patterns, load_into, names_in, parameters_of
from minicnn.estimator.checkpoints import CheckpointError, newest


def load_weights(
    model: Any,
    path: str | Path,
    *,
    only: str | Sequence[str] | None = None,
    skip: str | Sequence[str] | None = None,
    strict: bool = True,
) -> None:
    """Read the parameters of a model from a file of weights, or from an Estimator's checkpoint.

    Parameters
    ----------
    model : Layer
        Built, with the same names and shapes as the file.
    path : str or Path
        A file of `save_weights` or `np.savez`; ``model.ckpt-N.npz`` in an Estimator's `model_dir`,
        of which the optimizer's state is ignored; or the `model_dir`, for its newest checkpoint.
    only, skip : str or sequence of str, optional
        Which parameters to read, and which not to read: patterns as for file names (``*``, ``?``,
        ``[...]``). A pattern stands for a complete name, ``"conv2d/kernel"``, or for all names
        below it: ``"conv2d"`` for the kernel and the bias of this layer, ``"conv2d*"`` for all
        convolutions. The others keep their values.
    strict : bool
        If True, all selected parameters must be in the file with the same shape, and all selected
        arrays of the file in the model. If False, what fits is read, and a warning names the rest.

    Raises
    ------
    ValueError
        If the file is damaged or is not an .npz file of plain arrays, if a name or a shape
        differs, or if nothing fits. The error names it, and the model is unchanged.
    CheckpointError
        If `path` is a folder without a valid checkpoint.
    FileNotFoundError
        If the path does not exist.

    Examples
    --------
    Train a new last layer on the convolutions of another model:

    >>> import tempfile, pathlib, minicnn as mc
    >>> def network(classes):
    ...     model = mc.Sequential([mc.layers.Conv2D(4, 3), mc.layers.Flatten(),
    ...                            mc.layers.Dense(classes)])
    ...     model.build((None, 8, 8, 1), rng=0)
    ...     return model
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "weights.npz"
    >>> mc.save_weights(network(10), path)
    >>> model = network(3)
    >>> mc.load_weights(model, path, only="conv2d")
    >>> model.layers[0].trainable = False
    """
    load_into(
        parameters_of(model), _file(checks.path(path, "path")), by_patterns(only, skip), SKIP_THEM,
        checks.boolean(strict, "strict"),
    )


def expressions(value: Any, name: str) -> list[re.Pattern[str]]:
    """Return regular expressions from one or several strings."""
    try:
        return [re.compile(pattern) for pattern in names_in(value, name)]
    except re.error as error:
        raise ValueError(f"`{name}` must be regular expressions, got {value!r} ({error})") from None


def warm_start(
    parameters: Mapping[str, Parameter], path: Path, patterns: Sequence[re.Pattern[str]]
) -> None:
    """Read those parameters from a file whose names match one of the patterns."""

    def select(names: Sequence[str]) -> list[str]:
        return [name for name in parameters if any(p.match(name) for p in patterns)]

    path = _file(path)
    load_into(parameters, path, select, "vars_to_warm_start='(?!({1})/)'")
    logger.info("Warm start from %s", path)


def _file(path: Path) -> Path:
    """Return the newest valid checkpoint of a folder, or the path of a file as it is."""
    if not path.is_dir():
        return path
    found = newest(path)
    if found is None:
        raise CheckpointError(
            f"there is no checkpoint in {path}; give the folder of a trained Estimator, or a file"
        )
    return found.path
