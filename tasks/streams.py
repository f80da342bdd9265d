"""Files as streams of bytes: decompressed, as UTF-8 without a byte order mark where they are text."""

import codecs
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from tasks.encodings import UTF_8, guess_wide, is_surely_utf_8, is_utf_8, marked

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
HEAD_BYTES = 1 << 16


def split_name(path: Path) -> tuple[str, str | None]:
    """(format, compression) by the file's name: `x.jsonl.gz` is ('.jsonl', 'gzip')."""
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS:
        return Path(path.stem).suffix.lower(), COMPRESSIONS[suffix]
    return suffix, None


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Callable[[], int]]]:
    """(the file's content, decompressed; how many bytes of the file were read so far)."""
    _, compression = split_name(path)
    with pa.OSFile(str(path)) as file:
        stream = pa.CompressedInputStream(file, compression) if compression else file
        yield stream, file.tell


@contextmanager
def opened_text(path: Path, encoding: str | None) -> Iterator[tuple["TextStream", Callable[[], int]]]:
    """The same as UTF-8; see `TextStream`."""
    with opened(path) as (stream, tell):
        yield TextStream(stream, path, encoding), tell


class TextStream:
    """A stream of text as UTF-8, from the encoding that its byte order mark or else the user names.

    Bytes that the encoding does not know become bytes that are not UTF-8, for `raw.decode` to deal with.
    Raises ValueError where the file is UTF-16 or UTF-32 and nothing says so, or is cut short inside a letter.
    """

    def __init__(self, stream: Any, path: Path, encoding: str | None) -> None:
        self._stream, self._path = stream, path
        head = b""
        while len(head) < HEAD_BYTES and (block := stream.read(HEAD_BYTES - len(head))):
            head += block
        mark, length = marked(head)
        self.encoding = mark or encoding or UTF_8
        self._pending, self._wide = head[length:], self.encoding.startswith(("utf-16", "utf-32"))
        self._decoder = None
        if mark is None and not is_utf_8(self.encoding) and is_surely_utf_8(head, self._wide):
            raise ValueError(
                f"{path} is UTF-8 and not {encoding}: leave --text-encoding out, or read this file apart"
            )
        if not is_utf_8(self.encoding):
            errors = "surrogatepass" if self._wide else "surrogateescape"
            self._decoder = codecs.getincrementaldecoder(self.encoding)(errors)
            self._pending = self._as_utf_8(self._pending, final=not head)
        elif guess := guess_wide(head):
            raise ValueError(
                f"{path} looks like {guess} without a byte order mark: say --text-encoding {guess}, or"
                " remove the NUL bytes"
            )
        self.closed = False

    def read(self, size: int) -> bytes:
        """`size` bytes, or what is left of the file."""
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
                f"{self._path} is not {self.encoding} ({error.reason}): name its encoding with"
                " --text-encoding"
            ) from None
        return text.encode(UTF_8, "surrogatepass" if self._wide else "surrogateescape")
