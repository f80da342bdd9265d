"""How to use and reproduce a report's model: its name, its folder, the command that trained it, a snippet.

A flow sets the name and the command (`describe_run`), because they are not part of a report's key: the report
shows those of the run that built it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from shlex import quote
from typing import Any

from lexloom.models.registry import Capability, family_of_stage
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.store.lineage import SHOWN_KEY

COMMANDS: dict[Capability, str] = {
    "generate": "lexloom generate {name} --tokens 200",
    "classify": "lexloom classify {name} 'a text'",
    "neighbours": "lexloom neighbours {name} {word}",
}
SNIPPETS: dict[Capability, str] = {
    "generate": """from lexloom import Sampling, load_language_model

model = load_language_model({name!r})
for (piece,) in model.generate([""], Sampling(max_tokens=200)):
    print(piece, end="")""",
    "classify": """from lexloom import load_classifier

load_classifier({name!r}).classify(["a text"])""",
    "neighbours": """from lexloom import load_word_vectors

load_word_vectors({name!r}).neighbours([{word!r}])""",
}


@dataclass(frozen=True)
class RunDescription:
    """The name that a run has given its model, and the command that reproduces the run."""

    name: str
    command: str


_run: ContextVar[RunDescription | None] = ContextVar("run_description", default=None)


@contextmanager
def described_runs() -> Iterator[None]:
    """Reset the description of the run (`describe_run`) at the end."""
    token = _run.set(None)
    try:
        yield
    finally:
        _run.reset(token)


def describe_run(name: str, command: str) -> None:
    """Set the name and the command that the reports of the current run show."""
    _run.set(RunDescription(name, command))


def with_name(title: str) -> str:
    """Return the title of a report with the model's name, if the run has named it."""
    run = _run.get()
    return f"{title} · {run.name}" if run else title


def usage_content(model: Artifact, word: str) -> dict[str, Any]:
    """Return the content of the section on using the model; `word` is in its vocabulary."""
    run, family = _run.get(), family_of_stage(model.stage)
    name = run.name if run else model.key[:SHOWN_KEY]
    capability = family.capability if family else None
    return {
        "name": name,
        "folder": str(model.folder),
        "made_by": run.command if run else None,
        "command": COMMANDS[capability].format(name=name, word=quote(word)) if capability else None,
        "snippet": SNIPPETS[capability].format(name=name, word=word) if capability else None,
    }
