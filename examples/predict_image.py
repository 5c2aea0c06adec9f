"""Predict which digit is in a picture: a photo, a scan or a drawing.

    python examples/predict_image.py mnist_cnn_model photo.png scan.jpg
    python examples/predict_image.py mnist_cnn_model photo.png --json

MODEL_DIR is the --model-dir of examples/mnist_cnn.py. A picture shows one digit, dark on light or
light on dark, of any size and color. This needs Pillow:
``pip install -e ".[image]"``.
"""

import argparse
import json
import sys
import warnings

import numpy as np
from mnist_cnn import cnn_model_fn

import minicnn as mc
from minicnn import images


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="PIL")  # what matters raises an error

    digits, failed = {}, False
    for path in args.pictures:
        try:
            digits[path] = images.digit(images.read(path))
        except ImportError as error:
            sys.exit(str(error))
        except (OSError, ValueError) as error:
            failed = True
            print(error if path in str(error) else f"{path}: {error}", file=sys.stderr)
    if digits:
        show(classify(args.model_dir, np.stack([*digits.values()])), digits, args.json)
    sys.exit(int(failed))


def classify(model_dir, digits):
    """Return the probabilities (N, 10) of digits (N, 28, 28)."""
    classifier = mc.Estimator(cnn_model_fn, model_dir)
    try:
        return classifier.predict(digits.reshape(-1, 784), as_iterable=False)["probabilities"]
    except mc.CheckpointError as error:
        sys.exit(f"{error}\ntrain one: python examples/mnist_cnn.py --model-dir {model_dir}")


def show(probabilities, paths, as_json):
    """Print the most likely class of each picture, and the probabilities."""
    for path, row in zip(paths, probabilities, strict=True):
        best = int(row.argmax())
        if as_json:
            print(json.dumps({"picture": path, "class": best, "probabilities": row.tolist()}))
        else:
            likely = [f"{n} {row[n]:.1%}" for n in np.argsort(-row)[:3]]
            print(f"{path}: {best}   ({', '.join(likely)})")


if __name__ == "__main__":
    main()
