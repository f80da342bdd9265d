"""The loop: resumes to the bit, shows honest figures, stops at a loss that is no number."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.training.toy import ROWS, Counter, job, on_processes, train_on
from training.checkpoint import Checkpoint, Checkpoints
from training.loop import Job, Progress, step_seed, train


class KilledError(Exception):
    pass


class DiesAt(Counter):
    """Dies in its n-th training step, as if the machine had."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.steps_left = step

    def train_step(self, *arguments: Any, **options: Any) -> float:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KilledError
        return super().train_step(*arguments, **options)


def result(job: Job) -> Checkpoint:
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    assert found is not None
    return found


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if "seconds" not in name} for point in history]


def test_every_example_is_trained_once_an_epoch(tmp_path: Path) -> None:
    plan = job(tmp_path)
    train(plan)
    numbers = pq.read_table(plan.files[0])["number"].to_numpy()
    assert result(plan).tensors["table"][:, 0].tolist() == (2 * np.bincount(numbers, minlength=ROWS)).tolist()


@pytest.mark.parametrize("step", [1, 5, 6, 11, 19])
def test_killed_and_resumed_is_the_same_as_uninterrupted_to_the_bit(tmp_path: Path, step: int) -> None:
    whole, broken = job(tmp_path / "whole"), job(tmp_path / "broken")
    train(whole)
    with pytest.raises(KilledError):
        train(replace(broken, make_trainable=partial(DiesAt, step)))
    train(broken)
    assert torch.equal(result(whole).tensors["table"], result(broken).tensors["table"])
    assert untimed(result(whole).state["history"]) == untimed(result(broken).state["history"])


def test_a_finished_run_returns_at_once(tmp_path: Path) -> None:
    plan = job(tmp_path)
    train(plan)
    train(replace(plan, make_trainable=partial(DiesAt, 0)))


def test_two_workers_train_what_one_does(tmp_path: Path) -> None:
    one, two = job(tmp_path / "one"), job(tmp_path / "two")
    train(one)
    on_processes(2, train_on, two)
    assert torch.equal(result(one).tensors["table"][:, 0], result(two).tensors["table"][:, 0])
    losses = [[point["loss"] for point in result(plan).state["history"]] for plan in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-12)
    assert result(two).state["sync_bytes"] > 0


def test_progress_counts_all_examples_and_the_rate_falls_to_its_end(tmp_path: Path) -> None:
    points: list[Progress] = []
    train(job(tmp_path), on_progress=points.append)
    assert points[-1].examples == points[-1].total_examples == 1200
    assert points[-1].learning_rate == 0.0
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    assert points[-1].epoch == 1


def test_a_loss_that_is_no_number_stops_and_names_the_step(tmp_path: Path) -> None:
    plan = job(tmp_path, partial(Counter, break_at=0.5))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 11 \(epoch 2, learning rate 0.4"):
        train(plan)
    assert torch.isfinite(result(plan).tensors["table"]).all()
    assert result(plan).state["step"] == 10


def test_seeds_differ_by_place_and_repeat() -> None:
    seeds = {step_seed(1, epoch, step, rank) for epoch in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 1000
    assert step_seed(1, 2, 3, 0) == step_seed(1, 2, 3, 0) < 2**63
