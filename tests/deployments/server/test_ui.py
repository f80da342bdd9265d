"""What `lexloom ui` sends to Prefect: deployments, schedules, forms and the failure notification."""

import os
import re
import shlex
import signal
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import ValidationError, validate

from lexloom.deployments.cli.main import main
from lexloom.deployments.server import register as deploy
from lexloom.deployments.server import ui as operate
from lexloom.flows.registry import flows
from lexloom.tasks.store.artifacts import Store

ENTRIES = {entry["name"]: entry for entry in yaml.safe_load(deploy.DEPLOYMENTS.read_text())["deployments"]}
AUTOMATIONS = yaml.safe_load((deploy.DEPLOYMENTS.parent / "automations.yaml").read_text())["automations"]


@pytest.fixture(autouse=True)
def unchanged_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep `lexloom ui` from changing environment variables and signal handlers."""
    monkeypatch.setattr("lexloom.flows.command.configure_environment", lambda verbose: None)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


def flow_of(name: str) -> Flow[..., Any]:
    return load_flow_from_entrypoint(ENTRIES[name]["entrypoint"])


# prefect.yaml


def test_every_flow_of_the_command_line_is_deployed() -> None:
    assert sorted(ENTRIES) == sorted(flows())
    for name, entry in flows().items():
        assert ENTRIES[name]["entrypoint"] == f"{entry.module}.{entry.function}"


@pytest.mark.parametrize("name", ENTRIES)
def test_deployment_parameters_match_the_flow(name: str) -> None:
    entry, flow = ENTRIES[name], flow_of(name)
    assert flow.name == name
    assert entry["enforce_parameter_schema"] is True
    schema = parameter_schema(flow).model_dump()
    assert not validate(entry["parameters"], schema, raise_on_error=True)
    taken = flow.validate_parameters(entry["parameters"])["config"]
    assert taken == type(taken)(), "the form begins with the command's defaults"


@pytest.mark.parametrize("name", ENTRIES)
def test_schedules_have_a_timezone_and_a_slug_and_are_inactive(name: str) -> None:
    (schedule,) = ENTRIES[name]["schedules"]
    assert set(schedule) == {"slug", "cron", "timezone", "active"}
    assert schedule["active"] is False
    CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    assert ZoneInfo(schedule["timezone"])


def test_schedules_start_at_different_times() -> None:
    times = [tuple(entry["schedules"][0]["cron"].split()) for entry in ENTRIES.values()]
    assert len({(minute, hour, day) for minute, hour, _, _, day in times}) == len(times)


@pytest.mark.parametrize("name", ENTRIES)
def test_every_parameter_has_a_description_and_form_parameters_have_a_position(name: str) -> None:
    schema = parameter_schema(flow_of(name)).model_dump()
    for title, definition in schema["definitions"].items():
        shown = definition.get("properties", {})
        positions = [field["position"] for field in shown.values()]
        assert sorted(positions) == list(range(len(shown))), title
        for field, entry in (shown | definition.get("patternProperties", {})).items():
            described = entry.get("description") or schema["definitions"][entry["$ref"].split("/")[-1]]
            assert described, f"{title}.{field} is not described"


def test_the_installed_package_contains_the_files() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    (pattern,) = project["tool"]["setuptools"]["package-data"]["lexloom.deployments"]
    assert deploy.DEPLOYMENTS in deploy.DEPLOYMENTS.parent.glob(pattern)


def test_local_runs_use_the_current_python_and_folder(tmp_path: Path) -> None:
    job = operate.on_this_machine()["job_configuration"]
    python, *flags = shlex.split(job["command"])
    assert python == sys.executable
    assert flags == ["-P", "-m", "prefect.engine"], "not from the folder where it runs"
    assert job["working_dir"] == str(tmp_path)


@pytest.mark.parametrize("template", [operate.on_this_machine, deploy.job_template])
def test_a_run_cannot_override_its_job(template: Callable[[], dict[str, Any]]) -> None:
    """Prefect checks a run's variables against the schema, and fills them into the configuration."""
    schema = template()["variables"]
    for variable in ("command", "env", "env.PATH", "working_dir", "stream_output", "name", "labels"):
        with pytest.raises(ValidationError, match="Additional properties are not allowed"):
            validate({variable: "touch /tmp/x"}, schema, raise_on_error=True, preprocess=True)
    assert not validate({}, schema, raise_on_error=True, preprocess=True)
    assert "{{" not in str(template()["job_configuration"])


def test_existing_schedules_are_not_changed() -> None:
    client = SimpleNamespace(read_deployments=lambda: [SimpleNamespace(name="word2vec")])
    first, *others = deploy.read_deployments(client)["deployments"]
    assert "schedules" not in first
    assert all("schedules" in other for other in others)


# the environment


def test_server_worker_and_runs_share_a_store_and_log_for_the_ui(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "7")
    found = operate.environment_of("http://127.0.0.1:4200/api", Store("relative"), None)
    assert found["LEXLOOM_STORE"] == str(tmp_path / "relative")
    assert found["PREFECT_LOGGING_LEVEL"] == "INFO"
    assert found["PREFECT_WORKER_QUERY_SECONDS"] == "7"
    assert found["PREFECT_SERVER_UI_API_URL"] == "/api"
    assert found["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200"


RANDOM = "lexloom:random"


@pytest.mark.parametrize(
    ("settings", "server", "client"),
    [
        ({}, RANDOM, RANDOM),
        ({PREFECT_API_AUTH_STRING: "of:another"}, RANDOM, RANDOM),
        ({PREFECT_SERVER_API_AUTH_STRING: "ann:secret"}, "ann:secret", "ann:secret"),
        (
            {PREFECT_SERVER_API_AUTH_STRING: "ann:secret", PREFECT_API_AUTH_STRING: "ann:other"},
            "ann:secret",
            "ann:other",
        ),
    ],
)
def test_server_and_clients_get_the_login_from_their_environment(
    monkeypatch: pytest.MonkeyPatch, settings: dict[Any, str], server: str, client: str
) -> None:
    """The login is from Prefect's settings (including the profile), or else random."""
    monkeypatch.setattr(operate, "new_login", lambda: RANDOM)
    for setting, value in settings.items():
        monkeypatch.setenv(setting.name, value)
    with temporary_settings(settings):
        login = operate.login_of("127.0.0.1", wanted=True)
        found = operate.environment_of("http://127.0.0.1:4200/api", Store(), login)
    assert found["PREFECT_SERVER_API_AUTH_STRING"] == server
    assert found["PREFECT_API_AUTH_STRING"] == client


def test_no_login_is_passed_on_if_there_is_none() -> None:
    assert operate.login_of("127.0.0.1", wanted=False) is None
    found = operate.environment_of("http://127.0.0.1:4200/api", Store(), None)
    assert not {name for name in found if name.endswith("AUTH_STRING")}


def test_a_login_is_random_unless_one_is_set() -> None:
    first, second = (operate.login_of("0.0.0.0", wanted=True) for _ in range(2))
    assert first != second
    with temporary_settings({PREFECT_SERVER_API_AUTH_STRING: "ann:secret"}):
        assert operate.login_of("0.0.0.0", wanted=True) == "ann:secret"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:4200"),
        ("localhost", "http://localhost:4200"),
        ("0.0.0.0", "http://127.0.0.1:4200"),
        ("::1", "http://[::1]:4200"),
        ("::", "http://[::1]:4200"),
    ],
)
def test_the_ui_url_is_reachable(host: str, url: str) -> None:
    assert operate.url_of(host, 4200) == url


# bad input


@pytest.fixture
def forbid_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **named: object) -> None:
        raise AssertionError("something was started")

    monkeypatch.setattr(operate, "Program", start)


def error_of_main(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["ui", *arguments]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said.strip()


def test_a_port_in_use_is_reported_before_anything_starts(
    forbid_start: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = error_of_main(capsys, "--port", str(port))
    assert (
        said == f"error: port {port} on 127.0.0.1 is in use: choose another with --port (0 for any free port)"
    )


def test_a_configured_prefect_server_is_an_error(
    forbid_start: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings({PREFECT_API_URL: "http://prefect.example/api"}):
        said = error_of_main(capsys, "--port", "0")
    assert said.startswith(
        "error: PREFECT_API_URL is http://prefect.example/api, but `lexloom ui` starts its own"
    )
    commands = re.findall("`([^`]+)`", said)[1:]
    assert commands == [
        "lexloom deploy",
        "prefect worker start --pool lexloom --type process",
    ]


def test_no_login_requires_a_loopback_address(forbid_start: None, capsys: pytest.CaptureFixture[str]) -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL, PREFECT_SERVER_API_AUTH_STRING}):
        said = error_of_main(capsys, "--host", "0.0.0.0", "--port", "0", "--no-login")
    assert said == (
        "error: --no-login requires a loopback address, but --host is 0.0.0.0: omit --no-login or --host"
    )


def test_no_login_conflicts_with_a_configured_login(
    forbid_start: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with temporary_settings(
        {PREFECT_SERVER_API_AUTH_STRING: "ann:secret"}, restore_defaults={PREFECT_API_URL}
    ):
        said = error_of_main(capsys, "--port", "0", "--no-login")
    assert said == (
        "error: --no-login conflicts with PREFECT_SERVER_API_AUTH_STRING: unset the variable or omit"
        " --no-login"
    )


def test_an_invalid_allowed_host_is_reported_before_anything_starts(
    forbid_start: None, capsys: pytest.CaptureFixture[str]
) -> None:
    said = error_of_main(capsys, "--port", "0", "--allow-host", "a b")
    assert said == "error: 'a b' is not a valid host: use NAME, NAME:PORT or http://NAME:PORT"


def test_a_link_without_a_running_server_is_an_error(
    forbid_start: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with temporary_settings({PREFECT_HOME: tmp_path / "home"}):
        said = error_of_main(capsys, "--link")
    assert said == (f"error: no `lexloom ui` with a login is running for PREFECT_HOME={tmp_path}/home")


def test_a_store_that_is_not_writable_is_reported_before_anything_starts(
    forbid_start: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        said = error_of_main(capsys, "--port", "0", "--store", str(tmp_path / "file" / "store"))
    assert said.startswith(f"error: the store {tmp_path}/file/store is not writable")


def test_a_second_server_for_the_same_records_is_an_error(
    forbid_start: None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with (
        temporary_settings({PREFECT_HOME: tmp_path / "home"}, restore_defaults={PREFECT_API_URL}),
        operate.log_file(),
    ):
        said = error_of_main(capsys, "--port", "0")
    assert said.startswith(f"error: another `lexloom ui` is using {tmp_path}/home")


def test_an_unexpected_exit_reports_the_log_file(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        program = operate.Program("server", ["no_such_module"], dict(os.environ), log)
        with pytest.raises(RuntimeError, match=rf"the server exited with status 1: see {tmp_path}/log"):
            program.until_healthy("http://127.0.0.1:9")


# the work pool


TEMPLATE = deploy.job_template()


class Pool:
    """A client of a server that has one work pool, or none."""

    def __init__(self, kind: str | None) -> None:
        self.kind = kind
        self.requests: list[WorkPoolCreate | WorkPoolUpdate] = []

    def read_work_pool(self, name: str) -> SimpleNamespace:
        if self.kind is None:
            raise ObjectNotFound(http_exc=Exception())
        return SimpleNamespace(type=self.kind)

    def create_work_pool(self, pool: WorkPoolCreate) -> None:
        self.requests.append(pool)

    def update_work_pool(self, name: str, change: WorkPoolUpdate) -> None:
        self.requests.append(change)


def test_a_missing_pool_is_created() -> None:
    client = Pool(None)
    deploy.make_pool(client, TEMPLATE)
    (pool,) = client.requests
    assert isinstance(pool, WorkPoolCreate)
    assert (pool.name, pool.type, pool.concurrency_limit) == ("lexloom", "process", 2)
    assert pool.base_job_template == TEMPLATE


def test_an_existing_pool_keeps_its_limit_and_is_resumed() -> None:
    client = Pool("process")
    deploy.make_pool(client, TEMPLATE)
    operate.resume_pool(client)
    assert [change.model_dump(exclude_unset=True) for change in client.requests] == [
        {"base_job_template": TEMPLATE},  # not that of an earlier version, which let runs name a command
        {"is_paused": False},
    ]


def test_a_pool_of_another_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="has the type docker, not process: delete it with `prefect"):
        deploy.make_pool(Pool("docker"), TEMPLATE)


# a server that does not answer


@pytest.fixture
def recording_server() -> Iterator[tuple[str, list[str]]]:
    """The URL of a server that never responds, and the requests that it received."""
    requests: list[str] = []

    class Silent(StreamRequestHandler):
        def handle(self) -> None:
            requests.append(self.rfile.readline().decode())

    with TCPServer(("127.0.0.1", 0), Silent) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/api", requests
        server.shutdown()
        thread.join()


def test_runs_are_cancelled_only_while_the_server_is_alive(recording_server: tuple[str, list[str]]) -> None:
    url, requests = recording_server
    server = SimpleNamespace(has_ended=lambda: len(requests) == 2)
    operate.cancel_runs(operate.client_of({"PREFECT_API_URL": url}), server)
    assert len(requests) == 2, "one request per round"


def test_the_server_is_polled_once_per_round(
    monkeypatch: pytest.MonkeyPatch, recording_server: tuple[str, list[str]]
) -> None:
    url, requests = recording_server
    monkeypatch.setattr(operate, "POLL_SECONDS", 0)
    rounds = iter([False, False, True])
    worker = SimpleNamespace(has_ended=lambda: next(rounds), complain=lambda: sys.exit("it has ended"))
    server = SimpleNamespace(has_ended=lambda: False)
    look, first = operate.read_runs, iter([True])
    monkeypatch.setattr(operate, "read_runs", lambda *given: [] if next(first, False) else look(*given))
    with pytest.raises(SystemExit):
        operate.watch(operate.client_of({"PREFECT_API_URL": url}), [server, worker], url)
    assert len(requests) == 2, "one request per round"


# failures


def test_the_failure_notification_is_a_valid_automation() -> None:
    (automation,) = [AutomationCore.model_validate(entry) for entry in AUTOMATIONS]
    trigger = automation.trigger
    assert isinstance(trigger, EventTrigger)
    assert trigger.posture is Posture.Reactive
    assert trigger.expect == {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"}
    (action,) = automation.actions
    assert action.type == "send-notification"


def test_the_automation_matches_the_tag_of_all_deployments() -> None:
    related = AUTOMATIONS[0]["trigger"]["match_related"]
    assert related["prefect.resource.role"] == "tag"
    tag = related["prefect.resource.id"].removeprefix("prefect.tag.")
    assert all(tag in entry["tags"] for entry in ENTRIES.values())
