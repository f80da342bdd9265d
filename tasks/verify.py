"""Verification of a store: files are compared with their manifest, and manifests with their parents'."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tasks.artifacts import Manifest, Store
from tasks.files import FILE, children, kind, printable
from tasks.lineage import SHOWN_KEY, difference_of

Place = tuple[str, str]  # stage and key


class Finding(NamedTuple):
    """What verification found in one place of the store.

    Attributes:
        name: the place, relative to the store.
        damage: what is wrong with its files or its manifest.
        outdated: why it may not be what its key promises, although it is as it was written.
        unrecorded: whether it does not record what it read (format 1).
    """

    name: str
    damage: str | None = None
    outdated: str | None = None
    unrecorded: bool = False


def verify(store: Store, places: Iterable[Place]) -> Iterator[Finding]:
    """Reads every file of these artifacts. What vanishes meanwhile is left out."""
    damaged = {place: damage for place in places if (damage := settled_damage(store, place)) is not None}
    manifests = {(manifest.stage, manifest.key): manifest for manifest in store.manifests()}
    suspicions = Suspicions(manifests, {place for place, damage in damaged.items() if damage})
    for place, damage in damaged.items():
        manifest = manifests.get(place)
        unrecorded = manifest is not None and any(each.stage and not each.content for each in manifest.inputs)
        yield Finding(printable("/".join(place)), damage or None, suspicions.of(place), unrecorded)


def settled_damage(store: Store, place: Place) -> str | None:
    """The damage of an artifact, "" for none; None where it is not there any more.

    One that another run replaced meanwhile is looked at again.
    """
    while (before := identity(store.root.joinpath(*place))) is not None:
        damage = store.damage(*place, "full")
        if damage is None or identity(store.root.joinpath(*place)) == before:
            return damage or ""
    return None


def identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def obstacles(store: Store) -> Iterator[Finding]:
    """What is in the place of a stage's folder. A file counts if an artifact names such a stage."""
    stages = {entry.stage for manifest in store.manifests() for entry in manifest.inputs}
    for path in children(store.root):
        found = store.obstacle(path) if not path.name.startswith(".") else None
        if found and (kind(path) != FILE or path.name in stages):
            yield Finding(printable(path.name), damage=found)


class Suspicions:
    """Which artifacts may have been made from something else than what stands in the store."""

    def __init__(self, manifests: dict[Place, Manifest], damaged: set[Place]) -> None:
        self._manifests = manifests
        self._damaged = damaged
        self._known: dict[Place, str | None] = {}

    def of(self, place: Place) -> str | None:
        if place not in self._known:
            self._known[place] = None  # a manifest that is its own ancestor ends here
            self._known[place] = self._find(place)
        return self._known[place]

    def _find(self, place: Place) -> str | None:
        manifest = self._manifests.get(place)
        for entry in manifest.inputs if manifest else []:
            above, parent = (entry.stage, entry.key), self._manifests.get((entry.stage, entry.key))
            name = f"{entry.stage}/{entry.key[:SHOWN_KEY]}"
            if manifest and parent and (difference := difference_of(manifest, entry, parent)):
                return difference
            if above in self._damaged and not entry.content:
                return f"its input {name} is damaged, and may already have been when it was read"
            if self.of(above):
                return f"its input {name} is outdated"
        return None
