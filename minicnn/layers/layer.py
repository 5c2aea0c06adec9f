"""The base of all layers: an op that is built for one input shape and dtype."""

import copy
import math
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.op import Op, Shape, forget, named_parameters
from minicnn.core.parameter import Parameter
from minicnn.core.weights import fill


class Layer(Op):
    """The base of all layers.

    A subclass defines `forward` and `backward`. It defines `build` if it has parameters or if its
    output has another shape than its inputs: each attribute that is a `Parameter` is one of its
    `parameters`. A `build` that fails changes nothing in the layer and in the layers inside.

    Calling `build` again draws new start values. Models and graphs do not call it again: a layer
    that was built before keeps its values. A layer that contains other layers does the same if its
    `build` builds them with `build_part`.

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

    dims = "(N, ...)"  # the axes of the inputs, for errors
    rank: int | None = None  # the number of axes of the inputs; None: any
    input_shape: Shape | None = None  # set by `build`, as is `dtype`
    dtype: np.dtype[Any] | None = None

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        """Check and store the input shape and the dtype; return the output shape.

        A subclass calls this first and then creates its parameters.

        Parameters
        ----------
        input_shape : tuple
            With None for the batch.
        rng : numpy.random.Generator or int
            The source of the start values.
        dtype : float32 or float64

        Returns
        -------
        tuple
            With None for the batch.
        """
        shape = self.check_build(input_shape, dtype)
        self.input_shape = shape
        self.dtype = np.dtype(dtype)
        return shape

    def check_build(self, input_shape: Shape, dtype: Any) -> Shape:
        """Return the input shape with None for the batch; raise if the layer cannot take it."""
        shape = checks.shape(input_shape, "input_shape")
        if self.rank is not None and len(shape) != self.rank:
            raise ValueError(
                f"{self.label}: `inputs` must have {self.rank} dimensions {self.dims}, got "
                f"{shape}; {_rank_advice(len(shape), self.dims)}"
            )
        if checks.number_type(dtype) not in (np.float32, np.float64):
            raise TypeError(
                f"{self.label}: `inputs` must be float32 or float64, got {np.dtype(dtype)}; "
                "convert first (images of bytes: x.astype(np.float32) / 255)"
            )
        if any(size is None for size in shape[1:]) or not shape:
            raise ValueError(
                f"{self.label}: only the batch may be unknown in `inputs`, got {shape}"
            )
        return (None, *shape[1:])

    def reset_parameters(self, rng: Any) -> None:
        """Draw new start values for all parameters of a layer or model.

        They are written into the same arrays. An optimizer keeps its state: use a new one.

        Parameters
        ----------
        rng : numpy.random.Generator or int
            The source of the start values.

        Raises
        ------
        RuntimeError
            If the layer was not built.

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
        if self._built is None:
            raise RuntimeError(f"{self.label}: not built yet; call build(input_shape, rng)")
        fresh = copy.deepcopy(self)
        forget(fresh)
        fresh.build(self._built.input_shape, checks.generator(rng), self._built.dtype)
        drawn = {name: new.value for name, new in named_parameters(fresh).items()}
        fill(named_parameters(self), drawn)

    def build_part(self, op: Op, input_shape: Shape, rng: Any) -> Shape:
        """Build a layer inside this one, unless it was built before; return its output shape.

        Parameters
        ----------
        op : Op
            An attribute of this layer.
        input_shape : tuple
        rng : numpy.random.Generator or int
            The source of the start values.

        Raises
        ------
        ValueError
            If it was built for another input shape or dtype.
        """
        return build_once(op, input_shape, rng, self.dtype)

    def add_parameter(self, name: str, value: np.ndarray, trainable: bool = True) -> Parameter:
        """Return a new parameter with the layer's dtype, named after the layer."""
        value = np.array(value, self.dtype)  # a function may return one array to two layers
        parameter = Parameter(f"{self.label}/{name}", value, trainable)
        parameter.scope, parameter.key = self.label, name  # `name` may have slashes
        return parameter

    def initialize(
        self,
        name: str,
        shape: tuple[int, ...],
        rng: np.random.Generator,
        trainable: bool = True,
    ) -> Parameter:
        """Return a new parameter with values from ``self.<name>_initializer``.

        Its regularizer is ``self.<name>_regularizer``, if there is one. As in tf.layers, those of
        "depthwise_kernel" are called ``depthwise_initializer`` and ``depthwise_regularizer``.
        """
        argument = f"{name.removesuffix('_kernel')}_initializer"
        initializer = getattr(self, argument)
        value = checks.array(initializer(shape, rng, self.dtype), argument)
        if value.shape != shape:
            raise ValueError(
                f"{self.label}: `{argument}` must return the shape {shape}, got "
                f"{checks.describe(value)}"
            )
        parameter = self.add_parameter(name, value, trainable)
        parameter.regularizer = getattr(self, argument.replace("initializer", "regularizer"), None)
        return parameter

    def check_inputs(self, x: Any) -> np.ndarray:
        """Return the inputs; raise if the layer was not built for their shape and dtype."""
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


def _rank_advice(got: int, dims: str) -> str:
    """Return how to turn inputs with `got` axes into images."""
    example = "(-1, 1, 28, 28)" if dims == "(N, C, H, W)" else "(-1, 28, 28, 1)"
    single = "; a single image needs a batch axis, x[None]" if got == 3 else ""
    return f"reshape to {dims} first, MNIST to {example}{single}"


def _shape_advice(row: tuple[int | None, ...], got: tuple[int, ...]) -> str:
    """Return how to turn inputs of shape `got` into a batch of rows of shape `row`."""
    if got == row:
        return "a single row needs a batch axis: x[None]"
    for axes in ((0, 2, 3, 1), (0, 3, 1, 2)):
        if len(got) == 4 and tuple(got[axis] for axis in axes[1:]) == row:
            return f"exchange the axes: x.transpose{axes}"
    size = math.prod(number or 0 for number in row)
    if size in (math.prod(got), math.prod(got[1:])):
        return f"reshape the rows: x.reshape{(-1, *row)}"
    return "give inputs of that shape, or build a model for this one"


def build_once(op: Op, input_shape: Shape, rng: Any, dtype: Any) -> Shape:
    """Build an op for a model or a graph, unless it was built before; return its output shape.

    Layers, and ops with parameters, are built only once: trained values are never lost. Other
    ops may be built for another shape.
    """
    built = op._built
    if built is None or not (isinstance(op, Layer) or op.parameters):
        return op.build(input_shape, rng, dtype)
    before = np.dtype(built.dtype)
    now = np.dtype(dtype)
    if built.input_shape[1:] == tuple(input_shape[1:]) and before == now:
        return built.output_shape
    if isinstance(op, Layer) and op.input_shape is not None:
        op.check_build(input_shape, dtype)  # raises if a new layer cannot take them either
    raise ValueError(
        f"{op.label}: built for inputs of shape {(None, *built.input_shape[1:])} and type {before},"
        f" got {(None, *input_shape[1:])} and {now}; make new layers"
    )
