import naive
from hypothesis import given
from hypothesis import strategies as st

from minicnn.kernels.window import slide


@given(
    size=st.integers(1, 40),
    k=st.integers(1, 7),
    stride=st.integers(1, 8),
    dilation=st.integers(1, 4),
    padding=st.sampled_from(["same", "valid"]) | st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_sizes_and_padding(size, k, stride, dilation, padding):
    if padding != "same":
        size += naive.span(k, dilation) - 1  # at least one window fits
    out = naive.output_size(size, k, stride, dilation, padding)
    pads = {"same": naive.same_padding(size, k, stride, dilation), "valid": (0, 0)}
    before, _ = pads.get(padding, padding)
    down = across = padding
    if not isinstance(padding, str):
        down, across = (padding, (0, 1)), ((0, 1), padding)
    rows = slide((size, 9), (k, 2), (stride, 3), down, (dilation, 1))
    columns = slide((9, size), (2, k), (3, stride), across, (1, dilation))
    assert (rows.out_h, rows.top) == (columns.out_w, columns.left) == (out, before)


def test_a_window_lists_what_it_was_made_of():
    window = slide((5, 7), (2, 3), (1, 2), "same", (4, 1))
    assert tuple(window) == (5, 7, 2, 3, 1, 2, 4, 1, 2, 1, 5, 4)
    assert window.taps == 6
