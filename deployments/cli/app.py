"""The command that starts the web page, which is a program of its own."""

import argparse
import os
import sys
from importlib.util import find_spec
from typing import Any, NoReturn

PROGRAM = "lexloom.deployments.web.app"  # by name: flows do not import deployments
ALLOW_HOST = "additional host name to accept, such as a reverse proxy's; repeatable"


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser("app", help="a web page to try the models of the store", parents=[shared])
    add_address(command, port=7860)
    command.set_defaults(run=app)


def add_address(command: argparse.ArgumentParser, port: int) -> None:
    """Add the flags for the server's address."""
    command.add_argument("--host", help="address to bind to (default: 127.0.0.1)")
    command.add_argument("--port", type=int, help=f"port to listen on (default: {port}; 0 picks a free port)")
    command.add_argument("--allow-host", action="append", default=[], metavar="NAME[:PORT]", help=ALLOW_HOST)


def address_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the `add_address` flags set by the user."""
    given = [("--host", arguments.host), ("--port", arguments.port)]
    given += [("--allow-host", name) for name in arguments.allow_host]
    return [part for flag, value in given if value is not None for part in (flag, str(value))]


def app(arguments: argparse.Namespace) -> int:
    """Becomes the page's program; --store has gone into the environment."""
    if find_spec("gradio") is None:
        raise ModuleNotFoundError("the page needs Gradio: pip install 'lexloom[app]'")
    become(PROGRAM, address_flags(arguments))


def become(program: str, flags: list[str]) -> NoReturn:
    """Replace this process with another program."""
    # -P: a folder `deployments` where the user happens to stand is not the program
    os.execv(sys.executable, [sys.executable, "-P", "-m", program, *flags])
