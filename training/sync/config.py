"""Configuration of the synchronization of the workers' models.

| strategy | what is sent | when | for |
|---|---|---|---|
| `all_reduce` | gradients | every step | models trained by gradients; the same steps as one worker |
| `average` | parameters, averaged | every `period` steps | any replicated model |
| `diloco` | parameter deltas, for an outer Nesterov optimizer | every `period` steps | any replicated
model; the longest periods |
| `rotation` | one piece of each worker's model, passed on to the previous worker | every step | models that
are divided among the workers |

A single worker sends nothing. `diloco`'s outer optimizer also works alone, and `rotation` still tells the
model when a step has ended.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from lexloom.training.sync.rotation import Rotation
from lexloom.training.sync.strategies import (
    AllReduce,
    Average,
    DiLoCo,
    OptimizerState,
    Synchronisation,
    WithWarmUp,
)
from lexloom.training.trainable import Differentiable, Partitioned, Trainable

Strategy = Literal["all_reduce", "average", "diloco", "rotation"]
STRATEGIES: tuple[Strategy, ...] = ("all_reduce", "average", "diloco", "rotation")
COMM_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class SyncConfig:
    """A strategy and its hyperparameters; those of other strategies are ignored.

    Attributes:
        period: steps between two exchanges (average, diloco).
        warm_up_steps: steps of all_reduce before the strategy begins (average, diloco).
        optimizer_state: average the optimizer's moments over the workers, or keep each worker's own
            (average). Under diloco they are kept.
        outer_learning_rate, outer_momentum: of the outer optimizer (diloco).
        comm_dtype: the dtype in which deltas are sent (diloco).

    Raises:
        ValueError: a number is out of range, or a name is unknown.
    """

    strategy: Strategy = "all_reduce"
    period: int = 1
    warm_up_steps: int = 0
    optimizer_state: OptimizerState = "average"
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    comm_dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        for name, value, known in (
            ("strategy", self.strategy, STRATEGIES),
            ("optimizer_state", self.optimizer_state, ("average", "keep")),
            ("comm_dtype", self.comm_dtype, tuple(COMM_DTYPES)),
        ):
            if value not in known:
                raise ValueError(f"the synchronization {name} is {value!r}: it must be one of {known}")
        for name, least in (("period", 1), ("warm_up_steps", 0)):
            steps = getattr(self, name)
            if steps < least:
                raise ValueError(f"the synchronization {name} is {steps}: it must be at least {least}")
        if not self.outer_learning_rate > 0 or not 0 <= self.outer_momentum < 1:
            raise ValueError(
                f"the outer optimizer's learning rate {self.outer_learning_rate} must be above 0, and its"
                f" momentum {self.outer_momentum} at least 0 and below 1"
            )
        if self.warm_up_steps and self.strategy not in ("average", "diloco"):
            raise ValueError(
                f"only average and diloco support a warm-up with all_reduce, not {self.strategy}: set"
                " warm_up_steps to 0"
            )


def make_synchronisation(config: SyncConfig, world_size: int) -> Synchronisation:
    """Make the strategy of `config` for `world_size` workers."""
    if world_size == 1 and config.strategy in ("all_reduce", "average"):
        return Synchronisation()
    strategy: Synchronisation
    match config.strategy:
        case "all_reduce":
            return AllReduce()
        case "rotation":
            return Rotation()
        case "average":
            strategy = Average(config.period, config.optimizer_state)
        case "diloco":
            strategy = DiLoCo(
                config.period,
                config.outer_learning_rate,
                config.outer_momentum,
                COMM_DTYPES[config.comm_dtype],
            )
    return WithWarmUp(config.warm_up_steps, strategy) if config.warm_up_steps else strategy


def check_strategy(config: SyncConfig, trainable: Trainable) -> None:
    """Raise a ValueError if the strategy does not support the model; the model need not be prepared."""
    name, partitioned = type(trainable).__name__, isinstance(trainable, Partitioned)
    if partitioned and config.strategy != "rotation":
        raise ValueError(
            f"{config.strategy} synchronizes replicas, but {name} is divided among the workers: use rotation"
        )
    if config.strategy == "rotation" and not partitioned:
        raise ValueError(
            f"rotation passes pieces of a model on, but {name} is not divided among the workers:"
            " use all_reduce, average or diloco"
        )
    if partitioned or isinstance(trainable, Differentiable):
        return
    if config.strategy == "all_reduce":
        raise ValueError(
            f"all_reduce exchanges gradients, but {name} has none (it updates its tables in place):"
            " use average or diloco"
        )
    if config.warm_up_steps:
        raise ValueError(
            f"the warm-up exchanges gradients, but {name} has none (it updates its tables in place):"
            " set warm_up_steps to 0"
        )
