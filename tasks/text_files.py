"""Plain text: documents out of .txt files, and the lines of any file of text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.raw import BLOCK_BYTES, Options, Raw, at_line
from tasks.streams import opened_text

MAX_RECORD_BYTES = 1 << 27  # a line or paragraph is held in memory whole


def read_text(path: Path, options: Options) -> Iterator[Raw]:
    """A document a line, or a paragraph (lines up to an empty one)."""
    if options.label_column is not None:
        raise ValueError(
            f"{path} is plain text and has no column {options.label_column!r}: leave out the label column"
        )
    with opened_text(path, options.encoding) as (stream, tell):
        blocks: Iterator[tuple[list[bytes], Sequence[int]]] = read_lines(path, stream)
        if options.documents == "paragraph":
            blocks = group_paragraphs(path, blocks)
        for documents, numbers in blocks:
            raw = Raw(pa.array(documents, pa.binary()), None, at_line(path, numbers), tell())
            raw.encoding = stream.encoding
            yield raw


def read_blocks(stream: Any) -> Iterator[bytes]:
    """The text in blocks, its lines ended by line feeds, whatever ended them in the file."""
    held = b""
    while block := stream.read(BLOCK_BYTES):
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""  # a line feed may follow
        yield block.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if held:
        yield b"\n"


def read_lines(path: Path, stream: Any) -> Iterator[tuple[list[bytes], Sequence[int]]]:
    """Blocks of whole lines, without their ends, with their numbers in the file (from 1)."""
    number, rest = 1, b""
    for block in read_blocks(stream):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            lines = whole.split(b"\n")
            yield lines, range(number, number + len(lines))
            number += len(lines)
        check_length(path, number, len(rest))
    if rest:
        yield [rest], range(number, number + 1)


def group_paragraphs(
    path: Path, blocks: Iterator[tuple[list[bytes], Sequence[int]]]
) -> Iterator[tuple[list[bytes], Sequence[int]]]:
    """Joins lines into paragraphs: (the paragraphs, the number of each one's first line)."""
    paragraph: list[bytes] = []
    length = first = 0
    for lines, numbers in blocks:
        paragraphs, starts = [], []
        for number, line in zip(numbers, lines, strict=True):
            if line.strip():
                if not paragraph:
                    first, length = number, 0
                paragraph.append(line)
                length += len(line)
            elif paragraph:
                paragraphs.append(b"\n".join(paragraph))
                starts.append(first)
                paragraph = []
        if paragraph:
            check_length(path, first, length)
        yield paragraphs, starts
    if paragraph:
        yield [b"\n".join(paragraph)], [first]


def check_length(path: Path, number: int, length: int) -> None:
    if length > MAX_RECORD_BYTES:
        raise ValueError(
            f"{path}, line {number}: a document here is longer than {MAX_RECORD_BYTES >> 20} MB: break it"
            " into lines (or paragraphs) that are documents"
        )
