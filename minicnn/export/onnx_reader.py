"""Read ONNX files of other programs as a Sequential (extra `onnx`).

The nodes from the input to the output must be a chain, or residual blocks in one: two branches that
an Add joins. ONNX's images are (N, C, H, W). Where a Transpose before and after a part of the chain
shows that the program's own images are (N, H, W, C), as in files of `to_onnx` and tf2onnx, that
part becomes layers with data_format="channels_last", without the Transposes.
"""

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minicnn import layers, ops
from minicnn.core import checks
from minicnn.core.extras import require
from minicnn.core.files import open_regular
from minicnn.core.op import Op, Shape
from minicnn.layers.sliding import DataFormat
from minicnn.sequential import Sequential


def from_onnx(path: str | Path) -> Sequential:
    """Read a model from an ONNX file, to predict with it or to train it further.

    Files of `to_onnx`, of PyTorch (``torch.onnx.export``) and of tf2onnx can be read if their nodes
    are a chain of Conv (of all channels, or of each by itself), ConvTranspose, BatchNormalization,
    activations, poolings, Flatten, Reshape, Gemm, MatMul, Add of a bias, Dropout and Transpose, in
    which an Add may join the two branches of a residual block. Nothing in a file is executed.

    So all layers and activations that `to_onnx` writes are read back. What it also writes, but is
    refused here by name, are other ops of a model_fn: products, sums and products with a number,
    `concat`, `reduce_sum`, `reduce_mean`, `argmax`, `one_hot` and `cast`.

    Parameters
    ----------
    path : str or Path
        Weights in a second file are read if it is in the same folder. Of several outputs of the
        network, the first one that can be read is taken, if possible one that layers compute.

    Returns
    -------
    Sequential
        Built, with the weights of the file. Its inputs have the layout of the file's: images of
        PyTorch are (N, C, H, W). A layer whose weight is ``conv1.weight`` is called ``conv1``.

    Notes
    -----
    PyTorch computes batch normalization into the weights before it, unless the network is exported
    with ``dynamo=False, training=torch.onnx.TrainingMode.PRESERVE``. Then the names of the
    parameters are those of the module, and the `state_dict` of another run fits::

        kinds = {"kernel": "weight", "depthwise_kernel": "weight", "bias": "bias",
                 "gamma": "weight", "beta": "bias",
                 "moving_mean": "running_mean", "moving_variance": "running_var"}
        for parameter in model.parameters:
            layer, kind = parameter.name.split("/")[-2:]
            if kind in kinds:
                array = state_dict[f"{layer}.{kinds[kind]}"].numpy()
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
                parameter.value = array.reshape(parameter.shape)

    Raises
    ------
    ValueError
        If the file is damaged, or a node cannot be read; the error names it and its position.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import tempfile, pathlib, minicnn as mc
    >>> model = mc.Sequential([mc.layers.Conv2D(8, 3), mc.layers.Flatten(), mc.layers.Dense(10)])
    >>> model.build((None, 28, 28, 1), rng=0)
    (None, 10)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.onnx"
    >>> mc.export.to_onnx(model, path)
    >>> [layer.name for layer in mc.export.from_onnx(path).layers]
    ['conv2d', 'flatten', 'dense']
    """
    path = checks.path(path, "path")
    onnx = require("onnx", "onnx")
    open_regular(path, follow=True).close()  # raises Python's errors if it cannot be read
    try:
        file = _File(onnx, onnx.load(path))  # weights in a second file, of the same folder only
    except Exception as error:  # damaged bytes may raise anything
        raise ValueError(f"{path} is not an ONNX file of one input ({error})") from error
    ends = [file.values.get(name) for name in file.outputs]
    good = [end for end in ends if isinstance(end, _Value) and not end.order]
    if not good:
        fault = next(
            (end for end in ends if isinstance(end, Exception)),
            "its output must be computed from its input, with the axes in the same order",
        )
        raise ValueError(f"{path} cannot be read as a Sequential: {fault}")
    end = next((end for end in good if end.layers), good[0])
    model = Sequential(end.layers or [layers.Activation("identity")])
    model.build((None, *file.input_shape), None, file.dtype)
    return model


_NCHW = (0, 3, 1, 2)  # the order of images (N, H, W, C) that are transposed to (N, C, H, W)


class _Value(NamedTuple):
    """A value of the file: the layers that compute it from the input, and the shape they give."""

    layers: tuple[Any, ...]
    shape: Shape
    order: tuple[int, ...] = ()  # of the layers' axes in the file, if it is another one

    @property
    def data_format(self) -> DataFormat:
        _need(self.order in ((), _NCHW), f"its input has the axes in the order {self.order}; only "
              "BatchNormalization and activations may be between such Transposes")
        return DataFormat.LAST if self.order else DataFormat.FIRST

    @property
    def sizes(self) -> tuple[int, int, int]:
        """The height, the width and the channels of images."""
        _need(len(self.shape) == 4, f"its inputs must be images, got {self.shape}")
        return self.data_format.sizes(self.shape)


class _File:
    """What is known about the values of a file: constants, shapes, and layers or an error."""

    def __init__(self, onnx: Any, model: Any) -> None:
        del model.graph.value_info[:]  # the shapes that the file claims
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        self._names: set[str] = set()
        self._to_array = onnx.numpy_helper.to_array
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.is_own = model.producer_name == "minicnn"
        self.outputs = [value.name for value in graph.output]
        self.opset = max([each.version for each in model.opset_import if not each.domain] or [0])
        _need(self.opset >= 7, f"its opset must be at least 7, got {self.opset}")
        sources = [value for value in graph.input if value.name not in self.constants]
        _need(len(sources) == 1, f"it has the inputs {[source.name for source in sources]}")
        values = (*sources, *graph.value_info, *graph.output)
        self._shapes = {
            value.name: [size.dim_value or None for size in value.type.tensor_type.shape.dim]
            for value in values
        }
        name = sources[0].name
        self._batch = self._shapes[name][:1]
        self.input_shape = self.row(name)
        _need(None not in self.input_shape, "only the batch may vary in the input, got "
              f"{self.input_shape} for a row; export it for images of one size")
        self.dtype = onnx.helper.tensor_dtype_to_np_dtype(sources[0].type.tensor_type.elem_type)
        self.values: dict[str, Any] = {name: _Value((), (None, *self.input_shape))}
        for number, node in enumerate(graph.node, 1):
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            self._read(f"node {number}, {node.op_type} {node.name!r}", node, attributes)

    def _read(self, title: str, node: Any, attributes: dict[str, Any]) -> None:
        """Note what is known about the output of a node."""
        name = node.output[0]
        if node.op_type == "Constant":
            self.constants[name] = next(iter(attributes.values()), None)
        elif node.op_type == "Identity" and node.input[0] in self.constants:
            self.constants[name] = self.constants[node.input[0]]
        elif node.op_type == "Transpose" and node.input[0] in self.constants:
            self.constants[name] = self.array(node.input[0]).transpose(attributes.get("perm"))
        else:
            # Other inputs are weights, or a shape, which is inferred.
            sources = node.input if node.op_type == "Add" else node.input[:1]
            given = [self.values[source] for source in sources if source in self.values]
            kind = node.domain + node.op_type
            try:
                _need(kind in _READERS, f"it must be one of {', '.join(_READERS)}; replace it in "
                      "the original network (a Pad by the padding of the convolution, the Clip of "
                      "ReLU6 by Relu), or run the file with ONNX Runtime")
                _need(name not in {**self.values, **self.constants}, f"{name!r} is there already")
                _need(given, "its first input must be computed from the model's input")
                self.values[name] = _READERS[kind](self, node, attributes, *given)
            except Exception as error:  # from_onnx raises it if an output needs this value
                known = [value for value in given if isinstance(value, Exception)]
                fault = error if isinstance(error, ValueError | TypeError) else (
                    f"its inputs and attributes must be those of ONNX's {node.op_type} ({error!r})"
                )
                self.values[name] = known[0] if known else ValueError(f"{title}: {fault}")

    def row(self, name: str) -> tuple[int | None, ...]:
        """Return the shape of the rows of a value; None is an unknown size."""
        batch, *row = self._shapes.get(name) or (-1,)
        _need(batch != -1, "the shape of its output is not known without running the file")
        _need(batch in (None, *self._batch), f"its rows must stay those of the batch, got {batch}")
        return tuple(row)

    def array(self, name: str) -> np.ndarray:
        """Return the array of a constant."""
        _need(name in self.constants,
              f"its input {name!r} must be a constant in the file: export with constant folding")
        constant = self.constants[name]
        return self._to_array(constant) if hasattr(constant, "data_type") else np.asarray(constant)

    def then(self, x: _Value, layer: Op, **values: np.ndarray) -> _Value:
        """Return the output of a new layer, whose parameters get these values."""
        layer.name = checks.unique(layer.name or layer.kind, self._names)
        self._names.add(layer.name)
        shape = layer.build(x.shape, 0, self.dtype)
        for name, value in values.items():
            getattr(layer, name).value = value
        return _Value((*x.layers, layer), shape, x.order)


def _need(condition: Any, message: str) -> None:
    """Raise if a node is not as it must be."""
    if not condition:
        raise ValueError(message)


def _name(node: Any) -> str | None:
    """Return the name of the layer in the name of its weight: conv1 in conv1.weight."""
    found = re.fullmatch(r"(.+)[./](weight|\w*kernel|gamma)", node.input[1])
    return found[1] if found else None


def _bias(file: _File, node: Any) -> dict[str, np.ndarray]:
    """Return the third input of a node, if there is one."""
    names = [name for name in node.input[2:3] if name]
    return {"bias": file.array(names[0]).reshape(-1)} if names else {}


def _padding(node: Any, a: dict[str, Any], x: _Value, kernel: Any) -> Any:
    """Return the padding of a layer for a node with this size of the kernel."""
    is_turned = node.op_type == "ConvTranspose"
    strides = a.get("strides", (1, 1))
    auto = a.get("auto_pad", b"NOTSET")
    given = a.get("pads", (0, 0, 0, 0))
    _need(2 * len(kernel) == len(given) == 1 + len(x.sizes),
          f"its kernel {kernel} and its padding {given} must be those of images")
    if auto == b"SAME_UPPER" and not is_turned:
        return "same"
    _need(auto == b"NOTSET" or (auto == b"VALID" and not any(given)),
          f"its padding must be given by numbers or SAME_UPPER, got {a}")
    after = np.array(given[2:])
    if is_turned:  # the output ends where the last window ends, or the next one begins
        after += np.maximum(np.subtract(strides, kernel), 0) - a.get("output_padding", (0, 0))
    elif a.get("ceil_mode"):  # one more window that begins in the image
        after += np.subtract(strides, 1)
    pads = np.stack([given[:2], after], axis=1)
    return pads.tolist() if pads.any() else "valid"


def _conv(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    w = file.array(node.input[1])  # (F, C / groups, KH, KW), or (C, F, KH, KW) if transposed
    bias = _bias(file, node)
    *_, channels = x.sizes
    groups = a.get("group", 1)
    is_turned = node.op_type == "ConvTranspose"
    _need(w.ndim == 4 and w.shape[not is_turned] * groups == channels
          and (groups == 1 or (groups == channels and not is_turned)),
          f"its weights {w.shape} in {groups} groups must fit {channels} channels, in one group or "
          "a group for each; replace it in the original network, or run the file with ONNX Runtime")
    options = {
        "strides": a.get("strides", 1), "padding": _padding(node, a, x, w.shape[2:]),
        "data_format": x.data_format, "use_bias": bool(bias), "name": _name(node),
    }
    if is_turned:
        _need(max(a.get("dilations", (1,))) == 1 and "output_shape" not in a,
              f"it must have no dilations and no output_shape, got {a}")
        layer: Any = layers.Conv2DTranspose(w.shape[1], w.shape[2:], **options)
        return file.then(x, layer, kernel=w.transpose(2, 3, 1, 0), **bias)
    options["dilation_rate"] = a.get("dilations", 1)
    if groups == 1:
        layer = layers.Conv2D(len(w), w.shape[2:], **options)
        return file.then(x, layer, kernel=w.transpose(2, 3, 1, 0), **bias)
    kernel = w.reshape(channels, -1, *w.shape[2:]).transpose(2, 3, 0, 1)
    layer = layers.DepthwiseConv2D(w.shape[2:], depth_multiplier=kernel.shape[3], **options)
    return file.then(x, layer, depthwise_kernel=kernel, **bias)


def _pool(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    _need(max(a.get("dilations", (1,))) == 1, "its dilations must be 1")
    padding = _padding(node, a, x, a["kernel_shape"])
    is_padded = padding == "same" or any(a.get("pads", ()))
    _need(not (is_padded and a.get("count_include_pad")),
          "padding must not count in means: export with count_include_pad=False")
    kind = layers.MaxPooling2D if node.op_type == "MaxPool" else layers.AveragePooling2D
    return file.then(x, kind(a["kernel_shape"], a.get("strides", 1), padding, x.data_format))


def _global_pool(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    """Read a pooling of images: (N, C, 1, 1), or (N, C) as in minicnn, which comes to the same."""
    if node.op_type.startswith("Reduce"):
        axes = a["axes"] if "axes" in a else file.array(node.input[1])
        _need(sorted(axis % 4 for axis in axes) == [2, 3], f"its axes must be 2 and 3, got {axes}")
    is_max = node.op_type in ("GlobalMaxPool", "ReduceMax")
    kind = layers.GlobalMaxPooling2D if is_max else layers.GlobalAveragePooling2D
    return file.then(x, kind(x.data_format))._replace(order=())


def _batch_normalization(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    values = dict(zip(names, map(file.array, node.input[1:]), strict=True))
    axis = x.order[1] if x.order else 1
    _need(not a.get("training_mode") and values["gamma"].shape == x.shape[axis : axis + 1],
          "it must be in inference mode, with a scale for each channel")
    layer = layers.BatchNormalization(
        axis, a.get("momentum", 0.9), a.get("epsilon", 1e-5), name=_name(node)
    )
    return file.then(x, layer, **values)


def _dense(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    kernel = file.array(node.input[1])
    kernel = kernel.T if a.get("transB") else kernel
    is_plain = a.get("alpha", 1) == a.get("beta", 1) == 1 and not a.get("transA") and not x.order
    _need(is_plain and kernel.ndim == 2 and len(kernel) == x.shape[-1],
          f"it must be x * w + b, with x {x.shape}, got w {kernel.shape} and {a}")
    bias = _bias(file, node)
    layer = layers.Dense(kernel.shape[1], use_bias=bool(bias), name=_name(node))
    return file.then(x, layer, kernel=kernel, **bias)


def _add(file: _File, node: Any, a: dict[str, Any], *values: _Value) -> _Value:
    if len(values) == 2:
        return _residual(file, node, *sorted(values, key=lambda value: len(value.layers)))
    (x,) = values
    b = file.array(next((name for name in node.input if name in file.constants), ""))
    layer: Any = copy.copy(x.layers[-1]) if x.layers else None
    is_free = isinstance(layer, layers.Dense) and layer.bias is None and not x.order
    _need(is_free and b.shape[-1:] == (b.size,) == layer.kernel.shape[1:],
          "a constant must be the bias of the MatMul before it")
    layer.use_bias = True
    layer.bias = layer.add_parameter("bias", b.reshape(-1))
    return x._replace(layers=(*x.layers[:-1], layer))


def _residual(file: _File, node: Any, shortcut: _Value, block: _Value) -> _Value:
    _need(shortcut.order == block.order and file.row(node.input[0]) == file.row(node.input[1]),
          "it must join two branches of equal shapes, with their axes in one order")
    if shortcut == block:
        block = file.then(block, layers.Activation("identity"))
    pairs = zip(shortcut.layers, block.layers, strict=False)
    count = next((n for n, (a, b) in enumerate(pairs) if a is not b), len(shortcut.layers))
    start = _Value(block.layers[:count], block.layers[count].input_shape, block.order)
    return file.then(
        start, layers.Residual(block.layers[count:], shortcut.layers[count:] or None)
    )


def _transpose(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    axes = range(len(x.shape))
    order = tuple((x.order or axes)[axis] for axis in a.get("perm", axes[::-1]))
    _need(len(order) == len(axes) and order[0] == 0, f"it must leave the rows first, got {a}")
    return x._replace(order=() if order == tuple(axes) else order)


def _reshape(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    row = file.row(node.output[0])
    is_nhwc = x.data_format == DataFormat.LAST
    *_, height, width, channels = (1, 1, *(size or 1 for size in x.shape))
    moved = (height, width, 1) if is_nhwc else (1, height, width)
    if channels == 1 and row == moved and not file.is_own:
        return x._replace(order=() if is_nhwc else _NCHW)  # so tf2onnx may write a Transpose
    _need(not is_nhwc or 1 in (channels, height * width),
          "values (N, C, H, W) of a model for (N, H, W, C) must be transposed first")
    x = x._replace(order=())
    if row in (x.shape[1:], (*x.shape[1:], 1, 1)):
        return x
    known = [-1 if size is None else size for size in row]
    is_flat = row in ((None,), (math.prod(size or 1 for size in x.shape),))
    return file.then(x, layers.Flatten() if is_flat else layers.Reshape(known))


def _dropout(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    given = file.array(node.input[1]) if len(node.input) > 1 else 0.5
    return file.then(x, layers.Dropout(float(a.get("ratio", given))))


def _activation(file: _File, node: Any, a: dict[str, Any], x: _Value) -> _Value:
    options = {}
    if node.op_type == "LeakyRelu":
        options["alpha"] = a.get("alpha", 0.01)
    elif node.op_type == "Gelu":
        options["approximate"] = a.get("approximate") == b"tanh"
    elif node.op_type in ("Softmax", "LogSoftmax"):
        rank = 1 + len(file.row(node.input[0]))
        axis = a.get("axis", -1 if file.opset > 12 else 1) % rank
        order = x.order or range(len(x.shape))
        _need(axis == 1 or rank == len(order),  # (N, C, 1, 1) in the file may be (N, C) here
              f"it must be over the channels, got axis {axis}")
        _need(axis and (file.opset > 12 or axis == rank - 1),
              f"it must be over an axis of a row, until opset 12 the last, got {axis} of {rank}")
        options["axis"] = order[axis] - len(order)
    return file.then(x, layers.Activation(getattr(ops, node.op_type)(**options)))


_READERS: dict[str, Callable[..., _Value]] = {
    "Conv": _conv,
    "ConvTranspose": _conv,
    "BatchNormalization": _batch_normalization,
    "Relu": _activation,
    "Sigmoid": _activation,
    "Tanh": _activation,
    "LeakyRelu": _activation,
    "Gelu": _activation,
    "Softmax": _activation,
    "LogSoftmax": _activation,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalMaxPool": _global_pool,
    "GlobalAveragePool": _global_pool,
    "ReduceMax": _global_pool,
    "ReduceMean": _global_pool,
    "Flatten": _reshape,
    "Reshape": _reshape,
    "Squeeze": _reshape,
    "Gemm": _dense,
    "MatMul": _dense,
    "Add": _add,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Identity": lambda file, node, a, x: x,
}
