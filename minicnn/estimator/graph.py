"""The graph that a model_fn builds, and how it is run forward and backward.

A `Graph` records the ops that are applied to its tensors, in an order in which they can be
computed. A `Plan` is the part of it that some tensors need; chains of layers in it are fused.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minicnn import ops
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, Shape, Tensor, give_names, parts
from minicnn.core.op import gradients as gradients_of_inputs
from minicnn.core.parameter import Parameter, count_parameters, parameter_table
from minicnn.layers.fusion import fuse, fusing, joined
from minicnn.layers.layer import build_once


class Graph:
    """Symbolic tensors and the parameters that they are computed with.

    Parameters
    ----------
    rng : numpy.random.Generator or int
        The source of the start values of new parameters.
    parameters : dict, optional
        Parameters by name. Layers with these names use them: so the graph for evaluation shares
        the parameters of the graph for training. New parameters are added.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> graph = mc.Graph(rng=0)
    >>> x = graph.placeholder("x", (None, 4), np.float32)
    >>> y = mc.softmax(mc.layers.dense(x, units=3))
    >>> graph.plan([y]).forward({x: np.ones((2, 4), np.float32)}, mc.Context())[y].shape
    (2, 3)
    """

    def __init__(self, rng: Any = 0, parameters: dict[str, Parameter] | None = None) -> None:
        self.rng = checks.generator(rng)
        self.tensors: dict[str, Tensor] = {}
        self.parameters: dict[str, Parameter] = {}
        self._shared = {} if parameters is None else checks.instance(parameters, dict, "parameters")
        for parameter in self._shared.values():
            checks.instance(parameter, Parameter, "parameters", "a dict of Parameters")
        self._ops: set[Op] = set()

    def placeholder(self, name: str, shape: Shape, dtype: Any) -> Tensor:
        """Return a new tensor whose value is given to `Plan.forward`.

        Parameters
        ----------
        name : str
        shape : tuple
            With None for the batch.
        dtype : numpy type

        Returns
        -------
        Tensor
        """
        name = checks.unique(checks.text(name, "name"), self.tensors)
        tensor = self.tensors[name] = Tensor(self, name, shape, dtype)
        return tensor

    def add(self, op: Op, inputs: tuple[Tensor, ...]) -> Tensor:
        """Build an op for its inputs and return its output Tensor; called by `apply`."""
        if not self._ops.isdisjoint(parts(op)):
            raise ValueError(
                f"{op.label}: this layer was applied before in this graph; make a second layer"
            )
        name = op.name or checks.unique(op.kind, self.tensors)
        if name in self.tensors:
            raise ValueError(f"{name}: the name is taken in this graph; give another `name`")
        op.name = name
        give_names(parts(op), f"{name}/")
        dtype = _dtype_of(inputs)
        shapes: Any = tuple(tensor.shape for tensor in inputs)
        input_shape = shapes if len(shapes) > 1 else shapes[0]
        output_shape = build_once(op, input_shape, self.rng, dtype)
        self._ops.update(parts(op))
        self._share(op)
        tensor = Tensor(self, name, output_shape, op.output_dtype or dtype, op, inputs)
        self.tensors[name] = tensor
        return tensor

    def find(self, name: str) -> Tensor:
        """Return the tensor with this name.

        Raises
        ------
        ValueError
            If no tensor has the name; the error lists similar names.
        """
        key = checks.text(name, "name").removesuffix(":0")
        return self.tensors[checks.existing(key, "name", self.tensors)]

    def plan(self, fetches: Iterable[Tensor], fuse: bool = True) -> "Plan":
        """Return how to compute the fetched tensors.

        Parameters
        ----------
        fetches : iterable of Tensor
        fuse : bool
            Compute chains of layers in one pass where possible. A fetched tensor is always
            computed.

        Returns
        -------
        Plan
        """
        fetches = checks.sequence(fetches, "fetches", "Tensors")
        for fetch in fetches:
            if checks.instance(fetch, Tensor, "fetches", "Tensors").graph is not self:
                raise ValueError(f"`fetches` must be of this graph; {fetch.name!r} is of another")
        return Plan(self, fetches, fusing(checks.boolean(fuse, "fuse")))

    def summary(self) -> str:
        """Return a table of the tensors: kind of op, name, shape and number of parameters."""
        rows = [
            (
                tensor.op.kind if tensor.op else "placeholder",
                tensor.name,
                str(tensor.shape),
                f"{count_parameters(tensor.op.parameters if tensor.op else ()):,}",
            )
            for tensor in self.tensors.values()
        ]
        head = ("layer", "tensor", "output shape", "parameters")
        return parameter_table(head, rows, tuple(self.parameters.values()))

    def _share(self, op: Op) -> None:
        """Replace the parameters that an op has created by the shared ones of the same names."""
        for part in parts(op):
            for attribute, own in list(vars(part).items()):
                if isinstance(own, Parameter):
                    if own.name in self.parameters:
                        raise ValueError(
                            f"{op.label}: {own.name!r} is the name of a parameter already; give "
                            "the layers inside, or this one, another `name`"
                        )
                    shared = self._shared.setdefault(own.name, own)
                    _check_alike(own, shared)
                    shared.regularizer = own.regularizer
                    self.parameters[own.name] = shared
                    setattr(part, attribute, shared)


class Step(NamedTuple):
    """One op of a plan."""

    op: Op
    inputs: tuple[Tensor, ...]
    output: Tensor
    parameters: tuple[Parameter, ...]
    need_dx: bool  # whether an input depends on a parameter
    done: set[Tensor]  # the inputs that no later step needs


class Plan:
    """The steps that compute some tensors of a graph, forward and backward.

    Parameters
    ----------
    graph : Graph
    fetches : tuple of Tensor
    fuse : bool
    """

    def __init__(self, graph: Graph, fetches: tuple[Tensor, ...], fuse: bool) -> None:
        self.fetches = fetches
        nodes = _nodes(_needed(graph, fetches), fetches, fuse)
        last_use = {tensor: number for number, node in enumerate(nodes) for tensor in node[1]}
        self._fed = [tensor for tensor in {*fetches, *last_use} if tensor.op is None]
        self._trained: set[Tensor] = set()  # the tensors that depend on a parameter
        self.steps: list[Step] = []
        for number, (op, inputs, output) in enumerate(nodes):
            need_dx = not self._trained.isdisjoint(inputs)
            done = {tensor for tensor in inputs if last_use[tensor] == number} - set(fetches)
            self.steps.append(Step(op, inputs, output, op.parameters, need_dx, done))
            if op.parameters or need_dx:
                self._trained.add(output)

    def forward(self, feeds: dict[Tensor, Any], ctx: Context) -> dict[Tensor, Any]:
        """Return the values of the fetched tensors.

        Parameters
        ----------
        feeds : dict
            The array of each placeholder.
        ctx : Context

        Returns
        -------
        dict
        """
        values = dict(feeds)
        for tensor in self._fed:
            if tensor not in values:
                raise ValueError(f"`feeds` must give the array of the placeholder {tensor.name!r}")
        for step in self.steps:
            forward: Callable[..., Any] = step.op.forward  # of as many arrays as inputs
            values[step.output] = forward(*(values[tensor] for tensor in step.inputs), ctx)
            for tensor in step.done:  # frees memory
                del values[tensor]
        return {tensor: values[tensor] for tensor in self.fetches}

    def backward(
        self,
        loss: Tensor,
        ctx: Context,
        scale: float = 1.0,
        ready: Callable[[Parameter], None] | None = None,
    ) -> tuple[Parameter, ...]:
        """Write the gradient of `loss` into each parameter that it depends on; return those.

        The gradients of a tensor that is used several times are added.

        Parameters
        ----------
        loss : Tensor
        ctx : Context
            The context of the forward pass.
        scale : float
            Multiplies the gradients.
        ready : callable, optional
            Called with each parameter as soon as its gradient is final.

        Returns
        -------
        tuple of Parameter
        """
        if loss not in self.fetches:
            raise ValueError(f"`loss` must be one of the fetched tensors, got {loss!r}")
        gradients: dict[Tensor, Any] = {loss: scale}
        reached: list[Parameter] = []
        for step in reversed(self.steps):
            dy = gradients.pop(step.output, None)
            if dy is None or step.output not in self._trained:
                continue
            reached[:0] = step.parameters
            dx = step.op.backward(dy, ctx, step.need_dx)
            if ready is not None:
                for parameter in step.parameters:
                    ready(parameter)
            if not step.need_dx:
                continue
            each = gradients_of_inputs(step.op, dx, len(step.inputs))
            for tensor, gradient in zip(step.inputs, each, strict=True):
                if tensor in self._trained and gradient is not None:
                    if (known := gradients.get(tensor)) is not None:
                        gradient = ops.total(known, gradient, ctx, tensor)
                    gradients[tensor] = gradient
        return tuple(reached)


def _needed(graph: Graph, fetches: Sequence[Tensor]) -> list[Tensor]:
    """Return the computed tensors that `fetches` depend on, in the order of the graph."""
    needed = set(fetches)
    for tensor in reversed(graph.tensors.values()):
        if tensor in needed:
            needed.update(tensor.inputs)
    return [tensor for tensor in graph.tensors.values() if tensor in needed and tensor.op]


def _nodes(
    tensors: list[Tensor], fetches: Sequence[Tensor], fusing: bool
) -> list[tuple[Op, tuple[Tensor, ...], Tensor]]:
    """Return (op, inputs, output) for each tensor, or for each part of a chain that is fused."""
    consumers: dict[Tensor, list[Tensor]] = {}
    for tensor in tensors:
        for source in tensor.inputs:
            consumers.setdefault(source, []).append(tensor)
    nodes: list[tuple[Op, tuple[Tensor, ...], Tensor]] = []
    done: set[Tensor] = set()
    for first in tensors:
        if first in done:
            continue
        chain = [first]
        while fusing and chain[-1] not in fetches:
            followers = consumers.get(chain[-1], [])
            if len(followers) != 1 or len(followers[0].inputs) != 1:
                break
            chain.append(followers[0])
        done.update(chain)
        ops = [tensor.op for tensor in chain if tensor.op]
        for op, length in joined(fuse(ops)) if fusing else [(op, 1) for op in ops]:
            nodes.append((op, chain[0].inputs, chain[length - 1]))
            del chain[:length]
    return nodes


def _dtype_of(inputs: Sequence[Tensor]) -> np.dtype[Any]:
    """Return the dtype that an op computes with: that of its floating-point inputs, if any."""
    floats = [tensor.dtype for tensor in inputs if tensor.dtype.kind == "f"]
    return np.result_type(*floats) if floats else inputs[0].dtype


def _check_alike(own: Parameter, shared: Parameter) -> None:
    """Raise if a layer cannot use the shared parameter of the same name."""
    if shared.shape != own.shape or shared.dtype != own.dtype:
        raise ValueError(
            f"{own.name}: this graph makes it {own.shape} {own.dtype}, but the model has "
            f"{shared.shape} {shared.dtype}; model_fn must build the same layers for every mode, "
            "from `x` of the same shape (x[None] if it is a single row)"
        )
