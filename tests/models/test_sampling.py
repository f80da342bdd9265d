"""Sampling: filters by hand, frequencies of samples, and streamed text."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lexloom.models.sampling import (
    Sampling,
    explain_no_text,
    sample_text,
    sample_tokens,
    sampling_probabilities,
    stop_overlap,
)
from lexloom.models.tokenizer.tokenizer import Tokenizer

SHARES = torch.tensor([[0.5, 0.25, 0.15, 0.1]])
LOGITS = SHARES.log()


def filtered(**options: object) -> list[float]:
    return sampling_probabilities(LOGITS, Sampling(temperature=1.0, **options))[0].tolist()  # type: ignore[arg-type]


def near(*shares: float) -> object:
    return pytest.approx(list(shares), abs=1e-6)


def test_filters_by_hand() -> None:
    assert filtered() == near(0.5, 0.25, 0.15, 0.1)
    assert filtered(top_k=2) == near(2 / 3, 1 / 3, 0, 0)
    assert filtered(top_k=9) == near(0.5, 0.25, 0.15, 0.1)
    assert filtered(top_p=0.5) == near(1, 0, 0, 0)
    assert filtered(top_p=0.51) == near(2 / 3, 1 / 3, 0, 0)
    assert filtered(top_p=0.01) == near(1, 0, 0, 0)
    assert filtered(min_p=0.3) == near(5 / 9, 2.5 / 9, 1.5 / 9, 0)
    assert filtered(min_p=1.0) == near(1, 0, 0, 0)


def test_filters_are_applied_in_order() -> None:
    """Top-k keeps 5/9, 2.5/9, 1.5/9; of these top-p at 0.8 keeps two, and min-p at 0.6 one."""
    assert filtered(top_k=3, top_p=0.8) == near(2 / 3, 1 / 3, 0, 0)
    assert filtered(top_k=3, top_p=0.8, min_p=0.6) == near(1, 0, 0, 0)


def test_temperature_divides_logits_and_0_is_greedy() -> None:
    half = (SHARES**2 / (SHARES**2).sum())[0].tolist()
    assert sampling_probabilities(LOGITS, Sampling(temperature=0.5))[0].tolist() == near(*half)
    assert sampling_probabilities(LOGITS.flip(1), Sampling(temperature=0))[0].tolist() == [0, 0, 0, 1]
    assert sampling_probabilities(LOGITS * 1e4, Sampling(temperature=1e-3)).tolist() == [[1, 0, 0, 0]]


def test_repetition_penalty_applies_to_logits_of_both_signs() -> None:
    logits, seen = torch.tensor([[2.0, -2.0, 1.0]]), torch.tensor([[True, True, False]])
    sampling = Sampling(temperature=1.0, repetition_penalty=2.0)
    expected = torch.tensor([1.0, -4.0, 1.0]).softmax(0).tolist()
    assert sampling_probabilities(logits, sampling, seen)[0].tolist() == near(*expected)
    greedy = Sampling(temperature=0, repetition_penalty=4.0)
    assert sampling_probabilities(logits, greedy, seen).tolist() == [[0, 0, 1]]


def test_filters_are_applied_per_text() -> None:
    both = sampling_probabilities(torch.cat([LOGITS, LOGITS.flip(1)]), Sampling(temperature=1.0, top_p=0.6))
    assert both[0].tolist() == near(2 / 3, 1 / 3, 0, 0)
    assert both[1].tolist() == near(0, 0, 1 / 3, 2 / 3)


def fixed(texts: Sequence[Sequence[int]]) -> Tensor:
    """A model with constant logits."""
    return LOGITS.expand(len(texts), -1)


def test_tokens_are_sampled_by_probability() -> None:
    drawn = Counter(token for (token,) in sample_tokens(fixed, [[0]], Sampling(10_000, 1.0, seed=3)))
    for token, share in enumerate(SHARES[0].tolist()):
        assert drawn[token] / 10_000 == pytest.approx(share, abs=4 * (share * (1 - share) / 10_000) ** 0.5)


def test_seed_determines_the_samples() -> None:
    def text(seed: int, rows: int = 1) -> list[list[int | None]]:
        return list(sample_tokens(fixed, [[0]] * rows, Sampling(50, 1.0, seed=seed)))

    assert text(1) == text(1) != text(2)
    assert [row[0] for row in text(1, rows=2)] == [token for (token,) in text(1)]
    assert [row[1] for row in text(1, rows=2)] == [token for (token,) in text(2)]


class Script:
    """A model that generates the given tokens for each text, and records its inputs."""

    def __init__(self, *lines: list[int], vocabulary: int = 10) -> None:
        self.lines, self.vocabulary = lines, vocabulary
        self.asked: list[list[list[int]]] = []

    def __call__(self, texts: Sequence[Sequence[int]]) -> Tensor:
        logits = torch.zeros(len(texts), self.vocabulary)
        for row, line in zip(logits, self.lines, strict=True):
            row[line[min(len(self.asked), len(line) - 1)]] = 100.0
        self.asked.append([list(text) for text in texts])
        return logits


def test_text_ends_at_end_of_text_and_batch_with_the_last() -> None:
    model = Script([1, 9, 2], [3, 4, 9])
    sampling = Sampling(99, stop_at_end=True)
    assert list(sample_tokens(model, [[0], [0]], sampling, end_of_text=9)) == [[1, 3], [None, 4]]
    assert list(sample_tokens(Script([1, 9, 2]), [[0]], Sampling(4))) == [[1], [9], [2], [2]]


def test_model_continues_after_end_of_text_by_default() -> None:
    assert list(sample_tokens(Script([1, 9, 2]), [[0]], Sampling(4), end_of_text=9)) == [[1], [9], [2], [2]]


def test_empty_prompt_becomes_end_of_text() -> None:
    model = Script([1, 2], [3, 4])
    list(sample_tokens(model, [[], [7]], Sampling(2), end_of_text=9))
    assert model.asked == [[[9], [7]], [[9, 1], [7, 3]]]
    with pytest.raises(ValueError, match="the prompt is empty"):
        list(sample_tokens(model, [[]], Sampling(2)))


def test_repetition_penalty_includes_prompt_and_generated_text() -> None:
    greedy = Sampling(4, temperature=0, repetition_penalty=1000.0)
    flat = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.5]])
    drawn = sample_tokens(lambda texts: flat.expand(len(texts), -1), [[0], [3, 2]], greedy)
    assert list(drawn) == [[1, 0], [2, 1], [3, 4], [4, 0]]


# text

LETTERS = Tokenizer.of_characters("abcdefgh")  # ids 0 to 7, end of text 8


def written(words: str, *, stop: tuple[str, ...] = (), **options: int) -> list[str]:
    """The pieces that are streamed while a model generates `words`."""
    model = Script(LETTERS.encode(words), vocabulary=options.get("vocabulary", 9))
    sampling = Sampling(len(words), temperature=0, stop=stop)
    return [piece for (piece,) in sample_text(model, LETTERS, ["a"], sampling)]


def test_text_is_streamed() -> None:
    assert written("bead") == ["b", "e", "a", "d", ""]


def test_stop_string_ends_the_text_and_is_held_back() -> None:
    assert written("abcdef", stop=("cde",)) == ["a", "b", "", "", ""]
    assert written("abcdbcde", stop=("cde",)) == ["a", "b", "", "", "cdb", "", "", ""]
    assert "".join(written("cdcdab", stop=("cde",))) == "cdcdab"
    assert "".join(written("abcd", stop=("cde",))) == "abcd", "what was held back comes at the end"
    assert "".join(written("abcdefgh", stop=("gh", "de", "dx"))) == "abc"
    assert "".join(written("aaab", stop=("aab",))) == "a"


def test_longest_prefix_of_a_stop_string_is_held() -> None:
    assert stop_overlap("xab", "abc") == 2
    assert stop_overlap("xaba", "abac") == 3
    assert stop_overlap("aa", "aab") == 2
    assert stop_overlap("abc", "abc") == 0
    assert stop_overlap("x", "abc") == stop_overlap("", "abc") == 0


def test_characters_are_streamed_whole() -> None:
    tokenizer = Tokenizer.of_bytes()
    model = Script(tokenizer.encode("a猫é"), vocabulary=tokenizer.size)
    pieces = [piece for (piece,) in sample_text(model, tokenizer, ["x"], Sampling(6, temperature=0))]
    assert pieces == ["a", "", "", "猫", "", "é", ""]
    model = Script(tokenizer.encode("猫"), vocabulary=tokenizer.size)
    pieces = [piece for (piece,) in sample_text(model, tokenizer, ["x"], Sampling(2, temperature=0))]
    assert "".join(pieces) == "\ufffd", "a character that was begun and not ended"


def continued(ids: list[int], prompt: str = "a", **options: bool) -> str:
    """The text that is generated from a model's tokens, of which 8 is the end of text."""
    model = Script(ids, vocabulary=9)
    sampling = Sampling(len(ids), temperature=0, **options)
    return "".join(piece for (piece,) in sample_text(model, LETTERS, [prompt], sampling))


def test_blank_line_represents_an_end_of_text_between_texts() -> None:
    assert continued([1, 8, 2, 3]) == "b\n\ncd"
    assert continued([1, 8, 8, 8, 2]) == "b\n\nc", "empty texts have no blank lines of their own"
    assert continued([8, 1, 8]) == "\n\nb", "after the prompt, and not at the end"
    assert continued([8, 8, 1, 8, 2], prompt="") == "b\n\nc", "not at the beginning"
    assert continued([8, 8, 8]) == ""
    assert continued([1, 8, 2, 3], stop_at_end=True) == "b"


def test_end_of_text_ends_an_incomplete_character() -> None:
    tokenizer = Tokenizer.of_bytes()
    model = Script([*tokenizer.encode("猫")[:2], tokenizer.end_of_text, 97], vocabulary=tokenizer.size)
    pieces = [piece for (piece,) in sample_text(model, tokenizer, ["x"], Sampling(4, temperature=0))]
    assert "".join(pieces) == "\ufffd\n\na"


def test_reason_for_an_empty_text_depends_on_the_options() -> None:
    assert explain_no_text(Sampling()) == (
        "the model generated no text: it predicted only ends of texts or white space"
    )
    assert explain_no_text(Sampling(stop=("x",))).endswith("only ends of texts, a stop string or white space")
    assert explain_no_text(Sampling(stop_at_end=True)).endswith(
        "the end of the text or white space; without stop_at_end, it continues with another text"
    )


def test_texts_of_a_batch_end_independently() -> None:
    model = Script(LETTERS.encode("abcd"), [*LETTERS.encode("ef"), 8, 8], vocabulary=9)
    sampling = Sampling(4, temperature=0, stop=("c",), stop_at_end=True)
    pieces = list(sample_text(model, LETTERS, ["a", "bcd"], sampling))
    assert ["".join(text) for text in zip(*pieces, strict=True)] == ["ab", "ef"]
    assert len(model.asked) == 3, "nothing is drawn once all are over"


def test_ids_beyond_the_tokenizer_are_never_sampled() -> None:
    model = Script([20], vocabulary=32)
    (first, *_) = [piece for (piece,) in sample_text(model, LETTERS, ["a"], Sampling(1, temperature=0))]
    assert first == "a", "all known ids are equally likely, and the first is taken"


def test_prompt_with_unknown_characters_is_rejected() -> None:
    with pytest.raises(ValueError, match="the character 'z'"):
        list(sample_text(Script([1]), LETTERS, ["az"], Sampling()))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_tokens": 0}, "max_tokens is 0: it must be at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1: it must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"min_p": 1.5}, "min_p is 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ("",)}, "must be a list of non-empty strings"),
        ({"stop": "end"}, "must be a list of non-empty strings"),
    ],
)
def test_options_out_of_range_are_rejected(options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Sampling(**options)  # type: ignore[arg-type]
