"""Tests of minicnn.export.onnx: ONNX Runtime and the model compute the same from one input."""

import sys

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layers.passes import built, least_sizes, numbers, paddings
from layers.test_conformance import TABLE
from tolerances import assert_close

import minicnn as mc
from minicnn.core.op import parts
from minicnn.estimator.tracing import _TotalLoss
from minicnn.export.onnx import _EXPORTS
from minicnn.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Sequential,
)
from minicnn.layers.affine import Affine
from minicnn.layers.convolution import Convolution
from minicnn.layers.fusion import Folded, Fused
from minicnn.layers.pooling2d import Pooling2D
from minicnn.losses import _SparseSoftmaxCrossEntropy

onnx = pytest.importorskip("onnx", reason='pip install -e ".[onnx]"')
reference = pytest.importorskip("onnx.reference", reason='pip install -e ".[onnx]"')
op_run = pytest.importorskip("onnx.reference.op_run", reason='pip install -e ".[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='pip install -e ".[test-all]"')

# Ops without an export, and the reasons.
NOT_EXPORTED = {
    mc.ops._Activation: "a base",
    mc.ops._AlongAxis: "a base",
    mc.layers.Layer: "the base",
    Affine: "a base",
    Pooling2D: "a base",
    Convolution: "a base",
    mc.layers.chain.Chain: "its layers are exported",
    Sequential: "its layers are exported",
    mc.layers.Residual: "its layers are exported",
    Fused: "stands for layers that are exported",
    Folded: "stands for layers that are exported",
    mc.layers.repeated.Repeated: "its ops are exported",
    mc.layers.pooling2d._Global: "a base",
    mc.losses.SoftmaxCrossEntropy: "no prediction",
    **dict.fromkeys(mc.losses._Loss.__subclasses__(), "no prediction"),
    mc.losses._Loss: "a base",
    _SparseSoftmaxCrossEntropy: "no prediction",
    _TotalLoss: "no prediction",
}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("onnx") / "model.onnx"


def session(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


class Gelu(op_run.OpRun):
    """Gelu in float64; the reference evaluator's rounds to float32."""

    op_domain = ""

    def _run(self, x, approximate=None):
        assert approximate == "none"
        return (naive.gelu(x),)


def program_of(path, dtype):
    """Return what runs a file. ONNX Runtime has no float64 convolution."""
    if dtype == np.float32:
        return session(path)
    return reference.ReferenceEvaluator(str(path), new_ops=[Gelu])


def assert_near(y, expected):
    """Compare within the tolerance of the dtype, absolute for sums that may cancel."""
    assert y.dtype == expected.dtype
    assert_close(y, expected, magnitude=max(1, np.abs(expected).max()))


def sizes(value):
    """Return the shape of a value: numbers, names, and "" for unknown sizes."""
    assert value.type.tensor_type.HasField("shape"), value.name
    return [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]


def assert_valid(path):
    """Check a file with ONNX's checker, and its shapes with those that ONNX infers."""
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    declared = {output.name: sizes(output) for output in file.graph.output}
    for output in file.graph.output:
        output.type.tensor_type.ClearField("shape")  # so that it is inferred, not only compared
    graph = onnx.shape_inference.infer_shapes(
        file, check_type=True, strict_mode=True, data_prop=True
    ).graph
    inferred = {value.name: sizes(value) for value in (*graph.value_info, *graph.output)}
    assert inferred.keys() >= {name for node in graph.node for name in node.output}
    for name, shape in declared.items():
        assert len(inferred[name]) == len(shape)
        for size, own in zip(inferred[name], shape, strict=True):
            assert size == own or not isinstance(size, int)


def assert_exported(model, path, x, **options):
    """Check that file and model give the same results for batches of several sizes."""
    mc.export.to_onnx(model, path, **options)
    assert_valid(path)
    program = program_of(path, x.dtype)
    for rows in (1, len(x)):
        expected = model.forward(x[:rows], mc.Context(save=False))
        (y,) = program.run(["outputs"], {"inputs": x[:rows]})
        assert_near(y, mc.softmax(expected) if options.get("softmax") else expected)


# That nothing is left out ------------------------------------------------------------------------


def ops_of_the_library(base=mc.Op):
    for kind in base.__subclasses__():
        if kind.__module__.startswith("minicnn."):
            yield kind
        yield from ops_of_the_library(kind)


def test_every_op_has_an_export_or_a_reason_why_not():
    assert set(ops_of_the_library()) == _EXPORTS.keys() | NOT_EXPORTED.keys()


# Layers ------------------------------------------------------------------------------------------


def as_in_a_file(layer):
    """Round the slopes of leaky_relu as a file does; return the layer."""
    for op in parts(layer):
        if isinstance(op, mc.ops.LeakyRelu):
            op.alpha = float(np.float32(op.alpha))
    return layer


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make, shape", [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_every_layer_in_its_configurations(path, make, shape, dtype):
    layer = as_in_a_file(built(make, shape, dtype)[0])
    assert_exported(layer, path, numbers((3, *shape), dtype))


ACTIVATIONS = st.sampled_from([
    None, "relu", "leaky_relu", "gelu", "softmax", "log_softmax", "sigmoid", "tanh", "identity",
])
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 4))


@st.composite
def sliding_layers(draw):
    """Draw a convolution or a pooling, and a valid (height, width) of images for it."""
    size, strides, dilation = draw(PAIRS), draw(PAIRS), (1, 1)
    padding = draw(paddings(min(size) - 1))
    data_format = draw(st.sampled_from(["channels_last", "channels_first"]))
    kind = draw(st.sampled_from([Conv2D, MaxPooling2D, AveragePooling2D]))
    if kind is not Conv2D:
        layer = kind(size, strides, padding, data_format)
    else:
        dilation = draw(PAIRS)
        layer = Conv2D(
            draw(st.integers(1, 3)), size, strides=strides, padding=padding,
            data_format=data_format, dilation_rate=dilation, activation=draw(ACTIVATIONS),
            use_bias=draw(st.booleans()),
        )
    extents = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    least = least_sizes(extents, padding)
    return layer, tuple(draw(st.integers(low, low + 6)) for low in least)


@settings(max_examples=200)
@given(sliding_layers(), st.integers(1, 3))
def test_sliding_layers(path, drawn, channels):
    layer, size = drawn
    first = layer.data_format == "channels_first"
    shape = (channels, *size) if first else (*size, channels)
    layer, _ = built(lambda: layer, shape)
    assert_exported(layer, path, numbers((3, *shape)))


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), ACTIVATIONS, st.booleans())
def test_dense_of_any_rank(path, shape, activation, use_bias):
    layer, _ = built(lambda: Dense(3, activation, use_bias), shape)
    assert_exported(layer, path, numbers((3, *shape)))


LINKS = st.sampled_from([
    lambda: mc.ops.Scale(0.5, 2.0),
    lambda: mc.ops.ReduceMean((1, 2), True),
    lambda: mc.ops.ReduceSum((3,), True),
    lambda: Conv2D(3, 2, padding="same"),
    lambda: Conv2D(2, (3, 2), strides=(1, 2), padding="same", activation="relu"),
    lambda: Conv2D(4, 2, padding="same", data_format="channels_first"),
    lambda: MaxPooling2D(2, padding="same"),
    lambda: MaxPooling2D(2, 1, "same", "channels_first"),
    lambda: AveragePooling2D(2, 1, "same"),
    lambda: BatchNormalization(),
    lambda: BatchNormalization(1, scale=False),
    lambda: BatchNormalization(2, center=False),
    lambda: Dense(3, activation="tanh"),
    lambda: Dropout(0.5),
    lambda: Activation("relu"),
    lambda: Activation("softmax"),
    lambda: mc.layers.Reshape((1, -1, 1)),
    lambda: mc.ops.Softmax(axis=1),
    lambda: mc.ops.LogSoftmax(axis=2),
    lambda: mc.ops.LeakyRelu(0.01),
    lambda: mc.ops.Gelu(approximate=True),
    lambda: mc.ops.Sigmoid(),
    lambda: Sequential([Activation("tanh"), Sequential([Conv2D(2, 1)])]),
    lambda: mc.layers.Residual(Conv2D(3, 1), Dense(3)),
    lambda: mc.layers.Residual(Activation("tanh")),
])


@settings(max_examples=100)
@given(st.lists(LINKS, min_size=1, max_size=6), st.booleans())
def test_chains(path, links, softmax):
    model, _ = built(lambda: Sequential([link() for link in links]), (4, 6, 2))
    assert_exported(model, path, numbers((3, 4, 6, 2)), softmax=softmax)


def nodes(path):
    return [node.op_type for node in onnx.load(path).graph.node]


def small(dtype=np.float32):
    return built(lambda: Sequential([
        Conv2D(4, 3, padding="same"), Activation("relu"), MaxPooling2D(2), Dropout(0.4),
        Conv2D(4, 3, activation="tanh"), Flatten(), Dense(3),
    ]), (8, 8, 2), dtype)[0]


def test_a_chain_of_convolutions_is_transposed_once_in_and_once_out(path):
    mc.export.to_onnx(small(), path)
    assert nodes(path) == [
        "Transpose", "Conv", "Relu", "MaxPool", "Conv", "Tanh", "Transpose", "Reshape", "MatMul",
        "Add", "Identity",
    ]


def test_explicit_padding_is_in_the_file_as_given(path):
    model, _ = built(lambda: Sequential([
        Conv2D(4, 3, strides=2, padding=1), MaxPooling2D(2, 1, ((0, 1), (1, 0))),
    ]), (8, 6, 2))
    mc.export.to_onnx(model, path)
    pads = [list(a.ints) for node in onnx.load(path).graph.node for a in node.attribute
            if a.name == "pads"]
    assert pads == [[1, 1, 1, 1], [0, 1, 1, 0]]


def test_batch_normalization_is_a_node_between_convolutions(path):
    model, _ = built(lambda: Sequential([
        Conv2D(4, 3, use_bias=False), BatchNormalization(), Activation("relu"), Conv2D(3, 3),
        BatchNormalization(), GlobalAveragePooling2D(), Dense(3), BatchNormalization(),
    ]), (6, 6, 2))
    assert_exported(model, path, numbers((3, 6, 6, 2)))
    assert nodes(path) == [
        "Transpose", "Conv", "BatchNormalization", "Relu", "Conv", "BatchNormalization",
        "GlobalAveragePool", "Reshape", "MatMul", "Add", "BatchNormalization", "Identity",
    ]
    model.layers[1].training = True
    with pytest.raises(ValueError, match="batch_normalization: the statistics of a batch in pred"):
        mc.export.to_onnx(model, path)


@pytest.mark.parametrize("approximate, value", [(False, b"none"), (True, b"tanh")])
def test_gelu_is_one_node_of_opset_20(path, approximate, value):
    """Also with a mean, whose axes are an attribute in opset 17 and an input in opset 20."""
    gelu = mc.ops.Gelu(approximate)
    layers = [Conv2D(3, 3), gelu, Conv2D(2, 1), mc.ops.ReduceMean((1, 2), False), Dense(3)]
    model, _ = built(lambda: Sequential(layers), (6, 6, 2))
    assert_exported(model, path, 2 * numbers((3, 6, 6, 2)))
    assert nodes(path)[:5] == ["Transpose", "Conv", "Gelu", "Conv", "Transpose"]
    assert onnx.load(path).graph.node[2].attribute[0].s == value
    assert versions(path) == (20, 9)
    layers[1] = Activation("relu")
    model, _ = built(lambda: Sequential(layers), (6, 6, 2))
    assert_exported(model, path, numbers((3, 6, 6, 2)))
    assert versions(path) == (17, 8)


def versions(path):
    """Return the opset and the IR version of a file."""
    file = onnx.load(path)
    (opset,) = file.opset_import
    return opset.version, file.ir_version


def test_the_file_says_what_it_is(path):
    mc.export.to_onnx(small(np.float64), path)
    file = onnx.load(path)
    assert (file.producer_name, file.producer_version) == ("minicnn", mc.__version__)
    mc.export.to_onnx(small(), path)
    (inputs,), (outputs,) = session(path).get_inputs(), session(path).get_outputs()
    assert (inputs.name, inputs.shape, inputs.type) == ("inputs", ["N", 8, 8, 2], "tensor(float)")
    assert (outputs.name, outputs.shape) == ("outputs", ["N", 3])


def test_export_leaves_the_model_alone(path):
    layer = Dense(2)
    layer.build((None, 3), rng=0)
    kernel = layer.kernel
    mc.export.to_onnx(layer, path)
    assert layer.name is None
    assert layer.kernel is kernel
    before = path.read_bytes()
    mc.export.to_onnx(layer, path)
    assert path.read_bytes() == before
    kernel.value[...] += 1
    mc.export.to_onnx(layer, path)
    assert path.read_bytes() != before  # the current weights


# Ops of a model_fn -------------------------------------------------------------------------------


def estimator(predict, folder):
    """An Estimator with three classes; `predict` returns its predictions and logits."""

    def model_fn(features, labels, mode):
        predictions, logits = predict(features)
        loss = train_op = None
        if mode != mc.ModeKeys.INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        if mode == mc.ModeKeys.TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
        return mc.ModelFnOps(mode, predictions, loss, train_op)

    return mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=0))


LABELS = np.array([0, 1, 2, 0, 1])


def assert_predictions(made, path, x, feeds):
    mc.export.to_onnx(made, path, x)
    assert_valid(path)
    expected = made.predict(x, as_iterable=False)
    if not isinstance(expected, dict):
        expected = {"predictions": expected}
    run = session(path)
    assert [output.name for output in run.get_outputs()] == list(expected)
    for (name, one), y in zip(expected.items(), run.run(None, feeds), strict=True):
        assert y.dtype == one.dtype, name
        assert_near(y, one) if one.dtype.kind == "f" else np.testing.assert_array_equal(y, one)


def test_every_op(path, tmp_path):
    graphs = []

    def predict(features):
        graphs.append(features.graph)
        images = mc.reshape(features, [-1, 4, 4, 1])
        conv = mc.layers.conv2d(images, 3, 3, padding="same")
        logits = mc.layers.dense(mc.layers.flatten(conv), units=3)
        classes = mc.argmax(logits, axis=1)
        return {
            "conv": conv, "twice": conv, "input": features, "logits": logits, "classes": classes,
            "dense": mc.relu(logits),  # the name of another tensor
            "features": mc.identity(images),  # the name of the input
            "sigmoid": mc.sigmoid(conv), "tanh": mc.tanh(conv),
            "leaky": mc.leaky_relu(conv, 0.3), "log": mc.log_softmax(conv, axis=2),
            "gelu": mc.gelu(logits), "gelu_tanh": mc.gelu(conv, approximate=True),
            "softmax": mc.softmax(logits), "channels": mc.softmax(conv, axis=1),
            "winner": mc.argmax(conv, axis=-1), "row": mc.argmax(conv, axis=1),
            "rows": mc.reshape(conv, [-1, 8, 6]),
            "sum": mc.add(conv, mc.relu(conv)), "product": conv * conv, "scaled": 2 * conv,
            "joined": mc.concat([conv, conv], axis=3),
            "mean": mc.reduce_mean(conv, axis=[1, 2]), "total": mc.reduce_sum(conv, axis=3),
            "int": mc.cast(conv, np.int32), "double": mc.cast(images, np.float64),
            "bool": mc.cast(classes, np.bool_),
            "hot": mc.one_hot(classes, 3), "short": mc.one_hot(classes, 2, on_value=5, off_value=1),
            "axis": mc.one_hot(mc.argmax(conv, 3), 3, axis=1, dtype=np.int64),
            "wrap": mc.one_hot(mc.cast(logits, np.int32), 2, 0.5, -0.5, axis=-2),
        }, logits

    x = 4 * numbers((5, 16))
    made = estimator(predict, tmp_path).fit(x, LABELS, steps=1)
    assert_predictions(made, path, x, {"features_1": x})
    used = {type(tensor.op) for tensor in graphs[-1].tensors.values()}
    assert {kind for kind in _EXPORTS if kind.__module__ == "minicnn.ops"} <= used
    assert (made.predict(x, as_iterable=False)["wrap"][..., 0] < 0).any()  # of a negative index


def test_features_by_name_of_other_types_and_one_prediction(path, tmp_path):
    def predict(features):
        pixels = mc.cast(features["pixels"], np.float32)
        logits = mc.layers.dense(mc.relu(pixels), units=3)
        return logits, logits

    x = {"pixels": np.arange(20, dtype=np.uint8).reshape(5, 4), "unused": np.ones((5, 2))}
    feeds = {"pixels": x["pixels"], "unused": x["unused"].astype(np.float32)}
    made = estimator(predict, tmp_path).fit(x, LABELS, steps=1)
    assert_predictions(made, path, x, feeds)


def test_of_an_estimator_the_newest_checkpoint_counts(path, tmp_path):
    def predict(features):
        logits = mc.layers.dense(features, units=3, name="logits")
        return {"logits": logits}, logits

    x = numbers((5, 4))
    made = estimator(predict, tmp_path)
    for _ in range(2):
        made.fit(x, LABELS, steps=3)
        mc.export.to_onnx(estimator(predict, tmp_path), path, x[:1])
        (y,) = session(path).run(["logits"], {"features": x})
        assert_near(y, made.predict(x, as_iterable=False)["logits"])


# MNIST -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist():
    return mc.datasets.load_dataset("mnist")


def compare(probabilities, expected):
    """1,000 images: nearly equal probabilities, and the same classes."""
    assert len(expected) == 1000
    assert np.abs(probabilities - expected).max() < 5e-6
    np.testing.assert_array_equal(probabilities.argmax(axis=1), expected.argmax(axis=1))


def test_mnist_sequential(path, mnist):
    model = Sequential([
        Conv2D(8, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Conv2D(16, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Flatten(), Dense(64, activation="relu"), Dropout(0.4), Dense(10),
    ])
    model.build((None, 28, 28, 1), rng=0)
    adam, rng = mc.optimizers.Adam(0.003), np.random.default_rng(0)
    for _ in range(30):
        images, labels = mnist.train.next_batch(50)
        ctx = mc.Context(training=True, rng=rng)
        logits = model.forward(images.reshape(-1, 28, 28, 1), ctx)
        _, dlogits = mc.losses.softmax_cross_entropy_with_grad(labels, logits)
        model.backward(dlogits, ctx, need_dx=False)
        adam.step(model.parameters)
    x = mnist.test.images[:1000].reshape(-1, 28, 28, 1)
    mc.export.to_onnx(model, path, softmax=True)
    (y,) = session(path).run(None, {"inputs": x})
    compare(y, mc.softmax(model.predict(x)))
    assert (y.argmax(axis=1) == mnist.test.labels[:1000]).mean() > 0.6  # not a constant answer


def test_mnist_estimator(path, mnist, tmp_path):
    def model_fn(features, labels, mode):
        images = mc.reshape(features, [-1, 28, 28, 1])
        conv = mc.layers.conv2d(images, 8, 5, padding="same", activation=mc.relu)
        pool = mc.layers.max_pooling2d(conv, pool_size=2, strides=2)
        drop = mc.layers.dropout(mc.layers.flatten(pool), 0.4, training=mode == mc.ModeKeys.TRAIN)
        logits = mc.layers.dense(drop, units=10)
        loss = train_op = None
        if mode != mc.ModeKeys.INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 10), logits)
        if mode == mc.ModeKeys.TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
        predictions = {"classes": mc.argmax(logits, 1), "probabilities": mc.softmax(logits)}
        return mc.ModelFnOps(mode, predictions, loss, train_op)

    made = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0))
    made.fit(mnist.train.images, mnist.train.labels, batch_size=50, steps=30)
    x = mnist.test.images[:1000]
    mc.export.to_onnx(made, path, x[:1])
    expected = made.predict(x, as_iterable=False)
    classes, probabilities = session(path).run(["classes", "probabilities"], {"features": x})
    compare(probabilities, expected["probabilities"])
    np.testing.assert_array_equal(classes, expected["classes"])
    assert (classes == mnist.test.labels[:1000]).mean() > 0.6


def test_a_chosen_checkpoint_of_an_estimator(path, tmp_path):
    def predict(features):
        logits = mc.layers.dense(features, 3)
        return {"p": mc.softmax(logits)}, logits

    made, x = estimator(predict, tmp_path), np.random.default_rng(0).random((5, 4), np.float32)
    for _ in range(2):
        made.fit(x, LABELS, steps=2)
    chosen = tmp_path / "model.ckpt-2.npz"
    mc.export.to_onnx(made, path, x, checkpoint_path=chosen)
    expected = made.predict(x, as_iterable=False, checkpoint_path=str(chosen))["p"]
    (got,) = session(path).run(["p"], {"features": x})
    assert_near(got, expected)
    assert np.abs(got - made.predict(x, as_iterable=False)["p"]).max() > 1e-3
    layer = mc.layers.Dense(2)
    layer.build((None, 4), rng=0)
    with pytest.raises(ValueError, match="`checkpoint_path` is for an Estimator"):
        mc.export.to_onnx(layer, path, checkpoint_path=chosen)


# What cannot be ----------------------------------------------------------------------------------


class Own(mc.layers.Layer):
    def forward(self, x, ctx):
        return 2 * x


class OwnDense(Dense):
    def forward(self, x, ctx):
        return super().forward(x, ctx) + 1


class OwnModel(Sequential):
    def forward(self, x, ctx):
        return super().forward(x, ctx) + 1


class Named(Sequential):
    def __init__(self):
        super().__init__([Dense(3), Activation("relu")])


def test_a_model_that_is_a_class_of_its_own_is_exported(path):
    model, _ = built(lambda: Sequential([Named(), Named()]), (4,))
    assert_exported(model, path, numbers((3, 4)))


@pytest.mark.parametrize("make, words", [
    (lambda: Own(name="mine"), "mine: Own cannot be exported; .*Conv2D"),
    (lambda: OwnDense(2), "own_dense: OwnDense cannot be exported"),
    (lambda: OwnModel([Dense(2)]), "own_model: OwnModel cannot be exported"),
    (lambda: Dense(2, activation=Own(name="act")), "act: Own cannot be exported"),
    (lambda: Dropout(0.5, training=True), "dropout: dropout in prediction cannot be exported"),
])
def test_what_cannot_be_exported_is_named(tmp_path, make, words):
    model, _ = built(lambda: Sequential([Sequential([make()])]), (4,))
    with pytest.raises(ValueError, match=words):
        mc.export.to_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [Dense(3), Sequential([Dense(3)]), None, mc.ops.Relu()])
def test_a_model_must_be_built(path, model):
    with pytest.raises(ValueError, match=r"`model` must be a layer that is built.*call build"):
        mc.export.to_onnx(model, path)


@pytest.mark.parametrize("make", [
    lambda: Dense(3, name="inputs"),
    lambda: Sequential([Sequential([Dense(3, name="inputs")]), Dense(3, name="inputs_1")]),
    lambda: Sequential([Dense(3, name="outputs", activation="relu")]),
])
def test_a_layer_may_be_called_like_an_input_or_output(path, make):
    model, _ = built(make, (4,))
    assert_exported(model, path, numbers((3, 4)))


def test_a_model_larger_than_a_file_can_be_is_refused(tmp_path, monkeypatch):
    path, layer = tmp_path / "model.onnx", built(lambda: Dense(10), (50,))[0]
    assert_exported(layer, path, numbers((3, 50)))
    before = path.read_bytes()
    monkeypatch.setattr(onnx.checker, "MAXIMUM_PROTOBUF", 1000)
    with pytest.raises(ValueError, match="too large"):
        mc.export.to_onnx(layer, path)
    assert path.read_bytes() == before


class Double(mc.Op):
    """An op that ONNX does not know."""

    def forward(self, x, ctx):
        return 2 * x


def test_arguments_that_do_not_fit(path, tmp_path):
    def predict(features):
        logits = mc.layers.dense(features, units=3)
        return {"double": Double()(logits)}, logits

    x = np.ones((5, 3), np.float32)
    with pytest.raises(ValueError, match="`x` is for an Estimator"):
        mc.export.to_onnx(small(), path, x)
    made = estimator(predict, tmp_path / "model").fit(x, LABELS, steps=1)
    with pytest.raises(ValueError, match="`x` is missing"):
        mc.export.to_onnx(made, path)
    with pytest.raises(ValueError, match=r"`softmax` is for layers.*mc\.softmax"):
        mc.export.to_onnx(made, path, x, softmax=True)
    with pytest.raises(ValueError, match="Double cannot be exported"):
        mc.export.to_onnx(made, path, x)
    with pytest.raises(mc.CheckpointError, match="call fit first"):
        mc.export.to_onnx(estimator(predict, tmp_path / "empty"), path, x)


def test_without_onnx_an_error_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'onnx cannot be imported.*pip install -e "\.\[onnx\]"'):
        mc.export.to_onnx(small(), path)
