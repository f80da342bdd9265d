"""Proof by killing: whatever dies, the weights are those of the run that nobody disturbed.

    python benchmarks/soak.py [--kills 20] [--only workers drivers]

workers   a random Ray worker is killed (SIGKILL) at a seeded random moment, for each of two strategies:
          `delta_sum` on word2vec's kernel and `all_reduce` on a small network with Adam.
drivers   the process that drives the training is killed at a seeded random moment, and started again. It
          writes a checkpoint every other step, so that some kills fall into a write.

After each kill the final weights must equal the undisturbed run's bit for bit, and the ledger of batches must
show every batch of every epoch, the same one each time it was taken; steps that were taken again after a kill
are counted. Results go to benchmarks/results/soak.json.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash
from measure import summary, write_results
from torch import nn
from torch.nn import functional as F

from models.word2vec import Word2Vec
from training.autograd import Autograd
from training.checkpoint import Checkpoints
from training.job import Job
from training.stopping import Stopping
from training.sync import SyncConfig
from training.trainable import Batch

WORDS, PAIRS, EPOCHS, WORKERS = 2_000, 400_000, 3, 2
STEP_SECONDS = 0.02  # a step is held up so long that kills find the run at work
POLL_SECONDS = 0.01


def keep_ledger(folder: Path, epoch: int, place: int, worker: int, batch: Batch) -> None:
    """Notes who took which batch, and slows the step down."""
    digest = xxhash.xxh3_64_hexdigest(b"".join(column.tobytes() for column in batch.values()))
    with (folder / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{epoch} {place} {worker} {digest}\n")
    time.sleep(STEP_SECONDS)


def read_ledger(folder: Path) -> Counter[tuple[str, ...]]:
    """(epoch, place, worker, digest) -> how often it was taken. A line that was cut by a kill is left out."""
    lines = [line.split() for path in folder.glob("*.txt") for line in path.read_text().splitlines()]
    return Counter(tuple(line) for line in lines if len(line) == 4 and len(line[3]) == 16)


def skip_gram() -> Word2Vec:
    return Word2Vec(np.ones(WORDS, np.float32), np.arange(WORDS, dtype=np.int32), dim=32, seed=1)


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS, 16), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, WORDS))


def next_word(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(module(batch["target"].long()), batch["context"].long())


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def classifier() -> Autograd:
    return Autograd(network, next_word, adam, schedule=lambda progress: 1 - progress, seed=1)


STRATEGIES = {
    "delta_sum": (skip_gram, SyncConfig("delta_sum", period=2, frequent_rows=200, rare_period=4), 8192),
    "all_reduce": (classifier, SyncConfig("all_reduce"), 8192),
}


def make_job(data: Path, folder: Path, strategy: str, checkpoint_every: int) -> Job:
    make, sync, batch_size = STRATEGIES[strategy]
    (folder / "ledger").mkdir(parents=True, exist_ok=True)
    return Job(
        make_trainable=make,
        files=(data,),
        columns=("target", "context"),
        checkpoints=folder / "checkpoints",
        fingerprint=strategy,
        batch_size=batch_size,
        lanes=8,
        stopping=Stopping(max_epochs=EPOCHS),
        sync=sync,
        checkpoint_every=checkpoint_every,
        seed=3,
        on_batch=partial(keep_ledger, folder / "ledger"),
    )


def write_pairs(path: Path) -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat(generator.zipf(1.3, PAIRS // 5) % WORDS, 5).astype(np.int32)
    contexts = ((targets + generator.zipf(1.5, PAIRS)) % WORDS).astype(np.int32)
    pq.write_table(pa.table({"target": targets, "context": contexts}), path, row_group_size=20_000)


def weights(job: Job) -> dict[str, torch.Tensor]:
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    assert found is not None
    assert found.state["stop_reason"] == "max_epochs"
    return found.tensors


def compare(job: Job, undisturbed: Job) -> int:
    """Checks weights and ledger against the undisturbed run's; returns how many batches were taken again."""
    ours, theirs = weights(job), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours), "the weights differ"
    once, ledger = (read_ledger(each.checkpoints.parent / "ledger") for each in (undisturbed, job))
    assert set(once.values()) == {1}, "the undisturbed run took a batch twice"
    assert ledger.keys() <= once.keys(), "a batch was not the one that belongs there"
    missing = once.keys() - ledger.keys()
    assert not missing, f"{len(missing)} batches were never taken"
    return ledger.total() - once.total()


def worker_pids(folder: Path) -> list[int]:
    """The processes that have written into the ledger and live."""
    pids = [int(path.stem) for path in (folder / "ledger").glob("*.txt")]
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def kill_workers(data: Path, work: Path, kills: int) -> dict[str, Any]:
    from training.ray_trainer import ray_runtime, train_on_ray

    results = {}
    with ray_runtime(WORKERS, None, verbose=False):
        for strategy in STRATEGIES:
            undisturbed = make_job(data, work / strategy / "undisturbed", strategy, checkpoint_every=10)
            train_on_ray(undisturbed, workers=WORKERS)
            steps = max(place for _, place, _ in places(undisturbed)) + 1
            chance = random.Random(strategy)
            again, seconds = [], []
            for number in range(kills):
                folder = work / strategy / str(number)
                job = make_job(data, folder, strategy, checkpoint_every=10)
                moment = chance.uniform(0, EPOCHS * steps * STEP_SECONDS)
                started = time.perf_counter()
                killer = threading.Thread(target=kill_one, args=(folder, moment, chance.random()))
                killer.start()
                train_on_ray(job, workers=WORKERS)
                killer.join()
                assert (folder / "killed").exists(), "nobody was killed"
                seconds.append(time.perf_counter() - started)
                again.append(compare(job, undisturbed))
                print(f"{strategy:10} kill {number + 1:2}: equal; {again[-1]} batches again", flush=True)
                shutil.rmtree(folder)
            results[strategy] = {"kills": kills, "batches_again": summary(again), "seconds": summary(seconds)}
    return results


def places(job: Job) -> list[tuple[int, int, int]]:
    ledger = read_ledger(job.checkpoints.parent / "ledger")
    return [(int(epoch), int(place), int(worker)) for epoch, place, worker, _ in ledger]


def kill_one(folder: Path, moment: float, choice: float) -> None:
    """Kills one of the workers `moment` seconds after all of them have begun."""
    while len(pids := worker_pids(folder)) < WORKERS:
        time.sleep(POLL_SECONDS)
    time.sleep(moment)
    os.kill(sorted(pids)[int(choice * len(pids))], signal.SIGKILL)
    (folder / "killed").touch()


def kill_drivers(data: Path, work: Path, kills: int) -> dict[str, Any]:
    def command(folder: Path) -> list[str]:
        return [sys.executable, __file__, "--drive", str(data), str(folder)]

    undisturbed = make_job(data, work / "undisturbed", "delta_sum", checkpoint_every=2)
    subprocess.run(command(work / "undisturbed"), check=True)
    steps = max(place for _, place, _ in places(undisturbed)) + 1
    chance = random.Random("drivers")
    again, inside_writes = [], 0
    for number in range(kills):
        folder = work / str(number)
        job = make_job(data, folder, "delta_sum", checkpoint_every=2)
        driver = subprocess.Popen(command(folder))
        while len(worker_pids(folder)) < WORKERS:
            time.sleep(POLL_SECONDS)
        if number % 4 == 0:  # into a write
            while not list(job.checkpoints.glob(".writing-*")):
                pass
        else:
            time.sleep(chance.uniform(0, EPOCHS * steps * STEP_SECONDS))
        driver.kill()
        driver.wait()
        wait_until_gone(folder)
        inside_writes += bool(list(job.checkpoints.glob(".writing-*")))
        subprocess.run(command(folder), check=True)
        again.append(compare(job, undisturbed))
        print(f"driver     kill {number + 1:2}: equal; {again[-1]} batches again", flush=True)
        shutil.rmtree(folder)
    return {"kills": kills, "left_a_half_written_checkpoint": inside_writes, "batches_again": summary(again)}


def wait_until_gone(folder: Path) -> None:
    """The workers of a killed driver end by themselves; nobody else may train in their folder meanwhile."""
    while worker_pids(folder):
        time.sleep(POLL_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=["workers", "drivers"], default=["workers", "drivers"])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "soak.json")
    parser.add_argument("--drive", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        from training.ray_trainer import train_on_ray

        train_on_ray(make_job(*arguments.drive, "delta_sum", checkpoint_every=2), workers=WORKERS)
        return
    results = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else {}
    for part in arguments.only:
        with tempfile.TemporaryDirectory() as folder:
            write_pairs(Path(folder) / "pairs.parquet")
            kill = kill_workers if part == "workers" else kill_drivers
            results[part] = kill(Path(folder) / "pairs.parquet", Path(folder), arguments.kills)
        write_results(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
