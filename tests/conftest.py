"""What all tests share: a store of their own, and a way to run a stage's plain function."""

import os

if named := [name for name in os.environ if name.startswith("PREFECT_")]:
    for name in named:  # a server or a database that a shell names is not for tests
        del os.environ[name]
os.environ.update(
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DO_NOT_TRACK="1",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_DISABLE_TELEMETRY="1",
)
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks just once, when a test or a library imports it first

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from prefect.testing.utilities import prefect_test_harness

from lexloom.tasks.store.artifacts import Artifact, Store
from lexloom.tasks.store.stage import Stage
from tests.needs import is_installed, missing

SERVER_START_SECONDS = 120


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*programs): skipped without them, and failed where CI=true")


@pytest.hookimpl(tryfirst=True)  # before the fixtures
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if not is_installed(program):
                missing(f"{program} is not installed")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """The test's own store; nothing is written outside the test's folder."""
    monkeypatch.setenv("LEXLOOM_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PREFECT_RESULTS_LOCAL_STORAGE_PATH", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return Store()


@pytest.fixture
def build(store: Store) -> Callable[..., Artifact]:
    """Runs a stage's plain function, without Prefect, and hands back what it made as an artifact."""

    def run(stage: Stage, *inputs: Any, config: Any, **extra: Any) -> Artifact:
        key = stage.key(inputs, config)
        out = store.folder(stage.name, key)
        out.mkdir(parents=True)
        summary = stage.function(*inputs, config, out, **extra)
        return Artifact(stage=stage.name, key=key, folder=out, summary=summary)

    return run


@pytest.fixture(scope="session")
def prefect_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's database with all its tables and no records; to make it takes a server most of its start."""
    home = tmp_path_factory.mktemp("prefect")
    command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
    subprocess.run(command, env={**os.environ, "PREFECT_HOME": str(home)}, check=True)
    return home / "prefect.db"


@pytest.fixture
def prefect_home(prefect_database: Path, tmp_path: Path) -> Path:
    """The PREFECT_HOME of processes that the test starts."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copy(prefect_database, home)
    return home


@pytest.fixture(scope="module")
def prefect_server(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A server of the module's own, on which its flows run."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(prefect_database, folder / "prefect-test.db")
    with (
        patch("prefect.testing.utilities.mkdtemp", return_value=str(folder)),
        prefect_test_harness(server_startup_timeout=SERVER_START_SECONDS),
    ):
        yield
