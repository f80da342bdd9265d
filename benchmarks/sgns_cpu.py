"""Measure the skip-gram CPU kernel alone: pairs per second by dimensions, negatives, vocabulary and threads.

    python benchmarks/sgns_cpu.py [--pairs 4000000] [--repeats 5]

Words are drawn by Zipf's law (Mandelbrot's shift of 2.7). Pairs are generated as from a text, with
subsampling and randomly reduced windows of 5. Batches are in memory. Runs with one thread and with all
threads alternate, so that other load affects both. `lines` are the cache lines of table rows per pair: those
of its context, and its share of the 1 + K output rows of its run; each is read and written. Results are
written to benchmarks/results/sgns_cpu.json.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import summary, table, write_results

from lexloom.models.word2vec.cpu import padded_dim
from lexloom.models.word2vec.skipgram import SkipGrams, keep_thresholds
from lexloom.models.word2vec.trainable import Word2Vec

WINDOW, SUBSAMPLE, SHIFT = 5, 1e-3, 2.7
DOCUMENT, BATCH = 200, 131_072
FLOATS_IN_LINE = 16
DIM, NEGATIVES, WORDS = 100, 5, 50_000
POINTS = [
    *({"dim": dim} for dim in (50, 100, 200, 300)),
    *({"negatives": negatives} for negatives in (1, 2, 10, 20)),
    *({"words": words} for words in (1_000, 10_000, 200_000, 1_000_000, 3_000_000)),
]


def draw_pairs(words: int, pairs: int) -> dict[str, np.ndarray]:
    """Generate about a tenth more pairs than requested."""
    chances = 1 / (np.arange(words) + SHIFT)
    counts = np.maximum(chances / chances.sum() * 1e9, 1).astype(np.int64)
    skipgrams = SkipGrams(keep_thresholds(counts, SUBSAMPLE), WINDOW, shrink_window=True, seed=1)
    length = int(1.1 * pairs / skipgrams.pairs_per_token(counts)) // DOCUMENT * DOCUMENT
    drawn = np.random.default_rng(1).random(length)
    tokens = np.searchsorted(np.cumsum(counts) / counts.sum(), drawn).astype(np.int32)
    place = np.arange(length)
    batch = {"tokens": tokens, "row": place // DOCUMENT, "position": place % DOCUMENT}
    return skipgrams.draw(batch, seed=1)


def measure(
    dim: int, negatives: int, words: int, pairs: int, threads: list[int], repeats: int
) -> dict[str, Any]:
    batch = draw_pairs(words, pairs)
    batches = [
        {name: ids[first : first + BATCH] for name, ids in batch.items()}
        for first in range(0, min(pairs, len(batch["target"])), BATCH)
    ]
    # every word is its own alias: uniform noise, the worst case for caches
    noise = np.ones(words, np.float32), np.arange(words, dtype=np.int32)
    model = Word2Vec(*noise, dim=dim, negatives=negatives, learning_rate=0.025)
    model.prepare("cpu")
    rates: dict[int, list[float]] = {count: [] for count in threads}
    for repeat in range(repeats + 1):
        for count in threads:
            model.threads = count
            begun = time.perf_counter()
            for number, one in enumerate(batches):
                model.train_step(one, progress=0.0, seed=number)
            model.wait()
            if repeat:  # the first is a warm-up
                rates[count].append(
                    sum(len(one["target"]) for one in batches) / (time.perf_counter() - begun)
                )
    changes = 1 + np.count_nonzero(np.diff(batch["target"]))
    rows = 1 + (1 + negatives) * changes / len(batch["target"])
    return {
        "lines": round(float(rows) * padded_dim(dim) / FLOATS_IN_LINE, 1),
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
    parser.add_argument("--pairs", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "sgns_cpu.json")
    arguments = parser.parse_args()
    threads = sorted({1, os.cpu_count() or 1})
    results, rows = [], []
    for point in POINTS:
        size = {"dim": DIM, "negatives": NEGATIVES, "words": WORDS, **point}
        found = measure(**size, pairs=arguments.pairs, threads=threads, repeats=arguments.repeats)
        results.append(size | found)
        rates = [found[f"million_pairs_per_second_{count}"]["median"] for count in threads]
        rows.append(
            [
                *(f"{number:,}" for number in size.values()),
                f"{found['lines']}",
                f"{found['tables_megabytes']:,}",
                *(f"{rate:.1f}" for rate in rates),
                f"{rates[-1] / rates[0]:.2f}",
            ]
        )
        print(*rows[-1], flush=True)
    headings = [
        "dim",
        "K",
        "words",
        "lines",
        "tables MB",
        *(f"{count} threads" for count in threads),
        "ratio",
    ]
    print(table(headings, rows))
    write_results(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
