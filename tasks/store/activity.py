"""What is being made in a store just now, as its own files tell: no server is asked.

A stage at work has a folder below `.building`, whose name says since when and in which process. One that
trains keeps its checkpoints and its latest figures in a scratch folder, which outlives it.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lexloom.tasks.display.formatting import duration, short
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.file_access import children, contents, read_regular
from lexloom.tasks.store.layout import BUILDING, SCRATCH, Building
from lexloom.training.progress import PROGRESS

CHECKPOINTS = "checkpoints"  # in a training's scratch folder


class Work(BaseModel):
    """A stage at work, or one that was interrupted and has left something to go on from."""

    stage: str
    key: str
    host: str | None = None
    pid: int | None = None
    since: float | None = None  # seconds since 1970; None where it was interrupted
    files: int
    bytes: int
    progress: dict[str, Any] | None  # of a training: its last `Progress`
    progress_at: float | None
    checkpoint: int | None  # the step of a training's newest one
    left_at: float | None = None  # if it was interrupted: the time of its last write


def at_work(store: Store) -> list[Work]:
    """The stages at work in a store, the oldest first.

    One whose process is gone is none. On another machine that can't be seen from here: such a one is listed.
    """
    found = []
    for folder in children(store.root / BUILDING):
        made = Building.of(folder)
        if made is None or made.alive is False:
            continue
        if made.stage == "discarded" or made.stage.endswith("-scratch"):
            continue
        files, size = contents(folder)
        progress, when = last_progress(store, made.stage, made.key)
        if when is not None and when < made.since:  # an earlier attempt's
            progress = when = None
        found.append(
            Work(
                stage=made.stage,
                key=made.key,
                host=made.host,
                pid=made.pid,
                since=made.since,
                files=files,
                bytes=size,
                progress=progress,
                progress_at=when,
                checkpoint=newest_checkpoint(store, made.stage, made.key),
            )
        )
    return sorted(found, key=lambda work: work.since or 0.0)


def interrupted(store: Store, working: list[Work]) -> list[Work]:
    """Interrupted training runs: those that left progress figures or a checkpoint."""
    busy = {(work.stage, work.key) for work in working}
    found = []
    for folder in children(store.root / SCRATCH):
        stage, _, key = folder.name.rpartition("-")
        progress, when = last_progress(store, stage, key)
        checkpoint = newest_checkpoint(store, stage, key)
        began = progress is not None or checkpoint is not None
        if began and (stage, key) not in busy and not store.folder(stage, key).exists():
            files, size = contents(folder)
            found.append(
                Work(
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
    """The time of the last change to a folder's entries; 0 if there is no folder."""
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def last_progress(store: Store, stage: str, key: str) -> tuple[dict[str, Any] | None, float | None]:
    """The last figures of a training, and when they were written."""
    path = store.root / SCRATCH / f"{stage}-{key}" / PROGRESS
    try:
        return json.loads(read_regular(path)), path.stat().st_mtime
    except (OSError, ValueError):
        return None, None


def newest_checkpoint(store: Store, stage: str, key: str) -> int | None:
    """The step of a training's newest checkpoint, by its name: `step-0000001000`."""
    folders = children(store.root / SCRATCH / f"{stage}-{key}" / CHECKPOINTS)
    steps = [path.name.removeprefix("step-") for path in folders if path.name.startswith("step-")]
    return max((int(step) for step in steps if step.isdecimal()), default=None)


def share_done(point: dict[str, Any]) -> float:
    """The share of training that is done, by the limit that will end it (`Progress.share`)."""
    return point["share"] if "share" in point else point["examples"] / point["total_examples"]


def line(point: dict[str, Any], unit: str) -> str:
    """A training's `Progress` in words: `16.8M of 40.9M pairs · epoch 3 · loss 1.234 · ...`."""
    done, total, seconds = point["examples"], point["total_examples"], point["seconds"]
    share = share_done(point)
    figures = [
        f"{short(done)} of {short(total)} {unit}",
        f"epoch {point['epoch'] + 1}",
        f"loss {point['loss']:.3f}",
        f"rate {point['learning_rate']:.2g}",
        f"{short(done / seconds)}/s",
    ]
    if share < 1:
        figures.append(f"about {duration((1 - share) * seconds / share)} left")
    return " · ".join(figures)
