"""The networks that are compared, and how each framework runs and trains them.

Weights are lists of arrays in minicnn's order and layout: a kernel and a bias for each layer, with
kernels (KH, KW, C, F) and (inputs, units). Images are (N, H, W, C). A framework is imported only
where it is used.
"""

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np

PYTORCH = ("PyTorch", "PyTorch channels last")
PEERS = {  # contender -> package
    **dict.fromkeys(PYTORCH, "torch"),
    "TensorFlow": "tensorflow", "TensorFlow XLA": "tensorflow", "JAX": "jax",
}  # fmt: skip


class Network(NamedTuple):
    """Layers: conv (size, filters, stride, ReLU), pool, flatten, dense (units, ReLU), dropout.

    Also norm (filters, ReLU), a 3x3 convolution with batch normalization; residual, a block of two
    of them with as many filters as it has inputs; and mean, over all positions. The padding is
    "same", pooling is 2x2.
    """

    image: tuple[int, ...]
    layers: tuple[tuple, ...]
    batch: int = 100
    learning_rate: float = 0.001

    def walk(self):
        """Yield each layer as kind, options, and the shapes of its input, kernel and output.

        The shapes are without the batch; the kernel's is () without a kernel.
        """
        shape = tuple(self.image)
        for kind, *options in self.layers:
            before, kernel = shape, ()
            if kind == "conv":
                size, filters, stride, _ = options
                kernel = (size, size, shape[2], filters)
                shape = (-(-shape[0] // stride), -(-shape[1] // stride), filters)
            elif kind == "norm":
                kernel = (3, 3, shape[2], options[0])
                shape = (*shape[:2], options[0])
            elif kind == "residual":
                kernel = (3, 3, shape[2], shape[2])
            elif kind == "pool":
                shape = (shape[0] // 2, shape[1] // 2, shape[2])
            elif kind == "flatten":
                shape = (math.prod(shape),)
            elif kind == "mean":
                shape = shape[2:]
            elif kind == "dense":
                kernel, shape = (shape[0], options[0]), (options[0],)
            yield kind, options, before, kernel, shape

    @property
    def is_normalized(self):
        return any(layer[0] in NORMALIZED for layer in self.layers)

    def without_dropout(self):
        return self._replace(layers=[layer for layer in self.layers if layer[0] != "dropout"])


def chain(*convolutions, dense=()):
    """Return convolutions (size, filters), each with ReLU and pooling; dense layers; ten logits."""
    layers = []
    for size, filters in convolutions:
        layers += [("conv", size, filters, 1, True), ("pool",)]
    return (*layers, ("flatten",), *dense, ("dense", 10, False))


NORMALIZED = {"norm": 1, "residual": 2}  # kind -> convolutions with batch normalization
EPSILON = 1e-3  # of batch normalization

DENSE = (("dense", 1024, True), ("dropout", 0.4))
NETWORKS = {
    "documented": Network((28, 28, 1), chain((5, 32), (5, 64), dense=DENSE)),
    "cifar": Network((32, 32, 3), chain((3, 32), (3, 64), (3, 128)), 64, 0.01),
    "vgg": Network((32, 32, 3), (
        ("conv", 3, 32, 1, True), *chain((3, 32))[:2], ("conv", 3, 64, 1, True),
        *chain((3, 64), dense=(("dense", 256, True),)),
    ), 64, 0.01),
    "lenet5": Network(
        (28, 28, 1), chain((5, 6), (5, 16), dense=(("dense", 120, True), ("dense", 84, True)))
    ),
    "small": Network((28, 28, 1), chain((3, 8), (3, 16)), 16, 0.01),
    "mlp": Network((28, 28, 1), chain(dense=(("dense", 100, True),)), 32, 0.01),
    "strided": Network((49, 49, 3), (  # odd, so that all pad both sides alike
        ("conv", 3, 32, 2, True), ("conv", 3, 64, 2, True),
        *chain((3, 128), dense=(("dense", 128, True),)),
    ), 32, 0.01),
    "bottleneck": Network((32, 32, 3), (
        *chain((3, 64))[:2], ("conv", 1, 32, 1, True), ("conv", 3, 32, 1, True),
        *chain((1, 128), dense=(("dense", 128, True),)),
    ), 32, 0.01),
    "resnet": Network((32, 32, 3), (
        ("norm", 32, True), ("residual",), ("pool",), ("norm", 64, True), ("residual",), ("pool",),
        ("norm", 128, True), ("residual",), ("mean",), ("dense", 10, False),
    ), 128, 0.01),
}  # fmt: skip


def start_values(network):
    """Return weights: kernels from U(-a, a) with a = sqrt(3 / inputs of a unit), biases 0.

    After a kernel with batch normalization there are its gamma, 1, and its beta, 0.
    """
    rng, values = np.random.default_rng(0), []
    for kind, _, _, kernel, _ in network.walk():
        for _ in range(NORMALIZED.get(kind, 1) if kernel else 0):
            limit = math.sqrt(3 / math.prod(kernel[:-1]))
            values.append(rng.uniform(-limit, limit, kernel))
            values += [np.ones(kernel[-1])] * (kind in NORMALIZED) + [np.zeros(kernel[-1])]
    return [value.astype(np.float32) for value in values]


def batches(network, seed=0):
    """Yield batches of images and labels without end.

    Real digits for a network that takes grey images, in its size. Else a coarse pattern for each
    class under noise: what skips zeros is as fast as the data lets it be, and from noise alone
    nothing is learnt.
    """
    height, width, channels = network.image
    if channels == 1:
        import minicnn as mc

        train = mc.datasets.load_dataset("mnist", reshape=False, seed=seed).train
        rows, columns = np.arange(height) * 28 // height, np.arange(width) * 28 // width
        while True:
            x, y = train.next_batch(network.batch)
            yield x[:, rows][:, :, columns], y.astype(np.int64)
    rng = np.random.default_rng(seed)
    coarse = np.random.default_rng(0).random((10, 4, 4, channels), dtype=np.float32)
    patterns = coarse.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)
    while True:
        y = rng.integers(0, 10, network.batch)
        noise = rng.random((network.batch, *network.image), dtype=np.float32)
        yield (patterns[y, :height, :width] + noise) / 2, y


def read_weights(path):
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def write_task(folder, network, count):
    """Write the files that `Training` reads: the start weights and the batches."""
    images, labels = zip(*itertools.islice(batches(network), count), strict=True)
    np.savez(Path(folder) / "data.npz", images=np.stack(images), labels=np.stack(labels))
    np.savez(Path(folder) / "start.npz", *start_values(network))


class Training:
    """A contender that trains a network in its own process, with the files in a folder."""

    def __init__(self, name, network, folder):
        self.name, self.network, self.folder = name, Network(*network), Path(folder)
        with np.load(self.folder / "data.npz") as data:
            self.data = list(zip(data["images"], data["labels"], strict=True))
        self.start("start.npz")

    def start(self, weights):
        self.trainer = self._new(self.network, weights)
        self._placed = itertools.cycle([self.trainer.place(x, y) for x, y in self.data])

    def block(self, seconds):
        return harness.block(lambda: self.trainer.step(*next(self._placed)), seconds)

    def train(self, steps, output):
        """Continue training with new batches, and write the weights."""
        for x, y in itertools.islice(batches(self.network, seed=1), steps):
            self.trainer.step(*self.trainer.place(x, y))
        np.savez(self.folder / output, *self.trainer.weights())

    def record(self, weights, output):
        """Return the losses of three steps without dropout; write the weights after the first."""
        network, losses = self.network.without_dropout()._replace(learning_rate=0.05), []
        trainer = self._new(network, weights)
        for x, y in self.data[:3]:
            losses.append(trainer.step(*trainer.place(x, y)))
            if len(losses) == 1:
                np.savez(self.folder / output, *trainer.weights())
        return losses

    def _new(self, network, weights):
        return make(self.name, network, read_weights(self.folder / weights))


def difference(ours, theirs):
    """Return the norm of the difference of two arrays relative to their norm; NaN stays."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape} differ")
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


def make(name, network, weights):
    """Return an object that runs and trains a network with a contender's framework.

    ``place(x, y)`` brings a batch into the framework's own form, which is not timed; ``step`` makes
    a step of SGD on it and returns the loss; ``weights`` are those of now.
    """
    if name in PYTORCH:
        return PyTorch(network, weights, name.endswith("channels last"))
    if name.startswith("TensorFlow"):
        return TensorFlow(network, weights, name.endswith("XLA"))
    return {"minicnn": Minicnn, "JAX": Jax}[name](network, weights)


def build(layers, network):
    """Return the layers of a network from minicnn or Keras, whose classes have the same names."""
    built = []
    for kind, options, before, *_ in network.walk():
        relu = "relu" if options and options[-1] is True else None
        if kind == "conv":
            size, filters, stride, _ = options
            built.append(
                layers.Conv2D(filters, size, strides=stride, padding="same", activation=relu)
            )
        elif kind == "norm":
            built += normalized(layers, *options)
        elif kind == "residual":
            block = normalized(layers, before[2], True) + normalized(layers, before[2], False)
            built += [layers.Residual(block), layers.Activation("relu")]
        elif kind == "mean":
            built.append(layers.GlobalAveragePooling2D())
        elif kind == "dense":
            built.append(layers.Dense(options[0], activation=relu))
        elif kind == "dropout":
            built.append(layers.Dropout(*options))
        else:
            built.append(layers.MaxPooling2D(2) if kind == "pool" else layers.Flatten())
    return built


def normalized(layers, filters, relu):
    conv = layers.Conv2D(filters, 3, padding="same", use_bias=False)
    norm = layers.BatchNormalization(epsilon=EPSILON)
    return [conv, norm, layers.Activation("relu")] if relu else [conv, norm]


class Minicnn:
    def __init__(self, network, weights):
        import minicnn as mc

        self.mc, self.model = mc, mc.Sequential(build(mc.layers, network))
        self.model.build((None, *network.image), rng=0)
        self.trained = [parameter for parameter in self.model.parameters if parameter.trainable]
        for parameter, value in zip(self.trained, weights, strict=True):
            parameter.value[...] = value
        self.sgd, self.workspace = mc.optimizers.SGD(network.learning_rate), mc.Workspace()
        self.rng = np.random.default_rng(0)

    def place(self, x, y):
        return np.ascontiguousarray(x), y

    def context(self):
        return self.mc.Context(training=True, rng=self.rng, workspace=self.workspace)

    def step(self, x, y):
        ctx = self.context()
        logits = self.model.forward(x, ctx)
        loss, dlogits = self.mc.losses.softmax_cross_entropy_with_grad(labels=y, logits=logits)
        self.model.backward(dlogits, ctx, need_dx=False)
        self.sgd.step(self.model.parameters)
        return loss

    def weights(self):
        return [parameter.value for parameter in self.trained]


def to_torch(value, flat):
    """Return a weight in PyTorch's layout; `flat` is the shape (H, W, C) of Flatten's input."""
    if value.ndim == 4:
        return value.transpose(3, 2, 0, 1)
    if value.ndim == 2 and len(value) == math.prod(flat):  # PyTorch flattens (C, H, W)
        value = value.reshape(*flat, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return value.T


def from_torch(value, flat):
    if value.ndim == 4:
        return value.transpose(2, 3, 1, 0)
    if value.ndim == 2 and value.shape[1] == math.prod(flat):
        height, width, channels = flat
        images = value.reshape(-1, channels, height, width)
        return images.transpose(2, 3, 1, 0).reshape(value.T.shape)
    return value.T


class PyTorch:
    def __init__(self, network, weights, channels_last):
        import torch
        from torch import nn

        class Residual(nn.Sequential):
            def forward(self, x):
                return super().forward(x) + x

        def normed(inputs, filters, *last):
            conv = nn.Conv2d(inputs, filters, 3, padding=1, bias=False)
            return conv, nn.BatchNorm2d(filters, EPSILON, 0.01), *last

        self.torch, self.flat, modules = torch, (0,), []
        for kind, options, before, *_ in network.walk():
            if kind == "conv":
                size, filters, stride, _ = options
                modules.append(nn.Conv2d(before[2], filters, size, stride, size // 2))
            elif kind == "norm":
                modules += normed(before[2], options[0])
            elif kind == "residual":
                first = normed(before[2], before[2], nn.ReLU(inplace=True))
                modules += [Residual(*first, *normed(before[2], before[2])), nn.ReLU(inplace=True)]
            elif kind == "mean":
                modules += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            elif kind == "dense":
                modules.append(nn.Linear(before[0], options[0]))
            elif kind == "dropout":
                modules.append(nn.Dropout(*options))
            else:
                modules.append(nn.MaxPool2d(2) if kind == "pool" else nn.Flatten())
            relu = options and options[-1] is True
            modules += [nn.ReLU(inplace=kind == "norm")] if relu else []
            self.flat = before if kind == "flatten" else self.flat
        self.model = nn.Sequential(*modules)
        self.parameters = list(self.model.parameters())
        with torch.no_grad():
            for parameter, value in zip(self.parameters, weights, strict=True):
                parameter.copy_(torch.from_numpy(to_torch(value, self.flat).copy()))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=self.layout)
        if self.parameters:
            self.sgd = torch.optim.SGD(self.parameters, lr=network.learning_rate)

    def tensor(self, x):
        x = self.torch.from_numpy(x)
        return x.permute(0, 3, 1, 2).contiguous(memory_format=self.layout) if x.ndim == 4 else x

    def place(self, x, y):
        return self.tensor(x), self.torch.from_numpy(y)

    def step(self, x, y):
        self.sgd.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.sgd.step()
        return loss.item()

    def weights(self):
        return [from_torch(p.detach().numpy(), self.flat).copy() for p in self.parameters]


class TensorFlow:
    def __init__(self, network, weights, xla):
        import tensorflow as tf

        layers = [tf.keras.Input(tuple(network.image)), *build(tf.keras.layers, network)]
        self.constant, self.model = tf.constant, tf.keras.Sequential(layers)
        variables = self.model.trainable_variables
        for variable, value in zip(variables, weights, strict=True):
            variable.assign(value)
        sgd = tf.keras.optimizers.SGD(network.learning_rate)
        sgd.build(variables)

        @tf.function(jit_compile=xla)
        def step(x, y):
            with tf.GradientTape() as tape:
                logits = self.model(x, training=True)
                loss = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=logits)
                loss = tf.reduce_mean(loss)
            sgd.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        self._step = step

    def place(self, x, y):
        return self.constant(x), self.constant(y)

    def step(self, x, y):
        return float(self._step(x, y))

    def weights(self):
        return [variable.numpy() for variable in self.model.trainable_variables]


class Jax:
    def __init__(self, network, weights):
        import jax
        from jax import lax
        from jax import numpy as jnp

        def logits(weights, x, key):
            pairs = iter(zip(weights[::2], weights[1::2], strict=True))
            for kind, *options in network.layers:
                if kind == "conv":
                    (kernel, bias), stride = next(pairs), (options[2], options[2])
                    layout = ("NHWC", "HWIO", "NHWC")
                    x = bias + lax.conv_general_dilated(
                        x, kernel, stride, "SAME", dimension_numbers=layout
                    )
                elif kind == "dense":
                    kernel, bias = next(pairs)
                    x = x @ kernel + bias
                elif kind == "pool":
                    size = (1, 2, 2, 1)
                    x = lax.reduce_window(x, -jnp.inf, lax.max, size, size, "VALID")
                elif kind == "flatten":
                    x = x.reshape(len(x), -1)
                else:
                    kept = 1 - options[0]
                    x = jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept, 0)
                x = jax.nn.relu(x) if options and options[-1] is True else x
            return x

        def loss(weights, x, y, key):
            rows = jax.nn.log_softmax(logits(weights, x, key))
            return -jnp.take_along_axis(rows, y[:, None], axis=1).mean()

        def step(weights, key, x, y):
            key, now = jax.random.split(key)
            value, gradients = jax.value_and_grad(loss)(weights, x, y, now)
            pairs = zip(weights, gradients, strict=True)
            return [w - network.learning_rate * g for w, g in pairs], key, value

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._state, self._array = ([jnp.array(w) for w in weights], jax.random.key(0)), jnp.array

    def place(self, x, y):
        return self._array(x), self._array(y)

    def step(self, x, y):
        *self._state, loss = self._step(*self._state, x, y)
        return float(loss)

    def weights(self):
        return [np.array(weight) for weight in self._state[0]]
