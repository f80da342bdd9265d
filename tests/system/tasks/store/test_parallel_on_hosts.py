"""Test of parallel pieces on three hosts, one of which dies while it runs a piece.

The driver, which runs on the cluster's head:
python -m tests.system.tasks.store.test_parallel_on_hosts FOLDER ADDRESS
"""

import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from functools import partial
from pathlib import Path

import pytest

from lexloom.tasks.store.parallel import fan_out, use_cluster
from tests.system.harness.hosts import hosts

HOSTS, PIECES = 3, 9
WAIT_SECONDS = 300
OVER = "over"


def square(folder: Path, piece: int) -> int:
    """Record the process that runs the piece, and wait for the test's signal."""
    (folder / f"{piece}-{os.getpid()}").touch()
    while not (folder / OVER).exists():
        time.sleep(0.05)
    return piece**2


def main(folder: Path, address: str) -> None:
    with use_cluster(address), fan_out(partial(square, folder), range(PIECES)) as found:
        print(json.dumps(list(found)))


def at_work(folder: Path) -> dict[int, set[int]]:
    """Return piece -> pids of the processes that started it."""
    found = defaultdict(set)
    for path in folder.glob("*-*"):
        piece, pid = map(int, path.name.split("-"))
        found[piece].add(pid)
    return found


@pytest.mark.timeout(3 * WAIT_SECONDS)
def test_a_piece_whose_host_dies_is_worked_on_again_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.system.tasks.store.test_parallel_on_hosts", str(tmp_path)]
    with hosts(HOSTS) as cluster, (tmp_path / "said").open("w") as log:
        driver = cluster.start([*command, cluster.address], stdout=subprocess.PIPE, stderr=log)
        end = time.monotonic() + WAIT_SECONDS
        while len(begun := at_work(tmp_path)) < HOSTS:
            assert driver.poll() is None, (tmp_path / "said").read_text()
            assert time.monotonic() < end, (tmp_path / "said").read_text()
            time.sleep(0.1)
        places = {piece: cluster.of(pid) for piece, (pid,) in begun.items()}
        assert len({node.number for node in places.values()}) == HOSTS
        lost = next(piece for piece, node in places.items() if node is not cluster.nodes[0])
        cluster.kill(places[lost])
        (tmp_path / OVER).touch()
        said, _ = driver.communicate(timeout=WAIT_SECONDS)
    assert json.loads(said) == [piece**2 for piece in range(PIECES)]
    assert {piece for piece, pids in at_work(tmp_path).items() if len(pids) > 1} == {lost}


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
