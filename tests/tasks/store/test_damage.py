"""Tests of damaged stores: damage is described and repaired, and no user file is lost."""

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect import State
from pydantic import BaseModel

from lexloom.tasks.store.artifacts import Artifact, Manifest, Store, Summary
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.stage import stage
from tests.tasks.store.test_artifacts import put

PARTS = ("part-0.txt", "part-1.txt", "nested/part-2.txt")
Harm = Callable[[Path], object]


class Text(BaseModel):
    key: str = "hello"


class Config(BaseModel):
    width: int = 1


@stage(version=1)
def loom(source: Text, config: Config, out: Path) -> Summary:
    (out / "nested").mkdir()
    (out / "empty").mkdir()
    for name in PARTS:
        (out / name).write_text(source.key)
    return Summary(rows_in=1, unit_in="files", rows=3, unit="files", facts={"parts": 3})


def run() -> tuple[Artifact, bool]:
    """Run the stage without Prefect; return the artifact, and whether it was cached."""
    found = loom._run((Text(),), Config())
    return (found.data, True) if isinstance(found, State) else (found, False)


def lose_entry(folder: Path, **changes: object) -> None:
    """Remove a file and its entry in the manifest."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    lost = values["files"].pop(0)
    (folder / lost["name"]).unlink()
    path.write_text(json.dumps(values | changes, indent=2))


def alter(folder: Path, name: str, value: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))


def replace(path: Path, make: Harm) -> None:
    path.rename(path.with_name("kept"))
    make(path)


@pytest.mark.parametrize(
    "harm",
    [
        lose_entry,
        lambda folder: lose_entry(folder, digest=""),
        lambda folder: alter(folder, "files", []),
        lambda folder: alter(folder, "summary", {"rows_in": 1, "unit_in": "x", "rows": 2, "unit": "y"}),
        lambda folder: alter(folder, "config", {"width": 2}),
    ],
)
def test_an_edited_manifest_is_damaged(store: Store, harm: Harm) -> None:
    artifact, _ = run()
    harm(artifact.folder)
    assert store.find_damage("loom", artifact.key) == "manifest.json is damaged"
    assert run() == (artifact, False)
    assert run() == (artifact, True)
    assert store.find_damage("loom", artifact.key, "full") is None


def test_a_manifest_of_format_1_is_still_read(store: Store) -> None:
    artifact, _ = run()
    values = json.loads((artifact.folder / "manifest.json").read_text())
    del values["digest"]
    (artifact.folder / "manifest.json").write_text(json.dumps({**values, "format": 1}))
    assert run() == (artifact, True)


def test_a_manifest_of_another_artifact_is_damaged(store: Store) -> None:
    artifact, _ = run()
    (put(store, "loom", "other").folder / "manifest.json").replace(artifact.folder / "manifest.json")
    assert store.find_damage("loom", artifact.key) == "manifest.json belongs to loom/other"


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda folder: (folder / "part-1.txt").mkdir(), "part-1.txt is a folder"),
        (lambda folder: (folder / "part-1.txt").symlink_to("nowhere"), "part-1.txt is a broken symbolic"),
        (lambda folder: (folder / "part-1.txt").symlink_to("part-1.txt"), "part-1.txt is a broken symbolic"),
        (lambda folder: (folder / "manifest.json").mkdir(), "manifest.json is a folder"),
        (lambda folder: (folder / "manifest.json").symlink_to("nowhere"), "manifest.json is a broken symbol"),
        (lambda folder: os.mkfifo(folder / "part-1.txt"), "part-1.txt is a named pipe"),
        (lambda folder: os.mkfifo(folder / "manifest.json"), "manifest.json is a named pipe"),
        (lambda folder: os.mkfifo(folder / "part-9.txt"), "part-9.txt is not listed in the manifest"),
        (lambda folder: (folder / "caf\udce9").write_text(""), r"caf\xe9 is not listed in the manifest"),
        (lambda folder: (folder / "two\nlines").write_text(""), r"two\nlines is not listed in the manifest"),
        (lambda folder: (folder / "part-9.txt").mkdir(), "part-9.txt is not listed in the manifest"),
        (
            lambda folder: (folder / "part-9.txt").symlink_to("nowhere"),
            "part-9.txt is not listed in the manifest",
        ),
    ],
)
def test_anything_but_a_regular_file_is_damage(store: Store, harm: Harm, complaint: str) -> None:
    artifact, _ = run()
    for name in ("part-1.txt", "manifest.json"):
        if complaint.startswith(name):
            (artifact.folder / name).unlink()
    harm(artifact.folder)
    assert str(store.find_damage("loom", artifact.key)).startswith(complaint)
    assert run() == (artifact, False)
    assert store.find_damage("loom", artifact.key, "full") is None


OBSTACLES: list[tuple[Harm, str]] = [
    (lambda path: path.write_text("mine"), "a file"),
    (lambda path: path.symlink_to("nowhere"), "a broken symbolic link"),
    (lambda path: path.symlink_to(path), "a broken symbolic link"),
    (os.mkfifo, "a named pipe"),
]


@pytest.mark.parametrize("place", ["stage", "artifact"])
@pytest.mark.parametrize(("make", "what"), OBSTACLES)
def test_obstacles_at_an_artifacts_path_are_reported_and_moved_aside(
    store: Store, capsys: pytest.CaptureFixture[str], place: str, make: Harm, what: str
) -> None:
    artifact, _ = run()
    path = artifact.folder if place == "artifact" else artifact.folder.parent
    replace(path, make)
    capsys.readouterr()
    assert run() == (artifact, False)
    said = capsys.readouterr().err
    assert f"{path.relative_to(store.root)} is {what}, not a folder; rebuilding it and moving" in said
    assert store.find_damage("loom", artifact.key, "full") is None
    (aside,) = store.root.glob(".displaced-*")
    assert what != "a file" or aside.read_text() == "mine"
    assert run() == (artifact, True)


@pytest.mark.parametrize("name", [".building", ".scratch", ".locks"])
@pytest.mark.parametrize(("make", "what"), OBSTACLES)
def test_obstacles_at_the_stores_internal_paths_are_reported_and_moved_aside(
    store: Store, capsys: pytest.CaptureFixture[str], name: str, make: Harm, what: str
) -> None:
    store.root.mkdir()
    make(store.root / name)
    run()
    assert f"{name} is {what}, not a folder; moved to {store.root}/.displaced-" in capsys.readouterr().err
    assert run()[1]


def test_a_link_is_never_followed_when_an_artifact_is_discarded(store: Store, tmp_path: Path) -> None:
    artifact, _ = run()
    artifact.folder.rename(tmp_path / "elsewhere")
    artifact.folder.symlink_to(tmp_path / "elsewhere")
    assert run() == (artifact, True)
    (tmp_path / "elsewhere" / "part-0.txt").unlink()
    assert run() == (artifact, False)
    assert not artifact.folder.is_symlink()
    assert (tmp_path / "elsewhere" / "part-1.txt").exists()


def test_a_stage_may_be_a_link_to_a_folder(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.root.mkdir()
    (store.root / "loom").symlink_to(tmp_path / "elsewhere")
    artifact, _ = run()
    assert run() == (artifact, True)
    assert store.list_places() == [("loom", artifact.key)]


def test_a_store_on_two_file_systems_is_rejected(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(path: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match=r"\.building and .*loom are on different file systems: keep"):
        run()


def test_a_lock_path_that_is_not_a_file_is_replaced(store: Store) -> None:
    artifact, _ = run()
    for make in (Path.mkdir, os.mkfifo):
        (artifact.folder / "part-0.txt").unlink()
        lock = store.root / ".locks" / f"commit-loom-{artifact.key}"
        lock.unlink()
        make(lock)
        assert run() == (artifact, False)
        assert lock.is_file()


def test_displaced_files_are_kept_for_a_week_whatever_their_age(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.root.mkdir()
    (store.root / "loom").write_text("mine")
    os.utime(store.root / "loom", (1e9, 1e9))
    run()
    assert collect_garbage(store, keep=5) == []
    week = time.time() + 8 * 24 * 3600
    monkeypatch.setattr("lexloom.tasks.store.garbage_collection.time.time", lambda: week)
    ((what, _),) = collect_garbage(store, keep=5)
    assert what.startswith(".displaced-loom-")
    assert not list(store.root.glob(".displaced-*"))


def test_a_folder_that_another_run_just_created_is_not_displaced(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.root.mkdir()
    (store.root / "loom").symlink_to("nowhere")

    def another_run(file: int, operation: int) -> None:
        (store.root / "loom").unlink()
        (store.root / "loom").mkdir()

    monkeypatch.setattr("lexloom.tasks.store.layout.fcntl.flock", another_run)
    assert store.displace(store.root / "loom") is None
    assert (store.root / "loom").is_dir()


def test_a_scratch_folder_that_is_a_file_is_replaced(store: Store) -> None:
    store.scratch("loom", "k1").rmdir()
    (store.root / ".scratch" / "loom-k1").write_text("")
    assert store.scratch("loom", "k1").is_dir()


def test_every_manifest_names_the_files_that_its_stage_wrote(store: Store) -> None:
    artifact, _ = run()
    manifest = Manifest.from_json((artifact.folder / "manifest.json").read_bytes())
    assert {entry.name for entry in manifest.files} == set(PARTS)
    assert not (artifact.folder / "empty").exists()
