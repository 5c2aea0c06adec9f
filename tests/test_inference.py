"""Tests of models for inference."""

import itertools
import pickle
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from kernels.test_threads import InterruptAt
from layers.test_conformance import every_layer
from tolerances import assert_same_bits

import minicnn as mc
from minicnn import inference
from minicnn.core.op import parts
from minicnn.estimator import evaluation
from minicnn.inference import InferenceModel, _Run
from minicnn.kernels import recording, threads
from minicnn.kernels.dense import dense as product
from minicnn.layers import (
    Activation,
    AveragePooling2D,
    BatchNormalization,
    Conv2D,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Reshape,
    Residual,
    SeparableConv2D,
)  # fmt: skip

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import networks


class Halve(mc.Op):
    """A user's op, which computes with NumPy."""

    def forward(self, x, ctx):
        return x / 2


class Own(mc.Op):
    """A user's op, which calls a layer with a context of its own."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, ctx):
        return self.layer.forward(x, mc.Context())


class Doubled(mc.Sequential):
    """A model whose outputs are not those of its last layer."""

    def forward(self, x, ctx):
        return 2 * super().forward(x, ctx)


def images_first():
    return [
        Reshape((1, 8, 8)), Conv2D(9, 3, data_format="channels_first"),
        BatchNormalization(axis=1), Activation("relu"),
        MaxPooling2D(2, data_format="channels_first"),
    ]  # fmt: skip


CHAINS = {
    "pooled convolutions": lambda: [
        Conv2D(32, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Conv2D(24, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Flatten(), Dense(70, activation="relu"), Dropout(0.5), Dense(3),
    ],
    "normalized": lambda: [
        BatchNormalization(), Conv2D(8, 3, use_bias=False), BatchNormalization(),
        Activation("relu"), Conv2D(5, 3, strides=2), BatchNormalization(center=False, scale=False),
        Flatten(), Dense(7), BatchNormalization(),
    ],
    "normalized after ReLU": lambda: [
        Conv2D(8, 3, activation="relu"), BatchNormalization(), Flatten(), Dense(2),
    ],
    "residual": lambda: [
        Residual([Conv2D(4, 3, padding="same"), BatchNormalization(), Halve()],
                 Conv2D(4, 1)),
        Activation("relu"), Residual([Conv2D(4, 3, padding="same"), BatchNormalization()]),
        GlobalAveragePooling2D(), Dense(2, activation="softmax"),
    ],
    "residual of kernels alone": lambda: [
        Conv2D(4, 3), Residual([Conv2D(4, 3, padding="same"), BatchNormalization()]),
        Activation("relu"), AveragePooling2D(2), Flatten(), Dense(2),
    ],
    "padded": lambda: [
        Conv2D(16, 3, padding=((2, 1), (0, 1)), activation="relu"), MaxPooling2D(3, 2, padding=1),
        Conv2D(32, 3, strides=2, padding=1, use_bias=False), BatchNormalization(),
        Activation("relu"), MaxPooling2D(2, 2, ((0, 1), 1)), Flatten(), Dense(2),
    ],
    "dilated": lambda: [Conv2D(4, 3, dilation_rate=2, activation="tanh"), Flatten(), Dense(2)],
    "channels first": images_first,
    "smooth": lambda: [
        Conv2D(4, 3, activation="leaky_relu"), Conv2D(4, 3, activation="sigmoid"), Flatten(),
        Dense(9, activation="tanh"), Dense(9, activation="gelu"),
        Dense(9, activation=mc.ops.Gelu(approximate=True)), Dense(2),
    ],
    "a user's op": lambda: [Halve(), Conv2D(4, 3, activation="relu"), Halve(), Flatten(), Dense(2)],
    "dropout first": lambda: [Dropout(0.5), Flatten(), Dense(2)],
    "a user's chain": lambda: [Doubled([Conv2D(4, 3), Dense(3)]), Flatten(), Dense(2)],
    "depthwise": lambda: [
        DepthwiseConv2D(3, use_bias=False), BatchNormalization(), Activation("relu"),
        SeparableConv2D(5, 3), BatchNormalization(), Flatten(), Dense(2),
    ],
    "a chain in a chain": lambda: [mc.Sequential([Conv2D(4, 3), BatchNormalization()]), Flatten()],
}  # fmt: skip
by_chain = pytest.mark.parametrize("name", CHAINS)


def draw(seed, *shape, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def built(name, dtype=np.float32, **options):
    """Return a model whose moving averages differ from those at the start."""
    model = mc.Sequential(CHAINS[name](), **options)
    model.build((None, 8, 8, 1), 0, dtype)
    rng = np.random.default_rng(1)
    for parameter in model.parameters:
        if parameter.value.ndim == 1:
            parameter.value[...] = rng.uniform(0.5, 2, parameter.shape)
    return model


def close(model, fast, x, dtype=np.float32):
    expected = model.predict(x)
    assert fast(x).dtype == dtype
    limit = {"float32": 2e-5, "float64": 1e-12}[np.dtype(dtype).name]
    np.testing.assert_allclose(fast(x), expected, rtol=0, atol=limit * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@by_chain
def test_outputs_are_those_of_predict(name, dtype):
    model = built(name, dtype)
    fast = model.for_inference()
    for seed, rows in enumerate((1, 3, 1, 20, 3)):  # the second time with other inputs
        close(model, fast, draw(seed, rows, 8, 8, 1, dtype=dtype), dtype)


@by_chain
def test_without_fusion(name):
    model = built(name, fuse=False)
    close(model, model.for_inference(), draw(0, 2, 8, 8, 1))


@by_chain
def test_threads_change_no_bit(name, monkeypatch):
    use_threads(monkeypatch)
    before = threads.get_num_threads()
    x, outputs = draw(0, 3, 8, 8, 1), []
    try:
        for count in (1, 2, 4):
            threads.set_num_threads(count)
            fast = built(name).for_inference()
            outputs += [fast(x) for _ in range(4)]
    finally:
        threads.set_num_threads(before)
    for output in outputs[1:]:
        assert_same_bits(output, outputs[0])


def use_threads(monkeypatch):
    """Use threads for any work, in recordings from the third call on."""
    monkeypatch.setattr(threads, "_LEAST_WORK", 0)
    monkeypatch.setattr(threads, "_LEAST_CHUNK", 1)
    monkeypatch.setattr(recording, "_TRIALS", 1)
    monkeypatch.setattr(recording, "_LEAST_SECONDS", 0)


def same_for_threads(model, x, monkeypatch):
    """Check a model for inference with all rows of x and with fewer, with one and two threads."""
    use_threads(monkeypatch)
    before, outputs = threads.get_num_threads(), {}
    try:
        for count in (1, 2):
            threads.set_num_threads(count)
            fast = model.for_inference()
            for rows in (x, x[::-1], x[:1]):
                close(model, fast, rows, x.dtype)
            outputs[count] = fast(x)
    finally:
        threads.set_num_threads(before)
    assert_same_bits(outputs[1], outputs[2])


@every_layer
def test_every_layer(make, shape, monkeypatch):
    model = mc.Sequential([make()])
    model.build((None, *shape), 0)
    rng = np.random.default_rng(1)
    for parameter in model.parameters:
        parameter.value[...] += rng.uniform(0.1, 0.2, parameter.shape)
    same_for_threads(model, draw(0, 3, *shape), monkeypatch)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_of_the_benchmarks(name, monkeypatch):
    network = networks.NETWORKS[name]
    model = networks.make("minicnn", network, networks.start_values(network)).model
    same_for_threads(model, draw(0, 3, *network.image), monkeypatch)


def test_kernels_are_packed_once():
    packed = []
    for name in ("pooled convolutions", "depthwise", "normalized"):
        fast = built(name).for_inference()
        fast(draw(0, 2, 8, 8, 1))
        packed.append(dict(fast._packed))
        fast(draw(0, 3, 8, 8, 1))
        assert fast._packed.keys() == packed[-1].keys()
        assert all(fast._packed[layer] is array for layer, array in packed[-1].items())
    assert [len(arrays) for arrays in packed] == [4, 2, 3]


@pytest.mark.parametrize("always", [False, True])
def test_ten_threads_use_one_model(always, monkeypatch):
    if always:
        use_threads(monkeypatch)
    model = built("pooled convolutions")
    fast = model.for_inference()
    wrong = []

    def predict(seed):
        for rows in (1, 5, 2, 7, 1) * 4:
            x = draw(seed, rows, 8, 8, 1)
            if not np.array_equal(fast(x), expected[seed, rows]):
                wrong.append((seed, rows))

    expected = {
        (seed, rows): model.for_inference()(draw(seed, rows, 8, 8, 1))
        for seed in range(10) for rows in (1, 2, 5, 7)
    }  # fmt: skip
    users = [threading.Thread(target=predict, args=(seed,)) for seed in range(10)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert not wrong


def test_it_is_a_snapshot_that_cannot_be_changed():
    model = built("normalized")
    fast, x = model.for_inference(), draw(0, 2, 8, 8, 1)
    before = fast(x)
    for parameter in model.parameters:
        parameter.value[...] = 0
    assert_same_bits(fast(x), before)
    [copied] = fast._program.feeds.args
    with pytest.raises(ValueError, match="read-only"):
        copied.parameters[0].value[...] = 0


def test_outputs_are_arrays_of_their_own():
    fast = built("pooled convolutions").for_inference()
    first = fast(draw(0, 2, 8, 8, 1))
    kept = first.copy()
    fast(draw(1, 2, 8, 8, 1))
    assert_same_bits(first, kept)


@by_chain
def test_pickled(name):
    fast, x = built(name).for_inference(), draw(0, 2, 8, 8, 1)
    before = fast(x)
    again = pickle.loads(pickle.dumps(fast))
    assert_same_bits(again(x), before)


def kernels(fast):
    [runs] = fast._runs.values()
    return [call[0].__name__ for step in runs[0]._steps for call in step.__self__.calls]


def test_a_call_runs_only_what_depends_on_the_inputs():
    fast = built("pooled convolutions").for_inference()
    fast(draw(0, 1, 8, 8, 1))
    assert kernels(fast) == ["_forward"] * 4
    fast = built("normalized").for_inference()
    fast(draw(0, 1, 8, 8, 1))
    assert kernels(fast) == ["_scale", "_forward", "_forward", "_forward"]  # folded


class Centered(Dense):
    """A user's layer, which calls the forward pass of its parent and goes on in NumPy."""

    def forward(self, x, ctx):
        y = super().forward(x, ctx)
        return y - y.mean()


class Rectified(Dense):
    """A user's layer without a forward pass of its own."""

    def linear(self, x, ctx, *arguments):
        return np.maximum(super().linear(x, ctx, *arguments), 0)


@pytest.mark.parametrize("kind", [Centered, Rectified])
def test_a_subclass_is_not_recorded_as_its_parent_is(kind):
    model = mc.Sequential([Flatten(), kind(3), Dense(2)])
    model.build((None, 8, 8, 1), 0)
    fast = model.for_inference()
    for seed in (0, 1, 2):
        close(model, fast, draw(seed, 2, 8, 8, 1))


class Exchanged(mc.Op, repeatable="prediction"):
    """Rows and columns of a square matrix, by a kernel that gets its transpose."""

    def forward(self, x, ctx):
        y = ctx.empty(self, "y", x.shape, x.dtype)
        product.forward(x.T, np.eye(len(x), dtype=x.dtype), np.zeros(len(x), x.dtype), y)
        return y


class Flipped(mc.Op, repeatable="prediction"):
    """The columns in reverse order, as a view."""

    def forward(self, x, ctx):
        return x[:, ::-1]


@pytest.mark.parametrize("ops", [
    [Exchanged()], [Flipped(), Activation("sigmoid")], [Flipped(), Dense(2)],
])  # fmt: skip
def test_arrays_not_in_c_order(ops):
    model = mc.Sequential([Dense(3), *ops])
    model.build((None, 5), 0)
    fast = model.for_inference()
    for seed in (0, 1, 2):
        close(model, fast, draw(seed, 3, 5))


def test_a_model_with_a_forward_of_its_own():
    model = Doubled([Flatten(), Dense(2)])
    model.build((None, 8, 8, 1), 0)
    fast = model.for_inference()
    for seed in (0, 1):
        close(model, fast, draw(seed, 2, 8, 8, 1))


def test_buffers_of_a_few_numbers_of_rows_are_kept():
    fast = built("dropout first").for_inference()
    for rows in range(9):
        assert fast(draw(0, rows, 8, 8, 1)).shape == (rows, 2)
    fast(draw(0, 5, 8, 8, 1))
    fast(draw(0, 9, 8, 8, 1))
    assert list(fast._runs) == [7, 8, 5, 9]  # in the order of their last use


def test_rows_by_batches():
    model = built("pooled convolutions")
    fast, x = model.for_inference(), draw(0, 7, 8, 8, 1)
    assert_same_bits(fast.predict(x, batch_size=3), fast.predict(x))
    assert fast(x.tolist()).shape == (7, 3)


def test_an_interrupted_call_leaves_a_usable_model():
    fast, x = built("a user's op").for_inference(), draw(0, 2, 8, 8, 1)
    before = fast(x)
    [run] = fast._runs[2]
    run._steps.insert(1, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fast(x)
    assert fast._runs[2] == []  # a worker may still write to the buffers
    assert_same_bits(fast(x), before)


class InterruptModelAt(InterruptAt):
    files = tuple(module.__file__ for module in (inference, recording, threads))


def test_an_interrupt_at_any_place_leaves_a_usable_model(monkeypatch):
    use_threads(monkeypatch)
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    fast = built("pooled convolutions").for_inference()
    inputs = [draw(seed, 1, 8, 8, 1) for seed in range(3)]
    expected = [fast(x) for x in inputs]

    numbers = itertools.count()
    while InterruptModelAt(next(numbers)).interrupts(lambda: fast(inputs[0])):
        assert "holder" not in vars(threads._workers)
        for x, y in zip(inputs, expected, strict=True):  # the last of them with a worker
            assert_same_bits(fast(x), y)
    assert next(numbers) > 30
    threads.set_num_threads(before)


def test_errors():
    model = mc.Sequential([Dense(2)])
    with pytest.raises(RuntimeError, match=r"call build\(input_shape, rng\)"):
        model.for_inference()
    with pytest.raises(TypeError, match=r"`program` must be made by for_inference\(\), got 3"):
        InferenceModel(3)
    fast = built("dropout first").for_inference()
    with pytest.raises(ValueError, match="built for inputs of shape"):
        fast(draw(0, 8, 8, 1))
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        fast.predict(draw(0, 1, 8, 8, 1), batch_size=0)
    assert repr(fast) == "InferenceModel of 'sequential'"


# Smaller weights

HALF = 2.0**-11  # the largest relative error of rounding to float16


def rounded(model):
    """Round the kernels that float16 is for."""
    for layer in parts(model):
        if type(layer) is Dense:
            kernel = layer.kernel.value
            kernel[...] = kernel.astype(np.float16)
    return model


def same_as_rounded(make, shape, monkeypatch):
    """Check a model with float16 kernels against one whose kernels were rounded before."""
    monkeypatch.setattr(threads, "_LEAST_WORK", 0)
    before = threads.get_num_threads()
    try:
        for count in (1, 2):
            threads.set_num_threads(count)
            fast, expected = make().for_inference("float16"), rounded(make()).for_inference()
            again = pickle.loads(pickle.dumps(fast))
            for seed, rows in enumerate((1, 8, 100, 1)):
                x = draw(seed, rows, *shape)
                assert_same_bits(fast(x), again(x), expected(x))
    finally:
        threads.set_num_threads(before)


@by_chain
def test_float16_rounds_the_kernels_of_dense_layers(name, monkeypatch):
    same_as_rounded(lambda: built(name), (8, 8, 1), monkeypatch)


@every_layer
def test_float16_and_every_layer(make, shape, monkeypatch):
    def build():
        model = mc.Sequential([make()])
        model.build((None, *shape), 0)
        return model

    same_as_rounded(build, shape, monkeypatch)


def dense(*units, inputs=40, scale=1.0):
    """Return dense layers with ReLU, and their kernels."""
    model = mc.Sequential([Dense(u, activation="relu") for u in units])
    model.build((None, inputs), 0)
    for layer in model.layers:
        layer.kernel.value[...] *= scale
    return model, [layer.kernel.value for layer in model.layers]


@pytest.mark.parametrize("rows", [1, 8, 100])
@pytest.mark.parametrize("units", [(70,), (130, 7)])
def test_the_error_of_float16(units, rows):
    model, kernels = dense(*units)
    x = draw(0, rows, 40)
    limit = np.abs(x)
    for kernel in kernels:  # the kernels' sums without cancellation
        limit = limit @ np.abs(kernel)
    off = np.abs(model.for_inference("float16")(x) - model.predict(x))
    assert (off <= 1.01 * HALF * len(units) * limit).all()
    assert off.max() > 0.001 * HALF * limit.max()  # they are rounded


@pytest.mark.parametrize("scale", [0, 1e-8, 1e-5, 1e7, np.inf])
def test_kernels_out_of_the_range_of_float16_stay_float32(scale):
    model, _ = dense(5, 3)
    first, second = (layer.kernel.value for layer in model.layers)
    first *= scale / np.abs(first).max() if np.isfinite(scale) else 1
    first[0, 0] = scale
    x = draw(0, 3, 40) ** 2
    expected = model.for_inference()(x)
    second[...] = second.astype(np.float16)  # the other kernel is rounded
    assert_same_bits(model.for_inference("float16")(x), model.for_inference()(x))
    assert np.isinf(scale) or np.abs(expected).max() < 1e9


@pytest.mark.parametrize("weight", [65504.0, 2.0**-14, 2.0**-24, 3e-8, 1e-30, -0.0])
def test_the_range_of_float16(weight):
    model, (kernel,) = dense(1, inputs=2)
    kernel[:, 0] = weight, 65504
    x = np.array([[1, 0]], np.float32)
    assert model.for_inference("float16")(x) == np.float32(np.float16(weight))


def test_float16_in_a_context_of_a_users_own():
    def make():
        layer = Dense(3, name="own")
        layer.build((None, 4), 0)
        model = mc.Sequential([Dense(4), Own(layer)])
        model.build((None, 2), 0)
        return model

    x = draw(0, 2, 2)
    assert_same_bits(make().for_inference("float16")(x), rounded(make()).for_inference()(x))


def test_float16_takes_half_the_memory():
    model, _ = dense(300, 200)
    whole, half = (model.for_inference(name) for name in ("float32", np.float16))
    half(draw(0, 1, 40))
    sizes = [len(pickle.dumps(fast)) for fast in (whole, half)]
    assert sizes[1] < 0.55 * sizes[0]
    assert [array.itemsize for array in half._packed.values()] == [2, 2]


@pytest.mark.parametrize("dtype", ["int8", "float64", np.int8, None, 16])
def test_other_types_of_weights(dtype):
    model, _ = dense(3)
    with pytest.raises(ValueError, match="`weight_dtype` must be 'float32' or 'float16', got"):
        model.for_inference(weight_dtype=dtype)


def test_float16_of_a_float64_model():
    model = mc.Sequential([Dense(2, name="head")])
    model.build((None, 3), 0, np.float64)
    with pytest.raises(ValueError, match=r"head: `weight_dtype` .* leave it out, or build the"):
        model.for_inference("float16")
    assert model.for_inference()(np.ones((1, 3))).dtype == np.float64
    model = mc.Sequential([Dense(2, name="head")])
    model.build((None, 3), 0, dtype=np.float32)
    assert model.for_inference("float16")(np.ones((1, 3))).dtype == np.float32


# Estimators


def model_fn(features, labels, mode):
    images = features["image"] if isinstance(features, dict) else features
    x = mc.layers.conv2d(images, 8, 3, activation=mc.relu)
    x = mc.layers.flatten(mc.layers.max_pooling2d(x, 2, 2))
    if isinstance(features, dict):
        x = mc.add(mc.layers.dense(x, 5), mc.layers.dense(features["more"], 5))
    logits = mc.layers.dense(mc.layers.dropout(x, training=mode == "train"), 3)
    loss = train_op = None
    if labels is not None:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
    predictions = {"classes": mc.argmax(logits, 1), "probabilities": mc.softmax(logits)}
    return mc.ModelFnOps(mode, predictions, loss, train_op)


def rows(seed, count, is_dict=False):
    x = draw(seed, count, 8, 8, 1)
    return {"image": x, "more": draw(seed + 1, count, 4)} if is_dict else x


@pytest.fixture(params=[False, True], ids=["one input", "two inputs"])
def trained(request, tmp_path):
    estimator = mc.Estimator(model_fn, model_dir=tmp_path)
    estimator.fit(rows(0, 20, request.param), np.arange(20) % 3, steps=2, batch_size=10)
    return estimator, request.param


def test_an_estimator_for_inference(trained):
    estimator, is_dict = trained
    fast = estimator.for_inference(rows(0, 1, is_dict))
    again = pickle.loads(pickle.dumps(fast))
    for seed, count in enumerate((1, 3, 1, 120)):
        x = rows(seed, count, is_dict)
        expected = estimator.predict(x, as_iterable=False)
        for model in (fast, again):
            outputs = model(x)
            assert outputs.keys() == expected.keys()
            for name in outputs:
                np.testing.assert_allclose(outputs[name], expected[name], rtol=1e-5, atol=1e-6)


def test_an_estimator_with_float16(trained):
    estimator, is_dict = trained
    x = rows(0, 9, is_dict)
    other = mc.Estimator(model_fn, model_dir=estimator.model_dir)
    expected = other.for_inference(x)(x)["probabilities"]
    fast = estimator.for_inference(x, weight_dtype="float16")
    outputs = fast(x)["probabilities"]
    assert 0 < np.abs(outputs - expected).max() < 20 * HALF
    assert_same_bits(pickle.loads(pickle.dumps(fast))(x)["probabilities"], outputs)
    for again in (estimator.for_inference(x)(x), estimator.predict(x, as_iterable=False)):
        assert_same_bits(again["probabilities"], expected)  # the weights of both are float32


def test_an_estimator_is_asked_again_after_more_training(trained):
    estimator, is_dict = trained
    x = rows(0, 2, is_dict)
    fast = estimator.for_inference(x)
    before = fast(x)["probabilities"]
    estimator.fit(rows(0, 20, is_dict), np.arange(20) % 3, steps=2, batch_size=10)
    assert_same_bits(fast(x)["probabilities"], before)
    after = estimator.for_inference(x)(x)["probabilities"]
    assert not np.array_equal(after, before)
    np.testing.assert_allclose(
        after, estimator.predict(x, as_iterable=False)["probabilities"], rtol=1e-5, atol=1e-6
    )


def test_other_outputs_of_an_estimator(trained):
    estimator, is_dict = trained
    x = rows(0, 2, is_dict)
    fast = estimator.for_inference(x, outputs=["conv2d"])
    expected = estimator.predict(x, as_iterable=False, outputs=["conv2d"])
    np.testing.assert_allclose(fast(x)["conv2d"], expected["conv2d"], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="must be rows of one form in all batches, expected"):
        fast(rows(0, 2, not is_dict))


def test_an_estimator_that_was_not_trained(tmp_path):
    with pytest.raises(mc.CheckpointError, match="call fit first"):
        mc.Estimator(model_fn, model_dir=tmp_path).for_inference(rows(0, 1))


def test_an_estimator_predicts_with_it(trained, monkeypatch):
    estimator, is_dict = trained
    x = rows(0, 3, is_dict)
    first = estimator.predict(x, as_iterable=False)
    assert_same_bits(first["probabilities"], estimator.for_inference(x)(x)["probabilities"])
    assert next(estimator.predict(x)).keys() == first.keys()
    calls = []
    monkeypatch.setattr(_Run, "repeat", lambda run, feeds: calls.append(run))
    estimator.predict(x, as_iterable=False)
    assert calls


def test_large_batches_are_split(trained, monkeypatch):
    estimator, is_dict = trained
    x = rows(0, 3, is_dict)
    expected = estimator.predict(x, as_iterable=False)["probabilities"]
    repeat, runs = _Run.repeat, []

    def repeated(run, feeds):
        runs.append(run)
        repeat(run, feeds)

    monkeypatch.setattr(evaluation, "_MOST_KEPT", 0)
    monkeypatch.setattr(_Run, "repeat", repeated)
    got = estimator.predict(x, as_iterable=False)["probabilities"]
    assert len(runs) == 2  # the first row was recorded
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_an_estimator_renews_it_after_more_training(trained):
    estimator, is_dict = trained
    x = rows(0, 2, is_dict)
    before = estimator.predict(x, as_iterable=False)["probabilities"]
    other = mc.Estimator(model_fn, model_dir=estimator.model_dir)
    other.fit(rows(0, 20, is_dict), np.arange(20) % 3, steps=2, batch_size=10)
    after = estimator.predict(x, as_iterable=False)["probabilities"]
    assert not np.array_equal(after, before)
    assert_same_bits(after, other.predict(x, as_iterable=False)["probabilities"])


def test_statistics_of_the_batch(tmp_path):
    """A model_fn that forgets the mode: each prediction uses the statistics of its rows."""
    def model_fn(features, labels, mode):
        x = mc.layers.batch_normalization(features, training=True)
        loss = mc.losses.mean_squared_error(labels, x) if labels is not None else None
        train_op = mc.optimize_loss(loss, learning_rate=0.1) if mode == "train" else None
        return mc.ModelFnOps(mode, {"x": x}, loss, train_op)

    x = draw(0, 40, 3)
    estimator = mc.Estimator(model_fn, model_dir=tmp_path).fit(x, x, steps=1)
    fast = estimator.for_inference(x)
    for scale in (1, 5):
        for outputs in (fast(scale * x), estimator.predict(scale * x, as_iterable=False)):
            np.testing.assert_allclose(outputs["x"].std(axis=0), 1, atol=0.1)
