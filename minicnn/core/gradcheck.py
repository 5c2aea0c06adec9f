"""Hand-written gradients against differences of the output.

Take the loss L = sum(g y) of a layer's output y, with random g. Then dy = g, and the slope of L
along a direction v is <dx, v>. It is compared with the central difference

    (L(x + e v) - L(x - e v)) / 2 e  =  <dx, v> + O(e^2)

in float64, with all entries moving at once, each entry by itself, and equal neighbours together.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, forget

_STEPS = (1e-5, 1e-7)  # the second where the first seems wrong: it may have crossed a kink
_GAP = 1e-3  # between two inputs at least; far above a step, so that none makes two of them equal


@dataclass(frozen=True)
class GradientError:
    """One thing that is wrong: in which array, at which entry, and by how much."""

    array: str  # "inputs", a parameter's name, "dy" or "output"
    problem: str
    index: tuple[int, ...] | None = None  # None: the array as a whole
    analytic: float = math.nan
    numeric: float = math.nan
    error: float = math.nan

    def __str__(self) -> str:
        return f"{self.array}{list(self.index) if self.index else ''}: {self.problem}"


@dataclass
class GradientReport:
    """What `check_gradients` found; printed, it is a readable report.

    Parameters
    ----------
    label : str
        The layer's.
    errors : list of GradientError
        Each has `array`, `problem`, `index`, `analytic`, `numeric` and `error`.
    checked : int
        How many slopes were compared.
    skipped : int
        How many of them decide nothing: the output has a kink there, and the gradient is the slope
        on one side of it, or lies between both.

    Attributes
    ----------
    ok : bool
        Whether something was checked and nothing is wrong.

    Examples
    --------
    >>> import minicnn as mc
    >>> report = mc.check_gradients(mc.layers.Dense(2), (4, 3))
    >>> report.ok, report.errors, report.skipped
    (True, [], 0)
    """

    label: str
    errors: list[GradientError] = field(default_factory=list)
    checked: int = 0
    skipped: int = 0

    @property
    def ok(self) -> bool:
        return not self.errors and self.checked > self.skipped

    def __str__(self) -> str:
        verdict = "right" if self.ok else "wrong" if self.errors else "unchecked"
        head = f"{self.label}: gradients {verdict} ({self.checked} slopes, {self.skipped} skipped)"
        lines = [head, *(f"  {error}" for error in self.errors[:10])]
        if len(self.errors) > 10:
            lines.append(f"  and {len(self.errors) - 10:,} more")
        return "\n".join(lines)


def check_gradients(
    layer: Op,
    input_shape: Any,
    *,
    seed: int = 0,
    training: bool = False,
    tolerance: float = 1e-6,
    entries: int = 200,
    ties: bool = True,
) -> GradientReport:
    """Compare the gradients of a layer with central differences, in float64.

    A copy of the layer is built anew, and its start values are moved at random so that a 0 or a 1
    hides nothing; the layer itself stays as it is. Checked are

    - the shape that `build` declares, and that forward and backward leave their arguments alone;
    - the slopes of a random loss, along one random direction and along single entries, of the
      inputs and of each trainable parameter. Where the single entries do not explain what is
      wrong along the direction, that is halved until it is found;
    - that ``need_dx=False`` gives the parameters the same gradients;
    - with inputs that are equal in blocks of two along each axis, the slope along each block. Max
      pooling that gives a gradient to every maximum of a window fails here. Which one of them gets
      it is a convention that no difference can tell.

    Apart from those blocks, no two inputs are equal or close, and none is close to zero.

    Parameters
    ----------
    layer : Op
        A layer, a Sequential, or an op of one's own with `forward` and `backward`.
    input_shape : tuple of int
        With a batch size: (2, 8, 8, 3).
    seed : int
        Of the inputs, the start values, the loss, and the generator that each pass begins with, so
        that dropout drops the same elements in all passes.
    training : bool
        As in `Context`.
    tolerance : float
        The largest error |a - n| / max(1, |a|, |n|) of an analytic a and a numeric n.
    entries : int
        How many entries of an array are checked at most.
    ties : bool
        Whether to check with equal inputs too.

    Returns
    -------
    GradientReport

    Examples
    --------
    >>> import minicnn as mc
    >>> class Square(mc.Op):
    ...     def forward(self, x, ctx):
    ...         ctx[self] = x
    ...         return x**2
    ...     def backward(self, dy, ctx, need_dx=True):
    ...         return dy * ctx[self]
    >>> print(mc.check_gradients(Square(), (2, 1)))  # doctest: +ELLIPSIS
    square: gradients wrong (2 slopes, 0 skipped)
      inputs[0, 0]: backward says ..., differences say ..., error ...
      inputs[1, 0]: backward says ..., differences say ..., error ...
    """
    checks.instance(layer, Op, "layer", "a layer or an op")
    shape = checks.integers(input_shape, "input_shape", 1)
    checks.room(shape, "the array of this `input_shape`")
    seed, entries = checks.integer(seed, "seed", 0), checks.integer(entries, "entries")
    tolerance = checks.number(tolerance, "tolerance", least=0)
    check = _Check(copy.deepcopy(layer), seed, training, tolerance, entries)
    check.build(shape)
    if not check.report.errors:
        check.slopes(_spaced(shape, check.rng))
    if not check.report.errors and checks.boolean(ties, "ties"):
        x, groups = _tied(shape, check.rng)
        check.report.errors += check.compare_each(check.gradients(x)[0], groups)
    return check.report


class _Array(NamedTuple):
    """An array that the output depends on: the inputs x themselves, or a parameter."""

    name: str
    values: np.ndarray
    gradient: np.ndarray
    x: np.ndarray


class _Check:
    """The check of one layer: its random numbers, and the report so far."""

    def __init__(self, layer: Op, seed: int, training: bool, limit: float, entries: int) -> None:
        self.layer, self.seed, self.training = layer, seed, training
        self.limit, self.entries = limit, entries
        self.rng = np.random.default_rng(seed)
        self.report = GradientReport(layer.label)

    def build(self, shape: tuple[int, ...]) -> None:
        """Build the layer, and compare its output with what it declares."""
        forget(self.layer)  # a copy: its values may be drawn again
        declared = tuple(self.layer.build((None, *shape[1:]), self.rng, np.float64))
        for parameter in self.layer.parameters:
            parameter.value[...] += self.rng.uniform(-0.25, 0.25, parameter.shape)
        y, _ = self.forward(_spaced(shape, self.rng))
        real = (None, *y.shape[1:]) if y.shape[:1] == shape[:1] else y.shape
        self.expect(real == declared, "output", f"build says {declared}, forward returns {real}")
        self.expect(y.dtype == np.float64, "output", f"{y.dtype} comes out where float64 goes in")
        self.g = self.sizable(y.shape)  # dL/dy

    def slopes(self, x: np.ndarray) -> None:
        """Check the gradients of the inputs and of the parameters."""
        arrays, others = self.gradients(x), self.gradients(x, need_dx=False)
        if self.report.errors:  # what was changed on the way makes the numbers wrong
            return
        for array, other in zip(arrays, others, strict=True):
            same = array.values is x or np.array_equal(array.gradient, other.gradient, True)
            self.expect(same, array.name, "need_dx=False changes the gradient")
            every = np.arange(array.values.size)
            wrong = self.compare_each(array, every[:, None])
            self.report.errors += wrong or self.locate(array, every, self.sizable(every.shape))

    def compare_each(self, array: _Array, groups: Any) -> list[GradientError]:
        """Compare the slopes along each of the groups of entries, or along a sample of them."""
        sample = np.sort(self.rng.permutation(len(groups))[: self.entries])
        return [error for number in sample for error in self.compare(array, groups[number])]

    def locate(self, array: _Array, where: Any, direction: np.ndarray) -> list[GradientError]:
        """Compare the slopes along a direction; if wrong, halve it down to an entry that is."""
        if not (wrong := self.compare(array, where, direction[where])) or where.size == 1:
            return wrong and self.compare(array, where)
        halves = (self.locate(array, half, direction) for half in np.array_split(where, 2))
        return next(filter(None, halves), wrong)

    def compare(self, array: _Array, where: Any, move: Any = 1.0) -> list[GradientError]:
        """Return what is wrong with the slope where the entries `where` of an array move."""
        self.report.checked += 1
        analytic = float((array.gradient.reshape(-1)[where] * move).sum())
        start, y = array.values.flat[where], self.forward(array.x)[0]
        for step in _STEPS:
            array.values.flat[where] = start + step * move
            above = float(((self.forward(array.x)[0] - y) * self.g).sum()) / step
            array.values.flat[where] = start - step * move
            below = float(((y - self.forward(array.x)[0]) * self.g).sum()) / step
            array.values.flat[where] = start
            numeric = (above + below) / 2
            scale = max(1.0, abs(analytic), abs(numeric))
            error = abs(analytic - numeric) / scale
            if error <= self.limit:
                return []
        if error <= self.limit + abs(above - below) / 2 / scale:  # in between, or one of the two
            self.report.skipped += 1
            return []
        problem = f"backward says {analytic:.9g}, differences say {numeric:.9g}, error {error:.2g}"
        if math.isnan(analytic) and array.values is not array.x:
            problem += "; `grad` was NaN before: overwrite it, do not add to it"
        elif where.size > 1:
            problem += f"; here {where.size} entries move together"
        index = tuple(map(int, np.unravel_index(where[0], array.values.shape)))
        return [GradientError(array.name, problem, index, analytic, numeric, error)]

    def forward(self, x: np.ndarray) -> tuple[np.ndarray, Context]:
        """Return a copy of the output (it may be x itself), and the context of the pass."""
        ctx, before = Context(self.training, np.random.default_rng(self.seed)), x.copy()
        y = np.array(self.layer.forward(x, ctx))
        self.expect(np.array_equal(x, before), "inputs", "forward changes them")
        return y, ctx

    def gradients(self, x: np.ndarray, need_dx: bool = True) -> list[_Array]:
        """Return copies of the gradients of the inputs and of the trainable parameters."""
        for parameter in (trained := [p for p in self.layer.parameters if p.trainable]):
            parameter.grad[...] = math.nan  # to be overwritten
        (_, ctx), before, dy = self.forward(x), x.copy(), self.g.copy()
        dx = np.array(self.layer.backward(dy, ctx, need_dx))
        self.expect(np.array_equal(dy, self.g), "dy", "backward changes it")
        self.expect(np.array_equal(x, before), "inputs", "backward changes them")
        fits = dx.shape == x.shape or not need_dx
        self.expect(fits, "inputs", f"the gradient is of shape {dx.shape}, not {x.shape}")
        arrays = [(p.name, p.value, p.grad.copy()) for p in trained]
        return [_Array(*array, x) for array in [("inputs", x, dx), *arrays]]

    def sizable(self, shape: tuple[int, ...]) -> Any:
        """Return random numbers from 0.5 to 1.5 with random signs: none of them is small."""
        return self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1.0, 1.0], shape)

    def expect(self, fine: bool, array: str, problem: str) -> None:
        """Note a problem, once."""
        if not fine and (error := GradientError(array, problem)) not in self.report.errors:
            self.report.errors.append(error)


def _spaced(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return evenly spaced numbers around 0 in random places; 0 itself lies in a gap."""
    size = math.prod(shape)
    return max(2 / size, _GAP) * (rng.permutation(size).reshape(shape) + 0.25 - size // 2)


def _tied(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, list[Any]]:
    """Return inputs in blocks of two equal ones along each axis but the batch's, and the blocks."""
    halves = (shape[0], *(-(-size // 2) for size in shape[1:]))
    numbers = np.arange(math.prod(halves)).reshape(halves)
    blocks = np.kron(numbers, np.ones((1, *(2 for _ in shape[1:])), np.int64))
    blocks = blocks[tuple(slice(size) for size in shape)]
    x = _spaced(halves, rng).reshape(-1)[blocks]
    return x, [np.flatnonzero(blocks == number) for number in range(numbers.size)]
