"""Flags of a flow's config, and errors that name them."""

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import pytest
from cyclopts import App, Parameter
from pydantic import BaseModel, ConfigDict, Field

from lexloom.flows.command import flag_parameters
from lexloom.flows.config import flags, parse


class Pairs(BaseModel):
    model_config = ConfigDict(extra="forbid")
    window: int = Field(5, ge=1, description="Words on each side")
    seed: int = 1


class Train(BaseModel):
    model_config = ConfigDict(extra="forbid")
    seed: int = 1
    batch: int = Field(default_factory=lambda given: 10 * given["seed"])
    learning_rate: float = Field(0.025, gt=0)
    mode: Literal["slow", "fast"] = "slow"
    shrink: bool = True
    limit: int | None = None
    words: list[str] = []


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    pairs: Pairs = Pairs()
    train: Train = Train()


def read(*arguments: str) -> Config:
    config = parse(given(arguments, Config), Config)
    assert isinstance(config, Config)
    return config


def given(arguments: Sequence[str], config: type[BaseModel]) -> dict[tuple[str, ...], Any]:
    """The values of a config's flags on a command line."""
    app = app_of(config)
    _, bound, _ = app.parse_args(arguments, exit_on_error=False, print_error=False)
    return {tuple(name.split("__")): value for name, value in bound.arguments.items()}


def app_of(config: type[BaseModel]) -> App:
    def command(**values: Any) -> None:
        pass

    command.__signature__ = inspect.Signature(list(flag_parameters(config)))  # type: ignore[attr-defined]
    app = App(name="flow", default_parameter=Parameter(negative=()))
    app.default(command)
    return app


def test_flags_are_field_names_with_the_section_where_they_are_ambiguous() -> None:
    assert [flag for _, _, flag in flags(Config)] == [
        *("--window", "--pairs-seed", "--seed", "--batch", "--learning-rate", "--mode"),
        *("--shrink", "--limit", "--words"),
    ]


def test_values_of_a_flag_that_takes_lines_are_joined_by_newlines() -> None:
    """A shell passes the files that match a pattern as separate words."""

    class Corpus(BaseModel):
        source: str = Field("sotu", min_length=1, json_schema_extra={"lines": True})

    class Flow(BaseModel):
        corpus: Corpus = Corpus()

    for words in (["books/a.txt", "b c.txt"], ["caf\udce9.txt"]):
        if words[0].isascii():
            parsed = parse(given(["--source", *words], Flow), Flow)
            assert parsed == Flow(corpus=Corpus(source="\n".join(words)))
        else:
            with pytest.raises(ValueError, match=r"^--source must be UTF-8: .*\(got 'caf\\udce9\.txt'\)"):
                parse(given(["--source", *words], Flow), Flow)


def test_a_field_can_name_its_own_flag() -> None:
    class First(BaseModel):
        limit: int | None = Field(None, json_schema_extra={"flag": "read-limit"})

    class Both(BaseModel):
        corpus: First = First()
        split: Train = Train()

    assert [(path, flag) for path, _, flag in flags(Both) if path[-1] == "limit"] == [
        (("corpus", "limit"), "--read-limit"),
        (("split", "limit"), "--limit"),
    ]


def test_no_flags_give_the_defaults() -> None:
    assert read() == Config()


def test_values_reach_their_fields_in_their_types() -> None:
    config = read("--window", "3", "--seed", "9", "--no-shrink", "--words", "a", "b", "--limit", "4")
    assert config.pairs == Pairs(window=3)
    assert config.train == Train(seed=9, shrink=False, words=["a", "b"], limit=4)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--window", "0"], r"--window should be greater than or equal to 1 \(got '0'\)"),
        (["--learning-rate", "fast"], r"--learning-rate should be a valid number.*'fast'"),
        (["--window", "0", "--seed", "x"], r"--window .*; --seed [^;]*$"),
    ],
)
def test_values_out_of_bounds_are_reported_in_one_sentence(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        read(*arguments)


def test_help_shows_descriptions_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    app_of(Config).help_print()
    assert "Words on each side [default: 5]" in capsys.readouterr().out
