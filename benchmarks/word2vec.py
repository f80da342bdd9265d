"""Compare the speed and quality of word vectors with gensim and fastText, on the same words and settings.

    python benchmarks/word2vec.py --data FOLDER_OF_PARQUET [--limit 12500] [--seeds 3] [--settings 100x2 ...]

The documents (column `text` of every Parquet file below the folder) are shuffled once, and every hundredth
is held out. For each setting (dimensions x threads) and each seed, the tools train one epoch in alternation:
gensim from sentences and from a corpus file, fastText without subwords, and Lexloom with one worker, from
stored and from streamed pairs. Lexloom on Ray (two and four workers of one thread) runs only if `--only`
names it.

All use the same learning rate, from 0.025 down to 0.0001. With gensim's corpus_file, it falls by only
1/threads of that, because each thread compares its own progress with the whole file. Lexloom is therefore
also measured with that learning rate, and with its default of 0.05.

`seconds` are the training time alone, with a given vocabulary. Lexloom's stored pairs are generated before;
`total_seconds` include this, and range from text to vectors in memory. The text for the other tools is
already in lower case without punctuation, while Lexloom's total includes this work. For all tools, pairs per
second are the stored pairs of an epoch divided by the seconds. benchmarks/word2vec_score.py scores all
models in the same way. A plain PyTorch trainer with SparseAdam (benchmarks/sparse_adam.py) is timed for a
few batches. After each setting, results are written to benchmarks/results/word2vec.json, and a plot to
word2vec.svg.
"""

import argparse
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
from safetensors.numpy import load_file
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
from word2vec_score import SCORES, Scorer

from lexloom.models.word2vec.cpu import padded_dim
from lexloom.tasks.corpus import CorpusConfig, corpus, locate_source
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
from lexloom.tasks.pairs import PairsConfig, pairs
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.tokens import TokensConfig, tokens
from lexloom.tasks.train.word2vec import TrainWord2VecConfig, train_word2vec
from lexloom.tasks.vocabulary import VocabularyConfig, read_vocabulary, vocabulary

SHUFFLE_SEED, HELD_OUT_SEED = 0, 0
HELD_OUT_EVERY = 100  # documents
DEFAULT_RATE = TrainWord2VecConfig().learning_rate
FLOAT_BYTES = 4

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
        split_documents(data, limit, work / "train.parquet", work / "held-out.parquet")
        begun = time.perf_counter()
        text = self._text(work / "train.parquet")
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
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        model = texts.stages(
            train_word2vec,
            texts.pairs if mode == "stored" else texts.tokens,
            texts.noise,
            texts.vocabulary,
            config=config.reading(pairs_config(seed, mode)),
            scratch=Path(scratch),
        )
        before = texts.seconds + (texts.pair_seconds[-1] if mode == "stored" else 0)
        total = time.perf_counter() - begun + before
        tables = load_file(max(Path(scratch).rglob("step-*/model.safetensors")))
    facts = model.facts
    return Trained(
        read_vocabulary(texts.vocabulary)[0].to_pylist(),
        tables["vectors"][:, :dim],
        tables["contexts"][:, :dim],
        facts["seconds"],
        total,
        {
            "waiting_for_data_seconds": facts["data_seconds"],
            "sync_seconds": facts["sync_seconds"],
            "sync_megabytes_per_step": facts["sync_bytes"] / facts["steps"] / 1e6,
            "both_tables_megabytes": 2 * len(tables["vectors"]) * padded_dim(dim) * FLOAT_BYTES / 1e6,
        },
    )


def contenders_of(texts: Texts, dim: int, threads: int) -> dict[str, Contender]:
    """Return all tools by name. Those with several workers need Ray."""
    peers = {
        "gensim, sentences": partial(run_gensim, texts.lines, "sentences", threads=threads, dim=dim),
        "gensim, corpus_file": partial(run_gensim, texts.lines, "corpus_file", threads=threads, dim=dim),
        "fastText": partial(run_fasttext, texts.lines, threads=threads, dim=dim),
    }
    same = {"learning_rate": RATE, "min_learning_rate": LAST_RATE}
    rates = {"same rate": same}
    if threads > 1:
        rates["corpus_file's rate"] = same | {"min_learning_rate": RATE - (RATE - LAST_RATE) / threads}
    rates["default rate"] = same | {"learning_rate": DEFAULT_RATE}
    local = {"runner": "local", "workers": 1, "threads": threads}
    ours = {
        "one worker": local,
        "one worker, streamed": {**local, "mode": "streamed"},
        "two workers": {"workers": 2},
        "four workers": {"workers": 4},
    }
    return peers | {
        f"lexloom, {who}, {name}": partial(run_lexloom, texts, dim=dim, **how, **rate)
        for who, how in ours.items()
        for name, rate in rates.items()
    }


def on_ray(name: str) -> bool:
    return "workers" in name


def run(contenders: dict[str, Contender], texts: Texts, seeds: int) -> dict[str, list[dict[str, float]]]:
    """Run all tools for each seed, and return their figures."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for seed in range(1, seeds + 1):
        texts.draw_pairs(seed)
        for name in names[seed % len(names) :] + names[: seed % len(names)]:  # rotates the order
            model = contenders[name](seed=seed)
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


def sparse_adam(texts: Texts, dim: int, threads: int) -> dict[str, float]:
    """Return the pairs per second only, because an epoch would take half an hour."""
    first = next(
        pq.ParquetFile(texts.pairs.files()[0]).iter_batches(1_500_000, columns=["target", "context"])
    )
    targets, contexts = (column.to_numpy() for column in first.columns)
    torch.set_num_threads(threads)
    words = texts.vocabulary.summary.rows
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
    parser.add_argument("--only", nargs="+", help="run only these contenders")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "word2vec.json")
    arguments = parser.parse_args()
    logging.getLogger("gensim").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        texts = Texts(arguments.data, arguments.limit, Path(folder))
        measured: dict[str, Any] = {}
        for setting in arguments.settings:
            dim, threads = (int(number) for number in setting.split("x"))
            contenders = {
                name: contender
                for name, contender in contenders_of(texts, dim, threads).items()
                if (name in arguments.only if arguments.only else not on_ray(name))
            }
            runs = run(contenders, texts, arguments.seeds)
            results = {
                name: {figure: summary([run[figure] for run in found]) for figure in found[0]}
                for name, found in runs.items()
            }
            show(setting, results)
            measured[setting] = {
                "results": results,
                "time_ratios": ratios_of(runs),
                "sparse_adam_pairs_per_second": sparse_adam(texts, dim, threads),
            }
            write_results(
                arguments.out,
                {"facts": texts.facts(), "pair_seconds": summary(texts.pair_seconds), "settings": measured},
            )
            plot(measured, arguments.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
