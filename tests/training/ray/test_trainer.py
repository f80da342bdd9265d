"""The loop on two Ray workers: the same result as without Ray; and what is raised when Ray fails."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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

from lexloom.training.progress import Progress
from lexloom.training.ray import runtime as ray_runtime_module
from lexloom.training.ray.failures import describe_loss, find_runtime_error, find_training_error
from lexloom.training.ray.runtime import ray_runtime, wait_for_room
from lexloom.training.ray.trainer import find_interface, train_on_ray
from tests.training.ray.runtime import CPUS, local_runtime
from tests.training.test_loop import result, untimed
from tests.training.toy import job, on_processes, train_on


@pytest.fixture(scope="module")
def local_ray() -> Iterator[list[str]]:
    """The only Ray runtime of the fast tests, and the notes on its start."""
    with local_runtime() as notes:
        yield notes


def test_two_ray_workers_make_what_two_processes_make_and_tell_how_it_goes(
    tmp_path: Path, local_ray: list[str]
) -> None:
    on_ray, plain = (job(tmp_path / place, epochs=40, checkpoint_every=100) for place in ("ray", "processes"))
    on_processes(2, train_on, plain)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    (tmp_path / "ray" / "progress.json").write_text("left by a run that was killed")
    points: list[Progress] = []
    train_on_ray(on_ray, workers=2, on_progress=points.append)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert torch.equal(result(on_ray).tensors["table"], result(plain).tensors["table"])
    assert untimed(result(on_ray).state["history"]) == untimed(result(plain).state["history"])
    assert points[-1].total_examples == 40 * 600
    assert points[-1].workers == 2


def test_a_run_waits_for_a_node_in_the_place_of_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = iter([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 4.0}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(clusters))
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    notes: list[str] = []
    assert wait_for_room(3, 3, "cpu", notes.append) == 3
    assert notes == ["the Ray cluster has lost a node: waiting up to 600 seconds for a new one"]


def test_missing_replacement_node_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray_runtime_module, "NODE_SECONDS", 0)
    with pytest.raises(ValueError, match=r"^3 workers need one CPU each, but the Ray cluster has 2"):
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


def test_more_workers_than_cpus_are_refused_at_once(tmp_path: Path, local_ray: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"{CPUS + 1} workers need one CPU each, .* has {CPUS}"):
        train_on_ray(job(tmp_path), workers=CPUS + 1)
    with pytest.raises(ValueError, match=rf"{CPUS + 1} workers need one CPU each"):
        train_on_ray(job(tmp_path), workers=(CPUS + 1, CPUS + 2))


@pytest.mark.parametrize("workers", [0, (0, 2), (3, 2)])
def test_invalid_numbers_of_workers_are_rejected(tmp_path: Path, workers: int | tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^workers is .*: the minimum must be at least 1"):
        train_on_ray(job(tmp_path), workers=workers)


def test_the_runtime_says_which_it_is(local_ray: list[str]) -> None:
    assert local_ray == [f"Ray: started on this machine, with {CPUS} CPUs"]


def died() -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: ...", ActorDiedError())


GLOO = (
    "[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5003. This is typically"
    " caused by a remote worker crashing. Check the logs of the remote worker before reporting an error."
)


@pytest.mark.parametrize(
    ("failures", "sentence"),
    [
        ({0: RuntimeError(GLOO), 1: died()}, "training worker 1 was lost (its process exited)"),
        ({1: ActorDiedError()}, "training worker 1 was lost (its process exited)"),
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


def test_what_stops_a_start_for_good_is_told_from_what_may_pass() -> None:
    assert find_training_error(ControllerError(WorkerGroupStartupTimeoutError(2))) is None
    failure = ControllerError(WorkerGroupStartupFailedError("a worker died"))
    assert find_training_error(failure) is None
    assert describe_loss(failure) == "a training worker was lost while it started"
    error = find_training_error(
        ControllerError(RuntimeError("a trace\nModuleNotFoundError: No module named 'models'"))
    )
    sentence = "the training workers could not be started: ModuleNotFoundError: No module named 'models'"
    assert str(error) == sentence
