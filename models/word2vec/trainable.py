"""The skip-gram model in training: the parts of two embedding tables that one worker holds.

models/word2vec/grid.py defines parts, blocks and diagonals; models/word2vec/cpu.py and models/word2vec/gpu.py
have the arithmetic; models/word2vec/vectors.py is the result.

Mikolov et al. (2013), "Efficient Estimation of Word Representations in Vector Space" and "Distributed
Representations of Words and Phrases and their Compositionality".

Shapes: V words in P parts of `rows` words, n of which are a worker's own; dim floats per vector, padded to
stride.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import SupportsFloat

import numpy as np
import torch
from torch import Tensor

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import gpu as sgns_gpu
from lexloom.models.word2vec.alias import alias_tables
from lexloom.models.word2vec.gpu_batches import BatchPrefetcher, from_numpy
from lexloom.models.word2vec.grid import Grid
from lexloom.models.word2vec.splitmix import hash_seed, hash_seeds
from lexloom.models.word2vec.tables import CONTEXTS, VECTORS, allocate_table, assemble, piece_name
from lexloom.models.word2vec.vectors import WordVectors

EVALUATION_SEED = 0
MAX_PENDING_STEPS = 2  # besides the newest one, so that no thread is idle


class StepLoss:
    """The mean loss of a step; reading it waits for the step."""

    def __init__(self, step: sgns_cpu.Step, pairs: int) -> None:
        self._step, self._pairs = step, pairs

    def __float__(self) -> float:
        return self._step.loss() / self._pairs

    def done(self) -> bool:
        """Whether the step is finished."""
        return self._step.done()


class Word2Vec:
    """Skip-gram with negative sampling, trained in place: the parts of one worker.

    A worker has the same input parts for the whole run. Its output parts are, in step number s, those of the
    blocks (i, (i + s) mod P) of its input parts i; between two steps one of them moves to the previous worker
    (`outgoing`, `incoming`, `rotate`). A model that is alone has all parts, and only counts its steps.

    Args:
        weights: (V,) float64, proportional to the words' probability in the noise distribution.
        parts: of the vocabulary, P.
        dim: floats per vector.
        negatives: noise words per run.
        learning_rate, min_learning_rate: the learning rate decays linearly from the one to the other.
        seed: of the initial vectors.
        threads: CPU threads. They do not affect the result.
        programs: runs that a GPU processes concurrently; None takes as many as training tolerates. A GPU's
            results are not reproducible.

    stride is dim rounded up to a multiple of 16. The columns of the tables from dim on are always zero.

    Raises:
        ValueError: a weight is negative, there is no word, or a number is out of range.
    """

    def __init__(
        self,
        weights: np.ndarray,
        *,
        parts: int = 1,
        dim: int = 100,
        negatives: int = 5,
        learning_rate: float = 0.05,
        min_learning_rate: float = 0.0001,
        seed: int = 0,
        threads: int = 1,
        programs: int | None = None,
    ) -> None:
        for name, value in (
            ("dim", dim),
            ("negatives", negatives),
            ("threads", threads),
            ("programs", programs),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: it must be at least 1")
        if not 0 <= min_learning_rate <= learning_rate:
            raise ValueError(
                f"the learning rate can't decay from {learning_rate} to {min_learning_rate}: "
                f"min_learning_rate must be between 0 and learning_rate"
            )
        if weights.ndim != 1 or not len(weights) or not (weights >= 0).all():
            raise ValueError(
                f"the noise weights have the shape {weights.shape}: there must be one weight, at least 0, for"
                " each of at least one word"
            )
        self.grid = Grid(len(weights), parts)
        self.dim, self.negatives = dim, negatives
        self.stride = sgns_cpu.padded_dim(dim)
        self.programs = programs
        self._initial_lr, self._final_lr = learning_rate, min_learning_rate
        self._seed = seed
        self._noise = alias_tables(weights.astype(np.float64), self.grid)
        self._words = np.array([len(self.grid.words_of(part)) for part in range(parts)], np.int64)
        self._threads = sgns_cpu.BlockThreads(threads)
        self._pending = deque[sgns_cpu.Step]()
        self._newest: sgns_cpu.Step | None = None
        self._newest_step = 0
        self._awaits_part = False
        self._step = 0
        self._device = torch.device("cpu")
        self._prefetcher: BatchPrefetcher | None = None  # on a GPU
        self.own(0, 1)

    # The division between workers.

    def own(self, rank: int, world_size: int) -> None:
        """Hold the parts of worker `rank`, with their initial values.

        The tables are allocated on first use, so a worker never allocates the parts of others.

        Raises:
            ValueError: there are more workers than parts.
        """
        self._own = self.grid.own(rank, world_size)
        self._alone = world_size == 1
        for table in (VECTORS, CONTEXTS):
            self.__dict__.pop(table, None)

    @cached_property
    def vectors(self) -> Tensor:
        """(n, rows, stride) float32, the input table and the result; initially uniform within ±0.5/dim."""
        table = allocate_table(len(self._own), self.grid.rows, self.stride)
        for rows, part in zip(table, self._own, strict=True):
            words = int(self._words[part])
            generator = torch.Generator().manual_seed(hash_seed(self._seed, part) >> 1)
            rows[:words, : self.dim].uniform_(-0.5 / self.dim, 0.5 / self.dim, generator=generator)
        return table

    @cached_property
    def contexts(self) -> Tensor:
        """(n or n + 1, rows, stride) float32, the output table; initially zero.

        The additional part is free: it receives the part that arrives next.
        """
        return allocate_table(len(self._own) + (not self._alone), self.grid.rows, self.stride)

    def start_at(self, step: int) -> None:
        """Continue at step number `step`, with the output parts that it needs; load a state afterwards."""
        self.wait()
        self._step = step

    def _slot(self, index: int) -> int:
        """The place in `contexts` of the output part of the index-th own block of this step."""
        if self._alone:
            return (self._own.start + self._step + index) % self.grid.parts
        return (self._step + index) % len(self.contexts)

    def _output_parts(self) -> list[int]:
        """The output part of each own block of this step."""
        return [(part + self._step) % self.grid.parts for part in self._own]

    def outgoing(self) -> Tensor:
        """Wait for the step's first block; return its output part, which the previous worker needs next.

        It is (rows, dim), without padding.
        """
        if self._newest is not None:
            # without pairs in this step, the part was last trained in another block of an earlier one
            self._newest.wait(groups=1 if self._newest_step == self._step else None)
        return self._leaving.copy_(self.contexts[self._slot(0), :, : self.dim])

    def incoming(self) -> Tensor:
        """A buffer, which must be filled with the next worker's `outgoing` before `rotate`."""
        self._awaits_part = True
        return self._arriving

    @cached_property
    def _leaving(self) -> Tensor:
        return torch.empty(self.grid.rows, self.dim, device=self.contexts.device)

    @cached_property
    def _arriving(self) -> Tensor:
        return torch.empty_like(self._leaving)

    def rotate(self) -> None:
        """Proceed to the next step's blocks."""
        if self._awaits_part:
            self.contexts[self._slot(len(self._own)), :, : self.dim] = self._arriving
            self._awaits_part = False
        self._step += 1

    def idle_since(self) -> float | None:
        """The `time.perf_counter()` at which all blocks were finished; None if some are not."""
        if self._newest is not None and not self._newest.done():
            return None
        return self._threads.finished_at

    # Training.

    def prepare(self, device: str) -> None:
        """Prepare for training on a device.

        On "cpu", compile the kernel, so that the first step is as fast as the others. On a GPU ("cuda",
        "cuda:1"), move the tables to it.

        Raises:
            ValueError: there is no such GPU.
        """
        if device == "cpu":
            sgns_cpu.compile_kernel(self.stride, self.negatives)
            return
        if not torch.cuda.is_available():
            raise ValueError(
                f"Word2Vec can't train on the device {device!r}: torch finds no GPU on this machine "
                f"(torch.cuda.is_available() is False): train on 'cpu', or install torch for CUDA"
            )
        self.to_device(torch.device(device))

    def to_device(self, device: torch.device) -> None:
        """Move the tables to a device, and train there with the GPU code, even on a CPU."""
        self._device = device
        self.vectors, self.contexts = self.vectors.to(device), self.contexts.to(device)
        probability, alias = self._noise
        self._device_noise = (
            from_numpy(probability).to(device),
            from_numpy(alias.astype(np.int32)).to(device),
        )
        self._prefetcher = BatchPrefetcher(device)
        if self.programs is None:
            self.programs = sgns_gpu.default_programs(self.vectors[0], self.negatives, self._initial_lr)

    def learning_rate(self, progress: float) -> float:
        """The learning rate at `progress`, the completed share (0 to 1) of training."""
        return self._initial_lr + (self._final_lr - self._initial_lr) * min(max(progress, 0.0), 1.0)

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> SupportsFloat:
        """Train on the own blocks of a diagonal in place.

        Args:
            batch: `target` and `context`, (pairs,) uint16 each: rows within the blocks' parts, and `bounds`,
                (n + 1,) int64: the k-th own block's pairs are bounds[k]:bounds[k + 1].
            progress: completed share of training, 0 to 1; it sets the learning rate.
            seed: of the step's noise.

        Returns:
            The mean over the pairs of -log s(score) - sum over the noise of log s(-score); 0 for no pairs.
            Converting it to `float` waits for the step.

        Raises:
            ValueError: the columns do not match, or a row is not in its part. Nothing is changed then.
        """
        return self._train(batch, self.learning_rate(progress), seed)

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Return the sum of the losses of held-out pairs, with fixed noise, and the number of pairs.

        It is a training step with learning rate 0, which writes every row back unchanged.
        """
        loss = self._train(batch, 0.0, EVALUATION_SEED)
        pairs = len(batch["target"])
        return float(loss) * pairs, pairs

    def _train(self, batch: Mapping[str, np.ndarray], learning_rate: float, seed: int) -> SupportsFloat:
        targets, contexts = (np.ascontiguousarray(batch[name]) for name in ("target", "context"))
        bounds = np.ascontiguousarray(batch["bounds"])
        parts = np.array(self._output_parts(), np.int64)
        self._check(targets, contexts, bounds, parts)
        if not len(targets):
            return 0.0
        seeds = hash_seeds(seed, np.array(self._own))
        if self._prefetcher is not None:
            return self._train_on_gpu(self._prefetcher, targets, contexts, bounds, learning_rate, seeds)
        kernel = sgns_cpu.compile_kernel(self.stride, self.negatives)
        vectors, outputs = (table.numpy().reshape(len(table), -1) for table in (self.vectors, self.contexts))
        inputs_at = np.arange(len(self._own))
        outputs_at = np.array([self._slot(index) for index in range(len(self._own))])
        losses, lr = np.zeros(len(self._own)), np.float32(learning_rate)

        def train(first: int, last: int) -> None:
            kernel(
                *(vectors, outputs, targets, contexts, bounds[first : last + 1]),
                *(inputs_at[first:last], outputs_at[first:last], *self._noise, parts[first:last]),
                *(self._words, seeds[first:last], lr, losses[first:last]),
            )

        self._newest = self._threads.submit(train, losses, step=self._step, circular=self._alone)
        self._newest_step = self._step
        self._pending.append(self._newest)
        if len(self._pending) > MAX_PENDING_STEPS:
            self._pending.popleft().wait()
        return StepLoss(self._newest, len(targets))

    def _train_on_gpu(
        self,
        prefetcher: BatchPrefetcher,
        targets: np.ndarray,
        contexts: np.ndarray,
        bounds: np.ndarray,
        learning_rate: float,
        seeds: np.ndarray,
    ) -> Tensor:
        """Train on the blocks one after another, and return the mean loss of their pairs."""
        assert self.programs is not None  # set by to_device
        probability, alias = self._device_noise
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        for index, part in enumerate(self._output_parts()):
            pairs = slice(int(bounds[index]), int(bounds[index + 1]))
            if pairs.start == pairs.stop:
                continue
            words = int(self._words[part])
            loss += sgns_gpu.train_batch(
                self.vectors[index],
                self.contexts[self._slot(index)],
                prefetcher(targets[pairs].astype(np.int32), contexts[pairs].astype(np.int32)),
                probability[part, :words],
                alias[part, :words],
                negatives=self.negatives,
                learning_rate=learning_rate,
                seed=int(seeds[index]),
                programs=self.programs,
            )
        return loss / len(targets)

    def _check(
        self, targets: np.ndarray, contexts: np.ndarray, bounds: np.ndarray, parts: np.ndarray
    ) -> None:
        """Raise a ValueError unless the columns are the blocks of this step."""
        for name, ids in (("target", targets), ("context", contexts)):
            if ids.shape != (len(targets),) or ids.dtype != np.uint16:
                raise ValueError(
                    f"the batch's column {name} is {ids.dtype} with the shape {ids.shape}: both columns must"
                    " be uint16 of equal length"
                )
        if len(bounds) != len(self._own) + 1 or bounds[0] != 0 or bounds[-1] != len(targets):
            raise ValueError(
                f"the batch has {len(bounds) - 1} blocks and {len(targets)} pairs, of which the blocks have"
                f" {bounds[-1] - bounds[0]}: the model has {len(self._own)} parts; draw the pairs for its"
                " grid"
            )
        for name, ids, counts in (
            ("target", targets, self._words[parts]),
            ("context", contexts, self._words[self._own.start : self._own.stop]),
        ):
            if not len(ids) or ids.max() < counts.min():
                continue
            for index, words in enumerate(counts):
                block = ids[bounds[index] : bounds[index + 1]]
                if len(block) and block.max() >= words:
                    raise ValueError(
                        f"the batch's {name} column contains the row {block.max()}, but the part has {words}"
                        " words: use the vocabulary from which the pairs were built"
                    )

    def wait(self) -> None:
        """Wait for all pending steps, until the tables are consistent."""
        while self._pending:
            self._pending.popleft().wait()

    # State.

    def piece_names(self) -> list[str]:
        """The names of the parts that this worker holds at this step."""
        return [
            *(piece_name(VECTORS, part) for part in self._own),
            *(piece_name(CONTEXTS, part) for part in self._output_parts()),
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """The live parts of both tables, (rows, stride) each; clone them to keep them."""
        self.wait()
        outputs = [self.contexts[self._slot(index)] for index in range(len(self._own))]
        return dict(zip(self.piece_names(), [*self.vectors, *outputs], strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state into the tables.

        Raises:
            ValueError: a part is missing, unknown or has another shape. Nothing is changed then.
        """
        pieces = self.state_dict()
        if missing := pieces.keys() - state.keys():
            raise ValueError(f"the state has no part {min(missing)!r}: use the same grid")
        for name, piece in pieces.items():
            if state[name].shape != piece.shape:
                raise ValueError(
                    f"the part '{name}' is {tuple(state[name].shape)} in the state, but "
                    f"{tuple(piece.shape)} in the model: use the same vocabulary, parts and dim"
                )
            if state[name][:, self.dim :].any():
                raise ValueError(f"the part '{name}' is not zero from column {self.dim} on: use the same dim")
        for name, piece in pieces.items():
            piece.copy_(state[name])

    def word_vectors(self, words: Sequence[str]) -> WordVectors:
        """Return a copy of the trained vectors with the vocabulary's words, in the order of their ids."""
        return WordVectors(words, assemble(VECTORS, self.state_dict(), self.grid, self.dim))
