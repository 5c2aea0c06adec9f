"""Tests of minicnn.optimizers against the formulas in plain NumPy."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from tolerances import assert_same_bits

from minicnn.core.parameter import Parameter
from minicnn.kernels import recording
from minicnn.kernels.threads import get_num_threads, set_num_threads
from minicnn.optimizers import (
    SGD,
    Adam,
    AdamW,
    Optimizer,
    RMSprop,
    clip_by_global_norm,
    constant,
    cosine_decay,
    exponential_decay,
    get,
    step_decay,
)

TYPES = [np.float32, np.float64]
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-14}
SHAPES = {"conv2d/kernel": (3, 3, 2, 5), "conv2d/bias": (5,), "dense/kernel": (300, 250)}
RULES = {
    "sgd": lambda rate: SGD(rate),
    "sgd, decay": lambda rate: SGD(rate, weight_decay=0.02),
    "momentum": lambda rate: SGD(rate, momentum=0.9),
    "momentum, decay": lambda rate: SGD(rate, momentum=0.8, weight_decay=0.02),
    "nesterov": lambda rate: SGD(rate, momentum=0.9, nesterov=True),
    "nesterov, decay": lambda rate: SGD(rate, momentum=0.9, nesterov=True, weight_decay=0.02),
    "adam": lambda rate: Adam(rate),
    "adamw": lambda rate: Adam(rate, beta1=0.8, beta2=0.99, epsilon=1e-3, weight_decay=0.1),
    "AdamW": lambda rate: AdamW(rate),
    "rmsprop": lambda rate: RMSprop(rate),
    "rmsprop, momentum": lambda rate: RMSprop(rate, decay=0.7, momentum=0.6, epsilon=0.1),
}


def make_parameters(dtype=np.float32, shapes=SHAPES, seed=0):
    rng = np.random.default_rng(seed)
    return [Parameter(name, rng.normal(size=shape).astype(dtype)) for name, shape in shapes.items()]


def draw_gradients(parameters, seed):
    rng = np.random.default_rng(seed)
    for parameter in parameters:
        parameter.grad[...] = rng.normal(size=parameter.shape)


def run(optimizer, parameters, steps, first=0):
    for step in range(first, first + steps):
        draw_gradients(parameters, seed=100 + step)
        optimizer.step(parameters)
    return [parameter.value.copy() for parameter in parameters]


def expected_sgd(w, gradients, rates, mu=0.0, nesterov=False, decay=0.0):
    v = 0.0
    for g, rate in zip(gradients, rates, strict=True):
        g = g + decay * w
        v = mu * v + g
        w = w - rate * (g + mu * v if nesterov else v)
    return w


def expected_adam(w, gradients, rates, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.0):
    m = s = 0.0
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * g**2
        m_hat, s_hat = m / (1 - beta1**t), s / (1 - beta2**t)
        w = w - rate * (m_hat / (np.sqrt(s_hat) + epsilon)) - rate * decay * w
    return w


def expected_rmsprop(w, gradients, rates, decay=0.9, mu=0.0, epsilon=1e-10):
    s, v = 1.0, 0.0  # TensorFlow's start
    for g, rate in zip(gradients, rates, strict=True):
        s = decay * s + (1 - decay) * g**2
        v = mu * v + rate * g / np.sqrt(s + epsilon)
        w = w - v
    return w


EXPECTED = {
    "sgd": lambda *a: expected_sgd(*a),
    "sgd, decay": lambda *a: expected_sgd(*a, decay=0.02),
    "momentum": lambda *a: expected_sgd(*a, mu=0.9),
    "momentum, decay": lambda *a: expected_sgd(*a, mu=0.8, decay=0.02),
    "nesterov": lambda *a: expected_sgd(*a, mu=0.9, nesterov=True),
    "nesterov, decay": lambda *a: expected_sgd(*a, mu=0.9, nesterov=True, decay=0.02),
    "adam": lambda *a: expected_adam(*a),
    "adamw": lambda *a: expected_adam(*a, beta1=0.8, beta2=0.99, epsilon=1e-3, decay=0.1),
    "AdamW": lambda *a: expected_adam(*a, decay=0.01),
    "rmsprop": lambda *a: expected_rmsprop(*a),
    "rmsprop, momentum": lambda *a: expected_rmsprop(*a, decay=0.7, mu=0.6, epsilon=0.1),
}


# The rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rule", RULES)
def test_steps_follow_the_formula(rule, dtype):
    parameters = make_parameters(dtype)
    rates = [0.1, 0.05, 0.025, 0.0125, 0.00625]
    gradients = []
    for step in range(5):
        draw_gradients(parameters, seed=100 + step)
        gradients.append([p.grad.astype(np.float64) for p in parameters])
    starts = [p.value.astype(np.float64) for p in parameters]

    optimizer = RULES[rule](step_decay(0.1, every=1, factor=0.5))
    values = run(optimizer, parameters, steps=5)

    assert optimizer.iterations == 5
    for i, (start, value) in enumerate(zip(starts, values, strict=True)):
        expected = EXPECTED[rule](start, [g[i] for g in gradients], rates)
        assert value.dtype == dtype
        np.testing.assert_allclose(
            value, expected, rtol=TOLERANCE[dtype], atol=2 * TOLERANCE[dtype]
        )


@pytest.mark.parametrize("rule", RULES)
def test_frozen_parameters_and_gradients_stay(rule):
    parameters = make_parameters()
    frozen = parameters[1]
    frozen.trainable = False
    draw_gradients(parameters, seed=1)
    before = frozen.value.copy()
    gradients = [p.grad.copy() for p in parameters]
    optimizer = RULES[rule](0.1)
    optimizer.step(parameters)
    assert np.array_equal(frozen.value, before)
    assert not any(name.startswith(frozen.name) for name in optimizer.state_dict())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert np.array_equal(parameter.grad, gradient)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", TYPES)
def test_threads_do_not_change_bits(rule, dtype):
    before = get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            set_num_threads(threads)
            results.append(run(RULES[rule](0.01), make_parameters(dtype), steps=3))
    finally:
        set_num_threads(before)
    for one, two in zip(*results, strict=True):
        assert one.tobytes() == two.tobytes()


def test_adam_steps_by_the_rate_at_first_whatever_the_gradient():
    parameter = Parameter("w", np.zeros(4))
    parameter.grad[:] = 1e-3, -1, 1e3, 0
    Adam(0.5).step([parameter])
    np.testing.assert_allclose(parameter.value, [-0.5, 0.5, -0.5, 0], rtol=2e-5)


def test_parameters_may_be_any_iterable():
    parameters = make_parameters()
    draw_gradients(parameters, seed=1)
    optimizer = SGD(1.0)
    start = parameters[1].value.copy()
    optimizer.step(p for p in parameters)
    assert np.array_equal(parameters[1].value, start - parameters[1].grad)
    assert optimizer.iterations == 1


def test_two_parameters_of_one_name():
    twins = [Parameter("dense/bias", np.ones(3)), Parameter("dense/bias", np.ones(3))]
    with pytest.raises(ValueError, match=r"different names, got 'dense/bias' twice; rename"):
        SGD(0.1).step(twins)
    twins[1].trainable = False
    SGD(0.1).step(twins)


@pytest.mark.parametrize("other", [np.ones((2, 4)), np.ones((3, 2), np.float32)])
def test_another_model_does_not_get_this_models_state(other):
    optimizer = SGD(0.1, momentum=0.9)
    optimizer.step([Parameter("w", np.ones((3, 2)))])
    good, bad = Parameter("v", np.ones(2)), Parameter("w", other)
    good.grad[:] = 1
    with pytest.raises(ValueError, match=r"'w/momentum' must be .*got \(3, 2\) float64; .* new"):
        optimizer.step([good, bad])
    assert optimizer.iterations == 1
    assert (good.value == 1).all()


def test_a_rule_of_ones_own_is_one_method():
    class Average(Optimizer):
        slots = ("sum",)

        def update(self, w, g, state, rate):
            state[0] += g
            w -= rate * state[0] / (self.iterations + 1)

    parameters = make_parameters()
    start = parameters[0].value.copy()
    total = 0.0
    optimizer = Average(0.5)
    for step in range(3):
        draw_gradients(parameters, seed=100 + step)
        total = total + parameters[0].grad
        start = start - 0.5 * total / (step + 1)
        optimizer.step(parameters)
    np.testing.assert_allclose(parameters[0].value, start, rtol=1e-5, atol=1e-6)
    state = optimizer.state_dict()
    assert set(state) == {"iterations", *(f"{name}/sum" for name in SHAPES)}
    again = Average(0.5)
    again.load_state_dict(state, parameters)
    assert np.array_equal(again.state_dict()["conv2d/kernel/sum"], state["conv2d/kernel/sum"])


def test_the_bare_base_says_what_is_missing():
    with pytest.raises(TypeError, match="Optimizer must define `update`"):
        Optimizer(0.1).step(make_parameters())


# State --------------------------------------------------------------------------------------------


def through_a_file(state):
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    return np.load(file)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [0, 3])
def test_a_saved_run_continues_to_the_same_bits(rule, dtype, steps):
    schedule = cosine_decay(0.1, decay_steps=8)
    straight = run(RULES[rule](schedule), make_parameters(dtype), steps=steps + 3)

    first = RULES[rule](schedule)
    values = run(first, make_parameters(dtype), steps)
    parameters = make_parameters(dtype, seed=5)
    for parameter, value in zip(parameters, values, strict=True):
        parameter.value[...] = value
    second = RULES[rule](schedule)
    with through_a_file(first.state_dict()) as state:
        second.load_state_dict(state, parameters)
    assert second.iterations == steps
    resumed = run(second, parameters, steps=3, first=steps)
    for a, b in zip(straight, resumed, strict=True):
        assert a.tobytes() == b.tobytes()


def test_the_names_of_the_state():
    draws = make_parameters()
    sgd, adam = SGD(0.1, momentum=0.9), Adam()
    assert set(sgd.state_dict()) == {"iterations"}
    run(sgd, draws, steps=1)
    run(adam, draws, steps=1)
    assert set(sgd.state_dict()) == {"iterations", *(f"{name}/momentum" for name in SHAPES)}
    assert set(adam.state_dict()) == {
        "iterations", *(f"{name}/adam_{letter}" for name in SHAPES for letter in "ms")
    }
    for name, array in adam.state_dict().items():
        assert name == "iterations" or array.dtype == np.float32
    assert SGD(0.1).state_dict() == {"iterations": 0}


def test_the_state_is_copied_out_and_in():
    parameters = make_parameters()
    optimizer = SGD(0.1, momentum=0.9)
    run(optimizer, parameters, steps=1)
    state = optimizer.state_dict()
    kept = state["conv2d/bias/momentum"].copy()
    run(optimizer, parameters, steps=1, first=1)
    assert np.array_equal(state["conv2d/bias/momentum"], kept)
    optimizer.load_state_dict(state, parameters)
    run(optimizer, parameters, steps=1, first=1)
    assert np.array_equal(state["conv2d/bias/momentum"], kept)


def test_a_frozen_parameter_keeps_its_state_and_needs_none():
    parameters = make_parameters()
    optimizer = SGD(0.1, momentum=0.9)
    run(optimizer, parameters, steps=1)
    parameters[0].trainable = False
    run(optimizer, parameters, steps=1)
    state = optimizer.state_dict()
    assert "conv2d/kernel/momentum" in state
    again = SGD(0.1, momentum=0.9)
    again.load_state_dict(state, parameters)
    del state["conv2d/kernel/momentum"]
    again.load_state_dict(state, parameters)
    assert set(again.state_dict()) == set(state)


def momentum_state():
    parameters = make_parameters()
    optimizer = SGD(0.1, momentum=0.9)
    run(optimizer, parameters, steps=2)
    return optimizer, parameters, optimizer.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("conv2d/bias/momentum"),
            r"'conv2d/bias/momentum' is only in the state or .*; load it into the .* that saved it",
        ),
        (
            lambda s: s.update({"dense_1/bias/momentum": np.zeros(7)}),
            "'dense_1/bias/momentum' is only in the state or only in the model; load it",
        ),
        (
            lambda s: s.update({"conv2d/bias/momentum": np.zeros(6)}),
            r"'conv2d/bias/momentum' must be .* \(5,\) float32, got \(6,\) float32; use",
        ),
        (lambda s: s.pop("iterations"), "'iterations' must be a number of steps, got None; load"),
        (lambda s: s.update(iterations=np.array(-1)), "must be a number of steps, got -1"),
        (lambda s: s.update(iterations=np.array(2**63 - 1)), "number of steps, got 9223372036854"),
        (lambda s: s.update(iterations=np.array(1.5)), "must be a number of steps, got 1.5"),
        (lambda s: s.update(iterations=np.array([1])), r"must be a number of steps, got \[1\]"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(change, message):
    optimizer, parameters, state = momentum_state()
    before = optimizer.state_dict()
    state["conv2d/kernel/momentum"] = np.full(SHAPES["conv2d/kernel"], 7.0)
    change(state)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state, parameters)
    after = optimizer.state_dict()
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("slot", "value", "message"), [
    ("adam_m", np.nan, "conv2d/bias/adam_m holds NaN.*, which no step leaves; load it into"),
    ("adam_s", np.nan, "conv2d/bias/adam_s holds NaN"),
    ("adam_s", -1e-30, "conv2d/bias/adam_s holds NaN or a negative mean"),
    ("adam_s", -np.inf, "conv2d/bias/adam_s holds NaN or a negative mean"),
    ("adam_m", -1.0, None),
    ("adam_s", np.inf, None),  # the square of a gradient of 1e20
    ("adam_s", -0.0, None),
])
def test_a_state_that_no_step_leaves_is_refused(slot, value, message):
    parameters, optimizer = make_parameters(), Adam()
    run(optimizer, parameters, steps=1)
    state = optimizer.state_dict()
    state[f"conv2d/bias/{slot}"][-1] = value
    before = optimizer.state_dict()
    if message is None:
        optimizer.load_state_dict(state, parameters)
        return
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(state, parameters)
    for name, array in optimizer.state_dict().items():
        assert np.array_equal(array, before[name])


def test_the_state_of_another_rule():
    _, parameters, state = momentum_state()
    with pytest.raises(ValueError, match="'conv2d/bias/adam_m' is only in the state or"):
        Adam().load_state_dict(state, parameters)
    with pytest.raises(ValueError, match="momentum' is only in the state or"):
        SGD(0.1).load_state_dict(state, parameters)


def test_a_loaded_array_takes_the_type_of_its_parameter():
    optimizer, parameters, state = momentum_state()
    state = {name: np.asfortranarray(array, np.float64) for name, array in state.items()}
    state["iterations"] = 2
    optimizer.load_state_dict(state, parameters)
    run(optimizer, parameters, steps=1)
    assert optimizer.state_dict()["dense/kernel/momentum"].dtype == np.float32


# Rates --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [SGD, Adam])
@pytest.mark.parametrize("rate", [0, 1, 0.5, np.float32(0.25), np.int64(2)])
def test_a_rate_may_be_any_real_number(make, rate):
    optimizer = make(rate)
    assert optimizer.learning_rate == rate
    assert type(optimizer.learning_rate) is float
    assert optimizer.rate() == rate


@pytest.mark.parametrize("make", [SGD, Adam, constant])
@pytest.mark.parametrize(
    ("rate", "error"),
    [(-0.1, ValueError), (math.nan, ValueError), (math.inf, ValueError), (True, TypeError),
     ("0.1", TypeError), (None, TypeError), ([0.1], TypeError)],
)
def test_rates_that_are_none(make, rate, error):
    with pytest.raises(error, match=r"rate` must be a .*number.*, got"):
        make(rate)


def test_a_schedule_is_asked_with_the_steps_done():
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5**step

    optimizer = SGD(schedule)
    parameter = Parameter("w", np.zeros(1))
    parameter.grad[:] = 1
    for _ in range(3):
        optimizer.step([parameter])
    assert asked == [0, 1, 2]
    assert parameter.value == -1.75
    assert optimizer.learning_rate is schedule
    assert optimizer.rate() == 0.125


def test_a_schedule_that_gives_no_rate():
    optimizer = SGD(lambda step: 1.0 - step)
    parameters = make_parameters()
    run(optimizer, parameters, steps=2)
    with pytest.raises(ValueError, match=r"`learning_rate\(2\)` must be .* at least 0, got -1"):
        optimizer.step(parameters)
    assert optimizer.iterations == 2


def test_the_rate_can_be_set_and_is_checked():
    optimizer = SGD(0.1)
    optimizer.learning_rate = 0.2
    assert optimizer.rate() == 0.2
    optimizer.learning_rate = -1
    with pytest.raises(ValueError, match=r"`learning_rate` must be .* at least 0, got -1"):
        optimizer.step(make_parameters())


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (constant(0.3), {0: 0.3, 10**6: 0.3}),
        (step_decay(0.8, 10, 0.5), {0: 0.8, 9: 0.8, 10: 0.4, 19: 0.4, 35: 0.1}),
        (exponential_decay(0.8, 10, 0.25), {0: 0.8, 5: 0.4, 10: 0.2, 15: 0.1}),
        (exponential_decay(0.8, 10, 0.25, staircase=True), {0: 0.8, 9: 0.8, 10: 0.2, 25: 0.05}),
        # cos(pi / 3) = 1/2, cos(pi / 2) = 0, cos(2 pi / 3) = -1/2
        (cosine_decay(0.8, 12), {0: 0.8, 4: 0.6, 6: 0.4, 8: 0.2, 12: 0.0, 99: 0.0}),
        (cosine_decay(0.9, 12, end=0.1), {0: 0.9, 4: 0.7, 6: 0.5, 8: 0.3, 12: 0.1, 99: 0.1}),
    ],
)
def test_schedules_at_points_computed_by_hand(schedule, points):
    for step, rate in points.items():
        assert schedule(step) == pytest.approx(rate, rel=1e-12, abs=1e-15)
        assert type(schedule(step)) is float


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: step_decay(0.1, 0, 0.5), ValueError, "`every` must be at least 1, got 0"),
        (lambda: step_decay(0.1, 1.5, 0.5), TypeError, "`every` must be an integer"),
        (lambda: step_decay(0.1, 1, -0.5), ValueError, "`factor`"),
        (lambda: exponential_decay(-1, 1, 0.5), ValueError, "`rate`"),
        (lambda: exponential_decay(1, 0, 0.5), ValueError, "`decay_steps`"),
        (lambda: exponential_decay(1, 0, 0.5, staircase=True), ValueError, "`decay_steps`"),
        (lambda: exponential_decay(1, 1, "x"), TypeError, "`decay_rate`"),
        (lambda: exponential_decay(1, 1, "x", staircase=True), TypeError, "`decay_rate`"),
        (lambda: cosine_decay(1, 0), ValueError, "`decay_steps`"),
        (lambda: cosine_decay(1, 1, end=-1), ValueError, "`end`"),
        (lambda: SGD(0.1, momentum=1), ValueError, r"`momentum` must be .*\[0, 1\), got 1"),
        (lambda: SGD(0.1, nesterov=True), ValueError, "`momentum` must be above 0 with nesterov"),
        (lambda: SGD(0.1, weight_decay=-1), ValueError, "`weight_decay`"),
        (lambda: RMSprop(0.1, decay=1), ValueError, "`decay`"),
        (lambda: RMSprop(0.1, momentum=-0.1), ValueError, "`momentum`"),
        (lambda: RMSprop(0.1, epsilon=0), ValueError, "`epsilon` .* at least 1.*e-38, got 0"),
        (lambda: Adam(beta1=1), ValueError, "`beta1`"),
        (lambda: Adam(beta2=-0.1), ValueError, "`beta2`"),
        (lambda: Adam(epsilon=0), ValueError, "`epsilon` .* at least 1.*e-38, got 0"),
        # float32, the type of the parameters, rounds these to 0 or to infinity
        (lambda: Adam(epsilon=1e-50), ValueError, "`epsilon` .* at least 1.*e-38, got 1e-50"),
        (lambda: RMSprop(0.1, epsilon=1e-50), ValueError, "at least 1.*e-38, got 1e-50"),
        (lambda: clip_by_global_norm([], 1e-50), ValueError, "`max_norm` .* 1.*e-38, got 1e-50"),
        (lambda: SGD(1e39), ValueError, r"`learning_rate` must be a float32 number .*1e\+39"),
        (lambda: Adam(weight_decay=1e39), ValueError, "`weight_decay` must be a float32 number"),
        (lambda: SGD(lambda: 0.1), TypeError, r"a function of the step, got .*, which takes \(\)"),
        (lambda: SGD(cosine_decay), TypeError, "takes .rate: float, decay_steps"),
        (lambda: Adam(weight_decay=math.nan), ValueError, "`weight_decay`"),
    ],
)
def test_arguments_are_checked(make, error, message):
    with pytest.raises(error, match=message):
        make()


# Clipping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", TYPES)
def test_clipping(dtype):
    parameters = make_parameters(dtype)
    draw_gradients(parameters, seed=1)
    before = [p.grad.astype(np.float64) for p in parameters]
    expected = math.sqrt(sum((g**2).sum() for g in before))

    norm = clip_by_global_norm(parameters, max_norm=expected * 1.01)
    assert norm == pytest.approx(expected, rel=1e-12)
    assert type(norm) is float
    for p, g in zip(parameters, before, strict=True):
        assert np.array_equal(p.grad, g)

    assert clip_by_global_norm(parameters, max_norm=2) == norm
    for p, g in zip(parameters, before, strict=True):
        np.testing.assert_allclose(p.grad, g * (2 / expected), rtol=TOLERANCE[dtype])
    assert clip_by_global_norm(parameters, max_norm=5) == pytest.approx(2, rel=TOLERANCE[dtype])


def test_clipping_leaves_frozen_parameters_out():
    parameters = [Parameter("a", np.zeros(2)), Parameter("b", np.zeros(2), trainable=False)]
    parameters[0].grad[:] = 3, 4
    parameters[1].grad[:] = 100
    assert clip_by_global_norm(parameters, 1) == 5
    np.testing.assert_allclose(parameters[0].grad, [0.6, 0.8])
    assert (parameters[1].grad == 100).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_is_told_and_changes_nothing(bad):
    parameter = Parameter("a", np.zeros(3, np.float32))
    parameter.grad[:] = 3, bad, 4
    assert not math.isfinite(clip_by_global_norm([parameter], 1))
    assert np.array_equal(parameter.grad, np.float32([3, bad, 4]), equal_nan=True)


def test_large_float32_gradients_do_not_overflow():
    parameter = Parameter("a", np.zeros(4, np.float32))
    parameter.grad[:] = 1e30
    assert clip_by_global_norm([parameter], 1) == pytest.approx(2e30, rel=1e-6)
    np.testing.assert_allclose(parameter.grad, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("max_norm", "error"), [(0, ValueError), (-1, ValueError), (math.nan, ValueError),
                            ("1", TypeError)],
)
def test_max_norm_is_checked(max_norm, error):
    with pytest.raises(error, match="`max_norm` must be"):
        clip_by_global_norm([], max_norm)


# get ----------------------------------------------------------------------------------------------


def test_get_by_name():
    sgd, momentum, adam = get("sgd", 0.1), get("Momentum", 0.2), get("ADAM", 0.3)
    assert type(sgd) is SGD
    assert type(momentum) is SGD
    assert type(adam) is Adam
    assert type(get("AdamW", 0.1)) is AdamW and type(get("RMSProp", 0.1)) is RMSprop
    assert (sgd.momentum, momentum.momentum) == (0, 0.9)
    assert [o.learning_rate for o in (sgd, momentum, adam)] == [0.1, 0.2, 0.3]


def test_get_from_classes_functions_and_instances():
    assert type(get(Adam, 0.1)) is Adam
    made = get(lambda rate: SGD(rate, momentum=0.5), 0.1)
    assert (made.learning_rate, made.momentum) == (0.1, 0.5)
    optimizer = SGD(0.1)
    assert get(optimizer) is optimizer
    assert optimizer.learning_rate == 0.1
    assert get(optimizer, 0.3) is optimizer
    assert optimizer.learning_rate == 0.3


@pytest.mark.parametrize(
    ("optimizer", "rate", "error", "message"),
    [
        ("Adagrad", 0.1, ValueError, "'sgd' or 'momentum' or .* 'rmsprop' or an Optimizer, got"),
        ("SGD", None, ValueError, "`learning_rate` must be given with 'SGD', got None"),
        (Adam, None, ValueError, "`learning_rate` must be given with"),
        ("SGD", -1, ValueError, "`learning_rate`"),
        (3, 0.1, TypeError, "`optimizer` must be a name, .*, got 3"),
        (lambda rate: None, 0.1, TypeError, "`optimizer` must be a name, .*, got <function"),
    ],
)
def test_get_refuses(optimizer, rate, error, message):
    with pytest.raises(error, match=message):
        get(optimizer, rate)


MAKERS = {
    "sgd": lambda: SGD(0.1),
    "nesterov": lambda: SGD(
        step_decay(0.1, 3, 0.5), momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda: Adam(0.01),
    "adamw": lambda: AdamW(0.01),
    "rmsprop": lambda: RMSprop(0.01, momentum=0.5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_recorded_steps_are_those_that_python_makes(make, monkeypatch):
    """Also if parameters freeze, have other names or types, or the optimizer is copied."""
    monkeypatch.setattr(recording.Repeatable.__init__, "__defaults__", (2,))
    models, both = [], [make(), make()]
    for _ in both:
        rng = np.random.default_rng(0)
        models.append([Parameter(f"{i}/w", rng.standard_normal((3 + i, 5), np.float32))
                       for i in range(3)])
    was_recorded = 0
    for step in range(30):
        for parameters in models:
            rng = np.random.default_rng(step)
            for parameter in parameters:
                parameter.grad[...] = rng.standard_normal(parameter.shape)
            parameters[1].trainable = step // 6 != 1
            parameters[0].name = "renamed/w" if step >= 12 else "0/w"
            if step == 18:
                parameters[2] = Parameter("3/w", rng.standard_normal(4))  # float64
            if step == 24:
                parameters[2].trainable = False
        if step == 4:
            both[0] = copy.deepcopy(both[0])
        if step == 28:
            both[0] = pickle.loads(pickle.dumps(both[0]))
        both[1]._known = None  # so that nothing is recorded
        for optimizer, parameters in zip(both, models, strict=True):
            optimizer.step(parameters)
        was_recorded += both[0]._call.is_recorded
        for one, other in zip(*models, strict=True):
            assert_same_bits(one.value, other.value)
    assert was_recorded > 8


def test_an_update_of_a_subclass_is_not_passed_over():
    class Halved(Adam):
        def update(self, w, g, state, rate):
            w /= 2

    parameter = Parameter("w", np.ones(2, np.float32))
    Halved().step([parameter])
    assert_array_equal(parameter.value, 0.5)


def test_a_recorded_step_does_not_write_to_a_read_only_parameter(monkeypatch):
    monkeypatch.setattr(recording.Repeatable.__init__, "__defaults__", (1,))
    parameter, sgd = Parameter("w", np.ones(2, np.float32)), SGD(1.0)
    parameter.grad[...] = 1
    for _ in range(4):
        sgd.step([parameter])
    parameter.value.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        sgd.step([parameter])
    assert_array_equal(parameter.value, -3)


def test_a_recorded_step_does_not_hide_that_sgd_has_another_rule(monkeypatch):
    monkeypatch.setattr(recording.Repeatable.__init__, "__defaults__", (1,))
    parameter, sgd = Parameter("w", np.ones(2, np.float32)), SGD(1.0)
    for _ in range(4):
        sgd.step([parameter])
    sgd.momentum = 0.9  # without the array that it needs
    with pytest.raises(TypeError):
        sgd.step([parameter])


def test_an_update_of_an_instance_is_not_passed_over():
    parameter, sgd = Parameter("w", np.ones(2, np.float32)), SGD(1.0)
    sgd.update = lambda w, g, state, rate: np.copyto(w, 5)
    sgd.step([parameter])
    assert_array_equal(parameter.value, 5)


def test_an_optimizer_that_an_earlier_version_has_pickled():
    parameter, sgd = Parameter("w", np.ones(2, np.float32)), SGD(1.0)
    sgd.__dict__ = {name: vars(sgd)[name] for name in (
        "learning_rate", "iterations", "_state", "momentum", "nesterov", "weight_decay", "slots"
    )}
    parameter.grad[...] = 1
    sgd.step([parameter])
    assert_array_equal(parameter.value, 0)
