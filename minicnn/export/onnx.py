"""Models as ONNX files, which ONNX Runtime and others run without minicnn (extra `onnx`).

A file takes and gives what the model does: images are (N, H, W, C), unless its layers are
channels_first, and N is left free. ONNX's convolution and pooling want (N, C, H, W), so a Transpose
stands where images enter a chain of them, and one where they leave it.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from minicnn import layers, ops
from minicnn.core import VERSION, checks
from minicnn.core.checks import describe, unique
from minicnn.core.extras import require
from minicnn.core.files import replacing
from minicnn.core.op import Op, Shape, Tensor, parts
from minicnn.estimator import Estimator, ModeKeys
from minicnn.estimator.feeding import feed
from minicnn.estimator.graph import Graph
from minicnn.kernels.window import Window

_OPSET, _IR_VERSION = 17, 8  # of 2022; newer ones would only shut out older programs


def to_onnx(
    model: Any,
    path: str | Path,
    x: Any = None,
    softmax: bool = False,
    checkpoint_path: str | Path | None = None,
) -> None:
    """Write what a model computes in prediction as an ONNX file.

    Of a layer or a Sequential the file has the input ``inputs`` and the output ``outputs``. Of an
    Estimator it has the inputs of model_fn in mode INFER, ``features`` or the names of its
    features, and an output for each of the predictions, under its name. (An input whose name is
    also that of an output gets another: ``features_1``.)

    Parameters
    ----------
    model : Layer or Estimator
        Built; or an Estimator, whose newest checkpoint at the moment of the call is written.
    path : str or Path
    x : ndarray or dict of str to ndarray, optional
        For an Estimator, and only for one: rows as for `predict`, to tell their shape and type;
        one is enough.
    softmax : bool
        Whether to put a softmax behind a model that ends in logits. An Estimator's predictions
        have their own.
    checkpoint_path : str or Path, optional
        For an Estimator, and only for one: the file of another checkpoint.

    Raises
    ------
    ValueError, TypeError
        If the model is not built, is larger than 2 GiB, or holds what cannot be exported; the
        error names it.

    Notes
    -----
    A float64 model becomes a float64 file. That is valid ONNX, but ONNX Runtime has no float64
    convolution: for it, build the model as float32 and load the weights.

    Examples
    --------
    >>> import tempfile, pathlib, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Conv2D(8, 3, activation="relu"),
    ...                        mc.layers.Flatten(), mc.layers.Dense(10)])
    >>> model.build((None, 28, 28, 1), rng=0)
    (None, 10)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.onnx"
    >>> mc.export.to_onnx(model, path, softmax=True)
    """
    path, softmax = checks.path(path, "path"), checks.boolean(softmax, "softmax")
    onnx = require("onnx", "onnx")
    trace = _trace_estimator if isinstance(model, Estimator) else _trace_layer
    graph, outputs = trace(model, x, softmax, checkpoint_path)
    size = sum(parameter.value.nbytes for parameter in graph.parameters.values())
    if size > onnx.checker.MAXIMUM_PROTOBUF - 2**20:  # all else needs less
        raise ValueError(
            f"`model` has {size:,} bytes of weights, but one ONNX file holds at most 2 GiB; write "
            "them with save_safetensors or save_weights"
        )
    file = _File(onnx, outputs)
    inputs = [tensor for tensor in graph.tensors.values() if tensor.op is None]
    values = {tensor: _Value(file.unique(tensor.name)) for tensor in inputs}
    for op, sources, tensor, *_ in graph.plan(outputs.values(), fuse=False).steps:
        values[tensor] = file.add(op, values[sources[0]], tensor.shape)
    for name, tensor in outputs.items():
        node = onnx.helper.make_node("Identity", [file.plain(values[tensor])], [name], name)
        file.nodes.append(node)
    contents = onnx.helper.make_model(
        onnx.helper.make_graph(
            file.nodes,
            "minicnn",
            [file.info(values[tensor].name, tensor) for tensor in inputs],
            [file.info(name, tensor) for name, tensor in outputs.items()],
            file.constants,
        ),
        producer_name="minicnn",
        producer_version=VERSION,
        ir_version=_IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
    )
    onnx.checker.check_model(contents, full_check=True)
    with replacing(path) as target:
        target.write(contents.SerializeToString())


def _trace_estimator(
    model: Any, x: Any, softmax: bool, checkpoint_path: Any
) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph of a model_fn in mode INFER, and its predictions."""
    if softmax:
        raise ValueError(
            "`softmax` is for layers; an Estimator's model_fn gives mc.softmax(logits) itself"
        )
    if x is None:
        raise ValueError("`x` is missing; an Estimator needs rows as for predict, such as x[:1]")
    batch = feed(x, None, None, None).peek()[0], None
    trace = model._model(checkpoint_path).trace(ModeKeys.INFER, batch)
    return trace.graph, trace.ops.predictions


def _trace_layer(
    model: Any, x: Any, softmax: bool, checkpoint_path: Any
) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph of a layer or a Sequential, and its output."""
    if x is not None:
        raise ValueError(
            f"`x` is for an Estimator, got {describe(x)}; a layer knows what it was built for"
        )
    if checkpoint_path is not None:
        raise ValueError(
            f"`checkpoint_path` is for an Estimator, got {describe(checkpoint_path)}; load weights "
            "into a layer with load_weights"
        )
    if getattr(model, "input_shape", None) is None:
        raise ValueError(
            f"`model` must be a layer that is built, or an Estimator, got {describe(model)}; call "
            "build(input_shape, rng) first"
        )
    for part in parts(model):  # in a graph there will be its layers alone
        if isinstance(part, layers.Sequential) and type(part).forward != layers.Sequential.forward:
            raise ValueError(_refusal(part))
    graph = Graph()
    name = checks.unique("inputs", [part.label for part in parts(model)])  # of no layer
    inputs = graph.placeholder(name, model.input_shape, model.dtype)
    outputs = copy.deepcopy(model)(inputs)  # a copy, for a graph names what it takes in
    inputs.name = "inputs"
    return graph, {"outputs": ops.softmax(outputs) if softmax else outputs}


class _Value(NamedTuple):
    """A value in the file; `moved` where it is (N, C, H, W) and minicnn has (N, H, W, C)."""

    name: str
    moved: bool = False


class _File:
    """The nodes and the constants of a file in the making; no name is there twice."""

    def __init__(self, onnx: ModuleType, taken: Iterable[str]) -> None:
        self.onnx, self._taken = onnx, set(taken)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def unique(self, name: str) -> str:
        """Return the name, or one like it, that nothing else has."""
        name = unique(name, self._taken)
        self._taken.add(name)
        return name

    def info(self, name: str, tensor: Tensor) -> Any:
        """Return the declaration of an input or output."""
        sizes = ["N" if size is None else size for size in tensor.shape]
        return self.onnx.helper.make_tensor_value_info(name, self.type(tensor.dtype), sizes)

    def type(self, dtype: Any) -> int:
        """Return ONNX's number of a type."""
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def node(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node; return the name of its output."""
        name = self.unique(name)
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, array: Any, name: str) -> str:
        """Add an array; return its name."""
        name = self.unique(name)
        self.constants.append(self.onnx.numpy_helper.from_array(np.asarray(array), name))
        return name

    def plain(self, x: _Value) -> str:
        """Return the name of a value as minicnn has it."""
        if not x.moved:
            return x.name
        return self.node("Transpose", [x.name], f"{x.name}/nhwc", perm=[0, 2, 3, 1])

    def moved(self, x: _Value) -> str:
        """Return the name of a value of images as (N, C, H, W)."""
        if x.moved:
            return x.name
        return self.node("Transpose", [x.name], f"{x.name}/nchw", perm=[0, 3, 1, 2])

    def add(self, op: Op | None, x: _Value, shape: Shape) -> _Value:
        """Add what an op computes from `x`, of `shape` in minicnn; without an op, `x` itself."""
        if op is None:
            return x
        if type(op) not in _EXPORTS:
            raise ValueError(_refusal(op))
        return _EXPORTS[type(op)](self, op, x, shape)


def _refusal(op: Op) -> str:
    known = ", ".join(sorted({kind.__name__ for kind in _EXPORTS}))
    return (
        f"{op.label}: {type(op).__name__} cannot be exported; what can be is Sequential, {known}, "
        "and no subclass that computes something else"
    )


def _conv2d(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    # (KH, KW, C, F) -> (F, C, KH, KW)
    weights = [file.constant(layer.kernel.value.transpose(3, 2, 0, 1), layer.kernel.name)]
    if layer.bias is not None:
        weights.append(file.constant(layer.bias.value, layer.bias.name))
    return file.add(layer.activation, _slide(file, "Conv", layer, x, weights), shape)


def _max_pooling2d(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    return _slide(file, "MaxPool", layer, x)


def _slide(file: _File, kind: str, layer: Any, x: _Value, weights: Sequence[str] = ()) -> _Value:
    """Add a node whose window slides over (N, C, H, W)."""
    first = layer.data_format == "channels_first"
    images = file.plain(x) if first else file.moved(x)
    window = layer.window
    y = file.node(
        kind, [images, *weights], layer.label, kernel_shape=layer.size, strides=layer.strides,
        dilations=(window.dilation_h, window.dilation_w), pads=_pads(window),
    )
    return _Value(y, moved=not first)


def _pads(w: Window) -> list[int]:
    """Return the rows and columns of padding above, left, below, right."""
    rows = (w.out_h - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1 - w.height
    columns = (w.out_w - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w + 1 - w.width
    return [w.top, w.left, max(0, rows - w.top), max(0, columns - w.left)]


def _dense(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    kernel = file.constant(layer.kernel.value, layer.kernel.name)
    y = file.node("MatMul", [file.plain(x), kernel], layer.label)
    if layer.bias is not None:
        bias = file.constant(layer.bias.value, layer.bias.name)
        y = file.node("Add", [y, bias], layer.label)
    return file.add(layer.activation, _Value(y), shape)


def _dropout(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    if layer.training and layer.rate:
        raise ValueError(
            f"{layer.label}: it drops in prediction too, which cannot be exported; its `training` "
            "must be None or False there (mode == mc.ModeKeys.TRAIN)"
        )
    return x


def _identity(file: _File, op: Op, x: _Value, shape: Shape) -> _Value:
    return x


def _activation(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    return file.add(layer.op, x, shape)


def _elementwise(file: _File, op: Op, x: _Value, shape: Shape) -> _Value:
    return x._replace(name=file.node(type(op).__name__, [x.name], op.label))


def _softmax(file: _File, op: Any, x: _Value, shape: Shape) -> _Value:
    return _Value(file.node("Softmax", [file.plain(x)], op.label, axis=op.axis))


def _reshape(file: _File, op: Op, x: _Value, shape: Shape) -> _Value:
    row = file.constant(np.array([0, *shape[1:]], np.int64), f"{op.label}/shape")  # 0: as it is
    return _Value(file.node("Reshape", [file.plain(x), row], op.label))


def _argmax(file: _File, op: Any, x: _Value, shape: Shape) -> _Value:
    return _Value(file.node("ArgMax", [file.plain(x)], op.label, axis=op.axis, keepdims=0))


def _one_hot(file: _File, op: Any, x: _Value, shape: Shape) -> _Value:
    # Not ONNX's OneHot, which counts negative indices from the end.
    index = file.node("Cast", [file.plain(x)], op.label, to=file.type(np.int64))
    axis = file.constant(np.array([op.axis]), f"{op.label}/axis")
    index = file.node("Unsqueeze", [index, axis], op.label)
    behind = len(shape) - 1 - op.axis % len(shape)  # axes behind the new one
    classes = np.arange(op.depth).reshape(-1, *[1] * behind)
    on = file.node("Equal", [index, file.constant(classes, f"{op.label}/classes")], op.label)
    values = [
        file.constant(np.array(value).astype(op.output_dtype), f"{op.label}/{name}")
        for name, value in (("on", op.on_value), ("off", op.off_value))
    ]
    return _Value(file.node("Where", [on, *values], op.label))


def _cast(file: _File, op: Op, x: _Value, shape: Shape) -> _Value:
    return x._replace(name=file.node("Cast", [x.name], op.label, to=file.type(op.output_dtype)))


_EXPORTS: dict[type[Op], Callable[[_File, Any, _Value, Shape], _Value]] = {
    layers.Conv2D: _conv2d,
    layers.MaxPooling2D: _max_pooling2d,
    layers.Dense: _dense,
    layers.Dropout: _dropout,
    layers.Flatten: _reshape,
    layers.Reshape: _reshape,
    layers.Activation: _activation,
    ops.Relu: _elementwise,  # of the same name in ONNX
    ops.Sigmoid: _elementwise,
    ops.Tanh: _elementwise,
    ops.Identity: _identity,
    ops.Softmax: _softmax,
    ops.Reshape: _reshape,
    ops.Argmax: _argmax,
    ops.OneHot: _one_hot,
    ops.Cast: _cast,
}
