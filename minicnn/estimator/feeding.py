"""Batches from arrays or from an input_fn, and how to resume in the middle of them."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.log import logger
from minicnn.estimator.streams import Stream

BATCH_SIZE = 100
_LARGE = 10.0  # the root mean square of a batch above which `fit` warns; that of MNIST is 0.3
_END = object()

Batch = tuple[Any, Any]  # features, labels; each an array, a dict of arrays, or (labels) None


class ArrayFeed:
    """Batches cut from arrays: one pass in order, or endless epochs after `shuffle`.

    The order of an epoch is drawn from (seed, epoch), so the place in the data is two numbers.
    The last batch of an epoch holds the remaining rows.

    Attributes
    ----------
    batches : int
        How many batches an epoch has.
    in_order : bool
        Whether the endless epochs are in the order of the arrays, too.
    augment : callable, optional
        Takes a copy of the features of a batch of the endless epochs, and a random generator;
        returns those that are fed.
    """

    in_order = False
    augment: Any = None

    def __init__(self, x: Any, y: Any, batch_size: int) -> None:
        self.x = _arrays(x, "x", checks.array)
        self.y = None if y is None else _arrays(y, "y", checks.labels)
        self.rows = _rows(self.x, self.y)
        self.batch_size = checks.integer(batch_size, "batch_size")
        self.batches = math.ceil(self.rows / self.batch_size)
        self.seed: int | None = None
        self.epoch, self.row = 0, 0

    def shuffle(self, seed: int) -> None:
        """Draw another order of the rows for every epoch, without end."""
        self.seed = seed

    def only(self, rows: np.ndarray) -> "ArrayFeed":
        """Return a feed of the rows with these numbers."""
        return ArrayFeed(*self._take(rows), self.batch_size)

    def peek(self) -> Batch:
        """Return a batch that shows names, shapes and types; it is not taken."""
        return self._take(slice(0, 1))

    def place(self) -> dict[str, int]:
        """Return where the next batch begins."""
        return {"epoch": self.epoch, "row": self.row, "rows": self.rows}

    def seek(self, place: dict[str, Any], shown: Any) -> None:
        """Go to a place that `place` returned, or to the start of its epoch if the data changed."""
        self.epoch = int(place.get("epoch", 0))
        self.row = int(place.get("row", 0)) if place.get("rows") == self.rows else 0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            order = None
            if self.seed is not None and not self.in_order:
                order = Stream.ORDER.generator(self.seed, self.epoch).permutation(self.rows)
            while self.row < self.rows:
                rows = slice(self.row, self.row + self.batch_size)
                self.row = min(rows.stop, self.rows)
                features, labels = self._take(rows if order is None else order[rows])
                if self.augment is not None and self.seed is not None:
                    rng = Stream.AUGMENT.generator(self.seed, self.epoch, rows.start)
                    features = self.augmented(features, rng)
                yield features, labels
            self.epoch, self.row = self.epoch + 1, 0
            if self.seed is None:
                return

    def augmented(self, features: Any, rng: np.random.Generator) -> Any:
        """Return what `augment` makes of a copy of features; raise if the shapes are others."""
        changed = _arrays(
            self.augment(each(np.copy, features), rng), "augment(images, rng)", checks.array
        )
        if each(np.shape, changed) != each(np.shape, features):
            raise ValueError(
                "`augment` must return images of the shape that it is given, "
                f"{each(np.shape, features)}, got {each(np.shape, changed)}"
            )
        return changed

    def _take(self, rows: Any) -> Batch:
        return each(lambda array: array[rows], self.x), each(lambda array: array[rows], self.y)


class FunctionFeed:
    """Batches from an input_fn, which returns an iterable of (features, labels).

    The place is the number of batches taken from the iterable; `seek` calls input_fn again and
    skips as many. That is exact if input_fn is deterministic.

    Attributes
    ----------
    epochs : float
        How many times the iterable is gone through, from here.
    max_epochs : float, optional
        In place of `epochs`: how many times in total.
    skips : bool
        False if input_fn returns one iterator that has not used batches: `seek` skips none.
    """

    batches: float = math.inf  # in an epoch: unknown
    y = None  # known only batch by batch
    epochs: float = 1
    max_epochs: float | None = None
    skips = True

    def __init__(self, input_fn: Callable[[], Any]) -> None:
        self.input_fn = checks.function(input_fn, "input_fn", "a function without arguments", 0)
        self.epoch, self.taken = 0, 0
        self._iterator: Iterator[Any] | None = None
        self._peeked: Batch | None = None

    def shuffle(self, seed: int) -> None:
        """Do nothing: input_fn decides the order."""

    def peek(self) -> Batch:
        """Return the next batch without taking it."""
        if self._peeked is None:
            self._peeked = self._next()
            self.taken = 0
        if self._peeked is None:
            raise ValueError(
                "there is no batch; give at least one (features, labels), and no iterator that is "
                "used up"
            )
        return self._peeked

    def place(self) -> dict[str, int]:
        """Return how many batches were taken in this epoch."""
        return {"epoch": self.epoch, "batches": self.taken}

    def seek(self, place: dict[str, Any], shown: Callable[..., Iterable[Any]]) -> None:
        """Take as many batches as `place` says; if there are fewer now, start from the first.

        `shown` is `Display.part`, which shows how many are done.
        """
        count = int(place.get("batches", 0)) if self.skips else 0
        self.epoch = int(place.get("epoch", 0))
        if count:
            logger.info(
                "Skipping %d batches of `input_fn`, which earlier steps have used. To start again "
                "from the first instead, stop and use another model_dir.", count,
            )
        for _ in shown("skipping batches", count, range(count)):
            if self._next() is None:
                return
        self._peeked = self._next()  # None at the end: then the next call starts again
        self.taken = max(0, self.taken - 1)

    def __iter__(self) -> Iterator[Batch]:
        end = self.epoch + self.epochs if self.max_epochs is None else self.max_epochs
        while self.epoch < end:
            is_first = self.taken == 0
            batch = self._next()
            if batch is not None:
                yield batch
            elif is_first:
                return  # an iterator that can be gone through only once

    def _next(self) -> Batch | None:
        """Take a batch; return None at the end, after which the next call starts again."""
        batch, self._peeked = self._peeked, None
        if batch is None:
            if self._iterator is None:
                self._iterator = iter(batches_of(self.input_fn))
                self.taken = 0
            made = next(self._iterator, _END)
            if made is _END:
                self._iterator, self.taken = None, 0
                self.epoch += 1
                return None
            batch = _checked(made)
        self.taken += 1
        return batch


def batches_of(function: Callable[[], Any]) -> Any:
    """Return the iterable that a function makes; raise if it is not one of batches."""
    iterable = function()
    if isinstance(iterable, np.ndarray | dict | tuple) or not hasattr(iterable, "__iter__"):
        raise TypeError(
            "a function of batches must return an iterable of (features, labels): write it with "
            f"`yield`; got {checks.describe(iterable)}"
        )
    return iterable


Feed = ArrayFeed | FunctionFeed


def feed(x: Any, y: Any, input_fn: Any, batch_size: int | None) -> Feed:
    """Return the feed for the arguments that fit, evaluate and predict share."""
    if input_fn is not None:
        function_feed = FunctionFeed(input_fn)
        if x is not None or y is not None or batch_size is not None:
            raise ValueError(
                "give either `input_fn`, which makes its own batches, or `x`, `y` and "
                f"`batch_size`, got the `input_fn` {checks.describe(input_fn)} and one of these"
            )
        return function_feed
    if x is None:
        raise ValueError("there is no data: give `x` (and `y`), or `input_fn`, got None for both")
    return ArrayFeed(x, y, BATCH_SIZE if batch_size is None else batch_size)


def augmented(feed: Feed, augment: Any) -> Feed:
    """Return a feed whose features are changed by a function, if there is one."""
    if augment is not None:
        if not isinstance(feed, ArrayFeed):
            raise ValueError(
                f"`augment` is for arrays, got {checks.describe(augment)}; call it where the "
                "batches are made, with a generator of their own"
            )
        feed.augment = checks.function(augment, "augment", "a function of (images, rng)", 2)
        images, _ = feed._take(slice(0, feed.batch_size))
        feed.augmented(images, np.random.default_rng(0))  # raises before the first step
    return feed


def rows_of(batch: Any) -> int:
    """Return how many rows the features of a batch have."""
    return len(next(iter(by_name(batch).values())))


def warn_if_large(features: Any) -> None:
    """Warn if the features of a batch look like pixels of 0..255."""
    for name, array in by_name(features).items():
        if array.size and (array.dtype.kind == "f" or array.dtype == np.uint8):
            size = math.sqrt(np.square(array, dtype=np.float64).mean())
            if size > _LARGE:
                logger.warning(
                    "The root mean square of the features `%s` is %.4g. Most networks do not learn "
                    "from values so far from 1: divide pixels by 255 (%s / 255), scale others.",
                    name or "x", size, name or "x",
                )


def each(function: Callable[[np.ndarray], Any], value: Any) -> Any:
    """Apply a function to an array or to each array of a dict; None stays None."""
    if isinstance(value, dict):
        return {name: function(array) for name, array in value.items()}
    return None if value is None else function(value)


def by_name(part: Any) -> dict[str | None, Any]:
    """Return the items of a part of a batch by name; the name of a single one is None."""
    if part is None:
        return {}
    return part if isinstance(part, dict) else {None: part}


def _arrays(value: Any, name: str, check: Callable[[Any, str], np.ndarray]) -> Any:
    """Return an array or a dict of arrays; float64 becomes float32."""
    if isinstance(value, dict):
        if not value:
            raise ValueError(f"`{name}` must not be an empty dict")
        return {key: _arrays(item, f"{name}[{key!r}]", check) for key, item in value.items()}
    array = check(value, name)
    if array.ndim == 0:
        raise TypeError(
            f"`{name}` must be an array of rows, got {checks.describe(value)}; a single row needs "
            f"a batch axis, np.asarray({name})[None]"
        )
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _rows(x: Any, y: Any) -> int:
    """Return the common number of rows."""
    counts = {
        name if key is None else f"{name}[{key!r}]": len(array)
        for name, part in (("x", x), ("y", y))
        for key, array in by_name(part).items()
    }
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ValueError(f"`x` and `y` must have the same number of rows: {text}")
    rows = next(iter(counts.values()))
    if rows == 0:
        raise ValueError("`x` has no rows; give at least one")
    return rows


def _checked(batch: Any) -> Batch:
    """Return (features, labels) from what an input_fn yielded."""
    is_list = isinstance(batch, list) and len({getattr(part, "ndim", 0) for part in batch}) > 1
    if is_list or (isinstance(batch, tuple) and len(batch) != 2):
        raise TypeError(
            "`input_fn` must yield tuples (features, labels), or features alone, got "
            f"{checks.describe(batch)}"
        )
    features, labels = batch if isinstance(batch, tuple) else (batch, None)
    features = _arrays(features, "features", checks.array)
    labels = None if labels is None else _arrays(labels, "labels", checks.labels)
    _rows(features, labels)
    return features, labels


def concatenate(parts: Sequence[Any]) -> Any:
    """Return the rows of all parts in one array, or in a dict of arrays."""
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return None if parts[0] is None else np.concatenate(parts)
