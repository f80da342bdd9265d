"""Tests of the store: keys, atomic commits, damage and garbage collection."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field

from lexloom.tasks.store.artifacts import (
    Artifact,
    InputEntry,
    Manifest,
    RunOnly,
    Store,
    Summary,
    canonical,
    digest_key,
    list_files,
    now,
)
from lexloom.tasks.store.file_access import is_inside
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.layout import BuildFolder, host_name


class Inner(BaseModel):
    depth: int = 2
    address: Annotated[str, RunOnly()] = ""


class Config(BaseModel):
    window: int = 5
    inner: Inner = Field(default_factory=Inner)


def put(
    store: Store,
    stage: str,
    key: str,
    text: str = "text",
    inputs: list[Artifact] | None = None,
    **config: int,
) -> Artifact:
    """An artifact of one file."""
    building = store.new_folder(stage, key)
    (building / "data.txt").write_text(text)
    manifest = Manifest(
        stage=stage,
        version=1,
        key=key,
        created=now(),
        seconds=1,
        why=[],
        config=dict(config),
        inputs=[InputEntry(name=entry.stage, stage=entry.stage, key=entry.key) for entry in inputs or []],
        files=list_files(building),
        summary=Summary(rows_in=1, unit_in="files", rows=1, unit="files"),
        versions={},
    )
    return store.commit(building, manifest)


def read(artifact: Artifact) -> Manifest:
    return Manifest.from_json((artifact.folder / "manifest.json").read_bytes())


def write(store: Store, manifest: Manifest) -> None:
    """Replace a manifest by another valid one."""
    (store.folder(manifest.stage, manifest.key) / "manifest.json").write_text(manifest.to_json())


def test_a_key_depends_only_on_stage_version_config_and_inputs() -> None:
    key = digest_key("pairs", 1, {"a": 1, "b": 2}, ["x"])
    assert key == digest_key("pairs", 1, {"b": 2, "a": 1}, ["x"])
    others = [
        digest_key("noise", 1, {"a": 1, "b": 2}, ["x"]),
        digest_key("pairs", 2, {"a": 1, "b": 2}, ["x"]),
        digest_key("pairs", 1, {"a": 1, "b": 3}, ["x"]),
        digest_key("pairs", 1, {"a": 1, "b": 2}, ["y"]),
    ]
    assert len({key, *others}) == 5


def test_a_key_is_the_same_in_another_process() -> None:
    code = (
        "from lexloom.tasks.store.artifacts import digest_key; "
        'print(digest_key("s", 1, {"é": [1.5, None]}, ["k"]))'
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert printed.strip() == digest_key("s", 1, {"é": [1.5, None]}, ["k"])


def test_run_only_fields_are_not_part_of_the_key() -> None:
    assert canonical(Config(inner=Inner(address="auto"))) == {"window": 5, "inner": {"depth": 2}}


def test_a_committed_artifact_is_read_back(store: Store) -> None:
    artifact = put(store, "corpus", "k1")
    manifest = store.manifest("corpus", "k1")
    assert manifest is not None
    assert store.artifact(manifest) == artifact
    assert store.find_damage("corpus", "k1", "full") is None
    assert not list(store.root.glob(".building/*"))


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda folder: (folder / "data.txt").unlink(), "data.txt is missing"),
        (lambda folder: (folder / "data.txt").write_text("longer text"), "11 bytes instead of 4"),
        (lambda folder: (folder / "stray.txt").write_text("x"), "stray.txt is not listed in the manifest"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"half":'),
            "manifest.json is damaged",
        ),
    ],
)
def test_damage_is_described(store: Store, harm: object, complaint: str) -> None:
    harm(put(store, "corpus", "k1").folder)  # type: ignore[operator]
    assert complaint in str(store.find_damage("corpus", "k1"))


def test_only_full_verification_detects_changed_content_of_the_same_size(store: Store) -> None:
    (put(store, "corpus", "k1").folder / "data.txt").write_text("tEXT")
    assert store.find_damage("corpus", "k1") is None
    assert "does not match its digest" in str(store.find_damage("corpus", "k1", "full"))


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "..\\b", "a\0b", ""])
def test_a_manifest_can_not_name_files_outside_its_folder(store: Store, name: str) -> None:
    assert not is_inside(name)
    manifest = read(put(store, "corpus", "k1"))
    manifest.files[0].name = name
    write(store, manifest)
    assert "outside the artifact" in str(store.find_damage("corpus", "k1"))


def test_the_first_of_two_commits_of_a_key_is_kept(store: Store) -> None:
    put(store, "corpus", "k1", "one!")
    again = put(store, "corpus", "k1", "two!")
    assert (again.folder / "data.txt").read_text() == "one!"
    assert not list(store.root.glob(".building/*"))


def test_a_commit_replaces_a_damaged_artifact(store: Store) -> None:
    (put(store, "corpus", "k1", "one!").folder / "data.txt").unlink()
    again = put(store, "corpus", "k1", "two!")
    assert (again.folder / "data.txt").read_text() == "two!"


def test_a_commit_replaces_an_artifact_whose_bytes_changed_under_the_same_size(store: Store) -> None:
    (put(store, "corpus", "k1", "one!").folder / "data.txt").write_text("ONE!")
    again = put(store, "corpus", "k1", "two!")
    assert (again.folder / "data.txt").read_text() == "two!"
    assert store.find_damage("corpus", "k1", "full") is None


def test_garbage_collection_keeps_the_last_used_artifacts_and_their_inputs(store: Store) -> None:
    corpora = [put(store, "corpus", f"c{number}") for number in range(3)]
    tokens = [put(store, "tokens", f"t{number}", inputs=[corpora[number]]) for number in range(3)]
    for age, artifact in enumerate([*reversed(corpora), *reversed(tokens)]):
        os.utime(artifact.folder / "manifest.json", (1e9 - age, 1e9 - age))
    store.mark_used("tokens", "t0")
    planned = collect_garbage(store, keep=1, dry_run=True)
    assert {what for what, _ in planned} == {"corpus/c1", "tokens/t1", "tokens/t2"}
    assert len(list(store.manifests())) == 6
    assert collect_garbage(store, keep=1) == planned
    assert {manifest.key for manifest in store.manifests()} == {"c0", "c2", "t0"}


def test_garbage_collection_removes_files_of_dead_processes(store: Store) -> None:
    alive = store.new_folder("corpus", "k1")
    dead = alive.with_name(f"corpus-k1-{host_name()}-{2**22 + 1}-abcdef01")
    elsewhere = alive.with_name("corpus-k1-another_machine-1-abcdef01")
    forgotten = alive.with_name("corpus-k1-another_machine-2-abcdef01")
    for folder in (dead, elsewhere, forgotten):
        folder.mkdir()
    os.utime(forgotten, (1e9, 1e9))
    finished = store.scratch("corpus", "k2")
    put(store, "corpus", "k2")
    going_on = store.scratch("corpus", "k3")
    collect_garbage(store, keep=5)
    assert [path.exists() for path in (alive, elsewhere, going_on)] == [True, True, True]
    assert [path.exists() for path in (dead, forgotten, finished)] == [False, False, False]


def test_garbage_collection_keeps_artifacts_of_active_runs_and_their_inputs(store: Store) -> None:
    corpus = put(store, "corpus", "c1")
    put(store, "tokens", "t1", inputs=[corpus])
    put(store, "tokens", "t2", inputs=[corpus])
    with store.hold("tokens", "t1"), store.hold("tokens", "t1"):
        assert [what for what, _ in collect_garbage(store, keep=0)] == ["tokens/t2"]
    assert [what for what, _ in collect_garbage(store, keep=0)] == ["corpus/c1", "tokens/t1"]


def test_a_build_folder_name_contains_process_and_start_time(store: Store) -> None:
    before = time.time()
    made = BuildFolder.parse(store.new_folder("train_word2vec", "k1"))
    assert made[:4] == ("train_word2vec", "k1", host_name(), os.getpid())
    assert before <= made.since <= time.time()
    assert made.alive
    assert made._replace(pid=2**22 + 1).alive is False
    assert made._replace(host="another_machine").alive is None


def test_a_scratch_folder_in_use_is_not_collected(store: Store) -> None:
    folder = store.scratch("corpus", "k1")
    put(store, "corpus", "k1")
    with store.lock("corpus-k1"):
        assert collect_garbage(store, keep=5) == []
    assert folder.exists()


def test_an_unwritable_store_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the store .* is not writable .*--store or LEXLOOM_STORE"):
        Store(tmp_path / "file" / "store").make_writable()
    with pytest.raises(FileExistsError, match=r"file is not writable \(File exists\): choose another folder"):
        Store(tmp_path / "file").make_writable()
