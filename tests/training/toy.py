"""Trainables small enough to check by hand, and a way to train on several processes without Ray."""

import multiprocessing
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
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
from lexloom.training.trainable import LOSS_RESOLUTION, Batch

ROWS = 12
FEATURES, CLASSES = 4, 3
PARTS, EPISODES, WIDTH = 5, 3, 4


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


@dataclass
class Block:
    """A block of a `Grid`: its examples, and the two pieces that it changes. Its loss is None before that."""

    row: Tensor
    column: Tensor
    values: np.ndarray
    shift: float
    loss: float | None = None

    def train(self) -> None:
        self.row.copy_(torch.sin(self.row + self.column / 2 + float(self.values.sum()) + self.shift))
        self.column.mul_(0.9).add_(self.row)
        self.loss = self.sum_losses()

    def sum_losses(self) -> float:
        loss = float((self.row - self.column).square().sum()) * len(self.values)
        return round(loss / LOSS_RESOLUTION) * LOSS_RESOLUTION


class Grid:
    """A partitioned model: pieces of two tables. A block (i, j) of examples changes row i and column j.

    The rows stay with their workers, and the columns move on. The updates depend on both pieces, so a wrong
    order and a lost or stale piece change the result. Blocks are trained late: when the piece leaves, a loss
    is read or the state is requested. `overlaps` counts the exchanges during which blocks were pending.
    """

    def __init__(self) -> None:
        self.own(0, 1)

    def own(self, rank: int, world_size: int) -> None:
        if world_size > PARTS:
            raise ValueError(f"{world_size} workers can't share {PARTS} parts")
        self.world_size = world_size
        self.parts = range(PARTS * rank // world_size, PARTS * (rank + 1) // world_size)

    def prepare(self, device: str) -> None:
        self.rows = {part: first_piece(part) for part in self.parts}
        self.spare = torch.full((WIDTH,), float("nan"))
        self.blocks = deque[Block]()
        self.finished_at, self.overlaps, self.evaluated = 0.0, 0, 0
        self.start_at(0)

    def start_at(self, step: int) -> None:
        self.steps = step
        self.columns = {self.opposite(part): first_piece(-1 - self.opposite(part)) for part in self.parts}

    def opposite(self, row: int) -> int:
        return (row + self.steps) % PARTS

    def learning_rate(self, progress: float) -> float:
        return 1.0 - progress

    def select(self, batch: Batch, shift: float) -> list[Block]:
        """The batch's blocks that have examples; that of the column that leaves comes first."""
        blocks = []
        for row in self.parts:
            chosen = batch["row"] == row
            assert (batch["column"][chosen] == self.opposite(row)).all(), "of another diagonal"
            column = self.columns[self.opposite(row)]
            blocks.append(Block(self.rows[row], column, batch["value"][chosen], shift + row))
        return [block for block in blocks if len(block.values)]

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> "GridLoss":
        blocks = self.select(batch, progress + seed % 1000 / 1000)
        self.blocks += blocks
        return GridLoss(self, blocks)

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        assert not self.blocks, "a step is pending"
        self.evaluated += 1
        rows = len(batch["value"])  # the mean first, like a model whose `train_step` also evaluates
        return sum(block.sum_losses() for block in self.select(batch, 0.0)) / rows * rows, rows

    def finish(self, is_done: Callable[[], bool]) -> None:
        while self.blocks and not is_done():
            self.blocks.popleft().train()
            self.finished_at = time.perf_counter()

    def state_dict(self) -> dict[str, Tensor]:
        self.finish(lambda: False)
        rows = {f"rows.{part:04d}": piece for part, piece in self.rows.items()}
        return rows | {f"columns.{part:04d}": piece for part, piece in self.columns.items()}

    def piece_names(self) -> list[str]:
        return list(self.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        live = self.state_dict()
        assert state.keys() == live.keys()
        for name, piece in live.items():
            piece.copy_(state[name])

    def outgoing(self) -> Tensor:
        leaving = self.columns[self.opposite(self.parts[0])]
        self.finish(lambda: all(block.column is not leaving for block in self.blocks))
        self.overlaps += bool(self.blocks)
        return leaving

    def incoming(self) -> Tensor:
        return self.spare

    def rotate(self) -> None:
        leaving = self.columns.pop(self.opposite(self.parts[0]))
        self.steps += 1
        arrived, self.spare = (self.spare, leaving) if self.world_size > 1 else (leaving, self.spare)
        self.columns[self.opposite(self.parts[-1])] = arrived

    def idle_since(self) -> float | None:
        return None if self.blocks else self.finished_at


class GridLoss:
    def __init__(self, model: Grid, blocks: list[Block]) -> None:
        self.model, self.blocks = model, blocks

    def done(self) -> bool:
        return all(block.loss is not None for block in self.blocks)

    def __float__(self) -> float:
        self.model.finish(self.done)
        total = sum(block.loss for block in self.blocks if block.loss is not None)
        return total / sum(len(block.values) for block in self.blocks)


def first_piece(part: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(part % 100).normal(size=WIDTH).astype(np.float32))


@dataclass
class GridEpoch:
    number: int
    blocks: list[tuple[int, int]]  # of each step: the episode and the diagonal
    sizes: list[int]  # examples of each step

    @property
    def steps(self) -> int:
        return len(self.blocks)

    def examples_until(self, step: int) -> int:
        assert step <= self.steps
        return sum(self.sizes[:step])


class GridStream:
    """Episodes of PARTS x PARTS blocks of random numbers; a step's batch is a diagonal of an episode.

    Some blocks are empty, and so is a diagonal of every episode. `Job.open_stream` of a `Grid`.
    """

    def __init__(self, job: Job, rank: int, world_size: int, held_out: bool) -> None:
        self.seeds, self.held_out = [job.seed, int(held_out)], held_out
        self.parts = range(PARTS * rank // world_size, PARTS * (rank + 1) // world_size)
        self.sizes = np.random.default_rng(self.seeds).integers(0, 40, (EPISODES, PARTS, PARTS))
        for episode, row in np.ndindex(EPISODES, PARTS):
            self.sizes[episode, row, (row + episode) % PARTS] = 0
        self.examples = int(self.sizes.sum())

    def epoch(self, number: int) -> GridEpoch:
        first, order = number % PARTS, np.arange(EPISODES)
        if not self.held_out:
            first = 0
            np.random.default_rng([*self.seeds, number]).shuffle(order)
        blocks = [(int(order[step // PARTS]), (first + step) % PARTS) for step in range(EPISODES * PARTS)]
        sizes = [
            sum(int(self.sizes[episode, row, (row + diagonal) % PARTS]) for row in range(PARTS))
            for episode, diagonal in blocks
        ]
        return GridEpoch(number, blocks, sizes)

    def read(self, epoch: GridEpoch, start: int = 0) -> Generator[Batch]:
        for episode, diagonal in epoch.blocks[start:]:
            sides = [(row, (row + diagonal) % PARTS) for row in self.parts]
            sizes = [int(self.sizes[episode, row, column]) for row, column in sides]
            values = [
                np.random.default_rng([*self.seeds, episode, row, column]).normal(size=size)
                for (row, column), size in zip(sides, sizes, strict=True)
            ]
            rows, columns = np.repeat(np.array(sides), sizes, axis=0).T
            yield {"value": np.concatenate(values), "row": rows, "column": columns}


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
        "sync": SyncConfig("average", period=3),
        "checkpoint_every": 5,
        "seed": 7,
        **changes,
    }
    return Job(make_trainable=make, checkpoints=folder / "checkpoints", fingerprint="fingerprint", **options)


def grid_job(folder: Path, make: Callable[[], Any] = Grid, **changes: Any) -> Job:
    """15 steps per epoch for a `Grid`; `evaluate_every` adds held-out examples."""
    held_out = (folder / "held-out",) if "evaluate_every" in changes else ()
    options = {"columns": ("value",), "open_stream": GridStream, "sync": SyncConfig("rotation")}
    return job(folder, make, **{**options, "batch_size": 100, "validation": held_out, **changes})


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
    forks.set_forkserver_preload(["lexloom.training.loop", "lexloom.tasks.train.word2vec"])
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    errors = forks.SimpleQueue()
    workers = [
        forks.Process(target=join_and_run, args=(rank, world_size, store.port, errors, function, arguments))
        for rank in range(world_size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if not errors.empty():
        raise AssertionError(errors.get())
    assert [worker.exitcode for worker in workers] == [0] * world_size


def join_and_run(
    rank: int,
    world_size: int,
    port: int,
    errors: Any,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        function(rank, world_size, *arguments)
    except BaseException:
        errors.put(f"worker {rank}: {traceback.format_exc()}"[-20_000:])  # less than a pipe holds
        raise
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
