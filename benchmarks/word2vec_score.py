"""Score word vectors of any tool: gensim's evaluation, and the loss on held-out pairs.

    python benchmarks/word2vec_score.py --vocabulary FOLDER VECTORS.npy ...

This scores vectors that benchmarks/word2vec_gpu.py saved, in the order of the words of a `vocabulary`
artifact.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from gensim.models import KeyedVectors
from gensim.test.utils import datapath
from measure import table
from numpy.typing import NDArray
from word2vec_peers import NEGATIVES, Trained
from word_pairs import read_word_pairs, shuffled

from lexloom.models.word2vec.grid import Grid
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.vocabulary import read_vocabulary

NOISE_POWER, NOISE_SEED = 0.75, 0
HELD_OUT_PAIRS, PAIRS_AT_ONCE = 500_000, 10_000
FASTTEXT_LINE_END = "</s>"  # which fastText counts as a word
JUDGED = ("wordsim353", "simlex999", "analogies", "mean")
SCORES = (*JUDGED, "held_out_loss")


class Scorer:
    """Scores models with the same vocabulary on the same pairs and noise words."""

    def __init__(self, vocabulary: Artifact, pairs: Artifact) -> None:
        words, counts = read_vocabulary(vocabulary)
        self._words = words.to_pylist()
        episodes = read_word_pairs(pairs.folder, Grid(len(counts), pairs.facts["parts"]))
        targets, contexts = (np.concatenate(column) for column in zip(*episodes, strict=True))
        self._targets, self._contexts = shuffled(targets, contexts, HELD_OUT_PAIRS)
        self.coverage = coverage_of(self._words)
        chances = counts**NOISE_POWER
        self._noise = np.random.default_rng(NOISE_SEED).choice(
            len(counts), size=(len(self._targets), NEGATIVES), p=chances / chances.sum()
        )

    def __call__(self, model: Trained) -> dict[str, float]:
        """Return WordSim-353, SimLex-999 (Spearman), Google's analogies (accuracy), their mean, the loss.

        Raises:
            ValueError: the model's words differ from the vocabulary.
        """
        place = {word: row for row, word in enumerate(model.words)}
        different = (set(place) ^ set(self._words)) - {FASTTEXT_LINE_END}
        if different:
            raise ValueError(f"{len(different)} words are only in the model or only in the vocabulary")
        rows = [place[word] for word in self._words]
        vectors, contexts = model.vectors[rows], model.contexts[rows]
        return {**evaluate(self._words, vectors), "held_out_loss": self.loss(vectors, contexts)}

    def loss(self, vectors: NDArray[np.float32], contexts: NDArray[np.float32]) -> float:
        """Return the mean over pairs of the negative of eq. 4 of Mikolov et al. (2013)."""
        total = 0.0
        for first in range(0, len(self._targets), PAIRS_AT_ONCE):
            some = slice(first, first + PAIRS_AT_ONCE)
            inputs = vectors[self._contexts[some]].astype(np.float64)
            right = np.einsum("pd,pd->p", inputs, contexts[self._targets[some]])
            wrong = np.einsum("pd,pkd->pk", inputs, contexts[self._noise[some]])
            total += np.logaddexp(0, -right).sum() + np.logaddexp(0, wrong).sum()
        return float(total / len(self._targets))


def coverage_of(words: list[str]) -> dict[str, float]:
    """Return the share of each set's entries whose words are all in the vocabulary."""
    known = set(words)
    return {
        name: float(np.mean([all(word.lower() in known for word in entry) for entry in entries]))
        for name, entries in {
            "wordsim353": read_entries("wordsim353.tsv", 2),
            "simlex999": read_entries("simlex999.txt", 2),
            "analogies": read_entries("questions-words.txt", 4),
        }.items()
    }


def read_entries(name: str, count: int) -> list[list[str]]:
    """Return the words of each entry of one of gensim's files: the first `count` fields of its lines."""
    lines = Path(datapath(name)).read_text().splitlines()
    return [line.split()[:count] for line in lines if line and line[0] not in "#:"]


def evaluate(words: list[str], vectors: NDArray[np.float32]) -> dict[str, float]:
    keyed = KeyedVectors(vectors.shape[1])
    keyed.add_vectors(words, vectors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        similar = keyed.evaluate_word_pairs(datapath("wordsim353.tsv"))[1][0]
        simlex = keyed.evaluate_word_pairs(datapath("simlex999.txt"))[1][0]
        analogies = keyed.evaluate_word_analogies(datapath("questions-words.txt"))[0]
    return {
        "wordsim353": float(similar),
        "simlex999": float(simlex),
        "analogies": float(analogies),
        "mean": float(np.mean([similar, simlex, analogies])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", type=Path, required=True, help="folder of a vocabulary artifact")
    parser.add_argument("vectors", type=Path, nargs="+", help="(words, dim) float32")
    arguments = parser.parse_args()
    words = pq.read_table(arguments.vocabulary / "vocabulary.parquet")["word"].to_pylist()
    rows = []
    for path in arguments.vectors:
        vectors = np.load(path)
        if len(vectors) != len(words):
            raise SystemExit(f"{path} has {len(vectors)} vectors, the vocabulary {len(words)} words")
        found = evaluate(words, vectors)
        rows.append([path.stem, *(f"{found[score]:.3f}" for score in JUDGED)])
    print(table(["", *JUDGED], rows))


if __name__ == "__main__":
    main()
