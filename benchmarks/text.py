"""Measure text to tokens: words per second and peak memory of the stages corpus, vocabulary and tokens.

    python benchmarks/text.py --data FOLDER --repeats 5

FOLDER holds text in any format that Lexloom reads (see tasks/sources/source.py), with a column `text`. Every
stage runs in a new process, so that its peak memory can be measured. Seconds do not include imports.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from measure import peak_megabytes, summary, table, write_results

from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.vocabulary import VocabularyConfig, vocabulary

RESULTS = Path(__file__).parent / "results" / "text.json"
STAGES = ("corpus", "vocabulary", "tokens")
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a file, a folder or a packaged source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # run one stage in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run_stage(options.stage, options.data, options.folder)))
        return
    load = round(os.getloadavg()[0], 1)  # load by other programs
    runs = [run_all(options.data) for _ in range(options.repeats)]
    words = runs[0]["vocabulary"]["rows_in"]
    stages = {stage: figures([run[stage] for run in runs], words) for stage in STAGES}
    stages["together"] = figures([together(run) for run in runs], words)
    print(table(["stage", "seconds (spread)", "CPU seconds", "M words/s", "peak MB"], rows(stages)))
    write_results(
        options.out,
        {
            "data": Path(options.data).name,
            "words": words,
            "load_before": load,
            "stages": stages,
        },
    )


def run_stage(stage: str, data: str, folder: Path) -> Figures:
    """Run one stage on the output of earlier stages in `folder`."""
    config = CorpusConfig(source=data)
    source = locate_source(config)
    imports = peak_megabytes()
    out = folder / stage
    out.mkdir()
    started, started_cpu = time.perf_counter(), time.process_time()
    if stage == "corpus":
        done = corpus.function(source, config, out)
    elif stage == "vocabulary":
        done = vocabulary.function(artifact(folder, "corpus"), VocabularyConfig(), out)
    else:
        done = tokens.function(
            artifact(folder, "corpus"), artifact(folder, "vocabulary"), TokensConfig(), out
        )
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - started_cpu,
        "peak_megabytes": peak_megabytes(),
        "of_which_imports": imports,
        "rows_in": done.rows_in,
    }


def artifact(folder: Path, stage: str) -> Artifact:
    nothing = Summary(rows_in=0, unit_in="", rows=0, unit="")
    return Artifact(stage=stage, key="benchmark", folder=folder / stage, summary=nothing)


def run_all(data: str) -> dict[str, Figures]:
    """Run all stages once, each in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LEXLOOM_STORE": folder}
        command = [sys.executable, __file__, "--data", data, "--folder", folder]
        return {
            stage: json.loads(subprocess.check_output([*command, "--stage", stage], env=environment))
            for stage in STAGES
        }


def together(run: dict[str, Figures]) -> Figures:
    return {
        "seconds": sum(run[stage]["seconds"] for stage in STAGES),
        "cpu_seconds": sum(run[stage]["cpu_seconds"] for stage in STAGES),
        "peak_megabytes": max(run[stage]["peak_megabytes"] for stage in STAGES),
        "of_which_imports": max(run[stage]["of_which_imports"] for stage in STAGES),
    }


def figures(runs: list[Figures], words: float) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    return {
        "seconds": summary(seconds),
        "cpu_seconds": summary([run["cpu_seconds"] for run in runs]),
        "words_per_second": round(words / median(seconds)),
        "peak_megabytes": round(max(run["peak_megabytes"] for run in runs)),
        "of_which_imports": round(max(run["of_which_imports"] for run in runs)),
    }


def rows(stages: dict[str, dict[str, Any]]) -> list[list[str]]:
    return [
        [
            stage,
            "{median:.2f} ({min:.2f} to {max:.2f})".format(**measured["seconds"]),
            f"{measured['cpu_seconds']['median']:.2f}",
            f"{measured['words_per_second'] / 1e6:.1f}",
            f"{measured['peak_megabytes']:,} (imports {measured['of_which_imports']:,})",
        ]
        for stage, measured in stages.items()
    ]


if __name__ == "__main__":
    main()
