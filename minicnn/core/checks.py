"""Argument validation: one function for each kind of argument, one format of error message."""

import contextlib
import difflib
import inspect
import itertools
import math
import operator
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core.hints import NAMES

PADDINGS = ("valid", "same")
DATA_FORMATS = ("channels_last", "channels_first")
TINY = float(np.finfo(np.float32).tiny)  # the smallest float32 above 0 that is not denormal
LARGEST = float(np.finfo(np.float32).max)
MOST = 2**31 - 1  # the largest size: products of a few of them fit into 64 bits


def describe(value: Any) -> str:
    """Return a value as one short line for an error: for arrays and tables shape and type."""
    try:
        if _has_form(value):
            return _form(value)
        if isinstance(value, list | tuple) and 0 < len(value) < 4 and any(map(_has_form, value)):
            return f"a {type(value).__name__} of {', '.join(map(describe, value))}"
        text = " ".join(repr(value).split())
    except Exception:  # an integer with too many digits, or a failing __repr__
        text = object.__repr__(value)
    if len(text) > 80:
        text = text[:77] + "..."
    kind = type(value).__name__
    is_clear = isinstance(value, str | int | float | tuple | list | None) or text.startswith(kind)
    return text if is_clear else f"{text} ({kind})"


def _has_form(value: Any) -> bool:
    """Return whether a value is an array or similar, such as a pandas table, but not a number."""
    if isinstance(value, np.ndarray | type):
        return isinstance(value, np.ndarray)
    shape = getattr(value, "shape", ())
    return hasattr(value, "__array__") and bool(shape) and None not in shape


def _form(value: Any) -> str:
    """Return the class, shape and type of an array; of a table the types of its columns."""
    kind = f"a {type(value).__name__}"
    if isinstance(value, np.ndarray):
        kind = "a masked array" if isinstance(value, np.ma.MaskedArray) else "an array"
    dtypes = [value.dtype] if hasattr(value, "dtype") else getattr(value, "dtypes", ["unknown"])
    types = " and ".join(sorted({str(dtype) for dtype in dtypes}))
    return f"{kind} of shape {tuple(value.shape)} and type {types}"


def integer(value: Any, name: str, least: int = 1, most: int = 2**63 - 1) -> int:
    """Return an integer, also one of NumPy, with least <= value <= most."""
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
    """Return None for None, otherwise the result of a check."""
    return None if value is None else check(value, *arguments)


def exclusive(*, least: int = 0, **given: Any) -> None:
    """Raise if more than one of these arguments is not None, or fewer than `least` are."""
    got = [f"{name}={describe(value)}" for name, value in given.items() if value is not None]
    if not least <= len(got) <= 1:
        raise ValueError(
            f"give {'exactly' if least else 'at most'} one of `{'` and `'.join(given)}`, got "
            f"{' and '.join(got) or None}"
        )


def pair(value: Any, name: str) -> tuple[int, int]:
    """Return (height, width) from two positive integers, or from one for both."""
    if not np.iterable(value):
        value = (value, value)
    if isinstance(value, _NO_SEQUENCE) or len(numbers := tuple(value)) != 2:
        raise ValueError(
            f"`{name}` must be one integer or two, (height, width), got {describe(value)}"
        )
    return integer(numbers[0], name, 1, MOST), integer(numbers[1], name, 1, MOST)


def padding(value: Any) -> Any:
    """Return "valid", "same" or ((top, bottom), (left, right)), in which one integer means two."""
    if isinstance(value, str) and value.lower() in PADDINGS:
        return value.lower()
    axes = value if np.iterable(value) else (value, value)
    pads = [tuple(axis) if np.iterable(axis) else (axis, axis) for axis in axes]
    if isinstance(value, (*_NO_SEQUENCE, type(None))) or [len(axis) for axis in pads] != [2, 2]:
        raise ValueError(
            "`padding` must be 'valid', 'same', an integer or ((top, bottom), (left, right)), got "
            f"{describe(value)}"
        )
    return tuple(tuple(integer(pad, "padding", 0, MOST) for pad in axis) for axis in pads)


def sequence(value: Any, name: str, what: str = "integers") -> tuple[Any, ...]:
    """Return an ordered iterable (not str, dict or set) as a tuple."""
    if isinstance(value, _NO_SEQUENCE) or not np.iterable(value):
        raise TypeError(f"`{name}` must be a list of {what}, got {describe(value)}")
    return tuple(value)


def integers(value: Any, name: str, least: int) -> tuple[int, ...]:
    """Return a tuple of integers from an iterable of them."""
    return tuple(integer(number, name, least, MOST) for number in sequence(value, name))


def shape(value: Any, name: str) -> tuple[int | None, ...]:
    """Return a shape as a tuple; None is an unknown size."""
    return tuple(optional(integer, size, name, 1, MOST) for size in sequence(value, name))


_NO_SEQUENCE = (str, bytes, dict, set)


def boolean(value: Any, name: str) -> bool:
    """Return True or False; other values that count as true are refused."""
    return bool(instance(value, (bool, np.bool_), name, "True or False"))


def text(value: Any, name: str) -> str:
    """Return a name of 1 to 200 printable characters, which files can hold."""
    if not isinstance(value, str) or not value:
        raise TypeError(f"`{name}` must be a string that is not empty, got {describe(value)}")
    if len(value) > 200 or not value.isprintable():
        raise ValueError(f"`{name}` may be 200 printable characters long, got {describe(value)}")
    return value


def function(
    value: Any, name: str, what: str = "a function", count: int | None = None
) -> Callable[..., Any]:
    """Return a callable, which must take `count` arguments if that is given."""
    instance(value, Callable, name, what)
    if count is None:
        return value
    try:
        with contextlib.suppress(ValueError):  # a built-in function may have no signature
            inspect.signature(value).bind(*range(count))
    except TypeError as error:
        raise TypeError(
            f"`{name}` must be {what}, got {describe(value)}, which takes "
            f"{inspect.signature(value)}"
        ) from error
    return value


def instance(value: Any, kind: Any, name: str, what: str = "") -> Any:
    """Return `value` if it is an instance of `kind`, which `what` describes in the error."""
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
    of_labels: bool = False,
) -> np.ndarray:
    """Convert to an array with dtype.kind in `kinds`; refuse ragged lists and masked arrays."""
    try:
        result = np.asarray(value)
    except ValueError:
        result = np.array(None)
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"`{name}` must not be masked: fill it first (array.filled(0))")
    if result.dtype.kind not in kinds:
        advice = _advice(result, name, of_labels)
        raise TypeError(f"`{name}` must be {what}, got {describe(value)}{advice}")
    return result


def labels(value: Any, name: str) -> np.ndarray:
    """Convert labels to an array; the error for class names says how to number them."""
    return array(value, name, of_labels=True)


def _converted(values: np.ndarray, dtype: Any) -> np.ndarray | None:
    """Return an array of text or objects as numbers, or None if that is not possible."""
    # None would become NaN.
    if values.dtype.kind not in "OSU" or any(item is None for item in values.flat):
        return None
    try:
        return values.astype(dtype)
    except (TypeError, ValueError, OverflowError):
        return None


def part_of(value: Any) -> str:
    """Return how to get an array out of a dict, a Parameter or a data set; "" for other values."""
    if isinstance(value, dict) and value:
        return f"; take one of its values, such as that of {next(iter(value))!r}"
    return next((advice for name, advice in _PARTS.items() if hasattr(value, name)), "")


_PARTS = {
    "value": "; take its array, `.value`",
    "labels": "; give its arrays, `.images` and `.labels`",  # a Dataset
    "train": "; take one of its parts, such as `.train`",  # what load_dataset returns
}


def _advice(values: np.ndarray, name: str, of_labels: bool) -> str:
    """Return how to convert an array of text or objects to numbers; "" if that is not possible."""
    if not values.ndim:
        return part_of(values.item())
    if _converted(values, np.int64 if of_labels else np.float64) is not None:
        code = f"np.asarray({name}).astype(int)" if of_labels else f"np.asarray({name}, np.float32)"
        return f"; convert it: {code}"
    if of_labels and all(isinstance(item, str | bytes) for item in values.flat):
        return (
            f"; number the classes: classes, {name} = np.unique({name}, return_inverse=True); "
            "other data of the same classes: np.searchsorted(classes, names)"
        )
    return ""


def class_numbers(name: str, shape: tuple[int | None, ...], dtype: Any) -> str:
    """Return an expression that converts labels of another shape or type to class numbers (N,)."""
    expression = f"np.asarray({name})"
    if math.prod(size or 0 for size in shape[1:]) != 1:
        return f"{expression}.argmax(axis=1)"
    if len(shape) != 1:
        expression += ".reshape(-1)"
    return expression if np.dtype(dtype).kind in "iu" else f"{expression}.astype(int)"


def choice(value: Any, name: str, known: Iterable[str], others: str = "") -> str:
    """Return one of the `known` words in lower case; the case of `value` does not matter.

    `others` describes what the argument may also be, for the error.
    """
    known = tuple(known)
    if isinstance(value, str) and value.lower() in known:
        return value.lower()
    words = " or ".join([*map(repr, known), *filter(None, [others])])
    advice = f"; {NAMES[value]}" if isinstance(value, str) and value in NAMES else ""
    raise ValueError(f"`{name}` must be {words}, got {describe(value)}{advice}")


def existing(value: Any, name: str, known: Iterable[str | None]) -> Any:
    """Return one of the names that exist."""
    names = list(known)
    if value not in names:
        near = difflib.get_close_matches(str(value), map(str, names), n=3)
        similar = f"; similar names: {', '.join(near)}" if near else ""
        raise ValueError(
            f"`{name}` must be one of {', '.join(map(repr, names))}, got {describe(value)}{similar}"
        )
    return value


def number(value: Any, name: str, least: float = -math.inf, below: float = math.inf) -> float:
    """Return a number with least <= value < below that is finite, also as float32."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"`{name}` must be a number, got {describe(value)}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not (abs(result) <= LARGEST and least <= result < below):
        limits = (
            f" in [{least:g}, {below:g})"
            if below < math.inf
            else (f" of at least {least:g}" if least > -math.inf else "")
        )
        kind = "float32" if LARGEST < abs(result) < math.inf else "finite"
        raise ValueError(f"`{name}` must be a {kind} number{limits}, got {result:g}")
    return result


def generator(rng: Any, name: str = "rng") -> np.random.Generator:
    """Return a random generator from a generator or an integer seed."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, int | np.integer) and not isinstance(rng, bool) and rng >= 0:
        return np.random.default_rng(int(rng))
    raise TypeError(
        f"`{name}` must be a numpy.random.Generator or a seed (an integer that is not negative), "
        f"got {describe(rng)}"
    )


def number_type(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return a real or boolean type as a dtype."""
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


def regularizer(value: Any, name: str) -> Any:
    """Return None or a function of a parameter's value that has a `gradient`."""
    is_function = callable(value) and not isinstance(value, type)
    if value is None or (is_function and callable(getattr(value, "gradient", None))):
        return value
    raise TypeError(
        f"`{name}` must be None, l1_regularizer(scale), l2_regularizer(scale) or a function of a "
        f"parameter's value with a method gradient(value), got {describe(value)}; write "
        f"{name}=minicnn.layers.l2_regularizer(0.0001)"
    )


def unique(name: str, taken: Iterable[str], first: int = 1) -> str:
    """Return `name`, or the first of name_1, name_2, ... (from `first`) that is not taken."""
    taken = set(taken)
    numbered = (f"{name}_{number}" for number in itertools.count(first))
    return next(each for each in itertools.chain([name], numbered) if each not in taken)


def gradient(dy: Any, shape: tuple[int, ...], dtype: Any, label: str) -> None:
    """Raise unless `dy` has the shape and dtype of the output: kernels do not check it."""
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


def fault(arrays: Mapping[str, np.ndarray]) -> str:
    """Return which array of a checkpoint holds values that no run saves; "" if none does."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and name.startswith("parameters/"):
            with np.errstate(over="ignore"):
                single = array.astype(np.float32, copy=False)
            if not np.isfinite(single).all():
                return f"{name} holds NaN or infinity"
        elif array.dtype.kind == "f":  # the state of an optimizer, in which a square may overflow
            least = 0 if name.endswith(("/adam_s", "/rms")) else -math.inf
            if not (array >= least).all():
                return f"{name} holds NaN or a negative mean of squares"
    return ""
