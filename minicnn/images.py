"""Pictures of digits, made into what a network that was trained on MNIST expects.

MNIST's digits were scaled to fit a box of 20 x 20 pixels, which was put into 28 x 28 so that their
centre of mass is in the middle. A network that has seen nothing else needs its pictures like that:
`read` makes grey levels of a file, `digit` finds the ink in them and frames it anew.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.checks import describe
from minicnn.core.extras import require

_SIZE, _BOX = 28, 20  # of MNIST's images, and of the digits in them
_MOST_PIXELS = 40_000_000  # that are decoded: a few bytes may unpack to any number
_DECODED_WITH_COPIES = ("WEBP", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # the tag in EXIF data
_LARGEST = 1024  # pixels on the longer side of what `read` returns: a digit needs no more
_COARSE = 128  # pixels on the longer side of the picture in which the ink is searched
_FAINTEST = 0.15  # ink takes away at least this part of the paper's light
_THRESHOLD = 0.4  # of the darkest ink: what is fainter is no stroke
_MOST_PARTS = 5  # of one digit, with the gaps of a bad pen
_MOST_INK = 0.35  # of the picture


def read(path: str | Path) -> np.ndarray:
    """Return the grey levels of a picture file, upright.

    Parameters
    ----------
    path : str or Path
        A picture of any size, colours and format that Pillow reads. The rotation in its EXIF data
        is applied, and what is transparent becomes paper.

    Returns
    -------
    ndarray
        (H, W) float32 in [0, 1], scaled down to 1,024 pixels on the longer side.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not a complete picture, or has more than 40 million pixels (JPEG: 80, WebP
        and AVIF: 20).

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
    path = checks.path(path, "path")
    image_module, image_ops = require("PIL.Image", "image"), require("PIL.ImageOps", "image")
    try:
        with image_module.open(path) as image:
            held = image.width * image.height / 2  # a progressive JPEG is kept in full
            image.draft(None, (_LARGEST, _LARGEST))  # a JPEG need not be decoded in full
            copies = 2 if image.format in _DECODED_WITH_COPIES else 1
            decoded = copies * image.width * image.height
            # EPS is a program, which would be run.
            if image.format == "EPS" or max(held, decoded) > _MOST_PIXELS:
                raise ValueError(f"{image.format} of {image.width} x {image.height} is not safe")
            upright = image_ops.exif_transpose(_reduced(image))
            if upright.mode == "F":
                levels = 255 * _stretched(np.asarray(upright))
                upright = image_module.fromarray(levels.astype(np.uint8)).convert("RGBA")
            upright.thumbnail((_LARGEST, _LARGEST))
            grey, alpha = np.moveaxis(np.asarray(upright.convert("LA"), np.float32) / 255, 2, 0)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file; check the path") from None
    except Exception as error:  # whatever damaged bytes make of a decoder
        raise ValueError(
            f"{path}: a whole picture was expected ({error}); open it in a picture viewer and "
            "save it again, smaller, as PNG or JPEG"
        ) from error
    if alpha.mean() < 0.5:  # what is not transparent is the ink itself
        paper = float(np.average(grey, weights=alpha + 1e-9) < 0.5)
    else:
        paper = np.median(grey[alpha > 0.5])
    return grey * alpha + paper * (1 - alpha)


def digit(pixels: Any) -> np.ndarray:
    """Return the digit of a picture as MNIST would show it: light on black, scaled and centred.

    1. The paper is what is left of the picture when narrow dark things are closed over, so a shadow
       or an uneven light stays in it; ink is the part of the paper's light that is missing.
    2. Of the connected parts of the ink these are dropped: specks, what touches the edge, and
       printed lines: a frame, a corner or two sides of one around the rest, and a line below it.
       If nothing is left, the picture is padded with the grey of its edge and searched again.
    3. What is left is scaled to fit 20 x 20 pixels, and its centre of mass put at (14, 14).

    Parameters
    ----------
    pixels : ndarray
        (H, W) grey levels on any scale, dark on light or light on dark: one digit with some paper
        around it.

    Returns
    -------
    ndarray
        (28, 28) float32 in [0, 1].

    Raises
    ------
    TypeError, ValueError
        If `pixels` is no such array, or there is no digit in it.

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
            f"`pixels` must be finite grey levels (H, W), got {describe(pixels)}; "
            "minicnn.images.read makes them of a file"
        )
    framed = _seen(pixels)
    if framed is None:  # perhaps there is too little paper around the digit
        edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        margin = max(pixels.shape) // 3 + 1
        framed = _seen(np.pad(pixels, margin, constant_values=np.median(edge)))
    if framed is None:
        raise ValueError(
            "no digit was found; show one, dark on light or light on dark, with room around it"
        )
    return framed


def _seen(pixels: np.ndarray) -> np.ndarray | None:
    """Return the digit in the form of MNIST, or None if there is none with room around it."""
    scale = min(1.0, _COARSE / max(pixels.shape))
    ink = _ink(_resized(_stretched(pixels), scale))
    mask = _digit_mask(ink > max(_THRESHOLD * ink.max(), _FAINTEST))
    if mask is None:
        return None
    size = max(mask[_box(mask)].shape)
    if scale < 1 and size < _COARSE / 3:  # a small digit in a large picture: look from nearer
        near = [slice(int(b.start / scale), int(b.stop / scale)) for b in _box(mask, size // 2)]
        return digit(pixels[tuple(near)])
    full, faint = np.percentile(ink[mask], 75), _THRESHOLD / 3 * ink.max()
    ink = np.clip((ink - faint) / (full - faint), 0, 1) * _window(mask, size // 20 + 1, np.max)
    return _framed(ink[_box(ink > 0.02)])


def _reduced(image: Any) -> Any:
    """Return an image as RGBA, or as F if it has 16 or 32 bits, less than twice too large."""
    image_module = require("PIL.Image", "image")
    image.load()
    factor = max(1, max(image.size) // _LARGEST)
    mode = "F" if image.mode[0] in "IF" else "RGBA"
    small = image_module.new(mode, tuple(-(-n // factor) for n in image.size))
    for row in range(0, small.height, 32):  # a few rows at a time: whole copies would fill memory
        bottom = min((row + 32) * factor, image.height)
        rows = image.crop((0, row * factor, image.width, bottom))
        if mode == "F":
            rows = image_module.fromarray(np.nan_to_num(np.asarray(rows, np.float32)))
        small.paste(rows.convert(mode).reduce(factor), (0, row))
    small.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return small


def _stretched(levels: np.ndarray) -> np.ndarray:
    return (levels - levels.min()) / max(np.ptp(levels), 1e-9)


def _ink(levels: np.ndarray) -> np.ndarray:
    """Return which part of the paper's light each pixel lacks."""
    reach = max(levels.shape) // 4 + 1  # a window is wider than a stroke
    # The rarer of dark and light is the ink. The power makes strong contrast count, not shadows.
    if ((levels - _window(levels, reach, np.mean)) ** 5).sum() > 0:
        levels = 1 - levels
    wide = np.pad(levels, reach, mode="edge")  # a shadow does not end at the edge
    paper = _window(_window(wide, reach, np.max), reach, np.min)[reach:-reach, reach:-reach]
    return (paper - levels) / np.maximum(paper, 1e-6)


def _digit_mask(mask: np.ndarray) -> np.ndarray | None:
    """Return the part of the mask that looks like one digit, or None.

    It has no specks and no printed lines, and does not touch the edge.
    """
    parts = _numbered(mask)
    numbers, sizes = np.unique(parts[mask], return_counts=True)
    edge = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
    inner = ~np.isin(numbers, edge)
    if mask.mean() > _MOST_INK or sizes[inner].max(initial=0) <= 0.05 * sizes.max(initial=0):
        return None
    found = _without_lines([np.argwhere(parts == n) for n in numbers[inner & (sizes > 2)]])
    if not 0 < len(found) <= _MOST_PARTS:
        return None
    mask = np.zeros_like(mask)
    mask[tuple(np.concatenate(found).T)] = True
    box = np.pad(mask[_box(mask)], 1)
    solid = max(box.shape) > max(mask.shape) / 4 and _window(box, max(box.shape) // 5, np.min).any()
    return mask if _like_a_digit(box) and not solid else None


def _numbered(mask: np.ndarray) -> np.ndarray:
    """Return for each pixel the number of the connected part that it is in, 0 outside the mask."""
    parts = mask * np.arange(1, mask.size + 1).reshape(mask.shape)
    # Each pixel takes the largest number around it, and then that of the pixel so numbered, which
    # is in the same part, until every part has one number.
    while (parts != (spread := mask * _window(parts, 1, np.max))).any():
        parts = mask * spread.ravel()[spread - 1]
    return parts


def _like_a_digit(mask: np.ndarray) -> bool:
    """Say whether ink is close together, no mere line, and not crossed as often as noise."""
    height, width = mask.shape
    together = _numbered(_window(mask, max(mask.shape) // 6, np.max))[mask]
    edges = [np.diff(mask, axis=axis).sum() / mask.shape[1 - axis] for axis in (0, 1)]
    return bool(np.ptp(together) == 0 and height > width / 12 and max(edges) < 7)


def _without_lines(parts: list[np.ndarray]) -> list[np.ndarray]:
    """Return the parts, each an array of points, that are neither specks nor printed lines."""
    for part in sorted(parts, key=lambda part: -np.ptp(part, axis=0).max()):
        others = [other for other in parts if other is not part]
        rest = _without_specks(others)
        if rest and _printed(part, np.concatenate(rest)):
            return _without_lines(others)
    return _without_specks(parts)


def _without_specks(parts: list[np.ndarray]) -> list[np.ndarray]:
    largest = max(map(len, parts), default=0)
    return [part for part in parts if len(part) > 0.1 * largest]


def _printed(part: np.ndarray, rest: np.ndarray) -> bool:
    """Say whether a part is a frame, a corner or a line, and the rest is on its inner side."""
    own, other = _to_sides(part, rest)
    size, room = (np.ptp(to_sides, axis=0)[:2] + 1 for to_sides in (own, other))
    thick = 1.5 + 0.06 * size.max()
    if (own.min(axis=1) < thick).mean() < 0.97 or room.max() < 0.1 * size.max():
        return False
    inner = (other > 0).mean(axis=0) > 0.95
    if size.min() < 1.5 + 0.15 * size.max():  # one line
        first = 1 - np.argmax(size)
        if first == 0 and inner[2]:
            return True
        # Above or beside the rest it may be a stroke: the bar of a 5, the stem of a 4.
        return bool(inner[first::2].any() and size.max() > 1.5 * room.max())
    for side in range(4):
        along = own[own[:, side] < thick, 1 - side % 2]
        ruled = len(np.unique(along.round())) > 0.75 * size[1 - side % 2]
        if ruled and not inner[side]:
            return False
    return bool((size > 0.7 * room).all() and size.min() > 4 * thick)


def _to_sides(part: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how far points are from the top, left, bottom and right side of the part's box.

    The box is turned, by at most 14 degrees, so that the part's points are nearest to its sides.
    """
    found = []
    for angle in np.radians(np.arange(-14, 15, 2)):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        low, high = (part @ turn).min(axis=0), (part @ turn).max(axis=0)
        found.append([np.hstack([a @ turn - low, high - a @ turn]) for a in (part, rest)])
    own, other = min(found, key=lambda pair: pair[0].min(axis=1).mean())
    return own, other


def _framed(ink: np.ndarray) -> np.ndarray:
    """Scale the ink to the box and put its centre of mass in the middle of the frame."""
    ink = _resized(ink, _BOX / max(ink.shape))
    y, place = np.zeros((_SIZE, _SIZE), np.float32), []
    for axis, n in enumerate(ink.shape):
        centre = np.average(np.arange(n), weights=ink.sum(axis=1 - axis))
        start = min(max(round(_SIZE / 2 - centre), 0), _SIZE - n)
        place.append(slice(start, start + n))
    y[tuple(place)] = ink / ink.max()
    return y


def _resized(a: np.ndarray, scale: float) -> np.ndarray:
    image = require("PIL.Image", "image")
    height, width = (max(1, round(scale * n)) for n in a.shape)
    return np.asarray(image.fromarray(a).resize((width, height), image.Resampling.HAMMING))


def _window(a: np.ndarray, reach: int, best: Callable[..., Any]) -> np.ndarray:
    """Return the mean, the largest or the smallest of the square window around each pixel."""
    for _ in range(2):  # down the columns; then, turned over, along the rows
        wide = np.pad(a, ((reach, reach), (0, 0)), mode="edge")
        a = best(np.lib.stride_tricks.sliding_window_view(wide, 2 * reach + 1, axis=0), axis=-1).T
    return a


def _box(mask: np.ndarray, margin: int = 0) -> tuple[slice, ...]:
    """Return the rows and the columns that the mask extends over, and some around it."""
    found = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return tuple(slice(max(0, i[0] - margin), i[-1] + 1 + margin) for i in found)
