"""The store: a folder of artifacts, each complete or nonexistent.

An artifact is the folder `<store>/<stage>/<key>/`. Its `manifest.json` is written last, and the folder is
then renamed into place, so a readable manifest means a finished artifact. The key is a digest of the stage,
its version, its config and the keys of its inputs. Source code, time and machine are not part of it: the same
inputs have the same key on every machine.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import xxhash
from pydantic import BaseModel, Field, JsonValue
from pydantic_core import from_json

from lexloom.tasks.store.file_access import (
    FILE,
    digest_file,
    file_kind,
    find_unlisted_paths,
    is_inside,
    list_children,
    move,
    open_regular,
    printable,
    read_regular,
    remove,
    remove_empty_folders,
    walk,
)
from lexloom.tasks.store.layout import BUILDING, StoreFolder, unique_suffix

MANIFEST = "manifest.json"
KEY_LENGTH = 24
DIGEST_THREADS = 8

NORMALIZATION = "normalization"
Verification = Literal["size", "full"]
FIRST_OF_STAGE = (
    "no earlier artifact of this stage"  # the reason of a build when there is nothing to compare with
)


@dataclass(frozen=True)
class RunOnly:
    """Marks a config field that does not affect the result and is not part of the key.

    `when` restricts this to the configs for which it returns true.
    """

    when: Callable[[Any], bool] = lambda config: True


class Summary(BaseModel):
    """A stage's row counts and results, for the terminal, the manifest and the report."""

    rows_in: int = Field(ge=0, description="number of input rows")
    unit_in: str = Field(description="unit of input rows: 'documents', 'words', ...")
    rows: int = Field(ge=0, description="number of output rows")
    unit: str = Field(description="unit of output rows")
    dropped: dict[str, int] = Field(default={}, description="reason -> number of dropped input rows")
    notes: dict[str, int] = Field(default={}, description="what happened to rows that were kept -> count")
    facts: dict[str, JsonValue] = Field(default={}, description="values for later stages and for reports")


class Artifact(BaseModel):
    """A reference to the output of a finished stage: its folder and its summary, without the data."""

    stage: str
    key: str
    folder: Path
    summary: Summary

    @property
    def facts(self) -> dict[str, JsonValue]:
        return self.summary.facts

    @property
    def normalization(self) -> dict[str, JsonValue]:
        """The fact `normalization`: the rules of the underlying corpus; empty if unknown.

        Stages pass it on, so that a model's folder can record it.
        """
        return {NORMALIZATION: self.facts[NORMALIZATION]} if NORMALIZATION in self.facts else {}

    def files(self, pattern: str = "*.parquet") -> list[Path]:
        """List the artifact's files that match `pattern`, in order of name."""
        return sorted(self.folder.glob(pattern))


class FileEntry(BaseModel):
    name: str
    size: int
    xxh3: str


class InputEntry(BaseModel):
    name: str
    stage: str
    key: str
    content: str = ""  # for an artifact: its manifest's `content` when it was read
    description: dict[str, JsonValue] = {}  # for a source
    files: dict[str, str] = {}  # for a source: name -> digest; empty if it has no files or too many


class Manifest(BaseModel):
    """The complete description of an artifact, stored as `manifest.json`.

    Format 2 adds a digest of all other fields, so that a damaged manifest is detected.
    """

    format: Literal[1, 2] = 2
    stage: str
    version: int
    key: str
    created: datetime
    seconds: float
    why: list[str]
    config: dict[str, JsonValue]
    inputs: list[InputEntry]
    files: list[FileEntry]
    summary: Summary
    versions: dict[str, str]

    @property
    def content(self) -> str:
        """The digest of what later stages read: the files and the summary, without times and reasons."""
        return digest_values(self.model_dump(mode="json", include={"files", "summary"}))

    def to_json(self) -> str:
        values = from_json(self.model_dump_json())
        return json.dumps(values | {"digest": digest_values(values)}, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        """Parse a manifest; raise ValueError if `to_json` did not write this text."""
        values = from_json(text)
        manifest = cls.model_validate(values)
        if manifest.format > 1 and values.pop("digest", None) != digest_values(values):
            raise ValueError("the digest differs")
        return manifest


def digest_values(values: JsonValue) -> str:
    """Compute the xxh3 digest (128 bits, hexadecimal) of plain JSON values."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return xxhash.xxh3_128_hexdigest(text.encode())


def canonical(config: BaseModel) -> dict[str, JsonValue]:
    """Convert a config to plain JSON values, without the fields marked `RunOnly`."""
    values: dict[str, JsonValue] = {}
    dumped = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if any(isinstance(mark, RunOnly) and mark.when(config) for mark in field.metadata):
            continue
        value = getattr(config, name)
        values[name] = canonical(value) if isinstance(value, BaseModel) else dumped[name]
    return values


def digest_key(stage: str, stage_version: int, config: dict[str, JsonValue], input_keys: list[str]) -> str:
    """Compute an artifact's key, KEY_LENGTH hexadecimal digits, the same on every machine."""
    identity = {"stage": stage, "version": stage_version, "config": config, "inputs": input_keys}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class Store(StoreFolder):
    """All artifacts, each in `<stage>/<key>`."""

    def folder(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    # reading

    def list_places(self) -> list[tuple[str, str]]:
        """List (stage, key) of everything at an artifact's path, readable or not."""
        return [
            (stage.name, path.name)
            for stage in list_children(self.root)
            if not stage.name.startswith(".")
            for path in list_children(stage)
        ]

    def manifests(self) -> Iterator[Manifest]:
        """Yield every readable manifest of the store, oldest first."""
        found = [manifest for place in self.list_places() if (manifest := self.manifest(*place))]
        yield from sorted(found, key=lambda manifest: manifest.created)

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """Read the manifest of an artifact; None if it is missing or damaged."""
        try:
            return self.read_manifest(stage, key)
        except ValueError:
            return None

    def read_manifest(self, stage: str, key: str) -> Manifest:
        """Read the manifest of an artifact; raise ValueError if it is missing or damaged."""
        path = self.folder(stage, key) / MANIFEST
        try:
            found = file_kind(path)
            if found != FILE:
                raise ValueError(f"{MANIFEST} is {found or 'missing'}")
            text = read_regular(path)
        except OSError as error:
            raise ValueError(f"{MANIFEST} can't be read ({error.strerror})") from error
        try:
            manifest = Manifest.from_json(text)
        except ValueError as error:
            raise ValueError(f"{MANIFEST} is damaged") from error
        if (manifest.stage, manifest.key) != (stage, key):
            raise ValueError(f"{MANIFEST} belongs to {manifest.stage}/{manifest.key}")
        return manifest

    def is_occupied(self, stage: str, key: str) -> bool:
        """Return whether anything is at an artifact's path or blocks it."""
        return os.path.lexists(self.folder(stage, key)) or self.is_blocked(stage, key)

    def is_blocked(self, stage: str, key: str) -> bool:
        """Return whether something other than a folder is at the path of an artifact or of its stage."""
        return bool(self.obstacle(self.root / stage) or self.obstacle(self.folder(stage, key)))

    def find_damage(self, stage: str, key: str, verification: Verification = "size") -> str | None:
        """Describe how an artifact differs from its manifest; None if it does not.

        Verification "size" compares kinds and sizes of files, "full" also their digests.
        """
        folder = self.folder(stage, key)
        try:
            if obstacle := self.obstacle(self.root / stage) or self.obstacle(folder):
                return obstacle
            manifest = self.read_manifest(stage, key)
            for entry in manifest.files:
                if complaint := check_size(folder, entry):
                    return complaint
            if unlisted := find_unlisted_paths(folder, {MANIFEST, *(entry.name for entry in manifest.files)}):
                return f"{printable(unlisted[0])} is not listed in the manifest"
            if verification == "full":
                with ThreadPoolExecutor(DIGEST_THREADS) as pool:
                    complaints = pool.map(lambda entry: check_content(folder, entry), manifest.files)
                    return next(filter(None, complaints), None)
        except ValueError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename} can't be read ({error.strerror})"
        return None

    def artifact(self, manifest: Manifest) -> Artifact:
        folder = self.folder(manifest.stage, manifest.key)
        return Artifact(stage=manifest.stage, key=manifest.key, folder=folder, summary=manifest.summary)

    def size(self, manifest: Manifest) -> int:
        """Return the total size of an artifact's files in bytes."""
        return sum(entry.size for entry in manifest.files)

    # writing

    def commit(self, building: Path, manifest: Manifest) -> Artifact:
        """Write the manifest and rename `building` into place.

        If two runs build the same key at once, the first to finish wins, and the other's folder is deleted.
        An existing artifact that is damaged or was built from different input content is replaced.
        """
        remove_empty_folders(building)  # the manifest does not list them
        with (building / MANIFEST).open("w", encoding="utf-8") as file:
            file.write(manifest.to_json())
            file.flush()
            os.fsync(file.fileno())
        stage, key = manifest.stage, manifest.key
        final = self.folder(stage, key)
        with self.lock(f"commit-{stage}-{key}"):
            if self.is_occupied(stage, key):
                existing = self.manifest(stage, key)
                if (
                    existing
                    and have_same_inputs(existing, manifest)
                    and not self.find_damage(stage, key, "full")
                ):
                    remove(building)
                    return self.artifact(existing)
                self.discard(stage, key)
            self.make_folder(stage)
            move(building, final)
        return self.artifact(manifest)

    def discard(self, stage: str, key: str) -> None:
        """Remove an artifact atomically: it is renamed before it is deleted.

        Anything else at its path, or at its stage's, is moved aside and kept.
        """
        for path in (self.root / stage, self.folder(stage, key)):
            self.displace(path)
        discarded = self.make_folder(BUILDING) / f"discarded-{key}-{unique_suffix()}"
        with contextlib.suppress(FileNotFoundError):
            move(self.folder(stage, key), discarded)
            remove(discarded)

    # use and garbage collection

    @contextlib.contextmanager
    def hold(self, stage: str, key: str) -> Iterator[None]:
        """Protect an artifact from garbage collection; the system releases it when this process dies."""
        with open_regular(self.folder(stage, key) / MANIFEST) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def lock_unless_held(self, stage: str, key: str) -> Iterator[bool]:
        """Yield whether no process holds an artifact; inside the block, none can start to hold it."""
        with contextlib.ExitStack() as opened:
            free = True
            try:
                file = opened.enter_context(open_regular(self.folder(stage, key) / MANIFEST, "r+b"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except FileNotFoundError:  # another process has removed it
                pass
            yield free

    def mark_used(self, stage: str, key: str) -> None:
        """Record that a run just used an artifact (garbage collection keeps the last used)."""
        with contextlib.suppress(OSError):  # reading from a read-only store is fine
            os.utime(self.folder(stage, key) / MANIFEST)

    def last_used(self, stage: str, key: str) -> float:
        """Return the time of an artifact's last use, in seconds since 1970; 0 if it is gone."""
        try:
            return (self.folder(stage, key) / MANIFEST).stat().st_mtime
        except FileNotFoundError:
            return 0.0


def have_same_inputs(one: Manifest, other: Manifest) -> bool:
    return [entry.content for entry in one.inputs] == [entry.content for entry in other.inputs]


def check_size(folder: Path, entry: FileEntry) -> str | None:
    """Describe a wrong kind or size of a file; None if both are right."""
    if not is_inside(entry.name):
        return f"the manifest names a file outside the artifact: {entry.name}"
    path = folder / entry.name
    found = file_kind(path)
    if found != FILE:
        return f"{entry.name} is {found or 'missing'}"
    size = path.stat().st_size
    return None if size == entry.size else f"{entry.name} has {size:,} bytes instead of {entry.size:,}"


def check_content(folder: Path, entry: FileEntry) -> str | None:
    if digest_file(folder / entry.name) != entry.xxh3:
        return f"{entry.name} does not match its digest"
    return None


def list_files(folder: Path) -> list[FileEntry]:
    """List every file below `folder` with its size and digest, in order of name."""
    paths = [path for path, status in walk(folder) if not stat.S_ISDIR(status.st_mode)]
    return [
        FileEntry(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, xxh3=digest_file(path))
        for path in sorted(paths)
    ]


def now() -> datetime:
    return datetime.now(UTC)
