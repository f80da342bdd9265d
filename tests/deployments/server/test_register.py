"""The deployments that are applied to a server, and the user's settings that are kept."""

from types import SimpleNamespace

import pytest
import yaml

from lexloom.deployments.cli.main import main
from lexloom.deployments.server.register import DEPLOYMENTS, read_deployments
from lexloom.flows.registry import FlowEntry, flows

ENTRIES = {entry["name"]: entry for entry in yaml.safe_load(DEPLOYMENTS.read_text())["deployments"]}


def test_schedules_of_existing_deployments_are_kept() -> None:
    client = SimpleNamespace(read_deployments=lambda: [SimpleNamespace(name="word2vec")])
    first, *others = read_deployments(client)["deployments"]
    assert "schedules" not in first
    for entry in (first, *others):
        assert entry["work_pool"] == {"name": "lexloom", "job_variables": {}}
    assert all(entry["schedules"] == ENTRIES[entry["name"]]["schedules"] for entry in others)


def test_deployments_have_the_description_of_their_flow() -> None:
    client = SimpleNamespace(read_deployments=list)
    found = {entry["name"]: entry["description"] for entry in read_deployments(client)["deployments"]}
    assert found.keys() == flows().keys()
    assert found["word2vec"].startswith("Train word vectors: skip-gram with negative sampling. Stages with")


def test_a_registered_flow_without_an_entry_is_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = FlowEntry("other-lm", "lexloom.flows.window_lm")  # any module with a docstring
    monkeypatch.setattr("lexloom.deployments.server.register.flows", lambda: {**flows(), "other-lm": other})
    client = SimpleNamespace(read_deployments=list)
    *listed, entry = read_deployments(client)["deployments"]
    assert [each["name"] for each in listed] == list(ENTRIES)
    assert entry == {
        "name": "other-lm",
        "entrypoint": "lexloom.flows.window_lm.window_lm",
        "description": entry["description"],
        "tags": ["lexloom"],
        "work_pool": {"name": "lexloom", "job_variables": {}},
        "enforce_parameter_schema": True,
        "parameters": {},
        "schedules": [],
    }


def test_an_unreachable_server_is_reported_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert main(["deploy"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
