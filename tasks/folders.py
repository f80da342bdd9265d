"""The files that a name stands for: a file, all files below a folder, those that match a pattern, or stdin.

What is not read is counted by its reason. Hidden files and what data lakes keep for themselves (`_temporary`,
`_SUCCESS`, `.crc`) are left out; links to folders are followed, each folder once.
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

HIDDEN = "hidden files or folders left out"
UNKNOWN = "files of unknown ending left out"
DANGLING = "dangling links left out"
AGAIN = "folders linked to twice left out"
SPECIAL = "pipes, sockets or devices left out"


@dataclass
class Found:
    """Files by their path, with their names, and what was left out."""

    is_supported: Callable[[Path], bool]
    files: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)
    seen: set[tuple[int, int]] = field(default_factory=set)  # folders, by device and inode

    def leave_out(self, reason: str, path: Path) -> None:
        self.left_out.setdefault(reason, []).append(path)

    def add(self, path: Path) -> None:
        """A file, if it can be read; a name that ends in nothing is counted."""
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, RuntimeError):
            return self.leave_out(DANGLING, path)
        except OSError:
            if path.is_symlink():  # to itself
                return self.leave_out(DANGLING, path)
            raise
        if not stat.S_ISREG(mode):
            return self.leave_out(SPECIAL, path)
        if not self.is_supported(path):
            return self.leave_out(UNKNOWN, path)
        self.files.append(path)
        return None

    def walk(self, folder: Path) -> None:
        """All files below a folder."""
        status = folder.stat()
        if (status.st_dev, status.st_ino) in self.seen:
            return self.leave_out(AGAIN, folder)
        self.seen.add((status.st_dev, status.st_ino))
        # folders before links to them, so that a folder is read under its own name
        for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path.name)):
            if is_hidden(path.name):
                self.leave_out(HIDDEN, path)
            elif path.is_dir():
                self.walk(path)
            else:
                self.add(path)
        return None

    def match(self, pattern: str) -> None:
        """All files that match; folders are read whole, unless the pattern looks into them itself."""
        parts = Path(pattern).parts
        fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        asked = {part[0] for part in parts[fixed:]}
        for path in map(Path, sorted(glob.glob(pattern, recursive=True))):
            names = path.parts[fixed:]
            if any(is_hidden(name) and name[0] not in asked for name in names):
                self.leave_out(HIDDEN, path)
            elif not path.is_dir():
                self.add(path)
            elif "**" not in pattern:
                self.walk(path)

    def counts(self) -> dict[str, int]:
        return {reason: len(paths) for reason, paths in self.left_out.items()}

    def warnings(self) -> Iterator[str]:
        """What a user may miss, with some names."""
        for reason, paths in self.left_out.items():
            if reason != HIDDEN:
                names = ", ".join(printable(path) for path in paths[:SHOWN_NAMES])
                more = ", ..." if len(paths) > SHOWN_NAMES else ""
                yield f"{len(paths):,} {reason}: {names}{more}"


def is_hidden(name: str) -> bool:
    return name[0] == "." or (name[0] == "_" and "=" not in name) or name.endswith(".crc")


def printable(path: Path | str) -> str:
    """A path as text, also where its bytes are none."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_name(path: Path) -> Path:
    """ValueError where the path's bytes are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(f"the name of the file {printable(path)} is not UTF-8: rename it") from None
    return path


def is_stdin(name: str) -> bool:
    return name == STDIN or name.startswith(f"{STDIN}.")


def spool(name: str, is_supported: Callable[[Path], bool], supported: str) -> Path:
    """Stdin as a file, since it is read more than once; `name` is `-`, with an ending if it is not .txt."""
    ending = name.removeprefix(STDIN) or ".txt"
    if not is_supported(Path(f"stdin{ending}")):
        raise ValueError(f"stdin can't be read as {name!r}: {supported}")
    if sys.stdin.isatty():
        raise ValueError("stdin is a terminal: pipe text in, or name a file")
    folder = Path(tempfile.mkdtemp(prefix="lexloom-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"stdin{ending}"
    with path.open("wb") as file:
        shutil.copyfileobj(sys.stdin.buffer, file)
    if name == STDIN and (looks := look_of(path)):
        raise ValueError(
            f"stdin looks like {looks} and not like text: say --source={STDIN}{looks}, or"
            f" --source={STDIN}.txt if it is text after all"
        )
    return path


def look_of(path: Path) -> str | None:
    """The ending that a file without one should have, by its first bytes; None for text."""
    with path.open("rb") as file:
        line = file.readline(FIRST_LINE_BYTES)
    for mark, ending in STDIN_MARKS.items():
        if line.startswith(mark):
            return ending
    try:
        return ".jsonl" if isinstance(json.loads(line), dict) else None
    except (ValueError, RecursionError):
        return None
