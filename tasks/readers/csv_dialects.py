"""Detects the dialect of a CSV file: delimiter, quote character, and the escape of quotes inside a cell.

`find_dialect` parses the whole file with a strict state machine, compiled by Numba, in every candidate
dialect: all rows must have as many cells as the first, nothing may follow a closing quote, and every quote
must be closed. If two dialects read the file differently, it is refused and the error names the line.
`QuoteRewriter` rewrites backslash escapes as doubled quotes, the only form that Arrow reads without loss: its
own `escape_char` would turn `C:\\new` into `C:new`.
"""

import csv
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from pydantic import AfterValidator

from lexloom.tasks.display.formatting import counted
from lexloom.tasks.readers.csv_state_machine import (
    AFTER_CLOSING,
    AFTER_QUOTE,
    CELL_START,
    ERROR,
    ERROR_COLUMNS,
    ERROR_LINE,
    ESCAPES_LINE,
    EXPECTED,
    HEADER_END,
    LINE,
    LONE_ESCAPES,
    LONGEST,
    MODE,
    NEVER_CLOSED,
    NOTHING,
    PAIRED_ESCAPES,
    QUOTED,
    QUOTED_CELLS,
    RECORD_LINE,
    ROWS,
    RUN,
    SINGLE_QUOTED_CELLS,
    SINGLE_QUOTED_LINE,
    STATE_SIZE,
    TOO_LONG,
    UNQUOTED,
    WRAPPED,
    WRONG_COLUMNS,
    finish,
    scan,
)

DELIMITERS = (",", "\t", ";", "|")
DOUBLE, SINGLE, BACKSLASH = '"', "'", "\\"
NO_QUOTE = "none"
DOUBLED = "none"
FLAGS = "--csv-delimiter, --csv-quote and --csv-escape"
MAX_RECORD_BYTES = 1 << 25  # Arrow's CSV reader holds several blocks of this size
GROWTH = 3  # maximum number of bytes for one byte when escapes are rewritten
SCAN_BYTES = 1 << 22


def check_character(value: str | None) -> str | None:
    if value in ("tab", r"\t"):
        return "\t"
    if value in (None, NO_QUOTE) or (len(value) == 1 and value.isascii() and value not in "\r\n"):
        return value
    raise ValueError(f"must be one ASCII character, 'tab' or {NO_QUOTE!r}")


CsvCharacter = Annotated[str | None, AfterValidator(check_character)]


@dataclass(frozen=True)
class Dialect:
    """The dialect options that a user sets; None means that the option is detected."""

    delimiter: str | None = None
    quote: str | None = None  # NO_QUOTE if quotes are ordinary characters
    escape: str | None = None  # DOUBLED if quotes inside a cell are doubled

    def __post_init__(self) -> None:
        if self.escape == (self.quote or DOUBLE):  # a quote that escapes itself is doubled
            object.__setattr__(self, "escape", DOUBLED)
        given = [
            letter for letter in (self.delimiter, self.quote, self.escape) if letter not in (None, NO_QUOTE)
        ]
        if len(set(given)) < len(given) or self.delimiter == NO_QUOTE:
            raise ValueError(
                f"{FLAGS} must be different characters, and --csv-delimiter can't be {NO_QUOTE!r}"
            )


@dataclass(frozen=True)
class DetectedDialect:
    """The detected dialect of a file that passed all checks."""

    delimiter: str
    quote: str | None
    escape: str | None
    names: list[str]
    rows: int
    longest: int  # bytes of a row
    halve: bool = False  # a doubled escape character stands for one


OpenFile = Callable[[], AbstractContextManager[Any]]


def find_dialect(
    open_file: OpenFile, path: Any, given_dialect: Dialect, wanted: list[str]
) -> DetectedDialect | None:
    """Detect a file's dialect; None if it is empty. Raises ValueError if no dialect fits, or several do."""
    with open_file() as stream:
        head = stream.read(SCAN_BYTES)
    if not head.strip():
        return None
    first = given_dialect.quote or (SINGLE if head.lstrip().startswith(SINGLE.encode()) else DOUBLE)
    tried = try_delimiters(open_file, head, given_dialect, first, wanted)
    passed = [found for reading in tried if (found := reading.choose(path))]
    other = SINGLE if first == DOUBLE else DOUBLE
    has_single_quoted = any(reading.plain.state[SINGLE_QUOTED_CELLS] for reading in tried)
    doubtful = not passed or (first == DOUBLE and passed[0].looks_single_quoted)
    if given_dialect.quote is None and doubtful and (has_single_quoted or first == SINGLE):
        others = [
            found
            for reading in try_delimiters(open_file, head, given_dialect, other, wanted)
            if (found := reading.choose(path)) and found.is_quoted
        ]
        if passed and others:
            raise ValueError(
                f"{path}, line {passed[0].state[SINGLE_QUOTED_LINE]}: single quotes around cells may be"
                """ quote characters or part of the text: set --csv-quote "'", or --csv-quote '"'"""
            )
        passed = passed or others
    if len(passed) > 1:
        names = " or ".join(repr(machine.delimiter) for machine in passed)
        raise ValueError(f"{path}, line 1: the delimiter is ambiguous ({names}): set --csv-delimiter")
    if not passed:
        raise ValueError(max((r.plain for r in tried), key=lambda m: m.state[ERROR_LINE]).complaint(path))
    return passed[0].result(head)


def try_delimiters(
    open_file: OpenFile, head: bytes, given_dialect: Dialect, quote: str, wanted: list[str]
) -> "list[DialectTrial]":
    """Parse the file with every candidate delimiter; stop early if all have failed."""
    quote_or_none = None if quote == NO_QUOTE else quote
    tried = [
        DialectTrial(d, quote_or_none, given_dialect.escape)
        for d in candidate_delimiters(head, given_dialect, quote_or_none, wanted)
    ]
    with open_file() as stream:
        while (block := stream.read(SCAN_BYTES)) and not all(reading.failed for reading in tried):
            for reading in tried:
                reading.scan(np.frombuffer(block, np.uint8))
    for reading in tried:
        reading.finish()
    return tried


def candidate_delimiters(
    head: bytes, given_dialect: Dialect, quote: str | None, wanted: list[str]
) -> list[str]:
    """List the delimiters for which the header has all wanted columns; else the one with most columns."""
    if given_dialect.delimiter is not None:
        return [given_dialect.delimiter]
    named = {delimiter: read_names(head, delimiter, quote, None) for delimiter in DELIMITERS}
    fit = [delimiter for delimiter in DELIMITERS if set(wanted) <= set(named[delimiter])]
    many = [delimiter for delimiter in fit if len(named[delimiter]) > 1]
    return many or fit[:1] or [max(DELIMITERS, key=lambda delimiter: len(named[delimiter]))]


def read_names(head: bytes, delimiter: str, quote: str | None, escape: str | None) -> list[str]:
    """Read the column names in the first line of a file."""
    rows = csv.reader(
        io.StringIO(head.decode("utf-8", "replace").lstrip("\r\n"), newline=""),
        delimiter=delimiter,
        quotechar=quote,
        quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
        escapechar=escape,
    )
    try:
        return next(rows, [])
    except csv.Error:  # a cell beyond the csv module's limit
        return []


class DialectParser:
    """A strict parser of a file in one dialect."""

    def __init__(self, delimiter: str, quote: str | None, escape: str | None) -> None:
        self.delimiter, self.quote, self.escape = delimiter, quote, escape
        self.state = np.zeros(STATE_SIZE, np.int64)
        self.state[[LINE, RECORD_LINE]] = 1

    def scan(self, block: NDArray[np.uint8]) -> None:
        codes = [NOTHING if letter is None else ord(letter) for letter in (self.quote, self.escape)]
        scan(*(block, self.state, ord(self.delimiter), *codes, MAX_RECORD_BYTES))

    def finish(self) -> None:
        finish(self.state)

    @property
    def failed(self) -> bool:
        return bool(self.state[ERROR])

    @property
    def is_quoted(self) -> bool:
        return bool(self.state[QUOTED_CELLS])

    @property
    def looks_single_quoted(self) -> bool:
        return not self.is_quoted and 0 < self.state[ROWS] - 1 <= self.state[SINGLE_QUOTED_CELLS]

    def complaint(self, path: Any) -> str:
        line = f"{path}, line {self.state[ERROR_LINE]}:"
        columns = counted(int(self.state[ERROR_COLUMNS]), "columns")
        return {
            WRONG_COLUMNS: f"{line} {columns}, but the header names {self.state[EXPECTED]}: check the quotes"
            f" and delimiters, or set {FLAGS}",
            AFTER_CLOSING: f"{line} text follows a closing quote: check the quotes, or set {FLAGS}"
            f" (--csv-quote {NO_QUOTE} if quotes are part of the text)",
            NEVER_CLOSED: f"{line} a quote opened here is never closed: close it, or set"
            f" --csv-quote {NO_QUOTE} if quotes are part of the text",
            TOO_LONG: f"{line} this row is longer than {MAX_RECORD_BYTES >> 20} MB, or a quote in it is never"
            " closed: check the quotes, or split the text into shorter rows",
        }[int(self.state[ERROR])]

    def result(self, head: bytes) -> DetectedDialect:
        state = self.state
        return DetectedDialect(
            self.delimiter,
            self.quote,
            self.escape,
            names=read_names(head[: state[HEADER_END]], self.delimiter, self.quote, self.escape),
            rows=int(state[ROWS]) - 1,
            longest=int(state[LONGEST]),
            halve=bool(state[PAIRED_ESCAPES]) and not state[LONE_ESCAPES],
        )


class DialectTrial:
    """Parses a file with doubled quotes and, from its first backslash on, also with backslash escapes."""

    def __init__(self, delimiter: str, quote: str | None, escape: str | None) -> None:
        self.plain = DialectParser(delimiter, quote, None if escape == DOUBLED else escape)
        self._may_escape = escape is None and quote is not None
        self._escaped: DialectParser | None = None

    def scan(self, block: NDArray[np.uint8]) -> None:
        if self._may_escape and self._escaped is None and ord(BACKSLASH) in block:
            self._escaped = DialectParser(self.plain.delimiter, self.plain.quote, BACKSLASH)
            self._escaped.state[:] = self.plain.state
        for machine in self._machines():
            machine.scan(block)

    def finish(self) -> None:
        for machine in self._machines():
            machine.finish()

    @property
    def failed(self) -> bool:
        return all(machine.failed for machine in self._machines())

    def choose(self, path: Any) -> DialectParser | None:
        """Return the parser that passed; raise ValueError if both passed but read a cell differently."""
        escaped = self._escaped if self._escaped is not None and not self._escaped.failed else None
        line = 0 if escaped is None else int(escaped.state[ESCAPES_LINE])
        if self.plain.failed:
            return escaped
        if line:
            raise ValueError(
                f"{path}, line {line}: a backslash before a quote may escape it or end the cell: set"
                f" --csv-escape '{BACKSLASH}', or --csv-escape {DOUBLED} if quotes are doubled"
            )
        return self.plain

    def _machines(self) -> list[DialectParser]:
        return [self.plain] if self._escaped is None else [self.plain, self._escaped]


class QuoteRewriter:
    """A stream that rewrites escaped quotes as doubled ones and changes nothing else."""

    def __init__(self, stream: Any, found: DetectedDialect) -> None:
        assert found.quote is not None
        assert found.escape is not None
        self._stream, self._found = stream, found
        self._state = np.zeros(STATE_SIZE, np.int64)
        self._pending = b""
        self.closed = False

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or the rest of the file."""
        while len(self._pending) < size and (block := self._stream.read(size)):
            self._pending += self._rewritten(block)
        if len(self._pending) < size and self._state[RUN]:
            self._pending += self._rewritten(b"\n")  # the end of the file ends a run of escapes
        out, self._pending = self._pending[:size], self._pending[size:]
        return out

    def readable(self) -> bool:
        return True

    def _rewritten(self, block: bytes) -> bytes:
        found = self._found
        out = np.empty(GROWTH * len(block) + int(self._state[RUN]), np.uint8)
        codes = [ord(letter or "") for letter in (found.delimiter, found.quote, found.escape)]
        size = rewrite(*(np.frombuffer(block, np.uint8), out, self._state, *codes, found.halve))
        return out[:size].tobytes()


@njit(nogil=True, cache=True)
def rewrite(block, out, state, delimiter, quote, escape, halve):  # type: ignore[no-untyped-def]
    """Write `block` to `out` with doubled instead of escaped quotes; return the number of bytes."""
    size = 0
    for place in range(len(block)):
        byte = block[place]
        mode = state[MODE]
        if byte == escape and mode != AFTER_QUOTE:
            state[RUN] += 1
            continue
        run = state[RUN]
        state[RUN] = 0
        escaped = run % 2 == 1 and byte == quote
        if mode == CELL_START and run:  # a cell that begins with an escaped quote must be quoted itself
            mode = WRAPPED if escaped else UNQUOTED
            state[MODE] = mode
            if escaped:
                out[size] = quote
                size += 1
        if byte == quote and (escaped or mode == QUOTED):
            kept = run // 2
        else:
            kept = run // 2 + run % 2 if halve else run
        for _ in range(kept):
            out[size] = escape
            size += 1
        ends = byte == delimiter or byte == 10 or byte == 13
        if mode == QUOTED:
            if escaped:
                out[size] = quote
                size += 1
            elif byte == quote:
                state[MODE] = AFTER_QUOTE
        elif mode == AFTER_QUOTE and byte == quote:
            state[MODE] = QUOTED
        elif mode == WRAPPED and (byte == quote or ends):
            out[size] = quote
            size += 1
            if ends:
                state[MODE] = CELL_START
        elif ends:
            state[MODE] = CELL_START
        elif mode == CELL_START:
            state[MODE] = QUOTED if byte == quote else UNQUOTED
        out[size] = byte
        size += 1
    return size
