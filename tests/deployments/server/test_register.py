"""What a server is told when the deployments are applied, and what is left as a person has set it."""

from types import SimpleNamespace

import pytest
import yaml

from lexloom.deployments.cli.main import main
from lexloom.deployments.server.register import DEPLOYMENTS, read_deployments

ENTRIES = {entry["name"]: entry for entry in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]}


def test_schedules_that_are_there_stay_as_they_were_set() -> None:
    client = SimpleNamespace(read_deployments=lambda: [SimpleNamespace(name="word2vec")])
    first, *others = read_deployments(client)["deployments"]
    assert "schedules" not in first
    for entry in (first, *others):
        assert entry["work_pool"] == {"name": "lexloom", "job_variables": {}}
    assert all(entry["schedules"] == ENTRIES[entry["name"]]["schedules"] for entry in others)


def test_an_unreachable_server_is_reported_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert main(["deploy"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
