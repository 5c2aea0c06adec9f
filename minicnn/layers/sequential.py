"""A chain of layers that is a layer itself."""

import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, Shape, Tensor, give_names, parts
from minicnn.core.parameter import count_parameters, parameter_table
from minicnn.layers.fusion import fuse, fusing
from minicnn.layers.layer import Layer, build_once

logger = logging.getLogger("minicnn")


class Sequential(Layer):
    """Layers one after the other.

    Layers may be shared with other models. A model keeps the parameters of layers that were built
    before; if all were, and their shapes fit, it can be used without `build`.

    Parameters
    ----------
    layers : iterable of Layer
        Each once: a layer that is met twice is an error.
    name : str, optional
    fuse : bool
        Whether neighbours that can be computed in one pass are. The values are the same within
        the tolerance of the type, relative to the largest output around. Where an input is
        infinite, a gradient may be finite in place of NaN: what is exactly zero is skipped.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> model = mc.Sequential([
    ...     mc.layers.Conv2D(8, 3, activation="relu"), mc.layers.MaxPooling2D(2),
    ...     mc.layers.Flatten(), mc.layers.Dense(10)])
    >>> model.build((None, 28, 28, 1), rng=0)
    (None, 10)
    >>> model.predict(np.zeros((3, 28, 28, 1), np.float32)).shape
    (3, 10)
    """

    def __init__(self, layers: Iterable[Op], name: str | None = None, fuse: bool = True) -> None:
        layers = checks.sequence(layers, "layers", "layers")
        super().__init__(name)
        what = "layers such as Dense(10) or Activation('relu')"
        self.layers: list[Op] = [checks.instance(layer, Op, "layers", what) for layer in layers]
        self.fuse = checks.boolean(fuse, "fuse")
        self._chain: list[Op] = []
        if not self.layers:
            raise ValueError("`layers` must hold at least one layer, got none")
        _check_once(self.layers)
        with contextlib.suppress(ValueError):  # the first use says what does not fit
            self._take_over()

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        """Build the layers that were not built before; the others keep their values.

        Parameters
        ----------
        input_shape : tuple
            With None for the batch.
        rng : numpy.random.Generator or int
            Where the start values are drawn from; None where every layer was built before.
        dtype : float32 or float64

        Returns
        -------
        tuple
            The shape of the output.

        Raises
        ------
        ValueError
            If a layer was built for inputs of another shape or type.
        """
        rng = checks.optional(checks.generator, rng)
        shape = self.check_build(input_shape, dtype)
        _check_once(list(parts(self)))  # also in models and activations inside the layers
        self._name_layers()
        kept = [op.label for op in self.layers if op._built is not None and op.parameters]
        remedy = (
            f"make new layers, or draw new values for all of {self.label} with "
            f"reset_parameters(rng, {shape}, '{np.dtype(dtype)}')"
        )
        shapes = [shape]
        for layer in self.layers:
            shapes.append(build_once(layer, shapes[-1], rng, dtype, remedy))
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{self.label}: the name {max(names, key=names.count)!r} is there twice; set the "
                "`name` of one of the two layers"
            )
        self._shapes = shapes[1:]
        self._chain = [op for op, _ in fuse(self.layers)] if fusing(self.fuse) else self.layers
        self.dtype = np.dtype(dtype)
        self.input_shape = shape  # last: from here on the model is used, also by other threads
        if kept and rng is not None:
            logger.warning(
                "%s: %s, built before, keep their values; reset_parameters(rng) draws new ones",
                self.label, ", ".join(kept),
            )
        return shapes[-1]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        x, ctx = self.check_inputs(x), checks.instance(ctx, Context, "ctx")
        for layer in self._chain:
            x = layer.forward(x, ctx)
        return x

    def backward(self, dy: np.ndarray, ctx: Context, need_dx: bool = True) -> np.ndarray | None:
        if not self._chain:
            raise RuntimeError(f"{self.label}: call build(input_shape, rng) and forward first")
        checks.instance(ctx, Context, "ctx")
        for layer in reversed(self._chain[1:]):
            dy = layer.backward(dy, ctx)
        return self._chain[0].backward(dy, ctx, need_dx)

    def predict(self, x: Any, batch_size: int = 100) -> np.ndarray:
        """Return the outputs for all rows of `x`, computed `batch_size` rows at a time.

        Parameters
        ----------
        x : ndarray
            (N, ...), float; a float type other than the model's is converted.
        batch_size : int

        Returns
        -------
        ndarray
            (N, ...)
        """
        self._take_over()
        batch_size = checks.integer(batch_size, "batch_size")
        x = np.atleast_1d(checks.array(x, "x"))
        if x.dtype.kind == "f" and self.dtype is not None:
            x = x.astype(self.dtype, copy=False)
        self.check_inputs(x)  # all of it: an error tells the shape that the user has given
        starts = range(0, max(len(x), 1), batch_size)
        return np.concatenate(
            [self.forward(x[start : start + batch_size], Context(save=False)) for start in starts]
        )

    def summary(self) -> str:
        """Return a table of the layers, their output shapes and numbers of parameters."""
        self._take_over()
        if self.input_shape is None:
            raise RuntimeError("call build(input_shape, rng) before summary()")
        rows = [
            (layer.label, str(shape), f"{count_parameters(layer.parameters):,}")
            for layer, shape in zip(self.layers, self._shapes, strict=True)
        ]
        return parameter_table(("layer", "output shape", "parameters"), rows, self.parameters)

    def __call__(self, inputs: Any) -> Any:
        """Apply the layers to a Tensor, each as a node of its graph, or the model to an array."""
        if not isinstance(inputs, Tensor):
            return super().__call__(inputs)
        if self.name:
            self._name_layers()
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs

    def check_inputs(self, x: Any) -> np.ndarray:
        self._take_over()
        return super().check_inputs(x)

    def _take_over(self) -> None:
        """Build the model without new values, where all of its layers were built before."""
        first = self.layers[0]._built
        if self.input_shape is not None or first is None or not _ready(self.layers):
            return
        if type(self).build is Sequential.build:  # another `build` may need new values
            self.build(first.input_shape, None, first.dtype)

    def _name_layers(self) -> None:
        prefix = f"{self.name}/" if self.name else ""
        names = [layer.name for layer in self.layers if layer.name]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{self.label}: two layers have the same name; names must differ: "
                "set the `name` of one of them"
            )
        give_names(self.layers, prefix)


def _check_once(ops: list[Op]) -> None:
    if len(set(map(id, ops))) < len(ops):
        raise ValueError("`layers` holds the same layer twice; make a second one")


def _ready(ops: list[Op]) -> bool:
    """Return whether every op was built, or has nothing to build."""
    return all(op._built is not None or type(op).build is Op.build for op in ops)
