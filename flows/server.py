"""Prefect's temporary server, used when no Prefect API URL is configured."""

import os
import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

PROGRAM = "flows.temporary_server"


class TemporaryServer(SubprocessASGIServer):
    """Prefect's temporary server, with cross-site protection, which exits with its parent process.

    It runs in its own session, because Ctrl-C in a terminal signals every process of the command; without its
    server, a run retries for more than a minute and cannot report that it was stopped.
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
            stdin=subprocess.PIPE,  # never written to; EOF tells the server that this process has exited
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
    """Return whether no Prefect API URL is set and a temporary server is allowed."""
    settings = get_current_settings()
    return settings.api.url is None and settings.server.ephemeral.enabled


if needs_server():
    TemporaryServer()  # registers itself as the instance that Prefect starts for this process
