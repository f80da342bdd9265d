"""Measure the pairs stage by compression and CPUs: pairs per second, bytes per pair, peak memory.

    python benchmarks/pairs.py --data FOLDER_OF_PARQUET [--runs 5]

The documents are column `text` of the Parquet files below the folder. Each run is a new process, so that its
peak memory can be measured, restricted to one or two CPUs; the variants alternate. Writing is the whole
stage, from token shards to closed pair shards. Reading is one thread that reads the episodes like training.
In addition, the steps of the stage are measured one after the other, without overlap: `draw` reads the tokens
and draws the windows on one thread, `sort` makes the blocks on all CPUs, and `encode` writes the row groups
of a shard to memory on one thread, in several encodings. Results are written to
benchmarks/results/pairs.json.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from measure import RESULTS, peak_megabytes, stage_runner, summary, table, write_results

from lexloom.models.cpus import available_cpus
from lexloom.models.word2vec.blocks import make_blocks
from lexloom.models.word2vec.grid import Contexts
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.tokens import TokensConfig, read_token_batches, tokens, training_files
from lexloom.tasks.vocabulary import VocabularyConfig, read_vocabulary, vocabulary
from lexloom.training.grid_stream import StoredEpisodes

COMPRESSIONS = ("lz4", "zstd")
ENCODINGS = {
    "plain": {"use_dictionary": False},
    "dictionary": {"use_dictionary": True},
    "byte stream split": {"use_dictionary": False, "use_byte_stream_split": True},  # as the stage
}
Figures = dict[str, float]


def write_and_read(ids: Artifact, words: Artifact, compression: str, out: Path) -> Figures:
    """Run the stage once, and read its output once."""
    started = time.perf_counter()
    made = pairs.function(ids, words, PairsConfig(compression=compression), out)
    seconds = time.perf_counter() - started
    peak = peak_megabytes()
    parts = made.facts["parts"]
    started = time.perf_counter()
    episodes = StoredEpisodes(out, "train", parts=parts, seed=0, shuffle=False)
    read = sum(len(blocks.targets) for blocks in episodes.read(0, 0, range(parts)))
    reading = time.perf_counter() - started
    assert read == made.rows
    return {
        "seconds": seconds,
        "pairs_per_second": made.rows / seconds,
        "bytes_per_pair": sum(path.stat().st_size for path in out.iterdir()) / made.rows,
        "read_per_second": made.rows / reading,
        "peak_memory_mb": peak,
    }


def draw_and_sort(ids: Artifact, words: Artifact) -> dict[str, Figures]:
    """Draw and sort all pairs, one step after the other."""
    _, counts = read_vocabulary(words)
    config = PairsConfig()
    skipgrams, threads = config.skipgrams(counts), available_cpus()
    positions = config.episode(len(counts)) // skipgrams.pairs_per_kept_token
    spent = {"draw": 0.0, "sort": 0.0}
    drawn: list[Contexts] = []
    documents = total = 0

    def sort(pool: ThreadPoolExecutor) -> int:
        started = time.perf_counter()
        blocks = make_blocks(drawn, skipgrams.grid, window=config.window, pool=pool, threads=threads)
        spent["sort"] += time.perf_counter() - started
        drawn.clear()
        return len(blocks.targets)

    with ThreadPoolExecutor(threads) as pool:
        drawn.append(skipgrams.draw(np.zeros(2, np.int32), np.array([0, 2]), np.ones(1, np.bool_)))
        sort(pool)  # loads the compiled functions
        spent["sort"] = 0.0
        started = time.perf_counter()
        for batch, offsets in read_token_batches(training_files(ids)):
            wanted = np.ones(len(offsets) - 1, np.bool_)
            drawn.append(skipgrams.draw(batch, offsets, wanted, first_document=documents))
            documents += len(wanted)
            spent["draw"] += time.perf_counter() - started
            if sum(len(each.codes) for each in drawn) >= positions:
                total += sort(pool)
            started = time.perf_counter()
        if drawn:
            total += sort(pool)
    return {step: {"pairs_per_second": total / seconds} for step, seconds in spent.items()}


def run_once(what: str, cpus: str, ids: str, words: str, out: str) -> Any:
    """Measure the stage with a compression, or its `steps`, on the first CPUs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cpus)])
    inputs = Artifact.model_validate_json(ids), Artifact.model_validate_json(words)
    return draw_and_sort(*inputs) if what == "steps" else write_and_read(*inputs, what, Path(out))


def in_a_process(what: str, cpus: int, ids: Artifact, words: Artifact, out: Path) -> Any:
    inputs = [artifact.model_dump_json() for artifact in (ids, words)]
    command = [sys.executable, __file__, "--once", what, str(cpus), *inputs, str(out)]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def encode(shard: Path, compression: str, encoding: dict[str, bool]) -> Figures:
    """Encode the row groups of a shard in memory, on one thread; return speeds and size."""
    with pq.ParquetFile(shard) as file:
        groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    buffer, rows = io.BytesIO(), sum(group.num_rows for group in groups)
    started = time.perf_counter()
    with pq.ParquetWriter(
        buffer,
        groups[0].schema,
        compression=compression,
        write_statistics=False,
        **encoding,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=group.num_rows)
    writing, size = time.perf_counter() - started, buffer.getbuffer().nbytes
    started = time.perf_counter()
    with pq.ParquetFile(buffer) as file:
        for i in range(file.num_row_groups):
            file.read_row_group(i, use_threads=False)
    return {
        "pairs_per_second": rows / writing,
        "bytes_per_pair": size / rows,
        "read_per_second": rows / (time.perf_counter() - started),
    }


def spreads(runs: list[Figures]) -> dict[str, dict[str, float]]:
    return {name: summary([run[name] for run in runs]) for name in runs[0]}


def shown(name: str, figures: dict[str, Any]) -> list[str]:
    def millions(key: str) -> str:
        if key not in figures:
            return ""
        spread = figures[key]
        return f"{spread['median'] / 1e6:.1f} ({spread['min'] / 1e6:.1f} to {spread['max'] / 1e6:.1f})"

    def median(key: str, form: str) -> str:
        return format(figures[key]["median"], form) if key in figures else ""

    return [
        name,
        millions("pairs_per_second"),
        median("bytes_per_pair", ".2f"),
        millions("read_per_second"),
        median("peak_memory_mb", ".0f"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of Parquet files with a column `text`")
    parser.add_argument("--runs", type=int, default=5, help="runs per variant")
    parser.add_argument("--out", type=Path, default=RESULTS / "pairs.json")
    parser.add_argument("--once", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(run_once(*arguments.once)))
        return
    if arguments.data is None:
        parser.error("--data is needed")
    found: dict[str, list[Figures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = stage_runner(Path(folder) / "store")
        source = CorpusConfig(source=str(arguments.data))
        text = run(corpus, locate_source(source), config=source)
        words = run(vocabulary, text, config=VocabularyConfig())
        ids = run(tokens, text, words, config=TokensConfig())
        out = Path(folder) / "out"
        in_a_process("lz4", 1, ids, words, out)  # compiles the kernels
        for _ in range(arguments.runs):
            for cpus in sorted({1, min(2, available_cpus())}):
                for step, figures in in_a_process("steps", cpus, ids, words, out).items():
                    found.setdefault(f"{step}, {cpus} CPUs", []).append(figures)
                for compression in COMPRESSIONS:
                    figures = in_a_process(compression, cpus, ids, words, out)
                    found.setdefault(f"stage, {compression}, {cpus} CPUs", []).append(figures)
            for compression in COMPRESSIONS:
                for encoding, options in ENCODINGS.items():
                    name = f"encode, {compression}, {encoding}"
                    figures = encode(out / "train-00000.parquet", compression, options)
                    found.setdefault(name, []).append(figures)
    results = {name: spreads(runs) for name, runs in sorted(found.items())}
    headings = ["", "M pairs/s", "bytes/pair", "read, M pairs/s", "peak MB"]
    print(table(headings, [shown(name, figures) for name, figures in results.items()]))
    write_results(
        arguments.out,
        {"words": ids.summary.rows, "vocabulary": words.summary.rows, "results": results},
    )


if __name__ == "__main__":
    main()
