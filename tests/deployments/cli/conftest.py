"""Fixtures of the tests of the command line."""

import pytest


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep commands from changing environment variables and the warning filter of the test process."""
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
