"""The strategies of synchronisation for dense models: what each sends, when, and what comes of it.

They share one interface, `Synchronisation`, which by itself does nothing: right for one worker. Every worker
calls every method at the same steps. training/sync/config.py chooses one by a plain configuration.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from lexloom.training.sync.collectives import WeightedMean
from lexloom.training.trainable import Differentiable, Trainable

OptimizerState = Literal["average", "keep"]


class Synchronisation:
    """Keeps the replicas of a model in step. After a `flush` all are equal, bit for bit.

    Attributes:
        bytes_sent: what this worker has handed to the network.
        seconds: how long it has waited for it.
        local_optimizer: whether workers' optimizer states differ, so that each has to be saved.
    """

    local_optimizer = False

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.seconds = 0.0

    @property
    def agreed(self) -> bool:
        """Whether the replicas are equal now, so that a `flush` would change nothing."""
        return True

    def wants_gradients(self, step: int) -> bool:
        """Whether `after_backward` is to be called in step number `step`, counted from 1."""
        return False

    def setup(self, trainable: Trainable, world_size: int) -> None:
        """Takes a prepared (and, after a restart, loaded) model, equal on all workers."""

    def after_backward(self, gradients: Sequence[Tensor], examples: int, all_examples: int) -> None:
        """Between a backward pass over `examples` of the step's `all_examples` and its update."""

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        """After step number `step`, of which this worker took `examples` of `all_examples`."""

    def flush(self) -> None:
        """Brings the replicas together now; nothing where nothing moved since the last time."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the strategy remembers beyond the model, after a flush; the same on all workers."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave; after `setup`."""

    def round_state(self) -> dict[str, Tensor]:
        """This worker's state between two exchanges, where `agreed` is False: what the next one needs."""
        return {}

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what `round_state` gave; after `setup`."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts the block into `seconds`; work that a GPU had waiting before it is not the block's."""
        gpu = torch.cuda.is_initialized()
        if gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        yield
        if gpu:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started


class AllReduce(Synchronisation):
    """Every step's gradients are averaged over the workers, weighted by their examples.

    So unequal shares give the gradient of the mean loss over the whole global batch, and every replica takes
    the same step. (Goyal et al. 2017, "Accurate, Large Minibatch SGD")
    """

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._mean = WeightedMean(list(trainable.tables().values()), world_size)

    def wants_gradients(self, step: int) -> bool:
        return True

    def after_backward(self, gradients: Sequence[Tensor], examples: int, all_examples: int) -> None:
        with self.timed():
            self._mean(gradients, examples / all_examples)
        self.bytes_sent += self._mean.nbytes


class Periodic(Synchronisation, ABC):
    """Workers train by themselves for `period` steps; then `exchange` brings the replicas together.

    A flush at another time (before an evaluation) ends a round early: let evaluations come at multiples of
    the period. A checkpoint does not (training/saving.py).
    """

    local_optimizer = True

    def __init__(self, period: int) -> None:
        super().__init__()
        self.period = period
        self._examples = self._all_examples = 0  # since the last exchange

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        self._examples += examples
        self._all_examples += all_examples
        if step % self.period == 0:
            self.flush()

    def flush(self) -> None:
        if self._all_examples:
            with self.timed(), torch.no_grad():
                self.exchange(self._examples / self._all_examples)
            self._examples = self._all_examples = 0

    @property
    def agreed(self) -> bool:
        return self._all_examples == 0

    def round_state(self) -> dict[str, Tensor]:
        return {"examples": torch.tensor([self._examples, self._all_examples])}

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        self._examples, self._all_examples = state["examples"].tolist()

    @abstractmethod
    def exchange(self, share: float) -> None:
        """`share`: of all examples since the last exchange, how many were this worker's."""


class Average(Periodic):
    """Parameters go to their mean over the workers, weighted by the examples seen since the last time.

    The classic synchronous parameter averaging (McDonald et al. 2010, Zinkevich et al. 2010). With
    `optimizer_state="average"` the optimizer's moments go to their mean too (and its step counters to the
    largest), for up to three times the bytes with Adam; with "keep" each worker keeps its own.
    """

    def __init__(self, period: int, optimizer_state: OptimizerState) -> None:
        super().__init__(period)
        self.optimizer_state = optimizer_state
        self.local_optimizer = optimizer_state == "keep"

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._tensors = list(trainable.tables().values())
        self._counters: list[Tensor] = []
        if self.optimizer_state == "average" and isinstance(trainable, Differentiable):
            state = trainable.optimizer_tables().values()
            self._tensors += [tensor for tensor in state if tensor.ndim]
            self._counters = [tensor for tensor in state if not tensor.ndim]
        self._mean = WeightedMean(self._tensors, world_size)
        self._device = self._tensors[0].device

    def exchange(self, share: float) -> None:
        self._mean(self._tensors, share)
        self.bytes_sent += self._mean.nbytes
        if self._counters:
            largest = torch.stack([counter.to(self._device) for counter in self._counters])
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            self.bytes_sent += largest.nbytes
            for counter, value in zip(self._counters, largest, strict=True):
                counter.copy_(value)


class DiLoCo(Periodic):
    """The workers' mean move is the gradient of an outer optimizer, SGD with Nesterov's momentum.

    With g = agreed parameters - mean of the workers' parameters:

        momentum <- outer_momentum * momentum + g
        agreed   <- agreed - outer_rate * (g + outer_momentum * momentum)

    The inner optimizers' states stay with their workers. Moves may travel as bfloat16: half the bytes, and
    the agreed parameters stay float32. With one worker it is an outer optimizer alone, a control for
    experiments.
    (Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of Language Models")
    """

    def __init__(self, period: int, outer_rate: float, outer_momentum: float, wire: torch.dtype) -> None:
        super().__init__(period)
        self.outer_rate, self.outer_momentum = outer_rate, outer_momentum
        self.wire = wire

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._tables = trainable.tables()
        self._agreed = [table.clone() for table in self._tables.values()]
        self._momentum = [torch.zeros_like(table) for table in self._agreed]
        self._mean = WeightedMean(self._agreed, world_size, self.wire)

    def exchange(self, share: float) -> None:
        tables = list(self._tables.values())
        moves = [agreed - table for agreed, table in zip(self._agreed, tables, strict=True)]
        self._mean(moves, share)
        self.bytes_sent += self._mean.nbytes
        for table, agreed, move, momentum in zip(tables, self._agreed, moves, self._momentum, strict=True):
            momentum.mul_(self.outer_momentum).add_(move)
            agreed.sub_(move.add_(momentum, alpha=self.outer_momentum), alpha=self.outer_rate)
            table.copy_(agreed)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"momentum.{name}": value for name, value in zip(self._tables, self._momentum, strict=True)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, momentum in zip(self._tables, self._momentum, strict=True):
            momentum.copy_(state[f"momentum.{name}"])

    def round_state(self) -> dict[str, Tensor]:
        agreed = {f"agreed.{name}": value for name, value in zip(self._tables, self._agreed, strict=True)}
        return super().round_state() | self.state_dict() | agreed

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        super().load_round_state(state)
        self.load_state_dict(state)
        for name, agreed in zip(self._tables, self._agreed, strict=True):
            agreed.copy_(state[f"agreed.{name}"])


class WarmedUp(Synchronisation):
    """`all_reduce` for the first `steps` steps, then another strategy.

    Replicas that part early, while the loss falls fast, average badly. (Lin et al. 2020, "Don't Use Large
    Mini-Batches, Use Local SGD": post-local SGD)
    """

    def __init__(self, steps: int, then: Synchronisation) -> None:
        super().__init__()
        self.steps = steps
        self._first, self._then = AllReduce(), then
        self.local_optimizer = then.local_optimizer

    def wants_gradients(self, step: int) -> bool:
        return step <= self.steps

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._trainable, self._world_size = trainable, world_size
        self._first.setup(trainable, world_size)
        self._then.setup(trainable, world_size)

    def after_backward(self, gradients: Sequence[Tensor], examples: int, all_examples: int) -> None:
        self._first.after_backward(gradients, examples, all_examples)
        self._count()

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        if step > self.steps:
            self._then.after_step(step, examples, all_examples)
            self._count()
        elif step == self.steps:
            # what it starts from is the model as it is now
            self._then.setup(self._trainable, self._world_size)

    def flush(self) -> None:
        self._then.flush()
        self._count()

    def state_dict(self) -> dict[str, Tensor]:
        return self._then.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._then.load_state_dict(state)

    @property
    def agreed(self) -> bool:
        return self._then.agreed

    def round_state(self) -> dict[str, Tensor]:
        return self._then.round_state()

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        self._then.load_round_state(state)

    def _count(self) -> None:
        for part in (self._first, self._then):
            self.bytes_sent += part.bytes_sent
            self.seconds += part.seconds
            part.bytes_sent, part.seconds = 0, 0.0
