"""Run every kernel in float32, on odd sizes and on empty batches, and print the bits as JSON.

test_jit.py runs this file in separate processes: with an empty cache, and with a full one.
"""

import hashlib
import json

import numba
import numpy as np
from numba.core import event

from minicnn.kernels import (
    elementwise,
    gather,
    gemm,
    normalize,
    pooling,
    recording,
    threads,
    update,
    warp,
)
from minicnn.kernels.conv import conv, depthwise, im2col, implicit, pooled, shared, winograd
from minicnn.kernels.dense import dense, lists
from minicnn.kernels.window import slide

MODULES = [
    conv, dense, depthwise, elementwise, gather, gemm, im2col, implicit, lists, normalize, pooled,
    pooling, recording, shared, update, warp, winograd,
]

dense._LEAST_LISTED = 0  # small kernels, too
rng = np.random.default_rng(0)
digest = hashlib.sha256()


def numbers(*shape):
    return rng.standard_normal(shape, np.float32)


def run(door, reads, writes, *options):
    door(*reads, *writes, *options)
    for array in filter(lambda array: array is not None, writes):
        digest.update(array.tobytes())


def convolution(n, size, kernel, strides, padding, dilation, c, f):
    window = slide(size, kernel, strides, padding, dilation)
    x, w, b = numbers(n, *size, c), numbers(*kernel, c, f), numbers(f)
    dy = numbers(n, window.out_h, window.out_w, f)
    for relu in (False, True):
        run(conv.forward, (x, w, b), (np.zeros_like(dy),), window, relu)
    run(conv.input_gradient, (dy, w), (np.zeros_like(x),), window)
    run(conv.kernel_gradient, (x, dy), (np.zeros_like(w), np.zeros_like(b)), window)
    run(im2col.forward, (x, w, b), (np.zeros_like(dy),), window)
    run(im2col.kernel_gradient, (x, dy), (np.zeros_like(w), np.zeros_like(b)), window)


def depthwise_convolution(n, size, kernel, strides, padding, c, more):
    window = slide(size, kernel, strides, padding)
    x, w, b = numbers(n, *size, c), numbers(*kernel, c, more), numbers(c * more)
    dy = numbers(n, window.out_h, window.out_w, c * more)
    run(depthwise.forward, (x, w, b), (np.zeros_like(dy),), window, True)
    run(depthwise.input_gradient, (dy, w), (np.zeros_like(x),), window)
    run(depthwise.kernel_gradient, (x, dy), (np.zeros_like(w),), window)


def pooled_convolution(n, size, kernel, padding, c, f):
    window = slide(size, kernel, (1, 1), padding)
    x, w, b = numbers(n, *size, c), numbers(*kernel, c, f), numbers(f)
    y = np.zeros((n, window.out_h, window.out_w, f), np.float32)
    pooled = np.zeros((n, window.out_h // 2, window.out_w // 2, f), np.float32)
    code = np.zeros(pooled.shape, np.uint8)
    run(conv.forward, (x, w, b), (y,), window, True)
    conv.forward(x, w, b, pooled, window, True, code)
    digest.update(pooled.tobytes() + code.tobytes())
    run(conv.input_gradient, (numbers(*y.shape), w), (np.zeros_like(x),), window)
    gradients = np.zeros_like(w), np.zeros_like(b), np.zeros_like(x)
    run(conv.pooled_gradients, (x, numbers(*pooled.shape), code, w), gradients, window)


def pool(n, size, pool, strides, padding, c):
    window = slide(size, pool, strides, padding)
    x, dy = numbers(n, *size, c), numbers(n, window.out_h, window.out_w, c)
    winner = np.zeros(dy.shape, np.uint8)
    run(pooling.forward, (x,), (np.zeros_like(dy), winner), window)
    run(pooling.backward, (dy, winner), (np.zeros_like(x),), window)
    run(pooling.mean, (x,), (np.zeros_like(dy),), window)
    run(pooling.mean_gradient, (dy,), (np.zeros_like(x),), window)


def batch_normalization(n, c):
    x, dy, factors = numbers(n, c), numbers(n, c), numbers(5, c)
    batch, sums = normalize.moments(x), normalize.gradient_sums(x, dy, factors[:3], True)
    averages, weights = numbers(2, c), numbers(2, c)
    moved = [*np.zeros((2, c), np.float32), np.zeros((), np.float32)]
    known, inverse = normalize.factors(batch, averages, weights, moved, 0.9, 1e-3)
    dweights = np.zeros((2, c), np.float32)
    normalize.finish_factors(sums, sums, batch, inverse, known, *dweights, 1.0)
    for array in (batch, sums, *moved, known, inverse, dweights):
        digest.update(array.tobytes())
    run(normalize.scale, (x, factors[:3]), (np.zeros_like(x),), True)
    run(normalize.input_gradient, (x, dy, factors), (np.zeros_like(x),), False)


def warped(n, c):
    x, maps = numbers(n, 5, 6, c), numbers(n, 2, 3).astype(np.float64)
    run(warp.warp, (x, maps), (np.zeros_like(x),))


def product(n, d, u):
    x, w, b, dy = numbers(n, d), numbers(d, u), numbers(u), numbers(n, u)
    for relu in (False, True):
        run(dense.forward, (x, w, b), (np.zeros_like(dy),), relu)
    for kernel in (w, w.astype(np.float16)):
        packed = dense.packed_kernel(kernel)
        run(dense.forward, (x, kernel, b), (np.zeros_like(dy),), False, None, packed)
    run(dense.input_gradient, (dy, w), (np.zeros_like(x),))
    run(dense.kernel_gradient, (x, dy), (np.zeros_like(w),))
    dy[dy < 0.3] = 0
    run(dense.gradients, (x, dy, w), (np.zeros_like(w), np.zeros_like(x)), True)


def element_by_element(n, u):
    x, y = numbers(n, u), numbers(n, u)
    run(elementwise.add, (x, y), (np.zeros_like(x),), True)
    run(elementwise.relu, (x,), (y,))
    digest.update(elementwise.axis_to_end(x[None], 1).tobytes())
    run(elementwise.relu_gradient, (x, y), (np.zeros_like(x),))
    for flag in (False, True):
        for dy in (None, y):
            run(elementwise.squash, (x,), (np.zeros_like(x),), dy, flag)
            run(elementwise.gelu, (x,), (np.zeros_like(x),), dy)
        run(elementwise.softmax, (x,), (np.zeros_like(x),), flag)
    run(elementwise.dropout, (x,), (np.zeros_like(x),), 1234567890123456789, 0.4, 5)
    run(elementwise.sum_rows, (x,), (np.zeros(u, np.float32),))
    for step, states, *options in [
        (update.sgd, 0, 0.1, 0.01),
        (update.momentum, 1, 0.1, 0.01, 0.9, 1),
        (update.adam, 2, 0.1, 0.01, 0.9, 0.1, 0.99, 0.01, 1e-8),
        (update.rmsprop, 2, 0.1, 0.9, 0.1, 0.5, 1e-3),
    ]:
        w, *arrays = np.abs(numbers(1 + states, n, u))
        step(w, x, *arrays, options)
        digest.update(np.stack([w, *arrays]).tobytes())


def repeated(n):
    x, y = numbers(n, 5), np.zeros((n, 5), np.float32)
    again = recording.Recording()
    _, tape = threads.taped(elementwise.relu, x, y)
    again.calls += tape
    x *= -1
    run(again.run, (), ())
    digest.update(y.tobytes())


with event.install_recorder("numba:compile") as compiled:
    for n in (0, 1, 7):
        convolution(n, (9, 11), (3, 3), (1, 1), "same", (1, 1), 3, 17)
        convolution(n, (8, 7), (2, 3), (3, 2), "valid", (1, 2), 1, 1)
        convolution(n, (5, 5), (1, 1), (1, 1), "valid", (1, 1), 7, 33)
        convolution(n, (9, 6), (3, 3), (1, 1), "same", (1, 1), 32, 33)
        pooled_convolution(n, (9, 11), (5, 5), "same", 1, 17)
        pooled_convolution(n, (9, 11), (5, 5), "same", 17, 9)
        pooled_convolution(n, (8, 9), (3, 3), "valid", 32, 16)
        depthwise_convolution(n, (9, 11), (3, 3), (1, 1), "same", 17, 1)
        depthwise_convolution(n, (5, 4), (2, 3), (2, 1), "valid", 3, 2)
        pool(n, (9, 11), (2, 2), (2, 2), "valid", 5)
        pool(n, (5, 4), (3, 3), (1, 2), "same", 1)
        product(n, 1, 1)
        product(n, 300, 70)
        batch_normalization(50 * n, 5)
        warped(n, 3)
        element_by_element(n, 3)
        repeated(n)

functions = {
    f"{module.__name__}.{name}": function
    for module in MODULES
    for name, function in vars(module).items()
    if isinstance(function, numba.core.dispatcher.Dispatcher)
    and function.py_func.__module__ == module.__name__
}
kernels = [function for function in functions.values() if function.stats.cache_path]
report = {
    "bits": digest.hexdigest(),
    "kernels": len(kernels),
    "compiled": len(compiled.buffer),
    "hits": sum(sum(kernel.stats.cache_hits.values()) for kernel in kernels),
    "misses": sum(sum(kernel.stats.cache_misses.values()) for kernel in kernels),
    "signatures": {name: len(function.signatures) for name, function in functions.items()},
}
print(json.dumps(report))
