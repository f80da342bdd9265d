"""Shared functions of the benchmarks: run stages without Prefect, summarize, print and write results."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

from lexloom.tasks.store.versions import package_versions

RESULTS = Path(__file__).parent / "results"
PEERS = ("accelerate", "datasets", "fasttext-community", "gensim")  # their versions are recorded too


def stage_runner(root: Path) -> Callable[..., Any]:
    """Run a stage's plain function in the store `root`, and return its artifact."""
    from lexloom.tasks.store.artifacts import (  # here, so that other benchmarks do not need these packages
        Artifact,
        Store,
    )

    store = Store(root)

    def run(stage: Any, *inputs: Any, config: Any, **extra: Any) -> Artifact:
        key = stage.key(inputs, config)
        out = emptied(store.folder(stage.name, key))
        return Artifact(
            stage=stage.name, key=key, folder=out, summary=stage.function(*inputs, config, out, **extra)
        )

    return run


def emptied(folder: Path) -> Path:
    """Create an empty folder. Artifacts of an earlier run would make this one appear faster."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def summary(values: list[float]) -> dict[str, float]:
    """Return the median, mean, minimum and maximum of repeated measurements."""
    figures = {"median": median(values), "mean": mean(values), "min": min(values), "max": max(values)}
    return {name: round(value, 5) for name, value in figures.items()} | {"runs": len(values)}


def peak_megabytes() -> float:
    """Return this process's peak memory; `getrusage` would include that of the parent process."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def table(headings: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(row[column]) for row in [headings, *rows]) for column in range(len(headings))]
    lines = [headings, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def write_results(path: Path, results: dict[str, Any]) -> None:
    """Write results as JSON with the command, date, commit, versions and hardware."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *placeholders(sys.argv[1:])])
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "command": command,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": commit(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **package_versions(*PEERS)},
        **results,
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
    print(f"written to {path}")


def commit(checkout: Path = Path(__file__).parent) -> str | None:
    """Return the commit of a checkout, marked if it has changes; None without a checkout or git."""
    if shutil.which("git") is None:
        return None
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or None


def placeholders(arguments: list[str]) -> list[str]:
    """Return the command's arguments, with paths of this machine replaced by a placeholder."""
    return ["DATA" if "/" in argument else argument for argument in arguments]


def hardware() -> dict[str, Any]:
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    features = Path("/proc/cpuinfo").read_text().split()
    vectors = next((name for name in ("avx512f", "avx2", "asimd") if name in features), "")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": model, "vectors": vectors, "cores": os.cpu_count(), "memory_gb": round(memory / 2**30)}
