"""Measure the skip-gram CPU kernel alone: pairs per second by size of the model, parts and threads.

    python benchmarks/sgns_cpu.py [--pairs 8000000] [--repeats 5]

Words are drawn by Zipf's law (benchmarks/zipf.py). Their pairs, as from a text with subsampling and randomly
reduced windows of 5, are in memory, in the blocks of one episode of the default size. Each measurement trains
whole episodes of at least `--pairs` pairs. Runs with one thread and with all threads alternate, so that other
load affects both. `run` is the mean length of a run, and `lines` are the cache lines of table rows per pair:
those of its context, and its share of the 1 + K output rows of its run; each is read and written. A number of
parts that the vocabulary does not allow is left out. Results are written to benchmarks/results/sgns_cpu.json.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, summary, table, write_results
from zipf import count_runs, diagonals, draw_blocks

from lexloom.models.cpus import available_cpus
from lexloom.models.word2vec.cpu import padded_dim
from lexloom.models.word2vec.grid import MAX_EPISODE, MAX_ROWS, Grid, default_episode, default_parts
from lexloom.models.word2vec.trainable import Word2Vec

FLOATS_IN_LINE = 16
DIM, NEGATIVES, WORDS, MANY_WORDS = 100, 5, 60_000, 2_400_000
PARTS = (1, 8, 16, 32, 64, 128)
POINTS = [
    *({"dim": dim} for dim in (50, 100, 200, 300)),
    *({"negatives": negatives} for negatives in (1, 2, 10, 20)),
    *({"words": words} for words in (1_000, 10_000, 200_000, 1_000_000, MANY_WORDS)),
    *(
        {"words": words, "parts": parts}
        for words in (WORDS, MANY_WORDS)
        for parts in PARTS
        if words <= parts * MAX_ROWS and parts != default_parts(words)
    ),
]


def measure(
    dim: int,
    negatives: int,
    words: int,
    parts: int,
    *,
    pairs: int,
    episode: int,
    threads: list[int],
    repeats: int,
) -> dict[str, Any]:
    grid = Grid(words, parts)
    batches = diagonals(draw_blocks(grid, min(default_episode(words), episode)), grid)
    episode = sum(len(batch["target"]) for batch in batches)
    passes = -(-pairs // episode)
    models = {}
    for count in threads:
        # uniform noise is the worst case for caches
        models[count] = Word2Vec(
            np.ones(words), parts=parts, dim=dim, negatives=negatives, learning_rate=0.025, threads=count
        )
        models[count].prepare("cpu")
    rates: dict[int, list[float]] = {count: [] for count in threads}
    for repeat in range(repeats + 1):
        for count, model in models.items():
            begun = time.perf_counter()
            for number, batch in enumerate(passes * batches):
                model.train_step(batch, progress=0.0, seed=number)
                model.rotate()
            model.wait()
            if repeat:  # the first is a warm-up
                rates[count].append(passes * episode / (time.perf_counter() - begun))
    run = episode / count_runs(batches)
    return {
        "episode": episode,
        "pairs_per_run": round(run, 2),
        "lines": round((1 + (1 + negatives) / run) * padded_dim(dim) / FLOATS_IN_LINE, 1),
        "tables_megabytes": round(2 * words * padded_dim(dim) * 4 / 1e6, 1),
        **{
            f"million_pairs_per_second_{count}": summary([rate / 1e6 for rate in found])
            for count, found in rates.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=8_000_000, help="minimum pairs of a measurement")
    parser.add_argument(
        "--episode", type=int, default=MAX_EPISODE, help="maximum pairs of an episode; fewer for a trial"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "sgns_cpu.json")
    arguments = parser.parse_args()
    threads = sorted({1, available_cpus()})
    results, rows = [], []
    for point in POINTS:
        size = {"dim": DIM, "negatives": NEGATIVES, "words": WORDS, **point}
        size = {"parts": default_parts(size["words"]), **size}
        found = measure(
            **size,
            pairs=arguments.pairs,
            episode=arguments.episode,
            threads=threads,
            repeats=arguments.repeats,
        )
        results.append(size | found)
        rates = [found[f"million_pairs_per_second_{count}"]["median"] for count in threads]
        rows.append(
            [
                *(f"{size[name]:,}" for name in ("dim", "negatives", "words", "parts")),
                f"{found['pairs_per_run']:.2f}",
                f"{found['lines']}",
                f"{found['tables_megabytes']:,}",
                *(f"{rate:.1f}" for rate in rates),
                f"{rates[-1] / rates[0]:.2f}",
            ]
        )
        print(*rows[-1], flush=True)
    headings = [
        *("dim", "K", "words", "parts", "run", "lines", "tables MB"),
        *(f"{count} threads" for count in threads),
        "ratio",
    ]
    print(table(headings, rows))
    write_results(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
