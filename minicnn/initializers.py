"""Initializers: the initial values of parameters.

An initializer is any callable ``(shape, rng, dtype) -> array``. Random initializers draw in float64
and then round, so float32 and float64 models with the same seed start from the same numbers.

fan_in is the number of inputs of each output of a layer, fan_out the number of outputs of each
input. For a kernel (KH, KW, C, F) they are KH KW C and KH KW F; for (in, units), in and units.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core import checks

Initializer = Callable[..., np.ndarray]
Spec = str | float | Initializer


def glorot_uniform(shape: tuple[int, ...], rng: Any, dtype: Any = np.float32) -> np.ndarray:
    """Draw from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    The variance 2 / (fan_in + fan_out) is a compromise between 1 / fan_in, which keeps the variance
    of the signal in the forward pass, and 1 / fan_out, which keeps that of the gradient.

    Parameters
    ----------
    shape : tuple of int
        Shape of a kernel: (KH, KW, C, F) or (in, units).
    rng : numpy.random.Generator or int
        Source of random numbers, or a seed.
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
    """Draw from U(-a, a) with a = sqrt(3 / fan_in).

    A linear layer then keeps the variance of its inputs.

    Parameters
    ----------
    shape : tuple of int
        Shape of a kernel: (KH, KW, C, F) or (in, units).
    rng : numpy.random.Generator or int
        Source of random numbers, or a seed.
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
    """Draw from N(0, 2 / fan_in).

    A layer followed by ReLU then keeps the mean square of its inputs. The distribution is not
    truncated, as in the paper. Keras truncates it at two standard deviations and rescales it to the
    same variance.

    Parameters
    ----------
    shape : tuple of int
        Shape of a kernel: (KH, KW, C, F) or (in, units).
    rng : numpy.random.Generator or int
        Source of random numbers, or a seed.
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
    drawn = checks.generator(rng).normal(0.0, deviation, shape)
    return drawn.astype(checks.float_type(dtype))


def zeros(shape: tuple[int, ...], rng: Any = None, dtype: Any = np.float32) -> np.ndarray:
    """Return zeros, the usual initial value of a bias.

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
    return np.zeros(_shape(shape), checks.float_type(dtype))


def ones(shape: tuple[int, ...], rng: Any = None, dtype: Any = np.float32) -> np.ndarray:
    """Return ones, the usual initial value of a scale.

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
    >>> mc.initializers.ones((3,))
    array([1., 1., 1.], dtype=float32)
    """
    return np.ones(_shape(shape), checks.float_type(dtype))


class constant:  # noqa: N801
    """Initialize with a given number or array.

    Parameters
    ----------
    value : float or array
        A number for every element, or an array of the parameter's shape, which is copied.

    Raises
    ------
    TypeError
        If `value` does not consist of real numbers.
    ValueError
        If it is empty or not finite; when called, if `value` is an array of another shape.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.initializers.constant(0.1)((2,), rng=0)
    array([0.1, 0.1], dtype=float32)
    """

    def __init__(self, value: ArrayLike) -> None:
        self.value = np.array(checks.array(value, "value", "iuf", "a number or an array"))
        if not (np.abs(self.value) <= checks.LARGEST).all() or not self.value.size:
            raise ValueError(
                f"constant: `value` must be finite numbers of float32, got {checks.describe(value)}"
            )

    def __repr__(self) -> str:
        value = checks.describe(self.value) if self.value.ndim else self.value.item()
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
    """Return the initializer that an argument specifies.

    Parameters
    ----------
    spec : str, callable, float or None
        ``"glorot_uniform"``, ``"uniform_unit_scaling"``, ``"he_normal"``, ``"zeros"`` or
        ``"ones"``, in upper or lower case; an initializer; a number for every element; None for
        the default.
    default : str, callable or float
    name : str
        Name of the argument in error messages.

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
        return _BY_NAME[checks.choice(spec, name, _BY_NAME)]
    if callable(spec):
        return checks.function(spec, name, "a function of (shape, rng, dtype)", 3)
    if isinstance(spec, int | float | np.number) and not isinstance(spec, bool):
        return constant(checks.number(spec, name))
    raise TypeError(
        f"`{name}` must be a name, a number or a callable (shape, rng, dtype) -> array, got "
        f"{checks.describe(spec)}; give an array as minicnn.initializers.constant(array)"
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
    return checks.integers(shape, "shape", least=1)


def _uniform(limit: float, shape: tuple[int, ...], rng: Any, dtype: Any) -> np.ndarray:
    drawn = checks.generator(rng).uniform(-limit, limit, shape)
    return drawn.astype(checks.float_type(dtype))


_BY_NAME: dict[str, Initializer] = {
    function.__name__: function
    for function in (glorot_uniform, uniform_unit_scaling, he_normal, zeros, ones)
}
