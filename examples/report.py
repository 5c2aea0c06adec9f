"""Write a page about a model of examples/mnist_cnn.py, with figures and what they mean.

    python examples/mnist_cnn.py --steps 2000
    python examples/report.py mnist_cnn_model

Writes ``report.html`` into the model's folder. The page contains its figures: it can be mailed, and
opens without a network. This needs matplotlib: ``pip install -e ".[plot]"``.
"""

import argparse

from mnist_cnn import cnn_model_fn

import minicnn as mc


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", help="the --model-dir of examples/mnist_cnn.py")
    parser.add_argument("--data", default="mnist", help="a folder of IDX files instead of MNIST")
    args = parser.parse_args()
    test = mc.datasets.load_dataset(args.data).test
    classifier = mc.Estimator(cnn_model_fn, args.model_dir, params={"learning_rate": 0.001})
    try:
        page = mc.report(classifier, test.images, test.labels, name="test")
    except mc.CheckpointError as error:
        parser.error(f"{error}; train with examples/mnist_cnn.py --model-dir {args.model_dir}")
    except ImportError as error:
        parser.error(str(error))
    print(f"the page is {page}")


if __name__ == "__main__":
    main()
