"""The `docker compose` command lines of the documentation, checked by docker-compose itself."""

import re
import shlex
from itertools import takewhile

import pytest

from tests.system.deployments.compose import docker_compose, services
from tests.test_docs import FENCE, PAGES

COMPOSE = re.compile(r"^docker compose [^\n#]*", re.MULTILINE)
COMPOSE_INLINE = re.compile(r"`(docker compose [^`]+)`")


def compose_commands() -> set[str]:
    """The `docker compose` command lines of all pages, whole, in blocks and in texts."""
    texts = [page.read_text(encoding="utf-8") for page in PAGES]
    blocks = [block for text in texts for _, block in FENCE.findall(text)]
    found = [line for block in blocks for line in COMPOSE.findall(block)]
    found += [line for text in texts for line in COMPOSE_INLINE.findall(FENCE.sub("", text))]
    return {" ".join(line.split()) for line in found}


@pytest.mark.parametrize("line", sorted(compose_commands()))
def test_docker_compose_knows_the_command_its_flags_and_services(line: str) -> None:
    words = list(shlex.shlex(line, posix=True, punctuation_chars=True))
    assert words.count("compose") == 1, "another command has slipped into the line"
    words = words[: next((at for at, word in enumerate(words) if word in {"<", ">", "&&"}), len(words))][2:]
    if words[0] == "--profile":
        words = words[2:]
    name, *words = words
    flags = list(takewhile(lambda word: word.startswith("-"), words))
    usage = docker_compose(name, "--help", secrets={}).stdout
    assert f"docker compose {name} " in usage.splitlines()[0]
    assert [flag for flag in flags if not re.search(rf"{flag.partition('=')[0]}\b", usage)] == []
    named = words[len(flags) :]
    named = [word.partition("=")[0] for word in (named[:1] if name == "exec" else named)]
    assert set(named) <= services().keys()
