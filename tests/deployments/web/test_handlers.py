"""The page's handlers: their results equal the models', and bad input is a one-sentence error."""

import json
import re
import sys
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from markupsafe import Markup

from lexloom.deployments.web import handlers
from lexloom.deployments.web.model_catalog import ModelCatalog
from lexloom.models.sampling import Sampling, sample_text
from lexloom.models.sentiment.classifier import Classifier
from lexloom.models.transformer.model import CachedDecoder
from lexloom.models.window_lm import WindowDecoder, WindowLM, WindowLMConfig
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.corpus import AsWritten
from lexloom.tasks.store.artifacts import Store
from tests.deployments.store import (
    CONTEXT,
    fill,
    shelve,
    tokenizer,
    transformer_model,
    window_model,
    write_words,
)
from tests.models.silent import silent_model

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
def catalog(filled: Store) -> ModelCatalog:
    return ModelCatalog(filled)


def last(pieces: Iterator[Markup]) -> str:
    """Return the final result, and assert that it is not an error."""
    result = list(pieces)[-1]
    assert 'role="alert"' not in result
    return result


def text_of(answer: str) -> str:
    return unescape(re.sub(r"<[^>]+>", "", answer))


def rows(answer: str) -> list[tuple[str, str]]:
    """Return (name, figure) of every bar."""
    found = re.findall(r"<span>([^<]*)</span><i style=[^>]*></i><b>([^<]*)</b>", answer)
    return [(unescape(name), figure) for name, figure in found]


def complaint(pieces: Iterator[Markup]) -> str:
    """Return the error sentence of a result."""
    (said,) = list(pieces)
    assert 'role="alert"' in said
    sentence = text_of(said)
    assert sentence.endswith(".")
    assert "Traceback" not in sentence
    return sentence


# classification


def test_classify_shows_label_score_and_attributions(catalog: ModelCatalog, names: Names) -> None:
    classifier = Classifier.load(catalog.store.root / names["classifier"])
    ((label, score),) = classifier.classify([REVIEW])
    attributions = dict(classifier.attribute(REVIEW))
    early, whole = handlers.classify(catalog, names["classifier"], REVIEW)
    assert f"<b>{label}</b><span>{score:.1%}</span>" in early  # at once: attributions take longer
    assert "<mark" not in early
    assert early.removesuffix("</div>") in whole
    shown = rows(whole)
    assert dict(shown)[label] == f"{score:.1%}"
    strongest = max(attributions, key=lambda word: attributions[word])
    assert dict(shown)[strongest] == f"+{attributions[strongest]:.2f}"
    marked = re.findall(r'<mark class="(\w+)" style="--weight: ([\d.]+)"[^>]*>([^<]*)</mark>', whole)
    assert [word for _, _, word in marked] == REVIEW.split()
    assert {word: side == "for" for side, _, word in marked} == {
        word: effect > 0 for word, effect in attributions.items()
    }
    assert max(float(share) for _, share, _ in marked) == 1


def test_words_beyond_the_models_limit_are_shown_as_unread(catalog: ModelCatalog, names: Names) -> None:
    answer = last(handlers.classify(catalog, names["classifier"], " ".join(["film"] * 40)))
    assert answer.count("<mark") == 14  # 16 tokens, of which two are marks
    unread = re.search(r'<span class="unread">([^<]*)</span>', answer)
    assert unread is not None
    assert unread[1].split() == ["film"] * 26
    assert "the first 16 tokens" in answer


def test_input_is_escaped(catalog: ModelCatalog, names: Names) -> None:
    typed = "<script>alert(1)</script> & <img src=x onerror=alert(1)>"
    answer = last(handlers.classify(catalog, names["classifier"], typed))
    assert "<script" not in answer
    assert "<img" not in answer
    said = complaint(handlers.neighbours(catalog, names["words"], "<b>war</b>"))
    assert "'<b>war</b>' is not in the vocabulary of 6 words" in said


# generation


def test_generated_text_is_the_models(catalog: ModelCatalog, names: Names) -> None:
    sampling = Sampling(max_tokens=20, temperature=0.8, seed=7)
    prompt = "the <b>"
    expected = "".join(
        piece for (piece,) in sample_text(CachedDecoder(transformer_model()), tokenizer(), [prompt], sampling)
    )
    assert expected
    answer = last(handlers.write(catalog, names["transformer"], prompt, **DRAWS))
    assert text_of(answer) == prompt + expected
    assert '<span class="prompt">the &lt;b&gt;</span>' in answer
    assert str(handlers.results.caret()) not in answer


def test_texts_that_are_generated_concurrently_do_not_affect_each_other(
    catalog: ModelCatalog, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "SECONDS_BETWEEN_UPDATES", 0)
    alone = {
        prompt: last(handlers.write(catalog, names["transformer"], prompt, **DRAWS))
        for prompt in ("the people", "a long peac")  # by turns, each text is one longer than the last read
    }
    one, two = (handlers.write(catalog, names["transformer"], prompt, **DRAWS) for prompt in alone)
    pairs = list(zip(one, two, strict=False))
    assert [pairs[-1][0], pairs[-1][1]] == list(alone.values())
    growing = [len(text_of(piece)) for piece, _ in pairs]
    assert growing == sorted(growing)
    assert len(set(growing)) > 10  # it came piece by piece
    assert all(str(handlers.results.caret()) in piece for piece, _ in pairs[:-1])


def test_a_stopped_text_stays_without_a_caret(catalog: ModelCatalog, names: Names) -> None:
    sheet = handlers.results.generated_text("the", " people", finished=False)
    assert text_of(handlers.stopped(sheet)) == "the people"
    assert str(handlers.results.caret()) not in handlers.stopped(sheet)
    assert handlers.stopped(None) == ""


def test_an_empty_prompt_begins_a_text(catalog: ModelCatalog, names: Names) -> None:
    assert text_of(last(handlers.write(catalog, names["transformer"], "", **DRAWS)))


def test_an_empty_text_is_explained(monkeypatch: pytest.MonkeyPatch, catalog: ModelCatalog) -> None:
    monkeypatch.setattr(catalog, "load", lambda model, kind: silent_model())
    answer = text_of(last(handlers.write(catalog, "any", "The", **DRAWS)))
    assert answer.startswith("TheThe model generated no text: it predicted only ends of texts")
    answer = text_of(last(handlers.write(catalog, "any", "The", **DRAWS, stop_at_end=True)))
    assert "without \u201cStop at end of text\u201d, it continues with another text." in answer


def test_a_window_model_generates_text(catalog: ModelCatalog, names: Names) -> None:
    answer = last(handlers.write(catalog, names["window"], "the people", **DRAWS))
    assert text_of(answer).startswith("the people")
    assert len(text_of(answer)) > len("the people")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": "p" * 4001}, "The prompt has 4,001 characters; the limit is 4,000: shorten it."),
        ({"prompt": "é"}, "The character 'é' (U+00E9) is not one of this"),
        ({"tokens": 1001}, "1,001 tokens exceed the limit of 1,000: lower the maximum."),
        ({"tokens": 0}, "Max_tokens is 0: it must be at least 1."),
        (
            {"temperature": -1},
            "Temperature is -1: it must be at least 0 (0 selects the most",
        ),
        ({"seed": None}, "A field under “Sampling options” is empty: enter a number."),
    ],
)
def test_bad_sampling_options_and_prompts_are_one_sentence(
    catalog: ModelCatalog, names: Names, changes: dict[str, Any], said: str
) -> None:
    given = {"prompt": "the", **DRAWS, **changes}
    assert complaint(handlers.write(catalog, names["transformer"], **given)).startswith(said)


# the next token


def test_next_tokens_have_the_models_probabilities(catalog: ModelCatalog, names: Names) -> None:
    ids = tokenizer().encode("the people")[-CONTEXT:]
    with torch.inference_mode():
        chances = window_model().log_probabilities(torch.tensor([ids])).exp()[0, : tokenizer().size]
    best = chances.topk(12)
    spelled = tokenizer().display_names()
    expected = [
        (spelled[token], f"{chance / chances.sum():.1%}")
        for token, chance in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    answer = last(handlers.next_token(catalog, names["window"], "the people"))
    assert rows(answer) == expected
    assert re.findall(r"<code>([^<]*)</code>", answer) == ["p", "l", "e"]  # all that the model sees
    picks = [unescape(pick) for pick in re.findall(r'data-pick="([^"]*)"', answer)]
    assert picks == [
        tokenizer().decode([token]) for token in best.indices.tolist() if token != tokenizer().end_of_text
    ]


def test_without_a_context_the_tokens_begin_a_text(catalog: ModelCatalog, names: Names) -> None:
    padding = tokenizer().end_of_text
    with torch.inference_mode():
        chances = window_model().log_probabilities(torch.tensor([[padding] * CONTEXT])).exp()
    answer = last(handlers.next_token(catalog, names["window"], ""))
    assert rows(answer)[0][0] == tokenizer().display_names()[int(chances.argmax())]
    assert "these tokens start a text" in answer


def test_a_model_that_predicts_embeddings_shows_similarities_not_probabilities(store: Store) -> None:
    torch.manual_seed(0)
    model = WindowLM(
        WindowLMConfig(vocabulary=30, context=2, dim=4, padding=0, width=8, objective="embedding")
    ).eval()

    def write(folder: Path) -> None:
        model.save(folder)
        tokenizer().save(folder / "tokenizer")

    name = shelve(store, "train_window_lm", "regression", write)
    answer = last(handlers.next_token(ModelCatalog(store), name, "the"))
    nearness = WindowDecoder(model)([tokenizer().encode("the")])[0, : tokenizer().size]
    assert rows(answer)[0][1] == f"{float(nearness.max()):.3f}"
    assert "%" not in text_of(answer)
    assert "not probabilities" in answer


# words


def test_neighbours_are_ordered_by_their_angles(catalog: ModelCatalog, names: Names) -> None:
    answer = last(handlers.neighbours(catalog, names["words"], "war"))
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


def test_an_analogy_adds_the_same_angle(catalog: ModelCatalog, names: Names) -> None:
    # from war (0°) to wars (10°), and from there by the same way: b - a + c points to 15°, battle at 20°
    answer = last(handlers.analogy(catalog, names["words"], "war", "wars", "battle"))
    assert rows(answer)[0][0] == "peace"  # what is left of the others, nearest to 30°
    assert "war is to wars as battle is to" in answer


def test_capitals_and_spaces_around_a_word_are_ignored(catalog: ModelCatalog, names: Names) -> None:
    assert rows(last(handlers.neighbours(catalog, names["words"], " War ")))[0][0] == "wars"


def test_a_token_that_begins_a_word_is_preferred() -> None:
    tokens = WordVectors(["peace", "\u2581peace", "war"], torch.eye(3))
    assert handlers.find_word(tokens, "Peace", "word") == "\u2581peace"
    assert handlers.find_word(tokens, "war", "word") == "war"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("", "The field “Word” is empty: enter a word."),
        ("battles", "'battles' is not in the vocabulary of 6 words; similar words: battle."),
        ("w" * 101, "The word has 101 characters; the limit is 100: shorten it."),
    ],
)
def test_a_word_that_can_not_be_looked_up_is_one_sentence(
    catalog: ModelCatalog, names: Names, word: str, said: str
) -> None:
    assert complaint(handlers.neighbours(catalog, names["words"], word)) == said


def test_an_empty_field_of_an_analogy_is_named(catalog: ModelCatalog, names: Names) -> None:
    said = complaint(handlers.analogy(catalog, names["words"], "war", "", "tea"))
    assert said == "The field “B” is empty: enter a word."


# all handlers


def test_empty_and_long_texts_are_refused(catalog: ModelCatalog, names: Names) -> None:
    assert complaint(handlers.classify(catalog, names["classifier"], " \n")).startswith("The text is empty")
    said = complaint(handlers.classify(catalog, names["classifier"], "word " * 100_000))
    assert said == "The text has 500,000 characters; the limit is 20,000: shorten it."


def test_without_a_model_there_is_an_error(catalog: ModelCatalog) -> None:
    said = complaint(handlers.neighbours(catalog, None, "war"))
    assert said == "No model is selected: train one, and press Refresh."


def test_a_damaged_model_is_one_sentence_that_names_the_file(store: Store) -> None:
    name = shelve(store, "train_word2vec", "damaged", write_words)
    (store.root / name / "model.safetensors").write_bytes(b"nonsense")
    said = complaint(handlers.neighbours(ModelCatalog(store), name, "war"))
    assert "model.safetensors has no tensor 'vectors'" in said


def test_an_internal_error_is_logged_and_shown_without_a_traceback(
    catalog: ModelCatalog, names: Names, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any) -> Any:
        raise RuntimeError("secret")

    monkeypatch.setattr(handlers, "project", broken)
    said = complaint(handlers.neighbours(catalog, names["words"], "war"))
    assert said == "Internal error (RuntimeError): see the terminal for details."
    assert "secret" in caplog.text


def test_a_missing_extra_is_named(
    catalog: ModelCatalog, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lexloom.models.sentiment.family", None)
    catalog = ModelCatalog(catalog.store)
    said = complaint(handlers.classify(catalog, names["classifier"], REVIEW))
    assert said == "Lexloom.models.sentiment.family is not installed: pip install 'lexloom[sentiment]'."


# normalization


def test_every_handler_normalizes_its_input_like_the_training_text(store: Store) -> None:
    names = fill(store)
    rules = {"normalization": AsWritten(lower=True, strip_markup=True).model_dump()}
    for kind, name in names.items():
        path = (
            store.root / name / ("lexloom.json" if kind in ("classifier", "transformer") else "config.json")
        )
        described = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**described, **rules}))
    catalog = ModelCatalog(store)
    typed, read = "The <i>film</i> was BAD", "the film was bad"
    assert last(handlers.classify(catalog, names["classifier"], typed)) == last(
        handlers.classify(catalog, names["classifier"], read)
    )
    typed, read = "The <b>People</b>", "the people"
    assert last(handlers.next_token(catalog, names["window"], typed)) == last(
        handlers.next_token(catalog, names["window"], read)
    )
    options = (5, 0.0, 0, 1.0, 0.0, 1.0, 0)
    assert last(handlers.write(catalog, names["transformer"], typed, *options)) == last(
        handlers.write(catalog, names["transformer"], read, *options)
    )
    assert last(handlers.neighbours(catalog, names["words"], "<b>Pea</b>CE")) == last(
        handlers.neighbours(catalog, names["words"], "peace")
    )
    assert "war is to wars as peace is to" in text_of(
        last(handlers.analogy(catalog, names["words"], "WAR", "Wars", "<i>peace</i>"))
    )
