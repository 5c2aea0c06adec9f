"""What `fit` and `evaluate` show: on a terminal, in a pipe, in a notebook, and in texts."""

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tolerances import assert_same_bits

import minicnn as mc
from minicnn.estimator import progress
from minicnn.kernels import cache, threads

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
ACCURACY = {"accuracy": mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")}
STEP = r"step (\d+)/(\d+)  loss [\d.e-]+(?:  validation accuracy [\d.]+(?: \(\d+ rows\))?)?"
SPEED = r"(?:  [\d.e+]+ steps/s)?(?:  \d+ (?:s|min) left)?"
NONE: dict = {}
COMPILING = r"compiling kernels (\d+)/(\d+), once for this machine"


def model_fn(features, labels, mode):
    logits = mc.layers.dense(features, units=2)
    loss = train_op = None
    if mode != mc.ModeKeys.INFER:
        loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, depth=2), logits)
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
    predictions = {"classes": mc.argmax(logits, axis=1)}
    return mc.ModelFnOps(mode, predictions, loss, train_op)


def estimator_in(folder, **config):
    return mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=1, **config))


def batches():
    yield from [(X[:8], Y[:8])] * 5


# A process on a terminal --------------------------------------------------------------------------


class Sleep(mc.hooks.SessionRunHook):
    """Sleep in one step."""

    def __init__(self, seconds):
        self.seconds = seconds

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == 3:
            logging.info("asleep")
            time.sleep(self.seconds)


class Fork(mc.hooks.SessionRunHook):
    """Fork after every step, and let the child write where the display writes."""

    def after_run(self, run_context, run_values):
        if (child := os.fork()) == 0:
            sys.stderr.write("child ")
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(child, 0)


def main(job, folder):
    """Run the job of a test in this process."""
    if sys.stdin.isatty():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C on this terminal is meant for this process
    folder = Path(folder)
    if not job.startswith("plain"):
        logging.basicConfig(level=logging.INFO, format="> %(message)s")
        logging.getLogger().addHandler(logging.FileHandler(folder / "log"))
    if job == "fork":
        progress._RENEW = 1e-5
    estimator = estimator_in(folder, progress=job != "train without a display")
    monitor = mc.hooks.ValidationMonitor(X, Y, batch_size=8, every_n_steps=100, metrics=ACCURACY)
    if job.startswith("train"):
        estimator.fit(X, Y, batch_size=8, steps=350, monitors=[monitor])
        estimator.evaluate(X, Y, batch_size=1)
    elif job.startswith("plain"):
        seconds = float(job.removeprefix("plain"))
        estimator.fit(X, Y, steps=10, monitors=[monitor, Sleep(seconds)])
    elif job == "fork":
        estimator.fit(X, Y, steps=60, monitors=[Fork()])
    else:
        estimator.fit(X, Y, max_steps=10**6, monitors=[Sleep(20)] if job == "sleep" else [])


def start(job, folder, cache_dir=None, **streams):
    program = "import sys, test_progress; test_progress.main(*sys.argv[1:])"
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
    if cache_dir is not None:  # and no child process that compiles a part
        environment |= {"NUMBA_CACHE_DIR": str(cache_dir), "MINICNN_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program, job, str(folder)]
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def on_terminal(job, folder, press=lambda text: None, silences=None, cache_dir=None):
    """Run a job on a terminal; `press` returns what to type after a text. Return text and code."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = start(job, folder, cache_dir, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text, code = listen(ours, process, press, silences)
    return text, code


def in_pipe(job, folder, silences=None, cache_dir=None):
    """Run a job whose output goes into a pipe. Return its text and its code."""
    ours, theirs = os.pipe()
    process = start(
        job, folder, cache_dir, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    return listen(ours, process, lambda text: None, silences)


def listen(ours, process, press, silences):
    text, last = b"", None
    with contextlib.suppress(OSError):  # Linux raises it if the other side is closed
        while chunk := os.read(ours, 4096):
            now = time.monotonic()
            if silences is not None and last is not None:
                silences.append(now - last)
            last = now
            text += chunk
            if keys := press(text):
                os.write(ours, keys)
    os.close(ours)
    return text.decode(), process.wait(timeout=60)


def screen(text):
    """Return the lines that a terminal finally shows."""
    lines, row, column = {}, 0, 0
    for part in re.findall(r"\x1b\[A|.", text, re.DOTALL):
        if part == "\x1b[A":
            row -= 1
        elif part == "\r":
            column = 0
        elif part == "\n":
            row += 1
        else:
            line = lines.get(row, "").ljust(column)
            lines[row], column = line[:column] + part + line[column + 1 :], column + 1
    return [lines.get(row, "").rstrip() for row in range(max(lines) + 1)]


def log_lines(lines):
    """Return the lines without the parts that change from run to run."""
    return [re.sub(r"[\d.]+ sec\)|/sec: .*", "", line.removeprefix("> ")) for line in lines]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The output of a process that trained, validated and evaluated; and its folder."""
    folder = tmp_path_factory.mktemp("seen")
    text, code = on_terminal("train", folder)
    assert code == 0, text
    return text, folder


def test_a_terminal_shows_the_step_the_loss_and_the_accuracy(seen):
    text, _ = seen
    shown = re.findall(STEP + SPEED, text)
    steps = [int(done) for done, total in shown]
    assert {total for done, total in shown} == {"350"}
    assert steps == sorted(steps) and steps[-1] == 350
    assert re.search(r"step 350/350  loss \S+  validation accuracy \S+  \S+ steps/s", text)


def test_the_line_stays_and_no_line_is_torn(seen):
    lines = [line for line in screen(seen[0]) if line]
    shown = [line for line in lines if not line.startswith("> ")]
    assert len(shown) == 1  # the evaluation was short
    assert re.fullmatch(STEP + SPEED + " +#+", shown[0])
    evaluated = [line.startswith("> Saving evaluation summary for step 350") for line in lines]
    assert lines.index(shown[0]) > evaluated.index(True)
    assert any(line.startswith("> Loss for final step: ") for line in lines)


def test_the_console_leaves_out_what_the_line_says_and_a_log_file_does_not(seen):
    text, folder = seen
    console = log_lines(line for line in screen(text) if line.startswith("> "))
    file = log_lines((folder / "log").read_text().splitlines())
    left_out = [line for line in file if re.match("loss = .*, step = |global_step", line)]
    assert len(left_out) == 4 + 3
    assert console == [line for line in file if line not in left_out]


def test_without_a_display_the_terminal_shows_log_lines(tmp_path):
    text, code = on_terminal("train without a display", tmp_path)
    assert code == 0, text
    assert not re.search(r"\r[^\n]|\x1b|%|steps/s", text)
    assert log_lines(screen(text)) == log_lines((tmp_path / "log").read_text().splitlines())
    assert "> loss = " in text and "> global_step/sec: " in text


def test_a_pipe_gets_whole_lines_and_no_control_characters(tmp_path):
    text, code = in_pipe("train", tmp_path)
    assert code == 0, text
    assert not re.search(r"[^\n -~]", text)
    log = log_lines(line for line in text.splitlines() if line.startswith("> "))
    assert log == log_lines((tmp_path / "log").read_text().splitlines())
    others = [line for line in text.splitlines() if not line.startswith("> ")]
    slow = rf"{COMPILING}|starting|step 0/350|evaluating \(\w+\)(?: \d+/\d+)?"
    assert all(re.fullmatch(f"{STEP}{SPEED}|{slow}", line) for line in others), others


@pytest.mark.parametrize("run", [on_terminal, in_pipe])
def test_the_longest_silence_cold_and_warm(tmp_path, run):
    for state, seconds in ("cold", 0.5), ("warm", 5.5 if run is in_pipe else 0.5):
        silences = []
        text, code = run(f"plain {seconds}", tmp_path / state, silences=silences,
                         cache_dir=tmp_path / "numba")
        assert code == 0, text
        assert max(silences) < 5
        counts = [tuple(map(int, count)) for count in re.findall(COMPILING, text)]
        assert (state == "cold") == bool(counts)
        assert counts == sorted(counts) and len({total for _, total in counts}) <= 1
        assert re.findall(STEP, text)[-1] == ("10", "10")


def test_ctrl_c_ends_after_the_step_with_a_checkpoint_and_says_how_to_go_on(tmp_path):
    pressed = []

    def press(text):
        if b"/1000000  loss" in text and not pressed:
            pressed.append(1)
            return b"\x03"

    text, code = on_terminal("run", tmp_path, press)
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)
    lines = screen(text)
    (said,) = [line for line in lines if line.startswith("> Interrupted after step ")]
    step = int(re.search(r"\d+", said)[0])
    said = said.removesuffix("^C").rstrip()  # the terminal may show it at the end of the line
    assert said == f"> Interrupted after step {step}; run the same again to continue."
    assert (tmp_path / f"model.ckpt-{step}.npz").exists()
    assert [line for line in lines if line.startswith(f"step {step}/1000000 ")]


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    pressed = []

    def press(text):
        if b"asleep" in text and len(pressed) < 2:  # the terminal shows the first, then calls again
            pressed.append(time.sleep(0.5))  # two signals at the same time would be one
            return b"\x03"

    text, code = on_terminal("sleep", tmp_path, press)
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)
    assert "Interrupted after step" not in text
    assert [path.name for path in tmp_path.glob("*.npz")] == ["model.ckpt-1.npz"]


def test_a_forked_child_can_write_to_the_terminal(tmp_path):
    text, code = on_terminal("fork", tmp_path)
    assert code == 0 and text.count("child ") == 60


def test_a_pipe_without_a_reader_does_not_stop_the_training(tmp_path):
    ours, theirs = os.pipe()
    process = start("plain 1.5", tmp_path, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert (tmp_path / "model.ckpt-10.npz").exists()


def test_a_notebook_shows_the_line_in_the_output_of_its_cell(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason='pip install -e ".[notebook]"')
    nbformat = pytest.importorskip("nbformat", reason='pip install -e ".[notebook]"')
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    monkeypatch.setenv("MINICNN_NUM_THREADS", "1")
    cell = "import test_progress as t\nt.estimator_in(r'{}').fit(t.X, t.Y, steps=20);"
    book = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell.format(tmp_path / f"{n}")) for n in range(2)]
    )
    seen = []
    client = nbclient.NotebookClient(book, timeout=60, kernel_name="python3")
    output = client.process_message

    def process_message(message, *arguments, **options):
        seen.append((time.monotonic(), message["content"].get("data", {}).get("text/plain", "")))
        return output(message, *arguments, **options)

    monkeypatch.setattr(client, "process_message", process_message)
    client.execute()
    for cell in book.cells:
        (shown,) = cell.outputs
        assert re.fullmatch(STEP + SPEED, shown["data"]["text/plain"])
    assert [text for _, text in seen if re.fullmatch(COMPILING, text)]
    times = [when for when, text in seen]
    assert max(np.diff(times)) < 5


# A pretended terminal -----------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def pretend(monkeypatch):
    """A function that makes stderr a terminal; called in the test, after pytest's capture."""
    def function():
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return function


def add_handler(monkeypatch, name, stream):
    """Add a handler with a level and a filter to a logger."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(stream)
    handler.setLevel(logging.WARNING)
    handler.addFilter(lambda record: True)
    monkeypatch.setattr(logger, "handlers", [*logger.handlers, handler])
    return handler


class Look(mc.hooks.SessionRunHook):
    """Record the state of logging during a run; raise if requested."""

    def __init__(self, error=None):
        self.error = error

    def after_run(self, run_context, run_values):
        self.seen = logging_state()
        logging.getLogger("minicnn").warning("look")
        if self.error:
            raise self.error


def logging_state():
    loggers = logging.getLogger("minicnn"), logging.root
    return [
        (logger.level, handler, vars(handler).copy() | {"filters": handler.filters[:]})
        for logger in loggers
        for handler in logger.handlers
    ]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, mc.NanLossError])
@pytest.mark.parametrize("name", ["minicnn", None])
def test_a_display_leaves_logging_and_threads_as_they_were(
    tmp_path, pretend, monkeypatch, name, error
):
    terminal = pretend()
    handler = add_handler(monkeypatch, name, terminal)
    before, look = logging_state(), Look(error)
    running = threading.enumerate()
    with pytest.raises(error) if error else contextlib.nullcontext():
        estimator_in(tmp_path).fit(X, Y, steps=2, monitors=[look])
    assert threading.enumerate() == running
    assert logging_state() == before != look.seen
    assert "look\n" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n")  # the line is closed
    handler.handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "after"}))
    assert terminal.getvalue().endswith("\nafter\n")


def test_a_handler_of_another_stream_is_left_alone(tmp_path, pretend, monkeypatch, caplog):
    terminal = pretend()
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # piped, while the errors go to a terminal
    handlers = [logging.StreamHandler(io.StringIO()), logging.StreamHandler(io.StringIO())]
    monkeypatch.setattr(logging.getLogger("minicnn"), "handlers", handlers)
    caplog.set_level(logging.INFO, logger="minicnn")
    estimator_in(tmp_path).fit(X, Y, steps=1)
    assert "step 1/1" in terminal.getvalue() and "loss = " not in terminal.getvalue()
    assert "loss = " in handlers[0].stream.getvalue()
    assert handlers[0].stream.getvalue() == handlers[1].stream.getvalue()


@pytest.mark.parametrize(("name", "level", "shows"), [
    ("minicnn", logging.INFO, False), ("minicnn", logging.WARNING, True),
    (None, logging.INFO, True),
])
def test_nothing_is_shown_where_minicnns_logger_shows_info(
    tmp_path, pretend, monkeypatch, caplog, name, level, shows
):
    terminal = pretend()
    add_handler(monkeypatch, name, terminal).setLevel(level)
    caplog.set_level(logging.INFO, logger="minicnn")
    estimator_in(tmp_path).fit(X, Y, steps=1)
    assert ("step 1/1  loss" in terminal.getvalue()) == shows
    assert ("Loss for final step" in terminal.getvalue()) == (level == logging.INFO)
    assert ("loss = " in terminal.getvalue()) == (not shows)


def test_few_lines_are_lines_on_a_terminal_too(tmp_path, pretend, monkeypatch):
    monkeypatch.setattr(progress, "_WRITE", 0.001)
    terminal = pretend()
    config = mc.RunConfig(seed=1)
    config.progress = 2
    mc.Estimator(model_fn, tmp_path, config=config).fit(X, Y, steps=20)
    lines = terminal.getvalue().splitlines()
    assert "\r" not in terminal.getvalue() and re.fullmatch(STEP + SPEED, lines[-1])


def test_the_end_is_the_nearest_that_a_hook_sets(tmp_path, pretend):
    terminal = pretend()
    stop = mc.hooks.StopAtStepHook(last_step=5)
    estimator = estimator_in(tmp_path).fit(X, Y, max_steps=9, monitors=[stop])
    assert re.findall(STEP, terminal.getvalue())[-1] == ("5", "5")
    estimator.fit(X, Y, steps=4)
    assert re.findall(STEP, terminal.getvalue())[-1] == ("9", "9")


def test_without_a_known_end_the_steps_are_counted(tmp_path, pretend):
    terminal = pretend()
    estimator_in(tmp_path).fit(input_fn=batches)
    assert re.search(r"step 5  loss [\d.]+  \S+ steps/s", terminal.getvalue())
    assert " left" not in terminal.getvalue()


@pytest.mark.parametrize("data, end", [
    ({"input_fn": batches, "steps": 3}, "2/3"),
    ({"input_fn": batches}, "4"),
    ({"x": X, "y": Y, "batch_size": 30}, "2/3"),
    ({"x": X, "y": Y, "batch_size": 30, "steps": 7}, "2/3"),
    ({"x": X, "y": Y, "batch_size": 30, "steps": 2}, "1/2"),
])
def test_a_long_evaluation_is_shown_and_removed(tmp_path, pretend, monkeypatch, data, end):
    estimator = estimator_in(tmp_path).fit(X, Y, steps=1)
    monkeypatch.setattr(progress, "_BRIEF", 0.01)
    monkeypatch.setattr(progress, "_RENEW", 0.01)
    evaluate = mc.losses.SoftmaxCrossEntropy.forward

    def slowly(*arguments):
        time.sleep(0.1)
        return evaluate(*arguments)

    monkeypatch.setattr(mc.losses.SoftmaxCrossEntropy, "forward", slowly)
    real = progress.Display.part
    said = []

    def part(display, *arguments):
        for batch in real(display, *arguments):
            said.append(display.text())
            yield batch

    monkeypatch.setattr(progress.Display, "part", part)
    terminal = pretend()
    estimator.evaluate(**data)
    assert said[-1] == f"evaluating (evaluation) {end}"  # while the last batch is computed
    assert said[0] in terminal.getvalue()
    assert screen(terminal.getvalue()) == [""]


def test_a_long_prediction_is_shown(tmp_path, pretend, monkeypatch):
    estimator = estimator_in(tmp_path).fit(X, Y, steps=1)
    monkeypatch.setattr(progress, "_BRIEF", 0.01)
    batches_of = [(X[:8], Y[:8])] * 2

    def slowly():
        for batch in batches_of:
            yield batch
            time.sleep(0.5)

    terminal = pretend()
    classes = estimator.predict(input_fn=slowly, as_iterable=False)["classes"]
    assert len(classes) == 16
    assert "predicting 1" in terminal.getvalue()


def test_batches_that_a_resumed_run_skips_are_shown(tmp_path, pretend, monkeypatch):
    estimator = estimator_in(tmp_path).fit(input_fn=batches, steps=3)
    said = []

    def slow_batches():
        for batch in batches():
            said.extend(shown.text() for shown in displays)
            yield batch

    displays = []
    start = progress.Display.start
    monkeypatch.setattr(
        progress.Display, "start", lambda display: (displays.append(display), start(display))
    )
    pretend()
    estimator.fit(input_fn=slow_batches, steps=1)
    assert "skipping batches 1/3" in said and "skipping batches 2/3" in said


def test_a_prediction_of_one_batch_starts_no_thread(tmp_path, pretend, monkeypatch):
    estimator = estimator_in(tmp_path).fit(X, Y, steps=1)
    started = []
    monkeypatch.setattr(progress.Display, "start", lambda display: started.append(display))
    pretend()
    for rows, count in (1, 0), (len(X), 0), (len(X) + 1, 1):
        estimator.predict(np.resize(X, (rows, X.shape[1])), batch_size=len(X), as_iterable=False)
        assert len(started) == count


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, object(), closed()])
def test_a_strange_error_output_shows_nothing(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    estimator_in(tmp_path).fit(X, Y, steps=1)


def test_a_short_run_writes_nothing_into_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    estimator_in(tmp_path).fit(X, Y, steps=1)
    assert sys.stderr.getvalue() == ""


# What the display knows ---------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(cache, "compiled", [])
    monkeypatch.setattr(cache, "compiling", [])
    return clock


def test_the_time_left_counts_neither_compiling_nor_evaluations(clock):
    display = progress.Display()
    display.begin(1000, 20000)
    assert display.text() == "step 1000/20000"
    cache.compiling.append("a kernel")
    clock.now += 8
    assert display.text() == "compiling kernels, once for this machine"
    cache.compiled.append(cache.compiling.pop())
    assert display.text() == "compiling kernels, once for this machine"  # the step goes on
    display(2.3)
    assert display.text() == "step 1001/20000  loss 2.30"
    for number in range(100):
        if number == 50:
            cache.compiled.append("another kernel")
            clock.now += 30
        if number == 70:
            for done in display.part("evaluating (validation)", 20, range(2)):
                text = f"evaluating (validation) {done}/20" if done else "evaluating (validation)"
                assert display.text() == text
                clock.now += 30
            display.note("validation", {"other": 3.0, "accuracy": 0.8512, "loss": 1.0})
        clock.now += 0.25
        display(0.8123)
    told = "step 1101/20000  loss 0.812  validation accuracy 0.851  4 steps/s"
    assert display.text() == f"{told}  79 min left"
    assert display.text(ended=True) == told
    display.begin(19940, 20000)
    assert display.text().endswith("15 s left")
    display.begin(0, 10**6)
    assert display.text().endswith("69 h 27 min left")


def test_the_speed_follows_a_change(clock):
    display = progress.Display()
    display.begin(0, 10**6)
    for seconds in [0.01] * 1000 + [2.0] * 60:
        clock.now += seconds
        display(1.0)
    assert "  0.5 steps/s  " in display.text()


@pytest.mark.parametrize("metrics, said", [
    ({"accuracy": 0.5, "loss": 1.0, "global_step": 3}, "test accuracy 0.500"),
    ({"recall": 0.25, "matrix": np.eye(2), "loss": 1.0}, "test recall 0.250"),
    ({"loss": 1.5, "global_step": 3}, "test loss 1.50"),
])
def test_the_number_that_is_shown_of_an_evaluation(metrics, said):
    display = progress.Display()
    display.begin(0, 1)
    display(0.0)
    display.note("test", metrics)
    assert said in display.text()


class Spy(mc.hooks.SessionRunHook):
    """Note the display of a run, and the kernels that its steps really call."""

    def __init__(self, monkeypatch):
        self.called = set()
        real = threads.parallel_for

        def noted(kernel, chunks, reads, writes, *sizes, scratch=NONE, **rest):
            arrays = (threads._scratch(scratch), *map(threads._frozen, reads), *writes)
            self.called.add((kernel, tuple(map(kernel.typeof_pyval, (0, *arrays, *sizes)))))
            real(kernel, chunks, reads, writes, *sizes, scratch=scratch, **rest)

        for module in list(sys.modules.values()):
            if getattr(module, "parallel_for", None) is real:
                monkeypatch.setattr(module, "parallel_for", noted)

    def before_run(self, run_context):
        self.called.clear()

    def after_run(self, run_context, run_values):
        self.display = run_context.session._display


def cnn_fn(features, labels, mode):
    conv = mc.layers.conv2d(features, 4, 3, activation=mc.relu)
    conv = mc.layers.conv2d(mc.layers.max_pooling2d(conv, 2, 2), 4, 3, activation=mc.relu)
    dense = mc.layers.dense(mc.layers.flatten(conv), 6, activation=mc.relu)
    dense = mc.layers.dropout(dense, 0.5, training=mode == mc.ModeKeys.TRAIN)
    logits = mc.layers.dense(dense, 3)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 3), logits)
    train_op = None
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.01, optimizer="Adam")
    return mc.ModelFnOps(mode, {"classes": mc.argmax(logits, axis=1)}, loss, train_op)


IMAGES = np.random.default_rng(1).random((40, 12, 12, 1), np.float32)
CLASSES = np.arange(40) % 3


def test_the_kernels_that_are_counted_are_those_of_a_step(tmp_path, pretend, monkeypatch):
    pretend()
    spy = Spy(monkeypatch)
    estimator = mc.Estimator(cnn_fn, tmp_path, config=mc.RunConfig(seed=1))
    estimator.fit(IMAGES, CLASSES, steps=2, batch_size=20, monitors=[spy])
    names = {kernel.__name__ for kernel, _ in spy.called}
    assert len(names) > 5 and "_adam" in names
    assert spy.display.kernels == spy.called


def test_code_of_the_user_is_not_called_to_count_kernels(tmp_path, pretend, monkeypatch):
    pretend()
    calls = []

    class Twice(mc.Op):
        def output_shape(self, *shapes):
            return shapes[0]

        def forward(self, x, ctx):
            calls.append(len(x))
            return 2 * x

        def backward(self, dy, ctx, need_dx=True):
            return 2 * dy

    def doubled(features, labels, mode):
        return model_fn(Twice()(features), labels, mode)

    spy = Spy(monkeypatch)
    estimator = mc.Estimator(doubled, tmp_path, config=mc.RunConfig(seed=1))
    estimator.fit(X, Y, steps=2, monitors=[spy])
    assert spy.display.kernels == set()
    assert calls == [64, 64]


def test_a_display_changes_no_bit_of_a_run(tmp_path, pretend, monkeypatch):
    monkeypatch.setattr(progress, "_LOOK", 0.0)
    results = []
    for shows in True, False:
        monitor = mc.hooks.ValidationMonitor(
            IMAGES[:9], CLASSES[:9], every_n_steps=4, metrics=ACCURACY, early_stopping_rounds=50
        )
        if shows:
            terminal = pretend()
        config = mc.RunConfig(seed=1, progress=shows)
        estimator = mc.Estimator(cnn_fn, tmp_path / str(shows), config=config)
        estimator.fit(IMAGES, CLASSES, steps=6, batch_size=20, monitors=[monitor])
        results.append((estimator, monitor.state_dict()))
    assert "validation accuracy" in terminal.getvalue()
    (one, state), (other, other_state) = results
    assert state == other_state
    for name in one.get_variable_names():
        assert_same_bits(one.get_variable_value(name), other.get_variable_value(name))
    files = [(e.model_dir / "evaluations.jsonl").read_text() for e in (one, other)]
    assert files[0] == files[1]
    assert [json.loads(line)["global_step"] for line in files[0].splitlines()] == [5, 6]


def test_a_first_accuracy_is_of_a_few_rows_for_the_display_alone(
    tmp_path, pretend, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, logger="minicnn")
    monkeypatch.setattr(progress, "_LOOK", 0.0)
    monkeypatch.setattr(mc.estimator.session, "_FEW", 7)
    pretend()
    texts = []

    class Read(mc.hooks.SessionRunHook):
        def after_run(self, run_context, run_values):
            texts.append(run_context.session._display.text())

    monitor = mc.hooks.ValidationMonitor(X, Y, every_n_steps=5, metrics=ACCURACY, name="held out")
    estimator_in(tmp_path).fit(X, Y, steps=7, monitors=[monitor, Read()])
    assert "accuracy" not in texts[0]
    assert re.search(r"  held out accuracy \d.\d+ \(7 rows\)", texts[2])
    assert re.search(r"  held out accuracy \d.\d+  ", texts[6])
    said = [record.getMessage() for record in caplog.records]
    assert len([text for text in said if text.startswith("Saving evaluation summary")]) == 2


def test_a_metric_that_fails_on_a_few_rows_does_not_stop_the_run(tmp_path, pretend, monkeypatch):
    monkeypatch.setattr(progress, "_LOOK", 0.0)
    monkeypatch.setattr(mc.estimator.session, "_FEW", 7)
    pretend()

    def of_all(labels, predictions):
        if len(labels) < 64:
            raise ValueError("too few")
        return 1.0

    metrics = {"of all": mc.MetricSpec(of_all, prediction_key="classes")}
    monitor = mc.hooks.ValidationMonitor(X, Y, every_n_steps=5, metrics=metrics)
    estimator_in(tmp_path).fit(X, Y, steps=7, monitors=[monitor])
    assert monitor.best_step > 0
