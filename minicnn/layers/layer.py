"""What every layer is: an op that is built for one shape and one type of input."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn import checks, initializers
from minicnn.parameter import Parameter
from minicnn.tensor import Op, Shape, Tensor, apply, parts


def _whole_or_not_at_all(build: Callable[..., Shape]) -> Callable[..., Shape]:
    @functools.wraps(build)
    def build_or_stay(self: Any, *args: Any, **kwargs: Any) -> Shape:
        before = [(op, vars(op).copy()) for op in parts(self)]
        try:
            return build(self, *args, **kwargs)
        except BaseException:
            for op, attributes in before:
                op.__dict__ = attributes
            raise

    return build_or_stay


class Layer(Op):
    """The base of all layers.

    A layer of one's own defines `forward` and `backward`, and `build` where its output has another
    shape or it has parameters: each attribute that is a `Parameter` is one of its `parameters`.
    A `build` that fails leaves the layer, and those that it is made of, as they were.

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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "build" in vars(cls):
            cls.build = _whole_or_not_at_all(cls.build)  # type: ignore[method-assign]

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
        self.dtype = checks.float_type(dtype)
        self.input_shape = (None, *shape[1:])
        return self.input_shape

    def add_parameter(self, name: str, value: np.ndarray, trainable: bool = True) -> Parameter:
        """Return a new parameter that carries the layer's name and has its type."""
        return Parameter(f"{self.label}/{name}", np.asarray(value, self.dtype), trainable)

    def initialize(
        self, name: str, shape: tuple[int, ...], rng: np.random.Generator, trainable: bool
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
        return self.add_parameter(name, value, trainable)

    def build_activation(self, shape: Shape, rng: Any) -> Shape:
        """Return the shape that the layer's `activation` makes of `shape`."""
        activation: Op | None = vars(self).get("activation")
        return shape if activation is None else activation.build(shape, rng, self.dtype)

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


def on_tensor(inputs: Any, layer: Op) -> Any:
    """Apply a new layer, as the functions of the guide do, to a Tensor and to nothing else."""
    if not isinstance(inputs, Tensor):
        kind = type(layer).__name__
        remedy = checks.part_of(inputs) or (
            f"; for arrays use the class: layer = {kind}(...), layer.build(x.shape, rng=0), "
            "layer.forward(x, Context())"
        )
        raise TypeError(f"`inputs` must be a Tensor, got {checks.describe(inputs)}{remedy}")
    return apply(layer, inputs)
