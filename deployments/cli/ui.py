"""The command that starts Prefect's page and a worker, which are a program of their own."""

import argparse
from typing import Any

from lexloom.deployments.cli.app import add_address, address_flags, become

PROGRAM = "lexloom.deployments.server.local"  # by name: flows do not import deployments
NO_LOGIN = "disable the login: any user on this machine can then start runs"
LINK = "print a new login link for the running `lexloom ui` and exit"


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser(
        "ui", help="Prefect's page to start, schedule and watch runs", parents=[shared]
    )
    add_address(command, port=4200)
    command.add_argument("--no-login", action="store_true", help=NO_LOGIN)
    command.add_argument("--link", action="store_true", help=LINK)
    command.set_defaults(run=ui)


def ui(arguments: argparse.Namespace) -> int:
    """Becomes that program; --store has gone into the environment."""
    switches = {"--no-login": arguments.no_login, "--link": arguments.link}
    become(PROGRAM, [*address_flags(arguments), *(flag for flag, given in switches.items() if given)])
