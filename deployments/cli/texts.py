"""The texts of `lexloom classify`: arguments, the lines of standard input, or the rows of a file.

A missing or blank text is None, so that the n-th text is the n-th line or row.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from cyclopts import Parameter

FIRST_BATCH, MAX_BATCH = 16, 1024  # texts: small at first for a fast first label, then large for throughput
MAX_CHARACTERS = 1 << 22  # of a batch


@Parameter(name="*")
@dataclass(frozen=True)
class FileOptions:
    """How to read `--file`; the same options as for a corpus.

    Args:
        text_column: Name of the text column in .csv, .jsonl and .parquet files.
        text_encoding: Encoding of a file without a byte order mark (default: UTF-8).
        csv_delimiter: Delimiter of a .csv file: one character, or 'tab' (default: detected).
        csv_quote: Quote character of a .csv file, or 'none' (default: detected).
        csv_escape: Character that escapes a quote in a .csv file, or 'none' (default: detected).
        invalid_utf8: Handling of text that is invalid in the file's encoding.
    """

    text_column: str = "text"
    text_encoding: str | None = None
    csv_delimiter: str | None = None
    csv_quote: str | None = None
    csv_escape: str | None = None
    invalid_utf8: Literal["refuse", "replace", "drop"] = "refuse"


def read_texts(texts: Sequence[str], file: Path | None, options: FileOptions) -> Iterator[str | None]:
    """Yield the texts to classify: the given ones, or those of a file, or the lines of standard input.

    Raises:
        ValueError: both texts and a file are given, or neither; a given text is blank; or the file's format
            is not supported.
        OSError: the file can't be read.
    """
    if texts and file:
        raise ValueError("pass either texts or --file, not both")
    if texts:
        for number, text in enumerate(texts, 1):
            if not text.strip():
                raise ValueError(f"text {number} is empty: remove it")
        # surrogateescape restores bytes that are not UTF-8, so that they are reported like those of a file
        return decoded((text.encode("utf-8", "surrogateescape") for text in texts), "text")
    if file:
        return read_file(file, options)
    if sys.stdin.isatty():
        raise ValueError("there is no text to classify: pass texts or --file, or pipe lines to stdin")
    return decoded(sys.stdin.buffer, "stdin, line")


def read_file(path: Path, options: FileOptions) -> Iterator[str | None]:
    """Yield the documents of a file as a corpus would read them, or the lines of a pipe."""
    from lexloom.tasks.readers import formats

    if not path.is_file():
        return decoded(closed_after(path.open("rb")), f"{path}, line")
    if not formats.is_supported(path):
        raise ValueError(f"{path} can't be read: {formats.SUPPORTED}; to classify its lines, pipe it in")
    return documents(path, options)


def documents(path: Path, options: FileOptions) -> Iterator[str | None]:
    from lexloom.tasks.readers.charsets import check_encoding
    from lexloom.tasks.readers.csv_dialects import Dialect, check_character
    from lexloom.tasks.readers.formats import read
    from lexloom.tasks.readers.raw import ReadOptions, decode

    characters = []
    for name in ("csv_delimiter", "csv_quote", "csv_escape"):
        try:
            characters.append(check_character(getattr(options, name)))
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')} {error}") from None
    if options.text_encoding is not None:
        check_encoding(options.text_encoding)
    format_options = ReadOptions(
        text_column=options.text_column, csv=Dialect(*characters), encoding=options.text_encoding
    )
    for raw in read(path, format_options):
        text, _ = decode(raw, options.invalid_utf8)
        yield from map(unless_blank, text.to_pylist())


def unless_blank(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def closed_after(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from file


def decoded(lines: Iterable[bytes], what: str) -> Iterator[str | None]:
    """Decode lines; raise ValueError with the line's number if one is not UTF-8."""
    for number, line in enumerate(lines, 1):
        try:
            yield unless_blank(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{what} {number}, byte {error.start + 1}: not UTF-8 (0x{line[error.start]:02x}): convert it"
                " to UTF-8"
            ) from None


def growing_batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Yield batches that double in size up to MAX_BATCH texts or about MAX_CHARACTERS.

    If reading raises ValueError, the texts read before it are yielded first.
    """
    most, batch, held = FIRST_BATCH, list[str | None](), 0
    try:
        for text in texts:
            batch.append(text)
            held += len(text or "")
            if len(batch) >= most or held >= MAX_CHARACTERS:
                yield batch
                most, batch, held = min(2 * most, MAX_BATCH), [], 0
    except ValueError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
