"""Reads documents from .txt files, and lines from any text file."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from lexloom.tasks.readers.raw import BLOCK_BYTES, RawBatch, ReadOptions, at_line, constant_labels
from lexloom.tasks.readers.streams import open_text

MAX_RECORD_BYTES = 1 << 27  # a line or paragraph is held in memory
MAX_CHARACTER_BYTES = 4  # of UTF-8
GAP = re.compile(rb"\n[ \t\v\f\n]*\n")  # one run of white space: 100x faster than matching line by line
LEADING = re.compile(rb"(?:[ \t\v\f\n]*\n)?")

Block = tuple[
    list[bytes], Sequence[int], bool
]  # documents, the line numbers at which they start, whether the last one continues


def read_text(path: Path, options: ReadOptions) -> Iterator[RawBatch]:
    """Read documents: lines, paragraphs (separated by blank lines), or the whole file."""
    if options.label_column is not None and options.label_column not in options.constants:
        raise ValueError(
            f"{path} is plain text and has no column {options.label_column!r}: put the files of each label"
            " into a folder named after it and use the parent folder as the source, or use a table (.csv,"
            " .jsonl or .parquet)"
        )
    with open_text(path, options.encoding) as (stream, tell):
        for documents, numbers, unfinished in DOCUMENTS[options.documents](path, stream):
            labels = constant_labels(options, len(documents))
            raw = RawBatch(pa.array(documents, pa.binary()), labels, at_line(path, numbers), tell())
            raw.encoding, raw.unfinished = stream.encoding, unfinished
            yield raw


def read_blocks(stream: Any) -> Iterator[bytes]:
    """Yield the text in blocks, with all line endings converted to line feeds."""
    held = b""
    while block := stream.read(BLOCK_BYTES):
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""  # the next block may begin with the line feed
        yield block.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if held:
        yield b"\n"


def read_lines(path: Path, stream: Any) -> Iterator[Block]:
    """Yield blocks of complete lines, without line endings."""
    number, rest = 1, b""
    for block in read_blocks(stream):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            lines = whole.split(b"\n")
            yield lines, range(number, number + len(lines)), False
            number += len(lines)
        check_length(path, number, len(rest))
    if rest:
        yield [rest], range(number, number + 1), False


def read_paragraphs(path: Path, stream: Any) -> Iterator[Block]:
    """Yield blocks of complete paragraphs, whose lines are joined by line feeds."""
    number, rest = 1, b""
    for block in read_blocks(stream):
        searched = len(rest.rstrip())  # no gap begins before this position
        rest += block
        paragraphs, starts, start = list[bytes](), list[int](), 0
        for gap in GAP.finditer(rest, searched):
            paragraph = rest[start : gap.start()]
            number = add_paragraph(paragraph, number, paragraphs, starts)
            number += gap[0].count(b"\n")
            start = gap.end()
        rest = rest[start:]
        yield paragraphs, starts, False
        check_length(path, number, len(rest))
    end = rest.find(b"\n", len(rest.rstrip()))
    paragraphs, starts = [], []
    add_paragraph(rest[:end] if end >= 0 else rest, number, paragraphs, starts)
    yield paragraphs, starts, False


def add_paragraph(paragraph: bytes, number: int, paragraphs: list[bytes], starts: list[int]) -> int:
    """Add the paragraph at line `number`, without leading blank lines; return its last line number."""
    blank = LEADING.match(paragraph)
    assert blank is not None
    if paragraph[blank.end() :].strip():
        paragraphs.append(paragraph[blank.end() :])
        starts.append(number + blank[0].count(b"\n"))
    return number + paragraph.count(b"\n")


def read_whole(path: Path, stream: Any) -> Iterator[Block]:
    """Yield the file as one document, in parts that end at a line, else a word, else a character."""
    number, rest = 1, b""
    for block in read_blocks(stream):
        rest += block
        if len(rest) > BLOCK_BYTES:
            end = end_of_part(rest, BLOCK_BYTES)
            yield [rest[:end]], [number], True
            number += rest.count(b"\n", 0, end)
            rest = rest[end:]
    if rest:
        yield [rest], [number], False


def end_of_part(text: bytes, most: int) -> int:
    """Return the end of a part of at most `most` bytes, after a line feed or space if one is near."""
    for mark in (b"\n", b" "):
        if (place := text.rfind(mark, most // 2, most)) >= 0:
            return place + 1
    ends = [end for end in range(most, max(0, most - MAX_CHARACTER_BYTES), -1) if text[end] & 0xC0 != 0x80]
    return ends[0] if ends else most


def check_length(path: Path, number: int, length: int) -> None:
    if length > MAX_RECORD_BYTES:
        raise ValueError(
            f"{path}, line {number}: this document is longer than {MAX_RECORD_BYTES >> 20} MB: split it"
            " into shorter lines or paragraphs"
        )


DOCUMENTS = {"line": read_lines, "paragraph": read_paragraphs, "file": read_whole}
