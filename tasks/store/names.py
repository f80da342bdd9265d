"""Names of models. `names.json` in the store maps each name to an artifact.

A name is like a Docker tag: a model can have several, and a name that is given to another model moves. Names
are not part of keys or artifacts, so naming a model builds nothing. A name is kept when its model is removed:
it refers to the model again once the model is rebuilt, unless the name has moved to another model.
"""

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from glob import has_magic
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, AwareDatetime, BaseModel, Field, ValidationError

from lexloom.tasks.store.artifacts import KEY_LENGTH, Store
from lexloom.tasks.store.file_access import read_regular
from lexloom.tasks.store.layout import BUILDING, unique_suffix

NAMES_FILE = "names.json"
LATEST = "latest"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
KEY_PATTERN = rf"[0-9a-f]{{{KEY_LENGTH}}}"
MAX_BASE = 40  # characters of a default name before its date
EXTENSIONS = {".gz", ".zst", ".txt", ".jsonl", ".csv", ".parquet"}
HUB_PREFIX = "hf:"
SEVERAL = re.compile(r" and [\d,]+ more$")  # after the first of several sources (`FileSource.name`)

Place = tuple[str, str]  # stage and key


def check_name(name: str) -> str:
    """Return a valid name; raise ValueError otherwise."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ValueError(
            "must be 1 to 64 letters (A to Z), digits, '.', '_' or '-', and begin with a letter or digit"
        )
    if name.lower() == LATEST:
        raise ValueError(f"must not be {LATEST!r}, which stands for the newest model")
    if re.fullmatch(KEY_PATTERN, name):
        raise ValueError(f"must not be {KEY_LENGTH} hexadecimal digits, which stand for a key")
    return name


ModelName = Annotated[str, AfterValidator(check_name)]
FolderName = Annotated[str, Field(pattern=r"^[^./\\][^/\\]*$")]


class NamedPlace(BaseModel):
    """The artifact that a name refers to, and the time at which it got the name."""

    stage: FolderName
    key: FolderName
    given: AwareDatetime

    @property
    def place(self) -> Place:
        return self.stage, self.key


class NamesFile(BaseModel):
    format: Literal[1] = 1
    names: dict[ModelName, NamedPlace] = {}


class Naming(NamedTuple):
    """The result of naming a model: its name, and the model that had the name before, if any."""

    name: str
    moved_from: Place | None = None


# reading


def read_names(store: Store) -> dict[str, NamedPlace]:
    """Return all names, including those of removed models, in the order in which they were given.

    Raises:
        ValueError: the file is damaged.
        OSError: it can't be read.
    """
    path = store.root / NAMES_FILE
    try:
        names = NamesFile.model_validate_json(read_regular(path)).names
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except ValidationError as error:
        raise ValueError(
            f"{path} is damaged: restore it from a backup, or delete it, which removes all names of models"
        ) from error
    return dict(sorted(names.items(), key=lambda item: item[1].given))


def names_of(place: Place, names: Mapping[str, NamedPlace]) -> list[str]:
    """Return the names of a model, most recent first."""
    return [name for name, named in reversed(list(names.items())) if named.place == place]


# giving names


def name_model(store: Store, place: Place, name: str) -> Naming:
    """Give a model this name; if another model has it, the name moves.

    Raises:
        ValueError: the name is not valid, or the file of names is damaged.
        OSError: it can't be written.
    """
    check_name(name)
    known = read_names(store)
    if names_of(place, known)[:1] == [name]:
        return Naming(name)
    with changed_names(store) as names:
        before = names.get(name)
        names[name] = NamedPlace(stage=place[0], key=place[1], given=datetime.now(UTC))
    moved = before is not None and before.place != place and store.is_occupied(*before.place)
    return Naming(name, before.place if moved and before else None)


def name_by_default(store: Store, place: Place, base: str) -> Naming:
    """Return the model's latest name; a model without one gets `base`, today's date and, if needed, a number.

    Raises the same errors as `name_model`.
    """
    if found := names_of(place, read_names(store)):
        return Naming(found[0])
    with changed_names(store) as names:
        if found := names_of(place, names):  # another run has just named it
            return Naming(found[0])
        name = f"{base}-{datetime.now():%Y-%m-%d}"
        number = 1
        while (numbered := name if number == 1 else f"{name}-{number}") in names:
            number += 1
        names[check_name(numbered)] = NamedPlace(stage=place[0], key=place[1], given=datetime.now(UTC))
    return Naming(numbered)


@contextmanager
def changed_names(store: Store) -> Iterator[dict[str, NamedPlace]]:
    """Yield the names to be changed, and then replace the file. A lock serializes concurrent changes."""
    with store.lock("names"):
        names = read_names(store)
        yield names
        new = store.make_folder(BUILDING) / f"names-{unique_suffix()}"
        try:
            with new.open("w", encoding="utf-8") as file:
                file.write(json.dumps(NamesFile(names=names).model_dump(mode="json"), indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())
            new.replace(store.root / NAMES_FILE)
        finally:
            new.unlink(missing_ok=True)


def base_name(source: str | None, otherwise: str) -> str:
    """Return the part of a default name before the date: from the source's name, or else `otherwise`.

    `books/Moby Dick.txt.gz` gives `moby-dick`, `logs/*.jsonl` gives `logs`, `hf:stanfordnlp/imdb` `imdb`.
    """
    name = SEVERAL.sub("", source or "")
    if name.startswith(HUB_PREFIX):
        name = re.split(r"[@:]", name.removeprefix(HUB_PREFIX))[0]
    parts = [part for part in PurePosixPath(name).parts if not has_magic(part)]
    return slug(parts[-1] if parts else "") or otherwise


def slug(text: str) -> str:
    """Reduce a file's name to lower-case ASCII letters and digits, joined by hyphens; it may become empty."""
    path = Path(text)
    while path.suffix.lower() in EXTENSIONS:
        path = path.with_suffix("")
    plain = unicodedata.normalize("NFKD", path.name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:MAX_BASE].rstrip("-")
