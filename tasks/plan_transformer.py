"""Plans a transformer for a time budget: its size, context, batch size, steps and learning rates.

The candidates are the sizes of `SIZES`; values that the user sets replace theirs. The stage
`time_transformer` measures their speeds. Each size gets the steps that fit into the time. The plan is the
size with the lowest expected loss, which is a fit to measurements (benchmarks/LOG.md).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue

from lexloom.models.transformer.model import Transformer
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
from lexloom.tasks.train.transformer import (
    TrainTransformerConfig,
    make_trainable,
    round_up_vocabulary,
)

STEP_TOKENS = {"cpu": 2048, "cuda": 16_384}  # of the smallest batch
RUN_STEPS = 1200  # of a run; if more fit into the time, the batch is doubled
MAX_STEP_TOKENS = 1 << 19  # of the largest batch
CONTEXTS = (256, 128, 64, 32, 16)
MIN_WINDOWS = 64  # minimum number of windows in the training text
MIN_BATCHES = 8  # per epoch
SPEED_FIELDS = ("kv_heads", "ffn_dim", "style", "optimizer", "precision", "micro_batch", "dropout")
TIED_VOCABULARY = 8192  # from this size on, the embeddings are tied
# Epochs x parameters / tokens of the text: without dropout, the held-out loss falls up to about the first
# value; dropout helps only in runs that are several times as long (benchmarks/LOG.md).
MOST_REPETITION, LEAST_WITH_DROPOUT = 24.0, 150.0
DROPOUT = 0.2
DROPOUT_COST = 1.2  # of a step on a CPU


class CalibrationConfig(BaseModel):
    """What is measured, and on which machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    machine: Machine
    vocabulary: int
    step_tokens: int  # over all workers
    shapes: list[dict[str, JsonValue]]  # training configs without lengths, in order of cost


@stage(version=1)
def time_transformer(config: CalibrationConfig, out: Path) -> Summary:
    """Write `calibration.json`: how fast one worker of this machine trains transformers of several sizes."""
    return write_measured("time_transformer", measure_shapes, config, out)


def measure_shapes(config: CalibrationConfig) -> Calibration:
    def describe(shape: dict[str, Any]) -> tuple[int, float]:
        network = complete(shape).network(config.vocabulary)
        with torch.device("meta"):
            model = Transformer(network)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return parameters, model.flops_per_token() * network.context

    return measure_in_order(config.shapes, describe, lambda shape: measure_shape(shape, config))


def complete(shape: dict[str, Any]) -> TrainTransformerConfig:
    return TrainTransformerConfig.model_validate({**shape, "epochs": 1})


def measure_shape(shape: dict[str, Any], config: CalibrationConfig) -> tuple[float, float]:
    """Return one worker's seconds per window, in training and in evaluation, with random tokens."""
    machine = config.machine
    resources = one_worker(machine)
    rows = max(1, config.step_tokens // (complete(shape).context * machine.workers))
    train = complete({**shape, "batch_size": rows, "compile": "off"})
    trainable = make_trainable(train.network(config.vocabulary), train, resources)
    tokens = np.random.default_rng(0).integers(0, config.vocabulary, (rows, train.context + 1), np.int32)
    batch = {"inputs": tokens[:, :-1].copy(), "label": tokens[:, -1].copy()}
    return measure(trainable, batch, machine.device)


# the plan


def plan_transformer(tokens: Artifact, config: TrainTransformerConfig) -> TrainTransformerConfig:
    """Return the complete config: values that are not set are planned for the budget.

    Raises:
        ValueError: the budget is too short to train, or no size fits the given values.
    """
    if config.is_complete:
        return config
    resources = config.resources()
    calibration = time_transformer(
        config=CalibrationConfig(
            machine=Machine.of(resources),
            vocabulary=round_up_vocabulary(cast(int, tokens.facts["vocabulary"])),
            step_tokens=STEP_TOKENS[resources.device],
            shapes=[*candidates(config, tokens)],
        )
    )
    plans = plan_within_budget(
        config,
        resources,
        read_calibration(calibration).measurements,
        lambda measured, seconds: plan_size(measured, config, tokens, resources, seconds),
    )
    unique, size = (cast(int, tokens.facts[name]) for name in ("tokens", "bytes"))
    best = choose_plan(plans, unique, size / max(1, unique))
    console.note("training", best.describe())
    values = best.values(fixes_steps(config, resources)) | learning_values(best)
    return config.complete(values)


def given_values(config: TrainTransformerConfig, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the values of the fields that are set (or have a default)."""
    values = config.model_dump(include=set(names))
    return {name: value for name, value in values.items() if value is not None}


def candidates(config: TrainTransformerConfig, tokens: Artifact) -> list[dict[str, Any]]:
    """Return the shapes to measure: the sizes, with the given values and the context that suits the text."""
    vocabulary = cast(int, tokens.facts["vocabulary"])
    values = {"context": choose_context(tokens), "tie_embeddings": vocabulary >= TIED_VOCABULARY}
    given = given_values(config, ("layers", "width", "heads", "context", "tie_embeddings", *SPEED_FIELDS))
    return [values | given | shape for shape in config.shapes()]


def choose_context(tokens: Artifact) -> int:
    """Return the longest context of which the text has enough windows."""
    trained, held_out = (cast(int, tokens.facts[name]) for name in ("tokens", "validation_tokens"))
    fitting = (
        context
        for context in CONTEXTS
        if trained > MIN_WINDOWS * context and (not held_out or held_out > context)
    )
    return next(fitting, CONTEXTS[-1])


def plan_size(
    measured: Measurement,
    config: TrainTransformerConfig,
    tokens: Artifact,
    resources: Resources,
    seconds: float,
) -> Plan:
    """Plan the batch size and the steps of a size; raise ValueError if the time is too short."""
    context = cast(int, measured.shape["context"])
    trained, held_out = (cast(int, tokens.facts[name]) for name in ("tokens", "validation_tokens"))
    windows = max(1, trained // context)

    def plan(dropout: float, most_epochs: float) -> Plan:
        costly = dropout > 0 and resources.device == "cpu" and config.dropout is None
        return make_plan(
            measured.with_dropout(dropout, DROPOUT_COST if costly else 1.0),
            seconds,
            batch_size=config.batch_size
            or choose_batch(measured, resources, seconds, windows, config.most_epochs),
            workers=resources.workers,
            windows=windows,
            held_out=held_out // context,
            most_epochs=most_epochs,
        )

    longest = plan(0.0, config.most_epochs)
    per_epoch = measured.parameters / max(1, trained)
    if config.dropout is not None or longest.epochs * per_epoch <= MOST_REPETITION:
        return longest
    if longest.epochs * per_epoch >= LEAST_WITH_DROPOUT:
        return plan(DROPOUT, config.most_epochs)
    return plan(0.0, MOST_REPETITION / per_epoch)


def choose_batch(
    measured: Measurement, resources: Resources, seconds: float, windows: int, most_epochs: float
) -> int:
    """Return the number of windows per step, a power of two."""
    context = cast(int, measured.shape["context"])
    fitting = min(seconds * resources.workers / measured.train_seconds, most_epochs * windows)
    tokens = max(STEP_TOKENS[resources.device], min(fitting * context / RUN_STEPS, MAX_STEP_TOKENS))
    most = max(1, min(int(tokens / context), windows // MIN_BATCHES))
    return max(1 << most.bit_length() - 1, round_up_to_power(resources.workers))


# The held-out losses of 0.8M to 1.8M parameters after 0.5M to 2.5M bytes of tinyshakespeare, in nats per
# byte, are 1.34 + 0.132 N^-0.34 + 0.111 / D, with N and D in millions (benchmarks/LOG.md). Each repetition
# of a text is worth less than the one before (Muennighoff et al. 2023, "Scaling Data-Constrained Language
# Models", equation 5).
SIZE_SCALE, SIZE_EXPONENT = 0.132, 0.34
TOKEN_SCALE, TOKEN_EXPONENT = 0.111, 1.0
REPETITIONS = 15.0
MAX_PARAMETERS_PER_TOKEN = 12.0  # of the text: larger models overfit
MEASURED_PARAMETERS, MIN_TOKENS_PER_PARAMETER = 12e6, 10.0  # larger models need this many tokens


def choose_plan(plans: Sequence[Plan], unique: int, bytes_per_token: float) -> Plan:
    """Return the plan with the lowest expected loss for a text of `unique` tokens.

    The plans are in order of size.
    """
    fitting = [
        plan
        for plan in plans
        if plan.parameters <= MAX_PARAMETERS_PER_TOKEN * unique
        and (
            plan.parameters <= MEASURED_PARAMETERS
            or plan.trained_tokens >= MIN_TOKENS_PER_PARAMETER * plan.parameters
        )
    ]
    return min(fitting or plans[:1], key=lambda plan: expected_loss(plan, unique, bytes_per_token))


def expected_loss(plan: Plan, unique: int, bytes_per_token: float) -> float:
    """Return the part of the expected loss that depends on the size and the tokens, up to a factor."""
    layers, width = cast(int, plan.shape["layers"]), cast(int, plan.shape["width"])
    trained = plan.trained_tokens
    repeated = max(0.0, trained / unique - 1)
    worth = min(trained, unique) + unique * REPETITIONS * (1 - math.exp(-repeated / REPETITIONS))
    size_term = SIZE_SCALE * (12 * layers * width**2 / 1e6) ** -SIZE_EXPONENT
    return size_term + TOKEN_SCALE * (worth * bytes_per_token / 1e6) ** -TOKEN_EXPONENT


def learning_values(plan: Plan) -> dict[str, float]:
    """Return the optimizer's hyperparameters: larger models get lower learning rates."""
    if plan.parameters > MEASURED_PARAMETERS:
        return {"matrix_learning_rate": 0.02, "learning_rate": 0.003, "momentum": 0.95}
    return {"matrix_learning_rate": 0.03, "learning_rate": 0.01, "momentum": 0.9}
