"""Predict the training time of word vectors on a cluster, and check the prediction on this machine.

    python benchmarks/word2vec_scaling.py [--check] [--repeats 3]

For each vocabulary the pairs of one episode are drawn by Zipf's law and sorted into blocks, and the pairs per
second of one thread are measured. The simulation then follows every worker through an episode: it trains its
blocks of a diagonal one after another, sends the output part of the first block to the previous worker as
soon as that block is finished, and begins the next diagonal when its own blocks are finished and the next
worker's part has arrived. Assumptions: a worker has one thread on a core of its own and one network link of
the given speed, which sends and receives at the same time; other traffic, failures and slow nodes are left
out.

`--check` trains the same episode with 1, 2 and 4 processes (gloo) on this machine, on a loopback device of
limited speed (`tc` in a namespace of its own; needs Linux and user namespaces), and compares the seconds.
There a worker has its share of the machine's cores. Results are written to
benchmarks/results/word2vec_scaling.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
import torch.multiprocessing as mp
from measure import summary, table, write_results
from numpy.typing import NDArray

from lexloom.models.cpus import available_cpus
from lexloom.models.word2vec.blocks import make_blocks
from lexloom.models.word2vec.grid import Blocks, Grid, default_episode
from lexloom.models.word2vec.skipgram import SkipGrams, keep_thresholds
from lexloom.models.word2vec.trainable import Word2Vec
from lexloom.training.sync.rotation import Rotation

WINDOW, SUBSAMPLE, SHIFT, DIM, DOCUMENT = 5, 1e-3, 2.7, 100, 200
CORPORA = (  # words, parts, pairs of an epoch
    (58_000, 16, 104e6),
    (58_000, 64, 104e6),
    (2_500_000, 64, 480e6),
    (2_500_000, 128, 480e6),
)
WORKERS = (1, 2, 4, 8, 16, 32, 64)
GIGABITS = (1.0, 10.0, 100.0)
LATENCY = 50e-6  # seconds, of a message
CHECKED_WORKERS, CHECKED_GIGABITS = (1, 2, 4), (1.0, 10.0)


@dataclass(frozen=True)
class Episode:
    """The pairs of an episode in blocks, and what trains them."""

    grid: Grid
    counts: NDArray[np.int64]
    blocks: Blocks

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Pairs of each block, (P, P)."""
        return np.diff(self.blocks.bounds, axis=1)

    @property
    def part_bytes(self) -> int:
        return self.grid.rows * DIM * 4

    def batch(self, step: int, own: range) -> dict[str, np.ndarray]:
        """A worker's blocks of a diagonal."""
        parts = self.grid.parts
        ends = [
            (self.blocks.bounds[i, (i + step) % parts], self.blocks.bounds[i, (i + step) % parts + 1])
            for i in own
        ]
        return {
            "target": np.concatenate([self.blocks.targets[a:b] for a, b in ends]),
            "context": np.concatenate([self.blocks.contexts[a:b] for a, b in ends]),
            "bounds": np.cumsum([0, *(int(b - a) for a, b in ends)]),
        }

    def model(self, own: tuple[int, int] = (0, 1)) -> Word2Vec:
        model = Word2Vec(self.counts**0.75, parts=self.grid.parts, dim=DIM)
        model.own(*own)
        model.prepare("cpu")
        return model


def draw_episode(words: int, parts: int, pairs: float = CORPORA[0][2]) -> Episode:
    shares = 1 / (np.arange(words) + SHIFT)
    counts = np.maximum(shares / shares.sum() * 1e9, 1).astype(np.int64)
    grid = Grid(words, parts)
    skipgrams = SkipGrams(keep_thresholds(counts, SUBSAMPLE), WINDOW, True, 1, grid)
    tokens = int(default_episode(words, pairs) / skipgrams.pairs_per_token(counts)) // DOCUMENT * DOCUMENT
    drawn = np.random.default_rng(1).random(tokens)
    ids = np.searchsorted(np.cumsum(counts) / counts.sum(), drawn).astype(np.int32)
    offsets = np.arange(0, tokens + 1, DOCUMENT)
    contexts = skipgrams.draw(ids, offsets, np.ones(len(offsets) - 1, np.bool_))
    return Episode(grid, counts, make_blocks([contexts], grid, window=WINDOW))


def measure_rate(episode: Episode, repeats: int) -> dict[str, float]:
    """Measure the pairs per second of one thread."""
    model, own, rates = episode.model(), range(episode.grid.parts), []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        for step in range(episode.grid.parts):
            model.train_step(episode.batch(step, own), progress=0.0, seed=step)
            model.rotate()
        model.wait()
        rates.append(len(episode.blocks.targets) / (time.perf_counter() - begun))
    return summary(rates[1:])  # the first is a warm-up


def simulate(
    lengths: NDArray[np.int64], workers: int, rate: float, part_bytes: int, gigabits: float
) -> float:
    """Return the seconds of an episode with blocks of these lengths, (P, P)."""
    parts = len(lengths)
    grid = Grid(parts, parts)
    own = [np.array(grid.own(rank, workers)) for rank in range(workers)]
    message = LATENCY + part_bytes * 8 / (gigabits * 1e9) if workers > 1 else 0.0
    begins = np.zeros(workers)
    for step in range(parts):
        seconds = [lengths[mine, (mine + step) % parts] / rate for mine in own]
        finished = begins + [each.sum() for each in seconds]
        arrived = begins + [each[0] for each in seconds] + message
        begins = np.maximum(finished, np.roll(arrived, -1)) if workers > 1 else finished
    return float(begins.max())


# The check.


def run_worker(rank: int, workers: int, store: str, corpus: tuple[int, int], results: Any) -> None:
    """Train one episode as one of several workers; worker 0 reports the seconds."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=workers,
        timeout=timedelta(minutes=5),
    )
    episode = draw_episode(*corpus)
    model, own = episode.model((rank, workers)), episode.grid.own(rank, workers)
    rotation = Rotation()
    rotation.setup(model, workers)
    for repeat in range(2):  # the first is a warm-up
        dist.barrier()
        begun = time.perf_counter()
        for step in range(episode.grid.parts):
            model.train_step(episode.batch(step, own), progress=0.0, seed=step)
            rotation.after_step(step, 0, 0)
        model.wait()
        dist.barrier()
        if rank == 0 and repeat:
            results.put(time.perf_counter() - begun)
    dist.destroy_process_group()


def train_for_real(workers: int, words: int, parts: int) -> float:
    """Return the seconds of an episode with so many processes."""
    context = mp.get_context("spawn")
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = (workers, f"{folder}/store", (words, parts), results)
        processes = [context.Process(target=run_worker, args=(rank, *arguments)) for rank in range(workers)]
        for process in processes:
            process.start()
        seconds = results.get(timeout=600)
        for process in processes:
            process.join()
    return seconds


def check(words: int, parts: int, rate: float, repeats: int) -> list[dict[str, Any]]:
    """Compare the simulation with real processes, in namespaces whose loopback device is limited."""
    episode, cores, rows = draw_episode(words, parts), available_cpus(), []
    for gigabits in CHECKED_GIGABITS:
        for workers in CHECKED_WORKERS:
            limit = f"tc qdisc add dev lo root tbf rate {gigabits * workers}gbit burst 1mb latency 50ms"
            command = f"{sys.executable} {__file__} --one {workers} --words {words} --parts {parts}"
            found = []
            for _ in range(repeats):
                done = subprocess.run(
                    ["unshare", "-rn", "bash", "-c", f"ip link set lo up && {limit} && {command}"],
                    check=True,
                    capture_output=True,
                    text=True,
                    env=os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
                )
                found.append(float(done.stdout.split()[-1]))
            share = rate * min(1.0, cores / workers)
            expected = simulate(episode.lengths, workers, share, episode.part_bytes, gigabits)
            rows.append(
                {"gigabits": gigabits, "workers": workers, "seconds": summary(found), "predicted": expected}
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="compare with processes on this machine")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results" / "word2vec_scaling.json"
    )
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)  # workers of a real episode
    parser.add_argument("--words", type=int, default=CORPORA[0][0], help=argparse.SUPPRESS)
    parser.add_argument("--parts", type=int, default=CORPORA[0][1], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(train_for_real(arguments.one, arguments.words, arguments.parts))
        return
    results: dict[str, Any] = {"corpora": []}
    for words, parts, pairs in CORPORA:
        episode = draw_episode(words, parts, pairs)
        rate = measure_rate(episode, arguments.repeats)
        drawn = len(episode.blocks.targets)
        seconds = {
            f"{gigabits:g} Gbit/s": {
                workers: round(
                    pairs
                    / drawn
                    * simulate(episode.lengths, workers, rate["median"], episode.part_bytes, gigabits),
                    2,
                )
                for workers in WORKERS
                if workers <= parts
            }
            for gigabits in GIGABITS
        }
        results["corpora"].append(
            {
                "words": words,
                "parts": parts,
                "pairs_per_epoch": pairs,
                "pairs_per_episode": drawn,
                "pairs_per_second_of_a_thread": rate,
                "bytes_per_diagonal": episode.part_bytes,
                "bytes_per_pair": round(episode.part_bytes * parts / drawn, 2),
                "seconds_per_epoch": seconds,
            }
        )
        print(f"\n{words:,} words in {parts} parts, {pairs / 1e6:.0f}M pairs")
        print(
            f"one thread: {rate['median'] / 1e6:.1f}M pairs/s,"
            f" {episode.part_bytes * parts / drawn:.1f} bytes/pair"
        )
        rows = [
            [name, *(f"{found[workers]:.1f}" if workers in found else "" for workers in WORKERS)]
            for name, found in seconds.items()
        ]
        print(table(["seconds", *map(str, WORKERS)], rows), flush=True)
    if arguments.check:
        rate = results["corpora"][0]["pairs_per_second_of_a_thread"]["median"]
        results["check"] = check(*CORPORA[0][:2], rate, arguments.repeats)
    write_results(arguments.out, results)


if __name__ == "__main__":
    main()
