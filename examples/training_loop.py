"""Train a small CNN on MNIST with an explicit loop: forward, loss, backward, step.

Run ``python examples/training_loop.py``; it takes about half a minute.
"""

import argparse
import time

import numpy as np

import minicnn as mc

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=600, help="training steps (default: 600)")
parser.add_argument("--batch-size", type=int, default=100, help="images per step (default: 100)")
parser.add_argument("--learning-rate", type=float, default=0.05, help="default: 0.05")
parser.add_argument("--seed", type=int, default=0, help="default: 0")
args = parser.parse_args()

mnist = mc.datasets.load_dataset("mnist", reshape=False, seed=args.seed)
rng = np.random.default_rng(args.seed)

model = mc.Sequential([
    mc.layers.Conv2D(16, 5, padding="same", activation="relu"),
    mc.layers.MaxPooling2D(2),
    mc.layers.Conv2D(32, 5, padding="same", activation="relu"),
    mc.layers.MaxPooling2D(2),
    mc.layers.Flatten(),
    mc.layers.Dense(128, activation="relu"),
    mc.layers.Dropout(0.4),
    mc.layers.Dense(10),
])
model.build((None, 28, 28, 1), rng=rng)
print(model.summary())

sgd = mc.optimizers.SGD(args.learning_rate, momentum=0.9)
start = time.perf_counter()
for step in range(1, args.steps + 1):
    x, y = mnist.train.next_batch(args.batch_size)

    ctx = mc.Context(training=True, rng=rng)
    logits = model.forward(x, ctx)
    loss, dlogits = mc.losses.softmax_cross_entropy_with_grad(labels=y, logits=logits)
    model.backward(dlogits, ctx, need_dx=False)
    sgd.step(model.parameters)

    if step == 1 or step % 100 == 0:
        print(f"step {step:4d}  loss {loss:.4f}  {time.perf_counter() - start:.1f} s")

predicted = model.predict(mnist.test.images).argmax(axis=1)
accuracy = mc.metrics.accuracy(mnist.test.labels, predicted)
print(f"accuracy on the {len(predicted):,} test images: {accuracy:.4f}")
