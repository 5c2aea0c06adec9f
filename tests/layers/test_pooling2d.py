"""AveragePooling2D and the global poolings: comparison with the definition, and their arguments."""

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layers.passes import forward_and_back, numbers
from layers.test_max_pooling2d import as_laid_out, configurations
from tolerances import assert_close

import minicnn as mc
from minicnn.layers import (
    AveragePooling2D,
    GlobalAveragePooling2D,
    GlobalMaxPooling2D,
    MaxPooling2D,
)


@given(configurations(), st.sampled_from([np.float32, np.float64]), st.integers(0, 2**32 - 1))
def test_means_and_gradients_are_those_of_the_definition(configuration, dtype, seed):
    shape, options = configuration
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape).astype(dtype)
    layer = AveragePooling2D(**options)
    declared = layer.build((None, *as_laid_out(x, options).shape[1:]), rng, dtype)
    place = options["pool_size"], options["strides"], options["padding"]
    y = naive.average_pool2d(x, *place)
    dy = rng.standard_normal(y.shape).astype(dtype)

    actual = forward_and_back(layer, as_laid_out(x, options), as_laid_out(dy, options))

    assert (None, *as_laid_out(y, options).shape[1:]) == declared
    assert_close(actual.y, as_laid_out(y, options), 1)
    dx = naive.average_pool2d_backward(x, dy, *place)
    assert_close(actual.dx, as_laid_out(dx, options), 1)


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(("whole", "layer"), [
    (naive.average_pool2d, GlobalAveragePooling2D), (naive.max_pool2d, GlobalMaxPooling2D),
])
def test_global_pooling_is_over_all_positions(whole, layer, first):
    images = numbers((3, 5, 4, 2))
    expected = whole(images, (5, 4), (1, 1))[:, 0, 0]
    pool = layer("channels_first" if first else "channels_last")
    x = images.transpose(0, 3, 1, 2).copy() if first else images
    assert pool.build(x.shape, rng=0) == (None, 2)
    actual = forward_and_back(pool, x, numbers((3, 2)))
    assert_close(actual.y, expected)
    assert actual.dx.shape == x.shape
    assert_close(actual.dx.sum(axis=(2, 3) if first else (1, 2)), numbers((3, 2)))


def test_a_large_mean_is_precise():
    """The sum of a plain loop over 250,000 numbers of float32 has an error of about 1e-4."""
    x = np.random.default_rng(0).random((1, 500, 500, 1), np.float32)
    layer = GlobalAveragePooling2D()
    layer.build(x.shape, rng=0)
    assert abs(float(layer.forward(x, mc.Context())[0, 0]) / x.mean(dtype=np.float64) - 1) < 2e-6


def test_the_function_of_the_guide():
    x = mc.Graph().placeholder("x", (None, 7, 7, 3), np.float32)
    y = mc.layers.average_pooling2d(x, 3, 2, "same")
    assert y.shape == (None, 4, 4, 3)
    data = numbers((2, 7, 7, 3))
    value = x.graph.plan([y]).forward({x: data}, mc.Context())[y]
    assert_close(value, naive.average_pool2d(data, (3, 3), (2, 2), "same"), 1)


def test_windows_that_do_not_fit():
    with pytest.raises(ValueError, match=r"average_pooling2d: a window of \(8, 8\) .* use padding"):
        AveragePooling2D(8).build((None, 4, 4, 1), rng=0)
    with pytest.raises(ValueError, match=r"global_average_pooling2d: `inputs` must have 4 dim"):
        GlobalAveragePooling2D().build((None, 4), rng=0)
    for layer in (MaxPooling2D(2), AveragePooling2D(2)):
        assert layer.strides == (2, 2)
