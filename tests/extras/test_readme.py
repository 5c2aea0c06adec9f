"""The program of the README for one's own pictures."""

import pytest
import readme

pytest.importorskip("PIL", reason='pip install -e ".[image]"')


def test_every_new_picture_is_recognized(tmp_path):
    (program,) = readme.WITH_PICTURES
    lines = readme.run(program, tmp_path).splitlines()[-3:]
    assert [line.split(" (")[0] for line in lines] == [
        "four.jpg: four", "seven.jpg: seven", "zero.jpg: zero",
    ]


def test_the_pictures_are_small_and_have_their_licence():
    folder = readme.ROOT / "examples/own_images"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 200_000
    assert "LICENSE-MNIST" in (folder / "LICENCE.txt").read_text("utf-8")
