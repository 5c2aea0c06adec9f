"""Tests of `implicit`, `winograd` and the lists, called through `conv` and `dense`."""

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels.arrays import DTYPES, empty, normal
from numpy.testing import assert_array_equal
from tolerances import RELATIVE, assert_close, assert_same_bits

from minicnn.kernels import elementwise, pooling, simd
from minicnn.kernels.conv import conv, implicit, pooled, winograd
from minicnn.kernels.dense import dense, lists
from minicnn.kernels.simd import ZEROED
from minicnn.kernels.window import slide

# (images, channels, filters), size, kernel, strides, padding, and maybe the dilation
CASES = {
    "implicit, one channel": ((3, 1, 32), (28, 28), (5, 5), (1, 1), "same"),
    "implicit, filters left over": ((2, 3, 21), (9, 7), (3, 2), (1, 1), "valid"),
    "implicit, few channels and strides": ((2, 7, 5), (11, 8), (4, 3), (2, 3), "same"),
    "implicit, two images for each of 16 chunks": ((32, 2, 9), (6, 5), (3, 3), (1, 1), "same"),
    "winograd 5x5": ((3, 32, 64), (14, 14), (5, 5), (1, 1), "same"),
    "winograd 5x5, all left over": ((2, 9, 21), (7, 10), (5, 5), (1, 1), "valid"),
    "winograd 3x3": ((3, 16, 16), (8, 8), (3, 3), (1, 1), "same"),
    "winograd 3x3, all left over": ((2, 17, 9), (11, 7), (3, 3), (1, 1), "valid"),
    "implicit": ((2, 17, 5), (9, 8), (2, 4), (2, 1), "same"),
    "implicit, strides": ((3, 9, 33), (11, 13), (3, 3), (2, 2), "same"),
    "implicit, read in place": ((3, 20, 40), (9, 12), (2, 3), (1, 1), "valid"),
    "implicit, padded below alone": ((3, 9, 5), (10, 8), (3, 1), (2, 1), "same"),
    "implicit, padded on the right alone": ((3, 9, 5), (8, 10), (1, 3), (1, 2), "same"),
    "implicit, padded beyond the window": ((2, 9, 5), (4, 5), (3, 3), (1, 2), ((4, 0), (1, 5))),
    "winograd 3x3, padded unevenly": ((2, 17, 9), (7, 6), (3, 3), (1, 1), ((2, 0), (0, 1))),
    "winograd 3x3, padded beyond the window above": (
        (2, 17, 9), (8, 8), (3, 3), (1, 1), ((4, 0), (0, 0))
    ),
    "winograd 3x3, padded beyond the window on the left": (
        (2, 17, 9), (8, 8), (3, 3), (1, 1), ((0, 0), (4, 0))
    ),
    "winograd 5x5, padded beyond the window on the right": (
        (2, 9, 21), (6, 8), (5, 5), (1, 1), ((0, 0), (1, 6))
    ),
    "winograd 3x3, padded beyond the window below": (
        (2, 17, 9), (8, 8), (3, 3), (1, 1), ((0, 4), (0, 0))
    ),
    "implicit 1x1": ((3, 16, 37), (6, 8), (1, 1), (1, 1), "same"),
    "implicit 1x1, strides": ((3, 9, 70), (7, 9), (1, 1), (2, 3), "valid"),
    "implicit 7x7": ((2, 8, 9), (12, 9), (7, 7), (3, 1), "same"),
    "implicit, several images in a band": ((41, 5, 3), (5, 7), (3, 2), (2, 2), "same"),
    "implicit, several images in a band, read in place": (
        (37, 3, 9), (5, 4), (2, 3), (1, 1), "valid"
    ),
    "implicit, images of four outputs": ((70, 3, 9), (4, 4), (3, 3), (1, 1), "valid"),
    "implicit 1x1, several images in a band": ((23, 16, 5), (4, 3), (1, 1), (1, 1), "same"),
    "implicit, dilation": ((2, 17, 9), (12, 11), (3, 3), (1, 1), "same", (2, 3)),
    "implicit, dilation down alone": ((2, 5, 33), (9, 8), (3, 4), (1, 1), "valid", (3, 1)),
    "implicit, dilation and strides": ((3, 5, 9), (13, 12), (2, 3), (2, 3), "same", (3, 2)),
    "implicit, dilation, several images in a band": (
        (20, 5, 9), (6, 5), (2, 2), (1, 1), "valid", (2, 1)
    ),
    "implicit, several bands and blocks of a row": ((2, 8, 3), (3, 300), (1, 2), (1, 1), "same"),
}
PATHS = {"winograd": winograd, "implicit": implicit}
by_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def draw(case, seed=0, dtype="float32"):
    """Return x, w, b, dy and the window; dy is the gradient before pooling."""
    (n, c, f), size, kernel, *place = case
    window, rng = slide(size, kernel, *place), np.random.default_rng(seed)
    shapes = (n, *size, c), (*kernel, c, f), (f,), (n, window.out_h, window.out_w, f)
    return [*(normal(rng, shape, dtype) for shape in shapes), window]


def forward(x, w, b, window, relu=False, pool=False):
    shape = (len(x), window.out_h, window.out_w, w.shape[3])
    if pool:
        shape = (shape[0], shape[1] // 2, shape[2] // 2, shape[3])
    y, code = empty(shape, x.dtype), empty(shape, np.uint8) if pool else None
    conv.forward(x, w, b, y, window, relu, code)
    return y, code


def input_gradient(dy, w, window):
    dx = empty((len(dy), window.height, window.width, w.shape[2]), dy.dtype)
    conv.input_gradient(dy, w, dx, window)
    return dx


def kernel_gradient(x, dy, window):
    filters = dy.shape[3]
    dw = empty((window.kernel_h, window.kernel_w, x.shape[3], filters), dy.dtype)
    db = empty((filters,), dy.dtype)
    conv.kernel_gradient(x, dy, dw, db, window)
    return dw, db


def pooled_gradients(x, dy, code, w, window, need_dx=True):
    dw, db = empty(w.shape, w.dtype), empty(w.shape[3:], w.dtype)
    dx = empty(x.shape, x.dtype) if need_dx else None
    conv.pooled_gradients(x, dy, code, w, dw, db, dx, window)
    return dx, dw, db


def taps_of_pool(y):
    """Return the four elements of each 2x2 block: (4, N, OH // 2, OW // 2, F)."""
    y = y[:, : y.shape[1] // 2 * 2, : y.shape[2] // 2 * 2]
    return np.stack([y[:, i::2, j::2] for i in (0, 1) for j in (0, 1)])


def unpooled(dy, code, window):
    """Return the gradient before pooling and ReLU; dy is the gradient after them."""
    whole = np.zeros((len(dy), window.out_h, window.out_w, dy.shape[3]))
    for tap in range(4):
        target = whole[:, tap // 2 :: 2, tap % 2 :: 2][:, : dy.shape[1], : dy.shape[2]]
        target[...] = np.where(code == tap, dy, 0)
    return whole


def assert_agrees_with_the_definition(case, seed=0, dtype="float32"):
    x, w, b, dy, window = draw(case, seed, dtype)
    where = case[3:]
    exact = naive.conv2d(x, w, b, *where)
    scale = naive.conv2d(np.abs(x), np.abs(w), np.abs(b), *where).max()
    assert_close(forward(x, w, b, window)[0], exact, scale)
    assert_close(forward(x, w, b, window, relu=True)[0], np.maximum(exact, 0), scale)

    dx, *exact = naive.conv2d_backward(x, w, dy, *where)
    magnitude, *sizes = naive.conv2d_backward(np.abs(x), np.abs(w), np.abs(dy), *where)
    assert_close(input_gradient(dy, w, window), dx, magnitude.max(initial=0))
    for actual, expected, size in zip(kernel_gradient(x, dy, window), exact, sizes, strict=True):
        assert_close(actual, expected, size)

    y, code = forward(x, w, b, window, pool=True)
    taps = taps_of_pool(naive.conv2d(x, w, b, *where))
    assert_close(y, np.maximum(taps.max(axis=0), 0), scale)
    assert_array_equal(y == 0, code == ZEROED)
    winner = np.take_along_axis(taps, np.minimum(code, 3)[None], axis=0)[0]
    limit = RELATIVE[dtype] * scale
    assert np.all((code == ZEROED) | (winner >= taps.max(axis=0) - limit))

    dy = dy[:, : y.shape[1], : y.shape[2]]
    exact = naive.conv2d_backward(x, w, unpooled(dy, code, window), *where)
    magnitude = naive.conv2d_backward(
        np.abs(x), np.abs(w), unpooled(np.abs(dy), code, window), *where
    )
    for need_dx in (True, False):
        results = pooled_gradients(x, dy, code, w, window, need_dx)
        for actual, expected, size in zip(results, exact, magnitude, strict=True):
            if actual is not None:
                assert_close(actual, expected, size)


@by_case
def test_table(case):
    assert_agrees_with_the_definition(case)


# Near the numbers of lanes in vectors of 16, 32 and 64 bytes, and in one and two panels.
@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 9, 15, 16, 17, 31, 33, 65])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 3)])
def test_any_number_of_filters_and_channels(kernel, count):
    for channels, filters in [(2, count), (9, count), (count, 3)]:
        case = (1, channels, filters), (4, 5), kernel, (1, 1), "same"
        assert_agrees_with_the_definition(case)


@by_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", [True, False])
def test_the_gradient_of_a_kernel_before_relu(case, dtype, wanted):
    """The result is bit-identical to two separate passes."""
    x, w, _, dy, window = draw(case, dtype=dtype)
    y = normal(np.random.default_rng(1), dy.shape, dtype)
    exact = np.where(y > 0, dy, dy.dtype.type(0))
    dw, db, dz = empty(w.shape, dtype), empty(w.shape[3:], dtype), empty(dy.shape, dtype)
    conv.kernel_gradient(x, dy, dw, db, window, y, dz if wanted else None)
    if wanted:
        assert_same_bits(dz, exact)
    dw2, db2 = empty(w.shape, dtype), empty(w.shape[3:], dtype)
    conv.kernel_gradient(x, exact, dw2, db2, window)
    assert_same_bits(dw, dw2)
    assert_same_bits(db, db2)
    _, expected, sums = naive.conv2d_backward(x, w, exact, *case[3:])
    _, *sizes = naive.conv2d_backward(np.abs(x), np.abs(w), np.abs(exact), *case[3:])
    assert_close(dw, expected, sizes[0])
    assert_close(db, sums, sizes[1])


@pytest.mark.parametrize("name", CASES)
def test_each_case_takes_the_path_that_it_names(name):
    x, _, b, *_, window = draw(CASES[name])
    path = PATHS[name.split(",")[0].split()[0]]
    assert conv._fast_path(x.dtype, window, x.shape[3], b.size) is path


@settings(max_examples=30)
@given(data=st.data(), dtype=st.sampled_from(["float32", "float32", "float64"]))
def test_any_configuration(data, dtype):
    sides = st.integers(1, 7)
    kernel = data.draw(st.sampled_from([(5, 5), (3, 3), (1, 1)]) | st.tuples(sides, sides))
    strides = data.draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3), (2, 2), (3, 2)]))
    padding = data.draw(st.sampled_from(["same", "valid"]))
    size = tuple(data.draw(st.integers(k if padding == "valid" else 1, 13)) for k in kernel)
    n = data.draw(st.integers(1, 3))
    c, f = (data.draw(st.integers(1, 20) | st.sampled_from([33, 65, 130])) for _ in range(2))
    assert_agrees_with_the_definition(((n, c, f), size, kernel, strides, padding), 0, dtype)


@by_case
def test_threads_do_not_change_bits(by_threads, case):
    case = ((19, *case[0][1:]), *case[1:])
    x, w, b, dy, window = draw(case)
    _, code = forward(x, w, b, window, pool=True)
    pooled = dy[:, : code.shape[1], : code.shape[2]]

    def run():
        return [
            forward(x, w, b, window, relu=True)[0],
            *forward(x, w, b, window, pool=True),
            input_gradient(dy, w, window),
            *kernel_gradient(x, dy, window),
            *pooled_gradients(x, pooled, code, w, window),
        ]

    for results in zip(*by_threads(run), strict=True):
        assert_same_bits(*results)


@by_case
def test_an_image_does_not_depend_on_its_batch(case):
    case = ((19, *case[0][1:]), *case[1:])
    x, w, b, dy, window = draw(case)
    y, (pooled, code) = forward(x, w, b, window)[0], forward(x, w, b, window, pool=True)
    dx = input_gradient(dy, w, window)
    for images in [slice(0, 1), slice(18, 19), slice(3, 12)]:
        assert_same_bits(forward(x[images], w, b, window)[0], y[images])
        assert_same_bits(forward(x[images], w, b, window, pool=True)[0], pooled[images])
        assert_same_bits(forward(x[images], w, b, window, pool=True)[1], code[images])
        assert_same_bits(input_gradient(dy[images], w, window), dx[images])


@by_case
@pytest.mark.parametrize("pool", [False, True])
def test_nan_is_seen_and_stays_in_its_image(case, pool):
    """All outputs that read NaN are NaN; a transform may spread it within its tile only."""
    x, w, b, _, window = draw(case)
    x = x.copy()
    x[1, 2, 1, 0] = np.nan
    y, code = forward(x, w, b, window, relu=True, pool=pool)
    seen = np.isnan(naive.conv2d(x, w, b, *case[3:]))
    if pool:
        seen = taps_of_pool(seen).any(axis=0)
    assert np.isnan(y[seen]).all()
    assert np.isfinite(np.delete(y, 1, axis=0)).all()
    assert not pool or np.all(code[seen] != ZEROED)


@by_case
def test_where_a_patch_is_zero_the_output_is_exactly_the_bias(case):
    """A rounding error of the transform would pass through ReLU."""
    x, w, b, _, window = draw(case)
    seen = np.zeros_like(x)
    seen[1, 2, 1, 0] = 1
    blank = naive.conv2d(seen, np.ones_like(w), None, *case[3:]) == 0
    for bias in (np.zeros_like(b), b):
        y, _ = forward(x * seen, w, bias, window)
        assert_array_equal(y[blank], np.broadcast_to(bias, y.shape)[blank])


@by_case
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_or_infinity_in_a_filter_is_seen_in_a_blank_image(case, value):
    """The product of zero and NaN or infinity is NaN."""
    x, w, b, _, window = draw(case)
    w = w.copy()
    w[-1, -1, 0, 2] = value
    for pool in (False, True):
        y, _ = forward(np.zeros_like(x), w, b, window, pool=pool)
        assert np.isnan(y[..., 2]).any()
        assert np.isfinite(np.delete(y, 2, axis=3)).all()


@by_case
def test_no_images(case):
    x, w, b, dy, window = draw(((0, *case[0][1:]), *case[1:]))
    y, code = forward(x, w, b, window, pool=True)
    assert y.size == input_gradient(dy, w, window).size == 0
    dx, dw, db = pooled_gradients(x, y, code, w, window)
    assert dx.size == 0
    assert_array_equal(dw, np.zeros_like(w))
    assert_array_equal(db, np.zeros_like(b))


@pytest.mark.parametrize("dtype", DTYPES)
@by_case
def test_outputs_of_exactly_zero_are_dead(case, dtype):
    x, w, b, _, window = draw(case, dtype=dtype)
    y, code = forward(np.zeros_like(x), w, np.zeros_like(b), window, pool=True)
    assert (y == 0).all()
    assert (code == ZEROED).all()


def test_ties_go_to_the_first():
    """The first of equal outputs gets the gradient, as in the general algorithm."""
    for case in CASES.values():
        x, w, b, _, window = draw(case)
        y, code = forward(np.zeros_like(x), w, np.abs(b) + 1, window, pool=True)
        assert_array_equal(code, np.zeros_like(code))
        whole = empty((len(x), window.out_h, window.out_w, w.shape[3]), x.dtype)
        whole[...] = np.abs(b) + 1
        winner = empty(y.shape, np.uint8)
        pool = slide((window.out_h, window.out_w), (2, 2), (2, 2), "valid")
        pooling.forward(whole, y, winner, pool)
        assert_array_equal(code, winner)


@pytest.mark.parametrize(("size", "channels", "filters", "path"), [
    (3, 12, 4, winograd), (3, 9, 16, implicit), (3, 9, 32, winograd), (3, 3, 64, implicit),
    (5, 10, 4, winograd), (5, 6, 16, implicit), (5, 6, 32, winograd), (5, 1, 64, implicit),
])
def test_winograd_is_used_where_its_transforms_pay(monkeypatch, size, channels, filters, path):
    monkeypatch.undo()  # the small shapes of the other tests
    window = slide((8, 8), (size, size), (1, 1), "same")
    assert conv._fast_path(np.float32, window, channels, filters) is path


# Lists


@pytest.mark.parametrize("case", [
    ((1, 33, 3), (24, 26), (3, 3)), ((1, 17, 3), (6, 210), (2, 5)), ((1, 1, 4), (110, 105), (5, 5)),
    ((2, 16, 60), (5, 6), (3, 5)), ((2, 17, 9), (8, 7), (7, 7)), ((1, 5, 9), (6, 7), (4, 6)),
], ids=["bands", "bands of a row", "bands of one channel", "a row at a time", "cut", "few, cut"])
def test_lists_of_parts_of_an_image_and_of_a_window(case):
    assert_agrees_with_the_definition((*case, (1, 1), "same"))


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_what_cuts_sums_over_lists_does_not_depend_on_the_width(monkeypatch, lanes):
    monkeypatch.setattr(pooled, "LANES", lanes)
    monkeypatch.setattr(pooled, "PANEL", 2 * lanes)
    for size, channels, filters, band, together in [
        ((24, 26), 33, 3, 5, 3), ((6, 300), 17, 3, 1, 3), ((14, 14), 32, 64, 7, 1),
        ((9, 9), 3, 8, 4, 3), ((1, 7), 20, 5, 1, 3),
    ]:
        kernel = (5, 5) if together == 1 else (3, 3)
        window = slide(size, kernel, (1, 1), "same")
        layout = pooled._layout(window, channels, filters, size[0] // 2, size[1] // 2)
        assert (layout.band, layout.together) == (band, together)


@pytest.mark.parametrize("registers", [16, 32])
def test_blocks_of_sums_cover_each_vector_once_from_the_right(monkeypatch, registers):
    monkeypatch.setattr(simd, "REGISTERS", registers)
    for rows in range(1, 9):
        for vectors in range(1, 24):
            covered = np.zeros((rows, vectors), int)
            for row, height, first, width in simd.gather_blocks.__wrapped__(rows, vectors):
                assert height * width <= registers - 4
                assert not covered[row : row + height, :first].any()
                covered[row : row + height, first : first + width] += 1
            assert (covered == 1).all()


def test_blocks_of_sums_are_few(monkeypatch):
    monkeypatch.setattr(simd, "REGISTERS", 16)  # most of which each block uses
    for rows, vectors, least in [(5, 4, 2), (5, 3, 2), (5, 10, 5), (3, 4, 1), (1, 10, 1)]:
        assert len(simd.gather_blocks.__wrapped__(rows, vectors)) == least


# Without strides and dilation: the others take the general path.
@pytest.mark.parametrize("case", [case for case in CASES.values()
                                  if case[3] == (1, 1) and len(case) == 5])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_of_zero_contribute_nothing_even_to_nan(case, value):
    """Both gradients that are zero and those that ReLU sets to zero, for any dy."""
    x, w, b, dy, window = draw(case)
    _, code = forward(x, w, b, window, pool=True)
    dy = dy[:, : code.shape[1], : code.shape[2]].copy()
    zeroed = np.full_like(code, ZEROED)
    for gradient, where in [(dy * 0, code), (dy, zeroed), (dy * np.nan, zeroed)]:
        for result in pooled_gradients(x * 0 + value, gradient, where, w + value, window):
            assert_array_equal(result, np.zeros_like(result))


# Dense


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0, 0.1, 0.35, 0.45, 1])  # fraction of nonzero dy
@pytest.mark.parametrize(
    ("n", "d", "u"), [(0, 5, 7), (1, 1, 1), (7, 65, 63), (33, 64, 128), (20, 130, 70)]
)
def test_dense_gradients(n, d, u, share, dtype):
    rng = np.random.default_rng(0)
    x, w, dy = (normal(rng, shape, dtype) for shape in [(n, d), (d, u), (n, u)])
    dy = np.where(rng.random((n, u)) < share, dy, 0).astype(dtype)
    exact = x.T.astype(float) @ dy, dy @ w.T.astype(float)
    magnitudes = np.abs(x.T) @ np.abs(dy), np.abs(dy) @ np.abs(w.T)
    for need_dx in (True, False):
        dw, dx = empty(w.shape, dtype), empty(x.shape, dtype) if need_dx else None
        dense.gradients(x, dy, w, dw, dx, True)
        assert_close(dw, exact[0], magnitudes[0])
        if need_dx:
            assert_close(dx, exact[1], magnitudes[1])


def test_threads_do_not_change_bits_of_dense_gradients(by_threads):
    rng = np.random.default_rng(0)
    x, w, dy = (normal(rng, shape, "float32") for shape in [(30, 300), (300, 130), (30, 130)])
    dy = np.where(dy > 0.5, dy, np.float32(0))

    def run():
        dw, dx = empty(w.shape, dy.dtype), empty(x.shape, dy.dtype)
        dense.gradients(x, dy, w, dw, dx, True)
        return dw, dx

    for results in zip(*by_threads(run), strict=True):
        assert_same_bits(*results)


def test_lists_of_very_many_rows_would_take_too_much_memory():
    (x, dy), w = (np.zeros((5000, n), np.float32) for n in (2, 3)), np.zeros((2, 3), np.float32)
    assert not lists.gradients(x, dy, w, w.copy(), None)
    assert lists.gradients(x[:4000], dy[:4000], w, w.copy(), None)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per_row", [1, 3])  # rows of the matrix per row of the batch
@pytest.mark.parametrize(("rows", "units"), [(9, 150), (3, 600)])  # packed, and not packed
def test_dropout_in_a_dense_layer_is_dropout(rows, units, per_row, relu, dtype):
    rng = np.random.default_rng(0)
    x, w, b = (normal(rng, shape, dtype) for shape in [(rows, 20), (20, units), (units,)])
    plain, fused, dropped = (empty((rows, units), dtype) for _ in range(3))
    dense.forward(x, w, b, plain, relu)
    dense.forward(x, w, b, fused, relu, dropout=(2**63 + 5, 0.4, 7, per_row))
    batch = (rows // per_row, per_row, units)
    elementwise.dropout(plain.reshape(batch), dropped.reshape(batch), 2**63 + 5, 0.4, 7)
    assert_same_bits(fused, dropped)
