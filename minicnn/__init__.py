"""A CNN library to read and to train with: NumPy arrays, Numba kernels, hand-written backward.

>>> import numpy as np, minicnn as mc
>>> x = np.random.default_rng(0).random((200, 8, 8, 1), np.float32)
>>> y = (x.mean(axis=(1, 2, 3)) > 0.5).astype(int)
>>> model = mc.Sequential([mc.layers.Conv2D(4, 3, activation="relu"), mc.layers.MaxPooling2D(2),
...                        mc.layers.Flatten(), mc.layers.Dense(2)])
>>> history = model.fit(x, y, epochs=10, learning_rate=0.01, seed=0, verbose=False)
>>> model.predict_proba(x[:1]).shape
(1, 2)

To train and use a model:

- `Sequential`: layers one after the other, with `fit`, `evaluate` and `predict`; `minicnn.layers`
- `Estimator`: the same for a model_fn, a function that describes any graph of `Tensor`s
- `minicnn.losses`, `minicnn.metrics`, `minicnn.optimizers`, `minicnn.initializers`, `minicnn.hooks`
- `minicnn.datasets`: MNIST, folders of pictures, batches
- `save_weights`, `load_weights`; `minicnn.export`: ONNX and safetensors
- `minicnn.plots`, `minicnn.summaries`: figures and TensorBoard

To write layers and loops of your own: `Op`, `layers.Layer`, `Parameter`, `Context`,
`check_gradients`.
"""

import sys

from minicnn import (
    datasets,
    distributed,
    export,
    hooks,
    images,
    initializers,
    layers,
    losses,
    metrics,
    optimizers,
    plots,
    summaries,
)
from minicnn.core import VERSION
from minicnn.core.context import Context, Workspace
from minicnn.core.gradcheck import check_gradients
from minicnn.core.hints import explain
from minicnn.core.op import Op, Tensor
from minicnn.core.parameter import Parameter
from minicnn.core.weights import save_weights
from minicnn.estimator import (
    CheckpointError,
    Estimator,
    MetricSpec,
    ModeKeys,
    ModelFnOps,
    RunConfig,
)
from minicnn.estimator.config import TrainOp, optimize_loss
from minicnn.estimator.graph import Graph
from minicnn.estimator.history import History
from minicnn.estimator.starting import load_weights
from minicnn.hooks import NanLossError
from minicnn.inference import InferenceModel
from minicnn.kernels.threads import get_num_threads, set_num_threads
from minicnn.ops import (
    add,
    argmax,
    cast,
    concat,
    gelu,
    identity,
    leaky_relu,
    log_softmax,
    one_hot,
    reduce_mean,
    reduce_sum,
    relu,
    reshape,
    sigmoid,
    softmax,
    tanh,
)
from minicnn.report import report
from minicnn.sequential import Sequential
from minicnn.warmup import warmup

__version__ = VERSION

vars(layers)["Sequential"] = Sequential  # it is above the layers, and users look for it there
explain(
    sys.modules[__name__], datasets, datasets.mnist, hooks, layers, losses, metrics, optimizers
)

__all__ = [
    "CheckpointError", "Context", "Estimator", "Graph", "History", "InferenceModel", "MetricSpec",
    "ModeKeys", "ModelFnOps", "NanLossError", "Op", "Parameter", "RunConfig", "Sequential",
    "Tensor", "TrainOp", "Workspace", "add", "argmax", "cast", "check_gradients", "concat",
    "datasets", "distributed", "export", "gelu", "get_num_threads", "hooks", "identity", "images",
    "initializers", "layers", "leaky_relu", "load_weights", "log_softmax", "losses", "metrics",
    "one_hot", "optimize_loss", "optimizers", "plots", "reduce_mean", "reduce_sum", "relu",
    "report", "reshape", "save_weights", "set_num_threads", "sigmoid", "softmax", "summaries",
    "tanh", "warmup",
]
