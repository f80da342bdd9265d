"""Ray's token, with which anyone can run code as this user, is only readable by this user."""

import stat
from pathlib import Path

import pytest

from lexloom.training.ray.token import protect_token


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of Ray's token."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".ray" / "auth_token"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_token_is_created_with_private_permissions(token: Path) -> None:
    protect_token({})
    assert mode(token) == 0o600
    assert mode(token.parent) == 0o700
    assert len(token.read_text()) == 64
    first = token.read_text()
    protect_token({})
    assert token.read_text() == first


def test_readable_token_gets_private_permissions(token: Path) -> None:
    token.parent.mkdir()
    token.write_text("made by Ray")
    token.chmod(0o644)
    protect_token({})
    assert mode(token) == 0o600
    assert token.read_text() == "made by Ray"


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_configured_token_is_not_changed(token: Path, name: str) -> None:
    protect_token({name: "given"})
    assert not token.exists()


def test_unwritable_home_uses_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    environment: dict[str, str] = {}
    protect_token(environment)
    assert len(environment["RAY_AUTH_TOKEN"]) == 64
