"""Time each layer, forward and backward with the gradient of its input, against PyTorch.

    python benchmarks/layers.py                        the guide's at batch 100, the others at 32
    python benchmarks/layers.py --batches 1 32 256     all layers at these batch sizes

minicnn runs a layer as in a model: `Sequential` with a workspace, so adjacent layers are fused.
PyTorch runs in both memory layouts, and the faster one counts. Values and gradients are compared
before a layer is timed.

FLOP are those of the direct computation, forward and twice as many backward: the dense-equivalent
rate. It can be above the peak of the machine if fewer operations are done (Winograd, skipped
zeros). The peak is the rate of a product of two large float32 matrices by the fastest contender.
All numbers are drawn from a normal distribution, so half of the inputs of ReLU are negative.
"""

import math
import tempfile
from pathlib import Path

import harness
import networks
import numpy as np
from networks import Network

# If rounding changes the sign before one ReLU, or one maximum of a pooling window, a gradient
# changes by about 1e-3 of its norm; with a wrong formula it changes by far more.
SMOOTH, WITH_KINKS = 1e-4, 2e-2
CONV1, CONV2, POOL = ("conv", 5, 32, 1, True), ("conv", 5, 64, 1, True), ("pool",)
DENSE, DROPOUT = networks.DENSE
GUIDE = {
    "conv1 + ReLU": Network((28, 28, 1), (CONV1,)),
    "pool1": Network((28, 28, 32), (POOL,)),
    "conv1 + ReLU + pool1": Network((28, 28, 1), (CONV1, POOL)),
    "conv2 + ReLU": Network((14, 14, 32), (CONV2,)),
    "pool2": Network((14, 14, 64), (POOL,)),
    "conv2 + ReLU + pool2": Network((14, 14, 32), (CONV2, POOL)),
    "dense1 + ReLU": Network((3136,), (DENSE,)),
    "dropout": Network((1024,), (DROPOUT,)),
    "dense1 + ReLU + dropout": Network((3136,), (DENSE, DROPOUT)),
    "logits": Network((1024,), (("dense", 10, False),)),
}
GENERAL = {  # convolutions without pooling; their geometric mean is reported
    f"{size}x{size} {channels}-{filters} at {side}x{side}, stride {stride}": Network(
        (side, side, channels), (("conv", size, filters, stride, False),), batch=32
    )
    for size, channels, filters, side, stride in (
        (3, 32, 32, 32, 1), (3, 64, 64, 16, 1), (3, 128, 128, 8, 1), (3, 256, 256, 8, 1),
        (1, 64, 256, 16, 1), (3, 64, 128, 17, 2),  # odd: the same padding on both sides
    )
}  # fmt: skip
ALL = GUIDE | GENERAL


class Layers:
    """A contender that runs one case at a time, in its own process."""

    def __init__(self, name):
        self.name = name

    def prepare(self, case, batch):
        network, rng = ALL[case], np.random.default_rng(0)
        *_, out = (shape for *_, shape in network.walk())
        weights = [w + 0.1 if w.ndim == 1 else w for w in networks.start_values(network)]
        x, dy = (rng.standard_normal((batch, *s), np.float32) for s in (network.image, out))
        runner = networks.make(self.name, network, weights)
        self.run, self.arrays = (_minicnn if self.name == "minicnn" else _pytorch)(runner, x, dy)

    def block(self, seconds):
        return harness.block(self.run, seconds)

    def results(self, output):
        """Write y, dx and the gradients of the weights, in minicnn's layout."""
        np.savez(output, *self.arrays(*self.run()))

    def peak(self, size, seconds):
        """Return the FLOP per second of a product of two square matrices."""
        layer = Network((size,), (("dense", size, False),))
        runner = networks.make(self.name, layer, networks.start_values(layer))
        x = np.ones((size, size), np.float32)
        if self.name == "minicnn":
            call = lambda: runner.model.forward(x, runner.context())  # noqa: E731
        else:
            x = runner.tensor(x)
            call = lambda: runner.model(x)  # noqa: E731
        return 2 * size**3 / harness.block(call, seconds)


def _minicnn(runner, x, dy):
    def run():
        ctx = runner.context()
        y = runner.model.forward(x, ctx)
        dx = runner.model.backward(dy, ctx)
        return y, dx, *(parameter.grad for parameter in runner.model.parameters)

    return run, lambda *arrays: arrays


def _pytorch(runner, x, dy):
    x, dy = runner.tensor(x).requires_grad_(), runner.tensor(dy)

    def run():
        y = runner.model(x)
        return y, *runner.torch.autograd.grad(y, [x, *runner.parameters], dy)

    def arrays(y, dx, *gradients):
        images = [a.permute(0, 2, 3, 1) if a.ndim == 4 else a for a in (y, dx)]
        kernels = [networks.from_torch(g.numpy(), runner.flat) for g in gradients]
        return [*(image.detach().numpy() for image in images), *kernels]

    return run, arrays


def check(case, contenders):
    """Stop if results differ from minicnn's; for dropout, only the zeros are counted."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for contender in contenders:
            path = str(Path(folder) / "results.npz")
            contender.ask("results", output=path)
            results[contender.name] = networks.read_weights(path)
    ours = results["minicnn"]
    for name, theirs in results.items():
        if "dropout" in case:
            zeros = [np.mean(arrays[0] == 0) for arrays in (ours, theirs)]
            worst, limit = abs(zeros[0] - zeros[1]), 0.05
        else:
            worst = max(map(networks.difference, ours, theirs))
            limit = WITH_KINKS if "pool" in case or "ReLU" in case else SMOOTH
        if not worst <= limit:
            raise SystemExit(f"{case}: {name} and minicnn differ by {worst:.1e}")


def measure(case, batch, contenders, args):
    """Return the times of a case and its FLOP."""
    for contender in contenders:
        contender.ask("prepare", case=case, batch=batch)
    check(case, contenders)
    times = harness.alternate(contenders, args.rounds, seconds=args.seconds)
    products = [
        math.prod(kernel) * math.prod(out[:-1]) for *_, kernel, out in ALL[case].walk() if kernel
    ]
    flop = 3 * 2 * batch * sum(products)
    return {"layer": case, "batch": batch, "flop": flop, "times": harness.compare(times)}


def cells(entry, peak):
    """Return the row of a case."""
    times, row = entry["times"], [entry["layer"], entry["batch"]]
    peer = harness.better(times, networks.PYTORCH)
    rates = []
    for name in ("minicnn", peer):
        row.append(f"{times[name]['seconds'] * 1e3:.3f}" if name else "-")
        rate = entry["flop"] / times[name]["seconds"] if name else 0
        rates += [f"{rate / 1e9:.1f}", f"{rate / peak:.0%}"] if rate else ["-", "-"]
    return [*row, f"{times[peer]['ratio']:.2f}" if peer else "-", *rates]


def main():
    harness.serve(Layers)
    parser = harness.parser(__doc__, rounds=5, seconds=0.3)
    parser.add_argument("--batches", type=int, nargs="+", help="batch sizes, see above")
    parser.add_argument("--only", default="", help="only layers whose name contains this text")
    args = harness.parse(parser)
    peers = networks.PYTORCH if harness.installed("torch") else ()
    size, entries = 256 if args.smoke else 2048, []
    with harness.contenders(["minicnn", *peers], args.threads) as contenders:
        peaks = {c.name: c.ask("peak", size=size, seconds=args.seconds) for c in contenders}
        for case in [name for name in ALL if args.only in name]:
            batches = [2] if args.smoke else args.batches or [ALL[case].batch]
            entries += [measure(case, batch, contenders, args) for batch in batches]
    who = max(peaks, key=peaks.get)
    print(f"\npeak: {peaks[who] / 1e9:.0f} GFLOP/s, a {size}x{size} product of {who}\n")
    headers = ["layer", "batch", "minicnn, ms", "PyTorch, ms", "PyTorch / minicnn",
               "minicnn, GFLOP/s", "of peak", "PyTorch, GFLOP/s", "of peak"]  # fmt: skip
    harness.table(headers, [cells(entry, peaks[who]) for entry in entries])
    results = {"peaks": peaks, "layers": entries}
    all_times = [entry["times"] for entry in entries if entry["layer"] in GENERAL]
    if peers and all_times:
        logs = [math.log(t[harness.better(t, peers)]["ratio"]) for t in all_times]
        results["geometric mean"] = math.exp(sum(logs) / len(logs))
        print(f"\nconvolution without pool, geometric mean of PyTorch / minicnn: "
              f"{results['geometric mean']:.2f}")
    harness.report(args, results)


if __name__ == "__main__":
    main()
