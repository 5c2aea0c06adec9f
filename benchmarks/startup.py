"""Time the start up to the first step, and measure memory and disk.

    python benchmarks/startup.py

Every number is from fresh processes: the import; the first training step of the documented network,
cold (an empty folder for compiled kernels) and warm; the peak memory of 200 steps with the 55,000
images in memory; the same for the complete `examples/mnist_cnn.py` with 1,000 steps, a validation,
a checkpoint and the test set; the size of the required packages.
"""

import importlib.metadata
import importlib.util
import itertools
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import networks
import numpy as np

EXAMPLE = Path(__file__).parents[1] / "examples" / "mnist_cnn.py"
EXAMPLE_STEPS = 1000  # up to its first validation
PACKAGES = {"minicnn": "minicnn", "PyTorch": "torch", "TensorFlow": "tensorflow", "JAX": "jax"}
TO_MB = 1e-6 if sys.platform == "darwin" else 1024e-6  # ru_maxrss is in bytes there, else in KiB


class Startup:
    """A contender that has not imported its framework yet."""

    def __init__(self, name, network, folder):
        self.name, self.network, self.folder = name, networks.Network(*network), Path(folder)

    def write_data(self, count):
        """Write some batches of MNIST.

        Not in the parent: a process starts with the peak memory of the one that started it.
        """
        images, labels = zip(*itertools.islice(networks.batches(self.network), count), strict=True)
        np.save(self.folder / "images.npy", np.stack(images))
        np.save(self.folder / "labels.npy", np.stack(labels))

    def run(self, steps):
        """Return the seconds of the first step and the peak memory of all steps."""
        images, labels = (np.load(self.folder / f"{name}.npy") for name in ("images", "labels"))
        trainer = networks.make(self.name, self.network, networks.start_values(self.network))
        start = time.perf_counter()
        trainer.step(*trainer.place(images[0], labels[0]))
        first = time.perf_counter() - start
        for i in range(1, steps):
            trainer.step(*trainer.place(images[i % len(images)], labels[i % len(labels)]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * TO_MB
        return {"first step, s": first, "peak, MB": peak}


def import_seconds(package):
    code = f"import time; s = time.perf_counter(); import {package}; print(time.perf_counter() - s)"
    # An installed package has byte code; the first round writes that of a checkout.
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(run.stdout.split()[-1])


def train(name, network, cache, folder, steps, threads):
    """Return the result of `Startup.run` in a process with compiled kernels in `cache`."""
    os.environ["NUMBA_CACHE_DIR"] = str(cache)
    with harness.contenders([name], threads, network=network, folder=folder) as [contender]:
        result = contender.ask("run", steps=steps)
    compiled = {"compiled functions": len(list(cache.rglob("*.nbc")))} if name == "minicnn" else {}
    return result | compiled


def run_example(cache, steps, threads):
    """Return the seconds and the peak memory of the documented program."""
    with tempfile.TemporaryDirectory() as model:
        start = time.perf_counter()
        command = [sys.executable, str(EXAMPLE), "--steps", str(steps), "--model-dir", model]
        process = subprocess.Popen(
            command, env=harness.environment(threads) | {"NUMBA_CACHE_DIR": str(cache)},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{EXAMPLE.name} failed")
    return {"complete, s": time.perf_counter() - start, "peak, MB": usage.ru_maxrss * TO_MB}


def needed(distribution, found=None):
    """Return the names of a distribution and of the installed ones that it requires."""
    found = set() if found is None else found
    name = distribution.lower().replace("_", "-")
    if name not in found:
        try:
            requirements = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            return found
        found.add(name)
        for requirement in requirements:
            if "extra ==" not in requirement:
                needed(re.match(r"[\w.-]+", requirement)[0], found)
    return found


def installed_mb(name):
    """Return the size of a framework and of the packages that it requires."""
    top = {"minicnn": ["numba"], "TensorFlow": ["tensorflow", "tensorflow-cpu"]}
    names = set().union(*map(needed, top.get(name, [PACKAGES[name]])))
    paths = [path.locate() for n in names for path in importlib.metadata.files(n) or ()]
    if name == "minicnn":  # it may be a checkout
        folder = Path(importlib.util.find_spec("minicnn").origin).parent
        paths += [path for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def measure(names, args):
    """Return contender -> measurement -> one number per round."""
    results = {name: {} for name in names}
    network, steps, batches = networks.NETWORKS["documented"], 200, 550
    if args.smoke:  # compiles quickly
        network, steps, batches = network._replace(layers=networks.chain()), 2, 2

    def note(name, numbers, prefix=""):
        for key, number in numbers.items():
            results[name].setdefault(prefix + key, []).append(number)

    for _ in range(args.rounds):
        for name in names:
            note(name, {"import, s": import_seconds(PACKAGES[name])})
        note("minicnn", {"import of numba alone, s": import_seconds("numba")})
        with tempfile.TemporaryDirectory() as folder:
            task = {"network": network, "folder": folder}
            with harness.contenders(["minicnn"], args.threads, **task) as [writer]:
                writer.ask("write_data", count=batches)
            of_steps, of_example = Path(folder) / "steps", Path(folder) / "example"
            for state in ("cold", "warm"):
                for name in names:
                    numbers = train(name, network, of_steps, folder, steps, args.threads)
                    note(name, numbers, f"{state}: ")
                if not args.smoke:
                    numbers = run_example(of_example, EXAMPLE_STEPS, args.threads)
                    note("minicnn", numbers, f"{state}, {EXAMPLE.name}: ")
    return results


def main():
    harness.serve(Startup)
    args = harness.parse(harness.parser(__doc__, rounds=3))
    names = [name for name in PACKAGES if name == "minicnn" or harness.installed(PACKAGES[name])]
    results = measure(names, args)
    for name in names:
        results[name]["installed, MB"] = [installed_mb(name)]
    rows = []
    for key in dict.fromkeys(itertools.chain(*results.values())):
        medians = (results[name].get(key) for name in names)
        rows.append([key, *(f"{statistics.median(m):.2f}" if m else "-" for m in medians)])
    print()
    harness.table(["median", *names], rows)
    harness.report(args, results)


if __name__ == "__main__":
    main()
