"""Tests of plans for a budget of time: what is planned, what is kept, and what the keys contain."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from lexloom.tasks import plan as plan_module
from lexloom.tasks import plan_transformer as transformer_module
from lexloom.tasks import plan_window_lm as window_module
from lexloom.tasks.plan import (
    Calibration,
    Machine,
    Measurement,
    Plan,
    TooShortError,
    make_plan,
    repeat,
    write_calibration,
)
from lexloom.tasks.plan_transformer import (
    CalibrationConfig,
    choose_plan,
    plan_transformer,
    time_transformer,
)
from lexloom.tasks.plan_window_lm import WindowCalibrationConfig, plan_window_lm, time_window_lm
from lexloom.tasks.store.artifacts import Artifact, Summary, canonical
from lexloom.tasks.train.budget import BudgetedTrainConfig
from lexloom.tasks.train.resources import Node
from lexloom.tasks.train.transformer import TrainTransformerConfig, train_transformer
from lexloom.tasks.train.window_lm import TrainWindowLMConfig

CONFIGS = [TrainTransformerConfig, TrainWindowLMConfig]
SMALL = Measurement(
    shape={"width": 8}, parameters=1000, cost=1.0, train_seconds=0.01, evaluation_seconds=0.002
)
LAPTOP = Machine(device="cpu", processor="test", workers=1, threads=1, nodes=[])


# what is left to a plan


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("given", "complete"),
    [
        ({}, False),
        ({"minutes": 1}, False),
        ({"max_seconds": 60}, False),
        ({"batch_size": 8}, False),
        ({"epochs": 1}, True),
        ({"max_steps": 5}, True),
        ({"max_seconds": 60, "epochs": 1}, True),
        ({"epochs": None, "minutes": None}, False),
    ],
)
def test_size_and_length_are_planned_unless_the_length_is_given(
    config: type[BudgetedTrainConfig], given: dict[str, Any], complete: bool
) -> None:
    assert config(**given).is_complete is complete


def test_a_preset_leaves_only_the_length_to_a_plan() -> None:
    assert TrainTransformerConfig(preset="char").is_complete
    planned = TrainTransformerConfig(preset="char", minutes=5)
    assert not planned.is_complete
    assert (planned.layers, planned.width, planned.epochs, planned.batch_size) == (6, 384, None, None)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("limit", ["epochs", "max_steps", "max_seconds"])
def test_minutes_and_another_limit_are_rejected(config: type[BudgetedTrainConfig], limit: str) -> None:
    with pytest.raises(ValidationError, match=f"minutes and {limit} both limit the training: omit one"):
        config(**{"minutes": 1, limit: 3})


@pytest.mark.parametrize("minutes", [0, -1, 1e9, "soon"])
def test_unreadable_budgets_are_rejected(minutes: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        TrainWindowLMConfig(minutes=minutes)
    assert raised.value.error_count() == 1


def test_a_stage_rejects_an_unplanned_config() -> None:
    with pytest.raises(ValueError, match=r"layers is not set: set epochs, or let lexloom\.tasks\.plan"):
        TrainTransformerConfig().require_complete()


# how much fits


def plan(measured: Measurement = SMALL, seconds: float = 100, **changes: Any) -> Plan:
    fields: dict[str, Any] = {"batch_size": 10, "workers": 1, "windows": 1000, "held_out": 100}
    return make_plan(measured, seconds, most_epochs=1000, **(fields | changes))


def test_the_steps_and_evaluations_fill_the_time() -> None:
    found = plan()
    # 7 evaluations of 100 windows take 1.4 s, a step 10 x 0.01 / 0.96 s: 946.6 steps
    assert (found.steps, found.evaluated_windows) == (946, 100)
    assert found.seconds == pytest.approx(946 * 0.1 / 0.96 + 1.4, abs=0.1)
    assert found.epochs == 9.46
    assert plan(workers=2, held_out=0).steps == 1920


def test_evaluations_read_a_part_of_many_held_out_windows() -> None:
    # 8% of 100 s, seven times: 1.143 s each
    assert plan(held_out=10**6).evaluated_windows == 571
    assert plan(held_out=10**6).seconds <= 100


def test_training_ends_early_if_a_text_is_small() -> None:
    found = make_plan(SMALL, 1000, batch_size=10, workers=1, windows=1000, held_out=0, most_epochs=2.0)
    assert (found.steps, found.epochs) == (200, 2.0)
    assert found.seconds == pytest.approx(20.8, abs=0.1)


def test_a_time_for_too_few_steps_is_rejected_with_the_time_that_is_enough() -> None:
    with pytest.raises(TooShortError) as raised:
        plan(seconds=3)
    enough = raised.value.seconds
    assert plan(seconds=enough + 0.1).steps >= plan_module.MIN_STEPS
    with pytest.raises(TooShortError):
        plan(seconds=enough * 0.9, held_out=10**6)


def test_steps_limit_a_local_run_and_the_time_limits_others() -> None:
    fixed, timed = plan().values(fixed_steps=True), plan().values(fixed_steps=False)
    assert (fixed["max_steps"], fixed["evaluate_every"]) == (946, 136)
    assert fixed["max_seconds"] > timed["max_seconds"] >= plan().seconds
    assert "max_steps" not in timed


def test_the_fastest_repeat_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "repeat", lambda call: call() and [0.5, 0.01234, 3.0])

    class Fake:
        def prepare(self, device: str) -> None: ...

        def train_step(self, batch: Any, *, progress: float, seed: int) -> float:
            return 1.0

        def evaluate(self, batch: Any) -> tuple[float, float]:
            return 1.0, 1.0

    found = plan_module.measure(cast(Any, Fake()), {"inputs": np.zeros((4, 2))}, "cpu")
    assert found == (0.0031, 0.0031)


def test_calls_are_repeated_for_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(plan_module, "MEASURING_SECONDS", 12.0)
    assert repeat(lambda: None) == [1.0] * 5


# the transformer


def artifact(**facts: Any) -> Artifact:
    summary = Summary(rows_in=1, unit_in="rows", rows=1, unit="rows", facts=facts)
    return Artifact(stage="subwords", key="key", folder=Path("nowhere"), summary=summary)


TEXTS = [
    artifact(tokens=tokens, validation_tokens=tokens // 10, vocabulary=66, bytes=tokens)
    for tokens in (4_000_000, 200_000, 90_000)
]
TOKENS = artifact(tokens=1_000_000, validation_tokens=100_000, vocabulary=66, bytes=1_000_000)


@pytest.fixture
def calibrations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Replace measurements by costs: a machine of 150 GFLOPS. Returns the configs that were calibrated."""
    asked: list[Any] = []

    def calibrate(measure_all: Any) -> Any:
        def stage(config: Any) -> Artifact:
            asked.append(config)
            (folder := tmp_path / str(len(asked))).mkdir()
            write_calibration(measure_all(config), folder)
            return artifact().model_copy(update={"folder": folder})

        return stage

    def speed(shape: Any, config: CalibrationConfig) -> tuple[float, float]:
        network = transformer_module.complete(shape).network(config.vocabulary)
        seconds = 80 * network.layers * network.width**2 * network.context / 150e9
        return seconds, seconds / 3

    monkeypatch.setattr(transformer_module, "measure_shape", speed)
    monkeypatch.setattr(window_module, "measure_width", lambda shape, config: (shape["width"] / 1e7, 1e-6))
    measure_shapes, measure_widths = transformer_module.measure_shapes, window_module.measure_widths
    monkeypatch.setattr(transformer_module, "time_transformer", calibrate(measure_shapes))
    monkeypatch.setattr(window_module, "time_window_lm", calibrate(measure_widths))
    monkeypatch.setattr("lexloom.tasks.train.resources.measure_this_machine", lambda: Node(cpus=2, gpus=0))
    return asked


def test_a_plan_completes_the_config(calibrations: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan_transformer(TOKENS, TrainTransformerConfig())
    assert planned.is_complete
    assert planned.minutes is None
    assert planned.max_steps is not None
    tokens = planned.max_steps * planned.batch_size * planned.context
    parameters = 12 * planned.layers * planned.width**2
    assert 1 < tokens / parameters < 10
    said = " ".join(capsys.readouterr().err.split())
    assert "planned: " in said
    assert "context 256, batch 8, about " in said
    assert said.endswith("tokens/s")


def test_longer_budgets_train_larger_models(calibrations: list[Any]) -> None:
    sizes = []
    for minutes in (1, 5, 30, 300):
        found = plan_transformer(TOKENS, TrainTransformerConfig(minutes=minutes))
        sizes.append(found.layers * found.width**2)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[-1]


def test_a_small_text_gets_a_small_model_and_a_short_context(calibrations: list[Any]) -> None:
    tokens = artifact(tokens=9_000, validation_tokens=1_000, vocabulary=66, bytes=9_000)
    found = plan_transformer(tokens, TrainTransformerConfig(minutes=300))
    assert (found.layers, found.width, found.context, found.dropout) == (4, 128, 128, 0.2)
    assert found.max_steps is not None
    assert found.max_steps * found.batch_size * found.context <= 21 * 9_000, (
        "it ends before the text is learned"
    )


def test_dropout_follows_the_repetitions_of_a_text(calibrations: list[Any]) -> None:
    preset = [plan_transformer(text, TrainTransformerConfig(preset="tiny", minutes=5)) for text in TEXTS]
    assert [each.dropout for each in preset] == [0.0, 0.0, 0.0]
    found = [plan_transformer(text, TrainTransformerConfig(minutes=5, layers=4, width=128)) for text in TEXTS]
    assert [each.dropout for each in found] == [0.0, 0.0, 0.2]
    epochs = [
        each.max_steps * each.batch_size * 256 / text.facts["tokens"]
        for each, text in zip(found, TEXTS, strict=True)
    ]
    assert epochs[1] == pytest.approx(24 * 0.2 / 0.8, rel=0.1), "more would overfit"
    assert epochs[2] == pytest.approx(20, rel=0.1)


def test_given_values_win(calibrations: list[Any]) -> None:
    given = {"layers": 3, "context": 32, "dropout": 0.3, "batch_size": 5, "learning_rate": 0.5}
    found = plan_transformer(TOKENS, TrainTransformerConfig(minutes=2, evaluate_every=77, **given))
    assert found.model_dump().items() >= (given | {"evaluate_every": 77}).items()
    fixed = plan_transformer(TOKENS, TrainTransformerConfig(minutes=30, preset="tiny"))
    assert (fixed.layers, fixed.width, fixed.matrix_learning_rate) == (4, 128, 0.04)


def test_max_seconds_is_a_budget_and_the_only_limit(calibrations: list[Any]) -> None:
    found = plan_transformer(TOKENS, TrainTransformerConfig(max_seconds=100))
    assert (found.max_seconds, found.max_steps) == (100, None)


def test_a_complete_config_is_not_measured(calibrations: list[Any]) -> None:
    config = TrainTransformerConfig(max_steps=3)
    assert plan_transformer(TOKENS, config) is config
    assert not calibrations


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"minutes": 0.01},
            r"0\.01 minutes is too short to train: on .*; use a budget of at least",
        ),
        (
            {"max_seconds": 0.1},
            r"max_seconds 0\.1 is too short to train: .*; raise it to \d+, or set",
        ),
    ],
)
def test_too_short_budgets_are_rejected(
    calibrations: list[Any], given: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        plan_transformer(TOKENS, TrainTransformerConfig(**given))


def test_the_key_has_the_plan_and_the_calibration_is_shared(calibrations: list[Any]) -> None:
    """The same command finds its model; other budgets and seeds do not measure again."""
    configs = [{"minutes": 5.0}, {}, {"minutes": 60.0, "seed": 2, "checkpoint_every": 5}]
    first, same, other = (plan_transformer(TOKENS, TrainTransformerConfig(**each)) for each in configs)
    keys = [train_transformer.key((TOKENS, TOKENS), config) for config in (first, same, other)]
    assert keys[0] == keys[1] != keys[2]
    assert "minutes" not in canonical(first)
    assert canonical(first)["max_steps"] == first.max_steps
    assert len({time_transformer.key((), each) for each in calibrations}) == 1
    plan_transformer(TOKENS, TrainTransformerConfig(threads=1))
    assert len({time_transformer.key((), each) for each in calibrations}) == 2, "another speed"


def test_larger_models_need_more_text_and_tokens() -> None:
    def of(layers: int, width: int, steps: int) -> Plan:
        shape = {"layers": layers, "width": width, "context": 100}
        parameters = 12 * layers * width**2
        return plan().model_copy(update={"shape": shape, "parameters": parameters, "steps": steps})

    small, large, huge = of(4, 192, 4000), of(6, 384, 4000), of(12, 768, 40_000)
    assert choose_plan([small, large], 10**7, 1.0) is large
    assert choose_plan([small, large], 10**5, 1.0) is small, "it has 100 parameters per token of the text"
    assert choose_plan([large, huge], 10**8, 1.0) is large, "it would see half a token per parameter"


def test_a_calibration_measures_and_extrapolates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MEASURING_SECONDS", 0.0)
    monkeypatch.setattr(plan_module, "CALIBRATION_SECONDS", 0.0)
    shapes = [{"layers": 1, "width": width, "heads": 1, "context": 8} for width in (8, 16, 32)]
    config = CalibrationConfig(machine=LAPTOP, vocabulary=10, step_tokens=16, shapes=shapes)
    summary = time_transformer.function(config, tmp_path)
    assert (summary.rows_in, summary.rows) == (3, 2)
    first, second, third = Calibration.model_validate_json(
        (tmp_path / "calibration.json").read_bytes()
    ).measurements
    assert first.train_seconds > first.evaluation_seconds > 0
    assert [each.extrapolated for each in (first, second, third)] == [False, False, True]
    assert third.train_seconds == pytest.approx(second.train_seconds * third.cost / second.cost, rel=0.1)


# the window model


WINDOWS = artifact(windows=2_000_000, validation_windows=200_000, size=4)
EMBEDDINGS = artifact(dim=100)


def test_the_window_models_plan(calibrations: list[Any]) -> None:
    found = plan_window_lm(WINDOWS, EMBEDDINGS, TOKENS, TrainWindowLMConfig())
    assert found.is_complete
    assert found.width == 512
    assert found.max_steps is not None
    seen = found.max_steps * found.batch_size
    assert seen == pytest.approx(264 * 0.96 * 0.99 * 20_000, rel=0.05), "at 20,000 windows per second"
    given = plan_window_lm(WINDOWS, EMBEDDINGS, TOKENS, TrainWindowLMConfig(width=64, batch_size=99))
    assert (given.width, given.batch_size) == (64, 99)
    with pytest.raises(ValueError, match="is too short to train"):
        plan_window_lm(WINDOWS, EMBEDDINGS, TOKENS, TrainWindowLMConfig(minutes=0.001))


def test_the_window_models_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MEASURING_SECONDS", 0.0)
    fields = {"vocabulary": 20, "context": 3, "dim": 4, "batch_size": 8}
    config = WindowCalibrationConfig(machine=LAPTOP, shapes=[{"width": 8}, {"width": 16}], **fields)
    summary = time_window_lm.function(config, tmp_path)
    assert (summary.rows_in, summary.rows) == (2, 2)
