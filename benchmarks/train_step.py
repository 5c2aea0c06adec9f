"""Time a training step: forward, loss, backward and SGD.

    python benchmarks/train_step.py                    the documented network on MNIST, batch 100
    python benchmarks/train_step.py --network cifar    three 3x3 convolutions on 32x32x3, batch 64
    python benchmarks/train_step.py --network vgg      or lenet5, strided, bottleneck
    python benchmarks/train_step.py --network small    two convolutions of few filters, batch 16; or
                                                       mlp, two dense layers, batch 32
    python benchmarks/train_step.py --network resnet   batch normalization, residual blocks

The step is timed twice: from the start values, and from the weights after ``--late-steps`` steps,
because the speed of skipping zeros depends on their number. minicnn is compared with PyTorch (two
memory layouts), TensorFlow (with and without XLA) and JAX, if they are installed; a network with
batch normalization only with PyTorch. Before the timing, all must make the same step (without
dropout) and have the same three losses.
"""

import tempfile
from pathlib import Path

import harness
import networks
import numpy as np

# If rounding changes the sign before one ReLU, or one maximum of a pooling window, a gradient
# changes by about 1e-3 of its norm; with a wrong formula it changes by far more.
GRADIENT_LIMIT, LOSS_LIMIT = 2e-2, 1e-3


def main():
    harness.serve(networks.Training)
    parser = harness.parser(__doc__, rounds=7, seconds=1.0)
    parser.add_argument("--network", choices=networks.NETWORKS, default="documented")
    parser.add_argument("--batch", type=int, help="default: that of the network")
    parser.add_argument(
        "--late-steps", type=int, default=3000, help="0: only the start (default: 3000)"
    )
    parser.add_argument(
        "--peers", nargs="*", choices=networks.PEERS, default=list(networks.PEERS), metavar="NAME",
        help=f"from {', '.join(networks.PEERS)} (default: all that are installed)",
    )
    args = harness.parse(parser)
    late_steps = min(args.late_steps, 3) if args.smoke else args.late_steps
    network = networks.NETWORKS[args.network]
    network = network._replace(batch=args.batch or network.batch)
    known = networks.PYTORCH if network.is_normalized else networks.PEERS
    peers = [n for n in args.peers if n in known and harness.installed(networks.PEERS[n])]

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        networks.write_task(folder, network, count=3 if args.smoke else 50)
        names = ["minicnn", *peers]
        with harness.contenders(names, args.threads, network=network, folder=folder) as all_:
            for steps in dict.fromkeys([0, late_steps]):
                if steps:
                    all_[0].ask("train", steps=steps, output="late.npz")
                start = "late.npz" if steps else "start.npz"
                losses = check(all_, folder, start)
                for contender in all_:
                    contender.ask("start", weights=start)
                times = harness.alternate(all_, args.rounds, seconds=args.seconds)
                results[f"after {steps} steps"] = harness.compare(times)
                show(steps, losses, results[f"after {steps} steps"])
    harness.report(args, results)


def check(contenders, folder, start):
    """Let every contender make the same steps; stop if weights or losses differ.

    The biases are made nonzero: with zero biases, the input of ReLU is 0 for every blank patch, and
    the rounding of a fast convolution would decide whether a gradient passes.
    """
    before = [w + 0.01 if w.ndim == 1 else w for w in networks.read_weights(Path(folder) / start)]
    np.savez(Path(folder) / "before.npz", *before)
    changes, losses = {}, {}
    for contender in contenders:
        losses[contender.name] = contender.ask("record", weights="before.npz", output="after.npz")
        after = networks.read_weights(Path(folder) / "after.npz")
        changes[contender.name] = [b - a for a, b in zip(before, after, strict=True)]
    for name in changes:
        pairs = zip(changes["minicnn"], changes[name], strict=True)
        worst = max(networks.difference(ours, theirs) for ours, theirs in pairs)
        off = networks.difference(losses["minicnn"], losses[name])
        if not (worst <= GRADIENT_LIMIT and off <= LOSS_LIMIT):
            raise SystemExit(f"{name}: gradients differ by {worst:.1e}, losses by {off:.1e}")
    return losses["minicnn"]


def show(steps, losses, result):
    """Print the table of one stage of the training."""
    print(f"\nafter {steps:,} steps; loss {losses[0]:.4f}, all contenders agree\n")
    harness.ratio_table(result)
    for name in ("PyTorch", "TensorFlow", "JAX"):
        if best := harness.better(result, [peer for peer in networks.PEERS if name in peer]):
            ratio = result[best]["ratio"]
            print(f"\n{name}, its fastest variant ({best}): {ratio:.2f} times minicnn's time")


if __name__ == "__main__":
    main()
