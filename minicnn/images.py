"""Convert pictures of digits to the form of MNIST (extra `image`).

MNIST's digits are scaled to fit 20 x 20 pixels and placed in 28 x 28 pixels with their centre of
mass in the middle. A network trained on them needs its inputs in this form. `read` loads a picture
file as grey levels; `digit` finds the digit in them, scales it and centres it.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.extras import require
from minicnn.core.files import open_regular

_SIZE, _BOX = 28, 20  # pixels: MNIST's images, and the digits in them
_MOST_PIXELS = 40_000_000  # to decode: a small file may declare any number
_LONGEST_SIDE = 100_000  # pixels: decoders need extra memory for each row and column
_DECODED_WITH_COPIES = ("WEBP", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # tag in EXIF data
_LARGEST = 1024  # pixels: longer side of the pictures that `read` returns
_COARSE = 128  # pixels: longer side of the picture in which the digit is searched
_FAINTEST = 0.15  # ink absorbs at least this fraction of the paper's light
_THRESHOLD = 0.4  # of the darkest ink; fainter pixels do not belong to a stroke
_MOST_PARTS = 5  # of one digit that is drawn with gaps
_MOST_INK = 0.35  # of the picture


def read(path: str | Path) -> np.ndarray:
    """Read a picture file as grey levels.

    Parameters
    ----------
    path : str or Path
        A picture of any size, colour mode and format that Pillow reads. The rotation in its EXIF
        data is applied. Transparent pixels get the colour of the paper.

    Returns
    -------
    ndarray
        (H, W) float32 in [0, 1], scaled down so that no side has more than 1,024 pixels.

    Raises
    ------
    OSError
        If there is no such file, or the path is not that of a regular file.
    ValueError
        If the file is not a complete picture, or the picture has more than 40 million pixels
        (JPEG: 80, WebP and AVIF: 20) or a side of more than 100,000.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from PIL import Image
    >>> from minicnn import images
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "grey.png"
    >>> Image.new("RGB", (3, 2), (51, 51, 51)).save(path)
    >>> images.read(path)
    array([[0.2, 0.2, 0.2],
           [0.2, 0.2, 0.2]], dtype=float32)
    """
    grey, alpha = np.moveaxis(np.asarray(picture(path).convert("LA"), np.float32) / 255, 2, 0)
    if alpha.mean() < 0.5:  # only the ink is opaque
        paper = float(np.average(grey, weights=alpha + 1e-9) < 0.5)
    else:
        paper = np.median(grey[alpha > 0.5])
    return grey * alpha + paper * (1 - alpha)


def picture(path: str | Path) -> Any:
    """Read a picture file as an image of Pillow, upright and in the mode RGBA.

    Parameters
    ----------
    path : str or Path

    Returns
    -------
    PIL.Image.Image
        Scaled down so that no side has more than 1,024 pixels.

    Raises
    ------
    OSError, ValueError
        As `read`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from PIL import Image
    >>> from minicnn import images
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "grey.png"
    >>> Image.new("RGB", (3, 2)).save(path)
    >>> images.picture(path).size
    (3, 2)
    """
    path = checks.path(path, "path")
    require("PIL.Image", "image")
    with open_regular(path, follow=True) as file:
        try:
            return _upright(file)
        except Exception as error:  # a decoder may raise anything on damaged bytes
            raise ValueError(
                f"{path}: a complete picture was expected ({error}); open it in a picture viewer "
                "and save it again, smaller, as PNG or JPEG"
            ) from error


def pixels(picture: Any, size: Any, color: bool = False) -> np.ndarray:
    """Return an image of Pillow as an array of a given size; transparent pixels become white.

    The image is cut to the proportions of `size`, around its middle, and scaled.

    Parameters
    ----------
    picture : PIL.Image.Image
        For example what `picture` reads.
    size : int or (int, int)
        Height and width.
    color : bool
        Whether the array has three channels, red, green and blue, or one, grey.

    Returns
    -------
    ndarray of uint8, (height, width, channels)

    Raises
    ------
    TypeError
        If `picture` is not an image of Pillow.

    Examples
    --------
    >>> from PIL import Image
    >>> from minicnn import images
    >>> images.pixels(Image.new("RGB", (30, 20), (51, 51, 51)), size=(2, 3)).shape
    (2, 3, 1)
    """
    image_module = require("PIL.Image", "image")
    checks.instance(picture, image_module.Image, "picture", "an image of Pillow")
    height, width = checks.pair(size, "size")
    paper = image_module.new("RGBA", picture.size, "white")
    paper.alpha_composite(picture.convert("RGBA"))
    fit = require("PIL.ImageOps", "image").fit
    cut = fit(paper.convert("RGB" if checks.boolean(color, "color") else "L"), (width, height))
    return np.asarray(cut).reshape(height, width, -1)


def _upright(file: Any) -> Any:
    """Return the picture in an open file; see `picture`."""
    image_module = require("PIL.Image", "image")
    with image_module.open(file) as image:
        stored = image.width * image.height / 2  # a progressive JPEG is loaded in full size
        image.draft(None, (_LARGEST, _LARGEST))  # lets JPEG decode at a smaller size
        copies = 2 if image.format in _DECODED_WITH_COPIES else 1
        decoded = copies * image.width * image.height
        # EPS is a program, which Pillow would run.
        is_large = max(stored, decoded) > _MOST_PIXELS or max(image.size) > _LONGEST_SIDE
        if image.format == "EPS" or is_large:
            raise ValueError(f"{image.format} of {image.width} x {image.height} is not safe")
        upright = require("PIL.ImageOps", "image").exif_transpose(_reduced(image))
    if upright.mode == "F":
        levels = 255 * _normalized(np.asarray(upright))
        upright = image_module.fromarray(levels.astype(np.uint8)).convert("RGBA")
    upright.thumbnail((_LARGEST, _LARGEST))
    return upright


def digit(pixels: Any) -> np.ndarray:
    """Find the digit in a picture and return it in the form of MNIST.

    1. A morphological closing removes the strokes and leaves the paper, with its shadows and uneven
       light. The ink is the fraction of the paper's light that each pixel lacks.
    2. These connected parts of the ink are removed: specks, parts that touch the edge, and printed
       lines (a frame, or a corner or two sides of one, around the rest; a line below it). If
       nothing remains, the picture is padded with the grey of its edge and searched again.
    3. The rest is scaled to fit 20 x 20 pixels, with its centre of mass at (14, 14).

    Parameters
    ----------
    pixels : ndarray
        (H, W) grey levels on any scale, dark on light or light on dark: one digit with some paper
        around it.

    Returns
    -------
    ndarray
        (28, 28) float32 in [0, 1], light on black.

    Raises
    ------
    TypeError, ValueError
        If `pixels` is not such an array, or no digit is found.

    References
    ----------
    Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits", for the form. P.
    Soille, "Morphological Image Analysis", 2003, on top-hats, for the correction of the light.

    Examples
    --------
    >>> import numpy as np
    >>> from minicnn import images
    >>> pixels = np.full((100, 80), 255, np.uint8)
    >>> pixels[10:50, 30:38] = 0  # a one, on paper
    >>> x = images.digit(pixels)
    >>> x.shape, np.argwhere(x).min(axis=0).tolist(), np.argwhere(x).max(axis=0).tolist()
    ((28, 28), [4, 12], [23, 15])
    """
    pixels = checks.array(pixels, "pixels").astype(np.float32)
    if pixels.ndim != 2 or not pixels.size or not np.isfinite(pixels).all():
        raise ValueError(
            f"`pixels` must be finite grey levels (H, W), got {checks.describe(pixels)}; "
            "read them from a file with minicnn.images.read"
        )
    found = _find_digit(pixels)
    if found is None:  # there may be too little paper around the digit
        margin = max(pixels.shape) // 3 + 1
        found = _find_digit(np.pad(pixels, margin, constant_values=np.median(_edge(pixels))))
    if found is None:
        raise ValueError(
            "no digit was found; show one, dark on light or light on dark, with room around it"
        )
    return found


def _find_digit(pixels: np.ndarray) -> np.ndarray | None:
    """Return the digit in the form of MNIST, or None if none is found with paper around it."""
    scale = min(1.0, _COARSE / max(pixels.shape))
    ink = _ink(_resized(_normalized(pixels), scale))
    mask = _digit_mask(ink > max(_THRESHOLD * ink.max(), _FAINTEST))
    if mask is None:
        return None
    size = max(mask[_box(mask)].shape)
    if scale < 1 and size < _COARSE / 3:  # a small digit in a large picture: crop and repeat
        crop = [slice(int(b.start / scale), int(b.stop / scale)) for b in _box(mask, size // 2)]
        return digit(pixels[tuple(crop)])
    white = np.percentile(ink[mask], 75)
    black = _THRESHOLD / 3 * ink.max()
    ink = np.clip((ink - black) / (white - black), 0, 1) * _window(mask, size // 20 + 1, np.max)
    return _centred(ink[_box(ink > 0.02)])


def _reduced(image: Any) -> Any:
    """Return an image at less than twice the largest size, as RGBA, or F for 16 or 32 bits."""
    image_module = require("PIL.Image", "image")
    image.load()
    factor = max(1, max(image.size) // _LARGEST)
    mode = "F" if image.mode[0] in "IF" else "RGBA"
    width, height = (-(-n // factor) for n in image.size)
    small = image_module.new(mode, (width, height))
    # In parts: complete copies would fill the memory.
    for left, top in itertools.product(range(0, width, 128), range(0, height, 128)):
        right = min((left + 128) * factor, image.width)
        bottom = min((top + 128) * factor, image.height)
        part = image.crop((left * factor, top * factor, right, bottom))
        if mode == "F":
            part = image_module.fromarray(np.nan_to_num(np.asarray(part, np.float32)))
        small.paste(part.convert(mode).reduce(factor), (left, top))
    small.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return small


def _normalized(levels: np.ndarray) -> np.ndarray:
    """Scale levels to [0, 1]."""
    return (levels - levels.min()) / max(np.ptp(levels), 1e-9)


def _ink(levels: np.ndarray) -> np.ndarray:
    """Return the fraction of the paper's light that each pixel lacks."""
    reach = max(levels.shape) // 4 + 1  # makes windows wider than a stroke
    # Ink is the rarer of dark and light. The power gives weight to strong contrast, not to shadows.
    if ((levels - _window(levels, reach, np.mean)) ** 5).sum() > 0:
        levels = 1 - levels
    padded = np.pad(levels, reach, mode="edge")  # shadows continue beyond the edge
    paper = _window(_window(padded, reach, np.max), reach, np.min)[reach:-reach, reach:-reach]
    return (paper - levels) / np.maximum(paper, 1e-6)


def _digit_mask(mask: np.ndarray) -> np.ndarray | None:
    """Return the part of the mask that looks like one digit, or None.

    It contains no specks and no printed lines, and does not touch the edge.
    """
    parts = _connected_parts(mask)
    numbers, sizes = np.unique(parts[mask], return_counts=True)
    inner = ~np.isin(numbers, _edge(parts))
    if mask.mean() > _MOST_INK or sizes[inner].max(initial=0) <= 0.05 * sizes.max(initial=0):
        return None
    found = _without_lines([np.argwhere(parts == n) for n in numbers[inner & (sizes > 2)]])
    if not 0 < len(found) <= _MOST_PARTS:
        return None
    mask = np.zeros_like(mask)
    mask[tuple(np.concatenate(found).T)] = True
    box = np.pad(mask[_box(mask)], 1)
    solid = max(box.shape) > max(mask.shape) / 4 and _window(box, max(box.shape) // 5, np.min).any()
    return mask if _looks_like_digit(box) and not solid else None


def _edge(a: np.ndarray) -> np.ndarray:
    """Return the elements of the first and last row and column."""
    return np.concatenate([a[0], a[-1], a[:, 0], a[:, -1]])


def _connected_parts(mask: np.ndarray) -> np.ndarray:
    """Return the number of the connected part of each pixel, 0 outside the mask."""
    parts = mask * np.arange(1, mask.size + 1).reshape(mask.shape)
    # Each pixel gets the largest number of its neighbours, and then the number of the pixel that
    # had this number at first and so is in the same part, until each part has one number.
    while (parts != (grown := mask * _window(parts, 1, np.max))).any():
        parts = mask * grown.ravel()[grown - 1]
    return parts


def _looks_like_digit(mask: np.ndarray) -> bool:
    """Return whether the parts are close together, not flat, and have fewer edges than noise."""
    height, width = mask.shape
    together = _connected_parts(_window(mask, max(mask.shape) // 6, np.max))[mask]
    edges = [np.diff(mask, axis=axis).sum() / mask.shape[1 - axis] for axis in (0, 1)]
    return bool(np.ptp(together) == 0 and height > width / 12 and max(edges) < 7)


def _without_lines(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Return the parts, each an array of points, that are neither specks nor printed lines."""
    for part in sorted(parts, key=lambda part: -np.ptp(part, axis=0).max()):
        others = [other for other in parts if other is not part]
        rest = _without_specks(others)
        if rest and _is_printed(part, np.concatenate(rest)):
            return _without_lines(others)
    return _without_specks(parts)


def _without_specks(parts: list[np.ndarray]) -> list[np.ndarray]:
    largest = max(map(len, parts), default=0)
    return [part for part in parts if len(part) > 0.1 * largest]


def _is_printed(part: np.ndarray, rest: np.ndarray) -> bool:
    """Return whether a part is a printed frame or line, which is longer than the rest."""
    own, other = _distances_to_sides(part, rest)
    length, rest_length = (np.ptp(distances, axis=0).max() + 1 for distances in (own, other))
    is_outline = (own.min(axis=1) < 1.5 + 0.06 * length).mean() > 0.97
    is_between = (other[:, 1::2] > 0).mean() > 0.97  # the left and the right side
    return bool(is_outline and is_between and 0.1 * length < rest_length < 0.95 * length)


def _distances_to_sides(part: np.ndarray, rest: np.ndarray) -> list[np.ndarray]:
    """Return the distances of both arrays' points to the top, left, bottom, right of part's box.

    The box is rotated by up to 14 degrees so that the part's points are closest to its sides.
    """
    found = []
    for angle in np.radians(np.arange(-14, 15, 2)):
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        low, high = (part @ rotation).min(axis=0), (part @ rotation).max(axis=0)
        rotated = (points @ rotation for points in (part, rest))
        found.append([np.hstack([points - low, high - points]) for points in rotated])
    return min(found, key=lambda pair: pair[0].min(axis=1).mean())


def _centred(ink: np.ndarray) -> np.ndarray:
    """Scale the ink to 20 pixels and move its centre of mass to the middle of 28 x 28 pixels."""
    ink = _resized(ink, _BOX / max(ink.shape))
    place = []
    for axis, n in enumerate(ink.shape):
        centre = np.average(np.arange(n), weights=ink.sum(axis=1 - axis))
        start = min(max(round(_SIZE / 2 - centre), 0), _SIZE - n)
        place.append(slice(start, start + n))
    y = np.zeros((_SIZE, _SIZE), np.float32)
    y[tuple(place)] = ink / ink.max()
    return y


def _resized(a: np.ndarray, scale: float) -> np.ndarray:
    image = require("PIL.Image", "image")
    height, width = (max(1, round(scale * n)) for n in a.shape)
    return np.asarray(image.fromarray(a).resize((width, height), image.Resampling.HAMMING))


def _window(a: np.ndarray, reach: int, reduce: Callable[..., Any]) -> np.ndarray:
    """Reduce the square window around each pixel with np.mean, np.max or np.min."""
    for _ in range(2):  # along the columns; then, transposed, along the rows
        padded = np.pad(a, ((reach, reach), (0, 0)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis=0)
        a = reduce(windows, axis=-1).T
    return a


def _box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Return the rows and columns of the mask's bounding box, with a margin around it."""
    found = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(0, i[0] - margin), i[-1] + 1 + margin) for i in found)
