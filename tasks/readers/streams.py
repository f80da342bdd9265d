"""Files as decompressed byte streams; text is converted to UTF-8 without a byte order mark."""

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from lexloom.tasks.readers.charsets import UTF_8, guess_wide, is_surely_utf_8, is_utf_8, read_byte_order_mark

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
HEAD_BYTES = 1 << 16


def split_name(path: Path) -> tuple[str, str | None]:
    """Split a file name into format and compression: `x.jsonl.gz` gives ('.jsonl', 'gzip')."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), COMPRESSIONS[suffix]
    return suffix, None


@contextmanager
def open_binary(path: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """Yield the decompressed stream, and a function that returns how many bytes of the file were read."""
    _, compression = split_name(path)
    with pa.OSFile(str(path)) as file:
        stream = pa.CompressedInputStream(file, compression) if compression else file
        yield stream, file.tell


@contextmanager
def open_text(path: Path, encoding: str | None) -> Iterator[tuple["TextStream", Callable[[], int]]]:
    """Like `open_binary`, but converted to UTF-8 by `TextStream`."""
    with open_binary(path) as (stream, tell):
        yield TextStream(stream, path, encoding), tell


class TextStream:
    """Converts text to UTF-8 from the encoding of its byte order mark, or else the one that the user set.

    Bytes that are invalid in the encoding become invalid UTF-8, which `raw.decode` handles. Raises ValueError
    if the file looks like undeclared UTF-16 or UTF-32, or ends inside a character.
    """

    def __init__(self, stream: Any, path: Path, encoding: str | None) -> None:
        self._stream, self._path = stream, path
        head = b""
        while len(head) < HEAD_BYTES and (block := stream.read(HEAD_BYTES - len(head))):
            head += block
        mark, length = read_byte_order_mark(head)
        self.encoding = mark or encoding or UTF_8
        self._pending, self._wide = head[length:], self.encoding.startswith(("utf-16", "utf-32"))
        self._decoder = None
        if mark is None and not is_utf_8(self.encoding) and is_surely_utf_8(head, self._wide):
            raise ValueError(
                f"{path} is UTF-8, not {encoding}: omit --text-encoding, or read this file separately"
            )
        if not is_utf_8(self.encoding):
            errors = "surrogatepass" if self._wide else "surrogateescape"
            self._decoder = codecs.getincrementaldecoder(self.encoding)(errors)
            self._pending = self._as_utf_8(self._pending, final=not head)
        elif guess := guess_wide(head):
            raise ValueError(
                f"{path} looks like {guess} without a byte order mark: set --text-encoding {guess}, or"
                " remove the NUL bytes"
            )
        self.closed = False

    def read(self, size: int) -> bytes:
        """Read `size` bytes, or the rest of the file."""
        while len(self._pending) < size:
            block = self._stream.read(size - len(self._pending))
            self._pending += self._as_utf_8(block, final=not block) if self._decoder else block
            if not block:
                break
        out, self._pending = self._pending[:size], self._pending[size:]
        return out

    def readable(self) -> bool:
        return True

    def _as_utf_8(self, block: bytes, final: bool) -> bytes:
        assert self._decoder is not None
        try:
            text = self._decoder.decode(block, final)
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{self._path} is not valid {self.encoding} ({error.reason}): set its encoding with"
                " --text-encoding"
            ) from None
        return text.encode(UTF_8, "surrogatepass" if self._wide else "surrogateescape")
