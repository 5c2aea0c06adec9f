"""The allowed distance of a result from the exact one, by the type of its elements."""

import numpy as np

# The allowed error of a sum, relative to the sum of the absolute values of its terms.
RELATIVE = {"float32": 1e-5, "float64": 1e-13}


def assert_close(actual, expected, magnitude=None):
    """Check that every element is within the tolerance; NaN and inf are in the same places.

    `magnitude` is what the tolerance is relative to: the expected values of the absolute values of
    all inputs, where the elements are sums that may cancel; else the largest expected value.
    """
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    if magnitude is None:
        magnitude = np.abs(expected).max(initial=0, where=np.isfinite(expected))
    limit = RELATIVE[str(actual.dtype)] * magnitude
    wrong = ~np.isclose(actual, expected, rtol=0, atol=limit, equal_nan=True)
    if wrong.any():
        at = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise AssertionError(
            f"{wrong.sum()} of {wrong.size} elements are wrong; "
            f"the first, {at}, is {actual[at]!r} instead of {expected[at]!r}"
        )


def assert_same_bits(*arrays):
    """Check that all arrays are the same bit for bit, including NaN and the sign of zero."""
    first, *others = arrays
    for other in others:
        assert (other.dtype, other.shape) == (first.dtype, first.shape)
        if other.tobytes() != first.tobytes():
            differ = np.count_nonzero(other != first)
            raise AssertionError(f"{differ} of {first.size} elements differ")
