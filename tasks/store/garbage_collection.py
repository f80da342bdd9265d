"""Garbage collection: removes unused artifacts from the store, safely while runs are using it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.file_access import (
    find_last_modification,
    list_children,
    measure_folder,
    printable,
    remove,
)
from lexloom.tasks.store.layout import BUILDING, SCRATCH, BuildFolder, read_displacement_time

ABANDONED_AFTER_SECONDS = 7 * 24 * 3600


def collect_garbage(store: Store, keep: int, dry_run: bool = False) -> list[tuple[str, int]]:
    """Remove what is no longer needed; return the (name, bytes) of each removed item.

    The `keep` most recently used artifacts of every stage, the artifacts that active runs have used so far,
    and all of their inputs are kept. Half-built folders are removed when the process that made them has
    exited (after a week if it ran on another machine), scratch folders when their artifact exists or after a
    week, and displaced files after a week.
    """
    manifests = {manifest.key: manifest for manifest in store.manifests()}
    needed = find_needed_keys(store, manifests, keep)
    removed = []
    for manifest in manifests.values():
        if manifest.key in needed:
            continue
        with store.lock_unless_held(manifest.stage, manifest.key) as free:
            if free:
                removed.append((f"{manifest.stage}/{manifest.key}", store.size(manifest)))
                if not dry_run:
                    store.discard(manifest.stage, manifest.key)
    aside = [path for path in list_children(store.root) if read_displacement_time(path) is not None]
    for path in [*list_children(store.root / BUILDING), *list_children(store.root / SCRATCH), *aside]:
        with check_abandoned(store, path) as abandoned:
            if abandoned:
                removed.append((printable(str(path.relative_to(store.root))), measure_folder(path)[1]))
                if not dry_run:
                    remove(path)
    return removed


def find_needed_keys(store: Store, manifests: dict[str, Manifest], keep: int) -> set[str]:
    """Return the keys of each stage's last used artifacts, of held artifacts, and of all their inputs."""
    by_stage: dict[str, list[tuple[float, Manifest]]] = {}
    for manifest in manifests.values():
        used = store.last_used(manifest.stage, manifest.key)
        by_stage.setdefault(manifest.stage, []).append((used, manifest))
    waiting = [
        manifest
        for group in by_stage.values()
        for _, manifest in sorted(group, key=lambda pair: pair[0], reverse=True)[:keep]
    ]
    for manifest in manifests.values():
        with store.lock_unless_held(manifest.stage, manifest.key) as free:
            if not free:
                waiting.append(manifest)
    needed: set[str] = set()
    while waiting:
        manifest = waiting.pop()
        if manifest.key not in needed:
            needed.add(manifest.key)
            waiting += [manifests[entry.key] for entry in manifest.inputs if entry.key in manifests]
    return needed


@contextmanager
def check_abandoned(store: Store, path: Path) -> Iterator[bool]:
    """Yield whether a path below `.building` or `.scratch`, or a displaced one, is no longer needed.

    A scratch folder is locked inside the block, so that no build can start to use it.
    """
    since = read_displacement_time(path)
    old = time.time() - (find_last_modification(path) if since is None else since) > ABANDONED_AFTER_SECONDS
    if path.parent.name == SCRATCH:
        stage, _, key = path.name.rpartition("-")
        with store.lock(path.name, wait=False) as unused:
            yield unused and (old or store.manifest(stage, key) is not None)
    elif (
        path.parent.name == BUILDING
        and (build := BuildFolder.parse(path)) is not None
        and build.alive is not None
    ):
        yield not build.alive
    else:
        yield old
