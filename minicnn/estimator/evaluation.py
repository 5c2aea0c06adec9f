"""Evaluating and predicting with the weights of a model, and the file of evaluations."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

from minicnn.core import checks
from minicnn.core.context import Context
from minicnn.core.files import JsonLines
from minicnn.core.log import logger, numbers
from minicnn.estimator.config import MetricSpec, ModeKeys, RunConfig, checked_metrics
from minicnn.estimator.feeding import Feed, concatenate, rows_of
from minicnn.estimator.model import Model
from minicnn.estimator.progress import Display, displayed
from minicnn.estimator.tracing import Trace
from minicnn.inference import InferenceModel

# Numbers in the outputs of all layers, which an InferenceModel keeps: larger batches are split.
_MOST_KEPT = 1 << 25


def evaluate(
    model: Model,
    feed: Feed,
    config: RunConfig,
    record: JsonLines | None,
    steps: int | None = None,
    metrics: Mapping[str, MetricSpec] | None = None,
    name: str | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Evaluate the weights that a model has now, in one pass over a feed.

    Parameters
    ----------
    model : Model
    feed : ArrayFeed or FunctionFeed
    config : RunConfig
    record : JsonLines, optional
        Where the results are added. None neither notes nor logs them.
    steps : int, optional
        The largest number of batches.
    metrics : dict from str to MetricSpec, optional
    name : str, optional
        What the data is, in `record`.
    display : Display, optional
        That of a run which this evaluation is a part of.

    Returns
    -------
    dict
        ``"loss"``, ``"global_step"`` and each metric.
    """
    name = "evaluation" if name is None else checks.text(name, "name")
    most = checks.optional(checks.integer, steps, "steps")
    metrics = checked_metrics(metrics)
    trace = model.trace(ModeKeys.EVAL, feed.peek())
    trace.check_labels(feed.y)
    loss = trace.ops.loss
    predictions = trace.ops.predictions if metrics else {}
    plan = trace.graph.plan([loss, *predictions.values()], config.fuse)
    is_weighted = any(spec.weight_key is not None for spec in metrics.values())
    total = 0.0
    rows = 0
    parts = []
    own = displayed(config.progress, brief=True) if display is None else nullcontext(display)
    with own as shown:
        total_batches = min(most or math.inf, feed.batches)
        batches = itertools.islice(feed, most)
        for batch in shown.part(f"evaluating ({name})", total_batches, batches):
            values = plan.forward(trace.feeds(batch), Context(save=False))
            count = rows_of(batch[0])
            total += float(values[loss]) * count
            rows += count
            if metrics:
                kept = {key: values[tensor] for key, tensor in predictions.items()}
                # A copy, since an input_fn may use its arrays again.
                parts.append(copy.deepcopy((kept, batch[1], batch[0] if is_weighted else None)))
    results: dict[str, Any] = {}
    if metrics:
        predicted, labels, features = map(concatenate, zip(*parts, strict=True))
        results = {k: spec.compute(predicted, labels, features, k) for k, spec in metrics.items()}
    results |= {"loss": total / rows, "global_step": model.step}
    noted = numbers(results)
    shown.note(name, noted, rows if record is None else None)
    if record is not None:
        if feed.epoch:
            logger.info("Input iterator is exhausted.")
        text = ", ".join(f"{key} = {value:.6g}" for key, value in sorted(noted.items()))
        logger.info("Saving evaluation summary for step %d: %s", model.step, text)
        record.add({"global_step": model.step, "name": name, "rows": rows} | noted)
    return results


def predictions(trace: Trace, fast: InferenceModel, feed: Feed) -> Iterator[Any]:
    """Yield what a model of this trace predicts for each batch."""
    shapes = [tensor.shape for tensor in trace.graph.tensors.values()]
    row = sum(math.prod(size or 1 for size in shape) for shape in shapes)
    for features, _ in feed:
        yield fast.predict(features, max(1, _MOST_KEPT // row))


def shown(batches: Iterator[Any], feed: Feed, wanted: bool) -> list[Any]:
    """Return all batches of predictions, and show the progress if that takes long."""
    with displayed(wanted and feed.batches > 1, brief=True) as display:
        return list(display.part("predicting", feed.batches, batches))


def rows_in(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the predictions of each row: a dict, or the one value of a model_fn without names.

    A number is one of Python, which JSON can hold.
    """
    for batch in batches:
        named = batch if isinstance(batch, dict) else {None: batch}
        columns = [values.tolist() if values.ndim == 1 else values for values in named.values()]
        for row in zip(*columns, strict=True):
            yield dict(zip(batch, row, strict=True)) if named is batch else row[0]
