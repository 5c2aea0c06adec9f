"""What arguments may be: one place for each kind, and one way of saying what came instead."""

import math
import operator
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

PADDINGS = ("valid", "same")
DATA_FORMATS = ("channels_last", "channels_first")


def describe(value: Any) -> str:
    """Return how an error names a value: short, with its type where the value does not tell."""
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and type {value.dtype}"
    text = repr(value)
    if len(text) > 80:
        text = text[:77] + "..."
    return (
        text
        if isinstance(value, str | int | float | tuple | list | None)
        else (f"{text} ({type(value).__name__})")
    )


def integer(value: Any, name: str, least: int = 1) -> int:
    """Return an integer argument (NumPy's integers too) that is at least `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"`{name}` must be an integer, got {describe(value)}") from None
    if isinstance(value, bool):
        raise TypeError(f"`{name}` must be an integer, got {value}")
    if number < least:
        raise ValueError(f"`{name}` must be at least {least}, got {number}")
    return number


def optional(check: Callable[..., Any], value: Any, *arguments: Any) -> Any:
    """Return None, or what a check makes of the value."""
    return None if value is None else check(value, *arguments)


def pair(value: Any, name: str) -> tuple[int, int]:
    """Return (height, width) from one positive integer, for both, or from two."""
    if not isinstance(value, Iterable):
        value = (value, value)
    if isinstance(value, str) or len(numbers := tuple(value)) != 2:
        raise ValueError(
            f"`{name}` must be one integer or two, (height, width), got {describe(value)}"
        )
    return integer(numbers[0], name), integer(numbers[1], name)


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
    result = float(value)
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


def float_type(dtype: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return float32 or float64 as a dtype."""
    try:
        result = np.dtype(dtype)
    except TypeError:
        result = None
    if result not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise TypeError(f"`{name}` must be float32 or float64, got {describe(dtype)}")
    return result


def no_regularizer(*regularizers: Any) -> None:
    """Refuse what only the guide's signatures know: a regularizer on a layer."""
    if any(regularizer is not None for regularizer in regularizers):
        raise ValueError(
            "`kernel_regularizer` and `bias_regularizer` must be None; decay the weights in the "
            "optimizer: SGD(learning_rate, weight_decay=0.0001)"
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
    if np.shape(dy) != shape:
        raise ValueError(
            f"{label}: the gradient must have the shape {shape} of the output, got {describe(dy)}"
        )
    if dy.dtype != dtype:
        raise TypeError(
            f"{label}: the gradient must be {np.dtype(dtype)} like the output, got {dy.dtype}; "
            f"convert it (dy.astype({np.dtype(dtype)}))"
        )


def integers(value: Any, name: str, least: int) -> tuple[int, ...]:
    """Return a tuple of integers from an iterable of them."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"`{name}` must be a tuple of integers, got {describe(value)}")
    return tuple(integer(number, name, least) for number in value)
