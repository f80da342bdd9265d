"""Training of byte pairs: merges by hand, and the result in other tools."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from lexloom.models.tokenizer.bpe_ranks import BYTE_VALUES
from lexloom.models.tokenizer.bpe_training import MIN_VOCABULARY, train_byte_pairs
from lexloom.models.tokenizer.hf_export import export_hugging_face
from lexloom.models.tokenizer.tokenizer import Tokenizer

WORDS = ["".join(syllables) for syllables in product(("ba", "ce", "di", "f\u00f6", "\u732b"), repeat=3)]
TEXTS = [f"The {n}th {' '.join(WORDS[n::7])}'s hat; {n % 7} \u2014 !\n\n  Then" for n in range(28)]


def merged(texts: list[str], vocabulary: int) -> list[bytes]:
    """The tokens of several bytes, in order of rank."""
    ranks = train_byte_pairs(texts, vocabulary).ranks
    return [token for token in sorted(ranks, key=ranks.__getitem__) if len(token) > 1]


def test_most_frequent_pairs_are_merged_first() -> None:
    # "ab" occurs 4 times, "bc" 3 times, and "dd" once
    texts = ["abc,abc,abc", "ab", "dd"]
    assert merged(texts, 1000) == [b"ab", b"abc"]
    assert merged(texts, MIN_VOCABULARY + 1) == [b"ab"]
    assert merged(texts, MIN_VOCABULARY) == []


def test_tokens_do_not_cross_words_numbers_or_punctuation() -> None:
    assert set(merged(["ab12,. " * 9], 1000)) == {b"ab", b"12", b",.", b" ab"}


@pytest.mark.parametrize("vocabulary", [MIN_VOCABULARY, 300, 400])
def test_encoding_has_the_requested_size(vocabulary: int) -> None:
    encoding = train_byte_pairs(TEXTS, vocabulary)
    assert (encoding.size, encoding.end_of_text) == (vocabulary, vocabulary - 1)
    assert sorted(encoding.ranks.values()) == list(range(vocabulary - 1))
    assert {token for token in encoding.ranks if len(token) == 1} == {bytes([n]) for n in range(BYTE_VALUES)}


def test_every_text_is_encoded_and_decoded() -> None:
    tokenizer = Tokenizer(train_byte_pairs(TEXTS, 350))
    for text in [*TEXTS[:3], "\U0001f389 \r\n\x00 \u043d\u0435\u0442"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    used = Counter(token for text in TEXTS for token in tokenizer.encode(text))
    assert sum(used.values()) < sum(len(text.encode()) for text in TEXTS) / 2


@pytest.mark.parametrize("parallel", ["false", "true"])
def test_threads_and_batches_do_not_affect_the_ranks(monkeypatch: pytest.MonkeyPatch, parallel: str) -> None:
    expected = train_byte_pairs(TEXTS, 400).ranks
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
    for _ in range(3):
        assert train_byte_pairs(iter(TEXTS), 400).ranks == expected
    assert train_byte_pairs(reversed(TEXTS), 400).ranks == expected


def test_transformers_computes_the_same_ids(tmp_path: Path) -> None:
    for vocabulary in (MIN_VOCABULARY, 300, 400):
        encoding = train_byte_pairs(TEXTS, vocabulary)
        base_ids = np.arange(encoding.size, dtype=np.int32)[::-1].copy()
        tokenizer = Tokenizer(encoding, base_ids)  # renumbered, as in a model folder
        export_hugging_face(tokenizer, tmp_path)
        theirs = AutoTokenizer.from_pretrained(tmp_path)
        assert len(theirs) == tokenizer.size == vocabulary
        for text in [*TEXTS[:3], "hat", "  hatcatThen'the", "<|endoftext|> \t\U0001f389 it's \r\n\n 123456"]:
            assert theirs(text)["input_ids"] == tokenizer.encode(text)
