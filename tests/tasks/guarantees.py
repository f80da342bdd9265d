"""Checks of the training loop's guarantees with a training stage's own job."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.job import Job
from lexloom.training.loop import train
from lexloom.training.stopping import Stopping
from lexloom.training.stream import ShardStream
from lexloom.training.sync.config import SyncConfig
from lexloom.training.trainable import Differentiable
from tests.training.toy import die_at, on_processes, train_in_pieces

STEPS, CHECKPOINT_EVERY = 10, 5
STRATEGIES = (
    SyncConfig("all_reduce"),
    SyncConfig("average", period=3),
    SyncConfig("average", period=3, optimizer_state="keep"),
    SyncConfig("diloco", period=2, warm_up_steps=3),
)
Plan = Callable[..., Job]


def planner(
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    stage: Any,
    inputs: tuple[Any, ...],
    config: Any,
    folder: Path,
) -> Plan:
    """Make the stage's job in a separate folder, with 10 steps and a checkpoint every 5."""
    planned: list[Job] = []

    def catch(job: Job, *_: Any, **__: Any) -> None:
        planned.append(job)
        raise InterruptedError

    monkeypatch.setattr(module, "run_job", catch)

    def plan(name: str, sync: SyncConfig, **changes: Any) -> Job:
        with pytest.raises(InterruptedError):
            stage.function(*inputs, config.model_copy(update=changes), folder / name, folder / name)
        limits = {"stopping": Stopping(max_steps=STEPS), "checkpoint_every": CHECKPOINT_EVERY}
        return replace(planned.pop(), sync=sync, **limits)

    return plan


def last(job: Job) -> Checkpoint:
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    assert found is not None
    assert found.state["step"] == STEPS
    return found


def assert_equal(ours: Job, theirs: Job) -> None:
    """Check that the results are equal bit for bit."""
    one, other = last(ours), last(theirs)
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    losses = [[score["loss"] for score in each.state["scores"]] for each in (one, other)]
    assert losses[0] == losses[1]


def broken(job: Job, step: int) -> Job:
    return replace(job, on_batch=partial(die_at, step))


def assert_resumed_equals_uninterrupted(plan: Plan, step: int) -> None:
    whole, killed = (plan(name, SyncConfig("all_reduce")) for name in ("whole", "killed"))
    train_in_pieces(0, 1, [whole, broken(killed, step), killed])
    assert_equal(whole, killed)


def gradients_of_a_batchs_parts_have_the_mean_of_the_whole(plan: Plan, **deterministic: Any) -> None:
    """Weighted by rows, so that by gradients two workers take the steps of one, whatever their shares.

    That they do is proved with processes for any model by tests/training/test_workers.py, and for the
    transformer's own job by `assert_two_workers_resume_and_equal_one`.
    """
    job = plan("job", SyncConfig("all_reduce"), **deterministic)
    model = job.make_trainable()
    assert isinstance(model, Differentiable)
    model.prepare("cpu")
    stream = ShardStream(job.files, job.columns, batch_size=job.batch_size, lanes=job.lanes, seed=job.seed)
    with closing(stream.read(stream.epoch(0), 0)) as batches:
        batch = next(batches)

    def gradients(rows: slice) -> list[Tensor]:
        model.backward({name: values[rows] for name, values in batch.items()}, seed=1)
        return [gradient.clone() for gradient in model.gradients()]

    rows = len(batch[job.columns[0]])
    whole, first, second = (gradients(part) for part in (slice(None), slice(3), slice(3, None)))
    assert any(gradient.any() for gradient in whole)
    for ours, one, other in zip(whole, first, second, strict=True):
        mean = (3 * one + (rows - 3) * other) / rows
        torch.testing.assert_close(mean, ours, rtol=1e-3, atol=1e-6)


def assert_two_workers_resume_and_equal_one(plan: Plan, **deterministic: Any) -> None:
    """`deterministic` are options without random numbers in steps, since each worker draws its own."""
    pairs = [
        [plan(f"{place}-{name}", sync) for name in ("whole", "killed")]
        for place, sync in enumerate(STRATEGIES)
    ]
    alone, together = (
        plan(name, SyncConfig("all_reduce"), **deterministic) for name in ("alone", "together")
    )
    jobs = [each for whole, killed in pairs for each in (whole, broken(killed, 8), killed)]
    on_processes(2, train_in_pieces, [*jobs, together])
    for whole, killed in pairs:
        assert_equal(whole, killed)
    train(alone)
    one, two = last(alone).tensors, last(together).tensors
    for name in one:
        if name.startswith("module."):  # what got no gradient has steps in the optimizer of several alone
            torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5)
