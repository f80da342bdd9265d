"""How an artifact or a model is named on the command line: by a folder, by its key, or as the latest."""

from pathlib import Path

from tasks.artifacts import Manifest, Store
from tasks.lineage import SHOWN_KEY

LATEST = "latest"
SENTIMENT, WORD2VEC = "train_sentiment", "train_word2vec"
WINDOW_LM, TRANSFORMER = "train_window_lm", "train_transformer"
TOKENS_OF_A_LANGUAGE_MODEL = "subwords"  # the stage that makes them
SHOWN_CANDIDATES = 8

Place = tuple[str, str]  # stage and key


def model_folder(name: str, *stages: str) -> Path:
    """The folder of the model that `name` means, of one of these stages; a path that is there counts first.

    Raises:
        FileNotFoundError: nothing is called so.
        ValueError: several models are, or none that these stages have made.
    """
    if Path(name).exists():
        return Path(name)
    store = Store()
    return store.folder(*find_place(store, name, *stages))


def find_place(store: Store, name: str, *stages: str) -> Place:
    """Stage and key of the artifact that `name` means, of one of `stages` or, without any, of all.

    A name is `latest` or the beginning of a key, with or without `stage/` before it. Errors are those of
    `model_folder`.
    """
    stage, _, key = name.rpartition("/")
    wanted = " or ".join(stages)
    if stage and stages and stage not in stages:
        raise ValueError(f"{name} is a {stage} artifact, but this command needs a {wanted} artifact")
    if key == LATEST:
        return latest(store, (stage,) if stage else stages, wanted)
    places = [place for place in store.places() if not stage or place[0] == stage]
    matches = [place for place in places if key and place[1].startswith(key)]
    fitting = [place for place in matches if not stages or place[0] in stages]
    exact = [place for place in fitting if place[1] == key]
    if len(found := exact or fitting) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{name} is ambiguous ({listed(found)}): give more characters of the key, or STAGE/ before it"
        )
    if matches:
        raise ValueError(f"{name} is {listed(matches)}, but this command needs a {wanted} artifact")
    if stages:
        raise FileNotFoundError(
            f"{name} is neither a model folder nor the beginning of a key in the store {store.root}:"
            " list its artifacts with `lexloom store ls`"
        )
    known = sorted({stage for stage, _ in store.places()})
    contents = f"the store has the stages {', '.join(known)}" if known else "the store is empty"
    raise FileNotFoundError(f"no stage or key in the store {store.root} matches {name!r}: {contents}")


def latest(store: Store, stages: tuple[str, ...], wanted: str) -> Place:
    """The youngest artifact of these stages; a part of another model only where there is nothing else."""
    found = [manifest for manifest in store.manifests() if not stages or manifest.stage in stages]
    if not found:
        kind = " or ".join(stages) or wanted or "artifact"
        raise FileNotFoundError(f"the store {store.root} has no {kind}: list it with `lexloom store ls`")
    manifest = max(found, key=lambda manifest: (not is_by_product(manifest), manifest.created))
    return manifest.stage, manifest.key


def listed(places: list[Place]) -> str:
    """`stage/key` of each, the keys as short as they can be told apart."""
    keys = {key for _, key in places}
    longest = max(map(len, keys))
    lengths = range(min(SHOWN_KEY, longest), longest)
    length = next((some for some in lengths if len({key[:some] for key in keys}) == len(keys)), longest)
    names = [f"{stage}/{key[:length]}" for stage, key in places]
    if len(names) > SHOWN_CANDIDATES:
        names[SHOWN_CANDIDATES:] = [f"{len(names) - SHOWN_CANDIDATES} more"]
    return " or ".join(names)


def is_by_product(manifest: Manifest) -> bool:
    """Whether vectors are a language model's tokens', made as a part of it, and not words'."""
    return manifest.stage == WORD2VEC and is_of_tokens(manifest)


def is_of_tokens(manifest: Manifest) -> bool:
    return any(entry.stage == TOKENS_OF_A_LANGUAGE_MODEL for entry in manifest.inputs)
