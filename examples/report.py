"""Show what a model of examples/mnist_cnn.py has learnt, as figures and one HTML page.

    python examples/mnist_cnn.py --steps 2000
    python examples/report.py mnist_cnn_model

Writes ``report.html`` and the figures as PNG into a folder ``report`` in the model's folder. The
page contains its figures: it can be mailed, and opens without a network. This needs matplotlib:
``pip install -e ".[plot]"``.
"""

import argparse
import base64
import html
from pathlib import Path
from string import Template

import numpy as np
from mnist_cnn import cnn_model_fn

import minicnn as mc
from minicnn import plots
from minicnn.core.extras import require
from minicnn.core.files import replacing
from minicnn.core.weights import PARAMETERS
from minicnn.estimator import checkpoints

PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the model in $name has learnt</title>
<style>
body { max-width: 46rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5;
       font-family: system-ui, sans-serif; color: #222; background: #fff; }
h1, h2 { line-height: 1.2; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem; margin: 1.5rem 0; }
dt { color: #555; }
dd { margin: 0; font-size: 1.6rem; }
img { max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: 0.8rem; background: #f4f4f4; }
</style>
</head>
<body>
<h1>What the model in $name has learnt</h1>
<dl>$facts</dl>
$sections
<h2>The network</h2>
<pre>$network</pre>
</body>
</html>
""")
SECTION = Template("""<section>
<h2>$title</h2>
<p>$text</p>
<p><img alt="$alt" src="data:image/png;base64,$data"></p>
</section>""")


def trained_graph(weights):
    """Return the graph that predicts, with the weights of a checkpoint, and its placeholder."""
    graph = mc.Graph()
    features = graph.placeholder("features", (None, 784), np.float32)
    cnn_model_fn(features, None, mc.ModeKeys.INFER, {})
    for name, parameter in graph.parameters.items():
        parameter.value[...] = weights[name]
    return graph, features


def most_confused(labels, predictions):
    """Return (count, true class, predicted class) of the most frequent mistake."""
    counts = mc.metrics.confusion_matrix(labels, predictions)
    np.fill_diagonal(counts, 0)
    true, predicted = np.unravel_index(counts.argmax(), counts.shape)
    return counts[true, predicted], true, predicted


def describe(classifier, checkpoint, test):
    """Return the page's facts, its sections (name, title, text, alt, figure) and the network."""
    weights = checkpoint.part(PARAMETERS)
    graph, features = trained_graph(weights)
    outputs = classifier.predict(
        test.images, as_iterable=False, checkpoint_path=checkpoint.path
    )
    classes, probabilities = outputs["classes"], outputs["probabilities"]
    given = probabilities[np.arange(len(test.labels)), test.labels]  # to the true class
    loss = -np.log(np.maximum(given, np.finfo(given.dtype).tiny), dtype=np.float64).mean()
    accuracy = mc.metrics.accuracy(test.labels, classes)
    wrong = int((classes != test.labels).sum())
    facts = {
        "test accuracy": f"{accuracy:.2%}",
        "test loss": f"{loss:.4f}",
        "parameters": f"{sum(p.value.size for p in graph.parameters.values()):,}",
        "test images": f"{len(test.labels):,}",
    }

    conv = graph.find("conv2d")
    maps = graph.plan([conv]).forward({features: test.images[:1]}, mc.Context(save=False))[conv]
    silent = int((maps[0].max(axis=(0, 1)) == 0).sum())
    kernel = weights["conv2d/kernel"]
    times, true, predicted = most_confused(test.labels, classes)
    sections = [
        (
            "learning_curve", "How it learnt",
            "Each point is an evaluation recorded in the model's folder "
            "(<code>evaluations.jsonl</code>), and each line is a data set by its name; the loss "
            "of the training steps is not recorded. On the test images the loss is now "
            f"{loss:.4f}: the mean of &minus;log p, where p is the probability of the true "
            "digit. Guessing gives log 10 = 2.3026.",
            "Curves of the recorded evaluations over the training steps",
            plots.learning_curve(classifier.model_dir),
        ),
        (
            "confusion_matrix", "What it mixes up",
            f"It reads {accuracy:.2%} of the {len(test.labels):,} test images right and {wrong:,} "
            f"wrong. Its most frequent mistake: it read a {true} as a {predicted} {times} times.",
            "Table of true against predicted digits, with most images on the diagonal",
            plots.confusion_matrix(test.labels, classes),
        ),
        (
            "worst_mistakes", "Its worst mistakes",
            f"Of the {wrong:,} misread images, those whose true digit has the lowest probability. "
            "Each title shows the prediction, the label, and the probabilities.",
            "Misread digits, each with the model's reading and its label",
            plots.worst_mistakes(test.images.reshape(-1, 28, 28), test.labels, probabilities),
        ),
        (
            "filters", "What the first layer detects",
            f"The first convolution has {kernel.shape[3]} filters of {kernel.shape[0]} &times; "
            f"{kernel.shape[1]} weights: {kernel.size:,} of the {facts['parameters']} parameters. "
            "A filter responds where ink covers its red weights and not its blue ones.",
            "Patterns of the first layer's filters, red positive, blue negative",
            plots.filters(kernel),
        ),
        (
            "feature_maps", "What the first layer computes",
            f"The outputs of these filters, after ReLU, for the first test image, a "
            f"{test.labels[0]}; {silent} of {kernel.shape[3]} are zero everywhere.",
            "The output of each filter of the first layer for this image",
            plots.feature_maps(maps[0]),
        ),
    ]
    return facts, sections, graph.summary()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", help="the --model-dir of examples/mnist_cnn.py")
    parser.add_argument("--data", default="mnist", help="a folder of IDX files instead of MNIST")
    args = parser.parse_args()
    try:
        require("matplotlib.figure", "plot")
    except ImportError as error:
        parser.error(str(error))
    folder = Path(args.model_dir) / "report"
    if folder.is_symlink():
        parser.error(f"{folder} is a symbolic link; remove it: the report is written there")
    test = mc.datasets.load_dataset(args.data).test
    classifier = mc.Estimator(cnn_model_fn, args.model_dir, params={"learning_rate": 0.001})
    try:
        # One checkpoint for the whole page: another program may be training in the folder.
        checkpoint = checkpoints.newest(Path(args.model_dir))
        if checkpoint is None:
            raise mc.CheckpointError(f"there is no checkpoint in {args.model_dir}")
        facts, sections, network = describe(classifier, checkpoint, test)
    except mc.CheckpointError as error:
        parser.error(f"{error}; train with examples/mnist_cnn.py --model-dir {args.model_dir}")

    folder.mkdir(exist_ok=True)
    blocks = []
    for name, title, text, alt, figure in sections:
        picture = folder / f"{name}.png"
        with replacing(picture) as file:  # the folder may be a stranger's, and the file a link
            figure.savefig(file, dpi=120)
        data = base64.b64encode(picture.read_bytes()).decode()
        blocks.append(SECTION.substitute(title=title, text=text, alt=alt, data=data))
    page = folder / "report.html"
    content = PAGE.substitute(
        name=html.escape(Path(args.model_dir).resolve().name),
        facts="".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in facts.items()),
        sections="\n".join(blocks),
        network=html.escape(network),
    )
    with replacing(page) as file:
        file.write(content.encode())
    print(", ".join(f"{name} {value}" for name, value in facts.items()))
    print(f"the page is {page}; the figures are beside it as PNG files")


if __name__ == "__main__":
    main()
