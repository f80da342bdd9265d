"""Parse a command line of `lexloom` without running the command."""

from collections.abc import Sequence
from typing import Any

from lexloom.deployments.cli.main import build_app
from lexloom.flows.command import attach_hyphens


def parse_command(argv: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command; raise CycloptsError if the command line is wrong."""
    app = build_app(argv)
    _, session, _ = app.meta.parse_args(attach_hyphens(argv))
    _, bound, _ = app.parse_args(session.arguments.get("tokens", ()))
    return bound.arguments
