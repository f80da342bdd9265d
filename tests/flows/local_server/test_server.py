"""When Prefect starts its temporary server, and how a configured server that does not answer is reported."""

import socket
from collections.abc import Iterator

import pytest
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings

from lexloom.flows.local_server import server
from lexloom.flows.local_server.server import start_server
from lexloom.flows.local_server.temporary import TemporaryServer


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The servers that were started."""
    found: list[str] = []
    monkeypatch.setattr(SubprocessASGIServer, "start", lambda self: found.append(type(self).__name__))
    return found


@pytest.fixture
def none_yet() -> Iterator[None]:
    """Reset the state to that of a process in which Prefect has not started a server."""
    before = SubprocessASGIServer._instances.pop(None, None)
    TemporaryServer()
    yield
    SubprocessASGIServer._instances.pop(None)
    if before is not None:
        SubprocessASGIServer._instances[None] = before


def test_prefect_starts_the_protected_server_whoever_asks(none_yet: None, started: list[str]) -> None:
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}, restore_defaults={PREFECT_API_URL}):
        start_server()
    SubprocessASGIServer().start()
    assert started == ["TemporaryServer", "TemporaryServer"]
    SubprocessASGIServer().stop()
    SubprocessASGIServer().start()
    assert started[2:] == ["TemporaryServer"], "the next one, too"


def test_no_server_is_started_if_one_is_configured_or_disabled(
    monkeypatch: pytest.MonkeyPatch, started: list[str]
) -> None:
    monkeypatch.setattr(server, "require_server", lambda url: None)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        start_server()
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: False}, restore_defaults={PREFECT_API_URL}):
        start_server()
    assert not started


# a server that was configured


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/api", "http://no-such-host.invalid/api", "nonsense"])
def test_a_configured_server_that_does_not_answer_is_reported(
    monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setattr(server, "RETRY_SECONDS", 0)
    with (
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(
            ConnectionError, match=rf"^PREFECT_API_URL is {url}, but no Prefect server responds there"
        ),
    ):
        start_server()


def test_a_silent_configured_server_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "RETRY_SECONDS", 0)
    monkeypatch.setattr(server, "ANSWER_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        with pytest.raises(ConnectionError, match=f"PREFECT_API_URL is {url}"):
            server.require_server(url)


def test_waiting_for_a_configured_server_is_limited_to_20_seconds() -> None:
    assert server.ATTEMPTS * (server.ANSWER_SECONDS + server.RETRY_SECONDS) < 20
