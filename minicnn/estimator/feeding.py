"""Where batches come from: arrays, or an input_fn; and how to find one's place in them again."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe

logger = logging.getLogger("minicnn")

BATCH_SIZE = 100
_PATIENCE = 10.0  # seconds of skipping batches until a warning says how far that has come
_LARGE = 10.0  # the root mean square of a batch above which `fit` warns; that of MNIST is 0.3
_ORDER_STREAM = 1  # tells the seed of the data's order from the other uses of the run's seed
_END = object()

Batch = tuple[Any, Any]  # features, labels; each an array, a dict of arrays, or (labels) None


class ArrayFeed:
    """Batches cut from arrays; shuffled anew every epoch where a seed is given.

    The order of an epoch is drawn from (seed, epoch), so the place in the data is two numbers.
    The last batch of an epoch holds what is left.
    """

    def __init__(self, x: Any, y: Any, batch_size: int, seed: int | None = None) -> None:
        self.x = _arrays(x, "x", checks.array)
        self.y = None if y is None else _arrays(y, "y", checks.labels)
        self.rows = _rows(self.x, self.y)
        self.batch_size = checks.integer(batch_size, "batch_size")
        self.seed = seed
        self.epoch, self.row = 0, 0

    def peek(self) -> Batch:
        """Return a batch that only shows what batches look like."""
        return self._take(slice(0, 1))

    def place(self) -> dict[str, int]:
        """Return where the next batch begins."""
        return {"epoch": self.epoch, "row": self.row, "rows": self.rows}

    def seek(self, place: dict[str, Any]) -> None:
        """Go to a place that `place` returned; data of another length starts the epoch anew."""
        self.epoch = int(place.get("epoch", 0))
        self.row = int(place.get("row", 0)) if place.get("rows") == self.rows else 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches for ever where they are shuffled, else those of one epoch."""
        while True:
            order = self._order()
            while self.row < self.rows:
                rows = slice(self.row, self.row + self.batch_size)
                self.row = min(rows.stop, self.rows)
                yield self._take(rows if order is None else order[rows])
            self.epoch, self.row = self.epoch + 1, 0
            if order is None:
                return

    def _order(self) -> np.ndarray | None:
        if self.seed is None:
            return None
        return np.random.default_rng((self.seed, _ORDER_STREAM, self.epoch)).permutation(self.rows)

    def _take(self, rows: Any) -> Batch:
        return _map(lambda array: array[rows], self.x), _map(lambda array: array[rows], self.y)


class FunctionFeed:
    """Batches from an input_fn, which returns an iterable of (features, labels).

    The place is the number of batches taken since the iterable began; `seek` makes it anew and
    takes as many. That is exact where input_fn is deterministic.
    """

    def __init__(self, input_fn: Callable[[], Any]) -> None:
        self.input_fn = checks.function(input_fn, "input_fn", "a function without arguments")
        self.taken = 0
        self._iterator: Iterator[Any] | None = None
        self._peeked: Batch | None = None

    def peek(self) -> Batch:
        """Return the next batch without taking it."""
        if self._peeked is None:
            self._peeked = self._next()
            self.taken = 0
        if self._peeked is None:
            raise ValueError(
                "`input_fn` yielded no batch at all; give at least one (features, labels)"
            )
        return self._peeked

    def place(self) -> dict[str, int]:
        """Return how many batches were taken."""
        return {"batches": self.taken}

    def seek(self, place: dict[str, Any]) -> None:
        """Take as many batches as `place` says; where there are fewer now, begin anew."""
        count = int(place.get("batches", 0))
        if count:
            logger.info("Skipping %d batches of `input_fn`; earlier steps have used them.", count)
        start, patience = time.monotonic(), _PATIENCE
        for skipped in range(count):
            if self._next() is None:
                return
            if time.monotonic() - start > patience:
                logger.warning(
                    "Skipped %d of %d batches of `input_fn` in %.0f s. To start again from the "
                    "first batch instead, stop and use another model_dir.",
                    skipped + 1, count, patience,
                )
                patience *= 2
        self._peeked = self._next()  # None at the end: then the next one begins anew
        self.taken = max(0, self.taken - 1)

    def __iter__(self) -> Iterator[Batch]:
        while (batch := self._next()) is not None:
            yield batch

    def _next(self) -> Batch | None:
        """Take a batch; None at the end, where the next call begins anew."""
        batch, self._peeked = self._peeked, None
        if batch is None:
            if self._iterator is None:
                self._iterator, self.taken = iter(_iterable(self.input_fn())), 0
            made = next(self._iterator, _END)
            batch = None if made is _END else _checked(made)
        if batch is None:
            self._iterator, self.taken = None, 0
        else:
            self.taken += 1
        return batch


def feed(
    x: Any, y: Any, input_fn: Any, batch_size: int | None, seed: int | None = None
) -> ArrayFeed | FunctionFeed:
    """Return the feed for the arguments that fit, evaluate and predict share."""
    if input_fn is not None:
        feed = FunctionFeed(input_fn)
        if x is not None or y is not None or batch_size is not None:
            raise ValueError(
                "give either `input_fn`, which makes its own batches, or `x`, `y` and "
                f"`batch_size`, got the `input_fn` {describe(input_fn)} and one of these"
            )
        return feed
    if x is None:
        raise ValueError("there is no data: give `x` (and `y`), or `input_fn`")
    return ArrayFeed(x, y, BATCH_SIZE if batch_size is None else batch_size, seed)


def rows_of(batch: Any) -> int:
    """Return how many rows the features of a batch have."""
    return len(next(iter(batch.values())) if isinstance(batch, dict) else batch)


def warn_if_large(features: Any) -> bool:
    """Warn if the features of a batch look like pixels of 0..255; return whether they do."""
    named = features if isinstance(features, dict) else {"x": features}
    for name, array in named.items():
        if array.dtype.kind == "f" or array.dtype == np.uint8:
            flat = array.reshape(-1)
            squares = np.einsum("i,i->", flat, flat, dtype=np.result_type(array, np.float32))
            size = math.sqrt(squares / max(1, flat.size))
            if size > _LARGE:
                logger.warning(
                    "The root mean square of the features `%s` is %.4g. Most networks do not learn "
                    "from values so far from 1: divide pixels by 255 (%s / 255), scale others.",
                    name, size, name,
                )
                return True
    return False


def _map(function: Callable[[np.ndarray], Any], value: Any) -> Any:
    """Apply a function to an array, to each array of a dict, or to None not at all."""
    if isinstance(value, dict):
        return {name: function(array) for name, array in value.items()}
    return None if value is None else function(value)


def _arrays(value: Any, name: str, check: Callable[[Any, str], np.ndarray]) -> Any:
    """Return an array or a dict of arrays; float64 becomes float32."""
    if isinstance(value, dict):
        if not value:
            raise ValueError(f"`{name}` must not be an empty dict")
        return {key: _arrays(item, f"{name}[{key!r}]", check) for key, item in value.items()}
    array = check(value, name)
    if array.ndim == 0:
        raise TypeError(
            f"`{name}` must be an array of rows, got {describe(value)}; a single row needs a batch "
            f"axis, np.asarray({name})[None]"
        )
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _rows(x: Any, y: Any) -> int:
    """Return the common number of rows."""
    named = {f"x[{k!r}]": v for k, v in x.items()} if isinstance(x, dict) else {"x": x}
    if y is not None:
        named |= {f"y[{k!r}]": v for k, v in y.items()} if isinstance(y, dict) else {"y": y}
    counts = {name: len(array) for name, array in named.items()}
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ValueError(f"`x` and `y` must have as many rows as each other: {text}")
    rows = next(iter(counts.values()))
    if rows == 0:
        raise ValueError("`x` has no rows; there is nothing to run on")
    return rows


def _checked(batch: Any) -> Batch:
    """Return (features, labels) of what an input_fn yielded."""
    is_list = isinstance(batch, list) and len({getattr(part, "ndim", 0) for part in batch}) > 1
    if is_list or (isinstance(batch, tuple) and len(batch) != 2):
        raise TypeError(
            "`input_fn` must yield tuples (features, labels), or features alone, got "
            f"{describe(batch)}"
        )
    features, labels = batch if isinstance(batch, tuple) and len(batch) == 2 else (batch, None)
    features = _arrays(features, "features", checks.array)
    labels = None if labels is None else _arrays(labels, "labels", checks.labels)
    _rows(features, labels)
    return features, labels


def _iterable(made: Any) -> Any:
    if isinstance(made, np.ndarray | dict | tuple) or not hasattr(made, "__iter__"):
        raise TypeError(
            "`input_fn` must return an iterable of batches (features, labels): write it with "
            f"`yield`; got {describe(made)}"
        )
    return made


def concatenate(parts: Sequence[Any]) -> Any:
    """Return the rows of all parts in one array, or in a dict of arrays."""
    if isinstance(parts[0], dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return None if parts[0] is None else np.concatenate(parts)
