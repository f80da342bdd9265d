"""Tests of garbage collection, verification and status during concurrent runs."""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lexloom.deployments.cli.status import look
from lexloom.tasks.store import file_access as files
from lexloom.tasks.store.activity import list_active_stages, list_interrupted_stages
from lexloom.tasks.store.artifacts import Manifest, Store
from lexloom.tasks.store.file_access import find_last_modification, list_children, measure_folder, remove
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.verify import find_obstacles, verify
from tests.tasks.store.test_artifacts import put

SECONDS = 1.0


@pytest.fixture
def vanishing(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store whose artifacts disappear as soon as they are listed."""
    put(store, "corpus", "k1")
    put(store, "tokens", "t1")
    manifests, places = Store.manifests, Store.list_places

    def then_remove(self: Store) -> Iterator[Manifest]:
        found = list(manifests(self))
        shutil.rmtree(self.root / "corpus", ignore_errors=True)
        return iter(found)

    def places_then_remove(self: Store) -> list[tuple[str, str]]:
        found = places(self)
        shutil.rmtree(self.root / "corpus", ignore_errors=True)
        return found

    monkeypatch.setattr(Store, "manifests", then_remove)
    monkeypatch.setattr(Store, "list_places", places_then_remove)
    return store


def test_garbage_collection_ignores_artifacts_that_disappear(vanishing: Store) -> None:
    assert collect_garbage(vanishing, keep=1) == []
    assert vanishing.manifest("tokens", "t1") is not None


def test_verification_ignores_artifacts_that_disappear(vanishing: Store) -> None:
    assert [each.name for each in verify(vanishing, vanishing.list_places())] == ["tokens/t1"]
    assert list(vanishing.manifests())


def test_verification_checks_a_replaced_artifact_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (put(store, "corpus", "k1").folder / "data.txt").unlink()
    damage = Store.find_damage

    def then_replace(self: Store, *arguments: str) -> str | None:
        found = damage(self, *arguments)  # type: ignore[arg-type]
        monkeypatch.setattr(Store, "find_damage", damage)
        put(store, "corpus", "k1")
        return found

    monkeypatch.setattr(Store, "find_damage", then_replace)
    assert [each.damage for each in verify(store, store.list_places())] == [None]


@pytest.fixture
def folder(store: Store, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A half-built folder whose files disappear after they are listed."""
    folder = store.new_folder("corpus", "k1")
    (folder / "below").mkdir()
    for name in ("a", "b", "below/c"):
        (folder / name).write_text("four")
    (folder / "link").symlink_to("nowhere")
    walk = os.walk

    def then_lose(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        for found in walk(top):
            (folder / "a").unlink(missing_ok=True)
            shutil.rmtree(folder / "below", ignore_errors=True)
            yield found

    monkeypatch.setattr(files.os, "walk", then_lose)
    return folder


def test_files_that_disappear_are_not_counted(store: Store, folder: Path) -> None:
    assert measure_folder(folder) == (1, 4)


def test_last_modification_ignores_files_that_disappear(folder: Path) -> None:
    os.utime(folder / "b", (1e9, 1e9))
    assert find_last_modification(folder) >= 1e9
    assert find_last_modification(folder / "gone") == 0


def test_status_works_while_files_disappear(store: Store, folder: Path) -> None:
    (work,) = look(store, [], 0).at_work
    assert (work.files, work.bytes) == (1, 4)


def test_removal_succeeds_if_another_process_removes_the_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = store.new_folder("corpus", "k1")
    (folder / "a").write_text("")
    rmtree = shutil.rmtree
    tries: list[str] = []

    def stumble(path: Path) -> None:
        tries.append("try")
        if len(tries) == 1:
            raise FileNotFoundError(2, "gone", str(path / "a"))
        rmtree(path)

    monkeypatch.setattr(files.shutil, "rmtree", stumble)
    remove(folder)
    assert not folder.exists()
    remove(folder)
    assert len(tries) == 2


def test_missing_folders_and_files_have_no_children(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert list_children(tmp_path / "gone") == list_children(tmp_path / "file") == []


def test_concurrent_builds_status_and_garbage_collection_do_not_fail(store: Store) -> None:
    """One thread builds, uses and discards; others read the status and collect garbage."""
    end = time.monotonic() + SECONDS
    kept = put(store, "corpus", "kept")

    def build() -> None:
        for number in range(1_000_000):
            if time.monotonic() > end:
                return
            for key in ("a", "b"):
                (store.scratch("corpus", key) / "half").write_text("x")
                put(store, "corpus", key)
            store.new_folder("pairs", f"k{number}").joinpath("x").write_text("x")
            for path in list_children(store.root / ".building"):
                remove(path)
            store.discard("corpus", "a")
            remove(store.root / ".scratch" / "corpus-b")

    def repeat(call: Callable[[], object]) -> int:
        rounds = 0
        while time.monotonic() < end:
            call()
            rounds += 1
        return rounds

    looks: list[Callable[[], object]] = [
        lambda: collect_garbage(store, keep=0),
        lambda: collect_garbage(store, keep=1),
        lambda: list_interrupted_stages(store, list_active_stages(store)),
        lambda: [*verify(store, store.list_places()), *find_obstacles(store)],
    ]
    with store.hold("corpus", "kept"), ThreadPoolExecutor(len(looks) + 1) as pool:
        building = pool.submit(build)
        rounds = list(pool.map(repeat, looks))
        building.result()
    assert all(rounds)
    assert store.find_damage(kept.stage, kept.key, "full") is None
