"""Training on a cluster of three hosts: one is killed, one is cut off, one comes late.

The hosts are network namespaces on this machine, with addresses of their own, or, where those are not
allowed, Ray nodes on one address (tests/system/harness/hosts.py); a line before the first test says which.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lexloom.training.loop import train
from tests.needs import in_ci, is_installed, missing
from tests.system.harness.hosts import Cluster, Node, hosts, namespaces_allowed
from tests.system.training.ray.cluster_driver import Steps, pieces, points
from tests.training.test_loop import result
from tests.training.toy import on_processes, train_on

HOSTS = 3
WAIT_SECONDS = 300

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def started(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if in_ci() and not is_installed("ip"):
        missing("ip is not installed")
    kind = "network namespaces" if namespaces_allowed() else "Ray nodes on one address"
    request.config.get_terminal_writer().line(f"{HOSTS} hosts: {kind}")
    with hosts(HOSTS) as cluster:
        yield cluster


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """Three running hosts, restored after the previous test."""
    for node in [started.launch() for _ in range(HOSTS - len(started.alive()))]:
        started.await_start(node)
    return started


class Driver:
    """A run on the cluster's head, and its output."""

    def __init__(self, cluster: Cluster, folder: Path, kind: str, least: int, most: int) -> None:
        self.steps = Steps(folder)
        self.log = folder / "said"
        module = [sys.executable, "-m", "tests.system.training.ray.cluster_driver"]
        command = [*module, str(folder), cluster.address, kind, str(least), str(most)]
        with self.log.open("w") as log:
            self.process = cluster.start(command, stdout=log, stderr=subprocess.STDOUT)

    def said(self) -> str:
        return self.log.read_text()

    def await_steps(self, workers: int) -> dict[int, int]:
        """rank -> pid, once `workers` workers are held."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(pids := self.steps.pids()) < workers:
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)
        return pids

    def finish(self) -> None:
        self.steps.go_on()
        assert self.process.wait(WAIT_SECONDS) == 0, self.said()


def a_host_at_work(cluster: Cluster, pids: dict[int, int]) -> Node:
    """A host with a worker that is not the head."""
    return next(node for node in map(cluster.of, pids.values()) if node is not cluster.nodes[0])


def assert_as_undisturbed(folder: Path, workers: int) -> None:
    """The weights equal, bit for bit, those of as many undisturbed processes without Ray."""
    plain = points(folder / "plain")
    Steps(folder / "plain").go_on()
    on_processes(workers, train_on, plain)
    ours, theirs = result(points(folder)).tensors, result(plain).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_killed_host_is_replaced(cluster: Cluster, tmp_path: Path) -> None:
    run = Driver(cluster, tmp_path, "points", HOSTS, HOSTS)
    lost = a_host_at_work(cluster, run.await_steps(HOSTS))
    cluster.kill(lost)
    cluster.launch()
    run.finish()
    assert "with 3 CPUs on 3 nodes" in run.said()
    assert "; resuming from step " in run.said()
    assert_as_undisturbed(tmp_path, HOSTS)


def test_disconnected_host_is_dropped(cluster: Cluster, tmp_path: Path) -> None:
    run = Driver(cluster, tmp_path, "points", 2, 2)
    lost = a_host_at_work(cluster, run.await_steps(2))
    cluster.cut_off(lost)
    run.finish()
    assert "; resuming from step " in run.said()
    assert_as_undisturbed(tmp_path, 2)


def test_new_host_is_used(cluster: Cluster, tmp_path: Path) -> None:
    cluster.kill(cluster.alive()[-1])
    run = Driver(cluster, tmp_path, "pieces", 1, HOSTS)
    run.await_steps(2)
    cluster.launch()
    run.await_steps(3)
    run.finish()
    plain = pieces(tmp_path / "plain")
    Steps(tmp_path / "plain").go_on()
    train(plain)
    ours, theirs = result(pieces(tmp_path)).tensors, result(plain).tensors
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
