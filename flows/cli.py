"""The `lexloom` command.

lexloom word2vec --source FILES --epochs 3     train word vectors, end to end
lexloom neighbours MODEL WORD...               the nearest words
lexloom analogy MODEL A B C                    A is to B as C is to what?
lexloom store ls | verify | explain | gc       what is in the store, and why
"""

import argparse
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel
from rich.text import Text

from flows.flags import add_flags, parse
from tasks.artifacts import Artifact, Manifest, Store
from tasks.console import NAME_WIDTH, stderr


class FlowEntry(NamedTuple):
    """Where a flow lives; it is imported only when it is asked for, since that takes seconds."""

    purpose: str
    module: str
    function: str
    config: str


QUIET_LIBRARIES = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "TQDM_DISABLE": "1",
}
FLOWS = {
    "word2vec": FlowEntry(
        "train word vectors (skip-gram, negative sampling)", "flows.word2vec", "word2vec", "Word2VecConfig"
    )
}
SERVER_START_SECONDS = 120
USER_ERRORS = (ValueError, OSError, LookupError, ArithmeticError, ImportError)


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit status: 0, 1 (it failed, one sentence says why), 130 (stopped)."""
    argv = sys.argv[1:] if argv is None else argv
    verbose = "--verbose" in argv
    settle_environment(verbose)
    try:
        arguments, unknown = build_parser(argv).parse_known_args(argv)
        if unknown:
            raise ValueError(no_such_flag(unknown[0], arguments.known))
        if arguments.store:
            os.environ["LEXLOOM_STORE"] = arguments.store
        command: Callable[[argparse.Namespace], int] = arguments.run
        return command(arguments)
    except KeyboardInterrupt:
        stderr.print(
            "stopped; finished stages are kept, so the same command goes on from here", style="yellow"
        )
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if verbose:
            raise
        hint = "" if isinstance(error, USER_ERRORS) else " (run again with --verbose for the details)"
        stderr.print(Text("error: ", style="bold red") + Text(plain(error) + hint))
        return 1


def no_such_flag(given: str, known: list[str]) -> str:
    near = get_close_matches(given, known)
    return f"there is no flag {given}" + (f"; near it: {', '.join(near)}" if near else "; --help lists them")


def plain(error: BaseException) -> str:
    """An error's message without Python's decorations."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return str(error) or type(error).__name__


def settle_environment(verbose: bool) -> None:
    """Keeps the libraries below quiet, and their usage statistics at home, before they are imported."""
    quiet = {"LEXLOOM_VERBOSE": "1"} if verbose else QUIET_LIBRARIES
    defaults = {
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": str(SERVER_START_SECONDS),
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        **quiet,
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if not verbose:
        warnings.simplefilter("ignore")
        logging.getLogger("EventsWorker").setLevel(logging.CRITICAL)  # Prefect's, outside of its own settings
        logging.getLogger("lexloom").setLevel(logging.WARNING)


def build_parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser; a flow's own flags are added only when that flow is asked for, since its import is slow."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--store", metavar="FOLDER", help="the store (default: $LEXLOOM_STORE or artifacts/)")
    shared.add_argument("--verbose", action="store_true", help="show what the libraries below say")
    parser = argparse.ArgumentParser(prog="lexloom", description="Raw text in, trained language models out.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    for name, entry in FLOWS.items():
        command = commands.add_parser(name, help=entry.purpose, parents=[shared])
        command.set_defaults(run=run_flow, flow=name)
        command.add_argument("--json", action="store_true", help="end with one JSON object on stdout")
        command.add_argument("--verify", choices=["size", "full"], help="how cached artifacts are checked")
        if argv[:1] == [name]:
            add_flags(command, flow_config(name))

    command = commands.add_parser("neighbours", help="the nearest words", parents=[shared])
    command.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    command.add_argument("words", nargs="+", metavar="WORD")
    command.add_argument("-k", type=int, default=10, help="how many (default: 10)")
    command.set_defaults(run=neighbours)

    command = commands.add_parser("analogy", help="A is to B as C is to what?", parents=[shared])
    command.add_argument("model", type=Path, metavar="MODEL", help="a model folder")
    for name in ("a", "b", "c"):
        command.add_argument(name, metavar=name.upper())
    command.add_argument("-k", type=int, default=5, help="how many (default: 5)")
    command.set_defaults(run=analogy)

    store = commands.add_parser("store", help="what is in the store, and why")
    verbs = store.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("ls", help="list the artifacts", parents=[shared])
    verb.set_defaults(run=store_ls)
    verb = verbs.add_parser("verify", help="read every file and compare its digest", parents=[shared])
    verb.set_defaults(run=store_verify)
    verb = verbs.add_parser("explain", help="why a stage ran again", parents=[shared])
    verb.add_argument("stage", metavar="STAGE")
    verb.set_defaults(run=store_explain)
    verb = verbs.add_parser("gc", help="remove what is no longer needed", parents=[shared])
    verb.add_argument("--keep", type=int, default=5, help="artifacts kept of each stage (default: 5)")
    verb.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    verb.set_defaults(run=store_gc)
    for command in leaf_parsers(commands):
        command.set_defaults(known=sorted(command._option_string_actions))
    return parser


def leaf_parsers(commands: Any) -> Iterator[argparse.ArgumentParser]:
    for parser in commands.choices.values():
        nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        if nested:
            yield from leaf_parsers(nested[0])
        else:
            yield parser


# flows


def flow_config(name: str) -> type[BaseModel]:
    return getattr(import_module(FLOWS[name].module), FLOWS[name].config)


def run_flow(arguments: argparse.Namespace) -> int:
    if arguments.verify:
        os.environ["LEXLOOM_VERIFY"] = arguments.verify
    started = time.perf_counter()
    entry = FLOWS[arguments.flow]
    config = parse(arguments, flow_config(arguments.flow))
    stderr.print(
        Text(f"lexloom {arguments.flow}", style="bold") + Text(f" · store {Store().root}", style="dim")
    )
    outcome = getattr(import_module(entry.module), entry.function)(config)
    show_neighbours(outcome.evaluation)
    stderr.print(
        f"\n{outcome.stages} stages, {outcome.cached} cached, {time.perf_counter() - started:.1f} s\n"
        f"model   {outcome.model}\nreport  {outcome.report}"
    )
    if arguments.json:
        print(outcome.model_dump_json())
    return 0


def show_neighbours(evaluation: Artifact) -> None:
    from tasks.evaluate import read_evaluation

    found = read_evaluation(evaluation).neighbours
    width = max((len(entry.word) for entry in found), default=0)
    stderr.print("\nnearest neighbours, by cosine similarity", style="bold")
    for entry in found:
        line = Text(f"{entry.word:<{width}}", style="bold")
        for neighbour in entry.neighbours:
            cell = Text.assemble(f"  {neighbour.word} ", (f"{neighbour.similarity:.2f}", "dim"))
            if line.cell_len + cell.cell_len <= stderr.width:
                line = Text.assemble(line, cell)
        stderr.print(line)


# models


def neighbours(arguments: argparse.Namespace) -> int:
    from models.word2vec import WordVectors

    vectors = WordVectors.load(arguments.model)
    for word, near in zip(arguments.words, vectors.neighbours(arguments.words, arguments.k), strict=True):
        print_ranking(word, near)
    return 0


def analogy(arguments: argparse.Namespace) -> int:
    from models.word2vec import WordVectors

    a, b, c = arguments.a, arguments.b, arguments.c
    print_ranking(
        f"{a} is to {b} as {c} is to", WordVectors.load(arguments.model).analogy(a, b, c, arguments.k)
    )
    return 0


def print_ranking(title: str, ranking: list[tuple[str, float]]) -> None:
    print(title)
    for word, score in ranking:
        print(f"  {score:6.3f}  {word}")


# the store


def store_ls(arguments: argparse.Namespace) -> int:
    store = Store()
    manifests = list(store.manifests())
    for manifest in manifests:
        made = f"{manifest.created.astimezone():%Y-%m-%d %H:%M}"
        rows = f"{manifest.summary.rows:,} {manifest.summary.unit}"
        print(
            f"{manifest.stage:<{NAME_WIDTH}} {manifest.key}  {made}  {store.size(manifest) / 1e6:9,.1f} MB"
            f" {manifest.seconds:8.1f} s  {rows}"
        )
    total = sum(map(store.size, manifests))
    plural = "" if len(manifests) == 1 else "s"
    print(f"{len(manifests)} artifact{plural}, {total / 1e6:,.1f} MB in {store.root}")
    return 0


def store_verify(arguments: argparse.Namespace) -> int:
    store = Store()
    if not store.root.is_dir():
        raise FileNotFoundError(f"there is no store at {store.root}: name it with --store or LEXLOOM_STORE")
    damaged = seen = 0
    for folder in sorted(store.root.glob("[!.]*/*/")):
        damage = store.damage(folder.parent.name, folder.name, "full")
        damaged += damage is not None
        seen += 1
        print(f"{folder.parent.name}/{folder.name}  {damage or 'whole'}")
    print(f"{seen - damaged} whole, {damaged} damaged")
    if damaged:
        stderr.print("the next run that needs a damaged artifact builds it again", style="yellow")
    return 1 if damaged else 0


def store_explain(arguments: argparse.Namespace) -> int:
    found: list[Manifest] = [each for each in Store().manifests() if each.stage == arguments.stage]
    if not found:
        stages = sorted({manifest.stage for manifest in Store().manifests()})
        known = f"it has {', '.join(stages)}" if stages else "it is empty"
        raise ValueError(f"the store {Store().root} has no artifact of a stage {arguments.stage!r}; {known}")
    for manifest in found:
        print(f"{manifest.created.astimezone():%Y-%m-%d %H:%M:%S}  {manifest.stage}/{manifest.key}")
        for reason in manifest.why:
            print(f"    {reason}")
    return 0


def store_gc(arguments: argparse.Namespace) -> int:
    if arguments.keep < 0:
        raise ValueError(f"--keep is {arguments.keep}: it must be 0 or more")
    removed = Store().collect_garbage(arguments.keep, arguments.dry_run)
    for what, size in removed:
        print(f"{size / 1e6:10,.1f} MB  {what}")
    verb = "would be freed" if arguments.dry_run else "freed"
    print(f"{sum(size for _, size in removed) / 1e6:10,.1f} MB  {verb}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
