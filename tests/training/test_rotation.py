"""Models that are divided among the workers: the same bits with any number of workers, after any restart."""

import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.stopping import Stopping
from lexloom.training.sync import rotation
from lexloom.training.sync.collectives import sum_over_workers
from lexloom.training.sync.config import SyncConfig, make_synchronisation
from lexloom.training.sync.rotation import Rotation
from lexloom.training.trainable import Batch
from tests.training.test_loop import result
from tests.training.toy import (
    EPISODES,
    PARTS,
    WIDTH,
    Counter,
    Grid,
    GridStream,
    KilledError,
    grid_job,
    job,
    on_processes,
    train_in_pieces,
    train_on,
)

STEPS = EPISODES * PARTS  # of an epoch
EVERY = 7  # steps between evaluations, and between checkpoints: within an episode
LONGER = 11  # times as long as the other jobs
DEPENDS_ON_WORKERS = {"workers", "sync_bytes"}


def die_at(step: int, epoch: int, place: int, worker: int, batch: Batch) -> None:
    """`Job.on_batch` that kills the run before step number `step`, on all workers."""
    if epoch * STEPS + place >= step:
        raise KilledError


def lose_worker_at(step: int, epoch: int, place: int, worker: int, batch: Batch) -> None:
    """`Job.on_batch` that ends the process of worker 1 without a word."""
    if worker == 1 and place == step:
        os._exit(0)


def plan(folder: Path, **changes: Any) -> Job:
    return grid_job(folder, checkpoint_every=EVERY, **changes)


def evaluated(folder: Path, **changes: Any) -> Job:
    return plan(folder, evaluate_every=EVERY, **changes)


def long(folder: Path, **changes: Any) -> Job:
    """450 steps, so that losses are recorded every other step, and some are open at a checkpoint."""
    return grid_job(folder, epochs=30, checkpoint_every=LONGER * EVERY, **changes)


KINDS = {"plain": plan, "evaluated": evaluated, "long": long}


def group(rank: int, world_size: int, jobs: list[Job], interrupted: Job) -> None:
    train_in_pieces(rank, world_size, jobs)
    model = Grid()
    run = train(
        replace(interrupted, make_trainable=lambda: model),
        rank=rank,
        world_size=world_size,
        interrupted=lambda: model.evaluated >= 3,
    )
    assert (run.step, run.stop_reason, run.evaluation_due) == (EVERY, None, True)
    sum_over_workers([0.0], world_size)  # worker 0 has written the checkpoint
    if len(model.parts) > 1:
        assert model.overlaps >= 3, "the loop has waited for all blocks before an exchange"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one, three, and two workers have trained the jobs of this module."""
    folder = tmp_path_factory.mktemp("rotation")

    def jobs(workers: int, *steps: int) -> list[Job]:
        """The jobs of every kind: an undisturbed one; then, of one that changes hands, up to each step."""
        return [
            job
            for name, make in KINDS.items()
            for rising, falling in [[LONGER * step if make is long else step for step in steps]]
            for job in (
                make(folder / name / f"{workers}"),
                make(folder / name / "rising", on_batch=partial(die_at, rising)),
                make(folder / name / "falling", on_batch=partial(die_at, falling)),
            )
        ]

    train_in_pieces(0, 1, jobs(1, 8, 0))
    on_processes(3, group, jobs(3, 19, 10), evaluated(folder / "interrupted"))
    left = sorted(path.name for path in (folder / "plain" / "rising").glob("checkpoints/*14/*"))
    assert left == [
        "manifest.json",
        *(f"pieces-000{worker}.safetensors" for worker in range(3)),
        "state.json",
        "sync.safetensors",
    ]
    on_processes(2, group, jobs(2, 100_000, 24), evaluated(folder / "interrupted by two"))
    on_processes(2, train_on, evaluated(folder / "interrupted"))
    for name, make in KINDS.items():
        train(make(folder / name / "falling"))
    train(evaluated(folder / "interrupted by two"))
    return folder


def assert_equal(first: Job, second: Job) -> None:
    """Two runs have ended with the same pieces, history and scores."""
    tensors = [result(each).tensors for each in (first, second)]
    assert tensors[0].keys() == tensors[1].keys()
    assert len(tensors[0]) == 2 * PARTS
    for name, piece in tensors[0].items():
        assert torch.equal(piece, tensors[1][name]), name
    states = [result(each).state for each in (first, second)]
    for figures in ("history", "scores"):
        assert comparable(states[0][figures]) == comparable(states[1][figures])
    assert states[0]["stop_reason"] == states[1]["stop_reason"] == "max_epochs"


def comparable(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in entry.items()
            if "seconds" not in name and name not in DEPENDS_ON_WORKERS
        }
        for entry in entries
    ]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("other", ["2", "3", "rising", "falling"])
def test_any_number_of_workers_makes_the_same_bits(folder: Path, name: str, other: str) -> None:
    """Rising: 1, 3, 2 workers; falling: 3, 2, 1; each takes over within an episode."""
    one, another = (KINDS[name](folder / name / which) for which in ("1", other))
    assert_equal(one, another)
    assert len(result(one).state["history"]) > 20
    piece_bytes = WIDTH * 4
    steps = result(another).state["step"]
    if other in ("2", "3"):
        rotations = steps + (steps // EVERY + 1) * STEPS * (name == "evaluated")
        assert result(another).state["sync_bytes"] == rotations * piece_bytes
    assert result(one).state["sync_bytes"] == 0


def test_evaluations_do_not_affect_training(folder: Path) -> None:
    plain, measured = (result(KINDS[name](folder / name / "2")) for name in ("plain", "evaluated"))
    assert all(torch.equal(piece, measured.tensors[name]) for name, piece in plain.tensors.items())
    assert [score["step"] for score in measured.state["scores"]] == [7, 14, 21, 28, 30]


@pytest.mark.parametrize("name", ["interrupted", "interrupted by two"])
def test_interrupted_evaluation_is_repeated_by_any_number_of_workers(folder: Path, name: str) -> None:
    """Three workers are interrupted and two go on; two are interrupted and one goes on."""
    assert_equal(evaluated(folder / "evaluated" / "1"), evaluated(folder / name))


def test_every_piece_of_the_result_is_finite_and_has_been_trained(folder: Path) -> None:
    model = Grid()
    model.prepare("cpu")
    found = result(plan(folder / "plain" / "3")).tensors
    for name, piece in model.state_dict().items():
        assert torch.isfinite(found[name]).all()
        assert not torch.equal(found[name], piece)


def test_validation_loss_is_the_mean_over_all_blocks(folder: Path) -> None:
    """By hand, from the pieces of the last checkpoint."""
    plan = evaluated(folder / "evaluated" / "3")
    found = result(plan)
    stream = GridStream(plan, 0, 1, True)
    total = 0.0
    for row in range(PARTS):
        for column in range(PARTS):
            gap = found.tensors[f"rows.{row:04d}"] - found.tensors[f"columns.{column:04d}"]
            total += float(gap.square().sum()) * int(stream.sizes[:, row, column].sum())
    assert found.state["scores"][-1]["loss"] == pytest.approx(total / stream.examples, abs=1e-4)


class EmptyStart(GridStream):
    """The first diagonal of every episode has no examples."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.sizes[:, range(PARTS), range(PARTS)] = 0
        self.examples = int(self.sizes.sum())


def test_steps_without_examples_are_covered_by_another_record(tmp_path: Path) -> None:
    run = train(plan(tmp_path, open_stream=EmptyStart, batch_size=2))
    steps = [point["step"] for point in run.history]
    assert steps[:4] == [2, 3, 4, 6]  # step 1 belongs to the first record, and step 6 to that of step 5
    assert 16 not in steps  # it begins an epoch
    assert all(point["loss_examples"] for point in run.history)
    assert sum(point["loss_examples"] for point in run.history) == run.examples


def test_max_steps_may_exceed_an_epoch(tmp_path: Path) -> None:
    run = train(plan(tmp_path, stopping=Stopping(max_steps=STEPS + 4)))
    assert (run.step, run.epoch, run.step_in_epoch) == (STEPS + 4, 1, 4)
    assert run.history[-1]["examples"] == run.history[-1]["total_examples"]


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Stopping(max_steps=1), "the first 1 training steps have no examples: train for more steps"),
        (Stopping(max_epochs=1, max_seconds=1e-9), "none of the 1 training steps had an example"),
    ],
)
def test_run_without_any_example_is_rejected(tmp_path: Path, limits: Stopping, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(plan(tmp_path, open_stream=EmptyStart, stopping=limits))


@pytest.mark.parametrize(
    "harm",
    [lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-1])],
    ids=["missing", "damaged"],
)
def test_checkpoint_without_a_worker_s_pieces_is_skipped(tmp_path: Path, harm: Any) -> None:
    whole, broken = plan(tmp_path / "whole"), plan(tmp_path / "broken")
    train(whole)
    with pytest.raises(KilledError):
        train(replace(broken, on_batch=partial(die_at, 16)))
    harm(broken.checkpoints / "step-0000000014" / "pieces-0000.safetensors")
    assert result(broken).state["step"] == 7
    train(broken)
    assert_equal(whole, broken)


def test_checkpoint_with_other_pieces_is_rejected(tmp_path: Path) -> None:
    class Renamed(Grid):
        def piece_names(self) -> list[str]:
            return [*super().piece_names(), "rows.0005"]

    broken = plan(tmp_path)
    with pytest.raises(KilledError):
        train(replace(broken, on_batch=partial(die_at, 8)))
    with pytest.raises(ValueError, match=r"does not have the model's piece rows.0005: delete that folder"):
        train(replace(broken, make_trainable=Renamed))


def lose_a_worker(rank: int, world_size: int, plan: Job) -> None:
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="gloo"):
        train(plan, rank=rank, world_size=world_size)
    assert time.monotonic() - started < 10


def test_lost_worker_ends_the_others_with_a_runtime_error(tmp_path: Path) -> None:
    """A RuntimeError is what `training/ray/failures.py` takes for a lost worker."""
    on_processes(3, lose_a_worker, plan(tmp_path, on_batch=partial(lose_worker_at, 8)))


def test_more_workers_than_parts_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="6 workers can't share 5 parts"):
        train(plan(tmp_path), world_size=6)


def test_strategy_must_suit_the_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="but Counter is not divided among the workers: use all_reduce"):
        train(job(tmp_path, Counter, sync=SyncConfig("rotation")))
    with pytest.raises(ValueError, match="diloco synchronizes replicas, but Grid is divided among"):
        train(plan(tmp_path, sync=SyncConfig("diloco")))


def test_a_single_worker_rotates_and_sends_nothing() -> None:
    model = Grid()
    model.prepare("cpu")
    sync = make_synchronisation(SyncConfig("rotation"), 1)
    sync.setup(model, 1)
    sync.after_step(1, 0, 0)
    sync.after_evaluation_step()
    assert model.steps == 2
    assert (sync.bytes_sent, sync.seconds) == (0, 0.0)


class BusyGrid(Grid):
    """A model that is still being trained for a while after each step."""

    SECONDS = 0.02

    def rotate(self) -> None:
        time.sleep(self.SECONDS)
        super().rotate()


def test_waiting_for_the_own_model_counts_as_computation(tmp_path: Path) -> None:
    state = train(grid_job(tmp_path, BusyGrid, epochs=1))
    assert state.compute_seconds > STEPS * BusyGrid.SECONDS
    assert state.sync_seconds < BusyGrid.SECONDS


@pytest.mark.parametrize(
    ("idle_since", "seconds"),
    [(None, 0.0), (5.0, 4.0), (10.0, 4.0), (11.5, 2.5), (14.5, 0.0)],
    ids=["still training", "idle before", "idle from the beginning", "idle meanwhile", "idle after"],
)
def test_waiting_counts_only_while_nothing_is_trained(
    monkeypatch: pytest.MonkeyPatch, idle_since: float | None, seconds: float
) -> None:
    """A piece arrives at 14 s, 4 s after the beginning of the wait."""
    model = Grid()
    model.prepare("cpu")
    monkeypatch.setattr(model, "idle_since", lambda: idle_since)
    times = iter([10.0, 14.0])
    monkeypatch.setattr(rotation.time, "perf_counter", lambda: next(times))
    sync = Rotation()
    sync.setup(model, 2)
    with sync.timed():
        pass
    assert sync.seconds == seconds
