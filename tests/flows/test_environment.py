"""Tests of the folders that are used if the home directory is not writable."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from lexloom.flows import environment
from lexloom.flows.environment import is_writable, move_from_unwritable_home, private_folder

VARIABLES = ("PREFECT_HOME", "NUMBA_CACHE_DIR")


@pytest.fixture(autouse=True)
def places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Set a home that even root cannot write to, and a folder for temporary files."""
    monkeypatch.setenv("HOME", "/dev/null")
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_prefects_records_move_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    move_from_unwritable_home()
    assert Path(os.environ["PREFECT_HOME"]).parent == tmp_path / f"lexloom-{os.getuid()}"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: /dev/null is not writable, so run records are stored in ")


def test_compiled_code_moves_only_if_it_cannot_stay_beside_the_source(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    move_from_unwritable_home()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setattr(environment, "package_folder", lambda: Path("/dev/null/site-packages/models"))
    move_from_unwritable_home()
    assert "NUMBA_CACHE_DIR" in os.environ


def test_user_folders_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "/chosen")
    move_from_unwritable_home()
    assert {os.environ[name] for name in VARIABLES} == {"/chosen"}


def test_a_writable_home_keeps_everything(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "to" / "be" / "made"))
    move_from_unwritable_home()
    assert not {name for name in VARIABLES if name in os.environ}


@pytest.mark.parametrize(
    ("place", "expected"),
    [("{}", True), ("{}/a/b", True), ("{}/file", False), ("{}/file/a", False), ("/dev/null/a", False)],
)
def test_a_folder_is_writable_if_it_could_be_made(tmp_path: Path, place: str, expected: bool) -> None:
    (tmp_path / "file").touch()
    assert is_writable(Path(place.format(tmp_path))) is expected


def test_the_temporary_folder_is_private_and_the_same_for_each_command(tmp_path: Path) -> None:
    first = private_folder()
    assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert private_folder() == first


def test_a_folder_of_another_user_is_not_used(tmp_path: Path) -> None:
    theirs = tmp_path / f"lexloom-{os.getuid()}"
    theirs.symlink_to(tmp_path)
    assert private_folder() != theirs
    theirs.unlink()
    theirs.mkdir()
    theirs.chmod(0o777)
    assert private_folder() != theirs
