"""The handlers of the page: each takes the inputs of a tab and yields the HTML to show for them.

They are generators, since some results arrive in steps; the last step is the whole result. Errors are shown
as one sentence in place of the result.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec

import numpy as np
from markupsafe import Markup

from lexloom.deployments.web.model_catalog import ModelCatalog
from lexloom.models.sampling import Sampling, explain_no_text
from lexloom.models.tokenizer.tokenizer import SPACE_SIGN
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.charts import project, word_map
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.display.templates import macros

TEMPLATES = Path(__file__).parent / "templates"
results = macros("results.html.j2", TEMPLATES)

MAX_CHARACTERS = {"text": 20_000, "prompt": 4_000, "context": 4_000, "word": 100}
MAX_TOKENS = 1_000
STOP_AT_END = "Stop at end of text"  # label of the checkbox
SECONDS_BETWEEN_UPDATES = 0.05  # of a text in generation: faster ones are not seen, and load the page
ATTRIBUTIONS = 6  # words in each list of attributions
NEXT_TOKENS = 12
CONTEXT_TOKENS = 24  # of a long context, only the last ones are shown
NEIGHBOURS, NEIGHBOURS_ON_MAP = 15, 40
ANALOGY_ANSWERS = 8
MAPS = (  # class, words, width, height
    ("map-wide", 1 + NEIGHBOURS_ON_MAP, 720, 500),
    ("map-narrow", 20, 330, 380),
)
REPLACEMENT = "\ufffd"  # what a token decodes to that is only a part of a character

Options = ParamSpec("Options")


def show_errors(
    handler: Callable[Concatenate[ModelCatalog, str, Options], Iterator[Markup]],
) -> Callable[Concatenate[ModelCatalog, str | None, Options], Iterator[Markup]]:
    """Make a handler show an error as one sentence, without a traceback."""

    @functools.wraps(handler)
    def handle(
        catalog: ModelCatalog, model: str | None, *args: Options.args, **kwargs: Options.kwargs
    ) -> Iterator[Markup]:
        try:
            if not model:
                raise ValueError("no model is selected: train one, and press Refresh")
            yield from handler(catalog, model, *args, **kwargs)
        except ModuleNotFoundError as error:
            yield error_message(f"{error.name} is not installed: pip install 'lexloom[sentiment]'")
        except (ValueError, LookupError, OSError) as error:
            yield error_message(str(error))
        except Exception as error:
            logging.getLogger("lexloom").exception("a web page handler failed")
            yield error_message(f"internal error ({type(error).__name__}): see the terminal for details")

    return handle


def error_message(message: str) -> Markup:
    """Return an error in place of a result; screen readers read it out at once."""
    error: Markup = results.error(as_sentence(message))
    return error


def as_sentence(message: str) -> str:
    return message[:1].upper() + message[1:].rstrip(".") + "."


def check_length(field: str, text: str | None) -> str:
    """Return the text of a field, or "".

    Raises:
        ValueError: it is too long.
    """
    limit = MAX_CHARACTERS[field]
    if len(text or "") > limit:
        raise ValueError(
            f"the {field} has {counted(len(text or ''), 'characters')}; the limit is {limit:,}: shorten it"
        )
    return text or ""


# classification


@show_errors
def classify(catalog: ModelCatalog, model: str, text: str) -> Iterator[Markup]:
    """Show the probabilities of the labels; then the attributions of the words, which take longer."""
    text = check_length("text", text).strip()
    if not text:
        raise ValueError("the text is empty: enter a sentence or a review")
    classifier = catalog.load(model, "classify")
    probabilities = classifier.probabilities([text])[0].tolist()
    ranking = sorted(zip(classifier.labels, probabilities, strict=True), key=lambda pair: -pair[1])
    label, probability = ranking[0]
    prediction = (label, f"{probability:.1%}", [Bar(name, share, f"{share:.1%}") for name, share in ranking])
    yield results.classification(*prediction, None)
    attributions, text = classifier.attribute(text), classifier.normalized(text)
    yield results.classification(
        *prediction, attribution_content(text, attributions, label, classifier.max_length)
    )


def attribution_content(
    text: str, attributions: Sequence[tuple[str, float]], label: str, max_length: int
) -> dict[str, Any]:
    """Return the text in parts with the marks of its words, and the words with the largest effects."""
    largest = max((abs(effect) for _, effect in attributions), default=0.0) or 1.0
    parts: list[tuple[str, dict[str, Any] | None]] = []
    place = 0
    for words, effect in attributions:
        start = text.index(words, place)
        side, weight = "for" if effect > 0 else "against", abs(effect) / largest
        mark = {"side": side, "weight": weight, "title": signed(effect)}
        parts += [(text[place:start], None), (words, mark)]
        place = start + len(words)
    truncated = bool(text[place:].strip())
    note = f"Decrease in the log-odds of \u201c{label}\u201d when a word is removed."
    if truncated:
        note += f" Only the first {counted(max_length, 'tokens')} are classified; the rest is shown in grey."
    return {
        "parts": parts,
        "unread": text[place:] if truncated else "",
        "note": note,
        "lists": attribution_lists(attributions, label, largest),
    }


def attribution_lists(
    attributions: Sequence[tuple[str, float]], label: str, largest: float
) -> list[tuple[str, list["Bar"]]]:
    """Return (title, bars) of the words that support the label most, and of those that oppose it.

    `largest` is the effect that fills a bar.
    """
    ranking = sorted(attributions, key=lambda pair: -pair[1])
    sides = (
        (f"For \u201c{label}\u201d", [pair for pair in ranking[:ATTRIBUTIONS] if pair[1] > 0]),
        (f"Against \u201c{label}\u201d", [pair for pair in reversed(ranking[-ATTRIBUTIONS:]) if pair[1] < 0]),
    )
    return [
        (title, [Bar(words, abs(effect) / largest, signed(effect)) for words, effect in side])
        for title, side in sides
        if side
    ]


def signed(effect: float) -> str:
    return f"{effect:+.2f}".replace("-", "\u2212")


# generation


@show_errors
def write(
    catalog: ModelCatalog,
    model: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
    stop_at_end: bool = False,
) -> Iterator[Markup]:
    """Show the continuation of the prompt while the model generates it, or why it is empty."""
    numbers = (tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if any(number is None for number in numbers):
        raise ValueError("a field under \u201cSampling options\u201d is empty: enter a number")
    if tokens > MAX_TOKENS:
        raise ValueError(f"{tokens:,} tokens exceed the limit of {MAX_TOKENS:,}: lower the maximum")
    prompt = check_length("prompt", prompt)
    sampling = Sampling(
        max_tokens=int(tokens),
        temperature=temperature,
        top_k=int(top_k),
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=int(seed),
        stop_at_end=stop_at_end,
    )
    language_model = catalog.load(model, "generate")
    shown_prompt, text, updated = language_model.prompt(prompt), "", time.monotonic()
    for (piece,) in language_model.generate([prompt], sampling):
        text += piece
        if time.monotonic() - updated >= SECONDS_BETWEEN_UPDATES:
            yield results.generated_text(shown_prompt, text, finished=False)
            updated = time.monotonic()
    reason = explain_no_text(sampling).replace("stop_at_end", f"\u201c{STOP_AT_END}\u201d")
    note = "" if text.strip() else as_sentence(reason)
    yield results.generated_text(shown_prompt, text, finished=True, note=note)


def stopped(shown: str | None) -> Markup:
    """Return a text in generation as finished."""
    return Markup((shown or "").replace(results.caret(), ""))


# the next token


@show_errors
def next_token(catalog: ModelCatalog, model: str, context: str) -> Iterator[Markup]:
    """Show the most probable next tokens; each is a button that emits its text (`data-pick`)."""
    context = check_length("context", context)
    language_model = catalog.load(model, "generate")
    tokenizer, names = language_model.tokenizer, language_model.tokenizer.display_names()
    ids = tokenizer.encode(language_model.prompt(context))
    decoder = language_model.new_decoder()
    logits = decoder([ids or [tokenizer.end_of_text]])[0, : tokenizer.size].cpu()  # (V,)
    read = ids if language_model.context is None else ids[-language_model.context :]
    limit = (
        "the whole context"
        if language_model.context is None
        else f"the last {counted(language_model.context, 'tokens')}"
    )
    note = f"The model sees {limit}" + (
        f"; {SPACE_SIGN} is a space." if ids else ". The context is empty: these tokens start a text."
    )
    if language_model.has_probabilities:
        note += " Select a token to append it."
        best = logits.softmax(0).topk(min(NEXT_TOKENS, len(logits)))
        shares = [float(value) for value in best.values]
        figures = [f"{value:.1%}" for value in shares]
    else:
        note += " It predicts an embedding, so the bars show similarities, not probabilities."
        best = logits.topk(min(NEXT_TOKENS, len(logits)))
        low, high = float(logits.median()), float(best.values[0])
        shares = [(float(value) - low) / ((high - low) or 1.0) for value in best.values]
        figures = [f"{float(value):.3f}" for value in best.values]
    rows = [
        Bar(names[token], share, figure, pick=selectable(tokenizer.decode([token])))
        for token, share, figure in zip(best.indices.tolist(), shares, figures, strict=True)
    ]
    shown = [names[token] for token in read[-CONTEXT_TOKENS:]]
    yield results.next_tokens(note, shown, len(read) > CONTEXT_TOKENS, rows)


def selectable(text: str) -> str | None:
    """Return the text that selecting a token emits; None for a token that is a part of a character."""
    return None if REPLACEMENT in text else text


# words


@show_errors
def neighbours(catalog: ModelCatalog, model: str, word: str) -> Iterator[Markup]:
    """Show the nearest words, each a button that looks up that word, and a map of them."""
    vectors = catalog.load(model, "neighbours")
    word = find_word(vectors, check_length("word", word), "word")
    (nearest,) = vectors.neighbours([word], NEIGHBOURS_ON_MAP)
    on_map = [word, *(other for other, _ in nearest)]
    points = project(np.stack([vectors[each].numpy() for each in on_map]))
    hints = [word, *(f"{other}: {rounded(cosine)}" for other, cosine in nearest)]
    maps = [
        (screen, word_map(points[:count], on_map[:count], hints[:count], width, height))
        for screen, count, width, height in MAPS
    ]
    rows = [similarity_bar(other, cosine) for other, cosine in nearest[:NEIGHBOURS]]
    yield results.neighbours(word, rows, maps)


@show_errors
def analogy(catalog: ModelCatalog, model: str, a: str, b: str, c: str) -> Iterator[Markup]:
    """Show the words that are to C as B is to A."""
    vectors = catalog.load(model, "neighbours")
    a, b, c = (
        find_word(vectors, check_length("word", word), name)
        for name, word in zip("ABC", (a, b, c), strict=True)
    )
    rows = [similarity_bar(word, cosine) for word, cosine in vectors.analogy(a, b, c, ANALOGY_ANSWERS)]
    yield results.analogy(f"{a} is to {b} as {c} is to\u2026", rows)


def find_word(vectors: WordVectors, word: str, field: str) -> str:
    """Return a word as the model spells it: as a token after a space, as typed, or in lower case.

    Each is normalized like the model's training text.

    Raises:
        ValueError: the word is empty.
        UnknownWordError: it is not in the vocabulary; the message suggests similar words.
    """
    word = word.strip()
    if not word:
        raise ValueError(f"the field \u201c{field.capitalize()}\u201d is empty: enter a word")
    spellings = (SPACE_SIGN + word, SPACE_SIGN + word.lower(), word, word.lower())
    found = next((spelling for spelling in spellings if spelling in vectors), word)
    vectors[found]  # raises if it is unknown
    return vectors.spelling(found)


def rounded(cosine: float) -> str:
    return f"{round(cosine, 2) + 0:.2f}".replace("-", "\u2212")  # + 0: no minus before 0.00


# bars


class Bar(NamedTuple):
    """A row of a bar chart.

    Attributes:
        name: its label.
        share: the length of its bar, from 0 to 1.
        figure: the number at its end.
        pick: the text that selecting it emits; None if it can't be selected.
    """

    name: str
    share: float
    figure: str
    pick: str | None = None


def similarity_bar(word: str, cosine: float) -> Bar:
    return Bar(word, max(cosine, 0), rounded(cosine), pick=word)
