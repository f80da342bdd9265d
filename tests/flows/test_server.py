"""Prefect's temporary server: out of reach of Ctrl-C, and only where there is no other."""

import signal

import pytest
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_EPHEMERAL_ENABLED, temporary_settings

from flows import server
from flows.server import start_server


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """The signals that a server started now would never get, a set for each server."""
    found: list[set[int]] = []

    class FakeServer:
        def start(self) -> None:
            found.append(set(signal.pthread_sigmask(signal.SIG_BLOCK, ())))

    monkeypatch.setattr(server, "SubprocessASGIServer", FakeServer)
    return found


def test_the_server_does_not_hear_ctrl_c_and_this_process_does(blocked: list[set[int]]) -> None:
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}, restore_defaults={PREFECT_API_URL}):
        start_server()
    (mask,) = blocked
    assert signal.SIGINT in mask
    assert signal.SIGTERM not in mask, "by which it is ended"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_none_is_started_where_there_is_one_or_where_there_shall_be_none(blocked: list[set[int]]) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        start_server()
    with temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: False}, restore_defaults={PREFECT_API_URL}):
        start_server()
    assert not blocked
