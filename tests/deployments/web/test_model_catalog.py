"""The catalog: the models that the page lists, their labels, and the number kept in memory."""

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from lexloom.deployments.web import model_catalog as module
from lexloom.deployments.web.model_catalog import ModelCatalog
from lexloom.models.registry import load_model
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.names import name_model
from tests.deployments.store import made_from, shelve, write_words

WORD2VEC, WINDOW_LM, TRANSFORMER = "train_word2vec", "train_window_lm", "train_transformer"
AT_NOON = f"{datetime(2020, 1, 1, 12, tzinfo=UTC).astimezone():%H:%M}"


def test_models_are_listed_by_capability_newest_first(store: Store) -> None:
    shelve(store, TRANSFORMER, "old", day=1)
    shelve(store, WINDOW_LM, "new", day=3)
    shelve(store, TRANSFORMER, "middle", day=2)
    shelve(store, WORD2VEC, "another", day=4)
    catalog = ModelCatalog(store)
    assert [entry.name.partition("/")[2] for entry in catalog.entries("generate")] == ["new", "middle", "old"]
    assert [entry.name for entry in catalog.entries("neighbours")] == ["train_word2vec/another"]
    assert catalog.entries("classify") == []


def test_a_missing_store_has_no_models(tmp_path: Path) -> None:
    assert ModelCatalog(Store(tmp_path / "nowhere")).entries("neighbours") == []


def test_a_label_names_date_corpus_and_headline_figure(store: Store) -> None:
    shelve(store, "corpus", "c", inputs=[made_from("", "source", called="/data/books.txt")])
    shelve(store, "tokens", "t", inputs=[made_from("corpus", "c")])
    shelve(store, WORD2VEC, "v", inputs=[made_from("tokens", "t")], rows=11768, day=7)
    (entry,) = ModelCatalog(store).entries("neighbours")
    assert entry.label == f"7 Jan 2020, {AT_NOON} · books.txt · 11,768 words"


def test_a_label_has_the_models_name_in_place_of_date_and_corpus(store: Store) -> None:
    shelve(store, TRANSFORMER, "t", rows=802_688, unit="parameters")
    shelve(store, WORD2VEC, "v", rows=5)
    for place in ((TRANSFORMER, "t"), (WORD2VEC, "v")):
        name_model(store, place, f"my-{place[1]}")
    catalog = ModelCatalog(store)
    assert catalog.entries("generate")[0].label == "my-t · transformer · 803k parameters"
    assert catalog.entries("neighbours")[0].label == "my-v · 5 words"


def test_a_label_has_the_full_name_of_a_hub_dataset(store: Store) -> None:
    shelve(store, "corpus", "c", inputs=[made_from("", "source", called="hf:stanfordnlp/imdb")])
    shelve(store, WORD2VEC, "v", inputs=[made_from("corpus", "c")])
    assert "· hf:stanfordnlp/imdb ·" in ModelCatalog(store).entries("neighbours")[0].label


def test_a_label_omits_a_corpus_that_the_store_no_longer_has(store: Store) -> None:
    shelve(store, WORD2VEC, "v", inputs=[made_from("tokens", "collected")], rows=5)
    assert ModelCatalog(store).entries("neighbours")[0].label == f"1 Jan 2020, {AT_NOON} · 5 words"


@pytest.mark.parametrize(
    ("evaluation", "figure"),
    [
        ({"accuracy": 0.8764, "f1": 0.87}, "accuracy 87.6%"),
        ({"bits_per_byte": 1.5581, "top_1": 0.3}, "1.558 bits per byte"),
        ({"bits_per_byte": None, "top_1": 0.2312}, "top-1 accuracy 23.1%"),
        ({}, "validation loss 0.460"),
    ],
)
def test_the_headline_figure_is_the_evaluations(
    store: Store, evaluation: dict[str, float], figure: str
) -> None:
    shelve(store, TRANSFORMER, "m", facts={"validation_loss": 0.4595})
    shelve(store, "evaluate_lm", "e", inputs=[made_from(TRANSFORMER, "m", "model")], facts=evaluation)
    assert ModelCatalog(store).entries("generate")[0].label.endswith(f"transformer · {figure}")


def test_a_model_without_an_evaluation_shows_its_size(store: Store) -> None:
    shelve(store, TRANSFORMER, "m", rows=802_688, unit="parameters")
    assert ModelCatalog(store).entries("generate")[0].label.endswith("803k parameters")


def test_token_vectors_of_a_language_model_are_listed_last(store: Store) -> None:
    shelve(store, WORD2VEC, "words", day=1)
    shelve(store, WORD2VEC, "tokens", inputs=[made_from("subwords", "s")], rows=9, day=2)
    entries = ModelCatalog(store).entries("neighbours")
    assert [entry.name for entry in entries] == [f"{WORD2VEC}/words", f"{WORD2VEC}/tokens"]
    assert entries[1].label.endswith("9 tokens")


def test_only_the_last_used_models_stay_in_memory(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = (shelve(store, WORD2VEC, key, write_words) for key in ("a", "b", "c"))
    catalog = ModelCatalog(store, cached=2)
    loaded: list[str] = []

    def load(folder: Path, capability: Any) -> Any:
        loaded.append(folder.name)
        return load_model(folder, capability)

    monkeypatch.setattr(module, "load_model", load)
    first = catalog.load(a, "neighbours")
    catalog.load(b, "neighbours")
    assert catalog.load(a, "neighbours") is first  # and is now the last used: b is dropped when c is loaded
    catalog.load(c, "neighbours")
    assert catalog.load(a, "neighbours") is first
    assert loaded == ["a", "b", "c"]
    catalog.load(b, "neighbours")
    assert loaded == ["a", "b", "c", "b"]


def test_a_model_that_was_removed_from_the_store_is_not_served_from_memory(store: Store) -> None:
    name = shelve(store, WORD2VEC, "a", write_words)
    catalog = ModelCatalog(store)
    catalog.load(name, "neighbours")
    shutil.rmtree(store.folder(WORD2VEC, "a"))
    with pytest.raises(FileNotFoundError, match="no longer in the store: press Refresh"):
        catalog.load(name, "neighbours")
