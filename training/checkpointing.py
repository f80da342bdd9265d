"""Saves and restores checkpoints: the model, the synchronization strategy and the losses.

Checkpoints do not affect training, whenever they are written. Between two synchronizations, the replicas of
a model differ: each worker then saves its own state, the replicas are synchronized for the shared copy, and
each worker reloads its own state. A run with the same number of workers resumes from the workers' states,
bit for bit; a run with a different number resumes from the shared copy.

The workers of a partitioned model save their pieces, and no worker ever holds all of them. A run with any
number of workers resumes from them, bit for bit.
"""

import logging
import math
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.job import Job, TrainState
from lexloom.training.sync.collectives import sum_over_workers
from lexloom.training.sync.strategies import Synchronisation
from lexloom.training.trainable import Differentiable, Partitioned, Trainable

MODEL, OPTIMIZER, ROUND = "model.", "optimizer.", "round."  # prefixes of names in a worker's own state

logger = logging.getLogger("lexloom.checkpointer")


class Checkpointer:
    """Saves and restores one worker's part of a run's checkpoints."""

    def __init__(
        self,
        job: Job,
        trainable: Trainable,
        sync: Synchronisation,
        checkpoints: Checkpoints,
        rank: int,
        world_size: int,
    ) -> None:
        self.trainable, self.sync, self.checkpoints = trainable, sync, checkpoints
        self.rank, self.world_size, self.device = rank, world_size, job.device

    def restore(self, state: TrainState, checkpoint: Checkpoint | None) -> None:
        """Load a checkpoint, if there is one, into the prepared model, the strategy and the sum of losses.

        Raises:
            OSError: the workers found different checkpoints.
            ValueError: the checkpoint of a partitioned model has other pieces.
        """
        if isinstance(self.trainable, Partitioned):
            self._restore_pieces(self.trainable, state, checkpoint)
        elif checkpoint is not None:
            self.trainable.load_state_dict(checkpoint.tensors)
            self._load_replica(checkpoint.local or {})
            if self.rank and checkpoint.local is None and self._optimizer_tables():
                logger.warning(
                    "the number of workers has changed: all workers resume from worker 0's optimizer state"
                )
        self.sync.setup(self.trainable, self.world_size)
        if checkpoint is not None:
            self.sync.load_state_dict(checkpoint.sync)
            self._load_round(checkpoint.local or {})
            self._load_losses(state)
        steps, squares = sum_over_workers([state.step, state.step**2], self.world_size, self.device)
        if self.world_size * squares != steps**2:
            raise OSError(
                f"the workers see different checkpoints in {self.checkpoints.folder}: it must be a folder"
                " that all workers share"
            )

    def save(self, state: TrainState, losses: list[list[float]]) -> None:
        """Write a checkpoint of `state`, with every worker's sum of losses and number of examples."""
        # exchanges for a checkpoint do not count as training
        sync_costs = self.sync.bytes_sent, self.sync.seconds
        partitioned = isinstance(self.trainable, Partitioned)
        if partitioned:
            self.checkpoints.save_pieces(state.step, self.rank, self.trainable.state_dict())
        in_sync = self.sync.in_sync
        local = range(0 if not in_sync else 1, self.world_size) if self._states_differ() else ()
        own = Path()
        if self.rank in local:
            own = self.checkpoints.save_local(state.step, self.rank, self._own_state())
        if not in_sync:
            self.sync.flush()
            if self.rank:
                self._reload_own_state(own)
        if local or partitioned:
            sum_over_workers([0.0], self.world_size, self.device)  # barrier: all have written and reloaded
        if self.rank == 0:
            values = asdict(state) | {"losses": losses}
            model = {} if partitioned else self.trainable.state_dict()
            folder = self.checkpoints.save(
                state.step,
                Checkpoint(model, values, self.sync.state_dict()),
                workers=self.world_size,
                local=local,
                partitioned=partitioned,
                best=state.best_step,
            )
            if not in_sync:
                self._reload_own_state(folder / own.name)
        self.sync.bytes_sent, self.sync.seconds = sync_costs

    def _restore_pieces(self, model: Partitioned, state: TrainState, checkpoint: Checkpoint | None) -> None:
        model.start_at(state.step)
        if checkpoint is not None:
            names = model.piece_names()
            if missing := sorted(set(names) - checkpoint.tensors.keys()):
                raise ValueError(
                    f"the checkpoint in {self.checkpoints.folder} does not have the model's piece"
                    f" {missing[0]}: delete that folder to train from the beginning"
                )
            model.load_state_dict({name: checkpoint.tensors[name] for name in names})

    def _states_differ(self) -> bool:
        return not self.sync.in_sync or bool(self._optimizer_tables())

    def _optimizer_tables(self) -> dict[str, Tensor]:
        """The optimizer's state if each worker keeps its own; otherwise empty."""
        own = self.world_size > 1 and self.sync.local_optimizer
        return self.trainable.optimizer_tables() if own and isinstance(self.trainable, Differentiable) else {}

    def _own_state(self) -> dict[str, Tensor]:
        if self.sync.in_sync:
            return {f"{OPTIMIZER}{name}": tensor for name, tensor in self._optimizer_tables().items()}
        model = {f"{MODEL}{name}": tensor for name, tensor in self.trainable.state_dict().items()}
        return model | {f"{ROUND}{name}": tensor for name, tensor in self.sync.round_state().items()}

    def _reload_own_state(self, own: Path) -> None:
        """Reload this worker's state from the file, so that memory need not hold it twice."""
        state = load_file(own)
        self._load_replica(state)
        self._load_round(state)

    def _load_replica(self, state: dict[str, Tensor]) -> None:
        if model := select_prefix(MODEL, state):
            self.trainable.load_state_dict(model)
        if optimizer := select_prefix(OPTIMIZER, state):
            for name, tensor in self._optimizer_tables().items():
                tensor.copy_(optimizer[name])

    def _load_round(self, state: dict[str, Tensor]) -> None:
        if between_exchanges := select_prefix(ROUND, state):
            self.sync.load_round_state(between_exchanges)

    def _load_losses(self, state: TrainState) -> None:
        """Restore this worker's losses; if the number of workers has changed, worker 0 takes all of them."""
        if len(state.losses) == self.world_size:
            state.loss_sum, state.loss_examples = state.losses[self.rank]
        else:
            sums = [math.fsum(worker[figure] for worker in state.losses) for figure in (0, 1)]
            state.loss_sum, state.loss_examples = (0.0, 0.0) if self.rank else sums
        state.losses = []


def select_prefix(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Select the tensors whose names begin with `prefix`, and strip it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
