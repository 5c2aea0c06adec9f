"""A page about a trained model: how it learnt, and what it gets right and wrong."""

import html
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from minicnn import plots
from minicnn.core import checks
from minicnn.core.extras import require
from minicnn.core.files import replacing
from minicnn.core.log import logger
from minicnn.core.weights import PARAMETERS
from minicnn.estimator import CheckpointError, Estimator, checkpoints
from minicnn.estimator.history import read_rows
from minicnn.metrics import confusion_matrix
from minicnn.ops import check_labels, softmax
from minicnn.sequential import Sequential

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Report on $name</title>
<style>
:root { --ink: #222; --pale: #595959; --paper: #fff; --block: #f3f3f3; --line: #d5d5d5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --pale: #a8a8a8; --paper: #17191c; --block: #23262b; --line: #44484e; }
}
body { max-width: 48rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5;
       font-family: system-ui, sans-serif; color: var(--ink); background: var(--paper); }
h1, h2 { line-height: 1.2; }
h2 { margin-top: 2.5rem; }
dl { margin: 1.5rem 0; display: grid; grid-template-columns: auto 1fr; gap: 0.4rem 1.2rem;
     align-items: baseline; }
dt { font-size: 1.6rem; text-align: right; }
dd { margin: 0; color: var(--pale); }
dd b { color: var(--ink); }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid var(--line);
         text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; }
svg { max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: 0.8rem; background: var(--block); }
</style>
</head>
<body>
<h1>Report on $name</h1>
<dl>$facts</dl>
$sections
</body>
</html>
""")
_KEYS = ("name", "rows", "global_step")  # of a record, beside its numbers
_INK = "#222222"  # of the letters and axes of a figure, replaced by the colour of the page's text
_STYLE = {
    "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK,
    "xtick.color": _INK, "ytick.color": _INK, "legend.framealpha": 0,
}


def report(
    model_dir: Any,
    x: Any = None,
    y: Any = None,
    model: Any = None,
    name: str = "test",
    path: str | Path | None = None,
) -> Path:
    """Write a page of HTML about a trained model, with its figures inside and a dark mode.

    The page needs no network and no other file, so it can be mailed. It says of each number which
    data it is of. From the folder alone it has the learning curves, the recorded evaluations, the
    filters of the first layer and the parameters; curves that cannot be drawn are left out, with a
    warning. With a model and data it also has the accuracy on these data, the confusion matrix and
    the worst mistakes.

    Parameters
    ----------
    model_dir : str, Path or Estimator
        The folder in which `Sequential.fit` or an Estimator trained.
    x : array, (N, ...), optional
        Rows to measure the model on, as for its `predict`.
    y : array of int, (N,), optional
        Their class numbers.
    model : Sequential or Estimator, optional
        The model that predicts: a Sequential with the values that it has now, an Estimator with its
        newest checkpoint. Its predictions must include probabilities or logits, (N, classes). It
        is not needed if `model_dir` is an Estimator.
    name : str
        What these data are called on the page.
    path : str or Path, optional
        The file; the default is ``report.html`` in the folder.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    CheckpointError
        If there is neither a checkpoint in the folder nor a Sequential.
    ImportError
        If the extra `plot` is not installed.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> x, y = np.eye(4, dtype=np.float32), np.arange(4)
    >>> model = mc.Sequential([mc.layers.Dense(4)])
    >>> history = model.fit(x, y, steps=20, model_dir="runs/4", verbose=False)
    >>> mc.report("runs/4", x, y, model=model, name="training").name
    'report.html'
    """
    if isinstance(model_dir, Estimator):
        model = model_dir
        model_dir = model.model_dir
    folder = checks.path(model_dir, "model_dir")
    checks.instance(
        model, Estimator | Sequential if x is not None else Estimator | Sequential | None, "model",
        "the Estimator or Sequential that predicts `x`",
    )
    data = html.escape(checks.text(name, "name"))
    require("matplotlib.figure", "plot")
    found = checkpoints.newest(folder)  # one for the page: another program may be training
    if isinstance(model, Sequential):
        weights = {parameter.name: parameter.value for parameter in model.parameters}
    elif found is None:
        raise CheckpointError(f"there is no checkpoint in {folder}; train with this model_dir")
    else:
        weights = found.part(PARAMETERS)
    target = folder / "report.html" if path is None else checks.path(path, "path")
    with replacing(target) as file:
        sections = _history(folder)
        facts: list[tuple[str, str]] = []
        if model is not None and x is not None:
            facts, more = _predictions(x, y, _probabilities(model, x, found), data)
            sections += more
        sections += _filters(weights)
        total = sum(value.size for value in weights.values())
        facts.append((f"{total:,}", "<b>parameters</b>: the numbers that the model consists of"))
        rows = [(k, " x ".join(map(str, w.shape)), f"{w.size:,}") for k, w in weights.items()]
        sections.append(("The parameters", _table(("parameter", "shape", "numbers"), rows), None))
        source = _PAGE.substitute(
            name=html.escape(folder.resolve().name),
            facts="".join(f"<dt>{number}</dt><dd>{text}</dd>" for number, text in facts),
            sections="".join(f"<h2>{t}</h2>{text}{_figure(t, draw)}" for t, text, draw in sections),
        )
        file.write(source.encode())
    return target


Section = tuple[str, str, Callable[[], Any] | None]  # title, text as HTML, and the figure


def _history(folder: Path) -> list[Section]:
    """Return the learning curves, and the last evaluation of each data set."""
    try:
        plots.learning_curve(folder)
    except ValueError as error:
        logger.warning("The report has no learning curve: %s", error)
        return []
    text = (
        "<p>The loss says how wrong the model is: lower is better. The accuracy is the share of "
        "the rows whose class it gets right. The line <b>training</b> is the mean loss of the "
        "batches that the model was being trained on, if there is dropout then with it. The other "
        "lines are evaluations, named after their data: of all of its rows, without dropout, with "
        "the weights of that step. <b>Validation</b> rows are not trained on, but they may have "
        "decided when the training stopped. What to expect of new data is shown by rows that "
        "decided nothing, such as a test set.</p>"
    )
    rows = []
    latest = {
        record.get("name", "evaluation"): record
        for record in read_rows(folder / "evaluations.jsonl", "global_step")
    }
    for name, record in latest.items():
        numbers = [
            f"{key} {value:.4g}"
            for key, value in record.items()
            if key not in _KEYS and value is not None and abs(value) <= 1e100
        ]
        step = f"{record['global_step']}"
        rows.append((name, f"{record.get('rows', '')}", step, ", ".join(numbers)))
    if rows:
        text += "<p>The last recorded evaluation of each data set:</p>"
        text += _table(("data", "rows", "step", "results"), rows)
    return [("How it learnt", text, lambda: plots.learning_curve(folder))]


def _predictions(
    x: Any, y: Any, chances: np.ndarray, name: str
) -> tuple[list[tuple[str, str]], list[Section]]:
    """Return facts and sections about what the model gets right and wrong on data."""
    y = checks.array(y, "y", "iu", "an array of class numbers")
    if y.shape != chances.shape[:1]:
        raise ValueError(f"`y` must have a class number for each row of `x`, got {y.shape}")
    check_labels(y, chances.shape[1], "`y`")
    guesses = chances.argmax(axis=1)
    counts = confusion_matrix(y, guesses)
    right = int(np.trace(counts))
    given = chances[np.arange(len(y)), y].astype(np.float64)  # to the true class
    loss = -np.log(np.maximum(given, np.finfo(chances.dtype).tiny)).mean()
    data = f"the {len(y):,} rows of <b>{name}</b>, which were given to this report"
    facts = [
        (f"{right / len(y):.2%}", f"<b>accuracy</b> on {data}: {right:,} are right"),
        (
            f"{loss:.4f}",
            f"<b>loss</b> on {data}: the mean of &minus;log p, where p is the probability of the "
            f"true class; guessing gives log {chances.shape[1]} = {np.log(chances.shape[1]):.4f}",
        ),
    ]
    np.fill_diagonal(counts, 0)
    true, guess = np.unravel_index(counts.argmax(), counts.shape)
    text = (
        f"<p>Of {data}, {len(y) - right:,} are wrong. The most frequent mistake: class {true} was "
        f"taken for class {guess}, {counts[true, guess]} times.</p>"
    )
    sections: list[Section] = [
        ("What it mixes up", text, lambda: plots.confusion_matrix(y, guesses))
    ]
    images = _as_images(np.asarray(x))
    if images is not None:
        text = (
            f"<p>Of {data}, the wrong ones whose true class got the lowest probability. Above each "
            "picture: the prediction, the label, and how sure the model was.</p>"
        )
        sections.append(
            ("Its worst mistakes", text, lambda: plots.worst_mistakes(images, y, chances))
        )
    return facts, sections


def _filters(weights: Mapping[str, np.ndarray]) -> list[Section]:
    """Return the filters of the first convolution, if it has 1 or 3 channels."""
    kernels = [value for value in weights.values() if value.ndim == 4 and value.shape[2] in (1, 3)]
    if not kernels:
        return []
    high, wide, _, count = kernels[0].shape
    text = (
        f"<p>The first convolution has {count} filters of {high} &times; {wide} weights. A filter "
        "responds where the picture is bright under its positive weights and dark under its "
        "negative ones.</p>"
    )
    return [("What the first layer detects", text, lambda: plots.filters(kernels[0]))]


def _table(head: Any, rows: Any) -> str:
    lines = [f"<tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr>"]
    lines += [f"<tr>{''.join(f'<td>{html.escape(c)}</td>' for c in row)}</tr>" for row in rows]
    return f"<table>{''.join(lines)}</table>"


def _figure(title: str, draw: Callable[[], Any] | None) -> str:
    """Return a figure as SVG, whose letters and axes have the colour of the page's text."""
    if draw is None:
        return ""
    file = io.StringIO()
    with require("matplotlib", "plot").rc_context(_STYLE):
        draw().savefig(file, format="svg", transparent=True, metadata={"Title": title})
    svg = file.getvalue()
    return svg[svg.index("<svg"):].replace(_INK, "currentColor")


def _as_images(x: np.ndarray) -> np.ndarray | None:
    """Return rows as images with values from 0 to 1; None for other shapes."""
    side = math.isqrt(x[0].size)
    if x.ndim == 2 and side >= 8 and side * side == x.shape[1]:
        x = x.reshape(-1, side, side)
    if x.ndim != 3 and (x.ndim != 4 or x.shape[3] not in (1, 3)):
        return None
    return (x - x.min()) / max(np.ptp(x), 1e-12)


def _probabilities(model: Any, x: Any, found: Any) -> np.ndarray:
    """Return the probability of each class for each row."""
    if isinstance(model, Sequential):
        return model.predict_proba(x)
    outputs = model.predict(x, as_iterable=False, checkpoint_path=found.path)
    arrays = outputs.values() if isinstance(outputs, dict) else [outputs]
    tables = [array for array in arrays if array.ndim == 2 and array.dtype.kind == "f"]
    if not tables:
        raise ValueError(
            "`model` must predict probabilities or logits, (N, classes), got the shapes "
            f"{', '.join(str(array.shape) for array in arrays)}"
        )
    sure = [t for t in tables if t.min() >= 0 and np.allclose(t.sum(axis=1), 1, atol=1e-3)]
    return sure[0] if sure else softmax(tables[0])
