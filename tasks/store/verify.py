"""Verification of a store: compares files with their manifests, and manifests with those of their inputs."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.file_access import FILE, file_kind, list_children, printable
from lexloom.tasks.store.lineage import SHOWN_KEY, describe_difference

Place = tuple[str, str]  # stage and key


class Finding(NamedTuple):
    """The result of verifying one artifact, or another path in the store.

    Attributes:
        name: the path, relative to the store.
        damage: what is wrong with its files or its manifest.
        outdated: why its inputs may have changed since it was built, although its files are intact.
        unrecorded: whether its manifest lacks the content of its inputs (format 1).
    """

    name: str
    damage: str | None = None
    outdated: str | None = None
    unrecorded: bool = False


def verify(store: Store, places: Iterable[Place]) -> Iterator[Finding]:
    """Read every file of these artifacts and yield the findings; artifacts that disappear are skipped."""
    damaged = {place: damage for place in places if (damage := check_damage(store, place)) is not None}
    manifests = {(manifest.stage, manifest.key): manifest for manifest in store.manifests()}
    outdated = OutdatedArtifacts(manifests, {place for place, damage in damaged.items() if damage})
    for place, damage in damaged.items():
        manifest = manifests.get(place)
        unrecorded = manifest is not None and any(each.stage and not each.content for each in manifest.inputs)
        yield Finding(printable("/".join(place)), damage or None, outdated.reason(place), unrecorded)


def check_damage(store: Store, place: Place) -> str | None:
    """Describe an artifact's damage ("" for none); None if it no longer exists.

    If another run replaces the artifact during the check, the new one is checked.
    """
    while (before := read_identity(store.root.joinpath(*place))) is not None:
        damage = store.find_damage(*place, "full")
        if damage is None or read_identity(store.root.joinpath(*place)) == before:
            return damage or ""
    return None


def read_identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def find_obstacles(store: Store) -> Iterator[Finding]:
    """Yield what blocks the path of a stage's folder. A file counts only if an artifact has such a stage."""
    stages = {entry.stage for manifest in store.manifests() for entry in manifest.inputs}
    for path in list_children(store.root):
        found = store.obstacle(path) if not path.name.startswith(".") else None
        if found and (file_kind(path) != FILE or path.name in stages):
            yield Finding(printable(path.name), damage=found)


class OutdatedArtifacts:
    """Finds artifacts whose inputs may differ from those now in the store."""

    def __init__(self, manifests: dict[Place, Manifest], damaged: set[Place]) -> None:
        self._manifests = manifests
        self._damaged = damaged
        self._known: dict[Place, str | None] = {}

    def reason(self, place: Place) -> str | None:
        if place not in self._known:
            self._known[place] = None  # a manifest that is its own ancestor ends here
            self._known[place] = self._find(place)
        return self._known[place]

    def _find(self, place: Place) -> str | None:
        manifest = self._manifests.get(place)
        for entry in manifest.inputs if manifest else []:
            place_of_parent, parent = (entry.stage, entry.key), self._manifests.get((entry.stage, entry.key))
            name = f"{entry.stage}/{entry.key[:SHOWN_KEY]}"
            if manifest and parent and (difference := describe_difference(manifest, entry, parent)):
                return difference
            if place_of_parent in self._damaged and not entry.content:
                return f"its input {name} is damaged, and may already have been when it was read"
            if self.reason(place_of_parent):
                return f"its input {name} is outdated"
        return None
