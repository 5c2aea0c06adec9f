"""The server of predictions: its answers, its limits, new checkpoints, and how it stops."""

import contextlib
import http.client
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flask", reason='pip install -e ".[demo]"')
pytest.importorskip("PIL", reason='pip install -e ".[demo]"')

from PIL import Image

import minicnn as mc

ROOT = Path(__file__).parents[2]
ROWS = np.random.default_rng(0).random((5, 6, 4, 3), np.float32)
MODEL = """
import minicnn as mc
model = mc.Sequential([mc.layers.Conv2D(4, 3), mc.layers.Flatten(), mc.layers.Dense(3)])
model.build((None, 6, 4, 3), rng=0)
"""


@pytest.fixture(scope="module")
def serve(example):
    return example("serve")


def model():
    names = {}
    exec(MODEL, names)
    return names["model"]


def train(folder, steps):
    config = mc.RunConfig(seed=0, progress=False)
    estimator = mc.Estimator(model(), folder, {"optimizer": "SGD", "learning_rate": 0.5}, config)
    return estimator.fit(ROWS, [0, 1, 2, 0, 1], max_steps=steps)


@pytest.fixture
def folder(tmp_path):
    train(tmp_path / "model", 1)
    return tmp_path / "model"


@pytest.fixture
def service(serve, folder):
    return serve.Service(model(), folder, classes=["cat", "dog", "bird"])


@pytest.fixture
def client(serve, service):
    return serve.make_app(service).test_client()


def assert_answer(answer, expected, step=1):
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert answer.json["step"] == step
    np.testing.assert_allclose(answer.json["probabilities"], expected, rtol=1e-4, atol=1e-6)
    assert answer.json["classes"] == np.argmax(expected, axis=1).tolist()


def expected(folder, rows=ROWS):
    return mc.Estimator(model(), folder).predict(rows, as_iterable=False)["probabilities"]


def test_rows_in_json(client, folder):
    assert_answer(client.post("/predict", json={"rows": ROWS.tolist()}), expected(folder))
    flat = ROWS.reshape(5, -1).tolist()
    assert_answer(client.post("/predict", json={"rows": flat}), expected(folder))


def test_health(client):
    answer = client.get("/health")
    assert answer.json == {"step": 1, "shape": [6, 4, 3], "classes": ["cat", "dog", "bird"]}


def png(pixels, **options):
    contents = io.BytesIO()
    Image.fromarray(pixels, **options).save(contents, "PNG")
    return contents.getvalue()


def post_png(client, contents):
    return client.post("/predict", data=contents, content_type="image/png")


def test_a_picture(client, folder):
    pixels = np.random.default_rng(1).integers(256, size=(6, 4, 3), dtype=np.uint8)
    row = pixels[np.newaxis].astype(np.float32) / 255
    assert_answer(post_png(client, png(pixels)), expected(folder, row))
    clear = np.dstack([pixels, np.zeros((6, 4), np.uint8)])  # what is transparent is paper
    assert_answer(post_png(client, png(clear)), expected(folder, np.ones_like(row)))
    twice = pixels.repeat(2, axis=0).repeat(2, axis=1)
    assert post_png(client, png(twice)).status_code == 200


def test_a_photo_of_a_digit(serve, digit_model):
    service = serve.Service(serve.cnn_model_fn, digit_model, (784,), is_digit=True)
    client = serve.make_app(service).test_client()
    paper = np.full((200, 150), 230, np.uint8)
    paper[40:160, 70:84] = 30
    answer = post_png(client, png(paper))
    assert answer.json["classes"] == [1]
    digit = mc.images.digit(paper).reshape(1, 784)
    other = client.post("/predict", json={"rows": digit.tolist()})
    np.testing.assert_allclose(other.json["probabilities"], answer.json["probabilities"], atol=1e-5)


NO_ROWS = {
    "no object": ([1], "expected {"),
    "no rows": ({"rows": []}, "1 to 1000 rows"),
    "too many rows": ({"rows": [[0]] * 1001}, "1 to 1000 rows"),
    "another shape": ({"rows": [[0.5] * 71]}, "each row must be (6, 4, 3) numbers, got (71,)"),
    "unequal": ({"rows": [[0.5] * 72, [0.5]]}, "equal lengths"),
    "text": ({"rows": [["0.5"] * 72]}, "each row must be"),
    "null": ({"rows": [[None] * 72]}, "each row must be"),
    "true": ({"rows": [[True] * 72]}, "each row must be"),
    "beyond float32": ({"rows": [[1e300] * 72]}, "finite"),
    "not a number": ({"rows": [[float("nan")] * 72]}, "finite"),
    "a large integer": ({"rows": [[10**400] * 72]}, "each row must be"),
}


@pytest.mark.parametrize("name", NO_ROWS)
def test_json_that_is_refused(client, name):
    body, words = NO_ROWS[name]
    answer = client.post("/predict", json=body)
    assert answer.status_code == 400
    assert words in answer.json["error"]


def test_what_else_is_refused(serve, client, monkeypatch):
    kind = {"content_type": "application/json"}
    for body in (b"", b"{", b'{"rows": ' + b"[" * 100_000, b"\xff"):
        assert client.post("/predict", data=body, **kind).status_code == 400
    assert client.post("/predict", data="x", content_type="text/plain").status_code == 415
    assert client.get("/predict").status_code == 405
    assert client.get("/nothing").status_code == 404
    assert client.post("/predict", data=b"[" * (serve.MAX_BYTES + 1), **kind).status_code == 413
    pixels = np.random.default_rng(0).integers(256, size=(60, 40, 3), dtype=np.uint8)
    for contents in (b"", b"no picture", png(pixels)[:4000]):
        answer = post_png(client, contents)
        assert (answer.status_code, answer.json["error"][:22]) == (400, "the PNG cannot be read")
    jpeg = io.BytesIO()
    Image.new("RGB", (4, 6)).save(jpeg, "JPEG")
    assert post_png(client, jpeg.getvalue()).status_code == 400
    monkeypatch.setattr(serve, "MAX_PIXELS", 23)
    answer = post_png(client, png(np.zeros((6, 4, 3), np.uint8)))
    assert "more than 23 pixels" in answer.json["error"]


def test_only_this_computer_is_answered_by_default(serve, service):
    local = serve.make_app(service, serve.LOCAL).test_client()
    assert local.get("/health", base_url="http://127.0.0.1:8000").status_code == 200
    assert local.get("/health", base_url="http://example.org").status_code == 403
    server = serve.make_server(service, port=0)
    assert server.server_address[0] == "127.0.0.1"
    server.server_close()


def test_a_model_that_takes_no_pictures(serve, tmp_path):
    def model_fn(features, labels, mode):
        logits = mc.layers.dense(features, 2)
        loss = train_op = None
        if mode != mc.ModeKeys.INFER:
            loss = mc.losses.softmax_cross_entropy(mc.one_hot(labels, 2), logits)
        if mode == mc.ModeKeys.TRAIN:
            train_op = mc.optimize_loss(loss, learning_rate=0.1, optimizer="SGD")
        return mc.ModelFnOps(mode, {name: mc.softmax(logits)}, loss, train_op)

    name, x = "probabilities", np.ones((2, 5), np.float32)
    config = mc.RunConfig(seed=0, progress=False)
    mc.Estimator(model_fn, tmp_path, config=config).fit(x, [0, 1], steps=1)
    with pytest.raises(ValueError, match="give --shape"):
        serve.Service(model_fn, tmp_path)
    with pytest.raises(ValueError, match="the model has 2 classes, got 1 names"):
        serve.Service(model_fn, tmp_path, (5,), ["cat"])
    client = serve.make_app(serve.Service(model_fn, tmp_path, (5,))).test_client()
    assert client.post("/predict", json={"rows": x.tolist()}).status_code == 200
    assert post_png(client, png(np.zeros((5, 1), np.uint8))).status_code == 415
    name = "chances"
    with pytest.raises(ValueError, match='must have "probabilities"'):
        serve.Service(model_fn, tmp_path, (5,))


# New checkpoints ----------------------------------------------------------------------------------


def test_a_new_checkpoint_is_served(client, service, folder):
    before = expected(folder)
    train(folder, 3)
    body = {"rows": ROWS.tolist()}
    assert_answer(client.post("/predict", json=body), before)
    service.look()
    after = expected(folder)
    assert np.abs(after - before).max() > 0.01
    assert_answer(client.post("/predict", json=body), after, step=3)


def test_a_checkpoint_that_cannot_be_used_is_not_served(client, service, folder, caplog):
    body, before = {"rows": ROWS.tolist()}, expected(folder)
    snapshot = service._snapshot
    service.look()
    assert service._snapshot is snapshot  # nothing has changed
    (folder / "model.ckpt-2.npz").write_bytes(b"damaged")
    index = folder / "checkpoint.json"
    index.write_text('{"latest": "model.ckpt-2.npz"}')
    for _ in range(2):
        service.look()
    index.unlink()
    service.look()
    (message,) = caplog.messages
    assert "model.ckpt-2.npz" in message and "using model.ckpt-1.npz instead" in message
    assert_answer(client.post("/predict", json=body), before)
    other = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(5)])
    config = mc.RunConfig(seed=0, progress=False)
    mc.Estimator(other, folder.with_name("other"), config=config).fit(ROWS, [0] * 5, steps=3)
    shutil.copy(folder.with_name("other") / "model.ckpt-3.npz", folder)
    for _ in range(2):
        service.look()
    assert "step 1 is served still" in caplog.messages[1] and len(caplog.messages) == 2
    assert_answer(client.post("/predict", json=body), before)


def test_a_folder_without_a_checkpoint(serve, tmp_path):
    with pytest.raises(mc.CheckpointError, match="there is no checkpoint in"):
        serve.Service(model(), tmp_path)


# The server ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(serve, service):
    server = serve.make_server(service, port=0)
    thread = threading.Thread(target=serve.run, args=(server, service))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def ask(port, rows=ROWS):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/predict", json.dumps({"rows": rows.tolist()}), kind)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def test_a_client_that_does_not_finish_is_dropped(serve, service, monkeypatch):
    monkeypatch.setattr(sys.modules["draw_digit"], "SECONDS", 0.2)
    with running(serve, service) as server:
        address = "127.0.0.1", server.port
        with socket.create_connection(address, 60) as slow, socket.create_connection(address, 60):
            slow.sendall(b"POST /predict HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            assert ask(server.port)[0] == 200
            while slow.recv(1000):
                pass


def test_too_many_predictions_at_a_time(serve, service, monkeypatch):
    monkeypatch.setattr(serve, "SECONDS", 0.01)
    while service._turns.acquire(blocking=False):
        pass
    client = serve.make_app(service).test_client()
    answer = client.post("/predict", json={"rows": ROWS.tolist()})
    assert answer.status_code == 503
    service._turns.release()
    assert client.post("/predict", json={"rows": ROWS.tolist()}).status_code == 200
    assert client.post("/predict", json={"rows": ROWS.tolist()}).status_code == 200  # given back


def test_more_connections_than_places(serve, service, monkeypatch):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 2)
    alive, most = [], []
    predict = service.predict

    def counted(rows):
        alive.append(None)
        most.append(len(alive))
        time.sleep(0.01)
        alive.pop()
        return predict(rows)

    monkeypatch.setattr(service, "predict", counted)
    with running(serve, service) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [server.port] * 16))
    assert [status for status, _ in answers] == [200] * 16
    assert max(most) <= 2


def test_requests_that_have_arrived_are_answered_before_the_end(serve, service, monkeypatch):
    monkeypatch.setattr(serve, "MAX_CONNECTIONS", 1)  # the others wait to be accepted
    release, begun = threading.Event(), threading.Event()
    predict = service.predict

    def held(rows):
        begun.set()
        release.wait(60)
        return predict(rows)

    monkeypatch.setattr(service, "predict", held)
    server = serve.make_server(service, port=0)
    thread = threading.Thread(target=serve.run, args=(server, service))
    thread.start()
    body = json.dumps({"rows": ROWS.tolist()})
    head = "POST /predict HTTP/1.0\r\nContent-Type: application/json"
    clients = [socket.create_connection(("127.0.0.1", server.port), 60) for _ in range(5)]
    for client in clients:
        client.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    begun.wait(60)
    stopper = threading.Thread(target=server.shutdown)
    stopper.start()
    release.set()
    for each in (stopper, thread):
        each.join(60)
        assert not each.is_alive()
    for client in clients:
        with client, client.makefile("rb") as answer:
            assert b" 200 OK" in answer.readline()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), 60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program(folder, tmp_path, number):
    (tmp_path / "mine.py").write_text(MODEL)
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), str(folder), "--port", "0",
               "--model", f"{tmp_path / 'mine.py'}:model"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            port = int(process.stdout.readline().rpartition(":")[2])
            _, answer = ask(port)
            np.testing.assert_allclose(answer["probabilities"], expected(folder), atol=1e-5)
            train(folder, 3)
            end = time.monotonic() + 60
            while ask(port)[1]["step"] != 3:
                assert time.monotonic() < end
            process.send_signal(number)
            assert process.wait(60) == 0
        finally:
            process.kill()


def test_the_program_without_a_model(serve, tmp_path, monkeypatch):
    for arguments, words in (
        ([tmp_path / "nothing"], "is not a folder; train a model first"),
        ([tmp_path], "there is no checkpoint in"),
    ):
        monkeypatch.setattr(sys, "argv", ["serve.py", *map(str, arguments)])
        with pytest.raises(SystemExit, match=words):
            serve.main()


# The container of the README ----------------------------------------------------------------------

# Imported first: root's Python may be in a folder that other users cannot read.
AS_NOBODY = """
import os, resource, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import encodings.cp437, encodings.idna, flask, numpy.ma, PIL.Image, PIL.ImageOps
import serve, werkzeug.exceptions, werkzeug.serving
import importlib.metadata
versions = {name: importlib.metadata.version(name) for name in ("flask", "werkzeug")}
importlib.metadata.version = versions.__getitem__  # read from files at the first request
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can be written, as if it were read-only
serve.main()
"""


@pytest.fixture
def container(digit_model):
    """A folder in place of / with what the recipe copies and installs."""
    root = Path(tempfile.mkdtemp(dir="/tmp"))  # other users cannot read pytest's folders
    root.chmod(0o755)
    unwanted = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "minicnn", root / "site" / "minicnn", ignore=unwanted)
    shutil.copytree(ROOT / "examples", root / "minicnn" / "examples", ignore=unwanted)
    shutil.copytree(digit_model, root / "minicnn" / "mnist_cnn_model")
    (root / "minicnn" / "mnist_cnn_model").chmod(0o755)  # pytest's folders are 0700
    yield root
    for path in (root, *root.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    shutil.rmtree(root)


@pytest.mark.skipif(sys.platform == "win32", reason="users of POSIX")
def test_the_container_starts_without_compiling_for_another_user(container):
    text = (ROOT / "README.md").read_text("utf-8")
    [recipe] = re.findall(r"```dockerfile\n(.*?)```", text, re.DOTALL)
    recipe = recipe.replace("\\\n", "").replace("/minicnn", f"{container}/minicnn")
    *_, build = re.findall("^RUN (.*)", recipe, re.MULTILINE)
    [command] = map(json.loads, re.findall("^CMD (.*)", recipe, re.MULTILINE))
    assert "USER nobody" in recipe
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/nonexistent",
        "PYTHONPATH": str(container / "site"), "PYTHONDONTWRITEBYTECODE": "1",
        "MINICNN_NUM_THREADS": "1",
    }
    subprocess.run(build, shell=True, check=True, env=environment, cwd="/")
    kernels = sorted(container.rglob("*.nbc"))
    assert len(kernels) >= 5
    for path in (container, *container.rglob("*")):
        path.chmod(path.stat().st_mode & 0o555)

    local = ["--host", "127.0.0.1", "--port", "0"]  # after the recipe's host, and instead of it
    command = [sys.executable, "-c", AS_NOBODY, *command[1:], *local]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment, cwd="/", stdout=pipe, stderr=pipe, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith("step 120 at http://127.0.0.1:"), process.stderr.read()
            for rows in (1, 20, 100):
                status, _ = ask(int(line.rpartition(":")[2]), np.zeros((rows, 784)))
                assert status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
        said = process.stderr.read().splitlines()
    texts = [line.split("  ")[1] for line in said]
    assert texts[0].startswith("Restored model from ")  # nothing is compiled
    assert texts[1:] == ["step 120 is served"]
    assert sorted(container.rglob("*.nbc")) == kernels


# The load test ------------------------------------------------------------------------------------


def test_the_load_test_counts_no_wrong_or_lost_answer(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--smoke", "--json",
               str(tmp_path / "results.json")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert list(results) == ["1", "8", "32"]
    for clients, counts in results.items():
        assert (counts["wrong"], counts["lost"], counts["checkpoints"]) == (0, 0, 2)
        assert counts["requests"] >= 5 * int(clients)
        assert 0 < counts["p50, ms"] <= counts["p99, ms"]


def test_the_load_test_notices_wrong_and_lost_answers(serve, service, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import serving

    bodies, right = [json.dumps({"rows": ROWS[:1].tolist()})], service.predict(ROWS[:1])
    expected = {1: [np.array(right["probabilities"][0])]}
    with running(serve, service) as server:
        load = serving.Load(server.port, bodies, expected)
        load._ask(0)
        assert (len(load.times), load.wrong, load.lost) == (1, [], [])
        expected[1][0] = expected[1][0] + 0.01
        load._ask(0)
        load.bodies = ["{"]
        load._ask(0)
        assert (len(load.times), len(load.wrong), len(load.lost)) == (3, 2, 0)
    load._ask(0)
    assert (len(load.times), len(load.lost)) == (3, 1)
