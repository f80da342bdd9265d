"""What the page answers, checked against the models asked directly; and what it says to bad input."""

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch

from lexloom.deployments.web import handlers as answers
from lexloom.deployments.web.model_catalog import Shelf
from lexloom.models.language_model import Windows
from lexloom.models.sampling import Sampling, sample_text
from lexloom.models.sentiment.classifier import Sentiment
from lexloom.models.transformer.model import CachedDecoder
from lexloom.models.window_lm import WindowLM, WindowLMConfig
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.display.charts import Html
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.lookup import WINDOW_LM, WORD2VEC
from tests.deployments.store import (
    CONTEXT,
    fill,
    shelve,
    tokenizer,
    transformer_model,
    window_model,
    write_words,
)

DRAWS = {
    "tokens": 20,
    "temperature": 0.8,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "seed": 7,
}
REVIEW = "the film was not bad word1 word2"


Names = dict[str, str]


@pytest.fixture
def shelf(filled: Store) -> Shelf:
    return Shelf(filled)


def last(pieces: Iterator[Html]) -> str:
    """The whole answer."""
    return list(pieces)[-1]


def text_of(answer: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", answer))


def rows(answer: str) -> list[tuple[str, str]]:
    """(name, figure) of every bar."""
    found = re.findall(r"<span>([^<]*)</span><i style=[^>]*></i><b>([^<]*)</b>", answer)
    return [(unescape(name), figure) for name, figure in found]


def complaint(pieces: Iterator[Html]) -> str:
    """The one sentence that an answer consists of."""
    (said,) = list(pieces)
    assert 'role="alert"' in said
    sentence = text_of(said)
    assert sentence.endswith(".")
    assert "Traceback" not in sentence
    return sentence


# sentiment


def test_sentiment_gives_the_classifiers_label_score_and_pulls(shelf: Shelf, names: Names) -> None:
    classifier = Sentiment.load(shelf.store.root / names["sentiment"])
    ((label, score),) = classifier.classify([REVIEW])
    pulls = dict(classifier.attribute(REVIEW))
    early, whole = answers.sentiment(shelf, names["sentiment"], REVIEW)
    assert f"<b>{label}</b><span>{score:.1%}</span>" in early  # at once: the pulls take longer
    assert "<mark" not in early
    assert early.removesuffix("</div>") in whole
    shown = rows(whole)
    assert dict(shown)[label] == f"{score:.1%}"
    strongest = max(pulls, key=lambda word: pulls[word])
    assert dict(shown)[strongest] == f"+{pulls[strongest]:.2f}"
    marked = re.findall(r'<mark class="(\w+)" style="--pull: ([\d.]+)"[^>]*>([^<]*)</mark>', whole)
    assert [word for _, _, word in marked] == REVIEW.split()
    assert {word: side == "for" for side, _, word in marked} == {
        word: pull > 0 for word, pull in pulls.items()
    }
    assert max(float(share) for _, share, _ in marked) == 1


def test_words_beyond_what_the_model_reads_are_shown_as_unread(shelf: Shelf, names: Names) -> None:
    answer = last(answers.sentiment(shelf, names["sentiment"], " ".join(["film"] * 40)))
    assert answer.count("<mark") == 14  # 16 tokens, of which two are marks
    unread = re.search(r'<span class="unread">([^<]*)</span>', answer)
    assert unread is not None
    assert unread[1].split() == ["film"] * 26
    assert "the first 16 tokens" in answer


def test_what_was_typed_is_text_and_never_markup(shelf: Shelf, names: Names) -> None:
    typed = "<script>alert(1)</script> & <img src=x onerror=alert(1)>"
    answer = last(answers.sentiment(shelf, names["sentiment"], typed))
    assert "<script" not in answer
    assert "<img" not in answer
    said = complaint(answers.neighbours(shelf, names["words"], "<b>war</b>"))
    assert "'<b>war</b>' is not one of the 6 words" in said


# writing


def test_a_text_is_written_as_the_model_itself_writes_it(shelf: Shelf, names: Names) -> None:
    sampling = Sampling(max_tokens=20, temperature=0.8, seed=7)
    prompt = "the <b>"
    expected = "".join(
        piece for (piece,) in sample_text(CachedDecoder(transformer_model()), tokenizer(), [prompt], sampling)
    )
    assert expected
    answer = last(answers.write(shelf, names["write"], prompt, **DRAWS))
    assert text_of(answer) == prompt + expected
    assert '<span class="prompt">the &lt;b&gt;</span>' in answer
    assert answers.CARET not in answer


def test_texts_that_are_written_by_turns_do_not_touch_each_other(
    shelf: Shelf, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SECONDS_BETWEEN_PIECES", 0)
    alone = {
        prompt: last(answers.write(shelf, names["write"], prompt, **DRAWS))
        for prompt in ("the people", "a long peac")  # by turns, each text is one longer than the last read
    }
    one, two = (answers.write(shelf, names["write"], prompt, **DRAWS) for prompt in alone)
    pairs = list(zip(one, two, strict=False))
    assert [pairs[-1][0], pairs[-1][1]] == list(alone.values())
    growing = [len(text_of(piece)) for piece, _ in pairs]
    assert growing == sorted(growing)
    assert len(set(growing)) > 10  # it came piece by piece
    assert all(answers.CARET in piece for piece, _ in pairs[:-1])


def test_what_was_written_when_it_was_stopped_stays(shelf: Shelf, names: Names) -> None:
    sheet = answers.sheet("the", " people", going_on=True)
    assert text_of(answers.stopped(sheet)) == "the people"
    assert answers.CARET not in answers.stopped(sheet)
    assert answers.stopped(None) == ""


def test_an_empty_prompt_begins_a_text(shelf: Shelf, names: Names) -> None:
    assert text_of(last(answers.write(shelf, names["write"], "", **DRAWS)))


def test_a_window_model_writes_too(shelf: Shelf, names: Names) -> None:
    answer = last(answers.write(shelf, names["next-word"], "the people", **DRAWS))
    assert text_of(answer).startswith("the people")
    assert len(text_of(answer)) > len("the people")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "p" * 4001}, "This prompt has 4,001 characters: the page takes 4,000 at most."),
        ({"prompt": "é"}, "The character 'é' (U+00E9) is not one of this"),
        ({"tokens": 1001}, "1,001 tokens are many: the page writes 1,000 at most."),
        ({"tokens": 0}, "Max_tokens is 0: it must be at least 1."),
        (
            {"temperature": -1},
            "Temperature is -1: it must be at least 0, which takes the most",
        ),
        ({"seed": None}, "One of the numbers under “How it draws” is empty: fill it in."),
    ],
)
def test_what_can_not_be_written_is_said(
    shelf: Shelf, names: Names, changes: dict[str, Any], said: str
) -> None:
    given = {"prompt": "the", **DRAWS, **changes}
    assert complaint(answers.write(shelf, names["write"], **given)).startswith(said)


# the next word


def test_next_tokens_are_the_models_own_with_their_probabilities(shelf: Shelf, names: Names) -> None:
    ids = tokenizer().encode("the people")[-CONTEXT:]
    with torch.inference_mode():
        chances = window_model().log_probabilities(torch.tensor([ids])).exp()[0, : tokenizer().size]
    best = chances.topk(12)
    spelled = tokenizer().display_names()
    expected = [
        (spelled[token], f"{chance / chances.sum():.1%}")
        for token, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    answer = last(answers.next_word(shelf, names["next-word"], "the people"))
    assert rows(answer) == expected
    assert re.findall(r"<code>([^<]*)</code>", answer) == ["p", "l", "e"]  # all that the model sees
    picks = [unescape(pick) for pick in re.findall(r'data-pick="([^"]*)"', answer)]
    assert picks == [
        tokenizer().decode([token]) for token in best.indices.tolist() if token != tokenizer().end_of_text
    ]


def test_without_a_context_the_model_says_how_texts_begin(shelf: Shelf, names: Names) -> None:
    padding = tokenizer().end_of_text
    with torch.inference_mode():
        chances = window_model().log_probabilities(torch.tensor([[padding] * CONTEXT])).exp()
    answer = last(answers.next_word(shelf, names["next-word"], ""))
    assert rows(answer)[0][0] == tokenizer().display_names()[int(chances.argmax())]
    assert "how texts begin" in answer


def test_a_model_that_predicts_embeddings_gives_nearness_and_claims_no_probability(store: Store) -> None:
    torch.manual_seed(0)
    model = WindowLM(
        WindowLMConfig(vocabulary=30, context=2, dim=4, padding=0, width=8, objective="embedding")
    ).eval()

    def write(folder: Path) -> None:
        model.save(folder)
        tokenizer().save(folder / "tokenizer")

    name = shelve(store, WINDOW_LM, "regression", write)
    answer = last(answers.next_word(Shelf(store), name, "the"))
    nearness = Windows(model)([tokenizer().encode("the")])[0, : tokenizer().size]
    assert rows(answer)[0][1] == f"{float(nearness.max()):.3f}"
    assert "%" not in text_of(answer)
    assert "not probabilities" in answer


# words


def test_neighbours_are_in_the_order_of_their_angles(shelf: Shelf, names: Names) -> None:
    answer = last(answers.neighbours(shelf, names["words"], "war"))
    assert rows(answer) == [
        ("wars", "0.98"),  # cos 10°
        ("battle", "0.94"),  # cos 20°
        ("peace", "0.00"),  # cos 90°
        ("treaty", "−0.09"),  # cos 95°
        ("tea", "−1.00"),  # cos 180°
    ]
    shares = [float(share) for share in re.findall(r"--share: ([-\d.]+)", answer)]
    assert min(shares) == 0  # a bar can't be shorter than nothing
    assert answer.count("<svg") == 2  # a map for wide screens, one for narrow ones
    assert all(f"<title>{word}" in answer for word in ("war", "battle", "tea"))


def test_an_analogy_turns_by_the_same_angle(shelf: Shelf, names: Names) -> None:
    # from war (0°) to wars (10°), and from there by the same way: b - a + c points to 15°, battle at 20°
    answer = last(answers.analogy(shelf, names["words"], "war", "wars", "battle"))
    assert rows(answer)[0][0] == "peace"  # what is left of the others, nearest to 30°
    assert "war is to wars as battle is to" in answer


def test_capitals_and_spaces_around_a_word_do_no_harm(shelf: Shelf, names: Names) -> None:
    assert rows(last(answers.neighbours(shelf, names["words"], " War ")))[0][0] == "wars"


def test_a_token_that_begins_a_word_goes_before_one_from_within() -> None:
    tokens = WordVectors(["peace", "\u2581peace", "war"], torch.eye(3))
    assert answers.known(tokens, "Peace", "word") == "\u2581peace"
    assert answers.known(tokens, "war", "word") == "war"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("", "The field “Word” is empty: type a word."),
        ("battles", "'battles' is not one of the 6 words of this model. Similar: battle."),
        ("w" * 101, "This word has 101 characters: the page takes 100 at most."),
    ],
)
def test_a_word_that_can_not_be_looked_up_is_said(shelf: Shelf, names: Names, word: str, said: str) -> None:
    assert complaint(answers.neighbours(shelf, names["words"], word)) == said


def test_an_empty_field_of_an_analogy_is_named(shelf: Shelf, names: Names) -> None:
    said = complaint(answers.analogy(shelf, names["words"], "war", "", "tea"))
    assert said == "The field “B” is empty: type a word."


# everywhere


def test_empty_and_endless_reviews_are_told_so(shelf: Shelf, names: Names) -> None:
    assert complaint(answers.sentiment(shelf, names["sentiment"], " \n")).startswith("There is no text yet")
    said = complaint(answers.sentiment(shelf, names["sentiment"], "word " * 100_000))
    assert said == "This review has 500,000 characters: the page takes 20,000 at most."


def test_without_a_model_the_page_says_so(shelf: Shelf) -> None:
    said = complaint(answers.neighbours(shelf, None, "war"))
    assert said == "There is no model to ask: train one, and press Refresh."


def test_a_damaged_model_ends_in_a_sentence_that_names_the_file(store: Store) -> None:
    name = shelve(store, WORD2VEC, "damaged", write_words)
    (store.root / name / "model.safetensors").write_bytes(b"nonsense")
    said = complaint(answers.neighbours(Shelf(store), name, "war"))
    assert "model.safetensors has no tensor 'vectors'" in said


def test_a_mistake_of_ours_is_admitted_without_a_traceback_and_logged(
    shelf: Shelf, names: Names, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(answers, "in_the_plane", broken)
    said = complaint(answers.neighbours(shelf, names["words"], "war"))
    assert said == "Something went wrong that should not (RuntimeError); the terminal has more."
    assert "secret" in caplog.text


def test_a_missing_extra_is_named(shelf: Shelf, names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lexloom.models.sentiment.classifier", None)
    shelf = Shelf(shelf.store)
    said = complaint(answers.sentiment(shelf, names["sentiment"], REVIEW))
    assert (
        said
        == "The package lexloom.models.sentiment.classifier is missing: pip install 'lexloom[sentiment]'."
    )


# the normalisation of the training text


def test_every_tab_normalises_what_is_typed_as_the_training_text_was(store: Store) -> None:
    names = fill(store)
    rules = {"normalization": AsWritten(lower=True, strip_markup=True).model_dump()}
    for tab, name in names.items():
        path = store.root / name / ("lexloom.json" if tab in ("sentiment", "write") else "config.json")
        described = json.loads(path.read_text()) if path.is_file() else {"model": "sentiment"}
        path.write_text(json.dumps({**described, **rules}))
    shelf = Shelf(store)
    typed, read = "The <i>film</i> was BAD", "the film was bad"
    assert last(answers.sentiment(shelf, names["sentiment"], typed)) == last(
        answers.sentiment(shelf, names["sentiment"], read)
    )
    typed, read = "The <b>People</b>", "the people"
    assert last(answers.next_word(shelf, names["next-word"], typed)) == last(
        answers.next_word(shelf, names["next-word"], read)
    )
    options = (5, 0.0, 0, 1.0, 0.0, 1.0, 0)
    assert last(answers.write(shelf, names["write"], typed, *options)) == last(
        answers.write(shelf, names["write"], read, *options)
    )
    assert last(answers.neighbours(shelf, names["words"], "<b>Pea</b>CE")) == last(
        answers.neighbours(shelf, names["words"], "peace")
    )
    assert "war is to wars as peace is to" in text_of(
        last(answers.analogy(shelf, names["words"], "WAR", "Wars", "<i>peace</i>"))
    )
