"""Prefect's temporary server, used when no Prefect API URL is configured."""

import time
from importlib import import_module

import httpx
from prefect.settings import get_current_settings

from lexloom.flows.local_server import early

ATTEMPTS, ANSWER_SECONDS, RETRY_SECONDS = 3, 4.0, 1.0


def start_server() -> None:
    """Start the temporary server if this process needs one, or check that the configured server responds.

    Raises:
        ConnectionError: the configured Prefect server does not respond.
        RuntimeError: the temporary server does not start.
    """
    url = get_current_settings().api.url
    if early.started is not None and url == early.started.url:
        early.started.wait()
    elif needs_server():
        import_module("lexloom.flows.local_server.temporary").SubprocessASGIServer().start()
    elif url:
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
    import_module("lexloom.flows.local_server.temporary")  # slow, since it imports Prefect's server
