"""Export models as ONNX files, which run without minicnn, as in ONNX Runtime (extra `onnx`).

The inputs and outputs of a file have the same layout as those of the model: images are
(N, H, W, C), unless its layers are channels_first, and N may vary. ONNX's convolution and pooling
expect (N, C, H, W), so a chain of them has a Transpose before it and one after it.
"""

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn import layers, ops
from minicnn.core import VERSION, checks
from minicnn.core.extras import require
from minicnn.core.files import replacing
from minicnn.core.op import Op, Shape, Tensor, parts
from minicnn.estimator import Estimator, ModeKeys
from minicnn.estimator.feeding import feed
from minicnn.estimator.graph import Graph
from minicnn.kernels.window import Window

_OPSET, _OPSET_OF_GELU = 17, 20  # of 2022 and 2023; newer ones would only exclude older programs


def to_onnx(
    model: Any,
    path: str | Path,
    x: Any = None,
    softmax: bool = False,
    checkpoint_path: str | Path | None = None,
) -> None:
    """Write the prediction of a model as an ONNX file.

    The file of a layer or a Sequential has the input ``inputs`` and the output ``outputs``. The
    file of an Estimator has the inputs of model_fn in mode INFER, ``features`` or the names of the
    features, and an output for each prediction, under its name. (An input with the name of an
    output is renamed: ``features_1``.)

    Parameters
    ----------
    model : Layer or Estimator
        A built layer; or an Estimator, whose newest checkpoint at the time of the call is written.
    path : str or Path
    x : ndarray or dict of str to ndarray, optional
        Required for an Estimator, and only allowed there: rows as for `predict`, which define the
        shapes and dtypes of the inputs; one row is enough.
    softmax : bool
        Whether to add a softmax to a layer that returns logits. An Estimator's model_fn adds it
        itself.
    checkpoint_path : str or Path, optional
        For an Estimator only: the file of another checkpoint.

    Raises
    ------
    ValueError, TypeError
        If the model is not built, or contains an op that cannot be exported; the error names it.
        By ONNX, if the model is larger than 2 GiB.

    Notes
    -----
    The file has ONNX's opset 17, of 2022. If the model has a gelu, it has opset 20, of 2023, the
    first one with a node for it, which ONNX Runtime reads since version 1.17.

    A float64 model is exported as float64. This is valid ONNX, but ONNX Runtime has no float64
    convolution or gelu: build the model as float32 and load the weights to use it there.

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
    path = checks.path(path, "path")
    softmax = checks.boolean(softmax, "softmax")
    onnx = require("onnx", "onnx")
    trace = _trace_estimator if isinstance(model, Estimator) else _trace_layer
    graph, outputs = trace(model, x, softmax, checkpoint_path)
    steps = graph.plan(outputs.values(), fuse=False).steps
    has_gelu = any(isinstance(part, ops.Gelu) for op, *_ in steps for part in parts(op))
    file = _File(onnx, outputs, _OPSET_OF_GELU if has_gelu else _OPSET)
    inputs = [tensor for tensor in graph.tensors.values() if tensor.op is None]
    values = {tensor: _Value(file.unique(tensor.name)) for tensor in inputs}
    for op, sources, tensor, *_ in steps:
        x, *others = (values[source] for source in sources)
        values[tensor] = file.add(op, x, tensor.shape, *others)
    for name, tensor in outputs.items():
        node = onnx.helper.make_node("Identity", [file.name_of(values[tensor])], [name], name)
        file.nodes.append(node)
    contents = onnx.helper.make_model_gen_version(
        onnx.helper.make_graph(
            file.nodes,
            "minicnn",
            [file.info(values[tensor].name, tensor) for tensor in inputs],
            [file.info(name, tensor) for name, tensor in outputs.items()],
            file.constants,
        ),
        producer_name="minicnn",
        producer_version=VERSION,
        opset_imports=[onnx.helper.make_opsetid("", file.opset)],
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
            "`softmax` is for layers; return mc.softmax(logits) from the Estimator's model_fn"
        )
    if x is None:
        raise ValueError("`x` is missing; an Estimator needs rows as for predict, such as x[:1]")
    batch = feed(x, None, None, None).peek()[0], None
    trace = model._models.chosen(checkpoint_path).trace(ModeKeys.INFER, batch)
    return trace.graph, trace.ops.predictions


def _trace_layer(
    model: Any, x: Any, softmax: bool, checkpoint_path: Any
) -> tuple[Graph, dict[str, Tensor]]:
    """Return the graph of a layer or a Sequential, and its output."""
    for name, value in (("x", x), ("checkpoint_path", checkpoint_path)):
        if value is not None:
            raise ValueError(
                f"`{name}` is for an Estimator, got {checks.describe(value)}; leave it out for a "
                "layer, into which load_weights reads weights"
            )
    if getattr(model, "input_shape", None) is None:
        raise ValueError(
            "`model` must be a layer that is built, or an Estimator, got "
            f"{checks.describe(model)}; call build(input_shape, rng) first"
        )
    graph = Graph()
    name = checks.unique("inputs", [part.label for part in parts(model)])  # no layer's
    inputs = graph.placeholder(name, model.input_shape, model.dtype)
    outputs = copy.deepcopy(model)(inputs)  # a copy, because the graph names its layers
    inputs.name = "inputs"
    return graph, {"outputs": ops.softmax(outputs) if softmax else outputs}


class _Value(NamedTuple):
    """A value in the file; `is_nchw` if it is (N, C, H, W) instead of minicnn's (N, H, W, C)."""

    name: str
    is_nchw: bool = False


class _File:
    """Collects the nodes and constants of a file, with unique names."""

    def __init__(self, onnx: Any, taken: Iterable[str], opset: int) -> None:
        self.onnx = onnx
        self.opset = opset
        self._taken = set(taken)
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def unique(self, name: str) -> str:
        """Return an unused name: `name`, if possible."""
        name = checks.unique(name, self._taken)
        self._taken.add(name)
        return name

    def info(self, name: str, tensor: Tensor) -> Any:
        """Return the declaration of an input or output."""
        sizes = ["N" if size is None else size for size in tensor.shape]
        return self.onnx.helper.make_tensor_value_info(name, self.type(tensor.dtype), sizes)

    def type(self, dtype: Any) -> int:
        """Return ONNX's number of a dtype."""
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

    def name_of(self, x: _Value, is_nchw: bool = False) -> str:
        """Return the name of a value in minicnn's layout or in (N, C, H, W)."""
        if x.is_nchw == is_nchw:
            return x.name
        layout, perm = ("nchw", [0, 3, 1, 2]) if is_nchw else ("nhwc", [0, 2, 3, 1])
        return self.node("Transpose", [x.name], f"{x.name}/{layout}", perm=perm)

    def add(self, op: Op | None, x: _Value, shape: Shape, *others: _Value) -> _Value:
        """Add the output of an op for its inputs, of `shape` in minicnn; for None return `x`."""
        if op is None:
            return x
        if type(op) not in _EXPORTS:
            known = ", ".join(sorted({kind.__name__ for kind in _EXPORTS}))
            raise ValueError(
                f"{op.label}: {type(op).__name__} cannot be exported; use Sequential, Residual, "
                f"{known}, but no subclasses that compute something else"
            )
        return _EXPORTS[type(op)](self, op, x, shape, *others)


def _conv2d(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    weights = _weights(file, layer.kernel, layer.bias)
    attributes: dict[str, Any] = {"dilations": layer.dilation_rate}
    kind = "Conv"
    if isinstance(layer, layers.Conv2DTranspose):
        kind = "ConvTranspose"
        more = [max(0, s - k) for s, k in zip(layer.strides, layer.size, strict=True)]
        attributes["output_padding"] = more
    return file.add(layer.activation, _slide(file, kind, layer, x, weights, **attributes), shape)


def _depthwise_conv2d(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    pointwise = getattr(layer, "pointwise_kernel", None)
    bias = layer.bias if pointwise is None else None
    weights = _weights(file, layer.depthwise_kernel, bias, each_channel=True)
    group = layer.depthwise_kernel.shape[2]
    y = _slide(file, "Conv", layer, x, weights, dilations=layer.dilation_rate, group=group)
    if pointwise is not None:
        weights = _weights(file, pointwise, layer.bias)
        y = y._replace(name=file.node("Conv", [y.name, *weights], layer.label))
    return file.add(layer.activation, y, shape)


def _weights(file: _File, kernel: Any, bias: Any, each_channel: bool = False) -> list[str]:
    """Add a kernel (KH, KW, C, F) as (F, C, KH, KW), or as (C F, 1, KH, KW), and a bias."""
    value = kernel.value
    if each_channel:
        value = value.reshape(*value.shape[:2], 1, -1)
    weights = [file.constant(value.transpose(3, 2, 0, 1), kernel.name)]
    return weights if bias is None else [*weights, file.constant(bias.value, bias.name)]


def _pooling2d(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    kind = "MaxPool" if isinstance(layer, layers.MaxPooling2D) else "AveragePool"
    if not layer.is_global:
        return _slide(file, kind, layer, x)
    images = file.name_of(x, layer.data_format == "channels_last")
    return _reshape(file, layer, _Value(file.node(f"Global{kind}", [images], layer.label)), shape)


def _slide(
    file: _File, kind: str, layer: Any, x: _Value, weights: Sequence[str] = (), **attributes: Any
) -> _Value:
    """Add a node with a sliding window."""
    is_nchw = layer.data_format == "channels_last"
    images = file.name_of(x, is_nchw)
    y = file.node(
        kind, [images, *weights], layer.label, kernel_shape=layer.size, strides=layer.strides,
        pads=_pads(layer), **attributes,
    )
    return _Value(y, is_nchw)


def _batch_normalization(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    if layer.training:
        raise ValueError(
            f"{layer.label}: the statistics of a batch in prediction cannot be exported; "
            "`training` must be None or False there (mode == mc.ModeKeys.TRAIN)"
        )
    ones = np.ones_like(layer.moving_mean.value)
    lost = layer.epsilon - float(np.float32(layer.epsilon))  # ONNX's epsilon is float32
    weights = [
        file.constant(array, f"{layer.label}/{name}")
        for name, array in (
            ("gamma", ones if layer.gamma is None else layer.gamma.value),
            ("beta", 0 * ones if layer.beta is None else layer.beta.value),
            ("moving_mean", layer.moving_mean.value),
            ("moving_variance", layer.moving_variance.value + lost * ones),
        )
    ]
    axis = layer.axis % len(shape)
    is_nchw = axis == 3 and len(shape) == 4
    y = file.name_of(x, is_nchw)
    order = [0, axis, *(i for i in range(1, len(shape)) if i != axis)]  # channels are to be axis 1
    is_moved = axis > 1 and not is_nchw
    if is_moved:
        y = file.node("Transpose", [y], layer.label, perm=order)
    y = file.node("BatchNormalization", [y, *weights], layer.label, epsilon=layer.epsilon)
    if is_moved:
        y = file.node("Transpose", [y], layer.label, perm=np.argsort(order).tolist())
    return _Value(y, is_nchw)


def _pads(layer: Any) -> list[int]:
    """Return the padding: rows above, columns left, rows below, columns right."""
    if not isinstance(layer.padding, str):
        (top, bottom), (left, right) = layer.padding
        return [top, left, bottom, right]
    w: Window = layer.window
    rows = (w.out_h - 1) * w.stride_h + (w.kernel_h - 1) * w.dilation_h + 1 - w.height
    columns = (w.out_w - 1) * w.stride_w + (w.kernel_w - 1) * w.dilation_w + 1 - w.width
    return [w.top, w.left, max(0, rows - w.top), max(0, columns - w.left)]


def _dense(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    kernel = file.constant(layer.kernel.value, layer.kernel.name)
    y = file.node("MatMul", [file.name_of(x), kernel], layer.label)
    if layer.bias is not None:
        bias = file.constant(layer.bias.value, layer.bias.name)
        y = file.node("Add", [y, bias], layer.label)
    return file.add(layer.activation, _Value(y), shape)


def _dropout(file: _File, layer: Any, x: _Value, shape: Shape) -> _Value:
    if layer.training and layer.rate:
        raise ValueError(
            f"{layer.label}: dropout in prediction cannot be exported; `training` must be None or "
            "False there (mode == mc.ModeKeys.TRAIN)"
        )
    return x


def _elementwise(
    file: _File, op: Any, x: _Value, shape: Shape, *others: _Value, kind: str = "",
    **attributes: Any,
) -> _Value:
    """Add the node of an op that computes the same in both layouts."""
    inputs = [x, *others]
    is_nchw = all(value.is_nchw for value in inputs)
    names = [file.name_of(value, is_nchw) for value in inputs]
    return _Value(file.node(kind or type(op).__name__, names, op.label, **attributes), is_nchw)


def _along_axis(
    file: _File, op: Any, x: _Value, shape: Shape, *others: _Value, kind: str = "",
    **attributes: Any,
) -> _Value:
    """Add the node of an op with an `axis`, which is that of minicnn's layout."""
    names = [file.name_of(value) for value in (x, *others)]
    kind = kind or type(op).__name__
    return _Value(file.node(kind, names, op.label, axis=op.axis, **attributes))


def _reshape(file: _File, op: Op, x: _Value, shape: Shape) -> _Value:
    row = file.constant(np.array([0, *shape[1:]], np.int64), f"{op.label}/shape")  # 0: unchanged
    return _Value(file.node("Reshape", [file.name_of(x), row], op.label))


def _one_hot(file: _File, op: Any, x: _Value, shape: Shape) -> _Value:
    # Not ONNX's OneHot, in which negative indices count from the end.
    index = file.node("Cast", [file.name_of(x)], op.label, to=file.type(np.int64))
    axis = file.constant(np.array([op.axis]), f"{op.label}/axis")
    index = file.node("Unsqueeze", [index, axis], op.label)
    axes_after = len(shape) - 1 - op.axis % len(shape)  # the new axis
    classes = np.arange(op.depth).reshape(-1, *[1] * axes_after)
    on = file.node("Equal", [index, file.constant(classes, f"{op.label}/classes")], op.label)
    values = [
        file.constant(np.array(value).astype(op.output_dtype), f"{op.label}/{name}")
        for name, value in (("on", op.on_value), ("off", op.off_value))
    ]
    return _Value(file.node("Where", [on, *values], op.label))


def _cast(file: _File, op: Op, x: _Value, shape: Shape) -> _Value:
    return x._replace(name=file.node("Cast", [x.name], op.label, to=file.type(op.output_dtype)))


def _scale(file: _File, op: Any, x: _Value, shape: Shape) -> _Value:
    y = x.name
    for kind, number, neutral in (("Mul", op.factor, 1), ("Add", op.offset, 0)):
        if number != neutral:
            constant = file.constant(number, op.label)
            like_y = file.node("CastLike", [constant, y], op.label)
            y = file.node(kind, [y, like_y], op.label)
    return x._replace(name=y)


def _reduce(file: _File, op: Any, x: _Value, shape: Shape) -> _Value:
    inputs = [file.name_of(x)]
    attributes: dict[str, Any] = {"keepdims": int(op.keepdims)}
    if isinstance(op, ops.ReduceMean) and file.opset < 18:
        attributes["axes"] = op.axes  # an input since opset 18
    else:
        inputs.append(file.constant(np.array(op.axes, np.int64), f"{op.label}/axes"))
    return _Value(file.node(type(op).__name__, inputs, op.label, **attributes))


_EXPORTS: dict[type[Op], Callable[..., _Value]] = {
    layers.Conv2D: _conv2d,
    layers.Conv2DTranspose: _conv2d,
    layers.DepthwiseConv2D: _depthwise_conv2d,
    layers.SeparableConv2D: _depthwise_conv2d,
    layers.MaxPooling2D: _pooling2d,
    layers.AveragePooling2D: _pooling2d,
    layers.GlobalMaxPooling2D: _pooling2d,
    layers.GlobalAveragePooling2D: _pooling2d,
    layers.BatchNormalization: _batch_normalization,
    layers.Dense: _dense,
    layers.Dropout: _dropout,
    layers.Flatten: _reshape,
    layers.Reshape: _reshape,
    layers.Activation: lambda file, layer, x, shape: file.add(layer.activation, x, shape),
    ops.Relu: _elementwise,  # these have the same names in ONNX
    ops.Sigmoid: _elementwise,
    ops.Tanh: _elementwise,
    # The attribute is float32, also in a float64 file.
    ops.LeakyRelu: lambda file, op, *rest: _elementwise(file, op, *rest, alpha=op.alpha),
    ops.Gelu: lambda file, op, *rest: _elementwise(
        file, op, *rest, approximate="tanh" if op.approximate else "none"
    ),
    ops.Identity: lambda file, op, x, shape: x,
    ops.Softmax: _along_axis,
    ops.LogSoftmax: _along_axis,
    ops.Reshape: _reshape,
    ops.Argmax: functools.partial(_along_axis, kind="ArgMax", keepdims=0),
    ops.OneHot: _one_hot,
    ops.Cast: _cast,
    ops.Scale: _scale,
    ops.Add: _elementwise,
    ops.Multiply: functools.partial(_elementwise, kind="Mul"),
    ops.Concat: _along_axis,
    ops.ReduceSum: _reduce,
    ops.ReduceMean: _reduce,
}
