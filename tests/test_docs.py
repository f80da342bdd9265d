"""The documentation: its links lead somewhere, its commands are commands, its drawing is today's code."""

import ast
import importlib.util
import re
import runpy
import shlex
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from cyclopts import MissingArgumentError
from prefect.cli._app import _app

from tests.deployments.cli.command_line import parse_command

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "LOG.md"])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(lexloom [^\n#]*)", re.MULTILINE)
PREFECT_COMMAND = re.compile(r"^(prefect [^\n#]*)", re.MULTILINE)
INLINE = re.compile(r"`(lexloom [^`|]+)`")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [link.partition("#")[0] for link in LINK.findall(page.read_text(encoding="utf-8"))]
    local = [target for target in targets if target and not target.startswith(("http:", "https:"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def commands(page: Path) -> Iterator[str]:
    """The `lexloom` command lines of a page, in its blocks and in its text."""
    text = page.read_text(encoding="utf-8")
    for language, block in FENCE.findall(text):
        if language != "python":
            yield from (line for line in COMMAND.findall(block) if " · store " not in line)
    yield from INLINE.findall(FENCE.sub("", text).replace("\n> ", " "))


@pytest.mark.parametrize(
    "command", sorted({each.strip() for page in PAGES for each in commands(page)}), ids=lambda text: text
)
def test_documented_commands_are_valid(command: str) -> None:
    """Every flag exists and accepts its value. A command that is only named may lack arguments."""
    argv = shlex.split(command)[1:]
    only_named = len(argv) == 1
    with suppress(MissingArgumentError) if only_named else nullcontext():
        parse_command(argv)


@pytest.mark.parametrize("command", PREFECT_COMMAND.findall((ROOT / "docs" / "operating.md").read_text()))
def test_a_command_of_prefects_is_one_that_there_is(command: str) -> None:
    _app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_blocks_of_docker_compose_have_no_line_that_is_half_a_command() -> None:
    page = (ROOT / "docs" / "compose.md").read_text(encoding="utf-8")
    lines = [line for _, block in FENCE.findall(page) for line in block.splitlines() if line]
    assert {line.split()[0] for line in lines} == {"(umask", "docker", "git"}


def test_a_page_ends_with_its_line() -> None:
    assert [name(page) for page in PAGES if not page.read_text(encoding="utf-8").endswith("\n")] == []


def test_there_are_commands_to_check() -> None:
    assert len({each for page in PAGES for each in commands(page)}) > 30


QUOTED = re.compile(r"^> error: (.*(?:\n> .*)*)", re.MULTILINE)
ANYTHING = ".+"
LETTERS = 20  # that a message must have of its own, so as to be known by them


def quoted_errors() -> list[str]:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    return [found.replace("\n> ", " ") for found in QUOTED.findall(page)]


@pytest.fixture(scope="module")
def messages() -> list[re.Pattern[str]]:
    """The texts of the source, with anything in the places of what is filled in."""
    folders = ("flows", "tasks", "training", "models", "deployments")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*.py")]
    prefects = importlib.util.find_spec("prefect.cli.deploy._core")
    assert prefects is not None
    assert prefects.origin is not None
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in [*files, Path(prefects.origin)]]
    found = {pattern(node) for tree in trees for node in ast.walk(tree)}
    return [re.compile(each) for each in found if len(each.replace(ANYTHING, "")) >= LETTERS]


def pattern(node: ast.AST) -> str:
    """What a piece of the source comes to, where it is a text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(pattern, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return pattern(node.left) + pattern(node.right)
    return ANYTHING


@pytest.mark.parametrize("error", quoted_errors())
def test_an_error_is_quoted_as_the_source_says_it(messages: list[re.Pattern[str]], error: str) -> None:
    assert any(message.fullmatch(error) for message in messages)


def test_every_page_is_in_the_index() -> None:
    index = LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(index)


def test_the_drawing_is_of_todays_code() -> None:
    draw = runpy.run_path(str(ROOT / "docs" / "draw.py"))
    assert (ROOT / "docs" / "structure.svg").read_text(encoding="utf-8") == draw["picture"](), (
        "run python docs/draw.py"
    )
