"""Proof by killing, on a cluster: a host dies, another takes its place, and the result is as if none had.

    python -m tests.system.harness.cluster [--kills 10]

Three hosts (tests/system/harness/hosts.py: network namespaces, where they are allowed) with one worker each
train a small network with Adam, first under `diloco`, and then under `all_reduce`: half of the kills each. At
a seeded random moment one of the two hosts that are not the head is killed with all its processes, and
another one joins the cluster. The final weights, what the synchronisation and the losses of record were must
equal the undisturbed run's bit for bit, and the ledger must show each example exactly once an epoch
(tests/system/harness/soak.py). Results go to benchmarks/results/cluster.json.
"""

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import RESULTS, summary, write_results
from lexloom.training.job import Job
from tests.system.harness.hosts import Cluster, hosts, namespaces_allowed
from tests.system.harness.processes import wait_for
from tests.system.harness.soak import STRATEGIES, compare, living_workers, make_job, result, write_pairs

HOSTS = 3
CHECKPOINT_EVERY = 10
WAIT_SECONDS = 600


def job_of(data: Path, folder: Path, strategy: str) -> Job:
    return make_job(data, folder, strategy, checkpoint_every=CHECKPOINT_EVERY)


def start(cluster: Cluster, data: Path, folder: Path, strategy: str) -> "subprocess.Popen[str]":
    folder.mkdir(parents=True)
    drive = ["--drive", str(data), str(folder), strategy, cluster.address]
    return cluster.start(
        [sys.executable, "-m", "tests.system.harness.cluster", *drive], stdout=subprocess.DEVNULL
    )


def finish(driver: "subprocess.Popen[str]") -> None:
    if driver.wait(WAIT_SECONDS) != 0:
        raise RuntimeError("the run failed")


def disturbed(
    cluster: Cluster, data: Path, folder: Path, strategy: str, undisturbed: Job, chance: random.Random
) -> dict[str, float] | None:
    """Kills a host in the middle of a run; None where the run was over before."""
    moment = chance.uniform(0, result(undisturbed).state["seconds"])
    choice = chance.randrange(1, HOSTS)
    started = time.perf_counter()
    job, driver = job_of(data, folder, strategy), start(cluster, data, folder / "driver", strategy)
    try:
        wait_for(lambda: len(living_workers(job)) == HOSTS, WAIT_SECONDS, "the workers begin")
        time.sleep(moment)
        before = living_workers(job)
        if len(before) < HOSTS:
            finish(driver)
            return None
        cluster.kill(cluster.alive()[choice])
        killed = time.perf_counter()
        cluster.launch()
        wait_for(
            lambda: driver.poll() is not None or len(set(living_workers(job)) - set(before)) == HOSTS,
            WAIT_SECONDS,
            "the workers begin again",
        )
        until_at_work = time.perf_counter() - killed
        finish(driver)
    finally:
        driver.kill()
    again = compare(job, undisturbed, HOSTS)
    return {
        "moment": moment,
        "batches_again": again,
        "seconds_until_at_work": until_at_work,
        "seconds": time.perf_counter() - started,
    }


def measure(cluster: Cluster, data: Path, work: Path, kills: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for number, strategy in enumerate(STRATEGIES):
        wanted = (kills + 1 - number) // 2
        undisturbed = job_of(data, work / strategy, strategy)
        finish(start(cluster, data, work / strategy / "driver", strategy))
        chance = random.Random(strategy)
        found: list[dict[str, float]] = []
        while len(found) < wanted:
            one = disturbed(cluster, data, work / "killed", strategy, undisturbed, chance)
            shutil.rmtree(work / "killed")
            if one is None:
                print(f"{strategy:10} it ended before the kill: not counted", flush=True)
                continue
            found.append(one)
            print(
                f"{strategy:10} kill {len(found):2} after {one['moment']:.1f} s: equal;"
                f" {one['batches_again']} batches again; {one['seconds_until_at_work']:.1f} s until all were"
                " at work again",
                flush=True,
            )
        results[strategy] = {"kills": wanted, "bit_identical": len(found)}
        if found:
            results[strategy] |= {name: summary([one[name] for one in found]) for name in found[0]}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "cluster.json")
    parser.add_argument("--drive", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if arguments.drive:
        from lexloom.training.ray.trainer import train_on_ray

        data, folder, strategy, address = arguments.drive
        train_on_ray(job_of(Path(data), Path(folder).parent, strategy), workers=HOSTS, address=address)
        return
    namespaces = namespaces_allowed()
    with tempfile.TemporaryDirectory(prefix="cluster-") as folder, hosts(HOSTS) as cluster:
        data = Path(folder) / "pairs.parquet"
        write_pairs(data)
        results = measure(cluster, data, Path(folder), arguments.kills)
    kind = "network namespaces" if namespaces else "Ray nodes on one address"
    write_results(arguments.out, {"hosts": f"{HOSTS} {kind} on one machine", "results": results})


if __name__ == "__main__":
    main()
