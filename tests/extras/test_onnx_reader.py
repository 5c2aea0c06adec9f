"""Tests of minicnn.export.onnx_reader: what is read predicts as ONNX Runtime does."""

import shutil
import textwrap
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from extras.test_onnx import as_in_a_file, assert_near, session
from hypothesis import given, settings
from hypothesis import strategies as st
from layers.passes import built, numbers
from layers.test_conformance import ACTIVATIONS, TABLE

import minicnn as mc
from minicnn.core.op import parts
from minicnn.export.onnx import _EXPORTS
from minicnn.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
    Reshape,
    Residual,
    SeparableConv2D,
)

onnx = pytest.importorskip("onnx", reason='pip install -e ".[onnx]"')
pytest.importorskip("onnxruntime", reason='pip install -e ".[test-all]"')

FILES = Path(__file__).parents[1] / "data" / "onnx"


def assert_read(path, output=None):
    """Check that the file and the model that is read from it predict the same; return the model."""
    model = mc.export.from_onnx(path)
    program = session(path)
    (given,) = program.get_inputs()
    rows = given.shape[0] if isinstance(given.shape[0], int) else 3
    x = numbers((rows, *given.shape[1:]))
    (y,) = program.run([output or program.get_outputs()[0].name], {given.name: x})
    assert_near(model.predict(x), y)
    return model


# Files of minicnn --------------------------------------------------------------------------------

LINKS = st.sampled_from([
    lambda: Conv2D(3, 2, padding="same"),
    lambda: Conv2D(2, (3, 2), strides=(1, 2), padding="same", activation="relu"),
    lambda: Conv2D(2, 2, padding="same", dilation_rate=(1, 2), use_bias=False),
    lambda: Conv2D(4, 3, strides=2, padding=1),
    lambda: Conv2DTranspose(2, 3, strides=(2, 1), padding="same"),
    lambda: Conv2DTranspose(2, (2, 3), strides=(3, 1), padding=((0, 1), (1, 0)), use_bias=False),
    lambda: MaxPooling2D(3, 2, padding=1),
    lambda: MaxPooling2D(2, padding="same"),
    lambda: MaxPooling2D((2, 1), 1, 'same'),
    lambda: AveragePooling2D(2, 1, padding="same"),
    lambda: BatchNormalization(),
    lambda: DepthwiseConv2D(2, padding="same", activation="tanh", depth_multiplier=2),
    lambda: Dense(3, activation="leaky_relu"),
    lambda: Dropout(0.5),
    lambda: Activation("sigmoid"),
    lambda: Activation("log_softmax"),
    lambda: Activation("gelu"),
    lambda: Activation(mc.ops.Softmax(axis=1)),
    lambda: BatchNormalization(axis=2),
    lambda: Residual([Conv2D(3, 3, padding="same")], shortcut=[Conv2D(3, 1), BatchNormalization()]),
    lambda: Residual([BatchNormalization(), Residual([Dense(4, activation="relu")], [Dense(4)])],
                     shortcut=Dense(4)),
    lambda: Residual([Activation("relu")]),
])
LAST = st.sampled_from([
    lambda: [], lambda: [Flatten(), Dense(4), Activation("softmax")],
    lambda: [GlobalAveragePooling2D(), Dense(2, use_bias=False)], lambda: [Reshape((1, -1))],
    lambda: [GlobalMaxPooling2D()],
])


@settings(max_examples=40)
@given(st.lists(LINKS, max_size=5), LAST)
def test_chains_of_layers(path, links, last):
    model, _ = built(lambda: mc.Sequential([Conv2D(2, 1), *(link() for link in links), *last()]),
                     (4, 6, 2))
    mc.export.to_onnx(model, path)
    read = assert_read(path)
    ours = {p.name: p.value for p in model.parameters if not p.name.endswith("/updates")}
    theirs = {p.name: p.value for p in read.parameters}
    assert ours.keys() <= theirs.keys()
    for name, value in ours.items():
        np.testing.assert_allclose(theirs[name], value, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx") / "model.onnx"


def channels_first():
    options = {"data_format": "channels_first"}
    return mc.Sequential([
        Conv2D(4, 3, padding="same", **options), BatchNormalization(axis=1),
        Activation("relu"), MaxPooling2D(2, **options), DepthwiseConv2D(2, **options), Flatten(),
        Dense(3),
    ])


def test_layers_with_channels_first(path):
    model, _ = built(channels_first, (2, 6, 8))
    mc.export.to_onnx(model, path)
    kinds = [getattr(layer, "data_format", None) for layer in assert_read(path).layers]
    assert kinds.count("channels_first") == 3


def test_a_separable_convolution_becomes_two_layers(path):
    layer, _ = built(lambda: SeparableConv2D(4, 2, padding="same"), (4, 6, 2))
    mc.export.to_onnx(layer, path)
    assert [part.kind for part in assert_read(path).layers] == ["depthwise_conv2d", "conv2d"]


# Ops of `to_onnx` that are refused, with the name of the first node that cannot be read. They are
# in the docstring of from_onnx. In a Sequential:
REFUSED = {
    mc.ops.Scale: (lambda: mc.ops.Scale(2.0, 1.0), "Mul 'scale_2'"),
    mc.ops.ReduceSum: (lambda: mc.ops.ReduceSum((1,), False), "ReduceSum 'reduce_sum'"),
    mc.ops.ReduceMean: (lambda: mc.ops.ReduceMean((1, 2), False), "ReduceMean 'reduce_mean'"),
    mc.ops.Argmax: (lambda: mc.ops.Argmax(-1), "ArgMax 'argmax'"),
    mc.ops.Cast: (lambda: mc.ops.Cast(np.int32), "Cast 'cast'"),
}
REFUSED_IN_A_MODEL_FN = {
    mc.ops.OneHot: (lambda x: mc.one_hot(mc.argmax(x, 1), 2), "ArgMax 'argmax'"),
    mc.ops.Multiply: (lambda x: x * x, "Mul 'multiply'"),
    mc.ops.Concat: (lambda x: mc.concat([x, x], 1), "Concat 'concat'"),
}


def nets(act, options, residual):
    """Return a net with an activation in each place, explicit padding and residual blocks."""
    padded = {"padding": ((1, 0), (0, 1)), **options}
    shortcut = Conv2D(4, 1, **options) if residual == "shortcut" else None
    block = [Conv2D(4 if shortcut else 3, 3, padding=1, **options), Activation(act())]
    return mc.Sequential([
        Conv2D(3, 2, activation=act(), **padded), MaxPooling2D(3, 1, padding=1, **options),
        AveragePooling2D(2, 1, ((0, 1), 0), **options), Residual(block, shortcut),
        Activation(act()), DepthwiseConv2D(2, activation=act(), **padded), Flatten(),
        Dense(4, act()),
        Residual([Dense(4, act())], None if residual == "itself" else [Dense(4)]), Dense(3),
    ])


FUNCTIONS = [
    *(pytest.param(lambda name=name: name, id=name) for name in ACTIVATIONS),
    pytest.param(lambda: mc.ops.Gelu(approximate=True), id="gelu tanh"),
    pytest.param(lambda: mc.ops.LeakyRelu(0.3), id="leaky_relu 0.3"),
]


def assert_round_trip(path, model, shape, dtype):
    """Check that the model that is read predicts the same, also with a softmax at the end."""
    x = numbers((3, *shape), dtype)
    expected = as_in_a_file(model).forward(x, mc.Context(save=False))
    for softmax in (False, True):
        mc.export.to_onnx(model, path, softmax=softmax)
        y = mc.export.from_onnx(path).predict(x)
        assert_near(y, mc.softmax(expected) if softmax else expected)


@pytest.mark.parametrize("make, shape", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_layer_is_read_back(path, make, shape):
    for dtype in (np.float32, np.float64):
        assert_round_trip(path, built(make, shape, dtype)[0], shape, dtype)


@pytest.mark.parametrize("residual", ["itself", "shortcut"])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("act", FUNCTIONS)
def test_nets_of_each_activation_are_read_back(path, act, data_format, residual):
    shape = (5, 6, 2) if data_format == "channels_last" else (2, 5, 6)
    model, _ = built(lambda: nets(act, {"data_format": data_format}, residual), shape)
    assert_round_trip(path, model, shape, np.float32)


@pytest.mark.parametrize("make, shape", [
    (lambda: [Dense(4), BatchNormalization(), Dense(2)], (3, 5)),
    (lambda: [BatchNormalization(3), Activation("tanh"), BatchNormalization(1)], (3, 4, 2, 5)),
    (lambda: [Conv2D(3, 2), Activation(mc.ops.LogSoftmax(axis=2)), Conv2D(2, 1)], (4, 5, 2)),
    (lambda: [Conv2D(3, 2, data_format="channels_first", activation=mc.ops.Softmax(1))], (2, 4, 5)),
    (lambda: [Conv2D(3, 2), BatchNormalization(2), mc.ops.Softmax(1), Flatten()], (4, 5, 2)),
    (lambda: [Reshape((1, 4, 6)), Conv2D(2, 2, data_format="channels_first"), Flatten(), Dense(3)],
     (4, 6, 1)),
    (lambda: [Reshape((4, 6, 1)), Conv2D(2, 2), Flatten(), Dense(3)], (1, 4, 6)),
    (lambda: [Dropout(0.5)], (4,)),
    (lambda: [Residual([Residual([Dropout(0.5)])], [Flatten()]), Dense(2)], (4,)),
])
def test_axes_shapes_and_layers_that_compute_nothing(path, make, shape):
    assert_round_trip(path, built(lambda: mc.Sequential(make()), shape)[0], shape, np.float32)


def test_every_op_that_is_written_is_read_back_or_refused():
    models = [row[1] for row in TABLE] + [lambda: nets(lambda: "gelu", {}, "itself")]
    read = {type(op) for make in models for op in parts(make())} | {mc.ops.Add}  # of Residual
    assert read & _EXPORTS.keys() == _EXPORTS.keys() - REFUSED.keys() - REFUSED_IN_A_MODEL_FN.keys()


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_other_ops_are_refused_by_name(path, kind):
    make, words = REFUSED[kind]
    model, _ = built(lambda: mc.Sequential([Activation("relu"), make()]), (4, 5, 3))
    mc.export.to_onnx(model, path)
    refused(path, words)


@pytest.mark.parametrize("kind", REFUSED_IN_A_MODEL_FN, ids=lambda kind: kind.__name__)
def test_other_ops_of_a_model_fn_are_refused_by_name(path, tmp_path, kind):
    function, words = REFUSED_IN_A_MODEL_FN[kind]

    def model_fn(features, labels, mode):
        loss = mc.reduce_mean(mc.layers.dense(features, 1))
        return mc.ModelFnOps(mode, {"y": function(features)}, loss,
                             mc.optimize_loss(loss, None, 0.0))

    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0, progress=False))
    x = numbers((2, 3))
    mc.export.to_onnx(estimator.fit(x, np.zeros(2), steps=1), path, x)
    refused(path, words)


def test_float64_and_one_layer(path):
    layer, _ = built(lambda: Dense(3), (4,), np.float64)
    mc.export.to_onnx(layer, path)
    x = numbers((2, 4), np.float64)
    np.testing.assert_allclose(mc.export.from_onnx(path).predict(x), layer(x), rtol=1e-12)


def model_fn(features, labels, mode):
    logits = mc.layers.dense(mc.layers.flatten(mc.layers.conv2d(features, 3, 3)), 3)
    predictions = {"pixels": mc.identity(features), "classes": mc.argmax(logits, 1),
                   "probabilities": mc.softmax(logits)}
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
    return mc.ModelFnOps(mode, predictions, loss, train_op)


def test_of_several_outputs_the_first_that_can_be_read(path, tmp_path):
    x = numbers((4, 6, 6, 1))
    estimator = mc.Estimator(model_fn, tmp_path / "model", config=mc.RunConfig(seed=0))
    estimator.fit(x, np.array([0, 1, 2, 0]), steps=1)
    mc.export.to_onnx(estimator, path, x)
    model = assert_read(path, output="probabilities")
    assert_near(model.predict(x), estimator.predict(x, as_iterable=False)["probabilities"])


# Files of PyTorch --------------------------------------------------------------------------------


@pytest.mark.parametrize("exporter", ["script", "fixed", "train", "dynamo"])
@pytest.mark.parametrize("network", ["plain", "residual", "strided"])
def test_files_of_pytorch(network, exporter):
    model = assert_read(FILES / f"{network}_{exporter}.onnx")
    assert model.input_shape == (None, 1, 14, 10)
    if network == "plain":
        assert [layer.name for layer in model.layers if layer.parameters][:3] == [
            "conv1", "conv2", "fc1",
        ]
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("Residual") == 2 * (network != "plain")
    assert ("BatchNormalization" in kinds) == (network != "plain" and exporter == "train")


@pytest.mark.parametrize("network", ["plain", "residual", "strided"])
def test_what_is_read_can_be_trained_on(network):
    model = mc.export.from_onnx(FILES / f"{network}_train.onnx")
    x, labels = numbers((8, 1, 14, 10)), np.arange(8) % 3
    optimizer = mc.optimizers.SGD(0.05)
    losses = []
    for _ in range(8):
        ctx = mc.Context(training=True, rng=np.random.default_rng(0))
        loss, dy = mc.losses.softmax_cross_entropy_with_grad(labels, model.forward(x, ctx))
        model.backward(dy, ctx)
        optimizer.step(model.parameters)
        losses.append(loss)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("network", ["residual", "strided"])
def test_the_documented_way_to_take_a_state_dict(network):
    """The initializers of such a file have the names and values of the module's state_dict."""
    path = FILES / f"{network}_train.onnx"
    model, x = mc.export.from_onnx(path), numbers((3, 1, 14, 10))
    expected = model.predict(x)
    for parameter in model.parameters:
        parameter.value = np.ones_like(parameter.value)
    assert np.abs(model.predict(x) - expected).max() > 0.1
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor)
              for tensor in onnx.load(path).graph.initializer}
    state_dict = {name: SimpleNamespace(numpy=lambda array=array: array)
                  for name, array in arrays.items()}
    notes = mc.export.from_onnx.__doc__.split("::\n")[1].split("Raises")[0]
    exec(textwrap.dedent(notes), {"model": model, "state_dict": state_dict})
    np.testing.assert_array_equal(model.predict(x), expected)


def test_batch_statistics_that_are_read_count_as_many_steps():
    """The first step of training must not replace them by those of its batch."""
    model = mc.export.from_onnx(FILES / "residual_train.onnx")
    norm = model.layers[1]
    before = norm.moving_mean.value.copy()
    model.forward(numbers((8, 1, 14, 10)), mc.Context(training=True, rng=np.random.default_rng(0)))
    step = norm.moving_mean.value - before
    assert norm.momentum == pytest.approx(0.9) and norm.epsilon == pytest.approx(1e-5)
    assert 0 < np.abs(step).max() < 0.2 * np.abs(before).max()


# Files of tf2onnx, rebuilt from the patterns that it writes --------------------------------------


def write(path, nodes, constants, shape, out, elements=1, opset=17):
    """Write a file of nodes (kind, inputs, attributes), each with one output; return its path."""
    out = out and ["N", *out]
    names = [f"v{number}" for number in range(len(nodes))]
    make = onnx.helper
    graph = make.make_graph(
        [make.make_node(kind, inputs, [name], f"n{name}", **attributes)
         for name, (kind, inputs, attributes) in zip(names, nodes, strict=True)],
        "tf2onnx", [make.make_tensor_value_info("x", elements, ["N", *shape])],
        [make.make_tensor_value_info(names[-1], elements, out)],
        [onnx.numpy_helper.from_array(np.asarray(array), name)
         for name, array in constants.items()],
    )
    opsets = [make.make_opsetid("", opset)]
    onnx.save(make.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


CONV = {"strides": [1, 1], "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "dilations": [1, 1]}
SAME = {"strides": [1, 1], "kernel_shape": [3, 3], "auto_pad": "SAME_UPPER"}
POOL = {"strides": [2, 2], "kernel_shape": [2, 2]}


def weights(*shape):
    return numbers(shape)


def test_images_with_a_transpose_on_both_sides(path):
    write(path, [
        ("Transpose", ["x"], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["v0", "w", "b"], CONV), ("Relu", ["v1"], {}),
        ("BatchNormalization", ["v2", "g", "b", "m", "s"], {"epsilon": 0.001}),
        ("MaxPool", ["v3"], POOL), ("Conv", ["v4", "w2"], {"group": 4, **CONV}),
        ("Transpose", ["v5"], {"perm": [0, 2, 3, 1]}), ("Reshape", ["v6", "row"], {}),
        ("MatMul", ["v7", "dense"], {}), ("Add", ["v8", "db"], {}),
        ("Softmax", ["v9"], {"axis": 1}),
    ], {
        "w": weights(4, 2, 3, 3), "b": weights(4), "g": weights(4), "m": weights(4),
        "s": np.abs(weights(4)) + 1, "w2": weights(4, 1, 3, 3),
        "row": np.array([-1, 48]), "dense": weights(48, 5), "db": weights(5),
    }, (8, 6, 2), (5,))
    model = assert_read(path)
    assert model.input_shape == (None, 8, 6, 2)
    assert all(getattr(layer, "data_format", "") != "channels_first" for layer in model.layers)
    assert model.layers[-2].bias is not None


def test_images_with_one_channel_are_transposed_by_a_reshape(path):
    write(path, [
        ("Reshape", ["x", "nchw"], {}), ("Conv", ["v0", "w"], SAME),
        ("AveragePool", ["v1"], {**POOL, "auto_pad": "SAME_UPPER"}),
        ("GlobalAveragePool", ["v2"], {}), ("Squeeze", ["v3", "axes"], {}),
        ("MatMul", ["v4", "dense"], {}),
    ], {
        "nchw": np.array([-1, 1, 7, 7]), "w": weights(4, 1, 3, 3), "axes": np.array([2, 3]),
        "dense": weights(4, 5),
    }, (7, 7, 1), (5,))
    assert [layer.kind for layer in assert_read(path).layers] == [
        "conv2d", "average_pooling2d", "global_average_pooling2d", "dense",
    ]
    write(path, [
        ("Transpose", ["x"], {"perm": [0, 3, 1, 2]}), ("Conv", ["v0", "w"], CONV),
        ("Reshape", ["v1", "nhwc"], {}), ("Reshape", ["v2", "row"], {}),
    ], {"w": weights(1, 2, 3, 3), "nhwc": np.array([-1, 7, 7, 1]), "row": np.array([-1, 49])},
        (7, 7, 2), (49,))
    assert [layer.kind for layer in assert_read(path).layers] == ["conv2d", "flatten"]


def test_gemm_in_its_forms(path):
    for transposed in (0, 1):
        w = weights(5, 4) if transposed else weights(4, 5)
        write(path, [("Gemm", ["x", "fc.weight", "b"], {"transB": transposed})],
              {"fc.weight": w, "b": weights(1, 5)}, (4,), (5,))
        assert assert_read(path).layers[0].name == "fc"


# Padding and sizes -------------------------------------------------------------------------------

PADDED = {
    "as ResNet": ("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, ((1, 1), (1, 1))),
    "on one side": ("Conv", {"strides": [2, 1], "pads": [0, 1, 1, 0]}, ((0, 1), (1, 0))),
    "beyond the window": ("Conv", {"pads": [3, 0, 0, 4]}, ((3, 0), (0, 4))),
    "dilated": ("Conv", {"pads": [2, 0, 2, 1], "dilations": [2, 1]}, ((2, 2), (0, 1))),
    "of no pixels": ("Conv", {"pads": [0, 0, 0, 0], "auto_pad": "NOTSET"}, "valid"),
    "by a name": ("Conv", {"auto_pad": "VALID"}, "valid"),
    "maximum": ("MaxPool", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, ((1, 1), (1, 1))),
    "maximum, ceil": ("MaxPool", {"strides": [2, 2], "ceil_mode": 1}, ((0, 1), (0, 1))),
    "maximum, padded and ceil": (
        "MaxPool", {"strides": [2, 1], "pads": [1, 1, 1, 1], "ceil_mode": 1}, ((1, 2), (1, 1))
    ),
    "mean": ("AveragePool", {"strides": [2, 2], "pads": [1, 0, 0, 1]}, ((1, 0), (0, 1))),
    "mean, ceil": ("AveragePool", {"strides": [2, 2], "ceil_mode": 1}, ((0, 1), (0, 1))),
    "transposed": ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, ((1, 1), (1, 1))),
    "transposed, larger output": (
        "ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        ((1, 0), (1, 0)),
    ),
    "transposed, stride above the window": (
        "ConvTranspose", {"strides": [4, 5], "pads": [0, 1, 0, 0]}, ((0, 1), (1, 2))
    ),
    "transposed, stride above the window, complete": (
        "ConvTranspose", {"strides": [4, 5], "output_padding": [1, 2]}, "valid"
    ),
}


@pytest.mark.parametrize("size", [(8, 8), (7, 6)])
@pytest.mark.parametrize("name", PADDED)
def test_padding_by_numbers_of_pixels(path, name, size):
    kind, attributes, padding = PADDED[name]
    inputs = ["x"] if kind.endswith("Pool") else ["x", "w", "b"]
    node = kind, inputs, {"kernel_shape": [3, 3], **attributes}
    write(path, [node], {"w": weights(3, 3, 3, 3), "b": weights(3)}, (3, *size), None)
    (layer,) = assert_read(path).layers
    assert layer.padding == padding
    again = path.with_name("again.onnx")
    mc.export.to_onnx(mc.Sequential([layer]), again)
    assert repr(assert_read(again).layers[0]) == repr(layer)


def test_a_network_with_the_newest_nodes(path):
    """Without the names of an empty bias, and with constants that are attributes."""
    write(path, [
        ("Constant", [], {"value_ints": [2, 3]}), ("Conv", ["x", "w", ""], CONV),
        ("Gelu", ["v1"], {}), ("Conv", ["v2", "w2"], CONV),
        ("Gelu", ["v3"], {"approximate": "tanh"}), ("ReduceMax", ["v4", "v0"], {"keepdims": 0}),
    ], {"w": weights(4, 2, 3, 3), "w2": weights(3, 4, 3, 3)}, (2, 5, 6), (3,), opset=20)
    model = assert_read(path)
    assert [layer.kind for layer in model.layers] == [
        "conv2d", "activation", "conv2d", "activation", "global_max_pooling2d",
    ]
    assert model.layers[0].bias is None


@pytest.mark.parametrize("opset, axis", [(11, 3), (17, 3), (17, -1), (17, None), (17, 1)])
def test_the_axis_of_softmax_is_the_files(path, opset, axis):
    """One that cannot be read is refused: no other axis is taken."""
    nodes = [("GlobalAveragePool", ["x"], {}),
             ("Softmax", ["v0"], {} if axis is None else {"axis": axis})]
    write(path, nodes, {}, (4, 5, 6), (4, 1, 1), opset=opset)
    if axis == 1:  # the channels, which are the last axis in minicnn
        np.testing.assert_allclose(mc.export.from_onnx(path).predict(x := numbers((2, 4, 5, 6))),
                                   session(path).run(None, {"x": x})[0][..., 0, 0], rtol=1e-5)
    else:
        refused(path, "node 2, Softmax", "it must be over the channels")


@pytest.mark.parametrize("opset, axis, is_read", [
    (17, 0, False), (17, 1, True), (17, 2, True), (17, -1, True), (11, 2, False), (11, 3, True),
])
@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("perms", [[], [[0, 3, 1, 2], [0, 2, 3, 1]], [[0, 2, 1, 3]] * 2])
def test_softmax_over_an_axis_of_images(path, opset, axis, is_read, kind, perms):
    """Also between two transpositions, where the axes of the layers have another order."""
    before, after = perms or ([0, 1, 2, 3], [0, 1, 2, 3])
    write(path, [
        ("Transpose", ["x"], {"perm": before}), (kind, ["v0"], {"axis": axis}),
        ("Transpose", ["v1"], {"perm": after}),
    ], {}, (4, 5, 6), (4, 5, 6), opset=opset)
    if is_read:
        assert_read(path)
    else:
        refused(path, f"node 2, {kind} 'nv1'", "it must be over an axis of a row")


def test_a_weight_that_the_file_transposes(path):
    """As PyTorch with do_constant_folding=False."""
    for perm in ({"perm": [1, 0]}, {}):
        write(path, [("Transpose", ["fc.weight"], perm), ("MatMul", ["x", "v0"], {})],
              {"fc.weight": weights(5, 4)}, (4,), (5,))
        assert assert_read(path).layers[0].kernel.shape == (4, 5)


# What cannot be read -----------------------------------------------------------------------------

IMAGE = {
    "w": weights(4, 2, 3, 3), "one": np.float32(1), "dense": weights(4, 5), "b": weights(4),
    "up": weights(2, 3, 3, 3), "all": np.array([1, -1]), "square": weights(8, 8),
    "eight": weights(8),
}
OF_CONV = ["x", "w"]


@pytest.mark.parametrize("nodes, words", [
    ([("Conv", OF_CONV, {}), ("Resize", ["v0", "", "one"], {})], "node 2, Resize 'nv1': it must"),
    ([("Conv", OF_CONV, {"pads": [1, 1, 1, -1]})], "node 1, Conv 'nv0': `padding` must be"),
    ([("Conv", OF_CONV, {"pads": [1, 1]})], r"its padding \[1, 1\] must be those of images"),
    ([("Conv", OF_CONV, {"auto_pad": "SAME_LOWER", "strides": [2, 2]})], "its padding must"),
    ([("Conv", OF_CONV, {"auto_pad": "VALID", "pads": [1, 1, 1, 1]})], "its padding must be given"),
    ([("MaxPool", ["x"], {**POOL, "pads": [1, 1, 1, 2]})], "must be smaller than `pool_size`"),
    ([("Conv", OF_CONV, {"group": 2})], r"weights \(4, 2, 3, 3\) in 2 groups must .* a group for"),
    ([("Conv", OF_CONV, {"group": 2})], "; replace it in the original network, or run the file"),
    ([("Clip", ["x"], {})], "node 1, Clip 'nv0': it must be one of .*the Clip of ReLU6 by Relu"),
    ([("Pad", ["x", "w"], {})], "a Pad by the padding of the convolution"),
    ([("ConvTranspose", ["x", "up"], {"group": 2})], "in 2 groups must fit 2 channels"),
    ([("ConvTranspose", ["x", "up"], {"dilations": [2, 2]})], "it must have no dilations"),
    ([("ConvTranspose", ["x", "up"], {"output_shape": [16, 16]})], "and no output_shape"),
    ([("ConvTranspose", ["x", "up"], {"auto_pad": "SAME_UPPER"})], "its padding must be given"),
    ([("ConvTranspose", ["x", "up"], {"output_padding": [0, 1], "strides": [2, 2]})],
     "`padding` must be at least 0, got -1"),
    ([("GlobalAveragePool", ["x"], {}), ("Conv", ["v0", "w"], {})],
     r"node 2, Conv 'nv1': its inputs must be images, got \(None, 2\)"),
    ([("Flatten", ["x"], {"axis": 2})], r"Flatten 'nv0': reshape: a row of shape \(2, 8, 8\) has"),
    ([("Reshape", ["x", "all"], {})], "its rows must stay those of the batch, got 1"),
    ([("NonZero", ["b"], {}), ("Reshape", ["x", "v0"], {})], "is not known without running"),
    ([("Identity", ["w"], {})], "its output must be computed from its input"),
    ([("Conv", ["x", "x"], {})], "node 1, Conv 'nv0': its input 'x' must be a constant"),
    ([("MaxPool", ["x"], {**POOL, "dilations": [2, 2]})], "its dilations must be 1"),
    ([("AveragePool", ["x"], {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1})],
     "padding must not count in means"),
    ([("ReduceMean", ["x"], {"axes": [1, 2]})], r"its axes must be 2 and 3, got \[1, 2\]"),
    ([("BatchNormalization", ["x", *"bbbb"], {})], "with a scale for each channel"),
    ([("Gemm", ["x", "dense"], {})], r"must be x \* w \+ b, with x \(None, 2, 8, 8\)"),
    ([("Flatten", ["x"], {}), ("Gemm", ["v0", "dense"], {"alpha": 2.0})],
     r"node 2, Gemm .* {'alpha': 2.0}"),
    ([("Conv", OF_CONV, {}), ("Add", ["v0", "one"], {})], "must be the bias of the MatMul before"),
    ([("Add", ["x", "one"], {})], "node 1, Add 'nv0': a constant must be the bias of the MatMul"),
    ([("Add", ["x", "nothing"], {})], "node 1, Add 'nv0': its input '' must be a constant"),
    ([("Conv", ["x"], {})], "node 1, Conv 'nv0': its inputs and attributes must be those of ONNX"),
    ([("MaxPool", ["x"], {})], "those of ONNX's MaxPool .*kernel_shape"),
    ([("Constant", [], {}), ("Conv", ["x", "v0"], {})], "node 2, Conv 'nv1': its weights"),
    ([("Transpose", ["x"], {"perm": [0, 1, 3, 2]}), ("Relu", ["v0"], {}), ("Add", ["x", "v1"], {})],
     "node 3, Add 'nv2': it must join two branches of equal shapes, with their axes in one order"),
    ([("GlobalAveragePool", ["x"], {}), ("Flatten", ["v0"], {}), ("Add", ["v0", "v1"], {})],
     "node 3, Add 'nv2': it must join two branches of equal shapes"),
    ([("MatMul", ["x", "square"], {}), ("Transpose", ["v0"], {"perm": [0, 1, 3, 2]}),
      ("Add", ["v1", "eight"], {})], "node 3, Add 'nv2': a constant must be the bias"),
    ([("Transpose", ["x"], {"perm": [0, 2, 3, 1]})], "with the axes in the same order"),
    ([("Transpose", ["x"], {"perm": [1, 0, 2, 3]})], "it must leave the rows first"),
    ([("Transpose", ["x"], {})], "it must leave the rows first"),
    ([("Transpose", ["x"], {"perm": [0, 1, 3, 2]}), ("Conv", ["v0", "w"], {})],
     r"node 2, Conv 'nv1': its input has the axes in the order \(0, 1, 3, 2\); only Batch"),
    ([("Transpose", ["x"], {"perm": [0, 1, 3, 2]}), ("Flatten", ["v0"], {})],
     r"node 2, Flatten 'nv1': its input has the axes in the order \(0, 1, 3, 2\); only Batch"),
    ([("Transpose", ["x"], {"perm": [0, 3, 1, 2]}), ("Flatten", ["v0"], {})], "transposed first"),
    ([("Transpose", ["x"], {"perm": [0, 3, 1, 2]})], "with the axes in the same order"),
    ([("Relu", ["one"], {})], "node 1, Relu 'nv0': its first input must be computed"),
    ([("Resize", ["x", "", "one"], {}), ("Relu", ["v0"], {})], "node 1, Resize 'nv0'"),
])
def test_nodes_that_cannot_be_read_are_named(path, nodes, words):
    write(path, nodes, IMAGE, (2, 8, 8), None)
    with pytest.raises(ValueError, match=words) as caught:
        mc.export.from_onnx(path)
    assert str(path) in str(caught.value)


def test_two_values_of_one_name(path):
    nodes = [("Relu", ["x"], {}), ("Tanh", ["v0"], {})]
    write(path, nodes, {"v1": weights(2, 3)}, (3,), (3,))
    refused(path, "node 2, Tanh 'nv1': 'v1' is there already")
    write(path, nodes, {}, (3,), (3,))
    model = onnx.load(path)
    model.graph.node[1].output[0] = model.graph.output[0].name = "v0"
    onnx.save(model, path)
    refused(path, "node 2, Tanh 'nv1': 'v0' is there already")


def test_nodes_in_a_circle(path):
    write(path, [("Relu", ["v1"], {}), ("Tanh", ["v0"], {})], {}, (3,), (3,))
    refused(path, "node 1, Relu 'nv0': its first input must be computed from the model's input")


def test_shapes_that_the_file_claims_are_not_believed(path):
    nodes = [("Reshape", ["x", "row"], {}), ("Tanh", ["v0"], {})]
    write(path, nodes, {"row": np.array([-1, 3, 4])}, (12,), None)
    model = onnx.load(path)
    claimed = onnx.helper.make_tensor_value_info("v0", 1, ["N", 4, 3])
    model.graph.value_info.append(claimed)
    onnx.save(model, path)
    assert mc.export.from_onnx(path).predict(numbers((2, 12))).shape == (2, 3, 4)


def test_several_inputs_and_old_opsets(path):
    write(path, [("Add", ["x", "y"], {})], {}, (3,), (3,))
    model = onnx.load(path)
    model.graph.input.append(onnx.helper.make_tensor_value_info("y", 1, ["N", 3]))
    onnx.save(model, path)
    refused(path, "it has the inputs ['x', 'y']")
    write(path, [("Relu", ["x"], {})], {}, (3,), (3,), opset=6)
    refused(path, "its opset must be at least 7, got 6")


def test_inputs_that_are_not_images_of_one_size(path):
    write(path, [("Conv", OF_CONV, {})], IMAGE, (2, "H", "W"), (4, "H", "W"))
    with pytest.raises(ValueError, match=r"vary in the input, got \(2, None, None\) .*; export it"):
        mc.export.from_onnx(path)
    write(path, [("Relu", ["x"], {})], {}, (3,), (3,), onnx.TensorProto.FLOAT16)
    with pytest.raises(ValueError, match=r"float32 or float64, got float16"):
        mc.export.from_onnx(path)


# Files from anybody ------------------------------------------------------------------------------


@pytest.fixture
def external(tmp_path):
    for name in ("plain_dynamo.onnx", "plain_dynamo.onnx.data"):
        shutil.copy(FILES / name, tmp_path)
    return tmp_path / "plain_dynamo.onnx"


def refused(path, *words):
    with pytest.raises((ValueError, OSError)) as caught:
        mc.export.from_onnx(path)
    for word in (path.name, *words):
        assert word in str(caught.value)


def test_a_second_file_is_read_only_from_the_folder(external, tmp_path):
    assert_read(external)
    data = tmp_path / "plain_dynamo.onnx.data"
    secret = tmp_path / "other" / "secret"
    secret.parent.mkdir()
    data.rename(secret)
    refused(external)  # missing
    data.symlink_to(secret)
    refused(external)
    data.unlink()
    model = onnx.load(external, load_external_data=False)
    for location in ("../other/secret", str(secret)):
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (tmp_path / "inner").mkdir(exist_ok=True)
        path = tmp_path / "inner" / external.name
        path.write_bytes(model.SerializeToString())
        refused(path)


def test_a_second_file_that_is_too_short(external, tmp_path):
    data = tmp_path / "plain_dynamo.onnx.data"
    data.write_bytes(data.read_bytes()[:-500])
    refused(external)


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "model.onnx"
    with pytest.raises(FileNotFoundError):
        mc.export.from_onnx(path)
    for content in (b"", b"PK", b"text, and not a short one", bytes(100)):
        path.write_bytes(content)
        refused(path)


def test_sizes_that_the_file_does_not_hold(path):
    """A weight that claims more than the file has, and layers that would need much memory."""
    write(path, [("Conv", OF_CONV, {})], IMAGE, (2, 8, 8), None)
    model = onnx.load(path)
    model.graph.initializer[0].dims[0] = 1 << 40
    path.write_bytes(model.SerializeToString())
    peak_of_refusal(path)
    write(path, [("Conv", OF_CONV, {})], IMAGE, (1 << 40, 8, 8), None)
    peak_of_refusal(path)
    nodes = [("Flatten", ["x"], {}), ("Gemm", ["v0", "dense"], {})]
    write(path, nodes, IMAGE, (1 << 30, 8, 8), None)
    peak_of_refusal(path)


def peak_of_refusal(path):
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


@settings(max_examples=150)
@given(
    st.integers(0, 4000), st.integers(1, 255), st.sampled_from(["plain_fixed", "residual_train"])
)
def test_a_damaged_file_is_read_or_refused(path, at, bits, name):
    content = bytearray((FILES / f"{name}.onnx").read_bytes())
    content[at % len(content)] ^= bits
    path.write_bytes(content)
    try:
        mc.export.from_onnx(path)
    except (ValueError, TypeError) as error:
        assert len(str(error)) < 3000
