"""Command-line flags from a flow's config: declared once in pydantic, here only translated.

A field's flag is its name with dashes. Where several sections have a field of the same name, the corpus's and
training's keep it (`--source`, `--seed`), and before the others' stands the section (`--pairs-seed`). A field
that should stand back says its flag itself, by `json_schema_extra={"flag": ...}`.
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

# a field of two words at least, which is no part of a name or a path, and not in quotes
FIELD = re.compile(r"(?<![\w'\"/.-])[a-z]+(?:_[a-z0-9]+)+(?![\w'\"/]|\.\w)")

FieldPath = tuple[str, ...]

PLAIN_SECTIONS = ("corpus", "train")


def add_flags(parser: argparse.ArgumentParser, config: type[BaseModel]) -> None:
    """A flag for every field of `config` and of the configs nested in it."""
    groups: dict[str, Any] = {}
    for path, field, flag in flags(config):
        text = in_flags(help_text(field), config, path[0])
        group = groups.get(path[0]) or parser.add_argument_group(path[0] if len(path) > 1 else "flow")
        groups[path[0]] = group
        group.add_argument(flag, dest=".".join(path), default=None, help=text, **argument(field))


def parse(arguments: argparse.Namespace, config: type[BaseModel]) -> BaseModel:
    """The config that the flags describe; ValueError with one sentence where a value is out of bounds."""
    values: dict[str, Any] = {}
    for path, field, _ in flags(config):
        value = getattr(arguments, ".".join(path))
        if value is not None:
            value = "\n".join(value) if takes_lines(field) else value
            section = values
            for name in path[:-1]:
                section = section.setdefault(name, {})
            section[path[-1]] = value
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise ValueError(sentence(error, config)) from error


def sentence(error: ValidationError, config: type[BaseModel]) -> str:
    """A validation error in the terms of the command line."""
    names = {path: flag for path, _, flag in flags(config)}
    problems = []
    for problem in error.errors():
        if problem["type"] == "default_factory_not_called":
            continue  # it needs a value that is itself complained of
        path = tuple(str(part) for part in problem["loc"])
        prefixes = [path[:end] for end in range(len(path), 0, -1)]
        flag = next((f"{names[prefix]} " for prefix in prefixes if prefix in names), "")
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if problem["type"] == "string_unicode":
            message = "must be UTF-8: rename the file or folder"
        message = in_flags(message, config, path[0] if path else "")
        given = "" if isinstance(problem["input"], dict) else f" (it is {problem['input']!r})"
        problems.append(f"{flag}{message}{given}")
    return "; ".join(problems)


def in_flags(text: str, config: type[BaseModel], section: str = "") -> str:
    """A sentence that names fields, as one that names their flags: those of a section, if it has such ones.

    A field of one word is not told from the word.
    """
    known: dict[str, list[FieldPath]] = {}
    names = {path: flag for path, _, flag in flags(config)}
    for path in names:
        known.setdefault(path[-1], []).append(path)

    def flag(match: re.Match[str]) -> str:
        paths = known.get(match[0], [])
        near = [path for path in paths if path[0] == section] or paths
        return " or ".join(names[path] for path in near) or match[0]

    return FIELD.sub(flag, text)


def flags(config: type[BaseModel]) -> list[tuple[FieldPath, FieldInfo, str]]:
    """(path of names, field, flag) of every field that is not a section itself."""
    fields = list(leaves(config))
    names = Counter(path[-1] for path, field in fields if own_flag(field) is None)
    found = []
    for path, field in fields:
        name = own_flag(field) or "-".join(path[-1:] if is_plain(path, names) else path[-2:])
        found.append((path, field, "--" + name.replace("_", "-")))
    return found


def own_flag(field: FieldInfo) -> str | None:
    extra = field.json_schema_extra
    return str(extra["flag"]) if isinstance(extra, dict) and "flag" in extra else None


def takes_lines(field: FieldInfo) -> bool:
    """Whether it is text of lines, and a line a word of the command line: a shell expands patterns."""
    return isinstance(field.json_schema_extra, dict) and "lines" in field.json_schema_extra


def is_plain(path: FieldPath, names: Counter[str]) -> bool:
    return names[path[-1]] == 1 or path[0] in PLAIN_SECTIONS


def leaves(config: type[BaseModel], prefix: FieldPath = ()) -> Iterator[tuple[FieldPath, FieldInfo]]:
    for name, field in config.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, (*prefix, name))
        else:
            yield (*prefix, name), field


def argument(field: FieldInfo) -> dict[str, Any]:
    """How argparse should read a field; bounds are left to pydantic, which knows them."""
    kind = without_none(field.annotation)
    if takes_lines(field):
        return {"nargs": "+", "metavar": "TEXT"}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    if get_origin(kind) in (list, tuple, set):
        return {"nargs": "+", "metavar": "VALUE"}
    metavar = {int: "N", float: "X"}.get(kind, "TEXT")
    return {"metavar": metavar}


def without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def help_text(field: FieldInfo) -> str:
    if field.default_factory_takes_validated_data:  # the description says what it depends on
        return field.description or ""
    default = field.get_default(call_default_factory=True)
    note = "" if default in (None, "", [], ()) else f" (default: {default})"
    return f"{field.description or ''}{note}".replace("%", "%%")
