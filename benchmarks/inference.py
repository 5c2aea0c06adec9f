"""Time the logits of a network: one image, eight, a hundred, a thousand.

    python benchmarks/inference.py                  the documented network
    python benchmarks/inference.py --network vgg    another one of benchmarks/networks.py
    python benchmarks/inference.py --clients 8      requests a second of eight threads
    python benchmarks/inference.py --all            five networks with 1, 8 and 64 images a call

The model of `Sequential.for_inference` against `Sequential.predict`, PyTorch (eager,
`inference_mode`, two memory layouts) and ONNX Runtime with the same weights. Inputs are arrays
(N, H, W, C), outputs are arrays. A thousand images are predicted in one call and in calls of a
hundred, as neither is faster for all. The logits are compared before the timing.

After the tables, two quantiles of the latency of `--calls` calls with one image, beside ONNX
Runtime's. A dense layer with a kernel of several megabytes takes as long as reading it: the last
table compares that layer alone with a jitted sum over the same kernel, both with one thread.

With `--clients`, threads share one model, or one session of ONNX Runtime, and each of them asks
for one image at a time. With `--all`, the networks are compared with ONNX Runtime alone; the last
row has the geometric means.
"""

import contextlib
import itertools
import math
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import harness
import networks
import numpy as np

CALLS = {  # images, images per call
    "1 image": (1, 1), "8 images": (8, 8), "100 images": (100, 100),
    "1,000 in one call": (1000, 1000), "1,000 by hundreds": (1000, 100),
}  # fmt: skip
RUNTIME = "ONNX Runtime"
PREDICT = "minicnn predict"
PAIR = "minicnn", RUNTIME  # whose latencies and requests are compared
FIVE = "documented", "cifar", "lenet5", "strided", "resnet"
SIZES = 1, 8, 64  # images a call for each of the five networks
LIMIT = 1e-4
LARGE = 4e6  # bytes of a kernel whose reading takes most of the time


class Inference:
    """A contender that computes logits with the weights and images in a folder."""

    def __init__(self, name, network, folder):
        self.images = np.load(Path(folder) / "images.npy")
        weights = networks.read_weights(Path(folder) / "weights.npz")
        network = networks.Network(*network)
        if name in ("minicnn", PREDICT):
            model = networks.make("minicnn", network, weights).model
            model = model if name == PREDICT else model.for_inference()
            self.logits = lambda x: model.predict(x, batch_size=len(x))
        elif name == RUNTIME:
            self.logits = onnx_runtime(network, weights)
        else:
            self.logits = pytorch(networks.make(name, network, weights))

    def predict(self, count, size):
        parts = [self.logits(self.images[i : i + size]) for i in range(0, count, size)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def record(self, output):
        np.save(output, self.predict(len(self.images), 100))

    def block(self, count, size, seconds):
        return harness.block(lambda: self.predict(count, size), seconds)

    def latencies(self, calls):
        """Return the seconds of each call with one image."""
        seconds = []
        for number in range(-3, calls):  # another contender has just used the caches
            image = self.images[[number % len(self.images)]]
            start = time.perf_counter()
            self.logits(image)
            seconds.append(time.perf_counter() - start)
        return seconds[3:]

    def request(self, clients, seconds):
        """Return the seconds per request of threads that ask for one image at a time."""

        def ask(number, least, end):
            count, image = 0, self.images[[number]]
            while count < least or time.perf_counter() < end:
                self.logits(image)
                count += 1
            return count

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(ask, range(clients), [3] * clients, [0.0] * clients))  # not timed
            start = time.perf_counter()
            counts = pool.map(ask, range(clients), [3] * clients, [start + seconds] * clients)
            return 1 / sum(counts) * (time.perf_counter() - start)

    def bandwidth(self, seconds, shape):
        """Return the seconds to add up a kernel, and to multiply a row with it, in one thread."""
        import numba

        import minicnn as mc

        @numba.njit(fastmath=True)  # so that sums are vectorized
        def total(quarters):
            a = b = c = d = np.float32(0)
            for i in range(quarters.shape[1]):
                a += quarters[0, i]
                b += quarters[1, i]
                c += quarters[2, i]
                d += quarters[3, i]
            return a + b + c + d

        before = mc.get_num_threads()
        mc.set_num_threads(1)
        model = mc.Sequential([mc.layers.Dense(shape[1])])
        model.build((None, shape[0]), rng=0)
        fast = model.for_inference()
        row = np.ones((1, shape[0]), np.float32)
        fast(row)
        [packed] = fast._packed.values()  # the same memory, as rates differ by a fifth
        kernel = packed.reshape(4, -1)
        result = {
            "jitted sum": harness.block(lambda: total(kernel), seconds),
            "dense layer": harness.block(lambda: fast(row), seconds),
        }
        mc.set_num_threads(before)
        return result


def pytorch(runner):
    model = runner.model.eval()

    def logits(x):
        with runner.torch.inference_mode():
            return model(runner.tensor(x)).numpy()

    return logits


def onnx_runtime(network, weights):
    """Return a function that runs the network as an ONNX graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ[harness.THREADS[0]])
    if network.is_normalized:
        graph = exported(network, weights)
    else:
        graph = onnx_graph(network, weights).SerializeToString()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def exported(network, weights):
    """Return the network as minicnn exports it: ONNX Runtime folds the normalization itself."""
    import minicnn as mc

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        mc.export.to_onnx(networks.make("minicnn", network, weights).model, path)
        return path.read_bytes()


def onnx_graph(network, weights):
    """Return the network as ONNX: images (N, H, W, C), channels first inside as ONNX needs."""
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, values = [], [], iter(weights)
    flat = next(before for kind, _, before, *_ in network.walk() if kind == "flatten")
    last = "images"

    def add(kind, *inputs, **attributes):
        nonlocal last
        name = f"{kind}{len(nodes)}"
        nodes.append(helper.make_node(kind, [last, *inputs], [name], **attributes))
        last = name

    def constant(value):
        array = np.ascontiguousarray(networks.to_torch(value, flat))
        constants.append(numpy_helper.from_array(array, f"constant{len(constants)}"))
        return constants[-1].name

    add("Transpose", perm=[0, 3, 1, 2])
    for kind, options, *_ in network.without_dropout().walk():
        if kind == "conv":
            size, _, stride, _ = options
            add("Conv", constant(next(values)), constant(next(values)),
                pads=[size // 2] * 4, strides=[stride] * 2)
        elif kind == "pool":
            add("MaxPool", kernel_shape=[2, 2], strides=[2, 2])
        elif kind == "flatten":
            add("Flatten")
        else:
            add("Gemm", constant(next(values)), constant(next(values)), transB=1)
        if options and options[-1] is True:
            add("Relu")
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])]
        for name, shape in (("images", network.image), (last, (10,)))
    ]
    graph = helper.make_graph(nodes, "network", *ends, initializer=constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def check(contenders, folder):
    """Stop if logits or classes differ from minicnn's."""
    path, ours = Path(folder) / "logits.npy", None
    for contender in contenders:
        contender.ask("record", output=str(path))
        theirs = np.load(path)
        ours = theirs if ours is None else ours
        off = np.abs(ours - theirs).max()
        same = (ours.argmax(axis=1) == theirs.argmax(axis=1)).mean()
        print(f"{contender.name}: logits differ by at most {off:.1e}, {same:.2%} of classes equal")
        if not (off <= LIMIT * np.abs(ours).max() and same > 0.999):
            raise SystemExit("the logits differ too much")


def tables(contenders, args):
    """Print a table for each number of images, and return the results."""
    results = {}
    for title, (count, size) in CALLS.items():
        if args.smoke and count > 100:
            continue
        call = {"count": count, "size": size, "seconds": args.seconds}
        results[title] = harness.compare(harness.alternate(contenders, args.rounds, **call))
        print(f"\n{title}\n")
        harness.ratio_table(results[title])
    return results


def latency(contenders, args):
    """Print the latency of single images, and return it."""
    calls = math.ceil(args.calls / args.rounds)
    blocks = harness.alternate(contenders, args.rounds, "latencies", calls=calls)
    results = {}
    for name, seconds in blocks.items():
        quantiles = np.quantile(np.concatenate(seconds), [0.5, 0.99])
        results[name] = dict(zip(("p50", "p99"), quantiles.tolist(), strict=True))
    print(f"\nOne image, {calls * args.rounds:,} calls\n")
    ours, rows = results["minicnn"], []
    for name, times in results.items():
        rows.append([name, *(f"{value * 1e6:.0f}" for value in times.values()),
                     *(f"{value / ours[key]:.2f}" for key, value in times.items())])
    harness.table(["contender", "p50, us", "p99, us", "times minicnn's p50", "p99"], rows)
    return results


def requests(contenders, clients, args):
    """Print the requests a second of several clients, and return the seconds per request."""
    call = {"clients": clients, "seconds": args.seconds}
    result = harness.compare(harness.alternate(contenders, args.rounds, "request", **call))
    print(f"\n{clients} clients, one image each\n")
    rows = []
    for name, each in result.items():
        rows.append([name, f"{1 / each['seconds']:,.0f}", f"{1 / each['ratio']:.2f}"])
    harness.table(["contender", "requests a second", "times minicnn's"], rows)
    return result


def bandwidth(contender, network, args):
    """Print the share of the bandwidth that the largest dense layer reaches, if it is large."""
    shapes = [kernel for kind, _, _, kernel, _ in network.walk() if kind == "dense"]
    shape = max(shapes, key=math.prod)
    size = 4 * math.prod(shape)
    if size < LARGE:
        return None
    call = {"shape": shape, "seconds": args.seconds}
    blocks = harness.alternate([contender], args.rounds, "bandwidth", **call)[contender.name]
    result = {name: size / statistics.median(block[name] for block in blocks) / 1e9
              for name in blocks[0]}
    print(f"\nA kernel of {size / 1e6:.1f} MB, one thread\n")
    rows = [[name, f"{rate:.1f}", f"{rate / result['jitted sum']:.2f}"]
            for name, rate in result.items()]
    harness.table(["read by", "GB/s", "share"], rows)
    return result


def five(args):
    """Print a table of the five networks beside ONNX Runtime, and return the results."""
    results, rows = {}, []
    for name in ("lenet5",) if args.smoke else FIVE:
        row, results[name] = [name], {}
        with started(networks.NETWORKS[name], PAIR, args.threads) as pair:
            for size in SIZES:
                call = {"count": size, "size": size, "seconds": args.seconds}
                result = harness.compare(harness.alternate(pair, args.rounds, **call))
                results[name][size] = result
                row += [result["minicnn"]["seconds"] * 1e3, result[RUNTIME]["ratio"]]
        rows.append(row)
    means = ["geometric mean"]
    for column in list(zip(*rows, strict=True))[1:]:
        means.append(statistics.geometric_mean(column))
    headers = [""]
    for size in SIZES:
        headers += [f"{size} images, ms", "ONNX Runtime / minicnn"]
    print("\nFive networks\n")
    harness.table(headers, [[name, *(f"{x:.2f}" for x in row)] for name, *row in [*rows, means]])
    return results


@contextlib.contextmanager
def started(network, names, threads):
    """Start the contenders for a network, and compare their logits."""
    with tempfile.TemporaryDirectory() as folder:
        batches = itertools.islice(networks.batches(network), math.ceil(1000 / network.batch))
        np.save(Path(folder) / "images.npy", np.concatenate([x for x, _ in batches]))
        np.savez(Path(folder) / "weights.npz", *networks.start_values(network))
        with harness.contenders(names, threads, network=network, folder=folder) as contenders:
            check(contenders, folder)
            yield contenders


def main():
    harness.serve(Inference)
    parser = harness.parser(__doc__, rounds=7, seconds=1.0)
    parser.add_argument("--network", choices=networks.NETWORKS, default="documented")
    parser.add_argument(
        "--calls", type=int, default=10_000, help="whose latency is measured (default: %(default)s)"
    )
    parser.add_argument("--clients", type=int, help="measure this instead: so many threads")
    parser.add_argument("--all", action="store_true", help="measure five networks instead")
    args = harness.parse(parser)
    args.calls = 20 if args.smoke else args.calls
    peers = list(networks.PYTORCH) if harness.installed("torch") else []
    if all([harness.installed("onnxruntime"), harness.installed("onnx")]):
        peers.append(RUNTIME)
    network, results = networks.NETWORKS[args.network], {}
    names = ["minicnn", PREDICT, *peers]
    if args.clients is not None:
        names = [name for name in names if name in PAIR]
    if args.all or (args.smoke and RUNTIME in peers):
        results["networks"] = five(args)
    if not args.all:
        with started(network, names, args.threads) as contenders:
            pair = [contender for contender in contenders if contender.name in PAIR]
            if args.clients is None:
                results |= tables(contenders, args)
                results["latency"] = latency(pair, args)
                results["bandwidth"] = bandwidth(pair[0], network, args)
            if args.clients is not None or args.smoke:
                results["clients"] = requests(pair, args.clients or 2, args)
    harness.report(args, results)


if __name__ == "__main__":
    main()
