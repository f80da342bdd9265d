"""Which processes belong to one Ray runtime, on a machine where others run too."""

import os
import time
from collections.abc import Callable
from pathlib import Path

POLL_SECONDS = 0.2  # a look at all processes takes 13 ms


def processes_of(session: Path) -> dict[int, str]:
    """pid -> command line of the living processes of a Ray runtime whose RAY_TMPDIR is `session`.

    Ray's servers name the folder on their command line, and its workers have their log in it open. The
    process that drives them counts too while it is connected.
    """
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if str(session) in command or any(opens(folder, session)):
                found[int(folder.name)] = command
        except OSError:  # it ended meanwhile, or is another user's
            continue
    found.pop(os.getpid(), None)
    return found


def opens(process: Path, session: Path) -> list[str]:
    links = []
    for link in (process / "fd").iterdir():
        try:
            links.append(os.readlink(link))
        except OSError:
            continue
    return [link for link in links if link.startswith(str(session))]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> float:
    """Seconds until `condition` holds; TimeoutError after `seconds`."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not after {seconds} seconds")
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started
