"""A package with a fifth model family, installed as a user would install it: by a distribution of its own."""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from lexloom.flows.registry import flows
from lexloom.models.registry import families

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
ENTRY_POINTS = """\
[lexloom.flows]
lstm-lm = lexloom_lstm.lstm_lm

[lexloom.models]
lstm_lm = lexloom_lstm.model
"""


class Installed(NamedTuple):
    """The environment of processes that see the package, and the folders that it adds to Python's path."""

    environment: dict[str, str]
    path: list[str]


@pytest.fixture(scope="module")
def package(prefect_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(HERE / "lexloom_lstm", site / "lexloom_lstm")
    info = site / "lexloom_lstm-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lexloom-lstm\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    home = tmp_path_factory.mktemp("home")
    shutil.copy(prefect_database, home)
    search = os.pathsep.join([str(ROOT), str(site)])
    return Installed({**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": search}, [str(site)])


@pytest.fixture
def installed(package: Installed, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process sees the package, too."""
    for folder in package.path:
        monkeypatch.syspath_prepend(folder)
    flows.cache_clear()
    families.cache_clear()
    yield
    flows.cache_clear()
    families.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lexloom_lstm"]:
        del sys.modules[name]
