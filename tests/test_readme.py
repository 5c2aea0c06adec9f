"""The programs of the README run unchanged, and do what it says."""

import ast
import json
import re

import pytest
import readme


def test_there_are_programs():
    assert len(readme.PLAIN) == 4


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Run each program once; return what it prints by a word of the program."""
    words = ("fit", "model_fn", "next", "Square")
    folders = {word: tmp_path_factory.mktemp(word) for word in words}
    programs = dict(zip(folders, readme.PLAIN, strict=True))
    return {word: readme.run(program, folders[word]) for word, program in programs.items()}


def test_the_first_program_ends_above_98_percent(printed):
    lines = printed["fit"].splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    results = ast.literal_eval(lines[-2])
    assert results["accuracy"] > 0.98
    assert re.fullmatch(r"\[\[[ \d.]*\]\] 7", lines[-1])


def test_the_guides_program_ends_with_json(printed):
    results, row = printed["model_fn"].splitlines()
    assert ast.literal_eval(results)["accuracy"] > 0.9
    row = json.loads(row)
    assert row["class"] == 7 and len(row["probabilities"]) == 10


def test_the_explicit_loop(printed):
    loss, accuracy = map(float, printed["next"].split())
    assert loss < 0.3 and accuracy > 0.95


def test_a_layer_of_ones_own(printed):
    assert "square" in printed["Square"]
