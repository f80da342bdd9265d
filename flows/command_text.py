"""The command line that reproduces a run: the flags of the parameters that differ from their defaults."""

import re
from collections.abc import Mapping
from contextlib import suppress
from shlex import quote
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from lexloom.flows.config import FieldPath, flags, takes_lines

SHOWN_VALUES = 20  # of one flag: a shell may have expanded a pattern to thousands of files
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")  # the user and password of a URL


def command_text(flow: str, config: BaseModel) -> str:
    """Return the command that runs `flow` with this config.

    Values that follow from the others, such as those of a preset, are left out, and so is a value that no
    flag can express (None where the default is a number). Credentials in URLs are replaced with ***.
    """
    default = type(config)()
    known = {path: (field, flag) for path, field, flag in flags(type(config))}
    given = {path: value for path in known if (value := follow(config, path)) != follow(default, path)}
    for path in list(given):
        others = {other: value for other, value in given.items() if other != path}
        with suppress(ValidationError):
            if type(config).model_validate(nested(others)) == config:
                given = others
    words = [word for path, value in given.items() for word in flag_words(*known[path], value)]
    return " ".join(["lexloom", flow, *words])


def nested(values: Mapping[FieldPath, Any]) -> dict[str, Any]:
    """Return the values as nested dictionaries, one per section."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        section = found
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section[path[-1]] = value
    return found


def follow(config: BaseModel, path: FieldPath) -> Any:
    """Return the value of the parameter at `path`."""
    found: Any = config
    for name in path:
        found = getattr(found, name)
    return found


def flag_words(field: FieldInfo, flag: str, value: Any) -> list[str]:
    """Return a flag and its values, quoted for a shell."""
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag.removeprefix('--')}"]
    if value is None:
        return []
    if takes_lines(field):
        values = str(value).split("\n")
    elif isinstance(value, list | tuple | set):
        values = [str(each) for each in value]
    else:
        values = [str(value)]
    shown = [CREDENTIALS.sub("***", each) for each in values[:SHOWN_VALUES]]
    more = ["..."] if len(values) > len(shown) else []
    if any(each.startswith("-") for each in shown):
        return [*(quote(f"{flag}={each}") for each in shown), *more]
    return [flag, *map(quote, shown), *more] if shown else []
