"""Time the training step as the batch, the image, the channels and the threads grow.

    python benchmarks/scaling.py --plot scaling.png

For batch and threads it is the documented network. For sides and channels it is its convolutions
without the dense layer of 1,024 units, which would dominate; the digits are resized. The exponent
is the slope of log time over log size: 1 is proportional.
"""

import contextlib
import tempfile
from pathlib import Path

import harness
import networks
import numpy as np

DOCUMENTED = networks.NETWORKS["documented"]


def points(threads):
    """Return for each axis its values: value -> network, threads."""

    def convolutions(side, channels):
        layers = networks.chain((5, channels), (5, 2 * channels))
        return networks.Network((side, side, 1), layers, batch=32)

    counts = sorted({*(2**i for i in range(10) if 2**i < threads), threads})
    return {
        "batch": {2**i: (DOCUMENTED._replace(batch=2**i), threads) for i in range(10)},
        "side": {side: (convolutions(side, 32), threads) for side in (14, 28, 56, 112)},
        "channels": {c: (convolutions(28, c), threads) for c in (8, 16, 32, 64, 128)},
        "threads": {count: (DOCUMENTED, count) for count in counts},
    }


def measure(of_axis, names, args):
    """Return value -> contender -> times; all values are measured in the same rounds."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        started = []
        for value, (network, threads) in of_axis.items():
            place = Path(folder) / str(value)
            place.mkdir()
            networks.write_task(place, network, count=2 if args.smoke else 10)
            task = {"network": network, "folder": str(place)}
            for contender in stack.enter_context(harness.contenders(names, threads, **task)):
                contender.name = contender.name, value
                started.append(contender)
        times = harness.alternate(started, args.rounds, seconds=args.seconds)
    return {value: harness.compare({n: times[n, value] for n in names}) for value in of_axis}


def exponent(sizes, seconds):
    """Return the slope of the line through the logarithms; NaN for a single point."""
    if len(sizes) < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def show(axis, results):
    """Print the table of an axis, and return the sizes and times of each line of the plot."""
    sizes, lines, rows = list(results), {"minicnn": []}, []
    for size, times in results.items():
        peer = harness.better(times, networks.PYTORCH)
        lines["minicnn"].append(times["minicnn"]["seconds"])
        row = [size, f"{lines['minicnn'][-1] * 1e3:.2f}"]
        if peer:
            lines.setdefault("PyTorch", []).append(times[peer]["seconds"])
            row += [f"{lines['PyTorch'][-1] * 1e3:.2f}", f"{times[peer]['ratio']:.2f}"]
        rows.append(row)
    print()
    headers = [axis, "minicnn, ms", "PyTorch, ms", "PyTorch / minicnn"]
    harness.table(headers[: len(rows[0])], rows)
    for name, seconds in lines.items():
        print(f"exponent of {name}: {exponent(sizes, seconds):.2f}")
    return {name: (sizes, seconds) for name, seconds in lines.items()}


def show_speedup(results):
    """Print the speedup of minicnn over one thread, as the median over the rounds."""
    rounds = {count: times["minicnn"]["rounds"] for count, times in results.items()}
    speedup = harness.compare(rounds, ours=1)
    for count in list(rounds)[1:]:
        print(f"\nminicnn with {count} threads: {1 / speedup[count]['ratio']:.2f} times faster")


def plot(path, lines):
    """Draw a log-log panel for each axis."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(lines), figsize=(4 * len(lines), 3.5))
    for panel, (axis, of_axis) in zip(panels, lines.items(), strict=True):
        for name, (sizes, seconds) in of_axis.items():
            label = f"{name}, exponent {exponent(sizes, seconds):.2f}"
            panel.plot(sizes, np.multiply(seconds, 1e3), "o-", label=label)
        panel.set(xlabel=axis, ylabel="ms a step", xscale="log", yscale="log")
        panel.set_xticks(sizes, labels=map(str, sizes), minor=False)
        panel.minorticks_off()
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main():
    harness.serve(networks.Training)
    parser = harness.parser(__doc__, rounds=5, seconds=0.5)
    parser.add_argument("--plot", metavar="FILE", help="write a picture; needs matplotlib")
    args = harness.parse(parser)
    names = ["minicnn", *(networks.PYTORCH if harness.installed("torch") else ())]
    results, lines = {}, {}
    for axis, of_axis in points(args.threads).items():
        if args.smoke and axis == "channels":  # the sides test the same code
            continue
        values = list(of_axis)[: 2 if args.smoke else None]
        if axis == "threads":  # together, as the ratio of two values is the result
            results[axis] = measure({value: of_axis[value] for value in values}, names, args)
            show_speedup(results[axis])
        else:  # one by one: together they need too much memory
            results[axis] = {}
            for value in values:
                results[axis] |= measure({value: of_axis[value]}, names, args)
        lines[axis] = show(axis, results[axis])
    if args.plot and harness.installed("matplotlib"):
        plot(args.plot, lines)
    harness.report(args, results)


if __name__ == "__main__":
    main()
