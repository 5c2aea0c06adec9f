"""Plots of a training run and of a trained model, drawn with matplotlib (extra `plot`).

Each function returns a `matplotlib.figure.Figure` that is not registered with pyplot, so there is
no window and nothing to close. ``figure.savefig("picture.png")`` writes it. The colours can be
distinguished by colour-blind readers.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minicnn.core import checks
from minicnn.core.extras import require
from minicnn.estimator.history import read_rows
from minicnn.metrics import confusion_matrix as count_confusions
from minicnn.ops import check_labels

# The palette of Okabe and Ito, also for colour-blind readers, with grey in place of black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#808080")
_MOST_CURVES = 16  # panels, and lines in a panel: more are slow to draw and unreadable
_MOST_MARKERS = 60  # points of a line that are marked
_UNITS = {"loss": "loss (mean over the rows)", "accuracy": "accuracy (share of the rows)"}


def learning_curve(source: Any) -> Any:
    """Plot the loss of the training and the results of evaluations against the training step.

    Parameters
    ----------
    source : History, dict, str, Path or list of dict
        * What `Sequential.fit` returns, ``Estimator.history``, or the dict of lists that their
          `to_dict` returns.
        * A model_dir, whose ``history.jsonl`` (the loss of the training) and ``evaluations.jsonl``
          are read.
        * A list of records: a "global_step", numbers, and the "name" of the data (default
          "evaluation"); or of rows of a History.

        Values that are None, not finite or beyond 1e100 are ignored, and so are damaged or
        incomplete lines of a file, such as the last one of a killed run.

    Returns
    -------
    matplotlib.figure.Figure
        A panel for each number, with a line for each data set: "training" is the mean loss of the
        batches as they were trained on; the others are evaluations under their names.

    Raises
    ------
    ValueError
        If there are no numbers, or more than can be shown.
    TypeError
        If a record does not consist of numbers by name.

    Examples
    --------
    >>> import minicnn as mc
    >>> records = [{"global_step": 100, "loss": 2.1}, {"global_step": 200, "loss": 1.4}]
    >>> mc.plots.learning_curve(records).savefig("learning_curve.png")
    """
    if isinstance(source, str | Path):
        records = _records_in(checks.path(source, "source"))
    else:
        records = getattr(source, "rows", source)  # of a History
        if isinstance(records, Mapping):
            columns = [checks.sequence(column, "source", "lists") for column in records.values()]
            records = [  # where a list is shorter, None
                dict(zip(records, row, strict=True)) for row in itertools.zip_longest(*columns)
            ]
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    colours: dict[str, int] = {}  # by name, in the order in which they appear
    for record in checks.sequence(records, "source", "records, a History or a model_dir"):
        for number, name, step, value in _points(record):
            panels.setdefault(number, {}).setdefault(name, []).append((step, value))
            colours.setdefault(name, len(colours))
    if not panels:
        raise ValueError(
            "`source` must contain at least one evaluation, got none in "
            f"{checks.describe(source)}; call fit first, or Estimator.evaluate"
        )
    if max(len(panels), len(colours)) > _MOST_CURVES:
        raise ValueError(
            f"`source` must contain at most {_MOST_CURVES} numbers under at most {_MOST_CURVES} "
            f"names, got {len(panels)} and {len(colours)}; give a list of the records to draw"
        )
    figure = _figure(4.6 * len(panels), 3.4)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (number, curves) in zip(grid, sorted(panels.items()), strict=True):
        _draw_curves(axes, number, curves, colours)
    return figure


def _draw_curves(
    axes: Any, number: str, curves: dict[str, list[tuple[float, float]]], colours: dict[str, int]
) -> None:
    """Draw one panel: a number, with a line for each name."""
    title = _shortened(number)
    for name, points in curves.items():
        points.sort(key=lambda point: point[0])
        step, value = points[-1]
        last = f"{value:.4f}" if abs(value) < 1e6 else f"{value:.4g}"
        turn, index = divmod(colours[name], len(_COLOURS))
        (line,) = axes.plot(
            *zip(*points, strict=True), color=_COLOURS[index], linestyle=("-", "--", ":")[turn],
            marker="osD^v<>"[index] if len(points) <= _MOST_MARKERS else "", markersize=4,
        )
        line.set_label(f"{last} {_shortened(name)}")  # a label that starts with _ is hidden
    if len(curves) == 1:
        title = f"{title} {last} after {step:,.0f} steps"
    else:
        axes.legend(fontsize=8)
    axes.set_title(title)
    axes.set_ylabel(_UNITS.get(number, _shortened(number)))
    axes.set_xlabel("training (steps)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.locator_params(axis="x", nbins=5)  # so that long numbers do not overlap
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.5", alpha=0.25)


def _points(record: Any) -> Iterator[tuple[str, str, float, float]]:
    """Yield (number, name of the data, step, value) for each number of an evaluation or a row."""
    checks.instance(record, Mapping, "source", "records of numbers by name")
    is_row = "step" in record and "global_step" not in record  # of a History
    key = "step" if is_row else "global_step"
    step = checks.number(record.get(key), f"source: {key}", 0, 2**53)
    name = "training" if is_row else checks.text(record.get("name", "evaluation"), "source: name")
    left_out = ("step", "learning_rate", "seconds") if is_row else ("global_step", "name", "rows")
    for number in [key for key in record if key not in left_out]:
        checks.text(number, "source: the name of a number")
        value = checks.instance(record[number], int | float | None, "source", "numbers by name")
        if value is not None and abs(value) <= 1e100:
            of, _, what = number.partition("_") if is_row else ("", "", "")
            yield what or number, of if what else name, step, float(value)


def _records_in(folder: Path) -> list[Any]:
    """Return the training loss and the evaluations in a model_dir."""
    return [
        {"step": row["step"], "loss": row.get("loss")}
        for row in read_rows(folder / "history.jsonl", "step")
    ] + read_rows(folder / "evaluations.jsonl", "global_step")


def _shortened(name: str) -> str:
    """Return a name of at most 30 characters, in which a $ does not begin a formula."""
    return (name if len(name) <= 30 else f"{name[:27]}...").replace("$", r"\$")


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike) -> Any:
    """Plot how often each true class was predicted as each class.

    Parameters
    ----------
    labels : array of int, (N,)
        The true class of each row.
    predictions : array of int, (N,)
        The predicted class of each row.

    Returns
    -------
    matplotlib.figure.Figure
        Each cell contains a number of rows. Its shade shows the fraction of the true class, on a
        nonlinear scale that makes small fractions visible.

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
    norm = require("matplotlib.colors", "plot").PowerNorm(0.4, vmin=0, vmax=1)
    picture = axes.imshow(shares, cmap="Blues", norm=norm)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            # Above this shade of blue, white has more contrast than black.
            colour = "white" if norm(shares[row, column]) > 0.715 else "black"
            axes.text(column, row, count, ha="center", va="center", color=colour, fontsize=8)
    axes.set_title(f"{counts.sum():,} rows, {np.trace(counts) / counts.sum():.2%} on the diagonal")
    classes = range(len(counts))
    axes.set(xlabel="predicted class", ylabel="true class", xticks=classes, yticks=classes)
    figure.colorbar(picture, shrink=0.8, label="share of the true class", format="{x:.0%}",
                    ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    return figure


def filters(kernel: ArrayLike) -> Any:
    """Draw the filters of a convolution with 1 or 3 input channels.

    Parameters
    ----------
    kernel : array, (height, width, channels, filters)
        For example ``estimator.get_variable_value("conv2d/kernel")``. With one channel, positive
        weights are red, negative ones blue and zeros white. With three channels, each filter is
        drawn as an RGB image in which grey is 0.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the kernel has another shape.

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
    """Draw the output of a layer for one image, one picture per channel.

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
        If the array has another shape.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> layer, image = mc.layers.Conv2D(16, 5, activation="relu"), np.zeros((1, 28, 28, 1), "f")
    >>> layer.build(image.shape, rng=0)
    (None, 24, 24, 16)
    >>> figure = mc.plots.feature_maps(layer.forward(image, mc.Context())[0])
    """
    maps = checks.array(activations, "activations")
    if maps.ndim != 3 or not maps.size:
        raise ValueError(
            "`activations` must be of one image, (height, width, channels), got "
            f"{checks.describe(maps)}; take one of a batch: activations[0]"
        )
    return _grid_figure(
        _grid(np.moveaxis(maps, 2, 0)),
        f"{maps.shape[2]} feature maps of {maps.shape[0]} x {maps.shape[1]}",
        "activation",
        cmap="viridis",
    )


def worst_mistakes(
    images: ArrayLike, labels: ArrayLike, probabilities: ArrayLike, count: int = 24
) -> Any:
    """Draw the misclassified images whose true class has the lowest predicted probability.

    Parameters
    ----------
    images : array, (N, height, width) or (N, height, width, 1 or 3)
        In [0, 1].
    labels : array of int, (N,)
        The true class of each image.
    probabilities : array, (N, classes)
        Predicted probabilities of each image.
    count : int
        Maximum number of images.

    Returns
    -------
    matplotlib.figure.Figure
        Above each image are the predicted class, the true class and the probability of the
        predicted class.

    Raises
    ------
    ValueError
        If the shapes of the arrays do not match.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> images = np.random.default_rng(0).random((3, 28, 28))
    >>> probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> figure = mc.plots.worst_mistakes(images, [0, 0, 1], probabilities)
    """
    images = checks.array(images, "images")
    labels = checks.array(labels, "labels", "iu", "an array of integers")
    chances = checks.array(probabilities, "probabilities")
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
    worst = worst[: checks.integer(count, "count")]
    columns = min(8, max(len(worst), 4))
    rows = max(1, math.ceil(len(worst) / columns))
    figure = _figure(1.05 * columns, 1.4 * rows + 0.4)
    figure.suptitle(f"{len(wrong):,} of {len(images):,} images are misread")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels:
        axes.set_axis_off()
    for axes, index in zip(panels, worst, strict=False):  # the last row may not be full
        axes.imshow(images[index], cmap="gray_r", vmin=0, vmax=1)
        title = f"{guesses[index]}, not {labels[index]}\n{chances[index].max():.0%} sure"
        axes.set_title(title, fontsize=8)
    return figure


def filter_grid(kernel: ArrayLike) -> np.ndarray:
    """Return the filters of a kernel as one image, scaled so that weight 0 becomes 0.5.

    Parameters
    ----------
    kernel : array, (height, width, channels, filters)
        With 1 or 3 channels.

    Returns
    -------
    ndarray, (rows, columns) or (rows, columns, 3)
        In [0, 1], with NaN between the filters.

    Raises
    ------
    ValueError
        If the kernel has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> from minicnn.plots import filter_grid
    >>> filter_grid(np.array([-2.0, 1.0]).reshape(1, 1, 1, 2))
    array([[0.  ,  nan, 0.75]])
    """
    kernel = checks.array(kernel, "kernel").astype(np.float64)  # smaller types could overflow
    if kernel.ndim != 4 or kernel.shape[2] not in (1, 3) or not kernel.size:
        raise ValueError(
            "`kernel` must be (height, width, 1 or 3 channels, filters), got "
            f"{checks.describe(kernel)}; take one channel of a deeper layer: kernel[:, :, :1]"
        )
    patterns = np.moveaxis(kernel, 3, 0)  # (F, KH, KW, C)
    patterns = 0.5 + patterns / (np.abs(kernel).max() or 1) / 2
    return _grid(patterns[..., 0] if kernel.shape[2] == 1 else patterns)


def _grid(images: np.ndarray) -> np.ndarray:
    """Arrange images (N, H, W, ...) in a grid, with lines of NaN between them."""
    count, height, width = images.shape[:3]
    columns = min(count, max(8, math.ceil(math.sqrt(count))))
    rows = math.ceil(count / columns)
    grid = np.full((rows * columns, height + 1, width + 1, *images.shape[3:]), np.nan)
    grid[:count, :height, :width] = images
    # (rows * columns, H + 1, W + 1) -> (rows, H + 1, columns, W + 1)
    grid = grid.reshape(rows, columns, *grid.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + 1), columns * (width + 1), *images.shape[3:])
    return grid[:-1, :-1]


def _grid_figure(grid: np.ndarray, title: str, label: str = "", **colours: Any) -> Any:
    """Return a figure of a grid; a label adds a colour bar."""
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
    """Return an empty figure of a size in inches that is not registered with pyplot."""
    figure_module = require("matplotlib.figure", "plot")
    return figure_module.Figure(figsize=(width, height), layout="constrained")
