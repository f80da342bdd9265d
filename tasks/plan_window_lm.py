"""Plans a window language model for a time budget: its width, batch size and steps.

The stage `time_window_lm` measures the speeds of the widths. The plan is the largest width for which training
sees enough windows per trained parameter within the time (benchmarks/LOG.md).
"""

from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue

from lexloom.models.window_lm import WindowLM, WindowLMConfig
from lexloom.tasks.display import console
from lexloom.tasks.plan import (
    Calibration,
    Machine,
    Measurement,
    Plan,
    fixes_steps,
    make_plan,
    measure,
    measure_in_order,
    one_worker,
    plan_within_budget,
    read_calibration,
    write_measured,
)
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.stage import stage
from lexloom.tasks.train.resources import Resources
from lexloom.tasks.train.run import round_up_to_power
from lexloom.tasks.train.window_lm import TrainWindowLMConfig, make_window_trainable

WIDTHS = (256, 512, 1024, 2048)
BATCH = {"cpu": 1024, "cuda": 4096}  # the smallest one
RUN_STEPS = 5000  # of a run; if more fit into the time, the batch is doubled
MAX_BATCH = 1 << 16  # the largest one
MIN_BATCHES = 8  # per epoch
MAX_EPOCHS = 10.0
WINDOWS_PER_PARAMETER = 2.0
SPEED_FIELDS = (
    *("objective", "fine_tuned", "depth", "activation", "dropout", "output", "features", "cutoffs"),
    *("error", "precision"),
)


class WindowCalibrationConfig(BaseModel):
    """What is measured, and on which machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    vocabulary: int
    context: int
    dim: int
    batch_size: int
    shapes: list[dict[str, JsonValue]]  # training configs without lengths, in order of cost


@stage(version=1)
def time_window_lm(config: WindowCalibrationConfig, out: Path) -> Summary:
    """Write `calibration.json`: how fast one worker of this machine trains networks of several widths."""
    return write_measured("time_window_lm", measure_widths, config, out)


def measure_widths(config: WindowCalibrationConfig) -> Calibration:
    def describe(shape: dict[str, Any]) -> tuple[int, float]:
        with torch.device("meta"):
            model = WindowLM(shape_of(shape, config))
        parameters = [each for each in model.parameters() if each.requires_grad]
        matrices = sum(each.numel() for each in parameters if each.ndim > 1)
        return sum(each.numel() for each in parameters), float(matrices)

    return measure_in_order(config.shapes, describe, lambda shape: measure_width(shape, config))


def complete(shape: dict[str, Any]) -> TrainWindowLMConfig:
    return TrainWindowLMConfig.model_validate({**shape, "epochs": 1})


def shape_of(shape: dict[str, Any], config: WindowCalibrationConfig) -> WindowLMConfig:
    return complete(shape).shape(
        vocabulary=config.vocabulary, context=config.context, dim=config.dim, padding=0
    )


def measure_width(shape: dict[str, Any], config: WindowCalibrationConfig) -> tuple[float, float]:
    """Return one worker's seconds per window, in training and in evaluation; tokens follow Zipf's law."""
    machine = config.machine
    rows = max(1, config.batch_size // machine.workers)
    train = complete({**shape, "batch_size": rows})
    network = shape_of(shape, config)
    weights = 1 / np.arange(1, config.vocabulary + 1)
    weights /= weights.sum()
    make_model = partial(WindowLM, network, counts=torch.from_numpy(weights * 1e6))
    trainable = make_window_trainable(network, train, one_worker(machine), make_model)
    tokens = np.random.default_rng(0).choice(config.vocabulary, (rows, config.context + 1), p=weights)
    tokens = tokens.astype(np.int32)
    batch = {"inputs": tokens[:, :-1].copy(), "label": tokens[:, -1].copy()}
    return measure(trainable, batch, machine.device)


def plan_window_lm(
    windows: Artifact, embeddings: Artifact, tokens: Artifact, config: TrainWindowLMConfig
) -> TrainWindowLMConfig:
    """Return the complete config: values that are not set are planned for the budget.

    Raises:
        ValueError: the budget is too short to train.
    """
    if config.is_complete:
        return config
    resources = config.resources()
    given = config.model_dump(include={"width", *SPEED_FIELDS}, exclude_none=True, mode="json")
    widths = [config.width] if config.width else WIDTHS
    calibration = time_window_lm(
        config=WindowCalibrationConfig(
            machine=Machine.of(resources),
            vocabulary=cast(int, tokens.facts["vocabulary"]),
            context=cast(int, windows.facts["size"]) - 1,
            dim=cast(int, embeddings.facts["dim"]),
            batch_size=BATCH[resources.device],
            shapes=[given | {"width": width} for width in widths],
        )
    )
    plans = plan_within_budget(
        config,
        resources,
        read_calibration(calibration).measurements,
        lambda measured, seconds: plan_width(measured, config, windows, resources, seconds),
    )
    trained = [plan.steps * plan.batch_size for plan in plans]
    enough = [
        plan
        for plan, seen in zip(plans, trained, strict=True)
        if seen >= WINDOWS_PER_PARAMETER * plan.parameters
    ]
    best = (enough or plans[:1])[-1]
    console.note("training", best.describe())
    return config.complete(best.values(fixes_steps(config, resources)))


def plan_width(
    measured: Measurement,
    config: TrainWindowLMConfig,
    windows: Artifact,
    resources: Resources,
    seconds: float,
) -> Plan:
    """Plan the batch size and the steps of a width; raise TooShortError if the time is too short."""
    trained, held_out = (cast(int, windows.facts[name]) for name in ("windows", "validation_windows"))
    fitting = int(seconds * resources.workers / measured.train_seconds / RUN_STEPS)
    most = max(1, min(max(fitting, BATCH[resources.device]), trained // MIN_BATCHES, MAX_BATCH))
    batch = max(1 << most.bit_length() - 1, round_up_to_power(resources.workers))
    return make_plan(
        measured,
        seconds,
        batch_size=config.batch_size or batch,
        workers=resources.workers,
        windows=trained,
        held_out=held_out,
        most_epochs=MAX_EPOCHS,
    )
