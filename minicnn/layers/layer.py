"""What every layer is: an op that is built for one shape and one type of input."""

import math
from typing import Any

import numpy as np

from minicnn import initializers
from minicnn.core import checks
from minicnn.core.op import Built, Op, Shape, all_or_nothing, forget, parts
from minicnn.core.parameter import Parameter


class Layer(Op):
    """The base of all layers.

    A layer of one's own defines `forward` and `backward`, and `build` where its output has another
    shape or it has parameters: each attribute that is a `Parameter` is one of its `parameters`.
    A `build` that fails leaves the layer, and those that it is made of, as they were.

    Calling `build` of a layer again draws new start values for its own parameters. Models and
    graphs do not do that to their layers: one that was built before keeps its values. A layer that
    is made of other layers does the same if its `build` builds them with `build_part`.

    Parameters
    ----------
    name : str, optional

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> class Scale(mc.layers.Layer):
    ...     def build(self, input_shape, rng, dtype=np.float32):
    ...         super().build(input_shape, rng, dtype)
    ...         self.factor = self.add_parameter("factor", np.ones((), dtype))
    ...         return input_shape
    ...     def forward(self, x, ctx):
    ...         ctx[self] = x
    ...         return self.factor.value * x
    ...     def backward(self, dy, ctx, need_dx=True):
    ...         self.factor.grad[...] = (ctx[self] * dy).sum()
    ...         return self.factor.value * dy if need_dx else None
    >>> print(mc.check_gradients(Scale(), (2, 3)).ok)
    True
    """

    dims = "(N, ...)"  # how the axes of the input are called in errors
    rank: int | None = None  # how many axes the input has; None is any number
    input_shape: Shape | None = None  # these two `build` sets
    dtype: np.dtype[Any] | None = None

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        """Note the shape and the type of the inputs, and check them.

        Parameters
        ----------
        input_shape : tuple
            With None for the batch.
        rng : numpy.random.Generator or int
            Where the start values are drawn from.
        dtype : float32 or float64

        Returns
        -------
        tuple
            The shape of the output.
        """
        shape = self.check_build(input_shape, dtype)
        self.input_shape = shape
        self.dtype = np.dtype(dtype)
        return shape

    def check_build(self, input_shape: Shape, dtype: Any) -> Shape:
        """Return the shape of the inputs, with None for the batch, or raise where it is unfit."""
        shape = checks.shape(input_shape, "input_shape")
        if self.rank is not None and len(shape) != self.rank:
            raise ValueError(
                f"{self.label}: `inputs` must have {self.rank} dimensions {self.dims}, got "
                f"{shape}; {self._rank_advice(len(shape))}"
            )
        if checks.number_type(dtype).kind in "iub":
            raise TypeError(
                f"{self.label}: `inputs` must be float32 or float64, got {np.dtype(dtype)}; "
                "convert first (images of bytes: x.astype(np.float32) / 255)"
            )
        if any(size is None for size in shape[1:]) or not shape:
            raise ValueError(
                f"{self.label}: only the batch may be unknown in `inputs`, got {shape}"
            )
        checks.float_type(dtype)
        return (None, *shape[1:])

    def reset_parameters(self, rng: Any, input_shape: Any = None, dtype: Any = None) -> None:
        """Draw new start values for all parameters of a layer or model.

        For the inputs that it was built for, the new values are written into the same arrays. For
        inputs of another shape or type, the layers are built again with new parameters; other
        models that share these layers must be built again, too. An optimizer's state is not
        changed: use a new optimizer.

        Parameters
        ----------
        rng : numpy.random.Generator or int
            Where the start values are drawn from.
        input_shape : tuple, optional
            With None for the batch. Default: the shape that the layer was built for.
        dtype : float32 or float64, optional
            Default: the type that the layer was built for; float32 if it was not built.

        Raises
        ------
        RuntimeError
            If the layer was not built and no `input_shape` is given.

        Examples
        --------
        >>> import minicnn as mc
        >>> model = mc.Sequential([mc.layers.Dense(2)])
        >>> model.build((None, 3), rng=0)
        (None, 2)
        >>> before = model.parameters[0].value.copy()
        >>> model.reset_parameters(rng=1)
        >>> bool((model.parameters[0].value == before).any())
        False
        """
        built = self._built
        if built is None and input_shape is None:
            raise RuntimeError(f"{self.label}: not built yet; call build(input_shape, rng)")
        rng = checks.generator(rng)
        for parameter in self.parameters:
            parameter.writable("value")
        last = Built((), np.float32, ()) if built is None else built
        input_shape = last.input_shape if input_shape is None else input_shape
        dtype = last.dtype if dtype is None else dtype
        before = [(op, vars(op).copy()) for op in parts(self)]
        with all_or_nothing(self):
            forget(self)
            self.build(input_shape, rng, dtype)
            for op, attributes in before:
                for name, old in attributes.items():
                    new = vars(op).get(name)
                    if isinstance(old, Parameter) and isinstance(new, Parameter):
                        setattr(op, name, _refilled(old, new))

    def build_part(self, op: Op, input_shape: Shape, rng: Any) -> Shape:
        """Build an op inside this layer, unless it was built before; return its output's shape.

        Parameters
        ----------
        op : Op
            A layer, say, that is an attribute of this one.
        input_shape : tuple
            The shape of its inputs.
        rng : numpy.random.Generator or int
            Where the start values of a new one are drawn from.

        Raises
        ------
        ValueError
            If the op was built for inputs of another shape or type.
        """
        return build_once(op, input_shape, rng, self.dtype)

    def add_parameter(self, name: str, value: np.ndarray, trainable: bool = True) -> Parameter:
        """Return a new parameter that carries the layer's name and has its type."""
        return Parameter(f"{self.label}/{name}", np.asarray(value, self.dtype), trainable)

    def initialize(
        self, name: str, shape: tuple[int, ...], rng: np.random.Generator
    ) -> Parameter:
        """Return a new parameter with the values that the layer's initializer for it draws."""
        checks.room(shape, f"{self.label}: `{name}`")
        argument = f"{name}_initializer"
        initializer = getattr(self, argument)
        value = checks.array(initializer(shape, rng, self.dtype), argument)
        if value.shape != shape:
            raise ValueError(
                f"{self.label}: `{name}_initializer` must return the shape {shape}, got "
                f"{checks.describe(value)}"
            )
        if getattr(initializer, "__module__", None) != initializers.__name__:
            value = value.copy()  # a user's may keep its array, or give it to two layers
        return self.add_parameter(name, value)

    def build_activation(self, shape: Shape, rng: Any) -> Shape:
        """Return the shape that the layer's `activation` makes of `shape`."""
        activation: Op | None = vars(self).get("activation")
        return shape if activation is None else self.build_part(activation, shape, rng)

    def check_inputs(self, x: Any) -> np.ndarray:
        """Return the inputs, or raise where they are not what the layer was built for."""
        if self.input_shape is None:
            raise RuntimeError(
                f"{self.label}: call build(input_shape, rng) before forward, for example "
                f"build({(None, *np.shape(x)[1:])}, rng=0)"
            )
        if not isinstance(x, np.ndarray) or isinstance(x, np.ma.MaskedArray):
            raise TypeError(
                f"{self.label}: `inputs` must be a NumPy array, got {checks.describe(x)}; convert "
                f"it (np.asarray(x, np.{self.dtype}))"
            )
        if x.ndim != len(self.input_shape) or x.shape[1:] != self.input_shape[1:]:
            raise ValueError(
                f"{self.label}: built for inputs of shape {self.input_shape}, got {x.shape}; "
                f"{_shape_advice(self.input_shape[1:], x.shape)}"
            )
        if x.dtype != self.dtype:
            raise TypeError(
                f"{self.label}: built for {self.dtype}, got {x.dtype}; convert the inputs "
                f"(x.astype(np.{self.dtype}); images of bytes also / 255)"
            )
        return x

    def _rank_advice(self, rank: int) -> str:
        if rank > (self.rank or 0):
            return "flatten the axes that are too many"
        axes, example = "height, width, channels", "28, 28, 1"
        if self.dims == "(N, C, H, W)":
            axes, example = "channels, height, width", "1, 28, 28"
        single = "; a single image needs a batch axis, x[None]" if rank == 3 else ""
        return f"reshape to (-1, {axes}) first, e.g. (-1, {example}) for MNIST{single}"


def _shape_advice(row: tuple[int | None, ...], got: tuple[int, ...]) -> str:
    """Return how to turn inputs of the shape `got` into rows of the shape `row`."""
    if got == row:
        return "a single row needs a batch axis: x[None]"
    if len(row) == 3 and len(got) == 4:
        _, second, third, fourth = got
        if row == (third, fourth, second):
            return "exchange the axes (N, C, H, W): x.transpose(0, 2, 3, 1)"
        if row == (fourth, second, third):
            return "exchange the axes (N, H, W, C): x.transpose(0, 3, 1, 2)"
    size = math.prod(number or 0 for number in row)
    if size in (math.prod(got), math.prod(got[1:])):
        return f"give the rows their shape: x.reshape{(-1, *row)}"
    return "give inputs of that shape, or build a model for this one"


def build_once(
    op: Op,
    input_shape: Shape,
    rng: Any,
    dtype: Any,
    remedy: str | None = None,
) -> Shape:
    """Build an op for a model or a graph; return the shape of its output.

    A layer that was built before, and any op with parameters, keeps what it has: whoever builds it
    for something else must not destroy trained values. `remedy` is what the error tells the user
    to do.
    """
    built = op._built
    if built is None or not (isinstance(op, Layer) or op.parameters):
        return op.build(input_shape, rng, dtype)
    before, now = np.dtype(built.dtype), np.dtype(dtype)
    if built.input_shape[1:] == tuple(input_shape[1:]) and before == now:
        return built.output_shape
    if isinstance(op, Layer) and op.input_shape is not None:
        op.check_build(input_shape, dtype)  # no layer of this kind takes them
    shape = (None, *input_shape[1:])
    own = f"make a second layer, or draw new values: reset_parameters(rng, {shape}, '{now}')"
    raise ValueError(
        f"{op.label}: built for inputs of shape {(None, *built.input_shape[1:])} and type {before},"
        f" got {shape} and {now}; {remedy or own}"
    )


def _refilled(old: Parameter, new: Parameter) -> Parameter:
    """Return `old` with the values of `new`, or `new` where it has another shape or type."""
    if (old.shape, old.dtype) != (new.shape, new.dtype):
        return new
    old.value[...] = new.value
    return old
