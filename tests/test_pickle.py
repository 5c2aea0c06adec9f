"""Public objects can be pickled, for example for another process, and are then equal."""

import pickle

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn import hooks, optimizers

IMAGES = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype(np.float32)


def model_fn(features, labels, mode, params):
    logits = mc.layers.dense(mc.layers.flatten(features), params["classes"])
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, params["classes"]), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(
            loss, learning_rate=0.1, learning_rate_decay_fn=halved, optimizer="SGD"
        )
    return mc.ModelFnOps(mode, {"logits": logits}, loss, train_op)


def halved(rate, step):
    return rate / 2**step


def again(value, protocol=pickle.HIGHEST_PROTOCOL):
    return pickle.loads(pickle.dumps(value, protocol))


def layers():
    return [
        mc.layers.Conv2D(2, 3, padding="same", bias_initializer=0.5, activation="relu"),
        mc.layers.MaxPooling2D(2), mc.layers.Conv2D(2, 2, kernel_initializer="he_normal"),
        mc.layers.Activation("tanh"), mc.layers.Reshape((2, 4)), mc.layers.Flatten(),
        mc.layers.Dropout(0.4, seed=3), mc.Sequential([mc.layers.Dense(3)], name="head"),
    ]


def test_a_model_that_is_not_built():
    model = again(mc.Sequential(layers()))
    other = mc.Sequential(layers())
    model.build((None, 6, 6, 2), rng=0)
    other.build((None, 6, 6, 2), rng=0)
    assert_same_bits(model.predict(IMAGES), other.predict(IMAGES))


@pytest.mark.parametrize("fuse", [True, False])
def test_a_built_model_continues_training(fuse):
    model = mc.Sequential(layers(), fuse=fuse)
    model.build((None, 6, 6, 2), rng=0)
    model.layers[2].trainable = False
    sgd = optimizers.SGD(optimizers.step_decay(0.1, 1, 0.5), momentum=0.9)
    step(model, sgd)
    model_again, sgd_again = again((model, sgd))
    assert_same_bits(model_again.predict(IMAGES), model.predict(IMAGES))
    step(model, sgd)
    step(model_again, sgd_again)
    for one, other in zip(model.parameters, model_again.parameters, strict=True):
        assert one.name == other.name
        assert one.trainable == other.trainable
        assert_same_bits(one.value, other.value)
    assert not model_again.layers[2].kernel.trainable


def step(model, optimizer):
    ctx = mc.Context(training=True, rng=np.random.default_rng(0))
    y = model.forward(IMAGES, ctx)
    model.backward(np.ones_like(y), ctx)
    optimizer.step(model.parameters)


@pytest.mark.parametrize(("schedule", "text"), [
    (optimizers.constant(0.3), "constant(0.3)"),
    (optimizers.step_decay(0.8, 10, 0.5), "step_decay(0.8, 10, 0.5)"),
    (optimizers.exponential_decay(0.8, 10, 0.25), "exponential_decay(0.8, 10, 0.25)"),
    (optimizers.exponential_decay(np.float32(0.5), 7, 0.3, staircase=True),
     "exponential_decay(0.5, 7, 0.3, staircase=True)"),
    (optimizers.cosine_decay(0.9, 12, end=0.1), "cosine_decay(0.9, 12, end=0.1)"),
])
def test_schedules(schedule, text):
    steps = range(0, 40, 3)
    assert [again(schedule)(n) for n in steps] == [schedule(n) for n in steps]
    assert repr(schedule) == text
    assert repr(eval(text, vars(optimizers))) == text


@pytest.mark.parametrize("name", ["glorot_uniform", "uniform_unit_scaling", "he_normal", "zeros"])
def test_initializers(name):
    initializer = mc.initializers.get(name, "zeros")
    assert_same_bits(again(initializer)((3, 4), 0), initializer((3, 4), 0))


def test_constants():
    number = again(mc.initializers.constant(0.1))
    assert_same_bits(number((2,)), np.full(2, 0.1, np.float32))
    assert repr(number) == "constant(0.1)"
    array = again(mc.initializers.constant([[1, 2]]))
    assert_same_bits(array((1, 2)), np.array([[1, 2]], np.float32))
    assert repr(array) == "constant(an array of shape (1, 2) and type int64)"


@pytest.mark.parametrize("value", [
    optimizers.SGD(0.1, momentum=0.9, nesterov=True), optimizers.Adam(optimizers.constant(0.1)),
    mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes"),
    mc.RunConfig(seed=3, save_checkpoints_steps=7),
    hooks.LoggingTensorHook(["loss"], every_n_iter=3, at_end=True, formatter=str),
    hooks.StopAtStepHook(num_steps=3), hooks.CheckpointSaverHook(save_steps=3),
    hooks.StepCounterHook(), hooks.NanTensorHook(),
    hooks.ValidationMonitor(IMAGES, np.arange(3), every_n_steps=5, early_stopping_rounds=9),
    mc.hooks.Timer(every_secs=3.0), mc.Parameter("w", np.ones(3)), mc.losses.SoftmaxCrossEntropy(),
])
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_what_has_attributes_alone(value, protocol):
    copy = again(value, protocol)
    assert type(copy) is type(value)
    assert pickle.dumps(copy, protocol) == pickle.dumps(again(copy, protocol), protocol)
    assert vars(copy).keys() == vars(value).keys()


def test_a_dataset_continues_with_the_same_batches():
    data = mc.datasets.Dataset(IMAGES, np.arange(3), seed=5)
    data.next_batch(2)
    copy = again(data)
    for _ in range(4):
        assert copy.next_batch(2)[1].tolist() == data.next_batch(2)[1].tolist()


def test_an_estimator(tmp_path):
    config = mc.RunConfig(seed=0)
    estimator = again(mc.Estimator(model_fn, tmp_path / "a", {"classes": 3}, config))
    monitor = again(hooks.ValidationMonitor(IMAGES, np.arange(3), every_n_steps=1))
    estimator.fit(IMAGES, np.arange(3), steps=3, monitors=[monitor])
    assert monitor.best_value is not None
    ours, theirs = (e.predict(IMAGES, as_iterable=False) for e in (estimator, again(estimator)))
    assert_same_bits(ours["logits"], theirs["logits"])


def test_a_train_op():
    x = mc.Graph().placeholder("x", (None, 6, 6, 2), np.float32)
    labels = x.graph.placeholder("labels", (None,), np.int64)
    train_op = model_fn(x, labels, mc.ModeKeys.TRAIN, {"classes": 3}).train_op
    assert again(train_op).optimizer.learning_rate(2) == 0.025
