"""Optional packages, imported when they are used."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package; the error says which extra of minicnn installs it.

    Parameters
    ----------
    module : str
        Such as "matplotlib.pyplot".
    extra : str
        The extra in pyproject.toml.

    Returns
    -------
    module

    Raises
    ------
    ImportError
        If the package is not installed or cannot be imported.

    Examples
    --------
    >>> from minicnn.core.extras import require
    >>> require("json", "plot").dumps([1])
    '[1]'
    >>> require("no_such_package", "plot")
    Traceback (most recent call last):
    ImportError: no_such_package cannot be imported; install it with: pip install -e ".[plot]"
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'{package} cannot be imported; install it with: pip install -e ".[{extra}]"'
        ) from error
