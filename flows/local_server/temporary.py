"""The temporary server that Prefect starts for a process that calls a flow; importing this installs it."""

import os
import subprocess
import sys
from typing import Any

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

from lexloom.flows.local_server.early import PROGRAM, server_environment


class TemporaryServer(SubprocessASGIServer):
    """Prefect's temporary server, with cross-site protection, which exits with its parent process.

    It runs in its own session, because Ctrl-C in a terminal signals every process of the command; without its
    server, a run retries for more than a minute and cannot report that it was stopped.
    """

    def _run_uvicorn_command(self) -> "subprocess.Popen[Any]":
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        return subprocess.Popen(
            [sys.executable, "-P", "-m", PROGRAM, str(self.port)],
            env={**server_environment(os.environ), **settings},
            stdin=subprocess.PIPE,  # never written to; EOF tells the server that this process has exited
            start_new_session=True,
        )

    def stop(self) -> None:
        process = self.server_process
        super().stop()
        if process is not None and process.stdin is not None:
            process.stdin.close()
        TemporaryServer()


TemporaryServer()  # registers itself as the instance that Prefect starts for this process
