"""The shelf: which models are offered, how they are called, and how many stay in memory."""

import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lexloom.deployments.web.model_catalog import Shelf
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.lookup import SENTIMENT, TRANSFORMER, WINDOW_LM, WORD2VEC
from tests.deployments.store import made_from, shelve, write_words

AT_NOON = f"{datetime(2020, 1, 1, 12, tzinfo=UTC).astimezone():%H:%M}"


def test_models_of_the_asked_stages_stand_newest_first(store: Store) -> None:
    shelve(store, TRANSFORMER, "old", day=1)
    shelve(store, WINDOW_LM, "new", day=3)
    shelve(store, TRANSFORMER, "middle", day=2)
    shelve(store, WORD2VEC, "another", day=4)
    shelf = Shelf(store)
    assert [entry.key for entry in shelf.entries(TRANSFORMER, WINDOW_LM)] == ["new", "middle", "old"]
    assert [entry.name for entry in shelf.entries(WORD2VEC)] == ["train_word2vec/another"]
    assert shelf.entries(SENTIMENT) == []


def test_a_store_that_is_not_there_has_no_models(tmp_path: Path) -> None:
    assert Shelf(Store(tmp_path / "nowhere")).entries(WORD2VEC) == []


def test_a_model_is_called_by_its_day_its_text_and_its_figure(store: Store) -> None:
    shelve(store, "corpus", "c", inputs=[made_from("", "source", called="/data/books.txt")])
    shelve(store, "tokens", "t", inputs=[made_from("corpus", "c")])
    shelve(store, WORD2VEC, "v", inputs=[made_from("tokens", "t")], rows=11768, day=7)
    (entry,) = Shelf(store).entries(WORD2VEC)
    assert entry.label == f"7 Jan 2020, {AT_NOON} · books.txt · 11,768 words"


def test_a_hub_data_set_keeps_its_whole_name(store: Store) -> None:
    shelve(store, "corpus", "c", inputs=[made_from("", "source", called="hf:stanfordnlp/imdb")])
    shelve(store, WORD2VEC, "v", inputs=[made_from("corpus", "c")])
    assert "· hf:stanfordnlp/imdb ·" in Shelf(store).entries(WORD2VEC)[0].label


def test_a_text_that_the_store_no_longer_knows_is_left_out(store: Store) -> None:
    shelve(store, WORD2VEC, "v", inputs=[made_from("tokens", "collected")], rows=5)
    assert Shelf(store).entries(WORD2VEC)[0].label == f"1 Jan 2020, {AT_NOON} · 5 words"


@pytest.mark.parametrize(
    ("judged", "said"),
    [
        ({"accuracy": 0.8764, "f1": 0.87}, "87.6% accurate"),
        ({"bits_per_byte": 1.5581, "top_1": 0.3}, "1.558 bits a byte"),
        ({"bits_per_byte": None, "top_1": 0.2312}, "23.1% of tokens foreseen"),
        ({}, "validation loss 0.460"),
    ],
)
def test_the_evaluation_of_a_model_says_how_good_it_is(
    store: Store, judged: dict[str, float], said: str
) -> None:
    shelve(store, TRANSFORMER, "m", facts={"validation_loss": 0.4595})
    shelve(store, "evaluate_lm", "e", inputs=[made_from(TRANSFORMER, "m", "model")], facts=judged)
    assert Shelf(store).entries(TRANSFORMER)[0].label.endswith(f"transformer · {said}")


def test_a_model_that_nobody_judged_is_named_by_its_size(store: Store) -> None:
    shelve(store, TRANSFORMER, "m", rows=802_688, unit="parameters")
    assert Shelf(store).entries(TRANSFORMER)[0].label.endswith("803k parameters")


def test_token_embeddings_of_a_language_model_stand_behind_words(store: Store) -> None:
    shelve(store, WORD2VEC, "words", day=1)
    shelve(store, WORD2VEC, "tokens", inputs=[made_from("subwords", "s")], rows=9, day=2)
    entries = Shelf(store).entries(WORD2VEC)
    assert [entry.key for entry in entries] == ["words", "tokens"]
    assert entries[1].label.endswith("9 tokens")


def test_the_last_used_models_stay_in_memory_and_no_more(store: Store) -> None:
    names = [shelve(store, WORD2VEC, key, write_words) for key in ("a", "b", "c")]
    shelf = Shelf(store, kept=2)
    read: list[str] = []

    def reader(folder: Path) -> WordVectors:
        read.append(folder.name)
        return WordVectors.load(folder)

    a, b, c = names
    first = shelf.load(a, reader)
    shelf.load(b, reader)
    assert shelf.load(a, reader) is first  # and is now the last used: b goes when c comes
    shelf.load(c, reader)
    assert shelf.load(a, reader) is first
    assert read == ["a", "b", "c"]
    shelf.load(b, reader)
    assert read == ["a", "b", "c", "b"]


def test_a_model_that_has_left_the_store_is_not_served_from_memory(store: Store) -> None:
    name = shelve(store, WORD2VEC, "a", write_words)
    shelf = Shelf(store)
    shelf.load(name, WordVectors.load)
    shutil.rmtree(store.folder(WORD2VEC, "a"))
    with pytest.raises(FileNotFoundError, match="no longer in the store: press Refresh"):
        shelf.load(name, WordVectors.load)
