"""Prefect's temporary server, for runs that know of no other."""

import os
import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

PROGRAM = "flows.temporary_server"


class TemporaryServer(SubprocessASGIServer):
    """Prefect's temporary server with two changes: it refuses pages of other sites, and ends with its parent.

    It runs in a session of its own. A terminal sends Ctrl-C to all processes of a command, and without its
    server a run cannot report that it was stopped (it would retry for more than a minute).
    """

    def _run_uvicorn_command(self) -> "subprocess.Popen[Any]":
        return subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM, str(self.port)],
            env={
                **os.environ,
                "PREFECT_SERVER_UI_ENABLED": "0",
                "PREFECT__SERVER_EPHEMERAL": "1",
                **get_current_settings().to_environment_variables(exclude_unset=True),
            },
            stdin=subprocess.PIPE,  # never written to: its end tells the server that this process has ended
            start_new_session=True,
        )

    def stop(self) -> None:
        process = self.server_process
        super().stop()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        TemporaryServer()


def start_server() -> None:
    """Start the temporary server now if this process needs one."""
    if needs_server():
        SubprocessASGIServer().start()


def needs_server() -> bool:
    """Whether Prefect's settings name no server and allow a temporary one."""
    settings = get_current_settings()
    return settings.api.url is None and settings.server.ephemeral.enabled


if needs_server():
    TemporaryServer()  # registers itself: the one that Prefect starts for this process, whoever asks first
