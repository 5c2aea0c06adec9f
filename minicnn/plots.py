"""Pictures of a training run and of what was learnt, drawn by matplotlib (extra `plot`).

Each function returns a `matplotlib.figure.Figure` that stands alone: no window, no pyplot, nothing
to close. ``figure.savefig("picture.png")`` writes it. The colours are told apart by colour-blind
readers too.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core import checks
from minicnn.core.checks import array, describe, integer
from minicnn.core.extras import require
from minicnn.metrics import confusion_matrix as count_confusions
from minicnn.ops import check_labels

# The palette by Okabe and Ito for all kinds of colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MOST_CURVES = 16  # panels, and lines in a panel: more can neither be read nor drawn in seconds
_MOST_BYTES = 1 << 23  # of evaluations.jsonl: some 80,000 evaluations
_UNITS = {"loss": "loss (mean over the rows)", "accuracy": "accuracy (share of the rows)"}


def learning_curve(source: str | Path | Sequence[Mapping[str, Any]]) -> Any:
    """Draw the values of the evaluations over the training steps, a line for each data set.

    Parameters
    ----------
    source : str, Path or list of dict
        The model_dir of an Estimator, whose ``evaluations.jsonl`` is read; or records as they
        stand there: a "global_step", numbers, and the "name" of the data ("evaluation" if it is
        missing). Values that are None, not finite or beyond 1e100 are left out, and so is a last
        line that a killed run has left half-written.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each number, with a line for each name.

    Raises
    ------
    ValueError
        If there is no evaluation, a line of the file is not an evaluation, or there is more than a
        picture can show.

    Examples
    --------
    >>> import minicnn as mc
    >>> records = [{"global_step": 100, "loss": 2.1}, {"global_step": 200, "loss": 1.4}]
    >>> mc.plots.learning_curve(records).savefig("learning_curve.png")
    """
    if isinstance(source, str | Path):
        points = _points_of_file(checks.path(source, "source") / "evaluations.jsonl")
    else:
        records = checks.sequence(source, "source", "records")
        points = chain.from_iterable(_points("source", record) for record in records)
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    colours: dict[str, int] = {}  # by name, in the order in which they appear
    for number, name, step, value in points:
        panels.setdefault(number, {}).setdefault(name, []).append((step, value))
        colours.setdefault(name, len(colours))
    if not panels:
        raise ValueError(
            f"`source` must hold at least one evaluation, got none in {describe(source)}; call "
            "Estimator.evaluate, or fit with a ValidationMonitor"
        )
    if max(len(panels), len(colours)) > _MOST_CURVES:
        raise ValueError(
            f"`source` must hold at most {_MOST_CURVES} numbers under at most {_MOST_CURVES} "
            f"names, got {len(panels)} and {len(colours)}; give a list of the records to be drawn"
        )
    figure = _figure(4.6 * len(panels), 3.4)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (number, curves) in zip(grid, sorted(panels.items()), strict=True):
        _draw_curves(axes, number, curves, colours)
    return figure


def _draw_curves(
    axes: Any, number: str, curves: dict[str, list[tuple[float, float]]], colours: dict[str, int]
) -> None:
    """Draw the values of a number, a line for each name."""
    title = _shortened(number)
    for name, points in curves.items():
        points.sort(key=lambda point: point[0])
        step, value = points[-1]
        last = f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
        turn, index = divmod(colours[name], len(_COLOURS))
        (line,) = axes.plot(
            *zip(*points, strict=True), color=_COLOURS[index], marker="osD^v<>"[index],
            linestyle=("-", "--", ":")[turn], markersize=4,
        )
        line.set_label(f"{last} {_shortened(name)}")  # a name with _ in front would be left out
    if len(curves) == 1:
        title = f"{title} {last} after {step:,.0f} steps"
    else:
        for text in axes.legend(fontsize=8).get_texts():
            text.set_parse_math(False)
    axes.set_title(title, parse_math=False)
    axes.set_ylabel(_UNITS.get(number, _shortened(number)), parse_math=False)
    axes.set_xlabel("training (steps)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)  # so that long numbers do not meet
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")


def _points(place: str, record: Any) -> Iterator[tuple[str, str, float, float]]:
    """Yield (number, name of the data, step, value) for each number of an evaluation."""
    checks.instance(record, Mapping, place, "numbers by name")
    step = checks.number(record.get("global_step"), f"{place}: global_step", 0, 2**53)
    name = checks.text(record.get("name", "evaluation"), f"{place}: name")
    for number in record.keys() - {"global_step", "name", "rows"}:
        value = checks.instance(record[number], int | float | None, place, "numbers by name")
        if value is not None and abs(value) <= 1e100:
            yield checks.text(number, f"{place}: the name of a number"), name, step, float(value)


def _points_of_file(path: Path) -> Iterator[tuple[str, str, float, float]]:
    """Yield the points of a file; its last line may be half-written."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(
            f"{path} has more than {_MOST_BYTES:,} bytes; give a list of the records to be drawn"
        )
    lines = data.split(b"\n")
    for n, line in enumerate(lines, 1):
        place = f"{path}, line {n}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            if n < len(lines):
                raise ValueError(f"{place} is no JSON; delete {describe(line)}") from error
            return
        try:
            yield from _points(place, record)
        except TypeError as error:
            raise ValueError(f"{error}; delete the line") from error


def _shortened(name: str) -> str:
    return name if len(name) <= 30 else f"{name[:27]}..."


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike) -> Any:
    """Draw how often each true class was predicted as each class.

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row.
    predictions : array of int, (N,)
        The predicted class of each row.

    Returns
    -------
    matplotlib.figure.Figure
        Each square holds a number of rows. Its shade follows the share of the true class on a
        scale that spreads small shares, where the mistakes are.

    Examples
    --------
    >>> import minicnn as mc
    >>> figure = mc.plots.confusion_matrix(labels=[0, 0, 1, 2], predictions=[0, 1, 1, 2])
    """
    counts = count_confusions(labels, predictions)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = 2 + 0.45 * len(counts)
    figure = _figure(side + 0.8, side)
    axes = figure.subplots()
    spread = require("matplotlib.colors", "plot").PowerNorm(0.4, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=spread)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # Here the contrast of black on the blue falls below that of white.
            colour = "white" if spread(shares[row, column]) > 0.715 else "black"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    right = np.trace(counts) / counts.sum()
    axes.set_title(f"{counts.sum():,} rows, {right:.2%} on the diagonal")
    classes = range(len(counts))
    axes.set(xlabel="predicted class", ylabel="true class", xticks=classes, yticks=classes)
    figure.colorbar(picture, shrink=0.8, label="share of the true class", format="{x:.0%}",
                    ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    return figure


def filters(kernel: ArrayLike) -> Any:
    """Draw the filters of a first convolution, each as the pattern that excites it most.

    Parameters
    ----------
    kernel : array, (height, width, channels, filters)
        Such as ``estimator.get_variable_value("conv2d/kernel")``. With one channel, red weights
        are positive, blue ones negative and white ones 0; with three, a filter is drawn in
        colours around grey, which stands for 0.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the kernel has another form.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> kernel = np.random.default_rng(0).normal(size=(5, 5, 1, 32))
    >>> mc.plots.filters(kernel).savefig("filters.png")
    """
    grid = filter_grid(kernel)
    kernel = np.asarray(kernel, np.float64)
    title = f"{kernel.shape[3]} filters of {kernel.shape[0]} x {kernel.shape[1]} weights"
    if grid.ndim == 3:
        return _grid_figure(np.nan_to_num(grid, nan=1.0), title)
    top = float(np.abs(kernel).max()) or 1.0
    return _grid_figure((2 * grid - 1) * top, title, "weight", cmap="RdBu_r", vmin=-top, vmax=top)


def feature_maps(activations: ArrayLike) -> Any:
    """Draw what each filter of a layer makes of one image.

    Parameters
    ----------
    activations : array, (height, width, channels)
        The output of a layer for one image.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the array has another form.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer, image = mc.layers.Conv2D(16, 5, activation="relu"), np.zeros((1, 28, 28, 1), "f")
    >>> layer.build(image.shape, rng=0)
    (None, 24, 24, 16)
    >>> figure = mc.plots.feature_maps(layer.forward(image, mc.Context())[0])
    """
    maps = array(activations, "activations")
    if maps.ndim != 3 or not maps.size:
        raise ValueError(
            "`activations` must be of one image, (height, width, channels), got "
            f"{describe(maps)}; take one of a batch: activations[0]"
        )
    title = f"{maps.shape[2]} feature maps of {maps.shape[0]} x {maps.shape[1]}"
    return _grid_figure(_grid(np.moveaxis(maps, 2, 0)), title, "activation", cmap="viridis")


def worst_mistakes(
    images: ArrayLike, labels: ArrayLike, probabilities: ArrayLike, count: int = 24
) -> Any:
    """Draw the misread images to whose true class the model gave the least probability.

    Parameters
    ----------
    images : array, (N, height, width) or (N, height, width, 1 or 3)
        In [0, 1].
    labels : array of int, (N,)
        The true class of each image.
    probabilities : array, (N, classes)
        What the model makes of each image.
    count : int
        At most so many images.

    Returns
    -------
    matplotlib.figure.Figure
        Over each image stand the predicted class, the true one and the predicted one's probability.

    Raises
    ------
    ValueError
        If the arrays do not fit each other.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> images = np.random.default_rng(0).random((3, 28, 28))
    >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> figure = mc.plots.worst_mistakes(images, [0, 0, 1], probabilities)
    """
    images, labels = array(images, "images"), array(labels, "labels", "iu", "an array of integers")
    chances = array(probabilities, "probabilities")
    rows_fit = images.shape[:1] == labels.shape == chances.shape[:-1]
    if not rows_fit or images.ndim < 3 or images.shape[3:] not in ((), (1,), (3,)):
        raise ValueError(
            "`images` (N, height, width) or (N, height, width, 1 or 3), `labels` (N,) and "
            f"`probabilities` (N, classes) must fit, got shapes {images.shape}, {labels.shape} and "
            f"{chances.shape}; reshape flat images, take 1 or 3 channels of others: images[..., :1]"
        )
    check_labels(labels, chances.shape[1], "`labels`")
    guesses = chances.argmax(axis=1)
    wrong = np.flatnonzero(guesses != labels)
    worst = wrong[np.argsort(chances[wrong, labels[wrong]], kind="stable")]
    worst = worst[: integer(count, "count")]
    columns = min(8, max(len(worst), 4))
    rows = max(1, math.ceil(len(worst) / columns))
    figure = _figure(1.05 * columns, 1.4 * rows + 0.4)
    figure.suptitle(f"{len(wrong):,} of {len(images):,} images are misread")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, worst, strict=False):  # the last row may not be full
        guess = guesses[index]
        axes.imshow(images[index], cmap="gray_r", vmin=0, vmax=1)
        axes.set_title(
            f"{guess}, not {labels[index]}\n{chances[index, guess]:.0%} sure", fontsize=8
        )
    return figure


def filter_grid(kernel: ArrayLike) -> np.ndarray:
    """Return the filters of a kernel as one image: 0 is at 0.5, NaN lies between the filters.

    Parameters
    ----------
    kernel : array, (height, width, channels, filters)
        Of 1 or 3 channels.

    Returns
    -------
    ndarray, (rows, columns) or (rows, columns, 3)
        In [0, 1].

    Raises
    ------
    ValueError
        If the kernel has another form.

    Examples
    --------
    >>> import numpy as np
    >>> from minicnn.plots import filter_grid
    >>> filter_grid(np.array([-2.0, 1.0]).reshape(1, 1, 1, 2))
    array([[0.  ,  nan, 0.75]])
    """
    kernel = array(kernel, "kernel").astype(np.float64)  # where a small type would overflow
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3) or not kernel.size:
        raise ValueError(
            "`kernel` must be (height, width, 1 or 3 channels, filters), got "
            f"{describe(kernel)}; take one channel of a deeper layer: kernel[:, :, :1]"
        )
    patterns = np.moveaxis(kernel, 3, 0)  # (F, KH, KW, C)
    patterns = 0.5 + patterns / (np.abs(kernel).max() or 1) / 2
    return _grid(patterns[..., 0] if kernel.shape[2] == 1 else patterns)


def _grid(images: np.ndarray) -> np.ndarray:
    """Return images (N, H, W, ...) side by side, with a line of NaN between them."""
    count, height, width = images.shape[:3]
    columns = min(count, max(8, math.ceil(math.sqrt(count))))
    rows = math.ceil(count / columns)
    grid = np.full((rows * columns, height + 1, width + 1, *images.shape[3:]), np.nan)
    grid[:count, :height, :width] = images
    # (rows * columns, H + 1, W + 1) -> (rows, H + 1, columns, W + 1)
    grid = grid.reshape(rows, columns, *grid.shape[1:]).swapaxes(1, 2)
    whole = grid.reshape(rows * (height + 1), columns * (width + 1), *images.shape[3:])
    return whole[:-1, :-1]


def _grid_figure(grid: np.ndarray, title: str, label: str = "", **colours: Any) -> Any:
    """Return a figure of one grid; with a label, a bar beside it explains the colours."""
    height, width = grid.shape[:2]
    figure = _figure(6.4, 5.3 * height / width + 0.4)
    axes = figure.subplots()
    picture = axes.imshow(grid, interpolation="nearest", **colours)
    axes.set_title(title)
    axes.set_axis_off()
    if label:
        figure.colorbar(picture, label=label)
    return figure


def _figure(width: float, height: float) -> Any:
    """Return an empty figure of a size in inches, outside of pyplot's global list."""
    figures = require("matplotlib.figure", "plot")
    return figures.Figure(figsize=(width, height), layout="constrained")
