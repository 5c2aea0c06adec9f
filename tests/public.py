"""The public surface: the names by which a user imports a class or a function."""

import enum
import importlib
import inspect

# Users import names from `minicnn` and these modules.
PUBLIC_MODULES = [
    "layers", "losses", "metrics", "optimizers", "hooks", "datasets", "initializers",
    "distributed", "export", "images", "plots", "summaries",
]


def objects():
    """Return the public classes and functions by the names by which a user imports them."""
    found = {}
    for module_name in ["minicnn", *(f"minicnn.{name}" for name in PUBLIC_MODULES)]:
        module = importlib.import_module(module_name)
        things = {f"{module_name}.{name}": getattr(module, name) for name in _names(module)}
        found |= {name: thing for name, thing in things.items() if has_signature(thing)}
    return found


def _names(module):
    """Return `__all__`; without one, the public names defined in this module or below it."""
    own = [
        name
        for name, thing in vars(module).items()
        if not name.startswith("_")
        and f"{getattr(thing, '__module__', None)}.".startswith(f"{module.__name__}.")
    ]
    return getattr(module, "__all__", own)


def has_signature(thing):
    return inspect.isclass(thing) or inspect.isfunction(thing)


def parameters(thing):
    """Return the names of the parameters of a function, or of the constructor of a class."""
    if inspect.isclass(thing) and (issubclass(thing, enum.Enum) or not _has_own_signature(thing)):
        return []
    names = list(inspect.signature(thing).parameters)
    return names[1:] if names[:1] == ["self"] else names


def _has_own_signature(cls):
    bases = [base for base in cls.__mro__ if base.__module__.split(".")[0] == "minicnn"]
    return any({"__init__", "__new__"} & vars(base).keys() for base in bases)
