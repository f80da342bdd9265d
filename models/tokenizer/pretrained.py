"""The tokenizer of a pretrained model, read from a `tokenizer.json` by Hugging Face's `tokenizers`.

Three kinds are supported, which differ in how they spell tokens: byte-level BPE (GPT-2, Llama 3, Qwen),
SentencePiece with byte fallback (Llama 1 and 2), and the character tokenizers that Lexloom exports.

All ids are kept. Text that looks like a special token is encoded as text. The tokenizer's own normalization
applies, so unlike with the other encodings, decoding does not always restore the text.
"""

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lexloom.models.tokenizer.bpe_ranks import BYTES
from lexloom.models.tokenizer.encoding import Encoding, Ids

NAME = "pretrained"
Kind = Literal["byte-level", "sentencepiece", "characters"]
TOKENIZER_JSON, TOKENIZER_CONFIG, MODEL_CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
METASPACE = "\u2581"


class Pretrained(Encoding):
    """The encoding of a `tokenizer.json`; `end_of_text` is one of its ids.

    Attributes:
        document: the content of `tokenizer.json`.
        kind: how it spells tokens.
        added: the added tokens by id, such as {"content": "<|endoftext|>", "special": True}.

    Raises:
        ValueError: `tokenizers` can't read the document, or its kind is not supported.
    """

    name = NAME

    def __init__(self, document: bytes, end_of_text: int) -> None:
        from tokenizers import Tokenizer  # 0.1 s

        self.document, self.end_of_text = document, end_of_text
        try:
            self._tokenizer = Tokenizer.from_buffer(document)
        except Exception as error:  # `tokenizers` raises no other class
            raise ValueError(f"it is not a tokenizer.json ({error})") from None
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.added = {token["id"]: token for token in self.description["added_tokens"]}
        self.kind = self._kind()
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        self.size = max(vocabulary.values()) + 1
        if not 0 <= end_of_text < self.size:
            raise ValueError(
                f"the end-of-text token has the id {end_of_text}, but ids are below {self.size:,}"
            )
        self._tokens = self._spell(vocabulary)

    def _spell(self, vocabulary: dict[str, int]) -> dict[int, bytes]:
        """Return the bytes of each id; special tokens have none."""
        added, kind = self.added, self.kind
        tokens: dict[int, bytes] = {}
        for token, number in vocabulary.items():
            if number in added:
                tokens[number] = b"" if added[number]["special"] else token.encode()
            elif kind == "byte-level":
                tokens[number] = bytes(BYTES[letter] for letter in token if letter in BYTES)
            elif kind == "characters":
                tokens[number] = token.encode()
            elif byte := FALLBACK_BYTE.fullmatch(token):
                tokens[number] = bytes([int(byte[1], 16)])
            else:
                tokens[number] = token.replace(METASPACE, " ").encode()
        return tokens | {self.end_of_text: b""}

    def _kind(self) -> Kind:
        kinds = {part["type"] for part in parts(self.description["decoder"])}
        if self.description["model"]["type"] == "BPE" and "ByteLevel" in kinds:
            return "byte-level"
        if self.description["model"]["type"] == "BPE" and kinds & {"ByteFallback", "Metaspace"}:
            return "sentencepiece"
        if self.description["model"]["type"] == "WordLevel" and kinds == {"Fuse"}:
            return "characters"
        raise ValueError(
            f"the kind of tokenizer ({self.description['model']['type']}, decoder"
            f" {', '.join(sorted(kinds)) or 'missing'}) is not supported: use a model with a BPE tokenizer"
        )

    @cached_property
    def description(self) -> dict[str, Any]:
        description: dict[str, Any] = json.loads(self.document)
        return description

    def encode(self, text: str) -> Ids:
        text.encode()  # raises UnicodeEncodeError, which callers expect, for a lone surrogate
        try:
            return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)
        except Exception as error:
            known = self._tokenizer.get_vocab()
            unknown = next((character for character in text if character not in known), "")
            raise ValueError(
                f"the character {unknown!r} is not in this tokenizer's vocabulary: remove it ({error})"
            ) from None

    def token_bytes(self, token: int) -> bytes:
        return self._tokens.get(token, b"")

    def token_name(self, token: int) -> str:
        """Return the token as `tokenizer.json` spells it, such as `<|endoftext|>`."""
        return self._tokenizer.id_to_token(token) or f"\\{token}"  # an id without a token

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER_JSON: self.document}

    def keep(self, occurs: NDArray[np.bool_]) -> Ids:
        return np.arange(self.size, dtype=np.int32)


def parts(decoder: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the steps of a decoder."""
    if decoder is None:
        return []
    return decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]


def read_pretrained_tokenizer(folder: Path) -> Pretrained:
    """Read the tokenizer of a model folder.

    Raises:
        FileNotFoundError: it has no `tokenizer.json`.
        ValueError: a file is damaged, the kind is not supported, or no file names an end-of-text token.
    """
    path = folder / TOKENIZER_JSON
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: load the tokenizer with transformers.AutoTokenizer, and save it there"
        )
    document = path.read_bytes()
    try:
        return Pretrained(document, find_end_of_text(folder, json.loads(document)))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the tokenizer {path} can't be used: {error}") from None


def find_end_of_text(folder: Path, description: dict[str, Any]) -> int:
    """Return the id of `eos_token` in `tokenizer_config.json`, or the `eos_token_id` in `config.json`."""
    settings, model = (read_object(folder / name) for name in (TOKENIZER_CONFIG, MODEL_CONFIG))
    token = settings.get("eos_token")
    content = token.get("content") if isinstance(token, dict) else token
    ids = {added["content"]: added["id"] for added in description["added_tokens"]}
    vocabulary = description["model"].get("vocab")
    if content is not None and isinstance(vocabulary, dict):
        ids = vocabulary | ids
    if content in ids:
        return int(ids[content])
    number = model.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    if not isinstance(number, int):
        raise ValueError(
            f"neither eos_token in {TOKENIZER_CONFIG} nor eos_token_id in {MODEL_CONFIG} names one of its"
            " tokens"
        )
    return number


def read_object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_bytes())) if path.is_file() else {}
