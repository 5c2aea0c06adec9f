"""Show where the CPU time of a training step goes, kernel by kernel, beside the peak of the CPU.

    python benchmarks/kernels.py                       the documented network
    python benchmarks/kernels.py --network bottleneck  another one of benchmarks/networks.py

Everything runs on one thread, and what counts is the CPU time of that thread. Unlike wall time it
stays nearly the same on a machine that other programs use. A row is one call of a kernel in a step,
with the shapes of its first input and its first output.

GFLOP/s count the arithmetic that a kernel's own algorithm needs: a Winograd convolution the
products of its transformed tiles, a sum over a list the gradients that are not zero. Transforms and
copies are not counted. The peak is the rate of multiply-adds that read no memory, measured in the
same run. Kernels without GFLOP/s are bound by memory.
"""

import collections
import importlib
import pkgutil
import statistics
import time

import harness
import networks
import numpy as np
from numba import njit

import minicnn as mc
from minicnn import kernels
from minicnn.kernels import simd, threads

CHAINS = 12  # of multiply-adds that wait for nobody: enough for every CPU's latency
WARMUP_STEPS = 3


@njit
def _multiply_add(rounds, numbers):
    """Run so many rounds of CHAINS multiply-adds in registers; `numbers` has a vector for each."""
    p, lanes = simd.pointer(numbers, 0), simd.LANES
    x, a, b = simd.load(p, 0), simd.load(p, 0), simd.load(p, lanes)
    c, d, e = simd.load(p, 2 * lanes), simd.load(p, 3 * lanes), simd.load(p, 4 * lanes)
    f, g, h = simd.load(p, 5 * lanes), simd.load(p, 6 * lanes), simd.load(p, 7 * lanes)
    i, j, k = simd.load(p, 8 * lanes), simd.load(p, 9 * lanes), simd.load(p, 10 * lanes)
    z = simd.load(p, 11 * lanes)
    for _ in range(rounds):
        a, b, c, d = simd.fma(a, x, x), simd.fma(b, x, x), simd.fma(c, x, x), simd.fma(d, x, x)
        e, f, g, h = simd.fma(e, x, x), simd.fma(f, x, x), simd.fma(g, x, x), simd.fma(h, x, x)
        i, j, k, z = simd.fma(i, x, x), simd.fma(j, x, x), simd.fma(k, x, x), simd.fma(z, x, x)
    for n, y in enumerate((a, b, c, d, e, f, g, h, i, j, k, z)):
        simd.store(y, p, n * lanes)


def peak(rounds):
    """Return the best of several measured rates of multiply-adds in registers, in FLOP/s."""
    numbers = np.arange(CHAINS * simd.LANES, dtype=np.float32) / 1000
    _multiply_add(1, numbers)
    times = []
    for _ in range(10):
        start = time.thread_time()
        _multiply_add(rounds, numbers)
        times.append(time.thread_time() - start)
    return 2.0 * rounds * numbers.size / min(times)


def multiply_adds(kernel, reads, writes, sizes):
    """Return how many multiply-adds a call of a kernel needs, or 0 if it is bound by memory."""
    shapes = [array.shape for array in (*reads, *writes)]
    name, is_conv = name_of(kernel), ".conv." in kernel.__module__
    window = next((size for size in sizes if isinstance(size, tuple) and len(size) == 12), None)
    positions = len(reads[0]) * window[10] * window[11] if window else 0
    if name == "dense.forward":
        return reads[0].size * shapes[1][1]
    if name == "dense.multiply":
        return writes[0].size * sizes[2]
    if name == "lists.gradients":
        nonzero = int((reads[-1][1] - reads[-1][0]).sum())  # where the rows' lists begin and end
        return nonzero * shapes[0][1] * (2 if writes[-1].size else 1)
    if name == "pooled.gradients":
        nonzero = np.count_nonzero((reads[1] != 0) & (reads[2] != simd.ZEROED))
        taps = window[2] * window[3] * shapes[0][3]
        return nonzero * taps * (2 if writes[-1].size else 1)
    if name == "winograd.forward":
        tiles = len(reads[0]) * -(-window[10] // 4) * -(-window[11] // 4)
        return tiles * shapes[1][1] * shapes[0][3] * reads[2].size
    if is_conv and name.endswith(".forward"):
        return positions * window[2] * window[3] * shapes[0][3] * reads[2].size
    if is_conv and name.endswith(".input_gradient"):
        return positions * reads[1].size
    if is_conv and name.endswith(".kernel_gradient"):
        return positions * shapes[0][3] * shapes[1][3] * window[2] * window[3]
    return 0


def name_of(kernel):
    return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__.lstrip('_')}"


class Timer:
    """Stands in for `parallel_for` in all modules, and times its calls by kernel and shapes.

    While `counting`, it counts multiply-adds instead, which takes a while.
    """

    def __init__(self):
        self.times, self.counts, self.seen = {}, {}, collections.Counter()
        self.counting = False
        for module in pkgutil.walk_packages(kernels.__path__, "minicnn.kernels."):
            module = importlib.import_module(module.name)
            if hasattr(module, "parallel_for") and module is not threads:
                module.parallel_for = self.call

    def call(self, kernel, chunks, reads, writes, *sizes, **scratch):
        start = time.thread_time()
        threads.parallel_for(kernel, chunks, reads, writes, *sizes, **scratch)
        seconds = time.thread_time() - start
        shapes = " -> ".join("x".join(map(str, a[0].shape)) for a in (reads, writes) if len(a))
        key = f"{name_of(kernel)} {shapes}"
        self.seen[key] += 1  # in this step
        key = f"{key} (call {self.seen[key]})" if self.seen[key] > 1 else key
        if self.counting:
            self.counts[key] = int(multiply_adds(kernel, reads, writes, sizes))
        else:
            self.times.setdefault(key, []).append(seconds)


def measure(network, steps):
    """Return the CPU seconds and the multiply-adds of each kernel, and the seconds of a step."""
    trainer = networks.make("minicnn", network, networks.start_values(network))
    timer, seconds = Timer(), []
    for _, (x, y) in zip(range(WARMUP_STEPS + steps), networks.batches(network), strict=False):
        timer.seen.clear()
        start = time.thread_time()
        trainer.step(x, y)
        seconds.append(time.thread_time() - start)
    timer.counting = True
    timer.seen.clear()
    trainer.step(x, y)
    rows = {
        name: {"seconds": statistics.median(times[WARMUP_STEPS:]),
               "multiply-adds": timer.counts[name]}
        for name, times in timer.times.items()
    }  # fmt: skip
    return rows, statistics.median(seconds[WARMUP_STEPS:])


def show(rows, step, best):
    """Print a table of the kernels that take a hundredth of a step each, and of what is left."""
    cells, small = [], 0.0
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["seconds"]):
        if row["seconds"] < step / 100:
            small += row["seconds"]
        else:
            cells.append([name, *of_step(row["seconds"], step),
                          *of_peak(row["multiply-adds"], row["seconds"], best)])
    rest = step - sum(row["seconds"] for row in rows.values())
    cells.append(["smaller ones", *of_step(small, step), "-", "-"])
    cells.append(["outside the kernels", *of_step(rest, step), "-", "-"])
    total = sum(row["multiply-adds"] for row in rows.values())
    cells.append(["step", *of_step(step, step), *of_peak(total, step, best)])
    harness.table(["kernel", "CPU ms", "of the step", "GFLOP/s", "of the peak"], cells)


def of_step(seconds, step):
    return f"{seconds * 1e3:.2f}", f"{seconds / step:.0%}"


def of_peak(count, seconds, best):
    rate = 2 * count / seconds
    return (f"{rate / 1e9:.0f}", f"{rate / best:.0%}") if rate else ("-", "-")


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--network", choices=networks.NETWORKS, default="documented")
    parser.add_argument("--steps", type=int, default=50, help="default: %(default)s")
    args = harness.parse(parser)
    args.threads = 1
    mc.set_num_threads(1)
    rounds, steps = (10_000, 2) if args.smoke else (1_000_000, args.steps)
    before = peak(rounds)
    rows, step = measure(networks.NETWORKS[args.network], steps)
    best = max(before, peak(rounds))
    print(f"{args.network}, peak {best / 1e9:.0f} GFLOP/s on one thread, "
          f"vectors of {simd.VECTOR_BYTES} bytes\n")
    show(rows, step, best)
    harness.report(args, {"peak": best, "step": step, "kernels": rows})


if __name__ == "__main__":
    main()
