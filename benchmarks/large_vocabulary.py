"""Measure the word2vec stages on a text with a large vocabulary: seconds, pairs per second, peak memory.

    python benchmarks/large_vocabulary.py [--words 100000000] [--kinds 2400000] [--repeats 3]
        [--previous FOLDER]

The text has random words by Zipf's law (benchmarks/zipf.py) in documents of 1,000 words; the word of rank r
is r in letters. `--kinds` is the number of words to draw from; the vocabulary has those that occur. Each
stage runs in a process of its own, training on one worker with one thread per CPU, for one epoch. With
`--previous`, the folder of an older checkout of Lexloom, that checkout runs the same stages on the same text;
the training runs alternate. The peak memory is that of the training process (2^20 bytes), also as a multiple
of the size of both tables. Results are written to benchmarks/results/large_vocabulary.json.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from checkout import ROOT, Checkout
from measure import RESULTS, commit, summary, table, write_results
from zipf import draw_words, zipf_shares

from lexloom.models.cpus import available_cpus
from lexloom.models.word2vec.cpu import padded_dim

DOCUMENT, DOCUMENTS_AT_ONCE = 1000, 1000
LETTERS = 26
SEED, MIN_COUNT = 1, 1
FLOAT_BYTES = 4


def letters(rank: int) -> str:
    """Write a rank as a word: a to z, aa to zz, and so on."""
    word = ""
    rank += 1
    while rank:
        rank, letter = divmod(rank - 1, LETTERS)
        word = chr(ord("a") + letter) + word
    return word


def write_text(path: Path, words: int, kinds: int) -> None:
    """Write a Parquet file with the column `text`; a function of the arguments only."""
    names = pa.array(map(letters, range(kinds)), pa.string())
    cumulated, random = np.cumsum(zipf_shares(kinds)), np.random.default_rng(SEED)
    schema = pa.schema([("text", pa.string())])
    with pq.ParquetWriter(path, schema, compression="lz4", use_dictionary=False) as writer:
        for first in range(0, words, DOCUMENT * DOCUMENTS_AT_ONCE):
            count = min(DOCUMENT * DOCUMENTS_AT_ONCE, words - first)
            drawn = names.take(pa.array(draw_words(cumulated, count, random)))
            offsets = np.append(np.arange(0, count, DOCUMENT), count).astype(np.int32)
            documents = pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), drawn), " ")
            writer.write_table(pa.table([documents], schema=schema))


def prepare(checkout: Checkout, text: Path) -> dict[str, Any]:
    """Run the stages before training."""
    ran = checkout.prepare(text, MIN_COUNT)
    return ran | {"pairs": checkout.run("pairs", ran["tokens"], ran["vocabulary"], seed=SEED)}


def train(checkout: Checkout, before: dict[str, Any], dim: int, threads: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as scratch:
        ran = checkout.run(
            *("train_word2vec", *(before[name] for name in ("pairs", "negative_sampling", "vocabulary"))),
            scratch=Path(scratch),
            epochs=1,
            dim=dim,
            seed=SEED,
            runner="local",
            workers=1,
            threads=threads,
        )
    tables = 2 * before["vocabulary"].artifact["summary"]["rows"] * padded_dim(dim) * FLOAT_BYTES / 2**20
    return {
        "stage_seconds": ran.seconds,
        "seconds": ran.facts["seconds"],
        "million_pairs_per_second": ran.facts["examples"] / ran.facts["seconds"] / 1e6,
        "waiting_for_data_seconds": ran.facts["data_seconds"],
        "loss": ran.facts["loss"],
        "peak_megabytes": ran.peak_megabytes,
        "tables_megabytes": tables,
        "peak_per_tables": ran.peak_megabytes / tables,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=100_000_000, help="words of the text")
    parser.add_argument("--kinds", type=int, default=2_400_000, help="different words to draw from")
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--threads", type=int, default=available_cpus())
    parser.add_argument("--repeats", type=int, default=3, help="training runs")
    parser.add_argument("--previous", type=Path, help="folder of an older checkout of Lexloom")
    parser.add_argument("--out", type=Path, default=RESULTS / "large_vocabulary.json")
    arguments = parser.parse_args()
    folders = {"this": ROOT} | ({"previous": arguments.previous} if arguments.previous else {})
    with tempfile.TemporaryDirectory() as work:
        text = Path(work) / "text.parquet"
        write_text(text, arguments.words, arguments.kinds)
        checkouts = {name: Checkout(folder, Path(work) / name) for name, folder in folders.items()}
        before = {}
        for name, checkout in checkouts.items():
            before[name] = prepare(checkout, text)
            print(name, {stage: round(ran.seconds, 1) for stage, ran in before[name].items()}, flush=True)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
        for _ in range(arguments.repeats):
            for name, checkout in checkouts.items():
                runs[name].append(train(checkout, before[name], arguments.dim, arguments.threads))
                print(name, {figure: round(value, 3) for figure, value in runs[name][-1].items()}, flush=True)
    results = {
        name: {
            "commit": commit(folders[name]),
            "vocabulary": before[name]["vocabulary"].artifact["summary"]["rows"],
            "pairs": before[name]["pairs"].facts["pairs"],
            "stages": {
                stage: {"seconds": round(ran.seconds, 2), "peak_megabytes": round(ran.peak_megabytes)}
                for stage, ran in before[name].items()
            },
            "training": {figure: summary([run[figure] for run in found]) for figure in found[0]},
        }
        for name, found in runs.items()
    }
    stages = list(before["this"])
    shown = ("stage_seconds", "million_pairs_per_second", "peak_megabytes", "peak_per_tables")
    rows = [
        [
            name,
            *(f"{found['stages'][stage]['seconds']:.1f}" for stage in stages),
            *(f"{found['training'][figure]['median']:.2f}" for figure in shown),
        ]
        for name, found in results.items()
    ]
    print(table(["", *stages, "training", "M pairs/s", "peak MB", "peak / tables"], rows))
    write_results(
        arguments.out,
        {"words": arguments.words, "kinds": arguments.kinds, "dim": arguments.dim, "results": results},
    )


if __name__ == "__main__":
    main()
