"""Synchronization strategies for dense models.

They share the interface `Synchronisation`, whose own methods do nothing: it is used for a single worker.
Every worker calls every method at the same steps. training/sync/config.py selects a strategy from a
configuration.
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
from lexloom.training.trainable import Differentiable, Replicated, Trainable

OptimizerState = Literal["average", "keep"]


class Synchronisation:
    """Keeps the replicas of a model in sync. After `flush` they are equal bit for bit.

    Attributes:
        bytes_sent: bytes that this worker has sent.
        seconds: time that it has waited for exchanges.
        local_optimizer: whether the workers' optimizer states differ, so that each must be saved.
        reads_tables: whether `after_step` reads the model's tables, so that the step must be finished.
    """

    local_optimizer = False
    reads_tables = False

    def __init__(self) -> None:
        self.bytes_sent = 0
        self.seconds = 0.0

    @property
    def in_sync(self) -> bool:
        """Whether the replicas are equal now, so that `flush` would change nothing."""
        return True

    def wants_gradients(self, step: int) -> bool:
        """Whether to call `after_backward` in step number `step`, counted from 1."""
        return False

    def setup(self, trainable: Trainable, world_size: int) -> None:
        """Take over a prepared (and, after a restart, loaded) model, equal on all workers."""

    def after_backward(self, gradients: Sequence[Tensor], examples: int, all_examples: int) -> None:
        """Called between the backward pass over `examples` of the step's `all_examples` and its update."""

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        """Called after step number `step`, of whose `all_examples` this worker trained on `examples`."""

    def after_evaluation_step(self) -> None:
        """Called after every batch of an evaluation."""

    def flush(self) -> None:
        """Synchronise the replicas now; does nothing if they are in sync."""

    def state_dict(self) -> dict[str, Tensor]:
        """The strategy's own state after a flush; the same on all workers."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state_dict`; after `setup`."""

    def round_state(self) -> dict[str, Tensor]:
        """This worker's state between two exchanges, when `in_sync` is False."""
        return {}

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `round_state`; after `setup`."""

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the block's time to `seconds`, without the time of GPU work queued before it."""
        gpu = torch.cuda.is_initialized()
        if gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        yield
        if gpu:
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - started


def replica_tables(trainable: Trainable) -> dict[str, Tensor]:
    assert isinstance(trainable, Replicated)  # check_strategy
    return trainable.tables()


class AllReduce(Synchronisation):
    """Averages every step's gradients over the workers, weighted by their examples.

    The result is the gradient of the mean loss over the global batch, even if the workers' shares differ in
    size, and every replica takes the same step. (Goyal et al. 2017, "Accurate, Large Minibatch SGD")
    """

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._mean = WeightedMean(list(replica_tables(trainable).values()), world_size)

    def wants_gradients(self, step: int) -> bool:
        return True

    def after_backward(self, gradients: Sequence[Tensor], examples: int, all_examples: int) -> None:
        with self.timed():
            self._mean(gradients, examples / all_examples)
        self.bytes_sent += self._mean.nbytes


class Periodic(Synchronisation, ABC):
    """Workers train independently for `period` steps; then `exchange` synchronises the replicas.

    A flush at another time (before an evaluation) ends a round early, so evaluate at multiples of the period.
    A checkpoint does not (training/checkpointing.py).
    """

    local_optimizer = True
    reads_tables = True

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
    def in_sync(self) -> bool:
        return self._all_examples == 0

    def round_state(self) -> dict[str, Tensor]:
        return {"examples": torch.tensor([self._examples, self._all_examples])}

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        self._examples, self._all_examples = state["examples"].tolist()

    @abstractmethod
    def exchange(self, share: float) -> None:
        """Synchronise; `share` is this worker's share of all examples since the last exchange."""


class Average(Periodic):
    """Averages the parameters over the workers, weighted by their examples since the last exchange.

    This is synchronous parameter averaging (McDonald et al. 2010, Zinkevich et al. 2010). With
    `optimizer_state="average"` the optimizer's moments are averaged too (and the maximum is taken of its step
    counters), which sends up to three times as many bytes with Adam; with "keep" each worker keeps its own.
    """

    def __init__(self, period: int, optimizer_state: OptimizerState) -> None:
        super().__init__(period)
        self.optimizer_state = optimizer_state
        self.local_optimizer = optimizer_state == "keep"

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._tensors = list(replica_tables(trainable).values())
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
    """Uses the workers' mean delta as the gradient of an outer optimizer, SGD with Nesterov momentum.

    With g = reference parameters - mean of the workers' parameters:

        momentum  <- outer_momentum * momentum + g
        reference <- reference - outer_lr * (g + outer_momentum * momentum)

    Each worker keeps its inner optimizer's state. Deltas can be sent as bfloat16, which halves the bytes; the
    reference parameters stay float32. With one worker it is only an outer optimizer, a control for
    experiments.
    (Douillard et al. 2023, "DiLoCo: Distributed Low-Communication Training of Language Models")
    """

    def __init__(self, period: int, outer_lr: float, outer_momentum: float, comm_dtype: torch.dtype) -> None:
        super().__init__(period)
        self.outer_lr, self.outer_momentum = outer_lr, outer_momentum
        self.comm_dtype = comm_dtype

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._tables = replica_tables(trainable)
        self._reference = [table.clone() for table in self._tables.values()]
        self._momentum = [torch.zeros_like(table) for table in self._reference]
        self._mean = WeightedMean(self._reference, world_size, self.comm_dtype)

    def exchange(self, share: float) -> None:
        tables = list(self._tables.values())
        deltas = [reference - table for reference, table in zip(self._reference, tables, strict=True)]
        self._mean(deltas, share)
        self.bytes_sent += self._mean.nbytes
        for table, reference, delta, momentum in zip(
            tables, self._reference, deltas, self._momentum, strict=True
        ):
            momentum.mul_(self.outer_momentum).add_(delta)
            reference.sub_(delta.add_(momentum, alpha=self.outer_momentum), alpha=self.outer_lr)
            table.copy_(reference)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"momentum.{name}": value for name, value in zip(self._tables, self._momentum, strict=True)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, momentum in zip(self._tables, self._momentum, strict=True):
            momentum.copy_(state[f"momentum.{name}"])

    def round_state(self) -> dict[str, Tensor]:
        reference = {
            f"reference.{name}": value for name, value in zip(self._tables, self._reference, strict=True)
        }
        return super().round_state() | self.state_dict() | reference

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        super().load_round_state(state)
        self.load_state_dict(state)
        for name, reference in zip(self._tables, self._reference, strict=True):
            reference.copy_(state[f"reference.{name}"])


class WithWarmUp(Synchronisation):
    """Uses `all_reduce` for the first `steps` steps, then another strategy.

    Replicas that diverge early, while the loss falls fast, average badly. (Lin et al. 2020, "Don't Use Large
    Mini-Batches, Use Local SGD": post-local SGD)
    """

    def __init__(self, steps: int, next_strategy: Synchronisation) -> None:
        super().__init__()
        self.steps = steps
        self._first, self._next = AllReduce(), next_strategy
        self.local_optimizer = next_strategy.local_optimizer
        self.reads_tables = next_strategy.reads_tables

    def wants_gradients(self, step: int) -> bool:
        return step <= self.steps

    def setup(self, trainable: Trainable, world_size: int) -> None:
        self._trainable, self._world_size = trainable, world_size
        self._first.setup(trainable, world_size)
        self._next.setup(trainable, world_size)

    def after_backward(self, gradients: Sequence[Tensor], examples: int, all_examples: int) -> None:
        self._first.after_backward(gradients, examples, all_examples)
        self._collect_costs()

    def after_step(self, step: int, examples: int, all_examples: int) -> None:
        if step > self.steps:
            self._next.after_step(step, examples, all_examples)
            self._collect_costs()
        elif step == self.steps:
            # the next strategy starts from the current model
            self._next.setup(self._trainable, self._world_size)

    def flush(self) -> None:
        self._next.flush()
        self._collect_costs()

    def state_dict(self) -> dict[str, Tensor]:
        return self._next.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._next.load_state_dict(state)

    @property
    def in_sync(self) -> bool:
        return self._next.in_sync

    def round_state(self) -> dict[str, Tensor]:
        return self._next.round_state()

    def load_round_state(self, state: dict[str, Tensor]) -> None:
        self._next.load_round_state(state)

    def _collect_costs(self) -> None:
        for part in (self._first, self._next):
            self.bytes_sent += part.bytes_sent
            self.seconds += part.seconds
            part.bytes_sent, part.seconds = 0, 0.0
