"""Tests of the training stage of sentiment classifiers."""

import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import pipeline

from lexloom.models.normalization import read_normalization
from lexloom.models.sentiment.classifier import Classifier
from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.frozen_features import FeaturesConfig, frozen_features
from lexloom.tasks.sources.backbone import Backbone, BackboneConfig, locate_backbone
from lexloom.tasks.store.artifacts import Artifact, Store
from lexloom.tasks.train import sentiment as module
from lexloom.tasks.train.sentiment import (
    FeatureLoss,
    TrainSentimentConfig,
    balanced_weights,
    make_optimizer,
    make_trained_part,
    train_sentiment,
)
from tests.models.tiny import write_backbone
from tests.tasks import guarantees
from tests.tasks.cards import run_card
from tests.tasks.guarantees import Plan, planner
from tests.tasks.labelled import LABELS, texts_of, write_split

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def reviews(store: Store) -> Artifact:
    return write_split(store, reviews=80)


@pytest.fixture
def backbone(tmp_path: Path) -> Backbone:
    folder = write_backbone(tmp_path / "backbone", **WITHOUT_DROPOUT)
    return locate_backbone(BackboneConfig(backbone=str(folder)))


@pytest.fixture
def read(
    reviews: Artifact, backbone: Backbone, build: Callable[..., Artifact], tmp_path: Path
) -> Callable[..., Artifact]:
    """Compute features of the reviews."""

    def run(**options: Any) -> Artifact:
        config = FeaturesConfig(**{"max_length": 16, "dtype": "float32"} | options)
        scratch = tmp_path / f"scratch-{frozen_features.key((reviews, backbone), config)}"
        scratch.mkdir()
        return build(frozen_features, reviews, backbone, config=config, scratch=scratch)

    return run


@pytest.fixture
def train(backbone: Backbone, tmp_path: Path) -> Callable[..., Path]:
    """Train on features and return the model folder `name`."""

    def run(found: Artifact, name: str = "model", **options: Any) -> Path:
        few: dict[str, Any] = {"runner": "local", "workers": 1, "batch_size": 8, "learning_rate": 0.02}
        config = TrainSentimentConfig(**few | options)
        out, scratch = tmp_path / name, tmp_path / f"scratch-{name}"
        out.mkdir(exist_ok=True)
        scratch.mkdir(exist_ok=True)
        train_sentiment.function(found, backbone, config, out, scratch)
        return out

    return run


Read, Train = Callable[..., Artifact], Callable[..., Path]


def weights(model: Path) -> dict[str, Tensor]:
    return load_file(model / "model.safetensors")


def metrics_of(model: Path) -> dict[str, Any]:
    return json.loads((model / "metrics.json").read_text())


def test_the_classifier_learns(read: Read, train: Train, reviews: Artifact) -> None:
    texts = texts_of(reviews, "test")
    model = train(read(trainable_blocks=3), epochs=15, learning_rate=0.01)
    found = Classifier.load(model).classify(texts)
    assert [label for label, _ in found] == [LABELS[text.startswith("good")] for text in texts]


@pytest.mark.parametrize("blocks", range(4))
def test_training_with_and_without_cache_is_equal(read: Read, train: Train, blocks: int) -> None:
    """Without a cache, every step runs the whole encoder; without dropout, both must agree."""
    cached = weights(train(read(trainable_blocks=blocks), "cached"))
    plain = weights(train(read(trainable_blocks=blocks, cache_features=False), "plain"))
    assert cached.keys() == plain.keys()
    for name, value in plain.items():
        torch.testing.assert_close(cached[name], value, rtol=1e-3, atol=1e-3)


def test_only_the_last_block_and_the_classifier_change(read: Read, train: Train, backbone: Backbone) -> None:
    before = load_file(backbone.folder / "model.safetensors")
    after = weights(train(read(trainable_blocks=1)))
    moved = {name for name, value in before.items() if not torch.equal(after[f"bert.{name}"], value)}
    assert {name.rsplit(".", 2)[0] for name in moved} == {
        *("encoder.layer.2.attention.self", "encoder.layer.2.attention.output"),
        *("encoder.layer.2.intermediate", "encoder.layer.2.output", "pooler"),
    }


def test_the_folder_has_metadata_and_a_card(read: Read, train: Train) -> None:
    model = train(read(), epochs=2)
    config = json.loads((model / "config.json").read_text())
    own = json.loads((model / "lexloom.json").read_text())
    metrics = metrics_of(model)
    assert config["architectures"] == ["BertForSequenceClassification"]
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert (own["model"], own["labels"], own["max_length"], own["epochs"]) == ("sentiment", LABELS, 16, 2)
    assert "runner" not in own
    rules = read_normalization(model)
    assert rules is not None
    assert rules.model_dump() == AsWritten().model_dump()
    assert metrics["examples"] == 160
    card = " ".join((model / "README.md").read_text().split())
    assert "Trained with Lexloom on 160 reviews" in card


def test_transformers_gives_the_same_predictions_by_the_cards_code(read: Read, train: Train) -> None:
    model = train(read(), epochs=1)
    run_card(model)
    texts = ["good film", "  bad\n\nfilm ", "ünïcödé 猫 🎉 good", "Q", "good " * 500, "[CLS] bad [SEP]"]
    theirs = pipeline("text-classification", str(model), truncation=True)(texts)
    ours = Classifier.load(model).classify(texts)
    assert [label for label, _ in ours] == [found["label"] for found in theirs]
    assert [score for _, score in ours] == pytest.approx([found["score"] for found in theirs], abs=1e-5)


def test_the_best_model_is_kept_and_training_stops_early(read: Read, train: Train, reviews: Artifact) -> None:
    """With a learning rate that is far too high, later epochs are worse; the folder has the best model."""
    model = train(read(), epochs=30, learning_rate=0.2, patience=2)
    metrics = metrics_of(model)
    losses = [score["loss"] for score in metrics["scores"]]
    assert metrics["stop_reason"] == "patience"
    assert metrics["epochs"] < 30
    (held_out,) = reviews.files("validation-*.parquet")
    table = pq.read_table(held_out)
    probabilities = Classifier.load(model).probabilities(table["text"].to_pylist())
    right = probabilities[np.arange(len(table)), table["label"].to_numpy()]
    assert -np.log(right).mean() == pytest.approx(min(losses), abs=2e-3)
    assert losses[-1] > min(losses)


def test_a_killed_run_is_resumed_bit_for_bit(
    read: Read, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = read()
    undisturbed = weights(train(found, "undisturbed", checkpoint_every=3))
    call = FeatureLoss.__call__
    steps: list[int] = []

    def dies_at_step_12(self: FeatureLoss, module: torch.nn.Module, batch: dict[str, Tensor]) -> Tensor:
        steps.append(len(batch["label"]))
        if len(steps) == 12:
            raise KeyboardInterrupt
        return call(self, module, batch)

    monkeypatch.setattr(FeatureLoss, "__call__", dies_at_step_12)
    with pytest.raises(KeyboardInterrupt):
        train(found, "resumed", checkpoint_every=3)
    resumed = weights(train(found, "resumed", checkpoint_every=3))
    assert "resumes from the checkpoint of step" in capsys.readouterr().err
    assert all(torch.equal(value, resumed[name]) for name, value in undisturbed.items())


@pytest.fixture
def plan(read: Read, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    config = TrainSentimentConfig(runner="local", workers=1, batch_size=8)
    return planner(monkeypatch, module, train_sentiment, (read(), backbone), config, tmp_path)


@pytest.mark.parametrize("step", [3, 5, 8])
def test_resumed_equals_uninterrupted_bit_for_bit(plan: Plan, step: int) -> None:
    guarantees.assert_resumed_equals_uninterrupted(plan, step)


def test_gradients_of_a_batchs_parts_have_the_mean_of_the_whole(plan: Plan) -> None:
    guarantees.gradients_of_a_batchs_parts_have_the_mean_of_the_whole(plan)


def test_balanced_weights_give_every_label_the_same_sum() -> None:
    assert balanced_weights([30, 10]) == pytest.approx([2 / 3, 2])
    assert 30 * 2 / 3 == 10 * 2 == (30 + 10) / 2


def test_class_weights_follow_the_label_counts(read: Read, train: Train) -> None:
    """With equally frequent labels, all balanced weights are 1 and the model is the same."""
    found = read()
    plain, even = (weights(train(found, name, class_weights=name)) for name in ("none", "balanced"))
    assert all(torch.equal(plain[name], even[name]) for name in plain)
    found.summary.facts["label_counts"] = [30, 10]
    other = weights(train(found, "uneven", class_weights="balanced"))
    assert not torch.equal(other["classifier.weight"], plain["classifier.weight"])


def test_the_loss_is_the_weighted_mean_over_reviews(read: Read, backbone: Backbone) -> None:
    """Computed one review at a time: batching by length must not change the loss."""
    folder = read().folder
    part = make_trained_part(backbone.folder, LABELS, 1, from_activations=True).eval()
    rows = {"shard": [0, 1, 0], "start": [0, 3, 15], "length": [15, 4, 7], "label": [1, 0, 0]}
    shards = [load_file(folder / f"features-{number:05d}.safetensors")["activations"] for number in (0, 1)]
    by_hand = []
    for shard, start, length, label in zip(*rows.values(), strict=True):
        logits = part(shards[shard][None, start : start + length], torch.ones(1, length, dtype=torch.int64))
        by_hand.append(-logits[0].log_softmax(0)[label] * (0.5, 3.0)[label])
    batch = {name: torch.tensor(values) for name, values in rows.items()}
    torch.testing.assert_close(FeatureLoss(folder, [0.5, 3.0])(part, batch), torch.stack(by_hand).mean())


def test_workers_receive_paths_and_open_files_themselves(read: Read, backbone: Backbone) -> None:
    loss = FeatureLoss(read().folder, None)
    loss._features.read(0, 0, 1)
    assert len(pickle.dumps(loss)) < 1000
    make = pickle.loads(pickle.dumps(partial(make_trained_part, backbone.folder, LABELS, 1)))
    assert make(from_activations=True).names


def test_only_matrices_have_weight_decay(backbone: Backbone) -> None:
    part = make_trained_part(backbone.folder, LABELS, 1, from_activations=True)
    decaying, others = make_optimizer(part, learning_rate=0.1, weight_decay=0.3).param_groups
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
    assert {parameter.ndim for parameter in decaying["params"]} == {2}
    assert {parameter.ndim for parameter in others["params"]} == {1}
