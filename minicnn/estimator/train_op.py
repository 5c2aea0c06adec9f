"""The update of a training step: `optimize_loss` of the guide, and TrainOp."""

import copy
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minicnn import optimizers
from minicnn.core.checks import describe, function, number, optional, sequence
from minicnn.core.hints import hinted
from minicnn.core.op import Tensor
from minicnn.core.parameter import Parameter


@dataclass
class TrainOp:
    """Hold a loss and how to minimize it; `optimize_loss` makes one.

    Parameters
    ----------
    loss : Tensor
    optimizer : Optimizer
    clip_gradients : float, optional
        The largest global norm of the gradients.
    variables : sequence of str, optional
        The names of the parameters that are trained; None trains all.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> mc.TrainOp(loss=None, optimizer=mc.optimizers.SGD(0.1)).rate()
    0.1
    """

    loss: Any
    optimizer: optimizers.Optimizer
    clip_gradients: float | None = None
    variables: Sequence[str] | None = None

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        return self.optimizer.rate()

    def trained(self, parameters: Sequence[Parameter]) -> list[Parameter]:
        """Return those of the parameters that are trained."""
        if self.variables is None:
            return list(parameters)
        known = {parameter.name: parameter for parameter in parameters}
        for name in self.variables:
            if name not in known:
                raise ValueError(
                    f"`variables` must be among {', '.join(known)}, on which the loss depends, got "
                    f"{describe(name)}"
                )
        return [parameter for parameter in parameters if parameter.name in self.variables]

    def apply(self, parameters: Sequence[Parameter]) -> None:
        """Update the parameters once, from the gradients that backward has written."""
        parameters = self.trained(parameters)
        if self.clip_gradients is not None:
            optimizers.clip_by_global_norm(parameters, self.clip_gradients)
        self.optimizer.step(parameters)


@hinted
def optimize_loss(
    loss: Any,
    global_step: Any = None,
    learning_rate: float | optimizers.Schedule | None = None,
    optimizer: Any = "SGD",
    clip_gradients: float | None = None,
    learning_rate_decay_fn: Callable[[float, int], float] | None = None,
    variables: Sequence[str] | None = None,
    name: str | None = None,
) -> TrainOp:
    """Return the `train_op` that minimizes a loss.

    Parameters
    ----------
    loss : Tensor
        A scalar.
    global_step : None
        Kept for the signature: the Estimator counts the steps.
    learning_rate : float or callable, optional
        At least 0, or a schedule step -> rate; None if `optimizer` has its own.
    optimizer : str, class, Optimizer or callable
        "SGD", "Momentum", "Adam", "AdamW", "RMSProp"; a class or callable is called with the
        learning rate. An Optimizer is copied, and the copy has done no steps, because each run
        starts without any.
    clip_gradients : float, optional
        The largest global norm of the gradients; larger ones are scaled down together.
    learning_rate_decay_fn : callable, optional
        Takes (learning rate, step) and returns the rate of that step; steps count from 0.
    variables : sequence of str, optional
        The names of the parameters to train; None trains all.
    name : str, optional
        Kept for the signature.

    Returns
    -------
    TrainOp

    Raises
    ------
    ValueError, TypeError
        If the rate is negative, the optimizer unknown, or the loss not a scalar Tensor.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> graph = mc.Graph()
    >>> x = graph.placeholder("x", (None, 4), np.float32)
    >>> labels = graph.placeholder("labels", (None,), np.int64)
    >>> loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), mc.layers.dense(x, 3))
    >>> mc.optimize_loss(loss, learning_rate=0.001, optimizer="SGD").rate()
    0.001
    """
    if not isinstance(loss, Tensor) or loss.shape != ():
        raise TypeError(
            f"optimize_loss: `loss` must be a scalar Tensor such as softmax_cross_entropy returns, "
            f"got {describe(loss)}"
        )
    if global_step is not None:
        raise TypeError(
            "optimize_loss: the second argument is `global_step`, which must be None (the "
            f"Estimator counts the steps), got {describe(global_step)}; give the rate as "
            "learning_rate=0.1, the optimizer as optimizer='SGD'"
        )
    if learning_rate is not None and not callable(learning_rate):
        learning_rate = number(learning_rate, "learning_rate", least=0.0)
    if clip_gradients is not None and number(clip_gradients, "clip_gradients", least=0.0) == 0:
        raise ValueError("`clip_gradients` must be above 0, got 0; None clips nothing")
    rate: Any = learning_rate
    if learning_rate_decay_fn is not None:
        if learning_rate is None or callable(learning_rate):
            raise ValueError(
                "optimize_loss: `learning_rate_decay_fn` needs a number as `learning_rate`, got "
                f"{describe(learning_rate)}"
            )
        decay = function(learning_rate_decay_fn, "learning_rate_decay_fn")
        rate = functools.partial(_decayed, decay, learning_rate)
    if isinstance(optimizer, optimizers.Optimizer):
        optimizer = copy.copy(optimizer)
        optimizer.load_state_dict({"iterations": 0}, ())
    variables = optional(sequence, variables, "variables", "names of parameters")
    return TrainOp(loss, optimizers.get(optimizer, rate), clip_gradients, variables)


def _decayed(decay: Callable[[float, int], float], rate: float, step: int) -> float:
    return float(decay(rate, step))
