"""Symbolic tensors, and the contract of what computes them.

An `Op` computes an array from arrays and turns the gradient of its output into the gradients of its
inputs. `apply(op, ...)` is the one door: given arrays it runs the op, given a `Tensor` it notes the
op in that tensor's graph and returns the tensor that will come out.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe
from minicnn.core.context import Context
from minicnn.core.parameter import Parameter

Shape = tuple[int | None, ...]


class Built(NamedTuple):
    """What an op was built for, and the shape of its output."""

    input_shape: Shape
    dtype: Any
    output_shape: Shape


class Op:
    """A differentiable function of arrays; layers are ops with parameters.

    Parameters
    ----------
    name : str, optional
        How errors, summaries and checkpoints call it; without one, the graph or model names it
        after its class: ``conv2d``, ``conv2d_1``.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> class Double(mc.Op):
    ...     def forward(self, x, ctx):
    ...         return 2 * x
    ...     def backward(self, dy, ctx, need_dx=True):
    ...         return 2 * dy
    >>> Double()(np.ones(2, np.float32))
    array([2., 2.], dtype=float32)
    """

    output_dtype: Any = None  # None: that of the input
    _built: Built | None = None  # set by `build`
    _name: str | None = None
    _trainable = True

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "build" in vars(cls):
            cls.build = _recorded(cls.build)  # type: ignore[method-assign]

    @property
    def name(self) -> str | None:
        """What errors, summaries and checkpoints call it; its own parameters follow a change."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        before = f"{self.label}/"
        self._name = checks.optional(checks.text, name, "name")
        for parameter in own_parameters(self):
            if parameter.name.startswith(before):
                parameter.name = f"{self.label}/{parameter.name.removeprefix(before)}"

    @property
    def trainable(self) -> bool:
        """Whether optimizers change its parameters; it may be set before and after `build`.

        Setting it sets it for the ops inside, too. A parameter that is not trainable by itself
        stays so.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, trainable: bool) -> None:
        trainable = checks.boolean(trainable, "trainable")
        for op in parts(self):
            op._trainable = trainable
        for parameter in self.parameters:
            parameter.frozen = not trainable

    @property
    def kind(self) -> str:
        """The name of the class as it stands in default names: MaxPooling2D, max_pooling2d."""
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(self).__name__).lower()

    @property
    def label(self) -> str:
        """What errors call it."""
        return self.name or self.kind

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters among the attributes, and those of the ops among them, in their order."""
        return tuple(parameter for op in parts(self) for parameter in own_parameters(op))

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        """Check the shape of the input, make the parameters, return the shape of the output."""
        return input_shape

    def forward(self, x: Any, ctx: Context) -> Any:
        """Return the output; leave what backward needs in ``ctx[self]``."""
        raise TypeError(f"{type(self).__name__} must define forward(self, x, ctx)")

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        """Return the gradient of the input; overwrite each parameter's `grad`."""
        raise TypeError(f"{self.label} has no gradient: define backward, or keep it off the loss")

    def __call__(self, inputs: Any) -> Any:
        return apply(self, inputs)


def parts(op: Op, above: tuple[Op, ...] = ()) -> Iterator[Op]:
    """Yield an op and the ops that it is made of: those in its public attributes."""
    if op in above:
        raise ValueError(
            f"{op.label} is a part of itself, through the attributes of {above[-1].label}; give "
            "the one that only refers to another a name that begins with _"
        )
    yield op
    for name, value in vars(op).items():
        members = value if isinstance(value, list | tuple) else [value]
        if not name.startswith("_"):
            for member in members:
                if isinstance(member, Op):
                    yield from parts(member, (*above, op))


def own_parameters(op: Op) -> list[Parameter]:
    """Return the parameters among the attributes of an op, without those of the ops inside."""
    return [value for value in vars(op).values() if isinstance(value, Parameter)]


def forget(op: Op) -> None:
    """Mark an op and the ops inside as not built, so that they may be built again."""
    for part in parts(op):
        part._built = None


@contextlib.contextmanager
def all_or_nothing(op: Op) -> Iterator[None]:
    """Restore an op and the ops inside where the block raises."""
    before = [(op, vars(op).copy()) for op in parts(op)]
    names = [(parameter, parameter.name) for parameter in op.parameters]
    try:
        yield
    except BaseException:
        for part, attributes in before:
            part.__dict__ = attributes
        for parameter, name in names:
            parameter.name = name
        raise


def _recorded(build: Callable[..., Shape]) -> Callable[..., Shape]:
    """Return a `build` that records what it built; where it fails, the op stays as it was."""

    @functools.wraps(build)
    def build_and_record(self: Op, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        with all_or_nothing(self):
            shape = build(self, input_shape, rng, dtype)
            self._built = Built(tuple(input_shape), dtype, shape)
            for parameter in own_parameters(self):
                parameter.frozen = not self.trainable
        return shape

    return build_and_record


def give_names(ops: list[Op], prefix: str) -> None:
    """Name those that have no name after their classes, each differently."""
    taken = {op.name for op in ops if op.name}
    for op in ops:
        if op.name is None:
            op.name = checks.unique(prefix + op.kind, taken)
            taken.add(op.name)


class GraphLike(Protocol):
    """What a tensor knows of the graph that it lies in."""

    def add(self, op: Op, inputs: "tuple[Tensor, ...]") -> "Tensor": ...


class Tensor:
    """A value that a graph will compute: its name, its shape and its type.

    Parameters
    ----------
    graph : Graph
    name : str
    shape : tuple
        With None for the batch.
    dtype : numpy type
    op : Op, optional
        What computes it; None where the value is fed.
    inputs : tuple of Tensor
        What it is computed from.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> graph = mc.Graph()
    >>> x = graph.placeholder("x", (None, 784), np.float32)
    >>> mc.reshape(x, [-1, 28, 28, 1])
    Tensor('reshape', shape=(None, 28, 28, 1), dtype=float32)
    """

    def __init__(
        self,
        graph: GraphLike,
        name: str,
        shape: Shape,
        dtype: Any,
        op: Op | None = None,
        inputs: "tuple[Tensor, ...]" = (),
    ) -> None:
        self.graph, self.name = graph, checks.text(name, "name")
        self.shape, self.dtype = checks.shape(shape, "shape"), checks.number_type(dtype)
        self.op, self.inputs = op, inputs

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def __bool__(self) -> bool:
        raise TypeError(
            f"{self!r} has no value yet: it is computed when the graph runs. Decide by `mode` or "
            "`params` instead."
        )

    def _refuse(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"{self!r} has no value yet, so NumPy's functions and arithmetic cannot use it; scale "
            "arrays before they are given (x / 255), or use minicnn's functions (softmax, argmax, "
            "cast, reshape, one_hot) or a Layer of your own"
        )

    __array__ = __array_ufunc__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __matmul__ = __rmatmul__ = __pow__ = __neg__ = _refuse


def apply(op: Op, *inputs: Any) -> Any:
    """Run `op` on arrays, or note it in the graph of the Tensor among its inputs."""
    tensors = [value for value in inputs if isinstance(value, Tensor)]
    if not tensors:
        forward: Callable[..., Any] = op.forward
        return forward(*inputs, Context(save=False))
    if len(tensors) < len(inputs):
        wrong = next(value for value in inputs if not isinstance(value, Tensor))
        remedy = "" if wrong is None else "; give the array as a feature of input_fn"
        raise TypeError(
            f"{op.label}: arrays and Tensors do not mix, got {describe(wrong)} beside "
            f"{tensors[0]!r}{remedy}"
        )
    if any(tensor.graph is not tensors[0].graph for tensor in tensors):
        raise ValueError(
            f"{op.label}: the inputs belong to different graphs; build all in one model_fn"
        )
    return tensors[0].graph.add(op, tuple(tensors))
