"""Tests of minicnn.summaries: the contents of the event files, read from their bytes."""

import io
import math
import os
import pickle
import struct
import sys
import time
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("tensorboardX", reason='pip install -e ".[tensorboard]"')
pytest.importorskip("PIL", reason='pip install -e ".[tensorboard]"')

from PIL import Image
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.types_pb2 import DT_FLOAT, DT_INT64
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


def crc32c(data):
    """Return the CRC-32C, computed bit by bit and masked as in TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82F63B78 * (crc & 1)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def events(folder):
    """Return a list of events for each file of a folder."""
    return [read(path) for path in sorted(folder.iterdir())]


def read(path):
    assert "tfevents" in path.name  # otherwise TensorBoard ignores it
    data, found = path.read_bytes(), []
    while data:
        (length,), (check,) = struct.unpack("<Q", data[:8]), struct.unpack("<I", data[8:12])
        record, tail = data[12 : 12 + length], data[12 + length : 16 + length]
        assert check == crc32c(data[:8])
        assert struct.unpack("<I", tail) == (crc32c(record),)
        found.append(Event.FromString(record))
        data = data[16 + length :]
    return found


def values(event):
    return {value.tag: value for value in event.summary.value}


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
    version, graph, *steps = written[0]
    assert version.file_version == "brain.Event:2"
    assert graph.graph_def
    assert [event.step for event in steps] == [1, 3, 5]
    times = [event.wall_time for event in written[0]]
    assert times == sorted(times)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_a_link_in_the_place_of_an_event_file_is_not_written_through(tmp_path, monkeypatch, link):
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    (tmp_path / "tb").mkdir()
    victim = tmp_path / "victim"
    victim.write_bytes(b"important")
    link(victim, tmp_path / "tb" / "events.out.tfevents.1.minicnn")
    with pytest.raises(OSError, match=r"tfevents.1.minicnn .*link.*; remove it"):
        fit(tmp_path, SummarySaverHook(tmp_path / "tb"))
    assert victim.read_bytes() == b"important"


def test_scalars_are_those_of_their_step(written):
    for event in written[0][2:]:
        found = {k: v.simple_value for k, v in values(event).items() if v.HasField("simple_value")}
        rate = found.pop("global_step/sec", None)
        assert (rate is None) == (event.step == 1)
        assert found == pytest.approx(written[1].scalars[event.step], rel=1e-5)


def test_the_rate_is_steps_by_seconds(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(hooks, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Tick(hooks.SessionRunHook):
        def before_run(self, run_context):
            clock.now += 4.0

    fit(tmp_path, Tick(), SummarySaverHook(tmp_path / "tb", save_steps=2), steps=3)
    rates = [values(event).get("global_step/sec") for event in events(tmp_path / "tb")[0][2:]]
    assert [rate and rate.simple_value for rate in rates] == [None, 0.25]


def test_histograms_are_of_the_weights_after_the_step(written):
    for event in written[0][2:]:
        found = {tag: v.histo for tag, v in values(event).items() if v.HasField("histo")}
        assert set(found) == NAMES
        for name, histogram in found.items():
            value = written[1].values[event.step][name].astype(float)
            assert (histogram.min, histogram.max) == (value.min(), value.max())
            assert histogram.sum == pytest.approx(value.sum())
            assert histogram.num == sum(histogram.bucket) == value.size
            limits = np.array(histogram.bucket_limit)
            below = [(value <= limit + 1e-12).sum() for limit in limits]
            assert np.abs(np.cumsum(histogram.bucket) - below).max() <= 1  # one may be on an edge


def test_the_image_shows_the_first_filters(written):
    for event in written[0][2:]:
        (value,) = [v for v in event.summary.value if v.HasField("image")]
        assert value.tag == "filters/conv2d"
        picture = pixels(value)[..., 0]
        assert picture.shape == (8 * 2, 8 * (4 * 2 + 3))  # 4 filters of 2 x 2, 3 gaps, 8 times
        kernel = written[1].values[event.step]["conv2d/kernel"][:, :, 0]  # (2, 2, 4)
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

    appended = []
    monkeypatch.setattr(Spy, "_append", lambda self, **fields: appended.append(fields))
    fit(tmp_path, Spy(tmp_path / "tb", save_steps=3), steps=8)
    assert due == [True, False, False, True, False, False, True, False]
    assert [fields["step"] for fields in appended if "step" in fields] == [1, 4, 7]
    assert not (tmp_path / "tb").exists()


def test_each_run_adds_a_file(tmp_path):
    hook = SummarySaverHook(tmp_path / "tb", save_steps=2)
    model = fit(tmp_path, hook, steps=3)
    fit(tmp_path, hook, steps=2, model=model)
    steps = [[event.step for event in found if event.step] for found in events(tmp_path / "tb")]
    assert steps == [[1, 3], [4, 4]]
    assert all(found[1].graph_def for found in events(tmp_path / "tb"))


def starts(folder):
    """Return for each file the step that is marked as a start, or None."""
    found = [[e.step for e in file if e.session_log.status == SessionLog.START] for file in folder]
    return [steps[0] if steps else None for steps in found]


@pytest.mark.parametrize("from_disk", [False, True])
def test_a_restart_is_marked_with_its_step(tmp_path, caplog, from_disk):
    hook, folder = SummarySaverHook(tmp_path / "tb", save_steps=2), tmp_path / "tb"
    model = fit(tmp_path, hook, steps=3)
    fit(tmp_path, hook, steps=2, model=None if from_disk else model)
    assert starts(events(folder)) == [None, 4]
    first_summary = next(event for event in events(folder)[1] if event.summary.value)
    assert first_summary.step == 4
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_later_steps_in_the_folder_are_a_warning(tmp_path, caplog):
    hook, folder = SummarySaverHook(tmp_path / "tb", save_steps=2), tmp_path / "tb"
    fit(tmp_path / "a", hook, steps=5)
    fit(tmp_path / "b", hook, steps=2)  # another training in the same folder
    assert starts(events(folder)) == [None, 1]
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert f"{folder} already has events up to step 5, and this run writes from step 1" in said


def make_large(path, head=b""):
    """Create a sparse file of 100 GB."""
    path.write_bytes(head)
    os.truncate(path, 10**11)


@pytest.mark.parametrize("make", [
    os.mkfifo, lambda path: path.symlink_to("/dev/zero"), make_large,
    lambda path: make_large(path, struct.pack("<Q", 10**11 - 16)),
], ids=["pipe", "/dev/zero", "zeros", "one large event"])
def test_what_a_stranger_put_among_the_event_files_hangs_nothing(tmp_path, make):
    hook, folder = SummarySaverHook(tmp_path / "tb"), tmp_path / "tb"
    folder.mkdir()
    make(folder / "events.out.tfevents.1.x")
    tracemalloc.start()
    try:
        fit(tmp_path, hook, steps=1)
        assert tracemalloc.get_traced_memory()[1] < 2e7
    finally:
        tracemalloc.stop()
    (ours,) = folder.glob("*.minicnn")
    assert [event.step for event in read(ours)][-1] == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "length", "noise", "folder", "half"])
def test_a_damaged_event_file_is_read_as_far_as_it_goes(tmp_path, caplog, damage):
    hook, folder = SummarySaverHook(tmp_path / "tb", save_steps=2), tmp_path / "tb"
    fit(tmp_path / "a", hook, steps=5)
    (path,) = folder.iterdir()
    data = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({
            "cut": data[:-9], "empty": b"", "length": b"\xff" * 8 + data,
            "half": data + data[-50:-9],
            "noise": struct.pack("<Q", 40) + b"\xff" * 48,
        }[damage])
    fit(tmp_path / "b", hook, steps=1)
    said = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    last = {"cut": ["3"], "half": ["5"]}.get(damage, [])
    assert [text.split("step ")[1].split(",")[0] for text in said] == last


def test_what_was_written_before_an_error_is_whole(tmp_path):
    class Fail(hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            if run_context.session.global_step == 3:
                raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fit(tmp_path, SummarySaverHook(tmp_path / "tb", save_steps=1), Fail())
    assert [event.step for event in events(tmp_path / "tb")[0][2:]] == [1, 2, 3]


def test_weights_that_are_not_finite_have_no_histogram(tmp_path):
    class Break(hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            run_context.session.parameters["dense/kernel"].value[0] = math.nan

    with pytest.raises(mc.NanLossError, match="dense/kernel is not finite any more"):
        fit(tmp_path, Break(), SummarySaverHook(tmp_path / "tb"), steps=1)
    found = values(events(tmp_path / "tb")[0][2])
    assert "dense/bias" in found
    assert "dense/kernel" not in found


@pytest.mark.parametrize(("channels", "shape"), [(3, (16, 88, 3)), (2, None)])
def test_filters_of_three_channels_are_in_colour_and_of_two_are_left_out(
    tmp_path, channels, shape
):
    fit(tmp_path, SummarySaverHook(tmp_path / "tb"), steps=1, channels=channels)
    found = events(tmp_path / "tb")[0][2].summary.value
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
    found = values(events(tmp_path / "tb")[0][2])["accuracy"].simple_value
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("steps", [0, 1.5])
def test_save_steps_is_checked(tmp_path, steps):
    with pytest.raises((ValueError, TypeError), match="`save_steps` must be"):
        SummarySaverHook(tmp_path, save_steps=steps)


@pytest.mark.parametrize("package", ["tensorboardX", "PIL"])
def test_a_missing_package_is_named_before_the_run(tmp_path, monkeypatch, package):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package} .*pip install -e "\.\[tensorboard\]"'):
        SummarySaverHook(tmp_path)


def test_a_hook_can_be_pickled_before_a_run(tmp_path):
    hook = pickle.loads(pickle.dumps(SummarySaverHook(tmp_path / "events", save_steps=3)))
    assert (hook.output_dir, hook.timer.every_steps) == (tmp_path / "events", 3)
