"""Proof by killing: whatever dies, and whenever, the result is the one that nobody disturbed.

    python -m tests.system.harness.soak [--kills 20] [--only workers drivers cancels interrupts]

workers     a random Ray worker is killed (SIGKILL) at a seeded random moment, for each of three strategies:
            `diloco` and `all_reduce`, on a small network with Adam, and `rotation`, on word vectors.
drivers     the process that drives the training is killed at a seeded random moment, and started again. It
            writes a checkpoint every other step. Of twenty kills ten fall into the writing of a checkpoint,
            and five of those take the workers along, so that the writing really ends there.
cancels     whole flow runs are cancelled by Prefect's API (tests/system/harness/cancels.py).
interrupts  half as many are stopped by Ctrl-C.

After each kill the final weights, and what the synchronisation and the losses of record were, must equal the
undisturbed run's bit for bit; and the ledger (ledger.py) must show that the committed steps took
each example exactly once an epoch. Batches that were taken again after a kill are counted. Results go to
benchmarks/results/soak.json.
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.measure import RESULTS, summary, write_results
from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.job import Job
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable
from tests.system.harness import vectors
from tests.system.harness.cancels import by_api, by_ctrl_c, write_corpus
from tests.system.harness.ledger import Ledger, check_coverage, pages, settle
from tests.system.harness.processes import is_alive, processes_of, wait_for

WORDS, PAIRS, EPOCHS, WORKERS = 2_000, vectors.PAIRS, 3, 2
STEP_SECONDS = 0.02  # a step is held up so long that kills find the run at work
WHOLE_RUN_SECONDS = 300
RAYS_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
PARTS = ["workers", "drivers", "cancels", "interrupts"]


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(WORDS, 16), nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, WORDS))


def next_word(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return F.cross_entropy(module(batch["target"].long()), batch["context"].long())


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=1e-3)


def classifier() -> TorchTrainable:
    return TorchTrainable(network, next_word, adam, schedule=lambda progress: 1 - progress, seed=1)


STRATEGIES = {
    "diloco": SyncConfig("diloco", period=4),
    "all_reduce": SyncConfig("all_reduce"),
    "rotation": vectors.OPTIONS["sync"],
}


def write_pairs(path: Path) -> None:
    generator = np.random.default_rng(0)
    targets = np.repeat(generator.zipf(1.3, PAIRS // 5) % WORDS, 5).astype(np.int32)
    contexts = ((targets + generator.zipf(1.5, PAIRS)) % WORDS).astype(np.int32)
    table = {"target": targets, "context": contexts, "row": np.arange(PAIRS, dtype=np.int32)}
    pq.write_table(pa.table(table), path, row_group_size=20_000)


def make_job(data: Path, folder: Path, strategy: str, checkpoint_every: int) -> Job:
    ledger = folder / "ledger", folder / "checkpoints", STEP_SECONDS
    options: dict[str, Any] = {
        "make_trainable": classifier,
        "columns": ("target", "context", "row"),
        "sync": STRATEGIES[strategy],
        "on_batch": Ledger(*ledger),
    }
    if strategy == "rotation":
        options = vectors.OPTIONS | {"on_batch": vectors.NumberedLedger(*ledger, workers=WORKERS)}
    return Job(
        files=(data,),
        checkpoints=folder / "checkpoints",
        fingerprint=strategy,
        batch_size=8192,
        lanes=8,
        stopping=Stopping(max_epochs=EPOCHS),
        checkpoint_every=checkpoint_every,
        seed=3,
        **options,
    )


def result(job: Job) -> Checkpoint:
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    assert found is not None
    assert found.state["stop_reason"] == "max_epochs"
    return found


def compare(job: Job, undisturbed: Job, workers: int = WORKERS) -> int:
    """Checks result and ledger against the undisturbed run's; returns how many batches were taken again."""
    ours, theirs = result(job), result(undisturbed)
    for mine, other in ((ours.tensors, theirs.tensors), (ours.sync, theirs.sync)):
        assert mine.keys() == other.keys()
        assert all(torch.equal(mine[name], other[name]) for name in mine), "the weights differ"
    losses = [[point["loss"] for point in each.state["history"]] for each in (ours, theirs)]
    assert losses[0] == losses[1], "the losses of record differ"
    account, once = (settle(pages(ledger_of(each))) for each in (job, undisturbed))
    assert once.again == 0, "the undisturbed run took a batch twice"
    assert account.steps == ours.state["step"], "the ledger and the checkpoint count other steps"
    check_coverage(account, ledger_of(job), PAIRS, EPOCHS, workers)
    assert account.committed == once.committed, "a batch is not the one of the undisturbed run"
    return account.again


def ledger_of(job: Job) -> Path:
    return job.checkpoints.parent / "ledger"


def living_workers(job: Job) -> list[int]:
    """The processes that have begun a page of the ledger and live; in order of their ranks."""
    begun = sorted(pages(ledger_of(job)), key=lambda page: page.worker)
    return [page.pid for page in begun if is_alive(page.pid)]


def kill_workers(data: Path, work: Path, kills: int) -> dict[str, Any]:
    from lexloom.training.ray.runtime import ray_runtime
    from lexloom.training.ray.trainer import train_on_ray

    results = {}
    with ray_runtime(WORKERS, None, verbose=False):
        for strategy in STRATEGIES:
            undisturbed = make_job(data, work / strategy / "undisturbed", strategy, checkpoint_every=10)
            train_on_ray(undisturbed, workers=WORKERS)
            whole = result(undisturbed).state["seconds"]
            chance = random.Random(strategy)
            again: list[float] = []
            seconds: list[float] = []
            at: list[int] = []
            while len(again) < kills:
                job = make_job(data, work / strategy / "killed", strategy, checkpoint_every=10)
                moment, choice = chance.uniform(0, whole), chance.random()
                killed: list[int] = []
                killer = threading.Thread(target=kill_one, args=(job, moment, choice, killed))
                started = time.perf_counter()
                killer.start()
                train_on_ray(job, workers=WORKERS)
                killer.join()
                batches_again = compare(job, undisturbed)
                if killed:
                    seconds.append(time.perf_counter() - started)
                    again.append(batches_again)
                    at.append(killed[0])
                    say(strategy, len(again), f"in step {at[-1]}: equal; {batches_again} batches again")
                else:
                    print(f"{strategy:10} it ended before {moment:.2f} s: not counted", flush=True)
                shutil.rmtree(work / strategy / "killed")
            results[strategy] = {
                "kills": kills,
                "bit_identical": len(again),
                "killed_in_step": sorted(at),
                "batches_again": summary(again),
                "seconds": summary(seconds),
            }
    return results


def kill_one(job: Job, moment: float, choice: float, killed: list[int]) -> None:
    """Kills a worker `moment` seconds after all have begun, and notes the step that it was in."""
    wait_for(lambda: len(living_workers(job)) == WORKERS, WHOLE_RUN_SECONDS, "the workers begin")
    time.sleep(moment)
    workers = living_workers(job)
    if len(workers) == WORKERS:
        pid = workers[int(choice * WORKERS)]
        os.kill(pid, signal.SIGKILL)
        killed.append(sum(len(page.taken) for page in pages(ledger_of(job)) if page.pid == pid))


def kill_drivers(data: Path, work: Path, kills: int) -> dict[str, Any]:
    def start(folder: Path) -> subprocess.Popen[bytes]:
        session = folder / "ray"
        session.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "tests.system.harness.soak", "--drive", str(data), str(folder)]
        return subprocess.Popen(command, env={**os.environ, "RAY_TMPDIR": str(session)})

    undisturbed = make_job(data, work / "undisturbed", "diloco", checkpoint_every=2)
    assert start(work / "undisturbed").wait() == 0
    whole = result(undisturbed).state["seconds"]
    chance = random.Random("drivers")
    again: list[float] = []
    until_gone: list[float] = []
    in_writing = half_written = with_workers = 0
    while len(again) < kills:
        number, folder = len(again), work / "killed"
        job = make_job(data, folder, "diloco", checkpoint_every=2)
        moment = chance.uniform(0, whole)
        driver = start(folder)
        wait_for(lambda job=job: len(living_workers(job)) == WORKERS, WHOLE_RUN_SECONDS, "the workers begin")
        time.sleep(moment)
        workers = living_workers(job)
        if number % 2:
            await_writing(job, workers)
        writing = is_writing(job)
        if len(workers) == WORKERS and all(map(is_alive, workers)):
            driver.kill()
            if number % 4 == 3:
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
                with_workers += 1
            driver.wait()
            until_gone.append(
                wait_for(lambda folder=folder: not at_work(folder / "ray"), 180, "Ray's processes end")
            )
            half = is_writing(job)
            in_writing, half_written = in_writing + writing, half_written + half
            assert start(folder).wait() == 0
            again.append(compare(job, undisturbed))
            told = "in a checkpoint's writing" if writing else "between checkpoints"
            say(
                "driver",
                len(again),
                f"{told}{', half of it left' if half else ''}: equal; {again[-1]} batches again;"
                f" {until_gone[-1]:.1f} s until no process was at work",
            )
        else:
            driver.wait()
            print(f"driver     it ended before {moment:.2f} s: not counted", flush=True)
        shutil.rmtree(folder)
    return {
        "kills": kills,
        "bit_identical": len(again),
        "in_the_writing_of_a_checkpoint": in_writing,
        "with_all_workers": with_workers,
        "left_a_half_written_checkpoint": half_written,
        "batches_again": summary(again),
        "seconds_until_no_process_at_work": summary(until_gone),
    }


def at_work(session: Path) -> list[str]:
    """The processes of a runtime but for two idle ones, which look for Ray's dead server a minute."""
    return [command for command in processes_of(session).values() if not command.startswith(RAYS_AGENTS)]


def is_writing(job: Job) -> bool:
    return bool(list(job.checkpoints.glob(".writing-*")))


def await_writing(job: Job, workers: list[int]) -> None:
    """Returns while a checkpoint is being written, or when nobody is left to write one."""
    while not is_writing(job) and any(map(is_alive, workers)):
        pass


def say(what: str, number: int, told: str) -> None:
    print(f"{what:10} kill {number:2} {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="of each kind; half as many by Ctrl-C")
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json")
    parser.add_argument("--drive", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    if arguments.drive:
        from lexloom.training.ray.trainer import train_on_ray

        train_on_ray(make_job(*arguments.drive, "diloco", checkpoint_every=2), workers=WORKERS)
        return
    results = json.loads(arguments.out.read_text())["results"] if arguments.out.exists() else {}
    for part in arguments.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            found = run(part, Path(folder), arguments.kills)
        results[part] = {"date": f"{datetime.now(UTC):%Y-%m-%d}", **found}
        write_results(arguments.out, {"results": results})


def run(part: str, work: Path, kills: int) -> dict[str, Any]:
    if part in ("cancels", "interrupts"):
        write_corpus(work / "corpus")
        stop, count = (by_api, kills) if part == "cancels" else (by_ctrl_c, -(-kills // 2))
        return stop(work / part, work / "corpus", count)
    write_pairs(work / "pairs.parquet")
    kill = kill_workers if part == "workers" else kill_drivers
    return kill(work / "pairs.parquet", work, kills)


if __name__ == "__main__":
    main()
