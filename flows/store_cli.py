"""Commands on the store: what is in it, why, is it whole, and what can go."""

import argparse
from collections import Counter
from itertools import chain
from typing import Any

from tasks.artifacts import Manifest, Store
from tasks.console import NAME_WIDTH, stderr
from tasks.garbage import collect_garbage
from tasks.verify import obstacles, verify


def add_commands(commands: Any, shared: argparse.ArgumentParser) -> None:
    store = commands.add_parser("store", help="what is in the store, and why")
    verbs = store.add_subparsers(required=True, metavar="VERB")
    verb = verbs.add_parser("ls", help="list the artifacts", parents=[shared])
    verb.set_defaults(run=store_ls)
    verb = verbs.add_parser("verify", help="read every file and compare its digest", parents=[shared])
    verb.add_argument("--all", action="store_true", help="list what is whole, too")
    verb.set_defaults(run=store_verify)
    verb = verbs.add_parser("explain", help="why a stage ran again", parents=[shared])
    verb.add_argument("stage", metavar="STAGE")
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
        rows = f"{manifest.summary.rows:,} {manifest.summary.unit}"
        print(
            f"{manifest.stage:<{NAME_WIDTH}} {manifest.key}  {made}  {store.size(manifest) / 1e6:9,.1f} MB"
            f" {manifest.seconds:8.1f} s  {rows}"
        )
    total = sum(map(store.size, manifests))
    plural = "" if len(manifests) == 1 else "s"
    print(f"{len(manifests)} artifact{plural}, {total / 1e6:,.1f} MB in {store.root}")
    return 0


def store_verify(arguments: argparse.Namespace) -> int:
    store = Store()
    if not store.root.is_dir():
        raise FileNotFoundError(f"there is no store at {store.root}: name it with --store or LEXLOOM_STORE")
    counts = Counter[str]()
    for found in chain(verify(store, store.places()), obstacles(store)):
        state = "damaged" if found.damage else "outdated" if found.outdated else "whole"
        counts[state] += 1
        counts["unrecorded"] += found.unrecorded
        if state != "whole" or arguments.all:
            print(f"{found.name}  {found.damage or found.outdated or state}")
    print(", ".join(f"{counts[state]} {state}" for state in ("whole", "damaged", "outdated")))
    if counts["unrecorded"]:
        stderr.print(
            f"{counts['unrecorded']} of them were made before artifacts recorded what they read: they count"
            " as outdated if what they were made from is damaged or younger"
        )
    wrong = counts["damaged"] + counts["outdated"]
    if wrong:
        stderr.print("the next run that needs one of these builds it again", style="yellow")
    return 1 if wrong else 0


def store_explain(arguments: argparse.Namespace) -> int:
    found: list[Manifest] = [each for each in Store().manifests() if each.stage == arguments.stage]
    if not found:
        stages = sorted({manifest.stage for manifest in Store().manifests()})
        known = f"it has {', '.join(stages)}" if stages else "it is empty"
        raise ValueError(f"the store {Store().root} has no artifact of a stage {arguments.stage!r}; {known}")
    for manifest in found:
        print(f"{manifest.created.astimezone():%Y-%m-%d %H:%M:%S}  {manifest.stage}/{manifest.key}")
        for reason in manifest.why:
            print(f"    {reason}")
    return 0


def store_gc(arguments: argparse.Namespace) -> int:
    if arguments.keep < 0:
        raise ValueError(f"--keep is {arguments.keep}: it must be 0 or more")
    removed = collect_garbage(Store(), arguments.keep, arguments.dry_run)
    for what, size in removed:
        print(f"{size / 1e6:10,.1f} MB  {what}")
    verb = "would be freed" if arguments.dry_run else "freed"
    print(f"{sum(size for _, size in removed) / 1e6:10,.1f} MB  {verb}")
    return 0
