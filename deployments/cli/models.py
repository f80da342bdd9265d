"""Commands that use a trained model: words near a word, text that a model writes, labels of texts."""

import argparse
import json
import sys
from typing import Any

from lexloom.deployments.cli.texts import add_flags, growing_batches, texts_of
from lexloom.models.registry import load_model, stages
from lexloom.tasks.display.console import warn
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.lookup import find_model_folder

MODEL = "a model's folder, the beginning of its key in the store, or latest"


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
    add_flags(command)
    command.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="(default: cpu)")
    command.add_argument(
        "--json", action="store_true", help="a JSON object a line, with the scores of all labels"
    )
    command.set_defaults(run=classify)


def neighbours(arguments: argparse.Namespace) -> int:
    vectors = load_model(find_model_folder(arguments.model, *stages("neighbours")), "neighbours")
    for word, near in zip(arguments.words, vectors.neighbours(arguments.words, arguments.k), strict=True):
        print_ranking(vectors.spelling(word), near)
    return 0


def analogy(arguments: argparse.Namespace) -> int:
    vectors = load_model(find_model_folder(arguments.model, *stages("neighbours")), "neighbours")
    a, b, c = (vectors.spelling(word) for word in (arguments.a, arguments.b, arguments.c))
    print_ranking(f"{a} is to {b} as {c} is to", vectors.analogy(a, b, c, arguments.k))
    return 0


def print_ranking(title: str, ranking: list[tuple[str, float]]) -> None:
    print(title)
    for word, score in ranking:
        print(f"  {score:6.3f}  {word}")


def generate(arguments: argparse.Namespace) -> int:
    """One text is written as it comes; several, one after another."""
    from lexloom.models.sampling import Sampling

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
    model = load_model(find_model_folder(arguments.model, *stages("generate")), "generate")
    prompts = arguments.prompt or [""]
    texts = [model.prompt(prompt) for prompt in prompts]
    if len(prompts) == 1:
        print(texts[0], end="", flush=True)
    for pieces in model.generate(prompts, sampling):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if len(prompts) == 1:
            print(pieces[0], end="", flush=True)
    print("" if len(prompts) == 1 else "\n\n".join(texts))
    return 0


def classify(arguments: argparse.Namespace) -> int:
    """`label<TAB>score` for each text, in their order, as soon as its batch is done; a line for each of them.

    The line of a text that is missing or blank is empty, or an object of nulls.
    """
    texts = texts_of(arguments)
    folder = find_model_folder(arguments.model, *stages("classify"))
    classifier = load_model(folder, "classify", arguments.device)
    write = as_json if arguments.json else as_columns
    blank = 0
    for batch in growing_batches(texts):
        rows = iter(classifier.probabilities([text for text in batch if text is not None]).tolist())
        for text in batch:
            print(write(None if text is None else dict(zip(classifier.labels, next(rows), strict=True))))
        blank += batch.count(None)
        sys.stdout.flush()
    if blank:
        warn(f"{counted(blank, 'texts')} without a word skipped")
    return 0


def as_columns(scores: dict[str, float] | None) -> str:
    if scores is None:
        return ""
    label = likeliest(scores)
    return f"{label}\t{scores[label]:.4f}"


def as_json(scores: dict[str, float] | None) -> str:
    if scores is None:
        return json.dumps({"label": None, "score": None, "scores": None})
    label = likeliest(scores)
    rounded = {label: round(score, 4) for label, score in scores.items()}
    return json.dumps({"label": label, "score": rounded[label], "scores": rounded}, ensure_ascii=False)


def likeliest(scores: dict[str, float]) -> str:
    return max(scores, key=lambda label: scores[label])
