"""Optimizers, learning-rate schedules and gradient clipping."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from minicnn.core.checks import (
    TINY,
    array,
    boolean,
    choice,
    describe,
    fault,
    function,
    instance,
    integer,
    number,
    sequence,
)
from minicnn.core.hints import Hinting
from minicnn.core.parameter import Parameter, sum_of_squares
from minicnn.kernels import update as kernels
from minicnn.kernels.recording import Repeatable

Schedule = Callable[[int], float]
Rate = float | Schedule


class Optimizer(Hinting):
    """Base class of optimizers: holds the learning rate, the number of steps and the state.

    To write an optimizer, define `update`. If it keeps arrays between steps, name them:
    ``slots = ("mean",)``. They are passed as `state`, start as zeros and are saved in checkpoints.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, at least 0; or a schedule, which is called with the number of completed steps and
        returns the rate.

    Attributes
    ----------
    learning_rate : float or callable
        May be set between two steps; the next one checks it.
    iterations : int
        The number of completed steps.

    Raises
    ------
    TypeError, ValueError
        If the rate is not a finite number of at least 0.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> class SignDescent(mc.optimizers.Optimizer):
    ...     def update(self, w, g, state, rate):
    ...         w -= rate * np.sign(g)
    >>> p = mc.Parameter("w", np.zeros(3, np.float32))
    >>> p.grad[:] = 4, 0, -2
    >>> SignDescent(0.5).step([p])
    >>> p.value
    array([-0.5,  0. ,  0.5], dtype=float32)
    """

    slots: tuple[str, ...] = ()  # names of the arrays that are kept for each parameter
    _kernel: Any = None  # the function of kernels.update that `update` calls, if it is not defined
    _numbers: Callable[[float], tuple[float, ...]]  # returns its last argument for a rate
    # Of the last step: the kernel and the form of the parameters, and (value, gradient, state) of
    # each parameter.
    _known: Any = None
    _arrays: list[tuple[np.ndarray, np.ndarray, list[np.ndarray]]]

    def __init__(self, learning_rate: Rate) -> None:
        self.learning_rate = _checked_rate(learning_rate)
        self.iterations = 0
        self._state: dict[str, np.ndarray] = {}  # by name: "conv2d/kernel/momentum"

    def update(self, w: np.ndarray, g: np.ndarray, state: list[np.ndarray], rate: float) -> None:
        """Update one parameter in place.

        Parameters
        ----------
        w : ndarray
            The value, which is overwritten.
        g : ndarray
            Its gradient, which must not be changed.
        state : list of ndarray
            One array for each name in `slots`, of the shape of `w`; overwritten.
        rate : float
            The learning rate of this step.
        """
        if self._kernel is None:
            raise TypeError(f"{type(self).__name__} must define `update`")
        self._kernel(w, g, *state, self._numbers(rate))

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        rate = self.learning_rate
        if callable(rate):
            return number(rate(self.iterations), f"learning_rate({self.iterations})", least=0)
        return number(rate, "learning_rate", least=0)

    def step(self, parameters: Iterable[Parameter]) -> None:
        """Update every trainable parameter from its gradient.

        Parameters
        ----------
        parameters : iterable of Parameter
            For example ``model.parameters``.

        Raises
        ------
        ValueError
            If there are no parameters, two share a name, one is read-only, or one does not match
            the shape and type of its state from earlier steps. No parameter is changed then.
        """
        rate = self.rate()
        parameters = _checked(parameters)
        if not parameters:
            raise ValueError(
                "`parameters` must contain at least one Parameter, got none; build the model "
                "first, and take model.parameters after that"
            )
        if self._known != (self._kernel, _form(parameters)):
            trained = _trained(parameters)
            self._arrays = [(p.writable("value"), p.grad, self._state_of(p)) for p in trained]
            self._call = Repeatable()
            self._known = self._kernel, _form(parameters)
        self._update_all(rate)
        self.iterations += 1

    def _update_all(self, rate: float) -> None:
        """Update all parameters; if a kernel does it, by calls that are recorded and repeated."""
        dtypes = {w.dtype for w, *_ in self._arrays}
        is_own = getattr(self.update, "__func__", None) is Optimizer.update
        if len(dtypes) == 1 and is_own and self._kernel is not None:
            self._call(self._run_kernels, np.array(self._numbers(rate), *dtypes))
            return
        for w, g, state in self._arrays:
            self.update(w, g, state, rate)

    def _run_kernels(self, numbers: np.ndarray) -> None:
        for w, g, state in self._arrays:
            self._kernel(w, g, *state, numbers)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy gets: it finds the arrays of its parameters at its first step."""
        own = "_known", "_arrays", "_call"
        return {name: value for name, value in vars(self).items() if name not in own}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Return a copy of the state that is needed to resume training.

        Returns
        -------
        dict
            ``"iterations"``, and an array for each slot of each parameter that has been updated,
            such as ``"conv2d/kernel/momentum"``. The learning rate is not included.

        Examples
        --------
        >>> import numpy as np, minicnn as mc
        >>> sgd = mc.optimizers.SGD(0.1, momentum=0.9)
        >>> sgd.step([mc.Parameter("dense/bias", np.zeros(2, np.float32))])
        >>> sgd.state_dict()
        {'iterations': array(1), 'dense/bias/momentum': array([0., 0.], dtype=float32)}
        """
        arrays = {name: array.copy() for name, array in self._state.items()}
        return {"iterations": np.array(self.iterations, np.int64), **arrays}

    def load_state_dict(
        self, state: Mapping[str, np.ndarray], parameters: Iterable[Parameter]
    ) -> None:
        """Restore the state that `state_dict` returned.

        Parameters
        ----------
        state : mapping from str to array
            Each array is converted to the dtype of its parameter.
        parameters : iterable of Parameter
            The parameters that `step` will update.

        Raises
        ------
        ValueError
            If an entry is missing, unknown or of another shape, or holds NaN or a negative mean of
            squares. Nothing is changed then.
        """
        remedy = "load it into the optimizer and the model that saved it"
        instance(state, Mapping, "state", "what state_dict returns")
        entries = {name: array(value, f"state[{name!r}]") for name, value in state.items()}
        count = entries.pop("iterations", None)
        if count is None or count.shape or count.dtype.kind not in "iu" or not 0 <= count < 2**53:
            raise ValueError(f"'iterations' must be a number of steps, got {count}; {remedy}")
        owners = {f"{p.name}/{slot}": p for p in _checked(parameters) for slot in self.slots}
        needed = {name for name, owner in owners.items() if owner.trainable and count > 0}
        if wrong := (needed - entries.keys()) | (entries.keys() - owners.keys()):
            raise ValueError(f"{min(wrong)!r} is only in the state or only in the model; {remedy}")
        for name, value in entries.items():
            entries[name] = np.array(value, owners[name].dtype, order="C")
            _check_fits(name, entries[name], owners[name])
        if said := fault(entries):
            raise ValueError(f"{said}, which no step leaves; {remedy}")
        self._state, self.iterations = entries, int(count)
        self._known = None

    def _state_of(self, parameter: Parameter) -> list[np.ndarray]:
        """Return the state of a parameter, one array per slot; zeros at its first step."""
        names = [f"{parameter.name}/{slot}" for slot in self.slots]
        for name in names:
            if name not in self._state:
                self._state[name] = np.zeros_like(parameter.value)
            _check_fits(name, self._state[name], parameter)  # kernels do not check
        return [self._state[name] for name in names]


class SGD(Optimizer):
    """Stochastic gradient descent, with or without momentum.

    Without momentum: ``w -= rate g``. With momentum mu: ``v = mu v + g; w -= rate v``; with
    Nesterov momentum the update is ``w -= rate (g + mu v)``. Weight decay adds
    ``weight_decay w`` to g.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, or a schedule step -> rate.
    momentum : float
        mu, in [0, 1).
    nesterov : bool
        Whether to use Nesterov momentum; requires `momentum` above 0.
    weight_decay : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep
    learning", ICML 2013, equations 1 to 4. As in TensorFlow the rate multiplies the velocity, not
    the gradient, so a change of the rate takes effect immediately.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> p = mc.Parameter("w", np.ones(2, np.float32))
    >>> p.grad[:] = 1, 2
    >>> sgd = mc.optimizers.SGD(0.25)
    >>> sgd.step([p])
    >>> p.value, sgd.iterations
    (array([0.75, 0.5 ], dtype=float32), 1)
    """

    def __init__(self, learning_rate: Rate, momentum: float = 0.0, nesterov: bool = False,
                 weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate)
        self.momentum = number(momentum, "momentum", least=0, below=1)
        self.nesterov = boolean(nesterov, "nesterov")
        self.weight_decay = number(weight_decay, "weight_decay", least=0)
        if self.nesterov and not self.momentum:
            raise ValueError("`momentum` must be above 0 with nesterov=True, got 0; 0.9 is usual")
        self.slots = ("momentum",) if self.momentum else ()

    @property
    def _kernel(self) -> Any:
        return kernels.momentum if self.momentum or self.slots else kernels.sgd

    def _numbers(self, rate: float) -> tuple[float, ...]:
        return rate, self.weight_decay, self.momentum, self.nesterov


class Adam(Optimizer):
    """Adam, with decoupled weight decay (AdamW).

    At step t = 1, 2, ...::

        m = beta1 m + (1 - beta1) g              s = beta2 s + (1 - beta2) g^2
        m' = m / (1 - beta1^t)                   s' = s / (1 - beta2^t)
        w -= rate (m' / (sqrt(s') + epsilon) + weight_decay w)

    Each element changes by about `rate`, whatever the scale of its gradient. t is the number of
    the optimizer's steps, also for a parameter that was frozen at first.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, or a schedule step -> rate.
    beta1, beta2 : float
        Decay rates of the running means of g and g^2, in [0, 1).
    epsilon : float
        Above 0. It is added to sqrt(s'), as in Algorithm 1 of the paper; TensorFlow 1 added it to
        sqrt(s).
    weight_decay : float
        At least 0. It is applied to the weights directly, not added to the gradient.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    References
    ----------
    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, Algorithm 1.
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, Algorithm 2.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> p = mc.Parameter("w", np.ones(2, np.float32))
    >>> p.grad[:] = 100, -0.01
    >>> mc.optimizers.Adam(0.25).step([p])
    >>> p.value.round(4)
    array([0.75, 1.25], dtype=float32)
    """

    slots = ("adam_m", "adam_s")
    _kernel = staticmethod(kernels.adam)

    def __init__(self, learning_rate: Rate = 0.001, beta1: float = 0.9, beta2: float = 0.999,
                 epsilon: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate)
        self.beta1 = number(beta1, "beta1", least=0, below=1)
        self.beta2 = number(beta2, "beta2", least=0, below=1)
        self.epsilon = number(epsilon, "epsilon", least=TINY)
        self.weight_decay = number(weight_decay, "weight_decay", least=0)

    def _numbers(self, rate: float) -> tuple[float, ...]:
        t = self.iterations + 1
        root = math.sqrt(1 - self.beta2**t)
        # The kernel uses m and s, not m' and s': with correction = root / (1 - beta1^t),
        # m' / (sqrt(s') + epsilon) = correction m / (sqrt(s) + root epsilon). It also multiplies
        # the decay by its rate, so the decay is divided by the correction here.
        correction = root / (1 - self.beta1**t)
        return (rate * correction, self.weight_decay / correction, self.beta1, 1 - self.beta1,
                self.beta2, 1 - self.beta2, root * self.epsilon)


class AdamW(Adam):
    """Adam with the weight decay that PyTorch's AdamW has by default, 0.01.

    See `Adam`, whose weight decay is decoupled as well.

    Parameters
    ----------
    learning_rate, beta1, beta2, epsilon, weight_decay
        As for `Adam`.

    References
    ----------
    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, Algorithm 2.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.optimizers.AdamW(0.001).weight_decay
    0.01
    """

    def __init__(self, learning_rate: Rate = 0.001, beta1: float = 0.9, beta2: float = 0.999,
                 epsilon: float = 1e-8, weight_decay: float = 0.01) -> None:
        super().__init__(learning_rate, beta1, beta2, epsilon, weight_decay)


class RMSprop(Optimizer):
    """RMSProp as in TensorFlow 1: the gradient divided by the root of a running mean of squares.

        s = decay s + (1 - decay) g^2
        v = momentum v + rate g / sqrt(s + epsilon);   w -= v

    s starts at 1, so that the first steps are not too long. PyTorch's RMSprop differs: there s
    starts at 0, epsilon is added to the root, and the rate multiplies v.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, or a schedule step -> rate.
    decay : float
        In [0, 1).
    momentum : float
        In [0, 1).
    epsilon : float
        Above 0.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong type or is out of range.

    References
    ----------
    Hinton, Srivastava and Swersky, "Neural networks for machine learning", lecture 6e, 2012.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> p = mc.Parameter("w", np.ones(2, np.float32))
    >>> p.grad[:] = 0.1, 100
    >>> mc.optimizers.RMSprop(0.1).step([p])
    >>> p.value.round(4)  # the steps 0.01 / sqrt(0.901) and 10 / sqrt(1000.9)
    array([0.9895, 0.6839], dtype=float32)
    """

    slots = ("rms", "momentum")
    _kernel = staticmethod(kernels.rmsprop)

    def __init__(self, learning_rate: Rate, decay: float = 0.9, momentum: float = 0.0,
                 epsilon: float = 1e-10) -> None:
        super().__init__(learning_rate)
        self.decay = number(decay, "decay", least=0, below=1)
        self.momentum = number(momentum, "momentum", least=0, below=1)
        self.epsilon = number(epsilon, "epsilon", least=TINY)

    def _numbers(self, rate: float) -> tuple[float, ...]:
        # The arrays of the state start at 0. What is left of a start at 1 is decay^t.
        start = self.decay ** (self.iterations + 1)
        return rate, self.decay, 1 - self.decay, self.momentum, self.epsilon + start


class constant(Hinting):  # noqa: N801
    """A constant learning rate.

    Parameters
    ----------
    rate : float
        At least 0.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.optimizers.constant(0.1)(1000)
    0.1
    """

    def __init__(self, rate: float) -> None:
        self.rate = number(rate, "rate", least=0)

    def __call__(self, step: int) -> float:
        return self.rate


class step_decay(Hinting):  # noqa: N801
    """Multiply the rate by a factor at regular intervals: rate factor^floor(step / every).

    Parameters
    ----------
    rate : float
        The initial rate, at least 0.
    every : int
        Number of steps between two changes.
    factor : float
        Factor of each change, at least 0.

    Examples
    --------
    >>> import minicnn as mc
    >>> schedule = mc.optimizers.step_decay(0.5, every=100, factor=0.5)
    >>> schedule(99), schedule(100), schedule(200)
    (0.5, 0.25, 0.125)
    """

    def __init__(self, rate: float, every: int, factor: float) -> None:
        self.rate = number(rate, "rate", least=0)
        self.every = integer(every, "every")
        self.factor = number(factor, "factor", least=0)

    def __call__(self, step: int) -> float:
        return self.rate * self.factor ** (step // self.every)


class exponential_decay(Hinting):  # noqa: N801
    """Decay the rate exponentially: rate decay_rate^(step / decay_steps).

    Parameters
    ----------
    rate : float
        The initial rate, at least 0.
    decay_steps : int
        Number of steps in which the rate is multiplied by `decay_rate`.
    decay_rate : float
        At least 0.
    staircase : bool
        Whether to round the exponent down, so that the rate changes only every `decay_steps`.

    Examples
    --------
    >>> import minicnn as mc
    >>> schedule = mc.optimizers.exponential_decay(0.5, decay_steps=100, decay_rate=0.25)
    >>> schedule(0), schedule(50), schedule(100)
    (0.5, 0.25, 0.125)
    """

    def __init__(
        self, rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
    ) -> None:
        self.rate = number(rate, "rate", least=0)
        self.decay_steps = integer(decay_steps, "decay_steps")
        self.decay_rate = number(decay_rate, "decay_rate", least=0)
        self.staircase = boolean(staircase, "staircase")

    def __call__(self, step: int) -> float:
        steps = self.decay_steps
        return self.rate * self.decay_rate ** (step // steps if self.staircase else step / steps)


class cosine_decay(Hinting):  # noqa: N801
    """Decay the rate along a cosine: end + (rate - end) (1 + cos(pi step / decay_steps)) / 2.

    Parameters
    ----------
    rate : float
        The initial rate, at least 0.
    decay_steps : int
        Number of steps until the rate is `end`; it then stays constant.
    end : float
        The final rate, at least 0.

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017,
    equation 5, without the restarts.

    Examples
    --------
    >>> import minicnn as mc
    >>> schedule = mc.optimizers.cosine_decay(0.5, decay_steps=100)
    >>> schedule(0), round(schedule(50), 6), schedule(100)
    (0.5, 0.25, 0.0)
    """

    def __init__(self, rate: float, decay_steps: int, end: float = 0.0) -> None:
        self.rate = number(rate, "rate", least=0)
        self.decay_steps = integer(decay_steps, "decay_steps")
        self.end = number(end, "end", least=0)

    def __call__(self, step: int) -> float:
        done = min(step / self.decay_steps, 1)
        return self.end + (self.rate - self.end) * (1 + math.cos(math.pi * done)) / 2


def clip_by_global_norm(parameters: Iterable[Parameter], max_norm: float) -> float:
    """Scale all gradients in place so that their global norm is at most `max_norm`.

    ``norm = sqrt(sum of g^2 over all trainable parameters)``. If it is above `max_norm`, every
    gradient is multiplied by ``max_norm / norm``. If it is not finite, nothing is changed.

    Parameters
    ----------
    parameters : iterable of Parameter
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before clipping.

    Raises
    ------
    TypeError, ValueError
        If `max_norm` is not a finite number above 0, or two parameters share a name.

    References
    ----------
    Pascanu, Mikolov and Bengio, "On the difficulty of training recurrent neural networks",
    ICML 2013, Algorithm 1.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> p = mc.Parameter("w", np.zeros(2, np.float32))
    >>> p.grad[:] = 3, 4
    >>> mc.optimizers.clip_by_global_norm([p], max_norm=2.5)
    5.0
    >>> p.grad
    array([1.5, 2. ], dtype=float32)
    """
    max_norm = number(max_norm, "max_norm", least=TINY)
    gradients = [parameter.writable("grad") for parameter in _trained(_checked(parameters))]
    norm = math.sqrt(sum(map(sum_of_squares, gradients)))
    if max_norm < norm < math.inf:
        for g in gradients:
            g *= max_norm / norm
    return norm


def get(
    optimizer: str | Optimizer | Callable[[Rate], Optimizer], learning_rate: Rate | None = None
) -> Optimizer:
    """Return the optimizer that an argument specifies.

    Parameters
    ----------
    optimizer : str, Optimizer, class or callable
        ``"SGD"``, ``"Momentum"`` (SGD with momentum 0.9), ``"Adam"``, ``"AdamW"`` or ``"RMSProp"``
        in upper or lower case; an Optimizer, which is returned; or a class or function that makes
        one from the rate.
    learning_rate : float, schedule or None
        None keeps the rate of an Optimizer; otherwise a rate is required.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError
        If the name is unknown or the rate is missing.
    TypeError
        If `optimizer` is, or returns, something else.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.optimizers.get("Momentum", 0.1).momentum
    0.9
    """
    if isinstance(optimizer, Optimizer):
        if learning_rate is not None:
            optimizer.learning_rate = _checked_rate(learning_rate)
        return optimizer
    maker: Any = optimizer
    if isinstance(optimizer, str):
        maker = _BY_NAME[choice(optimizer, "optimizer", _BY_NAME, "an Optimizer")]
    if learning_rate is None and callable(maker):
        raise ValueError(
            f"`learning_rate` must be given with {describe(optimizer)}, got None; often good: 0.1 "
            "for SGD, 0.01 for SGD with momentum, 0.001 for the others"
        )
    made = maker(learning_rate) if callable(maker) else None
    if not isinstance(made, Optimizer):
        raise TypeError(
            "`optimizer` must be a name, an Optimizer, or a class or function that makes one from "
            f"the learning rate, got {describe(optimizer)}"
        )
    return made


_BY_NAME: dict[str, Callable[[Rate], Optimizer]] = {
    "sgd": SGD,
    "momentum": functools.partial(SGD, momentum=0.9),
    "adam": Adam,
    "adamw": AdamW,
    "rmsprop": RMSprop,
}


def _checked_rate(rate: Any) -> Rate:
    """Return a rate that is a number of at least 0, or a schedule."""
    return (
        function(rate, "learning_rate", "a number or a function of the step", 1)
        if callable(rate)
        else number(rate, "learning_rate", least=0)
    )


def _trained(parameters: list[Parameter]) -> list[Parameter]:
    """Return the trainable parameters; their names must differ, as the state is kept by name."""
    trained = [parameter for parameter in parameters if parameter.trainable]
    names = [parameter.name for parameter in trained]
    if len(set(names)) < len(names):
        raise ValueError(
            "`parameters` must have different names, got "
            f"{max(names, key=names.count)!r} twice; rename one"
        )
    return trained


def _form(parameters: list[Parameter]) -> list[Any]:
    """Return what the update of parameters depends on, except the elements of their arrays."""
    return [
        (p.scope, p.key, p.trainable, id(p._value), p._value.flags.writeable, id(p._grad))
        for p in parameters
    ]


def _checked(parameters: Iterable[Parameter]) -> list[Parameter]:
    return [
        instance(parameter, Parameter, "parameters")
        for parameter in sequence(parameters, "parameters", "Parameters, such as model.parameters")
    ]


def _check_fits(name: str, array: np.ndarray, parameter: Parameter) -> None:
    if array.shape != parameter.shape or array.dtype != parameter.dtype:
        raise ValueError(
            f"{name!r} must be like its parameter, {parameter.shape} {parameter.dtype}, got "
            f"{array.shape} {array.dtype}; use the model it belongs to, or a new optimizer"
        )
