"""Train skip-gram with gensim, and with fastText without subwords, for benchmarks/word2vec.py."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

WINDOW, NEGATIVES, SUBSAMPLE, MIN_COUNT = 5, 5, 1e-3, 5
RATE, LAST_RATE = 0.025, 0.0001
GENSIM_SENTENCE = 10_000  # words; gensim silently truncates longer ones


class Trained(NamedTuple):
    """A model and its training time.

    Attributes:
        words: the word of each row.
        vectors, contexts: (words, dim) float32, the input and the output table.
        seconds: training time alone, with a given vocabulary.
        total_seconds: time from the text to the vectors.
    """

    words: list[str]
    vectors: NDArray[np.float32]
    contexts: NDArray[np.float32]
    seconds: float
    total_seconds: float
    more: dict[str, float] = {}  # noqa: RUF012 - never changed


def run_gensim(lines: Path, how: str, *, seed: int, threads: int, dim: int) -> Trained:
    """Train from "sentences" in memory, which are read once, or from a "corpus_file", as `how` says."""
    from gensim.models import Word2Vec
    from gensim.models.word2vec import LineSentence

    begun = time.perf_counter()
    source: dict[str, Any] = (
        {"corpus_file": str(lines)}
        if how == "corpus_file"
        else {"corpus_iterable": list(LineSentence(str(lines), max_sentence_length=GENSIM_SENTENCE))}
    )
    model = Word2Vec(
        vector_size=dim,
        window=WINDOW,
        negative=NEGATIVES,
        sample=SUBSAMPLE,
        min_count=MIN_COUNT,
        alpha=RATE,
        min_alpha=LAST_RATE,
        sg=1,
        seed=seed,
        workers=threads,
        epochs=1,
    )
    model.build_vocab(**source)
    started = time.perf_counter()
    model.train(**source, total_examples=model.corpus_count, total_words=model.corpus_total_words, epochs=1)
    ended = time.perf_counter()
    return Trained(model.wv.index_to_key, model.wv.vectors, model.syn1neg, ended - started, ended - begun)


def run_fasttext(lines: Path, *, seed: int, threads: int, dim: int) -> Trained:
    """Train with fastText.

    fastText counts words and trains in one call, so the time of a call without an epoch is subtracted. Its
    Python package has no seed for skip-gram: runs differ only by the timing of threads.
    """
    import fasttext

    def call(epochs: int) -> tuple[Any, float]:
        begun = time.perf_counter()
        model = fasttext.train_unsupervised(
            str(lines),
            model="skipgram",
            loss="ns",
            lr=RATE,
            dim=dim,
            ws=WINDOW,
            neg=NEGATIVES,
            t=SUBSAMPLE,
            minCount=MIN_COUNT,
            minn=0,  # no subwords
            maxn=0,
            bucket=0,
            epoch=epochs,
            thread=threads,
            verbose=0,
        )
        return model, time.perf_counter() - begun

    _, counting = call(0)
    model, total = call(1)
    tables = model.get_input_matrix(), model.get_output_matrix()
    return Trained(model.get_words(), *tables, total - counting, total)
