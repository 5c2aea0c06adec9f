"""The networks that are compared, and how each framework trains them and computes their logits.

Weights are lists of arrays in minicnn's order and layout: a kernel and a bias a layer, of
convolutions (KH, KW, C, F), of dense layers (inputs, units). Images are (N, H, W, C). Every trainer
has `place`, which brings a batch into the framework's own form (it is not timed), `step`, which
returns the loss, and `weights`. A framework is imported where it is used and nowhere else.
"""

import itertools
import math
from pathlib import Path
from typing import NamedTuple

import harness
import numpy as np

CLASSES = 10
PEERS = {  # contender -> package
    "PyTorch": "torch", "PyTorch channels last": "torch",
    "TensorFlow": "tensorflow", "TensorFlow XLA": "tensorflow", "JAX": "jax",
}
PYTORCH = ("PyTorch", "PyTorch channels last")


class Network(NamedTuple):
    """Convolutions with padding "same", ReLU and 2x2 pooling each; dense; dropout; ten logits."""

    image: tuple[int, int, int]
    convolutions: tuple[tuple[int, int], ...]  # (kernel size, filters)
    dense: int = 0  # units; 0 leaves the layer and its dropout out
    dropout: float = 0.0
    batch: int = 100
    learning_rate: float = 0.001


NETWORKS = {
    "documented": Network((28, 28, 1), ((5, 32), (5, 64)), dense=1024, dropout=0.4),
    "cifar": Network((32, 32, 3), ((3, 32), (3, 64), (3, 128)), batch=64, learning_rate=0.01),
}


def start_values(network, seed=0):
    """Return weights: kernels from U(-a, a) with a = sqrt(3 / inputs of a unit), biases 0."""
    height, width, channels = network.image
    shapes = []
    for size, filters in network.convolutions:
        shapes.append((size, size, channels, filters))
        height, width, channels = height // 2, width // 2, filters
    units = [height * width * channels, *([network.dense] if network.dense else []), CLASSES]
    shapes += itertools.pairwise(units)
    rng, values = np.random.default_rng(seed), []
    for shape in shapes:
        limit = math.sqrt(3 / math.prod(shape[:-1]))
        values += [rng.uniform(-limit, limit, shape), np.zeros(shape[-1])]
    return [value.astype(np.float32) for value in values]


def batches(network, seed=0):
    """Yield batches of images and labels without end.

    Real digits where the network takes them. Elsewhere a coarse pattern for each class under noise:
    what skips zeros is as fast as the data lets it be, and from noise alone nothing is learnt.
    """
    if tuple(network.image) == (28, 28, 1):
        import minicnn as mc

        train = mc.datasets.load_dataset("mnist", reshape=False, seed=seed).train
        while True:
            x, y = train.next_batch(network.batch)
            yield x, y.astype(np.int64)
    rng, (height, width, channels) = np.random.default_rng(seed), network.image
    coarse = rng.random((CLASSES, 4, 4, channels), dtype=np.float32)
    patterns = coarse.repeat(-(-height // 4), axis=1).repeat(-(-width // 4), axis=2)
    while True:
        y = rng.integers(0, CLASSES, network.batch)
        noise = rng.random((network.batch, *network.image), dtype=np.float32)
        yield (patterns[y, :height, :width] + noise) / 2, y


def write_weights(path, weights):
    np.savez(path, *weights)


def read_weights(path):
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def write_task(folder, network, count):
    """Write what `Training` reads: start weights, and as many batches."""
    images, labels = zip(*itertools.islice(batches(network), count), strict=True)
    np.savez(Path(folder) / "data.npz", images=np.stack(images), labels=np.stack(labels))
    write_weights(Path(folder) / "start.npz", start_values(network))


class Training:
    """A contender that trains a network in its own process, on the files of a folder."""

    def __init__(self, name, network, folder):
        self.name, self.network, self.folder = name, Network(*network), Path(folder)
        with np.load(self.folder / "data.npz") as data:
            self.data = list(zip(data["images"], data["labels"], strict=True))
        self.start("start.npz")

    def start(self, weights):
        self.trainer = self._new(self.network, weights)
        self._places = itertools.cycle([self.trainer.place(x, y) for x, y in self.data])

    def step(self):
        return self.trainer.step(*next(self._places))

    def block(self, seconds):
        return harness.block(self.step, seconds)

    def train(self, steps, output):
        """Train on with fresh batches, and write the weights."""
        for x, y in itertools.islice(batches(self.network, seed=1), steps):
            self.trainer.step(*self.trainer.place(x, y))
        write_weights(self.folder / output, self.trainer.weights())

    def record(self, weights, output):
        """Return the losses of three steps without dropout; write the weights after the first."""
        plain = self.network._replace(dropout=0.0, learning_rate=0.05)
        trainer, losses = self._new(plain, weights), []
        for x, y in self.data[:3]:
            losses.append(trainer.step(*trainer.place(x, y)))
            if len(losses) == 1:
                write_weights(self.folder / output, trainer.weights())
        return losses

    def _new(self, network, weights):
        return make_trainer(self.name, network, read_weights(self.folder / weights))


def make_trainer(name, network, weights):
    """Return the trainer of a contender."""
    if name.startswith("PyTorch"):
        return PyTorch(network, weights, channels_last=name.endswith("channels last"))
    if name.startswith("TensorFlow"):
        return TensorFlow(network, weights, xla=name.endswith("XLA"))
    return {"minicnn": Minicnn, "JAX": Jax}[name](network, weights)


class Minicnn:
    def __init__(self, network, weights):
        import minicnn as mc

        self.mc, layers = mc, []
        for size, filters in network.convolutions:
            conv = mc.layers.Conv2D(filters, size, padding="same", activation="relu")
            layers += [conv, mc.layers.MaxPooling2D(2)]
        layers.append(mc.layers.Flatten())
        if network.dense:
            dense = mc.layers.Dense(network.dense, activation="relu")
            layers += [dense, mc.layers.Dropout(network.dropout)]
        self.model = mc.Sequential([*layers, mc.layers.Dense(CLASSES)])
        self.model.build((None, *network.image), rng=0)
        for parameter, value in zip(self.model.parameters, weights, strict=True):
            parameter.value[...] = value
        self.sgd, self.workspace = mc.optimizers.SGD(network.learning_rate), mc.Workspace()
        self.rng = np.random.default_rng(0)

    def place(self, x, y):
        return x, y

    def step(self, x, y):
        ctx = self.mc.Context(training=True, rng=self.rng, workspace=self.workspace)
        logits = self.model.forward(x, ctx)
        loss, dlogits = self.mc.losses.softmax_cross_entropy_with_grad(labels=y, logits=logits)
        self.model.backward(dlogits, ctx, need_dx=False)
        self.sgd.step(self.model.parameters)
        return loss

    def weights(self):
        return [parameter.value for parameter in self.model.parameters]


class PyTorch:
    def __init__(self, network, weights, channels_last):
        import torch
        from torch import nn

        self.torch, layers, channels = torch, [], network.image[2]
        for size, filters in network.convolutions:
            layers += [nn.Conv2d(channels, filters, size, padding=size // 2), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
            channels = filters
        layers.append(nn.Flatten())
        side = 2 ** len(network.convolutions)
        self.flat = (network.image[0] // side, network.image[1] // side, channels)
        units = math.prod(self.flat)
        if network.dense:
            layers += [nn.Linear(units, network.dense), nn.ReLU(), nn.Dropout(network.dropout)]
            units = network.dense
        self.model = nn.Sequential(*layers, nn.Linear(units, CLASSES))
        with torch.no_grad():
            pairs = zip(self.model.parameters(), self._theirs(weights), strict=True)
            for parameter, value in pairs:
                parameter.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.model = self.model.to(memory_format=self.format)
        self.sgd = torch.optim.SGD(self.model.parameters(), lr=network.learning_rate)

    def place(self, x, y):
        return self.images(x), self.torch.from_numpy(y)

    def images(self, x):
        x = self.torch.from_numpy(x).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.format)

    def step(self, x, y):
        self.sgd.zero_grad()
        loss = self.torch.nn.functional.cross_entropy(self.model(x), y)
        loss.backward()
        self.sgd.step()
        return loss.item()

    def weights(self):
        """Return the weights in minicnn's layout."""
        values, first = [p.detach().numpy() for p in self.model.parameters()], True
        for i, value in enumerate(values):
            if value.ndim == 4:
                values[i] = value.transpose(2, 3, 1, 0)
            elif value.ndim == 2:
                height, width, channels = self.flat
                if first:
                    value = value.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
                values[i], first = value.reshape(len(value), -1).T, False
        return [value.copy() for value in values]

    def _theirs(self, weights):
        """Yield the weights in PyTorch's layout, in which a row is (channel, height, width)."""
        first = True
        for value in weights:
            if value.ndim == 4:
                value = value.transpose(3, 2, 0, 1)
            elif value.ndim == 2:
                if first:
                    value = value.reshape(*self.flat, -1).transpose(2, 0, 1, 3)
                value, first = value.reshape(-1, value.shape[-1]).T, False
            yield value


class TensorFlow:
    def __init__(self, network, weights, xla):
        import tensorflow as tf

        keras, layers = tf.keras, [tf.keras.Input(tuple(network.image))]
        for size, filters in network.convolutions:
            layers.append(keras.layers.Conv2D(filters, size, padding="same", activation="relu"))
            layers.append(keras.layers.MaxPooling2D(2))
        layers.append(keras.layers.Flatten())
        if network.dense:
            layers.append(keras.layers.Dense(network.dense, activation="relu"))
            layers.append(keras.layers.Dropout(network.dropout))
        self.tf = tf
        self.model = keras.Sequential([*layers, keras.layers.Dense(CLASSES)])
        self.model.set_weights(weights)
        sgd = keras.optimizers.SGD(network.learning_rate)
        sgd.build(self.model.trainable_variables)

        @tf.function(jit_compile=xla)
        def step(x, y):
            with tf.GradientTape() as tape:
                losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    labels=y, logits=self.model(x, training=True)
                )
                loss = tf.reduce_mean(losses)
            variables = self.model.trainable_variables
            sgd.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            return loss

        self._step = step

    def place(self, x, y):
        return self.tf.constant(x), self.tf.constant(y)

    def step(self, x, y):
        return float(self._step(x, y))

    def weights(self):
        return self.model.get_weights()


class Jax:
    def __init__(self, network, weights):
        import jax
        from jax import lax
        from jax import numpy as jnp

        def logits(weights, x, key):
            pairs = iter(zip(weights[::2], weights[1::2], strict=True))
            for _ in network.convolutions:
                kernel, bias = next(pairs)
                layout = ("NHWC", "HWIO", "NHWC")
                x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
                x = jax.nn.relu(x + bias)
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            x = x.reshape(len(x), -1)
            if network.dense:
                kernel, bias = next(pairs)
                x, kept = jax.nn.relu(x @ kernel + bias), 1 - network.dropout
                x = jnp.where(jax.random.bernoulli(key, kept, x.shape), x / kept, 0)
            kernel, bias = next(pairs)
            return x @ kernel + bias

        def loss(weights, x, y, key):
            rows = jax.nn.log_softmax(logits(weights, x, key))
            return -jnp.take_along_axis(rows, y[:, None], axis=1).mean()

        def step(weights, key, x, y):
            key, now = jax.random.split(key)
            value, gradients = jax.value_and_grad(loss)(weights, x, y, now)
            pairs = zip(weights, gradients, strict=True)
            return [w - network.learning_rate * g for w, g in pairs], key, value

        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._state, self._place = ([jnp.array(w) for w in weights], jax.random.key(0)), jnp.array

    def place(self, x, y):
        return self._place(x), self._place(y)

    def step(self, x, y):
        *self._state, loss = self._step(*self._state, x, y)
        return float(loss)

    def weights(self):
        return [np.array(weight) for weight in self._state[0]]
