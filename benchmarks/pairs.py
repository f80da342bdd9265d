"""Measure the pairs stage by compression: pairs written and read per second, bytes per pair, peak memory.

    python benchmarks/pairs.py --data FOLDER_OF_PARQUET [--runs 5]

The documents are column `text` of the Parquet files below the folder. Each run is a new process, so that its
peak memory can be measured; compressions alternate. Writing is the whole stage, from token shards to closed
pair shards. Reading is one thread over all row groups of the written shards. In addition, the first row
groups of a shard are encoded in memory with and without a dictionary. Results are written to
benchmarks/results/pairs.json.
"""

import argparse
import io
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from measure import stage_runner, summary, table, write_results

from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.pairs import ROWS_PER_GROUP, PairsConfig, pairs
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.vocabulary import VocabularyConfig, vocabulary

COMPRESSIONS = ("lz4", "zstd")
ENCODED_GROUPS = 16


def write_and_read(ids: Artifact, words: Artifact, compression: str, out: Path) -> dict[str, float]:
    """Run the stage once, and read its output once."""
    started = time.perf_counter()
    made = pairs.function(ids, words, PairsConfig(compression=compression), out)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shards = sorted(out.glob("*.parquet"))
    started = time.perf_counter()
    for shard in shards:
        with pq.ParquetFile(shard) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, use_threads=False)
    reading = time.perf_counter() - started
    return {
        "pairs": made.rows,
        "seconds": seconds,
        "written_per_second": made.rows / seconds,
        "bytes_per_pair": sum(shard.stat().st_size for shard in shards) / made.rows,
        "read_per_second": made.rows / reading,
        "peak_memory_mb": peak / 1024,
    }


def in_a_process(ids: Artifact, words: Artifact, compression: str, out: Path) -> dict[str, float]:
    inputs = [artifact.model_dump_json() for artifact in (ids, words)]
    command = [sys.executable, __file__, "--once", *inputs, compression, str(out)]
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def encode(shard: Path, compression: str, dictionary: bool) -> dict[str, float]:
    """Encode the first row groups of a shard in memory, on one thread; return speeds and size."""
    with pq.ParquetFile(shard) as file:
        groups = [file.read_row_group(i) for i in range(min(ENCODED_GROUPS, file.num_row_groups))]
    buffer, rows = io.BytesIO(), sum(group.num_rows for group in groups)
    started = time.perf_counter()
    with pq.ParquetWriter(
        buffer,
        groups[0].schema,
        compression=compression,
        use_dictionary=dictionary,
        dictionary_pagesize_limit=4 * ROWS_PER_GROUP,
        write_statistics=False,
    ) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=ROWS_PER_GROUP)
    writing, size = time.perf_counter() - started, buffer.getbuffer().nbytes
    started = time.perf_counter()
    with pq.ParquetFile(buffer) as file:
        for i in range(file.num_row_groups):
            file.read_row_group(i, use_threads=False)
    return {
        "written_per_second": rows / writing,
        "bytes_per_pair": size / rows,
        "read_per_second": rows / (time.perf_counter() - started),
    }


def spreads(runs: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    return {name: summary([run[name] for run in runs]) for name in runs[0]}


def shown(name: str, figures: dict[str, Any]) -> list[str]:
    def millions(key: str) -> str:
        spread = figures[key]
        return f"{spread['median'] / 1e6:.1f} ({spread['min'] / 1e6:.1f} to {spread['max'] / 1e6:.1f})"

    memory = figures.get("peak_memory_mb")
    return [
        name,
        millions("written_per_second"),
        f"{figures['bytes_per_pair']['median']:.2f}",
        millions("read_per_second"),
        f"{memory['median']:.0f}" if memory else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of Parquet files with a column `text`")
    parser.add_argument("--runs", type=int, default=5, help="runs per compression")
    parser.add_argument("--once", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.once:
        *inputs, compression, out = arguments.once
        ids, words = (Artifact.model_validate_json(text) for text in inputs)
        print(json.dumps(write_and_read(ids, words, compression, Path(out))))
        return
    if arguments.data is None:
        parser.error("--data is needed")
    with tempfile.TemporaryDirectory() as folder:
        run = stage_runner(Path(folder) / "store")
        source = CorpusConfig(source=str(arguments.data))
        text = run(corpus, locate_source(source), config=source)
        words = run(vocabulary, text, config=VocabularyConfig())
        ids = run(tokens, text, words, config=TokensConfig())
        out = Path(folder) / "out"
        in_a_process(ids, words, "lz4", out)  # compiles the kernels
        stage: dict[str, list[dict[str, float]]] = {name: [] for name in COMPRESSIONS}
        encoding: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.runs):
            for compression in COMPRESSIONS:
                stage[compression].append(in_a_process(ids, words, compression, out))
                for dictionary in (False, True):
                    name = f"{compression}, {'dictionary' if dictionary else 'no dictionary'}"
                    shard = min(out.iterdir())
                    encoding.setdefault(name, []).append(encode(shard, compression, dictionary))
    results = {name: spreads(runs) for name, runs in stage.items()}
    encoded = {name: spreads(runs) for name, runs in encoding.items()}
    headings = ["", "written, M pairs/s", "bytes/pair", "read, M pairs/s", "peak MB"]
    rows = [shown(f"stage, {name}", figures) for name, figures in results.items()]
    rows += [shown(f"encoding alone, {name}", figures) for name, figures in encoded.items()]
    print(table(headings, rows))
    write_results(
        Path(__file__).parent / "results" / "pairs.json",
        {"words": ids.summary.rows, "vocabulary": words.summary.rows, "stage": results, "encoding": encoded},
    )


if __name__ == "__main__":
    main()
