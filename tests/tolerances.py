"""How far a result may lie from the exact one: one table, by the type of its elements."""

import numpy as np

# The share of the sum of its terms' absolute values by which a sum may be wrong.
RELATIVE = {"float32": 1e-5, "float64": 1e-13}


def assert_close(actual, expected, magnitude=None):
    """Every element lies within the tolerance of its type; NaN and inf stand where they should.

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
            f"the first, {at}, is {actual[at]!r} in place of {expected[at]!r}"
        )


def assert_same_bits(*arrays):
    """All arrays are the same to the last bit, NaN and the sign of zero included."""
    first, *others = arrays
    for other in others:
        assert (other.dtype, other.shape) == (first.dtype, first.shape)
        if other.tobytes() != first.tobytes():
            differ = np.count_nonzero(other != first)
            raise AssertionError(f"{differ} of {first.size} elements differ")
