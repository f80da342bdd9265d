"""How fast text becomes tokens: words a second and peak memory of corpus, vocabulary and tokens.

    python benchmarks/text.py --data FOLDER --repeats 5

FOLDER holds text files of any kind that Lexloom reads (see tasks/source.py), with a column `text`. Every stage
runs in a process of its own, so that its peak memory is its own; a stage's time includes everything but the
imports. Results go to benchmarks/results/text.json.
"""

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.artifacts import Artifact, Summary
from tasks.corpus import CorpusConfig, corpus, locate
from tasks.tokens import TokensConfig, tokens
from tasks.vocabulary import VocabularyConfig, vocabulary

RESULTS = Path(__file__).parent / "results" / "text.json"
STAGES = ("corpus", "vocabulary", "tokens")
VERSIONS = ("lexloom", "numba", "numpy", "pyarrow")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="files, a folder or a packaged source")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)  # one stage, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run_stage(options.stage, options.data, options.folder)))
        return
    runs = [run_all(options.data) for _ in range(options.repeats)]
    result = {
        "command": shlex.join(["python", "benchmarks/text.py", "--repeats", str(options.repeats)]),
        "data": Path(options.data).name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "words": runs[0]["vocabulary"]["rows_in"],
        "stages": {stage: summary([run[stage] for run in runs], runs[0]) for stage in STAGES},
        "together": together(runs),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def run_stage(stage: str, data: str, folder: Path) -> dict[str, Any]:
    """Runs one stage on what the stages before left in `folder`."""
    loaded = peak_megabytes()
    out = folder / stage
    out.mkdir()
    if stage == "corpus":
        config = CorpusConfig(source=data)
        source = locate(config)
        started = time.perf_counter()
        done = corpus.function(source, config, out)
    elif stage == "vocabulary":
        started = time.perf_counter()
        done = vocabulary.function(artifact(folder, "corpus"), VocabularyConfig(), out)
    else:
        started = time.perf_counter()
        done = tokens.function(
            artifact(folder, "corpus"), artifact(folder, "vocabulary"), TokensConfig(), out
        )
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "megabytes": peak_megabytes(), "loaded": loaded, "rows_in": done.rows_in}


def artifact(folder: Path, stage: str) -> Artifact:
    nothing = Summary(rows_in=0, unit_in="", rows=0, unit="")
    return Artifact(stage=stage, key="benchmark", folder=folder / stage, summary=nothing)


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run_all(data: str) -> dict[str, dict[str, Any]]:
    """One pass through all stages, each in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"LEXLOOM_STORE": folder}
        command = [sys.executable, __file__, "--data", data, "--folder", folder]
        return {
            stage: json.loads(subprocess.check_output([*command, "--stage", stage], env=environment))
            for stage in STAGES
        }


def summary(runs: list[dict[str, Any]], first: dict[str, dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    words = first["vocabulary"]["rows_in"]
    return {
        "seconds": [round(value, 3) for value in seconds],
        "median_seconds": round(statistics.median(seconds), 3),
        "words_per_second": round(words / statistics.median(seconds)),
        "peak_megabytes": round(max(run["megabytes"] for run in runs)),
        "of_which_imports": round(max(run["loaded"] for run in runs)),
    }


def together(runs: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    words = runs[0]["vocabulary"]["rows_in"]
    rates = sorted(words / sum(run[stage]["seconds"] for stage in STAGES) for run in runs)
    return {
        "words_per_second": round(statistics.median(rates)),
        "slowest": round(rates[0]),
        "fastest": round(rates[-1]),
    }


def hardware() -> dict[str, Any]:
    model = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model[0] if model else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gigabytes": round(memory / 2**30),
        "load_before": round(os.getloadavg()[0], 2),
    }


def show(result: dict[str, Any]) -> None:
    print(f"{result['words']:,} words of {result['data']}, {result['hardware']['cores']} cores")
    print(f"{'stage':<12}{'median s':>10}{'spread s':>18}{'M words/s':>12}{'peak MB':>10}")
    for stage, figures in result["stages"].items():
        spread = f"{min(figures['seconds']):.2f} to {max(figures['seconds']):.2f}"
        rate = figures["words_per_second"] / 1e6
        print(
            f"{stage:<12}{figures['median_seconds']:>10.2f}{spread:>18}{rate:>12.2f}"
            f"{figures['peak_megabytes']:>10,}"
        )
    rates = [result["together"][name] / 1e6 for name in ("words_per_second", "slowest", "fastest")]
    print("together: {:.2f}M words/s ({:.2f} to {:.2f})".format(*rates))


if __name__ == "__main__":
    main()
