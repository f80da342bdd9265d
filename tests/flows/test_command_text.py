"""The command that reproduces a run, which reports show."""

import shlex
from typing import Any

import pytest

from lexloom.flows.command_text import command_text
from lexloom.flows.config import parse
from lexloom.flows.registry import flows
from tests.deployments.cli.command_line import parse_command


def config_of(argv: list[str]) -> Any:
    given = parse_command(argv)
    return parse({tuple(name.split("__")): value for name, value in given.items()}, flows()[argv[0]].config())


@pytest.mark.parametrize(
    "command",
    [
        "lexloom word2vec",
        "lexloom word2vec --source books/ 'a b.txt' --epochs 3 --no-lower",
        "lexloom word2vec --window 3 --name demo",
        "lexloom word2vec --workers 2 --ray-address auto --neighbours-of peace 'it'\"'\"'s'",
        "lexloom window-lm --vectors-workers 2 --cutoffs 5 6",
        "lexloom transformer-lm --preset small --prompts 'two\nlines' '$HOME `id`'",
        "lexloom sentiment --source=-.csv --label-column stars --learning-rate 0.001",
    ],
)
def test_the_command_has_the_parameters_that_differ_and_gives_the_same_config(command: str) -> None:
    argv = shlex.split(command)[1:]
    config = config_of(argv)
    text = command_text(argv[0], config)
    assert config_of(shlex.split(text)[1:]) == config
    flags = [word.partition("=")[0] for word in shlex.split(text) if word.startswith("--")]
    assert sorted(flags) == sorted(word.partition("=")[0] for word in argv if word.startswith("--"))


def test_a_parameter_that_is_given_its_default_is_left_out() -> None:
    epochs = config_of(["word2vec"]).train.epochs
    assert command_text("word2vec", config_of(["word2vec", "--epochs", str(epochs)])) == "lexloom word2vec"
    for name, entry in flows().items():
        assert command_text(name, entry.config()()) == f"lexloom {name}"


def test_credentials_and_long_lists_are_not_shown() -> None:
    config = config_of(["word2vec", "--ray-address", "ray://ann:secret@head:10001"])
    assert command_text("word2vec", config) == "lexloom word2vec --ray-address 'ray://***@head:10001'"
    files = [f"{number}.txt" for number in range(1000)]
    text = command_text("word2vec", config_of(["word2vec", "--source", *files]))
    assert text == f"lexloom word2vec --source {' '.join(files[:20])} ..."
