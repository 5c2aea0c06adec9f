"""Tests of minicnn.hooks in training runs, with an artificial clock."""

import copy
import logging
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn import hooks
from minicnn.hooks import SessionRunArgs, SessionRunHook

ROWS = 40
X = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
Y = np.arange(ROWS) % 3
ACCURACY = {"accuracy": mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")}


def network(rate=0.1, decay=None, layer=None):
    def model_fn(features, labels, mode):
        h = mc.layers.dense(features, 5, activation=mc.relu, name="hidden")
        logits = (layer or mc.layers.Dense(3, name="logits"))(h)
        loss = train_op = None
        if mode != mc.ModeKeys.INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
        if mode == mc.ModeKeys.TRAIN:
            train_op = mc.optimize_loss(
                loss, learning_rate=rate, optimizer="SGD", learning_rate_decay_fn=decay
            )
        predictions = {
            "classes": mc.argmax(logits, axis=1),
            "probabilities": mc.softmax(logits, name="softmax_tensor"),
        }
        return mc.ModelFnOps(mode, predictions, loss, train_op)
    return model_fn


class Fetch(SessionRunHook):
    """Keep the values fetched in each step, and a copy of them."""

    def __init__(self, fetches):
        self.fetches, self.results, self.copies = fetches, [], []

    def before_run(self, run_context):
        return SessionRunArgs(self.fetches)

    def after_run(self, run_context, run_values):
        self.results.append(run_values.results)
        self.copies.append(copy.deepcopy(run_values.results))


class Tick(SessionRunHook):
    """Let one second pass in every step."""

    def __init__(self, clock, seconds=1.0):
        self.clock, self.seconds = clock, seconds

    def before_run(self, run_context):
        self.clock.now += self.seconds


@pytest.fixture
def run(tmp_path):
    """Return `fit` of an Estimator that continues from call to call."""
    estimators = {}

    def fit(*monitors, steps=1, model_fn=None, x=X, **config):
        if not estimators or model_fn is not None:
            config = mc.RunConfig(seed=1, **config)
            estimators[0] = mc.Estimator(model_fn or network(), tmp_path, config=config)
        return estimators[0].fit(x, Y, steps=steps, batch_size=10, monitors=list(monitors))
    return fit


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def lines(caplog):
    """Return the log messages of minicnn that contain `word`."""
    caplog.set_level(logging.INFO, logger="minicnn")

    def read(word):
        return [text for record in caplog.records if word in (text := record.getMessage())]
    return read


# The protocol -------------------------------------------------------------------------------------


class Notes(SessionRunHook):
    def __init__(self, notes, name):
        self.notes, self.name = notes, name

    def begin(self):
        self.notes.append(f"{self.name} begin")

    def before_run(self, run_context):
        self.notes.append(f"{self.name} before {run_context.session.global_step}")

    def after_run(self, run_context, run_values):
        self.notes.append(f"{self.name} after {run_context.session.global_step}")
        assert run_values.results is None  # nothing was requested

    def end(self, session):
        self.notes.append(f"{self.name} end {session.global_step}")


def test_the_order_of_calls(run):
    notes = []
    run(Notes(notes, "a"), Notes(notes, "b"), steps=2)
    assert notes == [
        "a begin", "b begin",
        "a before 0", "b before 0", "a after 1", "b after 1",
        "a before 1", "b before 1", "a after 2", "b after 2",
        "a end 2", "b end 2",
    ]


def test_end_is_not_called_where_an_error_stopped_the_run(run):
    notes = []
    with pytest.raises(mc.NanLossError):
        run(Notes(notes, "a"), x=np.full_like(X, math.nan))
    assert "a begin" in notes
    assert not any("end" in note for note in notes)


def test_results_mirror_the_form_of_the_fetches(run):
    tensors = {}

    def model_fn(features, labels, mode):
        ops = network()(features, labels, mode)
        tensors[mode] = ops.predictions["classes"]
        return ops

    class Look(SessionRunHook):
        def before_run(self, run_context):
            kernel = ["hidden/kernel", {"b": "logits/bias"}]
            return SessionRunArgs({
                "one": "softmax_tensor", "list": ["loss", "global_step"], "deep": kernel,
                "tensor": tensors["train"], "rate": "learning_rate", "none": [], "fed": "labels",
                "pair": ("softmax_tensor:0", "hidden"),
            })

        def after_run(self, run_context, run_values):
            self.results = run_values.results

    look = Look()
    run(look, model_fn=model_fn)
    got = look.results
    assert list(got) == ["one", "list", "deep", "tensor", "rate", "none", "fed", "pair"]
    assert got["one"].shape == (10, 3)
    loss, step = got["list"]
    assert isinstance(loss, float)
    assert step == 1
    assert got["deep"][0].shape == (4, 5)
    assert got["deep"][1]["b"].shape == (3,)
    np.testing.assert_array_equal(got["tensor"], got["one"].argmax(axis=1))
    assert got["rate"] == 0.1
    assert got["none"] == []
    assert got["fed"].dtype == Y.dtype
    assert_same_bits(got["pair"][0], got["one"])
    assert got["pair"][1].shape == (10, 5)


@pytest.mark.parametrize("name, shape", [
    ("softmax_tensor", (10, 3)), ("hidden/kernel", (4, 5)), ("features", (10, 4)), ("loss", ()),
    ("global_step", ()), ("learning_rate", ()),
])
def test_a_single_name_gives_a_single_value(run, name, shape):
    fetch = Fetch(name)
    run(fetch)
    assert np.shape(fetch.results[0]) == shape


def test_the_values_of_a_step_belong_together(run):
    """The loss, the parameters it was computed with, and the data of the same step."""
    fetch = Fetch(["features", "hidden", "hidden/kernel", "hidden/bias", "global_step"])
    run(fetch, steps=3, model_fn=network(rate=1.0))
    for number, (x, hidden, kernel, bias, step) in enumerate(fetch.results, start=1):
        np.testing.assert_allclose(hidden, np.maximum(x @ kernel + bias, 0), atol=1e-5)
        assert step == number
    assert not np.array_equal(fetch.results[0][2], fetch.results[1][2])


def test_fetched_arrays_are_the_hooks_own(run, tmp_path):
    for name in ("softmax_tensor", "hidden", "hidden/kernel", "features"):
        fetch = Fetch(name)
        run(fetch, steps=4)
        for result, at_once in zip(fetch.results, fetch.copies, strict=True):
            assert_same_bits(result, at_once)
        assert not np.array_equal(fetch.results[0], fetch.results[3])

    class Scribble(Fetch):
        def after_run(self, run_context, run_values):
            for array in run_values.results:
                array[...] = 9

    config = mc.RunConfig(seed=1)
    scribble = Scribble(["hidden/kernel", "softmax_tensor", "features", "logits"])
    first, second = (
        mc.Estimator(network(), tmp_path / str(number), config=config)
        .fit(X, Y, steps=3, batch_size=10, monitors=monitors)
        for number, monitors in enumerate(([], [scribble]))
    )
    for name in first.get_variable_names():
        assert_same_bits(first.get_variable_value(name), second.get_variable_value(name))


def test_the_learning_rate_of_each_step(run):
    fetch = Fetch("learning_rate")
    run(fetch, steps=3, model_fn=network(rate=0.8, decay=lambda rate, step: rate / 2**step))
    assert fetch.results == [0.8, 0.4, 0.2]


def test_request_stop_ends_the_run_after_the_step(run):
    notes = []

    class Stop(SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == 3:
                run_context.request_stop()

    class StopBefore(SessionRunHook):
        def before_run(self, run_context):
            run_context.request_stop()

    run(Stop(), Notes(notes, "a"), steps=10)
    assert notes[-2:] == ["a after 3", "a end 3"]
    estimator = run(StopBefore(), Notes(notes, "b"), steps=10)
    assert notes[-2:] == ["b after 4", "b end 4"]
    assert estimator.evaluate(X, Y)["global_step"] == 4


def test_a_hook_saves_and_evaluates_the_weights_of_the_moment(run, tmp_path):
    class Work(SessionRunHook):
        def end(self, session):
            self.result = session.evaluate(x=X, y=Y, metrics=ACCURACY)

        def after_run(self, run_context, run_values):
            session = run_context.session
            if session.global_step == 3:
                session.save()
            assert session.graph.find("softmax_tensor").shape == (None, 3)
            assert "hidden/kernel" in session.parameters

    work = Work()
    estimator = run(work, steps=5)
    assert (tmp_path / "model.ckpt-3.npz").is_file()
    assert work.result == estimator.evaluate(X, Y, metrics=ACCURACY)


UNKNOWN = [
    ("softmax_tensr", ["'softmax_tensr'", "similar names: softmax_tensor"]),
    ("hidden/kernels", ["'hidden/kernels'", "hidden"]),
    ("zzzz", ["'zzzz'", "must be one of", "logits", "softmax_tensor"]),
]


@pytest.mark.parametrize("name, words", UNKNOWN)
@pytest.mark.parametrize("make", [
    lambda name: Fetch(["loss", name]),
    lambda name: hooks.LoggingTensorHook({"tag": name}, every_n_iter=50),
    lambda name: hooks.LoggingTensorHook([name], every_n_secs=600),
])
def test_an_unknown_name_is_an_error_before_the_first_step_changes_a_weight(
    run, tmp_path, make, name, words
):
    layer = mc.layers.Dense(3, name="logits")
    layer.build((None, 5), rng=0)
    before = layer.kernel.value.copy()
    with pytest.raises(ValueError) as caught:
        run(make(name), steps=3, model_fn=network(layer=layer))
    for word in words:
        assert word in str(caught.value)
    assert_same_bits(layer.kernel.value, before)
    assert not list(tmp_path.glob("model.ckpt*"))


def test_a_tensor_of_another_graph(run):
    other = mc.Graph().placeholder("x", (None, 4), np.float32)
    with pytest.raises(ValueError, match=r"'x'.*belongs to another graph"):
        run(Fetch(other))


@pytest.mark.parametrize("wrong", [5, mc.Parameter("w", np.zeros(2))])
def test_what_cannot_be_fetched_is_named(run, wrong):
    with pytest.raises((TypeError, ValueError), match=r"5|Parameter"):
        run(Fetch({"wrong": wrong}))


# LoggingTensorHook --------------------------------------------------------------------------------


def test_logging_at_the_first_step_and_then_every_nth(run, lines):
    run(steps=3)
    hook = hooks.LoggingTensorHook({"at": "global_step"}, every_n_iter=50)
    run(hook, steps=102)
    run(hook, steps=1)  # a new run starts again
    got = lines("at = ")
    assert [line.split()[2] for line in got] == ["4", "54", "104", "106"]
    assert got[0] == "at = 4"
    assert re.fullmatch(r"at = 54 \(\d+\.\d{3} sec\)", got[1])
    assert got[3] == "at = 106"


def test_the_guides_hook(run, lines):
    run(hooks.LoggingTensorHook(tensors={"probabilities": "softmax_tensor"}, every_n_iter=50))
    (line,) = lines("probabilities = ")
    assert line.startswith("probabilities = [[0.")


def test_pairs_stand_in_one_line_with_the_time_since_the_last(run, lines, clock):
    hook = hooks.LoggingTensorHook({"a": "global_step", "b": "learning_rate"}, every_n_iter=2)
    run(hook, Tick(clock, 0.25), steps=5)
    assert lines("a = ") == [
        "a = 1, b = 0.1", "a = 3, b = 0.1 (0.500 sec)", "a = 5, b = 0.1 (0.500 sec)",
    ]


def test_a_list_of_names_and_a_formatter(run, lines):
    def formatter(values):
        assert list(values) == ["global_step", "softmax_tensor"]
        return f"step {values['global_step']} of {values['softmax_tensor'].shape}"

    names = ["global_step", "softmax_tensor"]
    run(hooks.LoggingTensorHook(names, every_n_iter=2, formatter=formatter), steps=3)
    assert lines(" of ") == ["step 1 of (10, 3)", "step 3 of (10, 3)"]
    run(hooks.LoggingTensorHook(["global_step"], every_n_iter=2))
    assert lines("global_step = ") == ["global_step = 4"]


def test_every_n_secs(run, lines, clock):
    hook = hooks.LoggingTensorHook({"at": "global_step"}, every_n_secs=3)
    run(Tick(clock), hook, steps=8)
    assert lines("at = ") == ["at = 1", "at = 4 (3.000 sec)", "at = 7 (3.000 sec)"]


@pytest.mark.parametrize("steps, expected", [(4, ["1", "4"]), (3, ["1", "3"]), (1, ["1"])])
def test_at_end_logs_the_last_step_once(run, lines, steps, expected):
    run(hooks.LoggingTensorHook({"at": "global_step"}, every_n_iter=2, at_end=True), steps=steps)
    at = [line.split()[2] for line in lines("at = ")]
    assert at == (["1", "3", "4"] if steps == 4 else expected)


ONE_OF_TWO = [
    (lambda **k: hooks.LoggingTensorHook(["loss"], **k), "every_n_iter", "every_n_secs", True),
    (hooks.CheckpointSaverHook, "save_steps", "save_secs", True),
    (hooks.StopAtStepHook, "num_steps", "last_step", True),
    (hooks.StepCounterHook, "every_n_steps", "every_n_secs", False),
    (hooks.Timer, "every_steps", "every_secs", True),
]


@pytest.mark.parametrize("make, first, second, needed", ONE_OF_TWO)
def test_exactly_one_interval(make, first, second, needed):
    with pytest.raises(ValueError, match=rf"exactly one of `{first}` and `{second}`"):
        make(**{first: 5, second: 5})
    if needed:
        with pytest.raises(ValueError, match=rf"exactly one of `{first}` and `{second}`"):
            make()
    make(**{first: 5})
    make(**{second: 5})
    with pytest.raises(ValueError, match=f"`{first}` must be at least 1, got 0"):
        make(**{first: 0})
    with pytest.raises(TypeError, match=f"`{second}` must be"):
        make(**{second: "often"})


def test_a_name_alone_is_no_list_of_names():
    with pytest.raises(TypeError, match=r"`tensors` must be a list.*write \['loss'\]"):
        hooks.LoggingTensorHook("loss", every_n_iter=1)


# The other hooks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("hook, end", [
    (lambda: hooks.StopAtStepHook(num_steps=2), 5),
    (lambda: hooks.StopAtStepHook(last_step=6), 6),
])
def test_stop_at_step(run, hook, end):
    run(steps=3)
    assert run(hook(), steps=10).evaluate(X, Y)["global_step"] == end


def test_a_step_that_is_reached_is_not_passed(run, lines):
    for _ in range(2):
        estimator = run(hooks.StopAtStepHook(last_step=3), steps=10)
        assert estimator.evaluate(X, Y)["global_step"] == 3
    (said,) = lines("Already")
    assert said.startswith("Already at step 3 of 3; nothing to do.")


def test_a_stop_hook_is_used_again(run):
    hook = hooks.StopAtStepHook(num_steps=2)
    for end in (2, 4):
        assert run(hook, steps=10).evaluate(X, Y)["global_step"] == end


def saved(folder):
    return sorted(int(path.stem.split("-")[1]) for path in folder.glob("model.ckpt-*.npz"))


def test_a_checkpoint_saver_of_ones_own_replaces_the_estimators(run, tmp_path):
    run(hooks.CheckpointSaverHook(save_steps=3), steps=8, save_checkpoints_steps=1)
    assert saved(tmp_path) == [1, 4, 7, 8]


def test_checkpoints_by_seconds(run, tmp_path, clock):
    run(Tick(clock, 100), steps=15)  # every 600 seconds by default
    assert saved(tmp_path) == [1, 7, 13, 15]


def test_a_checkpoint_is_written_once_a_step(run, lines):
    run(steps=7, save_checkpoints_steps=3)
    assert [line.split()[3] for line in lines("Saving checkpoints")] == ["1", "4", "7"]


def test_steps_a_second(run, lines, clock):
    run(Tick(clock, 0.25), hooks.StepCounterHook(every_n_steps=2), steps=5)
    assert lines("global_step/sec") == ["global_step/sec: 4"] * 2
    run(Tick(clock, 0.25), hooks.StepCounterHook(every_n_secs=0.5), steps=5)
    assert lines("global_step/sec") == ["global_step/sec: 4"] * 4


def test_steps_a_second_are_logged_every_hundred_steps(run, lines, clock):
    run(Tick(clock, 0.5), steps=201)
    assert lines("global_step/sec") == ["global_step/sec: 2"] * 2


def test_each_element_of_a_tensor_is_to_be_finite(run):
    run(hooks.NanTensorHook("hidden"), steps=2)
    hook = hooks.NanTensorHook("hidden")
    with pytest.raises(mc.NanLossError, match="the loss is inf at step 3"):
        hook.after_run(
            SimpleNamespace(session=SimpleNamespace(global_step=3)),
            hooks.SessionRunValues(np.array([[3e38, 3e38], [math.inf, 0]], np.float32)),
        )


def test_nan_is_an_error_or_the_end(run, lines):
    broken = np.full_like(X, math.nan)
    with pytest.raises(mc.NanLossError, match=r"loss is nan at step 1; lower the learning rate"):
        run(hooks.NanTensorHook("loss", fail_on_nan_loss=True), x=broken, steps=5)
    run(hooks.NanTensorHook("loss", fail_on_nan_loss=False), x=broken, steps=5)
    (line,) = lines("diverged")
    assert "the loss is nan at step 1" in line


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_nan_hook_by_itself(value, lines):
    context = hooks.SessionRunContext(SimpleNamespace(global_step=7))
    assert hooks.NanTensorHook("loss").before_run(context) == SessionRunArgs("loss")
    hooks.NanTensorHook("loss").after_run(context, hooks.SessionRunValues(1e30))
    with pytest.raises(mc.NanLossError, match="at step 7"):
        hooks.NanTensorHook("loss").after_run(context, hooks.SessionRunValues(value))
    assert not context.stop_requested
    hook = hooks.NanTensorHook("loss", fail_on_nan_loss=False)
    hook.after_run(context, hooks.SessionRunValues(1e30))
    assert not context.stop_requested
    hook.after_run(context, hooks.SessionRunValues(value))
    assert context.stop_requested
    assert len(lines("diverged")) == 1


# ValidationMonitor --------------------------------------------------------------------------------


def test_validation_uses_the_weights_in_memory(run, tmp_path, lines):
    monitor = hooks.ValidationMonitor(X, Y, metrics=ACCURACY, batch_size=7, every_n_steps=10)
    estimator = run(monitor, steps=31)
    summaries = lines("Saving evaluation summary for step")
    assert [line.split()[5] for line in summaries] == ["11:", "21:", "31:"]
    assert monitor.best_step == 31
    assert monitor.best_value == pytest.approx(estimator.evaluate(X, Y)["loss"], rel=1e-6)
    assert not monitor.early_stopped
    assert saved(tmp_path) == [1, 31]  # needs no checkpoint


def test_validation_does_not_disturb_training(tmp_path):
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=2)
    first, second = (
        mc.Estimator(network(), tmp_path / str(number), config=mc.RunConfig(seed=1))
        .fit(X, Y, steps=9, batch_size=10, monitors=monitors)
        for number, monitors in enumerate(([], [monitor]))
    )
    for name in first.get_variable_names():
        assert_same_bits(first.get_variable_value(name), second.get_variable_value(name))


def test_the_rate_of_a_timer(monkeypatch):
    timer = hooks.Timer(every_steps=5)
    for now, step, rate in ((10.0, 3, None), (12.0, 13, 5.0), (12.5, 14, 2.0)):
        monkeypatch.setattr(hooks.time, "monotonic", lambda now=now: now)
        assert timer.rate(step) == rate
    assert timer.last_step == 14


def test_early_stopping(run, lines):
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=2, early_stopping_rounds=4)
    estimator = run(monitor, steps=50, model_fn=network(rate=0.0))  # it never improves
    assert monitor.early_stopped
    assert monitor.best_step == 3  # evaluated at 3, 5 and 7
    assert estimator.evaluate(X, Y)["global_step"] == 7
    assert any(re.search(r"loss .*since step 3", line) for line in lines("Stopping"))


def results(*values):
    """Return a session whose evaluations give these accuracies, every second step."""
    def evaluate(**data):
        return {"accuracy": values[session.global_step // 2 - 1], "loss": 1.0}

    session = SimpleNamespace(global_step=1, evaluate=evaluate, save_best=lambda name: None)
    return session


def watched(session, minimize):
    """Return a monitor that has watched a session to its early stop."""
    monitor = hooks.ValidationMonitor(
        X, Y, every_n_steps=2, early_stopping_rounds=6, early_stopping_metric="accuracy",
        early_stopping_metric_minimize=minimize,
    )
    context = hooks.SessionRunContext(session)
    while not context.stop_requested:
        monitor.after_run(context, hooks.SessionRunValues(None))
        session.global_step += 1
    return monitor


@pytest.mark.parametrize("minimize, best_step, end", [(False, 7, 13), (True, 9, 15)])
def test_early_stopping_by_a_metric(minimize, best_step, end):
    session = results(0.5, 0.6, 0.9, 0.1, 0.8, 0.7, 0.6, 0.5, 0.4)  # at 3, 5, 7, ...
    monitor = watched(session, minimize)
    assert (monitor.best_step, session.global_step - 1) == (best_step, end)
    assert monitor.best_value == (0.1 if minimize else 0.9)


def test_a_monitor_starts_again_with_a_new_run(tmp_path):
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=2, early_stopping_rounds=4)
    for number in range(2):
        mc.Estimator(network(rate=0.0), tmp_path / str(number), config=mc.RunConfig(seed=1)).fit(
            X, Y, steps=50, batch_size=10, monitors=[monitor])
        assert (monitor.best_step, monitor.early_stopped) == (3, True)
        assert saved(tmp_path / str(number)) == [1, 7]


def test_a_monitor_continues_with_a_continued_run(run):
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=2, early_stopping_rounds=4)
    for end in (5, 7):
        estimator = run(monitor, steps=5, model_fn=network(rate=0.0))
        assert estimator.evaluate(X, Y)["global_step"] == end
        assert monitor.early_stopped == (end == 7)
    run(monitor, steps=1)
    assert not monitor.early_stopped


@pytest.mark.parametrize("minimize, best", [(False, 0.6), (True, 0.5)])
def test_nan_is_worse_than_any_number(minimize, best):
    session = results(math.nan, 0.5, 0.6, math.nan, *[0.55] * 9)
    monitor = watched(session, minimize)
    assert monitor.best_value == best


def test_a_metric_that_is_an_array_cannot_stop(run):
    matrix = {"matrix": mc.MetricSpec(mc.metrics.confusion_matrix, "classes")}
    monitor = hooks.ValidationMonitor(X, Y, metrics=matrix, every_n_steps=1,
                                      early_stopping_metric="matrix")
    with pytest.raises(ValueError, match="must be one of 'loss', got 'matrix'"):
        run(monitor, steps=3)


def test_validation_needs_data():
    with pytest.raises(ValueError, match="give exactly one of `x` and `input_fn`, got None"):
        hooks.ValidationMonitor()
    hooks.ValidationMonitor(input_fn=lambda: [(X, Y)])


def test_validation_arguments(run):
    with pytest.raises(ValueError, match="`every_n_steps` must be at least 1, got 0"):
        hooks.ValidationMonitor(X, Y, every_n_steps=0)
    with pytest.raises(ValueError, match="`early_stopping_rounds` must be at least 1, got 0"):
        hooks.ValidationMonitor(X, Y, early_stopping_rounds=0)
    with pytest.raises(ValueError, match=r"must be one of 'loss', 'accuracy', got 'acc'"):
        hooks.ValidationMonitor(X, Y, early_stopping_metric="acc", metrics=ACCURACY)
    with pytest.raises(ValueError, match="give exactly one of `x` and `input_fn`, got x=an array"):
        hooks.ValidationMonitor(X, input_fn=lambda: [(X, Y)])
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=1, early_stopping_metric="acc")
    with pytest.raises(ValueError, match=r"`early_stopping_metric` must be one of 'loss', got"):
        run(monitor, steps=3)
