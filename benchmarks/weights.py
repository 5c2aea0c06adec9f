"""Compare accuracy and size of `for_inference` with float16 weights to those with float32.

    python benchmarks/weights.py                    MNIST
    python benchmarks/weights.py --data FOLDER      four IDX files, such as those of Fashion-MNIST

Trains the documented network with Adam for each seed, predicts the test set with kernels of
both types, and prints the accuracy, the images whose class differs, the largest difference of a
logit relative to the largest logit, the bytes of a pickle, and the memory after one prediction. It
fails if float16 loses more than 0.1% of accuracy in a run. With few ``--steps`` more images are
near a boundary between classes, so that more classes differ.
"""

import gc
import pickle
import tracemalloc
from pathlib import Path

import harness
import numpy as np

import minicnn as mc
from minicnn.layers import Conv2D, Dense, Dropout, Flatten, MaxPooling2D

LIMIT = 0.001
TYPES = "float32", "float16"


def network():
    return mc.Sequential([
        Conv2D(32, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Conv2D(64, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Flatten(), Dense(1024, activation="relu"), Dropout(0.4), Dense(10),
    ])  # fmt: skip


def memory(model, weight_dtype, image):
    """Return the bytes that a model for inference keeps, without those of the model."""
    gc.collect()
    tracemalloc.start()
    fast = model.for_inference(weight_dtype=weight_dtype)
    fast(image)
    gc.collect()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept


def compare(model, images, labels):
    """Return the accuracy and size with each type of weights, and how much the logits differ."""
    result, logits = {}, {}
    for name in TYPES:
        fast = model.for_inference(weight_dtype=name)
        logits[name] = fast.predict(images)
        result[name] = {
            "accuracy": float((logits[name].argmax(axis=1) == labels).mean()),
            "pickle": len(pickle.dumps(fast)), "memory": memory(model, name, images[:1]),
        }  # fmt: skip
    ours, theirs = logits.values()
    result["classes differ"] = int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
    result["logits differ"] = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    return result


def show(results):
    """Print a row for each seed."""
    rows = []
    for seed, result in results.items():
        single, half = (result[name] for name in TYPES)
        rows.append([
            seed, f"{single['accuracy']:.2%}", f"{half['accuracy']:.2%}",
            result["classes differ"], f"{result['logits differ']:.1e}",
            *(f"{single[key] / 1e6:.1f}, {half[key] / 1e6:.1f}" for key in ("pickle", "memory")),
        ])  # fmt: skip
    print()
    harness.table(["seed", *TYPES, "classes differ", "logits differ", "pickle, MB", "memory, MB"],
                  rows)


def main():
    parser = harness.parser(__doc__)
    parser.add_argument("--data", default="mnist", help="a folder (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1650, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    args = harness.parse(parser)
    if args.smoke:
        args.steps, args.seeds = 2, [0]
    mc.set_num_threads(args.threads)
    folder = args.data if args.data == "mnist" else Path(args.data)
    data = mc.datasets.load_dataset(folder, reshape=False, validation_size=0)
    images, labels = data.test.images, data.test.labels
    print(f"{args.data}: {len(data.train.images):,} images to train with, {len(images):,} to test")
    results = {}
    for seed in args.seeds:
        model = network()
        adam = mc.optimizers.Adam(mc.optimizers.cosine_decay(0.001, args.steps))
        model.fit(data.train.images, data.train.labels, batch_size=100, steps=args.steps,
                  optimizer=adam, seed=seed, verbose=False)
        results[seed] = compare(model, images, labels)
    show(results)
    harness.report(args, results)
    lost = max(r["float32"]["accuracy"] - r["float16"]["accuracy"] for r in results.values())
    if lost > LIMIT:
        raise SystemExit(f"float16 loses {lost:.2%} of accuracy")


if __name__ == "__main__":
    main()
