"""Tests of minicnn.compat: the guide's program runs with one import line changed."""

import io
import logging
import math
import sys

import numpy as np
import pytest

import minicnn as mc
from minicnn.compat import learn, tf
from minicnn.compat import model_fn as model_fn_lib

NAMES = [
    "tf.layers.conv2d", "tf.layers.max_pooling2d", "tf.layers.dense", "tf.layers.dropout",
    "tf.layers.average_pooling2d", "tf.layers.batch_normalization",
    "tf.nn.relu", "tf.nn.softmax", "tf.one_hot", "tf.cast", "tf.int32", "tf.reshape", "tf.argmax",
    "tf.losses.softmax_cross_entropy", "tf.contrib.layers.optimize_loss",
    "tf.layers.conv2d_transpose", "tf.layers.separable_conv2d",
    "tf.contrib.layers.l1_regularizer", "tf.contrib.layers.l2_regularizer", "tf.nn.leaky_relu",
    "tf.nn.log_softmax", "tf.contrib.framework.get_global_step",
    "tf.metrics.accuracy", "tf.train.LoggingTensorHook",
    "tf.logging.set_verbosity", "tf.logging.INFO", "tf.app.run",
    "learn.ModeKeys.TRAIN", "learn.ModeKeys.EVAL", "learn.ModeKeys.INFER", "learn.Estimator",
    "learn.MetricSpec", "learn.datasets.load_dataset", "model_fn_lib.ModelFnOps",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_name_is_there(name):
    first, *rest = name.split(".")
    value = {"tf": tf, "learn": learn, "model_fn_lib": model_fn_lib}[first]
    for part in rest:
        value = getattr(value, part)
    assert value is not None


@pytest.fixture
def quiet():
    """Restore the handlers and the level of minicnn's logger."""
    logger = logging.getLogger("minicnn")
    handlers, level = list(logger.handlers), logger.level
    logger.handlers.clear()
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


# The guide's program, on small synthetic data and with fewer steps --------------------------------


def cnn_model_fn(features, labels, mode):
    """Model function for CNN."""
    input_layer = tf.reshape(features, [-1, 28, 28, 1])
    conv1 = tf.layers.conv2d(
        inputs=input_layer,
        filters=32,
        kernel_size=[5, 5],
        padding="same",
        activation=tf.nn.relu)
    pool1 = tf.layers.max_pooling2d(inputs=conv1, pool_size=[2, 2], strides=2)
    conv2 = tf.layers.conv2d(
        inputs=pool1,
        filters=64,
        kernel_size=[5, 5],
        padding="same",
        activation=tf.nn.relu)
    pool2 = tf.layers.max_pooling2d(inputs=conv2, pool_size=[2, 2], strides=2)
    pool2_flat = tf.reshape(pool2, [-1, 7 * 7 * 64])
    dense = tf.layers.dense(inputs=pool2_flat, units=1024, activation=tf.nn.relu)
    dropout = tf.layers.dropout(
        inputs=dense, rate=0.4, training=mode == learn.ModeKeys.TRAIN)
    logits = tf.layers.dense(inputs=dropout, units=10)

    loss = None
    train_op = None

    # Calculate Loss (for both TRAIN and EVAL modes)
    if mode != learn.ModeKeys.INFER:
        onehot_labels = tf.one_hot(indices=tf.cast(labels, tf.int32), depth=10)
        loss = tf.losses.softmax_cross_entropy(
            onehot_labels=onehot_labels, logits=logits)

    # Configure the Training Op (for TRAIN mode)
    if mode == learn.ModeKeys.TRAIN:
        train_op = tf.contrib.layers.optimize_loss(
            loss=loss,
            global_step=tf.contrib.framework.get_global_step(),
            learning_rate=0.001,
            optimizer="SGD")

    # Generate Predictions
    predictions = {
        "classes": tf.argmax(
            input=logits, axis=1),
        "probabilities": tf.nn.softmax(
            logits, name="softmax_tensor")
    }

    # Return a ModelFnOps object
    return model_fn_lib.ModelFnOps(
        mode=mode, predictions=predictions, loss=loss, train_op=train_op)


def make_main(folder, data, results):
    def main(unused_argv):
        train_data, train_labels, eval_data, eval_labels = data

        # Create the Estimator
        mnist_classifier = learn.Estimator(
            model_fn=cnn_model_fn, model_dir=folder)

        # Set up logging for predictions
        tensors_to_log = {"probabilities": "softmax_tensor"}
        logging_hook = tf.train.LoggingTensorHook(
            tensors=tensors_to_log, every_n_iter=50)

        # Train the model
        mnist_classifier.fit(
            x=train_data,
            y=train_labels,
            batch_size=20,
            steps=3,
            monitors=[logging_hook])

        # Configure the accuracy metric for evaluation
        metrics = {
            "accuracy":
                learn.MetricSpec(
                    metric_fn=tf.metrics.accuracy, prediction_key="classes"),
        }

        # Evaluate the model and print results
        results["eval"] = mnist_classifier.evaluate(
            x=eval_data, y=eval_labels, metrics=metrics)
        results["rows"] = list(mnist_classifier.predict(x=eval_data))
    return main


def test_the_guides_program_runs(tmp_path, quiet, monkeypatch):
    rng, output, results = np.random.default_rng(0), io.StringIO(), {}
    images, labels = rng.random((60, 784), np.float32), np.arange(60, dtype=np.int32) % 10
    data = images[:40], labels[:40], images[40:], labels[40:]
    monkeypatch.setattr(sys, "stderr", output)
    tf.logging.set_verbosity(tf.logging.INFO)
    with pytest.raises(SystemExit) as ended:
        tf.app.run(make_main(str(tmp_path), data, results))
    assert ended.value.code is None
    assert set(results["eval"]) == {"accuracy", "loss", "global_step"}
    assert results["eval"]["global_step"] == 3
    assert results["eval"]["loss"] == pytest.approx(math.log(10), abs=0.3)
    assert len(results["rows"]) == 20
    for row in results["rows"]:
        assert row["probabilities"].shape == (10,)
        assert row["probabilities"].sum() == pytest.approx(1, abs=1e-5)
        assert row["classes"] == row["probabilities"].argmax()
    share = np.mean([row["classes"] for row in results["rows"]] == labels[40:])
    assert results["eval"]["accuracy"] == pytest.approx(share)
    text = output.getvalue()
    for line in ("INFO:minicnn:loss = 2.", "INFO:minicnn:probabilities = [[0.", ", step = 1",
                 "Saving evaluation summary for step 3: accuracy = "):
        assert line in text


# The adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["conv2d", "dense"])
def test_the_initializer_is_the_one_that_the_guides_log_was_made_with(name):
    graph = mc.Graph()
    if name == "conv2d":
        x = graph.placeholder("x", (None, 8, 8, 4), np.float32)
        tf.layers.conv2d(inputs=x, filters=100, kernel_size=5)
        fan_in = 100
    else:
        fan_in = 300
        x = graph.placeholder("x", (None, fan_in), np.float32)
        tf.layers.dense(x, 40)
    kernel, limit = graph.parameters[f"{name}/kernel"].value, math.sqrt(3 / fan_in)
    assert 0.99 * limit < np.abs(kernel).max() <= limit  # glorot_uniform has other limits
    assert kernel.std() == pytest.approx(limit / math.sqrt(3), rel=0.05)
    assert not graph.parameters[f"{name}/bias"].value.any()


def test_another_initializer_may_be_asked_for():
    graph = mc.Graph()
    x = graph.placeholder("x", (None, 300), np.float32)
    tf.layers.dense(x, 10, tf.nn.relu, kernel_initializer="zeros")
    assert not graph.parameters["dense/kernel"].value.any()


def test_the_rest_of_the_library_keeps_its_own_initializer():
    graph = mc.Graph()
    mc.layers.dense(graph.placeholder("x", (None, 300), np.float32), 40)
    limit = math.sqrt(6 / 340)
    assert 0.99 * limit < np.abs(graph.parameters["dense/kernel"].value).max() <= limit


def test_set_verbosity_installs_one_handler(quiet, monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    for level in (tf.logging.ERROR, tf.logging.INFO, tf.logging.INFO):
        tf.logging.set_verbosity(level)
    assert len(quiet.handlers) == 1
    quiet.info("seen once")
    quiet.debug("not seen")
    tf.logging.set_verbosity(tf.logging.WARN)
    quiet.info("not seen")
    assert output.getvalue() == "INFO:minicnn:seen once\n"
    assert logging.getLogger().level == logging.WARNING  # the user's own logging is not changed


def test_importing_installs_no_handler():
    handlers = logging.getLogger("minicnn").handlers
    assert not [handler for handler in handlers if type(handler) is logging.StreamHandler]


@pytest.mark.parametrize("result", [None, 0, 3, "failed"])
def test_app_run_exits_with_what_main_returns(result, monkeypatch):
    seen = []

    def main(argv):
        seen.append(argv)
        return result

    monkeypatch.setattr(sys, "argv", ["program", "--flag"])
    with pytest.raises(SystemExit) as ended:
        tf.app.run(main)
    assert ended.value.code == result
    with pytest.raises(SystemExit):
        tf.app.run(main=main, argv=["other"])
    monkeypatch.setattr(sys.modules["__main__"], "main", main, raising=False)
    with pytest.raises(SystemExit):
        tf.app.run()
    assert seen == [["program", "--flag"], ["other"], ["program", "--flag"]]


@pytest.mark.parametrize("main", [3, "main", None])
def test_app_run_needs_a_function(main, monkeypatch):
    monkeypatch.delattr(sys.modules["__main__"], "main", raising=False)
    with pytest.raises(TypeError, match=f"`main` must be a function.*, got {main!r}"):
        tf.app.run(main=main)


def test_get_global_step_needs_no_session():
    x = mc.Graph().placeholder("x", (None, 3), np.float32)
    loss = tf.losses.softmax_cross_entropy(tf.nn.softmax(x), x)
    train_op = tf.contrib.layers.optimize_loss(
        loss, tf.contrib.framework.get_global_step(), 0.25, "SGD"
    )
    assert train_op.rate() == 0.25


@pytest.mark.parametrize("metric_fn", [
    lambda labels, predictions: float((labels - predictions).sum()),
    lambda predictions, labels: float((labels - predictions).sum()),
    lambda predictions, targets: float((targets - predictions).sum()),
], ids=["labels first", "predictions first", "targets"])
def test_a_metric_is_given_its_arguments_by_name(metric_fn):
    """TensorFlow passed arguments by name; its own metrics took the predictions first."""
    spec = learn.MetricSpec(metric_fn=metric_fn, prediction_key="classes")
    value = spec.compute({"classes": np.array([1, 2])}, np.array([5, 9]), None)
    assert value == 11.0
