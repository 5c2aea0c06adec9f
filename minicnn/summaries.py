"""Write training runs for TensorBoard, in the formats of tensorboardX (extra `tensorboard`)."""

import contextlib
import logging
import math
import os
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from minicnn.core import checks
from minicnn.core.extras import require
from minicnn.core.files import open_regular
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
)
from minicnn.layers import Conv2D
from minicnn.plots import filter_grid

logger = logging.getLogger("minicnn")

_MOST_EVENT = 1 << 24  # bytes: larger events are not read back


class SummarySaverHook(SessionRunHook):
    """Write summaries for TensorBoard at the first step and then every `save_steps` steps.

    * Scalars: ``loss``, ``learning_rate`` and the metrics of the step's batch (in training mode,
      with dropout), ``global_step/sec``, and the ``gradient_norm`` of each parameter and of all
      together, after clipping.
    * Histograms: each parameter, after the step.
    * Images: the filters of the first convolution, if it has 1 or 3 channels.
    * The graph, once per run.

    Each write is complete on disk at the end of its step; view it with ``tensorboard --logdir``. A
    run that continues in the same folder marks its first step, and warns if the folder already
    contains events of later steps. With several processes, use the hook in the chief only; loss and
    metrics are then those of its rows.

    Parameters
    ----------
    output_dir : str or Path
        Folder of the event files; each run adds one.
    save_steps : int
        Number of steps between two writes.
    metrics : dict from str to MetricSpec, optional
        As for `Estimator.evaluate`.

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
        self.metrics = checked_metrics(metrics)
        require("tensorboardX.summary", "tensorboard")
        require("PIL", "tensorboard")  # tensorboardX needs it for images

    def begin(self) -> None:
        self._summary = require("tensorboardX.summary", "tensorboard")  # a module: not pickled
        self.timer.reset()
        # TensorBoard searches for such names and reads a folder's files in their order.
        self._path = self.output_dir / f"events.out.tfevents.{time.time_ns()}.minicnn"

    def before_run(self, run_context: SessionRunContext) -> SessionRunArgs | None:
        session = run_context.session
        if not self.timer.due(session.global_step + 1):
            return None
        fetches: dict[str, Any] = {"scalars": {tag: tag for tag in ("loss", "learning_rate")}}
        if self.metrics:
            keys = {spec.prediction_key for spec in self.metrics.values()}
            fetches["predictions"] = {
                key: tensor
                for key, tensor in session.trace.ops.predictions.items()
                if keys & {key, None}
            }
            fetches["fed"] = {k: t for k, t in session.graph.tensors.items() if t.op is None}
        return SessionRunArgs(fetches)

    def after_run(self, run_context: SessionRunContext, run_values: SessionRunValues) -> None:
        if run_values.results is None:
            return
        session = run_context.session
        first = self.timer.last_step is None
        scalars = self._scalars(session, run_values.results)
        parts = [self._summary.scalar(tag, value) for tag, value in scalars.items()]
        for name, parameter in session.parameters.items():
            if np.isfinite(parameter.value).all():  # otherwise there is no range for the bins
                parts.append(self._summary.histogram(name, parameter.value, bins=64))
        parts += self._first_filters(session.graph)
        if first:
            self._begin_file(session)
        values = [value for part in parts for value in part.value]
        self._append(step=session.global_step, summary={"value": values})

    def _begin_file(self, session: Any) -> None:
        """Write the events that precede the first summary of a run."""
        step, last = session.global_step, _last_step(self.output_dir)
        if last >= step:
            logger.warning(
                "%s already has events up to step %d, and this run writes from step %d on. If they "
                "overlap, TensorBoard shows only the new ones; if this is not the same training, "
                "stop and use another output_dir.",
                self.output_dir, last, step,
            )
        self._append(file_version="brain.Event:2")
        self._append(graph_def=graph_def(session.graph).SerializeToString())
        if last or step > 1:
            self._append(step=step, session_log={"status": "START"})  # makes later events invalid

    def _scalars(self, session: Any, fetched: dict[str, Any]) -> dict[str, float]:
        """Return the scalars of a step by tag, and restart the timer."""
        scalars = dict(fetched["scalars"])
        for name, spec in self.metrics.items():
            fed = fetched["fed"]
            scalars[name] = spec.compute(fetched["predictions"], fed.get("labels", fed), fed)
        step, before, since = session.global_step, self.timer.last_step, self.timer.last_time
        self.timer.mark(step)
        if before is not None:
            scalars["global_step/sec"] = (step - before) / max(self.timer.last_time - since, 1e-9)
        norms = {
            f"gradient_norm/{name}": math.sqrt(sum_of_squares(parameter.grad))
            for name, parameter in session.parameters.items()
        }
        return {**scalars, **norms, "gradient_norm/all": math.hypot(*norms.values())}

    def _first_filters(self, graph: Graph) -> list[Any]:
        """Return a list with an image of the first convolution's filters, or an empty list."""
        ops = (tensor.op for tensor in graph.tensors.values())
        first = next((op for op in ops if isinstance(op, Conv2D)), None)
        if first is None or first.kernel.shape[2] not in (1, 3):
            return []
        grid = np.nan_to_num(filter_grid(first.kernel.value), nan=1.0)
        pixels = np.rint(255 * grid).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return [self._summary.image(f"filters/{first.label}", pixels, dataformats="HWC")]

    def _append(self, **fields: Any) -> None:
        """Append an event to the file as a TFRecord: length, its checksum, data, its checksum."""
        checksum = require("tensorboardX.record_writer", "tensorboard").masked_crc32c
        events = require("tensorboardX.proto.event_pb2", "tensorboard")
        data = events.Event(wall_time=time.time(), **fields).SerializeToString()
        length = struct.pack("<Q", len(data))
        head, tail = (struct.pack("<I", checksum(part)) for part in (length, data))
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with open_regular(self._path, "ab") as file:
            file.write(length + head + data + tail)


def _last_step(folder: Path) -> int:
    """Return the largest last step of the event files in a folder; 0 if there are none."""
    event = require("tensorboardX.proto.event_pb2", "tensorboard").Event
    steps = [0]
    for path in folder.glob("*tfevents*"):
        # Damaged bytes may raise anything; TensorBoard ignores them, too.
        with contextlib.suppress(Exception), open_regular(path, follow=True) as file:
            steps.append(event.FromString(_last_record(file)).step)
    return max(steps)


def _last_record(file: IO[bytes]) -> bytes:
    """Return the data of the last complete TFRecord of a file; empty if there is none."""
    size = file.seek(0, os.SEEK_END)
    start = end = length = 0  # of the last complete record
    while end + 16 <= size:
        file.seek(end)
        (declared,) = struct.unpack("<Q", file.read(8))
        if not declared or end + 16 + declared > size:  # an event has at least one byte
            break
        start, length = end, declared
        end += 16 + length
    file.seek(start + 12)
    return file.read(length if length <= _MOST_EVENT else 0)


def graph_def(graph: Graph) -> Any:
    """Convert a graph to TensorFlow's GraphDef, which TensorBoard draws.

    Parameters
    ----------
    graph : Graph

    Returns
    -------
    tensorboardX.proto.graph_pb2.GraphDef
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
    result = require("tensorboardX.proto.graph_pb2", "tensorboard").GraphDef()
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
    types = require("tensorboardX.proto.types_pb2", "tensorboard")
    node = graph.node.add(name=value.name, op=kind, input=inputs)
    word = {"float32": "float", "float64": "double"}.get(value.dtype.name, value.dtype.name)
    node.attr["dtype"].type = getattr(types, f"DT_{word.upper()}", types.DT_INVALID)
    shape = node.attr["_output_shapes"].list.shape.add()
    for size in value.shape:
        shape.dim.add(size=-1 if size is None else size)
