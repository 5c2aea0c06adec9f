"""Tests of minicnn.datasets.augment: what changes, and where the numbers come from."""

import numpy as np
import pytest
from tolerances import assert_close, assert_same_bits

import minicnn as mc
from minicnn.datasets.augment import _maps

augment = mc.datasets.augment
RNG = np.random.default_rng


def images(n=40, shape=(9, 7, 2), dtype=np.float32):
    return RNG(0).random((n, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_without_options_nothing_changes(dtype):
    x = images(dtype=dtype)
    before = x.copy()
    y = augment()(x, 0)
    assert_same_bits(y, before)
    assert not np.shares_memory(x, y)


def test_shifts_are_whole_pixels_in_all_directions():
    y = augment(shift=1)(images(200), 0)
    seen = set()
    for old, new in zip(images(200), y, strict=True):
        padded = np.pad(old, ((1, 1), (1, 1), (0, 0)), mode="edge")
        places = [(i, j) for i in range(3) for j in range(3)]
        seen.add(next(at for at in places
                      if np.array_equal(padded[at[0] : at[0] + 9, at[1] : at[1] + 7], new)))
    assert len(seen) == 9


def test_half_of_the_images_are_flipped():
    x = images(1000)
    y = augment(flip=True)(x, 0)
    flipped = (y == x[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (y == x).all(axis=(1, 2, 3))
    assert (flipped ^ same).all()
    assert 400 < flipped.sum() < 600


def test_a_rotation_turns_around_the_middle():
    """The angle is between the limits, in both directions, and the middle stays."""
    x = np.zeros((200, 21, 21, 1), np.float32)
    x[:, 10, 10:] = 1  # a ray from the middle to the right
    y = augment(rotation=30)(x, 0)[..., 0]
    assert_close(y[:, 10, 10], np.ones(200, np.float32))
    rows, _ = np.indices((21, 21)) - 10
    heights = (y[:, :, 15] * rows[:, 15]).sum(axis=1) / y[:, :, 15].sum(axis=1)  # 5 from the middle
    angles = np.degrees(np.arctan(heights / 5))
    assert -31 < angles.min() < -28 and 28 < angles.max() < 31


def test_a_crop_is_a_part_that_is_scaled_up():
    x = np.tile(np.arange(64, dtype=np.float32), (300, 64, 1))[..., None]  # the column as value
    y = augment(crop=0.5)(x, 0)[..., 0]
    widths = y[:, 0, -1] - y[:, 0, 0]
    assert 31 < widths.min() < 36 and 58 < widths.max() <= 63
    assert (y.min(), y.max()) == (0, 63)
    left = y[:, 0, 0] / (63 - widths)  # the place, from 0 to 1
    assert 0.05 > left.min() > -1e-3 and 0.95 < left.max() < 1.001


OPTIONS = {"shift": 2, "flip": True, "crop": 0.8, "rotation": 15}


def test_a_flip_and_a_rotation_keep_angles():
    """The maps turn and scale, and half of them mirror: no direction is stretched."""
    maps = _maps(RNG(0), 200, np.array([9, 7]), shift=2, flip=True, crop=0.5, rotation=90)
    linear = maps[:, :, :2]
    squares = linear @ linear.transpose(0, 2, 1)
    scale = np.sqrt(squares[:, 0, 0])
    np.testing.assert_allclose(squares, scale[:, None, None] ** 2 * np.eye(2), atol=1e-12)
    assert scale.min() >= 0.5 and scale.max() <= 1
    assert 60 < (np.linalg.det(linear) < 0).sum() < 140


def test_data_formats_are_changed_alike():
    x = images()
    expected = augment(**OPTIONS)(x, 3)
    first = augment(**OPTIONS, data_format="channels_first")
    y = first(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), 3)
    assert_same_bits(np.ascontiguousarray(y.transpose(0, 2, 3, 1)), expected)
    for function in (augment(**OPTIONS), first):  # grey images without an axis of channels
        assert_same_bits(function(x[..., 0], 3), np.ascontiguousarray(expected[..., 0]))


def test_the_numbers_come_from_the_generator():
    x = images()
    change = augment(**OPTIONS)
    assert_same_bits(change(x, 5), change(x, RNG(5)))
    assert (change(x, 5) != change(x, 6)).any()
    rng = RNG(5)
    assert (change(x, rng) != change(x, rng)).any()


def test_images_in_any_memory_layout():
    x = images()
    expected = augment(**OPTIONS)(x, 1)
    frozen = x.copy()
    frozen.flags.writeable = False
    for other in (frozen, np.asfortranarray(x), x[::-1].copy()[::-1]):
        assert_same_bits(augment(**OPTIONS)(other, 1), expected)
    assert augment(**OPTIONS)(x[:0], 1).shape == (0, 9, 7, 2)


@pytest.mark.parametrize("bad", [
    np.zeros((3, 784), np.float32), np.zeros((3, 9, 9, 1), np.uint8), np.zeros((9, 9), np.float32),
])
def test_arrays_that_are_not_images(bad):
    with pytest.raises(ValueError, match=r"`images` must be float32.*got an array.*reshape=False"):
        augment(shift=1)(bad, 0)


@pytest.mark.parametrize("crop", [0, -0.5, 1.5])
def test_a_crop_that_is_no_share(crop):
    with pytest.raises(ValueError, match="`crop` must be"):
        augment(crop=crop)


# In training -------------------------------------------------------------------------------------


class Seen:
    """Note the images that a run gets from a function."""

    def __init__(self, change):
        self.change = change
        self.batches = []

    def __call__(self, x, rng):
        self.batches.append(self.change(x, rng))
        return self.batches[-1]


X, Y = images(25), np.arange(25) % 3


def model_fn(features, labels, mode):
    logits = mc.layers.dense(mc.layers.flatten(features), 3)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    return mc.ModelFnOps(mode, logits, loss, mc.optimize_loss(loss, learning_rate=0.1))


def run(folder, steps, seed=1):
    """Train an Estimator to a step; return the weights and the images that the run got."""
    seen = Seen(augment(**OPTIONS))
    estimator = mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=seed))
    estimator.fit(X, Y, max_steps=steps, batch_size=10, augment=seen)
    return estimator.get_variable_value("dense/kernel"), seen.batches[1:]  # the first is a check


def test_epochs_differ_and_a_resumed_run_has_the_same_images(tmp_path):
    whole, images_of = run(tmp_path / "whole", 7)
    assert [len(batch) for batch in images_of] == [10, 10, 5, 10, 10, 5, 10]
    _, before = run(tmp_path / "parts", 4)
    parts, after = run(tmp_path / "parts", 7)
    for first, second in zip(images_of, before + after, strict=True):
        assert_same_bits(first, second)
    assert_same_bits(whole, parts)
    assert len({batch.tobytes() for batch in images_of}) == 7
    _, other = run(tmp_path / "other", 1, seed=2)
    assert (other[0] != images_of[0]).any()


def test_the_batches_of_an_epoch_are_changed_in_different_ways():
    seen = Seen(augment(**OPTIONS))
    x = np.repeat(X[:1], 25, axis=0)
    model = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(3)])
    model.fit(x, Y, epochs=2, batch_size=5, seed=0, verbose=False, augment=seen)
    assert len({batch.tobytes() for batch in seen.batches[1:]}) == 10


def test_sequential_fit_trains_on_changed_images_and_validates_on_those_of_the_user():
    def white(x, rng):
        return np.ones_like(x)

    model = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(3, kernel_initializer="zeros")])
    model.fit(X, Y, epochs=1, batch_size=5, seed=0, verbose=False, augment=white)
    kernel = model.parameters[0].value
    assert kernel.any() and (kernel == kernel[0]).all()  # every pixel was the same
    with_change = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(3)])
    history = with_change.fit(
        X, Y, epochs=2, batch_size=5, seed=0, verbose=False, augment=augment(shift=1),
        validation_data=(X, Y),
    )
    assert history.last["validation_accuracy"] == pytest.approx(with_change.score(X, Y))


def test_what_fit_refuses_before_the_first_step(tmp_path):
    estimator = mc.Estimator(model_fn, tmp_path, config=mc.RunConfig(seed=0))
    change = augment(shift=1)
    with pytest.raises(ValueError, match="`images` must be float32"):
        estimator.fit(X.reshape(25, -1), Y, steps=1, augment=change)
    with pytest.raises(ValueError, match=r"`augment` is for arrays, got .*; call it where"):
        estimator.fit(input_fn=lambda: [(X, Y)], steps=1, augment=change)
    assert not list(tmp_path.glob("*.npz"))


def test_a_split_has_the_same_share_of_each_class_and_keeps_the_names():
    labels = np.repeat([0, 1, 2], [40, 20, 8])
    rows = np.arange(68, dtype=np.float32).reshape(68, 1)
    data = mc.datasets.Dataset(rows, labels, class_names=["a", "b", "c"])
    train, held = data.split(0.25, seed=3)
    assert np.bincount(held.labels).tolist() == [10, 5, 2]
    assert train.class_names == held.class_names == ["a", "b", "c"]
    assert sorted(np.concatenate([train.images, held.images])[:, 0]) == list(range(68))
    assert (labels[held.images[:, 0].astype(int)] == held.labels).all()
    again = data.split(0.25, seed=3)[1]
    assert_same_bits(again.images, held.images)
    assert (data.split(0.25, seed=4)[1].images != held.images).any()
