"""Pages of another site in the user's browser, against every server that Lexloom starts.

A real Chromium opens a page of attacker.example, which its resolver maps to this machine. The page knows all
that it needs (ports, paths, deployments' IDs) and tries what a page can do. No server here has a login: it is
the origin that has to be refused.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import pytest

from tests.system.deployments.browser import Browser

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(600)]
START_SECONDS = 180.0
ATTACKER = "attacker.example"
ATTACKS = """(async () => {
  const {url, read, write, body, socket} = TARGET;
  const found = {};
  const attempt = async (name, request) => {
    try {
      const answer = await request();
      found[name] = answer.type === 'opaque' ? 'sent' : await answer.text();
    } catch (error) { found[name] = 'refused'; }
  };
  const post = (content, more) => fetch(url + write, {method: 'POST', body: content, ...more});
  const typed = type => new Blob([body], type ? {type} : {});
  await attempt('get', () => fetch(url + read));
  await attempt('get with credentials', () => fetch(url + read, {credentials: 'include'}));
  await attempt('json', () => post(body, {headers: {'Content-Type': 'application/json'}}));
  await attempt('text', () => post(body));
  await attempt('simple text', () => post(body, {mode: 'no-cors'}));
  await attempt('blob without a type', () => post(typed(''), {mode: 'no-cors'}));
  await attempt('form fields', () => post(new URLSearchParams({body}), {mode: 'no-cors'}));
  await attempt('bytes', () => post(new TextEncoder().encode(body), {mode: 'no-cors'}));
  for (const type of ['', 'text/plain', 'application/json']) navigator.sendBeacon(url + write, typed(type));
  await new Promise(done => {
    const frame = Object.assign(document.createElement('iframe'), {name: 'frame', onload: done});
    const form = Object.assign(document.createElement('form'),
      {method: 'POST', action: url + write, enctype: 'text/plain', target: 'frame'});
    const cut = body.lastIndexOf('"');  // name=value: the `=` ends up in a string
    form.append(Object.assign(document.createElement('input'),
      {name: body.slice(0, cut), value: body.slice(cut)}));
    document.body.append(frame, form);
    setTimeout(() => form.submit(), 100);
    setTimeout(done, 3000);
  });
  for (const protocols of [[], ['prefect']]) {
    found['socket ' + protocols] = await new Promise(done => {
      const opened = new WebSocket(url.replace('http', 'ws') + socket, protocols);
      opened.onopen = () => done('open');
      opened.onerror = () => done('refused');
    });
  }
  const script = document.createElement('script');
  script.src = url + read;
  await new Promise(done => { script.onload = script.onerror = done; document.body.append(script); });
  return found;
})()"""


@dataclass
class Target:
    """A server, and the requests that an attacker would send."""

    url: str
    read: str
    write: str
    body: dict[str, Any]
    socket: str
    is_unharmed: Callable[[], bool]
    """Whether no attack had an effect."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The URL of the attacker's site."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>attacker</title><body>harmless")

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{ATTACKER}:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    rules = f"--host-resolver-rules=MAP {ATTACKER} 127.0.0.1"
    with Browser(1280, 900, False, rules) as opened:
        yield opened


# the servers


@pytest.fixture(scope="module", params=["lexloom ui --no-login", "temporary server"])
def prefect(
    request: pytest.FixtureRequest, prefect_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Target]:
    """Prefect's server as Lexloom starts it, with a flow and a deployment."""
    port = free_port()
    ui = ["lexloom.deployments.server.prefect_server", "--host", "127.0.0.1", "--port", str(port)]
    module = (
        ui if request.param.startswith("lexloom ui") else ["lexloom.flows.local_server.program", str(port)]
    )
    home = tmp_path_factory.mktemp("home")
    (home / "prefect.db").write_bytes(prefect_database.read_bytes())
    url = f"http://127.0.0.1:{port}"
    with running(module, home, url), httpx.Client(base_url=f"{url}/api", timeout=60) as client:

        def ask(path: str, content: dict[str, Any]) -> Any:
            answer = client.post(path, json=content)
            while answer.status_code == 503:  # it is still busy with its start
                time.sleep(0.5)
                answer = client.post(path, json=content)
            return answer.raise_for_status().json()

        flow = ask("/flows/", {"name": "flow"})["id"]
        deployment = ask("/deployments/", {"name": "deployment", "flow_id": flow})["id"]
        create = f"/deployments/{deployment}/create_flow_run"
        own = ask(create, {"state": {"type": "SCHEDULED"}})
        yield Target(
            url=url,
            read="/api/version",
            write=f"/api{create}",
            body={"state": {"type": "SCHEDULED"}, "parameters": {}, "name": "attack"},
            socket="/api/events/out",
            is_unharmed=lambda: [run["id"] for run in ask("/flow_runs/filter", {})] == [own["id"]],
        )


@contextmanager
def running(module: list[str], home: Path, url: str) -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_SERVER_API")}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", *module],
        env={**kept, "PREFECT_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[4])},
        stdin=subprocess.PIPE,
    )
    try:
        until_healthy(f"{url}/api/health")
        yield
    finally:
        process.terminate()
        process.wait(60)
        assert process.stdin is not None
        process.stdin.close()


def until_healthy(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise TimeoutError(f"{url} does not answer")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


WATCHED = """
import sys, uvicorn
from pathlib import Path
from lexloom.deployments.web.app import web_app
from lexloom.tasks.store.artifacts import Store
app = web_app(Store(sys.argv[1]))
async def watched(scope, receive, send):
    async def note(message):
        if message["type"] == "http.response.start":
            with open(sys.argv[2], "a") as seen:
                print(message["status"], scope["path"], file=seen)
        await send(message)
    await app(scope, receive, note)
uvicorn.run(watched, port=int(sys.argv[3]), log_level="critical")
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """The web page of the models; its results are written to a file."""
    folder = tmp_path_factory.mktemp("page")
    seen, port = folder / "seen", free_port()
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, "-c", WATCHED, str(folder / "store"), str(seen), str(port)])
    try:
        until_healthy(url)
        seen.write_text("")
        yield Target(
            url=url,
            read="/gradio_api/info",
            write="/gradio_api/call/neighbours",
            body={"data": ["model", "word"], "name": "attack"},
            socket="/gradio_api/queue/join",
            is_unharmed=lambda: {line.split()[0] for line in seen.read_text().splitlines()} == {"403"},
        )
    finally:
        process.terminate()
        process.wait(60)


# the attacks


def attack(browser: Browser, site: str, target: Target) -> dict[str, str]:
    """Return what a page of the site could read from a server."""
    browser.call("Page.navigate", url=site)
    browser.wait("document.body?.innerText === 'harmless'")
    assert browser.run("location.hostname") == ATTACKER
    known = {
        "url": target.url,
        "read": target.read,
        "write": target.write,
        "body": json.dumps(target.body),
        "socket": target.socket,
    }
    found: dict[str, str] = browser.run(ATTACKS.replace("TARGET", json.dumps(known)))
    return found


SENT_BUT_UNREADABLE = {"simple text", "blob without a type", "form fields", "bytes"}


def expect_nothing(found: dict[str, str], target: Target) -> None:
    unreadable = {name for name, got in found.items() if got == "sent"}
    assert unreadable <= SENT_BUT_UNREADABLE
    assert {got for name, got in found.items() if name not in unreadable} == {"refused"}
    assert target.is_unharmed(), "something was changed"


def test_another_site_cannot_read_from_or_start_runs_on_prefects_server(
    browser: Browser, site: str, prefect: Target
) -> None:
    expect_nothing(attack(browser, site, prefect), prefect)


def test_another_site_cannot_read_from_the_models_page(browser: Browser, site: str, page: Target) -> None:
    expect_nothing(attack(browser, site, page), page)


def rebind(browser: Browser, target: Target) -> None:
    """Open a page whose host name then resolves to the server, so that the browser sees the same origin."""
    address = target.url.replace("127.0.0.1", ATTACKER)
    browser.call("Page.navigate", url=address)
    browser.wait("document.body?.innerText.includes('nknown host')")
    for path, options in (
        (target.read, {}),
        (target.write, {"method": "POST", "body": json.dumps(target.body)}),
    ):
        options["headers"] = {"Content-Type": "application/json"} if options else {}
        fetch = f"fetch({path!r}, {json.dumps(options)}).then(answer => answer.status)"
        assert browser.run(fetch) == 403
    assert open_websocket(browser, target.socket) == "refused"
    assert target.is_unharmed()


def test_dns_rebinding_is_rejected_by_prefects_server(browser: Browser, prefect: Target) -> None:
    rebind(browser, prefect)


def test_dns_rebinding_is_rejected_by_the_models_page(browser: Browser, page: Target) -> None:
    rebind(browser, page)


def test_the_same_requests_from_the_same_origin_succeed(browser: Browser, prefect: Target) -> None:
    """Otherwise the tests above would pass without testing anything."""
    browser.call("Page.navigate", url=f"{prefect.url}/api/health")
    browser.wait("document.body?.innerText.includes('true')")
    assert request_status(browser, "/api/flows/", {"name": "of the own page"}) == 201
    assert open_websocket(browser, prefect.socket) == "open"


def request_status(browser: Browser, path: str, body: dict[str, Any] | None = None) -> int:
    """Return the status of a request that the open page sends."""
    options: dict[str, Any] = {}
    if body is not None:
        headers = {"Content-Type": "application/json"}
        options = {"method": "POST", "headers": headers, "body": json.dumps(body)}
    return int(browser.run(f"fetch({path!r}, {json.dumps(options)}).then(answer => answer.status)"))


def open_websocket(browser: Browser, path: str) -> str:
    """Return the result of opening a WebSocket from the open page."""
    return str(
        browser.run(
            f"new Promise(done => {{ const socket = new WebSocket('ws://' + location.host + {path!r});"
            " socket.onopen = () => done('open'); socket.onerror = () => done('refused'); })"
        )
    )
