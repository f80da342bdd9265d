"""File access for a store that other processes change at the same time, and in which anything may lie.

Several runs and `lexloom store gc` share a store, so a path that was listed may be gone when it is read. A
named pipe or a device in place of a file would block its reader forever, so only regular files are opened.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import xxhash

READ_BYTES = 1 << 22
REMOVAL_ATTEMPTS = 100
CHANGED_MEANWHILE = (errno.ENOENT, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR)
FILE, FOLDER, BROKEN_LINK = "a file", "a folder", "a broken symbolic link"
KINDS = (
    (stat.S_ISREG, FILE),
    (stat.S_ISDIR, FOLDER),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def kind(path: Path) -> str | None:
    """What is at `path`, links followed: FILE, FOLDER, BROKEN_LINK or another word; None where nothing is."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return BROKEN_LINK if path.is_symlink() else None
    return next((name for is_kind, name in KINDS if is_kind(mode)), "a special file")


def open_regular(path: Path, mode: str = "rb") -> IO[bytes]:
    """Opens a regular file; OSError at once where something else is there."""
    found = kind(path)
    if found not in (FILE, None):
        raise OSError(errno.EINVAL, f"it is {found}, not a regular file", str(path))
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def digest_file(path: Path) -> str:
    """xxh3 (128 bits, hexadecimal) of a regular file's content."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def children(folder: Path) -> list[Path]:
    """What is in a folder, in order of name; nothing where it has vanished, is no folder or can't be read."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything below a folder with its status; links are not followed."""
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base, name)
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def contents(folder: Path) -> tuple[int, int]:
    """How many files there are below a folder, and their bytes."""
    sizes = [status.st_size for _, status in walk(folder) if stat.S_ISREG(status.st_mode)]
    return len(sizes), sum(sizes)


def newest_change(path: Path) -> float:
    """When anything at or below `path` changed last, in seconds since 1970; 0 where nothing is left."""
    try:
        own = path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    return max([own, *(status.st_mtime for _, status in walk(path))])


def remove(path: Path) -> None:
    """Deletes a file, a link (never what it leads to) or a whole folder; others may delete it as well."""
    for attempt in range(REMOVAL_ATTEMPTS):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            if error.errno not in CHANGED_MEANWHILE or attempt == REMOVAL_ATTEMPTS - 1:
                raise
        if not os.path.lexists(path):
            return


def move(source: Path, target: Path) -> None:
    """Renames a folder; OSError with one sentence where the two are not on one disk."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise OSError(
            errno.EXDEV,
            f"{source.parent} and {target.parent} are on different file systems: keep the whole store on one"
            " file system (the store itself can be a symbolic link)",
        ) from error


def remove_empty_folders(folder: Path) -> None:
    """Removes the folders below `folder` in which there is no file."""
    for base, _, _ in os.walk(folder, topdown=False):
        if Path(base) != folder and not os.listdir(base):
            os.rmdir(base)


def printable(name: str) -> str:
    """A file name for a person: on one line, and in UTF-8 even where the name is not."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def is_inside(name: str) -> bool:
    """Whether a manifest's file name stays below its folder."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and "\\" not in name and "\0" not in name


def unknown_names(folder: Path, known: set[str]) -> list[str]:
    """What is below a folder beside its `known` files and the folders that these lie in, in order of name."""
    parents = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    found = []
    for path, status in walk(folder):
        name = path.relative_to(folder).as_posix()
        if name not in (parents if stat.S_ISDIR(status.st_mode) else known):
            found.append(name)
    return sorted(found)
