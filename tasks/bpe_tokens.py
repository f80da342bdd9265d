"""Subwords: every document as the ids of its tokens, in a part to train on and one to validate on.

`locate_encoding` finds what the encoding is made of; the stage `subwords` encodes the corpus by row groups,
in threads, into a scratch file of base ids, splits it, counts the training part, and writes both parts,
renumbered where that is asked for. Memory is bounded by a few pieces of the corpus a thread.

Documents are held out by a hash of their text: the split does not depend on their order, a document keeps its
part when the corpus grows, and equal documents are never in both parts.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
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
from lexloom.tasks.sources.encoding import LocatedEncoding
from lexloom.tasks.sources.huggingface import NetworkError
from lexloom.tasks.store.artifacts import Artifact, RunOnly, Summary
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.shards import Result, ShardWriter, list_row_groups, map_in_order
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import COLUMN_ENCODING, SCHEMA, SHARD_BYTES, TOKEN_BYTES

ENCODINGS = [*PUBLISHED, "characters", "bytes"]
TOKENIZER = "tokenizer"
SCRATCH = "scratch"
SCRATCH_SCHEMA = pa.schema([("tokens", pa.list_(pa.int32())), ("held_out", pa.bool_())])
HASHES = 1 << 64

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
    # the located encoding carries the content's digest, so the same ranks elsewhere are the same
    ranks: Annotated[Path | None, RunOnly()] = Field(
        None,
        description="File of ranks (.tiktoken, or merges such as vocab.bpe) that replaces the published"
        " ranks of the byte-pair encoding; the encoding still splits text into words.",
    )
    compact: bool = Field(
        True, description="Renumber the tokens by frequency, and leave out those that do not occur."
    )
    join: bool = Field(
        True, description="End each document with an end-of-text token instead of a line feed."
    )
    validation_share: float = Field(
        0.1, ge=0, lt=1, description="Share of the text held out for validation; 0 holds out nothing."
    )
    validation: Literal["documents", "tail"] = Field(
        "documents",
        description="What to hold out: 'documents' selected by a hash of their text, or the 'tail' of the"
        " tokens.",
    )
    seed: int = Field(1, ge=0, lt=HASHES, description="Random seed of the selection of held-out documents.")

    @field_validator("encoding")
    @classmethod
    def is_known(cls, name: str) -> str:
        if name not in ENCODINGS:
            near = get_close_matches(name, ENCODINGS)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(f"there is no encoding {name!r}: say {', '.join(ENCODINGS)}{meant}")
        return name

    @model_validator(mode="after")
    def ranks_are_for_byte_pairs(self) -> Self:
        if self.ranks is not None and self.encoding not in PUBLISHED:
            raise ValueError(f"the encoding {self.encoding!r} has no ranks: leave ranks out, or say gpt2")
        return self


# the encoding


def locate_encoding(config: SubwordsConfig) -> LocatedEncoding:
    """Return the config's encoding; raise FileNotFoundError if a file that it names does not exist."""
    if config.ranks is not None:
        if not config.ranks.is_file():
            raise FileNotFoundError(
                f"the file of ranks {config.ranks} is not there: correct its path, or leave it out"
            )
        digest = hashlib.sha256(config.ranks.read_bytes()).hexdigest()
    elif config.encoding in PUBLISHED:
        digest = PUBLISHED[config.encoding].sha256
    else:
        digest = ""
    return LocatedEncoding(name=config.encoding, digest=digest, path=config.ranks)


# the stage


@stage(version=2, retry_on=NetworkError)
def subwords(corpus: Artifact, encoding: LocatedEncoding, config: SubwordsConfig, out: Path) -> Summary:
    """Encodes documents: `train-*.parquet` and `validation-*.parquet`, `tokens: list<int32>`, a row each.

    `vocabulary.parquet` (`word`, `count` in the training part; the id is the row) and `tokenizer/` (see
    `lexloom.models.tokenizer.tokenizer.Tokenizer.load`) go with them. Raises ValueError where the corpus or a
    part is empty.
    """
    base = encoding.load()
    (scratch := out / SCRATCH).mkdir()
    documents, sizes = encode_corpus(corpus, base, config, scratch)
    split = Split(scratch, sizes, config)
    counts = {part: np.zeros(base.size, np.int64) for part in ("train", "validation")}
    for part, found in split.pieces(lambda tokens: np.bincount(tokens.values, minlength=base.size)):
        counts[part] += found
    check_parts(counts["train"].sum(), counts["validation"].sum(), documents, config)
    tokenizer = Tokenizer(base, kept_ids(base, counts["train"], counts["validation"], config))
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
            "tokens for validation": validated,
            "documents split between training and validation": sum(rows.values()) - documents,
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


def encode_corpus(
    corpus: Artifact, base: Encoding, config: SubwordsConfig, scratch: Path
) -> tuple[int, list[int]]:
    """Writes base ids and who is held out; returns (documents, tokens of each row group)."""
    pieces = list_row_groups(corpus, "text", "continues")
    documents = 0
    sizes: list[int] = []
    with (
        ShardWriter(scratch, SHARD_BYTES, compression="lz4", column_encoding=COLUMN_ENCODING) as shards,
        fan_out(lambda piece: encode_piece(piece.read_batch(), base, config), pieces) as encoded,
        console.bar("subwords", total=len(pieces)) as bar,
    ):
        for done, batch in enumerate(encoded, start=1):
            if batch.num_rows:
                sizes.append(len(batch["tokens"].values))
                shards.write(batch, TOKEN_BYTES * sizes[-1])
            documents += batch.num_rows
            bar.update(done, counted(sum(sizes), "tokens"))
    if not sum(sizes):
        raise ValueError(
            f"there is no text in the {counted(documents, 'documents')} of the corpus: check its source"
        )
    return documents, sizes


def encode_piece(piece: pa.RecordBatch, base: Encoding, config: SubwordsConfig) -> pa.RecordBatch:
    """Base ids of some rows, each with what ends a document where one ends."""
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
    return pa.record_batch([tokens, pa.array(held_out)], schema=SCRATCH_SCHEMA)


class Split:
    """The scratch file's documents, in order, each in its part.

    In the tail's way, one is cut in two. When documents are drawn, one that is longer than all that is to be
    held out is cut as well: its last share is held out, whatever the draw said of it.
    """

    def __init__(self, scratch: Path, sizes: list[int], config: SubwordsConfig) -> None:
        """`sizes` are the tokens of each row group."""
        groups = [
            (path, group)
            for path in sorted(scratch.glob("*.parquet"))
            for group in range(pq.read_metadata(path).num_row_groups)
        ]
        self._share = config.validation_share
        self._longest = max(config.validation_share * sum(sizes), 1 / (config.validation_share or 1))
        cut = int(sum(sizes) * (1 - config.validation_share)) if config.validation == "tail" else None
        before = np.cumsum([0, *sizes[:-1]]).tolist()
        self._groups = [
            (path, group, None if cut is None else cut - start)
            for (path, group), start in zip(groups, before, strict=True)
        ]

    def pieces(self, work: Callable[[pa.ListArray], Result]) -> Iterator[tuple[Part, Result]]:
        """(part, what `work` makes of its documents in a row group), worked out in threads."""

        def read(place: tuple[Path, int, int | None]) -> list[tuple[Part, Result]]:
            train, validation = self._read(*place)
            parts: list[tuple[Part, pa.ListArray]] = [("train", train), ("validation", validation)]
            return [(part, work(tokens)) for part, tokens in parts if len(tokens)]

        for parts in map_in_order(read, self._groups):
            yield from parts

    def _read(self, path: Path, group: int, cut: int | None) -> tuple[pa.ListArray, pa.ListArray]:
        with pq.ParquetFile(path) as file:
            table = file.read_row_group(group, use_threads=False).combine_chunks()
        tokens, held_out = (table[name].combine_chunks() for name in SCRATCH_SCHEMA.names)
        if cut is not None:
            return cut_at(tokens, cut)
        if self._share:
            tokens, held_out = hold_out_ends(tokens, held_out, self._share, self._longest)
        return tokens.filter(pc.invert(held_out)), tokens.filter(held_out)


def hold_out_ends(
    tokens: pa.ListArray, held_out: pa.BooleanArray, share: float, longest: float
) -> tuple[pa.ListArray, pa.BooleanArray]:
    """Rows of more than `longest` tokens as two rows each; the second is the row's last `share`, held out."""
    offsets = tokens.offsets.to_numpy()
    lengths = np.diff(offsets)
    cut = lengths > longest
    if not cut.any():
        return tokens, held_out
    cuts = (offsets[1:] - (share * lengths).round().astype(np.int32))[cut]
    bounds = np.sort(np.concatenate([offsets, cuts]))
    parts = np.repeat(held_out.to_numpy(zero_copy_only=False) & ~cut, 1 + cut)
    parts[np.searchsorted(bounds[:-1], cuts, side="right") - 1] = True
    return pa.ListArray.from_arrays(pa.array(bounds), tokens.values), pa.array(parts)


def cut_at(tokens: pa.ListArray, cut: int) -> tuple[pa.ListArray, pa.ListArray]:
    """The first `cut` tokens, and the rest; no row is empty."""
    values = tokens.values.to_numpy()
    offsets = tokens.offsets.to_numpy()
    cut = min(max(cut, 0), len(values))
    parts = []
    for start, end in ((0, cut), (cut, len(values))):
        bounds = np.unique(np.clip(offsets, start, end)) - start
        parts.append(pa.ListArray.from_arrays(pa.array(bounds.astype(np.int32)), pa.array(values[start:end])))
    return parts[0], parts[1]


def check_parts(train: int, validation: int, documents: int, config: SubwordsConfig) -> None:
    """Raises ValueError where a part that was asked for is empty."""
    if config.validation_share and not validation:
        raise ValueError(
            f"nothing was held out for validation: a share of {config.validation_share} of {documents:,}"
            " documents; raise validation_share, set --validation tail, or set validation_share to 0 for none"
        )
    if not train:
        raise ValueError(
            f"nothing is left to train on: {counted(documents, 'documents')} of {documents:,} held out for"
            " validation; lower validation_share, or set --validation tail"
        )


def kept_ids(
    base: Encoding, train: NDArray[np.int64], validation: NDArray[np.int64], config: SubwordsConfig
) -> NDArray[np.int32] | None:
    """The base ids by their new id; None where they keep their numbers.

    Tokens of the validation part are kept too, behind those of the training part: both parts are encoded by
    one tokenizer, the one that all text is encoded by later.
    """
    if not config.compact and base.name != "characters":
        return None
    kept = base.keep((train + validation) > 0)
    if not config.compact:
        return kept
    return kept[np.lexsort((kept, -train[kept]))]


def write_parts(split: Split, tokenizer: Tokenizer, out: Path) -> tuple[int, dict[Part, int]]:
    """Writes both parts' shards; returns how many, and each part's documents."""
    rows: dict[Part, int] = {"train": 0, "validation": 0}

    def renumbered(tokens: pa.ListArray) -> pa.ListArray:
        ids = tokenizer.to_own_ids(tokens.values.to_numpy())
        return pa.ListArray.from_arrays(tokens.offsets, pa.array(ids))

    with (
        ShardWriter(out, SHARD_BYTES, "train", column_encoding=COLUMN_ENCODING) as train,
        ShardWriter(out, SHARD_BYTES, "validation", column_encoding=COLUMN_ENCODING) as validation,
    ):
        writers: dict[Part, ShardWriter] = {"train": train, "validation": validation}
        for part, tokens in split.pieces(renumbered):
            batch = pa.record_batch([tokens], schema=SCHEMA)
            writers[part].write(batch, TOKEN_BYTES * len(tokens.values))
            rows[part] += len(batch)
    return train.count + validation.count, rows


def write_vocabulary(tokenizer: Tokenizer, counts: NDArray[np.int64], out: Path) -> None:
    table = pa.table({"word": pa.array(tokenizer.display_names(), pa.string()), "count": counts})
    pq.write_table(table, out / "vocabulary.parquet", compression="zstd")


def read_tokenizer(tokens: Artifact) -> Tokenizer:
    """The tokenizer of a `subwords` artifact."""
    return Tokenizer.load(tokens.folder / TOKENIZER)
