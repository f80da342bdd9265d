"""Fingerprints of files: names, sizes and content digests, with a cache for unchanged files."""

import hashlib
import json
import os
import time
import uuid
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from lexloom.tasks.display import console
from lexloom.tasks.store.artifacts import KEY_LENGTH, Store
from lexloom.tasks.store.file_access import digest_file, read_regular

CACHE_FILE = "sources.json"
MIN_AGE_SECONDS = 2.0  # a younger file may change again within the resolution of its modification time


class SourceFile(BaseModel):
    name: str = Field(description="relative to the source, with forward slashes")
    path: Path
    size: int
    modified_ns: int
    xxh3: str


def digest_files(files: list[SourceFile]) -> str:
    text = json.dumps([[file.name, file.size, file.xxh3] for file in files], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def fingerprint(found: list[tuple[str, Path]]) -> list[SourceFile]:
    """Return every (name, path) with its size and digest; digests of unchanged files come from a cache."""
    cache = DigestCache(Store().root / CACHE_FILE)
    files = []
    done = 0
    with console.bar("fingerprint", total=sum(path.stat().st_size for _, path in found)) as bar:
        for name, path in found:
            digest = cache.digest(path)
            status = path.stat()
            files.append(
                SourceFile(
                    name=name,
                    path=path.absolute(),
                    size=status.st_size,
                    modified_ns=status.st_mtime_ns,
                    xxh3=digest,
                )
            )
            done += status.st_size
            bar.update(done, path.name)
    cache.save()
    return files


def verify_files(files: list[SourceFile]) -> None:
    """Compare files with their digests, without using the cache.

    Raises:
        ValueError: the content of a file has changed.
    """
    for file in files:
        if digest_file(file.path) != file.xxh3:
            raise ValueError(
                f"{file.path} has changed since it was fingerprinted: rerun when no process writes to it;"
                " if the error persists, check the disk, or `touch` the file if its content is correct"
            )


class FileRecord(BaseModel):
    """The status of a file when its digest was computed."""

    size: int
    modified_ns: int
    changed_ns: int = 0  # unlike the modification time, programs can't set it
    inode: int
    xxh3: str


class FileRecords(BaseModel):
    files: dict[str, FileRecord] = {}


class DigestCache:
    """A cache of file digests, valid while path, size, modification and change times and inode are the same.

    It saves reading all source files again in every run. An unreadable cache counts as empty, and errors when
    writing it are ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._records = FileRecords.model_validate_json(read_regular(path)).files
        except (OSError, ValidationError):
            self._records = {}
        self._changed = False

    def digest(self, path: Path) -> str:
        status = path.stat()
        name = str(path.absolute())
        record = self._records.get(name)
        now = FileRecord(
            size=status.st_size,
            modified_ns=status.st_mtime_ns,
            changed_ns=status.st_ctime_ns,
            inode=status.st_ino,
            xxh3="",
        )
        is_old_enough = time.time() - status.st_mtime > MIN_AGE_SECONDS
        if record is not None and record.model_copy(update={"xxh3": ""}) == now:
            return record.xxh3
        digest = digest_file(path)
        if is_old_enough:
            self._records[name] = now.model_copy(update={"xxh3": digest})
            self._changed = True
        return digest

    def save(self) -> None:
        if not self._changed:
            return
        new = self._path.with_name(f"{self._path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.write_text(FileRecords(files=self._records).model_dump_json())
                new.replace(self._path)
            finally:
                new.unlink(missing_ok=True)
