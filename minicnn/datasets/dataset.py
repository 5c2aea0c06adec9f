"""Images and labels in shuffled batches."""

from collections.abc import Sequence

import numpy as np

from minicnn.core import checks
from minicnn.estimator import supervised


class Dataset:
    """Images and labels, from which `next_batch` takes batches for any number of epochs.

    Parameters
    ----------
    images : ndarray, (N, ...)
        One image per row.
    labels : ndarray, (N,) or (N, classes)
        One label per row.
    seed : int or None, default 0
        Seed of the shuffling: the same seed gives the same batches; None gives different ones in
        every run. NumPy's global random state is not used.
    class_names : sequence of str, optional
        The name of each class number.

    Attributes
    ----------
    images, labels : ndarray
        As given.
    class_names : list of str or None
    epochs_completed : int
        How many times `next_batch` has returned every row.

    Raises
    ------
    ValueError
        If images and labels have different numbers of rows, or the seed is negative.
    TypeError
        If the seed is neither None nor an integer.

    Examples
    --------
    >>> import numpy as np
    >>> from minicnn.datasets import Dataset
    >>> data = Dataset(images=np.zeros((5, 784), np.float32), labels=np.arange(5))
    >>> for _ in range(5):
    ...     images, labels = data.next_batch(2)
    >>> images.shape, data.epochs_completed
    ((2, 784), 2)
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        seed: int | None = 0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.images = checks.array(images, "images")
        self.labels = checks.labels(labels, "labels")
        rows, others = (len(a) if a.ndim else 0 for a in (self.images, self.labels))
        if rows != others or not self.images.ndim:
            raise ValueError(
                f"Dataset: `labels` must have one row for each of the {rows} rows of `images`, got "
                f"{others}; shorten or complete one of them"
            )
        names = checks.optional(checks.sequence, class_names, "class_names", "names of classes")
        self.class_names = None if names is None else list(names)
        self.epochs_completed = 0
        self._rng = np.random.default_rng(checks.optional(checks.integer, seed, "seed", 0))
        self._order = np.arange(0)  # row numbers of this epoch; drawn at its first batch
        self._position = 0  # in _order

    def __repr__(self) -> str:
        """Show the shapes, not the rows."""
        images, labels = (f"{a.shape} {a.dtype}" for a in (self.images, self.labels))
        return f"Dataset(images={images}, labels={labels})"

    @property
    def num_examples(self) -> int:
        """Number of rows."""
        return len(self.images)

    def next_batch(self, batch_size: int, shuffle: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Return copies of the next rows of images and labels.

        Each epoch contains every row exactly once. A batch at the end of an epoch contains its last
        rows and the first rows of the next epoch.

        Parameters
        ----------
        batch_size : int
            Number of rows, from 1 to `num_examples`.
        shuffle : bool, default True
            Whether the rows are in random order, drawn again for each epoch. The value at the first
            batch of an epoch applies to the complete epoch.

        Returns
        -------
        images : ndarray, (batch_size, ...)
        labels : ndarray, (batch_size,) or (batch_size, classes)

        Raises
        ------
        ValueError, TypeError
            If batch_size is not an integer in that range.

        Examples
        --------
        >>> import numpy as np
        >>> from minicnn.datasets import Dataset
        >>> data = Dataset(images=np.zeros((5, 784)), labels=np.arange(5))
        >>> [data.next_batch(3, shuffle=False)[1].tolist() for _ in range(2)]
        [[0, 1, 2], [3, 4, 0]]
        """
        batch_size = checks.integer(batch_size, "batch_size", 1, self.num_examples)
        rows = self._take(batch_size, checks.boolean(shuffle, "shuffle"))
        if len(rows) < batch_size:
            rows = np.concatenate([rows, self._take(batch_size - len(rows), shuffle)])
        return self.images[rows], self.labels[rows]

    def split(self, validation_split: float, seed: int = 0) -> "tuple[Dataset, Dataset]":
        """Return a data set for training, and one for validation.

        Parameters
        ----------
        validation_split : float
            The share of the rows for validation, in (0, 1): the same share of each class.
        seed : int
            Determines which rows; they are those of ``Sequential.fit(..., validation_split=)`` with
            this seed.

        Returns
        -------
        Dataset, Dataset

        Examples
        --------
        >>> import numpy as np
        >>> from minicnn.datasets import Dataset
        >>> data = Dataset(np.zeros((6, 4)), np.array([0, 0, 0, 1, 1, 1]))
        >>> train, validation = data.split(1 / 3)
        >>> train.labels.tolist(), validation.labels.tolist()
        ([0, 0, 1, 1], [0, 1])
        """
        given = supervised.Data(self.images, self.labels)
        kept, _, held = supervised.split(
            given, validation_split, checks.integer(seed, "seed", 0), None
        )
        return (
            Dataset(kept.x, kept.y, seed, self.class_names),
            Dataset(held.x, held.y, seed, self.class_names),
        )

    def _take(self, count: int, shuffle: bool) -> np.ndarray:
        """Return the next `count` row numbers, or fewer at the end of the epoch."""
        if self._position == 0:
            n = self.num_examples
            self._order = self._rng.permutation(n) if shuffle else np.arange(n)
        rows = self._order[self._position : self._position + count]
        self._position += len(rows)
        if self._position == self.num_examples:
            self.epochs_completed += 1
            self._position = 0
        return rows
