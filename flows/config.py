"""The parameters of a flow as command-line flags and as a form in Prefect's UI.

`main_parameters` lists the few that most users set; `--help` and the form show only these. `--help-all` lists
all parameters, and the form accepts the others as JSON.

A parameter's flag is its name with dashes. If several sections have a field of the same name, those of the
corpus and of training keep the plain name (`--source`, `--seed`); the others are prefixed with their section
(`--pairs-seed`). A field can set its flag with `json_schema_extra={"flag": ...}`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from lexloom.tasks.store.names import NAME_PATTERN, ModelName

BOUNDS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}
LARGEST_BOUND = 1 << 53  # larger bounds are only technical and are not described
PLAIN_SECTIONS = ("corpus", "train")
# a field name of at least two words that is not part of another name or a path, and not quoted
FIELD_NAME = re.compile(r"(?<![\w'\"/.-])[a-z]+(?:_[a-z0-9]+)+(?![\w'\"/]|\.\w)")

FieldPath = tuple[str, ...]


class FlowConfig(BaseModel):
    """Base class of flow configs. A field is either the config of a stage or a single parameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # not part of any stage's config, and therefore of any key
    name: ModelName | None = Field(
        None,
        description="Name of the model, which commands accept. If another model has it, the name moves. If"
        " not given, the model keeps its name, or gets one made of its source and the date.",
        json_schema_extra={"pattern": f"^{NAME_PATTERN}$"},
    )

    # dotted paths in the order in which they are shown; if there are none, all parameters are main ones
    main_parameters: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        unknown = set(cls.main_parameters) - {".".join(path) for path, _ in leaves(cls)}
        if unknown:
            raise TypeError(
                f"{cls.__name__}.main_parameters names fields that do not exist: {sorted(unknown)}"
            )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler(core_schema)
        make_form(handler.resolve_ref_schema(schema), cls, main_paths(cls), handler.resolve_ref_schema)
        return schema


def main_paths(config: type[BaseModel]) -> list[FieldPath]:
    """Return the paths of a config's main parameters, in order; the model's name is the last one."""
    named = [tuple(name.split(".")) for name in getattr(config, "main_parameters", ())]
    own_names: list[FieldPath] = [("name",)] if issubclass(config, FlowConfig) else []
    return [*named, *own_names] if named else [path for path, _ in leaves(config)]


# Prefect's form


def make_form(
    schema: dict[str, Any],
    config: type[BaseModel],
    main: list[FieldPath],
    resolve: Callable[[dict[str, Any]], dict[str, Any]],
    prefix: FieldPath = (),
) -> None:
    """Rearrange a config's JSON schema for Prefect's form, without changing which values it accepts.

    The form shows `properties` in the order of their `position`, and an object without `properties` as JSON.
    It ignores `patternProperties`, which the API validates. So the main parameters become properties, and the
    others become patterns.
    """
    ranks: dict[str, int] = {}
    hidden: list[str] = []
    for name, field in config.model_fields.items():
        path, entry, section = (*prefix, name), schema["properties"][name], section_of(field)
        rank = next((at for at, each in enumerate(main) if each[: len(path)] == path), len(main))
        is_main = rank < len(main)
        if section is None:
            describe_bounds(entry)
        else:
            make_form(resolve(entry), section, main, resolve, path)
        if is_main:
            simplify(entry)
        if is_main or (section is not None and section.model_fields and not prefix):
            ranks[name] = rank
        else:
            hidden.append(name)
    if hidden:
        schema["patternProperties"] = {f"^{name}$": schema["properties"].pop(name) for name in hidden}
    if not ranks:
        del schema["properties"]
    for position, name in enumerate(sorted(ranks, key=lambda name: ranks[name])):
        entry = schema["properties"][name]
        entry["position"] = position
        if ranks[name] < len(main) and section_of(config.model_fields[name]) is not None:
            mention_hidden(entry, resolve(entry))
    if not prefix:
        mention_hidden(schema, schema)


def mention_hidden(entry: dict[str, Any], section: dict[str, Any]) -> None:
    """Add to a section's description the names of the parameters that the form does not show."""
    hidden = section.get("patternProperties", {}).items()
    names = [f"`{pattern[1:-1]}`" for pattern, field in hidden if field.get("default") != {}]
    if names:
        described = entry.get("description") or section.get("description", "")  # if they are equal, once
        entry["description"] = f"{described} Advanced (menu ⋮, *Use JSON input*): {', '.join(names)}."


def describe_bounds(field: dict[str, Any]) -> None:
    """Add `(at least 1, at most 8)` to a field's description, since the form shows no bounds."""
    kinds = [field, *field.get("anyOf", [])]
    said = [
        f"{words} {kind[bound]:,}"
        for kind in kinds
        for bound, words in BOUNDS.items()
        if bound in kind and abs(kind[bound]) < LARGEST_BOUND
    ]
    description = field.get("description", "")
    phrase = f" ({', '.join(said)})"
    if said and phrase not in description:
        sentence = description.removesuffix(".")
        field["description"] = sentence + phrase + description[len(sentence) :]


def simplify(field: dict[str, Any]) -> None:
    """Show an optional value as an input that can be left empty, not as a choice between a type and None.

    Prefect's API accepts null for a field without a default.
    """
    kinds = [kind for kind in field.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del field["anyOf"]
        field.update(kinds[0])
    default = field.get("default", ...)
    if default is None:
        del field["default"]
    elif isinstance(default, dict):  # of a section
        field["default"] = {name: value for name, value in default.items() if value is not None}


# flags


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """Return the config class of a section; None if the field is a single parameter."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def leaves(config: type[BaseModel], prefix: FieldPath = ()) -> Iterator[tuple[FieldPath, FieldInfo]]:
    """Yield the path and the field of every parameter."""
    for name, field in config.model_fields.items():
        section = section_of(field)
        if section is None:
            yield (*prefix, name), field
        else:
            yield from leaves(section, (*prefix, name))


def flags(config: type[BaseModel]) -> list[tuple[FieldPath, FieldInfo, str]]:
    """Return the path, the field and the flag of every parameter."""
    fields = list(leaves(config))
    names = Counter(path[-1] for path, field in fields if own_flag(field) is None)
    found = []
    for path, field in fields:
        plain = names[path[-1]] == 1 or path[0] in PLAIN_SECTIONS
        name = own_flag(field) or "-".join(path[-1:] if plain else path[-2:])
        found.append((path, field, "--" + name.replace("_", "-")))
    return found


def own_flag(field: FieldInfo) -> str | None:
    extra = field.json_schema_extra
    return str(extra["flag"]) if isinstance(extra, dict) and "flag" in extra else None


def takes_lines(field: FieldInfo) -> bool:
    """Return whether the flag accepts several values, such as the files that a shell pattern expands to."""
    return isinstance(field.json_schema_extra, dict) and "lines" in field.json_schema_extra


def parse(given: dict[FieldPath, Any], config: type[BaseModel]) -> BaseModel:
    """Build the config from the values of flags; None means that a flag was not given.

    Raises:
        ValueError: a value is out of bounds; the message names its flag.
    """
    values: dict[str, Any] = {}
    for path, field, _ in flags(config):
        value = given.get(path)
        if value is not None:
            section = values
            for name in path[:-1]:
                section = section.setdefault(name, {})
            section[path[-1]] = "\n".join(value) if takes_lines(field) else value
    try:
        return config.model_validate(values)
    except ValidationError as error:
        raise ValueError(sentence(error, config)) from error


def sentence(error: ValidationError, config: type[BaseModel]) -> str:
    """Format a validation error as one sentence that names the flags."""
    names = {path: flag for path, _, flag in flags(config)}
    problems = []
    for problem in error.errors():
        if problem["type"] == "default_factory_not_called":
            continue  # a value that it depends on is reported itself
        path = tuple(str(part) for part in problem["loc"])
        prefixes = [path[:end] for end in range(len(path), 0, -1)]
        flag = next((f"{names[prefix]} " for prefix in prefixes if prefix in names), "")
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if problem["type"] == "string_unicode":
            message = "must be UTF-8: rename the file or folder"
        message = in_flags(message, config, path[0] if path else "")
        value = "" if isinstance(problem["input"], dict) else f" (got {problem['input']!r})"
        problems.append(f"{flag}{message}{value}")
    return "; ".join(problems)


def in_flags(text: str, config: type[BaseModel], section: str = "") -> str:
    """Replace field names in a sentence with their flags, preferring the flags of `section`.

    Single-word names are kept, because they cannot be distinguished from ordinary words.
    """
    names = {path: flag for path, _, flag in flags(config)}
    by_name: dict[str, list[FieldPath]] = {}
    for path in names:
        by_name.setdefault(path[-1], []).append(path)

    def flag(match: re.Match[str]) -> str:
        paths = by_name.get(match[0], [])
        near = [path for path in paths if path[0] == section] or paths
        return " or ".join(names[path] for path in near) or match[0]

    return FIELD_NAME.sub(flag, text)
