"""Pairs drawn from tokens: word2vec's distribution, determined by the seed, within documents."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexloom.models.word2vec.grid import Grid
from lexloom.models.word2vec.skipgram import THRESHOLD_ONE, SkipGrams, keep_thresholds
from tests.models.word2vec.test_blocks import found

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


def skipgrams_of(thresholds: np.ndarray, *, parts: int = 1, **options) -> SkipGrams:
    grid = Grid(len(thresholds), parts)
    return SkipGrams(thresholds, **{"shrink_window": True, "seed": 1, "grid": grid, **options})


def all_pairs(words: int = 10, window: int = 2, **options) -> SkipGrams:
    """Without subsampling and with full windows."""
    thresholds = np.full(words, THRESHOLD_ONE, np.uint64)
    return skipgrams_of(thresholds, window=window, shrink_window=False, **options)


def drawn(
    skipgrams: SkipGrams, documents: Documents | dict[str, np.ndarray], seed: int = 0, **options
) -> Counter[tuple[int, int]]:
    """The pairs of words of all blocks."""
    columns = documents if isinstance(documents, dict) else batch(documents)
    own = options.pop("own", range(skipgrams.grid.parts))
    return found(skipgrams.draw_blocks(columns, seed, own, **options), skipgrams.grid, own)


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
    counts: list[Counter[tuple[int, int]]], expected: Counter[tuple[int, int]]
) -> None:
    """Check means over draws, within five standard errors, and that no other pair is drawn."""
    assert set().union(*counts) <= set(expected)
    for pair, mean in expected.items():
        samples = np.array([each[pair] for each in counts])
        assert samples.mean() == pytest.approx(mean, abs=5 * samples.std() / np.sqrt(len(samples)) + 1e-9), (
            pair
        )


def thresholds_of(documents: Documents, subsample: float) -> np.ndarray:
    return keep_thresholds(np.bincount([word for document in documents for word in document]), subsample)


@pytest.mark.parametrize("parts", [1, 3])
def test_pair_frequencies_equal_word2vecs(parts):
    thresholds = thresholds_of(TEXT, 0.05)
    kept = thresholds / THRESHOLD_ONE
    assert kept == pytest.approx([0.4523, 0.6472, 1, 0.7831], abs=1e-4)  # of 7, 4, 2 and 3 of 16 words
    skipgrams = skipgrams_of(thresholds, window=3, parts=parts)
    counts = [drawn(skipgrams, TEXT, seed) for seed in range(4000)]
    assert_drawn_as_expected(counts, expected_pairs(TEXT, kept, window=3))


def test_pairs_of_a_hand_computed_sentence():
    assert drawn(all_pairs(), [[0, 1, 2, 3], [4, 5], [6], []]) == Counter(
        [
            *[(0, 1), (0, 2)],
            *[(1, 0), (1, 2), (1, 3)],
            *[(2, 0), (2, 1), (2, 3)],
            *[(3, 1), (3, 2)],
            *[(4, 5), (5, 4)],
        ]
    )


def test_seed_determines_the_pairs():
    thresholds, text = thresholds_of(TEXT, 0.05), TEXT * 10
    skipgrams = skipgrams_of(thresholds, window=3)
    other = skipgrams_of(thresholds, window=3, seed=2)
    assert drawn(skipgrams, text, seed=5) == drawn(skipgrams, text, seed=5)
    draws = [drawn(skipgrams, text, seed=5), drawn(skipgrams, text, seed=6), drawn(other, text, seed=5)]
    assert len({str(sorted(pairs.items())) for pairs in draws}) == 3


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_draw_the_blocks_of_one(workers):
    text = [np.random.default_rng(i).integers(0, 40, 20).tolist() for i in range(20)]
    skipgrams = skipgrams_of(np.full(40, THRESHOLD_ONE // 2, np.uint64), window=4, parts=5)
    whole = skipgrams.draw_blocks(batch(text), 7, range(5))
    owned = [skipgrams.grid.own(rank, workers) for rank in range(workers)]
    shares = [skipgrams.draw_blocks(batch(text), 7, own) for own in owned]
    assert len(whole.targets) > 500
    for name in ("targets", "contexts"):
        np.testing.assert_array_equal(
            np.concatenate([getattr(share, name) for share in shares]), getattr(whole, name)
        )
    lengths = np.concatenate([np.diff(share.bounds, axis=1) for share in shares])
    np.testing.assert_array_equal(lengths, np.diff(whole.bounds, axis=1))


@settings(deadline=None)  # the first call compiles
@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=8), max_size=6),
    missing=st.sets(st.integers(0, 40)),
    window=st.integers(1, 4),
)
def test_pairs_do_not_cross_documents_or_gaps(documents, missing, window):
    """Some words of a text are left out, as at the ends of an episode."""
    whole = batch(documents)
    stays = np.array([i not in missing for i in range(len(whole["tokens"]))], bool)
    pieces = {name: values[stays] for name, values in whole.items()}
    places = list(zip(pieces["row"].tolist(), pieces["position"].tolist(), strict=True))
    cuts = [i for i in range(1, len(places)) if places[i] != (places[i - 1][0], places[i - 1][1] + 1)]
    tokens = pieces["tokens"].tolist()
    expected = Counter(
        (piece[i], piece[j])
        for piece in (tokens[start:end] for start, end in pairwise([0, *cuts, len(tokens)]))
        for i in range(len(piece))
        for j in range(len(piece))
        if 0 < abs(i - j) <= window
    )
    assert drawn(all_pairs(window=window), pieces) == expected


def test_documents_are_held_out_whole():
    documents = [[i, i + 1, i + 2] for i in range(0, 900, 3)]
    skipgrams = all_pairs(words=900, held_out_share=0.2, parts=4)
    trained, held_out = (
        drawn(skipgrams, documents, seed=1),
        drawn(skipgrams, documents, seed=2, held_out=True),
    )
    assert trained + held_out == drawn(all_pairs(words=900), documents)
    numbers = {target // 3 for target, _ in held_out}
    assert not numbers & {target // 3 for target, _ in trained}
    assert len(numbers) == pytest.approx(60, abs=30)
    assert numbers == set(np.flatnonzero(skipgrams.held_out(np.arange(300))).tolist())


def test_draws_do_not_depend_on_the_documents_that_are_wanted():
    documents, random = [list(range(40))] * 30, np.random.default_rng(0)
    skipgrams = skipgrams_of(np.full(40, THRESHOLD_ONE // 2, np.uint64), window=5)
    ids, offsets = batch(documents)["tokens"], np.arange(31) * 40
    everything = skipgrams.draw(ids, offsets, np.ones(30, bool))
    wanted = random.random(30) < 0.5
    some = skipgrams.draw(ids, offsets, wanted)
    for name in ("codes", "reach"):
        pieces = [getattr(everything, name)[a:b] for a, b in pairwise(everything.offsets)]
        chosen = [piece for piece, stays in zip(pieces, wanted, strict=True) if stays]
        assert getattr(some, name).tolist() == np.concatenate(chosen).tolist()
        assert np.diff(some.offsets).tolist() == list(map(len, chosen))


@pytest.mark.parametrize("shrink", [True, False])
def test_pairs_per_token_matches_long_documents(shrink):
    words = np.random.default_rng(0).choice(4, size=40_000, p=[0.6, 0.3, 0.08, 0.02]).tolist()
    skipgrams = skipgrams_of(thresholds_of([words], 0.02), window=4, shrink_window=shrink)
    per_token = skipgrams.pairs_per_token(np.bincount(words))
    assert drawn(skipgrams, [words]).total() / len(words) == pytest.approx(per_token, rel=0.02)


@pytest.mark.parametrize("offending", [-1, 10])
def test_unknown_token_is_rejected(offending):
    broken = batch(TEXT)
    broken["tokens"][7] = offending
    with pytest.raises(ValueError, match=rf"tokens contain the id {offending}, .* ids are 0 to 9: rebuild"):
        all_pairs().draw_blocks(broken, 0, range(1))


def test_tokens_without_pairs_have_empty_blocks():
    for documents in ([[word] for word in range(5)], [], [[]]):
        blocks = all_pairs(parts=3).draw_blocks(batch(documents), 0, range(3))
        assert len(blocks.targets) == len(blocks.contexts) == 0
        assert blocks.bounds.tolist() == [[0] * 4] * 3
