"""A store of four models, shared by the whole session because tests only read it."""

import pytest

from lexloom.tasks.store.artifacts import Store
from tests.deployments.store import fill


@pytest.fixture(scope="session")
def filled_and_names(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, dict[str, str]]:
    store = Store(tmp_path_factory.mktemp("store"))
    return store, fill(store)


@pytest.fixture
def filled(filled_and_names: tuple[Store, dict[str, str]]) -> Store:
    """A store with a model of each kind."""
    return filled_and_names[0]


@pytest.fixture
def names(filled_and_names: tuple[Store, dict[str, str]]) -> dict[str, str]:
    """The names of the models, by kind."""
    return filled_and_names[1]
