"""Exact nearest neighbours in a big table, beside gensim's `most_similar`, word by word.

    python benchmarks/neighbours.py [--words 2500000] [--dim 100] [--queries 1000] [--k 10]

Vectors are drawn at random. Both sides are asked for the same words and must name the same neighbours.
Results go to benchmarks/results/neighbours.json.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from measure import peak_megabytes, summary, table, write_results

from models.word2vec import WordVectors

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=2_500_000)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "neighbours.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    random = np.random.default_rng(0)
    matrix = random.standard_normal((arguments.words, arguments.dim), np.float32)
    names = [f"w{i}" for i in range(arguments.words)]
    asked = [names[i] for i in random.choice(arguments.words, arguments.queries, replace=False)]

    vectors = WordVectors(names, matrix)
    before, ours = peak_megabytes(), []
    for _ in range(REPEATS):
        started = time.perf_counter()
        found = vectors.neighbours(asked, arguments.k)
        ours.append(time.perf_counter() - started)
    searching = peak_megabytes() - before

    from gensim.models import KeyedVectors

    peer = KeyedVectors(arguments.dim, count=arguments.words)
    peer.add_vectors(names, matrix)
    peer.fill_norms()
    started = time.perf_counter()
    theirs = [peer.most_similar(word, topn=arguments.k) for word in asked]
    seconds = time.perf_counter() - started

    same = sum(
        [word for word, _ in mine] == [word for word, _ in other]
        for mine, other in zip(found, theirs, strict=True)
    )
    facts = {
        "words": arguments.words,
        "dim": arguments.dim,
        "queries": arguments.queries,
        "k": arguments.k,
        "table_megabytes": round(matrix.nbytes / 1e6, 1),
        "megabytes_while_searching": round(searching, 1),
        "queries_with_the_same_answer": same,
    }
    times = seconds / summary(ours)["median"]
    rows = [["gensim", f"{seconds:.1f}"], ["lexloom", f"{summary(ours)['median']:.2f}"]]
    print(table(["", f"seconds for {arguments.queries} queries"], rows))
    print(f"{times:.1f} times as fast; {facts}")
    write_results(
        arguments.out,
        {"facts": facts, "lexloom_seconds": summary(ours), "gensim_seconds": seconds, "times": times},
    )


if __name__ == "__main__":
    main()
