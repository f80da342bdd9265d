"""Trains a small job on a Ray cluster: what test_cluster.py runs on the cluster's head, as a user would.

python -m tests.system.training.ray.cluster_driver FOLDER ADDRESS KIND LEAST MOST
"""

import os
import sys
import time
from functools import partial
from pathlib import Path

from lexloom.training.job import Job
from lexloom.training.ray import trainer as ray_trainer
from lexloom.training.sync.config import SyncConfig
from lexloom.training.trainable import Batch
from tests.training.toy import classifier, grid_job, points_job

HOLD = 12  # steps, of which the checkpoints keep ten
POLL_SECONDS = 0.05


class Steps:
    """`Job.on_batch`: each worker process records its steps in a file named by its rank and pid.

    After `HOLD` steps it waits until the test has disturbed the cluster, so that the result does not depend
    on timing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._over = folder / "steps", folder / "over"
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, epoch: int, step: int, worker: int, batch: Batch) -> None:
        path = self.folder / f"{worker}-{os.getpid()}"
        with path.open("a") as file:
            file.write(".")
        while path.stat().st_size >= HOLD and not self._over.exists():
            time.sleep(POLL_SECONDS)

    def go_on(self) -> None:
        self._over.touch()

    def pids(self) -> dict[int, int]:
        """rank -> pid of the newest process that has reached the hold."""
        files = sorted(self.folder.iterdir(), key=lambda path: path.stat().st_mtime)
        ranks = [tuple(map(int, path.name.split("-"))) for path in files if path.stat().st_size >= HOLD]
        return dict(ranks)


def points(folder: Path) -> Job:
    """60 steps of Adam with gradients summed over workers in every step."""
    sync = SyncConfig("all_reduce")
    make = partial(classifier, 0.1)
    return points_job(folder, make, epochs=6, sync=sync, checkpoint_every=5, on_batch=Steps(folder))


def pieces(folder: Path) -> Job:
    """A partitioned model, whose result does not depend on the number of workers."""
    return grid_job(folder, epochs=6, checkpoint_every=5, on_batch=Steps(folder))


JOBS = {"points": points, "pieces": pieces}


def main() -> None:
    folder, address, kind, least, most = sys.argv[1:]
    ray_trainer.RESIZE_SECONDS = 3
    ray_trainer.train_on_ray(
        JOBS[kind](Path(folder)),
        workers=(int(least), int(most)),
        address=address,
        on_note=lambda note: print("note:", note, flush=True),
    )


if __name__ == "__main__":
    main()
