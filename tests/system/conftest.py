"""Fixtures of the system tests."""

from collections.abc import Iterator

import pytest

from tests.training.ray.runtime import local_runtime


@pytest.fixture(scope="session")
def local_ray() -> Iterator[list[str]]:
    """A Ray runtime that all tests of this process share, and the notes on its start."""
    with local_runtime() as notes:
        yield notes
