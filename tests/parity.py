"""The run that compares minicnn with PyTorch, and the comparison.

The network is the documented one, without dropout: conv 5x5 x 32, ReLU, pool 2x2, conv 5x5 x 64,
ReLU, pool 2x2, flatten (height, width, channel), dense 1024, ReLU, dense 10. Plain SGD, and no
shuffling: step i = 0, 1, ... sees rows [100 * i, 100 * i + 100) of MNIST's training split.

`data/make_torch_parity.py` records this run with PyTorch, `test_torch_parity.py` repeats it with
minicnn. Both use this module, which needs only NumPy. The record of a run is a dict of
arrays:

    losses                 (STEPS,)                 the loss of each step, before its update, at
    slow_losses            (STEPS,)                 the two rates
    start_norms            (PARAMETERS,)            summary of the parameters before step 1
    start_projections      (PARAMETERS, DIRECTIONS)
    gradient_norms         (PARAMETERS,)            summary of the gradients of step 1
    gradient_projections   (PARAMETERS, DIRECTIONS)

where the summary of an array v is its L2 norm |v| and its products <r, v> with fixed random
directions r. The entries of r are independent and normal, of mean 0 and variance 1, and nothing is
divided by their number; so <r, v> has variance |v|^2, and an error e in v moves it by about |e|.
"""

import math

import numpy as np

STEPS = 20
BATCH_SIZE = 100
# Rounding that changes one ReLU or one maximum of a pool changes a gradient by about 1e-3 of its
# norm, and the steps amplify it: with a rate of 0.05, correct float32 runs may differ by 1e-2 after
# 20 steps (as PyTorch's own does with some seeds), with 0.005 by 1e-5. The general path, with the
# rounding of a plain sum, agrees with the record at 0.05 with this seed. Winograd rounds in another
# way, so the fast path is compared at the slow rate.
RATES = {"losses": 0.05, "slow_losses": 0.005}
DIRECTIONS = 8
START_SEED = 2017
DIRECTION_SEED = 28

# In minicnn's layout and order: convolution (KH, KW, in, out), dense (in, units).
KERNEL_SHAPES = {
    "conv2d": (5, 5, 1, 32),
    "conv2d_1": (5, 5, 32, 64),
    "dense": (7 * 7 * 64, 1024),
    "dense_1": (1024, 10),
}
PARAMETERS = tuple(f"{layer}/{part}" for layer in KERNEL_SHAPES for part in ("kernel", "bias"))


def start_values(seed=START_SEED):
    """Return the float32 parameters before step 1, in the order of PARAMETERS.

    One generator draws the kernels in order, each from U(-a, a) with a = sqrt(3 / fan_in), in
    float64, rounded to float32. fan_in is KH * KW * in, or in. The biases are zero.
    """
    rng = np.random.default_rng(seed)
    values = []
    for shape in KERNEL_SHAPES.values():
        limit = math.sqrt(3 / math.prod(shape[:-1]))
        kernel = rng.uniform(-limit, limit, shape).astype(np.float32)
        values += [kernel, np.zeros(shape[-1], np.float32)]
    return values


def batches(images, labels):
    """Return the images (BATCH_SIZE, ...) and labels (BATCH_SIZE,) of each step."""
    for start in range(0, STEPS * BATCH_SIZE, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        yield images[rows], labels[rows]


def summary(arrays):
    """Return norms (PARAMETERS,) and projections (PARAMETERS, DIRECTIONS) of the arrays.

    The directions of parameter i are the successive draws of default_rng([DIRECTION_SEED, i]),
    laid over the array in C order. All arithmetic is float64.
    """
    norms, projections = [], []
    for i, array in enumerate(arrays):
        rng = np.random.default_rng([DIRECTION_SEED, i])
        v = np.asarray(array, dtype=np.float64).ravel()
        norms.append(np.sqrt(v @ v))
        projections.append([rng.standard_normal(v.size) @ v for _ in range(DIRECTIONS)])
    return np.array(norms), np.array(projections)


def record(start, losses, gradients):
    """Return the record of a run from its start values, losses and gradients of step 1."""
    start_norms, start_projections = summary(start)
    gradient_norms, gradient_projections = summary(gradients)
    return {
        **{name: np.array(values, dtype=np.float64) for name, values in losses.items()},
        "start_norms": start_norms,
        "start_projections": start_projections,
        "gradient_norms": gradient_norms,
        "gradient_projections": gradient_projections,
    }


def violations(run, reference, tolerance=1e-4):
    """Return a line for each entry of `run` that is too far from `reference`.

    Of the losses, those that the run has are compared; they may differ by `tolerance`, absolute;
    norms and projections by `tolerance` times the norm in the reference. NaN is a violation.
    """
    found = []

    def compare(what, value, expected, limit):
        if not abs(value - expected) <= limit:
            found.append(f"{what}: {value:.9g}, expected {expected:.9g} within {limit:.2g}")

    for name in RATES.keys() & run.keys():
        pairs = zip(run[name], reference[name], strict=True)
        for step, (loss, expected) in enumerate(pairs, 1):
            compare(f"loss of step {step} at rate {RATES[name]}", loss, expected, tolerance)
    for kind in ("start", "gradient"):
        norms, projections = f"{kind}_norms", f"{kind}_projections"
        for i, name in enumerate(PARAMETERS):
            limit = tolerance * reference[norms][i]
            compare(f"{name}, norm of {kind}", run[norms][i], reference[norms][i], limit)
            for j in range(DIRECTIONS):
                value, expected = run[projections][i, j], reference[projections][i, j]
                compare(f"{name}, projection {j} of {kind}", value, expected, limit)
    return found
