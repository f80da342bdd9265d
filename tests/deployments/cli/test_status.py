"""`lexloom status`: what is at work, the latest runs as Prefect has them, and how full the store is."""

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
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[FlowRun]:
    """The runs that Prefect is said to have."""
    found: list[FlowRun] = []
    monkeypatch.setattr(runs, "latest_runs", lambda flows, limit: ("prefect.db", found[:limit]))
    return found


def a_run(state: str, message: str | None = None, ended: bool = True) -> FlowRun:
    started = datetime.now(UTC) - timedelta(seconds=90)
    end = started + timedelta(seconds=31.5) if ended else None
    return FlowRun(flow="word2vec", name="wise-owl", state=state, started=started, ended=end, message=message)


def said(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["status", *flags]) == 0
    return capsys.readouterr().out


def test_a_store_that_is_not_there_yet_is_empty(
    capsys: pytest.CaptureFixture[str], recorded: list[FlowRun]
) -> None:
    text = said(capsys)
    assert "active stages\n  none" in text
    assert "none yet" in text
    assert "0 artifacts, 0 B;" in text


def test_stages_are_counted_and_sized(
    capsys: pytest.CaptureFixture[str], store: Store, recorded: list[FlowRun]
) -> None:
    put(store, "corpus", "c1", "four")
    put(store, "tokens", "t1", "12345678")
    put(store, "corpus", "c2", "fourfour")
    (store.new_folder("pairs", "p1") / "half").write_text("123")
    text = said(capsys)
    assert [line.split()[:5] for line in text.splitlines() if line.startswith(("  corpus", "  tokens"))] == [
        ["corpus", "2", "artifacts", "12", "B"],
        ["tokens", "1", "artifact", "8", "B"],
    ]
    assert "3 artifacts, 20 B, 3 B unfinished;" in text
    assert "1 file, 3 B so far" in text
    assert f"process {os.getpid()}" in text


def test_a_training_shows_how_far_it_is_and_one_that_was_killed_where_it_goes_on(
    capsys: pytest.CaptureFixture[str], store: Store, recorded: list[FlowRun]
) -> None:
    train(store, "k1", 30)
    assert "interrupted 0 s ago at step 40; run the same command to resume from step 30" in said(capsys)
    train(store, "k2")
    assert "run the same command to restart it" in said(capsys)
    train(store, "k4", 55)  # its last figures are older than its checkpoint
    assert "interrupted 0 s ago at step 55; run the same command to resume from step 55" in said(capsys)
    (store.scratch("train_word2vec", "k5") / "checkpoints" / "step-0000000007").mkdir(parents=True)
    assert "interrupted 0 s ago at step 7; run the same command to resume from step 7" in said(capsys)
    store.new_folder("train_word2vec", "k1")
    train(store, "k1", 35)
    line = next(line for line in said(capsys).splitlines() if "process" in line)
    assert "40%" in line
    assert "400k of 1M examples · epoch 2 · loss 2.500" in line


def test_runs_have_their_state_their_time_and_what_went_wrong(
    capsys: pytest.CaptureFixture[str], store: Store, recorded: list[FlowRun]
) -> None:
    recorded += [
        a_run("Completed"),
        a_run("Failed", "no text remains in a.txt"),
        a_run("Running", ended=False),
    ]
    text = said(capsys)
    assert "Completed       31.5 s   1 minute ago   wise-owl" in text
    assert "no text remains in a.txt" in text
    assert re.search(r"1 min 3\d s", text)  # a run that is not over takes longer while one asks
    assert "no active stage in this store" in text
    store.new_folder("pairs", "p1")
    assert "no active stage" not in said(capsys)
    assert said(capsys, "--runs", "1").count("wise-owl") == 1


def test_json_has_all_of_it(
    capsys: pytest.CaptureFixture[str], store: Store, recorded: list[FlowRun]
) -> None:
    put(store, "corpus", "c1", "four")
    train(store, "k1", 30)
    recorded.append(a_run("Completed"))
    found = json.loads(said(capsys, "--json"))
    assert found["store"] == str(store.root)
    assert found["artifacts"] == 1
    assert found["stages"][0]["bytes"] == found["bytes"] == 4
    assert found["interrupted"][0]["checkpoint"] == 30
    assert found["runs"][0]["state"] == "Completed"
    assert found["free_bytes"] > 0


def test_without_prefect_the_store_is_still_shown(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    put(store, "corpus", "c1")
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}):
        text = said(capsys)
    assert "the Prefect server at http://127.0.0.1:1/api does not respond" in text
    assert "1 artifact," in text
    postgres = {PREFECT_SERVER_DATABASE_CONNECTION_URL: "postgresql+asyncpg://u:secret@nowhere/prefect"}
    with temporary_settings(postgres, restore_defaults={PREFECT_API_URL}):
        text = said(capsys)
    assert "set PREFECT_API_URL to its server" in text
    assert "secret" not in text


def test_prefect_is_not_imported_where_no_runs_are_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status_cli, "import_module", None)
    assert "runs" not in said(capsys, "--runs", "0")


def test_a_login_that_the_server_refuses_is_said_beside_the_store(
    capsys: pytest.CaptureFixture[str], store: Store
) -> None:
    class Refusing(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, *given: object) -> None:
            """What is asked is no matter of this test."""

    put(store, "corpus", "c1")
    with HTTPServer(("127.0.0.1", 0), Refusing) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            text = said(capsys)
        server.shutdown()
        thread.join()
    assert "Prefect's server rejected the login: set PREFECT_API_AUTH_STRING to its name:password" in text
    assert "1 artifact," in text


def test_a_number_of_runs_below_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--runs", "-1"]) == 1
    assert "--runs is -1" in capsys.readouterr().err


def test_a_database_that_is_not_there_has_no_runs_and_one_that_is_broken_is_named(tmp_path: Path) -> None:
    assert read_database(tmp_path / "prefect.db", ["word2vec"], 5) == []
    (tmp_path / "prefect.db").write_text("not a database, but as long as one has to be" * 50)
    with pytest.raises(OSError, match=r"Prefect's database .* can't be read"):
        read_database(tmp_path / "prefect.db", ["word2vec"], 5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s ago"), (59, "59 s ago"), (60, "1 minute ago"), (7200, "2 hours ago"), (200_000, "2 days ago")],
)
def test_how_long_ago(seconds: float, words: str) -> None:
    assert status_cli.ago(time.time() - seconds) == words


# with Prefect itself


def test_server_and_database_tell_the_same(prefect_server: None) -> None:
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
