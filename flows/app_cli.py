"""The command that starts the web page, which is a program of its own."""

import argparse
import os
import sys
from importlib.util import find_spec
from typing import Any, NoReturn

PROGRAM = "deployments.app"  # by name: flows do not import deployments


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    command = commands.add_parser("app", help="a web page to try the models of the store", parents=[shared])
    command.add_argument("--host", help="the address to serve at (default: this machine alone)")
    command.add_argument("--port", type=int, help="default: 7860; 0 finds a free one")
    command.set_defaults(run=app)


def app(arguments: argparse.Namespace) -> int:
    """Becomes the page's program; --store has gone into the environment."""
    if find_spec("gradio") is None:
        raise ModuleNotFoundError("the page needs Gradio: pip install 'lexloom[app]'")
    become(PROGRAM, arguments)


def become(program: str, arguments: argparse.Namespace) -> NoReturn:
    """Goes on as another program, with the address that was asked for."""
    given = {"--host": arguments.host, "--port": arguments.port}
    flags = [part for flag, value in given.items() if value is not None for part in (flag, str(value))]
    # -P: a folder `deployments` where the user happens to stand is not the program
    os.execv(sys.executable, [sys.executable, "-P", "-m", program, *flags])
