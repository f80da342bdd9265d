"""Why an artifact was built although others of its stage stand in the store."""

import json
from typing import Any

from pydantic import JsonValue

from tasks.artifacts import FIRST, Manifest


def explain_change(manifest: Manifest, others: list[Manifest]) -> list[str]:
    """Why an artifact was built although others of its stage stand in the store.

    Compares it with the most similar earlier one of the same stage, made from the same kinds of inputs (the
    latest of several): one line for every config field, input and version that differs. An input that differs
    is followed to the field that changed it.
    """
    by_key = {other.key: other for other in others}
    earlier = [
        other
        for other in others
        if other.stage == manifest.stage and other.key != manifest.key and other.created < manifest.created
        if input_stages(other) == input_stages(manifest)
    ]
    if not earlier:
        return [FIRST]
    found = [differences(other, manifest, by_key) for other in reversed(earlier)]
    return min(found, key=len)


def input_stages(manifest: Manifest) -> list[str]:
    return [entry.stage for entry in manifest.inputs]


def differences(old: Manifest, new: Manifest, by_key: dict[str, Manifest]) -> list[str]:
    """One line for each thing that makes `new` another artifact than `old`."""
    lines = [
        f"{new.stage}.{name}: {shown(before)} -> {shown(after)}"
        for name, before, after in changed_fields(old.config, new.config)
    ]
    if old.version != new.version:
        lines.append(f"{new.stage} itself: version {old.version} -> {new.version}")
    old_inputs = {entry.name: entry for entry in old.inputs}
    for name in old_inputs.keys() - {entry.name for entry in new.inputs}:
        lines.append(f"{new.stage} has lost an input: {name}")
    for entry in new.inputs:
        before = old_inputs.get(entry.name)
        if before is None:
            lines.append(f"{new.stage} has a new input: {entry.name}")
        elif before.key != entry.key:
            if before.stage != entry.stage:
                found = [
                    f"{new.stage}'s {entry.name}: {before.stage or 'a source'} -> {entry.stage or 'a source'}"
                ]
            elif before.key in by_key and entry.key in by_key:
                found = differences(by_key[before.key], by_key[entry.key], by_key)
            else:
                found = [
                    f"{entry.name} {name}: {shown(old_value)} -> {shown(new_value)}"
                    for name, old_value, new_value in changed_fields(before.description, entry.description)
                ]
            lines += found or [f"{entry.name}: {before.key} -> {entry.key}"]
    return list(dict.fromkeys(lines))


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
