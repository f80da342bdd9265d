"""How replicas of a model on many workers stay one model: the choice of a strategy.

| strategy | what travels | when | for |
|---|---|---|---|
| `all_reduce` | gradients | every step | models that learn by gradients; the same steps as one worker |
| `average` | parameters, to their mean | every `period` steps | any model |
| `diloco` | moves, to an outer Nesterov optimizer | every `period` steps | any model; the longest periods |
| `delta_sum` | rows that moved, added up | every `period` steps | sparse tables, in-place kernels |

One worker has nobody to agree with and does nothing, save under `diloco`: its outer optimizer works alone.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from lexloom.training.sync.delta_sum import DeltaSum
from lexloom.training.sync.strategies import (
    AllReduce,
    Average,
    DiLoCo,
    OptimizerState,
    Synchronisation,
    WarmedUp,
)
from lexloom.training.trainable import Differentiable, Trainable

Strategy = Literal["all_reduce", "average", "delta_sum", "diloco"]
STRATEGIES: tuple[Strategy, ...] = ("all_reduce", "average", "delta_sum", "diloco")
WIRES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class SyncConfig:
    """A strategy and its numbers; those of other strategies are not looked at.

    Attributes:
        period: steps between two exchanges (all but all_reduce).
        warm_up_steps: steps of all_reduce before the strategy begins (average and diloco).
        optimizer_state: what becomes of the optimizer's moments at an exchange (average): their mean on all
            workers, or kept by each worker. Under diloco and delta_sum they are kept.
        outer_learning_rate, outer_momentum: of the outer optimizer (diloco).
        wire: the type in which moves travel (diloco).
        frequent_rows, rare_period: the first rows of a table go every `period` steps, all every `rare_period`
            (delta_sum); None stands for `period`.
        cap: no row moves farther than so many times its workers' mean move (delta_sum); None sums freely.

    Raises:
        ValueError: a number is out of its range, or a name unknown.
    """

    strategy: Strategy = "all_reduce"
    period: int = 1
    warm_up_steps: int = 0
    optimizer_state: OptimizerState = "average"
    outer_learning_rate: float = 0.7
    outer_momentum: float = 0.9
    wire: Literal["float32", "bfloat16"] = "float32"
    frequent_rows: int = 0
    rare_period: int | None = None
    cap: float | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("strategy", self.strategy, STRATEGIES),
            ("optimizer_state", self.optimizer_state, ("average", "keep")),
            ("wire", self.wire, tuple(WIRES)),
        ):
            if value not in known:
                raise ValueError(f"the synchronisation's {name} is {value!r}: it must be one of {known}")
        for name, least in (("period", 1), ("rare_period", 1), ("warm_up_steps", 0), ("frequent_rows", 0)):
            steps = getattr(self, name)
            if steps is not None and steps < least:
                raise ValueError(f"the synchronisation's {name} is {steps}: it must be at least {least}")
        if not self.outer_learning_rate > 0 or not 0 <= self.outer_momentum < 1:
            raise ValueError(
                f"the outer optimizer's learning rate {self.outer_learning_rate} must be above 0, and its"
                f" momentum {self.outer_momentum} at least 0 and below 1"
            )
        if self.cap is not None and not self.cap >= 1:
            raise ValueError(f"the synchronisation's cap is {self.cap}: it must be at least 1, the mean move")
        if self.warm_up_steps and self.strategy not in ("average", "diloco"):
            raise ValueError(f"only average and diloco can warm up with all_reduce, not {self.strategy}")


def synchronisation(config: SyncConfig, world_size: int) -> Synchronisation:
    """The strategy of `config` among `world_size` workers."""
    if world_size == 1 and config.strategy != "diloco":
        return Synchronisation()
    strategy: Synchronisation
    match config.strategy:
        case "all_reduce":
            return AllReduce()
        case "delta_sum":
            return DeltaSum(config.period, config.frequent_rows, config.rare_period, config.cap)
        case "average":
            strategy = Average(config.period, config.optimizer_state)
        case "diloco":
            strategy = DiLoCo(
                config.period, config.outer_learning_rate, config.outer_momentum, WIRES[config.wire]
            )
    return WarmedUp(config.warm_up_steps, strategy) if config.warm_up_steps else strategy


def refuse_misfit(config: SyncConfig, trainable: Trainable) -> None:
    """ValueError where the strategy asks for what the model does not have; needs no prepared model."""
    if isinstance(trainable, Differentiable):
        return
    name = type(trainable).__name__
    if config.strategy == "all_reduce":
        raise ValueError(
            f"all_reduce exchanges gradients, and {name} has none (it updates its tables in place):"
            " use delta_sum, average or diloco"
        )
    if config.warm_up_steps:
        raise ValueError(
            f"a warm-up exchanges gradients, and {name} has none (it updates its tables in place):"
            " set warm_up_steps to 0"
        )
