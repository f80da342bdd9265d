"""The encoding of a corpus: the choice by its size, and byte pairs that are trained on it."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from lexloom.models.tokenizer.bpe_training import train_byte_pairs
from lexloom.tasks import train_tokenizer as module
from lexloom.tasks.display.console import describe
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, read_tokenizer, subwords
from lexloom.tasks.train_tokenizer import (
    TokenizerConfig,
    choose_encoding,
    default_size,
    find_encoding,
    train_tokenizer,
)
from tests.tasks.test_vocabulary import corpus_of

WORDS = ["".join(syllables) for syllables in product(("ba", "ce", "di", "f\u00f6", "\u732b"), repeat=3)]
TEXTS = [f"The {n}th {' '.join(WORDS[n % 7 :: 7])}'s hat\n" for n in range(60)]
BYTES = sum(len(text.encode()) for text in TEXTS)


@pytest.fixture
def text(tmp_path: Path) -> Artifact:
    made = corpus_of(tmp_path / "corpus", TEXTS, row_group=5)
    made.summary.facts["bytes"] = BYTES
    return made


def of_size(corpus: Artifact, text_bytes: int) -> Artifact:
    summary = corpus.summary.model_copy(update={"facts": {"bytes": text_bytes}})
    return corpus.model_copy(update={"summary": summary})


def test_auto_depends_on_the_size_of_the_text(text: Artifact) -> None:
    for size, expected in ((29_999, "characters"), (30_000, "bpe"), (10**10, "bpe")):
        assert choose_encoding(of_size(text, size), SubwordsConfig(seed=7)) == SubwordsConfig(
            encoding=expected, seed=7
        )
    for encoding in ("gpt2", "bytes", "bpe"):
        config = SubwordsConfig(encoding=encoding)
        assert choose_encoding(of_size(text, 1), config) == config


def test_larger_texts_get_larger_vocabularies() -> None:
    sizes = [default_size(10**power) for power in range(5, 12)]
    assert sizes == sorted(sizes)
    assert (sizes[0], sizes[-1]) == (1024, 16_384)


def test_only_byte_pairs_are_trained(text: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(module, "train_tokenizer", lambda corpus, config: calls.append(config) or corpus)
    for encoding in ("gpt2", "characters", "bytes"):
        config = SubwordsConfig(encoding=encoding)
        assert find_encoding(text, config) == locate_encoding(config)
    assert not calls
    assert find_encoding(text, SubwordsConfig(encoding="bpe", vocab_size=300)) is text
    assert calls == [TokenizerConfig(vocab_size=300)]


def test_ranks_are_trained_on_all_documents(text: Artifact, build: Callable[..., Artifact]) -> None:
    made = build(train_tokenizer, text, config=TokenizerConfig(vocab_size=320))
    assert read_tokenizer(made).encoding.ranks == train_byte_pairs(TEXTS, 320).ranks  # type: ignore[attr-defined]
    assert describe(made.summary) == f"{BYTES:,} bytes \u2192 320 tokens in the vocabulary"


def test_a_large_corpus_is_sampled_evenly(
    text: Artifact, build: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE_BYTES", BYTES // 2 - 10)  # so every third row group of five documents
    made = build(train_tokenizer, text, config=TokenizerConfig(vocab_size=300))
    sample = [each for start in range(0, 60, 15) for each in TEXTS[start : start + 5]]
    assert read_tokenizer(made).encoding.ranks == train_byte_pairs(sample, 300).ranks  # type: ignore[attr-defined]
    read = sum(len(each.encode()) for each in sample)
    assert (made.summary.rows_in, made.summary.dropped) == (read, {"bytes not sampled": BYTES - read})


def test_a_vocabulary_that_the_text_does_not_support_is_rejected_with_the_largest(
    text: Artifact, build: Callable[..., Artifact]
) -> None:
    most = train_byte_pairs(TEXTS, 100_000).size
    message = (
        rf"^the corpus \({BYTES / 1000:.3g} kB of text\) supports at most {most} tokens, but vocab_size is"
        rf" {most + 1}: lower vocab_size to {most} or less, or use more text$"
    )
    with pytest.raises(ValueError, match=message):
        build(train_tokenizer, text, config=TokenizerConfig(vocab_size=most + 1))
    assert build(train_tokenizer, text, config=TokenizerConfig(vocab_size=most)).facts["vocabulary"] == most


def test_the_default_size_is_what_the_text_supports(text: Artifact, build: Callable[..., Artifact]) -> None:
    made = build(train_tokenizer, text, config=TokenizerConfig())
    assert made.facts["vocabulary"] == train_byte_pairs(TEXTS, 100_000).size < 1024


@pytest.mark.parametrize("compact", [True, False])
def test_tokens_of_trained_byte_pairs(text: Artifact, build: Callable[..., Artifact], compact: bool) -> None:
    encoding = build(train_tokenizer, text, config=TokenizerConfig(vocab_size=320))
    config = SubwordsConfig(encoding="bpe", vocab_size=320, compact=compact)
    made = build(subwords, text, encoding, config=config)
    tokenizer = read_tokenizer(made)
    assert made.facts["vocabulary"] == tokenizer.size == 320, "all tokens are kept"
    assert made.facts["encoding"] == "bpe"
    trained = read_tokenizer(encoding)
    for each in TEXTS[:5]:
        parts = [tokenizer.token_bytes(token) for token in tokenizer.encode(each)]
        assert parts == [trained.token_bytes(token) for token in trained.encode(each)]
    shown = describe(made.summary)
    assert "tokens (bpe)" in shown
    assert "320 tokens in the vocabulary" in shown


def test_the_key_depends_on_the_vocabulary_size(text: Artifact) -> None:
    keys = {train_tokenizer.key((text,), TokenizerConfig(vocab_size=size)) for size in (None, 300, 301)}
    assert len(keys) == 3
    one, other = (SubwordsConfig(encoding="bpe", vocab_size=size) for size in (300, 301))
    assert subwords.key((text, text), one) == subwords.key((text, text), other)
