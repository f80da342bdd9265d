"""Models and artifacts are named by a folder, by a prefix of a key, or by `latest`."""

from pathlib import Path

import pytest

from lexloom.deployments.cli.main import main
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.lookup import find_model_folder, find_place
from tests.deployments.cli.test_main import complaint
from tests.deployments.store import made_from, shelve, write_transformer, write_windows, write_words

WORD2VEC, WINDOW_LM, TRANSFORMER = "train_word2vec", "train_window_lm", "train_transformer"
SENTIMENT = "train_sentiment"
FIRST, SECOND, OTHER = "1baecedb9cad2dca49326ce2", "1baec00000ad2dca49326ce2", "7e1b352f8b4b581c32c17f67"


@pytest.mark.parametrize("name", ["1baece", f"{WORD2VEC}/1baece", FIRST, "latest", f"{WORD2VEC}/latest", "1"])
def test_a_model_is_found_by_key_prefix_or_as_latest(store: Store, name: str) -> None:
    shelve(store, WORD2VEC, FIRST)
    shelve(store, "report", OTHER, day=2)
    assert find_model_folder(name, WORD2VEC) == store.folder(WORD2VEC, FIRST)


@pytest.mark.parametrize("given", ["model", "./model", "store/train_word2vec/" + FIRST])
def test_an_existing_folder_takes_precedence(store: Store, tmp_path: Path, given: str) -> None:
    shelve(store, WORD2VEC, FIRST)
    (tmp_path / "model").mkdir()
    assert find_model_folder(given, WORD2VEC) == Path(given)
    (tmp_path / "latest").mkdir()
    assert find_model_folder("latest", WORD2VEC) == Path("latest")


def test_an_ambiguous_prefix_lists_the_matching_keys(store: Store) -> None:
    shelve(store, WORD2VEC, FIRST)
    shelve(store, WORD2VEC, SECOND, day=2)
    with pytest.raises(
        ValueError, match=r"1ba is ambiguous \(train_word2vec/1baec000 or train_word2vec/1baecedb\)"
    ):
        find_model_folder("1ba", WORD2VEC)
    assert find_model_folder("1baec0", WORD2VEC).name == SECOND
    for number in range(20):
        shelve(store, WORD2VEC, f"aaaaaaaaaaaa{number:02d}")
    with pytest.raises(
        ValueError, match=r"aa is ambiguous \((train_word2vec/a{12}\d\d or ){8}12 more\): specify more"
    ):
        find_model_folder("aa", WORD2VEC)


def test_a_full_key_takes_precedence_over_a_longer_key(store: Store) -> None:
    shelve(store, WORD2VEC, "1b")
    shelve(store, WORD2VEC, "1ba")
    assert find_model_folder("1b", WORD2VEC).name == "1b"


def test_only_models_that_the_command_can_use_are_considered(store: Store) -> None:
    shelve(store, WORD2VEC, FIRST, day=3)
    shelve(store, WINDOW_LM, SECOND)
    assert find_model_folder("1baec", TRANSFORMER, WINDOW_LM).name == SECOND
    assert find_model_folder("latest", TRANSFORMER, WINDOW_LM).name == SECOND
    with pytest.raises(ValueError, match="1baece is train_word2vec/1baecedb, but this command needs a "):
        find_model_folder("1baece", TRANSFORMER, WINDOW_LM)
    with pytest.raises(FileNotFoundError, match="has no train_sentiment: list it with `lexloom store ls`"):
        find_model_folder("latest", SENTIMENT)
    for name in ("latest", FIRST):
        with pytest.raises(
            ValueError, match="is a train_word2vec artifact, but this command needs a train_sentiment"
        ):
            find_model_folder(f"{WORD2VEC}/{name}", SENTIMENT)
    with pytest.raises(
        FileNotFoundError, match=r"9 is neither a model folder nor a prefix of a model's name or key"
    ):
        find_model_folder("9", WORD2VEC)


def test_token_vectors_of_a_language_model_are_latest_only_without_others(
    store: Store,
) -> None:
    shelve(store, WORD2VEC, SECOND, inputs=[made_from("subwords", "s")], day=3)
    assert find_place(store, "latest", WORD2VEC) == (WORD2VEC, SECOND)
    shelve(store, WORD2VEC, FIRST, day=1)
    shelve(store, WORD2VEC, OTHER, day=2)
    assert find_place(store, "latest", WORD2VEC) == (WORD2VEC, OTHER)
    assert find_place(store, "latest") == (WORD2VEC, OTHER)


def test_every_command_accepts_these_names(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    shelve(store, WORD2VEC, FIRST, write_words)
    shelve(store, TRANSFORMER, SECOND, write_transformer, day=2)
    shelve(store, WINDOW_LM, OTHER, write_windows, day=3)
    for command in (
        ["neighbours", "latest", "peace", "-k", "1"],
        ["neighbours", "1baece", "peace", "-k", "1"],
        ["analogy", "latest", "war", "wars", "peace", "-k", "1"],
        ["generate", "latest", "--tokens", "2"],
        ["generate", "1baec0", "--tokens", "2"],
        ["generate", "7", "--tokens", "2"],
    ):
        assert main(command) == 0
    assert capsys.readouterr().out.count("treaty") == 3
    assert "9 is neither a model folder nor a prefix of a model's name or key" in complaint(
        capsys, "classify", "9", "good"
    )
    assert "has no train_sentiment" in complaint(capsys, "classify", "latest", "good")
    assert main(["store", "verify", "1baece", f"{WINDOW_LM}/latest", "--all"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{WORD2VEC}/{FIRST}  intact",
        f"{WINDOW_LM}/{OTHER}  intact",
        "2 intact, 0 damaged, 0 outdated",
    ]
    for name in ("7e1", WINDOW_LM, "latest"):
        assert main(["store", "explain", name]) == 0
        assert f"{WINDOW_LM}/{OTHER}" in capsys.readouterr().out
    assert "1baec is ambiguous" in complaint(capsys, "store", "explain", "1baec")


def test_a_damaged_artifact_can_be_named(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    shelve(store, WORD2VEC, FIRST, write_words)
    (store.folder(WORD2VEC, FIRST) / "manifest.json").unlink()
    assert main(["store", "verify", "1ba"]) == 1
    assert capsys.readouterr().out.startswith(f"{WORD2VEC}/{FIRST}  manifest.json is missing")
    assert "manifest.json is missing" in complaint(capsys, "store", "explain", "1ba")
