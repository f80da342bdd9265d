"""Names of artifacts and models on the command line: a folder, a key or its beginning, or `latest`."""

from pathlib import Path

from lexloom.models import registry
from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.lineage import SHOWN_KEY

LATEST = "latest"
SUBWORD_STAGE = "subwords"  # the stage that makes the tokens of language models
SHOWN_CANDIDATES = 8

Place = tuple[str, str]  # stage and key


def find_model_folder(name: str, *stages: str) -> Path:
    """Find the folder of the model `name` of one of these stages; an existing path takes precedence.

    Raises:
        FileNotFoundError: nothing has this name.
        ValueError: the name is ambiguous, or no artifact of these stages has it.
    """
    if Path(name).exists():
        return Path(name)
    store = Store()
    return store.folder(*find_place(store, name, *stages))


def find_place(store: Store, name: str, *stages: str) -> Place:
    """Find the stage and key of the artifact `name`, of one of `stages` (default: any stage).

    A name is `latest` or the beginning of a key, optionally after `stage/`. Raises the same errors as
    `find_model_folder`.
    """
    stage, _, key = name.rpartition("/")
    wanted = " or ".join(stages)
    if stage and stages and stage not in stages:
        raise ValueError(f"{name} is a {stage} artifact, but this command needs a {wanted} artifact")
    if key == LATEST:
        return find_latest(store, (stage,) if stage else stages, wanted)
    places = [place for place in store.list_places() if not stage or place[0] == stage]
    matches = [place for place in places if key and place[1].startswith(key)]
    fitting = [place for place in matches if not stages or place[0] in stages]
    exact = [place for place in fitting if place[1] == key]
    if len(found := exact or fitting) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{name} is ambiguous ({format_places(found)}): specify more characters of the key,"
            " or use STAGE/KEY"
        )
    if matches:
        raise ValueError(f"{name} is {format_places(matches)}, but this command needs a {wanted} artifact")
    if stages:
        raise FileNotFoundError(
            f"{name} is neither a model folder nor a prefix of a key in the store {store.root}:"
            " list its artifacts with `lexloom store ls`"
        )
    known = sorted({stage for stage, _ in store.list_places()})
    contents = f"the store has the stages {', '.join(known)}" if known else "the store is empty"
    raise FileNotFoundError(f"no stage or key in the store {store.root} matches {name!r}: {contents}")


def find_latest(store: Store, stages: tuple[str, ...], wanted: str) -> Place:
    """Find the newest artifact of these stages; by-products of other models come last."""
    found = [manifest for manifest in store.manifests() if not stages or manifest.stage in stages]
    if not found:
        kind = " or ".join(stages) or wanted or "artifact"
        raise FileNotFoundError(f"the store {store.root} has no {kind}: list it with `lexloom store ls`")
    manifest = max(found, key=lambda manifest: (not is_by_product(manifest), manifest.created))
    return manifest.stage, manifest.key


def format_places(places: list[Place]) -> str:
    """Join `stage/key` of each place, with keys shortened as far as they stay distinct."""
    keys = {key for _, key in places}
    longest = max(map(len, keys))
    lengths = range(min(SHOWN_KEY, longest), longest)
    length = next((some for some in lengths if len({key[:some] for key in keys}) == len(keys)), longest)
    names = [f"{stage}/{key[:length]}" for stage, key in places]
    if len(names) > SHOWN_CANDIDATES:
        names[SHOWN_CANDIDATES:] = [f"{len(names) - SHOWN_CANDIDATES} more"]
    return " or ".join(names)


def is_by_product(manifest: Manifest) -> bool:
    """Return whether an artifact is word vectors of tokens, trained as part of a language model."""
    return manifest.stage in registry.stages("neighbours") and is_of_tokens(manifest)


def is_of_tokens(manifest: Manifest) -> bool:
    """Return whether an artifact was built from the tokens of a language model, not from words."""
    return any(entry.stage == SUBWORD_STAGE for entry in manifest.inputs)
