"""Scores of word vectors on word similarity and analogies.

They match gensim's `evaluate_word_pairs` and `evaluate_word_analogies`: only the `restrict` most frequent
words are used, case is ignored, and questions with an unknown word are skipped and counted (coverage). Matrix
products are computed in batches of bounded size.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel

from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display import console

SCORES_AT_ONCE = 1 << 26  # float32: 256 MB


class SimilarityScore(BaseModel):
    """Spearman's rank correlation between human and cosine similarities; None if either is constant."""

    name: str
    pairs: int
    scored: int
    spearman: float | None

    @property
    def coverage(self) -> float:
        return self.scored / max(1, self.pairs)


class SolvedAnalogy(BaseModel):
    """A question that was answered correctly: a is to b as c is to d.

    `lead` is the cosine similarity of the answer minus that of the second-best word.
    """

    words: list[str]
    lead: float


class AnalogyScore(BaseModel):
    """The number of correct answers in a section, or in a file with its sections.

    `example` is the section's correct answer with the largest lead whose words are all frequent enough.
    """

    name: str
    questions: int
    scored: int
    correct: int
    example: SolvedAnalogy | None = None
    sections: list["AnalogyScore"] = []

    @property
    def coverage(self) -> float:
        return self.scored / max(1, self.questions)

    @property
    def accuracy(self) -> float | None:
        return self.correct / self.scored if self.scored else None


class Scorer:
    """Scores the `restrict` most frequent words; of words that differ only in case, the most frequent one.

    Examples of analogies contain only the `frequent` most frequent words.
    """

    def __init__(self, vectors: WordVectors, restrict: int, frequent: int) -> None:
        self._words, self._frequent = vectors.words, frequent
        self._unit = torch.nn.functional.normalize(vectors.vectors[:restrict])  # (V, dim)
        self._ids: dict[str, int] = {}  # folded word -> its first id
        self._variants: dict[int, list[int]] = {}  # first id -> the other spellings' ids
        for word_id, word in enumerate(vectors.words[:restrict]):
            first = self._ids.setdefault(folded(word), word_id)
            if first != word_id:
                self._variants.setdefault(first, []).append(word_id)

    def similarity(self, name: str, pairs: list[tuple[str, str, float]]) -> SimilarityScore:
        """Return Spearman's correlation between human scores and cosine similarities."""
        known = [
            (self._ids[folded(a)], self._ids[folded(b)], score)
            for a, b, score in pairs
            if folded(a) in self._ids and folded(b) in self._ids
        ]
        first, second = [a for a, _, _ in known], [b for _, b, _ in known]
        cosines = (self._unit[first] * self._unit[second]).sum(1).numpy()  # (pairs,)
        correlation = spearman(np.array([score for _, _, score in known]), cosines)
        return SimilarityScore(name=name, pairs=len(pairs), scored=len(known), spearman=correlation)

    def analogies(self, name: str, sections: dict[str, list[list[str]]]) -> AnalogyScore:
        """Return how often the word nearest to b - a + c, except a, b and c, is d (3CosAdd)."""
        scores = []
        with console.bar("analogies", total=sum(map(len, sections.values()))) as bar:
            for section, questions in sections.items():
                ids = [
                    [self._ids[folded(word)] for word in question]
                    for question in questions
                    if all(folded(word) in self._ids for word in question)
                ]
                correct, example = self._answer(ids)
                scores.append(
                    AnalogyScore(
                        name=section,
                        questions=len(questions),
                        scored=len(ids),
                        correct=correct,
                        example=example,
                    )
                )
                bar.update(sum(score.questions for score in scores))
        return AnalogyScore(
            name=name,
            questions=sum(score.questions for score in scores),
            scored=sum(score.scored for score in scores),
            correct=sum(score.correct for score in scores),
            sections=scores,
        )

    def _answer(self, ids: list[list[int]]) -> tuple[int, SolvedAnalogy | None]:
        """Answer questions of four ids; return how many are correct, and the answer with the largest lead."""
        size = max(1, SCORES_AT_ONCE // len(self._unit))
        correct, example = 0, None
        for start in range(0, len(ids), size):
            questions = torch.tensor(ids[start : start + size])
            right, leads = self._compare(questions)
            correct += int(right.sum())
            leads[~right | (questions >= self._frequent).any(1)] = 0.0
            best = int(leads.argmax())
            if leads[best] > (example.lead if example else 0.0):
                words = [self._words[word_id] for word_id in questions[best].tolist()]
                example = SolvedAnalogy(words=words, lead=round(float(leads[best]), 4))
        return correct, example

    def _compare(self, questions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """For questions, (Q, 4) ids, return whether each answer is correct and its lead, (Q,) each."""
        a, b, c, d = questions.T
        target = torch.nn.functional.normalize(self._unit[b] - self._unit[a] + self._unit[c])
        scores = target @ self._unit.T  # (Q, V)
        scores.scatter_(1, questions[:, :3], -torch.inf)
        for row, asked in enumerate(questions[:, :3].tolist()):
            for word_id in asked:
                if word_id in self._variants:
                    scores[row, self._variants[word_id]] = -torch.inf
        top, ids = scores.topk(min(2, len(self._unit)))
        best, second = top.clamp_min(-1).T[[0, -1]]  # (Q,) each; -inf if all words are excluded
        right = [
            answer == word_id or answer in self._variants.get(word_id, [])
            for answer, word_id in zip(ids[:, 0].tolist(), d.tolist(), strict=True)
        ]
        return torch.tensor(right), best - second


def folded(word: str) -> str:
    return word.upper()  # as gensim does: 'ß' is 'SS'


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float | None:
    """Return Spearman's rank correlation; None if it is undefined."""
    from scipy.stats import spearmanr  # its import takes half a second

    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(spearmanr(first, second).statistic)
