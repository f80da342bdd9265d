"""Export of a tokenizer to the files of Hugging Face's `tokenizers` and `transformers`."""

import json
import re
from pathlib import Path
from typing import Any

from lexloom.models.tokenizer.bpe_ranks import Ranks, list_merges, to_byte_letters
from lexloom.models.tokenizer.pretrained import Pretrained
from lexloom.models.tokenizer.tokenizer import END_OF_TEXT, BytePair, Characters, Tokenizer


def export_hugging_face(
    tokenizer: Tokenizer, folder: Path, context: int | None = None, *, nfc: bool = False
) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` for `transformers.AutoTokenizer.from_pretrained`.

    The exported tokenizer encodes like `tokenizer.encode`; text that looks like the end-of-text token is
    encoded as text. `context` is the model's maximum number of tokens; with `nfc`, text is normalized to
    Unicode NFC first.
    """
    encoding = tokenizer.encoding
    name = encoding.token_name(tokenizer.end_of_text) if isinstance(encoding, Pretrained) else END_OF_TEXT
    document = describe_pretrained(encoding) if isinstance(encoding, Pretrained) else describe_own(tokenizer)
    if nfc and document["normalizer"] is None:
        document["normalizer"] = {"type": "NFC"}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": name,  # training texts follow it, so it stands for an empty prompt
        "eos_token": name,
        "pad_token": name,
        "padding_side": "left",  # generation continues each text of a batch from its last token
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,
        **({} if context is None else {"model_max_length": context}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (("tokenizer.json", document), ("tokenizer_config.json", config)):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def describe_pretrained(encoding: Pretrained) -> dict[str, Any]:
    """Return a `tokenizer.json` without the step that adds special tokens, which Lexloom does not use."""
    return {**encoding.description, "post_processor": None, "truncation": None, "padding": None}


def describe_own(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the `tokenizer.json` of a tokenizer that Lexloom made."""
    end_of_text = {
        "id": tokenizer.end_of_text,
        "content": END_OF_TEXT,
        "special": True,
        "normalized": False,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end_of_text],
        "normalizer": None,
        "post_processor": None,
        **describe_encoding(tokenizer),
    }


def describe_encoding(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return `model`, `pre_tokenizer` and `decoder` of `tokenizer.json`."""
    tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.size)]
    ids = {token: number for number, token in enumerate(tokens) if token}
    match tokenizer.encoding:
        case Characters():
            content = describe_characters(ids)
        case BytePair() as encoding:
            content = describe_byte_pairs(ids, encoding.ranks, [split_by(to_oniguruma(encoding.pattern()))])
        case _:
            content = describe_byte_pairs(ids, {}, [])
    # ids without text must be in the vocabulary too; otherwise the added token would get a new id
    names = tokenizer.display_names()
    content["model"]["vocab"] |= {names[i]: i for i, token in enumerate(tokens) if not token}
    return content


def describe_characters(ids: dict[bytes, int]) -> dict[str, Any]:
    vocabulary = {token.decode(): number for token, number in ids.items()}
    return {
        # without an unknown token, unknown characters are an error, as in `Tokenizer.encode`
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": ""},
        "pre_tokenizer": split_by(r"[\s\S]"),
        "decoder": {"type": "Fuse"},
    }


def describe_byte_pairs(
    ids: dict[bytes, int], ranks: Ranks, pre_tokenizers: list[dict[str, Any]]
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = {
        "type": "BPE",
        "vocab": {to_byte_letters(token): number for token, number in ids.items()},
        "merges": [[to_byte_letters(left), to_byte_letters(right)] for left, right in list_merges(ranks)],
        "ignore_merges": bool(ranks),  # like tiktoken: a piece that is a token is not split
    }
    return {
        "model": model,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*pre_tokenizers, byte_level]},
        "decoder": byte_level,
    }


def split_by(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def to_oniguruma(pattern: str) -> str:
    """Translate a tiktoken pattern for Oniguruma, the regex engine of `tokenizers`.

    There x{n}+ is not a possessive quantifier, and $ matches at the end of a line. Possessive quantifiers can
    be dropped, because what follows them never matches what they repeat.
    """
    return re.sub(r"([+*?]|\{[\d,]+\})\+", r"\1", pattern).replace("$", r"\z")
