"""Which processes make the steps of a run: this one alone, unless a subclass says otherwise."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from minicnn.core.op import Tensor
from minicnn.core.parameter import Parameter


class Processes:
    """The processes that make the steps of a run together: here this one alone.

    `minicnn.distributed.DataParallel` is the same for several. Every process calls every method, in
    the order in which they stand here.
    """

    is_chief = True  # whether this is the one that logs, saves and evaluates

    def run(self) -> AbstractContextManager[None]:
        """Return the context of a run."""
        return nullcontext()

    def from_chief(self, value: Any) -> Any:
        """Return what the chief calls it with."""
        return value

    def begin(self, parameters: Sequence[Parameter]) -> None:
        """Make the parameters equal before the first step."""

    def check_rows(self, rows: int | None, step: int) -> None:
        """Raise if another process has a batch of another length for a step; None is no batch."""

    def part(self, feeds: dict[Tensor, Any]) -> tuple[dict[Tensor, Any], int, float]:
        """Return this process's rows of a batch, the number of the first, and their share."""
        return feeds, 0, 1.0

    def ready(self, parameter: Parameter) -> None:
        """Hear that the gradient of a parameter is written; backward goes on."""

    def sum(self, loss: float, parameters: Sequence[Parameter]) -> float:
        """Add up the gradients, each already weighted by its share; return the sum of `loss`."""
        return loss

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is set in any process; none goes on before all have asked."""
        return flag
