"""Differentiable functions (`Op`) and the symbolic values that a graph computes (`Tensor`).

An `Op` computes an array from arrays, and the gradients of its inputs from that of its output.
`apply(op, ...)` runs an op on arrays, or adds it to the graph of a `Tensor`.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from minicnn.core import checks, hints
from minicnn.core.checks import describe
from minicnn.core.context import Context
from minicnn.core.parameter import Parameter

Shape = tuple[int | None, ...]


class Built(NamedTuple):
    """The input shape and dtype that an op was built for, and its output shape."""

    input_shape: Shape
    dtype: Any
    output_shape: Shape


class Op(hints.Hinting):
    """A differentiable function of arrays; layers are ops with parameters.

    An op may have several inputs: ``forward(self, a, b, ctx)``, applied as ``op(a, b)``. Its
    `backward` returns a tuple with one gradient for each input, None where there is none. If the
    output has another shape than the inputs, or theirs differ, `build` returns it; it gets a tuple
    with the shape of each input. `check_gradients` checks such an op, too.

    Parameters
    ----------
    name : str, optional
        The name in errors, summaries and checkpoints. By default a graph or model names it after
        its class: ``conv2d``, ``conv2d_1``.

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

    The squared distance of two rows:

    >>> class Distance(mc.Op):
    ...     def build(self, input_shape, rng, dtype=np.float32):
    ...         return input_shape[0][:1]
    ...     def forward(self, a, b, ctx):
    ...         ctx[self] = a - b
    ...         return ((a - b) ** 2).sum(axis=1)
    ...     def backward(self, dy, ctx, need_dx=True):
    ...         da = 2 * dy[:, None] * ctx[self]
    ...         return da, -da
    >>> Distance()(np.ones((1, 3)), np.zeros((1, 3)))
    array([3.])
    >>> print(mc.check_gradients(Distance(), [(4, 3), (4, 3)]).ok)
    True
    """

    kind = "op"  # the class in default names: max_pooling2d for MaxPooling2D
    output_dtype: Any = None  # None: that of the inputs
    # Whether `forward` and `backward` consist of calls of kernels and of `threads.step`, and of
    # views in C order, so that these calls alone can be repeated: True, False, or "prediction" if
    # that holds only for predictions. A class says so by `class Relu(Op, repeatable=True)`. It is
    # not inherited: a subclass may compute something else.
    repeatable: Any = False
    _built: Built | None = None  # set by `build`
    _name: str | None = None
    _trainable = True
    _changes = 0  # how often a public attribute was set to another object

    def __init__(self, name: str | None = None) -> None:
        self.name = name

    def __init_subclass__(cls, repeatable: Any = False) -> None:
        super().__init_subclass__()
        cls.repeatable = repeatable
        if "kind" not in vars(cls):
            cls.kind = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
        if "build" in vars(cls):
            cls.build = _recorded(cls.build)  # type: ignore[method-assign]

    if not TYPE_CHECKING:  # a type checker would then allow to set any attribute

        def __setattr__(self, name: str, value: Any) -> None:
            before = vars(self).get(name)
            super().__setattr__(name, value)
            if not name.startswith("_") and vars(self).get(name) is not before:
                self._changes += 1

    @property
    def name(self) -> str | None:
        """The name in errors, summaries and checkpoints; its own parameters follow a change."""
        return self._name

    @name.setter
    def name(self, name: str | None) -> None:
        before = self.label
        self._name = checks.optional(checks.text, name, "name")
        for parameter in own_parameters(self):
            if parameter.scope == before:
                parameter.scope = self.label

    @property
    def trainable(self) -> bool:
        """Whether optimizers change its parameters; can be set before and after `build`.

        Setting it also sets it for the ops inside. A parameter whose own `trainable` is False is
        never trained.
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
    def label(self) -> str:
        """The name in errors: `name`, or the kind of an op without a name."""
        return self.name or self.kind

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters of the op and of the ops inside, in the order of the attributes."""
        return tuple(parameter for op in parts(self) for parameter in own_parameters(op))

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        """Check the input shape, create the parameters and return the output shape.

        An op of several inputs gets a tuple with the shape of each. By default the output has the
        shape of the inputs, which must be equal.
        """
        if not input_shape or not isinstance(input_shape[0], tuple):
            return input_shape
        shapes: Any = input_shape
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{self.label}: the inputs have different shapes, {' and '.join(map(str, shapes))};"
                " define build, which checks them and returns the shape of the output"
            )
        return shapes[0]

    def forward(self, x: Any, ctx: Context) -> Any:
        """Return the output; save what backward needs in ``ctx[self]``.

        An op of several inputs defines ``forward(self, a, b, ctx)``.
        """
        raise TypeError(f"{type(self).__name__} must define forward(self, x, ctx)")

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        """Return the gradient of the input; overwrite each parameter's `grad`.

        An op of several inputs returns a tuple with the gradient of each input, or None for those
        that have no gradient.
        """
        raise TypeError(f"{self.label} has no gradient: define backward, or keep it off the loss")

    def __call__(self, *inputs: Any) -> Any:
        """Run the op on arrays, or add it to the graph of its Tensors; one for each input."""
        return apply(self, *inputs)


_OPS = Op, list, tuple


def parts(op: Op, above: tuple[Op, ...] = ()) -> list[Op]:
    """Return an op and the ops inside: those in its public attributes, also in lists of them."""
    if op in above:
        raise ValueError(
            f"{op.label} is a part of itself, through the attributes of {above[-1].label}; give "
            "the one that only refers to another a name that begins with _"
        )
    found = [op]
    for name, value in vars(op).items():
        if isinstance(value, _OPS) and not name.startswith("_"):
            for member in [value] if isinstance(value, Op) else value:
                if isinstance(member, Op):
                    found += parts(member, (*above, op))
    return found


def gradients(op: Op, dx: Any, inputs: int) -> tuple[Any, ...]:
    """Return what `backward` has returned as a tuple with one gradient for each input."""
    if inputs == 1:
        return (dx,)
    if not isinstance(dx, tuple) or len(dx) != inputs:
        raise ValueError(
            f"{op.label}: backward must return a tuple of {inputs} gradients, one for each input "
            f"(None for an input without one), got {describe(dx)}"
        )
    return dx


def own_parameters(op: Op) -> list[Parameter]:
    """Return the parameters among the attributes of an op, without those of the ops inside."""
    return [value for value in vars(op).values() if isinstance(value, Parameter)]


def named_parameters(op: Op) -> dict[str, Parameter]:
    """Return the parameters of an op and of the ops inside by name; names must differ."""
    named: dict[str, Parameter] = {}
    for parameter in op.parameters:
        if parameter.name in named:
            raise ValueError(
                f"{op.label}: two parameters are called {parameter.name!r}; set the `name` of one "
                "of the two layers"
            )
        named[parameter.name] = parameter
    return named


def give_names(ops: Iterable[Op], prefix: str) -> None:
    """Name the ops that have no name after their classes; the names differ."""
    ops = list(ops)
    taken = {op.name for op in ops if op.name}
    for op in ops:
        if op.name is None:
            op.name = checks.unique(prefix + op.kind, taken)
            taken.add(op.name)


def forget(op: Op) -> None:
    """Mark an op and the ops inside as not built, so that they can be built again."""
    for part in parts(op):
        part._built = None


@contextlib.contextmanager
def all_or_nothing(op: Op) -> Iterator[None]:
    """If the block raises, restore the attributes of an op, of the ops inside and all names."""
    before = [(part, vars(part).copy()) for part in parts(op)]
    scopes = [(parameter, parameter.scope) for parameter in op.parameters]
    try:
        yield
    except BaseException:
        for part, attributes in before:
            part.__dict__ = attributes
        for parameter, scope in scopes:
            parameter.scope = scope
        raise


def _recorded(build: Callable[..., Shape]) -> Callable[..., Shape]:
    """Wrap the `build` of a class: note what it was built for; if it fails, change nothing.

    `build` sets attributes one after the other, and a layer that contains others may have built
    some of them when the next one fails.
    """

    @functools.wraps(build)
    def build_and_record(self: Op, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        with all_or_nothing(self):
            shape = build(self, input_shape, rng, dtype)
            self._built = Built(tuple(input_shape), dtype, shape)
            for parameter in own_parameters(self):
                parameter.frozen = not self.trainable
        return shape

    return build_and_record


def _refusing(problem: str) -> Any:
    """Return a method of Tensor that raises an error."""

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{self!r} has no value yet, so {problem}")

    return refuse


class Tensor:
    """A value that a graph will compute: its name, shape and dtype.

    Parameters
    ----------
    graph : Graph
    name : str
    shape : tuple
        With None for the batch.
    dtype : numpy type
    op : Op, optional
        The op that computes it; None for a placeholder.
    inputs : tuple of Tensor
        The inputs of the op.

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
        graph: Any,
        name: str,
        shape: Shape,
        dtype: Any,
        op: Op | None = None,
        inputs: "tuple[Tensor, ...]" = (),
    ) -> None:
        self.graph = graph
        self.name = checks.text(name, "name")
        self.shape = checks.shape(shape, "shape")
        self.dtype = checks.number_type(dtype)
        self.op = op
        self.inputs = inputs

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    # `minicnn.ops` adds + - * and / by a number. NumPy leaves ndarray + Tensor to the Tensor.
    __array_ufunc__ = None
    __array__ = __array_function__ = _refusing(
        "NumPy's functions cannot use it; use minicnn's (concat, reduce_mean, reduce_sum, softmax, "
        "argmax, cast, reshape, one_hot) or an Op of your own"
    )
    __bool__ = _refusing("it is neither true nor false; decide by `mode` or `params` instead")
    __iter__ = None  # so that a check for a list refuses it by the name of the argument
    __len__ = _refusing("it has no rows; the sizes of a row are in `shape`")
    __float__ = __int__ = __complex__ = _refusing(
        "it is not a number; return it in `predictions`, or print it with a LoggingTensorHook"
    )
    __lt__ = __le__ = __gt__ = __ge__ = _refusing(
        "it cannot be compared; compare the arrays that predict returns, or write an Op"
    )
    __rtruediv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = __abs__ = _refusing(
        "only + - * and / by a number work; write x * x for a square, layers.dense for a product "
        "of matrices, or an Op of your own"
    )


def apply(op: Op, *inputs: Any) -> Any:
    """Run an op on arrays, or add it to the graph of its Tensors and return the output Tensor."""
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
