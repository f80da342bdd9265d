"""`lexloom status`: active stages, the latest runs in Prefect, and the size of the store."""

import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prefect import flow
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    get_current_settings,
    temporary_settings,
)

from lexloom.deployments.cli import runs
from lexloom.deployments.cli import status as status_cli
from lexloom.deployments.cli.main import main
from lexloom.deployments.cli.runs import FlowRun, ask_server, latest_runs, read_database
from lexloom.tasks.store.artifacts import Store
from tests.tasks.store.test_activity import train
from tests.tasks.store.test_artifacts import put


@pytest.fixture
def flow_runs(monkeypatch: pytest.MonkeyPatch) -> list[FlowRun]:
    """Flow runs that replace those of Prefect."""
    found: list[FlowRun] = []
    monkeypatch.setattr(runs, "latest_runs", lambda flows, limit: ("prefect.db", found[:limit]))
    return found


def make_run(state: str, message: str | None = None, ended: bool = True) -> FlowRun:
    started = datetime.now(UTC) - timedelta(seconds=90)
    end = started + timedelta(seconds=31.5) if ended else None
    return FlowRun(flow="word2vec", name="wise-owl", state=state, started=started, ended=end, message=message)


def run_status(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["status", *flags]) == 0
    return capsys.readouterr().out


def interrupted(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what is printed about interrupted stages, without the seconds, which depend on the machine."""
    return re.findall(r"interrupted \d+ s ago (.*)", run_status(capsys))


def test_a_missing_store_is_empty(capsys: pytest.CaptureFixture[str], flow_runs: list[FlowRun]) -> None:
    text = run_status(capsys)
    assert "active stages\n  none" in text
    assert "none yet" in text
    assert "0 artifacts, 0 B;" in text


def test_stages_are_counted_and_sized(
    capsys: pytest.CaptureFixture[str], store: Store, flow_runs: list[FlowRun]
) -> None:
    put(store, "corpus", "c1", "four")
    put(store, "tokens", "t1", "12345678")
    put(store, "corpus", "c2", "fourfour")
    (store.new_folder("pairs", "p1") / "half").write_text("123")
    text = run_status(capsys)
    assert [line.split()[:5] for line in text.splitlines() if line.startswith(("  corpus", "  tokens"))] == [
        ["corpus", "2", "artifacts", "12", "B"],
        ["tokens", "1", "artifact", "8", "B"],
    ]
    assert "3 artifacts, 20 B, 3 B unfinished;" in text
    assert "1 file, 3 B so far" in text
    assert f"process {os.getpid()}" in text


def test_status_shows_progress_and_where_an_interrupted_training_resumes(
    capsys: pytest.CaptureFixture[str], store: Store, flow_runs: list[FlowRun]
) -> None:
    train(store, "k1", 30)
    assert "at step 40; run the same command to resume from step 30" in interrupted(capsys)
    train(store, "k2")
    assert "run the same command to restart it" in run_status(capsys)
    train(store, "k4", 55)  # its last figures are older than its checkpoint
    assert "at step 55; run the same command to resume from step 55" in interrupted(capsys)
    (store.scratch("train_word2vec", "k5") / "checkpoints" / "step-0000000007").mkdir(parents=True)
    assert "at step 7; run the same command to resume from step 7" in interrupted(capsys)
    store.new_folder("train_word2vec", "k1")
    train(store, "k1", 35)
    line = next(line for line in run_status(capsys).splitlines() if "process" in line)
    assert "40%" in line
    assert "400k of 1M examples · epoch 2 · loss 2.500" in line


def test_runs_show_their_state_time_and_error(
    capsys: pytest.CaptureFixture[str], store: Store, flow_runs: list[FlowRun]
) -> None:
    flow_runs += [
        make_run("Completed"),
        make_run("Failed", "no text remains in a.txt"),
        make_run("Running", ended=False),
    ]
    text = run_status(capsys)
    assert "Completed       31.5 s   1 minute ago   wise-owl" in text
    assert "no text remains in a.txt" in text
    assert re.search(r"1 min 3\d s", text)  # a run that is not over takes longer while one asks
    assert "no active stage in this store" in text
    store.new_folder("pairs", "p1")
    assert "no active stage" not in run_status(capsys)
    assert run_status(capsys, "--runs", "1").count("wise-owl") == 1


def test_json_contains_the_whole_status(
    capsys: pytest.CaptureFixture[str], store: Store, flow_runs: list[FlowRun]
) -> None:
    put(store, "corpus", "c1", "four")
    train(store, "k1", 30)
    flow_runs.append(make_run("Completed"))
    found = json.loads(run_status(capsys, "--json"))
    assert found["store"] == str(store.root)
    assert found["artifacts"] == 1
    assert found["stages"][0]["bytes"] == found["bytes"] == 4
    assert found["interrupted"][0]["checkpoint"] == 30
    assert found["runs"][0]["state"] == "Completed"
    assert found["free_bytes"] > 0


def test_without_prefect_the_store_is_still_shown(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    put(store, "corpus", "c1")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        text = run_status(capsys)
    assert "the Prefect server at http://127.0.0.1:1/api does not respond" in text
    assert "1 artifact," in text
    postgres = {PREFECT_SERVER_DATABASE_CONNECTION_URL: "postgresql+asyncpg://u:secret@nowhere/prefect"}
    with temporary_settings(postgres, restore_defaults={PREFECT_API_URL}):
        text = run_status(capsys)
    assert "set PREFECT_API_URL to its server" in text
    assert "secret" not in text


def test_prefect_is_not_imported_if_no_runs_are_requested(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_cli, "import_module", None)
    assert "runs" not in run_status(capsys, "--runs", "0")


def test_a_rejected_login_is_shown_together_with_the_store(
    capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *given: object) -> None:
            """Do not log requests."""

    put(store, "corpus", "c1")
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            text = run_status(capsys)
        server.shutdown()
        thread.join()
    assert "Prefect's server rejected the login: set PREFECT_API_AUTH_STRING to its name:password" in text
    assert "1 artifact," in text


def test_a_negative_number_of_runs_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--runs", "-1"]) == 1
    assert "--runs is -1" in capsys.readouterr().err


def test_a_missing_database_has_no_runs_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_database(tmp_path / "prefect.db", ["word2vec"], 5) == []
    (tmp_path / "prefect.db").write_text("not a database, but as long as one has to be" * 50)
    with pytest.raises(OSError, match=r"Prefect's database .* can't be read"):
        read_database(tmp_path / "prefect.db", ["word2vec"], 5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s ago"), (59, "59 s ago"), (60, "1 minute ago"), (7200, "2 hours ago"), (200_000, "2 days ago")],
)
def test_elapsed_times_are_formatted(seconds: float, words: str) -> None:
    assert status_cli.ago(time.time() - seconds) == words


# with Prefect itself


def test_server_and_database_return_the_same_runs(prefect_server: None) -> None:
    @flow(name="braid", flow_run_name="well")
    def well() -> int:
        return 1

    @flow(name="braid", flow_run_name="ill")
    def ill() -> None:
        raise ValueError("no text remains")

    @flow(name="another-teams", flow_run_name="elsewhere")
    def elsewhere() -> int:
        return 1

    well()
    with pytest.raises(ValueError, match="no text remains"):
        ill()
    elsewhere()
    where, asked = latest_runs(["braid", "spin"], 5)
    assert where == str(PREFECT_API_URL.value())
    assert [(run.flow, run.name, run.state) for run in asked] == [
        ("braid", "ill", "Failed"),
        ("braid", "well", "Completed"),
    ]
    assert "no text remains" in str(asked[0].message)
    assert len(ask_server(where, ["braid"], 1)) == 1
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        file, read = latest_runs(["braid", "spin"], 5)
    assert str(get_current_settings().server.database.connection_url.get_secret_value()).endswith(file)
    assert read == asked
