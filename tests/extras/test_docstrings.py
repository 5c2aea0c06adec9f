"""Run the docstring examples that need an extra."""

import docstrings
import pytest


@pytest.mark.parametrize("module", docstrings.EXTRAS)
def test_docstring_examples(module, tmp_path, monkeypatch):
    for package in docstrings.EXTRAS[module]:
        pytest.importorskip(package, reason='pip install -e ".[test-all]"')
    monkeypatch.chdir(tmp_path)
    docstrings.run(module)
