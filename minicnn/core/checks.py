"""What arguments may be: one place for each kind, and one way of saying what came instead."""

import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

PADDINGS = ("valid", "same")
DATA_FORMATS = ("channels_last", "channels_first")
MOST = 2**31 - 1  # of any size: products of a few still fit into the kernels' 64 bits


def describe(value: Any) -> str:
    """Return how an error names a value: in one short line, arrays and tables by their form."""
    try:
        if _has_form(value):
            return _form(value)
        if isinstance(value, list | tuple) and 0 < len(value) < 4 and any(map(_has_form, value)):
            return f"a {type(value).__name__} of {', '.join(map(describe, value))}"
        text = " ".join(repr(value).split())
    except Exception:  # an integer of too many digits, or a class whose repr fails
        text = object.__repr__(value)
    if len(text) > 80:
        text = text[:77] + "..."
    return (
        text
        if isinstance(value, str | int | float | tuple | list | None)
        else (f"{text} ({type(value).__name__})")
    )


def _has_form(value: Any) -> bool:
    """Return whether a value is an array or like one: of pandas, say, but no single number."""
    if isinstance(value, np.ndarray | type):
        return isinstance(value, np.ndarray)
    shape = getattr(value, "shape", ())
    return hasattr(value, "__array__") and bool(shape) and None not in shape


def _form(value: Any) -> str:
    """Return the kind, the shape and the type of an array, or the types of a table's columns."""
    kind = f"a {type(value).__name__}"
    if isinstance(value, np.ndarray):
        kind = "a masked array" if isinstance(value, np.ma.MaskedArray) else "an array"
    dtypes = [value.dtype] if hasattr(value, "dtype") else getattr(value, "dtypes", ["unknown"])
    types = " and ".join(sorted({str(dtype) for dtype in dtypes}))
    return f"{kind} of shape {tuple(value.shape)} and type {types}"


def integer(value: Any, name: str, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return an integer argument (NumPy's integers too) with least <= value <= most."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}") from None
    if isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {value}")
    if not least <= number <= most:
        limit = f"at least {least}" if number < least else f"at most {most}"
        raise ValueError(f"`{name}` must be {limit}, got {describe(number)}")
    return number


def optional(check: Callable[..., Any], value: Any, *arguments: Any) -> Any:
    """Return None, or what a check makes of the value."""
    return None if value is None else check(value, *arguments)


def pair(value: Any, name: str) -> tuple[int, int]:
    """Return (height, width) from one positive integer, for both, or from two."""
    if not isinstance(value, Iterable):
        value = (value, value)
    if isinstance(value, _NO_SEQUENCE) or len(numbers := tuple(value)) != 2:
        raise ValueError(
            f"`{name}` must be one integer or two, (height, width), got {describe(value)}"
        )
    return integer(numbers[0], name, 1, MOST), integer(numbers[1], name, 1, MOST)


def sequence(value: Any, name: str, what: str = "integers") -> tuple[Any, ...]:
    """Return a tuple from an iterable whose order counts."""
    if isinstance(value, _NO_SEQUENCE) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a list of {what}, got {describe(value)}")
    return tuple(value)


def integers(value: Any, name: str, least: int) -> tuple[int, ...]:
    """Return a tuple of integers from an iterable of them."""
    return tuple(integer(number, name, least, MOST) for number in sequence(value, name))


def shape(value: Any, name: str) -> tuple[int | None, ...]:
    """Return a shape, in which None is a size that is not known yet."""
    return tuple(size if size is None else integer(size, name, 1, MOST)
                 for size in sequence(value, name))


_NO_SEQUENCE = (str, bytes, dict, set)


def boolean(value: Any, name: str) -> bool:
    """Return a flag: True or False, and nothing that only counts as one."""
    return bool(instance(value, (bool, np.bool_), name, "True or False"))


def text(value: Any, name: str) -> str:
    """Return a name: of 1 to 200 printable characters, so that files can hold it."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"`{name}` must be a string that is not empty, got {describe(value)}")
    if len(value) > 200 or not value.isprintable():
        raise ValueError(f"`{name}` may be 200 printable characters long, got {describe(value)}")
    return value


def function(value: Any, name: str, what: str = "a function") -> Callable[..., Any]:
    """Return what can be called."""
    if not callable(value):
        raise TypeError(f"`{name}` must be {what}, got {describe(value)}")
    return value


def instance(value: Any, kind: Any, name: str, what: str = "") -> Any:
    """Return an object of a class, or of one of some; `what` tells the user what that is."""
    if not isinstance(value, kind):
        raise TypeError(f"`{name}` must be {what or f'a {kind.__name__}'}, got {describe(value)}")
    return value


def path(value: Any, name: str) -> Path:
    """Return a path from a string or a path."""
    if not isinstance(value, str | os.PathLike) or "\0" in str(value):
        raise TypeError(f"`{name}` must be a path, str or PathLike, got {describe(value)}")
    return Path(value)


def array(
    value: Any,
    name: str,
    kinds: str = "fiub",
    what: str = "an array of numbers",
    remedy: Callable[[np.ndarray, str], str] | None = None,
) -> np.ndarray:
    """Return an array whose type is of the kinds; one that lists make must not be ragged."""
    try:
        result = np.asarray(value)
    except ValueError:
        result = np.array(None)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must not be masked: fill it first (array.filled(0))")
    if result.dtype.kind not in kinds:
        advice = (remedy or _as_floats)(result, name)
        raise TypeError(f"`{name}` must be {what}, got {describe(value)}{advice}")
    return result


def labels(value: Any, name: str) -> np.ndarray:
    """Return an array of labels; an error says how to make numbers of class names."""
    return array(value, name, remedy=_numbering)


def _converted(values: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Return the numbers in an array of text or objects, or None if it has others than those."""
    if not values.ndim or values.dtype.kind not in "OSU":
        return None
    if any(item is None for item in values.flat):  # it would become NaN
        return None
    try:
        return values.astype(dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def part_of(value: Any) -> str:
    """Return how to take what is needed out of a dict or a Parameter; nothing for others."""
    if isinstance(value, dict) and value:
        return f"; take one of its values, such as that of {next(iter(value))!r}"
    return "; take its array, `.value`" if hasattr(value, "value") else ""


def _as_floats(values: np.ndarray, name: str) -> str:
    if not values.ndim:
        return part_of(values.item())
    is_numeric = _converted(values, np.float64) is not None
    return f"; convert it: np.asarray({name}, np.float32)" if is_numeric else ""


def _numbering(values: np.ndarray, name: str) -> str:
    """Return how to make numbers of labels that are text or objects."""
    if _converted(values, np.int64) is not None:
        return f"; convert it: np.asarray({name}).astype(int)"
    if not values.ndim:
        return part_of(values.item())
    if not all(isinstance(item, str | bytes) for item in values.flat):
        return ""
    return (
        f"; number the classes: classes, {name} = np.unique({name}, return_inverse=True); other "
        "data of the same classes: np.searchsorted(classes, names)"
    )


def class_numbers(name: str, shape: tuple[int | None, ...], dtype: Any) -> str:
    """Return what makes integer class numbers (N,) of labels of another shape or type."""
    expression = f"np.asarray({name})"
    if math.prod(size or 0 for size in shape[1:]) != 1:
        return f"{expression}.argmax(axis=1)"
    if len(shape) != 1:
        expression += ".reshape(-1)"
    return expression if np.dtype(dtype).kind in "iu" else f"{expression}.astype(int)"


def room(shape: tuple[int, ...], name: str) -> None:
    """Raise where there is no memory for an array of a shape: ask for it, and give it back."""
    try:
        np.empty(shape)
    except (MemoryError, ValueError):  # more than there is; more than there can be
        raise ValueError(
            f"{name} would have the shape {shape}, for which there is no memory; make it smaller"
        ) from None


def choice(value: Any, name: str, known: Iterable[str]) -> str:
    """Return one of the `known` words; upper and lower case are the same."""
    known = tuple(known)
    if isinstance(value, str) and value.lower() in known:
        return value.lower()
    words = " or ".join(repr(word) for word in known)
    raise ValueError(f"`{name}` must be {words}, got {describe(value)}")


def number(value: Any, name: str, least: float = -math.inf, below: float = math.inf) -> float:
    """Return a finite real argument with least <= value < below."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (math.isfinite(result) and least <= result < below):
        limits = (
            f" in [{least:g}, {below:g})"
            if below < math.inf
            else (f" of at least {least:g}" if least > -math.inf else "")
        )
        raise ValueError(f"`{name}` must be a finite number{limits}, got {result:g}")
    return result


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return a Generator from itself or from an integer seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise TypeError(
        f"`{name}` must be a numpy.random.Generator or a seed (an integer that is not negative), "
        f"got {describe(rng)}"
    )


def number_type(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return a type of real numbers, or bool, as a dtype."""
    try:
        result = np.dtype(object if dtype is None else dtype)
    except TypeError:
        result = np.dtype(object)
    if result.kind not in "fiub":
        raise TypeError(f"`{name}` must be a type such as numpy.float32, got {describe(dtype)}")
    return result


def float_type(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return float32 or float64 as a dtype."""
    result = number_type(dtype, name)
    if result not in (np.float32, np.float64):
        raise TypeError(f"`{name}` must be float32 or float64, got {describe(dtype)}")
    return result


def no_regularizer(*regularizers: Any) -> None:
    """Refuse what only the guide's signatures know: a regularizer on a layer."""
    for regularizer in regularizers:
        if regularizer is not None:
            raise ValueError(
                f"`kernel_regularizer` and `bias_regularizer` must be None, got "
                f"{describe(regularizer)}; decay the weights in the optimizer: SGD(learning_rate, "
                "weight_decay=0.0001)"
            )


def unique(name: str, taken: Iterable[str]) -> str:
    """Return `name`, or the first of name_1, name_2, ... that is not taken."""
    taken, result, number = set(taken), name, 0
    while result in taken:
        number += 1
        result = f"{name}_{number}"
    return result


def gradient(dy: Any, shape: tuple[int, ...], dtype: Any, label: str) -> None:
    """Raise where what comes back to a layer is not like what it put out: kernels trust it."""
    if not isinstance(dy, np.ndarray) or dy.shape != shape:
        raise ValueError(
            f"{label}: the gradient `dy` must be an array of the output's shape {shape}, got "
            f"{describe(dy)}"
        )
    if dy.dtype != dtype:
        raise TypeError(
            f"{label}: the gradient `dy` must be {np.dtype(dtype)} like the output, got "
            f"{dy.dtype}; convert it (dy.astype(np.{np.dtype(dtype)}))"
        )


def optimizer_fault(state: Mapping[str, np.ndarray]) -> str:
    """Return what no step leaves in an optimizer's arrays; an empty text if there is no fault."""
    for name, values in state.items():
        if values.dtype.kind == "f" and np.isnan(values).any():
            return f"{name} holds NaN"
        if values.dtype.kind == "f" and name.endswith("/adam_s") and (values < 0).any():
            return f"{name} has a negative mean of squares"
    return ""
