"""Fixtures of both tiers: a store for each test, one Prefect server for each process."""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts its background jobs so
    signal.signal(signal.SIGINT, signal.default_int_handler)
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
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)
from prefect.settings.legacy import Setting

from lexloom.tasks.store.artifacts import Artifact, Store
from lexloom.tasks.store.stage import Stage
from tests.needs import is_installed, missing

SERVER_START_SECONDS = 120
SYSTEM = Path(__file__).parent / "system"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the system tests, unless the command names their folder or something in it."""
    named = [Path(config.invocation_params.dir, each.partition("::")[0]).resolve() for each in config.args]
    is_named = any(path.is_relative_to(SYSTEM) for path in named)
    return True if collection_path == SYSTEM and not is_named else None


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


@pytest.fixture(scope="session")
def prefect_process(
    prefect_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Setting, Any]]:
    """The settings with which flows run on a Prefect server that all tests of this process share.

    Each start takes seconds. Outside of `prefect_server` these settings do not apply.
    """
    database = tmp_path_factory.mktemp("server") / "prefect.db"
    shutil.copy(prefect_database, database)
    connection: dict[Setting, Any] = {
        PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{database}"
    }
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = SubprocessASGIServer(port)
    with temporary_settings(connection):
        server.start(timeout=SERVER_START_SECONDS)
    yield {**connection, PREFECT_API_URL: server.api_url}
    server.stop()


@pytest.fixture(scope="module")
def prefect_server(prefect_process: dict[Setting, Any]) -> Iterator[None]:
    """The module's flows run on the shared server, which may have records of other tests."""
    with temporary_settings(prefect_process):
        yield
        # what background threads still have to send, while their server is known
        APILogWorker.instance().drain()
        EventsWorker.drain_all()
