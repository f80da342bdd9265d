"""Lineage: the input content that an artifact was built from, and checks of inputs before each build.

Every artifact records the content of each input artifact: a digest of the parent's file list and summary,
taken after the parent's files were verified against that list. So damaged files are never read, and an
artifact whose parent was rebuilt with different content is detected.
"""

import json
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from lexloom.tasks.store.artifacts import MANIFEST, Artifact, InputEntry, Manifest, Store, Verification
from lexloom.tasks.store.file_access import FILE, file_kind, list_children, read_regular, remove, walk

ATTEMPTS = 3
SCRATCH_INPUTS = "inputs.json"  # in a scratch folder: the input content that its files were computed from
SHOWN_KEY = 8  # characters


class Input(Protocol):
    """An input of a stage: an `Artifact`, or a source with its own key."""

    @property
    def key(self) -> str: ...


@runtime_checkable
class FileInput(Protocol):
    """A source whose key is computed from file digests."""

    def file_digests(self) -> dict[str, str]:
        """Return name -> digest."""

    def verify(self) -> None:
        """Compare the files with their digests; raise ValueError with the name of one that differs."""


class Call(NamedTuple):
    """The call that produced an artifact in this run: its inputs, and a function that rebuilds it."""

    inputs: tuple[Input, ...]
    rebuild: Callable[[str], object]


Calls = Mapping[tuple[str, str], Call]


def check_inputs(store: Store, inputs: tuple[Any, ...], calls: Calls) -> tuple[Any, ...]:
    """Verify the inputs of a build byte by byte, and return them.

    Artifacts that are damaged or outdated are rebuilt first.

    Raises:
        ValueError: such an artifact was not made in this run, so it can't be rebuilt.
        OSError: an artifact is damaged again right after it was rebuilt.
    """
    artifacts = [entry for entry in inputs if isinstance(entry, Artifact)]
    for entry in inputs:
        if isinstance(entry, FileInput):
            entry.verify()
    for _ in range(ATTEMPTS):
        renewed = [rebuild_if_needed(store, artifact, "full", calls) for artifact in artifacts]
        if not any(renewed):
            return tuple(reload(store, entry) if isinstance(entry, Artifact) else entry for entry in inputs)
    raise OSError(
        f"{short_name(artifacts[0])} or another input was damaged again right after it was rebuilt: check the"
        f" disk of the store {store.root}"
    )


def rebuild_if_needed(
    store: Store, artifact: Artifact, verification: Verification | None, calls: Calls
) -> bool:
    """Rebuild an artifact if it is damaged or outdated, after its inputs; return whether it was rebuilt.

    Without `verification`, its own files are not checked.
    """
    place = artifact.stage, artifact.key
    call = calls.get(place)
    parents = [entry for entry in call.inputs if isinstance(entry, Artifact)] if call else []
    renewed = [rebuild_if_needed(store, parent, None, calls) for parent in parents]
    reason = (store.find_damage(*place, verification) if verification else None) or find_outdated_input(
        store, *place
    )
    if reason is None:
        return any(renewed)
    if call is None:
        raise ValueError(
            f"{short_name(artifact)} can't be used ({reason}): rerun the command that built it, or delete it"
        )
    call.rebuild(reason)
    return True


def reload(store: Store, artifact: Artifact) -> Artifact:
    return store.artifact(store.read_manifest(artifact.stage, artifact.key))


def find_outdated_input(store: Store, stage: str, key: str) -> str | None:
    """Describe the first input whose content in the store differs from what this artifact was built from."""
    manifest = store.manifest(stage, key)
    for entry in manifest.inputs if manifest else []:
        parent = store.manifest(entry.stage, entry.key) if entry.stage else None
        if manifest and parent and (difference := describe_difference(manifest, entry, parent)):
            return difference
    return None


def describe_difference(manifest: Manifest, entry: InputEntry, parent: Manifest) -> str | None:
    """Describe why a parent may differ from what an artifact was built from; None if it does not.

    An artifact of format 1 does not record what it read. It is assumed to have read the current parent,
    unless the parent is newer: parents are rebuilt only if they were missing or damaged.
    """
    rebuilt = f"its input {entry.stage}/{entry.key[:SHOWN_KEY]} was rebuilt later"
    if entry.content:
        return f"{rebuilt} with different content" if entry.content != parent.content else None
    return f"{rebuilt}, possibly with different content" if parent.created > manifest.created else None


def short_name(artifact: Artifact | Manifest) -> str:
    return f"{artifact.stage}/{artifact.key[:SHOWN_KEY]}"


@contextmanager
def require_unchanged(store: Store, reader: str, inputs: tuple[Any, ...]) -> Iterator[None]:
    """Check that artifacts did not change while `reader` read them; raise OSError if they did.

    Only artifacts whose file status has changed are compared byte by byte.
    """
    artifacts = [entry for entry in inputs if isinstance(entry, Artifact)]
    before = [(read_status(artifact), store.manifest(artifact.stage, artifact.key)) for artifact in artifacts]
    yield
    for artifact, (status, manifest) in zip(artifacts, before, strict=True):
        if read_status(artifact) == status:
            continue
        after = store.manifest(artifact.stage, artifact.key)
        damage = store.find_damage(artifact.stage, artifact.key, "full")
        if damage or not manifest or not after or manifest.content != after.content:
            raise OSError(
                f"{short_name(artifact)} changed while {reader} read it ({damage or 'it was rebuilt'}):"
                " rerun the command"
            )


def clear_stale_scratch(folder: Path, inputs: list[InputEntry]) -> bool:
    """Empty a scratch folder that was computed from different input content; return whether it was emptied.

    The key is not enough, since a rebuilt parent may have different content under the same key.
    """
    contents = {entry.name: entry.content for entry in inputs if entry.stage}
    if not contents:
        return False
    record, text = folder / SCRATCH_INPUTS, json.dumps(contents)
    left = list_children(folder)
    other = bool(left) and (file_kind(record) != FILE or read_regular(record) != text.encode())
    for path in left if other else []:
        remove(path)
    record.write_text(text)
    return other


def read_status(artifact: Artifact) -> list[tuple[str, int, int, int]]:
    """Return the file system's metadata of an artifact's files, which changes with every write."""
    return sorted(
        (str(path), status.st_size, status.st_ino, status.st_ctime_ns)
        for path, status in walk(artifact.folder)
        if path.name != MANIFEST and not stat.S_ISDIR(status.st_mode)
    )
