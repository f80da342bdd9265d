"""Tokenizers of pretrained models: ids and bytes of tokens, by how they are spelled."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Theirs
from tokenizers import decoders, models, normalizers

from lexloom.models.tokenizer.hf_export import export_hugging_face
from lexloom.models.tokenizer.pretrained import Pretrained, read_pretrained_tokenizer
from lexloom.models.tokenizer.tokenizer import Tokenizer
from tests.models.decoders import write_byte_pairs


def sentencepiece() -> dict[str, Any]:
    """Three letters and the byte pair "▁a"; other characters fall back to bytes, as in Llama 2."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁", "a", "b", "▁a"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(vocab=vocabulary, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True)
    tokenizer = Theirs(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


def test_sentencepiece_spells_spaces_and_bytes() -> None:
    tokenizer = Tokenizer(Pretrained(json.dumps(sentencepiece()).encode(), end_of_text=2))
    ids = tokenizer.encode("a é</s>")
    a, space, letter = (259 + place for place in (3, 0, 1))
    assert ids[:4] == [a, space, 3 + 0xC3, 3 + 0xA9]
    assert letter not in ids
    assert 2 not in ids, "text that looks like a special token is text"
    assert [tokenizer.token_bytes(token) for token in ids[:4]] == [b" a", b" ", b"\xc3", b"\xa9"]
    assert tokenizer.decode(ids) == " a é</s>", "SentencePiece puts a space before a text"
    assert tokenizer.token_bytes(2) == tokenizer.token_bytes(1) == b""
    assert tokenizer.size == 263


def test_byte_pairs_are_saved_and_loaded(tmp_path: Path) -> None:
    write_byte_pairs(tmp_path)
    tokenizer = Tokenizer(read_pretrained_tokenizer(tmp_path))
    tokenizer.save(tmp_path / "saved")
    loaded = Tokenizer.load(tmp_path / "saved")
    text = "the cat\n\n sät <|endoftext|> 🎉"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert loaded.end_of_text == 0 not in loaded.encode(text)
    assert len(set(loaded.display_names())) == loaded.size
    with pytest.raises(ValueError, match="lone surrogate"):
        loaded.encode("\ud800")


def test_unknown_characters_are_rejected(tmp_path: Path) -> None:
    export_hugging_face(Tokenizer.of_characters("abc"), tmp_path)
    tokenizer = Tokenizer(read_pretrained_tokenizer(tmp_path))
    assert tokenizer.encode("cab") == Tokenizer.of_characters("abc").encode("cab")
    with pytest.raises(ValueError, match=r"the character 'é' is not in this tokenizer's vocabulary"):
        tokenizer.encode("abé")


def test_other_kinds_are_rejected() -> None:
    word_piece = json.loads(Theirs(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")).to_str())
    with pytest.raises(ValueError, match=r"tokenizer \(WordPiece, decoder missing\) is not supported"):
        Pretrained(json.dumps(word_piece).encode(), end_of_text=0)
