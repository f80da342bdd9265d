"""Ray workers that are killed, interrupted or fail, on a cluster that is too small or busy."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from lexloom.training.checkpoint_files import Checkpoints
from lexloom.training.job import Job
from lexloom.training.progress import Progress
from lexloom.training.ray.trainer import train_on_ray
from tests.training.ray.runtime import CPUS
from tests.training.test_loop import result, untimed
from tests.training.toy import Counter, job, on_processes, train_on

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.fixture(scope="module")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Job]:
    """epochs -> what two processes train in so many, without Ray."""
    folder = tmp_path_factory.mktemp("without ray")
    jobs = {epochs: job(folder / str(epochs), epochs=epochs, checkpoint_every=100) for epochs in (2, 40)}
    on_processes(2, train_on, *jobs.values())
    return jobs


class KilledOnce(Counter):
    """Its process dies in the middle of the run, the first time only."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> float:
        if progress > 0.6:
            try:
                self.mark.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().train_step(batch, progress=progress, seed=seed)


class Misshapen(Counter):
    def train_step(self, batch: Mapping[str, np.ndarray], *, progress: float, seed: int) -> float:
        raise RuntimeError("shapes do not fit")


@contextmanager
def other_work(cpus: int) -> Iterator[None]:
    """Holds CPUs of the cluster."""
    actor = ray.remote(num_cpus=cpus)(Holder).remote()
    ray.get(actor.begun.remote())
    try:
        yield
    finally:
        ray.kill(actor)


class Holder:
    def begun(self) -> None:
        pass


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    tmp_path: Path, without_ray: dict[int, Job], capfd: pytest.CaptureFixture[str]
) -> None:
    killed = job(tmp_path, partial(KilledOnce, tmp_path / "mark"))
    notes: list[str] = []
    train_on_ray(killed, workers=2, on_note=notes.append)
    assert (tmp_path / "mark").exists()
    (note,) = notes
    assert note.startswith("training worker ")
    assert note.endswith("; resuming from step 10")
    assert len(note) < 120
    assert capfd.readouterr() == ("", "")  # no raylet's lines beside the note
    assert torch.equal(result(killed).tensors["table"], result(without_ray[2]).tensors["table"])


def test_an_interrupt_waits_for_a_checkpoint_from_which_the_next_run_goes_on(
    tmp_path: Path, without_ray: dict[int, Job]
) -> None:
    plan = job(tmp_path, epochs=40, checkpoint_every=None)
    slow = replace(plan, on_batch=wait_a_little)
    notes: list[str] = []

    def interrupt(point: Progress) -> None:
        if not notes:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_on_ray(slow, workers=2, on_progress=interrupt, on_note=notes.append)
    assert notes == ["stopping after this step; interrupt again to stop without a checkpoint"]
    assert 0 < result(plan).state["step"] < 400
    assert Checkpoints(plan.checkpoints, plan.fingerprint).describe_resume() == (
        f"run the same command again to resume from step {result(plan).state['step']}"
    )
    train_on_ray(plan, workers=2)
    assert torch.equal(result(plan).tensors["table"], result(without_ray[40]).tensors["table"])
    assert untimed(result(plan).state["history"]) == untimed(result(without_ray[40]).state["history"])


def wait_a_little(*place: Any) -> None:
    time.sleep(0.02)


def test_a_workers_own_error_is_one_sentence_with_the_workers_traceback_below(tmp_path: Path) -> None:
    broken = job(tmp_path, partial(Counter, break_at=0.5))
    with pytest.raises(FloatingPointError) as raised:
        train_on_ray(broken, workers=2)
    sentence = str(raised.value)
    assert sentence.startswith("the loss is nan at step 11 (epoch 2, learning rate 0.5): lower the learning")
    assert "\n" not in sentence
    shown = "".join(traceback.format_exception(raised.value))  # as --verbose and Prefect's logs have it
    below = shown.partition(f"FloatingPointError: {sentence}\n")[2]
    assert below.startswith("on training worker ")
    assert 'training/loop.py", line' in below


def test_an_error_that_comes_again_is_raised_with_the_workers_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit") as raised:
        train_on_ray(job(tmp_path, Misshapen), workers=1)
    assert "on training worker 0:" in "".join(raised.value.__notes__)


def test_elastic_workers_are_as_many_as_the_cluster_has_cpus(tmp_path: Path) -> None:
    notes: list[str] = []
    points: list[Progress] = []
    train_on_ray(job(tmp_path), workers=(1, 4), on_progress=points.append, on_note=notes.append)
    assert points[-1].workers == CPUS
    assert notes == []


def test_elastic_workers_make_do_with_what_other_work_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    notes: list[str] = []
    points: list[Progress] = []
    with other_work(cpus=1):
        train_on_ray(job(tmp_path), workers=(1, 3), on_progress=points.append, on_note=notes.append)
    assert points[-1].workers == 2
    assert notes == ["the Ray cluster is busy: continuing with at most 2 workers"]


def test_a_busy_cluster_is_an_error_and_no_endless_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) * 3 <= 50  # the controller's start
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "0.5")
    message = rf"no room for {CPUS} workers: 1 of {CPUS} CPUs of the Ray cluster are in use"
    with other_work(cpus=1), pytest.raises(ValueError, match=message):
        train_on_ray(job(tmp_path), workers=CPUS)


STARTING = """
from lexloom.training.ray.runtime import ray_runtime
with ray_runtime(1, None, False, on_note=print):
    pass
"""


def test_one_is_started_even_where_ray_knows_of_a_cluster(tmp_path: Path) -> None:
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "-c", STARTING]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert run.stdout == f"Ray: started on this machine, with {os.cpu_count()} CPUs\n"


JOINING = """
import sys
from lexloom.training.ray.runtime import ray_runtime
with ray_runtime(1, sys.argv[1], False, on_note=print):
    pass
"""


def test_a_cluster_that_is_joined_is_named(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    run = subprocess.run([sys.executable, "-c", JOINING, address], capture_output=True, text=True, check=True)
    assert run.stdout == f"Ray: connected to the cluster at {address}, with {CPUS} CPUs on 1 node\n"
