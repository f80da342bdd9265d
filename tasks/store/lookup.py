"""Finds artifacts and models by a name, a key, a prefix of either, `latest`, or, for models, a folder."""

from collections.abc import Mapping
from pathlib import Path

from lexloom.models import registry
from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.lineage import SHOWN_KEY
from lexloom.tasks.store.names import LATEST, NamedPlace, Place, names_of, read_names

SUBWORD_STAGE = "subwords"  # the stage that makes the tokens of language models
SHOWN_CANDIDATES = 8


def find_model_folder(name: str, *stages: str) -> Path:
    """Find the folder of the model `name` of one of these stages.

    A model of the store with exactly this name takes precedence over a path, and a path over prefixes.

    Raises:
        FileNotFoundError: nothing has this name.
        ValueError: the name is ambiguous, or no artifact of these stages has it.
    """
    store, path = Store(), Path(name)
    if path.exists() and not is_name(store, name):
        return path
    return store.folder(*find_place(store, name, *stages))


def is_name(store: Store, name: str) -> bool:
    """Return whether an artifact in the store has exactly this name."""
    named = None if "/" in name else read_names(store).get(name)
    return named is not None and store.is_occupied(*named.place)


def find_place(store: Store, name: str, *stages: str) -> Place:
    """Find the stage and key of the artifact `name`, of one of `stages` (default: any stage).

    A name is `latest`, a name, a key, or a prefix of either, optionally after `stage/`. Raises the same
    errors as `find_model_folder`.
    """
    stage, _, key = name.rpartition("/")
    wanted = " or ".join(stages)
    if stage and stages and stage not in stages:
        raise ValueError(f"{name} is a {stage} artifact, but this command needs a {wanted} artifact")
    if key == LATEST:
        return find_latest(store, (stage,) if stage else stages, wanted)
    names = read_names(store)
    places = [place for place in store.list_places() if not stage or place[0] == stage]
    matches = match_places(places, key, names)
    fitting = [place for place in matches if not stages or place[0] in stages]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ValueError(
            f"{name} is ambiguous ({format_candidates(fitting, key, names)}): specify more characters, or use"
            " the whole name or STAGE/KEY"
        )
    if matches:
        raise ValueError(f"{name} is {format_places(matches)}, but this command needs a {wanted} artifact")
    if key in names:
        raise FileNotFoundError(
            f"the model {name} is no longer in the store {store.root}: run its command again, or list the"
            " models with `lexloom models`"
        )
    if stages:
        raise FileNotFoundError(
            f"{name} is neither a model folder nor a prefix of a model's name or key in the store"
            f" {store.root}: list its models with `lexloom models`"
        )
    known = sorted({stage for stage, _ in store.list_places()})
    contents = f"the store has the stages {', '.join(known)}" if known else "the store is empty"
    raise FileNotFoundError(f"no stage, name or key in the store {store.root} matches {name!r}: {contents}")


def match_places(places: list[Place], text: str, names: Mapping[str, NamedPlace]) -> list[Place]:
    """Return the artifact with the name `text`, or else those whose key it is, or those with this prefix."""
    if text in names and names[text].place in places:
        return [names[text].place]
    named = {item.place for name, item in names.items() if text and name.startswith(text)}
    matches = [place for place in places if place in named or (text and place[1].startswith(text))]
    return [place for place in matches if place[1] == text] or matches


def find_latest(store: Store, stages: tuple[str, ...], wanted: str) -> Place:
    """Find the newest artifact of these stages; by-products of other models come last."""
    found = [manifest for manifest in store.manifests() if not stages or manifest.stage in stages]
    if not found:
        kind = " or ".join(stages) or wanted or "artifact"
        raise FileNotFoundError(f"the store {store.root} has no {kind}: list it with `lexloom store ls`")
    manifest = max(found, key=lambda manifest: (not is_by_product(manifest), manifest.created))
    return manifest.stage, manifest.key


def format_candidates(places: list[Place], text: str, names: Mapping[str, NamedPlace]) -> str:
    """Join the names that begin with `text`, and the places of artifacts that only have such a key."""
    named = [name for place in places for name in names_of(place, names) if name.startswith(text)]
    keyed = [place for place in places if place[1].startswith(text)]
    return shorten(sorted(named) + list_places(keyed))


def format_places(places: list[Place]) -> str:
    return shorten(list_places(places))


def list_places(places: list[Place]) -> list[str]:
    """Return `stage/key` of each place, with keys shortened as far as they stay distinct."""
    keys = {key for _, key in places}
    longest = max(map(len, keys), default=0)
    lengths = range(min(SHOWN_KEY, longest), longest)
    length = next((some for some in lengths if len({key[:some] for key in keys}) == len(keys)), longest)
    return [f"{stage}/{key[:length]}" for stage, key in places]


def shorten(candidates: list[str]) -> str:
    if len(candidates) > SHOWN_CANDIDATES:
        more = f"{len(candidates) - SHOWN_CANDIDATES} more"
        candidates = [*candidates[:SHOWN_CANDIDATES], more]
    return " or ".join(candidates)


def is_by_product(manifest: Manifest) -> bool:
    """Return whether an artifact is word vectors of tokens, trained as part of a language model."""
    return manifest.stage in registry.stages("neighbours") and is_of_tokens(manifest)


def is_of_tokens(manifest: Manifest) -> bool:
    """Return whether an artifact was built from the tokens of a language model, not from words."""
    return any(entry.stage == SUBWORD_STAGE for entry in manifest.inputs)
