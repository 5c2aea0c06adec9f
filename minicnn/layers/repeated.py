"""`Repeated`: layers in a row that call their kernels without Python between them.

A layer checks shapes, finds buffers and calls kernels. For a batch of few rows this takes longer
than the kernels themselves. In a training loop with a `Workspace` every step makes the same calls
with the same arrays. After some steps they are therefore recorded (`threads.taped`), and repeated
by native code, in which all threads share even short calls (`kernels.recording`).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from minicnn.core.context import Context
from minicnn.core.op import Op, parts
from minicnn.core.parameter import Parameter
from minicnn.kernels import threads
from minicnn.kernels.recording import Repeatable

_FORMS = 200  # of passes of all ops that a workspace knows


class Repeated(Op, repeatable=True):
    """Ops in a row, each of which consists of calls of kernels and of views.

    Passes make the same calls if the inputs have the same form, and the parameters the same
    arrays. The arrays that a recorded pass has written are kept, so that a layer finds in them what
    it has saved.

    Parameters
    ----------
    ops : sequence of Op
    """

    def __init__(self, ops: Sequence[Op]) -> None:
        super().__init__(ops[0].name)
        self.ops = list(ops)
        self._owners = [
            (part, name)
            for part in parts(self)
            for name, value in vars(part).items()
            if isinstance(value, Parameter)
        ]

    def forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        if ctx.workspace is None or not ctx.save or threads.is_taping():
            return self._forward(x, ctx)
        calls = ctx.workspace.calls
        if len(calls) > _FORMS:
            calls.clear()
        key = self, _form(x), ctx.training, *self._arrays()
        call = calls.setdefault(key, Repeatable())
        outer = ctx._slots
        y, saved = call(self._pass, x, ctx)
        ctx._slots = outer | saved
        if call.is_recorded:
            ctx[self] = call.next
        return y

    def backward(self, dy: Any, ctx: Context, need_dx: bool = True) -> Any:
        calls = ctx._slots.get(self)
        if calls is None or threads.is_taping():
            return self._backward(dy, ctx, need_dx)
        call = calls.setdefault((_form(dy), need_dx), Repeatable(0))
        return call(self._backward, dy, ctx, need_dx)

    def _pass(self, x: np.ndarray, ctx: Context) -> tuple[np.ndarray, dict[Any, Any]]:
        """Return the output, and what the ops have saved."""
        ctx._slots = {}
        return self._forward(x, ctx), ctx._slots

    def _forward(self, x: np.ndarray, ctx: Context) -> np.ndarray:
        for op in self.ops:
            x = op.forward(x, ctx)
        return x

    def _backward(self, dy: Any, ctx: Context, need_dx: bool) -> Any:
        for op in reversed(self.ops[1:]):
            dy = op.backward(dy, ctx)
        return self.ops[0].backward(dy, ctx, need_dx)

    def _arrays(self) -> list[Any]:
        """Return which arrays the parameters have now, and whether they may be written."""
        state: list[Any] = []
        for op, name in self._owners:
            parameter = getattr(op, name)
            for array in (parameter._value, parameter._grad):
                state += id(array), array is None or array.flags.writeable
        return state


def _form(x: Any) -> tuple[Any, ...]:
    return type(x), np.shape(x), getattr(x, "dtype", None)
