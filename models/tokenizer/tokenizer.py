"""Text as ids, and back: characters, bytes, or byte-pair tokens (tiktoken does the merging).

A tokenizer is an encoding (text -> base ids) and, where it is asked for, a table of the base ids that are
kept, in the order of their new ids. Words, punctuation and symbols all have ids: `decode(encode(text))` is
`text`, for any text.

- A compact byte-pair tokenizer keeps the tokens that occur, the 256 bytes, and all tokens that one of these
  is merged from. Merging with these ranks alone gives the same tokens for the text that they were chosen by
  (every merge that was made there can still be made, and is still the first in rank), and smaller ones for
  other text. The tokens that are merely on the way are 8 to 13% of a small English corpus's.
- End of text is an id of its own, which no text is encoded as, and which stands for no text. What looks like
  a special token is text like any other.
"""

import codecs
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
from numpy.typing import NDArray

from lexloom.models.tokenizer.bpe_ranks import (
    BYTE_VALUES,
    Ranks,
    in_letters,
    merges,
    parts,
    read_ranks,
    write_ranks,
)

FORMAT = 1
DESCRIPTION = "encoding.json"
RANKS = "ranks.tiktoken"
END_OF_TEXT = "<|endoftext|>"
UNKNOWN = -1
BATCH_CHARACTERS = 1 << 16  # of text that a thread takes at a time
CODE_POINTS = 0x110000
SPACE_SIGN = "\u2581"  # stands for a space where tokens are shown

Ids = NDArray[np.int32]


class Encoding(ABC):
    """Text as base ids. `size` is one more than the largest of them, `end_of_text` one of them."""

    name: str
    size: int
    end_of_text: int

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """(tokens,) ids. Raises UnicodeEncodeError for a lone surrogate."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """UTF-8 that a token stands for: a part of a character, perhaps; none for an id that nobody has."""

    @abstractmethod
    def keep(self, occurs: NDArray[np.bool_]) -> Ids:
        """The base ids to keep in order that the tokens that occur, (size,), can be encoded as before."""

    def restricted(self, base_ids: Ids) -> "Encoding":
        """The same encoding without the ids that are not kept."""
        return self

    def pattern(self) -> str | None:
        """The regular expression that text is cut by, where it is cut."""
        return None

    @abstractmethod
    def hugging_face(self, ids: dict[bytes, int]) -> dict[str, Any]:
        """`model`, `pre_tokenizer` and `decoder` of Hugging Face's `tokenizer.json`, with these ids."""


class Bytes(Encoding):
    """The bytes of a text's UTF-8."""

    name = "bytes"
    size = BYTE_VALUES + 1
    end_of_text = BYTE_VALUES

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < BYTE_VALUES else b""

    def keep(self, occurs: NDArray[np.bool_]) -> Ids:
        return np.arange(self.size, dtype=np.int32)

    def hugging_face(self, ids: dict[bytes, int]) -> dict[str, Any]:
        return byte_level(ids, {}, [])


class Characters(Encoding):
    """Unicode's code points."""

    name = "characters"
    size = CODE_POINTS + 1
    end_of_text = CODE_POINTS

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-32-le"), np.dtype("<i4")).astype(np.int32, copy=False)

    def token_bytes(self, token: int) -> bytes:
        return chr(token).encode() if token < CODE_POINTS else b""

    def keep(self, occurs: NDArray[np.bool_]) -> Ids:
        return np.append(np.flatnonzero(occurs[:CODE_POINTS]), CODE_POINTS).astype(np.int32)

    def hugging_face(self, ids: dict[bytes, int]) -> dict[str, Any]:
        return {
            # no token for unknown characters: they are an error there too
            "model": {
                "type": "WordLevel",
                "vocab": {token.decode(): number for token, number in ids.items()},
                "unk_token": "",
            },
            "pre_tokenizer": split_by(r"[\s\S]"),
            "decoder": {"type": "Fuse"},
        }


class BytePair(Encoding):
    """Byte-pair tokens: text is cut by a regular expression, and each piece merged by ranks."""

    def __init__(self, name: str, ranks: Ranks, pattern: str, end_of_text: int) -> None:
        self.name, self.ranks, self.end_of_text = name, ranks, end_of_text
        self.size = max(max(ranks.values()), end_of_text) + 1
        self._pattern = pattern
        self._tokens = {rank: token for token, rank in ranks.items()}
        try:
            self._tiktoken = tiktoken.Encoding(
                name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end_of_text}
            )
        except ValueError as error:
            raise ValueError(f"the pattern that {name} cuts text by can't be read: {error}") from error

    def encode(self, text: str) -> Ids:
        # a NumPy array without a Python list between: 1.3 times as fast as `encode_ordinary`
        return self._tiktoken.encode_to_numpy(text, disallowed_special=()).view(np.int32)

    def token_bytes(self, token: int) -> bytes:
        return self._tokens.get(token, b"")

    def keep(self, occurs: NDArray[np.bool_]) -> Ids:
        kept = {self.ranks[bytes([value])] for value in range(BYTE_VALUES)} | {self.end_of_text}
        waiting = np.flatnonzero(occurs).tolist()
        while waiting:
            rank = waiting.pop()
            if rank not in kept:
                kept.add(rank)
                waiting += [self.ranks[part] for part in parts(self._tokens[rank], self.ranks)]
        return np.array(sorted(kept), np.int32)

    def restricted(self, base_ids: Ids) -> Encoding:
        kept = set(base_ids.tolist())
        ranks = {token: rank for token, rank in self.ranks.items() if rank in kept}
        return BytePair(self.name, ranks, self._pattern, self.end_of_text)

    def pattern(self) -> str | None:
        return self._pattern

    def hugging_face(self, ids: dict[bytes, int]) -> dict[str, Any]:
        # another dialect, in which x{n}+ is no possessive repetition (none is needed: what follows never
        # matches what was repeated) and $ stands for the end of a line
        pattern = re.sub(r"([+*?]|\{[\d,]+\})\+", r"\1", self._pattern).replace("$", r"\z")
        return byte_level(ids, self.ranks, [split_by(pattern)])


class Tokenizer:
    """Encodes text as ids from 0 to `size` - 1, one of which, `end_of_text`, ends a document.

    `base_ids`, (size,) int32, are the ids of the encoding that are kept, by their new id; all of them, under
    their own numbers, where it is not given. Safe to use from several threads.
    """

    def __init__(self, encoding: Encoding, base_ids: Ids | None = None) -> None:
        self.encoding = encoding if base_ids is None else encoding.restricted(base_ids)
        self.base_ids = base_ids
        self.name = encoding.name
        kept: Iterable[int] = range(encoding.size)
        self._ids: Ids | None = None
        self.end_of_text = encoding.end_of_text
        if base_ids is not None:
            kept = base_ids.tolist()
            self._ids = np.full(encoding.size, UNKNOWN, np.int32)
            self._ids[base_ids] = np.arange(len(base_ids), dtype=np.int32)
            self.end_of_text = int(self._ids[encoding.end_of_text])
        self._bytes = [encoding.token_bytes(base_id) for base_id in kept]
        self.size = len(self._bytes)

    @classmethod
    def of_characters(cls, text: str) -> "Tokenizer":
        """The characters of `text`, in order of code points, and end of text behind them."""
        encoding = Characters()
        occurs = np.zeros(encoding.size, np.bool_)
        occurs[encoding.encode(text)] = True
        return cls(encoding, encoding.keep(occurs))

    @classmethod
    def of_bytes(cls) -> "Tokenizer":
        """The 256 bytes, and end of text behind them."""
        return cls(Bytes())

    # encoding

    def encode(self, text: str) -> list[int]:
        """Ids of a text.

        Raises ValueError for a lone surrogate (no Unicode text holds one), and for a character that a
        tokenizer of characters does not know.
        """
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> Ids:
        """`encode`, as (tokens,) int32."""
        try:
            base = self.encoding.encode(text)
        except UnicodeEncodeError as error:
            raise lone_surrogate(text, error) from error
        return base if self._ids is None else self.to_own_ids(base)

    def encode_batch(self, texts: Sequence[str], threads: int | None = None) -> list[Ids]:
        """`encode_array` of each text, in order, worked out in threads (all cores unless told)."""
        threads = threads or len(os.sched_getaffinity(0))
        if threads == 1:
            return [self.encode_array(text) for text in texts]
        with ThreadPoolExecutor(threads, thread_name_prefix="encode") as pool:
            found = pool.map(lambda batch: [self.encode_array(text) for text in batch], batches(texts))
            return [ids for batch in found for ids in batch]

    def to_own_ids(self, base: Ids) -> Ids:
        """Base ids, (tokens,), as this tokenizer's ids. Raises ValueError where one of them is not kept."""
        if self._ids is None:
            return base
        ids = self._ids[base]
        if len(ids) and ids.min() < 0:
            unknown = self.encoding.token_bytes(int(base[ids < 0][0])).decode("utf-8", errors="replace")
            raise ValueError(
                f"the character {unknown!r} (U+{ord(unknown[0]):04X}) is not one of the {self.size - 1:,}"
                " that the tokenizer was made of: leave it out, or use the encoding 'bytes' or 'gpt2'"
            )
        return ids

    # decoding

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 of a token, perhaps a part of a character; none for end of text. ValueError beyond `size`."""
        if not 0 <= token < self.size:
            raise ValueError(f"there is no token {token:,}: ids go from 0 to {self.size - 1:,}")
        return self._bytes[token]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bytes that are no character become U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def byte_lengths(self) -> Ids:
        """(size,) bytes of UTF-8 that each token stands for; end of text for none."""
        return np.fromiter(map(len, self._bytes), np.int32, self.size)

    def spelled(self) -> list[str]:
        """A name of each id to show: no two are alike, none has white space in it.

        A space is shown as U+2581; what can't be printed, and a backslash, by Python's escapes.
        """
        names = [spell(token) if token else f"\\{number}" for number, token in enumerate(self._bytes)]
        names[self.end_of_text] = END_OF_TEXT
        return names

    # on disk

    def save(self, folder: Path) -> None:
        """Writes all that `load` needs: `encoding.json`, and `ranks.tiktoken` for byte pairs."""
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            "format": FORMAT,
            "encoding": self.name,
            "pattern": self.encoding.pattern(),
            "end_of_text": self.encoding.end_of_text,
            "base_ids": None if self.base_ids is None else self.base_ids.tolist(),
        }
        (folder / DESCRIPTION).write_text(json.dumps(description) + "\n", encoding="utf-8")
        if isinstance(self.encoding, BytePair):
            (folder / RANKS).write_bytes(write_ranks(self.encoding.ranks))

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Reads what `save` wrote; no network. FileNotFoundError or ValueError where it can't be read."""
        path = folder / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there: {folder} is not the folder of a tokenizer")
        try:
            description = json.loads(path.read_bytes())
            if description["format"] != FORMAT:
                raise ValueError(f"its format is {description['format']}, this Lexloom reads {FORMAT}")
            encoding = cls._encoding(description, folder)
            kept = description["base_ids"]
            return cls(encoding, None if kept is None else np.array(kept, np.int32))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"the tokenizer in {folder} can't be read ({error}): make it again") from error

    def export_hugging_face(self, folder: Path, context: int | None = None, *, nfc: bool = False) -> None:
        """Writes what `transformers.AutoTokenizer.from_pretrained(folder)` reads, to encode as `encode` does.

        `tokenizer.json` and `tokenizer_config.json`; what looks like the end-of-text token is text there too.
        `context` is the largest number of tokens that the model reads; `nfc` composes characters first.
        """
        content = self.encoding.hugging_face({token: i for i, token in enumerate(self._bytes) if token})
        # what stands for no text has its place in the vocabulary too: an added token is else numbered anew
        names = self.spelled()
        content["model"]["vocab"] |= {names[i]: i for i, token in enumerate(self._bytes) if not token}
        end_of_text = {"id": self.end_of_text, "content": END_OF_TEXT, "special": True, "normalized": False}
        document = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [end_of_text | {"single_word": False, "lstrip": False, "rstrip": False}],
            "normalizer": {"type": "NFC"} if nfc else None,
            "post_processor": None,
            **content,
        }
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": END_OF_TEXT,  # texts begin behind it: an empty prompt stands for it
            "eos_token": END_OF_TEXT,
            "pad_token": END_OF_TEXT,
            "padding_side": "left",  # so that every text of a batch goes on from its own last token
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,
            **({} if context is None else {"model_max_length": context}),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, written in (("tokenizer.json", document), ("tokenizer_config.json", config)):
            (folder / name).write_text(json.dumps(written, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def _encoding(description: dict[str, Any], folder: Path) -> Encoding:
        name = description["encoding"]
        if description["pattern"] is None:
            return {"bytes": Bytes, "characters": Characters}[name]()
        ranks = read_ranks((folder / RANKS).read_bytes(), str(folder / RANKS))
        return BytePair(name, ranks, description["pattern"], description["end_of_text"])


class Decoder:
    """Text of ids that come one by one: a character whose bytes are spread over tokens is given out whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """What can be said for sure once this token is known; often one word, sometimes nothing."""
        return self._bytes.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was begun and not ended."""
        return self._bytes.decode(b"", final=True)


def byte_level(ids: dict[bytes, int], ranks: Ranks, cuts: list[dict[str, Any]]) -> dict[str, Any]:
    """Hugging Face's byte-pair encoding with these tokens' ids, of text that is cut first."""
    to_letters = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "vocab": {in_letters(token): number for token, number in ids.items()},
        "merges": [[in_letters(left), in_letters(right)] for left, right in merges(ranks)],
        "ignore_merges": bool(ranks),  # a piece that is a token is that token, as for tiktoken
    }
    return {
        "model": model,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, to_letters]},
        "decoder": to_letters,
    }


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Runs of texts of about BATCH_CHARACTERS."""
    start = held = 0
    for end, text in enumerate(texts, 1):
        held += len(text)
        if held >= BATCH_CHARACTERS:
            yield texts[start:end]
            start, held = end, 0
    if start < len(texts):
        yield texts[start:]


def lone_surrogate(text: str, error: UnicodeEncodeError) -> ValueError:
    return ValueError(
        f"the text holds half a character at position {error.start:,} (U+{ord(text[error.start]):04X}, a lone"
        " surrogate), which no UTF-8 can hold: replace it"
    )


def spell(token: bytes) -> str:
    text = token.replace(b"\\", rb"\\").decode("utf-8", errors="backslashreplace")
    return "".join(map(letter, text))


def letter(character: str) -> str:
    if character == " ":
        return SPACE_SIGN
    if character.isprintable() and character != SPACE_SIGN:
        return character
    escaped = character.encode("unicode_escape").decode()
    return escaped if character < "\x80" else escaped.replace("\\x", "\\u00")  # \x80 is a byte by itself
