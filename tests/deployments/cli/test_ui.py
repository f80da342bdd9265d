"""`lexloom ui` passes its flags to the program that serves Prefect's UI."""

import pytest

from lexloom.deployments.cli.main import main
from lexloom.tasks.store.artifacts import Store


def test_flags_reach_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", "overwritten")
    started: list[tuple[object, ...]] = []
    monkeypatch.setattr(
        "lexloom.deployments.server.ui.operate",
        lambda host, port, store, hosts, login: started.append((host, port, store.root, hosts, login)),
    )
    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    flags = [
        "--allow-host",
        "a.example",
        "--allow-host",
        "b.example:81",
        "--no-login",
        "--store",
        "elsewhere",
    ]
    assert main(["ui", "--host", "0.0.0.0", "--port", "4242", *flags]) == 0
    assert started == [("0.0.0.0", 4242, Store("elsewhere").root, ["a.example", "b.example:81"], False)]
