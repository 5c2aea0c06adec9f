"""Load the server of `examples/serve.py` with 1, 8 and 32 clients; count wrong and lost answers.

    python benchmarks/serving.py

Each client sends one image of MNIST as JSON, waits for the answer, and sends the next one. In the
middle of each part a new checkpoint appears in the folder, and the part ends only after an answer
of it. An answer is wrong if its probabilities are not those of the checkpoint that it names, and
lost if there is none. At the end the server is told to stop, and must end with status 0. Clients
and server share the CPUs, so the times are upper limits. This needs Flask and Pillow:
``pip install -e ".[demo]"``.
"""

import collections
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import harness
import numpy as np

import minicnn as mc

EXAMPLES = Path(__file__).parents[1] / "examples"
CLIENTS = (1, 8, 32)
LEAST = 5  # requests of a client
IMAGES = 50
TOLERANCE = 1e-5  # of a probability
SECONDS = 60  # without an answer, or without an answer of the new checkpoint


class Folder:
    """The folder that is served: it gets one checkpoint after the other of those in `source`."""

    def __init__(self, source, folder):
        self.source, self.folder = Path(source), Path(folder)
        self.steps = sorted(int(p.stem.rpartition("-")[2]) for p in self.source.glob("model.*.npz"))
        self.published = 0

    def publish(self):
        """Add the next checkpoint, as a training does: the file first, then the index."""
        name = f"model.ckpt-{self.steps[self.published]}.npz"
        shutil.copy(self.source / name, self.folder / name)
        index = self.folder / "checkpoint.json.new"
        index.write_text(json.dumps({"latest": name, "all": [name]}))
        os.replace(index, self.folder / "checkpoint.json")
        self.published += 1
        return self.steps[self.published - 1]


class Load:
    """Clients that send requests at the same time, and what they count."""

    def __init__(self, port, bodies, expected):
        self.port, self.bodies, self.expected = port, bodies, expected
        self.times, self.steps = [], collections.Counter()
        self.wrong, self.lost = [], []
        self.stop = threading.Event()

    def run(self, clients, seconds, change):
        """Send requests for some seconds; call `change` in the middle, and wait for its step."""
        threads = [threading.Thread(target=self._client, args=(i,)) for i in range(clients)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        time.sleep(seconds / 2)
        step = change()
        time.sleep(seconds / 2)
        end = time.monotonic() + SECONDS
        while not self.steps[step] and time.monotonic() < end:
            time.sleep(0.01)
        self.stop.set()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - start
        return {
            "requests": len(self.times), "a second": len(self.times) / elapsed,
            "p50, ms": 1e3 * float(np.percentile(self.times, 50)),
            "p99, ms": 1e3 * float(np.percentile(self.times, 99)),
            "wrong": len(self.wrong), "lost": len(self.lost) + (not self.steps[step]),
            "checkpoints": len(self.steps),
        }

    def _client(self, number):
        i = number
        while i < number + LEAST or not self.stop.is_set():
            self._ask(i % len(self.bodies))
            i += 1

    def _ask(self, i):
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            kind = {"Content-Type": "application/json"}
            connection.request("POST", "/predict", self.bodies[i], kind)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.lost.append(repr(error))
            return
        finally:
            connection.close()
        self.times.append(time.perf_counter() - start)
        if not self._is_right(i, response.status, answer):
            self.wrong.append(answer)
        self.steps[answer.get("step")] += 1

    def _is_right(self, i, status, answer):
        if status != 200 or answer["step"] not in self.expected:
            return False
        expected = self.expected[answer["step"]][i]
        difference = np.abs(np.array(answer["probabilities"]) - expected).max()
        return difference < TOLERANCE and len(answer["classes"]) == 1


def trained(folder, checkpoints):
    """Train a model with so many checkpoints; return the rows and their answers by step."""
    sys.path.insert(0, str(EXAMPLES))
    from draw_digit import model_fn  # with Adam: the checkpoints differ clearly

    mnist = mc.datasets.load_dataset("mnist")
    config = mc.RunConfig(seed=0, progress=False, keep_checkpoint_max=checkpoints)
    estimator = mc.Estimator(model_fn, folder, config=config)
    rows, expected = mnist.test.images[:IMAGES], {}
    few = mnist.train.images[:20], mnist.train.labels[:20]
    for step in range(1, checkpoints + 1):
        estimator.fit(*few, batch_size=20, max_steps=step)
        expected[step] = estimator.predict(rows, as_iterable=False)["probabilities"]
    return rows, expected


def start_server(folder, threads):
    """Start the server; return its process and its port."""
    command = [sys.executable, str(EXAMPLES / "serve.py"), str(folder), "--port", "0"]
    environment = harness.environment(threads)
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    if not line:
        raise SystemExit("the server has not started")
    return process, int(line.rpartition(":")[2])


def measure(args):
    """Return the counts of each number of clients."""
    results = {}
    with tempfile.TemporaryDirectory() as source, tempfile.TemporaryDirectory() as served:
        rows, expected = trained(source, len(CLIENTS) + 1)
        folder = Folder(source, served)
        folder.publish()
        process, port = start_server(served, args.threads)
        try:
            bodies = [json.dumps({"rows": [row.tolist()]}) for row in rows]
            for clients in CLIENTS:
                load = Load(port, bodies, expected)
                results[clients] = load.run(clients, args.seconds, folder.publish)
                for problem in [*load.lost, *load.wrong][:3]:
                    print(f"{clients} clients: {problem}", file=sys.stderr)
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(SECONDS)
    if status:
        raise SystemExit(f"the server has ended with status {status}")
    return results


def main():
    args = harness.parse(harness.parser(__doc__, seconds=10.0))
    results = measure(args)
    rows = []
    for clients, counts in results.items():
        cells = (f"{n:.1f}" if isinstance(n, float) else f"{n:,}" for n in counts.values())
        rows.append([clients, *cells])
    print()
    harness.table(["clients", *next(iter(results.values()))], rows)
    harness.report(args, results)
    if any(counts["wrong"] or counts["lost"] for counts in results.values()):
        raise SystemExit("there are wrong or lost answers")


if __name__ == "__main__":
    main()
