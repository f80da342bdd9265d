"""The documentation: its links lead somewhere, its commands are commands, its drawing is today's code."""

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.cli._app import _app

from flows.cli import build_parser

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
def test_a_command_is_one_that_there_is(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Every flag exists and has a value that its parser takes. One that is only named needs no arguments."""
    argv = shlex.split(command)[1:]
    try:
        _, unknown = build_parser(argv).parse_known_args(argv)
    except SystemExit as stop:
        complaint = capsys.readouterr().err
        only_named = len(argv) == 1 and complaint.startswith(f"usage: lexloom {argv[0]} ")
        unknown = [] if stop.code == 0 or only_named else complaint.splitlines()
    assert unknown == []


@pytest.mark.parametrize("command", PREFECT_COMMAND.findall((ROOT / "docs" / "operating.md").read_text()))
def test_a_command_of_prefects_is_one_that_there_is(command: str) -> None:
    _app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_there_are_commands_to_check() -> None:
    assert len({each for page in PAGES for each in commands(page)}) > 30


def test_every_page_is_in_the_index() -> None:
    index = LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert pages <= set(index)


def test_the_drawing_is_of_todays_code() -> None:
    draw = runpy.run_path(str(ROOT / "docs" / "draw.py"))
    assert (ROOT / "docs" / "structure.svg").read_text(encoding="utf-8") == draw["picture"](), (
        "run python docs/draw.py"
    )
