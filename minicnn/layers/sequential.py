"""A chain of layers that is a layer itself."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from minicnn import checks, tables
from minicnn.context import Context
from minicnn.layers.fusion import fuse, fusing
from minicnn.layers.layer import Layer
from minicnn.tensor import Op, Shape, Tensor, give_names, parts


class Sequential(Layer):
    """Layers one after the other.

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

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        rng, shape = checks.generator(rng), super().build(input_shape, rng, dtype)
        _check_once(list(parts(self)))  # also in models and activations inside the layers
        self._name_layers()
        self._shapes: list[Shape] = []
        for layer in self.layers:
            shape = layer.build(shape, rng, dtype)
            self._shapes.append(shape)
        self._chain = [op for op, _ in fuse(self.layers)] if fusing(self.fuse) else self.layers
        names = [parameter.name for parameter in self.parameters]
        if len(set(names)) < len(names):
            raise ValueError(
                f"{self.label}: the name {max(names, key=names.count)!r} is there twice; give the "
                "models inside it names of their own"
            )
        return shape

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
        if self.input_shape is None:
            raise RuntimeError("call build(input_shape, rng) before summary()")
        rows = [
            (layer.label, str(shape), f"{tables.count(layer.parameters):,}")
            for layer, shape in zip(self.layers, self._shapes, strict=True)
        ]
        return tables.table(("layer", "output shape", "parameters"), rows, self.parameters)

    def __call__(self, inputs: Any) -> Any:
        """Apply the layers to a Tensor, each as a node of its graph, or the model to an array."""
        if not isinstance(inputs, Tensor):
            return super().__call__(inputs)
        if self.name:
            self._name_layers()
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs

    def _name_layers(self) -> None:
        prefix = f"{self.name}/" if self.name else ""
        names = [layer.name for layer in self.layers if layer.name]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.label}: two layers have the same name; names must differ")
        give_names(self.layers, prefix)


def _check_once(ops: list[Op]) -> None:
    if len(set(map(id, ops))) < len(ops):
        raise ValueError("`layers` holds the same layer twice; make a second one")
