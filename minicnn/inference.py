"""Models for inference: `InferenceModel`, which `for_inference` returns."""

import contextlib
import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context, Workspace
from minicnn.core.op import Op, parts
from minicnn.kernels import threads
from minicnn.kernels.recording import Recording
from minicnn.layers import Dense
from minicnn.layers.chain import Chain, is_chain

_SIZES = 4  # numbers of rows whose buffers are kept


class Program(NamedTuple):
    """What an `InferenceModel` computes. Its ops and their weights never change."""

    name: str
    feeds: Callable[[Any], dict[Any, np.ndarray]]  # checks inputs, and returns them by key
    steps: Sequence[tuple[Op, tuple[Any, ...], Any]]  # op, keys of its inputs, key of its output
    fetches: dict[Any, Any]  # the keys of the outputs, by name
    is_single: bool  # whether there is one output, without a name


class InferenceModel:
    """Compute the outputs of a model faster: a snapshot of it, which never changes.

    ``Sequential.for_inference`` and ``Estimator.for_inference`` make it. The filters are packed
    once, batch normalization is folded into the layer before it, and the calls of the kernels and
    their buffers are prepared once for each number of rows. The outputs are those of the model's
    `predict` within rounding, and bit-identical for any number of threads. Several threads can use
    it at the same time. It can be pickled, unless a part of the model cannot.

    Parameters
    ----------
    program : Program
        Made by ``for_inference``.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Dense(8, activation="relu"), mc.layers.Dense(2)])
    >>> model.build((None, 4), rng=0)
    (None, 2)
    >>> fast = model.for_inference()
    >>> x = np.ones((3, 4), np.float32)
    >>> np.allclose(fast(x), model.predict(x))
    True
    """

    def __init__(self, program: Program) -> None:
        self._program = checks.instance(program, Program, "program", "made by for_inference()")
        self._packed: dict[Op, Any] = {}  # kernels, shared by all runs
        # By number of rows, in the order of their last use: the runs that no thread uses now.
        self._runs: OrderedDict[int, list[_Run]] = OrderedDict()

    def predict(self, x: Any, batch_size: int = 100) -> Any:
        """Return the outputs for all rows of `x`, computed `batch_size` rows at a time.

        Parameters
        ----------
        x : ndarray, or dict of str to ndarray
            What the model's `predict` takes.
        batch_size : int

        Returns
        -------
        ndarray, or dict of str to ndarray
            With a row for each of `x`.
        """
        batch_size = checks.integer(batch_size, "batch_size")
        feeds = self._program.feeds(x)
        starts = range(0, max(_rows_of(feeds), 1), batch_size)
        pieces = [
            self._outputs({key: rows[start : start + batch_size] for key, rows in feeds.items()})
            for start in starts
        ]
        outputs = pieces[0]
        if len(pieces) > 1:
            outputs = {name: np.concatenate([piece[name] for piece in pieces]) for name in outputs}
        return next(iter(outputs.values())) if self._program.is_single else outputs

    def __call__(self, x: Any) -> Any:
        """Return the outputs for all rows of `x`, as `predict` does."""
        return self.predict(x)

    def __repr__(self) -> str:
        return f"InferenceModel of {self._program.name!r}"

    def __reduce__(self) -> Any:
        return InferenceModel, (self._program,)

    def _outputs(self, feeds: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
        rows = _rows_of(feeds)
        runs = self._runs.setdefault(rows, [])
        with contextlib.suppress(KeyError):  # other threads may change it at any time
            self._runs.move_to_end(rows)
        try:
            run = runs.pop()
        except IndexError:
            run = _Run(self._program, self._packed, feeds)
        else:
            run.repeat(feeds)
        outputs = run.outputs()
        runs.append(run)
        while len(self._runs) > _SIZES:
            self._runs.popitem(last=False)  # used longest ago
        return outputs


class _Run:
    """The calls that compute the outputs for one number of rows, and their buffers.

    Recording them computes the outputs for the first rows. Kernels that read only weights run
    only then.
    """

    def __init__(
        self, program: Program, packed: dict[Op, Any], feeds: dict[Any, np.ndarray]
    ) -> None:
        ctx = Context(save=False, workspace=Workspace())
        ctx.packed = packed
        self._inputs = {key: np.array(rows, order="C") for key, rows in feeds.items()}
        values: dict[Any, Any] = dict(self._inputs)
        changing = list(values.values())  # the arrays that depend on the inputs
        recording = Recording()
        self._steps: list[Callable[[], None]] = [recording.run]
        for op, inputs, key in program.steps:
            forward: Callable[..., Any] = op.forward
            arguments = *(values[source] for source in inputs), ctx
            output, calls = threads.taped(forward, *arguments)
            if _is_repeatable(op, arguments[:-1], calls):
                for call in calls:
                    arrays = [a for a in call[2] if isinstance(a, np.ndarray)]
                    if any(np.may_share_memory(a, b) for a in arrays for b in changing):
                        changing += [array for array in arrays if array.flags.writeable]
                        recording.calls.append(call)
            else:
                output = np.array(output, order="C")
                changing.append(output)
                recording = Recording()
                self._steps += [
                    functools.partial(_copy_output, forward, arguments, output), recording.run
                ]
            values[key] = output
        self._outputs = {name: values[key] for name, key in program.fetches.items()}

    def repeat(self, feeds: dict[Any, np.ndarray]) -> None:
        for key, rows in feeds.items():
            self._inputs[key][...] = rows
        for step in self._steps:
            step()

    def outputs(self) -> dict[Any, np.ndarray]:
        return {name: output.copy() for name, output in self._outputs.items()}


def _is_repeatable(op: Op, inputs: Sequence[Any], calls: Sequence[Any]) -> bool:
    """Return whether the recorded calls of kernels compute the outputs of an op for any inputs.

    They do not if an array was copied for a kernel, nor if there are statistics or a mask of the
    batch.
    """
    return (
        None not in calls and all(array.flags.c_contiguous for array in inputs)
        and all(part.repeatable for part in parts(op))
        and not any(getattr(part, "training", None) for part in parts(op))
    )


def _copy_output(forward: Callable[..., Any], arguments: Any, output: np.ndarray) -> None:
    output[...] = forward(*arguments)


def _rows_of(feeds: dict[Any, np.ndarray]) -> int:
    return len(next(iter(feeds.values())))


def program_of(model: Chain) -> Program:
    """Return the program of a copy of a built model."""
    if model.input_shape is None:
        raise RuntimeError(f"{model.label}: call build(input_shape, rng) before for_inference()")
    model = copy.deepcopy(model)
    for parameter in model.parameters:
        parameter._grad = None
        parameter.value.flags.writeable = False
    ops = model._chain if is_chain(model) else [model]
    steps = [(op, (number,), number + 1) for number, op in enumerate(ops)]
    return Program(model.label, functools.partial(_feed, model), steps, {None: len(ops)}, True)


def with_kernels(model: InferenceModel, dtype: Any) -> InferenceModel:
    """Return the model, or for float16 one with rounded kernels; see `Sequential.for_inference`."""
    name = getattr(dtype, "__name__", str(dtype))
    if checks.choice(name, "weight_dtype", ("float32", "float16")) == "float32":
        return model
    program = copy.deepcopy(model._program)  # an Estimator predicts with these layers, too
    for op, *_ in program.steps:
        for part in parts(op):
            if type(part) is Dense:
                _halve(part)
    return InferenceModel(program)


def _halve(layer: Dense) -> None:
    """Round a kernel to float16, unless it is too large or too small for it."""
    if layer.dtype != np.float32:
        raise ValueError(
            f"{layer.label}: `weight_dtype` float16 is for models of float32, got one of "
            f"{layer.dtype}; leave it out, or build the model with dtype=np.float32"
        )
    limits = np.finfo(np.float16)
    largest = np.abs(layer.kernel.value).max(initial=0)
    if limits.smallest_normal <= largest <= limits.max:
        layer.kernel._value = layer.kernel.value.astype(np.float16)


def _feed(model: Chain, x: Any) -> dict[Any, np.ndarray]:
    return {0: model.converted(x)}
