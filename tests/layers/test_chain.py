"""Chain and Sequential: names, errors, the summary, predict, and models in models."""

import numpy as np
import pytest
from layers.passes import assert_same_pass, context, forward_and_back, numbers
from numpy.testing import assert_array_equal
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.layers import Activation, Conv2D, Dense, Dropout, Flatten, MaxPooling2D, Sequential


def small_cnn(**options):
    return Sequential(
        [
            Conv2D(4, 3, padding="same", activation="relu"),
            MaxPooling2D(2),
            Conv2D(6, 3, padding="same"),
            Activation("relu"),
            Flatten(),
            Dense(8, activation="relu"),
            Dropout(0.4),
            Dense(3),
        ],
        **options,
    )


def built(model, shape, seed=0, dtype=np.float32):
    model.build((None, *shape), rng=seed, dtype=dtype)
    return model


def names(model):
    return [parameter.name for parameter in model.parameters]


# One after the other


def test_it_runs_its_layers_one_after_the_other():
    model = built(small_cnn(fuse=False), (6, 6, 2))
    x, ctx = numbers((3, 6, 6, 2)), context()
    expected = x
    for layer in model.layers:
        expected = layer.forward(expected, ctx)
    dy = numbers(expected.shape, seed=1)
    dx = dy
    for layer in reversed(model.layers):
        dx = layer.backward(dx, ctx)
    grads = [parameter.grad.copy() for parameter in model.parameters]
    result = forward_and_back(model, x, dy)
    assert_same_bits(result.y, expected)
    assert_same_bits(result.dx, dx)
    for one, other in zip(result.grads, grads, strict=True):
        assert_same_bits(one, other)


def test_build_returns_the_shape_of_the_last_layer_and_builds_in_order():
    model = small_cnn()
    assert model.build((32, 6, 6, 2), rng=0) == (None, 3)  # whatever the batch
    rng = np.random.default_rng(0)
    alone = Conv2D(4, 3, padding="same")
    alone.build((None, 6, 6, 2), rng)
    assert_array_equal(model.layers[0].kernel.value, alone.kernel.value)
    second = Conv2D(6, 3, padding="same")
    second.build((None, 3, 3, 4), rng)  # continues with the same generator
    assert_array_equal(model.layers[2].kernel.value, second.kernel.value)


def test_layers_may_be_any_iterable():
    model = built(Sequential(Dense(size) for size in (4, 2)), (3,))
    assert [p.shape for p in model.parameters] == [(3, 4), (4,), (4, 2), (2,)]


def test_a_step_of_training_lowers_the_loss():
    model = built(small_cnn(), (6, 6, 2))
    x, labels, rng = numbers((8, 6, 6, 2)), np.arange(8) % 3, np.random.default_rng(0)
    sgd = mc.optimizers.SGD(0.1)
    losses = []
    for _ in range(30):
        ctx = mc.Context(training=True, rng=rng)
        logits = model.forward(x, ctx)
        loss, dlogits = mc.losses.softmax_cross_entropy_with_grad(labels=labels, logits=logits)
        model.backward(dlogits, ctx)
        sgd.step(model.parameters)
        losses.append(loss)
    assert losses[-1] < 0.9 * losses[0]


# Names


def test_default_names_count_by_class():
    model = built(small_cnn(), (6, 6, 2))
    assert [layer.name for layer in model.layers] == [
        "conv2d",
        "max_pooling2d",
        "conv2d_1",
        "activation",
        "flatten",
        "dense",
        "dropout",
        "dense_1",
    ]
    assert names(model) == [
        f"{layer}/{part}"
        for layer in ("conv2d", "conv2d_1", "dense", "dense_1")
        for part in ("kernel", "bias")
    ]


def test_default_names_avoid_those_that_are_taken():
    model = built(Sequential([Dense(2), Dense(2, name="dense"), Dense(2)]), (2,))
    assert [layer.name for layer in model.layers] == ["dense_1", "dense", "dense_2"]


def test_the_name_of_a_model_is_the_prefix_of_its_layers_names():
    model = built(Sequential([Dense(2), Dense(2)], name="head"), (2,))
    assert names(model)[::2] == ["head/dense/kernel", "head/dense_1/kernel"]


def test_models_in_models_have_names_too():
    model = built(
        Sequential([Sequential([Dense(2)]), Sequential([Dense(2)]), Sequential([Dense(2)], "x")]),
        (2,),
    )
    assert names(model)[::2] == [
        "sequential/dense/kernel",
        "sequential_1/dense/kernel",
        "x/dense/kernel",
    ]


# Invalid models


def test_the_same_layer_twice_is_an_error():
    layer = Dense(2)
    with pytest.raises(ValueError, match="the same layer twice; make a second one"):
        Sequential([layer, Activation("relu"), layer])


NESTED = [
    lambda layer: [layer, Sequential([layer])],
    lambda layer: [Sequential([layer]), Sequential([layer])],
    lambda layer: [Sequential([Sequential([layer])]), layer],
]


@pytest.mark.parametrize("nest", NESTED, ids=["beside", "in two", "deep"])
def test_the_same_layer_twice_is_found_in_models_in_models(nest):
    with pytest.raises(ValueError, match="twice"):
        built(Sequential(nest(Dense(2))), (2,))


def test_one_activation_may_serve_two_layers_or_is_an_error():
    shared = mc.ops.Tanh()
    model = Sequential([Dense(3, activation=shared), Dense(3, activation=shared)])
    try:
        built(model, (3,))
    except ValueError as error:
        assert "twice" in str(error)
    else:
        report = mc.check_gradients(model, (2, 3))
        assert report.ok, report


def test_the_same_name_twice_is_an_error():
    with pytest.raises(ValueError, match="two parameters are called 'a/kernel'; set the `name`"):
        built(Sequential([Dense(2, name="a"), Dense(2, name="a")]), (2,))


def test_parameters_of_models_in_models_never_share_a_name():
    parts = [Sequential([Dense(2, name="a")]) for _ in range(2)]
    model = Sequential([*parts, Sequential([Dense(2, name="a")], name="x")])
    try:
        built(model, (2,))
    except ValueError as error:
        assert "name" in str(error)
    else:
        assert len(set(names(model))) == len(names(model)) == 6


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([Dense], TypeError, "got <class 'minicnn.layers.dense.Dense'>"),
        (["dense"], TypeError, "got 'dense'"),
        ([Dense(2), None], TypeError, "got None"),
        ([mc.relu], TypeError, "got <function relu"),
        (Dense(2), TypeError, "`layers` must"),
    ],
)
def test_layers_that_are_not_layers_are_quoted(layers, error, message):
    with pytest.raises(error) as caught:
        Sequential(layers)
    assert message in str(caught.value)
    assert "`layers` must" in str(caught.value)


def test_errors_name_the_layer_that_does_not_fit():
    model = Sequential([Conv2D(2, 3), MaxPooling2D(2), Conv2D(2, 3), Conv2D(2, 3)])
    with pytest.raises(ValueError, match=r"conv2d_1: a window of \(3, 3\)"):
        model.build((None, 6, 6, 1), rng=0)
    with pytest.raises(ValueError, match=r"conv2d: `inputs` must have 4 dim.*got \(None, 36\)"):
        Sequential([Conv2D(2, 3)]).build((None, 36), rng=0)
    with pytest.raises(ValueError, match=r"max_pooling2d: .* got \(None, 4\)"):
        Sequential([Dense(4), MaxPooling2D(2)]).build((None, 36), rng=0)


def test_a_model_that_is_not_built_is_an_error():
    model, x = Sequential([Dense(2)]), numbers((1, 3))
    for use in (
        lambda: model.forward(x, mc.Context()),
        lambda: model.backward(x, mc.Context()),
        lambda: model.predict(x),
        lambda: model(x),
    ):
        with pytest.raises(RuntimeError, match=r"call (build\(input_shape, rng\)|forward first)"):
            use()


def test_dropout_in_training_needs_a_generator():
    model = built(small_cnn(), (6, 6, 2))
    with pytest.raises(ValueError, match=r"dropout: .* Context\(training=True, rng="):
        model.forward(numbers((1, 6, 6, 2)), mc.Context(training=True))


@pytest.mark.parametrize("rng", [None, "0", -1, 1.5, True, np.random.RandomState(0)])
def test_start_values_need_a_generator_or_a_seed(rng):
    with pytest.raises(TypeError, match=r"`rng` must be a numpy.random.Generator or a seed"):
        Sequential([Dense(2)]).build((None, 3), rng=rng)


# Summary


def test_summary_of_the_documented_network():
    model = Sequential(
        [
            Conv2D(32, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Conv2D(64, 5, padding="same", activation="relu"),
            MaxPooling2D(2),
            Flatten(),
            Dense(1024, activation="relu"),
            Dropout(0.4),
            Dense(10, name="logits"),
        ]
    )
    built(model, (28, 28, 1))
    assert model.summary().splitlines() == [
        "layer            output shape        parameters",
        "---------------  ------------------  ----------",
        "conv2d           (None, 28, 28, 32)         832",
        "max_pooling2d    (None, 14, 14, 32)           0",
        "conv2d_1         (None, 14, 14, 64)      51,264",
        "max_pooling2d_1  (None, 7, 7, 64)             0",
        "flatten          (None, 3136)                 0",
        "dense            (None, 1024)         3,212,288",
        "dropout          (None, 1024)                 0",
        "logits           (None, 10)              10,250",
        "total: 3,274,634 parameters, 13.1 MB",
    ]
    assert str(model) == model.summary()


def test_summary_of_a_model_that_is_not_built():
    model = Sequential([Conv2D(2, 3), Flatten(), Dense(2)])
    expected = "conv2d\nflatten\ndense\nnot built yet: build or fit does that"
    assert str(model) == model.summary() == expected
    two = built(Sequential([Conv2D(2, 3), Flatten()]), (4, 4, 1)).layers
    wrong = Sequential([*two, built(Dense(2), (5,))])  # 8 inputs: it cannot be built
    assert str(wrong).splitlines()[-1] == expected.splitlines()[-1]


def test_a_notebook_shows_the_summary():
    model = built(Sequential([Dense(2, name="a<b")]), (3,))
    assert model._repr_html_() == f"<pre>{model.summary().replace('<', '&lt;')}</pre>"


# Layers of a model


def test_layers_by_position():
    model = built(small_cnn(), (6, 6, 2))
    layers = model.layers
    assert len(model) == len(layers)
    assert list(model) == layers
    assert model[0] is layers[0] and model[-1] is layers[-1]
    with pytest.raises(IndexError):
        model[len(layers)]


def test_a_slice_is_a_model_of_the_same_layers():
    model = built(small_cnn(), (6, 6, 2))
    body = model[:-1]
    assert type(body) is Sequential
    assert body.layers == model.layers[:-1]
    x = numbers((3, 6, 6, 2))
    assert_same_bits(model[-1].forward(body.predict(x), mc.Context()), model.predict(x))
    assert built(Sequential([Dense(2), Dense(2)], fuse=False), (3,))[1:].fuse is False


@pytest.mark.parametrize("fuse", [True, False])
def test_add_keeps_the_values_of_the_other_layers(fuse):
    model = Sequential(fuse=fuse)
    with pytest.raises(ValueError, match="sequential: `layers` must hold at least one layer"):
        model.build((None, 3), rng=0)
    model.add(Dense(4, activation="relu"))
    assert model.build((None, 3), rng=0) == (None, 4)
    kernel, x = model[0].kernel, numbers((5, 3))
    before = kernel.value.copy()
    hidden = model.predict(x)
    model.add(Dense(2))
    with pytest.raises(RuntimeError, match=r"call build\(input_shape, rng\)"):
        model.predict(x)
    with pytest.raises(RuntimeError, match="call build"):
        model.backward(numbers((5, 2)), mc.Context())
    assert model.build((None, 3), rng=1) == (None, 2)
    assert model[0].kernel is kernel and np.array_equal(kernel.value, before)
    assert_same_bits(model.predict(x), model[1](hidden))
    assert names(model) == ["dense/kernel", "dense/bias", "dense_1/kernel", "dense_1/bias"]


def test_add_of_a_built_layer_needs_no_build():
    model = built(Sequential([Dense(4)]), (3,))
    model.add(built(Dense(2), (4,)))
    assert model.predict(numbers((5, 3))).shape == (5, 2)


def test_add_refuses_what_is_not_a_new_layer():
    model = built(Sequential([Dense(4)]), (3,))
    with pytest.raises(TypeError, match=r"`layer` must be layers such as .* got 'dense'"):
        model.add("dense")
    with pytest.raises(ValueError, match="the same layer twice; make a second one"):
        model.add(model[0])
    assert len(model) == 1 and model.predict(numbers((1, 3))).shape == (1, 4)


# Predict


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100, np.int64(2)])
def test_predict_does_not_depend_on_the_batch_size(batch_size):
    model = built(small_cnn(), (6, 6, 2))
    x = numbers((7, 6, 6, 2))
    y = model.predict(x, batch_size=batch_size)
    assert y.shape == (7, 3)
    assert y.dtype == np.float32
    assert_close(y, model.forward(x, mc.Context()))


def test_predict_drops_nothing_and_repeats():
    model = built(small_cnn(), (6, 6, 2))
    x = numbers((3, 6, 6, 2))
    assert_same_bits(model.predict(x), model.predict(x), model.forward(x, mc.Context()))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("of_the_model", [np.float32, np.float64])
def test_predict_converts_floats(dtype, of_the_model):
    model = built(Sequential([Dense(2)]), (3,), dtype=of_the_model)
    x = np.array([[0.5, -1, 2]], dtype)
    y = model.predict(x)
    assert y.dtype == of_the_model
    assert_same_bits(y, model.predict(x.astype(of_the_model)), model.predict(x.tolist()))


def test_predict_returns_a_new_array():
    model = built(Sequential([Flatten(), Dropout(0.5)]), (3,))
    x = numbers((2, 3))
    y = model.predict(x)
    assert_same_bits(y, x)
    assert not np.shares_memory(x, y)


def test_predict_of_no_rows_has_no_rows():
    for model in (small_cnn(), small_cnn(fuse=False)):
        y = built(model, (6, 6, 2)).predict(np.zeros((0, 6, 6, 2), np.float32))
        assert (y.shape, y.dtype) == ((0, 3), np.float32)


def test_wrong_arguments_of_predict():
    model = built(Sequential([Dense(2)]), (3,))
    with pytest.raises(TypeError, match=r"sequential: built for float32, got uint8; .* / 255"):
        model.predict(np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"built for inputs of shape \(None, 3\), got \(1, 4\)"):
        model.predict(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"built for inputs of shape \(None, 3\), got \(3,\)"):
        model.predict(np.zeros(3))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        model.predict(np.zeros((1, 3)), batch_size=0)


# As a function


def test_called_on_an_array_it_computes():
    model = built(small_cnn(), (6, 6, 2))
    x = numbers((2, 6, 6, 2))
    assert_same_bits(model(x), model.predict(x))


def test_called_on_a_tensor_every_layer_is_a_node():
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 6, 6, 2), np.float32)
    y = small_cnn()(x)
    assert y.shape == (None, 3)
    assert list(graph.tensors) == [
        "x",
        "conv2d",
        "max_pooling2d",
        "conv2d_1",
        "activation",
        "flatten",
        "dense",
        "dropout",
        "dense_1",
    ]


def test_float64_is_trained_in_float64():
    model = built(small_cnn(), (6, 6, 2), dtype=np.float64)
    result = forward_and_back(model, numbers((2, 6, 6, 2), np.float64))
    assert {a.dtype for a in (result.y, result.dx, *result.grads)} == {np.dtype(np.float64)}
    assert_same_pass(forward_and_back(model, numbers((2, 6, 6, 2), np.float64)), result)


class Twice(Sequential):
    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)

    def backward(self, dy, ctx, need_dx=True):
        return super().backward(2 * dy, ctx, need_dx)


def test_a_model_with_an_own_forward_is_one_op_of_a_graph():
    model = built(Twice([Dense(3), Dense(2)]), (4,))
    graph = mc.Graph()
    x = numbers((5, 4))
    inputs = graph.placeholder("x", (None, 4), np.float32)
    outputs = model(inputs)
    values = graph.plan([outputs]).forward({inputs: x}, mc.Context())
    assert_same_bits(values[outputs], model.predict(x))


def test_sequential_is_found_among_the_layers():
    assert mc.layers.Sequential is mc.Sequential
    with pytest.raises(AttributeError, match="no attribute 'Sequentia'"):
        mc.layers.Sequentia  # noqa: B018
