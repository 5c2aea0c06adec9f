"""Tests of minicnn.datasets.images_from_folder: classes, sizes, colors, and files that are bad."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest

import minicnn as mc

image = pytest.importorskip("PIL.Image", reason='pip install -e ".[image]"')


def save(path, color, size=(8, 8), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new(mode, size, color).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes with three pictures of one color each."""
    for name, color in (("sky", (0, 0, 255)), ("grass", (0, 255, 0))):
        for number, suffix in enumerate(("png", "jpg", "bmp")):
            save(tmp_path / name / f"{number}.{suffix}", color, (12 + number, 9))
    return tmp_path


def test_each_folder_is_a_class(folder):
    data = mc.datasets.images_from_folder(folder, size=(6, 7), color=True)
    assert data.class_names == ["grass", "sky"]
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.images.shape == (6, 6, 7, 3) and data.images.dtype == np.float32
    means = data.images.mean(axis=(1, 2))
    np.testing.assert_allclose(means, [[0, 1, 0]] * 3 + [[0, 0, 1]] * 3, atol=0.02)
    grey = mc.datasets.images_from_folder(str(folder), 5)
    assert grey.images.shape == (6, 5, 5, 1)
    assert (grey.images[:3] > 0.5).all() and (grey.images[3:] < 0.2).all()  # luminance


def test_a_picture_is_cut_around_its_middle_and_not_stretched(tmp_path):
    picture = image.new("L", (40, 20))
    picture.paste(255, (10, 0, 30, 20))  # a square, with black at both sides
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "1.png")
    images = mc.datasets.images_from_folder(tmp_path, 10).images
    np.testing.assert_allclose(images[0, :, 1:-1], 1, atol=0.01)


def test_the_pixels_of_an_image():
    red = image.new("RGBA", (6, 4), (255, 0, 0, 255))
    clear = image.new("RGBA", (6, 4), (255, 0, 0, 0))
    assert (mc.images.pixels(red, (2, 3), color=True) == [255, 0, 0]).all()
    assert (mc.images.pixels(clear, (2, 3)) == np.full((2, 3, 1), 255)).all()
    assert mc.images.pixels(red.convert("P"), 5).shape == (5, 5, 1)
    with pytest.raises(TypeError, match=r"`picture` must be an image of Pillow, got 'a.png'"):
        mc.images.pixels("a.png", 5)


def test_rotation_and_transparency(tmp_path):
    picture = image.new("RGB", (20, 20))
    picture.paste((255, 255, 255), (0, 0, 20, 10))  # the upper half is white
    exif = image.Exif()
    exif[0x0112] = 6  # to be turned right by a quarter
    (tmp_path / "a").mkdir()
    picture.save(tmp_path / "a" / "1.jpg", exif=exif)
    save(tmp_path / "a" / "2.png", (0, 0, 0, 0), (20, 20), "RGBA")
    turned, clear = mc.datasets.images_from_folder(tmp_path, 4).images[..., 0]
    assert (turned[:, 2:] > 0.9).all() and (turned[:, :2] < 0.1).all()
    assert (clear == 1).all()


def test_bad_files_are_named_and_left_out(folder, caplog):
    (folder / "sky" / "notes.txt").write_text("no picture")
    whole = (folder / "sky" / "0.png").read_bytes()
    (folder / "grass" / "cut.png").write_bytes(whole[:50])
    (folder / "grass" / "inner").mkdir()
    os.mkfifo(folder / "grass" / "pipe.png")
    (folder / "grass" / ".hidden").write_text("of the system")
    (folder / ".cache").mkdir()
    (folder / "readme.txt").write_text("beside the classes")
    data = mc.datasets.images_from_folder(folder, 4)
    assert len(data.images) == 6 and data.class_names == ["grass", "sky"]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith(f"4 files in {folder} are not complete pictures")
    assert record.getMessage().endswith("grass/cut.png, grass/inner, grass/pipe.png, sky/notes.txt")


def test_a_warning_is_short(folder, caplog):
    for number in range(30):
        (folder / "sky" / f"{number}.txt").write_text("no picture")
    mc.datasets.images_from_folder(folder, 4)
    assert caplog.text.count(".txt") == 10 and ", ..." in caplog.text


def test_folders_that_are_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"one folder of pictures for each.*with \[\] pictures"):
        mc.datasets.images_from_folder(tmp_path, 4)
    save(tmp_path / "a" / "1.png", 0, mode="L")
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match=r"with \[1, 0\] pictures in its folders"):
        mc.datasets.images_from_folder(tmp_path, 4)
    with pytest.raises(ValueError, match=r"`path` must be a folder with .*got no folder here"):
        mc.datasets.images_from_folder(Path("no folder here"), 4)


def test_what_is_read_can_be_learned(folder):
    data = mc.datasets.images_from_folder(folder, 6, color=True)
    model = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(2)])
    model.build((None, 6, 6, 3), rng=0)
    for _ in range(20):
        x, labels = data.next_batch(6)
        ctx = mc.Context(training=True)
        _, dy = mc.losses.softmax_cross_entropy_with_grad(labels, model.forward(x, ctx))
        model.backward(dy, ctx)
        mc.optimizers.SGD(0.1).step(model.parameters)
    assert (model.predict(data.images).argmax(axis=1) == data.labels).all()
