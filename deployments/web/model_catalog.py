"""The models of a store that the page lists and loads."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from lexloom.models.registry import Capability, TextClassifier, families, load_model
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.model_list import ListedModel, list_models

if TYPE_CHECKING:
    from lexloom.models.language_model import LanguageModel
    from lexloom.models.word2vec.vectors import WordVectors

CACHED = 4  # models in memory at once


@dataclass(frozen=True)
class Entry:
    """A model of the store.

    Attributes:
        name: `stage/key` in the store.
        label: what the list shows: its name, or when and on which text it was trained, and how good it is.
    """

    name: str
    label: str


class ModelCatalog:
    """The models of a store; the last used ones stay in memory. Safe to use from several threads."""

    def __init__(self, store: Store, cached: int = CACHED) -> None:
        self.store = store
        self._cached = cached
        self._loaded: OrderedDict[Path, Any] = OrderedDict()
        self._loading = threading.Lock()

    def entries(self, capability: Capability) -> list[Entry]:
        """Return the models with this capability, newest first; by-products come last."""
        found = [model for model in list_models(self.store) if model.capability == capability]
        return [
            Entry(f"{model.stage}/{model.key}", label(model))
            for model in sorted(found, key=lambda model: model.by_product)
        ]

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


def label(model: ListedModel) -> str:
    """Return a label such as "sotu-2026-11-22 · transformer · 1.558 bits per byte".

    A model without a name has its date and source instead. The kind is given if others have the same
    capability.
    """
    created, today = model.created.astimezone(), datetime.now().astimezone()
    year = "" if created.year == today.year else f" {created.year}"
    unnamed = [f"{created:%-d %b}{year}, {created:%H:%M}", *([model.source] if model.source else [])]
    parts = [model.name] if model.names else unnamed
    if sum(family.capability == model.capability for family in families().values()) > 1:
        parts.append(model.title)
    return " · ".join([*parts, model.figure])
