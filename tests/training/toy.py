"""Trainables small enough to check by hand, and a way to train on several processes without Ray."""

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.stopping import Stopping
from lexloom.training.sync.collectives import sum_over_workers
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable
from lexloom.training.trainable import Batch

ROWS = 12
FEATURES, CLASSES = 4, 3


class Counter:
    """Counts how often each number occurs: row n of its table grows by 1 for every n in a batch.

    The updates do not depend on the table, so any split of the batches over workers gives the same counts.
    Its validation loss is the mean of the numbers.
    """

    def __init__(self, break_at: float = 2.0) -> None:
        self.break_at = break_at

    def prepare(self, device: str) -> None:
        self.table = torch.zeros(ROWS, 2)

    def learning_rate(self, progress: float) -> float:
        return 1.0 - progress

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> float:
        numbers = torch.from_numpy(batch["number"]).long()
        self.table[:, 0] += torch.bincount(numbers, minlength=ROWS)
        self.table[:, 1] += float(np.random.default_rng(seed).random()) * progress  # order and seeds matter
        return float("nan") if progress >= self.break_at else 1.0 - progress

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        return float(batch["number"].sum()), len(batch["number"])

    def state_dict(self) -> dict[str, Tensor]:
        return {"table": self.table}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.table.copy_(state["table"])

    def tables(self) -> dict[str, Tensor]:
        return {"table": self.table}


def perceptron(dropout: float) -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, CLASSES, bias=False)
    )


def cross_entropy(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch["features"]), batch["label"].long())


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.02)


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.2)


def falling(progress: float) -> float:
    return 1.0 - progress / 2


def classifier(
    dropout: float = 0.0,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = adam,
    **options: Any,
) -> TorchTrainable:
    options = {"schedule": falling, "seed": 5, **options}
    return TorchTrainable(partial(perceptron, dropout), cross_entropy, optimizer, **options)


def write_numbers(path: Path, rows: int = 600) -> Path:
    numbers = np.random.default_rng(0).integers(0, ROWS - 2, rows).astype(np.int32)
    pq.write_table(pa.table({"number": numbers}), path, row_group_size=37)
    return path


def write_points(path: Path, rows: int, rows_per_group: int, seed: int = 0) -> Path:
    """Write points whose label is the octant of their first coordinates, one in ten wrong."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, FEATURES)).astype(np.float32)
    labels = (features[:, 0] > 0).astype(np.int32) + (features[:, 1] > 0)
    wrong = generator.random(rows) < 0.1
    labels[wrong] = generator.integers(0, CLASSES, wrong.sum())
    columns = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), FEATURES)
    pq.write_table(pa.table({"features": columns, "label": labels}), path, row_group_size=rows_per_group)
    return path


def job(folder: Path, make: Callable[[], Any] = Counter, *, epochs: int = 2, **changes: Any) -> Job:
    """600 numbers in 10 steps per epoch, for a Counter."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / "shard-00000.parquet"
    options: dict[str, Any] = {
        "files": (shard if shard.exists() else write_numbers(shard),),
        "columns": ("number",),
        "batch_size": 64,
        "lanes": 4,
        "stopping": Stopping(max_epochs=epochs),
        "sync": SyncConfig("delta_sum", period=3),
        "checkpoint_every": 5,
        "seed": 7,
        **changes,
    }
    return Job(make_trainable=make, checkpoints=folder / "checkpoints", fingerprint="fingerprint", **options)


def points_job(
    folder: Path, make: Callable[[], Any] = classifier, *, even: bool = False, **changes: Any
) -> Job:
    """512 points in 8 equal batches per epoch, or 500 in more, with unequal shares for the workers."""
    shard = folder / "points.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    if not shard.exists():
        write_points(shard, *((512, 16) if even else (500, 37)))
    return job(folder, make, **{"files": (shard,), "columns": ("features", "label"), **changes})


def on_processes(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run `function(rank, world_size, *arguments)` on processes that share a gloo group.

    They are forked from a process that has already imported slow modules.
    """
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["torch", "lexloom.training.loop", "lexloom.models.word2vec.trainable"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [
        forks.Process(target=join_and_run, args=(rank, world_size, store.port, function, arguments))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * world_size


def join_and_run(
    rank: int, world_size: int, port: int, function: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        function(rank, world_size, *arguments)
    finally:
        dist.destroy_process_group()


def train_on(rank: int, world_size: int, *jobs: Job) -> None:
    for job in jobs:
        train(job, rank=rank, world_size=world_size)


class KilledError(Exception):
    pass


def die_at(step: int, epoch: int, place: int, worker: int, batch: Batch) -> None:
    """`Job.on_batch` that kills the run before its step number `step` of 10 per epoch, on all workers."""
    if (epoch, place) >= divmod(step, 10):
        raise KilledError


def train_in_pieces(rank: int, world_size: int, jobs: list[Job]) -> None:
    """Train jobs one after the other; those that die by `die_at` are left where they died."""
    for job in jobs:
        try:
            train(job, rank=rank, world_size=world_size)
        except KilledError:
            assert job.on_batch is not None
            sum_over_workers([0.0], world_size)
