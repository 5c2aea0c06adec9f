"""Hints: which name of minicnn a name of another library, or a misspelt argument, stands for."""

import functools
import inspect
import re
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])

# What to do, and for which names of other libraries. A name means the same wherever it is typed.
ANSWERS = {
    # layers
    "use mc.layers.Dense(units); the number of inputs is found by build":
        "Linear LazyLinear FullyConnected fully_connected",
    "use mc.layers.Conv2D(filters, kernel_size); the input channels are found by build":
        "Conv2d LazyConv2d Convolution2D",
    "use mc.layers.Conv2DTranspose(filters, kernel_size)": "ConvTranspose2d Convolution2DTranspose",
    "use mc.layers.BatchNormalization()": "BatchNorm BatchNorm1d BatchNorm2d BatchNorm2D",
    "use mc.layers.MaxPooling2D(pool_size)": "MaxPool2d MaxPool2D",
    "use mc.layers.AveragePooling2D(pool_size)": "AvgPool2d AvgPool2D",
    "use mc.layers.GlobalAveragePooling2D()": "AdaptiveAvgPool2d GlobalAvgPool2D",
    "use mc.layers.GlobalMaxPooling2D()": "AdaptiveMaxPool2d GlobalMaxPool2D",
    'use mc.layers.Activation("relu"), or activation="relu" in the layer before it': "ReLU",
    'use mc.layers.Activation("leaky_relu")': "LeakyReLU",
    'use mc.layers.Activation("gelu")': "GELU",
    'use mc.layers.Activation("sigmoid")': "Sigmoid",
    'use mc.layers.Activation("tanh")': "Tanh",
    'use mc.layers.Activation("softmax"); the losses take logits, without it': "Softmax",
    'use mc.layers.Activation("log_softmax"); the losses take logits, without it': "LogSoftmax",
    "use mc.layers.Dropout(rate, noise_shape=(None, 1, 1, channels))": "Dropout2d SpatialDropout2D",
    "use mc.layers.Reshape(target_shape)": "Unflatten",
    "leave it out: model.build((None, 28, 28, 1), rng=0) gives the shape": "Input InputLayer",
    "derive from mc.layers.Layer, or make a model with mc.Sequential([...])": "Module",
    "make a model with mc.Sequential([...]), or with a model_fn for mc.Estimator": "Model",
    # losses
    "use mc.losses.softmax_cross_entropy (of logits, so the model needs no softmax at its end), or "
    "mc.losses.softmax_cross_entropy_with_grad in an explicit loop":
        "CrossEntropyLoss cross_entropy NLLLoss CategoricalCrossentropy categorical_crossentropy "
        "SparseCategoricalCrossentropy sparse_categorical_crossentropy",
    "use mc.losses.sigmoid_cross_entropy, which takes logits":
        "BCEWithLogitsLoss BCELoss BinaryCrossentropy binary_crossentropy",
    "use mc.losses.mean_squared_error": "MSELoss MeanSquaredError mse",
    "use mc.losses.absolute_difference": "L1Loss MeanAbsoluteError mae",
    # optimizers and schedules
    "use mc.optimizers.SGD(learning_rate)": "GradientDescentOptimizer",
    "use mc.optimizers.SGD(learning_rate, momentum=0.9)": "Momentum MomentumOptimizer",
    "use mc.optimizers.Adam(learning_rate)": "AdamOptimizer",
    "use mc.optimizers.RMSprop(learning_rate)": "RMSProp RMSPropOptimizer",
    "give the optimizer mc.optimizers.step_decay(rate, every, factor) as learning_rate": "StepLR",
    "give the optimizer an mc.optimizers.exponential_decay as learning_rate":
        "ExponentialLR ExponentialDecay",
    "give the optimizer an mc.optimizers.cosine_decay as learning_rate":
        "CosineAnnealingLR CosineDecay",
    "use learning_rate": "lr",
    "leave it out: backward overwrites the gradients": "zero_grad",
    # modules
    "use mc.layers and mc.losses; functions such as mc.relu and mc.softmax are in mc":
        "nn functional keras models",
    "use mc.optimizers": "optim",
    "use mc.hooks": "callbacks",
    "use NumPy's arrays": "tensor array",
    "use mc.one_hot(y, depth); the losses also take class numbers": "utils to_categorical",
    "give a seed to what draws numbers: mc.RunConfig(seed=0), model.build(shape, rng=0)":
        "random manual_seed set_seed",
    "leave it out: predict saves nothing; in a loop, mc.Context(save=False)": "no_grad",
    # data
    'use mc.datasets.load_dataset("mnist")': "MNIST load_data",
    "give arrays to fit; in a loop, mc.datasets.Dataset(x, y).next_batch(100)":
        "DataLoader TensorDataset",
    # models and Estimators
    "leave it out: fit takes the optimizer, the loss and the metrics": "compile",
    "save with mc.save_weights(model, path)": "save state_dict save_model",
    "load with mc.load_weights(model, path)": "load load_state_dict load_model",
    "give a model_dir, which keeps checkpoints": "ModelCheckpoint",
    "use mc.summaries.SummarySaverHook(folder)": "TensorBoard SummaryWriter",
    "use [parameter.value for parameter in model.parameters]":
        "weights get_weights trainable_weights trainable_variables named_parameters",
    "see print(model)": "count_params",
    "leave it out: fit trains and predict does not; in a loop, mc.Context(training=True)":
        "train eval",
    "leave it out: everything runs on the CPU": "to cuda cpu device",
    "use add(layer)": "append",
    "use to_dict()": "history",
    # layers and their parameters
    "build the layer first, or a model with it: build(input_shape, rng=0)": "kernel bias",
    "use kernel.value: (inputs, units), or (height, width, channels, filters)": "weight",
    "use value": "data numpy detach",
    "use value = array": "assign",
}  # fmt: skip
NAMES = {name: answer for answer, names in ANSWERS.items() for name in names.split()}

# What other libraries call an argument, and what it may be here.
ARGUMENTS = {
    "lr": ("learning_rate",), "callbacks": ("hooks", "monitors"), "monitors": ("hooks",),
    "hooks": ("monitors",), "out_channels": ("filters",), "num_outputs": ("units", "filters"),
    "out_features": ("units",), "bias": ("use_bias",), "dilation": ("dilation_rate",),
    "p": ("rate",), "prob": ("rate",), "eps": ("epsilon",), "decay": ("weight_decay",),
    "betas": ("beta1",), "val_data": ("validation_data",), "eval_set": ("validation_data",),
    "patience": ("early_stopping",), "nb_epoch": ("epochs",), "max_iter": ("steps",),
    "target": ("y", "labels"), "random_state": ("seed", "rng"), "y_true": ("labels",),
    "y_pred": ("predictions", "logits"), "input": ("inputs", "x"),
}  # fmt: skip
_LEFT_OUT = {"in_channels", "in_features", "input_shape", "input_dim"}


class Hinting:
    """The base of classes that answer the names and arguments of other libraries."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if inspect.isfunction(vars(cls).get("__init__")):
            cls.__init__ = hinted(cls.__init__)  # type: ignore[method-assign]

    def __repr__(self) -> str:
        return call_of(self)

    if not TYPE_CHECKING:  # to a type checker, an attribute that is not declared is an error

        def __getattr__(self, name: str) -> Any:
            _refuse(f"{type(self).__name__!r} object", name)


def explain(*modules: types.ModuleType) -> None:
    """Let modules answer the names of other libraries."""
    for module in modules:
        vars(module)["__getattr__"] = functools.partial(_refuse, f"module {module.__name__!r}")


def _refuse(owner: str, name: str) -> None:
    """Raise the error for a missing attribute; without an answer, Python may add a hint."""
    text = f"{owner} has no attribute {name!r}"
    if name in NAMES:
        raise AttributeError(f"{text}; {NAMES[name]}", name=name, obj=None)
    raise AttributeError(text)


def hinted(function: Function) -> Function:
    """Let the error for an unknown keyword argument of a function say which one to use."""
    code = function.__code__
    known = code.co_varnames[code.co_posonlyargcount : code.co_argcount + code.co_kwonlyargcount]

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in known:
                owner = function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")
                raise TypeError(f"{owner}() has no argument `{name}`; {_instead(name, known)}")
        return function(*args, **kwargs)

    takes_any = code.co_flags & inspect.CO_VARKEYWORDS
    return function if takes_any else call  # type: ignore[return-value]


def _instead(name: str, known: tuple[str, ...]) -> str:
    """Return what to do instead of giving the argument `name`."""
    import difflib

    if name in _LEFT_OUT:
        return "leave it out: build, or fit, finds it from the data"
    ours = [other for other in ARGUMENTS.get(name, ()) if other in known]
    ours += difflib.get_close_matches(name, known, 1)
    if ours:
        return f"use `{ours[0]}`"
    return f"the arguments are {', '.join(other for other in known if other != 'self')}"


def call_of(thing: object) -> str:
    """Return how an object is made, without the arguments that have their default."""
    given = []
    for name, parameter in inspect.signature(type(thing)).parameters.items():
        text = _shown(getattr(thing, name, parameter.default))
        default = parameter.default
        is_first = default is parameter.empty or name in {"layers", "learning_rate", "rate"}
        if is_first or text not in (_shown(default), "'glorot_uniform'"):
            given.append(text if is_first else f"{name}={text}")
    return f"{type(thing).__name__}({', '.join(given)})"


def _shown(value: Any) -> str:
    """Return an argument in short: 3 for (3, 3), 'relu' for its function or op."""
    if value is inspect.Parameter.empty:
        return "..."
    if isinstance(value, tuple) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    name = getattr(value, "__name__", None)
    if re.fullmatch(r"\w+\((name='[^']*')?\)", repr(value)):  # an op such as an activation
        name = getattr(value, "kind", None)
    return repr(str(name or value)) if name or isinstance(value, str) else repr(value)
