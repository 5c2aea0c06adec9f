"""For each public function a valid call, and bad values for each of its arguments.

The names and the arguments are read from the public surface, so that a new one fails a test until
it is added here. `problem` says what is wrong with the response to a bad value.
"""

import contextlib
import copy
import faulthandler
import inspect
import math
import os
import re
import shutil
import types
from collections.abc import Iterator
from pathlib import Path

import docstrings
import numpy as np
import public
import pytest

import minicnn as mc
from minicnn.core.checks import describe
from minicnn.inference import program_of

NAN, INF, THING = math.nan, math.inf, object()
HUGE, BEYOND = 10**12, 10**30  # exceeds the memory; exceeds 64 bits
TRAINED = "trained"  # the folder in which a hook is tested
SECONDS = 120  # after which a call counts as hanging
MEMORY = 2 << 30  # bytes that a call may ask for

RNG = np.random.default_rng
LOGITS = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
ROWS = np.eye(3, dtype=np.float32)[[0, 2]]


def images(*shape):
    return RNG(0).random(shape, np.float32)


# Bad values, by the kind of argument --------------------------------------------------------------

_NO_NUMBER = ["3", [3], {}, 1j, THING]
_NO_INTEGER = [2.5, NAN, INF, True, *_NO_NUMBER]
_NO_ARRAY = ["3", {}, THING, [[1.0], [2.0, 3.0]], np.array([1.0, None]), np.array(["1", "2"])]
_NO_TEXT = ["", 3, NAN, [], b"name", THING]
_NO_PATH = [3, NAN, ["file"], THING, "\0", "no folder/file.npz", "."]
_NO_CLASSES = [
    *_NO_ARRAY, 3, [0.0, 1.0], np.zeros((2, 2, 2), int), np.zeros(0, int), [0], [0, 1, 2],
]
_NO_LAYER_INPUTS = [
    None, 3.0, [[1.0]], *_NO_ARRAY, np.zeros(3, np.float32), np.zeros((2, 3, 4, 5, 6), np.float32),
    np.zeros((2, 6, 6, 2), int), np.zeros((2, 6, 6, 2), complex),
]
_NO_TENSOR = [None, 3.0, "x", [[1.0]], THING, images(2, 6, 6, 2)]

_INITIALIZERS = [
    lambda shape, rng, dtype: np.zeros((1, 1)), lambda shape, rng, dtype: None,
    lambda shape, rng, dtype: np.full(shape, "a"),
]

KINDS = {
    "flag": [2, -1, 0.5, NAN, "no", [], THING],
    "count": [0, -1, *_NO_INTEGER],
    "whole": [-1, *_NO_INTEGER],
    "size": [0, -1, HUGE, BEYOND, *_NO_INTEGER],
    "pair": [
        0, -1, 2.5, NAN, True, "33", {3: 3, 5: 5}, {3, 5}, (), (3,), (3, 0), (3, 3, 3), (3, None),
        (3, 2.5), (3, "3"), BEYOND, (3, BEYOND), THING,
    ],
    "at least 0": [-1, NAN, INF, True, *_NO_NUMBER],
    "above 0": [0, -1, NAN, INF, True, *_NO_NUMBER],
    "share": [-1, 1.0, NAN, INF, True, *_NO_NUMBER],
    "number": [NAN, INF, True, *_NO_NUMBER],
    "rate": [-1, NAN, INF, True, *_NO_NUMBER],
    "axis": [99, -99, BEYOND, *_NO_INTEGER],
    "name": _NO_TEXT,
    "padding": [
        -1, 2.5, NAN, True, None, BEYOND, "", "full", b"same", ["same"], (1,), (1, 1, 1, 1),
        (1, -1), ((1, 1), (1, -1)), ((1, 1), (1, 1, 1)), ((1, 1), "11"), {1: 1}, {3, 5}, THING,
    ],
    "word": ["", "full", 3, NAN, ["same"], b"same", THING],
    "path": _NO_PATH,
    "seed": [-1, *_NO_INTEGER],
    "rng": [-1, 0.5, NAN, "0", [], THING],
    "float type": [np.int32, "float16", "word", 3, NAN, [], object, complex, THING],
    "type": ["word", 3, NAN, [], object, str, THING],
    "activation": ["rellu", "", 3, NAN, [], np.tanh, THING],
    "initializer": [
        "glorot", "", NAN, INF, 1j, True, [0.0], THING, np.zeros(3), *_INITIALIZERS,
    ],
    "regularizer": [0.1, "l2", np.abs, mc.layers.l2_regularizer, THING],
    "nothing": [0.1, 1, "SGD", THING],
    "tensor": _NO_TENSOR,
    "layer inputs": _NO_LAYER_INPUTS,
    "function": [3, "f", [], THING],
    "hook": [3, "f", [], THING],
    "floats": [
        None, 3, [1, 2], *_NO_ARRAY, np.zeros((2, 3), np.float16), np.zeros((2, 3), complex),
    ],
    "numbers": [None, *_NO_ARRAY],
    "classes": [None, *_NO_CLASSES],
    "weights": [
        "1", {}, [THING], [1.0, 2.0, 3.0], [[1.0, 2.0]], [NAN, 1.0], [INF, 1.0], [-1.0, 1.0], NAN,
        np.array([None, 1.0]), 1j,
    ],
}


# Valid calls --------------------------------------------------------------------------------------


def tensor(*shape, dtype=np.float32, graph=None):
    return (graph or mc.Graph()).placeholder("x", (None, *shape), dtype)


def model_fn(features, labels, mode):
    logits = mc.layers.dense(mc.layers.flatten(features), 3)
    predictions = {"classes": mc.argmax(logits, 1), "probabilities": mc.softmax(logits)}
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
    return mc.ModelFnOps(mode, predictions, loss, train_op)


def fitted():
    """Return an Estimator that has made one step in the folder "model"."""
    shutil.rmtree("model", ignore_errors=True)
    estimator = mc.Estimator(model_fn, "model", config=mc.RunConfig(seed=0, progress=False))
    return estimator.fit(images(4, 6, 6, 2), [0, 1, 2, 0], steps=1)


def built(layer, shape=(None, 6, 6, 2)):
    layer.build(shape, rng=0)
    return layer


def sequential():
    return mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(3, activation="relu")])


def parameters():
    parameter = mc.Parameter("w", np.ones(2, np.float32))
    parameter.grad[...] = 3, 4
    return [parameter]


def saved(save, name):
    save(built(sequential()), name)
    return name


def through(layer):
    """Build a layer and run a batch forward and backward."""
    built(layer)
    ctx = mc.Context(training=True, rng=RNG(0))
    y = layer.forward(images(2, 6, 6, 2), ctx)
    layer.backward(np.ones_like(y), ctx)


def scalar_loss():
    graph = mc.Graph()
    labels = graph.placeholder("labels", (None,), np.int64)
    logits = mc.layers.dense(graph.placeholder("x", (None, 4), np.float32), 3)
    return mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)


def train_with(hook):
    """Train a step with a hook, which then uses its arguments."""
    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(model_fn, TRAINED, config=config)
    estimator.fit(images(4, 6, 6, 2), [0, 1, 2, 0], steps=2, monitors=[hook])


def compute(spec):
    spec.compute(
        {"a": np.array([1]), "b": np.array([2])}, {"c": np.array([1])}, {"d": np.array([1.0])}
    )


_LAYER = {"activation": "relu", "use_bias": True, "kernel_initializer": "he_normal",
          "bias_initializer": "zeros", "trainable": True, "name": "first",
          "kernel_regularizer": mc.layers.l2_regularizer(0.1), "bias_regularizer": None}
_SLIDING = {"strides": 1, "padding": "same", "data_format": "channels_last", "name": "first"}
_CONV = {"filters": 2, "kernel_size": 3, **_SLIDING, "dilation_rate": 1, **_LAYER}
_TRANSPOSED = {key: value for key, value in _CONV.items() if key != "dilation_rate"}
_DEPTHWISE = {
    "depth_multiplier": 2, "depthwise_initializer": "he_normal", "depthwise_regularizer": None,
    **{key: value for key, value in _CONV.items()
       if key not in ("filters", "kernel_initializer", "kernel_regularizer")},
}
_SEPARABLE = {
    "filters": 2, **_DEPTHWISE, "pointwise_initializer": "zeros",
    "pointwise_regularizer": mc.layers.l1_regularizer(0.1),
}
_DROPOUT = {
    "rate": 0.5, "noise_shape": (None, 1, 1, 2), "seed": 0, "training": True, "name": "first",
}
_NORM = {
    "axis": -1, "momentum": 0.9, "epsilon": 0.01, "center": True, "scale": True,
    "beta_initializer": "zeros", "gamma_initializer": "ones", "moving_mean_initializer": "zeros",
    "moving_variance_initializer": "ones", "training": True, "trainable": True, "name": "first",
}
_REDUCED = {"weights": [1.0, 0.0], "reduction": "weighted_mean"}
_LOSS = {**_REDUCED, "label_smoothing": 0.1}
_LOSSES = {
    "softmax_cross_entropy": "logits", "sparse_softmax_cross_entropy": "logits",
    "sigmoid_cross_entropy": "logits", "mean_squared_error": "predictions",
    "absolute_difference": "predictions",
}
_START = {"shape": (3, 4), "rng": 0, "dtype": np.float32}
_SCHEDULE = {"rate": 0.1}
_SELECTION = {"only": "dense*", "skip": ["*/bias"], "strict": True}

# All valid arguments of each public name. An argument that each call needs new is a lambda.
CALLS = {
    "minicnn.CheckpointError": dict,
    "minicnn.Context": lambda: {
        "training": False, "rng": RNG(0), "save": True, "workspace": mc.Workspace(), "first_row": 0,
        "total": lambda array: array, "counted": True,
    },
    "minicnn.Estimator": lambda: {
        "model_fn": model_fn, "model_dir": "model", "params": {}, "config": mc.RunConfig(),
        "warm_start_from": "saved.npz", "vars_to_warm_start": ".*",
    },
    "minicnn.InferenceModel": lambda: {"program": program_of(built(sequential()))},
    "minicnn.History": lambda: {"path": None, "rows": [{"step": 1, "loss": 0.5}]},
    "minicnn.Graph": lambda: {"rng": 0, "parameters": {}},
    "minicnn.MetricSpec": lambda: {
        "metric_fn": mc.metrics.accuracy, "prediction_key": "a", "label_key": "c",
        "weight_key": "d",
    },
    "minicnn.ModeKeys": dict,
    "minicnn.ModelFnOps": lambda: {
        "mode": "train", "predictions": {"x": tensor(3)}, "loss": (loss := scalar_loss()),
        "train_op": mc.optimize_loss(loss, learning_rate=0.1),
    },
    "minicnn.NanLossError": dict,
    "minicnn.Op": lambda: {"name": "first"},
    "minicnn.Parameter": lambda: {
        "name": "w", "value": np.ones((2, 3), np.float32), "trainable": True,
    },
    "minicnn.RunConfig": lambda: {
        "seed": 0, "save_checkpoints_secs": None, "save_checkpoints_steps": 10,
        "keep_checkpoint_max": 5, "log_step_count_steps": 100, "fuse": True, "progress": True,
        "distribute": None,
    },
    "minicnn.Sequential": lambda: {"layers": [mc.layers.Flatten()], "name": "net", "fuse": True},
    "minicnn.Tensor": lambda: {
        "graph": mc.Graph(), "name": "x", "shape": (None, 3), "dtype": np.float32, "op": None,
        "inputs": (),
    },
    "minicnn.TrainOp": lambda: {
        "loss": scalar_loss(), "optimizer": mc.optimizers.SGD(0.1), "clip_gradients": 1.0,
        "variables": ["dense/kernel"],
    },
    "minicnn.Workspace": dict,
    "minicnn.add": lambda: {"x": LOGITS.copy(), "y": LOGITS.copy(), "name": "first"},
    "minicnn.argmax": lambda: {"input": LOGITS.copy(), "axis": 1, "name": "first"},
    "minicnn.cast": lambda: {"x": LOGITS.copy(), "dtype": np.int32, "name": "first"},
    "minicnn.check_gradients": lambda: {
        "layer": mc.layers.Dense(2), "input_shape": (2, 3), "seed": 0, "training": False,
        "tolerance": 1e-6, "entries": 3, "ties": True,
    },
    "minicnn.gelu": lambda: {"inputs": LOGITS.copy(), "approximate": True, "name": "first"},
    "minicnn.concat": lambda: {"values": [LOGITS.copy()] * 2, "axis": 1, "name": "first"},
    "minicnn.get_num_threads": dict,
    "minicnn.identity": lambda: {"inputs": LOGITS.copy(), "name": "first"},
    "minicnn.leaky_relu": lambda: {"inputs": LOGITS.copy(), "alpha": 0.1, "name": "first"},
    "minicnn.log_softmax": lambda: {"logits": LOGITS.copy(), "axis": 1, "name": "first"},
    "minicnn.load_weights": lambda: {
        "model": built(sequential()), "path": saved(mc.save_weights, "saved.npz"), **_SELECTION,
    },
    "minicnn.one_hot": lambda: {
        "indices": np.array([0, 2]), "depth": 3, "on_value": 1, "off_value": 0, "axis": -1,
        "dtype": np.float32, "name": "first",
    },
    "minicnn.optimize_loss": lambda: {
        "loss": scalar_loss(), "global_step": None, "learning_rate": 0.1, "optimizer": "SGD",
        "clip_gradients": 1.0, "learning_rate_decay_fn": lambda rate, step: rate,
        "variables": ["dense/kernel"], "name": "first",
    },
    **{f"minicnn.{name}": lambda: {
        "input_tensor": LOGITS.copy(), "axis": 1, "keepdims": True, "name": "first",
    } for name in ("reduce_mean", "reduce_sum")},
    "minicnn.relu": lambda: {"inputs": LOGITS.copy(), "name": "first"},
    "minicnn.reshape": lambda: {"tensor": LOGITS.copy(), "shape": [-1, 3], "name": "first"},
    "minicnn.save_weights": lambda: {"model": built(sequential()), "path": "new.npz"},
    "minicnn.set_num_threads": lambda: {"n": mc.get_num_threads()},
    "minicnn.sigmoid": lambda: {"inputs": LOGITS.copy(), "name": "first"},
    "minicnn.softmax": lambda: {"logits": LOGITS.copy(), "axis": 1, "name": "first"},
    "minicnn.tanh": lambda: {"inputs": LOGITS.copy(), "name": "first"},
    "minicnn.warmup": lambda: {"model": built(sequential()), "x": None},
    "minicnn.layers.Activation": lambda: {"activation": "relu", "name": "first"},
    "minicnn.layers.AveragePooling2D": lambda: {"pool_size": 2, **_SLIDING},
    "minicnn.layers.BatchNormalization": lambda: {**_NORM},
    "minicnn.layers.Conv2D": lambda: {**_CONV},
    "minicnn.layers.Conv2DTranspose": lambda: {**_TRANSPOSED},
    "minicnn.layers.DepthwiseConv2D": lambda: {**_DEPTHWISE},
    "minicnn.layers.SeparableConv2D": lambda: {**_SEPARABLE},
    "minicnn.layers.Dense": lambda: {"units": 3, **_LAYER},
    "minicnn.layers.Dropout": lambda: {**_DROPOUT},
    "minicnn.layers.Flatten": lambda: {"name": "first"},
    "minicnn.layers.GlobalAveragePooling2D": lambda: {
        "data_format": "channels_last", "name": "first",
    },
    "minicnn.layers.GlobalMaxPooling2D": lambda: {"data_format": "channels_last", "name": "first"},
    "minicnn.layers.Layer": lambda: {"name": "first"},
    "minicnn.layers.MaxPooling2D": lambda: {"pool_size": 2, **_SLIDING},
    "minicnn.layers.Residual": lambda: {
        "block": [mc.layers.Dense(3)], "shortcut": mc.layers.Dense(3), "name": "first",
    },
    "minicnn.layers.Reshape": lambda: {"target_shape": (12, 6), "name": "first"},
    "minicnn.layers.Sequential": lambda: CALLS["minicnn.Sequential"](),
    "minicnn.layers.average_pooling2d": lambda: {
        "inputs": tensor(6, 6, 2), "pool_size": 2, **_SLIDING,
    },
    "minicnn.layers.batch_normalization": lambda: {"inputs": tensor(6, 6, 2), **_NORM},
    "minicnn.layers.conv2d": lambda: {"inputs": tensor(6, 6, 2), **_CONV},
    "minicnn.layers.conv2d_transpose": lambda: {"inputs": tensor(6, 6, 2), **_TRANSPOSED},
    "minicnn.layers.separable_conv2d": lambda: {"inputs": tensor(6, 6, 2), **_SEPARABLE},
    "minicnn.layers.dense": lambda: {"inputs": tensor(6, 6, 2), "units": 3, **_LAYER},
    "minicnn.layers.dropout": lambda: {"inputs": tensor(6, 6, 2), **_DROPOUT},
    "minicnn.layers.flatten": lambda: {"inputs": tensor(6, 6, 2), "name": "first"},
    "minicnn.layers.l1_regularizer": lambda: {"scale": 0.1},
    "minicnn.layers.l2_regularizer": lambda: {"scale": 0.1},
    "minicnn.layers.max_pooling2d": lambda: {
        "inputs": tensor(6, 6, 2), "pool_size": 2, **_SLIDING,
    },
    "minicnn.losses.SoftmaxCrossEntropy": lambda: {**_LOSS, "name": "first"},
    "minicnn.losses.regularization": lambda: {"model": built(mc.layers.Dense(2))},
    "minicnn.losses.softmax_cross_entropy": lambda: {
        "onehot_labels": ROWS.copy(), "logits": LOGITS.copy(), **_LOSS, "name": "first",
    },
    "minicnn.losses.softmax_cross_entropy_with_grad": lambda: {
        "labels": np.array([0, 2]), "logits": LOGITS.copy(), **_LOSS,
    },
    "minicnn.losses.sparse_softmax_cross_entropy": lambda: {
        "labels": np.array([0, 2]), "logits": LOGITS.copy(), **_REDUCED, "name": "first",
    },
    "minicnn.losses.sparse_softmax_cross_entropy_with_grad": lambda: {
        "labels": np.array([0, 2]), "logits": LOGITS.copy(), **_REDUCED,
    },
    "minicnn.losses.sigmoid_cross_entropy": lambda: {
        "multi_class_labels": ROWS.copy(), "logits": LOGITS.copy(), **_LOSS, "name": "first",
    },
    "minicnn.losses.sigmoid_cross_entropy_with_grad": lambda: {
        "labels": ROWS.copy(), "logits": LOGITS.copy(), **_LOSS,
    },
    **{f"minicnn.losses.{name}": lambda: {
        "labels": ROWS.copy(), "predictions": LOGITS.copy(), **_REDUCED, "name": "first",
    } for name in ("mean_squared_error", "absolute_difference")},
    **{f"minicnn.losses.{name}_with_grad": lambda: {
        "labels": ROWS.copy(), "predictions": LOGITS.copy(), **_REDUCED,
    } for name in ("mean_squared_error", "absolute_difference")},
    "minicnn.metrics.accuracy": lambda: {
        "labels": np.array([0, 2]), "predictions": np.array([1, 2]), "weights": np.array([1.0, 2]),
    },
    "minicnn.metrics.mean": lambda: {
        "values": np.array([0.5, 2]), "weights": np.array([1.0, 2]),
    },
    **{f"minicnn.metrics.{name}": lambda: {
        "labels": np.array([0, 2]), "predictions": np.array([1, 2]),
        "weights": np.array([1.0, 2]), "positive": 2,
    } for name in ("precision", "recall")},
    "minicnn.metrics.top_k_accuracy": lambda: {
        "labels": np.array([0, 2]), "predictions": LOGITS.copy(),
        "weights": np.array([1.0, 2]), "k": 2,
    },
    "minicnn.metrics.confusion_matrix": lambda: {
        "labels": np.array([0, 2]), "predictions": np.array([1, 2]), "num_classes": 3,
    },
    "minicnn.optimizers.Optimizer": lambda: {"learning_rate": 0.1},
    "minicnn.optimizers.SGD": lambda: {
        "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.01,
    },
    "minicnn.optimizers.Adam": lambda: {
        "learning_rate": 0.1, "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01,
    },
    "minicnn.optimizers.AdamW": lambda: CALLS["minicnn.optimizers.Adam"](),
    "minicnn.optimizers.RMSprop": lambda: {
        "learning_rate": 0.1, "decay": 0.9, "momentum": 0.5, "epsilon": 1e-10,
    },
    "minicnn.optimizers.constant": lambda: {**_SCHEDULE},
    "minicnn.optimizers.step_decay": lambda: {**_SCHEDULE, "every": 10, "factor": 0.5},
    "minicnn.optimizers.exponential_decay": lambda: {
        **_SCHEDULE, "decay_steps": 10, "decay_rate": 0.5, "staircase": False,
    },
    "minicnn.optimizers.cosine_decay": lambda: {**_SCHEDULE, "decay_steps": 10, "end": 0.0},
    "minicnn.optimizers.clip_by_global_norm": lambda: {"parameters": parameters(), "max_norm": 1.0},
    "minicnn.optimizers.get": lambda: {"optimizer": "SGD", "learning_rate": 0.1},
    "minicnn.hooks.NanLossError": dict,
    "minicnn.hooks.SessionRunArgs": lambda: {"fetches": "loss"},
    "minicnn.hooks.SessionRunValues": lambda: {"results": 1.0},
    "minicnn.hooks.SessionRunContext": lambda: {"session": None},
    "minicnn.hooks.SessionRunHook": dict,
    "minicnn.hooks.Timer": lambda: {"every_steps": 10, "every_secs": None},
    "minicnn.hooks.EarlyStopping": lambda: {
        "patience": 2, "metric": "loss", "minimize": True,
    },
    "minicnn.hooks.LoggingTensorHook": lambda: {
        "tensors": ["loss"], "every_n_iter": 1, "every_n_secs": None, "at_end": False,
        "formatter": str,
    },
    "minicnn.hooks.StopAtStepHook": lambda: {"num_steps": 10, "last_step": None},
    "minicnn.hooks.CheckpointSaverHook": lambda: {"save_secs": None, "save_steps": 10},
    "minicnn.hooks.StepCounterHook": lambda: {"every_n_steps": 10, "every_n_secs": None},
    "minicnn.hooks.NanTensorHook": lambda: {"loss_tensor": "loss", "fail_on_nan_loss": True},
    "minicnn.hooks.ValidationMonitor": lambda: {
        "x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0]), "input_fn": None, "batch_size": 2,
        "metrics": {"accuracy": mc.MetricSpec(mc.metrics.accuracy, "classes")}, "every_n_steps": 1,
        "early_stopping_rounds": 5, "early_stopping_metric": "loss",
        "early_stopping_metric_minimize": True, "name": "validation", "restore_best_weights": True,
        "keep_best": True,
    },
    "minicnn.datasets.Dataset": lambda: {
        "images": images(3, 4), "labels": np.array([0, 1, 2]), "seed": 0,
        "class_names": ["a", "b", "c"],
    },
    "minicnn.datasets.augment": lambda: {
        "shift": 1, "flip": True, "crop": 0.9, "rotation": 10.0, "data_format": "channels_last",
    },
    "minicnn.datasets.images_from_folder": lambda: {
        "path": picture_folder(), "size": 4, "color": True, "seed": 0,
    },
    "minicnn.datasets.Datasets": lambda: {
        "folder": Path(), "shipped": False, "one_hot": False, "reshape": True,
        "validation_size": 0, "seed": 0,
    },
    "minicnn.datasets.load_dataset": lambda: {
        "name": "mnist", "one_hot": False, "reshape": True, "validation_size": 5000, "seed": 0,
    },
    "minicnn.datasets.read_idx": lambda: {"path": idx_file()},
    "minicnn.initializers.glorot_uniform": lambda: {**_START},
    "minicnn.initializers.uniform_unit_scaling": lambda: {**_START},
    "minicnn.initializers.he_normal": lambda: {**_START},
    "minicnn.initializers.ones": lambda: {**_START},
    "minicnn.initializers.zeros": lambda: {**_START},
    "minicnn.initializers.constant": lambda: {"value": 0.5},
    "minicnn.initializers.get": lambda: {"spec": "zeros", "default": "zeros", "name": "spec"},
    "minicnn.distributed.DataParallel": lambda: {"check_every": 10},
    "minicnn.export.from_onnx": lambda: {"path": onnx_file()},
    "minicnn.export.load_safetensors": lambda: {
        "model": built(sequential()), "path": saved(mc.export.save_safetensors, "saved.st"),
        **_SELECTION,
    },
    "minicnn.export.save_safetensors": lambda: {
        "model": built(sequential()), "path": "new.safetensors",
    },
    "minicnn.export.to_onnx": lambda: {
        "model": built(sequential()), "path": "new.onnx", "x": None, "softmax": True,
        "checkpoint_path": None,
    },
    "minicnn.images.picture": lambda: {"path": picture_file()},
    "minicnn.images.pixels": lambda: {
        "picture": mc.images.picture(picture_file()), "size": 4, "color": True,
    },
    "minicnn.images.read": lambda: {"path": picture_file()},
    "minicnn.images.digit": lambda: {"pixels": digit_on_paper()},
    "minicnn.report": lambda: {
        "model_dir": fitted().model_dir, "x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0]),
        "model": mc.Estimator(model_fn, "model"), "name": "test", "path": "new.html",
    },
    "minicnn.plots.learning_curve": lambda: {"source": [{"global_step": 1, "loss": 0.5}]},
    "minicnn.plots.confusion_matrix": lambda: {
        "labels": np.array([0, 2]), "predictions": np.array([1, 2]),
    },
    "minicnn.plots.filters": lambda: {"kernel": images(3, 3, 1, 2)},
    "minicnn.plots.feature_maps": lambda: {"activations": images(3, 3, 2)},
    "minicnn.plots.worst_mistakes": lambda: {
        "images": images(2, 4, 4), "labels": np.array([0, 2]), "probabilities": ROWS[::-1].copy(),
        "count": 2,
    },
    "minicnn.plots.filter_grid": lambda: {"kernel": images(3, 3, 1, 2)},
    "minicnn.summaries.SummarySaverHook": lambda: {
        "output_dir": "events", "save_steps": 10, "metrics": {},
    },
    "minicnn.summaries.graph_def": lambda: {"graph": scalar_loss().graph},
}

# Methods, and their arguments.
_LAYERS = {
    mc.layers.Activation: ["relu"], mc.layers.AveragePooling2D: [2],
    mc.layers.BatchNormalization: [], mc.layers.Conv2D: [2, 3], mc.layers.Dense: [3],
    mc.layers.Conv2DTranspose: [2, 3], mc.layers.DepthwiseConv2D: [3],
    mc.layers.SeparableConv2D: [2, 3], mc.layers.Dropout: [0.5], mc.layers.Flatten: [],
    mc.layers.GlobalAveragePooling2D: [], mc.layers.GlobalMaxPooling2D: [],
    mc.layers.MaxPooling2D: [2],
    mc.layers.Reshape: [(-1,)],
    mc.layers.Residual: [mc.layers.Activation("relu")], mc.Sequential: [[mc.layers.Flatten()]],
}

new = copy.deepcopy  # for arguments: a layer among them is not built yet

METHODS = {
    **{
        f"{layer.__name__}.build": lambda layer=layer, args=args: (
            layer(*new(args)).build,
            {"input_shape": (None, 6, 6, 2), "rng": 0, "dtype": np.float32},
        )
        for layer, args in _LAYERS.items()
    },
    **{
        f"{layer.__name__}.forward": lambda layer=layer, args=args: (
            built(layer(*new(args))).forward,
            {"x": images(2, 6, 6, 2), "ctx": mc.Context()},
        )
        for layer, args in _LAYERS.items()
    },
    **{
        f"{layer.__name__}.backward": lambda layer=layer, args=args: backward_of(layer(*new(args)))
        for layer, args in _LAYERS.items()
    },
    "Sequential.reset_parameters": lambda: (built(sequential()).reset_parameters, {
        "rng": 0,
    }),
    "Sequential.predict": lambda: (
        built(sequential()).predict, {"x": images(2, 6, 6, 2), "batch_size": 2},
    ),
    "Sequential.add": lambda: (built(sequential()).add, {"layer": mc.layers.Dense(2)}),
    "Sequential.fit": lambda: (sequential().fit, {
        "x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0]), "batch_size": 2, "epochs": 1,
        "steps": None, "max_epochs": None, "max_steps": None, "optimizer": "Adam",
        "learning_rate": 0.1, "loss": "softmax_cross_entropy", "metrics": ["accuracy"],
        "validation_data": (images(4, 6, 6, 2), [0, 1, 2, 0]), "validation_split": None,
        "validation_steps": 1,
        "class_weight": {0: 2.0}, "sample_weight": np.ones(4), "hooks": [], "early_stopping": 2,
        "model_dir": None, "seed": 0, "shuffle": True, "verbose": False, "config": mc.RunConfig(),
        "augment": mc.datasets.augment(shift=1),
    }),
    "Sequential.evaluate": lambda: (built(sequential()).evaluate, {
        "x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0]), "batch_size": 2,
        "metrics": ["accuracy"], "loss": None, "verbose": False,
    }),
    "Sequential.score": lambda: (
        built(sequential()).score, {"x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0])},
    ),
    **{f"Sequential.{method}": lambda method=method: (
        getattr(built(sequential()), method), {"x": images(2, 6, 6, 2), "batch_size": 2},
    ) for method in ("predict_proba", "predict_classes")},
    "Sequential.for_inference": lambda: (
        built(sequential()).for_inference, {"weight_dtype": "float16"},
    ),
    "InferenceModel.predict": lambda: (
        built(sequential()).for_inference().predict, {"x": images(2, 6, 6, 2), "batch_size": 2},
    ),
    "InferenceModel.__call__": lambda: (
        built(sequential()).for_inference(), {"x": images(2, 6, 6, 2)},
    ),
    "Sequential.__call__": lambda: (built(sequential()), {"inputs": images(2, 6, 6, 2)}),
    "Optimizer.step": lambda: (mc.optimizers.SGD(0.1).step, {"parameters": parameters()}),
    "Optimizer.load_state_dict": lambda: (mc.optimizers.SGD(0.1, momentum=0.9).load_state_dict, {
        "state": {"iterations": 1, "w/momentum": np.zeros(2)}, "parameters": parameters(),
    }),
    "Dataset.next_batch": lambda: (
        mc.datasets.Dataset(images(3, 4), np.arange(3)).next_batch,
        {"batch_size": 2, "shuffle": True},
    ),
    "Dataset.split": lambda: (
        mc.datasets.Dataset(images(6, 4), np.arange(6) % 2).split,
        {"validation_split": 0.5, "seed": 0},
    ),
    "Graph.placeholder": lambda: (
        mc.Graph().placeholder, {"name": "x", "shape": (None, 3), "dtype": np.float32},
    ),
    "Graph.find": lambda: (scalar_loss().graph.find, {"name": "dense"}),
    "Graph.plan": lambda: ((loss := scalar_loss()).graph.plan, {"fetches": [loss], "fuse": True}),
    "Estimator.fit": lambda: (fitted().fit, {
        "x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0]), "input_fn": None, "steps": 1,
        "batch_size": 2, "monitors": [], "max_steps": None,
        "augment": mc.datasets.augment(shift=1),
    }),
    "Estimator.evaluate": lambda: (fitted().evaluate, {
        "x": images(4, 6, 6, 2), "y": np.array([0, 1, 2, 0]), "input_fn": None, "batch_size": 2,
        "steps": 1, "metrics": {"accuracy": mc.MetricSpec(mc.metrics.accuracy, "classes")},
        "name": "test", "checkpoint_path": "model/model.ckpt-1.npz",
    }),
    "Estimator.predict": lambda: (fitted().predict, {
        "x": images(4, 6, 6, 2), "input_fn": None, "batch_size": 2, "as_iterable": False,
        "checkpoint_path": "model/model.ckpt-1.npz", "outputs": ["dense"],
    }),
    "Estimator.for_inference": lambda: (fitted().for_inference, {
        "x": images(4, 6, 6, 2), "checkpoint_path": "model/model.ckpt-1.npz", "outputs": ["dense"],
        "weight_dtype": "float16",
    }),
    "Estimator.get_variable_value": lambda: (
        fitted().get_variable_value, {"name": "dense/kernel"},
    ),
}

# Methods that the library calls, not a user; who calls them with checked arguments.
INTERNAL = {
    r"(Op|_Loss|SoftmaxCrossEntropy)\.\w+|Graph\.add": "a graph, which has checked what is applied",
    r"(step|exponential|cosine)_decay\.__call__|constant\.__call__": "an optimizer or a layer",
    r"Parameter\.writable|Sequential\.(check_inputs|converted)": "a layer or an optimizer",
    r"(Layer|BatchNormalization|\w*Conv2D\w*|Dense|Dropout|Residual|\w+Pooling2D)"
    r"\.(?!build$|forward$|backward$)\w+": "a layer",
    r"(Affine|Convolution|Pooling2D)\.\w+": "bases of layers whose methods are called here",
    r"l[12]_regularizer\.\w+|Parameter\.add_penalty_gradient": "a run, or losses.regularization",
    r"Layer\.build": "the layers' own, which are called here",
    r"(Context|Workspace)\.\w+": "a layer",
    r"(\w+Hook|ValidationMonitor|Timer)\.\w+": "a run, with its own context and values",
    r"(SGD|Adam|RMSprop|Optimizer)\.update": "`step`",
    r"TrainOp\.\w+": "a run",
    r"MetricSpec\.compute": "an evaluation",
    r"(DataParallel|Processes|History)\.\w+": "a run",
}


def backward_of(layer):
    ctx = mc.Context()
    dy = np.ones_like(built(layer).forward(images(2, 6, 6, 2), ctx))
    return layer.backward, {"dy": dy, "ctx": ctx, "need_dx": True}


def idx_file():
    Path("labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0\0\x03\x07\x02\x01")
    return "labels-idx1-ubyte"


def onnx_file():
    mc.export.to_onnx(built(sequential()), "saved.onnx")
    return "saved.onnx"


def picture_file():
    from PIL import Image

    Image.new("L", (3, 2), 51).save("grey.png")
    return "grey.png"


def picture_folder():
    Path("pictures/class").mkdir(parents=True, exist_ok=True)
    shutil.copy(picture_file(), "pictures/class")
    return "pictures"


def digit_on_paper():
    pixels = np.full((100, 80), 255, np.uint8)
    pixels[10:50, 30:38] = 0
    return pixels


# What is done with the result, if an argument is checked only then.
USES = {
    "minicnn.MetricSpec": compute,
    **{f"minicnn.layers.{name}": through for name in (
        "Activation", "AveragePooling2D", "BatchNormalization", "Conv2D", "Conv2DTranspose",
        "Dense", "DepthwiseConv2D", "Dropout", "Flatten", "GlobalAveragePooling2D",
        "GlobalMaxPooling2D", "MaxPooling2D", "Reshape", "Residual", "SeparableConv2D",
    )},
    "minicnn.losses.SoftmaxCrossEntropy": lambda op: op.forward(
        ROWS.copy(), LOGITS.copy(), mc.Context()
    ),
    "minicnn.hooks.LoggingTensorHook": train_with,
    "minicnn.hooks.NanTensorHook": train_with,
    "minicnn.hooks.ValidationMonitor": train_with,
    "minicnn.optimize_loss": lambda train_op: train_op.trained(
        list(train_op.loss.graph.parameters.values())
    ),
}


# Which kind an argument is ------------------------------------------------------------------------

# By its name alone, or together with the name of the function.
ARGUMENTS = {
    "name": "name", "trainable": "flag", "training": "flag", "save": "flag", "fuse": "flag",
    "progress": "flag", "use_bias": "flag", "nesterov": "flag", "staircase": "flag",
    "at_end": "flag", "fail_on_nan_loss": "flag",
    "restore_best_weights": "flag", "keep_best": "flag", "early_stopping_metric_minimize": "flag",
    "minicnn.layers.l1_regularizer.scale": "at least 0",
    "minicnn.layers.l2_regularizer.scale": "at least 0", "approximate": "flag", "alpha": "number",
    "one_hot": "flag", "reshape": "flag", "shipped": "flag", "softmax": "flag", "ties": "flag",
    "shuffle": "flag", "keepdims": "flag", "as_iterable": "flag", "need_dx": "flag",
    "units": "size", "filters": "size", "kernel_size": "pair", "pool_size": "pair",
    "strides": "pair", "dilation_rate": "pair", "padding": "padding", "data_format": "word",
    "weight_dtype": "word",
    "activation": "activation", "kernel_initializer": "initializer",
    "bias_initializer": "initializer", "beta_initializer": "initializer",
    "gamma_initializer": "initializer", "moving_mean_initializer": "initializer",
    "moving_variance_initializer": "initializer", "center": "flag", "counted": "flag",
    "total": "function", "kernel_regularizer": "regularizer", "depth_multiplier": "size",
    **{f"{kernel}_initializer": "initializer" for kernel in ("depthwise", "pointwise")},
    **{f"{kernel}_regularizer": "regularizer" for kernel in ("depthwise", "pointwise")},
    "bias_regularizer": "regularizer", "seed": "seed", "rng": "rng", "dtype": "float type",
    "axis": "axis", "depth": "size", "path": "path",
    "checkpoint_path": "path", "rate": "at least 0", "factor": "at least 0",
    "decay_rate": "at least 0", "end": "at least 0", "learning_rate": "rate", "momentum": "share",
    "beta1": "share", "beta2": "share", "epsilon": "above 0", "weight_decay": "at least 0",
    "label_smoothing": "share", "weights": "weights", "reduction": "word",
    "every": "count", "decay_steps": "count",
    "max_norm": "above 0", "clip_gradients": "above 0", "tolerance": "at least 0",
    "entries": "count", "first_row": "whole", "n": "count", "num_classes": "size",
    "batch_size": "count", "steps": "count", "max_steps": "count", "check_every": "count",
    "validation_size": "whole", "count": "count", "formatter": "function", "ctx": "context",
    "input_fn": "function", "labels": "classes", "predictions": "classes", "inputs": "tensor",
    "on_value": "number", "off_value": "number", "shape": "shape", "model": "model",
    "layer": "layer", "x": "layer inputs", "dy": "layer inputs", "metrics": "metrics",
    "parameters": "parameters", "kernel": "kernel", "optimizer": "optimizer",
    "variables": "names", "prediction_key": "key", "label_key": "key", "weight_key": "key",
    "model_fn": "function",
    "learning_rate_decay_fn": "function", "metric_fn": "function",
    **{name: "count" for name in (
        "save_checkpoints_steps", "keep_checkpoint_max", "log_step_count_steps", "every_steps",
        "every_n_iter", "every_n_steps", "num_steps", "last_step", "save_steps",
        "early_stopping_rounds",
    )},
    **{name: "at least 0" for name in (
        "save_checkpoints_secs", "every_secs", "every_n_secs", "save_secs",
    )},
    **{f"minicnn.{name}": "floats" for name in (
        "identity.inputs", "relu.inputs", "sigmoid.inputs", "tanh.inputs", "softmax.logits",
        "leaky_relu.inputs", "gelu.inputs", "log_softmax.logits",
        *(f"losses.{loss}{twin}.{outputs}" for loss, outputs in _LOSSES.items()
          for twin in ("", "_with_grad")),
    )},
    **{f"minicnn.losses.{name}": "values of the loss" for name in (
        "mean_squared_error.labels", "mean_squared_error_with_grad.labels",
        "absolute_difference.labels", "absolute_difference_with_grad.labels",
        "sigmoid_cross_entropy.multi_class_labels", "sigmoid_cross_entropy_with_grad.labels",
    )},
    "minicnn.losses.softmax_cross_entropy.onehot_labels": "distributions",
    "minicnn.add.x": "terms", "minicnn.add.y": "terms", "minicnn.concat.values": "tensors",
    "minicnn.reduce_mean.input_tensor": "floats", "minicnn.reduce_sum.input_tensor": "floats",
    "minicnn.reduce_mean.axis": "axes", "minicnn.reduce_sum.axis": "axes",
    "minicnn.Context.workspace": "workspace",
    "minicnn.Estimator.warm_start_from": "folder",
    "minicnn.Estimator.vars_to_warm_start": "expressions", "Estimator.predict.outputs": "fetches",
    "Estimator.for_inference.x": "rows", "minicnn.warmup.x": "no rows",
    "Estimator.for_inference.outputs": "fetches",
    "only": "patterns", "skip": "patterns", "strict": "flag",
    "minicnn.Estimator.model_dir": "folder", "minicnn.Estimator.config": "config",
    "minicnn.Graph.parameters": "parameters by name",
    "minicnn.ModelFnOps.mode": "word", "minicnn.ModelFnOps.predictions": "tensors by name",
    "minicnn.ModelFnOps.loss": "loss", "minicnn.ModelFnOps.train_op": "train op",
    "minicnn.optimize_loss.loss": "loss", "minicnn.Parameter.value": "float array",
    "minicnn.RunConfig.distribute": "processes", "minicnn.Sequential.layers": "layers",
    "minicnn.layers.Sequential.layers": "layers", "minicnn.layers.Residual.block": "layers",
    "minicnn.layers.Residual.shortcut": "layers", "minicnn.cast.dtype": "type",
    "minicnn.one_hot.dtype": "type", "minicnn.one_hot.indices": "indices",
    "minicnn.cast.x": "numbers", "minicnn.argmax.input": "numbers",
    "minicnn.reshape.tensor": "numbers", "minicnn.layers.Dropout.noise_shape": "noise shape",
    "minicnn.layers.dropout.noise_shape": "noise shape", "minicnn.layers.Dropout.rate": "share",
    "minicnn.layers.dropout.rate": "share", "minicnn.layers.Reshape.target_shape": "row",
    "minicnn.reshape.shape": "row", "minicnn.check_gradients.input_shape": "shape",
    "minicnn.layers.BatchNormalization.scale": "flag",
    "minicnn.layers.batch_normalization.scale": "flag",
    "minicnn.layers.BatchNormalization.epsilon": "at least 0",
    "minicnn.layers.batch_normalization.epsilon": "at least 0",
    "minicnn.metrics.mean.values": "values", "positive": "integer", "k": "count",
    "minicnn.metrics.top_k_accuracy.predictions": "scores", "decay": "share",
    "minicnn.optimizers.get.optimizer": "optimizer",
    "minicnn.hooks.LoggingTensorHook.tensors": "fetches",
    "minicnn.hooks.NanTensorHook.loss_tensor": "fetch",
    "minicnn.hooks.ValidationMonitor.x": "rows", "minicnn.hooks.ValidationMonitor.y": "row labels",
    "minicnn.hooks.ValidationMonitor.early_stopping_metric": "name",
    "minicnn.datasets.Dataset.images": "images", "minicnn.datasets.Dataset.labels": "images",
    "minicnn.datasets.load_dataset.name": "path", "shift": "whole", "flip": "flag",
    "augment": "function", "crop": "part", "rotation": "at least 0", "size": "pair",
    "color": "flag",
    "minicnn.datasets.Dataset.class_names": "class names",
    "minicnn.initializers.constant.value": "constant",
    "minicnn.initializers.get.spec": "initializer",
    "minicnn.initializers.get.default": "initializer",
    "minicnn.export.to_onnx.x": "no rows",
    "minicnn.images.digit.pixels": "pixels", "picture": "image of Pillow",
    "minicnn.plots.learning_curve.source": "records", "minicnn.report.model_dir": "folder",
    "minicnn.report.x": "rows", "minicnn.report.y": "row labels",
    "minicnn.plots.feature_maps.activations": "maps",
    "minicnn.plots.worst_mistakes.images": "maps",
    "minicnn.plots.worst_mistakes.probabilities": "chances",
    "minicnn.summaries.SummarySaverHook.output_dir": "folder",
    "minicnn.summaries.graph_def.graph": "graph",
    **{f"{layer.__name__}.build.input_shape": "shape" for layer in _LAYERS},
    "minicnn.optimize_loss.global_step": "nothing",
    "Sequential.__call__.inputs": "layer inputs", "Sequential.add.layer": "layer",
    "Optimizer.load_state_dict.state": "state",
    "Graph.plan.fetches": "fetched", "Estimator.fit.x": "rows", "Estimator.fit.y": "row labels",
    "Estimator.evaluate.x": "rows", "Estimator.evaluate.y": "row labels",
    "Estimator.predict.x": "rows", "Estimator.fit.monitors": "hooks",
    "Graph.placeholder.dtype": "type", "Graph.find.name": "unknown name",
    "Estimator.get_variable_value.name": "unknown name",
    **{f"Sequential.{method}.{argument}": kind for method in ("fit", "evaluate", "score")
       for argument, kind in {
           "x": "rows", "y": "row labels", "loss": "loss name", "metrics": "metric names",
       }.items()},
    **{name: "count" for name in (
        "epochs", "max_epochs", "validation_steps", "patience", "early_stopping",
    )},
    "metric": "name", "minimize": "flag", "verbose": "verbose", "config": "config",
    "validation_data": "validation", "validation_split": "share", "class_weight": "class weights",
    "sample_weight": "row weights", "hooks": "hooks", "model_dir": "folder",
}

_PARAMETER = mc.Parameter("w", np.ones(2, np.float32))
KINDS |= {
    "shape": [3, None, "33", {3: 3}, (), (3,), (3, -1), (3, 2.5), (3, "3"), (3, NAN), (HUGE, HUGE),
              (BEYOND, 3), (None, None), THING],
    "values of the loss": [None, 3, *_NO_ARRAY, [0, 2], ROWS[:1], ROWS[:, :2], ROWS[0], ROWS * 1j],
    "integer": _NO_INTEGER,
    "scores": [None, 3, *_NO_ARRAY, [0, 2], LOGITS[:1], LOGITS[0], LOGITS[:, :2], LOGITS * 1j],
    "terms": [None, NAN, INF, True, *_NO_ARRAY, LOGITS[0], LOGITS[:1], LOGITS[:, :1], [1, 2],
              LOGITS.astype(np.float64), LOGITS.astype(complex), LOGITS.astype(int)],
    "tensors": [None, 3, "ab", {}, [], [3], [None, LOGITS], [LOGITS, LOGITS[0]],
                [LOGITS, LOGITS[:1]], [LOGITS, LOGITS.astype(np.float64)], ["a"], THING],
    "axes": [99, -99, BEYOND, *_NO_INTEGER, [99], [0.5], [None], "1", {1: 1}],
    "row": [3, None, "33", {3: 3}, (5,), (-1, -1), (-2, 3), (2.5, 3), ("3",), (BEYOND, 3), (-1, 0),
            (0, 3), THING],
    "noise shape": [3, "33", {None: 1}, (), (None, 1), (None, 5, 1, 2), (None, 0, 1, 1),
                    (None, 1, 1, BEYOND), (None, 1, 1, 1.0), (None, 1, 1, None), THING],
    "context": [None, 3, {}, True, THING],
    "workspace": [3, True, {}, THING],
    "folder": [3, NAN, ["folder"], "\0", THING],
    "config": [3, {}, "config", THING],
    "processes": [3, True, "mpi", THING],
    "layers": [3, None, "ab", [3], [None], [mc.layers.Flatten(), "relu"],
               [mc.layers.Flatten] * 2, [mc.layers.Flatten()] * 2, {}, THING],
    "layer": [3, None, "dense", mc.layers.Dense, [mc.layers.Flatten()], THING],
    "model": [3, None, "model", [], THING, mc.layers.Dense(2), mc.layers.Dense],
    "float array": [None, 3, [1, 2], *_NO_ARRAY, np.arange(3), np.zeros(2, np.float16)],
    "indices": [None, 0.5, [0.0, 1.0], *_NO_ARRAY, np.array([True, False]), np.array([1j])],
    "distributions": [None, 3, *_NO_ARRAY, [0, 2], ROWS[:1], ROWS[:, :2], -ROWS, ROWS * 2,
                      ROWS * NAN, np.zeros((2, 3)), ROWS * 1j],
    "loss": [0.5, "loss", [], THING, tensor(3)],
    "train op": [0.5, "SGD", [], THING, mc.optimizers.SGD(0.1)],
    "tensors by name": [3, "x", [3], {"x": 3}, {"x": None}, {3: tensor(2)}, images(2, 2), THING],
    "parameters by name": [3, "w", [_PARAMETER], {"w": 3}, {"w": np.zeros(2)}, THING],
    "parameters": [None, 3, "w", [3], [np.zeros(2)], [_PARAMETER, _PARAMETER], THING],
    "optimizer": [3, None, "sgdd", "", [], THING, lambda rate: None, mc.optimizers.constant(0.1)],
    "names": [3, "dense/kernel", [3], THING, ["no such parameter"]],
    "metrics": [3, "accuracy", [mc.metrics.accuracy], {"a": mc.metrics.accuracy}, {"a": None},
                THING, {3: mc.MetricSpec(mc.metrics.accuracy, "classes")},
                {"a": mc.MetricSpec(mc.metrics.accuracy, "no such prediction")}],
    "loss name": [3, "", "crossentropy", [], THING, lambda *tensors: 3.0],
    "metric names": [3, "acuracy", [3], [None], {"a": 3}, {"loss": "accuracy"}, THING],
    "verbose": ["yes", 3, -1, NAN, [], THING, np.zeros(3)],
    "image of Pillow": [None, 3, "a.png", images(4, 4), THING],
    "validation": [3, "x", [], {}, (images(4, 6, 6, 2),), THING, images(4, 6, 6, 2),
                   (images(4, 6, 6, 2), np.zeros(4, int), np.ones(4)),
                   (images(4, 6, 6, 2), np.zeros(3, int))],
    "class weights": [3, [1.0], {0: -1.0}, {0: NAN}, {0: "1"}, {-1: 1}, {"a": 1}, THING],
    "row weights": [3, "1", [1.0], [-1.0] * 4, [NAN] * 4, [INF] * 4, ["1"] * 4, {}, THING],
    "key": ["", "no such key", 3, NAN, [], THING],
    "values": [None, *_NO_ARRAY, [], [1.0], [[0.5, 2.0]], [1j, 2]],
    "fetches": [3, None, "loss", [3], ["no such tensor"], {"a": 3}, {"a": "no such tensor"}, THING],
    "fetch": [3, None, "", "no such tensor", ["loss"], THING],
    "fetched": [3, None, "loss", ["loss"], [None], tensor(2), THING],
    "rows": [3, 3.0, "x", [], {}, THING, *_NO_ARRAY, images(0, 6, 6, 2), images(3, 6, 6, 2),
             images(4, 5, 5, 1), {"x": images(4, 6, 6, 2), "y": 3}, np.zeros((4, 6, 6, 2), complex),
             np.zeros((4, 6, 6, 2), int)],
    "row labels": [None, 3, "y", [], *_NO_ARRAY, [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, -1],
                   [0.0, 1.0, 2.0, 0.0], np.eye(4), THING],
    "images": [None, 3, "x", {}, *_NO_ARRAY[1:], images(4, 4), []],
    "constant": [None, "0.5", True, 1j, [], {}, THING, [[1.0], [2.0, 3.0]], np.array([None]), NAN,
                 INF],
    "no rows": [3, "x", images(1, 6, 6, 2)],
    "pixels": [None, 3, [], *_NO_ARRAY, np.zeros((3, 3, 3)), np.full((9, 9), NAN), np.zeros((9, 9)),
               np.full((9, 9), 1j)],
    "records": [3, None, {}, [], [3], [{}], [{"loss": 0.5}], ["loss"], "no such folder", THING,
                [{"global_step": 1, "loss": "low"}]],
    "maps": [None, 3, *_NO_ARRAY, images(2), images(2, 2), images(2, 2, 2, 2, 2), images(0, 2, 2)],
    "chances": [None, 3, *_NO_ARRAY, ROWS[0], ROWS[:1], np.zeros((2, 0)), np.eye(2)],
    "kernel": [None, 3, *_NO_ARRAY, images(3, 3), images(3, 3, 2, 2), images(0, 3, 1, 2),
               images(3, 3, 1, 0), images(3, 3, 1, 2) * 1j],
    "graph": [None, 3, "graph", THING, tensor(3)],
    "state": [None, 3, {}, {"iterations": 1}, {"iterations": -1}, {"iterations": 0.5}, [THING],
              {"iterations": 1, "w/momentum": np.zeros(3)}, {"iterations": 1, "v/momentum": [0, 0]},
              {"iterations": 1, "w/momentum": "zeros"}],
    "part": [0, -1, 1.5, NAN, INF, True, *_NO_NUMBER], "class names": [3, "ab", {}, THING],
    "expressions": ["(", 3, None, [3], ["("], {}, THING],
    "patterns": ["", "no such name", 3, [3], ["no such name"], {}, THING],
    "hooks": [3, "hook", [3], [None], mc.hooks.SessionRunHook(), [mc.hooks.SessionRunHook], THING],
    "unknown name": ["", "no such name", 3, None, NAN, [], THING],
}

# What is accepted, and why: all values of an argument, or those that are listed.
ACCEPTED = {
    "minicnn.Tensor": "a graph makes it, from what it has checked",
    "minicnn.TrainOp": "optimize_loss makes it, from what it has checked",
    "minicnn.datasets.Datasets": "load_dataset makes it, from what it has checked",
    "minicnn.hooks.SessionRunArgs": "a plain record; the run that reads it checks",
    "minicnn.hooks.SessionRunValues": "a plain record that a run makes",
    "minicnn.hooks.SessionRunContext": "a run makes it",
    "minicnn.Estimator.params": "the user's own, handed on to model_fn",
    "minicnn.History": "a run makes it",
    "minicnn.InferenceModel": "for_inference makes it",
    "minicnn.MetricSpec.prediction_key": [([None], "where there is one prediction")],
    "minicnn.optimize_loss.name": "kept for the guide's signature, and not looked at",
    **{f"minicnn.initializers.{name}.rng": "not looked at: nothing is drawn"
       for name in ("ones", "zeros")},
    **{f"minicnn.initializers.{name}.shape": [([(3,), ()], "the shape of a bias, of a number")]
       for name in ("ones", "zeros")},
    "minicnn.initializers.get.default": "the library's own",
    "minicnn.initializers.get.name": "the library's own",
    "minicnn.initializers.get.spec": [
        (_INITIALIZERS, "looked at when it is called, by the layer"), ([None], "the default"),
    ],
    **{f"Estimator.{name}.x": [([images(3, 6, 6, 2)], "there are no labels that it must fit")]
       for name in ("for_inference", "predict")},
    "minicnn.warmup.model": [([None], "the kernels of a training step")],
    **{f"minicnn.losses.{name}.weights": [([[-1.0, 1.0]], "a reward may have either sign")]
       for name in ("SoftmaxCrossEntropy", *_LOSSES, *(f"{loss}_with_grad" for loss in _LOSSES))},
    "minicnn.datasets.Dataset.seed": [([None], "a new one is drawn")],
    "minicnn.datasets.images_from_folder.seed": [([None], "a new one is drawn")],
    "minicnn.datasets.load_dataset.seed": [([None], "a new one is drawn")],
    **{f"minicnn.layers.{name}.strides": [([None], "the size of the window, as in the class")]
       for name in ("average_pooling2d", "max_pooling2d")},
    **{f"minicnn.layers.{name}.{which}_initializer": [([None], "the default")]
       for name in ("BatchNormalization", "batch_normalization")
       for which in ("beta", "gamma", "moving_mean", "moving_variance")},
    **{f"minicnn.layers.{layer}.bias_initializer": [([None], "the default, zeros")] for layer in (
        "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D", "SeparableConv2D", "conv2d",
        "conv2d_transpose", "dense", "separable_conv2d",
    )},
    "minicnn.datasets.load_dataset.name": [(["."], "a folder; it is read at first use")],
    "minicnn.summaries.SummarySaverHook.metrics": [
        ([{"a": mc.MetricSpec(mc.metrics.accuracy, "no such prediction")}],
         "looked at in the first step"),
    ],
    "Graph.placeholder.shape": [([(), (3,), (None, None)], "what is fed may have any shape")],
    "Sequential.build.rng": [([None], "nothing is drawn: no layer has parameters")],
    "Optimizer.load_state_dict.parameters": [([[_PARAMETER] * 2], "the same state twice")],
    **{f"{layer}.build.rng": "nothing is drawn" for layer in (
        "Activation", "AveragePooling2D", "Dropout", "Flatten", "GlobalAveragePooling2D",
        "GlobalMaxPooling2D", "MaxPooling2D", "Reshape", "Residual")},
    **{f"{layer}.build.input_shape": [([(3,)], "rows of one number each")] for layer in (
        "Activation", "Dropout", "Flatten", "Reshape", "Residual", "Sequential")},
    "*.need_dx": "whatever counts as true: the loop's own flag, in every step",
    **{f"{layer}.{method}.ctx": "the loop's own; Sequential, which users call, looks at it"
       for layer in (
           "Activation", "AveragePooling2D", "BatchNormalization", "Conv2D", "Conv2DTranspose",
           "Dense", "DepthwiseConv2D", "Dropout", "Flatten", "GlobalAveragePooling2D",
           "GlobalMaxPooling2D", "MaxPooling2D", "Reshape", "Residual", "SeparableConv2D")
       for method in ("forward", "backward")},
}


# The machinery ------------------------------------------------------------------------------------


def names(extras=False):
    """Return what can be called: in the core, or with an extra."""
    surface = [*public.objects(), *METHODS]
    return [name for name in surface if bool(extra(name)) == extras]


def methods():
    """Return the public methods that take arguments, by the class that defines them.

    Those of Chain count for Sequential, by which users call them.
    """
    classes = {base for thing in public.objects().values() if inspect.isclass(thing)
               for base in thing.__mro__ if base.__module__.startswith("minicnn.")}
    known_as = {"Chain": "Sequential"}
    return {f"{known_as.get(cls.__name__, cls.__name__)}.{name}"
            for cls in classes for name, function in vars(cls).items()
            if inspect.isfunction(function) and (not name.startswith("_") or name == "__call__")
            and len(inspect.signature(function).parameters) > 1}


def extra(name):
    """Return the packages that a public name needs beyond the core."""
    module = getattr(public.objects().get(name), "__module__", None)
    return docstrings.EXTRAS.get(module, [])


def call(name):
    """Return a valid call: the function and its arguments."""
    if name in METHODS:
        return METHODS[name]()
    function, use = public.objects()[name], USES.get(name)
    return (lambda **given: use(function(**given))) if use else function, CALLS[name]()


def arguments(name):
    """Return the names in the signature."""
    if name not in METHODS:
        return public.parameters(public.objects()[name])
    return list(inspect.signature(METHODS[name]()[0]).parameters)


def kind(name, argument):
    return ARGUMENTS.get(f"{name}.{argument}", ARGUMENTS.get(argument))


def default(name, argument):
    function = METHODS[name]()[0] if name in METHODS else public.objects()[name]
    return inspect.signature(function).parameters[argument].default


def bad_values(name, argument):
    """Return the values that an argument must refuse, among them None if it needs a value."""
    values = KINDS[kind(name, argument)]
    needs_one = default(name, argument) is not None
    return [*(v for v in values if v is not None), *([None] if needs_one else [])]


def accepted(name, argument, value):
    """Return why a value is accepted; None if it must be refused."""
    for key in (f"{name}.{argument}", f"*.{argument}"):
        for values, reason in ACCEPTED.get(key, []):
            if any(value is v or repr(value) == repr(v) for v in values):
                return reason
    return None


def accepted_whole(name, argument):
    """Return why every value of an argument is accepted."""
    return next((reason for key in (name, f"{name}.{argument}", f"*.{argument}")
                 if isinstance(reason := ACCEPTED.get(key), str)), None)


def title(value):
    return f"{type(value).__name__} {describe(value)}"


# What a call changes by design.
CHANGES = {
    **{f"minicnn.layers.{name}": "the graph notes the layer"
       for name in ("average_pooling2d", "batch_normalization", "conv2d", "conv2d_transpose",
                    "dense", "dropout", "flatten", "max_pooling2d", "separable_conv2d")},
    "minicnn.layers.Residual": "its layers are built when the result is used",
    "Optimizer.step": "it changes the parameters",
    "minicnn.optimizers.clip_by_global_norm": "it scales the gradients",
}


def check_valid(name):
    """Check that the valid call gives every argument, succeeds and changes no argument."""
    function, given = call(name)
    assert set(given) == set(arguments(name))
    before = snapshot(given)
    with limits():
        function(**given)
    assert (snapshot(given) != before) == (name in CHANGES)


def check_refused(name):
    """Check that every bad value is refused with a good error, or accepted as the table says."""
    problems = []
    for argument in arguments(name):
        for value in [] if accepted_whole(name, argument) else bad_values(name, argument):
            found, expected = problem(name, argument, value), accepted(name, argument, value)
            if found != ("is accepted" if expected else None):
                answer = found or "is refused, not accepted"
                problems.append(f"{argument} = {title(value)}: {answer}")
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


def check_layouts(name):
    """Check that a read-only or non-contiguous array gives the same result, or is refused."""
    for argument, value in call(name)[1].items():
        if isinstance(value, np.ndarray):
            expected = _answer(name, argument, value)
            for other in layouts(value):
                assert _answer(name, argument, other) == expected, argument


def layouts(array):
    """Yield an array in other memory layouts: read-only, with gaps, reversed, unaligned."""
    frozen = array.copy()
    frozen.flags.writeable = False
    yield frozen
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    yield wide[..., ::2]
    yield array[::-1].copy()[::-1]
    yield np.asfortranarray(array)
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(array.tobytes(), np.uint8)
    yield raw[1:].view(array.dtype).reshape(array.shape)


def _answer(name, argument, value):
    function, given = call(name)
    with limits():
        result = function(**{**given, argument: value})
    if isinstance(result, mc.Estimator):
        result = {name: result.get_variable_value(name) for name in result.get_variable_names()}
    if isinstance(result, Iterator):
        result = list(result)
    kinds = np.ndarray | float | int | list | tuple | dict
    return snapshot(result) if isinstance(result, kinds) else None


def problem(name, argument, value):
    """Return what is wrong with the response to a bad value; None if the error is good."""
    function, given = call(name)
    given[argument] = value
    owner = getattr(function, "__self__", None)  # of a method
    before = snapshot((given, owner)), world()
    try:
        with limits():
            function(**given)
    except (ValueError, TypeError, mc.CheckpointError) as error:
        message = str(error)
    except OSError as error:
        message = str(error) if kind(name, argument) in ("path", "folder") else None
        if message is None:
            return f"{type(error).__name__}: {error}"
        message += f"; {value} is the `{argument}`, and must be one"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    else:
        return "is accepted"
    if (snapshot((given, owner)), world()) != before:
        return f"changes state, and then: {message}"
    calls_it = {argument, *ALIASES.get(f"{name}.{argument}", ALIASES.get(argument, []))}
    if kind(name, argument) in ("path", "folder") and str(value) in message:
        calls_it.add(str(value))
    if not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", message) for word in calls_it):
        return f"the argument is not named: {message}"
    if not says(message, value):
        return f"the value is not named: {message}"
    if not re.search(r"must|may|can|expected|;|give |empty name", message):
        return f"there is no remedy: {message}"
    return None


# The name of an argument in errors, if that is not its own.
ALIASES = {
    "x": ["inputs", "images"], "input_shape": ["inputs"], "dtype": ["inputs"],
    # The size of a kernel, which the error shows
    "units": ["kernel"], "filters": ["kernel", "pointwise_kernel"],
    "depth_multiplier": ["depthwise_kernel"],
    "labels": ["class numbers"], "predictions": ["prediction"], "values": ["weights"],
    "tensors": ["name", "fetched"],
    "outputs": ["name"], "loss_tensor": ["name", "fetched"], "y": ["labels", "indices"],
    "metrics": ["prediction_key"], "pixels": ["digit"], "probabilities": ["labels"],
    "minicnn.metrics.top_k_accuracy.predictions": ["labels"],
    "block": ["layers"], "shortcut": ["layers"], "minicnn.add.x": ["number"],
    "minicnn.add.y": ["number"], "onehot_labels": ["labels"], "multi_class_labels": ["labels"],
    "state": ["iterations", "momentum"], "shape": ["row"], "target_shape": ["row"],
}


def says(message, value):
    """Return whether a message contains the value, or its type or shape.

    What has parts (or makes them, as an initializer) may only have a part that is wrong.
    """
    words = [describe(value), str(value), repr(value), type(value).__name__]
    if isinstance(value, np.ndarray):
        words += [str(value.shape), str(value.dtype)]
    if isinstance(value, int | float):
        words += [f"{value:g}", "got ()", "shape ()", "logits ()", "got (1,)"]  # as an array
    if isinstance(value, list | tuple | dict):
        words += map(str, value if len(value) < 9 else [])
    if isinstance(value, list | tuple | dict | np.ndarray | types.FunctionType):
        words += re.findall(r"\bgot |\bis |\bhas |\blacks |\btwice\b|\bno ", message)
    return any(word[:60] in message for word in words)


def snapshot(value, seen=()):
    """Return the complete state of a value in a form that compares with ==."""
    if id(value) in seen:
        return "above"
    seen = (*seen, id(value))
    if isinstance(value, np.ndarray):
        elements = repr(value) if value.dtype == object else value.tobytes()
        return value.shape, value.dtype.str, elements
    if isinstance(value, mc.Parameter):
        return value.name, snapshot(value.value), snapshot(value.grad)
    if isinstance(value, mc.Graph):  # its generator may have drawn numbers
        return snapshot(value.tensors, seen), snapshot(value.parameters, seen)
    if isinstance(value, mc.optimizers.Optimizer):
        return snapshot(value.state_dict())
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, dict):
        return [(str(key), snapshot(item, seen)) for key, item in value.items()]
    if isinstance(value, list | tuple | set):
        return [snapshot(item, seen) for item in value]
    if isinstance(value, type | types.FunctionType) or not hasattr(value, "__dict__"):
        return repr(value)
    state = {key: item for key, item in vars(value).items() if not key.startswith("_")}
    return type(value).__name__, snapshot(state, seen)


def world():
    """Return the global state: random state, threads, floating-point errors, files here."""
    files = sorted(str(path) for path in Path().rglob("*") if path.parts[0] != TRAINED)
    return str(np.random.get_state()), mc.get_num_threads(), np.geterr(), files


@contextlib.contextmanager
def limits():
    """Stop a call that hangs, with a traceback; limit its memory."""
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        with _memory():
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


@contextlib.contextmanager
def _memory():
    try:
        import resource
    except ImportError:  # Windows
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc") else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
