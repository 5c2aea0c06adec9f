"""Functions without parameters: activations, shapes, arithmetic, sums, argmax, one_hot, cast.

Each is an `Op`, followed by the function that applies it to an array or a Tensor.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe, integer
from minicnn.core.context import Context
from minicnn.core.op import Op, Shape, Tensor, apply
from minicnn.kernels import elementwise
from minicnn.kernels.threads import depends_on_values

_SQRT_2_PI = math.sqrt(2 / math.pi)
_CUBIC = 0.044715  # of the approximation of GELU


class _Activation(Op):
    """The base of functions whose output has the shape and the type of the input."""

    # (x, y, dy=None): write the output; or with dy the gradient of the input, into y
    write: Callable[..., None]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        y = ctx.empty(self, "y", x.shape, x.dtype)
        self.write(x, y)
        ctx[self] = x
        return y

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        x = ctx[self]
        checks.gradient(dy, x.shape, x.dtype, self.label)
        if not need_dx:
            return None
        dx = ctx.empty(self, "dx", x.shape, x.dtype)
        self.write(x, dx, dy)
        return dx


class Relu(_Activation, repeatable=True):
    """y = max(x, 0);  dx = 0 where x <= 0, else dy."""

    alpha = 0.0  # the slope below zero

    def write(self, x: np.ndarray, y: np.ndarray, dy: np.ndarray | None = None) -> None:
        if dy is None:
            elementwise.relu(x, y, self.alpha)
        else:
            elementwise.relu_gradient(dy, x, y, slope=self.alpha)


def relu(inputs: Any, name: str | None = None) -> Any:
    """Return max(inputs, 0), element by element.

    Parameters
    ----------
    inputs : ndarray or Tensor
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        Of the same shape. The gradient is 0 where inputs <= 0.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.relu(np.array([-1.0, 2.0], np.float32))
    array([0., 2.], dtype=float32)
    """
    return apply(Relu(name), _floats(inputs, "relu"))


class LeakyRelu(Relu, repeatable=True):
    """y = alpha x where x <= 0, else x;  dx = alpha dy where x <= 0, else dy."""

    def __init__(self, alpha: float = 0.2, name: str | None = None) -> None:
        super().__init__(name)
        self.alpha = checks.number(alpha, "alpha")


def leaky_relu(inputs: Any, alpha: float = 0.2, name: str | None = None) -> Any:
    """Return inputs where they are positive, else alpha * inputs.

    Parameters
    ----------
    inputs : ndarray or Tensor
    alpha : float
        The slope below zero.
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        Of the same shape. The gradient is alpha where inputs <= 0.

    References
    ----------
    A. Maas, A. Hannun and A. Ng, "Rectifier nonlinearities improve neural network acoustic
    models", ICML 2013.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.leaky_relu(np.array([-1.0, 2.0], np.float32))
    array([-0.2,  2. ], dtype=float32)
    """
    return apply(LeakyRelu(alpha, name), _floats(inputs, "leaky_relu"))


class Gelu(_Activation, repeatable=True):
    """y = x P(x), P the standard normal distribution function;  dx = dy (P(x) + x P'(x)).

    With `approximate`, P(x) is (1 + tanh(u)) / 2 with u = sqrt(2 / pi) (x + 0.044715 x^3).
    """

    def __init__(self, approximate: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.approximate = checks.boolean(approximate, "approximate")

    def write(self, x: np.ndarray, y: np.ndarray, dy: np.ndarray | None = None) -> None:
        if not self.approximate:
            elementwise.gelu(x, y, dy)
            return
        depends_on_values()  # a tape does not hold what NumPy does
        p = (1 + np.tanh(_SQRT_2_PI * x * (1 + _CUBIC * x * x))) / 2
        slope = 2 * p * (1 - p) * _SQRT_2_PI * (1 + 3 * _CUBIC * x * x)
        y[...] = x * p if dy is None else dy * (p + x * slope)


def gelu(inputs: Any, approximate: bool = False, name: str | None = None) -> Any:
    """Return inputs * P(inputs), P the distribution function of the standard normal distribution.

        P(x) = (1 + erf(x / sqrt(2))) / 2

    Parameters
    ----------
    inputs : ndarray or Tensor
    approximate : bool
        Use P(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, which differs by less than
        0.001, to compute what models that were trained with it compute.
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    References
    ----------
    D. Hendrycks and K. Gimpel, "Gaussian error linear units", arXiv:1606.08415, 2016.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.gelu(np.array([-1.0, 1.0])).round(4)
    array([-0.1587,  0.8413])
    """
    return apply(Gelu(approximate, name), _floats(inputs, "gelu"))


class Sigmoid(_Activation, repeatable=True):
    """y = 1 / (1 + exp(-x));  dx = dy y (1 - y)."""

    write = staticmethod(functools.partial(elementwise.squash, is_tanh=False))


def sigmoid(inputs: Any, name: str | None = None) -> Any:
    """Return 1 / (1 + exp(-inputs)), element by element.

    Parameters
    ----------
    inputs : ndarray or Tensor
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.sigmoid(np.zeros(1, np.float32))
    array([0.5], dtype=float32)
    """
    return apply(Sigmoid(name), _floats(inputs, "sigmoid"))


class Tanh(_Activation, repeatable=True):
    """y = tanh(x);  dx = dy (1 - y^2)."""

    write = staticmethod(functools.partial(elementwise.squash, is_tanh=True))


def tanh(inputs: Any, name: str | None = None) -> Any:
    """Return the hyperbolic tangent, element by element.

    Parameters
    ----------
    inputs : ndarray or Tensor
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.tanh(np.zeros(1, np.float32))
    array([0.], dtype=float32)
    """
    return apply(Tanh(name), _floats(inputs, "tanh"))


class Identity(Op, repeatable=True):
    """y = x."""

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx[self] = x
        return x

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        checks.gradient(dy, ctx[self].shape, ctx[self].dtype, self.label)
        return dy if need_dx else None


def identity(inputs: Any, name: str | None = None) -> Any:
    """Return the inputs as they are.

    Parameters
    ----------
    inputs : ndarray or Tensor
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.identity(np.ones(1, np.float32))
    array([1.], dtype=float32)
    """
    return apply(Identity(name), _floats(inputs, "identity"))


class _AlongAxis(Op):
    """The base of ops with an axis."""

    def __init__(self, axis: int = -1, name: str | None = None) -> None:
        super().__init__(name)
        self.axis = axis


class Softmax(_AlongAxis, _Activation, repeatable="prediction"):
    """y = exp(x) / sum exp(x) along an axis;  dx = y (dy - sum(dy y))."""

    is_log = False

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        _axis(self.axis, input_shape, self.label)
        return input_shape

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        rows = elementwise.axis_to_end(x, self.axis)
        y = ctx.empty(self, "y", rows.shape, rows.dtype)
        elementwise.softmax(rows, y, self.is_log)
        y = elementwise.axis_from_end(y, self.axis)
        ctx[self] = y
        return y

    def write(self, y: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> None:
        np.multiply(y, dy - (dy * y).sum(axis=self.axis, keepdims=True), out=dx)


def softmax(logits: Any, axis: int = -1, name: str | None = None) -> Any:
    """Return the probabilities exp(logits) / sum exp(logits) along an axis.

    Parameters
    ----------
    logits : ndarray or Tensor
        Large values do not overflow: the largest is subtracted first.
    axis : int
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        Of the same shape; sums to 1 along `axis`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.softmax(np.zeros((1, 4), np.float32))
    array([[0.25, 0.25, 0.25, 0.25]], dtype=float32)
    """
    logits = _floats(logits, "softmax", "logits")
    return apply(Softmax(_axis(axis, logits.shape, "softmax"), name), logits)


class LogSoftmax(Softmax, repeatable="prediction"):
    """y = x - log sum exp(x) along an axis;  dx = dy - exp(y) sum(dy)."""

    is_log = True

    def write(self, y: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> None:
        np.subtract(dy, np.exp(y) * dy.sum(axis=self.axis, keepdims=True), out=dx)


def log_softmax(logits: Any, axis: int = -1, name: str | None = None) -> Any:
    """Return the logarithms of the probabilities, logits - log sum exp(logits), along an axis.

    Parameters
    ----------
    logits : ndarray or Tensor
        Large values do not overflow, and small probabilities do not become log 0.
    axis : int
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        Of the same shape.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.log_softmax(np.array([[0.0, 1000.0]]))
    array([[-1000.,     0.]])
    """
    logits = _floats(logits, "log_softmax", "logits")
    return apply(LogSoftmax(_axis(axis, logits.shape, "log_softmax"), name), logits)


_ACTIVATIONS: dict[Callable[..., Any], type[Op]] = {
    relu: Relu,
    leaky_relu: LeakyRelu,
    gelu: Gelu,
    softmax: Softmax,
    log_softmax: LogSoftmax,
    sigmoid: Sigmoid,
    tanh: Tanh,
    identity: Identity,
}


def activation(spec: Any) -> Op | None:
    """Return the op for an `activation` argument: the name of a function, the function or an Op."""
    if spec is None or isinstance(spec, Op):
        return spec
    for function, op in _ACTIVATIONS.items():
        if spec is function or (isinstance(spec, str) and spec.lower() == function.__name__):
            return op()
    names = ", ".join(repr(function.__name__) for function in _ACTIVATIONS)
    raise ValueError(
        f"`activation` must be one of {names}, the function of that name, an Op or None, got "
        f"{describe(spec)}"
    )


class Reshape(Op, repeatable=True):
    """The same elements in another shape, whose first size is the batch.

    `layers.Reshape` is the layer; it takes the shape of a row.
    """

    def __init__(self, shape: Any, name: str | None = None) -> None:
        super().__init__(name)
        self.shape = checks.integers(shape, "shape", least=-1)
        if self.shape.count(-1) > 1:
            raise ValueError(f"`shape` may hold one -1, got {list(self.shape)}")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        return (None, *row_shape(input_shape, self.shape[1:], self.label))

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx[self] = x.shape
        return x.reshape(self.shape)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        return dy.reshape(ctx[self]) if need_dx else None


def reshape(tensor: Any, shape: Any, name: str | None = None) -> Any:
    """Return the same elements in another shape.

    Parameters
    ----------
    tensor : ndarray or Tensor
        (N, ...)
    shape : list of int
        The first is the batch size, -1. If it is a number instead, one other size may be -1.
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError
        If the number of elements does not fit.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.reshape(np.zeros((2, 784), np.float32), [-1, 28, 28, 1]).shape
    (2, 28, 28, 1)
    """
    return apply(Reshape(shape, name), _array(tensor, "tensor"))


def row_shape(input_shape: Shape, wanted: tuple[int, ...], label: str) -> tuple[int, ...]:
    """Return the shape `wanted` of a row, with the size that replaces -1."""
    size = math.prod(axis for axis in input_shape[1:] if axis is not None)
    known = abs(math.prod(wanted))
    shape = tuple(size // max(known, 1) if axis == -1 else axis for axis in wanted)
    if math.prod(shape) != size:
        needs_batch = size < known and known % size == 0  # a row, not a batch?
        single = "a single row needs a batch axis, x[None]; otherwise " if needs_batch else ""
        raise ValueError(
            f"{label}: a row of shape {input_shape[1:]} has {size} elements, which do not fit into "
            f"the shape {list(wanted)}; {single}the sizes after the batch "
            f"(the first one, -1) must multiply to {size}"
        )
    return shape


class Argmax(_AlongAxis):
    """The index of the largest element along an axis; of equal elements the first."""

    output_dtype = np.int64

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        axis = _axis(self.axis, input_shape, self.label, 1)
        return input_shape[:axis] + input_shape[axis + 1 :]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        return np.argmax(x, axis=self.axis)


def argmax(input: Any, axis: int, name: str | None = None) -> Any:
    """Return the index of the largest element along an axis; of equal elements the first.

    Parameters
    ----------
    input : ndarray or Tensor
        (N, ...)
    axis : int
        For a Tensor any axis but 0, the batch.
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        int64, without that axis. There is no gradient.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.argmax(np.array([[0.1, 0.7, 0.2]]), axis=1)
    array([1])
    """
    input = _array(input, "input")
    return apply(Argmax(_axis(axis, input.shape, "argmax"), name), input)


class OneHot(Op):
    """Rows with `on_value` at the index, `off_value` elsewhere."""

    def __init__(
        self, depth: Any, on_value: float, off_value: float, axis: Any, dtype: Any, name: str | None
    ) -> None:
        super().__init__(name)
        self.depth = integer(depth, "depth", 1, checks.MOST)
        self.on_value = checks.number(on_value, "on_value")
        self.off_value = checks.number(off_value, "off_value")
        self.axis = axis
        self.output_dtype = checks.number_type(dtype)
        values = np.array([self.on_value, self.off_value])
        if self.output_dtype.kind != "f" and (values.astype(self.output_dtype) != values).any():
            raise ValueError(
                f"`on_value` and `off_value` must be values of {self.output_dtype}, got "
                f"{on_value} and {off_value}; choose another `dtype`"
            )

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        _check_indices(self.label, input_shape, dtype)
        axis = _axis(self.axis, (*input_shape, self.depth), self.label, 1)
        return (*input_shape[:axis], self.depth, *input_shape[axis:])

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        indices = np.asarray(x)
        _check_indices(self.label, indices.shape, indices.dtype)
        on = np.expand_dims(indices, -1) == np.arange(self.depth)
        rows = np.where(on, self.on_value, self.off_value).astype(self.output_dtype)
        return np.ascontiguousarray(np.moveaxis(rows, -1, self.axis))


def one_hot(
    indices: Any,
    depth: int,
    on_value: float = 1,
    off_value: float = 0,
    axis: int = -1,
    dtype: Any = np.float32,
    name: str | None = None,
) -> Any:
    """Return a row for each index, `on_value` at the index and `off_value` elsewhere.

    Parameters
    ----------
    indices : ndarray or Tensor
        Integers, (N, ...). An index outside [0, depth) gives a row of `off_value`; if the rows are
        the labels of a loss, it is an error.
    depth : int
        The number of classes.
    on_value, off_value : float
    axis : int
        The position of the new axis; -1 is the last.
    dtype : numpy type
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        (N, ..., depth)

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.one_hot(np.array([1, 5]), depth=3)
    array([[0., 1., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    indices = _array(indices, "indices", checks.labels)
    axis = _axis(axis, (*indices.shape, depth), "one_hot")
    return apply(OneHot(depth, on_value, off_value, axis, dtype, name), indices)


def check_labels(labels: np.ndarray, classes: int, label: str) -> None:
    """Raise ValueError if a label is not an integer in [0, classes); the error names the row."""
    is_class = (labels >= 0) & (labels < classes)
    if labels.dtype.kind == "f":
        is_class &= labels % 1 == 0
    if not is_class.all():
        row = int(np.argmin(is_class))
        remedy = "correct the labels or the number of classes"
        if labels.min() == 1 and labels.max() == classes:
            remedy = "labels that begin at 1 need y - 1"
        raise ValueError(
            f"{label}: the label of row {row} is {labels.reshape(-1)[row]}, outside the classes "
            f"0 to {classes - 1}; {remedy}"
        )


def _check_indices(label: str, shape: Shape, dtype: Any) -> None:
    """Raise unless the indices are integers."""
    if np.dtype(dtype).kind not in "iu":
        raise TypeError(
            f"{label}: the indices must be integers, got {dtype} of shape {shape}; give class "
            f"numbers: {checks.class_numbers('y', shape, dtype)}"
        )


class Cast(Op):
    """The same values in another type; the gradient is cast back."""

    def __init__(self, dtype: Any, name: str | None = None) -> None:
        super().__init__(name)
        self.output_dtype = checks.number_type(dtype)

    def forward(self, x: Any, ctx: Context) -> np.ndarray:
        x = checks.array(x, "x")
        ctx[self] = x.dtype
        return x.astype(self.output_dtype, copy=False)

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        return dy.astype(ctx[self], copy=False) if need_dx else None


def cast(x: Any, dtype: Any, name: str | None = None) -> Any:
    """Return the same values in another type.

    Parameters
    ----------
    x : ndarray or Tensor
    dtype : numpy type
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.cast(np.array([1.7]), np.int32)
    array([1], dtype=int32)
    """
    return apply(Cast(dtype, name), x)


class Add(Op, repeatable="prediction"):  # in training only passes of one input are repeated
    """y = a + b;  da = db = dy."""

    takes_relu = True  # fusion: `linear` can add a ReLU

    def forward(  # type: ignore[override]  # two inputs
        self, a: Any, b: Any, ctx: Context, relu: bool = False, last: None = None
    ) -> Any:
        _check_alike(self.label, a, b)
        y = total(a, b, ctx, self, relu)
        ctx[self] = y, relu
        return y

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        y, relu = ctx[self]
        if isinstance(y, np.ndarray):
            checks.gradient(dy, y.shape, y.dtype, self.label)
        if relu:
            dy = relu_gradient(dy, y, ctx, self)
        return dy, dy

    linear = forward
    linear_backward = backward


def total(a: Any, b: Any, ctx: Context, owner: Any, relu: bool = False) -> Any:
    """Return a + b, or max(a + b, 0); arrays in the buffer (owner, "sum") of the workspace."""
    if not isinstance(a, np.ndarray):  # losses are numbers
        return a + b
    y = ctx.empty(owner, "sum", a.shape, a.dtype)
    elementwise.add(a, b, y, relu)
    return y


def relu_gradient(
    dy: np.ndarray, y: np.ndarray, ctx: Context, owner: Any, scale: float = 1.0
) -> np.ndarray:
    """Return scale * dy where the output y of ReLU is positive, else 0, in a buffer of `owner`."""
    dz = ctx.empty(owner, "dz", y.shape, y.dtype)
    elementwise.relu_gradient(dy, y, dz, scale)
    return dz


class Multiply(Op):
    """y = a b, element by element;  da = dy b,  db = dy a."""

    def forward(  # type: ignore[override]  # two inputs
        self, a: Any, b: Any, ctx: Context
    ) -> Any:
        _check_alike(self.label, a, b)
        ctx[self] = a, b
        return a * b

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        a, b = ctx[self]
        return dy * b, dy * a


class Scale(Op):
    """y = factor x + offset, with two numbers;  dx = factor dy."""

    def __init__(self, factor: float, offset: float, name: str | None = None) -> None:
        super().__init__(name)
        self.factor = factor
        self.offset = offset

    def forward(self, x: Any, ctx: Context) -> Any:
        return self.factor * x + self.offset

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        return self.factor * dy if need_dx else None


def add(x: Any, y: Any, name: str | None = None) -> Any:
    """Return x + y, element by element; for Tensors also written ``x + y``.

    Nothing is broadcast, except numbers. Likewise ``x - y``, ``x * y``, ``-x`` and ``x / number``.

    Parameters
    ----------
    x, y : ndarray, Tensor or number
        Of the same shape and type, float32 or float64; or one of them a number.
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError
        If the shapes or types differ.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.add(np.ones(2, np.float32), np.array([1, 2], np.float32))
    array([2., 3.], dtype=float32)
    >>> x = mc.Graph().placeholder("x", (None, 3), np.float32)
    >>> mc.add(x, 1 - 2 * x)
    Tensor('add', shape=(None, 3), dtype=float32)
    """
    return _arithmetic(Add, x, y, name)


_NUMBER = int | float | np.integer | np.floating


def _arithmetic(kind: type[Op], x: Any, y: Any, name: str | None = None) -> Any:
    """Apply Add or Multiply to two arrays or Tensors, or Scale if one of them is a number."""
    label = name or kind.kind
    if isinstance(x, _NUMBER):
        x, y = y, x
    if isinstance(y, _NUMBER):
        number = checks.number(y, "number")
        scale = Scale(1.0, number, name) if kind is Add else Scale(number, 0.0, name)
        return apply(scale, _floats(x, label, "x"))
    x = _floats(x, label, "x")
    y = _floats(y, label, "y")
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        _check_alike(label, x, y)
    return apply(kind(name), x, y)


# The operators of Tensor are set here because `core.op` does not import the ops.
for _name, _operator in {
    "__add__": add,
    "__radd__": add,
    "__sub__": lambda x, y: add(x, -y),
    "__rsub__": lambda x, y: add(-x, y),
    "__mul__": lambda x, y: _arithmetic(Multiply, x, y),
    "__rmul__": lambda x, y: _arithmetic(Multiply, x, y),
    "__truediv__": lambda x, y: _arithmetic(Multiply, x, 1 / y),
    "__neg__": lambda x: _arithmetic(Multiply, x, -1),
}.items():
    setattr(Tensor, _name, _operator)


def _check_alike(label: str, a: Any, b: Any) -> None:
    """Raise unless two values have the same shape and type; losses are numbers, of any type."""
    forms = [(v.shape, v.dtype) if getattr(v, "shape", ()) else None for v in (a, b)]
    if forms[0] != forms[1]:
        raise ValueError(
            f"{label}: `x` and `y` must have the same shape and type, got {describe(a)} and "
            f"{describe(b)}; nothing is broadcast: use mc.cast, mc.reshape, or to repeat one along "
            "an axis of size 1, mc.concat([x] * 3, axis=1)"
        )


class Concat(_AlongAxis):
    """The inputs one after the other along an axis; the gradient of each is its part of dy."""

    def build(self, input_shape: Any, rng: Any, dtype: Any = np.float32) -> Shape:
        shapes = input_shape if isinstance(input_shape[0], tuple) else (input_shape,)
        axis = _axis(self.axis, shapes[0], f"{self.label}, `values`", 1)
        if len({(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}) > 1:
            raise ValueError(
                f"{self.label}: `values` must have the same sizes except along `axis` "
                f"{self.axis}, got the shapes {' and '.join(map(str, shapes))}; reshape them first"
            )
        return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])

    def forward(self, *inputs_and_ctx: Any) -> Any:
        *inputs, ctx = inputs_and_ctx
        y = np.concatenate(inputs, self.axis)
        ctx[self] = y, [x.shape[self.axis] for x in inputs]
        return y

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        y, sizes = ctx[self]
        checks.gradient(dy, y.shape, y.dtype, self.label)
        pieces = np.split(dy, np.cumsum(sizes[:-1]), self.axis)
        gradients = tuple(np.ascontiguousarray(piece) if need_dx else None for piece in pieces)
        return gradients if len(gradients) > 1 else gradients[0]


def concat(values: Any, axis: int, name: str | None = None) -> Any:
    """Join arrays or Tensors along an axis.

    Parameters
    ----------
    values : list of ndarray or Tensor
        Of one type, and of the same sizes except along `axis`.
    axis : int
        Any axis but 0, the batch.
    name : str, optional

    Returns
    -------
    ndarray or Tensor

    Raises
    ------
    ValueError, TypeError
        If the shapes or types do not fit.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.concat([np.zeros((1, 2)), np.ones((1, 3))], axis=1)
    array([[0., 0., 1., 1., 1.]])
    """
    values = [_array(value, "values") for value in checks.sequence(values, "values", "Tensors")]
    if not values:
        raise ValueError("`values` must hold at least one Tensor or array, got none")
    op = Concat(axis, name)
    if len({value.dtype for value in values}) > 1:
        raise TypeError(f"{op.label}: `values` must have one type, got {values}; use mc.cast")
    if not isinstance(values[0], Tensor):
        op.build(tuple(np.shape(value) for value in values), None)
    return apply(op, *values)


class ReduceSum(Op):
    """The sum along some axes, or of all elements; each element gets the gradient of its sum."""

    reduction: Any = staticmethod(np.sum)

    def __init__(self, axes: tuple[int, ...], keepdims: bool, name: str | None = None) -> None:
        super().__init__(name)
        self.axes = axes  # counted from the front
        self.keepdims = checks.boolean(keepdims, "keepdims")

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        if 0 in self.axes and len(self.axes) < len(input_shape):
            raise ValueError(
                f"{self.label}: `axis` 0 of {input_shape} is the batch, which can be reduced only "
                "together with all other axes (axis=None)"
            )
        ones = self._with_ones(input_shape)
        return tuple(n for i, n in enumerate(ones) if self.keepdims or i not in self.axes)

    def _with_ones(self, shape: Any) -> Any:
        """Return a shape in which the reduced axes have size 1."""
        return tuple(1 if axis in self.axes else size for axis, size in enumerate(shape))

    def forward(self, x: Any, ctx: Context) -> Any:
        y = self.reduction(x, axis=self.axes, dtype=np.float64, keepdims=self.keepdims)
        ctx[self] = x.shape, x.dtype
        return y.astype(x.dtype)

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        shape, dtype = ctx[self]
        dy = np.asarray(dy, dtype).reshape(self._with_ones(shape))  # of a loss a number
        return np.ascontiguousarray(np.broadcast_to(dy, shape)) if need_dx else None


class ReduceMean(ReduceSum):
    """The mean along some axes, or of all elements; each has an equal part of its gradient."""

    reduction = staticmethod(np.mean)

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        dx = super().backward(dy, ctx, need_dx)
        return None if dx is None else dx / (dx.size // np.size(dy))


def reduce_sum(
    input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None
) -> Any:
    """Return the sum along some axes, or of all elements.

    It is added up in float64.

    Parameters
    ----------
    input_tensor : ndarray or Tensor
        (N, ...), float32 or float64.
    axis : int or list of int, optional
        By default all axes. For a Tensor, axis 0, the batch, only together with all others.
    keepdims : bool
        Whether the axes stay, with size 1.
    name : str, optional

    Returns
    -------
    ndarray or Tensor
        Of the type of `input_tensor`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.reduce_sum(np.array([[1.0, 2.0], [3.0, 4.0]]), axis=1)
    array([3., 7.])
    """
    return _reduce(ReduceSum, input_tensor, axis, keepdims, name)


def reduce_mean(
    input_tensor: Any, axis: Any = None, keepdims: bool = False, name: str | None = None
) -> Any:
    """Return the mean along some axes, or of all elements.

    The mean of all elements of a Tensor can be a loss. It is added up in float64.

    Parameters
    ----------
    input_tensor, axis, keepdims, name
        As for `reduce_sum`.

    Returns
    -------
    ndarray or Tensor
        Of the type of `input_tensor`.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> image = mc.Graph().placeholder("image", (None, 7, 7, 64), np.float32)
    >>> mc.reduce_mean(image, axis=[1, 2])
    Tensor('reduce_mean', shape=(None, 64), dtype=float32)
    """
    return _reduce(ReduceMean, input_tensor, axis, keepdims, name)


def _reduce(kind: type[ReduceSum], x: Any, axis: Any, keepdims: bool, name: str | None) -> Any:
    x = _floats(x, name or kind.kind, "input_tensor")
    if axis is None:
        axis = range(len(x.shape))
    given = [axis] if isinstance(axis, int | np.integer) else checks.sequence(axis, "axis")
    axes = sorted({_axis(each, x.shape, kind.kind) % len(x.shape) for each in given})
    return apply(kind(tuple(axes), keepdims, name), x)


def _array(value: Any, name: str, check: Callable[..., np.ndarray] = checks.array) -> Any:
    """Return a Tensor unchanged, anything else as an array."""
    return value if isinstance(value, Tensor) else check(value, name)


def _floats(value: Any, name: str, argument: str = "inputs") -> Any:
    """Return a Tensor or an array of floats; raise for other types."""
    result = _array(value, argument)
    if result.dtype not in (np.float32, np.float64):
        raise TypeError(
            f"{name}: float32 or float64 expected, got {describe(result)}; cast `{argument}` first"
        )
    return result


def _axis(axis: Any, shape: Shape, label: str, least: int = 0) -> int:
    """Return an axis, counted from the front; raise unless it is from `least` to the last one."""
    axis = integer(axis, "axis", least=-checks.MOST)
    rank = len(shape)
    if not (-rank <= axis < rank and axis % rank >= least):
        after = " after the batch" if least else ""
        raise ValueError(
            f"{label}: no `axis` {axis}{after} in an input of shape {shape}; give another one"
        )
    return axis % rank
