"""Random changes of images in training, which leave their class as it is."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.kernels.warp import warp


def augment(
    shift: int = 0,
    flip: bool = False,
    crop: float = 1.0,
    rotation: float = 0.0,
    data_format: str = "channels_last",
) -> Callable[..., np.ndarray]:
    """Return a function that changes images at random, for ``fit(..., augment=)``.

    Each image is rotated, cropped, flipped and shifted in one pass, with bilinear interpolation.
    Beyond the edge, the nearest pixel is repeated. `fit` draws the numbers from the seed, the epoch
    and the place of the batch in the epoch: each epoch has other images, and a run that is resumed,
    or distributed over processes, has the same images as one that is not.

    Parameters
    ----------
    shift : int
        The most pixels by which an image is moved, up or down, and left or right.
    flip : bool
        Whether half of the images are exchanged left and right.
    crop : float
        In (0, 1]: the least share of the height and width that is cut out, at a random place, and
        scaled to the size of the image.
    rotation : float
        The largest angle, in degrees, in either direction.
    data_format : {"channels_last", "channels_first"}
        (N, H, W, C), or (N, C, H, W). Images (N, H, W) are allowed, too.

    Returns
    -------
    callable
        Takes images, float32 or float64, and a `numpy.random.Generator` or a seed; returns new
        images.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> change = mc.datasets.augment(shift=1)
    >>> x = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1)
    >>> change(x, 0)[0, :, :, 0]
    array([[0., 0., 1.],
           [0., 0., 1.],
           [3., 3., 4.]], dtype=float32)
    """
    crop = checks.number(crop, "crop", 0.0)
    if not 0 < crop <= 1:
        raise ValueError(f"`crop` must be above 0 and at most 1, got {crop:g}")
    return functools.partial(
        _augmented,
        shift=checks.integer(shift, "shift", 0, checks.MOST),
        flip=checks.boolean(flip, "flip"),
        crop=crop,
        rotation=checks.number(rotation, "rotation", 0.0),
        is_first=checks.choice(data_format, "data_format", checks.DATA_FORMATS)
        == "channels_first",
    )


def _augmented(
    images: Any, rng: Any, *, shift: int, flip: bool, crop: float, rotation: float, is_first: bool
) -> np.ndarray:
    """Return images that are changed at random."""
    x = checks.array(images, "images")
    if x.ndim not in (3, 4) or x.dtype not in (np.float32, np.float64):
        raise ValueError(
            "`images` must be float32 or float64 (N, H, W) or (N, H, W, C), got "
            f"{checks.describe(images)}; for MNIST give load_dataset('mnist', reshape=False)"
        )
    planes = x.shape[1] if is_first and x.ndim == 4 else 1  # of an image, with the same map
    size = x.shape[2:] if is_first and x.ndim == 4 else x.shape[1:3]
    maps = _maps(checks.generator(rng), len(x), np.array(size), shift, flip, crop, rotation)
    maps = np.repeat(maps, planes, axis=0)
    shape = (len(maps), *size, 1 if is_first or x.ndim == 3 else x.shape[3])
    y = np.empty(x.shape, x.dtype)
    warp(x.reshape(shape), maps, y.reshape(shape))
    return y


def _maps(
    rng: np.random.Generator, n: int, size: np.ndarray, shift: int, flip: bool, crop: float,
    rotation: float,
) -> np.ndarray:
    """Return random maps (N, 2, 3) from positions in the new images to those in the old ones."""
    angle = np.radians(rng.uniform(-rotation, rotation, n))
    scale = rng.uniform(crop, 1.0, n)
    mirror = 1 - 2 * rng.integers(0, 1 + flip, n)
    moved = rng.integers(-shift, shift + 1, (n, 2))
    place = rng.uniform(-0.5, 0.5, (n, 2)) * np.outer(1 - scale, size)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    turned = np.stack([cosine, mirror * sine, -sine, mirror * cosine], axis=1).reshape(n, 2, 2)
    centre = (size - 1) / 2
    return np.dstack([turned, centre + moved + place - turned @ centre])
