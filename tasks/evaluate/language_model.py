"""Evaluation of a language model on held-out text, compared with n-gram and unigram baselines.

- perplexity: exp of the mean cross-entropy per token; comparable between models with the same tokenizer.
- bits per byte: the total cross-entropy in bits over the number of UTF-8 bytes; comparable across tokenizers.
- top-1, top-5: the share of tokens predicted as the most probable, or among the five most probable.

All are measured on the same tokens: those that the model predicts in the held-out windows. A model that
predicts embeddings has no distribution, so only its accuracies are measured.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from rich.text import Text

from lexloom.models.device import find_device
from lexloom.models.language_model import LanguageModel
from lexloom.models.ngram import KneserNey
from lexloom.models.registry import find_family
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.subwords import read_tokenizer
from lexloom.tasks.tokens import read_token_batches
from lexloom.tasks.train.run import TRAIN, VALIDATION

FILE = "evaluation.json"
BEST = 5
LABELS_AT_ONCE = 1 << 12
DEFAULT_ORDER = 5  # of n-grams at most: longer ones gain nothing
NO_TOKEN = -1

Ids = NDArray[np.int64]


class EvaluateLMConfig(BaseModel):
    """Size of the evaluation and of the n-gram baseline."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    order: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Order of the n-gram baseline; if not given, the windows' length, but at most 5.",
    )
    baseline_tokens: int = Field(
        20_000_000, ge=1, description="Maximum number of training tokens on which n-grams are counted."
    )
    max_tokens: int = Field(
        1_000_000,
        ge=1,
        description="Approximate maximum number of held-out tokens to evaluate on, in evenly spaced windows.",
    )
    device: Annotated[Literal["auto", "cpu", "cuda"], RunOnly()] = Field(
        "auto", description="Device that evaluates the model; 'auto' uses a GPU if this machine has one."
    )


# the results


class Score(BaseModel):
    """The metrics of one model; None if a metric is not defined for it."""

    name: str
    perplexity: float | None
    bits_per_byte: float | None
    top_1: float
    top_5: float


class LMEvaluation(BaseModel):
    """The content of `evaluation.json`: scores of the model and the baselines, and the size of the text."""

    scores: list[Score]
    tokens: int
    bytes: int
    verdict: str


def read_lm_evaluation(artifact: Artifact) -> LMEvaluation:
    return LMEvaluation.model_validate_json((artifact.folder / FILE).read_bytes())


def highlights(artifact: Artifact, width: int) -> Text:
    """Return the evaluation summary that a run prints."""
    found = read_lm_evaluation(artifact)
    longest = max(len(score.name) for score in found.scores)
    lines = [Text(f"\n{'':{longest}}  bits/byte  perplexity  top-1  top-5", style="bold")]
    for score in found.scores:
        line = Text(f"{score.name:<{longest}}", style="bold")
        line.append(f"  {shown(score.bits_per_byte, '.3f'):>9}  {shown(score.perplexity, '.1f'):>10}")
        line.append(f"  {score.top_1:5.1%}  {score.top_5:5.1%}")
        lines.append(line)
    return Text("\n").join([*lines, Text(found.verdict)])


def shown(figure: float | None, form: str) -> str:
    return "–" if figure is None else format(figure, form)


# the stage


@stage(version=3)
def evaluate_lm(
    model: Artifact, windows: Artifact, tokens: Artifact, config: EvaluateLMConfig, out: Path
) -> Summary:
    """Write `evaluation.json`: the scores of the model and the baselines on the held-out windows.

    Raises:
        ValueError: no text was held out.
    """
    held_out = windows.files(VALIDATION)
    if not held_out:
        raise ValueError("no text was held out for evaluation: set validation_share above 0")
    family, device = find_family(model.folder, "generate"), find_device(config.device)
    network: LanguageModel = family.load(model.folder, device)
    size = windows.facts["size"]
    assert isinstance(size, int)
    predicted = size - 1 if network.every_token else 1  # P
    tokenizer = read_tokenizer(tokens)
    lengths = tokenizer.byte_lengths()
    baselines = count_baselines(tokens, tokenizer, config.order or min(size, DEFAULT_ORDER), config)
    tally, others = Tally(family.title), [Tally(name) for name in baselines]
    bytes_ = 0
    rows = sum(pq.read_metadata(path).num_rows for path in held_out)
    step = -(-rows * predicted // config.max_tokens)
    with console.bar("evaluate_lm", total=rows) as bar, torch.inference_mode():
        for done, batch in spread_windows(held_out, size, step, max(1, LABELS_AT_ONCE // predicted)):
            inputs, label = torch.from_numpy(batch[:, :-1]), torch.from_numpy(batch[:, -1])
            nats, best = network.predict(inputs.to(device), label.to(device), BEST)
            labels = batch[:, -predicted:].reshape(-1)  # (B P,)
            tally.add(nats, best.reshape(-1, BEST).cpu().numpy(), labels)
            bytes_ += int(lengths[labels].sum())
            for baseline, other in zip(baselines.values(), others, strict=True):
                contexts = contexts_of(batch, predicted, baseline.order - 1)
                nats = -float(baseline.log_probabilities(contexts, labels).sum())
                other.add(nats, baseline.best(contexts, BEST), labels)
            bar.update(done, counted(tally.tokens, "tokens"))
    scores = [each.score(bytes_) for each in (tally, *others)]
    evaluation = LMEvaluation(
        scores=scores, tokens=tally.tokens, bytes=bytes_, verdict=verdict(scores[0], scores[1:])
    )
    (out / FILE).write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    figures = scores[0].model_dump(exclude={"name"}, exclude_none=True)
    facts = {
        **{figure: round(value, 5) for figure, value in figures.items()},
        **{f"{score.name} bits_per_byte": round(score.bits_per_byte or 0, 5) for score in scores[1:]},
        "verdict": evaluation.verdict,
    }
    return Summary(
        rows_in=rows, unit_in="held-out windows", rows=tally.tokens, unit="tokens predicted", facts=facts
    )


def verdict(model: Score, baselines: list[Score]) -> str:
    """Return one sentence on whether the model beats the baselines, for each metric."""
    figures: dict[str, Callable[[Score], float]] = {"top-1 accuracy": lambda score: score.top_1}
    if model.bits_per_byte is not None:
        figures = {"bits per byte": lambda score: -(score.bits_per_byte or 0.0), **figures}
    better: dict[str, list[str]] = {}  # names of baselines -> the figures
    worse: dict[str, list[str]] = {}
    for figure, goodness in figures.items():
        above = [score.name for score in baselines if goodness(score) >= goodness(model)]
        names = " and the ".join(above or [score.name for score in baselines])
        (worse if above else better).setdefault(names, []).append(figure)
    parts = []
    for verb, found in (("beats", better), ("does NOT beat", worse)):
        names_in = [f"the {names} in {' and '.join(by)}" for names, by in found.items()]
        parts += [f"{verb} {' and '.join(names_in)}"] if names_in else []
    return f"{model.name} {', but '.join(parts)}{': train longer, or use a larger model' if worse else ''}."


class Tally:
    """Accumulates the metrics of one model."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.tokens = self.first = self.among = 0
        self._nats: float | None = 0.0

    def add(self, nats: float | None, best: NDArray[np.integer], labels: Ids) -> None:
        """Add the most probable tokens, (n, BEST), and the labels, (n,)."""
        hits = best == labels[:, None]
        self.tokens += len(labels)
        self.first += int(hits[:, 0].sum())
        self.among += int(hits.sum())
        self._nats = None if nats is None or self._nats is None else self._nats + nats

    def score(self, bytes_: int) -> Score:
        nats = self._nats
        return Score(
            name=self.name,
            perplexity=None if nats is None else math.exp(nats / self.tokens),
            bits_per_byte=None if nats is None or not bytes_ else nats / math.log(2) / bytes_,
            top_1=self.first / self.tokens,
            top_5=self.among / self.tokens,
        )


def count_baselines(
    tokens: Artifact, tokenizer: Tokenizer, order: int, config: EvaluateLMConfig
) -> dict[str, KneserNey]:
    """Return the n-gram and unigram baselines by name."""
    ids, offsets = training_tokens(tokens, config.baseline_tokens)
    names = {order: f"{order}-gram", 1: "unigram"}
    return {
        name: KneserNey(ids, offsets, order=order, size=tokenizer.size, boundary=tokenizer.end_of_text)
        for order, name in names.items()
    }


def training_tokens(tokens: Artifact, most: int) -> tuple[NDArray[np.int32], Ids]:
    """Return the ids of the first training documents, and the offset of each, with the end last."""
    parts: list[NDArray[np.int32]] = []
    lengths: list[NDArray[np.int64]] = []
    held = 0
    for ids, offsets in read_token_batches(tokens.files(TRAIN)):
        part = ids[: most - held]
        parts.append(part.copy())
        lengths.append(np.diff(np.minimum(offsets, len(part))))
        held += len(part)
        if held >= most:
            break
    return np.concatenate(parts), np.concatenate([[0], *lengths]).cumsum()


def spread_windows(files: list[Path], size: int, step: int, rows: int) -> Iterator[tuple[int, Ids]]:
    """Yield (windows done, every `step`-th window of `size` tokens, (B, size)), B at most `rows`."""
    done = 0
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(rows * step):
                inputs = batch["inputs"].flatten().to_numpy().reshape(-1, size - 1)
                wanted = slice(-done % step, None, step)
                done += len(inputs)
                windows = np.column_stack([inputs[wanted], batch["label"].to_numpy()[wanted]])
                if len(windows):
                    yield done, windows.astype(np.int64)


def contexts_of(windows: Ids, predicted: int, length: int) -> Ids:
    """Return the tokens before each of the last `predicted` tokens of windows (B, T + 1).

    The shape is (B * predicted, length); shorter contexts are padded with NO_TOKEN.
    """
    padded = np.pad(windows[:, :-1], ((0, 0), (length, 0)), constant_values=NO_TOKEN)
    if not length:
        return np.empty((len(windows) * predicted, 0), np.int64)
    sliding = np.lib.stride_tricks.sliding_window_view(padded, length, axis=1)[:, -predicted:]
    return sliding.reshape(-1, length)
