"""Compare hand-written gradients with finite differences.

For the loss L = sum(g y) of a layer's output y, with random g, dy = g, and the slope of L along a
direction v is <dx, v>. It is compared with the central difference

    (L(x + e v) - L(x - e v)) / 2 e  =  <dx, v> + O(e^2)

in float64, for a direction that changes all entries, for single entries, and for blocks of equal
neighbours.
"""

import copy
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.op import Op, forget, gradients

_STEPS = (1e-5, 1e-7)  # the second if the first fails: it may have crossed a kink
_GAP = 1e-3  # the least difference of two inputs, so that a step never makes them equal


@dataclass(frozen=True)
class GradientError:
    """One error: the array, what is wrong, and the entry."""

    array: str  # "inputs" ("inputs[0]" of several), a parameter's name, "dy" or "output"
    problem: str
    index: tuple[int, ...] | None = None  # None: not a single entry

    def __str__(self) -> str:
        return f"{self.array}{list(self.index) if self.index else ''}: {self.problem}"


@dataclass
class GradientReport:
    """The result of `check_gradients`; `print` shows a readable report.

    Parameters
    ----------
    label : str
        The name of the layer.
    errors : list of GradientError
        Each has `array`, `problem` and `index`.
    checked : int
        The number of slopes that were compared.
    skipped : int
        The number of slopes at a kink of the output whose gradient is that of one side or lies
        between both: they are neither right nor wrong.

    Attributes
    ----------
    ok : bool
        True if there are no errors, and at least one slope was not skipped.

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

    The layer is unchanged: a copy is built again, with random numbers added to its start values,
    since a 0 or a 1 could hide an error. Checked are

    - the shape that `build` returns, and that forward and backward do not change their arguments;
    - for the inputs and each trainable parameter, the slopes of a random loss along a random
      direction and along single entries;
    - that ``need_dx=False`` does not change the gradients of the parameters;
    - the slope along each block of equal inputs, if inputs are equal in blocks of two along each
      axis. Max pooling that gives a gradient to every maximum of a window fails here. Which of
      the maxima gets the gradient is a convention that differences cannot show.

    Except in these blocks, all inputs differ from each other and from zero by more than a step.

    Parameters
    ----------
    layer : Op
        A layer, a Sequential, or your own op with `forward` and `backward`.
    input_shape : tuple of int, or list of such tuples
        With a batch size: (2, 8, 8, 3). For an op of several inputs a list with the shape of each.
        An input whose gradient is None is not checked.
    seed : int
        The seed of the inputs, the start values, the loss and each pass: dropout drops the same
        elements in all passes.
    training : bool
        As in `Context`.
    tolerance : float
        The largest allowed |a - n| / max(1, |a|, |n|) of an analytic a and a numeric n.
    entries : int
        The largest number of entries of an array to check.
    ties : bool
        Whether to check equal inputs, too.

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

    An op of two inputs:

    >>> class Product(mc.Op):
    ...     def forward(self, a, b, ctx):
    ...         ctx[self] = a, b
    ...         return a * b
    ...     def backward(self, dy, ctx, need_dx=True):
    ...         a, b = ctx[self]
    ...         return dy * b, dy * a
    >>> print(mc.check_gradients(Product(), [(3, 2), (3, 2)]))
    product: gradients right (20 slopes, 0 skipped)
    """
    checks.instance(layer, Op, "layer", "a layer or an op")
    sizes = checks.sequence(input_shape, "input_shape")
    several = any(isinstance(size, list | tuple) for size in sizes)
    shapes = [checks.integers(each, "input_shape", 1) for each in (sizes if several else [sizes])]
    check = _Check(
        copy.deepcopy(layer),
        checks.integer(seed, "seed", 0),
        training,
        checks.number(tolerance, "tolerance", least=0),
        checks.integer(entries, "entries"),
    )
    check.build(shapes)
    if not check.report.errors:
        check.slopes([_spaced(shape, check.rng) for shape in shapes])
    if not check.report.errors and checks.boolean(ties, "ties"):
        check.blocks([_tied(shape, check.rng) for shape in shapes])
    return check.report


class _Array(NamedTuple):
    """An array that the output depends on: one of the inputs, or a parameter."""

    name: str
    values: np.ndarray
    gradient: np.ndarray


class _Check:
    """The check of one layer: its random numbers and the report."""

    def __init__(self, layer: Any, seed: int, training: bool, limit: float, entries: int) -> None:
        self.layer, self.seed, self.training = layer, seed, training
        self.limit, self.entries = limit, entries
        self.rng = np.random.default_rng(seed)
        self.report = GradientReport(layer.label)

    def build(self, shapes: list[tuple[int, ...]]) -> None:
        """Build the layer and compare its output with the declared shape."""
        forget(self.layer)  # the layer is a copy
        rows: Any = tuple((None, *shape[1:]) for shape in shapes)
        given = rows if len(rows) > 1 else rows[0]
        declared = tuple(self.layer.build(given, self.rng, np.float64))
        for parameter in self.layer.parameters:
            parameter.value[...] += self.rng.uniform(-0.25, 0.25, parameter.shape)
        y, _ = self.forward([_spaced(shape, self.rng) for shape in shapes])
        real = (None, *y.shape[1:]) if y.shape and y.shape[0] == shapes[0][0] else y.shape
        self.expect(real == declared, "output", f"build says {declared}, forward returns {real}")
        self.expect(y.dtype == np.float64, "output", f"{y.dtype} for inputs of float64")
        self.g = self.not_small(y.shape)  # dL/dy

    def slopes(self, xs: list[np.ndarray]) -> None:
        """Check the gradients of the inputs and of the parameters."""
        others = {array.name: array.gradient for array in self.gradients(xs, need_dx=False)}
        arrays = self.gradients(xs)
        if self.report.errors:  # arguments were changed: the numbers are wrong
            return
        for array in arrays:
            other = others.get(array.name, array.gradient)
            same = np.array_equal(array.gradient, other, True)
            self.expect(same, array.name, "need_dx=False changes the gradient")
            every = np.arange(array.values.size)
            wrong = self.compare_each(array, every[:, None])
            self.report.errors += wrong or self.compare(array, every, self.not_small(every.shape))

    def blocks(self, tied: list[tuple[np.ndarray, list[np.ndarray]]]) -> None:
        """Check the gradients of inputs with blocks of equal entries, which are moved as one."""
        groups = {id(x): blocks for x, blocks in tied}
        for array in self.gradients([x for x, _ in tied]):
            self.report.errors += self.compare_each(array, groups.get(id(array.values), []))

    def compare_each(self, array: _Array, groups: Any) -> list[GradientError]:
        """Compare the slopes along groups of entries, or along a sample of the groups."""
        sample = np.sort(self.rng.permutation(len(groups))[: self.entries])
        return [error for number in sample for error in self.compare(array, groups[number])]

    def compare(self, array: _Array, where: Any, move: Any = 1.0) -> list[GradientError]:
        """Compare the slopes if the entries `where` of an array move; return the error, if any."""
        self.report.checked += 1
        analytic = float((array.gradient.reshape(-1)[where] * move).sum())
        for step in _STEPS:
            above = self.slope(array.values, where, move, step)
            below = self.slope(array.values, where, move, -step)
            numeric = (above + below) / 2
            scale = max(1.0, abs(analytic), abs(numeric))
            error = abs(analytic - numeric) / scale
            if error <= self.limit:
                return []
        if error <= self.limit + abs(above - below) / 2 / scale:  # of one side, or in between
            self.report.skipped += 1
            return []
        problem = f"backward says {analytic:.9g}, differences say {numeric:.9g}, error {error:.2g}"
        if math.isnan(analytic) and not array.name.startswith("inputs"):
            problem += "; `grad` was NaN before: overwrite it, do not add to it"
        elif where.size > 1:
            problem += f"; here {where.size} entries move together"
        index = tuple(map(int, np.unravel_index(where[0], array.values.shape)))
        return [GradientError(array.name, problem, index)]

    def slope(self, values: np.ndarray, where: Any, move: Any, step: float) -> float:
        """Return the difference quotient of L if the entries `where` of an array move."""
        start = values.flat[where]
        values.flat[where] = start + step * move
        y, _ = self.forward(self.xs)
        values.flat[where] = start
        return float(((y - self.y) * self.g).sum()) / step

    def forward(self, xs: list[np.ndarray]) -> tuple[np.ndarray, Context]:
        """Return a copy of the output (it may be x itself), and the context of the pass."""
        ctx = Context(self.training, np.random.default_rng(self.seed))
        return np.array(self.layer.forward(*xs, ctx)), ctx

    def gradients(self, xs: list[np.ndarray], need_dx: bool = True) -> list[_Array]:
        """Return copies of the gradients of the inputs and of the trainable parameters."""
        trained = [parameter for parameter in self.layer.parameters if parameter.trainable]
        for parameter in trained:
            parameter.grad[...] = math.nan  # to be overwritten
        before = copy.deepcopy(xs)
        self.xs = xs
        self.y, ctx = self.forward(xs)
        dy = self.g.copy()
        dx = self.layer.backward(dy, ctx, need_dx)
        self.expect(np.array_equal(dy, self.g), "dy", "backward changes it")
        self.expect(all(map(np.array_equal, xs, before)), "inputs", "a pass changes them")
        arrays = []
        for number, gradient in enumerate(gradients(self.layer, dx, len(xs)) if need_dx else ()):
            if gradient is None and len(xs) > 1:
                continue
            got = np.array(gradient)
            name = "inputs" if len(xs) == 1 else f"inputs[{number}]"
            problem = f"the gradient is of shape {got.shape}, not {xs[number].shape}"
            self.expect(got.shape == xs[number].shape, name, problem)
            arrays.append(_Array(name, xs[number], got))
        return arrays + [_Array(p.name, p.value, p.grad.copy()) for p in trained]

    def not_small(self, shape: tuple[int, ...]) -> Any:
        """Return random numbers from 0.5 to 1.5 with random signs."""
        return self.rng.uniform(0.5, 1.5, shape) * self.rng.choice([-1.0, 1.0], shape)

    def expect(self, is_right: bool, array: str, problem: str) -> None:
        """Add a problem to the report, once, unless `is_right`."""
        if not is_right and (error := GradientError(array, problem)) not in self.report.errors:
            self.report.errors.append(error)


def _spaced(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return evenly spaced numbers around 0, but not 0 itself, in random order."""
    size = math.prod(shape)
    return max(2 / size, _GAP) * (rng.permutation(size).reshape(shape) + 0.25 - size // 2)


def _tied(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, list[Any]]:
    """Return inputs equal in blocks of two along each axis but the first, and the blocks."""
    halves = (shape[0], *(-(-size // 2) for size in shape[1:]))
    numbers = np.arange(math.prod(halves)).reshape(halves)
    blocks = np.kron(numbers, np.ones((1, *(2 for _ in shape[1:])), np.int64))
    blocks = blocks[tuple(slice(size) for size in shape)]
    x = _spaced(halves, rng).reshape(-1)[blocks]
    return x, [np.flatnonzero(blocks == number) for number in range(numbers.size)]
