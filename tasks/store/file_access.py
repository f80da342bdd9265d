"""File access for a store that other processes modify concurrently and that may contain unexpected files.

Several runs and `lexloom store gc` share a store, so a listed path may be gone when it is read. Reading a
named pipe or a device could block forever, so only regular files are opened.
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
CONCURRENT_CHANGE = (errno.ENOENT, errno.ENOTEMPTY, errno.EISDIR, errno.ENOTDIR)
FILE, FOLDER, BROKEN_LINK = "a file", "a folder", "a broken symbolic link"
KINDS = (
    (stat.S_ISREG, FILE),
    (stat.S_ISDIR, FOLDER),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def file_kind(path: Path) -> str | None:
    """Return the kind of object at `path`, following links (FILE, FOLDER, ...); None if nothing is there."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return BROKEN_LINK if path.is_symlink() else None
    return next((name for is_kind, name in KINDS if is_kind(mode)), "a special file")


def open_regular(path: Path, mode: str = "rb") -> IO[bytes]:
    """Open a regular file; raise OSError if `path` is anything else."""
    found = file_kind(path)
    if found not in (FILE, None):
        raise OSError(errno.EINVAL, f"it is {found}, not a regular file", str(path))
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))


def read_regular(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def digest_file(path: Path) -> str:
    """Compute the xxh3 digest (128 bits, hexadecimal) of a regular file's content."""
    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def list_children(folder: Path) -> list[Path]:
    """List the entries of a folder, sorted by name; empty if it is missing, not a folder or not readable."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def walk(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield everything below a folder with its status; links are not followed."""
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base, name)
            try:
                yield path, path.lstat()
            except FileNotFoundError:
                continue


def measure_folder(folder: Path) -> tuple[int, int]:
    """Return the number of files below a folder, and their total size in bytes."""
    sizes = [status.st_size for _, status in walk(folder) if stat.S_ISREG(status.st_mode)]
    return len(sizes), sum(sizes)


def find_last_modification(path: Path) -> float:
    """Return the latest modification time at or below `path`, in seconds since 1970; 0 if `path` is gone."""
    try:
        own = path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
    return max([own, *(status.st_mtime for _, status in walk(path))])


def remove(path: Path) -> None:
    """Delete a file, a link (not its target) or a folder tree; others may delete it at the same time."""
    for attempt in range(REMOVAL_ATTEMPTS):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            if error.errno not in CONCURRENT_CHANGE or attempt == REMOVAL_ATTEMPTS - 1:
                raise
        if not os.path.lexists(path):
            return


def move(source: Path, target: Path) -> None:
    """Rename a folder; raise OSError with an explanation if the paths are on different file systems."""
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
    """Remove the folders below `folder` that contain no files."""
    for base, _, _ in os.walk(folder, topdown=False):
        if Path(base) != folder and not os.listdir(base):
            os.rmdir(base)


def printable(name: str) -> str:
    """Convert a file name to one printable line of valid UTF-8, even if the name itself is not."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def is_inside(name: str) -> bool:
    """Return whether a file name from a manifest stays inside the artifact's folder."""
    path = PurePosixPath(name)
    inside = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
    return inside and "\\" not in name and "\0" not in name


def find_unlisted_paths(folder: Path, known: set[str]) -> list[str]:
    """List the paths below a folder, sorted, except `known` files and the folders that contain them."""
    parents = {parent.as_posix() for name in known for parent in PurePosixPath(name).parents}
    found = []
    for path, status in walk(folder):
        name = path.relative_to(folder).as_posix()
        if name not in (parents if stat.S_ISDIR(status.st_mode) else known):
            found.append(name)
    return sorted(found)
