"""The registry of model families, and loading of their models.

A family is a module that declares `FAMILY` and defines `load`, such as `models/window_lm.py`:

    FAMILY = ModelFamily(
        kind="window_lm",
        title="window language model",
        stage="train_window_lm",
        capability="generate",
    )

    def load(folder: Path, device: str = "cpu") -> LanguageModel: ...

Another package adds a family with an entry point, whose name is the kind:

    [project.entry-points."lexloom.models"]
    lstm_lm = "my_package.lstm_lm"

Families are listed without importing their modules, since torch takes seconds to import. A model folder only
names its kind. It never names code to import, so loading a folder runs no code but that of listed families.
"""

import ast
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, overload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from lexloom.models.language_model import LanguageModel
    from lexloom.models.normalization import Normalization
    from lexloom.models.word2vec.vectors import WordVectors

GROUP = "lexloom.models"
DESCRIPTIONS = ("lexloom.json", "config.json")  # the first one that exists describes the model
KIND = "model"  # of a description: the kind of the model
DECLARATION = "FAMILY"

Capability = Literal["generate", "classify", "neighbours"]
PURPOSES: dict[Capability, str] = {
    "generate": "generate text",
    "classify": "classify texts",
    "neighbours": "compare words",
}


class TextClassifier(Protocol):
    """What a family that classifies texts loads."""

    labels: list[str]
    max_length: int  # tokens of a text that it reads at most
    normalization: "Normalization | None"  # rules that it applies to texts; None for normalized ones

    def probabilities(self, texts: list[str]) -> "NDArray[np.float32]":
        """Return the probability of each label, (N, C)."""

    def attribute(self, text: str) -> list[tuple[str, float]]:
        """Return (word, effect) in the order of the normalized text: see `Classifier.attribute`."""

    def normalized(self, text: str) -> str:
        """Return the text as the model reads it."""


@dataclass(frozen=True)
class ModelFamily:
    """A family of models. All arguments are literals: they are read without importing the module.

    Attributes:
        kind: the value of "model" in the description file of its model folders.
        title: its name in tables, reports and lists, such as "window language model".
        stage: the stage that trains it.
        capability: what its models can do, and so what `load` returns: a `LanguageModel` ("generate"), a
            `TextClassifier` ("classify") or `WordVectors` ("neighbours").
        reads_other_folders: whether a folder that names no kind, as other tools write it, is read as this
            family. At most one family of each capability may do so.
        exports: the formats of other tools to which its models can be exported, with the suffix of the file,
            such as {"gguf": ".gguf"}. The module then defines `export(folder, to, file)`, which writes the
            file and returns sentences that describe what these tools do differently.
        module: the dotted name of the module; the registry fills it in.
    """

    kind: str
    title: str
    stage: str
    capability: Capability
    reads_other_folders: bool = False
    exports: dict[str, str] = field(default_factory=dict, hash=False)
    module: str = field(default="", compare=False)

    def load(self, folder: Path, device: str = "cpu") -> Any:
        """Import the family's module and load the model in `folder`.

        Raises:
            FileNotFoundError: a file of the model is missing.
            ValueError: a file is damaged, or the device is not available.
        """
        return import_module(self.module).load(folder, device)

    def export(self, folder: Path, to: str, file: Path) -> list[str]:
        """Write the model in `folder` in one of the formats of `exports`.

        Returns sentences that describe what tools that read the file do differently.

        Raises:
            ModuleNotFoundError: the package that writes the format is not installed.
            FileNotFoundError: a file of the model is missing.
            ValueError: a file is damaged, or the format can't represent the model.
        """
        notes: list[str] = import_module(self.module).export(folder, to, file)
        return notes


@cache
def families() -> dict[str, ModelFamily]:
    """Return the families by kind: the built-in ones first, then those of other packages.

    Raises:
        ModuleNotFoundError: an entry point names a module that is missing.
        ValueError: two families have one kind, or a module does not declare its family.
    """
    root = Path(__file__).parent
    declaring = [path for path in sorted(root.rglob("*.py")) if declares_family(path)]
    built_in = [read_declaration(module_of(path, root), path) for path in declaring]
    found = {family.kind: family for family in built_in}
    for point in other_entries(GROUP, {kind: family.module for kind, family in found.items()}):
        family = read_declaration(point[1], module_file(point[1], f"the model family {point[0]}"))
        if family.kind != point[0]:
            raise ValueError(
                f"the entry point {point[0]} (group {GROUP}) names the module {point[1]}, which declares the"
                f" kind {family.kind}: give both the same name"
            )
        found[family.kind] = family
    return found


def stages(capability: Capability) -> tuple[str, ...]:
    """Return the names of the stages that train models with this capability."""
    return tuple(family.stage for family in families().values() if family.capability == capability)


def family_of_stage(stage: str) -> ModelFamily | None:
    """Return the family that a stage trains; None if it trains none."""
    return next((family for family in families().values() if family.stage == stage), None)


def find_family(folder: Path | str, capability: Capability) -> ModelFamily:
    """Return the family of the model in `folder`.

    Raises:
        FileNotFoundError: the folder is missing or contains no model.
        ValueError: its kind is unknown or lacks the capability, or its description is damaged.
    """
    kind = read_kind(Path(folder))
    able = [family for family in families().values() if family.capability == capability]
    if kind is None:
        reader = next((family for family in able if family.reads_other_folders), None)
        if reader is None:
            raise FileNotFoundError(
                f"{folder} is not a model folder: neither {' nor '.join(DESCRIPTIONS)} in it names a kind of"
                " model"
            )
        return reader
    if kind not in families():
        raise ValueError(
            f"{folder} contains a model of the unknown kind {kind!r} (known: {', '.join(families())}):"
            " install the package that adds this kind"
        )
    if families()[kind] not in able:
        raise ValueError(
            f"{folder} contains a {kind} model, which can't {PURPOSES[capability]}: use a model of the kind"
            f" {' or '.join(family.kind for family in able)}"
        )
    return families()[kind]


def find_exporter(folder: Path | str, to: str) -> ModelFamily:
    """Return the family of the model in `folder`, which can be written in the format `to`.

    Raises:
        FileNotFoundError: the folder is missing, or contains no model that has this format.
        ValueError: its kind is unknown, or can't be written in this format.
    """
    kind = read_kind(Path(folder))
    if kind is None:
        others = (family for family in families().values() if family.reads_other_folders)
        reader = next((family for family in others if to in family.exports), None)
        if reader is None:
            raise FileNotFoundError(
                f"{folder} can't be exported to {to}: neither {' nor '.join(DESCRIPTIONS)} in it names a kind"
                " of model"
            )
        return reader
    family = families().get(kind)
    if family is None or to not in family.exports:
        title = f"model of the unknown kind {kind!r}" if family is None else family.title
        formats = ", ".join(family.exports) if family else ""
        raise ValueError(
            f"{folder} contains a {title}, which can't be exported to {to}"
            + (f": use {formats}" if formats else ": no other tool has a format that can represent it")
        )
    return family


@overload
def load_model(
    folder: Path | str, capability: Literal["generate"], device: str = "cpu"
) -> "LanguageModel": ...
@overload
def load_model(
    folder: Path | str, capability: Literal["classify"], device: str = "cpu"
) -> TextClassifier: ...
@overload
def load_model(
    folder: Path | str, capability: Literal["neighbours"], device: str = "cpu"
) -> "WordVectors": ...
def load_model(folder: Path | str, capability: Capability, device: str = "cpu") -> Any:
    """Load the model in `folder`, of any family with this capability.

    Raises:
        FileNotFoundError: the folder is missing or contains no model, or a file of the model is missing.
        ValueError: see `find_family`; or a file is damaged, or the device is not available.
    """
    return find_family(folder, capability).load(Path(folder), device)


def read_kind(folder: Path) -> str | None:
    """Return the kind that a model folder's description names; None if there is none.

    Raises:
        FileNotFoundError: the folder is missing.
        ValueError: the description is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(
            f"the model folder {folder} does not exist: `lexloom store ls` lists the artifacts"
        )
    for path in (folder / name for name in DESCRIPTIONS):
        if path.is_file():
            try:
                kind = dict(json.loads(path.read_bytes())).get(KIND)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path} does not describe a model ({error}): train it again") from error
            return None if kind is None else str(kind)
    return None


# declarations, read without importing their modules


def declares_family(path: Path) -> bool:
    return f"\n{DECLARATION} = " in path.read_text(encoding="utf-8")


def read_declaration(module: str, path: Path) -> ModelFamily:
    """Return the family that a module declares.

    Raises:
        ValueError: the module declares none, or not with literals.
    """
    for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == DECLARATION:
            try:
                assert isinstance(node.value, ast.Call), "it is not a call"
                given = {str(each.arg): ast.literal_eval(each.value) for each in node.value.keywords}
                family = replace(ModelFamily(**given), module=module)
            except (AssertionError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}: {DECLARATION} can't be read ({error}): write {DECLARATION} = ModelFamily(...)"
                    " with keyword arguments that are literals"
                ) from error
            if family.capability not in get_args(Capability):
                raise ValueError(
                    f"{path}: the capability {family.capability!r} is not one of"
                    f" {', '.join(get_args(Capability))}"
                )
            return family
    raise ValueError(f"{path} declares no model family: add {DECLARATION} = ModelFamily(...)")


def module_of(path: Path, root: Path) -> str:
    return ".".join([__name__.rpartition(".")[0], *path.relative_to(root).with_suffix("").parts])


def module_file(module: str, what: str) -> Path:
    """Return the file of a module without importing it.

    Raises:
        ModuleNotFoundError: there is no such module.
    """
    try:
        spec = find_spec(module)
    except ModuleNotFoundError:  # the package that should hold it
        spec = None
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(
            f"{what} names the module {module}, which is missing: reinstall its package"
        )
    return Path(spec.origin)


def other_entries(group: str, built_in: dict[str, str]) -> Iterable[tuple[str, str]]:
    """Yield (name, module) of the entry points of a group that are not built in.

    Raises:
        ValueError: two entries have one name.
    """
    found = dict(built_in)
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        if found.get(point.name, point.value) != point.value:
            raise ValueError(
                f"the entry point {point.name} (group {group}) names {point.value}, but {point.name} is"
                f" {found[point.name]}: rename one of them"
            )
        if point.name not in found:
            found[point.name] = point.value
            yield point.name, point.value
