"""Calling a model_fn on symbolic Tensors, once for each mode: the graph and its placeholders."""

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from minicnn import initializers
from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, Tensor, parts
from minicnn.core.parameter import Parameter
from minicnn.estimator.config import ModeKeys, ModelFnOps, call_model_fn
from minicnn.estimator.feeding import Batch, by_name, each
from minicnn.estimator.graph import Graph
from minicnn.inference import InferenceModel, Program
from minicnn.losses import SoftmaxCrossEntropy
from minicnn.ops import Cast, Reshape, check_labels


class _Copies(Graph):
    """A graph that copies the ops that are applied in it, and draws no start values.

    A layer that was made outside of model_fn belongs to the training graph, where a run may be
    using it, so it must not change. The values of the parameters come from a checkpoint.
    """

    def __init__(self, rng: Any, parameters: dict[str, Parameter]) -> None:
        super().__init__(rng, parameters)
        self._copied: dict[int, Any] = {}  # shared, since ops may refer to each other

    def add(self, op: Op, inputs: tuple[Tensor, ...]) -> Tensor:
        copied = copy.deepcopy(op, self._copied)
        for part in parts(copied):
            for name in vars(part):
                if name.endswith("_initializer"):
                    setattr(part, name, initializers.zeros)
        return super().add(copied, inputs)


class _TotalLoss(Op):
    """A loss plus the sum of the regularizers of the parameters that it depends on.

    Their gradients are not the business of `backward`, since those of the layers overwrite them:
    the session adds them to each gradient that is complete.
    """

    kind = "total_loss"

    def __init__(self, parameters: list[Parameter]) -> None:
        super().__init__()
        self._regularized = parameters

    def forward(self, x: Any, ctx: Context) -> Any:
        return x + sum(parameter.penalty() for parameter in self._regularized)

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        return dy


class Trace:
    """The graph that a model_fn builds for batches of one form.

    Parameters
    ----------
    model_fn : callable
    mode : str
    batch : (features, labels)
        A batch that shows names, shapes and types.
    parameters : dict from str to Parameter
        Shared with the traces for other modes.
    rng : numpy.random.Generator
        Where start values are drawn from.
    options : dict
        The other arguments that model_fn may name.
    """

    def __init__(
        self,
        model_fn: Any,
        mode: str,
        batch: Batch,
        parameters: dict[str, Parameter],
        rng: np.random.Generator,
        options: dict[str, Any],
    ) -> None:
        self.form = form(batch)
        self._fast: dict[Any, InferenceModel] = {}
        kind = Graph if mode == ModeKeys.TRAIN else _Copies
        self.graph = kind(rng, parameters)
        self._features, self._labels = (
            _placeholders(self.graph, name, part)
            for name, part in zip(("features", "labels"), batch, strict=True)
        )
        try:
            self.ops: ModelFnOps = call_model_fn(
                model_fn, features=self._features, labels=self._labels, mode=mode, **options
            )
        except (TypeError, AttributeError) as error:
            if batch[1] is not None or not re.search("got None|NoneType", str(error)):
                raise
            remedy = (
                "in mode 'infer': make the loss only where mode != ModeKeys.INFER"
                if mode == ModeKeys.INFER
                else "without `y`: give it beside `x`, or (features, labels) in input_fn"
            )
            raise TypeError(f"{error}; `labels` are None {remedy}") from error
        trained = self.ops.train_op and self.ops.train_op.loss
        for tensor in (*self.ops.predictions.values(), self.ops.loss, trained):
            if tensor is not None and tensor.graph is not self.graph:
                raise ValueError(
                    f"model_fn returned {tensor!r}, which belongs to another graph; build "
                    "everything inside model_fn"
                )
        totals = {loss: self._total(loss) for loss in (self.ops.loss, trained) if loss is not None}
        self.ops.loss = totals.get(self.ops.loss)
        if trained is not None:
            self.ops.train_op = replace(self.ops.train_op, loss=totals[trained])

    def _total(self, loss: Tensor) -> Tensor:
        """Return a loss plus the regularizers of the parameters that it depends on, if any."""
        steps = self.graph.plan([loss], fuse=False).steps
        regularized = [p for step in steps for p in step.parameters if p.regularizer is not None]
        # Graph.add, because that of _Copies would copy the parameters.
        return Graph.add(self.graph, _TotalLoss(regularized), (loss,)) if regularized else loss

    def check_labels(self, labels: Any) -> None:
        """Raise if a label is not one of the classes of a loss.

        Do nothing if the labels of all rows are unknown (None): each batch is checked when used.
        """
        if labels is None:
            return
        for tensor in self.graph.tensors.values():
            if not isinstance(tensor.op, SoftmaxCrossEntropy) or len(tensor.inputs[0].shape) != 1:
                continue  # no loss, or one of rows
            source, logits = tensor.inputs[:2]
            classes: Any = logits.shape[1]  # always known
            while isinstance(source.op, Cast | Reshape):
                source = source.inputs[0]
            for name, holder in by_name(self._labels).items():
                if source is holder:
                    check_labels(by_name(labels)[name], classes, name or "labels")

    def inference(self, outputs: Any, fuse: bool) -> InferenceModel:
        """Return what computes the predictions, or tensors of the names `outputs`; made once.

        No weight may change any more.
        """
        tensors = self._row_tensors(outputs)
        key = *tensors.items(), outputs is None, fuse
        if key not in self._fast:
            plan = self.graph.plan(tensors.values(), fuse)
            steps = [(step.op, step.inputs, step.output) for step in plan.steps]
            is_single = self.ops.single and outputs is None
            program = Program("estimator", self.features, steps, tensors, is_single)
            self._fast[key] = InferenceModel(program)
        return self._fast[key]

    def _row_tensors(self, outputs: Any) -> dict[str, Tensor]:
        predicted = self.ops.predictions
        names = list(predicted) if outputs is None else checks.sequence(outputs, "outputs", "names")
        found = {n: predicted[n] if n in list(predicted) else self.graph.find(n) for n in names}
        for tensor in found.values():
            if tensor.shape[:1] != (None,):
                raise ValueError(f"`outputs` must have a row for each of the batch, got {tensor!r}")
        return found

    def load_optimizer(self, state: Mapping[str, np.ndarray]) -> None:
        """Continue the optimizer from its state in a checkpoint.

        Raises
        ------
        TypeError, ValueError
            If the state does not fit. The optimizer has not changed then.
        """
        train_op = self.ops.train_op
        steps = self.graph.plan([train_op.loss], fuse=False).steps
        trained = train_op.trained([p for step in steps for p in step.op.parameters])
        owners = {name.rpartition("/")[0] for name in state}
        # A parameter that no gradient has reached, such as one before an argmax, has no state yet.
        known = [parameter for parameter in trained if parameter.name in owners]
        train_op.optimizer.load_state_dict(state, known or trained)

    def feeds(self, batch: Batch) -> dict[Tensor, np.ndarray]:
        """Return the value of each placeholder for a batch."""
        for name, first, got in zip(("features", "labels"), self.form, form(batch), strict=True):
            if first != got:
                expected, given = (each("{0[0]} {0[1]}".format, part) for part in (first, got))
                raise ValueError(
                    f"the `{name}` must be rows of one form in all batches, expected {expected} as "
                    f"in the first batch, got {given}; resize or convert them"
                )
        return {
            holder: by_name(part)[name]
            for holders, part in zip((self._features, self._labels), batch, strict=True)
            for name, holder in by_name(holders).items()
        }

    def features(self, x: Any) -> dict[Any, np.ndarray]:
        """Return the value of each placeholder for features alone."""
        return self.feeds((each(np.asarray, x), None))


def form(batch: Batch) -> tuple[Any, ...]:
    """Return the names, row shapes and types of a batch's features and labels."""
    return tuple(each(lambda a: (a.shape[1:], a.dtype), part) for part in batch)


def _placeholders(graph: Graph, name: str, part: Any) -> Any:
    """Return a Tensor for a part of a batch, or a dict of Tensors, or None."""
    if isinstance(part, dict):
        return {key: _placeholder(graph, key, array) for key, array in part.items()}
    return None if part is None else _placeholder(graph, name, part)


def _placeholder(graph: Graph, name: Any, array: np.ndarray) -> Tensor:
    checks.text(name, "a name in features or labels")
    return graph.placeholder(name, (None, *array.shape[1:]), array.dtype)
