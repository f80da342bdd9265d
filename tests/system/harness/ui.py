"""`lexloom ui` as a process of its own, with Prefect's records in a folder of its own."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[3]
END_SECONDS = 180
COMMAND = [sys.executable, "-m", "lexloom", "ui", "--port", "0"]


def environment_of(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**kept, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}


@contextmanager
def ui_in(folder: Path, store: Path, home: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """The process, which is ended by SIGTERM, and the page's address; runs are in `folder`."""
    process = subprocess.Popen(
        [*COMMAND, "--store", str(store)],
        env=environment_of(home),
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,  # Ctrl-C goes to all of a terminal's processes, and spares this one
        preexec_fn=heed_ctrl_c,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r"http://[^/\s]+", said)
        if found is None:
            raise RuntimeError(f"lexloom ui did not start: {said}")
        yield process, found[0]
    finally:
        process.terminate()
        process.wait(END_SECONDS)
        process.stdout.close()


def heed_ctrl_c() -> None:
    """A shell's background processes ignore it, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def server_of(ui: "subprocess.Popen[str]") -> int:
    """The process ID of its server; StopIteration where there is none."""
    children = Path(f"/proc/{ui.pid}/task/{ui.pid}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_text() for pid in children}
    return next(
        pid for pid, command in commands.items() if "lexloom.deployments.server.prefect_server" in command
    )
