"""Plans training for a time budget: how long a step takes on this machine, and what fits into the time.

A calibration is a cached stage: its key contains the class of the machine (processor, threads, workers,
device) and the measured shapes. The plan is computed from the calibration, the budget and the corpus. The
config and the key of the training contain its result: the size of the model, the batch size and the number
of steps. Therefore, the same command finds its model in the store, and a resumed run takes the same steps. On
a GPU and with several workers, compilation and synchronization are not part of the calibration, so the plan
limits the time instead of the steps.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, JsonValue

from lexloom.models.precision import processor
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import duration, short
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.train.budget import BudgetedTrainConfig
from lexloom.tasks.train.resources import Resources
from lexloom.training.torch_trainable import TorchTrainable

FILE = "calibration.json"
MEASURING_SECONDS = 0.8  # per shape, after a warm-up step
MIN_MEASURED_STEPS = 3
CALIBRATION_SECONDS = 6.0  # after this time, no further shape is measured
MIN_MEASURED = 2  # shapes, whatever the time

MIN_STEPS = 50  # fewer steps train nothing useful
TRAINING_SHARE = 0.88  # of the budget; the other stages, the calibration and the report take the rest
LOOP_SHARE = 0.96  # of the training time; reading, records and checkpoints take the rest
RAY_START_SECONDS = 15.0
EVALUATION_SHARE = 0.08  # of the training time
EVALUATIONS = 7  # the first one early, because it shows a sample
TIME_LIMIT = 1.25  # multiple of the planned time, for a machine that is slower than measured


class Machine(BaseModel):
    """The class of a machine: what the speed of training depends on, other than its load."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str
    processor: str
    workers: int
    threads: int
    nodes: list[tuple[int, int]]  # CPUs and GPUs of each, on a cluster

    @classmethod
    def of(cls, resources: Resources) -> "Machine":
        gpu = resources.device == "cuda" and torch.cuda.is_available()
        return cls(
            device=resources.device,
            processor=torch.cuda.get_device_name() if gpu else processor(),
            workers=resources.workers,
            threads=resources.threads,
            nodes=[(node.cpus, node.gpus) for node in resources.nodes] if resources.cluster else [],
        )


def one_worker(machine: Machine) -> Resources:
    """Return the resources of one of the machine's workers."""
    device: Literal["cpu", "cuda"] = "cuda" if machine.device == "cuda" else "cpu"
    return Resources("local", device, workers=1, min_workers=1, threads=machine.threads)


class Measurement(BaseModel):
    """The speed of one worker for a shape: seconds per window, in training and in evaluation."""

    shape: dict[str, JsonValue]
    parameters: int
    cost: float  # FLOPs per window, to extrapolate to shapes that take too long to measure
    train_seconds: float
    evaluation_seconds: float
    extrapolated: bool = False

    def with_dropout(self, dropout: float, cost: float) -> "Measurement":
        """Return the measurement of the shape with dropout; training then takes `cost` times as long."""
        shape = {"dropout": dropout} | self.shape
        return self.model_copy(update={"shape": shape, "train_seconds": self.train_seconds * cost})


class Calibration(BaseModel):
    """The content of `calibration.json`: measurements in the order of their costs."""

    measurements: list[Measurement]


def read_calibration(artifact: Artifact) -> Calibration:
    return Calibration.model_validate_json((artifact.folder / FILE).read_bytes())


def write_calibration(calibration: Calibration, out: Path) -> None:
    (out / FILE).write_text(calibration.model_dump_json(indent=2) + "\n", encoding="utf-8")


def summarize_calibration(calibration: Calibration) -> Summary:
    found = calibration.measurements
    extrapolated = sum(each.extrapolated for each in found)
    return Summary(
        rows_in=len(found),
        unit_in="sizes",
        rows=len(found) - extrapolated,
        unit="speeds measured",
        notes={"larger sizes extrapolated": extrapolated},
    )


def measure(trainable: TorchTrainable, batch: Mapping[str, np.ndarray], device: str) -> tuple[float, float]:
    """Return the seconds per example of a training step and of an evaluation, to two significant digits.

    The fastest repetition counts, because other processes may slow down a repetition.
    """
    trainable.prepare(device)
    rows = len(next(iter(batch.values())))

    def step() -> float:
        return float(trainable.train_step(batch, progress=0.0, seed=0))  # waits for a GPU

    def evaluate() -> tuple[float, float]:
        return trainable.evaluate(batch)

    return round_digits(min(repeat(step)) / rows), round_digits(min(repeat(evaluate)) / rows)


def measure_in_order(
    shapes: Sequence[dict[str, JsonValue]],
    describe: Callable[[dict[str, JsonValue]], tuple[int, float]],
    measure_shape: Callable[[dict[str, JsonValue]], tuple[float, float]],
) -> Calibration:
    """Measure shapes in order of cost.

    After MIN_MEASURED shapes and CALIBRATION_SECONDS, extrapolate from the last measured one.

    `describe` returns the parameters and the cost of a shape, `measure_shape` what `measure` does.
    """
    found: list[Measurement] = []
    started = time.perf_counter()
    for shape in shapes:
        parameters, cost = describe(shape)
        extrapolated = len(found) >= MIN_MEASURED and time.perf_counter() - started > CALIBRATION_SECONDS
        train, evaluation = extrapolate(found[-1], cost) if extrapolated else measure_shape(shape)
        found.append(
            Measurement(
                shape=shape,
                parameters=parameters,
                cost=cost,
                train_seconds=train,
                evaluation_seconds=evaluation,
                extrapolated=extrapolated,
            )
        )
    return Calibration(measurements=found)


def write_measured(
    stage: str, measure_shapes: Callable[[Any], Calibration], config: Any, out: Path
) -> Summary:
    """Run `measure_shapes(config)` where training will run, and write its result."""
    gpu = config.machine.device == "cuda"
    with console.bar(stage), fan_out(measure_shapes, [config], concurrent=False, gpu=gpu) as results:
        (calibration,) = results
    write_calibration(calibration, out)
    return summarize_calibration(calibration)


def extrapolate(measured: Measurement, cost: float) -> tuple[float, float]:
    """Return the seconds per window of training and evaluation of a shape with another cost."""
    ratio = cost / measured.cost
    return round_digits(measured.train_seconds * ratio), round_digits(measured.evaluation_seconds * ratio)


def repeat(call: Callable[[], Any]) -> list[float]:
    """Return the seconds of each repeated call, after a warm-up call."""
    call()
    end = time.perf_counter() + MEASURING_SECONDS
    seconds: list[float] = []
    while len(seconds) < MIN_MEASURED_STEPS or time.perf_counter() < end:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return seconds


def round_digits(value: float, digits: int = 2) -> float:
    """Round to significant digits."""
    return float(f"{value:.{digits}g}")


def round_down(number: float) -> int:
    """Round down to an integer of three significant digits, followed by zeros."""
    unit = 10 ** max(0, len(str(int(number))) - 3)
    return int(number) // unit * unit


class TooShortError(ValueError):
    """The budget is too short to train a model; `seconds` of training would be enough."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Plan(BaseModel):
    """What is trained within a budget."""

    shape: dict[str, JsonValue]
    parameters: int
    batch_size: int
    steps: int
    epochs: float
    most_epochs: float
    seconds: float
    windows_per_second: float
    evaluated_windows: int

    def values(self, fixed_steps: bool) -> dict[str, Any]:
        """Return the plan as values of the training config, with a limit on steps, or only on time."""
        limit = TIME_LIMIT * self.seconds if fixed_steps else self.seconds
        return {
            **self.shape,
            **({"max_steps": self.steps} if fixed_steps else {}),
            "max_seconds": float(math.ceil(limit)),
            "batch_size": self.batch_size,
            "epochs": max(1, math.ceil(self.most_epochs)),
            "evaluate_every": -(-self.steps // EVALUATIONS),
            "validation_windows": max(1, self.evaluated_windows),
        }

    @property
    def trained_tokens(self) -> int:
        """The tokens that training sees; for a model that predicts one token per window, the windows."""
        return self.steps * self.batch_size * int(self.shape.get("context", 1))  # type: ignore[arg-type]

    def describe(self) -> str:
        """Return one line: what is trained, for how long, and at what speed."""
        tokens = int(self.shape.get("context", 1))  # type: ignore[arg-type]
        unit = "tokens" if "context" in self.shape else "windows"
        context = f", context {tokens}" if "context" in self.shape else ""
        return (
            f"planned: {short(self.parameters)} parameters{context}, batch {self.batch_size:,}, about"
            f" {self.steps:,} steps ({counted_epochs(self.epochs)}) in {duration(self.seconds)};"
            f" this machine: {round_digits(self.windows_per_second * tokens):,.0f} {unit}/s"
        )


def counted_epochs(epochs: float) -> str:
    return "1.0 epoch" if round(epochs, 1) == 1 else f"{epochs:.1f} epochs"


def training_seconds(config: BudgetedTrainConfig, resources: Resources) -> float:
    """Return the part of the budget that is available for training."""
    if config.max_seconds is not None:
        return config.max_seconds
    return TRAINING_SHARE * config.budget_seconds - start_seconds(resources)


def start_seconds(resources: Resources) -> float:
    return RAY_START_SECONDS if resources.runner == "ray" else 0.0


def plan_within_budget(
    config: BudgetedTrainConfig,
    resources: Resources,
    measurements: Sequence[Measurement],
    plan: Callable[[Measurement, float], Plan],
) -> list[Plan]:
    """Return the plans, `plan(measurement, seconds)`, of all sizes that can be trained in the budget.

    Raises:
        ValueError: no size can be trained in the budget.
    """
    seconds = training_seconds(config, resources)
    plans: list[Plan] = []
    short_of: list[TooShortError] = []
    for measured in measurements:
        try:
            plans.append(plan(measured, seconds))
        except TooShortError as error:
            short_of.append(error)
    if not plans:
        least = min(short_of, key=lambda error: error.seconds)
        if config.max_seconds is not None:
            raise ValueError(
                f"max_seconds {config.max_seconds:g} is too short to train: {least}; raise it to"
                f" {math.ceil(least.seconds)}, or set a number of steps"
            )
        minutes = (least.seconds + start_seconds(resources)) / TRAINING_SHARE / 60
        raise ValueError(
            f"a budget of {config.budget_seconds / 60:g} minutes is too short to train: {least}; use a"
            f" budget of at least {math.ceil(minutes * 10) / 10:g} minutes, or set a number of steps"
        )
    return plans


def fixes_steps(config: BudgetedTrainConfig, resources: Resources) -> bool:
    """Return whether a plan limits the steps, which is reproducible, and not only the time."""
    return config.max_seconds is None and resources.device == "cpu" and resources.workers == 1


def make_plan(
    measured: Measurement,
    seconds: float,
    *,
    batch_size: int,
    workers: int,
    windows: int,
    held_out: int,
    most_epochs: float,
) -> Plan:
    """Plan the training of a shape: as many steps as fit into the seconds, including evaluations.

    `windows` and `held_out` are the numbers of training windows and held-out windows. If `most_epochs` take
    less time, training ends earlier.

    Raises:
        TooShortError: too few steps fit into the time.
    """
    evaluated = min(held_out, evaluated_windows(measured, seconds, workers))
    evaluation = EVALUATIONS * evaluated * measured.evaluation_seconds / workers
    step = batch_size * measured.train_seconds / workers / LOOP_SHARE
    fitting = (seconds - evaluation) / step
    if fitting < MIN_STEPS:
        raise TooShortError(
            f"on this machine, a step of a model with {short(measured.parameters)} parameters takes about"
            f" {duration(step)}, and training needs at least {MIN_STEPS} steps",
            (MIN_STEPS * step) / (1 - EVALUATION_SHARE),
        )
    steps = round_down(min(fitting, max(MIN_STEPS, most_epochs * windows / batch_size)))
    return Plan(
        shape=measured.shape,
        parameters=measured.parameters,
        batch_size=batch_size,
        steps=steps,
        epochs=round(steps * batch_size / windows, 3),
        most_epochs=most_epochs,
        seconds=round(steps * step + evaluation, 1),
        windows_per_second=workers / measured.train_seconds,
        evaluated_windows=evaluated,
    )


def evaluated_windows(measured: Measurement, seconds: float, workers: int) -> int:
    """Return the number of windows that an evaluation can read in its share of the time."""
    each = EVALUATION_SHARE * seconds / EVALUATIONS
    return max(1, int(each * workers / measured.evaluation_seconds))
