"""The loop on Ray Train workers: the same result as without Ray, and readable errors."""

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
from unittest.mock import patch

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import (
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
    WorkerHealthCheckFailedError,
)

from lexloom.training.checkpoint import Checkpoints
from lexloom.training.job import Job
from lexloom.training.progress import Progress
from lexloom.training.ray import runtime as ray_runtime_module
from lexloom.training.ray.failures import describe_loss, find_runtime_error, find_training_error
from lexloom.training.ray.runtime import ray_runtime, wait_for_room
from lexloom.training.ray.trainer import find_interface, train_on_ray
from tests.training.test_loop import result, untimed
from tests.training.toy import Counter, job, on_processes, train_on

CPUS = 3


@pytest.fixture(scope="module", autouse=True)
def started() -> Iterator[list[str]]:
    """One Ray runtime for the module, since starting one takes seconds, and its notes."""
    said: list[str] = []
    with patch("os.cpu_count", return_value=2), ray_runtime(CPUS, None, verbose=False, on_note=said.append):
        yield said


@pytest.fixture(scope="module")
def without_ray(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Job]:
    """epochs -> the job that two processes trained for so many epochs, without Ray."""
    folder = tmp_path_factory.mktemp("without ray")
    jobs = {epochs: job(folder / str(epochs), epochs=epochs, checkpoint_every=100) for epochs in (2, 40)}
    on_processes(2, train_on, *jobs.values())
    return jobs


class KilledOnce(Counter):
    """Its process is killed in the middle of the run, the first time only."""

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
    """Reserves CPUs of the cluster."""
    actor = ray.remote(num_cpus=cpus)(Holder).remote()
    ray.get(actor.begun.remote())
    try:
        yield
    finally:
        ray.kill(actor)


class Holder:
    def begun(self) -> None:
        pass


def test_two_ray_workers_equal_two_processes_and_report_progress(
    tmp_path: Path, without_ray: dict[int, Job]
) -> None:
    on_ray, plain = job(tmp_path, epochs=40, checkpoint_every=100), without_ray[40]
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    (tmp_path / "progress.json").write_text("left by a run that was killed")
    points: list[Progress] = []
    train_on_ray(on_ray, workers=2, on_progress=points.append)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(result(on_ray).tensors["table"], result(plain).tensors["table"])
    assert untimed(result(on_ray).state["history"]) == untimed(result(plain).state["history"])
    assert points[-1].total_examples == 40 * 600
    assert points[-1].workers == 2


def test_killed_worker_is_replaced_with_the_same_result(
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


def test_interrupt_writes_a_checkpoint_that_the_next_run_resumes(
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
        f"there is a checkpoint: the same command resumes from step {result(plan).state['step']}"
    )
    train_on_ray(plan, workers=2)
    assert torch.equal(result(plan).tensors["table"], result(without_ray[40]).tensors["table"])
    assert untimed(result(plan).state["history"]) == untimed(result(without_ray[40]).state["history"])


def wait_a_little(*place: Any) -> None:
    time.sleep(0.02)


def test_worker_error_has_the_workers_traceback_as_a_note(tmp_path: Path) -> None:
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


def test_elastic_run_uses_all_cpus(tmp_path: Path) -> None:
    notes: list[str] = []
    points: list[Progress] = []
    train_on_ray(job(tmp_path), workers=(1, 4), on_progress=points.append, on_note=notes.append)
    assert points[-1].workers == CPUS
    assert notes == []


def test_elastic_run_uses_the_free_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "1")
    notes: list[str] = []
    points: list[Progress] = []
    with other_work(cpus=1):
        train_on_ray(job(tmp_path), workers=(1, 3), on_progress=points.append, on_note=notes.append)
    assert points[-1].workers == 2
    assert notes == ["the Ray cluster is busy: continuing with at most 2 workers"]


def test_busy_cluster_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert float(os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]) * 3 <= 50  # the controller's start
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "0.5")
    message = rf"no room for {CPUS} workers: other work keeps 1 of {CPUS} CPUs of the Ray cluster busy"
    with other_work(cpus=1), pytest.raises(ValueError, match=message):
        train_on_ray(job(tmp_path), workers=CPUS)


def test_run_waits_for_a_replacement_node(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = iter([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 4.0}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(clusters))
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    notes: list[str] = []
    assert wait_for_room(3, 3, "cpu", notes.append) == 3
    assert notes == ["the Ray cluster has lost a node: waiting up to 600 seconds for another"]


def test_missing_replacement_node_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_runtime_module, "NODE_SECONDS", 0)
    with pytest.raises(ValueError, match=r"^3 workers need as many CPUs, and the Ray cluster has 2: ask"):
        wait_for_room(3, 3, "cpu", lambda note: None)


def test_find_interface() -> None:
    assert find_interface("127.0.0.1") == "lo"


def test_signal_during_ray_start_is_raised_after_shutdown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With any handlers that Ray has installed meanwhile; otherwise its processes would be left behind."""
    told: list[str] = []

    def start(**options: Any) -> None:
        told.append("starts")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.3)
        told.append("has started")

    class Cancel(BaseException):
        pass

    def cancel(number: int, frame: Any) -> None:
        raise Cancel

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: told.append("has ended"))
    coordinator = (
        "lexloom.training.ray.runtime.default_autoscaling_coordinator.get_or_create_autoscaling_coordinator"
    )
    monkeypatch.setattr(coordinator, lambda: None)
    before = signal.signal(signal.SIGTERM, cancel)
    try:
        with pytest.raises(Cancel), ray_runtime(workers=2, address=None, verbose=False):
            told.append("is used")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == ["starts", "has started", "has ended"]


def test_more_workers_than_cpus_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{CPUS + 1} workers need as many CPUs, .* has {CPUS}"):
        train_on_ray(job(tmp_path), workers=CPUS + 1)
    with pytest.raises(ValueError, match=rf"{CPUS + 1} workers need as many CPUs"):
        train_on_ray(job(tmp_path), workers=(CPUS + 1, CPUS + 2))


@pytest.mark.parametrize("workers", [0, (0, 2), (3, 2)])
def test_invalid_numbers_of_workers_are_rejected(tmp_path: Path, workers: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^workers is .*: the minimum must be at least 1"):
        train_on_ray(job(tmp_path), workers=workers)


def test_started_runtime_is_described(started: list[str]) -> None:
    assert started == [f"Ray: started on this machine, with {CPUS} CPUs"]


STARTING = """
from lexloom.training.ray.runtime import ray_runtime
with ray_runtime(1, None, False, on_note=print):
    pass
"""


def test_ray_address_is_ignored_without_an_address(tmp_path: Path) -> None:
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


def test_joined_cluster_is_described(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    run = subprocess.run([sys.executable, "-c", JOINING, address], capture_output=True, text=True, check=True)
    assert run.stdout == f"Ray: joined the cluster at {address}, with {CPUS} CPUs on 1 node\n"


def died() -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: ...", ActorDiedError())


GLOO = "[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5003"


@pytest.mark.parametrize(
    ("failures", "sentence"),
    [
        ({0: RuntimeError(GLOO), 1: died()}, "training worker 1 was lost (its process ended)"),
        ({1: ActorDiedError()}, "training worker 1 was lost (its process ended)"),
        (
            {1: RuntimeError(GLOO), 0: RuntimeError(GLOO)},
            "training worker 0 failed (Connection closed by peer [127.0.0.1]:5003)",
        ),
        ({0: RuntimeError()}, "training worker 0 failed (RuntimeError)"),
    ],
)
def test_lost_worker_is_described(failures: dict[int, Exception], sentence: str) -> None:
    failure = WorkerGroupError("a long story", failures)
    assert find_training_error(failure) is None
    assert describe_loss(failure) == sentence


def test_training_error_takes_precedence_over_lost_workers() -> None:
    cause = KeyError("loss")
    assert (
        find_training_error(WorkerGroupError("a story", {0: RuntimeError(GLOO), 1: died(), 2: cause}))
        is cause
    )


def test_runtime_error_counts_only_if_no_worker_died() -> None:
    own = RuntimeError("CUDA out of memory")
    assert find_runtime_error(WorkerGroupError("a story", {0: own})) is own
    assert find_runtime_error(WorkerGroupError("a story", {0: own, 1: died()})) is None
    assert find_runtime_error(ControllerError(WorkerGroupStartupTimeoutError(2))) is None


def test_repeated_error_is_raised_with_the_workers_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shapes do not fit") as raised:
        train_on_ray(job(tmp_path, Misshapen), workers=1)
    assert "on training worker 0:" in "".join(raised.value.__notes__)


def test_startup_errors_are_permanent_or_transient() -> None:
    assert find_training_error(ControllerError(WorkerGroupStartupTimeoutError(2))) is None
    failure = ControllerError(WorkerGroupStartupFailedError("a worker died"))
    assert find_training_error(failure) is None
    assert describe_loss(failure) == "a training worker was lost while it started"
    error = find_training_error(
        ControllerError(RuntimeError("a trace\nModuleNotFoundError: No module named 'models'"))
    )
    sentence = "the training workers could not be started: ModuleNotFoundError: No module named 'models'"
    assert str(error) == sentence
