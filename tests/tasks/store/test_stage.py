"""Tests of `@stage`: caching, atomicity, verification, and Prefect's states."""

import multiprocessing
import os
import time
from pathlib import Path
from uuid import uuid4

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from pydantic import BaseModel

from lexloom.tasks.store.artifacts import Artifact, Store, Summary
from lexloom.tasks.store.garbage_collection import collect_garbage
from lexloom.tasks.store.stage import StageRecord, record_stages, stage

pytestmark = pytest.mark.usefixtures("prefect_server")
ONE = Summary(rows_in=1, unit_in="files", rows=1, unit="lines")


class Text(BaseModel):
    """A source: its key is its content."""

    key: str = "hello"


class Config(BaseModel):
    width: int = 1


class NetworkError(Exception):
    pass


@stage(version=1)
def loom(source: Text, config: Config, out: Path) -> Summary:
    (out / "cloth.txt").write_text(source.key * config.width)
    return ONE


@stage(version=1)
def dye(cloth: Artifact, config: Config, out: Path) -> Summary:
    (out / "dyed.txt").write_text((cloth.folder / "cloth.txt").read_text().upper())
    return ONE


@stage(version=1)
def tears(source: Text, config: Config, out: Path, scratch: Path) -> Summary:
    """A stage that fails half-way the first time and resumes from its scratch folder."""
    (out / "half.txt").write_text("half")
    if not (scratch / "been-here").exists():
        (scratch / "been-here").touch()
        raise ValueError("torn on purpose")
    return ONE


@stage(version=1, retry_on=NetworkError)
def far_away(source: Text, config: Config, out: Path) -> Summary:
    tries = Path("tries")
    count = len(tries.read_text()) if tries.exists() else 0
    tries.write_text("x" * (count + 1))
    if config.width == 100:
        raise ValueError("nobody is there")
    if count < config.width:
        raise NetworkError("no response")
    return ONE


def run(width: int = 1, dye_width: int = 1) -> tuple[Artifact, list[StageRecord], dict[str, str]]:
    """Run two stages in a flow; return the last artifact, the records, and Prefect's state names."""
    name = f"run-{uuid4()}"

    @flow(flow_run_name=name)
    def weave() -> Artifact:
        return dye(loom(Text(), config=Config(width=width)), config=Config(width=dye_width))

    with record_stages() as records:
        artifact = weave()
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])))
    return artifact, records, {task_run.name: str(task_run.state_name) for task_run in runs}


def test_all_stages_of_a_second_run_are_cached_in_store_and_prefect() -> None:
    first, built, states = run()
    assert [record.cached for record in built] == [False, False]
    assert states == {"loom": "Completed", "dye": "Completed"}
    second, found, states = run()
    assert second == first
    assert [record.cached for record in found] == [True, True]
    assert states == {"loom": "Cached", "dye": "Cached"}


def test_a_changed_field_rebuilds_its_stage_and_descendants_with_a_reason() -> None:
    run()
    _, records, _ = run(dye_width=2)
    assert [(record.stage, record.cached, record.why) for record in records] == [
        ("loom", True, []),
        ("dye", False, ["dye.width: 1 -> 2"]),
    ]
    _, records, _ = run(width=3)
    assert [record.cached for record in records] == [False, False]
    assert records[1].why == ["loom.width: 1 -> 3"]


def test_artifacts_of_a_run_are_held_until_it_ends(store: Store) -> None:
    found = []

    @flow
    def weave() -> None:
        cloth = loom(Text(), config=Config())
        collect_garbage(store, keep=0)
        dye(cloth, config=Config())
        loom(Text(), config=Config())
        collect_garbage(store, keep=0)
        found.extend(manifest.stage for manifest in store.manifests())

    for _ in range(2):  # built, and cached
        with record_stages():
            weave()
    assert found == ["loom", "dye"] * 2
    collect_garbage(store, keep=0)
    assert not list(store.manifests())


@pytest.mark.parametrize("damaged", ["cloth.txt", "manifest.json"])
def test_only_missing_artifacts_are_rebuilt(store: Store, damaged: str) -> None:
    artifact, _, _ = run()
    next(store.root.glob(f"loom/*/{damaged}")).unlink()
    again, records, states = run()
    assert [record.cached for record in records] == [False, True]
    assert records[0].why[0].startswith(f"rebuilt: {damaged}")
    assert states == {"loom": "Completed", "dye": "Cached"}
    assert again == artifact


def test_full_verification_detects_changed_content(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run()
    next(store.root.glob("loom/*/cloth.txt")).write_text("HELLO")
    assert run()[1][0].cached
    monkeypatch.setenv("LEXLOOM_VERIFY", "full")
    _, records, _ = run()
    assert not records[0].cached
    assert next(store.root.glob("loom/*/cloth.txt")).read_text() == "hello"
    assert [record.cached for record in run()[1]] == [True, True]
    monkeypatch.setenv("LEXLOOM_VERIFY", "a bit")
    with pytest.raises(ValueError, match="LEXLOOM_VERIFY is 'a bit'"):
        run()


def test_damaged_inputs_are_rebuilt_before_they_are_read(store: Store) -> None:
    """In Prefect's UI, the rebuild is a second task run of the damaged artifact's stage."""
    run()
    next(store.root.glob("loom/*/cloth.txt")).write_text("HELLX")
    artifact, records, _ = run(dye_width=2)
    assert [(record.stage, record.cached) for record in records] == [("loom", False), ("dye", False)]
    assert records[0].why == ["rebuilt: cloth.txt does not match its digest"]
    assert (artifact.folder / "dyed.txt").read_text() == "HELLO"


def test_a_failed_stage_leaves_only_its_scratch_folder(store: Store) -> None:
    @flow
    def fails() -> Artifact:
        return tears(Text(), config=Config())

    with pytest.raises(ValueError, match="torn on purpose"):
        fails()
    assert not list(store.root.glob("tears/*"))
    assert not list(store.root.glob(".building/*"))
    assert len(list(store.root.glob(".scratch/*"))) == 1
    assert fails().files("*.txt")
    assert not list(store.root.glob(".scratch/*"))


def test_only_network_errors_are_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(far_away.task, "retry_delay_seconds", [0, 0, 0, 0])

    @flow
    def fetch(failures: int) -> Artifact:
        return far_away(Text(), config=Config(width=failures))

    fetch(2)
    assert Path("tries").read_text() == "xxx"
    Path("tries").unlink()
    with pytest.raises(ValueError, match="nobody is there"):
        fetch(100)
    assert Path("tries").read_text() == "x"


def test_a_full_disk_is_reported_in_one_sentence(store: Store) -> None:
    @stage(version=1)
    def floods(source: Text, config: Config, out: Path) -> Summary:
        raise OSError(28, "No space left on device")

    @flow
    def fill() -> Artifact:
        return floods(Text(), config=Config())

    with pytest.raises(OSError, match=r"no space is left for stage floods .*lexloom store gc"):
        fill()
    assert not list(store.root.glob(".building/*"))


def build_slowly(root: str) -> None:
    os.environ["LEXLOOM_STORE"] = root

    @stage(version=1)
    def slow(source: Text, config: Config, out: Path) -> Summary:
        (out / "data.txt").write_text("the same")
        time.sleep(0.5)
        return ONE

    slow._run((Text(),), Config())


def test_two_processes_can_build_the_same_key(store: Store) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=build_slowly, args=(str(store.root),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    (manifest,) = store.manifests()
    assert store.find_damage("slow", manifest.key, "full") is None
    assert not list(store.root.glob(".building/*"))
