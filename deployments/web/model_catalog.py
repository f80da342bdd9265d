"""The models of a store that the page lists and loads."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from pydantic import JsonValue

from lexloom.models.registry import (
    Capability,
    ModelFamily,
    TextClassifier,
    families,
    family_of_stage,
    load_model,
)
from lexloom.tasks.display.formatting import counted, short
from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.lookup import is_by_product, is_of_tokens

if TYPE_CHECKING:
    from lexloom.models.language_model import LanguageModel
    from lexloom.models.word2vec.vectors import WordVectors

CACHED = 4  # models in memory at once


@dataclass(frozen=True)
class Entry:
    """A model of the store.

    Attributes:
        name: `stage/key` in the store.
        label: what the list shows: when it was trained, on which text, how good it is.
        by_product: whether it was trained as a part of another model.
    """

    name: str
    label: str
    by_product: bool


class ModelCatalog:
    """The models of a store; the last used ones stay in memory. Safe to use from several threads."""

    def __init__(self, store: Store, cached: int = CACHED) -> None:
        self.store = store
        self._cached = cached
        self._loaded: OrderedDict[Path, Any] = OrderedDict()
        self._loading = threading.Lock()

    def entries(self, capability: Capability) -> list[Entry]:
        """Return the models with this capability, newest first; by-products come last."""
        manifests = {manifest.key: manifest for manifest in self.store.manifests()}
        evaluations = {
            entry.key: manifest.summary.facts
            for manifest in manifests.values()
            if manifest.stage.startswith("evaluate")
            for entry in manifest.inputs
            if entry.name == "model"
        }
        found = [
            Entry(
                name=f"{manifest.stage}/{manifest.key}",
                label=label(manifest, family, manifests, evaluations.get(manifest.key, {})),
                by_product=is_by_product(manifest),
            )
            for manifest in reversed(manifests.values())
            if (family := family_of_stage(manifest.stage)) and family.capability == capability
        ]
        return sorted(found, key=lambda entry: entry.by_product)

    @overload
    def load(self, name: str, capability: Literal["generate"]) -> "LanguageModel": ...
    @overload
    def load(self, name: str, capability: Literal["classify"]) -> TextClassifier: ...
    @overload
    def load(self, name: str, capability: Literal["neighbours"]) -> "WordVectors": ...
    def load(self, name: str, capability: Capability) -> Any:
        """Return the model `stage/key`, from memory if it is among the last used.

        Raises:
            FileNotFoundError: it is no longer in the store.
            ValueError, ImportError: see `lexloom.models.registry.load_model`.
        """
        stage, _, key = name.partition("/")
        folder = self.store.folder(stage, key)
        with self._loading:
            if self.store.manifest(stage, key) is None:
                self._loaded.pop(folder, None)
                raise FileNotFoundError(
                    "this model is no longer in the store: press Refresh, and choose another one"
                )
            if folder not in self._loaded:
                self._loaded[folder] = load_model(folder, capability)
            self._loaded.move_to_end(folder)
            while len(self._loaded) > self._cached:
                self._loaded.popitem(last=False)
            return self._loaded[folder]


def label(
    manifest: Manifest,
    family: ModelFamily,
    manifests: Mapping[str, Manifest],
    evaluation: Mapping[str, JsonValue],
) -> str:
    """Return a label such as "22 Nov, 10:32 · sotu · transformer · 1.558 bits per byte".

    The year is given unless it is this one, the family if others have the same capability.
    """
    created, today = manifest.created.astimezone(), datetime.now().astimezone()
    year = "" if created.year == today.year else f" {created.year}"
    parts = [f"{created:%-d %b}{year}, {created:%H:%M}", *corpus_names(manifest, manifests)]
    if sum(other.capability == family.capability for other in families().values()) > 1:
        parts.append(family.title)
    return " · ".join([*parts, headline(manifest, family, {**manifest.summary.facts, **evaluation})])


def corpus_names(manifest: Manifest, manifests: Mapping[str, Manifest]) -> list[str]:
    """Return the name of the source that the model was trained on; nothing if the store no longer has it."""
    for ancestor in ancestors(manifest, manifests):
        if ancestor.stage == "corpus":
            for entry in ancestor.inputs:
                if name := str(entry.description.get("name", "")):
                    return [name if name.startswith("hf:") else Path(name).name]
    return []


def ancestors(manifest: Manifest, manifests: Mapping[str, Manifest]) -> Iterator[Manifest]:
    """Yield all artifacts that an artifact was made from, nearest first."""
    waiting, seen = [manifest], {manifest.key}
    while waiting:
        for entry in waiting.pop(0).inputs:
            if entry.key in manifests and entry.key not in seen:
                seen.add(entry.key)
                waiting.append(manifests[entry.key])
                yield manifests[entry.key]


def headline(manifest: Manifest, family: ModelFamily, facts: Mapping[str, JsonValue]) -> str:
    """Return the main figure of a model's evaluation; its size if it was not evaluated."""
    if family.capability == "neighbours":
        return counted(manifest.summary.rows, "tokens" if is_of_tokens(manifest) else "words")
    for name, format_figure in FIGURES:
        if isinstance(value := facts.get(name), int | float):
            return format_figure(value)
    return f"{short(manifest.summary.rows)} {manifest.summary.unit}"


FIGURES: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("accuracy", lambda value: f"accuracy {value:.1%}"),
    ("bits_per_byte", lambda value: f"{value:.3f} bits per byte"),
    ("top_1", lambda value: f"top-1 accuracy {value:.1%}"),
    ("validation_loss", lambda value: f"validation loss {value:.3f}"),
)
