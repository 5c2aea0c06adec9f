"""Passes of single layers and functions that are compared with PyTorch's record.

`data/make_torch_layers.py` records them with PyTorch, `test_torch_layers.py` repeats them with
minicnn. Both take the cases and their numbers from here.
"""

import numpy as np

# Class of the layer, arguments, and shape of the inputs
LAYERS = {
    "padded": (
        "Conv2D", {"filters": 3, "kernel_size": 3, "strides": 2, "padding": 1}, (2, 6, 8, 2)
    ),
    "padded unevenly, dilated": (
        "Conv2D",
        {"filters": 2, "kernel_size": (2, 3), "padding": ((0, 2), (1, 3)), "dilation_rate": (1, 2)},
        (2, 4, 3, 3),
    ),
    "max pooling, padded": (
        "MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": 1}, (2, 6, 8, 3)
    ),
    "average pooling, padded": (
        "AveragePooling2D", {"pool_size": (3, 2), "strides": 2, "padding": (1, 0)}, (2, 6, 8, 3)
    ),
    "transposed, padded": (
        "Conv2DTranspose",
        {"filters": 2, "kernel_size": 3, "strides": 2, "padding": ((1, 0), (1, 1))}, (2, 4, 3, 2),
    ),
    "depthwise, padded": (
        "DepthwiseConv2D", {"kernel_size": 3, "strides": 2, "padding": 1}, (2, 6, 4, 3)
    ),
    "transposed, same": (
        "Conv2DTranspose", {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        (2, 4, 5, 2),
    ),
    "transposed, valid": (
        "Conv2DTranspose", {"filters": 2, "kernel_size": (3, 4), "strides": (1, 3)}, (2, 3, 2, 3),
    ),
    "transposed, stride above the window": (
        "Conv2DTranspose", {"filters": 2, "kernel_size": 2, "strides": 3}, (1, 3, 2, 3),
    ),
    "depthwise": ("DepthwiseConv2D", {"kernel_size": 3, "padding": "same"}, (2, 5, 4, 3)),
    "depthwise, two filters each": (
        "DepthwiseConv2D",
        {"kernel_size": (2, 3), "strides": (2, 1), "depth_multiplier": 2, "dilation_rate": (1, 2)},
        (2, 5, 7, 3),
    ),
    "separable": (
        "SeparableConv2D",
        {"filters": 4, "kernel_size": 3, "strides": 2, "padding": "same", "depth_multiplier": 2},
        (2, 5, 7, 3),
    ),
}
FUNCTIONS = {
    "leaky_relu": {}, "leaky_relu 0.01": {"alpha": 0.01}, "gelu": {},
    "gelu approximate": {"approximate": True}, "log_softmax": {}, "log_softmax 1": {"axis": 1},
}


def numbers(name, part, shape):
    """Return normally distributed numbers for a part of a case, such as "x" or "kernel"."""
    seed = np.frombuffer(f"{name}, {part}".encode(), np.uint8)
    return np.random.default_rng(seed).standard_normal(shape)


def inputs_of(name):
    """Return the inputs of a function."""
    return 3 * numbers(name, "x", (3, 4, 5))
