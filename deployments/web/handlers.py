"""What the page answers: each function takes what was typed into a tab and gives the HTML to show for it.

All are generators, since some answers come in pieces; the last piece is the whole answer. What can't be
answered ends in one sentence in its place.
"""

import functools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, NamedTuple, ParamSpec

import numpy as np

from lexloom.deployments.web.model_catalog import Shelf
from lexloom.models.language_model import TOKENIZER, Windows, load_language_model
from lexloom.models.normalization import Normalization, normalize_prompt, read_normalization
from lexloom.models.sampling import Sampling, sample_text
from lexloom.models.tokenizer.tokenizer import SPACE_SIGN, Tokenizer
from lexloom.models.window_lm import WindowLM
from lexloom.models.word2vec.vectors import WordVectors
from lexloom.tasks.display.charts import Html, html, in_the_plane, join, word_map
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.display.page import card, columns, element, section

if TYPE_CHECKING:
    from lexloom.models.sentiment.classifier import Sentiment

MOST_CHARACTERS = {"review": 20_000, "prompt": 4_000, "context": 4_000, "word": 100}
MOST_TOKENS = 1_000
SECONDS_BETWEEN_PIECES = 0.05  # of a text that is being written: the eye sees no more, and the page keeps up
PULLS = 6  # words in each list of what spoke for and against
NEXT_TOKENS = 12
NEAR, NEAR_ON_MAP = 15, 40
NEAR_ANALOGY = 8
MAPS = (("roomy", 1 + NEAR_ON_MAP, 720, 500), ("narrow", 20, 330, 380))  # screen, words, width, height
CARET = Html('<i class="caret"></i>')
UNSHOWABLE = "\ufffd"  # what a token decodes to that is only a part of a character

Options = ParamSpec("Options")


def in_one_sentence(
    answer: Callable[Concatenate[Shelf, str, Options], Iterator[Html]],
) -> Callable[Concatenate[Shelf, str | None, Options], Iterator[Html]]:
    """The same answer, which says in its place what is wrong, and shows nobody a traceback."""

    @functools.wraps(answer)
    def told(
        shelf: Shelf, model: str | None, *args: Options.args, **kwargs: Options.kwargs
    ) -> Iterator[Html]:
        try:
            if not model:
                raise ValueError("there is no model to ask: train one, and press Refresh")
            yield from answer(shelf, model, *args, **kwargs)
        except ModuleNotFoundError as error:
            yield problem(f"the package {error.name} is missing: pip install 'lexloom[sentiment]'")
        except (ValueError, LookupError, OSError) as error:
            yield problem(str(error))
        except Exception as error:
            logging.getLogger("lexloom").exception("the page could not answer")
            yield problem(
                f"something went wrong that should not ({type(error).__name__}); the terminal has more"
            )

    return told


def problem(message: str) -> Html:
    """A sentence in the place of an answer; read out by screen readers at once."""
    sentence = message[:1].upper() + message[1:].rstrip(".") + "."
    return framed(Html(f'<p class="problem" role="alert">{html(sentence)}</p>'))


def framed(body: Html) -> Html:
    """HTML to which the page's style sheet applies."""
    return Html(f'<div class="lexloom">{body}</div>')


def checked(what: str, text: str | None) -> str:
    """The text, unless it is too long to take."""
    most = MOST_CHARACTERS[what]
    if len(text or "") > most:
        raise ValueError(
            f"this {what} has {counted(len(text or ''), 'characters')}: the page takes {most:,} at most"
        )
    return text or ""


# sentiment


def load_classifier(folder: Path) -> "Sentiment":
    from lexloom.models.sentiment.classifier import Sentiment  # needs the packages of an extra

    return Sentiment.load(folder)


@in_one_sentence
def sentiment(shelf: Shelf, model: str, text: str) -> Iterator[Html]:
    """The label and its probability; then, since it takes longer, what each word did for it."""
    text = checked("review", text).strip()
    if not text:
        raise ValueError("there is no text yet: write a review, or a sentence of one")
    classifier = shelf.load(model, load_classifier)
    probabilities = classifier.probabilities([text])[0]
    verdict = scores(classifier.labels, probabilities.tolist())
    yield framed(verdict)
    pulls, text = classifier.attribute(text), classifier.normalized(text)
    winner = classifier.labels[int(probabilities.argmax())]
    yield framed(join([verdict, pulled(text, pulls, winner, classifier.max_length)]))


def scores(labels: Sequence[str], probabilities: Sequence[float]) -> Html:
    """The likeliest label, large, and a bar for each."""
    ranking = sorted(zip(labels, probabilities, strict=True), key=lambda pair: -pair[1])
    best, probability = ranking[0]
    tile = Html(f'<p class="verdict"><b>{html(best)}</b><span>{probability:.1%}</span></p>')
    return card(join([tile, bars([Bar(label, share, f"{share:.1%}") for label, share in ranking])]))


def pulled(text: str, pulls: Sequence[tuple[str, float]], winner: str, max_length: int) -> Html:
    """The text with its words shaded by their pull, and the strongest of both sides."""
    most = max(abs(pull) for _, pull in pulls) or 1.0
    parts, place = [], 0
    for words, pull in pulls:
        start = text.index(words, place)
        side = "for" if pull > 0 else "against"
        parts += [
            html(text[place:start]),
            Html(f'<mark class="{side}" style="--pull: {abs(pull) / most:.2f}" title="{signed(pull)}">'),
            html(words),
            Html("</mark>"),
        ]
        place = start + len(words)
    if text[place:].strip():
        parts += [Html('<span class="unread">'), html(text[place:]), Html("</span>")]
    shaded = Html(f'<p class="shaded">{join(parts)}</p>')
    read = (
        f" The model reads the first {counted(max_length, 'tokens')}; the rest is grey."
        if text[place:].strip()
        else ""
    )
    note = (
        f"Each word is left out in turn: its pull is how far the log odds of \u201c{winner}\u201d fall.{read}"
    )
    lists = columns(strongest(pulls, winner, most))
    return section("What pulled it", join([card(shaded), lists]), note)


def strongest(pulls: Sequence[tuple[str, float]], winner: str, most: float) -> list[Html]:
    """A card of what spoke most for the label, and one of what spoke against it; `most` fills a bar."""
    ranking = sorted(pulls, key=lambda pair: -pair[1])
    sides = (
        (f"For {winner}", [pair for pair in ranking[:PULLS] if pair[1] > 0]),
        ("Against it", [pair for pair in reversed(ranking[-PULLS:]) if pair[1] < 0]),
    )
    return [
        card(
            join(
                [
                    element("h3", title),
                    bars([Bar(words, abs(pull) / most, signed(pull)) for words, pull in side]),
                ]
            )
        )
        for title, side in sides
        if side
    ]


def signed(pull: float) -> str:
    return f"{pull:+.2f}".replace("-", "\u2212")


# writing


@in_one_sentence
def write(
    shelf: Shelf,
    model: str,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seed: int,
) -> Iterator[Html]:
    """What a language model writes behind the prompt, as it comes."""
    numbers = (tokens, temperature, top_k, top_p, min_p, repetition_penalty, seed)
    if any(number is None for number in numbers):
        raise ValueError("one of the numbers under \u201cHow it draws\u201d is empty: fill it in")
    if tokens > MOST_TOKENS:
        raise ValueError(f"{tokens:,} tokens are many: the page writes {MOST_TOKENS:,} at most")
    prompt = checked("prompt", prompt)
    sampling = Sampling(
        max_tokens=int(tokens),
        temperature=temperature,
        top_k=int(top_k),
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=int(seed),
    )
    writer = shelf.load(model, load_language_model).anew()
    prompt = writer.prompt(prompt)
    written, shown = "", time.monotonic()
    for (piece,) in sample_text(writer.next_logits, writer.tokenizer, [prompt], sampling):
        written += piece
        if time.monotonic() - shown >= SECONDS_BETWEEN_PIECES:
            yield sheet(prompt, written, going_on=True)
            shown = time.monotonic()
    yield sheet(prompt, written, going_on=False)


def sheet(prompt: str, written: str, going_on: bool) -> Html:
    """The prompt, greyed, and what was written; a bar blinks behind what is not over."""
    parts = [Html('<span class="prompt">'), html(prompt), Html("</span>"), html(written)]
    text = join([*parts, CARET if going_on else Html()])
    return framed(card(Html(f'<p class="sample">{text}</p>')))


def stopped(shown: str | None) -> Html:
    """A sheet on which nobody goes on writing."""
    return Html((shown or "").replace(CARET, ""))


# the next word


class Predictor(NamedTuple):
    """A window model and the tokenizer that belongs to it."""

    model: WindowLM
    tokenizer: Tokenizer
    normalization: Normalization | None


def load_predictor(folder: Path) -> Predictor:
    return Predictor(WindowLM.load(folder), Tokenizer.load(folder / TOKENIZER), read_normalization(folder))


@in_one_sentence
def next_word(shelf: Shelf, model: str, context: str) -> Iterator[Html]:
    """The likeliest tokens behind a context; each is a button that gives its text (`data-pick`)."""
    context = checked("context", context)
    predictor = shelf.load(model, load_predictor)
    tokenizer, names = predictor.tokenizer, predictor.tokenizer.display_names()
    ids = tokenizer.encode(normalize_prompt(context, predictor.normalization))
    logits = Windows(predictor.model)([ids])[0, : tokenizer.size]  # (V,)
    seen = [names[token] for token in ids[-predictor.model.config.context :]]
    chips = join([Html('<p class="seen">'), *(element("code", name) for name in seen), Html("</p>")])
    read = f"The model sees the last {counted(predictor.model.config.context, 'tokens')}" + (
        f"; {SPACE_SIGN} is a space." if seen else ": none yet, so this is how texts begin."
    )
    if predictor.model.softmax is None:
        note = "It predicts an embedding: the bars are how near each token's is, not probabilities."
        values, best = logits, logits.topk(min(NEXT_TOKENS, len(logits)))
        low, high = float(values.median()), float(best.values[0])
        shown = [(float(value) - low) / ((high - low) or 1.0) for value in best.values]
        figures = [f"{float(value):.3f}" for value in best.values]
    else:
        note = "Choose one to append it."
        best = logits.softmax(0).topk(min(NEXT_TOKENS, len(logits)))
        shown = [float(value) for value in best.values]
        figures = [f"{value:.1%}" for value in shown]
    rows = [
        Bar(names[token], share, said, pick=tokenizer.decode([token]))
        for token, share, said in zip(best.indices.tolist(), shown, figures, strict=True)
    ]
    yield framed(card(join([element("p", f"{read} {note}", "note"), chips, bars(rows)])))


# words


@in_one_sentence
def neighbours(shelf: Shelf, model: str, word: str) -> Iterator[Html]:
    """The nearest words, each a button that asks for its own; and a map of their surroundings."""
    vectors = shelf.load(model, WordVectors.load)
    word = known(vectors, checked("word", word), "word")
    (near,) = vectors.neighbours([word], NEAR_ON_MAP)
    ranking = bars([Bar(other, max(cosine, 0), rounded(cosine), pick=other) for other, cosine in near[:NEAR]])
    surroundings = [word, *(other for other, _ in near)]
    places = in_the_plane(np.stack([vectors[each].numpy() for each in surroundings]))
    hints = [word, *(f"{other}: {rounded(cosine)}" for other, cosine in near)]
    drawn = join(
        Html(
            f'<div class="{screen}">'
            f"{word_map(places[:most], surroundings[:most], hints[:most], width, height)}</div>"
        )
        for screen, most, width, height in MAPS
    )
    note = "How far their vectors point the same way (cosine)."
    yield framed(
        Html(
            f'<div class="beside">{card(join([element("h3", word), element("p", note, "note"), ranking]))}'
            f"{card(join([element('h3', 'Around it'), element('p', MAP_NOTE, 'note'), drawn]))}</div>"
        )
    )


MAP_NOTE = "Its nearest words in the plane: what stands together points the same way (t-SNE)."


@in_one_sentence
def analogy(shelf: Shelf, model: str, a: str, b: str, c: str) -> Iterator[Html]:
    """A is to B as C is to what?"""
    vectors = shelf.load(model, WordVectors.load)
    a, b, c = (
        known(vectors, checked("word", word), name) for name, word in zip("ABC", (a, b, c), strict=True)
    )
    found = vectors.analogy(a, b, c, NEAR_ANALOGY)
    rows = [Bar(word, max(cosine, 0), rounded(cosine), pick=word) for word, cosine in found]
    yield framed(card(join([element("h3", f"{a} is to {b} as {c} is to\u2026"), bars(rows)])))


def known(vectors: WordVectors, word: str, name: str) -> str:
    """The word as the model spells it: as a token with a space before, as it was typed, or in lower case.

    Each is normalised as the model's training text was.

    Raises:
        ValueError: it is empty.
        UnknownWordError: it is none of the model's; the message names near ones.
    """
    word = word.strip()
    if not word:
        raise ValueError(f"the field \u201c{name.capitalize()}\u201d is empty: type a word")
    spellings = (SPACE_SIGN + word, SPACE_SIGN + word.lower(), word, word.lower())
    found = next((spelling for spelling in spellings if spelling in vectors), word)
    vectors[found]  # raises where it is unknown
    return vectors.spelling(found)


def rounded(cosine: float) -> str:
    return f"{round(cosine, 2) + 0:.2f}".replace("-", "\u2212")  # + 0: no minus before 0.00


# bars


class Bar(NamedTuple):
    """A row: what it is, its share of the bar (0 to 1), the figure, and the text that choosing it gives."""

    name: str
    share: float
    figure: str
    pick: str | None = None


def bars(rows: Sequence[Bar]) -> Html:
    return Html(f'<ul class="near">{join(map(bar, rows))}</ul>')


def bar(row: Bar) -> Html:
    inside = Html(
        f'<span>{html(row.name)}</span><i style="--share: {row.share:.4f}"></i><b>{html(row.figure)}</b>'
    )
    if row.pick and UNSHOWABLE not in row.pick:
        inside = Html(f'<button type="button" data-pick="{html(row.pick)}">{inside}</button>')
    return Html(f"<li>{inside}</li>")
