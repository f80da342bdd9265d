"""Compare the speed and quality of word vectors with gensim and fastText, on the same words and settings.

    python benchmarks/word2vec.py --data FOLDER_OF_PARQUET [--limit 12500] [--seeds 3] [--settings 100x2 ...]
        [--only NAME ...] [--previous FOLDER]

The documents (column `text` of every Parquet file below the folder) are shuffled once, and every hundredth
is held out. For each setting (dimensions x threads) and each seed, the tools train one epoch in alternation:
gensim from sentences and from a corpus file, fastText without subwords, and Lexloom with one worker, from
stored and from streamed pairs.

`--only` selects tools by parts of their names. Some run only then: Lexloom with "one worker, one thread" and
"one worker, two threads", and on Ray with "two workers", "four workers" and "eight workers" of one thread
each. Their vectors must be identical, or the benchmark fails. With `--previous`, the folder of an older
checkout of Lexloom, that checkout trains on the same documents in a process of its own ("previous, one
thread" and "previous, two threads").

The tools use the same learning rate, from 0.025 down to 0.0001. With gensim's corpus_file, it falls by only
1/threads of that, because each thread compares its own progress with the whole file. Lexloom is therefore
also measured with that learning rate, and with its default of 0.05. The tools that run on request use the
default.

`seconds` are the training time alone, with a given vocabulary. Lexloom's stored pairs are generated before;
`total_seconds` include this, and range from text to vectors in memory. The text for the other tools is
already in lower case without punctuation, while Lexloom's total includes this work. For all tools, pairs per
second are the stored pairs of an epoch divided by the seconds. `sync_bytes_per_pair` are the bytes that
worker 0 sends, per pair of the run; `waiting_share` is the share of the seconds in which it waits for others.
benchmarks/word2vec_score.py scores all models in the same way. A plain PyTorch trainer with SparseAdam
(benchmarks/sparse_adam.py) is timed for a few batches. After each setting, results are written to
benchmarks/results/word2vec.json, and a plot to word2vec.svg.
"""

import argparse
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from measure import stage_runner, summary, table, write_results
from sparse_adam import pairs_per_second
from word2vec_peers import (
    LAST_RATE,
    MIN_COUNT,
    NEGATIVES,
    RATE,
    SUBSAMPLE,
    WINDOW,
    Trained,
    run_fasttext,
    run_gensim,
)
from word2vec_plot import plot
from word2vec_previous import Previous
from word2vec_score import SCORES, Scorer
from word_pairs import read_word_pairs, shuffled

from lexloom.models.word2vec.cpu import padded_dim
from lexloom.models.word2vec.grid import Grid
from lexloom.models.word2vec.tables import CONTEXTS, VECTORS, assemble
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.tasks.vocabulary import VocabularyConfig, read_vocabulary, vocabulary
from lexloom.training.checkpoint_files import read_pieces

SHUFFLE_SEED, HELD_OUT_SEED = 0, 0
HELD_OUT_EVERY = 100  # documents
DEFAULT_RATE = TrainWord2VecConfig().learning_rate
FLOAT_BYTES = 4
TRAIN_FILE = "train.parquet"
IDENTICAL = "lexloom, default rate, "  # the vectors of these tools must be identical

Mode = Literal["stored", "streamed"]
Contender = Callable[..., Trained]


def split_documents(data: Path, limit: int | None, train: Path, held_out: Path) -> None:
    """Write the texts below `data`, at most `limit`, in random order to two Parquet files."""
    texts = pa.concat_tables(
        [pq.read_table(path, columns=["text"]) for path in sorted(data.rglob("*.parquet"))]
    )
    order = np.random.default_rng(SHUFFLE_SEED).permutation(texts.num_rows)[:limit]
    is_held_out = np.arange(len(order)) % HELD_OUT_EVERY == 0
    pq.write_table(texts.take(pa.array(order[~is_held_out])), train)
    pq.write_table(texts.take(pa.array(order[is_held_out])), held_out)


def pairs_config(seed: int, mode: Mode = "stored") -> PairsConfig:
    return PairsConfig(window=WINDOW, subsample=SUBSAMPLE, seed=seed, mode=mode)


class Texts:
    """Run each stage before training once (pairs: once per setting and seed), and measure it."""

    def __init__(self, data: Path, limit: int | None, work: Path) -> None:
        self.stages = stage_runner(work / "store")
        split_documents(data, limit, work / TRAIN_FILE, work / "held-out.parquet")
        begun = time.perf_counter()
        text = self._text(work / TRAIN_FILE)
        self.vocabulary = self.stages(vocabulary, text, config=VocabularyConfig(min_count=MIN_COUNT))
        self.tokens = self._tokens(text)
        self.noise = self.stages(negative_sampling, self.vocabulary, config=NoiseConfig())
        self.seconds = time.perf_counter() - begun
        held_out = self._tokens(self._text(work / "held-out.parquet"))
        self.scorer = Scorer(self.vocabulary, self._pairs(held_out, HELD_OUT_SEED))
        self.lines = work / "lines.txt"
        with self.lines.open("w") as file:
            for shard in text.files():
                for document in pq.read_table(shard)["text"]:
                    file.write(document.as_py() + "\n")
        self.pair_seconds: list[float] = []

    def _text(self, path: Path) -> Artifact:
        config = CorpusConfig(source=str(path))
        return self.stages(corpus, locate_source(config), config=config)

    def _tokens(self, text: Artifact) -> Artifact:
        return self.stages(tokens, text, self.vocabulary, config=TokensConfig())

    def _pairs(self, ids: Artifact, seed: int) -> Artifact:
        return self.stages(pairs, ids, self.vocabulary, config=pairs_config(seed))

    def draw_pairs(self, seed: int) -> None:
        begun = time.perf_counter()
        self.pairs = self._pairs(self.tokens, seed)
        self.pair_seconds.append(time.perf_counter() - begun)

    def facts(self) -> dict[str, Any]:
        drawn = self.pairs.facts["pairs"]
        return {
            "words": self.tokens.facts["tokens"],
            "pairs": drawn,
            "tokens_bytes_per_pair": size_of(self.tokens) / drawn,
            "pairs_bytes_per_pair": size_of(self.pairs) / drawn,
            "vocabulary": self.vocabulary.summary.rows,
            "coverage": self.scorer.coverage,
            "text_to_tokens_seconds": round(self.seconds, 2),
        }


def size_of(artifact: Artifact) -> int:
    """Return the size of the artifact's shards in bytes."""
    return sum(path.stat().st_size for path in artifact.files())


def run_lexloom(texts: Texts, *, dim: int, seed: int, mode: Mode = "stored", **how: Any) -> Trained:
    config = TrainWord2VecConfig(epochs=1, dim=dim, negatives=NEGATIVES, seed=seed, **how)
    pairs_of_mode = pairs_config(seed, mode)
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        model = texts.stages(
            train_word2vec,
            texts.pairs if mode == "stored" else texts.tokens,
            texts.noise,
            texts.vocabulary,
            config=config.reading(pairs_of_mode),
            scratch=Path(scratch),
        )
        before = texts.seconds + (texts.pair_seconds[-1] if mode == "stored" else 0)
        total = time.perf_counter() - begun + before
        facts = model.facts
        words = read_vocabulary(texts.vocabulary)[0].to_pylist()
        grid = pairs_of_mode.grid(len(words))
        pieces = read_pieces(max(Path(scratch).rglob("step-*")), facts["workers"])
        vectors, contexts = (assemble(name, pieces, grid, dim).numpy() for name in (VECTORS, CONTEXTS))
    return Trained(
        words,
        vectors,
        contexts,
        facts["seconds"],
        total,
        {
            "waiting_for_data_seconds": facts["data_seconds"],
            "sync_bytes_per_pair": facts["sync_bytes"] / texts.pairs.facts["pairs"],
            "waiting_share": facts["sync_seconds"] / facts["seconds"],
            "both_tables_megabytes": 2 * len(words) * padded_dim(dim) * FLOAT_BYTES / 1e6,
        },
    )


def contenders_of(
    texts: Texts, dim: int, threads: int, previous: Previous | None, only: list[str] | None
) -> dict[str, Contender]:
    """Return the tools by name: those whose names contain a part that `only` names, or the default ones."""
    peers = {
        "gensim, sentences": partial(run_gensim, texts.lines, "sentences", threads=threads, dim=dim),
        "gensim, corpus_file": partial(run_gensim, texts.lines, "corpus_file", threads=threads, dim=dim),
        "fastText": partial(run_fasttext, texts.lines, threads=threads, dim=dim),
    }
    same = {"learning_rate": RATE, "min_learning_rate": LAST_RATE}
    default = same | {"learning_rate": DEFAULT_RATE}
    rates = {"same rate": same}
    if threads > 1:
        rates["corpus_file's rate"] = same | {"min_learning_rate": RATE - (RATE - LAST_RATE) / threads}
    rates["default rate"] = default
    local = {"runner": "local", "workers": 1}
    ours = {"one worker": {}, "one worker, streamed": {"mode": "streamed"}}
    usual = peers | {
        f"lexloom, {who}, {name}": partial(
            run_lexloom, texts, dim=dim, threads=threads, **local, **how, **rate
        )
        for who, how in ours.items()
        for name, rate in rates.items()
    }
    identical = {
        "one worker, one thread": local | {"threads": 1},
        "one worker, two threads": local | {"threads": 2},
        "two workers": {"workers": 2},
        "four workers": {"workers": 4},
        "eight workers": {"workers": 8},
    }
    on_request = {
        IDENTICAL + name: partial(run_lexloom, texts, dim=dim, **how, **default)
        for name, how in identical.items()
    }
    if previous is not None:
        for name, count in (("one thread", 1), ("two threads", 2)):
            usual[f"previous, {name}"] = partial(previous.train, dim=dim, threads=count, **default)
    if only is None:
        return usual
    everything = usual | on_request
    if unknown := [part for part in only if not any(part in name for name in everything)]:
        raise SystemExit(f"no tool's name contains {unknown[0]!r}: the names are {', '.join(everything)}")
    return {name: tool for name, tool in everything.items() if any(part in name for part in only)}


def run(contenders: dict[str, Contender], texts: Texts, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Run all tools for each seed, and return their figures.

    Raises:
        RuntimeError: vectors that must be identical differ.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for seed in range(1, seeds + 1):
        texts.draw_pairs(seed)
        digests: dict[str, str] = {}
        for name in names[seed % len(names) :] + names[: seed % len(names)]:  # rotates the order
            model = contenders[name](seed=seed)
            if name.startswith(IDENTICAL):
                digests[name] = digest_of(model)
                if len(set(digests.values())) > 1:
                    raise RuntimeError(f"the vectors of seed {seed} are not identical: {digests}")
            figures = {
                "seconds": model.seconds,
                "total_seconds": model.total_seconds,
                "words_per_second": texts.tokens.facts["tokens"] / model.seconds,
                "pairs_per_second": texts.pairs.facts["pairs"] / model.seconds,
                **texts.scorer(model),
                **model.more,
            }
            runs[name].append(figures)
            print(
                f"seed {seed}  {name:40}",
                *(f"{key} {value:.4g}" for key, value in figures.items()),
                flush=True,
            )
    return runs


def digest_of(model: Trained) -> str:
    return hashlib.sha256(model.vectors.tobytes() + model.contexts.tobytes()).hexdigest()


def sparse_adam(texts: Texts, dim: int, threads: int) -> dict[str, float]:
    """Return the pairs per second only, because an epoch would take half an hour."""
    words = texts.vocabulary.summary.rows
    grid = Grid(words, texts.pairs.facts["parts"])
    targets, contexts = shuffled(*next(read_word_pairs(texts.pairs.folder, grid)), 1_500_000)
    torch.set_num_threads(threads)
    return summary(pairs_per_second(targets, contexts, words=words, dim=dim, negatives=NEGATIVES))


def ratios_of(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the speedup over the other tools, by seed."""
    return {
        f"{theirs} / {ours}": summary(
            [a["seconds"] / b["seconds"] for a, b in zip(runs[theirs], runs[ours], strict=True)]
        )
        for theirs in runs
        if not theirs.startswith("lexloom")
        for ours in runs
        if ours.startswith("lexloom")
    }


def show(setting: str, results: dict[str, Any]) -> None:
    medians = ["seconds", "total_seconds"]
    rows = [
        [
            name,
            *(f"{found[figure]['median']:.1f}" for figure in medians),
            *(f"{found[figure]['mean']:.3f}" for figure in SCORES),
        ]
        for name, found in results.items()
    ]
    print(table([setting, *medians, *SCORES], rows), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet files with a text column")
    parser.add_argument("--limit", type=int, help="take so many documents, drawn at random")
    parser.add_argument("--seeds", type=int, default=3)
    threads = os.cpu_count() or 1
    parser.add_argument(
        "--settings",
        nargs="+",
        default=[f"100x{threads}", "100x1", f"300x{threads}"],
        help="dimensions x threads; by default 100 and 300 dimensions with all cores, and 100 with one",
    )
    parser.add_argument("--only", nargs="+", help="run only tools whose names contain one of these")
    parser.add_argument("--previous", type=Path, help="folder of an older checkout of Lexloom")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "word2vec.json")
    arguments = parser.parse_args()
    logging.getLogger("gensim").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        texts = Texts(arguments.data, arguments.limit, Path(folder))
        previous = None
        if arguments.previous:
            previous = Previous(arguments.previous, Path(folder) / TRAIN_FILE, Path(folder))
        measured: dict[str, Any] = {}
        for setting in arguments.settings:
            dim, threads = (int(number) for number in setting.split("x"))
            contenders = contenders_of(texts, dim, threads, previous, arguments.only)
            runs = run(contenders, texts, arguments.seeds)
            results = {
                name: {figure: summary([run[figure] for run in found]) for figure in found[0]}
                for name, found in runs.items()
            }
            show(setting, results)
            measured[setting] = {
                "results": results,
                "time_ratios": ratios_of(runs),
                "identical_vectors": [name for name in runs if name.startswith(IDENTICAL)],
                "sparse_adam_pairs_per_second": sparse_adam(texts, dim, threads),
            }
            write_results(
                arguments.out,
                {
                    "facts": texts.facts(),
                    "pair_seconds": summary(texts.pair_seconds),
                    "previous_commit": previous and previous.commit,
                    "settings": measured,
                },
            )
            plot(measured, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
