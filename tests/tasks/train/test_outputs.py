"""Tests of what all training stages share after training: restoring, records and summary."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lexloom.models.registry import families
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.train.outputs import describe_training, restore, save_records, summarize
from lexloom.tasks.train.sentiment import train_sentiment
from lexloom.tasks.train.transformer import train_transformer
from lexloom.tasks.train.window_lm import train_window_lm
from lexloom.tasks.train.word2vec import train_word2vec

METRICS = {
    "loss": 1.25,
    "epochs": 2,
    "examples": 1234,
    "seconds": 3.21,
    "validation_loss": 1.5,
    "history": [{"loss": 1.25}],
    "scores": [{"loss": 1.5}],
}


def test_the_families_name_the_stages_that_train_them() -> None:
    stages = {each.name for each in (train_sentiment, train_transformer, train_window_lm, train_word2vec)}
    assert {family.stage for family in families().values()} == stages


def test_a_network_is_restored_from_a_checkpoints_tensors() -> None:
    trained = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    tensors = {f"module.{name}": each for name, each in trained.state_dict().items()}
    tensors["optimizer.0.exp_avg"] = torch.zeros(1)
    restored = restore(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), tensors)
    for found, wanted in zip(restored.parameters(), trained.parameters(), strict=True):
        assert torch.equal(found, wanted)


def test_shared_parameters_are_restored_from_the_one_that_is_saved() -> None:
    def tied() -> nn.ModuleDict:
        network = nn.ModuleDict({"embedding": nn.Embedding(4, 2), "head": nn.Linear(2, 4, bias=False)})
        network["head"].weight = network["embedding"].weight
        return network

    trained = tied()
    restored = restore(tied(), {"module.embedding.weight": trained["embedding"].weight})
    assert torch.equal(restored["head"].weight, trained["embedding"].weight)


def test_a_checkpoint_of_another_network_fails() -> None:
    with pytest.raises(AssertionError, match="the checkpoint belongs to another network"):
        restore(nn.Linear(2, 3), {"module.weight": torch.zeros(3, 2)})


def test_save_records_writes_metrics_card_and_tokenizer(tmp_path: Path) -> None:
    save_records(tmp_path, METRICS, "# A model\n", Tokenizer.of_characters("text"))
    assert json.loads((tmp_path / "metrics.json").read_text()) == METRICS
    assert (tmp_path / "README.md").read_text() == "# A model\n"
    assert Tokenizer.load(tmp_path / "tokenizer").encode("text")


def test_the_summary_has_metrics_without_curves() -> None:
    summary = summarize(METRICS, "windows", 77, "parameters", {"backbone": "some"})
    assert (summary.rows_in, summary.unit_in) == (1234, "windows in 2 epochs")
    assert (summary.rows, summary.unit) == (77, "parameters")
    assert summary.facts["backbone"] == "some"
    assert summary.facts["validation_loss"] == 1.5
    assert not {"history", "scores"} & set(summary.facts)


def test_the_card_describes_training() -> None:
    assert describe_training(METRICS, "windows") == (
        "Trained with Lexloom on 1,234 windows (2 epochs) in 3.2 seconds: training loss 1.2500 in the last"
        " epoch, validation loss 1.5000."
    )
    shorter = {name: value for name, value in METRICS.items() if name != "validation_loss"}
    assert describe_training(shorter, "windows").endswith("1.2500 in the last epoch.")
