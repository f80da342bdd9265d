"""End-to-end tests of `lexloom ui`: one server, a small corpus, and Prefect's UI in a real browser.

The browser tests need Debian's chromium and are skipped where it is missing; the others ask the API.
"""

import json
import os
import signal
import sqlite3
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.exceptions import PrefectHTTPStatusError
from websockets import Subprotocol
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from lexloom.deployments.server.login import running_session
from lexloom.deployments.server.processes import is_healthy
from lexloom.deployments.server.register import deploy
from lexloom.tasks.store.artifacts import Store
from tests.system.deployments.browser import Browser
from tests.system.harness.ui import COMMAND, environment_of, server_of, ui_in

pytestmark = pytest.mark.timeout(900)  # with the start of everything, on a busy machine
in_chromium = pytest.mark.needs("chromium")
CLICK_SECONDS = 10  # within which a click has an effect
SECONDS = 180
STAGES = [
    *("corpus", "vocabulary", "tokens", "pairs", "negative_sampling"),
    *("train_word2vec", "evaluate_word2vec", "report_word2vec"),
]


@dataclass
class Ui:
    """A running `lexloom ui`, and a client of its server."""

    process: subprocess.Popen[str]
    url: str
    home: Path
    store: Store
    client: SyncPrefectClient
    config: dict[str, Any]

    def deployment(self, name: str = "word2vec") -> Any:
        return self.client.read_deployment_by_name(f"{name}/{name}")

    def start(self, **train: object) -> UUID:
        config = {**self.config, "train": {**self.config["train"], **train}}
        return self.client.create_flow_run_from_deployment(
            self.deployment().id, parameters={"config": config}
        ).id

    def new_runs(self, before: list[FlowRun]) -> list[FlowRun]:
        known = {run.id for run in before}
        return [run for run in self.client.read_flow_runs() if run.id not in known]

    def finished(self, run: UUID) -> FlowRun:
        wait(lambda: self.client.read_flow_run(run).state.is_final())  # type: ignore[union-attr]
        return self.client.read_flow_run(run)

    def stages(self, run: UUID) -> list[TaskRun]:
        given = FlowRunFilter(id=FlowRunFilterId(any_=[run]))
        return self.client.read_task_runs(flow_run_filter=given)

    def artifacts(self, run: UUID) -> dict[str, Any]:
        """Return the run's artifacts: key -> content."""
        given = {"flow_runs": {"id": {"any_": [str(run)]}}}
        found = self.client._client.post("/artifacts/filter", json=given).json()
        return {artifact["key"]: artifact for artifact in found}


def wait(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.2)


def processes_of(run: UUID) -> list[str]:
    """Return the command lines of a run's processes, including Ray's: they inherit its ID."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREFECT__FLOW_RUN_ID={run}".encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended meanwhile, or is another user's
            continue
    return found


@contextmanager
def start_ui(folder: Path) -> Iterator[Ui]:
    text = folder / "books" / "text.txt"
    text.parent.mkdir()
    text.write_text("the cat sat on the mat and the dog sat on the rug\n" * 200)
    store, home = folder / "store", folder / "home"
    quick = {"runner": "local", "workers": 1, "epochs": 1, "dim": 8}
    config = {"corpus": {"source": "books"}, "train": quick}  # a path from the folder where it was started
    with (
        ui_in(folder, store, home) as (process, url),
        SyncPrefectClient(api=f"{url}/api", auth_string=running_session(home).login) as client,
    ):
        yield Ui(process, url, home, Store(store), client, config)


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ui]:
    with start_ui(tmp_path_factory.mktemp("ui")) as started:
        yield started


@pytest.fixture
def browser(ui: Ui) -> Iterator[Browser]:
    """One browser per test, logged in by a link, because an open page keeps redrawing."""
    with Browser() as page:
        show(page, running_session(ui.home).new_link(), "Deployments")
        yield page


def show(browser: Browser, address: str, text: str) -> None:
    """Open a page, and wait until it shows a text."""
    browser.call("Page.navigate", url=address)
    browser.wait(f"document.body?.innerText.includes({text!r})", SECONDS)


def press(browser: Browser, label: str) -> None:
    """Click the button with this label once it exists."""
    button = f"[...document.querySelectorAll('button')].find(b => b.innerText.trim() === {label!r})"
    browser.wait(f"!!({button}) && !({button}).disabled")
    browser.run(f"({button}).click()")


# the form


@in_chromium
def test_a_run_can_be_started_from_the_form_and_followed_to_its_end(ui: Ui, browser: Browser) -> None:
    show(browser, f"{ui.url}/deployments", "word2vec")
    assert all(name in browser.text() for name in ("window-lm", "transformer-lm", "sentiment"))

    browser.run("[...document.querySelectorAll('a')].find(a => a.innerText.trim() === 'word2vec').click()")
    browser.wait("document.body.innerText.includes('nightly')", SECONDS)
    show(browser, f"{ui.url}/deployments/deployment/{ui.deployment().id}/run?", "Text Column")
    labels = ("Source", "Min Count", "Window", "Dim", "Epochs", "Noise", "Report")
    for label in labels:  # the form appears section by section
        browser.wait(f"document.body.innerText.includes('{label}')", SECONDS)
    shown = browser.text()
    places = [shown.index(label) for label in labels]
    assert places == sorted(places), "the sections with main parameters come first"
    assert "and as many as fit on Ray (at least 1, at most 1,024)" in shown
    assert "Number\nAutomatic\nauto" in shown[shown.index("Workers") : shown.index("Threads")]
    assert "Number\nAutomatic\nauto" in shown[shown.index("Epochs") :]
    assert "Tokens" not in shown
    browser.wait("[...document.querySelectorAll('textarea')].some(t => t.value.includes('words_on_map'))")
    assert browser.run("document.querySelector('form').scrollHeight") < 4000

    fill_in(browser, "Source", "books")
    fill_in(browser, "Dim", "8")
    before = ui.client.read_flow_runs()
    press(browser, "Submit")

    wait(lambda: ui.new_runs(before))
    (run,) = ui.new_runs(before)
    assert ui.finished(run.id).state.is_completed()  # type: ignore[union-attr]
    assert {manifest.stage for manifest in ui.store.manifests()} == set(STAGES)

    show(browser, f"{ui.url}/runs/flow-run/{run.id}", "Completed")
    show(browser, f"{ui.url}/runs/flow-run/{run.id}?tab=Task+Runs", "train_word2vec")
    show(browser, f"{ui.url}/runs/flow-run/{run.id}?tab=Artifacts", "report")
    published = ui.artifacts(run.id)
    show(browser, f"{ui.url}/artifacts/artifact/{published['training']['id']}", "100%")
    show(browser, f"{ui.url}/artifacts/artifact/{published['report']['id']}", "Nearest")
    show(browser, f"{ui.url}/artifacts/artifact/{published['stages']['id']}", "train_word2vec")
    page = browser.text()
    model = next(manifest for manifest in ui.store.manifests() if manifest.stage == "train_word2vec")
    assert model.key[:8] in page
    assert all(f"{entry.stage} {entry.key[:8]}" in page for entry in model.inputs)
    show(browser, f"{ui.url}/artifacts/artifact/{published['training-curve']['id']}", "not smoothed")
    assert browser.run("document.querySelector('img[alt=\"training loss\"]').naturalWidth") > 0
    assert browser.hosts == {ui.url.removeprefix("http://")}


@in_chromium
def test_a_link_logs_in_one_browser_once(ui: Ui, browser: Browser) -> None:
    """The fixture has already used a link."""
    login = b64encode(running_session(ui.home).login.encode()).decode()
    assert browser.run("localStorage.getItem('prefect-password')") == login
    link = ask_for_link(ui)
    with Browser() as another:
        show(another, link, "Deployments")
        assert "#" not in another.run("location.href")
    with Browser() as third:
        show(third, link, "This link has already been used or has expired")
        assert third.run("localStorage.getItem('prefect-password')") is None
        show(third, f"{ui.url}/deployments", "Login")


def ask_for_link(ui: Ui) -> str:
    """Return the output of `lexloom ui --link`."""
    command = [*COMMAND[: COMMAND.index("ui") + 1], "--link"]
    done = subprocess.run(command, env=environment_of(ui.home), capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_login_is_not_in_arguments_or_logs(ui: Ui) -> None:
    _, _, secret = running_session(ui.home).login.partition(":")
    logs = [*ui.home.glob("*.log"), *Path("/proc").glob("[0-9]*/cmdline")]
    assert len(logs) > 1
    assert not [log for log in logs if secret in content(log)]


def content(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # a process that has ended
        return ""


def fill_in(browser: Browser, label: str, text: str) -> None:
    """Type into the form's first field with this label."""
    browser.run(
        f"(() => {{ const field = {field(label)}.querySelector('input, textarea');"
        " field.focus(); field.select(); })()"
    )
    browser.type(text)


def choose(browser: Browser, label: str, option: str) -> None:
    browser.run(
        f"(() => {{ const field = {field(label)}.querySelector('select'); field.value = {option!r};"
        " field.dispatchEvent(new Event('change', {bubbles: true})); })()"
    )


def field(label: str) -> str:
    labels = "[...document.querySelectorAll('.schema-form-property__label')]"
    return f"{labels}.find(l => l.innerText === '{label} (Optional)').closest('.schema-form-property')"


# the API


def test_invalid_parameters_are_rejected_with_the_field_and_its_bound(ui: Ui) -> None:
    with pytest.raises(PrefectHTTPStatusError) as refused:
        ui.start(negatives=0)
    assert refused.value.response.status_code == 409
    said = refused.value.response.json()["detail"]
    assert "config.train.negatives" in said
    assert "0 is less than the minimum of 1" in said
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        ui.start(no_such_field=1)


@pytest.mark.parametrize("variable", ["command", "working_dir", "env", "env.PATH", "stream_output", "name"])
def test_a_run_cannot_override_its_job(ui: Ui, variable: str) -> None:
    before = ui.client.read_flow_runs()
    with pytest.raises(PrefectHTTPStatusError) as refused:
        ui.client.create_flow_run_from_deployment(ui.deployment().id, job_variables={variable: "touch x"})
    assert refused.value.response.status_code == 422
    assert f"Additional properties are not allowed ('{variable}' was" in refused.value.response.text
    assert not ui.new_runs(before)


def test_all_requests_require_the_login(ui: Ui) -> None:
    with httpx.Client(base_url=ui.url) as stranger:
        path = f"/api/deployments/{ui.deployment().id}/create_flow_run"
        assert stranger.post(path, json={}).status_code == 401
        assert stranger.post("/api/deployments/filter", json={}).status_code == 401
        assert stranger.post("/lexloom/link").status_code == 401
    address = f"{ui.url.replace('http', 'ws')}/api/events/out"
    with pytest.raises(InvalidStatus, match="403"):
        connect(address).close()
    with connect(address, subprotocols=[Subprotocol("prefect")]) as socket:
        socket.send('{"type": "auth", "token": "wrong"}')
        with pytest.raises(ConnectionClosed):
            socket.recv(SECONDS)


def test_a_run_from_the_api_is_cached_and_shows_the_dependencies_of_its_stages(ui: Ui) -> None:
    before = {manifest.key for manifest in ui.store.manifests()}
    first, second = ui.start(seed=5), ui.start(seed=5)  # two runs of one deployment at once
    assert [ui.finished(run).state.type for run in (first, second)] == ["COMPLETED"] * 2  # type: ignore[union-attr]
    built = [manifest.stage for manifest in ui.store.manifests() if manifest.key not in before]
    assert {"train_word2vec", "evaluate_word2vec", "report_word2vec"} <= set(built)
    assert len(built) == len(set(built)), "each stage is in the store once, and whole"
    assert all(ui.store.find_damage(each.stage, each.key, "full") is None for each in ui.store.manifests())

    again = ui.finished(ui.start(seed=5))
    published = ui.artifacts(again.id)
    assert published["report"]["data"].startswith("# ")
    rows = json.loads(published["stages"]["data"])
    assert [row["stage"] for row in rows] == STAGES
    assert {row["cached"] for row in rows} == {"yes"}


@in_chromium
def test_a_schedule_can_be_toggled_in_the_ui(ui: Ui, browser: Browser) -> None:
    show(browser, f"{ui.url}/deployments/deployment/{ui.deployment().id}", "nightly")
    toggle = "document.querySelector('.deployment-schedule-card .p-toggle__control')"
    for active in (True, False):
        browser.wait(f"!!{toggle}")
        clicked = [0.0]

        def is_set(active: bool = active, clicked: list[float] = clicked) -> bool:
            if ui.deployment().schedules[0].active is active:
                return True
            if time.monotonic() > clicked[-1] + CLICK_SECONDS:  # a click is lost while the page is replaced
                browser.run(f"{toggle}?.click()")
                clicked.append(time.monotonic())
            return False

        wait(is_set)


def test_an_active_schedule_starts_runs_and_stays_active(ui: Ui, tmp_path: Path) -> None:
    deployment = ui.deployment()
    (schedule,) = deployment.schedules
    assert schedule.active is False
    assert not ui.client.read_flow_runs(flow_run_filter=scheduled())

    def settle(active: bool, interval: timedelta) -> None:
        ui.client.update_deployment_schedule(
            deployment.id, schedule.id, active=active, schedule=IntervalSchedule(interval=interval)
        )

    ui.client.update_deployment(deployment.id, DeploymentUpdate(parameters={"config": ui.config}))
    try:
        settle(True, timedelta(seconds=30))
        wait(
            lambda: [
                run
                for run in ui.client.read_flow_runs()
                if "auto-scheduled" in run.tags and is_completed(run)
            ]
        )
        settle(True, timedelta(days=1))
        with (tmp_path / "log").open("wb") as log:  # as at the next start
            environment = {
                **environment_of(ui.home),
                "PREFECT_API_URL": f"{ui.url}/api",
                "PREFECT_API_AUTH_STRING": running_session(ui.home).login,
            }
            deploy(ui.client, environment, log)
        assert ui.deployment().schedules[0].active is True
    finally:
        settle(False, timedelta(days=1))


def is_completed(run: FlowRun) -> bool:
    return run.state is not None and run.state.is_completed()


def scheduled() -> Any:
    from prefect.client.schemas import filters
    from prefect.client.schemas.objects import StateType

    kind = filters.FlowRunFilterStateType(any_=[StateType.SCHEDULED])
    return filters.FlowRunFilter(state=filters.FlowRunFilterState(type=kind))


@in_chromium
def test_a_run_cancelled_in_training_leaves_no_process(ui: Ui, browser: Browser) -> None:
    run = ui.start(runner="ray", workers=2, epochs=100_000, checkpoint_every=20)
    wait(lambda: any(ui.store.root.glob(".scratch/*/*/step-*")))
    assert len(processes_of(run)) > 3, "the run, and Ray's"
    show(browser, f"{ui.url}/runs/flow-run/{run}", "Running")
    wait(lambda: 0 < ui.artifacts(run)["training"]["data"] < 100)
    press(browser, "Cancel")
    press(browser, "Confirm")
    assert ui.finished(run).state.name == "Cancelled"  # type: ignore[union-attr]
    wait(lambda: not processes_of(run), 60)


# failures


def test_a_run_survives_a_killed_server_and_repeats_no_stage(ui: Ui) -> None:
    run = ui.start(epochs=100_000, max_seconds=10, seed=7)
    wait(lambda: "training" in ui.artifacts(run))
    assert ui.client.read_flow_run(run).state.is_running()  # type: ignore[union-attr]
    killed = server_of(ui.process)
    os.kill(killed, signal.SIGKILL)
    wait(lambda: has_restarted(ui, killed) and is_healthy(ui.url))
    ended = ui.finished(run)
    assert ended.state.is_completed()  # type: ignore[union-attr]
    assert ended.run_count == 1
    wait(lambda: all(task.state.is_final() for task in ui.stages(run)), 60)  # task states arrive with a delay
    assert sorted(task.name for task in ui.stages(run)) == sorted(STAGES)
    assert {task.run_count for task in ui.stages(run)} == {1}


def has_restarted(ui: Ui, killed: int) -> bool:
    try:
        return server_of(ui.process) != killed
    except (StopIteration, OSError):
        return False


# bad input


def test_a_rejected_login_is_a_one_line_error(prefect_home: Path, tmp_path: Path) -> None:
    logins = {"PREFECT_SERVER_API_AUTH_STRING": "ann:secret", "PREFECT_API_AUTH_STRING": "ann:wrong"}
    done = subprocess.run(
        COMMAND,
        env={**environment_of(prefect_home), **logins},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    *_, stopping, said = done.stderr.splitlines()
    assert stopping == "stopping"
    assert said == (
        "error: Prefect's server rejected the login: set PREFECT_API_AUTH_STRING to its name:password"
    )


# the end


def test_ctrl_c_stops_the_server_the_worker_and_active_runs(ui: Ui) -> None:
    run = ui.start(epochs=100_000, dim=16)
    wait(lambda: "training" in ui.artifacts(run))
    assert processes_of(run)
    os.killpg(ui.process.pid, signal.SIGINT)
    assert ui.process.wait(SECONDS) == 0
    assert not processes_of(run)
    assert not list_processes(ui.home)


def test_sigterm_keeps_scheduled_runs(prefect_home: Path, tmp_path: Path) -> None:
    """The server has a login from Prefect's profile."""
    profile = prefect_home / "profiles.toml"
    profile.write_text('active = "here"\n[profiles.here]\nPREFECT_SERVER_API_AUTH_STRING = "ann:secret"\n')
    with start_ui(tmp_path) as ui:
        assert running_session(ui.home).login == "ann:secret"
        ui.client.update_work_pool("lexloom", WorkPoolUpdate(concurrency_limit=1))
        running = ui.start(epochs=100_000)
        wait(lambda: "training" in ui.artifacts(running))
        waiting = ui.start()
        ui.process.send_signal(signal.SIGTERM)
        assert ui.process.wait(SECONDS) == 0
        assert not list_processes(ui.home)
    with closing(sqlite3.connect(ui.home / "prefect.db")) as database:
        found = dict(database.execute("select id, state_type from flow_run"))
        begun = database.execute("select id from flow_run where start_time is not null").fetchall()
    assert found == {str(running): "CANCELLED", str(waiting): "SCHEDULED"}
    assert begun == [(str(running),)]


def list_processes(home: Path) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/environ") if is_of(path, home)]


def is_of(environment: Path, home: Path) -> bool:
    try:
        return f"PREFECT_HOME={home}".encode() in environment.read_bytes()
    except OSError:
        return False
