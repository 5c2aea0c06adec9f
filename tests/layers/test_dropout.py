"""Dropout: how much is dropped, what the mask depends on, and when it is off."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import numbers
from numpy.testing import assert_array_equal
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.layers import Dropout


def built(shape, *arguments, dtype=np.float32, **options):
    layer = Dropout(*arguments, **options)
    assert layer.build((None, *shape), rng=0, dtype=dtype) == (None, *shape)
    return layer


def training(seed=0, **options):
    return mc.Context(training=True, rng=np.random.default_rng(seed), **options)


def kept(layer, rows, seed=0, **options):
    """Return which elements a pass keeps."""
    x = np.ones((rows, *layer.input_shape[1:]), layer.dtype)
    return layer.forward(x, training(seed, **options)) != 0


@given(
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([np.float32, np.float64]),
    st.integers(0, 2**32 - 1),
)
def test_what_is_kept_is_scaled_up_and_so_is_its_gradient(rate, dtype, seed):
    layer = built((3, 5), rate, dtype=dtype)
    x, ctx = numbers((4, 3, 5), dtype), training(seed)
    y = layer.forward(x, ctx)
    mask = y != 0
    scale = dtype(1 / (1 - rate))
    assert_array_equal(y, np.where(mask, x * scale, 0))
    dy = numbers((4, 3, 5), dtype, seed=1)
    assert_array_equal(layer.backward(dy, ctx), np.where(mask, dy * scale, 0))


@pytest.mark.parametrize("rate", [0.01, 0.4, 0.5, 0.9])
def test_rate_is_the_fraction_that_is_dropped(rate):
    mask = kept(built((1000,), rate), rows=200)
    error = 5 * np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(1 - mask.mean() - rate) < error
    # Rows, columns and neighbours are independent.
    assert abs(1 - mask.mean(axis=0) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / 200)
    assert abs(1 - mask.mean(axis=1) - rate).max() < 5 * np.sqrt(rate * (1 - rate) / 1000)
    both = (mask[:, 1:] & mask[:, :-1]).mean(), (mask[1:] & mask[:-1]).mean()
    assert abs(np.array(both) - (1 - rate) ** 2).max() < error


def test_outside_training_the_inputs_are_returned():
    x = numbers((2, 5))
    for layer, ctx in [
        (built((5,), 0.4), mc.Context()),
        (built((5,), 0.4, training=False), training()),
        (built((5,), 0), training()),
        (built((5,), 0), mc.Context(training=True)),
    ]:
        assert_same_bits(layer.forward(x, ctx), x)
        assert_same_bits(layer.backward(x, ctx), x)


def test_training_of_the_layer_overrides_the_context():
    x = np.ones((10, 100), np.float32)
    rng = np.random.default_rng(0)
    y = built((100,), 0.5, training=True).forward(x, mc.Context(training=False, rng=rng))
    assert (y == 0).any()


def test_training_without_a_generator_says_what_to_give():
    layer = built((5,), 0.4, name="drop")
    with pytest.raises(ValueError, match=r"drop: .*Context\(training=True, rng=seed\)"):
        layer.forward(numbers((2, 5)), mc.Context(training=True))


def test_a_pass_draws_one_number_from_the_generator():
    layer, ctx = built((5,), 0.4), training()
    layer.forward(numbers((200, 5)), ctx)
    layer.backward(numbers((200, 5)), ctx)
    other = np.random.default_rng(0)
    other.integers(1 << 64, dtype=np.uint64)
    assert ctx.rng.bit_generator.state == other.bit_generator.state


def test_passes_and_generators_differ_and_repeat():
    layer = built((100,), 0.5)
    assert_array_equal(kept(layer, 3, seed=1), kept(layer, 3, seed=1))
    assert (kept(layer, 3, seed=1) != kept(layer, 3, seed=2)).any()
    ctx, x = training(), np.ones((3, 100), np.float32)
    assert (layer.forward(x, ctx) != layer.forward(x, ctx)).any()


def test_masks_differ_by_layer_and_do_not_depend_on_the_order():
    first, second = built((100,), 0.5, name="first"), built((100,), 0.5, name="second")
    x, one, other = np.ones((3, 100), np.float32), training(), training()
    forwards = first.forward(x, one), second.forward(x, one)
    backwards = second.forward(x, other), first.forward(x, other)
    assert (forwards[0] != forwards[1]).any()
    assert_array_equal(forwards, backwards[::-1])


def test_a_seed_changes_the_mask():
    plain, first, second = (built((100,), 0.5, seed=seed) for seed in (None, 1, 2))
    assert (kept(first, 3) != kept(second, 3)).any()
    assert (kept(plain, 3) != kept(first, 3)).any()
    assert_array_equal(kept(first, 3), kept(built((100,), 0.5, seed=1), 3))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_mask_of_a_row_depends_only_on_its_number(dtype):
    layer = built((7, 9), 0.5, dtype=dtype)
    full = kept(layer, 40)
    assert_array_equal(kept(layer, 15), full[:15])
    assert_array_equal(kept(layer, 25, first_row=15), full[15:])
    assert_array_equal(kept(built((7, 9), 0.5), 40), full)  # nor on the type


@pytest.mark.parametrize(
    ("noise_shape", "axes"),
    [
        ((None, 1, 1, 6), (1, 2)),
        ((1, 4, 5, 6), (0,)),
        ((None, 4, 1, 1), (2, 3)),
        ((1, 1, 1, 6), (0, 1, 2)),
    ],
)
def test_noise_shape_drops_elements_along_axes_of_size_one_together(noise_shape, axes):
    layer = built((4, 5, 6), 0.5, noise_shape=noise_shape)
    mask = kept(layer, 8)
    together = mask.any(axis=axes, keepdims=True)
    assert_array_equal(mask, np.broadcast_to(together, mask.shape))
    assert 0.1 < mask.mean() < 0.9
    x, dy, ctx = numbers((8, 4, 5, 6)), numbers((8, 4, 5, 6), seed=1), training()
    assert_array_equal(layer.forward(x, ctx), np.where(mask, 2 * x, 0))
    assert_array_equal(layer.backward(dy, ctx), np.where(mask, 2 * dy, 0))


@pytest.mark.parametrize("noise_shape", [None, (None, 1)])
def test_what_is_dropped_is_zero_and_what_is_kept_stays_nan(noise_shape):
    layer = built((3,), 0.5, noise_shape=noise_shape)
    mask = kept(layer, 50)
    for value in (np.nan, np.inf):
        y = layer.forward(np.full((50, 3), value, np.float32), training())
        assert_array_equal(y, np.where(mask, np.float32(value), 0))


def test_a_mask_for_all_rows_is_the_same_for_every_part_of_a_batch():
    layer = built((100,), 0.5, noise_shape=(1, 100))
    assert_array_equal(kept(layer, 3, first_row=15), kept(layer, 3))


def test_a_mask_by_rows_follows_the_row():
    layer = built((4, 3), 0.5, noise_shape=(None, 1, 3))
    assert_array_equal(kept(layer, 25, first_row=15), kept(layer, 40)[15:])


WRONG = [
    ({"rate": 1}, ValueError, "`rate` must be a finite number in [0, 1)", "1"),
    ({"rate": -0.1}, ValueError, "`rate` must be a finite number in [0, 1)", "-0.1"),
    ({"rate": np.nan}, ValueError, "`rate` must be a finite number in [0, 1)", "nan"),
    ({"rate": "half"}, TypeError, "`rate` must be a number", "'half'"),
    ({"seed": -1}, ValueError, "`seed` must be at least 0", "-1"),
    ({"seed": 1.5}, TypeError, "`seed` must be an integer", "1.5"),
    ({"noise_shape": 5}, TypeError, "`noise_shape` must be", "5"),
]


@pytest.mark.parametrize(("option", "error", "expected", "got"), WRONG, ids=str)
def test_wrong_arguments_are_quoted(option, error, expected, got):
    with pytest.raises(error) as caught:
        Dropout(**option)
    message = str(caught.value)
    assert expected in message
    assert f"got {got}" in message


@pytest.mark.parametrize("noise_shape", [(None, 4), (None, 4, 2), (3, 4, 1), (None, 2, 1)])
def test_a_noise_shape_that_does_not_fit_names_both(noise_shape):
    with pytest.raises(ValueError) as caught:
        built((4, 3), noise_shape=noise_shape)
    assert str(noise_shape) in str(caught.value)
    assert "(None, 4, 3)" in str(caught.value)


def test_the_function_fixes_the_mode():
    x = mc.Graph().placeholder("x", (None, 9), np.float32)
    assert mc.layers.dropout(x).op.training is False
    y = mc.layers.dropout(
        inputs=x, rate=0.4, noise_shape=(None, 1), seed=3, training=True, name="drop"
    )
    assert (y.name, y.shape) == ("drop", (None, 9))
    layer = y.op
    assert (layer.rate, layer.noise_shape, layer.seed) == (0.4, (None, 1), 3)
    assert layer.training is True


def test_a_seed_in_place_of_a_generator():
    layer = Dropout(0.5)
    layer.build((None, 50), rng=0)
    x = np.ones((2, 50), np.float32)
    rngs = 7, np.random.default_rng(7)
    one, other = (layer.forward(x, mc.Context(training=True, rng=rng)) for rng in rngs)
    assert_same_bits(one, other)
