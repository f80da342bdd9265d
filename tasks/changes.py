"""Why an artifact was built although others of its stage stand in the store."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from pydantic import JsonValue

from tasks.artifacts import FIRST, InputEntry, Manifest
from tasks.files import printable

SHOWN_FILES = 3
DIGEST = "digest"  # a field of a source's description that says nothing to a person


class Change(NamedTuple):
    """A difference from an earlier artifact.

    Attributes:
        text: the difference, for a person.
        through: the keys of the inputs by which it came; none for the stage's own.
        weight: how many differences it stands for: a line about files stands for each of them.
    """

    text: str
    through: frozenset[str] = frozenset()
    weight: int = 1


def explain_change(manifest: Manifest, others: list[Manifest]) -> list[Change]:
    """Compares an artifact with the nearest earlier one of its stage, which has the fewest differences.

    Only artifacts made from the same kinds of inputs are compared; of several as near, the latest counts. An
    input that differs is followed to the field or the file that changed it.
    """
    by_key = {other.key: other for other in others}
    earlier = [
        other
        for other in others
        if other.stage == manifest.stage and other.key != manifest.key and other.created < manifest.created
        if input_stages(other) == input_stages(manifest)
    ]
    if not earlier:
        return [Change(FIRST)]
    found = [differences(other, manifest, by_key) for other in reversed(earlier)]
    return min(found, key=lambda changes: sum(change.weight for change in changes))


def news(changes: list[Change], built: dict[str, list[str]]) -> list[str]:
    """The changes that no earlier stage of the same run has told; `built` maps a key to its reasons."""
    told = {text for texts in built.values() for text in texts}
    return [each.text for each in changes if not each.through & built.keys() and each.text not in told]


def input_stages(manifest: Manifest) -> list[str]:
    return [entry.stage for entry in manifest.inputs]


def differences(old: Manifest, new: Manifest, by_key: dict[str, Manifest]) -> list[Change]:
    """What makes `new` another artifact than `old`."""
    found = [
        Change(f"{new.stage}.{name}: {shown(before)} -> {shown(after)}")
        for name, before, after in changed_fields(old.config, new.config)
    ]
    if old.version != new.version:
        found.append(Change(f"{new.stage} itself: version {old.version} -> {new.version}"))
    old_inputs = {entry.name: entry for entry in old.inputs}
    for name in old_inputs.keys() - {entry.name for entry in new.inputs}:
        found.append(Change(f"{new.stage} no longer has the input {name}"))
    for entry in new.inputs:
        before = old_inputs.get(entry.name)
        if before is None:
            found.append(Change(f"{new.stage} has a new input: {entry.name}"))
        elif before.key != entry.key:
            changes = input_differences(new.stage, before, entry, by_key)
            found += [change._replace(through=frozenset({entry.key})) for change in changes]
    return merged(found)


def input_differences(
    stage: str, old: InputEntry, new: InputEntry, by_key: dict[str, Manifest]
) -> list[Change]:
    """What makes an input of `stage` another one."""
    if old.stage != new.stage:
        return [Change(f"{stage}'s {new.name}: {old.stage or 'a source'} -> {new.stage or 'a source'}")]
    if not new.stage:
        return source_differences(old, new)
    if old.key not in by_key or new.key not in by_key:
        return [Change(f"different {new.name} (the earlier artifact is no longer in the store)")]
    return differences(by_key[old.key], by_key[new.key], by_key) or [Change(f"different {new.name}")]


def source_differences(old: InputEntry, new: InputEntry) -> list[Change]:
    """The fields and the files by which a source differs; never its digests."""
    fields = [
        Change(f"{new.name} {name}: {shown(before)} -> {shown(after)}")
        for name, before, after in changed_fields(old.description, new.description)
        if name != DIGEST and not isinstance(after, list | dict)
    ]
    files = file_differences(old.files, new.files) if old.files and new.files else []
    return [*files, *fields] or [Change(f"the content of the {new.name} has changed")]


def file_differences(old: dict[str, str], new: dict[str, str]) -> list[Change]:
    """From name -> digest before and after: `1 file added: x.txt`."""
    names = {
        "added": [name for name in new if name not in old],
        "changed": [name for name in new if name in old and new[name] != old[name]],
        "removed": [name for name in old if name not in new],
    }
    return [
        Change(f"{len(some):,} file{'' if len(some) == 1 else 's'} {verb}: {listed(some)}", weight=len(some))
        for verb, some in names.items()
        if some
    ]


def listed(names: list[str]) -> str:
    """The first few names."""
    some = ", ".join(printable(name) for name in names[:SHOWN_FILES])
    more = len(names) - SHOWN_FILES
    return f"{some} and {more:,} more" if more > 0 else some


def merged(changes: Iterable[Change]) -> list[Change]:
    """Each text once, with all the inputs by which it came."""
    found: dict[str, Change] = {}
    for change in changes:
        earlier = found.get(change.text, change)
        found[change.text] = change._replace(through=earlier.through | change.through)
    return list(found.values())


def changed_fields(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every field that differs."""
    changes: list[tuple[str, Any, Any]] = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_fields(before, after, f"{prefix}{name}.")
        elif before != after:
            changes.append((prefix + name, before, after))
    return changes


def shown(value: JsonValue, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
