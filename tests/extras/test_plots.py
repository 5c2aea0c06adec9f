"""Tests of minicnn.plots, which look into the figures."""

import io
import json
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason='pip install -e ".[plot]"')


import minicnn as mc
from minicnn import plots

EXAMPLES = Path(__file__).parents[2] / "examples"
RECORDS = [
    {"global_step": 300, "accuracy": 0.75, "loss": 0.5},
    {"global_step": 100, "accuracy": 0.25, "loss": 2.0},
    {"global_step": 200, "loss": 1.0},
]


@pytest.fixture(autouse=True)
def drawable(monkeypatch):
    """Render each figure of a test, and check that none is registered with pyplot."""
    made, figure = [], plots._figure
    monkeypatch.setattr(plots, "_figure", lambda *size: made.append(figure(*size)) or made[-1])
    yield
    for one in made:
        file = io.BytesIO()
        one.savefig(file)
        assert file.getvalue().startswith(b"\x89PNG")
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def image_of(axes):
    (image,) = axes.get_images()
    return np.ma.filled(image.get_array().astype(float), np.nan)


# Learning curve -----------------------------------------------------------------------------------


def test_learning_curve_has_a_panel_for_each_number(tmp_path):
    (tmp_path / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in RECORDS))
    for source in (RECORDS, tmp_path, str(tmp_path)):
        accuracy, loss = plots.learning_curve(source).axes
        assert accuracy.lines[0].get_xydata().tolist() == [[100, 0.25], [300, 0.75]]
        assert loss.lines[0].get_xydata().tolist() == [[100, 2.0], [200, 1.0], [300, 0.5]]
        assert loss.get_title() == "loss 0.5000 after 300 steps"
        assert accuracy.get_xlabel() == "training (steps)"
        assert accuracy.get_ylabel().startswith("accuracy (share")


def test_learning_curve_reads_what_the_estimator_writes(tmp_path):
    def model_fn(features, labels, mode):
        logits = mc.layers.dense(features, units=2)
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
        train_op = mc.optimize_loss(loss, learning_rate=0.1)
        return mc.ModelFnOps(mode, {"classes": mc.argmax(logits, axis=1)}, loss, train_op)

    x, y = np.eye(2, dtype=np.float32), np.arange(2)
    model = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0))
    monitor = mc.hooks.ValidationMonitor(x, y, every_n_steps=2)
    model.fit(x, y, steps=5, monitors=[monitor])
    (loss,) = plots.learning_curve(tmp_path).axes
    training, validation = loss.lines
    assert training.get_xdata().tolist() == [1, 2, 3, 4, 5]
    assert validation.get_xdata().tolist() == [3, 5]
    assert validation.get_ydata()[1] == model.evaluate(x, y)["loss"]


@pytest.mark.parametrize("source", [[], "no folder", [{"global_step": 1}]])
def test_learning_curve_without_evaluations(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"at least one evaluation.*call fit first"):
        plots.learning_curve(source)


def test_learning_curve_passes_over_a_last_line_that_is_half_written(tmp_path):
    whole = json.dumps(RECORDS[1]).encode() + b"\n" + json.dumps(RECORDS[2]).encode()
    for last, steps in ((b"", [100, 200]), (b'\n{"global_step": 300, "lo', [100, 200])):
        (tmp_path / "evaluations.jsonl").write_bytes(whole + last)
        _, loss = plots.learning_curve(tmp_path).axes
        assert loss.lines[0].get_xdata().tolist() == steps


@pytest.mark.parametrize("line", [b'{"global_step": 9, "lo', b"", b"\xff{}", b"[" * 9999],
                         ids=["half", "blank", "not UTF-8", "too deep"])
def test_learning_curve_passes_over_a_damaged_line(tmp_path, line):
    lines = [json.dumps(RECORDS[1]).encode(), line, json.dumps(RECORDS[2]).encode()]
    (tmp_path / "evaluations.jsonl").write_bytes(b"\n".join(lines))
    _, loss = plots.learning_curve(tmp_path).axes
    assert loss.lines[0].get_xdata().tolist() == [100, 200]


@pytest.mark.parametrize("line", [
    "[1]", '{"loss": 1}', '{"STEP": 1, "loss": "1"}', '{"STEP": NaN, "loss": 1}',
    '{"STEP": -1, "loss": 1}', '{"STEP": true, "loss": 1}',
])
@pytest.mark.parametrize(("file", "step"), [("evaluations", "global_step"), ("history", "step")])
def test_learning_curve_leaves_out_a_line_that_is_no_record(tmp_path, caplog, file, step, line):
    path = tmp_path / f"{file}.jsonl"
    lines = ['{"STEP": 1, "loss": 2}', line, '{"STEP": 3, "loss": 1}']
    path.write_text("\n".join(lines).replace("STEP", step) + "\n")
    (loss,) = plots.learning_curve(tmp_path).axes
    assert loss.lines[0].get_xdata().tolist() == [1, 3]
    assert f"{path}: 1 lines are left out, since they are not numbers by name" in caplog.text
    with pytest.raises((TypeError, ValueError), match=r"`source.*` must be"):  # from the user
        plots.learning_curve([json.loads(line.replace("STEP", step))])


def test_learning_curve_leaves_out_what_is_no_number():
    more = {"global_step": 400, "accuracy": None, "loss": float("nan"), "never": None}
    accuracy, loss = plots.learning_curve([*RECORDS, more]).axes
    assert accuracy.get_title() == "accuracy 0.7500 after 300 steps"
    assert loss.lines[0].get_xdata().tolist() == [100, 200, 300]
    with pytest.raises(ValueError, match="at least one evaluation"):
        plots.learning_curve([{"global_step": 1, "loss": None}])


def test_learning_curve_of_a_generator():
    assert len(plots.learning_curve(record for record in RECORDS).axes) == 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a symbolic link"])
def test_learning_curve_reads_regular_files_only(tmp_path, kind):
    path = tmp_path / "evaluations.jsonl"
    (tmp_path / "other").write_text('{"global_step": 1, "loss": 1}')
    make = {"a named pipe": os.mkfifo, "a folder": os.mkdir,
            "a symbolic link": lambda path: os.symlink("other", path)}
    make[kind](path)
    with pytest.raises(ValueError, match="at least one evaluation"):
        plots.learning_curve(tmp_path)


def write_lines(folder, *records):
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    (folder / "evaluations.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_learning_curve_has_a_line_for_each_name(tmp_path):
    of_validation = [{"name": "validation", "rows": 9, **record} for record in RECORDS]
    write_lines(tmp_path, *of_validation, {"global_step": 300, "name": "test", "loss": 0.6},
                {"global_step": 300, "loss": 0.7})  # of a version without names
    accuracy, loss = plots.learning_curve(tmp_path).axes
    assert accuracy.lines[0].get_xydata().tolist() == [[100, 0.25], [300, 0.75]]
    assert accuracy.get_title() == "accuracy 0.7500 after 300 steps"
    assert accuracy.get_legend() is None
    curves = [line.get_xydata().tolist() for line in loss.lines]
    assert curves == [[[100, 2.0], [200, 1.0], [300, 0.5]], [[300, 0.6]], [[300, 0.7]]]
    said = [text.get_text() for text in loss.get_legend().get_texts()]
    assert said == ["0.5000 validation", "0.6000 test", "0.7000 evaluation"]
    assert loss.get_title() == "loss"
    assert len({line.get_color() for line in loss.lines}) == 3
    assert accuracy.lines[0].get_color() == loss.lines[0].get_color()


HOSTILE = {
    "many numbers": {"global_step": 1, **{f"n{i}": i for i in range(200)}},
    "a step of 400 digits": f'{{"global_step": {"9" * 400}, "loss": 1}}',
    "a step below 0": {"global_step": -1, "loss": 1},
    "5000 digits": f'{{"global_step": 1, "loss": {"9" * 5000}}}',
    "a long name": {"global_step": 1, "x" * 10**5: 1},
    "a name with lines": {"global_step": 1, "a\n\n": 1},
    "half a character": {"global_step": 1, "\ud800": 1},
    "an empty name": {"global_step": 1, "": 1},
    "data without a name": {"global_step": 1, "loss": 1, "name": None},
    "data with a list for a name": {"global_step": 1, "loss": 1, "name": ["a"]},
    "a nested number": {"global_step": 1, "loss": {"a": 1}},
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE)
def test_learning_curve_refuses_what_no_evaluation_writes(tmp_path, record):
    write_lines(tmp_path, record)
    with pytest.raises((TypeError, ValueError), match="`source"):
        plots.learning_curve(tmp_path)


def test_learning_curve_refuses_more_than_a_picture_can_show(tmp_path):
    write_lines(tmp_path, *({"global_step": 1, "loss": 1, "name": f"n{i}"} for i in range(17)))
    with pytest.raises(ValueError, match="at most 16 names, got 1 and 17; give a list of the rec"):
        plots.learning_curve(tmp_path)


def test_learning_curve_draws_what_is_sound(tmp_path):
    write_lines(
        tmp_path, {"global_step": 2**53 - 1, "lo$s": 1e100, "name": "$x_{", "W" * 200: 1},
        f'{{"global_step": 3, "lo$s": {"9" * 400}, "name": "_a"}}',
        {"global_step": 4, "lo$s": -1e100, "name": "_a"}, {"global_step": 5, "lo$s": math.inf},
    )
    _, other = plots.learning_curve(tmp_path).axes  # the fixture renders it
    assert other.get_title() == other.get_ylabel() == r"lo\$s"
    assert [line.get_ydata().tolist() for line in other.lines] == [[1e100], [-1e100]]
    said = [text.get_text() for text in other.get_legend().get_texts()]
    assert said == [r"1e+100 \$x_{", "-1e+100 _a"]


ROWS = [
    {"step": 50, "loss": 2.5, "learning_rate": 0.1, "seconds": 1.0},
    {"step": 100, "loss": 1.5, "learning_rate": 0.1, "seconds": 2.0, "validation_loss": 2.0,
     "validation_accuracy": 0.25},
    {"step": 200, "loss": 0.5, "learning_rate": 0.05, "seconds": 4.0, "validation_loss": 1.0,
     "validation_accuracy": 0.75},
]
COLUMNS = {name: [row.get(name) for row in ROWS] for name in ROWS[2]}


@pytest.mark.parametrize("source", [ROWS, COLUMNS, SimpleNamespace(rows=ROWS)])
def test_learning_curve_of_a_history_draws_training_and_validation_together(source):
    accuracy, loss = plots.learning_curve(source).axes
    curves = {line.get_label(): line.get_xydata().tolist() for line in loss.lines}
    assert curves == {
        "0.5000 training": [[50, 2.5], [100, 1.5], [200, 0.5]],
        "1.0000 validation": [[100, 2.0], [200, 1.0]],
    }
    assert accuracy.lines[0].get_xydata().tolist() == [[100, 0.25], [200, 0.75]]
    assert accuracy.lines[0].get_color() == loss.lines[1].get_color() != loss.lines[0].get_color()


def test_learning_curve_of_a_folder_takes_evaluations_once(tmp_path):
    (tmp_path / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (loss,) = plots.learning_curve(tmp_path).axes  # no evaluations.jsonl: only the training
    assert loss.get_title() == "loss 0.5000 after 200 steps"
    write_lines(tmp_path, {"global_step": 200, "loss": 1.0, "name": "validation"})
    (loss,) = plots.learning_curve(tmp_path).axes
    said = [text.get_text() for text in loss.get_legend().get_texts()]
    assert said == ["0.5000 training", "1.0000 validation"]
    assert [len(line.get_xdata()) for line in loss.lines] == [3, 1]


def test_learning_curve_marks_few_points():
    many = [{"step": step, "loss": 1 / step} for step in range(1, 200)]
    lines = [plots.learning_curve(rows).axes[0].lines[0] for rows in (many, many[:20])]
    assert [line.get_marker() for line in lines] == ["", "o"]


# Confusion matrix ---------------------------------------------------------------------------------


def test_confusion_matrix_shows_counts_and_shares():
    labels, predictions = [0] * 4 + [1] * 2 + [2], [0, 0, 0, 1, 1, 1, 0]
    axes = plots.confusion_matrix(labels, predictions).axes[0]
    numbers = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row)
    assert numbers == {(0, 0): "3", (1, 0): "1", (1, 1): "2", (0, 2): "1"}
    np.testing.assert_array_equal(image_of(axes), [[0.75, 0.25, 0], [0, 1, 0], [1, 0, 0]])
    assert "7 rows, 71.43%" in axes.get_title()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


def test_confusion_matrix_can_be_read_on_every_shade():
    labels = np.repeat(0, 1000)
    for wrong in range(0, 1001, 100):
        axes = plots.confusion_matrix(labels, np.arange(1000) < wrong).axes[0]
        image = axes.get_images()[0]
        for text in axes.texts:
            column, row = text.get_position()
            shade = image.cmap(image.norm(image_of(axes)[row, column]))[:3]
            ink = {"white": 1.0, "black": 0.0}[text.get_color()]
            assert contrast(shade, (ink,) * 3) >= 4.5  # WCAG 2.2, level AA


def contrast(*colours):
    linear = [
        np.where((c := np.array(colour)) <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
        for colour in colours
    ]
    dark, light = sorted(float(value @ [0.2126, 0.7152, 0.0722]) for value in linear)
    return (light + 0.05) / (dark + 0.05)


def test_a_class_that_never_occurs_has_an_empty_row():
    axes = plots.confusion_matrix([0, 2], [0, 1]).axes[0]
    assert image_of(axes)[1].tolist() == [0, 0, 0]


# Grids --------------------------------------------------------------------------------------------


def test_filters_are_drawn_with_zero_in_the_middle():
    kernel = np.random.default_rng(0).normal(size=(3, 2, 1, 10))
    axes, bar = plots.filters(kernel).axes
    grid = image_of(axes)
    assert grid.shape == (2 * 3 + 1, 8 * 2 + 7)
    for number in range(10):
        row, column = divmod(number, 8)
        tile = grid[4 * row : 4 * row + 3, 3 * column : 3 * column + 2]
        np.testing.assert_allclose(tile, kernel[:, :, 0, number])
    assert np.isnan(grid[3]).all()
    assert np.isnan(grid[4:, 6:]).all()  # two of eight places are taken
    image = axes.get_images()[0]
    assert image.get_clim() == (-np.abs(kernel).max(), np.abs(kernel).max())
    assert bar.get_ylabel() == "weight"


def test_filters_of_three_channels_are_in_colour():
    kernel = np.zeros((1, 1, 3, 2))
    kernel[0, 0, :, 1] = 2, 0, -1
    (axes,) = plots.filters(kernel).axes  # no bar: the colours are the weights
    np.testing.assert_array_equal(
        axes.get_images()[0].get_array(), [[[0.5, 0.5, 0.5], [1, 1, 1], [1, 0.5, 0.25]]]
    )


def test_filters_that_are_all_zero():
    assert image_of(plots.filters(np.zeros((2, 2, 1, 1))).axes[0]).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("value, dtype", [(200, np.uint8), (-128, np.int8), (6e4, np.float16)])
def test_filters_of_a_type_that_would_overflow(value, dtype):
    kernel = np.array([0, value], dtype).reshape(1, 1, 1, 2)
    grid = plots.filter_grid(kernel)
    np.testing.assert_array_equal(grid, [[0.5, np.nan, value > 0]])
    low, high = plots.filters(kernel).axes[0].get_images()[0].get_clim()
    assert -low == high == abs(value)


@pytest.mark.parametrize("shape", [(5, 5, 2, 8), (5, 5, 32)])
def test_filters_refuses_other_forms(shape):
    with pytest.raises(ValueError, match=r"`kernel` must be .*kernel\[:, :, :1\]"):
        plots.filters(np.zeros(shape))


def test_feature_maps_are_the_channels_in_their_order():
    maps = np.arange(4 * 5 * 100.0).reshape(4, 5, 100)
    axes, bar = plots.feature_maps(maps).axes
    grid = image_of(axes)
    assert grid.shape == (10 * 5 - 1, 10 * 6 - 1)  # ten columns
    for number in range(100):
        row, column = divmod(number, 10)
        tile = grid[5 * row : 5 * row + 4, 6 * column : 6 * column + 5]
        np.testing.assert_array_equal(tile, maps[..., number])
    assert axes.get_title() == "100 feature maps of 4 x 5"
    assert bar.get_ylabel() == "activation"


def test_feature_maps_refuses_a_batch():
    with pytest.raises(ValueError, match=r"of one image.*activations\[0\]"):
        plots.feature_maps(np.zeros((1, 4, 4, 8)))


# Worst mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "form", [(2, 2), (2, 2, 1), (2, 2, 3), (1, 5), (5, 1), (1, 5, 1), (1, 1, 3)]
)
def test_worst_mistakes_come_in_order(form):
    images = np.ones((5, *form)) * np.arange(5).reshape(5, *[1] * len(form)) / 4
    labels = np.array([0, 0, 1, 1, 2])
    probabilities = np.array([
        [0.4, 0.5, 0.1], [0.9, 0.1, 0.0], [0.6, 0.1, 0.3], [0.2, 0.3, 0.5], [0.5, 0.3, 0.2],
    ])
    figure = plots.worst_mistakes(images, labels, probabilities, count=3)
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert [image_of(axes).max() for axes in shown] == [0.5, 1.0, 0.75]  # images 2, 4, 3
    assert [axes.get_title() for axes in shown] == [
        "0, not 1\n60% sure", "0, not 2\n50% sure", "2, not 1\n50% sure",
    ]
    assert figure.get_suptitle() == "4 of 5 images are misread"


def test_worst_mistakes_of_a_model_without():
    figure = plots.worst_mistakes(np.zeros((2, 3, 3)), [0, 1], np.eye(2))
    assert figure.get_suptitle() == "0 of 2 images are misread"
    assert not any(axes.get_images() for axes in figure.axes)


@pytest.mark.parametrize(
    ("images", "labels", "probabilities"),
    [((2, 9), 2, (2, 3)), ((2, 3, 3, 2), 2, (2, 3)), ((2, 3, 3, 5), 2, (2, 3)),
     ((2, 3, 3, 1, 1), 2, (2, 3)), ((2, 3, 3), 3, (2, 3)), ((2, 3, 3), 2, (3, 3)),
     ((2, 3, 3), 2, (2,))],
)
def test_worst_mistakes_refuses_arrays_that_do_not_fit(images, labels, probabilities):
    with pytest.raises(ValueError, match="must fit, got shapes"):
        plots.worst_mistakes(np.zeros(images), np.zeros(labels, int), np.zeros(probabilities))
