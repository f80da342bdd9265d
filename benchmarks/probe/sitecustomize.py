"""Log when the processes of a command reach certain places; benchmarks/overhead.py puts this on PYTHONPATH.

Python imports this module at startup. It writes lines `seconds since the epoch, place` to MOMENTS/PID.txt:
the creation of the process, and the start and end of each import and call listed in PLACES.
"""

import functools
import importlib.abc
import importlib.util
import os
import sys
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

PLACES = {
    "lexloom.flows.word2vec": [],
    "prefect.server.api.server": ["SubprocessASGIServer.start"],
    "lexloom.tasks.store.stage": ["Stage.__call__"],
    "ray": ["init"],
    "lexloom.training.ray.trainer": ["fit", "run_worker", "join_group"],
    "ray.train.v2._internal.execution.controller.controller": ["TrainController.__init__"],
    "ray.train.v2._internal.execution.worker_group.worker_group": ["WorkerGroup._create_workers"],
    "ray.train.v2._internal.execution.worker_group.worker": ["RayTrainWorker.run_train_fn"],
    "lexloom.training.loop": ["Training.__init__", "Training.run", "Training._step"],
    "lexloom.models.word2vec.trainable": ["Word2Vec.prepare"],
}


def note(place: str, seconds: float | None = None) -> None:
    with (Path(os.environ["MOMENTS"]) / f"{os.getpid()}.txt").open("a") as file:
        file.write(f"{seconds or time.time():.3f} {place}\n")


def created() -> float:
    """Return the creation time of this process, in seconds since the epoch."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


def watch(module: ModuleType, path: str) -> None:
    """Log the start and end of each call of a function or method."""
    *owners, name = path.split(".")
    owner = functools.reduce(getattr, owners, module)
    call = getattr(owner, name)

    @functools.wraps(call)
    def watched(*arguments: Any, **options: Any) -> Any:
        note(f"> {path}")
        try:
            return call(*arguments, **options)
        finally:
            note(f"< {path}")

    setattr(owner, name, watched)


class Watcher(importlib.abc.MetaPathFinder):
    """Finds the modules of PLACES with the other finders, and instruments them."""

    def __init__(self) -> None:
        self.looking = False

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name not in PLACES or self.looking:
            return None
        self.looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.looking = False
        if spec is None or spec.loader is None:
            return spec
        load = spec.loader.exec_module

        def watched(module: ModuleType) -> None:
            note(f"> import {name}")
            load(module)
            note(f"< import {name}")
            for place in PLACES[name]:
                watch(module, place)

        spec.loader.exec_module = watched  # type: ignore[method-assign]
        return spec


if "MOMENTS" in os.environ:
    note(f"process {' '.join(sys.orig_argv)}", created())
    sys.meta_path.insert(0, Watcher())
