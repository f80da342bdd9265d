"""Explanations of why an artifact was built although the store has others of the same stage."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import JsonValue

from lexloom.tasks.store.artifacts import FIRST_OF_STAGE, InputEntry, Manifest
from lexloom.tasks.store.file_access import printable

SHOWN_FILES = 3
DIGEST = "digest"  # a field of a source's description that is meaningless to users


class Change(NamedTuple):
    """A difference from an earlier artifact.

    Attributes:
        text: the difference, in words.
        through: the keys of the inputs that carry it; empty for a change of the stage itself.
        weight: the number of differences it represents: one line can cover many files.
    """

    text: str
    through: frozenset[str] = frozenset()
    weight: int = 1


def explain_change(manifest: Manifest, others: list[Manifest]) -> list[Change]:
    """Compare an artifact with the earlier one of its stage that has the fewest differences.

    Only artifacts with inputs from the same stages are compared; the latest wins a tie. Differences in inputs
    are traced to the field or file that changed.
    """
    by_key = {other.key: other for other in others}
    earlier = [
        other
        for other in others
        if other.stage == manifest.stage and other.key != manifest.key and other.created < manifest.created
        if input_stages(other) == input_stages(manifest)
    ]
    if not earlier:
        return [Change(FIRST_OF_STAGE)]
    found = [compare_manifests(other, manifest, by_key) for other in reversed(earlier)]
    return min(found, key=lambda changes: sum(change.weight for change in changes))


def new_reasons(changes: list[Change], built: dict[str, list[str]]) -> list[str]:
    """Return the changes that no earlier stage of the run has reported; `built` maps a key to its reasons."""
    reported = {text for texts in built.values() for text in texts}
    return [each.text for each in changes if not each.through & built.keys() and each.text not in reported]


def input_stages(manifest: Manifest) -> list[str]:
    return [entry.stage for entry in manifest.inputs]


def compare_manifests(old: Manifest, new: Manifest, by_key: dict[str, Manifest]) -> list[Change]:
    """List the differences between two manifests."""
    found = [
        Change(f"{new.stage}.{name}: {format_value(before)} -> {format_value(after)}")
        for name, before, after in changed_fields(old.config, new.config)
    ]
    if old.version != new.version:
        found.append(Change(f"{new.stage}: version {old.version} -> {new.version}"))
    old_inputs = {entry.name: entry for entry in old.inputs}
    for name in old_inputs.keys() - {entry.name for entry in new.inputs}:
        found.append(Change(f"{new.stage} no longer has the input {name}"))
    for entry in new.inputs:
        before = old_inputs.get(entry.name)
        if before is None:
            found.append(Change(f"{new.stage} has a new input: {entry.name}"))
        elif before.key != entry.key:
            changes = compare_inputs(new.stage, before, entry, by_key)
            found += [change._replace(through=frozenset({entry.key})) for change in changes]
    return merge_changes(found)


def compare_inputs(stage: str, old: InputEntry, new: InputEntry, by_key: dict[str, Manifest]) -> list[Change]:
    """List the differences between two inputs of `stage`."""
    if old.stage != new.stage:
        return [Change(f"{stage}'s {new.name}: {old.stage or 'a source'} -> {new.stage or 'a source'}")]
    if not new.stage:
        return compare_sources(old, new)
    if old.key not in by_key or new.key not in by_key:
        return [Change(f"different {new.name} (the earlier artifact is no longer in the store)")]
    return compare_manifests(by_key[old.key], by_key[new.key], by_key) or [Change(f"different {new.name}")]


def compare_sources(old: InputEntry, new: InputEntry) -> list[Change]:
    """List the fields and files in which two sources differ; digests are left out."""
    fields = [
        Change(f"{new.name} {name}: {format_value(before)} -> {format_value(after)}")
        for name, before, after in changed_fields(old.description, new.description)
        if name != DIGEST and not isinstance(after, list | dict)
    ]
    files = compare_files(old.files, new.files) if old.files and new.files else []
    return [*files, *fields] or [Change(f"the content of the {new.name} has changed")]


def compare_files(old: dict[str, str], new: dict[str, str]) -> list[Change]:
    """List the differences between two mappings of name to digest, such as `1 file added: x.txt`."""
    names = {
        "added": [name for name in new if name not in old],
        "changed": [name for name in new if name in old and new[name] != old[name]],
        "removed": [name for name in old if name not in new],
    }
    return [
        Change(
            f"{len(some):,} file{'' if len(some) == 1 else 's'} {verb}: {format_names(some)}",
            weight=len(some),
        )
        for verb, some in names.items()
        if some
    ]


def format_names(names: list[str]) -> str:
    """Join the first few names, and count the rest."""
    some = ", ".join(printable(name) for name in names[:SHOWN_FILES])
    more = len(names) - SHOWN_FILES
    return f"{some} and {more:,} more" if more > 0 else some


def merge_changes(changes: Iterable[Change]) -> list[Change]:
    """Merge changes with the same text, with the union of their inputs."""
    found: dict[str, Change] = {}
    for change in changes:
        earlier = found.get(change.text, change)
        found[change.text] = change._replace(through=earlier.through | change.through)
    return list(found.values())


def changed_fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List (dotted name, old value, new value) of every field that differs."""
    changes: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_fields(before, after, f"{prefix}{name}.")
        elif before != after:
            changes.append((prefix + name, before, after))
    return changes


def format_value(value: JsonValue, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
