"""The command that starts Prefect's page and a worker, which are a program of their own."""

import argparse
from typing import Any

from flows.app_cli import become

PROGRAM = "deployments.operate"  # by name: flows do not import deployments


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "ui", help="Prefect's page to start, schedule and watch runs", parents=[shared]
    )
    command.add_argument("--host", help="the address to serve at (default: this machine alone)")
    command.add_argument("--port", type=int, help="default: 4200; 0 finds a free one")
    command.set_defaults(run=ui)


def ui(arguments: argparse.Namespace) -> int:
    """Becomes that program; --store has gone into the environment."""
    become(PROGRAM, arguments)
