"""Layers that were built before keep their values in a new model or graph."""

import logging

import numpy as np
import pytest
from layers.passes import numbers
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.core.op import forget
from minicnn.layers import Activation, Conv2D, Dense, Dropout, Flatten, MaxPooling2D, Sequential

SHAPE = (None, 6, 6, 2)


def small_cnn():
    model = Sequential([
        Conv2D(4, 3, activation="relu"), MaxPooling2D(2), Flatten(), Dense(8), Dense(3),
    ])
    model.build(SHAPE, rng=0)
    return model


def values(model):
    return [parameter.value.copy() for parameter in model.parameters]


def assert_same(parameters, before):
    for parameter, value in zip(parameters, before, strict=True):
        assert_same_bits(parameter.value, value)


def images():
    return numbers((3, 6, 6, 2))


class Scale(mc.Op):
    """An op with a parameter that is not a layer."""

    def build(self, input_shape, rng, dtype=np.float32):
        rng = np.random.default_rng(rng)
        self.factor = mc.Parameter(f"{self.label}/factor", rng.random(input_shape[-1], dtype))
        return input_shape

    def forward(self, x, ctx):
        return x * self.factor.value


class Residual(mc.layers.Layer):
    """A layer with a parameter and another layer inside."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def build(self, input_shape, rng, dtype=np.float32):
        shape = super().build(input_shape, rng, dtype)
        self.share = self.add_parameter("share", np.ones((), dtype))
        return self.build_part(self.inner, shape, rng)

    def named(self, name):
        self.name = name
        return self

    def forward(self, x, ctx):
        return x + self.share.value * self.inner.forward(x, ctx)


# The same inputs: nothing changes


def test_a_part_of_a_model_keeps_its_values_with_one_warning(caplog):
    model = small_cnn()
    before, y = values(model), model.predict(images())
    part = Sequential(model.layers[:2])
    caplog.clear()
    assert part.build(SHAPE, rng=1) == (None, 2, 2, 4)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "conv2d, built before, keep" in caplog.text
    assert "reset_parameters(rng)" in caplog.text
    assert_same(model.parameters, before)
    assert_same_bits(model.predict(images()), y)


def test_a_cell_that_is_run_twice_changes_nothing(caplog):
    model = small_cnn()
    model.layers[0].kernel.value[...] = 2
    before, parameters = values(model), model.parameters
    with caplog.at_level(logging.WARNING):
        assert model.build(SHAPE, rng=0) == (None, 3)
    assert len(caplog.records) == 1
    assert model.parameters == parameters
    assert_same(model.parameters, before)


def test_a_new_head_on_old_layers_draws_values_for_the_head_alone(caplog):
    model = small_cnn()
    before = values(model)
    fresh = Sequential([*model.layers[:4], Dense(5)])
    with pytest.raises(RuntimeError, match="call build"):
        fresh.predict(images())
    fresh.build(SHAPE, rng=7)
    assert_same(model.parameters, before)
    assert fresh.predict(images()).shape == (3, 5)
    alone = Dense(5)
    alone.build((None, 8), rng=7)
    assert_same_bits(fresh.layers[-1].kernel.value, alone.kernel.value)
    assert [p.name for p in fresh.parameters][-2:] == ["dense_1/kernel", "dense_1/bias"]


def test_fit_warns_of_them_once(caplog):
    model = small_cnn()
    before = values(model)[:2]
    fresh = Sequential([*model.layers[:4], Dense(3)])
    with pytest.raises(ValueError, match="outside the classes"):
        fresh.fit(images(), [0, 1, 9], verbose=False)
    assert fresh.input_shape is fresh.layers[-1].input_shape is None  # as before
    assert_same(model.parameters[:2], before)
    caplog.clear()
    fresh.fit(images(), [0, 1, 2], validation_data=(images(), [0, 1, 2]), steps=1, verbose=False)
    assert len([text for text in caplog.messages if "built before, keep" in text]) == 1


def test_without_an_rng_there_is_no_warning(caplog):
    model = small_cnn()
    assert model.build(SHAPE, rng=None) == (None, 3)
    assert caplog.records == []
    with pytest.raises(TypeError, match="`rng` must be"):
        Sequential([*model.layers, Dense(2)]).build(SHAPE, rng=None)


def test_the_first_build_and_a_graph_do_not_warn(caplog):
    model = small_cnn()
    model(mc.Graph().placeholder("x", SHAPE, np.float32))
    assert caplog.records == []


@pytest.mark.parametrize("make", [
    lambda op: Sequential([op, Flatten()]), lambda op: Residual(op), lambda op: Activation(op),
    lambda op: Dense(6, activation=op), lambda op: Sequential([Sequential([op])]),
])
@pytest.mark.parametrize("new", [
    lambda: Dense(6, name="inner"), lambda: Scale(), lambda: Sequential([Dense(6, name="inner")]),
    lambda: Residual(Dense(6)).named("inner"),
])
def test_models_and_layers_keep_the_values_of_ops_inside(make, new):
    op = new()
    op.build((None, 6), rng=0)
    before = values(op)
    made = make(op)
    made.build((None, 6), rng=1)
    assert_same(op.parameters, before)
    y = mc.Graph().placeholder("x", (None, 6), np.float32)
    make(op)(y)
    assert_same(op.parameters, before)


def test_an_op_without_values_may_be_used_for_other_inputs():
    softmax = mc.ops.Softmax()
    assert Sequential([Dense(3), softmax]).build((None, 2), rng=0) == (None, 3)
    assert Sequential([Dense(4), softmax]).build((None, 2), rng=0) == (None, 4)


def test_check_gradients_keeps_the_values_of_a_built_model():
    model = small_cnn()
    before = values(model)
    assert mc.check_gradients(model, (2, 6, 6, 2), entries=5).ok
    assert_same(model.parameters, before)


# Usable at once


def test_a_model_of_built_layers_is_usable_at_once():
    model = small_cnn()
    head = Sequential(model.layers[2:])
    body = Sequential(model.layers[:2])
    assert_same_bits(head.predict(body.predict(images())), model.predict(images()))
    assert body.summary().splitlines()[2].split()[0] == "conv2d"
    both = Sequential([body, head])
    assert_same_bits(both.predict(images()), model.predict(images()))


def test_a_model_whose_layers_a_graph_has_built_is_usable_at_once():
    model = Sequential([Flatten(), Dense(3), mc.ops.Relu()])
    model(mc.Graph(rng=0).placeholder("x", SHAPE, np.float32))
    before = values(model)
    assert model.predict(images().astype(np.float64)).shape == (3, 3)
    assert_same(model.parameters, before)
    assert "dense" in model.summary()


def test_two_built_layers_without_names_get_different_names():
    layers = [Dense(4), Dense(4)]
    for layer in layers:
        layer.build((None, 4), rng=0)
    model = Sequential(layers, name="net")
    assert [p.name for p in model.parameters] == [
        "net/dense/kernel", "net/dense/bias", "net/dense_1/kernel", "net/dense_1/bias",
    ]
    assert model.predict(np.ones((1, 4))).shape == (1, 4)


def test_the_parameters_of_a_layer_follow_its_name():
    first, second = small_cnn(), small_cnn()
    body, head = first.layers[:4], second.layers[4:]
    head[0].name = "dense"
    both = Sequential([*body, *head])
    with pytest.raises(ValueError, match="two parameters are called 'dense/kernel'; set the `n"):
        both.predict(images())
    head[0].name = "head"
    assert both.predict(images()).shape == (3, 3)
    assert [p.name for p in both.parameters][-2:] == ["head/kernel", "head/bias"]


def test_models_whose_layers_have_the_same_names():
    models = []
    for rng in (0, 1):
        models.append(Sequential([Dense(4)]))
        models[-1].build((None, 4), rng)
    both = Sequential(models)
    with pytest.raises(ValueError, match="two parameters are called 'dense/kernel'; set the"):
        both.build((None, 4), rng=0)
    models[1].layers[0].name = "second"
    assert both.predict(np.ones((1, 4))).shape == (1, 4)


# Other inputs


@pytest.mark.parametrize(("shape", "dtype"), [
    ((None, 8, 8, 2), np.float32), ((None, 6, 6, 1), np.float32), (SHAPE, np.float64),
])
def test_a_model_for_other_inputs_is_an_error(shape, dtype):
    model = small_cnn()
    before = values(model)
    part = Sequential(model.layers[:4])
    with pytest.raises(ValueError, match=r"^conv2d: built for .*\(None, 6, 6, 2\) and type float32,"
                                         r" got .*; make new layers"):
        part.build(shape, rng=0, dtype=dtype)
    assert_same(model.parameters, before)


def test_layers_that_do_not_fit_each_other_raise_at_first_use():
    first, second = Dense(3), Dense(3, name="second")
    first.build((None, 4), rng=0)
    second.build((None, 4), rng=0)
    model = Sequential([first, second])
    for use in (lambda: model.predict(np.ones((1, 4))), lambda: model.build((None, 4), rng=0)):
        with pytest.raises(ValueError, match=r"second: built for .*\(None, 4\).*got \(None, 3\)"):
            use()


def test_a_graph_for_other_inputs_is_an_error():
    layer = Dense(3, name="mine")
    layer.build((None, 4), rng=0)
    for shape, dtype in [((None, 5), np.float32), ((None, 4), np.float64)]:
        x = mc.Graph().placeholder("x", shape, dtype)
        with pytest.raises(ValueError, match=r"^mine: built for.*; make new layers"):
            layer(x)


def test_inputs_that_no_layer_takes_give_the_usual_error():
    model = small_cnn()
    x = mc.Graph().placeholder("x", SHAPE, np.uint8)
    with pytest.raises(TypeError, match=r"conv2d: `inputs` must be float32 or float64, got uint8"):
        model(x)
    x = mc.Graph().placeholder("x", (None, 72), np.float32)
    with pytest.raises(ValueError, match=r"conv2d: `inputs` must have 4 dimensions.*reshape to"):
        model(x)


def test_layers_without_parameters_are_kept_too():
    model = small_cnn()
    y = model.predict(images())
    with pytest.raises(ValueError, match=r"max_pooling2d: built for .*\(None, 4, 4, 4\)"):
        Sequential([model.layers[1]]).build((None, 8, 8, 4), rng=0)
    assert_same_bits(model.predict(images()), y)


# reset_parameters


@pytest.mark.parametrize("make", [
    small_cnn,
    lambda: Sequential([Flatten(), Residual(Dense(72, name="inner")), Dropout(0.5), Dense(2)]),
])
def test_reset_parameters_draws_what_build_draws_into_the_same_arrays(make):
    model = make()
    model.build(SHAPE, rng=None if model.input_shape else 0)
    parameters, arrays = model.parameters, [p.value for p in model.parameters]
    model.reset_parameters(rng=5)
    assert all(new is old for new, old in zip(model.parameters, parameters, strict=True))
    assert all(p.value is array for p, array in zip(parameters, arrays, strict=True))
    fresh = make()
    forget(fresh)
    fresh.build(SHAPE, rng=5)
    for parameter, other in zip(parameters, fresh.parameters, strict=True):
        assert_same_bits(parameter.value, other.value)
    assert_same_bits(model.predict(images()), fresh.predict(images()))


def test_reset_parameters_of_a_layer_that_was_not_built():
    model = Sequential([Dense(2)])
    with pytest.raises(RuntimeError, match=r"sequential: not built yet; call build"):
        model.reset_parameters(rng=0)


def test_reset_parameters_that_fails_changes_nothing():
    model = small_cnn()
    before, y = values(model), model.predict(images())
    model.layers[-1].bias.value.flags.writeable = False
    with pytest.raises(ValueError, match="dense_1/bias: the array `value` is read-only"):
        model.reset_parameters(rng=1)
    assert_same(model.parameters, before)
    assert_same_bits(model.predict(images()), y)


def test_a_build_that_fails_restores_the_names_of_parameters():
    layer = Dense(4)
    layer.build((None, 4), rng=0)
    with pytest.raises(ValueError, match="must have 4 dimensions"):
        Sequential([layer, Conv2D(2, 3)], name="net").build((None, 4), rng=0)
    assert (layer.name, layer.kernel.name) == (None, "dense/kernel")


class Several(mc.layers.Layer):
    """A layer whose parameters are named in three ways."""

    def build(self, input_shape, rng, dtype=np.float32):
        shape = super().build(input_shape, rng, dtype)
        self.deep = self.add_parameter("gate/kernel", np.ones(1, dtype))
        self.full = mc.Parameter(f"{self.label}/bias", np.ones(1, dtype))
        self.free = mc.Parameter("another/bias", np.ones(1, dtype))
        return shape


def test_a_parameter_knows_its_part_of_the_name():
    layer = Several()
    layer.build((None, 2), rng=0)
    assert [p.name for p in layer.parameters] == [
        "several/gate/kernel", "several/bias", "another/bias",
    ]
    layer.name = "net/first"
    assert [(p.scope, p.key) for p in layer.parameters] == [
        ("net/first", "gate/kernel"), ("net/first", "bias"), ("another", "bias"),
    ]
    layer.name = None
    assert [p.name for p in layer.parameters] == [
        "several/gate/kernel", "several/bias", "another/bias",
    ]


@pytest.mark.parametrize("name", ["w", "/w", "w/", "a/b/w"])
def test_a_parameter_has_the_name_that_it_was_given(name):
    assert mc.Parameter(name, np.ones(1, np.float32)).name == name
