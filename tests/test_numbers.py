"""Silent numerical errors: large logits, tiny probabilities, the gradient of a complete network.

NaN and infinity: tests/layers/test_conformance.py has every layer, tests/kernels every kernel.
"""


import numpy as np
import pytest
from numpy.testing import assert_allclose

import minicnn as mc
from minicnn.kernels import elementwise
from minicnn.kernels.conv import conv
from minicnn.kernels.dense import dense
from minicnn.kernels.window import slide

by_type = pytest.mark.parametrize("dtype", [np.float32, np.float64])


# The loss -----------------------------------------------------------------------------------------


def exact(labels, logits):
    """Return loss, gradient and probabilities, computed with at least 64 bits of precision."""
    y, z = labels.astype(np.longdouble), logits.astype(np.longdouble)
    z -= z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    p = np.exp(log_p)
    return -(y * log_p).sum(axis=1).mean(), (p - y) / len(y), p


def logits_of(kind, dtype):
    """Return 50 rows of ten logits, and labels: one-hot rows, and distributions."""
    rng = np.random.default_rng(5)
    z = rng.standard_normal((50, 10))
    z *= {"plain": 1, "1e4": 1e4, "vanishing": 100, "far from zero": 1}[kind]
    z += {"far from zero": -1e4}.get(kind, 0)
    return z.astype(dtype), np.eye(10)[rng.integers(10, size=50)], rng.dirichlet(np.ones(10), 50)


@by_type
@pytest.mark.parametrize("kind", ["plain", "1e4", "vanishing", "far from zero"])
def test_the_loss_is_right_where_exp_overflows_or_vanishes(kind, dtype):
    logits, *labelings = logits_of(kind, dtype)
    epsilon = np.finfo(dtype).eps
    for labels in labelings:
        rows = labels.astype(dtype)
        loss, gradient, probabilities = exact(rows, logits)
        actual, dlogits = mc.losses.softmax_cross_entropy_with_grad(rows, logits)
        assert_allclose(actual, float(loss), rtol=8 * epsilon, atol=8 * epsilon)
        assert actual == mc.losses.softmax_cross_entropy(rows, logits)
        assert_allclose(dlogits, gradient.astype(float), rtol=0, atol=epsilon)
        # A probability below the smallest number is 0 or that number.
        tiny = np.finfo(dtype).smallest_subnormal
        relative = 16 * epsilon * max(1, np.log(1 / np.finfo(dtype).tiny))  # exp amplifies an error
        assert_allclose(mc.softmax(logits), probabilities.astype(float), rtol=relative, atol=tiny)


@by_type
def test_the_loss_is_right_for_the_largest_numbers(dtype):
    most, nothing = np.finfo(dtype).max, -np.inf
    for logits, label, expected in [
        ([most, -most], 0, 0.0), ([0, nothing, 1], 0, np.log1p(np.e)),
        ([0, nothing, np.nan], 0, np.nan),
    ]:
        with np.errstate(over="ignore"):
            loss, gradient = mc.losses.softmax_cross_entropy_with_grad(
                np.array([label]), np.array([logits], dtype)
            )
        assert_allclose(loss, expected, rtol=1e-6)
        assert np.isnan(gradient).all() == np.isnan(expected)


@by_type
def test_sigmoid_is_right_where_it_vanishes(dtype):
    x = np.array([-80, -40, -20, -15, -1, 0, 1, 20, -np.inf, np.inf, np.nan], dtype)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    assert_allclose(mc.sigmoid(x), expected, rtol=4 * np.finfo(dtype).eps)


def rows_of(kind, n, columns, seed):
    """Return n rows of float32: signed, positive, or all equal."""
    rng = np.random.default_rng(seed)
    if kind == "signed":
        return rng.standard_normal((n, columns), np.float32)
    return rng.random((1 if kind == "equal" else n, columns), np.float32).repeat(
        n if kind == "equal" else 1, axis=0)


def assert_within_rounding(actual, exact):
    """Check that every element is right within 2e-6 of the largest one."""
    assert_allclose(actual, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


by_kind = pytest.mark.parametrize("kind", ["signed", "positive", "equal"])


@by_kind
@pytest.mark.parametrize("n", [1000, 4096, 20_000])
def test_the_gradients_of_a_dense_layer_are_right_for_many_rows(n, kind, monkeypatch):
    monkeypatch.setattr(dense, "_LEAST_LISTED", 0)
    x, dy = rows_of(kind, n, 3, 0), rows_of(kind, n, 5, 1)
    w, dw, db = np.ones((3, 5), np.float32), np.empty((3, 5), np.float32), np.empty(5, np.float32)
    elementwise.sum_rows(dy, db)
    assert_within_rounding(db, dy.sum(axis=0, dtype=np.float64))
    few = np.where(np.random.default_rng(2).random((n, 5)) < 0.3, dy, 0).astype(np.float32)
    for gradient in (dy, few):  # the packed product, and lists of nonzero gradients
        dense.gradients(x, gradient, w, dw, None, True)
        assert_within_rounding(dw, x.T.astype(np.float64) @ gradient)


@by_kind
def test_the_kernel_gradients_of_a_convolution_are_right_for_many_images(kind, monkeypatch):
    window, images = slide((2, 2), (1, 1), (1, 1), "same"), 20_000
    x = rows_of(kind, images * 4, 3, 0).reshape(images, 2, 2, 3)
    dy = rows_of(kind, images * 4, 2, 1).reshape(images, 2, 2, 2)
    dw, db = np.empty((1, 1, 3, 2), np.float32), np.empty(2, np.float32)
    exact = x.reshape(-1, 3).T.astype(np.float64) @ dy.reshape(-1, 2)
    conv.kernel_gradient(x, dy, dw, db, window)
    assert_within_rounding(dw[0, 0], exact)
    with monkeypatch.context() as patch:
        patch.setattr(conv, "FAST_PATHS", False)
        conv.kernel_gradient(x, dy, dw, db, window)
    assert_within_rounding(dw[0, 0], exact)
    pooled, code = np.ascontiguousarray(dy[:, :1, :1]), np.zeros((images, 1, 1, 2), np.uint8)
    conv.pooled_gradients(x, pooled, code, np.ones_like(dw), dw, db, None, window)
    assert_within_rounding(dw[0, 0], x[:, 0, 0].T.astype(np.float64) @ pooled[:, 0, 0])


@by_kind
def test_the_kernel_gradient_of_a_convolution_is_right_for_one_long_row(kind):
    window, dw = slide((1, 20_000), (1, 3), (1, 1), "valid"), np.empty((1, 3, 1, 1), np.float32)
    x = rows_of(kind, 20_000, 1, 0).reshape(1, 1, 20_000, 1)
    dy = rows_of(kind, 19_998, 1, 1).reshape(1, 1, 19_998, 1)
    conv.kernel_gradient(x, dy, dw, np.empty(1, np.float32), window)
    exact = [x[0, 0, k : k + 19_998, 0].astype(np.float64) @ dy[0, 0, :, 0] for k in range(3)]
    assert_within_rounding(dw[0, :, 0, 0], exact)


def test_the_gradient_of_a_bias_is_right_for_a_million_rows():
    dy, db = rows_of("equal", 1_000_000, 3, 0), np.empty(3, np.float32)
    elementwise.sum_rows(dy, db)
    assert_within_rounding(db, dy[0].astype(np.float64) * 1e6)


@by_kind
@pytest.mark.parametrize("images", [20, 500])
def test_the_bias_gradients_of_a_convolution_are_right_for_many_positions(images, kind):
    window, db = slide((28, 28), (1, 1), (1, 1), "same"), np.empty(3, np.float32)
    x, w = np.zeros((images, 28, 28, 1), np.float32), np.zeros((1, 1, 1, 3), np.float32)
    dy = rows_of(kind, images * 784, 3, 1).reshape(images, 28, 28, 3)
    conv.kernel_gradient(x, dy, w.copy(), db, window)
    assert_within_rounding(db, dy.sum(axis=(0, 1, 2), dtype=np.float64))
    pooled, code = np.ascontiguousarray(dy[:, ::2, ::2]), np.zeros((images, 14, 14, 3), np.uint8)
    conv.pooled_gradients(x, pooled, code, w, w.copy(), db, None, window)
    assert_within_rounding(db, pooled.sum(axis=(0, 1, 2), dtype=np.float64))


@by_kind
def test_relu_and_dropout_leave_the_gradients_of_many_rows_right(kind, monkeypatch):
    monkeypatch.setattr(dense, "_LEAST_LISTED", 0)  # from lists
    model = mc.Sequential([mc.layers.Dense(8, "relu"), mc.layers.Dropout(0.4)])
    model.build((None, 3), rng=0)
    ctx, x = mc.Context(training=True, rng=np.random.default_rng(1)), rows_of(kind, 4000, 3, 0)
    y = model.forward(x, ctx)
    dy = rows_of(kind, 4000, 8, 1)
    model.backward(dy, ctx)
    dz = np.where(y > 0, dy * np.float32(1 / 0.6), 0)
    kernel, bias = model.layers[0].kernel, model.layers[0].bias
    assert_within_rounding(kernel.grad, x.T.astype(np.float64) @ dz)
    assert_within_rounding(bias.grad, dz.sum(axis=0, dtype=np.float64))


def test_a_probability_that_vanishes_costs_its_logits():
    logits = np.array([[0, -200], [0, -1e4], [-1e4, 1e4]], np.float32)
    assert mc.softmax(logits).tolist() == [[1, 0], [1, 0], [0, 1]]
    for row, cost in zip(logits, (200, 1e4, 2e4), strict=True):
        label = np.array([np.argmin(row)])
        loss, gradient = mc.losses.softmax_cross_entropy_with_grad(label, row[None])
        assert loss == cost
        assert np.abs(gradient).tolist() == [[1, 1]]  # and it still learns


# The gradient of the complete network -------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """Return the documented network in float64 with nonzero biases, three images, and its loss."""
    mnist = mc.datasets.load_dataset("mnist", reshape=False).train
    x, labels = mnist.images[:3].astype(np.float64), mnist.labels[:3]
    model = mc.Sequential([
        mc.layers.Conv2D(32, 5, padding="same", activation="relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Conv2D(64, 5, padding="same", activation="relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Flatten(), mc.layers.Dense(1024, activation="relu"), mc.layers.Dropout(0.4),
        mc.layers.Dense(10),
    ])
    model.build((None, *x.shape[1:]), rng=0, dtype=np.float64)
    rng = np.random.default_rng(1)
    for parameter in model.parameters:
        if parameter.value.ndim == 1:  # otherwise the inputs of ReLU would be 0 in blank patches
            parameter.value[...] = rng.uniform(0.01, 0.1, parameter.shape)

    def loss(backward=False):
        ctx = mc.Context(training=True, rng=np.random.default_rng(2))  # the same dropout each time
        logits = model.forward(x, ctx)
        value, gradient = mc.losses.softmax_cross_entropy_with_grad(labels, logits)
        if backward:
            model.backward(gradient, ctx, need_dx=False)
        return value

    loss(backward=True)
    return model, loss


def slope(network, parameters, seed):
    """Return the slope of the loss along a random direction, from backward and differences."""
    _, loss = network
    rng, step = np.random.default_rng(seed), 1e-7
    starts = [parameter.value.copy() for parameter in parameters]
    # Along the signs of the gradient, so that the terms do not cancel; random signs where it is 0.
    signs = [np.where(p.grad == 0, rng.choice([-1, 1], p.shape), np.sign(p.grad))
             for p in parameters]
    moves = [rng.uniform(0.5, 1.5, sign.shape) * sign for sign in signs]
    analytic = sum(float((p.grad * move).sum()) for p, move in zip(parameters, moves, strict=True))
    losses = []
    for sign in (1, -1):
        for parameter, start, move in zip(parameters, starts, moves, strict=True):
            parameter.value[...] = start + sign * step * move
        losses.append(loss())
    for parameter, start in zip(parameters, starts, strict=True):
        parameter.value[...] = start
    return analytic, (losses[0] - losses[1]) / (2 * step)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_documented_network(network, seed):
    """Test all 3,274,634 weights together, and those of each array."""
    parameters = network[0].parameters
    assert sum(p.value.size for p in parameters) == 3_274_634
    for some in (parameters, *((p,) for p in parameters)):
        analytic, numeric = slope(network, some, seed)
        assert_allclose(analytic, numeric, rtol=1e-7)
        assert analytic > 0.1
