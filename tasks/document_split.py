"""The split of encoded documents into a training and a validation part.

The stage `subwords` writes scratch files: base ids, whether a row is held out, and whether its document
continues in the next row (SCRATCH_SCHEMA).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lexloom.tasks.store.shards import Result, map_in_order

SCRATCH_SCHEMA = pa.schema(
    [("tokens", pa.list_(pa.int32())), ("held_out", pa.bool_()), ("continues", pa.bool_())]
)
WHOLE = -1  # of a row that is not split

Part = Literal["train", "validation"]


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


class DocumentSplit:
    """Splits the documents of the scratch files into the training and the validation part, in order.

    With `tail`, the last share of the tokens is held out, and the document at the boundary is split in two.
    Otherwise, the last share of every document that is longer than the whole validation part is held out,
    whatever its hash.
    """

    def __init__(self, scratch: Path, encoded: EncodedCorpus, share: float, *, tail: bool) -> None:
        groups = [
            (path, group, metadata.row_group(group).num_rows)
            for path in sorted(scratch.glob("*.parquet"))
            for metadata in [pq.read_metadata(path)]
            for group in range(metadata.num_row_groups)
        ]
        total = sum(encoded.sizes)
        self._share = share
        self._longest = max(share * total, 1 / (share or 1))
        self._kept = dict(self._cut_spans(encoded.spans))
        cut = int(total * (1 - share)) if tail else None
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
