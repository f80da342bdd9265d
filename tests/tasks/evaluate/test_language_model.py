"""Evaluation of language models: hand-computed metrics, equal tokens for all models, and the verdict."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lexloom.models.language_model import LanguageModel
from lexloom.models.ngram import KneserNey
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.models.window_lm import WindowLM, WindowLMConfig
from lexloom.tasks.evaluate import language_model as module
from lexloom.tasks.evaluate.language_model import (
    BEST,
    EvaluateLMConfig,
    LMEvaluation,
    Score,
    contexts_of,
    evaluate_lm,
    highlights,
    read_lm_evaluation,
    spread_windows,
    training_tokens,
)
from lexloom.tasks.store.artifacts import Artifact, Store, Summary

LETTERS = "abcdefgh猫"  # nine letters, the last of three bytes, and the end: ten ids
TOKENIZER = Tokenizer.of_characters(LETTERS)
SIZE, END = TOKENIZER.size, TOKENIZER.end_of_text
BYTES = [1] * 8 + [3, 0]
TRAIN = [[0, 1, 2, 0, 1, 2, END], [0, 1, 2, 8, END], [3, 4, 3, 4, END]]
HELD_OUT = [[0, 1, 2, 8], [3, 4, 3, END], [0, 1, 2, 0], [5, 6, 7, 8]]
Evaluate = Callable[..., LMEvaluation]


def artifact(store: Store, stage: str, **facts: Any) -> Artifact:
    folder = store.folder(stage, "key")
    folder.mkdir(parents=True)
    summary = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=facts)
    return Artifact(stage=stage, key="key", folder=folder, summary=summary)


def write_windows(path: Path, rows: list[list[int]], row_group: int = 3) -> None:
    inputs = pa.array([row[:-1] for row in rows], pa.list_(pa.int32(), len(rows[0]) - 1))
    labels = pa.array([row[-1] for row in rows], pa.int32())
    pq.write_table(pa.table({"inputs": inputs, "label": labels}), path, row_group_size=row_group)


@pytest.fixture
def tokens(store: Store) -> Artifact:
    made = artifact(store, "subwords")
    TOKENIZER.save(made.folder / "tokenizer")
    table = pa.table({"tokens": pa.array(TRAIN, pa.list_(pa.int32()))})
    pq.write_table(table, made.folder / "train-00000.parquet")
    return made


@pytest.fixture
def windows(store: Store) -> Artifact:
    made = artifact(store, "windows", size=4)
    write_windows(made.folder / "validation-00000.parquet", HELD_OUT[:3])
    write_windows(made.folder / "validation-00001.parquet", HELD_OUT[3:])
    return made


@pytest.fixture
def evaluate(
    store: Store, tokens: Artifact, windows: Artifact, build: Callable[..., Artifact], monkeypatch: Any
) -> Evaluate:
    """Run the stage on a predictor."""

    def run(network: LanguageModel, **options: Any) -> LMEvaluation:
        model = artifact(store, "model")
        family = SimpleNamespace(title="a guess", load=lambda folder, device: network)
        monkeypatch.setattr(module, "find_family", lambda folder, capability: family)
        made = build(evaluate_lm, model, windows, tokens, config=EvaluateLMConfig(**options))
        return read_lm_evaluation(made)

    return run


def always(best: list[int], nats: float | None, every_token: bool = False) -> LanguageModel:
    """A model with a constant prediction: its five best tokens, and the cross-entropy."""

    def predict(inputs: torch.Tensor, labels: torch.Tensor, k: int) -> tuple[float | None, torch.Tensor]:
        assert inputs.shape == (len(labels), 3)
        predicted = 3 if every_token else 1
        found = torch.tensor(best).expand(len(labels), predicted, BEST)
        return None if nats is None else nats * len(labels) * predicted, found

    return LanguageModel(TOKENIZER, None, Mock(), predict, every_token)


def test_figures_by_hand(evaluate: Evaluate) -> None:
    """The labels are 8, end of text, 0 and 8: 3 + 0 + 1 + 3 bytes."""
    found = evaluate(always([8, 0, 1, 2, 3], nats=2.0))
    score = found.scores[0]
    assert (found.tokens, found.bytes) == (4, 7)
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.bits_per_byte == pytest.approx(4 * 2.0 / math.log(2) / 7)
    assert (score.top_1, score.top_5) == (0.5, 0.75)


def test_a_model_of_every_token_is_measured_on_all_but_the_first(evaluate: Evaluate) -> None:
    """Of 1 2 8, 4 3 end, 1 2 0 and 6 7 8 the guess of 8 first is right twice; 1, 2, 3 and 0 follow."""
    found = evaluate(always([8, 0, 1, 2, 3], nats=2.0, every_token=True))
    assert (found.tokens, found.bytes) == (12, 1 + 1 + 3 + 1 + 1 + 0 + 1 + 1 + 1 + 1 + 1 + 3)
    assert (found.scores[0].top_1, found.scores[0].top_5) == (2 / 12, 8 / 12)
    assert found.scores[0].bits_per_byte == pytest.approx(12 * 2.0 / math.log(2) / 15)


@pytest.mark.parametrize("every_token", [False, True])
def test_baselines_are_measured_on_the_same_tokens_with_as_much_context(
    evaluate: Evaluate, every_token: bool
) -> None:
    found = evaluate(always([8, 0, 1, 2, 3], nats=2.0, every_token=every_token), order=3)
    offsets = np.cumsum([0, *map(len, TRAIN)])
    ids = np.concatenate(TRAIN)
    for score, order in zip(found.scores[1:], (3, 1), strict=True):
        model = KneserNey(ids, offsets, order=order, size=SIZE, boundary=END)
        nats = []
        for window in HELD_OUT:
            for place in range(1 if every_token else 3, 4):
                context = window[max(0, place - order + 1) : place]
                one = model.log_probabilities(np.array([context], np.int64), np.array([window[place]]))
                nats.append(-one[0])
        assert score.perplexity == pytest.approx(math.exp(np.mean(nats)))
        assert score.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / found.bytes)
    assert [score.name for score in found.scores] == ["a guess", "3-gram", "unigram"]


def test_the_default_n_gram_order_is_the_size_of_the_windows(evaluate: Evaluate) -> None:
    assert [score.name for score in evaluate(always([0, 1, 2, 3, 4], 1.0)).scores[1:]] == [
        "4-gram",
        "unigram",
    ]


def test_with_order_1_there_is_one_unigram(evaluate: Evaluate) -> None:
    assert [score.name for score in evaluate(always([0, 1, 2, 3, 4], 1.0), order=1).scores[1:]] == ["unigram"]


@pytest.mark.parametrize(
    ("nats", "verdict"),
    [
        (
            0.1,
            "beats the 4-gram and the unigram in bits per byte,"
            " but does NOT beat the 4-gram in top-1 accuracy",
        ),
        (9.0, "does NOT beat the 4-gram and the unigram in bits per byte and the 4-gram in top-1 accuracy"),
    ],
)
def test_the_verdict_says_so_when_a_baseline_is_better(evaluate: Evaluate, nats: float, verdict: str) -> None:
    found = evaluate(always([0, 1, 2, 3, 4], nats)).verdict
    assert found == f"a guess {verdict}: train longer, or use a larger model."


def test_the_verdict_of_a_model_that_beats_all_baselines() -> None:
    model, baseline = (
        Score(name=name, perplexity=1, bits_per_byte=bits, top_1=top, top_5=1)
        for name, bits, top in (("it", 1.0, 0.5), ("4-gram", 1.1, 0.4))
    )
    assert module.verdict(model, [baseline]) == "it beats the 4-gram in bits per byte and top-1 accuracy."


def test_between_the_baselines_it_says_which_is_better(evaluate: Evaluate) -> None:
    """With so little text, it is the unigram."""
    scores = evaluate(always([0, 1, 2, 3, 4], 1.0)).scores
    between = sum(score.bits_per_byte or 0 for score in scores[1:]) / 2
    found = module.verdict(scores[0].model_copy(update={"bits_per_byte": between}), scores[1:])
    assert found.startswith("a guess does NOT beat the unigram in bits per byte and the 4-gram in top-1")


def test_without_a_distribution_only_accuracies_are_measured(evaluate: Evaluate) -> None:
    found = evaluate(always([8, 0, 1, 2, 3], nats=None))
    score = found.scores[0]
    assert (score.perplexity, score.bits_per_byte) == (None, None)
    assert (score.top_1, score.top_5) == (0.5, 0.75)
    assert found.verdict.endswith("in top-1 accuracy.") or "NOT" in found.verdict


def test_at_most_max_tokens_are_measured_spread_evenly(evaluate: Evaluate) -> None:
    """Of four windows, the first and the third are used, with the labels 8 and 0."""
    found = evaluate(always([8, 0, 1, 2, 3], nats=2.0), max_tokens=2)
    assert (found.tokens, found.bytes) == (2, 4)


@pytest.mark.parametrize("step", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [1, 2, 100])
def test_spread_windows_are_every_nth_over_all_files(tmp_path: Path, step: int, rows: int) -> None:
    every = np.random.default_rng(0).integers(0, 99, (20, 4))
    write_windows(tmp_path / "a", every[:9].tolist())
    write_windows(tmp_path / "b", every[9:].tolist())
    batches = list(spread_windows([tmp_path / "a", tmp_path / "b"], 4, step, rows))
    assert np.concatenate([batch for _, batch in batches]).tolist() == every[::step].tolist()
    assert all(0 < len(batch) <= rows for _, batch in batches)


def test_contexts_end_where_the_window_begins() -> None:
    windows = np.array([[1, 2, 3, 4]])
    assert contexts_of(windows, 1, 2).tolist() == [[2, 3]]
    assert contexts_of(windows, 3, 2).tolist() == [[-1, 1], [1, 2], [2, 3]]
    assert contexts_of(windows, 3, 0).shape == (3, 0)


def test_baselines_can_be_counted_in_a_part_of_the_text(tokens: Artifact) -> None:
    ids, offsets = training_tokens(tokens, 9)
    assert ids.tolist() == [0, 1, 2, 0, 1, 2, END, 0, 1]
    assert offsets.tolist() == [0, 7, 9, 9]


def test_a_window_language_model_is_measured_as_it_predicts(
    store: Store, tokens: Artifact, windows: Artifact, build: Callable[..., Artifact]
) -> None:
    config = WindowLMConfig(vocabulary=SIZE, context=3, dim=4, padding=END, width=8, features=8, cutoffs=(4,))
    torch.manual_seed(0)
    network = WindowLM(config, torch.randn(SIZE, 4)).eval()
    model = artifact(store, "train_window_lm")
    network.save(model.folder)
    TOKENIZER.save(model.folder / "tokenizer")
    made = build(evaluate_lm, model, windows, tokens, config=EvaluateLMConfig())
    found = read_lm_evaluation(made)
    held_out = torch.tensor(HELD_OUT)
    logs = network.log_probabilities(held_out[:, :3]).gather(1, held_out[:, 3:]).detach()
    assert found.scores[0].perplexity == pytest.approx(math.exp(-logs.mean()), rel=1e-5)
    assert made.facts["verdict"] == found.verdict
    shown = str(highlights(made, 80))
    assert "window language model" in shown
    assert found.verdict in shown


def test_a_model_that_predicts_embeddings_has_no_perplexity(
    store: Store, tokens: Artifact, windows: Artifact, build: Callable[..., Artifact]
) -> None:
    config = WindowLMConfig(
        vocabulary=SIZE, context=3, dim=4, padding=END, width=8, objective="embedding", error="squared"
    )
    model = artifact(store, "train_window_lm")
    WindowLM(config, torch.randn(SIZE, 4)).save(model.folder)
    TOKENIZER.save(model.folder / "tokenizer")
    made = build(evaluate_lm, model, windows, tokens, config=EvaluateLMConfig())
    assert read_lm_evaluation(made).scores[0].perplexity is None
    assert "perplexity" not in made.facts
    assert "–" in str(highlights(made, 80))


def test_nothing_held_out_is_refused(store: Store, tokens: Artifact, build: Callable[..., Artifact]) -> None:
    with pytest.raises(ValueError, match="set validation_share above 0"):
        build(
            evaluate_lm,
            artifact(store, "model"),
            artifact(store, "windows", size=4),
            tokens,
            config=EvaluateLMConfig(),
        )


def test_a_model_that_predicts_no_tokens_is_refused(
    store: Store, tokens: Artifact, windows: Artifact, build: Callable[..., Artifact]
) -> None:
    model = artifact(store, "model")
    (model.folder / "config.json").write_text(json.dumps({"model": "word2vec"}))
    with pytest.raises(ValueError, match="contains a word2vec model, which can't generate text"):
        build(evaluate_lm, model, windows, tokens, config=EvaluateLMConfig())
