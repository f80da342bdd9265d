"""Finds the files of a source: a file, all files below a folder, the matches of a pattern, or stdin.

Skipped files are counted by reason. Hidden files and bookkeeping files of data lakes (`_temporary`,
`_SUCCESS`, `.crc`) are skipped. Links to folders are followed, and each folder is read once.
"""

import atexit
import glob
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

STDIN = "-"
STDIN_MARKS = {
    b"\x1f\x8b": ".txt.gz",
    b"\x28\xb5\x2f\xfd": ".txt.zst",
    b"PAR1": ".parquet",
}
FIRST_LINE_BYTES = 1 << 16
SHOWN_NAMES = 3

HIDDEN = "hidden files or folders skipped"
UNSUPPORTED = "files with an unsupported extension skipped"
BROKEN_LINKS = "broken links skipped"
REPEATED = "repeated links to a folder skipped"
SPECIAL_FILES = "pipes, sockets or devices skipped"


@dataclass
class FileSearch:
    """The files found so far, and the skipped ones by reason."""

    is_supported: Callable[[Path], bool]
    files: list[Path] = field(default_factory=list)
    skipped: dict[str, list[Path]] = field(default_factory=dict)
    seen: set[tuple[int, int]] = field(default_factory=set)  # folders, by device and inode

    def skip(self, reason: str, path: Path) -> None:
        self.skipped.setdefault(reason, []).append(path)

    def add(self, path: Path) -> None:
        """Add a file if its format is supported, or count why it is skipped."""
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, RuntimeError):
            return self.skip(BROKEN_LINKS, path)
        except OSError:
            if path.is_symlink():  # to itself
                return self.skip(BROKEN_LINKS, path)
            raise
        if not stat.S_ISREG(mode):
            return self.skip(SPECIAL_FILES, path)
        if not self.is_supported(path):
            return self.skip(UNSUPPORTED, path)
        self.files.append(path)
        return None

    def walk(self, folder: Path) -> None:
        """Add all files below a folder."""
        status = folder.stat()
        if (status.st_dev, status.st_ino) in self.seen:
            return self.skip(REPEATED, folder)
        self.seen.add((status.st_dev, status.st_ino))
        # folders before links to them, so that a folder is read under its own name
        for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path.name)):
            if is_hidden(path.name):
                self.skip(HIDDEN, path)
            elif path.is_dir():
                self.walk(path)
            else:
                self.add(path)
        return None

    def match(self, pattern: str) -> None:
        """Add all files that match; matching folders are walked, unless the pattern has `**`."""
        parts = Path(pattern).parts
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        asked = {part[0] for part in parts[fixed:]}
        for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
            names = path.parts[fixed:]
            if any(is_hidden(name) and name[0] not in asked for name in names):
                self.skip(HIDDEN, path)
            elif not path.is_dir():
                self.add(path)
            elif "**" not in pattern:
                self.walk(path)

    def counts(self) -> dict[str, int]:
        return {reason: len(paths) for reason, paths in self.skipped.items()}

    def warnings(self) -> Iterator[str]:
        """Yield a warning for each reason except hidden files, with some names."""
        for reason, paths in self.skipped.items():
            if reason != HIDDEN:
                names = ", ".join(printable(path) for path in paths[:SHOWN_NAMES])
                more = ", ..." if len(paths) > SHOWN_NAMES else ""
                yield f"{len(paths):,} {reason}: {names}{more}"


def is_hidden(name: str) -> bool:
    return name[0] == "." or (name[0] == "_" and "=" not in name) or name.endswith(".crc")


def printable(path: Path | str) -> str:
    """Convert a path to text, even if its bytes are not valid UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_name(path: Path) -> Path:
    """Return the path; raise ValueError if it is not valid UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the file name {printable(path)} is not valid UTF-8: rename the file") from None
    return path


def is_stdin(name: str) -> bool:
    return name == STDIN or name.startswith(f"{STDIN}.")


def spool(name: str, is_supported: Callable[[Path], bool], supported: str) -> Path:
    """Save stdin to a file, since it is read more than once; `name` is `-` plus an optional extension."""
    ending = name.removeprefix(STDIN) or ".txt"
    if not is_supported(Path(f"stdin{ending}")):
        raise ValueError(f"stdin can't be read as {name!r}: {supported}")
    if sys.stdin.isatty():
        raise ValueError("stdin is a terminal: pipe text into the command, or name a file")
    folder = Path(tempfile.mkdtemp(prefix="lexloom-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"stdin{ending}"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if name == STDIN and (looks := detect_format(path)):
        raise ValueError(
            f"stdin looks like {looks}, not plain text: use --source={STDIN}{looks}, or"
            f" --source={STDIN}.txt if it is plain text"
        )
    return path


def detect_format(path: Path) -> str | None:
    """Detect a file's extension from its first bytes; None for plain text."""
    with path.open("rb") as file:
        line = file.readline(FIRST_LINE_BYTES)
    for mark, ending in STDIN_MARKS.items():
        if line.startswith(mark):
            return ending
    try:
        return ".jsonl" if isinstance(json.loads(line), dict) else None
    except (ValueError, RecursionError):
        return None
