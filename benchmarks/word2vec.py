"""Word vectors beside gensim's: training speed and quality, same documents, words and settings, in one run.

    python benchmarks/word2vec.py --data FOLDER_OF_PARQUET [--seeds 3] [--threads 2] [--dim 100]

The documents (column `text` of every Parquet file below the folder) are shuffled once. For each seed the
contenders train one epoch in turn: gensim from sentences, gensim from a corpus file, and Lexloom with one
worker of several threads and with two and four workers of one thread (`delta_sum`, on Ray). Seconds are
those of training alone, on a vocabulary that stands. Lexloom's pairs come from stored shards, and the seconds
and bytes that those took are shown beside; or they are streamed, drawn from the tokens in training. Pairs a
second are the stored ones of an epoch over its seconds, for both. Every model is scored by gensim's own
evaluation. Results go to benchmarks/results/word2vec.json.

All are told the same rate, 0.025 falling to 0.0001. gensim's corpus_file way falls only by 1/threads of that
(each thread measures its own share against the whole), so Lexloom is shown at that rate too; and at its own
default, 0.05.
"""

import argparse
import logging
import os
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from measure import stage_runner, summary, table, write_results

from models.sgns_cpu import padded
from tasks.artifacts import Artifact
from tasks.corpus import CorpusConfig, corpus, locate
from tasks.noise import NoiseConfig, noise
from tasks.pairs import PairsConfig, pairs
from tasks.tokens import TokensConfig, tokens
from tasks.train_word2vec import TrainWord2VecConfig, train_word2vec
from tasks.vocabulary import VocabularyConfig, vocabulary

WINDOW, NEGATIVES, SUBSAMPLE, MIN_COUNT = 5, 5, 1e-3, 5
RATE, LAST_RATE = 0.025, 0.0001
DEFAULT_RATE = TrainWord2VecConfig().learning_rate
SHUFFLE_SEED = 0
FLOAT_BYTES = 4
GENSIM_SENTENCE = 10_000  # words; gensim silently cuts longer ones

Mode = Literal["stored", "streamed"]


def shuffled_documents(data: Path, out: Path) -> None:
    """All texts below `data` in one Parquet file, in random order."""
    texts = pa.concat_tables(
        [pq.read_table(path, columns=["text"]) for path in sorted(data.rglob("*.parquet"))]
    )
    order = np.random.default_rng(SHUFFLE_SEED).permutation(texts.num_rows)
    pq.write_table(texts.take(pa.array(order)), out)


def score(vectors: Any) -> dict[str, float]:
    """WordSim-353 and SimLex-999 (Spearman) and Google's analogies (accuracy), all by gensim."""
    from gensim.test.utils import datapath

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        similar = vectors.evaluate_word_pairs(datapath("wordsim353.tsv"))[1][0]
        simlex = vectors.evaluate_word_pairs(datapath("simlex999.txt"))[1][0]
        analogies = vectors.evaluate_word_analogies(datapath("questions-words.txt"))[0]
    return {
        "wordsim353": float(similar),
        "simlex999": float(simlex),
        "analogies": float(analogies),
        "mean": float(np.mean([similar, simlex, analogies])),
    }


def run_gensim(lines: Path, how: str, *, seed: int, threads: int, dim: int) -> dict[str, float]:
    from gensim.models import Word2Vec
    from gensim.models.word2vec import LineSentence

    source = (
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
    return {"seconds": time.perf_counter() - started, **score(model.wv)}


def pairs_config(seed: int, mode: Mode = "stored") -> PairsConfig:
    return PairsConfig(window=WINDOW, subsample=SUBSAMPLE, seed=seed, mode=mode)


def run_lexloom(
    built: dict[str, Artifact], stages: Any, *, dim: int, seed: int, mode: Mode = "stored", **how: Any
) -> dict[str, float]:
    from gensim.models import KeyedVectors

    config = TrainWord2VecConfig(epochs=1, dim=dim, negatives=NEGATIVES, seed=seed, **how)
    with tempfile.TemporaryDirectory() as scratch:
        model = stages(
            train_word2vec,
            built["pairs" if mode == "stored" else "tokens"],
            built["noise"],
            built["vocabulary"],
            config=config.reading(pairs_config(seed, mode)),
            scratch=Path(scratch),
        )
    vectors = KeyedVectors.load_word2vec_format(str(model.folder / "word2vec.bin"), binary=True)
    assert vectors.vector_size == dim
    rows, stride = built["vocabulary"].summary.rows, padded(dim)
    return {
        "seconds": model.facts["seconds"],
        "sync_seconds": model.facts["sync_seconds"],
        "sync_megabytes_per_step": model.facts["sync_bytes"] / model.facts["steps"] / 1e6,
        "both_tables_megabytes": 2 * rows * stride * FLOAT_BYTES / 1e6,
        "pairs_per_second": built["pairs"].facts["pairs"] / model.facts["seconds"],
        **score(vectors),
    }


def size_of(artifact: Artifact) -> int:
    """Bytes of its shards."""
    return sum(path.stat().st_size for path in artifact.files())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet files with a text column")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--only", nargs="+", help="run only these contenders")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "word2vec.json")
    arguments = parser.parse_args()
    logging.getLogger("gensim").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stages = stage_runner(work / "store")
        shuffled_documents(arguments.data, work / "documents.parquet")
        text_config = CorpusConfig(source=str(work / "documents.parquet"))
        text = stages(corpus, locate(text_config), config=text_config)
        built = {"vocabulary": stages(vocabulary, text, config=VocabularyConfig(min_count=MIN_COUNT))}
        ids = built["tokens"] = stages(tokens, text, built["vocabulary"], config=TokensConfig())
        built["noise"] = stages(noise, built["vocabulary"], config=NoiseConfig())
        lines = work / "lines.txt"
        with lines.open("w") as file:
            for shard in text.files():
                for document in pq.read_table(shard)["text"]:
                    file.write(document.as_py() + "\n")
        local = {"runner": "local", "workers": 1, "threads": arguments.threads}
        contenders = {
            "gensim, sentences": partial(
                run_gensim, lines, "sentences", threads=arguments.threads, dim=arguments.dim
            ),
            "gensim, corpus_file": partial(
                run_gensim, lines, "corpus_file", threads=arguments.threads, dim=arguments.dim
            ),
            **{
                f"lexloom, {who}, {rates}": partial(
                    run_lexloom, built, stages, dim=arguments.dim, **how, **rate
                )
                for who, how in {
                    "one worker": local,
                    "one worker, streamed": {**local, "mode": "streamed"},
                    "two workers": {"workers": 2},
                    "four workers": {"workers": 4},
                }.items()
                for rates, rate in {
                    "same rate": {"learning_rate": RATE, "min_learning_rate": LAST_RATE},
                    "corpus_file's rate": {
                        "learning_rate": RATE,
                        "min_learning_rate": RATE - (RATE - LAST_RATE) / arguments.threads,
                    },
                    "default rate": {"learning_rate": DEFAULT_RATE, "min_learning_rate": LAST_RATE},
                }.items()
            },
        }
        if arguments.only:
            contenders = {name: contenders[name] for name in arguments.only}
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        pair_seconds = []
        for seed in range(1, arguments.seeds + 1):
            started = time.perf_counter()
            built["pairs"] = stages(pairs, ids, built["vocabulary"], config=pairs_config(seed))
            pair_seconds.append(time.perf_counter() - started)
            for name, contender in contenders.items():
                runs[name].append(contender(seed=seed))
                print(
                    f"seed {seed}  {name:24}",
                    {key: round(value, 3) for key, value in runs[name][-1].items()},
                    flush=True,
                )
        words = ids.facts["tokens"]
        results = {
            name: {figure: summary([run[figure] for run in found]) for figure in found[0]}
            for name, found in runs.items()
        }
        facts = {
            "words": words,
            "pairs": built["pairs"].facts["pairs"],
            **{
                f"{name}_bytes_per_pair": size_of(built[name]) / built["pairs"].facts["pairs"]
                for name in ("tokens", "pairs")
            },
            "vocabulary": built["vocabulary"].summary.rows,
        }
    ratios = {
        f"{theirs} / {ours}": summary(
            [a["seconds"] / b["seconds"] for a, b in zip(runs[theirs], runs[ours], strict=True)]
        )
        for theirs in runs
        if theirs.startswith("gensim")
        for ours in runs
        if ours.startswith("lexloom")
    }
    figures = ["seconds", "wordsim353", "simlex999", "analogies", "mean"]
    rows = [
        [name, *(f"{found[figure]['median' if figure == 'seconds' else 'mean']:.3f}" for figure in figures)]
        for name, found in results.items()
    ]
    print(table(["one epoch", *figures], rows))
    print(f"making the pairs: {summary(pair_seconds)['median']:.1f} s; {facts}")
    write_results(
        arguments.out,
        {"facts": facts, "pair_seconds": summary(pair_seconds), "results": results, "time_ratios": ratios},
    )


if __name__ == "__main__":
    main()
