"""Tests of minicnn.datasets: the IDX reader, the MNIST splits, the batches."""

import gzip
import os
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from minicnn import datasets
from minicnn.datasets import Dataset, idx, load_dataset, mnist, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150
)


def idx_bytes(array):
    """Encode an array as IDX, following the definition of the format element by element."""
    out = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim])
    out += b"".join(size.to_bytes(4, "big") for size in array.shape)
    step = -1 if sys.byteorder == "little" else 1
    return out + b"".join(element.tobytes()[::step] for element in array.ravel())


def write_folder(folder, train=20, test=6, size=(3, 5), labels=4, suffix=""):
    """Write the four files of a small data set and return its arrays."""
    rng = np.random.default_rng(1)
    arrays = {}
    for part, n in (("train", train), ("t10k", test)):
        images = rng.integers(0, 256, (n, *size), dtype=np.uint8)
        arrays[f"{part}-images-idx3-ubyte"] = images
        arrays[f"{part}-labels-idx1-ubyte"] = np.arange(n, dtype=np.uint8) % labels
    for name, array in arrays.items():
        raw = idx_bytes(array)
        (folder / (name + suffix)).write_bytes(gzip.compress(raw) if suffix else raw)
    return arrays


@pytest.fixture(scope="module")
def mnist_data():
    return load_dataset("mnist")


# ---- read_idx: good files


@relaxed
@given(
    array=st.sampled_from(list(CODES)).flatmap(
        lambda code: hnp.arrays(np.dtype(code), hnp.array_shapes(max_dims=5, max_side=4))
    ),
    compress=st.booleans(),
)
def test_round_trip(tmp_path, array, compress):
    path = tmp_path / "any-name"
    raw = idx_bytes(array)
    path.write_bytes(gzip.compress(raw) if compress else raw)
    result = read_idx(path)
    assert result.shape == array.shape
    assert result.dtype == array.dtype and result.dtype.isnative
    assert result.tobytes() == array.tobytes()  # bytes, so that NaN is also compared
    assert result.flags.c_contiguous and result.flags.writeable


def test_known_bytes(tmp_path):
    path = tmp_path / "short"
    path.write_bytes(bytes([0, 0, 0x0B, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0x01, 0x02, 0xFF, 0xFE]))
    np.testing.assert_array_equal(read_idx(str(path)), [[0x0102, -2]])


def test_compression_is_told_by_content_not_by_suffix(tmp_path):
    array = np.arange(6, dtype=np.uint8)
    (tmp_path / "raw.gz").write_bytes(idx_bytes(array))
    (tmp_path / "packed").write_bytes(gzip.compress(idx_bytes(array)))
    np.testing.assert_array_equal(read_idx(tmp_path / "raw.gz"), array)
    np.testing.assert_array_equal(read_idx(tmp_path / "packed"), array)


# ---- read_idx: bad files

GOOD = idx_bytes(np.arange(12, dtype=np.int16).reshape(3, 4))
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "two zero bytes first, got b''"),
        (gzip.compress(b""), "two zero bytes first, got b''"),
        (b"<!DOCTYPE html><html>503</html>", "two zero bytes first, got b'<!DO"),
        (b"PK\x03\x04zip", "two zero bytes first, got b'PK"),
        (b"\0", "two zero bytes first, got"),
        (GOOD[:3], "two zero bytes first, got"),
        (GOOD[:11], "buffer is smaller than requested"),
        (GOOD[:-1], "expected 24 bytes .* got 23"),
        (GOOD[:12], "expected 24 bytes .* got 0"),
        (GOOD + b"\0", "expected 24 bytes .* got more"),
        (gzip.compress(GOOD[:-1]), "expected 24 bytes .* got 23"),
        (gzip.compress(GOOD + b"\0"), "expected 24 bytes .* got more"),
        (PACKED[:-9], "Compressed file ended before"),
        (PACKED[:5], "Compressed file ended before"),
        (PACKED[:2], "Compressed file ended before"),
        (PACKED[:-8] + bytes(4) + PACKED[-4:], "CRC"),
        (PACKED[:10] + b"\x07" + PACKED[11:], "invalid block type"),
        (PACKED + b"junk", "Not a gzipped file"),
        (bytes([1, 0, 8, 1]), "two zero bytes first, got"),
        (bytes([0, 0, 0x0A, 1, 0, 0, 0, 1, 5]), "0x8, 0x9, .*, got 0xa"),
        (bytes([0, 0, 8, 100]) + 100 * bytes([0, 0, 0, 1]) + b"5", "maximum supported dimension"),
        (bytes([0, 0, 8, 4, 0, 0, 0, 0]) + 12 * b"\xff", "array is too big"),
    ],
)
def test_malformed_file(tmp_path, content, message):
    path = tmp_path / "train-images.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_idx(path)
    assert str(error.value).startswith(f"{path} is damaged or no IDX file: ")
    assert str(error.value).endswith("; download it again, or reinstall minicnn")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_idx(tmp_path / "nowhere")


def peak_memory_of_failure(path, message):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message):
            read_idx(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    with pytest.raises(OSError, match="train-images-idx3-ubyte is a named pipe, not a regular"):
        read_idx(tmp_path / "train-images-idx3-ubyte")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="zero is a device"):
        read_idx(tmp_path / "zero")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_header_that_claims_terabytes_allocates_nothing(tmp_path, pack):
    path = tmp_path / "huge"
    path.write_bytes(pack(struct.pack(">4B3I", 0, 0, 0x0E, 3, *[2**32 - 1] * 3) + b"abc"))
    assert peak_memory_of_failure(path, "expected at most .* got 633825299") < 4e6


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_header_that_claims_a_gigabyte_allocates_what_there_is(tmp_path, pack):
    path = tmp_path / "large"
    path.write_bytes(pack(struct.pack(">4BI", 0, 0, 8, 1, 1 << 30) + b"abc"))
    assert peak_memory_of_failure(path, "expected 1073741824 bytes .* got 3") < 4e6


def test_gzip_bomb_stops_after_the_promised_bytes(tmp_path):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 10) + bytes(64 << 20), 1))
    assert peak_memory_of_failure(path, "expected 10 bytes .* got more") < 4e6


def test_gzip_bomb_with_a_header_to_match_is_not_unpacked(tmp_path, monkeypatch):
    """A header may declare a small size, or at most a hundred times the size of the file."""
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(struct.pack(">4BI", 0, 0, 8, 1, 1 << 24) + bytes(1 << 24)))
    assert read_idx(path).size == 1 << 24
    monkeypatch.setattr(idx, "_ALWAYS_ALLOWED", 1 << 23)
    assert peak_memory_of_failure(path, "at most 8388608 bytes .* got 16777216") < 4e6
    monkeypatch.setattr(idx, "_MAX_RATIO", (1 << 24) // path.stat().st_size + 1)
    assert read_idx(path).size == 1 << 24


def test_many_gzip_members_are_one_file(tmp_path):
    path = tmp_path / "members"
    path.write_bytes(b"".join(gzip.compress(GOOD[at : at + 5]) for at in range(0, len(GOOD), 5)))
    assert read_idx(path).tobytes() == np.arange(12, dtype=np.int16).tobytes()
    path.write_bytes(path.read_bytes() + gzip.compress(b"") * 10_000 + gzip.compress(bytes(1)))
    assert peak_memory_of_failure(path, "expected 24 bytes .* got more") < 4e6


@relaxed
@given(
    content=st.sampled_from([GOOD, PACKED]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=4),
    keep=st.integers(0, 200),
)
def test_mutated_file_reads_or_fails_clearly(tmp_path, content, flips, keep):
    mutated = bytearray(content)
    for position, mask in flips:
        mutated[position % len(mutated)] ^= mask
    path = tmp_path / "mutated"
    path.write_bytes(mutated[:keep])
    try:
        read_idx(path)
    except ValueError as error:
        assert str(error).startswith(f"{path} is damaged or no IDX file: ")


# ---- load_dataset("mnist")


def test_mnist_splits(mnist_data):
    for split, n in (("train", 55_000), ("validation", 5_000), ("test", 10_000)):
        data = getattr(mnist_data, split)
        assert data.num_examples == n
        assert data.images.shape == (n, 784) and data.labels.shape == (n,)
        assert data.images.dtype == np.float32 and data.labels.dtype == np.uint8
        assert data.images.flags.c_contiguous
        assert data.images.min() == 0 and data.images.max() == 1
        assert set(data.labels.tolist()) == set(range(10))
        assert data.epochs_completed == 0
    assert mnist_data.num_classes == 10


def test_mnist_rows_are_in_the_order_of_the_files(mnist_data):
    folder = Path(datasets.__file__).parent / "data"
    pixels = read_idx(folder / f"{TRAIN_IMAGES}.gz")
    labels = read_idx(folder / f"{TRAIN_LABELS}.gz")
    assert labels[:8].tolist() == [5, 0, 4, 1, 9, 2, 1, 3]
    np.testing.assert_array_equal(mnist_data.validation.labels, labels[:5000])
    np.testing.assert_array_equal(mnist_data.train.labels, labels[5000:])
    expected = pixels[4999:5001].reshape(2, 784).astype(np.float32) / 255
    np.testing.assert_array_equal(mnist_data.validation.images[-1], expected[0])
    np.testing.assert_array_equal(mnist_data.train.images[0], expected[1])


def test_splits_unpack(mnist_data):
    train, validation, test = mnist_data
    assert (train, validation, test) == (mnist_data.train, mnist_data.validation, mnist_data.test)


def test_licence_is_beside_the_data():
    text = (Path(datasets.__file__).parent / "data" / "LICENSE-MNIST").read_text(encoding="utf-8")
    assert all(word in text for word in ("LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "MIT"))


@pytest.fixture
def shipped_copy(tmp_path, monkeypatch):
    """Replace the shipped files by small valid ones, which have another SHA-256."""
    data = tmp_path / "data"
    data.mkdir()
    write_folder(data, suffix=".gz")
    monkeypatch.setattr(mnist, "__file__", str(tmp_path / "mnist.py"))
    return data


def test_shipped_file_with_other_bytes_is_refused(shipped_copy):
    with pytest.raises(ValueError, match=r"t10k-images.*SHA-256 0fa7898d.*, got .*; .*reinstall"):
        load_dataset("mnist").test  # noqa: B018
    assert load_dataset(shipped_copy).test.num_examples == 6  # other folders are not checked


def test_every_shipped_file_is_checked(shipped_copy, monkeypatch):
    asked = {}
    real = mnist.decode_file

    def spy(path, sha256):
        asked[path.name.removesuffix(".gz")] = sha256
        return real(path)

    monkeypatch.setattr(mnist, "decode_file", spy)
    mnist.load_dataset("mnist", validation_size=1).train  # noqa: B018
    mnist.load_dataset("mnist").test  # noqa: B018
    assert asked == mnist._SHA256 and set(asked) == set(FILES)


def test_shipped_folder_missing(shipped_copy):
    shipped_copy.rename(shipped_copy.parent / "elsewhere")
    with pytest.raises(ValueError, match="got 'mnist'; nothing is downloaded"):
        load_dataset("mnist")


def test_shipped_file_missing_or_truncated_says_reinstall(shipped_copy):
    path = shipped_copy / f"{TEST_LABELS}.gz"
    path.write_bytes(path.read_bytes()[:-5])
    (shipped_copy / f"{TEST_IMAGES}.gz").unlink()
    with pytest.raises(FileNotFoundError, match=f"no file {TEST_IMAGES}"):
        load_dataset("mnist").test  # noqa: B018
    path.rename(shipped_copy / f"{TEST_IMAGES}.gz")
    with pytest.raises(ValueError, match="reinstall"):
        load_dataset("mnist").test  # noqa: B018


# ---- load_dataset(folder)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("as_path", [str, Path])
def test_folder(tmp_path, suffix, as_path):
    arrays = write_folder(tmp_path, suffix=suffix)
    data = load_dataset(as_path(tmp_path), validation_size=7)
    images = arrays[TRAIN_IMAGES].reshape(20, 15).astype(np.float32) / 255
    np.testing.assert_array_equal(data.validation.images, images[:7])
    np.testing.assert_array_equal(data.train.images, images[7:])
    np.testing.assert_array_equal(data.train.labels, arrays[TRAIN_LABELS][7:])
    np.testing.assert_array_equal(data.test.labels, arrays[TEST_LABELS])


def test_reshape_false_keeps_height_width_and_one_channel(tmp_path):
    arrays = write_folder(tmp_path)
    data = load_dataset(tmp_path, reshape=False, validation_size=5)
    assert data.train.images.shape == (15, 3, 5, 1) and data.train.images.flags.c_contiguous
    expected = arrays[TEST_IMAGES][..., np.newaxis].astype(np.float32) / 255
    np.testing.assert_array_equal(data.test.images, expected)


def test_one_hot(tmp_path):
    arrays = write_folder(tmp_path, test=3, labels=4)  # test labels stop at 2, train at 3
    data = load_dataset(tmp_path, one_hot=True, validation_size=5)
    assert data.num_classes == 4
    assert data.test.labels.dtype == np.float32
    np.testing.assert_array_equal(data.test.labels, [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    assert data.train.labels.shape == (15, 4)
    np.testing.assert_array_equal(data.train.labels.argmax(axis=1), arrays[TRAIN_LABELS][5:])


def test_one_hot_mnist(mnist_data):
    test = load_dataset("mnist", one_hot=True).test
    assert test.labels.shape == (10_000, 10)
    np.testing.assert_array_equal(test.labels.argmax(axis=1), mnist_data.test.labels)
    np.testing.assert_array_equal(test.labels.sum(axis=1), 1)


@pytest.mark.parametrize("one_hot", [False, True])
def test_splits_are_decoded_at_first_use(monkeypatch, one_hot):
    decoded = []
    real = mnist.decode_file

    def spy(path, *rest):
        decoded.append(path.name.removesuffix(".gz"))
        return real(path, *rest)

    monkeypatch.setattr(mnist, "decode_file", spy)
    data = load_dataset("mnist", one_hot=one_hot)
    assert decoded == []
    assert data.test is data.test
    assert decoded[:2] == [TEST_IMAGES, TEST_LABELS] and TRAIN_IMAGES not in decoded
    decoded.clear()
    train, validation = data.train, data.validation
    assert decoded.count(TRAIN_IMAGES) == 1  # for both
    assert train.images.base is validation.images.base


def test_folder_does_not_need_the_other_splits_files(tmp_path):
    write_folder(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes(b"broken")
    (tmp_path / TRAIN_LABELS).unlink()
    data = load_dataset(tmp_path)
    assert data.test.num_examples == 6
    with pytest.raises(ValueError, match="brok"):
        data.train  # noqa: B018


def test_missing_file_of_a_folder(tmp_path):
    write_folder(tmp_path)
    (tmp_path / TEST_LABELS).rename(tmp_path / "t10k-labels.ubyte")
    with pytest.raises(FileNotFoundError, match=f"no file {TEST_LABELS} or"):
        load_dataset(tmp_path).test  # noqa: B018


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["{dot}", "{file}/{file}", "{dot}/{dot}", "{file}/{dot}"])
def test_layouts_of_kaggle(tmp_path, suffix, layout):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    arrays = write_folder(source, suffix=suffix)
    for name in FILES:
        names = {"file": name + suffix, "dot": name.replace("-idx", ".idx") + suffix}
        place = folder / layout.format(**names)
        place.parent.mkdir(parents=True, exist_ok=True)
        (source / (name + suffix)).rename(place)
    data = load_dataset(folder, validation_size=0)
    np.testing.assert_array_equal(data.train.labels, arrays[TRAIN_LABELS])
    np.testing.assert_array_equal(data.test.labels, arrays[TEST_LABELS])


def test_both_layouts_at_once(tmp_path):
    """Kaggle's archive contains each file twice, once in a folder."""
    write_folder(tmp_path)
    for name in FILES:
        (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
        (tmp_path / name).mkdir()
    assert load_dataset(tmp_path).test.num_examples == 6


def test_folders_that_hold_no_file_are_told_from_files(tmp_path):
    for name in FILES:
        (tmp_path / name).mkdir()
    with pytest.raises(FileNotFoundError, match="; give the folder that contains it"):
        load_dataset(tmp_path).test  # noqa: B018
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_folder(raw)
    with pytest.raises(FileNotFoundError, match="; give the folder that contains it"):
        load_dataset(tmp_path).test  # noqa: B018
    assert load_dataset(raw).test.num_examples == 6


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "MNIST"])
def test_another_name_is_told_where_the_files_go(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"\(the only name\).*nothing is downloaded") as got:
        load_dataset(name)
    assert all(file in str(got.value) for file in FILES) and "spelling" not in str(got.value)
    (tmp_path / name).mkdir()
    write_folder(tmp_path / name)
    assert load_dataset(name).test.num_examples == 6


def test_images_and_labels_swapped(tmp_path):
    arrays = write_folder(tmp_path)
    (tmp_path / TEST_IMAGES).write_bytes(idx_bytes(arrays[TEST_LABELS]))
    with pytest.raises(ValueError, match=r"got an array of shape \(6,\) and .*do not exchange"):
        load_dataset(tmp_path).test  # noqa: B018
    (tmp_path / TEST_IMAGES).write_bytes(idx_bytes(arrays[TEST_IMAGES]))
    (tmp_path / TEST_LABELS).write_bytes(idx_bytes(arrays[TEST_IMAGES]))
    with pytest.raises(ValueError, match=r"array of shape \(6, 3, 5\) and .*do not exchange"):
        load_dataset(tmp_path).test  # noqa: B018
    (tmp_path / TEST_LABELS).write_bytes(idx_bytes(np.zeros(6)))
    with pytest.raises(ValueError, match="type float64; take both"):
        load_dataset(tmp_path).test  # noqa: B018


def test_counts_differ(tmp_path):
    arrays = write_folder(tmp_path)
    (tmp_path / TEST_LABELS).write_bytes(idx_bytes(arrays[TEST_LABELS][:-1]))
    with pytest.raises(ValueError, match=r"t10k images .* shape \(5,\) .*same source"):
        load_dataset(tmp_path).test  # noqa: B018


@pytest.mark.parametrize("size", [20, 5000])
def test_validation_size_leaves_no_training_row(tmp_path, size):
    write_folder(tmp_path)
    data = load_dataset(tmp_path, validation_size=size)
    assert data.test.num_examples == 6
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=f"`validation_size` must be at most 19, got {size}"):
            getattr(data, split)


def test_validation_size_may_be_zero(tmp_path):
    write_folder(tmp_path)
    data = load_dataset(tmp_path, validation_size=0)
    assert (data.train.num_examples, data.validation.num_examples) == (20, 0)


@pytest.mark.parametrize(
    "arguments, kind, message",
    [
        ({"name": "cifar10"}, ValueError, "\"mnist\".* folder .*'cifar10'"),
        ({"name": Path("mnist")}, ValueError, "folder .*'mnist'"),
        ({"name": 10}, TypeError, "not 'int'|PathLike"),
        ({"name": np.array(["a", "b"])}, TypeError, r"`name` must be a path.* shape \(2,\)"),
        ({"validation_size": -1}, ValueError, "`validation_size` must .* at least 0, got -1"),
        ({"validation_size": 0.1}, TypeError, "`validation_size` must be an integer, got 0.1"),
        ({"seed": -1}, ValueError, "`seed` must .* at least 0, got -1"),
        ({"seed": "a"}, TypeError, "`seed` must be an integer, got 'a'"),
    ],
)
def test_bad_argument(tmp_path, monkeypatch, arguments, kind, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        load_dataset(**{"name": "mnist", **arguments})


# ---- next_batch


def numbered(n, seed=0):
    return Dataset(images=np.arange(n)[:, np.newaxis] * [1, 10], labels=np.arange(n), seed=seed)


def drawn(data, count, batch_size, shuffle=True):
    return np.concatenate([data.next_batch(batch_size, shuffle)[1] for _ in range(count)])


@relaxed
@given(n=st.integers(1, 30), data=st.data(), shuffle=st.booleans())
def test_every_row_once_an_epoch(n, data, shuffle):
    """For any batch sizes, each sequence of n rows from the start is a permutation."""
    sizes = data.draw(st.lists(st.integers(1, n), min_size=1, max_size=30))
    rows = numbered(n)
    seen = []
    for size in sizes:
        images, labels = rows.next_batch(size, shuffle)
        assert images.shape == (size, 2)
        np.testing.assert_array_equal(images, labels[:, np.newaxis] * [1, 10])
        seen.extend(labels.tolist())
        assert rows.epochs_completed == len(seen) // n
    for start in range(0, len(seen), n):
        epoch = seen[start : start + n]
        assert len(set(epoch)) == len(epoch)
        assert shuffle or epoch == list(range(len(epoch)))


def test_batch_over_the_end_of_an_epoch():
    data = numbered(5)
    assert drawn(data, 4, 3, shuffle=False).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert data.epochs_completed == 2


def test_each_epoch_is_shuffled_again():
    epochs = drawn(numbered(50), 3, 50).reshape(3, 50)
    assert len({tuple(epoch) for epoch in [*epochs, np.arange(50)]}) == 4


def test_an_epoch_keeps_the_order_it_began_with():
    data = numbered(6)
    rows = np.concatenate([drawn(data, 1, 3, shuffle=True), drawn(data, 1, 3, shuffle=False)])
    assert sorted(rows) == list(range(6))
    assert drawn(data, 1, 6, shuffle=False).tolist() == list(range(6))


def test_seed_decides_the_order():
    first = drawn(numbered(50), 5, 20)
    np.testing.assert_array_equal(drawn(numbered(50), 5, 20), first)
    assert (drawn(numbered(50, seed=1), 5, 20) != first).any()
    assert (drawn(numbered(50, seed=None), 5, 20) != drawn(numbered(50, seed=None), 5, 20)).any()


@pytest.mark.parametrize("split, n", [("train", 10), ("validation", 10), ("test", 6)])
def test_seed_reaches_the_splits(tmp_path, split, n):
    write_folder(tmp_path)

    def batch(seed):
        data = load_dataset(tmp_path, validation_size=10, seed=seed)
        return getattr(data, split).next_batch(n)[0]

    np.testing.assert_array_equal(batch(3), batch(3))
    assert (batch(3) != batch(4)).any()


def test_global_random_state_is_left_alone():
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    first = drawn(numbered(50), 5, 20)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(8)
    np.testing.assert_array_equal(drawn(numbered(50), 5, 20), first)


def test_batches_are_copies():
    data = numbered(4)
    for shuffle in (False, True):
        images, labels = data.next_batch(4, shuffle)
        images[:] = labels[:] = -1
    assert data.images.min() == 0 and data.labels.min() == 0


@pytest.mark.parametrize(("batch_size", "limit"), [
    (6, "at most 5"), (0, "at least 1"), (-3, "at least 1"), (2.0, "an integer"),
    ("2", "an integer"),
])
def test_bad_batch_size(batch_size, limit):
    data = numbered(5)
    with pytest.raises(
        (ValueError, TypeError), match=f"`batch_size` must be {limit}, got {batch_size!r}"
    ):
        data.next_batch(batch_size)
    assert data.next_batch(np.int64(5))[1].shape == (5,)  # a refused call changes nothing
    assert data.epochs_completed == 1


def test_dataset_refuses_unequal_rows():
    with pytest.raises(ValueError, match="each of the 3 rows of `images`, got 2"):
        Dataset(images=np.zeros((3, 4)), labels=np.zeros(2))


def test_repr_shows_shapes():
    data = Dataset(np.zeros((3, 4), np.float32), np.zeros(3, np.uint8))
    assert repr(data) == "Dataset(images=(3, 4) float32, labels=(3,) uint8)"
