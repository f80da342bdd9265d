"""Evaluation sets for word vectors: word similarity and analogies, from the user or from gensim."""

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from lexloom.tasks.store.artifacts import digest_key
from lexloom.tasks.store.file_access import digest_file

GENSIM_SETS = "test/test_data"
GENSIM_SIMILARITY = ("wordsim353.tsv", "simlex999.txt")
GENSIM_ANALOGIES = ("questions-words.txt",)

Kind = Literal["similarity", "analogies"]


class EvaluationSet(BaseModel):
    """An evaluation file, identified by its content and not by its path."""

    name: str
    kind: Kind
    digest: str
    path: Path = Field(exclude=True)


class EvaluationSets(BaseModel):
    """The sets that a model is scored on: an input of `evaluate_word2vec`, found by `find_sets`."""

    sets: list[EvaluationSet]

    @property
    def key(self) -> str:
        return digest_key("evaluation sets", 1, self.model_dump(mode="json"), [])

    def file_digests(self) -> dict[str, str]:
        return {entry.name: entry.digest for entry in self.sets}

    def verify(self) -> None:
        for entry in self.sets:
            if digest_file(entry.path) != entry.digest:
                raise ValueError(f"{entry.path} changed during the run: run again once nothing writes to it")

    def of_kind(self, kind: Kind) -> list[EvaluationSet]:
        return [entry for entry in self.sets if entry.kind == kind]


def find_sets(similarity: list[Path] | None, analogies: list[Path] | None) -> EvaluationSets:
    """Find the given files of both kinds; None selects those that gensim includes, if it is installed.

    Raises:
        FileNotFoundError: a named file does not exist.
        ValueError: two files have the same name.
    """
    sets = [
        *located("similarity", similarity, GENSIM_SIMILARITY),
        *located("analogies", analogies, GENSIM_ANALOGIES),
    ]
    names = [entry.name for entry in sets]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two evaluation files are called {', '.join(sorted(twice))}: rename one")
    return EvaluationSets(sets=sets)


def located(kind: Kind, named: list[Path] | None, with_gensim: Iterable[str]) -> Iterator[EvaluationSet]:
    if named is None:
        folder = gensim_folder()
        paths = [folder / name for name in with_gensim if (folder / name).is_file()] if folder else []
    else:
        paths = named
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"the {kind} file {path} does not exist: correct its path or omit it")
        yield EvaluationSet(name=path.stem, kind=kind, digest=digest_file(path), path=path)


def gensim_folder() -> Path | None:
    """Return the folder of gensim's evaluation sets without importing gensim."""
    spec = importlib.util.find_spec("gensim")
    return Path(spec.origin).parent / GENSIM_SETS if spec and spec.origin else None


def read_similarity(path: Path) -> list[tuple[str, str, float]]:
    """Read (word, word, score) of each line that is neither empty nor a comment (#).

    Raises:
        ValueError: a line is malformed.
    """
    pairs = []
    for place, fields in fields_of(path):
        try:
            first, second, score = fields
            pairs.append((first, second, float(score)))
        except ValueError:
            raise ValueError(f"{place}: expected 'word word score', got {' '.join(fields)[:80]!r}") from None
    return pairs


def read_analogies(path: Path) -> dict[str, list[list[str]]]:
    """Read the questions (a, b, c, d) of each section: a is to b as c is to d.

    Raises:
        ValueError: a line is neither empty, nor a comment (#), nor ': section', nor four words.
    """
    sections: dict[str, list[list[str]]] = {}
    questions = None
    for place, fields in fields_of(path):
        if fields[0] == ":":
            questions = sections.setdefault(" ".join(fields[1:]), [])
        elif questions is None:
            raise ValueError(
                f"{place}: a question before the first section: put a line ': section name' above it"
            )
        elif len(fields) != 4:
            raise ValueError(f"{place}: expected four words, got {len(fields)}: {' '.join(fields)[:80]!r}")
        else:
            questions.append(fields)
    return sections


def fields_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield ("file:line", white-space separated fields) of each line that is neither empty nor a comment."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}): convert the file") from error
            if (fields := line.split()) and not line.startswith("#"):
                yield f"{path}:{number}", fields
