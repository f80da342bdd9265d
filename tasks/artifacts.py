"""The store: a folder of artifacts, each whole or not there at all.

An artifact lives in `<store>/<stage>/<key>/`. Its `manifest.json` is written last, and the folder is
renamed into place after that, so a manifest that can be read means a finished artifact. The key is a
digest of what went in (stage, version, config, keys of the inputs), never of source text, time or
machine: the same inputs have the same key on every machine.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple, Self

import xxhash
from pydantic import BaseModel, Field, JsonValue, ValidationError

MANIFEST = "manifest.json"
BUILDING = ".building"
SCRATCH = ".scratch"
LOCKS = ".locks"
ABANDONED_AFTER_SECONDS = 7 * 24 * 3600
KEY_LENGTH = 24
READ_BYTES = 1 << 22

NORMALIZATION = "normalization"
Verification = Literal["size", "full"]
FIRST = "the first of its stage"  # from such inputs


class RunOnly:
    """Marks a config field that says how to run, not what to make: it does not enter the key."""


class Summary(BaseModel):
    """What a stage did, for the user's terminal, the manifest and the report."""

    rows_in: int = Field(ge=0, description="rows that came in")
    unit_in: str = Field(description="what such a row is: 'documents', 'words', ...")
    rows: int = Field(ge=0, description="rows that went out")
    unit: str = Field(description="what such a row is")
    dropped: dict[str, int] = Field(default={}, description="reason -> rows of `unit_in` that it cost")
    notes: dict[str, int] = Field(default={}, description="what else befell rows that went on -> how many")
    facts: dict[str, JsonValue] = Field(default={}, description="figures that later stages or people read")


class Artifact(BaseModel):
    """A finished stage's output: where it is and what is in it, never the data itself."""

    stage: str
    key: str
    folder: Path
    summary: Summary

    @property
    def facts(self) -> dict[str, JsonValue]:
        return self.summary.facts

    @property
    def normalization(self) -> dict[str, JsonValue]:
        """The fact `normalization`: the rules of the corpus that this is made from; empty where unknown.

        Stages hand it on, so that a model's folder can record it.
        """
        return {NORMALIZATION: self.facts[NORMALIZATION]} if NORMALIZATION in self.facts else {}

    def files(self, pattern: str = "*.parquet") -> list[Path]:
        """The artifact's files whose names match `pattern`, in order of name."""
        return sorted(self.folder.glob(pattern))


class FileEntry(BaseModel):
    name: str
    size: int
    xxh3: str


class InputEntry(BaseModel):
    name: str
    stage: str
    key: str
    description: dict[str, JsonValue] = {}


class Manifest(BaseModel):
    """Everything there is to know about an artifact; `manifest.json` holds it as JSON."""

    format: Literal[1] = 1
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


def canonical(config: BaseModel) -> dict[str, JsonValue]:
    """A config as plain JSON values, without the fields marked `RunOnly`."""
    values: dict[str, JsonValue] = {}
    dumped = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        if any(isinstance(mark, RunOnly) for mark in field.metadata):
            continue
        value = getattr(config, name)
        values[name] = canonical(value) if isinstance(value, BaseModel) else dumped[name]
    return values


def digest_key(stage: str, stage_version: int, config: dict[str, JsonValue], input_keys: list[str]) -> str:
    """The artifact's key: hexadecimal, the same in every process and on every machine."""
    identity = {"stage": stage, "version": stage_version, "config": config, "inputs": input_keys}
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def digest_file(path: Path) -> str:
    """xxh3 (128 bits, hexadecimal) of a file's content."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


class Store:
    """The folder that holds all artifacts (`artifacts/`, or what LEXLOOM_STORE names)."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("LEXLOOM_STORE") or "artifacts").absolute()

    def folder(self, stage: str, key: str) -> Path:
        return self.root / stage / key

    def make_writable(self) -> None:
        """Creates the store's folder; PermissionError or OSError with one sentence where that fails."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            rights = "give yourself rights to it, or " if isinstance(error, PermissionError) else ""
            raise type(error)(
                f"the store {self.root} can't be written ({error.strerror}): {rights}name another folder with"
                " --store or LEXLOOM_STORE"
            ) from error

    # reading

    def manifests(self) -> Iterator[Manifest]:
        """Every readable manifest of the store, oldest first."""
        found = [
            manifest
            for path in self.root.glob(f"[!.]*/*/{MANIFEST}")
            if (manifest := self.manifest(path.parent.parent.name, path.parent.name))
        ]
        yield from sorted(found, key=lambda manifest: manifest.created)

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The manifest of an artifact; None where there is none that can be trusted."""
        try:
            manifest = Manifest.model_validate_json((self.folder(stage, key) / MANIFEST).read_bytes())
        except (OSError, ValidationError):
            return None
        return manifest if (manifest.stage, manifest.key) == (stage, key) else None

    def damage(self, stage: str, key: str, verification: Verification = "size") -> str | None:
        """What is wrong with an artifact, in words; None where it is as its manifest says."""
        manifest = self.manifest(stage, key)
        if manifest is None:
            return f"{MANIFEST} is missing or unreadable"
        for entry in manifest.files:
            if not is_inside(entry.name):
                return f"the manifest names a file outside the artifact: {entry.name}"
            path = self.folder(stage, key) / entry.name
            if not path.is_file():
                return f"{entry.name} is missing"
            if path.stat().st_size != entry.size:
                return f"{entry.name} has {path.stat().st_size:,} bytes instead of {entry.size:,}"
            if verification == "full" and digest_file(path) != entry.xxh3:
                return f"{entry.name} is not what was written (its digest differs)"
        known = {MANIFEST, *(entry.name for entry in manifest.files)}
        if strange := sorted(file_names(self.folder(stage, key)) - known):
            return f"{strange[0]} is not one of its files"
        return None

    def artifact(self, manifest: Manifest) -> Artifact:
        folder = self.folder(manifest.stage, manifest.key)
        return Artifact(stage=manifest.stage, key=manifest.key, folder=folder, summary=manifest.summary)

    def size(self, manifest: Manifest) -> int:
        """Bytes of an artifact's files."""
        return sum(entry.size for entry in manifest.files)

    # writing

    def new_folder(self, stage: str, key: str) -> Path:
        """An empty folder to build an artifact in; `commit` moves it into place."""
        folder = self.root / BUILDING / f"{stage}-{key}-{own_mark()}"
        folder.mkdir(parents=True)
        return folder

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Holds the lock `name`, which the system frees when its holder dies; yields whether it is held.

        Without `wait`, False where somebody else holds it. Lock files are never removed: one that is locked
        and gone would be no lock.
        """
        path = self.root / LOCKS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def scratch(self, stage: str, key: str) -> Path:
        """A folder that outlives a failed attempt at this artifact (checkpoints live there)."""
        folder = self.root / SCRATCH / f"{stage}-{key}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def commit(self, building: Path, manifest: Manifest) -> Artifact:
        """Writes the manifest and renames `building` into place.

        Of two runs that build the same key at once, the first to arrive wins; the other's folder is
        thrown away. An artifact that stands in the way and is damaged in any byte is replaced.
        """
        text = manifest.model_dump_json(indent=2)
        with (building / MANIFEST).open("w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        final = self.folder(manifest.stage, manifest.key)
        final.parent.mkdir(parents=True, exist_ok=True)
        with self.lock(f"commit-{manifest.stage}-{manifest.key}"):
            if final.exists():
                if self.damage(manifest.stage, manifest.key, "full") is None:
                    shutil.rmtree(building)
                    return self.artifact(manifest)
                self.discard(manifest.stage, manifest.key)
            building.rename(final)
        return self.artifact(manifest)

    def discard(self, stage: str, key: str) -> None:
        """Takes an artifact out of the store, whole: it is renamed away before it is deleted."""
        grave = self.root / BUILDING / f"discarded-{key}-{own_mark()}"
        grave.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.folder(stage, key).rename(grave)
        except FileNotFoundError:
            return
        shutil.rmtree(grave)

    # keeping house

    @contextlib.contextmanager
    def hold(self, stage: str, key: str) -> Iterator[None]:
        """Keeps an artifact from garbage collection; the system lets go of it when this process dies."""
        with (self.folder(stage, key) / MANIFEST).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    @contextlib.contextmanager
    def _unless_held(self, manifest: Manifest) -> Iterator[bool]:
        """Whether nobody holds an artifact; while this lasts, nobody can begin to."""
        with contextlib.ExitStack() as opened:
            free = True
            try:
                path = self.folder(manifest.stage, manifest.key) / MANIFEST
                fcntl.flock(opened.enter_context(path.open("r+")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            except FileNotFoundError:  # somebody else has removed it
                pass
            yield free

    def collect_garbage(self, keep: int, dry_run: bool = False) -> list[tuple[str, int]]:
        """Removes what nobody needs: returns (what, bytes) of each thing removed.

        Kept are the `keep` most recently used artifacts of every stage, those that a run at work has used so
        far, and all that they were made from.
        Half-built folders go when the process that made them is gone (after a week where it ran on another
        machine); scratch folders when their artifact stands, or after a week.
        """
        manifests = {manifest.key: manifest for manifest in self.manifests()}
        needed: set[str] = set()
        by_stage: dict[str, list[Manifest]] = {}
        for manifest in manifests.values():
            by_stage.setdefault(manifest.stage, []).append(manifest)
        waiting = [
            manifest
            for group in by_stage.values()
            for manifest in sorted(group, key=self._last_used, reverse=True)[:keep]
        ]
        for manifest in manifests.values():
            with self._unless_held(manifest) as free:
                if not free:
                    waiting.append(manifest)
        while waiting:
            manifest = waiting.pop()
            if manifest.key not in needed:
                needed.add(manifest.key)
                waiting += [manifests[entry.key] for entry in manifest.inputs if entry.key in manifests]
        removed = []
        for manifest in manifests.values():
            if manifest.key in needed:
                continue
            with self._unless_held(manifest) as free:
                if free:
                    removed.append((f"{manifest.stage}/{manifest.key}", self.size(manifest)))
                    if not dry_run:
                        self.discard(manifest.stage, manifest.key)
        for folder in [*self.root.glob(f"{BUILDING}/*"), *self.root.glob(f"{SCRATCH}/*")]:
            if self._is_abandoned(folder):
                removed.append((str(folder.relative_to(self.root)), folder_bytes(folder)))
                if not dry_run:
                    shutil.rmtree(folder)
        return removed

    def mark_used(self, stage: str, key: str) -> None:
        """Notes that an artifact served a run just now (garbage collection keeps the last used)."""
        with contextlib.suppress(OSError):  # a store that may only be read still serves
            os.utime(self.folder(stage, key) / MANIFEST)

    def _last_used(self, manifest: Manifest) -> float:
        return (self.folder(manifest.stage, manifest.key) / MANIFEST).stat().st_mtime

    def _is_abandoned(self, folder: Path) -> bool:
        old = time.time() - newest_change(folder) > ABANDONED_AFTER_SECONDS
        if folder.parent.name == SCRATCH:
            stage, _, key = folder.name.rpartition("-")
            with self.lock(folder.name, wait=False) as unused:
                return unused and (old or self.manifest(stage, key) is not None)
        alive = Building.of(folder).alive
        return old if alive is None else not alive


class Building(NamedTuple):
    """What the name of a folder below `.building` says: what is made there, by whom, and since when."""

    stage: str
    key: str
    host: str
    pid: int
    since: float  # seconds since 1970

    @classmethod
    def of(cls, folder: Path) -> Self:
        stage, key, host, pid, mark = folder.name.rsplit("-", 4)
        return cls(stage, key, host, int(pid), int(mark, 16) / 1e9)

    @property
    def alive(self) -> bool | None:
        """Whether its process is there; None where that is on another machine."""
        return Path(f"/proc/{self.pid}").exists() if self.host == host_name() else None


def is_inside(name: str) -> bool:
    """Whether a manifest's file name stays below its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def file_names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def newest_change(folder: Path) -> float:
    return max(path.stat().st_mtime for path in [folder, *folder.rglob("*")])


def host_name() -> str:
    return socket.gethostname().replace("-", "_")


def own_mark() -> str:
    """What makes a folder this process's own: `host-pid-time`, the time in nanoseconds, hexadecimal."""
    return f"{host_name()}-{os.getpid()}-{time.time_ns():x}"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def list_files(folder: Path) -> list[FileEntry]:
    """Every file below `folder` with its size and digest, in order of name."""
    return [
        FileEntry(name=path.relative_to(folder).as_posix(), size=path.stat().st_size, xxh3=digest_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]


def now() -> datetime:
    return datetime.now(UTC)


def explain_change(manifest: Manifest, others: list[Manifest]) -> list[str]:
    """Why an artifact was built although others of its stage stand in the store.

    Compares it with the most similar earlier one of the same stage, made from the same kinds of inputs (the
    latest of several): one line for every config field, input and version that differs. An input that differs
    is followed to the field that changed it.
    """
    by_key = {other.key: other for other in others}
    earlier = [
        other
        for other in others
        if other.stage == manifest.stage and other.key != manifest.key and other.created < manifest.created
        if input_stages(other) == input_stages(manifest)
    ]
    if not earlier:
        return [FIRST]
    found = [differences(other, manifest, by_key) for other in reversed(earlier)]
    return min(found, key=len)


def input_stages(manifest: Manifest) -> list[str]:
    return [entry.stage for entry in manifest.inputs]


def differences(old: Manifest, new: Manifest, by_key: dict[str, Manifest]) -> list[str]:
    """One line for each thing that makes `new` another artifact than `old`."""
    lines = [
        f"{new.stage}.{name}: {shown(before)} -> {shown(after)}"
        for name, before, after in changed_fields(old.config, new.config)
    ]
    if old.version != new.version:
        lines.append(f"{new.stage} itself: version {old.version} -> {new.version}")
    old_inputs = {entry.name: entry for entry in old.inputs}
    for name in old_inputs.keys() - {entry.name for entry in new.inputs}:
        lines.append(f"{new.stage} has lost an input: {name}")
    for entry in new.inputs:
        before = old_inputs.get(entry.name)
        if before is None:
            lines.append(f"{new.stage} has a new input: {entry.name}")
        elif before.key != entry.key:
            if before.stage != entry.stage:
                found = [
                    f"{new.stage}'s {entry.name}: {before.stage or 'a source'} -> {entry.stage or 'a source'}"
                ]
            elif before.key in by_key and entry.key in by_key:
                found = differences(by_key[before.key], by_key[entry.key], by_key)
            else:
                found = [
                    f"{entry.name} {name}: {shown(old_value)} -> {shown(new_value)}"
                    for name, old_value, new_value in changed_fields(before.description, entry.description)
                ]
            lines += found or [f"{entry.name}: {before.key} -> {entry.key}"]
    return list(dict.fromkeys(lines))


def changed_fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every field that differs."""
    changes: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_fields(before, after, f"{prefix}{name}.")
        elif before != after:
            changes.append((prefix + name, before, after))
    return changes


def shown(value: JsonValue, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
