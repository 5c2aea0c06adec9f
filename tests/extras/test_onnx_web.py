"""ONNX files in a real browser: onnxruntime-web and the model compute the same.

ONNXRUNTIME_WEB is the folder `dist` of the npm package: ``npm install onnxruntime-web``.
"""

import functools
import http.server
import json
import os
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from layers.passes import built, numbers

import minicnn as mc
from minicnn.layers import (
    Activation,
    BatchNormalization,
    Conv2D,
    Conv2DTranspose,
    Dense,
    DepthwiseConv2D,
    Dropout,
    Flatten,
    GlobalAveragePooling2D,
    MaxPooling2D,
    Residual,
    SeparableConv2D,
)

pytest.importorskip("onnx", reason='pip install -e ".[onnx]"')
playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[test-all]"')

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
NETWORKS = {
    "guide": [
        Conv2D(32, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Conv2D(64, 5, padding="same", activation="relu"), MaxPooling2D(2),
        Flatten(), Dense(64, activation="relu"), Dropout(0.4), Dense(10),
    ],
    "other layers": [
        Conv2D(8, 3, strides=2, use_bias=False), BatchNormalization(), Activation("gelu"),
        Residual([Conv2D(8, 3, padding="same"), BatchNormalization()]), Activation("leaky_relu"),
        DepthwiseConv2D(3), SeparableConv2D(6, 3), Conv2DTranspose(4, 3, strides=2),
        GlobalAveragePooling2D(), Dense(5, activation="tanh"),
    ],
}


class Handler(http.server.SimpleHTTPRequestHandler):
    def guess_type(self, path):
        kinds = {".html": "text/html", ".wasm": "application/wasm", ".onnx": "model/onnx"}
        return kinds.get(Path(path).suffix, "text/javascript")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files of onnxruntime-web."""
    if "ONNXRUNTIME_WEB" not in os.environ:
        pytest.skip("set ONNXRUNTIME_WEB; npm install onnxruntime-web")
    folder = tmp_path_factory.mktemp("web")
    for file in ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        shutil.copy(Path(os.environ["ONNXRUNTIME_WEB"]) / file, folder)
    return folder


@pytest.fixture(scope="module")
def address(folder):
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser(folder):
    path = shutil.which("chromium") or pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_program_of_the_readme_in_a_browser(folder, address, browser, name):
    model, _ = built(lambda: mc.Sequential(NETWORKS[name]), (28, 28, 1))
    x = numbers((1, 28, 28, 1))
    mc.export.to_onnx(model, folder / "model.onnx", softmax=True)
    [program] = re.findall(r"```html\n(.*?)```", README, re.DOTALL)
    start = f"<script>const pixels = new Float32Array({x.ravel().tolist()});</script>"
    done = "document.title = JSON.stringify(Array.from(outputs.data));\n</script>"
    page = start + program.removesuffix("</script>\n") + done
    (folder / "index.html").write_text(page)
    tab = browser.new_page()
    errors = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(f"{address}/index.html")
    while not (title := tab.title()) and not errors:
        tab.wait_for_timeout(50)
    tab.close()
    assert errors == []
    outputs = np.array(json.loads(title))
    np.testing.assert_allclose(outputs, mc.softmax(model.predict(x))[0], rtol=1e-4, atol=1e-6)
