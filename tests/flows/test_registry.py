"""Tests of the registry of flows, including those of other packages."""

import sys
from pathlib import Path

import pytest
from prefect import Flow

from lexloom.flows import registry
from lexloom.flows.registry import flows


@pytest.fixture(autouse=True)
def listed_anew() -> None:
    flows.cache_clear()


def install(folder: Path, entries: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a distribution with entry points for flows on Python's path."""
    info = folder / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name, module in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{registry.GROUP}]", *lines, ""]))
    monkeypatch.syspath_prepend(folder)


def test_the_flows_are_the_modules_that_define_one() -> None:
    assert list(flows()) == ["sentiment", "transformer-lm", "window-lm", "word2vec"]


@pytest.mark.parametrize("name", ["sentiment", "transformer-lm", "window-lm", "word2vec"])
def test_an_entry_finds_its_flow_its_config_and_its_purpose(name: str) -> None:
    entry = flows()[name]
    assert isinstance(entry.flow(), Flow)
    assert entry.flow().name == name
    assert entry.config()()
    assert entry.purpose.startswith("Train ")


def test_another_package_adds_a_flow_that_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_flow.py").write_text('"""Train something else.\n\nMore of it.\n"""\n1 / 0\n')
    install(tmp_path, {"other-lm": "other_flow"}, monkeypatch)
    assert flows()["other-lm"].purpose == "Train something else"
    assert flows()["other-lm"].entrypoint == "other_flow.other_flow"
    assert "other_flow" not in sys.modules


def test_two_flows_of_one_name_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, {"word2vec": "other_flow"}, monkeypatch)
    with pytest.raises(
        ValueError,
        match=r"word2vec \(group lexloom.flows\) names other_flow, but word2vec is lexloom",
    ):
        flows()
    monkeypatch.undo()
    flows.cache_clear()
