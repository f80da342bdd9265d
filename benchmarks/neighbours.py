"""Compare exact nearest neighbours in a large table with gensim's `most_similar`, called once per word.

    python benchmarks/neighbours.py [--words 2500000] [--dim 100] [--queries 1000] [--k 10] [--rounds 3]

The vectors are random. Both tools answer the same queries in alternating rounds and must return the same
neighbours. Results are written to benchmarks/results/neighbours.json.
"""

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from measure import peak_megabytes, summary, table, write_results

from lexloom.models.word2vec.vectors import WordVectors


def forget_peak() -> None:
    """Reset the peak memory counter of this process."""
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--words", type=int, default=2_500_000)
    parser.add_argument("--dim", type=int, default=100)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "neighbours.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    random = np.random.default_rng(0)
    matrix = random.standard_normal((arguments.words, arguments.dim), np.float32)
    names = [f"w{i}" for i in range(arguments.words)]
    asked = [names[i] for i in random.choice(arguments.words, arguments.queries, replace=False)]

    from gensim.models import KeyedVectors

    vectors = WordVectors(names, matrix)
    peer = KeyedVectors(arguments.dim)
    peer.add_vectors(names, matrix)
    peer.fill_norms()
    ours, theirs, more = [], [], []
    for _ in range(arguments.rounds):
        forget_peak()
        before = peak_megabytes()
        started = time.perf_counter()
        found = vectors.neighbours(asked, arguments.k)
        ours.append(time.perf_counter() - started)
        more.append(peak_megabytes() - before)
        started = time.perf_counter()
        expected = [peer.most_similar(word, topn=arguments.k) for word in asked]
        theirs.append(time.perf_counter() - started)
    same = sum(
        [word for word, _ in mine] == [word for word, _ in other]
        for mine, other in zip(found, expected, strict=True)
    )
    facts = {
        "words": arguments.words,
        "dim": arguments.dim,
        "queries": arguments.queries,
        "k": arguments.k,
        "table_megabytes": round(matrix.nbytes / 1e6, 1),
        "megabytes_while_searching": round(max(more), 1),
        "queries_with_the_same_answer": same,
    }
    times = summary([other / mine for mine, other in zip(ours, theirs, strict=True)])
    rows = [
        [name, f"{summary(seconds)['median']:.1f}"]
        for name, seconds in (("gensim", theirs), ("lexloom", ours))
    ]
    print(table(["", f"seconds for {arguments.queries} queries"], rows))
    print(f"{times['median']:.1f} times as fast; {facts}")
    write_results(
        arguments.out,
        {
            "facts": facts,
            "lexloom_seconds": summary(ours),
            "gensim_seconds": summary(theirs),
            "times": times,
        },
    )


if __name__ == "__main__":
    main()
