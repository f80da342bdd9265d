"""`lexloom models`: the models of the store as a table and as JSON."""

import json

import pytest

from lexloom.deployments.cli.main import main
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.names import name_model
from tests.deployments.store import made_from, shelve

WORD2VEC, TRANSFORMER = "train_word2vec", "train_transformer"


@pytest.fixture
def three(store: Store) -> Store:
    shelve(store, "corpus", "c", inputs=[made_from("", "source", called="books/\x1b[31mмир.txt")])
    shelve(store, WORD2VEC, "v" * 24, lambda folder: None, inputs=[made_from("corpus", "c")], rows=9)
    shelve(store, TRANSFORMER, "t" * 24, day=3, facts={"validation_loss": 1.5})
    shelve(store, "evaluate_lm", "e", inputs=[made_from(TRANSFORMER, "t" * 24, "model")], day=3)
    shelve(store, WORD2VEC, "w" * 24, inputs=[made_from("subwords", "s")], rows=5, day=2)
    for name in ("plays", "production"):
        name_model(store, (TRANSFORMER, "t" * 24), name)
    return store


def test_models_are_listed_newest_first_in_aligned_columns(
    three: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["models"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    starts = [header.index(title) for title in ("NAME", "KIND", "SOURCE", "TRAINED", "RESULT")]
    cells = [[row[start:].split("  ")[0] for start in starts] for row in rows]
    assert [row[:3] + row[4:] for row in cells] == [
        ["production, plays", "transformer", "–", "validation loss 1.500"],
        ["wwwwwwww", "word vectors of tokens", "–", "5 tokens"],
        ["vvvvvvvv", "word vectors", "\\x1b[31m\\u043c\\u0438\\u0440.txt", "9 words"],
    ]
    assert all(row[3].startswith("2020-01-0") for row in cells)
    assert {row[header.index("RESULT") - 5 : header.index("RESULT") - 2] for row in rows} == {"0 B"}


def test_models_as_json(three: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    first, second, third = json.loads(capsys.readouterr().out)
    assert first["names"] == ["production", "plays"]
    assert (first["kind"], first["capability"], first["by_product"]) == ("transformer", "generate", False)
    assert first["folder"] == str(three.folder(TRANSFORMER, "t" * 24))
    assert second["by_product"] is True
    assert third["source"] == "\x1b[31mмир.txt"


def test_an_empty_store_says_what_to_do(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    assert capsys.readouterr().out == (
        f"there are no models in {store.root}: train one, for example with `lexloom word2vec`\n"
    )
    assert main(["models", "--json"]) == 0
    assert capsys.readouterr().out == "[]\n"
