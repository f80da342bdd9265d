"""The section of a report on using its model."""

import ast
import shlex
from pathlib import Path

import pytest

from lexloom.models.registry import families
from lexloom.tasks.display.templates import macros
from lexloom.tasks.report.usage import describe_run, described_runs, usage_content, with_name
from lexloom.tasks.store.artifacts import Artifact, Summary

KEY = "0123456789abcdef01234567"


def model(stage: str) -> Artifact:
    summary = Summary(rows_in=1, unit_in="pairs", rows=1, unit="words")
    return Artifact(stage=stage, key=KEY, folder=Path("/data/store", stage, KEY), summary=summary)


def test_the_title_has_the_name_that_the_run_gave() -> None:
    with described_runs():
        assert with_name("Word vectors") == "Word vectors"
        describe_run("books", "lexloom word2vec")
        assert with_name("Word vectors") == "Word vectors · books"
    assert with_name("Word vectors") == "Word vectors", "the next run has no name yet"


@pytest.mark.parametrize("stage", [family.stage for family in families().values()])
@pytest.mark.parametrize("word", ["peace", "it's", 'a "b"', "<b>", "$HOME", "{x}", "\\"])
def test_commands_and_snippets_are_valid_for_any_word(stage: str, word: str) -> None:
    with described_runs():
        describe_run("books", "lexloom word2vec --source '<books>'")
        content = usage_content(model(stage), word)
        page = macros("usage.html.j2").usage_section(content)
    command = shlex.split(content["command"])
    assert command[2] == "books"
    if stage == "train_word2vec":
        assert command[3:] == [word]
        constants = [
            node.value for node in ast.walk(ast.parse(content["snippet"])) if isinstance(node, ast.Constant)
        ]
        assert word in constants
    ast.parse(content["snippet"])
    assert f"/data/store/{stage}/{KEY}" in page
    assert "--source &#39;&lt;books&gt;&#39;" in page
    assert "<b>" not in page


def test_without_a_run_the_name_is_the_beginning_of_the_key() -> None:
    content = usage_content(model("train_other"), "")
    assert (content["name"], content["made_by"], content["command"]) == (KEY[:8], None, None)
    assert "Training command" not in macros("usage.html.j2").usage_section(content)
