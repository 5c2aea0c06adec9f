"""Bad input for functions that need an extra."""

import bad_input
import pytest


@pytest.mark.parametrize("name", bad_input.names(extras=True))
@pytest.mark.parametrize("check", ["check_valid", "check_refused", "check_layouts"])
def test_bad_input(name, check, tmp_path, monkeypatch):
    for package in bad_input.extra(name):
        pytest.importorskip(package, reason='pip install -e ".[test-all]"')
    monkeypatch.chdir(tmp_path)
    getattr(bad_input, check)(name)
