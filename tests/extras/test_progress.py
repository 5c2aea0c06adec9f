"""The progress bar of `fit` and `evaluate`, on a real terminal and on a simulated one."""

import contextlib
import fcntl
import io
import logging
import os
import re
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pytest

import minicnn as mc

tqdm = pytest.importorskip("tqdm", reason='pip install -e ".[progress]"')

ROOT = Path(__file__).parents[2]
X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
Y = (X[:, 0] > 0).astype(np.int32)
SPEED_AND_LOSS = r", +[\d.]+(?:step/s|s/step), loss=[\d.e-]+\]"
BAR = r" *\d+%\|[^|]*\| *(\d+)/(\d+) \[\d\d:\d\d<\d\d:\d\d" + SPEED_AND_LOSS


def model_fn(features, labels, mode):
    logits = mc.layers.dense(features, units=2)
    loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, depth=2), logits)
    train_op = None
    if mode == mc.ModeKeys.TRAIN:
        train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
    return mc.ModelFnOps(mode, {"logits": logits}, loss, train_op)


def estimator_in(folder, **config):
    return mc.Estimator(model_fn, folder, config=mc.RunConfig(seed=1, **config))


def batches():
    yield from [(X[:8], Y[:8])] * 5


# A process on a terminal --------------------------------------------------------------------------


class Sleep(mc.hooks.SessionRunHook):
    """Sleep in one step."""

    def after_run(self, run_context, run_values):
        if run_context.session.global_step == 3:
            logging.info("asleep")
            time.sleep(20)


def main(job, folder):
    """Run the job of a test in this process."""
    if sys.stdin.isatty():
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # Ctrl-C on this terminal is meant for this process
    folder = Path(folder)
    logging.basicConfig(level=logging.INFO, format="> %(message)s")
    logging.getLogger().addHandler(logging.FileHandler(folder / "log"))
    if job == "train without tqdm":
        sys.meta_path.insert(0, NoTqdm())
    estimator = estimator_in(folder, progress=job != "train without a bar")
    if job.startswith("train"):
        monitor = mc.hooks.ValidationMonitor(X, Y, batch_size=8, every_n_steps=100)
        estimator.fit(X, Y, batch_size=8, steps=350, monitors=[monitor])
        estimator.evaluate(X, Y, batch_size=1)
    else:
        estimator.fit(X, Y, max_steps=10**6, monitors=[Sleep()] if job == "sleep" else [])


class NoTqdm:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tqdm":
            raise ModuleNotFoundError(f"No module named {name!r}")


def start(job, folder, **streams):
    program = "import sys, test_progress; test_progress.main(*sys.argv[1:])"
    paths = [str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, "-c", program, job, str(folder)]
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def on_terminal(job, folder, press=lambda text: None):
    """Run a job on a terminal; `press` returns what to type after a text. Return text and code."""
    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    process = start(job, folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    with contextlib.suppress(OSError):  # Linux raises it if the other side is closed
        while chunk := os.read(ours, 4096):
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


def test_a_terminal_shows_steps_speed_time_left_and_loss(seen):
    text, _ = seen
    shown = re.findall("fit:" + BAR, text)
    steps = [int(done) for done, total in shown]
    assert {total for done, total in shown} == {"350"}
    assert steps == sorted(steps) and steps[-1] == 350 and len(set(steps)) > 2
    assert re.findall("evaluate:" + BAR, text)[-1] == ("64", "64")
    assert ("8", "8") in re.findall("evaluate:" + BAR, text)  # the validation's


def test_the_bars_stay_and_no_line_is_torn(seen):
    lines = [line for line in screen(seen[0]) if line]
    bars = [line for line in lines if not line.startswith("> ")]
    assert len(bars) == 2  # none for the validations
    assert re.fullmatch("fit:" + BAR, bars[0]) and re.fullmatch("evaluate:" + BAR, bars[1])
    assert lines.index(bars[0]) > lines.index("> Input iterator is exhausted.")
    assert lines[lines.index(bars[0]) + 1].startswith("> Loss for final step: ")


def test_the_console_leaves_out_what_the_bar_says_and_a_log_file_does_not(seen):
    text, folder = seen
    console = log_lines(line for line in screen(text) if line.startswith("> "))
    file = log_lines((folder / "log").read_text().splitlines())
    left_out = [line for line in file if re.match("loss = .*, step = |global_step", line)]
    assert len(left_out) == 4 + 3
    assert console == [line for line in file if line not in left_out]


@pytest.mark.parametrize("job", ["train without tqdm", "train without a bar"])
def test_a_terminal_without_a_bar_shows_log_lines(tmp_path, job):
    text, code = on_terminal(job, tmp_path)
    assert code == 0, text
    assert not re.search(r"\r[^\n]|\x1b|%", text)
    assert log_lines(screen(text)) == log_lines((tmp_path / "log").read_text().splitlines())
    assert "> loss = " in text and "> global_step/sec: " in text


def test_a_pipe_gets_log_lines_and_no_control_characters(tmp_path):
    process = start("train", tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert not re.search(rb"[^\n -~]", output)
    lines = output.decode().splitlines()
    assert all(line.startswith("> ") for line in lines)
    assert log_lines(lines) == log_lines((tmp_path / "log").read_text().splitlines())


def test_ctrl_c_ends_after_the_step_with_a_checkpoint_and_says_how_to_go_on(tmp_path):
    pressed = []

    def press(text):
        if b"/1000000 [" in text and b"loss=" in text and not pressed:
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
    (bar,) = [line for line in lines if line.startswith("fit:")]
    assert f"| {step}/1000000 [" in bar


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


# A pretended terminal -----------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def pretend(monkeypatch):
    """A function that makes stderr a terminal; called in the test, after pytest's capture."""
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)  # no thread remains

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
def test_a_bar_leaves_logging_as_it_was(tmp_path, pretend, monkeypatch, name, error):
    terminal = pretend()
    handler = add_handler(monkeypatch, name, terminal)
    before, look = logging_state(), Look(error)
    with pytest.raises(error) if error else contextlib.nullcontext():
        estimator_in(tmp_path).fit(X, Y, steps=2, monitors=[look])
    assert logging_state() == before != look.seen
    assert "\nlook\n" in terminal.getvalue().replace("\r", "\n")
    assert terminal.getvalue().endswith("\n")  # the bar is closed
    handler.handle(logging.makeLogRecord({"levelno": logging.WARNING, "msg": "after"}))
    assert terminal.getvalue().endswith("\nafter\n")


def test_an_evaluation_that_fails_leaves_logging_as_it_was(tmp_path, pretend, monkeypatch):
    def broken():
        yield X, Y
        raise OSError("the disk is gone")

    estimator = estimator_in(tmp_path).fit(X, Y, steps=1)
    terminal = pretend()
    add_handler(monkeypatch, None, terminal)
    before = logging_state()
    with pytest.raises(OSError):
        estimator.evaluate(input_fn=broken)
    assert logging_state() == before
    assert "evaluate: 1step" in terminal.getvalue()


def test_a_handler_of_another_stream_is_left_alone(tmp_path, pretend, monkeypatch, caplog):
    terminal = pretend()
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # piped, while the errors go to a terminal
    handlers = [logging.StreamHandler(sys.stdout), logging.StreamHandler(io.StringIO())]
    monkeypatch.setattr(logging.getLogger("minicnn"), "handlers", handlers)
    caplog.set_level(logging.INFO, logger="minicnn")
    estimator_in(tmp_path).fit(X, Y, steps=1)
    assert "fit:" in terminal.getvalue() and "loss = " not in terminal.getvalue()
    assert "loss = " in handlers[0].stream.getvalue()
    assert handlers[0].stream.getvalue() == handlers[1].stream.getvalue()


def test_the_end_is_the_nearest_that_a_hook_sets(tmp_path, pretend):
    terminal = pretend()
    stop = mc.hooks.StopAtStepHook(last_step=5)
    estimator = estimator_in(tmp_path).fit(X, Y, max_steps=9, monitors=[stop])
    estimator.fit(X, Y, steps=4)
    bars = re.findall("fit:" + BAR, terminal.getvalue())
    assert bars[0][1] == "5" and bars[-1] == ("9", "9")
    assert "| 5/9 [00:00<?, ?" in terminal.getvalue()  # begins where the first run ended


def test_without_a_known_end_the_steps_are_counted(tmp_path, pretend):
    terminal = pretend()
    estimator = estimator_in(tmp_path).fit(input_fn=batches)
    assert re.search(r"fit: 5step \[\d\d:\d\d" + SPEED_AND_LOSS, terminal.getvalue())
    estimator.evaluate(input_fn=batches)
    assert re.search(r"evaluate: 5step \[", terminal.getvalue())


@pytest.mark.parametrize("data, end", [
    ({"input_fn": batches, "steps": 3}, "3"),
    ({"x": X, "y": Y, "batch_size": 30}, "3"),
    ({"x": X, "y": Y, "batch_size": 30, "steps": 7}, "3"),
    ({"x": X, "y": Y, "batch_size": 30, "steps": 2}, "2"),
])
def test_the_end_of_an_evaluation(tmp_path, pretend, data, end):
    estimator = estimator_in(tmp_path).fit(X, Y, steps=1)
    terminal = pretend()
    estimator.evaluate(**data)
    assert re.findall("evaluate:" + BAR, terminal.getvalue())[-1] == (end, end)


def test_the_loss_of_an_evaluation_is_that_of_all_rows_so_far(tmp_path, pretend):
    terminal = pretend()
    loss = estimator_in(tmp_path).fit(X, Y, steps=1).evaluate(X, Y, batch_size=30)["loss"]
    assert re.findall(r"loss=([\d.]+)", terminal.getvalue())[-1] == f"{loss:.4g}"


def test_a_notebook_gets_a_bar_though_it_is_no_terminal(tmp_path, pretend, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    estimator = estimator_in(tmp_path).fit(X, Y, steps=1)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setitem(sys.modules, "ipykernel", io)
    estimator.fit(X, Y, steps=1)
    assert re.findall("fit:" + BAR, sys.stderr.getvalue())[-1] == ("2", "2")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [None, object(), closed()])
def test_a_strange_error_output_gets_no_bar(tmp_path, monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    estimator_in(tmp_path).fit(X, Y, steps=1)
