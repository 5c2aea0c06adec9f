"""The names that users rely on exist, with these parameters and defaults."""

import inspect

import numpy as np
import pytest

import minicnn as mc

# A parameter without a default here may have one in the library; "..." stands for more parameters,
# which all have defaults.
SIGNATURES = {
    # Layers
    "layers.Conv2D": "filters, kernel_size, ...",
    "layers.MaxPooling2D": "pool_size, strides=None, padding='valid', "
        "data_format='channels_last', ...",
    "layers.AveragePooling2D": "pool_size, strides=None, padding='valid', "
        "data_format='channels_last', ...",
    "layers.GlobalAveragePooling2D": "data_format='channels_last', ...",
    "layers.GlobalMaxPooling2D": "data_format='channels_last', ...",
    "layers.BatchNormalization": "axis=-1, momentum=0.99, epsilon=0.001, center=True, scale=True, "
        "beta_initializer='zeros', gamma_initializer='ones', moving_mean_initializer='zeros', "
        "moving_variance_initializer='ones', trainable=True, name=None, ...",
    "layers.Dense": "units, activation=None, use_bias=True, ...",
    "layers.Dropout": "rate, ...",
    "layers.Flatten": "...",
    "layers.Activation": "activation, ...",
    "layers.Layer.build": "self, input_shape, rng, dtype=np.float32",
    "layers.Layer.forward": "self, x, ctx",
    "layers.Layer.backward": "self, dy, ctx, need_dx=True",
    "Context": "training=False, rng=None, ...",
    "Parameter": "name, value, ...",
    "Sequential": "layers, ...",
    "Sequential.summary": "self",
    "Sequential.predict": "self, x, batch_size=100",
    "Sequential.predict_proba": "self, x, batch_size=100",
    "Sequential.predict_classes": "self, x, batch_size=100",
    "Sequential.fit": "self, x, y=None, batch_size=32, epochs=None, ...",
    "Sequential.evaluate": "self, x, y=None, batch_size=None, ...",
    "Sequential.score": "self, x, y=None, ...",
    "Sequential.reset_parameters": "self, rng",
    "Sequential.build": "self, input_shape, rng, dtype=np.float32",
    "Sequential.forward": "self, x, ctx",
    "Sequential.backward": "self, dy, ctx, need_dx=True",
    "save_weights": "model, path",
    "load_weights": "model, path, ...",
    # The guide's layers
    "layers.conv2d": "inputs, filters, kernel_size, strides=(1, 1), padding='valid', "
        "data_format='channels_last', dilation_rate=(1, 1), activation=None, use_bias=True, "
        "kernel_initializer=None, bias_initializer='zeros', kernel_regularizer=None, "
        "bias_regularizer=None, trainable=True, name=None",
    "layers.conv2d_transpose": "inputs, filters, kernel_size, strides=(1, 1), padding='valid', "
        "data_format='channels_last', activation=None, use_bias=True, kernel_initializer=None, "
        "bias_initializer='zeros', kernel_regularizer=None, bias_regularizer=None, "
        "trainable=True, name=None",
    "layers.separable_conv2d": "inputs, filters, kernel_size, strides=(1, 1), padding='valid', "
        "data_format='channels_last', dilation_rate=(1, 1), depth_multiplier=1, activation=None, "
        "use_bias=True, depthwise_initializer=None, pointwise_initializer=None, "
        "bias_initializer='zeros', depthwise_regularizer=None, pointwise_regularizer=None, "
        "bias_regularizer=None, trainable=True, name=None",
    "layers.DepthwiseConv2D": "kernel_size, ...",
    "layers.l2_regularizer": "scale",
    "layers.max_pooling2d": "inputs, pool_size, strides, padding='valid', "
        "data_format='channels_last', name=None",
    "layers.average_pooling2d": "inputs, pool_size, strides, padding='valid', "
        "data_format='channels_last', name=None",
    "layers.batch_normalization": "inputs, axis=-1, momentum=0.99, epsilon=0.001, center=True, "
        "scale=True, beta_initializer='zeros', gamma_initializer='ones', "
        "moving_mean_initializer='zeros', moving_variance_initializer='ones', training=False, "
        "trainable=True, name=None",
    "layers.dense": "inputs, units, activation=None, use_bias=True, kernel_initializer=None, "
        "bias_initializer='zeros', kernel_regularizer=None, bias_regularizer=None, "
        "trainable=True, name=None",
    "layers.dropout": "inputs, rate=0.5, noise_shape=None, seed=None, training=False, name=None",
    "layers.flatten": "inputs, name=None",
    # Loss and array ops
    "relu": "inputs, name=None",
    "reshape": "tensor, shape, name=None",
    "softmax": "logits, axis=-1, name=None",
    "argmax": "input, axis, ...",
    "one_hot": "indices, depth, on_value=1, off_value=0, axis=-1, dtype=np.float32, ...",
    "cast": "x, dtype, ...",
    "losses.softmax_cross_entropy":
        "onehot_labels, logits, weights=1.0, label_smoothing=0, ...",
    "losses.softmax_cross_entropy_with_grad": "labels, logits, ...",
    "metrics.accuracy": "labels, predictions, ...",
    # Training
    "optimize_loss": "loss, global_step=None, learning_rate=None, optimizer, "
        "clip_gradients=None, learning_rate_decay_fn=None, variables=None, ...",
    "optimizers.SGD": "learning_rate, momentum=0.0, ...",
    "optimizers.SGD.step": "self, parameters",
    "optimizers.Adam": "learning_rate, ...",
    "Estimator": "model_fn, model_dir=None, params=None, config=None, warm_start_from=None, "
        "vars_to_warm_start='.*'",
    "Estimator.fit": "self, x=None, y=None, input_fn=None, steps=None, batch_size=None, "
        "monitors=None, max_steps=None, augment=None",
    "Estimator.evaluate": "self, x=None, y=None, input_fn=None, batch_size=None, steps=None, "
        "metrics=None, name=None, ...",
    "Estimator.predict": "self, x=None, input_fn=None, batch_size=None, as_iterable=True, ...",
    "Estimator.get_variable_names": "self",
    "Estimator.get_variable_value": "self, name",
    "ModelFnOps": "mode, predictions=None, loss=None, train_op=None",
    "MetricSpec": "metric_fn, prediction_key=None, label_key=None, weight_key=None",
    # Hooks
    "hooks.SessionRunHook.begin": "self",
    "hooks.SessionRunHook.before_run": "self, run_context",
    "hooks.SessionRunHook.after_run": "self, run_context, run_values",
    "hooks.SessionRunHook.end": "self, session",
    "hooks.SessionRunContext.request_stop": "self",
    "hooks.SessionRunArgs": "fetches, ...",
    "hooks.LoggingTensorHook": "tensors, every_n_iter=None, every_n_secs=None, at_end=False, "
        "formatter=None",
    # Tools
    "check_gradients": "layer, input_shape, ...",
    "set_num_threads": "n",
    "datasets.load_dataset": "name, ...",
}

# Keyword-only parameters, in any order.
KEYWORDS = {
    "layers.Conv2D": {
        "strides": 1, "padding": "valid", "data_format": "channels_last", "dilation_rate": 1,
        "activation": None, "use_bias": True, "kernel_initializer": None,
        "bias_initializer": "zeros", "trainable": True, "name": None,
    },
    "load_weights": {"only": None, "skip": None, "strict": True},
    "Sequential.fit": {
        "steps": None, "max_epochs": None, "max_steps": None, "optimizer": "Adam",
        "learning_rate": None, "loss": "softmax_cross_entropy", "metrics": None,
        "validation_data": None, "validation_split": None, "validation_steps": None,
        "class_weight": None, "sample_weight": None, "hooks": None, "early_stopping": None,
        "model_dir": None, "seed": None, "shuffle": True, "verbose": True, "config": None,
    },
    "hooks.EarlyStopping": {"metric": "loss", "minimize": None},
    "RunConfig": {"seed": None, "save_checkpoints_steps": None, "keep_checkpoint_max": 5,
                  "fuse": True},
    "hooks.StopAtStepHook": {"num_steps": None, "last_step": None},
    "hooks.CheckpointSaverHook": {"save_secs": None, "save_steps": None},
    "hooks.StepCounterHook": {"every_n_steps": None, "every_n_secs": None},
    "hooks.NanTensorHook": {"loss_tensor": "loss", "fail_on_nan_loss": True},
    "hooks.ValidationMonitor": {
        "x": None, "y": None, "input_fn": None, "batch_size": None, "metrics": None,
        "every_n_steps": 100, "early_stopping_rounds": None, "early_stopping_metric": "loss",
        "early_stopping_metric_minimize": True, "name": None, "restore_best_weights": True,
        "keep_best": False,
    },
}

ATTRIBUTES = [
    "ModeKeys.TRAIN", "ModeKeys.EVAL", "ModeKeys.INFER", "NanLossError", "CheckpointError",
    "Graph", "Tensor", "hooks.SessionRunValues", "Sequential.parameters", "identity", "sigmoid",
    "tanh", "initializers.glorot_uniform", "initializers.uniform_unit_scaling",
    "initializers.he_normal", "metrics.mean", "metrics.confusion_matrix",
    "History.to_dict", "History.last", "History.best", "Estimator.history",
]


def find(path):
    value = mc
    for name in path.split("."):
        value = getattr(value, name)
    return value


def wanted(text):
    """Return (name, default) pairs and whether more may follow; a default may be missing."""
    pairs, more = [], text.endswith("...")
    text = text.removesuffix("...").rstrip(", ")
    names = eval(f"lambda {reorder(text)}: 0", {"np": np}) if text else (lambda: 0)
    parameters = inspect.signature(names).parameters
    for name in (part.split("=")[0].strip() for part in split(text)):
        pairs.append((name, parameters[name].default))
    return pairs, more


def split(text):
    """Split at the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def reorder(text):
    """Put the parameters without a default first, as Python requires."""
    return ",".join(sorted(split(text), key=lambda part: "=" in part))


@pytest.mark.parametrize("path", SIGNATURES)
def test_signature(path):
    pairs, more = wanted(SIGNATURES[path])
    parameters = list(inspect.signature(find(path)).parameters.values())
    assert [parameter.name for parameter in parameters[: len(pairs)]] == [name for name, _ in pairs]
    for parameter, (name, default) in zip(parameters, pairs, strict=False):
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD, name
        if default is not inspect.Parameter.empty:
            assert parameter.default == default, name
    rest = parameters[len(pairs) :]
    assert more or not rest
    assert all(parameter.default is not inspect.Parameter.empty for parameter in rest)


@pytest.mark.parametrize("path", KEYWORDS)
def test_keywords(path):
    parameters = inspect.signature(find(path)).parameters
    for name, default in KEYWORDS[path].items():
        assert parameters[name].default == default, name


@pytest.mark.parametrize("path", ATTRIBUTES)
def test_attribute(path):
    find(path)


def test_a_convolution_in_the_order_of_another_library_is_an_error():
    with pytest.raises(TypeError, match="positional arguments"):
        mc.layers.Conv2D(1, 16, 3)  # as in PyTorch: input channels, filters, filter size
    x = mc.Graph().placeholder("x", (None, 6, 6, 1), np.float32)
    assert mc.layers.conv2d(x, 16, 3, 2, "same").shape == (None, 3, 3, 16)
    assert mc.layers.MaxPooling2D(3, 2).build((None, 7, 7, 1), rng=0) == (None, 3, 3, 1)


def test_the_guide_needs_strides():
    x = mc.Graph().placeholder("x", (None, 4, 4, 1), np.float32)
    with pytest.raises(TypeError, match="strides"):
        mc.layers.max_pooling2d(x, 2)


def test_mode_keys_have_the_values_of_the_guides_library():
    assert (mc.ModeKeys.TRAIN, mc.ModeKeys.EVAL, mc.ModeKeys.INFER) == ("train", "eval", "infer")


def test_what_a_layer_and_a_model_have():
    layer = mc.layers.Conv2D(2, 3)
    assert layer.build((None, 5, 5, 1), rng=np.random.default_rng(0)) == (None, 3, 3, 2)
    assert layer.kernel.value.shape == layer.kernel.grad.shape == (3, 3, 1, 2)
    assert layer.bias.value.shape == (2,)
    assert mc.layers.Dense(2, use_bias=False).use_bias is False
    model = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(2), mc.layers.Activation("relu")])
    assert len(model.layers) == 3
    assert model.build((None, 2, 2), 0) == (None, 2)
    assert [parameter.name for parameter in model.parameters] == ["dense/kernel", "dense/bias"]
    assert isinstance(model.summary(), str)


def test_integer_and_one_hot_labels():
    logits = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    first = mc.losses.softmax_cross_entropy_with_grad(labels=np.array([1, 0, 3]), logits=logits)
    onehot = np.eye(4, dtype=np.float32)[[1, 0, 3]]
    second = mc.losses.softmax_cross_entropy_with_grad(labels=onehot, logits=logits)
    assert first[0] == second[0]
    assert np.array_equal(first[1], second[1])
    assert type(first[0]) is float
    assert first[1].shape == (3, 4)
