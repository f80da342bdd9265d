"""Running and interrupted stages of a store, read from its files without a server.

A running stage has a folder below `.building`, whose name contains its process and start time. A training
stage keeps its checkpoints and latest progress in a scratch folder, which is kept if training is interrupted.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.file_access import list_children, measure_folder, read_regular
from lexloom.tasks.store.layout import BUILDING, SCRATCH, BuildFolder
from lexloom.training.progress import PROGRESS

CHECKPOINTS = "checkpoints"  # in the scratch folder of a training stage


class StageActivity(BaseModel):
    """A running stage, or an interrupted one that can be resumed."""

    stage: str
    key: str
    host: str | None = None
    pid: int | None = None
    since: float | None = None  # seconds since 1970; None if it was interrupted
    files: int
    bytes: int
    progress: dict[str, Any] | None  # the last `Progress` of a training stage
    progress_at: float | None
    checkpoint: int | None  # the step of a training stage's newest checkpoint
    left_at: float | None = None  # if it was interrupted: the time of its last write


def list_active_stages(store: Store) -> list[StageActivity]:
    """List the running stages of a store, oldest first.

    A stage whose process has exited is omitted. Processes of other machines cannot be checked, so their
    stages are always listed.
    """
    found = []
    for folder in list_children(store.root / BUILDING):
        build = BuildFolder.parse(folder)
        if build is None or build.alive is False:
            continue
        if build.stage == "discarded" or build.stage.endswith("-scratch"):
            continue
        files, size = measure_folder(folder)
        progress, when = read_progress(store, build.stage, build.key)
        if when is not None and when < build.since:  # from an earlier attempt
            progress = when = None
        found.append(
            StageActivity(
                stage=build.stage,
                key=build.key,
                host=build.host,
                pid=build.pid,
                since=build.since,
                files=files,
                bytes=size,
                progress=progress,
                progress_at=when,
                checkpoint=find_newest_checkpoint(store, build.stage, build.key),
            )
        )
    return sorted(found, key=lambda work: work.since or 0.0)


def list_interrupted_stages(store: Store, working: list[StageActivity]) -> list[StageActivity]:
    """List interrupted training stages: those with progress or a checkpoint, but no running process."""
    busy = {(work.stage, work.key) for work in working}
    found = []
    for folder in list_children(store.root / SCRATCH):
        stage, _, key = folder.name.rpartition("-")
        progress, when = read_progress(store, stage, key)
        checkpoint = find_newest_checkpoint(store, stage, key)
        began = progress is not None or checkpoint is not None
        if began and (stage, key) not in busy and not store.folder(stage, key).exists():
            files, size = measure_folder(folder)
            found.append(
                StageActivity(
                    stage=stage,
                    key=key,
                    files=files,
                    bytes=size,
                    progress=progress,
                    progress_at=when,
                    checkpoint=checkpoint,
                    left_at=max(when or 0.0, read_last_change(folder / CHECKPOINTS)),
                )
            )
    return found


def read_last_change(folder: Path) -> float:
    """Return the time of the last change to a folder's entries; 0 if there is no folder."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def read_progress(store: Store, stage: str, key: str) -> tuple[dict[str, Any] | None, float | None]:
    """Read the last progress of a training stage and its time; (None, None) if there is none."""
    path = store.root / SCRATCH / f"{stage}-{key}" / PROGRESS
    try:
        return json.loads(read_regular(path)), path.stat().st_mtime
    except (OSError, ValueError):
        return None, None


def find_newest_checkpoint(store: Store, stage: str, key: str) -> int | None:
    """Return the step of the newest checkpoint, from its name (`step-0000001000`); None without any."""
    folders = list_children(store.root / SCRATCH / f"{stage}-{key}" / CHECKPOINTS)
    steps = [path.name.removeprefix("step-") for path in folders if path.name.startswith("step-")]
    return max((int(step) for step in steps if step.isdecimal()), default=None)
