"""Errors of typical first attempts: following the remedy in the message works."""

import copy
import pickle
import re

import numpy as np
import pytest

import minicnn as mc
from minicnn import compat
from minicnn.compat import learn, model_fn, tf
from minicnn.core.checks import describe

NUMBERS = np.arange(12) % 3
ROWS = np.eye(3)[NUMBERS]
NAMES = np.array(["cat", "dog", "emu"])[NUMBERS]
X = np.random.default_rng(0).random((12, 64), np.float32)
LOGITS = np.zeros((12, 3), np.float32)


class Table:
    """Like a table or a column of pandas, as far as conversion to arrays is concerned."""

    def __init__(self, values):
        self.values = np.asarray(values)
        self.shape = self.values.shape
        self.dtypes = [np.dtype("float64"), np.dtype(object)]

    def __array__(self, dtype=None, copy=None):
        return self.values if dtype is None else self.values.astype(dtype)

    def __len__(self):
        return len(self.values)

    def __repr__(self):
        return "   height  weight\n0     1.0     2.0\n" * 3


def model(features, labels, mode):
    """A classifier whose labels are class numbers."""
    logits = mc.layers.dense(mc.reshape(features, [-1, 64]), 3)
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
    return mc.ModelFnOps(mode, {"classes": mc.argmax(logits, 1)}, loss, train_op)


def casting(features, labels, mode):
    """A classifier that casts the labels first, as in the guide."""
    return model(features, None if labels is None else mc.cast(labels, np.int32), mode)


def make(function, folder):
    return mc.Estimator(function, folder, config=mc.RunConfig(seed=0, progress=False))


def refused(call, *arguments, **named):
    """Return the message of the error that a call raises."""
    with pytest.raises((TypeError, ValueError, AttributeError)) as caught:
        call(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message
    return message


def followed(message, name, value):
    """Evaluate the expression that an error suggests for an argument."""
    expression = re.search(rf"np\.(asarray|unique)\({name}.*?\)(\.\w+\([^()]*\))*(?=$|;)", message)
    return eval(expression.group(), {"np": np, name: value})


# Labels -------------------------------------------------------------------------------------------

FORMS = {
    "floats": NUMBERS.astype(np.float64),
    "booleans": NUMBERS > 0,
    "one-hot": ROWS,
    "one-hot integers": ROWS.astype(int),
    "one-hot booleans": ROWS > 0,
    "one-hot list": ROWS.tolist(),
    "one-hot table": Table(ROWS > 0),
    "column": NUMBERS[:, None],
    "column of floats": NUMBERS[:, None] * 1.0,
    "column of a table": Table(NUMBERS[:, None]),
    "digits": NUMBERS.astype(str),
    "objects": NUMBERS.astype(object),
    "column of objects": Table(NUMBERS.astype(object)),
}


@pytest.mark.parametrize("function", [model, casting])
@pytest.mark.parametrize("form", FORMS)
def test_labels_in_another_form_are_told_what_makes_class_numbers(form, function, tmp_path):
    y = FORMS[form]
    if function is casting and form in ("floats", "booleans"):
        make(function, tmp_path).fit(X, y, steps=1)
        return
    message = refused(make(function, tmp_path).fit, X, y, steps=1)
    assert "np.float32" not in message and "cast first" not in message
    numbers = followed(message, "y", y)
    assert numbers.tolist() == (NUMBERS > 0 if form == "booleans" else NUMBERS).tolist()
    estimator = make(function, tmp_path).fit(X, numbers, steps=1)
    assert estimator.evaluate(X, numbers)["global_step"] == 1
    refused(estimator.evaluate, X, y)


@pytest.mark.parametrize("form", ["floats", "booleans", "column", "digits", "objects"])
def test_labels_of_a_loop_of_ones_own(form):
    labels = FORMS[form]
    message = refused(mc.losses.softmax_cross_entropy_with_grad, labels, LOGITS)
    numbers = followed(message, "y" if form == "column" else "labels", labels)
    mc.losses.softmax_cross_entropy_with_grad(numbers, LOGITS)
    if form != "column":
        message = refused(mc.one_hot, labels, 3)
        name = "indices" if form in ("digits", "objects") else "y"
        assert mc.one_hot(followed(message, name, labels), 3).shape == (12, 3)


@pytest.mark.parametrize("names", [NAMES, NAMES.astype(object), NAMES.tolist(), Table(NAMES)])
def test_names_of_classes_are_told_how_to_number_them(names, tmp_path):
    message = refused(make(model, tmp_path).fit, X, names, steps=1)
    assert "classes, y = np.unique(y, return_inverse=True)" in message
    classes, y = followed(message, "y", names)
    assert classes.tolist() == ["cat", "dog", "emu"] and y.tolist() == NUMBERS.tolist()
    assert "np.searchsorted(classes, names)" in message
    assert np.searchsorted(classes, ["dog", "cat"]).tolist() == [1, 0]
    estimator = make(model, tmp_path).fit(X, y, steps=1)
    assert classes[estimator.predict(X, as_iterable=False)["classes"]].shape == (12,)
    assert "np.unique(labels" in refused(mc.datasets.Dataset, X, names)


def test_what_is_no_label_gets_no_advice(tmp_path):
    ragged = np.array([np.zeros((2, 2)), np.zeros((3, 3))], object)
    for y in ([None] * 12, ["cat", None] * 6, [object()] * 12, "labels.csv", [[1, 2], [3]], ragged):
        assert "np." not in refused(make(model, tmp_path).fit, y, NUMBERS, steps=1)
        assert "np." not in refused(make(model, tmp_path).fit, X, y, steps=1)


def test_labels_that_are_left_out(tmp_path):
    without = r"`labels` are None without `y`: give it beside `x`"
    assert re.search(without, refused(make(model, tmp_path).fit, X, steps=1))
    estimator = make(model, tmp_path).fit(X, NUMBERS, steps=1)
    assert re.search(without, refused(estimator.evaluate, X))
    monitor = mc.hooks.ValidationMonitor(X, every_n_steps=1)
    assert re.search(without, refused(estimator.fit, X, NUMBERS, steps=2, monitors=[monitor]))
    assert re.search(without, refused(estimator.fit, input_fn=lambda: [X], steps=1))
    estimator.fit(input_fn=lambda: [(X, NUMBERS)] * 2, steps=1)


USES = {
    "one_hot": lambda labels, logits: mc.one_hot(labels, 3),
    "cast": lambda labels, logits: mc.one_hot(mc.cast(labels, np.int32), 3),
    "reshape": lambda labels, logits: mc.one_hot(mc.reshape(labels, [-1]), 3),
    "a dict": lambda labels, logits: mc.one_hot(labels["class"], 3),
    "an attribute": lambda labels, logits: mc.one_hot(labels, 3 + len(labels.shape[1:])),
    "a loss": lambda labels, logits: labels,
}


@pytest.mark.parametrize("use", USES)
def test_a_model_fn_that_uses_labels_in_mode_infer(use, tmp_path):
    modes = [mc.ModeKeys.TRAIN, mc.ModeKeys.INFER]

    def function(features, labels, mode):
        logits = mc.layers.dense(features, 3)
        loss = train_op = None
        if mode in modes:
            loss = mc.losses.softmax_cross_entropy(USES[use](labels, logits), logits)
        if mode == mc.ModeKeys.TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.1)
        return mc.ModelFnOps(mode, {"classes": mc.argmax(logits, 1)}, loss, train_op)

    y = {"a loss": ROWS, "a dict": {"class": NUMBERS}}.get(use, NUMBERS)
    estimator = make(function, tmp_path).fit(X, y, steps=1)
    message = refused(estimator.predict, X)
    assert "`labels` are None in mode 'infer': make the loss only where mode != " in message
    modes.remove(mc.ModeKeys.INFER)
    assert len(list(estimator.predict(X))) == 12


def test_another_error_of_a_model_fn_without_labels_is_left_alone(tmp_path):
    def function(features):
        raise TypeError("of my own")

    assert refused(make(function, tmp_path).fit, X, steps=1) == "of my own"


def test_labels_that_begin_at_1(tmp_path):
    assert "labels that begin at 1 need y - 1" in refused(
        make(model, tmp_path).fit, X, NUMBERS + 1, steps=1)
    assert "correct the labels or the number" in refused(
        make(model, tmp_path).fit, X, NUMBERS + 2, steps=1)
    make(model, tmp_path).fit(X, (NUMBERS + 1) - 1, steps=1)


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_a_label_that_cast_would_change_is_an_error(value, tmp_path):
    y = NUMBERS.astype(np.float32)
    y[4] = value
    message = refused(make(casting, tmp_path).fit, X, y, steps=1)
    assert f"the label of row 4 is {value}, outside the classes 0 to 2" in message


@pytest.mark.parametrize("form", [form for form in FORMS if form != "booleans"])
def test_labels_of_a_metric(form):
    labels = FORMS[form]
    message = refused(mc.metrics.accuracy, labels, NUMBERS)
    numbers = followed(message.replace(", or prob", "; or prob"), "labels", labels)
    assert mc.metrics.accuracy(numbers, NUMBERS) == 1.0
    message = refused(mc.metrics.confusion_matrix, NUMBERS, ROWS)
    assert followed(message, "predictions", ROWS).tolist() == NUMBERS.tolist()


def test_labels_and_logits_of_different_shapes():
    loss = mc.losses.softmax_cross_entropy
    with_grad = mc.losses.softmax_cross_entropy_with_grad
    assert "with one_hot(n, depth=3) of the numbers n" in refused(loss, NUMBERS, LOGITS)
    loss(mc.one_hot(NUMBERS, depth=3), LOGITS)
    twice = mc.one_hot(ROWS.astype(int), 3)
    assert ".argmax(axis=1)" in refused(loss, twice, LOGITS)
    assert "give the last layer 3 units" in refused(loss, ROWS, np.zeros((12, 5)))
    assert "take both from the same rows" in refused(loss, ROWS[:4], LOGITS)
    assert "the labels come first" in refused(with_grad, LOGITS, NUMBERS)
    maps = np.zeros((12, 4, 4, 3), np.float32)
    for labels in (NUMBERS, ROWS):
        assert "a layer after layers.Flatten" in refused(with_grad, labels, maps)
    for one in (NUMBERS, NUMBERS[:, None] % 2):
        assert "two units for yes or no" in refused(loss, one, LOGITS[:, :1])


# Tables -------------------------------------------------------------------------------------------


def test_a_table_is_described_not_printed(tmp_path):
    table = Table(np.array([[1.0, "a"]] * 12, object))
    text = "a Table of shape (12, 2) and type float64 and object"
    assert describe(table) == text
    assert text in refused(make(model, tmp_path).fit, table, NUMBERS, steps=1)
    assert text in refused(mc.losses.softmax_cross_entropy_with_grad, table, LOGITS)
    assert text in refused(mc.metrics.accuracy, table, NUMBERS)
    layer = mc.layers.Dense(3)
    layer.build((None, 64), 0)
    message = refused(layer.forward, Table(X), mc.Context())
    assert "a Table of shape (12, 64)" in message
    assert message.endswith("; convert it (np.asarray(x, np.float32))")
    assert layer.forward(np.asarray(Table(X), np.float32), mc.Context()).shape == (12, 3)


@pytest.mark.parametrize("x", [X.astype(object), X.astype(str), Table(X.astype(object))])
def test_numbers_that_are_objects_or_text(x, tmp_path):
    message = refused(make(model, tmp_path).fit, x, NUMBERS, steps=1)
    assert message.endswith("; convert it: np.asarray(x, np.float32)")
    make(model, tmp_path).fit(np.asarray(x, np.float32), NUMBERS, steps=1)
    gap = X.astype(object)
    gap[3, 4] = None
    assert "convert" not in refused(make(model, tmp_path).fit, gap, NUMBERS, steps=1)


def test_lists_of_arrays_and_long_texts_take_one_line():
    x, y = np.zeros((2, 3)), np.zeros(2, int)
    text = "an array of shape (2, 3) and type float64, an array of shape (2,) and type int64"
    assert describe((x, y)) == f"a tuple of {text}"
    assert describe([x, y]) == f"a list of {text}"
    assert "\n" not in describe([x] * 50) and len(describe([x] * 50)) == 80
    assert describe(np.float32(0.5)).endswith("(float32)")
    assert describe(Table) == f"{Table!r} (type)"


# Shapes -------------------------------------------------------------------------------------------


def pictures(data_format, channels, size=12):
    """Return a model of two layers, and inputs of its data format."""
    first = data_format == "channels_first"
    shape = (channels, size, size) if first else (size, size, channels)
    layers = [mc.layers.Conv2D(2, 5, data_format=data_format),
              mc.layers.MaxPooling2D(2, data_format=data_format)]
    return mc.Sequential(layers), np.zeros((2, *shape), np.float32)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("ours", "theirs", "name"), [
    ("channels_last", "channels_first", "(N, C, H, W)"),
    ("channels_first", "channels_last", "(N, H, W, C)"),
])
def test_images_of_the_other_data_format(ours, theirs, name, channels):
    network, good = pictures(ours, channels)
    other, x = pictures(theirs, channels)
    message = refused(network.build, (None, *x.shape[1:]), 0)
    shape = (None, *x.shape[1:])
    assert f"; if {shape} is {name}, use data_format='{theirs}' in every layer or x." in message
    assert message.index(name) < message.index("padding='same'")
    other.build(shape, 0)
    turned = eval(re.search(r"x\.transpose\([^)]*\)", message).group(), {"x": x})
    assert turned.shape == good.shape
    network.build((None, *turned.shape[1:]), 0)
    if channels > 1:  # a model that is already built
        message = refused(network.predict, x)
        assert "exchange the axes: x.transpose" in message
        turned = eval(re.search(r"x\.transpose\([^)]*\)", message).group(), {"x": x})
        network.predict(turned)


@pytest.mark.parametrize("shape", [(4, 4, 1), (3, 3, 3), (4, 28, 40), (4, 3, 1)])
def test_images_that_are_only_small(shape):
    message = refused(mc.layers.Conv2D(2, 5).build, (None, *shape), 0)
    assert ("transpose" in message) == (shape == (4, 28, 40))
    mc.layers.Conv2D(2, 5, padding="same").build((None, *shape), 0)


@pytest.mark.parametrize("shape", [(12, 12, 1), (12, 12), (144,), (2, 144), (2, 12, 12)])
def test_inputs_of_another_shape_than_the_model_was_built_for(shape):
    network, good = pictures("channels_last", 1)
    network.build((None, *good.shape[1:]), 0)
    x = np.zeros(shape, np.float32)
    message = refused(network.predict, x)
    if shape == (12, 12, 1):
        assert message.endswith("a single row needs a batch axis: x[None]")
    remedy = re.search(r"x(\[None\]|\.reshape\(.*\))$", message).group()
    assert network.predict(eval(remedy, {"x": x})).shape[1:] == (4, 4, 2)


def test_a_single_image(tmp_path):
    for data_format, example in (("channels_last", "(-1, 28, 28, 1)"),
                                 ("channels_first", "(-1, 1, 28, 28)")):
        layer = mc.layers.Conv2D(2, 5, data_format=data_format)
        message = refused(layer.build, (28, 28, 1), 0)
        assert message.endswith("a single image needs a batch axis, x[None]")
        assert example in message
        layer.build(np.zeros((3, 784)).reshape(eval(example)).shape, 0)
    estimator = make(model, tmp_path).fit(X, NUMBERS, steps=1)
    for image in (X[0], X[0].reshape(8, 8)):
        assert "a single row needs a batch axis, x[None]" in refused(estimator.predict, image)
        assert len(list(estimator.predict(image[None]))) == 1


def test_bytes_become_floats():
    network, good = pictures("channels_last", 1)
    network.build((None, *good.shape[1:]), 0)
    x = good.astype(np.uint8)
    message = refused(network.predict, x)
    remedy = re.search(r"\((x\.astype\(.*?\));", message).group(1)
    network.predict(eval(remedy, {"x": x, "np": np}) / 255)


# Arguments in another order or form ---------------------------------------------------------------


@pytest.mark.parametrize("use", [np.mean, lambda x: np.argmax(x, axis=1), np.asarray])
def test_numpy_on_a_tensor(use):
    x = mc.Graph().placeholder("x", (None, 3), np.float32)
    message = refused(use, x)
    assert message.startswith("Tensor('x', shape=(None, 3), dtype=float32) has no value yet, so ")
    for name in ("concat", "reduce_mean", "softmax", "argmax", "cast", "reshape", "one_hot"):
        assert name in message and hasattr(mc, name)
    assert describe(x) == "Tensor('x', shape=(None, 3), dtype=float32)"


def test_labels_and_logits_in_the_other_order(tmp_path):
    loss = mc.losses.softmax_cross_entropy
    graph = mc.Graph()
    logits = mc.layers.dense(graph.placeholder("x", (None, 4), np.float32), 3)
    labels = mc.one_hot(graph.placeholder("labels", (None,), np.int64), 3)
    loss(labels, logits)
    plan = graph.plan([loss(logits, labels)])
    x, numbers = (tensor for tensor in graph.tensors.values() if tensor.op is None)
    feeds = {x: np.ones((12, 4), np.float32), numbers: NUMBERS}
    assert "the labels come first" in refused(plan.forward, feeds, mc.Context())
    assert "the labels come first" in refused(loss, LOGITS, ROWS.astype(np.float32))
    loss(ROWS.astype(np.float32), LOGITS)


@pytest.mark.parametrize("activation", ["softmax", None])
def test_a_softmax_before_the_loss(activation, caplog):
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 4), np.float32)
    labels = mc.one_hot(graph.placeholder("labels", (None,), np.int64), 3)
    logits = mc.layers.dense(x, 3, activation=activation)
    mc.losses.softmax_cross_entropy(labels, logits)
    assert ("give it the values before the softmax" in caplog.text) == bool(activation)
    mc.losses.softmax_cross_entropy(labels, mc.softmax(mc.layers.dense(x, 3)))
    assert "the logits 'softmax' are probabilities already" in caplog.text


def test_features_by_name_in_the_place_of_one_tensor():
    features = {"x": mc.Graph().placeholder("x", (None, 64), np.float32)}
    for function in (mc.layers.flatten, lambda x: mc.reshape(x, [-1, 8, 8, 1]), mc.relu):
        message = refused(function, features)
        assert message.endswith("; take one of its values, such as that of 'x'")
        function(features["x"])
    layer = mc.layers.Dense(3)
    layer.build((None, 4), 0)
    assert refused(mc.relu, layer.kernel).endswith("; take its array, `.value`")
    mc.relu(layer.kernel.value)


def test_rows_of_one_number(tmp_path):
    layer = mc.layers.Dense(3)
    message = refused(layer.build, (12,), 0)
    assert message.endswith("a single row needs a batch axis, x[None], and rows of one number an "
                            "axis for it, x[:, None]")
    assert layer.build(np.zeros(12)[:, None].shape, 0) == (None, 3)
    assert layer.build(np.zeros(12)[None].shape, 0) == (None, 3)

    def trained(features, labels, mode):
        return model(mc.layers.flatten(features), labels, mode)

    estimator = make(trained, tmp_path).fit(X.reshape(12, 8, 8), NUMBERS, steps=1)
    assert "x[None]" in refused(estimator.predict, X[0].reshape(8, 8))
    assert len(list(estimator.predict(X[0].reshape(8, 8)[None]))) == 1


def test_arguments_of_a_model_fn_with_other_names(tmp_path):
    def wrong(x, y, mode):
        return model(x, y, mode)

    message = refused(make(wrong, tmp_path).fit, X, NUMBERS, steps=1)
    assert "called features, labels, mode, params, config, or some of these, got one that needs " \
           "x, y; rename it" in message

    def right(features, labels, mode, *args, size=3, **others):
        assert sorted(others) == ["config", "params"]
        return model(features, labels, mode)

    make(right, tmp_path).fit(X, NUMBERS, steps=1)


def test_parameters_that_are_taken_before_the_model_is_built():
    network = mc.Sequential([mc.layers.Dense(3)])
    before = network.parameters
    network.build((None, 4), 0)
    sgd = mc.optimizers.SGD(0.1)
    assert "build the model first, and take model.parameters after" in refused(sgd.step, before)
    assert sgd.iterations == 0
    sgd.step(network.parameters)


def test_layers_of_a_sequential_that_are_no_list_of_layers():
    first, second = mc.layers.Flatten(), mc.layers.Dense(3)
    assert "`layers` must be a list of layers" in refused(mc.Sequential, first, second)
    for wrong in ("relu", mc.relu, mc.layers.Flatten):
        message = refused(mc.Sequential, [first, wrong])
        assert "layers such as Dense(10) or Activation('relu')" in message
    mc.Sequential([first, second, mc.layers.Activation("relu")])


@pytest.mark.parametrize("batch", [(X, NUMBERS, NUMBERS), (X,), [X, NUMBERS]])
def test_batches_in_another_form(batch, tmp_path):
    estimator = make(model, tmp_path)
    message = refused(estimator.fit, input_fn=lambda: [batch], steps=1)
    assert "`input_fn` must yield tuples (features, labels), or features alone, got a " in message
    message = refused(estimator.fit, input_fn=lambda: zip(X, NUMBERS, strict=True), steps=1)
    assert message.endswith("a single row needs a batch axis, np.asarray(labels)[None]")
    rows = [(x[None], np.asarray(y)[None]) for x, y in zip(X, NUMBERS, strict=True)]
    estimator.fit(input_fn=lambda: rows, steps=1)


def test_steps_in_the_place_of_input_fn(tmp_path):
    message = refused(make(model, tmp_path).fit, X, NUMBERS, 100)
    assert message == "`input_fn` must be a function without arguments, got 100"


def test_the_weights_of_what_is_no_layer(tmp_path):
    path = tmp_path / "weights.npz"
    assert "give a layer, such as a Sequential" in refused(
        mc.save_weights, make(model, tmp_path), path)
    assert "call build first" in refused(mc.save_weights, mc.layers.Dense(3), path)


# Names, functions and kinds that do not exist -----------------------------------------------------


def classifier():
    return mc.Sequential([mc.layers.Dense(3)])


def fitted(**given):
    options = {"x": X, "y": NUMBERS, "steps": 1, "verbose": False, "seed": 0}
    return classifier().fit(**{**options, **given})


@pytest.mark.parametrize(("given", "words"), [
    ({"optimizer": "Adm"}, ["`optimizer` must be 'sgd' or", "or an Optimizer, got 'Adm'"]),
    ({"optimizer": None}, ["`optimizer` must be a name", "got None"]),
    ({"optimizer": "SGD"}, ["`learning_rate` must be given with 'SGD', got None", "0.1 for SGD"]),
    ({"learning_rate": lambda: 0.1}, ["a number or a function of the step", "which takes ()"]),
    ({"loss": "foo"}, ["or a function of (labels, outputs), got 'foo'"]),
    ({"loss": "mse"}, ["got 'mse'; use mc.losses.mean_squared_error"]),
    ({"loss": mc.losses.SoftmaxCrossEntropy}, ["`loss` must be 'softmax_cross_entropy' or"]),
    ({"loss": lambda outputs: outputs}, ["a function of (labels, outputs)", "takes (outputs)"]),
    ({"loss": lambda labels, outputs: outputs, "sample_weight": np.ones(12)},
     ["of (labels, outputs, weights) with weights, got", "which takes (labels, outputs)"]),
    ({"metrics": ["foo"]}, ["`metrics` must be 'accuracy' or", "or functions, got 'foo'"]),
    ({"metrics": ["mean"]}, ["got 'mean'"]),  # would weight the labels by the predictions
    ({"metrics": 3}, ["`metrics` must be a list of names"]),
    ({"metrics": [lambda labels: 0.0]}, ["functions of (labels, predictions)", "takes (labels)"]),
    ({"hooks": [lambda step: None]}, ["functions of (step, values)", "which takes (step)"]),
    ({"augment": lambda x: x}, ["a function of (images, rng), got", "which takes (x)"]),
    ({"verbose": np.zeros(3)}, ["`verbose` must be True, False, 0, 1 or 2, got array"]),
    ({"x": lambda step: [], "y": None}, ["`x` must be a function without arguments"]),
    ({"x": mc.datasets.load_dataset("mnist"), "y": None}, ["`x`", "one of its parts", "`.train`"]),
    ({"validation_data": mc.datasets.load_dataset("mnist")}, ["`validation_data`", "`.train`"]),
])
def test_what_fit_cannot_be_given(given, words):
    message = refused(fitted, **given)
    assert all(word in message for word in words), message


def test_what_the_errors_of_fit_say_to_do_works():
    fitted(optimizer=mc.optimizers.SGD(0.1))
    fitted(optimizer="SGD", learning_rate=0.1)
    fitted(learning_rate=mc.optimizers.cosine_decay(0.1, 10))
    fitted(loss=mc.losses.mean_squared_error, y=ROWS)
    fitted(loss=lambda labels, outputs, weights: mc.losses.mean_squared_error(
        mc.one_hot(labels, 3), outputs, weights), sample_weight=np.ones(12))
    fitted(metrics=["top_k_accuracy"], validation_data=(X, NUMBERS))  # of the scores
    fitted(hooks=[lambda step, values: None, print])
    fitted(x=lambda: [(X, NUMBERS)], y=None)


@pytest.mark.parametrize("thing", [
    mc.layers.Dense(3), [mc.layers.Dense(3)], mc.layers.Residual([mc.layers.Dense(3)]), None,
])
def test_layers_in_the_place_of_a_model(thing, tmp_path):
    message = refused(mc.Estimator, thing, tmp_path)
    assert message.startswith("`model_fn` must be a function, or a Sequential: write Sequential([")
    mc.Estimator(mc.Sequential([mc.layers.Dense(3)]), tmp_path)


def test_a_data_set_in_the_place_of_its_arrays(tmp_path):
    data = mc.datasets.Dataset(X, NUMBERS)
    estimator = make(model, tmp_path)
    for call in (estimator.fit, classifier().predict):
        assert refused(call, data).endswith("; give its arrays, `.images` and `.labels`")
    estimator.fit(data.images, data.labels, steps=1)


def test_an_initializer_of_other_arguments():
    message = refused(mc.layers.Dense, 3, kernel_initializer=lambda shape: np.zeros(shape))
    assert "`kernel_initializer` must be a function of (shape, rng, dtype), got" in message
    assert message.endswith("which takes (shape)")
    assert "finite" in refused(mc.initializers.constant, 1e39)  # infinity in float32


def test_a_metric_of_other_arguments(tmp_path):
    estimator = make(model, tmp_path).fit(X, NUMBERS, steps=1)
    metrics = {"one": mc.MetricSpec(lambda p: 0.0, "classes")}
    message = refused(estimator.evaluate, X, NUMBERS, metrics=metrics)
    assert "`one` must be a function of (labels, predictions), got" in message
    assert "such as {'accuracy': MetricSpec(" in refused(estimator.evaluate, X, metrics=["loss"])


@pytest.mark.parametrize(("later", "words"), [
    ((np.ones((4, 65), np.float32), NUMBERS[:4]), ["`features`", "(64,) float32", "(65,) float32"]),
    ((X.astype(int), NUMBERS), ["`features`", "(64,) float32", "(64,) int64"]),
    ((X, ROWS), ["`labels`", "() int64", "(3,) float32"]),
    (({"x": X}, NUMBERS), ["`features`", "(64,) float32", "{'x': '(64,) float32'}"]),
])
def test_a_later_batch_of_another_form(later, words, tmp_path):
    batches = [(X, NUMBERS), later]
    for call in (
        lambda: make(model, tmp_path).fit(input_fn=lambda: batches),
        lambda: classifier().fit(lambda: batches, verbose=False),
        lambda: make(model, tmp_path).evaluate(input_fn=lambda: batches),
    ):
        message = refused(call)
        assert all(word in message for word in words), message
        assert message.endswith("; resize or convert them")
    assert "`labels`" in words or "features" in refused(
        lambda: list(make(model, tmp_path).predict(input_fn=lambda: [X, later[0]])))


@pytest.mark.parametrize(("call", "text"), [
    (lambda path: mc.load_weights(built(), path), "No such file"),
    (lambda path: mc.Estimator(model, path.with_name("new"), warm_start_from=path).fit(
        X, NUMBERS, steps=1), "No such file"),
    (mc.datasets.read_idx, "No such file"),
    (lambda path: mc.save_weights(built(), path / "weights.npz"), "; make its folder first"),
])
def test_a_file_that_does_not_exist(call, text, tmp_path):
    path = tmp_path / "none.npz"
    with pytest.raises(FileNotFoundError, match=text) as caught:
        call(path)
    assert str(path) in str(caught.value)
    assert re.search("; check the path, and if it is relative|; make its", str(caught.value))
    path.mkdir()
    mc.save_weights(built(), path / "weights.npz")


def built():
    network = classifier()
    network.build((None, 64), rng=0)
    return network


# The guide's names --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "words"), [
    ("tf.nn.softmax_cross_entropy_with_logits", "tf.losses.softmax_cross_entropy(tf.one_hot("),
    ("tf.nn.sparse_softmax_cross_entropy_with_logits", "tf.losses.sparse_softmax_cross_entropy("),
    ("tf.estimator", "learn.Estimator"),
    ("tf.train.exponential_decay", "minicnn.optimizers.exponential_decay("),
    ("tf.train.AdamOptimizer", "optimizer='Adam'"),
    ("tf.train.MomentumOptimizer", "optimizer='Momentum'"),
    ("tf.Session", "learn.Estimator"),
    ("tf.keras", "minicnn.Sequential"),
    ("tf.layers.conv3d", "tf.layers has conv2d, conv2d_transpose,"),
    ("tf.nonsense", "tf has int32,"),
    ("tf.contrib.slim", "tf.contrib has layers, framework, learn"),
    ("learn.LinearClassifier", "learn has ModeKeys, Estimator"),
    ("model_fn.EstimatorSpec", "model_fn.ModelFnOps"),
])
def test_a_name_that_compat_does_not_have(name, words):
    scope = {"tf": tf, "learn": learn, "model_fn": model_fn}
    message = refused(eval, name, scope)
    assert message.startswith(f"minicnn.compat has no {name}; ") and words in message


def test_the_names_in_its_errors_are_there():
    scope = {"tf": tf, "learn": learn, "model_fn": model_fn, "minicnn": mc}
    for name, remedy in compat._REPLACEMENTS.items():
        with pytest.raises(AttributeError):
            eval(name, scope)
        for found in re.findall(r"\b(?:tf|learn|model_fn|minicnn)(?:\.[A-Za-z_]\w*)+", remedy):
            if found != "minicnn.compat":
                eval(found, scope)


def test_the_replacements_of_later_names_work():
    x = mc.Graph().placeholder("x", (None, 4), np.float32)
    labels = x.graph.placeholder("labels", (None,), np.int64)
    logits = tf.layers.dense(tf.layers.flatten(x), 3)
    loss = tf.losses.softmax_cross_entropy(tf.one_hot(labels, 3), logits)
    schedule = mc.optimizers.exponential_decay(0.5, 10, 0.9)
    train_op = tf.contrib.layers.optimize_loss(loss, optimizer=mc.optimizers.SGD(schedule))
    assert train_op.rate() == 0.5
    step = tf.train.get_or_create_global_step()
    for name in ("Adam", "SGD", "Momentum"):
        assert tf.contrib.layers.optimize_loss(loss, step, 0.1, optimizer=name).rate() == 0.1
    assert tf.contrib.learn is learn


def test_a_missing_name_is_missing_for_hasattr_and_copies():
    assert not hasattr(tf, "estimator") and hasattr(tf, "layers")
    assert copy.deepcopy(tf.nn).relu is tf.nn.relu
    losses = pickle.loads(pickle.dumps(tf.losses))
    assert losses.softmax_cross_entropy is tf.losses.softmax_cross_entropy


# Weights ------------------------------------------------------------------------------------------


def test_the_weights_of_an_estimators_checkpoint(tmp_path):
    estimator = make(model, tmp_path).fit(X, NUMBERS, steps=2)
    network = mc.Sequential([mc.layers.Dense(3)])
    network.build((None, 64), rng=5)
    mc.load_weights(network, tmp_path / "model.ckpt-2.npz")
    np.testing.assert_array_equal(network.layers[0].kernel.value,
                                  estimator.get_variable_value("dense/kernel"))
    classes = estimator.predict(X, as_iterable=False)["classes"]
    np.testing.assert_array_equal(network.predict(X).argmax(axis=1), classes)
    other = mc.Sequential([mc.layers.Dense(3, name="head")])
    other.build((None, 64), rng=5)
    with pytest.raises(ValueError, match=r"^dense/bias: the model has nothing of this name"):
        mc.load_weights(other, tmp_path / "model.ckpt-2.npz")


def test_a_folder_in_the_place_of_a_file(tmp_path):
    with pytest.raises(OSError, match="a folder, not a regular file; give the path of a regular"):
        mc.datasets.read_idx(tmp_path)


def test_a_model_whose_name_is_that_of_a_checkpoints_part(tmp_path):
    network = mc.Sequential([mc.layers.Dense(3)], name="parameters")
    network.build((None, 64), rng=5)
    mc.save_weights(network, tmp_path / "weights.npz")
    mc.load_weights(network, tmp_path / "weights.npz")
