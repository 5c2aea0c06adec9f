"""Images with their labels, handed out in shuffled batches."""

import numpy as np

from minicnn.core.checks import array, boolean, integer, optional
from minicnn.core.checks import labels as check_labels


class Dataset:
    """Images with their labels, handed out in batches that go round and round the rows.

    Parameters
    ----------
    images : ndarray, (N, ...)
        One row an image.
    labels : ndarray, (N,) or (N, classes)
        One row a label.
    seed : int or None, default 0
        Seed of the shuffling: the same seed gives the same batches; None gives new ones in
        every run. NumPy's global random state is neither read nor changed.

    Attributes
    ----------
    images, labels : ndarray
        As given.
    epochs_completed : int
        How many times `next_batch` has handed out every row.

    Raises
    ------
    ValueError
        If images and labels differ in their number of rows, or the seed is negative.
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

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: int | None = 0) -> None:
        self.images = array(images, "images")
        self.labels = check_labels(labels, "labels")
        rows, others = (len(a) if a.ndim else 0 for a in (self.images, self.labels))
        if rows != others or not self.images.ndim:
            raise ValueError(
                f"Dataset: `labels` must have one row for each of the {rows} rows of `images`, got "
                f"{others}; cut or complete one of them"
            )
        optional(integer, seed, "seed", 0)
        self.epochs_completed = 0
        self._rng = np.random.default_rng(seed)
        self._order = np.arange(0)  # of the rows in this epoch; drawn at its first batch
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
        """Return the next rows of images and labels, as copies.

        Every row comes exactly once an epoch. A batch over the end of an epoch holds the rest
        of it and the start of the next.

        Parameters
        ----------
        batch_size : int
            Number of rows, from 1 to `num_examples`.
        shuffle : bool, default True
            Whether the rows come in random order, drawn anew for each epoch. An epoch keeps
            the order that it began with.

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
        n = self.num_examples
        batch_size = integer(batch_size, "batch_size", 1, n)
        rows = self._take(batch_size, boolean(shuffle, "shuffle"))
        if len(rows) < batch_size:
            rows = np.concatenate([rows, self._take(batch_size - len(rows), shuffle)])
        return self.images[rows], self.labels[rows]

    def _take(self, count: int, shuffle: bool) -> np.ndarray:
        """Return the next `count` row numbers, fewer where the epoch ends first."""
        if self._position == 0:
            n = self.num_examples
            self._order = self._rng.permutation(n) if shuffle else np.arange(n)
        rows = self._order[self._position : self._position + count]
        self._position += len(rows)
        if self._position == self.num_examples:
            self.epochs_completed += 1
            self._position = 0
        return rows
