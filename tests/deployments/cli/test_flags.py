"""Flags are the config's fields, and errors speak of flags."""

import argparse
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from lexloom.deployments.cli.flags import add_flags, flags, parse


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
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    config = parse(parser.parse_args(arguments), Config)
    assert isinstance(config, Config)
    return config


def test_every_field_is_a_flag_and_a_name_that_stands_twice_gets_its_section() -> None:
    assert [flag for _, _, flag in flags(Config)] == [
        *("--window", "--pairs-seed", "--seed", "--batch", "--learning-rate", "--mode"),
        *("--shrink", "--limit", "--words"),
    ]


def test_words_of_a_flag_that_takes_lines_are_its_lines() -> None:
    """As a shell hands over what its pattern matches."""

    class Corpus(BaseModel):
        source: str = Field("sotu", min_length=1, json_schema_extra={"lines": True})

    class Flow(BaseModel):
        corpus: Corpus = Corpus()

    parser = argparse.ArgumentParser()
    add_flags(parser, Flow)
    for words in (["books/a.txt", "b c.txt"], ["-"], ["caf\udce9.txt"]):
        if words[0].isascii():
            parsed = parse(parser.parse_args(["--source", *words]), Flow)
            assert parsed == Flow(corpus=Corpus(source="\n".join(words)))
        else:
            with pytest.raises(ValueError, match=r"^--source must be UTF-8: .*\(it is 'caf\\udce9\.txt'\)"):
                parse(parser.parse_args(["--source", *words]), Flow)


def test_a_field_can_say_its_flag_and_then_leaves_its_name_to_another() -> None:
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
        (["--window", "0"], r"--window should be greater than or equal to 1 \(it is '0'\)"),
        (["--learning-rate", "fast"], r"--learning-rate should be a valid number.*'fast'"),
        (["--window", "0", "--seed", "x"], r"--window .*; --seed [^;]*$"),
    ],
)
def test_values_out_of_bounds_end_in_one_sentence(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=f"^{complaint}"):
        read(*arguments)


def test_help_shows_descriptions_and_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Config)
    assert "Words on each side (default: 5)" in " ".join(parser.format_help().split())
