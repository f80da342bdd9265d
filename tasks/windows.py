"""Sliding windows over tokens: all but a window's last token are its inputs, the last is its label.

A *row* is what windows slide over: a document, or, across documents, the whole part from its first token to
its last. With `partial`, size - 1 end-of-text tokens stand before a row, so that its first token is a label
too, and with a stride of one every token is a label once. Windows never mix training and validation.

Two threads: one reads tokens and cuts windows, compiled by Numba, and one encodes and writes
(tasks/store/shards.py, `BlockWriter`). Memory is bounded whatever the corpus: a batch of tokens, three row
groups, and
of a row that goes on in the next batch the tokens that its next window begins with.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from lexloom.models.tokenizer.tokenizer import Tokenizer
from lexloom.tasks.bpe_tokens import read_tokenizer
from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.shards import BlockWriter, Compression, block_writer
from lexloom.tasks.store.stage import stage
from lexloom.tasks.tokens import count_tokens, token_batches

TOKENS_PER_GROUP = 1 << 18  # 1 MB: a row group is what training shuffles and reads at a time
TOKENS_PER_SHARD = 1 << 27
# split by byte, windows of 4 take 5.9 bytes instead of 8.0, are written at 19M/s instead of 14M/s and read at
# 55M/s instead of 48M/s; zstd sees by itself that windows overlap (3.3 bytes, and 5.0 if they are split)
LZ4_ENCODING = {"inputs.list.element": "BYTE_STREAM_SPLIT", "label": "BYTE_STREAM_SPLIT"}

Batch = tuple[NDArray[np.int32], NDArray[np.int64]]


Partial = Annotated[
    bool,
    Field(description="Begin each text with windows that are padded on the left with end-of-text tokens."),
]


class WindowsConfig(BaseModel):
    """Length and spacing of the windows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(
        4,
        ge=2,
        le=1 << 20,
        description="Tokens of a window: all but the last are inputs, the last is the label.",
    )
    stride: int = Field(1, ge=1, description="Distance in tokens between the starts of adjacent windows.")
    across_documents: bool = Field(False, description="Let windows span documents.")
    partial: Partial = False
    compression: Compression = Field(
        "lz4",
        description="Compression of the shards: lz4 is faster to write and read, zstd takes less space.",
    )


@stage(version=1)
def windows(tokens: Artifact, config: WindowsConfig, out: Path) -> Summary:
    """Cuts `train-*.parquet` and `validation-*.parquet`: `inputs` (size - 1 int32s), `label` (int32).

    In the order of the text. Documents shorter than a window are counted, and fatal only where nothing
    remains of a part: ValueError.
    """
    cutter = Cutter(config, read_tokenizer(tokens))
    files = {part: tokens.files(f"{part}-*.parquet") for part in ("train", "validation")}
    written: dict[str, int] = {}
    with console.bar("windows", total=sum(map(count_tokens, files.values()))) as bar:
        for part, shards in files.items():
            with block_writer(
                out,
                schema(config.size),
                name=part,
                rows_per_group=max(1, TOKENS_PER_GROUP // config.size),
                rows_per_shard=max(1, TOKENS_PER_SHARD // config.size),
                compression=config.compression,
                column_encoding=LZ4_ENCODING if config.compression == "lz4" else None,
            ) as writer:
                for _ in cutter.cut(token_batches(shards), writer, measure=part == "validation"):
                    bar.update(cutter.tokens, counted(sum(written.values()) + writer.rows, "windows"))
                written[part] = writer.rows
            if shards and not writer.rows:
                raise ValueError(nothing_left(part, config, cutter.short))
    return Summary(
        rows_in=cutter.tokens,
        unit_in="tokens",
        rows=sum(written.values()),
        unit="windows",
        notes={
            "windows for validation": written["validation"],
            "documents shorter than a window": cutter.short,
        },
        facts={
            "windows": written["train"],
            "validation_windows": written["validation"],
            "size": config.size,
            # what a loss over all labels, or over all tokens but each window's first, is divided by
            "validation_label_bytes": cutter.label_bytes,
            "validation_predicted_bytes": cutter.predicted_bytes,
        },
    )


def schema(size: int) -> pa.Schema:
    inputs = pa.list_(pa.field("item", pa.int32(), False), size - 1)
    return pa.schema([pa.field("inputs", inputs, False), pa.field("label", pa.int32(), False)])


def nothing_left(part: str, config: WindowsConfig, short: int) -> str:
    text = {"train": "text to train on", "validation": "validation part"}[part]
    remedy = {"train": "read more text", "validation": "raise validation_share"}[part]
    return (
        f"not one window of {counted(config.size, 'tokens')} fits into the {text}"
        f" ({counted(short, 'documents')} shorter):"
        f" lower --size, set --across-documents or --partial, or {remedy}"
    )


class Cutter:
    """Cuts batches of documents into windows, and counts what it meets."""

    def __init__(self, config: WindowsConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self._end_of_text = tokenizer.end_of_text
        self._padding = config.size - 1 if config.partial else 0
        self._lengths = tokenizer.byte_lengths()
        self.tokens = 0
        self.short = 0  # documents without a window
        self.label_bytes = 0  # of the last tokens of a measured part's windows
        self.predicted_bytes = 0  # of all their tokens but the first

    def cut(self, batches: Iterator[Batch], writer: BlockWriter, measure: bool) -> Iterator[None]:
        """Writes the windows of a part, batch by batch; to `measure` is to count their bytes of text."""
        across = self._config.across_documents
        carried = np.full(self._padding, self._end_of_text, np.int32)  # the part's end so far
        skip = 0  # of carried and the next batch: tokens before the next window, if its stride is long
        for ids, offsets in batches:
            self.tokens += len(ids)
            if across:
                row = np.concatenate([carried, ids])
                begun = skip + self._write(row, np.array([min(skip, len(row)), len(row)]), 0, writer, measure)
                carried, skip = row[begun:], max(0, begun - len(row))
            else:
                lengths = np.diff(offsets)
                self.short += int(
                    np.count_nonzero((lengths > 0) & (lengths + self._padding < self._config.size))
                )
                self._write(ids, offsets, self._padding, writer, measure)
            yield

    def _write(
        self,
        ids: NDArray[np.int32],
        offsets: NDArray[np.int64],
        padding: int,
        writer: BlockWriter,
        measure: bool,
    ) -> int:
        """Writes all windows of some rows; returns where the window after the last row's last would begin."""
        size, stride = self._config.size, self._config.stride
        cursor = np.zeros(3, np.int64)
        while cursor[0] < len(offsets) - 1:
            inputs, labels = writer.block
            before = writer.filled
            writer.filled = fill_windows(
                *(ids, offsets, size, stride, padding, self._end_of_text, cursor),
                *(inputs, labels, before, writer.limit),
            )
            if measure:
                self._measure(inputs[before : writer.filled], labels[before : writer.filled])
            if writer.filled >= writer.limit:
                writer.flush()
        return int(cursor[2])

    def _measure(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
        label_bytes = int(self._lengths[labels].sum())
        self.label_bytes += label_bytes
        self.predicted_bytes += label_bytes + int(self._lengths[inputs[:, 1:]].sum())


@njit(nogil=True, cache=True)
def fill_windows(  # type: ignore[no-untyped-def]
    ids, offsets, size, stride, padding, filler, cursor, inputs, labels, filled, limit
) -> int:
    """Writes windows behind row `filled` until `limit` is reached or the rows are at their end.

    Before each of the rows of `ids`, which `offsets` part, stand `padding` tokens `filler`. `cursor` (row,
    where its next window begins, where that of the row before would) says where to go on, and is moved.
    Returns the new `filled`.
    """
    row, start = cursor[0], cursor[1]
    while row < len(offsets) - 1:
        begin = offsets[row] - padding
        last = offsets[row + 1] - begin - size
        while start <= last and start < padding and filled < limit:
            fillers = min(padding - start, size - 1)
            inputs[filled, :fillers] = filler
            for i in range(fillers, size - 1):
                inputs[filled, i] = ids[begin + start + i]
            labels[filled] = ids[begin + start + size - 1]
            start, filled = start + stride, filled + 1
        while start <= last and filled < limit:
            for i in range(size - 1):
                inputs[filled, i] = ids[begin + start + i]
            labels[filled] = ids[begin + start + size - 1]
            start, filled = start + stride, filled + 1
        if start <= last:
            break
        cursor[2] = start
        row, start = row + 1, 0
    cursor[0], cursor[1] = row, start
    return filled
