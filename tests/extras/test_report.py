"""Tests of mc.report: the page, its numbers and its pictures, for every kind of model."""

import html.parser
import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason='pip install -e ".[plot]"')

from tolerances import assert_same_bits

import minicnn as mc

EXAMPLES = Path(__file__).parents[2] / "examples"
X = np.random.default_rng(0).random((40, 8, 8, 1), np.float32)
Y = np.arange(40) % 4


@pytest.fixture
def undrawn(monkeypatch):
    """Leave out the figures, which take most of the time."""
    monkeypatch.setattr(sys.modules["minicnn.report"], "_figure", lambda title, draw: "")


class Page(html.parser.HTMLParser):
    """Collect the tags and the text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text("utf-8"))
        self.headings = re.findall("<h2>(.*?)</h2>", path.read_text("utf-8"))
        self.figures = re.findall("(?s)<svg.*?</svg>", path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def trained(folder, **options):
    """Return a Sequential that was trained in a folder."""
    layers = [mc.layers.Conv2D(3, 3, activation="relu"), mc.layers.Flatten(), mc.layers.Dense(4)]
    model = mc.Sequential(layers)
    options = {"steps": 4, "validation_data": (X[:12], Y[:12]), **options}
    model.fit(X, Y, model_dir=folder, seed=0, verbose=False, **options)
    return model


def model_fn(features, labels, mode, params):
    flat = mc.reshape(features, [-1, 64])
    logits = mc.layers.dense(flat, units=4)
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 4), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
    return mc.ModelFnOps(mode, params["predictions"](logits), loss, train_op)


def estimator(folder, predictions):
    config = mc.RunConfig(seed=0, progress=False)
    made = mc.Estimator(model_fn, folder, params={"predictions": predictions}, config=config)
    return made.fit(X, Y, steps=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder, its model and the page, written where a link was."""
    folder = tmp_path_factory.mktemp("runs") / "a <model>"
    model = trained(folder)
    victim = folder.parent / "victim"
    victim.write_bytes(b"important")
    (folder / "report.html").symlink_to(victim)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.name != "report.html"}
    path = mc.report(folder, X, Y, model=model, name="test & more")
    assert path == folder / "report.html" and not path.is_symlink()
    assert victim.read_bytes() == b"important"  # replaced, not written through
    assert before == {p: p.read_bytes() for p in folder.iterdir() if p != path}
    return folder, model, path


def test_a_page_of_a_sequential(written):
    folder, model, path = written
    results = model.evaluate(X, Y, verbose=False)
    page = Page(path)
    assert page.headings == [
        "How it learnt", "What it mixes up", "Its worst mistakes", "What the first layer detects",
        "The parameters",
    ]
    right = round(results["accuracy"] * 40)
    said = f"accuracy on the 40 rows of test & more, which were given to this report: {right} are"
    assert said in page.text and f"{results['accuracy']:.2%}accuracy on" in page.text
    assert f"{results['loss']:.4f}loss on the 40 rows of test & more" in page.text
    assert f"{sum(p.value.size for p in model.parameters):,}parameters" in page.text
    last = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])
    assert f"validation12{last['global_step']}accuracy {last['accuracy']:.4g}, loss" in page.text
    assert "Report on a <model>" in page.text
    assert len(page.figures) == 4
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    addressed = {name for _, attributes in page.tags for name, value in attributes.items()
                 if "http" in (value or "")}
    assert all(name.startswith(("xmlns", "rdf:")) for name in addressed)  # nothing is loaded


def test_figures_can_be_read_on_light_and_dark_pages(written):
    for figure in Page(written[2]).figures:
        assert "currentColor" in figure
        assert "#222222" not in figure
        (ground,) = re.findall(r'<g id="patch_1">\s*<path[^>]*style="([^"]*)"', figure)
        assert ground == "fill: none"  # the page shows through


def test_a_page_of_a_folder_alone(tmp_path, undrawn):
    trained(tmp_path)
    page = Page(mc.report(str(tmp_path), path=tmp_path / "other.html"))
    assert page.headings == ["How it learnt", "What the first layer detects", "The parameters"]
    assert "conv2d/kernel3 x 3 x 1 x 327" in page.text
    assert not (tmp_path / "report.html").exists()


def test_a_page_of_a_folder_without_curves(tmp_path, undrawn, caplog):
    trained(tmp_path)
    (tmp_path / "history.jsonl").unlink()
    (tmp_path / "evaluations.jsonl").unlink()
    assert "How it learnt" not in Page(mc.report(tmp_path)).headings
    assert "no learning curve: `source` must contain at least one evaluation" in caplog.text


@pytest.mark.parametrize("line", [
    "5", '{"loss": 1}', '{"global_step": 3, "loss": "1"}', '{"global_step": -3, "loss": 1}',
    '{"global_step": 3, "loss": 1, "name": 7}', '{"global_step": 3, "loss": {"a": 1}}',
])
def test_a_record_that_no_evaluation_writes_is_left_out(tmp_path, undrawn, caplog, line):
    trained(tmp_path)
    whole = Page(mc.report(tmp_path)).text
    with open(tmp_path / "evaluations.jsonl", "a") as file:
        file.write(f"{line}\n")
    assert Page(mc.report(tmp_path)).text == whole
    assert "evaluations.jsonl: 1 lines are left out" in caplog.text


def test_rows_without_the_model_that_predicts_them(tmp_path, undrawn):
    trained(tmp_path)
    with pytest.raises(TypeError, match="`model` must be the Estimator or Sequential that predic"):
        mc.report(tmp_path, np.zeros((2, 4), np.float32), [0, 1])


def test_numbers_that_cannot_be_drawn_are_left_out(tmp_path, undrawn):
    trained(tmp_path)
    with open(tmp_path / "evaluations.jsonl", "a") as file:
        file.write(f'{{"global_step": 9, "a": 1, "b": {"9" * 400}, "c": NaN, "name": "other"}}\n')
    assert "other9a 1What" in "".join(Page(mc.report(tmp_path)).text.split("\n"))


def test_a_page_of_a_run_without_a_finite_loss(tmp_path, undrawn, caplog):
    trained(tmp_path)
    (tmp_path / "evaluations.jsonl").unlink()
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": null}\n')
    assert "How it learnt" not in Page(mc.report(tmp_path)).headings
    assert "no learning curve" in caplog.text


def test_half_a_line_at_the_end_is_left_out(tmp_path, undrawn):
    trained(tmp_path)
    with open(tmp_path / "evaluations.jsonl", "a") as file:
        file.write('{"global_step": 9, "na')
    assert "validation124accuracy" in Page(mc.report(tmp_path)).text


@pytest.mark.parametrize("predictions", [
    lambda logits: logits,
    lambda logits: {"logits": logits, "classes": mc.argmax(logits, axis=1)},
    lambda logits: {"logits": logits, "p": mc.softmax(logits)},
], ids=["single", "logits", "both"])
def test_an_estimator_may_predict_logits_or_probabilities(tmp_path, undrawn, predictions):
    model = estimator(tmp_path, predictions)
    results = model.evaluate(X, Y)
    page = Page(mc.report(model, X, Y))
    assert f"{results['loss']:.4f}loss on the 40 rows of test" in page.text
    assert "What the first layer detects" not in page.headings  # there is no convolution


def test_an_estimator_that_predicts_no_classes_is_refused(tmp_path):
    model = estimator(tmp_path, lambda logits: {"classes": mc.argmax(logits, axis=1)})
    with pytest.raises(ValueError, match=r"must predict probabilities or logits, \(N, classes\)"):
        mc.report(model, X, Y)


def test_rows_that_are_no_images_have_no_pictures(tmp_path, undrawn):
    model = mc.Sequential([mc.layers.Dense(4)])
    model.fit(X.reshape(40, 64)[:, :60], Y, steps=2, model_dir=tmp_path, seed=0, verbose=False)
    page = Page(mc.report(tmp_path, X.reshape(40, 64)[:, :60], Y, model=model))
    assert "What it mixes up" in page.headings and "Its worst mistakes" not in page.headings


@pytest.mark.parametrize("rows, shape", [
    (X, (40, 8, 8, 1)), (X.reshape(40, 64), (40, 8, 8)), (X[..., 0], (40, 8, 8)),
    (X.reshape(40, 64)[:, :49], None), (X.reshape(40, 64)[:, :50], None),
    (np.repeat(X, 2, axis=3), None),
])
def test_what_counts_as_images(rows, shape):
    drawn = sys.modules["minicnn.report"]._as_images(255 * rows - 9)
    assert (None if drawn is None else drawn.shape) == shape
    assert drawn is None or (drawn.min(), drawn.max()) == (0, 1)


def test_a_folder_without_a_checkpoint(tmp_path, undrawn):
    with pytest.raises(mc.CheckpointError, match=r"no checkpoint in .*; train with this model_dir"):
        mc.report(tmp_path)


def test_a_page_is_of_one_checkpoint_while_another_program_trains(
    tmp_path, undrawn, monkeypatch
):
    model = estimator(tmp_path, lambda logits: {"logits": logits})
    expected = model.evaluate(X, Y)["loss"]
    before = model.get_variable_value("dense/kernel")
    newest = mc.estimator.checkpoints.newest

    def newest_and_train(*arguments):
        monkeypatch.setattr(mc.estimator.checkpoints, "newest", newest)
        found = newest(*arguments)
        model.fit(X, Y, steps=1)
        return found

    monkeypatch.setattr(mc.estimator.checkpoints, "newest", newest_and_train)
    page = Page(mc.report(model, X, Y))
    assert f"{expected:.4f}loss on" in page.text
    assert (model.get_variable_value("dense/kernel") != before).any()
    assert_same_bits(before, np.load(tmp_path / "model.ckpt-3.npz")["parameters/dense/kernel"])


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the example."""

    def run_report(*arguments):
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", ["report.py", *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / "report.py"), run_name="__main__")
        return capsys.readouterr().out

    return run_report


def test_the_example(run, undrawn, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    model_fn = runpy.run_path(str(EXAMPLES / "mnist_cnn.py"))["cnn_model_fn"]
    test = mc.datasets.load_dataset("mnist").test
    few = mc.datasets.Dataset(test.images[:60], test.labels[:60])
    monkeypatch.setattr(mc.datasets, "load_dataset", lambda name: SimpleNamespace(test=few))
    config = mc.RunConfig(seed=0, progress=False)
    model = mc.Estimator(model_fn, tmp_path, params={"learning_rate": 0.01}, config=config)
    model.fit(few.images, few.labels, batch_size=20, steps=1)
    assert f"the page is {tmp_path / 'report.html'}" in run(tmp_path)
    assert "on the 60 rows of test" in Page(tmp_path / "report.html").text


def test_the_example_without_a_model_says_what_to_do(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(tmp_path / "nothing")
    assert "train with examples/mnist_cnn.py" in capsys.readouterr().err
