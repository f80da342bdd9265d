"""Text encodings: reads byte order marks, and guesses the encoding of text that is not UTF-8."""

import codecs
from typing import Annotated

from pydantic import AfterValidator

UTF_8 = "utf-8"
BYTE_ORDER_MARKS = {  # UTF-32's little-endian mark begins with UTF-16's
    codecs.BOM_UTF8: UTF_8,
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
ONE_SIDED = 0.99  # share of the NUL bytes that are at the same position of a code unit
SURE_LETTERS = 4  # non-ASCII letters; so many do not decode as UTF-8 by chance
NARROW_HIGH = 0.5  # share of all letters; above it, the script is not Latin
CYRILLIC_HIGH = 0.9  # share of the high bytes that are Cyrillic letters in windows-1251 and koi8-r


def check_encoding(name: str) -> str:
    """Return the encoding's name; raise ValueError if Python does not know it as a text encoding."""
    try:
        "a".encode(name)
        codecs.getincrementaldecoder(name)
    except (LookupError, UnicodeError):
        raise ValueError(
            f"{name!r} is not a known text encoding: use one such as utf-16-le, latin-1 or windows-1251"
        ) from None
    return name


TextEncoding = Annotated[str, AfterValidator(check_encoding)] | None


def is_utf_8(name: str) -> bool:
    return codecs.lookup(name).name in (UTF_8, "utf-8-sig")


def read_byte_order_mark(head: bytes) -> tuple[str | None, int]:
    """Return the encoding that a byte order mark names, if there is one, and the mark's length."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding, len(mark)
    return None, 0


def guess_wide(head: bytes) -> str | None:
    """Guess UTF-16 or UTF-32 without a byte order mark from the positions of NUL bytes in code units."""
    if len(head) < 4 or head.count(0) < 2:
        return None
    at = [head[place::4].count(0) for place in range(4)]
    nuls = sum(at)
    if min(at[2:]) >= ONE_SIDED * (len(head) // 4):
        return "utf-32-le"
    if min(at[:2]) >= ONE_SIDED * (len(head) // 4):
        return "utf-32-be"
    if at[1] + at[3] >= ONE_SIDED * nuls:
        return "utf-16-le"
    return "utf-16-be" if at[0] + at[2] >= ONE_SIDED * nuls else None


def is_surely_utf_8(head: bytes, wide: bool) -> bool:
    """Return whether text that was declared to be in another encoding (`wide`: UTF-16 or UTF-32) is UTF-8."""
    try:
        text = codecs.getincrementaldecoder(UTF_8)().decode(head)
    except UnicodeDecodeError:
        return False
    return (
        (bool(text) and "\0" not in text) if wide else sum(letter > "\x7f" for letter in text) >= SURE_LETTERS
    )


def guess_narrow(sample: bytes) -> str | None:
    """Guess a single-byte encoding of the sample; None if it is mostly UTF-8."""
    text = sample.decode(UTF_8, "surrogateescape")
    stray = sum("\udc80" <= letter <= "\udcff" for letter in text)
    if not stray or sum(letter > "\x7f" for letter in text) > 2 * stray:
        return None
    high = bytes(byte for byte in sample if byte >= 0x80)
    ascii_letters = sum(chr(byte).isalpha() for byte in sample if byte < 0x80)
    if len(high) > NARROW_HIGH * (len(high) + ascii_letters):
        capitals, small = (sum(byte >> 5 == top for byte in high) for top in (0b110, 0b111))
        if capitals + small < CYRILLIC_HIGH * len(high):
            return None
        return "windows-1251" if small >= capitals else "koi8-r"
    return "windows-1252" if any(byte < 0xA0 for byte in high) else "latin-1"
