"""Stored pairs: word2vec's distribution, in the blocks of a grid, whatever the input's shards are."""

from collections import Counter
from collections.abc import Callable
from itertools import count, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import lexloom.tasks.pairs
import lexloom.tasks.tokens
from lexloom.models.word2vec.blocks import MAX_RUN
from lexloom.models.word2vec.grid import Blocks, Grid
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.training.grid_stream import StoredEpisodes
from tests.models.word2vec.test_blocks import found as found_in
from tests.models.word2vec.test_skipgram import (
    TEXT,
    assert_drawn_as_expected,
    expected_pairs,
    skipgrams_of,
    thresholds_of,
)

PLAIN = {"shrink_window": False, "subsample": 0}
numbers = count()

texts = st.lists(st.lists(st.integers(0, 9), max_size=12), min_size=1, max_size=8)


def artifact(folder: Path, stage: str) -> Artifact:
    folder.mkdir(parents=True)
    summary = Summary(rows_in=0, unit_in="", rows=0, unit="")
    return Artifact(stage=stage, key=folder.name, folder=folder, summary=summary)


class Made(NamedTuple):
    """What the stage has made of a text."""

    summary: Summary
    folder: Path
    grid: Grid

    def episodes(self, name: str = "train") -> list[Blocks]:
        """The blocks of each episode, in the order of the text."""
        stored = StoredEpisodes(self.folder, name, parts=self.grid.parts, seed=0, shuffle=False)
        return list(stored.read(0, 0, range(self.grid.parts)))  # type: ignore[arg-type]

    def pairs(self, name: str = "train") -> Counter[tuple[int, int]]:
        """The pairs of words."""
        return sum((found_in(blocks, self.grid) for blocks in self.episodes(name)), Counter())

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Run the stage on documents."""

    def run(
        documents: list[list[int]], shards: int = 1, row_group: int = 100, words: int = 10, **options: Any
    ) -> Made:
        folder = tmp_path / f"run-{next(numbers)}"
        tokens, vocabulary = artifact(folder / "tokens", "tokens"), artifact(folder / "words", "vocabulary")
        cuts = [len(documents) * i // shards for i in range(shards + 1)]
        for i in range(shards):
            rows = pa.array(documents[cuts[i] : cuts[i + 1]], pa.list_(pa.int32()))
            file = tokens.folder / f"shard-{i:05d}.parquet"
            pq.write_table(pa.table({"tokens": rows}), file, row_group_size=row_group)
        occurrences = Counter(word for document in documents for word in document)
        counts = pa.array([max(1, occurrences[word]) for word in range(words)], pa.int64())
        names = pa.array([f"w{word}" for word in range(words)])
        pq.write_table(pa.table({"word": names, "count": counts}), vocabulary.folder / "vocabulary.parquet")
        out = folder / "out"
        out.mkdir()
        summary = pairs.function(tokens, vocabulary, PairsConfig(**options), out)
        return Made(summary, out, Grid(words, int(summary.facts["parts"])))  # type: ignore[call-overload]

    return run


def pairs_by_hand(documents: list[list[int]], window: int) -> list[tuple[int, tuple[int, int]]]:
    """The pairs of a text, each with the position of its context among those of all documents."""
    starts = np.cumsum([0, *map(len, documents)]).tolist()
    return [
        (start + i, (document[j], context))
        for start, document in zip(starts, documents, strict=False)
        for i, context in enumerate(document)
        for j in range(max(0, i - window), min(len(document), i + window + 1))
        if i != j
    ]


# Which pairs


def test_hand_computed_sentence(make):
    made = make([[0, 1, 2, 3], [4, 5]], window=2, **PLAIN)
    assert made.pairs() == Counter(
        [
            *[(0, 1), (0, 2)],
            *[(1, 0), (1, 2), (1, 3)],
            *[(2, 0), (2, 1), (2, 3)],
            *[(3, 1), (3, 2)],
            *[(4, 5), (5, 4)],
        ]
    )
    assert (made.summary.rows, made.summary.facts["episodes"], made.summary.facts["parts"]) == (12, 1, 1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    documents=texts,
    window=st.integers(1, 6),
    parts=st.integers(1, 10),
    episode=st.integers(1, 60),
    shards=st.integers(1, 3),
)
def test_episodes_equal_a_plain_loop(make, documents, window, parts, episode, shards):
    """An episode has the pairs of a fixed number of contexts, wherever documents and shards end."""
    expected = pairs_by_hand(documents, window)
    if not expected:
        return
    options = {"window": window, "parts": parts, "pairs_per_episode": episode, **PLAIN}
    made = make(documents, shards, row_group=2, **options)
    positions = -(-episode // (2 * window))
    by_episode: dict[int, Counter[tuple[int, int]]] = {}
    for position, pair in expected:
        by_episode.setdefault(position // positions, Counter())[pair] += 1
    found = [found_in(blocks, made.grid) for blocks in made.episodes()]
    assert found == [by_episode[number] for number in sorted(by_episode)]
    summary = made.summary
    assert summary.rows == summary.facts["pairs"] == len(expected)
    assert summary.facts["episodes"] == len(found)
    assert summary.facts["positions"] == sum(len(document) for document in documents if len(document) > 1)
    assert summary.rows_in == sum(map(len, documents))
    assert summary.dropped["words without context"] == sum(len(document) == 1 for document in documents)


def test_document_may_span_episodes_and_be_longer_than_a_batch(make, monkeypatch):
    monkeypatch.setattr(lexloom.tasks.tokens, "TOKENS_PER_BATCH", 64)
    document = (list(range(10)) * 200)[:-3]
    made = make([[1, 2], document, [3]], window=2, parts=3, pairs_per_episode=400, **PLAIN)
    assert made.summary.facts["episodes"] == 20
    sizes = [len(blocks.targets) for blocks in made.episodes()]
    assert sizes[1:-1] == [400] * 18
    assert made.pairs() == Counter(pair for _, pair in pairs_by_hand([[1, 2], document], 2))


def test_empty_documents_and_single_words_have_no_pairs(make):
    made = make([[], [7], [1, 2], [], [3]], **PLAIN)
    assert made.pairs() == Counter([(1, 2), (2, 1)])
    summary = made.summary
    assert summary.dropped == {"dropped by subsampling": 0, "words without context": 2}
    assert (summary.rows_in, summary.facts["documents"], summary.facts["positions"]) == (4, 5, 2)


def test_pairs_of_one_target_are_runs(make):
    made = make([[0, 1, 2, 0, 1, 2, 0, 3] * 30], window=5, parts=2, **PLAIN)
    (blocks,) = made.episodes()
    lengths = []
    for row in blocks.bounds:
        for first, last in pairwise(row):
            targets = blocks.targets[first:last]
            changes = np.flatnonzero(np.diff(targets)) + 1
            lengths += np.diff([0, *changes, len(targets)]).tolist()
    assert sum(lengths) == made.summary.rows
    assert sum(-(-length // MAX_RUN) for length in lengths) < made.summary.rows / 6


# What is drawn


def test_shrunk_window_is_uniform_and_centred(make):
    words = 20_000
    (blocks,) = make(
        [list(range(words))], words=words, window=4, parts=1, pairs_per_episode=1_000_000, subsample=0
    ).episodes()
    offsets = blocks.contexts.astype(int) - blocks.targets
    widths = np.zeros(words, int)
    np.maximum.at(widths, blocks.targets, offsets)
    sides = np.zeros(words, int)
    np.maximum.at(sides, blocks.targets, -offsets)
    inner = slice(4, words - 4)
    assert (widths[inner] == sides[inner]).all()
    assert (np.bincount(blocks.targets)[inner] == 2 * widths[inner]).all()
    reach = widths[inner]
    seen = np.bincount(reach, minlength=5)[1:]
    assert np.allclose(seen / len(reach), 1 / 4, atol=4 * np.sqrt(1 / 4 * 3 / 4 / len(reach)))
    assert abs(np.corrcoef(reach[:-1], reach[1:])[0, 1]) < 4 / np.sqrt(len(reach))


def test_subsampling_follows_word2vecs_formula(make):
    threshold, occurrences = 0.02, {0: 60_000, 1: 30_000, 2: 8_000, 3: 2_000}
    text = np.repeat(list(occurrences), list(occurrences.values()))
    np.random.default_rng(0).shuffle(text)
    found = make(text.reshape(100, -1).tolist(), words=4, window=1, parts=2, subsample=threshold).pairs()
    # with window 1 a kept word is the target of two pairs, or of one at the ends of its document
    as_target: Counter[int] = Counter()
    for (target, _), pair_count in found.items():
        as_target[target] += pair_count
    for word, occurrence in occurrences.items():
        share = occurrence / len(text)
        probability = min(1.0, np.sqrt(threshold / share) + threshold / share)
        ends_of_documents = 100 / occurrence
        tolerance = 4 * np.sqrt(probability * (1 - probability) / occurrence) + ends_of_documents
        assert as_target[word] / 2 / occurrence == pytest.approx(probability, abs=tolerance)
    assert as_target[3] / 2 == pytest.approx(2_000, abs=100)  # a rare word is always kept


def test_windows_are_drawn_after_subsampling(make):
    # about a third of the words is dropped; those that are kept become neighbours
    documents = [[0, 1, 2, 3] * 50] * 20
    made = make(documents, words=4, window=1, subsample=0.04, shrink_window=False)
    kept = made.summary.rows_in - made.summary.dropped["dropped by subsampling"]
    assert 0.4 < kept / made.summary.rows_in < 0.8
    assert made.summary.rows == 2 * kept - 2 * len(documents)


def test_stored_and_streamed_pairs_have_the_same_distribution(make):
    """tests/models/word2vec/test_skipgram.py tests the pairs that are drawn in training."""
    kept = thresholds_of(TEXT, 0.05) / (1 << 32)
    options = {"words": 4, "window": 3, "subsample": 0.05, "parts": 2}
    found = [make(TEXT, seed=seed, **options).pairs() for seed in range(200)]
    assert_drawn_as_expected(found, expected_pairs(TEXT, kept, window=3))


def test_whole_documents_are_held_out_and_no_pair_is_lost(make):
    documents = [[i, i + 1, i, i + 1] for i in range(0, 2000, 2)]  # every document has words of its own
    options = {"words": 2000, "window": 2, "parts": 3, "pairs_per_episode": 3000, **PLAIN}
    everything = make(documents, **options).pairs()
    made = make(documents, validation_share=0.2, shards=3, **options)
    trained, held_out = made.pairs(), made.pairs("validation")
    assert trained + held_out == everything
    numbers = {target // 2 for target, _ in held_out}
    assert not {target // 2 for target, _ in trained} & numbers
    assert len(numbers) == pytest.approx(200, abs=40)
    streamed = skipgrams_of(np.zeros(2000, np.uint64), window=2, held_out_share=0.2)
    assert numbers == set(np.flatnonzero(streamed.held_out(np.arange(1000))).tolist())
    assert made.summary.facts["validation_pairs"] == held_out.total()
    assert made.summary.rows == trained.total() == everything.total() - held_out.total()


def test_share_that_holds_out_nothing_is_rejected(make):
    with pytest.raises(ValueError, match="no pair is held out of 3 documents: raise validation_share"):
        make([[0, 1, 2]] * 3, validation_share=0.001, **PLAIN)


# Independent of shards, batches and threads


def test_files_do_not_depend_on_shards_batches_or_threads(make, monkeypatch):
    generator = np.random.default_rng(3)
    documents = [generator.integers(0, 10, generator.integers(0, 40)).tolist() for _ in range(300)]
    options = {"window": 3, "subsample": 0.01, "seed": 7, "parts": 4, "pairs_per_episode": 500}
    options["validation_share"] = 0.1
    made = make(documents, **options)
    assert made.summary.facts["episodes"] > 5
    assert 0 < made.summary.dropped["dropped by subsampling"] < made.summary.rows_in
    assert len(made.files()) == 10
    assert make(documents, shards=7, row_group=11, **options).files() == made.files()
    monkeypatch.setattr(lexloom.tasks.tokens, "TOKENS_PER_BATCH", 64)
    assert make(documents, shards=3, **options).files() == made.files()
    monkeypatch.setattr(lexloom.tasks.pairs, "available_cpus", lambda: 7)
    again = make(documents, shards=2, row_group=5, **options)
    assert again.files() == made.files()
    assert again.summary == made.summary


def test_parts_and_episodes_do_not_change_the_pairs(make):
    documents = [np.random.default_rng(i).integers(0, 10, 30).tolist() for i in range(20)]
    options = {"window": 3, "subsample": 0.05}
    one = make(documents, parts=1, **options).pairs()
    for parts, episode in ((1, 50), (3, 10_000), (10, 77)):
        assert make(documents, parts=parts, pairs_per_episode=episode, **options).pairs() == one


def test_another_seed_draws_other_pairs(make):
    documents = [list(range(10)) * 10]
    files = [make(documents, seed=seed).files() for seed in (1, 1, 2)]
    assert files[0] == files[1] != files[2]


def test_equal_documents_have_different_draws(make):
    words = list(range(30))
    made = make([words, words], words=30, subsample=0, parts=1, pairs_per_episode=30 * 6)
    first, second = (found_in(blocks, made.grid) for blocks in made.episodes())
    assert first != second


# Files


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_columns_are_row_numbers_in_a_row_group_for_each_episode(make, compression):
    made = make(
        [[0, 1, 2, 3, 4] * 20], parts=3, pairs_per_episode=120, window=3, compression=compression, **PLAIN
    )
    assert sorted(made.files()) == [
        "blocks-train.parquet",
        *(f"train-0000{part}.parquet" for part in range(3)),
    ]
    total = 0
    for part in range(3):
        file = pq.ParquetFile(made.folder / f"train-0000{part}.parquet")
        assert file.schema_arrow == pa.schema(
            [pa.field("target", pa.uint16(), False), pa.field("context", pa.uint16(), False)]
        )
        assert file.num_row_groups == made.summary.facts["episodes"] == 5
        assert file.metadata.row_group(0).column(0).compression.lower() == compression
        total += file.metadata.num_rows
    assert total == made.summary.rows == made.pairs().total() == 6 * 100 - 12


def test_input_part_without_pairs_has_no_row_group(make):
    """Words 0 to 2 occur; with five parts of two words, parts 1 and 4 are empty, and in time part 0 too."""
    documents = [[0, 1, 2] * 4, [1, 2] * 6, [0, 1, 2] * 4]
    made = make(documents, parts=5, window=1, pairs_per_episode=24, **PLAIN)
    row_groups = [
        pq.ParquetFile(made.folder / f"train-0000{part}.parquet").num_row_groups for part in range(5)
    ]
    assert row_groups == [2, 0, 3, 3, 0]
    episodes = [found_in(blocks, made.grid) for blocks in made.episodes()]
    assert episodes == [Counter(pair for _, pair in pairs_by_hand([text], 1)) for text in documents]


def test_diagonal_without_pairs_is_empty(make):
    """Words 0 and 1 alternate, so with two parts no context is in its target's part."""
    made = make([[0, 1] * 10], parts=2, words=2, window=1, **PLAIN)
    (lengths,) = [np.diff(blocks.bounds, axis=1) for blocks in made.episodes()]
    assert lengths.tolist() == [[0, 19], [19, 0]]


def test_stretch_without_pairs_makes_no_episode(make):
    made = make([[0, 1] * 5, *([2] for _ in range(50)), [0, 1] * 5], window=1, pairs_per_episode=20, **PLAIN)
    assert made.summary.facts["episodes"] == 2
    assert [len(blocks.targets) for blocks in made.episodes()] == [18, 18]


# Vocabularies and parts


def test_vocabulary_of_one_word(make):
    made = make([[0, 0, 0]], words=1, window=1, **PLAIN)
    assert made.summary.facts["parts"] == 1
    assert made.pairs() == Counter({(0, 0): 4})


@pytest.mark.parametrize("parts", [1, 2])
def test_vocabulary_of_two_words(make, parts):
    made = make([[0, 1, 1]], words=2, window=1, parts=parts, **PLAIN)
    assert made.pairs() == Counter({(0, 1): 1, (1, 0): 1, (1, 1): 2})


def test_more_parts_than_words_are_rejected(make):
    with pytest.raises(
        ValueError, match=r"^parts is 3: it must be between 1 and 2 for a vocabulary of 2 words$"
    ):
        make([[0, 1, 1]], words=2, parts=3, **PLAIN)


# Errors


def test_text_without_pairs_is_rejected_with_a_remedy(make):
    with pytest.raises(ValueError, match=r"no pairs can be .* from 3 documents with 2 words.*subsample"):
        make([[1], [], [2]], **PLAIN)


def test_tokens_of_another_vocabulary_are_rejected(make):
    with pytest.raises(ValueError, match="not in the vocabulary of 3 words"):
        make([[0, 1, 5]], words=3)


@pytest.mark.parametrize("episode", [None, 4])
def test_failure_of_a_writing_thread_is_raised(make, monkeypatch, episode):
    """The second episode waits for the first one, and the end of the text for the last one."""

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "ParquetWriter", fail)
    with pytest.raises(OSError, match="No space left"):
        make([[0, 1, 2]] * 5, pairs_per_episode=episode, **PLAIN)


@pytest.mark.parametrize(
    "options",
    [
        *({"window": 0}, {"subsample": -0.1}, {"subsample": 1.5}, {"seed": -1}),
        *({"parts": 0}, {"pairs_per_episode": 0}, {"pairs_per_episode": (1 << 25) + 1}),
    ],
)
def test_options_out_of_bounds_are_rejected(options):
    with pytest.raises(ValidationError):
        PairsConfig(**options)
