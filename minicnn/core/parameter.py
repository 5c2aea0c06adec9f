"""A trainable array and its gradient."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.hints import Hinting


class Parameter(Hinting):
    """A named array that an optimizer changes.

    Parameters
    ----------
    name : str
        Such as ``"conv2d/kernel"``: the name in checkpoints.
    value : ndarray
        float32 or float64. The only copy of the weight, in C order. An array that is assigned is
        copied into it: it must have the same shape.
    trainable : bool
        If False, optimizers do not change the value.

    Attributes
    ----------
    grad : ndarray
        An array of the shape of `value`. A backward pass overwrites it: no reset is needed.
    key : str
        The last part of the name: ``"kernel"``.
    scope : str or None
        The part before it: ``"conv2d"``. If the layer is renamed, this is, too.
    regularizer : callable or None
        A function of the value whose result is added to the loss, such as ``l2_regularizer(0.001)``
        of `minicnn.layers`; it has a method ``gradient(value)``.
    frozen : bool
        True if the `trainable` of the layer is False; the parameter is not trained then. Setting
        the parameter's own `trainable` sets it to False.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> bias = mc.Parameter("dense/bias", np.ones(3, np.float32))
    >>> bias.grad
    array([0., 0., 0.], dtype=float32)
    """

    def __init__(self, name: str, value: np.ndarray, trainable: bool = True) -> None:
        self.name = name
        self.trainable = trainable
        self.regularizer: Any = None
        checks.float_type(checks.array(value, "value").dtype, "value")
        self._value = np.require(value, requirements=["C", "W"])
        self._grad: np.ndarray | None = None

    @property
    def name(self) -> str:
        return self.key if self.scope is None else f"{self.scope}/{self.key}"

    @name.setter
    def name(self, name: str) -> None:
        before, slash, self.key = checks.text(name, "name").rpartition("/")
        self.scope: str | None = before if slash else None

    @property
    def trainable(self) -> bool:
        return self._trainable and not self.frozen

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        self._trainable = checks.boolean(trainable, "trainable")
        self.frozen = False

    @property
    def value(self) -> np.ndarray:
        return self._value

    @value.setter
    def value(self, value: np.ndarray) -> None:
        self._copy("value", value)

    @property
    def grad(self) -> np.ndarray:
        if self._grad is None:  # made at the first backward pass: predict never needs it
            self._grad = np.zeros_like(self._value)
        return self._grad

    @grad.setter
    def grad(self, grad: np.ndarray) -> None:
        self._copy("grad", grad)

    def _copy(self, attribute: str, new: Any) -> None:
        """Copy an array into `value` or `grad`."""
        array = self.writable(attribute)
        new = checks.array(new, attribute)
        if new.shape != array.shape:
            raise ValueError(
                f"{self.name}: `{attribute}` must have the shape {array.shape}, got "
                f"{checks.describe(new)}{_transposed(new.shape, array.shape)}"
            )
        array[...] = new

    def penalty(self) -> float:
        """Return the value of the regularizer; 0 without one."""
        return 0.0 if self.regularizer is None else float(self.regularizer(self.value))

    def add_penalty_gradient(self, scale: float = 1.0) -> None:
        """Add the gradient of the regularizer, multiplied by `scale`, to `grad`."""
        if self.regularizer is not None:
            grad = self.writable("grad")
            grad += scale * self.regularizer.gradient(self.value)

    def writable(self, attribute: str) -> np.ndarray:
        """Return `value` or `grad`; raise if it is read-only, since kernels do not check that."""
        array: np.ndarray = getattr(self, attribute)
        if not array.flags.writeable:
            raise ValueError(
                f"{self.name}: the array `{attribute}` is read-only; make it writable with "
                f"parameter.{attribute}.flags.writeable = True"
            )
        return array

    @property
    def shape(self) -> tuple[int, ...]:
        return self._value.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._value.dtype

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, shape={self.shape}, dtype={self.dtype})"


def _transposed(got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return how to turn weights of other libraries around; "" if that does not help."""
    for axes in ((1, 0), (2, 3, 1, 0)):  # (units, inputs); (filters, channels, height, width)
        if len(got) == len(axes) and tuple(got[axis] for axis in axes) == wanted:
            return f"; exchange its axes: array.transpose{axes}"
    return ""


def sum_of_squares(array: np.ndarray) -> float:
    """Return the sum of the squares of all elements, added in float64."""
    flat = array.reshape(-1)
    # Unlike a dot product, einsum does not call BLAS, whose threads may change the last bits.
    return float(np.einsum("i,i->", flat, flat, dtype=np.float64))


def count_parameters(parameters: Iterable[Parameter]) -> int:
    """Return the number of elements of all parameters."""
    return sum(parameter.value.size for parameter in parameters)


def parameter_table(
    head: Sequence[str], rows: Sequence[Sequence[str]], parameters: Sequence[Parameter]
) -> str:
    """Return a table: the head, the rows, and the number and size of the parameters."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i == len(head) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (head, ["-" * width for width in widths], *rows)
    ]
    size = sum(parameter.value.nbytes for parameter in parameters)
    text = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    lines.append(f"total: {count_parameters(parameters):,} parameters, {text}")
    return "\n".join(lines)
