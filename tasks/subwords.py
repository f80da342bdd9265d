"""Tokens of a language model: encodes documents and splits them into a training and a validation part.

`locate_encoding` locates the encoding. The stage `subwords` encodes the row groups of the corpus in threads,
writes base ids to a scratch file, splits it, counts the training part, and writes both parts, with compact
ids if requested. Memory is bounded by a few row groups per thread.

A document is held out by a hash of its text: the split does not depend on the order of documents, a document
stays in its part when the corpus grows, and equal documents are always in the same part. A document that is
longer than the whole validation part, such as a single long text, has its end held out instead.
"""

import hashlib
import shutil
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lexloom.models.tokenizer.bpe_ranks import PUBLISHED
from lexloom.models.tokenizer.bpe_training import MAX_VOCABULARY, MIN_VOCABULARY, NAME
from lexloom.models.tokenizer.tokenizer import Encoding, Tokenizer
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.document_split import SCRATCH_SCHEMA, DocumentSplit, EncodedCorpus, Part
from lexloom.tasks.sources.huggingface import NetworkError
from lexloom.tasks.sources.token_encodings import LocatedEncoding
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.shards import ShardWriter, list_row_groups
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import COLUMN_ENCODING, SCHEMA, SHARD_BYTES, TOKEN_BYTES

AUTO = "auto"
ENCODINGS = [AUTO, NAME, *PUBLISHED, "characters", "bytes"]
TOKENIZER = "tokenizer"
SCRATCH = "scratch"
HASHES = 1 << 64


class SubwordsConfig(BaseModel):
    """How text is tokenized, and what is held out for validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoding: str = Field(
        AUTO,
        description="Tokenization: 'bpe' (byte pairs trained on the corpus); gpt2, cl100k_base or o200k_base"
        " (tiktoken's byte pairs); characters; bytes; or 'auto', which is characters for less than 30 kB of"
        " text, and 'bpe' for more.",
        json_schema_extra={"enum": list(ENCODINGS)},
    )
    # not part of the key: the trained encoding has a key of its own
    vocab_size: Annotated[int | None, RunOnly()] = Field(
        None,
        description="Vocabulary size of the encoding 'bpe': the 256 bytes, merged tokens, and end of text"
        " (default: 1,024 to 16,384 by the size of the text).",
        json_schema_extra={"minimum": MIN_VOCABULARY, "maximum": MAX_VOCABULARY},
    )
    # not part of the key: the located encoding has a key of its own, computed from its content
    ranks: Annotated[Path | None, RunOnly()] = Field(
        None,
        description="File of merge ranks (.tiktoken, or merges such as vocab.bpe) that replaces the published"
        " ranks of the byte-pair encoding; its pre-tokenization pattern still applies.",
    )
    compact: bool = Field(
        True, description="Keep only tokens that occur in the corpus, and renumber them by frequency."
    )
    join: bool = Field(
        True, description="End each document with an end-of-text token instead of a line feed."
    )
    validation_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the text held out for validation; 0 holds out nothing."
    )
    validation: Literal["documents", "tail"] = Field(
        "documents",
        description="What to hold out: 'documents' selected by a hash of their text, or the last tokens of"
        " the corpus ('tail').",
    )
    seed: int = Field(1, ge=0, lt=HASHES, description="Random seed for the selection of held-out documents.")

    @field_validator("encoding")
    @classmethod
    def is_known(cls, name: str) -> str:
        if name not in ENCODINGS:
            near = get_close_matches(name, ENCODINGS)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"there is no encoding {name!r}: use {', '.join(ENCODINGS)}{meant}")
        return name

    @field_validator("vocab_size")
    @classmethod
    def vocabulary_has_all_bytes(cls, number: int | None) -> int | None:
        if number is not None and not MIN_VOCABULARY <= number <= MAX_VOCABULARY:
            raise ValueError(
                f"must be from {MIN_VOCABULARY} (the 256 bytes and end of text) to {MAX_VOCABULARY:,}"
            )
        return number

    @model_validator(mode="after")
    def options_apply_to_the_encoding(self) -> Self:
        if self.ranks is not None and self.encoding not in PUBLISHED:
            raise ValueError(
                f"ranks do not apply to the encoding {self.encoding!r}: omit ranks, or set --encoding gpt2"
            )
        if self.vocab_size is not None and self.encoding != NAME:
            raise ValueError(
                f"vocab_size does not apply to the encoding {self.encoding!r}: omit vocab_size, or set"
                f" --encoding {NAME}"
            )
        return self


# the encoding


def locate_encoding(config: SubwordsConfig) -> LocatedEncoding:
    """Return an encoding that does not depend on the corpus; see also `find_encoding`.

    Raises:
        FileNotFoundError: a file that the config names does not exist.
        ValueError: the encoding depends on the corpus.
    """
    if config.encoding in (AUTO, NAME):
        raise ValueError(
            f"the encoding {config.encoding!r} depends on the corpus: use choose_encoding and find_encoding"
            " of lexloom.tasks.train_tokenizer"
        )
    if config.ranks is not None:
        if not config.ranks.is_file():
            raise FileNotFoundError(
                f"the file of ranks {config.ranks} does not exist: correct its path, or omit it"
            )
        digest = hashlib.sha256(config.ranks.read_bytes()).hexdigest()
    elif config.encoding in PUBLISHED:
        digest = PUBLISHED[config.encoding].sha256
    else:
        digest = ""
    return LocatedEncoding(name=config.encoding, digest=digest, path=config.ranks)


# the stage


@stage(version=3, retry_on=NetworkError)
def subwords(
    corpus: Artifact, encoding: LocatedEncoding | Artifact, config: SubwordsConfig, out: Path
) -> Summary:
    """Encode documents to `train-*.parquet` and `validation-*.parquet`: `tokens: list<int32>`, a row per
    document.

    Also writes `vocabulary.parquet` (`word`, and its `count` in the training part; the row is the id) and
    `tokenizer/` (see `lexloom.models.tokenizer.tokenizer.Tokenizer.load`).

    Raises:
        ValueError: the corpus or a part is empty.
    """
    base = read_tokenizer(encoding).encoding if isinstance(encoding, Artifact) else encoding.load()
    (scratch := out / SCRATCH).mkdir()
    encoded = encode_corpus(corpus, base, config, scratch)
    documents = encoded.documents
    tail = config.validation == "tail"
    split = DocumentSplit(scratch, encoded, config.validation_share, tail=tail)
    counts = {part: np.zeros(base.size, np.int64) for part in ("train", "validation")}
    for part, found in split.map(lambda tokens: np.bincount(tokens.values, minlength=base.size)):
        counts[part] += found
    check_parts(counts["train"].sum(), counts["validation"].sum(), documents, config)
    tokenizer = Tokenizer(base, select_ids(base, counts["train"], counts["validation"], config))
    shards, rows = write_parts(split, tokenizer, out)
    shutil.rmtree(scratch)
    tokenizer.save(out / TOKENIZER)
    if tokenizer.base_ids is not None:
        counts = {part: found[tokenizer.base_ids] for part, found in counts.items()}
    write_vocabulary(tokenizer, counts["train"], out)
    lengths = tokenizer.byte_lengths()
    trained, validated = int(counts["train"].sum()), int(counts["validation"].sum())
    return Summary(
        rows_in=documents,
        unit_in="documents",
        rows=trained + validated,
        unit=base.name if base.name in ("characters", "bytes") else f"tokens ({base.name})",
        notes={
            "tokens in the vocabulary": tokenizer.size,
            "tokens held out for validation": validated,
            "documents whose end is held out": sum(rows.values()) - encoded.rows,
        },
        facts={
            "tokens": trained,
            "validation_tokens": validated,
            "bytes": int(counts["train"] @ lengths),
            "validation_bytes": int(counts["validation"] @ lengths),
            "documents": rows["train"],
            "validation_documents": rows["validation"],
            "vocabulary": tokenizer.size,
            "occurring": int(np.count_nonzero(counts["train"])),
            "encoding": base.name,
            "end_of_text": tokenizer.end_of_text,
            "shards": shards,
            **corpus.normalization,
        },
    )


def encode_corpus(corpus: Artifact, base: Encoding, config: SubwordsConfig, scratch: Path) -> EncodedCorpus:
    """Write base ids and the held-out flags of the corpus's rows."""
    pieces = list_row_groups(corpus, "text", "continues")
    found = EncodedCorpus()
    with (
        ShardWriter(scratch, SHARD_BYTES, compression="lz4", column_encoding=COLUMN_ENCODING) as shards,
        fan_out(lambda piece: encode_piece(piece.read_batch(), base, config), pieces) as encoded,
        console.bar("subwords", total=len(pieces)) as bar,
    ):
        for done, batch in enumerate(encoded, start=1):
            if batch.num_rows:
                batch = found.add(batch)
                shards.write(batch, TOKEN_BYTES * found.sizes[-1])
            bar.update(done, counted(sum(found.sizes), "tokens"))
    if not sum(found.sizes):
        raise ValueError(
            f"the {counted(found.documents, 'documents')} of the corpus contain no text: check its source"
        )
    return found


def encode_piece(piece: pa.RecordBatch, base: Encoding, config: SubwordsConfig) -> pa.RecordBatch:
    """Encode some rows to base ids; a row that ends a document gets an end-of-text token or a line feed."""
    texts = piece["text"]
    held_out = np.zeros(len(texts), np.bool_)
    most = int(config.validation_share * HASHES) if config.validation == "documents" else 0
    end = np.array([base.end_of_text], np.int32)
    ids: list[NDArray[np.int32]] = []
    lengths = np.zeros(len(texts) + 1, np.int64)
    for row, (text, continues) in enumerate(
        zip(texts.to_pylist(), piece["continues"].to_pylist(), strict=True)
    ):
        separated = continues or config.join or text.endswith("\n")
        encoded = base.encode(text if separated else f"{text}\n")
        ids.append(encoded)
        lengths[row + 1] = len(encoded)
        if config.join and not continues:
            ids.append(end)
            lengths[row + 1] += 1
        held_out[row] = most and xxhash.xxh3_64_intdigest(text.encode(), config.seed) < most
    values = np.concatenate(ids) if ids else np.empty(0, np.int32)
    offsets = pa.array(lengths.cumsum().astype(np.int32))
    tokens = pa.ListArray.from_arrays(offsets, pa.array(values))
    return pa.record_batch([tokens, pa.array(held_out), piece["continues"]], schema=SCRATCH_SCHEMA)


def check_parts(train: int, validation: int, documents: int, config: SubwordsConfig) -> None:
    """Raise ValueError if a requested part is empty."""
    if config.validation_share and not validation:
        raise ValueError(
            f"no document is held out for validation (a share of {config.validation_share} of {documents:,}"
            " documents): raise validation_share, set --validation tail, or set validation_share to 0"
        )
    if not train:
        raise ValueError(
            f"no training documents remain: {counted(documents, 'documents')} of {documents:,} held out for"
            " validation; lower validation_share, or set --validation tail"
        )


def select_ids(
    base: Encoding, train: NDArray[np.int64], validation: NDArray[np.int64], config: SubwordsConfig
) -> NDArray[np.int32] | None:
    """Return the base id of each new id; None if base ids are kept.

    Tokens that occur only in the validation part follow those of the training part, since one tokenizer
    encodes both parts and all later text.
    """
    if not config.compact and base.name != "characters":
        return None
    occurs = (train + validation) > 0
    if base.name == NAME:
        occurs[:] = True  # the vocabulary was made for this corpus
    kept = base.keep(occurs)
    if not config.compact:
        return kept
    return kept[np.lexsort((kept, -train[kept]))]


def write_parts(split: DocumentSplit, tokenizer: Tokenizer, out: Path) -> tuple[int, dict[Part, int]]:
    """Write the shards of both parts; return their number, and the number of documents per part."""
    rows: dict[Part, int] = {"train": 0, "validation": 0}

    def renumber(tokens: pa.ListArray) -> pa.ListArray:
        ids = tokenizer.to_own_ids(tokens.values.to_numpy())
        return pa.ListArray.from_arrays(tokens.offsets, pa.array(ids))

    with (
        ShardWriter(out, SHARD_BYTES, "train", column_encoding=COLUMN_ENCODING) as train,
        ShardWriter(out, SHARD_BYTES, "validation", column_encoding=COLUMN_ENCODING) as validation,
    ):
        writers: dict[Part, ShardWriter] = {"train": train, "validation": validation}
        for part, tokens in split.map(renumber):
            batch = pa.record_batch([tokens], schema=SCHEMA)
            writers[part].write(batch, TOKEN_BYTES * len(tokens.values))
            rows[part] += len(batch)
    return train.count + validation.count, rows


def write_vocabulary(tokenizer: Tokenizer, counts: NDArray[np.int64], out: Path) -> None:
    table = pa.table({"word": pa.array(tokenizer.display_names(), pa.string()), "count": counts})
    pq.write_table(table, out / "vocabulary.parquet", compression="zstd")


def read_tokenizer(tokens: Artifact) -> Tokenizer:
    """Load the tokenizer of a `subwords` or `train_tokenizer` artifact."""
    return Tokenizer.load(tokens.folder / TOKENIZER)
