"""Parts of the examples that `.ci/run` runs as programs, which check their own results."""

import ast
from pathlib import Path

import numpy as np
from tolerances import assert_close

import minicnn as mc

EXAMPLES = Path(__file__).parents[1] / "examples"


def function(example, name):
    """Return a function of a program without running the program."""
    tree = ast.parse((EXAMPLES / example).read_text("utf-8"))
    node = next(node for node in tree.body if getattr(node, "name", "") == name)
    names = {"np": np, "mc": mc}
    exec(ast.unparse(node), names)
    return names[name]


def test_regression_turns_images():
    turned = function("regression.py", "turned")
    images = np.random.default_rng(0).random((4, 7, 7, 1), np.float32)
    turns = np.array([0.0, 90, -90, 180])
    expected = [np.rot90(x, round(turn / 90)) for x, turn in zip(images, turns, strict=True)]
    assert_close(turned(images, turns), np.stack(expected))
    single = np.zeros((1, 9, 9, 1), np.float32)
    single[0, 4, 7] = 1  # three columns to the right of the middle
    y = turned(single, np.array([45.0]))[0, :, :, 0]
    row, column = (np.average(np.arange(9), weights=y.sum(axis=axis)) for axis in (1, 0))
    assert abs(row - (4 - 3 / 2**0.5)) < 0.1 and abs(column - (4 + 3 / 2**0.5)) < 0.1


def test_the_model_of_two_inputs_uses_both(tmp_path):
    model_fn = function("two_inputs.py", "model_fn")
    rng = np.random.default_rng(0)
    x = {name: rng.random((20, 8, 8, 1), np.float32) for name in ("left", "right")}
    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(model_fn, str(tmp_path), config=config)
    estimator.fit(x, rng.integers(19, size=20), steps=2, batch_size=10)
    before = estimator.predict(x, as_iterable=False)["probabilities"]
    for name in x:
        changed = estimator.predict(x | {name: 1 - x[name]}, as_iterable=False)["probabilities"]
        assert (changed != before).any(axis=1).all()
