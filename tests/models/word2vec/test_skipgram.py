"""Pairs drawn from tokens: word2vec's distribution, determined by the seed, within documents."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexloom.models.word2vec.skipgram import THRESHOLD_ONE, SkipGrams, keep_thresholds

Documents = Sequence[Sequence[int]]
TEXT = [[0, 1, 0, 2, 0, 1, 3], [1, 0], [2], [0, 3, 3, 1, 0, 0]]


def batch(documents: Documents, first_place: int = 0) -> dict[str, np.ndarray]:
    """All words of the documents, as the stream yields them."""
    lengths = [len(document) for document in documents]
    return {
        "tokens": np.array([word for document in documents for word in document], np.int32),
        "row": np.repeat(np.arange(len(lengths)), lengths),
        "position": first_place + np.concatenate([np.arange(length) for length in [*lengths, 0]]),
    }


def all_pairs(words: int = 10, window: int = 2, **options) -> SkipGrams:
    """Without subsampling and with full windows."""
    return SkipGrams(np.full(words, THRESHOLD_ONE, np.uint64), window, shrink_window=False, seed=1, **options)


def drawn(skipgrams: SkipGrams, documents: Documents, seed: int = 0, **options) -> list[tuple[int, int]]:
    pairs = skipgrams.draw(batch(documents), seed, **options)
    return list(zip(pairs["target"].tolist(), pairs["context"].tolist(), strict=True))


def expected_pairs(documents: Documents, kept: Sequence[float], window: int) -> Counter[tuple[int, int]]:
    """How often each pair is drawn in the mean, by going through all ways to thin out a document.

    Two words with k kept words between them are a pair where the target's window, evenly one of 1..window, is
    at least k + 1.
    """
    expected: Counter[tuple[int, int]] = Counter()
    for document in documents:
        for stays in product([False, True], repeat=len(document)):
            chance = np.prod([kept[w] if s else 1 - kept[w] for w, s in zip(document, stays, strict=True)])
            left = [word for word, stay in zip(document, stays, strict=True) if stay]
            for i, target in enumerate(left):
                for j, context in enumerate(left):
                    if 0 < abs(i - j) <= window:
                        expected[target, context] += chance * (window + 1 - abs(i - j)) / window
    return expected


def assert_drawn_as_expected(
    found: list[Counter[tuple[int, int]]], expected: Counter[tuple[int, int]]
) -> None:
    """Check means over draws, within five standard errors, and that no other pair is drawn."""
    assert set().union(*found) <= set(expected)
    for pair, mean in expected.items():
        counts = np.array([each[pair] for each in found])
        assert counts.mean() == pytest.approx(mean, abs=5 * counts.std() / np.sqrt(len(counts)) + 1e-9), pair


def thresholds_of(documents: Documents, subsample: float) -> np.ndarray:
    return keep_thresholds(np.bincount([word for document in documents for word in document]), subsample)


def test_pair_frequencies_equal_word2vecs():
    thresholds = thresholds_of(TEXT, 0.05)
    kept = thresholds / THRESHOLD_ONE
    assert kept == pytest.approx([0.4523, 0.6472, 1, 0.7831], abs=1e-4)  # of 7, 4, 2 and 3 of 16 words
    skipgrams = SkipGrams(thresholds, window=3, shrink_window=True, seed=1)
    found = [Counter(drawn(skipgrams, TEXT, seed)) for seed in range(4000)]
    assert_drawn_as_expected(found, expected_pairs(TEXT, kept, window=3))


def test_seed_determines_the_pairs():
    skipgrams = SkipGrams(thresholds_of(TEXT, 0.05), window=3, shrink_window=True, seed=1)
    other = SkipGrams(skipgrams.keep_thresholds, window=3, shrink_window=True, seed=2)
    text = TEXT * 10
    assert drawn(skipgrams, text, seed=5) == drawn(skipgrams, text, seed=5)
    assert (
        len(
            {
                str(pairs)
                for pairs in (
                    drawn(skipgrams, text, seed=5),
                    drawn(skipgrams, text, seed=6),
                    drawn(other, text, seed=5),
                )
            }
        )
        == 3
    )


@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6),
    missing=st.sets(st.integers(0, 40)),
    window=st.integers(1, 4),
)
def test_pairs_do_not_cross_documents_or_gaps(documents, missing, window):
    """Some words of a text are left out, as at the ends of the slices of a batch."""
    whole = batch(documents)
    stays = np.array([i not in missing for i in range(len(whole["tokens"]))], bool)
    pieces = {name: values[stays] for name, values in whole.items()}
    places = list(zip(pieces["row"].tolist(), pieces["position"].tolist(), strict=True))
    cuts = [i for i in range(1, len(places)) if places[i] != (places[i - 1][0], places[i - 1][1] + 1)]
    tokens = pieces["tokens"].tolist()
    expected = [
        (piece[i], piece[j])
        for piece in (tokens[start:end] for start, end in pairwise([0, *cuts, len(tokens)]))
        for i in range(len(piece))
        for j in range(len(piece))
        if 0 < abs(i - j) <= window
    ]
    pairs = all_pairs(window=window).draw(pieces, 0)
    assert list(zip(pairs["target"].tolist(), pairs["context"].tolist(), strict=True)) == expected


def test_documents_are_held_out_whole():
    documents = [[i, i + 1, i + 2] for i in range(0, 900, 3)]
    skipgrams = all_pairs(words=900, held_out_share=0.2)
    trained, held_out = (
        drawn(skipgrams, documents, seed=1),
        drawn(skipgrams, documents, seed=2, held_out=True),
    )
    assert sorted(trained + held_out) == sorted(drawn(all_pairs(words=900), documents))
    numbers = {target // 3 for target, _ in held_out}
    assert not numbers & {target // 3 for target, _ in trained}
    assert len(numbers) == pytest.approx(60, abs=30)
    assert numbers == set(np.flatnonzero(skipgrams.held_out(np.arange(300))).tolist())


@pytest.mark.parametrize("shrink", [True, False])
def test_pairs_per_token_matches_long_documents(shrink):
    words = np.random.default_rng(0).choice(4, size=40_000, p=[0.6, 0.3, 0.08, 0.02]).tolist()
    skipgrams = SkipGrams(thresholds_of([words], 0.02), window=4, shrink_window=shrink, seed=1)
    per_token = skipgrams.pairs_per_token(np.bincount(words))
    assert len(drawn(skipgrams, [words])) / len(words) == pytest.approx(per_token, rel=0.02)
