"""The training stage of the sentiment classifier: trains an encoder's last blocks and classification head.

Their inputs are cached features, or token ids (see tasks/frozen_features.py). The model folder is a
checkpoint of the backbone's own architecture, `*ForSequenceClassification`, with its tokenizer:
transformers.pipeline loads it, and so does lexloom.models.sentiment.classifier.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, JsonValue
from torch import Tensor, nn
from torch.optim import AdamW

from lexloom.models.normalization import active_rules, card_note
from lexloom.models.registry import KIND
from lexloom.models.sentiment.batching import group_by_length, pad_batch
from lexloom.models.sentiment.classifier import save_classifier
from lexloom.models.sentiment.family import FAMILY
from lexloom.models.sentiment.frozen_encoder import TrainedPart
from lexloom.models.sentiment.hf_loading import load_classifier
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.frozen_features import (
    COLUMNS,
    TOKENS_AT_ONCE,
    FeatureFiles,
    FeaturesConfig,
    read_features_config,
    read_label_counts,
)
from lexloom.tasks.sources.backbone import Backbone
from lexloom.tasks.split import read_label_names
from lexloom.tasks.store.artifacts import NORMALIZATION, Artifact, Summary, canonical
from lexloom.tasks.store.stage import stage
from lexloom.tasks.train.outputs import (
    describe_training,
    network_tensors,
    save_records,
    summarize,
    write_json,
)
from lexloom.tasks.train.run import BatchSize, Epochs, GradientTrainConfig, plan_job, run_job
from lexloom.training.schedules import linear
from lexloom.training.torch_trainable import TorchTrainable

CLIP = 1.0


class TrainSentimentConfig(GradientTrainConfig):
    """Fine-tuning with AdamW: linear warm-up, then linear decay to 0 (Devlin et al. 2019, "BERT")."""

    epochs: Epochs = 3
    batch_size: BatchSize = 32
    learning_rate: float = Field(2e-4, gt=0, le=1, description="Peak learning rate, after the warm-up.")
    warm_up: float = Field(0.1, ge=0, lt=1, description="Share of training used for learning-rate warm-up.")
    weight_decay: float = Field(
        0.01, ge=0, le=1, description="Weight decay (AdamW) of matrices; biases and norms are not decayed."
    )
    class_weights: Literal["none", "balanced"] = Field(
        "none", description="'balanced' weights the loss so that all labels contribute equally."
    )


@stage(version=5)
def train_sentiment(
    features: Artifact, backbone: Backbone, config: TrainSentimentConfig, out: Path, scratch: Path
) -> Summary:
    """Train on the features and write the model folder: the model with the lowest validation loss."""
    labels = read_label_names(features)
    read = read_features_config(features)
    make_part = partial(
        make_trained_part,
        backbone.folder,
        labels,
        read.trainable_blocks,
        from_activations=read.cache_features,
    )
    weights = balanced_weights(read_label_counts(features)) if config.class_weights == "balanced" else None
    resources = config.resources()
    make_trainable = partial(
        TorchTrainable,
        make_part,
        FeatureLoss(features.folder, weights),
        partial(make_optimizer, learning_rate=config.learning_rate, weight_decay=config.weight_decay),
        schedule=partial(linear, warm_up=config.warm_up),
        clip=CLIP,
        threads=resources.threads if resources.device == "cpu" else None,
        seed=config.seed,
    )
    sync = config.synchronisation()
    job = plan_job(config, resources, make_trainable, features, COLUMNS, [backbone], scratch, sync)
    metrics, tensors = run_job(job, resources, unit="reviews")
    names = make_part().names
    trained = network_tensors(tensors)
    parameters = {names[name]: trained[name] for name in names}
    save_classifier(out, backbone.folder, labels, read.max_length, parameters)
    how = {KIND: FAMILY.kind, "backbone": backbone.name, "labels": labels, **read.model_dump(mode="json")}
    write_json(out / "lexloom.json", {**how, **canonical(config), **features.normalization})
    rules = active_rules(features.normalization.get(NORMALIZATION))  # type: ignore[arg-type]
    save_records(out, metrics, model_card(backbone.name, labels, read, metrics, rules))
    facts: dict[str, JsonValue] = {"labels": [*labels], "backbone": backbone.name}
    return summarize(metrics, "reviews", len(labels), "labels", facts)


def make_trained_part(
    backbone: Path, labels: Sequence[str], trainable_blocks: int, *, from_activations: bool
) -> TrainedPart:
    """Return the trained part of a classifier; torch's global generator initializes its new weights."""
    model = load_classifier(backbone, labels)
    return TrainedPart(model, trainable_blocks, from_activations=from_activations)


def make_optimizer(module: nn.Module, *, learning_rate: float, weight_decay: float) -> AdamW:
    """Return AdamW on the trained parameters; only its first group, the matrices, has weight decay."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=learning_rate, fused=True)


class FeatureLoss:
    """The mean cross-entropy of a batch of reviews whose features are in a folder.

    A batch is computed in groups of similar length, to avoid padding. `weights` has one factor per label.
    """

    def __init__(self, folder: Path, weights: Sequence[float] | None) -> None:
        self._features, self._weights = FeatureFiles(folder), weights

    def __call__(self, module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return the loss of a batch: the columns of the features' Parquet shards, (B,) each."""
        labels = batch["label"].long()
        places = torch.stack([batch["shard"].long(), batch["start"], batch["length"].long()], 1).tolist()
        total = torch.zeros((), device=labels.device)
        for rows in group_by_length([length for _, _, length in places], TOKENS_AT_ONCE[labels.device.type]):
            runs, mask = pad_batch([self._features.read(*places[row]) for row in rows])
            runs = runs.to(labels.device)
            logits = module(runs.float() if runs.is_floating_point() else runs, mask.to(labels.device))
            right = labels[torch.from_numpy(rows).to(labels.device)]
            losses = F.cross_entropy(logits, right, reduction="none")  # (rows,)
            if self._weights is not None:
                losses = losses * losses.new_tensor(self._weights)[right]
            total = total + losses.sum()
        return total / len(labels)


def balanced_weights(counts: Sequence[int]) -> list[float]:
    """Return a weight for each label, so that all labels contribute equally and the mean weight is 1."""
    return [sum(counts) / (len(counts) * count) for count in counts]


def model_card(
    backbone: str,
    labels: Sequence[str],
    read: FeaturesConfig,
    metrics: dict[str, Any],
    rules: Sequence[str] = (),
) -> str:
    """Return the model card: what the model is, how it was trained, how to use it.

    `rules` are those of the training text's normalization.
    """
    blocks = {0: "classification head", 1: "last block and classification head"}.get(
        read.trainable_blocks, f"last {read.trainable_blocks} blocks and classification head"
    )
    return f"""# Sentiment classifier

Assigns one of {counted(len(labels), "labels")} ({", ".join(labels)}) to a text, based on its first
{counted(read.max_length, "tokens")}. Fine-tuned from {backbone} (trained part: {blocks}).
{describe_training(metrics, "reviews")}

```python
from lexloom import Classifier

Classifier.load("this folder").classify(["What a film!"])

from transformers import pipeline
pipeline("text-classification", "this folder", truncation=True)("What a film!")
```
{card_note(rules)}"""
