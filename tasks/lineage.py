"""From which bytes an artifact was made, and how its inputs are checked before a stage reads them.

Every artifact records the content of each artifact that it was made from: a digest of the parent's file list
and summary, taken after the parent's files were compared with that list. So bytes that were damaged in the
store are never read, and an artifact whose parent was built again with other content is recognised.
"""

import json
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tasks.artifacts import MANIFEST, Artifact, InputEntry, Manifest, Store, Verification
from tasks.files import FILE, children, kind, read_regular, remove, walk

ATTEMPTS = 3
SCRATCH_INPUTS = "inputs.json"  # in a scratch folder: the content that its pieces were made from
SHOWN_KEY = 8  # characters


class Input(Protocol):
    """What a stage can be made from: an `Artifact`, or a source with a key of its own."""

    @property
    def key(self) -> str: ...


@runtime_checkable
class OfFiles(Protocol):
    """A source whose key is made of digests of files."""

    def file_digests(self) -> dict[str, str]:
        """Name -> digest."""

    def verify(self) -> None:
        """Compares the files with their digests; ValueError names one that differs."""


class Call(NamedTuple):
    """How an artifact came into this run: its inputs, and what builds it again for the reason given."""

    inputs: tuple[Input, ...]
    rebuild: Callable[[str], object]


Calls = Mapping[tuple[str, str], Call]


def check_inputs(store: Store, inputs: tuple[Any, ...], calls: Calls) -> tuple[Any, ...]:
    """The inputs of a build, with every byte as it was written.

    An artifact that is damaged, or that was made from something else than what stands in the store now, is
    built again first.

    Raises:
        ValueError: such an artifact was not made in this run, so that nobody knows how to make it.
        OSError: it is damaged again at once.
    """
    artifacts = [entry for entry in inputs if isinstance(entry, Artifact)]
    for entry in inputs:
        if isinstance(entry, OfFiles):
            entry.verify()
    for _ in range(ATTEMPTS):
        renewed = [renew(store, artifact, "full", calls) for artifact in artifacts]
        if not any(renewed):
            return tuple(current(store, entry) if isinstance(entry, Artifact) else entry for entry in inputs)
    raise OSError(
        f"{name_of(artifacts[0])} or another input was damaged again right after it was rebuilt: check the"
        f" disk of the store {store.root}"
    )


def renew(store: Store, artifact: Artifact, verification: Verification | None, calls: Calls) -> bool:
    """Builds an artifact again if that is necessary, after what it was made from; returns whether it was.

    Without `verification` its files don't matter, only what it was made from.
    """
    place = artifact.stage, artifact.key
    call = calls.get(place)
    parents = [entry for entry in call.inputs if isinstance(entry, Artifact)] if call else []
    renewed = [renew(store, parent, None, calls) for parent in parents]
    reason = (store.damage(*place, verification) if verification else None) or outdated(store, *place)
    if reason is None:
        return any(renewed)
    if call is None:
        raise ValueError(
            f"{name_of(artifact)} can't be used ({reason}): rerun the command that built it, or delete it"
        )
    call.rebuild(reason)
    return True


def current(store: Store, artifact: Artifact) -> Artifact:
    return store.artifact(store.read_manifest(artifact.stage, artifact.key))


def outdated(store: Store, stage: str, key: str) -> str | None:
    """Which parent stands in the store with another content than this artifact was made from, in words."""
    manifest = store.manifest(stage, key)
    for entry in manifest.inputs if manifest else []:
        parent = store.manifest(entry.stage, entry.key) if entry.stage else None
        if manifest and parent and (difference := difference_of(manifest, entry, parent)):
            return difference
    return None


def difference_of(manifest: Manifest, entry: InputEntry, parent: Manifest) -> str | None:
    """Why a parent may not be what an artifact was made from, in words.

    An artifact of format 1 does not record what it read: it is assumed to have read what stands there now,
    unless the parent is the younger one. A parent is built again only where it was missing or damaged.
    """
    rebuilt = f"its input {entry.stage}/{entry.key[:SHOWN_KEY]} was rebuilt later"
    if entry.content:
        return f"{rebuilt} with different content" if entry.content != parent.content else None
    return f"{rebuilt}, possibly with different content" if parent.created > manifest.created else None


def name_of(artifact: Artifact | Manifest) -> str:
    return f"{artifact.stage}/{artifact.key[:SHOWN_KEY]}"


@contextmanager
def unchanged(store: Store, reader: str, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Makes sure that artifacts were the same while `reader` read them; OSError with one sentence if not.

    Only what has another status afterwards is compared byte by byte.
    """
    artifacts = [entry for entry in inputs if isinstance(entry, Artifact)]
    before = [(status_of(artifact), store.manifest(artifact.stage, artifact.key)) for artifact in artifacts]
    yield
    for artifact, (status, manifest) in zip(artifacts, before, strict=True):
        if status_of(artifact) == status:
            continue
        after = store.manifest(artifact.stage, artifact.key)
        damage = store.damage(artifact.stage, artifact.key, "full")
        if damage or not manifest or not after or manifest.content != after.content:
            raise OSError(
                f"{name_of(artifact)} changed while {reader} read it ({damage or 'it was rebuilt'}):"
                " rerun the command"
            )


def bind_scratch(folder: Path, inputs: list[InputEntry]) -> bool:
    """Empties a scratch folder whose pieces were made from other content; returns whether it did.

    A key does not tell: a parent that was built again may have other content under the same one.
    """
    contents = {entry.name: entry.content for entry in inputs if entry.stage}
    if not contents:
        return False
    record, text = folder / SCRATCH_INPUTS, json.dumps(contents)
    left = children(folder)
    other = bool(left) and (kind(record) != FILE or read_regular(record) != text.encode())
    for path in left if other else []:
        remove(path)
    record.write_text(text)
    return other


def status_of(artifact: Artifact) -> list[tuple[str, int, int, int]]:
    """What the file system says of an artifact's files: it differs after every write."""
    return sorted(
        (str(path), status.st_size, status.st_ino, status.st_ctime_ns)
        for path, status in walk(artifact.folder)
        if path.name != MANIFEST and not stat.S_ISDIR(status.st_mode)
    )
