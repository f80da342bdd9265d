"""A trainable small enough to check by hand, and a way to run a job on several processes without Ray."""

import multiprocessing
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from training.loop import Job, train
from training.sync import DeltaSum

ROWS = 12


class Counter:
    """Counts how often each number occurs: row n of its table grows by 1 for every n in a batch.

    The moves do not depend on the table, so any split of the batches over workers gives the same counts.
    """

    def __init__(self, break_at: float = 2.0) -> None:
        self.break_at = break_at

    def prepare(self, device: str) -> None:
        self.table = torch.zeros(ROWS, 2)

    def learning_rate(self, progress: float) -> float:
        return 1.0 - progress

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> float:
        numbers = torch.from_numpy(batch["number"]).long()
        self.table[:, 0] += torch.bincount(numbers, minlength=ROWS)
        self.table[:, 1] += float(np.random.default_rng(seed).random()) * progress  # order and seeds matter
        return float("nan") if progress >= self.break_at else 1.0 - progress

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"table": self.table}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.table.copy_(state["table"])

    def tables(self) -> dict[str, torch.Tensor]:
        return {"table": self.table}


def write_numbers(folder: Path, rows: int = 600) -> Path:
    path = folder / "shard-00000.parquet"
    numbers = np.random.default_rng(0).integers(0, ROWS - 2, rows).astype(np.int32)
    pq.write_table(pa.table({"number": numbers}), path, row_group_size=37)
    return path


def job(folder: Path, make: Callable[[], Any] = Counter, **changes: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "shard-00000.parquet"
    options: dict[str, Any] = {
        "epochs": 2,
        "batch_size": 64,
        "lanes": 4,
        "make_sync": partial(DeltaSum, 3),
        "checkpoint_every": 5,
        "seed": 7,
        **changes,
    }
    return Job(
        make,
        (shard if shard.exists() else write_numbers(folder),),
        ("number",),
        folder / "checkpoints",
        "fingerprint",
        **options,
    )


def on_processes(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Runs `function(rank, world_size, *arguments)` on processes that share a gloo group."""
    spawn = multiprocessing.get_context("spawn")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [
        spawn.Process(target=join_and_run, args=(rank, world_size, store.port, function, arguments))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0


def join_and_run(
    rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        function(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()


def train_on(rank: int, world_size: int, job: Job) -> None:
    train(job, rank=rank, world_size=world_size)
