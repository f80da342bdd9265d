"""Tests of the active and interrupted stages of a store."""

import os
import time
from pathlib import Path

import pytest

from lexloom.tasks.display.formatting import format_progress
from lexloom.tasks.store.activity import list_active_stages, list_interrupted_stages
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.layout import host_name
from lexloom.training.progress import Progress
from lexloom.training.ray.progress_file import write_progress
from tests.tasks.store.test_artifacts import put

POINT = Progress(
    seconds=10.0,
    step=40,
    epoch=1,
    examples=400_000,
    total_examples=1_000_000,
    share=0.4,
    loss=2.5,
    learning_rate=0.03,
)


def train(store: Store, key: str, *checkpoints: int) -> Path:
    """Write the scratch folder of a training stage with progress."""
    scratch = store.scratch("train_word2vec", key)
    for step in checkpoints:
        (scratch / "checkpoints" / f"step-{step:010d}").mkdir(parents=True)
    write_progress(scratch / "progress.json", POINT)
    return scratch


def test_a_missing_store_has_no_active_stages(store: Store) -> None:
    assert list_active_stages(store) == []
    assert list_interrupted_stages(store, []) == []


def test_an_active_stage_is_read_from_its_build_folder(store: Store) -> None:
    before = time.time()
    folder = store.new_folder("pairs", "k1")
    (folder / "shard-00000.parquet").write_bytes(b"12345")
    (work,) = list_active_stages(store)
    assert (work.stage, work.key, work.host, work.pid) == ("pairs", "k1", host_name(), os.getpid())
    assert before <= (work.since or 0) <= time.time()
    assert (work.files, work.bytes, work.progress) == (1, 5, None)


def test_stages_of_dead_processes_are_omitted_and_those_of_other_machines_listed(store: Store) -> None:
    alive = store.new_folder("pairs", "k1")
    mark = alive.name.rpartition("-")[2]
    alive.with_name(f"pairs-k2-{host_name()}-{2**22 + 1}-{mark}").mkdir()
    alive.with_name(f"pairs-k3-another_machine-1-{mark}").mkdir()
    store.new_folder("discarded", "k4")
    store.new_folder("train_word2vec-scratch", "k5")
    alive.with_name("strange").mkdir()
    assert sorted(work.key for work in list_active_stages(store)) == ["k1", "k3"]


def test_progress_and_checkpoint_of_active_and_interrupted_training(store: Store) -> None:
    scratch = train(store, "k1", 10, 30)
    folder = store.new_folder("train_word2vec", "k1")
    (work,) = list_active_stages(store)
    assert work.progress is None, "an earlier attempt's figures"
    (left,) = list_interrupted_stages(store, [])
    assert left.checkpoint == 30
    assert list_interrupted_stages(store, [work]) == []
    write_progress(scratch / "progress.json", POINT)
    (work,) = list_active_stages(store)
    assert work.progress is not None
    assert work.progress["step"] == 40
    assert work.progress_at is not None
    folder.rmdir()
    put(store, "train_word2vec", "k1")
    assert list_interrupted_stages(store, []) == []


def test_interrupted_training_without_progress_is_listed_by_its_checkpoint(store: Store) -> None:
    (store.scratch("train_word2vec", "k1") / "checkpoints" / "step-0000000007").mkdir(parents=True)
    store.scratch("train_word2vec", "k2")
    before = time.time()
    (left,) = list_interrupted_stages(store, [])
    assert (left.key, left.checkpoint, left.progress) == ("k1", 7, None)
    assert before - 1 <= (left.left_at or 0) <= time.time()


@pytest.mark.parametrize("content", ["", '{"step": 1', "[1"])
def test_unreadable_progress_is_none(store: Store, content: str) -> None:
    store.new_folder("train_word2vec", "k1")
    (store.scratch("train_word2vec", "k1") / "progress.json").write_text(content)
    assert list_active_stages(store)[0].progress is None


def test_progress_is_formatted() -> None:
    """600,000 remaining examples at 40,000 per second take 15 s."""
    said = format_progress({**vars(POINT)}, "pairs")
    assert said == "400k of 1M pairs · epoch 2 · loss 2.500 · learning rate 0.03 · 40k/s · about 15.0 s left"
    assert format_progress({**vars(POINT), "examples": 1_000_000, "share": 1.0}, "pairs").endswith("100k/s")


def test_the_remaining_time_follows_the_time_limit() -> None:
    assert format_progress({**vars(POINT), "share": 0.8}, "pairs").endswith("about 2.5 s left")
    older = {name: value for name, value in vars(POINT).items() if name != "share"}
    assert format_progress(older, "pairs").endswith("about 15.0 s left")
