"""A chain of layers, which is itself a layer."""

import contextlib
import html
from collections.abc import Iterable
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.log import logger
from minicnn.core.op import Op, Shape, Tensor, give_names, named_parameters, parts
from minicnn.core.parameter import count_parameters, parameter_table
from minicnn.layers.fusion import fuse, fusing, joined
from minicnn.layers.layer import Layer, build_once

LAYERS = "layers such as Dense(10) or Activation('relu')"  # for errors


class Chain(Layer, repeatable=True):
    """Run layers one after the other: the base of `Sequential`, and a part for other layers.

    Parameters
    ----------
    layers, name, fuse
        As for `Sequential`.
    """

    def __init__(
        self, layers: Iterable[Op] = (), name: str | None = None, fuse: bool = True
    ) -> None:
        layers = checks.sequence(layers, "layers", "layers")
        super().__init__(name)
        self.layers: list[Op] = [checks.instance(each, Op, "layers", LAYERS) for each in layers]
        self.fuse = checks.boolean(fuse, "fuse")
        self._chain: list[Op] = []
        check_once(self.layers)
        with contextlib.suppress(ValueError):  # layers that do not fit: the first use raises
            self._use_built_layers()

    def build(self, input_shape: Shape, rng: Any, dtype: Any = np.float32) -> Shape:
        """Build the layers that were not built before; the others keep their values.

        Parameters
        ----------
        input_shape : tuple
            With None for the batch.
        rng : numpy.random.Generator or int
            The source of the start values; may be None if all layers were built before.
        dtype : float32 or float64

        Returns
        -------
        tuple
            The output shape, with None for the batch.

        Raises
        ------
        ValueError
            If a layer was built for another input shape or dtype.
        """
        if not self.layers:
            raise ValueError(f"{self.label}: `layers` must hold at least one layer, got none")
        rng = checks.optional(checks.generator, rng)
        shape = self.check_build(input_shape, dtype)
        check_once(list(parts(self)))  # also inside the layers
        self._name_layers()
        kept = [op.label for op in self.layers if op._built is not None and op.parameters]
        shapes = [shape]
        for layer in self.layers:
            shapes.append(build_once(layer, shapes[-1], rng, dtype))
        named_parameters(self)  # raises if two have the same name
        self._shapes = shapes[1:]
        self._chain = (
            [op for op, _ in joined(fuse(self.layers))] if fusing(self.fuse) else self.layers
        )
        self.dtype = np.dtype(dtype)
        self.input_shape = shape  # last: other threads may use the model from now on
        if kept and rng is not None:
            logger.warning(
                "%s: %s, built before, keep their values; reset_parameters(rng) draws new ones",
                self.label, ", ".join(kept),
            )
        return shapes[-1]

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: Any) -> Any:
        """Return a layer; for a slice a model of these layers, not of copies."""
        if isinstance(index, slice):
            return type(self)(self.layers[index], fuse=self.fuse)
        return self.layers[index]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        x = self.check_inputs(x)
        checks.instance(ctx, Context, "ctx")
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

    def summary(self) -> str:
        """Return a table of the layers with their output shapes and numbers of parameters.

        Before the model is built, the table has only the layers. ``print(model)`` shows the same.
        """
        with contextlib.suppress(ValueError):  # layers that do not fit: the first use raises
            self._use_built_layers()
        if self.input_shape is None:
            return "\n".join(
                [*(layer.label for layer in self.layers), "not built yet: build or fit does that"]
            )
        rows = [
            (layer.label, str(shape), f"{count_parameters(layer.parameters):,}")
            for layer, shape in zip(self.layers, self._shapes, strict=True)
        ]
        return parameter_table(("layer", "output shape", "parameters"), rows, self.parameters)

    def __str__(self) -> str:
        return self.summary()

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return f"<pre>{html.escape(self.summary())}</pre>"

    def __call__(self, inputs: Any) -> Any:
        """Apply the model to an array, or to a Tensor, each layer as a node of its graph."""
        if not isinstance(inputs, Tensor) or type(self).forward is not Chain.forward:
            return super().__call__(inputs)
        if self.name:
            self._name_layers()
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs

    def check_inputs(self, x: Any) -> np.ndarray:
        self._use_built_layers()
        return super().check_inputs(x)

    def converted(self, x: Any) -> np.ndarray:
        """Return inputs as an array of the model's type; raise if it was not built for them."""
        self._use_built_layers()
        x = np.atleast_1d(checks.array(x, "x"))
        if x.dtype.kind == "f" and self.dtype is not None:
            x = x.astype(self.dtype, copy=False)
        return self.check_inputs(x)

    def _use_built_layers(self) -> None:
        """Build the model without `rng` if all of its layers were built before."""
        is_known = self.input_shape is not None or not self.layers
        if is_known or type(self).build is not Chain.build:
            return  # built already; or a subclass, whose `build` may need `rng`
        first = self.layers[0]._built
        is_ready = (op._built is not None or type(op).build is Op.build for op in self.layers)
        if first is not None and all(is_ready):  # an op without `build` needs none
            self.build(first.input_shape, None, first.dtype)

    def _name_layers(self) -> None:
        give_names(self.layers, f"{self.name}/" if self.name else "")


def is_chain(op: Op) -> bool:
    """Return whether an op runs its layers one after the other, and nothing else."""
    return type(op).forward is Chain.forward


def check_once(ops: list[Op]) -> None:
    """Raise if an op occurs twice."""
    if len(set(map(id, ops))) < len(ops):
        raise ValueError("`layers` holds the same layer twice; make a second one")
