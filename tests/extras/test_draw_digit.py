"""The page for drawing digits: what its server refuses, and the page in a real browser."""

import contextlib
import http.client
import itertools
import json
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("flask", reason='pip install -e ".[demo]"')
pytest.importorskip("PIL", reason='pip install -e ".[demo]"')

from werkzeug.serving import BaseWSGIServer

import minicnn as mc

SIDE = 56
ONE = np.zeros((SIDE, SIDE), int)
ONE[10:46, 26:31] = 255
GOOD = {"pixels": ONE.ravel().tolist()}


@pytest.fixture(scope="module")
def page(example):
    return example("draw_digit")


@pytest.fixture(scope="module")
def network(page, digit_model):
    return page.Network(page.model_fn, model_dir=digit_model)


@pytest.fixture(scope="module")
def app(page, network):
    return page.make_app(network)


@pytest.fixture
def client(app):
    client = app.test_client()
    client.environ_base["HTTP_HOST"] = "127.0.0.1:8000"
    return client


@contextlib.contextmanager
def serving(page, network):
    """Run the server of the example in this process."""
    server = page.make_server(network, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def server(page, network):
    with serving(page, network) as server:
        yield server


# The server ---------------------------------------------------------------------------------------


def test_look(client):
    answer = client.post("/look", json=GOOD)
    assert (answer.status_code, answer.mimetype) == (200, "application/json")
    assert int(np.argmax(answer.json["probabilities"])) == 1
    assert sum(answer.json["probabilities"]) == pytest.approx(1, abs=1e-5)


def test_a_drawing_that_is_only_begun(client):
    dot, bar = np.zeros((2, SIDE, SIDE), int)
    dot[12:16, 15:19] = 255
    bar[12:16, 15:42] = 255
    for pixels in (dot, bar):
        answer = client.post("/look", json={"pixels": pixels.ravel().tolist()})
        assert answer.status_code == 200


def test_the_maps_are_what_the_convolutions_put_out(page, network, digit_model):
    x = np.random.default_rng(0).random((28, 28), np.float32)
    _, maps = network.run(x)
    assert {name: values.shape for name, values in maps.items()} == {
        "conv2d": (28, 28, 32), "conv2d_1": (14, 14, 64),
    }  # fmt: skip
    weights = mc.Estimator(page.model_fn, digit_model).get_variable_value
    centre = x[8:13, 8:13, np.newaxis, np.newaxis] * weights("conv2d/kernel")
    expected = np.maximum(centre.sum(axis=(0, 1, 2)) + weights("conv2d/bias"), 0)
    np.testing.assert_allclose(maps["conv2d"][10, 10], expected, rtol=1e-4, atol=1e-5)


def any_model(*last):
    """Return a Sequential with filters, an activation apart from them, and three classes."""
    model = mc.Sequential([
        mc.layers.Conv2D(3, 5, strides=2), mc.layers.Activation("relu"), mc.layers.MaxPooling2D(2),
        mc.layers.Conv2D(70, 3, activation="tanh"), mc.layers.Flatten(), mc.layers.Dense(3), *last,
    ])
    model.build((None, 28, 28, 1), rng=0)
    return model


CLASSES = ["ankle boot", "T-shirt", "bag"]


@pytest.mark.parametrize("last", [[], [mc.layers.Activation("softmax")]])
def test_any_model_is_shown_with_its_own_classes(page, last):
    model = any_model(*last)
    network = page.Network(model, CLASSES)
    assert network.description == {"classes": CLASSES, "maps": [
        {"name": "input", "size": [28, 28], "count": 1},
        {"name": "conv2d", "size": [12, 12], "count": 3},
        {"name": "conv2d_1", "size": [4, 4], "count": 64},
    ]}  # fmt: skip
    image = np.random.default_rng(0).random((28, 28), np.float32)
    probabilities, maps = network.run(image)
    logits = model.predict(image.reshape(1, 28, 28, 1))
    expected = logits if last else mc.softmax(logits)
    np.testing.assert_allclose(probabilities, expected[0], rtol=1e-4)
    before = model.layers[0](image.reshape(1, 28, 28, 1))[0]
    np.testing.assert_allclose(maps["conv2d"], np.maximum(before, 0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the model has 3 classes, got 2 names"):
        page.Network(model, CLASSES[:2])


def test_a_model_in_a_file_gets_its_weights(page, tmp_path):
    tmp_path.joinpath("mine.py").write_text(
        "import minicnn as mc\nmodel = mc.Sequential([mc.layers.Flatten(), mc.layers.Dense(2)])\n"
        "model.build((None, 28, 28, 1), rng=0)\n"
    )
    place = f"{tmp_path}/mine.py:model"
    trained = page.named(place, None)
    trained.parameters[0].value += 1
    mc.save_weights(trained, tmp_path / "weights.npz")
    loaded = page.named(place, tmp_path / "weights.npz")
    assert np.array_equal(loaded.parameters[0].value, trained.parameters[0].value)


@pytest.mark.parametrize("body", [
    None, 3, "text", [], {}, {"pixel": []}, {"pixels": None}, {"pixels": "0" * SIDE * SIDE},
    {"pixels": []}, {"pixels": [0] * (SIDE * SIDE - 1)}, {"pixels": [0] * (SIDE * SIDE + 1)},
    *({"pixels": [wrong, *GOOD["pixels"][1:]]} for wrong in (
        float("nan"), float("inf"), -1, 256, 1e400, 10**400, "1", None, True, [0], {},
    )),
    {"pixels": [0] * SIDE * SIDE}, {"pixels": [255] * SIDE * SIDE},
], ids=lambda body: str(body)[:24])
def test_bad_drawings(client, body):
    answer = client.post("/look", data=json.dumps(body), content_type="application/json")
    assert answer.status_code == 400
    assert re.search("expected|must be|no digit was found", answer.json["error"])


@pytest.mark.parametrize(("path", "options", "code"), [
    ("/look", {"data": b"", "content_type": "application/json"}, 400),
    ("/look", {"data": b"{", "content_type": "application/json"}, 400),
    ("/look", {"data": b"\xff\xfe", "content_type": "application/json"}, 400),
    ("/look", {"data": b"[" * 20000, "content_type": "application/json"}, 400),
    ("/look", {"data": b'{"pixels": [' + b"1" * 9000, "content_type": "application/json"}, 400),
    ("/look", {"data": json.dumps(GOOD), "content_type": "text/plain"}, 415),
    ("/look", {"data": {"pixels": "1"}}, 415),
    ("/look", {"data": b"1" * 40000, "content_type": "application/json"}, 413),
    ("/", {}, 405),
    ("/no", {}, 404),
])
def test_bad_requests(client, path, options, code):
    answer = client.post(path, **options)
    assert (answer.status_code, answer.mimetype) == (code, "application/json")
    assert answer.json["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_wrong_methods(client, method):
    answer = client.open("/look", method=method)
    assert answer.status_code == 405
    assert "POST" in answer.headers["Allow"]
    assert answer.json["error"]


@pytest.mark.parametrize("host", [
    "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example:8000",
    "0.0.0.0:8000", "[::1]:8000", "user@127.0.0.1", "127.0.0.1@evil.example", "", "[", "a b",
])
def test_other_hosts_are_refused(client, host):
    for answer in (client.get("/", headers={"Host": host}),
                   client.post("/look", json=GOOD, headers={"Host": host})):  # fmt: skip
        assert answer.status_code in (400, 403)
        assert answer.json["error"]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1234", "localhost:8000", "LOCALHOST"])
def test_this_host_is_served(client, host):
    assert client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css", "/no", "/look"])
def test_headers(client, path):
    headers = client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "Access-Control-Allow-Origin" not in headers


def ask(server, body, headers=()):
    """Send a request over a new connection; return the status code and the JSON."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        sent = {"Content-Type": "application/json", **dict(headers)}
        connection.request("POST", "/look", body, sent)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


@pytest.mark.parametrize("path", [
    "/draw_digit.py", "/../draw_digit.py", "/%2e%2e/draw_digit.py", "/..%2fdraw_digit.py",
    "/page.css/../../draw_digit.py", "//etc/passwd", "/page.js%00", "/static/page.js", "/.",
])
def test_no_path_reaches_the_file_system(server, path):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", path)  # unchanged, not normalized
    answer = connection.getresponse()
    assert answer.status in (308, 404)
    assert b"root" not in answer.read()
    connection.close()


def test_fifty_at_once(server):
    bodies = [json.dumps({"pixels": np.roll(ONE, i % 20, axis=1).ravel().tolist()})
              for i in range(50)]  # fmt: skip
    alone = [ask(server, body) for body in bodies[:20]]
    start = threading.Barrier(50)

    def together(body):
        start.wait()
        return ask(server, body)

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(together, bodies))
    assert [code for code, _ in answers] == [200] * 50
    assert answers == [alone[i % 20] for i in range(50)]


def test_too_much_over_a_socket(server):
    code, answer = ask(server, b"1" * 100_000)
    assert (code, list(answer)) == (413, ["error"])
    chunks = (b"1" * 1000 for _ in range(100))  # no Content-Length
    assert ask(server, chunks)[0] in (400, 413)
    assert ask(server, json.dumps(GOOD))[0] == 200  # it still answers


@pytest.mark.parametrize("start", [
    b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
    b"POST /look HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Content-Length: 9000\r\n\r\n[",
], ids=["nothing", "a line", "a header", "a body"])
@pytest.mark.parametrize("trickle", [False, True])
def test_a_request_that_is_never_finished(server, page, monkeypatch, start, trickle):
    monkeypatch.setattr(page, "SECONDS", 0.3)
    before = threading.active_count()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(start)
        end = time.monotonic() + 20
        while trickle and time.monotonic() < end:
            time.sleep(0.05)
            try:
                client.sendall(b"1")
            except ConnectionError:
                break
        with contextlib.suppress(ConnectionError):
            while client.recv(1000):
                pass
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before
    monkeypatch.undo()
    assert ask(server, json.dumps(GOOD))[0] == 200


# The program --------------------------------------------------------------------------------------


def test_the_program_serves_this_computer_alone(page, digit_model):
    command = [sys.executable, "-u", page.__file__, str(digit_model), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r"http://127\.0\.0\.1:(\d+)", process.stdout.readline())[1])
            for host, served in (("127.0.0.1", True), ("127.0.0.2", False)):
                connection = http.client.HTTPConnection(host, port, timeout=10)
                if served:
                    connection.request("GET", "/")
                    assert connection.getresponse().status == 200
                else:
                    with pytest.raises(OSError):
                        connection.connect()
                connection.close()
        finally:
            process.kill()


@pytest.fixture
def main(page, monkeypatch):
    """Run the program until it starts to serve."""

    def interrupted(self, *args, **kwargs):
        self.server_close()
        raise KeyboardInterrupt

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["draw_digit.py", *arguments])
        monkeypatch.setattr(BaseWSGIServer, "serve_forever", interrupted)
        page.main()

    return main


def test_without_a_folder_it_trains_first(page, main, digit_model, monkeypatch, capsys):
    trained = []

    def train(folder):
        trained.append(folder)
        shutil.copytree(digit_model, folder, dirs_exist_ok=True)

    monkeypatch.setattr(page, "train", train)
    main("--port", "0")
    out = capsys.readouterr().out
    assert f"python draw_digit.py {trained[0]}" in out
    assert "Open http://127.0.0.1:" in out
    shutil.rmtree(trained[0])


def test_an_empty_folder(main, tmp_path):
    with pytest.raises(SystemExit, match="without MODEL a model is trained first"):
        main(str(tmp_path))


# The page in a browser ----------------------------------------------------------------------------

playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test-all]"')

STROKES = {
    0: [(0.5, 0.2), (0.35, 0.32), (0.3, 0.5), (0.35, 0.68), (0.5, 0.8), (0.65, 0.68), (0.7, 0.5),
        (0.65, 0.32), (0.5, 0.2)],
    1: [(0.52, 0.2), (0.48, 0.8)],
    7: [(0.3, 0.22), (0.7, 0.22), (0.45, 0.8)],
}  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or pytest.skip("needs Chromium: apt-get install chromium")
    playwright.expect.set_options(timeout=60_000)  # the machine may be busy
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, server):
    """Open the page; check afterwards that there were no errors and no requests elsewhere."""
    contexts, wrong = [], []
    address = f"http://127.0.0.1:{server.port}/"

    def visit(**options):
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: request.url.startswith((address, "data:"))
               or wrong.append(request.url))  # fmt: skip
        tab.goto(address)
        return tab

    yield visit
    for context in contexts:
        context.close()
    assert wrong == []


def draw(tab, points):
    box = tab.locator("#pad").bounding_box()
    for i, (x, y) in enumerate(points):
        tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if i == 0:
            tab.mouse.down()
    tab.mouse.up()


LONGEST_BAR = """digit => {
    const width = (item, part) => item.querySelector(part).getBoundingClientRect().width;
    const items = [...document.querySelectorAll("li:has(.fill)")];
    const percents = items.map(item => Number(item.innerText.match(/(\\d+)%/)[1]));
    return Math.max(...percents) === percents[digit]
        && width(items[digit], ".fill") > 0.4 * width(items[digit], ".bar");
}"""


def said(tab, text):
    playwright.expect(tab.get_by_role("status")).to_contain_text(text)


def test_drawing_with_the_mouse(visit):
    tab = visit()
    said(tab, "Draw a digit from 0 to 9.")
    for digit, points in STROKES.items():
        draw(tab, points)
        said(tab, f"It looks like a {digit} (")
        bars = tab.get_by_role("list", name="Probability of each class").get_by_role("listitem")
        assert bars.count() == 10
        # The answer to a part of the stroke may be the same: wait for the last one.
        waits = itertools.repeat(100, 600)  # milliseconds
        while not tab.evaluate(LONGEST_BAR, digit):
            tab.wait_for_timeout(next(waits))
        tab.get_by_role("button", name="Clear").click()
        said(tab, "Draw a digit from 0 to 9.")


def test_the_bars_and_the_maps_move_while_drawing(visit):
    tab = visit()
    said(tab, "Draw a digit")
    draw_maps = "number => maps[number].canvas.toDataURL()"
    empty = {number: tab.evaluate(draw_maps, number) for number in range(3)}
    box = tab.locator("#pad").bounding_box()
    tab.mouse.move(box["x"] + 150, box["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 140, box["y"] + 300, steps=10)
    playwright.expect(tab.locator("#bars .best")).to_have_count(1)  # the button is still down
    for number, before in empty.items():
        assert tab.evaluate(draw_maps, number) != before
    tab.mouse.up()
    tab.mouse.move(box["x"] + 300, box["y"] + 100)  # a lifted pen draws nothing
    drawn = tab.evaluate("pad.toDataURL()")
    tab.mouse.move(box["x"] + 10, box["y"] + 10)
    assert tab.evaluate("pad.toDataURL()") == drawn
    tab.get_by_role("button", name="Clear").click()
    playwright.expect(tab.locator("#bars .best")).to_have_count(0)
    for number, before in empty.items():
        assert tab.evaluate(draw_maps, number) == before


def test_the_keyboard_alone(visit):
    tab = visit()
    tab.keyboard.press("Tab")
    pad = tab.get_by_role("application", name="Drawing area")
    playwright.expect(pad).to_be_focused()
    playwright.expect(tab.locator("#pen")).to_be_visible()
    for _ in range(8):
        tab.keyboard.press("ArrowUp")
    tab.keyboard.press("Space")
    said(tab, "Pen down.")
    for _ in range(16):
        tab.keyboard.press("ArrowDown")
    said(tab, "It looks like a 1 (")
    tab.keyboard.press("Space")
    said(tab, "Pen up.")
    drawn = tab.evaluate("pad.toDataURL()")
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "x"):
        tab.keyboard.press(key)
    assert tab.evaluate("pad.toDataURL()") == drawn
    tab.keyboard.press("Tab")
    playwright.expect(tab.get_by_role("button", name="Clear")).to_be_focused()
    tab.keyboard.press("Enter")
    said(tab, "Draw a digit from 0 to 9.")
    tab.keyboard.press("Shift+Tab")
    tab.keyboard.press("Space")
    tab.keyboard.press("Delete")
    said(tab, "Draw a digit from 0 to 9.")
    assert tab.evaluate("scrollY") == 0


def test_a_finger_on_a_phone(visit):
    tab = visit(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    box = tab.locator("#pad").bounding_box()
    fingers = tab.context.new_cdp_session(tab)
    kinds = ["touchStart", *["touchMove"] * (len(STROKES[7]) - 1)]
    for kind, (x, y) in zip(kinds, STROKES[7], strict=True):
        at = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [at]})
    fingers.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    said(tab, "It looks like a 7 (")
    assert tab.evaluate("scrollY") == 0


BOTTOM = "name => document.querySelector(name).getBoundingClientRect().bottom"


def test_a_laptop_shows_the_maps_while_drawing(visit):
    tab = visit(viewport={"width": 1366, "height": 650})  # of 768: the browser's bars take some
    said(tab, "Draw a digit")
    for name in ("#pad", "#clear", "#bars", "#maps"):
        assert tab.evaluate(BOTTOM, name) < 650, name
    assert tab.evaluate("document.documentElement.scrollWidth") == 1366


def test_a_phone_shows_the_result_while_drawing(visit):
    tab = visit(viewport={"width": 390, "height": 664}, has_touch=True, is_mobile=True)  # of 844
    said(tab, "Draw a digit")
    for name in ("#pad", "#clear", "#said", "#bars"):
        assert tab.evaluate(BOTTOM, name) < 664, name


def test_other_classes_on_the_page(page, browser):
    with serving(page, page.Network(any_model(), CLASSES)) as server:
        tab = browser.new_page()
        tab.goto(f"http://127.0.0.1:{server.port}/")
        said(tab, "Draw one of: ankle boot, T-shirt, bag.")
        draw(tab, STROKES[1])
        said(tab, "It looks like ")
        assert any(f"looks like {name} (" in tab.inner_text("#said") for name in CLASSES)
        assert tab.inner_text("#bars").split("%")[0].startswith("ankle boot")
        assert "conv2d_1: 64 maps of 4" in tab.inner_text("#maps")
        tab.close()


def test_light_and_dark(visit):
    brightness = {}
    for scheme in ("light", "dark"):
        tab = visit(color_scheme=scheme)
        for name in ("backgroundColor", "color"):
            colour = tab.evaluate(f"getComputedStyle(document.body).{name}")
            brightness[scheme, name] = sum(map(int, re.findall(r"\d+", colour)[:3])) / 3
    assert brightness["light", "backgroundColor"] > 200 > 60 > brightness["light", "color"]
    assert brightness["dark", "backgroundColor"] < 60 < 200 < brightness["dark", "color"]


def test_what_the_page_says_of_trouble(browser, server):
    tab = browser.new_page()
    tab.goto(f"http://127.0.0.1:{server.port}/")
    tab.route("**/look", lambda route: route.fulfill(status=400, json={"error": "no, thanks"}))
    draw(tab, STROKES[1])
    said(tab, "Not understood: no, thanks.")
    tab.route("**/look", lambda route: route.abort())
    draw(tab, STROKES[7])
    said(tab, "The server does not answer; start it again.")
    tab.close()
