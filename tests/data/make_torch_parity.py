"""Record the run of `tests/parity.py` with PyTorch in `torch_parity.npz` beside this file.

    pip install torch
    PYTHONPATH=tests python tests/data/make_torch_parity.py

PyTorch computes in float64 from the same float32 start values and images: the record is exact to
about 1e-14, so its distance from minicnn's float32 result is minicnn's error. Made with PyTorch
2.13.0 and NumPy 2.4.6 on a CPU.
"""

from pathlib import Path

import numpy as np
import parity
import torch
from torch.nn import functional

from minicnn.datasets import load_dataset


def logits(images, parameters):
    """images (N, 784) -> (N, 10), on parameters in minicnn's layout."""
    kernel1, bias1, kernel2, bias2, kernel3, bias3, kernel4, bias4 = parameters
    x = images.reshape(-1, 1, 28, 28)
    x = functional.max_pool2d(functional.relu(conv2d(x, kernel1, bias1)), 2)
    x = functional.max_pool2d(functional.relu(conv2d(x, kernel2, bias2)), 2)
    x = x.permute(0, 2, 3, 1).flatten(1)  # channels last within a row, as TensorFlow flattens
    x = functional.relu(x @ kernel3 + bias3)
    return x @ kernel4 + bias4


def conv2d(x, kernel, bias):
    """x (N, C, H, W) with a kernel (KH, KW, C, F); 5x5 with padding "same" pads 2 on each side."""
    return functional.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=2)


def run(images, labels, rate):
    """The start values, the losses and the gradients of step 1."""
    start = parity.start_values()
    parameters = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in start]
    losses, gradients = [], None
    for x, y in parity.batches(images, labels):
        x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.int64)
        loss = functional.cross_entropy(logits(x, parameters), y)
        step_gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, step_gradients, strict=True):
                parameter -= rate * gradient
        losses.append(loss.item())
        gradients = gradients or [gradient.numpy() for gradient in step_gradients]
    return start, losses, gradients


def main():
    train = load_dataset("mnist").train
    losses = {}
    for name, rate in parity.RATES.items():
        start, losses[name], gradients = run(train.images, train.labels, rate)
        print(f"{name}:", *np.round(losses[name], 6))
    record = parity.record(start, losses, gradients)
    np.savez(Path(__file__).with_name("torch_parity.npz"), **record)


if __name__ == "__main__":
    main()
