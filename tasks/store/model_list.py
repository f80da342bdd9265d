"""The models of a store: their names, kinds, sources, dates, sizes and main figures."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field, JsonValue

from lexloom.models.registry import Capability, ModelFamily, family_of_stage
from lexloom.tasks.display.formatting import counted, short
from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.lineage import SHOWN_KEY
from lexloom.tasks.store.lookup import is_by_product, is_of_tokens
from lexloom.tasks.store.names import HUB_PREFIX, names_of, read_names

SOURCE_STAGE = "corpus"
EVALUATION_PREFIX = "evaluate"


class ListedModel(BaseModel):
    """A model of a store."""

    names: list[str] = Field(description="the most recent name first")
    stage: str
    key: str
    folder: Path
    kind: str
    title: str = Field(description="the kind in words")
    capability: Capability
    source: str | None = Field(description="name of the text; None if the store no longer has the corpus")
    created: datetime
    bytes: int
    figure: str = Field(description="main figure of the evaluation; the model's size if there is none")
    by_product: bool = Field(description="whether it was trained as a part of another model")

    @property
    def name(self) -> str:
        """The most recent name, or else a prefix of the key."""
        return self.names[0] if self.names else self.key[:SHOWN_KEY]


def list_models(store: Store) -> list[ListedModel]:
    """List the models of a store, newest first."""
    manifests = {manifest.key: manifest for manifest in store.manifests()}
    evaluations = {
        entry.key: manifest.summary.facts
        for manifest in manifests.values()
        if manifest.stage.startswith(EVALUATION_PREFIX)
        for entry in manifest.inputs
        if entry.name == "model"
    }
    names = read_names(store)
    return [
        ListedModel(
            names=names_of((manifest.stage, manifest.key), names),
            stage=manifest.stage,
            key=manifest.key,
            folder=store.folder(manifest.stage, manifest.key),
            kind=family.kind,
            title=f"{family.title} of tokens" if is_by_product(manifest) else family.title,
            capability=family.capability,
            source=find_source_name(manifest, manifests),
            created=manifest.created,
            bytes=store.size(manifest),
            figure=main_figure(manifest, family, evaluations.get(manifest.key, {})),
            by_product=is_by_product(manifest),
        )
        for manifest in reversed(manifests.values())
        if (family := family_of_stage(manifest.stage))
    ]


def find_source_name(manifest: Manifest, manifests: Mapping[str, Manifest]) -> str | None:
    """Return the name of the source that a model was trained on; for a file, without its folder."""
    for ancestor in ancestors(manifest, manifests):
        if ancestor.stage == SOURCE_STAGE:
            for entry in ancestor.inputs:
                if name := str(entry.description.get("name", "")):
                    return name if name.startswith(HUB_PREFIX) else Path(name).name or name
    return None


def ancestors(manifest: Manifest, manifests: Mapping[str, Manifest]) -> Iterator[Manifest]:
    """Yield all artifacts from which an artifact was built, nearest first."""
    waiting, seen = [manifest], {manifest.key}
    while waiting:
        for entry in waiting.pop(0).inputs:
            if entry.key in manifests and entry.key not in seen:
                seen.add(entry.key)
                waiting.append(manifests[entry.key])
                yield manifests[entry.key]


def main_figure(manifest: Manifest, family: ModelFamily, evaluation: Mapping[str, JsonValue]) -> str:
    """Return the main figure of a model's evaluation; its size if it was not evaluated."""
    if family.capability == "neighbours":
        return counted(manifest.summary.rows, "tokens" if is_of_tokens(manifest) else "words")
    facts = {**manifest.summary.facts, **evaluation}
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
