"""Initializers: the values that parameters start from.

An initializer is any callable ``(shape, rng, dtype) -> array``. Those that draw do so in float64
and round at the end, so a float32 and a float64 model of one seed start from the same numbers.

The fans of a kernel are how many inputs an output is summed from and how many outputs an input
reaches: (KH, KW, C, F) has fan_in = KH KW C and fan_out = KH KW F, (in, units) has in and units.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core.checks import (
    array,
    choice,
    describe,
    float_type,
    generator,
    integers,
    number,
    room,
)

Initializer = Callable[..., np.ndarray]
Spec = str | float | Initializer
_PART = 1 << 16  # elements that are drawn at a time


def glorot_uniform(shape: tuple[int, ...], rng: Any, dtype: Any = np.float32) -> np.ndarray:
    """Draw from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    The variance 2 / (fan_in + fan_out) lies between the one that keeps the size of the signal on
    its way forward and the one that keeps that of the gradient on its way back.

    Parameters
    ----------
    shape : tuple of int
        Of a kernel: (KH, KW, C, F) or (in, units).
    rng : numpy.random.Generator or int
        Where the numbers are drawn from, or a seed.
    dtype : float32 or float64

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        If `shape` has fewer than two dimensions.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks",
    AISTATS 2010, equation 16.

    Examples
    --------
    >>> import minicnn as mc
    >>> kernel = mc.initializers.glorot_uniform((5, 5, 1, 32), rng=0)
    >>> kernel.shape, bool(abs(kernel).max() < (6 / (25 + 800)) ** 0.5)
    ((5, 5, 1, 32), True)
    """
    return _uniform(math.sqrt(6 / sum(_fans(shape))), shape, rng, dtype)


def uniform_unit_scaling(shape: tuple[int, ...], rng: Any, dtype: Any = np.float32) -> np.ndarray:
    """Draw from U(-a, a) with a = sqrt(3 / fan_in), so that a linear layer keeps the variance.

    Parameters
    ----------
    shape : tuple of int
        Of a kernel: (KH, KW, C, F) or (in, units).
    rng : numpy.random.Generator or int
        Where the numbers are drawn from, or a seed.
    dtype : float32 or float64

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        If `shape` has fewer than two dimensions.

    References
    ----------
    Sussillo and Abbott, "Random walk initialization for training very deep feedforward networks",
    arXiv:1412.6558, 2014.

    Examples
    --------
    >>> import minicnn as mc
    >>> kernel = mc.initializers.uniform_unit_scaling((300, 10), rng=0)
    >>> bool(abs(kernel).max() < 0.1)
    True
    """
    return _uniform(math.sqrt(3 / _fans(shape)[0]), shape, rng, dtype)


def he_normal(shape: tuple[int, ...], rng: Any, dtype: Any = np.float32) -> np.ndarray:
    """Draw from N(0, 2 / fan_in), so that a layer followed by ReLU keeps the signal's size.

    It is the whole normal distribution, as in the paper. Keras cuts it at two standard deviations
    and widens it to have the same variance.

    Parameters
    ----------
    shape : tuple of int
        Of a kernel: (KH, KW, C, F) or (in, units).
    rng : numpy.random.Generator or int
        Where the numbers are drawn from, or a seed.
    dtype : float32 or float64

    Returns
    -------
    ndarray

    Raises
    ------
    ValueError
        If `shape` has fewer than two dimensions.

    References
    ----------
    He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015, equation 10.

    Examples
    --------
    >>> import minicnn as mc
    >>> kernel = mc.initializers.he_normal((800, 1000), rng=0)
    >>> round(float(kernel.std()), 3)
    0.05
    """
    deviation = math.sqrt(2 / _fans(shape)[0])
    return _drawn(generator(rng).normal, (0.0, deviation), shape, dtype)


def zeros(shape: tuple[int, ...], rng: Any = None, dtype: Any = np.float32) -> np.ndarray:
    """Return zeros, the usual start of a bias.

    Parameters
    ----------
    shape : tuple of int
    rng : ignored
    dtype : float32 or float64

    Returns
    -------
    ndarray

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.initializers.zeros((3,))
    array([0., 0., 0.], dtype=float32)
    """
    return np.zeros(_shape(shape), float_type(dtype))


class constant:  # noqa: N801
    """The initializer that gives `value`.

    Parameters
    ----------
    value : float or array
        A number for every element, or an array of the parameter's shape; it is copied.

    Raises
    ------
    TypeError
        If `value` is not made of real numbers.
    ValueError
        If it is not finite; when called, if `value` is an array of another shape.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.initializers.constant(0.1)((2,), rng=0)
    array([0.1, 0.1], dtype=float32)
    """

    def __init__(self, value: ArrayLike) -> None:
        self.value = np.array(array(value, "value", "iuf", "a number or an array"))
        if not np.isfinite(self.value).all() or not self.value.size:
            raise ValueError(f"constant: `value` must be finite numbers, got {describe(value)}")

    def __repr__(self) -> str:
        value = describe(self.value) if self.value.ndim else self.value.item()
        return f"constant({value})"

    def __call__(
        self, shape: tuple[int, ...], rng: Any = None, dtype: Any = np.float32
    ) -> np.ndarray:
        if self.value.ndim and self.value.shape != tuple(shape):
            raise ValueError(
                f"constant: `value` must be a number or an array of the parameter's shape "
                f"{tuple(shape)}, got an array of shape {self.value.shape}; reshape it"
            )
        return np.full(shape, self.value, dtype)


def get(spec: Spec | None, default: Spec, name: str = "initializer") -> Initializer:
    """Return the initializer that a user's argument means.

    Parameters
    ----------
    spec : str, callable, float or None
        ``"glorot_uniform"``, ``"uniform_unit_scaling"``, ``"he_normal"`` or ``"zeros"`` in upper or
        lower case; an initializer; a number for every element; None for the default.
    default : str, callable or float
    name : str
        How errors call the argument.

    Returns
    -------
    callable ``(shape, rng, dtype) -> ndarray``

    Raises
    ------
    ValueError
        If the name is unknown.
    TypeError
        If `spec` is something else.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.initializers.get(None, default="zeros") is mc.initializers.zeros
    True
    """
    spec = default if spec is None else spec
    if isinstance(spec, str):
        return _BY_NAME[choice(spec, name, _BY_NAME)]
    if callable(spec):
        return spec
    if isinstance(spec, int | float | np.number) and not isinstance(spec, bool):
        return constant(number(spec, name))
    raise TypeError(
        f"`{name}` must be a name, a number or a callable (shape, rng, dtype) -> array, got "
        f"{describe(spec)}; give an array as minicnn.initializers.constant(array)"
    )


def _fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return (fan_in, fan_out) of a kernel."""
    if len(_shape(shape)) < 2:
        raise ValueError(
            f"the initializer needs a kernel's `shape`, (KH, KW, C, F) or (in, units), got "
            f"{tuple(shape)}; for a bias use 'zeros' or a number"
        )
    *window, inputs, outputs = shape
    taps = math.prod(window)
    return taps * inputs, taps * outputs


def _shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    checked = integers(shape, "shape", least=1)
    room(checked, "the array of this `shape`")
    return checked


def _uniform(limit: float, shape: tuple[int, ...], rng: Any, dtype: Any) -> np.ndarray:
    return _drawn(generator(rng).uniform, (-limit, limit), shape, dtype)


def _drawn(draw: Any, of: tuple[float, float], shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return float64 draws in another type; part by part, for all at once take thrice the room."""
    values = np.empty(math.prod(shape), float_type(dtype))
    for part in np.split(values, range(_PART, values.size, _PART)):
        part[...] = draw(*of, part.size)
    return values.reshape(shape)


_BY_NAME: dict[str, Initializer] = {
    function.__name__: function
    for function in (glorot_uniform, uniform_unit_scaling, he_normal, zeros)
}
