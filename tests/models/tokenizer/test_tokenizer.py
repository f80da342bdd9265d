"""Tokenizers: ids by hand and by tiktoken, and any text round-trips."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

import lexloom.models.tokenizer.tokenizer
from lexloom.models.tokenizer.bpe_ranks import PUBLISHED, read_ranks
from lexloom.models.tokenizer.hf_export import export_hugging_face
from lexloom.models.tokenizer.tokenizer import BytePair, Bytes, Decoder, Encoding, Tokenizer
from tests.models.tokenizer.test_bpe_ranks import GPT2, tiktoken_of

TEXT = "The cat sat on the mat; the cat's hat — ünïcödé, 猫 🎉 — cost $3.50!\n\n  Twice  that?\tNo."
PATTERN = PUBLISHED["gpt2"].pattern
MERGES = ["t h", "th e", "Ġ the", "i n", "in g", "Ġ t"]  # ranks 256 to 261
TINY = read_ranks("\n".join(["#version: 0.2", *MERGES]).encode(), "tiny")
END = 262


def tiny() -> BytePair:
    return BytePair("gpt2", TINY, PATTERN, END)


def compact(encoding: Encoding, text: str) -> Tokenizer:
    """A tokenizer of the tokens that occur in `text`, ordered by frequency."""
    counts = np.bincount(encoding.encode(text), minlength=encoding.size)
    kept = encoding.keep(counts > 0)
    return Tokenizer(encoding, kept[np.argsort(-counts[kept], kind="stable")])


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    ranks = read_ranks(GPT2.read_bytes(), "vocab.bpe")
    return Tokenizer(BytePair("gpt2", ranks, PATTERN, PUBLISHED["gpt2"].end_of_text))


@pytest.fixture(scope="module")
def reference() -> tiktoken.Encoding:
    return tiktoken_of(GPT2)


# ids


def test_byte_pairs_by_hand() -> None:
    tokenizer = Tokenizer(tiny())
    # the, then ' ', th, ing (th comes before ' t' in rank), then ' the', n
    assert tokenizer.encode("the thing then") == [257, TINY[b" "], 256, 260, 258, TINY[b"n"]]
    assert (tokenizer.size, tokenizer.end_of_text) == (END + 1, END)


def test_byte_ids_are_utf_8() -> None:
    tokenizer = Tokenizer.of_bytes()
    assert tokenizer.encode("a é") == [97, 32, 195, 169]
    assert (tokenizer.size, tokenizer.end_of_text) == (257, 256)


def test_characters_are_numbered_in_order_of_code_points() -> None:
    tokenizer = Tokenizer.of_characters("b猫a🎉b")
    assert tokenizer.encode("🎉ab猫") == [3, 0, 1, 2]
    assert (tokenizer.size, tokenizer.end_of_text) == (5, 4)


@settings(deadline=None)
@given(text=st.text())
def test_gpt2_equals_tiktoken(gpt2: Tokenizer, reference: tiktoken.Encoding, text: str) -> None:
    assert gpt2.encode(text) == reference.encode_ordinary(text)
    assert gpt2.decode(reference.encode_ordinary(text)) == text


@pytest.mark.parametrize("text", [" " * 200_000, "a" * 200_000, "\n" * 200_000, "猫" * 50_000])
def test_long_runs_are_encoded(gpt2: Tokenizer, text: str) -> None:
    assert gpt2.decode(gpt2.encode(text)) == text


def test_special_tokens_in_text_are_encoded_as_text(gpt2: Tokenizer) -> None:
    ids = gpt2.encode("<|endoftext|>")
    assert len(ids) > 1
    assert gpt2.end_of_text not in ids


def test_batch_equals_single_texts(gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lexloom.models.tokenizer.tokenizer, "BATCH_CHARACTERS", 100)
    texts = [TEXT[: n * 7 % 83] for n in range(50)]
    expected = [gpt2.encode(text) for text in texts]
    for threads in (1, 2, None):
        found = gpt2.encode_batch(texts, threads)
        assert [ids.tolist() for ids in found] == expected
        assert {ids.dtype for ids in found} == {np.dtype(np.int32)}
    assert gpt2.encode_batch([]) == []


# compact tokenizers


def test_compact_tokenizer_keeps_tokens_and_their_parts() -> None:
    tokenizer = compact(tiny(), "the the the")  # the, ' the', ' the'
    assert tokenizer.encode("the the the") == [1, 0, 0]
    assert [tokenizer.token_bytes(0), tokenizer.token_bytes(1)] == [b" the", b"the"]
    # also th, from which 'the' is merged; but neither in, nor ing, nor ' t'
    assert tokenizer.size == 2 + 1 + 256 + 1
    assert tokenizer.encode(" thing")[1:] == [tokenizer.encode(text)[0] for text in ("th", "i", "n", "g")]


@settings(deadline=None, max_examples=30)
@given(text=st.text(min_size=1), other=st.text())
def test_compact_tokenizer_encodes_its_text_as_before(gpt2: Tokenizer, text: str, other: str) -> None:
    small = compact(gpt2.encoding, text + TEXT)
    assert small.base_ids is not None
    assert small.base_ids[small.encode(text + TEXT)].tolist() == gpt2.encode(text + TEXT)
    assert small.decode(small.encode(other)) == other
    assert sorted(set(small.base_ids.tolist())) == sorted(small.base_ids.tolist())


def test_compact_bytes_are_complete() -> None:
    tokenizer = compact(Bytes(), "zzzy")
    assert (tokenizer.size, tokenizer.encode("zy"), tokenizer.decode(tokenizer.encode("猫"))) == (
        257,
        [0, 1],
        "猫",
    )


# and back


@settings(deadline=None)
@given(text=st.text())
def test_any_text_round_trips(gpt2: Tokenizer, text: str) -> None:
    for tokenizer in (gpt2, Tokenizer(tiny()), Tokenizer.of_bytes(), Tokenizer.of_characters(text)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(deadline=None)
@given(text=st.text())
def test_stream_is_decoded_in_whole_characters(text: str) -> None:
    tokenizer = Tokenizer.of_bytes()
    decoder = Decoder(tokenizer)
    said = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join(said) + decoder.finish() == text
    assert [piece for piece in said if piece] == list(text)  # each character as soon as it is whole


def test_incomplete_character_becomes_a_replacement_character() -> None:
    decoder = Decoder(Tokenizer.of_bytes())
    assert [decoder.push(token) for token in (0x61, 0xE7, 0x8C)] == ["a", "", ""]
    assert decoder.finish() == "\ufffd"
    assert Tokenizer.of_bytes().decode([0x61, 0xE7, 0x8C, 0x62]) == "a\ufffdb"


def test_end_of_text_decodes_to_nothing() -> None:
    tokenizer = compact(tiny(), "the thing")
    assert tokenizer.decode([tokenizer.end_of_text, *tokenizer.encode("the"), tokenizer.end_of_text]) == "the"
    assert tokenizer.byte_lengths()[tokenizer.end_of_text] == 0


@settings(deadline=None)
@given(text=st.text())
def test_byte_lengths_sum_to_the_texts(gpt2: Tokenizer, text: str) -> None:
    assert gpt2.byte_lengths()[gpt2.encode(text)].sum() == len(text.encode())


def test_display_names_are_unique_and_without_white_space(gpt2: Tokenizer) -> None:
    names = gpt2.display_names()
    assert len(set(names)) == len(names) == gpt2.size
    assert not any(set(name) & set(" \t\n\r\u3000\u00a0") for name in names)
    assert names[gpt2.encode(" the")[0]] == "▁the"
    assert names[gpt2.encode("\n")[0]] == r"\n"
    assert names[gpt2.encode("\\")[0]] == r"\\"
    assert names[gpt2.encode("é")[0]] == "é"
    assert names[gpt2.end_of_text] == "<|endoftext|>"
    assert Tokenizer.of_bytes().display_names()[0xC3] == r"\xc3"
    assert Tokenizer.of_characters("\u00c3\u0080").display_names()[:2] == [r"\u0080", "Ã"]


def test_unused_ids_have_display_names() -> None:
    ranks = {bytes([value]): value for value in range(256)} | {b"ab": 300}
    tokenizer = Tokenizer(BytePair("gpt2", ranks, PATTERN, 301))
    assert tokenizer.size == len(set(tokenizer.display_names())) == 302
    assert tokenizer.decode([300, 299]) == "ab"


# on disk


@pytest.mark.parametrize(
    "tokenizer",
    [Tokenizer(tiny()), compact(tiny(), TEXT), Tokenizer.of_bytes(), Tokenizer.of_characters(TEXT)],
    ids=["byte pairs", "compact byte pairs", "bytes", "characters"],
)
def test_saved_tokenizer_is_loaded(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    again = Tokenizer.load(tmp_path / "tokenizer")
    assert (again.name, again.size, again.end_of_text) == (
        tokenizer.name,
        tokenizer.size,
        tokenizer.end_of_text,
    )
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.display_names() == tokenizer.display_names()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"encoding.json": "{"}, "tokenizer in .* can't be read"),
        ({"encoding.json": "[]"}, "tokenizer in .* can't be read"),
        ({"encoding.json": '{"format": 2}'}, "its format is 2, but this version of Lexloom reads 1"),
        ({"ranks.tiktoken": "AA== 0\nAQ== x\n"}, r"ranks.tiktoken:2: not 'base64 rank'"),
    ],
)
def test_damaged_folder_is_rejected(damage: dict[str, str], message: str, tmp_path: Path) -> None:
    Tokenizer(tiny()).save(tmp_path)
    for name, text in damage.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        Tokenizer.load(tmp_path)


def test_folder_without_a_tokenizer_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not contain a tokenizer"):
        Tokenizer.load(tmp_path)


# what other tools read


EXPORTED = ["gpt2", "compact gpt2", "cl100k's pattern", "o200k's pattern", "bytes", "characters"]


def with_end_of_text_at(place: int, tokenizer: Tokenizer) -> Tokenizer:
    assert tokenizer.base_ids is not None
    ids = [base_id for base_id in tokenizer.base_ids.tolist() if base_id != tokenizer.encoding.end_of_text]
    ids.insert(place, tokenizer.encoding.end_of_text)
    return Tokenizer(tokenizer.encoding, np.array(ids, np.int32))


@cache
def exported() -> dict[str, Tokenizer]:
    whole = BytePair("gpt2", read_ranks(GPT2.read_bytes(), "vocab.bpe"), PATTERN, 50256)
    unmerged = TINY | {b"xyz": END}  # found as a whole piece, and by no merge
    cl100k = BytePair("cl100k_base", unmerged, PUBLISHED["cl100k_base"].pattern, END + 3)  # ids nobody has
    return {
        "gpt2": Tokenizer(whole),
        "compact gpt2": with_end_of_text_at(3, compact(whole, TEXT)),
        "cl100k's pattern": Tokenizer(cl100k),
        "o200k's pattern": Tokenizer(BytePair("o200k_base", TINY, PUBLISHED["o200k_base"].pattern, END)),
        "bytes": with_end_of_text_at(3, compact(Bytes(), TEXT)),
        "characters": with_end_of_text_at(3, Tokenizer.of_characters(TEXT)),
    }


@pytest.fixture(scope="module", params=EXPORTED)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """A tokenizer, and what transformers loads from its export."""
    from transformers import AutoTokenizer

    ours = exported()[request.param]
    folder = tmp_path_factory.mktemp("exported")
    export_hugging_face(ours, folder)
    return ours, AutoTokenizer.from_pretrained(folder)


def test_transformers_gives_the_same_ids(both: tuple[Tokenizer, Any]) -> None:
    ours, theirs = both
    texts = [] if ours.name == "characters" else ["xyz", "<|endoftext|>"]
    for text in (*texts, TEXT, TEXT * 2, "", "the", "  the   ", "  \n\n"):
        assert theirs.encode(text) == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token_id, len(theirs)) == (ours.end_of_text, len(set(ours.display_names())))
    ids = [*ours.encode("the"), ours.end_of_text]
    assert theirs.decode(ids, skip_special_tokens=True) == ours.decode(ids) == "the"


@settings(deadline=None)
@given(text=st.text() | st.text(alphabet="'sSlRE ſé猫²٣1234 \t\r\n\x85\u00a0.,;<|>endoftext"))
def test_transformers_encodes_any_text_like_lexloom(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = both
    try:
        expected = ours.encode(text)
    except ValueError:  # an unknown character
        with pytest.raises(Exception, match="Missing"):
            theirs.encode(text)
    else:
        assert theirs.encode(text) == expected


# errors


@pytest.mark.parametrize(
    "tokenizer",
    [Tokenizer(tiny()), Tokenizer.of_bytes(), Tokenizer.of_characters("ab")],
    ids=["byte pairs", "bytes", "characters"],
)
def test_lone_surrogate_is_rejected(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate at position 2 \(U\+D83D\)"):
        tokenizer.encode("ab\ud83db")


def test_unknown_character_is_reported() -> None:
    with pytest.raises(ValueError, match=r"'猫' \(U\+732B\) is not one of this tokenizer's 2"):
        Tokenizer.of_characters("ab").encode("ab猫")


@pytest.mark.parametrize("token", [-1, 257])
def test_ids_out_of_range_are_rejected(token: int) -> None:
    with pytest.raises(ValueError, match="ids are 0 to 256"):
        Tokenizer.of_bytes().decode([token])
