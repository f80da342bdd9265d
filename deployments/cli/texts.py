"""The texts that `lexloom classify` reads: of the command line, of stdin's lines, or of a file.

None stands for a text that is missing or blank, so that the n-th text is the n-th line or row.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

FIRST_BATCH, MOST_AT_ONCE = 16, 1024  # texts: the first labels come soon, later ones fast
CHARACTERS_AT_ONCE = 1 << 22


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of a file's format, which are those of a source."""
    command.add_argument("--file", type=Path, metavar="FILE", help="classify this file's lines or rows")
    for flag, default, purpose in (
        ("--text-column", "text", "column of the text of .csv, .jsonl and .parquet files (default: text)"),
        ("--text-encoding", None, "encoding of a file without a byte order mark (default: UTF-8)"),
        ("--csv-delimiter", None, "delimiter of a .csv file: one character, or 'tab' (default: detected)"),
        ("--csv-quote", None, "quote of a .csv file, or 'none' (default: detected)"),
        (
            "--csv-escape",
            None,
            "escape character before a quote of a .csv file, or 'none' (default: detected)",
        ),
    ):
        command.add_argument(flag, metavar="TEXT", default=default, help=purpose)
    command.add_argument(
        "--invalid-utf8",
        default="refuse",
        choices=["refuse", "replace", "drop"],
        help="what to do about a file's text that its encoding does not have (default: refuse)",
    )


def texts_of(arguments: argparse.Namespace) -> Iterator[str | None]:
    """The texts, read as they are asked for.

    Raises:
        ValueError: texts are given twice over, or nowhere; one of the command line is blank; or a file's
            format is not supported.
        OSError: the file can't be read.
    """
    if arguments.texts and arguments.file:
        raise ValueError("texts and --file can't both be given: say what to classify in one way")
    if arguments.texts:
        for number, text in enumerate(arguments.texts, 1):
            if not text.strip():
                raise ValueError(f"text {number} is empty: leave it out")
        # bytes that were no UTF-8 come back as they were, to be refused in the same words as a line's
        return decoded((text.encode("utf-8", "surrogateescape") for text in arguments.texts), "text")
    if arguments.file:
        return texts_of_file(arguments)
    if sys.stdin.isatty():
        raise ValueError("there is no text to classify: give some, name a --file, or pipe lines in")
    return decoded(sys.stdin.buffer, "stdin, line")


def texts_of_file(arguments: argparse.Namespace) -> Iterator[str | None]:
    """The documents of a file as a source has them; the lines of a pipe."""
    from lexloom.tasks.readers import formats as readers

    path: Path = arguments.file
    if not path.is_file():
        return decoded(closed_after(path.open("rb")), f"{path}, line")
    if not readers.is_supported(path):
        raise ValueError(f"{path} can't be read: {readers.SUPPORTED}; to classify its lines, pipe them in")
    return documents(arguments)


def documents(arguments: argparse.Namespace) -> Iterator[str | None]:
    from lexloom.tasks.readers.csv_dialects import Dialect, check_character
    from lexloom.tasks.readers.encodings import check_encoding
    from lexloom.tasks.readers.formats import read
    from lexloom.tasks.readers.raw import ReadOptions, decode

    signs = []
    for name in ("csv_delimiter", "csv_quote", "csv_escape"):
        try:
            signs.append(check_character(getattr(arguments, name)))
        except ValueError as error:
            raise ValueError(f"--{name.replace('_', '-')} {error}") from None
    if arguments.text_encoding is not None:
        check_encoding(arguments.text_encoding)
    options = ReadOptions(
        text_column=arguments.text_column, csv=Dialect(*signs), encoding=arguments.text_encoding
    )
    for raw in read(arguments.file, options):
        text, _ = decode(raw, arguments.invalid_utf8)
        yield from map(unless_blank, text.to_pylist())


def unless_blank(text: str | None) -> str | None:
    return text if text is not None and text.strip() else None


def closed_after(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from file


def decoded(lines: Iterable[bytes], what: str) -> Iterator[str | None]:
    """The lines as text; ValueError, by number, where one is not UTF-8."""
    for number, line in enumerate(lines, 1):
        try:
            yield unless_blank(line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{what} {number}, byte {error.start + 1}: not UTF-8 (0x{line[error.start]:02x}): convert it"
            ) from None


def growing_batches(texts: Iterable[str | None]) -> Iterator[list[str | None]]:
    """Texts in batches that double up to MOST_AT_ONCE, and hold about CHARACTERS_AT_ONCE at most.

    Those before a line that is refused come out before the ValueError.
    """
    most, batch, held = FIRST_BATCH, list[str | None](), 0
    try:
        for text in texts:
            batch.append(text)
            held += len(text or "")
            if len(batch) >= most or held >= CHARACTERS_AT_ONCE:
                yield batch
                most, batch, held = min(2 * most, MOST_AT_ONCE), [], 0
    except ValueError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
