"""The gradient checker: correct layers pass, and for wrong ones it reports the entry."""

import math
import re

import numpy as np
import pytest

import minicnn as mc
from minicnn.core.gradcheck import GradientError, GradientReport

# A user's layers


class AveragePooling(mc.layers.Layer):
    """The mean of each window of 2 x 2, side by side."""

    def build(self, input_shape, rng, dtype=np.float32):
        _, height, width, channels = super().build(input_shape, rng, dtype)
        return (None, height // 2, width // 2, channels)

    def forward(self, x, ctx):
        n, height, width, channels = ctx[self] = x.shape
        return x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))

    def backward(self, dy, ctx, need_dx=True):
        return dy.repeat(2, axis=1).repeat(2, axis=2) / 4


class MaxPooling(AveragePooling):
    """The maximum of each window of 2 x 2; its gradient goes to the `winners` among four."""

    def forward(self, x, ctx):
        n, height, width, channels = x.shape
        windows = x.reshape(n, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
        windows = windows.reshape(*windows.shape[:4], 4)  # n, oy, ox, c, tap
        ctx[self] = self.winners(windows), x.shape
        return windows.max(axis=-1)

    def backward(self, dy, ctx, need_dx=True):
        winners, (n, height, width, channels) = ctx[self]
        dx = (winners * dy[..., None]).reshape(n, height // 2, width // 2, channels, 2, 2)
        return dx.transpose(0, 1, 4, 2, 5, 3).reshape(n, height, width, channels)

    def winners(self, windows):
        """The first maximum."""
        return np.eye(4)[windows.argmax(axis=-1)]


class LastMaximum(MaxPooling):
    def winners(self, windows):
        return np.eye(4)[3 - windows[..., ::-1].argmax(axis=-1)]


class EveryMaximum(MaxPooling):
    def winners(self, windows):
        return windows == windows.max(axis=-1, keepdims=True)


class SumOfSquares(mc.Op):
    """A loss: one number for the batch."""

    def build(self, input_shape, rng, dtype=np.float32):
        return ()

    def forward(self, x, ctx):
        ctx[self] = x
        return float((x * x).sum())

    def backward(self, dy, ctx, need_dx=True):
        return 2 * dy * ctx[self]


class Scale(mc.layers.Layer):
    """y = a x; the start value of a is 1."""

    def build(self, input_shape, rng, dtype=np.float32):
        shape = super().build(input_shape, rng, dtype)
        self.a = self.add_parameter("a", np.ones((), dtype))
        return shape

    def forward(self, x, ctx):
        ctx[self] = x
        return self.a.value * x

    def backward(self, dy, ctx, need_dx=True):
        self.a.grad[...] = (ctx[self] * dy).sum()
        return self.a.value * dy if need_dx else None


RIGHT = [
    (mc.layers.Conv2D(3, 3, strides=2, padding="same", activation="tanh"), (2, 5, 6, 3)),
    (mc.layers.MaxPooling2D(3, strides=2, padding="same"), (2, 5, 6, 2)),
    (mc.layers.Dense(3, activation="softmax"), (4, 5)),
    (mc.layers.Dropout(0.4, training=True), (3, 8)),
    (mc.layers.Dropout(0.4), (3, 8)),
    (AveragePooling(), (2, 4, 6, 2)),
    (MaxPooling(), (2, 4, 6, 2)),
    (LastMaximum(), (2, 4, 6, 2)),  # another convention, not an error
    (SumOfSquares(), (3, 4)),
    (Scale(), (3, 4)),
    (Scale(), (3,)),
    (Scale(), (1, 1)),
]


@pytest.mark.parametrize(("layer", "shape"), RIGHT, ids=lambda value: type(value).__name__)
def test_right_layers_pass(layer, shape):
    report = mc.check_gradients(layer, shape)
    assert report.ok, report
    assert report.errors == []
    assert report.skipped == 0
    assert report.checked > math.prod(shape)  # each entry, and all together


@pytest.mark.parametrize("seed", range(4))
def test_a_network_passes(seed):
    model = mc.Sequential(
        [
            mc.layers.Conv2D(4, 3, padding="same", activation="relu"),
            mc.layers.MaxPooling2D(2),
            mc.layers.Conv2D(4, 3, padding="same"),
            mc.layers.Activation("relu"),
            mc.layers.Flatten(),
            mc.layers.Dense(8, activation="relu"),
            mc.layers.Dropout(0.4),
            mc.layers.Dense(3),
        ]
    )
    report = mc.check_gradients(model, (2, 6, 6, 3), training=True, entries=40, seed=seed)
    assert report.ok, report


# Wrong layers


class ScaledDx(mc.layers.Dense):
    def backward(self, dy, ctx, need_dx=True):
        return 1.01 * super().backward(dy, ctx)


class NoBiasGradient(mc.layers.Dense):
    def backward(self, dy, ctx, need_dx=True):
        before = self.bias.grad.copy()
        dx = super().backward(dy, ctx, need_dx)
        self.bias.grad[...] = before
        return dx


class AddingUp(mc.layers.Dense):
    def backward(self, dy, ctx, need_dx=True):
        before = self.kernel.grad.copy()
        dx = super().backward(dy, ctx, need_dx)
        self.kernel.grad[...] += before
        return dx


class NoScale(Scale):
    """Correct only if a is 1, its start value."""

    def backward(self, dy, ctx, need_dx=True):
        super().backward(dy, ctx)
        return 1 * dy


class Doubled(Scale):
    """The gradient of the parameter is wrong if need_dx is False."""

    def backward(self, dy, ctx, need_dx=True):
        super().backward(dy, ctx)
        self.a.grad[...] *= 1 if need_dx else 2
        return self.a.value * dy


class SwappedAxes(mc.Op):
    def forward(self, x, ctx):
        return x.swapaxes(1, 2)

    def backward(self, dy, ctx, need_dx=True):
        return dy


class OneEntry(mc.Op):
    """y = x^2, with one entry's gradient off by 1%."""

    def __init__(self, index):
        super().__init__()
        self.index = index

    def forward(self, x, ctx):
        ctx[self] = x
        return x * x

    def backward(self, dy, ctx, need_dx=True):
        dx = 2 * dy * ctx[self]
        dx[self.index] *= 1.01
        return dx


class NanInOneEntry(OneEntry):
    def backward(self, dy, ctx, need_dx=True):
        dx = super().backward(dy, ctx)
        dx[self.index] = np.nan
        return dx


class ChangesDy(mc.Op):
    def forward(self, x, ctx):
        return 2 * x

    def backward(self, dy, ctx, need_dx=True):
        dy *= 2
        return dy


class ChangesInputsForward(mc.Op):
    def forward(self, x, ctx):
        x *= 2
        return x

    def backward(self, dy, ctx, need_dx=True):
        return 2 * dy


class ChangesInputsBackward(OneEntry):
    def backward(self, dy, ctx, need_dx=True):
        dx = 2 * dy * ctx[self]
        ctx[self][self.index] += 1
        return dx


class WrongShape(mc.Op):
    def build(self, input_shape, rng, dtype=np.float32):
        return (None, 7)

    def forward(self, x, ctx):
        return x

    def backward(self, dy, ctx, need_dx=True):
        return dy


class LosesRows(WrongShape):
    def build(self, input_shape, rng, dtype=np.float32):
        return input_shape

    def forward(self, x, ctx):
        return x[1:]


class Rounds(WrongShape):
    def build(self, input_shape, rng, dtype=np.float32):
        return input_shape

    def forward(self, x, ctx):
        return x.astype(np.float32)


class NoDx(mc.Op):
    def forward(self, x, ctx):
        return x

    def backward(self, dy, ctx, need_dx=True):
        return None


class RowOfDx(NoDx):
    def backward(self, dy, ctx, need_dx=True):
        return dy[:1]


WRONG = [  # layer, shape, array and entries in the report (None: no entry)
    (ScaledDx(3), (2, 4), "inputs", list(np.ndindex(2, 4))),
    (NoBiasGradient(3), (2, 4), "no_bias_gradient/bias", [(0,), (1,), (2,)]),
    (AddingUp(2), (2, 2), "adding_up/kernel", list(np.ndindex(2, 2))),
    (NoScale(), (2, 2), "inputs", list(np.ndindex(2, 2))),
    (Doubled(), (2, 2), "doubled/a", [None]),
    (SwappedAxes(), (1, 2, 2), "inputs", [(0, 0, 1), (0, 1, 0)]),
    (EveryMaximum(), (1, 4, 4, 1), "inputs", [(0, y, x, 0) for y in (0, 2) for x in (0, 2)]),
    (OneEntry((1, 2)), (2, 4), "inputs", [(1, 2)]),
    (OneEntry((0, 0)), (2, 4), "inputs", [(0, 0)]),
    (NanInOneEntry((1, 3)), (2, 4), "inputs", [(1, 3)]),
    (ChangesDy(), (2, 4), "dy", [None]),
    (ChangesInputsForward(), (2, 4), "inputs", [None]),
    (ChangesInputsBackward((0, 0)), (2, 4), "inputs", [None]),
    (WrongShape(), (2, 4), "output", [None]),
    (LosesRows(), (2, 4), "output", [None]),
    (Rounds(), (2, 4), "output", [None]),
    (NoDx(), (2, 4), "inputs", [None]),
    (RowOfDx(), (2, 4), "inputs", [None]),
]


@pytest.mark.parametrize(
    ("layer", "shape", "array", "entries"), WRONG, ids=[type(row[0]).__name__ for row in WRONG]
)
def test_wrong_layers_are_named(layer, shape, array, entries):
    report = mc.check_gradients(layer, shape)
    assert not report.ok
    assert [(error.array, error.index) for error in report.errors] == [
        (array, entry) for entry in entries
    ]
    for entry, line in zip(entries, str(report).splitlines()[1:], strict=False):
        assert line.startswith(f"  {array}{list(entry) if entry else ''}: ")


def numbers_of(error):
    """The slope of backward, that of differences, and the error."""
    text = r"backward says (.*), differences say (.*), error ([^;]*)"
    return map(float, re.match(text, error.problem).groups())


def test_an_error_has_both_numbers():
    [error] = mc.check_gradients(OneEntry((1, 2)), (2, 4)).errors
    analytic, numeric, difference = numbers_of(error)
    assert analytic == pytest.approx(1.01 * numeric)
    scale = max(1, abs(analytic), abs(numeric))
    assert difference == pytest.approx(abs(analytic - numeric) / scale, rel=0.1)


@pytest.mark.parametrize("index", [(0, 0), (3, 1234), (7, 2499)])
def test_one_wrong_entry_of_many_is_noticed(index):
    report = mc.check_gradients(OneEntry(index), (8, 2500), entries=3, ties=False, seed=1)
    assert "here 20000 entries move together" in str(report)


def test_a_missing_gradient_is_explained():
    assert "overwrite it" in str(mc.check_gradients(NoBiasGradient(3), (2, 4)))
    assert "overwrite it" in str(mc.check_gradients(AddingUp(3), (2, 4)))
    assert "overwrite it" not in str(mc.check_gradients(NanInOneEntry((1, 3)), (2, 4)))


def test_a_wrong_tie_rule_needs_equal_inputs():
    assert mc.check_gradients(EveryMaximum(), (1, 4, 4, 1), ties=False).ok
    report = mc.check_gradients(EveryMaximum(), (1, 4, 4, 1))
    assert "here 4 entries move together" in str(report)
    for error in report.errors:
        analytic, numeric, _ = numbers_of(error)
        assert analytic == pytest.approx(4 * numeric)


def test_the_wrong_layer_of_a_network_is_seen():
    model = mc.Sequential([mc.layers.Dense(4), mc.layers.Activation("tanh"), NoBiasGradient(2)])
    report = mc.check_gradients(model, (3, 5))
    assert {error.array for error in report.errors} == {"no_bias_gradient/bias"}


# Kinks


class Sawtooth(mc.Op):
    """y = distance of 16 x to the next integer: where 16 x is one, the slope jumps from -16 to 16.

    For 8 inputs the checker takes multiples of 1/16: every one at a kink.
    """

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, x, ctx):
        return np.abs(16 * x - np.round(16 * x))

    def backward(self, dy, ctx, need_dx=True):
        return self.slope * dy


@pytest.mark.parametrize("slope", [-16, 3, 16])
def test_at_a_kink_any_slope_between_both_sides_will_do(slope):
    report = mc.check_gradients(Sawtooth(slope), (2, 4), ties=False)
    assert report.errors == []
    assert report.skipped == report.checked == 8 + 1
    assert not report.ok  # nothing was proved
    assert str(report) == "sawtooth: gradients unchecked (9 slopes, 9 skipped)"


@pytest.mark.parametrize("slope", [-16.1, 17])
def test_at_a_kink_a_slope_beyond_both_is_wrong(slope):
    report = mc.check_gradients(Sawtooth(slope), (2, 4), ties=False)
    assert len(report.errors) == 8


class Clip(mc.Op):
    """y = min(x, limit), with a kink half a step from one input."""

    limit = 0.5625 + 5e-6

    def forward(self, x, ctx):
        ctx[self] = x
        return np.minimum(x, self.limit)

    def backward(self, dy, ctx, need_dx=True):
        return dy * (ctx[self] < self.limit)


def test_a_kink_within_a_step_is_stepped_over():
    report = mc.check_gradients(Clip(), (2, 4), ties=False)
    assert report.ok, report
    assert report.skipped == 0


# What the checker does not change, and its arguments


def test_the_layer_stays_as_it_is():
    model = mc.Sequential([mc.layers.Dense(3), mc.layers.Dense(2)])
    mc.check_gradients(model, (2, 4))
    assert model.input_shape is None
    assert [layer.name for layer in model.layers] == [None, None]
    model.build((None, 4), rng=0)
    before = [(p.value.copy(), p.grad.copy()) for p in model.parameters]
    assert mc.check_gradients(model, (3, 7)).ok  # also for another shape
    assert model.input_shape == (None, 4)
    for parameter, (value, grad) in zip(model.parameters, before, strict=True):
        assert parameter.dtype == np.float32
        np.testing.assert_array_equal(parameter.value, value)
        np.testing.assert_array_equal(parameter.grad, grad)


def test_start_values_hide_nothing():
    layer = mc.layers.Dense(3, kernel_initializer="zeros")
    assert mc.check_gradients(layer, (2, 4)).ok

    class ForgetsTheKernel(mc.layers.Dense):
        def backward(self, dy, ctx, need_dx=True):
            return 0 * super().backward(dy, ctx)

    assert not mc.check_gradients(ForgetsTheKernel(3, kernel_initializer="zeros"), (2, 4)).ok


def test_parameters_that_are_not_trained_have_no_gradient_to_check():
    class Frozen(NoBiasGradient):
        def build(self, input_shape, rng, dtype=np.float32):
            shape = super().build(input_shape, rng, dtype)
            self.bias.trainable = False
            return shape

    assert mc.check_gradients(Frozen(3), (2, 4)).ok


def test_the_same_seed_checks_the_same():
    first, second = (mc.check_gradients(ScaledDx(3), (2, 4), seed=5) for _ in range(2))
    assert first == second
    assert first != mc.check_gradients(ScaledDx(3), (2, 4), seed=6)


def test_dropout_drops_the_same_in_all_passes():
    for layer in (mc.layers.Dropout(0.5), mc.layers.Dropout(0.5, noise_shape=(None, 1))):
        report = mc.check_gradients(layer, (6, 20), training=True)
        assert report.ok, report


def test_training_is_that_of_the_context():
    class Unscaled(mc.layers.Dropout):
        def backward(self, dy, ctx, need_dx=True):
            return super().backward(dy, ctx) / 2 if ctx.training else dy

    assert mc.check_gradients(Unscaled(0.5), (6, 20)).ok
    assert not mc.check_gradients(Unscaled(0.5), (6, 20), training=True).ok


def test_tolerance_decides():
    assert mc.check_gradients(ScaledDx(3), (2, 4), tolerance=0.02).ok
    assert not mc.check_gradients(ScaledDx(3), (2, 4), tolerance=0.001).ok


@pytest.mark.parametrize("shape", [(None, 4), (2, 4.0), (2, 0)])
def test_a_shape_is_of_integers(shape):
    with pytest.raises((TypeError, ValueError), match="`input_shape` must be"):
        mc.check_gradients(mc.layers.Dense(2), shape)


# The report


def test_report_of_what_is_right():
    report = GradientReport("dense", checked=31, skipped=2)
    assert report.ok
    assert str(report) == "dense: gradients right (31 slopes, 2 skipped)"


def test_report_of_what_is_wrong():
    errors = [GradientError("inputs", "it is wrong", (0, i)) for i in range(12)]
    lines = str(GradientReport("dense", errors, checked=31)).splitlines()
    assert lines[0] == "dense: gradients wrong (31 slopes, 0 skipped)"
    assert lines[1] == "  inputs[0, 0]: it is wrong"
    assert lines[10] == "  inputs[0, 9]: it is wrong"
    assert lines[11:] == ["  and 2 more"]
    assert str(GradientError("dy", "it is wrong")) == "dy: it is wrong"


# Ops of several inputs


class Product(mc.Op):
    """The rows of a times the columns of b: (N, K) and (N, K, M) give (N, M)."""

    factor = 1.0

    def build(self, input_shape, rng, dtype=np.float32):
        (_, rows), (_, also_rows, columns) = input_shape
        assert rows == also_rows
        return (None, columns)

    def forward(self, a, b, ctx):
        ctx[self] = a, b
        return np.einsum("nk,nkm->nm", a, b)

    def backward(self, dy, ctx, need_dx=True):
        a, b = ctx[self]
        da = np.einsum("nm,nkm->nk", dy, b)
        return da, self.factor * np.einsum("nm,nk->nkm", dy, a)


SHAPES = [(2, 3), (2, 3, 4)]


def test_an_op_of_two_inputs():
    report = mc.check_gradients(Product(), SHAPES)
    assert report.ok, report
    # One slope for each entry, one along a direction for each array, and one for each tie.
    assert report.checked == (6 + 1) + (24 + 1) + 4 + 8


def test_the_error_names_the_input():
    op = Product()
    op.factor = 0.5
    report = mc.check_gradients(op, SHAPES)
    assert {error.array for error in report.errors} == {"inputs[1]"}
    assert len(report.errors) == 24
    assert str(report.errors[0]).startswith("inputs[1][0, 0, 0]: backward says")


def test_an_input_without_a_gradient_is_not_checked():
    class OnlyFirst(Product):
        def backward(self, dy, ctx, need_dx=True):
            return super().backward(dy, ctx)[0], None

    report = mc.check_gradients(OnlyFirst(), SHAPES, ties=False)
    assert report.ok and report.checked == 6 + 1


@pytest.mark.parametrize("wrong", [lambda a, b: a, lambda a, b: (a,), lambda a, b: [a, b]])
def test_one_gradient_for_each_input(wrong):
    class Wrong(Product):
        def backward(self, dy, ctx, need_dx=True):
            return wrong(*super().backward(dy, ctx))

    message = "wrong: backward must return a tuple of 2 gradients, one for each input"
    with pytest.raises(ValueError, match=message):
        mc.check_gradients(Wrong(), SHAPES)


def test_a_changed_input_of_two_and_a_gradient_of_another_shape():
    class Changes(Product):
        def forward(self, a, b, ctx):
            b[0] = 0
            return super().forward(a, b, ctx)

    assert "inputs: a pass changes them" in map(str, mc.check_gradients(Changes(), SHAPES).errors)

    class Short(Product):
        def backward(self, dy, ctx, need_dx=True):
            da, db = super().backward(dy, ctx)
            return da, db[..., 0]

    (error,) = mc.check_gradients(Short(), SHAPES).errors
    assert str(error) == "inputs[1]: the gradient is of shape (2, 3), not (2, 3, 4)"
