"""`lexloom status`: active stages, the latest runs and the size of the store."""

import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from lexloom.flows.registry import flows as registered_flows
from lexloom.tasks.display.console import NAME_WIDTH, clipped
from lexloom.tasks.display.formatting import (
    compute_progress_share,
    counted,
    duration,
    format_progress,
    size,
)
from lexloom.tasks.store.activity import (
    StageActivity,
    list_active_stages,
    list_interrupted_stages,
)
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.file_access import list_children, measure_folder
from lexloom.tasks.store.layout import BUILDING, SCRATCH, host_name

MESSAGE_WIDTH = 90
PREFIX = "Flow run encountered an exception: "  # Prefect's
COLOURS = {"Completed": "green", "Running": "cyan", "Failed": "red", "Crashed": "red"}


class StageTotal(BaseModel):
    """Number and size of a stage's artifacts in the store."""

    stage: str
    artifacts: int
    bytes: int
    latest: datetime


class Status(BaseModel):
    """The output of `lexloom status --json`."""

    store: Path
    at_work: list[StageActivity]
    interrupted: list[StageActivity]
    runs: list[Any]  # FlowRun of deployments/cli/runs.py, which is imported late
    runs_from: str | None
    runs_problem: str | None
    stages: list[StageTotal]
    artifacts: int
    bytes: int
    unfinished_bytes: int
    free_bytes: int


def status(*, runs: int = 5, json: bool = False) -> None:
    """Show active stages, the latest runs and the size of the store.

    Args:
        runs: Number of latest runs to list.
        json: Print everything as one JSON object.
    """
    if runs < 0:
        raise ValueError(f"--runs is {runs}: it must be 0 or more")
    found = look(Store(), list(registered_flows()), runs)
    if json:
        print(found.model_dump_json())
        return
    console = Console(highlight=False, soft_wrap=True)
    for each in lines(found):
        console.print(each)


def look(store: Store, flows: list[str], runs: int) -> Status:
    """Collect the status of a store, with at most `runs` of the latest runs of these flows."""
    working = list_active_stages(store)
    stages = totals(store)
    latest: list[Any] = []
    origin: str | None = None
    problem: str | None = None
    if runs:
        try:  # imported late: Prefect takes longer to import than all the rest
            origin, latest = import_module("lexloom.deployments.cli.runs").latest_runs(flows, runs)
        except OSError as error:
            problem = str(error)
    half_made = [folder for part in (BUILDING, SCRATCH) for folder in list_children(store.root / part)]
    return Status(
        store=store.root,
        at_work=working,
        interrupted=list_interrupted_stages(store, working),
        runs=latest,
        runs_from=origin,
        runs_problem=problem,
        stages=stages,
        artifacts=sum(stage.artifacts for stage in stages),
        bytes=sum(stage.bytes for stage in stages),
        unfinished_bytes=sum(measure_folder(folder)[1] for folder in half_made),
        free_bytes=shutil.disk_usage(existing(store.root)).free,
    )


def totals(store: Store) -> list[StageTotal]:
    """Return one entry per stage, in the order in which the stages were first built."""
    found: dict[str, StageTotal] = {}
    for manifest in store.manifests():
        each = found.setdefault(
            manifest.stage,
            StageTotal(stage=manifest.stage, artifacts=0, bytes=0, latest=manifest.created),
        )
        each.artifacts += 1
        each.bytes += store.size(manifest)
        each.latest = manifest.created
    return list(found.values())


def existing(folder: Path) -> Path:
    """Return the folder, or its nearest parent that exists."""
    return next(each for each in (folder, *folder.parents) if each.exists())


# printing


def lines(found: Status) -> Iterator[Text]:
    yield Text("active stages", style="bold")
    if not found.at_work:
        yield Text("  none", style="dim")
    for work in found.at_work:
        yield named(work.stage, how_far(work), "cyan") + Text(doing(work), style="dim")
    for work in found.interrupted:
        yield named(work.stage, how_far(work), "yellow") + Text(left_behind(work), style="dim")
    if found.runs_from or found.runs_problem:
        yield Text("\nruns", style="bold") + Text(f"  {found.runs_from or ''}", style="dim")
    if found.runs_problem:
        yield Text(f"  {found.runs_problem}", style="yellow")
    elif found.runs_from and not found.runs:
        yield Text("  none yet", style="dim")
    for run in found.runs:
        yield run_line(run, working=bool(found.at_work))
    yield Text("\nstore", style="bold") + Text(f"  {found.store}", style="dim")
    for stage in found.stages:
        artifacts = f"{counted(stage.artifacts, 'artifacts'):>14}"
        yield named(stage.stage, f"{artifacts} {size(stage.bytes):>8}") + Text(
            f"   latest {ago(stage.latest.timestamp())}", style="dim"
        )
    unfinished = f", {size(found.unfinished_bytes)} unfinished" if found.unfinished_bytes else ""
    yield Text(
        f"  {counted(found.artifacts, 'artifacts')}, {size(found.bytes)}{unfinished};"
        f" {size(found.free_bytes)} of disk space free"
    )


def named(name: str, figures: str, style: str = "") -> Text:
    return Text(f"  {name:<{NAME_WIDTH}} ") + Text(figures, style=style)


def how_far(work: StageActivity) -> str:
    if work.progress is None and work.since is None:  # interrupted before its first progress record
        return f"{'':>8}"
    if work.progress is None:
        return f"{duration(time.time() - (work.since or 0)):>8}"
    return f"{compute_progress_share(work.progress):>7.0%} "


def doing(work: StageActivity) -> str:
    """Return the progress of an active stage, its process and its host."""
    if work.progress is not None:
        figures = f"{format_progress(work.progress, 'examples')} · updated {ago(work.progress_at or 0)}"
    else:
        figures = f"{counted(work.files, 'files')}, {size(work.bytes)} so far"
    where = "" if work.host == host_name() else f" on {work.host}"
    return f"  {figures} · process {work.pid}{where}"


def left_behind(work: StageActivity) -> str:
    step = max(work.checkpoint or 0, work.progress["step"] if work.progress else 0)
    further = "restart it" if work.checkpoint is None else f"resume from step {work.checkpoint:,}"
    return f"  interrupted {ago(work.left_at or 0)} at step {step:,}; run the same command to {further}"


def run_line(run: Any, working: bool) -> Text:
    """Format a run and its state; a run that is 'Running' while no stage is active may have been killed."""
    ended = run.ended or datetime.now(UTC)
    text = named(run.flow, f"{run.state:<10}", COLOURS.get(run.state, "yellow"))
    text.append(f" {duration((ended - run.started).total_seconds()):>11}")
    text.append(f"   {ago(run.started.timestamp()):<14} {run.name}", style="dim")
    if run.state == "Running" and not working:
        text.append("   no active stage in this store", style="yellow")
    elif run.state in ("Failed", "Crashed") and run.message:
        message = clipped(run.message.removeprefix(PREFIX), MESSAGE_WIDTH)
        text.append(f"\n  {'':{NAME_WIDTH}} {message}", style="dim")
    return text


def ago(moment: float) -> str:
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
    return f"{seconds:.0f} s ago"
