"""The skip-gram model in training: two embedding tables, trained in place.

models/word2vec/cpu.py has the arithmetic, and models/word2vec/gpu.py that of a GPU;
models/word2vec/vectors.py is what comes out of it.

Mikolov et al. (2013), "Efficient Estimation of Word Representations in Vector Space" and "Distributed
Representations of Words and Phrases and their Compositionality".

Shapes: V words, dim floats a vector.
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
from lexloom.models.word2vec.skipgram import SkipGrams
from lexloom.models.word2vec.vectors import WordVectors

EVALUATION_SEED = 0
_BATCHES_BEGUN = 2  # besides the one that is begun: so no thread waits for another one's end


def _table(rows: int, stride: int) -> Tensor:
    """Zeros, (rows, stride) float32, on huge pages where Linux offers them: a fifth faster to train, as rows
    are touched in no order and small pages miss the processor's page table cache."""
    size = rows * stride * 4  # bytes
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(rows, stride)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).view(rows, stride)


class Loss:
    """The mean loss of a batch, waited for when it is read."""

    def __init__(self, begun: sgns_cpu.PendingBatch, pairs: int) -> None:
        self._begun, self._pairs = begun, pairs

    def __float__(self) -> float:
        return self._begun.loss() / self._pairs

    def done(self) -> bool:
        """Whether the batch is trained."""
        return self._begun.done()


class Word2Vec:
    """Skip-gram with negative sampling, trained in place.

    Args:
        probability, alias: (V,) float32 and int32, the noise distribution as an alias table (Walker 1977).
        dim: floats a vector.
        negatives: noise words for each target position.
        learning_rate, min_learning_rate: it falls linearly from the one to the other.
        seed: of the first vectors.
        threads: of a CPU, that share the tables without locks; with one, training repeats bit for bit.
        programs: of a GPU, that do the same (models/word2vec/gpu.py); None takes as many as training bears.

    Attributes:
        vectors: (V, stride) float32, the input table and the result; evenly within ±0.5/dim at first.
        contexts: (V, stride) float32, the output table; zero at first.
            stride is dim rounded up to a multiple of 16. The columns from dim on are zero and stay so.

    Raises:
        ValueError: the noise is no alias table, or a number is out of its range.
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
                raise ValueError(f"{name} is {value}: it must be at least 1.")
        if not 0 <= min_learning_rate <= learning_rate:
            raise ValueError(
                f"The learning rate cannot fall from {learning_rate} to {min_learning_rate}: "
                f"0 <= min_learning_rate <= learning_rate must hold."
            )
        words = len(probability)
        if words == 0 or probability.shape != (words,) or alias.shape != (words,):
            raise ValueError(
                f"The noise has the shapes {probability.shape} and {alias.shape}: "
                f"one probability and one alias for each word are needed, and at least one word."
            )
        if alias.min() < 0 or alias.max() >= words:
            raise ValueError(f"The noise names the ids {alias.min()} to {alias.max()} of {words} words.")

        self.dim = dim
        self.negatives = negatives
        self.threads = threads
        self.programs = programs
        self._first_rate = learning_rate
        self._last_rate = min_learning_rate
        self._probability = np.ascontiguousarray(probability, dtype=np.float32)
        self._alias = np.ascontiguousarray(alias, dtype=np.int32)

        self._begun = deque[sgns_cpu.PendingBatch]()
        self._feed: sgns_gpu.Feed | None = None  # on a GPU
        self.vectors = _table(words, sgns_cpu.padded(dim))
        self.contexts = _table(words, sgns_cpu.padded(dim))
        generator = torch.Generator().manual_seed(seed)
        self.vectors[:, :dim].uniform_(-0.5 / dim, 0.5 / dim, generator=generator)

    def prepare(self, device: str) -> None:
        """Make ready to train there: on "cpu" compile the kernel, so that the first step is as fast as the
        others; on a GPU ("cuda", "cuda:1") move the tables to it, with what they hold.

        Raises:
            ValueError: there is no such GPU.
        """
        if device == "cpu":
            sgns_cpu.compile_kernel(self.vectors.shape[1], self.negatives)
            return
        if not torch.cuda.is_available():
            raise ValueError(
                f"Word2Vec cannot train on the device {device!r}: torch finds no GPU on this machine "
                f"(torch.cuda.is_available() is False). Train on 'cpu', or install torch for CUDA."
            )
        self.move(torch.device(device))

    def move(self, device: torch.device) -> None:
        """Take the tables to a device, and train there the way that a GPU does, even if it is a CPU."""
        self.vectors, self.contexts = self.vectors.to(device), self.contexts.to(device)
        self._noise = (
            sgns_gpu.from_numpy(self._probability).to(device),
            sgns_gpu.from_numpy(self._alias).to(device),
        )
        self._feed = sgns_gpu.Feed(device)
        if self.programs is None:
            self.programs = sgns_gpu.default_programs(self.vectors, self.negatives, self._first_rate)

    def learning_rate(self, progress: float) -> float:
        """The rate when `progress` (0 to 1) of all pairs of all epochs are done."""
        return self._first_rate + (self._last_rate - self._first_rate) * min(max(progress, 0.0), 1.0)

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> SupportsFloat:
        """Train on a batch in place.

        Args:
            batch: `target` and `context`, (pairs,) int32 each; a target position's pairs stand together.
            progress: of the whole training, 0 to 1; it sets the learning rate.
            seed: of this batch's noise.

        Returns:
            The mean over the pairs of -log s(score) - sum over the noise of log s(-score); 0 for no pairs.
            With several threads, and on a GPU, `float` of it waits for the batch.

        Raises:
            ValueError: the columns do not fit each other, or an id is not in the vocabulary. Nothing changed.
        """
        if self._feed is not None:
            losses = self._run_gpu(self._feed, batch, self.learning_rate(progress), seed)
            return losses / max(len(batch["target"]), 1)
        begun = self._begin(batch, self.learning_rate(progress), seed)
        self._begun.append(begun)
        if len(self._begun) > _BATCHES_BEGUN:
            self._begun.popleft().loss()
        loss = Loss(begun, max(len(batch["target"]), 1))
        return loss if self.threads > 1 else float(loss)

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """The losses of held-out pairs, summed, against noise that is always the same; and how many pairs.

        It is a step at a rate of 0: every row is written back as it was.
        """
        self.wait()
        if self._feed is not None:
            return float(self._run_gpu(self._feed, batch, 0.0, EVALUATION_SEED)), len(batch["target"])
        return self._begin(batch, 0.0, EVALUATION_SEED).loss(), len(batch["target"])

    def _begin(
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

    def _run_gpu(
        self, feed: sgns_gpu.Feed, batch: Mapping[str, np.ndarray], learning_rate: float, seed: int
    ) -> Tensor:
        """The losses of the batch's pairs, summed."""
        assert self.programs is not None  # _move
        sgns_cpu.check_pairs(batch["target"], batch["context"], len(self.vectors))
        return sgns_gpu.train_batch(
            self.vectors,
            self.contexts,
            feed(batch["target"], batch["context"]),
            *self._noise,
            negatives=self.negatives,
            learning_rate=learning_rate,
            seed=seed,
            programs=self.programs,
        )

    def wait(self) -> None:
        """Until the tables are at rest: several threads go on with the next batch before the last is done."""
        for begun in self._begun:
            begun.wait()
        while self._begun:
            self._begun.popleft().loss()

    def tables(self) -> dict[str, Tensor]:
        """Both tables, live and at rest: what is written into them is trained on."""
        self.wait()
        return {"vectors": self.vectors, "contexts": self.contexts}

    def state_dict(self) -> dict[str, Tensor]:
        """All that training changes: both tables, live, as in torch (clone them to keep them)."""
        return self.tables()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state into the tables.

        Raises:
            ValueError: a table is missing, unknown or of another shape. Nothing changed.
        """
        tables = self.tables()
        if state.keys() != tables.keys():
            raise ValueError(
                f"A state of Word2Vec has the tables {sorted(tables)}, but this one {sorted(state)}."
            )
        for name, table in tables.items():
            if state[name].shape != table.shape:
                raise ValueError(
                    f"The table '{name}' is {tuple(state[name].shape)} in the state, but "
                    f"{tuple(table.shape)} in the model: were the vocabulary and dim the same?"
                )
            if state[name][:, self.dim :].any():
                raise ValueError(
                    f"The table '{name}' is not zero from column {self.dim} on: dim was another."
                )
        for name, table in tables.items():
            table.copy_(state[name])

    def word_vectors(self, words: Sequence[str]) -> WordVectors:
        """The trained vectors (a copy) of the vocabulary's words, in the order of their ids."""
        self.wait()
        return WordVectors(words, self.vectors[:, : self.dim].to("cpu", copy=True))


class Word2VecFromTokens(Word2Vec):
    """Skip-gram trained on tokens: the pairs of a batch are drawn by its seed, and gone after the step.

    Batches have `tokens`, `row` and `place`, as `SkipGrams.draw` takes them; the other arguments are those of
    `Word2Vec`.
    """

    def __init__(
        self, skipgrams: SkipGrams, probability: np.ndarray, alias: np.ndarray, **options: Any
    ) -> None:
        super().__init__(probability, alias, **options)
        self._skipgrams = skipgrams
        if skipgrams.chances.shape != probability.shape:
            raise ValueError(
                f"The noise is of {len(probability)} words, the chances to be kept of"
                f" {len(skipgrams.chances)}: were both made from the same vocabulary?"
            )

    def prepare(self, device: str) -> None:
        """Compile the kernel, and what draws the pairs; see `Word2Vec`."""
        super().prepare(device)
        nowhere = np.empty(0, np.int64)
        self._pairs({"tokens": np.empty(0, np.int32), "row": nowhere, "place": nowhere}, seed=0)

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> SupportsFloat:
        """Train in place on the pairs of the documents that are not held out; returns their mean loss."""
        return super().train_step(self._pairs(batch, seed), progress=progress, seed=seed)

    def evaluate(self, batch: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """The losses of the held-out documents' pairs, summed, and how many; always the same draws."""
        return super().evaluate(self._pairs(batch, EVALUATION_SEED, held_out=True))

    def _pairs(
        self, batch: Mapping[str, np.ndarray], seed: int, held_out: bool = False
    ) -> Mapping[str, np.ndarray]:
        sgns_cpu.check_ids("tokens", batch["tokens"], len(self.vectors))
        return self._skipgrams.draw(batch, seed, held_out=held_out)
