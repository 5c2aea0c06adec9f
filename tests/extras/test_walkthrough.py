"""The walkthrough runs as a program, with and without pictures, and as a notebook."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason='pip install -e ".[plot]"')

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "examples/walkthrough.py").read_text("utf-8")
# [before the first cell, mark, cell, mark, cell, ...]
_PARTS = re.split(r"^# %%(.*)\n", TEXT, flags=re.MULTILINE)
CELLS = list(zip(_PARTS[1::2], _PARTS[2::2], strict=True))
WORDS = [cell for mark, cell in CELLS if mark == " [markdown]"]
CODE = [cell for mark, cell in CELLS if mark == ""]
WITHOUT_MATPLOTLIB = (
    "import runpy, sys; sys.modules['matplotlib'] = None; sys.argv = ['walkthrough.py'];"
    "runpy.run_path('examples/walkthrough.py', run_name='__main__')"
)


def run(*arguments):
    command = [sys.executable, "-W", "error", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def sections(text):
    return [int(number) for number in re.findall(r"^(\d+)\. ", text, re.MULTILINE)]


def test_as_a_program(tmp_path):
    story = run("examples/walkthrough.py", "--output", str(tmp_path / "pictures"))
    assert sections(story) == list(range(1, 11))
    assert f"All {story.count('[holds]')} claims hold." in story
    assert "dw = columns' dy" in story and "p - y" in story
    assert float(re.search(r"([\d.]+)% of the 10,000 test images", story)[1]) > 90
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == ["feature_maps.png", "filters.png"]
    for path in pictures:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert f"picture: {path}\n" in story


def test_without_matplotlib_only_the_pictures_are_left_out():
    story = run("-c", WITHOUT_MATPLOTLIB)
    assert story.count("no picture: matplotlib cannot be imported; install it with: pip") == 2
    assert f"All {story.count('[holds]')} claims hold." in story


def test_a_claim_that_does_not_hold_stops_it():
    claim = next(node for node in ast.parse(TEXT).body if getattr(node, "name", "") == "claim")
    names = {"claims": []}
    exec(ast.unparse(claim), names)
    names["claim"]("1 = 1", True)
    with pytest.raises(AssertionError, match="1 = 2"):
        names["claim"]("1 = 2", False)
    assert names["claims"] == ["1 = 1"]


def test_every_cell_is_text_or_code_and_short():
    assert _PARTS[0] == ""
    assert len(WORDS) + len(CODE) == len(CELLS)
    for cell in WORDS:
        lines = cell.strip().splitlines()
        assert lines and all(line == "#" or line.startswith("# ") for line in lines), cell
        assert cell.count("$$") % 2 == 0
    for cell in CODE:
        assert ast.parse(cell).body, cell
        assert len(cell.strip().splitlines()) <= 30, cell


def test_every_section_has_a_heading_and_a_claim():
    headings = "".join(re.findall(r"^# ## (\d+\. .*\n)", "".join(WORDS), re.MULTILINE))
    printed = "".join(re.findall(r'^print\("(?:\\n)?(\d+\. .*)"\)\n', "".join(CODE), re.MULTILINE))
    assert sections(headings) == list(range(1, 11))
    for heading in headings.splitlines():
        assert heading in printed
    for section in re.split(r"^# ## \d+\. ", TEXT, flags=re.MULTILINE)[1:]:
        assert "\nclaim(" in section


def test_files_that_the_text_names_are_there():
    named = set(re.findall(r"`((?:minicnn|examples|tests)/[\w/]+\.py|[A-Z]+\.md)`", TEXT))
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).is_file()] == []
