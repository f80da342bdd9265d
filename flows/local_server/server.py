"""Prefect's temporary server, used when no Prefect API URL is configured."""

import os
import subprocess
import sys
import time
from typing import Any

import httpx
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings

PROGRAM = "lexloom.flows.local_server.program"
ATTEMPTS, ANSWER_SECONDS, RETRY_SECONDS = 3, 4.0, 1.0


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
    """Start the temporary server if this process needs one, or check that the configured server responds.

    Raises:
        ConnectionError: the configured Prefect server does not respond.
    """
    if needs_server():
        SubprocessASGIServer().start()
    elif url := get_current_settings().api.url:
        require_server(url)


def require_server(url: str) -> None:
    """Check that a server responds, with any status: Prefect's client would retry for minutes."""
    for attempt in range(ATTEMPTS):
        try:
            httpx.get(f"{url.rstrip('/')}/health", timeout=ANSWER_SECONDS)
            return
        except httpx.HTTPError as error:
            if attempt == ATTEMPTS - 1:
                raise ConnectionError(
                    f"PREFECT_API_URL is {url}, but no Prefect server responds there ({error}): start one,"
                    " correct the URL, or unset the variable to use a temporary server"
                ) from error
            time.sleep(RETRY_SECONDS)
        except httpx.InvalidURL as error:
            raise ConnectionError(
                f"PREFECT_API_URL is {url!r}, which is not a URL ({error}): correct or unset it"
            ) from error


def needs_server() -> bool:
    """Return whether no Prefect API URL is set and a temporary server is allowed."""
    settings = get_current_settings()
    return settings.api.url is None and settings.server.ephemeral.enabled


if needs_server():
    TemporaryServer()  # registers itself as the instance that Prefect starts for this process
