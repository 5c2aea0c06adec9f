"""What a newcomer types first works, or is answered with what to type instead."""

import inspect
import json
import re

import numpy as np
import pytest

import minicnn as mc
from minicnn.core import hints

# Names of other libraries -------------------------------------------------------------------------


@pytest.mark.parametrize("path, answer", [
    ("layers.Linear", "mc.layers.Dense(units)"),
    ("layers.Conv2d", "mc.layers.Conv2D(filters, kernel_size)"),
    ("layers.BatchNorm2d", "mc.layers.BatchNormalization()"),
    ("layers.MaxPool2d", "mc.layers.MaxPooling2D(pool_size)"),
    ("nn.CrossEntropyLoss", "mc.layers and mc.losses"),
    ("losses.CrossEntropyLoss", "mc.losses.softmax_cross_entropy"),
    ("CrossEntropyLoss", "mc.losses.softmax_cross_entropy"),
    ("optim", "mc.optimizers"),
    ("optimizers.Momentum", "mc.optimizers.SGD(learning_rate, momentum=0.9)"),
    ("callbacks", "mc.hooks"),
    ("utils", "mc.one_hot(y, depth)"),
    ("datasets.MNIST", 'mc.datasets.load_dataset("mnist")'),
    ("datasets.mnist.load_data", 'mc.datasets.load_dataset("mnist")'),
    ("hooks.ModelCheckpoint", "model_dir"),
    ("random", "mc.RunConfig(seed=0)"),
])
def test_a_name_of_another_library(path, answer):
    thing = mc
    with pytest.raises(AttributeError) as caught:
        for name in path.split("."):
            thing = getattr(thing, name)
    assert answer in str(caught.value)
    assert caught.value.obj is None  # Python would add "Did you mean", and a name like it


def test_a_name_that_nobody_knows():
    with pytest.raises(AttributeError, match="has no attribute 'Sponge'") as caught:
        _ = mc.layers.Sponge
    assert str(caught.value) == "module 'minicnn.layers' has no attribute 'Sponge'"
    assert not hasattr(mc.layers, "__wrapped__")


def model():
    built = mc.Sequential([
        mc.layers.Conv2D(2, 3, activation="relu"), mc.layers.Flatten(), mc.layers.Dense(3),
    ])
    built.build((None, 6, 6, 1), rng=0)
    return built


@pytest.mark.parametrize("name, answer", [
    ("compile", "leave it out: fit takes the optimizer"), ("state_dict", "mc.save_weights("),
    ("load_state_dict", "mc.load_weights("), ("eval", "leave it out: fit trains"),
    ("cuda", "everything runs on the CPU"),
])
def test_a_method_that_models_of_other_libraries_have(name, answer):
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute") as caught:
        getattr(model(), name)
    assert answer in str(caught.value)


@pytest.mark.parametrize("thing, name, answer", [
    (mc.layers.Dense(2), "weight", "kernel.value"),
    (mc.layers.Dense(2), "kernel", "build the layer first"),
    (mc.optimizers.SGD(0.1), "zero_grad", "backward overwrites the gradients"),
    (mc.Parameter("w", np.zeros(3)), "numpy", "use value"),
    (mc.History(), "history", r"use to_dict\(\)"),
])
def test_what_layers_optimizers_and_parameters_of_other_libraries_have(thing, name, answer):
    with pytest.raises(AttributeError, match=answer):
        getattr(thing, name)
    assert not hasattr(thing, "no_such_attribute")


def test_every_answer_names_what_exists():
    answers = list(hints.ANSWERS)
    assert len(hints.NAMES) == sum(len(names.split()) for names in hints.ANSWERS.values())
    paths = {path for text in answers for path in re.findall(r"\bmc\.([\w.]*\w)", text)}
    assert len(paths) > 15
    missing = []
    for path in paths:
        thing = mc
        for name in path.split("."):
            thing = getattr(thing, name, None)
        missing += [path] if thing is None else []
    assert missing == []
    calls = {call for text in answers for call in re.findall(r"mc\.(layers\.\w+\([^)]*\))", text)}
    for call in calls:  # the arguments exist, too
        name, arguments = re.fullmatch(r"layers\.(\w+)\((.*)\)", call).groups()
        taken = inspect.signature(getattr(mc.layers, name)).parameters
        assert {word for word in re.findall(r"[a-z_]+(?==)", arguments)} <= set(taken), call


@pytest.mark.parametrize("type_it, answer", [
    (lambda: mc.optimizers.SGD(lr=0.1), "SGD() has no argument `lr`; use `learning_rate`"),
    (lambda: mc.layers.Conv2D(in_channels=1), "has no argument `in_channels`; leave it out: build"),
    (lambda: mc.layers.Conv2D(out_channels=8, kernel_size=3), "use `filters`"),
    (lambda: mc.layers.Conv2D(8, 3, stride=2), "use `strides`"),
    (lambda: mc.layers.Dense(8, activaton="relu"), "use `activation`"),
    (lambda: mc.layers.Dense(8, zzz=1), "the arguments are units, activation, use_bias, "),
    (lambda: mc.layers.conv2d(None, 8, 3, bias=False), "use `use_bias`"),
    (lambda: mc.layers.Dropout(p=0.5), "use `rate`"),
    (lambda: mc.RunConfig(random_state=1), "has no argument `random_state`; use `seed`"),
    (lambda: mc.optimize_loss(None, optimizer="SGD", lr=0.1), "use `learning_rate`"),
    (lambda: mc.Estimator(lambda x: x, "model").fit(callbacks=[]),
     "Estimator.fit() has no argument `callbacks`; use `monitors`"),
    (lambda: model().fit(None, callbacks=[]), "has no argument `callbacks`; use `hooks`"),
    (lambda: model().fit(None, epoch=3), "has no argument `epoch`; use `epochs`"),
    (lambda: model().fit(None, val_data=()), "use `validation_data`"),
    (lambda: model().fit(None, patience=3), "use `early_stopping`"),
    (lambda: model().evaluate(None, batchsize=3), "use `batch_size`"),
])
def test_an_argument_of_another_name(type_it, answer):
    with pytest.raises(TypeError) as caught:
        type_it()
    assert answer in str(caught.value)


def test_every_argument_of_another_name_is_known_somewhere():
    things = [mc.optimizers, mc.layers, mc.losses, mc.metrics]
    functions = [mc.Estimator.fit, mc.Sequential.fit, mc.RunConfig, mc.optimize_loss]
    functions += [thing for module in things for thing in vars(module).values() if callable(thing)]
    names = set()
    for function in functions:
        if inspect.isfunction(function) or "__init__" in vars(function):
            names |= set(inspect.signature(function).parameters)
    for ours in hints.ARGUMENTS.values():
        assert set(ours) & names, ours


def test_a_layer_of_ones_own_is_answered_too():
    class Scale(mc.layers.Layer):
        def __init__(self, factor, name=None):
            super().__init__(name)
            self.factor = factor

    with pytest.raises(TypeError, match=r"^Scale\(\) has no argument `faktor`; use `factor`"):
        Scale(faktor=3)
    assert repr(Scale(3)) == "Scale(3)"
    assert list(inspect.signature(Scale).parameters) == ["factor", "name"]

    class Open(mc.layers.Layer):
        def __init__(self, *sizes, **options):
            super().__init__()

    assert repr(Open(1, 2, faktor=3)) == "Open(..., ...)"


# What is printed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [
    "Conv2D(32, 3, activation='relu')",
    "Conv2D(8, (3, 5), strides=2, padding='same', kernel_initializer='he_normal', name='first')",
    "Conv2D(8, 3, data_format='channels_first', use_bias=False, trainable=False)",
    "MaxPooling2D(2, strides=1)",
    "Dense(10, bias_initializer=constant(0.5))",
    "Dropout(0.4, seed=3)",
    "Activation('tanh')",
    "Activation('leaky_relu')",
    "BatchNormalization(momentum=0.9)",
    "AveragePooling2D(2, strides=2)",
    "Residual(Sequential([Conv2D(8, 3), Conv2D(8, 3)]))",
    "Flatten()",
    "Reshape((7, 7, 64))",
    "SGD(0.1, momentum=0.9)",
    "Adam(0.001)",
    "Adam(step_decay(0.1, 100, 0.5), epsilon=1e-07)",
    "Dense(3, kernel_regularizer=l2_regularizer(0.1))",
])
def test_a_layer_or_optimizer_shows_how_it_is_made(text):
    names = vars(mc.layers) | vars(mc.optimizers) | vars(mc.initializers)
    made = eval(text, {name: value for name, value in names.items() if not name.startswith("_")})
    assert repr(made) == text


def test_a_name_that_a_model_gives_is_shown():
    made = model()
    text = "Conv2D(2, 3, activation='relu', name='conv2d')"
    assert repr(made[0]) == text
    made.fit(np.zeros((3, 6, 6, 1), np.float32), [0, 1, 2], verbose=0)  # names the activation, too
    assert repr(made[0]) == text


# Sequential ---------------------------------------------------------------------------------------


def test_a_model_that_grows():
    x = np.random.default_rng(0).random((64, 4, 4, 1), np.float32)
    y = (x.mean(axis=(1, 2, 3)) > 0.5).astype(int)
    model = mc.Sequential()
    for layer in (mc.layers.Flatten(), mc.layers.Dense(8, activation="relu"), mc.layers.Dense(2)):
        model.add(layer)
    assert str(model).startswith("flatten\ndense\ndense\nnot built yet")
    history = model.fit(x, y, epochs=2, seed=0, verbose=False)
    assert history.last["step"] == 4
    assert len(model) == 3 and model[-1].units == 2 and [*model] == model.layers
    assert str(model).splitlines()[4].split() == ["dense_1", "(None,", "2)", "18"]
    model.add(mc.layers.Dense(3))
    assert model.fit(x, y, verbose=False).last["step"] == 2  # another model: a new run
    assert model.predict(x[:1]).shape == (1, 3)


# Weights and rows ---------------------------------------------------------------------------------


def test_weights_are_set_by_assignment():
    layer = model().layers[0]
    array = layer.kernel.value
    layer.kernel.value = np.full((3, 3, 1, 2), 0.5)
    assert layer.kernel.value is array and (array == 0.5).all()


def test_a_row_of_predictions_is_json_but_for_its_arrays(tmp_path):
    def model_fn(features, labels, mode):
        logits = mc.layers.dense(features, 3)
        loss = train_op = None
        if mode != mc.ModeKeys.INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        if mode == mc.ModeKeys.TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
        classes, probabilities = mc.argmax(logits, 1), mc.softmax(logits)
        return mc.ModelFnOps(
            mode, {"class": classes, "probabilities": probabilities}, loss, train_op
        )

    x = np.eye(3, dtype=np.float32)
    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(model_fn, tmp_path, config=config).fit(x, [0, 1, 2], steps=1)
    row = next(estimator.predict(x))
    assert type(row["class"]) is int
    assert row["probabilities"].shape == (3,) and row["probabilities"].dtype == np.float32
    row["probabilities"] = row["probabilities"].tolist()
    assert json.loads(json.dumps(row)) == row
    table = estimator.predict(x, as_iterable=False)
    assert [each["class"] for each in estimator.predict(x)] == table["class"].tolist()
