"""Commands that use a trained model: words near a word, text that a model writes, labels of texts."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tasks.names import SENTIMENT, TRANSFORMER, WINDOW_LM, WORD2VEC, model_folder

MODEL = "a model's folder, the beginning of its key in the store, or latest"
FIRST_BATCH, MOST_AT_ONCE = 16, 1024  # texts: the first labels come soon, later ones fast
CHARACTERS_AT_ONCE = 1 << 22


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser("neighbours", help="the nearest words", parents=[shared])
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("words", nargs="+", metavar="WORD")
    command.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    command.set_defaults(run=neighbours)

    command = commands.add_parser("analogy", help="A is to B as C is to what?", parents=[shared])
    command.add_argument("model", metavar="MODEL", help=MODEL)
    for name in ("a", "b", "c"):
        command.add_argument(name, metavar=name.upper())
    command.add_argument("-k", type=int, default=5, help="how many (default: 5)")
    command.set_defaults(run=analogy)

    command = commands.add_parser("generate", help="let a language model write", parents=[shared])
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument(
        "--prompt", action="append", metavar="TEXT", help="what to go on from; may be given several times"
    )
    for flag, kind, default, purpose in (
        ("--tokens", int, 200, "how many to write at most"),
        ("--temperature", float, 0.8, "0 takes the likeliest token always"),
        ("--top-k", int, 0, "draw from the k likeliest tokens; 0 for all"),
        ("--top-p", float, 1.0, "draw from the fewest tokens whose probabilities add up to it"),
        ("--min-p", float, 0.0, "draw from tokens at least so many times as likely as the likeliest"),
        ("--repetition-penalty", float, 1.0, "above 1: tokens that have occurred become less likely"),
        ("--seed", int, 0, "the same one gives the same text"),
    ):
        command.add_argument(flag, type=kind, default=default, help=f"{purpose} (default: {default})")
    command.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end where this begins")
    command.set_defaults(run=generate)

    command = commands.add_parser("classify", help="a label and a score for each text", parents=[shared])
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("texts", nargs="*", metavar="TEXT", help="if none is given, the lines of stdin")
    command.add_argument("--file", type=Path, metavar="FILE", help="classify this file's lines")
    command.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    command.add_argument(
        "--json", action="store_true", help="a JSON object a line, with the scores of all labels"
    )
    command.set_defaults(run=classify)


def neighbours(arguments: argparse.Namespace) -> int:
    from models.word_vectors import WordVectors

    vectors = WordVectors.load(model_folder(arguments.model, WORD2VEC))
    for word, near in zip(arguments.words, vectors.neighbours(arguments.words, arguments.k), strict=True):
        print_ranking(vectors.spelling(word), near)
    return 0


def analogy(arguments: argparse.Namespace) -> int:
    from models.word_vectors import WordVectors

    vectors = WordVectors.load(model_folder(arguments.model, WORD2VEC))
    a, b, c = (vectors.spelling(word) for word in (arguments.a, arguments.b, arguments.c))
    print_ranking(f"{a} is to {b} as {c} is to", vectors.analogy(a, b, c, arguments.k))
    return 0


def print_ranking(title: str, ranking: list[tuple[str, float]]) -> None:
    print(title)
    for word, score in ranking:
        print(f"  {score:6.3f}  {word}")


def generate(arguments: argparse.Namespace) -> int:
    """One text is written as it comes; several, one after another."""
    from models.language_model import load_language_model
    from models.sampling import Sampling, sample_text

    sampling = Sampling(
        max_tokens=arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        min_p=arguments.min_p,
        repetition_penalty=arguments.repetition_penalty,
        seed=arguments.seed,
        stop=tuple(arguments.stop),
    )
    model = load_language_model(model_folder(arguments.model, TRANSFORMER, WINDOW_LM))
    prompts = [model.prompt(prompt) for prompt in arguments.prompt or [""]]
    texts = list(prompts)
    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
    for pieces in sample_text(model.next_logits, model.tokenizer, prompts, sampling):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if len(prompts) == 1:
            print(pieces[0], end="", flush=True)
    print("" if len(prompts) == 1 else "\n\n".join(texts))
    return 0


def classify(arguments: argparse.Namespace) -> int:
    """`label<TAB>score` for each text, in their order, as soon as its batch is done."""
    from models.sentiment import Sentiment

    texts = texts_of(arguments)
    classifier = Sentiment.load(model_folder(arguments.model, SENTIMENT), arguments.device)
    for batch in growing_batches(texts):
        for row in classifier.probabilities(batch).tolist():
            scores = dict(zip(classifier.labels, row, strict=True))
            label = max(scores, key=lambda label: scores[label])
            if arguments.json:
                rounded = {label: round(score, 4) for label, score in scores.items()}
                found = {"label": label, "score": rounded[label], "scores": rounded}
                print(json.dumps(found, ensure_ascii=False))
            else:
                print(f"{label}\t{scores[label]:.4f}")
        sys.stdout.flush()
    return 0


def texts_of(arguments: argparse.Namespace) -> Iterator[str]:
    """The texts of the command line, or the lines of a file or of stdin, read as they are asked for.

    Raises:
        ValueError: texts are given twice over, or nowhere.
        OSError: the file can't be read.
    """
    if arguments.texts and arguments.file:
        raise ValueError("texts and --file can't both be given: say what to classify in one way")
    if arguments.texts:
        if not arguments.texts[-1].strip():
            raise ValueError(f"text {len(arguments.texts)} is empty: leave it out")
        # bytes that were no UTF-8 come back as they were, to be refused in the same words as a file's
        return decoded((text.encode("utf-8", "surrogateescape") for text in arguments.texts), "text")
    if arguments.file:
        return decoded(closed_after(arguments.file.open("rb")), f"{arguments.file}, line")
    if sys.stdin.isatty():
        raise ValueError("there is no text to classify: give some, name a --file, or pipe lines in")
    return decoded(sys.stdin.buffer, "stdin, line")


def closed_after(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from file


def decoded(lines: Iterable[bytes], what: str) -> Iterator[str]:
    """The lines as text; ValueError, by number, where one is empty and not at the end, or not UTF-8."""
    empty = 0
    for number, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{what} {number}, byte {error.start + 1}: not UTF-8 (0x{line[error.start]:02x}): convert it"
            ) from None
        if not text.strip():
            empty = empty or number
            continue
        if empty:
            raise ValueError(f"{what} {empty} is empty: leave it out")
        yield text


def growing_batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts in batches that double up to MOST_AT_ONCE, and hold about CHARACTERS_AT_ONCE at most.

    Those before a line that is refused come out before the ValueError.
    """
    most, batch, held = FIRST_BATCH, list[str](), 0
    try:
        for text in texts:
            batch.append(text)
            held += len(text)
            if len(batch) >= most or held >= CHARACTERS_AT_ONCE:
                yield batch
                most, batch, held = min(2 * most, MOST_AT_ONCE), [], 0
    except ValueError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
