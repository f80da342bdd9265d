"""A Ray runtime on this machine for tests: it takes seconds to start, so many tests share one."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from lexloom.training.ray.runtime import ray_runtime

CPUS = 3


@contextmanager
def local_runtime() -> Iterator[list[str]]:
    """Yields the notes on its start."""
    notes: list[str] = []
    with patch("os.cpu_count", return_value=2), ray_runtime(CPUS, None, verbose=False, on_note=notes.append):
        yield notes
