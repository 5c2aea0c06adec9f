"""The graph: what a model_fn writes down, and how it is run forward and backward.

A `Graph` notes every op that is applied to its tensors. The order in which they were made is an
order in which they can be computed. A `Plan` is the part of it that some fetched tensors need, with
the chains of single consumers fused.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, Shape, Tensor, give_names, parts
from minicnn.core.parameter import Parameter, count_parameters, parameter_table
from minicnn.layers.fusion import fuse, fusing
from minicnn.layers.layer import build_once


class Graph:
    """Symbolic tensors and the parameters that they are computed with.

    Parameters
    ----------
    rng : numpy.random.Generator or int
        Where the start values of new parameters are drawn from.
    parameters : dict, optional
        Parameters by name that layers of the same name share, as those of the training graph are
        shared by the graph for evaluation. New ones are added to it.

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
        """Return a tensor whose value is fed.

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
        return self._note(Tensor(self, name, checks.shape(shape, "shape"), dtype))

    def add(self, op: Op, inputs: tuple[Tensor, ...]) -> Tensor:
        """Note an op, build it for its inputs and return its output; `apply` calls it."""
        if not self._ops.isdisjoint(parts(op)):
            raise ValueError(
                f"{op.label}: this layer was applied before in this graph; make a second layer"
            )
        name = op.name or checks.unique(op.kind, self.tensors)
        if name in self.tensors:
            raise ValueError(f"{name}: the name is taken in this graph; give another `name`")
        op.name = name
        give_names(list(parts(op)), f"{name}/")
        dtype = inputs[-1].dtype
        output_shape = build_once(op, inputs[0].shape, self.rng, dtype)
        self._ops.update(parts(op))
        self._share(op)
        return self._note(Tensor(self, name, output_shape, op.output_dtype or dtype, op, inputs))

    def find(self, name: str) -> Tensor:
        """Return the tensor of a name.

        Raises
        ------
        ValueError
            If there is none; the error lists names that are near.
        """
        key = checks.text(name, "name").removesuffix(":0")
        if key not in self.tensors:
            near = difflib.get_close_matches(key, self.tensors, n=3, cutoff=0.5)
            raise ValueError(
                f"no tensor has the `name` {name!r}; "
                + (f"near names: {', '.join(near)}; " if near else "")
                + f"all names: {', '.join(self.tensors)}"
            )
        return self.tensors[key]

    def plan(self, fetches: Iterable[Tensor], fuse: bool = True) -> "Plan":
        """Return how to compute the fetched tensors.

        Parameters
        ----------
        fetches : iterable of Tensor
            They are never fused away.
        fuse : bool

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
        """Return a table of the tensors: what makes them, their names, shapes and parameters."""
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

    def _note(self, tensor: Tensor) -> Tensor:
        self.tensors[tensor.name] = tensor
        return tensor

    def _share(self, op: Op) -> None:
        """Put the shared parameters in the place of those that a layer of the same name made."""
        for part in parts(op):
            for attribute, own in list(vars(part).items()):
                if isinstance(own, Parameter):
                    if own.name in self.parameters:
                        raise ValueError(
                            f"{op.label}: {own.name!r} is the name of a parameter already; give "
                            "the layers inside, or this one, another `name`"
                        )
                    self.parameters[own.name] = self._shared.setdefault(own.name, own)
                    _check_alike(own, self._shared[own.name])
                    setattr(part, attribute, self._shared[own.name])


class Step(NamedTuple):
    """One op of a plan."""

    op: Op
    inputs: tuple[Tensor, ...]
    output: Tensor


class Plan:
    """The steps that compute some tensors of a graph, and the way back from a loss.

    Parameters
    ----------
    graph : Graph
    fetches : tuple of Tensor
    fuse : bool
    """

    def __init__(self, graph: Graph, fetches: tuple[Tensor, ...], fuse: bool) -> None:
        self.fetches = fetches
        self.steps = _steps(_needed(graph, fetches), fetches, fuse)
        sources = {*fetches, *(tensor for step in self.steps for tensor in step.inputs)}
        self._fed = [tensor for tensor in sources if tensor.op is None]
        # Gradients flow only where a parameter lies upstream.
        self._trained: set[Tensor] = set()
        for step in self.steps:
            if step.op.parameters or any(tensor in self._trained for tensor in step.inputs):
                self._trained.add(step.output)

    def forward(self, feeds: dict[Tensor, Any], ctx: Context) -> dict[Tensor, Any]:
        """Return the values of the fetched tensors.

        Parameters
        ----------
        feeds : dict
            From each placeholder to its array.
        ctx : Context

        Returns
        -------
        dict
        """
        values = dict(feeds)
        for tensor in self._fed:
            if tensor not in values:
                raise ValueError(f"`feeds` must give the array of the placeholder {tensor.name!r}")
        uses = Counter(tensor for step in self.steps for tensor in step.inputs)
        uses.update(self.fetches)
        for op, inputs, output in self.steps:
            forward: Callable[..., Any] = op.forward  # of as many arrays as the step has inputs
            values[output] = forward(*(values[tensor] for tensor in inputs), ctx)
            for tensor in inputs:  # a value that nobody needs any more gives its memory back
                uses[tensor] -= 1
                if not uses[tensor]:
                    del values[tensor]
        return {tensor: values[tensor] for tensor in self.fetches}

    def backward(
        self,
        loss: Tensor,
        ctx: Context,
        scale: float = 1.0,
        ready: Callable[[Parameter], None] | None = None,
    ) -> tuple[Parameter, ...]:
        """Write the gradient of `loss` into every parameter that it depends on; return those.

        The gradients of a tensor that is used twice are added.

        Parameters
        ----------
        loss : Tensor
        ctx : Context
            That of the forward pass.
        scale : float
            A factor of the gradient.
        ready : callable, optional
            Called with each parameter once its gradient is written.

        Returns
        -------
        tuple of Parameter
        """
        if loss not in self.fetches:
            raise ValueError(f"`loss` must be one of the fetched tensors, got {loss!r}")
        gradients: dict[Tensor, Any] = {loss: scale}
        reached: list[Parameter] = []
        for op, inputs, output in reversed(self.steps):
            dy = gradients.pop(output, None)
            if dy is None or output not in self._trained:
                continue
            reached[:0] = op.parameters
            need_dx = any(tensor in self._trained for tensor in inputs)
            dx = op.backward(dy, ctx, need_dx)
            if ready is not None:
                for parameter in op.parameters:
                    ready(parameter)
            for tensor, gradient in zip(inputs, dx if len(inputs) > 1 else (dx,), strict=True):
                if tensor in self._trained and gradient is not None:
                    known = gradients.get(tensor)
                    gradients[tensor] = gradient if known is None else known + gradient
        return tuple(reached)


def _needed(graph: Graph, fetches: Sequence[Tensor]) -> list[Tensor]:
    """Return the computed tensors that `fetches` depend on, in the order of the graph."""
    needed: set[Tensor] = set()
    waiting = list(fetches)
    while waiting:
        tensor = waiting.pop()
        if tensor not in needed:
            needed.add(tensor)
            waiting.extend(tensor.inputs)
    return [tensor for tensor in graph.tensors.values() if tensor in needed and tensor.op]


def _steps(tensors: list[Tensor], fetches: Sequence[Tensor], fusing: bool) -> list[Step]:
    """Return a step for each tensor, or for each part of a chain that can be fused."""
    consumers: dict[Tensor, list[Tensor]] = {}
    for tensor in tensors:
        for source in tensor.inputs:
            consumers.setdefault(source, []).append(tensor)
    steps: list[Step] = []
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
        start = 0
        for op, length in fuse(ops) if fusing else [(op, 1) for op in ops]:
            steps.append(Step(op, chain[start].inputs, chain[start + length - 1]))
            start += length
    return steps


def _check_alike(own: Parameter, shared: Parameter) -> None:
    if shared.shape != own.shape or shared.dtype != own.dtype:
        raise ValueError(
            f"{own.name}: this graph makes it {own.shape} {own.dtype}, but the model has "
            f"{shared.shape} {shared.dtype}; model_fn must build the same layers for every mode, "
            "from `x` of the same shape (x[None] if it is a single row)"
        )
