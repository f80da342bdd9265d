"""The web page, served by a separate process: on the filled store, and with a slow model."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lexloom.tasks.store.artifacts import Store
from tests.deployments.store import shelve, write_transformer

Names = dict[str, str]


@contextmanager
def served(store: Path, *program: str) -> Iterator[str]:
    """Serve the page in a separate process, and yield its URL."""
    process = subprocess.Popen(
        [
            sys.executable,
            *(program or ("-m", "lexloom.deployments.web.app")),
            "--port",
            "0",
            "--store",
            str(store),
        ],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        found = re.search(r"http://\S+", said)
        assert found, said
        yield found[0]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()


@pytest.fixture(scope="module")
def url(filled_and_names: tuple[Store, Names]) -> Iterator[str]:
    with served(filled_and_names[0].root) as address:
        yield address


SLOW_SECONDS = 0.2
WRITES_SLOWLY = f"""
import sys, time
from lexloom.deployments.web import app
from lexloom.models.language_model import LanguageModel
def slowly(*arguments):
    for number in range(1000):
        time.sleep({SLOW_SECONDS})
        yield ["x"]
LanguageModel.generate = slowly
sys.exit(app.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Store]]:
    """A page on a store with one language model, which generates text for minutes; and the store."""
    growing = Store(tmp_path_factory.mktemp("growing"))
    shelve(growing, "train_transformer", "t1", write_transformer)
    with served(growing.root, "-c", WRITES_SLOWLY) as address:
        yield address, growing
