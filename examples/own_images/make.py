"""Make the pictures in this folder: digits of MNIST, as if written with a colored pen on paper.

    python examples/own_images/make.py

It needs Pillow. The pictures may differ by its version.
"""

from pathlib import Path

import numpy as np
from PIL import Image

import minicnn as mc

HERE = Path(__file__).parent
CLASSES = {"zero": 0, "four": 4, "seven": 7}
FOR_TRAINING = 20  # of each class
SIDE = 48


def picture(digit, rng):
    """Return a digit (28, 28) as a color picture (SIDE, SIDE, 3) of bytes."""
    size = int(rng.integers(38, 47))
    grown = Image.fromarray((digit * 255).astype(np.uint8)).resize((size, size), Image.BICUBIC)
    ink = np.zeros((SIDE, SIDE, 1))
    top, left = rng.integers(0, SIDE - size + 1, 2)
    ink[top : top + size, left : left + size, 0] = np.asarray(grown) / 255
    paper = rng.uniform([0.85, 0.82, 0.70], [1.0, 0.98, 0.95])
    pen = rng.uniform(0, 0.3, 3)
    across, down = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.92 + 0.08 * (across * np.cos(angle) + down * np.sin(angle)) / np.sqrt(2)
    pixels = (paper * (1 - ink) + pen * ink) * light[..., np.newaxis]
    pixels += rng.normal(0, 0.01, pixels.shape)
    return (255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def main():
    mnist = mc.datasets.load_dataset("mnist", reshape=False)
    rng = np.random.default_rng(0)
    for name, label in CLASSES.items():
        folder = HERE / "train" / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, row in enumerate(np.flatnonzero(mnist.train.labels == label)[:FOR_TRAINING]):
            pixels = picture(mnist.train.images[row, ..., 0], rng)
            Image.fromarray(pixels).save(folder / f"{number + 1:02}.jpg", quality=85)
    (HERE / "new").mkdir(exist_ok=True)
    for name, label in CLASSES.items():
        row = np.flatnonzero(mnist.test.labels == label)[0]
        pixels = picture(mnist.test.images[row, ..., 0], rng)
        Image.fromarray(pixels).save(HERE / "new" / f"{name}.jpg", quality=85)


if __name__ == "__main__":
    main()
