"""Tests of pipes, sockets and devices in a store: no command blocks, and each is reported."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from lexloom.deployments.cli.main import main
from lexloom.tasks.sources.fingerprints import CACHE_FILE
from lexloom.tasks.sources.source import find_source
from lexloom.tasks.store.activity import list_active_stages, list_interrupted_stages
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.file_access import digest_file, file_kind, read_regular
from lexloom.tasks.store.garbage_collection import collect_garbage
from tests.tasks.store.test_artifacts import put

SECONDS = 20


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)


def make_socket(path: Path) -> None:
    here = os.open(".", os.O_RDONLY)
    os.chdir(path.parent)  # the address of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.fchdir(here)
        os.close(here)


SPECIAL: list[tuple[Callable[[Path], object], str]] = [
    (os.mkfifo, "a named pipe"),
    (make_socket, "a socket"),
    (lambda path: path.symlink_to("/dev/zero"), "a device"),
]


@pytest.fixture(params=SPECIAL, ids=lambda special: special[1])
def special(request: pytest.FixtureRequest) -> tuple[Callable[[Path], object], str]:
    return request.param


def bounded(function: Callable[..., Any], *arguments: object) -> Any:
    """Call a function in a thread and return its result; fail if it blocks."""
    returned: list[Any] = []
    thread = Thread(target=lambda: returned.append(function(*arguments)), daemon=True)
    thread.start()
    thread.join(SECONDS)
    assert returned, "it raised, or it waits"
    return returned[0]


def test_only_regular_files_are_read(tmp_path: Path, special: tuple[Callable[[Path], object], str]) -> None:
    make, name = special
    make(tmp_path / "x")
    assert file_kind(tmp_path / "x") == name
    for read in (read_regular, digest_file):
        with pytest.raises(OSError, match=f"it is {name}, not a regular file"):
            read(tmp_path / "x")


@pytest.mark.parametrize("place", ["manifest.json", "data.txt", "stray.txt", ""])
def test_commands_report_special_files_without_blocking(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    special: tuple[Callable[[Path], object], str],
    place: str,
) -> None:
    make, name = special
    put(store, "corpus", "k0")
    put(store, "corpus", "k1")
    path = store.folder("corpus", "k1") / place
    if path.exists():
        path.rename(store.root.parent / "away")
    make(path)
    assert bounded(main, ["store", "verify"]) == 1
    said = capsys.readouterr().out.splitlines()
    what = (
        f"{place} is not listed in the manifest"
        if place == "stray.txt"
        else f"{place or 'corpus/k1'} is {name}"
    )
    assert len(said) == 2
    assert said[0].startswith(f"corpus/k1  {what}")
    assert said[1] == "1 intact, 1 damaged, 0 outdated"
    for command in (["store", "ls"], ["store", "gc", "--keep", "0"], ["status", "--runs", "0"]):
        assert bounded(main, command) == 0
    assert store.manifest("corpus", "k0") is None, "collected"


def test_a_special_file_at_a_stages_path_is_reported(
    store: Store,
    capsys: pytest.CaptureFixture[str],
    special: tuple[Callable[[Path], object], str],
) -> None:
    make, name = special
    store.root.mkdir()
    make(store.root / "corpus")
    assert bounded(main, ["store", "verify"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == f"corpus  corpus is {name}, not a folder"


def test_special_files_in_a_store_do_not_block(
    store: Store,
    tmp_path: Path,
    special: tuple[Callable[[Path], object], str],
) -> None:
    make, _ = special
    store.new_folder("train_word2vec", "k1")
    make(store.scratch("train_word2vec", "k1") / "progress.json")
    make(store.scratch("train_word2vec", "k2") / "checkpoints")
    make(store.root / ".scratch" / "pairs-k3")
    make(store.root / ".building" / "x")
    make(store.root / CACHE_FILE)
    (work,) = bounded(list_active_stages, store)
    assert work.progress is None
    assert bounded(list_interrupted_stages, store, []) == []
    assert bounded(collect_garbage, store, 0) == []
    (tmp_path / "text.txt").write_text("one")
    bounded(find_source, "text.txt")
