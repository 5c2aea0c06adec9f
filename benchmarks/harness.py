"""What the benchmarks share: a process for each contender, alternating blocks, tables and JSON.

Every contender runs in a process of its own, so that no two thread pools meet in one, and answers
JSON lines. The processes take turns, a block each and one at a time, in an order that rotates. What
slows the machine down for a while therefore slows all of them, and the ratio of two contenders
within one round is steadier than the ratio of their times.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

import numpy as np

PACKAGES = ("minicnn", "numpy", "numba", "torch", "tensorflow", "tensorflow-cpu", "jax",
            "onnxruntime")  # fmt: skip
_told = set()


def parser(description, rounds=7, seconds=1.0):
    """Return a parser with the arguments that the benchmarks share."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    result.add_argument("--smoke", action="store_true", help="only see whether it works: seconds")
    result.add_argument("--threads", type=int, default=cpus(), help="each has (%(default)s)")
    result.add_argument("--rounds", type=int, default=rounds, help="(%(default)s)")
    if seconds is not None:
        result.add_argument("--seconds", type=float, default=seconds, help="a block (%(default)s)")
    return result


def parse(arguments):
    """Return the parsed command line; a smoke test measures as little as can be."""
    args = arguments.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 0.0
    return args


class Contender:
    """A process that has built what `settings` say, and calls its methods on request."""

    def __init__(self, name, threads, **settings):
        self.name = name
        command = [sys.executable, sys.argv[0], "--serve", json.dumps({"name": name, **settings})]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(threads),
        )
        self._reply()  # it is built, or its error is raised here

    def ask(self, method, **arguments):
        """Return what the method of the contender returns; JSON passes in and out."""
        print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        return self._reply()

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _reply(self):
        line = self._process.stdout.readline()
        reply = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            raise SystemExit(f"{self.name}: {reply['error']}")
        return reply["result"]


def serve(make):
    """In a contender's process: build the contender, and answer until the input ends."""
    if sys.argv[1:2] != ["--serve"]:
        return
    # A framework that prints must not disturb the answers: its stdout becomes stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):  # not every framework obeys the environment
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: threads()])
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
    """Return the environment of a contender: so many threads, and no chatter."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MINICNN_NUM_THREADS",
             "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "NPROC")  # fmt: skip
    return {**os.environ, **dict.fromkeys(names, str(threads)), "TF_CPP_MIN_LOG_LEVEL": "3"}


def threads():
    """Return, in a contender's process, how many threads it may use."""
    return int(os.environ["MINICNN_NUM_THREADS"])


def block(call, seconds, least=3):
    """Return the median time of a call, of as many calls as `seconds` have room for.

    One more comes first and is not counted: another contender has just used the caches.
    """
    call()
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alternate(contenders, rounds, method="block", **arguments):
    """Return for each contender its answers, one a round."""
    answers = {contender.name: [] for contender in contenders}
    for i in range(rounds):
        turn = i % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            answers[contender.name].append(contender.ask(method, **arguments))
    return answers


def compare(times, ours="minicnn"):
    """Return for each contender the median of its times, and of its ratio to ours in each round."""
    result = {}
    for name, theirs in times.items():
        ratios = [a / b for a, b in zip(theirs, times[ours], strict=True)]
        result[name] = {
            "seconds": statistics.median(theirs), "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "rounds": theirs,
        }
    return result


def better(result, names):
    """Return the fastest of those names that were measured, or None."""
    return min((n for n in names if n in result), key=lambda n: result[n]["seconds"], default=None)


def difference(ours, theirs):
    """Return the norm of the difference of two arrays as a share of their norm; NaN stays."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape} differ")
    return float(np.linalg.norm(ours - theirs) / max(np.linalg.norm(theirs), 1e-30))


def installed(package, pip_name=None):
    """Return whether a package is there; say once what to install where it is not."""
    if importlib.util.find_spec(package):
        return True
    if package not in _told:
        print(f"{package} is not installed and not compared: pip install {pip_name or package}")
    _told.add(package)
    return False


def cpus():
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine(threads):
    """Return what the numbers depend on."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    known = {d.name for d in importlib.metadata.distributions()}
    return {
        "cpu": name[1] if name else platform.processor(), "cpus": cpus(), "threads": threads,
        "load": os.getloadavg(), "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {p: importlib.metadata.version(p) for p in PACKAGES if p in known},
    }


def table(headers, rows):
    """Print a table in Markdown; the first column is text, the others are numbers."""
    rows = [headers, *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("| " + " | ".join([first.ljust(widths[0]), *cells]) + " |")


def ratio_table(result, unit, factor):
    """Print what `compare` returns."""
    rows = [
        (name, f"{r['seconds'] * factor:.2f}", f"{r['ratio']:.2f}",
         f"{r['ratio_range'][0]:.2f}-{r['ratio_range'][1]:.2f}")
        for name, r in result.items()
    ]
    table(["contender", unit, "times minicnn's", "range over rounds"], rows)


def report(args, results):
    """Print the machine, and write it with the results where the command line asks for it."""
    about = machine(args.threads)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"\n{about['cpu']}, {about['cpus']} CPUs, {args.threads} threads; {about['system']}, "
          f"Python {about['python']}; {versions}")
    if args.json:
        write_json(args.json, {"machine": about, "results": results})


def write_json(path, content):
    """Write a file that is whole at every moment."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(json.dumps(content, indent=1) + "\n")
    beside.replace(path)
