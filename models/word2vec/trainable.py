"""The skip-gram model in training: two embedding tables, trained in place.

models/word2vec/cpu.py and models/word2vec/gpu.py have the arithmetic; models/word2vec/vectors.py is the
result.

Mikolov et al. (2013), "Efficient Estimation of Word Representations in Vector Space" and "Distributed
Representations of Words and Phrases and their Compositionality".

Shapes: V words, dim floats per vector.
"""

import mmap
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, SupportsFloat

import numpy as np
import torch
from torch import Tensor

from lexloom.models.word2vec import cpu as sgns_cpu
from lexloom.models.word2vec import gpu as sgns_gpu
from lexloom.models.word2vec.gpu_batches import BatchPrefetcher, from_numpy
from lexloom.models.word2vec.skipgram import SkipGrams
from lexloom.models.word2vec.vectors import WordVectors

EVALUATION_SEED = 0
_MAX_PENDING_BATCHES = 2  # besides the newest one, so that no thread waits for another


def _allocate_table(rows: int, stride: int) -> Tensor:
    """Allocate zeros, (rows, stride) float32, on huge pages if Linux offers them.

    Rows are accessed in random order, which misses the TLB with small pages; huge pages train a fifth faster.
    """
    size = rows * stride * 4  # bytes
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(rows, stride)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, stride)


class BatchLoss:
    """The mean loss of a batch; reading it waits for the batch."""

    def __init__(self, pending: sgns_cpu.PendingBatch, pairs: int) -> None:
        self._pending, self._pairs = pending, pairs

    def __float__(self) -> float:
        return self._pending.loss() / self._pairs

    def done(self) -> bool:
        """Whether the batch is finished."""
        return self._pending.done()


class Word2Vec:
    """Skip-gram with negative sampling, trained in place.

    Args:
        probability, alias: (V,) float32 and int32, the noise distribution as an alias table (Walker 1977).
        dim: floats per vector.
        negatives: noise words per target position.
        learning_rate, min_learning_rate: the learning rate decays linearly from the one to the other.
        seed: of the initial vectors.
        threads: CPU threads that share the tables without locks; with one, training is deterministic.
        programs: the same for a GPU (models/word2vec/gpu.py); None takes as many as training tolerates.

    Attributes:
        vectors: (V, stride) float32, the input table and the result; initially uniform within ±0.5/dim.
        contexts: (V, stride) float32, the output table; initially zero.
            stride is dim rounded up to a multiple of 16. The columns from dim on are always zero.

    Raises:
        ValueError: the noise is not an alias table, or a number is out of range.
    """

    def __init__(
        self,
        probability: np.ndarray,
        alias: np.ndarray,
        *,
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
        words = len(probability)
        if words == 0 or probability.shape != (words,) or alias.shape != (words,):
            raise ValueError(
                f"the alias table has the shapes {probability.shape} and {alias.shape}: "
                f"it must have one probability and one alias per word, and at least one word"
            )
        if alias.min() < 0 or alias.max() >= words:
            raise ValueError(f"the alias table has ids from {alias.min()} to {alias.max()} for {words} words")

        self.dim = dim
        self.negatives = negatives
        self.threads = threads
        self.programs = programs
        self._initial_lr = learning_rate
        self._final_lr = min_learning_rate
        self._probability = np.ascontiguousarray(probability, dtype=np.float32)
        self._alias = np.ascontiguousarray(alias, dtype=np.int32)

        self._pending = deque[sgns_cpu.PendingBatch]()
        self._prefetcher: BatchPrefetcher | None = None  # on a GPU
        self.vectors = _allocate_table(words, sgns_cpu.padded_dim(dim))
        self.contexts = _allocate_table(words, sgns_cpu.padded_dim(dim))
        generator = torch.Generator().manual_seed(seed)
        self.vectors[:, :dim].uniform_(-0.5 / dim, 0.5 / dim, generator=generator)

    def prepare(self, device: str) -> None:
        """Prepare for training on a device.

        On "cpu", compile the kernel, so that the first step is as fast as the others. On a GPU ("cuda",
        "cuda:1"), move the tables to it.

        Raises:
            ValueError: there is no such GPU.
        """
        if device == "cpu":
            sgns_cpu.compile_kernel(self.vectors.shape[1], self.negatives)
            return
        if not torch.cuda.is_available():
            raise ValueError(
                f"Word2Vec can't train on the device {device!r}: torch finds no GPU on this machine "
                f"(torch.cuda.is_available() is False): train on 'cpu', or install torch for CUDA"
            )
        self.to_device(torch.device(device))

    def to_device(self, device: torch.device) -> None:
        """Move the tables to a device, and train there with the GPU code, even on a CPU."""
        self.vectors, self.contexts = self.vectors.to(device), self.contexts.to(device)
        self._noise = (
            from_numpy(self._probability).to(device),
            from_numpy(self._alias).to(device),
        )
        self._prefetcher = BatchPrefetcher(device)
        if self.programs is None:
            self.programs = sgns_gpu.default_programs(self.vectors, self.negatives, self._initial_lr)

    def learning_rate(self, progress: float) -> float:
        """The learning rate at `progress`, the completed share (0 to 1) of training."""
        return self._initial_lr + (self._final_lr - self._initial_lr) * min(max(progress, 0.0), 1.0)

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> SupportsFloat:
        """Train on a batch in place.

        Args:
            batch: `target` and `context`, (pairs,) int32 each; the pairs of a target position are adjacent.
            progress: completed share of training, 0 to 1; it sets the learning rate.
            seed: of this batch's noise.

        Returns:
            The mean over the pairs of -log s(score) - sum over the noise of log s(-score); 0 for no pairs.
            With several threads, and on a GPU, converting it to `float` waits for the batch.

        Raises:
            ValueError: the columns do not match, or an id is not in the vocabulary. Nothing is changed then.
        """
        if self._prefetcher is not None:
            losses = self._train_on_gpu(self._prefetcher, batch, self.learning_rate(progress), seed)
            return losses / max(len(batch["target"]), 1)
        pending = self._start(batch, self.learning_rate(progress), seed)
        self._pending.append(pending)
        if len(self._pending) > _MAX_PENDING_BATCHES:
            self._pending.popleft().loss()
        loss = BatchLoss(pending, max(len(batch["target"]), 1))
        return loss if self.threads > 1 else float(loss)

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Return the sum of the losses of held-out pairs, with fixed noise, and the number of pairs.

        It is a training step with learning rate 0, which writes every row back unchanged.
        """
        self.wait()
        if self._prefetcher is not None:
            return float(self._train_on_gpu(self._prefetcher, batch, 0.0, EVALUATION_SEED)), len(
                batch["target"]
            )
        return self._start(batch, 0.0, EVALUATION_SEED).loss(), len(batch["target"])

    def _start(
        self, batch: Mapping[str, np.ndarray], learning_rate: float, seed: int
    ) -> sgns_cpu.PendingBatch:
        return sgns_cpu.start_batch(
            self.vectors.numpy(),
            self.contexts.numpy(),
            batch["target"],
            batch["context"],
            self._probability,
            self._alias,
            negatives=self.negatives,
            learning_rate=learning_rate,
            seed=seed,
            threads=self.threads,
        )

    def _train_on_gpu(
        self, prefetcher: BatchPrefetcher, batch: Mapping[str, np.ndarray], learning_rate: float, seed: int
    ) -> Tensor:
        """Train on a batch, and return the sum of its pairs' losses."""
        assert self.programs is not None  # set by to_device
        sgns_cpu.check_pairs(batch["target"], batch["context"], len(self.vectors))
        return sgns_gpu.train_batch(
            self.vectors,
            self.contexts,
            prefetcher(batch["target"], batch["context"]),
            *self._noise,
            negatives=self.negatives,
            learning_rate=learning_rate,
            seed=seed,
            programs=self.programs,
        )

    def wait(self) -> None:
        """Wait for all pending batches, until the tables are consistent."""
        for pending in self._pending:
            pending.wait()
        while self._pending:
            self._pending.popleft().loss()

    def tables(self) -> dict[str, Tensor]:
        """Both live tables, after all pending batches; training continues from changes to them."""
        self.wait()
        return {"vectors": self.vectors, "contexts": self.contexts}

    def state_dict(self) -> dict[str, Tensor]:
        """Both live tables, like `torch.nn.Module.state_dict`; clone them to keep them."""
        return self.tables()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state into the tables.

        Raises:
            ValueError: a table is missing, unknown or has another shape. Nothing is changed then.
        """
        tables = self.tables()
        if state.keys() != tables.keys():
            raise ValueError(f"a state of Word2Vec has the tables {sorted(tables)}, not {sorted(state)}")
        for name, table in tables.items():
            if state[name].shape != table.shape:
                raise ValueError(
                    f"the table '{name}' is {tuple(state[name].shape)} in the state, but "
                    f"{tuple(table.shape)} in the model: use the same vocabulary and dim"
                )
            if state[name][:, self.dim :].any():
                raise ValueError(
                    f"the table '{name}' is not zero from column {self.dim} on: use the same dim"
                )
        for name, table in tables.items():
            table.copy_(state[name])

    def word_vectors(self, words: Sequence[str]) -> WordVectors:
        """Return a copy of the trained vectors with the vocabulary's words, in the order of their ids."""
        self.wait()
        return WordVectors(words, self.vectors[:, : self.dim].to("cpu", copy=True))


class Word2VecFromTokens(Word2Vec):
    """Skip-gram trained on tokens: each step draws its batch's pairs with its seed.

    Batches have `tokens`, `row` and `position` (see `SkipGrams.draw`); the other arguments are those of
    `Word2Vec`.
    """

    def __init__(
        self, skipgrams: SkipGrams, probability: np.ndarray, alias: np.ndarray, **options: Any
    ) -> None:
        super().__init__(probability, alias, **options)
        self._skipgrams = skipgrams
        if skipgrams.keep_thresholds.shape != probability.shape:
            raise ValueError(
                f"the alias table has {len(probability)} words, but the subsampling thresholds have"
                f" {len(skipgrams.keep_thresholds)}: build both from the same vocabulary"
            )

    def prepare(self, device: str) -> None:
        """Compile the kernel and the code that draws pairs; see `Word2Vec`."""
        super().prepare(device)
        empty = np.empty(0, np.int64)
        self._pairs({"tokens": np.empty(0, np.int32), "row": empty, "position": empty}, seed=0)

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> SupportsFloat:
        """Train in place on the pairs of the documents that are not held out; return their mean loss."""
        return super().train_step(self._pairs(batch, seed), progress=progress, seed=seed)

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """Return the sum of the losses of the held-out documents' pairs, drawn with a fixed seed, and their
        number.
        """
        return super().evaluate(self._pairs(batch, EVALUATION_SEED, held_out=True))

    def _pairs(
        self, batch: Mapping[str, np.ndarray], seed: int, held_out: bool = False
    ) -> Mapping[str, np.ndarray]:
        sgns_cpu.check_ids("tokens", batch["tokens"], len(self.vectors))
        return self._skipgrams.draw(batch, seed, held_out=held_out)
