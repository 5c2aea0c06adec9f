"""Oracles: every operation restated from its definition, so simply that a reader believes it.

Nothing here is fast, and nothing is shared with the library. Loops run over positions; only the
batch and the channels of one position are handled as arrays. Arithmetic and results are float64 for
any inputs. Layout: images (N, H, W, C), convolution kernels (KH, KW, C, F),
dense kernels (in, units).
"""

import itertools
import math

import numpy as np


def as_float64(*arrays):
    """Return the arrays in float64; a single array not as a tuple."""
    arrays = [np.asarray(array, dtype=np.float64) for array in arrays]
    return arrays[0] if len(arrays) == 1 else arrays


# Sizes --------------------------------------------------------------------------------------------
#
# A window of k taps, `dilation` apart, spans (k - 1) * dilation + 1 positions.
#
#   valid: out = floor((size - span) / stride) + 1, no padding
#   same:  out = ceil(size / stride), padding = max(0, (out - 1) * stride + span - size),
#          half of it before, rounded down, the rest after
#   (before, after): out = floor((before + size + after - span) / stride) + 1
#
# Two axes have one word, or ((top, bottom), (left, right)).
#
# Padding is never stored: taps outside the image are left out of every sum and maximum.


def span(k, dilation=1):
    """Return the number of positions from the first tap of a window to the last."""
    return (k - 1) * dilation + 1


def output_size(size, k, stride=1, dilation=1, padding="valid"):
    """Return the number of windows along one axis."""
    if padding == "same":
        return math.ceil(size / stride)
    size += 0 if padding == "valid" else sum(padding)
    return (size - span(k, dilation)) // stride + 1


def same_padding(size, k, stride=1, dilation=1):
    """Return the padding (before, after) of one axis with padding="same"."""
    out = output_size(size, k, stride, dilation, "same")
    total = max(0, (out - 1) * stride + span(k, dilation) - size)
    return total // 2, total - total // 2


def each_axis(padding):
    """Return the padding of the rows and of the columns."""
    return (padding, padding) if isinstance(padding, str) else padding


def windows(size, k, stride=1, dilation=1, padding="valid"):
    """Return the (tap, input position) pairs inside the image for each output position."""
    pads = {"same": same_padding(size, k, stride, dilation), "valid": (0, 0)}
    before, _ = pads.get(padding, padding)
    result = []
    for o in range(output_size(size, k, stride, dilation, padding)):
        positions = [(tap, o * stride - before + tap * dilation) for tap in range(k)]
        result.append([(tap, i) for tap, i in positions if 0 <= i < size])
    return result


# Convolution --------------------------------------------------------------------------------------
#
#   y[n, oy, ox, f] = b[f] + sum over ky, kx, c of x[n, iy, ix, c] * w[ky, kx, c, f]
#   iy = oy * stride - before + ky * dilation, and ix likewise; x = 0 outside the image
#
# Each product x * w in y sends dy * w to dx and dy * x to dw.


def conv_taps(x, w, strides, padding, dilation):
    """Yield every (oy, ox, ky, kx, iy, ix) of the sum."""
    down, across = each_axis(padding)
    rows = windows(x.shape[1], w.shape[0], strides[0], dilation[0], down)
    columns = windows(x.shape[2], w.shape[1], strides[1], dilation[1], across)
    for oy, row in enumerate(rows):
        for ox, column in enumerate(columns):
            for (ky, iy), (kx, ix) in itertools.product(row, column):
                yield oy, ox, ky, kx, iy, ix


def conv2d(x, w, b=None, strides=(1, 1), padding="valid", dilation=(1, 1)):
    """Cross-correlate x (N, H, W, C), w (KH, KW, C, F), b (F,) -> y (N, OH, OW, F)."""
    x, w = as_float64(x, w)
    down, across = each_axis(padding)
    out_h = output_size(x.shape[1], w.shape[0], strides[0], dilation[0], down)
    out_w = output_size(x.shape[2], w.shape[1], strides[1], dilation[1], across)
    y = np.zeros((x.shape[0], out_h, out_w, w.shape[3]))
    for oy, ox, ky, kx, iy, ix in conv_taps(x, w, strides, padding, dilation):
        y[:, oy, ox] += x[:, iy, ix] @ w[ky, kx]  # (N, C) @ (C, F)
    return y if b is None else y + as_float64(b)


def conv2d_backward(x, w, dy, strides=(1, 1), padding="valid", dilation=(1, 1)):
    """Return the gradients dx, dw, db of sum(conv2d(x, w, b) * dy)."""
    x, w, dy = as_float64(x, w, dy)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for oy, ox, ky, kx, iy, ix in conv_taps(x, w, strides, padding, dilation):
        dx[:, iy, ix] += dy[:, oy, ox] @ w[ky, kx].T  # (N, F) @ (F, C)
        dw[ky, kx] += x[:, iy, ix].T @ dy[:, oy, ox]  # (C, N) @ (N, F)
    return dx, dw, dy.sum(axis=(0, 1, 2))


# Transposed convolution ---------------------------------------------------------------------------
#
#   The adjoint of a convolution: if that multiplies output position i and tap k of an image, the
#   transposed convolution adds x[i] * w[k] to that position of its own output, the image.
#
#   same:  image size = size * stride;  valid: (size - 1) * stride + max(k, stride)
#   (before, after): as for valid, without `before` and `after` positions at the ends


def transposed_size(size, k, stride, padding):
    """Return the size of the output along one axis."""
    if padding == "same":
        return size * stride
    cut = 0 if padding == "valid" else sum(padding)
    return (size - 1) * stride + max(k, stride) - cut


def transposed_taps(x, w, strides, padding):
    """Return the (height, width) of the output, and every (ix, iy, ky, kx, oy, ox) of the sums."""
    down, across = each_axis(padding)
    height = transposed_size(x.shape[1], w.shape[0], strides[0], down)
    width = transposed_size(x.shape[2], w.shape[1], strides[1], across)
    output = np.empty((1, height, width, 1))
    return (height, width), list(conv_taps(output, w, strides, padding, (1, 1)))


def conv2d_transpose(x, w, b=None, strides=(1, 1), padding="valid"):
    """Spread x (N, H, W, C) by w (KH, KW, F, C), plus b (F,) -> y (N, OH, OW, F)."""
    x, w = as_float64(x, w)
    size, taps = transposed_taps(x, w, strides, padding)
    y = np.zeros((x.shape[0], *size, w.shape[2]))
    for iy, ix, ky, kx, oy, ox in taps:
        y[:, oy, ox] += x[:, iy, ix] @ w[ky, kx].T  # (N, C) @ (C, F)
    return y if b is None else y + as_float64(b)


def conv2d_transpose_backward(x, w, dy, strides=(1, 1), padding="valid"):
    """Return the gradients dx, dw, db of sum(conv2d_transpose(x, w, b) * dy)."""
    x, w, dy = as_float64(x, w, dy)
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    for iy, ix, ky, kx, oy, ox in transposed_taps(x, w, strides, padding)[1]:
        dx[:, iy, ix] += dy[:, oy, ox] @ w[ky, kx]  # (N, F) @ (F, C)
        dw[ky, kx] += dy[:, oy, ox].T @ x[:, iy, ix]  # (F, N) @ (N, C)
    return dx, dw, dy.sum(axis=(0, 1, 2))


# Depthwise convolution ----------------------------------------------------------------------------
#
#   y[n, oy, ox, c * M + m] = b[c * M + m] + sum over ky, kx of x[n, iy, ix, c] * w[ky, kx, c, m]
#
# It is the convolution whose kernel is zero where the input channel is not that of the output.


def full_kernel(w):
    """Return w (KH, KW, C, M) as a kernel (KH, KW, C, C * M) that is zero between channels."""
    w = as_float64(w)
    channels, multiplier = w.shape[2:]
    full = np.zeros((*w.shape[:3], channels * multiplier))
    for c, m in itertools.product(range(channels), range(multiplier)):
        full[:, :, c, c * multiplier + m] = w[:, :, c, m]
    return full


def depthwise_conv2d(x, w, b=None, strides=(1, 1), padding="valid", dilation=(1, 1)):
    """Convolve each channel: x (N, H, W, C), w (KH, KW, C, M), b (C * M,) -> (N, OH, OW, C * M)."""
    return conv2d(x, full_kernel(w), b, strides, padding, dilation)


def depthwise_conv2d_backward(x, w, dy, strides=(1, 1), padding="valid", dilation=(1, 1)):
    """Return the gradients dx, dw, db of sum(depthwise_conv2d(x, w, b) * dy)."""
    dx, full, db = conv2d_backward(x, full_kernel(w), dy, strides, padding, dilation)
    dw = np.zeros(np.shape(w))
    for c, m in np.ndindex(dw.shape[2:]):
        dw[:, :, c, m] = full[:, :, c, c * dw.shape[3] + m]
    return dx, dw, db


# Max pooling --------------------------------------------------------------------------------------
#
#   y[n, oy, ox, c] = max of x[n, iy, ix, c] over the window; a NaN in the window is its maximum
#
# The gradient of an output goes to one position, the first maximum in row-major order. If windows
# overlap, a position gets the sum of their gradients.


def first_maximum(plane, window):
    """Return the first position of the window with the largest value, or the first NaN."""
    best = window[0]
    for position in window[1:]:
        value, largest = plane[position], plane[best]
        if value > largest or (np.isnan(value) and not np.isnan(largest)):
            best = position
    return best


def pool_winners(x, pool, strides, padding):
    """Yield (n, oy, ox, c, iy, ix): each output position and the input position of its value."""
    down, across = each_axis(padding)
    rows = windows(x.shape[1], pool[0], strides[0], 1, down)
    columns = windows(x.shape[2], pool[1], strides[1], 1, across)
    for n, c in itertools.product(range(x.shape[0]), range(x.shape[3])):
        for oy, row in enumerate(rows):
            for ox, column in enumerate(columns):
                window = [(iy, ix) for _, iy in row for _, ix in column]
                yield n, oy, ox, c, *first_maximum(x[n, :, :, c], window)


def max_pool2d(x, pool, strides, padding="valid"):
    """Return the maximum of each window: x (N, H, W, C) -> y (N, OH, OW, C)."""
    x = as_float64(x)
    down, across = each_axis(padding)
    out_h = output_size(x.shape[1], pool[0], strides[0], 1, down)
    out_w = output_size(x.shape[2], pool[1], strides[1], 1, across)
    y = np.zeros((x.shape[0], out_h, out_w, x.shape[3]))
    for n, oy, ox, c, iy, ix in pool_winners(x, pool, strides, padding):
        y[n, oy, ox, c] = x[n, iy, ix, c]
    return y


def max_pool2d_backward(x, dy, pool, strides, padding="valid"):
    """Return the gradient dx of sum(max_pool2d(x) * dy)."""
    x, dy = as_float64(x, dy)
    dx = np.zeros_like(x)
    for n, oy, ox, c, iy, ix in pool_winners(x, pool, strides, padding):
        dx[n, iy, ix, c] += dy[n, oy, ox, c]
    return dx


# Average pooling ----------------------------------------------------------------------------------
#
#   y[n, oy, ox, c] = mean of x[n, iy, ix, c] over the window, inside the image


def pool_windows(size, pool, strides, padding):
    """Yield (oy, ox, positions): each output position and the input positions of its window."""
    down, across = each_axis(padding)
    rows = windows(size[0], pool[0], strides[0], 1, down)
    columns = windows(size[1], pool[1], strides[1], 1, across)
    for oy, row in enumerate(rows):
        for ox, column in enumerate(columns):
            yield oy, ox, [(iy, ix) for _, iy in row for _, ix in column]


def average_pool2d(x, pool, strides, padding="valid"):
    """Return the mean of each window: x (N, H, W, C) -> y (N, OH, OW, C)."""
    x = as_float64(x)
    down, across = each_axis(padding)
    out_h = output_size(x.shape[1], pool[0], strides[0], 1, down)
    out_w = output_size(x.shape[2], pool[1], strides[1], 1, across)
    y = np.zeros((x.shape[0], out_h, out_w, x.shape[3]))
    for oy, ox, positions in pool_windows(x.shape[1:3], pool, strides, padding):
        for iy, ix in positions:
            y[:, oy, ox] += x[:, iy, ix] / len(positions)
    return y


def average_pool2d_backward(x, dy, pool, strides, padding="valid"):
    """Return the gradient dx of sum(average_pool2d(x) * dy)."""
    x, dy = as_float64(x, dy)
    dx = np.zeros_like(x)
    for oy, ox, positions in pool_windows(x.shape[1:3], pool, strides, padding):
        for iy, ix in positions:
            dx[:, iy, ix] += dy[:, oy, ox] / len(positions)
    return dx


# Batch normalization ------------------------------------------------------------------------------
#
#   y[r, c] = gamma[c] * xhat[r, c] + beta[c],  xhat[r, c] = (x[r, c] - mean[c]) / s[c]
#   mean[c] = 1/R * sum over r of x[r, c],  s[c]^2 = epsilon + 1/R * sum over r of (x - mean)^2
#
# for the rows r of all positions of all images. Every x[r, c] changes all of y[:, c].


def batch_statistics(x):
    """Return the mean and the biased variance of each channel of x (..., C)."""
    rows = as_float64(x).reshape(-1, x.shape[-1])
    mean = sum(rows) / len(rows)
    return mean, sum((row - mean) ** 2 for row in rows) / len(rows)


def batch_normalization(x, gamma, beta, epsilon, statistics=None):
    """Return y for x (..., C), with the statistics of x or with given ones."""
    x, gamma, beta = as_float64(x, gamma, beta)
    mean, variance = batch_statistics(x) if statistics is None else as_float64(*statistics)
    return gamma * (x - mean) / np.sqrt(variance + epsilon) + beta


def batch_normalization_backward(x, gamma, dy, epsilon):
    """Return the gradients dx, dgamma, dbeta of sum(batch_normalization(x) * dy).

    dxhat = dy gamma;  dvar = sum of dxhat (x - mean) * -1/2 s^-3;  dmean = sum of -dxhat / s;
    dx = dxhat / s + dvar * 2 (x - mean) / R + dmean / R
    """
    x, gamma, dy = as_float64(x, gamma, dy)
    mean, variance = batch_statistics(x)
    rows, s = x.size // x.shape[-1], np.sqrt(variance + epsilon)
    axes = tuple(range(x.ndim - 1))
    dxhat = dy * gamma
    dvar = (dxhat * (x - mean)).sum(axes) * -0.5 / s**3
    dmean = (-dxhat / s).sum(axes)
    dx = dxhat / s + dvar * 2 * (x - mean) / rows + dmean / rows
    return dx, (dy * (x - mean) / s).sum(axes), dy.sum(axes)


# Dense --------------------------------------------------------------------------------------------
#
#   y[..., j] = b[j] + sum over i of x[..., i] * w[i, j]


def dense(x, w, b=None):
    """Multiply the last axis of x by w: x (..., I), w (I, U), b (U,) -> y (..., U)."""
    x, w = as_float64(x, w)
    y = np.zeros((*x.shape[:-1], w.shape[1]))
    for row in np.ndindex(x.shape[:-1]):
        for j in range(w.shape[1]):
            y[(*row, j)] = np.sum(x[row] * w[:, j])
    return y if b is None else y + as_float64(b)


def dense_backward(x, w, dy):
    """Return the gradients dx, dw, db of sum(dense(x, w, b) * dy)."""
    x, w, dy = as_float64(x, w, dy)
    dx, dw, db = np.zeros_like(x), np.zeros_like(w), np.zeros(w.shape[1])
    for row in np.ndindex(x.shape[:-1]):
        for j in range(w.shape[1]):
            dx[row] += dy[(*row, j)] * w[:, j]
            dw[:, j] += dy[(*row, j)] * x[row]
            db[j] += dy[(*row, j)]
    return dx, dw, db


# ReLU ---------------------------------------------------------------------------------------------
#
#   y = max(x, 0), and NaN stays NaN; dx = dy where x > 0, else 0


def relu(x):
    """Return max(x, 0), entry by entry."""
    return np.maximum(as_float64(x), 0)


def relu_backward(x, dy):
    """Return the gradient dx of sum(relu(x) * dy); 0 where x = 0."""
    return np.where(as_float64(x) > 0, as_float64(dy), 0)


def leaky_relu(x, alpha=0.2):
    """Return x where it is positive, else alpha x."""
    x = as_float64(x)
    return np.where(x > 0, x, alpha * x)


def leaky_relu_backward(x, dy, alpha=0.2):
    """Return the gradient dx of sum(leaky_relu(x) * dy); alpha dy where x = 0."""
    return np.where(as_float64(x) > 0, 1, alpha) * as_float64(dy)


# GELU ---------------------------------------------------------------------------------------------
#
#   y = x P(x), P(x) = (1 + erf(x / sqrt(2))) / 2, the standard normal distribution function
#   dx = dy (P(x) + x exp(-x^2 / 2) / sqrt(2 pi))


def gelu(x):
    """Return x times the probability that a standard normal variable is below x."""
    x = as_float64(x)
    y = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        y[i] = x[i] * (1 + math.erf(x[i] / math.sqrt(2))) / 2
    return y


def gelu_backward(x, dy):
    """Return the gradient dx of sum(gelu(x) * dy)."""
    x, dy = as_float64(x, dy)
    dx = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        below = (1 + math.erf(x[i] / math.sqrt(2))) / 2
        density = math.exp(-x[i] ** 2 / 2) / math.sqrt(2 * math.pi)
        dx[i] = dy[i] * (below + x[i] * density)
    return dx


# Softmax cross-entropy, as in TensorFlow 1 --------------------------------------------------------
#
#   p[i, k] = exp(z[i, k]) / sum over j of exp(z[i, j])
#   y       = labels * (1 - s) + s / classes
#   loss[i] = -sum over k of y[i, k] * log p[i, k]
#   loss    = sum over i of weight[i] * loss[i] / count(weight != 0), and 0 if the count is 0
#
#   dz[i, k] = weight[i] / count * (p[i, k] * sum over j of y[i, j] - y[i, k])
#
# The inner sum is 1 for labels that are probabilities. A row of zeros has no loss and no gradient.


def softmax(z):
    """Return the probabilities along the last axis."""
    return np.exp(log_softmax(z))


def log_softmax(z):
    """Return log(softmax(z)), finite even if the probability is 0."""
    z = as_float64(z)
    z = z - z.max(axis=-1, keepdims=True)  # cancels in the quotient; exp cannot overflow
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def smooth(labels_onehot, label_smoothing):
    """Return labels (N, K) with the share `label_smoothing` spread evenly over the classes."""
    labels = as_float64(labels_onehot)
    return labels * (1 - label_smoothing) + label_smoothing / labels.shape[-1]


def row_shares(weights, rows):
    """Return weight / count(weight != 0) for every row; zeros if the count is 0."""
    weights = np.broadcast_to(as_float64(weights), (rows,))
    count = sum(weight != 0 for weight in weights)
    return weights / count if count else np.zeros(rows)


def softmax_cross_entropy(labels_onehot, logits, weights=1.0, label_smoothing=0):
    """Return the loss of labels and logits (N, K); weights broadcast over the N rows."""
    y, log_p = smooth(labels_onehot, label_smoothing), log_softmax(logits)
    loss = 0.0
    for i, share in enumerate(row_shares(weights, len(y))):
        loss += share * -np.sum(y[i] * log_p[i])
    return float(loss)


def softmax_cross_entropy_backward(labels_onehot, logits, weights=1.0, label_smoothing=0):
    """Return the gradient (N, K) of softmax_cross_entropy with respect to the logits."""
    y, p = smooth(labels_onehot, label_smoothing), softmax(logits)
    dz = np.zeros_like(p)
    for i, share in enumerate(row_shares(weights, len(y))):
        dz[i] = share * (p[i] * np.sum(y[i]) - y[i])
    return dz


# Other losses: a term for each element, (N, ...), and how the terms become one number.


def squared_error(y, p):
    return (p - y) ** 2


def absolute_error(y, p):
    return abs(p - y)


def sigmoid_loss(y, z):
    p = 1 / (1 + math.exp(-z))
    return -(y * math.log(p) + (1 - y) * math.log(1 - p))


def terms(term, labels, outputs):
    """Return term(label, output) for each pair."""
    y, z = as_float64(labels, outputs)
    result = np.zeros(z.shape)
    for i in np.ndindex(z.shape):
        result[i] = term(y[i], z[i])
    return result


def reduced(terms, weights, reduction):
    """Return the sum of w * term, divided as the name of TensorFlow says. w: one a term."""
    total = total_weight = count = 0.0
    for i in np.ndindex(terms.shape):
        total += weights[i] * terms[i]
        total_weight += weights[i]
        count += weights[i] != 0
    divisor = {
        "weighted_sum": 1,
        "weighted_mean": total_weight,
        "weighted_sum_over_batch_size": terms.size,
        "weighted_sum_by_nonzero_weights": count,
    }[reduction]
    return total / divisor if divisor > 0 else 0.0


# Differences --------------------------------------------------------------------------------------
#
#   df/dx[i] = (f(x + eps * e_i) - f(x - eps * e_i)) / (2 * eps) + O(eps^2)


def numeric_gradient(f, x, eps=1e-6):
    """Return the gradient of the scalar function f at the array x, entry by entry."""
    x = as_float64(x)
    gradient = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        above, below = x.copy(), x.copy()
        above[i] += eps
        below[i] -= eps
        gradient[i] = (f(above) - f(below)) / (2 * eps)
    return gradient
