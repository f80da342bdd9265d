"""The `lexloom` command.

lexloom word2vec --source FILES --epochs 3     train word vectors, end to end
lexloom window-lm --source FILES               train a window language model
lexloom transformer-lm --preset tiny           train a transformer language model
lexloom sentiment --source FILES               train a classifier of labelled reviews
lexloom generate MODEL --prompt TEXT           let a language model write
lexloom classify MODEL TEXT...                 a label and a score for each text
lexloom neighbours MODEL WORD...               the nearest words
lexloom analogy MODEL A B C                    A is to B as C is to what?
lexloom status                                 what is at work, the latest runs, how full the store is
lexloom store ls | verify | explain | gc       what is in the store, and why
lexloom app                                    a web page to try the models
lexloom ui                                     Prefect's page to start, schedule and watch runs
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from rich.text import Text

from lexloom.deployments.cli import app as app_cli
from lexloom.deployments.cli import models as model_cli
from lexloom.deployments.cli import status as status_cli
from lexloom.deployments.cli import store as store_cli
from lexloom.deployments.cli import ui as ui_cli
from lexloom.deployments.cli.flags import add_flags, in_flags, parse
from lexloom.flows.environment import settle_environment
from lexloom.flows.registry import flows
from lexloom.tasks.display.console import stderr
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Store

EXTRAS = {"transformers": "sentiment", "tokenizers": "sentiment"}  # what brings a package that is optional
USER_ERRORS = (ValueError, OSError, LookupError, ArithmeticError, ImportError)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 (it failed, one sentence says why), 130 (stopped)."""
    argv = sys.argv[1:] if argv is None else argv
    verbose = "--verbose" in argv
    settle_environment(verbose)
    try:
        arguments, unknown = build_parser(argv).parse_known_args(argv)
        if "texts" in arguments:  # which argparse overlooks where a flag stands before them (until 3.13)
            arguments.texts += [word for word in unknown if not word.startswith("-")]
            unknown = [word for word in unknown if word.startswith("-")]
        if unknown:
            raise ValueError(no_such_flag(unknown[0], arguments.known))
        if arguments.store:
            os.environ["LEXLOOM_STORE"] = arguments.store
        command: Callable[[argparse.Namespace], int] = arguments.run
        return command(arguments)
    except KeyboardInterrupt:
        stderr.print(
            "stopped; the same command takes the finished stages from the store and runs the others",
            style="yellow",
        )
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if verbose:
            raise
        said = plain(error)
        if argv and argv[0] in flows() and flows()[argv[0]].module in sys.modules:
            said = in_flags(said, flows()[argv[0]].config())
        hint = "" if isinstance(error, USER_ERRORS) else " (run again with --verbose for the details)"
        stderr.print(Text("error: ", style="bold red") + Text(said + hint))
        return 1


def no_such_flag(given: str, known: list[str]) -> str:
    near = get_close_matches(given, known)
    return f"there is no flag {given}" + (f"; near it: {', '.join(near)}" if near else "; --help lists them")


def plain(error: BaseException) -> str:
    """An error's message without Python's decorations."""
    if type(error).__name__ == "PrefectHTTPStatusError" and "401 Unauthorized" in str(error):
        return "Prefect's server refuses the login: set PREFECT_API_AUTH_STRING to its name:password"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"this needs {error.name}: pip install 'lexloom[{EXTRAS[error.name]}]'"
    return str(error) or type(error).__name__


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser; a flow's own flags are added only when that flow is asked for, since its import is slow."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--store", metavar="FOLDER", help="the store (default: $LEXLOOM_STORE or artifacts/)")
    shared.add_argument("--verbose", action="store_true", help="show what the libraries below say")
    parser = argparse.ArgumentParser(prog="lexloom", description="Raw text in, trained language models out.")
    parser.add_argument("--version", action=Version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, entry in flows().items():
        command = commands.add_parser(name, help=entry.purpose, parents=[shared])
        command.set_defaults(run=run_flow, flow=name)
        command.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
        command.add_argument("--verify", choices=["size", "full"], help="how cached artifacts are checked")
        if argv[:1] == [name]:
            add_flags(command, entry.config())

    model_cli.add_commands(commands, shared)
    status_cli.add_commands(commands, shared, list(flows()))
    store_cli.add_commands(commands, shared)
    app_cli.add_commands(commands, shared)
    ui_cli.add_commands(commands, shared)
    for command in leaf_parsers(commands):
        command.set_defaults(known=sorted(command._option_string_actions))
    return parser


class Version(argparse.Action):
    """Prints the version that is installed, looked up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"lexloom {version('lexloom')}")
        parser.exit()


def leaf_parsers(commands: Any) -> Iterator[argparse.ArgumentParser]:
    for parser in commands.choices.values():
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if nested:
            yield from leaf_parsers(nested[0])
        else:
            yield parser


# flows


def run_flow(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        os.environ["LEXLOOM_VERIFY"] = arguments.verify
    started = time.perf_counter()
    entry = flows()[arguments.flow]
    config = parse(arguments, entry.config())
    store = f" · store {from_here(Store().root)}"
    stderr.print(Text(f"lexloom {arguments.flow}", style="bold") + Text(store, style="dim"))
    import_module("lexloom.flows.local_server.server").start_server()  # here, since its import takes seconds
    outcome = entry.flow()(config)
    stderr.print(entry.load().highlights(outcome.evaluation, stderr.width))
    stderr.print(
        f"\n{counted(outcome.stages, 'stages')}, {outcome.cached} cached, {time.perf_counter() - started:.1f}"
        f" s\nmodel   {from_here(outcome.model)}\nreport  {from_here(outcome.report)}"
    )
    if arguments.json:
        print(outcome.model_dump_json())
    return 0


def from_here(path: Path) -> Path:
    """A path as a user of this folder would write it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


if __name__ == "__main__":
    sys.exit(main())
