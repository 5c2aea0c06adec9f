"""Predict a number, not a class: by how many degrees a handwritten digit is turned.

    python examples/regression.py

The data are made of the twos, threes and sevens of MNIST: each picture is turned by a random angle
between -45 and 45 degrees, and the angle is the label. A small network is trained with the loss
"mean_squared_error" and compared with the best linear prediction from the same pixels. It takes
about twenty seconds.
"""

import argparse
import sys

import numpy as np

import minicnn as mc

parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--epochs", type=int, default=10, help="default: 10")
parser.add_argument("--seed", type=int, default=0, help="default: 0")
args = parser.parse_args()

MOST = 45.0  # degrees


def turned(images, degrees):
    """Return images (N, H, W, 1), each turned to the left; each pixel is mixed of four."""
    n, height, width, _ = images.shape
    padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
    y, x = np.mgrid[:height, :width] - (height - 1) / 2
    angle = np.deg2rad(degrees)[:, None, None]
    rows = np.cos(angle) * y + np.sin(angle) * x + (height - 1) / 2 + 1
    columns = np.cos(angle) * x - np.sin(angle) * y + (width - 1) / 2 + 1
    rows, columns = np.clip(rows, 0, height), np.clip(columns, 0, width)
    top, left = rows.astype(int), columns.astype(int)
    down, right = rows - top, columns - left
    image = np.arange(n)[:, None, None]
    above = (1 - right) * padded[image, top, left] + right * padded[image, top, left + 1]
    below = (1 - right) * padded[image, top + 1, left] + right * padded[image, top + 1, left + 1]
    return ((1 - down) * above + down * below)[..., None].astype(np.float32)


mnist = mc.datasets.load_dataset("mnist", reshape=False)
rng = np.random.default_rng(args.seed)


def made(split, n):
    """Return n turned images of twos, threes and sevens, and their angles (n, 1), in degrees."""
    degrees = rng.uniform(-MOST, MOST, n).astype(np.float32)
    return turned(split.images[np.isin(split.labels, (2, 3, 7))][:n], degrees), degrees[:, None]


x, y = made(mnist.train, 12_000)
x_test, y_test = made(mnist.test, 2_000)

# Labels of size 1 need no large weights: the network predicts the angle in units of 45 degrees.
model = mc.Sequential([
    mc.layers.Conv2D(8, 5, activation="relu"), mc.layers.MaxPooling2D(2),
    mc.layers.Conv2D(16, 5, activation="relu"), mc.layers.MaxPooling2D(2),
    mc.layers.Flatten(), mc.layers.Dense(64, activation="relu"), mc.layers.Dense(1),
])
model.fit(
    x, y / MOST, loss="mean_squared_error", epochs=args.epochs, batch_size=100, seed=args.seed,
    learning_rate=mc.optimizers.cosine_decay(0.004, decay_steps=120 * args.epochs),
    validation_data=(x_test, y_test / MOST),
)


def flat(images):
    """Return the pixels of each image in a row, and a 1 for the constant."""
    return np.hstack([images.reshape(len(images), -1), np.ones((len(images), 1), np.float32)])


weights, *_ = np.linalg.lstsq(flat(x), y, rcond=1e-6)

predicted = MOST * model.predict(x_test)
print("\nThe two of the first twenty test images that are turned most:")
for number in np.argsort(-np.abs(y_test[:20, 0]))[:2]:
    for row in x_test[number, 2:26, 2:26, 0]:
        print("   ", "".join(2 * " .:-=+*#%@"[int(9 * pixel)] for pixel in row).rstrip())
    print(f"    turned by {y_test[number, 0]:.0f} degrees, predicted {predicted[number, 0]:.0f}\n")

errors = {
    "no prediction (always 0)": np.abs(y_test).mean(),
    "linear": np.abs(flat(x_test) @ weights - y_test).mean(),
    "network": mc.losses.absolute_difference(y_test, predicted),
}
print(f"Mean error on {len(x_test):,} test images:")
for name, error in errors.items():
    print(f"    {name:24s}  {error:5.1f} degrees  {'#' * round(2 * error)}")
if errors["network"] > errors["linear"] / 1.5:
    sys.exit("The network should be at least 1.5 times as good as the linear prediction.")
