"""Fixtures for the tests of the extras: the examples as modules, and a trained model."""

import contextlib
import importlib
import io
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def example():
    """Import an example by name, with its folder on the path, as when it is run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        yield importlib.import_module


@pytest.fixture(scope="session")
def digit_model(example, tmp_path_factory):
    """The folder of a model that recognizes digits well enough: 120 steps of training."""
    folder = tmp_path_factory.mktemp("digit_model")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        example("draw_digit").train(folder, steps=120)
    assert "accuracy on the 10,000 test images: 0.9" in printed.getvalue()
    return folder
