"""Compare the oracles with numbers calculated by hand, and their gradients with differences."""

import naive
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

ONE_TO_NINE = np.arange(1.0, 10.0).reshape(1, 3, 3, 1)
KERNEL = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(2, 2, 1, 1)

WINDOWS = [  # size of window, strides, padding; strides below, at and above the window
    ((2, 2), (2, 2), "valid"),
    ((2, 3), (1, 2), "valid"),
    ((3, 2), (2, 1), "same"),
    ((3, 3), (1, 1), "same"),
    ((2, 1), (3, 2), "same"),
    ((3, 3), (2, 1), ((1, 1), (0, 2))),
]


def image(plane):
    """Return a plane (H, W) as one image of one channel (1, H, W, 1)."""
    return np.array(plane, dtype=float)[None, :, :, None]


def plane(y):
    """Return the plane (H, W) of one image of one channel."""
    return y[0, :, :, 0]


def assert_gradient(f, x, dx, g):
    """Check that dx is the gradient of sum(f(x) * g) at x."""
    assert dx.shape == x.shape
    expected = naive.numeric_gradient(lambda x: np.sum(f(x) * g), x)
    assert_allclose(dx, expected, rtol=1e-7, atol=1e-7)


# Sizes


@pytest.mark.parametrize(
    ("size", "k", "stride", "dilation", "out", "padding"),
    [
        (28, 5, 1, 1, 28, (2, 2)),
        (28, 2, 2, 1, 14, (0, 0)),
        (5, 4, 1, 1, 5, (1, 2)),  # odd padding: the larger half is after
        (5, 2, 2, 1, 3, (0, 1)),
        (4, 3, 2, 1, 2, (0, 1)),
        (7, 3, 1, 2, 7, (2, 2)),
        (6, 1, 3, 1, 2, (0, 0)),  # never negative
    ],
)
def test_same_padding(size, k, stride, dilation, out, padding):
    assert naive.output_size(size, k, stride, dilation, "same") == out
    assert naive.same_padding(size, k, stride, dilation) == padding


@pytest.mark.parametrize(
    ("size", "k", "stride", "dilation", "out"),
    [(28, 5, 1, 1, 24), (5, 2, 2, 1, 2), (6, 2, 2, 1, 3), (7, 3, 1, 2, 3), (3, 3, 2, 1, 1)],
)
def test_valid_output_size(size, k, stride, dilation, out):
    assert naive.output_size(size, k, stride, dilation, "valid") == out


# Convolution


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[37, 47], [67, 77]]),  # 1*1 + 2*2 + 4*3 + 5*4 = 37: the kernel is not flipped
        ({"padding": "same"}, [[37, 47, 21], [67, 77, 33], [23, 26, 9]]),
        ({"padding": "same", "strides": (2, 2)}, [[37, 21], [23, 9]]),
        ({"padding": ((1, 0), (0, 0))}, [[11, 18], [37, 47], [67, 77]]),
        ({"padding": ((0, 0), (0, 2)), "strides": (1, 2)}, [[37, 21], [67, 33]]),
        ({"padding": "same", "strides": (1, 2)}, [[37, 21], [67, 33], [23, 9]]),
        ({"dilation": (2, 2)}, [[64]]),  # 1*1 + 3*2 + 7*3 + 9*4
        ({"dilation": (2, 1)}, [[1 + 4 + 21 + 32, 2 + 6 + 24 + 36]]),
    ],
)
def test_conv2d_by_hand(options, expected):
    y = naive.conv2d(ONE_TO_NINE, KERNEL, np.array([0.5]), **options)
    assert_array_equal(plane(y), np.array(expected) + 0.5)


def test_conv2d_sums_over_channels():
    x = np.array([1.0, 2.0]).reshape(1, 1, 1, 2)
    w = np.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(1, 1, 2, 2)  # in, out
    assert_array_equal(naive.conv2d(x, w).ravel(), [1 + 200, 10 + 2000])


def test_conv2d_backward_by_hand():
    dx, dw, db = naive.conv2d_backward(ONE_TO_NINE, KERNEL, image([[0, 1], [0, 0]]))
    assert_array_equal(plane(dx), [[0, 1, 2], [0, 3, 4], [0, 0, 0]])
    assert_array_equal(dw[:, :, 0, 0], [[2, 3], [5, 6]])
    assert_array_equal(db, [1])


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize(("k", "strides", "padding"), WINDOWS)
def test_conv2d_gradients(k, strides, padding, dilation):
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((2, 4, 5, 2)), rng.standard_normal(3)
    w = rng.standard_normal((*k, 2, 3))
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    g = rng.standard_normal(naive.conv2d(x, w, b, **options).shape)
    dx, dw, db = naive.conv2d_backward(x, w, g, **options)
    assert_gradient(lambda x: naive.conv2d(x, w, b, **options), x, dx, g)
    assert_gradient(lambda w: naive.conv2d(x, w, b, **options), w, dw, g)
    assert_gradient(lambda b: naive.conv2d(x, w, b, **options), b, db, g)


# Transposed and depthwise convolution


def test_conv2d_transpose_by_hand():
    x = image([[1, 2], [3, 4]])
    y = naive.conv2d_transpose(x, KERNEL, np.array([0.5]))
    assert_array_equal(plane(y), np.array([[1, 4, 4], [6, 20, 16], [9, 24, 16]]) + 0.5)
    apart = naive.conv2d_transpose(x, KERNEL, strides=(2, 2))
    assert_array_equal(
        plane(apart), [[1, 2, 2, 4], [3, 4, 6, 8], [3, 6, 4, 8], [9, 12, 12, 16]]
    )
    same = naive.conv2d_transpose(x, KERNEL, padding="same")
    assert_array_equal(plane(same), [[1, 4], [6, 20]])
    cut = naive.conv2d_transpose(x, KERNEL, padding=((1, 0), (0, 1)))
    assert_array_equal(plane(cut), [[6, 20], [9, 24]])


@pytest.mark.parametrize(
    ("size", "k", "stride", "padding", "out"),
    [(4, 3, 1, "valid", 6), (4, 3, 2, "valid", 9), (4, 2, 3, "valid", 12), (4, 3, 2, "same", 8),
     (4, 4, 2, (1, 1), 8)],
)
def test_transposed_output_size(size, k, stride, padding, out):
    assert naive.transposed_size(size, k, stride, padding) == out


@pytest.mark.parametrize(("k", "strides", "padding"), WINDOWS)
def test_conv2d_transpose_is_an_adjoint_with_these_gradients(k, strides, padding):
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((2, 3, 2, 2)), rng.standard_normal((*k, 3, 2)), np.zeros(3)
    options = {"strides": strides, "padding": padding}
    y = naive.conv2d_transpose(x, w, b, **options)
    g = rng.standard_normal(y.shape)
    assert_allclose(np.sum(y * g), np.sum(x * naive.conv2d(g, w, None, **options)))
    dx, dw, db = naive.conv2d_transpose_backward(x, w, g, **options)
    assert_gradient(lambda x: naive.conv2d_transpose(x, w, b, **options), x, dx, g)
    assert_gradient(lambda w: naive.conv2d_transpose(x, w, b, **options), w, dw, g)
    assert_gradient(lambda b: naive.conv2d_transpose(x, w, b, **options), b, db, g)


def test_depthwise_conv2d_by_hand():
    x = np.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 1, 2)  # two rows of two channels
    w = np.array([[[1, 10], [100, 1000]], [[2, 20], [200, 2000]]]).reshape(2, 1, 2, 2)
    y = naive.depthwise_conv2d(x, w, np.array([0, 0, 0, 5]))
    assert_array_equal(y.ravel(), [1 + 6, 10 + 60, 200 + 800, 2000 + 8000 + 5])


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize(("k", "strides", "padding"), WINDOWS)
def test_depthwise_conv2d_gradients(k, strides, padding, dilation):
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((2, 4, 5, 2)), rng.standard_normal(6)
    w = rng.standard_normal((*k, 2, 3))
    options = {"strides": strides, "padding": padding, "dilation": dilation}
    g = rng.standard_normal(naive.depthwise_conv2d(x, w, b, **options).shape)
    dx, dw, db = naive.depthwise_conv2d_backward(x, w, g, **options)
    assert_gradient(lambda x: naive.depthwise_conv2d(x, w, b, **options), x, dx, g)
    assert_gradient(lambda w: naive.depthwise_conv2d(x, w, b, **options), w, dw, g)
    assert_gradient(lambda b: naive.depthwise_conv2d(x, w, b, **options), b, db, g)


# Max pooling


def test_max_pool2d_by_hand():
    x = image([[1, 5, 2], [4, 3, 9], [8, 7, 6]])
    assert_array_equal(plane(naive.max_pool2d(x, (2, 2), (1, 1))), [[5, 9], [8, 9]])
    assert_array_equal(plane(naive.max_pool2d(x, (2, 2), (2, 2))), [[5]])
    assert_array_equal(plane(naive.max_pool2d(x, (2, 2), (2, 2), "same")), [[5, 9], [8, 6]])


def test_padding_never_wins():
    assert_array_equal(
        naive.max_pool2d(-ONE_TO_NINE, (3, 3), (2, 2), "same").ravel(), [-1, -2, -4, -5]
    )


def test_overlapping_windows_add_up():
    x = image([[1, 2, 0], [3, 9, 4], [0, 5, 8]])
    dx = naive.max_pool2d_backward(x, image([[1, 2], [3, 4]]), (2, 2), (1, 1))
    assert_array_equal(plane(dx), [[0, 0, 0], [0, 10, 0], [0, 0, 0]])


def test_ties_go_to_the_first_in_row_major_order():
    x = image([[0, 7], [7, 7]])
    dx = naive.max_pool2d_backward(x, image([[1]]), (2, 2), (2, 2))
    assert_array_equal(plane(dx), [[0, 1], [0, 0]])


def test_ties_at_minus_infinity_stay_inside_the_image():
    x = np.full((1, 2, 2, 1), -np.inf)
    assert_array_equal(naive.max_pool2d(x, (3, 3), (2, 2), "same"), [[[[-np.inf]]]])
    dx = naive.max_pool2d_backward(x, image([[1]]), (3, 3), (2, 2), "same")
    assert_array_equal(plane(dx), [[1, 0], [0, 0]])


def test_nan_is_the_maximum():
    x = image([[np.inf, np.nan], [np.nan, 2]])
    assert_array_equal(plane(naive.max_pool2d(x, (2, 2), (2, 2))), [[np.nan]])
    dx = naive.max_pool2d_backward(x, image([[1]]), (2, 2), (2, 2))
    assert_array_equal(plane(dx), [[0, 1], [0, 0]])


@pytest.mark.parametrize(("pool", "strides", "padding"), WINDOWS)
def test_max_pool2d_gradient(pool, strides, padding):
    rng = np.random.default_rng(1)
    x = rng.permutation(2 * 4 * 5 * 2).reshape(2, 4, 5, 2) / 10.0  # no ties
    g = rng.standard_normal(naive.max_pool2d(x, pool, strides, padding).shape)
    dx = naive.max_pool2d_backward(x, g, pool, strides, padding)
    assert_gradient(lambda x: naive.max_pool2d(x, pool, strides, padding), x, dx, g)


# Dense and ReLU


def test_average_pool2d_by_hand():
    assert_array_equal(plane(naive.average_pool2d(ONE_TO_NINE, (2, 2), (2, 2))), [[3]])
    # the last row and column have windows of two elements, and the corner one of one
    expected = [[3, 4.5], [7.5, 9]]
    assert_array_equal(plane(naive.average_pool2d(ONE_TO_NINE, (2, 2), (2, 2), "same")), expected)


@pytest.mark.parametrize(("pool", "strides", "padding"), WINDOWS)
def test_average_pool2d_gradient(pool, strides, padding):
    x, g = np.random.default_rng(0).random((2, 2, 4, 5, 2))
    down, across = naive.each_axis(padding)
    g = g[:, : naive.output_size(4, pool[0], strides[0], 1, down)]
    g = g[:, :, : naive.output_size(5, pool[1], strides[1], 1, across)]
    dx = naive.average_pool2d_backward(x, g, pool, strides, padding)
    assert_gradient(lambda x: naive.average_pool2d(x, pool, strides, padding), x, dx, g)


def test_batch_normalization_by_hand():
    x = np.array([[1.0], [3.0], [5.0], [7.0]])  # mean 4, variance 5
    assert [float(each) for each in map(np.squeeze, naive.batch_statistics(x))] == [4, 5]
    y = naive.batch_normalization(x, [2.0], [1.0], 4.0)  # a deviation of 3
    assert_allclose(y, [[-1], [1 / 3], [5 / 3], [3]])
    y = naive.batch_normalization(x, [2.0], [1.0], 4.0, ([1.0], [0.0]))
    assert_allclose(y, [[1], [3], [5], [7]])


def test_batch_normalization_gradients():
    x, g = np.random.default_rng(0).random((2, 2, 3, 1, 2))
    gamma, beta = np.array([1.5, -2.0]), np.array([0.5, 0.25])
    dx, dgamma, dbeta = naive.batch_normalization_backward(x, gamma, g, 0.1)
    assert_gradient(lambda x: naive.batch_normalization(x, gamma, beta, 0.1), x, dx, g)
    assert_gradient(lambda a: naive.batch_normalization(x, a, beta, 0.1), gamma, dgamma, g)
    assert_gradient(lambda b: naive.batch_normalization(x, gamma, b, 0.1), beta, dbeta, g)


def test_dense_by_hand():
    x, w, b = np.array([[1, 2]]), np.array([[1, 2, 3], [4, 5, 6]]), np.array([10, 20, 30])
    assert_array_equal(naive.dense(x, w, b), [[19, 32, 45]])
    dx, dw, db = naive.dense_backward(x, w, np.array([[1, 0, -1]]))
    assert_array_equal(dx, [[-2, -2]])
    assert_array_equal(dw, [[1, 0, -1], [2, 0, -2]])
    assert_array_equal(db, [1, 0, -1])


@pytest.mark.parametrize("rows", [(3,), (2, 3)])
def test_dense_gradients(rows):
    rng = np.random.default_rng(2)
    x, w, b = rng.standard_normal((*rows, 4)), rng.standard_normal((4, 5)), rng.standard_normal(5)
    g = rng.standard_normal((*rows, 5))
    dx, dw, db = naive.dense_backward(x, w, g)
    assert_gradient(lambda x: naive.dense(x, w, b), x, dx, g)
    assert_gradient(lambda w: naive.dense(x, w, b), w, dw, g)
    assert_gradient(lambda b: naive.dense(x, w, b), b, db, g)


def test_relu_by_hand():
    x = np.array([-2.0, -0.0, 0.0, 3.0, np.nan])
    assert_array_equal(naive.relu(x), [0, 0, 0, 3, np.nan])
    assert_array_equal(naive.relu_backward(x, np.full(5, 7.0)), [0, 0, 0, 7, 0])


def test_leaky_relu_by_hand():
    x = np.array([-2.0, 0.0, 3.0])
    assert_allclose(naive.leaky_relu(x), [-0.4, 0, 3])
    assert_allclose(naive.leaky_relu_backward(x, np.full(3, 5.0)), [1, 1, 5])


def test_gelu_by_hand():
    """68.27% of a normal distribution lie within one standard deviation, 95.45% within two."""
    assert_allclose(naive.gelu([0, 1, 2, -2]), [0, 0.84134, 2 * 0.97725, -2 * 0.02275], atol=2e-5)
    x = np.array([-3.0, -0.5, 0.0, 2.0])
    assert_gradient(naive.gelu, x, naive.gelu_backward(x, np.ones(4)), g=1)


# Softmax cross-entropy


def test_softmax_by_hand():
    assert_allclose(naive.softmax([[0, np.log(3)], [1000, 1000]]), [[0.25, 0.75], [0.5, 0.5]])


def test_softmax_cross_entropy_by_hand():
    labels, logits = [[0, 1], [1, 0]], [[0, np.log(3)], [0, 0]]
    first, second = -np.log(0.75), np.log(2)
    assert_allclose(naive.softmax_cross_entropy(labels, logits), (first + second) / 2)
    assert_allclose(naive.softmax_cross_entropy([[0, 1]], [[1000, 0]]), 1000)


def test_weights_divide_by_the_count_of_nonzero_ones():
    labels, logits = [[0, 1], [1, 0], [1, 0]], [[0, np.log(3)], [0, 0], [5, 5]]
    first, second = -np.log(0.75), np.log(2)
    loss = naive.softmax_cross_entropy(labels, logits, weights=[3, 0.5, 0])
    assert_allclose(loss, (3 * first + 0.5 * second) / 2)
    assert_allclose(
        naive.softmax_cross_entropy(labels, logits, weights=2), 2 * (first + 2 * second) / 3
    )


def test_no_weight_no_loss():
    labels, logits = [[0, 1], [1, 0]], [[0, 1], [2, 3]]
    assert naive.softmax_cross_entropy(labels, logits, weights=0) == 0
    assert_array_equal(naive.softmax_cross_entropy_backward(labels, logits, weights=[0, 0]), 0)


def test_label_smoothing_spreads_over_all_classes():
    loss = naive.softmax_cross_entropy([[0, 1]], [[0, np.log(3)]], label_smoothing=0.2)
    assert_allclose(loss, -0.1 * np.log(0.25) - 0.9 * np.log(0.75))


@pytest.mark.parametrize("label_smoothing", [0, 0.3])
@pytest.mark.parametrize("weights", [1.0, [0.5, 0, 2.0, 1.0]])
def test_softmax_cross_entropy_gradient(weights, label_smoothing):
    logits = np.random.default_rng(3).standard_normal((4, 3))
    labels = np.array([[1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5], [0, 0, 0]])  # the last: no label
    options = {"weights": weights, "label_smoothing": label_smoothing}
    dz = naive.softmax_cross_entropy_backward(labels, logits, **options)
    assert_gradient(lambda z: naive.softmax_cross_entropy(labels, z, **options), logits, dz, g=1)


# The differences


def test_numeric_gradient_by_hand():
    x = np.array([[1.0, -2.0], [0.5, 3.0]])
    gradient = naive.numeric_gradient(lambda x: np.sum(x**3) + x[0, 0] * x[1, 1], x)
    assert_allclose(gradient, [[3 + 3, 12], [0.75, 27 + 1]], rtol=1e-8)
    assert_array_equal(x, [[1, -2], [0.5, 3]])  # unchanged
