"""MNIST, and other folders that contain four IDX files of the same names."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from minicnn.core import checks
from minicnn.datasets.dataset import Dataset
from minicnn.datasets.idx import decode_file

_SHA256 = {  # of the raw bytes, under gzip
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def load_dataset(
    name: str | os.PathLike[str],
    *,
    one_hot: bool = False,
    reshape: bool = True,
    validation_size: int = 5000,
    seed: int | None = 0,
) -> "Datasets":
    """Return the training, validation and test splits of MNIST or of a folder of IDX files.

    A split is read when it is first used. Nothing is downloaded.

    Parameters
    ----------
    name : str or path-like
        The string "mnist" for the files that are part of minicnn; their SHA-256 is checked.
        Otherwise the path of a folder with the files `train-images-idx3-ubyte`,
        `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each with
        or without `.gz`. Kaggle's layouts are also supported: `train-images.idx3-ubyte`, or a
        folder of this name that contains the file. For a folder called mnist give "./mnist".
    one_hot : bool, default False
        Whether labels are float32 rows (N, `Datasets.num_classes`) instead of uint8 (N,).
    reshape : bool, default True
        Whether images are flattened to (N, H * W) instead of (N, H, W, 1).
    validation_size : int, default 5000
        How many of the first training rows are used for validation: at least 0, and fewer than
        there are.
    seed : int or None, default 0
        Seed of each split's shuffling; see `Dataset`.

    Returns
    -------
    Datasets
        With `train`, `validation` and `test`; images are float32 in [0, 1].

    Raises
    ------
    TypeError
        If an argument has the wrong type.
    ValueError
        If the name is neither "mnist" nor a folder, or a number is negative.

    References
    ----------
    Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, "Gradient-based learning applied to document
    recognition", Proc. IEEE 86(11), 1998.

    Examples
    --------
    >>> from minicnn.datasets import load_dataset
    >>> mnist = load_dataset("mnist", one_hot=True)
    >>> images, labels = mnist.test.next_batch(100)
    >>> images.shape, labels.shape
    ((100, 784), (100, 10))
    """
    shipped = isinstance(name, str) and name == "mnist"
    folder = Path(__file__).with_name("data") if shipped else checks.path(name, "name")
    if not folder.is_dir():
        raise ValueError(
            'load_dataset: `name` must be "mnist" (the only name) or an existing folder of IDX '
            f"files, got {checks.describe(name)}; nothing is downloaded: put the four files of "
            f"another data set, {', '.join(_SHA256)} (with or without .gz), into a folder and give "
            "its path"
        )
    return Datasets(
        folder,
        shipped,
        checks.boolean(one_hot, "one_hot"),
        checks.boolean(reshape, "reshape"),
        checks.integer(validation_size, "validation_size", 0),
        checks.optional(checks.integer, seed, "seed", 0),
    )


@dataclass(frozen=True, eq=False)
class Datasets:
    """The three splits of a folder of IDX files, each read at first use.

    Created by `load_dataset`. It unpacks to train, validation, test.

    Parameters
    ----------
    folder : Path
        The folder of the four files.
    shipped : bool
        Whether to check the SHA-256 of the files that are part of minicnn.
    one_hot, reshape, validation_size, seed
        As in `load_dataset`.

    Raises
    ------
    FileNotFoundError
        At first use of a split, if the folder lacks one of its files.
    ValueError
        At first use of a split, if one of its files is invalid, their numbers of rows differ, or
        validation_size leaves no training rows.

    Examples
    --------
    >>> from minicnn.datasets import load_dataset
    >>> mnist = load_dataset("mnist", reshape=False)
    >>> mnist.test
    Dataset(images=(10000, 28, 28, 1) float32, labels=(10000,) uint8)
    """

    folder: Path
    shipped: bool
    one_hot: bool
    reshape: bool
    validation_size: int
    seed: int | None

    def __iter__(self) -> Iterator[Dataset]:
        """Yield train, validation and test."""
        yield from (self.train, self.validation, self.test)

    @property
    def train(self) -> Dataset:
        """Rows of the training files after the first `validation_size`."""
        return self._training_splits[0]

    @property
    def validation(self) -> Dataset:
        """First `validation_size` rows of the training files."""
        return self._training_splits[1]

    @cached_property
    def test(self) -> Dataset:
        """All rows of the test files."""
        return Dataset(*self._read_rows("t10k"), self.seed)

    @cached_property
    def num_classes(self) -> int:
        """Largest label of the training and test files, plus one: 10 for MNIST."""
        labels = (self._decode(f"{part}-labels-idx1-ubyte") for part in ("train", "t10k"))
        return 1 + max(int(numbers.max()) for numbers in labels)

    @cached_property
    def _training_splits(self) -> tuple[Dataset, Dataset]:
        images, labels = self._read_rows("train")
        cut = checks.integer(self.validation_size, "validation_size", 0, len(images) - 1)
        train = Dataset(images[cut:], labels[cut:], self.seed)
        return train, Dataset(images[:cut], labels[:cut], self.seed)

    def _read_rows(self, part: str) -> tuple[np.ndarray, np.ndarray]:
        """Return images (N, H * W) or (N, H, W, 1) in [0, 1], and labels (N,) or (N, classes)."""
        pixels = self._decode(f"{part}-images-idx3-ubyte")
        labels = self._decode(f"{part}-labels-idx1-ubyte")
        is_pair = pixels.ndim == 3 and labels.shape == pixels.shape[:1]
        if not is_pair or not pixels.dtype == labels.dtype == np.uint8:
            raise ValueError(
                f"{self.folder}: the {part} images must be bytes (N, height, width), and their "
                f"labels bytes (N,), got {checks.describe(pixels)} and {checks.describe(labels)}; "
                "take both files from the same source, and do not exchange them"
            )
        images = np.divide(pixels, 255, dtype=np.float32)
        images = images.reshape(len(images), -1) if self.reshape else images[..., np.newaxis]
        if self.one_hot:
            labels = np.eye(self.num_classes, dtype=np.float32)[labels]
        return images, labels

    def _decode(self, name: str) -> np.ndarray:
        return decode_file(self._find(name), _SHA256[name] if self.shipped else None)

    def _find(self, name: str) -> Path:
        stems = (name, name.replace("-idx", ".idx"))  # the second one as in Kaggle's copies
        names = [f"{stem}{suffix}" for stem in stems for suffix in ("", ".gz")]
        plain = [self.folder / file for file in names]
        for candidate in (*plain, *(folder / file for folder in plain for file in names)):
            if candidate.is_file():
                return candidate
        raise FileNotFoundError(
            f"{self.folder} has no file {name} or {name}.gz; give the folder that contains it"
        )
