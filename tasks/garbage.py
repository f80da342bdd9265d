"""Garbage collection: what nobody needs leaves the store, beside runs that are at work in it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.artifacts import Manifest, Store
from tasks.files import children, contents, newest_change, printable, remove
from tasks.store_folder import BUILDING, SCRATCH, Building, moved_aside_at

ABANDONED_AFTER_SECONDS = 7 * 24 * 3600


def collect_garbage(store: Store, keep: int, dry_run: bool = False) -> list[tuple[str, int]]:
    """Removes what nobody needs: returns (what, bytes) of each thing removed.

    Kept are the `keep` most recently used artifacts of every stage, those that a run at work has used so
    far, and all that they were made from.
    Half-built folders go when the process that made them is gone (after a week where it ran on another
    machine); scratch folders when their artifact stands, or after a week; what was moved aside after a week.
    """
    manifests = {manifest.key: manifest for manifest in store.manifests()}
    needed = needed_keys(store, manifests, keep)
    removed = []
    for manifest in manifests.values():
        if manifest.key in needed:
            continue
        with store.unless_held(manifest.stage, manifest.key) as free:
            if free:
                removed.append((f"{manifest.stage}/{manifest.key}", store.size(manifest)))
                if not dry_run:
                    store.discard(manifest.stage, manifest.key)
    aside = [path for path in children(store.root) if moved_aside_at(path) is not None]
    for path in [*children(store.root / BUILDING), *children(store.root / SCRATCH), *aside]:
        with if_abandoned(store, path) as abandoned:
            if abandoned:
                removed.append((printable(str(path.relative_to(store.root))), contents(path)[1]))
                if not dry_run:
                    remove(path)
    return removed


def needed_keys(store: Store, manifests: dict[str, Manifest], keep: int) -> set[str]:
    """The keys of what is kept: the last used of each stage, what is held, and what these were made from."""
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
        with store.unless_held(manifest.stage, manifest.key) as free:
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
def if_abandoned(store: Store, path: Path) -> Iterator[bool]:
    """Yield whether a path below `.building` or `.scratch`, or one that was moved aside, is no longer needed.

    A scratch folder stays locked meanwhile, so that no build can begin to use it.
    """
    since = moved_aside_at(path)
    old = time.time() - (newest_change(path) if since is None else since) > ABANDONED_AFTER_SECONDS
    if path.parent.name == SCRATCH:
        stage, _, key = path.name.rpartition("-")
        with store.lock(path.name, wait=False) as unused:
            yield unused and (old or store.manifest(stage, key) is not None)
    elif path.parent.name == BUILDING and (made := Building.of(path)) is not None and made.alive is not None:
        yield not made.alive
    else:
        yield old
