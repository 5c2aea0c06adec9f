"""Tests of minicnn.images: all kinds of files, also hostile ones, and digits in any light."""

import io
import itertools
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason='pip install -e ".[image]"')
pytest.importorskip("matplotlib", reason='pip install -e ".[plot]"')  # it brings fonts

import matplotlib
from PIL import Image, ImageDraw, ImageFont

import minicnn as mc
from minicnn import images

FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
FONTS = [
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSans-Oblique",
    "STIXGeneral", "cmtt10", "cmss10",
]


def drawn(digit, font="DejaVuSans", size=(200, 260), height=160, at=(0.5, 0.5)):
    """Draw a digit, black on white."""
    picture = Image.new("L", size, 255)
    ImageDraw.Draw(picture).text(
        (size[0] * at[0], size[1] * at[1]), str(digit), 0, anchor="mm",
        font=ImageFont.truetype(FOLDER / f"{font}.ttf", height),
    )
    return picture


def levels(picture):
    return np.asarray(picture, np.float32) / 255


def lit(pixels, light, rng):
    """Simulate a photo: grey paper, ink that is not black, and sensor noise."""
    return np.clip((0.15 + 0.75 * pixels) * light + rng.normal(0, 0.05, pixels.shape), 0, 1)


def light_on(shape, kind):
    """Return the brightness of the light at each pixel."""
    y, x = (axis / n for axis, n in zip(np.indices(shape), shape, strict=True))
    return {
        "even": np.ones(shape),
        "from the side": 0.3 + 0.35 * (x + y),
        "shadow with an edge": np.where(x + 0.4 * y > 0.7, 1, 0.45),
        "lamp": 1 - 0.9 * ((x - 0.5) ** 2 + (y - 0.5) ** 2),
    }[kind]


@pytest.fixture(scope="module")
def classify(example, digit_model):
    estimator = mc.Estimator(example("mnist_cnn").cnn_model_fn, digit_model)

    def classes(digits):
        x = np.stack(digits).reshape(-1, 784)
        return estimator.predict(x, as_iterable=False)["classes"]

    return classes


@pytest.fixture(scope="module")
def mnist():
    return mc.datasets.load_dataset("mnist", reshape=False).test


# What `digit` makes of pixels ---------------------------------------------------------------------


def test_an_image_of_mnist_stays_as_it_is(mnist):
    x = mnist.images[:100, ..., 0]
    assert np.abs(np.stack([images.digit(image) for image in x]) - x).mean() < 0.015


@pytest.mark.parametrize("digit", range(10))
def test_the_form_is_that_of_mnist(digit):
    pixels = levels(drawn(digit, at=(0.4, 0.6)))
    before = pixels.copy()
    x = images.digit(pixels)
    np.testing.assert_array_equal(pixels, before)
    assert (x.shape, x.dtype, x.min(), x.max()) == ((28, 28), np.float32, 0, 1)
    rows, columns = (np.flatnonzero(x.any(axis=axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    for axis in (0, 1):
        centre = np.average(np.arange(28), weights=x.sum(axis=1 - axis))
        assert centre == pytest.approx(14, abs=0.51)


@pytest.mark.parametrize("change", [
    lambda p: 1 - p,
    lambda p: 0.4 + 0.2 * p,
    lambda p: (255 * p).astype(np.uint8),
    lambda p: -1000 * p.astype(np.float64),
    lambda p: p[:, ::-1][:, ::-1],
    lambda p: np.pad(p, ((90, 0), (0, 150)), constant_values=1),
    lambda p: levels(Image.fromarray(np.uint8(255 * p)).resize((100, 130))),
    lambda p: levels(Image.fromarray(np.uint8(255 * p)).resize((900, 1170))),
    lambda p: np.pad(p, ((900, 700), (300, 1100)), constant_values=1),
], ids=["light on dark", "faint", "bytes", "any scale", "a view", "moved", "half", "large", "far"])
def test_what_does_not_matter(change):
    pixels = levels(drawn(5))
    assert np.abs(images.digit(change(pixels)) - images.digit(pixels)).mean() < 0.03


def test_specks_and_the_edge_of_the_paper_are_no_ink():
    pixels = levels(drawn(5))
    dirty = pixels.copy()
    dirty[20:25, 20:25] = dirty[230:234, 150:156] = 0
    dirty[:, :14] = 0.1  # the table
    dirty[240:245] = 0.2  # a ruled line
    assert np.abs(images.digit(dirty) - images.digit(pixels)).max() < 0.2


def test_accuracy_on_fonts(classify):
    digits = [images.digit(levels(drawn(n, font))) for font in FONTS for n in range(10)]
    accuracy = (classify(digits).reshape(-1, 10) == np.arange(10)).mean()
    print(f"accuracy on digits of {len(FONTS)} fonts: {accuracy:.3f}")
    assert accuracy >= 0.9


@pytest.mark.parametrize("kind", ["even", "from the side", "shadow with an edge", "lamp"])
def test_accuracy_on_photos(classify, mnist, kind):
    rng = np.random.default_rng(0)
    photos = []
    for image in mnist.images[:60, ..., 0]:
        large = levels(Image.fromarray(np.uint8(255 * image)).resize((150, 150)))
        top, left = rng.integers(0, 150), rng.integers(0, 80)
        paper = np.pad(1 - large, ((top, 150 - top), (left, 80 - left)), constant_values=1)
        photos.append(lit(paper, light_on(paper.shape, kind), rng))
    right = classify([images.digit(photo) for photo in photos]) == mnist.labels[:60]
    known = classify(mnist.images[:60]) == mnist.labels[:60]
    print(f"{kind}: {right.mean():.3f}; of the images themselves {known.mean():.3f}")
    assert right.mean() >= known.mean() - 0.05


@pytest.mark.parametrize("width", [2, 5, 30])
def test_a_pen_of_any_width(classify, width):
    strokes = {1: [(150, 60), (150, 240)], 7: [(90, 70), (210, 70), (140, 240)],
               4: [(180, 240), (180, 60), (90, 180), (225, 180)]}  # fmt: skip
    digits = []
    for points in strokes.values():
        picture = Image.new("L", (300, 300), 255)
        ImageDraw.Draw(picture).line(points, 0, width)
        digits.append(images.digit(levels(picture)))
    assert classify(digits).tolist() == list(strokes)


# Printed lines around a digit, in a field from (0, 0) to (1, 1).
FIELDS = {
    "frame": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]],
    "frame with a gap": [[(0.6, 0), (1, 0), (1, 1), (0, 1), (0, 0), (0.48, 0)]],
    "double frame": [[(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)],
                     [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96), (0.04, 0.04)]],
    "comb": [[(0, 0.5), (0, 1), (1, 1), (1, 0.5)]],
    "corner": [[(0, 0), (0, 1), (1, 1)]],
    "underline": [[(0, 1), (1, 1)]],
}  # fmt: skip


@pytest.fixture(scope="module")
def thirty(mnist):
    """Return the cropped ink and the classes of twenty MNIST images and ten digits of a font."""
    pictures = [Image.fromarray(np.uint8(255 * image[..., 0])) for image in mnist.images[:20]]
    fonts = [drawn(n) for n in range(10)]
    pictures += [Image.fromarray(255 - np.asarray(picture)) for picture in fonts]
    ink = [picture.crop(picture.getbbox()) for picture in pictures]
    return ink, np.array([*mnist.labels[:20], *range(10)])


def in_a_field(ink, size, lines, width, angle, rng):
    """Put ink into a picture of 400 x 400 pixels, with lines of this width around it."""
    ink = ink.resize([round(size / max(ink.size) * n) for n in ink.size], Image.Resampling.BICUBIC)
    picture = Image.new("L", (400, 400), 0)
    side, (left, top) = size + rng.integers(50, 90), rng.integers(15, 45, 2)
    picture.paste(ink, (int(left + (side - ink.size[0]) / 2), int(top + (side - ink.size[1]) / 2)))
    turn = np.exp(1j * np.radians(angle))
    for line in lines:
        points = [complex(x - 0.5, y - 0.5) * side * turn for x, y in line]
        points = [(z.real + left + side / 2, z.imag + top + side / 2) for z in points]
        ImageDraw.Draw(picture).line(points, 255, width, joint="curve")
    return 255 - np.asarray(picture)


def outcome(classify, pictures, labels):
    """Return the fractions of pictures that are classified correctly and wrongly."""
    digits, classes = [], []
    for pixels, label in zip(pictures, labels, strict=True):
        try:
            digits.append(images.digit(pixels))
        except ValueError as error:
            assert "no digit was found" in str(error)
        else:
            classes.append(label)
    right = (classify(digits) == classes).sum()
    return right / len(labels), (len(classes) - right) / len(labels)


@pytest.mark.parametrize(("field", "width", "turn"), [
    *((field, 4, 0) for field in FIELDS), *((field, 10, 0) for field in ("frame", "underline")),
    ("frame", 2, 0), ("frame", 4, 6), ("corner", 4, 6), ("underline", 4, 6),
])
def test_accuracy_in_printed_fields(classify, thirty, field, width, turn):
    rng = np.random.default_rng(0)
    pictures = [
        in_a_field(ink, size, FIELDS[field], width, rng.uniform(-turn, turn), rng)
        for ink, size in zip(thirty[0], itertools.cycle([60, 120, 200, 260]))
    ]
    right, wrong = outcome(classify, pictures, thirty[1])
    print(f"{field}, {width} pixels, turned by up to {turn}: {right:.2f} right, {wrong:.2f} wrong")
    assert right >= 0.8 and wrong <= 0.05


@pytest.mark.parametrize("lines", [
    [[(150, 60), (150, 240)]],  # a 1 is not a line
    [[(90, 60), (210, 60), (210, 240)]],  # a 7 is not a corner
    [[(180, 130), (180, 240)], [(90, 50), (90, 170), (170, 170)]],  # an open 4, in two parts
    [[(100, 45), (210, 45)], [(100, 60), (100, 140), (200, 140), (200, 240), (100, 240)]],  # a 5
    [[(90, 60), (210, 60), (210, 240), (90, 240), (90, 60)]],  # a 0 of straight lines
])
def test_strokes_that_are_no_printed_lines(lines):
    picture = Image.new("L", (300, 300), 255)
    for points in lines:
        ImageDraw.Draw(picture).line(points, 0, 8)
    left, top, right, bottom = Image.eval(picture, lambda v: 255 - v).getbbox()
    rows, columns = np.nonzero(images.digit(levels(picture)))
    expected = np.array([bottom - top, right - left]) * 20 / max(bottom - top, right - left)
    assert np.ptp(rows) + 1 == pytest.approx(expected[0], abs=1.5)
    assert np.ptp(columns) + 1 == pytest.approx(expected[1], abs=1.5)


@pytest.mark.parametrize("height", [20, 200])
@pytest.mark.parametrize("margins", [(0, 0, 0, 0), (2, 0, 2, 0), (0, 1, 1, 1), (0.1,) * 4],
                         ids=["tight", "a wide field", "at the left", "narrow"])  # fmt: skip
def test_accuracy_with_little_paper(classify, thirty, height, margins):
    left, top, right, bottom = (round(height * margin) for margin in margins)
    pictures = []
    for ink in thirty[0]:
        scale = height / max(ink.size)
        ink = ink.resize([max(1, round(scale * n)) for n in ink.size], Image.Resampling.BICUBIC)
        room = ((top, bottom), (left, right))
        pictures.append(np.pad(200 - 0.6 * np.asarray(ink), room, constant_values=200))
    right, wrong = outcome(classify, pictures, thirty[1])
    print(f"{height} pixels high, margins {margins}: {right:.2f} right, {wrong:.2f} wrong")
    assert right >= 0.9


RNG = np.random.default_rng(0)
RAMP = np.add.outer(np.arange(300.0), np.arange(200.0))


@pytest.mark.parametrize("pixels", [
    np.ones((50, 50)),
    RNG.random((200, 200)),
    0.8 + 0.01 * RNG.normal(size=(300, 400)),
    RNG.random((28, 28)),
    RAMP,
    RAMP > 200,
    RAMP // 20 % 2,
    np.zeros((1, 1)),
    np.eye(1, 500),
    np.hstack([levels(drawn(n, size=(100, 200), height=90)) for n in range(8)]),
    1 - np.pad(np.ones((5, 200)), 100),
    np.hstack([levels(drawn(n, size=(200, 260))) for n in (1, 3)]),
    1 - np.maximum(np.arange(300) % 30 < 3, np.arange(400)[:, None] % 30 < 3),
], ids=["blank", "noise", "grain", "small", "ramp", "edge", "stripes", "dot", "line", "many",
        "an empty underlined field", "two digits", "grid paper"])
def test_no_digit(pixels):
    with pytest.raises(ValueError, match="no digit was found; show one"):
        images.digit(pixels)


@pytest.mark.parametrize("pixels", [
    np.zeros((0, 5)), np.zeros((28, 28, 3)), np.zeros(784), np.full((9, 9), np.nan),
    np.full((9, 9), np.inf), 3.0,
])
def test_no_grey_levels(pixels):
    with pytest.raises(ValueError, match=r"`pixels` must be finite grey levels \(H, W\), got"):
        images.digit(pixels)


# What `read` makes of files -----------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    def save(picture, name="picture.png", **options):
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.mark.parametrize(("mode", "name"), [
    ("1", "a.png"), ("L", "a.bmp"), ("P", "a.gif"), ("RGB", "a.jpg"), ("RGBA", "a.webp"),
    ("LA", "a.png"), ("CMYK", "a.jpg"), ("I;16", "a.png"), ("I", "a.tiff"), ("F", "a.tiff"),
    ("YCbCr", "a.tiff"), ("L", "a.pgm"),
])
def test_every_mode_and_format(saved, mode, name):
    expected = levels(drawn(3))
    picture = drawn(3)
    if mode[0] in "IF":
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray((expected * (1 if mode == "F" else 65535)).astype(kind))
    else:
        picture = picture.convert(mode)
    got = images.read(saved(picture, name))
    assert (got.dtype, got.shape) == (np.float32, expected.shape)
    assert np.abs(got - expected).mean() < 0.01


def test_colours(saved):
    red_on_green = np.where(levels(drawn(3))[..., np.newaxis] < 0.5, (180, 0, 0), (190, 255, 190))
    x = images.digit(images.read(saved(Image.fromarray(red_on_green.astype(np.uint8)))))
    assert np.abs(x - images.digit(levels(drawn(3)))).mean() < 0.03


@pytest.mark.parametrize("ink", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_ink_on_nothing(saved, ink):
    picture = Image.new("RGBA", (200, 260), (*ink, 0))
    picture.putalpha(Image.fromarray(255 - np.asarray(drawn(3))))
    x = images.digit(images.read(saved(picture)))
    assert np.abs(x - images.digit(levels(drawn(3)))).mean() < 0.02


def test_transparent_corners_are_paper(saved):
    picture = drawn(3).convert("RGBA")
    round_off = Image.new("L", picture.size, 0)
    ImageDraw.Draw(round_off).rounded_rectangle((0, 0, 199, 259), 60, 255)
    picture.putalpha(round_off)
    np.testing.assert_allclose(images.read(saved(picture)), levels(drawn(3)), atol=0.01)


@pytest.mark.parametrize(("orientation", "turn"), [
    (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90),
    (8, Image.Transpose.ROTATE_270),
])
def test_the_rotation_of_a_phone(saved, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(drawn(3).transpose(turn), "photo.jpg", exif=exif, quality=95)
    assert np.abs(images.read(path) - levels(drawn(3))).mean() < 0.01


def test_a_large_picture_is_scaled_down(saved):
    for name in ("large.png", "large.jpg"):
        pixels = images.read(saved(drawn(5).resize((2000, 2600)), name))
        assert max(pixels.shape) == 1024
        assert np.abs(images.digit(pixels) - images.digit(levels(drawn(5)))).mean() < 0.02


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width, height, data=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body


def encoded(form):
    stream = io.BytesIO()
    drawn(3).save(stream, form)
    return stream.getvalue()


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(x) = quit\n%%EOF\n"
HOSTILE = {
    "empty.png": b"",
    "text.png": b"This is no picture.",
    "page.jpg": b"<!doctype html><title>Not found</title>",
    "bomb.png": png(60000, 60000, bytes(1000)),
    "large.png": png(9500, 9000, bytes(1000)),  # below Pillow's own limit
    "wide.png": png(200_000, 1, bytes(200_001)),
    "tall.png": png(1, 200_000, bytes(400_000)),
    "lies.png": png(5000, 5000, bytes(10)),
    "nothing.png": png(0, 0),
    "cut.png": encoded("PNG")[:500],
    "cut.jpg": encoded("JPEG")[:900],
    "cut.gif": encoded("GIF")[:300],
    "program.eps": EPS,
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=rf"{name}: a complete picture was expected .*; open it"):
        images.read(tmp_path / name)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("name", "reason"), [
    ("large.png", "PNG of 9500 x 9000 is not safe"), ("wide.png", "PNG of 200000 x 1 is not safe"),
    ("tall.png", "PNG of 1 x 200000 is not safe"), ("program.eps", "EPS of 9 x 9 is not safe"),
])
def test_what_is_not_even_begun(tmp_path, name, reason):
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match=reason):
        images.read(tmp_path / name)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.png"):
        images.read(tmp_path / "no.png")
    with pytest.raises(OSError, match="is a folder, not a regular file; give the path of a"):
        images.read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_reading_a_named_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match=r"pipe\.png is a named pipe, not a regular file; give"):
        images.read(tmp_path / "pipe.png")


READ_IN_LITTLE_MEMORY = """
import resource, sys
import PIL.Image
import minicnn as mc
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200_000_000,) * 2)
for path in sys.argv[1:]:
    mc.images.read(path)
"""


def test_small_files_do_not_fill_the_memory(tmp_path):
    deep, bilevel = tmp_path / "deep.png", tmp_path / "bilevel.tiff"
    Image.fromarray(np.full((5800, 5800), 60000, np.uint16)).save(deep, compress_level=1)
    Image.new("1", (6200, 6200), 1).save(bilevel, compression="group4")
    assert bilevel.stat().st_size < 5000
    flat = tmp_path / "flat.png"
    Image.new("RGB", (90_000, 200)).save(flat)
    command = [sys.executable, "-W", "ignore", "-c", READ_IN_LITTLE_MEMORY, deep, bilevel, flat]
    subprocess.run(command, check=True)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "I;16", "F"])
def test_reading_in_parts_changes_nothing(saved, mode):
    large = drawn(5).resize((2100, 2730))
    if mode in ("I;16", "F"):
        deep = np.asarray(large).astype({"I;16": np.uint16, "F": np.float32}[mode])
        large = Image.fromarray(200 * deep)
    else:
        large = large.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    name = "large.tiff" if mode == "F" else "large.png"
    path = saved(large.transpose(Image.Transpose.ROTATE_90), name, exif=exif)
    expected = np.asarray(drawn(5).resize((788, 1024)), np.float32) / 255
    got = images.read(path)
    assert got.shape == expected.shape
    assert np.abs(got - expected).mean() < 0.01


@pytest.mark.filterwarnings("ignore:::PIL")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"])
def test_damaged_bytes_raise_one_kind_of_error(tmp_path, form):
    rng = np.random.default_rng(0)
    good = np.frombuffer(encoded(form), np.uint8)
    path = tmp_path / "damaged"
    for _ in range(20):
        damaged = good.copy()
        where = rng.integers(0, min(len(good), 400), 4)
        damaged[where] = rng.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            pixels = images.read(path)
        except ValueError as error:
            assert "damaged: a complete picture was expected" in str(error)
        else:
            assert pixels.ndim == 2 and pixels.min() >= 0 and pixels.max() <= 1


# The example --------------------------------------------------------------------------------------


@pytest.fixture
def run(example, digit_model, monkeypatch, capsys):
    """Run the example; return its exit code and output."""

    def run(*arguments, model=digit_model):
        monkeypatch.setattr(sys, "argv", ["predict_image.py", str(model), *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            example("predict_image").main()
        return ended.value.code, *capsys.readouterr()

    return run


def test_predict_image(run, saved):
    seven, four = saved(drawn(7), "7.png"), saved(drawn(4), "4.jpg")
    code, out, err = run(seven, four)
    assert (code, err) == (0, "")
    first, second = out.splitlines()
    assert first.startswith(f"{seven}: 7   (7 ") and second.startswith(f"{four}: 4   (4 ")


def test_predict_image_as_json(run, saved):
    code, out, _ = run("--json", saved(drawn(7), "7.png"))
    row = json.loads(out)
    assert (code, row["class"], len(row["probabilities"])) == (0, 7, 10)
    assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert row["picture"].endswith("7.png")


def test_predict_image_names_each_bad_file_and_reads_the_others(run, saved, tmp_path):
    for name, data in HOSTILE.items():
        (tmp_path / name).write_bytes(data)
    bad = [*(tmp_path / name for name in HOSTILE), saved(Image.new("L", (50, 50)), "blank.png")]
    code, out, err = run(*bad, saved(drawn(7), "7.png"), tmp_path / "no.png")
    assert code == 1
    assert "7.png: 7 " in out
    *lines, missing = err.splitlines()
    assert "no.png" in missing
    assert [line.split(":")[0] for line in lines] == [str(path) for path in bad]
    assert all(";" in line for line in lines)  # the remedy


def test_predict_image_without_a_model(run, saved, tmp_path):
    code, out, _ = run(saved(drawn(7)), model=tmp_path / "none")
    assert out == ""
    assert f"python examples/mnist_cnn.py --model-dir {tmp_path / 'none'}" in code
