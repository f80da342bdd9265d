"""Who works in a store: the names of folders below `.building` say it."""

import os
import socket
import time
from pathlib import Path
from typing import NamedTuple, Self


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


def host_name() -> str:
    return socket.gethostname().replace("-", "_")


def own_mark() -> str:
    """What makes a folder this process's own: `host-pid-time`, the time in nanoseconds, hexadecimal."""
    return f"{host_name()}-{os.getpid()}-{time.time_ns():x}"
