"""Time the logits of a network: one image, eight, a hundred, a thousand.

    python benchmarks/inference.py                  the documented network
    python benchmarks/inference.py --network vgg    another one of benchmarks/networks.py

The model of `Sequential.for_inference` against `Sequential.predict`, PyTorch (eager,
`inference_mode`, two memory layouts) and ONNX Runtime with the same weights. Inputs are arrays
(N, H, W, C), outputs are arrays. A thousand images are predicted in one call and in calls of a
hundred, as neither is faster for all. The logits are compared before the timing.
"""

import itertools
import math
import os
import tempfile
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
LIMIT = 1e-4


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


def main():
    harness.serve(Inference)
    parser = harness.parser(__doc__, rounds=7, seconds=1.0)
    parser.add_argument("--network", choices=networks.NETWORKS, default="documented")
    args = harness.parse(parser)
    peers = list(networks.PYTORCH) if harness.installed("torch") else []
    if all([harness.installed("onnxruntime"), harness.installed("onnx")]):
        peers.append(RUNTIME)
    network, results = networks.NETWORKS[args.network], {}
    with tempfile.TemporaryDirectory() as folder:
        batches = itertools.islice(networks.batches(network), math.ceil(1000 / network.batch))
        np.save(Path(folder) / "images.npy", np.concatenate([x for x, _ in batches]))
        np.savez(Path(folder) / "weights.npz", *networks.start_values(network))
        names = ["minicnn", PREDICT, *peers]
        with harness.contenders(names, args.threads, network=network, folder=folder) as contenders:
            check(contenders, folder)
            for title, (count, size) in CALLS.items():
                if args.smoke and count > 100:
                    continue
                call = {"count": count, "size": size, "seconds": args.seconds}
                results[title] = harness.compare(
                    harness.alternate(contenders, args.rounds, **call)
                )
                print(f"\n{title}\n")
                harness.ratio_table(results[title])
    harness.report(args, results)


if __name__ == "__main__":
    main()
