"""What all tests share: a store of their own, and a way to run a stage's plain function."""

import os

os.environ.update(
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    DO_NOT_TRACK="1",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_DISABLE_TELEMETRY="1",
)
if not os.path.exists("/dev/nvidiactl"):
    os.environ["TRITON_INTERPRET"] = "1"  # Triton looks just once, when a test or a library imports it first

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.artifacts import Artifact, Store
from tasks.stage import Stage
from tests.needs import is_installed, missing


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
