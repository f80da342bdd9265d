"""Results say where they come from; a benchmark that is repeated in one folder starts anew."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest

from benchmarks.measure import emptied, write_results


def test_results_name_the_versions_of_both_sides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["sentiment.py", "--data", "/data/imdb"])
    write_results(tmp_path / "results.json", {"accuracy": 0.9})
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"] == "python benchmarks/sentiment.py --data DATA"
    for package in ("torch", "transformers", "scikit-learn"):
        assert results["versions"][package] == version(package)


def test_a_folder_that_is_used_again_has_nothing_of_before(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "scratch"
    for _ in range(2):
        assert list(emptied(folder).iterdir()) == []
        (folder / "checkpoint").touch()
