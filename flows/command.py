"""Run a flow from the command line. Parameters are flags, and an error is printed as one sentence.

Slow imports (Prefect, pydantic, rich) are deferred to the functions that need them. This keeps `lexloom
--help` fast, and lets the environment be configured before Prefect reads it.
"""

import atexit
import gc
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import App, CycloptsError, Group, Parameter

from lexloom.flows.environment import configure_environment
from lexloom.flows.placeholders import SLOW, placeholders
from lexloom.flows.registry import FlowEntry, flows

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

# module -> the extra that installs it
EXTRAS = {"transformers": "sentiment", "tokenizers": "sentiment", "gguf": "gguf"}
USER_ERRORS = (ValueError, OSError, LookupError, ArithmeticError, ImportError, CycloptsError)


def main(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one flow with flags; return the exit status."""

    def build_app(argv: Sequence[str]) -> App:
        app = new_app()
        begin(name, argv)
        app.command(flow_command(flows()[name], argv))
        return app

    return run(build_app, [name, *(sys.argv[1:] if argv is None else argv)])


# the application


def new_app() -> App:
    """Return the `lexloom` command without subcommands, with the options that all commands share."""
    app = App(
        name="lexloom",
        help="Train language models on your own text.",
        version=lambda: f"lexloom {version('lexloom')}",
        help_flags="--help",
        help_format="plaintext",
        default_parameter=Parameter(negative=(), show_default=shown_default, allow_repeating=True),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    shared = Group("Global options", sort_key=100)

    for flag in ("--help", "--version"):
        app[flag].group = shared

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        store: Annotated[
            str | None,
            Parameter(help="Folder of the store (default: $LEXLOOM_STORE or artifacts/).", group=shared),
        ] = None,
        verbose: Annotated[
            bool, Parameter(help="Show log messages of libraries and full tracebacks.", group=shared)
        ] = False,
    ) -> int | None:
        if store:
            os.environ["LEXLOOM_STORE"] = store
        status: int | None = app(tokens)
        return status

    return app


def shown_default(value: object) -> object:
    """Return the default to display in `--help`, or None to display nothing."""
    return None if value is None or value is False or value in ("", [], ()) else value


def run(build_app: Callable[[Sequence[str]], App], argv: Sequence[str]) -> int:
    """Run a command and return its exit status: 0, 1 (failed, with an error message), 130 (interrupted).

    An error is printed as one sentence; with --verbose its traceback is shown. The environment is configured
    before `build_app` is called, which may import Prefect.
    """
    verbose = "--verbose" in argv
    configure_environment(verbose)
    try:
        return build_app(argv).meta(attach_hyphens(argv)) or 0
    except KeyboardInterrupt:
        say("interrupted; run the same command again to resume from the finished stages", "yellow")
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        if verbose:
            raise
        hint = "" if isinstance(error, USER_ERRORS) else " (run again with --verbose for details)"
        say("error: ", "bold red", error_message(error) + hint)
        return 1
    finally:
        gc.enable()


def say(text: str, style: str, rest: str = "") -> None:
    """Print a line to stderr."""
    from rich.text import Text

    from lexloom.tasks.display.console import stderr, stop_starting

    stop_starting()
    stderr.print(Text(text, style=style) + Text(rest))


def attach_hyphens(argv: Sequence[str]) -> list[str]:
    """Rewrite `--flag -` as `--flag=-`, because the parser mistakes a lone hyphen for a flag."""
    attached: list[str] = []
    for word in argv:
        if word == "-" and attached and attached[-1].startswith("--"):
            attached[-1] += "=-"
        else:
            attached.append(word)
    return attached


def error_message(error: BaseException) -> str:
    """Return the error message for the user, without Python's exception formatting."""
    if type(error).__name__ == "PrefectHTTPStatusError" and "401 Unauthorized" in str(error):
        return "Prefect's server rejected the login: set PREFECT_API_AUTH_STRING to its name:password"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRAS:
        return f"{error.name} is not installed: pip install 'lexloom[{EXTRAS[error.name]}]'"
    return str(error).rstrip(".") if isinstance(error, CycloptsError) else str(error) or type(error).__name__


# one flow

INFORM = ("--help", "--help-all", "--version")


def begin(name: str, argv: Sequence[str]) -> None:
    """Print a run's first line and start its server, before the imports of the flow, which take seconds."""
    first = "prefect" not in sys.modules
    if first:
        # collecting garbage takes a sixth of the imports' time, and a second at the end of the process
        gc.disable()
        atexit.register(gc.freeze)
    if asks_for_help(argv):
        return
    from rich.text import Text

    from lexloom.flows.local_server.early import start_early
    from lexloom.tasks.display.console import show_starting, stderr

    if first:
        start_early()
    given = [
        word.removeprefix("--store=") if word.startswith("--store=") else following
        for word, following in pairwise([*argv, ""])
        if word == "--store" or word.startswith("--store=")
    ]
    store = Path(next(reversed(given), "") or os.environ.get("LEXLOOM_STORE") or "artifacts").absolute()
    stderr.print(
        Text(f"lexloom {name}", style="bold") + Text(f" · store {relative_to_here(store)}", style="dim")
    )
    show_starting()


def asks_for_help(argv: Sequence[str]) -> bool:
    """Return whether a command only prints its help or its version."""
    return any(flag in argv for flag in INFORM)


def load_config_for_help(entry: FlowEntry) -> "type[BaseModel]":
    """Return a flow's config, imported without the slow libraries.

    A flow of another package may need them to define its config. Nothing else can use modules that were
    imported in this way, so the process must end after the help.
    """
    if not entry.module.startswith("lexloom.") or set(SLOW) & sys.modules.keys():
        return entry.config()
    with placeholders():
        return entry.config()


FLOWS = Group("Train a model", sort_key=0)


def flow_command(entry: FlowEntry, argv: Sequence[str]) -> App:
    """Return a flow's command, with one flag per parameter. Its help lists the main flags, or all of them if
    `argv` contains `--help-all`.
    """
    everything = "--help-all" in argv
    config = load_config_for_help(entry) if asks_for_help(argv) else entry.config()

    def command(**given: Any) -> int:
        verify, json = given.pop("verify", None), given.pop("json", False)
        return run_flow(entry, config, given, verify, json)

    parameters = list(flag_parameters(config, everything))
    command.__signature__ = inspect.Signature([*parameters, *RUN_OPTIONS])  # type: ignore[attr-defined]
    more = f"Run lexloom {entry.name} --help-all to list all {len(parameters)} parameters."
    app = App(
        name=entry.name,
        help=f"{entry.purpose}.",
        help_epilogue="" if everything else more,
        help_flags=("--help", "--help-all"),
        group=FLOWS,
    )
    app.default(command)
    return app


def keyword(name: str, annotation: Any, default: Any, /, **parameter: Any) -> inspect.Parameter:
    annotation = Annotated[annotation, Parameter(**parameter)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


RUN_GROUP = Group("Run", sort_key=99)
RUN_OPTIONS = (
    keyword("json", bool, False, help="Also print the result to stdout as a JSON object.", group=RUN_GROUP),
    keyword(
        "verify",
        Literal["size", "full"] | None,
        None,
        help="How to verify cached artifacts: 'size' compares file sizes, 'full' also compares digests"
        " (default: size).",
        group=RUN_GROUP,
    ),
)


def flag_parameters(config: "type[BaseModel]", everything: bool = False) -> Iterator[inspect.Parameter]:
    """Yield a keyword parameter for each parameter of a config, named by its path, main parameters first.

    The help shows the main parameters as one group; with `everything`, each section is a group.
    """
    from lexloom.flows.config import flags, in_flags, main_paths

    main = main_paths(config)
    groups: dict[str, Group] = {}
    rank = {path: at for at, path in enumerate(main)}
    for path, field, flag in sorted(flags(config), key=lambda each: rank.get(each[0], len(rank))):
        title = (path[0] if len(path) > 1 else "flow") if everything else "Main parameters"
        group = groups.setdefault(title, Group(title.capitalize(), sort_key=len(groups)))
        annotation, options = parser_options(field)
        yield keyword(
            "__".join(path),
            annotation,
            None,
            name=flag,
            help=in_flags(field.description or "", config, path[0]),
            show=everything or path in rank,
            show_default=default_text(field),
            group=group,
            **options,
        )


def parser_options(field: "FieldInfo") -> tuple[Any, dict[str, Any]]:
    """Return the type and options for parsing a field's flag; pydantic converts and validates the value."""
    from lexloom.flows.config import takes_lines

    kind = without_none(field.annotation)
    if takes_lines(field) or get_origin(kind) in (list, tuple, set):
        return list[str] | None, {"consume_multiple": (1, None), "metavar": "STR..."}
    if kind is bool:
        return bool | None, {"negative": None}
    if get_origin(kind) is Literal:
        return kind | None, {}
    return str | None, {"metavar": "|".join(metavars(kind))}


def metavars(annotation: Any) -> list[str]:
    """Return the names of a type's values for `--help`, such as ["INT", "auto"]."""
    if get_origin(annotation) is Annotated:
        return metavars(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [name for kind in get_args(annotation) for name in metavars(kind)]
    if get_origin(annotation) is Literal:
        return list(map(str, get_args(annotation)))
    return [{int: "INT", float: "FLOAT"}.get(annotation, "STR")]


def without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def default_text(field: "FieldInfo") -> str | bool:
    """Return a field's default for `--help`; False if there is none or the description explains it."""
    if field.default_factory_takes_validated_data:
        return False
    default = shown_default(field.get_default(call_default_factory=True))
    if isinstance(default, list | tuple):
        return " ".join(map(str, default))
    return False if default is None else str(default)


def run_flow(
    entry: FlowEntry, config: "type[BaseModel]", given: dict[str, Any], verify: str | None, json: bool
) -> int:
    """Run a flow with the values of its flags, and print its result."""
    from lexloom.flows.config import in_flags, parse
    from lexloom.tasks.display.console import stderr, stop_starting
    from lexloom.tasks.display.formatting import counted

    if verify:
        os.environ["LEXLOOM_VERIFY"] = verify
    started = time.perf_counter()
    parameters = parse({tuple(name.split("__")): value for name, value in given.items()}, config)
    import_module("lexloom.flows.local_server.server").start_server()  # imported late: it takes seconds
    gc.enable()
    stop_starting()
    try:
        outcome = entry.flow()(parameters)
    except USER_ERRORS as error:
        raise ValueError(in_flags(error_message(error), config)) from error
    stderr.print(entry.load().highlights(outcome.evaluation, stderr.width))
    seconds = time.perf_counter() - started
    stderr.print(
        f"\n{counted(outcome.stages, 'stages')}, {outcome.cached} cached, {seconds:.1f} s"
        f"\nmodel   {outcome.name}  {relative_to_here(outcome.model)}"
        f"\nreport  {relative_to_here(outcome.report)}"
    )
    if json:
        print(outcome.model_dump_json())
    return 0


def relative_to_here(path: Path) -> Path:
    """Return a path relative to the current folder if it is inside."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
