"""What every layer must satisfy: one table of configurations, and one test for each property.

Each new layer needs a row: the last test checks this. Rows run with float32 and float64, in
training mode, so that dropout drops.
"""

import inspect

import numpy as np
import pytest
from layers.passes import Pass, assert_same_pass, built, context, forward_and_back, numbers
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.core.op import parts
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
    Sequential,
)

FIRST = {"data_format": "channels_first"}
BATCH = "batch_normalization of the batch"  # rows of a batch depend on each other
ACTIVATIONS = (
    "relu", "leaky_relu", "gelu", "softmax", "log_softmax", "sigmoid", "tanh", "identity",
)


def nested(fuse):
    """Return models in a model that can be fused: ReLU as an argument and as a layer."""
    features = [Conv2D(3, 3, padding="same"), Activation("relu"), MaxPooling2D(2), Flatten()]
    head = [Dense(5, activation="relu"), Dropout(0.4), Dense(3)]
    return Sequential([Sequential(features, fuse=fuse), Sequential(head, fuse=fuse)], fuse=fuse)


# Name of the row, function that makes the layer, input shape without the batch
TABLE = [
    ("conv2d 3x3", lambda: Conv2D(4, 3), (6, 7, 2)),
    ("conv2d stride < window", lambda: Conv2D(3, 3, strides=2), (7, 8, 3)),
    ("conv2d stride < window, same", lambda: Conv2D(3, 3, strides=2, padding="same"), (7, 8, 3)),
    ("conv2d stride > window, same", lambda: Conv2D(3, 2, strides=3, padding="same"), (7, 8, 3)),
    ("conv2d stride > window", lambda: Conv2D(3, (2, 1), strides=(3, 2)), (7, 8, 3)),
    ("conv2d even", lambda: Conv2D(3, (2, 4), padding="same"), (5, 6, 2)),
    ("conv2d even, strides", lambda: Conv2D(2, 4, strides=(1, 2), padding="same"), (5, 6, 3)),
    ("conv2d padded", lambda: Conv2D(3, 3, strides=2, padding=1), (6, 8, 3)),
    ("conv2d padded unevenly", lambda: Conv2D(3, 3, padding=((0, 2), (3, 1))), (4, 5, 2)),
    ("conv2d padded beyond the window", lambda: Conv2D(9, 3, padding=((3, 0), (0, 4))), (4, 5, 70)),
    ("conv2d padded, channels first", lambda: Conv2D(3, 3, padding=1, **FIRST), (2, 6, 8)),
    ("conv2d 1x1", lambda: Conv2D(5, 1), (4, 5, 3)),
    ("conv2d 1x1, strides", lambda: Conv2D(5, 1, strides=(2, 3)), (4, 7, 3)),
    ("conv2d one channel, one filter", lambda: Conv2D(1, 3), (5, 5, 1)),
    ("conv2d window is the image", lambda: Conv2D(3, (4, 5)), (4, 5, 2)),
    ("conv2d window over the image", lambda: Conv2D(3, 5, padding="same"), (3, 2, 2)),
    ("conv2d dilated", lambda: Conv2D(2, 3, dilation_rate=(2, 1)), (7, 6, 2)),
    (
        "conv2d dilated with strides, same",
        lambda: Conv2D(2, 3, strides=(2, 1), padding="same", dilation_rate=(1, 2)),
        (6, 7, 2),
    ),
    (
        "conv2d dilated with strides",
        lambda: Conv2D(2, (3, 2), strides=2, dilation_rate=(2, 3)),
        (8, 7, 2),
    ),
    ("conv2d channels first", lambda: Conv2D(4, 3, **FIRST), (2, 6, 7)),
    (
        "conv2d channels first, same",
        lambda: Conv2D(3, (3, 2), strides=(1, 2), padding="same", activation="relu", **FIRST),
        (2, 6, 7),
    ),
    ("conv2d no bias", lambda: Conv2D(3, 3, use_bias=False), (5, 6, 2)),
    ("conv2d frozen", lambda: Conv2D(3, 3, trainable=False), (5, 6, 2)),
    *((f"conv2d {a}", lambda a=a: Conv2D(3, 3, activation=a), (5, 6, 2)) for a in ACTIVATIONS),
    ("conv2d of many channels", lambda: Conv2D(70, 3, padding="same"), (4, 5, 33)),
    ("conv2d_transpose", lambda: Conv2DTranspose(4, 3), (5, 6, 2)),
    (
        "conv2d_transpose strides, same",
        lambda: Conv2DTranspose(3, 3, strides=2, padding="same", activation="relu"),
        (4, 3, 2),
    ),
    ("conv2d_transpose stride > window", lambda: Conv2DTranspose(3, 2, strides=3), (3, 4, 2)),
    (
        "conv2d_transpose stride > window, same",
        lambda: Conv2DTranspose(3, (2, 1), strides=(3, 2), padding="same"),
        (3, 4, 2),
    ),
    (
        "conv2d_transpose padded",
        lambda: Conv2DTranspose(3, 3, strides=2, padding=((1, 0), (1, 0))),
        (4, 3, 2),
    ),
    (
        "conv2d_transpose channels first",
        lambda: Conv2DTranspose(3, (3, 4), strides=(2, 1), use_bias=False, **FIRST),
        (2, 4, 3),
    ),
    (
        "conv2d_transpose of many channels",
        lambda: Conv2DTranspose(33, 3, padding="same"),
        (4, 5, 34),
    ),
    ("depthwise_conv2d", lambda: DepthwiseConv2D(3), (6, 7, 5)),
    (
        "depthwise_conv2d strides, same, relu",
        lambda: DepthwiseConv2D((3, 2), strides=(2, 3), padding="same", activation="relu"),
        (7, 8, 3),
    ),
    ("depthwise_conv2d padded", lambda: DepthwiseConv2D(3, strides=2, padding=1), (6, 8, 5)),
    (
        "depthwise_conv2d multiplier, dilated",
        lambda: DepthwiseConv2D(3, depth_multiplier=3, dilation_rate=(1, 2), use_bias=False),
        (5, 7, 2),
    ),
    (
        "depthwise_conv2d channels first",
        lambda: DepthwiseConv2D(2, depth_multiplier=2, padding="same", **FIRST),
        (3, 4, 5),
    ),
    ("depthwise_conv2d of many channels", lambda: DepthwiseConv2D(3, padding="same"), (3, 4, 70)),
    ("separable_conv2d", lambda: SeparableConv2D(4, 3), (6, 7, 5)),
    (
        "separable_conv2d strides, same, relu",
        lambda: SeparableConv2D(3, 3, strides=2, padding="same", activation="relu"),
        (7, 6, 3),
    ),
    ("separable_conv2d padded", lambda: SeparableConv2D(4, 3, padding=((2, 0), 1)), (4, 5, 3)),
    (
        "separable_conv2d multiplier, dilated",
        lambda: SeparableConv2D(3, 2, depth_multiplier=3, dilation_rate=2, use_bias=False),
        (5, 6, 2),
    ),
    ("separable_conv2d channels first", lambda: SeparableConv2D(3, 2, **FIRST), (3, 4, 5)),
    ("max_pooling2d", lambda: MaxPooling2D(2), (6, 8, 3)),
    ("max_pooling2d odd size", lambda: MaxPooling2D(2), (7, 5, 3)),
    ("max_pooling2d odd size, same", lambda: MaxPooling2D(2, padding="same"), (7, 5, 3)),
    ("max_pooling2d overlapping", lambda: MaxPooling2D(3, strides=2), (7, 8, 3)),
    ("max_pooling2d overlapping, same", lambda: MaxPooling2D(3, 1, padding="same"), (5, 6, 2)),
    ("max_pooling2d rectangular", lambda: MaxPooling2D((2, 3), strides=(1, 2)), (5, 6, 2)),
    ("max_pooling2d stride > window", lambda: MaxPooling2D(2, 3, padding="same"), (7, 8, 2)),
    ("max_pooling2d over the image", lambda: MaxPooling2D(17, padding="same"), (3, 4, 2)),
    ("max_pooling2d padded", lambda: MaxPooling2D(3, 2, padding=1), (6, 8, 3)),
    ("max_pooling2d padded below", lambda: MaxPooling2D(2, 2, ((0, 1), (0, 0))), (5, 6, 2)),
    ("max_pooling2d channels first", lambda: MaxPooling2D(2, **FIRST), (3, 6, 8)),
    (
        "max_pooling2d channels first, overlapping, same",
        lambda: MaxPooling2D(3, strides=2, padding="same", **FIRST),
        (3, 6, 7),
    ),
    ("average_pooling2d", lambda: AveragePooling2D(2), (6, 8, 3)),
    ("average_pooling2d odd size, same", lambda: AveragePooling2D(2, padding="same"), (7, 5, 3)),
    ("average_pooling2d overlapping, same", lambda: AveragePooling2D(3, 1, "same"), (5, 6, 2)),
    ("average_pooling2d padded", lambda: AveragePooling2D(3, 2, padding=1), (6, 8, 3)),
    ("average_pooling2d stride > window", lambda: AveragePooling2D(2, 3, "same"), (7, 8, 2)),
    ("average_pooling2d over the image", lambda: AveragePooling2D(17, padding="same"), (3, 4, 2)),
    (
        "average_pooling2d channels first",
        lambda: AveragePooling2D((3, 2), (2, 1), "same", **FIRST),
        (3, 6, 7),
    ),
    ("global_max_pooling2d", GlobalMaxPooling2D, (5, 6, 3)),
    ("global_max_pooling2d channels first", lambda: GlobalMaxPooling2D(**FIRST), (3, 5, 6)),
    ("global_average_pooling2d", GlobalAveragePooling2D, (5, 6, 3)),
    ("global_average_pooling2d channels first", lambda: GlobalAveragePooling2D(**FIRST), (3, 5, 6)),
    ("batch_normalization", lambda: BatchNormalization(training=False), (5, 4, 3)),
    ("batch_normalization frozen", lambda: BatchNormalization(trainable=False), (5,)),
    (
        "batch_normalization plain, channels first",
        lambda: BatchNormalization(1, center=False, scale=False, training=False),
        (3, 5, 4),
    ),
    (f"{BATCH}", lambda: BatchNormalization(epsilon=0.1), (5, 4, 17)),
    (f"{BATCH}, of rows", lambda: BatchNormalization(epsilon=0.1), (35,)),
    (f"{BATCH}, axis 2", lambda: BatchNormalization(2, epsilon=0.1), (5, 3, 4)),
    (
        f"{BATCH}, channels first",
        lambda: BatchNormalization(1, center=False, epsilon=0.1),
        (3, 5, 4),
    ),
    (
        f"{BATCH}, plain",
        lambda: BatchNormalization(center=False, scale=False, epsilon=0.1),
        (3, 5, 4),
    ),
    ("dense", lambda: Dense(4), (5,)),
    ("dense one input, one unit", lambda: Dense(1), (1,)),
    ("dense of many columns", lambda: Dense(70), (67,)),
    ("dense rank 3", lambda: Dense(4), (3, 5)),
    ("dense rank 4, relu", lambda: Dense(4, activation="relu"), (2, 3, 5)),
    ("dense no bias", lambda: Dense(4, use_bias=False), (5,)),
    ("dense frozen", lambda: Dense(4, trainable=False), (5,)),
    *((f"dense {a}", lambda a=a: Dense(4, activation=a), (5,)) for a in ACTIVATIONS),
    ("dropout", lambda: Dropout(0.4), (3, 5)),
    ("dropout off", lambda: Dropout(0.4, training=False), (3, 5)),
    ("dropout rate 0", lambda: Dropout(0), (3, 5)),
    ("dropout of channels", lambda: Dropout(0.5, noise_shape=(None, 1, 1, 4)), (3, 2, 4)),
    ("dropout alike in all rows", lambda: Dropout(0.5, noise_shape=(1, 9)), (9,)),
    ("flatten", Flatten, (3, 4, 2)),
    ("flatten of flat rows", Flatten, (5,)),
    ("reshape", lambda: Reshape((2, 6)), (3, 4)),
    ("reshape -1", lambda: Reshape((3, -1, 1)), (12,)),
    *((f"activation {a}", lambda a=a: Activation(a), (3, 5)) for a in ACTIVATIONS),
    ("sequential", lambda: nested(fuse=True), (4, 6, 3)),
    ("sequential unfused", lambda: nested(fuse=False), (4, 6, 3)),
    ("sequential of one", lambda: Sequential([Flatten()]), (2, 3)),
    ("residual", lambda: Residual([Dense(4, activation="tanh"), Dense(5)]), (5,)),
    ("residual of itself", lambda: Residual(Activation("identity")), (3, 5)),
    (
        "residual shortcut",
        lambda: Residual(
            [Conv2D(3, 3, strides=2, padding="same", activation="relu"),
             Conv2D(3, 2, padding="same")],
            Conv2D(3, 1, strides=2),
        ),
        (7, 6, 2),
    ),
    (
        "residual channels first",
        lambda: Residual(
            Conv2D(4, 3, **FIRST), [Conv2D(4, (3, 1), **FIRST), Conv2D(4, (1, 3), **FIRST)]
        ),
        (2, 5, 6),
    ),
    (
        "residual in residual, dropout",
        lambda: Sequential([Residual([Residual(Dense(5, activation="sigmoid")), Dropout(0.4)])]),
        (5,),
    ),
    # Fused layers, which take the fast paths in float32
    (
        "fused residual",
        lambda: Sequential([
            Residual([Conv2D(9, 3, padding="same", activation="relu"),
                      Conv2D(9, 3, padding="same")]),
            Activation("relu"), Residual(Dense(9)), mc.ops.Relu(),
        ]),
        (5, 6, 9),
    ),
    (
        "fused conv2d, few channels",
        lambda: Sequential([Conv2D(32, 5, padding="same", activation="relu"), MaxPooling2D(2)]),
        (10, 10, 1),
    ),
    (
        "fused conv2d, few channels, strides",
        lambda: Sequential([Conv2D(8, 3, strides=2, padding="same", activation="relu")]),
        (7, 8, 3),
    ),
    (
        "fused conv2d 5x5, relu, pooling",
        lambda: Sequential(
            [Conv2D(16, 5, padding="same"), Activation("relu"), MaxPooling2D(2)]
        ),
        (6, 8, 32),
    ),
    ("fused conv2d 5x5, relu", lambda: Sequential([Conv2D(9, 5, activation="relu")]), (9, 7, 17)),
    ("fused conv2d 3x3", lambda: Sequential([Conv2D(9, 3, padding="same")]), (7, 6, 17)),
    (
        "fused conv2d 3x3, relu, pooling of odd size",
        lambda: Sequential([Conv2D(9, 3, activation="relu"), MaxPooling2D(2)]),
        (7, 9, 17),
    ),
    (
        "fused conv2d without a bias",
        lambda: Sequential(
            [Conv2D(8, 3, use_bias=False, activation="relu"), MaxPooling2D(2)]
        ),
        (6, 8, 9),
    ),
    (
        "fused conv2d channels first",
        lambda: Sequential(
            [Conv2D(8, 5, padding="same", activation="relu", **FIRST), MaxPooling2D(2, **FIRST)]
        ),
        (9, 6, 8),
    ),
    (
        "fused conv2d 3x3, padded unevenly, relu, pooling",
        lambda: Sequential(
            [Conv2D(17, 3, padding=((2, 0), (0, 1)), activation="relu"), MaxPooling2D(2)]
        ),
        (6, 7, 33),
    ),
    (
        "fused conv2d, few channels, padded beyond the window, relu, pooling",
        lambda: Sequential(
            [Conv2D(8, 2, padding=((3, 2), (0, 4)), activation="relu"), MaxPooling2D(2)]
        ),
        (5, 4, 3),
    ),
    (
        "fused conv2d dilated",
        lambda: Sequential([Conv2D(4, 3, dilation_rate=2, activation="relu"), MaxPooling2D(2)]),
        (8, 9, 3),
    ),
    (
        "fused conv2d 1x1",
        lambda: Sequential([Conv2D(4, 1, activation="relu"), MaxPooling2D(2)]),
        (4, 6, 5),
    ),
    (
        "fused depthwise_conv2d",
        lambda: Sequential([DepthwiseConv2D(3, depth_multiplier=2), Activation("relu")]),
        (5, 6, 9),
    ),
    (
        "fused separable_conv2d",
        lambda: Sequential([SeparableConv2D(17, 3, activation="relu"), MaxPooling2D(2)]),
        (7, 6, 9),
    ),
    (
        "fused dense",
        lambda: Sequential([Dense(70, activation="relu"), Dense(66), Activation("relu")]),
        (67,),
    ),
    (
        f"fused conv2d, {BATCH}, relu, pooling",
        lambda: Sequential([
            Conv2D(9, 3, use_bias=False), BatchNormalization(epsilon=0.1), Activation("relu"),
            MaxPooling2D(2),
        ]),
        (6, 6, 3),
    ),
    (
        "sequential with an op",
        lambda: Sequential([Dense(4), mc.ops.Relu(), mc.ops.Reshape([-1, 2, 2])]),
        (3,),
    ),
]

ROWS = [pytest.param(make, shape, id=name) for name, make, shape in TABLE]
every_layer = pytest.mark.parametrize(("make", "shape"), ROWS)
ALONE = [row for row in ROWS if BATCH not in row.id]
every_layer_of_rows = pytest.mark.parametrize(("make", "shape"), ALONE)
each_type = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@every_layer
@each_type
def test_declared_shape_and_type_are_the_real_ones(make, shape, dtype):
    layer, declared = built(make, shape, dtype)
    assert declared[0] is None
    workspace = mc.Workspace()
    for rows in (1, 2, 3, 2):  # the last is a short batch after a longer one
        ctx = context(workspace=workspace)
        x = numbers((rows, *shape), dtype)
        y = layer.forward(x, ctx)
        dx = layer.backward(numbers(y.shape, dtype), ctx)
        assert y.shape == (rows, *declared[1:])
        assert dx.shape == x.shape
        for array in (y, dx, *(p.value for p in layer.parameters)):
            assert array.dtype == dtype
            assert array.flags.c_contiguous
        for parameter in layer.parameters:
            assert (parameter.grad.shape, parameter.grad.dtype) == (parameter.shape, dtype)


@every_layer
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("workspace", [None, mc.Workspace()], ids=["fresh", "workspace"])
def test_a_pass_changes_only_gradients(make, shape, read_only, workspace):
    layer, declared = built(make, shape)
    x, dy = numbers((3, *shape)), numbers((3, *declared[1:]), seed=4)
    x.flags.writeable = dy.flags.writeable = not read_only
    values = [parameter.value.copy() for parameter in trained(layer)]
    before = x.copy(), dy.copy()
    ctx = context(workspace=workspace)
    y = layer.forward(x, ctx)
    forward = y.copy()
    layer.backward(dy, ctx)
    assert_same_bits(x, before[0])
    assert_same_bits(dy, before[1])
    assert_same_bits(y, forward)  # the next layer may have saved it
    for parameter, value in zip(trained(layer), values, strict=True):
        assert_same_bits(parameter.value, value)


def fortran(array):
    return np.asfortranarray(array)


def strided(array):
    return np.stack([array, -array], axis=-1)[..., 0]


def backwards(array):
    return np.ascontiguousarray(array[..., ::-1])[..., ::-1]


@every_layer
@each_type
@pytest.mark.parametrize("lay", [fortran, strided, backwards])
def test_memory_layout_changes_no_bit(make, shape, dtype, lay):
    layer, declared = built(make, shape, dtype)
    x, dy = numbers((3, *shape), dtype), numbers((3, *declared[1:]), dtype, seed=4)
    expected = forward_and_back(layer, x, dy)
    assert_same_pass(forward_and_back(layer, lay(x), lay(dy)), expected)


@every_layer
@each_type
def test_a_reused_workspace_equals_a_fresh_pass(make, shape, dtype):
    layer, _ = built(make, shape, dtype)
    x = numbers((3, *shape), dtype)
    fresh = forward_and_back(layer, x)
    workspace = mc.Workspace()
    larger = numbers((5, *shape), dtype, seed=6)
    forward_and_back(layer, larger, workspace=workspace)  # fills the buffers with other numbers
    assert_same_pass(forward_and_back(layer, x, workspace=workspace), fresh)
    assert_same_pass(forward_and_back(layer, x, workspace=workspace), fresh)
    smaller = x[:1]
    forward_and_back(layer, smaller, workspace=workspace)
    assert_same_pass(forward_and_back(layer, x, workspace=workspace), fresh)


@every_layer
@each_type
def test_threads_change_no_bit(make, shape, dtype):
    layer, _ = built(make, shape, dtype)
    x = numbers((35, *shape), dtype)  # many chunks, the last one short
    before = mc.get_num_threads()
    passes = []
    try:
        for count in (1, 2, 4):
            mc.set_num_threads(count)
            passes.append(forward_and_back(layer, x))
    finally:
        mc.set_num_threads(before)
    assert_same_pass(passes[1], passes[0])
    assert_same_pass(passes[2], passes[0])


@every_layer_of_rows
def test_rows_are_independent(make, shape):
    layer, declared = built(make, shape)
    x, dy = numbers((5, *shape)), numbers((5, *declared[1:]), seed=4)
    full = forward_and_back(layer, x, dy)
    parts = [
        forward_and_back(layer, x[rows], dy[rows], first_row=rows.start)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    assert_close(np.concatenate([part.y for part in parts]), full.y)
    assert_close(np.concatenate([part.dx for part in parts]), full.dx)
    for first, second, both in zip(*(part.grads for part in parts), full.grads, strict=True):
        assert_close(first + second, both)


@every_layer
def test_backward_overwrites_gradients(make, shape):
    layer, declared = built(make, shape)
    ctx = context()
    layer.forward(numbers((3, *shape)), ctx)
    dy = numbers((3, *declared[1:]), seed=4)
    results = []
    for garbage in (0, np.nan, 7):
        for parameter in trained(layer):
            parameter.grad[...] = garbage
        dx = layer.backward(dy, ctx).copy()
        results.append(Pass(dy, dx, [parameter.grad.copy() for parameter in layer.parameters]))
    assert_same_pass(results[1], results[0])
    assert_same_pass(results[2], results[0])


@every_layer
def test_without_dx_the_parameters_gradients_are_the_same(make, shape):
    layer, _ = built(make, shape)
    x = numbers((3, *shape))
    full = forward_and_back(layer, x)
    short = forward_and_back(layer, x, need_dx=False)
    assert short.dx is None
    assert_same_pass(short, full._replace(dx=None))


@every_layer
@each_type
def test_a_pass_that_saves_nothing_has_the_same_output(make, shape, dtype):
    layer, _ = built(make, shape, dtype)
    x = numbers((3, *shape), dtype)
    ctx = context(save=False)
    y = layer.forward(x, ctx)
    assert_same_bits(y, layer.forward(x, context()))
    assert_same_bits(y, layer.forward(x, context(save=False, workspace=mc.Workspace())))


@every_layer
def test_backward_needs_a_pass_that_saves(make, shape):
    layer, declared = built(make, shape)
    dy = numbers((3, *declared[1:]))
    ctx = context(save=False)
    layer.forward(numbers((3, *shape)), ctx)
    for nothing_saved in (ctx, context()):
        with pytest.raises(RuntimeError, match="call forward first, with a Context whose `save`"):
            layer.backward(dy, nothing_saved)


@every_layer
def test_a_gradient_of_another_shape_is_an_error(make, shape):
    """Kernels check no bounds: they would read and write outside of the arrays."""
    layer, declared = built(make, shape)
    ctx = context()
    layer.forward(numbers((3, *shape)), ctx)
    with pytest.raises(ValueError):
        layer.backward(numbers((2, *declared[1:])), ctx)


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda: Dense(3), (4,)),
        (lambda: Conv2D(3, 3), (5, 5, 1)),
        (lambda: MaxPooling2D(2), (4, 4, 1)),
        (lambda: Activation("relu"), (4,)),
        (lambda: Sequential([Conv2D(8, 3, activation="relu"), MaxPooling2D(2)]), (6, 6, 1)),
    ],
    ids=["dense", "conv2d", "max_pooling2d", "relu", "fused"],
)
def test_a_gradient_of_another_type_is_an_error(make, shape):
    layer, declared = built(make, shape)
    ctx = context()
    layer.forward(numbers((3, *shape)), ctx)
    with pytest.raises(TypeError, match=r"float32.* got .*float64"):
        layer.backward(numbers((3, *declared[1:]), np.float64), ctx)


@every_layer
def test_a_layer_keeps_no_state_of_a_pass(make, shape):
    layer, declared = built(make, shape)
    x, other = numbers((3, *shape)), numbers((2, *shape), seed=6)
    dy, other_dy = numbers((3, *declared[1:]), seed=4), numbers((2, *declared[1:]), seed=7)
    expected = forward_and_back(layer, x, dy), forward_and_back(layer, other, other_dy)
    contexts = context(), context()
    outputs = layer.forward(x, contexts[0]), layer.forward(other, contexts[1])
    for y, ctx, gradient, alone in zip(outputs, contexts, (dy, other_dy), expected, strict=True):
        dx = layer.backward(gradient, ctx)
        grads = [parameter.grad for parameter in layer.parameters]
        assert_same_pass(Pass(y, dx, grads), alone)


def trained(layer):
    """Return the parameters of a layer without the statistics, which forward changes."""
    return [parameter for parameter in layer.parameters if parameter._trainable]


def outputs_with(layer, x, array, index, values):
    """Return the outputs with one element of x or of a parameter set to each of the values."""
    before, outputs = array.flat[index], []
    for value in values:
        array.flat[index] = value
        outputs.append(layer.forward(x, context()).copy())
    array.flat[index] = before
    return outputs


@every_layer_of_rows
@each_type
def test_nan_reaches_every_output_that_depends_on_it(make, shape, dtype):
    """Outputs that a large number would change become NaN; other rows do not."""
    layer, _ = built(make, shape, dtype)
    x, rng = numbers((3, *shape), dtype), np.random.default_rng(8)
    y = layer.forward(x, context()).copy()
    row = x[0].size
    for array in (x, *(parameter.value for parameter in trained(layer))):
        start, stop = (row, 2 * row) if array is x else (0, array.size)
        for index in rng.integers(start, stop, size=8):
            low, high, seen = outputs_with(layer, x, array, index, (-1e3, 1e3, np.nan))
            reached = (low != y) | (high != y)
            assert np.isnan(seen[reached]).all()
            if array is x:
                assert_same_bits(seen[[0, 2]], y[[0, 2]])


@every_layer
@each_type
def test_nan_in_the_weights_is_seen_with_inputs_of_zero(make, shape, dtype):
    """Kernels may skip zeros, but 0 * NaN is NaN."""
    layer, _ = built(make, shape, dtype)
    x = np.zeros((3, *shape), dtype)
    for parameter in trained(layer):
        (seen,) = outputs_with(layer, x, parameter.value, np.s_[:], [np.nan])
        assert np.isnan(seen).any(axis=tuple(range(1, seen.ndim))).all()


@every_layer
def test_an_empty_batch_has_an_empty_output(make, shape):
    layer, declared = built(make, shape)
    y = layer.forward(np.zeros((0, *shape), np.float32), mc.Context(save=False))  # as in predict
    assert y.shape == (0, *declared[1:])


@every_layer
def test_gradients_match_finite_differences(make, shape):
    report = mc.check_gradients(make(), (2, *shape), training=True, entries=40)
    assert report.ok, report
    assert report.skipped == 0


@every_layer
def test_float32_is_close_to_float64(make, shape):
    single, declared = built(make, shape, np.float32)
    double, _ = built(make, shape, np.float64)
    for one, other in zip(single.parameters, double.parameters, strict=True):
        other.value[...] = one.value
    x, dy = numbers((3, *shape)), numbers((3, *declared[1:]), seed=4)
    actual = forward_and_back(single, x, dy)
    expected = forward_and_back(double, x.astype(np.float64), dy.astype(np.float64))
    assert_close(actual.y, expected.y)
    assert_close(actual.dx, expected.dx)
    for one, other in zip(actual.grads, expected.grads, strict=True):
        assert_close(one, other)


@every_layer
def test_parameters_carry_the_name_of_the_layer(make, shape):
    layer, _ = built(make, shape)
    names = [parameter.name for parameter in layer.parameters]
    assert len(set(names)) == len(names)
    if not isinstance(layer, Sequential):
        assert all(name.startswith(f"{layer.kind}/") for name in names)


@every_layer
def test_start_values_follow_the_seed(make, shape):
    first, second, third = make(), make(), make()
    first.build((None, *shape), rng=5)
    second.build((None, *shape), rng=np.random.default_rng(5))
    third.build((None, *shape), rng=6)
    for one, same, other in zip(
        first.parameters, second.parameters, third.parameters, strict=True
    ):
        assert_array_equal(one.value, same.value)
        assert one.key not in ("kernel", "factor") or (one.value != other.value).any()


@every_layer
def test_inputs_that_are_not_as_built_are_errors(make, shape):
    layer = make()
    x = numbers((3, *shape))
    with pytest.raises(RuntimeError, match=r"call build\(input_shape, rng\) before forward"):
        layer.forward(x, context())
    layer.build((None, *shape), rng=0)
    label = layer.label
    with pytest.raises(ValueError, match=f"{label}: built for inputs of shape .* got"):
        layer.forward(numbers((3, *shape[:-1], shape[-1] + 1)), context())
    with pytest.raises(ValueError, match=f"{label}: built for inputs of shape .* got"):
        layer.forward(x[0], context())
    with pytest.raises(TypeError, match=f"{label}: built for float32, got float64; convert"):
        layer.forward(x.astype(np.float64), context())
    with pytest.raises(TypeError, match=f"{label}: built for float32, got uint8; .* 255"):
        layer.forward((x * 9).astype(np.uint8), context())
    with pytest.raises(TypeError, match=f"{label}: `inputs` must be a NumPy array, got "):
        layer.forward(x.tolist(), context())


@every_layer
def test_invalid_shapes_and_types_are_errors_at_build(make, shape):
    with pytest.raises(TypeError, match=r"must be float32 or float64, got int64; .* 255"):
        make().build((None, *shape), rng=0, dtype=np.int64)
    with pytest.raises(TypeError, match=r"must be float32 or float64, got .*float16"):
        make().build((None, *shape), rng=0, dtype=np.float16)
    with pytest.raises(ValueError, match="only the batch may be unknown"):
        make().build((None, *shape[:-1], None), rng=0)


@pytest.mark.parametrize(("layer", "shape"), [
    (Conv2D(2, 3), (None, 2, 2, 1)),  # smaller than the window
    (Dense(3), (None,)),
    (Dense(3, bias_initializer=lambda shape, rng, dtype: np.zeros(4)), (None, 5)),
])
def test_a_build_that_fails_leaves_the_layer_as_it_was(layer, shape):
    before = vars(layer).copy()
    with pytest.raises(ValueError):
        layer.build(shape, 0)
    assert vars(layer) == before
    with pytest.raises(RuntimeError, match="call build"):
        layer.forward(np.zeros((1, 5), np.float32), mc.Context())


def test_a_model_that_fails_to_build_leaves_its_layers_as_they_were():
    model = mc.Sequential([Flatten(), Dense(4, activation=Dropout(0.5)), Conv2D(2, 3)])
    ops = list(parts(model))
    assert len(ops) == 5
    before = [vars(op).copy() for op in ops]
    with pytest.raises(ValueError, match="must have 4 dimensions"):
        model.build((None, 6, 6, 1), 0)
    assert [vars(op) for op in ops] == before


def test_every_layer_is_in_the_table():
    listed = {type(make()) for _, make, _ in TABLE}
    public = {getattr(mc.layers, name) for name in mc.layers.__all__}
    classes = {cls for cls in public if inspect.isclass(cls) and issubclass(cls, mc.Op)}
    layers = classes - {mc.layers.Layer}
    assert layers == listed & layers
