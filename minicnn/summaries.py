"""Write training runs for TensorBoard, with tensorboardX (extra `tensorboard`)."""

import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minicnn.core import checks
from minicnn.core.extras import require
from minicnn.core.log import logger, numbers
from minicnn.core.op import Tensor
from minicnn.core.parameter import Parameter, sum_of_squares
from minicnn.estimator import MetricSpec
from minicnn.estimator.config import checked_metrics
from minicnn.estimator.graph import Graph
from minicnn.hooks import (
    SessionRunArgs,
    SessionRunContext,
    SessionRunHook,
    SessionRunValues,
    Timer,
    ValidationMonitor,
)
from minicnn.layers import Conv2D
from minicnn.plots import filter_grid

_FLUSH = 2.0  # seconds after which a write is on disk


class SummarySaverHook(SessionRunHook):
    """Write summaries for TensorBoard at the first step and then every `save_steps` steps.

    The curves of the training and of each validation are runs of the same charts: the folders
    ``train`` and, for example, ``validation`` in `output_dir`. View them with
    ``tensorboard --logdir`` and `output_dir`. There are

    * scalars of the step's batch (in training mode, with dropout): ``loss``, ``learning_rate`` and
      the metrics; ``global_step/sec``; and the ``gradient_norm`` of each parameter and of all
      together, after clipping;
    * scalars of each evaluation during the run: ``loss`` and its metrics;
    * histograms: each parameter, after the step;
    * images: the filters of the first convolution, if it has 1 or 3 channels;
    * the graph, once per run.

    A write is on disk after a few seconds, and at the end of the run. A run that continues in the
    same folder replaces the later points of a run that was stopped; a run from the first step
    replaces all, with a warning. With several processes, use the hook in the chief only; loss and
    metrics are then those of its rows.

    Parameters
    ----------
    output_dir : str or Path
        Folder of the event files; each run adds to it.
    save_steps : int
        Number of steps between two writes.
    metrics : dict from str to MetricSpec, optional
        As for `Estimator.evaluate`. The default is those of the run's validation.

    Raises
    ------
    ImportError
        If the extra `tensorboard` is not installed.

    Examples
    --------
    >>> import minicnn as mc
    >>> accuracy = mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")
    >>> hook = mc.summaries.SummarySaverHook("runs/1", 100, metrics={"accuracy": accuracy})
    """

    def __init__(
        self,
        output_dir: str | Path,
        save_steps: int = 100,
        metrics: Mapping[str, MetricSpec] | None = None,
    ) -> None:
        self.output_dir = checks.path(output_dir, "output_dir")
        self.timer = Timer(every_steps=checks.integer(save_steps, "save_steps"))
        self.metrics = None if metrics is None else checked_metrics(metrics)
        self._metrics: Mapping[str, MetricSpec] = {}  # of this run
        self._writers: dict[str, Any] = {}  # by run of TensorBoard
        self._purge: int | None = None  # the step from which points of earlier runs are hidden
        self._is_ended = False
        for package in ("tensorboardX", "tensorboard", "PIL"):  # tensorboardX draws with Pillow
            require(package, "tensorboard")

    def begin(self) -> None:
        self._close()  # after an error in the run before
        self._is_ended = False
        self.timer.reset()

    def resume(self, run_context: SessionRunContext, name: str, state: dict[str, Any]) -> None:
        session = run_context.session
        first = session.global_step + 1
        self._purge = first if any(self.output_dir.glob("*/*tfevents*")) else None
        if self._purge == 1:
            logger.warning(
                "%s already has events, and this run begins with step 1. TensorBoard shows only "
                "the new ones; if this is not the same training, stop and use another output_dir.",
                self.output_dir,
            )
        monitors = [hook for hook in session.hooks.values() if isinstance(hook, ValidationMonitor)]
        of_validation = checked_metrics(monitors[0].data["metrics"]) if monitors else {}
        self._metrics = of_validation if self.metrics is None else self.metrics

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        session = run_context.session
        if not self.timer.due(session.global_step + 1):
            return None
        fetches: dict[str, Any] = {"scalars": {tag: tag for tag in ("loss", "learning_rate")}}
        if self._metrics:
            keys = {spec.prediction_key for spec in self._metrics.values()}
            fetches["predictions"] = {
                key: tensor
                for key, tensor in session.trace.ops.predictions.items()
                # All, if there is an unknown key: the error lists them.
                if keys & {key, None} or keys - session.trace.ops.predictions.keys()
            }
            fetches["fed"] = {k: t for k, t in session.graph.tensors.items() if t.op is None}
        return SessionRunArgs(fetches)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if run_values.results is None:
            return
        session = run_context.session
        step = session.global_step
        is_first = "train" not in self._writers
        writer = self._writer("train")
        if is_first:  # the method takes any Graph
            writer.file_writer.add_onnx_graph(graph_def(session.graph))
        for tag, value in self._scalars(session, run_values.results).items():
            writer.add_scalar(tag, value, step)
        for name, parameter in session.parameters.items():
            if np.isfinite(parameter.value).all():  # otherwise there is no range for the bins
                writer.add_histogram(name, parameter.value, step, bins=64)
        self._add_filters(writer, session)

    def evaluated(self, session: Any, name: str, results: Mapping[str, Any]) -> None:
        writer = self._writer(re.sub(r"^\.|[^\w. -]", "_", name))
        for tag, value in numbers(results).items():
            writer.add_scalar(tag, value, session.global_step)
        if self._is_ended:
            self._close()

    def end(self, session: Any) -> None:
        self._is_ended = True
        self._close()
        self._purge = None  # a monitor that ends later may add a last point

    def _writer(self, run: str) -> Any:
        """Return the writer of a run of TensorBoard, which adds a file."""
        if run not in self._writers:
            self._writers[run] = require("tensorboardX", "tensorboard").SummaryWriter(
                str(self.output_dir / run), purge_step=self._purge, flush_secs=_FLUSH,
                filename_suffix=f".{time.time_ns()}",
            )
        return self._writers[run]

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _scalars(self, session: Any, fetched: dict[str, Any]) -> dict[str, float]:
        """Return the scalars of a step by tag, and restart the timer."""
        scalars = dict(fetched["scalars"])
        for name, spec in self._metrics.items():
            fed = fetched["fed"]
            scalars[name] = spec.compute(fetched["predictions"], fed.get("labels", fed), fed)
        if (rate := self.timer.rate(session.global_step)) is not None:
            scalars["global_step/sec"] = rate
        norms = {
            f"gradient_norm/{name}": math.sqrt(sum_of_squares(parameter.grad))
            for name, parameter in session.parameters.items()
        }
        return {**scalars, **norms, "gradient_norm/all": math.hypot(*norms.values())}

    def _add_filters(self, writer: Any, session: Any) -> None:
        """Write the filters of the first convolution as an image, if they have 1 or 3 channels."""
        ops = (tensor.op for tensor in session.graph.tensors.values())
        first = next((op for op in ops if isinstance(op, Conv2D)), None)
        if first is None or first.kernel.shape[2] not in (1, 3):
            return
        grid = np.nan_to_num(filter_grid(first.kernel.value), nan=1.0)
        pixels = np.rint(255 * grid).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        writer.add_image(f"filters/{first.label}", pixels, session.global_step, dataformats="HWC")


def graph_def(graph: Graph) -> Any:
    """Convert a graph to TensorFlow's GraphDef, which TensorBoard draws.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    tensorboard.compat.proto.graph_pb2.GraphDef
        A node for each tensor, whose op is the name of its class, and one for each parameter.

    Examples
    --------
    >>> import numpy as np, minicnn as mc
    >>> graph = mc.Graph()
    >>> y = mc.layers.dense(graph.placeholder("x", (None, 4), np.float32), units=3)
    >>> [node.name for node in mc.summaries.graph_def(graph).node]
    ['x', 'dense/kernel', 'dense/bias', 'dense']
    """
    checks.instance(graph, Graph, "graph")
    result = require("tensorboard.compat.proto.graph_pb2", "tensorboard").GraphDef()
    for tensor in graph.tensors.values():
        parameters = tensor.op.parameters if tensor.op else ()
        for parameter in parameters:
            _add_node(result, "VariableV2", parameter)
        kind = type(tensor.op).__name__ if tensor.op else "Placeholder"
        sources: tuple[Any, ...] = (*tensor.inputs, *parameters)
        _add_node(result, kind, tensor, [source.name for source in sources])
    return result


def _add_node(graph: Any, kind: str, value: Tensor | Parameter, inputs: Any = ()) -> None:
    """Add a node with the dtype and the shape of its value."""
    types = require("tensorboard.compat.proto.types_pb2", "tensorboard")
    node = graph.node.add(name=value.name, op=kind, input=inputs)
    word = {"float32": "float", "float64": "double"}.get(value.dtype.name, value.dtype.name)
    node.attr["dtype"].type = getattr(types, f"DT_{word.upper()}", types.DT_INVALID)
    shape = node.attr["_output_shapes"].list.shape.add()
    for size in value.shape:
        shape.dim.add(size=-1 if size is None else size)
