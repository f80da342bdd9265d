"""The models of a store that the page offers: found, named for a person, loaded when they are needed."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue

from lexloom.tasks.display.formatting import counted, short
from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.lookup import TRANSFORMER, WINDOW_LM, WORD2VEC, is_by_product, is_of_tokens

KEPT = 4  # models in memory at once
MODEL = TypeVar("MODEL")


@dataclass(frozen=True)
class Entry:
    """A model of the store.

    Attributes:
        stage: the stage that trained it.
        key: its key in the store.
        folder: where it lies.
        created: when it was trained.
        label: what the reader chooses it by: when, from which text, how good.
        by_product: whether it was made as a part of another model.
    """

    stage: str
    key: str
    folder: Path
    created: datetime
    label: str
    by_product: bool

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.key}"


class Shelf:
    """The models of a store, of which the last used stay in memory. Safe to use from several threads."""

    def __init__(self, store: Store, kept: int = KEPT) -> None:
        self.store = store
        self._kept = kept
        self._loaded: OrderedDict[tuple[Path, str], Any] = OrderedDict()
        self._loading = threading.Lock()

    def entries(self, *stages: str) -> list[Entry]:
        """The models that these stages have trained, newest first; by-products behind the others."""
        manifests = {manifest.key: manifest for manifest in self.store.manifests()}
        judged = {
            entry.key: manifest.summary.facts
            for manifest in manifests.values()
            if manifest.stage.startswith("evaluate")
            for entry in manifest.inputs
            if entry.name == "model"
        }
        found = [
            Entry(
                stage=manifest.stage,
                key=manifest.key,
                folder=self.store.folder(manifest.stage, manifest.key),
                created=manifest.created,
                label=label(manifest, manifests, judged.get(manifest.key, {})),
                by_product=is_by_product(manifest),
            )
            for manifest in reversed(manifests.values())
            if manifest.stage in stages
        ]
        return sorted(found, key=lambda entry: entry.by_product)

    def load(self, name: str, reader: Callable[[Path], MODEL]) -> MODEL:
        """The model `stage/key` by one of its readers; from memory where it was among the last used.

        Raises:
            FileNotFoundError: it is no longer in the store.
            ValueError, ImportError: the reader's.
        """
        stage, _, key = name.partition("/")
        folder = self.store.folder(stage, key)
        place = (folder, reader.__name__)
        with self._loading:
            if self.store.manifest(stage, key) is None:
                self._loaded.pop(place, None)
                raise FileNotFoundError(
                    "this model is no longer in the store: press Refresh, and choose another one"
                )
            if place not in self._loaded:
                self._loaded[place] = reader(folder)
            self._loaded.move_to_end(place)
            while len(self._loaded) > self._kept:
                self._loaded.popitem(last=False)
            model: MODEL = self._loaded[place]
            return model


def label(manifest: Manifest, manifests: Mapping[str, Manifest], judged: Mapping[str, JsonValue]) -> str:
    """'22 Nov 2026, 10:32 · sotu · 1.558 bits a byte': when (this year is not said), from what, how good."""
    made, today = manifest.created.astimezone(), datetime.now().astimezone()
    year = "" if made.year == today.year else f" {made.year}"
    parts = [f"{made:%-d %b}{year}, {made:%H:%M}", *corpora(manifest, manifests)]
    if manifest.stage in (WINDOW_LM, TRANSFORMER):
        parts.append("window" if manifest.stage == WINDOW_LM else "transformer")
    return " · ".join([*parts, figure(manifest, {**manifest.summary.facts, **judged})])


def corpora(manifest: Manifest, manifests: Mapping[str, Manifest]) -> list[str]:
    """What the model was trained on, as its user called it; nothing where the store no longer knows."""
    for ancestor in ancestors(manifest, manifests):
        if ancestor.stage == "corpus":
            for entry in ancestor.inputs:
                if called := str(entry.description.get("name", "")):
                    return [called if called.startswith("hf:") else Path(called).name]
    return []


def ancestors(manifest: Manifest, manifests: Mapping[str, Manifest]) -> Iterator[Manifest]:
    """All that an artifact was made from, nearest first."""
    waiting, seen = [manifest], {manifest.key}
    while waiting:
        for entry in waiting.pop(0).inputs:
            if entry.key in manifests and entry.key not in seen:
                seen.add(entry.key)
                waiting.append(manifests[entry.key])
                yield manifests[entry.key]


def figure(manifest: Manifest, facts: Mapping[str, JsonValue]) -> str:
    """The figure that a model of its kind is judged by; of one that nobody has judged, its size."""
    if manifest.stage == WORD2VEC:
        return counted(manifest.summary.rows, "tokens" if is_of_tokens(manifest) else "words")
    for name, shown in FIGURES:
        if isinstance(value := facts.get(name), int | float):
            return shown(value)
    return f"{short(manifest.summary.rows)} {manifest.summary.unit}"


FIGURES: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("accuracy", lambda value: f"{value:.1%} accurate"),
    ("bits_per_byte", lambda value: f"{value:.3f} bits a byte"),
    ("top_1", lambda value: f"{value:.1%} of tokens foreseen"),
    ("validation_loss", lambda value: f"validation loss {value:.3f}"),
)
