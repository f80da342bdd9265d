"""Reads a source in pieces of a few MB, and counts what was dropped or altered.

A piece has the columns `text`, `label` (if requested), `document` (the document's number in the source) and
`part` (whether the row is only a part of it). Documents longer than `max_document_bytes` are split at spaces.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lexloom.tasks.display.formatting import counted
from lexloom.tasks.readers.raw import InvalidText, RawBatch, ReadOptions, decode
from lexloom.tasks.sources.source import Source

PIECE_BYTES = 1 << 22  # of text that a thread processes at once; also the size of a row group
MANY_DOCUMENTS = 1000  # after which the share of invalid documents is checked


@dataclass(frozen=True)
class Limits:
    """Limits on what is read, and the handling of invalid text."""

    documents: int | None
    document_bytes: int
    invalid: InvalidText


class SourceReader:
    """Reads a source once; its counts are final when `pieces` is exhausted."""

    def __init__(self, source: Source, options: ReadOptions, limits: Limits) -> None:
        self._source, self._options, self._limits = source, options, limits
        self.position = 0
        self.documents = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.label_names: list[str] | None = None
        self._invalid = 0
        self._unfinished = False  # the last document continues in the next batch
        self._last_split = -1  # the last document that was counted as split

    def pieces(self) -> Iterator[pa.RecordBatch]:
        """Yield batches of about PIECE_BYTES of text, in the source's order."""
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
        limit = self._limits.documents
        for raw in self._source.batches(self._options):
            self.position = raw.position
            self.notes += raw.notes
            if not len(raw.text):
                continue
            if limit is not None:
                raw = raw.first(limit - self.documents + self._unfinished)
            self._check_names(raw)
            yield self._split_long(self._numbered(raw))
            if self.documents == limit and not self._unfinished:
                break
            if self.documents >= MANY_DOCUMENTS:
                self._refuse_mostly_invalid()
        self._refuse_mostly_invalid()

    def _check_names(self, raw: RawBatch) -> None:
        self.label_names = self.label_names or raw.label_names
        if raw.label_names not in (None, self.label_names):
            raise ValueError(
                f"the label names change from {self.label_names} to {raw.label_names} at {raw.where(0)}: make"
                " them the same, or read the files separately"
            )

    def _numbered(self, raw: RawBatch) -> pa.RecordBatch:
        """Decode a batch, drop documents without text, and number the rest."""
        text, invalid = decode(raw, self._limits.invalid)
        rows = len(text)
        numbers = np.arange(rows) + self.documents - self._unfinished
        part = np.zeros(rows, np.bool_)
        part[0] |= self._unfinished
        part[-1] |= raw.unfinished
        self.documents, self._unfinished = int(numbers[-1]) + 1, raw.unfinished
        self._invalid += invalid.total()
        self.dropped["null"] += text.null_count
        if self._limits.invalid == "drop":
            self.dropped["null"] -= invalid.total()
            self.dropped += invalid
        else:
            for what, count in invalid.items():
                self.notes[f"documents with replaced bytes ({what})"] += count
        columns = {"text": text, "document": pa.array(numbers), "part": pa.array(part)}
        if raw.labels is not None:
            columns["label"] = raw.labels
        batch = pa.record_batch(columns)
        return batch.filter(text.is_valid()) if text.null_count else batch

    def _split_long(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        batch, _ = split_long(batch, self._limits.document_bytes)
        self._count_parts(batch)
        return batch

    def _count_parts(self, batch: pa.RecordBatch) -> None:
        of = batch["document"].filter(batch["part"]).to_numpy()
        if len(of):
            self.notes["long documents split"] += len(np.unique(of)) - (of[0] == self._last_split)
            self.notes["resulting parts"] += len(of)
            self._last_split = of[-1]

    def _refuse_mostly_invalid(self) -> None:
        """Raise ValueError if most documents are invalid, since the encoding is then probably wrong."""
        if 2 * self._invalid > self.documents:
            raise ValueError(
                f"{self._invalid:,} of {counted(self.documents, 'documents')} of {self._source.name} are"
                " invalid in the assumed encoding: set --text-encoding (--invalid-utf8"
                f" {self._limits.invalid} is only for a few invalid bytes)"
            )


def split_long(batch: pa.RecordBatch, most: int) -> tuple[pa.RecordBatch, int]:
    """Split texts longer than `most` bytes into rows marked as parts; return the batch and their count."""
    if (pc.max(pc.binary_length(batch["text"])).as_py() or 0) <= most:
        return batch, 0
    parts: list[bytes] = []
    rows: list[int] = []
    for row, text in enumerate(batch["text"].cast(pa.binary()).to_pylist()):
        cut = list(split_at_spaces(text, most))
        parts += cut
        rows += [row] * len(cut)
    counts = np.bincount(rows)
    others = batch.drop_columns(["text"]).take(pa.array(rows))
    columns = {"text": pa.array(parts, pa.binary()).cast(pa.string())}
    columns |= {name: others[name] for name in others.schema.names}
    columns["part"] = pc.or_(others["part"], pa.array(counts[rows] > 1))
    return pa.record_batch(columns), int(np.count_nonzero(counts > 1))


def split_at_spaces(text: bytes, most: int) -> Iterator[bytes]:
    """Yield parts of at most `most` bytes that end at a space, or between characters if none is near."""
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
    """Yield slices of about PIECE_BYTES of text."""
    ends = np.cumsum(pc.binary_length(batch["text"]).to_numpy(zero_copy_only=False))
    start = 0
    while start < batch.num_rows:
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + PIECE_BYTES, side="right")))
        yield batch.slice(start, end - start)
        start = end
