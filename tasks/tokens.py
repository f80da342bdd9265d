"""Tokens: every document as the ids of its words.

Finding a word's id is one pass over the text's bytes, compiled by Numba: it hashes the bytes up to a space and
looks the word up in an open-addressing table, which is built once. Arrow's `index_in` would build its table
anew for every piece (0.5 s for three million words).
"""

from pathlib import Path

import numba
import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from tasks import console
from tasks.artifacts import Artifact, Summary
from tasks.corpus import ShardWriter, in_order, row_groups
from tasks.stage import stage
from tasks.vocabulary import read_vocabulary

SHARD_BYTES = 1 << 28
TOKEN_BYTES = 4
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x100000001B3)
FREE = -1

SCHEMA = pa.schema([("tokens", pa.list_(pa.int32()))])


class TokensConfig(BaseModel):
    """A word is one token, and the vocabulary says which: there is nothing to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@stage(version=1)
def tokens(corpus: Artifact, vocabulary: Artifact, config: TokensConfig, out: Path) -> Summary:
    """Looks up words: shards of `tokens: list<int32>`, a row a document, in the corpus's order.

    Words that are not in the vocabulary fall away, and so do documents of which nothing remains. A row group is
    what came of one of the corpus's (about 4 MB of text, 0.8M tokens of English).
    """
    words, _ = read_vocabulary(vocabulary)
    table = WordTable(words)
    pieces = row_groups(corpus, "text")
    known = unknown = documents = emptied = 0
    # an id's high bytes are mostly zero: split by byte they take 33 MB instead of 39, in 0.26 s instead of 0.44
    encoding = {"tokens.list.element": "BYTE_STREAM_SPLIT"}
    with (
        ShardWriter(out, SHARD_BYTES, column_encoding=encoding) as shards,
        console.bar("tokens", total=len(pieces)) as bar,
    ):
        for done, (ids, missed, empty) in enumerate(in_order(lambda read: table.encode(read()), pieces), start=1):
            shards.write(pa.record_batch([ids], schema=SCHEMA), TOKEN_BYTES * len(ids.values))
            known += len(ids.values)
            unknown += missed
            documents += len(ids)
            emptied += empty
            bar.update(done, f"{known:,} tokens")
    if known == 0:
        raise ValueError("no word of the corpus is in the vocabulary: was it made from another corpus?")
    return Summary(
        rows_in=known + unknown,
        unit_in="words",
        rows=known,
        unit="tokens",
        dropped={"not in the vocabulary": unknown} if unknown else {},
        facts={"tokens": known, "documents": documents, "emptied_documents": emptied, "shards": shards.count},
    )


class WordTable:
    """Finds ids by words: linear probing in a table at most half full, hashed by FNV-1a."""

    def __init__(self, words: pa.StringArray) -> None:
        self._starts, self._letters = buffers(words)
        self._slots = np.full(1 << (2 * len(words)).bit_length(), FREE, np.int32)
        fill(self._slots, self._starts, self._letters)

    def encode(self, text: pa.StringArray) -> tuple[pa.ListArray, int, int]:
        """(ids of every document that has any, words not found, documents left out)."""
        starts, letters = buffers(text)
        ids, ends, missed = look_up(starts, letters, self._slots, self._starts, self._letters)
        offsets = ends[np.concatenate(([True], ends[1:] != ends[:-1]))]
        encoded = pa.ListArray.from_arrays(pa.array(offsets), pa.array(ids))
        return encoded, missed, len(text) - len(encoded)


def buffers(words: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    """(where each string starts, and the last ends; all bytes), without a copy."""
    _, offsets, data = words.buffers()
    starts = np.frombuffer(offsets, np.int32)[words.offset : words.offset + len(words) + 1]
    return starts, np.frombuffer(data or b"", np.uint8)


@numba.njit(nogil=True, cache=True)
def is_space(letter):  # type: ignore[no-untyped-def]
    return letter == 32 or 9 <= letter <= 13


@numba.njit(nogil=True, cache=True)
def find_slot(start, end, letters, code, slots, word_starts, word_letters):  # type: ignore[no-untyped-def]
    """The slot of the word `letters[start:end]`, or the free one where it would go."""
    mask = len(slots) - 1
    slot = np.int64((code ^ (code >> np.uint64(32))) & np.uint64(mask))
    while slots[slot] != FREE:
        first = word_starts[slots[slot]]
        length = word_starts[slots[slot] + 1] - first
        if length == end - start:
            same = 0
            while same < length and word_letters[first + same] == letters[start + same]:
                same += 1
            if same == length:
                break
        slot = (slot + 1) & mask
    return slot


@numba.njit(nogil=True, cache=True)
def fill(slots, starts, letters):  # type: ignore[no-untyped-def]
    """Puts every word's id into its slot."""
    for word in range(len(starts) - 1):
        code = FNV_OFFSET
        for place in range(starts[word], starts[word + 1]):
            code = (code ^ np.uint64(letters[place])) * FNV_PRIME
        slots[find_slot(starts[word], starts[word + 1], letters, code, slots, starts, letters)] = word


@numba.njit(nogil=True, cache=True)
def look_up(starts, letters, slots, word_starts, word_letters):  # type: ignore[no-untyped-def]
    """(ids of all known words int32, where each document's begin and end among them int32, words unknown)."""
    documents = len(starts) - 1
    ids = np.empty((starts[documents] - starts[0] + documents) // 2 + 1, np.int32)
    ends = np.zeros(documents + 1, np.int32)
    found = missed = 0
    for document in range(documents):
        place, end = starts[document], starts[document + 1]
        while place < end:
            if is_space(letters[place]):
                place += 1
                continue
            first = place
            code = FNV_OFFSET
            while place < end and not is_space(letters[place]):
                code = (code ^ np.uint64(letters[place])) * FNV_PRIME
                place += 1
            word = slots[find_slot(first, place, letters, code, slots, word_starts, word_letters)]
            if word == FREE:
                missed += 1
            else:
                ids[found] = word
                found += 1
        ends[document + 1] = found
    return ids[:found].copy(), ends, missed
