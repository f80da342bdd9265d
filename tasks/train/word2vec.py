"""The training stage of word vectors.

A model folder holds `model.safetensors`, `vocabulary.json`, `config.json`, `metrics.json`, a model card and
the files for gensim (`word2vec.bin`, `word2vec.vocab`, and `contexts.bin` if requested).
"""

from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lexloom.models.registry import KIND
from lexloom.models.word2vec.family import FAMILY
from lexloom.models.word2vec.skipgram import SkipGrams, keep_thresholds
from lexloom.models.word2vec.trainable import Word2Vec, Word2VecFromTokens
from lexloom.models.word2vec.vectors import WordVectors, has_white_space, save_word2vec_counts
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.negative_sampling import read_noise
from lexloom.tasks.pairs import PairsConfig, SkipGramsConfig
from lexloom.tasks.store.artifacts import Artifact, Summary, canonical
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import count_documents, training_files
from lexloom.tasks.train.outputs import describe_training, save_records, summarize, write_json
from lexloom.tasks.train.run import LANES, TrainConfig, plan_job, run_job
from lexloom.tasks.vocabulary import read_vocabulary
from lexloom.training.sync.config import SyncConfig

DOCUMENTS_AT_ONCE = 1 << 20
# minimum length of a step's part per lane; about 1 pair in 100 is lost at the boundaries of steps
WINDOWS_PER_LANE = 64
# read by gensim: word2vec's binary format, and the counts
VECTORS, CONTEXTS, COUNTS = "word2vec.bin", "contexts.bin", "word2vec.vocab"


def default_batch_size(workers: int = 1, device: str = "cpu", **_: object) -> int:
    if workers > 1:
        return 32_768
    return 1 << 20 if device == "cuda" else 131_072


class TrainWord2VecConfig(TrainConfig):
    """Skip-gram with negative sampling (Mikolov et al., 2013)."""

    # several workers synchronise after each step, which must happen often (benchmarks/LOG.md)
    batch_size: int = Field(
        default_factory=lambda given: default_batch_size(**given),
        ge=LANES,
        description="Global batch size: pairs per step, over all workers. If not given, 131072 for one worker"
        " on a CPU, 1048576 for one on a GPU, and 32768 for several workers. With streamed pairs it is"
        f" approximate, and at least the pairs of {LANES * WINDOWS_PER_LANE} windows.",
    )
    dim: int = Field(100, ge=1, le=4096, description="Dimension of the word vectors.")
    negatives: int = Field(5, ge=1, le=100, description="Negative samples per target.")
    # not word2vec's 0.025: at one and at five epochs 0.05 gives better vectors (benchmarks/LOG.md)
    learning_rate: float = Field(0.05, gt=0, le=10, description="Initial learning rate.")
    min_learning_rate: float = Field(
        0.0001, ge=0, le=10, description="Final learning rate; the decay is linear."
    )
    sync_period: int = Field(
        1, ge=1, description="Number of steps between synchronizations of the frequent words' rows."
    )
    sync_rare_period: int = Field(
        16, ge=1, description="Number of steps between synchronizations of all rows."
    )
    frequent_words: int = Field(
        1000, ge=0, description="Number of most frequent words that are synchronized every sync_period steps."
    )
    # two workers are stable without; four diverge (benchmarks/LOG.md)
    sync_cap: float = Field(
        2.0,
        ge=1,
        le=LANES,
        description="Maximum norm of a row's summed update, as a multiple of the workers' mean update; no"
        " effect with this many workers or fewer.",
    )
    programs: int | None = Field(
        None,
        ge=1,
        description="Number of target words that a GPU processes concurrently. More are faster, but too many"
        " degrade the vectors, because concurrent words do not see each other's updates; if not given, the"
        " largest number that does not.",
    )
    save_context: bool = Field(
        False,
        description="Also write the context vectors (contexts.bin), with which gensim can continue training;"
        " this doubles the size of the folder.",
    )

    @model_validator(mode="after")
    def rates_fall_and_periods_fit(self) -> Self:
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}:"
                " lower it"
            )
        if self.sync_rare_period < self.sync_period:
            raise ValueError(
                f"sync_rare_period {self.sync_rare_period} is below sync_period {self.sync_period}:"
                " rare words can't be synchronised more often than frequent ones"
            )
        if self.threads > 1 and self.device == "cuda":
            raise ValueError(
                "threads only apply to a CPU: omit --threads with --device cuda (use --programs)"
            )
        if self.programs is not None and self.device != "cuda":
            raise ValueError("programs only apply to a GPU: use --device cuda, or omit --programs")
        return self

    def reading(self, pairs: PairsConfig) -> "TrainWord2VecConfig":
        """Return the config for the mode of pairs; streamed pairs are drawn during training."""
        if pairs.mode == "stored":
            return self
        skipgrams = SkipGramsConfig(**pairs.model_dump(include=set(SkipGramsConfig.model_fields)))
        return TrainFromTokensConfig(**self.model_dump(), pairs=skipgrams)


class TrainFromTokensConfig(TrainWord2VecConfig):
    """Skip-gram whose pairs are drawn from tokens during training."""

    pairs: SkipGramsConfig


@stage(version=4)
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
    columns: tuple[str, ...] = ("target", "context")
    own: dict[str, Any] = {}
    make_model: partial[Any] = partial(
        Word2Vec,
        *read_noise(noise),
        dim=config.dim,
        negatives=config.negatives,
        learning_rate=config.learning_rate,
        min_learning_rate=config.min_learning_rate,
        seed=config.seed,
        threads=config.threads,
        programs=config.programs,
    )
    sync = SyncConfig("rotation")
    unit = "pairs"
    if isinstance(config, TrainFromTokensConfig):
        skipgrams = make_skipgrams(config.pairs, counts)
        make_model = partial(Word2VecFromTokens, skipgrams, *make_model.args, **make_model.keywords)
        unit, columns, own = "tokens", ("tokens",), streaming_fields(skipgrams, pairs, counts, config)
    job = plan_job(config, make_model, pairs, columns, [noise, vocabulary], scratch, sync, **own)
    metrics, tensors = run_job(job, config, unit)
    if metrics["loss"] == 0:  # there was no pair
        raise ValueError(
            f"no pair can be made of {counted(metrics['examples'], unit)}: no document keeps two words."
            " Make the documents longer, lower min_count, or set --subsample 0"
        )
    metrics["unit"] = unit
    vectors = WordVectors(words.to_pylist(), tensors["vectors"][:, : config.dim])
    vectors.save(out)
    vectors.save_word2vec(out / VECTORS, binary=True)
    with_spaces = sum(map(has_white_space, vectors.words))
    if not with_spaces:
        save_word2vec_counts(vectors.words, counts.tolist(), out / COUNTS)
    if config.save_context:
        contexts = WordVectors(vectors.words, tensors["contexts"][:, : config.dim])
        contexts.save_word2vec(out / CONTEXTS, binary=True)
    write_json(out / "config.json", {KIND: FAMILY.kind, **canonical(config), **vocabulary.normalization})
    save_records(out, metrics, model_card(config, metrics, len(words), has_counts=not with_spaces))
    notes = {f"words with white space, so no {COUNTS}": with_spaces} if with_spaces else {}
    return summarize(metrics, unit, len(words), "word vectors", notes=notes)


def make_skipgrams(config: SkipGramsConfig, counts: NDArray[np.int64]) -> SkipGrams:
    return SkipGrams(
        keep_thresholds=keep_thresholds(counts, config.subsample),
        window=config.window,
        shrink_window=config.shrink_window,
        seed=config.seed,
        held_out_share=config.validation_share,
    )


def streaming_fields(
    skipgrams: SkipGrams, tokens: Artifact, counts: NDArray[np.int64], config: TrainFromTokensConfig
) -> dict[str, Any]:
    """Return the job's fields for drawing pairs from tokens: the token shards, and the tokens of a step.

    A step has about as many tokens as make `batch_size` pairs, and more if the lanes' parts would be short in
    comparison with the window. If subsampling leaves less than one pair per token, it has `batch_size`
    tokens, so that memory stays bounded.

    Raises:
        ValueError: a validation share is set, but no document is held out.
    """
    files = tuple(training_files(tokens))
    documents = count_documents(list(files))
    pieces = (
        np.arange(i, min(i + DOCUMENTS_AT_ONCE, documents)) for i in range(0, documents, DOCUMENTS_AT_ONCE)
    )
    if skipgrams.held_out_share and not any(skipgrams.held_out(piece).any() for piece in pieces):
        raise ValueError(
            f"none of {counted(documents, 'documents')} is held out: raise validation_share, or set it to 0"
        )
    tokens_per_step = round(config.batch_size / max(1.0, skipgrams.pairs_per_token(counts)))
    return {
        "files": files,
        "validation": files if skipgrams.held_out_share else (),
        "batch_size": max(tokens_per_step, LANES * WINDOWS_PER_LANE * skipgrams.window),
    }


def model_card(config: TrainWord2VecConfig, metrics: dict[str, Any], words: int, *, has_counts: bool) -> str:
    """Return the model card: what the vectors are, how they were trained, how to load them.

    `has_counts`: whether the folder has the words' counts.
    """
    rows, loaded, count = "", f'KeyedVectors.load_word2vec_format(f"{{folder}}/{VECTORS}", binary=True)', ""
    note = f"\nThere is no `{COUNTS}`, since a word contains white space; gensim derives counts from ranks.\n"
    if has_counts:
        rows = f"| `{COUNTS}` | word counts in the training text, for gensim's `fvocab` |\n"
        loaded = (
            f'KeyedVectors.load_word2vec_format(\n    f"{{folder}}/{VECTORS}", fvocab=f"{{folder}}/{COUNTS}",'
            " binary=True\n)"
        )
        count, note = '\nvectors.get_vecattr(vectors.index_to_key[0], "count")', ""
    if config.save_context:
        rows += f"| `{CONTEXTS}` | the context vectors, in word2vec's binary format |\n"
    return f"""# Word vectors

{words:,} words, {config.dim} dimensions, skip-gram with {config.negatives} negative samples.
{describe_training(metrics, metrics["unit"])}

| file | content |
|---|---|
| `model.safetensors` | `vectors`: float32, one row per word |
| `vocabulary.json` | word -> row |
| `{VECTORS}` | the same vectors in word2vec's binary format, for gensim |
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

contexts = KeyedVectors.load_word2vec_format(f"{{folder}}/{CONTEXTS}", binary=True)
model = Word2Vec(vector_size=vectors.vector_size, sg=1, negative={config.negatives}, min_count=1)
model.build_vocab_from_freq({{word: vectors.get_vecattr(word, "count") for word in vectors.index_to_key}})
model.wv.vectors[:] = vectors[model.wv.index_to_key]
model.syn1neg[:] = contexts[model.wv.index_to_key]
model.train(sentences, total_examples=len(sentences), epochs=1)
```
"""
