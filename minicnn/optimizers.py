"""Optimizers: how parameters follow their gradients; learning-rate schedules; clipping."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from minicnn.core.checks import (
    array,
    boolean,
    choice,
    describe,
    instance,
    integer,
    number,
    optimizer_fault,
    sequence,
)
from minicnn.core.parameter import Parameter
from minicnn.kernels import update as kernels

Schedule = Callable[[int], float]
Rate = float | Schedule
Array = np.ndarray


class Optimizer:
    """What SGD, Adam and a rule of your own share: the rate, the count of steps, the state.

    A rule of your own is one method, `update`. If it keeps arrays from step to step, it names them,
    ``slots = ("mean",)``; they come as `state`, start as zeros and are saved with the rest.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, at least 0; or a schedule, called with the number of steps done so far, that
        returns it.

    Attributes
    ----------
    iterations : int
        How many steps are done.

    Raises
    ------
    TypeError, ValueError
        If the rate is no finite number of at least 0, or an argument is outside its range.

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

    slots: tuple[str, ...] = ()  # the names of the arrays that the rule keeps for each parameter

    def __init__(self, learning_rate: Rate) -> None:
        self.learning_rate = learning_rate
        self.iterations = 0
        self._state: dict[str, Array] = {}  # "conv2d/kernel/momentum": of that kernel's shape

    def update(self, w: Array, g: Array, state: list[Array], rate: float) -> None:
        """Change one parameter in place.

        Parameters
        ----------
        w : ndarray
            The value, to be written into.
        g : ndarray
            Its gradient, to be left alone.
        state : list of ndarray
            One array for each name in `slots`, to be written into.
        rate : float
            The learning rate of this step.
        """
        raise TypeError(f"{type(self).__name__} must define `update`")

    @property
    def learning_rate(self) -> Rate:
        """The rate, or the schedule that gives it."""
        return self._learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Rate) -> None:
        self._learning_rate = value if callable(value) else number(value, "learning_rate", least=0)

    def rate(self) -> float:
        """Return the learning rate of the next step."""
        if not callable(self._learning_rate):
            return self._learning_rate
        step = self.iterations
        return number(self._learning_rate(step), f"learning_rate({step})", least=0)

    def step(self, parameters: Iterable[Parameter]) -> None:
        """Change every trainable parameter once by its gradient.

        Parameters
        ----------
        parameters : iterable of Parameter
            Such as ``model.parameters``.

        Raises
        ------
        ValueError
            If there is no parameter, if two share a name, if the array of one is read-only, or if
            one does not fit the state that an earlier step left under its name. No parameter has
            changed then.
        """
        rate = self.rate()
        parameters = _checked(parameters)
        if not parameters:
            raise ValueError(
                "`parameters` must hold at least one Parameter, got none; build the model first, "
                "and take model.parameters after that"
            )
        trained = _trainable(parameters)
        values = [parameter.writable("value") for parameter in trained]
        states = [self._state_of(parameter) for parameter in trained]
        for parameter, value, state in zip(trained, values, states, strict=True):
            self.update(value, parameter.grad, state, rate)
        self.iterations += 1

    def state_dict(self) -> dict[str, Array]:
        """Return copies of all that a continued run needs, except the learning rate.

        Returns
        -------
        dict
            ``"iterations"``, and ``"conv2d/kernel/momentum"`` and so on for each parameter that has
            been changed. The rate is the program's, so it is not among them.

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

    def load_state_dict(self, state: Mapping[str, Array], parameters: Iterable[Parameter]) -> None:
        """Continue from what `state_dict` returned.

        Parameters
        ----------
        state : mapping from str to array
            Each array is converted to the type of its parameter.
        parameters : iterable of Parameter
            Those that the steps to come will change.

        Raises
        ------
        ValueError
            If an entry is missing, unknown or of another shape, or if it holds NaN or a negative
            mean of squares. Nothing has changed then.
        """
        remedy = "load it into the optimizer and the model that saved it"
        instance(state, Mapping, "state", "what state_dict returns")
        entries = {name: array(value, f"state[{name!r}]") for name, value in state.items()}
        count = entries.pop("iterations", None)
        if count is None or count.shape or count.dtype.kind not in "iu" or not 0 <= count < 2**53:
            raise ValueError(f"'iterations' must be a number of steps, got {count}; {remedy}")
        owners = {f"{p.name}/{slot}": p for p in _checked(parameters) for slot in self.slots}
        for name, owner in owners.items():
            if name not in entries and owner.trainable and count > 0:
                raise ValueError(f"the state lacks {name!r} of shape {owner.shape}; {remedy}")
        for name, value in entries.items():
            if name not in owners:
                raise ValueError(f"no parameter has {name!r} of shape {value.shape}; {remedy}")
            entries[name] = np.array(value, owners[name].dtype, order="C")
            _check_fits(name, entries[name], owners[name])
        if said := optimizer_fault(entries):
            raise ValueError(f"{said}, which no step leaves there; {remedy}")
        self._state, self.iterations = entries, int(count)

    def _state_of(self, parameter: Parameter) -> list[Array]:
        """Return the arrays of a parameter; zeros where this is its first step."""
        names = [f"{parameter.name}/{slot}" for slot in self.slots]
        for name in names:
            if name not in self._state:
                self._state[name] = np.zeros_like(parameter.value)
            _check_fits(name, self._state[name], parameter)  # the kernels trust it
        return [self._state[name] for name in names]


class SGD(Optimizer):
    """Stochastic gradient descent, with or without momentum.

    Plain: ``w -= rate g``. With momentum mu: ``v = mu v + g; w -= rate v``, and with Nesterov's,
    which looks ahead, ``w -= rate (g + mu v)``. Weight decay adds ``weight_decay w`` to g.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, or a schedule step -> rate.
    momentum : float
        mu, in [0, 1).
    nesterov : bool
        Needs a momentum above 0.
    weight_decay : float
        At least 0.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or outside its range.

    References
    ----------
    Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep
    learning", ICML 2013, equations 1 to 4. As in TensorFlow the rate multiplies the velocity, not
    the gradient, so a new rate acts at once.

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

    def update(self, w: Array, g: Array, state: list[Array], rate: float) -> None:
        """Change one parameter in place."""
        if self.momentum:
            kernels.momentum(w, g, state[0], rate, self.weight_decay, self.momentum, self.nesterov)
        else:
            kernels.sgd(w, g, rate, self.weight_decay)


class Adam(Optimizer):
    """Adam: steps of about the size of the rate, whatever the scale of the gradient.

    At step t = 1, 2, ...::

        m = beta1 m + (1 - beta1) g              s = beta2 s + (1 - beta2) g^2
        m' = m / (1 - beta1^t)                   s' = s / (1 - beta2^t)
        w -= rate (m' / (sqrt(s') + epsilon) + weight_decay w)

    The step t counts the optimizer's steps, also for a parameter that was frozen before.

    Parameters
    ----------
    learning_rate : float or callable
        The rate, or a schedule step -> rate.
    beta1, beta2 : float
        How much of the running means is kept, in [0, 1).
    epsilon : float
        Above 0. It is added to sqrt(s'), as in the paper's Algorithm 1; TensorFlow 1 added it to
        sqrt(s).
    weight_decay : float
        At least 0. It acts on the weights, not through the gradient's means: AdamW.

    Raises
    ------
    TypeError, ValueError
        If an argument is no number or outside its range.

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

    def __init__(self, learning_rate: Rate = 0.001, beta1: float = 0.9, beta2: float = 0.999,
                 epsilon: float = 1e-8, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate)
        self.beta1 = number(beta1, "beta1", least=0, below=1)
        self.beta2 = number(beta2, "beta2", least=0, below=1)
        self.epsilon = _positive(epsilon, "epsilon")
        self.weight_decay = number(weight_decay, "weight_decay", least=0)

    def update(self, w: Array, g: Array, state: list[Array], rate: float) -> None:
        """Change one parameter in place."""
        m, s = state
        t = self.iterations + 1
        root = math.sqrt(1 - self.beta2**t)
        # The kernel knows m and s, not m' and s': with correction = root / (1 - beta1^t),
        # m' / (sqrt(s') + epsilon) = correction m / (sqrt(s) + root epsilon). It multiplies the
        # decay by its rate too, which is undone here.
        correction = root / (1 - self.beta1**t)
        kernels.adam(w, g, m, s, rate * correction, self.weight_decay / correction,
                     self.beta1, self.beta2, root * self.epsilon)


class _Schedule:
    """A learning rate for each step: an object that is called with the step and can be pickled."""

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
        return f"{type(self).__name__}({arguments})"


class constant(_Schedule):  # noqa: N801
    """The schedule that always gives `rate`.

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


class step_decay(_Schedule):  # noqa: N801
    """The schedule rate factor^floor(step / every).

    Parameters
    ----------
    rate : float
        The first rate, at least 0.
    every : int
        Steps from one change to the next.
    factor : float
        What each change multiplies the rate by, at least 0.

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


class exponential_decay(_Schedule):  # noqa: N801
    """The schedule rate decay_rate^(step / decay_steps).

    Parameters
    ----------
    rate : float
        The first rate, at least 0.
    decay_steps : int
        After so many steps the rate has been multiplied by `decay_rate` once.
    decay_rate : float
        At least 0.
    staircase : bool
        Whether the exponent is rounded down, so that the rate changes every `decay_steps` only.

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


class cosine_decay(_Schedule):  # noqa: N801
    """The schedule end + (rate - end) (1 + cos(pi step / decay_steps)) / 2.

    Parameters
    ----------
    rate : float
        The first rate, at least 0.
    decay_steps : int
        Steps until the rate is `end`, where it stays.
    end : float
        The last rate, at least 0.

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
    """Scale all gradients together so that their common norm is at most `max_norm`.

    ``norm = sqrt(sum of g^2 over all trainable parameters)``; where it is above `max_norm`,
    ``g *= max_norm / norm`` in place. A norm that is not finite changes nothing: there is no
    direction to keep, and the caller can see it from what is returned.

    Parameters
    ----------
    parameters : iterable of Parameter
    max_norm : float
        Above 0.

    Returns
    -------
    float
        The norm before.

    Raises
    ------
    TypeError, ValueError
        If `max_norm` is no finite number above 0, or two parameters share a name.

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
    max_norm = _positive(max_norm, "max_norm")
    gradients = [p.writable("grad").reshape(-1) for p in _trainable(parameters)]  # views
    # einsum, unlike a dot product, does not call BLAS, whose threads may change the last bits.
    norm = math.sqrt(sum(float(np.einsum("i,i->", g, g, dtype=np.float64)) for g in gradients))
    if max_norm < norm < math.inf:
        for g in gradients:
            g *= max_norm / norm
    return norm


def get(
    optimizer: str | Optimizer | Callable[[Rate], Optimizer], learning_rate: Rate | None = None
) -> Optimizer:
    """Return the optimizer that a user's argument means.

    Parameters
    ----------
    optimizer : str, Optimizer, class or callable
        ``"SGD"``, ``"Momentum"`` (SGD with momentum 0.9) or ``"Adam"`` in upper or lower case; an
        optimizer, which comes back; or a class or function that makes one from the rate.
    learning_rate : float, schedule or None
        None keeps the rate of an optimizer that is given as such; the others need one.

    Returns
    -------
    Optimizer

    Raises
    ------
    ValueError
        If the name is unknown or the rate is missing.
    TypeError
        If no optimizer comes of it.

    Examples
    --------
    >>> import minicnn as mc
    >>> mc.optimizers.get("Momentum", 0.1).momentum
    0.9
    """
    if isinstance(optimizer, Optimizer):
        if learning_rate is not None:
            optimizer.learning_rate = learning_rate
        return optimizer
    if learning_rate is None:
        raise ValueError(f"`learning_rate` must be given with {describe(optimizer)}, got None")
    if isinstance(optimizer, str):
        optimizer = _BY_NAME[choice(optimizer, "optimizer", _BY_NAME)]
    made = optimizer(learning_rate) if callable(optimizer) else optimizer
    if not isinstance(made, Optimizer):
        result = "" if made is optimizer else f", which returns {describe(made)}"
        raise TypeError(
            "`optimizer` must be a name, an Optimizer, or a class or function that makes one from "
            f"the learning rate, got {describe(optimizer)}{result}"
        )
    return made


_BY_NAME: dict[str, Callable[[Rate], Optimizer]] = {
    "sgd": SGD,
    "momentum": functools.partial(SGD, momentum=0.9),
    "adam": Adam,
}


def _trainable(parameters: Iterable[Parameter]) -> list[Parameter]:
    """Return those that are trained, whose names must differ: the state is kept by name."""
    trained = [parameter for parameter in _checked(parameters) if parameter.trainable]
    names = [parameter.name for parameter in trained]
    if len(set(names)) < len(names):
        twice = max(names, key=names.count)
        raise ValueError(f"`parameters` must have different names, got {twice!r} twice; rename one")
    return trained


def _checked(parameters: Iterable[Parameter]) -> list[Parameter]:
    given = sequence(parameters, "parameters", "Parameters, such as model.parameters")
    return [instance(parameter, Parameter, "parameters") for parameter in given]


def _check_fits(name: str, array: Array, parameter: Parameter) -> None:
    if array.shape != parameter.shape or array.dtype != parameter.dtype:
        raise ValueError(
            f"{name!r} must be as its parameter, {parameter.shape} {parameter.dtype}, got "
            f"{array.shape} {array.dtype}; use the model it belongs to, or a new optimizer"
        )


def _positive(value: float, name: str) -> float:
    result = number(value, name, least=0)
    if not result:
        raise ValueError(f"`{name}` must be above 0, got 0")
    return result
