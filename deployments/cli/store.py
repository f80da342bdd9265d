"""Commands on the store: list, explain, verify and garbage-collect artifacts."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from cyclopts import App

from lexloom.tasks.display.console import NAME_WIDTH, stderr, warn
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.lookup import find_place
from lexloom.tasks.store.names import Place, names_of, read_names
from lexloom.tasks.store.verify import find_obstacles
from lexloom.tasks.store.verify import verify as verify_places

app = App(name="store")


@app.command
def ls() -> None:
    """List the artifacts."""
    store = Store()
    manifests = list(store.manifests())
    for manifest in manifests:
        made = f"{manifest.created.astimezone():%Y-%m-%d %H:%M}"
        rows = counted(manifest.summary.rows, manifest.summary.unit)
        print(
            f"{manifest.stage:<{NAME_WIDTH}} {manifest.key}  {made}  {store.size(manifest) / 1e6:9,.1f} MB"
            f" {manifest.seconds:8.1f} s  {rows}"
        )
    total = sum(map(store.size, manifests))
    print(f"{counted(len(manifests), 'artifacts')}, {total / 1e6:,.1f} MB in {store.root}")


@app.command
def verify(*names: str, all: bool = False) -> int:
    """Compare all files with their digests; exit with status 1 if an artifact is damaged or outdated.

    Args:
        names: A stage, a model's name, a key, a prefix of a name or key, STAGE/KEY, or latest (default: all).
        all: Also list intact artifacts.
    """
    store = Store()
    if not store.root.is_dir():
        raise FileNotFoundError(f"there is no store at {store.root}: set --store or LEXLOOM_STORE")
    counts = Counter[str]()
    places = find_places(store, names) if names else store.list_places()
    for found in chain(verify_places(store, places), () if names else find_obstacles(store)):
        state = "damaged" if found.damage else "outdated" if found.outdated else "intact"
        counts[state] += 1
        counts["unrecorded"] += found.unrecorded
        if state != "intact" or all:
            print(f"{found.name}  {found.damage or found.outdated or state}")
    print(", ".join(f"{counts[state]} {state}" for state in ("intact", "damaged", "outdated")))
    if counts["unrecorded"]:
        stderr.print(
            f"{counts['unrecorded']} of them have manifest format 1, which does not record input digests:"
            " they count as outdated if an input is damaged or newer"
        )
    wrong = counts["damaged"] + counts["outdated"]
    if wrong:
        stderr.print("the next run that needs a damaged or outdated artifact rebuilds it", style="yellow")
    return 1 if wrong else 0


@app.command
def explain(name: str, /) -> None:
    """Explain why a stage ran: which parameters or files had changed.

    Args:
        name: A stage, a model's name, a key, a prefix of a name or key, STAGE/KEY, or latest.
    """
    store = Store()
    places = find_places(store, [name])
    found = [manifest for place in places if (manifest := store.manifest(*place))]
    if len(places) == 1 and not found:
        store.read_manifest(*places[0])  # raises an error that says what is wrong
    for manifest in sorted(found, key=lambda manifest: manifest.created):
        print(f"{manifest.created.astimezone():%Y-%m-%d %H:%M:%S}  {manifest.stage}/{manifest.key}")
        for reason in manifest.why:
            print(f"    {reason}")


def find_places(store: Store, names: Sequence[str]) -> list[Place]:
    """Find the artifacts with these names; a stage selects all its artifacts. Raises like `find_place`."""
    found: list[Place] = []
    for name in names:
        of_stage = [place for place in store.list_places() if place[0] == name]
        found += of_stage or [find_place(store, name)]
    return list(dict.fromkeys(found))


@app.command
def gc(*, keep: int = 5, dry_run: bool = False) -> None:
    """Remove artifacts that the latest runs do not need.

    Args:
        keep: Number of latest artifacts of each stage to keep, together with their inputs.
        dry_run: List what would be removed, without removing it.
    """
    if keep < 0:
        raise ValueError(f"--keep is {keep}: it must be 0 or more")
    store = Store()
    if store.root.is_dir() and not dry_run:
        for sentence in store.make_writable():
            warn(sentence)
    removed = collect_garbage(store, keep, dry_run)
    known = read_names(store)
    for what, size in removed:
        stage, _, key = what.partition("/")
        names = ", ".join(names_of((stage, key), known))
        print(f"{size / 1e6:10,.1f} MB  {what}" + (f" ({names})" if names else ""))
    verb = "would be freed" if dry_run else "freed"
    print(f"{sum(size for _, size in removed) / 1e6:10,.1f} MB  {verb}")
