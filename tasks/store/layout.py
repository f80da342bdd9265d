"""A store's internal folders: half-built artifacts, scratch folders, locks and displaced files.

The name of a folder below `.building` identifies the artifact and the process that builds it.
"""

import contextlib
import fcntl
import os
import socket
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from lexloom.tasks.store.file_access import FILE, FOLDER, file_kind, printable

BUILDING = ".building"
SCRATCH = ".scratch"
LOCKS = ".locks"
DISPLACED = ".displaced"  # prefix of files that blocked an artifact's path


class StoreFolder:
    """The folder of a store (`artifacts/`, or LEXLOOM_STORE), with its internal folders."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("LEXLOOM_STORE") or "artifacts").absolute()

    def make_writable(self) -> list[str]:
        """Create the store's folder; return one message for each obstacle that was moved aside.

        Raises PermissionError or OSError with an explanation if the store is not writable.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
            messages = []
            for path in (self.root / name for name in (BUILDING, SCRATCH, LOCKS)):
                obstacle = self.obstacle(path)
                if obstacle and (aside := self.displace(path)):
                    messages.append(f"{obstacle}; moved to {aside}")
            return messages
        except OSError as error:
            permissions = "fix its permissions, or " if isinstance(error, PermissionError) else ""
            raise type(error)(
                f"the store {self.root} is not writable ({error.strerror}): {permissions}choose another"
                " folder with --store or LEXLOOM_STORE"
            ) from error

    def obstacle(self, path: Path) -> str | None:
        """Describe what blocks the path of a folder; None if nothing does."""
        found = file_kind(path)
        if found in (FOLDER, None):
            return None
        return f"{printable(str(path.relative_to(self.root)))} is {found}, not a folder"

    def new_folder(self, stage: str, key: str) -> Path:
        """Create an empty folder to build an artifact in; `commit` moves it into place."""
        folder = self.make_folder(BUILDING) / f"{stage}-{key}-{unique_suffix()}"
        folder.mkdir()
        return folder

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Hold the lock `name`, which the system releases if its holder dies; yield whether it was acquired.

        Without `wait`, yields False if another process holds it. Lock files are never removed, since a
        process could still hold a lock on the removed file.
        """
        path = self.make_folder(LOCKS) / name
        self.displace(path, FILE)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def scratch(self, stage: str, key: str) -> Path:
        """Create the artifact's scratch folder, which survives a failed build (it holds checkpoints)."""
        self.make_folder(SCRATCH)
        return self.make_folder(f"{SCRATCH}/{stage}-{key}")

    def make_folder(self, name: str) -> Path:
        """Create a folder of the store; anything else at its path is moved aside."""
        path = self.root / name
        self.displace(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def displace(self, path: Path, wanted: str = FOLDER) -> Path | None:
        """Move whatever is at `path` aside unless it is of the `wanted` kind; return its new path, or None.

        It stays in the store until garbage collection removes it after a week. A lock keeps a run from moving
        what another run has just created there.
        """
        if file_kind(path) in (wanted, None):
            return None
        name = "-".join(part.lstrip(".") for part in path.relative_to(self.root).parts)
        aside = self.root / f"{DISPLACED}-{name}-{unique_suffix()}"
        root = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(root, fcntl.LOCK_EX)
            if file_kind(path) in (wanted, None):
                return None
            path.rename(aside)
            return aside
        finally:
            os.close(root)


class BuildFolder(NamedTuple):
    """The parsed name of a folder below `.building`: the artifact, and the process that builds it."""

    stage: str
    key: str
    host: str
    pid: int
    since: float  # seconds since 1970

    @classmethod
    def parse(cls, folder: Path) -> Self | None:
        """Parse a folder's name; return None if it does not follow Lexloom's pattern."""
        try:
            stage, key, host, pid, mark = folder.name.rsplit("-", 4)
            return cls(stage, key, host, int(pid), int(mark, 16) / 1e9)
        except ValueError:
            return None

    @property
    def alive(self) -> bool | None:
        """Whether the process is running; None if it belongs to another machine."""
        return psutil.pid_exists(self.pid) if self.host == host_name() else None


def read_displacement_time(path: Path) -> float | None:
    """Return the time at which `displace` moved this path, in seconds since 1970; None if it did not."""
    start, _, mark = path.name.rpartition("-")
    try:
        return int(mark, 16) / 1e9 if start.startswith(f"{DISPLACED}-") else None
    except ValueError:
        return None


def host_name() -> str:
    return socket.gethostname().replace("-", "_")


def unique_suffix() -> str:
    """Return a suffix unique to this process: `host-pid-time`, with the time in nanoseconds, hexadecimal."""
    return f"{host_name()}-{os.getpid()}-{time.time_ns():x}"
