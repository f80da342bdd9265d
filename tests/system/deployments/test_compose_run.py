"""Every service of docker-compose.yml as a plain process, and one flow run that uses all of them.

Wants Postgres and Redis (Debian: postgresql, redis-server); without them these tests are skipped.
"""

import base64
import json
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Empty, Queue
from threading import Thread
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import psutil
import pytest

from tests.system.deployments.compose import ROOT, SECONDS, SECRETS, WITH_RAY, Stack

pytestmark = [
    pytest.mark.needs("initdb", "redis-server"),
    pytest.mark.timeout(4 * SECONDS),
]
FLAGS = ("--min-count", "1", "--epochs", "1", "--workers", "2", "--dim", "8")
CONFIG = {
    "vocabulary": {"min_count": 1},
    "pairs": {"parts": 2},  # of so few words there would be one, and so one worker
    "train": {"epochs": 1, "workers": 2, "dim": 8},
}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All services except the page, started in the order of their dependencies."""
    with Stack() as stack:
        text = "\n".join(f"the {what} sees the {which}" for what in COLOURS for which in COLOURS)
        (stack.folder / "data" / "colours.txt").write_text(text)
        for name in ("postgres", "redis"):
            stack.start(name)
        for name in ("postgres", "redis"):
            stack.await_health(name)
        stack.run("migrate")
        for name in ("server", "ray-head"):
            stack.start(name)
            stack.await_health(name)
        for name in ("background", "ray-worker"):
            stack.start(name)
        stack.run("deploy")
        stack.start("worker")
        for name in ("ray-worker", "worker"):
            stack.await_health(name)
        yield stack


COLOURS = ["red", "green", "blue", "white", "black", "grey", "pink", "brown"]


def api(
    stack: Stack, path: str, login: str = SECRETS["LEXLOOM_LOGIN"], method: str | None = None, **body: Any
) -> Any:
    """Return the API's response, if any, to a GET without a body or a POST with one."""
    headers = {"Content-Type": "application/json"}
    if login:
        headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
    data = json.dumps(body).encode() if body else None
    request = Request(f"{stack.url('4200')}/api{path}", data, headers, method=method)
    with urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or "null")


def test_a_run_started_by_the_api_trains_on_ray_workers(stack: Stack) -> None:
    deployment = api(stack, "/deployments/name/word2vec/word2vec")
    config = CONFIG | {"corpus": {"source": stack.here("/data/colours.txt")}}
    run = api(
        stack,
        f"/deployments/{deployment['id']}/create_flow_run",
        parameters={"config": config},
        state={"type": "SCHEDULED"},
    )
    end = time.monotonic() + SECONDS
    while (state := api(stack, f"/flow_runs/{run['id']}")["state"])["type"] not in OVER:
        assert time.monotonic() < end, stack.log("worker").read_text()
        time.sleep(0.5)
    said = stack.log("worker").read_text()
    assert state["type"] == "COMPLETED", said
    # the worker's own node and the head have no CPUs: both training workers were on ray-worker's
    assert re.search(r"Ray: connected to the cluster at 127\.0\.0\.1:\d+, with 2 CPUs on 3 nodes", said)
    (metrics,) = stack.folder.glob("store/train_word2vec/*/metrics.json")
    assert json.loads(metrics.read_text())["workers"] == 2


OVER = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@pytest.mark.parametrize("login", ["", "lexloom:wrong", "wrong"])
def test_the_api_requires_the_password(stack: Stack, login: str) -> None:
    with pytest.raises(HTTPError, match="401"):
        api(stack, "/work_pools/filter", login, limit=1)


def test_a_run_cannot_override_its_job(stack: Stack) -> None:
    deployment = api(stack, "/deployments/name/word2vec/word2vec")
    path = f"/deployments/{deployment['id']}/create_flow_run"
    with pytest.raises(HTTPError, match="422"):
        api(stack, path, job_variables={"command": "touch /tmp/x"}, state={"type": "SCHEDULED"})


def test_the_pool_has_the_configured_limit(stack: Stack) -> None:
    pool = api(stack, "/work_pools/lexloom")
    assert (pool["type"], pool["concurrency_limit"]) == ("process", 1)


def test_settings_from_the_ui_are_kept_by_a_new_deployment(stack: Stack) -> None:
    def found() -> tuple[bool, bool, int]:
        (schedule,) = api(stack, "/deployments/name/word2vec/word2vec")["schedules"]
        pool = api(stack, "/work_pools/lexloom")
        return schedule["active"], pool["is_paused"], pool["concurrency_limit"]

    deployment = api(stack, "/deployments/name/word2vec/word2vec")
    schedule = f"/deployments/{deployment['id']}/schedules/{deployment['schedules'][0]['id']}"
    assert found() == (False, False, 1)
    api(stack, schedule, method="PATCH", active=True)
    api(stack, "/work_pools/lexloom", method="PATCH", is_paused=True, concurrency_limit=3)
    stack.run("deploy")
    assert found() == (True, True, 3)
    api(stack, schedule, method="PATCH", active=False)
    api(stack, "/work_pools/lexloom", method="PATCH", is_paused=False, concurrency_limit=1)


def test_a_wrong_password_is_a_one_line_error(stack: Stack) -> None:
    said = stack.ask("worker", "lexloom", "word2vec", *FLAGS, PREFECT_API_AUTH_STRING="lexloom:wrong")
    assert said.returncode == 1
    assert (
        "error: Prefect's server rejected the login: set PREFECT_API_AUTH_STRING to its name" in said.stderr
    )


def test_a_wrong_token_is_a_one_line_error(stack: Stack) -> None:
    source = stack.here("/data/colours.txt")
    said = stack.ask(
        "worker", "lexloom", "word2vec", "--source", source, *FLAGS, "--seed", "2", RAY_AUTH_TOKEN="no"
    )
    assert said.returncode == 1
    assert re.search(
        r"error: the Ray cluster at 127\.0\.0\.1:\d+ rejected the token: set RAY_AUTH_TOKEN, or", said.stderr
    )


def test_a_node_with_a_wrong_token_does_not_join(stack: Stack) -> None:
    command = [stack.here(word) for word in stack.services["ray-worker"]["command"]]
    said = stack.ask("ray-worker", *command, RAY_AUTH_TOKEN="no")
    assert said.returncode != 0
    assert "Authentication token is missing or incorrect" in said.stdout + said.stderr


def test_the_page_is_served(stack: Stack) -> None:
    stack.start("page")
    stack.await_health("page")


OTHERS = [
    {"Origin": "http://attacker.example"},
    {"Host": "attacker.example"},
    {"Sec-Fetch-Site": "cross-site"},
]


@pytest.mark.parametrize("port", ["4200", "7860"])
@pytest.mark.parametrize("headers", OTHERS, ids=str)
def test_requests_from_other_sites_are_rejected(stack: Stack, port: str, headers: dict[str, str]) -> None:
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(f"{stack.url(port)}/", headers=headers), timeout=60)


@pytest.mark.parametrize(("name", "port"), [("server", "4200"), ("ray-head", "6379"), ("page", "7860")])
def test_a_port_in_use_is_reported(stack: Stack, name: str, port: str) -> None:
    said = stack.ask(name, *(stack.here(word) for word in stack.services[name]["command"]))
    assert said.returncode != 0
    assert str(stack.ports[port]) in said.stdout + said.stderr
    assert re.search("in use|already running", said.stdout + said.stderr)


def test_the_worker_exits_with_its_ray_node(stack: Stack) -> None:
    family = psutil.Process(stack.running["worker"].pid).children(recursive=True)
    (raylet,) = (process for process in family if process.name() == "raylet")
    raylet.kill()
    stack.running["worker"].wait(60)  # seconds, of which its Ray needs a few to notice and it some to end
    for process in family:  # which a container takes along
        with suppress(psutil.NoSuchProcess):
            process.kill()


def test_runs_of_a_killed_worker_do_not_block_the_pool(stack: Stack) -> None:
    left = [(run_in_the_state(stack, state), end) for state, end in ENDS.items()]
    stack.start("worker")
    stack.await_health("worker")
    for run, end in left:
        state = api(stack, f"/flow_runs/{run}")["state"]
        assert state["type"] == end
        assert state["message"].startswith("The worker of this run has ended. ")


ENDS = {"PENDING": "CRASHED", "RUNNING": "CRASHED", "CANCELLING": "CANCELLED"}


def run_in_the_state(stack: Stack, state: str) -> str:
    """Return the ID of a run that reached this state without a worker."""
    deployment = api(stack, "/deployments/name/word2vec/word2vec")
    never = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2100-01-01T00:00:00Z"}}
    run = api(
        stack, f"/deployments/{deployment['id']}/create_flow_run", parameters={"config": CONFIG}, state=never
    )
    for step in ("RUNNING", state):  # one that has not begun is cancelled without a worker
        api(stack, f"/flow_runs/{run['id']}/set_state", state={"type": step}, force=True)
    return run["id"]


def test_a_node_of_the_gpu_profile_joins(stack: Stack) -> None:
    """It replaces the other Ray worker, whose port it uses, possibly without a GPU here."""
    stack.end("ray-worker")
    stack.start("ray-gpu-worker")
    stack.await_health("ray-gpu-worker")


def test_the_automation_template_notifies_of_a_failed_run(stack: Stack) -> None:
    notifications: Queue[dict[str, str]] = Queue()

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notifications.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        block = stack.ask("worker", "python", "-c", BLOCK, f"http://127.0.0.1:{server.server_port}/")
        assert block.returncode == 0, block.stderr
        template = (ROOT / "deployments" / "automations.yaml").read_text()
        path = stack.folder / "automations.yaml"
        path.write_text(template.replace("00000000-0000-0000-0000-000000000000", block.stdout.strip()))
        made = stack.ask("worker", "prefect", "automation", "create", "--from-file", str(path))
        assert made.returncode == 0, made.stdout + made.stderr
        end, found = time.monotonic() + SECONDS, None
        while found is None:  # the background service hears of a new automation a little later
            assert time.monotonic() < end, stack.log("background").read_text()
            run_in_the_state(stack, "FAILED")
            with suppress(Empty):
                found = notifications.get(timeout=10)
        server.shutdown()
    assert found["subject"] == "Lexloom: word2vec failed"
    assert "Finished stages are kept" in found["body"]


BLOCK = """
import sys
from prefect.blocks.notifications import CustomWebhookNotificationBlock
said = {"subject": "{{subject}}", "body": "{{body}}"}
print(CustomWebhookNotificationBlock(name="lexloom", url=sys.argv[1], json_data=said).save("lexloom"))
"""


def test_services_log_no_errors_and_all_stop_on_sigterm(stack: Stack) -> None:
    logs = {name: stack.log(name) for name in stack.services}
    complaints = {name: log.read_text() for name, log in logs.items() if log.exists()}
    assert not {name for name, said in complaints.items() if re.search("Traceback|ERROR|Error ", said)}, (
        complaints
    )
    for name in ("page", "worker", "background", "server", "ray-gpu-worker", "ray-head", "redis", "postgres"):
        left = [process.pid for process in stack.end(name)]
        assert not left or name in WITH_RAY, name
