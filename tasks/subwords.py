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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from lexloom.models.tokenizer.bpe_ranks import PUBLISHED
from lexloom.models.tokenizer.tokenizer import Encoding, Tokenizer
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.sources.huggingface import NetworkError
from lexloom.tasks.sources.token_encodings import LocatedEncoding
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.shards import Result, ShardWriter, list_row_groups, map_in_order
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import COLUMN_ENCODING, SCHEMA, SHARD_BYTES, TOKEN_BYTES

ENCODINGS = [*PUBLISHED, "characters", "bytes"]
TOKENIZER = "tokenizer"
SCRATCH = "scratch"
SCRATCH_SCHEMA = pa.schema(
    [("tokens", pa.list_(pa.int32())), ("held_out", pa.bool_()), ("continues", pa.bool_())]
)
HASHES = 1 << 64
WHOLE = -1  # of a row that is not split

Part = Literal["train", "validation"]


class SubwordsConfig(BaseModel):
    """How text is tokenized, and what is held out for validation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    encoding: str = Field(
        "gpt2",
        description="Tokenization: gpt2, cl100k_base or o200k_base (tiktoken's byte-pair encodings),"
        " characters, or bytes.",
        json_schema_extra={"enum": list(ENCODINGS)},
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

    @model_validator(mode="after")
    def ranks_are_for_byte_pairs(self) -> Self:
        if self.ranks is not None and self.encoding not in PUBLISHED:
            raise ValueError(f"the encoding {self.encoding!r} has no ranks: omit ranks, or use gpt2")
        return self


# the encoding


def locate_encoding(config: SubwordsConfig) -> LocatedEncoding:
    """Return the config's encoding; raise FileNotFoundError if a file that it names does not exist."""
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
def subwords(corpus: Artifact, encoding: LocatedEncoding, config: SubwordsConfig, out: Path) -> Summary:
    """Encode documents to `train-*.parquet` and `validation-*.parquet`: `tokens: list<int32>`, a row per
    document.

    Also writes `vocabulary.parquet` (`word`, and its `count` in the training part; the row is the id) and
    `tokenizer/` (see `lexloom.models.tokenizer.tokenizer.Tokenizer.load`).

    Raises:
        ValueError: the corpus or a part is empty.
    """
    base = encoding.load()
    (scratch := out / SCRATCH).mkdir()
    encoded = encode_corpus(corpus, base, config, scratch)
    documents = encoded.documents
    split = DocumentSplit(scratch, encoded, config)
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
        unit="tokens",
        notes={
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


@dataclass
class EncodedCorpus:
    """Sizes of the scratch files.

    Attributes:
        rows: number of rows of the corpus, of which a long document has several.
        documents: number of documents.
        sizes: tokens of each row group.
        spans: documents of several rows: the number of their first row, and the tokens of each row.
    """

    rows: int = 0
    documents: int = 0
    sizes: list[int] = field(default_factory=list)
    spans: list[tuple[int, list[int]]] = field(default_factory=list)
    _continues: bool = False  # whether the last row continues
    _held_out: bool = False  # whether it is held out

    def add(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Count the next rows, and return them with the rows of a document in the part of its first row."""
        continues = batch["continues"].to_numpy(zero_copy_only=False)
        held_out = batch["held_out"].to_numpy(zero_copy_only=False).copy()
        inner = np.concatenate([[self._continues], continues[:-1]])
        lengths = np.diff(batch["tokens"].offsets.to_numpy())
        for row in np.flatnonzero(inner | continues).tolist():
            if inner[row]:
                held_out[row] = held_out[row - 1] if row else self._held_out
            else:
                self.spans.append((self.rows + row, []))
            self.spans[-1][1].append(int(lengths[row]))
        self._continues, self._held_out = bool(continues[-1]), bool(held_out[-1])
        self.rows += len(batch)
        self.documents += int(np.count_nonzero(~continues))
        self.sizes.append(int(lengths.sum()))
        return batch.set_column(1, "held_out", pa.array(held_out))


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


class DocumentSplit:
    """Splits the documents of the scratch files into the training and the validation part, in order.

    With `validation="tail"`, the document at the boundary is split in two. With "documents", the last share
    of every document that is longer than the whole validation part is held out, whatever its hash.
    """

    def __init__(self, scratch: Path, encoded: EncodedCorpus, config: SubwordsConfig) -> None:
        groups = [
            (path, group, metadata.row_group(group).num_rows)
            for path in sorted(scratch.glob("*.parquet"))
            for metadata in [pq.read_metadata(path)]
            for group in range(metadata.num_row_groups)
        ]
        total = sum(encoded.sizes)
        self._share = config.validation_share
        self._longest = max(config.validation_share * total, 1 / (config.validation_share or 1))
        self._kept = dict(self._cut_spans(encoded.spans))
        cut = int(total * (1 - config.validation_share)) if config.validation == "tail" else None
        tokens = np.cumsum([0, *encoded.sizes[:-1]]).tolist()
        rows = np.cumsum([0, *(count for _, _, count in groups[:-1])]).tolist()
        self._groups = [
            (path, group, first, None if cut is None else cut - before)
            for (path, group, _), first, before in zip(groups, rows, tokens, strict=True)
        ]

    def _cut_spans(self, spans: list[tuple[int, list[int]]]) -> Iterator[tuple[int, int]]:
        """Yield (row, tokens that stay in the training part) of documents whose end is held out."""
        for first, lengths in spans:
            if (total := sum(lengths)) <= self._longest:
                continue
            kept = total - round(self._share * total)
            for row, length in enumerate(lengths, first):
                yield row, min(max(kept, 0), length)
                kept -= length

    def map(self, work: Callable[[pa.ListArray], Result]) -> Iterator[tuple[Part, Result]]:
        """Apply `work` to each part of each row group, in threads; yield (part, result) in order."""

        def read(place: tuple[Path, int, int, int | None]) -> list[tuple[Part, Result]]:
            train, validation = self._read(*place)
            parts: list[tuple[Part, pa.ListArray]] = [("train", train), ("validation", validation)]
            return [(part, work(tokens)) for part, tokens in parts if len(tokens)]

        for parts in map_in_order(read, self._groups):
            yield from parts

    def _read(self, path: Path, group: int, first: int, cut: int | None) -> tuple[pa.ListArray, pa.ListArray]:
        """Return the two parts of a row group, of which `first` is the number of the first row."""
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group, ["tokens", "held_out"], use_threads=False).combine_chunks()
        tokens, held_out = (table[name].combine_chunks() for name in ("tokens", "held_out"))
        if cut is not None:
            return cut_at(tokens, cut)
        if self._share:
            lengths = np.diff(tokens.offsets.to_numpy())
            kept = np.where(lengths > self._longest, lengths - (self._share * lengths).round(), WHOLE)
            for row in range(len(kept)) if self._kept else ():
                kept[row] = self._kept.get(first + row, kept[row])
            tokens, held_out = hold_out_ends(tokens, held_out, kept.astype(np.int32))
        return tokens.filter(pc.invert(held_out)), tokens.filter(held_out)


def hold_out_ends(
    tokens: pa.ListArray, held_out: pa.BooleanArray, kept: NDArray[np.int32]
) -> tuple[pa.ListArray, pa.BooleanArray]:
    """Hold out all but the first `kept` tokens, (rows,), of each row; WHOLE leaves a row in its part."""
    offsets = tokens.offsets.to_numpy()
    cut = kept != WHOLE
    if not cut.any():
        return tokens, held_out
    inside = cut & (kept > 0) & (kept < np.diff(offsets))  # these rows are split in two
    cuts = (offsets[:-1] + kept)[inside]
    bounds = np.sort(np.concatenate([offsets, cuts]))
    whole = np.where(cut, kept == 0, held_out.to_numpy(zero_copy_only=False))
    parts = np.repeat(whole, 1 + inside)
    parts[np.searchsorted(bounds[:-1], cuts, side="right") - 1] = True
    return pa.ListArray.from_arrays(pa.array(bounds), tokens.values), pa.array(parts)


def cut_at(tokens: pa.ListArray, cut: int) -> tuple[pa.ListArray, pa.ListArray]:
    """Split at the first `cut` tokens; empty rows are removed."""
    values = tokens.values.to_numpy()
    offsets = tokens.offsets.to_numpy()
    cut = min(max(cut, 0), len(values))
    parts = []
    for start, end in ((0, cut), (cut, len(values))):
        bounds = np.unique(np.clip(offsets, start, end)) - start
        parts.append(pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(values[start:end])))
    return parts[0], parts[1]


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
    kept = base.keep((train + validation) > 0)
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
    """Load the tokenizer of a `subwords` artifact."""
    return Tokenizer.load(tokens.folder / TOKENIZER)
