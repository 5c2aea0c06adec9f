"""Train a model with two inputs: two handwritten digits, of which it learns the sum.

    python examples/two_inputs.py

The features are two arrays, `left` and `right`, and the label is the sum of the digits, from 0 to
18. The model is never told which digits it sees. A convolution for each of the images is followed
by `mc.concat`. It takes about twenty seconds.
"""

import argparse
import sys
import tempfile

import numpy as np

import minicnn as mc

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
parser.add_argument("--seed", type=int, default=0, help="default: 0")
args = parser.parse_args()


def model_fn(features, labels, mode):
    """Return the sum of the digits in features["left"] and features["right"]."""
    views = []
    for name in ("left", "right"):
        conv = mc.layers.conv2d(features[name], filters=16, kernel_size=5, activation=mc.relu,
                                name=f"{name}/conv2d")
        pool = mc.layers.max_pooling2d(conv, pool_size=2, strides=2)
        views.append(mc.layers.dense(mc.layers.flatten(pool), 64, activation=mc.relu,
                                     name=f"{name}/dense"))
    both = mc.concat(views, axis=1)  # (N, 128)
    hidden = mc.layers.dense(both, 128, activation=mc.relu)
    logits = mc.layers.dense(hidden, 19)
    predictions = {"sum": mc.argmax(logits, axis=1), "probabilities": mc.softmax(logits)}
    if mode == mc.ModeKeys.INFER:
        return mc.ModelFnOps(mode, predictions)
    loss = mc.losses.sparse_softmax_cross_entropy(labels, logits)
    train_op = mc.optimize_loss(loss, learning_rate=0.002, optimizer="Adam")
    return mc.ModelFnOps(mode, predictions, loss, train_op)


mnist = mc.datasets.load_dataset("mnist", reshape=False)


def pairs(split, seed):
    """Return the features and labels of as many pairs as a split has images, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(split.labels))
    features = {"left": split.images, "right": split.images[order]}
    return features, split.labels + split.labels[order]


features, sums = pairs(mnist.train, seed=1)
test_features, test_sums = pairs(mnist.test, seed=2)
metrics = {"accuracy": mc.MetricSpec(mc.metrics.accuracy, "sum")}
with tempfile.TemporaryDirectory() as folder:
    estimator = mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=args.seed))
    estimator.fit(features, sums, batch_size=100, steps=args.steps)
    accuracy = estimator.evaluate(test_features, test_sums, metrics=metrics)["accuracy"]
    swapped = test_features | {"right": test_features["right"][::-1]}
    one = estimator.evaluate(swapped, test_sums, metrics=metrics)["accuracy"]
    examples = estimator.predict({name: x[:5] for name, x in test_features.items()})
    for left, total, row in zip(mnist.test.labels[:5], test_sums[:5], examples, strict=True):
        print(f"{left} + {total - left} = {row['sum']}")

print(f"The sum of {accuracy:.1%} of the {len(test_sums):,} test pairs is right.")
print(f"With other images on the right it is right for {one:.1%}: the model uses both inputs.")
if not accuracy > 3 * one:
    sys.exit("It should be right three times as often as with wrong images on the right.")
