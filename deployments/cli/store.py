"""Commands on the store: list, explain, verify and garbage-collect artifacts."""

import argparse
from collections import Counter
from itertools import chain
from typing import Any

from lexloom.tasks.display.console import NAME_WIDTH, stderr, warn
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.lookup import Place, find_place
from lexloom.tasks.store.verify import find_obstacles, verify

NAME = "a stage, the beginning of an artifact's key, STAGE/KEY, or latest"


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    store = commands.add_parser("store", help="what is in the store, and why")
    verbs = store.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("ls", help="list the artifacts", parents=[shared])
    verb.set_defaults(run=store_ls)
    verb = verbs.add_parser("verify", help="read every file and compare its digest", parents=[shared])
    verb.add_argument("names", nargs="*", metavar="NAME", help=f"{NAME}; if none is given, the whole store")
    verb.add_argument("--all", action="store_true", help="also list intact artifacts")
    verb.set_defaults(run=store_verify)
    verb = verbs.add_parser("explain", help="why a stage ran again", parents=[shared])
    verb.add_argument("name", metavar="NAME", help=NAME)
    verb.set_defaults(run=store_explain)
    verb = verbs.add_parser("gc", help="remove what is no longer needed", parents=[shared])
    verb.add_argument("--keep", type=int, default=5, help="artifacts kept of each stage (default: 5)")
    verb.add_argument("--dry-run", action="store_true", help="say what would go, and leave it")
    verb.set_defaults(run=store_gc)


def store_ls(arguments: argparse.Namespace) -> int:
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
    return 0


def store_verify(arguments: argparse.Namespace) -> int:
    store = Store()
    if not store.root.is_dir():
        raise FileNotFoundError(f"there is no store at {store.root}: name it with --store or LEXLOOM_STORE")
    counts = Counter[str]()
    places = find_places(store, arguments.names) if arguments.names else store.list_places()
    for found in chain(verify(store, places), () if arguments.names else find_obstacles(store)):
        state = "damaged" if found.damage else "outdated" if found.outdated else "intact"
        counts[state] += 1
        counts["unrecorded"] += found.unrecorded
        if state != "intact" or arguments.all:
            print(f"{found.name}  {found.damage or found.outdated or state}")
    print(", ".join(f"{counts[state]} {state}" for state in ("intact", "damaged", "outdated")))
    if counts["unrecorded"]:
        stderr.print(
            f"{counts['unrecorded']} of them do not record the content of their inputs (manifest format 1):"
            " they count as outdated if an input is damaged or newer"
        )
    wrong = counts["damaged"] + counts["outdated"]
    if wrong:
        stderr.print("the next run that needs one of these rebuilds it", style="yellow")
    return 1 if wrong else 0


def store_explain(arguments: argparse.Namespace) -> int:
    store = Store()
    places = find_places(store, [arguments.name])
    found = [manifest for place in places if (manifest := store.manifest(*place))]
    if len(places) == 1 and not found:
        store.read_manifest(*places[0])  # raises an error that says what is wrong
    for manifest in sorted(found, key=lambda manifest: manifest.created):
        print(f"{manifest.created.astimezone():%Y-%m-%d %H:%M:%S}  {manifest.stage}/{manifest.key}")
        for reason in manifest.why:
            print(f"    {reason}")
    return 0


def find_places(store: Store, names: list[str]) -> list[Place]:
    """Find the artifacts with these names; a stage means all of its artifacts. Raises like `find_place`."""
    found: list[Place] = []
    for name in names:
        of_stage = [place for place in store.list_places() if place[0] == name]
        found += of_stage or [find_place(store, name)]
    return list(dict.fromkeys(found))


def store_gc(arguments: argparse.Namespace) -> int:
    if arguments.keep < 0:
        raise ValueError(f"--keep is {arguments.keep}: it must be 0 or more")
    store = Store()
    if store.root.is_dir() and not arguments.dry_run:
        for sentence in store.make_writable():
            warn(sentence)
    removed = collect_garbage(store, arguments.keep, arguments.dry_run)
    for what, size in removed:
        print(f"{size / 1e6:10,.1f} MB  {what}")
    verb = "would be freed" if arguments.dry_run else "freed"
    print(f"{sum(size for _, size in removed) / 1e6:10,.1f} MB  {verb}")
    return 0
