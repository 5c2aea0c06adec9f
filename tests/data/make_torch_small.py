"""Record small computations with PyTorch in `torch_small.npz` beside this file.

    pip install torch
    PYTHONPATH=tests python tests/data/make_torch_small.py

PyTorch computes in float64, from the arrays that `small_arrays` in `tests/test_torch_small.py`
draws. Made with PyTorch 2.13.0 and NumPy 2.4.6 on a CPU.
"""

from pathlib import Path

import torch
from numpy import savez
from test_torch_small import small_arrays
from torch.nn import functional


def main():
    arrays = {name: torch.tensor(array) for name, array in small_arrays().items()}
    record = {}

    def note(name, loss, *inputs):
        record[name] = loss.detach().numpy()
        for number, gradient in enumerate(torch.autograd.grad(loss, inputs)):
            record[f"{name}/{number}"] = gradient.numpy()

    z = arrays["outputs"].requires_grad_()
    y, w = arrays["labels"], arrays["weights"]
    note("sigmoid_cross_entropy", functional.binary_cross_entropy_with_logits(z, y), z)
    note("weighted sigmoid", functional.binary_cross_entropy_with_logits(z, y, weight=w), z)
    note("mean_squared_error", functional.mse_loss(z, y), z)
    note("absolute_difference", functional.l1_loss(z, y), z)
    note("sparse_softmax_cross_entropy", functional.cross_entropy(z, arrays["classes"]), z)

    x = arrays["images"].requires_grad_()  # (N, H, W, C); kernels (KH, KW, C, F)
    kernels = [arrays[name].requires_grad_() for name in ("first", "second", "shortcut")]
    nchw = x.permute(0, 3, 1, 2)
    first, second, shortcut = (kernel.permute(3, 2, 0, 1) for kernel in kernels)
    block = functional.conv2d(functional.relu(functional.conv2d(nchw, first, padding=1)), second,
                              padding=1)
    total = functional.relu(block + functional.conv2d(nchw, shortcut))
    note("residual", (total.permute(0, 2, 3, 1) * arrays["dy"]).sum(), x, *kernels)

    gamma, beta = arrays["gamma"].requires_grad_(), arrays["beta"].requires_grad_()
    mean, variance = torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    y = functional.batch_norm(nchw, mean, variance, gamma, beta, True, 0.01, 1e-3)
    loss = (y.permute(0, 2, 3, 1) * arrays["of_images"]).sum()
    note("batch_normalization", loss, x, gamma, beta)
    record["batch_normalization, mean"] = mean.numpy()
    # minicnn's moving average is of the biased variance
    biased = nchw.detach().transpose(0, 1).flatten(1).var(1, unbiased=False)
    record["batch_normalization, variance"] = (0.99 + 0.01 * biased).numpy()

    # "same" pads 5 rows to 7 (one on both sides), and 4 columns to 5 (one on the right)
    dy, ones = arrays["of_pools"].permute(0, 3, 1, 2), torch.ones_like(nchw)
    pads = (0, 1, 1, 1)
    padded = [functional.pad(each, pads) for each in (nchw, ones)]
    sums, counts = (functional.avg_pool2d(each, 3, 2) for each in padded)
    note("average_pooling2d", (sums / counts * dy).sum(), x)
    means = functional.adaptive_avg_pool2d(nchw, 1)
    note("global_average_pooling2d", (means[..., 0, 0] * dy[..., 0, 0]).sum(), x)

    for name, kind, options in [
        ("AdamW", torch.optim.AdamW, {"lr": 0.01}),
        ("AdamW, decay", torch.optim.AdamW,
         {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    ]:
        weight = arrays["start"].clone().requires_grad_()
        optimizer = kind([weight], **options)
        for gradient in arrays["gradients"]:
            weight.grad = gradient
            optimizer.step()
        record[name] = weight.detach().numpy()
    savez(Path(__file__).with_name("torch_small.npz"), **record)


if __name__ == "__main__":
    main()
