"""Kneser-Ney against figures computed by hand and a plain recursion over counts."""

from collections import Counter
from itertools import pairwise
from math import exp, log

import numpy as np
import pytest

from lexloom.models.ngram import KneserNey, discounts

BOUNDARY = 0
SIZE = 12


def model(documents: list[list[int]], order: int, size: int = SIZE) -> KneserNey:
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.array([token for document in documents for token in document], np.int32)
    return KneserNey(tokens, offsets, order=order, size=size, boundary=BOUNDARY)


def invented(documents: int = 40, size: int = SIZE, seed: int = 0) -> list[list[int]]:
    """Documents in which a token's successor is often the next id, and frequent tokens have small ids."""
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(documents):
        tokens = [int(generator.integers(1, size))]
        for _ in range(int(generator.integers(0, 30))):
            leap = generator.random() < 0.5
            tokens.append(int(generator.geometric(0.4)) % size if leap else tokens[-1] % (size - 1) + 1)
        made.append(tokens)
    return made


def slow_probability(documents: list[list[int]], context: list[int], token: int, size: int) -> float:
    """Chen and Goodman's formula over dictionaries; the order is the context's length + 1."""
    order = len(context) + 1
    padded = [[BOUNDARY] * (order - 1) + document for document in documents]
    grams = [
        Counter(
            tuple(document[i - order + 1 : i + 1])
            for document in padded
            for i in range(order - 1, len(document))
        )
    ]
    while len(grams[0]) and len(next(iter(grams[0]))) > 1:
        grams.insert(0, Counter(gram[1:] for gram in grams[0]))

    def probability(context: tuple[int, ...], token: int) -> float:
        counts = grams[len(context)]
        n = [sum(count == each for count in counts.values()) for each in range(5)]
        y = n[1] / (n[1] + 2 * n[2]) if n[1] and n[2] else 0.0
        d = [0.0, 0.5, 1.0, 1.5]
        if n[1] and n[2] and n[3]:
            estimated = [0.0, *(i - (i + 1) * y * n[i + 1] / n[i] for i in (1, 2, 3))]
            if all(0 <= estimated[i] <= i for i in (1, 2, 3)):
                d = estimated
        below = probability(context[1:], token) if context else 1 / size
        after = {gram[-1]: count for gram, count in counts.items() if gram[:-1] == context}
        if not after:
            return below
        total = sum(after.values())
        left_over = sum(d[min(count, 3)] for count in after.values()) / total
        count = after.get(token, 0)
        return (count - d[min(count, 3)]) / total + left_over * below

    return probability(tuple(context), token)


def test_a_bigram_by_hand() -> None:
    """Documents 1 2 1 2 and 1 3. Too little text to estimate discounts: 0.5, 1 and 1.5.

    Bigrams: (0,1) 2, (1,2) 2, (2,1) 1, (1,3) 1; so before 1 stand 2 tokens, before 2 and 3 one each.
    p(1) = (2 - 1)/4 + g/12, p(2) = p(3) = (1 - 0.5)/4 + g/12 where g = (1 + 0.5 + 0.5)/4 = 0.5.
    """
    bigram = model([[1, 2, 1, 2], [1, 3]], order=2)
    p1, p2 = 1 / 4 + 0.5 / 12, 1 / 8 + 0.5 / 12
    expected = {
        (1, 2): (2 - 1) / 3 + (1 + 0.5) / 3 * p2,
        (1, 3): (1 - 0.5) / 3 + (1 + 0.5) / 3 * p2,
        (1, 5): (1 + 0.5) / 3 * 0.5 / 12,
        (2, 1): (1 - 0.5) / 1 + 0.5 / 1 * p1,
        (7, 1): p1,  # 7 was never seen: the unigram answers
        (BOUNDARY, 1): (2 - 1) / 2 + 1 / 2 * p1,
    }
    pairs = np.array(list(expected))
    assert np.exp(bigram.log_probabilities(pairs[:, :1], pairs[:, 1])) == pytest.approx(
        list(expected.values()), abs=1e-12
    )


def test_discounts_by_hand() -> None:
    """n1 = 4, n2 = 2, n3 = 1, n4 = 1, so Y = 4/8 and D = 1 - 2Y/2, 2 - 3Y/2, 3 - 4Y."""
    counts = np.array([1, 1, 1, 1, 2, 2, 3, 4, 9])
    assert discounts(counts).tolist() == pytest.approx([0, 0.5, 1.25, 1.0])
    assert discounts(counts[:6]).tolist() == [0, 0.5, 1.0, 1.5], "no count of 3: what KenLM takes"


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_equal_the_formula(order: int) -> None:
    documents = invented()
    fast = model(documents, order)
    generator = np.random.default_rng(1)
    contexts = generator.integers(0, SIZE, (60, order - 1))
    labels = generator.integers(0, SIZE, 60)
    expected = [
        log(slow_probability(documents, context, label, SIZE))
        for context, label in zip(contexts.tolist(), labels.tolist(), strict=True)
    ]
    assert fast.log_probabilities(contexts, labels).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 4])
def test_probabilities_sum_to_one_after_any_context(order: int) -> None:
    fast = model(invented(), order)
    contexts = np.random.default_rng(2).integers(0, SIZE, (50, order - 1))
    everything = np.tile(np.arange(SIZE), 50)
    probabilities = np.exp(fast.log_probabilities(np.repeat(contexts, SIZE, axis=0), everything))
    assert probabilities.min() > 0
    assert probabilities.reshape(50, SIZE).sum(1) == pytest.approx(np.ones(50), abs=1e-12)


def test_context_is_limited_by_order_and_unknown_tokens() -> None:
    """Tokens beyond the order change nothing; an unknown one (-1) ends the context."""
    fast = model(invented(), order=3)
    labels = np.arange(SIZE)
    long = np.tile([9, 9, 4, 2], (SIZE, 1))
    assert (
        fast.log_probabilities(long, labels).tolist() == fast.log_probabilities(long[:, 2:], labels).tolist()
    )
    unknown = np.tile([9, -1, 2], (SIZE, 1))
    known = fast.log_probabilities(unknown[:, 2:], labels).tolist()
    assert fast.log_probabilities(unknown, labels).tolist() == known
    assert fast.log_probabilities(long, labels).tolist() != known


def test_contexts_do_not_cross_documents() -> None:
    """Nothing was seen after the 5 that ends each document; its first token follows the boundary."""
    apart = model([[4, 5], [6, 5]] * 3, order=2)
    after_five = apart.log_probabilities(np.array([[5], [11]]), np.array([6, 6]))
    assert after_five[0] == after_five[1], "11 never occurs, and 5 never stands before anything"
    border = np.exp(apart.log_probabilities(np.array([[BOUNDARY]]), np.array([6])))
    assert border[0] > 0.3


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("k", [1, 5, SIZE])
def test_best_equals_topk_of_the_full_distribution(order: int, k: int) -> None:
    fast = model(invented(), order)
    contexts = np.random.default_rng(3).integers(0, SIZE, (80, order - 1))
    everything = np.tile(np.arange(SIZE), len(contexts))
    probabilities = fast.log_probabilities(np.repeat(contexts, SIZE, axis=0), everything).reshape(-1, SIZE)
    found = fast.best(contexts, k)
    assert all(len(set(row)) == k for row in found.tolist())
    best = np.take_along_axis(probabilities, found, axis=1)
    assert best == pytest.approx(-np.sort(-probabilities, axis=1)[:, :k], abs=1e-12)


def test_longer_context_predicts_structured_text_better() -> None:
    train, held_out = invented(400), invented(40, seed=9)
    pairs = np.array([pair for tokens in held_out for pair in pairwise(tokens)])
    perplexities = [
        exp(-model(train, order).log_probabilities(pairs[:, :1], pairs[:, 1]).mean()) for order in (1, 2)
    ]
    assert perplexities[1] < 0.7 * perplexities[0]


@pytest.mark.parametrize(
    ("documents", "order", "complaint"),
    [
        ([[1]], 0, "the order is 0: it must be at least 1"),
        ([], 2, "no tokens to count n-grams of"),
        ([[1, SIZE]], 2, r"ids range from 0 to 12, but must be in 0 to 11"),
    ],
)
def test_invalid_documents_are_rejected(documents: list[list[int]], order: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        model(documents, order)


def test_k_above_the_vocabulary_size_is_rejected() -> None:
    with pytest.raises(ValueError, match="k is 13: it must be at most 12"):
        model([[1, 2]], 2).best(np.array([[1]]), 13)
