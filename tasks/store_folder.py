"""A store's own folders: half-built artifacts, what outlives a failed build, locks, and what was in the way.

The names of folders below `.building` say who builds what.
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

from tasks.files import FILE, FOLDER, kind, printable

BUILDING = ".building"
SCRATCH = ".scratch"
LOCKS = ".locks"
DISPLACED = ".displaced"  # the beginning of the name of what stood in an artifact's way


class StoreFolder:
    """The folder of a store (`artifacts/`, or what LEXLOOM_STORE names), and its own folders in it."""

    def __init__(self, root: Path | str | None = None) -> None:
        self.root = Path(root or os.environ.get("LEXLOOM_STORE") or "artifacts").absolute()

    def make_writable(self) -> list[str]:
        """Creates the store's folder; returns one sentence for each thing that was in the way and was moved.

        Raises PermissionError or OSError with one sentence where the store can't be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe = self.root / f".writable-{uuid.uuid4().hex}"
            probe.touch()
            probe.unlink()
            sentences = []
            for path in (self.root / name for name in (BUILDING, SCRATCH, LOCKS)):
                obstacle = self.obstacle(path)
                if obstacle and (aside := self.displace(path)):
                    sentences.append(f"{obstacle}; moved to {aside}")
            return sentences
        except OSError as error:
            permissions = "fix its permissions, or " if isinstance(error, PermissionError) else ""
            raise type(error)(
                f"the store {self.root} is not writable ({error.strerror}): {permissions}choose another"
                " folder with --store or LEXLOOM_STORE"
            ) from error

    def obstacle(self, path: Path) -> str | None:
        """What is in the way where a folder belongs, in words."""
        found = kind(path)
        if found in (FOLDER, None):
            return None
        return f"{printable(str(path.relative_to(self.root)))} is {found}, not a folder"

    def new_folder(self, stage: str, key: str) -> Path:
        """An empty folder to build an artifact in; `commit` moves it into place."""
        folder = self.make_folder(BUILDING) / f"{stage}-{key}-{own_mark()}"
        folder.mkdir()
        return folder

    @contextlib.contextmanager
    def lock(self, name: str, wait: bool = True) -> Iterator[bool]:
        """Holds the lock `name`, which the system frees when its holder dies; yields whether it is held.

        Without `wait`, False where somebody else holds it. Lock files are never removed: one that is locked
        and gone would be no lock.
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
        """A folder that outlives a failed attempt at this artifact (checkpoints live there)."""
        self.make_folder(SCRATCH)
        return self.make_folder(f"{SCRATCH}/{stage}-{key}")

    def make_folder(self, name: str) -> Path:
        """A folder of the store; what stands in its place and is none is moved aside."""
        path = self.root / name
        self.displace(path)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def displace(self, path: Path, wanted: str = FOLDER) -> Path | None:
        """Moves what is at `path` aside if it is not what is wanted there; returns where to, or None.

        It stays in the store, and garbage collection removes it after a week. A lock keeps a run from moving
        what another has just made there.
        """
        if kind(path) in (wanted, None):
            return None
        name = "-".join(part.lstrip(".") for part in path.relative_to(self.root).parts)
        aside = self.root / f"{DISPLACED}-{name}-{own_mark()}"
        root = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(root, fcntl.LOCK_EX)
            if kind(path) in (wanted, None):
                return None
            path.rename(aside)
            return aside
        finally:
            os.close(root)


class Building(NamedTuple):
    """What the name of a folder below `.building` says: what is made there, by whom, and since when."""

    stage: str
    key: str
    host: str
    pid: int
    since: float  # seconds since 1970

    @classmethod
    def of(cls, folder: Path) -> Self | None:
        """None where the name is not one of Lexloom's."""
        try:
            stage, key, host, pid, mark = folder.name.rsplit("-", 4)
            return cls(stage, key, host, int(pid), int(mark, 16) / 1e9)
        except ValueError:
            return None

    @property
    def alive(self) -> bool | None:
        """Whether its process is there; None where that is on another machine."""
        return Path(f"/proc/{self.pid}").exists() if self.host == host_name() else None


def moved_aside_at(path: Path) -> float | None:
    """When `displace` moved this aside, in seconds since 1970; None where it did not."""
    start, _, mark = path.name.rpartition("-")
    try:
        return int(mark, 16) / 1e9 if start.startswith(f"{DISPLACED}-") else None
    except ValueError:
        return None


def host_name() -> str:
    return socket.gethostname().replace("-", "_")


def own_mark() -> str:
    """What makes a folder this process's own: `host-pid-time`, the time in nanoseconds, hexadecimal."""
    return f"{host_name()}-{os.getpid()}-{time.time_ns():x}"
