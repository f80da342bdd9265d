"""The encoding of a language model's text: chosen by the corpus's size, and trained if it is byte pairs.

`choose_encoding` replaces `auto`. `find_encoding` returns the encoding that the stage `subwords` needs: a
published one, characters or bytes, or the artifact of the stage `train_tokenizer`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.tokenizer.bpe_training import MAX_VOCABULARY, MIN_VOCABULARY, NAME, train_byte_pairs
from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted, size
from lexloom.tasks.sources.token_encodings import LocatedEncoding
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.shards import RowGroup, list_row_groups
from lexloom.tasks.store.stage import stage
from lexloom.tasks.subwords import AUTO, TOKENIZER, SubwordsConfig, locate_encoding

SAMPLE_BYTES = 1 << 26  # of text that ranks are trained on: more changes few merges, and takes minutes
CHARACTERS_BELOW = 30_000  # bytes of text; of more text, byte pairs gave fewer bits per byte
# (bytes of text, default vocabulary size of less text)
VOCABULARY_SIZES = ((300_000, 1024), (3_000_000, 4096), (30_000_000, 8192))
LARGEST_VOCABULARY = 16_384


class TokenizerConfig(BaseModel):
    """Training of byte-pair ranks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    vocab_size: int | None = Field(
        None,
        ge=MIN_VOCABULARY,
        le=MAX_VOCABULARY,
        description="Number of tokens; None chooses it by the size of the text.",
    )


def choose_encoding(corpus: Artifact, config: SubwordsConfig) -> SubwordsConfig:
    """Return the config with `auto` replaced: characters for a small corpus, otherwise its own byte pairs."""
    if config.encoding != AUTO:
        return config
    few = cast(int, corpus.facts["bytes"]) < CHARACTERS_BELOW
    return config.model_copy(update={"encoding": "characters" if few else NAME})


def find_encoding(corpus: Artifact, config: SubwordsConfig) -> LocatedEncoding | Artifact:
    """Return the config's encoding; byte pairs are trained on the corpus.

    Raises FileNotFoundError if a file that the config names does not exist.
    """
    if config.encoding == NAME:
        return train_tokenizer(corpus, config=TokenizerConfig(vocab_size=config.vocab_size))
    return locate_encoding(config)


@stage(version=1)
def train_tokenizer(corpus: Artifact, config: TokenizerConfig, out: Path) -> Summary:
    """Train byte-pair ranks on the corpus, and write them to `tokenizer/`.

    Of a large corpus, evenly spaced row groups are read. They include held-out documents, which are selected
    later.

    Raises:
        ValueError: the text has too few distinct pairs for the vocabulary size.
    """
    total = cast(int, corpus.facts["bytes"])
    requested = config.vocab_size or default_size(total)
    groups = list_row_groups(corpus, "text")
    chosen = groups[:: -(-total // SAMPLE_BYTES) or 1]
    sample = Sample(chosen)
    encoding = train_byte_pairs(sample, requested)
    if config.vocab_size is not None and encoding.size < config.vocab_size:
        raise ValueError(
            f"the corpus ({size(sample.bytes)} of text) supports at most {counted(encoding.size, 'tokens')},"
            f" but vocab_size is {config.vocab_size}: lower vocab_size to {encoding.size} or less, or use"
            " more text"
        )
    Tokenizer(encoding).save(out / TOKENIZER)
    return Summary(
        rows_in=sample.bytes,
        unit_in="bytes",
        rows=encoding.size,
        unit="tokens in the vocabulary",
        dropped={"bytes not sampled": total - sample.bytes},
        facts={"vocabulary": encoding.size, **corpus.normalization},
    )


def default_size(text_bytes: int) -> int:
    """Return the default vocabulary size for a text."""
    return next((most for below, most in VOCABULARY_SIZES if text_bytes < below), LARGEST_VOCABULARY)


class Sample:
    """The texts of row groups, which are read while they are iterated; counts their bytes."""

    def __init__(self, groups: list[RowGroup]) -> None:
        self._groups = groups
        self.bytes = 0

    def __iter__(self) -> Iterator[str]:
        with console.bar("train_tokenizer", total=len(self._groups)) as bar:
            for done, group in enumerate(self._groups, start=1):
                for text in group.read().to_pylist():
                    self.bytes += len(text.encode())
                    yield text
                bar.update(done, size(self.bytes))
