"""The processes of a run: a single one, unless a subclass makes them several."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from minicnn.core.op import Tensor
from minicnn.core.parameter import Parameter


class Processes:
    """Distribute the steps of a run over processes; this base class is for a single process.

    `minicnn.distributed.DataParallel` is for several. Every process calls every method, in the
    order in which they are defined here.
    """

    is_chief = True  # whether this process logs, saves and evaluates
    # Returns the sum of an array over all processes; None for a single one. Layers call it through
    # their `Context`, in the same order in every process.
    total: Callable[[np.ndarray], np.ndarray] | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def run(self) -> AbstractContextManager[None]:
        """Return the context of a run."""
        return nullcontext()

    def from_chief(self, value: Any) -> Any:
        """Return the value that the chief has passed."""
        return value

    def begin(self, parameters: Sequence[Parameter]) -> None:
        """Make the parameters equal before the first step."""

    def check_rows(self, rows: int | None, step: int) -> None:
        """Raise if another process has another number of rows in a step; None means no batch."""

    def part(self, feeds: dict[Tensor, Any]) -> tuple[dict[Tensor, Any], int, float]:
        """Return this process's rows of a batch, the index of the first, and their share."""
        return feeds, 0, 1.0

    def ready(self, parameter: Parameter) -> None:
        """Use a parameter's gradient as soon as it is final, while backward continues."""

    def sum(self, loss: float, parameters: Sequence[Parameter]) -> float:
        """Sum the gradients, which are weighted by their shares; return the sum of `loss`."""
        return loss

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process, once all processes have called this."""
        return flag
