"""`Repeated`: layers in a row that call their kernels without Python between them.

A layer checks shapes, finds buffers and calls kernels. For a batch of few rows this takes longer
than the kernels themselves. In a training loop with a `Workspace`, every step makes the same calls
with the same arrays. After some steps these calls are therefore recorded, and native code repeats
them (`kernels.recording`). There all threads share even short calls.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicnn.core.context import Context
from minicnn.core.op import Op, parts
from minicnn.kernels import threads
from minicnn.kernels.recording import Repeatable

_FORMS = 200  # of inputs of all ops, whose calls a workspace keeps
_MOST_BYTES = 1 << 28  # of the arrays of recorded forward passes that it keeps


class Repeated(Op, repeatable=True):
    """Ops in a row, each of which consists of calls of kernels and of views.

    Passes with inputs of the same form make the same calls, unless an attribute of an op or of a
    part of it is set: the activation, or another parameter. From then on, Python makes all calls.
    The arrays that a recorded pass has written are kept, so that a layer finds in them what it has
    saved.

    Parameters
    ----------
    ops : sequence of Op
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        super().__init__(ops[0].name)
        self.ops = list(ops)
        self._parameters = self.parameters
        self._parts = [(part, part._changes) for part in parts(self)]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        ctx._slots.pop(self, None)  # of an earlier pass
        if ctx.workspace is None or not ctx.save or self._must_call():
            return self._forward(x, ctx)
        calls = ctx.workspace.calls
        trainable = tuple(part._trainable for part, _ in self._parts)
        key = self, ctx.training, ctx.counted, ctx._total, trainable, _form(x)
        if key not in calls:
            if len(calls) > _FORMS or sum(call.size for call in calls.values()) > _MOST_BYTES:
                calls.clear()
            calls[key] = Repeatable()
        y, saved = calls[key](self._pass, x, ctx)
        ctx._slots |= {**saved, self: calls[key]}
        return y.view()  # whose shape may be set

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        before = ctx._slots.get(self)
        if before is None or not before.is_recorded or self._must_call():
            return self._backward(dy, ctx, need_dx)
        call = before.next.setdefault((_form(dy), need_dx), Repeatable(0))
        dx = call(self._backward, dy, ctx, need_dx)
        return None if dx is None else dx.view()

    def _pass(self, x: np.ndarray, ctx: Context) -> tuple[np.ndarray, dict[Any, Any]]:
        """Return the output, and what the ops have saved."""
        y, slots = self._forward(x, ctx), ctx._slots
        return y, {part: slots[part] for part, _ in self._parts if part in slots}

    def _forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        for op in self.ops:
            x = op.forward(x, ctx)
        return x

    def _backward(self, dy: Any, ctx: Context, need_dx: bool) -> Any:
        for op in reversed(self.ops[1:]):
            dy = op.backward(dy, ctx)
        return self.ops[0].backward(dy, ctx, need_dx)

    def _must_call(self) -> bool:
        """Return whether Python must make the calls, e.g. since a read-only array raises."""
        return (
            threads.is_taping()
            or any(part._changes != changes for part, changes in self._parts)
            or not all(
                array is None or array.flags.writeable
                for parameter in self._parameters for array in (parameter._value, parameter._grad)
            )
        )


def _form(x: Any) -> tuple[Any, ...]:
    """Return the class, the shape and the type of an array; None for the type of other values."""
    return type(x), np.shape(x), getattr(x, "dtype", None)
