"""The loop on Ray Train workers: the same result as without Ray, and errors that a person can read."""

import os
import signal
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from tests.training.test_loop import result, untimed
from tests.training.toy import Counter, job, on_processes, train_on
from training.loop import Progress
from training.ray_trainer import ray_runtime, train_on_ray


@pytest.fixture(scope="module", autouse=True)
def one_runtime() -> Iterator[None]:
    """One Ray runtime for the module: starting one takes seconds."""
    with ray_runtime(workers=2, address=None, verbose=False):
        yield


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


def test_two_ray_workers_make_what_two_processes_make_and_tell_how_it_goes(tmp_path: Path) -> None:
    on_ray, plain = job(tmp_path / "ray", epochs=40), job(tmp_path / "plain", epochs=40)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    points: list[Progress] = []
    train_on_ray(on_ray, workers=2, on_progress=points.append)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    on_processes(2, train_on, plain)
    assert torch.equal(result(on_ray).tensors["table"], result(plain).tensors["table"])
    assert untimed(result(on_ray).state["history"]) == untimed(result(plain).state["history"])
    assert points
    assert points[-1].total_examples == 40 * 600


def test_a_killed_worker_is_replaced_and_the_result_is_the_same(tmp_path: Path) -> None:
    killed = job(tmp_path / "killed", partial(KilledOnce, tmp_path / "mark"))
    train_on_ray(killed, workers=2)
    assert (tmp_path / "mark").exists()
    undisturbed = job(tmp_path / "undisturbed")
    on_processes(2, train_on, undisturbed)
    assert torch.equal(result(killed).tensors["table"], result(undisturbed).tensors["table"])


def test_a_workers_own_error_reaches_the_user_once_and_as_it_was_meant(tmp_path: Path) -> None:
    broken = job(tmp_path, partial(Counter, break_at=0.5))
    with pytest.raises(FloatingPointError, match=r"^the loss is nan at step 11"):
        train_on_ray(broken, workers=2)


def test_more_workers_than_cpus_are_refused(tmp_path: Path) -> None:
    cpus = int(ray.cluster_resources()["CPU"])
    with pytest.raises(ValueError, match=rf"{cpus + 1} workers need as many CPUs, .* has {cpus}"):
        train_on_ray(job(tmp_path), workers=cpus + 1)


def test_the_progress_of_a_run_is_not_mixed_with_an_older_ones(tmp_path: Path) -> None:
    plan: Any = job(tmp_path)
    (tmp_path / "progress.json").write_text("left by a run that was killed")
    train_on_ray(plan, workers=1)
    assert result(plan).state["examples"] == 1200
