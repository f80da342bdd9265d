"""Ray's token, which lets whoever has it run code as this user, is readable by this user alone."""

import stat
from pathlib import Path

import pytest

from lexloom.training.ray.token import protect_token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray keeps it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_token_is_made_before_ray_makes_one_that_others_can_read(token: Path) -> None:
    protect_token({})
    assert mode(token) == 0o600
    assert mode(token.parent) == 0o700
    assert len(token.read_text()) == 64
    first = token.read_text()
    protect_token({})
    assert token.read_text() == first


def test_one_that_others_can_read_is_closed_and_kept(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("made by Ray")
    token.chmod(0o644)
    protect_token({})
    assert mode(token) == 0o600
    assert token.read_text() == "made by Ray"


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_of_the_users_own_is_left_alone(token: Path, name: str) -> None:
    protect_token({name: "given"})
    assert not token.exists()


def test_without_a_writable_home_the_token_is_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    environment: dict[str, str] = {}
    protect_token(environment)
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
