"""Data sets of picture files: a folder for each class (extra `image`)."""

from pathlib import Path
from typing import Any

import numpy as np

from minicnn import images
from minicnn.core import checks
from minicnn.core.log import logger
from minicnn.datasets.dataset import Dataset

_MOST_NAMED = 10  # files in a warning


def images_from_folder(
    path: str | Path, size: Any, color: bool = False, seed: int | None = 0
) -> Dataset:
    """Read the pictures in a folder that has one folder for each class.

    The names of the folders, sorted, are the names of the classes. Each picture is cut to the
    proportions of `size`, around its middle, and scaled. The rotation in its EXIF data is applied,
    and transparent pixels become white. A file that is not a complete picture is left out, and a
    warning names it.

    Parameters
    ----------
    path : str or Path
    size : int or (int, int)
        Height and width.
    color : bool
        Whether images have three channels, red, green and blue, or one, grey.
    seed : int or None
        Seed of the shuffling; see `Dataset`.

    Returns
    -------
    Dataset
        `images` (N, height, width, channels) are float32 in [0, 1], `labels` (N,) the class
        numbers, `class_names` the names.

    Raises
    ------
    ValueError
        If `path` is not such a folder, or a class has no picture.

    Examples
    --------
    >>> import pathlib, tempfile, minicnn as mc
    >>> from PIL import Image
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> for name, level in (("dark", 20), ("light", 200)):
    ...     (folder / name).mkdir()
    ...     Image.new("L", (40, 30), level).save(folder / name / "1.png")
    >>> data = mc.datasets.images_from_folder(folder, size=(6, 8))
    >>> data
    Dataset(images=(2, 6, 8, 1) float32, labels=(2,) int64)
    >>> data.class_names
    ['dark', 'light']
    """
    folder = checks.path(path, "path")
    size = checks.pair(size, "size")
    color = checks.boolean(color, "color")
    classes = sorted(entry for entry in folder.glob("[!.]*") if entry.is_dir())
    found: list[tuple[int, np.ndarray]] = []
    bad = []
    for label, place in enumerate(classes):
        for file in sorted(place.glob("[!.]*")):
            try:
                found.append((label, images.pixels(images.picture(file), size, color)))
            except (ValueError, OSError):  # the warning below names the file
                bad.append(f"{place.name}/{file.name}")
    if bad:
        logger.warning(
            "%d files in %s are not complete pictures and are left out: %s%s", len(bad), folder,
            ", ".join(bad[:_MOST_NAMED]), ", ..." if len(bad) > _MOST_NAMED else "",
        )
    labels = np.array([label for label, _ in found], np.int64)
    if not classes or len(np.unique(labels)) < len(classes):
        raise ValueError(
            f"`path` must be a folder with one folder of pictures for each class, got {folder} "
            f"with {np.bincount(labels, minlength=len(classes)).tolist()} pictures in its folders; "
            "check the path"
        )
    pixels = np.stack([image for _, image in found])
    return Dataset(
        np.divide(pixels, 255, dtype=np.float32), labels, seed, [place.name for place in classes]
    )
