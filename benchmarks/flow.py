"""Measure the time and peak memory of the whole word2vec command.

    python benchmarks/flow.py --data FOLDER_OF_PARQUET [--copies 1 4]

The corpus contains the documents of the folder once or several times (`--copies`), so the text grows but the
vocabulary does not. For each size, the command runs in a new process with an empty store (one worker, one
thread per core), then again with all stages cached. Peak memory is that of the whole process. Results are
written to benchmarks/results/flow.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from measure import table, write_results


def run(source: Path, store: Path) -> dict[str, Any]:
    """Run the command once; return its JSON line, seconds, and peak memory in MB."""
    command = [
        *(
            sys.executable,
            "-m",
            "lexloom.flows.word2vec",
            "--source",
            str(source),
            "--store",
            str(store),
            "--json",
        ),
        *("--runner", "local", "--workers", "1", "--threads", str(os.cpu_count()), "--epochs", "1"),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the command failed with status {status}: {' '.join(command)}")
    outcome = json.loads(printed.splitlines()[-1])
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "stages": outcome["stages"],
        "cached": outcome["cached"],
        "examples": outcome["metrics"]["examples"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet files with a text column")
    parser.add_argument("--copies", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "flow.json")
    arguments = parser.parse_args()
    texts = pa.concat_tables(
        [pq.read_table(path, columns=["text"]) for path in sorted(arguments.data.rglob("*.parquet"))]
    )
    results, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:  # Numba compiles once per machine
        source = Path(folder) / "few.parquet"
        pq.write_table(texts.slice(0, 1000), source)
        run(source, Path(folder) / "store")
    for copies in arguments.copies:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "texts.parquet"
            with pq.ParquetWriter(source, texts.schema, compression="zstd") as writer:
                for _ in range(copies):
                    writer.write_table(texts, row_group_size=1 << 14)
            built = run(source, Path(folder) / "store")
            cached = run(source, Path(folder) / "store")
        results[f"{copies} copies"] = {"built": built, "cached": cached}
        rows += [
            [
                f"{copies} x the text, {name}",
                f"{found['seconds']}",
                f"{found['peak_mb']:,}",
                f"{found['cached']}",
            ]
            for name, found in (("built", built), ("again", cached))
        ]
    print(table(["run", "seconds", "peak MB", "stages cached"], rows))
    write_results(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
