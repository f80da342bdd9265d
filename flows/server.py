"""Prefect's temporary server, for commands that know of no other."""

import signal
from concurrent.futures import ThreadPoolExecutor

from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import get_current_settings


def start_server() -> None:
    """Starts the server that Prefect would start, but out of reach of Ctrl-C; it ends with this process.

    A terminal sends Ctrl-C to all processes of a command. Without its server a run can't say that it was
    stopped, and tries to for more than a minute.
    """
    settings = get_current_settings()
    if settings.api.url is None and settings.server.ephemeral.enabled:
        ThreadPoolExecutor(1, "server").submit(start_without_sigint).result()


def start_without_sigint() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # of this thread, and of what it starts
    SubprocessASGIServer().start()
