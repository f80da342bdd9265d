"""Tokens: every document as the ids of its words.

Finding words and their ids is one pass over the text's bytes, compiled by Numba: it hashes the bytes up to a
space and looks the word up in an open-addressing table, which is built once. It takes 23 ns a word; Arrow's
split and dictionary_encode take 45, and its index_in would build a table anew for every piece (0.5 s for
three million words).
"""

from collections.abc import Iterator
from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lexloom.tasks.display import console
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Artifact, Summary
from lexloom.tasks.store.parallel import fan_out
from lexloom.tasks.store.shards import ShardWriter, list_row_groups
from lexloom.tasks.store.stage import stage
from lexloom.tasks.vocabulary import read_vocabulary

SHARD_BYTES = 1 << 28
TOKEN_BYTES = 4
TOKENS_PER_BATCH = 1 << 20
MOST_DOCUMENTS_PER_BATCH = 1 << 16
READ_BYTES = 1 << 20
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FOLD, ONE = np.uint64(32), np.uint64(1)
FNV_PRIME = np.uint64(0x100000001B3)
FREE = -1
TAB, RETURN, SPACE = np.uint8(9), np.uint8(13), np.uint8(32)

SCHEMA = pa.schema([("tokens", pa.list_(pa.int32()))])
# an id's high bytes are mostly 0: split by byte, 23M take 33 MB instead of 39, in 0.26 s instead of 0.44
COLUMN_ENCODING = {"tokens.list.element": "BYTE_STREAM_SPLIT"}


class TokensConfig(BaseModel):
    """No options: each word of the vocabulary is one token."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@stage(version=1)
def tokens(corpus: Artifact, vocabulary: Artifact, config: TokensConfig, out: Path) -> Summary:
    """Looks up words: shards of `tokens: list<int32>`, a row a document, in the corpus's order.

    Words that are not in the vocabulary fall away, and so do documents of which nothing remains. A row group
    is what came of one of the corpus's (about 4 MB of text, 0.8M tokens of English).
    """
    words, _ = read_vocabulary(vocabulary)
    table = WordTable(words)
    pieces = list_row_groups(corpus, "text")
    known = unknown = documents = emptied = 0
    with (
        ShardWriter(out, SHARD_BYTES, column_encoding=COLUMN_ENCODING) as shards,
        fan_out(lambda piece: table.encode(piece.read()), pieces) as encoded,
        console.bar("tokens", total=len(pieces)) as bar,
    ):
        for done, (ids, missed, empty) in enumerate(encoded, start=1):
            shards.write(pa.record_batch([ids], schema=SCHEMA), TOKEN_BYTES * len(ids.values))
            known += len(ids.values)
            unknown += missed
            documents += len(ids)
            emptied += empty
            bar.update(done, counted(known, "tokens"))
    if known == 0:
        raise ValueError("no word of the corpus is in the vocabulary: was it made from another corpus?")
    return Summary(
        rows_in=known + unknown,
        unit_in="words",
        rows=known,
        unit="tokens",
        dropped={"out-of-vocabulary words": unknown} if unknown else {},
        facts={"tokens": known, "documents": documents, "emptied_documents": emptied, "shards": shards.count},
    )


class WordTable:
    """Finds ids by words: linear probing in a table at most half full, hashed by FNV-1a."""

    def __init__(self, words: pa.StringArray) -> None:
        self._starts, self._letters = buffers(words)
        size = 1 << (2 * len(words)).bit_length()
        self._slots = np.full(size, FREE, np.int32)
        self._codes = np.zeros(size, np.uint64)
        fill(self._slots, self._codes, self._starts, self._letters)

    def encode(self, text: pa.StringArray) -> tuple[pa.ListArray, int, int]:
        """(ids of every document that has any, words not found, documents left out)."""
        starts, letters = buffers(text)
        ids, ends, missed = look_up(starts, letters, self._slots, self._codes, self._starts, self._letters)
        offsets = ends[np.concatenate(([True], ends[1:] != ends[:-1]))]
        encoded = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
        return encoded, missed, len(text) - len(encoded)


def buffers(words: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """(where each string starts, and the last ends; all bytes), without a copy."""
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int32)[words.offset : words.offset + len(words) + 1]
    return starts, np.frombuffer(data or b"", np.uint8)


@numba.njit(nogil=True, cache=True)
def fill(slots, codes, starts, letters):  # type: ignore[no-untyped-def]
    """Puts every word's id and hash code into the first free slot from where its code points."""
    mask = np.uint64(len(slots) - 1)
    for word in range(len(starts) - 1):
        code = FNV_OFFSET
        for place in range(starts[word], starts[word + 1]):
            code = (code ^ np.uint64(letters[place])) * FNV_PRIME
        slot = (code ^ (code >> FOLD)) & mask
        while slots[slot] != FREE:
            slot = (slot + ONE) & mask
        slots[slot] = word
        codes[slot] = code


@numba.njit(nogil=True, cache=True)
def look_up(starts, letters, slots, codes, word_starts, word_letters):  # type: ignore[no-untyped-def]
    """(ids of all known words int32, where each document's begin and end among them int32, words unknown)."""
    mask = np.uint64(len(slots) - 1)
    documents = len(starts) - 1
    ids = np.empty((starts[documents] - starts[0] + documents) // 2 + 1, np.int32)
    ends = np.zeros(documents + 1, np.int32)
    found = missed = 0
    for document in range(documents):
        code = FNV_OFFSET
        length = 0
        for place in range(starts[document], starts[document + 1] + 1):
            letter = letters[place] if place < starts[document + 1] else SPACE
            if letter > SPACE or not (letter == SPACE or TAB <= letter <= RETURN):
                code = (code ^ np.uint64(letter)) * FNV_PRIME
                length += 1
                continue
            if length == 0:
                continue
            slot = (code ^ (code >> FOLD)) & mask
            while True:
                word = slots[slot]
                if word == FREE:
                    missed += 1
                    break
                if codes[slot] == code:  # all but surely the word; its letters make it sure
                    start = word_starts[word]
                    first = place - length
                    same = 0 if word_starts[word + 1] - start == length else length + 1
                    while same < length and word_letters[start + same] == letters[first + same]:
                        same += 1
                    if same == length:
                        ids[found] = word
                        found += 1
                        break
                slot = (slot + ONE) & mask
            code = FNV_OFFSET
            length = 0
        ends[document + 1] = found
    return ids[:found].copy(), ends, missed


# reading tokens, those of words and those of subwords


def training_files(tokens: Artifact) -> list[Path]:
    """The shards to learn from: the training part of `subwords`, all of `tokens`."""
    return tokens.files("train-*.parquet") or tokens.files("shard-*.parquet")


def count_tokens(files: list[Path]) -> int:
    """How many tokens the shards hold, by their metadata."""
    total = 0
    for path in files:
        metadata = pq.read_metadata(path)
        total += sum(metadata.row_group(i).column(0).num_values for i in range(metadata.num_row_groups))
    return total


def count_documents(files: list[Path]) -> int:
    """How many documents the shards hold, by their metadata."""
    return sum(pq.read_metadata(path).num_rows for path in files)


def token_batches(files: list[Path]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    """All documents in order, about `TOKENS_PER_BATCH` tokens at a time: (ids, offsets of the documents)."""
    for path in files:
        with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
            yield from batches_of(file)


def batches_of(file: pq.ParquetFile) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
    for i in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(i)
        tokens_per_document = max(1, group.column(0).num_values // max(1, group.num_rows))
        batch_size = max(1, min(TOKENS_PER_BATCH // tokens_per_document, MOST_DOCUMENTS_PER_BATCH))
        for batch in file.iter_batches(batch_size, row_groups=[i], columns=["tokens"]):
            lists = batch.column(0)
            offsets = lists.offsets.to_numpy().astype(np.int64)
            yield lists.flatten().to_numpy(), offsets - offsets[0]
