"""Parameters that all training stages share."""

from typing import Any

import pytest
from pydantic import ValidationError

from lexloom.tasks.train.run import GradientTrainConfig, compute_metrics
from lexloom.tasks.train.sentiment import TrainSentimentConfig
from lexloom.tasks.train.transformer import TrainTransformerConfig
from lexloom.tasks.train.window_lm import TrainWindowLMConfig
from lexloom.tasks.train.word2vec import TrainWord2VecConfig
from lexloom.training.job import TrainState

GRADIENT_MODELS = (TrainSentimentConfig, TrainTransformerConfig, TrainWindowLMConfig)


@pytest.mark.parametrize("config", GRADIENT_MODELS)
@pytest.mark.parametrize(
    ("batch_size", "lanes"),
    [(1, 1), (2, 2), (7, 4), (32, 32), (48, 32), (63, 32), (64, 64), (100, 64), (4096, 64)],
)
def test_lanes_are_a_power_of_two_up_to_64_and_to_the_batch(
    config: type[GradientTrainConfig], batch_size: int, lanes: int
) -> None:
    assert config(workers=1, batch_size=batch_size).lanes == lanes
    assert config(workers=lanes, batch_size=batch_size).workers == lanes, "as many workers as lanes"


@pytest.mark.parametrize("config", GRADIENT_MODELS)
@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        (
            {"workers": 48, "batch_size": 48},
            "48 workers need a batch_size of at least 64, not 48: raise it, or use at most 32 workers",
        ),
        (
            {"workers": 2, "batch_size": 1},
            "2 workers need a batch_size of at least 2, not 1: raise it, or use at most 1 worker",
        ),
        ({"workers": 65, "batch_size": 4096}, "less than or equal to 64"),
        ({"workers": 64, "min_workers": 65, "batch_size": 4096}, "min_workers 65 exceeds the 64 workers"),
    ],
)
def test_more_workers_than_lanes_are_rejected(
    config: type[GradientTrainConfig], fields: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValidationError, match=complaint) as raised:
        config(**fields)
    assert raised.value.error_count() == 1


def test_word_vectors_have_no_lanes() -> None:
    """The number of workers is limited by the parts of the vocabulary instead."""
    assert TrainWord2VecConfig(workers=1024, min_workers=1024).workers == 1024
    for field in ("workers", "min_workers"):
        with pytest.raises(ValidationError, match="less than or equal to 1024"):
            TrainWord2VecConfig(**{"workers": 1024, field: 1025})


@pytest.mark.parametrize(
    ("epoch", "step_in_epoch", "examples", "epochs"),
    [(3, 0, 300, 3), (2, 5, 247, 2.5), (0, 1, 4, 0.04), (12, 4, 1240, 12)],
)
def test_epochs_of_a_run_that_ends_within_one_have_two_digits(
    epoch: int, step_in_epoch: int, examples: int, epochs: float
) -> None:
    point = {"epoch": epoch, "loss": 1.0, "loss_examples": 10, "workers": 1}
    run = TrainState(
        epoch=epoch, step_in_epoch=step_in_epoch, examples=examples, seconds=1.0, history=[point]
    )
    assert compute_metrics(run, 100)["epochs"] == epochs
