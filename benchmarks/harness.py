"""Shared parts of the benchmarks: a process for each contender, alternating blocks, tables, JSON.

A contender is a framework that is compared. Each runs in its own process, so that thread pools do
not interfere, and answers requests as JSON lines. The processes take turns, one block at a time, in
rotating order. A temporary slowdown of the machine therefore affects all of them, and the ratio of
two contenders within a round varies less than the ratio of their total times.
"""

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

PACKAGES = ("minicnn", "numpy", "numba", "torch", "tensorflow", "tensorflow-cpu", "jax",
            "onnxruntime")
THREADS = ("MINICNN_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
           "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC")


def parser(description, **defaults):
    """Return a parser with the common arguments, and optionally rounds and seconds."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    result.add_argument("--smoke", action="store_true", help="only test that it works")
    result.add_argument("--threads", type=int, default=cpus(), help="default: %(default)s")
    for name, value in defaults.items():
        what = {"rounds": "of blocks", "seconds": "of a block"}[name] + " (default: %(default)s)"
        result.add_argument(f"--{name}", type=type(value), default=value, help=what)
    return result


def parse(arguments):
    """Return the parsed command line; a smoke test measures as little as possible."""
    args = arguments.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 0.0
    return args


class Contender:
    """A process that builds a contender from `settings` and calls its methods on request."""

    def __init__(self, name, threads, **settings):
        self.name = name
        command = [sys.executable, sys.argv[0], "--serve", json.dumps({"name": name, **settings})]
        pipe, env = subprocess.PIPE, environment(threads)
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env)
        self._reply()  # wait until it is built; raises if that fails

    def ask(self, method, **arguments):
        """Call a method of the contender; arguments and result are JSON."""
        print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
        return self._reply()

    def _reply(self):
        line = self.process.stdout.readline()
        reply = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            raise SystemExit(f"{self.name}: {reply['error']}")
        return reply["result"]


@contextlib.contextmanager
def contenders(names, threads, **settings):
    """Start a contender for each name; stop all of them at the end."""
    started = [Contender(name, threads, **settings) for name in names]
    yield started
    for contender in started:
        contender.process.stdin.close()
        contender.process.wait()


def serve(make):
    """Build the contender in its process, and answer requests until the input ends."""
    if sys.argv[1:2] != ["--serve"]:
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its parent process
    # If a framework prints, this must not mix with the answers: its stdout becomes stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):  # some frameworks ignore the environment
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(os.environ[THREADS[0]])])
    try:
        contender = make(**json.loads(sys.argv[2]))
        print(json.dumps({"result": None}), file=replies, flush=True)
        for line in sys.stdin:
            method, arguments = json.loads(line)
            result = getattr(contender, method)(**arguments)
            print(json.dumps({"result": result}), file=replies, flush=True)
    except Exception:
        print(json.dumps({"error": traceback.format_exc()}), file=replies, flush=True)
    sys.exit()


def environment(threads):
    """Return the environment of a contender."""
    return {**os.environ, **dict.fromkeys(THREADS, str(threads)), "TF_CPP_MIN_LOG_LEVEL": "3"}


def block(call, seconds):
    """Return the median time of a call, from at least three calls and as many as fit in `seconds`.

    The first call is not counted: another contender has just used the caches.
    """
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alternate(contenders, rounds, method="block", **arguments):
    """Return for each contender the times of its blocks, one per round."""
    times = {contender.name: [] for contender in contenders}
    for i in range(rounds):
        turn = i % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            times[contender.name].append(contender.ask(method, **arguments))
    return times


def compare(times, ours="minicnn"):
    """Return for each contender the median of its times, and of its ratio to minicnn per round."""
    result = {}
    for name, theirs in times.items():
        ratios = [a / b for a, b in zip(theirs, times[ours], strict=True)]
        result[name] = {
            "seconds": statistics.median(theirs), "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "rounds": theirs,
        }
    return result


def better(result, names):
    """Return the fastest of these contenders, or None if none was measured."""
    return min((n for n in names if n in result), key=lambda n: result[n]["seconds"], default=None)


@functools.cache
def installed(package):
    """Return whether a package is installed; if not, print once how to install it."""
    there = importlib.util.find_spec(package) is not None
    if not there:
        print(f"{package} is not installed and not compared: pip install {package}")
    return there


def cpus():
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def table(headers, rows):
    """Print a table in Markdown; the first column is text, the others are numbers."""
    rows = [headers, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("| " + " | ".join([first.ljust(widths[0]), *cells]) + " |")


def ratio_table(result):
    """Print the result of `compare`."""
    rows = []
    for name, r in result.items():
        ratios = r["ratio"], *r["ratio_range"]
        rows.append([name, f"{r['seconds'] * 1e3:.2f}", *(f"{ratio:.2f}" for ratio in ratios)])
    table(["contender", "ms", "times minicnn's", "least", "most"], rows)


def report(args, results, say=True):
    """Print the environment of the results; with --json, write both to the file."""
    info = Path("/proc/cpuinfo")
    cpu = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    known = {d.name.lower().replace("_", "-") for d in importlib.metadata.distributions()}
    about = {
        "cpu": cpu[1] if cpu else platform.processor(), "cpus": cpus(), "threads": args.threads,
        "load": round(os.getloadavg()[0], 1), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{p: importlib.metadata.version(p) for p in PACKAGES if p in known},
    }
    if say:
        print("\n" + "; ".join(f"{key} {value}" for key, value in about.items()))
    if args.json:
        settings = {k: v for k, v in vars(args).items() if not isinstance(v, Path)}
        write_json(args.json, {"machine": about, "settings": settings, "results": results})


def write_json(path, content):
    """Write a file atomically."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
