"""Starts a command's temporary server before Prefect is imported, so that both start at the same time.

Each takes seconds. Prefect finds the server by PREFECT_API_URL, which it reads when it is imported. The
server listens on a socket of this process, so no other program can take the port, and ends with this process.
"""

import atexit
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

from lexloom.flows.environment import SERVER_START_SECONDS

PROGRAM = "lexloom.flows.local_server.program"
HOST = "127.0.0.1"
POLL_SECONDS = 0.05
STOP_SECONDS = 5.0
# settings that name a server, disable temporary ones, or choose a file with settings
DECISIVE = (
    "PREFECT_API_URL",
    "PREFECT_SERVER_EPHEMERAL_ENABLED",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE",
    "PREFECT_PROFILE",
    "PREFECT_PROFILES_PATH",
)


class EarlyServer:
    """A temporary server that runs in its own session, which Ctrl-C in a terminal does not reach."""

    def __init__(self) -> None:
        with socket.socket() as bound:  # not listening: connections are refused until the server is ready
            bound.bind((HOST, 0))
            self.url = f"http://{HOST}:{bound.getsockname()[1]}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, f"fd={bound.fileno()}"],
                env=server_environment(os.environ),
                stdin=subprocess.PIPE,  # never written to; EOF tells the server that this process has exited
                pass_fds=[bound.fileno()],
                start_new_session=True,
            )
        atexit.register(self.stop)

    def wait(self) -> None:
        """Wait until the server responds.

        Raises:
            RuntimeError: it ended, or does not respond in time.
        """
        import httpx

        seconds = float(
            os.environ.get("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", SERVER_START_SECONDS)
        )
        deadline = time.monotonic() + seconds
        while True:
            try:
                if httpx.get(f"{self.url}/health", timeout=max(0.1, deadline - time.monotonic())).is_success:
                    return
            except httpx.TransportError:
                pass
            if (status := self._process.poll()) is not None:
                raise RuntimeError(f"Prefect's temporary server exited with status {status} while it started")
            if time.monotonic() > deadline:
                raise RuntimeError(f"Prefect's temporary server did not respond within {seconds:.0f} s")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End the server."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


started: EarlyServer | None = None


def start_early() -> None:
    """Start a temporary server and set PREFECT_API_URL, if it is certain that Prefect would start one."""
    global started
    if started is None and "prefect" not in sys.modules and needs_temporary_server(os.environ, Path.cwd()):
        started = EarlyServer()
        os.environ["PREFECT_API_URL"] = started.url
        # the server is of this installation
        os.environ.setdefault("PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED", "false")


def needs_temporary_server(environment: Mapping[str, str], folder: Path) -> bool:
    """Return whether no variable and no file of settings decides about the server.

    Otherwise Prefect's settings decide after it is imported (`lexloom.flows.local_server.server`).
    """
    if any(name in environment for name in DECISIVE):
        return False
    home = Path(environment.get("PREFECT_HOME") or Path(os.path.expanduser("~")) / ".prefect")
    if (home / "profiles.toml").exists() or (folder / "prefect.toml").exists() or (folder / ".env").exists():
        return False
    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return "prefect" not in project.get("tool", {})


def server_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a temporary server: no UI, and Prefect's mark of such servers."""
    return {**environment, "PREFECT_SERVER_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1"}
