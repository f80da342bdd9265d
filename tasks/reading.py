"""A source being read: documents in pieces of a few MB, and the count of all that was dropped or altered.

A piece has the columns `text`, `label` where one is wanted, `document`, the document's number in the source,
and `part`, whether the row is but a part of it. A document longer than `max_document_bytes` is cut at spaces.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tasks.figures import counted
from tasks.raw import InvalidText, Options, Raw, decode
from tasks.source import Source

PIECE_BYTES = 1 << 22  # of text that a thread works on at once; also a row group's size
MANY_DOCUMENTS = 1000  # by which it shows whether the encoding is right


@dataclass(frozen=True)
class Limits:
    """How much is read, and what becomes of text that is invalid or too long."""

    documents: int | None
    document_bytes: int
    invalid: InvalidText


class Reading:
    """Reads a source once; its counts are final when `pieces` is through."""

    def __init__(self, source: Source, options: Options, limits: Limits) -> None:
        self._source, self._options, self._limits = source, options, limits
        self.position = 0
        self.documents = 0
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.label_names: list[str] | None = None
        self._invalid = 0
        self._unfinished = False  # the last document goes on in the next batch
        self._last_cut = -1  # the last document that was counted as cut

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
        limit = self._limits.documents
        for raw in self._source.batches(self._options):
            self.position = raw.position
            self.notes += raw.notes
            if not len(raw.text):
                continue
            if limit is not None:
                raw = raw.first(limit - self.documents + self._unfinished)
            self._check_names(raw)
            yield self._cut_long(self._numbered(raw))
            if self.documents == limit and not self._unfinished:
                break
            if self.documents >= MANY_DOCUMENTS:
                self._refuse_mostly_invalid()
        self._refuse_mostly_invalid()

    def _check_names(self, raw: Raw) -> None:
        self.label_names = self.label_names or raw.label_names
        if raw.label_names not in (None, self.label_names):
            raise ValueError(
                f"the labels are called {raw.label_names} from {raw.where(0)} on, and were called"
                f" {self.label_names} before: make them the same, or read one source of them alone"
            )

    def _numbered(self, raw: Raw) -> pa.RecordBatch:
        """The documents as text, without those that have none, with their numbers."""
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
                self.notes[f"with bytes replaced that were {what}"] += count
        columns = {"text": text, "document": pa.array(numbers), "part": pa.array(part)}
        if raw.labels is not None:
            columns["label"] = raw.labels
        batch = pa.record_batch(columns)
        return batch.filter(text.is_valid()) if text.null_count else batch

    def _cut_long(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        most = self._limits.document_bytes
        if (pc.max(pc.binary_length(batch["text"])).as_py() or 0) > most:
            parts: list[bytes] = []
            rows: list[int] = []
            for row, text in enumerate(batch["text"].cast(pa.binary()).to_pylist()):
                cut = list(cut_at_spaces(text, most))
                parts += cut
                rows += [row] * len(cut)
            several = np.bincount(rows)[rows] > 1
            text = pa.array(parts, pa.binary()).cast(pa.string())
            others = batch.drop_columns(["text"]).take(pa.array(rows))
            columns = {"text": text} | {name: others[name] for name in others.schema.names}
            columns["part"] = pc.or_(others["part"], pa.array(several))
            batch = pa.record_batch(columns)
        self._count_parts(batch)
        return batch

    def _count_parts(self, batch: pa.RecordBatch) -> None:
        of = batch["document"].filter(batch["part"]).to_numpy()
        if len(of):
            self.notes["cut, being too long"] += len(np.unique(of)) - (of[0] == self._last_cut)
            self.notes["parts made of them"] += len(of)
            self._last_cut = of[-1]

    def _refuse_mostly_invalid(self) -> None:
        """Raises ValueError where most documents are invalid, since then the encoding is another."""
        if 2 * self._invalid > self.documents:
            raise ValueError(
                f"{self._invalid:,} of {counted(self.documents, 'documents')} of {self._source.name} are not"
                " in the encoding that they are read by: name theirs with --text-encoding, since"
                f" --invalid-utf8 {self._limits.invalid} would leave little of them"
            )


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
