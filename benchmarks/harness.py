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
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

PACKAGES = ("minicnn", "numpy", "numba", "torch", "tensorflow", "keras", "jax", "onnxruntime")


def parser(description, rounds=7, seconds=1.0):
    """Return a parser with the arguments that all benchmarks have."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    result.add_argument("--smoke", action="store_true", help="a few seconds, to see that it works")
    result.add_argument("--threads", type=int, default=cpus(), help="of each contender (%(default)s)")
    result.add_argument("--rounds", type=int, default=rounds, help="default: %(default)s")
    result.add_argument(
        "--seconds", type=float, default=seconds, help="of one block (default: %(default)s)"
    )
    return result


def parse(arguments):
    """Return the parsed command line, with the shortest measuring where a smoke test is asked."""
    args = arguments.parse_args()
    if args.smoke:
        args.rounds, args.seconds = 1, 0.0
    return args


class Contender:
    """A process that has built what `settings` says, and calls its methods on request."""

    def __init__(self, name, threads, **settings):
        self.name = name
        command = [sys.executable, sys.argv[0], "--serve", json.dumps({"name": name, **settings})]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment(threads),
        )
        self._replies()  # it is built, or the error is shown here

    def ask(self, method, **arguments):
        """Return what the method of the contender returns; JSON passes in and out."""
        print(json.dumps([method, arguments]), file=self._process.stdin, flush=True)
        return self._replies()

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _replies(self):
        line = self._process.stdout.readline()
        reply = json.loads(line) if line else {"error": "the process ended"}
        if "error" in reply:
            raise RuntimeError(f"{self.name}: {reply['error']}")
        return reply["result"]


def serve(make):
    """In a contender's process, build the contender and answer until the input ends."""
    if sys.argv[1:2] != ["--serve"]:
        return
    # A framework that prints must not disturb the answers: for it, stdout becomes stderr.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.loads(sys.argv[2])
    contender = _answer(replies, make, settings)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        _answer(replies, getattr(contender, method), arguments, contender)
    sys.exit()


def _answer(replies, function, arguments, contender=None):
    try:
        result = function(**arguments)
    except Exception:
        print(json.dumps({"error": traceback.format_exc()}), file=replies, flush=True)
        return None
    # What `make` returns stays in this process.
    reply = {"result": None if contender is None else result}
    print(json.dumps(reply), file=replies, flush=True)
    return result


def environment(threads):
    """Return the environment of a contender: so many threads, and nothing to say."""
    names = ("OMP", "MKL", "OPENBLAS", "NUMBA", "MINICNN")
    return {
        **os.environ,
        **{f"{name}_NUM_THREADS": str(threads) for name in names},
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "CUDA_VISIBLE_DEVICES": "",
    }


def block(step, seconds, least=3):
    """Return the median time of a call, of the calls that `seconds` have room for.

    One more call comes first: the contender before has used the caches.
    """
    step()
    times, end = [], time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alternate(contenders, rounds, method, **arguments):
    """Return the answers of each contender, one a round."""
    answers = {contender.name: [] for contender in contenders}
    for i in range(rounds):
        turn = i % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            answers[contender.name].append(contender.ask(method, **arguments))
    return answers


def compare(times, ours="minicnn"):
    """Return for each contender the median of its times and of its ratios to ours, with the range.

    The ratios are those of the rounds: above 1, the contender is slower than we in that round.
    """
    result = {}
    for name, mine in times.items():
        ratios = [a / b for a, b in zip(mine, times[ours], strict=True)]
        result[name] = {
            "seconds": statistics.median(mine), "ratio": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)], "rounds": mine,
        }
    return result


def better(result, names):
    """Return the fastest of the contenders that are there; None where there is none."""
    return min((n for n in names if n in result), key=lambda n: result[n]["seconds"], default=None)


def difference(ours, theirs):
    """Return the largest difference of two arrays, as a share of the largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        raise ValueError(f"shapes {ours.shape} and {theirs.shape} differ")
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), 1e-30))


def installed(*packages):
    """Return whether all the packages are there; say once which ones are missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    for name in set(missing) - _told:
        print(f"{name} is not installed, so it is not compared: pip install {name}")
    _told.update(missing)
    return not missing


_told = set()


def cpus():
    """Return how many CPUs this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count()


def machine(threads):
    """Return what the numbers depend on: the CPU, the system, the versions."""
    versions = {}
    for package in PACKAGES:
        if importlib.util.find_spec(package):
            module_of = {"tensorflow": ("tensorflow", "tensorflow-cpu")}.get(package, (package,))
            versions[package] = next(filter(None, map(_version, module_of)), "from a checkout")
    return {
        "cpu": _cpu_name(), "cpus": cpus(), "threads": threads, "load": os.getloadavg(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(), "versions": versions,
    }


def _version(distribution):
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name():
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or "unknown"


def table(headers, rows):
    """Print a table that Markdown understands; the first column is text, the others numbers."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for row in (list(headers), rule, *rows):
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True)]
        print("| " + " | ".join(cells) + " |")


def report(args, results):
    """Print the machine, and write it with the results where the command line asks for it."""
    about = machine(args.threads)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"\n{about['cpu']}, {about['cpus']} CPUs, {args.threads} threads; "
          f"Python {about['python']}, {versions}")
    if args.json:
        write_json(args.json, {"machine": about, "command": sys.argv[1:], "results": results})


def write_json(path, content):
    """Write a file that is whole at every moment."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".tmp", delete=False) as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)
