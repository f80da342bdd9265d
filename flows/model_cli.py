"""Commands that use a trained model: neighbours and analogies of words."""

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
