"""Make the documented run, and record time, accuracy and loss on the test set during it.

    python benchmarks/time_to_accuracy.py --model-dir runs --json runs/result.json

Runs the network of `examples/mnist_cnn.py` with the Estimator, once for each seed. Training time is
that of `fit` alone, including compilation if the cache is empty. The numbers are written after
every evaluation; the same command with the same ``--model-dir`` continues an interrupted run.
"""

import contextlib
import importlib.util
import json
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

import minicnn as mc

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist_cnn.py"


def documented_model_fn():
    """Return the model_fn of the example."""
    spec = importlib.util.spec_from_file_location("mnist_cnn", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.cnn_model_fn


class Run:
    """The run of one seed, in a folder with its checkpoints and `progress.json`."""

    def __init__(self, folder, seed, every, data):
        self.path, self.data, self._began = folder / "progress.json", data, time.perf_counter()
        self.progress = {"seed": seed, "training s": 0.0, "wall s": 0.0, "evaluations": []}
        if self.path.exists():
            self.progress = json.loads(self.path.read_text())
        self.estimator = mc.Estimator(
            documented_model_fn(), folder, {"learning_rate": 0.001},
            # Otherwise a killed run would continue from a step without a recorded time.
            mc.RunConfig(seed=seed, save_checkpoints_steps=every),
        )

    @property
    def step(self):
        return self.progress["evaluations"][-1]["step"] if self.progress["evaluations"] else 0

    def train(self, last_step):
        start = time.perf_counter()
        try:
            train = self.data.train
            y = np.asarray(train.labels, np.int32)
            self.estimator.fit(train.images, y, batch_size=100, max_steps=last_step)
        finally:  # after Ctrl-C there is a checkpoint of these steps
            self.progress["training s"] += time.perf_counter() - start
            self._write()

    def evaluate(self, rows):
        """Evaluate, record the result and return it."""
        x, y = self.data.test.images[:rows], np.asarray(self.data.test.labels[:rows], np.int32)
        accuracy = mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")
        result = self.estimator.evaluate(x, y, metrics={"accuracy": accuracy})
        note = {"step": result["global_step"], "accuracy": result["accuracy"],
                "loss": result["loss"], "training s": self.progress["training s"]}  # fmt: skip
        self.progress["evaluations"].append(note)
        self._write()
        return note

    def _write(self):
        now = time.perf_counter()
        self.progress["wall s"] += now - self._began
        self._began = now
        harness.write_json(self.path, self.progress)


def show(results):
    """Print accuracy, loss and training minutes of every seed at every evaluation."""
    headers, rows = ["step"], []
    for run in results:
        headers += [f"{what}, seed {run['seed']}" for what in ("accuracy", "loss", "minutes")]
    for notes in zip(*(run["evaluations"] for run in results), strict=False):
        rows.append([notes[0]["step"]])
        for e in notes:
            rows[-1] += f"{e['accuracy']:.4f} {e['loss']:.4f} {e['training s'] / 60:.2f}".split()
    print()
    harness.table(headers, rows)
    print("\nminutes with evaluations:", *(f"{run['wall s'] / 60:.2f}" for run in results))


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--steps", type=int, default=20000, help="default: 20000")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--every", type=int, default=1000, help="default: 1000 steps")
    parser.add_argument("--model-dir", type=Path, help="default: a temporary folder")
    args = harness.parse(parser)
    if args.smoke:
        args.steps, args.every, args.seeds = 4, 2, [0]
    mc.set_num_threads(args.threads)
    data, results = mc.datasets.load_dataset("mnist"), []
    with contextlib.ExitStack() as stack:
        folder = args.model_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for seed in args.seeds:
            of_seed = folder / f"seed-{seed}"
            of_seed.mkdir(parents=True, exist_ok=True)
            run = Run(of_seed, seed, args.every, data)
            results.append(run.progress)
            while run.step < args.steps:
                run.train(min(args.steps, run.step + args.every))
                note = run.evaluate(1000 if args.smoke else None)
                print(f"seed {seed}", *(f"{k} {v:.6g}" for k, v in note.items()), sep=", ")
                harness.report(args, results, say=False)
    show(results)
    harness.report(args, results)


if __name__ == "__main__":
    main()
