"""Tests of minicnn.summaries: the contents of the event files, as TensorBoard reads them."""

import io
import json
import math
import pickle
import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorboardX", reason='pip install -e ".[tensorboard]"')
pytest.importorskip("tensorboard", reason='pip install -e ".[tensorboard]"')
pytest.importorskip("PIL", reason='pip install -e ".[tensorboard]"')

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_INT64
from tolerances import assert_same_bits

import minicnn as mc
from minicnn import hooks
from minicnn.summaries import SummarySaverHook, graph_def

RNG = np.random.default_rng(0)
X = RNG.random((40, 36), dtype=np.float32)
Y = np.arange(40) % 3
ACCURACY = mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")
NAMES = {"conv2d/kernel", "conv2d/bias", "dense/kernel", "dense/bias"}


def model_fn(features, labels, mode, params):
    params = {"channels": 1, **(params or {})}
    images = mc.reshape(features, [-1, 6, 6 // params["channels"], params["channels"]])
    conv = mc.layers.conv2d(images, filters=4, kernel_size=2, activation=mc.relu)
    logits = mc.layers.dense(mc.layers.flatten(conv), units=3)
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(
            loss, learning_rate=0.1, learning_rate_decay_fn=lambda rate, step: rate / (1 + step)
        )
    predictions = {"classes": mc.argmax(logits, axis=1, name="classes")}
    return mc.ModelFnOps(mode, predictions, loss, train_op)


class Look(hooks.SessionRunHook):
    """Record the values of each step that TensorBoard should show."""

    def __init__(self):
        self.scalars, self.values = {}, {}

    def before_run(self, run_context):
        return hooks.SessionRunArgs(["loss", "learning_rate", "classes", "labels"])

    def after_run(self, run_context, run_values):
        session = run_context.session
        self.graph = session.graph
        loss, rate, classes, labels = run_values.results
        norms = {p.name: np.linalg.norm(p.grad.astype(float)) for p in session.parameters.values()}
        self.scalars[session.global_step] = {
            "loss": loss,
            "learning_rate": rate,
            "accuracy": np.mean(classes == labels),
            "gradient_norm/all": math.sqrt(sum(norm**2 for norm in norms.values())),
            **{f"gradient_norm/{name}": norm for name, norm in norms.items()},
        }
        self.values[session.global_step] = {
            p.name: p.value.copy() for p in session.parameters.values()
        }


def events(folder, run="train"):
    """Return a list of events for each file of a run."""
    paths = sorted((folder / run).iterdir())
    assert all("tfevents" in path.name for path in paths)  # otherwise TensorBoard ignores them
    return [[Event.FromString(raw) for raw in RawEventFileLoader(str(p)).Load()] for p in paths]


def steps_of(file):
    """Return the values of each step of a file, by tag."""
    steps = {}
    for event in file:
        for value in event.summary.value:
            assert value.tag not in steps.setdefault(event.step, {})
            steps[event.step][value.tag] = value
    return steps


def curve(folder, run, tag):
    """Return the points (step, value) that TensorBoard draws."""
    reader = EventAccumulator(str(folder / run)).Reload()
    return [(point.step, round(point.value, 4)) for point in reader.Scalars(tag)]


def pixels(value):
    return np.asarray(Image.open(io.BytesIO(value.image.encoded_image_string)))


def fit(folder, *monitors, steps=5, model=None, **params):
    name, seed = folder / "model", mc.RunConfig(seed=1)
    model = model or mc.Estimator(model_fn, name, params=params, config=seed)
    return model.fit(X, Y, steps=steps, batch_size=8, monitors=list(monitors))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Five steps, of which every second is written: the events, and the values of a second hook."""
    folder, look = tmp_path_factory.mktemp("run"), Look()
    hook = SummarySaverHook(folder / "tb", save_steps=2, metrics={"accuracy": ACCURACY})
    fit(folder, hook, look)
    (found,) = events(folder / "tb")
    return found, look


def test_a_file_is_a_version_a_graph_and_the_steps_that_are_due(written):
    version, graph, *rest = written[0]
    assert version.file_version == "brain.Event:2"
    assert graph.graph_def
    assert list(steps_of(rest)) == [1, 3, 5]
    times = [event.wall_time for event in written[0]]
    assert times == sorted(times)


def test_scalars_are_those_of_their_step(written):
    for step, values in steps_of(written[0]).items():
        found = {k: v.simple_value for k, v in values.items() if v.HasField("simple_value")}
        rate = found.pop("global_step/sec", None)
        assert (rate is None) == (step == 1)
        assert found == pytest.approx(written[1].scalars[step], rel=1e-5)


def test_the_rate_is_steps_by_seconds(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Tick(hooks.SessionRunHook):
        def before_run(self, run_context):
            clock.now += 4.0

    fit(tmp_path, Tick(), SummarySaverHook(tmp_path / "tb", save_steps=2), steps=3)
    steps = steps_of(events(tmp_path / "tb")[0])
    rates = [values.get("global_step/sec") for values in steps.values()]
    assert [rate and rate.simple_value for rate in rates] == [None, 0.25]


def test_histograms_are_of_the_weights_after_the_step(written):
    for step, values in steps_of(written[0]).items():
        found = {tag: v.histo for tag, v in values.items() if v.HasField("histo")}
        assert set(found) == NAMES
        for name, histogram in found.items():
            value = written[1].values[step][name].astype(float)
            assert (histogram.min, histogram.max) == (value.min(), value.max())
            assert histogram.sum == pytest.approx(value.sum())
            assert histogram.num == sum(histogram.bucket) == value.size
            limits = np.array(histogram.bucket_limit)
            below = [(value <= limit + 1e-12).sum() for limit in limits]
            assert np.abs(np.cumsum(histogram.bucket) - below).max() <= 1  # one may be on an edge


def test_the_image_shows_the_first_filters(written):
    for step, values in steps_of(written[0]).items():
        (value,) = [v for v in values.values() if v.HasField("image")]
        assert value.tag == "filters/conv2d"
        picture = pixels(value)[..., 0]
        assert picture.shape == (8 * 2, 8 * (4 * 2 + 3))  # 4 filters of 2 x 2, 3 gaps, 8 times
        kernel = written[1].values[step]["conv2d/kernel"][:, :, 0]  # (2, 2, 4)
        most = np.abs(kernel).max()
        for number in range(4):
            shown = picture[4::8, 4::8][:, 3 * number : 3 * number + 2] / 255
            np.testing.assert_allclose((2 * shown - 1) * most, kernel[..., number], atol=most / 200)
        assert (picture[:, 8 * 2 : 8 * 3] == 255).all()


def test_the_graph_is_that_of_the_model(written):
    graph = written[1].graph
    nodes = {node.name: node for node in GraphDef.FromString(written[0][1].graph_def).node}
    assert set(nodes) == set(graph.tensors) | NAMES
    assert nodes["features"].op == "Placeholder"
    assert nodes["conv2d"].op == "Conv2D"
    assert list(nodes["conv2d"].input) == ["reshape", "conv2d/kernel", "conv2d/bias"]
    assert nodes["conv2d/kernel"].op == "VariableV2"
    assert nodes["conv2d"].attr["dtype"].type == DT_FLOAT
    assert nodes["labels"].attr["dtype"].type == DT_INT64
    (shape,) = nodes["conv2d"].attr["_output_shapes"].list.shape
    assert [dim.size for dim in shape.dim] == [-1, 5, 5, 4]
    for name, tensor in graph.tensors.items():
        sources = [source.name for source in tensor.inputs]
        assert list(nodes[name].input)[: len(sources)] == sources


def test_a_type_that_tensorflow_does_not_know_has_no_number():
    graph = mc.Graph()
    graph.placeholder("x", (None,), np.float32).dtype = np.dtype("U3")
    assert graph_def(graph).node[0].attr["dtype"].type == 0


def test_the_run_is_the_same_with_and_without(tmp_path):
    hook = SummarySaverHook(tmp_path / "tb", save_steps=2, metrics={"accuracy": ACCURACY})
    with_hook, without = fit(tmp_path / "a", hook), fit(tmp_path / "b")
    for name in without.get_variable_names():
        assert_same_bits(with_hook.get_variable_value(name), without.get_variable_value(name))


def test_steps_that_are_not_due_fetch_and_write_nothing(tmp_path, monkeypatch):
    due = []

    class Spy(SummarySaverHook):
        def before_run(self, run_context):
            args = super().before_run(run_context)
            due.append(args is not None)
            return args

    fit(tmp_path, Spy(tmp_path / "tb", save_steps=3), steps=8)
    assert due == [True, False, False, True, False, False, True, False]
    assert list(steps_of(events(tmp_path / "tb")[0])) == [1, 4, 7]


def test_the_training_and_the_validation_are_two_runs_of_the_same_charts(tmp_path):
    hook = SummarySaverHook(tmp_path / "tb", save_steps=2)
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=2, metrics={"accuracy": ACCURACY})
    fit(tmp_path, hook, monitor, steps=6)  # the hook ends before the monitor's last evaluation
    charts = {"loss", "accuracy"}
    for run in "train", "validation":
        tags = EventAccumulator(str(tmp_path / "tb" / run)).Reload().Tags()
        assert charts <= set(tags["scalars"])
    recorded = (tmp_path / "model" / "evaluations.jsonl").read_text().splitlines()
    expected = [(r["global_step"], round(r["loss"], 4)) for r in map(json.loads, recorded)]
    assert curve(tmp_path / "tb", "validation", "loss") == expected
    assert [step for step, _ in expected] == [3, 5, 6]
    assert [step for step, _ in curve(tmp_path / "tb", "train", "loss")] == [1, 3, 5]


def test_an_evaluation_of_any_name_stays_in_the_folder(tmp_path):
    class Evaluate(hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            run_context.session.evaluate(X, Y, name="../../a b")

    fit(tmp_path, SummarySaverHook(tmp_path / "tb"), Evaluate(), steps=1)
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["_._.._a b", "train"]


def test_each_run_adds_a_file(tmp_path):
    hook = SummarySaverHook(tmp_path / "tb", save_steps=2)
    model = fit(tmp_path, hook, steps=3)
    fit(tmp_path, hook, steps=2, model=model)
    found = events(tmp_path / "tb")
    assert [list(steps_of(file)) for file in found] == [[1, 3], [4]]
    assert all(any(event.graph_def for event in file) for file in found)


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_resumed_run_has_no_point_twice(tmp_path, caplog, from_disk):
    hook, folder = SummarySaverHook(tmp_path / "tb", save_steps=1), tmp_path / "tb"
    monitor = hooks.ValidationMonitor(X, Y, every_n_steps=1)
    model = fit(tmp_path, hook, monitor, steps=3)
    for path in (tmp_path / "model").glob("*-3.npz"):
        path.unlink()  # as if the run had been killed after step 3 and before its checkpoint
    model = fit(tmp_path, hook, monitor, steps=3, model=None if from_disk else model)
    step = model.evaluate(X, Y)["global_step"]
    for run in "train", "validation":
        steps = [step for step, _ in curve(folder, run, "loss")]
        assert steps == list(range(1, step + 1))[-len(steps):] and len(steps) == len(set(steps))
    marks = [e.step for file in events(folder) for e in file
             if e.session_log.status == SessionLog.START]
    assert marks == [step - 2]
    assert not [text for text in caplog.messages if "already has events" in text]


def test_another_training_in_the_folder_is_a_warning(tmp_path, caplog):
    hook, folder = SummarySaverHook(tmp_path / "tb", save_steps=2), tmp_path / "tb"
    fit(tmp_path / "a", hook, steps=5)
    fit(tmp_path / "b", hook, steps=2)
    assert [step for step, _ in curve(folder, "train", "loss")] == [1]
    said = [text for text in caplog.messages if "already has events" in text]
    assert f"{folder} already has events, and this run begins with step 1" in said[0]


def test_an_unknown_prediction_is_answered_with_those_that_there_are(tmp_path):
    metrics = {"a": mc.MetricSpec(mc.metrics.accuracy, "class")}
    with pytest.raises(ValueError, match="`prediction_key` must be one of 'classes'"):
        fit(tmp_path, SummarySaverHook(tmp_path / "tb", save_steps=1, metrics=metrics))


def test_what_was_written_before_an_error_is_kept(tmp_path):
    class Fail(hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == 3:
                raise RuntimeError("stop")

    hook = SummarySaverHook(tmp_path / "tb", save_steps=1)
    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, hook, Fail())
    hook.begin()  # of the next run closes the file
    assert list(steps_of(events(tmp_path / "tb")[0])) == [1, 2, 3]


def test_weights_that_are_not_finite_have_no_histogram(tmp_path):
    class Break(hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            run_context.session.parameters["dense/kernel"].value[0] = math.nan

    with pytest.raises(mc.NanLossError, match="dense/kernel holds NaN or infinity after step 1"):
        fit(tmp_path, Break(), SummarySaverHook(tmp_path / "tb"), steps=1)
    found = steps_of(events(tmp_path / "tb")[0])[1]
    assert "dense/bias" in found
    assert "dense/kernel" not in found


@pytest.mark.parametrize(("channels", "shape"), [(3, (16, 88, 3)), (2, None)])
def test_filters_of_three_channels_are_in_colour_and_of_two_are_left_out(
    tmp_path, channels, shape
):
    fit(tmp_path, SummarySaverHook(tmp_path / "tb"), steps=1, channels=channels)
    found = steps_of(events(tmp_path / "tb")[0])[1].values()
    shapes = [pixels(value).shape for value in found if value.HasField("image")]
    assert shapes == ([shape] if shape else [])


def test_metrics_of_labels_and_weights_by_name(tmp_path):
    def named_fn(features, labels, mode):
        return model_fn(features["x"], labels["y"], mode, None)

    class Fetch(hooks.SessionRunHook):
        def before_run(self, run_context):
            return hooks.SessionRunArgs({name: name for name in ("y", "classes", "w")})

        def after_run(self, run_context, run_values):
            self.seen = run_values.results

    half = {"x": X, "w": np.arange(40) % 2 * 1.0}
    spec = mc.MetricSpec(mc.metrics.accuracy, "classes", label_key="y", weight_key="w")
    look = Fetch()
    hook = SummarySaverHook(tmp_path / "tb", metrics={"accuracy": spec})
    model = mc.Estimator(named_fn, tmp_path / "model", config=mc.RunConfig(seed=1))
    model.fit(half, {"y": Y}, steps=1, batch_size=8, monitors=[hook, look])
    expected = mc.metrics.accuracy(look.seen["y"], look.seen["classes"], look.seen["w"])
    found = steps_of(events(tmp_path / "tb")[0])[1]["accuracy"].simple_value
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("steps", [0, 1.5])
def test_save_steps_is_checked(tmp_path, steps):
    with pytest.raises((ValueError, TypeError), match="`save_steps` must be"):
        SummarySaverHook(tmp_path, save_steps=steps)


@pytest.mark.parametrize("package", ["tensorboardX", "tensorboard", "PIL"])
def test_a_missing_package_is_named_before_the_run(tmp_path, monkeypatch, package):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} .*pip install -e "\.\[tensorboard\]"'):
        SummarySaverHook(tmp_path)


def test_a_hook_can_be_pickled_before_a_run(tmp_path):
    hook = pickle.loads(pickle.dumps(SummarySaverHook(tmp_path / "events", save_steps=3)))
    assert (hook.output_dir, hook.timer.every_steps) == (tmp_path / "events", 3)
