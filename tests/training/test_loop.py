"""The loop in one process: resumes bit for bit, records progress, and stops as configured."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from lexloom.training import loop, records, stream
from lexloom.training.checkpoint_files import Checkpoint, Checkpoints
from lexloom.training.job import Job, step_seed
from lexloom.training.loop import train
from lexloom.training.progress import Progress
from lexloom.training.stopping import Stopping
from lexloom.training.sync.config import SyncConfig
from lexloom.training.torch_trainable import TorchTrainable
from lexloom.training.trainable import Batch
from tests.training.toy import (
    ROWS,
    Counter,
    classifier,
    cross_entropy,
    job,
    perceptron,
    points_job,
    write_numbers,
    write_points,
)


class KilledError(Exception):
    pass


class DiesAt(Counter):
    """Dies in its n-th training step, like a killed process."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.steps_left = step

    def train_step(self, *arguments: Any, **options: Any) -> float:
        self.steps_left -= 1
        if self.steps_left < 0:
            raise KilledError
        return super().train_step(*arguments, **options)


class Untouchable(Counter):
    def prepare(self, device: str) -> None:
        raise AssertionError("training has begun")


def result(job: Job) -> Checkpoint:
    found = Checkpoints(job.checkpoints, job.fingerprint).load()
    assert found is not None
    return found


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in point.items() if "seconds" not in name} for point in history]


class LateCounter(Counter):
    """Runs a step when its loss is read, or when its state is requested.

    `early` has the steps whose losses were read before they were done, two steps later.
    """

    def __init__(self, *, break_at: float = 2.0, die_at: int | None = None) -> None:
        super().__init__(break_at)
        self.die_at, self.taken, self.early = die_at, 0, list[int]()

    def prepare(self, device: str) -> None:
        super().prepare(device)
        self.waiting: list[partial[float]] = []

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> Any:
        self.taken += 1
        step = partial(super().train_step, batch, progress=progress, seed=seed)
        self.waiting.append(step)
        return PendingLoss(self, step, self.taken)

    def state_dict(self) -> dict[str, torch.Tensor]:
        while self.waiting:
            self.waiting.pop(0)()
        return super().state_dict()


class PendingLoss:
    def __init__(self, model: LateCounter, step: partial[float], number: int) -> None:
        self.model, self.step, self.number = model, step, number

    def __float__(self) -> float:
        if not self.done():
            self.model.early.append(self.number)
        if self.number == self.model.die_at:
            raise KilledError
        assert self.model.waiting.pop(0) is self.step, "in their order"
        return self.step()

    def done(self) -> bool:
        return self.model.taken - self.number >= 2


@pytest.mark.parametrize("sync", [SyncConfig("average"), SyncConfig("diloco", period=3)])
def test_pending_steps_are_finished_before_their_result_is_used(tmp_path: Path, sync: SyncConfig) -> None:
    for name, make in (("now", Counter), ("late", LateCounter)):
        train(job(tmp_path / name, make, sync=sync))
    now, late = (result(job(tmp_path / name)) for name in ("now", "late"))
    assert torch.equal(late.tensors["table"], now.tensors["table"])
    assert untimed(late.state["history"]) == untimed(now.state["history"])


@pytest.mark.parametrize(
    ("points", "max_pending", "early"),
    [
        (200, 64, [4, 5, 9, 10, 14, 15, 19, 20]),  # a record each step; a checkpoint every five
        (1, 64, [4, 5, 9, 10, 14, 15, 19, 20]),  # one record
        (1, 4, [3, 4, 5, 8, 9, 10, 13, 14, 15, 18, 19, 20]),  # no more than three losses on their way
        (200, 2, [*range(1, 21)]),  # no more than one, and a record of the step before it
    ],
)
def test_record_does_not_wait_for_pending_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, points: int, max_pending: int, early: list[int]
) -> None:
    monkeypatch.setattr(loop, "HISTORY_POINTS", points)
    monkeypatch.setattr(records, "MAX_PENDING_LOSSES", max_pending)
    model = LateCounter()
    train(job(tmp_path / "late", lambda: model))
    assert model.early == early
    train(job(tmp_path / "now"))
    late, now = (result(job(tmp_path / name)) for name in ("late", "now"))
    assert untimed(late.state["history"]) == untimed(now.state["history"])


def test_pending_nonfinite_loss_is_reported_with_its_step(tmp_path: Path) -> None:
    held_out = write_numbers(tmp_path / "held-out.parquet", rows=8)
    plan = job(
        tmp_path, partial(LateCounter, break_at=0.5), validation=(held_out,), evaluate_every=12, epochs=2
    )
    with pytest.raises(FloatingPointError, match=r"^the loss is nan at step 11 \(epoch 2, learning rate 0.5"):
        train(plan)
    assert result(plan).state["step"] == 10


def test_pending_step_error_is_raised_before_the_next_checkpoint(tmp_path: Path) -> None:
    whole, broken = job(tmp_path / "whole"), job(tmp_path / "broken")
    train(whole)
    with pytest.raises(KilledError):
        train(replace(broken, make_trainable=partial(LateCounter, die_at=10)))
    assert result(broken).state["step"] == 5
    train(broken)
    assert torch.equal(result(whole).tensors["table"], result(broken).tensors["table"])


def test_every_example_is_trained_once_per_epoch(tmp_path: Path) -> None:
    plan = job(tmp_path)
    train(plan)
    numbers = pq.read_table(plan.files[0])["number"].to_numpy()
    assert result(plan).tensors["table"][:, 0].tolist() == (2 * np.bincount(numbers, minlength=ROWS)).tolist()


@pytest.mark.parametrize("step", [1, 5, 6, 11, 19])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, step: int) -> None:
    whole, broken = job(tmp_path / "whole"), job(tmp_path / "broken")
    train(whole)
    with pytest.raises(KilledError):
        train(replace(broken, make_trainable=partial(DiesAt, step)))
    train(broken)
    assert torch.equal(result(whole).tensors["table"], result(broken).tensors["table"])
    assert untimed(result(whole).state["history"]) == untimed(result(broken).state["history"])


@pytest.mark.parametrize("step", [1, 4, 5, 10, 13])
@pytest.mark.parametrize("make", [Counter, LateCounter])
def test_interrupted_run_writes_a_checkpoint_and_resumes_bit_for_bit(
    tmp_path: Path, make: Any, step: int
) -> None:
    whole, broken = (job(tmp_path / name, make, checkpoint_every=None) for name in ("whole", "broken"))
    train(whole)
    taken: list[int] = []
    counted = replace(broken, on_batch=lambda epoch, place, worker, batch: taken.append(place))
    run = train(counted, interrupted=lambda: len(taken) == step)
    assert (run.step, run.stop_reason, len(taken)) == (step, None, step)
    assert result(broken).state["step"] == step
    train(broken)
    assert torch.equal(result(whole).tensors["table"], result(broken).tensors["table"])
    assert untimed(result(whole).state["history"]) == untimed(result(broken).state["history"])


@pytest.mark.parametrize(("batches", "step"), [(1, 6), (2, 6), (4, 8), (5, 8)])  # of three a time
def test_interrupted_evaluation_is_repeated_by_the_next_run(tmp_path: Path, batches: int, step: int) -> None:
    """Between two steps of an outer optimizer, and at the end of the run."""
    held_out = write_points(tmp_path / "held-out.parquet", rows=150, rows_per_group=30, seed=9)
    whole, broken = (
        points_job(
            tmp_path / name,
            sync=SyncConfig("diloco", period=4),
            validation=(held_out,),
            evaluate_every=6,
            stopping=Stopping(max_steps=8),
            checkpoint_every=None,
        )
        for name in ("whole", "broken")
    )
    undisturbed = train(whole)
    model, evaluated = classifier(), list[int]()

    def evaluate(batch: Batch) -> tuple[float, float]:
        evaluated.append(len(batch["label"]))
        return TorchTrainable.evaluate(model, batch)

    model.evaluate = evaluate  # type: ignore[method-assign]
    run = train(replace(broken, make_trainable=lambda: model), interrupted=lambda: len(evaluated) == batches)
    assert len(evaluated) == batches
    assert (run.step, run.stop_reason) == (step, None)
    assert result(broken).state["step"] == run.step
    resumed = train(broken)
    assert resumed.stop_reason == "max_steps"
    assert untimed(resumed.scores) == untimed(undisturbed.scores)
    assert untimed(resumed.history) == untimed(undisturbed.history)
    first, second = result(whole).tensors, result(broken).tensors
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("changes", [{"checkpoint_every": 1}, {"checkpoint_seconds": 1e-9}])
def test_checkpoint_does_not_affect_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    outer = SyncConfig("diloco", period=4)
    plans = [
        points_job(tmp_path / name, sync=outer, **{"checkpoint_every": None, **more})
        for name, more in (("without", {}), ("with", changes))
    ]
    for plan in plans:
        train(plan)
    first, second = (result(plan) for plan in plans)
    assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())
    assert untimed(first.state["history"]) == untimed(second.state["history"])


@pytest.mark.parametrize("began_in_bfloat16", [True, False])
def test_resumed_run_keeps_its_precision(tmp_path: Path, began_in_bfloat16: bool) -> None:
    """Even if the next machine would choose another."""
    asked: list[str] = []

    def plan(name: str, bfloat16: bool) -> Job:
        def choose(device: str) -> bool:
            asked.append(device)
            return bfloat16

        return points_job(tmp_path / name, partial(classifier, bfloat16=choose), checkpoint_every=None)

    taken: list[int] = []
    first = plan("broken", began_in_bfloat16)
    counted = replace(first, on_batch=lambda epoch, place, worker, batch: taken.append(place))
    train(counted, interrupted=lambda: len(taken) == 5)
    run = train(plan("broken", not began_in_bfloat16))
    train(plan("whole", began_in_bfloat16))
    train(plan("other", not began_in_bfloat16))
    assert asked == ["cpu"] * 4
    assert run.hardware_choices == {"bfloat16": began_in_bfloat16}
    whole, broken, other = (result(plan(name, True)).tensors for name in ("whole", "broken", "other"))
    assert all(torch.equal(value, broken[name]) for name, value in whole.items())
    assert not all(torch.equal(value, other[name]) for name, value in whole.items())


def test_finished_run_returns_at_once(tmp_path: Path) -> None:
    plan = job(tmp_path)
    train(plan)
    run = train(replace(plan, make_trainable=Untouchable))
    assert (run.step, run.stop_reason) == (20, "max_epochs")


def test_progress_counts_examples_and_learning_rate_decays(tmp_path: Path) -> None:
    points: list[Progress] = []
    train(job(tmp_path), on_progress=points.append)
    assert points[-1].examples == points[-1].total_examples == 1200
    assert points[-1].learning_rate == 0.0
    assert [point.step for point in points] == list(range(1, len(points) + 1))
    assert points[-1].epoch == 1


class Uncertain(Counter):
    """Its loss is 0.7, and 2.2 for small batches."""

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> float:
        super().train_step(batch, progress=progress, seed=seed)
        return 0.7 if len(batch["number"]) == 64 else 2.2


@pytest.mark.parametrize(("rows", "few"), [(9 * 64 + 24, 24), (9 * 64 + 4, 4)])
def test_short_last_batch_is_merged_into_the_previous_record(tmp_path: Path, rows: int, few: int) -> None:
    shard = write_numbers(tmp_path / "rows.parquet", rows=rows)
    points: list[Progress] = []
    run = train(job(tmp_path, Uncertain, files=(shard,), lanes=1), on_progress=points.append)
    together = (64 * 0.7 + few * 2.2) / (64 + few)
    assert [point["step"] for point in run.history] == [*range(1, 9), 10, *range(11, 19), 20]
    assert [point["loss"] for point in run.history] == pytest.approx([*[0.7] * 8, together] * 2)
    assert [point["loss_examples"] for point in run.history] == [*[64] * 8, 64 + few] * 2
    assert points[-1].loss == pytest.approx(together)
    assert sum(point["loss_examples"] for point in run.history) == run.examples == 2 * rows


def test_nonfinite_loss_raises_with_its_step(tmp_path: Path) -> None:
    plan = job(tmp_path, partial(Counter, break_at=0.5))
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 11 \(epoch 2, learning rate 0.5"):
        train(plan)
    assert torch.isfinite(result(plan).tensors["table"]).all()
    assert result(plan).state["step"] == 10


def test_infinite_sum_of_finite_losses_raises_with_its_step(tmp_path: Path) -> None:
    class Huge(Counter):
        def train_step(self, batch: Batch, *, progress: float, seed: int) -> float:
            return super().train_step(batch, progress=progress, seed=seed) + (1e308 if progress > 0.5 else 0)

    with pytest.raises(FloatingPointError, match=r"loss is inf at step 12 \(epoch 2"):
        train(job(tmp_path, Huge))


def test_sums_of_losses_do_not_depend_on_their_order() -> None:
    losses = np.random.default_rng(0).normal(size=1000) * 1e6
    rounded = [records.round_sum(loss) for loss in losses]
    assert rounded == pytest.approx(losses, abs=2**-21, rel=0)
    assert sum(rounded) == sum(sorted(rounded)) == sum(rounded[::2]) + sum(rounded[1::2])
    assert sum(losses) != sum(sorted(losses))
    assert records.round_sum(float("inf")) == float("inf")
    assert np.isnan(records.round_sum(float("nan")))
    assert records.round_sum(1e305) == 1e305


def test_validation_loss_is_the_mean_over_all_rows(tmp_path: Path) -> None:
    held_out = write_points(tmp_path / "held-out.parquet", rows=210, rows_per_group=30, seed=9)
    plan = points_job(tmp_path, validation=(held_out,), stopping=Stopping(max_steps=25))
    run = train(plan)
    assert [score["step"] for score in run.scores] == [8, 16, 24, 25]
    assert [round(score["epoch"], 2) for score in run.scores] == [1.0, 2.0, 3.0, 3.13]
    module, table = perceptron(0.0), pq.read_table(held_out)
    saved = result(plan).tensors
    module.load_state_dict({name: saved[f"module.{name}"] for name in module.state_dict()})
    features = torch.tensor(np.stack(table["features"].to_numpy()))
    loss = cross_entropy(module, {"features": features, "label": torch.tensor(table["label"].to_numpy())})
    assert run.scores[-1]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert run.best_step == 25
    assert run.stop_reason == "max_steps"


class Scripted(Counter):
    """Its validation loss at evaluation n is the n-th given value."""

    def __init__(self, *losses: float) -> None:
        super().__init__()
        self.losses = losses

    def evaluate(self, batch: Batch) -> tuple[float, float]:
        assert self.table[:, 0].sum() % 64 == 0  # after a step, on the model as it then is
        return self.losses[int(self.table[:, 0].sum()) // 64 // 2 - 1], 1


def scripted(folder: Path, *losses: float, **changes: Any) -> Job:
    """A job that evaluates every two steps of 64 examples, on one batch of held-out examples."""
    held_out = folder / "held-out.parquet"
    folder.mkdir(parents=True, exist_ok=True)
    write_numbers(held_out, rows=8)
    shard = write_numbers(folder / "shard-00000.parquet", rows=64 * 37)
    options = {"files": (shard,), "validation": (held_out,), "evaluate_every": 2, "lanes": 1, **changes}
    return job(folder, partial(Scripted, *losses), **options)


def test_early_stopping_keeps_the_best_model(tmp_path: Path) -> None:
    losses = (3.0, 2.0, 2.5, 1.95, 2.2, 2.1, 1.0)
    limits = Stopping(max_epochs=2, patience=3, min_delta=0.1)
    plan = scripted(tmp_path, *losses, stopping=limits, checkpoint_every=100)
    run = train(plan)
    assert run.stop_reason == "patience"
    assert [score["loss"] for score in run.scores] == [*map(records.round_sum, losses[:5])]
    assert run.step == 10
    assert run.best_step == 8  # better by less than min_delta, and still the best
    best = Checkpoints(plan.checkpoints, plan.fingerprint).load_step(8)
    assert best is not None
    assert best.tensors["table"][:, 0].sum() == 8 * 64
    saved = result(plan).state
    assert (saved["stop_reason"], saved["scores"]) == ("patience", run.scores)


@pytest.mark.parametrize("step", [3, 4, 7])
def test_patience_survives_a_restart(tmp_path: Path, step: int) -> None:
    limits = Stopping(max_epochs=2, patience=2)
    losses = (3.0, 2.0, 2.5, 2.6, 1.0)
    plan = scripted(tmp_path, *losses, stopping=limits, checkpoint_every=1)
    with pytest.raises(KilledError):
        train(replace(plan, on_batch=partial(die_at_place, step)))
    run = train(plan)
    assert (run.stop_reason, run.step) == ("patience", 8)
    assert [score["loss"] for score in run.scores] == [*map(records.round_sum, losses[:4])]


def die_at_place(place: int, epoch: int, step_in_epoch: int, worker: int, batch: Batch) -> None:
    if step_in_epoch == place:
        raise KilledError


def test_max_steps_ends_the_learning_rate_schedule(tmp_path: Path) -> None:
    points: list[Progress] = []
    plan = job(tmp_path, stopping=Stopping(max_steps=14))
    run = train(plan, on_progress=points.append)
    assert (run.step, run.epoch, run.step_in_epoch, run.stop_reason) == (14, 1, 4, "max_steps")
    assert points[-1].examples == points[-1].total_examples < 1200
    assert points[-1].learning_rate == 0.0
    shorter = train(job(tmp_path / "epochs", stopping=Stopping(max_steps=14, max_epochs=1)))
    assert (shorter.step, shorter.stop_reason) == (10, "max_epochs")


def test_max_seconds_ends_a_run(tmp_path: Path) -> None:
    run = train(job(tmp_path, stopping=Stopping(max_epochs=10_000, max_seconds=0.05)))
    assert run.stop_reason == "max_seconds"
    assert run.step < 10_000 * 10
    assert run.seconds < 10


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`Job.on_batch` that advances the clock by a second per batch."""
    seconds = [0.0]

    def tick(*place: Any) -> None:
        seconds[0] += 1.0

    monkeypatch.setattr("lexloom.training.clock.time.perf_counter", lambda: seconds[0])
    return tick


class Annealed(Counter):
    """Records the progress of every step."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[float] = []

    def train_step(self, batch: Batch, *, progress: float, seed: int) -> float:
        self.given.append(progress)
        return super().train_step(batch, progress=progress, seed=seed)


@pytest.mark.parametrize(
    ("limits", "shares", "reason"),
    [
        (Stopping(max_epochs=100, max_seconds=8), [n / 8 for n in range(8)], "max_seconds"),
        (Stopping(max_epochs=1, max_seconds=8), [n / 8 for n in range(8)], "max_seconds"),
        (Stopping(max_steps=50, max_seconds=4), [0, 0.25, 0.5, 0.75], "max_seconds"),
        (Stopping(max_steps=5, max_seconds=80), [0, 0.2, 0.4, 0.6, 0.8], "max_steps"),
    ],
)
def test_learning_rate_follows_the_limit_that_ends_the_run(
    tmp_path: Path, ticking: Any, limits: Stopping, shares: list[float], reason: str
) -> None:
    model, points = Annealed(), list[Progress]()
    run = train(job(tmp_path, lambda: model, stopping=limits, on_batch=ticking), on_progress=points.append)
    assert run.stop_reason == reason
    assert model.given == pytest.approx(shares)
    assert (points[-1].share, points[-1].learning_rate) == (1.0, 0.0)
    assert [point.step for point in points] == list(range(1, len(shares) + 1)), "as many records as ever"


@pytest.mark.parametrize("step", [1, 4, 7])
def test_run_with_max_seconds_resumes_at_its_time_share(tmp_path: Path, ticking: Any, step: int) -> None:
    limits = Stopping(max_epochs=100, max_seconds=8)
    whole, broken = (
        job(tmp_path / name, stopping=limits, on_batch=ticking, checkpoint_every=None)
        for name in ("whole", "broken")
    )
    train(whole)
    taken: list[int] = []

    def count(*place: Any) -> None:
        ticking()
        taken.append(1)

    train(replace(broken, on_batch=count), interrupted=lambda: len(taken) == step)
    assert result(broken).state["time_share"] == step / 8
    for _ in range(5):
        ticking()  # while nothing is trained
    run = train(broken)
    assert run.step == 8
    assert torch.equal(result(whole).tensors["table"], result(broken).tensors["table"])
    assert untimed(result(whole).state["history"]) == untimed(result(broken).state["history"])


def test_accounts_sum_to_the_elapsed_time(tmp_path: Path) -> None:
    plan = points_job(
        tmp_path, stopping=Stopping(max_epochs=3), validation=(write_points(tmp_path / "v", 64, 8),)
    )
    run = train(plan)
    parts = [getattr(run, f"{name}_seconds") for name in ("data", "compute", "evaluation", "checkpoint")]
    assert min(parts) > 0
    assert run.sync_seconds < run.seconds / 10
    assert 0.5 * run.seconds < sum(parts) < run.seconds + run.checkpoint_seconds
    assert result(plan).state["history"][-1]["compute_seconds"] <= run.compute_seconds


def test_on_batch_sees_every_row_once_per_epoch(tmp_path: Path) -> None:
    taken: list[tuple[int, int, int, list[int]]] = []
    plan = job(tmp_path)
    ledger = replace(
        plan, on_batch=lambda *place, batch=None: taken.append((*place[:3], place[3]["number"].tolist()))
    )
    train(ledger)
    assert [line[:3] for line in taken] == [(epoch, place, 0) for epoch in (0, 1) for place in range(10)]
    numbers = sorted(pq.read_table(plan.files[0])["number"].to_pylist())
    for epoch in (0, 1):
        assert sorted(number for line in taken if line[0] == epoch for number in line[3]) == numbers


def test_invalid_jobs_are_rejected_before_training(tmp_path: Path) -> None:
    plan = job(tmp_path, Untouchable)
    with pytest.raises(ValueError, match="all_reduce exchanges gradients, but Untouchable has none"):
        train(replace(plan, sync=SyncConfig("all_reduce")))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"checkpoint folder .* is not writable"):
        train(replace(plan, checkpoints=tmp_path / "file" / "checkpoints"))
    with pytest.raises(ValueError, match="hold out some examples"):
        replace(plan, stopping=Stopping(max_epochs=1, patience=1))
    with pytest.raises(ValueError, match="checkpoint_every is 0"):
        replace(plan, checkpoint_every=0)
    with pytest.raises(ValueError, match="int can't be evaluated"):
        train(replace(plan, make_trainable=int, validation=plan.files, sync=SyncConfig("average")))


def test_missing_shard_is_reported_and_the_run_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CACHE_BYTES", 0)  # a text that is not held in memory
    whole, broken = job(tmp_path / "whole"), job(tmp_path / "broken")
    train(whole)
    shard, aside = broken.files[0], tmp_path / "aside"

    def take_away(epoch: int, place: int, worker: int, batch: Batch) -> None:
        if (epoch, place) == (0, 9):
            shard.rename(aside)

    with pytest.raises(OSError, match=r"shard-00000.parquet can't be read .*run the flow again"):
        train(replace(broken, on_batch=take_away))
    aside.rename(shard)
    train(broken)
    assert torch.equal(result(whole).tensors["table"], result(broken).tensors["table"])


def test_nonfinite_validation_loss_raises(tmp_path: Path) -> None:
    plan = scripted(tmp_path, 3.0, float("inf"))
    with pytest.raises(FloatingPointError, match="validation loss is inf after step 4"):
        train(plan)
    assert result(plan).state["step"] == 2


def test_nonfinite_loss_between_clock_readings_is_reported_with_its_step(tmp_path: Path) -> None:
    def poisoned(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
        steps.append(len(steps) + 1)
        return cross_entropy(module, tensors) * (float("nan") if len(steps) >= 103 else 1.0)

    steps: list[int] = []
    plan = points_job(tmp_path, epochs=100, checkpoint_every=1000)
    model = classifier()
    model._loss = poisoned
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 103 \(epoch 13,"):
        train(replace(plan, make_trainable=lambda: model))
    assert len(steps) < 110


def test_step_seeds_depend_on_the_position() -> None:
    seeds = {step_seed(1, epoch, step, rank) for epoch in range(5) for step in range(50) for rank in range(4)}
    assert len(seeds) == 1000
    assert step_seed(1, 2, 3, 0) == step_seed(1, 2, 3, 0) < 2**63


def test_sample_is_recorded_with_each_score(tmp_path: Path) -> None:
    def sample(trainable: Any) -> str:
        return f"after {trainable.learning_rate(0):g}: {len(trainable.tables())} tables"

    shown: list[Progress] = []
    held_out = (write_points(tmp_path / "held-out.parquet", 64, 16, seed=1),)
    with_dropout = partial(classifier, dropout=0.5)
    plain_job = points_job(tmp_path / "plain", with_dropout, validation=held_out)
    job_with_sample = points_job(tmp_path / "with", with_dropout, validation=held_out, sample=sample)
    run = train(job_with_sample, on_progress=shown.append)
    plain = train(plain_job)
    assert len(run.scores) == len(plain.scores) > 1
    for score, without in zip(run.scores, plain.scores, strict=True):
        assert score["sample"].endswith("tables")
        assert score["loss"] == without["loss"]
        assert "sample" not in without
    assert shown[0].sample in ("", run.scores[0]["sample"])
    assert shown[-1].sample == run.scores[-1]["sample"]
    assert "sample" not in run.history[-1], "the scores have each of them once"
