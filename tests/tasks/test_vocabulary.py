"""Tests of the vocabulary against an independent count in plain Python."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexloom.tasks import vocabulary as vocabulary_module
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.vocabulary import (
    VocabularyConfig,
    WordCounts,
    assign_buckets,
    count_words,
    read_vocabulary,
    split_words,
    vocabulary,
)

TEXTS = ["the cat and the dog", "the dog", "a ant and", "zebra", "été the"]


def corpus_of(
    folder: Path, texts: list[str], row_group: int = 2, shards: int = 2, continues: list[bool] | None = None
) -> Artifact:
    """Write a corpus artifact with these rows, which are documents unless `continues` is given."""
    folder.mkdir()
    size = -(-len(texts) // shards)
    for n in range(shards):
        rows = slice(n * size, (n + 1) * size)
        part = pa.table({"text": texts[rows], "continues": (continues or [False] * len(texts))[rows]})
        pq.write_table(part, folder / f"shard-{n:05d}.parquet", row_group_size=row_group)
    summary = Summary(rows_in=len(texts), unit_in="documents", rows=len(texts), unit="documents")
    return Artifact(stage="corpus", key="0" * 24, folder=folder, summary=summary)


@pytest.fixture
def words_of(build: Callable[..., Artifact], tmp_path: Path) -> Callable[..., Artifact]:
    def run(texts: list[str], **options: int) -> Artifact:
        return build(vocabulary, corpus_of(tmp_path / "corpus", texts), config=VocabularyConfig(**options))

    return run


def ranked(texts: list[str], min_count: int = 1) -> list[tuple[str, int]]:
    """Count words in plain Python, most frequent first, ties by code points."""
    counts = Counter(word for text in texts for word in text.split())
    return sorted(((w, n) for w, n in counts.items() if n >= min_count), key=lambda pair: (-pair[1], pair[0]))


def pairs(artifact: Artifact) -> list[tuple[str, int]]:
    words, counts = read_vocabulary(artifact)
    return list(zip(words.to_pylist(), counts.tolist(), strict=True))


def test_words_are_sorted_by_count_then_by_code_point(
    words_of: Callable[..., Artifact],
) -> None:
    made = words_of(TEXTS, min_count=1)
    assert pairs(made)[:3] == [("the", 4), ("and", 2), ("dog", 2)]
    assert [word for word, _ in pairs(made)[3:]] == ["a", "ant", "cat", "zebra", "été"]


def test_the_file_has_the_documented_schema(words_of: Callable[..., Artifact]) -> None:
    made = words_of(TEXTS, min_count=2)
    assert pq.read_schema(made.folder / "vocabulary.parquet").remove_metadata() == pa.schema(
        [("word", pa.string()), ("count", pa.int64())]
    )
    assert json.loads((made.folder / "vocabulary.json").read_text()) == {"the": 0, "and": 1, "dog": 2}
    words, counts = read_vocabulary(made)
    assert isinstance(words, pa.StringArray)
    assert counts.dtype == np.int64
    assert sorted(path.name for path in made.folder.iterdir()) == ["vocabulary.json", "vocabulary.parquet"]


def test_all_words_are_counted(words_of: Callable[..., Artifact]) -> None:
    made = words_of(TEXTS, min_count=2, max_size=2)
    assert pairs(made) == [("the", 4), ("and", 2)]
    summary = made.summary
    assert (summary.rows_in, summary.rows) == (13, 2)
    assert summary.dropped == {"words below min_count": 5, "words beyond max_size": 2}
    assert made.facts == {"words": 6, "distinct": 8, "coverage": round(6 / 13, 6)}


def test_a_vocabulary_without_frequent_words_is_rejected(words_of: Callable[..., Artifact]) -> None:
    with pytest.raises(
        ValueError,
        match="no word occurs at least 5 times: the most frequent, 'the', occurs 4 times",
    ):
        words_of(TEXTS)


def test_json_is_written_in_pieces(
    words_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_module, "JSON_ROWS", 3)
    made = words_of([*TEXTS, 'quote"d back\\slash'], min_count=1)
    assert json.loads((made.folder / "vocabulary.json").read_text()) == {
        word: number for number, (word, _) in enumerate(pairs(made))
    }


WORDS = st.lists(st.text(st.sampled_from("abéß漢😀"), min_size=1, max_size=3), min_size=1, max_size=40)


@settings(deadline=None)
@given(documents=st.lists(WORDS, min_size=1, max_size=8))
def test_counts_equal_plain_python(documents: list[list[str]]) -> None:
    texts = [" ".join(words) for words in documents]
    words, counts = count_words(pa.array(texts))
    assert dict(zip(words.to_pylist(), counts.to_pylist(), strict=True)) == Counter(" ".join(texts).split())


@settings(deadline=None)
@given(documents=st.lists(WORDS, min_size=1, max_size=20))
def test_spilling_and_merging_change_nothing(
    documents: list[list[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary_module, "MERGE_ROWS", 10)
        patch.setattr(vocabulary_module, "SPILL_ROWS", 15)
        patch.setattr(vocabulary_module, "BUCKETS", 4)
        counts = WordCounts(tmp_path_factory.mktemp("spill") / "spill")
        for words in documents:
            counts.add(*count_words(pa.array([" ".join(words)])))
        kept = counts.select_frequent(2).to_pydict()
    expected = Counter(word for words in documents for word in words)
    assert dict(zip(kept["word"], kept["count"], strict=True)) == {w: n for w, n in expected.items() if n > 1}
    assert (counts.total, counts.distinct) == (sum(expected.values()), len(expected))
    assert counts.most_frequent[1] == max(expected.values())


def test_spilled_files_are_removed(
    words_of: Callable[..., Artifact], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary_module, "SPILL_ROWS", 0)
    made = words_of(TEXTS, min_count=1)
    assert pairs(made) == ranked(TEXTS)
    assert sorted(path.name for path in made.folder.iterdir()) == ["vocabulary.json", "vocabulary.parquet"]


def test_buckets_are_even_and_depend_on_the_word_only() -> None:
    words = pa.array([f"word{n}" for n in range(20_000)], pa.large_string())
    shares = np.bincount(assign_buckets(words), minlength=vocabulary_module.BUCKETS)
    assert shares.min() > 100
    assert assign_buckets(words.slice(7, 100)).tolist() == assign_buckets(words)[7:107].tolist()


def test_white_space_of_any_length_separates_words() -> None:
    assert split_words(pa.array([" a\t b\n\nc ", "d"])).to_pylist() == [["a", "b", "c"], ["d"]]


# scripts without spaces

CLAUSES = {
    "Chinese": "今天天气很好我们一起去公园散步",
    "Japanese": "今日はとても天気がいいので公園へ行きました",
    "Thai": "วันนี้อากาศดีมากเราไปเดินเล่นในสวนสาธารณะกัน",
    "Khmer": "ថ្ងៃនេះអាកាសធាតុល្អណាស់យើងទៅដើរលេងនៅសួនច្បារ",
}


@pytest.mark.parametrize("language", CLAUSES)
def test_text_without_spaces_gives_a_warning(
    language: str, words_of: Callable[..., Artifact], capfd: pytest.CaptureFixture[str]
) -> None:
    clause = CLAUSES[language]
    made = words_of([clause, f"{clause} in english"], min_count=1)
    assert made.summary.notes == {"characters in text without spaces": 2 * len(clause)}
    said = " ".join(capfd.readouterr().err.split())
    assert f"of the corpus has no spaces between words ({clause[:20]!r} counts as one word)" in said
    assert "use --segment characters" in said


def test_text_without_spaces_explains_an_empty_vocabulary(
    words_of: Callable[..., Artifact],
) -> None:
    with pytest.raises(ValueError, match=r"100% of the corpus has no spaces between words .*--segment"):
        words_of(list(CLAUSES.values()), min_count=5)


@pytest.mark.parametrize(
    "text",
    [
        " ".join(CLAUSES["Chinese"]),
        "今天 天气 很 好 我们 一起 去 公园 散步",
        "コンピューター が とても 速い です から 仕事 が すぐ 終わり ました",
        "วันนี้ อากาศ ดี มาก เรา ไป เดินเล่น ใน สวนสาธารณะ กัน",
        "the president of the united states 今天天气很好",
        "достопримечательностями überraschungsparty",
    ],
)
def test_text_with_spaces_gives_no_warning(
    text: str, words_of: Callable[..., Artifact], capfd: pytest.CaptureFixture[str]
) -> None:
    words_of([text, text], min_count=1)
    assert "no spaces" not in capfd.readouterr().err


def test_the_normalization_is_passed_on(words_of: Callable[..., Artifact], tmp_path: Path) -> None:
    assert "normalization" not in words_of(TEXTS, min_count=1).facts
    corpus = corpus_of(tmp_path / "normalized", TEXTS)
    corpus.facts["normalization"] = {"lower": True}
    (out := tmp_path / "out").mkdir()
    found = vocabulary.function(corpus, VocabularyConfig(min_count=1), out)
    assert found.facts["normalization"] == {"lower": True}
