"""Serve the predictions of a model over HTTP, always those of its newest checkpoint.

    python examples/serve.py mnist_cnn_model      the model of examples/mnist_cnn.py
    python examples/serve.py MODEL_DIR --model mine.py:model --classes "cat,dog"

The last form serves any classifier: `mine.py` is a Python file, `model` a built `Sequential` or a
model_fn in it, and MODEL_DIR the folder of its checkpoints. A model_fn needs ``--shape``, the shape
of a row, and predicts "probabilities". Then

    curl http://127.0.0.1:8000/health
    curl http://127.0.0.1:8000/predict -H "Content-Type: image/png" --data-binary @digit.png
    curl http://127.0.0.1:8000/predict --json '{"rows": [[0, 0.5, ...], ...]}'

The answer is ``{"step": 20000, "classes": [3], "probabilities": [[...]]}``: `step` is that of the
checkpoint. SIGTERM and Ctrl-C end the server after the requests that it has got. This needs Flask
and Pillow: ``pip install -e ".[demo]"``.

The server is that of Flask's own Werkzeug, a thread for each connection, with the limits that it
lacks: on connections, on the bytes and seconds of a request, and on predictions at a time. There is
no encryption and no login. It is for this computer (the default), or behind a proxy that has both.
"""

import argparse
import io
import logging
import math
import select
import signal
import socketserver
import sys
import threading
from pathlib import Path

import numpy as np
from draw_digit import LOCAL, SECONDS, named, new_app, new_handler
from mnist_cnn import cnn_model_fn

import minicnn as mc
from minicnn import images
from minicnn.core.extras import require

MAX_BYTES = 4 << 20  # of a request
MAX_ROWS = 1000  # of a request
MAX_PIXELS = 1 << 24  # of a picture
MAX_SIDE = 1024  # to which a larger picture is scaled
MAX_CONNECTIONS = 100  # further ones wait until one of these has ended
LOOK_SECONDS = 1  # between two looks for a new checkpoint

logger = logging.getLogger("serve")


class Service:
    """The predictions of the newest checkpoint of a classifier.

    `model` is a model_fn, or a built Sequential. `shape` is the shape of a row; by default that of
    the Sequential's input. `classes` are the names of the classes, and `is_digit` says whether a
    picture is a photo of a digit, as `images.digit` reads it.
    """

    def __init__(self, model, model_dir, shape=None, classes=None, is_digit=False):
        if shape is None:
            shape = getattr(model, "input_shape", None) or ()
            if not shape:
                raise ValueError("the shape of a row is not known: give --shape, or call build")
            shape = shape[1:]
        self.shape = tuple(shape)
        self.is_digit = is_digit
        self.estimator = mc.Estimator(model, model_dir)
        self._turns = threading.BoundedSemaphore(2 * mc.get_num_threads())
        self._end = threading.Event()
        self._seen = None
        self._update()
        probabilities = self.predict(np.zeros((1, *self.shape), np.float32))["probabilities"]
        self.classes = classes or list(range(len(probabilities[0])))
        if len(self.classes) != len(probabilities[0]):
            raise ValueError(
                f"the model has {len(probabilities[0])} classes, got {len(self.classes)} names"
            )

    def _update(self):
        """Make a snapshot of the newest checkpoint, unless it was tried before."""
        path = self.estimator.latest_checkpoint()
        status = path.stat()
        seen = path, status.st_ino, status.st_mtime_ns, status.st_size
        if seen == self._seen:
            return
        self._seen = seen
        row = np.zeros((1, *self.shape), np.float32)
        model = self.estimator.for_inference(row, path)
        outputs = model.predict(row)  # its kernels are loaded before the first request
        if not isinstance(outputs, dict) or "probabilities" not in outputs:
            raise ValueError('the predictions of the model_fn must have "probabilities"')
        self._snapshot = int(path.stem.rpartition("-")[2]), model
        logger.info("step %d is served", self.step)

    def look(self):
        """Use the newest checkpoint from now on; if it cannot be used, keep the one before."""
        try:
            self._update()
        except Exception as error:  # of another model, for example
            logger.warning("step %d is served still: %s", self.step, error)

    def watch(self):
        """Look for new checkpoints until `close`."""
        while not self._end.wait(LOOK_SECONDS):
            self.look()

    def close(self):
        self._end.set()

    @property
    def step(self):
        return self._snapshot[0]

    def predict(self, rows):
        """Return the answer for rows, or raise a TimeoutError if too many others wait."""
        step, model = self._snapshot  # one reference: it may be replaced meanwhile
        if not self._turns.acquire(timeout=SECONDS):
            raise TimeoutError
        try:
            probabilities = model.predict(rows)["probabilities"]
        finally:
            self._turns.release()
        best = probabilities.argmax(axis=1)
        return {"step": step, "classes": best.tolist(), "probabilities": probabilities.tolist()}

    def rows(self, body):
        """Return the rows in the JSON of a request, or raise a ValueError."""
        given = body.get("rows") if isinstance(body, dict) else None
        if not isinstance(given, list) or not 1 <= len(given) <= MAX_ROWS:
            raise ValueError(f'expected {{"rows": [...]}} with 1 to {MAX_ROWS} rows')
        try:
            rows = np.array(given)
        except ValueError as error:
            raise ValueError("the rows must have equal lengths") from error
        flat = (math.prod(self.shape),)
        if rows.shape[1:] not in (self.shape, flat) or rows.dtype.kind not in "iuf":
            raise ValueError(
                f"each row must be {self.shape} numbers, got {rows.shape[1:]} {rows.dtype}"
            )
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32).reshape(-1, *self.shape)
        if not np.isfinite(rows).all():
            raise ValueError("each number must be finite in float32")
        return rows

    def picture(self, contents):
        """Return the row of a picture in PNG, or raise a ValueError."""
        image_module = require("PIL.Image", "demo")
        try:
            picture = image_module.open(io.BytesIO(contents), formats=["PNG"])
            if math.prod(picture.size) > MAX_PIXELS:
                raise ValueError(f"it has more than {MAX_PIXELS:,} pixels")
            picture = picture.convert("RGBA")
        except image_module.UnidentifiedImageError as error:
            raise ValueError("the PNG cannot be read: it is none") from error
        except (OSError, SyntaxError, ValueError, image_module.DecompressionBombError) as error:
            raise ValueError(f"the PNG cannot be read: {error}") from error
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        if self.is_digit:
            row = images.digit(images.pixels(picture, picture.size[::-1])[..., 0])
        else:
            pixels = images.pixels(picture, self.shape[:2], color=self.shape[2:] == (3,))
            row = np.divide(pixels, 255, dtype=np.float32)
        return row.reshape(1, *self.shape)

    @property
    def takes_pictures(self):
        shape = self.shape
        return self.is_digit or len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3))


def make_app(service, hosts=None):
    """Return the Flask application: GET /health and POST /predict."""
    flask = require("flask", "demo")
    app = new_app(MAX_BYTES, hosts)

    @app.get("/health")
    def health():
        return {"step": service.step, "shape": service.shape, "classes": service.classes}

    @app.post("/predict")
    def predict():
        kind = flask.request.mimetype
        try:
            if kind == "application/json":
                rows = service.rows(flask.request.get_json())
            elif kind == "image/png" and service.takes_pictures:
                rows = service.picture(flask.request.get_data())
            else:
                flask.abort(415, "send application/json, or image/png to a model for pictures")
            return service.predict(rows)
        except RecursionError:
            flask.abort(400, "the JSON is nested too deep")
        except ValueError as error:
            flask.abort(400, str(error))
        except TimeoutError:
            flask.abort(503, "too many requests at a time; try again later")

    return app


def make_server(service, host="127.0.0.1", port=8000):
    """Return a server with limits, for `run`."""
    serving = require("werkzeug.serving", "demo")
    places = threading.BoundedSemaphore(MAX_CONNECTIONS)

    class Server(serving.ThreadedWSGIServer):
        daemon_threads = False  # so that server_close waits for them

        def process_request(self, request, client_address):
            places.acquire()
            try:
                super().process_request(request, client_address)
            except BaseException:  # no thread can be started
                places.release()
                raise

        def process_request_thread(self, request, client_address):
            try:
                super().process_request_thread(request, client_address)
            finally:
                places.release()

    app = make_app(service, LOCAL if host in LOCAL else None)
    return Server(host, port, app, new_handler())


def run(server, service):
    """Serve until `server.shutdown`; then answer the clients that are connected already."""
    watcher = threading.Thread(target=service.watch)
    watcher.start()
    try:
        socketserver.BaseServer.serve_forever(server, poll_interval=0.1)
        while select.select([server], [], [], 0)[0]:
            server.handle_request()
    finally:
        service.close()
        server.server_close()
        watcher.join()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model_dir", metavar="MODEL_DIR", help="the folder of the checkpoints")
    parser.add_argument("--model", metavar="FILE.py:NAME", help="a Sequential or a model_fn")
    parser.add_argument("--shape", help="of a row, such as 28,28,1")
    parser.add_argument("--classes", help="their names, separated by commas")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this computer")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 is any free one")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s  %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # no line for each request

    model = cnn_model_fn if args.model is None else named(args.model, None)
    shape = args.shape and tuple(map(int, args.shape.split(",")))
    if args.model is None:
        shape = (784,)
    if not Path(args.model_dir).is_dir():
        sys.exit(f"{args.model_dir} is not a folder; train a model first")
    try:
        classes = args.classes and args.classes.split(",")
        service = Service(model, args.model_dir, shape, classes, is_digit=args.model is None)
        server = make_server(service, args.host, args.port)
    except (ImportError, ValueError, mc.CheckpointError) as error:
        sys.exit(str(error))
    for number in (signal.SIGTERM, signal.SIGINT):
        # In a thread: `shutdown` waits for the loop, which this signal has interrupted.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    print(f"step {service.step} at http://{args.host}:{server.port}", flush=True)
    run(server, service)


if __name__ == "__main__":
    main()
