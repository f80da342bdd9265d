"""The training stage of word vectors.

A model folder holds `model.safetensors`, `vocabulary.json`, `config.json`, `metrics.json`, a model card and
the files for gensim (`word2vec.bin`, `word2vec.vocab`, and `contexts.bin` if requested).
"""

import math
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, Tag, model_validator

from lexloom.models.registry import KIND
from lexloom.models.word2vec.family import FAMILY
from lexloom.models.word2vec.grid import Grid
from lexloom.models.word2vec.skipgram import SkipGrams
from lexloom.models.word2vec.tables import CONTEXTS, VECTORS, assemble
from lexloom.models.word2vec.trainable import Word2Vec
from lexloom.models.word2vec.vectors import WordVectors, has_white_space, save_word2vec_counts
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted, short
from lexloom.tasks.negative_sampling import read_noise
from lexloom.tasks.pairs import PairsConfig, SkipGramsConfig
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary, canonical
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import count_documents, training_files
from lexloom.tasks.train.outputs import describe_training, save_records, summarize, write_json
from lexloom.tasks.train.resources import AUTO, Auto, Choice, Device, NumberOrAuto, Threads
from lexloom.tasks.train.run import MAX_WORKERS, TRAIN, VALIDATION, TrainConfig, plan_job, run_job
from lexloom.tasks.vocabulary import read_vocabulary
from lexloom.training.grid_stream import DrawnEpisodes, GridStream, StoredEpisodes
from lexloom.training.job import Job
from lexloom.training.sync.config import SyncConfig

DOCUMENTS_AT_ONCE = 1 << 20
# of 'auto': the best of several epochs on texts of 1.3 to 100 million pairs (benchmarks/LOG.md)
SINGLE_EPOCH_PAIRS, MAX_AUTO_EPOCHS = 1_000_000_000, 50
# read by gensim: word2vec's binary format, and the counts
VECTORS_BIN, CONTEXTS_BIN, COUNTS = "word2vec.bin", "contexts.bin", "word2vec.vocab"


class TrainWord2VecConfig(TrainConfig):
    """Skip-gram with negative sampling (Mikolov et al., 2013)."""

    # the result is the same for any number of workers and threads
    workers: Annotated[
        Annotated[int, Tag("number"), Field(ge=1, le=MAX_WORKERS)] | Auto, NumberOrAuto, Choice(), RunOnly()
    ] = Field(
        AUTO,
        description="Number of workers, each of which trains the words of its own parts of the vocabulary; no"
        " more than there are parts. It does not affect the result. 'auto' is one on this machine (one per"
        " GPU if it has several), and as many as fit on Ray.",
    )
    threads: Annotated[Threads, RunOnly()] = Field(
        AUTO,
        description="CPU threads per worker; 'auto' divides the CPUs among the workers. The number does not"
        " affect the result. No effect on a GPU.",
    )
    epochs: Annotated[Annotated[int, Tag("number"), Field(ge=1)] | Auto, NumberOrAuto, Choice()] = Field(  # type: ignore[assignment]
        AUTO,
        description="Number of passes over the pairs. 'auto' is the square root of"
        f" {short(SINGLE_EPOCH_PAIRS)} / pairs: 1 for {short(SINGLE_EPOCH_PAIRS)} pairs or more, 10 for"
        f" {short(SINGLE_EPOCH_PAIRS / 100)}, and at most {MAX_AUTO_EPOCHS}.",
    )
    # part of the key: a GPU's concurrent runs of pairs do not see each other's updates
    device: Device = Field(
        AUTO,
        description="Training device; with 'cuda', each worker uses one GPU. 'auto' uses the GPUs, if there"
        " are any.",
    )
    # checkpoints of word vectors are short
    checkpoint_seconds: Annotated[float, RunOnly()] = Field(
        10.0,
        gt=0,
        description="Seconds between checkpoints; longer if checkpoints take over 2% of the training time.",
    )
    dim: int = Field(100, ge=1, le=4096, description="Dimension of the word vectors.")
    negatives: int = Field(5, ge=1, le=100, description="Negative samples per target.")
    # not word2vec's 0.025: at one and at five epochs 0.05 gives better vectors (benchmarks/LOG.md)
    learning_rate: float = Field(0.05, gt=0, le=10, description="Initial learning rate.")
    min_learning_rate: float = Field(
        0.0001, ge=0, le=10, description="Final learning rate; the decay is linear."
    )
    programs: int | None = Field(
        None,
        ge=1,
        description="Number of runs of pairs that a GPU processes concurrently. More are faster, but too many"
        " degrade the vectors, because concurrent runs do not see each other's updates; if not given, the"
        " largest number that does not. No effect on a CPU.",
    )
    save_context: bool = Field(
        False,
        description="Also write the context vectors (contexts.bin), with which gensim can continue training;"
        " this doubles the size of the folder.",
    )

    @model_validator(mode="after")
    def rates_fall(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}:"
                " lower it"
            )
        return self

    def with_epochs(self, pairs: float) -> Self:
        """Return the config with its number of epochs; 'auto' is resolved for this number of pairs."""
        if self.epochs != AUTO:
            return self
        epochs = min(MAX_AUTO_EPOCHS, max(1, round(math.sqrt(SINGLE_EPOCH_PAIRS / max(1.0, pairs)))))
        return self.model_copy(update={"epochs": epochs})

    def reading(self, pairs: PairsConfig) -> "TrainWord2VecConfig":
        """Return the config for the mode of pairs; streamed pairs are drawn during training."""
        if pairs.mode == "stored":
            return self
        skipgrams = SkipGramsConfig(**pairs.model_dump(include=set(SkipGramsConfig.model_fields)))
        return TrainFromTokensConfig(**self.model_dump(), pairs=skipgrams)


class TrainFromTokensConfig(TrainWord2VecConfig):
    """Skip-gram whose pairs are drawn from tokens during training."""

    pairs: SkipGramsConfig


@stage(version=6)
def train_word2vec(
    pairs: Artifact,
    noise: Artifact,
    vocabulary: Artifact,
    config: TrainWord2VecConfig,
    out: Path,
    scratch: Path,
) -> Summary:
    """Train the input and output embeddings, and write the model folder.

    `pairs` are stored pairs. With a `TrainFromTokensConfig` they are tokens, from which pairs are sampled,
    and examples are counted in tokens.
    """
    words, counts = read_vocabulary(vocabulary)
    unit, columns = "pairs", ("target", "context")
    if isinstance(config, TrainFromTokensConfig):
        unit = "tokens"
        grid = config.pairs.grid(len(counts))
        files = tuple(training_files(pairs))
        validation = files if has_held_out(files, config.pairs.skipgrams(counts)) else ()
        open_stream: Any = partial(open_drawn, config.pairs, counts)
    else:
        grid = Grid(len(counts), cast(int, pairs.facts["parts"]))
        files, validation = tuple(pairs.files(TRAIN)), tuple(pairs.files(VALIDATION))
        open_stream = partial(open_stored, pairs.folder, grid)
    # a worker trains the blocks of its parts at the same time
    resources = config.resources(grid.parts, most_threads=lambda workers: -(-grid.parts // workers))
    if isinstance(config.workers, int) and config.workers > grid.parts:
        console.note(
            "training",
            f"only {grid.parts} of {config.workers} workers train, since the vocabulary has"
            f" {counted(grid.parts, 'parts')} (--parts)",
        )
    if config.programs is not None and resources.device == "cpu":
        console.note("training", "programs has no effect on a CPU")
    make_model = partial(
        Word2Vec,
        read_noise(noise),
        parts=grid.parts,
        dim=config.dim,
        negatives=config.negatives,
        learning_rate=config.learning_rate,
        min_learning_rate=config.min_learning_rate,
        seed=config.seed,
        threads=resources.threads,
        programs=config.programs,
    )
    job = plan_job(
        *(config, resources, make_model, pairs, columns, [noise, vocabulary], scratch),
        sync=SyncConfig("rotation"),
        files=files,
        validation=validation,
        open_stream=open_stream,
    )
    metrics, tensors = run_job(job, resources, unit)
    metrics["unit"] = unit
    table = assemble(VECTORS, tensors, grid, config.dim)
    if not config.save_context:
        del tensors  # before more memory is needed
    vectors = WordVectors(words.to_pylist(), table)
    vectors.save(out)
    vectors.save_word2vec(out / VECTORS_BIN, binary=True)
    with_spaces = sum(map(has_white_space, vectors.words))
    if not with_spaces:
        save_word2vec_counts(vectors.words, counts.tolist(), out / COUNTS)
    if config.save_context:
        contexts = WordVectors(vectors.words, assemble(CONTEXTS, tensors, grid, config.dim))
        contexts.save_word2vec(out / CONTEXTS_BIN, binary=True)
    write_json(out / "config.json", {KIND: FAMILY.kind, **canonical(config), **vocabulary.normalization})
    save_records(out, metrics, model_card(config, metrics, len(words), has_counts=not with_spaces))
    notes = {f"words with white space, so no {COUNTS}": with_spaces} if with_spaces else {}
    return summarize(metrics, unit, len(words), "word vectors", notes=notes)


def open_stored(folder: Path, grid: Grid, job: Job, rank: int, world_size: int, held_out: bool) -> GridStream:
    """Open a worker's stream of stored pairs."""
    episodes = StoredEpisodes(
        folder,
        "validation" if held_out else "train",
        parts=grid.parts,
        seed=job.seed,
        shuffle=not held_out,
    )
    return GridStream(episodes, grid.parts, grid.own(rank, world_size), shuffle=not held_out)


def open_drawn(
    config: SkipGramsConfig, counts: NDArray[np.int64], job: Job, rank: int, world_size: int, held_out: bool
) -> GridStream:
    """Open a worker's stream of pairs that are drawn from the job's token shards.

    An episode has about as many tokens as make its number of pairs. If subsampling leaves less than one pair
    per token, it has that number of tokens, so that memory stays bounded.
    """
    skipgrams, grid = config.skipgrams(counts), config.grid(len(counts))
    episodes = DrawnEpisodes(
        job.files,
        partial(skipgrams.draw_blocks, held_out=held_out),
        tokens=max(1, round(config.episode(counts) / max(1.0, skipgrams.pairs_per_token(counts)))),
        parts=grid.parts,
        seed=job.seed,
        shuffle=not held_out,
    )
    return GridStream(episodes, grid.parts, grid.own(rank, world_size), shuffle=not held_out)


def has_held_out(files: tuple[Path, ...], skipgrams: SkipGrams) -> bool:
    """Return whether documents are held out.

    Raises:
        ValueError: a validation share is set, but no document is held out.
    """
    documents = count_documents(list(files))
    pieces = (
        np.arange(i, min(i + DOCUMENTS_AT_ONCE, documents)) for i in range(0, documents, DOCUMENTS_AT_ONCE)
    )
    if skipgrams.held_out_share and not any(skipgrams.held_out(piece).any() for piece in pieces):
        raise ValueError(
            f"none of {counted(documents, 'documents')} is held out: raise validation_share, or set it to 0"
        )
    return skipgrams.held_out_share > 0


def model_card(config: TrainWord2VecConfig, metrics: dict[str, Any], words: int, *, has_counts: bool) -> str:
    """Return the model card: what the vectors are, how they were trained, how to load them.

    `has_counts`: whether the folder has the words' counts.
    """
    rows, loaded, count = (
        "",
        f'KeyedVectors.load_word2vec_format(f"{{folder}}/{VECTORS_BIN}", binary=True)',
        "",
    )
    note = f"\nThere is no `{COUNTS}`, since a word contains white space; gensim derives counts from ranks.\n"
    if has_counts:
        rows = f"| `{COUNTS}` | word counts in the training text, for gensim's `fvocab` |\n"
        loaded = (
            f'KeyedVectors.load_word2vec_format(\n    f"{{folder}}/{VECTORS_BIN}", '
            f'fvocab=f"{{folder}}/{COUNTS}", binary=True\n)'
        )
        count, note = '\nvectors.get_vecattr(vectors.index_to_key[0], "count")', ""
    negatives = counted(config.negatives, "negative samples")
    if config.save_context:
        rows += f"| `{CONTEXTS_BIN}` | the context vectors, in word2vec's binary format |\n"
    return f"""# Word vectors

{counted(words, "words")}, {counted(config.dim, "dimensions")}, skip-gram with {negatives}.
{describe_training(metrics, metrics["unit"])}

| file | content |
|---|---|
| `model.safetensors` | `vectors`: float32, one row per word |
| `vocabulary.json` | word -> row |
| `{VECTORS_BIN}` | the same vectors in word2vec's binary format, for gensim |
{rows}| `config.json`, `metrics.json` | parameters and metrics of the training |
{note}
```python
from lexloom import WordVectors

folder = "this folder"
vectors = WordVectors.load(folder)
vectors.neighbours([vectors.words[0]], k=10)
```

```python
from gensim.models import KeyedVectors

folder = "this folder"
vectors = {loaded}
vectors.most_similar(vectors.index_to_key[0]){count}
```
{continue_in_gensim(config) if config.save_context and has_counts else ""}"""


def continue_in_gensim(config: TrainWord2VecConfig) -> str:
    """Return the model card's section on continuing in gensim, which follows the one that loads `vectors`."""
    return f"""
Continue training in gensim, on `sentences` (lists of words):

```python
from gensim.models import Word2Vec

contexts = KeyedVectors.load_word2vec_format(f"{{folder}}/{CONTEXTS_BIN}", binary=True)
model = Word2Vec(vector_size=vectors.vector_size, sg=1, negative={config.negatives}, min_count=1)
model.build_vocab_from_freq({{word: vectors.get_vecattr(word, "count") for word in vectors.index_to_key}})
model.wv.vectors[:] = vectors[model.wv.index_to_key]
model.syn1neg[:] = contexts[model.wv.index_to_key]
model.train(sentences, total_examples=len(sentences), epochs=1)
```
"""
