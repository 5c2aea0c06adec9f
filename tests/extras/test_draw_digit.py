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
def classifier(page, digit_model):
    return mc.Estimator(page.model_fn, digit_model)


@pytest.fixture(scope="module")
def app(page, classifier):
    return page.make_app(classifier)


@pytest.fixture
def client(app):
    client = app.test_client()
    client.environ_base["HTTP_HOST"] = "127.0.0.1:8000"
    return client


@pytest.fixture(scope="module")
def server(page, classifier):
    """Run the server of the example in this process."""
    server = page.make_server(classifier, 0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


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


def test_the_maps_are_what_the_convolutions_put_out(page, digit_model):
    estimator = mc.Estimator(page.model_fn, digit_model)
    x = np.random.default_rng(0).random((1, 784), np.float32)
    seen = estimator.predict(x, as_iterable=False)
    assert {name: seen[name].shape for name in ("conv1", "conv2")} == {
        "conv1": (1, 28, 28, 32), "conv2": (1, 14, 14, 64),
    }  # fmt: skip
    weights = estimator.get_variable_value
    centre = x.reshape(28, 28)[8:13, 8:13, np.newaxis, np.newaxis] * weights("conv2d/kernel")
    expected = np.maximum(centre.sum(axis=(0, 1, 2)) + weights("conv2d/bias"), 0)
    np.testing.assert_allclose(seen["conv1"][0, 10, 10], expected, rtol=1e-4, atol=1e-5)


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
    with pytest.raises(SystemExit, match="without MODEL_DIR a model is trained first"):
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
        bars = tab.get_by_role("list", name="Probability of each digit").get_by_role("listitem")
        assert bars.count() == 10
        # The answer to a part of the stroke may be the same: wait for the last one.
        waits = itertools.repeat(100, 600)  # milliseconds
        while not tab.evaluate(LONGEST_BAR, digit):
            tab.wait_for_timeout(next(waits))
        tab.get_by_role("button", name="Clear").click()
        said(tab, "Draw a digit from 0 to 9.")


def test_the_bars_and_the_maps_move_while_drawing(visit):
    tab = visit()
    empty = {name: tab.evaluate(f"{name}.toDataURL()") for name in ("input", "conv1", "conv2")}
    box = tab.locator("#pad").bounding_box()
    tab.mouse.move(box["x"] + 150, box["y"] + 60)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 140, box["y"] + 300, steps=10)
    playwright.expect(tab.locator("#bars .best")).to_have_count(1)  # the button is still down
    for name, before in empty.items():
        assert tab.evaluate(f"{name}.toDataURL()") != before
    tab.mouse.up()
    tab.mouse.move(box["x"] + 300, box["y"] + 100)  # a lifted pen draws nothing
    drawn = tab.evaluate("pad.toDataURL()")
    tab.mouse.move(box["x"] + 10, box["y"] + 10)
    assert tab.evaluate("pad.toDataURL()") == drawn
    tab.get_by_role("button", name="Clear").click()
    playwright.expect(tab.locator("#bars .best")).to_have_count(0)
    for name, before in empty.items():
        assert tab.evaluate(f"{name}.toDataURL()") == before


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
