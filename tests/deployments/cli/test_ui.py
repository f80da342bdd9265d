"""`lexloom ui` becomes the program that starts Prefect's server and worker."""

import os
import sys

import pytest

from lexloom.deployments.cli.main import main

FLAGS = ["--host", "0.0.0.0", "--port", "4242", "--allow-host", "a.example", "--allow-host", "b.example:81"]
FLAGS += ["--no-login", "--link"]


def test_it_becomes_the_program_with_its_flags_and_its_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.deployments.cli.main.settle_environment", lambda verbose: None)
    monkeypatch.setenv("LEXLOOM_STORE", "overwritten")
    became: list[tuple[str, list[str], str]] = []

    class BecameAnotherError(BaseException):
        """Stands for `exec`, after which this program is no more."""

    def become(path: str, arguments: list[str]) -> None:
        became.append((path, arguments, os.environ["LEXLOOM_STORE"]))
        raise BecameAnotherError

    monkeypatch.setattr(os, "execv", become)
    with pytest.raises(BecameAnotherError):
        main(["ui", *FLAGS, "--store", "elsewhere"])
    command = ["-P", "-m", "lexloom.deployments.server.local", *FLAGS]
    assert became == [(sys.executable, [sys.executable, *command], "elsewhere")]
