"""The server that a command starts before it imports Prefect."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from lexloom.flows.local_server.early import EarlyServer, needs_temporary_server, start_early


@pytest.fixture
def home(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "home").mkdir()
    return {"PREFECT_HOME": str(tmp_path / "home")}


def test_without_settings_a_temporary_server_is_needed(tmp_path: Path, home: dict[str, str]) -> None:
    assert needs_temporary_server(home, tmp_path)
    assert needs_temporary_server({**home, "PREFECT_LOGGING_LEVEL": "INFO"}, tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    assert needs_temporary_server(home, tmp_path)


@pytest.mark.parametrize(
    "name",
    ["PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "PREFECT_PROFILES_PATH"],
)
def test_a_variable_that_may_name_a_server_is_left_to_prefect(
    tmp_path: Path, home: dict[str, str], name: str
) -> None:
    assert not needs_temporary_server({**home, name: "x"}, tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("home/profiles.toml", ""),
        ("prefect.toml", ""),
        (".env", ""),
        ("pyproject.toml", "[tool.prefect.api]\nurl = 'http://server/api'\n"),
        ("pyproject.toml", "not TOML"),
    ],
)
def test_a_file_that_may_name_a_server_is_left_to_prefect(
    tmp_path: Path, home: dict[str, str], name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    assert not needs_temporary_server(home, tmp_path)


def test_no_server_is_started_once_prefect_has_read_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.flows.local_server.early.EarlyServer", pytest.fail)
    start_early()  # the tests have imported Prefect


def test_a_server_that_ends_while_it_starts_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lexloom.flows.local_server.early.PROGRAM", "no_such_module")
    with pytest.raises(
        RuntimeError, match=r"^Prefect's temporary server exited with status 1 while it started"
    ):
        EarlyServer().wait()


def test_the_server_answers_at_its_url_and_stops(
    tmp_path: Path, prefect_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{prefect_database}")
    server = EarlyServer()
    server.wait()
    assert httpx.get(f"{server.url}/health").is_success
    assert httpx.get(f"{server.url}/health", headers={"Host": "attacker.example"}).status_code == 403
    server.stop()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_first_line_comes_before_prefect_and_torch_are_imported() -> None:
    code = """if True:
        import sys
        from lexloom.flows import command
        from lexloom.flows.local_server import early
        early.start_early = lambda: None
        command.begin("word2vec", ["word2vec", "--store", "elsewhere", "--epochs", "1"])
        assert not {"prefect", "torch", "ray", "numba", "pyarrow"} & sys.modules.keys()
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}
    )
    assert (done.returncode, done.stderr.strip()) == (0, "lexloom word2vec · store elsewhere")


def test_help_prints_no_first_line(capsys: pytest.CaptureFixture[str]) -> None:
    from lexloom.flows.command import begin

    begin("word2vec", ["word2vec", "--help"])
    assert capsys.readouterr().err == ""
