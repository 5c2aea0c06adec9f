"""Record the passes of `tests/parity_layers.py` with PyTorch in `torch_layers.npz`, in float64.

    pip install torch
    PYTHONPATH=tests python tests/data/make_torch_layers.py

Made with PyTorch 2.13.0 and NumPy 2.4.6 on a CPU.
"""

import functools
import math
from pathlib import Path

import numpy as np
import parity_layers
import torch
from torch.nn import functional


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


def padded(x, padding, size, strides, dilation):
    """Pad x (N, C, H, W); "same" is TensorFlow's: the larger half below and on the right."""
    if padding == "valid":
        return x
    if padding != "same":
        (top, bottom), (left, right) = map(pair, pair(padding))
        return functional.pad(x, (left, right, top, bottom))
    pads = []
    for length, k, s, d in zip(x.shape[2:], size, strides, dilation, strict=True):
        total = max(0, (math.ceil(length / s) - 1) * s + (k - 1) * d + 1 - length)
        pads = [total // 2, total - total // 2, *pads]
    return functional.pad(x, pads)


def transposed(x, w, b, size, strides, padding):
    """x (N, C, H, W), w (KH, KW, F, C)."""
    more = [max(0, s - k) for k, s in zip(size, strides, strict=True)]
    y = functional.conv_transpose2d(x, w.permute(3, 2, 0, 1), b, strides, output_padding=more)
    if not isinstance(padding, str):
        for axis, (before, after) in enumerate(padding, 2):
            y = y.narrow(axis, before, y.shape[axis] - before - after)
    if padding == "same":
        for axis, k, s in zip((2, 3), size, strides, strict=True):
            cut = max(0, k - s)
            y = y.narrow(axis, cut // 2, y.shape[axis] - cut)
    return y


def depthwise(x, w, b, size, strides, padding, dilation):
    """x (N, C, H, W), w (KH, KW, C, M)."""
    channels = x.shape[1]
    kernel = w.reshape(*size, 1, -1).permute(3, 2, 0, 1)
    x = padded(x, padding, size, strides, dilation)
    return functional.conv2d(x, kernel, b, strides, 0, dilation, channels)


def pool(kind, options, x):
    size, strides, padding = (options[name] for name in ("pool_size", "strides", "padding"))
    if kind == "MaxPooling2D":
        return functional.max_pool2d(x, size, strides, padding)
    return functional.avg_pool2d(x, size, strides, padding, count_include_pad=False)


def forward(kind, options, x, *parameters):
    if not parameters:
        return pool(kind, options, x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    size, strides = pair(options["kernel_size"]), pair(options.get("strides", 1))
    padding, dilation = options.get("padding", "valid"), pair(options.get("dilation_rate", 1))
    x, (*kernels, bias) = x.permute(0, 3, 1, 2), parameters
    if kind == "Conv2D":
        x = padded(x, padding, size, strides, dilation)
        y = functional.conv2d(x, kernels[0].permute(3, 2, 0, 1), bias, strides, 0, dilation)
    elif kind == "Conv2DTranspose":
        y = transposed(x, *kernels, bias, size, strides, padding)
    elif kind == "DepthwiseConv2D":
        y = depthwise(x, *kernels, bias, size, strides, padding, dilation)
    else:
        z = depthwise(x, kernels[0], None, size, strides, padding, dilation)
        y = functional.conv2d(z, kernels[1].permute(3, 2, 0, 1), bias)
    return y.permute(0, 2, 3, 1)


def shapes_of(kind, options, channels):
    if kind.endswith("Pooling2D"):
        return ()
    size, more = pair(options["kernel_size"]), options.get("depth_multiplier", 1)
    filters = options.get("filters", channels * more)
    if kind == "Conv2D":
        return (*size, channels, options["filters"]), (options["filters"],)
    if kind == "Conv2DTranspose":
        return (*size, filters, channels), (filters,)
    kernels = [(*size, channels, more)]
    if kind == "SeparableConv2D":
        kernels.append((1, 1, channels * more, filters))
    return *kernels, (filters,)


def record(name, inputs, function):
    """Return the output, and the gradients of the inputs for a given gradient of the output."""
    inputs = [torch.tensor(array, requires_grad=True) for array in inputs]
    y = function(*inputs)
    dy = torch.tensor(parity_layers.numbers(name, "dy", tuple(y.shape)))
    gradients = torch.autograd.grad(y, inputs, dy)
    return {f"{name}/{n}": array.detach().numpy() for n, array in enumerate((y, *gradients))}


FUNCTIONS = {
    "leaky_relu": lambda x: functional.leaky_relu(x, 0.2),
    "leaky_relu 0.01": lambda x: functional.leaky_relu(x, 0.01),
    "gelu": functional.gelu,
    "gelu approximate": lambda x: functional.gelu(x, approximate="tanh"),
    "log_softmax": lambda x: functional.log_softmax(x, -1),
    "log_softmax 1": lambda x: functional.log_softmax(x, 1),
}


def main():
    arrays = {}
    for name, (kind, options, shape) in parity_layers.LAYERS.items():
        shapes = shape, *shapes_of(kind, options, shape[3])
        inputs = [parity_layers.numbers(name, str(n), s) for n, s in enumerate(shapes)]
        arrays |= record(name, inputs, functools.partial(forward, kind, options))
    for name, function in FUNCTIONS.items():
        arrays |= record(name, [parity_layers.inputs_of(name)], function)
    np.savez_compressed(Path(__file__).with_name("torch_layers.npz"), **arrays)


if __name__ == "__main__":
    main()
