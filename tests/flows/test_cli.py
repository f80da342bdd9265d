"""The command: bad input ends in one sentence, and the store answers questions."""

import json
from pathlib import Path

import pytest

from flows.cli import main
from models.word2vec import WordVectors
from tasks.artifacts import Store
from tests.tasks.test_artifacts import put


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`main` settles environment variables and the warning filter for the whole process."""
    monkeypatch.setattr("flows.cli.settle_environment", lambda verbose: None)


@pytest.fixture
def model(tmp_path: Path) -> str:
    import torch

    folder = tmp_path / "model"
    folder.mkdir()
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, 0.2]])
    WordVectors(["war", "wars", "peace", "tea"], rows).save(folder)
    return str(folder)


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that fails says: one line, no traceback."""
    assert main(list(arguments)) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert said[-1].startswith("error: ")
    assert not any("Traceback" in line for line in said)
    return said[-1]


@pytest.mark.parametrize(
    ("flag", "value", "bound"),
    [
        ("--window", "0", "greater than or equal to 1"),
        ("--dim", "0", "greater than or equal to 1"),
        ("--dim", "5000", "less than or equal to 4096"),
        ("--negatives", "0", "greater than or equal to 1"),
        ("--epochs", "0", "greater than or equal to 1"),
        ("--workers", "9", "less than or equal to 8"),
        ("--learning-rate", "fast", "valid number"),
        ("--sync-period", "0", "greater than or equal to 1"),
    ],
)
def test_a_value_out_of_bounds_names_its_flag(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, bound: str
) -> None:
    said = complaint(capsys, "word2vec", flag, value)
    assert flag in said
    assert bound in said
    assert value in said


def test_neighbours_and_analogies_are_printed(capsys: pytest.CaptureFixture[str], model: str) -> None:
    assert main(["neighbours", model, "war", "-k", "2"]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["war", "wars", "peace"]
    assert main(["analogy", model, "war", "wars", "peace", "-k", "1"]) == 0
    assert "tea" in capsys.readouterr().out


def test_every_command_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["analogy"], ["neighbours"], ["word2vec"], ["store", "ls"], ["store", "gc"]):
        with pytest.raises(SystemExit) as stop:
            main([*command, "--help"])
        assert stop.value.code == 0
        assert "usage: lexloom" in capsys.readouterr().out


def test_a_flag_that_is_not_there_gets_near_spellings(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "word2vec", "--sorce", "books/")
    assert "there is no flag --sorce; near it: --source" in said


def test_a_store_that_is_not_there_is_not_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no store at /nowhere" in complaint(capsys, "store", "verify", "--store", "/nowhere")


def test_a_local_run_says_how_many_workers_it_has(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(capsys, "word2vec", "--runner", "local")
    assert said == "error: the local runner has one worker, not 2: say --workers 1, or --runner ray"


def test_an_unknown_word_gets_near_spellings(capsys: pytest.CaptureFixture[str], model: str) -> None:
    said = complaint(capsys, "neighbours", model, "peaze")
    assert "'peaze'" in said
    assert "peace" in said


def test_a_folder_that_is_no_model_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path) in complaint(capsys, "neighbours", str(tmp_path), "war")


def test_the_store_is_listed_verified_and_cleared(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    artifact = put(store, "corpus", "k1", limit=5)
    put(store, "corpus", "k2", limit=6)
    assert main(["store", "ls"]) == 0
    assert "2 artifacts" in capsys.readouterr().out
    assert main(["store", "verify"]) == 0
    (artifact.folder / "data.txt").write_text("TEXT")
    assert main(["store", "verify"]) == 1
    assert "corpus/k1  data.txt is not what was written" in capsys.readouterr().out
    assert main(["store", "gc", "--keep", "1"]) == 0
    assert "freed" in capsys.readouterr().out
    assert len(list(store.manifests())) == 1


def test_explain_tells_what_made_a_stage_run(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    put(store, "corpus", "k1")
    manifest = store.folder("corpus", "k1") / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "why": ["corpus.limit: 5 -> 6"]}))
    assert main(["store", "explain", "corpus"]) == 0
    assert "corpus.limit: 5 -> 6" in capsys.readouterr().out
    assert "has no artifact of a stage 'pears'; it has corpus" in complaint(
        capsys, "store", "explain", "pears"
    )


def test_another_store_is_named_by_a_flag(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    put(Store(tmp_path / "other"), "corpus", "k1")
    assert main(["store", "ls", "--store", str(tmp_path / "other")]) == 0
    assert "1 artifact," in capsys.readouterr().out


def test_a_wrong_number_to_keep_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--keep is -1" in complaint(capsys, "store", "gc", "--keep", "-1")
