"""Commands that use a trained model: neighbours and analogies of words, and text that a model writes."""

import argparse
from pathlib import Path
from typing import Any


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser("neighbours", help="the nearest words", parents=[shared])
    command.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    command.add_argument("words", nargs="+", metavar="WORD")
    command.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    command.set_defaults(run=neighbours)

    command = commands.add_parser("analogy", help="A is to B as C is to what?", parents=[shared])
    command.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    for name in ("a", "b", "c"):
        command.add_argument(name, metavar=name.upper())
    command.add_argument("-k", type=int, default=5, help="how many (default: 5)")
    command.set_defaults(run=analogy)

    command = commands.add_parser("generate", help="let a language model write", parents=[shared])
    command.add_argument("model", type=Path, metavar="MODEL", help="a language model's folder")
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


def neighbours(arguments: argparse.Namespace) -> int:
    from models.word2vec import WordVectors

    vectors = WordVectors.load(arguments.model)
    for word, near in zip(arguments.words, vectors.neighbours(arguments.words, arguments.k), strict=True):
        print_ranking(word, near)
    return 0


def analogy(arguments: argparse.Namespace) -> int:
    from models.word2vec import WordVectors

    a, b, c = arguments.a, arguments.b, arguments.c
    print_ranking(
        f"{a} is to {b} as {c} is to", WordVectors.load(arguments.model).analogy(a, b, c, arguments.k)
    )
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
    model = load_language_model(arguments.model)
    prompts = arguments.prompt or [""]
    texts = list(prompts)
    if len(prompts) == 1:
        print(prompts[0], end="", flush=True)
    for pieces in sample_text(model.next_logits, model.tokenizer, prompts, sampling):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if len(prompts) == 1:
            print(pieces[0], end="", flush=True)
    print("" if len(prompts) == 1 else "\n\n".join(texts))
    return 0
