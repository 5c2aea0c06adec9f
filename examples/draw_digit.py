"""Draw a digit in the browser, and see what the network computes while you draw.

    python examples/draw_digit.py                    first trains for one epoch, under a minute
    python examples/draw_digit.py mnist_cnn_model    uses the model of examples/mnist_cnn.py
    python examples/draw_digit.py MODEL --model mine.py:model --classes "cat,dog"

The last form shows any model for images of 28 x 28 pixels: `mine.py` is a Python file, `model` a
`Sequential` or a model_fn in it, and MODEL its model_dir or file of weights. A program may call
``show(model, ["cat", "dog"])`` instead, with a trained Sequential.

Then open the address that it prints. This needs Flask: ``pip install -e ".[demo]"``. Only this
computer can open the page; it loads nothing from other sites, and no drawing is stored.
"""

import argparse
import base64
import functools
import io
import logging
import runpy
import sys
import tempfile
import time
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from mnist_cnn import cnn_model_fn

import minicnn as mc
from minicnn import images
from minicnn.core.extras import require

PAGE = Path(__file__).with_name("draw_digit_page")
FILES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
SIDE = 56  # the page sends SIDE * SIDE levels from 0 (paper) to 255 (ink), row by row
MAX_BYTES = 32 * 1024  # of a request; the longest valid one has half as many
MOST_MAPS = 64  # of a convolution that are shown
MAP = "map "  # before the names of the maps among the predictions
SECONDS = 10  # that a client has to send its request
LOCAL = ["127.0.0.1", "localhost"]
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def model_fn(features, labels, mode):
    """Build the network of mnist_cnn.py, with Adam."""
    ops = cnn_model_fn(features, labels, mode, {"learning_rate": 0.001})
    if mode == mc.ModeKeys.TRAIN:
        ops.train_op = mc.optimize_loss(ops.loss, learning_rate=0.001, optimizer="Adam")
    return ops


def train(model_dir, steps=550):
    """Train a model for `steps` batches of 100 images; 550 are an epoch."""
    mnist = mc.datasets.load_dataset("mnist")
    classifier = mc.Estimator(model_fn, model_dir, config=mc.RunConfig(seed=0))
    classifier.fit(mnist.train.images, mnist.train.labels, batch_size=100, max_steps=steps)
    metrics = {"accuracy": mc.MetricSpec(mc.metrics.accuracy, prediction_key="classes")}
    test = mnist.test
    results = classifier.evaluate(test.images, test.labels, metrics=metrics, name="test")
    print(f"accuracy on the {mnist.test.num_examples:,} test images: {results['accuracy']:.4f}")


class Network:
    """A model for images of 28 x 28 pixels, with the feature maps of its convolutions.

    `model` is a trained Sequential, or a model_fn and the `model_dir` of its checkpoints. `classes`
    are the names of the classes; by default they are numbered.
    """

    def __init__(self, model, classes=None, model_dir=None):
        if isinstance(model, mc.Sequential):
            self.run = functools.partial(run_sequential, model)
        else:
            self.run = functools.partial(run_estimator, mc.Estimator(with_maps(model), model_dir))
        probabilities, maps = self.run(np.zeros((28, 28), np.float32))  # read and compile
        self.classes = classes or [str(number) for number in range(len(probabilities))]
        if len(self.classes) != len(probabilities):
            raise ValueError(
                f"the model has {len(probabilities)} classes, got {len(self.classes)} names"
            )
        sizes = [{"name": "input", "size": [28, 28], "count": 1}]
        for name, values in maps.items():
            height, width, count = values.shape
            sizes.append({"name": name, "size": [height, width], "count": min(count, MOST_MAPS)})
        self.description = {"classes": self.classes, "maps": sizes}

    def look(self, pixels):
        """Return what the page shows: the probabilities, and the feature maps in base64."""
        x = images.digit(pixels)
        probabilities, maps = self.run(x)
        return {
            "probabilities": probabilities.tolist(),
            "maps": [encoded(values) for values in (x[..., np.newaxis], *maps.values())],
        }


def run_sequential(model, image):
    """Return the probabilities and the maps (H, W, C) by name."""
    x = rows = image.reshape(1, *model.input_shape[1:])
    maps, ctx = {}, mc.Context(save=False)
    for layer in model.layers:
        before, x = x, layer.forward(x, ctx)
        add_map(maps, layer, x, [before])
    return model.predict_proba(rows)[0], {name: values[0] for name, values in maps.items()}


def run_estimator(estimator, image):
    """Return the probabilities and the maps (H, W, C) by name."""
    seen = estimator.predict(image.reshape(1, -1), as_iterable=False)
    maps = {key.removeprefix(MAP): seen.pop(key)[0] for key in list(seen) if key.startswith(MAP)}
    return seen["probabilities"][0], maps


def with_maps(model_fn):
    """Let a model_fn predict the feature maps of its convolutions, too."""

    @functools.wraps(model_fn)
    def seen(**arguments):
        ops = model_fn(**arguments)
        if arguments["mode"] == mc.ModeKeys.INFER:
            maps = {}
            for tensor in arguments["features"].graph.tensors.values():
                add_map(maps, tensor.op, tensor, tensor.inputs)
            ops.predictions.update({MAP + name: tensor for name, tensor in maps.items()})
        return ops

    return seen


def add_map(maps, layer, output, inputs):
    """Add the output of a layer to `maps`, by the layer's name, if the layer has filters.

    Of a layer that changes the maps one element at a time, such as an activation, the output is
    taken instead.
    """
    if layer is not None and any(len(parameter.shape) == 4 for parameter in layer.parameters):
        maps[layer.label] = output
    for name, values in maps.items():
        if any(values is each for each in inputs) and values.shape == output.shape:
            maps[name] = output


def drawing(body):
    """Return the (SIDE, SIDE) levels in the JSON of a request, or raise a ValueError."""
    pixels = body.get("pixels") if isinstance(body, dict) else None
    if not isinstance(pixels, list) or len(pixels) != SIDE * SIDE:
        raise ValueError(f'expected {{"pixels": [...]}} with {SIDE * SIDE} numbers')
    # type() and not isinstance(): True is an int
    if not all(type(level) in (int, float) and 0 <= level <= 255 for level in pixels):
        raise ValueError("each of the pixels must be a number from 0 (paper) to 255 (ink)")
    return np.array(pixels, np.float32).reshape(SIDE, SIDE)


def encoded(maps):
    """Return maps (H, W, C) in base64, one map after the other, one byte per pixel."""
    maps = np.maximum(maps[..., :MOST_MAPS], 0)
    levels = np.sqrt(maps / max(maps.max(), 1e-6))  # the root makes small values visible
    return base64.b64encode((255 * levels).astype(np.uint8).transpose(2, 0, 1).tobytes()).decode()


def new_app(max_bytes, hosts=None):
    """Return a Flask application that answers errors in JSON, and requests of `hosts` only."""
    flask = require("flask", "demo")
    http = require("werkzeug.exceptions", "demo")
    app = flask.Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = max_bytes

    @app.before_request
    def refuse_other_hosts():
        # Another site may resolve its name to 127.0.0.1 (DNS rebinding); the Host header shows it.
        if hosts and urlsplit(f"//{flask.request.host}").hostname not in hosts:
            flask.abort(403, f"open this page as http://{hosts[0]}")

    @app.errorhandler(http.HTTPException)
    def explain(error):
        response = error.get_response()
        response.data = flask.json.dumps({"error": error.description})
        response.content_type = "application/json"
        return response

    @app.after_request
    def protect(response):
        response.headers.update(HEADERS)
        return response

    return app


def make_app(network):
    """Return the Flask application: three files, which are read once, GET /model and POST /look."""
    flask = require("flask", "demo")
    app = new_app(MAX_BYTES, LOCAL)
    contents = {name: (PAGE / name).read_bytes() for name in FILES}

    @app.get("/", defaults={"name": "index.html"})
    @app.get("/<any('page.css', 'page.js'):name>")
    def file(name):
        return flask.Response(contents[name], mimetype=FILES[name])

    @app.get("/model")
    def model():
        return network.description

    @app.post("/look")
    def answer():
        try:
            return network.look(drawing(flask.request.get_json()))
        except RecursionError:
            flask.abort(400, "the JSON is nested too deep")
        except ValueError as error:
            flask.abort(400, str(error))

    return app


class Request(io.RawIOBase):
    """The bytes that a client sends; TimeoutError if they take longer than SECONDS in total.

    A client that never finishes its request must not occupy a thread of the server.
    """

    def __init__(self, connection):
        self.connection = connection
        self.end = time.monotonic() + SECONDS

    def readable(self):
        return True

    def readinto(self, buffer):
        self.connection.settimeout(max(self.end - time.monotonic(), 0.001))
        return self.connection.recv_into(buffer)


def new_handler():
    """Return a class that handles requests as Werkzeug's does, but reads each as a `Request`."""

    class Handler(require("werkzeug.serving", "demo").WSGIRequestHandler):
        def setup(self):
            super().setup()
            self.rfile.close()
            self.rfile = io.BufferedReader(Request(self.connection))

    return Handler


def make_server(network, port):
    """Return a server for many browsers at a time, on this computer only."""
    serving = require("werkzeug.serving", "demo")
    app = make_app(network)
    return serving.make_server(
        "127.0.0.1", port, app, threaded=True, request_handler=new_handler()
    )


def show(model, classes=None, model_dir=None, port=8000):
    """Serve the page for a model until Ctrl-C; the arguments are those of `Network`."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request
    server = make_server(Network(model, classes, model_dir), port)
    print(f"Open http://127.0.0.1:{server.port} in a browser; Ctrl-C ends it.", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()


def named(place, model_dir):
    """Return the model that FILE.py:NAME names, a Sequential with the weights in `model_dir`."""
    file, _, name = place.rpartition(":")
    model = runpy.run_path(file)[name]
    if isinstance(model, mc.Sequential) and model_dir is not None:
        mc.load_weights(model, model_dir)
    return model


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model_dir", nargs="?", metavar="MODEL", help="the --model-dir of mnist_cnn.py"
    )
    parser.add_argument("--model", metavar="FILE.py:NAME", help="a Sequential or a model_fn")
    parser.add_argument("--classes", help="their names, separated by commas")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 is any free one")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")

    try:
        require("flask", "demo")
        require("PIL", "demo")
    except ImportError as error:
        sys.exit(str(error))
    model, model_dir = model_fn, args.model_dir
    if args.model is not None:
        model = named(args.model, model_dir)
    elif model_dir is None:
        model_dir = tempfile.mkdtemp(prefix="draw_digit-")
        print("Training for one epoch; next time, give the folder with the model:")
        print(f"  python {sys.argv[0]} {model_dir}", flush=True)
        train(model_dir)
    try:
        show(model, args.classes and args.classes.split(","), model_dir, args.port)
    except mc.CheckpointError as error:
        sys.exit(f"{error}\nwithout MODEL a model is trained first")


if __name__ == "__main__":
    main()
