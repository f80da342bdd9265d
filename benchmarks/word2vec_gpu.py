"""Test skip-gram on one GPU: correctness, speed, and the cost of stale updates. Not measured yet.

    python benchmarks/word2vec_gpu.py --pairs FOLDER --noise FILE [--dims 100 300] [--programs 256 1024 ...]
        [--vectors FOLDER]
    python benchmarks/word2vec_gpu.py --dry

`--pairs` is the folder of a `pairs` artifact, `--noise` the `noise.parquet` of the same vocabulary; the
word2vec flow writes both. The machine with the GPU needs only torch, Triton, Numba and PyArrow.

1. Compare a few pairs in float64 by the kernel, and by its implementation in torch, with
   models/word2vec/reference.py.
2. For each number of dimensions and of programs, from the same initial tables: measure pairs per second with
   all batches on the GPU, and with batches from the host, including checks and uploads.
3. Compare the loss on held-out pairs after one epoch with that of the CPU kernel on one thread, for the same
   number of seeds. A speed is useless if its loss is higher. `--vectors` saves the vectors of the default
   number of programs, and those of the CPU; benchmarks/word2vec_score.py scores them on a machine with
   gensim.
4. Measure the pairs per second of a plain PyTorch trainer with SparseAdam and batches of 300,000
   (benchmarks/sparse_adam.py).

Pairs are trained in the blocks of their grid, like in the training stage. The last pairs of each block are
held out.

The bytes of a pair are those of its rows, read and written once per run. Rows in the L2 cache do not use the
memory bus, so the share of its bandwidth can exceed 1. Results are written to
benchmarks/results/word2vec-gpu.json. `--dry` runs everything with tiny sizes without a GPU and writes
nothing; the kernel then runs in Triton's interpreter.
"""

import argparse
import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import summary, table, write_results
from sparse_adam import BATCH, STEPS, pairs_per_second
from word2vec_gpu_corpus import Corpus, read_corpus, tiny_corpus, word_pairs

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import gpu as sgns_gpu
from lexloom.models.word2vec import reference as sgns_reference
from lexloom.models.word2vec.gpu_batches import BatchPrefetcher, Pairs
from lexloom.models.word2vec.tables import VECTORS, assemble
from lexloom.models.word2vec.trainable import Word2Vec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NEGATIVES, RATE, LAST_RATE = 5, 0.05, 0.0001
FLOAT_BYTES, ID_BYTES = 4, 4  # on the GPU


# Correctness


def check(corpus: Corpus, stride: int, programs: int = 1) -> dict[str, float]:
    """Return the largest error of each implementation after 200 pairs in float64, against the reference.

    They are the first pairs of the block (0, 0).
    """
    generator = torch.Generator().manual_seed(0)
    batch, (probability, alias) = corpus.batches[0], corpus.noise(0)
    words, positions = len(probability), slice(min(200, batch["bounds"][1]))
    start = [
        torch.randn(words, stride, generator=generator, dtype=torch.float64) * stride**-0.25 for _ in range(2)
    ]
    targets, contexts = (batch[name][positions].astype(np.int32) for name in ("target", "context"))
    exact = [table.clone() for table in start]
    drawn = []
    for first, _ in sgns_reference.runs(targets.tolist()):
        drawn.append(np.empty(NEGATIVES, np.uint16))
        sgns_cpu.draw_negatives(np.uint64(7), first, probability, alias, drawn[-1])
    expected = sgns_reference.train_batch(
        *exact, targets.tolist(), contexts.tolist(), [noise.tolist() for noise in drawn], 0.125
    )
    ways = {"torch": sgns_gpu.train_in_torch}
    if find_spec("triton"):
        from lexloom.models.word2vec import triton as sgns_triton

        ways["triton"] = sgns_triton.train_batch
    errors = {}
    for name, way in ways.items():
        tables = [table.to(DEVICE, copy=True) for table in start]
        loss = way(
            *tables,
            BatchPrefetcher(DEVICE)(targets, contexts),
            *noise_on_device(corpus, 0),
            negatives=NEGATIVES,
            learning_rate=0.125,
            seed=7,
            programs=programs,
        )
        off = [float((table.cpu() - same).abs().max()) for table, same in zip(tables, exact, strict=True)]
        errors[name] = max(*off, abs(float(loss) / expected - 1.0))
        if not errors[name] < 1e-8:
            raise SystemExit(f"the {name} way is wrong at stride {stride}: its error is {errors[name]:.2g}")
    return errors


# Speed


def noise_on_device(corpus: Corpus, part: int) -> list[torch.Tensor]:
    probability, alias = corpus.noise(part)
    return [torch.tensor(column, device=DEVICE) for column in (probability, alias.astype(np.int32))]


def clock(work: Callable[[], Any]) -> float:
    """Return the seconds until the device has finished."""
    wait = torch.cuda.synchronize if DEVICE.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def copied_bytes_per_second(size: int) -> float:
    """Return the memory bandwidth of the device: bytes read and written per second by a copy."""
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * size / median(clock(lambda: target.copy_(source)) for _ in range(10))


def learner(corpus: Corpus, dim: int, programs: int | None, device: str, seed: int = 1) -> Word2Vec:
    model = Word2Vec(
        corpus.weights,
        parts=corpus.grid.parts,
        dim=dim,
        negatives=NEGATIVES,
        learning_rate=RATE,
        min_learning_rate=LAST_RATE,
        seed=seed,
        programs=programs,
    )
    if device == "cuda" and DEVICE.type == "cpu":
        model.to_device(DEVICE)
    else:
        model.prepare(device)
    return model


def epoch(model: Word2Vec, corpus: Corpus) -> None:
    """Train one epoch with batches from the host, like the training loop."""
    for number, batch in enumerate(corpus.batches):
        model.train_step(batch, progress=number / len(corpus.batches), seed=number)
        model.rotate()


def held_out_loss(model: Word2Vec, corpus: Corpus) -> float:
    losses = []
    for batch in corpus.held_out:
        losses.append(model.evaluate(batch))
        model.rotate()
    loss, pairs = (sum(column) for column in zip(*losses, strict=True))
    return loss / pairs


class Resident(NamedTuple):
    """A block on the GPU."""

    input_part: int
    output_part: int
    pairs: Pairs


def to_gpu(corpus: Corpus) -> list[list[Resident]]:
    """Send the blocks of each batch."""
    feed, parts = BatchPrefetcher(DEVICE), corpus.grid.parts
    batches = []
    for number, batch in enumerate(corpus.batches):
        columns = [batch[name].astype(np.int32) for name in ("target", "context")]
        bounds = batch["bounds"].tolist()
        batches.append(
            [
                Resident(part, (part + number) % parts, feed(*(ids[first:last] for ids in columns)))
                for part, (first, last) in enumerate(pairwise(bounds))
                if first < last
            ]
        )
    return batches


def resident_epoch(
    model: Word2Vec, noise: list[list[torch.Tensor]], batches: list[list[Resident]], steps: int | None = None
) -> None:
    """Train the first steps (all) of one epoch with batches that are on the GPU."""
    assert model.programs is not None
    for number, blocks in enumerate(batches[:steps]):
        for block in blocks:
            sgns_gpu.train_batch(
                model.vectors[block.input_part],
                model.contexts[block.output_part],
                block.pairs,
                *noise[block.output_part],
                negatives=NEGATIVES,
                learning_rate=model.learning_rate(number / len(batches)),
                seed=number * model.grid.parts + block.input_part,
                programs=model.programs,
            )


def measure(
    corpus: Corpus, dim: int, programs: int | None, repeats: int, bus: float, vectors: Path | None
) -> dict[str, Any]:
    resident = to_gpu(corpus)
    noise = [noise_on_device(corpus, part) for part in range(corpus.grid.parts)]
    model = learner(corpus, dim, programs, "cuda")
    resident_epoch(model, noise, resident, steps=1)  # compiles
    alone, fed, losses = [], [], []
    for seed in range(1, repeats + 1):
        model = learner(corpus, dim, programs, "cuda", seed)
        alone.append(corpus.pairs / clock(lambda model=model: resident_epoch(model, noise, resident)))
        model = learner(corpus, dim, programs, "cuda", seed)
        fed.append(corpus.pairs / clock(lambda model=model: epoch(model, corpus)))
        losses.append(held_out_loss(model, corpus))
        if programs is None:
            keep(model, vectors, f"{dim}-gpu-{seed}")
    runs = sum(len(block.pairs.starts) - 1 for blocks in resident for block in blocks)
    rows = corpus.pairs + runs * (1 + NEGATIVES)
    bytes_per_pair = (2 * rows * model.stride * FLOAT_BYTES) / corpus.pairs + 2 * ID_BYTES
    return {
        "dim": dim,
        "programs": model.programs,
        "pairs_per_run": round(corpus.pairs / runs, 2),
        "resident_pairs_per_second": summary(alone),
        "host_fed_pairs_per_second": summary(fed),
        "held_out_loss": summary(losses),
        "bytes_per_pair": round(bytes_per_pair),
        "share_of_bus": round(median(alone) * bytes_per_pair / bus, 4),
    }


def sparse_adam(corpus: Corpus, dim: int, batch: int) -> dict[str, float]:
    rates = pairs_per_second(
        *word_pairs(corpus, STEPS * batch),
        words=corpus.grid.words,
        dim=dim,
        negatives=NEGATIVES,
        device=DEVICE.type,
        batch=batch,
    )
    return summary(rates)


def cpu_losses(corpus: Corpus, dim: int, repeats: int, vectors: Path | None) -> list[float]:
    losses = []
    for seed in range(1, repeats + 1):
        model = learner(corpus, dim, None, "cpu", seed)
        epoch(model, corpus)
        losses.append(held_out_loss(model, corpus))
        keep(model, vectors, f"{dim}-cpu-{seed}")
    return losses


def keep(model: Word2Vec, folder: Path | None, name: str) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        vectors = assemble(VECTORS, model.state_dict(), model.grid, model.dim)
        np.save(folder / f"{name}.npy", vectors.numpy())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=Path, help="folder of a pairs artifact")
    parser.add_argument("--noise", type=Path, help="noise.parquet of the same vocabulary")
    parser.add_argument("--limit", type=int, default=20_000_000, help="pairs to read, in whole episodes")
    parser.add_argument("--dims", type=int, nargs="+", default=[100, 300])
    parser.add_argument("--programs", type=int, nargs="+", default=[256, 512, 768, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3, help="repetitions, each with another seed")
    parser.add_argument("--vectors", type=Path, help="folder to save vectors for scoring")
    parser.add_argument("--dry", action="store_true", help="check that the script runs: tiny sizes, on a CPU")
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "word2vec-gpu.json")
    arguments = parser.parse_args()
    if DEVICE.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    if arguments.dry:
        corpus = tiny_corpus()
        arguments.dims, arguments.programs, arguments.repeats = [16], [1, 8], 1
    elif DEVICE.type == "cpu":
        raise SystemExit("torch finds no GPU on this machine: say --dry to go through the script without")
    elif arguments.pairs is None or arguments.noise is None:
        raise SystemExit("say --pairs FOLDER --noise FILE, or --dry")
    else:
        corpus = read_corpus(arguments.pairs, arguments.noise, arguments.limit)

    errors = {dim: check(corpus, sgns_cpu.padded_dim(dim)) for dim in arguments.dims}
    print(f"largest errors in float64: {errors}", flush=True)
    bus = copied_bytes_per_second(1 << (20 if arguments.dry else 30))
    found, plain = [], {}
    for dim in arguments.dims:
        plain[dim] = sparse_adam(corpus, dim, 100 if arguments.dry else BATCH)
        reference = summary(cpu_losses(corpus, dim, arguments.repeats, arguments.vectors))
        for programs in [*arguments.programs, None]:  # None: the model's default
            figures = measure(corpus, dim, programs, arguments.repeats, bus, arguments.vectors)
            found.append(figures | {"default": programs is None, "cpu_held_out_loss": reference})
            print(found[-1], flush=True)
    headings = ["dim", "programs", "M pairs/s", "fed by the host", "share of bus", "loss", "CPU's loss"]
    rows = [
        [
            str(figures["dim"]),
            f"{figures['programs']}{' (default)' if figures['default'] else ''}",
            f"{figures['resident_pairs_per_second']['median'] / 1e6:.4g}",
            f"{figures['host_fed_pairs_per_second']['median'] / 1e6:.4g}",
            f"{figures['share_of_bus']:.3f}",
            f"{figures['held_out_loss']['median']:.4f}",
            f"{figures['cpu_held_out_loss']['median']:.4f}",
        ]
        for figures in found
    ]
    print(table(headings, rows))
    print(f"SparseAdam, pairs a second: { {dim: rates['median'] for dim, rates in plain.items()} }")
    if arguments.dry:
        return
    write_results(
        arguments.out,
        {
            "gpu": torch.cuda.get_device_name(),
            "copied_bytes_per_second": round(bus),
            "pairs": corpus.pairs,
            "vocabulary": corpus.grid.words,
            "parts": corpus.grid.parts,
            "episodes": len(corpus.batches) // corpus.grid.parts,
            "errors": errors,
            "results": found,
            "sparse_adam_pairs_per_second": plain,
        },
    )


if __name__ == "__main__":
    main()
